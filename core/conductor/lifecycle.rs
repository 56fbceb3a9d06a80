//! The life of one instance, and when it is started again.
//!
//! ```text
//!            Start             Started                 Stop
//!   Waiting ───────► Starting ─────────► Ready ─────────────────► Stopping ──Exited──► Stopped
//!                     ▲  │  │              │  │                    ▲  │
//!                 Due │  │  │ TooLate      │  │ Sick               │  │ Exited, to be started again
//!                     │  │  └──────────────┼──┴────────────────────┘  │
//!                  Backoff ◄──── Exited ───┘ ◄────────────────────────┘
//!
//!   Exited with 78 (bad configuration) ──► Failed, from anywhere
//! ```

use std::time::Duration;

use serde::Serialize;

use crate::config;
use crate::event::Exit;
use crate::random::Random;
use crate::time::Time;

/// What an instance's process, thread or connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not started yet: a platform that it needs is not ready.
    Waiting,
    /// Started; its handshake is not answered yet.
    Starting,
    /// Takes requests, as far as health and breaker let it.
    Ready,
    /// Told to end; `again` says whether it is to be started after that.
    Stopping {
        /// To be started again.
        again: bool,
    },
    /// Ended; to be started at this time.
    Backoff {
        /// When.
        until: Time,
    },
    /// Ended in order.
    Stopped,
    /// Ended, and starting it again would be useless until the configuration changes.
    Failed,
}

impl State {
    /// The name in status; one of [`crate::INSTANCE_STATES`].
    pub const fn name(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Starting => "starting",
            State::Ready => "ready",
            State::Stopping { .. } => "stopping",
            State::Backoff { .. } => "backoff",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }
}

/// What happened to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// What it needs is ready.
    Start,
    /// Its handshake was answered.
    Started,
    /// It took too long to start.
    TooLate,
    /// Its health or a stuck request says that it must be replaced.
    Sick(Reason),
    /// It is no more.
    Exited(Exit),
    /// The wait before the next start is over.
    Due,
    /// Demi ends.
    Stop,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    None,
    /// Start its next run.
    Spawn,
    /// It is ready.
    Welcome,
    /// Ask it to end, and put it down if it does not.
    Terminate,
    /// Put it down.
    Kill,
    /// Start it again after this long.
    Again(Duration),
    /// It has ended for good.
    Rest,
}

/// Why an instance is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A platform that it needs is not ready.
    NeedsOthers,
    /// Demi began.
    Began,
    /// The wait after its last end was over.
    BackoffOver,
    /// Its handshake was answered.
    HandshakeAnswered,
    /// It took too long to start.
    StartTimeout,
    /// Its health checks failed.
    HealthFailed,
    /// A worker did not let go of a request.
    Wedged,
    /// It ended.
    Exited(Exit),
    /// Demi ends.
    Shutdown,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::NeedsOthers => write!(formatter, "a platform that it needs is not ready"),
            Reason::Began => write!(formatter, "Demi began"),
            Reason::BackoffOver => write!(formatter, "the wait after its last end is over"),
            Reason::HandshakeAnswered => write!(formatter, "it has started"),
            Reason::StartTimeout => write!(formatter, "it took longer than start_timeout_ms to start"),
            Reason::HealthFailed => write!(formatter, "its health checks failed"),
            Reason::Wedged => write!(formatter, "a worker did not let go of a request"),
            Reason::Exited(Exit::Code(code)) => write!(formatter, "it exited with code {code}"),
            Reason::Exited(Exit::Signal(signal)) => write!(formatter, "signal {signal} ended it"),
            Reason::Exited(Exit::NotStarted) => write!(formatter, "it could not be started"),
            Reason::Exited(Exit::NotInitialised) => write!(formatter, "its initialisation failed"),
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

impl Default for Lifecycle {
    fn default() -> Self {
        Lifecycle {
            state: State::Waiting,
            since: Time::ZERO,
            reason: Reason::NeedsOthers,
            ready_since: None,
            ended: None,
            restarts: 0,
        }
    }
}

impl Lifecycle {
    /// Takes what happened and says what to do.
    pub fn take(&mut self, now: Time, input: Input, settings: &config::Restart, random: &mut Random) -> Step {
        match (self.state, input) {
            (State::Waiting, Input::Start) => self.to(now, State::Starting, Reason::Began, Step::Spawn),
            (State::Backoff { .. }, Input::Due) => self.to(now, State::Starting, Reason::BackoffOver, Step::Spawn),
            (State::Starting, Input::Started) => {
                self.ready_since = Some(now);
                self.to(now, State::Ready, Reason::HandshakeAnswered, Step::Welcome)
            }
            (State::Starting, Input::TooLate) => {
                self.to(now, State::Stopping { again: true }, Reason::StartTimeout, Step::Kill)
            }
            (State::Starting | State::Ready, Input::Sick(reason)) => {
                self.to(now, State::Stopping { again: true }, reason, Step::Terminate)
            }
            (State::Starting | State::Ready, Input::Stop) => {
                self.to(now, State::Stopping { again: false }, Reason::Shutdown, Step::Terminate)
            }
            (State::Starting | State::Ready | State::Stopping { again: true }, Input::Exited(exit)) => {
                self.exited(now, exit, settings, random)
            }
            (State::Stopping { again: false }, Input::Exited(_)) => {
                self.to(now, State::Stopped, self.reason, Step::Rest)
            }
            (State::Stopping { again: true }, Input::Stop) => {
                self.to(now, State::Stopping { again: false }, Reason::Shutdown, Step::None)
            }
            (State::Waiting | State::Backoff { .. } | State::Failed, Input::Stop) => {
                self.to(now, State::Stopped, Reason::Shutdown, Step::Rest)
            }
            (State::Stopping { again: false } | State::Stopped, Input::Stop)
            | (State::Starting | State::Ready | State::Stopping { .. } | State::Stopped | State::Failed, Input::Due)
            | (
                State::Starting
                | State::Ready
                | State::Stopping { .. }
                | State::Backoff { .. }
                | State::Stopped
                | State::Failed,
                Input::Start,
            )
            | (
                State::Waiting
                | State::Ready
                | State::Stopping { .. }
                | State::Backoff { .. }
                | State::Stopped
                | State::Failed,
                Input::Started | Input::TooLate,
            )
            | (
                State::Waiting | State::Stopping { .. } | State::Backoff { .. } | State::Stopped | State::Failed,
                Input::Sick(_),
            )
            | (State::Waiting | State::Backoff { .. } | State::Stopped | State::Failed, Input::Exited(_))
            | (State::Waiting, Input::Due) => Step::None,
        }
    }

    fn to(&mut self, now: Time, state: State, reason: Reason, step: Step) -> Step {
        (self.state, self.since, self.reason) = (state, now, reason);
        step
    }

    /// Schedules the next start: at once the first time, then after a doubling wait; an instance that was ready for
    /// long enough has its earlier restarts forgotten.
    fn exited(&mut self, now: Time, exit: Exit, settings: &config::Restart, random: &mut Random) -> Step {
        let was_ready = self.ready_since.take();
        if exit == BAD_CONFIG {
            return self.to(now, State::Failed, Reason::Exited(exit), Step::None);
        }
        if was_ready.is_some_and(|since| now - since >= settings.forget_ms.millis()) {
            self.restarts = 0;
        }
        let wait = restart_wait(self.restarts, settings, random);
        self.restarts = self.restarts.saturating_add(1);
        // An ordered restart keeps the reason for which it was ordered: that is why the instance is down.
        let reason = match self.state {
            State::Stopping { .. } => self.reason,
            State::Waiting
            | State::Starting
            | State::Ready
            | State::Backoff { .. }
            | State::Stopped
            | State::Failed => Reason::Exited(exit),
        };
        self.ended = Some(reason);
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
        matches!(self.state, State::Starting | State::Ready | State::Stopping { .. })
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

    struct Life {
        life: Lifecycle,
        random: Random,
        now: Time,
    }

    impl Life {
        fn started() -> Life {
            let mut life = Life { life: Lifecycle::default(), random: Random::new(5), now: Time::ZERO };
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
        assert_eq!(life.take(Input::Stop), Step::None);
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
        let mut life = Life { life: Lifecycle::default(), random: Random::new(5), now: Time::ZERO };
        assert_eq!(life.take(Input::Stop), Step::Rest);
        assert_eq!(life.take(Input::Start), Step::None);
    }
}
