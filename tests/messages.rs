//! Messages for whose answer nobody waits: once acknowledged they end, delivered or as dead letters, whatever comes between.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::{json, Value};

use crate::support::{misbehaving, until, Demi, Response, PATIENCE};

const QUICK: &str = "posts: (base_ms: 1, max_ms: 10)";

/// Demi with a platform `m` of this host and these fields.
pub fn with_platform(host: &str, fields: &str) -> Demi {
    Demi::start(&sections(host, fields))
}

pub fn sections(host: &str, fields: &str) -> String {
    format!("{QUICK}, platforms: [(name: \"m\", host: {host}, {fields})], routes: [(kind: \"m\", to: \"m\")]")
}

/// An echoing child that is not started unless it is told to.
pub const STILL: &str = r#"command: ["{demi}", "plugin", "serve", "echo"], start: Manual"#;

pub fn post(demi: &Demi, message: &Value) -> Response {
    demi.post("/v1/messages", &message.to_string())
}

/// Posts it and returns its id.
pub fn accepted(demi: &Demi, message: &Value) -> String {
    let response = post(demi, message);
    assert_eq!((response.status, &response.json()["status"]), (202, &json!("queued")), "{response:?}");
    let id = response.json()["id"].as_str().expect("an id is a text").to_owned();
    assert_eq!(response.header("Location"), Some(format!("/v1/messages/{id}").as_str()));
    id
}

/// Waits until a message has ended, and returns what is known of it.
fn ended(demi: &Demi, id: &str) -> Value {
    until("the message has ended", || {
        let page = demi.json(&format!("/v1/messages/{id}"));
        (page["status"] != "queued").then_some(page)
    })
}

pub fn delivered(demi: &Demi, id: &str) -> Value {
    let page = ended(demi, id);
    assert_eq!(page["status"], "delivered", "{page}");
    page
}

fn dead(demi: &Demi, id: &str, reason: &str) -> Value {
    let page = ended(demi, id);
    assert_eq!((&page["status"], &page["reason"]), (&json!("dead"), &json!(reason)), "{page}");
    let letter = demi.json(&format!("/v1/dead-letters/{}", page["dead_letter"]));
    assert_eq!((&letter["reason"], &letter["platform"]), (&json!(reason), &json!("m")), "{letter}");
    let metrics = demi.get("/metrics").body;
    assert!(metrics.contains(&format!("\ndemi_posts_total{{result=\"{reason}\"}} 1\n")), "{metrics}");
    page
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_millis() as u64
}

/// An HTTP service that writes down what it gets: the number of each message and its body.
pub struct Recipient {
    address: SocketAddr,
    got: Arc<Mutex<Vec<(String, String)>>>,
}

impl Recipient {
    /// `status` says how it answers a body that comes for the so-manieth time, from 1.
    pub fn start(status: impl Fn(&str, usize) -> u16 + Send + Sync + 'static) -> Recipient {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let got = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&got);
        let status = Arc::new(status);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (notes, status) = (Arc::clone(&notes), Arc::clone(&status));
                std::thread::spawn(move || serve(&stream, &notes, &*status));
            }
        });
        Recipient { address, got }
    }

    pub fn fields(&self) -> String {
        format!("upstreams: [\"{}\"]", self.address)
    }

    fn bodies(&self) -> Vec<String> {
        self.got.lock().expect("nobody panics with it").iter().map(|(_, body)| body.clone()).collect()
    }
}

fn serve(stream: &TcpStream, notes: &Mutex<Vec<(String, String)>>, status: &dyn Fn(&str, usize) -> u16) {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let (mut length, mut number) = (0, String::new());
        loop {
            let mut line = String::new();
            if !matches!(reader.read_line(&mut line), Ok(1..)) {
                return;
            }
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().expect("a length is a number");
                }
                Some((name, value)) if name.eq_ignore_ascii_case("demi-message") => number = value.to_owned(),
                Some(_) => {}
                None if line.trim_end().is_empty() => break,
                None => {}
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let body = String::from_utf8(body).expect("the test sends text");
        // Demi looks by itself whether the service is there: that is no message.
        let status = if number.is_empty() {
            200
        } else {
            let mut notes = notes.lock().expect("nobody panics with it");
            notes.push((number, body.clone()));
            status(&body, notes.iter().filter(|(_, other)| *other == body).count())
        };
        if write!(writer, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").is_err() {
            return;
        }
    }
}

#[test]
fn a_message_is_acknowledged_and_then_delivered() {
    let demi = with_platform("Inline", "adapter: \"echo\"");
    for message in [json!({"kind": "m", "content": "by rule"}), json!({"to": "m", "json": {"by": "name"}})] {
        let page = delivered(&demi, &accepted(&demi, &message));
        assert_eq!(
            (&page["answer"], &page["attempts"]),
            (&json!({"status": 200, "instance": "m/0"}), &json!(1)),
            "{page}"
        );
        assert!(page["unix_ms"].as_u64() > Some(1_600_000_000_000), "{page}");
    }
    until("they are counted", || {
        let metrics = demi.get("/metrics").body;
        let counts = ["queued 0", "total{result=\"accepted\"} 2", "total{result=\"delivered\"} 2"];
        counts.iter().all(|count| metrics.contains(&format!("\ndemi_posts_{count}\n"))).then_some(())
    });
    for (path, status) in [("/v1/messages/3", 404), ("/v1/messages/x", 404), ("/v1/messages", 405)] {
        assert_eq!(demi.get(path).status, status, "{path}");
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill_of_demi_and_is_delivered() {
    let mut demi = with_platform("Process(1)", STILL);
    let long = "x".repeat(5_000);
    let messages: Vec<(String, &str)> = (0..20)
        .map(|number| {
            let (to, text) = if number % 2 == 0 { ("m", long.as_str()) } else { ("", "short") };
            (accepted(&demi, &json!({"to": to, "kind": "m", "content": text, "key": "k"})), text)
        })
        .collect();
    demi.signal(Signal::KILL);
    demi.wait();

    let recipient = Recipient::start(|_, _| 204);
    let demi = Demi::start_in(Arc::clone(&demi.directory), "", &sections("Http", &recipient.fields()));
    for (id, _) in &messages {
        let page = delivered(&demi, id);
        assert_eq!(page["answer"]["status"], 204, "{page}");
    }
    let expected: Vec<(String, String)> = messages.into_iter().map(|(id, text)| (id, text.to_owned())).collect();
    assert_eq!(*recipient.got.lock().expect("nobody panics with it"), expected, "in the order of their conversation");
}

#[test]
fn messages_of_one_conversation_are_delivered_in_their_order_though_the_first_fails_at_first() {
    let recipient = Recipient::start(|body, time| if body == "1" && time == 1 { 500 } else { 200 });
    let demi = with_platform("Http", &recipient.fields());
    demi.wait_ready();
    let ids: Vec<String> =
        (1..=5).map(|number| accepted(&demi, &json!({"to": "m", "content": number.to_string(), "key": "k"}))).collect();
    assert_eq!(delivered(&demi, &ids[0])["attempts"], 2);
    ids.iter().for_each(|id| drop(delivered(&demi, id)));
    assert_eq!(recipient.bodies(), ["1", "1", "2", "3", "4", "5"]);
}

#[test]
fn a_message_whose_time_is_up_becomes_a_dead_letter() {
    let demi = with_platform("Process(1)", STILL);
    let id = accepted(&demi, &json!({"to": "m", "content": "late", "expires_after_ms": 1}));
    let page = dead(&demi, &id, "expired");
    let letter = demi.json(&format!("/v1/dead-letters/{}", page["dead_letter"]));
    assert_eq!(letter["body"], "late", "{letter}");
}

#[test]
fn a_route_says_how_old_its_messages_may_be_unless_they_say_so_themselves() {
    let sections = sections("Process(1)", STILL).replace("to: \"m\"", "to: \"m\", message_ttl_ms: 1");
    let demi = Demi::start(&sections);
    let patient = accepted(&demi, &json!({"kind": "m", "content": "a", "expires_after_ms": 3_600_000}));
    let named = accepted(&demi, &json!({"to": "m", "content": "b"}));
    let id = accepted(&demi, &json!({"kind": "m", "content": "c", "delay_ms": 50}));
    dead(&demi, &id, "expired");
    assert_eq!(demi.post("/v1/platforms/m/start", "").status, 202);
    delivered(&demi, &patient);
    delivered(&demi, &named);
}

#[test]
fn a_message_that_the_platform_says_is_at_fault_is_tried_once() {
    let demi = with_platform("Process(1)", &format!("command: [{:?}, \"asks\"]", misbehaving()));
    let page = dead(&demi, &accepted(&demi, &json!({"to": "m", "content": "dance"})), "rejected");
    assert_eq!(page["attempts"], 1, "{page}");
    let letter = demi.json(&format!("/v1/dead-letters/{}", page["dead_letter"]));
    assert!(letter["first_error"].as_str().is_some_and(|error| error.contains("nothing to ask")), "{letter}");
}

#[test]
fn a_message_of_which_two_instances_die_is_poison() {
    let demi = with_platform("Process(1)", &format!("command: [{:?}, \"dies-on-request\"]", misbehaving()));
    let page = dead(&demi, &accepted(&demi, &json!({"to": "m", "content": "drink me"})), "poison");
    assert_eq!(page["attempts"], 2, "{page}");
}

#[test]
fn what_a_message_did_before_demi_was_killed_counts_after_it() {
    let fields = format!("command: [{:?}, \"dies-on-request\"]", misbehaving());
    // The second attempt is a long while off.
    let patient = sections("Process(1)", &fields).replace(QUICK, "posts: (base_ms: 3600000, max_ms: 3600000)");
    let mut demi = Demi::start(&patient);
    let id = accepted(&demi, &json!({"to": "m", "content": "drink me"}));
    until("it has killed an instance", || {
        let page = demi.json(&format!("/v1/messages/{id}"));
        (page["attempts"] == 1).then_some(())
    });
    demi.signal(Signal::KILL);
    demi.wait();
    let demi = Demi::start_in(Arc::clone(&demi.directory), "", &sections("Process(1)", &fields));
    let page = dead(&demi, &id, "poison");
    assert_eq!(page["attempts"], 2, "{page}");
}

#[test]
fn a_message_that_cannot_be_read_any_more_is_a_dead_letter_that_says_so() {
    let mut demi = with_platform("Process(1)", STILL);
    let long = "x".repeat(5_000);
    let ids: Vec<String> = (0..2).map(|_| accepted(&demi, &json!({"to": "m", "content": long}))).collect();
    let file = |id: &str| demi.directory.path().join("data/db/posts").join(id);
    let lose = |id: &str| std::fs::remove_file(file(id)).expect("a long message has a file");
    // While Demi runs, and while it does not.
    lose(&ids[0]);
    assert_eq!(demi.post("/v1/platforms/m/start", "").status, 202);
    dead(&demi, &ids[0], "damaged");
    delivered(&demi, &ids[1]);
    assert_eq!(demi.post("/v1/platforms/m/stop", "").status, 202);
    let id = accepted(&demi, &json!({"to": "m", "content": long}));
    let file = file(&id);
    demi.signal(Signal::KILL);
    demi.wait();
    std::fs::remove_file(file).expect("a long message has a file");
    let demi = Demi::start_in(Arc::clone(&demi.directory), "", &sections("Process(1)", STILL));
    let page = dead(&demi, &id, "damaged");
    let letter = demi.json(&format!("/v1/dead-letters/{}", page["dead_letter"]));
    assert!(letter["last_error"].as_str().is_some_and(|error| error.contains("is gone")), "{letter}");
    let refusal = demi.post(&format!("/v1/dead-letters/{}/replay", page["dead_letter"]), "");
    assert_eq!((refusal.status, &refusal.json()["code"]), (409, &json!("remains")), "{refusal:?}");
    assert_eq!(demi.post("/v1/dead-letters/replay", "").json()["replaying"], json!([]), "there is nothing to send");
}

#[test]
fn dead_messages_of_one_conversation_are_replayed_in_the_order_in_which_they_were_taken_in() {
    let (go, gone) = channel::<()>();
    let gone = Mutex::new(gone);
    let recipient = Recipient::start(move |body, time| {
        if (body, time) == ("a", 2) {
            let _ = gone.lock().expect("nobody panics with it").recv_timeout(PATIENCE);
        }
        if body == "a" && time <= 2 {
            500
        } else {
            200
        }
    });
    let sections = sections("Http", &recipient.fields()).replace("max_ms: 10", "max_ms: 10, attempts_max: 2");
    let demi = Demi::start(&sections);
    demi.wait_ready();
    let first = accepted(&demi, &json!({"to": "m", "content": "a", "key": "k"}));
    // Its time is up while the first is tried again.
    let second = accepted(&demi, &json!({"to": "m", "content": "b", "key": "k", "expires_after_ms": 1}));
    assert_eq!(ended(&demi, &second)["dead_letter"], 1);
    go.send(()).expect("the recipient waits");
    assert_eq!(ended(&demi, &first)["dead_letter"], 2);
    demi.post("/v1/dead-letters/replay", "");
    let got = until("both are delivered", || Some(recipient.bodies()).filter(|bodies| bodies.len() == 4));
    assert_eq!(got, ["a", "a", "a", "b"]);
}

#[test]
fn dead_messages_of_one_conversation_are_replayed_in_their_order_and_stop_at_one_that_fails_again() {
    // At first each is at fault, and "a" fails once more.
    let recipient = Recipient::start(|body, time| match (body, time) {
        (_, 1) => 400,
        ("a", 2) => 500,
        (_, _) => 200,
    });
    let demi = with_platform("Http", &recipient.fields());
    demi.wait_ready();
    let keyed = |body: &str| accepted(&demi, &json!({"to": "m", "content": body, "key": "k"}));
    let ids: Vec<String> = ["a", "b", "c"].map(keyed).into();
    ids.iter().for_each(|id| assert_eq!(ended(&demi, id)["reason"], "rejected"));
    let alone = accepted(&demi, &json!({"to": "m", "content": "d"}));
    ended(&demi, &alone);
    // A store that is busy lists none and says so.
    let listed = || demi.json("/v1/dead-letters")["dead_letters"].as_array().map(Vec::len);
    let left = || until("they are listed", listed);
    let replay = || demi.post("/v1/dead-letters/replay", "").json()["replaying"].as_array().map(Vec::len);
    assert_eq!((left(), replay()), (4, Some(4)));
    until("d is delivered and a is marked", || {
        (left() == 3 && demi.json("/v1/dead-letters/1")["replays"] == 1).then_some(())
    });
    assert_eq!(demi.json("/v1/dead-letters/2")["replays"], 0, "it was not tried");
    assert_eq!(replay(), Some(3));
    until("they are delivered", || (left() == 0).then_some(()));
    let mut got: Vec<(String, String)> = recipient.got.lock().expect("nobody panics with it").split_off(4);
    got.retain(|(_, body)| body != "d");
    let expected: Vec<(String, String)> =
        [0, 0, 1, 2].map(|at: usize| (ids[at].clone(), ["a", "b", "c"][at].to_owned())).into();
    assert_eq!(got, expected, "each with the number that it had as a message");
}

#[test]
fn a_message_that_fails_each_time_is_a_dead_letter_after_the_last_attempt() {
    let recipient = Recipient::start(|_, _| 500);
    let demi = Demi::start(&sections("Http", &recipient.fields()).replace("max_ms: 10", "max_ms: 10, attempts_max: 2"));
    let page = dead(&demi, &accepted(&demi, &json!({"to": "m", "content": "a"})), "failed");
    assert_eq!(page["attempts"], 2, "{page}");
    assert_eq!(recipient.bodies(), ["a", "a"]);
}

#[test]
fn the_same_idempotency_key_means_the_same_message_and_with_another_body_a_mistake() {
    let recipient = Recipient::start(|_, _| 200);
    let demi = with_platform("Http", &recipient.fields());
    demi.wait_ready();
    let keyed = |text: &str| {
        let body = json!({"to": "m", "content": text}).to_string();
        let length = body.len();
        let head = "POST /v1/messages HTTP/1.1\r\nHost: test\r\nConnection: close\r\nIdempotency-Key: once\r\n";
        Response::parse(&demi.raw(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes()))
    };
    let first = keyed("a");
    assert_eq!(first.status, 202, "{first:?}");
    let again = keyed("a");
    assert_eq!((again.status, &again.body), (202, &first.body));
    delivered(&demi, first.json()["id"].as_str().expect("an id is a text"));
    let late = keyed("a");
    assert_eq!((late.status, &late.body, late.header("Location")), (202, &first.body, first.header("Location")));
    let other = keyed("b");
    assert_eq!((other.status, &other.json()["code"]), (409, &json!("idempotency_key")), "{other:?}");
    // One more that has gone the same way after them says that nothing is on its way any more.
    delivered(&demi, &accepted(&demi, &json!({"to": "m", "content": "c"})));
    assert_eq!(recipient.bodies(), ["a", "c"]);
}

#[test]
fn messages_wait_for_a_platform_that_is_stopped_and_that_is_no_attempt() {
    let demi = with_platform("Process(1)", STILL);
    let ids: Vec<String> = (0..3).map(|_| accepted(&demi, &json!({"to": "m", "content": "a"}))).collect();
    for id in &ids {
        let page = demi.json(&format!("/v1/messages/{id}"));
        assert_eq!((&page["status"], &page["attempts"], &page["platform"]), (&json!("queued"), &json!(0), &json!("m")));
    }
    assert!(demi.get("/metrics").body.contains("\ndemi_posts_queued 3\n"));
    assert_eq!(demi.post("/v1/platforms/m/start", "").status, 202);
    for id in &ids {
        assert_eq!(delivered(&demi, id)["attempts"], 1);
    }
    assert_eq!(demi.post("/v1/platforms/m/isolate", "").status, 202);
    let id = accepted(&demi, &json!({"to": "m", "content": "b"}));
    assert_eq!(demi.json(&format!("/v1/messages/{id}"))["status"], "queued");
    assert_eq!(demi.post("/v1/platforms/m/start", "").status, 202);
    assert_eq!(delivered(&demi, &id)["attempts"], 1);
}

#[test]
fn a_message_is_not_delivered_before_its_time() {
    let demi = with_platform("Inline", "adapter: \"echo\"");
    let before = now_ms();
    let late = accepted(&demi, &json!({"to": "m", "content": "a", "delay_ms": 300}));
    let later = accepted(&demi, &json!({"to": "m", "content": "a", "not_before": before + 400}));
    for (id, wait) in [(late, 300), (later, 400)] {
        let page = delivered(&demi, &id);
        // The two clocks are read at different moments, and one of them in whole milliseconds.
        assert!(page["unix_ms"].as_u64() >= Some(before + wait - 2), "{page} after {before}");
    }
}

#[test]
fn what_leads_nowhere_or_cannot_be_kept_is_not_acknowledged() {
    let sections = sections("Process(1)", STILL).replace("base_ms: 1", "base_ms: 1, queue_max: 1");
    let mut demi = Demi::start(&sections);
    for message in [json!({"kind": "other"}), json!({"to": "nobody"})] {
        let response = post(&demi, &message);
        assert_eq!(response.status, 404, "{response:?}");
    }
    assert!(demi.get("/metrics").body.contains("\ndemi_posts_queued 0\n"));
    accepted(&demi, &json!({"to": "m", "content": "a"}));
    for _ in 0..2 {
        let response = post(&demi, &json!({"to": "m", "content": "b"}));
        assert_eq!((response.status, &response.json()["code"]), (507, &json!("queue_full")), "{response:?}");
        assert!(response.body.contains("posts.queue_max"), "{response:?}");
    }
    demi.signal(Signal::TERM);
    demi.wait();
    assert_eq!(demi.log().matches("messages are refused").count(), 1, "it is told once");
}
