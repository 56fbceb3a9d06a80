//! `GET /v1/scaling`: how RAM is, what it is forecast to be, and what was decided about it lately. `docs/scaling.md` describes
//! it.

use demi_conductor::scaler::{Act, Decision, Figures};
use demi_conductor::{Conductor, Time, MEGABYTE};
use serde::Serialize;
use serde_json::value::{to_raw_value, RawValue};

use super::{json, read_numbers};
use crate::problem::Problem;
use crate::shell::DECISIONS_SHOWN;
use crate::store::{KeptDecision, DECISIONS_MAX};

/// The page, as far as it is known without the store.
#[derive(Serialize)]
pub(crate) struct ScalingPage {
    enabled: bool,
    forecast_only: bool,
    shed_percent: u64,
    restore_percent: u64,
    emergency_percent: u64,
    /// Before the first sample there is none.
    now: Option<NowPage>,
    /// Names of those that are shed.
    shed: Vec<String>,
    /// Newest first.
    decisions: Vec<Box<RawValue>>,
    /// How many of them there may be.
    #[serde(skip)]
    limit: usize,
}

#[derive(Serialize)]
struct NowPage {
    #[serde(flatten)]
    figures: FiguresPage,
    measured_s_ago: u64,
    /// RAM cannot be measured any more: it was so then.
    stale: bool,
}

#[derive(Serialize)]
struct FiguresPage {
    ram_percent: f64,
    ram_used_mb: u64,
    ram_total_mb: u64,
    forecast_percent: Option<f64>,
    forecast_interval_percent: Option<(f64, f64)>,
    forecast_by: Option<&'static str>,
}

#[derive(Serialize)]
struct DecisionPage<'s> {
    unix_ms: u64,
    platform: Option<&'s str>,
    act: &'static str,
    /// `false`: with `forecast_only` it would have been.
    done: bool,
    text: String,
    threshold_percent: u32,
    /// Of a step: why RAM was taken for short.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    /// Of a step: its platform goes before its turn, because it is to blame.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    out_of_turn: bool,
    #[serde(flatten)]
    figures: FiguresPage,
    /// How much less RAM is used since a step; negative: more.
    #[serde(skip_serializing_if = "Option::is_none")]
    won_mb: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_mb: Option<u64>,
}

/// Reads the query of `GET /v1/scaling`: how many decisions are wanted.
pub(crate) fn read_scaling(query: &str) -> Result<usize, Problem> {
    let [limit] = read_numbers(query, ["limit"], "limit=128")?;
    let limit = limit.unwrap_or(DECISIONS_SHOWN as u64);
    match usize::try_from(limit) {
        Ok(limit @ 1..=DECISIONS_MAX) => Ok(limit),
        Ok(_) | Err(_) => {
            Err(Problem::new(400, format!("limit={limit}: limit must be a number from 1 to {DECISIONS_MAX}")))
        }
    }
}

/// A decision as it is kept and shown. `platform` is the name of the one that it is about, `text` what it says in words.
pub(crate) fn decision_json(unix_ms: u64, platform: Option<&str>, decision: &Decision, text: String) -> Box<RawValue> {
    let page = DecisionPage {
        unix_ms,
        platform,
        act: decision.act.name(),
        done: decision.is_done,
        text,
        threshold_percent: decision.figures.threshold_percent,
        cause: decision.figures.cause.map(|cause| cause.shortage.name()),
        out_of_turn: decision.figures.cause.is_some_and(|cause| cause.is_out_of_turn),
        figures: figures_page(&decision.figures),
        won_mb: match decision.act {
            Act::Won { bytes, .. } => Some(bytes / MEGABYTE as i64),
            _ => None,
        },
        missing_mb: match decision.act {
            Act::Wait { missing } | Act::Refuse { missing } | Act::Postpone { missing } | Act::Overrule { missing } => {
                Some(missing.div_ceil(MEGABYTE))
            }
            _ => None,
        },
    };
    to_raw_value(&page).expect("text and numbers always serialise")
}

impl ScalingPage {
    /// With the decisions that are in memory, newest first, and room for so many in all.
    pub(crate) fn new(conductor: &Conductor, limit: usize, decisions: Vec<Box<RawValue>>, now: Time) -> ScalingPage {
        let settings = conductor.scaler();
        let is_shed = |platform: &demi_conductor::PlatformStatus<'_>| {
            platform.instances.iter().any(|instance| instance.state == "shed")
        };
        let now_page = |figures: Figures| NowPage {
            figures: figures_page(&figures),
            measured_s_ago: conductor.sample_age(now).unwrap_or_default().as_secs(),
            stale: conductor.is_sample_stale(now),
        };
        ScalingPage {
            enabled: settings.enabled,
            forecast_only: settings.forecast_only,
            shed_percent: settings.shed_percent.value(),
            restore_percent: settings.restore_percent.value(),
            emergency_percent: settings.emergency_percent.value(),
            now: conductor.ram_figures().map(now_page),
            shed: conductor.platforms().filter(is_shed).map(|platform| platform.name.to_owned()).collect(),
            decisions,
            limit,
        }
    }

    /// How many more decisions it may have.
    pub(crate) fn room(&self) -> usize {
        self.limit - self.decisions.len().min(self.limit)
    }

    /// As JSON, with those that were decided before.
    pub(crate) fn complete(mut self, older: Vec<KeptDecision>) -> Vec<u8> {
        self.decisions.extend(older.into_iter().map(|kept| kept.page));
        json(&self).body
    }
}

fn figures_page(figures: &Figures) -> FiguresPage {
    let percent = |permille: u32| f64::from(permille) / 10.0;
    let forecast = figures.forecast;
    let interval = forecast.and_then(|ahead| ahead.interval_permille);
    FiguresPage {
        ram_percent: percent(figures.ram_permille),
        ram_used_mb: figures.ram_used / MEGABYTE,
        ram_total_mb: figures.ram_total / MEGABYTE,
        forecast_percent: forecast.map(|ahead| percent(ahead.ram_permille)),
        forecast_interval_percent: interval.map(|(low, high)| (percent(low), percent(high))),
        forecast_by: forecast.map(|ahead| ahead.model.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use demi_conductor::config::Model;
    use demi_conductor::scaler::{Ahead, Cause, Promotion, Shortage, Step};
    use demi_conductor::Time;

    #[test]
    fn how_many_decisions_are_wanted_is_read_and_what_cannot_be_is_named() {
        assert_eq!(read_scaling("").ok(), Some(128));
        assert_eq!([read_scaling("limit=1").ok(), read_scaling("limit=1000").ok()], [Some(1), Some(1_000)]);
        for (query, told) in [
            ("limit=0", "limit must be a number from 1 to 1000"),
            ("limit=1001", "limit=1001: limit must be a number from 1 to 1000"),
            ("limit=18446744073709551615", "limit must be a number from 1 to 1000"),
            ("limit=18446744073709551616", "limit must be a number"),
            ("limit=-1", "limit must be a number"),
            ("limit=", "limit must be a number"),
            ("limit=1&limit=2", "it is given twice"),
            ("last=1", "there is no such parameter; try ?limit=128"),
        ] {
            let problem = read_scaling(query).expect_err("it is wrong");
            assert!(problem.status() == 400 && problem.body().contains(told), "{query}: {}", problem.body());
        }
    }

    #[test]
    fn whatever_is_decided_is_short_enough_to_be_kept() {
        let ahead = Ahead { model: Model::OlsSeasons, ram_permille: 1_000, interval_permille: Some((1_000, 1_000)) };
        let figures = Figures {
            ram_permille: 1_000,
            ram_used: u64::MAX,
            ram_total: u64::MAX,
            forecast: Some(ahead),
            threshold_percent: 100,
            cause: Some(Cause { shortage: Shortage::Spike { from: u64::MAX, to: u64::MAX }, is_out_of_turn: true }),
        };
        let missing = u64::MAX;
        let promotion = Promotion {
            to: Model::OlsSeasons,
            from: Model::LastValue,
            to_error_milli: u32::MAX,
            from_error_milli: Some(u32::MAX),
            rounds: u32::MAX,
            led: std::time::Duration::MAX,
        };
        let won = Act::Won { step: Step::Trim, weighed: u64::MAX, bytes: i64::MIN };
        let acts =
            [won, Act::Wait { missing }, Act::Refuse { missing }, Act::Postpone { missing }, Act::Overrule { missing }];
        let acts = acts.into_iter().chain([Act::Trim, Act::Sleep, Act::Delay, Act::Exhausted, Act::Believe(promotion)]);
        let name = "x".repeat(64);
        for act in acts {
            for is_done in [true, false] {
                let decision = Decision { at: Time::ZERO, platform: Some(0), act, figures, is_done };
                let text = crate::chronicle::decided(&decision, &name);
                let page = decision_json(u64::MAX, Some(&name), &decision, text);
                assert!(page.get().len() <= 1_000, "{page}");
            }
        }
    }
}
