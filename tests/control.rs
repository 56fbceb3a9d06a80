//! Orders for platforms, what is told of them, and plugin folders that come, change and go.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::Value;

use crate::client::Client;
use crate::support::{install, is_alive, misbehaving, until, Demi, Directory, Response};

/// A plugin in shell that answers each request with `version`, after it has run `first`.
fn script(version: &str, first: &str) -> String {
    format!(
        r#"#!/bin/sh
{first}
echo "this is {version}" >&2
while read -r line; do
    id=${{line#*\"id\":}}; id=${{id%%[,\}}]*}}
    case $line in
    *'"method":"initialize"'*) echo '{{"jsonrpc":"2.0","id":'$id',"result":{{"protocol":1}}}}' ;;
    *'"method":"health"'*) echo '{{"jsonrpc":"2.0","id":'$id',"result":{{"status":"up"}}}}' ;;
    *'"method":"handle"'*) echo '{{"jsonrpc":"2.0","id":'$id',"result":{{"body":"{version}"}}}}' ;;
    *'"method":"shutdown"'*) exit 0 ;;
    esac
done
"#
    )
}

/// A Demi with a platform of a script, which stands in its directory.
fn with_script(version: &str, first: &str, more: &str, sections: &str) -> (Demi, PathBuf) {
    let directory = Arc::new(Directory::new());
    let path = directory.path().join("plugin.sh");
    install(&path, &script(version, first));
    let sections = format!(
        "platforms: [(name: \"sh\", host: Process(1), command: [{:?}], {more})], {sections}",
        path.display().to_string()
    );
    (Demi::start_in(directory, "", &sections), path)
}

fn order(demi: &Demi, platform: &str, order: &str) {
    let answer = demi.post(&format!("/v1/platforms/{platform}/{order}"), "");
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!((&answer.json()["platform"], &answer.json()["order"]), (&platform.into(), &order.into()));
}

fn ask_sh(demi: &Demi) -> String {
    let answer = demi.post("/v1/requests", r#"{"to":"sh","content":"hello"}"#);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

fn page(demi: &Demi, platform: &str) -> Value {
    demi.json(&format!("/v1/platforms/{platform}"))
}

fn state(demi: &Demi, platform: &str) -> String {
    demi.instance(platform, 0)["state"].as_str().expect("an instance has a state").to_owned()
}

fn wait_for(demi: &Demi, platform: &str, expected: &str) {
    until(&format!("{platform} is {expected}"), || (state(demi, platform) == expected).then_some(()));
}

/// The texts of a list on the page that says why.
fn why(demi: &Demi, platform: &str, list: &str) -> Vec<String> {
    let page = demi.json(&format!("/v1/platforms/{platform}/why"));
    let entries = page[list].as_array().unwrap_or_else(|| panic!("{list} is a list: {page}"));
    let text = |entry: &Value| entry.as_str().or(entry["text"].as_str()).expect("it has a text").to_owned();
    entries.iter().map(text).collect()
}

fn says(demi: &Demi, platform: &str, list: &str, part: &str) {
    until(&format!("{platform} says {part:?} in {list}"), || {
        why(demi, platform, list).iter().any(|text| text.contains(part)).then_some(())
    });
}

// ---- orders ----------------------------------------------------------------------------------------------------

#[test]
fn a_platform_is_stopped_started_restarted_and_isolated_by_order() {
    let (demi, _) = with_script("one", "", "", "");
    demi.wait_ready();
    let first = demi.pids("sh")[0];
    order(&demi, "sh", "stop");
    wait_for(&demi, "sh", "stopped");
    until("its process is gone", || (!is_alive(first)).then_some(()));
    says(&demi, "sh", "history", "it is stopped: it was ordered by hand");
    says(&demi, "sh", "next", "`demi start sh` starts it");
    assert_eq!(demi.post("/v1/requests", r#"{"to":"sh"}"#).status, 503);

    order(&demi, "sh", "start");
    wait_for(&demi, "sh", "ready");
    let second = demi.pids("sh")[0];
    order(&demi, "sh", "restart");
    until("another process is ready", || {
        (demi.pids("sh").first().is_some_and(|pid| *pid != second) && state(&demi, "sh") == "ready").then_some(())
    });

    order(&demi, "sh", "isolate");
    until("it is isolated", || page(&demi, "sh")["isolated"].as_bool().filter(|is| *is).map(|_| ()));
    let refused = demi.post("/v1/requests", r#"{"to":"sh"}"#);
    assert_eq!((refused.status, &refused.json()["code"]), (503, &"isolated".into()), "{refused:?}");
    assert_eq!(state(&demi, "sh"), "ready", "it runs on");
    says(&demi, "sh", "now", "sh is isolated by hand");
    order(&demi, "sh", "start");
    assert_eq!(ask_sh(&demi), "one");
}

#[test]
fn an_order_that_cannot_be_carried_out_says_why() {
    let demi = Demi::start(r#"platforms: [(name: "echo", host: Inline)]"#);
    demi.wait_ready();
    let missing = demi.post("/v1/platforms/ehco/start", "");
    assert_eq!(missing.status, 404);
    assert!(missing.body.contains("did you mean \\\"echo\\\"?"), "{missing:?}");
    let missing = demi.post("/v1/requests", r#"{"to":"ehco"}"#);
    assert_eq!(missing.status, 404);
    assert!(missing.body.contains("did you mean \\\"echo\\\"?"), "{missing:?}");
    let reload = demi.post("/v1/platforms/echo/reload", "");
    assert_eq!(reload.status, 409);
    assert!(reload.body.contains("only child processes are reloaded"), "{reload:?}");
    let get = demi.get("/v1/platforms/echo/start");
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
    assert_eq!(demi.get("/v1/platforms/echo/logs?limit=1001").status, 400);
    assert_eq!(demi.get("/v1/platforms/echo/events?after=1").status, 400);
}

#[test]
fn what_others_need_stops_after_them_and_restarts_them_with_it() {
    let plugin = misbehaving();
    let demi = Demi::start(&format!(
        "platforms: [
            (name: \"base\", host: Process(1), command: [{plugin:?}, \"none\"], restart_dependents: true),
            (name: \"top\", host: Process(1), command: [{plugin:?}, \"none\"], needs: [\"base\"]),
        ]"
    ));
    demi.wait_ready();
    let before = ["base", "top"].map(|platform| demi.pids(platform)[0]);
    order(&demi, "base", "restart");
    until("both run again", || {
        let after = ["base", "top"].map(|platform| demi.pids(platform).first().copied().unwrap_or(0));
        let is_new = after[0] != before[0] && after[1] != before[1];
        (is_new && state(&demi, "top") == "ready" && state(&demi, "base") == "ready").then_some(())
    });
    says(&demi, "top", "history", "a platform that it needs was restarted");

    order(&demi, "base", "stop");
    wait_for(&demi, "base", "stopped");
    wait_for(&demi, "top", "waiting");
    says(&demi, "top", "next", "base is not ready (base/0 is stopped: it was ordered by hand)");
    let last = |platform: &str, part: &str| -> u64 {
        let events = demi.json(&format!("/v1/platforms/{platform}/events"));
        let events = events["events"].as_array().expect("it is a list").clone();
        let found = events.iter().find(|event| event["text"].as_str().is_some_and(|text| text.contains(part)));
        found.unwrap_or_else(|| panic!("{platform} tells {part:?}: {events:?}"))["unix_ms"].as_u64().expect("a time")
    };
    assert!(last("top", "it ended") <= last("base", "it is stopped"), "the one that needs the other ends first");
    order(&demi, "base", "start");
    wait_for(&demi, "top", "ready");
}

#[test]
fn a_lazy_platform_starts_at_its_first_request_and_sleeps_and_wakes() {
    let (demi, _) = with_script("one", "", "start: Lazy, sleep_after_ms: 200", "");
    demi.wait_ready();
    assert_eq!(state(&demi, "sh"), "asleep");
    says(&demi, "sh", "next", "its next request wakes it");
    assert_eq!(page(&demi, "sh")["start"], "lazy");
    for run in 1..=2 {
        assert_eq!(ask_sh(&demi), "one");
        assert_eq!(demi.instance("sh", 0)["run"], run);
        wait_for(&demi, "sh", "asleep");
    }
    says(&demi, "sh", "history", "it sleeps: nobody asked for it for sleep_after_ms; its next request wakes it");
    assert!(demi.get("/metrics").body.contains("\ndemi_starts_today{platform=\"sh\"} 2\n"));
}

// ---- reloads ---------------------------------------------------------------------------------------------------

/// Reloads in a row, and requests a second over as many connections as it takes hands to ask them.
const RELOADS: u64 = 100;
const REQUESTS_PER_SECOND: u32 = 500;
const CLIENTS: u32 = 5;

#[test]
fn a_hundred_reloads_in_a_row_under_five_hundred_requests_a_second_lose_none_of_them() {
    let (demi, path) = with_script("one", "", "", "");
    demi.wait_ready();
    assert_eq!(ask_sh(&demi), "one");
    let is_over = Arc::new(AtomicBool::new(false));
    let began = std::time::Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (mut client, is_over) = (Client::of(&demi), Arc::clone(&is_over));
            std::thread::spawn(move || {
                let (mut asked, mut wrong) = (0_u64, Vec::new());
                let body = r#"{"to":"sh"}"#;
                let length = body.len();
                let request =
                    format!("POST /v1/requests HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}");
                // Each asks at times of its own, whether or not it was answered late before.
                let pace = std::time::Duration::from_secs(1) * CLIENTS / REQUESTS_PER_SECOND;
                let mut next = began + pace * number / CLIENTS;
                while !is_over.load(Ordering::Relaxed) {
                    std::thread::sleep(next.saturating_duration_since(std::time::Instant::now()));
                    next += pace;
                    client.send(&request);
                    let answer = client.answer();
                    asked += 1;
                    if answer.status != 200 {
                        wrong.push(answer);
                    }
                }
                (asked, wrong)
            })
        })
        .collect();
    for edition in 1..=RELOADS {
        let version = format!("version {edition}");
        install(&path, &script(&version, ""));
        order(&demi, "sh", "reload");
        until("the new edition answers alone", || {
            let page = page(&demi, "sh");
            (page["edition"] == edition && page["reloading"] == false && page["update_waiting"] == false).then_some(())
        });
        assert_eq!(ask_sh(&demi), version);
    }
    is_over.store(true, Ordering::Relaxed);
    let answers: Vec<_> = clients.into_iter().map(|client| client.join().expect("it does not panic")).collect();
    let asked: u64 = answers.iter().map(|(asked, _)| asked).sum();
    let wrong: Vec<_> = answers.into_iter().flat_map(|(_, wrong)| wrong).collect();
    println!("{RELOADS} reloads, {asked} requests in {:.1} s", began.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "{} of {asked}: {:?}", wrong.len(), wrong.first());
    assert!(asked > 10 * RELOADS, "{asked} requests prove nothing");
    says(&demi, "sh", "history", "the new edition has taken over");
    let done = format!("\ndemi_reloads_total{{platform=\"sh\",result=\"done\"}} {RELOADS}\n");
    assert!(demi.get("/metrics").body.contains(&done));
}

#[test]
fn a_broken_edition_does_not_replace_the_old_one_and_the_reason_is_told() {
    let (demi, path) = with_script("one", "", "", "plugins: (rescan_ms: 100)");
    demi.wait_ready();
    let pid = demi.pids("sh")[0];
    install(&path, &script("broken", "exit 3"));
    until("the change is seen", || page(&demi, "sh")["update_waiting"].as_bool().filter(|is| *is).map(|_| ()));
    says(&demi, "sh", "next", "`demi reload sh` takes it up");
    order(&demi, "sh", "reload");
    says(&demi, "sh", "history", "a new edition did not take over: it exited with code 3; the old one stays");
    let page = page(&demi, "sh");
    assert_eq!((&page["reloading"], &page["update_waiting"]), (&false.into(), &true.into()), "{page}");
    assert_eq!((demi.pids("sh")[0], ask_sh(&demi).as_str()), (pid, "one"));
    assert!(demi.get("/metrics").body.contains("\ndemi_reloads_total{platform=\"sh\",result=\"failed\"} 1\n"));
}

#[test]
fn a_reload_that_gives_way_to_a_later_one_is_counted_once_and_not_told_as_refused() {
    let (demi, path) = with_script("one", "", "", "");
    demi.wait_ready();
    // It never says that it is ready.
    install(&path, &script("silent", "while read -r line; do :; done"));
    order(&demi, "sh", "reload");
    until("it is tried", || page(&demi, "sh")["reloading"].as_bool().filter(|is| *is).map(|_| ()));
    install(&path, &script("two", ""));
    order(&demi, "sh", "reload");
    until("the later one answers", || (ask_sh(&demi) == "two").then_some(()));
    until("the first is given up", || (page(&demi, "sh")["reloading"] == false).then_some(()));
    let metrics = demi.get("/metrics").body;
    for (result, count) in [("done", 1), ("failed", 1)] {
        let line = format!("\ndemi_reloads_total{{platform=\"sh\",result=\"{result}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
    let history = why(&demi, "sh", "history");
    assert!(!history.iter().any(|text| text.contains("it was not reloaded")), "{history:#?}");
}

#[test]
fn a_changed_executable_is_taken_up_by_itself_if_that_is_wanted() {
    let (demi, path) = with_script("one", "", "hot_reload: true", "plugins: (rescan_ms: 100)");
    demi.wait_ready();
    assert_eq!(ask_sh(&demi), "one");
    install(&path, &script("another", ""));
    until("the new one answers", || (ask_sh(&demi) == "another").then_some(()));
    until("no update waits", || (page(&demi, "sh")["update_waiting"] == false).then_some(()));
    assert_eq!(page(&demi, "sh")["edition"], 1);
}

#[test]
fn a_plugin_that_says_that_its_configuration_is_bad_is_left_alone_until_it_is_mended() {
    let (demi, path) = with_script("bad", "echo 'no token' >&2; exit 78", "", "");
    wait_for(&demi, "sh", "failed");
    assert_eq!(demi.instance("sh", 0)["run"], 1, "it was not tried again");
    says(&demi, "sh", "now", "it exited with code 78, which says that its configuration is bad");
    says(&demi, "sh", "next", "`demi reload` tries it");
    says(&demi, "sh", "log", "no token");
    install(&path, &script("mended", ""));
    order(&demi, "sh", "reload");
    wait_for(&demi, "sh", "ready");
    assert_eq!(ask_sh(&demi), "mended");
}

// ---- what outlives Demi ----------------------------------------------------------------------------------------

#[test]
fn history_and_todays_starts_survive_a_kill_of_demi() {
    let sections = |path: &Path| {
        format!(
            "restart: (base_ms: 1, max_ms: 1),
             platforms: [(name: \"sh\", host: Process(1), command: [{:?}], start_budget_per_day: 5)]",
            path.display().to_string()
        )
    };
    let directory = Arc::new(Directory::new());
    let path = directory.path().join("plugin.sh");
    install(&path, &script("one", "exit 3"));
    let mut demi = Demi::start_in(Arc::clone(&directory), "", &sections(&path));
    wait_for(&demi, "sh", "failed");
    says(&demi, "sh", "now", "it has been started too often today: start_budget_per_day is 5");
    says(&demi, "sh", "next", "it is started when the next day begins (UTC)");
    says(&demi, "sh", "history", "it has been started 4 times today, and start_budget_per_day is 5");
    let told = why(&demi, "sh", "history");
    assert_eq!(page(&demi, "sh")["starts_today"], 4, "the last one is for people");
    // A page that the clerk answers: what it was given to keep before is kept.
    demi.get("/v1/dead-letters");
    demi.signal(Signal::KILL);
    demi.wait();

    install(&path, &script("one", ""));
    let demi = Demi::start_in(directory, "", &sections(&path));
    wait_for(&demi, "sh", "failed");
    assert_eq!(page(&demi, "sh")["starts_today"], 4, "the last one is for people");
    let history = why(&demi, "sh", "history");
    assert!(history.len() > told.len() && history.ends_with(&told), "{history:#?}\nafter\n{told:#?}");
}

// ---- logs ------------------------------------------------------------------------------------------------------

#[test]
fn what_a_plugin_logs_can_be_followed() {
    let (demi, _) = with_script("one", "for i in 1 2 3 4 5; do echo \"line $i\" >&2; done", "", "");
    demi.wait_ready();
    let logs = |query: &str| demi.json(&format!("/v1/platforms/sh/logs{query}"));
    let texts = |page: &Value| -> Vec<String> {
        let lines = page["lines"].as_array().expect("it is a list");
        lines.iter().map(|line| line["text"].as_str().expect("it is a text").to_owned()).collect()
    };
    until("all six lines are there", || (logs("")["next"] == 6).then_some(()));
    let first = logs("?after=0&limit=2");
    assert_eq!((texts(&first), &first["next"]), (vec!["line 1".to_owned(), "line 2".to_owned()], &2.into()));
    let rest = logs("?after=2");
    assert_eq!((texts(&rest).len(), &rest["next"], &rest["dropped"]), (4, &6.into(), &0.into()));
    assert_eq!(texts(&logs("?limit=1")), ["this is one"]);
    let nothing = logs("?after=6");
    assert_eq!((texts(&nothing).len(), &nothing["next"]), (0, &6.into()));
    let line = &first["lines"][0];
    assert_eq!((&line["seq"], &line["level"], &line["instance"]), (&1.into(), &"info".into(), &0.into()));
    until("the log has them too", || demi.log().contains("sh/0: line 5").then_some(()));
}

// ---- plugin folders --------------------------------------------------------------------------------------------

const MANIFEST: &str = r#"{"name": "sh", "version": "1.2.3", "command": ["./plugin.sh"], "env": {}}"#;

#[test]
fn a_folder_that_comes_is_taken_in_and_one_that_goes_is_stopped() {
    let demi = Demi::start(r#"plugins: (paths: ["plugins"], rescan_ms: 100)"#);
    let folder = demi.directory.path().join("plugins/sh");
    std::fs::create_dir_all(&folder).expect("the directory can be written");
    install(&folder.join("plugin.sh"), &script("one", ""));
    let manifest = folder.join("plugin.json");
    std::fs::write(&manifest, MANIFEST).expect("the directory can be written");
    until("it is found", || (demi.get("/v1/platforms/sh").status == 200).then_some(()));
    let found = page(&demi, "sh");
    assert_eq!((&found["version"], &found["start"]), (&"1.2.3".into(), &"lazy".into()), "{found}");
    assert_eq!(ask_sh(&demi), "one");
    assert!(demi.json("/v1/plugins")["refused"].as_array().is_some_and(Vec::is_empty));

    // What a reload cannot change is refused, and so is what is no manifest.
    std::fs::write(&manifest, MANIFEST.replace("\"env\": {}", "\"instances\": 2")).expect("it is there");
    let refused = demi.post("/v1/platforms/sh/reload", "");
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.body.contains("instances was 1 and is 2") && refused.body.contains("restart Demi"), "{refused:?}");
    std::fs::write(&manifest, "{").expect("it is there");
    let refused = demi.post("/v1/platforms/sh/reload", "");
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.body.contains("plugin.json"), "{refused:?}");
    says(&demi, "sh", "now", "sh has changed on disk and cannot be taken up");
    std::fs::write(&manifest, MANIFEST.replace("1.2.3", "1.2.4")).expect("it is there");
    order(&demi, "sh", "reload");
    until("the new version is there", || (page(&demi, "sh")["version"] == "1.2.4").then_some(()));

    let aside = demi.directory.path().join("aside");
    std::fs::rename(&folder, &aside).expect("it is the same directory");
    wait_for(&demi, "sh", "stopped");
    says(&demi, "sh", "now", "its folder is gone");
    assert_eq!(demi.post("/v1/platforms/sh/start", "").status, 409);
    std::fs::rename(&aside, &folder).expect("it is the same directory");
    wait_for(&demi, "sh", "ready");
    assert_eq!(ask_sh(&demi), "one");
}

#[test]
fn a_folder_that_is_no_plugin_is_told_until_it_is_gone() {
    let demi =
        Demi::start(r#"plugins: (paths: ["plugins"], rescan_ms: 100), platforms: [(name: "echo", host: Inline)]"#);
    let clash = demi.directory.path().join("plugins/clash");
    std::fs::create_dir_all(&clash).expect("the directory can be written");
    install(&clash.join("plugin.sh"), &script("one", ""));
    std::fs::write(clash.join("plugin.json"), MANIFEST.replace("\"sh\"", "\"echo\"")).expect("it can be written");
    let refused = || demi.json("/v1/plugins")["refused"].clone();
    until("it is refused", || refused().as_array().filter(|list| list.len() == 1).map(|_| ()));
    let problem = refused()[0]["problem"].as_str().expect("it says why").to_owned();
    assert!(problem.contains("\"echo\""), "{problem}");
    std::fs::remove_dir_all(&clash).expect("it is ours");
    until("it is forgotten", || refused().as_array().filter(|list| list.is_empty()).map(|_| ()));
    assert_eq!(state(&demi, "echo"), "ready", "its namesake has nothing to do with it");
}

#[test]
fn an_eager_plugin_that_comes_is_started_and_one_whose_needs_are_not_there_is_refused() {
    let demi = Demi::start(r#"plugins: (paths: ["plugins"], rescan_ms: 100)"#);
    let add = |name: &str, more: &str| {
        let folder = demi.directory.path().join("plugins").join(name);
        std::fs::create_dir_all(&folder).expect("the directory can be written");
        install(&folder.join("plugin.sh"), &script(name, ""));
        let manifest = format!("{{\"name\": {name:?}, \"version\": \"1\", \"command\": [\"./plugin.sh\"], {more}}}");
        std::fs::write(folder.join("plugin.json"), manifest).expect("the directory can be written");
    };
    add("first", "\"start\": \"Eager\"");
    until("it runs", || {
        let is_there = demi.get("/v1/platforms/first").status == 200;
        (is_there && state(&demi, "first") == "ready").then_some(())
    });
    add("lost", "\"needs\": [\"nobody\"]");
    until("it is refused", || {
        let refused = demi.json("/v1/plugins")["refused"][0]["problem"].as_str().map(str::to_owned);
        refused.filter(|problem| problem.contains("nobody"))
    });
    // By the names of their folders, those that need something come before what they need.
    add("a-needy", "\"needs\": [\"needed\"]");
    until("it is refused", || {
        let refused = demi.json("/v1/plugins")["refused"].clone();
        refused.as_array().is_some_and(|list| list.len() == 2).then_some(())
    });
    add("needed", "\"start\": \"Lazy\"");
    until("it is taken in after what it needs", || (demi.get("/v1/platforms/a-needy").status == 200).then_some(()));
    assert_eq!(demi.post("/v1/requests", r#"{"to":"a-needy"}"#).body, "a-needy");
    let refused = demi.json("/v1/plugins")["refused"].clone();
    assert!(refused.as_array().is_some_and(|list| list.len() == 1), "{refused}");
    add("second", "\"needs\": [\"first\"], \"start\": \"Eager\"");
    until("it runs as well", || {
        let is_there = demi.get("/v1/platforms/second").status == 200;
        (is_there && state(&demi, "second") == "ready").then_some(())
    });
    assert_eq!(demi.post("/v1/requests", r#"{"to":"second"}"#).body, "second");
}

#[test]
fn a_web_page_of_another_site_gives_no_orders() {
    let demi = Demi::start(r#"platforms: [(name: "echo", host: Inline)]"#);
    demi.wait_ready();
    let order = |header: &str| {
        let text = format!(
            "POST /v1/platforms/echo/isolate HTTP/1.1\r\nHost: test\r\n{header}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        Response::parse(&demi.raw(text.as_bytes())).status
    };
    assert_eq!(order("Origin: https://example.com"), 403);
    assert_eq!(order("Sec-Fetch-Site: cross-site"), 403);
    assert_eq!(demi.post("/v1/requests", r#"{"to":"echo","content":"still there"}"#).body, "still there");
    assert_eq!(order("Origin: http://localhost:3000"), 202);
}

#[test]
fn what_comes_at_once_is_taken_in_after_what_it_needs() {
    let demi = Demi::start(r#"plugins: (paths: ["plugins"], rescan_ms: 100)"#);
    let aside = demi.directory.path().join("aside");
    for (name, more) in [("a", "\"needs\": [\"b\"]"), ("b", "\"needs\": [\"c\"]"), ("c", "\"env\": {}")] {
        let folder = aside.join(name);
        std::fs::create_dir_all(&folder).expect("the directory can be written");
        install(&folder.join("plugin.sh"), &script(name, ""));
        let manifest = format!("{{\"name\": {name:?}, \"version\": \"1\", \"command\": [\"./plugin.sh\"], {more}}}");
        std::fs::write(folder.join("plugin.json"), manifest).expect("the directory can be written");
    }
    // All in one look.
    std::fs::rename(&aside, demi.directory.path().join("plugins")).expect("nothing is there yet");
    until("all are there", || (demi.get("/v1/platforms/a").status == 200).then_some(()));
    assert_eq!(demi.post("/v1/requests", r#"{"to":"a"}"#).body, "a");
    assert_eq!(demi.json("/v1/plugins")["refused"], serde_json::json!([]));
}

#[test]
fn a_refused_plugin_that_is_mended_is_taken_up_and_what_only_a_restart_can_change_is_told() {
    let directory = Arc::new(Directory::new());
    let folder = directory.path().join("plugins/sh");
    std::fs::create_dir_all(&folder).expect("the directory can be written");
    install(&folder.join("plugin.sh"), &script("mended", ""));
    let manifest = folder.join("plugin.json");
    let shaped = MANIFEST.replace("\"env\": {}", "\"instances\": 2, \"needs\": [\"echo\"]");
    std::fs::write(&manifest, shaped.replace("\"needs\"", "\"que_max\": 1, \"needs\"")).expect("it can be written");
    let sections = r#"plugins: (rescan_ms: 100), platforms: [(name: "echo", host: Inline)], routes: [(to: "sh")]"#;
    let demi = Demi::start_in(directory, "", sections);
    assert_eq!(demi.post("/v1/requests", "{}").status, 503);
    std::fs::write(&manifest, shaped.replace("[\"echo\"]", "[]")).expect("it is there");
    says(&demi, "sh", "now", "needs was [echo] and is [], which no reload can change; restart Demi");
    assert_eq!(demi.post("/v1/requests", "{}").status, 503);
    std::fs::write(&manifest, shaped).expect("it is there");
    until("it answers", || (demi.post("/v1/requests", "{}").status == 200).then_some(()));
    says(&demi, "sh", "history", "its folder is mended");
    assert_eq!(demi.post("/v1/requests", "{}").body, "mended");
}

#[test]
fn what_others_have_come_to_be_able_to_write_is_not_started_again() {
    let directory = Arc::new(Directory::new());
    let folder = directory.path().join("plugins/sh");
    std::fs::create_dir_all(&folder).expect("the directory can be written");
    let program = folder.join("plugin.sh");
    install(&program, &script("one", ""));
    std::fs::write(folder.join("plugin.json"), MANIFEST).expect("it can be written");
    let demi = Demi::start_in(directory, "", "");
    assert_eq!(ask_sh(&demi), "one");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    crate::support::kill(demi.pids("sh")[0], Signal::KILL);
    says(&demi, "sh", "history", "may be written by everybody");
    assert!(demi.pids("sh").is_empty());
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    order(&demi, "sh", "start");
    wait_for(&demi, "sh", "ready");
    assert_eq!(ask_sh(&demi), "one");
}
