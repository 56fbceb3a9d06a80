//! `demi health [NAME]`: how the platforms are, how long their answers take, and what went wrong lately.

use std::fmt::Write;
use std::process::ExitCode;

use crate::arguments::Remote;
use crate::client::{encoded, Client, Failure};
use crate::page::{aligned, counted, moment, plain, span, HealthPage, InstanceHealth, Mishap, PlatformHealth};
use crate::print;
use crate::why::sentence;

/// Prints a table of all platforms, or of one with its instances, its errors and its history.
pub(crate) fn show(remote: &Remote, name: Option<&str>) -> ExitCode {
    match Client::find(remote).and_then(|client| text(&client, name, remote.json)) {
        Ok(text) => print(&text),
        Err(failure) => failure.tell(),
    }
}

fn text(client: &Client, name: Option<&str>, json: bool) -> Result<String, Failure> {
    let path = name.map_or("/v1/health".to_owned(), |name| format!("/v1/health?platform={}", encoded(name)));
    if json {
        let body = client.get(&path)?;
        return Ok(String::from_utf8_lossy(&body).trim_end().to_owned() + "\n");
    }
    let page: HealthPage = client.read(&path)?;
    let mut text = String::new();
    if name.is_none() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "Demi is {}", plain(&page.status));
    }
    for target in page.reachability.iter().filter(|target| target.lost) {
        let _ = writeln!(text, "{} cannot be reached", plain(&target.name));
    }
    if !page.platforms.is_empty() {
        text.push_str(&table(&page));
    }
    for platform in page.platforms.iter().filter(|_| name.is_some()) {
        describe(platform, &mut text);
    }
    Ok(text)
}

fn table(page: &HealthPage) -> String {
    let head = ["NAME", "STATUS", "STATE", "HEALTH", "BREAKER", "P50", "P95", "P99", "LAST ERROR"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(page.platforms.iter().map(|platform| {
        let latency = &platform.latency;
        let [p50, p95, p99] = [latency.p50_ms, latency.p95_ms, latency.p99_ms].map(millis);
        let last = platform.last_errors.first().map(|error| {
            let ago = page.unix_ms.saturating_sub(error.unix_ms) as f64 / 1000.0;
            format!("{} {} ago", error.kind, span(ago))
        });
        [
            platform.name.clone(),
            platform.status.clone(),
            platform.state.clone(),
            platform.health.clone(),
            breakers(platform),
            p50,
            p95,
            p99,
            last.unwrap_or_else(|| "-".to_owned()),
        ]
        .map(|cell| plain(&cell))
    }));
    aligned(&rows)
}

fn millis(millis: Option<f64>) -> String {
    millis.map_or("-".to_owned(), |millis| match millis {
        ..10.0 => format!("{millis:.2} ms"),
        ..1000.0 => format!("{millis:.0} ms"),
        _ => span(millis / 1000.0),
    })
}

/// The breaker of the platform if it is not closed, or else how many of its instances have one that is not.
fn breakers(platform: &PlatformHealth) -> String {
    if !matches!(platform.breaker.state.as_str(), "closed" | "") {
        return with_wait(&platform.breaker.state, platform.breaker.open_for_ms);
    }
    let away = platform.instances.iter().filter(|instance| instance.breaker.state != "closed").count();
    match away {
        0 => "closed".to_owned(),
        _ => format!("{away} of {} not closed", platform.instances.len()),
    }
}

fn with_wait(state: &str, open_for_ms: Option<u64>) -> String {
    open_for_ms.map_or(state.to_owned(), |left| format!("{state} for {}", span(left as f64 / 1000.0)))
}

fn describe(platform: &PlatformHealth, text: &mut String) {
    if !platform.unreachable.is_empty() {
        let targets = platform.unreachable.join(", ");
        let _ = writeln!(text, "\nwhat it lies behind and cannot be reached: {}", plain(&targets));
    }
    let _ = writeln!(text);
    for instance in &platform.instances {
        let _ = writeln!(text, "{}/{}  {}", platform.name, instance.instance, plain(&told(instance)));
    }
    if !platform.last_errors.is_empty() {
        let _ = writeln!(text, "\nwhat went wrong, newest first:");
    }
    for error in &platform.last_errors {
        let _ = writeln!(text, "  {}  {}", moment(error.unix_ms), plain(&mishap(&platform.name, error)));
    }
    if !platform.history.is_empty() {
        let _ = writeln!(text, "\nwhat happened, newest first:");
    }
    for happening in &platform.history {
        let _ = writeln!(text, "  {}  {}", moment(happening.unix_ms), sentence(&platform.name, happening));
    }
}

fn told(instance: &InstanceHealth) -> String {
    let breaker = &instance.breaker;
    let probe = instance.probe_ms.map_or(String::new(), |probe| format!(", last check took {probe:.1} ms"));
    let calls = match breaker.calls {
        0 => String::new(),
        calls => {
            let calls = counted(calls as usize, "recent call");
            format!(" ({calls}, {} failed, {} slow)", breaker.failures, breaker.slow)
        }
    };
    let accused = instance.accused_of.as_ref().map(|cause| format!(", accused because {cause}")).unwrap_or_default();
    let breaker = with_wait(&breaker.state, breaker.open_for_ms);
    format!(
        "{}: {}; health {}{probe}; breaker {breaker}{calls}{accused}",
        instance.state, instance.why, instance.health
    )
}

fn mishap(platform: &str, error: &Mishap) -> String {
    let whose = error.instance.map_or(platform.to_owned(), |instance| format!("{platform}/{instance}"));
    let times = if error.times > 1 { format!(" ({} times)", error.times) } else { String::new() };
    format!("{whose} {}: {}{times}", error.kind, error.detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::Scripted;

    const PAGE: &str = r#"{"status":"unhealthy","unix_ms":1735689605250,
        "reachability":[{"name":"internet","state":"down","lost":true},{"name":"gateway","state":"up","lost":false}],
        "platforms":[
        {"name":"weather","status":"unhealthy","state":"ready","health":"up","unreachable":["internet"],
         "breaker":{"state":"open","open_for_ms":12000,"calls":3,"failures":3,"slow":0},
         "latency":{"count":4,"p50_ms":0.25,"p95_ms":120.4,"p99_ms":2500.0},
         "instances":[{"instance":0,"state":"ready","why":"it has started","health":"up","probe_ms":0.3,
          "breaker":{"state":"closed","calls":3,"failures":2,"slow":1},"accused_of":"requests in a row failed"}],
         "last_errors":[{"unix_ms":1735689600250,"instance":0,"kind":"failed","detail":"no \u001b[31mtoken","times":3}],
         "history":[{"unix_ms":1735689600000,"instance":null,"text":"its breaker opened for 30.0 s"}]},
        {"name":"echo","status":"degraded","state":"ready","health":"up","breaker":{"state":"closed"},
         "latency":{"count":0,"p50_ms":null},"instances":[{"breaker":{"state":"open"}},{"breaker":{"state":"closed"}}]}]}"#;

    #[test]
    fn the_table_says_how_each_platform_is_and_what_cannot_be_reached() {
        let server = Scripted::pages(&[(200, PAGE)]);
        let text = text(&server.client(), None, false).expect("the server answers");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "Demi is unhealthy",
                "internet cannot be reached",
                "NAME     STATUS     STATE  HEALTH  BREAKER            P50      P95     P99    LAST ERROR",
                "weather  unhealthy  ready  up      open for 12 s      0.25 ms  120 ms  2.5 s  failed 5.0 s ago",
                "echo     degraded   ready  up      1 of 2 not closed  -        -       -      -",
            ]
        );
        assert_eq!(server.requests(), ["GET /v1/health HTTP/1.1"]);
    }

    #[test]
    fn of_one_platform_its_instances_and_its_errors_are_told_fit_for_a_terminal() {
        let server = Scripted::pages(&[(200, PAGE)]);
        let text = text(&server.client(), Some("we ather"), false).expect("the server answers");
        for line in [
            "weather/0  ready: it has started; health up, last check took 0.3 ms; breaker closed \
             (3 recent calls, 2 failed, 1 slow), accused because requests in a row failed",
            "  2025-01-01 00:00:00.250Z  weather/0 failed: no \\u{1b}[31mtoken (3 times)",
            "  2025-01-01 00:00:00.000Z  weather: its breaker opened for 30.0 s",
        ] {
            assert!(text.lines().any(|told| told == line), "{line:?} is not in\n{text}");
        }
        assert_eq!(server.requests(), ["GET /v1/health?platform=we%20ather HTTP/1.1"]);
    }
}
