//! `demi platforms [NAME]`: what there is and how it is.

use std::fmt::Write;
use std::process::ExitCode;

use crate::arguments::Remote;
use crate::client::{platform_path, Client, Failure};
use crate::page::{aligned, counted, plain, span, InstancePage, PlatformPage, PluginsPage};
use crate::{print, print_some};

/// Prints a table of all platforms, or everything about one.
pub(crate) fn show(remote: &Remote, name: Option<&str>) -> ExitCode {
    match Client::find(remote).and_then(|client| text(&client, name, remote.json)) {
        Ok(text) => print(&text),
        Err(failure) => failure.tell(),
    }
}

/// Prints what the API said, as it is, with one line end.
pub(crate) fn print_json(body: &[u8]) -> Result<bool, ExitCode> {
    print_some(&(String::from_utf8_lossy(body).trim_end().to_owned() + "\n"))
}

fn text(client: &Client, name: Option<&str>, json: bool) -> Result<String, Failure> {
    let path = name.map_or("/v1/platforms".to_owned(), |name| platform_path(name, ""));
    if json {
        let body = client.get(&path)?;
        return Ok(String::from_utf8_lossy(&body).trim_end().to_owned() + "\n");
    }
    if name.is_some() {
        return Ok(describe(&client.read(&path)?));
    }
    let mut text = table(&client.read::<Vec<PlatformPage>>(&path)?);
    // A Demi without plugin folders has no such page, and refused nothing.
    let plugins: PluginsPage = client.read("/v1/plugins").unwrap_or_default();
    for refused in plugins.refused {
        let problem = if refused.problem.contains(&refused.path) {
            refused.problem
        } else {
            format!("{}: {}", refused.path, refused.problem)
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "refused: {}", plain(&problem));
    }
    Ok(text)
}

/// How many instances are in which state: `ready`, or `1 ready, 1 backoff`.
fn states(instances: &[InstancePage]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for instance in instances {
        match counts.iter_mut().find(|(state, _)| *state == instance.state) {
            Some((_, count)) => *count += 1,
            None => counts.push((&instance.state, 1)),
        }
    }
    match counts[..] {
        [] => "none".to_owned(),
        [(state, _)] => state.to_owned(),
        _ => counts.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", "),
    }
}

/// What of a platform is out of the ordinary.
fn notes(platform: &PlatformPage) -> String {
    let notes = [
        (platform.isolated, "isolated"),
        (platform.breaker == "open", "breaker open"),
        (platform.reloading, "reloading"),
        (platform.update_waiting, "update waiting"),
    ];
    let notes = notes.iter().filter(|(is_so, _)| *is_so).map(|(_, note)| (*note).to_owned());
    let unreachable = platform.unreachable.iter().map(|target| format!("{target} unreachable"));
    notes.chain(unreachable).collect::<Vec<_>>().join(", ")
}

fn memory(instances: &[InstancePage]) -> Option<String> {
    let weights: Vec<f64> = instances.iter().filter_map(|instance| instance.memory_mb).collect();
    (!weights.is_empty()).then(|| format!("{:.1} MB", weights.iter().sum::<f64>()))
}

fn serving(platform: &PlatformPage) -> String {
    let serving = platform.instances.iter().filter(|instance| instance.serving).count();
    format!("{serving}/{}", platform.instances.len())
}

fn table(platforms: &[PlatformPage]) -> String {
    if platforms.is_empty() {
        return "there are no platforms; add some to the configuration, or a folder to plugins/\n".to_owned();
    }
    let head = ["NAME", "HOST", "STATE", "SERVING", "START", "VERSION", "MEMORY", "RESTARTS", "NOTE"];
    let mut rows = vec![head.map(str::to_owned)];
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    rows.extend(platforms.iter().map(|platform| {
        [
            platform.name.clone(),
            platform.host.clone(),
            states(&platform.instances),
            serving(platform),
            or_dash(platform.start.clone()),
            or_dash(platform.version.clone()),
            or_dash(memory(&platform.instances)),
            platform.restarts.to_string(),
            notes(platform),
        ]
        .map(|cell| plain(&cell))
    }));
    aligned(&rows)
}

/// Everything about one platform.
fn describe(platform: &PlatformPage) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", format!("{name:<14}{}", plain(value)).trim_end());
    };
    line("platform", &platform.name);
    line("host", &platform.host);
    line("state", &format!("{} ({} instances serving)", states(&platform.instances), serving(platform)));
    for (name, value) in
        [("version", &platform.version), ("folder", &platform.plugin_folder), ("start", &platform.start)]
    {
        if let Some(value) = value {
            line(name, value);
        }
    }
    for (name, values) in [("capabilities", &platform.capabilities), ("needs", &platform.needs)] {
        if !values.is_empty() {
            line(name, &values.join(", "));
        }
    }
    if !platform.breaker.is_empty() {
        let left = platform.breaker_open_for_ms.map(|left| format!(", tried in {}", span(left as f64 / 1000.0)));
        line("breaker", &format!("{}{}", platform.breaker, left.unwrap_or_default()));
    }
    if !platform.unreachable.is_empty() {
        line("unreachable", &platform.unreachable.join(", "));
    }
    let queued = if platform.queued == 0 { String::new() } else { format!(", {} waiting", platform.queued) };
    line("requests", &format!("{}{queued}", platform.requests));
    line("restarts", &platform.restarts.to_string());
    match (platform.starts_today, platform.start_budget_per_day) {
        (Some(starts), Some(budget)) => line("starts today", &format!("{starts} of at most {budget}")),
        (Some(starts), None) => line("starts today", &starts.to_string()),
        (None, _) => {}
    }
    line("edition", &platform.edition.to_string());
    if let Some(memory) = memory(&platform.instances) {
        line("memory", &memory);
    }
    if let Some(peak) = platform.memory_peak_mb {
        line("memory peak", &format!("{peak:.1} MB in one instance, faded since"));
    }
    let notes = notes(platform);
    if !notes.is_empty() {
        line("note", &notes);
    }
    for (index, (name, value)) in platform.limits.iter().flatten().filter(|(_, value)| !value.is_null()).enumerate() {
        line(if index == 0 { "limits" } else { "" }, &format!("{name}: {value}"));
    }
    for instance in &platform.instances {
        describe_instance(platform, instance, &mut line);
    }
    match platform.tools.as_deref() {
        Some([]) if platform.host == "mcp" => line("tools", "not known yet"),
        Some(tools) => {
            for (index, tool) in tools.iter().enumerate() {
                let first = tool.description.as_deref().unwrap_or_default().lines().next().unwrap_or_default();
                let what = if first.is_empty() { tool.name.clone() } else { format!("{}: {first}", tool.name) };
                line(if index == 0 { "tools" } else { "" }, &what);
            }
        }
        None => {}
    }
    text
}

fn describe_instance(platform: &PlatformPage, instance: &InstancePage, line: &mut impl FnMut(&str, &str)) {
    let since = span(instance.since_s_ago);
    line(&format!("{}/{}", platform.name, instance.instance), "");
    let serving = if instance.serving { "serving" } else { "not serving" };
    line("  state", &format!("{} since {since}, {serving}", instance.state));
    line("  why", &instance.why);
    if let Some(next) = &instance.next {
        line("  next", next);
    }
    let probe = instance.probe_ms.map_or(String::new(), |probe| format!(", last check took {probe:.1} ms"));
    line("  health", &format!("{}{probe}", instance.health));
    let accused = instance.accused_of.as_ref();
    let accused = accused.map(|cause| format!("; a health check decides whether it opens, because {cause}"));
    line("  breaker", &format!("{}{}", instance.breaker, accused.unwrap_or_default()));
    let weight = instance.weight.map(|weight| format!("weight {weight}"));
    let drain = instance.drain.then(|| "wants no new requests".to_owned());
    let balance: Vec<String> = weight.into_iter().chain(drain).collect();
    if !balance.is_empty() {
        line("  balance", &balance.join(", "));
    }
    line("  run", &format!("{} of edition {}, {}", instance.run, instance.edition, counted_requests(instance)));
    let facts = [
        instance.pid.map(|pid| format!("pid {pid}")),
        instance.memory_mb.map(|memory| format!("{memory:.1} MB")),
        instance.pss_mb.map(|memory| format!("{memory:.1} MB with what is shared divided")),
        instance.processes.map(|count| format!("{count} in its tree")),
        instance.descriptors.map(|count| counted(count as usize, "open descriptor")),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    if !facts.is_empty() {
        line("  process", &facts.join(", "));
    }
    if instance.log_lines_dropped > 0 {
        line("  log", &format!("{} dropped: it wrote too fast", counted(instance.log_lines_dropped as usize, "line")));
    }
}

fn counted_requests(instance: &InstancePage) -> String {
    format!("{} under way", counted(instance.in_flight as usize, "request"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::Scripted;

    const PAGE: &str = r#"{"name":"weather","host":"mcp","ready":true,"start":"lazy","isolated":false,
        "breaker":"open","breaker_open_for_ms":12400,"unreachable":["internet","vpn"],"reloading":true,
        "update_waiting":true,"edition":2,"starts_today":3,"start_budget_per_day":1000,"queued":1,"requests":12,"restarts":1,"memory_peak_mb":24.6,
        "version":"1.0.0","plugin_folder":"/p/weather","capabilities":["cancel"],"needs":["store","clock"],
        "instances":[{"instance":0,"state":"ready","serving":true,"since_s_ago":1.2,"why":"it has started","run":1,
        "breaker":"closed","accused_of":"requests in a row failed","health":"up","in_flight":1,"probe_ms":0.3,"next":"its health is checked in 3.1 s","edition":2,
        "weight":3,"drain":true,"pid":123,"memory_mb":12.3,"pss_mb":8.1,"processes":1,"descriptors":8,"log_lines_dropped":4},
        {"instance":1,"state":"backoff","serving":false,"since_s_ago":90,"why":"it ended with exit code 3","run":4,
        "breaker":"open","health":"unproven","in_flight":0,"probe_ms":null,"next":null,"edition":2,"log_lines_dropped":0}],
        "tools":[{"name":"forecast","description":"The next days.\nMore."},{"name":"now"}],"limits":{"memory_max_mb":100,"cpu_max_s":null}}"#;

    #[test]
    fn the_table_has_a_line_for_each_platform_and_the_refused_below() {
        let other = r#"{"name":"echo","host":"inline","instances":[{"state":"ready","serving":true}],"restarts":0}"#;
        let server = Scripted::pages(&[
            (200, &format!("[{PAGE},{other}]")),
            (200, r#"{"refused":[{"path":"/p/bad/plugin.ron","problem":"/p/bad/plugin.ron:3:5: no; remove it"}]}"#),
        ]);
        let text = text(&server.client(), None, false).expect("the server answers");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "NAME     HOST    STATE               SERVING  START  VERSION  MEMORY   RESTARTS  NOTE",
                "weather  mcp     1 ready, 1 backoff  1/2      lazy   1.0.0    12.3 MB  1         breaker open, reloading, update waiting, internet unreachable, vpn unreachable",
                "echo     inline  ready               1/1      -      -        -        0",
                "refused: /p/bad/plugin.ron:3:5: no; remove it",
            ]
        );
        assert_eq!(server.requests(), ["GET /v1/platforms HTTP/1.1", "GET /v1/plugins HTTP/1.1"]);
    }

    #[test]
    fn one_platform_is_told_with_everything() {
        let server = Scripted::pages(&[(200, PAGE)]);
        let text = text(&server.client(), Some("weather"), false).expect("the server answers");
        for line in [
            "platform      weather",
            "needs         store, clock",
            "breaker       open, tried in 12 s",
            "unreachable   internet, vpn",
            "starts today  3 of at most 1000",
            "requests      12, 1 waiting",
            "memory peak   24.6 MB in one instance, faded since",
            "limits        memory_max_mb: 100",
            "weather/0",
            "  state       ready since 1.2 s, serving",
            "  next        its health is checked in 3.1 s",
            "  breaker     closed; a health check decides whether it opens, because requests in a row failed",
            "  balance     weight 3, wants no new requests",
            "  process     pid 123, 12.3 MB, 8.1 MB with what is shared divided, 1 in its tree, 8 open descriptors",
            "  log         4 lines dropped: it wrote too fast",
            "  why         it ended with exit code 3",
            "  run         4 of edition 2, 0 requests under way",
            "tools         forecast: The next days.",
            "              now",
        ] {
            assert!(text.lines().any(|told| told == line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("cpu_max_s"), "a limit that is not set is not told: {text}");
    }

    #[test]
    fn json_is_the_answer_as_it_is() {
        let server = Scripted::pages(&[(200, "[ {\"new\": 1} ]\n")]);
        assert_eq!(text(&server.client(), None, true).as_deref(), Ok("[ {\"new\": 1} ]\n"));
    }
}
