//! `GET /v1/health`: how each platform is, what went wrong with it lately, and how long its answers take.
//! `docs/health.md` describes it.

use demi_conductor::breaker::Tally;
use demi_conductor::stats::PlatformStats;
use demi_conductor::{Conductor, InstanceStatus, PlatformStatus, Time};
use serde::Serialize;

use super::platforms::{left_ms, no_platform};
use super::{json, Facts, PageAnswer};
use crate::chronicle::{self, Entry};
use crate::mishaps::Mishap;
use crate::problem::Problem;
use crate::shell::Listed;

/// Entries of a platform's history on the page; `/v1/platforms/NAME/events` has the others.
const HISTORY: usize = 20;

/// From well to ill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// It sleeps until its next request, or a person keeps requests away from it.
    Resting,
    Healthy,
    /// It takes requests, and something is wrong with it.
    Degraded,
    /// It should take requests and takes none.
    Unhealthy,
}

#[derive(Serialize)]
struct HealthPage<'h> {
    status: Status,
    unix_ms: u64,
    reachability: Vec<TargetPage<'h>>,
    platforms: Vec<PlatformHealth<'h>>,
}

#[derive(Serialize)]
struct TargetPage<'h> {
    name: &'h str,
    state: &'static str,
    /// It has been reached before and cannot be now.
    lost: bool,
}

#[derive(Serialize)]
struct PlatformHealth<'h> {
    name: &'h str,
    status: Status,
    /// How many instances are in which state.
    state: String,
    /// What the health checks of the instances that are up and running say, taken together.
    health: &'static str,
    breaker: BreakerPage,
    unreachable: Vec<&'h str>,
    latency: Latency,
    probes: Probes,
    instances: Vec<InstanceHealth>,
    last_errors: Vec<&'h Mishap>,
    history: Vec<&'h Entry>,
}

#[derive(Serialize)]
struct BreakerPage {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    open_for_ms: Option<u64>,
    /// Of the last `breaker.window_ms`, since it last closed.
    calls: u32,
    failures: u32,
    slow: u32,
}

#[derive(Serialize)]
struct InstanceHealth {
    instance: u32,
    state: &'static str,
    serving: bool,
    why: String,
    health: &'static str,
    probe_ms: Option<f64>,
    breaker: BreakerPage,
    #[serde(skip_serializing_if = "Option::is_none")]
    accused_of: Option<String>,
    in_flight: u32,
}

/// Of answered requests of the last five minutes, from question to answer; a percentile may be an eighth off.
#[derive(Serialize)]
struct Latency {
    count: u64,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
}

#[derive(Serialize)]
struct Probes {
    passed: u64,
    failed: u64,
    unready: u64,
    busy: u64,
    spared: u64,
}

/// The page, of all platforms or of the one that the query names.
pub(super) fn page(query: &str, conductor: &Conductor, facts: &Facts<'_>) -> Result<PageAnswer, Problem> {
    let only = read_query(query)?;
    let known = conductor.platforms().zip(facts.roster);
    let platforms: Vec<PlatformHealth<'_>> = known
        .filter(|(status, _)| only.is_none_or(|name| name == status.name))
        .map(|(status, listed)| platform_health(status, listed, facts))
        .collect();
    if let (Some(name), true) = (only, platforms.is_empty()) {
        return Err(no_platform(conductor, name));
    }
    let reachability: Vec<TargetPage<'_>> = conductor
        .targets()
        .map(|target| TargetPage { name: target.name, state: target.state, lost: target.is_lost })
        .collect();
    // What is lost is everybody's trouble only if everybody is asked about.
    let lost = reachability.iter().filter(|target| target.lost && only.is_none()).map(|_| Status::Degraded);
    let worst = platforms.iter().map(|platform| platform.status).chain(lost).max();
    let status = worst.unwrap_or(Status::Healthy);
    // Demi as a whole does not rest.
    let status = if only.is_none() { status.max(Status::Healthy) } else { status };
    Ok(json(&HealthPage { status, unix_ms: chronicle::unix_ms(), reachability, platforms }))
}

fn read_query(query: &str) -> Result<Option<&str>, Problem> {
    match query.split_once('=').unwrap_or((query, "")) {
        ("", "") => Ok(None),
        ("platform", name) if !name.is_empty() && !name.contains('&') => Ok(Some(name)),
        _ => Err(Problem::new(400, format!("?{query}: only one platform may be asked for; try ?platform=NAME"))),
    }
}

fn platform_health<'h>(status: PlatformStatus<'h>, listed: &'h Listed, facts: &Facts<'_>) -> PlatformHealth<'h> {
    PlatformHealth {
        name: status.name,
        status: status_of(&status),
        state: states(&status.instances),
        health: health(&status.instances),
        breaker: breaker(status.breaker, status.breaker_until, status.recent, facts),
        latency: latency(status.stats, facts.now),
        probes: Probes {
            passed: status.stats.probes_passed,
            failed: status.stats.probes_failed,
            unready: status.stats.probes_unready,
            busy: status.stats.probes_busy,
            spared: status.stats.probes_spared,
        },
        unreachable: status.unreachable,
        instances: status.instances.into_iter().map(|instance| instance_health(instance, facts)).collect(),
        last_errors: listed.mishaps.newest().collect(),
        history: listed.chronicle.events().take(HISTORY).collect(),
    }
}

fn status_of(platform: &PlatformStatus<'_>) -> Status {
    let rests = |instance: &InstanceStatus| matches!(instance.state, "asleep" | "stopped" | "shed");
    let is_fine = |instance: &InstanceStatus| {
        let is_in_order = matches!(instance.state, "ready" | "asleep" | "stopped" | "shed" | "proving" | "draining");
        is_in_order && instance.breaker == "closed" && instance.accused_of.is_none()
    };
    if platform.is_isolated || platform.instances.iter().all(rests) {
        Status::Resting
    } else if !platform.is_ready {
        Status::Unhealthy
    } else if platform.breaker == "closed" && platform.unreachable.is_empty() && platform.instances.iter().all(is_fine)
    {
        Status::Healthy
    } else {
        Status::Degraded
    }
}

/// `ready`, or `1 ready, 1 backoff`.
fn states(instances: &[InstanceStatus]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for instance in instances {
        match counts.iter_mut().find(|(state, _)| *state == instance.state) {
            Some((_, count)) => *count += 1,
            None => counts.push((instance.state, 1)),
        }
    }
    match counts[..] {
        [] => "none".to_owned(),
        [(state, _)] => state.to_owned(),
        _ => counts.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", "),
    }
}

/// `up` if all are, `down` if all are, `degraded` if some are not up, `unproven` if nothing is known.
fn health(instances: &[InstanceStatus]) -> &'static str {
    let is_running = |instance: &&InstanceStatus| matches!(instance.state, "ready" | "degraded" | "wedged" | "down");
    let running: Vec<&str> = instances.iter().filter(is_running).map(|instance| instance.health).collect();
    let all = |word: &str| running.iter().all(|health| *health == word);
    match running[..] {
        [] => "unproven",
        _ if all("up") => "up",
        _ if all("down") => "down",
        _ => "degraded",
    }
}

fn breaker(state: &'static str, until: Option<Time>, recent: Tally, facts: &Facts<'_>) -> BreakerPage {
    let Tally { calls, failures, slow } = recent;
    BreakerPage { state, open_for_ms: left_ms(until, facts), calls, failures, slow }
}

fn instance_health(status: InstanceStatus, facts: &Facts<'_>) -> InstanceHealth {
    InstanceHealth {
        instance: status.instance,
        state: status.state,
        serving: status.is_serving,
        why: status.why,
        health: status.health,
        probe_ms: status.probe_ms,
        breaker: breaker(status.breaker, status.breaker_until, status.recent, facts),
        accused_of: status.accused_of,
        in_flight: status.in_flight,
    }
}

fn latency(stats: &PlatformStats, now: Time) -> Latency {
    let recent = stats.recent.as_ref().map(|recent| recent.percentiles(now, [500, 950, 990]));
    let (count, percentiles) = recent.unwrap_or_default();
    let millis = percentiles.map(|percentile| (count > 0).then_some(percentile.as_secs_f64() * 1000.0));
    let [p50_ms, p95_ms, p99_ms] = millis;
    Latency { count, p50_ms, p95_ms, p99_ms }
}

#[cfg(test)]
mod tests {
    use super::*;
    use demi_conductor::config::{Config, Host, Platform};

    #[test]
    fn the_query_names_one_platform_or_none() {
        assert_eq!(read_query("").expect("it is right"), None);
        assert_eq!(read_query("platform=echo").expect("it is right"), Some("echo"));
        for wrong in ["platform", "platform=", "platform=a&platform=b", "name=a", "echo"] {
            let problem = read_query(wrong).expect_err("it is wrong");
            assert!(problem.status() == 400 && problem.body().contains("?platform=NAME"), "{wrong}");
        }
    }

    /// The first platform of a configuration before Demi has begun; `change` makes of it what it shall be.
    fn status_after(change: impl FnOnce(&mut PlatformStatus<'_>)) -> Status {
        let platform = Platform::new("a", Host::Process(2));
        let config = Config { platforms: vec![platform], ..Config::default() };
        let conductor = Conductor::new(&config, 1);
        let mut status = conductor.platforms().next().expect("there is one");
        for instance in &mut status.instances {
            (instance.state, instance.is_serving) = ("ready", true);
        }
        status.is_ready = true;
        change(&mut status);
        status_of(&status)
    }

    #[test]
    fn a_platform_is_as_well_as_what_is_wrong_with_it_lets_it_be() {
        let set = |index: usize, state: &'static str| {
            move |status: &mut PlatformStatus<'_>| status.instances[index].state = state
        };
        assert_eq!(status_after(|_| {}), Status::Healthy);
        assert_eq!(status_after(set(1, "proving")), Status::Healthy, "a reload is no trouble");
        assert_eq!(status_after(set(1, "backoff")), Status::Degraded);
        assert_eq!(status_after(|status| status.breaker = "half_open"), Status::Degraded);
        assert_eq!(status_after(|status| status.instances[0].breaker = "open"), Status::Degraded);
        assert_eq!(status_after(|status| status.unreachable.push("internet")), Status::Degraded);
        let accuse = |status: &mut PlatformStatus<'_>| status.instances[0].accused_of = Some("it failed".to_owned());
        assert_eq!(status_after(accuse), Status::Degraded);
        assert_eq!(status_after(|status| status.is_ready = false), Status::Unhealthy);
        assert_eq!(status_after(|status| (status.is_isolated, status.is_ready) = (true, false)), Status::Resting);
        let stop = |status: &mut PlatformStatus<'_>| {
            status.is_ready = false;
            status.instances.iter_mut().for_each(|instance| instance.state = "stopped");
        };
        assert_eq!(status_after(stop), Status::Resting);
        assert!(Status::Unhealthy > Status::Degraded && Status::Degraded > Status::Healthy, "the worst is told");
    }
}
