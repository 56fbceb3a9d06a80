//! What is known of RAM over restarts of Demi, with a real store and real processes: `scaler.ram_total_mb` makes it small.

use std::sync::Arc;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{demi_command, misbehaving, until, Demi, Directory};

/// `voice` takes 120 MB at its first request.
fn with_little_ram(directory: &Arc<Directory>, scaler: &str) -> Demi {
    let bad = misbehaving();
    let sections = format!(
        r#"scaler: (ram_total_mb: 200, interval_ms: 200, fast_interval_ms: 200, cooldown_ms: 400, calm_ms: 2000,
            smoothing_ms: 1, spike_times: 0, emergency_percent: 100, {scaler}),
        platforms: [
            (name: "voice", host: Process(1), command: [{bad:?}, "hogs", "120"]),
        ],
        routes: [(to: "voice")],"#
    );
    Demi::start_in(Arc::clone(directory), "", &sections)
}

fn peak_mb(demi: &Demi) -> f64 {
    demi.json("/v1/platforms/voice")["memory_peak_mb"].as_f64().unwrap_or_default()
}

fn told(demi: &Demi, arguments: &[&str]) -> String {
    let address = demi.address.to_string();
    let output = demi_command().args(arguments).args(["--address", &address]).output().expect("it runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_a_platform_weighs_at_most_is_known_after_a_restart_and_after_a_kill() {
    let directory = Arc::new(Directory::new());
    let mut demi = with_little_ram(&directory, "");
    until("the first weighing is kept", || {
        demi.log().contains("voice: it is kept that an instance weighs").then_some(())
    });
    let first = peak_mb(&demi);
    assert!(first > 0.5, "{first}");
    demi.signal(Signal::KILL);
    demi.wait();
    let mut demi = with_little_ram(&directory, "shed_percent: 98, restore_percent: 97");
    until("Demi is ready", || (demi.get("/readyz").status == 200).then_some(()));
    assert!(peak_mb(&demi) > 0.5, "it was killed and knows nothing");
    demi.post("/v1/requests", r#"{"to":"voice","content":"hello"}"#);
    until("it has grown", || (peak_mb(&demi) > 110.0).then_some(()));
    demi.signal(Signal::TERM);
    demi.wait();
    let demi = with_little_ram(&directory, "enabled: false");
    assert!(peak_mb(&demi) > 110.0, "it was ended in order and knows {}", peak_mb(&demi));
    let why = told(&demi, &["why", "voice"]);
    assert!(why.contains("an instance of voice is expected to use 1"), "{why}");
    let page: Value = demi.json("/v1/platforms/voice");
    let shown = told(&demi, &["platforms", "voice"]);
    assert!(shown.contains("memory peak"), "{shown} of {page}");
}
