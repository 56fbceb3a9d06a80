//! What follows a body in chunks, passed on both ways.

use std::sync::mpsc::channel;
use std::sync::Mutex;

use crate::client::Client;
use crate::proxying::Upstream;
use crate::support::{until, Demi, PATIENCE};

fn before(upstream: &Upstream) -> Demi {
    let demi = Demi::start(&format!(
        r#"platforms: [(name: "up", host: Http, upstreams: ["{}"]), (name: "echo", host: Inline)],
        routes: [
            (path: "/up/*", to: "up"),
            (path: "/other/*", to: "up", proxy: (remove_request_headers: ["X-One"], remove_response_headers: ["X-Sum"])),
            (path: "/echo/*", to: "echo"),
        ]"#,
        upstream.address
    ));
    demi.wait_ready();
    demi
}

/// What is left of an answer in chunks: its payload and its trailers.
fn rest_of(client: &mut Client) -> (String, Vec<String>) {
    let mut payload = Vec::new();
    loop {
        let line = client.line();
        let length = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("{line:?} is no chunk size"));
        if length == 0 {
            break;
        }
        payload.extend(client.bytes(length));
        assert_eq!(client.line(), "", "a chunk ends where its size says");
    }
    let trailers = std::iter::from_fn(|| Some(client.line()).filter(|line| !line.is_empty())).collect();
    (String::from_utf8_lossy(&payload).into_owned(), trailers)
}

#[test]
fn trailers_of_a_request_reach_its_service_however_they_come() {
    let (heads, heard) = channel();
    let heads = Mutex::new(heads);
    let upstream = Upstream::start(move |peer| {
        while let Some(head) = peer.head() {
            let mut payload = Vec::new();
            while let Some(Some(chunk)) = peer.chunk() {
                payload.extend(chunk);
            }
            let Some(trailers) = peer.trailers() else { return };
            heads.lock().expect("no thread panics here").send((head, payload, trailers)).expect("the test listens");
            peer.answer("yes");
        }
    });
    let demi = before(&upstream);
    for (path, told) in [("/up/x", vec!["X-One: 1", "X-Two: 2"]), ("/other/x", vec!["X-Two: 2"])] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nTrailer: X-One, X-Two\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let body =
            "5\r\nhello\r\n0\r\nX-One: 1\r\nContent-Length: 3\r\nHost: evil\r\nAuthorization: x\r\nX-Two: 2\r\n\r\n";
        let whole = head.clone() + body;
        // All at once, and cut in the middle of the head, the chunk, the size, and a trailer.
        for cut in [whole.len(), 20, head.len(), head.len() + 5, head.len() + 11, head.len() + 17, whole.len() - 1] {
            let mut client = Client::of(&demi);
            client.send(&whole[..cut]);
            if cut >= head.len() && cut < whole.len() {
                until("it is under way", || (demi.instance("up", 0)["in_flight"] == 1).then_some(()));
            }
            client.send(&whole[cut..]);
            assert_eq!(client.answer().body, "yes");
            let (head, payload, trailers) = heard.recv_timeout(PATIENCE).expect("the upstream was asked");
            assert_eq!(
                (payload.as_slice(), &trailers),
                (b"hello".as_slice(), &told.iter().map(|line| (*line).to_owned()).collect()),
                "{cut}"
            );
            for line in ["Trailer: X-One, X-Two", "TE: trailers", "Connection: TE"] {
                assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} is not in {head}");
            }
            assert_eq!(client.get("/echo/x").status, 200);
        }
    }
    // Whoever takes whole bodies has no use for them.
    let mut client = Client::of(&demi);
    client.send(
        "POST /echo/x HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: 1\r\n\r\n",
    );
    assert_eq!(client.answer().body, "hello");
    assert_eq!(client.get("/echo/x").status, 200);
    assert!(demi.get("/metrics").body.contains("\ndemi_http_body_bytes 0\n"));
}

#[test]
fn trailers_of_an_answer_reach_its_client_however_they_come() {
    let (go, gone) = channel::<()>();
    let gone = Mutex::new(gone);
    let upstream = Upstream::start(move |peer| {
        while let Some((head, _)) = peer.request() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n");
            if head.contains("/slow") {
                let _ = gone.lock().expect("no thread panics here").recv_timeout(PATIENCE);
            }
            peer.send("0\r\nX-Sum: 5\r\nSet-Cookie: evil\r\nTransfer-Encoding: chunked\r\n\r\n");
        }
    });
    let demi = before(&upstream);
    let mut client = Client::of(&demi);
    for (path, told) in [("/up/x", vec!["X-Sum: 5"]), ("/up/slow", vec!["X-Sum: 5"]), ("/other/x", vec![])] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        let head = client.head();
        assert_eq!(
            (head.header("Transfer-Encoding"), head.header("Trailer")),
            (Some("chunked"), Some("X-Sum")),
            "{path}"
        );
        if path.ends_with("slow") {
            go.send(()).expect("the upstream waits");
        }
        assert_eq!(rest_of(&mut client), ("hello".to_owned(), told.into_iter().map(str::to_owned).collect()), "{path}");
    }
    let old = demi.raw(b"GET /up/x HTTP/1.0\r\n\r\n");
    assert!(old.ends_with("\r\n\r\nhello") && !old.contains("X-Sum: 5"), "{old}");
}
