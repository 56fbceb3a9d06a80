//! The samples of the last half hour, at whatever times they came.
//!
//! | what comes | what becomes of it |
//! |---|---|
//! | a share of RAM that is no number, 0 or less, or more than 100 % | refused |
//! | a sample that is not later than the last: twice the same, or a clock that went back | refused |
//! | a rate of requests that is no number, negative, or more than a billion | taken as the last one |
//! | no sample for four intervals | a gap: nothing is interpolated across it |
//! | a gap longer than the window, or a clock that jumps ahead | the window begins anew |
//! | samples closer together than a 210th of window and horizon (10 s) | the last takes the place of the one before |
//!
//! So there are never more than 212, and a fit costs the same whether RAM is sampled every second or every thirty.

use std::collections::VecDeque;
use std::time::Duration;

use super::features::trend;
use super::least_squares::Row;
use crate::config;
use crate::time::Time;

/// What was measured of the machine, as far as forecasts go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Used RAM, in percent of all; above 0, and at most 100.
    pub ram_percent: f64,
    /// Requests per second since the last sample.
    pub requests_per_s: f64,
    /// Seconds since 1970, universal time; `None` if nobody knows.
    pub date_s: Option<u64>,
}

/// Why a reading was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unfit {
    /// The share of RAM is no number.
    NotANumber,
    /// It is 0 or less, as of a reader that read nothing, or more than 100 %.
    OutOfRange,
    /// It is not later than the one before.
    NotLater,
}

/// Parts of window and horizon that have one sample each, and the most samples there are: those at both ends, and the last,
/// come on top.
const PARTS: u32 = 210;
const SAMPLES_MAX: usize = PARTS as usize + 3;
/// So many intervals without a sample are a gap.
const GAP_INTERVALS: u32 = 4;

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Time,
    ram_percent: f64,
    requests_per_s: f64,
    /// For least squares, if it is known what was one horizon before.
    row: Option<Row>,
}

/// The samples of the window, and of one horizon before it. See the module.
#[derive(Clone, Debug)]
pub struct Window {
    span: Duration,
    horizon: Duration,
    spacing: Duration,
    gap_max: Duration,
    samples: VecDeque<Sample>,
}

impl Window {
    /// An empty one.
    pub fn new(settings: &config::Scaler) -> Window {
        let (span, horizon) = (settings.window_ms.millis(), settings.horizon_ms.millis());
        Window {
            span,
            horizon,
            spacing: (span + horizon) / PARTS,
            gap_max: gap_max(settings),
            samples: VecDeque::with_capacity(SAMPLES_MAX),
        }
    }

    /// Takes a sample, or says why not.
    pub fn take(&mut self, now: Time, reading: &Reading) -> Option<Unfit> {
        let last = self.samples.back().copied();
        if !reading.ram_percent.is_finite() {
            return Some(Unfit::NotANumber);
        }
        if reading.ram_percent <= 0.0 || reading.ram_percent > 100.0 {
            return Some(Unfit::OutOfRange);
        }
        if last.is_some_and(|last| now <= last.at) {
            return Some(Unfit::NotLater);
        }
        let requests_per_s = match last {
            _ if is_rate(reading.requests_per_s) => reading.requests_per_s,
            Some(last) => last.requests_per_s,
            None => 0.0,
        };
        let row = self.before(now, self.horizon).map(|(ram_percent, requests_per_s)| Row {
            columns: trend(seconds(now), ram_percent, requests_per_s),
            target: reading.ram_percent,
        });
        let count = self.samples.len();
        if count >= 2 && self.samples[count - 1].at - self.samples[count - 2].at < self.spacing {
            self.samples.pop_back();
        }
        while self.samples.front().is_some_and(|oldest| now - oldest.at > self.span + self.horizon) {
            self.samples.pop_front();
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { at: now, ram_percent: reading.ram_percent, requests_per_s, row });
        None
    }

    /// RAM and requests per second so long before, on the line between the samples on either side. `None` if there is none
    /// on one side, or a gap between them.
    fn before(&self, now: Time, span: Duration) -> Option<(f64, f64)> {
        let nanos = u64::try_from(span.as_nanos()).ok()?;
        let wanted = Time::from_nanos(now.as_nanos().checked_sub(nanos)?);
        let later = self.samples.partition_point(|sample| sample.at < wanted);
        let after = self.samples.get(later)?;
        if after.at == wanted {
            return Some((after.ram_percent, after.requests_per_s));
        }
        let before = self.samples.get(later.checked_sub(1)?)?;
        let between = |from: f64, to: f64| interpolate((before.at, from), (after.at, to), wanted, self.gap_max);
        let ram_percent = between(before.ram_percent, after.ram_percent)?;
        Some((ram_percent, between(before.requests_per_s, after.requests_per_s)?))
    }

    /// What least squares go by: a row for each sample of the window of which it is known what was one horizon before.
    pub fn rows(&self) -> impl Iterator<Item = &Row> + Clone {
        let newest = self.samples.back().map_or(Time::ZERO, |sample| sample.at);
        let first = self.samples.partition_point(|sample| newest - sample.at > self.span);
        self.samples.range(first..).filter_map(|sample| sample.row.as_ref())
    }

    /// The last row, if that sample has one.
    pub fn last_row(&self) -> Option<&Row> {
        self.samples.back()?.row.as_ref()
    }

    /// The columns one horizon from now, of which all is known: the last sample's RAM and rate. `None` without samples.
    pub fn ahead(&self) -> Option<[f64; super::least_squares::COLUMNS]> {
        let last = self.samples.back()?;
        Some(trend(seconds(last.at + self.horizon), last.ram_percent, last.requests_per_s))
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.samples.capacity() * size_of::<Sample>()
    }
}

/// Whether so many requests per second can be meant.
pub(super) fn is_rate(requests_per_s: f64) -> bool {
    (0.0..=1e9).contains(&requests_per_s)
}

/// Two samples further apart than this have a gap between them.
pub(super) fn gap_max(settings: &config::Scaler) -> Duration {
    settings.interval_ms.millis() * GAP_INTERVALS
}

/// What lies between two samples at a time between theirs, on a straight line; `None` across a gap.
pub(super) fn interpolate(from: (Time, f64), to: (Time, f64), at: Time, gap_max: Duration) -> Option<f64> {
    let span = to.0 - from.0;
    let part = (at - from.0).as_secs_f64() / span.as_secs_f64();
    (span <= gap_max).then_some(from.1 + (to.1 - from.1) * part)
}

/// Seconds since start.
fn seconds(time: Time) -> f64 {
    time.since(Time::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn reading(ram_percent: f64, requests_per_s: f64) -> Reading {
        Reading { ram_percent, requests_per_s, date_s: None }
    }

    fn window() -> Window {
        Window::new(&config::Scaler::default())
    }

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    #[test]
    fn what_is_no_share_of_ram_is_refused_and_changes_nothing() {
        let mut window = window();
        assert_eq!(window.take(at(30), &reading(50.0, 1.0)), None);
        for (wrong, why) in [
            (f64::NAN, Unfit::NotANumber),
            (f64::INFINITY, Unfit::NotANumber),
            (0.0, Unfit::OutOfRange),
            (-1.0, Unfit::OutOfRange),
            (100.1, Unfit::OutOfRange),
        ] {
            assert_eq!(window.take(at(60), &reading(wrong, 1.0)), Some(why), "{wrong}");
        }
        assert_eq!(window.take(at(30), &reading(60.0, 1.0)), Some(Unfit::NotLater), "twice");
        assert_eq!(window.take(at(29), &reading(60.0, 1.0)), Some(Unfit::NotLater), "a clock that went back");
        assert_eq!(window.len(), 1);
        assert_eq!(window.take(at(60), &reading(100.0, 1.0)), None);
    }

    #[test]
    fn a_rate_that_is_none_is_taken_as_the_last() {
        let mut window = window();
        let rate = |window: &Window| window.ahead().expect("there is a sample")[2];
        window.take(at(0), &reading(50.0, f64::NAN));
        assert_eq!(rate(&window), 0.0);
        window.take(at(30), &reading(50.0, 7.0));
        for (second, wrong) in [(60, -1.0), (90, 1e10), (120, f64::INFINITY)] {
            window.take(at(second), &reading(50.0, wrong));
        }
        assert_eq!(rate(&window), 7.0);
    }

    #[test]
    fn a_row_says_what_was_one_horizon_before() {
        let mut window = window();
        for sample in 0..=20 {
            window.take(at(sample * 30), &reading(40.0 + sample as f64, sample as f64));
        }
        assert_eq!(window.rows().count(), 11, "the first ten have nothing before them");
        let last = *window.last_row().expect("ten minutes are known");
        assert_eq!((last.target, last.columns), (60.0, trend(600.0, 50.0, 10.0)));
        assert_eq!(window.ahead(), Some(trend(900.0, 60.0, 20.0)));
        // Between two samples it is on the line between them.
        window.take(at(615), &reading(61.0, 0.0));
        assert_eq!(window.last_row().expect("it is known").columns, trend(615.0, 50.5, 10.5));
    }

    #[test]
    fn nothing_is_made_up_across_a_gap() {
        let mut window = window();
        for second in (0..=300).step_by(30).chain((500..=1200).step_by(30)) {
            window.take(at(second), &reading(50.0, 1.0));
        }
        let times: Vec<f64> = window.rows().map(|row| row.columns[0]).collect();
        // 600 to 800 s would need what was from 300 to 500 s; 300 s itself is known.
        assert!(times.contains(&300.0) && times.contains(&590.0) && times.contains(&800.0), "{times:?}");
        assert!(!times.iter().any(|time| (601.0..800.0).contains(time)), "{times:?}");
    }

    #[test]
    fn a_clock_that_jumps_ahead_begins_the_window_anew() {
        let mut window = window();
        for sample in 0..=40 {
            window.take(at(sample * 30), &reading(50.0, 1.0));
        }
        window.take(at(1_000_000), &reading(50.0, 1.0));
        assert_eq!((window.len(), window.rows().count()), (1, 0));
        assert_eq!(window.take(Time::from_nanos(u64::MAX), &reading(50.0, 1.0)), None);
    }

    #[test]
    fn the_window_moves_on_and_the_newest_sample_is_always_in_it() {
        for (step, least, most) in [(30_000, 59, 61), (1_000, 178, 183), (7_000, 120, 183), (100, 178, 183)] {
            let mut window = window();
            let mut millis = 0;
            while millis < 6_000_000 {
                millis += step;
                window.take(Time::from_millis(millis), &reading(50.0, 1.0));
                assert!(window.len() <= SAMPLES_MAX);
                if millis > 300_000 + step {
                    let last = window.last_row().expect("five minutes are known");
                    assert_eq!(last.columns[0], millis as f64 / 1000.0);
                }
            }
            let count = window.rows().count();
            assert!((least..=most).contains(&count), "{count} rows at {step} ms");
            let oldest = window.rows().next().expect("there are rows").columns[0];
            assert!((4_170.0..=4_220.0).contains(&oldest), "{oldest} s of 6000 s at {step} ms");
        }
    }

    #[test]
    fn any_samples_at_any_times_stay_within_the_bound_and_give_finite_rows() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut window = window();
            let bytes = window.heap_bytes();
            let mut now = Time::ZERO;
            for _ in 0..2_000 {
                let longest = Duration::from_millis(1 << random.below(22));
                now = match random.below(50) {
                    0 => Time::from_nanos(random.draw() >> random.below(20)),
                    _ => now + random.span_below(longest),
                };
                let numbers = [f64::NAN, f64::NEG_INFINITY, -0.0, 1e308, f64::MIN_POSITIVE, 50.0, 99.9];
                let mut number = || numbers[random.below(7) as usize];
                window.take(now, &reading(number(), number()));
                assert!(window.len() <= SAMPLES_MAX, "seed {seed}");
            }
            assert!(window.rows().flat_map(|row| row.columns).all(|number| number.is_finite()), "seed {seed}");
            assert_eq!(window.heap_bytes(), bytes, "it never grows");
        }
    }
}
