//! What is known of RAM over restarts of Demi, with a real store and real processes: `scaler.ram_total_mb` makes it small.

use std::sync::Arc;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{demi_command, misbehaving, until, Demi, Directory};

/// `voice` takes 240 MB at its first request, which it has room for, and `files` 80, for which there is none.
fn with_little_ram(directory: &Arc<Directory>, scaler: &str) -> Demi {
    let bad = misbehaving();
    let sections = format!(
        r#"scaler: (ram_total_mb: 400, interval_ms: 200, fast_interval_ms: 200, cooldown_ms: 400, calm_ms: 2000,
            smoothing_ms: 1, spike_times: 0, use_forecasts: false, {scaler}),
        platforms: [
            (name: "voice", host: Process(1), command: [{bad:?}, "hogs", "240"]),
            (name: "files", host: Process(1), command: [{bad:?}, "hogs", "80"]),
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
    let mut demi = with_little_ram(&directory, "emergency_percent: 100");
    until("the first weighing is kept", || {
        demi.log().contains("voice: it is kept that an instance weighs").then_some(())
    });
    let first = peak_mb(&demi);
    assert!(first > 0.5, "{first}");
    demi.signal(Signal::KILL);
    demi.wait();
    let mut demi = with_little_ram(&directory, "emergency_percent: 100, shed_percent: 98, restore_percent: 97");
    until("Demi is ready", || (demi.get("/readyz").status == 200).then_some(()));
    assert!(peak_mb(&demi) > 0.5, "it was killed and knows nothing");
    demi.post("/v1/requests", r#"{"to":"voice","content":"hello"}"#);
    until("it has grown", || (peak_mb(&demi) >= 240.0).then_some(()));
    demi.signal(Signal::TERM);
    demi.wait();
    let demi = with_little_ram(&directory, "enabled: false");
    assert!(peak_mb(&demi) >= 240.0, "it was ended in order and knows {}", peak_mb(&demi));
    let why = told(&demi, &["why", "voice"]);
    assert!(why.contains("an instance of voice is expected to use 2"), "{why}");
    let page: Value = demi.json("/v1/platforms/voice");
    let shown = told(&demi, &["platforms", "voice"]);
    assert!(shown.contains("memory peak"), "{shown} of {page}");
}

/// Where the clerk is asked, and has much to do, it says so.
fn decisions(demi: &Demi, query: &str) -> Vec<Value> {
    let page = until("the page is there", || {
        let page = demi.get(&format!("/v1/scaling{query}"));
        (page.status == 200).then_some(page)
    });
    page.json()["decisions"].as_array().cloned().expect("it has decisions")
}

/// What is decided is shown at once, and kept a moment later.
fn wait_until_kept(demi: &Demi) {
    let count = decisions(demi, "?limit=1000").len();
    let line = format!("is kept up to number {count}");
    until("all of it is kept", || demi.log().lines().any(|told| told.ends_with(&line)).then_some(()));
}

#[test]
fn what_was_decided_about_ram_is_known_after_a_kill_with_its_figures() {
    let directory = Arc::new(Directory::new());
    let mut demi = with_little_ram(&directory, "emergency_percent: 100");
    until("Demi is ready", || (demi.get("/readyz").status == 200).then_some(()));
    demi.post("/v1/requests", r#"{"to":"voice","content":"hello"}"#);
    until("it was weighed as it is", || (peak_mb(&demi) >= 240.0).then_some(()));
    demi.post("/v1/requests", r#"{"to":"files","content":"hello"}"#);
    until("it is told why it does not come back", || {
        decisions(&demi, "").iter().any(|one| one["act"] == "wait").then_some(())
    });
    wait_until_kept(&demi);
    demi.signal(Signal::KILL);
    demi.wait();
    // Nothing is decided any more.
    let demi = with_little_ram(
        &directory,
        "emergency_percent: 100, shed_percent: 99, restore_percent: 98, horizon_ms: 3600000",
    );
    let known = decisions(&demi, "");
    let acts: Vec<&str> = known.iter().rev().filter_map(|one| one["act"].as_str()).collect();
    let of_voice = |act: &str| known.iter().find(|one| one["act"] == act && one["platform"] == "voice");
    let (shed, won, wait) = (of_voice("shed"), of_voice("won"), of_voice("wait"));
    let place = |act: &str| acts.iter().position(|other| *other == act);
    assert!(place("trim") < place("shed") && place("shed") < place("wait"), "{acts:?}");
    let shed = shed.unwrap_or_else(|| panic!("{acts:?}"));
    assert!(shed["ram_percent"].as_f64() >= Some(80.0) && shed["threshold_percent"] == 80, "{shed}");
    assert!(shed["unix_ms"].as_u64() > Some(1_600_000_000_000) && shed["ram_total_mb"] == 400, "{shed}");
    assert!(won.is_none_or(|won| won["won_mb"].is_i64()) && wait.is_some_and(|wait| wait["missing_mb"].is_u64()));
    assert_eq!(decisions(&demi, "?limit=1"), known[..1]);
    assert!(decisions(&demi, "?limit=1000").ends_with(&known));
    let told = told(&demi, &["scaling", "log", "--limit", "2"]);
    let first = known[0]["text"].as_str().unwrap_or_default();
    assert!(told.contains(first) && told.lines().filter(|line| line.starts_with("20")).count() == 2, "{told}");
    for query in ["limit=0", "limit=1001", "limit=all", "last=3"] {
        let refused = demi.get(&format!("/v1/scaling?{query}"));
        let (name, _) = query.split_once('=').unwrap_or_default();
        assert!(refused.status == 400 && refused.body.contains(name), "{refused:?}");
    }
}

#[test]
fn more_decisions_than_are_in_memory_are_read_from_the_store() {
    let directory = Arc::new(Directory::new());
    let start = |scaler: &str| {
        let platform = r#"(name: "light", host: Threads(1), adapter: "echo", shed: true, start_budget_per_day: 10000)"#;
        let sections = format!("scaler: (ram_total_mb: 64, {scaler}), platforms: [{platform}]");
        Demi::start_in(Arc::clone(&directory), "", &sections)
    };
    // Demi alone is more than may be, so that whoever starts anything overrules that.
    let mut demi = start("interval_ms: 1000, shed_percent: 2, restore_percent: 1, emergency_percent: 100");
    until("RAM was measured", || demi.json("/v1/scaling")["now"].is_object().then_some(()));
    let is = |demi: &Demi, state: &str| demi.instance("light", 0)["state"] == state;
    for _ in 0..140 {
        demi.post("/v1/platforms/light/stop", "");
        until("it is stopped", || is(&demi, "stopped").then_some(()));
        demi.post("/v1/platforms/light/start", "");
        until("it is started", || (!is(&demi, "stopped")).then_some(()));
    }
    let told = decisions(&demi, "?limit=1000");
    assert!(told.len() >= 140, "{}", told.len());
    assert_eq!((decisions(&demi, "").len(), decisions(&demi, "?limit=139").len()), (128, 139));
    wait_until_kept(&demi);
    demi.signal(Signal::KILL);
    demi.wait();
    let demi = start("enabled: false");
    assert_eq!(decisions(&demi, "").len(), 128);
    // Something may have been decided after those were told.
    assert!(decisions(&demi, "?limit=1000").ends_with(&told));
}

#[test]
fn what_is_known_not_to_fit_is_not_started_when_demi_begins_but_by_hand() {
    let directory = Arc::new(Directory::new());
    let mut demi = with_little_ram(&directory, "emergency_percent: 100, shed_percent: 98, restore_percent: 97");
    until("it runs", || (demi.instance("voice", 0)["state"] == "ready").then_some(()));
    demi.post("/v1/requests", r#"{"to":"voice","content":"hello"}"#);
    until("it has grown", || (peak_mb(&demi) >= 240.0).then_some(()));
    demi.signal(Signal::TERM);
    demi.wait();
    let demi = with_little_ram(&directory, "emergency_percent: 100, shed_percent: 50, restore_percent: 49");
    assert_eq!(demi.instance("voice", 0)["state"], "shed", "with 240 MB it is above 50 % of 400 MB");
    let refused = &decisions(&demi, "")[0];
    assert!(refused["act"] == "refuse" && refused["missing_mb"].as_u64() > Some(9), "{refused}");
    let why = told(&demi, &["why", "voice"]);
    assert!(why.contains("MB are missing below scaler.shed_percent") && why.contains("it comes back when"), "{why}");
    assert_eq!(demi.post("/v1/platforms/voice/start", "").status, 202);
    until("it runs all the same", || (demi.instance("voice", 0)["state"] == "ready").then_some(()));
    assert_eq!(decisions(&demi, "")[0]["act"], "overrule");
}
