//! HTTP as clients speak it, and as they should not.

use std::io::{Read, Write};
use std::time::Instant;

use rustix::process::Signal;

use crate::client::{get, post, post_chunked, Client};
use crate::support::{misbehaving, until, Demi, Directory, Response};

/// One platform on Demi's own thread.
const ECHO: &str =
    r#"platforms: [(name: "echo", host: Inline)], routes: [(path: "/echo/*", to: "echo"), (to: "echo")]"#;
/// One of each host that needs no upstream.
const HOSTS: &str = r#"
    platforms: [
        (name: "echo", host: Inline),
        (name: "pool", host: Threads(2), adapter: "echo"),
        (name: "child", host: Process(2), command: ["{demi}", "plugin", "serve", "echo"]),
    ],
    routes: [(path: "/echo/*", to: "echo"), (path: "/pool/*", to: "pool"), (path: "/child/*", to: "child")],
"#;

/// A platform that takes requests and never answers, one at a time.
fn never_answers(fields: &str, route: &str) -> String {
    format!(
        r#"platforms: [
            (name: "slow", host: Process(1), command: ["{}", "never-answers"], {fields}),
            (name: "echo", host: Inline),
        ],
        routes: [(path: "/slow", to: "slow", {route}), (path: "/echo/*", to: "echo"), (to: "echo")]"#,
        misbehaving()
    )
}

fn connections(demi: &Demi) -> u64 {
    demi.json("/v1/status")["connections"].as_u64().expect("the status counts connections")
}

fn assert_problem(answer: &Response, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("Content-Type"), Some("application/problem+json"), "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["status"].as_u64(), Some(status.into()), "{problem}");
    assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
}

// ---- good requests, in ugly pieces ----------------------------------------------------------------------------------

#[test]
fn pipelined_requests_are_answered_in_order_across_hosts() {
    let demi = Demi::start(HOSTS);
    demi.wait_ready();
    let mut client = Client::of(&demi);
    let paths: Vec<String> = (0..300).map(|n| format!("/{}/{n}", ["echo", "pool", "child"][n % 3])).collect();
    client.send(paths.iter().map(|path| get(path)).collect::<String>());
    for path in &paths {
        let answer = client.answer();
        assert_eq!((answer.status, &answer.body), (200, path));
        let host = path.split('/').nth(1).expect("a path begins with a host");
        assert!(answer.header("Demi-Instance").is_some_and(|name| name.starts_with(host)), "{answer:?}");
    }
}

#[test]
fn a_deep_pipeline_read_late_is_answered_whole_and_in_order() {
    let demi = Demi::start(ECHO);
    let mut client = Client::of(&demi);
    let mut writer = client.stream.try_clone().expect("a socket can be shared");
    let writing = std::thread::spawn(move || {
        let requests: String = (0..20_000).map(|n| get(&format!("/echo/{n}"))).collect();
        writer.write_all(requests.as_bytes()).expect("Demi reads all of it in the end");
    });
    // Another client is served while this one's answers pile up.
    assert_eq!(demi.get("/echo/other").status, 200);
    for n in 0..20_000 {
        assert_eq!(client.answer().body, format!("/echo/{n}"));
    }
    writing.join().expect("everything was written");
}

#[test]
fn requests_split_at_every_byte_are_understood() {
    let demi = Demi::start(ECHO);
    let mut client = Client::of(&demi);
    let requests = get("/echo/a") + &post("/echo/b", "hello") + &post_chunked("/echo/c", ["hel", "lo"]);
    for at in 1..requests.len() {
        client.send(&requests[..at]);
        client.send(&requests[at..]);
        let bodies = [client.answer().body, client.answer().body, client.answer().body];
        assert_eq!(bodies, ["/echo/a", "hello", "hello"], "split at {at}");
    }
    for byte in requests.bytes() {
        client.send([byte]);
    }
    let bodies = [client.answer().body, client.answer().body, client.answer().body];
    assert_eq!(bodies, ["/echo/a", "hello", "hello"]);
}

#[test]
fn many_clients_with_random_pieces_all_get_their_own_answers() {
    let demi = Demi::start(HOSTS);
    demi.wait_ready();
    std::thread::scope(|scope| {
        for seed in 1..=12 {
            let demi = &demi;
            scope.spawn(move || converse(&mut Client::of(demi), seed));
        }
    });
    until("the counters are right", || {
        let page = demi.get("/metrics").body;
        let sum: u64 = ["echo", "pool", "child"].map(|name| count(&page, "demi_requests_total", name)).iter().sum();
        (sum == 12 * 300).then_some(())
    });
}

fn count(page: &str, metric: &str, platform: &str) -> u64 {
    let line = format!("{metric}{{platform=\"{platform}\"}} ");
    let value = page.lines().find_map(|found| found.strip_prefix(&line));
    value.expect("every platform is counted").parse().expect("a counter is a number")
}

/// 300 requests in bursts of up to eight, cut up at random.
fn converse(client: &mut Client, seed: u64) {
    let mut state = seed;
    let mut below = |bound: usize| {
        // SplitMix64 (Steele, Lea, Flood, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    };
    let mut left = 300;
    while left > 0 {
        let burst = (1 + below(8)).min(left);
        left -= burst;
        let mut text = String::new();
        let mut expected = Vec::new();
        for n in 0..burst {
            let path = format!("/{}/{seed}-{left}-{n}", ["echo", "pool", "child"][below(3)]);
            let body = format!("{path} ").repeat(1 + below(200));
            match below(3) {
                0 => {
                    text += &get(&path);
                    expected.push(path);
                }
                1 => {
                    text += &post(&path, &body);
                    expected.push(body);
                }
                _ => {
                    text += &post_chunked(
                        &path,
                        body.as_bytes().chunks(700).map(|chunk| std::str::from_utf8(chunk).expect("it is ASCII")),
                    );
                    expected.push(body);
                }
            }
        }
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((1 + below(1500)).min(rest.len()));
            client.send(piece);
            rest = after;
        }
        for body in expected {
            let answer = client.answer();
            assert_eq!((answer.status, answer.body), (200, body));
        }
    }
}

#[test]
fn trailers_and_chunk_extensions_are_read_and_dropped() {
    let demi = Demi::start(ECHO);
    let mut client = Client::of(&demi);
    client.send("POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n");
    client.send("5;note=\"x\"\r\nhello\r\n0\r\nSum: 1\r\nOther: 2\r\n\r\n");
    assert_eq!(client.answer().body, "hello");
    assert_eq!(client.get("/echo/next").body, "/echo/next");
}

#[test]
fn who_expects_a_continue_gets_one_before_the_body() {
    let demi = Demi::start(ECHO);
    let mut client = Client::of(&demi);
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        client.send(format!("POST /echo/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"));
        assert_eq!(client.head().status, 100);
        client.send(if framing.starts_with('C') { "hello" } else { "5\r\nhello\r\n0\r\n\r\n" });
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    }
    // A body that is refused is not asked for.
    client.send("POST /echo/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2147483648\r\n\r\n");
    assert_problem(&client.answer(), 413);
    client.expect_end();
}

#[test]
fn a_connection_is_kept_or_closed_as_the_client_asks() {
    let demi = Demi::start(ECHO);
    for (request, says, is_kept) in [
        ("GET /echo/x HTTP/1.1\r\nHost: x\r\n\r\n", None, true),
        ("GET /echo/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", Some("close"), false),
        ("GET /echo/x HTTP/1.0\r\n\r\n", Some("close"), false),
        ("GET /echo/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", Some("keep-alive"), true),
        ("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", None, true),
        ("DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", None, true),
    ] {
        let mut client = Client::of(&demi);
        client.send(request);
        assert_eq!(client.answer().header("Connection"), says, "{request}");
        if is_kept {
            assert_eq!(client.get("/echo/again").body, "/echo/again", "{request}");
        } else {
            client.expect_end();
        }
    }
}

#[test]
fn what_is_pipelined_behind_the_last_request_is_not_answered() {
    let demi = Demi::start(ECHO);
    let mut client = Client::of(&demi);
    client.send("GET /echo/last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned() + &get("/echo/smuggled"));
    assert_eq!(client.answer().body, "/echo/last");
    client.expect_end();
}

#[test]
fn the_answer_to_a_head_is_as_long_as_that_to_a_get_and_has_no_body() {
    let demi = Demi::start(HOSTS);
    demi.wait_ready();
    let mut client = Client::of(&demi);
    for path in ["/echo/x", "/pool/x", "/child/x", "/healthz", "/nowhere", "/v1/nowhere"] {
        let wanted = client.get(path);
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        let head = client.head();
        assert_eq!(head.status, wanted.status, "{path}");
        assert_eq!(head.header("Content-Length"), wanted.header("Content-Length"), "{path}");
        assert_eq!(head.header("Content-Type"), wanted.header("Content-Type"), "{path}");
    }
    assert_eq!(client.get("/echo/next").body, "/echo/next");
}

// ---- bad requests ---------------------------------------------------------------------------------------------------

#[test]
fn bad_input_is_refused_with_its_status_and_what_is_smuggled_behind_it_is_never_answered() {
    let demi = Demi::start(ECHO);
    let many_headers = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(10_000));
    let long_header = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "b".repeat(17_000));
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "b".repeat(17_000));
    let smuggled = get("/echo/smuggled");
    let length = smuggled.len();
    let cases: Vec<(&str, u16, Vec<u8>)> = vec![
        ("many headers", 431, many_headers.into()),
        ("long header", 431, long_header.into()),
        ("long target", 414, long_target.into()),
        (
            "length and chunked",
            400,
            format!("POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
                .into(),
        ),
        (
            "two lengths",
            400,
            format!("POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n").into(),
        ),
        ("equal lengths", 400, "POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n".into()),
        ("length list", 400, "POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0, 0\r\n\r\n".into()),
        ("negative length", 400, "POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".into()),
        ("two GiB", 413, "POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\n".into()),
        ("bare LF", 400, "GET /echo/x HTTP/1.1\nHost: x\n\n".into()),
        ("one bare LF", 400, "GET /echo/x HTTP/1.1\r\nHost: x\nA: b\r\n\r\n".into()),
        ("obs-fold", 400, "GET /echo/x HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n".into()),
        ("space before colon", 400, "POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\nhello".into()),
        ("NUL in a value", 400, b"GET /echo/x HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n".to_vec()),
        ("NUL in the target", 400, b"GET /echo/\0x HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("NUL first", 400, b"\0\0\0\0".to_vec()),
        ("no Host", 400, "GET /echo/x HTTP/1.1\r\n\r\n".into()),
        ("two Hosts", 400, "GET /echo/x HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n".into()),
        ("chunked in 1.0", 400, "POST /echo/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        ("gzip", 501, "POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".into()),
        ("chunked not last", 400, "POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n".into()),
        ("tunnel", 501, "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n".into()),
        ("other expectation", 417, "POST /echo/x HTTP/1.1\r\nHost: x\r\nExpect: tea\r\nContent-Length: 0\r\n\r\n".into()),
        ("HTTP/2", 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        ("TLS", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03GET / HTTP/1.1\r\n".to_vec()),
        ("garbage", 400, b"\x80\xff\x00garbage\r\n\r\n".to_vec()),
        ("words", 400, "hello there, how are you?\r\n\r\n".into()),
        ("no chunk size", 400, "POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n".into()),
        ("bare LF in chunks", 400, "POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\n\n".into()),
        (
            "chunk longer than its size",
            400,
            "POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n".into(),
        ),
        (
            "chunk of 16 EiB",
            413,
            "POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".into(),
        ),
    ];
    let (mut malformed, mut too_large) = (0, 0);
    for (name, status, bytes) in &cases {
        let mut client = Client::of(&demi);
        let request = [bytes.as_slice(), smuggled.as_bytes()].concat();
        // It may be refused before all of it is sent.
        let _ = client.stream.write_all(&request);
        let answer = String::from_utf8(client.rest()).expect("an answer is text");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: {answer}");
        assert!(!answer.contains("smuggled"), "{name}: {answer}");
        let answer = Response::parse(&answer);
        assert_eq!(answer.status, *status, "{name}: {answer:?}");
        assert_eq!(answer.header("Connection"), Some("close"), "{name}");
        assert_problem(&answer, *status);
        assert_eq!(demi.get("/echo/next").body, "/echo/next", "the next client is served after {name}");
        *if matches!(status, 413 | 414 | 431) { &mut too_large } else { &mut malformed } += 1;
        let page = demi.get("/metrics").body;
        assert!(page.contains(&format!("\ndemi_http_malformed_total {malformed}\n")), "{name}: {page}");
        assert!(page.contains(&format!("\ndemi_http_too_large_total {too_large}\n")), "{name}: {page}");
    }
}

#[test]
fn a_body_may_be_as_long_as_the_bound_and_no_longer() {
    let demi = Demi::start_with_http("body_bytes_max: 100000", ECHO);
    let (most, more) = ("x".repeat(100_000), "x".repeat(100_001));
    let mut client = Client::of(&demi);
    client.send(post("/echo/x", &most));
    assert_eq!(client.answer().body, most);
    client.send(post_chunked("/echo/x", [&most[..60_000], &most[60_000..]]));
    assert_eq!(client.answer().body, most);
    for request in [post("/echo/x", &more), post_chunked("/echo/x", [&more[..60_000], &more[60_000..]])] {
        let mut client = Client::of(&demi);
        client.send(request + &get("/echo/smuggled"));
        assert_problem(&client.answer(), 413);
        client.expect_end();
    }
    assert_eq!(demi.get("/echo/next").status, 200);
}

#[test]
fn half_a_request_and_then_the_end_costs_nothing() {
    let demi = Demi::start(ECHO);
    for half in
        ["G", "GET /echo/x HTTP/1.1\r\nHo", "POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello"]
    {
        let mut client = Client::of(&demi);
        client.send(half);
        client.finish_sending();
        client.expect_end();
        // And by a reset.
        let mut client = Client::of(&demi);
        client.send(half);
        client.reset();
    }
    until("only the asking connection is left", || (connections(&demi) == 1).then_some(()));
    let page = demi.get("/metrics").body;
    assert!(page.contains("\ndemi_http_body_bytes 0\n"), "{page}");
}

#[test]
fn who_is_slow_to_ask_is_told_and_closed() {
    let demi = Demi::start_with_http("head_timeout_ms: 300, body_timeout_ms: 300, idle_timeout_ms: 60000", ECHO);
    let halves = ["GET /echo/x HTTP/1.1\r\nHo", "POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello"];
    let mut clients = halves.map(|half| {
        let mut client = Client::of(&demi);
        client.send(half);
        client
    });
    for client in &mut clients {
        assert_problem(&client.answer(), 408);
        client.expect_end();
    }
    assert!(demi.get("/metrics").body.contains("\ndemi_http_timed_out_total 2\n"));
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let demi = Demi::start_with_http("idle_timeout_ms: 300", ECHO);
    // Stopped, so that the request is there before the connection has been idle for a moment.
    demi.signal(Signal::STOP);
    let mut fresh = Client::of(&demi);
    let mut used = Client::of(&demi);
    used.send(get("/echo/x"));
    demi.signal(Signal::CONT);
    assert_eq!(used.answer().status, 200);
    fresh.expect_end();
    used.expect_end();
}

#[test]
fn a_client_that_stops_reading_is_closed_and_costs_little() {
    let demi = Demi::start_with_http("body_timeout_ms: 1000", ECHO);
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Client::of(&demi);
        // If the system holds little, it is closed before all of this is sent.
        let _ = client.stream.write_all(post("/echo/x", &"x".repeat(1 << 20)).repeat(3).as_bytes());
        // It asks for far more than sockets hold, and reads none of it.
        client.stream.set_nonblocking(true).expect("a socket can be made not to wait");
        let requests = get("/metrics").repeat(10_000);
        let mut written = 0;
        while let Ok(count) = client.stream.write(&requests.as_bytes()[written..]) {
            written += count;
        }
        clients.push(client);
    }
    assert_eq!(demi.get("/echo/next").status, 200);
    until("all four are closed", || (connections(&demi) == 1).then_some(()));
    let peak = demi.peak_bytes();
    assert!(peak < 64 << 20, "Demi held {} MiB for clients that do not read", peak >> 20);
    drop(clients);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let demi = Demi::start_with_http("connections_max: 3", ECHO);
    let mut clients = [(); 3].map(|()| Client::of(&demi));
    for client in &mut clients {
        assert_eq!(client.get("/echo/x").status, 200);
    }
    let mut fourth = Client::of(&demi);
    let answer = fourth.answer();
    assert_problem(&answer, 503);
    assert_eq!((answer.header("Retry-After"), answer.header("Connection")), (Some("1"), Some("close")));
    fourth.expect_end();
    assert!(clients[0].get("/metrics").body.contains("\ndemi_http_connections_refused_total 1\n"));
    let [first, ..] = clients;
    drop(first);
    until("there is room again", || {
        let answer = Response::parse(&demi.raw(b"GET /echo/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        (answer.status == 200).then_some(())
    });
}

#[test]
fn bodies_beyond_what_may_be_held_are_refused_until_there_is_room() {
    let demi = Demi::start_with_http("bodies_bytes_max: 65536", ECHO);
    let mut holder = Client::of(&demi);
    let body = "x".repeat(50_000);
    let request = post("/echo/x", &body);
    holder.send(&request[..request.len() - 1]);
    let held = |demi: &Demi| demi.get("/metrics").body.contains("\ndemi_http_body_bytes 49999\n");
    until("the first body is held", || held(&demi).then_some(()));
    for request in [post("/echo/x", &body), post_chunked("/echo/x", [body.as_str()])] {
        let mut second = Client::of(&demi);
        second.send(request);
        let answer = second.answer();
        assert_problem(&answer, 503);
        assert_eq!(answer.header("Retry-After"), Some("1"));
        second.expect_end();
    }
    holder.send("x");
    assert_eq!(holder.answer().body, body);
    assert_eq!(demi.post("/echo/x", &body).status, 200);
    let page = demi.get("/metrics").body;
    for line in ["demi_http_bodies_full_total 2", "demi_http_malformed_total 0", "demi_http_too_large_total 0"] {
        assert!(page.contains(&format!("\n{line}\n")), "{page}");
    }
}

// ---- the API --------------------------------------------------------------------------------------------------------

#[test]
fn every_page_answers_and_what_is_no_page_says_so() {
    let demi = Demi::start(HOSTS);
    demi.wait_ready();
    assert_eq!(demi.get("/healthz").body, "alive\n");
    assert_eq!(demi.get("/readyz").body, "ready\n");
    let status = demi.json("/v1/status");
    assert_eq!((status["phase"].as_str(), status["ready"].as_bool()), (Some("running"), Some(true)), "{status}");
    assert_eq!(status["platforms"].as_array().map(Vec::len), Some(3));
    assert_eq!(status["pid"].as_u64(), Some(demi.pid().into()));
    let platforms = demi.json("/v1/platforms");
    let hosts: Vec<&str> =
        platforms.as_array().into_iter().flatten().filter_map(|page| page["host"].as_str()).collect();
    assert_eq!(hosts, ["inline", "threads", "process"]);
    assert_eq!(demi.json("/v1/platforms/child")["instances"].as_array().map(Vec::len), Some(2));

    let unknown = demi.get("/v1/platforms/chidl");
    assert_problem(&unknown, 404);
    assert!(unknown.json()["detail"].as_str().is_some_and(|detail| detail.contains("\"child\"")), "{unknown:?}");
    let strange = demi.get("/v1/platforms/nothing-like-it");
    assert!(
        strange.json()["detail"].as_str().is_some_and(|detail| detail.contains("echo, pool, child")),
        "{strange:?}"
    );
    for path in ["/v1", "/v1/", "/v1/nowhere", "/v1/platforms/", "/healthz/", "/metrics/x", "/v1/platforms/a/b"] {
        assert_problem(&demi.get(path), 404);
    }
    for path in ["/healthz", "/readyz", "/metrics", "/v1/status", "/v1/platforms", "/v1/platforms/echo"] {
        assert_eq!(demi.get(&format!("{path}?x=1")).status, 200, "{path}");
        let refused = demi.post(path, "");
        assert_problem(&refused, 405);
        assert_eq!(refused.header("Allow"), Some("GET, HEAD"), "{path}");
    }
    let refused = demi.get("/v1/requests");
    assert_problem(&refused, 405);
    assert_eq!(refused.header("Allow"), Some("POST"));
}

#[test]
fn a_request_that_cannot_be_read_is_told_what_is_wrong_with_it() {
    let demi = Demi::start(ECHO);
    for (body, hint) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("[]", "is a list"),
        ("5", "invalid"),
        ("{\"content\": 5}", "expected a string"),
        ("{\"contents\": \"x\"}", "unknown field `contents`"),
        ("{\"content\": \"a\", \"content\": \"b\"}", "duplicate field"),
        ("{\"content\": \"a\", \"json\": 1}", "exclude each other"),
        ("{\"path\": \"x\"}", "must begin with /"),
        ("{\"path\": \"/x y\"}", "no spaces"),
        ("{\"path\": \"/x\\r\\nEvil: 1\"}", "no spaces"),
        ("{\"content\": \"a\"} trailing", "trailing"),
    ] {
        let answer = demi.post("/v1/requests", body);
        assert_problem(&answer, 400);
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains(hint)), "{body}: {answer:?}");
    }
    assert_eq!(demi.post("/v1/requests", "{\"content\": \"a\\nb\"}").body, "a\nb");
    let json = demi.post("/v1/requests", "{\"json\": {\"a\": [1]}}");
    assert_eq!((json.body.as_str(), json.header("Content-Type")), ("{\"a\": [1]}", Some("application/json")));
}

#[test]
fn the_first_rule_that_matches_decides() {
    let demi = Demi::start(
        r#"platforms: [
            (name: "exact", host: Threads(1), adapter: "echo"), (name: "below", host: Threads(1), adapter: "echo"),
            (name: "music", host: Threads(1), adapter: "echo"), (name: "commands", host: Threads(1), adapter: "echo"),
            (name: "rest", host: Threads(1), adapter: "echo"),
        ],
        routes: [
            (path: "/a", to: "exact"), (path: "/a/*", to: "below"), (from: "discord", content: Prefix("!play"), to: "music"),
            (kind: "command", to: "commands"), (from: "discord", to: "rest"),
        ]"#,
    );
    demi.wait_ready();
    let instance = |answer: Response| answer.header("Demi-Instance").unwrap_or("").to_owned();
    for (path, wanted) in [("/a", "exact/0"), ("/a?b=/c", "exact/0"), ("/a/", "below/0"), ("/a/b/c", "below/0")] {
        assert_eq!(instance(demi.get(path)), wanted, "{path}");
    }
    for (body, wanted) in [
        ("{\"path\": \"/a/b\"}", "below/0"),
        ("{\"from\": \"discord\", \"content\": \"!play a song\"}", "music/0"),
        ("{\"from\": \"discord\", \"content\": \"play\"}", "rest/0"),
        ("{\"from\": \"discord\", \"kind\": \"command\", \"content\": \"x\"}", "commands/0"),
    ] {
        assert_eq!(instance(demi.post("/v1/requests", body)), wanted, "{body}");
    }
    assert_problem(&demi.post("/v1/requests", "{\"from\": \"voice\", \"content\": \"!play\"}"), 404);
    // A plain HTTP request does not fall to rules for messages, whatever it says of itself.
    for path in ["/", "/ab", "/A", "/a%2fb", "*"] {
        let method = if path == "*" { "OPTIONS" } else { "POST" };
        let answer = demi.request(method, path, "!play");
        assert_problem(&answer, 404);
        assert_eq!(answer.json()["code"], "no_route");
    }
}

#[test]
fn a_full_platform_refuses_at_once_and_a_silent_one_times_out() {
    let routes = r#"timeout_ms: 60000), (path: "/brief", to: "slow", timeout_ms: 300"#;
    let demi = Demi::start(&never_answers("in_flight_max: 1, queue_max: 0", routes));
    demi.wait_ready();
    let mut first = Client::of(&demi);
    first.send(get("/slow"));
    until("it has the request", || (demi.instance("slow", 0)["in_flight"] == 1).then_some(()));
    let full = demi.get("/slow");
    assert_problem(&full, 503);
    assert_eq!((full.header("Retry-After"), full.json()["code"].as_str()), (Some("1"), Some("queue_full")));
    first.reset();
    until("its place is free", || (demi.instance("slow", 0)["in_flight"] == 0).then_some(()));
    let mut second = Client::of(&demi);
    let late = second.get("/brief");
    assert_problem(&late, 504);
    assert_eq!(late.json()["platform"], "slow");
    assert_eq!(second.get("/echo/x").status, 200, "the connection goes on");
    let page = demi.get("/metrics").body;
    assert!(page.contains("\ndemi_refused_total{platform=\"slow\",reason=\"queue_full\"} 1\n"), "{page}");
    assert!(page.contains("\ndemi_attempts_total{platform=\"slow\",outcome=\"timed_out\"} 1\n"), "{page}");
}

#[test]
fn who_waits_in_the_queue_too_long_is_told_when_to_come_again() {
    // The one that has the instance has it for longer than the other is ready to wait.
    let routes = r#"timeout_ms: 60000), (path: "/brief", to: "slow", timeout_ms: 500"#;
    let demi = Demi::start(&never_answers("in_flight_max: 1, queue_max: 1", routes));
    demi.wait_ready();
    let mut first = Client::of(&demi);
    first.send(get("/slow"));
    until("it has the request", || (demi.instance("slow", 0)["in_flight"] == 1).then_some(()));
    let late = demi.get("/brief");
    assert_problem(&late, 503);
    assert_eq!((late.header("Retry-After"), late.json()["code"].as_str()), (Some("1"), Some("queue_timeout")));
    let page = demi.get("/metrics").body;
    assert!(page.contains("\ndemi_refused_total{platform=\"slow\",reason=\"queue_timeout\"} 1\n"), "{page}");
    first.reset();
}

#[test]
fn in_a_full_queue_the_less_urgent_gives_way_and_nobody_waits_behind_one_that_has_waited_for_too_long() {
    let fields = "in_flight_max: 1, queue_max: 1, queue_age_max_ms: 100";
    let routes = r#"timeout_ms: 60000), (path: "/later", to: "slow", timeout_ms: 60000, urgency: Low"#;
    let demi = Demi::start(&never_answers(fields, routes));
    demi.wait_ready();
    let mut clients = [(); 3].map(|()| Client::of(&demi));
    for client in &mut clients {
        assert_eq!(client.get("/echo/x").status, 200);
    }
    clients[0].send(get("/slow"));
    until("it has the request", || (demi.instance("slow", 0)["in_flight"] == 1).then_some(()));
    // Stopped, so that the one has not waited for too long when the other comes right behind it.
    demi.signal(Signal::STOP);
    clients[1].send(get("/later"));
    clients[2].send(get("/slow"));
    demi.signal(Signal::CONT);
    let displaced = clients[1].answer();
    assert_problem(&displaced, 503);
    assert_eq!((displaced.header("Retry-After"), displaced.json()["code"].as_str()), (Some("1"), Some("queue_full")));
    let age = |page: &str| {
        let line = page.lines().find(|line| line.starts_with("demi_queue_age_seconds{platform=\"slow\"}"))?;
        line.rsplit_once(' ')?.1.parse::<f64>().ok()
    };
    until("it has waited", || age(&demi.get("/metrics").body).filter(|age| *age > 0.1));
    let late = demi.get("/slow");
    assert_problem(&late, 503);
    assert_eq!((late.header("Retry-After"), late.json()["code"].as_str()), (Some("1"), Some("queue_age")));
    assert_eq!(demi.get("/echo/x").status, 200, "other platforms notice nothing");
    let page = demi.get("/metrics").body;
    assert!(page.contains("\ndemi_displaced_total{platform=\"slow\"} 1\n"), "{page}");
    assert!(page.contains("\ndemi_refused_total{platform=\"slow\",reason=\"queue_age\"} 1\n"), "{page}");
    let [first, _, third] = clients;
    first.reset();
    third.reset();
}

#[test]
fn requests_beyond_the_bound_are_refused() {
    let demi = Demi::start(&(never_answers("", "timeout_ms: 60000") + ", requests_max: 2"));
    demi.wait_ready();
    let mut clients = [(); 2].map(|()| Client::of(&demi));
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(get("/slow"));
        until("it is under way", || (demi.json("/v1/status")["requests_in_flight"] == index + 1).then_some(()));
    }
    let refused = demi.get("/echo/x");
    assert_problem(&refused, 503);
    assert_eq!(refused.header("Retry-After"), Some("1"));
    // Pages are answered all the same, and a request whose client goes makes room.
    assert_eq!(demi.get("/readyz").status, 200);
    for client in clients {
        client.reset();
    }
    until("there is room", || (demi.get("/echo/x").status == 200).then_some(()));
}

#[test]
fn unready_says_who_and_why() {
    let demi = Demi::start(&format!(
        r#"platforms: [
            (name: "late", host: Process(1), command: ["{}", "slow-start", "100000"]), (name: "echo", host: Inline),
        ], routes: [(path: "/late", to: "late", timeout_ms: 200), (path: "/echo/*", to: "echo")]"#,
        misbehaving()
    ));
    let page = demi.get("/readyz");
    assert_eq!(page.status, 503);
    assert!(page.body.contains("late/0: starting"), "{page:?}");
    assert!(!page.body.contains("echo"), "{page:?}");
    assert_eq!(demi.get("/echo/x").status, 200, "the others run on");
    let refused = demi.get("/late");
    assert_problem(&refused, 503);
    assert!(refused.header("Retry-After").is_some());
    assert_eq!(demi.json("/v1/status")["ready"], false);
}

// ---- metrics --------------------------------------------------------------------------------------------------------

#[test]
fn metrics_are_well_formed_and_count_what_was_done() {
    let demi = Demi::start_with_http("", &format!("{HOSTS} scaler: (interval_ms: 100, fast_interval_ms: 100)"));
    until("both children are up", || (demi.json("/v1/status")["platforms"][2]["instances_ready"] == 2).then_some(()));
    for _ in 0..3 {
        demi.get("/echo/x");
    }
    demi.get("/pool/x");
    demi.get("/nowhere");
    demi.raw(b"garbage\r\n\r\n");
    let page = until("the machine was measured", || {
        let page = demi.get("/metrics");
        page.body.contains("demi_system_resources{").then_some(page)
    });
    assert_eq!(page.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let metrics = Metrics::parse(&page.body);
    assert_eq!(metrics.value("demi_requests_total{platform=\"echo\"}"), 3.0);
    assert_eq!(metrics.value("demi_requests_total{platform=\"pool\"}"), 1.0);
    assert_eq!(metrics.value("demi_attempts_total{platform=\"echo\",outcome=\"replied\"}"), 3.0);
    assert_eq!(metrics.value("demi_request_duration_seconds_count{platform=\"echo\"}"), 3.0);
    assert_eq!(metrics.value("demi_requests_no_route_total"), 1.0);
    assert_eq!(metrics.value("demi_http_malformed_total"), 1.0);
    assert_eq!(metrics.value("demi_instances{platform=\"child\",state=\"ready\"}"), 2.0);
    assert_eq!(metrics.value("demi_circuit_breaker_state{platform=\"child\",state=\"closed\"}"), 2.0);
    assert!(metrics.value("demi_system_resources{resource=\"ram_total_bytes\"}") > 1e6);
    let ram = &demi.json("/v1/status")["ram"];
    let source = ram["ram_source"].as_str().expect("it is a word");
    assert_eq!(metrics.value(&format!("demi_ram_source{{source=\"{source}\"}}")), 1.0);
    assert!(ram["ram_headroom"].as_u64() <= ram["ram_available"].as_u64(), "{ram}");
}

/// A page of metrics, read strictly.
struct Metrics(Vec<(String, f64)>);

impl Metrics {
    fn parse(page: &str) -> Metrics {
        assert!(page.ends_with('\n'));
        let mut samples: Vec<(String, f64)> = Vec::new();
        let mut families: Vec<(String, String)> = Vec::new();
        let mut help = None;
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, text) = rest.split_once(' ').expect("a help has a text");
                assert!(!text.is_empty() && help.replace(name).is_none(), "{line}");
                assert!(families.iter().all(|(other, _)| other != name), "{name} is described twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type has a kind");
                assert_eq!(help.take(), Some(name), "help comes before type");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(kind != "counter" || name.ends_with("_total"), "{line}");
                families.push((name.to_owned(), kind.to_owned()));
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
                let (family, kind) = families.last().expect("a sample belongs to a family");
                let name = series.split('{').next().unwrap_or_default();
                let is_of = match kind.as_str() {
                    "histogram" => ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{family}{end}")),
                    _ => name == family,
                };
                assert!(is_of, "{line} is not of {family}");
                assert!(family.starts_with("demi_") && family.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
                check_labels(&series[name.len()..]);
                assert!(samples.iter().all(|(other, _)| other != series), "{series} is there twice");
                samples.push((series.to_owned(), value.parse().expect("a value is a number")));
            }
        }
        let metrics = Metrics(samples);
        for (family, _) in families.iter().filter(|(_, kind)| kind == "histogram") {
            metrics.check_histogram(family);
        }
        metrics
    }

    fn value(&self, series: &str) -> f64 {
        let found = self.0.iter().find(|(name, _)| name == series);
        found.unwrap_or_else(|| panic!("there is no {series}")).1
    }

    /// Of each platform, or of Demi: bounds rise, counts do not fall, and the last bucket holds all.
    fn check_histogram(&self, family: &str) {
        let counts: Vec<&str> =
            self.0.iter().filter_map(|(series, _)| series.strip_prefix(family)?.strip_prefix("_count")).collect();
        assert!(!counts.is_empty(), "{family} has no samples");
        for labels in counts {
            let start = match labels.trim_end_matches('}') {
                "" => format!("{family}_bucket{{le=\""),
                labels => format!("{family}_bucket{labels},le=\""),
            };
            let buckets: Vec<(f64, f64)> = self
                .0
                .iter()
                .filter_map(|(series, value)| {
                    let bound = series.strip_prefix(&start)?.trim_end_matches("\"}");
                    Some((bound.replace("+Inf", "inf").parse().expect("a bound is a number"), *value))
                })
                .collect();
            assert!(buckets.len() > 2 && buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1));
            let last = buckets.last().expect("there are buckets");
            assert_eq!(*last, (f64::INFINITY, self.value(&format!("{family}_count{labels}"))));
            assert!(self.value(&format!("{family}_sum{labels}")) >= 0.0);
        }
    }
}

/// Nothing, or `{name="value",…}` with values that need no escape.
fn check_labels(labels: &str) {
    if labels.is_empty() {
        return;
    }
    let inner = labels.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).expect("labels are in braces");
    for label in inner.split(',') {
        let (name, value) = label.split_once('=').expect("a label has a value");
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{labels}");
        let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).expect("a value is quoted");
        assert!(!value.contains(['"', '\\', '\n']), "{labels}");
    }
}

// ---- web pages ------------------------------------------------------------------------------------------------------

/// The answer to a request with these header lines, among which is its `Host`, if it is to have one.
fn asked(demi: &Demi, line: &str, headers: &str) -> Response {
    Response::parse(&demi.raw(format!("{line}\r\nConnection: close\r\n{headers}\r\n").as_bytes()))
}

fn demi_with_hosts(hosts: &str) -> Demi {
    let directory = std::sync::Arc::new(Directory::new());
    let text = format!(r#"(http: (listen: "127.0.0.1:0", {hosts}), store: (path: "data"), {ECHO})"#);
    let config = directory.write("config.ron", &text);
    let demi = Demi::start_from(directory, &config);
    let port = demi.address.port();
    until("Demi is ready", || {
        (asked(&demi, "GET /readyz HTTP/1.1", &format!("Host: 127.0.0.1:{port}\r\n")).status == 200).then_some(())
    });
    demi
}

#[test]
fn a_web_page_that_gives_its_name_our_address_is_told_nothing_and_stops_nothing() {
    let demi = demi_with_hosts("");
    let port = demi.address.port();
    for line in [
        "GET /v1/status HTTP/1.1",
        "GET /nowhere HTTP/1.1",
        "GET /echo/x HTTP/1.1",
        "GET /echo/../x HTTP/1.1",
        "POST /v1/platforms/echo/stop HTTP/1.1",
    ] {
        let answer = asked(&demi, line, &format!("Host: evil.example:{port}\r\n"));
        assert_eq!((answer.status, &answer.json()["code"]), (421, &"misdirected".into()), "{line}: {answer:?}");
        let detail = answer.json()["detail"].to_string();
        assert!(detail.contains("`http.hosts`") && detail.contains("evil.example"), "{detail}");
    }
    let answer = asked(&demi, "GET http://evil.example/healthz HTTP/1.1", &format!("Host: 127.0.0.1:{port}\r\n"));
    assert_eq!(answer.status, 421, "the target's host outranks Host");
    for host in [format!("127.0.0.1:{port}"), format!("LOCALHOST.:{port}"), "a.localhost".into(), "[::1]:1".into()] {
        assert_eq!(asked(&demi, "GET /echo/x HTTP/1.1", &format!("Host: {host}\r\n")).body, "/echo/x", "{host}");
    }
    assert_eq!(asked(&demi, "GET /echo/x HTTP/1.0", "").body, "/echo/x");
    assert_eq!(asked(&demi, "GET /v1/platforms/echo HTTP/1.0", "").json()["ready"], true, "nobody stopped it");
}

#[test]
fn a_request_refused_for_its_host_leaves_the_connection_to_the_next() {
    let demi = demi_with_hosts("");
    let mut client = Client::of(&demi);
    client.send("POST /echo/x HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 5\r\n\r\nhello");
    assert_problem(&client.answer(), 421);
    client.send("GET /echo/y HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.answer().body, "/echo/y");
}

#[test]
fn a_web_page_of_another_site_orders_nothing_and_one_of_a_configured_host_may() {
    let demi = demi_with_hosts(r#"hosts: ["demi.example"]"#);
    let here = format!("Host: 127.0.0.1:{}\r\n", demi.address.port());
    let strange = ["Origin: http://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"];
    for sender in strange {
        let headers = format!("{here}{sender}");
        for line in ["POST /v1/platforms/echo/stop HTTP/1.1", "POST /v1/requests HTTP/1.1", "DELETE /metrics HTTP/1.1"]
        {
            let answer = asked(&demi, line, &headers);
            assert_eq!((answer.status, &answer.json()["code"]), (403, &"cross_site".into()), "{line} {sender}");
        }
        assert_eq!(asked(&demi, "GET /healthz HTTP/1.1", &headers).status, 200, "{sender}");
        assert_eq!(asked(&demi, "POST /echo/x HTTP/1.1", &headers).status, 200, "a platform decides itself: {sender}");
    }
    assert_eq!(asked(&demi, "GET /v1/platforms/echo HTTP/1.1", &here).json()["ready"], true, "nobody stopped it");

    let proxied = "Host: demi.example\r\nOrigin: https://demi.example\r\nSec-Fetch-Site: same-origin\r\n";
    assert_eq!(asked(&demi, "POST /v1/platforms/echo/restart HTTP/1.1", proxied).status, 202);
    assert_eq!(asked(&demi, "POST /v1/platforms/echo/stop HTTP/1.1", &here).status, 202, "curl sends no Origin");
    let every = demi_with_hosts(r#"hosts: ["*"]"#);
    assert_eq!(asked(&every, "GET /echo/x HTTP/1.1", "Host: any.example\r\n").body, "/echo/x");
}

// ---- many at once ---------------------------------------------------------------------------------------------------

#[test]
fn many_connections_at_once_are_all_served() {
    let demi = Demi::start(ECHO);
    let mut clients: Vec<Client> = (0..500).map(|_| Client::of(&demi)).collect();
    for client in &mut clients {
        client.send(get("/echo/x"));
    }
    for client in &mut clients {
        assert_eq!(client.answer().body, "/echo/x");
    }
    drop(clients);
    until("all are gone", || (connections(&demi) == 1).then_some(()));
}

#[test]
fn a_client_that_goes_while_it_waits_is_counted_and_frees_its_place() {
    let demi = Demi::start(&never_answers("in_flight_max: 1, queue_max: 0", "timeout_ms: 60000"));
    demi.wait_ready();
    let mut client = Client::of(&demi);
    client.send(get("/slow"));
    until("it has the request", || (demi.instance("slow", 0)["in_flight"] == 1).then_some(()));
    client.reset();
    until("its place is free", || (demi.instance("slow", 0)["in_flight"] == 0).then_some(()));
    assert!(demi.get("/metrics").body.contains("\ndemi_requests_gone_total 1\n"));
}

#[test]
fn what_a_client_sends_after_the_last_answer_cannot_keep_the_connection() {
    let demi = Demi::start(ECHO);
    let mut client = Client::of(&demi);
    client.send("GET /echo/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let began = Instant::now();
    // It talks on without end; Demi listens for a while out of politeness only.
    while client.stream.write_all(&[b'x'; 1024]).is_ok() {
        assert!(began.elapsed() < crate::support::PATIENCE, "it is listened to for ever");
    }
    let mut answer = Vec::new();
    let _ = client.stream.read_to_end(&mut answer);
    until("it is gone", || (connections(&demi) == 1).then_some(()));
}
