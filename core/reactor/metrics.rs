//! Every metric, in the text format of Prometheus or in that of OpenMetrics. This file is the whole list, and
//! `docs/metrics.md` is its table.

use std::fmt::{Display, Write};
use std::time::Duration;

use demi_conductor::breaker::CAUSES;
use demi_conductor::config::Model;
use demi_conductor::scaler::Act;
use demi_conductor::stats::{Histogram, PlatformStats, BUCKETS_US, OUTCOMES, RESTARTS, TRIALS};
use demi_conductor::{Conductor, Outcome, PlatformStatus, RamSource, Refusal, Time, Weight, INSTANCE_STATES};

use crate::api::{is_ready, Facts};
use crate::chronicle::unix_ms;
use crate::clerk::StoreFacts;
use crate::http::MediaRange;
use crate::shell::PostCounts;

/// Finds one of a platform's counts.
type Count = fn(&PlatformStats) -> u64;
/// Finds one of an instance's measures.
type Weigh = fn(&Weight) -> u64;

/// The states of a breaker.
const BREAKER_STATES: [&str; 3] = ["closed", "open", "half_open"];
/// Those of [`CAUSES`] that come of a comparison with other instances.
const OUTLIERS: [&str; 2] = ["outlier_latency", "outlier_failures"];

/// About the length of the page without platforms, and of what each adds: with a thousand of them it would be copied a
/// dozen times as it grows, on the reactor's thread.
const BYTES: usize = 16 * 1024;
const BYTES_OF_PLATFORM: usize = 10 * 1024;

/// What is counted of the reactor's turns.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns {
    /// How long they took, from the return of the poll on.
    pub(crate) duration: Histogram,
    /// How late those began for which a timer was due.
    pub(crate) lag: Histogram,
    /// Those that took longer than they may.
    pub(crate) slow: u64,
}

/// How the page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The text format of Prometheus, 0.0.4.
    Prometheus,
    /// OpenMetrics 0.0.1, which differs from 1.0.0 in nothing that is written here.
    OpenMetrics0,
    /// OpenMetrics 1.0.0.
    OpenMetrics1,
}

impl Format {
    /// The one that a scraper prefers by its `Accept`; that of Prometheus if it does not ask for another.
    pub(crate) fn of(accept: Option<&str>) -> Format {
        let (mut best, mut best_weight, mut text_weight) = (Format::Prometheus, 0, 0);
        for range in accept.unwrap_or_default().to_ascii_lowercase().split(',') {
            let MediaRange { media, version, weight } = MediaRange::of(range);
            let format = match (media, version) {
                ("application/openmetrics-text", "" | "1.0.0") => Format::OpenMetrics1,
                ("application/openmetrics-text", "0.0.1") => Format::OpenMetrics0,
                ("text/plain", "" | "0.0.4") => {
                    text_weight = text_weight.max(weight);
                    continue;
                }
                _ => continue,
            };
            if weight > best_weight {
                (best, best_weight) = (format, weight);
            }
        }
        if best_weight >= text_weight {
            best
        } else {
            Format::Prometheus
        }
    }

    /// Its media type.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics0 => "application/openmetrics-text; version=0.0.1; charset=utf-8",
            Format::OpenMetrics1 => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    fn is_open(self) -> bool {
        self != Format::Prometheus
    }
}

/// The page, made anew for each scrape.
pub(crate) fn render(conductor: &Conductor, facts: &Facts<'_>, format: Format) -> String {
    let platforms: Vec<PlatformStatus<'_>> = conductor.platforms().collect();
    let mut page = Page { text: String::with_capacity(BYTES + BYTES_OF_PLATFORM * platforms.len()), format };
    of_demi(&mut page, conductor, facts);
    of_dead_letters(&mut page, &platforms, facts.store);
    of_posts(&mut page, conductor, facts.posts);
    of_surroundings(&mut page, conductor);
    of_scaler(&mut page, conductor, &platforms, facts.now);
    of_requests(&mut page, &platforms);
    of_health(&mut page, &platforms);
    of_breakers(&mut page, &platforms);
    of_instances(&mut page, &platforms, facts);
    page.end()
}

/// Demi itself.
fn of_demi(page: &mut Page, conductor: &Conductor, facts: &Facts<'_>) {
    let (counts, stats, turns) = (facts.counts, conductor.stats(), facts.turns);
    page.family("demi_build_info", "gauge", "The version that runs.");
    page.line("demi_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.gauge("demi_uptime_seconds", "Seconds since start.", facts.now.as_nanos() as f64 / 1e9);
    page.gauge(
        "demi_ready",
        "1 if every platform takes requests, sleeps, is shed or rests by order, and the store works.",
        u8::from(is_ready(conductor, facts)),
    );
    // Not `demi_http_connections`: to OpenMetrics that is the family of the counter below.
    page.gauge("demi_http_connections_open", "Client connections.", facts.connections);
    page.counter("demi_http_connections_total", "Client connections accepted.", counts.accepted);
    page.counter(
        "demi_http_connections_refused_total",
        "Client connections refused at http.connections_max.",
        counts.refused,
    );
    page.gauge(
        "demi_http_tunnels_open",
        "Tunnels: connections that were upgraded, to WebSocket for one.",
        counts.tunnels_open,
    );
    page.counter("demi_http_tunnels_total", "Connections that became tunnels.", counts.tunnels);
    page.gauge(
        "demi_http_event_streams_open",
        "Clients that follow what becomes of messages.",
        counts.event_streams_open,
    );
    page.counter("demi_http_event_streams_total", "Streams of events that were begun.", counts.event_streams);
    page.counter(
        "demi_http_event_streams_refused_total",
        "Streams of events refused at http.event_streams_max.",
        counts.event_streams_refused,
    );
    page.counter(
        "demi_http_event_streams_cut_off_total",
        "Streams of events cut off because too much waited for their clients.",
        counts.event_streams_cut_off,
    );
    page.counter(
        "demi_http_malformed_total",
        "Requests that were no HTTP, or none that is spoken here.",
        counts.malformed,
    );
    page.counter(
        "demi_http_too_large_total",
        "Requests over http.head_bytes_max, http.headers_max or http.body_bytes_max.",
        counts.too_large,
    );
    page.counter("demi_http_bodies_full_total", "Requests refused at http.bodies_bytes_max.", counts.bodies_full);
    page.counter("demi_http_timed_out_total", "Clients that took too long to send or to take.", counts.timed_out);
    page.gauge("demi_http_body_bytes", "Bytes of request bodies held.", facts.body_bytes);
    page.gauge("demi_requests_in_flight", "Requests under way.", conductor.live());
    page.counter("demi_requests_no_route_total", "Requests that no rule matched.", stats.no_route);
    page.counter("demi_requests_gone_total", "Requests whose caller hung up.", stats.gone);
    page.counter("demi_events_total", "Events that the conductor handled.", stats.events);
    page.counter("demi_stale_news_total", "News of old runs and ended requests, passed over.", stats.stale);
    page.counter("demi_store_failures_total", "Errands that the store could not do.", stats.store_failures);
    let help = "1 while the disk refuses and nothing is kept.";
    page.gauge("demi_store_shut", help, u8::from(facts.store.trouble.is_some()));
    let help = "Bytes that Demi has written to disks, as the kernel counts them.";
    page.counter("demi_store_bytes_written_total", help, facts.store.written_bytes);
    let help = "Errands of the store that were made durable.";
    page.counter("demi_store_synced_total", help, facts.store.synced);
    page.counter("demi_store_syncs_total", "Syncs of the disk, each for a group of them.", facts.store.syncs);
    let (bytes, dropped) = facts.trace;
    page.gauge("demi_trace_bytes", "Bytes of today's trace; 2,000,000 is the most.", bytes);
    page.counter("demi_trace_lines_dropped_total", "Lines for which the trace had no room.", dropped);
    page.counter("demi_slow_turns_total", "Turns of the reactor over their budget of 50 ms.", turns.slow);
    page.family("demi_turn_duration_seconds", "histogram", "Turns of the reactor, without the wait for news.");
    page.histogram("demi_turn_duration_seconds", None, &turns.duration);
    page.family("demi_loop_lag_seconds", "histogram", "How late turns of the reactor began for which a timer was due.");
    page.histogram("demi_loop_lag_seconds", None, &turns.lag);
}

/// What the store keeps that someone should look at.
fn of_dead_letters(page: &mut Page, platforms: &[PlatformStatus<'_>], store: &StoreFacts) {
    page.family("demi_dead_letters", "gauge", "Dead letters that are kept.");
    page.each("demi_dead_letters", platforms, |platform| store.letters.get(platform.name).copied().unwrap_or(0));
    let is_known = |name: &str| platforms.iter().any(|platform| platform.name == name);
    for (name, count) in store.letters.iter().filter(|(name, _)| !is_known(name)) {
        page.line("demi_dead_letters", &[("platform", name)], count);
    }
    let age = store.oldest_letter_unix_ms.map_or(0, |oldest| unix_ms().saturating_sub(oldest)) as f64 / 1000.0;
    page.gauge("demi_dead_letter_oldest_seconds", "How long the dead letter is kept that has been longest.", age);
}

/// Messages that are delivered though nobody waits for the answer.
fn of_posts(page: &mut Page, conductor: &Conductor, posts: &PostCounts) {
    page.gauge("demi_posts_queued", "Messages that were acknowledged and have not ended.", conductor.posts());
    page.family("demi_posts_total", "counter", "Messages by what became of them.");
    let taken = [("accepted", posts.accepted), ("delivered", posts.delivered)];
    let buried = posts.buried().map(|(grave, count)| (grave.name(), count));
    for (result, count) in taken.into_iter().chain(buried) {
        page.line("demi_posts_total", &[("result", result)], count);
    }
}

/// The machine, and what lies beyond it.
fn of_surroundings(page: &mut Page, conductor: &Conductor) {
    page.family("demi_reachable", "gauge", "1 if what the configuration names in reachability can be reached.");
    for target in conductor.targets() {
        let is_there = matches!(target.state, "up" | "degraded");
        page.line("demi_reachable", &[("target", target.name)], u8::from(is_there));
    }
    page.family("demi_system_resources", "gauge", "The machine, as last measured: bytes, and shares of 1.");
    let Some((_, sample)) = conductor.sample() else { return };
    let bytes = |bytes: u64| Some(bytes as f64);
    let ratio = |permille: u32| Some(f64::from(permille) / 1000.0);
    let resources = [
        ("ram_available_bytes", bytes(sample.ram_available)),
        ("ram_total_bytes", bytes(sample.ram_total)),
        ("ram_headroom_bytes", bytes(sample.ram_headroom)),
        ("ram_limit_bytes", sample.ram_limit.and_then(bytes)),
        ("arc_reclaimable_bytes", bytes(sample.arc_reclaimable)),
        ("pressure_some_ratio", sample.pressure.and_then(|pressure| ratio(pressure.some_permille))),
        ("pressure_full_ratio", sample.pressure.and_then(|pressure| ratio(pressure.full_permille))),
        ("swap_used_bytes", bytes(sample.swap_used)),
        ("swap_total_bytes", bytes(sample.swap_total)),
        ("cpu_ratio", ratio(sample.cpu_permille)),
        ("disk_free_bytes", sample.disk_free.and_then(bytes)),
        ("demi_rss_bytes", bytes(sample.own_rss)),
    ];
    for (resource, value) in resources {
        if let Some(value) = value {
            page.line("demi_system_resources", &[("resource", resource)], value);
        }
    }
    page.family("demi_ram_source", "gauge", "1 for where the figures of RAM come from.");
    for source in RamSource::ALL {
        page.line("demi_ram_source", &[("source", source.name())], u8::from(source == sample.ram_source));
    }
}

/// RAM as decisions see it, what is forecast, and what was decided. What is not known, yet or any more, is NaN, so that its series
/// is there.
fn of_scaler(page: &mut Page, conductor: &Conductor, platforms: &[PlatformStatus<'_>], now: Time) {
    let (Some(outlook), Some(counts)) = (conductor.outlook(), conductor.decision_counts()) else { return };
    let ratio = |percent: f64| percent / 100.0;
    let figures = conductor.ram_figures().filter(|_| !conductor.is_sample_stale(now));
    let used = figures.map(|figures| figures.ram_used as f64 / figures.ram_total.max(1) as f64);
    let help =
        "Used RAM as decisions about it see it, share of 1; NaN if it was not measured for three scaler.interval_ms.";
    page.gauge("demi_scaler_ram_ratio", help, used.unwrap_or(f64::NAN));
    let forecast = outlook.forecast();
    let ahead = forecast.map(|forecast| ratio(forecast.ram_percent));
    let help = "Used RAM in scaler.horizon_ms, as the champion forecast it at the last sample.";
    page.gauge("demi_scaler_forecast_ratio", help, ahead.unwrap_or(f64::NAN));
    let (low, high) = forecast.and_then(|forecast| forecast.interval).unwrap_or((f64::NAN, f64::NAN));
    let name = "demi_scaler_forecast_interval_ratio";
    page.family(name, "gauge", "Between which that lies with 95 %.");
    for (bound, percent) in [("low", low), ("high", high)] {
        page.line(name, &[("bound", bound)], ratio(percent));
    }
    page.family("demi_scaler_champion", "gauge", "1 for the forecaster that is believed.");
    for model in Model::ALL {
        let is_it = u8::from(model == outlook.champion());
        page.line("demi_scaler_champion", &[("model", model.name())], is_it);
    }
    let scores = Model::ALL.map(|model| (model.name(), outlook.score(model)));
    let name = "demi_scaler_forecast_error_points";
    page.family(name, "gauge", "Mean absolute error of the last forecasts, points of percent of RAM.");
    for (model, score) in scores {
        page.line(name, &[("model", model)], score.mean_error.unwrap_or(f64::NAN));
    }
    let name = "demi_scaler_forecast_coverage_ratio";
    page.family(name, "gauge", "Part of the last 95 % intervals that held.");
    for (model, score) in scores {
        page.line(name, &[("model", model)], score.coverage.unwrap_or(f64::NAN));
    }
    let name = "demi_scaler_forecasts_judged";
    page.family(name, "gauge", "How many forecasts these two were taken from.");
    for (model, score) in scores {
        page.line(name, &[("model", model)], score.rounds);
    }
    page.family("demi_scaler_decisions_total", "counter", "Decisions about RAM.");
    for (act, count) in Act::NAMES.iter().zip(counts) {
        page.line("demi_scaler_decisions_total", &[("act", act)], count);
    }
    let is_shed = |platform: &&PlatformStatus<'_>| platform.instances.iter().any(|instance| instance.state == "shed");
    let help = "Platforms that are shed for want of RAM.";
    page.gauge("demi_scaler_platforms_shed", help, platforms.iter().filter(is_shed).count());
    let help = "Memory that forecasting takes of Demi itself.";
    page.gauge("demi_scaler_memory_bytes", help, outlook.bytes());
    let name = "demi_plugin_memory_peak_bytes";
    page.family(name, "gauge", "What an instance is expected to use at most: the most that one has, faded since.");
    for platform in platforms.iter().filter(|platform| platform.peak_bytes > 0) {
        page.line(name, &[("platform", platform.name)], platform.peak_bytes);
    }
}

/// Requests to platforms: what became of them, what was tried for them, how long they took.
fn of_requests(page: &mut Page, platforms: &[PlatformStatus<'_>]) {
    let counters: [(&str, &str, Count); 5] = [
        ("demi_requests_total", "Requests routed to the platform.", |stats| stats.asked),
        ("demi_retries_total", "Attempts after the first.", |stats| stats.retries),
        ("demi_buried_total", "Requests handed to the store as dead letters.", |stats| stats.buried),
        ("demi_fallbacks_total", "Requests that went on to the next platform of the route's fallback.", |stats| {
            stats.passed_on
        }),
        (
            "demi_panic_requests_total",
            "Requests given to instances whose breakers are open, because most are.",
            |stats| stats.panics,
        ),
    ];
    for (name, help, count) in counters {
        page.family(name, "counter", help);
        page.each(name, platforms, |platform| count(platform.stats));
    }
    page.family("demi_attempts_total", "counter", "Attempts by how they ended.");
    for platform in platforms {
        for (index, (_, outcome)) in OUTCOMES.iter().enumerate() {
            let labels = [("platform", platform.name), ("outcome", outcome)];
            page.line("demi_attempts_total", &labels, platform.stats.outcomes[index]);
        }
        let labels = [("platform", platform.name), ("outcome", "timed_out")];
        page.line("demi_attempts_total", &labels, platform.stats.timeouts);
    }
    page.family("demi_plugin_failure_total", "counter", "Failed attempts by kind of error.");
    for platform in platforms {
        for ((outcome, name), count) in OUTCOMES.iter().zip(platform.stats.outcomes) {
            match outcome {
                Outcome::Failed | Outcome::Broken | Outcome::Unsent => {
                    let labels = [("platform", platform.name), ("error_type", *name)];
                    page.line("demi_plugin_failure_total", &labels, count);
                }
                Outcome::Replied | Outcome::Mistaken | Outcome::Busy => {}
            }
        }
        let labels = [("platform", platform.name), ("error_type", "timeout")];
        page.line("demi_plugin_failure_total", &labels, platform.stats.timeouts);
    }
    page.family("demi_refused_total", "counter", "Requests refused by reason.");
    page.table("demi_refused_total", "reason", &Refusal::ALL.map(Refusal::name), platforms, |stats| &stats.refused);
    page.family("demi_hedges_total", "counter", "Second instances that were asked, and those whose answer counted.");
    for platform in platforms {
        for (result, count) in [("asked", platform.stats.hedges), ("won", platform.stats.hedges_won)] {
            page.line("demi_hedges_total", &[("platform", platform.name), ("result", result)], count);
        }
    }
    page.family("demi_retry_tokens", "gauge", "What retries and hedges of the platform may still draw on.");
    page.each("demi_retry_tokens", platforms, |platform| platform.retry_tokens);
    page.family(
        "demi_displaced_total",
        "counter",
        "Requests that waited and were refused to make room for more urgent ones.",
    );
    page.each("demi_displaced_total", platforms, |platform| platform.stats.displaced);
    page.family("demi_queue_length", "gauge", "Requests that wait for an instance.");
    page.each("demi_queue_length", platforms, |platform| platform.queued);
    page.family("demi_queue_age_seconds", "gauge", "How long the request has waited that has waited longest.");
    page.each("demi_queue_age_seconds", platforms, |platform| platform.queue_age.as_secs_f64());
    page.histograms("demi_queue_duration_seconds", "How long requests waited for an instance.", platforms, |stats| {
        &stats.queue_duration
    });
    page.histograms(
        "demi_request_duration_seconds",
        "From question to answer, answered requests.",
        platforms,
        |stats| &stats.request_duration,
    );
}

/// Health checks, and what they and exits led to.
fn of_health(page: &mut Page, platforms: &[PlatformStatus<'_>]) {
    page.family("demi_health_check_total", "counter", "Health checks by result.");
    for platform in platforms {
        let results = [
            ("pass", platform.stats.probes_passed),
            ("fail", platform.stats.probes_failed),
            ("unready", platform.stats.probes_unready),
            ("busy", platform.stats.probes_busy),
            ("spared", platform.stats.probes_spared),
        ];
        for (status, count) in results {
            page.line("demi_health_check_total", &[("platform", platform.name), ("status", status)], count);
        }
    }
    page.histograms("demi_health_check_duration_seconds", "Health checks that were not busy.", platforms, |stats| {
        &stats.probe_duration
    });
    page.family("demi_restarts_total", "counter", "Runs after the first, by what ended the one before.");
    page.table("demi_restarts_total", "reason", &RESTARTS, platforms, |stats| &stats.restarts);
    page.family("demi_starts_today", "gauge", "Starts of instances since the day began (UTC).");
    page.each("demi_starts_today", platforms, |platform| platform.starts_today.0);
}

/// Breakers of instances and of platforms.
fn of_breakers(page: &mut Page, platforms: &[PlatformStatus<'_>]) {
    page.family("demi_circuit_breaker_state", "gauge", "Breakers of the platform's instances by state.");
    for platform in platforms {
        for state in BREAKER_STATES {
            let count = platform.instances.iter().filter(|instance| instance.breaker == state).count();
            page.line("demi_circuit_breaker_state", &[("platform", platform.name), ("state", state)], count);
        }
    }
    page.family("demi_platform_breaker_state", "gauge", "1 for the state of the platform's own breaker.");
    for platform in platforms {
        for state in BREAKER_STATES {
            let labels = [("platform", platform.name), ("state", state)];
            page.line("demi_platform_breaker_state", &labels, u8::from(platform.breaker == state));
        }
    }
    page.family("demi_breaker_opened_total", "counter", "Breakers of instances that opened, by cause.");
    page.table("demi_breaker_opened_total", "cause", &CAUSES, platforms, |stats| &stats.opened);
    let help = "Times the platform's own breaker opened, by cause.";
    page.family("demi_platform_breaker_opened_total", "counter", help);
    page.table("demi_platform_breaker_opened_total", "cause", &CAUSES, platforms, |stats| &stats.platform_opened);
    let help = "Instances cut off because they were far worse than their peers; also among demi_breaker_opened_total.";
    page.family("demi_ejections_total", "counter", help);
    for platform in platforms {
        for (cause, count) in CAUSES.iter().zip(platform.stats.opened).filter(|(cause, _)| OUTLIERS.contains(cause)) {
            page.line("demi_ejections_total", &[("platform", platform.name), ("cause", cause)], count);
        }
    }
    let help = "Breakers that tripped and stayed closed: the last instance, whose health check passed.";
    page.family("demi_breaker_acquitted_total", "counter", help);
    page.each("demi_breaker_acquitted_total", platforms, |platform| platform.stats.acquitted);
    page.family("demi_breaker_trials_total", "counter", "Requests that tried half-open breakers, by result.");
    page.table("demi_breaker_trials_total", "result", &TRIALS, platforms, |stats| &stats.trials);
}

/// Instances, and what they use.
fn of_instances(page: &mut Page, platforms: &[PlatformStatus<'_>], facts: &Facts<'_>) {
    let help = "Instances that have said that they want no new requests.";
    page.family("demi_instances_draining_by_wish", "gauge", help);
    page.each("demi_instances_draining_by_wish", platforms, |platform| {
        platform.instances.iter().filter(|instance| instance.drains).count()
    });
    page.family("demi_instance_weight", "gauge", "How often the instance is asked against the others.");
    for platform in platforms {
        for instance in &platform.instances {
            let Some(weight) = instance.turns_weight else { continue };
            let number = instance.instance.to_string();
            page.line("demi_instance_weight", &[("platform", platform.name), ("instance", &number)], weight);
        }
    }
    page.family("demi_instances", "gauge", "Instances by state.");
    for platform in platforms {
        for state in INSTANCE_STATES {
            let count = platform.instances.iter().filter(|instance| instance.state == state).count();
            page.line("demi_instances", &[("platform", platform.name), ("state", state)], count);
        }
    }
    page.family("demi_reloads_total", "counter", "Reloads by how they ended.");
    for (platform, listed) in platforms.iter().zip(facts.roster) {
        for (result, count) in [("done", listed.swaps_done), ("failed", listed.swaps_failed)] {
            page.line("demi_reloads_total", &[("platform", platform.name), ("result", result)], count);
        }
    }
    page.family("demi_update_waiting", "gauge", "1 if the manifest or executable has changed and is not taken up.");
    for (platform, listed) in platforms.iter().zip(facts.roster) {
        let waits = u8::from(listed.is_update_waiting());
        page.line("demi_update_waiting", &[("platform", platform.name)], waits);
    }
    page.family("demi_log_lines_dropped_total", "counter", "Log lines over limits.log_bytes_per_second_max.");
    for (platform, listed) in platforms.iter().zip(facts.roster) {
        page.line("demi_log_lines_dropped_total", &[("platform", platform.name)], listed.dropped_lines);
    }
    let weights: [(&str, &str, Weigh); 3] = [
        ("demi_plugin_memory_bytes", "Resident memory of the instance's process tree.", |weight| weight.rss_bytes),
        ("demi_plugin_processes", "Processes in the instance's tree.", |weight| weight.processes.into()),
        ("demi_plugin_descriptors", "Open descriptors of the process in the tree that has most.", |weight| {
            weight.descriptors.into()
        }),
    ];
    for (name, help, of) in weights {
        page.family(name, "gauge", help);
        for platform in platforms {
            for instance in &platform.instances {
                let Some(weight) = instance.weight else { continue };
                let number = instance.instance.to_string();
                page.line(name, &[("platform", platform.name), ("instance", &number)], of(&weight));
            }
        }
    }
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    /// Begins a family, named as its samples are. To OpenMetrics `_total` and the like belong to the sample, and a unit
    /// at the end of the name is told.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let is_open = self.format.is_open();
        let family = if is_open { name.strip_suffix("_total").unwrap_or(name) } else { name };
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {family} {help}\n# TYPE {family} {kind}");
        let unit = ["seconds", "bytes"].into_iter().find(|unit| family.ends_with(unit));
        if let Some(unit) = unit.filter(|_| is_open) {
            let _ = writeln!(self.text, "# UNIT {family} {unit}");
        }
    }

    /// Label values are names and words of ours, which need no escape.
    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            // Piece by piece: a page of many platforms is mostly labels, and formatting them takes twice as long.
            for piece in [if index == 0 { "{" } else { "," }, label, "=\"", text, "\""] {
                self.text.push_str(piece);
            }
        }
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A family of one sample.
    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.line(name, &[], value);
    }

    /// A family of one sample.
    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.line(name, &[], value);
    }

    /// A sample for each platform.
    fn each<V: Display>(
        &mut self,
        name: &str,
        platforms: &[PlatformStatus<'_>],
        value: impl Fn(&PlatformStatus<'_>) -> V,
    ) {
        for platform in platforms {
            self.line(name, &[("platform", platform.name)], value(platform));
        }
    }

    /// A sample for each platform and each word of a label.
    fn table<const N: usize>(
        &mut self,
        name: &str,
        label: &str,
        words: &[&str; N],
        platforms: &[PlatformStatus<'_>],
        of: fn(&PlatformStats) -> &[u64; N],
    ) {
        for platform in platforms {
            for (word, count) in words.iter().zip(of(platform.stats)) {
                self.line(name, &[("platform", platform.name), (label, word)], count);
            }
        }
    }

    /// A family with a histogram for each platform.
    fn histograms(
        &mut self,
        name: &str,
        help: &str,
        platforms: &[PlatformStatus<'_>],
        of: fn(&PlatformStats) -> &Histogram,
    ) {
        self.family(name, "histogram", help);
        for platform in platforms {
            self.histogram(name, Some(("platform", platform.name)), of(platform.stats));
        }
    }

    fn histogram(&mut self, name: &str, label: Option<(&str, &str)>, histogram: &Histogram) {
        let labels: Vec<(&str, &str)> = label.into_iter().collect();
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (count, bound) in histogram.counts.iter().zip(BUCKETS_US) {
            below += count;
            let bound = self.bound(bound);
            self.line(&bucket, &[&labels[..], &[("le", &bound)]].concat(), below);
        }
        self.line(&bucket, &[&labels[..], &[("le", "+Inf")]].concat(), histogram.count());
        self.line(&format!("{name}_sum"), &labels, histogram.sum_nanos as f64 / 1e9);
        self.line(&format!("{name}_count"), &labels, histogram.count());
    }

    /// A bound of a bucket in seconds. OpenMetrics wants the point in whole numbers, and Prometheus had them without.
    fn bound(&self, micros: u64) -> String {
        let seconds = Duration::from_micros(micros).as_secs_f64();
        if self.format.is_open() {
            format!("{seconds:?}")
        } else {
            seconds.to_string()
        }
    }

    fn end(mut self) -> String {
        if self.format.is_open() {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_the_format_that_it_prefers() {
        // What Prometheus 2.53 and 3.4 send.
        let prometheus_2 =
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
                            q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;\
                            escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (None, Format::Prometheus),
            (Some(""), Format::Prometheus),
            (Some("*/*"), Format::Prometheus),
            (Some("text/html, text/plain;q=0.9"), Format::Prometheus),
            (Some(prometheus_2), Format::OpenMetrics1),
            (Some(prometheus_3), Format::OpenMetrics1),
            (Some("application/openmetrics-text"), Format::OpenMetrics1),
            (Some("Application/OpenMetrics-Text; version = \"0.0.1\""), Format::OpenMetrics0),
            (Some("application/openmetrics-text; version=2.0.0, text/plain"), Format::Prometheus),
            (Some("application/openmetrics-text;q=0.1, text/plain;q=0.2"), Format::Prometheus),
            (Some("application/openmetrics-text;q=0"), Format::Prometheus),
            (Some("application/openmetrics-text;q=much"), Format::Prometheus),
        ] {
            assert_eq!(Format::of(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn to_openmetrics_the_suffix_belongs_to_the_sample_and_bounds_have_a_point() {
        let written = |format| {
            let mut page = Page { text: String::new(), format };
            page.counter("a_seconds_total", "Help.", 1);
            page.family("b_seconds", "histogram", "Help.");
            let mut histogram = Histogram::default();
            histogram.record(Duration::from_millis(700));
            page.histogram("b_seconds", Some(("platform", "p")), &histogram);
            page.end()
        };
        let open = written(Format::OpenMetrics1);
        let head = "# HELP a_seconds Help.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\na_seconds_total 1\n";
        assert!(open.starts_with(head) && open.ends_with("# EOF\n"), "{open}");
        assert!(open.contains("b_seconds_bucket{platform=\"p\",le=\"0.0001\"} 0\n"), "{open}");
        assert!(open.contains("b_seconds_bucket{platform=\"p\",le=\"1.0\"} 1\n"), "{open}");
        let plain = written(Format::Prometheus);
        let head = "# HELP a_seconds_total Help.\n# TYPE a_seconds_total counter\na_seconds_total 1\n";
        assert!(plain.starts_with(head) && !plain.contains("# EOF") && !plain.contains("# UNIT"), "{plain}");
        assert!(plain.contains("b_seconds_bucket{platform=\"p\",le=\"1\"} 1\n"), "{plain}");
        assert!(plain.ends_with("b_seconds_sum{platform=\"p\"} 0.7\nb_seconds_count{platform=\"p\"} 1\n"), "{plain}");
    }
}
