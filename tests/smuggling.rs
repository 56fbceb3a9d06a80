//! Requests about whose end two readers could differ, through the proxy to a service that keeps every byte it sees: no
//! second request ever comes out of one, and what comes out is framed in one way only.

use std::sync::mpsc::channel;
use std::sync::Mutex;

use crate::client::Client;
use crate::proxying::Upstream;
use crate::support::{until, Demi, PATIENCE};

/// What an attacker wants the service to take for a request of its own.
const SECRET: &str = "GET /up/smuggled HTTP/1.1\r\nHost: test\r\n\r\n";

fn before(upstream: &Upstream) -> Demi {
    let demi = Demi::start(&format!(
        r#"breaker: (failures: 1000, failure_percent: 0),
        platforms: [(name: "up", host: Http, upstreams: ["{}"])],
        routes: [(path: "/up/*", to: "up", proxy: (request_headers: {{"X-User": "demi"}}))]"#,
        upstream.address
    ));
    demi.wait_ready();
    demi
}

fn service() -> Upstream {
    Upstream::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
}

/// The statuses of all answers on one connection over which these bytes were sent.
fn answers(demi: &Demi, bytes: &[u8]) -> Vec<u16> {
    let mut client = Client::of(demi);
    client.send(bytes);
    client.finish_sending();
    let text = String::from_utf8_lossy(&client.rest()).into_owned();
    let lines = text.split("HTTP/1.1 ").skip(1);
    lines.map(|line| line[..3].parse().expect("a status is a number")).collect()
}

/// How each message that the service saw was framed, and which targets were asked for.
fn heads(seen: &str) -> Vec<String> {
    let is_head = |part: &&str| part.contains(" HTTP/1.1\r\n");
    seen.split("\r\n\r\n").filter(is_head).map(str::to_owned).collect()
}

fn assert_framed_once(head: &str) {
    let lower = head.to_ascii_lowercase().replace('_', "-");
    let count = lower.matches("\r\ncontent-length:").count() + lower.matches("\r\ntransfer-encoding:").count();
    assert!(count <= 1, "framed {count} times: {head}");
    assert_eq!(lower.matches("\r\nhost:").count(), 1, "{head}");
}

#[test]
fn what_is_framed_in_two_ways_or_in_none_that_is_known_is_refused_and_reaches_nobody() {
    let upstream = service();
    let demi = before(&upstream);
    let chunks = "0\r\n\r\n";
    let framings = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\ntransfer-encoding: chunked",
        "Content-Length: 5\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding:",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\r\n\tTransfer-Encoding: chunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\0",
        "Transfer-Encoding: chun\rked",
        "Transfer-\0Encoding: chunked",
        "Transfer-Encoding\r\n: chunked",
        "X: y\nTransfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "X: y\r\n\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 0",
        "Content-Length: 5\r\ncontent-length: 6",
        "Content-Length: 5, 5",
        "Content-Length: 5,",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 5 5",
        "Content-Length: 0x5",
        "Content-Length: 5e0",
        "Content-Length: 5.0",
        "Content-Length:",
        "Content-Length : 5",
        "Content-Length: 18446744073709551616",
        "Content-Length: 99999999999999999999999",
        "Content-Length: \x0c5",
    ];
    for framing in framings {
        let request = format!("POST /up/x HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n{chunks}{SECRET}");
        let statuses = answers(&demi, request.as_bytes());
        assert!(matches!(statuses[..], [400 | 413 | 501]), "{framing:?} was answered {statuses:?}");
        assert_eq!(upstream.take_seen(), "", "{framing:?}");
    }
    assert_eq!(upstream.asked(), 0);
}

#[test]
fn a_head_that_two_readers_would_read_differently_is_refused_and_reaches_nobody() {
    let upstream = service();
    let demi = before(&upstream);
    let requests = [
        "POST /up/x HTTP/1.0\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /up/x HTTP/1.1\r\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: test\r\nHost: test\r\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: test, evil\r\nHost: test\r\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: evil@test\r\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: te st\r\n\r\n",
        "GET /up/x HTTP/1.1\nHost: test\n\n",
        "GET /up/x HTTP/1.1\r\nHost: test\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: test\r\n\n",
        "GET /up/x  HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET\t/up/x HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET /up/x y HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET /up/x\0 HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET /up/x#y HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET /up/x HTTP/1.1 \r\nHost: test\r\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: test\r\nX\r\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: test\r\n: y\r\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: test\r\nX Y: z\r\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: test\r\nX: y\r\n folded\r\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: test\r\nX: a\0b\r\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: test\r\nX: a\x08b\r\n\r\n",
        "GET http://test@evil/up/x HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET up/x HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: test\r\n\r\n",
        "CONNECT test:80 HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET /up/x HTTP/2.0\r\nHost: test\r\n\r\n",
        "GET /up/../up/x HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
        "GET http://evil/up/x HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
        "GET /up/x HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n",
    ];
    for request in requests {
        let statuses = answers(&demi, (request.to_owned() + SECRET).as_bytes());
        assert!(matches!(statuses[..], [400 | 421 | 501 | 505]), "{request:?} was answered {statuses:?}");
        assert_eq!(upstream.take_seen(), "", "{request:?}");
    }
}

#[test]
fn chunks_that_two_readers_would_cut_differently_never_make_a_whole_request() {
    let (end, ended) = channel();
    let end = Mutex::new(end);
    let upstream = Upstream::start(move |peer| {
        if peer.head().is_some() {
            peer.wait_for_end();
            end.lock().expect("no thread panics here").send(()).expect("the test listens");
        }
    });
    let demi = before(&upstream);
    let bodies = [
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5 ;x\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";x\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5;x\nhello\r\n0\r\n\r\n",
        "5;x\rx\r\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\nX\r\n\r\n",
        "5\r\nhello\r\n0\r\n X: y\r\n\r\n",
        "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\n\r\n",
        "5\r\nhello\r\n0\r\nX: \0\r\n\r\n",
    ];
    for body in bodies {
        let head = "POST /up/x HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
        let statuses = answers(&demi, [head, body, SECRET].concat().as_bytes());
        assert_eq!(statuses.len(), 1, "{body:?} was answered {statuses:?}");
        assert!(matches!(statuses[0], 400 | 413), "{body:?} was answered {statuses:?}");
        assert_eq!(upstream.take_seen(), "", "{body:?}");
        // The same behind a chunk that is on its way already.
        let mut client = Client::of(&demi);
        client.send([head, "3\r\nabc\r\n"].concat());
        let mut seen = String::new();
        until(&format!("it is on its way before {body:?}"), || {
            seen.push_str(&upstream.take_seen());
            seen.ends_with("\r\n\r\n3\r\nabc\r\n").then_some(())
        });
        client.send([body, SECRET].concat());
        client.finish_sending();
        let rest = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(rest.starts_with("HTTP/1.1 4") && rest.matches("HTTP/1.1 ").count() == 1, "{body:?}: {rest}");
        ended.recv_timeout(PATIENCE).expect("the service sees the end");
        seen.push_str(&upstream.take_seen());
        assert!(!seen.contains("smuggled") && !seen.contains("\r\n0\r\n"), "{body:?}: {seen}");
        assert_eq!(heads(&seen).len(), 1, "{body:?}: {seen}");
    }
    assert_eq!(upstream.asked(), bodies.len(), "of each only the head came");
}

#[test]
fn what_is_passed_on_is_framed_once_whatever_its_sender_says_of_it() {
    let upstream = service();
    let demi = before(&upstream);
    let length = SECRET.len();
    let requests = [
        // A body that looks like a request stays a body.
        format!("POST /up/x HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{SECRET}"),
        format!("GET /up/x HTTP/1.1\r\nHost: test\r\nContent-Length: \t{length} \t\r\n\r\n{SECRET}"),
        format!("DELETE /up/x HTTP/1.1\r\nHost: test\r\nTransfer-Encoding:\tCHUNKED\r\n\r\n{length:x}\r\n{SECRET}\r\n0\r\n\r\n"),
        // Nobody can have the framing, or the host, taken out on the way.
        format!(
            "POST /up/x HTTP/1.1\r\nHost: test\r\nConnection: Content-Length, Host, close\r\nContent-Length: {length}\r\n\r\n{SECRET}"
        ),
        format!(
            "POST /up/x HTTP/1.1\r\nHost: test\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n\
             {length:x}\r\n{SECRET}\r\n0\r\n\r\n"
        ),
        // Some services read an underscore as a dash.
        format!(
            "POST /up/x HTTP/1.1\r\nHost: test\r\nContent_Length: 0\r\nTransfer_Encoding: chunked\r\nX_User: root\r\n\
             X_Forwarded_For: 192.0.2.1\r\nContent-Length: {length}\r\n\r\n{SECRET}"
        ),
        // The host of the target outranks the other, and is the only one that comes out.
        format!("POST http://test/up/x HTTP/1.1\r\nHost: evil\r\nContent-Length: {length}\r\n\r\n{SECRET}"),
    ];
    for request in requests {
        assert_eq!(answers(&demi, request.as_bytes()), [200], "{request:?}");
        let seen = upstream.take_seen();
        let head = &heads(&seen)[0];
        assert!(head.split(' ').nth(1) == Some("/up/x"), "{request:?}: {seen}");
        assert_framed_once(head);
        assert!(head.contains("\r\nHost: test"), "{seen}");
        assert!(!seen.contains("evil") && !seen.contains("root") && !seen.contains("192.0.2.1"), "{seen}");
    }
    assert_eq!(upstream.asked(), 7);
}

#[test]
fn the_rest_of_a_body_that_nobody_wanted_is_not_taken_for_a_request() {
    let upstream = Upstream::start(|peer| {
        if peer.head().is_some() {
            peer.send("HTTP/1.1 403 x\r\nContent-Length: 2\r\n\r\nno");
            peer.wait_for_end();
        }
    });
    let demi = before(&upstream);
    let body = "x".repeat(100_000);
    let length = body.len() + SECRET.len();
    for expect in ["", "Expect: 100-continue\r\n"] {
        let mut client = Client::of(&demi);
        client.send(format!("POST /up/x HTTP/1.1\r\nHost: test\r\n{expect}Content-Length: {length}\r\n\r\n"));
        if expect.is_empty() {
            client.send(&body);
        }
        let mut head = client.head();
        if head.status == 100 {
            head = client.head();
        }
        assert_eq!((head.status, head.header("Connection")), (403, Some("close")));
        // Whether it is still heard or not.
        let _ = std::io::Write::write_all(&mut client.stream, SECRET.repeat(2).as_bytes());
        assert_eq!(client.rest(), b"no");
    }
    until("nothing is in flight", || (demi.instance("up", 0)["in_flight"] == 0).then_some(()));
    let seen = upstream.take_seen();
    assert_eq!(heads(&seen).len(), 2, "{seen}");
    assert_eq!(upstream.asked(), 2);
}
