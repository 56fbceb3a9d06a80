//! `demi history NAME`: what a platform did and used over time.

use std::process::ExitCode;

use serde::Deserialize;

use crate::arguments::Remote;
use crate::client::{encoded, Client, Failure};
use crate::page::{aligned, moment, span};
use crate::print;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HistoryPage {
    step_s: u64,
    points: Vec<Point>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Point {
    timestamp: u64,
    response_time_ms: Option<f64>,
    response_time_p95_ms: Option<f64>,
    error_count: u64,
    request_count: u64,
    resource_usage_mb: Option<f64>,
}

/// Prints a table, oldest first.
pub(crate) fn show(remote: &Remote, name: &str, last: &str, step: Option<&str>) -> ExitCode {
    match Client::find(remote).and_then(|client| text(&client, name, last, step, remote.json)) {
        Ok(text) => print(&text),
        Err(failure) => failure.tell(),
    }
}

fn text(client: &Client, name: &str, last: &str, step: Option<&str>, json: bool) -> Result<String, Failure> {
    let step = step.map(|step| format!("&step={}", encoded(step))).unwrap_or_default();
    let path = format!("/v1/metrics/history?platform={}&from=-{}{step}", encoded(name), encoded(last));
    if json {
        let body = client.get(&path)?;
        return Ok(String::from_utf8_lossy(&body).trim_end().to_owned() + "\n");
    }
    Ok(table(&client.read(&path)?, name, last))
}

fn table(page: &HistoryPage, name: &str, last: &str) -> String {
    if page.points.is_empty() {
        return format!("nothing is known of {name} in the last {last}\n");
    }
    let head = ["FROM (UTC)", "REQUESTS", "ERRORS", "MEAN", "P95", "MEMORY"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(page.points.iter().map(|point| {
        // Minutes are enough.
        let from = moment(point.timestamp * 1000)[.."2025-01-01 00:00".len()].to_owned();
        let millis = |millis: Option<f64>| {
            millis.map_or("-".to_owned(), |millis| match millis {
                ..10.0 => format!("{millis:.2} ms"),
                ..1000.0 => format!("{millis:.0} ms"),
                _ => span(millis / 1000.0),
            })
        };
        let memory = point.resource_usage_mb.map_or("-".to_owned(), |memory| format!("{memory:.1} MB"));
        let (mean, p95) = (millis(point.response_time_ms), millis(point.response_time_p95_ms));
        [from, point.request_count.to_string(), point.error_count.to_string(), mean, p95, memory]
    }));
    format!("{name}, each line {}\n{}", span(page.step_s as f64), aligned(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::Scripted;

    #[test]
    fn what_a_platform_did_is_a_table_with_a_line_for_each_step() {
        let server = Scripted::pages(&[(
            200,
            r#"{"platform":"echo","from":1735689600,"to":1735696800,"step_s":3600,"points":[
                {"timestamp":1735689600,"response_time_ms":1.5,"response_time_p95_ms":2400.0,"error_count":1,
                 "request_count":40,"resource_usage_mb":10.13},
                {"timestamp":1735693200,"response_time_ms":null,"error_count":0,"request_count":0}]}"#,
        )]);
        let text = text(&server.client(), "echo", "2h", Some("1h"), false).expect("the server answers");
        let expected = "echo, each line 60 min\n\
            FROM (UTC)        REQUESTS  ERRORS  MEAN     P95    MEMORY\n\
            2025-01-01 00:00  40        1       1.50 ms  2.4 s  10.1 MB\n\
            2025-01-01 01:00  0         0       -        -      -\n";
        assert_eq!(text, expected);
        assert_eq!(server.requests(), ["GET /v1/metrics/history?platform=echo&from=-2h&step=1h HTTP/1.1"]);
    }

    #[test]
    fn nothing_known_is_said() {
        let server = Scripted::pages(&[(200, r#"{"step_s":900,"points":[]}"#)]);
        let text = text(&server.client(), "echo", "24h", None, false).expect("the server answers");
        assert_eq!(text, "nothing is known of echo in the last 24h\n");
        assert_eq!(server.requests(), ["GET /v1/metrics/history?platform=echo&from=-24h HTTP/1.1"]);
    }
}
