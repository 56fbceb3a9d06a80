//! Every metric, in the Prometheus text format. This file is the whole list.

use std::fmt::Write;
use std::time::Duration;

use demi_conductor::stats::{Histogram, PlatformStats, BUCKETS_US, OUTCOMES};
use demi_conductor::{Conductor, Outcome, PlatformStatus, Refusal, Weight, INSTANCE_STATES};

use crate::api::Facts;

/// Finds one of a platform's counts.
type Count = fn(&PlatformStats) -> u64;
/// Finds one of an instance's measures.
type Weigh = fn(&Weight) -> u64;

/// The page, made anew for each scrape.
pub(crate) fn render(conductor: &Conductor, facts: &Facts<'_>) -> String {
    let mut page = Page(String::with_capacity(8 * 1024));
    let platforms: Vec<PlatformStatus<'_>> = conductor.platforms().collect();
    let stats = conductor.stats();

    page.family("demi_build_info", "gauge", "The version that runs.");
    page.line("demi_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.single("demi_uptime_seconds", "gauge", "Seconds since start.", facts.now.as_nanos() as f64 / 1e9);
    page.single("demi_ready", "gauge", "1 if every platform takes requests.", u8::from(conductor.is_ready()));
    page.single("demi_http_connections", "gauge", "Client connections.", facts.connections);
    page.single("demi_http_connections_total", "counter", "Client connections accepted.", facts.counts.accepted);
    page.single(
        "demi_http_connections_refused_total",
        "counter",
        "Client connections refused at http.connections_max.",
        facts.counts.refused,
    );
    page.single(
        "demi_http_malformed_total",
        "counter",
        "Requests that were no HTTP, or none that is spoken here.",
        facts.counts.malformed,
    );
    page.single(
        "demi_http_too_large_total",
        "counter",
        "Requests over http.head_bytes_max, http.headers_max or http.body_bytes_max.",
        facts.counts.too_large,
    );
    page.single(
        "demi_http_bodies_full_total",
        "counter",
        "Requests refused at http.bodies_bytes_max.",
        facts.counts.bodies_full,
    );
    page.single(
        "demi_http_timed_out_total",
        "counter",
        "Clients that took too long to send or to take.",
        facts.counts.timed_out,
    );
    page.single("demi_http_body_bytes", "gauge", "Bytes of request bodies held.", facts.body_bytes);
    page.single("demi_requests_in_flight", "gauge", "Requests under way.", conductor.live());
    page.single("demi_requests_no_route_total", "counter", "Requests that no rule matched.", stats.no_route);
    page.single("demi_requests_gone_total", "counter", "Requests whose caller hung up.", stats.gone);
    page.single("demi_events_total", "counter", "Events that the conductor handled.", stats.events);
    page.single("demi_stale_news_total", "counter", "News of old runs and ended requests, passed over.", stats.stale);
    page.single("demi_slow_turns_total", "counter", "Turns of the reactor over their budget.", facts.slow_turns);
    page.single("demi_store_failures_total", "counter", "Errands that the store could not do.", stats.store_failures);
    page.single("demi_dead_letters", "gauge", "Dead letters that are kept.", facts.dead_letters);

    let counters: [(&str, &str, Count); 3] = [
        ("demi_requests_total", "Requests routed to the platform.", |stats| stats.asked),
        ("demi_retries_total", "Attempts after the first.", |stats| stats.retries),
        ("demi_buried_total", "Requests handed to the store as dead letters.", |stats| stats.buried),
    ];
    for (name, help, count) in counters {
        page.family(name, "counter", help);
        for platform in &platforms {
            page.line(name, &[("platform", platform.name)], count(platform.stats));
        }
    }

    page.family("demi_attempts_total", "counter", "Attempts by how they ended.");
    for platform in &platforms {
        for (index, (_, outcome)) in OUTCOMES.iter().enumerate() {
            let labels = [("platform", platform.name), ("outcome", outcome)];
            page.line("demi_attempts_total", &labels, platform.stats.outcomes[index]);
        }
        let labels = [("platform", platform.name), ("outcome", "timed_out")];
        page.line("demi_attempts_total", &labels, platform.stats.timeouts);
    }
    page.family("demi_plugin_failure_total", "counter", "Failed attempts by kind of error.");
    for platform in &platforms {
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
    for platform in &platforms {
        for (index, refusal) in Refusal::ALL.iter().enumerate() {
            let labels = [("platform", platform.name), ("reason", refusal.name())];
            page.line("demi_refused_total", &labels, platform.stats.refused[index]);
        }
    }
    page.family("demi_queue_length", "gauge", "Requests that wait for an instance.");
    for platform in &platforms {
        page.line("demi_queue_length", &[("platform", platform.name)], platform.queued);
    }
    page.family("demi_health_check_total", "counter", "Health checks by result.");
    for platform in &platforms {
        let results = [
            ("pass", platform.stats.probes_passed),
            ("fail", platform.stats.probes_failed),
            ("busy", platform.stats.probes_busy),
        ];
        for (status, count) in results {
            page.line("demi_health_check_total", &[("platform", platform.name), ("status", status)], count);
        }
    }
    page.family("demi_instances", "gauge", "Instances by state.");
    for platform in &platforms {
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
    page.family("demi_starts_today", "gauge", "Starts of instances since the day began (UTC).");
    for platform in &platforms {
        page.line("demi_starts_today", &[("platform", platform.name)], platform.starts_today.0);
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
        for platform in &platforms {
            for instance in &platform.instances {
                let Some(weight) = instance.weight else { continue };
                let number = instance.instance.to_string();
                page.line(name, &[("platform", platform.name), ("instance", &number)], of(&weight));
            }
        }
    }
    page.family("demi_circuit_breaker_state", "gauge", "Breakers of the platform's instances by state.");
    for platform in &platforms {
        for state in ["closed", "open", "half_open"] {
            let count = platform.instances.iter().filter(|instance| instance.breaker == state).count();
            page.line("demi_circuit_breaker_state", &[("platform", platform.name), ("state", state)], count);
        }
    }
    page.histograms(
        "demi_request_duration_seconds",
        "From question to answer, answered requests.",
        &platforms,
        |stats| &stats.request_duration,
    );
    page.histograms("demi_health_check_duration_seconds", "Health checks that were not busy.", &platforms, |stats| {
        &stats.probe_duration
    });
    if let Some((_, sample)) = conductor.sample() {
        page.family("demi_system_resources", "gauge", "The machine, as last measured: bytes; CPU as a share of 1.");
        let resources = [
            ("ram_available_bytes", sample.ram_available as f64),
            ("ram_total_bytes", sample.ram_total as f64),
            ("swap_used_bytes", sample.swap_used as f64),
            ("swap_total_bytes", sample.swap_total as f64),
            ("cpu_ratio", f64::from(sample.cpu_permille) / 1000.0),
            ("demi_rss_bytes", sample.own_rss as f64),
        ];
        for (resource, value) in resources {
            page.line("demi_system_resources", &[("resource", resource)], value);
        }
    }
    page.0
}

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Label values are names and words of ours, which need no escape.
    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.line(name, &[], value);
    }

    fn histograms(
        &mut self,
        name: &str,
        help: &str,
        platforms: &[PlatformStatus<'_>],
        of: fn(&PlatformStats) -> &Histogram,
    ) {
        self.family(name, "histogram", help);
        for platform in platforms {
            let histogram = of(platform.stats);
            let mut below = 0;
            for (count, bound) in histogram.counts.iter().zip(BUCKETS_US) {
                below += count;
                let bound = Duration::from_micros(bound).as_secs_f64().to_string();
                self.line(&format!("{name}_bucket"), &[("platform", platform.name), ("le", &bound)], below);
            }
            let labels = [("platform", platform.name), ("le", "+Inf")];
            self.line(&format!("{name}_bucket"), &labels, histogram.count());
            let labels = [("platform", platform.name)];
            self.line(&format!("{name}_sum"), &labels, histogram.sum_nanos as f64 / 1e9);
            self.line(&format!("{name}_count"), &labels, histogram.count());
        }
    }
}
