//! How RAM is watched, and how it is forecast.

use serde::{Deserialize, Serialize};

use super::{Bounded, HOUR_MS};

/// How RAM is watched, and how it is forecast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scaler {
    /// Between two samples. More than `horizon_ms`, and least squares have nothing to go by.
    pub interval_ms: Bounded<100, HOUR_MS, 30_000>,
    /// Between two samples while RAM moves fast.
    pub fast_interval_ms: Bounded<100, HOUR_MS, 1_000>,
    /// The samples that a trend is taken from: those of this time. A few times `horizon_ms`, or there are too few.
    pub window_ms: Bounded<60_000, { 24 * HOUR_MS }, 1_800_000>,
    /// The samples that seasons are taken from, hours. A day shows itself after half a day, and a week after half a week:
    /// with less than that here, weeks are left out.
    pub history_hours: Bounded<1, 1_344, 24>,
    /// How far ahead is forecast.
    pub horizon_ms: Bounded<10_000, HOUR_MS, 300_000>,
    /// What least squares may explain RAM by.
    pub columns: Columns,
    /// The forecaster that is believed before any has proven itself.
    pub champion: Model,
    /// By how much the mean error of another must be smaller for it to be promoted, in percent of the champion's…
    pub margin_percent: Bounded<1, 90, 10>,
    /// …without a break for this long.
    pub lead_ms: Bounded<0, { 24 * HOUR_MS }, 600_000>,
}

/// What least squares may explain RAM by, besides a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// Time: a straight line.
    pub time: bool,
    /// RAM one `horizon_ms` before.
    pub lagged_ram: bool,
    /// Requests per second one `horizon_ms` before.
    pub request_rate: bool,
    /// A wave of a day.
    pub daily: bool,
    /// A wave of a week.
    pub weekly: bool,
}

impl Default for Columns {
    fn default() -> Self {
        Columns { time: true, lagged_ram: true, request_rate: true, daily: true, weekly: true }
    }
}

/// What forecasts RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub enum Model {
    /// It stays as it is. Hard to beat where nothing trends.
    #[default]
    LastValue,
    /// It comes to what it was lately, on an average that forgets.
    Ewma,
    /// It goes on as it went lately, on such an average of level and trend.
    Holt,
    /// Least squares over the window, without seasons.
    Ols,
    /// Least squares over the history, with seasons.
    OlsSeasons,
}

impl Model {
    /// All, in the order of their numbers.
    pub const ALL: [Model; 5] = [Model::LastValue, Model::Ewma, Model::Holt, Model::Ols, Model::OlsSeasons];

    /// The name in metrics and in the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Model::LastValue => "last_value",
            Model::Ewma => "ewma",
            Model::Holt => "holt",
            Model::Ols => "ols",
            Model::OlsSeasons => "ols_seasons",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_in_the_order_of_their_numbers() {
        assert_eq!(Model::ALL.map(|model| model as usize), [0, 1, 2, 3, 4]);
    }
}
