//! What the checks of both protocols have in common: runs that are started as needed, waits that end, and the end.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use demi::{Host, Platform};
use demi_platform::codec;
use serde_json::{json, Value};

use super::report::Report;
use super::subject::{Answer, Recipe, Seen, Strays, Subject};

/// All waits of a check together; the rest of half a minute is for starting and killing.
const CHECK_MAX: Duration = Duration::from_secs(27);
/// Longest body that a Demi with default limits takes.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Longest wait for a handshake, whatever the manifest allows.
const HANDSHAKE_MAX: Duration = Duration::from_secs(12);
/// Longest wait for an end, whatever the manifest allows.
const END_MAX: Duration = Duration::from_secs(8);
/// Shortest wait for an end: one who is killed at once by the manifest is still seen to end.
const END_MIN: Duration = Duration::from_millis(500);
/// Patience with an answer that takes no work.
pub(super) const PROMPT: Duration = Duration::from_secs(2);
/// Patience with an answer that does.
pub(super) const WORKING: Duration = Duration::from_secs(4);

/// The revision of MCP that is offered; the server may answer with another one.
const MCP_REVISION: &str = "2025-06-18";

/// A check under way.
pub(super) struct Suite<'s> {
    recipe: Recipe,
    plugin: &'s Platform,
    pub(super) report: &'s mut Report,
    deadline: Instant,
    subject: Option<Subject>,
    strays: Strays,
}

impl<'s> Suite<'s> {
    pub(super) fn new(recipe: Recipe, plugin: &'s Platform, report: &'s mut Report) -> Suite<'s> {
        let deadline = Instant::now() + CHECK_MAX;
        Suite { recipe, plugin, report, deadline, subject: None, strays: Strays::default() }
    }

    /// When a wait that begins now ends.
    pub(super) fn within(&self, patience: Duration) -> Instant {
        (Instant::now() + patience).min(self.deadline)
    }

    fn is_mcp(&self) -> bool {
        matches!(self.plugin.host, Host::Mcp(_))
    }

    // -- runs

    /// The first handshake, which is a step of its own. What the plugin answered, if it did.
    pub(super) fn shake_hands(&mut self) -> Option<Value> {
        let began = Instant::now();
        match self.start() {
            Ok((subject, greeting)) => {
                self.subject = Some(subject);
                let took = began.elapsed();
                let version = if self.is_mcp() { &greeting["protocolVersion"] } else { &greeting["protocol"] };
                self.report.ok("handshake", &format!("protocol {}", version.to_string().trim_matches('"')));
                let allowed = self.plugin.start_timeout_ms.millis();
                let told = format!("ready after {} ms of at most {}", took.as_millis(), allowed.as_millis());
                let warning = if took > allowed / 2 {
                    "; warning: more than half: raise start_timeout_ms, start less, or say `extend`"
                } else {
                    ""
                };
                self.report.ok("slow start", &format!("{told}{warning}"));
                Some(greeting)
            }
            Err(seen) => {
                let protocol = if self.is_mcp() { "a protocolVersion" } else { "{\"protocol\":1}" };
                self.report.fail("handshake", &format!("`initialize` to be answered with {protocol}"), &seen);
                None
            }
        }
    }

    /// Starts a run and shakes hands; what it answered, or what was seen instead.
    fn start(&mut self) -> Result<(Subject, Value), String> {
        let mut subject = Subject::start(&self.recipe).map_err(|error| format!("it cannot be started: {error}"))?;
        let id = self.greet(&mut subject);
        match self.welcome(&mut subject, id) {
            Ok(greeting) => Ok((subject, greeting)),
            Err(seen) => {
                self.bury(subject);
                Err(seen)
            }
        }
    }

    /// Begins the handshake.
    fn greet(&self, subject: &mut Subject) -> u64 {
        if self.is_mcp() {
            let client = json!({"name": "demi", "version": env!("CARGO_PKG_VERSION")});
            let params = json!({"protocolVersion": MCP_REVISION, "capabilities": {}, "clientInfo": client});
            return subject.call("initialize", &params);
        }
        let id = subject.next_id();
        let mut line = Vec::new();
        let permissions =
            codec::Permitted { route: self.plugin.permissions.route, store: self.plugin.permissions.store };
        let host = codec::Offer { permissions, line_bytes_max: codec::line_bytes_max(BODY_BYTES_MAX) as u64 };
        codec::write_initialize(&mut line, id, &format!("{}/0", self.plugin.name), &self.plugin.settings, host);
        subject.send(line);
        id
    }

    /// Ends the handshake.
    fn welcome(&self, subject: &mut Subject, id: u64) -> Result<Value, String> {
        let patience = self.plugin.start_timeout_ms.millis().min(HANDSHAKE_MAX);
        let greeting = match subject.answer(id, self.within(patience)) {
            Seen::Answer(Answer::Result(greeting)) => greeting,
            other => return Err(tell(&other)),
        };
        if self.is_mcp() {
            if !greeting["protocolVersion"].is_string() {
                return Err(format!("the answer {greeting}"));
            }
            subject.notify("notifications/initialized", &json!({}));
        } else if greeting["protocol"].as_u64() != Some(u64::from(codec::PROTOCOL)) {
            return Err(format!("the answer {greeting}"));
        }
        Ok(greeting)
    }

    /// Does a step with a run that lives: the present one, or else another. The step says what it saw, or what it
    /// expected and saw instead; a run that failed is not used again.
    pub(super) fn step(
        &mut self,
        name: &str,
        step: impl FnOnce(&Suite<'_>, &mut Subject) -> Result<String, (String, String)>,
    ) {
        let present = self.subject.take().and_then(|mut subject| {
            if subject.is_alive() {
                return Some(subject);
            }
            self.bury(subject);
            None
        });
        if Instant::now() >= self.deadline {
            self.subject = present;
            return self.report.skip(name, "the time for the whole check is over");
        }
        let mut subject = match present.map_or_else(|| self.start().map(|(subject, _)| subject), Ok) {
            Ok(subject) => subject,
            Err(seen) => return self.report.skip(name, &format!("it could not be started again: {seen}")),
        };
        match step(self, &mut subject) {
            Ok(seen) => {
                self.report.ok(name, &seen);
                self.subject = Some(subject);
            }
            Err((expected, seen)) => {
                self.report.fail(name, &expected, &seen);
                self.bury(subject);
            }
        }
    }

    /// Keeps what a run leaves to be told, and ends it.
    fn bury(&mut self, subject: Subject) {
        if self.strays.count == 0 {
            self.strays.first.clone_from(&subject.strays.first);
        }
        self.strays.count += subject.strays.count;
        self.report.keep_last_words(subject.last_words());
    }

    /// Whether it is alive: by `health`, or by `ping`.
    pub(super) fn sign_of_life(&self, subject: &mut Subject) -> Result<(), String> {
        let id = if self.is_mcp() { subject.call("ping", &json!({})) } else { subject.call("health", &Value::Null) };
        match subject.answer(id, self.within(PROMPT)) {
            Seen::Answer(Answer::Result(_)) => Ok(()),
            other => Err(tell(&other)),
        }
    }

    // -- steps that both have

    /// Lines that are no message must be passed over.
    pub(super) fn garbage(&mut self) {
        self.step("garbage", |suite, subject| {
            subject.send(b"this is no JSON\n".to_vec());
            subject.send(b"[1, 2, 3]\n".to_vec());
            subject.send(vec![0xff, 0xfe, 0x00, 0x80, 0x1b, b'\n']);
            subject.send(b"{\"jsonrpc\":\"2.0\",\"id\n\n".to_vec());
            match suite.sign_of_life(subject) {
                Ok(()) => Ok("lines that are no message are passed over".to_owned()),
                Err(seen) => Err(("it to live on after lines that are no message".to_owned(), seen)),
            }
        });
    }

    /// Tells the steps that cannot be done for want of a handshake, and what came on stdout instead of one.
    pub(super) fn give_up(&mut self, steps: &[&str]) {
        for step in steps {
            self.report.skip(step, "there was no handshake");
        }
        self.tell_strays();
    }

    /// How it ends: told to, by the end of its stdin, and by TERM; each its own run, all at the same time. Then what it
    /// wrote on stdout.
    pub(super) fn endings(&mut self) {
        let is_mcp = self.is_mcp();
        let mut first = self.subject.take();
        if first.as_mut().is_some_and(|subject| !subject.is_alive()) {
            first = None;
        }
        let runs: Vec<(Ending, Result<Subject, String>)> = Ending::ALL
            .into_iter()
            .filter(|ending| !(is_mcp && *ending == Ending::Shutdown))
            .map(|ending| match (ending, first.take()) {
                // MCP has no such word: there the present run sees the end of its stdin.
                (Ending::Shutdown, Some(subject)) => (ending, Ok(subject)),
                (Ending::EndOfStdin, Some(subject)) if is_mcp => (ending, Ok(subject)),
                _ => (ending, self.start().map(|(subject, _)| subject)),
            })
            .collect();
        let grace = self.plugin.stop_grace_ms.millis().clamp(END_MIN, END_MAX);
        let mut told = Vec::new();
        for (ending, run) in runs {
            let subject = run.map(|mut subject| {
                ending.begin(&mut subject);
                subject
            });
            told.push((ending, Instant::now(), subject));
        }
        let deadline = self.within(grace);
        for (ending, began, run) in told {
            let mut subject = match run {
                Ok(subject) => subject,
                Err(seen) => {
                    self.report.skip(ending.name(), &format!("it could not be started again: {seen}"));
                    continue;
                }
            };
            let end = subject.end(deadline);
            match end {
                Some(status) if ending.is_satisfied(status) => {
                    let took = began.elapsed().as_millis();
                    self.report.ok(ending.name(), &format!("it ended {} after {took} ms", how(status)));
                }
                Some(status) => {
                    self.report.fail(ending.name(), ending.expected(), &format!("it ended {}", how(status)))
                }
                None => {
                    let seen = format!("it lives on after {} ms", grace.as_millis());
                    self.report.fail(ending.name(), ending.expected(), &seen);
                }
            }
            self.bury(subject);
        }
        self.tell_strays();
    }

    fn tell_strays(&mut self) {
        match self.strays.count {
            0 => self.report.ok("stdout", "nothing but messages"),
            count => {
                let seen = format!("{count} of another kind, first {}", self.strays.first);
                self.report.fail("stdout", "nothing but messages, each request answered once", &seen);
            }
        }
    }
}

/// How it is brought to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Shutdown,
    EndOfStdin,
    Term,
}

impl Ending {
    const ALL: [Ending; 3] = [Ending::Shutdown, Ending::EndOfStdin, Ending::Term];

    const fn name(self) -> &'static str {
        match self {
            Ending::Shutdown => "shutdown",
            Ending::EndOfStdin => "end of stdin",
            Ending::Term => "TERM",
        }
    }

    const fn expected(self) -> &'static str {
        match self {
            Ending::Shutdown => "`shutdown` to end it with exit code 0 within stop_grace_ms",
            Ending::EndOfStdin => "the end of its stdin to end it within stop_grace_ms",
            Ending::Term => "TERM to end it within stop_grace_ms",
        }
    }

    fn begin(self, subject: &mut Subject) {
        match self {
            Ending::Shutdown => {
                // As Demi does it: the word first, and then the end of stdin.
                let mut line = Vec::new();
                codec::write_shutdown(&mut line);
                subject.send(line);
                subject.close_input();
            }
            Ending::EndOfStdin => subject.close_input(),
            Ending::Term => subject.terminate(),
        }
    }

    fn is_satisfied(self, status: ExitStatus) -> bool {
        self != Ending::Shutdown || status.success()
    }
}

/// What was seen, in words.
pub(super) fn tell(seen: &Seen) -> String {
    match seen {
        Seen::Answer(Answer::Result(result)) => format!("the answer {result}"),
        Seen::Answer(Answer::Error { code, message }) => format!("error {code}: {message}"),
        Seen::Silence(waited) => format!("no answer within {:.1} s", waited.as_secs_f64()),
        Seen::End(status) => format!("it ended {}", how(*status)),
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("with exit code {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "in an unknown way".to_owned(),
    }
}
