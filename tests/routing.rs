//! The routing table, as people ask it and as requests meet it.

use std::process::Output;

use crate::support::{demi_command, until, Demi, Directory};

const TABLE: &str = r#"(
    platforms: [(name: "echo", host: Inline), (name: "other", host: Inline, adapter: "echo")],
    routes: [
        (path: "/users/{id}", method: "GET", to: "echo"),
        (host: "named", to: "other"),
        (from: "discord", content: Prefix("!play"), to: "other"),
        (headers: {"X-Kind": Exact("voice")}, to: "other"),
        (content: Keywords(["help"]), ignore_case: true, priority: 1, to: "other"),
        (to: "echo"),
        (kind: "never", to: "other"),
    ],
)"#;

fn test(arguments: &[&str]) -> (Output, String) {
    let directory = Directory::new();
    let config = directory.write("config.ron", TABLE);
    let output = demi_command().args(["route", "test", "--config"]).arg(config).args(arguments).output();
    let output = output.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output, text)
}

#[test]
fn route_test_tells_which_rule_takes_a_request_and_why_the_others_do_not() {
    let (output, text) = test(&["--platform", "discord", "--content", "!play x"]);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("rule 3 at ") && lines[0].contains("config.ron:6 takes it: to other"), "{text}");
    for (number, why) in [
        (5, "content is not Keywords([\"help\"])"),
        (1, "method is not \"GET\" but \"POST\""),
        (2, "host is not \"named\": it has none"),
        (4, "header X-Kind is not Exact(\"voice\")"),
        (6, "it would, but comes later"),
        (7, "kind is not \"never\": it has none"),
    ] {
        let told = |line: &&str| line.contains(&format!("rule {number} ")) && line.ends_with(why);
        assert!(lines.iter().any(told), "{number} {why}: {text}");
    }
    assert_eq!(lines[3], "  urgency: by who asks");
    assert!(lines[5].contains("rule 5 "), "the one of the higher priority comes first: {text}");
}

#[test]
fn route_test_takes_every_part_of_a_request_and_ends_with_1_if_no_rule_does() {
    for (arguments, rule) in [
        (&["--http", "--path", "/users/7?x=y"][..], Some(1)),
        (&["--http", "--path", "/x", "--host", "NAMED:80"], Some(2)),
        (&["--header", "x-kind:voice", "--header", "A: b"], Some(4)),
        (&["--content", "HELP me"], Some(5)),
        (&["--kind", "never"], Some(6)),
        (&["--http", "--path", "/users/7", "--method", "PUT"], None),
    ] {
        let (output, text) = test(&[arguments, &["--json"]].concat());
        let json: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(json["rule"]["number"].as_u64(), rule, "{arguments:?}: {text}");
        assert_eq!(output.status.code(), Some(i32::from(rule.is_none())), "{arguments:?}");
    }
}

#[test]
fn a_rule_that_can_never_match_is_told_with_both_lines_and_keeps_nothing_from_starting() {
    let directory = Directory::new();
    let config = directory.write("config.ron", TABLE);
    let warning = "config.ron:10:9: rule 7 can never match: rule 6 on line 9 comes before it";
    let output = demi_command().args(["--dry-run", "--config"]).arg(&config).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains(warning), "{text}");
    let demi = Demi::start(&TABLE[1..TABLE.len() - 1]);
    until("the log tells it", || demi.log().contains("rule 7 can never match").then_some(()));
}

#[test]
fn requests_go_where_their_method_host_headers_and_words_say() {
    let demi = Demi::start(&TABLE[1..TABLE.len() - 1]);
    let went = |request: &str| {
        let answer = demi.raw(request.as_bytes()).to_ascii_lowercase();
        let line = answer.lines().find_map(|line| line.strip_prefix("demi-instance: ").map(str::to_owned));
        line.and_then(|instance| Some(instance.split('/').next()?.to_owned()))
    };
    let plain = |method: &str, path: &str, host: &str| {
        went(&format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    };
    assert_eq!(plain("GET", "/users/7", "test").as_deref(), Some("echo"));
    assert_eq!(plain("DELETE", "/users/7", "test"), None);
    assert_eq!(plain("DELETE", "/users/7", "named").as_deref(), Some("other"));
    let message = |json: &str| {
        let length = json.len();
        let head = format!("POST /v1/requests HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}");
        went(&format!("{head}\r\n\r\n{json}"))
    };
    assert_eq!(message(r#"{"content":"a word"}"#).as_deref(), Some("echo"));
    assert_eq!(message(r#"{"content":"Help!"}"#).as_deref(), Some("other"));
    assert_eq!(message(r#"{"headers":{"x-kind":"voice"}}"#).as_deref(), Some("other"));
    assert_eq!(message(r#"{"method":"GET","path":"/users/7","headers":{"x-kind":"voice"}}"#).as_deref(), Some("echo"));
    assert_eq!(message(r#"{"host":"named"}"#).as_deref(), Some("other"));
}

#[test]
fn requests_with_the_same_key_meet_the_same_instance() {
    let demi = Demi::start(
        r#"platforms: [(name: "pool", host: Threads(8), adapter: "echo", balance: Sticky)],
        routes: [(to: "pool"), (path: "/pool", to: "pool")],"#,
    );
    // Until they all are, a key may belong to another.
    demi.wait_all_ready();
    let instance = |body: &str| {
        let answer = demi.post("/v1/requests", body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.header("Demi-Instance").expect("who answered is told").to_owned()
    };
    let of_key = |key: usize| instance(&format!(r#"{{"key":"user {key}"}}"#));
    let first: Vec<String> = (0..20).map(of_key).collect();
    assert_eq!((0..20).map(of_key).collect::<Vec<String>>(), first);
    assert!(first.iter().any(|other| *other != first[0]), "all keys are with {}", first[0]);
    let text = "GET /pool HTTP/1.1\r\nHost: test\r\nConnection: close\r\nDemi-Key: user 3\r\n\r\n";
    let answer = demi.raw(text.as_bytes());
    assert!(answer.contains(&format!("Demi-Instance: {}\r\n", first[3])), "{answer}");
}

#[test]
fn what_one_platform_cannot_take_the_next_of_the_route_does() {
    let demi = Demi::start(
        r#"platforms: [
            (name: "gone", host: Http, upstreams: ["127.0.0.1:1"]),
            (name: "asleep", host: Threads(1), adapter: "echo", start: Manual),
            (name: "there", host: Inline, adapter: "echo"),
        ],
        routes: [(path: "/x", to: "gone", fallback: ["asleep", "there"]), (to: "gone")],"#,
    );
    let answer = demi.get("/x");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("Demi-Instance"), Some("there/0"));
    let page = demi.get("/metrics").body;
    for (platform, count) in [("gone", 1), ("asleep", 1), ("there", 0)] {
        let line = format!("\ndemi_fallbacks_total{{platform=\"{platform}\"}} {count}\n");
        assert!(page.contains(&line), "{line}");
    }
    let refused = demi.post("/v1/requests", "{}").status;
    assert!(matches!(refused, 502 | 503), "without a fallback it is told: {refused}");
}
