//! `GET /v1/scaling`: how RAM is, what it is forecast to be, and what was decided about it lately. `docs/scaling.md` describes
//! it.

use demi_conductor::scaler::{Act, Decision, Figures};
use demi_conductor::{Conductor, MEGABYTE};
use serde::Serialize;

use super::{json, Facts, PageAnswer};
use crate::chronicle;

#[derive(Serialize)]
struct ScalingPage<'s> {
    enabled: bool,
    forecast_only: bool,
    shed_percent: u64,
    restore_percent: u64,
    emergency_percent: u64,
    /// Before the first sample there is none.
    now: Option<FiguresPage>,
    /// Names of those that are shed.
    shed: Vec<&'s str>,
    /// Newest first.
    decisions: Vec<DecisionPage<'s>>,
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
    #[serde(flatten)]
    figures: FiguresPage,
    /// How much less RAM is used since a step; negative: more.
    #[serde(skip_serializing_if = "Option::is_none")]
    won_mb: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_mb: Option<u64>,
}

pub(super) fn page(conductor: &Conductor, facts: &Facts<'_>) -> PageAnswer {
    let settings = conductor.scaler();
    let is_shed = |platform: &demi_conductor::PlatformStatus<'_>| {
        platform.instances.iter().any(|instance| instance.state == "shed")
    };
    let unix_ms = chronicle::unix_ms();
    let decided = |decision: &Decision| {
        let platform = decision.platform.map(|platform| facts.roster[platform as usize].name());
        DecisionPage {
            unix_ms: unix_ms.saturating_sub(facts.now.since(decision.at).as_millis() as u64),
            platform,
            act: decision.act.name(),
            done: decision.is_done,
            text: chronicle::decided(decision, platform.unwrap_or("it")),
            threshold_percent: decision.figures.threshold_percent,
            figures: figures_page(&decision.figures),
            won_mb: match decision.act {
                Act::Won { bytes, .. } => Some(bytes / MEGABYTE as i64),
                _ => None,
            },
            missing_mb: match decision.act {
                Act::Wait { missing } | Act::Refuse { missing } | Act::Overrule { missing } => {
                    Some(missing.div_ceil(MEGABYTE))
                }
                _ => None,
            },
        }
    };
    let mut decisions: Vec<DecisionPage<'_>> = conductor.decisions().map(decided).collect();
    decisions.reverse();
    json(&ScalingPage {
        enabled: settings.enabled,
        forecast_only: settings.forecast_only,
        shed_percent: settings.shed_percent.value(),
        restore_percent: settings.restore_percent.value(),
        emergency_percent: settings.emergency_percent.value(),
        now: conductor.ram_figures().as_ref().map(figures_page),
        shed: conductor.platforms().filter(is_shed).map(|platform| platform.name).collect(),
        decisions,
    })
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
