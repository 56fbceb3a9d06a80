//! `GET /v1/health`, and what the commands make of it.

use serde_json::Value;

use crate::support::{demi_command, misbehaving, until, Demi};

/// A plugin in shell: `health` is the result of its health checks, and each request fails with `no key`.
fn failing(health: &str) -> String {
    format!(
        r#"
while read -r line; do
    id=${{line#*\"id\":}}; id=${{id%%[,\}}]*}}
    case $line in
    *'"method":"initialize"'*) echo '{{"jsonrpc":"2.0","id":'$id',"result":{{"protocol":1}}}}' ;;
    *'"method":"health"'*) echo '{{"jsonrpc":"2.0","id":'$id',"result":{health}}}' ;;
    *'"method":"handle"'*) echo '{{"jsonrpc":"2.0","id":'$id',"error":{{"code":-32000,"message":"no key"}}}}' ;;
    *'"method":"shutdown"'*) exit 0 ;;
    esac
done
"#
    )
}

fn page(demi: &Demi, name: &str) -> Value {
    demi.json(&format!("/v1/health?platform={name}"))["platforms"][0].clone()
}

/// What went wrong with a platform, newest first: kind, what was said, and how often.
fn errors(demi: &Demi, name: &str) -> Vec<(String, String, u64)> {
    let page = page(demi, name);
    let errors = page["last_errors"].as_array().unwrap_or_else(|| panic!("there is a list: {page}"));
    let word = |error: &Value, key: &str| error[key].as_str().expect("it is told").to_owned();
    let times = |error: &Value| error["times"].as_u64().expect("it is counted");
    errors.iter().map(|error| (word(error, "kind"), word(error, "detail"), times(error))).collect()
}

/// What a command says of a Demi, and its exit code.
fn said(demi: &Demi, words: &[&str]) -> (Option<i32>, String) {
    let address = demi.address.to_string();
    let output = demi_command().args(words).args(["--address", &address]).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), told)
}

#[test]
fn a_platform_that_is_well_is_told_with_what_its_answers_take() {
    let demi = Demi::start(
        r#"
            reachability: [(name: "answers", check: Platform("echo"))],
            platforms: [(name: "echo", host: Inline), (name: "other", host: Inline, adapter: "echo", start: Manual)],
            routes: [(to: "echo")],
        "#,
    );
    demi.wait_ready();
    let before = page(&demi, "echo");
    assert_eq!((&before["latency"]["count"], &before["latency"]["p50_ms"]), (&0.into(), &Value::Null));
    for _ in 0..20 {
        assert_eq!(demi.post("/v1/requests", r#"{"content":"hello"}"#).status, 200);
    }
    until("what it lies behind has been looked at", || {
        (demi.json("/v1/health")["reachability"][0]["state"] == "up").then_some(())
    });
    let all = demi.json("/v1/health");
    assert_eq!((&all["status"], &all["reachability"][0]["lost"]), (&"healthy".into(), &false.into()), "{all}");
    let [echo, other] = &all["platforms"].as_array().expect("it is a list")[..] else { panic!("{all}") };
    assert_eq!((&echo["status"], &echo["state"], &echo["health"]), (&"healthy".into(), &"ready".into(), &"up".into()));
    assert_eq!((&echo["breaker"]["state"], &echo["breaker"]["calls"]), (&"closed".into(), &20.into()));
    assert_eq!((&other["status"], &other["state"]), (&"resting".into(), &"stopped".into()));
    let latency = ["p50_ms", "p95_ms", "p99_ms"].map(|name| echo["latency"][name].as_f64().expect("it was measured"));
    assert!(echo["latency"]["count"] == 20 && latency.is_sorted() && latency[0] > 0.0, "{echo}");
    assert!(echo["last_errors"].as_array().is_some_and(Vec::is_empty), "{echo}");
    assert_eq!(page(&demi, "other"), *other);
}

#[test]
fn who_asks_for_one_platform_that_is_not_there_is_told_the_nearest() {
    let demi = Demi::start(r#"platforms: [(name: "echo", host: Inline)]"#);
    let unknown = demi.get("/v1/health?platform=ehco");
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("did you mean \\\"echo\\\"?"), "{unknown:?}");
    let wrong = demi.get("/v1/health?name=echo");
    assert!(wrong.status == 400 && wrong.body.contains("?platform=NAME"), "{wrong:?}");
    let (code, told) = said(&demi, &["health", "ehco"]);
    assert!(code == Some(1) && told.contains("did you mean"), "{told}");
}

#[test]
fn what_went_wrong_is_told_by_kind_and_never_with_what_was_asked() {
    let plugin = misbehaving();
    let demi = Demi::start(&format!(
        r#"
            platforms: [
                (name: "dies", host: Process(1), command: [{plugin:?}, "dies-on-request"]),
                (name: "silent", host: Process(1), command: [{plugin:?}, "never-answers"]),
                (name: "manual", host: Inline, adapter: "echo", start: Manual),
            ],
            routes: [(kind: "dies", to: "dies"), (kind: "silent", to: "silent", timeout_ms: 100), (to: "manual")],
        "#
    ));
    demi.wait_ready();
    for (kind, status, times) in [("dies", 502, 1), ("silent", 504, 1), ("manual", 503, 3)] {
        for _ in 0..times {
            let answer = demi.post("/v1/requests", &format!(r#"{{"kind":"{kind}","content":"my secret"}}"#));
            assert_eq!(answer.status, status, "{answer:?}");
        }
    }
    let [(kind, detail, 1)] = &errors(&demi, "dies")[..] else { panic!("{:?}", errors(&demi, "dies")) };
    assert!(kind == "broken" && detail.starts_with("dies/0 broke before it answered"), "{kind}: {detail}");
    let silent = ("timed_out".to_owned(), "silent/0 did not answer in time".to_owned(), 1);
    assert_eq!(errors(&demi, "silent"), [silent]);
    assert_eq!(page(&demi, "silent")["last_errors"][0]["instance"], 0);
    let refused = ("not_ready".to_owned(), "no instance of the platform takes requests".to_owned(), 3);
    assert_eq!(errors(&demi, "manual"), [refused]);
    assert_eq!(page(&demi, "manual")["last_errors"][0]["instance"], Value::Null);
    assert!(!demi.get("/v1/health").body.contains("secret"));
}

#[test]
fn a_health_check_that_fails_is_told_with_its_reason() {
    let script = failing(r#"{"status":"down","error":"no net"}"#);
    let demi = Demi::start(&format!(
        r#"
            health: (interval_ms: 50, doubt_interval_ms: 50, down_interval_ms: 50, restart_fall: 1000),
            platforms: [(name: "ill", host: Process(1), command: ["sh", "-c", {script:?}])],
        "#
    ));
    until("it is down", || (page(&demi, "ill")["health"] == "down").then_some(()));
    let [(kind, detail, times)] = &errors(&demi, "ill")[..] else { panic!("{:?}", errors(&demi, "ill")) };
    assert_eq!((kind.as_str(), detail.as_str()), ("health_check", "no net"));
    assert!(*times >= 3, "{times}");
    let page = demi.json("/v1/health");
    assert_eq!((&page["status"], &page["platforms"][0]["status"]), (&"unhealthy".into(), &"unhealthy".into()));
    assert!(page["platforms"][0]["probes"]["failed"].as_u64() >= Some(3), "{page}");
}

#[test]
fn a_breaker_that_is_open_is_told_everywhere_and_closed_by_hand() {
    let script = failing(r#"{"status":"up"}"#);
    let demi = Demi::start(&format!(
        r#"
            breaker: (platform_failures: 2, open_ms: 200000),
            platforms: [(name: "keyless", host: Process(1), command: ["sh", "-c", {script:?}])],
            routes: [(to: "keyless")],
        "#
    ));
    demi.wait_ready();
    for code in ["failed", "failed", "breaker_open"] {
        let answer = demi.post("/v1/requests", r#"{"content":"hello"}"#);
        assert_eq!(answer.json()["code"], code, "{answer:?}");
    }
    let open = page(&demi, "keyless");
    assert_eq!((&open["status"], &open["breaker"]["state"]), (&"unhealthy".into(), &"open".into()), "{open}");
    let left = open["breaker"]["open_for_ms"].as_u64().expect("it is told for how long");
    assert!((100_000..=220_000).contains(&left), "{left}");
    let kinds: Vec<String> = errors(&demi, "keyless").into_iter().map(|(kind, ..)| kind).collect();
    assert_eq!(kinds, ["breaker_open", "failed"]);
    assert!(open["history"].as_array().is_some_and(|history| {
        history.iter().any(|entry| entry["text"].as_str().is_some_and(|text| text.contains("its breaker opened for")))
    }));
    for (words, parts) in [
        (&["platforms", "keyless"][..], &["breaker       open, tried in"][..]),
        (&["why", "keyless"], &["the breaker of keyless as a whole is open", "`demi close keyless` closes it now"]),
        (&["health"], &["Demi is unhealthy", "unhealthy  ready  up      open for", "breaker_open"]),
        (&["health", "keyless"], &["no key (2 times)", "2 recent calls, 2 failed, 0 slow"]),
    ] {
        let (code, told) = said(&demi, words);
        assert_eq!(code, Some(0), "{words:?}: {told}");
        for part in parts {
            assert!(told.contains(part), "{part:?} is not in {words:?}:\n{told}");
        }
    }
    let (code, told) = said(&demi, &["close", "keyless"]);
    assert!(code == Some(0) && told.contains("the breakers of keyless are closed"), "{told}");
    assert_eq!(page(&demi, "keyless")["breaker"]["state"], "closed");
    assert_eq!(demi.post("/v1/requests", r#"{"content":"hello"}"#).json()["code"], "failed", "it is asked again");
}
