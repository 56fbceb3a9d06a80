//! Who forecasts best: champion and challengers, judged by what came.
//!
//! ```text
//! forecast ──► pending ── its time comes ──► a round: the error of each, and whether its interval held
//!                │                              │
//!                └── a gap: nobody knows        └──► mean errors, coverage, intervals; perhaps a promotion
//! ```
//!
//! A forecast is compared with RAM at its time, on the line between the samples on either side. A challenger leads while its
//! mean absolute error is less than the champion's
//!
//! - over the same rounds, of which there are twenty at least,
//! - by the margin, and by a twentieth of a point, and
//! - by two standard errors of the difference. Forecasts whose times overlap share what happened to them, so of rounds over
//!   an hour, with a horizon of five minutes, no more than twelve count as independent (it is the test of Diebold and
//!   Mariano, 1995, with a bound in place of an estimate of that).
//!
//! Whoever leads without a break for `lead_ms` is promoted: the best, if several do. From then on rounds are counted anew, so
//! that nothing speaks twice and two can never take turns on the same evidence.
//!
//! A champion that has had no forecast in twenty rounds, and none whose time is still to come, is replaced by whoever has had them.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::window::{gap_max, interpolate};
use crate::config::{self, Model};
use crate::time::Time;

/// How many forecast.
pub const MODELS: usize = Model::ALL.len();

/// What RAM will be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// When it was made.
    pub made_at: Time,
    /// What time it is for.
    pub due: Time,
    /// Used RAM, in percent of all, 0 to 100.
    pub ram_percent: f64,
    /// Between which it lies with 95 %, percent; `None` before there is anything to tell it from.
    pub interval: Option<(f64, f64)>,
}

impl Forecast {
    /// With everything held to 0 to 100 %, and an interval of so much on both sides.
    pub fn new(made_at: Time, due: Time, ram_percent: f64, half_width: Option<f64>) -> Forecast {
        let ram_percent = ram_percent.clamp(0.0, 100.0);
        let interval = half_width.map(|half| ((ram_percent - half).max(0.0), (ram_percent + half).min(100.0)));
        Forecast { made_at, due, ram_percent, interval }
    }
}

/// Which part of forecasts their intervals are to hold.
pub const CONFIDENCE: f64 = 0.95;
/// Rounds that are remembered: an hour of samples every 30 s.
const ROUNDS_MAX: usize = 128;
/// Fewer rounds than this say nothing; it is also the fewest of which the largest error bounds 95 % of others.
const ROUNDS_MIN: usize = 20;
/// Parts of the horizon that have one forecast each that is judged: every ten seconds of five minutes.
const PARTS: u32 = 30;
const PENDING_MAX: usize = PARTS as usize + 2;
/// Nobody sheds for a twentieth of a percent: less than this is no lead.
const LEAD_MIN_POINTS: f64 = 0.05;
/// A lead of fewer standard errors is chance.
const LEAD_MIN_ERRORS: f64 = 2.0;

#[derive(Clone, Copy, Debug)]
struct Pending {
    due: Time,
    forecasts: [Option<Forecast>; MODELS],
}

/// How far off a forecast was.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Points of percent, not negative.
    error: f64,
    /// Whether its interval held what came, if it had one.
    held: Option<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    due: Time,
    marks: [Option<Mark>; MODELS],
}

/// What two have shown over the rounds in which both had a forecast.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    rounds: u32,
    to_errors: f64,
    from_errors: f64,
    /// Squares of the differences between the two.
    squares: f64,
    /// The times of the first round and of the last.
    times: Option<(Time, Time)>,
}

impl Pair {
    fn add(&mut self, due: Time, to: f64, from: f64) {
        self.rounds += 1;
        self.to_errors += to;
        self.from_errors += from;
        self.squares += (from - to).powi(2);
        self.times = Some((self.times.map_or(due, |(first, _)| first), due));
    }

    /// The mean errors of both, if the one is better and that is no chance.
    fn lead(&self, horizon: Duration, part_max: f64) -> Option<(f64, f64)> {
        let (first, last) = self.times?;
        let count = f64::from(self.rounds);
        let (to, from) = (self.to_errors / count, self.from_errors / count);
        let lead = from - to;
        let variance = (self.squares / count - lead * lead).max(0.0);
        let independent = ((last - first).as_secs_f64() / horizon.as_secs_f64()).clamp(1.0, count);
        let is_chance = lead * lead * independent < LEAD_MIN_ERRORS.powi(2) * variance;
        (to <= from * part_max && lead >= LEAD_MIN_POINTS && !is_chance).then_some((to, from))
    }
}

/// How well one has forecast lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Forecasts that were judged, of the last 128.
    pub rounds: u32,
    /// Their mean absolute error, points of percent; `None` of none.
    pub mean_error: Option<f64>,
    /// The part of their 95 % intervals that held, 0 to 1; `None` if none had one.
    pub coverage: Option<f64>,
}

/// That another is believed from now on, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Promotion {
    /// Who is believed from now on.
    pub to: Model,
    /// Who was until now.
    pub from: Model,
    /// Mean absolute error of the new one, thousandths of a point of percent.
    pub to_error_milli: u32,
    /// That of the old one over the same rounds; `None` if it had no forecasts.
    pub from_error_milli: Option<u32>,
    /// How many rounds these are.
    pub rounds: u32,
    /// How long the new one had led.
    pub led: Duration,
}

impl fmt::Display for Promotion {
    /// "promoted ols over last_value: its mean error was 0.412 points against 1.310 over 57 forecasts, and it had led for 10 min"
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let points = |milli: u32| f64::from(milli) / 1000.0;
        let (to, from, seconds) = (self.to.name(), self.from.name(), self.led.as_secs());
        write!(formatter, "promoted {to} over {from}: its mean error was {:.3} points ", points(self.to_error_milli))?;
        match self.from_error_milli {
            Some(milli) => write!(formatter, "against {:.3} ", points(milli))?,
            None => write!(formatter, "and the other had no forecast, ")?,
        }
        write!(formatter, "over {} forecasts, and it had led for ", self.rounds)?;
        match seconds {
            0..120 => write!(formatter, "{seconds} s"),
            120.. => write!(formatter, "{} min", seconds / 60),
        }
    }
}

/// Champion and challengers. See the module.
#[derive(Clone, Debug)]
pub struct Competition {
    horizon: Duration,
    gap_max: Duration,
    lead: Duration,
    may_promote: bool,
    /// A challenger's error must be at most this part of the champion's.
    part_max: f64,
    champion: Model,
    pending: VecDeque<Pending>,
    rounds: VecDeque<Round>,
    /// Rounds since the last promotion, those that have been forgotten included.
    fresh: usize,
    /// Since when each has led.
    leading: [Option<Time>; MODELS],
    last: Option<(Time, f64)>,
    unjudged: u64,
    /// Of each, by the rounds that there are.
    half_widths: [Option<f64>; MODELS],
}

impl Competition {
    /// One without rounds, whose champion is the configured one.
    pub fn new(settings: &config::Scaler) -> Competition {
        Competition {
            horizon: settings.horizon_ms.millis(),
            gap_max: gap_max(settings),
            lead: settings.lead_ms.millis(),
            may_promote: settings.may_promote,
            part_max: 1.0 - settings.margin_percent.value() as f64 / 100.0,
            champion: settings.champion,
            pending: VecDeque::with_capacity(PENDING_MAX),
            rounds: VecDeque::with_capacity(ROUNDS_MAX),
            fresh: 0,
            leading: [None; MODELS],
            last: None,
            unjudged: 0,
            half_widths: [None; MODELS],
        }
    }

    /// RAM was measured, in percent: judges every forecast whose time has come. Returns whom that promotes.
    pub fn judge(&mut self, now: Time, ram_percent: f64) -> Option<Promotion> {
        let last = self.last.replace((now, ram_percent));
        let mut promotion = None;
        while let Some(pending) = self.pending.front().filter(|pending| pending.due <= now).copied() {
            self.pending.pop_front();
            let truth = match last {
                _ if pending.due == now => Some(ram_percent),
                Some(last) => interpolate(last, (now, ram_percent), pending.due, self.gap_max),
                None => None,
            };
            if let Some(truth) = truth {
                self.close_round(&pending, truth);
                if promotion.is_none() {
                    promotion = self.promote(now);
                }
            } else {
                self.unjudged += 1;
                self.leading = [None; MODELS];
            }
        }
        promotion
    }

    fn close_round(&mut self, pending: &Pending, truth: f64) {
        let mark = |forecast: Forecast| Mark {
            error: (forecast.ram_percent - truth).abs(),
            held: forecast.interval.map(|(low, high)| (low..=high).contains(&truth)),
        };
        if self.rounds.len() == ROUNDS_MAX {
            self.rounds.pop_front();
        }
        let marks = pending.forecasts.map(|forecast| forecast.map(mark));
        self.rounds.push_back(Round { due: pending.due, marks });
        self.fresh += 1;
        self.half_widths = Model::ALL.map(|model| self.half_width_of_rounds(model));
    }

    /// The best of those who have led for long enough.
    fn promote(&mut self, now: Time) -> Option<Promotion> {
        let from = self.champion;
        let mut best: Option<(f64, Promotion)> = None;
        for to in Model::ALL.into_iter().filter(|to| *to != from) {
            let Some((error, from_error, rounds)) = self.compare(to, from) else {
                self.leading[to as usize] = None;
                continue;
            };
            let led = now - *self.leading[to as usize].get_or_insert(now);
            if self.may_promote && led >= self.lead && best.is_none_or(|(least, _)| error < least) {
                let milli = |points: f64| (points * 1000.0).round() as u32;
                let (to_error_milli, from_error_milli) = (milli(error), from_error.map(milli));
                best = Some((error, Promotion { to, from, to_error_milli, from_error_milli, rounds, led }));
            }
        }
        let (_, promotion) = best?;
        self.champion = promotion.to;
        (self.fresh, self.leading) = (0, [None; MODELS]);
        Some(promotion)
    }

    /// The mean errors of both and how many rounds they are over, if the one leads.
    fn compare(&self, to: Model, from: Model) -> Option<(f64, Option<f64>, u32)> {
        let fresh = self.rounds.range(self.rounds.len() - self.fresh.min(self.rounds.len())..);
        // It may need a horizon of samples before its first forecast, and another until that is judged.
        let awaits = self.pending.iter().any(|pending| pending.forecasts[from as usize].is_some());
        let mut lately = fresh.clone().rev().take(ROUNDS_MIN);
        let is_silent = !awaits && lately.all(|round| round.marks[from as usize].is_none());
        let (mut pair, mut alone, mut rounds_alone) = (Pair::default(), 0.0, 0u32);
        for Round { due, marks } in fresh {
            match (marks[to as usize], marks[from as usize]) {
                (Some(to), Some(from)) => pair.add(*due, to.error, from.error),
                (Some(to), None) => (alone, rounds_alone) = (alone + to.error, rounds_alone + 1),
                (None, _) => {}
            }
        }
        if is_silent {
            let mean = alone / f64::from(rounds_alone);
            return (rounds_alone as usize >= ROUNDS_MIN).then_some((mean, None, rounds_alone));
        }
        let (to, from) = pair.lead(self.horizon, self.part_max)?;
        (pair.rounds as usize >= ROUNDS_MIN).then_some((to, Some(from), pair.rounds))
    }

    /// What each forecasts now, all for the same time; they are judged when it comes. Not all of them are, if samples come
    /// faster than ten seconds of a horizon of five minutes.
    pub fn enter(&mut self, due: Time, forecasts: &[Option<Forecast>; MODELS]) {
        let is_too_early = self.pending.back().is_some_and(|last| due < last.due + self.horizon / PARTS);
        if !is_too_early && self.pending.len() < PENDING_MAX {
            self.pending.push_back(Pending { due, forecasts: *forecasts });
        }
    }

    /// Who is believed.
    pub fn champion(&self) -> Model {
        self.champion
    }

    /// How well one has forecast lately.
    pub fn score(&self, model: Model) -> Score {
        let (mut sum, mut rounds, mut held, mut intervals) = (0.0, 0u32, 0u32, 0u32);
        for mark in self.rounds.iter().filter_map(|round| round.marks[model as usize]) {
            sum += mark.error;
            rounds += 1;
            held += u32::from(mark.held == Some(true));
            intervals += u32::from(mark.held.is_some());
        }
        let part = |sum: f64, count: u32| (count > 0).then(|| sum / f64::from(count));
        Score { rounds, mean_error: part(sum, rounds), coverage: part(f64::from(held), intervals) }
    }

    /// Half the width of an interval that would have held 95 % of what came lately, points of percent: of n errors the
    /// ⌈0.95 (n + 1)⌉th, from the least on (conformal prediction; Vovk, Gammerman and Shafer, 2005). It takes no distribution
    /// for granted, only that errors to come are like those that were. `None` with fewer than twenty.
    pub fn half_width(&self, model: Model) -> Option<f64> {
        self.half_widths[model as usize]
    }

    fn half_width_of_rounds(&self, model: Model) -> Option<f64> {
        let (mut errors, mut count) = ([0.0; ROUNDS_MAX], 0);
        for mark in self.rounds.iter().filter_map(|round| round.marks[model as usize]) {
            errors[count] = mark.error;
            count += 1;
        }
        let rank = (CONFIDENCE * (count + 1) as f64).ceil() as usize;
        if count < ROUNDS_MIN || rank > count {
            return None;
        }
        let (_, half_width, _) = errors[..count].select_nth_unstable_by(rank - 1, f64::total_cmp);
        Some(*half_width)
    }

    /// Forecasts that nobody could judge, because there was a gap at their time.
    pub fn unjudged(&self) -> u64 {
        self.unjudged
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.pending.capacity() * size_of::<Pending>() + self.rounds.capacity() * size_of::<Round>()
    }

    /// Asserts that its rings keep to their bounds and their order.
    pub fn check(&self) {
        assert!(self.pending.len() <= PENDING_MAX && self.rounds.len() <= ROUNDS_MAX, "a ring has outgrown its bound");
        let in_order = self.pending.iter().zip(self.pending.iter().skip(1)).all(|(one, next)| one.due < next.due);
        assert!(in_order, "forecasts wait out of order");
        assert!(self.leading[self.champion as usize].is_none(), "the champion leads over itself");
    }
}

#[cfg(test)]
#[path = "competition/tests.rs"]
mod tests;
