//! The page of metrics, as those read it for whom it is made, and its table. `tests/fixtures/install-metrics.sh` installs them; where
//! one is missing its tests say so and pass.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{misbehaving, until, Demi, Response};

const OPEN: &str = "application/openmetrics-text; version=1.0.0";

/// A Demi that has had some traffic: answers, failures, refusals, an open breaker and a health check of each host.
fn used() -> Demi {
    let plugin = misbehaving();
    let demi = Demi::start(&format!(
        r#"
            health: (interval_ms: 100, timeout_ms: 1000),
            scaler: (forecast_only: true),
            reachability: [(name: "answers", check: Platform("echo"))],
            platforms: [
                (name: "echo", host: Inline),
                (name: "pool", host: Threads(2), adapter: "echo", behind: ["answers"]),
                (name: "fails", host: Process(2), command: [{plugin:?}, "dies-on-request"], balance: Weighted),
                (name: "manual", host: Inline, adapter: "echo", start: Manual),
            ],
            routes: [
                (path: "/echo", to: "echo"), (path: "/pool", to: "pool"), (path: "/fails", to: "fails"),
                (path: "/manual", to: "manual"),
            ],
        "#
    ));
    demi.wait_ready();
    for (path, status) in [("/echo", 200), ("/pool", 200), ("/fails", 502), ("/manual", 503)] {
        assert_eq!(demi.post(path, "hello").status, status, "{path}");
    }
    let seen = [
        ("demi_health_check_duration_seconds_count", 3),
        ("demi_reachable", 1),
        ("demi_plugin_memory_bytes", 2),
        ("demi_plugin_memory_peak_bytes", 1),
        ("demi_system_resources{resource=\"ram_total_bytes\"}", 1),
    ];
    until("all there is has been looked at", || {
        let page = demi.get("/metrics").body;
        let is_seen = |name: &str| page.lines().filter(|line| line.starts_with(name) && !line.ends_with("} 0")).count();
        seen.into_iter().all(|(name, count)| is_seen(name) >= count).then_some(())
    });
    demi
}

fn page(demi: &Demi, accept: &str) -> Response {
    let head = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n";
    Response::parse(&demi.raw(format!("{head}Accept: {accept}\r\n\r\n").as_bytes()))
}

/// What a program says that reads a page on its stdin, and whether it is content with it. `None`, and a line that says
/// so, if it is missing.
fn read_by(name: &str, command: &mut Command, page: &str) -> Option<(bool, String)> {
    let Ok(mut child) = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() else {
        // Not by a macro: what those print is shown only of tests that fail.
        let _ = writeln!(std::io::stderr(), "skipped: {name} is not installed");
        return None;
    };
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(page.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it is our child");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), told))
}

/// What a parser of prometheus_client makes of a page: the type, the unit and the number of samples of each family.
fn parsed(parser: &str, page: &str) -> Option<BTreeMap<String, (String, String, usize)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let installed = std::env::var_os("DEMI_TEST_METRICS").map_or(root.join("target/metrics"), |path| root.join(path));
    let python: PathBuf = installed.join("venv/bin/python");
    let script = root.join("tests/fixtures/read_metrics.py");
    let (is_content, told) = read_by("prometheus_client", Command::new(python).arg(script).arg(parser), page)?;
    assert!(is_content, "{parser} does not take the page: {told}\n{page}");
    let family = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, kind, unit, samples] = words[..] else { panic!("{line}") };
        (name.to_owned(), (kind.to_owned(), unit.to_owned(), samples.parse().expect("it is a number")))
    };
    Some(told.lines().map(family).collect())
}

#[test]
fn promtool_has_nothing_to_complain_of() {
    let demi = used();
    let page = demi.get("/metrics");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let Some((is_content, told)) = read_by("promtool", Command::new("promtool").args(["check", "metrics"]), &page.body)
    else {
        return;
    };
    assert!(is_content && told.trim().is_empty(), "{told}");
}

#[test]
fn both_formats_are_read_by_the_parsers_of_prometheus_client_and_say_the_same() {
    let demi = used();
    let plain = demi.get("/metrics");
    let open = page(&demi, OPEN);
    assert_eq!(open.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let (Some(plain), Some(open)) = (parsed("prometheus", &plain.body), parsed("openmetrics", &open.body)) else {
        return;
    };
    let of = |families: &BTreeMap<String, (String, String, usize)>| -> BTreeMap<String, (String, usize)> {
        families.iter().map(|(name, (kind, _, samples))| (name.clone(), (kind.clone(), *samples))).collect()
    };
    assert_eq!(of(&plain), of(&open));
    assert_eq!(open["demi_scaler_decisions"], ("counter".to_owned(), "-".to_owned(), 13));
    assert_eq!(open["demi_plugin_failure"], ("counter".to_owned(), "-".to_owned(), 16));
    let (kind, unit, _) = &open["demi_health_check_duration_seconds"];
    assert_eq!((kind.as_str(), unit.as_str()), ("histogram", "seconds"));
}

#[test]
fn a_scraper_of_the_first_openmetrics_is_told_that_version() {
    let demi = Demi::start("");
    let page = page(&demi, "application/openmetrics-text; version=0.0.1, text/plain;q=0.5");
    assert_eq!(page.header("content-type"), Some("application/openmetrics-text; version=0.0.1; charset=utf-8"));
    assert!(page.body.ends_with("\n# EOF\n"), "{page:?}");
}

#[test]
fn what_happened_is_counted_by_kind_and_cause() {
    let demi = used();
    let page = demi.get("/metrics").body;
    let value = |sample: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{sample} is not in\n{page}")).parse().expect("it is a number")
    };
    assert_eq!(value(r#"demi_plugin_failure_total{platform="fails",error_type="broken"}"#), 1.0);
    assert_eq!(value(r#"demi_restarts_total{platform="fails",reason="exited"}"#), 1.0);
    assert_eq!(value(r#"demi_refused_total{platform="manual",reason="not_ready"}"#), 1.0);
    assert_eq!(value(r#"demi_reachable{target="answers"}"#), 1.0);
    assert_eq!(value(r#"demi_platform_breaker_state{platform="echo",state="closed"}"#), 1.0);
    assert_eq!(value(r#"demi_retry_tokens{platform="echo"}"#), 500.0);
    assert!((0.001..1.0).contains(&value("demi_scaler_ram_ratio")));
    assert!((0.001..1.0).contains(&value("demi_scaler_forecast_ratio")), "the last value is a forecast");
    let champions = ["last_value", "ewma", "holt", "ols", "ols_seasons"];
    let champions = champions.map(|model| value(&format!(r#"demi_scaler_champion{{model="{model}"}}"#)));
    assert_eq!(champions.iter().sum::<f64>(), 1.0);
    assert!(value(r#"demi_scaler_forecast_error_points{model="ols"}"#).is_nan(), "nothing was judged yet");
    assert_eq!(value(r#"demi_scaler_forecasts_judged{model="ols"}"#), 0.0);
    assert_eq!(value("demi_scaler_platforms_shed"), 0.0);
    assert!((10_000.0..1_000_000.0).contains(&value("demi_scaler_memory_bytes")));
    assert!(value(r#"demi_plugin_memory_peak_bytes{platform="fails"}"#) > 100_000.0);
    assert!(value("demi_turn_duration_seconds_count") > value("demi_loop_lag_seconds_count"));
    assert!(value("demi_loop_lag_seconds_count") > 0.0 && value("demi_loop_lag_seconds_sum") > 0.0);
}

/// The families of a page in the Prometheus format, with their types.
fn families(page: &str) -> BTreeMap<&str, &str> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

/// The labels of each family of a page, but for those of buckets.
fn labels<'p>(page: &'p str, families: &BTreeMap<&'p str, &'p str>) -> BTreeMap<&'p str, Vec<&'p str>> {
    let mut found = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).expect("a sample has a value");
        let family = ["", "_bucket", "_sum", "_count"]
            .into_iter()
            .find_map(|suffix| families.get_key_value(name.strip_suffix(suffix)?))
            .unwrap_or_else(|| panic!("{name} belongs to no family"));
        let labels = rest.split_once('}').map_or(Vec::new(), |(labels, _)| {
            labels
                .split(',')
                .filter_map(|label| Some(label.split_once('=')?.0))
                .filter(|label| *label != "le")
                .collect()
        });
        found.entry(*family.0).or_insert(labels);
    }
    found
}

#[test]
fn the_table_of_the_documentation_is_the_page() {
    let demi = used();
    let page = demi.get("/metrics").body;
    let families = families(&page);
    let labels = labels(&page, &families);
    let text = include_str!("../docs/metrics.md");
    let cells = |line: &'static str| line.split('|').map(str::trim).collect::<Vec<&str>>();
    let rows = text.lines().filter(|line| line.starts_with("| `demi_")).map(cells);
    let mut told = BTreeMap::new();
    for row in rows {
        let ["", name, kind, row_labels, meaning, ""] = row[..] else { panic!("{row:?} is no row") };
        let name = name.trim_matches('`');
        assert!(!meaning.is_empty(), "{name} is not explained");
        let row_labels = row_labels.split(", ").map(|label| label.trim_matches('`')).filter(|label| !label.is_empty());
        assert_eq!(row_labels.collect::<Vec<&str>>(), labels[name], "labels of {name}");
        assert!(told.insert(name, kind).is_none(), "{name} is told twice");
    }
    assert_eq!(told, families);
}
