//! Connections that are upgraded: WebSocket and other protocols, carried both ways until they end.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Mutex;

use crate::client::{get, Client};
use crate::proxying::{Peer, Upstream};
use crate::support::{until, Demi, PATIENCE};

/// Demi before a service to which `/up` leads.
fn before(upstream: &Upstream, http: &str, more: &str) -> Demi {
    let demi = Demi::start_with_http(
        http,
        &format!(
            r#"platforms: [(name: "up", host: Http, upstreams: ["{}"])], routes: [(path: "/up/*", to: "up")], {more}"#,
            upstream.address
        ),
    );
    demi.wait_ready();
    demi
}

const UPGRADE: &str = "GET /up/x HTTP/1.1\r\nHost: test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: raw\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n";

/// A service that changes to the protocol `raw` and then does as the test says.
fn raw(serve: impl Fn(&mut Peer) + Send + Sync + 'static) -> Upstream {
    Upstream::start(move |peer| {
        if peer.request().is_some() {
            peer.send(SWITCHED);
            serve(peer);
        }
    })
}

/// A client whose connection has become a tunnel.
fn upgraded(demi: &Demi) -> Client {
    let mut client = Client::of(demi);
    client.send(UPGRADE);
    let head = client.head();
    assert_eq!((head.status, head.header("Upgrade"), head.header("Connection")), (101, Some("raw"), Some("Upgrade")));
    client
}

fn gauge(demi: &Demi, name: &str) -> u64 {
    let page = demi.get("/metrics").body;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect("it is on the page").parse().expect("it is a number")
}

fn wait_for_no_tunnel(demi: &Demi) {
    until("no tunnel is open", || (gauge(demi, "demi_http_tunnels_open") == 0).then_some(()));
    until("nothing is in flight", || (demi.instance("up", 0)["in_flight"] == 0).then_some(()));
}

fn byte(at: usize) -> u8 {
    (at * 7 + at / 251) as u8
}

/// Bytes of which each tells where it belongs.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(byte).collect()
}

// ---- WebSocket (RFC 6455) ---------------------------------------------------------------------------------------

/// The key of RFC 6455 §1.3, and what a service answers to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The next frame: its first byte and its payload, unmasked.
fn frame(mut read: impl FnMut(usize) -> Vec<u8>) -> (u8, Vec<u8>) {
    let head = read(2);
    let length = match head[1] & 0x7f {
        126 => usize::from(u16::from_be_bytes(read(2).try_into().expect("two bytes"))),
        127 => usize::try_from(u64::from_be_bytes(read(8).try_into().expect("eight bytes"))).expect("it fits"),
        short => usize::from(short),
    };
    let mask = if head[1] & 0x80 == 0 { vec![0; 4] } else { read(4) };
    let payload = read(length).iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
    (head[0], payload)
}

/// Writes a frame, masked as a client must.
fn framed(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(masked | length as u8),
        length @ 126..65_536 => {
            bytes.push(masked | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(masked | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    bytes
}

#[test]
fn a_websocket_goes_through_and_its_service_hears_what_a_handshake_needs() {
    let upstream = Upstream::start(|peer| {
        let Some((head, _)) = peer.request() else { return };
        for line in
            ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "X-Forwarded-For: 127.0.0.1"]
        {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} is not in {head}");
        }
        assert!(head.contains(&format!("\r\nSec-WebSocket-Key: {KEY}\r\n")), "{head}");
        peer.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        ));
        loop {
            let (first, payload) = frame(|count| peer.take(count));
            peer.send(framed(first, &payload, None));
            if first & 0x0f == 8 {
                return;
            }
        }
    });
    let demi = before(&upstream, "", "");
    let mut client = Client::of(&demi);
    client.send(format!(
        "GET /up/chat HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\n\
         Sec-WebSocket-Version: 13\r\n\r\n"
    ));
    let head = client.head();
    assert_eq!((head.status, head.header("Sec-WebSocket-Accept")), (101, Some(ACCEPT)));
    assert_eq!((head.header("Content-Length"), head.header("Transfer-Encoding")), (None, None));
    for length in [0, 5, 200, 70_000] {
        let payload = pattern(length);
        client.send(framed(0x82, &payload, Some([1, 2, 3, 4])));
        assert!(frame(|count| client.bytes(count)) == (0x82, payload), "{length}");
    }
    assert_eq!((gauge(&demi, "demi_http_tunnels_open"), gauge(&demi, "demi_http_tunnels_total")), (1, 1));
    assert_eq!(demi.instance("up", 0)["in_flight"], 1);
    client.send(framed(0x88, &1000u16.to_be_bytes(), Some([9, 9, 9, 9])));
    assert_eq!(frame(|count| client.bytes(count)), (0x88, 1000u16.to_be_bytes().to_vec()));
    client.expect_end();
    drop(client);
    wait_for_no_tunnel(&demi);
}

// ---- other protocols --------------------------------------------------------------------------------------------

#[test]
fn what_stands_right_behind_the_heads_is_carried_too() {
    let upstream = Upstream::start(|peer| {
        if peer.request().is_some() {
            peer.send([SWITCHED, "first"].concat());
            let bytes = peer.take(6);
            peer.send(bytes);
        }
    });
    let demi = before(&upstream, "", "");
    let mut client = Client::of(&demi);
    client.send([UPGRADE, "second"].concat());
    assert_eq!(client.head().status, 101);
    assert_eq!(client.bytes(11), b"firstsecond");
    client.expect_end();
}

#[test]
fn much_is_carried_both_ways_past_a_slow_reader_without_being_held() {
    const BYTES: usize = 24 << 20;
    let upstream = raw(|peer| {
        let mut reading = peer.stream.try_clone().expect("there are descriptors");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // A kilobyte at a time, which is slower than anything is sent here.
                let mut at = 0;
                let mut bytes = [0; 1024];
                while at < BYTES {
                    let count = reading.read(&mut bytes).expect("it is carried");
                    assert!(count > 0, "the tunnel ended at {at}");
                    assert!(bytes[..count].iter().enumerate().all(|(more, seen)| *seen == byte(at + more)));
                    at += count;
                }
            });
            peer.send(pattern(BYTES));
        });
        peer.stream.shutdown(Shutdown::Write).expect("it is there");
        peer.wait_for_end();
    });
    let demi = before(&upstream, "", "");
    let peak_before = demi.peak_bytes();
    let mut client = upgraded(&demi);
    let mut writing = client.stream.try_clone().expect("there are descriptors");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writing.write_all(&pattern(BYTES)).expect("it is carried");
            writing.shutdown(Shutdown::Write).expect("it is there");
        });
        for step in 0..BYTES / 1024 {
            let bytes = client.bytes(1024);
            assert!(bytes.iter().enumerate().all(|(more, seen)| *seen == byte(step * 1024 + more)));
        }
    });
    client.expect_end();
    wait_for_no_tunnel(&demi);
    let held = demi.peak_bytes() - peak_before;
    assert!(held < 6 << 20, "Demi held {} KiB", held >> 10);
}

#[test]
fn a_half_that_ends_leaves_the_other_open() {
    let upstream = raw(|peer| {
        let asked = peer.take_all();
        peer.send(format!("heard {} bytes", asked.len()));
    });
    let demi = before(&upstream, "", "");
    let mut client = upgraded(&demi);
    client.send("x".repeat(100_000));
    client.finish_sending();
    assert_eq!(client.rest(), b"heard 100000 bytes");
    wait_for_no_tunnel(&demi);

    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let upstream = raw(move |peer| {
        peer.send("that is all");
        peer.stream.shutdown(Shutdown::Write).expect("it is there");
        let heard = peer.take_all();
        tell.lock().expect("no thread panics here").send(heard).expect("the test listens");
    });
    let demi = before(&upstream, "", "");
    let mut client = upgraded(&demi);
    assert_eq!(client.rest(), b"that is all");
    client.send("and yet");
    client.finish_sending();
    assert_eq!(told.recv_timeout(PATIENCE).expect("it hears the end"), b"and yet");
    wait_for_no_tunnel(&demi);
}

/// A service that tells when its end of the tunnel has ended.
fn telling() -> (Upstream, Receiver<()>) {
    let (tell, told): (Sender<()>, _) = channel();
    let tell = Mutex::new(tell);
    let upstream = Upstream::start(move |peer| {
        if peer.request().is_none() {
            return;
        }
        // At once, so that the tunnel is not idle before.
        peer.send([SWITCHED, "ready"].concat());
        peer.wait_for_end();
        let _ = tell.lock().expect("no thread panics here").send(());
    });
    (upstream, told)
}

#[test]
fn either_side_that_dies_ends_the_tunnel_for_the_other() {
    let (upstream, told) = telling();
    let demi = before(&upstream, "", "");
    let mut client = upgraded(&demi);
    assert_eq!(client.bytes(5), b"ready");
    client.reset();
    told.recv_timeout(PATIENCE).expect("the service is told");
    wait_for_no_tunnel(&demi);
    assert_eq!(gauge(&demi, "demi_requests_gone_total"), 1);

    let upstream = raw(|peer| {
        peer.take(4);
        let at_once = Some(std::time::Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&peer.stream, at_once).expect("a socket option can be set");
    });
    let demi = before(&upstream, "", "");
    let mut client = upgraded(&demi);
    client.send("ping");
    client.expect_end();
    wait_for_no_tunnel(&demi);
}

#[test]
fn a_tunnel_through_which_nothing_moves_is_ended_after_its_time() {
    let (upstream, told) = telling();
    let demi = before(&upstream, "tunnel_idle_ms: 100", "");
    let mut client = upgraded(&demi);
    assert_eq!(client.bytes(5), b"ready");
    client.expect_end();
    told.recv_timeout(PATIENCE).expect("the service is told");
    wait_for_no_tunnel(&demi);
    assert_eq!(demi.instance("up", 0)["breaker"], "closed");
}

#[test]
fn an_ordered_end_waits_for_tunnels_as_for_requests_and_then_closes_them() {
    let (upstream, told) = telling();
    let mut demi = before(&upstream, "", "shutdown: (grace_ms: 4000)");
    let mut client = upgraded(&demi);
    assert_eq!(client.bytes(5), b"ready");
    demi.signal(rustix::process::Signal::TERM);
    client.expect_end();
    told.recv_timeout(PATIENCE).expect("the service is told");
    assert_eq!(demi.wait().code(), Some(0));
    assert!(demi.log().contains("no request is admitted any more"));
}

#[test]
fn what_is_no_change_of_protocols_is_an_answer_as_usual() {
    let upstream = Upstream::answering(b"HTTP/1.1 426 x\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno");
    let demi = before(&upstream, "", "");
    let mut client = Client::of(&demi);
    for _ in 0..2 {
        client.send(UPGRADE);
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_str()), (426, "no"));
    }
    assert_eq!(client.get("/healthz").status, 200, "it is HTTP that is spoken still");
    assert_eq!(gauge(&demi, "demi_http_tunnels_total"), 0);
}

#[test]
fn a_protocol_that_was_not_offered_is_not_changed_to() {
    let (heads, heard) = channel();
    let heads = Mutex::new(heads);
    let upstream = Upstream::start(move |peer| {
        while let Some((head, _)) = peer.request() {
            heads.lock().expect("no thread panics here").send(head).expect("the test listens");
            peer.send("HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n");
        }
    });
    let demi = before(&upstream, "", "");
    for (offer, told) in [
        ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x", None),
        ("Connection: Upgrade\r\nUpgrade: h2c, raw", Some("\r\nUpgrade: raw\r\n")),
        ("Upgrade: raw", None),
        ("Connection: Upgrade", None),
        ("Connection: Upgrade\r\nUpgrade: raw\r\nContent-Length: 1", None),
    ] {
        let mut client = Client::of(&demi);
        client.send(format!("GET /up/x HTTP/1.1\r\nHost: test\r\n{offer}\r\n\r\n"));
        if offer.ends_with('1') {
            client.send("x");
        }
        assert_eq!(client.answer().status, 502, "{offer}");
        let head = heard.recv_timeout(PATIENCE).expect("the upstream was asked");
        assert_eq!(told.is_some(), head.contains("Upgrade"), "{offer}: {head}");
        assert!(told.is_none_or(|line| head.contains(line)) && !head.contains("HTTP2"), "{offer}: {head}");
        client.send(get("/healthz"));
        assert_eq!(client.answer().status, 200);
    }
}
