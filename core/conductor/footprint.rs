//! What a platform is known to weigh, and how it has fared when RAM ran short.
//!
//! | what | counts for |
//! |---|---|
//! | the most that an instance has weighed | halves every twenty minutes towards what is usual |
//! | what an instance weighs on average while any runs | an hour of it for half; while none runs it halves every day |
//! | the most of before Demi began | halves every day, until five minutes of weighing say more |
//!
//! So what has leaked does not stay away for what it will not weigh again soon. A peak is kept when it says more than what was
//! kept before: when it has risen by a twentieth, and once a day while it still stands; so a store on an SD card has a few writes a
//! day of it.

use std::time::Duration;

use crate::scaler::smoothing::gain;
use crate::time::Time;

/// What nobody has seen again halves in this time.
const HALF_LIFE_S: u64 = 86_400;
/// What it has weighed above the usual halves in this time.
const EXCESS_HALF_LIFE: Duration = Duration::from_secs(1_200);
/// Half-life of the average that is the usual, while it runs.
const USUAL_HALF_LIFE: Duration = Duration::from_secs(3_600);
/// So much weighing says more than what was known before Demi began.
const LEARNED: Duration = Duration::from_secs(300);
/// A weight that is told lasts as long as this before it is told again; what was told before lasted until then.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// Growth is told over so many marks, this far apart…
const MARKS: usize = 3;
const MARK_EVERY: Duration = Duration::from_secs(10);
/// …and not of a run that has been weighed for less than this.
const GROWTH_MIN: Duration = Duration::from_secs(5);
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

    /// What it counts for, bytes, if nothing has been weighed since.
    fn now(&self, now: Time) -> u64 {
        halved_daily(self.bytes, self.age(now))
    }
}

/// Halved with each day, on a straight line in between.
fn halved_daily(bytes: u64, age: Duration) -> u64 {
    let seconds = age.as_secs();
    let days = u32::try_from(seconds / HALF_LIFE_S).unwrap_or(u32::MAX);
    let halved = bytes.checked_shr(days).unwrap_or(0);
    halved - (halved / 2 / HALF_LIFE_S) * (seconds % HALF_LIFE_S)
}

/// How what one run weighs has moved in the last half minute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trend {
    at: Time,
    bytes: u64,
    /// What it weighed at some moments before, oldest first.
    marks: [(Time, u64); MARKS],
}

impl Trend {
    /// It weighs so much when it is first weighed, bytes.
    pub(crate) fn begin(now: Time, bytes: u64) -> Trend {
        Trend { at: now, bytes, marks: [(now, bytes); MARKS] }
    }

    fn take(&mut self, now: Time, bytes: u64) {
        if now - self.marks[MARKS - 1].0 >= MARK_EVERY {
            let [(held, _), _] = lasting(self.at, self.bytes, now, bytes);
            self.marks.rotate_left(1);
            self.marks[MARKS - 1] = (self.at + held, self.bytes);
        }
        (self.at, self.bytes) = (now, bytes);
    }

    /// How fast it grows, bytes a second; 0 if it does not.
    pub(crate) fn growth_bytes_per_s(&self) -> u64 {
        let span = self.at - self.marks[0].0;
        if span < GROWTH_MIN {
            return 0;
        }
        (self.rise_bytes() as f64 / span.as_secs_f64()) as u64
    }

    /// How much more it weighs than half a minute ago, bytes.
    pub(crate) fn rise_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.marks[0].1)
    }
}

/// For how long which weight held: the one that was told first, until shortly before the next was.
fn lasting(then: Time, before: u64, now: Time, bytes: u64) -> [(Duration, u64); 2] {
    let last = (now - then).min(TOLD_EVERY);
    [(now - then - last, before), (last, bytes)]
}

/// What a platform is known to weigh, and how it has fared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Footprint {
    peak: Peak,
    /// What an instance weighs on average, bytes; over how long; and when one was last weighed.
    usual: f64,
    weighed_for: Duration,
    weighed_at: Option<Time>,
    /// When that began to say more than what was known before.
    learned_at: Time,
    /// What was kept last.
    kept: Option<Peak>,
    pub(crate) restored_at: Option<Time>,
    /// How often in a row it was shed soon after it came back.
    pub(crate) relapses: u32,
    /// A person started it last then.
    pub(crate) by_hand_at: Option<Time>,
    pub(crate) refusal_told_at: Option<Time>,
    /// It was not shed, but was not started, because it did not fit.
    pub(crate) is_held: bool,
}

impl Footprint {
    /// The most that one instance is expected to weigh, bytes; 0 if nobody knows.
    pub(crate) fn peak(&self, now: Time) -> u64 {
        if self.weighed_for < LEARNED {
            return self.peak.now(now);
        }
        let usual = self.usual(now);
        let excess = self.peak.bytes.saturating_sub(usual) as f64;
        let left = 1.0 - gain(now - self.peak.at.max(self.learned_at), EXCESS_HALF_LIFE);
        usual + (excess * left) as u64
    }

    /// What one instance weighs on average, bytes; 0 if nobody knows.
    fn usual(&self, now: Time) -> u64 {
        self.weighed_at.map_or(0, |at| halved_daily(self.usual.round() as u64, now - at))
    }

    /// Whether so many bytes are more than what an instance weighs going to and fro: half more than on average. Nobody can tell
    /// before it has been weighed for so long.
    pub(crate) fn is_unusual(&self, bytes: u64, least: Duration) -> bool {
        self.weighed_for >= least && bytes as f64 > self.usual * 1.5
    }

    /// One of so many instances was found to weigh so much, whose run has moved as told. Returns what is to be kept, bytes, if
    /// something is.
    pub(crate) fn weigh(&mut self, now: Time, bytes: u64, trend: &mut Trend, instances: u32) -> Option<u64> {
        self.average(now, bytes, trend, instances.max(1));
        trend.take(now, bytes);
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

    fn average(&mut self, now: Time, bytes: u64, trend: &Trend, instances: u32) {
        let before = self.peak(now);
        if self.weighed_at.is_none() {
            self.usual = bytes as f64;
        } else if trend.at == now {
            // While none ran there was nothing to average.
            self.usual = self.usual(now) as f64;
        }
        self.weighed_at = Some(now);
        let had_learned = self.weighed_for >= LEARNED;
        for (span, level) in lasting(trend.at, trend.bytes, now, bytes) {
            let span = span / instances;
            self.weighed_for = self.weighed_for.saturating_add(span);
            // As much as the mean of a first hour, and later one that forgets.
            let share = span.as_secs_f64() / self.weighed_for.as_secs_f64().max(f64::MIN_POSITIVE);
            self.usual += gain(span, USUAL_HALF_LIFE).max(share) * (level as f64 - self.usual);
        }
        if !had_learned && self.weighed_for >= LEARNED {
            // From what it counted for until now it fades from now on.
            (self.peak.bytes, self.learned_at) = (before.max(bytes), now);
        }
    }

    /// A run of it has ended: what is to be kept now, bytes, if something is, since there may be no later turn for it.
    pub(crate) fn at_end_of_run(&mut self, now: Time) -> Option<u64> {
        let is_worth_it = self.peak.bytes > 0 && self.kept.is_none_or(|kept| self.has_risen_above(kept));
        is_worth_it.then(|| self.keep(now))
    }

    /// Demi ends: the same, and what it counts for by now if that is less.
    pub(crate) fn at_end(&mut self, now: Time) -> Option<u64> {
        let counts = self.peak(now);
        let has_fallen = self.kept.is_some_and(|kept| counts < kept.bytes - kept.bytes / 20);
        if counts > 0 && has_fallen {
            self.peak = Peak { bytes: counts, at: now, before: Duration::ZERO };
            return Some(self.keep(now));
        }
        self.at_end_of_run(now)
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

    /// A platform of one instance, and its run.
    #[derive(Debug)]
    struct Weighed(Footprint, Option<Trend>);

    impl Weighed {
        fn new() -> Weighed {
            Weighed(Footprint::default(), None)
        }

        fn weigh(&mut self, now: Time, bytes: u64) -> Option<u64> {
            let trend = self.1.get_or_insert(Trend::begin(now, bytes));
            self.0.weigh(now, bytes, trend, 1)
        }

        /// So much every second, so long.
        fn lasts(&mut self, from: u64, seconds: u64, bytes: impl Fn(u64) -> u64) {
            for second in 0..seconds {
                self.weigh(at(from + second), bytes(second));
            }
        }

        fn growth(&self) -> u64 {
            self.1.map_or(0, |trend| trend.growth_bytes_per_s())
        }
    }

    #[test]
    fn what_was_learned_before_demi_began_fades_by_half_a_day_until_enough_is_weighed() {
        let recalled = |hours: u64| {
            let mut footprint = Footprint::default();
            footprint.recall(at(0), GIGABYTE, Duration::from_secs(hours * 3_600));
            footprint
        };
        let after = |hours: u64| recalled(hours).peak(at(12 * 3_600));
        assert_eq!([after(12), after(36)], [GIGABYTE / 2, GIGABYTE / 4]);
        assert!((749..=751).contains(&(after(0) / 1_000_000)));
        let mut footprint = recalled(0);
        footprint.recall(at(5), GIGABYTE, Duration::MAX);
        assert_eq!(footprint.peak(at(5)), GIGABYTE - GIGABYTE / 2 / 86_400 * 5, "what is older takes nothing away");
        // One that has begun small may still come to what it weighed yesterday.
        let mut weighed = Weighed(recalled(24), None);
        weighed.lasts(0, 290, |_| GIGABYTE / 100);
        assert!((498..=500).contains(&(weighed.0.peak(at(290)) / 1_000_000)), "{}", weighed.0.peak(at(290)));
        weighed.lasts(290, 1_210, |_| GIGABYTE / 100);
        assert!((240..=265).contains(&(weighed.0.peak(at(1_500)) / 1_000_000)), "{}", weighed.0.peak(at(1_500)));
    }

    #[test]
    fn a_peak_fades_to_what_is_usual_by_half_in_twenty_minutes_and_that_by_half_a_day() {
        let mut weighed = Weighed::new();
        weighed.lasts(0, 7_200, |_| GIGABYTE / 10);
        assert!(GIGABYTE / 10 - weighed.0.peak(at(7_200)) < 1_000, "it is always the same");
        weighed.lasts(7_200, 60, |second| GIGABYTE / 10 + second * 15_000_000);
        let usual = weighed.0.usual(at(7_259)) / 1_000_000;
        assert!((100..=106).contains(&usual), "a minute changes little: {usual}");
        let excess = |minutes: u64| weighed.0.peak(at(7_259 + minutes * 60)) / 1_000_000 - usual;
        assert!((875..=885).contains(&excess(0)), "{}", excess(0));
        assert!((436..=442).contains(&excess(20)) && (216..=221).contains(&excess(40)), "{}", excess(20));
        weighed.1 = None;
        weighed.lasts(50_000, 10, |_| 1_000_000);
        let before = GIGABYTE / 10 - GIGABYTE / 10 / 2 / 86_400 * 43_000;
        assert!(weighed.0.usual(at(50_010)) > before / 100 * 98, "while it did not run there was nothing to average");
        assert!(weighed.0.peak(at(50_010 + 30 * 86_400)) < 1_000, "what nobody has seen for a month");
    }

    #[test]
    fn what_is_not_told_again_has_lasted() {
        let (mut each, mut seldom) = (Weighed::new(), Weighed::new());
        let steps =
            |second: u64| if second < 3_000 { GIGABYTE / 10 } else { GIGABYTE / 10 + (second - 3_000) * 1_000_000 };
        each.lasts(0, 3_060, steps);
        seldom.weigh(at(0), steps(0));
        for second in 3_000..3_060 {
            seldom.weigh(at(second), steps(second));
        }
        let close = |one: u64, other: u64| one.abs_diff(other) * 1_000 <= one.max(other);
        assert!(close(each.0.usual(at(3_060)), seldom.0.usual(at(3_060))), "{each:?} {seldom:?}");
        assert!(close(each.growth(), seldom.growth()), "{} {}", each.growth(), seldom.growth());
    }

    #[test]
    fn unequal_instances_have_a_trend_each_and_one_average() {
        let mut footprint = Footprint::default();
        let mut trends = [Trend::begin(at(0), 50), Trend::begin(at(0), 650)];
        for second in 1..600 {
            for (trend, bytes) in trends.iter_mut().zip([50, 650]) {
                footprint.weigh(at(second), bytes, trend, 2);
            }
        }
        assert!((340..=360).contains(&footprint.usual(at(600))), "{footprint:?}");
        assert_eq!(trends.map(|trend| (trend.rise_bytes(), trend.growth_bytes_per_s())), [(0, 0); 2]);
    }

    #[test]
    fn growth_is_told_of_what_grows_and_what_is_unusual_is_half_more_than_the_average() {
        let teeth = |second: u64| GIGABYTE / 2 + second % 180 * 3_000_000;
        let mut weighed = Weighed::new();
        let long = Duration::from_secs(30);
        weighed.lasts(0, 20, teeth);
        assert!(!weighed.0.is_unusual(GIGABYTE * 10, long), "nobody knows yet");
        weighed.lasts(20, 3_580, teeth);
        assert!(!weighed.0.is_unusual(teeth(179), long), "it goes to and fro");
        weighed.lasts(3_600, 120, |second| GIGABYTE + second * 10_000_000);
        assert!((9..=10).contains(&(weighed.growth() / 1_000_000)), "10 MB/s: {}", weighed.growth());
        assert!(weighed.0.is_unusual(2 * GIGABYTE, long));
        weighed.1 = None;
        weighed.lasts(3_720, 1, |_| GIGABYTE / 10);
        assert_eq!(weighed.growth(), 0, "another run");
    }

    #[test]
    fn what_has_risen_by_a_twentieth_is_kept_and_not_more_than_once_a_minute() {
        let mut footprint = Weighed::new();
        assert_eq!(footprint.weigh(at(0), 0), None, "nothing is no peak");
        assert_eq!(footprint.weigh(at(1), 1_000), Some(1_000), "the first");
        assert_eq!(footprint.weigh(at(2), 2_000), None, "too soon");
        assert_eq!(footprint.weigh(at(30), 100), None, "and too soon");
        assert_eq!(footprint.weigh(at(61), 100), Some(2_000), "its turn has come");
        assert_eq!(footprint.weigh(at(500), 2_099), None, "hardly more");
        assert_eq!(footprint.weigh(at(600), 2_100), Some(2_100));
        assert_eq!(footprint.weigh(at(601), u64::MAX), None);
        assert_eq!(footprint.weigh(at(661), u64::MAX), Some(u64::MAX));
        let kept = (0..3_600).filter(|second| footprint.weigh(at(1_000 + second), u64::MAX).is_some()).count();
        assert_eq!(kept, 0, "what stands is not kept all the while");
    }

    #[test]
    fn what_has_risen_just_before_the_end_is_kept_then() {
        let mut footprint = Weighed::new();
        assert_eq!(footprint.0.at_end(at(0)), None);
        assert_eq!((footprint.weigh(at(1), 1_000), footprint.weigh(at(2), 2_000)), (Some(1_000), None));
        assert_eq!((footprint.0.at_end_of_run(at(3)), footprint.0.at_end(at(3))), (Some(2_000), None));
        footprint.lasts(4, 3_600, |_| 500);
        let less = footprint.0.at_end(at(3_604)).expect("it counts for less by now");
        assert!((500..750).contains(&less), "{less}");
    }

    #[test]
    fn what_stands_is_kept_once_a_day_and_what_was_not_seen_again_is_not() {
        let mut footprint = Weighed::new();
        footprint.0.recall(at(0), GIGABYTE, Duration::from_secs(80_000));
        assert_eq!(footprint.weigh(at(10), GIGABYTE), None, "the same, and not a day old");
        footprint.1 = None;
        assert_eq!(footprint.weigh(at(6_400), 10), None, "a day old, and not seen again lately");
        let less = GIGABYTE / 100 * 98;
        assert_eq!(
            footprint.weigh(at(6_500), less),
            Some(less),
            "it has faded to less, and that is what it weighs now"
        );
        let mut days = Weighed::new();
        let kept = (0..10 * 24 * 60).filter(|minute| days.weigh(at(minute * 60), GIGABYTE).is_some()).count();
        assert_eq!(kept, 10);
    }
}
