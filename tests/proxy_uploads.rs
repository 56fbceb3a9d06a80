//! Bodies that are passed on to services as they come.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::client::{post, post_chunked, Client};
use crate::proxying::{Peer, Upstream};
use crate::support::{until, Demi, Nowhere, PATIENCE};

/// Demi before these services, to which `/up` leads; `/echo` leads to an adapter that takes whole bodies only.
fn before(addresses: &[SocketAddr], http: &str, route: &str) -> Demi {
    let upstreams: String = addresses.iter().map(|address| format!("\"{address}\",")).collect();
    let demi = Demi::start_with_http(
        http,
        &format!(
            r#"health: (interval_ms: 50, doubt_interval_ms: 20, down_interval_ms: 20, timeout_ms: 2000),
            breaker: (failures: 1000, failure_percent: 0),
            platforms: [(name: "up", host: Http, upstreams: [{upstreams}]), (name: "echo", host: Inline)],
            routes: [(path: "/up/*", to: "up", {route}), (path: "/echo/*", to: "echo")]"#
        ),
    );
    demi.wait_ready();
    demi
}

/// A service that does as the test says once the head of a request is there, and one thing that it tells.
fn serving<T: Send + 'static>(
    serve: impl Fn(&mut Peer, &str) -> Option<T> + Send + Sync + 'static,
) -> (Upstream, Receiver<T>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let upstream = Upstream::start(move |peer| {
        while let Some(head) = peer.head() {
            if let Some(news) = serve(peer, &head) {
                // A test that has seen enough listens no more.
                let _ = tell.lock().expect("no thread panics here").send(news);
            }
        }
    });
    (upstream, told)
}

fn byte(at: usize) -> u8 {
    (at * 7 + at / 251) as u8
}

fn head_with_length(path: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n")
}

const CHUNKED: &str = "POST /up/x HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(payload: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat()
}

/// Reads a body to its end, however it is framed; how much of it there was, and whether it was whole.
fn drain(peer: &mut Peer, head: &str) -> (usize, bool) {
    let mut count = 0;
    match head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok()) {
        Some(length) => {
            while count < length {
                let Some(bytes) = peer.some(length - count) else { return (count, false) };
                assert!(bytes.iter().enumerate().all(|(more, seen)| *seen == byte(count + more)), "at {count}");
                count += bytes.len();
            }
        }
        None => loop {
            match peer.chunk() {
                None => return (count, false),
                Some(None) => {
                    return (count, peer.trailers().is_some());
                }
                Some(Some(chunk)) => {
                    assert!(chunk.iter().enumerate().all(|(more, seen)| *seen == byte(count + more)), "at {count}");
                    count += chunk.len();
                }
            }
        },
    }
    (count, true)
}

/// A service that reads bodies, answers how long they were, and tells whether they were whole.
fn reading() -> (Upstream, Receiver<(usize, bool)>) {
    serving(|peer, head| {
        let (count, is_whole) = drain(peer, head);
        if is_whole {
            peer.answer(&count.to_string());
        }
        Some((count, is_whole))
    })
}

#[test]
fn a_large_body_flows_through_without_being_held() {
    const BYTES: usize = 50 << 20;
    let (upstream, told) = reading();
    let demi = before(&[upstream.address], "", "timeout_ms: 3600000");
    let peak_before = demi.peak_bytes();
    let mut client = Client::of(&demi);
    let piece: Vec<u8> = (0..BYTES).map(byte).collect();
    client.send(head_with_length("/up/x", BYTES));
    client.send(&piece);
    assert_eq!(client.answer().body, BYTES.to_string());
    client.send(CHUNKED);
    for piece in piece.chunks(100_000) {
        client.send(chunk(piece));
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().body, BYTES.to_string());
    assert_eq!([told.recv(), told.recv()], [Ok((BYTES, true)); 2]);
    assert_eq!(upstream.connections(), 2, "a body that cannot be sent twice gets a connection of its own");
    assert_eq!(client.get("/echo/x").body, "/echo/x", "the client's connection goes on");
    let held = demi.peak_bytes() - peak_before;
    assert!(held < 6 << 20, "Demi held {} KiB", held >> 10);
    until("nothing is held", || demi.get("/metrics").body.contains("\ndemi_http_body_bytes 0\n").then_some(()));
}

#[test]
fn a_service_that_takes_nothing_slows_its_client_and_fills_no_memory() {
    let (go, gone) = channel::<()>();
    let gone = Mutex::new(gone);
    let (upstream, _told) = serving(move |peer, head| {
        let _ = gone.lock().expect("no thread panics here").recv_timeout(PATIENCE);
        let (count, _) = drain(peer, head);
        peer.answer(&count.to_string());
        Some(())
    });
    let demi = before(&[upstream.address], "", "timeout_ms: 3600000");
    let peak_before = demi.peak_bytes();
    let mut client = Client::of(&demi);
    let body: Vec<u8> = (0..50 << 20).map(byte).collect();
    client.send(head_with_length("/up/x", body.len()));
    client.stream.set_nonblocking(true).expect("a socket can be made not to wait");
    // As long as Demi and the kernel take something. It is full once both have stood still for a while.
    let (mut at, mut moved_at) = (0, Instant::now());
    while moved_at.elapsed() < Duration::from_millis(300) {
        match client.stream.write(&body[at..]) {
            Ok(count) => (at, moved_at) = (at + count, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::park_timeout(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(at < body.len(), "nobody took it, and it is gone");
    let held = demi.peak_bytes() - peak_before;
    assert!(held < 4 << 20, "Demi held {} KiB", held >> 10);
    client.stream.set_nonblocking(false).expect("a socket can be made to wait");
    go.send(()).expect("the service waits");
    client.send(&body[at..]);
    assert_eq!(client.answer().body, body.len().to_string());
}

#[test]
fn a_body_that_moves_may_take_longer_than_its_route_allows_and_one_that_stops_may_not() {
    let seen = Arc::new(AtomicUsize::new(0));
    let sees = seen.clone();
    let (upstream, _told) = serving(move |peer, head| {
        assert!(head.contains("chunked"), "{head}");
        while let Some(chunk) = peer.chunk()? {
            sees.fetch_add(chunk.len(), Ordering::SeqCst);
        }
        peer.trailers()?;
        // Of what is not asked to go on it keeps silent.
        if !head.contains("/up/silent") {
            peer.answer("hello");
        }
        Some(())
    });
    // Longer than a loaded machine may leave any of those alone that move it.
    let demi = before(&[upstream.address], "", "timeout_ms: 2000");
    let mut client = Client::of(&demi);
    client.send(CHUNKED);
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(4500) {
        client.send("5\r\nhello\r\n");
        sent += 5;
        until("the service has it", || (seen.load(Ordering::SeqCst) == sent).then_some(()));
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().body, "hello");
    client.send(CHUNKED.replace("/up/x", "/up/silent"));
    until("it is under way", || (demi.instance("up", 0)["in_flight"] == 1).then_some(()));
    client.send("5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(client.answer().status, 504);
}

#[test]
fn a_body_that_its_client_breaks_off_is_never_whole_for_its_service() {
    let (upstream, told) = reading();
    let patient = before(&[upstream.address], "", "");
    let impatient = before(&[upstream.address], "body_timeout_ms: 200", "");
    let start: Vec<u8> = (0..100_000).map(byte).collect();
    let heads = [head_with_length("/up/x", 1_000_000).into_bytes(), CHUNKED.into()];
    for (number, head) in heads.iter().enumerate() {
        let payload = if number == 0 { start.clone() } else { chunk(&start) };
        for way in ["ends", "resets", "is silent", "sends nonsense"] {
            let demi = if way == "is silent" { &impatient } else { &patient };
            let mut client = Client::of(demi);
            client.send([head.as_slice(), &payload].concat());
            if way != "is silent" {
                until("it is under way", || (demi.instance("up", 0)["in_flight"] == 1).then_some(()));
            }
            match way {
                "ends" => {
                    client.finish_sending();
                    client.expect_end();
                }
                "resets" => client.reset(),
                "is silent" => assert_eq!(client.answer().status, 408),
                _ if number == 1 => {
                    client.send("zz\r\n");
                    assert_eq!(client.answer().status, 400);
                }
                _ => client.reset(),
            }
            let (count, is_whole) = told.recv_timeout(PATIENCE).expect("the service sees the end");
            assert!(!is_whole && count <= start.len(), "{number} {way}: {count}");
            until("nothing is in flight", || (demi.instance("up", 0)["in_flight"] == 0).then_some(()));
        }
    }
    for demi in [patient, impatient] {
        assert!(demi.get("/metrics").body.contains("\ndemi_http_body_bytes 0\n"));
        assert_eq!(demi.instance("up", 0)["breaker"], "closed");
    }
}

#[test]
fn an_answer_that_comes_before_the_body_is_through_reaches_its_client() {
    for keeps in [false, true] {
        let upstream = Upstream::start(move |peer| {
            if peer.head().is_some() {
                peer.send("HTTP/1.1 403 x\r\nContent-Length: 2\r\n\r\nno");
                if keeps {
                    peer.wait_for_end();
                }
            }
        });
        let demi = before(&[upstream.address], "", "");
        let mut client = Client::of(&demi);
        client.send(head_with_length("/up/x", 10_000_000));
        client.send((0..200_000).map(byte).collect::<Vec<u8>>());
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_str()), (403, "no"), "{answer:?}");
        assert_eq!(answer.header("Connection"), Some("close"));
        client.finish_sending();
        client.expect_end();
    }
}

#[test]
fn an_answer_may_flow_while_its_body_does() {
    let (upstream, _told) = serving(|peer, _| {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while let Some(payload) = peer.chunk()? {
            peer.send(chunk(&payload));
        }
        peer.trailers()?;
        peer.send("0\r\n\r\n");
        Some(())
    });
    let demi = before(&[upstream.address], "", "");
    let mut client = Client::of(&demi);
    client.send(CHUNKED);
    assert_eq!(client.head().header("Transfer-Encoding"), Some("chunked"));
    for word in ["one", "two", "three"] {
        client.send(chunk(word.as_bytes()));
        assert_eq!(client.chunk().as_deref(), Some(word.as_bytes()));
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.chunk(), None);
    client.expect_end();
}

#[test]
fn a_service_that_is_not_there_costs_no_body() {
    let (upstream, _told) = reading();
    // It counts as well after its first health check, so that it is asked until it has been found out.
    let gone = Nowhere::new();
    let listener = gone.listen(128);
    let demi = before(&[gone.address, upstream.address], "", "");
    until("both are up", || (demi.json("/v1/status")["platforms"][0]["instances_ready"] == 2).then_some(()));
    drop(listener);
    let body: String = "\0".repeat(200_000);
    for number in 0..10 {
        let mut client = Client::of(&demi);
        client.send(head_with_length("/up/x", body.len()));
        client.send((0..body.len()).map(byte).collect::<Vec<u8>>());
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_str()), (200, "200000"), "{number}: {answer:?}");
    }
}

#[test]
fn whoever_waits_for_a_100_gets_it_once_a_service_is_there() {
    let (upstream, told) = reading();
    let demi = before(&[upstream.address], "", "");
    let mut client = Client::of(&demi);
    client.send("POST /up/x HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n");
    assert_eq!(client.head().status, 100);
    client.send((0..100_000).map(byte).collect::<Vec<u8>>());
    assert_eq!(client.answer().body, "100000");
    assert_eq!(told.recv(), Ok((100_000, true)));

    let nowhere = Nowhere::new();
    let demi = Demi::start(&format!(
        r#"health: (interval_ms: 20, doubt_interval_ms: 20),
        platforms: [(name: "up", host: Http, upstreams: ["{}"])], routes: [(path: "/up/*", to: "up")]"#,
        nowhere.address
    ));
    until("it is down", || (demi.instance("up", 0)["state"] == "down").then_some(()));
    let mut client = Client::of(&demi);
    client.send("POST /up/x HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("Connection")), (503, Some("close")), "and no 100 before");
}

#[test]
fn bodies_that_stream_have_a_bound_of_their_own() {
    let (upstream, told) = reading();
    let demi = before(&[upstream.address], "body_bytes_max: 1000, body_stream_bytes_max: 200000", "");
    let mut client = Client::of(&demi);
    client.send(head_with_length("/up/x", 200_001));
    assert_eq!(client.answer().status, 413);
    let mut client = Client::of(&demi);
    let body: Vec<u8> = (0..200_001).map(byte).collect();
    client.send(CHUNKED);
    client.send(chunk(&body[..150_000]));
    client.send(chunk(&body[150_000..]));
    assert_eq!(client.answer().status, 413);
    assert_eq!(told.recv_timeout(PATIENCE).map(|(_, is_whole)| is_whole), Ok(false));
    let mut client = Client::of(&demi);
    client.send(head_with_length("/up/x", 200_000));
    client.send(&body[..200_000]);
    assert_eq!(client.answer().body, "200000");
}

#[test]
fn whoever_takes_whole_bodies_gets_no_longer_ones_than_before() {
    let (upstream, _told) = reading();
    let demi = before(&[upstream.address], "body_bytes_max: 500000", "");
    let (fits, long) = ("x".repeat(500_000), "x".repeat(500_001));
    let mut client = Client::of(&demi);
    client.send(post("/echo/x", &fits));
    assert!(client.answer().body == fits);
    client.send(post_chunked("/echo/x", [&fits[..100_000], &fits[100_000..]]));
    assert!(client.answer().body == fits);
    client.send("POST /echo/x HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 500000\r\n\r\n");
    assert_eq!(client.head().status, 100);
    client.send(&fits);
    assert!(client.answer().body == fits);
    for request in [post("/echo/x", &long), post_chunked("/echo/x", [&long[..]]), post("/nowhere", &long)] {
        let mut client = Client::of(&demi);
        client.send(request);
        assert_eq!(client.answer().status, 413);
    }
    let mut client = Client::of(&demi);
    client.send(head_with_length("/v1/requests", 500_001));
    assert_eq!(client.answer().status, 413, "the API says so before anything is sent");
}

#[test]
fn what_would_be_kept_as_a_dead_letter_is_gathered_first() {
    let (upstream, told) = reading();
    let demi = before(&[upstream.address], "", "on_failure: DeadLetter");
    let mut client = Client::of(&demi);
    client.send(CHUNKED);
    let body: Vec<u8> = (0..300_000).map(byte).collect();
    client.send(chunk(&body));
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().body, "300000");
    assert_eq!(told.recv(), Ok((300_000, true)));
    let mut client = Client::of(&demi);
    client.send(head_with_length("/up/x", 2_000_000));
    client.send(&body);
    assert_eq!(client.answer().status, 413);
}
