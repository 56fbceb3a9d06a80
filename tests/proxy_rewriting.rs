//! What a route changes of the messages that it passes on, and how long connections to services are kept.

use std::sync::mpsc::channel;
use std::sync::Mutex;

use crate::client::{get, Client};
use crate::proxying::Upstream;
use crate::support::{demi_command, until, Demi, Directory, PATIENCE};

#[test]
fn a_route_changes_what_it_passes_on_both_ways() {
    let (heads, heard) = channel();
    let heads = Mutex::new(heads);
    let upstream = Upstream::start(move |peer| {
        while let Some((head, _)) = peer.request() {
            heads.lock().expect("no thread panics here").send(head).expect("the test listens");
            peer.send(
                "HTTP/1.1 200 OK\r\nServer: far\r\nX-Powered-By: far\r\nX-Far: 1\r\nContent-Length: 5\r\n\r\nhello",
            );
        }
    });
    let address = upstream.address;
    let demi = Demi::start(&format!(
        r#"platforms: [(name: "up", host: Http, upstreams: ["{address}"])],
        routes: [(path: "/up/*", to: "up", proxy: (
            strip_prefix: "/up",
            preserve_host: false,
            request_headers: {{"X-User": "demi"}},
            remove_request_headers: ["Cookie"],
            response_headers: {{"Server": "near"}},
            remove_response_headers: ["X-Powered-By"],
        )), (path: "/plain/*", to: "up")]"#
    ));
    demi.wait_ready();
    let mut client = Client::of(&demi);
    client.send("GET /up/a/b?c=/up HTTP/1.1\r\nHost: named\r\nCookie: secret\r\nx-user: root\r\n\r\n");
    let answer = client.answer();
    let head = heard.recv_timeout(PATIENCE).expect("the upstream was asked");
    assert!(head.starts_with(&format!("GET /a/b?c=/up HTTP/1.1\r\nHost: {address}\r\n")), "{head}");
    for line in ["X-User: demi", "X-Forwarded-Prefix: /up", "X-Forwarded-Host: named", "X-Forwarded-For: 127.0.0.1"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} is not in {head}");
    }
    assert!(!head.contains("secret") && !head.contains("root"), "{head}");
    assert_eq!((answer.header("Server"), answer.header("X-Far")), (Some("near"), Some("1")));
    assert!(!answer.head.contains("far"), "{answer:?}");

    client.send(get("/plain/x"));
    assert_eq!(client.answer().header("Server"), Some("far"), "another route is left alone");
    assert!(heard.recv_timeout(PATIENCE).expect("the upstream was asked").starts_with("GET /plain/x "));
}

#[test]
fn a_section_that_cannot_be_meant_is_told_before_anything_starts() {
    let directory = Directory::new();
    let text = r#"(platforms: [(name: "echo", host: Inline)],
        routes: [(path: "/a/*", to: "echo", proxy: (strip_prefix: "/b", request_headers: {"X\r\nY": "1"}))])"#;
    let config = directory.write("config.ron", text);
    let output = demi_command().arg("--dry-run").arg("--config").arg(config).output().expect("the binary was built");
    assert_eq!(output.status.code(), Some(3));
    let told = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    for what in ["host is not Http", "not the beginning of the route's path", "is not the name of a header"] {
        assert!(told.contains(what), "{what} is not told: {told}");
    }
}

#[test]
fn a_connection_that_nobody_uses_is_closed_after_its_time() {
    let (ended, has_ended) = channel();
    let ended = Mutex::new(ended);
    let upstream = Upstream::start(move |peer| {
        let mut asked = 0;
        while peer.request().is_some() {
            asked += 1;
            peer.answer("hello");
        }
        if asked > 0 {
            ended.lock().expect("no thread panics here").send(asked).expect("the test listens");
        }
    });
    let demi = Demi::start_with_http(
        "upstream_idle_ms: 100",
        &format!(
            r#"platforms: [(name: "up", host: Http, upstreams: ["{}"])], routes: [(path: "/up/*", to: "up")]"#,
            upstream.address
        ),
    );
    demi.wait_ready();
    assert_eq!(demi.get("/up/x").body, "hello");
    assert_eq!(has_ended.recv_timeout(PATIENCE), Ok(1), "the upstream sees the end");
    until("another connection serves", || (demi.get("/up/x").body == "hello").then_some(()));
}
