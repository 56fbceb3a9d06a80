//! Keeps requests from an instance, or from a platform as a whole, that fails.
//!
//! ```text
//!            failures in a row, or the rate of failures          wait is over
//!            or of slow calls is too high: trips, open
//!   Closed ───────────────────────────────────────────► Open ──────────────────► HalfOpen
//!     ▲ ▲                                                ▲                          │
//!     │ └── trips, and a probe shows that it is well     └── a trial fails: wait ×2 ┤
//!     └──────── the ticketed trial passes, or two probes in a row do ───────────────┘
//! ```
//!
//! Half-open, the next probe is the first trial, so that no user's message is the guinea pig; once it passes, one
//! ticketed request may try, and no other until that one ends or has taken too long. Nothing but time ends an open
//! breaker, and nothing puts its deadline off: not a failed probe, not the late answer of a request from before. Only the
//! return of what its platform depends on, or a person, brings it forward.
//!
//! It says when it trips and does not open by itself: whether the last instance of a platform is cut off is not for it to
//! say. Rates are taken over a ring of buckets, so a breaker has the same size whatever it has counted.

use std::time::Duration;

use crate::config;
use crate::event::Ticket;
use crate::random::Random;
use crate::time::Time;

/// Who tries a half-open breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The probe that is under way, or the next.
    Probe,
    /// Nobody yet: the next request may.
    Vacant,
    /// This request.
    Ticket(Ticket),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { since: Time, until: Time },
    HalfOpen { trial: Trial, passes: u32 },
}

/// In which way a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It ran out of time.
    Timeout,
    /// It did not arrive, or no answer came of it: connection lost, garbage, crash, panic.
    Transport,
    /// The platform said that it failed.
    Application,
}

/// What a request or trial showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The instance did its work.
    Good,
    /// The instance failed.
    Bad(Mode),
    /// Nobody waited for its answer any more, because another was quicker, and it was slow by then.
    Late,
    /// Nothing is to be learnt: the caller's own mistake, cancelled, busy.
    Nothing,
}

/// Why a breaker trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Failures in a row, the last one of this kind.
    InARow(Mode),
    /// Too many of the recent calls failed.
    FailureRate {
        /// How many.
        failures: u32,
        /// Of how many.
        calls: u32,
    },
    /// Too many of the recent calls were slow.
    SlowRate {
        /// How many.
        slow: u32,
        /// Of how many.
        calls: u32,
    },
    /// The request that tried it failed.
    TrialFailed,
    /// The probe that tried it failed.
    ProbeFailed,
    /// It is far slower than its peers.
    Slower {
        /// What its answers usually take.
        usual: Duration,
        /// What the others' do.
        peers: Duration,
    },
    /// It fails far more often than its peers.
    FailsMore {
        /// Its rate of failures, in percent.
        percent: u32,
        /// Theirs.
        peers: u32,
    },
}

impl Cause {
    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        CAUSES[self.index()]
    }

    /// Place in [`CAUSES`].
    pub const fn index(self) -> usize {
        match self {
            Cause::InARow(mode) => mode as usize,
            Cause::FailureRate { .. } => 3,
            Cause::SlowRate { .. } => 4,
            Cause::TrialFailed => 5,
            Cause::ProbeFailed => 6,
            Cause::Slower { .. } => 7,
            Cause::FailsMore { .. } => 8,
        }
    }
}

/// Every cause by its name, for tables of counters.
pub const CAUSES: [&str; 9] = [
    "timeouts",
    "transport_errors",
    "application_errors",
    "failure_rate",
    "slow_rate",
    "trial_failed",
    "probe_failed",
    "outlier_latency",
    "outlier_failures",
];

impl std::fmt::Display for Cause {
    /// What follows "its breaker opened because".
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Cause::InARow(Mode::Timeout) => write!(formatter, "requests in a row ran out of time"),
            Cause::InARow(Mode::Transport) => write!(formatter, "requests in a row broke or did not arrive"),
            Cause::InARow(Mode::Application) => write!(formatter, "requests in a row failed"),
            Cause::FailureRate { failures, calls } => write!(formatter, "{failures} of the last {calls} calls failed"),
            Cause::SlowRate { slow, calls } => write!(formatter, "{slow} of the last {calls} calls were slow"),
            Cause::TrialFailed => write!(formatter, "the request that tried it failed"),
            Cause::ProbeFailed => write!(formatter, "a health check failed that was to show whether it is well"),
            Cause::Slower { usual, peers } => write!(
                formatter,
                "its answers usually take {:.0} ms, and those of its peers {:.0} ms",
                usual.as_secs_f64() * 1e3,
                peers.as_secs_f64() * 1e3
            ),
            Cause::FailsMore { percent, peers } => {
                write!(formatter, "{percent} % of its calls fail, and {peers} % of those of its peers")
            }
        }
    }
}

/// Probes in a row that close a half-open breaker when no request comes to try it.
const PASSES_TO_CLOSE: u32 = 2;
/// The parts of the window: what is counted is forgotten a tenth of it at a time.
const BUCKETS: usize = 10;
/// Harm that opens a breaker. Each failure does the part of it that one is of its kind's number, rounded up: with numbers
/// up to a million the rounding never makes up for a failure that is missing.
const HARM_MAX: u64 = 1 << 48;

/// What trips a breaker, made ready for deciding.
#[derive(Clone, Debug)]
pub struct Rules {
    /// By [`Mode`].
    harm: [u64; 3],
    bucket_nanos: u64,
    calls_min: u32,
    failure_percent: u64,
    slow_percent: u64,
    open: Duration,
    open_max: Duration,
}

/// A rate that none reaches.
const NEVER: u64 = u64::MAX / (1 << 33);

impl Rules {
    /// For the breaker of an instance.
    pub fn of_instance(settings: &config::Breaker) -> Rules {
        let own = |number: u64| if number == 0 { settings.failures.value() } else { number };
        let numbers =
            [settings.timeouts.value(), settings.transport_errors.value(), settings.application_errors.value()];
        Rules { harm: numbers.map(|number| HARM_MAX.div_ceil(own(number))), ..Rules::without_rows(settings) }
    }

    /// For the breaker of a platform as a whole.
    pub fn of_platform(settings: &config::Breaker) -> Rules {
        let harm = match settings.platform_failures.value() {
            0 => 0,
            number => HARM_MAX.div_ceil(number),
        };
        Rules { harm: [harm; 3], ..Rules::without_rows(settings) }
    }

    fn without_rows(settings: &config::Breaker) -> Rules {
        let percent = |percent: u64| if percent == 0 { NEVER } else { percent };
        Rules {
            harm: [0; 3],
            bucket_nanos: settings.window_ms.value() * 1_000_000 / BUCKETS as u64,
            calls_min: settings.calls_min.count(),
            failure_percent: percent(settings.failure_percent.value()),
            slow_percent: percent(settings.slow_percent.value()),
            open: settings.open_ms.millis(),
            open_max: settings.open_max_ms.millis(),
        }
    }
}

/// What is counted of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls that were good or bad.
    pub calls: u32,
    /// Those of them that were bad.
    pub failures: u32,
    /// Those of them that were slow.
    pub slow: u32,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.calls += other.calls;
        self.failures += other.failures;
        self.slow += other.slow;
    }

    fn take_away(&mut self, other: Tally) {
        self.calls -= other.calls;
        self.failures -= other.failures;
        self.slow -= other.slow;
    }
}

/// The calls of the last window: the bucket that is being filled, which a call touches, and those before it, which it does
/// not.
#[derive(Clone, Debug, Default)]
struct Window {
    /// When the present bucket is full, nanoseconds.
    end: u64,
    present: Tally,
    /// The sum of `before`.
    past: Tally,
    /// A ring; the oldest is at `oldest`.
    before: [Tally; BUCKETS - 1],
    oldest: u32,
}

impl Window {
    fn count(&mut self, now: Time, is_bad: bool, is_slow: bool, bucket_nanos: u64) {
        let now = now.as_nanos();
        if now >= self.end {
            self.turn(now, bucket_nanos);
        }
        self.present.calls += 1;
        if is_bad {
            self.present.failures += 1;
        }
        if is_slow {
            self.present.slow += 1;
        }
    }

    fn sum(&self) -> Tally {
        let Window { present, past, .. } = self;
        Tally {
            calls: past.calls + present.calls,
            failures: past.failures + present.failures,
            slow: past.slow + present.slow,
        }
    }

    /// Forgets the buckets whose time is over. Buckets begin at multiples of their length, whenever calls come.
    #[cold]
    fn turn(&mut self, now: u64, bucket_nanos: u64) {
        let steps = (now - self.end) / bucket_nanos + 1;
        if steps >= BUCKETS as u64 {
            *self = Window::default();
        } else {
            for _ in 0..steps {
                let full = std::mem::take(&mut self.present);
                let gone = std::mem::replace(&mut self.before[self.oldest as usize], full);
                self.past.add(full);
                self.past.take_away(gone);
                self.oldest = (self.oldest + 1) % self.before.len() as u32;
            }
        }
        self.end = (now / bucket_nanos + 1) * bucket_nanos;
    }
}

/// A breaker, of an instance or of a platform.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    /// What the failures since the last good call come to, of [`HARM_MAX`].
    harm: u64,
    /// How many times in a row it opened without a good request since.
    opened: u32,
    window: Window,
}

const _: () = assert!(size_of::<Breaker>() <= 256, "ten thousand breakers shall fit in a small machine");

impl Default for Breaker {
    fn default() -> Self {
        Breaker { state: State::Closed, harm: 0, opened: 0, window: Window::default() }
    }
}

impl Breaker {
    /// Whether a request may go through now.
    pub fn admits(&self) -> bool {
        matches!(self.state, State::Closed | State::HalfOpen { trial: Trial::Vacant, .. })
    }

    /// A request goes through; half-open, it becomes the trial, and true is returned: it must not be waited for for ever.
    /// A request that goes round an open breaker is no trial.
    pub fn admit(&mut self, ticket: Ticket) -> bool {
        match &mut self.state {
            State::HalfOpen { trial, .. } if *trial == Trial::Vacant => {
                *trial = Trial::Ticket(ticket);
                true
            }
            State::HalfOpen { .. } | State::Closed | State::Open { .. } => false,
        }
    }

    /// A request that went through ended. Returns the cause if this trips the breaker, which stays as it is until it is
    /// told to [open](Breaker::open) or that it was [acquitted](Breaker::acquit).
    #[must_use]
    pub fn record(
        &mut self,
        now: Time,
        ticket: Ticket,
        finding: Finding,
        is_slow: bool,
        rules: &Rules,
    ) -> Option<Cause> {
        match (self.state, finding) {
            (State::Closed, Finding::Good) => {
                (self.harm, self.opened) = (0, 0);
                self.window.count(now, false, is_slow, rules.bucket_nanos);
                self.rate(rules)
            }
            (State::Closed, Finding::Bad(mode)) => {
                self.harm = self.harm.saturating_add(rules.harm[mode as usize]);
                self.window.count(now, true, is_slow, rules.bucket_nanos);
                if self.harm >= HARM_MAX {
                    return Some(Cause::InARow(mode));
                }
                self.rate(rules)
            }
            (State::Closed, Finding::Late) => {
                self.window.count(now, false, true, rules.bucket_nanos);
                self.rate(rules)
            }
            (State::HalfOpen { trial, passes }, _) => self.record_trial(trial, passes, ticket, finding),
            (State::Closed, Finding::Nothing) | (State::Open { .. }, _) => None,
        }
    }

    /// As [`Breaker::record`], while it is half-open: out of the way of what each request pays.
    #[cold]
    fn record_trial(&mut self, trial: Trial, passes: u32, ticket: Ticket, finding: Finding) -> Option<Cause> {
        if trial != Trial::Ticket(ticket) {
            return None;
        }
        match finding {
            Finding::Good => {
                *self = Breaker::default();
                None
            }
            Finding::Bad(_) => {
                self.state = State::HalfOpen { trial: Trial::Probe, passes };
                Some(Cause::TrialFailed)
            }
            Finding::Late | Finding::Nothing => {
                self.state = State::HalfOpen { trial: Trial::Vacant, passes };
                None
            }
        }
    }

    fn rate(&self, rules: &Rules) -> Option<Cause> {
        let Tally { calls, failures, slow } = self.window.sum();
        // A rate of nothing at all reaches no limit, which is what most calls find.
        if failures | slow == 0 || calls < rules.calls_min {
            return None;
        }
        let reaches = |part: u32, percent: u64| u64::from(part) * 100 >= percent * u64::from(calls);
        if reaches(failures, rules.failure_percent) {
            return Some(Cause::FailureRate { failures, calls });
        }
        reaches(slow, rules.slow_percent).then_some(Cause::SlowRate { slow, calls })
    }

    /// The answer of a request has begun to flow and may do so for hours, or has taken too long: if it is the trial,
    /// another may try. Returns whether it was.
    pub fn give_back(&mut self, ticket: Ticket) -> bool {
        match &mut self.state {
            State::HalfOpen { trial, .. } if *trial == Trial::Ticket(ticket) => {
                *trial = Trial::Vacant;
                true
            }
            State::HalfOpen { .. } | State::Closed | State::Open { .. } => false,
        }
    }

    /// The wait is over: the next probe tries. Returns whether it was open.
    pub fn half_open(&mut self) -> bool {
        let was_open = self.is_open();
        if was_open {
            self.state = State::HalfOpen { trial: Trial::Probe, passes: 0 };
        }
        was_open
    }

    /// Brings the deadline of an open breaker forward. Returns it, if that changed it.
    pub fn hasten(&mut self, to: Time) -> Option<Time> {
        let State::Open { until, .. } = &mut self.state else { return None };
        let is_later = *until > to;
        *until = to.min(*until);
        is_later.then_some(to)
    }

    /// A probe came back. Half-open it counts; open or closed it does not. Returns the cause if this trips it.
    #[must_use]
    pub fn probed(&mut self, finding: Finding) -> Option<Cause> {
        let State::HalfOpen { trial, passes } = self.state else { return None };
        let vacated = if trial == Trial::Probe { Trial::Vacant } else { trial };
        match finding {
            Finding::Good if passes + 1 >= PASSES_TO_CLOSE && vacated == Trial::Vacant => {
                self.close();
                None
            }
            Finding::Good => {
                self.state = State::HalfOpen { trial: vacated, passes: passes + 1 };
                None
            }
            Finding::Bad(_) => Some(Cause::ProbeFailed),
            Finding::Late | Finding::Nothing => {
                self.state = State::HalfOpen { trial: vacated, passes };
                None
            }
        }
    }

    /// Opens it, for as long as its rules and its past say; returns until when. The wait doubles with each time in a row.
    pub fn open(&mut self, now: Time, rules: &Rules, random: &mut Random) -> Time {
        let wait = rules.open.saturating_mul(1 << self.opened.min(16)).min(rules.open_max);
        let until = now + wait + random.span_below(wait / JITTER_PART);
        self.state = State::Open { since: now, until };
        self.opened = self.opened.saturating_add(1);
        (self.harm, self.window) = (0, Window::default());
        until
    }

    /// It has tripped and is not to open: what was held against it is forgotten, and it is closed.
    pub fn acquit(&mut self) {
        self.close();
    }

    /// Closes it by hand, and forgets all that was held against it.
    pub fn reset(&mut self) {
        *self = Breaker::default();
    }

    fn close(&mut self) {
        self.state = State::Closed;
        (self.harm, self.window) = (0, Window::default());
    }

    /// The calls of the last window, as far as they are closed calls of its present state.
    pub fn recent(&self, now: Time, rules: &Rules) -> Tally {
        let mut window = self.window.clone();
        if now.as_nanos() >= window.end {
            window.turn(now.as_nanos(), rules.bucket_nanos);
        }
        window.sum()
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Whether it is closed.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// When an open breaker may be tried.
    pub fn open_until(&self) -> Option<Time> {
        match self.state {
            State::Open { until, .. } => Some(until),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    /// The request that is trying it.
    pub fn trial(&self) -> Option<Ticket> {
        match self.state {
            State::HalfOpen { trial: Trial::Ticket(ticket), .. } => Some(ticket),
            State::HalfOpen { trial: Trial::Probe | Trial::Vacant, .. } | State::Closed | State::Open { .. } => None,
        }
    }

    /// The name in status and metrics.
    pub fn name(&self) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half_open",
        }
    }

    /// Asserts that an open breaker's deadline is where it was put, and that a closed one has done no harm that opens it.
    pub fn check(&self, rules: &Rules) {
        if let State::Open { since, until } = self.state {
            let wait = rules.open.saturating_mul(1 << (self.opened - 1).min(16)).min(rules.open_max);
            assert!(until - since <= wait + wait / JITTER_PART, "an open breaker's deadline was moved");
        }
        let mut counted = Tally::default();
        self.window.before.iter().for_each(|bucket| counted.add(*bucket));
        assert_eq!(counted, self.window.past, "a breaker's buckets do not add up");
    }

    /// The bug of the Python original: a failed probe starts the wait again.
    #[cfg(feature = "plants")]
    pub(crate) fn move_deadline(&mut self, now: Time) -> Option<Time> {
        let State::Open { until, since } = &mut self.state else { return None };
        *until = now + until.since(*since);
        Some(*until)
    }
}

/// The wait is lengthened by up to this part of itself, so that breakers which opened together do not try together.
const JITTER_PART: u32 = 10;

/// How long a caller that meets a half-open breaker's running trial is told to wait.
pub const TRIAL_RETRY_AFTER: Duration = Duration::from_secs(1);

#[cfg(test)]
#[path = "breaker/tests.rs"]
mod tests;
