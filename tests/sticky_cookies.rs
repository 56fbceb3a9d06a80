//! Cookies that keep a client with the instance that it met first.

use std::collections::BTreeSet;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use crate::client::Client;
use crate::proxying::{Peer, Upstream};
use crate::support::{until, Demi, Nowhere, Response};

/// Demi before services, to which `/up` leads, with these fields of the platform besides.
fn before(addresses: &[SocketAddr], fields: &str) -> Demi {
    let addresses: Vec<String> = addresses.iter().map(|address| format!("{address:?}")).collect();
    let upstreams = addresses.iter().map(|address| format!("\"{address}\"")).collect::<Vec<String>>().join(", ");
    let demi = Demi::start(&format!(
        r#"platforms: [(
            name: "up", host: Http, upstreams: [{upstreams}], balance: Sticky, sticky_cookie: "demi_session", {fields}
        )],
        routes: [(path: "/up/*", to: "up", retries: 2)],"#
    ));
    // Until they all are, a key may belong to another.
    demi.wait_all_ready();
    demi
}

/// Two services that say which they are and what they were sent.
fn telling() -> [Upstream; 2] {
    ["one", "other"].map(|name| {
        Upstream::start(move |peer| {
            while let Some((head, _)) = peer.request() {
                peer.answer(&format!("{name}\n{head}"));
            }
        })
    })
}

fn ask(demi: &Demi, method: &str, path: &str, headers: &str) -> Response {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n");
    Response::parse(&demi.raw(head.as_bytes()))
}

/// The value of the cookie that an answer gives.
fn given(answer: &Response) -> String {
    let cookie = answer.header("Set-Cookie").unwrap_or_else(|| panic!("it gives a cookie: {answer:?}"));
    let value = cookie.strip_prefix("demi_session=").and_then(|rest| rest.split(';').next());
    value.expect("it is the cookie of the platform").to_owned()
}

fn instance(answer: &Response) -> String {
    answer.header("Demi-Instance").unwrap_or_else(|| panic!("who answered is told: {answer:?}")).to_owned()
}

#[test]
fn a_client_stays_with_the_instance_that_it_met_first_and_the_service_does_not_see_why() {
    let services = telling();
    let demi = before(&[services[0].address, services[1].address], "");
    let mut met = BTreeSet::new();
    for _ in 0..20 {
        let first = ask(&demi, "GET", "/up/x", "Cookie: a=1\r\n");
        let key = given(&first);
        let rest = first.header("Set-Cookie").and_then(|cookie| cookie.split_once("; ")).map(|(_, rest)| rest);
        assert_eq!(rest, Some("Path=/; HttpOnly; SameSite=Lax"));
        met.insert(instance(&first));
        for _ in 0..5 {
            let again = ask(&demi, "GET", "/up/x", &format!("Cookie: a=1; demi_session={key}; b=\"2\"\r\n"));
            assert_eq!((instance(&again), again.header("Set-Cookie")), (instance(&first), None));
            assert!(again.body.contains("\r\nCookie: a=1; b=\"2\"\r\n"), "{}", again.body);
            assert!(!again.body.contains(&key) && !again.body.contains("demi_session"), "{}", again.body);
        }
    }
    assert_eq!(met.len(), 2, "all clients are with one");
    let odd = ask(&demi, "GET", "/up/x", "Cookie: demi_session=mine\r\n");
    assert!(given(&odd).len() == 32 && !odd.body.contains("demi_session"), "{odd:?}");
}

#[test]
fn whoever_says_where_it_belongs_gets_no_cookie_and_its_own_key_wins() {
    let services = telling();
    let demi = before(&[services[0].address, services[1].address], "");
    let by_key = |key: usize, cookie: &str| {
        let answer = ask(&demi, "GET", "/up/x", &format!("Demi-Key: user {key}\r\n{cookie}"));
        assert_eq!(answer.header("Set-Cookie"), None, "{answer:?}");
        assert!(!answer.body.contains("demi_session"), "{}", answer.body);
        instance(&answer)
    };
    let cookie = format!("Cookie: demi_session={}\r\n", given(&ask(&demi, "GET", "/up/x", "")));
    let alone: Vec<String> = (0..20).map(|key| by_key(key, "")).collect();
    assert_eq!((0..20).map(|key| by_key(key, &cookie)).collect::<Vec<String>>(), alone);
    assert!(alone.iter().any(|other| *other != alone[0]), "all keys are with {}", alone[0]);
    let message = demi.post("/v1/requests", r#"{"to":"up"}"#);
    assert_eq!((message.status, message.header("Set-Cookie")), (200, None), "a message has a `key`");
}

/// Answers as the path says.
fn answers(peer: &mut Peer) {
    while let Some((head, _)) = peer.request() {
        match head.split(' ').nth(1).expect("it has a path") {
            "/up/head" => peer.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
            "/up/stream" => {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n");
                peer.send(format!("{:x}\r\n{}\r\n0\r\n\r\n", 100_000, "x".repeat(100_000)));
            }
            "/up/failed" => peer.send("HTTP/1.1 500 Oops\r\nContent-Length: 1\r\nSet-Cookie: own=1\r\n\r\nx"),
            "/up/busy" => peer.send("HTTP/1.1 429 Busy\r\nRetry-After: 60\r\nContent-Length: 1\r\n\r\nx"),
            "/up/missing" => peer.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
            "/up/same" => peer.send("HTTP/1.1 304 Not Modified\r\n\r\n"),
            "/up/tunnel" => {
                peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n");
                return peer.wait_for_end();
            }
            _ => return,
        }
    }
}

#[test]
fn every_answer_of_a_service_gives_the_cookie_and_no_page_of_demi_does() {
    let upstream = Upstream::start(answers);
    let demi =
        before(&[upstream.address], "sticky_cookie_max_age_s: 60, breaker: (failures: 1000, failure_percent: 0)");
    for (method, path, status) in [
        ("HEAD", "/up/head", 200),
        ("GET", "/up/stream", 200),
        ("GET", "/up/failed", 500),
        ("GET", "/up/busy", 429),
        ("GET", "/up/missing", 404),
        ("GET", "/up/same", 304),
    ] {
        let answer = ask(&demi, method, path, "X-Forwarded-Proto: https\r\n");
        assert_eq!(answer.status, status, "{answer:?}");
        let expected =
            format!("Set-Cookie: demi_session={}; Path=/; HttpOnly; SameSite=Lax; Max-Age=60; Secure", "0".repeat(32));
        let ours = answer.head.lines().filter(|line| line.starts_with("Set-Cookie: demi_session="));
        assert_eq!(ours.map(str::len).collect::<Vec<usize>>(), [expected.len()], "{path}: {answer:?}");
        assert!(answer.head.contains("\r\nCache-Control: private\r\n"), "{path}: {answer:?}");
        assert_eq!(answer.head.contains("\r\nSet-Cookie: own=1"), path == "/up/failed", "{path}: {answer:?}");
    }
    let mut client = Client::of(&demi);
    client.send("GET /up/tunnel HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n");
    let head = client.head();
    assert_eq!(head.status, 101);
    given(&head);
    for (path, status) in [("/up/broken", 502), ("/up/../x", 400), ("/nowhere", 404), ("/v1/status", 200)] {
        let method = if status == 200 { "GET" } else { "POST" };
        let answer = ask(&demi, method, path, "Content-Length: 0\r\n");
        assert_eq!((answer.status, answer.header("Set-Cookie")), (status, None), "{path}");
    }
}

/// A service that can end and come back at the same address.
struct Mortal {
    address: SocketAddr,
    is_over: Arc<Mutex<bool>>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    thread: std::thread::JoinHandle<()>,
}

impl Mortal {
    fn start(place: &Nowhere) -> Mortal {
        let (listener, address) = (place.listen(128), place.address);
        let (is_over, streams) = (Arc::new(Mutex::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (over, kept) = (Arc::clone(&is_over), Arc::clone(&streams));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if *over.lock().expect("nobody panics with it") {
                    return;
                }
                kept.lock().expect("nobody panics with it").push(stream.try_clone().expect("there are descriptors"));
                std::thread::spawn(move || serve(stream));
            }
        });
        Mortal { address, is_over, streams, thread }
    }

    /// Ends: connections are closed and no more taken.
    fn die(self) {
        *self.is_over.lock().expect("nobody panics with it") = true;
        // It looks up at its next connection.
        drop(TcpStream::connect(self.address));
        self.thread.join().expect("it ends");
        for stream in self.streams.lock().expect("nobody panics with it").drain(..) {
            // One that was closed before cannot be shut.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn serve(mut stream: TcpStream) {
    use std::io::{Read, Write};
    let mut bytes = [0; 4096];
    while matches!(stream.read(&mut bytes), Ok(1..)) {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
}

#[test]
fn a_client_goes_on_elsewhere_while_its_instance_is_gone_and_then_comes_back() {
    let places = [Nowhere::new(), Nowhere::new()];
    let mut services: Vec<Option<Mortal>> = places.iter().map(|place| Some(Mortal::start(place))).collect();
    let addresses: Vec<SocketAddr> = places.iter().map(|place| place.address).collect();
    let health = "health: (interval_ms: 20, doubt_interval_ms: 20, down_interval_ms: 20, fall: 1, rise: 1)";
    let demi = before(&addresses, &format!("{health}, breaker: (open_ms: 20, open_max_ms: 20)"));
    let first = ask(&demi, "GET", "/up/x", "");
    let cookie = format!("Cookie: demi_session={}\r\n", given(&first));
    let home = instance(&first);
    let index: usize = home.rsplit('/').next().and_then(|index| index.parse().ok()).expect("it is one of the two");
    services[index].take().expect("it runs").die();
    let elsewhere = format!("up/{}", 1 - index);
    for _ in 0..10 {
        let answer = ask(&demi, "GET", "/up/x", &cookie);
        assert_eq!((answer.status, answer.header("Set-Cookie")), (200, None), "{answer:?}");
        assert_eq!(instance(&answer), elsewhere);
    }
    services[index] = Some(Mortal::start(&places[index]));
    until("it is back where it was", || (instance(&ask(&demi, "GET", "/up/x", &cookie)) == home).then_some(()));
    assert_eq!(instance(&ask(&demi, "GET", "/up/x", &cookie)), home);
}
