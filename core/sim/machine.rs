//! The instances of a world: processes, threads and services that do what they are told, more or less.
//!
//! A model takes the place of everything beyond the conductor: the reactor, the kernel and the platform. It knows
//! what really happened; the conductor is told only what a reactor would have noticed, and when.

use demi_conductor::config::{Config, Host};
use demi_conductor::{Exit, Instance, Outcome, Report, Ticket};

/// What a run is doing in truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There is none, or it has ended and Demi knows.
    Absent,
    /// Its handshake is not answered yet.
    Starting,
    /// It works.
    Ready,
    /// It was asked to end, and may or may not.
    Terminating,
    /// It has ended and Demi does not know yet.
    Dying,
}

/// A request that an instance holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) ticket: Ticket,
    /// Tells one attempt from another of the same request.
    pub(crate) serial: u64,
    pub(crate) is_stuck: bool,
    pub(crate) is_endless: bool,
    pub(crate) is_headed: bool,
}

/// What a run uses of RAM at its start, and with all that it leaks, bytes.
pub(crate) const WEIGHT: u64 = 10_000_000;
pub(crate) const WEIGHT_LEAKED_MAX: u64 = 48_000_000;

/// One slot.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) platform: usize,
    pub(crate) host: Host,
    pub(crate) in_flight_max: usize,
    pub(crate) run: u32,
    pub(crate) state: State,
    pub(crate) hand: Vec<Work>,
    pub(crate) is_frozen: bool,
    /// Answers that a frozen run will give when it goes on.
    pub(crate) held: Vec<(u64, Outcome)>,
    pub(crate) is_rotten: bool,
    /// What it was started from cannot run.
    pub(crate) is_bad_edition: bool,
    /// What its process tree uses of RAM, bytes.
    pub(crate) weight: u64,
    /// What it has said of how it wants to be balanced.
    pub(crate) report: Report,
}

impl Model {
    pub(crate) fn all(config: &Config) -> Vec<Model> {
        let mut models = Vec::new();
        for (index, platform) in config.platforms.iter().enumerate() {
            let model = Model {
                platform: index,
                host: platform.host,
                in_flight_max: platform.in_flight_max() as usize,
                run: 0,
                state: State::Absent,
                hand: Vec::new(),
                is_frozen: false,
                held: Vec::new(),
                is_rotten: false,
                is_bad_edition: false,
                weight: 0,
                report: Report::default(),
            };
            models.extend((0..platform.slots()).map(|_| model.clone()));
        }
        models
    }

    /// The next run begins.
    pub(crate) fn start(&mut self, run: u32) {
        self.run = run;
        self.state = State::Starting;
        self.is_frozen = false;
        self.is_rotten = false;
        self.is_bad_edition = false;
        self.weight = WEIGHT;
        self.report = Report::default();
        self.hand.clear();
        self.held.clear();
    }

    /// Whether this very run exists in truth.
    pub(crate) fn lives(&self, instance: Instance) -> bool {
        self.run == instance.run && !matches!(self.state, State::Absent | State::Dying)
    }

    pub(crate) fn is_thread(&self) -> bool {
        matches!(self.host, Host::Threads(_))
    }

    /// Whether ending it and starting another is a cure, so that it can crash, freeze for good and ignore TERM.
    pub(crate) fn can_be_replaced(&self) -> bool {
        self.host.can_be_replaced()
    }

    /// Whether it can stop answering: what runs on the reactor's own thread would stop Demi itself.
    pub(crate) fn can_freeze(&self) -> bool {
        self.host != Host::Inline
    }

    /// Whether it may say things out of turn: a thread and an inline adapter answer once, by construction.
    pub(crate) fn can_babble(&self) -> bool {
        self.host.is_child() || self.host == Host::Http
    }

    /// Whether it can say how it wants to be balanced.
    pub(crate) fn can_report(&self) -> bool {
        matches!(self.host, Host::Process(_) | Host::Http)
    }

    /// Whether it does all that it should.
    pub(crate) fn is_sound(&self) -> bool {
        self.state == State::Ready && !self.is_frozen && !self.has_stuck_hand() && !self.report.drain
    }

    /// Whether a thread of it will never let go. A process or service that loses one answer still gives others.
    pub(crate) fn has_stuck_hand(&self) -> bool {
        self.is_thread() && self.hand.iter().any(|work| work.is_stuck)
    }

    /// Takes an attempt out of its hands.
    pub(crate) fn take(&mut self, serial: u64) -> Option<Work> {
        let index = self.hand.iter().position(|work| work.serial == serial)?;
        Some(self.hand.swap_remove(index))
    }

    /// How its run ends when it is killed.
    pub(crate) fn exit_by_kill(&self) -> Exit {
        match self.host {
            Host::Threads(_) => Exit::Abandoned,
            Host::Inline | Host::Process(_) | Host::Mcp(_) | Host::Http => Exit::Signal(9),
        }
    }
}
