//! Averages that forget, for samples at irregular times.
//!
//! A sample stands for the time since the one before it: of what was known, the part 2^(−Δt / half-life) is kept, whatever
//! the number of samples in that time. With samples at equal distances these are simple exponential smoothing and Holt's
//! linear trend (Hyndman and Athanasopoulos, *Forecasting: Principles and Practice*, 8.1 and 8.2) with
//! α = 1 − 2^(−Δt / half-life); Wright (1986) has them for irregular ones.

use std::time::Duration;

use crate::time::Time;

/// The part of what comes new, after so long: from 0 to 1.
pub(crate) fn gain(span: Duration, half_life: Duration) -> f64 {
    1.0 - (-span.as_secs_f64() / half_life.as_secs_f64()).exp2()
}

/// A level that forgets: exponentially weighted moving average.
#[derive(Clone, Debug)]
pub struct Ewma {
    half_life: Duration,
    last: Option<(Time, f64)>,
}

impl Ewma {
    /// One that knows nothing yet.
    pub fn new(half_life: Duration) -> Ewma {
        Ewma { half_life, last: None }
    }

    /// Takes a sample that is later than the last.
    pub fn take(&mut self, now: Time, value: f64) {
        let level = match self.last {
            Some((then, level)) => level + gain(now - then, self.half_life) * (value - level),
            None => value,
        };
        self.last = Some((now, level));
    }

    /// The level, in the unit of the samples; at any time ahead it is the same. `None` before the first.
    pub fn level(&self) -> Option<f64> {
        self.last.map(|(_, level)| level)
    }
}

/// A level and a trend that forget: Holt's linear trend. It begins with the line through the first two samples, and anew
/// after a gap.
#[derive(Clone, Debug)]
pub struct Holt {
    half_life: Duration,
    trend_half_life: Duration,
    gap_max: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Nothing,
    One { at: Time, value: f64 },
    Trend { at: Time, level: f64, per_s: f64 },
}

impl Holt {
    /// One that knows nothing yet. The trend must have the longer half-life: it is a difference and has more noise.
    pub fn new(half_life: Duration, trend_half_life: Duration, gap_max: Duration) -> Holt {
        Holt { half_life, trend_half_life, gap_max, state: State::Nothing }
    }

    /// Takes a sample that is later than the last.
    pub fn take(&mut self, now: Time, value: f64) {
        self.state = match self.state {
            State::One { at, value: first } if now - at <= self.gap_max => {
                State::Trend { at: now, level: value, per_s: (value - first) / (now - at).as_secs_f64() }
            }
            State::Trend { at, level, per_s } if now - at <= self.gap_max => {
                let span = now - at;
                let expected = level + per_s * span.as_secs_f64();
                let next = expected + gain(span, self.half_life) * (value - expected);
                let recent = (next - level) / span.as_secs_f64();
                let per_s = per_s + gain(span, self.trend_half_life) * (recent - per_s);
                State::Trend { at: now, level: next, per_s }
            }
            State::Nothing | State::One { .. } | State::Trend { .. } => State::One { at: now, value },
        };
    }

    /// The level so long after the last sample, in the unit of the samples. `None` before the second.
    pub fn ahead(&self, span: Duration) -> Option<f64> {
        match self.state {
            State::Trend { level, per_s, .. } => Some(level + per_s * span.as_secs_f64()),
            State::Nothing | State::One { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    fn holt() -> Holt {
        Holt::new(MINUTE, 5 * MINUTE, 2 * MINUTE)
    }

    #[test]
    fn half_of_a_step_is_forgotten_in_a_half_life_however_many_samples_come() {
        for step in [1, 5, 20, 60] {
            let mut ewma = Ewma::new(MINUTE);
            assert_eq!(ewma.level(), None);
            ewma.take(at(0), 40.0);
            for second in (step..=60).step_by(step as usize) {
                ewma.take(at(second), 60.0);
            }
            let level = ewma.level().expect("there are samples");
            assert!((level - 50.0).abs() < 1e-9, "{level} with a sample every {step} s");
        }
    }

    #[test]
    fn a_line_is_continued_exactly_at_any_distances() {
        let mut random = Random::new(7);
        let mut holt = holt();
        let mut now = 0;
        for sample in 0..500 {
            let line = |second: u64| 20.0 + 0.004 * second as f64;
            holt.take(at(now), line(now));
            match holt.ahead(5 * MINUTE) {
                Some(found) => assert!((found - line(now + 300)).abs() < 1e-9, "{found} after {sample}"),
                None => assert_eq!(sample, 0),
            }
            now += 1 + random.below(100);
        }
    }

    #[test]
    fn a_trend_that_ends_is_forgotten_and_a_gap_begins_anew() {
        let mut holt = holt();
        for second in 0..600 {
            holt.take(at(second), (f64::from(second as u32) * 0.1).min(30.0));
        }
        for second in 600..3_600 {
            holt.take(at(second), 30.0);
        }
        let found = holt.ahead(5 * MINUTE).expect("there is a trend");
        assert!((found - 30.0).abs() < 0.5, "{found}");
        holt.take(at(3_800), 50.0);
        assert_eq!(holt.ahead(5 * MINUTE), None);
        holt.take(at(3_830), 50.0);
        assert_eq!(holt.ahead(5 * MINUTE), Some(50.0));
    }

    #[test]
    fn any_shares_at_any_times_give_finite_numbers() {
        for seed in 0..100 {
            let mut random = Random::new(seed);
            let (mut ewma, mut holt) = (Ewma::new(MINUTE), holt());
            let mut now = Time::ZERO;
            for _ in 0..1_000 {
                now = now + Duration::from_nanos(1 + (random.draw() >> (20 + random.below(44))));
                let value = random.below(100_001) as f64 / 1000.0;
                ewma.take(now, value);
                holt.take(now, value);
                assert!((0.0..=100.0).contains(&ewma.level().expect("there is a sample")), "seed {seed}");
                assert!(holt.ahead(5 * MINUTE).is_none_or(f64::is_finite), "seed {seed}");
            }
        }
    }
}
