//! What a platform is known to weigh at most, and how it has fared when RAM ran short.
//!
//! A peak fades to what an instance usually weighs, half in an hour, so that what has leaked does not stay away for what it will
//! not weigh again soon; where nothing is known of that, it counts for half a day later, whether Demi was ended in between or not.
//! It is kept when it says more than what was
//! kept before: when it has risen by a twentieth, and once a day while it still stands; so a store on an SD card has a few
//! writes a day of it.

use std::time::Duration;

use crate::scaler::smoothing::Ewma;
use crate::time::Time;

/// What a platform has weighed at most counts for half a day later, where nobody knows what it usually weighs.
const HALF_LIFE_S: u64 = 86_400;
/// What it has weighed above the usual counts for half an hour later.
const EXCESS_HALF_LIFE_S: f64 = 1_200.0;
/// Half-life of the average that is the usual, while it runs.
const USUAL_HALF_LIFE: Duration = Duration::from_secs(3_600);
/// Two weighings further apart than this have none between them that was missed, but a time in which nothing ran.
const WEIGHED_EVERY_MAX: Duration = Duration::from_secs(5);
/// Half-lives of two averages whose difference tells how fast it grows: of a line, the longer lags behind by more.
const SHORT_HALF_LIFE: Duration = Duration::from_secs(10);
const LONG_HALF_LIFE: Duration = Duration::from_secs(60);
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
#[derive(Clone, Debug)]
pub(crate) struct Ballast {
    peak: Peak,
    /// What an instance weighs on average, bytes, over how long any has run; and when one was last weighed.
    usual: f64,
    ran: Duration,
    weighed_at: Option<Time>,
    /// What was found then, bytes.
    weighs: f64,
    /// Averages of the present run.
    short: Ewma,
    long: Ewma,
    /// What was kept last.
    kept: Option<Peak>,
    pub(crate) restored_at: Option<Time>,
    /// How often in a row it was shed soon after it came back.
    pub(crate) relapses: u32,
    /// A person started it last then.
    pub(crate) by_hand_at: Option<Time>,
    pub(crate) refusal_told_at: Option<Time>,
}

impl Default for Ballast {
    fn default() -> Ballast {
        Ballast {
            peak: Peak::default(),
            usual: 0.0,
            ran: Duration::ZERO,
            weighed_at: None,
            weighs: 0.0,
            short: Ewma::new(SHORT_HALF_LIFE),
            long: Ewma::new(LONG_HALF_LIFE),
            kept: None,
            restored_at: None,
            relapses: 0,
            by_hand_at: None,
            refusal_told_at: None,
        }
    }
}

impl Ballast {
    /// The most that one instance is expected to weigh, bytes; 0 if nobody knows.
    pub(crate) fn peak(&self, now: Time) -> u64 {
        if self.weighed_at.is_none() {
            return self.peak.now(now);
        }
        let usual = self.usual as u64;
        let excess = self.peak.bytes.saturating_sub(usual) as f64;
        let left = (-self.peak.age(now).as_secs_f64() / EXCESS_HALF_LIFE_S).exp2();
        usual + (excess * left) as u64
    }

    /// How fast one instance grows beyond what it usually weighs, bytes a second; 0 if it does not.
    pub(crate) fn growth(&self) -> u64 {
        let (Some(short), Some(long)) = (self.short.level(), self.long.level()) else { return 0 };
        // An average lags behind a line by its half-life over ln 2.
        let lag = (LONG_HALF_LIFE - SHORT_HALF_LIFE).as_secs_f64() / std::f64::consts::LN_2;
        if short > self.usual {
            ((short - long) / lag).max(0.0) as u64
        } else {
            0
        }
    }

    /// How much more one instance weighs than it did on average in the last minute or two, bytes.
    pub(crate) fn risen(&self) -> u64 {
        self.long.level().map_or(0, |long| (self.weighs - long).max(0.0) as u64)
    }

    /// Another run weighs something else from its beginning, and that is no growth.
    pub(crate) fn begin(&mut self) {
        (self.short, self.long) = (Ewma::new(SHORT_HALF_LIFE), Ewma::new(LONG_HALF_LIFE));
    }

    /// One of its instances was found to weigh so much. Returns what is to be kept, bytes, if something is.
    pub(crate) fn weigh(&mut self, now: Time, bytes: u64) -> Option<u64> {
        self.average(now, bytes as f64);
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

    fn average(&mut self, now: Time, bytes: f64) {
        // While none ran there was nothing to average.
        let span = self.weighed_at.replace(now).map_or(WEIGHED_EVERY_MAX, |at| (now - at).min(WEIGHED_EVERY_MAX));
        self.ran = self.ran.saturating_add(span);
        // As much as a first hour's mean, and later one that forgets.
        let gain = 1.0 - (-span.as_secs_f64() / USUAL_HALF_LIFE.as_secs_f64()).exp2();
        let share = span.as_secs_f64() / self.ran.as_secs_f64().max(f64::MIN_POSITIVE);
        self.usual += gain.max(share) * (bytes - self.usual);
        self.weighs = bytes;
        self.short.take(now, bytes);
        self.long.take(now, bytes);
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

    /// One that weighs so much every second, so long.
    fn weigh_for(ballast: &mut Ballast, from: u64, seconds: u64, bytes: impl Fn(u64) -> u64) {
        for second in 0..seconds {
            ballast.weigh(at(from + second), bytes(second));
        }
    }

    #[test]
    fn what_was_learned_before_demi_began_fades_by_half_a_day_until_something_is_weighed() {
        let recalled = |hours: u64| {
            let mut ballast = Ballast::default();
            ballast.recall(at(0), GIGABYTE, Duration::from_secs(hours * 3_600));
            ballast.peak(at(12 * 3_600))
        };
        assert_eq!([recalled(12), recalled(36)], [GIGABYTE / 2, GIGABYTE / 4]);
        assert!((749..=751).contains(&(recalled(0) / 1_000_000)));
        let mut ballast = Ballast::default();
        ballast.recall(at(0), GIGABYTE, Duration::ZERO);
        ballast.recall(at(5), GIGABYTE, Duration::MAX);
        assert_eq!(ballast.peak(at(5)), GIGABYTE - GIGABYTE / 2 / 86_400 * 5, "what is older takes nothing away");
    }

    #[test]
    fn a_peak_fades_to_what_is_usual_by_half_in_twenty_minutes() {
        let mut ballast = Ballast::default();
        weigh_for(&mut ballast, 0, 7_200, |_| GIGABYTE / 10);
        assert_eq!(ballast.peak(at(7_200)), GIGABYTE / 10, "it is always the same");
        weigh_for(&mut ballast, 7_200, 60, |second| GIGABYTE / 10 + second * 15_000_000);
        let usual = ballast.usual as u64;
        assert!((100..=106).contains(&(usual / 1_000_000)), "a minute changes little: {usual}");
        let excess = |minutes: u64| (ballast.peak(at(7_259 + minutes * 60)) - usual) / 1_000_000;
        let top = excess(0);
        assert!((875..=885).contains(&top), "{top}");
        assert_eq!([excess(20), excess(40)].map(|left| left.abs_diff(top / 2).min(left.abs_diff(top / 4))), [0, 0]);
        weigh_for(&mut ballast, 50_000, 10, |_| 1_000_000);
        assert!(ballast.usual as u64 > usual / 100 * 98, "while it did not run there was nothing to average");
    }

    #[test]
    fn growth_is_told_of_what_grows_beyond_the_usual_and_of_nothing_else() {
        let steady = |second: u64| GIGABYTE + second % 7 * 1_000_000;
        let mut ballast = Ballast::default();
        weigh_for(&mut ballast, 0, 600, steady);
        assert!(ballast.growth() < 200_000, "{}", ballast.growth());
        weigh_for(&mut ballast, 600, 120, |second| GIGABYTE + second * 10_000_000);
        assert!((6..=10).contains(&(ballast.growth() / 1_000_000)), "10 MB/s: {}", ballast.growth());
        ballast.begin();
        assert_eq!(ballast.growth(), 0, "another run");
        weigh_for(&mut ballast, 720, 20, |second| GIGABYTE / 10 + second * 10_000_000);
        assert_eq!(ballast.growth(), 0, "it comes to what it usually weighs");
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
