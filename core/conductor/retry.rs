//! Whether and when a failed request is tried again.

use std::time::Duration;

use crate::config;
use crate::event::Outcome;
use crate::random::Random;

/// Why an attempt failed, as far as trying again is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It ended in this way.
    Ended(Outcome),
    /// It took too long.
    TimedOut,
}

/// What is known of the request.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// Attempts that reached an instance, the failed one included.
    pub attempts: u32,
    /// Attempts that never reached one, the failed one included.
    pub misses: u32,
    /// Further attempts that the route allows.
    pub retries: u32,
    /// Whether the platform may be asked twice.
    pub idempotent: bool,
    /// Until the caller is told that time is up.
    pub time_left: Duration,
    /// How long whoever failed wants not to be asked again.
    pub after: Option<Duration>,
    /// Whether another instance takes requests, which said no such thing.
    pub has_other: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing was done: try elsewhere now, or here after a while if there is no other instance.
    AtOnce {
        /// How long that while is.
        otherwise: Duration,
    },
    /// Try after this long.
    After(Duration),
    /// It failed for good.
    GiveUp,
}

/// Requests that reached no instance are tried elsewhere so many times, whatever the route says: nothing was done.
const MISSES_MAX: u32 = 3;
/// As in the AWS SDKs' standard retry mode: with 500 tokens at most a hundred retries in a row, and in the long run
/// one for every five successes.
const COST: u32 = 5;
const COST_AFTER_TIMEOUT: u32 = 10;

/// What a platform's retries may still draw on.
#[derive(Clone, Debug)]
pub struct Budget {
    tokens: u32,
}

impl Budget {
    /// A full one.
    pub fn new(settings: &config::Retry) -> Budget {
        Budget { tokens: settings.tokens_max.count() }
    }

    /// A request succeeded.
    pub fn refill(&mut self, settings: &config::Retry) {
        self.tokens = (self.tokens + 1).min(settings.tokens_max.count());
    }

    /// Pays for a second instance to be asked while the first has not answered. Whether there was enough.
    pub fn pay_for_hedge(&mut self) -> bool {
        let is_enough = self.tokens >= COST;
        if is_enough {
            self.tokens -= COST;
        }
        is_enough
    }

    /// What is left.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Decides, and pays for the retry if there is to be one.
    pub fn decide(
        &mut self,
        failure: Failure,
        history: History,
        settings: &config::Retry,
        random: &mut Random,
    ) -> Decision {
        let cost = match failure {
            Failure::Ended(Outcome::Unsent) if history.misses <= MISSES_MAX => {
                return Decision::AtOnce { otherwise: full_jitter(history.misses - 1, settings, random) };
            }
            Failure::Ended(Outcome::Replied | Outcome::Mistaken | Outcome::Unsent) => return Decision::GiveUp,
            // A full instance did nothing, so trying again needs no idempotence.
            Failure::Ended(Outcome::Busy) => COST,
            Failure::Ended(Outcome::Failed | Outcome::Broken) if history.idempotent => COST,
            Failure::TimedOut if history.idempotent => COST_AFTER_TIMEOUT,
            Failure::Ended(Outcome::Failed | Outcome::Broken) | Failure::TimedOut => return Decision::GiveUp,
        };
        if history.attempts > history.retries || self.tokens < cost {
            return Decision::GiveUp;
        }
        let wait = full_jitter(history.attempts - 1, settings, random);
        let wait = history.after.filter(|_| !history.has_other).map_or(wait, |after| wait.max(after));
        if wait >= history.time_left {
            return Decision::GiveUp;
        }
        self.tokens -= cost;
        Decision::After(wait)
    }
}

/// Exponential back-off with full jitter (Brooker, AWS Architecture Blog, 2015): uniform below the capped exponential.
fn full_jitter(retry: u32, settings: &config::Retry, random: &mut Random) -> Duration {
    let longest = settings.base_ms.millis().saturating_mul(1 << retry.min(20)).min(settings.max_ms.millis());
    random.span_below(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONCE: History = History {
        attempts: 1,
        misses: 0,
        retries: 2,
        idempotent: true,
        time_left: Duration::from_secs(5),
        after: None,
        has_other: false,
    };

    fn decide(budget: &mut Budget, failure: Failure, history: History) -> Decision {
        budget.decide(failure, history, &config::Retry::default(), &mut Random::new(3))
    }

    fn full() -> Budget {
        Budget::new(&config::Retry::default())
    }

    #[test]
    fn what_may_have_been_done_is_tried_again_only_if_idempotent() {
        for failure in [Failure::Ended(Outcome::Broken), Failure::Ended(Outcome::Failed), Failure::TimedOut] {
            assert!(matches!(decide(&mut full(), failure, ONCE), Decision::After(_)));
            let once_only = History { idempotent: false, ..ONCE };
            assert_eq!(decide(&mut full(), failure, once_only), Decision::GiveUp);
        }
    }

    #[test]
    fn what_never_arrived_is_tried_elsewhere_at_once_a_few_times() {
        let missed = History { attempts: 0, misses: 3, retries: 0, idempotent: false, ..ONCE };
        let decision = decide(&mut full(), Failure::Ended(Outcome::Unsent), missed);
        assert!(matches!(decision, Decision::AtOnce { .. }), "{decision:?}");
        let often = History { misses: 4, ..missed };
        assert_eq!(decide(&mut full(), Failure::Ended(Outcome::Unsent), often), Decision::GiveUp);
    }

    #[test]
    fn a_route_without_retries_gives_up_after_the_first_failure() {
        let history = History { retries: 0, ..ONCE };
        assert_eq!(decide(&mut full(), Failure::Ended(Outcome::Broken), history), Decision::GiveUp);
    }

    #[test]
    fn a_spent_budget_stops_retries_until_successes_refill_it() {
        let mut budget = full();
        for _ in 0..50 {
            assert!(matches!(decide(&mut budget, Failure::TimedOut, ONCE), Decision::After(_)));
        }
        assert_eq!(decide(&mut budget, Failure::TimedOut, ONCE), Decision::GiveUp);
        for _ in 0..10 {
            budget.refill(&config::Retry::default());
        }
        assert!(matches!(decide(&mut budget, Failure::TimedOut, ONCE), Decision::After(_)));
    }

    #[test]
    fn whoever_says_when_to_come_back_is_not_asked_before_unless_there_is_another() {
        let asked = History { after: Some(Duration::from_secs(3)), ..ONCE };
        let Decision::After(wait) = decide(&mut full(), Failure::Ended(Outcome::Busy), asked) else {
            panic!("it is tried again")
        };
        assert!(wait >= Duration::from_secs(3));
        let elsewhere = History { has_other: true, ..asked };
        let Decision::After(wait) = decide(&mut full(), Failure::Ended(Outcome::Busy), elsewhere) else {
            panic!("it is tried again")
        };
        assert!(wait < Duration::from_secs(1));
        let too_late = History { after: Some(Duration::from_secs(5)), ..ONCE };
        assert_eq!(decide(&mut full(), Failure::Ended(Outcome::Busy), too_late), Decision::GiveUp);
    }

    #[test]
    fn a_retry_that_would_come_too_late_costs_nothing() {
        let mut budget = full();
        let late = History { time_left: Duration::ZERO, ..ONCE };
        assert_eq!(decide(&mut budget, Failure::TimedOut, late), Decision::GiveUp);
        assert_eq!(budget.tokens, full().tokens);
    }

    #[test]
    fn waits_grow_from_a_tenth_of_a_second_and_stay_below_twenty() {
        let settings = config::Retry::default();
        let mut random = Random::new(9);
        for (retry, longest) in [(0, 100), (1, 200), (4, 1600), (10, 20_000), (60, 20_000)] {
            let draws: Vec<Duration> = (0..200).map(|_| full_jitter(retry, &settings, &mut random)).collect();
            assert!(draws.iter().all(|wait| *wait < Duration::from_millis(longest)));
            assert!(draws.iter().any(|wait| *wait > Duration::from_millis(longest / 2)));
        }
    }
}
