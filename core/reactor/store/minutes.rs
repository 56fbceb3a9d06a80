//! What each platform did and used in each minute (`integration_metrics`).
//!
//! One tree, `minutes`. A row holds half an hour of a platform, so that a month of it is 1,440 rows; each of its records
//! begins with the minute's place in the row, and the rest are numbers as LEB128:
//!
//! ```text
//! name, 0, half hour since 1970 (u32, big endian)    place, requests, errors, mean, 95th percentile, memory + 1; …
//! ```
//!
//! None of it is worth an fdatasync: it is handed over like the history.

use super::coding::{put_number, take_number};
use super::{Store, StoreError};

/// Minutes of a row. A record has at most 26 bytes, so a row stays below `INLINE_BYTES`.
const ROW_MINUTES: u32 = 30;
/// Platforms whose oldest rows are looked at in one go; there are more only if a thousand were renamed.
const LOOKED_AT_MAX: usize = 1000;
/// Rows removed in one go.
const REMOVED_MAX: usize = 256;
/// Every so many rows the cache is made to look at what it holds.
const SETTLE_ROWS: usize = 8;
const HOUR_MINUTES: u32 = 60;
const DAY_MINUTES: u32 = 24 * HOUR_MINUTES;
/// The half hour, at the end of a key.
const STAMP_BYTES: usize = 4;

/// What a platform did and used in a minute, or in more than one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Minute {
    /// Requests routed to it.
    pub(crate) requests: u32,
    /// Attempts that failed or ran out of time.
    pub(crate) errors: u32,
    /// From question to answer, microseconds; 0 if nothing was answered.
    pub(crate) mean_us: u32,
    /// The 95th percentile of that; of several minutes, the highest.
    pub(crate) p95_us: u32,
    /// Memory of its processes, KiB, if that is known; of several minutes, the highest.
    pub(crate) memory_kb: Option<u32>,
}

/// Some minutes of a platform, as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The first, in minutes since 1970.
    pub(crate) unix_minute: u32,
    pub(crate) sum: Minute,
}

impl Minute {
    /// Takes in another one. The mean is weighed by requests, since how many were answered is not kept.
    fn add(&mut self, other: &Minute) {
        let (own, others) = (self.weight(), other.weight());
        let sum = u64::from(self.mean_us) * own + u64::from(other.mean_us) * others;
        self.mean_us = u32::try_from(sum / (own + others).max(1)).unwrap_or(u32::MAX);
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors);
        self.p95_us = self.p95_us.max(other.p95_us);
        self.memory_kb = self.memory_kb.max(other.memory_kb);
    }

    /// What its mean counts for: nothing if nothing was answered, and something even if all was asked before.
    fn weight(&self) -> u64 {
        if self.mean_us == 0 {
            0
        } else {
            u64::from(self.requests).max(1)
        }
    }

    fn put(&self, place: u8, out: &mut Vec<u8>) {
        out.push(place);
        let memory = self.memory_kb.map_or(0, |memory| u64::from(memory) + 1);
        for number in [self.requests, self.errors, self.mean_us, self.p95_us] {
            put_number(out, number.into());
        }
        put_number(out, memory);
    }

    fn take(rest: &mut &[u8]) -> Option<(u8, Minute)> {
        let (&place, tail) = rest.split_first()?;
        *rest = tail;
        let mut number = || u32::try_from(take_number(rest)?).ok();
        let (requests, errors, mean_us, p95_us) = (number()?, number()?, number()?, number()?);
        let memory_kb = take_number(rest)?.checked_sub(1).map(|memory| u32::try_from(memory).unwrap_or(u32::MAX));
        Some((place, Minute { requests, errors, mean_us, p95_us, memory_kb }))
    }
}

impl Store {
    /// Keeps what platforms did in a minute; what is known of it already is added to, so that one in which Demi was
    /// started anew is whole. Durable after [`Store::hand_over`] as far as said there. Blocks for the disk.
    pub(crate) fn keep_minutes(&self, unix_minute: u32, minutes: &[(String, Minute)]) -> Result<(), StoreError> {
        for (platform, minute) in minutes {
            let key = key(platform, unix_minute / ROW_MINUTES);
            let row = self.guarded(|| self.minutes.get(&key))?;
            let mut records = row.map(|row| read_row(&row)).unwrap_or_default();
            let place = (unix_minute % ROW_MINUTES) as u8;
            match records.iter_mut().find(|(other, _)| *other == place) {
                Some((_, record)) => record.add(minute),
                None => records.push((place, *minute)),
            }
            let mut row = Vec::new();
            records.iter().for_each(|(place, record)| record.put(*place, &mut row));
            self.guarded(|| self.minutes.insert(&key, row))?;
            self.settle(&self.minutes, &key)?;
        }
        Ok(())
    }

    /// What a platform did from one minute up to before another, so many minutes taken together; those in which nothing
    /// is known of it are left out. Blocks for the disk. The caller bounds how many there can be.
    pub(crate) fn minutes(&self, platform: &str, from: u32, to: u32, step: u32) -> Result<Vec<Span>, StoreError> {
        let mut spans: Vec<Span> = Vec::new();
        let step = step.max(1);
        let (first, end) = (key(platform, from / ROW_MINUTES), key(platform, to.div_ceil(ROW_MINUTES)));
        if first >= end {
            return Ok(spans);
        }
        let mut rows = self.minutes.range(first..end);
        let mut count = 0;
        while let Some((key, row)) = self.guarded(|| rows.next().transpose())? {
            let Some(half_hour) = half_hour(&key) else { continue };
            let mut records = read_row(&row);
            records.sort_unstable_by_key(|(place, _)| *place);
            for (place, record) in records {
                let minute = half_hour.saturating_mul(ROW_MINUTES).saturating_add(place.into());
                if !(from..to).contains(&minute) {
                    continue;
                }
                let start = from + (minute - from) / step * step;
                match spans.last_mut().filter(|span| span.unix_minute == start) {
                    Some(span) => span.sum.add(&record),
                    None => spans.push(Span { unix_minute: start, sum: record }),
                }
            }
            count += 1;
            if count % SETTLE_ROWS == 0 {
                self.settle(&self.minutes, &key)?;
            }
        }
        Ok(spans)
    }

    /// Removes what is older than `store.metrics_days`, as looked at once an hour. Blocks for the disk.
    pub(crate) fn forget_old_minutes(&self, unix_minute: u32) -> Result<(), StoreError> {
        let hour = unix_minute / HOUR_MINUTES;
        if self.minutes_forgotten_at.get() != Some(hour) {
            let days = u32::try_from(self.metrics_days).unwrap_or(u32::MAX);
            // What is left of it goes a minute later.
            if !self.forget_minutes(unix_minute.saturating_sub(days.saturating_mul(DAY_MINUTES)))? {
                self.minutes_forgotten_at.set(Some(hour));
            }
        }
        Ok(())
    }

    /// Removes what is from before a minute, some of it if it is much: true if there may be more. Blocks for the disk.
    fn forget_minutes(&self, before: u32) -> Result<bool, StoreError> {
        let mut removed = 0;
        let mut start = Vec::new();
        for _ in 0..LOOKED_AT_MAX {
            let row = self.guarded(|| self.minutes.range(&start[..]..).next().transpose())?;
            let Some((key, _)) = row else { return Ok(false) };
            match half_hour(&key) {
                Some(half_hour) if half_hour.saturating_add(1).saturating_mul(ROW_MINUTES) > before => {
                    // The others of this platform are younger: on to the next one, whose names sort after this.
                    start = key[..key.len() - STAMP_BYTES].to_vec();
                    start.extend_from_slice(&[0xff; STAMP_BYTES + 1]);
                }
                Some(_) | None => {
                    self.guarded(|| self.minutes.remove(&key))?;
                    self.settle(&self.minutes, &key)?;
                    removed += 1;
                    if removed == REMOVED_MAX {
                        return Ok(true);
                    }
                    start = key.to_vec();
                }
            }
        }
        Ok(true)
    }
}

/// No name holds a 0, so no other platform's keys begin so.
fn key(platform: &str, half_hour: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(platform.len() + 1 + STAMP_BYTES);
    key.extend_from_slice(platform.as_bytes());
    key.push(0);
    key.extend_from_slice(&half_hour.to_be_bytes());
    key
}

fn half_hour(key: &[u8]) -> Option<u32> {
    key.last_chunk::<STAMP_BYTES>().map(|stamp| u32::from_be_bytes(*stamp))
}

/// The records of a row, up to the first that cannot be read.
fn read_row(mut row: &[u8]) -> Vec<(u8, Minute)> {
    std::iter::from_fn(|| Minute::take(&mut row)).filter(|(place, _)| u32::from(*place) < ROW_MINUTES).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::Scratch;
    use super::*;

    fn minute(requests: u32, mean_us: u32) -> Minute {
        Minute { requests, errors: 1, mean_us, p95_us: mean_us * 2, memory_kb: Some(requests * 10) }
    }

    fn keep(store: &Store, platform: &str, unix_minute: u32, minute: Minute) {
        store.keep_minutes(unix_minute, &[(platform.to_owned(), minute)]).expect("it is kept");
    }

    #[test]
    fn minutes_come_back_one_by_one_or_taken_together_and_of_the_one_platform_only() {
        let scratch = Scratch::new();
        let store = scratch.open();
        for unix_minute in 1_000..1_100 {
            keep(&store, "echo", unix_minute, minute(unix_minute, 100));
            keep(&store, "echo2", unix_minute, minute(7, 7));
        }
        drop(store);
        let store = scratch.open();
        let single = store.minutes("echo", 1_010, 1_090, 1).expect("they are read");
        let expected = (1_010..1_090).map(|unix_minute| Span { unix_minute, sum: minute(unix_minute, 100) });
        assert_eq!(single, expected.collect::<Vec<_>>());
        let tens = store.minutes("echo", 1_005, 1_025, 10).expect("they are read");
        let sums: Vec<(u32, u32, u32)> =
            tens.iter().map(|span| (span.unix_minute, span.sum.requests, span.sum.errors)).collect();
        assert_eq!(sums, [(1_005, (1_005..1_015).sum(), 10), (1_015, (1_015..1_025).sum(), 10)]);
        assert_eq!(tens[0].sum.memory_kb, Some(10_140), "the highest");
        for (from, to) in [(0, 1_000), (1_100, 2_000), (1_050, 1_050), (1_060, 1_050)] {
            assert_eq!(store.minutes("echo", from, to, 1).expect("they are read"), []);
        }
    }

    #[test]
    fn a_minute_in_which_demi_was_started_anew_is_whole() {
        let scratch = Scratch::new();
        keep(&scratch.open(), "echo", 50, minute(30, 100));
        let store = scratch.open();
        keep(&store, "echo", 50, Minute { requests: 10, errors: 0, mean_us: 500, p95_us: 600, memory_kb: None });
        let sum = Minute { requests: 40, errors: 1, mean_us: 200, p95_us: 600, memory_kb: Some(300) };
        assert_eq!(store.minutes("echo", 50, 51, 1).expect("they are read"), [Span { unix_minute: 50, sum }]);
    }

    #[test]
    fn the_longest_record_and_the_longest_row_stay_in_a_page() {
        let most = Minute {
            requests: u32::MAX,
            errors: u32::MAX,
            mean_us: u32::MAX,
            p95_us: u32::MAX,
            memory_kb: Some(u32::MAX),
        };
        let mut row = Vec::new();
        (0..ROW_MINUTES as u8).for_each(|place| most.put(place, &mut row));
        assert!(row.len() <= super::super::INLINE_BYTES, "{}", row.len());
        let expected: Vec<_> = (0..ROW_MINUTES as u8).map(|place| (place, most)).collect();
        assert_eq!(read_row(&row), expected);
        assert_eq!(read_row(&row[..row.len() - 1]), expected[..expected.len() - 1], "what is cut off is left out");
    }

    #[test]
    fn what_is_too_old_goes_whosever_it_is_and_the_rest_stays() {
        let scratch = Scratch::new();
        let store = scratch.open();
        for platform in ["gone", "echo", "young"] {
            let first = if platform == "young" { 700 } else { 0 };
            (first..900).step_by(30).for_each(|unix_minute| keep(&store, platform, unix_minute, minute(1, 1)));
        }
        assert!(!store.forget_minutes(600).expect("it is forgotten"));
        let left = |platform| store.minutes(platform, 0, 1_000, 1).expect("they are read").len();
        assert_eq!([left("gone"), left("echo"), left("young")], [10, 10, 7]);
        assert!(!store.forget_minutes(10_000).expect("it is forgotten"));
        assert_eq!([left("gone"), left("echo"), left("young")], [0, 0, 0]);
    }

    #[test]
    fn much_is_forgotten_in_steps() {
        let scratch = Scratch::new();
        let store = scratch.open();
        (0..300).for_each(|row| keep(&store, "echo", row * ROW_MINUTES, minute(1, 1)));
        assert!(store.forget_minutes(u32::MAX).expect("it is forgotten"), "there is more");
        assert_eq!(store.minutes.len(), 300 - REMOVED_MAX);
        assert!(!store.forget_minutes(u32::MAX).expect("it is forgotten"));
        assert_eq!(store.minutes.len(), 0);
    }
}
