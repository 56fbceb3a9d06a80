//! Which of several instances gets a request: of two drawn at random the less loaded one.
//!
//! Two random choices are almost as good as asking all and never herd (Mitzenmacher, 2001). In-flight counts alone
//! are too slow to see a frozen process, so an instance that is silent with work in hand counts as worse than one that
//! is not, whatever its count; and one that has long been silent as worse than one that is so for a moment, as any is
//! when the whole machine stumbles.

use std::cmp::Ordering;
use std::time::Duration;

use crate::time::Time;

/// How long an instance that has work in hand has not answered anything, against what it usually takes: 0 is not
/// unusual, 1 is up to twice the bound of that, 2 up to four times, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Silence(u8);

/// Silence is unusual when it lasts longer than this many times the usual answer…
const USUAL_TIMES: u32 = 8;
/// …and longer than this, which the scheduling of a loaded machine explains by itself.
const USUAL_MIN: Duration = Duration::from_millis(5);
/// Beyond a hundred times the bound nobody needs to know how much longer.
const LEVEL_MAX: u8 = 7;

impl Silence {
    /// It has nothing in hand, or has just answered.
    pub const NONE: Silence = Silence(0);
    /// A request of its run ran out of time and nothing was heard of it since.
    pub const SUSPECT: Silence = Silence(LEVEL_MAX + 1);

    /// Of an instance that last answered, or went from idle to busy, so long ago, and usually answers within `usual`.
    pub fn lasting(since_progress: Duration, usual: Duration) -> Silence {
        let mut bound = USUAL_MIN.max(usual * USUAL_TIMES);
        let mut level = 0;
        while since_progress > bound && level < LEVEL_MAX {
            bound *= 2;
            level += 1;
        }
        Silence(level)
    }
}

/// What an answer usually takes, after one more that took so long: an eighth of it and seven eighths of before, as TCP
/// smooths its round-trip times (RFC 6298).
pub fn usual_after(usual: Duration, took: Duration) -> Duration {
    usual - usual / 8 + took / 8
}

/// How loaded an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Whether it can be expected to answer.
    pub silence: Silence,
    /// Requests that wait for its answer.
    pub in_flight: u32,
    /// When it last answered, or last went from nothing in hand to something; zero if it has nothing in hand.
    pub progress: Time,
}

impl Load {
    /// Less is better: less silent, then fewer in flight, then heard of more recently.
    pub fn compare(&self, other: &Load) -> Ordering {
        self.silence
            .cmp(&other.silence)
            .then(self.in_flight.cmp(&other.in_flight))
            .then(other.progress.cmp(&self.progress))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Load = Load { silence: Silence::NONE, in_flight: 0, progress: Time::ZERO };
    const USUAL: Duration = Duration::from_millis(1);

    fn silent_for(millis: u64) -> Silence {
        Silence::lasting(Duration::from_millis(millis), USUAL)
    }

    #[test]
    fn fewer_in_flight_wins_and_among_equals_the_one_that_spoke_last() {
        let busy = Load { in_flight: 2, ..IDLE };
        let lively = Load { progress: Time::from_millis(1), ..IDLE };
        assert_eq!(IDLE.compare(&busy), Ordering::Less);
        assert_eq!(lively.compare(&IDLE), Ordering::Less);
    }

    #[test]
    fn an_unusually_silent_instance_is_worse_than_a_busy_one() {
        let silent = Load { silence: silent_for(9), in_flight: 1, ..IDLE };
        let busy = Load { silence: silent_for(8), in_flight: 30, ..IDLE };
        assert_eq!(busy.compare(&silent), Ordering::Less);
    }

    #[test]
    fn when_the_whole_machine_stumbles_a_frozen_instance_is_still_the_worse() {
        let frozen = Load { silence: silent_for(200), in_flight: 1, ..IDLE };
        let stumbling = Load { silence: silent_for(80), in_flight: 30, ..IDLE };
        assert_eq!(stumbling.compare(&frozen), Ordering::Less);
        assert!(Silence::SUSPECT > silent_for(1_000_000));
    }

    #[test]
    fn what_is_usual_for_a_slow_platform_is_no_silence() {
        let slow = Duration::from_secs(2);
        assert_eq!(Silence::lasting(Duration::from_secs(10), slow), Silence::NONE);
    }

    #[test]
    fn the_usual_follows_what_answers_take() {
        let mut usual = Duration::ZERO;
        for _ in 0..50 {
            usual = usual_after(usual, Duration::from_millis(100));
        }
        assert!(usual > Duration::from_millis(95) && usual <= Duration::from_millis(100), "{usual:?}");
    }
}
