//! Child processes: each is one instance, spoken to in lines of JSON-RPC over its stdin and stdout.
//!
//! ```text
//!   spawn ──► initialize ──answer──► Started ──► handle, health … ──pidfd readable──► reaped ──► Exited
//! ```
//!
//! Here are processes, pipes and log lines; what is said is the business of a [`Wire`].
//!
//! A child leads a session and process group of its own; what it leaves behind in that group is killed before it is
//! reaped, while its number cannot yet belong to anybody else. stderr, and every line on stdout that is no message, is
//! a log line of the platform.

mod demi_wire;
mod diary;
mod mcp;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use demi_conductor::{Event, Exit, Instance, Outcome, Signal, Ticket, Time, Verdict};
use demi_platform::{codec, Fault, FaultKind, Reply};
use mio::unix::pipe::{Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{kill_process_group, pidfd_open, Pid, PidfdFlags};
use serde_json::value::RawValue;
use slab::Slab;

use self::demi_wire::DemiWire;
use self::diary::{Diary, Pipe};
use self::mcp::McpWire;
use self::wire::{printable, Heard, Wire, LOG_LINE_BYTES_MAX, UNREAD_BYTES_MAX};
use crate::calls::Link;
use crate::chronicle::LogLine;
use crate::kit::{Kit, Outgoing, PluginAsk, SCRATCH_BYTES};
use crate::spawn::{spawn, Protocol, Recipe, Yard};
use crate::tokens::Source;
use crate::warden::Unweighed;
use crate::weigh::Tree;

/// One side of a conversation in a protocol.
fn wire_of(recipe: &Recipe, line_bytes_max: usize) -> Box<dyn Wire> {
    match recipe.protocol {
        Protocol::Demi => Box::new(DemiWire::new(line_bytes_max, recipe.permissions)),
        Protocol::Mcp => Box::new(McpWire::new(line_bytes_max)),
    }
}

/// Reads from one child's pipe in one turn: a pipe is filled again as fast as it is read, and then others wait.
const READS_PER_TURN: usize = 2;

/// All children together are given this long to be gone once they are killed, when Demi ends.
const REAP_MAX: Duration = Duration::from_secs(1);

/// Why a child is put down, and how its end is told.
type Offence = (Exit, String);

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
    /// It has closed its stdout, so nothing that it is asked can be answered.
    is_mute: bool,
    diary: Diary,
    wire: Box<dyn Wire>,
    /// How its end is to be told, if it was put down for what it did.
    condemned: Option<Exit>,
    /// It was told to end at once, so that KILL says nothing about why.
    is_killed: bool,
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
    /// What was heard of one line; here so that its memory is used again.
    heard: Vec<Heard>,
    /// Places that have written so much for the log that they are left alone until the second is over.
    full: Vec<usize>,
    /// Places whose end was told before they could be reaped: it is not told again.
    unreaped: Vec<usize>,
    yard: Yard,
}

impl Children {
    /// None yet. A body has at most `body_bytes_max` bytes.
    pub(crate) fn new(body_bytes_max: u64, yard: Yard) -> Children {
        let line_bytes_max = codec::line_bytes_max(usize::try_from(body_bytes_max).unwrap_or(usize::MAX / 4));
        let bounds = Bounds { line_bytes_max, unread_bytes_max: UNREAD_BYTES_MAX.max(line_bytes_max) };
        Children {
            bounds,
            children: Slab::new(),
            places: BTreeMap::new(),
            unread: Vec::new(),
            heard: Vec::new(),
            full: Vec::new(),
            unreaped: Vec::new(),
            yard,
        }
    }

    /// Starts a child and sends it `initialize`. `Started` or `Exited` follows.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub(crate) fn start(&mut self, instance: Instance, name: &str, recipe: &Recipe, kit: &mut Kit) -> io::Result<()> {
        let mut process = spawn(recipe, name, instance.run, &self.yard)?;
        match Child::new(instance, name, wire_of(recipe, self.bounds.line_bytes_max), recipe, &mut process) {
            Ok(wired) => {
                let mut child = wired(process);
                child.wire.greet(name, &recipe.settings, &mut child.outgoing.bytes);
                let place = self.children.insert(child);
                if let Err(error) = self.children[place].register(place, &kit.registry) {
                    self.yard.reap(self.children.remove(place).give_up(&kit.registry));
                    self.yard.ended(name, instance.run);
                    return Err(error);
                }
                self.places.insert(instance.slot, place);
                self.write(place, kit);
                Ok(())
            }
            Err(error) => {
                // Without its pidfd or pipes it cannot be kept.
                let _ = process.kill();
                self.yard.reap(process);
                self.yard.ended(name, instance.run);
                Err(error)
            }
        }
    }

    /// Sends a request. The answer is an event; if the child cannot take it, the event says so at once.
    pub(crate) fn handle(&mut self, ticket: Ticket, instance: Instance, kit: &mut Kit) {
        if let Some(outcome) = self.send(ticket, instance, kit) {
            kit.events.push_back(Event::Answered { ticket, instance, outcome });
        }
    }

    /// What became of a request that could not be sent.
    fn send(&mut self, ticket: Ticket, instance: Instance, kit: &mut Kit) -> Option<Outcome> {
        let Some(place) = self.place_of(instance) else { return Some(Outcome::Unsent) };
        let child = &mut self.children[place];
        if !child.can_talk() {
            return Some(Outcome::Unsent);
        }
        if child.outgoing.len() > self.bounds.unread_bytes_max {
            return Some(Outcome::Busy);
        }
        let (request, attempt) = kit.calls.task(ticket, instance)?;
        let id = match child.wire.ask(ticket, &request.request(), &mut child.outgoing.bytes) {
            Ok(id) => id,
            Err(fault) => {
                let outcome = outcome_of_fault(fault.kind);
                attempt.fault = Some(fault);
                return Some(outcome);
            }
        };
        attempt.link = Link::Child(id);
        self.write(place, kit);
        let child = &mut self.children[place];
        if child.input.is_some() {
            return None;
        }
        // Its stdin turned out to be closed, so the end of this line was not written: it does not know of the request.
        child.wire.cancel(id, &mut child.outgoing.bytes);
        child.outgoing.clear();
        Some(Outcome::Unsent)
    }

    /// Tells the child that nobody waits for this any more.
    pub(crate) fn cancel(&mut self, id: u64, instance: Instance, kit: &mut Kit) {
        let Some(place) = self.place_of(instance) else { return };
        let child = &mut self.children[place];
        let before = child.outgoing.bytes.len();
        child.wire.cancel(id, &mut child.outgoing.bytes);
        if child.outgoing.len() > self.bounds.unread_bytes_max {
            // One that does not read need not be told; its answer is passed over all the same.
            child.outgoing.bytes.truncate(before);
        }
        self.write(place, kit);
    }

    /// Asks the child how it is.
    pub(crate) fn probe(&mut self, instance: Instance, kit: &mut Kit) {
        let Some(place) = self.place_of(instance) else { return };
        let child = &mut self.children[place];
        let can_hear = child.can_talk() && child.outgoing.len() <= self.bounds.unread_bytes_max;
        if can_hear {
            child.wire.probe(&mut child.outgoing.bytes);
            self.write(place, kit);
        }
        // Writing may have shown that its stdin is closed.
        if !can_hear || self.children[place].input.is_none() {
            kit.events.push_back(Event::Probed { instance, verdict: Verdict::Fail });
        }
    }

    /// Has the child initialise itself again. Its answer is an event; if it cannot be asked, the event says so at once.
    pub(crate) fn reinitialize(&mut self, instance: Instance, kit: &mut Kit) {
        let Some(place) = self.place_of(instance) else { return };
        let child = &mut self.children[place];
        let can_hear = child.can_talk() && child.outgoing.len() <= self.bounds.unread_bytes_max;
        let is_asked = can_hear && child.wire.greet_again(&mut child.outgoing.bytes);
        self.write(place, kit);
        if !is_asked || self.children[place].input.is_none() {
            kit.events.push_back(Event::Reinitialized { instance, done: false });
        }
    }

    /// Asks the child to give memory back, if it understands that.
    pub(crate) fn trim(&mut self, instance: Instance, kit: &mut Kit) {
        let Some(place) = self.place_of(instance) else { return };
        let child = &mut self.children[place];
        if child.outgoing.len() > self.bounds.unread_bytes_max || !child.wire.trim(&mut child.outgoing.bytes) {
            log::debug!("{}: cannot be asked to give memory back", child.name);
        }
        self.write(place, kit);
    }

    /// Tells the child what became of its [`PluginAsk::Route`], if this run of it still lives.
    pub(crate) fn answer_route(
        &mut self,
        instance: Instance,
        id: &RawValue,
        answer: Result<&Reply, &Fault>,
        kit: &mut Kit,
    ) {
        let Some(place) = self.place_of(instance) else { return };
        let child = &mut self.children[place];
        let is_full = child.outgoing.len() > self.bounds.unread_bytes_max;
        let unread = Fault::busy("so much of what it was sent is unread that the answer was dropped");
        let answer = if is_full { Err(&unread) } else { answer };
        child.wire.answer_route(id, answer, &mut child.outgoing.bytes);
        self.write(place, kit);
    }

    /// Tells the child what became of its errand to the store, if this run of it still lives.
    pub(crate) fn answer_store(
        &mut self,
        instance: Instance,
        id: &RawValue,
        answer: Result<Option<&RawValue>, &Fault>,
        kit: &mut Kit,
    ) {
        let Some(place) = self.place_of(instance) else { return };
        let child = &mut self.children[place];
        child.wire.answer_store(id, answer, &mut child.outgoing.bytes);
        self.write(place, kit);
    }

    /// Asks the child to end, or ends its whole process group.
    pub(crate) fn signal(&mut self, instance: Instance, signal: Signal, kit: &mut Kit) {
        let Some(place) = self.place_of(instance) else { return };
        self.children[place].is_killed |= signal == Signal::Kill;
        let system_signal = match signal {
            Signal::Shutdown => {
                let child = &mut self.children[place];
                child.wire.shut_down(&mut child.outgoing.bytes);
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

    /// Has the trees of all children weighed; `Letter::Weighed` follows.
    ///
    /// # Errors
    /// If the last weighing is not over, or there will be none any more.
    pub(crate) fn weigh(&self) -> Result<(), Unweighed> {
        let tree =
            |child: &Child| Tree { instance: child.instance, title: child.name.clone(), pid: child.process.id() };
        self.yard.weigh(self.children.iter().map(|(_, child)| tree(child)).collect())
    }

    fn place_of(&self, instance: Instance) -> Option<usize> {
        self.places.get(&instance.slot).copied().filter(|place| self.children[*place].instance == instance)
    }

    /// stdin can take more.
    pub(crate) fn write(&mut self, place: usize, kit: &mut Kit) {
        let Some(child) = self.children.get_mut(place) else { return };
        let Some(input) = &mut child.input else { return child.outgoing.clear() };
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
            if child.is_full(Pipe::Output, now, &mut kit.log_lines) {
                return self.note_full(place);
            }
            match child.output.read(&mut kit.scratch) {
                Ok(0) => {
                    child.is_mute = true;
                    return;
                }
                Ok(count) => {
                    let taken = child.take_output(count, self.bounds, &mut self.heard, now, kit);
                    if let Err((exit, why)) = taken {
                        self.heard.clear();
                        return self.condemn(place, kit, exit, &why);
                    }
                    // What it said may have had an answer at once.
                    if !child.outgoing.is_empty() {
                        self.write(place, kit);
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
            if child.is_full(Pipe::Errors, now, &mut kit.log_lines) {
                return self.note_full(place);
            }
            match child.errors.read(&mut kit.scratch) {
                Ok(0) => return,
                Ok(count) => child.take_errors(count, now, kit),
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

    /// Its pipe is left to fill up, which holds the child up and nobody else.
    fn note_full(&mut self, place: usize) {
        if !self.full.contains(&place) {
            self.full.push(place);
        }
    }

    /// Whether some child is left alone until a second is over.
    pub(crate) fn needs_sweep(&self) -> bool {
        !self.full.is_empty() || !self.unreaped.is_empty()
    }

    /// Once a second: those that were left alone are read again, and those that could not be reaped are tried again.
    pub(crate) fn sweep(&mut self, now: Time, kit: &mut Kit) {
        for place in std::mem::take(&mut self.unreaped) {
            self.end(place, now, kit);
        }
        for place in std::mem::take(&mut self.full) {
            self.note_unread(place);
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
        let text = format!("{why}; it is killed");
        kit.log_lines.push_back(LogLine { instance: child.instance, level: log::Level::Warn, text, dropped: 0 });
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
            Ok(None) => {
                if !self.unreaped.contains(&place) {
                    self.unreaped.push(place);
                }
                return;
            }
            Err(error) => {
                log::error!("{}: could not be reaped: {error}", child.name);
                std::process::ExitStatus::default()
            }
        };
        let mut child = self.children.remove(place);
        self.unread.retain(|other| *other != place);
        self.full.retain(|other| *other != place);
        self.unreaped.retain(|other| *other != place);
        if self.places.get(&child.instance.slot) == Some(&place) {
            self.places.remove(&child.instance.slot);
        }
        child.deregister(&kit.registry);
        for line in [std::mem::take(&mut child.line), std::mem::take(&mut child.error_line)] {
            if !line.is_empty() {
                child.log_line(&line, now, &mut kit.log_lines);
            }
        }
        let dropped = child.diary.take_dropped();
        child.tell_dropped(dropped, &mut kit.log_lines);
        kit.plugin_asks.push_back((child.instance, PluginAsk::Ended));
        let toll = self.yard.ended(&child.name, child.instance.run);
        if toll.forks_refused > 0 {
            let text = format!(
                "the kernel refused it {} times a process or thread: it had too many for limits.processes_max",
                toll.forks_refused
            );
            let line = LogLine { instance: child.instance, level: log::Level::Warn, text, dropped: 0 };
            kit.log_lines.push_back(line);
        }
        let is_kill = status.signal() == Some(rustix::process::Signal::KILL.as_raw()) && !child.is_killed;
        let exit = match (child.condemned, status.code(), status.signal()) {
            (Some(exit), _, _) => exit,
            (None, Some(code), _) => Exit::Code(code),
            // The kernel may also have taken one of its processes only; then it had an end of its own.
            (None, None, Some(_)) if toll.oom_kills > 0 && is_kill => {
                let what = match toll.is_over_memory {
                    true => "it reached limits.memory_max_mb",
                    false => "the machine, or the control group that Demi is in, had none left",
                };
                log::error!("{}: the kernel ended it for want of memory: {what}", child.name);
                Exit::OutOfMemory
            }
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
        self.yard.close();
    }
}

impl Child {
    /// Takes the pipes out of a process that was just started; the rest is done by what is returned, which takes the
    /// process and cannot fail.
    fn new(
        instance: Instance,
        name: &str,
        wire: Box<dyn Wire>,
        recipe: &Recipe,
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
        let diary = Diary::new(recipe.limits.log_bytes_per_second_max.size());
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
            is_mute: false,
            diary,
            wire,
            condemned: None,
            is_killed: false,
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

    /// It could not be wired to the poll, so it cannot be kept: it is killed, and left to be reaped.
    fn give_up(mut self, registry: &Registry) -> std::process::Child {
        self.deregister(registry);
        let _ = kill_process_group(self.pid, rustix::process::Signal::KILL);
        self.process
    }

    fn close_input(&mut self, registry: &Registry) {
        if let Some(mut input) = self.input.take() {
            let _ = registry.deregister(&mut input);
        }
        self.outgoing.clear();
    }

    /// Whether it can be asked something and answer.
    fn can_talk(&self) -> bool {
        self.input.is_some() && !self.is_mute
    }

    /// Takes what was read from stdout: whole lines are messages, the beginning of one is kept.
    fn take_output(
        &mut self,
        count: usize,
        bounds: Bounds,
        heard: &mut Vec<Heard>,
        now: Time,
        kit: &mut Kit,
    ) -> Result<(), Offence> {
        // The scratch is lent out while the rest of the kit is used.
        let scratch = std::mem::take(&mut kit.scratch);
        let taken = self.take_lines(&scratch[..count], bounds, heard, now, kit);
        kit.scratch = scratch;
        taken
    }

    fn take_lines(
        &mut self,
        mut bytes: &[u8],
        bounds: Bounds,
        heard: &mut Vec<Heard>,
        now: Time,
        kit: &mut Kit,
    ) -> Result<(), Offence> {
        while let Some(length) = bytes.iter().position(|byte| *byte == b'\n') {
            if self.line.is_empty() {
                self.take_line(&bytes[..length], bounds, heard, now, kit)?;
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&bytes[..length]);
                self.take_line(&line, bounds, heard, now, kit)?;
                line.clear();
                if line.capacity() <= SCRATCH_BYTES {
                    self.line = line;
                }
            }
            bytes = &bytes[length + 1..];
        }
        if self.line.len() + bytes.len() > bounds.line_bytes_max {
            return Err((Exit::Misbehaved, "sent a line that is longer than any answer may be".to_owned()));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn take_line(
        &mut self,
        line: &[u8],
        bounds: Bounds,
        heard: &mut Vec<Heard>,
        now: Time,
        kit: &mut Kit,
    ) -> Result<(), Offence> {
        // Most lines of one that prints without end are no messages, and cost as little as can be.
        if !line.trim_ascii_start().starts_with(b"{") && !line.starts_with(b"[") {
            self.diary.has_read(Pipe::Output, line.len() + 1);
            if !line.is_empty() {
                self.log_line(line, now, &mut kit.log_lines);
            }
            return Ok(());
        }
        self.wire.take_line(line, self.instance, &mut kit.calls, heard, &mut self.outgoing.bytes);
        for heard in heard.drain(..) {
            self.hear(heard, now, kit)?;
        }
        if self.outgoing.len() > 2 * bounds.unread_bytes_max {
            return Err((Exit::Misbehaved, "asks again and again and reads no answer".to_owned()));
        }
        Ok(())
    }

    fn hear(&mut self, heard: Heard, now: Time, kit: &mut Kit) -> Result<(), Offence> {
        let instance = self.instance;
        match heard {
            Heard::Started => kit.events.push_back(Event::Started { instance }),
            Heard::Refused(why) => {
                let why = printable(why.as_bytes(), LOG_LINE_BYTES_MAX);
                self.log(log::Level::Error, format!("could not be initialised: {why}"), now, &mut kit.log_lines);
                return Err((Exit::NotInitialised, "could not be initialised".to_owned()));
            }
            Heard::Reinitialized(done) => {
                if let Err(why) = &done {
                    let why = printable(why.as_bytes(), LOG_LINE_BYTES_MAX);
                    let text = format!("could not be initialised again: {why}");
                    self.log(log::Level::Error, text, now, &mut kit.log_lines);
                }
                kit.events.push_back(Event::Reinitialized { instance, done: done.is_ok() });
            }
            Heard::Answered { ticket, outcome } => kit.ended(ticket, instance, outcome),
            Heard::Probed(verdict, why) => {
                if let Some(why) = why {
                    let why = printable(why.as_bytes(), LOG_LINE_BYTES_MAX);
                    match verdict {
                        Verdict::Unready => log::debug!("{}: wants no requests now: {why}", self.name),
                        _ => log::warn!("{}: health check failed: {why}", self.name),
                    }
                    kit.complaints.push_back((instance, why));
                }
                kit.events.push_back(Event::Probed { instance, verdict });
            }
            Heard::Logged { level, text } => {
                self.diary.has_read(Pipe::Output, text.len());
                self.log(level, text, now, &mut kit.log_lines);
            }
            Heard::Extend(by) => kit.events.push_back(Event::Extended { instance, by }),
            Heard::Report(report) => kit.events.push_back(Event::Reported { instance, report }),
            Heard::Route { id, to, request } => {
                kit.plugin_asks.push_back((instance, PluginAsk::Route { id, to, request }));
            }
            Heard::StoreGet { id, key } => kit.plugin_asks.push_back((instance, PluginAsk::StoreGet { id, key })),
            Heard::StorePut { id, key, value } => {
                kit.plugin_asks.push_back((instance, PluginAsk::StorePut { id, key, value }));
            }
            Heard::Progress { ticket, note } => {
                kit.plugin_asks.push_back((instance, PluginAsk::Progress { ticket, note }));
            }
            Heard::Tools(tools) => kit.plugin_asks.push_back((instance, PluginAsk::Tools(tools))),
        }
        Ok(())
    }

    /// Whether a pipe is to be left alone for the rest of the second.
    fn is_full(&mut self, pipe: Pipe, now: Time, lines: &mut VecDeque<LogLine>) -> bool {
        let dropped = self.diary.turn_over(now);
        self.tell_dropped(dropped, lines);
        self.diary.is_full(pipe)
    }

    fn take_errors(&mut self, count: usize, now: Time, kit: &mut Kit) {
        self.diary.has_read(Pipe::Errors, count);
        for part in kit.scratch[..count].split_inclusive(|byte| *byte == b'\n') {
            let room = LOG_LINE_BYTES_MAX.saturating_sub(self.error_line.len());
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            self.error_line.extend_from_slice(&text[..text.len().min(room)]);
            if part.ends_with(b"\n") {
                let mut line = std::mem::take(&mut self.error_line);
                self.log_line(&line, now, &mut kit.log_lines);
                line.clear();
                self.error_line = line;
            }
        }
    }

    /// Keeps a line that is no message.
    fn log_line(&mut self, line: &[u8], now: Time, lines: &mut VecDeque<LogLine>) {
        self.keep(
            log::Level::Info,
            line.len().min(LOG_LINE_BYTES_MAX),
            || printable(line, LOG_LINE_BYTES_MAX),
            now,
            lines,
        );
    }

    fn log(&mut self, level: log::Level, text: String, now: Time, lines: &mut VecDeque<LogLine>) {
        self.keep(level, text.len(), || text, now, lines);
    }

    fn keep(
        &mut self,
        level: log::Level,
        bytes: usize,
        text: impl FnOnce() -> String,
        now: Time,
        lines: &mut VecDeque<LogLine>,
    ) {
        let dropped = self.diary.turn_over(now);
        self.tell_dropped(dropped, lines);
        if self.diary.takes(bytes) {
            lines.push_back(LogLine { instance: self.instance, level, text: text(), dropped: 0 });
        }
    }

    fn tell_dropped(&self, dropped: Option<u64>, lines: &mut VecDeque<LogLine>) {
        if let Some(dropped) = dropped {
            let text = format!(
                "{dropped} more lines were dropped; {} bytes a second are kept of what it logs \
                 (limits.log_bytes_per_second_max)",
                self.diary.bytes_max()
            );
            lines.push_back(LogLine { instance: self.instance, level: log::Level::Warn, text, dropped });
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
    use std::path::Path;
    use std::process::Stdio;

    use super::*;
    use crate::spawn::Plan;

    /// A child that is no leader of a group, so that only its own death ends it.
    fn wired(recipe: &Recipe) -> Child {
        let mut command = std::process::Command::new(&recipe.program);
        command.args(&recipe.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = crate::sandbox::spawn(&mut command).expect("there is sleep");
        let instance = Instance { slot: 0, run: 1 };
        let child = Child::new(instance, "p/0", wire_of(recipe, 1024), recipe, &mut process).expect("it has pipes");
        child(process)
    }

    #[test]
    fn an_end_that_is_told_too_early_is_not_forgotten() {
        let poll = mio::Poll::new().expect("there is a poll");
        let mut kit = Kit::new(poll.registry().try_clone().expect("it can be cloned"));
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("it can be woken");
        let (postbox, _mailbox) = crate::mailbox::mailbox(waker);
        let yard = Yard::new(Path::new("nowhere"), Plan::default(), postbox).expect("there is a working directory");
        let mut children = Children::new(1024, yard);
        let recipe = Recipe {
            program: "sleep".into(),
            arguments: vec!["1000".to_owned()],
            environment: BTreeMap::new(),
            directory: None,
            settings: demi_platform::Settings::default(),
            limits: demi_conductor::config::Limits::default(),
            protocol: Protocol::Demi,
            permissions: demi_conductor::config::Permissions::default(),
        };
        let place = children.children.insert(wired(&recipe));
        children.end(place, Time::ZERO, &mut kit);
        assert!(children.needs_sweep() && kit.events.is_empty(), "it lives");
        children.children[place].process.kill().expect("it is ours");
        let deadline = Instant::now() + Duration::from_secs(30);
        while children.needs_sweep() {
            assert!(Instant::now() < deadline, "its end is never told");
            children.sweep(Time::ZERO, &mut kit);
        }
        assert!(matches!(kit.events.pop_front(), Some(Event::Exited { exit: Exit::Signal(9), .. })));
        assert!(children.children.is_empty());
    }

    #[test]
    fn an_end_is_waited_for_but_not_for_ever() {
        let mut process =
            crate::sandbox::spawn(std::process::Command::new("sleep").arg("1000")).expect("there is sleep");
        let pid = Pid::from_child(&process);
        let end = pidfd_open(pid, PidfdFlags::NONBLOCK).expect("it is there");
        assert!(!ends_before(&end, Instant::now() + Duration::from_millis(10)), "it lives");
        process.kill().expect("it is ours");
        assert!(ends_before(&end, Instant::now() + Duration::from_secs(30)));
        assert!(matches!(process.try_wait(), Ok(Some(_))), "and can be reaped at once");
    }
}
