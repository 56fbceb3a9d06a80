//! What runs and what is asked of it: a drawn configuration without mistakes, and bursts of requests.

use std::time::Duration;

use demi_conductor::config::{
    Balance, Bounded, Breaker, Check, Config, Health, Host, OnFailure, Outliers, OwnBreaker, Platform, Posts,
    Reachability, Recovery, Restart, Retry, Route, Scaler, Shutdown, Start, Urgency,
};
use demi_conductor::{Question, Random, RouteId, Router, Ticket};

/// A span from `low` to just below `high` milliseconds, short ones as likely as long ones by order of magnitude.
pub(crate) fn span(random: &mut Random, low: u64, high: u64) -> Duration {
    Duration::from_millis(millis(random, low, high))
}

fn millis(random: &mut Random, low: u64, high: u64) -> u64 {
    let magnitudes = u64::from((high / low.max(1)).max(1).ilog2());
    let low = low.max(1) << random.below(magnitudes + 1);
    (low + random.below(low)).min(high)
}

fn bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(number: u64) -> Bounded<LOW, HIGH, DEFAULT> {
    Bounded::new(number.clamp(LOW, HIGH)).expect("a clamped number is in the range")
}

fn drawn<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(
    random: &mut Random,
    low: u64,
    high: u64,
) -> Bounded<LOW, HIGH, DEFAULT> {
    bounded(millis(random, low, high))
}

fn below<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(
    random: &mut Random,
    high: u64,
) -> Bounded<LOW, HIGH, DEFAULT> {
    bounded(random.below(high))
}

/// A configuration without mistakes: one in eight keeps every default in time, the others are quicker, so that a
/// short run sees many breakers, restarts and probes.
pub(crate) fn config(random: &mut Random) -> Config {
    let mut config = Config { requests_max: drawn(random, 8, 200), ..Config::default() };
    if random.below(8) > 0 {
        draw_times(&mut config, random);
    }
    let count = 1 + random.below(6) as usize;
    let ranks: Vec<u64> = (0..count).map(|_| random.draw()).collect();
    config.platforms = (0..count).map(|index| platform(random, index, &ranks)).collect();
    for index in 0..count {
        for _ in 0..1 + random.below(3) {
            let number = config.routes.len();
            config.routes.push(route(random, number, index));
        }
    }
    // By the numbers and not by a draw, as with balance: two in three routes have a fallback.
    for (number, route) in config.routes.iter_mut().enumerate() {
        let others = config.platforms.iter().map(|platform| &platform.name).filter(|name| **name != route.to);
        route.fallback = others.cycle().skip(number).take((number % 3).min(count - 1)).cloned().collect();
    }
    draw_targets(&mut config, random);
    draw_scaler(&mut config, random);
    let names: Vec<&str> = config.platforms.iter().map(|platform| platform.name.as_str()).collect();
    assert_eq!(config.mistakes(&names), [], "a drawn configuration has a mistake");
    config
}

fn draw_times(config: &mut Config, random: &mut Random) {
    config.health = Health {
        interval_ms: drawn(random, 250, 5_000),
        timeout_ms: drawn(random, 50, 5_000),
        degraded_ms: drawn(random, 10, 500),
        fall: bounded(1 + random.below(4)),
        rise: bounded(1 + random.below(3)),
        doubt_interval_ms: drawn(random, 100, 2_000),
        down_interval_ms: drawn(random, 250, 10_000),
        restart_fall: bounded([0, 0, 0, 5][random.below(4) as usize]),
        slow_start_ms: below(random, 20_000),
    };
    let open_ms = millis(random, 50, 10_000);
    config.breaker = Breaker {
        failures: bounded(1 + random.below(5)),
        open_ms: bounded(open_ms),
        open_max_ms: bounded(open_ms << random.below(4)),
        timeouts: below(random, 6),
        transport_errors: below(random, 6),
        application_errors: below(random, 6),
        platform_failures: below(random, 20),
        window_ms: drawn(random, 500, 30_000),
        calls_min: bounded(3 + random.below(20)),
        failure_percent: bounded([0, 30, 50, 50, 80][random.below(5) as usize]),
        slow_percent: bounded([0, 20, 20, 50][random.below(4) as usize]),
        slow_ms: bounded([0, 0, 100, 1_000][random.below(4) as usize]),
        trial_ms: drawn(random, 100, 10_000),
        recovery: Recovery::Probe,
    };
    config.outliers = Outliers {
        interval_ms: bounded([0, 1_000, 1_000, 5_000][random.below(4) as usize]),
        calls_min: bounded(3 + random.below(8)),
        latency_times: bounded(random.below(5)),
        latency_min_ms: below(random, 200),
        failure_points: bounded([0, 20, 30][random.below(3) as usize]),
    };
    let base_ms = millis(random, 1, 1_000);
    config.restart = Restart {
        base_ms: bounded(base_ms),
        max_ms: bounded(base_ms << random.below(6)),
        forget_ms: below(random, 60_000),
    };
    config.retry = Retry {
        base_ms: drawn(random, 1, 200),
        max_ms: drawn(random, 50, 2_000),
        tokens_max: bounded([0, 20, 500, 100_000][random.below(4) as usize]),
    };
    config.posts = Posts {
        queue_max: Bounded::default(),
        in_flight_max: bounded(1 + random.below(8)),
        attempts_max: bounded(1 + random.below(8)),
        base_ms: drawn(random, 10, 1_000),
        max_ms: drawn(random, 100, 10_000),
        ..Posts::default()
    };
    config.shutdown = Shutdown { grace_ms: drawn(random, 500, 10_000) };
}

/// How RAM is watched, always quicker than by default, and who goes first when it is short.
fn draw_scaler(config: &mut Config, random: &mut Random) {
    let shed = 60 + random.below(25);
    let interval_ms = millis(random, 100, 4_000);
    let enabled = random.below(6) > 0;
    config.scaler = Scaler {
        enabled,
        forecast_only: enabled && random.below(8) == 0,
        shed_percent: bounded(shed),
        restore_percent: bounded(shed - 1 - random.below(20)),
        emergency_percent: bounded(shed + 1 + random.below(15)),
        calm_ms: drawn(random, 500, 20_000),
        cooldown_ms: drawn(random, 20, 2_000),
        smoothing_ms: drawn(random, 1, 2_000),
        spike_min_mb: bounded(20 + random.below(80)),
        interval_ms: bounded(interval_ms),
        fast_interval_ms: bounded(interval_ms.min(100 + random.below(400))),
        window_ms: bounded(60_000),
        horizon_ms: bounded(10_000),
        ..Scaler::default()
    };
    // By the index and not by a draw: what else is drawn must not depend on it.
    for (index, platform) in config.platforms.iter_mut().enumerate().filter(|(_, one)| one.host.can_be_replaced()) {
        platform.priority = [None, Some(bounded(100)), Some(bounded(500))][index % 3];
        platform.shed = [None, Some(true), None, Some(true), Some(false)][index % 5];
    }
}

/// What platforms lie behind, in every third seed.
fn draw_targets(config: &mut Config, random: &mut Random) {
    if random.below(3) > 0 {
        return;
    }
    for index in 0..1 + random.below(2) {
        let platform = random.below(config.platforms.len() as u64) as usize;
        let check = match random.below(4) {
            0 => Check::Platform(config.platforms[platform].name.clone()),
            1 => Check::Gateway,
            _ => Check::Tcp("192.0.2.1:53".to_owned()),
        };
        let name = format!("t{index}");
        config.reachability.push(Reachability { name: name.clone(), check });
        for other in 0..config.platforms.len() {
            if random.below(2) == 0 {
                config.platforms[other].behind.push(name.clone());
                // It must not wait for what waits for it.
                let names: Vec<String> = config.platforms.iter().map(|platform| platform.name.clone()).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                if !config.mistakes(&names).is_empty() {
                    config.platforms[other].behind.pop();
                }
            }
        }
    }
}

fn platform(random: &mut Random, index: usize, ranks: &[u64]) -> Platform {
    let instances = 1 + random.below(4) as u16;
    let host = match random.below(7) {
        0 => Host::Inline,
        1 | 2 => Host::Threads(instances),
        3 => Host::Process(instances),
        4 => Host::Mcp(instances),
        _ => Host::Http,
    };
    let mut platform = Platform::new(&format!("p{index}"), host);
    match host {
        Host::Inline | Host::Threads(_) => {}
        Host::Process(_) | Host::Mcp(_) => platform.command = vec!["plugin".to_owned()],
        Host::Http => {
            platform.upstreams = (0..instances).map(|upstream| format!("127.0.0.1:{}", 3000 + upstream)).collect();
        }
    }
    // Needs go from higher to lower rank only, so they never form a circle, whatever the order of the file.
    for (other, rank) in ranks.iter().enumerate() {
        if *rank < ranks[index] && random.below(4) == 0 {
            platform.needs.push(format!("p{other}"));
        }
    }
    let in_flight_max = (random.below(3) > 0).then(|| bounded(1 + random.below(6)));
    platform.in_flight_max = in_flight_max.filter(|_| host != Host::Inline);
    platform.queue_max = below(random, 12);
    // By the index and not by a draw: what else is drawn must not depend on it.
    platform.queue_age_max_ms = [None, Some(bounded(50)), Some(bounded(1_000))][index % 3];
    platform.balance = match index % 4 {
        1 => Balance::Sticky,
        2 => Balance::RoundRobin,
        3 if matches!(host, Host::Http | Host::Process(_)) => Balance::Weighted,
        _ => Balance::LeastInFlight,
    };
    if platform.balance == Balance::Weighted {
        platform.weights = (0..u64::from(instances)).map(|upstream| bounded(1 + 2 * upstream)).collect();
    }
    draw_lifecycle(&mut platform, random);
    platform.breaker = OwnBreaker {
        failures: (random.below(4) == 0).then(|| bounded(1 + random.below(5))),
        recovery: Some(match random.below(4) {
            0 if host.can_be_replaced() => Recovery::Restart,
            1 if host.can_be_initialized_again() => Recovery::Reinitialize,
            _ => Recovery::Probe,
        }),
        ..OwnBreaker::default()
    };
    platform.start_timeout_ms = drawn(random, 250, 20_000);
    platform.stop_grace_ms = below(random, 3_000);
    if matches!(platform.host, Host::Threads(_)) {
        let wedged_ms = drawn(random, 100, 5_000);
        if let Host::Threads(_) = host {
            platform.wedged_ms = wedged_ms;
        }
    }
    platform
}

/// When it starts, sleeps and is replaced, and what it may use.
fn draw_lifecycle(platform: &mut Platform, random: &mut Random) {
    platform.drain_ms = below(random, 5_000);
    platform.restart_dependents = random.below(2) == 0;
    if random.below(4) == 0 {
        platform.request_timeout_ms = Some(drawn(random, 50, 8_000));
    }
    // Most have more than a stormy life needs.
    platform.start_budget_per_day = bounded(if random.below(4) == 0 { 20 + random.below(40) } else { 1_000_000 });
    if platform.host == Host::Http {
        return;
    }
    platform.start =
        [Start::Eager, Start::Eager, Start::Eager, Start::Lazy, Start::Lazy, Start::Manual][random.below(6) as usize];
    if random.below(2) == 0 {
        platform.sleep_after_ms = Some(drawn(random, 200, 120_000));
    }
    if platform.host.is_child() {
        platform.limits.memory_soft_mb = (random.below(2) == 0).then(|| bounded(SOFT_MB));
        platform.limits.memory_max_mb = (random.below(2) == 0).then(|| bounded(MAX_MB));
        platform.limits.processes_max = bounded(PROCESSES);
        platform.limits.descriptors_max = bounded(DESCRIPTORS);
    }
}

/// What the children of a world may use.
pub(crate) const SOFT_MB: u64 = 50;
pub(crate) const MAX_MB: u64 = 100;
pub(crate) const PROCESSES: u64 = 8;
pub(crate) const DESCRIPTORS: u64 = 64;

fn route(random: &mut Random, number: usize, platform: usize) -> Route {
    let timeout = millis(random, 50, 8_000);
    Route {
        kind: Some(format!("r{number}")),
        timeout_ms: bounded(timeout),
        attempt_timeout_ms: (random.below(3) == 0).then(|| bounded(timeout / (1 + random.below(5)))),
        retries: below(random, 5),
        hedge: random.below(3) == 0,
        idempotent: random.below(2) == 0,
        // By the number and not by a draw: what else is drawn must not depend on it.
        urgency: [None, Some(Urgency::High), None, Some(Urgency::Low), None][number % 5],
        on_failure: if random.below(2) == 0 { OnFailure::DeadLetter } else { OnFailure::Error },
        ..Route::to(&format!("p{platform}"))
    }
}

/// Who asks, how often and for what.
#[derive(Debug)]
pub(crate) struct Workload {
    kinds: Vec<String>,
    gap: Duration,
    burst_permille: u32,
    stranger_permille: u32,
    random: Random,
}

impl Workload {
    pub(crate) fn new(config: &Config, mut random: Random) -> Workload {
        Workload {
            kinds: (0..config.routes.len()).map(|number| format!("r{number}")).collect(),
            gap: span(&mut random, 10, 500),
            burst_permille: random.below(100) as u32,
            stranger_permille: random.below(30) as u32,
            random,
        }
    }

    /// How many ask at once, and how long until others do. `is_calm`: one at a time and not often.
    pub(crate) fn next(&mut self, is_calm: bool) -> (u64, Duration) {
        if is_calm {
            return (1, Duration::from_millis(200) + self.random.span_below(Duration::from_millis(600)));
        }
        let is_burst = self.random.chance(self.burst_permille);
        let size = if is_burst { 2 + self.random.below(40) } else { 1 };
        (size, self.random.span_below(self.gap * 2))
    }

    /// What is asked for, by the router that the reactor would ask, and whether it may be asked twice.
    pub(crate) fn question(&mut self, router: &Router, is_calm: bool) -> (Option<RouteId>, bool) {
        let is_stranger = !is_calm && self.random.chance(self.stranger_permille);
        let kind =
            if is_stranger { "nobody" } else { &self.kinds[self.random.below(self.kinds.len() as u64) as usize] };
        let route = router.find(&Question { kind, ..Question::default() });
        (route, self.random.below(3) == 0)
    }
}

/// How urgent a request is by who asks; every fifth is urgent, and every fifth is not.
pub(crate) fn urgency(ticket: Ticket) -> Urgency {
    match (ticket.number() ^ ticket.number() >> 32) % 5 {
        0 => Urgency::High,
        1 => Urgency::Low,
        _ => Urgency::Normal,
    }
}

/// How long after the last fault everything must be well again, by the configuration alone.
pub(crate) fn recovery_max(config: &Config) -> Duration {
    let health = &config.health;
    let cycle =
        health.interval_ms.millis().max(health.doubt_interval_ms.millis()).max(health.down_interval_ms.millis())
            + health.timeout_ms.millis();
    let longest = |span: fn(&Platform) -> Duration| config.platforms.iter().map(span).max().unwrap_or_default();
    let timeout = config.routes.iter().map(|route| route.timeout_ms.millis()).max().unwrap_or_default();
    // A frozen instance is found by its probes, except while requests keep it busy; each of those costs it a
    // failure, and enough of them open its breaker and leave the probes alone with it.
    let rounds = health.fall.count().max(health.restart_fall.count())
        + health.rise.count()
        + config.breaker.failures.count().max(5)
        + 2;
    let found = (cycle + timeout) * rounds;
    let wedged = timeout
        + longest(|platform| match platform.host {
            Host::Threads(_) => platform.wedged_ms.millis(),
            Host::Inline | Host::Process(_) | Host::Mcp(_) | Host::Http => Duration::ZERO,
        });
    let ended = longest(|platform| platform.stop_grace_ms.millis() + platform.drain_ms.millis());
    // Back-off has a quarter of jitter, a breaker's wait a tenth; a probe from before may fail the first trial.
    let started = longest(|platform| platform.start_timeout_ms.millis()) * 2 + config.restart.max_ms.millis() * 2;
    let closed = config.breaker.open_max_ms.millis() * 3 + cycle * 4;
    // What platforms lie behind has to be found again first.
    let found = found + if config.reachability.is_empty() { Duration::ZERO } else { cycle * (rounds + 2) };
    // A message waits for its time, and then for its platform to be asked again, and others before it.
    let posted = Duration::from_secs(240);
    // What was shed comes back, one after the other, the one that was shed again and again after eight times as long.
    let scaler = &config.scaler;
    let restored = scaler.calm_ms.millis() * 8 + scaler.interval_ms.millis() * 4 + scaler.cooldown_ms.millis() * 2;
    let forecast = (scaler.window_ms.millis() + scaler.horizon_ms.millis()) * 2;
    let posted = posted + restored * config.platforms.len() as u32 + forecast;
    posted + found + wedged + ended + started * config.platforms.len() as u32 + closed + Duration::from_secs(15)
}
