//! What is counted: plain numbers that only the conductor adds to. Names and rendering are the reactor's.

use std::time::Duration;

use crate::event::{Outcome, Refusal, Verdict};

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
        let bucket = BUCKETS_US.partition_point(|bound| bound * 1000 < nanos);
        self.counts[bucket] += 1;
        self.sum_nanos = self.sum_nanos.saturating_add(nanos);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
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
    /// Requests kept as dead letters.
    pub buried: u64,
    /// Runs started after the first of each instance.
    pub restarts: u64,
    /// Times a breaker opened.
    pub opened: u64,
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

    /// Counts a probe.
    pub fn count_probe(&mut self, verdict: Verdict, took: Duration) {
        match verdict {
            Verdict::Pass => self.probes_passed += 1,
            Verdict::Fail => self.probes_failed += 1,
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
    fn tables_are_in_the_order_of_their_enums() {
        for (index, (outcome, _)) in OUTCOMES.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
        }
        for (index, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*refusal as usize, index);
        }
    }
}
