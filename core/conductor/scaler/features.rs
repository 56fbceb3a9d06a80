//! The columns that least squares explain RAM by.
//!
//! A row says what RAM was, and what was known one horizon before: so that the same columns, one horizon from now, are known
//! now, and a forecast is one product, without forecasts of forecasts (the direct method; Marcellino, Stock and Watson,
//! 2006). Each row is made once, when its sample comes, and holds no more than numbers.

use std::f64::consts::TAU;

use super::least_squares::COLUMNS;
use crate::config;

/// Where each column is in a row.
pub const TIME: usize = 0;
const LAGGED_RAM: usize = 1;
const REQUEST_RATE: usize = 2;
const DAY: usize = 3;
const WEEK: usize = 5;

/// Names of the columns, for those who read coefficients.
pub const NAMES: [&str; COLUMNS] =
    ["time", "lagged_ram", "request_rate", "day_sine", "day_cosine", "week_sine", "week_cosine"];

/// Seconds since 1970, universal time, beyond which a date is none: more than a million years.
pub const DATE_MAX: u64 = 1 << 45;
const DAY_S: u64 = 86_400;
const WEEK_S: u64 = 7 * DAY_S;

/// The columns at a time in seconds, where RAM (percent) and requests per second were this one horizon before.
pub fn trend(seconds: f64, lagged_ram: f64, request_rate: f64) -> [f64; COLUMNS] {
    let mut columns = [0.0; COLUMNS];
    (columns[TIME], columns[LAGGED_RAM], columns[REQUEST_RATE]) = (seconds, lagged_ram, request_rate);
    columns
}

/// The same at a date: with time counted from 1970, and the waves of day and week.
pub fn seasonal(date_s: u64, trend: [f64; COLUMNS]) -> [f64; COLUMNS] {
    let mut columns = trend;
    columns[TIME] = date_s as f64;
    for (place, period) in [(DAY, DAY_S), (WEEK, WEEK_S)] {
        let (sine, cosine) = (TAU * (date_s % period) as f64 / period as f64).sin_cos();
        (columns[place], columns[place + 1]) = (sine, cosine);
    }
    columns
}

/// The columns without waves that the configuration allows.
pub fn used_in_trends(allowed: &config::Columns) -> [bool; COLUMNS] {
    let mut used = [false; COLUMNS];
    (used[TIME], used[LAGGED_RAM], used[REQUEST_RATE]) = (allowed.time, allowed.lagged_ram, allowed.request_rate);
    used
}

/// The columns that the configuration allows, over rows that span so many seconds: less than half of a wave cannot be told
/// from a line, and would go astray beyond its end.
pub fn used_in_seasons(allowed: &config::Columns, span_s: u64) -> [bool; COLUMNS] {
    let mut used = used_in_trends(allowed);
    for (place, period, is_allowed) in [(DAY, DAY_S, allowed.daily), (WEEK, WEEK_S, allowed.weekly)] {
        used[place..place + 2].fill(is_allowed && span_s >= period / 2);
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_comes_back_after_its_period_and_not_before() {
        let at = |date: u64| seasonal(date, trend(0.0, 50.0, 2.0));
        let (now, day, week) = (at(1_796_100_000), at(1_796_100_000 + DAY_S), at(1_796_100_000 + WEEK_S));
        assert_eq!(now[DAY..DAY + 2], day[DAY..DAY + 2]);
        assert_ne!(now[WEEK..], day[WEEK..]);
        assert_eq!(now[WEEK..], week[WEEK..]);
        assert_eq!(now[..3], [1_796_100_000.0, 50.0, 2.0]);
        assert!(at(DATE_MAX).iter().all(|number| number.is_finite()));
    }

    #[test]
    fn each_column_can_be_switched_off_and_waves_wait_for_half_of_their_period() {
        let all = config::Columns::default();
        let counts = |allowed: &config::Columns, span: u64| used_in_seasons(allowed, span).map(u8::from);
        assert_eq!(counts(&all, WEEK_S / 2), [1; COLUMNS]);
        assert_eq!(counts(&all, WEEK_S / 2 - 1), [1, 1, 1, 1, 1, 0, 0]);
        assert_eq!(counts(&all, DAY_S / 2 - 1), [1, 1, 1, 0, 0, 0, 0]);
        assert_eq!(used_in_trends(&all).map(u8::from), [1, 1, 1, 0, 0, 0, 0]);
        let off = config::Columns { time: false, daily: false, ..all };
        assert_eq!(counts(&off, WEEK_S), [0, 1, 1, 0, 0, 1, 1]);
        let off = config::Columns { lagged_ram: false, request_rate: false, weekly: false, ..all };
        assert_eq!(counts(&off, WEEK_S), [1, 0, 0, 1, 1, 0, 0]);
    }
}
