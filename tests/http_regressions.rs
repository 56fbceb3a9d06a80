//! Faults of the HTTP side that were found once: one test each.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use demi::Request;

use crate::client::{get, post, Client};
use crate::embedding::Hosted;
use crate::proxying::Upstream;
use crate::support::{until, Demi, PATIENCE};

const ECHO: &str =
    r#"platforms: [(name: "echo", host: Inline)], routes: [(path: "/echo/*", to: "echo"), (to: "echo")]"#;

/// The end of the client's bytes was taken for the end of its interest, and its connection closed before the answer was
/// written.
#[test]
fn a_client_that_has_finished_sending_still_gets_its_answers() {
    let demi = Demi::start(ECHO);
    let body = "x".repeat(1 << 20);
    for _ in 0..5 {
        for last in [get("/echo/b"), "GET /echo/b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned()] {
            let mut client = Client::of(&demi);
            client.send(post("/echo/a", &body) + &last);
            client.finish_sending();
            assert_eq!(client.answer().body.len(), body.len());
            assert_eq!(client.answer().body, "/echo/b");
            client.expect_end();
        }
        let mut client = Client::of(&demi);
        client.send("POST /echo/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1048576\r\n\r\n");
        client.send(&body);
        client.finish_sending();
        assert_eq!(client.answer().body.len(), body.len());
        client.expect_end();
    }
}

/// Answers to a pipeline piled up without bound, and each new one put off the moment at which the client counts as deaf.
#[test]
fn a_pipeline_whose_answers_are_not_read_is_not_answered_into_memory() {
    let demi = Demi::start_with_http("body_timeout_ms: 1000", ECHO);
    let mut client = Client::of(&demi);
    client.stream.set_nonblocking(true).expect("a socket can be made not to wait");
    let requests = get("/metrics").repeat(20_000);
    let mut written = 0;
    until("it is closed as deaf", || {
        while written < requests.len() {
            match client.stream.write(&requests.as_bytes()[written..]) {
                Ok(count) => written += count,
                Err(_) => break,
            }
        }
        demi.get("/metrics").body.contains("\ndemi_http_timed_out_total 1\n").then_some(())
    });
    let peak = demi.peak_bytes();
    assert!(peak < 48 << 20, "Demi held {} MiB for a client that does not read", peak >> 20);
}

/// Of connections that came in one burst 64 were accepted, and 64 more each second.
#[test]
fn a_burst_of_connections_is_accepted_without_waiting_for_the_next_sweep() {
    let demi = Demi::start(ECHO);
    // Stopped, so that all of them are waiting when it looks.
    demi.signal(rustix::process::Signal::STOP);
    let mut clients: Vec<Client> = (0..400).map(|_| Client::of(&demi)).collect();
    clients.iter_mut().for_each(|client| client.send(get("/echo/x")));
    let began = Instant::now();
    demi.signal(rustix::process::Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    // By sweeps it would take more than five seconds, however fast the machine is.
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
}

/// A connection whose answer ended just as its client fell behind was kept paused, and whoever got it next waited in vain.
#[test]
fn a_slow_client_leaves_no_paused_connection_behind() {
    let upstream = Upstream::start(|peer| {
        while let Some((head, _)) = peer.request() {
            let length = head.split(['/', ' ']).find_map(|word| word.parse().ok()).unwrap_or(0);
            peer.answer(&"x".repeat(length));
        }
    });
    let demi = before(upstream.address);
    for length in (0..40).map(|step| 300_000 + step * 50_000) {
        let mut client = Client::of(&demi);
        client.send(get(&format!("/up/{length}")));
        assert_eq!(client.answer().body.len(), length);
        assert_eq!(client.get("/up/5").body, "xxxxx", "after {length}");
    }
}

/// Each idle connection that the upstream had closed counted as a failure of the upstream: three opened its breaker, and
/// after four the request was refused.
#[test]
fn many_stale_upstream_connections_cost_no_request() {
    const CONNECTIONS: usize = 8;
    let gate = Arc::new(Barrier::new(CONNECTIONS));
    let upstream = Upstream::start(move |peer| {
        // The first request of each waits until all are there, so that each needs a connection; at its second, and only
        // then, a connection closes.
        if let Some((head, _)) = peer.request() {
            if head.starts_with("GET /up/first ") {
                gate.wait();
                peer.answer("hello");
                peer.request();
                return;
            }
            peer.answer("hello");
            while peer.request().is_some() {
                peer.answer("hello");
            }
        }
    });
    let demi = before(upstream.address);
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::of(&demi)).collect();
    for client in &mut clients {
        client.send(get("/up/first"));
    }
    for client in &mut clients {
        assert_eq!(client.answer().body, "hello");
    }
    for _ in 0..CONNECTIONS {
        assert_eq!(demi.get("/up/second").body, "hello");
    }
    assert_eq!(demi.instance("up", 0)["breaker"], "closed");
}

/// An answer that its client had not taken yet was cut off by an ordered end, because the request counted as over.
#[test]
fn an_ordered_end_waits_until_clients_have_taken_their_answers() {
    let (mut demi, mut client, length) = owing("shutdown: (grace_ms: 3600000),");
    demi.signal(rustix::process::Signal::TERM);
    until("it is ending", || demi.log().contains("no request is admitted any more").then_some(()));
    assert_eq!(client.answer().body.len(), length);
    client.expect_end();
    assert_eq!(demi.wait().code(), Some(0));
}

/// And one who takes nothing has the grace and no longer.
#[test]
fn an_ordered_end_does_not_wait_for_a_client_beyond_its_grace() {
    let (mut demi, client, _) = owing("shutdown: (grace_ms: 500),");
    demi.signal(rustix::process::Signal::TERM);
    // Nothing but its grace ends this wait.
    demi.wait();
    drop(client);
}

/// A Demi that has answered one request by more than sockets hold, its client that has read none of it, and how much
/// that is.
fn owing(sections: &str) -> (Demi, Client, usize) {
    const BODY_BYTES: usize = 48 << 20;
    let http = "body_bytes_max: 67108864, bodies_bytes_max: 134217728, body_timeout_ms: 3600000";
    let demi = Demi::start_with_http(http, &format!("{sections} {ECHO}"));
    let mut client = Client::of(&demi);
    client.send(post("/echo/x", &"x".repeat(BODY_BYTES)));
    let answered = "\ndemi_attempts_total{platform=\"echo\",outcome=\"replied\"} 1\n";
    until("it is answered", || demi.get("/metrics").body.contains(answered).then_some(()));
    (demi, client, BODY_BYTES)
}

/// What a host program asked went into the request line as it was: without a method, and with whatever lines its target
/// or headers held.
#[test]
fn what_a_host_program_asks_is_a_request_or_is_refused() {
    let (heads, heard) = channel();
    let heads = Mutex::new(heads);
    let upstream = Upstream::start(move |peer| {
        while let Some((head, _)) = peer.request() {
            heads.lock().expect("no thread panics here").send(head).expect("the test listens");
            peer.answer("hello");
        }
    });
    let hosted = Hosted::start(&format!(
        r#"platforms: [(name: "up", host: Http, upstreams: ["{}"])], routes: [(to: "up")]"#,
        upstream.address
    ));
    let ask = |request: &Request<'_>| hosted.handle.ask_and_wait(request, PATIENCE).expect("the reactor runs");
    let fine = Request::default();
    for (request, line) in [
        (fine, "POST / HTTP/1.1\r\n"),
        (
            Request { method: "GET", target: "/a?b", host: "x:1", headers: b"A: b\r\nC:\r\n", ..fine },
            "GET /a?b HTTP/1.1\r\n",
        ),
    ] {
        assert_eq!(ask(&request).status, 200, "{request:?}");
        let head = heard.recv_timeout(PATIENCE).expect("the upstream was asked");
        assert!(head.starts_with(line), "{head:?}");
    }
    let headers = |headers| Request { headers, ..fine };
    for request in [
        Request { method: "GET /evil HTTP/1.1\r\n\r\nGET", ..fine },
        Request { method: "G T", ..fine },
        Request { method: "CONNECT", target: "/x", ..fine },
        Request { target: "/x HTTP/1.1\r\nEvil: 1", ..fine },
        Request { target: "x", ..fine },
        Request { target: "/é", ..fine },
        Request { host: "x\r\nEvil: 1", ..fine },
        Request { content_type: "text/plain\r\nEvil: 1", ..fine },
        headers(b"A: b"),
        headers(b"A: b\r\n\r\nGET /evil HTTP/1.1\r\n"),
        headers(b"A: b\nEvil: 1\r\n"),
        headers(b"A: b\0\r\n"),
        headers(b"A : b\r\n"),
        headers(b": b\r\n"),
        headers(b"A: b\r\n folded\r\n"),
        headers(b"no colon\r\n"),
    ] {
        let answered = ask(&request);
        assert_eq!((answered.status, answered.content_type.as_str()), (400, "application/problem+json"), "{request:?}");
    }
    assert_eq!(upstream.asked(), 2);
}

/// Only answers that were complete at once said who gave them.
#[test]
fn a_flowing_answer_and_the_answer_to_a_head_say_who_gave_them() {
    const LENGTH: usize = 1 << 20;
    let upstream = Upstream::start(|peer| {
        while let Some((head, _)) = peer.request() {
            match head.starts_with("HEAD ") {
                true => peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n")),
                false => peer.answer(&"x".repeat(LENGTH)),
            }
        }
    });
    let demi = before(upstream.address);
    let mut client = Client::of(&demi);
    client.send(get("/up/x"));
    let flowing = client.answer();
    client.send("HEAD /up/x HTTP/1.1\r\nHost: x\r\n\r\n");
    let head = client.head();
    for answer in [&flowing, &head] {
        assert_eq!(answer.header("Content-Length"), Some(LENGTH.to_string().as_str()));
        assert_eq!(answer.header("Demi-Instance"), Some("up/0"), "{}", answer.head);
        assert_eq!(answer.head.matches("Demi-Instance").count(), 1);
    }
}

/// An answer without a length that broke off ended like one that was whole.
#[test]
fn an_answer_until_the_close_that_breaks_off_ends_in_a_reset() {
    let (seen, is_seen) = channel::<()>();
    let is_seen = Mutex::new(is_seen);
    let upstream = Upstream::start(move |peer| {
        while let Some((head, _)) = peer.request() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
            let _ = is_seen.lock().expect("no thread panics here").recv_timeout(PATIENCE);
            if head.starts_with("GET /up/broken ") {
                return;
            }
            peer.send("0\r\n\r\n");
        }
    });
    let demi = before(upstream.address);
    for (path, is_whole) in [("/up/whole", true), ("/up/broken", false)] {
        let mut stream = demi.connect();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("Demi reads");
        let mut answer = [0; 4096];
        let mut length = 0;
        while !answer[..length].ends_with(b"\r\n\r\nhello") {
            let count = stream.read(&mut answer[length..]).expect("the answer begins");
            assert_ne!(count, 0, "{}", String::from_utf8_lossy(&answer[..length]));
            length += count;
        }
        seen.send(()).expect("the upstream waits");
        match stream.read(&mut answer) {
            Ok(0) => assert!(is_whole, "it looks whole"),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => assert!(!is_whole, "it looks broken off"),
            other => panic!("{other:?}"),
        }
    }
}

fn before(upstream: SocketAddr) -> Demi {
    let demi = Demi::start(&format!(
        r#"health: (interval_ms: 50, doubt_interval_ms: 20, down_interval_ms: 20),
        platforms: [(name: "up", host: Http, upstreams: ["{upstream}"])], routes: [(path: "/up/*", to: "up")]"#
    ));
    demi.wait_ready();
    demi
}
