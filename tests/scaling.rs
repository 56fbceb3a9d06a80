//! RAM that runs short, with real processes that take it: `scaler.ram_total_mb` makes it small.

use std::sync::Arc;

use serde_json::Value;

use crate::support::{install, misbehaving, until, Demi, Directory, Response};

/// `voice` takes 240 MB at its first request, which all have room for beside a Demi of 10 MB or of 60, and `files` takes 80 at
/// its, for which there is none: so that what is shed has been weighed as it is before RAM runs short.
fn with_little_ram(scaler: &str) -> Demi {
    let bad = misbehaving();
    Demi::start(&format!(
        r#"scaler: (ram_total_mb: 400, interval_ms: 200, fast_interval_ms: 200, cooldown_ms: 400, calm_ms: 2000,
            smoothing_ms: 1, spike_times: 0, emergency_percent: 100, use_forecasts: false, {scaler}),
        platforms: [
            (name: "files", host: Process(1), command: [{bad:?}, "hogs", "80"]),
            (name: "voice", host: Process(1), command: [{bad:?}, "hogs", "240"]),
        ],
        routes: [(kind: "talk", to: "voice", fallback: ["files"]), (to: "files")],"#
    ))
}

fn scaling(demi: &Demi) -> Value {
    demi.get("/v1/scaling").json()
}

/// Both take what they take, one after the other.
fn use_up_ram(demi: &Demi) {
    let_voice_grow(demi);
    assert_eq!(ask(demi, "files").status, 200);
}

/// Both run, and `voice` takes what it takes.
fn let_voice_grow(demi: &Demi) {
    until("both are ready", || ["files", "voice"].iter().all(|name| state(demi, name) == "ready").then_some(()));
    assert_eq!(ask(demi, "voice").status, 200);
    let peak_mb = || demi.json("/v1/platforms/voice")["memory_peak_mb"].as_f64();
    until("voice was weighed as it is", || (peak_mb() >= Some(240.0)).then_some(()));
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
    use_up_ram(&demi);
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
    assert!(won["won_mb"].as_i64() > Some(100), "{won}");
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
fn a_reload_by_hand_is_done_and_says_by_how_much_both_editions_do_not_fit() {
    let demi = with_little_ram("");
    let_voice_grow(&demi);
    let ordered = demi.post("/v1/platforms/voice/reload", "");
    assert_eq!(ordered.status, 202, "{ordered:?}");
    let told = has_decided(&demi, "overrule", "voice");
    assert!(told["missing_mb"].as_u64() > Some(100), "{told}");
    until("it has taken over", || (demi.json("/v1/platforms/voice")["edition"] == 1).then_some(()));
}

/// It was said in one breath that the new edition starts by itself, and that it has to be told to.
#[test]
fn a_change_that_does_not_fit_waits_as_is_told_and_starts_when_the_old_edition_is_stopped() {
    let directory = Arc::new(Directory::new());
    let path = directory.path().join("voice.sh");
    let script = |edition: &str| format!("#!/bin/sh\n# {edition}\nexec {:?} hogs 240\n", misbehaving());
    install(&path, &script("the first"));
    let sections = format!(
        r#"scaler: (ram_total_mb: 400, interval_ms: 200, fast_interval_ms: 200, spike_times: 0, use_forecasts: false),
        plugins: (rescan_ms: 100),
        platforms: [(name: "voice", host: Process(1), command: [{:?}], hot_reload: true)],"#,
        path.display().to_string()
    );
    let demi = Demi::start_in(directory, "", &sections);
    until("it is ready", || (state(&demi, "voice") == "ready").then_some(()));
    assert_eq!(ask(&demi, "voice").status, 200);
    until("it was weighed as it is", || {
        (demi.json("/v1/platforms/voice")["memory_peak_mb"].as_f64() >= Some(240.0)).then_some(())
    });
    install(&path, &script("the second"));
    assert!(has_decided(&demi, "postpone", "voice")["missing_mb"].as_u64() > Some(50));
    let why = demi.json("/v1/platforms/voice/why");
    let next = why["next"].as_array().expect("it is a list");
    let of_it = next.iter().filter_map(Value::as_str).filter(|text| text.contains("demi reload")).collect::<Vec<_>>();
    assert!(matches!(of_it[..], [one] if one.contains("it starts beside the old one when")), "{next:?}");
    assert_eq!(demi.post("/v1/platforms/voice/stop", "").status, 202);
    until("it is stopped", || (state(&demi, "voice") == "stopped").then_some(()));
    assert_eq!(demi.post("/v1/platforms/voice/start", "").status, 202);
    until("it is ready", || (state(&demi, "voice") == "ready").then_some(()));
    let page = demi.json("/v1/platforms/voice");
    assert_eq!((&page["edition"], &page["update_waiting"]), (&1.into(), &false.into()), "{page}");
}

#[test]
fn with_forecast_only_the_child_that_takes_the_ram_stays() {
    let demi = with_little_ram("forecast_only: true");
    use_up_ram(&demi);
    let shed = has_decided(&demi, "shed", "voice");
    assert_eq!(shed["done"], false);
    assert!(shed["text"].as_str().unwrap_or_default().contains("would have been shed"), "{shed}");
    has_decided(&demi, "wait", "voice");
    assert_eq!(state(&demi, "voice"), "ready");
}

/// With 20 MB for the rest or with 65, files and one of the others are at 80 % of 800 MB, files alone is not, and all three never at
/// 100 %: both have to go, however fast that is, and nobody is killed.
#[test]
fn what_gives_way_to_one_that_grows_is_shed_in_order_keeps_its_messages_and_comes_back_for_good() {
    let bad = misbehaving();
    let demi = Demi::start(&format!(
        r#"scaler: (ram_total_mb: 800, interval_ms: 200, fast_interval_ms: 200, cooldown_ms: 400, calm_ms: 1000,
            smoothing_ms: 1, spike_times: 0, emergency_percent: 100, use_forecasts: false),
        platforms: [
            (name: "files", host: Process(1), command: [{bad:?}, "swells", "560"]),
            (name: "android", host: Process(1), command: [{bad:?}, "hogs", "80"]),
            (name: "voice", host: Process(1), command: [{bad:?}, "hogs", "80"]),
        ],
        routes: [(kind: "say", to: "voice"), (to: "files")],"#
    ));
    let names = ["files", "android", "voice"];
    let are =
        |wanted: [&str; 3]| names.iter().zip(wanted).all(|(name, wanted)| state(&demi, name) == wanted).then_some(());
    until("all are ready", || are(["ready"; 3]));
    for name in names {
        assert_eq!(ask(&demi, name).status, 200, "{name}");
    }
    until("the two that go first have made room", || are(["ready", "shed", "shed"]));
    let posts = (0..5u32).map(|number| {
        let kept = demi.post("/v1/messages", &format!(r#"{{"kind":"say","content":"message {number}"}}"#));
        assert_eq!(kept.status, 202, "{kept:?}");
        kept.json()["id"].as_str().expect("a message has a number").to_owned()
    });
    let posts: Vec<String> = posts.collect();
    let outcome = |post: &String| demi.get(&format!("/v1/messages/{post}")).json()["status"].clone();
    assert!(posts.iter().all(|post| outcome(post) == "queued"), "{:?}", outcome(&posts[0]));
    ask(&demi, "files");
    let uptime = || demi.json("/v1/status")["uptime_s"].as_f64().expect("there is an uptime");
    for seconds in [16.0, 31.0] {
        until("files no longer counts for what one that was just started may take", || {
            (uptime() > seconds).then_some(())
        });
    }
    until("they are back", || are(["ready"; 3]));
    until("what waited was delivered", || posts.iter().all(|post| outcome(post) == "delivered").then_some(()));
    assert_eq!(ask(&demi, "android").status, 200, "it takes its memory again, as voice has for its messages");
    let restored_at = uptime();
    until("it has been looked at for four times calm_ms", || (uptime() > restored_at + 4.0).then_some(()));
    let page = scaling(&demi);
    let acts = page["decisions"].as_array().expect("there are decisions").iter().rev();
    let acts: Vec<(&str, &str)> = acts
        .filter(|decision| ["shed", "kill", "restore"].iter().any(|act| decision["act"] == *act))
        .map(|decision| {
            (decision["act"].as_str().unwrap_or_default(), decision["platform"].as_str().unwrap_or_default())
        })
        .collect();
    let expected = [("shed", "voice"), ("shed", "android"), ("restore", "android"), ("restore", "voice")];
    assert_eq!(acts, expected, "in order, and once each");
}

#[test]
fn one_that_would_use_up_what_is_left_goes_out_of_turn_keeps_its_messages_and_comes_back_for_good() {
    let bad = misbehaving();
    let demi = Demi::start(&format!(
        r#"scaler: (ram_total_mb: 390, interval_ms: 200, fast_interval_ms: 200, cooldown_ms: 400, calm_ms: 1000,
            smoothing_ms: 1, emergency_percent: 100),
        platforms: [
            (name: "files", host: Process(1), command: [{bad:?}, "grows", "2000"], priority: 900),
            (name: "voice", host: Process(1), command: [{bad:?}, "hogs", "100"]),
        ],
        routes: [(to: "files")],"#
    ));
    let are =
        |wanted: [&str; 2]| ["files", "voice"].iter().zip(wanted).all(|(name, wanted)| state(&demi, name) == wanted);
    until("both are ready", || are(["ready"; 2]).then_some(()));
    assert_eq!(ask(&demi, "voice").status, 200);
    // Nobody can tell what is unusual before it has been weighed for half a minute.
    let uptime = || demi.get("/v1/status").json()["uptime_s"].as_f64().expect("there is an uptime");
    for seconds in [12.0, 24.0, 34.0] {
        until("they have run for a while", || (uptime() > seconds).then_some(()));
    }
    assert_eq!(ask(&demi, "files").status, 200);
    until("it is shed", || (state(&demi, "files") == "shed").then_some(()));
    assert_eq!(state(&demi, "voice"), "ready", "whose priority is lower, and which has not grown");
    let kept = demi.post("/v1/messages", r#"{"content":"a message"}"#);
    let post = kept.json()["id"].as_str().expect("a message has a number").to_owned();
    until("its message is delivered", || {
        let status = demi.get(&format!("/v1/messages/{post}")).json()["status"].clone();
        (status == "delivered").then_some(())
    });
    assert!(are(["ready"; 2]), "it has come back");
    let page = scaling(&demi);
    let acts = page["decisions"].as_array().expect("there are decisions").iter().rev();
    let acts = acts.filter(|decision| ["shed", "kill", "restore"].iter().any(|act| decision["act"] == *act));
    let acts: Vec<&Value> = acts.flat_map(|decision| [&decision["act"], &decision["platform"]]).collect();
    assert_eq!(acts, ["shed", "files", "restore", "files"]);
}
