//! When RAM is short, when it is calm again, and when the next step may be taken.
//!
//! ```text
//!  used RAM, %   0 ──────── restore_percent ─────────── shed_percent ───── emergency_percent ── 100
//!                 calm: what    │  neither: nothing, but for a │  short: one step │  emergency: one step
//!                 was shed      │  forecast of shed_percent or │  each cooldown   │  each fifth of that
//!                 comes back    │  a spike, which are short    │                  │
//! ```
//!
//! What lies between two thresholds is what keeps it from going to and fro; so does the average that is compared with
//! them next to the last sample. An emergency is one at once. Nothing is ever restored because of a forecast.

use std::collections::VecDeque;
use std::time::Duration;

use super::competition::Forecast;
use super::smoothing::Ewma;
use crate::config;
use crate::time::Time;

/// Why RAM is taken for short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shortage {
    /// It is at `shed_percent` or more.
    Above,
    /// It is forecast to be.
    Forecast {
        /// Used RAM when that is, thousandths of all.
        ram_permille: u32,
    },
    /// What the platforms weigh together has grown fast.
    Spike {
        /// What it was, bytes.
        from: u64,
        /// What it is, bytes.
        to: u64,
    },
    /// It is at `emergency_percent` or more.
    Emergency,
}

impl Shortage {
    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Shortage::Above => "threshold",
            Shortage::Forecast { .. } => "forecast",
            Shortage::Spike { .. } => "spike",
            Shortage::Emergency => "emergency",
        }
    }
}

/// What a sample comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing is to be done.
    Fair,
    /// Something is to be done about it.
    Short(Shortage),
    /// It has been at `restore_percent` or less for this long.
    Calm(Duration),
}

/// Most looks at the weight of all platforms that are remembered.
const WEIGHTS_MAX: usize = 32;
/// Points of percent below `shed_percent` from which on it is looked at more often.
const NEAR_PERCENT: f64 = 5.0;

/// What all platforms weigh has grown fast.
#[derive(Clone, Copy, Debug)]
struct Spike {
    /// When it was last seen.
    at: Time,
    /// What they weighed before it and what they weigh, bytes.
    from: u64,
    to: u64,
    /// The part of RAM that lies between, percent.
    percent: f64,
}

/// Compares RAM with the thresholds. See the module.
#[derive(Clone, Debug)]
pub struct Policy {
    settings: config::Scaler,
    average: Ewma,
    last: Option<(Time, f64)>,
    /// How fast RAM rises, points of percent a second, and since which sample.
    rise_per_s: f64,
    risen_from: Option<(Time, f64)>,
    calm_since: Option<Time>,
    /// What all platforms weighed, oldest first, no closer together than a part of `spike_ms`.
    weights: VecDeque<(Time, u64)>,
    spike: Option<Spike>,
}

impl Policy {
    /// One that has seen nothing yet.
    pub fn new(settings: &config::Scaler) -> Policy {
        Policy {
            settings: *settings,
            average: Ewma::new(settings.smoothing_ms.millis()),
            last: None,
            rise_per_s: 0.0,
            risen_from: None,
            calm_since: None,
            weights: VecDeque::with_capacity(WEIGHTS_MAX),
            spike: None,
        }
    }

    /// All platforms together weigh so much, of so much RAM, bytes; those that have just started count with what they are known to
    /// come to. Returns whether that is a spike that was none
    /// before.
    pub fn weigh(&mut self, now: Time, bytes: u64, ram_total: u64) -> bool {
        let settings = &self.settings;
        let span = settings.spike_ms.millis();
        while self.weights.front().is_some_and(|(at, _)| now - *at > span) {
            self.weights.pop_front();
        }
        let least = self.weights.iter().map(|(_, bytes)| *bytes).min().unwrap_or(bytes);
        let grown = bytes.saturating_sub(least);
        let is_spike = settings.spike_times.value() > 0
            && bytes >= least.saturating_mul(settings.spike_times.value())
            && grown >= settings.spike_min_mb.value() * crate::MEGABYTE;
        let percent = grown as f64 / ram_total.max(1) as f64 * 100.0;
        let spike = is_spike.then_some(Spike { at: now, from: least, to: bytes, percent });
        let was_spike = std::mem::replace(&mut self.spike, spike).is_some();
        let is_due = self.weights.back().is_none_or(|(at, _)| now - *at >= span / WEIGHTS_MAX as u32);
        if is_due {
            if self.weights.len() == WEIGHTS_MAX {
                self.weights.pop_front();
            }
            self.weights.push_back((now, bytes));
        }
        is_spike && !was_spike
    }

    /// What they weighed before is nothing to compare with any more.
    pub fn forget_weights(&mut self) {
        self.weights.clear();
        self.spike = None;
    }

    /// RAM was measured, percent of all, and is forecast to be something. A sample that is not later than the last changes
    /// nothing.
    pub fn take(&mut self, now: Time, ram_percent: f64, forecast: Option<&Forecast>) -> Finding {
        let settings = self.settings;
        if self.last.is_some_and(|(at, _)| now <= at) {
            return Finding::Fair;
        }
        self.average.take(now, ram_percent);
        let average = self.average.level().unwrap_or(ram_percent);
        let gap_max = super::window::gap_max(&settings);
        let has_gap = self.last.is_some_and(|(at, _)| now - at > gap_max);
        // Samples that are milliseconds apart differ by noise only.
        let least = settings.fast_interval_ms.millis() / 2;
        match self.risen_from.filter(|_| !has_gap) {
            Some((at, _)) if now - at < least => {}
            Some((at, before)) => {
                self.rise_per_s = (ram_percent - before) / (now - at).as_secs_f64();
                self.risen_from = Some((now, ram_percent));
            }
            None => (self.rise_per_s, self.risen_from) = (0.0, Some((now, ram_percent))),
        }
        // One that nobody has confirmed since is over.
        self.spike = self.spike.filter(|spike| now - spike.at <= settings.spike_ms.millis());
        self.last = Some((now, ram_percent));
        let [shed, restore, emergency] =
            [settings.shed_percent.value(), settings.restore_percent.value(), settings.emergency_percent.value()]
                .map(|percent| percent as f64);
        let is_calm = ram_percent <= restore && average <= restore;
        // Nobody knows how it was meanwhile.
        self.calm_since = if is_calm { self.calm_since.filter(|_| !has_gap).or(Some(now)) } else { None };
        if ram_percent >= emergency {
            return Finding::Short(Shortage::Emergency);
        }
        // What the platforms weigh has shown that it is no passing height.
        if ram_percent >= shed && (average >= shed || self.spike.is_some()) {
            return Finding::Short(Shortage::Above);
        }
        if let Some(since) = self.calm_since {
            return Finding::Calm(now - since);
        }
        // As much once more, and RAM would be short.
        let matters = |spike: &Spike| ram_percent > restore && ram_percent + spike.percent >= shed;
        if let Some(Spike { from, to, .. }) = self.spike.filter(matters) {
            return Finding::Short(Shortage::Spike { from, to });
        }
        match forecast.filter(|_| settings.use_forecasts) {
            // Whoever has no interval has not shown yet how far off he is.
            Some(Forecast { ram_percent: ahead, interval: Some((low, _)), .. })
                if *ahead >= shed && *low > restore && ram_percent > restore =>
            {
                Finding::Short(Shortage::Forecast { ram_permille: (ahead * 10.0) as u32 })
            }
            Some(_) | None => Finding::Fair,
        }
    }

    /// Whether the forecast is a reason to restore nothing yet.
    pub fn delays(&self, forecast: Option<&Forecast>) -> bool {
        let restore = self.settings.restore_percent.value() as f64;
        self.settings.use_forecasts && forecast.is_some_and(|forecast| forecast.ram_percent > restore)
    }

    /// Something came back: how RAM is with it has to be seen first.
    pub fn restored(&mut self, now: Time) {
        self.calm_since = self.calm_since.map(|_| now);
    }

    /// Since when RAM has been calm, if it is.
    pub fn calm_since(&self) -> Option<Time> {
        self.calm_since
    }

    /// Whether there is no time to wait for what a mild step may win: the platforms have grown fast, or RAM rises so fast
    /// that it would have nearly run out when the step's time is over.
    pub fn is_pressing(&self) -> bool {
        let rise = self.rise_per_s * self.settings.cooldown_ms.millis().as_secs_f64();
        let emergency = self.settings.emergency_percent.value() as f64;
        let is_rising = |(_, ram_percent): (Time, f64)| ram_percent + rise >= emergency;
        self.spike.is_some() || self.settings.use_forecasts && self.last.is_some_and(is_rising)
    }

    /// Whether RAM is near where something has to be done.
    pub fn is_near(&self) -> bool {
        let near = self.settings.shed_percent.value() as f64 - NEAR_PERCENT;
        self.spike.is_some() || self.last.is_some_and(|(_, ram_percent)| ram_percent >= near)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy::new(&config::Scaler::default())
    }

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    fn forecast(ram_percent: f64, half_width: Option<f64>) -> Forecast {
        Forecast::new(Time::ZERO, at(300), ram_percent, half_width)
    }

    #[test]
    fn one_high_sample_is_no_shortage_and_several_are() {
        let mut policy = policy();
        assert_eq!(policy.take(at(0), 60.0, None), Finding::Calm(Duration::ZERO));
        assert_eq!(policy.take(at(1), 85.0, None), Finding::Fair);
        let findings: Vec<Finding> = (2..12).map(|second| policy.take(at(second), 85.0, None)).collect();
        assert_eq!(findings.last(), Some(&Finding::Short(Shortage::Above)));
        assert_eq!(policy.take(at(12), 79.9, None), Finding::Fair, "below the threshold, whatever the average says");
    }

    #[test]
    fn an_emergency_is_one_at_once() {
        let mut policy = policy();
        policy.take(at(0), 50.0, None);
        assert_eq!(policy.take(at(1), 95.0, None), Finding::Short(Shortage::Emergency));
    }

    #[test]
    fn calm_is_counted_from_its_beginning_and_anew_after_a_gap_or_a_restore() {
        let mut policy = policy();
        policy.take(at(0), 70.0, None);
        for second in (30..=330).step_by(30) {
            assert_eq!(policy.take(at(second), 60.0, None), Finding::Calm(Duration::from_secs(second - 30)));
        }
        policy.restored(at(330));
        assert_eq!(policy.take(at(360), 65.0, None), Finding::Calm(Duration::from_secs(30)));
        assert_eq!(policy.take(at(900), 60.0, None), Finding::Calm(Duration::ZERO), "nobody looked for nine minutes");
        assert_eq!(policy.take(at(930), 65.1, None), Finding::Fair);
        assert_eq!(policy.calm_since(), None);
    }

    #[test]
    fn a_forecast_may_shed_early_if_it_knows_how_far_off_it_is_and_never_below_the_lower_threshold() {
        for (now, ahead, half_width, is_short) in [
            (75.0, 84.0, Some(5.0), true),
            (75.0, 84.0, None, false),
            (75.0, 84.0, Some(30.0), false),
            (75.0, 79.0, Some(1.0), false),
            (60.0, 90.0, Some(1.0), false),
        ] {
            let found = policy().take(at(0), now, Some(&forecast(ahead, half_width)));
            assert_eq!(matches!(found, Finding::Short(Shortage::Forecast { .. })), is_short, "{now} {ahead} {found:?}");
        }
        assert!(policy().delays(Some(&forecast(66.0, None))) && !policy().delays(Some(&forecast(65.0, None))));
    }

    #[test]
    fn without_forecasts_only_what_is_counts() {
        let settings = config::Scaler { use_forecasts: false, ..config::Scaler::default() };
        let mut policy = Policy::new(&settings);
        assert_eq!(policy.take(at(0), 75.0, Some(&forecast(84.0, Some(1.0)))), Finding::Fair);
        assert!(!policy.delays(Some(&forecast(90.0, None))));
    }

    #[test]
    fn a_spike_doubles_within_its_time_and_by_more_than_its_floor() {
        let of = |weights: &[(u64, u64)]| {
            let mut policy = policy();
            for (second, megabytes) in weights {
                policy.weigh(at(*second), megabytes * crate::MEGABYTE, 1_000 * crate::MEGABYTE);
            }
            policy.take(at(31), 70.0, None)
        };
        assert!(matches!(of(&[(0, 100), (10, 210)]), Finding::Short(Shortage::Spike { .. })));
        assert_eq!(of(&[(0, 10), (10, 90)]), Finding::Fair, "eighty megabytes are no matter");
        assert_eq!(of(&[(0, 300), (10, 500)]), Finding::Fair, "it has not doubled");
        assert_eq!(of(&[(0, 100), (31, 210)]), Finding::Fair, "it took longer");
        let mut large = policy();
        large.weigh(at(0), 100 * crate::MEGABYTE, 10_000 * crate::MEGABYTE);
        large.weigh(at(10), 300 * crate::MEGABYTE, 10_000 * crate::MEGABYTE);
        assert_eq!(large.take(at(11), 70.0, None), Finding::Fair, "two of a hundred are no matter there");
        let mut calm = policy();
        let gigabyte = 1_000 * crate::MEGABYTE;
        assert!(!calm.weigh(at(0), gigabyte / 10, gigabyte) && calm.weigh(at(1), gigabyte / 10 * 3, gigabyte));
        assert_eq!(calm.take(at(2), 40.0, None), Finding::Calm(Duration::ZERO), "there is RAM enough");
    }

    #[test]
    fn a_spike_above_the_threshold_is_a_shortage_at_once() {
        let gigabyte = 1_000 * crate::MEGABYTE;
        for (from, is_short) in [(100, true), (300, false)] {
            let mut policy = policy();
            policy.take(at(0), 50.0, None);
            policy.weigh(at(0), from * crate::MEGABYTE, gigabyte);
            policy.weigh(at(1), 450 * crate::MEGABYTE, gigabyte);
            assert_eq!(policy.take(at(1), 85.0, None) == Finding::Short(Shortage::Above), is_short, "from {from} MB");
        }
    }

    #[test]
    fn a_clock_that_stands_still_changes_nothing() {
        let mut policy = policy();
        policy.take(at(10), 50.0, None);
        assert_eq!(policy.take(at(10), 99.0, None), Finding::Fair);
    }
}
