//! Requests of which a second instance is asked as well, because the first one takes longer than answers usually do.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;

use demi::{Adapter, Fault, PlatformTrait, Reply, Request, Settings};
use rustix::process::Signal;

use crate::embedding::Hosted;
use crate::proxying::Upstream;
use crate::support::{kill, until, Demi, Response};

/// Enough answers, and those that come first, slowed by everything that is new, are not among the slowest of them.
const WARM_UP: usize = 200;
/// Requests for which chance has to pick the one that is slow.
const TRIES: usize = 200;

/// An HTTP service that answers with `answer` at once until it is told to hold what it is asked.
struct Holder {
    upstream: Upstream,
    holds: Arc<AtomicBool>,
    /// Requests that it holds, and those of them whose connections Demi has closed.
    held: Arc<AtomicUsize>,
    let_go: Arc<AtomicUsize>,
}

impl Holder {
    fn start(answer: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Holder {
        let holds = Arc::new(AtomicBool::new(false));
        let (held, let_go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (is_holding, one_more, one_less) = (holds.clone(), held.clone(), let_go.clone());
        let upstream = Upstream::start(move |peer| {
            while peer.request().is_some() {
                if is_holding.load(Ordering::SeqCst) {
                    one_more.fetch_add(1, Ordering::SeqCst);
                    peer.wait_for_end();
                    one_less.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                peer.send(answer());
            }
        });
        Holder { upstream, holds, held, let_go }
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

/// Demi before two services, of which requests have gone to both; time enough for one that is held to outlast the test.
fn before(holders: &[Holder; 2]) -> Demi {
    let addresses = holders.each_ref().map(|holder| format!("{:?}", holder.upstream.address.to_string())).join(",");
    let demi = Demi::start(&format!(
        r#"platforms: [(name: "up", host: Http, upstreams: [{addresses}])],
        routes: [(path: "/up/*", to: "up", hedge: true, idempotent: true, timeout_ms: 3600000)]"#
    ));
    demi.wait_all_ready();
    for _ in 0..WARM_UP {
        assert_eq!(demi.get("/up/x").status, 200);
    }
    assert!(holders.iter().all(|holder| holder.upstream.asked() > 0), "one was never asked");
    demi
}

/// Asks until the first service has held some requests; each is answered all the same, and the service is told.
fn assert_held_requests_are_answered(holders: &[Holder; 2], ask: impl Fn() -> Response, body: &str) {
    holders[0].holds.store(true, Ordering::SeqCst);
    for _ in 0..TRIES {
        let answer = ask();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("Demi-Instance"), Some("up/1"));
        assert!(answer.body == body, "{} bytes came of {}", answer.body.len(), body.len());
        if holders[0].held() >= 3 {
            until("the connections of those that were held are closed", || {
                (holders[0].let_go.load(Ordering::SeqCst) >= 3).then_some(())
            });
            return;
        }
    }
    panic!("the service that holds requests was given {} of {TRIES}", holders[0].held());
}

#[test]
fn a_service_that_does_not_answer_is_outrun_by_another_and_its_connection_is_closed() {
    let answer = || b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec();
    let holders = [Holder::start(answer), Holder::start(answer)];
    let demi = before(&holders);
    assert_held_requests_are_answered(&holders, || demi.get("/up/x"), "hello");
}

#[test]
fn an_answer_that_flows_flows_from_the_service_that_was_asked_second() {
    let body = "0123456789".repeat(100_000);
    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let answer = move || text.clone().into_bytes();
    let holders = [Holder::start(answer.clone()), Holder::start(answer)];
    let demi = before(&holders);
    assert_held_requests_are_answered(&holders, || demi.get("/up/x"), &body);
}

#[test]
fn a_request_that_both_fail_is_tried_again_from_the_start() {
    let answer = || b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec();
    let holders = [Holder::start(answer), Holder::start(answer)];
    let addresses = holders.each_ref().map(|holder| format!("{:?}", holder.upstream.address.to_string())).join(",");
    let demi = Demi::start(&format!(
        r#"breaker: (failures: 1000, platform_failures: 0, failure_percent: 0, slow_percent: 0),
        platforms: [(name: "up", host: Http, upstreams: [{addresses}])],
        routes: [(path: "/up/*", to: "up", hedge: true, idempotent: true, timeout_ms: 3600000, attempt_timeout_ms: 500,
            retries: 10)]"#
    ));
    demi.wait_all_ready();
    for _ in 0..WARM_UP {
        assert_eq!(demi.get("/up/x").status, 200);
    }
    holders.iter().for_each(|holder| holder.holds.store(true, Ordering::SeqCst));
    let answer = std::thread::scope(|scope| {
        let asking = scope.spawn(|| demi.get("/up/x"));
        until("both have it and have been told that nobody waits any more", || {
            holders.iter().all(|holder| holder.let_go.load(Ordering::SeqCst) >= 1).then_some(())
        });
        holders.iter().for_each(|holder| holder.holds.store(false, Ordering::SeqCst));
        asking.join().expect("it is answered")
    });
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"), "{answer:?}");
    assert_eq!(demi.get("/v1/status").status, 200);
}

/// A plugin that says in its log what is cancelled, as a shell can: it answers every request with its number.
const TELLS_CANCELS: &str = r#"
while read -r line; do
  id=${line#*\"id\":}; id=${id%%[,\}]*}
  case $line in
    *'"method":"initialize"'*) name=${line#*\"name\":\"}; name=${name%%\"*}; result='{"protocol":1}';;
    *'"method":"health"'*) result='{"status":"up"}';;
    *'"method":"handle"'*) result='{"body":"'$name'"}';;
    *'"method":"cancel"'*) echo "heard of a cancelled request" >&2; continue;;
    *) continue;;
  esac
  echo '{"jsonrpc":"2.0","id":'$id',"result":'$result'}'
done
"#;

#[test]
fn a_plugin_that_is_frozen_is_outrun_by_another_and_told_that_nobody_waits() {
    let demi = Demi::start(&format!(
        r#"platforms: [(name: "two", host: Process(2), command: ["sh", "-c", {TELLS_CANCELS:?}])],
        routes: [(path: "/two", to: "two", hedge: true, idempotent: true, timeout_ms: 3600000)]"#
    ));
    demi.wait_all_ready();
    until("both have been asked", || {
        let answers: Vec<String> = (0..WARM_UP).map(|_| demi.get("/two").body).collect();
        ["two/0", "two/1"].iter().all(|name| answers.iter().any(|answer| answer == name)).then_some(())
    });
    let frozen = demi.pids("two")[0];
    kill(frozen, Signal::STOP);
    // One that is frozen cannot be asked what it was given: one request in two, until its health checks tell.
    for _ in 0..20 {
        let answer = demi.get("/two");
        assert_eq!((answer.status, answer.body.as_str()), (200, "two/1"), "{answer:?}");
    }
    kill(frozen, Signal::CONT);
    until("it reads that what it was given is cancelled", || {
        demi.log().contains("heard of a cancelled request").then_some(())
    });
    until("it is asked again", || (demi.get("/two").body == "two/0").then_some(()));
    assert!(!demi.log().contains("nobody asked that"), "its late answers are in order");
}

/// Holds the second of two equal requests until it is let go.
struct Racer;

static RACERS: AtomicUsize = AtomicUsize::new(0);
static SECOND_MAY_GO: AtomicBool = AtomicBool::new(false);

impl PlatformTrait for Racer {
    fn initialize(&mut self, _: &Settings) -> Result<(), Fault> {
        Ok(())
    }

    fn handle_request(&mut self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Fault> {
        if request.text() == Some("race") {
            let is_first = RACERS.fetch_add(1, Ordering::SeqCst) == 0;
            until("the other runs as well, and this one may go", || {
                let both_run = RACERS.load(Ordering::SeqCst) >= 2;
                (both_run && (is_first || SECOND_MAY_GO.load(Ordering::SeqCst))).then_some(())
            });
            reply.text(if is_first { "first" } else { "second" });
        } else {
            reply.text(std::thread::current().name().unwrap_or_default());
        }
        Ok(())
    }
}

const ADAPTERS: [Adapter; 1] = [Adapter { name: "racer", make: || Box::new(Racer) }];

#[test]
fn a_thread_that_was_asked_second_and_outrun_takes_requests_again_once_it_lets_go() {
    let hosted = Hosted::start_with(
        &ADAPTERS,
        r#"platforms: [(name: "racer", host: Threads(2), wedged_ms: 3600000)],
        routes: [(to: "racer", hedge: true, idempotent: true, timeout_ms: 3600000)]"#,
    );
    let who_answers = |count: usize| {
        let mut names: Vec<String> = (0..count).map(|_| hosted.say("who").1).collect();
        names.sort();
        names.dedup();
        names
    };
    let is_ready = |index| hosted.instance("racer", index)["state"] == "ready";
    until("both are ready", || (is_ready(0) && is_ready(1)).then_some(()));
    assert_eq!(who_answers(WARM_UP), ["racer/0", "racer/1"]);
    // On a busy machine a second one was asked now and then, and it may not have let go yet: it is asked only if it is free.
    let is_free = |index| {
        let instance = hosted.instance("racer", index);
        instance["state"] == "ready" && instance["in_flight"] == 0
    };
    until("both are free", || (is_free(0) && is_free(1)).then_some(()));
    assert_eq!(hosted.say("race"), (200, "first".to_owned()));
    assert_eq!(who_answers(50).len(), 1, "one of them still holds what nobody waits for");
    SECOND_MAY_GO.store(true, Ordering::SeqCst);
    until("both take requests again", || (who_answers(10).len() == 2).then_some(()));
    assert_eq!(hosted.instance("racer", 0)["run"], 1);
    assert_eq!(hosted.instance("racer", 1)["run"], 1);
}
