//! Runs a platform as a process of its own.
//!
//! One thread is enough: whoever wants something of the host while nobody reads stdin reads it, for itself and for all
//! others. What comes meanwhile waits in a queue for [`plugin_main`], which reads only when nobody else does.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::value::{to_raw_value, RawValue};

use crate::codec::{self, Level};
use crate::{Fault, Health, Platform, Reply, Request, RequestBuf, Status};

/// Messages that wait while the platform waits for the host; one more request is answered with busy. As many as a
/// host may have under way with one instance.
const QUEUED_MAX: usize = 4096;

/// What every plugin in Rust understands beyond what it must.
const CAPABILITIES: [&str; 1] = ["trim"];

/// Speaks the wire protocol on stdin and stdout until stdin ends or `shutdown` is called; blocks until then.
///
/// One request at a time; then [`Platform::shutdown`] is called, for which there is a second, or half of
/// `stop_grace_ms` if that is shorter, before Demi sends TERM: handle that if you need more. Log with `eprintln!`:
/// stderr goes to Demi's log under the platform's name. Never print to stdout.
///
/// # Errors
/// If stdin cannot be read or stdout cannot be written, which is the case when Demi is gone.
pub fn plugin_main(platform: &mut dyn Platform) -> io::Result<()> {
    serve(platform, &Line::of_this_process())
}

/// As [`plugin_main`], for a platform that wants something of Demi: it is made with a [`Host`] to ask.
///
/// ```no_run
/// use demi_platform::{Fault, Host, Platform, Reply, Request, Settings};
///
/// struct Counter(Host);
///
/// impl Platform for Counter {
///     fn initialize(&mut self, _: &Settings) -> Result<(), Fault> {
///         Ok(())
///     }
///
///     fn handle_request(&mut self, _: &Request<'_>, reply: &mut Reply) -> Result<(), Fault> {
///         let count = self.0.store_get::<u64>("count")?.unwrap_or(0) + 1;
///         self.0.store_put("count", &count)?;
///         reply.text(&count.to_string());
///         Ok(())
///     }
/// }
///
/// demi_platform::plugin_main_with(|host| Box::new(Counter(host))).expect("Demi is there");
/// ```
///
/// # Errors
/// As [`plugin_main`].
pub fn plugin_main_with(make: impl FnOnce(Host) -> Box<dyn Platform>) -> io::Result<()> {
    let line = Line::of_this_process();
    let mut platform = make(Host { line: Arc::clone(&line) });
    serve(platform.as_mut(), &line)
}

/// Demi, as a plugin sees it. Clone it for each thread.
///
/// [`Host::route`] and the store need a permission in the manifest (or the platform's entry of the configuration) and
/// block until Demi has answered; Demi takes 32 of them at once from one instance. While a method of the platform waits
/// for one, health checks are answered with busy and other requests wait. In [`Platform::shutdown`] Demi answers no more.
#[derive(Clone)]
pub struct Host {
    line: Arc<Line>,
}

impl Host {
    /// Has a request answered by another platform: the one named by `to`, or else the one that Demi's routes say. Demi
    /// takes it as coming from this platform, whatever [`Request::from`] says; `host` and `headers` do not travel.
    /// Blocks until it is answered, at most for as long as the route allows.
    ///
    /// # Errors
    /// `Mistaken`: no route, no such platform, not permitted (`permissions: (route: true)`), or the other platform says
    /// so; `Busy`: nobody takes it now; `Failed`: the other platform failed or did not answer, or Demi is gone.
    pub fn route(&self, request: &Request<'_>, to: Option<&str>) -> Result<Reply, Fault> {
        let answer = self.line.ask(|id, out| codec::write_route(out, id, request, to))?;
        let mut reply = Reply::default();
        codec::read_reply(&answer, &mut reply).map_err(Fault::failed)?;
        Ok(reply)
    }

    /// What was last put under this key by any instance of this platform, if anything was. Blocks for Demi's disk.
    ///
    /// # Errors
    /// `Mistaken`: not permitted (`permissions: (store: true)`); `Failed`: the value is no `T`, or Demi's store fails.
    pub fn store_get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Fault> {
        let answer = self.line.ask(|id, out| codec::write_store_get(out, id, key))?;
        let value = codec::read_stored(&answer).map_err(Fault::failed)?;
        value
            .map(|value| serde_json::from_str(value.get()))
            .transpose()
            .map_err(|error| Fault::failed(error.to_string()))
    }

    /// Keeps a value under a key of at most 256 bytes, for all instances of this platform. It is on Demi's disk when
    /// this returns. At most 64 KiB of JSON, and 1,000 keys and 1 MiB in all; what becomes `null` is taken away.
    ///
    /// # Errors
    /// `Mistaken`: not permitted, or beyond those bounds; `Failed`: it cannot be JSON, or Demi's store fails.
    pub fn store_put<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<(), Fault> {
        let value = to_raw_value(value).map_err(|error| Fault::failed(error.to_string()))?;
        self.line.ask(|id, out| codec::write_store_put(out, id, key, &value)).map(drop)
    }

    /// Takes away what is kept under a key.
    ///
    /// # Errors
    /// As [`Host::store_put`].
    pub fn store_remove(&self, key: &str) -> Result<(), Fault> {
        self.store_put(key, &())
    }

    /// Says something in this platform's log. A host that is gone reads no log, so this cannot fail.
    pub fn log(&self, level: Level, message: &str) {
        let _ = self.line.write(|out| codec::write_log(out, level, message));
    }

    /// Says, before [`Platform::initialize`] returns, that it will take so much longer from now. Demi counts at most
    /// `start_timeout_ms` at a time.
    pub fn extend(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        let _ = self.line.write(|out| codec::write_extend(out, ms));
    }

    /// Says how this process wants to be balanced from now on: how often it is asked against the others, 1 to
    /// [`codec::WEIGHT_MAX`] (`None`: as it is configured), and whether it wants no new requests (`drain`) and goes on with
    /// those that it has. It holds until it is said otherwise or the process ends.
    pub fn report(&self, weight: Option<u32>, drain: bool) {
        let _ = self.line.write(|out| codec::write_report(out, weight, drain));
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Host").finish_non_exhaustive()
    }
}

/// What the host said to a question of ours.
type Answer = Result<Box<RawValue>, Fault>;

/// Both directions of the pipe to the host, for all threads of the plugin.
struct Line {
    /// Held by the one that reads.
    input: Mutex<Box<dyn BufRead + Send>>,
    output: Mutex<Output>,
    state: Mutex<State>,
    /// An answer or a message is there for another thread, or nobody reads any more.
    news: Condvar,
}

struct Output {
    sink: Box<dyn Write + Send>,
    bytes: Vec<u8>,
}

struct State {
    /// Messages for the platform that came while it was not ready for them.
    queued: VecDeque<Vec<u8>>,
    /// Our questions that are not answered, or whose answers were not yet taken.
    questions: BTreeMap<u64, Option<Answer>>,
    next_id: u64,
    /// Somebody reads.
    is_read: bool,
    has_ended: bool,
    /// Lines that were read and are still to be looked at: one of them may be what somebody waits for.
    in_hand: usize,
    /// The thread that serves, and whether it waits for an answer to a question of ours.
    server: ThreadId,
    server_waits: bool,
}

/// A thread that panicked left nothing half done here: each lock is held for one simple step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    fn of_this_process() -> Arc<Line> {
        Line::new(BufReader::new(io::stdin()), io::stdout())
    }

    fn new(input: impl BufRead + Send + 'static, output: impl Write + Send + 'static) -> Arc<Line> {
        let state = State {
            queued: VecDeque::new(),
            questions: BTreeMap::new(),
            next_id: 1,
            is_read: false,
            has_ended: false,
            in_hand: 0,
            server: thread::current().id(),
            server_waits: false,
        };
        Arc::new(Line {
            input: Mutex::new(Box::new(input)),
            output: Mutex::new(Output { sink: Box::new(output), bytes: Vec::new() }),
            state: Mutex::new(state),
            news: Condvar::new(),
        })
    }

    /// Writes what `fill` makes: whole lines.
    fn write(&self, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let Output { sink, bytes } = &mut *lock(&self.output);
        bytes.clear();
        fill(bytes);
        sink.write_all(bytes)?;
        sink.flush()
    }

    /// Puts a question to the host and waits for its answer.
    fn ask(&self, write: impl FnOnce(u64, &mut Vec<u8>)) -> Answer {
        let gone = || Fault::failed("Demi is gone, or ends this plugin");
        let mut state = lock(&self.state);
        if state.has_ended {
            return Err(gone());
        }
        let id = state.next_id;
        state.next_id += 1;
        state.questions.insert(id, None);
        let serves = state.server == thread::current().id();
        state.server_waits |= serves;
        drop(state);
        let mut answer = self.write(|out| write(id, out)).map_err(|_| gone()).err().map(Err);
        let mut line = Vec::new();
        while answer.is_none() {
            match self.turn(&mut line, |state| state.questions.get_mut(&id).and_then(Option::take)) {
                Turn::Found(found) => answer = Some(found),
                Turn::Read => {
                    self.take(&line);
                    self.put_down();
                }
                Turn::Ended => answer = Some(Err(gone())),
            }
        }
        let mut state = lock(&self.state);
        state.questions.remove(&id);
        if serves {
            state.server_waits = false;
        }
        answer.unwrap_or_else(|| Err(gone()))
    }

    /// The next line for the platform's own thread. False at the end of the input.
    fn next(&self, line: &mut Vec<u8>) -> bool {
        match self.turn(line, |state| state.queued.pop_front()) {
            Turn::Found(queued) => {
                *line = queued;
                true
            }
            Turn::Read => {
                // An answer is given at once: whoever waits for it must have it before the input is known to have ended.
                if !lock(&self.state).questions.is_empty() {
                    if let Some(message) = codec::read_message(line).filter(|message| message.method.is_none()) {
                        self.take_answer(message);
                    }
                }
                self.put_down();
                true
            }
            Turn::Ended => false,
        }
    }

    /// A line that was read has been looked at.
    fn put_down(&self) {
        lock(&self.state).in_hand -= 1;
        self.news.notify_all();
    }

    /// Waits until there is what `find` looks for, or reads a line if nobody else does.
    fn turn<T>(&self, line: &mut Vec<u8>, mut find: impl FnMut(&mut State) -> Option<T>) -> Turn<T> {
        let mut state = lock(&self.state);
        loop {
            if let Some(found) = find(&mut state) {
                return Turn::Found(found);
            }
            if state.has_ended && state.in_hand == 0 {
                return Turn::Ended;
            }
            if !state.is_read && !state.has_ended {
                break;
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_read = true;
        drop(state);
        line.clear();
        let count = lock(&self.input).read_until(b'\n', line);
        let mut state = lock(&self.state);
        state.is_read = false;
        // Input that cannot be read is as good as ended.
        let is_read = matches!(count, Ok(1..));
        state.has_ended = !is_read;
        state.in_hand += usize::from(is_read);
        drop(state);
        self.news.notify_all();
        if is_read {
            Turn::Read
        } else {
            // Others may still hold what this one waits for.
            self.turn(line, find)
        }
    }

    /// Takes a line that somebody read who was waiting for an answer.
    fn take(&self, line: &[u8]) {
        let Some(message) = codec::read_message(line) else { return pass_over() };
        if message.method.is_none() {
            return self.take_answer(message);
        }
        let mut state = lock(&self.state);
        let is_full = state.queued.len() >= QUEUED_MAX;
        let is_busy = state.server_waits && message.method.as_deref() == Some("health");
        match message.id.filter(|_| is_full || is_busy) {
            Some(id) => {
                drop(state);
                let busy = Health { status: Status::Busy, error: None };
                // Whoever cannot be told is gone, which the next read finds.
                let _ = self.write(|out| match message.method.as_deref() {
                    Some("health") => codec::write_health_result(out, id, &busy),
                    _ => codec::write_fault(out, id, &Fault::busy("too much waits for this plugin")),
                });
            }
            None if is_full => {}
            None => {
                state.queued.push_back(line.to_vec());
                drop(state);
                self.news.notify_all();
            }
        }
    }

    /// Gives an answer to whoever waits for it.
    fn take_answer(&self, message: codec::Message<'_>) {
        let id = message.number();
        let answer = match (message.result, message.error) {
            (_, Some(error)) => Err(Fault::from(error)),
            (Some(result), None) => Ok(result.to_owned()),
            (None, None) => Err(Fault::failed("an answer with neither result nor error")),
        };
        let mut state = lock(&self.state);
        if let Some(question) = id.and_then(|id| state.questions.get_mut(&id)) {
            *question = Some(answer);
            drop(state);
            self.news.notify_all();
        }
    }
}

/// What became of a turn at the input.
enum Turn<T> {
    Found(T),
    /// A line was read.
    Read,
    Ended,
}

fn pass_over() {
    eprintln!("passed over a line that is no JSON-RPC message");
}

fn serve(platform: &mut dyn Platform, host: &Line) -> io::Result<()> {
    let mut line = Vec::new();
    let mut buffer = RequestBuf::default();
    let mut reply = Reply::default();
    while host.next(&mut line) {
        let Some(message) = codec::read_message(&line) else {
            pass_over();
            continue;
        };
        match (message.method.as_deref(), message.id) {
            (Some("initialize"), Some(id)) => {
                let initialized = initialize(platform, &message);
                host.write(|out| match initialized {
                    Ok(()) => codec::write_initialized(out, id, &CAPABILITIES),
                    Err(fault) => codec::write_fault(out, id, &fault),
                })?;
            }
            (Some("handle"), Some(id)) => {
                reply.clear();
                let read = codec::read_handle(message.params, &mut buffer).map_err(Fault::mistaken);
                let handled = read.and_then(|()| platform.handle_request(&buffer.request(), &mut reply));
                host.write(|out| match handled {
                    Ok(()) => codec::write_reply(out, id, &reply),
                    Err(fault) => codec::write_fault(out, id, &fault),
                })?;
            }
            (Some("health"), Some(id)) => {
                let health = platform.health_check();
                host.write(|out| codec::write_health_result(out, id, &health))?;
            }
            (Some("trim"), id) => {
                platform.trim();
                if let Some(id) = id {
                    host.write(|out| codec::write_done(out, id))?;
                }
            }
            (Some("shutdown"), _) => break,
            (Some(method), Some(id)) => {
                let what = format!("there is no method {method:?}");
                host.write(|out| codec::write_error(out, id, codec::NO_METHOD, &what))?;
            }
            // A cancelled request was answered before its cancellation could be read: one at a time.
            (Some(_), None) => {}
            (None, _) => host.take_answer(message),
        }
    }
    platform.shutdown();
    Ok(())
}

fn initialize(platform: &mut dyn Platform, message: &codec::Message<'_>) -> Result<(), Fault> {
    let wanted = codec::read_initialize(message.params).map_err(Fault::mistaken)?;
    if wanted.protocol != codec::PROTOCOL {
        return Err(Fault::mistaken(format!(
            "protocol {} is not spoken here, {} is",
            wanted.protocol,
            codec::PROTOCOL
        )));
    }
    platform.initialize(&wanted.settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    /// A pipe's end that anybody may look at.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Paper {
        fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(lock(&self.0).clone()).expect("JSON is UTF-8");
            text.lines().map(str::to_owned).collect()
        }
    }

    struct Upper {
        is_shut_down: bool,
        trims: u32,
    }

    impl Platform for Upper {
        fn initialize(&mut self, _: &Settings) -> Result<(), Fault> {
            Ok(())
        }

        fn handle_request(&mut self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Fault> {
            let text = request.text().ok_or_else(|| Fault::mistaken("not a text"))?;
            reply.text(&text.to_uppercase());
            Ok(())
        }

        fn trim(&mut self) {
            self.trims += 1;
        }

        fn shutdown(&mut self) {
            self.is_shut_down = true;
        }
    }

    fn line(input: &'static str) -> (Arc<Line>, Paper) {
        let paper = Paper::default();
        (Line::new(input.as_bytes(), paper.clone()), paper)
    }

    fn talk(input: &'static str) -> (Vec<String>, Upper) {
        let mut platform = Upper { is_shut_down: false, trims: 0 };
        let (line, paper) = line(input);
        serve(&mut platform, &line).expect("memory can be read and written");
        (paper.lines(), platform)
    }

    #[test]
    fn it_shakes_hands_answers_and_ends_with_its_input() {
        let (lines, platform) = talk(concat!(
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":1,"name":"upper"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":2,"method":"handle","params":{"body":"hi"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","method":"trim"}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":"x","method":"health"}"#,
            "\n"
        ));
        assert_eq!(lines[0], r#"{"jsonrpc":"2.0","id":1,"result":{"protocol":1,"capabilities":["trim"]}}"#);
        assert!(lines[1].contains(r#""body":"HI""#), "{}", lines[1]);
        assert_eq!(lines[2], r#"{"jsonrpc":"2.0","id":"x","result":{"status":"up"}}"#);
        assert_eq!((lines.len(), platform.is_shut_down, platform.trims), (3, true, 1));
    }

    #[test]
    fn garbage_unknown_methods_and_a_foreign_protocol_end_nothing() {
        let (lines, _) = talk(concat!(
            "garbage\n",
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":9,"name":"upper"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":2,"method":"dance"}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":3,"method":"handle","params":{"body_base64":"/w=="}}"#,
            "\n"
        ));
        let code =
            |line: &String| codec::read_message(line.as_bytes()).and_then(|message| message.error).map(|e| e.code);
        let codes: Vec<Option<i64>> = lines.iter().map(code).collect();
        assert_eq!(codes, [codec::MISTAKEN, codec::NO_METHOD, codec::MISTAKEN].map(Some));
    }

    /// Asks its host for the answer to each request.
    struct Asker(Host);

    impl Platform for Asker {
        fn initialize(&mut self, _: &Settings) -> Result<(), Fault> {
            Ok(())
        }

        fn handle_request(&mut self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Fault> {
            *reply = self.0.route(request, Some("echo"))?;
            Ok(())
        }
    }

    #[test]
    fn while_it_waits_for_the_host_health_is_busy_and_requests_wait_their_turn() {
        let (line, paper) = line(concat!(
            r#"{"jsonrpc":"2.0","id":1,"method":"handle","params":{"body":"one"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":2,"method":"health"}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":3,"method":"handle","params":{"body":"two"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":1,"result":{"body":"ONE"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32002,"message":"full"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":4,"method":"health"}"#,
            "\n"
        ));
        let mut platform = Asker(Host { line: Arc::clone(&line) });
        serve(&mut platform, &line).expect("memory can be read and written");
        let expected = [
            r#"{"jsonrpc":"2.0","id":1,"method":"route","params":{"body":"one","to":"echo"}}"#,
            r#"{"jsonrpc":"2.0","id":2,"result":{"status":"busy"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"status":200,"body":"ONE"}}"#,
            r#"{"jsonrpc":"2.0","id":2,"method":"route","params":{"body":"two","to":"echo"}}"#,
            r#"{"jsonrpc":"2.0","id":3,"error":{"code":-32002,"message":"full"}}"#,
            r#"{"jsonrpc":"2.0","id":4,"result":{"status":"up"}}"#,
        ];
        assert_eq!(paper.lines(), expected);
    }

    #[test]
    fn a_host_that_ends_leaves_no_question_waiting() {
        let (line, _) = line("");
        let host = Host { line };
        let fault = host.store_get::<String>("key").expect_err("nobody answers");
        assert!(fault.message.contains("gone"), "{fault}");
        assert!(host.store_put("key", "value").is_err());
    }

    #[test]
    fn several_threads_may_ask_while_the_platform_is_idle() {
        let (reader, mut writer) = io::pipe().expect("there is a pipe to have");
        let paper = Paper::default();
        let line = Line::new(BufReader::new(reader), paper.clone());
        let asking: Vec<_> = (0..4)
            .map(|number| {
                let host = Host { line: Arc::clone(&line) };
                thread::spawn(move || host.store_get::<u64>(&number.to_string()))
            })
            .collect();
        let answering = thread::spawn(move || {
            let mut answered = 0;
            while answered < 4 {
                for asked in paper.lines().iter().skip(answered) {
                    let message = codec::read_message(asked.as_bytes()).expect("it is a message");
                    let id = message.id.expect("it is a question");
                    let key = codec::read_store_get(message.params).expect("it has a key");
                    let mut answer = Vec::new();
                    codec::write_stored(&mut answer, id, serde_json::from_str(&key).ok());
                    writer.write_all(&answer).expect("somebody reads");
                    answered += 1;
                }
                thread::yield_now();
            }
        });
        let mut platform = Upper { is_shut_down: false, trims: 0 };
        serve(&mut platform, &line).expect("it ends with its input");
        answering.join().expect("it does not panic");
        for (number, asked) in asking.into_iter().enumerate() {
            let value = asked.join().expect("it does not panic").expect("it was answered");
            assert_eq!(value, Some(number as u64));
        }
    }
}
