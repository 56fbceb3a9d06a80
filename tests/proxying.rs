//! Requests that are passed on to HTTP services elsewhere, which here are threads that do as the test says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::client::{get, post, post_chunked, Client};
use crate::support::{until, Demi, Nowhere, Response, PATIENCE};

/// An HTTP service of the test's own. Its threads end with the test.
pub struct Upstream {
    pub address: SocketAddr,
    asked_connections: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<u8>>>,
}

/// A connection to it.
pub struct Peer {
    pub stream: TcpStream,
    bytes: Vec<u8>,
    /// Which of the connections over which something was asked this is, from 1; 0 before.
    number: usize,
    asked_connections: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Upstream {
    /// Has `serve` serve each connection; when it returns, the connection is closed.
    pub fn start(serve: impl Fn(&mut Peer) + Send + Sync + 'static) -> Upstream {
        Upstream::on(TcpListener::bind("127.0.0.1:0").expect("there is a free port"), serve)
    }

    pub fn on(listener: TcpListener, serve: impl Fn(&mut Peer) + Send + Sync + 'static) -> Upstream {
        let address = listener.local_addr().expect("it is bound");
        let (asked_connections, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let upstream = Upstream {
            address,
            asked_connections: asked_connections.clone(),
            asked: asked.clone(),
            seen: seen.clone(),
        };
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (asked_connections, asked, seen) = (asked_connections.clone(), asked.clone(), seen.clone());
                let mut peer = Peer { stream, bytes: Vec::new(), number: 0, asked_connections, asked, seen };
                let serve = serve.clone();
                std::thread::spawn(move || serve(&mut peer));
            }
        });
        upstream
    }

    /// Answers every request with these bytes and keeps the connection.
    pub fn answering(bytes: &'static [u8]) -> Upstream {
        Upstream::start(move |peer| {
            while peer.request().is_some() {
                peer.send(bytes);
            }
        })
    }

    /// How many connections carried a request.
    pub fn connections(&self) -> usize {
        self.asked_connections.load(Ordering::SeqCst)
    }

    /// Every byte that came since this was last asked, over all connections.
    pub fn take_seen(&self) -> String {
        let bytes = std::mem::take(&mut *self.seen.lock().expect("no thread panics while it holds it"));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How many requests came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Peer {
    /// The next request: its head and its body, which is as long as it says. `None` when the connection ends.
    pub fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.head()?;
        let mut body = Vec::new();
        if head.contains("\r\nTransfer-Encoding: chunked\r\n") {
            while let Some(chunk) = self.chunk()? {
                body.extend_from_slice(&chunk);
            }
            self.trailers()?;
        } else {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok()).unwrap_or(0);
            body = self.bytes(length)?;
        }
        Some((head, body))
    }

    /// The next head; what follows stays to be read. `None` when the connection ends.
    pub fn head(&mut self) -> Option<String> {
        let end = loop {
            match self.bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => self.read()?,
            }
        };
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.number == 0 {
            self.number = self.asked_connections.fetch_add(1, Ordering::SeqCst) + 1;
        }
        Some(String::from_utf8(self.bytes.drain(..end).collect()).expect("a head is text"))
    }

    /// The next chunk; `Some(None)` after the last, before the trailers.
    pub fn chunk(&mut self) -> Option<Option<Vec<u8>>> {
        let line = self.line()?;
        let length = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("{line:?} is no chunk size"));
        if length == 0 {
            return Some(None);
        }
        let chunk = self.bytes(length)?;
        assert_eq!(self.line()?, "", "a chunk ends where its size says");
        Some(Some(chunk))
    }

    /// The lines behind the last chunk.
    pub fn trailers(&mut self) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            match self.line()? {
                line if line.is_empty() => return Some(lines),
                line => lines.push(line),
            }
        }
    }

    fn line(&mut self) -> Option<String> {
        let end = loop {
            match self.bytes.windows(2).position(|end| end == b"\r\n") {
                Some(end) => break end,
                None => self.read()?,
            }
        };
        let line = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
        self.bytes.drain(..end + 2);
        Some(line)
    }

    /// The next bytes; `None` if the connection ends before.
    pub fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.bytes.len() < count {
            self.read()?;
        }
        Some(self.bytes.drain(..count).collect())
    }

    fn read(&mut self) -> Option<()> {
        let mut bytes = [0; 16 * 1024];
        let count = self.stream.read(&mut bytes).ok().filter(|count| *count > 0)?;
        self.bytes.extend_from_slice(&bytes[..count]);
        self.seen.lock().expect("no thread panics while it holds it").extend_from_slice(&bytes[..count]);
        Some(())
    }

    /// The next bytes, whatever they are. Panics if the connection ends before.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        self.bytes(count).expect("the connection has not ended")
    }

    /// Some of the next bytes, at most so many; `None` if the connection ends.
    pub fn some(&mut self, most: usize) -> Option<Vec<u8>> {
        if self.bytes.is_empty() {
            self.read()?;
        }
        Some(self.bytes.drain(..most.min(self.bytes.len())).collect())
    }

    /// All bytes until the connection ends.
    pub fn take_all(&mut self) -> Vec<u8> {
        while self.read().is_some() {}
        std::mem::take(&mut self.bytes)
    }

    /// Sends, as far as the other side takes it.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Answers with a text.
    pub fn answer(&mut self, text: &str) {
        self.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()));
    }

    /// Waits until Demi closes.
    pub fn wait_for_end(&mut self) {
        while self.read().is_some() {}
    }
}

/// Demi before these upstreams, asked below `/up`; ready.
fn before(addresses: &[SocketAddr]) -> Demi {
    let demi = Demi::start(&sections(addresses, "", ""));
    demi.wait_ready();
    demi
}

fn sections(addresses: &[SocketAddr], platform: &str, route: &str) -> String {
    let upstreams: String = addresses.iter().map(|address| format!("\"{address}\",")).collect();
    format!(
        r#"health: (interval_ms: 50, doubt_interval_ms: 20, down_interval_ms: 20, timeout_ms: 2000),
        breaker: (failures: 1000),
        platforms: [(name: "up", host: Http, upstreams: [{upstreams}], {platform})],
        routes: [(path: "/up/*", to: "up", {route}), (from: "discord", to: "up")]"#
    )
}

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

fn assert_problem(answer: &Response, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("Content-Type"), Some("application/problem+json"), "{answer:?}");
    assert_eq!(answer.json()["status"], status);
}

#[test]
fn what_is_meant_for_the_far_end_gets_there_and_nothing_else() {
    let (heads, heard) = channel();
    let heads = Mutex::new(heads);
    let upstream = Upstream::start(move |peer| {
        while let Some(request) = peer.request() {
            heads.lock().expect("no thread panics here").send(request).expect("the test listens");
            peer.send(
                "HTTP/1.1 418 Teapot\r\nContent-Type: text/tea\r\nX-Far: 1\r\nKeep-Alive: timeout=5\r\n\
                 Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nDate: never\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
                 Content-Length: 3\r\n\r\ntea",
            );
        }
    });
    let demi = before(&[upstream.address]);
    let mut client = Client::of(&demi);
    client.send(
        "POST /up/x?y=1 HTTP/1.1\r\nHost: named\r\nX-End: 1\r\nConnection: X-Private, keep-alive\r\nX-Private: 1\r\n\
         Keep-Alive: 1\r\nTE: trailers\r\nUpgrade: websocket\r\nProxy-Authorization: secret\r\nExpect: 100-continue\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
    );
    assert_eq!(client.head().status, 100);
    client.send("3\r\nhel\r\n2\r\nlo\r\n0\r\nX-Trailer: 1\r\n\r\n");
    let answer = client.answer();
    let (head, body) = heard.recv_timeout(PATIENCE).expect("the upstream was asked");
    assert_eq!(body, b"hello");
    let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "POST /up/x?y=1 HTTP/1.1");
    lines.sort_unstable();
    let told = [
        "Connection: TE",
        "Forwarded: for=127.0.0.1;host=\"named\";proto=http",
        "Host: named",
        "TE: trailers",
        "Transfer-Encoding: chunked",
        "Via: 1.1 demi",
        "X-End: 1",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Host: named",
        "X-Forwarded-Proto: http",
    ];
    assert_eq!(lines, told);

    assert_eq!((answer.status, answer.body.as_str()), (418, "tea"));
    assert_eq!((answer.header("Content-Type"), answer.header("X-Far")), (Some("text/tea"), Some("1")));
    assert_eq!(answer.head.matches("Set-Cookie").count(), 2);
    assert_eq!(answer.head.matches("Date: ").count(), 1);
    assert_eq!(answer.header("Via"), Some("1.1 demi"));
    assert_ne!(answer.header("Date"), Some("never"));
    for hop in ["Keep-Alive", "Connection", "X-Hop"] {
        assert_eq!(answer.header(hop), None, "{answer:?}");
    }
}

#[test]
fn a_message_reaches_an_upstream_as_a_post_of_its_content() {
    let (heads, heard) = channel();
    let heads = Mutex::new(heads);
    let upstream = Upstream::start(move |peer| {
        while let Some(request) = peer.request() {
            heads.lock().expect("no thread panics here").send(request).expect("the test listens");
            peer.answer("yes");
        }
    });
    let demi = before(&[upstream.address]);
    assert_eq!(demi.post("/v1/requests", "{\"from\": \"discord\", \"content\": \"hi\"}").body, "yes");
    let (head, body) = heard.recv_timeout(PATIENCE).expect("the upstream was asked");
    assert!(head.starts_with("POST / HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nContent-Type: text/plain; charset=utf-8\r\n"), "{head}");
    assert_eq!(body, b"hi");
}

#[test]
fn one_upstream_connection_serves_many_requests_of_many_clients() {
    let upstream = Upstream::answering(HELLO);
    let demi = before(&[upstream.address]);
    for _ in 0..20 {
        assert_eq!(demi.get("/up/x").body, "hello");
    }
    let mut client = Client::of(&demi);
    client.send(get("/up/x").repeat(50));
    for _ in 0..50 {
        assert_eq!(client.answer().body, "hello");
    }
    assert_eq!((upstream.asked(), upstream.connections()), (70, 1));
}

#[test]
fn bodies_of_every_framing_arrive_whole() {
    let upstream = Upstream::start(|peer| {
        while let Some((head, body)) = peer.request() {
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            match path.as_str() {
                "/up/empty" => peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
                "/up/chunked" => peer.send(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhell\r\n1;x=y\r\no\r\n0\r\nT: 1\r\n\r\n",
                ),
                "/up/close" => {
                    peer.send("HTTP/1.1 200 OK\r\n\r\nhel");
                    peer.send("lo");
                    return;
                }
                "/up/1.0" => return peer.send("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
                "/up/204" => peer.send("HTTP/1.1 204 No Content\r\n\r\n"),
                "/up/304" => peer.send("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 5\r\n\r\n"),
                "/up/interim" => {
                    peer.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
                    peer.send(HELLO);
                }
                "/up/head-length" => peer.send("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n"),
                "/up/head-open" => peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
                "/up/back" => {
                    peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
                    peer.send(body);
                }
                other => panic!("{other} is not expected"),
            }
        }
    });
    let demi = before(&[upstream.address]);
    let mut client = Client::of(&demi);
    for path in ["/up/chunked", "/up/close", "/up/1.0", "/up/interim"] {
        let answer = client.get(path);
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"), "{path}");
    }
    assert_eq!(client.get("/up/empty").body, "");
    assert_eq!(client.get("/up/204").status, 204);
    let unchanged = client.get("/up/304");
    assert_eq!((unchanged.status, unchanged.header("ETag")), (304, Some("\"x\"")));
    client.send("HEAD /up/head-length HTTP/1.1\r\nHost: x\r\n\r\nHEAD /up/head-open HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.head().header("Content-Length"), Some("12345"));
    assert_eq!(client.head().header("Content-Length"), None, "nobody knows it");
    let body = "x".repeat(1 << 20);
    client.send(post("/up/back", &body));
    assert!(client.answer().body == body);
    client.send(post_chunked("/up/back", [&body[..1000], &body[1000..]]));
    assert!(client.answer().body == body);
    // A client that knows no chunks gets the same until its connection ends.
    let old = demi.raw(b"GET /up/close HTTP/1.0\r\n\r\n");
    assert!(old.ends_with("\r\n\r\nhello") && !old.contains("chunked"), "{old}");
    assert_eq!(client.get("/up/chunked").body, "hello");
}

/// Serves requests by first sending a head, and then whatever comes over a channel until that is closed.
fn fed(head: &'static str) -> (Upstream, Sender<Vec<u8>>) {
    let (feed, food) = channel::<Vec<u8>>();
    let food = Mutex::new(food);
    let upstream = Upstream::start(move |peer| {
        while peer.request().is_some() {
            peer.send(head);
            for bytes in food.lock().expect("no thread panics here").iter() {
                peer.send(bytes);
            }
        }
    });
    (upstream, feed)
}

#[test]
fn chunks_reach_the_client_before_the_upstream_has_sent_the_last() {
    let (upstream, feed) = fed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Far: 1\r\n\r\n");
    let demi = before(&[upstream.address]);
    let mut client = Client::of(&demi);
    client.send(get("/up/x"));
    let head = client.head();
    assert_eq!((head.header("Transfer-Encoding"), head.header("X-Far")), (Some("chunked"), Some("1")));
    for word in ["one", "two", "three"] {
        feed.send(format!("{:x}\r\n{word}\r\n", word.len()).into()).expect("the upstream serves");
        assert_eq!(client.chunk().as_deref(), Some(word.as_bytes()));
    }
    feed.send(b"0\r\n\r\n".to_vec()).expect("the upstream serves");
    assert_eq!(client.chunk(), None);
    drop(feed);
}

#[test]
fn an_answer_that_breaks_off_breaks_off_for_the_client_too() {
    for (head, last) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", ""),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", ""),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "nonsense\r\n"),
    ] {
        let (seen, is_seen) = channel::<()>();
        let is_seen = Mutex::new(is_seen);
        let upstream = Upstream::start(move |peer| {
            if peer.request().is_some() {
                peer.send(head);
                let _ = is_seen.lock().expect("no thread panics here").recv_timeout(PATIENCE);
                peer.send(last);
            }
        });
        let demi = before(&[upstream.address]);
        let mut client = Client::of(&demi);
        client.send(get("/up/x") + &get("/up/smuggled"));
        assert_eq!(client.head().status, 200);
        seen.send(()).expect("the upstream waits");
        let rest = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(rest == "hello" || rest == "5\r\nhello\r\n", "{rest:?}");
        assert_eq!(demi.get("/healthz").status, 200);
    }
}

/// Sends a body of this size, in pieces, and tells when it is through.
fn large(bytes: usize) -> Upstream {
    Upstream::start(move |peer| {
        while peer.request().is_some() {
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n"));
            let piece: Vec<u8> = (0..=255).cycle().take(64 * 1024).collect();
            for _ in 0..bytes / piece.len() {
                peer.send(&piece);
            }
        }
    })
}

#[test]
fn a_large_answer_flows_through_without_being_held() {
    let upstream = large(50 << 20);
    let demi = before(&[upstream.address]);
    let mut client = Client::of(&demi);
    for _ in 0..2 {
        client.send(get("/up/x"));
        assert_eq!(client.head().header("Content-Length"), Some("52428800"));
        for _ in 0..(50 << 20) / (64 * 1024) {
            let piece = client.bytes(64 * 1024);
            assert!(piece.iter().enumerate().all(|(index, byte)| *byte == index as u8));
        }
    }
    assert_eq!((upstream.asked(), upstream.connections()), (2, 1));
    let peak = demi.peak_bytes();
    assert!(peak < 40 << 20, "Demi held {} MiB", peak >> 20);
}

#[test]
fn a_slow_client_slows_the_upstream_and_fills_no_memory() {
    let upstream = large(50 << 20);
    // Longer than a loaded machine may leave the first client alone.
    let demi = Demi::start_with_http("body_timeout_ms: 4000", &sections(&[upstream.address], "", ""));
    demi.wait_ready();
    let before = demi.peak_bytes();
    // Ten clients read the head, and then for a while nothing.
    let mut clients: Vec<Client> = (0..10).map(|_| Client::of(&demi)).collect();
    for client in &mut clients {
        client.send(get("/up/x"));
        assert_eq!(client.head().status, 200);
    }
    // The first comes to its senses in time and gets everything.
    let mut first = clients.remove(0);
    for _ in 0..(50 << 20) / (64 * 1024) {
        first.bytes(64 * 1024);
    }
    // The others are closed, and with them their upstream connections.
    until("they are closed", || (demi.json("/v1/status")["connections"] == 2).then_some(()));
    assert_eq!(demi.instance("up", 0)["in_flight"], 0);
    let held = demi.peak_bytes() - before;
    assert!(held < 24 << 20, "Demi held {} KiB for ten slow clients", held >> 10);
}

#[test]
fn a_client_that_hangs_up_in_the_middle_ends_the_upstream_connection() {
    let (ended, has_ended) = channel();
    let ended = Mutex::new(ended);
    let upstream = Upstream::start(move |peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            while peer.stream.write_all(b"5\r\nhello\r\n").is_ok() {}
            ended.lock().expect("no thread panics here").send(()).expect("the test listens");
        }
    });
    let demi = before(&[upstream.address]);
    let mut client = Client::of(&demi);
    client.send(get("/up/x"));
    assert_eq!(client.head().status, 200);
    assert!(client.chunk().is_some());
    drop(client);
    has_ended.recv_timeout(PATIENCE).expect("the upstream is told");
    until("nothing is in flight", || (demi.instance("up", 0)["in_flight"] == 0).then_some(()));
    assert!(demi.get("/metrics").body.contains("\ndemi_requests_gone_total 1\n"));
}

#[test]
fn what_is_no_answer_is_a_bad_gateway() {
    let answers: [&[u8]; 9] = [
        b"garbage\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ];
    for bytes in answers {
        let upstream = Upstream::start(move |peer| {
            if peer.request().is_some() {
                peer.send(bytes);
            }
        });
        let demi = before(&[upstream.address]);
        let mut client = Client::of(&demi);
        let answer = client.get("/up/x");
        assert_problem(&answer, 502);
        assert_eq!((answer.json()["platform"].as_str(), answer.json()["code"].as_str()), (Some("up"), Some("broken")));
        assert_eq!(client.get("/healthz").status, 200, "the connection goes on");
    }
}

#[test]
fn what_an_upstream_sends_unasked_is_nobodys_answer() {
    let upstream = Upstream::start(|peer| {
        while peer.request().is_some() {
            peer.send([HELLO, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"].concat());
        }
    });
    let demi = before(&[upstream.address]);
    for _ in 0..10 {
        assert_eq!(demi.get("/up/x").body, "hello");
    }
    assert_eq!(upstream.connections(), 10, "such a connection is not used again");
}

#[test]
fn thousands_of_interim_answers_are_skipped() {
    let upstream = Upstream::start(|peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 100 \r\n\r\n".repeat(20_000));
            peer.answer("at last");
        }
    });
    let demi = before(&[upstream.address]);
    assert_eq!(demi.get("/up/x").body, "at last");
}

#[test]
fn an_upstream_that_hangs_times_out() {
    let upstream = Upstream::start(|peer| {
        peer.request();
        peer.wait_for_end();
    });
    let demi = Demi::start(&sections(&[upstream.address], "", "timeout_ms: 300"));
    demi.wait_ready();
    assert_problem(&demi.get("/up/x"), 504);
    assert!(demi.get("/metrics").body.contains("\ndemi_attempts_total{platform=\"up\",outcome=\"timed_out\"} 1\n"));
}

#[test]
fn requests_go_round_a_dead_upstream() {
    let gone = Nowhere::new();
    let upstream = Upstream::answering(HELLO);
    let demi = Demi::start(&sections(&[gone.address, upstream.address], "", ""));
    demi.wait_ready();
    for n in 0..30 {
        assert_eq!(demi.request(["GET", "POST"][n % 2], "/up/x", "body").body, "hello");
    }
    until("it is found to be dead", || (demi.instance("up", 0)["state"] == "down").then_some(()));
}

#[test]
fn an_upstream_that_dies_between_health_checks_costs_no_request() {
    let live = Upstream::answering(HELLO);
    // Answers one connection, its first health check, and is gone.
    let dying = Nowhere::new();
    let listener = dying.listen(128);
    let dies = std::thread::spawn(move || drop(listener.accept()));
    let calm = sections(&[dying.address, live.address], "", "").replace("interval_ms: 50", "interval_ms: 60000");
    let demi = Demi::start(&calm);
    until("both are up", || (demi.json("/v1/status")["platforms"][0]["instances_ready"] == 2).then_some(()));
    dies.join().expect("it has died");
    for n in 0..30 {
        let answer = demi.request(["GET", "POST"][n % 2], "/up/x", "body");
        assert_eq!(answer.body, "hello", "{n}");
    }
}

#[test]
fn a_platform_whose_upstream_is_not_there_is_not_ready_until_it_comes() {
    let nowhere = Nowhere::new();
    let demi = Demi::start(&sections(&[nowhere.address], "", ""));
    until("it is down", || (demi.instance("up", 0)["state"] == "down").then_some(()));
    assert_eq!(demi.get("/readyz").status, 503);
    let refused = demi.get("/up/x");
    assert_problem(&refused, 503);
    assert!(refused.header("Retry-After").is_some(), "{refused:?}");
    let upstream = Upstream::on(nowhere.listen(128), |peer| {
        while peer.request().is_some() {
            peer.send(HELLO);
        }
    });
    demi.wait_ready();
    assert_eq!(demi.get("/up/x").body, "hello");
    assert_eq!(upstream.asked(), 1);
}

#[test]
fn a_health_path_decides_whether_an_upstream_is_well() {
    let status = Arc::new(AtomicUsize::new(500));
    let shown = status.clone();
    let upstream = Upstream::start(move |peer| {
        while let Some((head, _)) = peer.request() {
            if head.starts_with("GET /well HTTP/1.1\r\n") {
                let status = shown.load(Ordering::SeqCst);
                peer.send(format!("HTTP/1.1 103 x\r\n\r\nHTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n"));
            } else {
                peer.send(HELLO);
            }
        }
    });
    let demi = Demi::start(&sections(&[upstream.address], "health_path: \"/well\"", ""));
    until("it is down", || (demi.instance("up", 0)["state"] == "down").then_some(()));
    assert_problem(&demi.get("/up/x"), 503);
    status.store(204, Ordering::SeqCst);
    demi.wait_ready();
    assert_eq!(demi.get("/up/x").body, "hello");
    status.store(503, Ordering::SeqCst);
    until("it is down again", || (demi.instance("up", 0)["state"] == "down").then_some(()));
}

#[test]
fn an_idle_connection_that_the_upstream_closed_costs_no_request() {
    // Serves one request on each connection without saying that it is the last, and closes.
    let upstream = Upstream::start(|peer| {
        if peer.request().is_some() {
            peer.send(HELLO);
        }
    });
    let demi = before(&[upstream.address]);
    let mut client = Client::of(&demi);
    for _ in 0..50 {
        assert_eq!(client.get("/up/x").body, "hello");
    }
}

#[test]
fn a_thousand_streams_of_random_pieces_are_passed_on_unchanged() {
    // Sends `n` bytes in pieces that differ from one request to the next.
    let upstream = Upstream::start(|peer| {
        while let Some((head, _)) = peer.request() {
            let n: usize = head.split(['/', ' ']).filter_map(|word| word.parse().ok()).next().unwrap_or(0);
            let body: Vec<u8> = (0..n).map(|index| (index * 7 + n) as u8).collect();
            let step = 1 + n % 977;
            let is_chunked = n.is_multiple_of(2);
            match is_chunked {
                true => peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
                false => peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {n}\r\n\r\n")),
            }
            for piece in body.chunks(step) {
                if is_chunked {
                    peer.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
                } else {
                    peer.send(piece);
                }
            }
            if is_chunked {
                peer.send("0\r\n\r\n");
            }
        }
    });
    let demi = before(&[upstream.address]);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let demi = &demi;
            scope.spawn(move || {
                let mut client = Client::of(demi);
                for round in 0..125 {
                    let n = (thread * 125 + round) * 37 % 20_000;
                    client.send(get(&format!("/up/{n}")));
                    let head = client.head();
                    let body = match head.header("Content-Length") {
                        Some(length) => client.bytes(length.parse().expect("a length is a number")),
                        None => std::iter::from_fn(|| client.chunk()).flatten().collect(),
                    };
                    assert!(body.len() == n && body.iter().enumerate().all(|(at, byte)| *byte == (at * 7 + n) as u8));
                }
            });
        }
    });
    assert_eq!(upstream.asked(), 1000);
    assert!(upstream.connections() <= 8, "{} connections for 8 clients", upstream.connections());
}

#[test]
fn connections_that_nobody_uses_are_bounded() {
    let upstream = Upstream::answering(HELLO);
    let demi = Demi::start_with_http("upstream_idle_max: 2", &sections(&[upstream.address], "", ""));
    demi.wait_ready();
    let pid = demi.pid();
    let sockets = || {
        let table = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
        let is_socket = |path: std::path::PathBuf| {
            std::fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        };
        table.filter_map(Result::ok).filter(|entry| is_socket(entry.path())).count()
    };
    let before = sockets();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::of(&demi)).collect();
    for _ in 0..5 {
        for client in &mut clients {
            client.send(get("/up/x"));
        }
        for client in &mut clients {
            assert_eq!(client.answer().body, "hello");
        }
    }
    drop(clients);
    until("all but two are closed", || (sockets() <= before + 2).then_some(()));
}

#[test]
fn a_platform_takes_only_so_many_requests_at_once_and_the_rest_waits() {
    let under_way = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (now, peak) = (under_way.clone(), most.clone());
    let upstream = Upstream::start(move |peer| {
        while peer.request().is_some() {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // Each of the first waits until there are as many as may be.
            until("three are under way", || (peak.load(Ordering::SeqCst) >= 3).then_some(()));
            std::thread::park_timeout(Duration::from_millis(5));
            now.fetch_sub(1, Ordering::SeqCst);
            peer.send(HELLO);
        }
    });
    let demi = Demi::start(&sections(&[upstream.address], "in_flight_max: 3", ""));
    demi.wait_ready();
    let mut clients: Vec<Client> = (0..12).map(|_| Client::of(&demi)).collect();
    for client in &mut clients {
        client.send(get("/up/x"));
    }
    for client in &mut clients {
        assert_eq!(client.answer().body, "hello");
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

// ---- services that say when to ask again ------------------------------------------------------------------------

const NOT_NOW: &[u8] =
    b"HTTP/1.1 429 x\r\nRetry-After: 1\r\nContent-Type: text/plain\r\nContent-Length: 7\r\n\r\nnot now";

#[test]
fn a_service_that_says_when_to_ask_again_is_asked_again_then_and_not_sooner() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = asked.clone();
    let upstream = Upstream::start(move |peer| {
        while peer.request().is_some() {
            let mut asked = noted.lock().expect("no test panics while it holds it");
            asked.push(std::time::Instant::now());
            peer.send(if asked.len() == 1 { NOT_NOW } else { HELLO });
        }
    });
    let demi = Demi::start(&sections(&[upstream.address], "", "retries: 1"));
    demi.wait_ready();
    // It did nothing, so that even what must not be done twice may be tried again.
    let answer = demi.post("/up/x", "hello");
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"), "{answer:?}");
    let asked = asked.lock().expect("no test panics while it holds it");
    assert!(asked.len() == 2 && asked[1] - asked[0] >= Duration::from_secs(1), "{asked:?}");
}

#[test]
fn another_service_is_asked_at_once_where_one_says_not_now() {
    let not_now = b"HTTP/1.1 429 x\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n";
    let upstreams = [Upstream::answering(not_now), Upstream::answering(HELLO)];
    let demi = Demi::start(&sections(&upstreams.each_ref().map(|upstream| upstream.address), "", "retries: 1"));
    demi.wait_ready();
    until("both were asked", || {
        let answer = demi.post("/up/x", "hello");
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"), "{answer:?}");
        (upstreams[0].asked() > 0).then_some(())
    });
}

#[test]
fn a_service_that_fails_and_says_when_to_ask_again_is_asked_again_only_what_may_be_done_twice() {
    let upstream = Upstream::answering(b"HTTP/1.1 503 x\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\ndown");
    let demi = Demi::start(&sections(&[upstream.address], "", "retries: 1"));
    demi.wait_ready();
    let began = std::time::Instant::now();
    for (is_idempotent, asked) in [(false, 1), (true, 3)] {
        let answer = if is_idempotent { demi.get("/up/x") } else { demi.post("/up/x", "hello") };
        assert_eq!((answer.status, answer.body.as_str()), (503, "down"), "{answer:?}");
        assert_eq!(upstream.asked(), asked);
    }
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_failure_whose_body_comes_later_than_its_head_is_tried_again_as_well() {
    let upstream = Upstream::start(|peer| {
        let mut asked = 0;
        while peer.request().is_some() {
            asked += 1;
            match asked % 3 {
                0 => peer.send(HELLO),
                // One that says how long it is, and one that does not.
                1 => {
                    peer.send("HTTP/1.1 503 x\r\nContent-Length: 4\r\n\r\n");
                    std::thread::yield_now();
                    peer.send("down");
                }
                _ => {
                    peer.send("HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\n");
                    std::thread::yield_now();
                    peer.send("4\r\ndown\r\n0\r\n\r\n");
                }
            }
        }
    });
    let route = "retries: 2, idempotent: true";
    let demi = Demi::start(&format!("retry: (base_ms: 1, max_ms: 1), {}", sections(&[upstream.address], "", route)));
    demi.wait_ready();
    for asked in 1..=3 {
        let answer = demi.get("/up/x");
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"), "{answer:?}");
        assert_eq!(upstream.asked(), 3 * asked);
    }
}

#[test]
fn what_a_service_says_of_when_to_ask_again_reaches_the_caller_and_opens_no_breaker() {
    let upstream = Upstream::answering(NOT_NOW);
    let demi = Demi::start(&format!(
        r#"breaker: (failures: 2, calls_min: 2), platforms: [(name: "up", host: Http, upstreams: ["{}"])],
        routes: [(path: "/up/*", to: "up", idempotent: true)]"#,
        upstream.address
    ));
    demi.wait_ready();
    for asked in 1..=10 {
        let answer = demi.get("/up/x");
        assert_eq!((answer.status, answer.body.as_str()), (429, "not now"), "{answer:?}");
        assert_eq!(answer.header("Retry-After"), Some("1"));
        assert_eq!(answer.header("Demi-Instance"), Some("up/0"));
        assert_eq!(upstream.asked(), asked);
    }
}

#[test]
fn an_answer_that_flows_is_passed_on_whatever_it_says_of_when_to_ask_again() {
    let upstream = Upstream::start(|peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 503 x\r\nRetry-After: 1\r\nContent-Length: 1000000\r\n\r\n");
            peer.send(vec![b'x'; 1_000_000]);
        }
    });
    let demi = Demi::start(&sections(&[upstream.address], "", "retries: 5, idempotent: true"));
    demi.wait_ready();
    let answer = demi.get("/up/x");
    assert_eq!((answer.status, answer.body.len(), upstream.asked()), (503, 1_000_000, 1));
}
