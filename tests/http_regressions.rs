//! Faults of the HTTP side that were found once: one test each.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::client::{get, post, Client};
use crate::proxying::Upstream;
use crate::support::{until, Demi};

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
    let mut clients: Vec<Client> = (0..250).map(|_| Client::of(&demi)).collect();
    let began = Instant::now();
    demi.signal(rustix::process::Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.get("/echo/x").status, 200);
    }
    // By sweeps it would take three seconds.
    assert!(began.elapsed() < Duration::from_millis(2500), "it took {:?}", began.elapsed());
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

fn before(upstream: SocketAddr) -> Demi {
    let demi = Demi::start(&format!(
        r#"health: (interval_ms: 50, doubt_interval_ms: 20, down_interval_ms: 20),
        platforms: [(name: "up", host: Http, upstreams: ["{upstream}"])], routes: [(path: "/up/*", to: "up")]"#
    ));
    demi.wait_ready();
    demi
}
