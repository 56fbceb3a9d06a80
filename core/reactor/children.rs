//! Child processes: each is one instance, spoken to in lines of JSON-RPC over its stdin and stdout.
//!
//! ```text
//!   spawn ──► initialize ──answer──► Started ──► handle, health … ──pidfd readable──► reaped ──► Exited
//! ```
//!
//! A child leads a session and process group of its own; what it leaves behind in that group is killed before it is
//! reaped, while its number cannot yet belong to anybody else. stderr, and every line on stdout that is no message, is
//! a log line of the platform.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use demi_conductor::{Event, Exit, Instance, Outcome, Signal, Ticket, Time, Verdict};
use demi_platform::{codec, Fault, FaultKind, Settings};
use mio::unix::pipe::{Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{kill_process_group, pidfd_open, Pid, PidfdFlags};
use slab::Slab;

use crate::calls::{Call, Calls, Link};
use crate::kit::{outcome_of_status, Kit, Outgoing};
use crate::sandbox;
use crate::tokens::Source;
use crate::workers;

/// What the configuration says of a platform's children.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) program: std::path::PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) settings: Settings,
}

/// Longest log line that is kept; the rest of it is dropped.
const LOG_LINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of log lines that are kept of one child in a second, each line with `LOG_LINE_COST` on top; the rest is
/// counted and dropped. Writing the log is work for the reactor's thread, and a child must not keep it busy.
const LOG_BYTES_PER_SECOND: usize = 64 * 1024;
const LOG_LINE_COST: usize = 64;
/// Reads from one child's pipe in one turn: a pipe is filled again as fast as it is read, and then others wait.
const READS_PER_TURN: usize = 2;
/// A child that leaves so much unread on its stdin is full; or one line of the longest, if that is more.
const UNREAD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// All children together are given this long to be gone once they are killed, when Demi ends.
const REAP_MAX: Duration = Duration::from_secs(1);

/// What an id that was sent to a child stands for.
enum Pending {
    Initialize,
    Handle(Ticket),
    Probe,
}

/// Why a child is put down, and how its end is told.
type Offence = (Exit, &'static str);

/// One running child.
struct Child {
    instance: Instance,
    name: String,
    process: std::process::Child,
    pid: Pid,
    end: OwnedFd,
    input: Option<Sender>,
    output: Receiver,
    errors: Receiver,
    outgoing: Outgoing,
    /// The beginning of a line on stdout whose end has not come yet.
    line: Vec<u8>,
    error_line: Vec<u8>,
    diary: Diary,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    /// How its end is to be told, if it was put down for what it did.
    condemned: Option<Exit>,
}

/// How much a child has logged in the present second.
#[derive(Default)]
struct Diary {
    since: Time,
    bytes: usize,
    dropped: u64,
}

/// How much may be on the way to or from a child.
#[derive(Clone, Copy)]
struct Bounds {
    /// Longest line, in either direction.
    line_bytes_max: usize,
    unread_bytes_max: usize,
}

/// All running children, by place, and where each slot's child is.
pub(crate) struct Children {
    bounds: Bounds,
    children: Slab<Child>,
    places: BTreeMap<u32, usize>,
    /// Places that have more to read than one turn allows.
    unread: Vec<usize>,
}

impl Children {
    /// None yet. A body has at most `body_bytes_max` bytes.
    pub(crate) fn new(body_bytes_max: u64) -> Children {
        let line_bytes_max = codec::line_bytes_max(usize::try_from(body_bytes_max).unwrap_or(usize::MAX / 4));
        let bounds = Bounds { line_bytes_max, unread_bytes_max: UNREAD_BYTES_MAX.max(line_bytes_max) };
        Children { bounds, children: Slab::new(), places: BTreeMap::new(), unread: Vec::new() }
    }

    /// Starts a child and sends it `initialize`. `Started` or `Exited` follows.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub(crate) fn start(&mut self, instance: Instance, name: &str, recipe: &Recipe, kit: &mut Kit) -> io::Result<()> {
        let mut command = Command::new(&recipe.program);
        command.args(&recipe.arguments).env_clear().envs(&recipe.environment);
        if let Some(path) = std::env::var_os("PATH").filter(|_| !recipe.environment.contains_key("PATH")) {
            command.env("PATH", path);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sandbox::isolate(&mut command);
        let mut process = command.spawn()?;
        match Child::new(instance, name, &mut process) {
            Ok(wired) => {
                let mut child = wired(process);
                let id = child.id_for(Pending::Initialize);
                codec::write_initialize(&mut child.outgoing.bytes, id, name, &recipe.settings);
                let place = self.children.insert(child);
                if let Err(error) = self.children[place].register(place, &kit.registry) {
                    self.children.remove(place).give_up(&kit.registry);
                    return Err(error);
                }
                self.places.insert(instance.slot, place);
                self.write(place, kit);
                Ok(())
            }
            Err(error) => {
                // Without its pidfd or pipes it cannot be kept.
                let _ = process.kill();
                let _ = process.wait();
                Err(error)
            }
        }
    }

    /// Sends a request. The answer is an event; if the child cannot take it, the event says so at once.
    pub(crate) fn handle(&mut self, ticket: Ticket, instance: Instance, kit: &mut Kit) {
        let place = self.place_of(instance);
        let outcome = match place.map(|place| &mut self.children[place]) {
            None => Some(Outcome::Unsent),
            Some(child) if child.input.is_none() => Some(Outcome::Unsent),
            Some(child) if child.outgoing.len() > self.bounds.unread_bytes_max => Some(Outcome::Busy),
            Some(child) => match kit.calls.get(ticket) {
                Some(call) => child.ask(ticket, call, self.bounds.line_bytes_max),
                None => None,
            },
        };
        match (outcome, place) {
            (Some(outcome), _) => kit.events.push_back(Event::Answered { ticket, instance, outcome }),
            (None, Some(place)) => self.write(place, kit),
            (None, None) => {}
        }
    }

    /// Tells the child that nobody waits for this any more.
    pub(crate) fn cancel(&mut self, id: u64, instance: Instance, kit: &mut Kit) {
        let Some(place) = self.place_of(instance) else { return };
        let child = &mut self.children[place];
        if child.pending.remove(&id).is_some() && child.outgoing.len() <= self.bounds.unread_bytes_max {
            codec::write_cancel(&mut child.outgoing.bytes, id);
            self.write(place, kit);
        }
    }

    /// Asks the child how it is.
    pub(crate) fn probe(&mut self, instance: Instance, kit: &mut Kit) {
        let Some(place) = self.place_of(instance) else { return };
        let child = &mut self.children[place];
        if child.input.is_some() && child.outgoing.len() <= self.bounds.unread_bytes_max {
            child.pending.retain(|_, pending| !matches!(pending, Pending::Probe));
            let id = child.id_for(Pending::Probe);
            codec::write_health(&mut child.outgoing.bytes, id);
            self.write(place, kit);
        } else {
            kit.events.push_back(Event::Probed { instance, verdict: Verdict::Fail });
        }
    }

    /// Asks the child to end, or ends its whole process group.
    pub(crate) fn signal(&mut self, instance: Instance, signal: Signal, kit: &mut Kit) {
        let Some(place) = self.place_of(instance) else { return };
        let system_signal = match signal {
            Signal::Shutdown => {
                codec::write_shutdown(&mut self.children[place].outgoing.bytes);
                self.write(place, kit);
                // If its pipe was full, the end of its input tells it the same.
                return self.children[place].close_input(&kit.registry);
            }
            Signal::Terminate => rustix::process::Signal::TERM,
            Signal::Kill => rustix::process::Signal::KILL,
        };
        // The child is not reaped yet, so its number is its own; no such group means that it has just ended.
        let _ = kill_process_group(self.children[place].pid, system_signal);
    }

    /// The process number of an instance's child.
    pub(crate) fn pid(&self, slot: u32) -> Option<u32> {
        self.places.get(&slot).map(|place| self.children[*place].process.id())
    }

    fn place_of(&self, instance: Instance) -> Option<usize> {
        self.places.get(&instance.slot).copied().filter(|place| self.children[*place].instance == instance)
    }

    /// stdin can take more.
    pub(crate) fn write(&mut self, place: usize, kit: &mut Kit) {
        let Some(child) = self.children.get_mut(place) else { return };
        let Some(input) = &mut child.input else { return };
        match child.outgoing.write_to(input) {
            Ok(_) => {}
            // It has ended, which its pidfd will tell, or it has closed its stdin: then its health checks fail.
            Err(_) => child.close_input(&kit.registry),
        }
    }

    /// stdout has something.
    pub(crate) fn read(&mut self, place: usize, now: Time, kit: &mut Kit) {
        for _ in 0..READS_PER_TURN {
            let Some(child) = self.children.get_mut(place) else { return };
            match child.output.read(&mut kit.scratch) {
                Ok(0) => return,
                Ok(count) => {
                    if let Err((exit, why)) = child.take_output(count, self.bounds.line_bytes_max, now, kit) {
                        return self.condemn(place, kit, exit, why);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
        self.note_unread(place);
    }

    /// stderr has something.
    pub(crate) fn read_errors(&mut self, place: usize, now: Time, kit: &mut Kit) {
        for _ in 0..READS_PER_TURN {
            let Some(child) = self.children.get_mut(place) else { return };
            match child.errors.read(&mut kit.scratch) {
                Ok(0) => return,
                Ok(count) => child.take_errors(&kit.scratch[..count], now),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
        self.note_unread(place);
    }

    /// Once, however many of its pipes have more: each entry leads to a read of all of them.
    fn note_unread(&mut self, place: usize) {
        if !self.unread.contains(&place) {
            self.unread.push(place);
        }
    }

    /// Whether some child has more to read than the last turn allowed.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Goes on reading where the last turn left off.
    pub(crate) fn read_rest(&mut self, now: Time, kit: &mut Kit) {
        for place in std::mem::take(&mut self.unread) {
            self.read(place, now, kit);
            self.read_errors(place, now, kit);
        }
    }

    /// It broke the protocol: it is put down, and its end will be told when it has come.
    fn condemn(&mut self, place: usize, kit: &mut Kit, exit: Exit, why: &str) {
        let Some(child) = self.children.get_mut(place).filter(|child| child.condemned.is_none()) else { return };
        log::warn!("{}: {why}; it is killed", child.name);
        child.condemned = Some(exit);
        child.close_input(&kit.registry);
        let _ = kill_process_group(child.pid, rustix::process::Signal::KILL);
    }

    /// The child has ended: what it still said is heard, what it left behind is killed, and it is reaped.
    pub(crate) fn end(&mut self, place: usize, now: Time, kit: &mut Kit) {
        self.read(place, now, kit);
        self.read_errors(place, now, kit);
        let Some(child) = self.children.get_mut(place) else { return };
        let _ = kill_process_group(child.pid, rustix::process::Signal::KILL);
        let status = match child.process.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) => return,
            Err(error) => {
                log::error!("{}: could not be reaped: {error}", child.name);
                std::process::ExitStatus::default()
            }
        };
        let mut child = self.children.remove(place);
        self.unread.retain(|other| *other != place);
        if self.places.get(&child.instance.slot) == Some(&place) {
            self.places.remove(&child.instance.slot);
        }
        child.deregister(&kit.registry);
        if !child.error_line.is_empty() {
            let line = std::mem::take(&mut child.error_line);
            child.log_line(&line, now);
        }
        child.tell_dropped();
        let exit = match (child.condemned, status.code(), status.signal()) {
            (Some(exit), _, _) => exit,
            (None, Some(code), _) => Exit::Code(code),
            (None, None, Some(signal)) => Exit::Signal(signal),
            (None, None, None) => Exit::Code(0),
        };
        log::debug!("{}: process {} ended: {status}", child.name, child.process.id());
        kit.events.push_back(Event::Exited { instance: child.instance, exit });
    }

    /// Kills and reaps every child that is left. For the end of the reactor, orderly or not.
    ///
    /// One that the kernel does not let go of (it waits for a disk, say) is left behind.
    pub(crate) fn kill_all(&mut self) {
        for (_, child) in &mut self.children {
            let _ = kill_process_group(child.pid, rustix::process::Signal::KILL);
        }
        let deadline = Instant::now() + REAP_MAX;
        for mut child in self.children.drain() {
            if !ends_before(&child.end, deadline) || !matches!(child.process.try_wait(), Ok(Some(_))) {
                log::error!("{}: process {} was killed and does not end; it is left behind", child.name, child.pid);
            }
        }
        self.places.clear();
    }
}

impl Child {
    /// Takes the pipes out of a process that was just started; the rest is done by what is returned, which takes the
    /// process and cannot fail.
    fn new(
        instance: Instance,
        name: &str,
        process: &mut std::process::Child,
    ) -> io::Result<impl FnOnce(std::process::Child) -> Child> {
        let pid = Pid::from_child(process);
        let end = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        let missing = || io::Error::other("a pipe is missing");
        let input = Sender::from(process.stdin.take().ok_or_else(missing)?);
        let output = Receiver::from(process.stdout.take().ok_or_else(missing)?);
        let errors = Receiver::from(process.stderr.take().ok_or_else(missing)?);
        input.set_nonblocking(true)?;
        output.set_nonblocking(true)?;
        errors.set_nonblocking(true)?;
        let name = name.to_owned();
        Ok(move |process| Child {
            instance,
            name,
            process,
            pid,
            end,
            input: Some(input),
            output,
            errors,
            outgoing: Outgoing::default(),
            line: Vec::new(),
            error_line: Vec::new(),
            diary: Diary::default(),
            pending: BTreeMap::new(),
            next_id: 1,
            condemned: None,
        })
    }

    fn register(&mut self, place: usize, registry: &Registry) -> io::Result<()> {
        if let Some(input) = &mut self.input {
            registry.register(input, Source::ChildInput(place).into(), Interest::WRITABLE)?;
        }
        registry.register(&mut self.output, Source::ChildOutput(place).into(), Interest::READABLE)?;
        registry.register(&mut self.errors, Source::ChildErrors(place).into(), Interest::READABLE)?;
        registry.register(&mut SourceFd(&self.end.as_raw_fd()), Source::ChildEnd(place).into(), Interest::READABLE)
    }

    /// A grandchild may hold the other ends open, so closing alone would not take them off the poll.
    fn deregister(&mut self, registry: &Registry) {
        self.close_input(registry);
        let _ = registry.deregister(&mut self.output);
        let _ = registry.deregister(&mut self.errors);
        let _ = registry.deregister(&mut SourceFd(&self.end.as_raw_fd()));
    }

    /// It could not be wired to the poll, so it cannot be kept.
    fn give_up(mut self, registry: &Registry) {
        self.deregister(registry);
        let _ = kill_process_group(self.pid, rustix::process::Signal::KILL);
        let _ = self.process.wait();
    }

    fn close_input(&mut self, registry: &Registry) {
        if let Some(mut input) = self.input.take() {
            let _ = registry.deregister(&mut input);
        }
        self.outgoing.clear();
    }

    fn id_for(&mut self, pending: Pending) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, pending);
        id
    }

    /// Writes a request for it. If that cannot be sent as a line, nothing is written, and the outcome says so.
    fn ask(&mut self, ticket: Ticket, call: &mut Call, line_bytes_max: usize) -> Option<Outcome> {
        let before = self.outgoing.bytes.len();
        codec::write_handle(&mut self.outgoing.bytes, self.next_id, &call.request.request());
        if self.outgoing.bytes.len() - before > line_bytes_max {
            self.outgoing.bytes.truncate(before);
            let why = format!("the request is too long for a process: {line_bytes_max} bytes on the wire at most");
            call.fault = Some(Fault::mistaken(why));
            return Some(Outcome::Mistaken);
        }
        call.link = Link::Child(self.id_for(Pending::Handle(ticket)));
        None
    }

    /// Takes what was read from stdout: whole lines are messages, the beginning of one is kept.
    fn take_output(&mut self, count: usize, line_bytes_max: usize, now: Time, kit: &mut Kit) -> Result<(), Offence> {
        let mut start = 0;
        while let Some(length) = kit.scratch[start..count].iter().position(|byte| *byte == b'\n') {
            let end = start + length;
            if self.line.is_empty() {
                self.take_line(&kit.scratch[start..end], now, &mut kit.calls, &mut kit.events)?;
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&kit.scratch[start..end]);
                self.take_line(&line, now, &mut kit.calls, &mut kit.events)?;
                line.clear();
                if line.capacity() <= kit.scratch.len() {
                    self.line = line;
                }
            }
            start = end + 1;
        }
        if self.line.len() + count - start > line_bytes_max {
            return Err((Exit::Misbehaved, "sent a line that is longer than any answer may be"));
        }
        self.line.extend_from_slice(&kit.scratch[start..count]);
        Ok(())
    }

    fn take_line(
        &mut self,
        line: &[u8],
        now: Time,
        calls: &mut Calls,
        events: &mut std::collections::VecDeque<Event>,
    ) -> Result<(), Offence> {
        let Some(message) = codec::read_message(line) else {
            if !line.is_empty() {
                self.log_line(line, now);
            }
            return Ok(());
        };
        if let Some(method) = message.method {
            log::debug!("{}: called {method:?}, which this host does not offer", self.name);
            return Ok(());
        }
        let instance = self.instance;
        let Some(pending) = message.id.and_then(|id| self.pending.remove(&id)) else {
            log::debug!("{}: answered what nobody asked, or what was cancelled", self.name);
            return Ok(());
        };
        match pending {
            Pending::Initialize => {
                let answer = match (message.result, message.error) {
                    (Some(result), None) => codec::read_initialized(result),
                    (_, Some(error)) => Err(error.message),
                    (None, None) => Err("an answer with neither result nor error".to_owned()),
                };
                match answer {
                    Ok(hello) if hello.protocol == codec::PROTOCOL => events.push_back(Event::Started { instance }),
                    Ok(_) => return Err((Exit::NotInitialised, "speaks another version of the protocol")),
                    Err(why) => {
                        log::error!("{}: could not be initialised: {why}", self.name);
                        return Err((Exit::NotInitialised, "refused its initialisation"));
                    }
                }
            }
            Pending::Handle(ticket) => {
                let mut stray = (demi_platform::Reply::default(), None);
                let call = calls.get(ticket).filter(|call| call.instance == Some(instance));
                let (reply, fault) = match call {
                    Some(call) => (&mut call.reply, &mut call.fault),
                    None => (&mut stray.0, &mut stray.1),
                };
                let read = match (message.result, message.error) {
                    (Some(result), None) => {
                        codec::read_reply(result, reply).map_err(|why| (Outcome::Broken, Fault::failed(why)))
                    }
                    (_, Some(error)) => {
                        let fault = Fault::from(error);
                        Err((outcome_of_fault(fault.kind), fault))
                    }
                    (None, None) => Err((Outcome::Broken, Fault::failed("an answer with neither result nor error"))),
                };
                let outcome = match read {
                    Ok(()) => outcome_of_status(reply.status),
                    Err((outcome, why)) => {
                        *fault = Some(why);
                        outcome
                    }
                };
                events.push_back(Event::Answered { ticket, instance, outcome });
            }
            Pending::Probe => {
                let health = message.result.ok_or_else(|| "no result".to_owned()).and_then(codec::read_health);
                let verdict = health.map_or(Verdict::Fail, |health| workers::verdict(&health, &self.name));
                events.push_back(Event::Probed { instance, verdict });
            }
        }
        Ok(())
    }

    fn take_errors(&mut self, bytes: &[u8], now: Time) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LOG_LINE_BYTES_MAX.saturating_sub(self.error_line.len());
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            self.error_line.extend_from_slice(&text[..text.len().min(room)]);
            if part.ends_with(b"\n") {
                let mut line = std::mem::take(&mut self.error_line);
                self.log_line(&line, now);
                line.clear();
                self.error_line = line;
            }
        }
    }

    fn log_line(&mut self, line: &[u8], now: Time) {
        if now - self.diary.since >= Duration::from_secs(1) {
            self.tell_dropped();
            self.diary = Diary { since: now, ..Diary::default() };
        }
        let line = &line[..line.len().min(LOG_LINE_BYTES_MAX)];
        let cost = line.len() + LOG_LINE_COST;
        if self.diary.bytes + cost > LOG_BYTES_PER_SECOND {
            self.diary.dropped += 1;
            return;
        }
        self.diary.bytes += cost;
        log::info!(target: "plugin", "{}: {}", self.name, printable(line));
    }

    fn tell_dropped(&mut self) {
        let dropped = std::mem::take(&mut self.diary.dropped);
        if dropped > 0 {
            log::warn!(
                "{}: {dropped} more lines were dropped; {LOG_BYTES_PER_SECOND} bytes a second are kept of what it logs",
                self.name
            );
        }
    }
}

/// Waits until a process has ended, or until the deadline. Whether it has.
fn ends_before(process: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else { return false };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// A line for a log that a terminal may show: no control bytes.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim_end().chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

/// What a fault shows of whoever reported it.
pub(crate) fn outcome_of_fault(kind: FaultKind) -> Outcome {
    match kind {
        FaultKind::Mistaken => Outcome::Mistaken,
        FaultKind::Failed => Outcome::Failed,
        FaultKind::Busy => Outcome::Busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_waited_for_but_not_for_ever() {
        let mut process = Command::new("sleep").arg("1000").spawn().expect("there is sleep");
        let pid = Pid::from_child(&process);
        let end = pidfd_open(pid, PidfdFlags::NONBLOCK).expect("it is there");
        assert!(!ends_before(&end, Instant::now() + Duration::from_millis(10)), "it lives");
        process.kill().expect("it is ours");
        assert!(ends_before(&end, Instant::now() + Duration::from_secs(30)));
        assert!(matches!(process.try_wait(), Ok(Some(_))), "and can be reaped at once");
    }
}
