//! What each platform did and used in each minute, gathered for the store.

use std::time::Duration;

use demi_conductor::stats::{Histogram, PlatformStats, BUCKETS_US};
use demi_conductor::{Conductor, Outcome, PlatformStatus, Time};

use super::Shell;
use crate::api;
use crate::chronicle::unix_ms;
use crate::clerk::Clerk;
use crate::store::Minute;

const MINUTE_MS: u64 = 60_000;
/// A minute of which less is left is not begun: what is counted in it belongs to the next.
const BEGUN_MS: u64 = 1_000;

/// When the next minute is over, and what had been counted of each platform when the last one was.
pub(super) struct MinuteBook {
    /// `None` if nothing is kept.
    next_at: Option<Time>,
    /// By the index of the platform, as far as any was seen.
    before: Vec<Counted>,
}

/// What is counted of a platform since the start.
#[derive(Clone, Default)]
struct Counted {
    asked: u64,
    errors: u64,
    durations: Histogram,
}

impl MinuteBook {
    pub(super) fn new(days: u64) -> MinuteBook {
        MinuteBook { next_at: (days > 0).then_some(Time::ZERO), before: Vec::new() }
    }

    pub(super) fn next_at(&self) -> Option<Time> {
        self.next_at
    }
}

impl Counted {
    fn of(stats: &PlatformStats) -> Counted {
        let failures = [Outcome::Failed, Outcome::Broken, Outcome::Unsent];
        let failed: u64 = failures.iter().map(|outcome| stats.outcomes[*outcome as usize]).sum();
        Counted { asked: stats.asked, errors: failed + stats.timeouts, durations: stats.request_duration.clone() }
    }

    /// What has been counted since `before`.
    fn since(&self, before: &Counted) -> Minute {
        let mut counts = self.durations.counts;
        counts.iter_mut().zip(before.durations.counts).for_each(|(count, before)| *count -= before);
        let answered: u64 = counts.iter().sum();
        let sum_us = self.durations.sum_nanos.saturating_sub(before.durations.sum_nanos) / 1000;
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Minute {
            requests: small(self.asked - before.asked),
            errors: small(self.errors - before.errors),
            // An answer that took less than a microsecond was an answer.
            mean_us: sum_us.checked_div(answered).map_or(0, |mean| small(mean.max(1))),
            p95_us: small(percentile_us(&counts, answered, 950)),
            memory_kb: None,
        }
    }
}

/// The duration, microseconds, that so many of a thousand did not exceed, as if those of a bucket were spread evenly over
/// it; of those beyond the last bound, that bound. 0 if there were none.
fn percentile_us(counts: &[u64; BUCKETS_US.len() + 1], all: u64, permille: u64) -> u64 {
    let rank = (all * permille).div_ceil(1000);
    let (mut below, mut low) = (0, 0);
    for (count, bound) in counts.iter().zip(BUCKETS_US) {
        if rank > 0 && below + count >= rank {
            return low + (bound - low) * (rank - below) / count;
        }
        (below, low) = (below + count, bound);
    }
    if all == 0 {
        0
    } else {
        low
    }
}

/// Memory of its processes, KiB, if they have been weighed.
fn memory_kb(platform: &PlatformStatus<'_>) -> Option<u32> {
    let weights = platform.instances.iter().filter_map(|instance| instance.weight);
    let bytes = weights.map(|weight| weight.rss_bytes).reduce(|sum, bytes| sum + bytes)?;
    Some(u32::try_from(bytes / 1024).unwrap_or(u32::MAX))
}

impl Shell {
    /// Has the minute kept that is over, if one is.
    pub(super) fn turn_minute(&mut self, conductor: &Conductor) {
        if self.minutes.next_at.is_none_or(|at| self.now < at) {
            return;
        }
        let unix_ms = unix_ms();
        let left = MINUTE_MS - unix_ms % MINUTE_MS;
        let left = if left < BEGUN_MS { left + MINUTE_MS } else { left };
        self.minutes.next_at = Some(self.now + Duration::from_millis(left));
        // What has gathered belongs to the minute that has just ended, whether the clock is a little early or late.
        self.keep_minutes(unix_ms.saturating_sub(MINUTE_MS / 2), conductor);
    }

    /// Has what has gathered kept for the minute of this moment.
    pub(super) fn keep_minutes(&mut self, unix_ms: u64, conductor: &Conductor) {
        if self.minutes.next_at.is_none() {
            return;
        }
        let mut counted = Vec::with_capacity(self.minutes.before.len());
        let mut minutes = Vec::new();
        let nothing = Counted::default();
        for (index, platform) in conductor.platforms().enumerate() {
            let now = Counted::of(platform.stats);
            let before = self.minutes.before.get(index).unwrap_or(&nothing);
            let minute = Minute { memory_kb: memory_kb(&platform), ..now.since(before) };
            if minute != Minute::default() {
                minutes.push((platform.name.to_owned(), minute));
            }
            counted.push(now);
        }
        let unix_minute = u32::try_from(unix_ms / MINUTE_MS).unwrap_or(u32::MAX);
        if minutes.is_empty() || self.clerk.as_ref().is_some_and(|clerk: &Clerk| clerk.minutes(unix_minute, minutes)) {
            self.minutes.before = counted;
        } else {
            log::debug!("the clerk is too busy to keep what platforms did in a minute; it is kept with the next");
        }
    }

    /// Has the clerk read what a platform did; the client waits.
    pub(super) fn show_minutes(&mut self, place: usize, serial: u64, query: &str, conductor: &Conductor) {
        let read = api::read_history(query, unix_ms() / 1000).and_then(|history| {
            let platform = conductor.router().to(&history.platform);
            match platform {
                Some(_) => Ok(history),
                None => Err(api::no_platform(conductor, &history.platform)),
            }
        });
        let problem = match read {
            Ok(history) => match self.clerk.as_ref().is_some_and(|clerk| clerk.history(place, serial, history)) {
                true => return,
                false => api::store_busy(),
            },
            Err(problem) => problem,
        };
        self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(asked: u64, millis: &[u64]) -> Counted {
        let mut durations = Histogram::default();
        millis.iter().for_each(|millis| durations.record(Duration::from_millis(*millis)));
        Counted { asked, errors: asked / 10, durations }
    }

    #[test]
    fn a_minute_is_what_came_since_the_last() {
        let before = counted(100, &[9_000; 50]);
        let mut now = counted(130, &[9_000; 50]);
        (0..20).for_each(|_| now.durations.record(Duration::from_millis(20)));
        let minute = now.since(&before);
        assert_eq!((minute.requests, minute.errors, minute.mean_us), (30, 3, 20_000));
        assert_eq!(minute.p95_us, 10_000 + 15_000 * 19 / 20, "of the bucket from 10 to 25 ms");
        assert_eq!(now.since(&now), Minute::default(), "nothing is nothing");
    }

    #[test]
    fn a_percentile_is_found_in_its_bucket_and_never_beyond_the_last_bound() {
        let of = |millis: &[u64]| {
            let durations = counted(0, millis).durations;
            percentile_us(&durations.counts, durations.count(), 950)
        };
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[60_000; 3]), 10_000_000);
        let mostly_fast: Vec<u64> = std::iter::repeat_n(2, 96).chain([5_000; 4]).collect();
        assert!((1_000..=2_500).contains(&of(&mostly_fast)), "{}", of(&mostly_fast));
    }
}
