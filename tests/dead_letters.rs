//! Requests that could not be handled are kept, survive a kill of Demi, and can be looked at.

use std::sync::Arc;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{misbehaving, until, Demi, Directory, HOSTS};

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
    let response = demi.request("DELETE", "/v1/dead-letters", "");
    assert_eq!((response.status, response.header("Allow")), (405, Some("GET, HEAD")));
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
