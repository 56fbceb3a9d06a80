//! RAM that runs short, with real processes that take it: `scaler.ram_total_mb` makes it small.

use serde_json::Value;

use crate::support::{misbehaving, until, Demi, Response};

/// `voice` takes 120 MB at its first request, and `files` stays small.
fn with_little_ram(scaler: &str) -> Demi {
    let bad = misbehaving();
    Demi::start(&format!(
        r#"scaler: (ram_total_mb: 200, interval_ms: 200, fast_interval_ms: 200, cooldown_ms: 400, calm_ms: 2000,
            smoothing_ms: 1, spike_times: 0, emergency_percent: 100, {scaler}),
        platforms: [
            (name: "files", host: Process(1), command: [{bad:?}, "nothing"]),
            (name: "voice", host: Process(1), command: [{bad:?}, "hogs", "120"]),
        ],
        routes: [(kind: "talk", to: "voice", fallback: ["files"]), (to: "files")],"#
    ))
}

fn scaling(demi: &Demi) -> Value {
    demi.get("/v1/scaling").json()
}

fn has_decided(demi: &Demi, act: &str, platform: &str) -> Value {
    until(&format!("{platform} has {act}"), || {
        let page = scaling(demi);
        let decisions = page["decisions"].as_array().cloned().unwrap_or_default();
        decisions.into_iter().find(|decision| decision["act"] == act && decision["platform"] == platform)
    })
}

fn state(demi: &Demi, platform: &str) -> String {
    let page = demi.get(&format!("/v1/platforms/{platform}")).json();
    page["instances"][0]["state"].as_str().unwrap_or_default().to_owned()
}

fn ask(demi: &Demi, platform: &str) -> Response {
    demi.post("/v1/requests", &format!(r#"{{"to":"{platform}","content":"hello"}}"#))
}

#[test]
fn a_child_that_takes_the_ram_is_shed_alone_its_messages_wait_and_it_comes_back() {
    let demi = with_little_ram("");
    until("both are ready", || ["files", "voice"].iter().all(|name| state(&demi, name) == "ready").then_some(()));
    ask(&demi, "voice");
    let shed = has_decided(&demi, "shed", "voice");
    assert!(shed["ram_percent"].as_f64() >= Some(80.0), "{shed}");
    until("it is shed", || (state(&demi, "voice") == "shed").then_some(()));
    let refused = ask(&demi, "voice");
    assert_eq!((refused.status, &refused.json()["code"]), (503, &"shed".into()), "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let passed_on = demi.post("/v1/requests", r#"{"kind":"talk","content":"hello"}"#);
    assert_eq!(passed_on.status, 200, "{passed_on:?}");
    let why = demi.get("/v1/platforms/voice/why").json().to_string();
    assert!(why.contains("scaler.shed_percent is 80") && why.contains("it comes back"), "{why}");
    let won = has_decided(&demi, "won", "voice");
    assert!(won["won_mb"].as_i64() > Some(50), "{won}");
    assert_eq!(state(&demi, "files"), "ready");
    // What it weighed at most does not fit below the threshold, and that is told.
    let wait = has_decided(&demi, "wait", "voice");
    assert!(wait["missing_mb"].as_u64() > Some(0), "{wait}");
    let forced = demi.post("/v1/platforms/voice/start", "");
    assert_eq!(forced.status, 202, "{forced:?}");
    has_decided(&demi, "overrule", "voice");
    until("it runs again", || (state(&demi, "voice") == "ready").then_some(()));
}

#[test]
fn with_forecast_only_the_child_that_takes_the_ram_stays() {
    let demi = with_little_ram("forecast_only: true");
    until("it is ready", || (state(&demi, "voice") == "ready").then_some(()));
    ask(&demi, "voice");
    let shed = has_decided(&demi, "shed", "voice");
    assert_eq!(shed["done"], false);
    assert!(shed["text"].as_str().unwrap_or_default().contains("would have been shed"), "{shed}");
    has_decided(&demi, "wait", "voice");
    assert_eq!(state(&demi, "voice"), "ready");
}
