//! The life of one instance, and when it is started again.
//!
//! ```text
//!                Want           Start             Started           Drain
//!   Asleep   ─┬───────► Waiting ───────► Starting ────────► Ready ─────────► Draining
//!   Stopped  ─┤            ▲              ▲  │  │             │                 │ Drained, Sick, Kill
//!   Failed   ─┤            │ Want     Due │  │  │ TooLate,    │ Sick, Kill,     ▼
//!   Shed     ─┤            │              │  │  │             │                 ▼
//!   Spare    ─┘            └─────── Backoff  │  └─ Sick, End ─┴─ End ──────► Stopping ──Exited──► as it was ended for:
//!                                     ▲ ▲    │                │                 │        Asleep, Stopped, Shed, Spare, Waiting
//!                                     │ └────┴─── Exited ─────┘                 │
//!                                     └───────────── Exited, to be started again┘
//!
//!   Exited with 78 (bad configuration), unless it was to rest or make room, or Refuse ──► Failed
//! ```

use std::time::Duration;

use serde::Serialize;

use crate::config;
use crate::event::Exit;
use crate::random::Random;
use crate::time::Time;

/// What an instance's process, thread or connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Not running; its next request starts it.
    Asleep,
    /// To be started as soon as the platforms that it needs are ready.
    Waiting,
    /// Started; its handshake is not answered yet.
    Starting,
    /// Takes requests, as far as health and breaker let it.
    Ready,
    /// Takes no more requests, and is told to end when those it has have ended.
    Draining {
        /// What it becomes.
        then: Then,
    },
    /// Told to end.
    Stopping {
        /// What it becomes.
        then: Then,
    },
    /// Ended; to be started at this time.
    Backoff {
        /// When.
        until: Time,
    },
    /// Ended in order, or never started; until a person starts it.
    Stopped,
    /// Ended, and starting it again would be useless until something changes.
    Failed,
    /// Ended because RAM ran short; until there is enough for it, or a person starts it.
    Shed,
    /// A slot that is not in use: the next edition of its platform starts here.
    Spare,
}

/// What an instance that is ended becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Then {
    /// Started again, after a wait if it did not last.
    Again,
    /// Started again as soon as what it needs is ready.
    Wait,
    /// Started by its next request.
    Sleep,
    /// Nothing, until a person starts it.
    Rest,
    /// Nothing, until there is RAM for it.
    Shed,
    /// A slot that is free for the next edition.
    Spare,
}

impl State {
    /// The name in status; one of [`crate::INSTANCE_STATES`].
    pub const fn name(self) -> &'static str {
        match self {
            State::Asleep => "asleep",
            State::Waiting => "waiting",
            State::Starting => "starting",
            State::Ready => "ready",
            State::Draining { .. } => "draining",
            State::Stopping { .. } => "stopping",
            State::Backoff { .. } => "backoff",
            State::Stopped => "stopped",
            State::Failed => "failed",
            State::Shed => "shed",
            State::Spare => "spare",
        }
    }

    /// Whether a run exists in it: started, and not known to have ended.
    pub const fn is_alive(self) -> bool {
        matches!(self, State::Starting | State::Ready | State::Draining { .. } | State::Stopping { .. })
    }
}

/// What happened to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Somebody wants it to run.
    Want(Reason),
    /// It is wanted, and what it needs is ready.
    Start,
    /// It is wanted, and may not be started.
    Refuse(Reason),
    /// Its handshake was answered.
    Started,
    /// It took too long to start.
    TooLate,
    /// Its health or a stuck request says that it must be replaced.
    Sick(Reason),
    /// It took more than it may and must go at once.
    Kill(Reason),
    /// It shall end once its requests have ended.
    Drain(Then, Reason),
    /// They have, or their time is up.
    Drained,
    /// It shall end.
    End(Then, Reason),
    /// It is no more.
    Exited(Exit),
    /// The wait before the next start is over.
    Due,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    None,
    /// See whether it may start.
    Await,
    /// Start its next run.
    Spawn,
    /// It is ready.
    Welcome,
    /// Give it no more requests, and tell when it has none left.
    Drain,
    /// Ask it to end, and put it down if it does not.
    Terminate,
    /// Put it down.
    Kill,
    /// Start it again after this long.
    Again(Duration),
    /// It is not running and nothing is to be done.
    Rest,
}

/// Why an instance is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A platform that it needs is not ready.
    NeedsOthers,
    /// Demi began.
    Began,
    /// It is lazy and nobody has asked for it yet.
    NotAskedYet,
    /// It is started by hand only.
    Manual,
    /// The slot has not been needed yet.
    Unused,
    /// Its folder was found while Demi runs, or is back.
    Found,
    /// Its folder is not there any more.
    Gone,
    /// A request asked for it.
    Asked,
    /// Another platform needs it.
    Needed,
    /// A person said so.
    ByHand,
    /// The wait after its last end was over.
    BackoffOver,
    /// Another day has begun, and with it another budget of starts.
    DayBegan,
    /// Its handshake was answered.
    HandshakeAnswered,
    /// It took too long to start.
    StartTimeout,
    /// Its health checks failed.
    HealthFailed,
    /// A worker did not let go of a request.
    Wedged,
    /// Its breaker opened, and `breaker.recovery` says that it is to be replaced then.
    BreakerOpened,
    /// It could not be initialised again when its breaker opened.
    NotReinitialized,
    /// Something that it depends on, by the index in `reachability`, cannot be reached.
    Unreachable {
        /// Index in `reachability`.
        target: u32,
    },
    /// Its process tree used more memory than it may. Bytes.
    MemoryLimit {
        /// What it used.
        used: u64,
        /// What it may.
        max: u64,
    },
    /// Its process tree had more processes than it may.
    ProcessLimit {
        /// How many.
        used: u32,
        /// How many it may.
        max: u32,
    },
    /// It has nearly as many descriptors open as it may.
    DescriptorLimit {
        /// How many.
        used: u32,
        /// How many it may.
        max: u32,
    },
    /// It has been started as often today as it may.
    BudgetSpent {
        /// How often it may.
        budget: u32,
    },
    /// Nobody has asked for it for a while.
    Idle,
    /// RAM was at `scaler.shed_percent` or above.
    RamShort {
        /// What was used of it, thousandths.
        ram_permille: u32,
        /// The threshold.
        at_percent: u32,
    },
    /// RAM was forecast to be.
    RamForecast {
        /// What would be used of it, thousandths.
        ram_permille: u32,
        /// The threshold.
        at_percent: u32,
    },
    /// What the platforms weigh together grew fast. Bytes.
    RamSpike {
        /// Before.
        from: u64,
        /// Now.
        to: u64,
    },
    /// RAM was at `scaler.emergency_percent` or above.
    RamEmergency {
        /// What was used of it, thousandths.
        ram_permille: u32,
        /// The threshold.
        at_percent: u32,
    },
    /// With what it is known to weigh at most it does not fit below `scaler.shed_percent`.
    NoRoom {
        /// Bytes that are missing.
        missing: u64,
    },
    /// It was shed, and there is RAM for it again.
    Restored,
    /// What it needs was stopped.
    NeedStopped,
    /// What it needs was restarted.
    NeedRestarts,
    /// It is of a new edition, which has to prove itself.
    NewEdition,
    /// A new edition took its place.
    Replaced,
    /// Its reload was broken off.
    SwapBrokenOff,
    /// It ended.
    Exited(Exit),
    /// Demi ends.
    Shutdown,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        match *self {
            Reason::NeedsOthers => write!(formatter, "a platform that it needs is not ready"),
            Reason::Began => write!(formatter, "Demi began"),
            Reason::NotAskedYet => write!(formatter, "nobody has asked for it yet"),
            Reason::Manual => write!(formatter, "it is started by hand only"),
            Reason::Unused => write!(formatter, "it has not been needed yet"),
            Reason::Found => write!(formatter, "its folder was found"),
            Reason::Gone => write!(formatter, "its folder is gone"),
            Reason::Asked => write!(formatter, "a request asked for it"),
            Reason::Needed => write!(formatter, "another platform needs it"),
            Reason::ByHand => write!(formatter, "it was ordered by hand"),
            Reason::BackoffOver => write!(formatter, "the wait after its last end is over"),
            Reason::DayBegan => write!(formatter, "another day has begun"),
            Reason::HandshakeAnswered => write!(formatter, "it has started"),
            Reason::StartTimeout => write!(formatter, "it took longer than start_timeout_ms to start"),
            Reason::HealthFailed => write!(formatter, "its health checks failed"),
            Reason::Wedged => write!(formatter, "a worker did not let go of a request"),
            Reason::BreakerOpened => write!(formatter, "its breaker opened, and breaker.recovery has it replaced then"),
            Reason::NotReinitialized => write!(formatter, "it could not be initialised again when its breaker opened"),
            Reason::Unreachable { .. } => write!(formatter, "what it lies behind cannot be reached"),
            Reason::MemoryLimit { used, max } => write!(
                formatter,
                "it used {:.0} MB of memory, and limits.memory_max_mb is {:.0}",
                megabytes(used),
                megabytes(max)
            ),
            Reason::ProcessLimit { used, max } => {
                write!(formatter, "it had {used} processes, and limits.processes_max is {max}")
            }
            Reason::DescriptorLimit { used, max } => {
                write!(formatter, "it had {used} descriptors open, and limits.descriptors_max is {max}")
            }
            Reason::BudgetSpent { budget } => {
                write!(formatter, "it has been started too often today: start_budget_per_day is {budget}")
            }
            Reason::Idle => write!(formatter, "nobody asked for it for sleep_after_ms"),
            Reason::RamShort { ram_permille, at_percent } => {
                let percent = f64::from(ram_permille) / 10.0;
                write!(formatter, "RAM was at {percent:.1} %, and scaler.shed_percent is {at_percent}")
            }
            Reason::RamForecast { ram_permille, at_percent } => {
                let percent = f64::from(ram_permille) / 10.0;
                write!(formatter, "RAM was forecast to reach {percent:.1} %, and scaler.shed_percent is {at_percent}")
            }
            Reason::RamSpike { from, to } => {
                let [from, to] = [from, to].map(megabytes);
                write!(
                    formatter,
                    "what the platforms use of RAM grew from {from:.0} MB to {to:.0} within scaler.spike_ms"
                )
            }
            Reason::RamEmergency { ram_permille, at_percent } => {
                let percent = f64::from(ram_permille) / 10.0;
                write!(formatter, "RAM was at {percent:.1} %, and scaler.emergency_percent is {at_percent}")
            }
            Reason::NoRoom { missing } => {
                let missing = missing.div_ceil(crate::MEGABYTE);
                write!(formatter, "it was not started, for {missing} MB are missing below scaler.shed_percent")
            }
            Reason::Restored => write!(formatter, "there is RAM for it again"),
            Reason::NeedStopped => write!(formatter, "a platform that it needs was stopped"),
            Reason::NeedRestarts => write!(formatter, "a platform that it needs was restarted"),
            Reason::NewEdition => write!(formatter, "a new edition has to prove itself"),
            Reason::Replaced => write!(formatter, "a new edition took its place"),
            Reason::SwapBrokenOff => write!(formatter, "its reload was broken off"),
            Reason::Exited(Exit::Code(78)) => {
                write!(formatter, "it exited with code 78, which says that its configuration is bad")
            }
            Reason::Exited(Exit::Code(code)) => write!(formatter, "it exited with code {code}"),
            Reason::Exited(Exit::Signal(signal)) => write!(formatter, "signal {signal} ended it"),
            Reason::Exited(Exit::NotStarted) => write!(formatter, "it could not be started"),
            Reason::Exited(Exit::NotInitialised) => write!(formatter, "its initialisation failed"),
            Reason::Exited(Exit::OutOfMemory) => write!(
                formatter,
                "the kernel ended it for want of memory: it reached limits.memory_max_mb, or the machine had none left"
            ),
            Reason::Exited(Exit::Misbehaved) => write!(formatter, "it broke the protocol"),
            Reason::Exited(Exit::Abandoned) => write!(formatter, "its thread was left behind"),
            Reason::Shutdown => write!(formatter, "Demi is ending"),
        }
    }
}

/// The life of one slot over all its runs.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    state: State,
    since: Time,
    reason: Reason,
    ready_since: Option<Time>,
    /// Why its last run ended.
    ended: Option<Reason>,
    /// Starts in a row that did not last.
    restarts: u32,
}

/// The exit code that says "bad configuration" (`EX_CONFIG` of sysexits.h).
const BAD_CONFIG: Exit = Exit::Code(78);

impl Lifecycle {
    /// A slot that has never run.
    pub fn new(state: State, reason: Reason) -> Lifecycle {
        Lifecycle { state, since: Time::ZERO, reason, ready_since: None, ended: None, restarts: 0 }
    }

    /// Takes what happened and says what to do.
    pub fn take(&mut self, now: Time, input: Input, settings: &config::Restart, random: &mut Random) -> Step {
        use State::{Asleep, Backoff, Draining, Failed, Ready, Shed, Spare, Starting, Stopped, Stopping, Waiting};
        match (self.state, input) {
            (Asleep | Stopped | Failed | Shed | Spare | Backoff { .. }, Input::Want(reason)) => {
                self.wanted(now, reason);
                Step::Await
            }
            // A person knows better than to wait for what it lies behind.
            (Waiting, Input::Want(Reason::ByHand)) if matches!(self.reason, Reason::Unreachable { .. }) => {
                self.wanted(now, Reason::ByHand);
                Step::Await
            }
            // It may go on when it has ended. What makes room for a new edition is wanted there.
            (Draining { then: Then::Sleep | Then::Rest | Then::Shed }, Input::Want(reason)) => {
                self.to(now, Draining { then: Then::Wait }, reason, Step::None)
            }
            (Stopping { then: Then::Sleep | Then::Rest | Then::Shed }, Input::Want(reason)) => {
                self.to(now, Stopping { then: Then::Wait }, reason, Step::None)
            }
            (
                Waiting
                | Starting
                | Ready
                | Draining { then: Then::Again | Then::Wait | Then::Spare }
                | Stopping { then: Then::Again | Then::Wait | Then::Spare },
                Input::Want(_),
            ) => Step::None,

            (Waiting, Input::Start) => {
                let reason = if self.reason == Reason::NeedsOthers { Reason::Began } else { self.reason };
                self.to(now, Starting, reason, Step::Spawn)
            }
            (Backoff { .. }, Input::Due) => self.to(now, Starting, Reason::BackoffOver, Step::Spawn),
            (Waiting | Backoff { .. }, Input::Refuse(reason)) => self.to(now, Failed, reason, Step::Rest),
            (
                Asleep | Starting | Ready | Draining { .. } | Stopping { .. } | Stopped | Failed | Shed | Spare,
                Input::Start | Input::Due | Input::Refuse(_),
            )
            | (Waiting, Input::Due)
            | (Backoff { .. }, Input::Start) => Step::None,

            (Starting, Input::Started) => {
                self.ready_since = Some(now);
                self.to(now, Ready, Reason::HandshakeAnswered, Step::Welcome)
            }
            (Starting, Input::TooLate) => {
                self.to(now, Stopping { then: Then::Again }, Reason::StartTimeout, Step::Kill)
            }
            (
                Asleep
                | Waiting
                | Ready
                | Draining { .. }
                | Stopping { .. }
                | Backoff { .. }
                | Stopped
                | Failed
                | Shed
                | Spare,
                Input::Started | Input::TooLate,
            ) => Step::None,

            (Starting | Ready, Input::Sick(reason)) => {
                self.to(now, Stopping { then: Then::Again }, reason, Step::Terminate)
            }
            (Starting | Ready, Input::Kill(reason)) => self.to(now, Stopping { then: Then::Again }, reason, Step::Kill),
            (Draining { then }, Input::Drained) => self.to(now, Stopping { then }, self.reason, Step::Terminate),
            (Draining { then }, Input::Sick(reason)) => self.to(now, Stopping { then }, reason, Step::Terminate),
            (Draining { then }, Input::Kill(reason)) => self.to(now, Stopping { then }, reason, Step::Kill),
            (Stopping { then }, Input::Kill(reason)) => self.to(now, Stopping { then }, reason, Step::Kill),
            (Starting | Ready, Input::Drained)
            | (Stopping { .. }, Input::Sick(_) | Input::Drained)
            | (
                Asleep | Waiting | Backoff { .. } | Stopped | Failed | Shed | Spare,
                Input::Sick(_) | Input::Kill(_) | Input::Drained,
            ) => Step::None,

            (Ready, Input::Drain(then, reason)) => self.to(now, Draining { then }, reason, Step::Drain),
            (Draining { then: Then::Spare } | Stopping { then: Then::Spare }, Input::Drain(_, _)) => Step::None,
            (Draining { .. }, Input::Drain(then, reason)) => self.to(now, Draining { then }, reason, Step::None),
            (Starting, Input::Drain(then, reason)) | (Starting | Ready | Draining { .. }, Input::End(then, reason)) => {
                self.to(now, Stopping { then }, reason, Step::Terminate)
            }
            (Stopping { .. }, Input::Drain(then, reason) | Input::End(then, reason)) => {
                self.to(now, Stopping { then }, reason, Step::None)
            }
            (Spare, Input::Drain(_, _)) => Step::None,
            (
                Asleep | Waiting | Backoff { .. } | Stopped | Failed | Shed,
                Input::Drain(then, reason) | Input::End(then, reason),
            )
            | (Spare, Input::End(then, reason)) => self.settle(now, then, reason),

            (Starting | Ready | Stopping { then: Then::Again }, Input::Exited(exit)) => {
                self.exited(now, exit, settings, random)
            }
            (Draining { then } | Stopping { then }, Input::Exited(exit)) => {
                self.ready_since = None;
                // One that had an end of its own while it was to drain is told with that.
                self.ended = Some(match self.state {
                    Draining { .. } => Reason::Exited(exit),
                    _ => self.reason,
                });
                // To wake it would be as useless as to start it again.
                if exit == BAD_CONFIG && matches!(then, Then::Sleep | Then::Wait | Then::Again | Then::Shed) {
                    return self.to(now, Failed, Reason::Exited(exit), Step::Rest);
                }
                self.settle(now, then, self.reason)
            }
            (Asleep | Waiting | Backoff { .. } | Stopped | Failed | Shed | Spare, Input::Exited(_)) => Step::None,
        }
    }

    fn to(&mut self, now: Time, state: State, reason: Reason, step: Step) -> Step {
        (self.state, self.since, self.reason) = (state, now, reason);
        step
    }

    fn wanted(&mut self, now: Time, reason: Reason) {
        if matches!(reason, Reason::ByHand | Reason::NewEdition | Reason::Found) {
            self.restarts = 0;
        }
        self.to(now, State::Waiting, reason, Step::None);
    }

    /// It is not running, and becomes what it was ended for.
    fn settle(&mut self, now: Time, then: Then, reason: Reason) -> Step {
        match then {
            Then::Again | Then::Wait => {
                self.wanted(now, reason);
                Step::Await
            }
            Then::Sleep => self.to(now, State::Asleep, reason, Step::Rest),
            Then::Rest => self.to(now, State::Stopped, reason, Step::Rest),
            Then::Shed => self.to(now, State::Shed, reason, Step::Rest),
            Then::Spare => self.to(now, State::Spare, reason, Step::Rest),
        }
    }

    /// Schedules the next start: at once the first time, then after a doubling wait; an instance that was ready for
    /// long enough has its earlier restarts forgotten.
    fn exited(&mut self, now: Time, exit: Exit, settings: &config::Restart, random: &mut Random) -> Step {
        let was_ready = self.ready_since.take();
        // An ordered restart keeps the reason for which it was ordered: that is why the instance is down.
        let is_ordered = matches!(self.state, State::Stopping { .. });
        let reason = if is_ordered { self.reason } else { Reason::Exited(exit) };
        self.ended = Some(reason);
        if exit == BAD_CONFIG {
            return self.to(now, State::Failed, Reason::Exited(exit), Step::None);
        }
        if was_ready.is_some_and(|since| now - since >= settings.forget_ms.millis()) {
            self.restarts = 0;
        }
        let wait = restart_wait(self.restarts, settings, random);
        self.restarts = self.restarts.saturating_add(1);
        self.to(now, State::Backoff { until: now + wait }, reason, Step::Again(wait))
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when, and why.
    pub fn since(&self) -> (Time, Reason) {
        (self.since, self.reason)
    }

    /// Why its last run ended, if it had one before the present one.
    pub fn ended(&self) -> Option<Reason> {
        self.ended
    }

    /// Whether it takes requests, as far as health and breaker let it.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether a run of it exists: started, and not known to have ended.
    pub fn is_alive(&self) -> bool {
        self.state.is_alive()
    }

    /// Starts in a row that did not last.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// The name of its state in status and metrics.
    pub fn name(&self) -> &'static str {
        self.state.name()
    }
}

/// Nothing before the first restart, then the base doubled each time up to the longest, less or more by a quarter.
fn restart_wait(restarts: u32, settings: &config::Restart, random: &mut Random) -> Duration {
    let Some(doublings) = restarts.checked_sub(1) else { return Duration::ZERO };
    let wait = settings.base_ms.millis().saturating_mul(1 << doublings.min(20)).min(settings.max_ms.millis());
    wait - wait / 4 + random.span_below(wait / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting() -> Lifecycle {
        Lifecycle::new(State::Waiting, Reason::NeedsOthers)
    }

    struct Life {
        life: Lifecycle,
        random: Random,
        now: Time,
    }

    impl Life {
        fn started() -> Life {
            let mut life = Life { life: waiting(), random: Random::new(5), now: Time::ZERO };
            assert_eq!(life.take(Input::Start), Step::Spawn);
            life
        }

        fn ready() -> Life {
            let mut life = Life::started();
            assert_eq!(life.take(Input::Started), Step::Welcome);
            life
        }

        fn take(&mut self, input: Input) -> Step {
            self.life.take(self.now, input, &config::Restart::default(), &mut self.random)
        }
    }

    #[test]
    fn the_first_restart_is_at_once_and_the_next_ones_wait_longer() {
        let mut life = Life::ready();
        assert_eq!(life.take(Input::Exited(Exit::Signal(9))), Step::Again(Duration::ZERO));
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert_eq!(life.take(Input::Due), Step::Spawn);
            let Step::Again(wait) = life.take(Input::Exited(Exit::Code(1))) else { panic!("it is started again") };
            waits.push(wait.as_millis());
        }
        for (wait, middle) in waits.iter().zip([1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, 256_000]) {
            assert!((middle * 3 / 4..=middle * 5 / 4).contains(wait), "{waits:?}");
        }
        assert!(waits.iter().all(|wait| *wait <= 375_000), "{waits:?}");
    }

    #[test]
    fn ten_minutes_ready_make_it_forget() {
        let mut life = Life::ready();
        life.take(Input::Exited(Exit::Code(1)));
        life.take(Input::Due);
        life.take(Input::Started);
        life.now = Time::from_millis(600_000);
        assert_eq!(life.take(Input::Exited(Exit::Code(1))), Step::Again(Duration::ZERO));
    }

    #[test]
    fn bad_configuration_is_not_tried_again() {
        let mut life = Life::started();
        assert_eq!(life.take(Input::Exited(Exit::Code(78))), Step::None);
        assert_eq!(life.life.name(), "failed");
        assert_eq!(life.take(Input::Due), Step::None);
    }

    #[test]
    fn a_sick_instance_is_ended_and_started_again_for_the_reason_it_was_ended() {
        let mut life = Life::ready();
        assert_eq!(life.take(Input::Sick(Reason::HealthFailed)), Step::Terminate);
        assert_eq!(life.take(Input::Exited(Exit::Signal(15))), Step::Again(Duration::ZERO));
        assert_eq!(life.life.since().1, Reason::HealthFailed);
    }

    #[test]
    fn a_stop_while_stopping_for_a_restart_cancels_the_restart() {
        let mut life = Life::ready();
        life.take(Input::Sick(Reason::HealthFailed));
        assert_eq!(life.take(Input::End(Then::Rest, Reason::Shutdown)), Step::None);
        assert_eq!(life.take(Input::Exited(Exit::Signal(15))), Step::Rest);
    }

    #[test]
    fn a_slow_starter_is_put_down() {
        let mut life = Life::started();
        assert_eq!(life.take(Input::TooLate), Step::Kill);
        assert_eq!(life.take(Input::Exited(Exit::Signal(9))), Step::Again(Duration::ZERO));
    }

    #[test]
    fn what_never_ran_rests_at_once() {
        let mut life = Life { life: waiting(), random: Random::new(5), now: Time::ZERO };
        assert_eq!(life.take(Input::End(Then::Rest, Reason::Shutdown)), Step::Rest);
        assert_eq!(life.take(Input::Start), Step::None);
    }

    #[test]
    fn what_sleeps_is_wanted_by_a_request_and_tells_so() {
        let mut life = Life { life: Lifecycle::new(State::Asleep, Reason::NotAskedYet), ..Life::ready() };
        assert_eq!(life.take(Input::Start), Step::None);
        assert_eq!(life.take(Input::Want(Reason::Asked)), Step::Await);
        assert_eq!(life.take(Input::Start), Step::Spawn);
        assert_eq!(life.life.since().1, Reason::Asked);
    }

    #[test]
    fn a_drained_instance_becomes_what_it_was_drained_for() {
        for (then, state) in [
            (Then::Sleep, State::Asleep),
            (Then::Rest, State::Stopped),
            (Then::Shed, State::Shed),
            (Then::Spare, State::Spare),
            (Then::Wait, State::Waiting),
        ] {
            let mut life = Life::ready();
            assert_eq!(life.take(Input::Drain(then, Reason::Idle)), Step::Drain);
            assert!(!life.life.is_ready() && life.life.is_alive());
            assert_eq!(life.take(Input::Drained), Step::Terminate);
            life.take(Input::Exited(Exit::Code(0)));
            assert_eq!(life.life.state(), state);
        }
    }

    #[test]
    fn what_is_wanted_while_it_ends_to_sleep_is_started_after_its_end() {
        let mut life = Life::ready();
        life.take(Input::Drain(Then::Sleep, Reason::Idle));
        life.take(Input::Drained);
        assert_eq!(life.take(Input::Want(Reason::Asked)), Step::None);
        assert_eq!(life.take(Input::Exited(Exit::Code(0))), Step::Await);
        assert_eq!(life.life.since().1, Reason::Asked);
    }

    #[test]
    fn what_may_not_be_started_has_failed_until_it_is_wanted_again() {
        let mut life = Life { life: waiting(), ..Life::ready() };
        let spent = Reason::BudgetSpent { budget: 10 };
        assert_eq!(life.take(Input::Refuse(spent)), Step::Rest);
        assert_eq!((life.life.state(), life.life.since().1), (State::Failed, spent));
        assert_eq!(life.take(Input::Want(Reason::DayBegan)), Step::Await);
    }

    #[test]
    fn a_person_makes_it_forget_its_restarts() {
        let mut life = Life::ready();
        for _ in 0..5 {
            life.take(Input::Exited(Exit::Code(1)));
            life.take(Input::Due);
        }
        life.take(Input::Exited(Exit::Code(1)));
        assert_eq!(life.take(Input::Want(Reason::ByHand)), Step::Await);
        assert_eq!(life.take(Input::Start), Step::Spawn);
        assert_eq!(life.take(Input::Exited(Exit::Code(1))), Step::Again(Duration::ZERO));
    }
}
