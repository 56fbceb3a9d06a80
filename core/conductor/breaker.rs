//! Keeps requests from an instance that has just failed several in a row.
//!
//! ```text
//!            failures in a row                    wait is over
//!   Closed ────────────────────► Open ───────────────────────────► HalfOpen
//!     ▲                           ▲                                   │
//!     │                           └──── the trial fails: wait ×2 ─────┤
//!     └── the ticketed trial passes, or two probes in a row do ───────┘
//! ```
//!
//! Half-open, the next probe is the first trial, so that no user's message is the guinea pig; once it passes, one
//! ticketed request may try, and no other until that one ends. Nothing but time ends an open breaker, and nothing
//! moves its deadline: not a failed probe, not the late answer of a request from before.

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
    Closed { failures: u32 },
    Open { since: Time, until: Time },
    HalfOpen { trial: Trial, passes: u32 },
}

/// What a request or trial showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The instance did its work.
    Good,
    /// The instance failed.
    Bad,
    /// Nothing is to be learnt: the caller's own mistake, cancelled, busy.
    Nothing,
}

/// Probes in a row that close a half-open breaker when no request comes to try it.
const PASSES_TO_CLOSE: u32 = 2;

/// One instance's breaker.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    /// How many times in a row it opened without a good request since.
    opened: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker { state: State::Closed { failures: 0 }, opened: 0 }
    }
}

impl Breaker {
    /// Whether a request may go through now.
    pub fn admits(&self) -> bool {
        matches!(self.state, State::Closed { .. } | State::HalfOpen { trial: Trial::Vacant, .. })
    }

    /// A request goes through; half-open, it becomes the trial. Call only if `admits()`.
    pub fn admit(&mut self, ticket: Ticket) {
        if let State::HalfOpen { trial, .. } = &mut self.state {
            debug_assert_eq!(*trial, Trial::Vacant, "a second trial was admitted");
            *trial = Trial::Ticket(ticket);
        }
    }

    /// A request that went through ended. Returns the deadline if this opened the breaker.
    pub fn record(
        &mut self,
        now: Time,
        ticket: Ticket,
        finding: Finding,
        settings: &config::Breaker,
        random: &mut Random,
    ) -> Option<Time> {
        match (self.state, finding) {
            (State::Closed { .. }, Finding::Good) => {
                *self = Breaker::default();
                None
            }
            (State::Closed { failures }, Finding::Bad) if failures + 1 < settings.failures.count() => {
                self.state = State::Closed { failures: failures + 1 };
                None
            }
            (State::Closed { .. }, Finding::Bad) => Some(self.open(now, settings, random)),
            (State::HalfOpen { trial, .. }, _) if trial != Trial::Ticket(ticket) => None,
            (State::HalfOpen { .. }, Finding::Good) => {
                *self = Breaker::default();
                None
            }
            (State::HalfOpen { .. }, Finding::Bad) => Some(self.open(now, settings, random)),
            (State::HalfOpen { passes, .. }, Finding::Nothing) => {
                self.state = State::HalfOpen { trial: Trial::Vacant, passes };
                None
            }
            (State::Closed { .. }, Finding::Nothing) | (State::Open { .. }, _) => None,
        }
    }

    /// The answer of a request has begun to flow and may do so for hours: if it is the trial, another may try. Returns
    /// whether it was.
    pub fn give_back(&mut self, ticket: Ticket) -> bool {
        match &mut self.state {
            State::HalfOpen { trial, .. } if *trial == Trial::Ticket(ticket) => {
                *trial = Trial::Vacant;
                true
            }
            State::HalfOpen { .. } | State::Closed { .. } | State::Open { .. } => false,
        }
    }

    /// The wait is over: the next probe tries. Returns whether it was open.
    pub fn half_open(&mut self) -> bool {
        let was_open = matches!(self.state, State::Open { .. });
        if was_open {
            self.state = State::HalfOpen { trial: Trial::Probe, passes: 0 };
        }
        was_open
    }

    /// A probe came back. Half-open it counts; open or closed it does not. Returns the deadline if this opened it.
    pub fn probed(
        &mut self,
        now: Time,
        finding: Finding,
        settings: &config::Breaker,
        random: &mut Random,
    ) -> Option<Time> {
        let State::HalfOpen { trial, passes } = self.state else { return None };
        let vacated = if trial == Trial::Probe { Trial::Vacant } else { trial };
        match finding {
            Finding::Good if passes + 1 >= PASSES_TO_CLOSE && vacated == Trial::Vacant => {
                self.state = State::Closed { failures: 0 };
                None
            }
            Finding::Good => {
                self.state = State::HalfOpen { trial: vacated, passes: passes + 1 };
                None
            }
            Finding::Bad => Some(self.open(now, settings, random)),
            Finding::Nothing => {
                self.state = State::HalfOpen { trial: vacated, passes };
                None
            }
        }
    }

    fn open(&mut self, now: Time, settings: &config::Breaker, random: &mut Random) -> Time {
        let wait = settings.open_ms.millis().saturating_mul(1 << self.opened.min(16));
        let wait = wait.min(settings.open_max_ms.millis());
        let until = now + wait + random.span_below(wait / JITTER_PART);
        self.state = State::Open { since: now, until };
        self.opened += 1;
        until
    }

    /// When an open breaker may be tried.
    pub fn open_until(&self) -> Option<Time> {
        match self.state {
            State::Open { until, .. } => Some(until),
            State::Closed { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// The request that is trying it.
    pub fn trial(&self) -> Option<Ticket> {
        match self.state {
            State::HalfOpen { trial: Trial::Ticket(ticket), .. } => Some(ticket),
            State::HalfOpen { trial: Trial::Probe | Trial::Vacant, .. } | State::Closed { .. } | State::Open { .. } => {
                None
            }
        }
    }

    /// The name in status and metrics.
    pub fn name(&self) -> &'static str {
        match self.state {
            State::Closed { .. } => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half_open",
        }
    }

    /// Asserts that an open breaker's deadline is where it was put.
    pub fn check(&self, settings: &config::Breaker) {
        if let State::Open { since, until } = self.state {
            let longest = settings.open_max_ms.millis() + settings.open_max_ms.millis() / JITTER_PART;
            let wait = settings.open_ms.millis().saturating_mul(1 << (self.opened - 1).min(16)).min(longest);
            assert!(until - since <= wait + wait / JITTER_PART, "an open breaker's deadline was moved");
        }
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
mod tests {
    use super::*;

    struct Bench {
        breaker: Breaker,
        settings: config::Breaker,
        random: Random,
        now: Time,
        next: u32,
    }

    impl Bench {
        fn new() -> Bench {
            Bench {
                breaker: Breaker::default(),
                settings: config::Breaker::default(),
                random: Random::new(1),
                now: Time::ZERO,
                next: 0,
            }
        }

        fn admit(&mut self) -> Ticket {
            assert!(self.breaker.admits());
            self.next += 1;
            let ticket = Ticket::new(self.next, 0);
            self.breaker.admit(ticket);
            ticket
        }

        fn end(&mut self, ticket: Ticket, finding: Finding) -> Option<Time> {
            self.breaker.record(self.now, ticket, finding, &self.settings, &mut self.random)
        }

        fn probe(&mut self, finding: Finding) -> Option<Time> {
            self.breaker.probed(self.now, finding, &self.settings, &mut self.random)
        }

        fn open(&mut self) -> Time {
            loop {
                let ticket = self.admit();
                if let Some(until) = self.end(ticket, Finding::Bad) {
                    return until;
                }
            }
        }

        fn half_open(&mut self) {
            self.now = self.open();
            assert!(self.breaker.half_open());
        }
    }

    #[test]
    fn three_failures_in_a_row_open_it_for_thirty_seconds() {
        let mut bench = Bench::new();
        for _ in 0..2 {
            let ticket = bench.admit();
            assert_eq!(bench.end(ticket, Finding::Bad), None);
        }
        let ticket = bench.admit();
        let until = bench.end(ticket, Finding::Bad).expect("the third failure opens it");
        assert!(until >= Time::from_millis(30_000) && until < Time::from_millis(33_000), "{until:?}");
        assert!(!bench.breaker.admits());
    }

    #[test]
    fn a_success_between_failures_starts_the_count_again_and_a_mistake_does_not_count() {
        let mut bench = Bench::new();
        for finding in [Finding::Bad, Finding::Bad, Finding::Good, Finding::Bad, Finding::Nothing, Finding::Bad] {
            let ticket = bench.admit();
            assert_eq!(bench.end(ticket, finding), None);
        }
    }

    #[test]
    fn nothing_moves_the_deadline_of_an_open_breaker() {
        let mut bench = Bench::new();
        let early = bench.admit();
        let until = bench.open();
        bench.now = Time::from_millis(20_000);
        for finding in [Finding::Bad, Finding::Good, Finding::Nothing] {
            assert_eq!(bench.probe(finding), None);
            assert_eq!(bench.end(early, finding), None);
            assert_eq!(bench.breaker.open_until(), Some(until));
        }
    }

    #[test]
    fn half_open_admits_nobody_before_a_probe_has_passed() {
        let mut bench = Bench::new();
        bench.half_open();
        assert!(!bench.breaker.admits());
        bench.probe(Finding::Good);
        assert!(bench.breaker.admits());
    }

    #[test]
    fn half_open_admits_one_trial_at_a_time() {
        let mut bench = Bench::new();
        bench.half_open();
        bench.probe(Finding::Good);
        let trial = bench.admit();
        assert!(!bench.breaker.admits());
        bench.end(trial, Finding::Good);
        assert_eq!(bench.breaker.name(), "closed");
    }

    #[test]
    fn an_abandoned_trial_returns_its_permit() {
        let mut bench = Bench::new();
        bench.half_open();
        bench.probe(Finding::Good);
        let trial = bench.admit();
        bench.end(trial, Finding::Nothing);
        assert!(bench.breaker.admits());
    }

    #[test]
    fn a_trial_whose_answer_flows_lets_another_try_and_does_not_count_any_more() {
        let mut bench = Bench::new();
        bench.half_open();
        bench.probe(Finding::Good);
        let flowing = bench.admit();
        assert!(bench.breaker.give_back(flowing));
        assert!(bench.breaker.admits());
        let trial = bench.admit();
        bench.end(flowing, Finding::Bad);
        assert_eq!(bench.breaker.name(), "half_open");
        bench.end(trial, Finding::Good);
        assert_eq!(bench.breaker.name(), "closed");
        assert!(!bench.breaker.give_back(trial));
    }

    #[test]
    fn another_requests_end_does_not_return_the_trial() {
        let mut bench = Bench::new();
        let early = bench.admit();
        bench.half_open();
        bench.probe(Finding::Good);
        bench.admit();
        bench.end(early, Finding::Good);
        assert_eq!(bench.breaker.name(), "half_open");
        assert!(!bench.breaker.admits());
    }

    #[test]
    fn failed_trials_double_the_wait_up_to_five_minutes_and_a_good_request_forgets_them() {
        let mut bench = Bench::new();
        bench.half_open();
        let mut waits = Vec::new();
        for _ in 0..5 {
            let until = bench.probe(Finding::Bad).expect("a failed trial opens it again");
            waits.push((until - bench.now).as_secs());
            bench.now = until;
            assert!(bench.breaker.half_open());
        }
        for (wait, least) in waits.iter().zip([60, 120, 240, 300, 300]) {
            assert!((least..=least + least / 10).contains(wait), "{waits:?}");
        }
        bench.probe(Finding::Good);
        let trial = bench.admit();
        bench.end(trial, Finding::Good);
        let until = bench.open();
        assert!((until - bench.now).as_secs() <= 33);
    }

    #[test]
    fn two_probes_in_a_row_close_it_when_no_request_comes() {
        let mut bench = Bench::new();
        bench.half_open();
        bench.probe(Finding::Good);
        bench.probe(Finding::Good);
        assert_eq!(bench.breaker.name(), "closed");
    }

    #[test]
    fn closing_by_probes_alone_does_not_forget_how_often_it_opened() {
        let mut bench = Bench::new();
        bench.half_open();
        bench.probe(Finding::Good);
        bench.probe(Finding::Good);
        let until = bench.open();
        assert!((until - bench.now).as_secs() >= 60);
    }
}
