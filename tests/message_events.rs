//! Streams of events that tell what becomes of messages: every end once, to whoever is there to hear it.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{json, Value};

use crate::client::{get, Client};
use crate::messages::{accepted, delivered, sections, with_platform, Recipient, STILL};
use crate::support::{until, Demi, Response, PATIENCE};

const ECHO: &str = "adapter: \"echo\"";

/// One event of a stream.
#[derive(Debug, PartialEq)]
struct Told {
    id: Option<String>,
    name: String,
    data: Value,
}

/// A client that follows.
struct Follower {
    client: Client,
    text: String,
}

fn ask(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n")
}

impl Follower {
    fn of(demi: &Demi, path: &str, headers: &str) -> Follower {
        let mut client = Client::of(demi);
        client.send(ask(path, headers));
        Follower::begun(client)
    }

    /// Has asked already.
    fn begun(mut client: Client) -> Follower {
        let head = client.head();
        assert_eq!((head.status, head.header("Content-Type")), (200, Some("text/event-stream")), "{head:?}");
        assert_eq!((head.header("Connection"), head.header("Cache-Control")), (Some("close"), Some("no-store")));
        Follower { client, text: String::new() }
    }

    /// What is told up to the next empty line; `None` at the end, which must be in order.
    fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block = self.text[..end].to_owned();
                self.text.drain(..end + 2);
                return Some(block);
            }
            let Some(chunk) = self.client.chunk() else {
                assert_eq!(self.text, "", "it ends within an event");
                self.client.expect_end();
                return None;
            };
            self.text.push_str(std::str::from_utf8(&chunk).expect("events are text"));
        }
    }

    /// The next event; comments and what has no data are passed over.
    fn next(&mut self) -> Option<Told> {
        let mut beats = 0;
        loop {
            let block = self.block()?;
            beats += usize::from(block == ":");
            assert!(beats < 3, "nothing is told any more");
            let field = |name: &str| {
                let value = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                value.map(str::to_owned)
            };
            let Some(data) = field("data") else { continue };
            let data = serde_json::from_str(&data).expect("data is JSON");
            return Some(Told { id: field("id"), name: field("event").expect("it has a name"), data });
        }
    }
}

fn gauge(demi: &Demi, name: &str) -> u64 {
    let page = demi.get("/metrics").body;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect("it is on the page").parse().expect("it is a number")
}

fn wait_for_streams(demi: &Demi, count: u64) {
    until("so many streams are open", || (gauge(demi, "demi_http_event_streams_open") == count).then_some(()));
}

#[test]
fn a_message_is_followed_from_the_queue_over_its_attempts_to_its_end() {
    let recipient = Recipient::start(|_, time| if time < 3 { 500 } else { 204 });
    let demi = with_platform("Http", &recipient.fields());
    assert_eq!(demi.post("/v1/platforms/m/isolate", "").status, 202);
    let id = accepted(&demi, &json!({"to": "m", "content": "a"}));
    let mut follower = Follower::of(&demi, &format!("/v1/messages/{id}/events"), "Accept: text/event-stream\r\n");
    let page = demi.json(&format!("/v1/messages/{id}"));
    assert_eq!(follower.next(), Some(Told { id: None, name: "queued".into(), data: page }));
    assert_eq!(demi.post("/v1/platforms/m/start", "").status, 202);
    for attempts in 1..=2 {
        let told = follower.next().expect("it goes on");
        assert_eq!((told.name.as_str(), &told.data["attempts"]), ("attempt", &json!(attempts)), "{told:?}");
        assert_eq!(told.data["last_error"], "it answered with status 500");
    }
    let end = follower.next().expect("it goes on");
    assert_eq!((end.name.as_str(), end.id.as_deref()), ("delivered", Some(id.as_str())));
    assert_eq!(end.data, demi.json(&format!("/v1/messages/{id}")), "the page says the same");
    assert_eq!(follower.next(), None);
}

#[test]
fn a_message_that_has_ended_is_told_at_once_and_not_twice() {
    let demi = with_platform("Process(1)", STILL);
    let id = accepted(&demi, &json!({"to": "m", "content": "late", "expires_after_ms": 1}));
    let path = format!("/v1/messages/{id}/events");
    let page = until("it has ended", || {
        let page = demi.json(&format!("/v1/messages/{id}"));
        (page["status"] == "dead").then_some(page)
    });
    let mut follower = Follower::of(&demi, &path, "");
    assert_eq!(follower.next(), Some(Told { id: Some(id.clone()), name: "dead".into(), data: page }));
    assert_eq!(follower.next(), None);
    let again = demi.raw(ask(&path, &format!("Connection: close\r\nLast-Event-ID: {id}\r\n")).as_bytes());
    assert_eq!(Response::parse(&again).status, 204, "whoever asks again was told");
    let old = demi.raw(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
    let old = Response::parse(&old);
    assert_eq!((old.status, old.header("Transfer-Encoding")), (200, None));
    assert!(
        old.body.starts_with(&format!("id: {id}\nevent: dead\ndata: {{")) && old.body.ends_with("}\n\n"),
        "{old:?}"
    );
    wait_for_streams(&demi, 0);
}

#[test]
fn what_is_no_question_for_a_stream_is_answered_as_such() {
    let demi = with_platform("Process(1)", STILL);
    let id = accepted(&demi, &json!({"to": "m", "content": "a"}));
    let one = format!("/v1/messages/{id}/events");
    let asked = |method: &str, path: &str, headers: &str| {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n");
        Response::parse(&demi.raw(head.as_bytes()))
    };
    for path in [one.as_str(), "/v1/messages/events"] {
        let head = asked("HEAD", path, "");
        assert_eq!((head.status, head.header("Content-Type")), (200, Some("text/event-stream")));
        assert_eq!(head.body, "");
        let posted = asked("POST", path, "Content-Length: 0\r\n");
        assert_eq!((posted.status, posted.header("Allow")), (405, Some("GET, HEAD")));
        let json = asked("GET", path, "Accept: application/json\r\n");
        assert_eq!((json.status, &json.json()["code"]), (406, &json!("not_acceptable")));
        let strange = asked("GET", path, "Sec-Fetch-Site: cross-site\r\n");
        assert_eq!((strange.status, &strange.json()["code"]), (403, &json!("cross_site")));
    }
    assert_eq!(asked("GET", "/v1/messages/7/events", "").status, 404);
    assert_eq!(asked("HEAD", "/v1/messages/7/events", "").status, 404);
    assert_eq!(asked("GET", "/v1/messages/x/events", "").status, 404);
    assert_eq!(asked("GET", "/v1/messages/events", "Last-Event-ID: x\r\n").status, 400);
    assert_eq!(gauge(&demi, "demi_http_event_streams_open"), 0);
}

#[test]
fn the_ends_of_all_messages_are_told_in_their_order_and_gone_on_with_after_a_cut_and_a_restart() {
    let mut demi = with_platform("Inline", ECHO);
    demi.wait_ready();
    let mut first = Follower::of(&demi, "/v1/messages/events", "");
    let from_start = first.block().expect("it begins with where it stands");
    assert_eq!(from_start, "id: 0");
    let ids: Vec<String> = (0..200).map(|_| accepted(&demi, &json!({"to": "m", "content": "a"}))).collect();
    let told: Vec<Told> = (0..200).map(|_| first.next().expect("it goes on")).collect();
    let number = |told: &Told| -> u64 { told.id.as_ref().and_then(|id| id.parse().ok()).expect("each has a number") };
    assert!(told.windows(2).all(|two| number(&two[0]) < number(&two[1])), "they count upwards");
    let mut messages: Vec<String> =
        told.iter().map(|told| told.data["id"].as_str().expect("it has one").into()).collect();
    messages.sort_by_key(|id| id.parse::<u64>().ok());
    assert_eq!(messages, ids, "each once");
    assert_eq!(told[7].data, demi.json(&format!("/v1/messages/{}", told[7].data["id"].as_str().expect("it is text"))));
    let after =
        |number: usize| format!("Last-Event-ID: {}\r\n", told[number].id.as_deref().expect("each has a number"));
    let rest = |demi: &Demi, header: &str, count: usize| -> (Follower, Vec<Told>) {
        let mut follower = Follower::of(demi, "/v1/messages/events", header);
        let rest = (0..count).map(|_| follower.next().expect("it goes on")).collect();
        (follower, rest)
    };
    assert_eq!(rest(&demi, &after(49), 150).1, told[50..]);
    assert_eq!(rest(&demi, "Last-Event-ID: 0\r\n", 200).1, told);
    demi.signal(Signal::TERM);
    demi.wait();
    let demi = Demi::start_in(Arc::clone(&demi.directory), "", &sections("Inline", ECHO));
    let (mut follower, again) = rest(&demi, &after(149), 50);
    assert_eq!(again, told[150..]);
    let id = accepted(&demi, &json!({"to": "m", "content": "b"}));
    let next = follower.next().expect("it goes on with what comes");
    assert_eq!(next.data["id"], id.as_str());
    let mut late = Follower::of(&demi, "/v1/messages/events", "");
    assert_eq!(late.block(), next.id.map(|number| format!("id: {number}")), "it knows where it came in");
}

/// Whether the end comes before, between or after the look-up and the beginning of the stream is left to chance.
#[test]
fn no_end_is_missed_however_it_meets_the_beginning_of_a_stream() {
    let demi = with_platform("Inline", ECHO);
    demi.wait_ready();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..60 {
                    let id = accepted(&demi, &json!({"to": "m", "content": "a"}));
                    let mut follower = Follower::of(&demi, &format!("/v1/messages/{id}/events"), "");
                    let mut told = Vec::new();
                    while let Some(event) = follower.next() {
                        told.push(event.name);
                    }
                    assert!(told == ["queued", "delivered"] || told == ["delivered"], "{told:?}");
                }
            });
        }
        // And one that comes and goes, each time after the end that it heard last.
        scope.spawn(|| {
            let mut last = "0".to_owned();
            for number in 1..=240 {
                let mut follower = Follower::of(&demi, "/v1/messages/events", &format!("Last-Event-ID: {last}\r\n"));
                let told = follower.next().unwrap_or_else(|| panic!("end {number} is missing"));
                last = told.id.expect("it has a number");
            }
        });
    });
}

#[test]
fn a_client_that_hangs_up_frees_its_place_for_another() {
    let demi = Demi::start_with_http("event_streams_max: 2", &sections("Process(1)", STILL));
    let id = accepted(&demi, &json!({"to": "m", "content": "a"}));
    let one = format!("/v1/messages/{id}/events");
    let all = "/v1/messages/events";
    let mut first = Follower::of(&demi, &one, "");
    let second = Follower::of(&demi, all, "");
    for path in [one.as_str(), all] {
        let refused = demi.get(path);
        assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("event_streams")));
        assert_eq!(refused.header("Retry-After"), Some("5"));
    }
    assert_eq!(gauge(&demi, "demi_http_event_streams_refused_total"), 2);
    drop(second);
    wait_for_streams(&demi, 1);
    let second = Follower::of(&demi, all, "Last-Event-ID: 0\r\n");
    assert_eq!(demi.get(all).status, 503);
    second.client.reset();
    wait_for_streams(&demi, 1);
    assert_eq!(first.next().map(|told| told.name).as_deref(), Some("queued"));
    first.client.finish_sending();
    assert_eq!(first.next(), None, "whoever sends no more has gone");
    wait_for_streams(&demi, 0);
}

#[test]
fn many_streams_are_each_told_all() {
    let demi = Demi::start_with_http("event_streams_max: 300", &sections("Inline", ECHO));
    demi.wait_ready();
    let mut followers: Vec<Follower> = (0..300).map(|_| Follower::of(&demi, "/v1/messages/events", "")).collect();
    let ids: Vec<String> = (0..5).map(|_| accepted(&demi, &json!({"to": "m", "content": "a"}))).collect();
    ids.iter().for_each(|id| drop(delivered(&demi, id)));
    let first: Vec<Told> = (0..5).map(|_| followers[0].next().expect("it goes on")).collect();
    for follower in &mut followers[1..] {
        assert_eq!((0..5).map(|_| follower.next().expect("it goes on")).collect::<Vec<Told>>(), first);
    }
    drop(followers);
    wait_for_streams(&demi, 0);
}

/// Whose system takes as little as it can.
fn narrow(demi: &Demi) -> TcpStream {
    use rustix::net::{socket_with, sockopt, AddressFamily, SocketFlags, SocketType};
    // What other tests start at that moment must not hold it as well.
    let kept = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, kept, None).expect("there are descriptors");
    sockopt::set_socket_recv_buffer_size(&socket, 1).expect("a socket option can be set");
    rustix::net::connect(&socket, &demi.address).expect("Demi accepts");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    stream
}

#[test]
fn a_client_that_does_not_take_its_events_is_cut_off_and_the_others_are_told_all() {
    const MESSAGES: usize = 1500;
    let demi = Demi::start_with_http("body_timeout_ms: 3600000", &sections("Inline", ECHO));
    demi.wait_ready();
    let mut slow = narrow(&demi);
    slow.write_all(get("/v1/messages/events").as_bytes()).expect("Demi reads");
    wait_for_streams(&demi, 1);
    let mut quick = Follower::of(&demi, "/v1/messages/events", "");
    std::thread::scope(|scope| {
        for _ in 0..15 {
            scope.spawn(|| {
                let mut client = Client::of(&demi);
                for _ in 0..MESSAGES / 15 {
                    client.send(crate::client::post("/v1/messages", r#"{"to":"m","content":"a"}"#));
                    assert_eq!(client.answer().status, 202);
                }
            });
        }
        (0..MESSAGES).for_each(|number| assert!(quick.next().is_some(), "end {number} is missing"));
    });
    wait_for_streams(&demi, 1);
    assert_eq!(gauge(&demi, "demi_http_event_streams_cut_off_total"), 1);
    let text = String::from_utf8_lossy(&Follower::rest(slow)).into_owned();
    assert!(text.contains("event: delivered") && !text.ends_with("0\r\n\r\n"), "it is no whole answer");
    // What was cut off is still there for whoever says where that was.
    let numbers = text.split("id: ").skip(1).filter_map(|rest| rest.split_once('\n')?.0.parse::<u64>().ok());
    let last = numbers.last().expect("it was told some");
    let mut again = Follower::of(&demi, "/v1/messages/events", &format!("Last-Event-ID: {last}\r\n"));
    assert!(again.next().and_then(|told| told.id?.parse::<u64>().ok()).is_some_and(|next| next > last));
}

impl Follower {
    /// All that is left of a stream that was cut off.
    fn rest(mut stream: TcpStream) -> Vec<u8> {
        use std::io::Read;
        let mut bytes = Vec::new();
        // A reset is as good as an end.
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }
}

#[test]
fn streams_end_in_order_when_demi_does_and_hold_nothing_up() {
    let sections = format!("{}, shutdown: (grace_ms: 3600000)", sections("Process(1)", STILL));
    let mut demi = Demi::start(&sections);
    let id = accepted(&demi, &json!({"to": "m", "content": "a"}));
    let mut one = Follower::of(&demi, &format!("/v1/messages/{id}/events"), "");
    let mut all = Follower::of(&demi, "/v1/messages/events", "");
    let silent = Follower::of(&demi, "/v1/messages/events", "");
    assert_eq!(one.next().map(|told| told.name).as_deref(), Some("queued"));
    demi.signal(Signal::TERM);
    assert_eq!((one.next(), all.next()), (None, None));
    assert_eq!(demi.wait().code(), Some(0));
    drop(silent);
}
