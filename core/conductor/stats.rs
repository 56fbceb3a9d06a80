//! What is counted: plain numbers that only the conductor adds to. Names and rendering are the reactor's.

use std::time::Duration;

use crate::breaker::{Cause, CAUSES};
use crate::event::{Exit, Outcome, Refusal, Verdict};
use crate::lifecycle::Reason;
use crate::time::Time;

/// Upper bounds of the buckets of a histogram of durations, microseconds: 100 µs to 10 s.
pub const BUCKETS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// Durations counted by bucket.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Not cumulative; the last is for what exceeds every bound.
    pub counts: [u64; BUCKETS_US.len() + 1],
    /// Sum of all durations, nanoseconds.
    pub sum_nanos: u64,
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(nanos)] += 1;
        self.sum_nanos = self.sum_nanos.saturating_add(nanos);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// By the octave of a number of nanoseconds: how many bounds are below all of it. Each bound is at least twice the one
/// before, so in no octave are there two, and one comparison more finds the bucket: this is done for every answer.
const BELOW_OCTAVE: [u8; 64] = {
    let mut below = [0; 64];
    let mut octave = 0;
    while octave < 64 {
        let mut bound = 0;
        while bound < BUCKETS_US.len() && BUCKETS_US[bound] * 1000 < 1 << octave {
            bound += 1;
        }
        below[octave] = bound as u8;
        octave += 1;
    }
    below
};

/// The first bucket whose bound is not below this.
fn bucket_of(nanos: u64) -> usize {
    let below = usize::from(BELOW_OCTAVE[nanos.max(1).ilog2() as usize]);
    below + usize::from(BUCKETS_US.get(below).is_some_and(|bound| bound * 1000 < nanos))
}

/// Octaves of microseconds that [`Recent`] tells apart, from 1 µs to over an hour, each in four parts.
const OCTAVES: usize = 32;
const PARTS: usize = 4;
/// Minutes that are remembered; the present one comes on top.
const MINUTES: usize = 5;
const MINUTE_NANOS: u64 = 60_000_000_000;

/// Durations of the last five to six minutes, for percentiles. Two neighbouring buckets differ by a quarter of their
/// octave, so a percentile is at most an eighth off.
#[derive(Clone, Debug)]
pub struct Recent {
    minutes: [[u32; OCTAVES * PARTS]; MINUTES + 1],
    /// The minute that is being filled, counted from the start of time.
    minute: u64,
}

impl Default for Recent {
    fn default() -> Self {
        Recent { minutes: [[0; OCTAVES * PARTS]; MINUTES + 1], minute: 0 }
    }
}

impl Recent {
    /// Counts one that ended now.
    pub fn record(&mut self, now: Time, took: Duration) {
        self.turn(now);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).clamp(1, (1 << OCTAVES) - 1);
        let octave = micros.ilog2() as usize;
        let part = if octave < 2 { 0 } else { (micros >> (octave - 2)) as usize & (PARTS - 1) };
        let present = self.minute as usize % (MINUTES + 1);
        self.minutes[present][octave * PARTS + part] += 1;
    }

    fn turn(&mut self, now: Time) {
        let minute = now.as_nanos() / MINUTE_NANOS;
        let steps = (minute - self.minute).min(MINUTES as u64 + 1);
        for step in 1..=steps {
            self.minutes[((minute - steps + step) % (MINUTES as u64 + 1)) as usize] = [0; OCTAVES * PARTS];
        }
        self.minute = minute;
    }

    /// How many there were, and the durations that these parts of a thousand of them did not exceed; zero if there were
    /// none.
    pub fn percentiles<const N: usize>(&self, now: Time, permille: [u64; N]) -> (u64, [Duration; N]) {
        let mut present = self.clone();
        present.turn(now);
        let counts: Vec<u64> = (0..OCTAVES * PARTS)
            .map(|bucket| present.minutes.iter().map(|minute| u64::from(minute[bucket])).sum())
            .collect();
        let count: u64 = counts.iter().sum();
        let percentile = |permille: u64| {
            let rank = (count * permille).div_ceil(1000).max(1);
            let mut below = 0;
            let bucket = counts.iter().position(|count| {
                below += count;
                below >= rank
            });
            bucket.map_or(Duration::ZERO, middle)
        };
        (count, permille.map(percentile))
    }
}

/// The middle of a bucket of [`Recent`].
fn middle(bucket: usize) -> Duration {
    let (octave, part) = (bucket / PARTS, bucket % PARTS);
    let width = (1u64 << octave) as f64 / PARTS as f64;
    let low = (1u64 << octave) as f64 + part as f64 * width;
    Duration::from_nanos(((low + width / 2.0) * 1000.0) as u64)
}

/// What is counted for each platform.
#[derive(Clone, Debug, Default)]
pub struct PlatformStats {
    /// Requests routed to it.
    pub asked: u64,
    /// Attempts by how they ended, in the order of [`OUTCOMES`].
    pub outcomes: [u64; OUTCOMES.len()],
    /// Attempts that ran out of time.
    pub timeouts: u64,
    /// Requests refused, in the order of [`Refusal::ALL`].
    pub refused: [u64; Refusal::ALL.len()],
    /// Attempts after the first.
    pub retries: u64,
    /// Requests that waited and gave way to more urgent ones.
    pub displaced: u64,
    /// Requests kept as dead letters.
    pub buried: u64,
    /// Requests that went on to the next platform of the route's `fallback`.
    pub passed_on: u64,
    /// Second instances that were asked while the first had not answered.
    pub hedges: u64,
    /// Those of them whose answer was the one that counted.
    pub hedges_won: u64,
    /// Runs started after the first of each instance, by why the one before ended, in the order of [`RESTARTS`].
    pub restarts: [u64; RESTARTS.len()],
    /// Times a breaker opened, by [cause](CAUSES).
    pub opened: [u64; CAUSES.len()],
    /// Times the platform's own breaker opened, by [cause](CAUSES).
    pub platform_opened: [u64; CAUSES.len()],
    /// Times a breaker tripped and its instance stayed in use, because it was the last one and its health check passed.
    pub acquitted: u64,
    /// Trials of half-open breakers, in the order of [`TRIALS`].
    pub trials: [u64; TRIALS.len()],
    /// Requests given to instances whose breakers are open, because most are.
    pub panics: u64,
    /// Probes that were left out, because an answer had shown the same.
    pub probes_spared: u64,
    /// Probes that found it alive and not ready for requests.
    pub probes_unready: u64,
    /// Probes that passed.
    pub probes_passed: u64,
    /// Probes that failed, lateness included.
    pub probes_failed: u64,
    /// Probes that found every hand full.
    pub probes_busy: u64,
    /// From question to answer, answered requests only.
    pub request_duration: Histogram,
    /// Probes that were not busy.
    pub probe_duration: Histogram,
    /// How long requests waited in the queue that did.
    pub queue_duration: Histogram,
    /// From question to answer in the last five minutes; made with the first answer.
    pub recent: Option<Box<Recent>>,
}

/// Why runs are started again: what ended the one before.
pub const RESTARTS: [&str; 11] = [
    "exited",
    "not_started",
    "out_of_memory",
    "start_timeout",
    "health",
    "wedged",
    "breaker",
    "limit",
    "dependency",
    "by_hand",
    "other",
];

/// Place in [`RESTARTS`].
pub(crate) fn restart_index(ended: Option<Reason>) -> usize {
    match ended {
        Some(Reason::Exited(Exit::NotStarted | Exit::NotInitialised)) => 1,
        Some(Reason::Exited(Exit::OutOfMemory)) => 2,
        Some(Reason::Exited(_)) => 0,
        Some(Reason::StartTimeout) => 3,
        Some(Reason::HealthFailed) => 4,
        Some(Reason::Wedged) => 5,
        Some(Reason::BreakerOpened | Reason::NotReinitialized) => 6,
        Some(Reason::MemoryLimit { .. } | Reason::ProcessLimit { .. } | Reason::DescriptorLimit { .. }) => 7,
        Some(Reason::NeedStopped | Reason::NeedRestarts) => 8,
        Some(Reason::ByHand) => 9,
        Some(_) | None => 10,
    }
}

/// How trials of half-open breakers end.
pub const TRIALS: [&str; 3] = ["passed", "failed", "returned"];

/// How a trial ended; its number is its place in [`TRIALS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrialEnd {
    Passed,
    Failed,
    /// It showed nothing, or took too long.
    Returned,
}

/// The outcomes of attempts, with their names in metrics.
pub const OUTCOMES: [(Outcome, &str); 6] = [
    (Outcome::Replied, "replied"),
    (Outcome::Mistaken, "mistaken"),
    (Outcome::Failed, "failed"),
    (Outcome::Broken, "broken"),
    (Outcome::Unsent, "unsent"),
    (Outcome::Busy, "busy"),
];

impl PlatformStats {
    /// Counts how an attempt ended.
    pub fn count_outcome(&mut self, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
    }

    /// Counts a refusal.
    pub fn count_refusal(&mut self, refusal: Refusal) {
        self.refused[refusal as usize] += 1;
    }

    /// Counts an answer that a caller was given.
    pub fn count_answer(&mut self, now: Time, took: Duration) {
        self.request_duration.record(took);
        self.recent.get_or_insert_default().record(now, took);
    }

    pub(crate) fn count_trial(&mut self, end: TrialEnd) {
        self.trials[end as usize] += 1;
    }

    pub(crate) fn count_opened(&mut self, cause: Cause) {
        self.opened[cause.index()] += 1;
    }

    /// Counts a probe.
    pub fn count_probe(&mut self, verdict: Verdict, took: Duration) {
        match verdict {
            Verdict::Pass => self.probes_passed += 1,
            Verdict::Fail => self.probes_failed += 1,
            Verdict::Unready => self.probes_unready += 1,
            Verdict::Busy => self.probes_busy += 1,
        }
        if verdict != Verdict::Busy {
            self.probe_duration.record(took);
        }
    }
}

/// What is counted for all of Demi.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Requests that no rule matched.
    pub no_route: u64,
    /// Requests whose caller hung up.
    pub gone: u64,
    /// News of an old run or an ended ticket, passed over.
    pub stale: u64,
    /// Errands that the store could not do.
    pub store_failures: u64,
    /// Events handled.
    pub events: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lands_in_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_micros(100));
        histogram.record(Duration::from_nanos(100_001));
        histogram.record(Duration::from_secs(60));
        assert_eq!(histogram.counts[..2], [1, 1]);
        assert_eq!(histogram.counts[BUCKETS_US.len()], 1);
        assert_eq!(histogram.count(), 3);
    }

    #[test]
    fn every_bucket_ends_with_its_bound() {
        for (index, bound) in BUCKETS_US.iter().map(|micros| micros * 1000).enumerate() {
            assert_eq!([bound - 1, bound, bound + 1].map(bucket_of), [index, index, index + 1]);
        }
        for nanos in (0..64).flat_map(|octave| [(1u64 << octave) - 1, 1 << octave, (1 << octave) + 1]) {
            assert_eq!(bucket_of(nanos), BUCKETS_US.partition_point(|bound| bound * 1000 < nanos), "{nanos} ns");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS_US.len());
    }

    #[test]
    fn a_percentile_is_at_most_an_eighth_off_and_forgets_after_six_minutes() {
        let mut recent = Recent::default();
        let now = Time::from_millis(59_000);
        for micros in 1..=1000 {
            recent.record(now, Duration::from_micros(micros * 10));
        }
        let (count, [half, most, all]) = recent.percentiles(now, [500, 950, 1000]);
        assert_eq!(count, 1000);
        for (told, true_micros) in [(half, 5_000.0), (most, 9_500.0), (all, 10_000.0)] {
            let off = told.as_secs_f64() * 1e6 / true_micros;
            assert!((0.875..=1.125).contains(&off), "{told:?} for {true_micros} us");
        }
        recent.record(Time::from_millis(61_000), Duration::from_secs(1));
        assert_eq!(recent.percentiles(Time::from_millis(300_000), [500]).0, 1001);
        assert_eq!(recent.percentiles(Time::from_millis(360_000), [500]).0, 1, "the first minute is over");
        assert_eq!(recent.percentiles(Time::from_millis(500_000), [500]), (0, [Duration::ZERO]));
    }

    #[test]
    fn tables_are_in_the_order_of_their_enums() {
        for (index, (outcome, _)) in OUTCOMES.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
        }
        for (index, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*refusal as usize, index);
        }
    }
}
