//! The plugin protocol between real processes: what plugins ask of Demi, and pipes that are closed at one end.

use std::sync::Arc;

use rustix::process::Signal;

use crate::support::{kill, misbehaving, until, Demi, Directory};

/// Health checks so often that three of them are soon over.
const SOON: &str = "health: (interval_ms: 100, timeout_ms: 100, doubt_interval_ms: 100, down_interval_ms: 100)";

/// A platform of one child that does what `mode` says; `more` are further fields.
fn plugin(name: &str, mode: &str, more: &str) -> String {
    let words: String = mode.split(' ').map(|word| format!(", {word:?}")).collect();
    format!("(name: {name:?}, host: Process(1), command: [{:?}{words}], {more}),", misbehaving())
}

/// A plugin that asks what it is told to ask, an echo that answers what comes from it, and a plugin that never answers.
fn sections(more: &str) -> String {
    format!(
        r#"platforms: [{} {} (name: "echo", host: Inline, adapter: "echo")], routes: [
            (path: "/asks", to: "asks"), (from: "asks", content: Prefix("never"), to: "never", timeout_ms: 60000),
            (from: "asks", to: "echo")]"#,
        plugin("asks", "asks", more),
        plugin("never", "never-answers", "")
    )
}

const MAY: &str = "permissions: (route: true, store: true)";

fn run(demi: &Demi, platform: &str) -> u64 {
    demi.instance(platform, 0)["run"].as_u64().expect("an instance has a run")
}

/// Processor time that Demi has used, in ticks of a hundredth of a second.
fn ticks(demi: &Demi) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", demi.pid())).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("it has a name").split(' ').collect();
    [11, 12].iter().map(|field| fields[*field].parse::<u64>().expect("it is a number")).sum()
}

#[test]
fn what_a_plugin_routes_reaches_another_platform_and_the_answer_comes_back() {
    let demi = Demi::start(&sections(MAY));
    demi.wait_ready();
    let answer = demi.post("/asks", "route hello there");
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello there"), "{answer:?}");
    assert_eq!(demi.post("/asks", "to echo directly").body, "directly");
    let unknown = demi.post("/asks", "to ecko hello");
    assert_eq!(unknown.status, 400, "{unknown:?}");
    assert!(unknown.body.contains("did you mean"), "{unknown:?}");
    assert_eq!(demi.instance("asks", 0)["in_flight"], 0);
}

#[test]
fn what_a_plugin_keeps_survives_a_restart_of_demi() {
    let directory = Arc::new(Directory::new());
    let mut demi = Demi::start_in(Arc::clone(&directory), "", &sections(MAY));
    demi.wait_ready();
    assert_eq!(demi.post("/asks", "get word").body, "None");
    let long = "x".repeat(60_000);
    assert_eq!(demi.post("/asks", &format!("put word {long:?}")).status, 200);
    assert_eq!(demi.post("/asks", "put other \"short\"").status, 200);
    let too_long = demi.post("/asks", &format!("put more \"{}\"", "x".repeat(70_000)));
    assert!(too_long.status == 400 && too_long.body.contains("65536"), "{too_long:?}");
    // What was answered is on the disk already.
    demi.signal(Signal::KILL);
    demi.wait();
    let demi = Demi::start_in(directory, "", &sections(MAY));
    demi.wait_ready();
    assert_eq!(demi.post("/asks", "get word").body, format!("Some({long:?})"));
    assert_eq!(demi.post("/asks", "get other").body, "Some(\"short\")");
    assert_eq!(demi.post("/asks", "put other null").status, 200);
    assert_eq!(demi.post("/asks", "get other").body, "None");
}

#[test]
fn a_plugin_without_the_permission_is_told_which_field_gives_it() {
    let demi = Demi::start(&sections(""));
    demi.wait_ready();
    for (what, field) in [("route hello", "route: true"), ("get word", "store: true"), ("put word 1", "store: true")] {
        let refused = demi.post("/asks", what);
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(refused.body.contains(field), "{refused:?}");
    }
}

#[test]
fn a_plugin_logs_under_its_name_and_at_its_level() {
    let demi = Demi::start(&sections(MAY));
    demi.wait_ready();
    demi.post("/asks", "log error this is bad");
    demi.post("/asks", "log debug this is not");
    let line = |text: &str| {
        until(&format!("{text:?} is logged"), || demi.log().lines().find(|line| line.contains(text)).map(str::to_owned))
    };
    assert!(line("asks/0: this is bad").contains("ERROR"));
    assert!(line("asks/0: this is not").contains("DEBUG"));
}

#[test]
fn what_a_plugin_asked_for_is_cancelled_when_it_dies() {
    let demi = Demi::start(&sections(MAY));
    demi.wait_ready();
    let first = demi.pids("asks")[0];
    let address = demi.address;
    let asking = std::thread::spawn(move || crate::support::ask(address, "POST", "/asks", "die never"));
    until("its request is with the other plugin", || (demi.instance("never", 0)["in_flight"] == 1).then_some(()));
    kill(first, Signal::KILL);
    assert_eq!(asking.join().expect("it does not panic").status, 502);
    until("nobody works for it any more", || (demi.instance("never", 0)["in_flight"] == 0).then_some(()));
    until("it runs again", || (demi.instance("asks", 0)["state"] == "ready").then_some(()));
    assert_eq!(demi.post("/asks", "route again").body, "again");
}

#[test]
fn a_slow_starter_that_says_so_is_waited_for() {
    let slow = plugin("slow", "extends 2500", "start_timeout_ms: 1000");
    let demi = Demi::start(&format!("platforms: [{slow}], routes: [(path: \"/slow\", to: \"slow\")]"));
    demi.wait_ready();
    assert_eq!(run(&demi, "slow"), 1);
    assert_eq!(demi.post("/slow", "hello").body, "hello");
}

#[test]
fn a_plugin_says_how_often_it_is_to_be_asked_and_that_it_wants_no_requests_for_now() {
    let directory = Arc::new(Directory::new());
    let file = directory.path().join("enough");
    let demi = Demi::start_in(directory.clone(), "", &sections("balance: Weighted"));
    demi.wait_ready();
    assert_eq!(demi.instance("asks", 0)["weight"], 1, "as it is configured");
    assert_eq!(demi.post("/asks", "weigh 5").status, 200);
    until("its weight is shown", || (demi.instance("asks", 0)["weight"] == 5).then_some(()));
    demi.post("/asks", "weigh 0");
    demi.wait_for_log("asks/0: passed over its report: weight 0 is outside 1 to 1000");
    assert_eq!(demi.instance("asks", 0)["weight"], 5, "what makes no sense changes nothing");
    assert_eq!(demi.post("/asks", &format!("drain {}", file.display())).status, 200);
    until("it drains", || (demi.instance("asks", 0)["drain"] == true).then_some(()));
    let refused = demi.post("/asks", "weigh 5");
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("not_ready")), "{refused:?}");
    assert!(refused.header("Retry-After").is_some(), "{refused:?}");
    let shown = demi.instance("asks", 0);
    assert!(shown["state"] == "ready" && shown["serving"] == false && shown["health"] == "up", "{shown}");
    assert!(demi.get("/metrics").body.contains("\ndemi_instances_draining_by_wish{platform=\"asks\"} 1\n"));
    std::fs::write(&file, "").expect("it can be written");
    until("it wants requests again", || (demi.post("/asks", "weigh 9").status == 200).then_some(()));
    until("its weight is shown", || (demi.instance("asks", 0)["weight"] == 9).then_some(()));
    assert!(demi.instance("asks", 0)["drain"].is_null());
    let events = demi.get("/v1/platforms/asks/events").body;
    assert!(events.contains("it wants no new requests") && events.contains("it wants requests again"), "{events}");
    kill(demi.pids("asks")[0], Signal::KILL);
    until("it runs again", || (run(&demi, "asks") == 2 && demi.instance("asks", 0)["state"] == "ready").then_some(()));
    assert_eq!(demi.instance("asks", 0)["weight"], 1, "what it said has ended with its run");
}

#[test]
fn what_a_plugin_babbles_is_logged_and_costs_nothing() {
    let bad = plugin("bad", "babbles", "");
    let demi = Demi::start(&format!("platforms: [{bad}], routes: [(path: \"/bad\", to: \"bad\")]"));
    demi.wait_ready();
    for count in 0..3 {
        assert_eq!(demi.post("/bad", &format!("{count}")).body, format!("{count}"));
    }
    demi.wait_for_log("bad/0: gr\u{fffd}\u{fffd}e");
    demi.wait_for_log("bad/0: [{\"jsonrpc\"");
    demi.wait_for_log("bad/0: passed over its answer to 1:");
    demi.wait_for_log("bad/0: passed over its answer to \"what\":");
    assert_eq!(run(&demi, "bad"), 1);
}

#[test]
fn half_an_answer_times_out_like_none() {
    let bad = plugin("bad", "half-a-line", "");
    let demi = Demi::start(&format!("platforms: [{bad}], routes: [(path: \"/bad\", to: \"bad\", timeout_ms: 100)]"));
    demi.wait_ready();
    assert_eq!(demi.post("/bad", "hello").status, 504);
}

#[test]
fn a_plugin_that_closes_its_stdin_gets_no_request_and_is_replaced() {
    let bad = plugin("bad", "closes-stdin", "stop_grace_ms: 200");
    let demi = Demi::start(&format!("platforms: [{bad}], routes: [(path: \"/bad\", to: \"bad\")], {SOON}"));
    until("it is replaced", || {
        let answer = demi.post("/bad", "hello");
        assert!(answer.status == 503, "it was never sent: {answer:?}");
        (run(&demi, "bad") >= 2).then_some(())
    });
}

#[test]
fn a_plugin_that_closes_its_stdout_is_replaced_and_keeps_nobody_busy() {
    let bad = plugin("bad", "closes-stdout", "stop_grace_ms: 200");
    let demi = Demi::start(&format!("platforms: [{bad}], {SOON}"));
    let (began, before) = (std::time::Instant::now(), ticks(&demi));
    // Its log is watched, because Demi has nothing to do for that.
    demi.wait_for_log("bad/0 ended: ");
    let used = ticks(&demi) - before;
    assert!(u128::from(used) * 10 * 2 < began.elapsed().as_millis() + 100, "{used} ticks in {:?}", began.elapsed());
    until("it is replaced", || (run(&demi, "bad") >= 2).then_some(()));
}

#[test]
fn a_plugin_that_asks_and_reads_no_answer_is_put_down() {
    let bad = plugin("bad", "never-reads", "");
    let demi = Demi::start(&format!("platforms: [{bad}], restart: (base_ms: 3600000, max_ms: 3600000)"));
    // The first restart is at once, the second in an hour.
    until("it was put down twice", || {
        let instance = demi.instance("bad", 0);
        (instance["run"] == 2 && instance["state"] == "backoff").then_some(())
    });
    assert_eq!(demi.instance("bad", 0)["why"], "it broke the protocol");
    demi.wait_for_log("bad/0: asks again and again and reads no answer");
    assert!(demi.peak_bytes() < 100_000_000, "{} bytes", demi.peak_bytes());
}

#[test]
fn a_plugin_that_says_when_to_ask_again_is_asked_again_then_and_its_caller_told_so() {
    let demi = Demi::start(&format!(
        r#"platforms: [{} {}], routes: [(path: "/once", to: "once"), (path: "/again", to: "again", retries: 1)]"#,
        plugin("once", "defers 4001", ""),
        plugin("again", "defers 300", "")
    ));
    demi.wait_ready();
    assert_eq!(demi.post("/once", "one").body, "one");
    let refused = demi.post("/once", "two");
    assert_eq!((refused.status, refused.header("Retry-After")), (503, Some("5")), "{refused:?}");
    assert_eq!((&refused.json()["retry_after_ms"], &refused.json()["detail"]), (&4001.into(), &"not now".into()));
    assert_eq!(demi.post("/again", "one").body, "one");
    let began = std::time::Instant::now();
    let answer = demi.post("/again", "two");
    assert_eq!((answer.status, answer.body.as_str()), (200, "two"), "{answer:?}");
    assert!(began.elapsed() >= std::time::Duration::from_millis(300));
}
