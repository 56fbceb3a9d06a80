//! Demi's hands: one thread, one mio `Poll`; owns every file descriptor, every worker and the only clock.
//!
//! A turn: wait until the conductor's deadline or until something is ready; read the clock once; let each ready source
//! yield what happened, up to a budget; have the conductor decide and perform what it says; write what has gathered.
//! Nothing registers, removes or calls back into another source while it is iterated, and no `?` leaves the loop: a
//! failed effect is an event.
//!
//! | part | where |
//! |---|---|
//! | what the conductor orders, and what people do | `shell.rs` |
//! | clients | `listener.rs`, `http.rs`, `origin.rs`, `problem.rs` |
//! | platforms | `workers.rs`, `children.rs`, `upstream.rs`, `forward.rs`, `upload.rs`, `sticky.rs` |
//! | plugin folders | `plugins.rs` |
//! | what platforms depend on | `reach.rs` |
//! | what children find around themselves | `spawn.rs`, `sandbox.rs`, `cgroup.rs` |
//! | what children use and leave behind | `warden.rs`, `remover.rs`, `weigh.rs`, `procfs.rs`, `guard.rs` |
//! | what happened to platforms, what went wrong, and what they logged | `chronicle.rs`, `mishaps.rs` |
//! | errands that block | `clerk.rs`, `store.rs` |
//! | what is recorded, by day | `traces.rs` |
//! | what the machine tells of its memory | `sampler.rs`, `gauge.rs` |
//! | what people are shown | `api.rs`, `metrics.rs` |
//! | other threads | `mailbox.rs`, `handle.rs` |

pub mod config_file;
pub mod gauge;
pub mod plugins;
pub mod traces;

mod api;
mod calls;
mod cgroup;
mod children;
mod chronicle;
mod clerk;
mod forward;
mod guard;
mod handle;
mod http;
mod kit;
mod listener;
mod mailbox;
mod metrics;
mod mishaps;
mod origin;
mod port;
mod problem;
mod procfs;
mod reach;
mod remover;
mod sampler;
mod sandbox;
mod shell;
mod spawn;
mod start;
mod sticky;
mod store;
mod tokens;
mod upload;
mod upstream;
mod warden;
mod weigh;
mod workers;

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use demi_conductor::{Action, Conductor, Event, Time};
use mio::{Events, Poll};

pub use cgroup::delegation;
pub use guard::keep_guard;
pub use handle::{Answered, Handle, HandleError, PlatformOrder};
pub use start::{Options, StartError};

use shell::Shell;
use tokens::Source;

/// The longest wait for something to happen; a bound, so that a lost wake-up could never last.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// Between two looks at what has taken too long on connections.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A turn that comes so long after the conductor's deadline was kept from coming.
const VERY_LATE: Duration = Duration::from_millis(100);
/// A turn that takes longer is counted and told: something that runs on this thread blocks.
const TURN_BUDGET: Duration = Duration::from_millis(50);
/// Readiness taken from the kernel at once.
const EVENTS_PER_TURN: usize = 256;

/// The reactor. Lives on one thread: the one that calls [`Reactor::run`] or [`Reactor::turn`], which must also be the
/// one that made it if platforms run as processes (the kernel ties their parent-death signal to that thread).
pub struct Reactor {
    poll: Poll,
    events: Events,
    /// The present turn came very late: the next one hears what came meanwhile, and only then it is as late as it is.
    hears_again: bool,
    conductor: Conductor,
    actions: Vec<Action>,
    shell: Shell,
    started: Instant,
    next_sweep: Time,
    has_begun: bool,
    /// For whoever wonders what made a turn slow.
    last_event: Option<Event>,
}

impl Reactor {
    /// Runs until an order to stop has been carried out; returns the exit code. Blocks.
    ///
    /// # Errors
    /// If the poll itself fails, which no input can cause.
    pub fn run(mut self) -> io::Result<u8> {
        loop {
            if let Some(code) = self.turn(None)? {
                return Ok(code);
            }
        }
    }

    /// One turn, for programs with a loop of their own: waits for at most `wait` (`None`: as long as there is nothing
    /// to do) and returns the exit code once an order to stop has been carried out.
    ///
    /// The reactor is itself pollable ([`AsRawFd`]): when its descriptor is readable, or after
    /// [`Reactor::wait`], call this with `Some(Duration::ZERO)`.
    ///
    /// # Errors
    /// If the poll itself fails, which no input can cause.
    pub fn turn(&mut self, wait: Option<Duration>) -> io::Result<Option<u8>> {
        if !self.has_begun {
            self.has_begun = true;
            self.shell.kit.events.push_back(Event::Began);
            self.set_clock(self.time(), Duration::ZERO);
            self.settle();
        }
        let longest = self.wait();
        let wait = wait.map_or(longest, |wait| wait.min(longest));
        match self.poll.poll(&mut self.events, Some(wait)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            Err(error) => return Err(error),
        }
        let now = self.time();
        if let Some((at, _)) = self.conductor.deadline().filter(|(at, _)| *at <= now) {
            self.shell.turns.lag.record(now - at);
        }
        // Demi, or the machine, may have been stopped since the poll: what came meanwhile is heard before anything is too late.
        let is_late = self.conductor.deadline().is_some_and(|(at, _)| at + VERY_LATE <= now);
        self.hears_again = is_late && !self.hears_again;
        self.hear_answers(now);
        if !self.hears_again {
            self.set_clock(now, Duration::ZERO);
            if self.conductor.deadline().is_some_and(|(at, _)| at <= now) {
                self.shell.kit.events.push_back(Event::Elapsed);
                self.settle();
            }
        }
        self.hear_questions();
        if self.shell.now >= self.next_sweep {
            self.next_sweep = self.shell.now + SWEEP_INTERVAL;
            self.shell.sweep();
            self.settle();
        }
        self.shell.look_around(&self.conductor);
        self.settle();
        self.shell.flush();
        self.settle();
        let took = self.time().since(now);
        self.shell.turns.duration.record(took);
        if took > TURN_BUDGET {
            self.shell.turns.slow += 1;
            log::debug!("a turn of the reactor took {took:?}; the last event in it was {:?}", self.last_event);
        }
        Ok(self.shell.exit)
    }

    /// How long [`Reactor::turn`] may wait at most before there is something to do without any news.
    pub fn wait(&self) -> Duration {
        if self.shell.has_more() {
            return Duration::ZERO;
        }
        let now = self.time();
        let deadline = self.conductor.deadline().map(|(at, _)| at);
        let sweep = self.shell.needs_sweep().then_some(self.next_sweep);
        let until = [deadline, sweep, Some(self.shell.looks_at())].into_iter().flatten().min();
        until.map_or(WAIT_MAX, |at| at.since(now)).min(WAIT_MAX)
    }

    /// A line to this reactor for other threads.
    pub fn handle(&self) -> Handle {
        self.shell.handle()
    }

    /// The address that it listens on, with the port that it got.
    pub fn address(&self) -> std::net::SocketAddr {
        self.shell.listener.address()
    }

    /// Requests that are buffered go on, each connection once, so that none starves the others.
    fn go_on_with_clients(&mut self) {
        for _ in 0..self.shell.listener.listed() {
            self.shell.go_on_next();
            self.settle();
        }
    }

    /// Lets the conductor hear what happened, and performs what it says, until nothing is left to do at once.
    fn settle(&mut self) {
        loop {
            self.shell.move_streams();
            if let Some(event) = self.shell.kit.events.pop_front() {
                let event = self.shell.counted_from_now(event);
                self.last_event = Some(event);
                self.conductor.handle(self.shell.now, event, &mut self.actions);
                for action in self.actions.drain(..) {
                    self.shell.perform(action, &self.conductor);
                }
            } else if let Some((platform, memory)) = self.shell.next_found() {
                self.conductor.add(&platform);
                self.shell.taken_in(platform, memory);
            } else if !self.shell.take_plugin_ask(&self.conductor) && !self.shell.take_arrival(&self.conductor) {
                return;
            }
        }
    }

    fn time(&self) -> Time {
        Time::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn set_clock(&mut self, now: Time, lag: Duration) {
        self.shell.set_now(now, lag);
    }

    /// Answers are heard first, and as if just before the next deadline: one that is there has beaten it, however late
    /// this turn comes. And who is free, and who is silent, must be known before a request is placed.
    fn hear_answers(&mut self, now: Time) {
        let deadline = self.conductor.deadline().map(|(at, _)| at.just_before());
        let heard_at = deadline.map_or(now, |deadline| deadline.min(now));
        self.set_clock(heard_at, now - heard_at);
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in events.iter().filter(|event| !Source::asks(event.token())) {
            self.shell.ready(event, &self.conductor);
            self.settle();
        }
        self.events = events;
        self.shell.read_rest(&self.conductor);
        self.settle();
    }

    fn hear_questions(&mut self) {
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in events.iter().filter(|event| Source::asks(event.token())) {
            self.shell.ready(event, &self.conductor);
            self.settle();
        }
        self.events = events;
        self.go_on_with_clients();
    }
}

impl AsRawFd for Reactor {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.poll.as_raw_fd()
    }
}
