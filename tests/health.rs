//! How instances are asked how they are, and what is made of it when something that they depend on is away.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use demi::{Adapter, Fault, Health, PlatformTrait, Reply, Request, Settings};

use crate::embedding::Hosted;
use crate::proxying::Upstream;
use crate::support::{misbehaving, until, Demi, Directory, Nowhere};

const QUICK: &str = "health: (interval_ms: 50, doubt_interval_ms: 20, down_interval_ms: 20, timeout_ms: 5000)";

fn state(demi: &Demi, platform: &str) -> String {
    demi.instance(platform, 0)["state"].as_str().expect("an instance has a state").to_owned()
}

fn wait_for(demi: &Demi, platform: &str, expected: &str) {
    until(&format!("{platform} is {expected}"), || (state(demi, platform) == expected).then_some(()));
}

// ---- HTTP services ----------------------------------------------------------------------------------------------

/// Demi before a service that answers what `answer` holds; `more` are fields of its platform. And what it was asked last.
fn before(answer: &Arc<Mutex<String>>, more: &str) -> (Demi, Arc<Mutex<String>>) {
    let asked = Arc::new(Mutex::new(String::new()));
    let (told, heard) = (answer.clone(), asked.clone());
    let upstream = Upstream::start(move |peer| {
        while let Some((head, _)) = peer.request() {
            *heard.lock().expect("no test panics while it holds it") = head;
            let answer = told.lock().expect("no test panics while it holds it").clone();
            peer.send(answer);
        }
    });
    let address = upstream.address;
    let demi = Demi::start(&format!(
        r#"{QUICK}, platforms: [(name: "up", host: Http, upstreams: ["{address}"], health_path: "/well?deep=1", {more})]"#
    ));
    (demi, asked)
}

fn say(answer: &Mutex<String>, text: impl Into<String>) {
    *answer.lock().expect("no test panics while it holds it") = text.into();
}

fn with_body(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn a_health_check_asks_with_its_method_and_takes_only_its_statuses() {
    let answer = Arc::new(Mutex::new("HTTP/1.1 204 x\r\n\r\n".to_owned()));
    let (demi, asked) = before(&answer, r#"health_method: "OPTIONS", health_status: (204, 205)"#);
    demi.wait_ready();
    let head = asked.lock().expect("no test panics while it holds it").clone();
    assert!(head.starts_with("OPTIONS /well?deep=1 HTTP/1.1\r\n"), "{head}");
    say(&answer, with_body(""));
    wait_for(&demi, "up", "down");
    say(&answer, "HTTP/1.1 103 x\r\n\r\nHTTP/1.1 205 x\r\nContent-Length: 0\r\n\r\n");
    wait_for(&demi, "up", "ready");
}

#[test]
fn a_service_says_in_its_answers_to_health_checks_how_it_wants_to_be_balanced() {
    let answer = Arc::new(Mutex::new(with_body("ok")));
    let (demi, _) = before(&answer, "balance: Weighted");
    demi.wait_ready();
    let well = |headers: &str| with_body("ok").replace("\r\n\r\n", &format!("\r\n{headers}\r\n\r\n"));
    let ask = || demi.post("/v1/requests", r#"{"to": "up"}"#);
    assert_eq!((ask().status, demi.instance("up", 0)["weight"].as_u64()), (200, Some(1)));
    say(&answer, well("Demi-Weight: 3\r\nDemi-Drain: ?1"));
    until("it drains", || (demi.instance("up", 0)["drain"] == true).then_some(()));
    let refused = ask();
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("not_ready")), "{refused:?}");
    assert_eq!(demi.instance("up", 0)["weight"], 3);
    say(&answer, well("Demi-Drain: maybe"));
    until("garbage is told", || demi.log().contains("Demi-Drain is neither ?1 nor ?0").then_some(()));
    let shown = demi.instance("up", 0);
    assert!(shown["drain"] == true && shown["weight"] == 3 && shown["health"] == "up", "{shown}");
    say(&answer, with_body("ok"));
    until("it says nothing any more", || (ask().status == 200).then_some(()));
    assert_eq!(demi.instance("up", 0)["weight"], 1);
}

#[test]
fn the_answer_to_a_health_check_by_head_has_no_body_to_wait_for() {
    let answer = Arc::new(Mutex::new("HTTP/1.1 200 x\r\nContent-Length: 1000\r\n\r\n".to_owned()));
    let (demi, asked) = before(&answer, r#"health_method: "HEAD""#);
    demi.wait_ready();
    assert!(asked.lock().expect("no test panics while it holds it").starts_with("HEAD "));
}

#[test]
fn what_a_health_check_looks_for_stands_in_the_first_64_kib_of_the_body() {
    let answer = Arc::new(Mutex::new(with_body("{\"status\": \"fine\"}")));
    let (demi, _) = before(&answer, r#"health_body: "\"fine\"""#);
    demi.wait_ready();
    let far = "x".repeat(64 * 1024 - 6);
    let is_there = [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n \"fi\r\n3\r\nne\"\r\n0\r\n\r\n".to_owned(),
        with_body(&format!("{far}\"fine\"")),
        // It need not come to its end.
        "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n\"fine\"".to_owned(),
    ];
    let is_not = [
        with_body("{\"status\": \"ill\"}"),
        with_body(&format!("{far}x\"fine\"")),
        with_body(&format!("{}\"fine\"", "x".repeat(1_000_000))),
        "HTTP/1.1 204 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 500 OK\r\nContent-Length: 6\r\n\r\n\"fine\"".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfour\r\n".to_owned(),
    ];
    for well in is_there {
        for ill in &is_not {
            say(&answer, ill);
            wait_for(&demi, "up", "down");
            say(&answer, &well);
            wait_for(&demi, "up", "ready");
        }
    }
}

// ---- what platforms depend on -----------------------------------------------------------------------------------

/// A plugin that says this of itself as long as there is a file named `ill` in the directory; `more` are further fields.
fn delicate(demi_directory: &Path, says: &str, more: &str) -> String {
    let script = format!(
        r#"while read -r line; do
  id=${{line#*\"id\":}}; id=${{id%%[,\}}]*}}
  case $line in
    *'"method":"initialize"'*) result='{{"protocol":1}}';;
    *'"method":"health"'*) if [ -e {0}/ill ]; then echo asked >>{0}/asked; result='{{"status":"{says}"}}'
      else result='{{"status":"up"}}'; fi;;
    *'"method":"handle"'*) result='{{}}';;
    *) continue;;
  esac
  echo '{{"jsonrpc":"2.0","id":'$id',"result":'$result'}}'
done"#,
        demi_directory.display()
    );
    format!(r#"(name: "delicate", host: Process(1), command: ["sh", "-c", {script:?}], {more})"#)
}

/// Waits until the plugin has said so often that it is not well that one that is to blame would long have been replaced.
fn assert_it_is_not_replaced(demi: &Demi) {
    let pids = demi.pids("delicate");
    demi.directory.write("ill", "");
    until("it was asked often", || {
        let asked = std::fs::read_to_string(demi.directory.path().join("asked")).unwrap_or_default();
        (asked.lines().count() >= 12).then_some(())
    });
    assert_eq!(state(demi, "delicate"), "down");
    assert_eq!((demi.instance("delicate", 0)["run"].as_u64(), demi.pids("delicate")), (Some(1), pids));
}

#[test]
fn a_plugin_behind_a_platform_that_is_away_is_not_restarted_and_comes_back_with_it() {
    let status = Arc::new(AtomicUsize::new(200));
    let shown = status.clone();
    let gate = Upstream::start(move |peer| {
        while peer.request().is_some() {
            peer.send(format!("HTTP/1.1 {} x\r\nContent-Length: 0\r\n\r\n", shown.load(Ordering::SeqCst)));
        }
    });
    let directory = Arc::new(Directory::new());
    let plugin = delicate(directory.path(), "down", r#"behind: ["vpn"]"#);
    let sections = format!(
        r#"{QUICK}, reachability: [(name: "vpn", check: Platform("gate"))],
        platforms: [(name: "gate", host: Http, upstreams: ["{}"], health_path: "/"), {plugin}]"#,
        gate.address
    );
    let demi = Demi::start_in(directory, "", &sections);
    demi.wait_ready();
    status.store(503, Ordering::SeqCst);
    until("the platform is missed", || demi.log().contains("vpn cannot be reached: what fails").then_some(()));
    assert_it_is_not_replaced(&demi);
    status.store(200, Ordering::SeqCst);
    std::fs::remove_file(demi.directory.path().join("ill")).expect("it is there");
    wait_for(&demi, "delicate", "ready");
    assert_eq!(demi.instance("delicate", 0)["run"], 1);
}

#[test]
fn a_plugin_behind_an_address_that_is_away_is_replaced_only_once_that_answers_again() {
    // Accepts no connection beyond the first that comes, until it is told to.
    let uplink = Nowhere::new();
    let address = uplink.address;
    let listener = uplink.listen(0);
    let directory = Arc::new(Directory::new());
    let plugin = delicate(directory.path(), "down", r#"behind: ["uplink"], health: (timeout_ms: 5000)"#);
    let sections = format!(
        r#"health: (interval_ms: 50, doubt_interval_ms: 20, down_interval_ms: 20, timeout_ms: 1000),
        reachability: [(name: "uplink", check: Tcp("{address}")), (name: "nowhere", check: Tcp("255.255.255.255:53")),
            (name: "names", check: Dns("localhost"))],
        platforms: [{plugin}]"#
    );
    let demi = Demi::start_in(directory, "", &sections);
    demi.wait_ready();
    until("the address is missed", || demi.log().contains("uplink cannot be reached: what fails").then_some(()));
    until("what was never there is told", || demi.log().contains("nowhere (reachability) cannot be").then_some(()));
    assert_it_is_not_replaced(&demi);
    let accepting = std::thread::spawn(move || while listener.accept().is_ok() {});
    until("it is there again", || demi.log().contains("uplink can be reached again").then_some(()));
    until("its plugin is to blame now", || (demi.instance("delicate", 0)["run"].as_u64() > Some(1)).then_some(()));
    assert!(!demi.log().contains("names cannot be reached: what fails"));
    assert!(!accepting.is_finished());
}

// ---- what instances say of themselves ---------------------------------------------------------------------------

#[test]
fn a_plugin_that_wants_no_requests_gets_none_and_is_not_started_again() {
    let directory = Arc::new(Directory::new());
    let plugin = delicate(directory.path(), "unready", "");
    let demi = Demi::start_in(directory, "", &format!(r#"{QUICK}, platforms: [{plugin}], routes: [(to: "delicate")]"#));
    demi.wait_ready();
    let ask = || demi.post("/v1/requests", r#"{"content":"hello"}"#).status;
    assert_eq!(ask(), 200);
    assert_it_is_not_replaced(&demi);
    assert_eq!(ask(), 503);
    std::fs::remove_file(demi.directory.path().join("ill")).expect("it is there");
    wait_for(&demi, "delicate", "ready");
    assert_eq!((ask(), demi.instance("delicate", 0)["run"].as_u64()), (200, Some(1)));
}

/// Health checks alone never have anything started again here.
const REINITIALIZED: &str =
    "health: (interval_ms: 50, doubt_interval_ms: 50, down_interval_ms: 50, fall: 100, rise: 1),
    breaker: (failures: 2, open_ms: 50, recovery: Reinitialize)";

const AGAIN: &str = "it was initialised again, because its breaker opened";

#[test]
fn a_process_whose_breaker_opens_is_initialised_again_and_serves_on() {
    let demi = Demi::start(&format!(
        r#"{REINITIALIZED}, platforms: [(name: "worn", host: Process(1), command: [{:?}, "wears-out", "5"])],
        routes: [(path: "/worn", to: "worn")]"#,
        misbehaving()
    ));
    demi.wait_ready();
    let pids = demi.pids("worn");
    let mut answers = 0;
    until("it has answered more than it can without being initialised again", || {
        answers += u32::from(demi.post("/worn", "hello").status == 200);
        (answers > 12).then_some(())
    });
    assert_eq!((demi.pids("worn"), demi.instance("worn", 0)["run"].as_u64()), (pids, Some(1)));
    assert!(demi.get("/v1/platforms/worn/why").body.contains(AGAIN));
}

#[test]
fn a_process_that_cannot_be_initialised_again_is_started_again() {
    let demi = Demi::start(&format!(
        r#"{REINITIALIZED}, platforms: [(name: "worn", host: Process(1), command: [{:?}, "wears-out-for-good", "2"])],
        routes: [(path: "/worn", to: "worn")]"#,
        misbehaving()
    ));
    demi.wait_ready();
    until("it runs again", || {
        demi.post("/worn", "hello");
        (demi.instance("worn", 0)["run"].as_u64() > Some(1)).then_some(())
    });
    let why = demi.get("/v1/platforms/worn/why").body;
    assert!(why.contains("it could not be initialised again when its breaker opened"), "{why}");
    demi.wait_for_log("could not be initialised again: worn out for good");
}

/// As the plugin that wears out after five answers.
#[derive(Default)]
struct Worn {
    answered: u32,
}

impl PlatformTrait for Worn {
    fn initialize(&mut self, settings: &Settings) -> Result<(), Fault> {
        assert_eq!(settings["city"], "Graz");
        self.answered = 0;
        Ok(())
    }

    fn health_check(&mut self) -> Health {
        match self.answered {
            0..5 => Health::up(),
            5.. => Health::down("worn out"),
        }
    }

    fn handle_request(&mut self, _: &Request<'_>, _: &mut Reply) -> Result<(), Fault> {
        if self.answered >= 5 {
            return Err(Fault::failed("worn out"));
        }
        self.answered += 1;
        Ok(())
    }
}

const WORN: [Adapter; 1] = [Adapter { name: "worn", make: || Box::<Worn>::default() }];

#[test]
fn what_runs_in_demi_itself_is_initialised_again_with_its_settings() {
    for host in ["Inline", "Threads(1)"] {
        let hosted = Hosted::start_with(
            &WORN,
            &format!(
                r#"{REINITIALIZED}, platforms: [(name: "worn", host: {host}, settings: {{"city": "Graz"}})],
                routes: [(to: "worn")]"#
            ),
        );
        let mut answers = 0;
        until("it has answered more than it can without being initialised again", || {
            answers += u32::from(hosted.say("hello").0 == 200);
            (answers > 12).then_some(())
        });
        assert_eq!(hosted.instance("worn", 0)["run"], 1, "{host}");
        assert!(hosted.get("/v1/platforms/worn/why").1.contains(AGAIN), "{host}");
    }
}
