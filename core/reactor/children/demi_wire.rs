//! Demi's own protocol, version 1, as spoken with one run of a child. `docs/plugin-protocol.md` describes it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use demi_conductor::config::Permissions;
use demi_conductor::{Instance, Outcome, Report, Ticket, Verdict};
use demi_platform::codec::{self, Level, Message, Offer, Permitted};
use demi_platform::{Fault, Reply, Request, RequestBuf, Settings, Status};
use serde_json::value::RawValue;

use super::outcome_of_fault;
use super::wire::{printable, Heard, Wire, LOG_LINE_BYTES_MAX};
use crate::calls::Calls;
use crate::kit::outcome_of_status;
use crate::store;

/// Requests of a child's own that are not answered yet; one more is answered with busy. As many as one child gets from
/// the host by default.
const ASKED_MAX: usize = 32;
/// So many ids are remembered of what was cancelled: an answer to one of them is nothing to warn of.
const CANCELLED_KEPT: usize = 64;

/// What an id that was sent to a child stands for.
enum Pending {
    Initialize,
    Reinitialize,
    Handle(Ticket),
    Probe,
}

/// What a child asked for, under an id of its own.
struct Asked {
    id: Box<RawValue>,
    errand: Errand,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Errand {
    Route,
    Get,
    Put,
}

/// One side of a conversation in Demi's own protocol.
pub(crate) struct DemiWire {
    /// The instance's name, and what it is initialised with.
    title: String,
    settings: Settings,
    line_bytes_max: usize,
    permissions: Permissions,
    trims: bool,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    cancelled: VecDeque<u64>,
    asked: Vec<Asked>,
}

impl DemiWire {
    /// Nothing said yet. A line has at most `line_bytes_max` bytes in either direction.
    pub(crate) fn new(line_bytes_max: usize, permissions: Permissions) -> DemiWire {
        DemiWire {
            title: String::new(),
            settings: Settings::new(),
            line_bytes_max,
            permissions,
            trims: false,
            pending: BTreeMap::new(),
            next_id: 1,
            cancelled: VecDeque::new(),
            asked: Vec::new(),
        }
    }

    fn id_for(&mut self, pending: Pending) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, pending);
        id
    }

    /// The platform's name: where its own requests come from.
    fn name(&self) -> &str {
        self.title.rsplit_once('/').map_or(&self.title, |(platform, _)| platform)
    }

    fn write_greeting(&mut self, pending: Pending, out: &mut Vec<u8>) {
        let permissions = Permitted { route: self.permissions.route, store: self.permissions.store };
        let host = Offer { permissions, line_bytes_max: self.line_bytes_max as u64 };
        let id = self.id_for(pending);
        codec::write_initialize(out, id, &self.title, &self.settings, host);
    }

    /// Forgets what is not answered, if there is such a thing.
    fn forget(&mut self, is_meant: impl Fn(&Pending) -> bool) {
        let earlier = self.pending.iter().find(|(_, pending)| is_meant(pending)).map(|(id, _)| *id);
        if let Some(earlier) = earlier {
            self.pending.remove(&earlier);
            self.note_cancelled(earlier);
        }
    }

    fn note_cancelled(&mut self, id: u64) {
        if self.cancelled.len() == CANCELLED_KEPT {
            self.cancelled.pop_front();
        }
        self.cancelled.push_back(id);
    }

    /// An answer to something that was sent.
    fn take_answer(&mut self, message: Message<'_>, instance: Instance, calls: &mut Calls, heard: &mut Vec<Heard>) {
        let id = message.number();
        let Some(pending) = id.and_then(|id| self.pending.remove(&id)) else {
            return self.take_stray(&message, heard);
        };
        let answer = match (message.result, message.error) {
            (Some(result), None) => Ok(result),
            (None, Some(error)) => {
                let fault = Fault::from(error);
                Err((outcome_of_fault(fault.kind), fault))
            }
            (Some(_), Some(_)) => Err((Outcome::Broken, Fault::failed("an answer with both result and error"))),
            (None, None) => Err((Outcome::Broken, Fault::failed("an answer with neither result nor error"))),
        };
        match pending {
            Pending::Initialize => {
                let greeted = self.take_hello(answer.map_err(|(_, fault)| fault.message));
                heard.push(greeted.map_or_else(Heard::Refused, |()| Heard::Started));
            }
            Pending::Reinitialize => {
                let greeted = self.take_hello(answer.map_err(|(_, fault)| fault.message));
                heard.push(Heard::Reinitialized(greeted));
            }
            Pending::Handle(ticket) => {
                let mut stray = (Reply::default(), None);
                let attempt = calls.attempt(ticket, instance);
                let (reply, fault) = match attempt {
                    Some(attempt) => (&mut attempt.reply, &mut attempt.fault),
                    None => (&mut stray.0, &mut stray.1),
                };
                let read = answer.and_then(|result| {
                    codec::read_reply(result, reply).map_err(|why| (Outcome::Broken, Fault::failed(why)))
                });
                let outcome = match read {
                    Ok(()) => outcome_of_status(reply.status),
                    Err((outcome, why)) => {
                        *fault = Some(why);
                        outcome
                    }
                };
                heard.push(Heard::Answered { ticket, outcome });
            }
            Pending::Probe => {
                let health = answer.map_err(|(_, fault)| fault.message).and_then(codec::read_health);
                heard.push(match health {
                    Ok(health) => match health.status {
                        Status::Up => Heard::Probed(Verdict::Pass, None),
                        Status::Busy => Heard::Probed(Verdict::Busy, None),
                        Status::Unready => {
                            let error = health.error.unwrap_or_else(|| "no reason given".to_owned());
                            Heard::Probed(Verdict::Unready, Some(error))
                        }
                        Status::Down => {
                            let error = health.error.unwrap_or_else(|| "no reason given".to_owned());
                            Heard::Probed(Verdict::Fail, Some(error))
                        }
                    },
                    Err(why) => Heard::Probed(Verdict::Fail, Some(why)),
                });
            }
        }
    }

    /// An answer to what nobody asked. One to what was cancelled meanwhile is in order.
    fn take_stray(&mut self, message: &Message<'_>, heard: &mut Vec<Heard>) {
        if message.number().is_some_and(|id| self.cancelled.contains(&id)) {
            return;
        }
        let text = match message.id {
            Some(id) => {
                let id = printable(id.get().as_bytes(), codec::ID_BYTES_MAX);
                format!("passed over its answer to {id}: nobody asked that, or it was answered before")
            }
            None => match &message.error {
                Some(error) => format!("says that something was wrong: {}", error.message),
                None => "passed over an answer without an id".to_owned(),
            },
        };
        heard.push(logged(log::Level::Warn, &text));
    }

    fn take_hello(&mut self, answer: Result<&RawValue, String>) -> Result<(), String> {
        let hello = answer.and_then(codec::read_initialized)?;
        if hello.protocol != codec::PROTOCOL {
            return Err(format!(
                "speaks version {} of the protocol, and this Demi speaks version {}",
                hello.protocol,
                codec::PROTOCOL
            ));
        }
        self.trims = hello.capabilities.iter().any(|capability| capability == "trim");
        Ok(())
    }

    /// A request of the child's own: taken, or answered at once with what is wrong.
    fn take_question(
        &mut self,
        method: &str,
        id: &RawValue,
        message: &Message<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Heard> {
        match self.read_question(method, id, message) {
            Ok((errand, heard)) => {
                self.asked.push(Asked { id: id.to_owned(), errand });
                Some(heard)
            }
            Err((code, why)) if codec::is_id(id) => {
                codec::write_error(out, id, code, &why);
                None
            }
            Err((code, why)) => {
                codec::write_error(out, (), code, &why);
                None
            }
        }
    }

    fn read_question(
        &self,
        method: &str,
        id: &RawValue,
        message: &Message<'_>,
    ) -> Result<(Errand, Heard), (i64, String)> {
        if !codec::is_id(id) {
            let why = format!("an id is a number or a text of at most {} bytes", codec::ID_BYTES_MAX);
            return Err((codec::BAD_REQUEST, why));
        }
        let (errand, permitted, field) = match method {
            "route" => (Errand::Route, self.permissions.route, "route"),
            "store.get" => (Errand::Get, self.permissions.store, "store"),
            "store.put" => (Errand::Put, self.permissions.store, "store"),
            _ => {
                let method = printable(method.as_bytes(), codec::ID_BYTES_MAX);
                let why = format!(
                    "there is no method {method}; there are route, store.get, store.put, log, \
                     extend and report"
                );
                return Err((codec::NO_METHOD, why));
            }
        };
        if !permitted {
            let why = format!(
                "{method} is not permitted; write `permissions: ({field}: true)` in its manifest, or in its entry of the \
                 configuration"
            );
            return Err((codec::NOT_PERMITTED, why));
        }
        if self.asked.iter().any(|asked| asked.id.get() == id.get()) {
            return Err((codec::BAD_REQUEST, "a request with this id is not answered yet".to_owned()));
        }
        if self.asked.len() >= ASKED_MAX {
            return Err((codec::BUSY, format!("{ASKED_MAX} requests are not answered yet; wait for one of them")));
        }
        let bad = |why| (codec::BAD_PARAMS, why);
        let heard = match errand {
            Errand::Route => {
                let mut request = RequestBuf::default();
                let to = codec::read_route(message.params, self.name(), &mut request).map_err(bad)?;
                Heard::Route { id: id.to_owned(), to, request }
            }
            Errand::Get => {
                let key = codec::read_store_get(message.params).map_err(bad)?;
                store::check_value(&key, 0).map_err(bad)?;
                Heard::StoreGet { id: id.to_owned(), key }
            }
            Errand::Put => {
                let (key, value) = codec::read_store_put(message.params).map_err(bad)?;
                store::check_value(&key, value.as_ref().map_or(0, |value| value.get().len())).map_err(bad)?;
                Heard::StorePut { id: id.to_owned(), key, value }
            }
        };
        Ok((errand, heard))
    }

    /// What is only told; one that wants to know is told that it was heard.
    fn take_notice(&mut self, method: &str, message: &Message<'_>) -> Option<Result<Heard, String>> {
        Some(match method {
            "log" => codec::read_log(message.params).map(|log| logged(level_of(log.level), &log.message)),
            "report" => {
                codec::read_report(message.params).map(|(weight, drain)| Heard::Report(Report { weight, drain }))
            }
            "extend" => codec::read_extend(message.params).map(|ms| Heard::Extend(Duration::from_millis(ms))),
            _ => return None,
        })
    }

    /// Takes a question off the list of those that are not answered. None if it is not on it.
    fn answered(&mut self, id: &RawValue) -> Option<Errand> {
        let place = self.asked.iter().position(|asked| asked.id.get() == id.get())?;
        Some(self.asked.swap_remove(place).errand)
    }

    /// An answer that is longer than a line may be is none.
    fn shorten(&self, id: &RawValue, before: usize, out: &mut Vec<u8>) {
        if out.len() - before > self.line_bytes_max {
            out.truncate(before);
            let why =
                format!("the answer is too long for a process: {} bytes on the wire at most", self.line_bytes_max);
            codec::write_fault(out, id, &Fault::failed(why));
        }
    }
}

impl Wire for DemiWire {
    fn greet(&mut self, name: &str, settings: &Settings, out: &mut Vec<u8>) {
        name.clone_into(&mut self.title);
        self.settings.clone_from(settings);
        self.write_greeting(Pending::Initialize, out);
    }

    fn greet_again(&mut self, out: &mut Vec<u8>) -> bool {
        self.forget(|pending| matches!(pending, Pending::Reinitialize));
        self.write_greeting(Pending::Reinitialize, out);
        true
    }

    fn ask(&mut self, ticket: Ticket, request: &Request<'_>, out: &mut Vec<u8>) -> Result<u64, Fault> {
        let before = out.len();
        codec::write_handle(out, self.next_id, request);
        if out.len() - before > self.line_bytes_max {
            out.truncate(before);
            return Err(Fault::mistaken(format!(
                "the request is too long for a process: {} bytes on the wire at most",
                self.line_bytes_max
            )));
        }
        Ok(self.id_for(Pending::Handle(ticket)))
    }

    fn cancel(&mut self, id: u64, out: &mut Vec<u8>) {
        if self.pending.remove(&id).is_some() {
            self.note_cancelled(id);
            codec::write_cancel(out, id);
        }
    }

    fn probe(&mut self, out: &mut Vec<u8>) {
        self.forget(|pending| matches!(pending, Pending::Probe));
        let id = self.id_for(Pending::Probe);
        codec::write_health(out, id);
    }

    fn trim(&mut self, out: &mut Vec<u8>) -> bool {
        if self.trims {
            codec::write_trim(out);
        }
        self.trims
    }

    fn shut_down(&mut self, out: &mut Vec<u8>) {
        codec::write_shutdown(out);
    }

    fn take_line(
        &mut self,
        line: &[u8],
        instance: Instance,
        calls: &mut Calls,
        heard: &mut Vec<Heard>,
        out: &mut Vec<u8>,
    ) {
        let Some(message) = codec::read_message(line) else {
            if !line.trim_ascii().is_empty() {
                heard.push(Heard::Logged { level: log::Level::Info, text: printable(line, LOG_LINE_BYTES_MAX) });
            }
            return;
        };
        let Some(method) = message.method.as_deref() else {
            return self.take_answer(message, instance, calls, heard);
        };
        match (self.take_notice(method, &message), message.id) {
            (Some(Ok(notice)), id) => {
                heard.push(notice);
                if let Some(id) = id.filter(|id| codec::is_id(id)) {
                    codec::write_done(out, id);
                }
            }
            (Some(Err(why)), Some(id)) if codec::is_id(id) => codec::write_error(out, id, codec::BAD_PARAMS, &why),
            (Some(Err(why)), _) => heard.push(logged(log::Level::Warn, &format!("passed over its {method}: {why}"))),
            (None, Some(id)) => heard.extend(self.take_question(method, id, &message, out)),
            (None, None) => {
                let text =
                    format!("passed over {method:?}: no notification of that name is heard here, or it needs an id");
                heard.push(logged(log::Level::Debug, &text));
            }
        }
    }

    fn answer_route(&mut self, id: &RawValue, answer: Result<&Reply, &Fault>, out: &mut Vec<u8>) {
        if self.answered(id).is_none() {
            return;
        }
        let before = out.len();
        match answer {
            Ok(reply) => codec::write_reply(out, id, reply),
            Err(fault) => codec::write_fault(out, id, fault),
        }
        self.shorten(id, before, out);
    }

    fn answer_store(&mut self, id: &RawValue, answer: Result<Option<&RawValue>, &Fault>, out: &mut Vec<u8>) {
        match (self.answered(id), answer) {
            (None, _) => {}
            (Some(_), Err(fault)) => codec::write_fault(out, id, fault),
            (Some(Errand::Put), Ok(_)) => codec::write_done(out, id),
            (Some(Errand::Get | Errand::Route), Ok(value)) => codec::write_stored(out, id, value),
        }
    }
}

fn logged(level: log::Level, text: &str) -> Heard {
    Heard::Logged { level, text: printable(text.as_bytes(), LOG_LINE_BYTES_MAX) }
}

fn level_of(level: Level) -> log::Level {
    match level {
        Level::Error => log::Level::Error,
        Level::Warn => log::Level::Warn,
        Level::Info => log::Level::Info,
        Level::Debug => log::Level::Debug,
        Level::Trace => log::Level::Trace,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::calls::Origin;

    /// A conversation whose child is the test.
    struct Talk {
        wire: DemiWire,
        calls: Calls,
        instance: Instance,
    }

    const ALL: Permissions = Permissions { route: true, store: true };

    impl Talk {
        fn new(permissions: Permissions) -> Talk {
            let instance = Instance { slot: 0, run: 1 };
            let mut talk = Talk { wire: DemiWire::new(4096, permissions), calls: Calls::default(), instance };
            talk.wire.greet("weather/0", &Settings::new(), &mut Vec::new());
            talk
        }

        /// What is heard of a line, and what is answered at once.
        fn hear(&mut self, line: impl AsRef<[u8]>) -> (Vec<Heard>, String) {
            let (mut heard, mut out) = (Vec::new(), Vec::new());
            self.wire.take_line(line.as_ref(), self.instance, &mut self.calls, &mut heard, &mut out);
            (heard, String::from_utf8(out).expect("JSON is UTF-8"))
        }

        /// Puts a request to the child.
        fn ask(&mut self) -> (Ticket, u64) {
            let mut buffer = self.calls.buffer();
            Arc::make_mut(&mut buffer).fill(&Request { body: b"hello", ..Request::default() });
            let ticket = self.calls.open(Arc::clone(&buffer), Origin::Nobody, None);
            self.calls.reset(ticket, self.instance);
            let id = self.wire.ask(ticket, &buffer.request(), &mut Vec::new()).expect("it is short");
            (ticket, id)
        }

        /// What became of a request of which the child says this.
        fn outcome(&mut self, answer: &str) -> (Outcome, Option<Fault>) {
            let (ticket, id) = self.ask();
            let (heard, _) = self.hear(format!(r#"{{"jsonrpc":"2.0","id":{id}{answer}}}"#));
            let fault = self.calls.get(ticket).expect("it is under way").attempt.fault.take();
            match heard[..] {
                [Heard::Answered { ticket: answered, outcome }] if answered == ticket => (outcome, fault),
                _ => panic!("{heard:?}"),
            }
        }

        fn log_line(&mut self, line: impl AsRef<[u8]>) -> (log::Level, String) {
            match self.hear(line) {
                (heard, out) if out.is_empty() => match <[Heard; 1]>::try_from(heard) {
                    Ok([Heard::Logged { level, text }]) => (level, text),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        }

        fn error(&mut self, line: &str) -> (i64, String) {
            let (heard, out) = self.hear(line);
            assert!(heard.is_empty(), "{heard:?}");
            let error = codec::read_message(out.as_bytes()).and_then(|message| message.error).expect("it is refused");
            (error.code, error.message)
        }
    }

    #[test]
    fn the_first_line_says_what_the_host_offers() {
        let mut out = Vec::new();
        DemiWire::new(4096, Permissions { route: true, store: false }).greet("a/0", &Settings::new(), &mut out);
        assert_eq!(
            String::from_utf8_lossy(&out),
            concat!(
                r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":1,"name":"a/0","settings":{},"#,
                r#""host":{"permissions":{"route":true,"store":false},"line_bytes_max":4096}}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn only_a_child_that_declares_it_is_asked_to_trim() {
        for (capabilities, trims) in [("", false), (r#","capabilities":["cancel","trim"]"#, true)] {
            let mut talk = Talk::new(ALL);
            let hello = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"protocol":1{capabilities}}}}}"#);
            assert!(matches!(talk.hear(hello).0[..], [Heard::Started]));
            let mut out = Vec::new();
            assert_eq!((talk.wire.trim(&mut out), out.is_empty()), (trims, !trims));
        }
    }

    #[test]
    fn a_handshake_that_fails_says_why() {
        for (answer, why) in [
            (r#""result":{"protocol":2}"#, "version 2"),
            (r#""error":{"code":-32000,"message":"no token"}"#, "no token"),
            (r#""error":"no token""#, "no token"),
            (r#""result":{}"#, "protocol"),
            (r#""result":null"#, "neither"),
        ] {
            let (heard, _) = Talk::new(ALL).hear(format!(r#"{{"jsonrpc":"2.0","id":1,{answer}}}"#));
            assert!(matches!(&heard[..], [Heard::Refused(told)] if told.contains(why)), "{answer}: {heard:?}");
        }
    }

    #[test]
    fn what_is_printed_by_mistake_is_a_log_line_whatever_its_bytes() {
        let mut talk = Talk::new(ALL);
        assert_eq!(talk.log_line("hello\x1b[31m"), (log::Level::Info, "hello\u{fffd}[31m".to_owned()));
        assert_eq!(talk.log_line(b"gr\xfc\xdfe").1, "gr\u{fffd}\u{fffd}e");
        assert_eq!(
            talk.log_line(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"\xff\"}").1.matches('\u{fffd}').count(),
            1
        );
        assert_eq!(talk.log_line(vec![b'x'; 100_000]).1.len(), LOG_LINE_BYTES_MAX + '…'.len_utf8());
        assert!(talk.hear(b"  \r").0.is_empty());
    }

    #[test]
    fn a_batch_is_no_part_of_the_protocol_and_a_log_line() {
        let mut talk = Talk::new(ALL);
        let batch = r#"[{"jsonrpc":"2.0","id":1,"result":{"protocol":1}}]"#;
        assert_eq!(talk.log_line(batch).1, batch);
    }

    #[test]
    fn a_second_answer_and_one_to_an_unknown_id_are_told_and_harm_nothing() {
        let mut talk = Talk::new(ALL);
        let (ticket, id) = talk.ask();
        let answer = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"body":"x"}}}}"#);
        let first = talk.hear(answer(&id.to_string())).0;
        assert!(matches!(first[..], [Heard::Answered { outcome: Outcome::Replied, .. }]), "{first:?}");
        for id in [id.to_string(), "999".to_owned(), "-1".to_owned(), "\"a\"".to_owned(), "{}".to_owned()] {
            let (level, text) = talk.log_line(answer(&id));
            assert_eq!(level, log::Level::Warn);
            assert!(text.contains(&id), "{text}");
        }
        assert_eq!(talk.calls.get(ticket).expect("it is under way").attempt.reply.body, b"x");
    }

    #[test]
    fn an_answer_to_what_was_cancelled_is_nothing_to_tell() {
        let mut talk = Talk::new(ALL);
        let (_, id) = talk.ask();
        let mut out = Vec::new();
        talk.wire.cancel(id, &mut out);
        assert!(String::from_utf8_lossy(&out).contains("\"cancel\""));
        assert!(talk.hear(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#)).0.is_empty());
        talk.wire.probe(&mut Vec::new());
        talk.wire.probe(&mut Vec::new());
        let early = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{"status":"up"}}}}"#, id + 1);
        assert!(talk.hear(early).0.is_empty(), "a check that was given up");
    }

    #[test]
    fn an_answer_with_result_and_error_or_neither_is_broken_and_says_so() {
        let mut talk = Talk::new(ALL);
        let broken = |(outcome, fault): (Outcome, Option<Fault>)| (outcome, fault.expect("it says why").message);
        let both = talk.outcome(r#","result":{},"error":{"code":1,"message":"x"}"#);
        assert_eq!(broken(both), (Outcome::Broken, "an answer with both result and error".to_owned()));
        let neither = talk.outcome("");
        assert_eq!(broken(neither), (Outcome::Broken, "an answer with neither result nor error".to_owned()));
        let foreign = broken(talk.outcome(r#","result":{"status":99}"#));
        assert!(foreign.0 == Outcome::Broken && foreign.1.contains("99"), "{foreign:?}");
        for (code, outcome) in [
            (codec::FAILED, Outcome::Failed),
            (codec::MISTAKEN, Outcome::Mistaken),
            (codec::BUSY, Outcome::Busy),
            (codec::NO_METHOD, Outcome::Failed),
        ] {
            let answer = format!(r#","error":{{"code":{code},"message":"why"}}"#);
            assert_eq!(broken(talk.outcome(&answer)), (outcome, "why".to_owned()));
        }
    }

    #[test]
    fn a_health_check_passes_fails_with_its_reason_is_busy_or_not_ready() {
        for (answer, verdict, why) in [
            (r#""result":{"status":"up"}"#, Verdict::Pass, None),
            (r#""result":{"status":"busy"}"#, Verdict::Busy, None),
            (r#""result":{"status":"unready","error":"the index is built"}"#, Verdict::Unready, Some("index")),
            (r#""result":{"status":"unready"}"#, Verdict::Unready, None),
            (r#""result":{"status":"down","error":"no net"}"#, Verdict::Fail, Some("no net")),
            (r#""error":{"code":-32601,"message":"what?"}"#, Verdict::Fail, Some("what?")),
            (r#""result":{"status":"fine"}"#, Verdict::Fail, Some("fine")),
        ] {
            let mut talk = Talk::new(ALL);
            talk.wire.probe(&mut Vec::new());
            let (heard, _) = talk.hear(format!(r#"{{"jsonrpc":"2.0","id":2,{answer}}}"#));
            let [Heard::Probed(found, error)] = &heard[..] else { panic!("{heard:?}") };
            assert_eq!(*found, verdict, "{answer}");
            assert!(why.is_none_or(|why| error.as_ref().is_some_and(|error| error.contains(why))), "{error:?}");
        }
    }

    #[test]
    fn one_that_is_initialised_again_hears_the_same_and_only_the_last_answer_counts() {
        let mut talk = Talk::new(ALL);
        let mut first = Vec::new();
        let settings = Settings::from([("city".to_owned(), "Graz".to_owned())]);
        talk.wire.greet("weather/0", &settings, &mut first);
        assert!(matches!(talk.hear(r#"{"jsonrpc":"2.0","id":2,"result":{"protocol":1}}"#).0[..], [Heard::Started]));
        let (mut again, mut once_more) = (Vec::new(), Vec::new());
        assert!(talk.wire.greet_again(&mut again) && talk.wire.greet_again(&mut once_more));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("JSON is UTF-8");
        assert_eq!(text(first).replace("\"id\":2", "\"id\":4"), text(once_more));
        assert!(talk.hear(r#"{"jsonrpc":"2.0","id":3,"result":{"protocol":1}}"#).0.is_empty(), "it was given up");
        let (heard, _) = talk.hear(r#"{"jsonrpc":"2.0","id":4,"result":{"protocol":1}}"#);
        assert!(matches!(heard[..], [Heard::Reinitialized(Ok(()))]), "{heard:?}");
        talk.wire.greet_again(&mut Vec::new());
        let (heard, _) = talk.hear(r#"{"jsonrpc":"2.0","id":5,"error":{"code":-32000,"message":"no city"}}"#);
        assert!(matches!(&heard[..], [Heard::Reinitialized(Err(why))] if why == "no city"), "{heard:?}");
    }

    #[test]
    fn a_request_of_its_own_comes_from_its_platform_whatever_it_says_and_is_answered_under_its_id() {
        let mut talk = Talk::new(ALL);
        for id in ["7", "\"seven\"", "-7"] {
            let line = format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"route","params":{{"from":"root","kind":"k","to":"echo","body":"hi"}}}}"#
            );
            let (heard, out) = talk.hear(&line);
            assert!(out.is_empty(), "{out}");
            let [Heard::Route { id: raw, to, request }] = &heard[..] else { panic!("{heard:?}") };
            let view = request.request();
            assert_eq!((view.from, view.kind, view.body, to.as_deref()), ("weather", "k", &b"hi"[..], Some("echo")));
            assert_eq!(talk.error(&line).0, codec::BAD_REQUEST, "the id is in use");
            let (mut out, reply) = (Vec::new(), Reply { body: b"ho".to_vec(), ..Reply::default() });
            talk.wire.answer_route(raw, Ok(&reply), &mut out);
            let expected =
                format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"status\":200,\"body\":\"ho\"}}}}\n");
            assert_eq!(String::from_utf8_lossy(&out), expected);
            talk.wire.answer_route(raw, Ok(&reply), &mut out);
            assert_eq!(out.len(), expected.len(), "nothing is answered twice");
        }
    }

    #[test]
    fn the_store_is_asked_by_key_and_answers_with_the_value_or_null() {
        let mut talk = Talk::new(ALL);
        let (heard, _) = talk.hear(r#"{"jsonrpc":"2.0","id":1,"method":"store.put","params":{"key":"k","value":[1]}}"#);
        let [Heard::StorePut { id, key, value: Some(value) }] = &heard[..] else { panic!("{heard:?}") };
        assert_eq!((key.as_str(), value.get()), ("k", "[1]"));
        let mut out = Vec::new();
        talk.wire.answer_store(id, Ok(None), &mut out);
        let (heard, _) = talk.hear(r#"{"jsonrpc":"2.0","id":2,"method":"store.get","params":{"key":"k"}}"#);
        let [Heard::StoreGet { id, .. }] = &heard[..] else { panic!("{heard:?}") };
        talk.wire.answer_store(id, Ok(Some(value)), &mut out);
        let (heard, _) =
            talk.hear(r#"{"jsonrpc":"2.0","id":3,"method":"store.put","params":{"key":"k","value":null}}"#);
        let [Heard::StorePut { id, value: None, .. }] = &heard[..] else { panic!("{heard:?}") };
        talk.wire.answer_store(id, Err(&Fault::failed("no disk")), &mut out);
        let expected = concat!(
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n",
            "{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{\"value\":[1]}}\n",
            "{\"jsonrpc\":\"2.0\",\"id\":3,\"error\":{\"code\":-32000,\"message\":\"no disk\"}}\n"
        );
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn what_it_may_not_ask_is_refused_with_the_field_that_permits_it() {
        let mut talk = Talk::new(Permissions::default());
        for (method, field) in [("route", "route: true"), ("store.get", "store: true"), ("store.put", "store: true")] {
            let (code, why) = talk.error(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{}}}}"#));
            assert_eq!(code, codec::NOT_PERMITTED);
            assert!(why.contains(field), "{why}");
        }
    }

    #[test]
    fn requests_that_cannot_be_taken_are_answered_with_what_is_wrong() {
        let mut talk = Talk::new(ALL);
        let long_id = format!("\"{}\"", "x".repeat(codec::ID_BYTES_MAX));
        let long_key = "k".repeat(257);
        for (id, method, params, code) in [
            ("1", "dance", "{}", codec::NO_METHOD),
            ("[1]", "route", "{}", codec::BAD_REQUEST),
            ("true", "route", "{}", codec::BAD_REQUEST),
            (&long_id, "route", "{}", codec::BAD_REQUEST),
            ("1", "route", r#"{"body":1}"#, codec::BAD_PARAMS),
            ("1", "route", r#"["a"]"#, codec::BAD_PARAMS),
            ("1", "route", r#"{"body_base64":"?"}"#, codec::BAD_PARAMS),
            ("1", "store.get", "{}", codec::BAD_PARAMS),
            ("1", "store.get", r#"{"key":""}"#, codec::BAD_PARAMS),
            ("1", "store.get", &format!(r#"{{"key":"{long_key}"}}"#), codec::BAD_PARAMS),
            ("1", "store.put", r#"{"key":"k"}"#, codec::BAD_PARAMS),
            ("1", "log", "{}", codec::BAD_PARAMS),
        ] {
            let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#);
            assert_eq!(talk.error(&line).0, code, "{line}");
        }
    }

    #[test]
    fn as_many_requests_as_it_may_have_and_one_more_is_busy() {
        let mut talk = Talk::new(ALL);
        let line = |id: usize| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"route","params":{{}}}}"#);
        for id in 0..ASKED_MAX {
            assert_eq!(talk.hear(line(id)).0.len(), 1);
        }
        assert_eq!(talk.error(&line(ASKED_MAX)).0, codec::BUSY);
        let id: Box<RawValue> = serde_json::from_str("0").expect("it is JSON");
        talk.wire.answer_route(&id, Err(&Fault::busy("no")), &mut Vec::new());
        assert_eq!(talk.hear(line(ASKED_MAX)).0.len(), 1);
    }

    #[test]
    fn notices_are_heard_and_unknown_ones_passed_over() {
        let mut talk = Talk::new(ALL);
        let log = r#"{"jsonrpc":"2.0","method":"log","params":{"level":"warning","message":"hm\n"}}"#;
        assert_eq!(talk.log_line(log), (log::Level::Warn, "hm".to_owned()));
        let (heard, _) = talk.hear(r#"{"jsonrpc":"2.0","method":"extend","params":{"ms":500}}"#);
        assert!(matches!(heard[..], [Heard::Extend(by)] if by == Duration::from_millis(500)), "{heard:?}");
        let (_, out) = talk.hear(r#"{"jsonrpc":"2.0","id":"e","method":"extend","params":{"ms":500}}"#);
        assert_eq!(out, "{\"jsonrpc\":\"2.0\",\"id\":\"e\",\"result\":{}}\n");
        let (heard, _) = talk.hear(r#"{"jsonrpc":"2.0","method":"report","params":{"weight":3,"drain":true}}"#);
        assert!(matches!(heard[..], [Heard::Report(Report { weight: Some(3), drain: true })]), "{heard:?}");
        let (heard, _) = talk.hear(r#"{"jsonrpc":"2.0","method":"report","params":{}}"#);
        assert!(matches!(heard[..], [Heard::Report(Report { weight: None, drain: false })]), "{heard:?}");
        for params in [r#"{"weight":0}"#, r#"{"weight":1001}"#, r#"{"weight":1.5}"#, r#"{"drain":"yes"}"#, "[3]", "7"] {
            let (level, text) = talk.log_line(format!(r#"{{"jsonrpc":"2.0","method":"report","params":{params}}}"#));
            assert!(level == log::Level::Warn && text.starts_with("passed over its report: "), "{text}");
            let line = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"report","params":{params}}}"#);
            assert_eq!(talk.error(&line).0, codec::BAD_PARAMS);
        }
        assert_eq!(talk.log_line(r#"{"jsonrpc":"2.0","method":"dance"}"#).0, log::Level::Debug);
        assert_eq!(talk.log_line(r#"{"jsonrpc":"2.0","method":"extend","params":{"ms":-1}}"#).0, log::Level::Warn);
    }

    #[test]
    fn what_is_longer_than_a_line_may_be_is_not_sent() {
        let mut talk = Talk::new(ALL);
        let mut out = Vec::new();
        let ticket = Ticket::new(0, 0);
        let long = Request { body: &[b'x'; 5000], ..Request::default() };
        assert!(talk.wire.ask(ticket, &long, &mut out).is_err() && out.is_empty());
        let (heard, _) = talk.hear(r#"{"jsonrpc":"2.0","id":1,"method":"route","params":{}}"#);
        let [Heard::Route { id, .. }] = &heard[..] else { panic!("{heard:?}") };
        talk.wire.answer_route(id, Ok(&Reply { body: vec![b'x'; 5000], ..Reply::default() }), &mut out);
        assert!(out.len() < 256 && String::from_utf8_lossy(&out).contains("too long"));
    }
}
