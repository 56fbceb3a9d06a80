//! `demi scaling log`: how RAM is, and what was decided about it lately.

use std::fmt::Write;
use std::process::ExitCode;

use serde::Deserialize;

use crate::arguments::Remote;
use crate::client::{Client, Failure};
use crate::page::{moment, plain};
use crate::print;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ScalingPage {
    enabled: bool,
    forecast_only: bool,
    shed_percent: u64,
    restore_percent: u64,
    emergency_percent: u64,
    now: Option<Figures>,
    shed: Vec<String>,
    decisions: Vec<Decision>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Figures {
    ram_percent: f64,
    ram_used_mb: u64,
    ram_total_mb: u64,
    forecast_percent: Option<f64>,
    forecast_interval_percent: Option<(f64, f64)>,
    forecast_by: Option<String>,
    measured_s_ago: u64,
    stale: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Decision {
    unix_ms: u64,
    text: String,
}

/// Prints how RAM is, and so many decisions, newest first.
pub(crate) fn log(remote: &Remote, limit: usize) -> ExitCode {
    match Client::find(remote).and_then(|client| text(&client, limit, remote.json)) {
        Ok(text) => print(&text),
        Err(failure) => failure.tell(),
    }
}

fn text(client: &Client, limit: usize, json: bool) -> Result<String, Failure> {
    let path = format!("/v1/scaling?limit={limit}");
    if json {
        let body = client.get(&path)?;
        return Ok(String::from_utf8_lossy(&body).trim_end().to_owned() + "\n");
    }
    Ok(told(&client.read(&path)?))
}

fn told(page: &ScalingPage) -> String {
    if !page.enabled {
        return "nothing is done about RAM: scaler.enabled is false\n".to_owned();
    }
    let mut text = String::new();
    // Writing to a string cannot fail.
    if let Some(now) = &page.now {
        let _ = write!(text, "RAM is at {:.1} %: {} of {} MB", now.ram_percent, now.ram_used_mb, now.ram_total_mb);
        if let Some(forecast) = now.forecast_percent {
            let by = plain(now.forecast_by.as_deref().unwrap_or("nobody"));
            let interval = now.forecast_interval_percent;
            let interval = interval.map(|(low, high)| format!(", {low:.1} to {high:.1} %")).unwrap_or_default();
            let _ = write!(text, "; forecast {forecast:.1} %{interval} by {by}");
        }
        if now.stale {
            let _ = write!(text, "; measured {} s ago, for it cannot be any more", now.measured_s_ago);
        }
        text.push('\n');
    }
    let [shed, restore, emergency] = [page.shed_percent, page.restore_percent, page.emergency_percent];
    let _ = writeln!(text, "shed at {shed} %, restored at {restore} %, emergency at {emergency} %");
    if page.forecast_only {
        text.push_str("scaler.forecast_only: nothing is done\n");
    }
    if !page.shed.is_empty() {
        let names: Vec<_> = page.shed.iter().map(|name| plain(name)).collect();
        let _ = writeln!(text, "shed now: {}", names.join(", "));
    }
    for decision in &page.decisions {
        let _ = writeln!(text, "{}  {}", moment(decision.unix_ms), plain(&decision.text));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_told_newest_first_below_how_ram_is() {
        let page = r#"{"enabled":true,"forecast_only":false,"shed_percent":80,"restore_percent":65,"emergency_percent":95,
            "now":{"ram_percent":81.5,"ram_used_mb":815,"ram_total_mb":1000,"forecast_percent":84.0,
            "forecast_interval_percent":[80.0,88.0],"forecast_by":"ols","measured_s_ago":2,"stale":false},"shed":["voice"],
            "decisions":[{"unix_ms":1735689600250,"text":"voice is shed: RAM 81.5 %"}]}"#;
        let page: ScalingPage = serde_json::from_str(page).expect("it is a page");
        let lines = [
            "RAM is at 81.5 %: 815 of 1000 MB; forecast 84.0 %, 80.0 to 88.0 % by ols",
            "shed at 80 %, restored at 65 %, emergency at 95 %",
            "shed now: voice",
            "2025-01-01 00:00:00.250Z  voice is shed: RAM 81.5 %",
        ];
        assert_eq!(told(&page).lines().collect::<Vec<_>>(), lines);
        let stale = r#"{"enabled":true,"now":{"ram_percent":81.5,"ram_used_mb":815,"ram_total_mb":1000,"measured_s_ago":95,"stale":true}}"#;
        let stale: ScalingPage = serde_json::from_str(stale).expect("it is a page");
        let line = "RAM is at 81.5 %: 815 of 1000 MB; measured 95 s ago, for it cannot be any more";
        assert_eq!(told(&stale).lines().next(), Some(line));
        assert!(told(&ScalingPage::default()).contains("scaler.enabled is false"));
    }
}
