//! The pages of the API as the commands read them. What a page does not say is left at its default, so that a Demi of
//! another version can be asked too.

use std::fmt::Write;

use serde::Deserialize;

/// A platform.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PlatformPage {
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) ready: bool,
    pub(crate) start: Option<String>,
    pub(crate) isolated: bool,
    pub(crate) breaker: String,
    pub(crate) breaker_open_for_ms: Option<u64>,
    pub(crate) unreachable: Vec<String>,
    pub(crate) reloading: bool,
    pub(crate) update_waiting: bool,
    pub(crate) edition: u32,
    pub(crate) starts_today: Option<u32>,
    pub(crate) start_budget_per_day: Option<u32>,
    pub(crate) queued: u64,
    pub(crate) requests: u64,
    pub(crate) restarts: u64,
    /// What an instance is expected to weigh at most, if that is known.
    pub(crate) memory_peak_mb: Option<f64>,
    pub(crate) version: Option<String>,
    pub(crate) plugin_folder: Option<String>,
    pub(crate) capabilities: Vec<String>,
    pub(crate) needs: Vec<String>,
    pub(crate) instances: Vec<InstancePage>,
    pub(crate) tools: Option<Vec<Tool>>,
    pub(crate) limits: Option<serde_json::Map<String, serde_json::Value>>,
}

/// One of its instances.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct InstancePage {
    pub(crate) instance: u32,
    pub(crate) state: String,
    pub(crate) serving: bool,
    pub(crate) since_s_ago: f64,
    pub(crate) why: String,
    pub(crate) run: u32,
    pub(crate) breaker: String,
    pub(crate) accused_of: Option<String>,
    pub(crate) health: String,
    pub(crate) in_flight: u32,
    pub(crate) probe_ms: Option<f64>,
    pub(crate) next: Option<String>,
    pub(crate) edition: u32,
    /// How often it is asked against the others, where that matters.
    pub(crate) weight: Option<u32>,
    /// It has said that it wants no new requests.
    pub(crate) drain: bool,
    pub(crate) pid: Option<u32>,
    pub(crate) memory_mb: Option<f64>,
    pub(crate) pss_mb: Option<f64>,
    pub(crate) processes: Option<u32>,
    pub(crate) descriptors: Option<u32>,
    pub(crate) log_lines_dropped: u64,
}

/// A tool of an MCP server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
}

/// Manifests that were found and not taken.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PluginsPage {
    pub(crate) refused: Vec<Refused>,
}

/// One of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Refused {
    pub(crate) path: String,
    pub(crate) problem: String,
}

/// Why a platform is in its state.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WhyPage {
    pub(crate) platform: String,
    pub(crate) now: Vec<String>,
    pub(crate) next: Vec<String>,
    pub(crate) history: Vec<Happening>,
    pub(crate) log: Vec<Logged>,
}

/// What happened to it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Happening {
    pub(crate) unix_ms: u64,
    pub(crate) instance: Option<u32>,
    pub(crate) text: String,
}

/// A line that it logged.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Logged {
    pub(crate) unix_ms: u64,
    pub(crate) level: String,
    pub(crate) instance: u32,
    pub(crate) text: String,
}

/// Lines that it logged.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LogsPage {
    pub(crate) lines: Vec<Logged>,
    pub(crate) next: u64,
    pub(crate) dropped: u64,
}

/// How everything is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct HealthPage {
    pub(crate) status: String,
    pub(crate) unix_ms: u64,
    pub(crate) reachability: Vec<Target>,
    pub(crate) platforms: Vec<PlatformHealth>,
}

/// What platforms depend on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) lost: bool,
}

/// How a platform is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PlatformHealth {
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) state: String,
    pub(crate) health: String,
    pub(crate) breaker: Breaker,
    pub(crate) unreachable: Vec<String>,
    pub(crate) latency: Latency,
    pub(crate) instances: Vec<InstanceHealth>,
    pub(crate) last_errors: Vec<Mishap>,
    pub(crate) history: Vec<Happening>,
}

/// A breaker, and what it has counted lately.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Breaker {
    pub(crate) state: String,
    pub(crate) open_for_ms: Option<u64>,
    pub(crate) calls: u32,
    pub(crate) failures: u32,
    pub(crate) slow: u32,
}

/// How long answers took lately.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Latency {
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
}

/// How an instance is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct InstanceHealth {
    pub(crate) instance: u32,
    pub(crate) state: String,
    pub(crate) why: String,
    pub(crate) health: String,
    pub(crate) probe_ms: Option<f64>,
    pub(crate) breaker: Breaker,
    pub(crate) accused_of: Option<String>,
}

/// What went wrong.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Mishap {
    pub(crate) unix_ms: u64,
    pub(crate) instance: Option<u32>,
    pub(crate) kind: String,
    pub(crate) detail: String,
    pub(crate) times: u64,
}

/// A point in time as people write it, in UTC: `2026-07-15 12:00:00.250Z`.
pub(crate) fn moment(unix_ms: u64) -> String {
    let (days, seconds) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}Z", unix_ms % 1000)
}

/// Year, month and day of a count of days since 1970 in the Gregorian calendar: the years of an era of 400 begin in
/// March, so that the leap day is the last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// A span as people say it.
pub(crate) fn span(seconds: f64) -> String {
    match seconds {
        ..10.0 => format!("{:.1} s", seconds.max(0.0)),
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.0} h", seconds / 3600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// What another program wrote, fit for a terminal: control characters, which could move the cursor or worse, are told
/// by name.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && character != '\t' {
            // Writing to a string cannot fail.
            let _ = write!(out, "{}", character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// A table: columns as wide as their widest cells.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// The plural of a counted noun.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_right_over_leap_days_and_centuries() {
        for (unix_ms, expected) in [
            (0, "1970-01-01 00:00:00.000Z"),
            (951_782_400_000, "2000-02-29 00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29 23:59:59.999Z"),
            (1_735_689_600_250, "2025-01-01 00:00:00.250Z"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000Z"),
        ] {
            assert_eq!(moment(unix_ms), expected);
        }
    }

    #[test]
    fn spans_are_said_in_the_unit_that_fits() {
        let said = [0.25, 12.0, 130.0, 7300.0, 900_000.0].map(span);
        assert_eq!(said, ["0.2 s", "12 s", "2 min", "2 h", "10 d"]);
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        assert_eq!(plain("a\u{1b}[2J\tü\r"), "a\\u{1b}[2J\tü\\r");
    }

    #[test]
    fn a_page_that_says_little_is_read_too() {
        let page: PlatformPage = serde_json::from_str(r#"{"name":"a","future":1,"instances":[{"state":"ready"}]}"#)
            .expect("what is unknown or absent is no mistake");
        assert_eq!((page.name.as_str(), page.instances[0].state.as_str(), page.tools.is_none()), ("a", "ready", true));
    }
}
