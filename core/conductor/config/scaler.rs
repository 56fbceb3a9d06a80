//! How RAM is watched and forecast, and what is done when it runs short.

use serde::{Deserialize, Serialize};

use super::{Bounded, Mistakes, HOUR_MS};

/// By so many points of percent `restore_percent` had best be below `shed_percent`.
const CALM_POINTS: u64 = 10;

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
        let restore = Named::new("restore_percent", self.restore_percent);
        let shed = Named::new("shed_percent", self.shed_percent);
        let emergency = Named::new("emergency_percent", self.emergency_percent);
        if restore.value >= shed.value {
            let best = shed.value.saturating_sub(CALM_POINTS).max(1);
            let remedy = format!("set restore_percent below {}, best to {best} or less", shed.value);
            found.add_pair([restore, shed], ["below", "above"], "what was restored would be shed at once", &remedy);
        }
        if emergency.value <= shed.value {
            let mut remedy = format!("set shed_percent below {}", emergency.value);
            if shed.value < 100 {
                remedy += &format!(", or emergency_percent above {}", shed.value);
            }
            let why = "everything would be killed and nothing drained";
            found.add_pair([emergency, shed], ["above", "below"], why, &remedy);
        }
        if self.forecast_only && !self.enabled {
            let what = "means nothing while scaler.enabled is false".to_owned();
            found.add("scaler.forecast_only".to_owned(), what, "remove one of the two");
        }
        if self.fast_interval_ms.value() > self.interval_ms.value() {
            let [fast, slow] =
                [Named::new("fast_interval_ms", self.fast_interval_ms), Named::new("interval_ms", self.interval_ms)];
            let remedy = format!("set fast_interval_ms to {} or less", slow.value);
            let why = "RAM would be looked at less often while it is short";
            found.add_pair([fast, slow], ["at most", "at least"], why, &remedy);
        }
    }
}

/// A field with its value.
#[derive(Clone, Copy)]
struct Named {
    name: &'static str,
    value: u64,
    is_default: bool,
}

impl Named {
    fn new<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(
        name: &'static str,
        number: Bounded<LOW, HIGH, DEFAULT>,
    ) -> Named {
        Named { name, value: number.value(), is_default: number.value() == DEFAULT }
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let default = if self.is_default { " (the default)" } else { "" };
        write!(formatter, "scaler.{} is {}{default}", self.name, self.value)
    }
}

impl Mistakes {
    /// Of two fields the first should be such to the second, and the second such to the first. It is told of the one that somebody
    /// has written, with the values of both.
    fn add_pair(&mut self, fields: [Named; 2], should: [&str; 2], why: &str, remedy: &str) {
        let [one, other] = fields;
        let (at, to, should) = if one.is_default { (other, one, should[1]) } else { (one, other, should[0]) };
        let what = format!("is not {should} scaler.{}: {one} and {other}, so that {why}", to.name);
        self.add(format!("scaler.{}", at.name), what, remedy);
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
    fn of_two_that_do_not_fit_the_written_one_is_blamed_with_the_values_of_both() {
        let told = |change: &dyn Fn(&mut Scaler)| {
            let (mut scaler, mut found) = (Scaler::default(), Mistakes(Vec::new()));
            change(&mut scaler);
            scaler.check(&mut found);
            found.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        fn bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(number: u64) -> Bounded<LOW, HIGH, DEFAULT> {
            Bounded::new(number).expect("the number is in its range")
        }
        assert_eq!(
            told(&|scaler| scaler.shed_percent = bounded(60)),
            ["scaler.shed_percent: is not above scaler.restore_percent: scaler.restore_percent is 65 (the default) and \
              scaler.shed_percent is 60, so that what was restored would be shed at once; set restore_percent below 60, best to \
              50 or less"]
        );
        assert_eq!(
            told(&|scaler| scaler.restore_percent = bounded(90)),
            ["scaler.restore_percent: is not below scaler.shed_percent: scaler.restore_percent is 90 and scaler.shed_percent is \
              80 (the default), so that what was restored would be shed at once; set restore_percent below 80, best to 70 or less"]
        );
        assert_eq!(
            told(&|scaler| scaler.shed_percent = bounded(95)),
            ["scaler.shed_percent: is not below scaler.emergency_percent: scaler.emergency_percent is 95 (the default) and \
              scaler.shed_percent is 95, so that everything would be killed and nothing drained; set shed_percent below 95, or \
              emergency_percent above 95"]
        );
        assert_eq!(
            told(&|scaler| scaler.interval_ms = bounded(500)),
            ["scaler.interval_ms: is not at least scaler.fast_interval_ms: scaler.fast_interval_ms is 1000 (the default) and \
              scaler.interval_ms is 500, so that RAM would be looked at less often while it is short; set fast_interval_ms to \
              500 or less"]
        );
        assert!(told(&|scaler| scaler.restore_percent = bounded(79)).is_empty());
    }

    #[test]
    fn models_are_in_the_order_of_their_numbers() {
        assert_eq!(Model::ALL.map(|model| model as usize), [0, 1, 2, 3, 4]);
    }
}
