//! Which of several instances gets a request: of two drawn at random the less loaded one, unless the platform says otherwise
//! (see [`crate::config::Balance`]).
//!
//! Two random choices are almost as good as asking all and never herd (Mitzenmacher, 2001). In-flight counts alone
//! are too slow to see a frozen process, so an instance that is silent with work in hand counts as worse than one that
//! is not, whatever its count; and one that has long been silent as worse than one that is so for a moment, as any is
//! when the whole machine stumbles.

use std::cmp::Ordering;
use std::time::Duration;

use crate::random::Random;
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

/// What stands for a key or an instance in [`standing`]: FNV-1a (Fowler, Noll and Vo), the same in every run.
pub fn fingerprint(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// How well an instance stands with a key: the one that stands best gets its requests. Each new instance wins the keys
/// with which it stands best and no others move, which is as few as can be (highest random weight, Thaler and
/// Ravishankar, 1998).
pub fn standing(key: u64, instance: u64) -> u64 {
    Random::new(key ^ instance.rotate_left(32)).draw()
}

/// Turns among instances: each as often as its weight says, and never many times in a row (smooth weighted round robin,
/// as nginx has it).
#[derive(Debug, Default)]
pub struct Turns {
    /// What each is owed.
    credits: Vec<i64>,
}

impl Turns {
    /// Weights have changed and come to this together: nobody is owed, or owes, more than by these weights it can.
    pub fn reweigh(&mut self, total: u32) {
        let total = i64::from(total);
        self.credits.iter_mut().for_each(|credit| *credit = (*credit).clamp(-total, total));
    }

    /// Whose turn it is among these: positions below a few thousand, and their weights, which are not 0.
    pub fn next(&mut self, candidates: impl Iterator<Item = (usize, u32)>) -> Option<usize> {
        let mut best: Option<usize> = None;
        let mut total = 0;
        for (position, weight) in candidates {
            if self.credits.len() <= position {
                self.credits.resize(position + 1, 0);
            }
            total += i64::from(weight);
            self.credits[position] += i64::from(weight);
            if best.is_none_or(|best| self.credits[position] > self.credits[best]) {
                best = Some(position);
            }
        }
        self.credits[best?] -= total;
        best
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

    /// Which of so many instances has each of so many keys.
    fn owners(keys: u64, instances: u64) -> Vec<u64> {
        let identity = |instance: u64| fingerprint(format!("127.0.0.1:{}", 3000 + instance).as_bytes());
        let best = |key: u64| (0..instances).max_by_key(|instance| standing(key, identity(*instance)));
        let key = |number: u64| fingerprint(format!("user {number}").as_bytes());
        (0..keys).map(|number| best(key(number)).expect("there is an instance")).collect()
    }

    #[test]
    fn another_instance_takes_no_more_keys_than_its_share_and_no_other_key_moves() {
        const KEYS: u64 = 20_000;
        for instances in 1..20 {
            let (before, after) = (owners(KEYS, instances), owners(KEYS, instances + 1));
            let moved: Vec<u64> =
                before.iter().zip(&after).filter(|(old, new)| old != new).map(|(_, new)| *new).collect();
            assert!(moved.iter().all(|new| *new == instances), "a key moved between old instances");
            let share = moved.len() as f64 / KEYS as f64;
            assert!(share <= 1.0 / (instances + 1) as f64 + 0.05, "{share} of the keys moved to number {instances}");
        }
    }

    #[test]
    fn keys_are_spread_evenly() {
        let owners = owners(20_000, 8);
        for instance in 0..8 {
            let count = owners.iter().filter(|owner| **owner == instance).count();
            assert!((2_300..2_700).contains(&count), "instance {instance} has {count} of 20,000 keys");
        }
    }

    #[test]
    fn turns_follow_weights_and_are_interleaved() {
        let mut turns = Turns::default();
        let mut order = |candidates: &[(usize, u32)], count: usize| -> Vec<usize> {
            (0..count).filter_map(|_| turns.next(candidates.iter().copied())).collect()
        };
        assert_eq!(order(&[(0, 5), (1, 1), (2, 1)], 7), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(order(&[(1, 1), (2, 1)], 4), [1, 2, 1, 2]);
        assert_eq!(order(&[], 1), []);
    }

    #[test]
    fn what_was_owed_by_other_weights_is_soon_forgotten() {
        let mut turns = Turns::default();
        let mut order = |candidates: &[(usize, u32)], count: usize| -> Vec<usize> {
            turns.reweigh(candidates.iter().map(|(_, weight)| weight).sum());
            (0..count).filter_map(|_| turns.next(candidates.iter().copied())).collect()
        };
        order(&[(0, 1_000), (1, 1)], 502);
        let picked = order(&[(0, 1), (1, 1)], 8);
        assert!(picked.iter().filter(|position| **position == 1).count() >= 3, "{picked:?}");
    }
}
