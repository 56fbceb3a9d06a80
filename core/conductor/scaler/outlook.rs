//! What RAM will be: takes every reading, and has every forecaster say what comes of it.

use std::time::Duration;

use super::competition::{Competition, Forecast, Promotion, Score, CONFIDENCE, MODELS};
use super::features::{seasonal, trend, used_in_seasons, used_in_trends, DATE_MAX};
use super::history::History;
use super::least_squares::{Fit, Row, COLUMNS};
use super::smoothing::{Ewma, Holt};
use super::student::two_sided;
use super::window::{gap_max, is_rate, Reading, Unfit, Window};
use crate::config::{self, Model};
use crate::time::Time;

/// What became of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Taken {
    /// It was refused, and nothing has changed.
    Unfit(Unfit),
    /// There are new forecasts.
    Forecast,
    /// And another forecaster is believed from now on.
    Promoted(Promotion),
}

/// Level and trend of the averages follow from how far ahead they look: a fifth of it, and all of it.
const HORIZONS_OF_LEVEL: u32 = 5;
/// Fewer rows, or degrees of freedom, are no experience to go by.
const ROWS_MIN: usize = 10;
const DEGREES_MIN: u32 = 5;

/// All forecasters and their competition. It holds some 70 KiB, whatever it is given, and allocates nothing after it was
/// made.
#[derive(Clone, Debug)]
pub struct Outlook {
    columns: config::Columns,
    horizon: Duration,
    window: Window,
    history: History,
    ewma: Ewma,
    holt: Holt,
    competition: Competition,
    forecasts: [Option<Forecast>; MODELS],
    /// What the last sample's least squares found: without seasons, and with.
    fits: [Option<Fit>; 2],
    /// The history has other rows than those that the last fit with seasons went by; they change every few minutes only.
    is_history_new: bool,
    /// Of both, how many standard errors 95 % lie within, with so many degrees of freedom.
    quantiles: [(u32, f64); 2],
}

impl Outlook {
    /// One that knows nothing yet.
    pub fn new(settings: &config::Scaler) -> Outlook {
        let horizon = settings.horizon_ms.millis();
        let level = horizon / HORIZONS_OF_LEVEL;
        Outlook {
            columns: settings.columns,
            horizon,
            window: Window::new(settings),
            history: History::new(settings),
            ewma: Ewma::new(level),
            holt: Holt::new(level, horizon, gap_max(settings)),
            competition: Competition::new(settings),
            forecasts: [None; MODELS],
            fits: [None, None],
            is_history_new: true,
            quantiles: [(0, 0.0); 2],
        }
    }

    /// Takes a reading: judges the forecasts whose time has come, and makes new ones.
    pub fn take(&mut self, now: Time, reading: &Reading) -> Taken {
        if let Some(unfit) = self.window.take(now, reading) {
            return Taken::Unfit(unfit);
        }
        let promotion = self.competition.judge(now, reading.ram_percent);
        self.ewma.take(now, reading.ram_percent);
        self.holt.take(now, reading.ram_percent);
        if let (Some(date_s), Some(row)) = (reading.date_s, self.window.last_row()) {
            self.is_history_new |= self.history.take(date_s, row);
        }
        self.forecast_all(now, reading);
        promotion.map_or(Taken::Forecast, Taken::Promoted)
    }

    fn forecast_all(&mut self, now: Time, reading: &Reading) {
        let due = now + self.horizon;
        let ahead = self.window.ahead().unwrap_or_default();
        let date_s = reading
            .date_s
            .filter(|date_s| *date_s <= DATE_MAX)
            .map(|date_s| date_s.saturating_add(self.horizon.as_secs()));
        let ahead_in_seasons = date_s.map(|date_s| seasonal(date_s, ahead));
        let in_seasons = used_in_seasons(&self.columns, self.history.reach_s());
        self.fits[0] = fit(self.window.rows(), used_in_trends(&self.columns));
        if ahead_in_seasons.is_none() {
            (self.fits[1], self.is_history_new) = (None, true);
        } else if std::mem::take(&mut self.is_history_new) {
            self.fits[1] = fit(self.history.rows(), in_seasons);
        }
        for (fit, quantile) in self.fits.iter().zip(&mut self.quantiles) {
            let degrees = fit.as_ref().map(Fit::degrees);
            if let Some(degrees) = degrees.filter(|degrees| *degrees != quantile.0) {
                *quantile = (degrees, two_sided(CONFIDENCE, degrees));
            }
        }
        let of_fit = |place: usize, columns: [f64; COLUMNS]| {
            let fit = self.fits[place].as_ref()?;
            let half_width = self.quantiles[place].1 * fit.prediction_error(&columns);
            Some((fit.predict(&columns), half_width)).filter(|(value, half_width)| (value + half_width).is_finite())
        };
        let found = Model::ALL.map(|model| match model {
            Model::LastValue => Some((reading.ram_percent, 0.0)),
            Model::Ewma => self.ewma.level().map(|level| (level, 0.0)),
            Model::Holt => self.holt.ahead(self.horizon).map(|level| (level, 0.0)),
            Model::Ols => of_fit(0, ahead),
            Model::OlsSeasons => of_fit(1, ahead_in_seasons?),
        });
        self.forecasts = Model::ALL.map(|model| {
            let (value, of_fit) = found[model as usize]?;
            // A fit knows how far from its rows it looks, and errors know what the fit does not: the wider of the two.
            let half_width = match (self.competition.half_width(model), model) {
                (Some(of_errors), _) => Some(of_errors.max(of_fit)),
                (None, Model::Ols | Model::OlsSeasons) => Some(of_fit),
                (None, Model::LastValue | Model::Ewma | Model::Holt) => None,
            };
            Some(Forecast::new(now, due, value, half_width))
        });
        self.competition.enter(due, &self.forecasts);
    }

    /// What was known before the start: used RAM, in percent of all, at a date in seconds since 1970, and what RAM (percent)
    /// and requests per second were one horizon before it. In the order of their dates, before the first reading; what is no
    /// share of RAM or no rate is passed over.
    pub fn recall(&mut self, date_s: u64, ram_percent: f64, lagged_ram: f64, request_rate: f64) {
        let is_share = |share: f64| share > 0.0 && share <= 100.0;
        if is_share(ram_percent) && is_share(lagged_ram) && is_rate(request_rate) {
            let row = Row { columns: trend(0.0, lagged_ram, request_rate), target: ram_percent };
            self.is_history_new |= self.history.take(date_s, &row);
        }
    }

    /// The champion's forecast, as of the last reading that was taken. `None` if it has too little to go by.
    pub fn forecast(&self) -> Option<Forecast> {
        self.forecast_of(self.champion())
    }

    /// The forecast of any.
    pub fn forecast_of(&self, model: Model) -> Option<Forecast> {
        self.forecasts[model as usize]
    }

    /// Who is believed.
    pub fn champion(&self) -> Model {
        self.competition.champion()
    }

    /// How well one has forecast lately.
    pub fn score(&self, model: Model) -> Score {
        self.competition.score(model)
    }

    /// Forecasts that nobody could judge, because there was a gap at their time.
    pub fn unjudged(&self) -> u64 {
        self.competition.unjudged()
    }

    /// What least squares found at the last reading, for those who want to see coefficients; `None` of other models.
    pub fn fit(&self, model: Model) -> Option<&Fit> {
        match model {
            Model::Ols => self.fits[0].as_ref(),
            Model::OlsSeasons => self.fits[1].as_ref(),
            Model::LastValue | Model::Ewma | Model::Holt => None,
        }
    }

    /// All the memory that it holds, bytes.
    pub fn bytes(&self) -> usize {
        let heap = self.window.heap_bytes() + self.history.heap_bytes() + self.competition.heap_bytes();
        size_of::<Outlook>() + heap
    }

    /// Asserts what always holds.
    pub fn check(&self) {
        self.competition.check();
        for forecast in self.forecasts.iter().flatten() {
            assert!((0.0..=100.0).contains(&forecast.ram_percent), "{forecast:?} is no share");
            let (low, high) = forecast.interval.unwrap_or((0.0, 100.0));
            assert!(low <= forecast.ram_percent && forecast.ram_percent <= high, "{forecast:?} is beside its interval");
            assert!(low >= 0.0 && high <= 100.0, "{forecast:?} has an interval of no shares");
        }
    }
}

fn fit<'a>(rows: impl Iterator<Item = &'a Row> + Clone, used: [bool; COLUMNS]) -> Option<Fit> {
    rows.clone().nth(ROWS_MIN - 1)?;
    Fit::of(rows, used).filter(|fit| fit.degrees() >= DEGREES_MIN)
}

#[cfg(test)]
#[path = "outlook/tests.rs"]
mod tests;
