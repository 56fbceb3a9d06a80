//! The pages of platforms: what each does, what happened to it, what it logged, and why it is as it is.

use demi_conductor::config::{nearest, Limits, Start};
use demi_conductor::lifecycle::Reason;
use demi_conductor::{Conductor, Exit, InstanceStatus, PlatformStatus, Time};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{json, read_numbers, seconds, Facts, PageAnswer};
use crate::chronicle::{self, Entry};
use crate::problem::Problem;
use crate::shell::Listed;

/// Log lines of a page when nobody says how many; and the most one may ask for.
const LINES: u64 = 100;
const LINES_MAX: u64 = 1_000;
/// Log lines on the page that says why.
const LINES_OF_WHY: usize = 20;

/// A platform as the conductor and the shell know it.
type Known<'k> = (PlatformStatus<'k>, &'k Listed);

/// What a platform's pages are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    /// Its state.
    State,
    /// What it logged.
    Logs,
    /// What happened to it.
    Events,
    /// Why it is as it is.
    Why,
}

impl Topic {
    /// By the last part of the path.
    pub(super) fn of(word: &str) -> Option<Topic> {
        match word {
            "logs" => Some(Topic::Logs),
            "events" => Some(Topic::Events),
            "why" => Some(Topic::Why),
            _ => None,
        }
    }
}

/// The page of all platforms.
pub(super) fn all(conductor: &Conductor, facts: &Facts<'_>) -> PageAnswer {
    let known = conductor.platforms().zip(facts.roster);
    json(&known.map(|known| platform_page(known, facts, false)).collect::<Vec<_>>())
}

/// A page of one platform.
pub(super) fn one(
    name: &str,
    topic: Topic,
    query: &str,
    conductor: &Conductor,
    facts: &Facts<'_>,
) -> Result<PageAnswer, Problem> {
    let known = || conductor.platforms().zip(facts.roster).find(|(status, _)| status.name == name);
    let Some(known) = known() else { return Err(no_platform(conductor, name)) };
    Ok(match topic {
        Topic::State => json(&platform_page(known, facts, true)),
        Topic::Logs => {
            let [after, limit] = read_numbers(query, ["after", "limit"], "after=0&limit=100")?;
            let limit = in_range("limit", limit, LINES, LINES_MAX)?;
            json(&known.1.chronicle.page(after, limit))
        }
        Topic::Events => {
            let [limit] = read_numbers(query, ["limit"], "limit=10")?;
            let max = chronicle::EVENTS_MAX as u64;
            let limit = in_range("limit", limit, max, LINES_MAX)?;
            json(&EventsPage { events: known.1.chronicle.events().take(limit).collect() })
        }
        Topic::Why => json(&why(&known, conductor, facts)),
    })
}

fn in_range(name: &str, number: Option<u64>, default: u64, max: u64) -> Result<usize, Problem> {
    let number = number.unwrap_or(default);
    if (1..=max).contains(&number) {
        return Ok(number as usize);
    }
    Err(Problem::new(400, format!("{name}={number}: {name} must be a number from 1 to {max}")))
}

/// Names that are told to whoever has named none of them.
const NAMES_MAX: usize = 32;

/// No platform has this name.
pub(crate) fn no_platform(conductor: &Conductor, name: &str) -> Problem {
    let names: Vec<&str> = conductor.platforms().map(|platform| platform.name).collect();
    Problem::new(404, unknown(name, &names)).code("no_platform")
}

/// The nearest of the names that there are, or else some of them.
fn unknown(name: &str, names: &[&str]) -> String {
    if let Some(near) = nearest(name, names) {
        return format!("no platform is named {name:?}; did you mean {near:?}?");
    }
    let known = names[..names.len().min(NAMES_MAX)].join(", ");
    let more = if names.len() > NAMES_MAX { ", …" } else { "" };
    format!("no platform is named {name:?}; known are: {known}{more}")
}

#[derive(Serialize)]
struct EventsPage<'e> {
    events: Vec<&'e Entry>,
}

#[derive(Serialize)]
struct PlatformPage<'s> {
    name: &'s str,
    host: &'static str,
    ready: bool,
    start: &'static str,
    isolated: bool,
    /// Its own breaker: `closed`, `open`, `half_open`.
    breaker: &'static str,
    /// For how long its own breaker is still open, milliseconds; only if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    breaker_open_for_ms: Option<u64>,
    /// Names of what it lies behind and that cannot be reached.
    unreachable: Vec<&'s str>,
    reloading: bool,
    update_waiting: bool,
    edition: u32,
    starts_today: u32,
    start_budget_per_day: u32,
    queued: usize,
    requests: u64,
    restarts: u64,
    /// What an instance is expected to weigh at most: the most that one has, faded since. Only if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_peak_mb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin_folder: Option<String>,
    /// Only if it is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    plugin_folder_gone: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<&'s [String]>,
    needs: &'s [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    tools: Option<&'s RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<&'s Limits>,
    instances: Vec<InstancePage>,
}

#[derive(Serialize)]
struct InstancePage {
    #[serde(flatten)]
    status: InstanceStatus,
    since_s_ago: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pss_mb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    descriptors: Option<u32>,
    log_lines_dropped: u64,
}

/// `in_full`: with what is long, for the page of one platform.
fn platform_page<'s>((status, listed): Known<'s>, facts: &Facts<'_>, in_full: bool) -> PlatformPage<'s> {
    let platform = listed.platform();
    let plugin = platform.plugin.as_ref();
    let is_mcp = matches!(platform.host, demi_conductor::config::Host::Mcp(_));
    let (starts_today, start_budget_per_day) = status.starts_today;
    PlatformPage {
        name: status.name,
        host: status.host.name(),
        ready: status.is_ready,
        start: start_name(status.start),
        isolated: status.is_isolated,
        breaker: status.breaker,
        breaker_open_for_ms: left_ms(status.breaker_until, facts),
        unreachable: status.unreachable,
        reloading: status.is_reloading,
        update_waiting: listed.is_update_waiting(),
        edition: status.edition,
        starts_today,
        start_budget_per_day,
        queued: status.queued,
        requests: status.stats.asked,
        restarts: status.stats.restarts.iter().sum(),
        memory_peak_mb: (status.peak_bytes > 0).then(|| megabytes(status.peak_bytes)),
        version: plugin.map(|plugin| plugin.version.as_str()),
        plugin_folder: plugin.map(|plugin| plugin.folder.display().to_string()),
        plugin_folder_gone: listed.is_gone,
        capabilities: plugin.map(|plugin| plugin.capabilities.as_slice()),
        needs: &platform.needs,
        tools: (in_full && is_mcp).then(|| listed.tools().unwrap_or(no_tools())),
        limits: (in_full && status.host.is_child()).then_some(&platform.limits),
        instances: status.instances.into_iter().map(|status| instance_page(status, facts)).collect(),
    }
}

/// How long it is until then, milliseconds.
pub(super) fn left_ms(until: Option<Time>, facts: &Facts<'_>) -> Option<u64> {
    until.map(|until| until.since(facts.now).as_millis() as u64)
}

fn no_tools() -> &'static RawValue {
    serde_json::from_str("[]").expect("it is JSON")
}

const fn start_name(start: Start) -> &'static str {
    match start {
        Start::Lazy => "lazy",
        Start::Eager => "eager",
        Start::Manual => "manual",
    }
}

fn instance_page(status: InstanceStatus, facts: &Facts<'_>) -> InstancePage {
    let weight = status.weight;
    InstancePage {
        since_s_ago: seconds(facts.now, status.since),
        pid: (facts.pid_of)(status.slot),
        memory_mb: weight.map(|weight| megabytes(weight.rss_bytes)),
        pss_mb: weight.and_then(|weight| weight.pss_bytes).map(megabytes),
        processes: weight.map(|weight| weight.processes),
        descriptors: weight.map(|weight| weight.descriptors),
        log_lines_dropped: (facts.dropped_lines_of)(status.slot),
        status,
    }
}

fn megabytes(bytes: u64) -> f64 {
    (bytes as f64 / 1e5).round() / 10.0
}

#[derive(Serialize)]
struct WhyPage<'w> {
    platform: &'w str,
    now: Vec<String>,
    next: Vec<String>,
    history: Vec<&'w Entry>,
    log: Vec<LogEntry<'w>>,
}

#[derive(Serialize)]
struct LogEntry<'w> {
    unix_ms: u64,
    level: &'static str,
    instance: u32,
    text: &'w str,
}

fn why<'w>((status, listed): &'w Known<'_>, conductor: &Conductor, facts: &Facts<'_>) -> WhyPage<'w> {
    let name = status.name;
    let mut now = Vec::new();
    let mut next = Vec::new();
    if listed.is_gone {
        now.push(format!("{name}: its folder is gone, and it is stopped"));
        next.push(format!("{name}: it is started again when its folder is back"));
    }
    if status.is_isolated {
        now.push(format!("{name} is isolated by hand: it gets no requests"));
        next.push(format!("{name}: `demi start {name}` gives it requests again"));
    }
    match status.breaker_until {
        Some(until) => {
            let wait = chronicle::span(until.since(facts.now));
            now.push(format!("the breaker of {name} as a whole is open after repeated failures: it gets no requests"));
            next.push(format!("{name}: its breaker is tried in {wait}; `demi close {name}` closes it now"));
        }
        None if status.breaker == "half_open" => {
            now.push(format!(
                "the breaker of {name} as a whole is half-open: a health check tries it, and then a request"
            ));
        }
        None => {}
    }
    if !status.unreachable.is_empty() {
        let targets = status.unreachable.join(" and ");
        now.push(format!("{targets}, which {name} lies behind, cannot be reached: what fails is not held against it"));
        next.push(format!("{name}: it is asked how it is as soon as {targets} can be reached again"));
    }
    match &status.reload_waits {
        Some(when) => {
            now.push(format!("{name} is being reloaded: there is no room in RAM for a new edition beside the old one"));
            next.push(format!("the new edition of {name}: {when}; `demi reload {name}` starts it now"));
        }
        None if status.is_reloading => {
            now.push(format!("{name} is being reloaded: a new edition has to prove itself"));
        }
        None => {}
    }
    if listed.is_update_waiting() {
        match &listed.update_problem {
            Some(problem) => {
                now.push(format!("{name} has changed on disk and cannot be taken up: {problem}"));
                next.push(format!("{name}: correct that, then `demi reload {name}` takes it up"));
            }
            // The new edition that waits is it.
            None if status.reload_waits.is_some() && listed.is_update_made() => {}
            None => {
                now.push(format!("{name} has changed on disk: an update is waiting"));
                next.push(format!("{name}: `demi reload {name}` takes it up"));
            }
        }
    }
    for instance in &status.instances {
        let title = format!("{name}/{}", instance.instance);
        let since = chronicle::span(facts.now.since(instance.since));
        let state = if instance.state == "backoff" { "in backoff" } else { instance.state };
        now.push(format!("{title} is {state} since {since}: {}", instance.why));
        let upcoming = next_of(instance, name, listed, conductor, facts);
        next.extend(upcoming.map(|upcoming| format!("{title}: {upcoming}")));
    }
    if status.peak_bytes > 0 {
        let peak = megabytes(status.peak_bytes);
        now.push(format!(
            "an instance of {name} is expected to use {peak} MB at most: the most that one has, faded since"
        ));
    }
    let entry = |line: &'w chronicle::Line| LogEntry {
        unix_ms: line.unix_ms,
        level: line.level,
        instance: line.instance,
        text: &line.text,
    };
    WhyPage {
        platform: name,
        now,
        next,
        history: listed.chronicle.events().collect(),
        log: listed.chronicle.lines().take(LINES_OF_WHY).map(entry).collect(),
    }
}

/// What happens next to an instance, by itself or if someone does something.
fn next_of(
    instance: &InstanceStatus,
    name: &str,
    listed: &Listed,
    conductor: &Conductor,
    facts: &Facts<'_>,
) -> Option<String> {
    let by_hand = || (!listed.is_gone).then(|| format!("`demi start {name}` starts it"));
    match (instance.state, (facts.reason_of)(instance.slot)) {
        ("asleep", _) => Some("its next request wakes it".to_owned()),
        ("waiting", _) => Some(needs_of(listed, conductor)),
        ("stopped", _) => by_hand(),
        ("failed", Some(reason @ (Reason::Exited(Exit::Code(78)) | Reason::BudgetSpent { .. }))) => {
            chronicle::remedy(reason).map(str::to_owned)
        }
        ("failed", _) => by_hand(),
        _ => instance.next.clone(),
    }
}

/// What an instance waits for, and why that is not there.
fn needs_of(listed: &Listed, conductor: &Conductor) -> String {
    let needs = &listed.platform().needs;
    let missing: Vec<String> = conductor
        .platforms()
        .filter(|other| needs.iter().any(|need| need == other.name))
        .filter(|other| !other.instances.iter().any(|instance| instance.is_serving))
        .map(|other| {
            let states: Vec<String> = other
                .instances
                .iter()
                .map(|instance| format!("{}/{} is {}: {}", other.name, instance.instance, instance.state, instance.why))
                .collect();
            format!("{} is not ready ({})", other.name, states.join("; "))
        })
        .collect();
    let is_held =
        |other: &demi_conductor::PlatformStatus<'_>| other.name == listed.name() && !other.unreachable.is_empty();
    if let Some(held) = conductor.platforms().find(is_held) {
        return format!("it is started when {} can be reached again, or by hand", held.unreachable.join(" and "));
    }
    match missing.is_empty() {
        true => "it is started at once".to_owned(),
        false => format!("it is started when what it needs is ready: {}", missing.join(", ")),
    }
}

#[derive(Serialize)]
struct PluginsPage<'p> {
    refused: Vec<RefusedEntry<'p>>,
}

#[derive(Serialize)]
struct RefusedEntry<'p> {
    path: String,
    problem: &'p str,
}

/// The page of plugin folders that were not taken in.
pub(super) fn plugins(facts: &Facts<'_>) -> PageAnswer {
    let refused = facts.refused.iter();
    let refused = refused.map(|(path, problem)| RefusedEntry { path: path.display().to_string(), problem });
    json(&PluginsPage { refused: refused.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_told_with_the_nearest_or_else_with_some_of_those_there_are() {
        let names: Vec<String> = (0..1_000).map(|index| format!("platform-{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(unknown("ehco", &["echo"]), "no platform is named \"ehco\"; did you mean \"echo\"?");
        assert_eq!(unknown("x", &["echo"]), "no platform is named \"x\"; known are: echo");
        let told = unknown("x", &names);
        assert!(told.ends_with("platform-31, …") && told.len() < 1_000, "{told}");
    }
}
