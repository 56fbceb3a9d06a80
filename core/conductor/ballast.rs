//! What a platform is known to weigh at most, and how it has fared when RAM ran short.
//!
//! A peak counts for half a day later, whether Demi was ended in between or not. It is kept when it says more than what was
//! kept before: when it has risen by a twentieth, and once a day while it still stands; so a store on an SD card has a few
//! writes a day of it.

use std::time::Duration;

use crate::time::Time;

/// What a platform has weighed at most counts for half a day later.
const HALF_LIFE_S: u64 = 86_400;
/// A peak is kept again after this, if it was confirmed.
const KEPT_AGAIN: Duration = Duration::from_secs(86_400);
/// No two of a platform are kept closer together than this.
const KEPT_APART: Duration = Duration::from_secs(60);

/// The most that one instance of a platform has weighed.
#[derive(Clone, Copy, Debug, Default)]
struct Peak {
    bytes: u64,
    /// When it was told.
    at: Time,
    /// How long before that it was weighed: more than nothing only of what the store remembers.
    before: Duration,
}

impl Peak {
    fn age(&self, now: Time) -> Duration {
        (now - self.at).saturating_add(self.before)
    }

    /// What it counts for, bytes: halved with each day, on a straight line in between.
    fn now(&self, now: Time) -> u64 {
        let seconds = self.age(now).as_secs();
        let days = u32::try_from(seconds / HALF_LIFE_S).unwrap_or(u32::MAX);
        let halved = self.bytes.checked_shr(days).unwrap_or(0);
        halved - (halved / 2 / HALF_LIFE_S) * (seconds % HALF_LIFE_S)
    }
}

/// What a platform is known to weigh, and how it has fared.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ballast {
    peak: Peak,
    /// What was kept last.
    kept: Option<Peak>,
    pub(crate) restored_at: Option<Time>,
    /// How often in a row it was shed soon after it came back.
    pub(crate) relapses: u32,
    /// A person started it last then.
    pub(crate) by_hand_at: Option<Time>,
    pub(crate) refusal_told_at: Option<Time>,
}

impl Ballast {
    /// The most that one instance is expected to weigh, bytes; 0 if nobody knows.
    pub(crate) fn peak(&self, now: Time) -> u64 {
        self.peak.now(now)
    }

    /// One of its instances was found to weigh so much. Returns what is to be kept, bytes, if something is.
    pub(crate) fn weigh(&mut self, now: Time, bytes: u64) -> Option<u64> {
        if bytes >= self.peak(now) {
            self.peak = Peak { bytes, at: now, before: Duration::ZERO };
        }
        // One that had to wait for its turn is kept with the date of that.
        let is_new = self.peak.bytes > 0 && self.peak.age(now) <= KEPT_APART;
        let is_worth_it = self.kept.is_none_or(|kept| {
            let age = kept.age(now);
            age >= KEPT_AGAIN || age >= KEPT_APART && self.has_risen_above(kept)
        });
        (is_new && is_worth_it).then(|| self.keep(now))
    }

    /// What is still to be kept at the end, bytes, if something is: there is no later turn for it.
    pub(crate) fn at_end(&mut self, now: Time) -> Option<u64> {
        let is_worth_it = self.peak.bytes > 0 && self.kept.is_none_or(|kept| self.has_risen_above(kept));
        is_worth_it.then(|| self.keep(now))
    }

    fn has_risen_above(&self, kept: Peak) -> bool {
        self.peak.bytes > kept.bytes && self.peak.bytes - kept.bytes >= kept.bytes.div_ceil(20)
    }

    fn keep(&mut self, now: Time) -> u64 {
        self.kept = Some(Peak { at: now, before: Duration::ZERO, ..self.peak });
        self.peak.bytes
    }

    /// The store remembers what one of its instances weighed so long ago.
    pub(crate) fn recall(&mut self, now: Time, bytes: u64, age: Duration) {
        let peak = Peak { bytes, at: now, before: age };
        if peak.now(now) > self.peak(now) {
            self.peak = peak;
        }
        self.kept = Some(peak);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIGABYTE: u64 = 1_000_000_000;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_peak_fades_by_half_a_day_whether_demi_was_ended_in_between_or_not() {
        let mut lasting = Ballast::default();
        lasting.weigh(at(0), GIGABYTE);
        let mut ended = Ballast::default();
        ended.recall(at(0), GIGABYTE, Duration::from_secs(86_400 / 2));
        for hours in [0, 6, 12, 24, 48, 1_000_000] {
            let later = at((hours + 12) * 3_600);
            assert_eq!(lasting.peak(later), ended.peak(at(hours * 3_600)), "{hours} hours later");
        }
        assert_eq!((lasting.peak(at(86_400)), lasting.peak(at(2 * 86_400))), (GIGABYTE / 2, GIGABYTE / 4));
        assert!((749..=751).contains(&(lasting.peak(at(43_200)) / 1_000_000)));
        ended.recall(at(5), GIGABYTE, Duration::MAX);
        assert!(ended.peak(at(5)) > 0, "what is older takes nothing away");
    }

    #[test]
    fn what_has_risen_by_a_twentieth_is_kept_and_not_more_than_once_a_minute() {
        let mut ballast = Ballast::default();
        assert_eq!(ballast.weigh(at(0), 0), None, "nothing is no peak");
        assert_eq!(ballast.weigh(at(1), 1_000), Some(1_000), "the first");
        assert_eq!(ballast.weigh(at(2), 2_000), None, "too soon");
        assert_eq!(ballast.weigh(at(30), 100), None, "and too soon");
        assert_eq!(ballast.weigh(at(61), 100), Some(2_000), "its turn has come");
        assert_eq!(ballast.weigh(at(500), 2_099), None, "hardly more");
        assert_eq!(ballast.weigh(at(600), 2_100), Some(2_100));
        assert_eq!(ballast.weigh(at(601), u64::MAX), None);
        assert_eq!(ballast.weigh(at(661), u64::MAX), Some(u64::MAX));
        let kept = (0..3_600).filter(|second| ballast.weigh(at(1_000 + second), u64::MAX).is_some()).count();
        assert_eq!(kept, 0, "what stands is not kept all the while");
    }

    #[test]
    fn what_has_risen_just_before_the_end_is_kept_then() {
        let mut ballast = Ballast::default();
        assert_eq!(ballast.at_end(at(0)), None);
        assert_eq!((ballast.weigh(at(1), 1_000), ballast.weigh(at(2), 2_000)), (Some(1_000), None));
        assert_eq!((ballast.at_end(at(3)), ballast.at_end(at(3))), (Some(2_000), None));
    }

    #[test]
    fn what_stands_is_kept_once_a_day_and_what_was_not_seen_again_is_not() {
        let mut ballast = Ballast::default();
        ballast.recall(at(0), GIGABYTE, Duration::from_secs(80_000));
        assert_eq!(ballast.weigh(at(10), GIGABYTE), None, "the same, and not a day old");
        assert_eq!(ballast.weigh(at(6_400), 10), None, "a day old, and not seen again lately");
        let less = GIGABYTE / 100 * 98;
        assert_eq!(ballast.weigh(at(6_500), less), Some(less), "it has faded to less, and that is what it weighs now");
        let mut days = Ballast::default();
        let kept = (0..10 * 24 * 60).filter(|minute| days.weigh(at(minute * 60), GIGABYTE).is_some()).count();
        assert_eq!(kept, 10);
    }
}
