//! How RAM is watched and forecast, and what is done when it runs short.

use serde::{Deserialize, Serialize};

use super::{Bounded, Mistakes, HOUR_MS};

/// How RAM is watched and forecast, and what is done when it runs short: docs/scaling.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scaler {
    /// Whether anything is forecast, and done, at all.
    pub enabled: bool,
    /// Nothing is done; what would have been is told.
    pub forecast_only: bool,
    /// What Demi and its child processes may use together, MB of 10^6 bytes: it takes the place of the machine's RAM, and what they
    /// weigh that of what is used of it. For containers and tests. Default: the machine's.
    pub ram_total_mb: Option<Bounded<1, 1_000_000_000, 1>>,
    /// Used RAM, percent of all, at which something is done: memory is asked back, idle platforms are put to sleep, others
    /// are shed.
    pub shed_percent: Bounded<2, 100, 80>,
    /// At most this for `calm_ms`, and what was shed comes back, one after the other, as far as it fits below
    /// `shed_percent`.
    pub restore_percent: Bounded<1, 99, 65>,
    /// From here on platforms are killed in place of being drained.
    pub emergency_percent: Bounded<3, 100, 95>,
    /// How long RAM must have been calm before something is restored. Doubled, up to eight times, for what had to be shed
    /// again soon after it came back.
    pub calm_ms: Bounded<100, HOUR_MS, 300_000>,
    /// Between one step and the next, and from a step to the look at what it has won. A fifth of it in an emergency.
    pub cooldown_ms: Bounded<10, HOUR_MS, 10_000>,
    /// Half-life of the average that is compared with the thresholds, next to the last sample.
    pub smoothing_ms: Bounded<1, HOUR_MS, 1_000>,
    /// What the platforms weigh together has become so many times what it was; 0: never mind…
    pub spike_times: Bounded<0, 100, 2>,
    /// …within this long…
    pub spike_ms: Bounded<1_000, HOUR_MS, 30_000>,
    /// …and has grown by so much, MB of 10^6 bytes: something is done from `restore_percent` on.
    pub spike_min_mb: Bounded<1, 1_000_000, 100>,
    /// RAM that has moved by so many points of percent since the last sample, of all or of what the platforms weigh, is measured at
    /// once; 0: never mind. It is looked at in passing every second while there are child processes.
    pub moved_percent: Bounded<0, 100, 2>,
    /// Between two samples. More than `horizon_ms`, and least squares have nothing to go by.
    pub interval_ms: Bounded<100, HOUR_MS, 30_000>,
    /// Between two samples while RAM is short or moves fast.
    pub fast_interval_ms: Bounded<100, HOUR_MS, 1_000>,
    /// The samples that a trend is taken from: those of this time. A few times `horizon_ms`, or there are too few.
    pub window_ms: Bounded<60_000, { 24 * HOUR_MS }, 1_800_000>,
    /// The samples that seasons are taken from, hours. A day shows itself after half a day, and a week after half a week:
    /// with less than that here, weeks are left out.
    pub history_hours: Bounded<1, 1_344, 24>,
    /// How far ahead is forecast.
    pub horizon_ms: Bounded<10_000, HOUR_MS, 300_000>,
    /// Whether forecasts have something shed early, and keep what was shed from coming back. They are made and judged anyway.
    pub use_forecasts: bool,
    /// What least squares may explain RAM by.
    pub columns: Columns,
    /// The forecaster that is believed before any has proven itself.
    pub champion: Model,
    /// Whether another takes its place that has forecast better.
    pub may_promote: bool,
    /// By how much the mean error of another must be smaller for it to be promoted, in percent of the champion's…
    pub margin_percent: Bounded<1, 90, 10>,
    /// …without a break for this long.
    pub lead_ms: Bounded<0, { 24 * HOUR_MS }, 600_000>,
    /// Whether memory of instances is told without counting twice what processes share (PSS), too. It takes the kernel
    /// much longer to tell than resident memory, so it is read for a few of them each second.
    pub pss: bool,
    /// How long it is kept what was recorded of RAM, requests and platforms, days of 2 MB at most; 0: nothing is recorded, and
    /// what there is stays.
    pub trace_days: Bounded<0, 366, 14>,
}

impl Default for Scaler {
    fn default() -> Self {
        Scaler {
            enabled: true,
            forecast_only: false,
            ram_total_mb: None,
            shed_percent: Bounded::default(),
            restore_percent: Bounded::default(),
            emergency_percent: Bounded::default(),
            calm_ms: Bounded::default(),
            cooldown_ms: Bounded::default(),
            smoothing_ms: Bounded::default(),
            spike_times: Bounded::default(),
            spike_ms: Bounded::default(),
            spike_min_mb: Bounded::default(),
            moved_percent: Bounded::default(),
            interval_ms: Bounded::default(),
            fast_interval_ms: Bounded::default(),
            window_ms: Bounded::default(),
            history_hours: Bounded::default(),
            horizon_ms: Bounded::default(),
            use_forecasts: true,
            columns: Columns::default(),
            champion: Model::default(),
            may_promote: true,
            margin_percent: Bounded::default(),
            lead_ms: Bounded::default(),
            pss: false,
            trace_days: Bounded::default(),
        }
    }
}

impl Scaler {
    pub(super) fn check(&self, found: &mut Mistakes) {
        if self.restore_percent.value() >= self.shed_percent.value() {
            let what = "is not below scaler.shed_percent: what was restored would be shed at once".to_owned();
            found.add("scaler.restore_percent".to_owned(), what, "lower it, by ten at least");
        }
        if self.emergency_percent.value() <= self.shed_percent.value() {
            let what = "is not above scaler.shed_percent: everything would be killed and nothing drained".to_owned();
            found.add("scaler.emergency_percent".to_owned(), what, "raise it, or lower shed_percent");
        }
        if self.forecast_only && !self.enabled {
            let what = "means nothing while scaler.enabled is false".to_owned();
            found.add("scaler.forecast_only".to_owned(), what, "remove one of the two");
        }
        if self.fast_interval_ms.value() > self.interval_ms.value() {
            let what = "is above scaler.interval_ms".to_owned();
            found.add("scaler.fast_interval_ms".to_owned(), what, "lower it to interval_ms or less");
        }
    }
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
