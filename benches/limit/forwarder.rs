//! The bare forwarder: what any HTTP reverse proxy on mio and httparse costs at least on this machine. One thread,
//! edge-triggered, keep-alive on both sides with one upstream connection for each client connection, bodies passed
//! on as they come. Both heads are parsed and written anew without `connection`, as a proxy must; there are no
//! limits, no time-outs, no retries and no second upstream.

use std::io::{self, Read};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::responder::{body_bytes, flush};

const LISTENER: Token = Token(usize::MAX);

struct Side {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// What the pair waits for; bodies count down the bytes still to come.
enum Phase {
    Request,
    RequestBody(usize),
    Reply,
    ReplyBody(usize),
}

struct Pair {
    client: Side,
    upstream: Side,
    phase: Phase,
    head_only: bool,
}

/// Forwards everything to `to` until the process ends.
pub fn serve(listener: std::net::TcpListener, to: SocketAddr) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(256);
    let mut pairs: Slab<Pair> = Slab::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    let entry = pairs.vacant_entry();
                    let mut pair = Pair {
                        client: Side { stream, input: Vec::new(), output: Vec::new() },
                        upstream: Side { stream: TcpStream::connect(to)?, input: Vec::new(), output: Vec::new() },
                        phase: Phase::Request,
                        head_only: false,
                    };
                    for (bit, side) in [&mut pair.client, &mut pair.upstream].into_iter().enumerate() {
                        side.stream.set_nodelay(true)?;
                        let interest = Interest::READABLE | Interest::WRITABLE;
                        poll.registry().register(&mut side.stream, Token(entry.key() * 2 + bit), interest)?;
                    }
                    entry.insert(pair);
                }
                continue;
            }
            let (key, bit) = (event.token().0 / 2, event.token().0 % 2);
            let Some(pair) = pairs.get_mut(key) else { continue };
            let side = if bit == 0 { &mut pair.client } else { &mut pair.upstream };
            let turned = side.read(event.is_read_closed(), &mut chunk).and_then(|()| pair.relay());
            if turned.is_err() {
                pairs.remove(key);
            }
        }
    }
}

impl Side {
    fn read(&mut self, closed: bool, chunk: &mut [u8]) -> io::Result<()> {
        loop {
            match self.stream.read(chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.input.extend_from_slice(&chunk[..count]);
                    // A short read has emptied the socket (epoll(7)), unless the peer's end follows it.
                    if count < chunk.len() && !closed {
                        return Ok(());
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => {
                    return Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Pair {
    /// Moves everything that can move, in both directions, then writes.
    fn relay(&mut self) -> io::Result<()> {
        let (client, upstream) = (&mut self.client, &mut self.upstream);
        loop {
            self.phase = match self.phase {
                Phase::Request if client.input.is_empty() => break,
                Phase::Request => {
                    let mut headers = [httparse::EMPTY_HEADER; 32];
                    let mut request = httparse::Request::new(&mut headers);
                    let status = request.parse(&client.input).map_err(io::Error::other)?;
                    let httparse::Status::Complete(head) = status else { break };
                    let method = request.method.unwrap_or("GET");
                    self.head_only = method == "HEAD";
                    let line = [method, " ", request.path.unwrap_or("/"), " HTTP/1.1\r\n"];
                    line.iter().for_each(|part| upstream.output.extend_from_slice(part.as_bytes()));
                    copy_headers(request.headers, &mut upstream.output);
                    let body = body_bytes(request.headers)?;
                    client.input.drain(..head);
                    Phase::RequestBody(body)
                }
                Phase::RequestBody(left) => match move_body(left, &mut client.input, &mut upstream.output) {
                    0 => Phase::Reply,
                    left => {
                        self.phase = Phase::RequestBody(left);
                        break;
                    }
                },
                Phase::Reply if upstream.input.is_empty() => break,
                Phase::Reply => {
                    let mut headers = [httparse::EMPTY_HEADER; 32];
                    let mut reply = httparse::Response::new(&mut headers);
                    let status = reply.parse(&upstream.input).map_err(io::Error::other)?;
                    let httparse::Status::Complete(head) = status else { break };
                    client.output.extend_from_slice(b"HTTP/1.1 ");
                    let code = reply.code.unwrap_or(502);
                    client.output.extend([100, 10, 1].map(|unit| b'0' + (code / unit % 10) as u8));
                    client.output.push(b' ');
                    client.output.extend_from_slice(reply.reason.unwrap_or("").as_bytes());
                    client.output.extend_from_slice(b"\r\n");
                    copy_headers(reply.headers, &mut client.output);
                    let body = if self.head_only { 0 } else { body_bytes(reply.headers)? };
                    upstream.input.drain(..head);
                    Phase::ReplyBody(body)
                }
                Phase::ReplyBody(left) => match move_body(left, &mut upstream.input, &mut client.output) {
                    0 => Phase::Request,
                    left => {
                        self.phase = Phase::ReplyBody(left);
                        break;
                    }
                },
            };
        }
        flush(&mut self.upstream.stream, &mut self.upstream.output)?;
        flush(&mut self.client.stream, &mut self.client.output)
    }
}

fn copy_headers(headers: &[httparse::Header<'_>], output: &mut Vec<u8>) {
    for header in headers.iter().filter(|header| !header.name.eq_ignore_ascii_case("connection")) {
        output.extend_from_slice(header.name.as_bytes());
        output.extend_from_slice(b": ");
        output.extend_from_slice(header.value);
        output.extend_from_slice(b"\r\n");
    }
    output.extend_from_slice(b"\r\n");
}

fn move_body(left: usize, from: &mut Vec<u8>, to: &mut Vec<u8>) -> usize {
    let count = left.min(from.len());
    to.extend(from.drain(..count));
    left - count
}
