//! Requests that could not be handled are kept, survive a kill of Demi, and can be looked at.

use std::sync::Arc;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{demi_command, misbehaving, until, Demi, Directory, HOSTS};

/// A plugin that dies of every request, each of which is kept.
fn sections() -> String {
    let plugin = misbehaving();
    format!(
        "platforms: [(name: \"frail\", host: Process(1), command: [{plugin:?}, \"dies-on-request\"])],
         routes: [(path: \"/frail\", to: \"frail\", on_failure: DeadLetter)]"
    )
}

/// Has the plugin die of a request; returns the problem that its caller got.
fn lose(demi: &Demi, body: &str) -> Value {
    demi.wait_ready();
    let response = demi.post("/frail?x=1", body);
    assert_eq!(response.status, 502, "{response:?}");
    response.json()
}

fn ids(page: &Value) -> Vec<u64> {
    let letters = page["dead_letters"].as_array().expect("it is a list");
    letters.iter().filter_map(|letter| letter["id"].as_u64()).collect()
}

#[test]
fn a_dead_letter_is_listed_with_its_reason_even_after_a_kill_of_demi() {
    let mut demi = Demi::start(&sections());
    let empty = demi.json("/v1/dead-letters");
    assert_eq!((ids(&empty), &empty["next"]), (vec![], &Value::Null));
    assert_eq!(lose(&demi, "first")["dead_letter"], 1);
    assert_eq!(lose(&demi, "second")["dead_letter"], 2);
    let page = demi.get("/metrics").body;
    assert!(page.contains("\ndemi_http_body_bytes 0\n"), "what is kept is held no longer: {page}");
    demi.signal(Signal::KILL);
    demi.wait();

    let demi = Demi::start_in(Arc::clone(&demi.directory), "", &sections());
    let page = demi.json("/v1/dead-letters");
    assert_eq!((ids(&page), &page["next"]), (vec![1, 2], &Value::Null));
    let letter = &page["dead_letters"][0];
    for (field, value) in [("platform", "frail"), ("method", "POST"), ("target", "/frail?x=1"), ("body", "first")] {
        assert_eq!(letter[field], value, "{letter}");
    }
    assert_eq!(letter["attempts"], 1, "{letter}");
    assert!(letter["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{letter}");
    assert!(letter["buried_at_unix_ms"].as_u64().is_some_and(|millis| millis > 1_600_000_000_000), "{letter}");

    let first = demi.json("/v1/dead-letters?limit=1");
    assert_eq!((ids(&first), &first["next"]), (vec![1], &Value::from(1)));
    let rest = demi.json("/v1/dead-letters?limit=1&after=1");
    assert_eq!((ids(&rest), &rest["next"]), (vec![2], &Value::Null));
}

#[test]
fn a_wrong_parameter_or_method_of_the_list_is_told() {
    let demi = Demi::start("platforms: [(name: \"echo\", host: Inline)], routes: [(to: \"echo\")]");
    for (query, named) in [("limit=0", "limit"), ("after=x", "after"), ("since=1", "since")] {
        let response = demi.get(&format!("/v1/dead-letters?{query}"));
        assert_eq!(response.status, 400, "{response:?}");
        assert!(response.json()["detail"].as_str().is_some_and(|detail| detail.contains(named)), "{response:?}");
    }
    let response = demi.request("PATCH", "/v1/dead-letters", "");
    assert_eq!((response.status, response.header("Allow")), (405, Some("GET, HEAD, DELETE")));
    let response = demi.request("DELETE", "/v1/dead-letters", "");
    assert!(response.status == 400 && response.body.contains("all=true"), "{response:?}");
    for (method, path) in [("GET", "/7"), ("PUT", "/7"), ("DELETE", "/7"), ("POST", "/7/replay")] {
        let response = demi.request(method, &format!("/v1/dead-letters{path}"), "");
        assert!(response.status == 404 && response.body.contains("no dead letter 7"), "{method}: {response:?}");
    }
}

#[test]
fn at_the_maximum_the_caller_is_answered_without_a_number_and_the_log_says_why() {
    let directory = Arc::new(Directory::new());
    let (store, sections) = ("store: (path: \"data\", dead_letters_max: 1)", sections());
    let config =
        directory.write("config.ron", &format!("(http: (listen: \"127.0.0.1:0\", {HOSTS}), {store}, {sections})"));
    let demi = Demi::start_from(directory, &config);
    assert_eq!(lose(&demi, "first")["dead_letter"], 1);
    assert_eq!(lose(&demi, "second")["dead_letter"], Value::Null);
    let why = "a dead letter could not be kept: there are 1 dead letters and `store.dead_letters_max` is 1";
    until("the log says why", || demi.log().contains(why).then_some(()));
    assert_eq!(ids(&demi.json("/v1/dead-letters")), [1]);
}

/// The misbehaving plugin dies of every request; the well-behaved one answers them.
fn as_well(plugin: &str) -> String {
    let host = if plugin == "echo" {
        "host: Inline, adapter: \"echo\"".to_owned()
    } else {
        format!("host: Process(1), command: [{:?}, \"dies-on-request\"]", misbehaving())
    };
    format!(
        "platforms: [(name: \"frail\", {host})],
         routes: [(path: \"/other\", to: \"frail\"), (path: \"/frail\", to: \"frail\", on_failure: DeadLetter)]"
    )
}

fn dead(demi: &Demi, arguments: &[&str]) -> String {
    let address = demi.address.to_string();
    let output = demi_command().arg("dead").args(arguments).args(["--address", &address]).output().expect("it runs");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn what_fails_again_is_marked_and_what_is_answered_at_its_replay_goes() {
    let mut demi = Demi::start(&as_well("misbehaving"));
    assert_eq!(lose(&demi, "first")["dead_letter"], 1);
    assert_eq!(lose(&demi, "second")["dead_letter"], 2);
    demi.wait_ready();
    assert_eq!(demi.post("/v1/dead-letters/1/replay", "").json()["replaying"], Value::from(vec![1]));
    let marked = until("it is marked", || {
        let letter = demi.json("/v1/dead-letters/1");
        (letter["replays"] == 1).then_some(letter)
    });
    assert!(marked["last_error"].as_str().is_some_and(|error| error.contains("broke")), "{marked}");
    assert_eq!((&marked["route"], &marked["body"]), (&"routes[1]".into(), &"first".into()));
    let page = demi.get("/metrics").body;
    assert!(page.contains("\ndemi_dead_letters{platform=\"frail\"} 2\n"), "a replay makes no new letter: {page}");
    demi.signal(Signal::TERM);
    demi.wait();

    let demi = Demi::start_in(Arc::clone(&demi.directory), "", &as_well("echo"));
    demi.wait_ready();
    assert!(dead(&demi, &["edit", "2", "--body", "x", "--file", "y"]).contains("exclude each other"));
    assert!(dead(&demi, &["edit", "2"]).contains("nothing came from standard input"));
    assert!(dead(&demi, &["edit", "2", "--body", "third"]).contains("new body of 5 bytes"));
    assert!(dead(&demi, &["show", "2"]).ends_with("\n\nthird\n"), "{}", dead(&demi, &["show", "2"]));
    assert!(dead(&demi, &["list"]).lines().count() == 3, "{}", dead(&demi, &["list"]));
    assert!(dead(&demi, &["replay"]).contains("say which dead letters"));
    assert!(dead(&demi, &["replay", "--platform", "frail"]).starts_with("2 dead letters replayed"));
    until("they are delivered", || ids(&demi.json("/v1/dead-letters")).is_empty().then_some(()));
    assert_eq!(dead(&demi, &["list", "--platform", "frail"]), "there are no such dead letters\n");
}

#[test]
fn what_is_purged_is_gone_for_good_and_nothing_else_is() {
    let mut demi = Demi::start(&sections());
    for body in ["first", "second", "third"] {
        lose(&demi, body);
    }
    assert!(dead(&demi, &["purge"]).contains("--yes"));
    assert_eq!(dead(&demi, &["purge", "2"]), "1 dead letter taken away for good\n");
    assert_eq!(dead(&demi, &["purge", "--platform", "nobody"]), "0 dead letters taken away for good\n");
    demi.signal(Signal::KILL);
    demi.wait();
    let demi = Demi::start_in(Arc::clone(&demi.directory), "", &sections());
    assert_eq!(ids(&demi.json("/v1/dead-letters")), [1, 3]);
    let purged = dead(&demi, &["purge", "--yes", "--format", "json"]);
    assert_eq!(purged, "{\"purged\":2}\n");
    assert_eq!(demi.json("/v1/status")["dead_letters"], 0);
}
