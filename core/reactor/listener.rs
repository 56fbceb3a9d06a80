//! The listening socket and the connections of clients: bytes in, requests out; answers in, bytes out.
//!
//! ```text
//!            first byte            whole head             whole body              answered
//!   Idle ──────────────► Head ───────────────► Body ──────────────► Waiting ──────────────► Idle, or Closing
//!                                                                      │ │                    ▲          ▲
//!                                                                      │ └──► Streaming ──────┘          │
//!                                                                      ├────► Tunnel ────────────────────┤
//!                                                                      └────► Events ────────────────────┘
//! ```
//!
//! One request of a connection is answered at a time; what a client pipelines waits in its buffer. While a request
//! waits for its answer nothing is read from its connection, so that a fast client is slowed by its own socket; nor is
//! anything while much of earlier answers is still to be taken. A connection with nothing under way owns no buffer.

mod events;
mod streaming;
mod tunnel;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use demi_conductor::{config, Event, Ticket, Time};
use demi_platform::{Request, RequestBuf};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry};
use slab::Slab;

use crate::forward::Hop;
use crate::http::{self, Body, Framing, Limits, Malformed};
use crate::kit::{Incoming, Kit, Outgoing, Readiness, READS_PER_TURN};
use crate::problem::Problem;
use crate::tokens::Source;
use crate::upload::Upload;

/// A request that is complete, and whose connection waits for an answer.
pub(crate) struct Arrival {
    pub(crate) place: usize,
    pub(crate) serial: u64,
    pub(crate) request: Arc<RequestBuf>,
    /// From whom it came.
    pub(crate) hop: Hop,
    /// It may be put to a service before all of its body has come, or with trailers.
    pub(crate) upload: Option<Box<Upload>>,
}

/// What of a request its answer must heed.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    is_http11: bool,
    keeps_alive: bool,
    is_head: bool,
    upgrades: bool,
}

/// How a streamed body is framed for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamFraming {
    /// So many bytes are still to come.
    Length(u64),
    Chunked,
    UntilClose,
    /// The answer to a HEAD: no byte may follow.
    Empty,
}

enum State {
    /// No byte of the next request has come.
    Idle,
    /// The beginning of a head has come.
    Head,
    Body {
        body: Body,
        request: Arc<RequestBuf>,
        exchange: Exchange,
        held: usize,
        /// How it is framed, if a service might take it as it comes.
        part: Option<Framing>,
    },
    Waiting {
        ticket: Option<Ticket>,
        exchange: Exchange,
    },
    Streaming {
        ticket: Ticket,
        exchange: Exchange,
        framing: StreamFraming,
    },
    /// Another protocol is spoken with the service.
    Tunnel {
        ticket: Ticket,
        /// The client sends nothing more.
        is_over: bool,
        /// Nor does the service.
        is_shut: bool,
    },
    /// Events are told as they come.
    Events {
        framing: StreamFraming,
    },
    /// What is left is written, then the connection is closed.
    Closing,
}

struct Client {
    stream: TcpStream,
    peer: IpAddr,
    serial: u64,
    state: State,
    incoming: Incoming,
    outgoing: Outgoing,
    /// When the present state began or its body last moved.
    since: Time,
    /// When the client last took bytes while there were some for it.
    taken_at: Time,
    is_readable: bool,
    sees_end: bool,
    /// It has not taken all that was last offered.
    is_behind: bool,
    /// To be flushed at the end of the turn.
    is_dirty: bool,
    /// To be gone on with in this turn or the next.
    is_listed: bool,
    /// Of a request that is under way: the body that is still coming.
    rest: Option<Body>,
    /// Trailers of a body that a service might take as it comes.
    trailers: Vec<u8>,
    /// It waits for a 100 before it sends its body.
    owes_continue: bool,
    /// What it sends is not taken as fast as it comes: nothing is read of it.
    is_held: bool,
    /// Its last answer is as long as it lasts: only a reset can say that it was cut off.
    ends_by_close: bool,
}

/// The listening socket and all connections of clients.
pub(crate) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    clients: Slab<Client>,
    next_serial: u64,
    settings: config::Http,
    limits: Limits,
    /// Some service takes bodies as they come.
    are_streamed: bool,
    is_draining: bool,
    /// More connections may wait: gone on with in the next turn.
    accepts_on: bool,
    /// The system had no descriptor left for a new connection: tried again at the next sweep.
    accepts_later: bool,
    /// Complete requests, for the shell.
    arrivals: VecDeque<Arrival>,
    /// Connections that may go on: more to read, or something pipelined.
    listed: VecDeque<usize>,
    /// Calls whose clients have sent something to be passed on.
    moved: VecDeque<Ticket>,
    dirty: Vec<usize>,
    date: Date,
    counts: Counts,
}

/// What is counted of connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) malformed: u64,
    /// Requests with more than `head_bytes_max`, `headers_max` or `body_bytes_max`.
    pub(crate) too_large: u64,
    /// Requests refused at `bodies_bytes_max`.
    pub(crate) bodies_full: u64,
    pub(crate) timed_out: u64,
    /// Connections that have become tunnels, and those that are some now.
    pub(crate) tunnels: u64,
    pub(crate) tunnels_open: usize,
    /// Streams of events, those that are open now, those refused at `event_streams_max`, and those cut off because their
    /// clients did not take them.
    pub(crate) event_streams: u64,
    pub(crate) event_streams_open: usize,
    pub(crate) event_streams_refused: u64,
    pub(crate) event_streams_cut_off: u64,
}

/// How much of a streamed answer may wait for a slow client before its upstream is paused.
const STREAM_BYTES_MAX: usize = 256 * 1024;
/// How much of earlier answers may wait for a client before its next request is looked at.
const UNTAKEN_BYTES_MAX: usize = 64 * 1024;
/// Connections that may wait to be accepted; the system may allow fewer.
/// A client that leaves so much untaken is told no more of how far its request is.
const INTERIM_BYTES_MAX: usize = 16 * 1024;
const BACKLOG: i32 = 1024;
/// Connections accepted in one turn; then others have theirs.
const ACCEPTS_PER_TURN: usize = 64;

impl Listener {
    /// Binds; nothing is accepted before `admit`.
    pub(crate) fn bind(settings: &config::Http) -> io::Result<Listener> {
        let address: SocketAddr = settings.listen.parse().map_err(io::Error::other)?;
        let socket = TcpListener::bind(address)?;
        // Asked again for more: mio asks for 128, and what comes beyond that in a burst is tried again after a second.
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Listener {
            address: socket.local_addr()?,
            socket,
            clients: Slab::new(),
            next_serial: 0,
            limits: Limits {
                head_bytes_max: settings.head_bytes_max.size(),
                headers_max: settings.headers_max.size(),
                body_bytes_max: settings.body_bytes_max.value(),
            },
            settings: settings.clone(),
            are_streamed: false,
            is_draining: false,
            accepts_on: false,
            accepts_later: false,
            arrivals: VecDeque::new(),
            listed: VecDeque::new(),
            moved: VecDeque::new(),
            dirty: Vec::new(),
            date: Date::default(),
            counts: Counts::default(),
        })
    }

    /// The address that it listens on, with the port that it got.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections there are.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts { tunnels_open: self.tunnels(), event_streams_open: self.event_streams(), ..self.counts }
    }

    /// Begins to accept.
    pub(crate) fn admit(&mut self, registry: &Registry) -> io::Result<()> {
        registry.register(&mut self.socket, Source::Listener.into(), Interest::READABLE)
    }

    /// Demi ends: connections are closed after their present answer, and streams of events end. New ones are still accepted,
    /// so that an operator can watch.
    pub(crate) fn drain(&mut self, now: Time, kit: &mut Kit) {
        self.is_draining = true;
        self.end_all_events(now, kit);
        let idle: Vec<usize> = self
            .clients
            .iter()
            .filter(|(_, client)| matches!(client.state, State::Idle))
            .map(|(place, _)| place)
            .collect();
        for place in idle {
            self.finish(place, kit);
        }
    }

    /// Somebody wants to connect.
    pub(crate) fn accept(&mut self, now: Time, kit: &mut Kit) {
        (self.accepts_on, self.accepts_later) = (false, false);
        for _ in 0..ACCEPTS_PER_TURN {
            match self.socket.accept() {
                Ok((stream, peer)) => self.welcome(stream, peer.ip(), now, kit),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                }
                Err(error) => {
                    log::warn!("no connection can be accepted for now: {error}");
                    self.accepts_later = true;
                    return;
                }
            }
        }
        self.accepts_on = true;
    }

    /// Whether more connections may wait than one turn accepts.
    pub(crate) fn accepts_on(&self) -> bool {
        self.accepts_on
    }

    fn welcome(&mut self, mut stream: TcpStream, peer: IpAddr, now: Time, kit: &mut Kit) {
        if self.clients.len() >= self.settings.connections_max.size() {
            self.counts.refused += 1;
            let mut refusal = Vec::new();
            let problem = Problem::new(503, "too many connections").retry_after(Duration::from_secs(1));
            write_problem(&mut refusal, &problem, self.date.text(), "close");
            // A client that does not even take this gets a closed connection.
            let _ = stream.write(&refusal);
            return;
        }
        let place = self.clients.vacant_key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if kit.registry.register(&mut stream, Source::Client(place).into(), interest).is_err() {
            self.counts.refused += 1;
            return;
        }
        // Answers are written whole; waiting for more to send would only delay them.
        let _ = stream.set_nodelay(true);
        self.counts.accepted += 1;
        self.next_serial += 1;
        self.clients.insert(Client {
            stream,
            peer,
            serial: self.next_serial,
            state: State::Idle,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            since: now,
            taken_at: now,
            is_readable: false,
            sees_end: false,
            is_behind: false,
            is_dirty: false,
            is_listed: false,
            rest: None,
            trailers: Vec::new(),
            owes_continue: false,
            is_held: false,
            ends_by_close: false,
        });
    }

    /// The poll says something of a connection.
    pub(crate) fn ready(&mut self, place: usize, readiness: Readiness, now: Time, kit: &mut Kit) {
        let Some(client) = self.clients.get_mut(place) else { return };
        client.is_readable |= readiness.is_readable;
        client.sees_end |= readiness.sees_end;
        // News in the same turn of the connection that had this place before is not news of this one.
        if readiness.is_broken && client.is_disconnected() {
            return self.hang_up(place, kit);
        }
        if !client.outgoing.is_empty() {
            self.flush_one(place, now, kit);
        }
        if let Some(client) = self.clients.get(place).filter(|client| client.sees_end) {
            self.end_events(place, client.serial, now);
        }
        self.go_on(place, now, kit);
    }

    /// The client is gone; whoever works for it is told.
    fn hang_up(&mut self, place: usize, kit: &mut Kit) {
        if let Some(ticket) = self.clients.get(place).and_then(|client| client.state.ticket()) {
            kit.events.push_back(Event::Gone { ticket });
        }
        self.close(place, kit);
    }

    fn close(&mut self, place: usize, kit: &mut Kit) {
        let mut client = self.clients.remove(place);
        let is_under_way =
            matches!(client.state, State::Streaming { .. } | State::Tunnel { .. } | State::Events { .. });
        let is_cut_off = is_under_way || !client.outgoing.is_empty();
        if client.ends_by_close && is_cut_off {
            // A system that does not do this ends it as if it were whole; nothing better is left to do.
            let _ = rustix::net::sockopt::set_socket_linger(&client.stream, Some(Duration::ZERO));
        }
        let _ = kit.registry.deregister(&mut client.stream);
        if let State::Body { request, held, .. } = std::mem::replace(&mut client.state, State::Closing) {
            kit.calls.let_go(held);
            kit.calls.give_back(request);
        }
        self.listed.retain(|other| *other != place);
        self.dirty.retain(|other| *other != place);
    }

    /// Reads and understands what it can.
    fn go_on(&mut self, place: usize, now: Time, kit: &mut Kit) {
        // The scratch is lent out while the rest of the kit is used.
        let mut scratch = std::mem::take(&mut kit.scratch);
        self.go_on_with(place, now, &mut scratch, kit);
        kit.scratch = scratch;
    }

    fn go_on_with(&mut self, place: usize, now: Time, scratch: &mut [u8], kit: &mut Kit) {
        for _ in 0..READS_PER_TURN {
            let Some(client) = self.clients.get_mut(place) else { return };
            if !client.incoming.is_empty() && client.listens() {
                let mut incoming = std::mem::take(&mut client.incoming);
                let taken = self.understand(place, incoming.rest(), now, kit);
                incoming.take(taken, kit);
                let Some(client) = self.clients.get_mut(place) else { return };
                client.incoming = incoming;
            }
            let Some(client) = self.clients.get_mut(place) else { return };
            if !client.listens() || !client.is_readable {
                return;
            }
            match client.stream.read(scratch) {
                Ok(0) => return self.end_of_input(place, kit),
                Ok(count) => {
                    client.is_readable = client.sees_end || count == scratch.len();
                    if client.incoming.is_empty() {
                        let taken = self.understand(place, &scratch[..count], now, kit);
                        let Some(client) = self.clients.get_mut(place) else { return };
                        client.incoming.add(&scratch[taken..count], kit);
                    } else {
                        client.incoming.add(&scratch[..count], kit);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    client.is_readable = false;
                    if client.incoming.is_empty() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.hang_up(place, kit),
            }
        }
        self.list(place);
    }

    /// Remembers that this connection may go on, if it may.
    fn list_if_more(&mut self, place: usize) {
        let client = &self.clients[place];
        if client.listens() && (!client.incoming.is_empty() || client.is_readable) {
            self.list(place);
        }
    }

    /// Remembers that this connection may go on.
    fn list(&mut self, place: usize) {
        if let Some(client) = self.clients.get_mut(place).filter(|client| !client.is_listed) {
            client.is_listed = true;
            self.listed.push_back(place);
        }
    }

    /// How many connections may go on now.
    pub(crate) fn listed(&self) -> usize {
        self.listed.len()
    }

    /// Goes on with the connection that has waited longest.
    pub(crate) fn go_on_next(&mut self, now: Time, kit: &mut Kit) {
        let Some(place) = self.listed.pop_front() else { return };
        if let Some(client) = self.clients.get_mut(place) {
            client.is_listed = false;
            self.go_on(place, now, kit);
        }
    }

    /// The client sends no more. What it asked is still answered; half of a request never will be.
    fn end_of_input(&mut self, place: usize, kit: &mut Kit) {
        let client = &mut self.clients[place];
        (client.is_readable, client.sees_end) = (false, true);
        match client.state {
            State::Head | State::Body { .. } => self.counts.malformed += 1,
            State::Tunnel { .. } => return self.end_of_tunnel(place, kit),
            State::Waiting { .. } | State::Streaming { .. } if client.rest.is_some() => {
                self.counts.malformed += 1;
                return self.hang_up(place, kit);
            }
            State::Idle | State::Waiting { .. } | State::Streaming { .. } | State::Events { .. } | State::Closing => {}
        }
        self.finish(place, kit);
    }

    /// Nothing more is asked: closes as soon as all that was answered is written.
    fn finish(&mut self, place: usize, kit: &mut Kit) {
        let client = &mut self.clients[place];
        if client.outgoing.is_empty() {
            return self.close(place, kit);
        }
        if let State::Body { request, held, .. } = std::mem::replace(&mut client.state, State::Closing) {
            kit.calls.let_go(held);
            kit.calls.give_back(request);
        }
    }

    /// Takes what it can from the front of the bytes; returns how many that was.
    fn understand(&mut self, place: usize, bytes: &[u8], now: Time, kit: &mut Kit) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            let Some(client) = self.clients.get_mut(place) else { return bytes.len() };
            let rest = &bytes[taken..];
            let understood = match &mut client.state {
                State::Idle | State::Head => self.understand_head(place, rest, now, kit),
                State::Body { .. } => self.understand_body(place, rest, now, kit),
                State::Closing => Ok(rest.len()),
                State::Tunnel { .. } => Ok(self.carry(place, rest, now, kit)),
                State::Waiting { .. } | State::Streaming { .. } => self.understand_rest(place, rest, now, kit),
                State::Events { .. } => Ok(0),
            };
            match understood {
                Ok(0) => return taken,
                Ok(count) => taken += count,
                Err(malformed) => {
                    let mut problem = Problem::new(malformed.status, malformed.why);
                    match malformed.status {
                        413 | 414 | 431 => self.counts.too_large += 1,
                        503 => {
                            self.counts.bodies_full += 1;
                            problem = problem.retry_after(Duration::from_secs(1));
                        }
                        _ => self.counts.malformed += 1,
                    }
                    match self.clients.get(place).map(|client| &client.state) {
                        // In the middle of an answer there is no place for another.
                        Some(State::Streaming { .. }) => self.hang_up(place, kit),
                        _ => self.refuse(place, &problem, now, kit),
                    }
                    return bytes.len();
                }
            }
        }
        taken
    }

    fn understand_head(&mut self, place: usize, bytes: &[u8], now: Time, kit: &mut Kit) -> Result<usize, Malformed> {
        let client = &mut self.clients[place];
        let Some(head) = http::parse_request(bytes, &self.limits)? else {
            if matches!(client.state, State::Idle) {
                client.state = State::Head;
                client.since = now;
            }
            return Ok(0);
        };
        let may_stream = self.may_stream(&head);
        let client = &mut self.clients[place];
        let length = match head.framing {
            Framing::Length(_) if may_stream => 0,
            Framing::Length(length) if length > self.settings.body_bytes_max.value() => {
                return Err(Malformed { status: 413, why: "the body is too long" });
            }
            Framing::Length(length) => length as usize,
            Framing::Empty | Framing::Chunked | Framing::UntilClose => 0,
        };
        if kit.calls.bytes() + length > self.settings.bodies_bytes_max.size() {
            return Err(Malformed { status: 503, why: "too many bytes of request bodies are held; ask again later" });
        }
        let exchange = Exchange {
            is_http11: head.http11,
            keeps_alive: head.keep_alive,
            is_head: head.method == "HEAD",
            upgrades: head.upgrades,
        };
        let mut request = kit.calls.buffer();
        let parts = Request {
            from: "http",
            kind: "",
            method: head.method,
            target: head.target,
            content_type: head.content_type.unwrap_or_default(),
            host: head.host,
            headers: head.headers_bytes,
            body: b"",
        };
        Arc::make_mut(&mut request).fill(&parts);
        client.since = now;
        if head.framing == Framing::Empty {
            self.complete(place, request, exchange);
        } else {
            client.owes_continue = head.expect_continue && head.len == bytes.len();
            let bytes_max = if may_stream { self.limits.body_bytes_max } else { self.settings.body_bytes_max.value() };
            let body = Body::new(head.framing, bytes_max);
            let part = may_stream.then_some(head.framing);
            client.state = State::Body { body, request, exchange, held: 0, part };
            if body.is_done() {
                self.understand_body(place, b"", now, kit)?;
            } else if may_stream && head.len == bytes.len() {
                self.part_if_enough(place, kit);
            } else if !may_stream {
                self.continue_if_owed(place, now);
            }
        }
        Ok(head.len)
    }

    fn understand_body(&mut self, place: usize, bytes: &[u8], now: Time, kit: &mut Kit) -> Result<usize, Malformed> {
        let client = &mut self.clients[place];
        let State::Body { body, request, exchange, held, part } = &mut client.state else { return Ok(0) };
        let exchange = *exchange;
        let request_bytes = Arc::make_mut(request);
        let before = request_bytes.len();
        let taken = match part {
            Some(_) => body.decode_with_trailers(bytes, request_bytes.body_mut(), &mut client.trailers)?,
            None => body.decode(bytes, request_bytes.body_mut())?,
        };
        let grown = request_bytes.len() - before;
        *held += grown;
        kit.calls.hold(grown);
        client.since = now;
        if kit.calls.bytes() > self.settings.bodies_bytes_max.size() {
            return Err(Malformed { status: 503, why: "too many bytes of request bodies are held; ask again later" });
        }
        if body.is_done() && client.trailers.is_empty() {
            if let State::Body { request, held, .. } = std::mem::replace(&mut client.state, State::Idle) {
                kit.calls.let_go(held);
                self.complete(place, request, exchange);
            }
        } else {
            self.part_if_enough(place, kit);
        }
        Ok(taken)
    }

    fn complete(&mut self, place: usize, request: Arc<RequestBuf>, exchange: Exchange) {
        let client = &mut self.clients[place];
        client.state = State::Waiting { ticket: None, exchange };
        let hop = Hop { from: client.peer, is_http11: exchange.is_http11, upgrades: exchange.upgrades };
        self.arrivals.push_back(Arrival { place, serial: client.serial, request, hop, upload: None });
    }

    /// The next complete request.
    pub(crate) fn next_arrival(&mut self) -> Option<Arrival> {
        self.arrivals.pop_front()
    }

    /// The request of this connection has become a call.
    pub(crate) fn ticketed(&mut self, place: usize, ticket: Ticket) {
        let Some(client) = self.clients.get_mut(place) else { return };
        if let State::Waiting { ticket: waiting, .. } = &mut client.state {
            *waiting = Some(ticket);
            // Whoever waits for a 100 gets it from whoever takes the body.
            client.is_held = client.owes_continue;
            self.list_if_more(place);
        }
    }

    fn client(&mut self, place: usize, serial: u64) -> Option<&mut Client> {
        self.clients.get_mut(place).filter(|client| client.serial == serial)
    }

    /// Answers the request that this connection waits for. `headers` are further lines, each ended by CRLF.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn respond(
        &mut self,
        place: usize,
        serial: u64,
        status: u16,
        content_type: &str,
        headers: &[u8],
        body: &[u8],
        now: Time,
        kit: &mut Kit,
    ) {
        let is_draining = self.is_draining;
        let date = self.date.text();
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else { return };
        let State::Waiting { exchange, .. } = client.state else { return };
        let keeps_alive = client.forget_rest() && exchange.keeps_alive && !is_draining;
        if client.outgoing.bytes.capacity() == 0 {
            client.outgoing.bytes = kit.buffer();
        }
        let out = &mut client.outgoing.bytes;
        write_head(out, status, content_type, headers, date, connection_line(exchange, keeps_alive));
        if !matches!(status, 204 | 304) {
            http::write_length(out, body.len() as u64);
        }
        out.extend_from_slice(b"\r\n");
        if !exchange.is_head && !matches!(status, 204 | 304) {
            out.extend_from_slice(body);
        }
        client.state = if keeps_alive { State::Idle } else { State::Closing };
        client.since = now;
        mark_dirty(place, client, &mut self.dirty, now);
        self.list_if_more(place);
    }

    /// Tells a client something before its answer, in an interim response (102, RFC 2518) with one header; `value` must
    /// be one that a header may have. A client that does not take what it is told is told less.
    pub(crate) fn inform(&mut self, place: usize, serial: u64, name: &str, value: &str, now: Time) {
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else { return };
        let State::Waiting { exchange, .. } = client.state else { return };
        if !exchange.is_http11 || client.outgoing.len() > INTERIM_BYTES_MAX {
            return;
        }
        client.outgoing.bytes.extend_from_slice(b"HTTP/1.1 102 Processing\r\n");
        http::write_header(&mut client.outgoing.bytes, name, value.as_bytes());
        client.outgoing.bytes.extend_from_slice(b"\r\n");
        mark_dirty(place, client, &mut self.dirty, now);
    }

    /// Answers with a problem.
    pub(crate) fn respond_problem(&mut self, place: usize, serial: u64, problem: &Problem, now: Time, kit: &mut Kit) {
        let mut headers = kit.buffer();
        problem.write_headers(&mut headers);
        let body = problem.body();
        self.respond(place, serial, problem.status(), Problem::MEDIA_TYPE, &headers, body.as_bytes(), now, kit);
        headers.clear();
        kit.take_back(&mut headers);
    }

    /// Answers what is no request, and closes: where the next would begin nobody knows.
    fn refuse(&mut self, place: usize, problem: &Problem, now: Time, kit: &mut Kit) {
        let date = self.date.text();
        let Some(client) = self.clients.get_mut(place) else { return };
        client.forget_rest();
        match std::mem::replace(&mut client.state, State::Closing) {
            State::Body { request, held, .. } => {
                kit.calls.let_go(held);
                kit.calls.give_back(request);
            }
            State::Waiting { ticket: Some(ticket), .. } => kit.events.push_back(Event::Gone { ticket }),
            _ => {}
        }
        client.incoming.clear();
        client.since = now;
        write_problem(&mut client.outgoing.bytes, problem, date, "close");
        mark_dirty(place, client, &mut self.dirty, now);
    }

    /// Begins an answer whose body flows; passed over if the client is gone. `headers` as for `respond`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn begin_stream(
        &mut self,
        place: usize,
        serial: u64,
        ticket: Ticket,
        status: u16,
        headers: &[u8],
        length: Option<u64>,
        now: Time,
    ) {
        let is_draining = self.is_draining;
        let date = self.date.text();
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else { return };
        let State::Waiting { mut exchange, .. } = client.state else { return };
        let framing = match length {
            _ if exchange.is_head || matches!(status, 204 | 304) => StreamFraming::Empty,
            Some(length) => StreamFraming::Length(length),
            None if exchange.is_http11 => StreamFraming::Chunked,
            None => StreamFraming::UntilClose,
        };
        client.ends_by_close = framing == StreamFraming::UntilClose;
        exchange.keeps_alive &= !is_draining && !client.ends_by_close && client.rest.is_none();
        let out = &mut client.outgoing.bytes;
        write_head(out, status, "", headers, date, connection_line(exchange, exchange.keeps_alive));
        match (framing, length) {
            (StreamFraming::Chunked, _) => http::write_header(out, "Transfer-Encoding", b"chunked"),
            (_, Some(length)) if !matches!(status, 204 | 304) => http::write_length(out, length),
            _ => {}
        }
        out.extend_from_slice(b"\r\n");
        client.state = State::Streaming { ticket, exchange, framing };
        mark_dirty(place, client, &mut self.dirty, now);
    }

    /// Adds to an answer that flows. Returns whether its source should pause: the client is slow.
    pub(crate) fn stream(&mut self, place: usize, serial: u64, bytes: &[u8], now: Time) -> bool {
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else { return false };
        let framing = match &mut client.state {
            State::Streaming { framing, .. } => framing,
            State::Tunnel { .. } => &mut StreamFraming::UntilClose,
            State::Idle
            | State::Head
            | State::Body { .. }
            | State::Waiting { .. }
            | State::Events { .. }
            | State::Closing => return false,
        };
        match framing {
            StreamFraming::Chunked => http::write_chunk(&mut client.outgoing.bytes, bytes),
            StreamFraming::UntilClose => client.outgoing.bytes.extend_from_slice(bytes),
            StreamFraming::Length(left) => {
                // The decoder never yields more than the upstream's own length.
                *left = left.saturating_sub(bytes.len() as u64);
                client.outgoing.bytes.extend_from_slice(bytes);
            }
            StreamFraming::Empty => {}
        }
        mark_dirty(place, client, &mut self.dirty, now);
        client.outgoing.len() > STREAM_BYTES_MAX
    }

    /// Whether an answer to this connection may flow on.
    pub(crate) fn takes_more(&self, place: usize, serial: u64) -> bool {
        let client = self.clients.get(place).filter(|client| client.serial == serial);
        client.is_none_or(|client| client.outgoing.len() <= STREAM_BYTES_MAX / 2)
    }

    /// Whether the answer to this connection has begun to flow.
    pub(crate) fn is_streaming(&self, place: usize, serial: u64) -> bool {
        let client = self.clients.get(place).filter(|client| client.serial == serial);
        client.is_some_and(|client| matches!(client.state, State::Streaming { .. } | State::Tunnel { .. }))
    }

    /// The answer that flows has ended; `is_whole` or broken off, which a client can only be told by closing.
    /// `trailers` go with one that is sent in chunks: lines, each ended by CRLF.
    pub(crate) fn end_stream(
        &mut self,
        place: usize,
        serial: u64,
        is_whole: bool,
        trailers: &[u8],
        now: Time,
        kit: &mut Kit,
    ) {
        let Some(client) = self.client(place, serial) else { return };
        let (keeps_alive, framing) = match client.state {
            State::Streaming { exchange, framing, .. } => (exchange.keeps_alive, framing),
            State::Tunnel { .. } => (false, StreamFraming::UntilClose),
            State::Idle
            | State::Head
            | State::Body { .. }
            | State::Waiting { .. }
            | State::Events { .. }
            | State::Closing => return,
        };
        if !is_whole || matches!(framing, StreamFraming::Length(1..)) {
            // What was already produced is still sent, then the connection ends before the body does.
            let _ = client.outgoing.write_to(&mut client.stream);
            return self.close(place, kit);
        }
        if framing == StreamFraming::Chunked {
            http::write_last_chunk(&mut client.outgoing.bytes, trailers);
        }
        client.forget_rest();
        client.state = if keeps_alive { State::Idle } else { State::Closing };
        client.since = now;
        let client = &mut self.clients[place];
        mark_dirty(place, client, &mut self.dirty, now);
        self.list_if_more(place);
    }

    /// Writes what has gathered in this turn.
    pub(crate) fn flush(&mut self, now: Time, kit: &mut Kit) {
        while let Some(place) = self.dirty.pop() {
            if let Some(client) = self.clients.get_mut(place) {
                client.is_dirty = false;
                self.flush_one(place, now, kit);
            }
        }
    }

    /// Whether something has gathered since the last flush.
    pub(crate) fn has_unwritten(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Whether some client has not been sent all of its answers yet.
    pub(crate) fn owes(&self) -> bool {
        self.clients.iter().any(|(_, client)| !client.outgoing.is_empty())
    }

    fn flush_one(&mut self, place: usize, now: Time, kit: &mut Kit) {
        let client = &mut self.clients[place];
        let before = client.outgoing.len();
        match client.outgoing.write_to(&mut client.stream) {
            Err(_) => self.hang_up(place, kit),
            Ok(true) => {
                client.taken_at = now;
                client.is_behind = false;
                kit.take_back(&mut client.outgoing.bytes);
                match client.state {
                    State::Closing => self.linger(place, kit),
                    State::Tunnel { is_shut: true, .. } => {
                        // If it cannot be told, it is gone, and the poll says so.
                        let _ = client.stream.shutdown(std::net::Shutdown::Write);
                    }
                    _ => self.list_if_more(place),
                }
            }
            Ok(false) => {
                client.is_behind = true;
                if client.outgoing.len() < before {
                    client.taken_at = now;
                    self.list_if_more(place);
                }
            }
        }
    }

    /// All is said: no more is written. What the client still sends is read and dropped until it closes or its time is
    /// up; closing with unread bytes would make the kernel send a reset that can overtake the answer.
    fn linger(&mut self, place: usize, kit: &mut Kit) {
        let client = &mut self.clients[place];
        let is_shut = client.stream.shutdown(std::net::Shutdown::Write).is_ok();
        if !is_shut || client.sees_end {
            return self.close(place, kit);
        }
        if client.is_readable {
            self.list(place);
        }
    }

    /// Whether a sweep has anything to look at.
    pub(crate) fn needs_sweep(&self) -> bool {
        !self.clients.is_empty() || self.accepts_later
    }

    /// Ends what has taken too long. Called about once a second.
    pub(crate) fn sweep(&mut self, now: Time, kit: &mut Kit) {
        if self.accepts_later {
            self.accept(now, kit);
        }
        self.beat(now, kit);
        let late: Vec<(usize, Late)> = self
            .clients
            .iter()
            .filter_map(|(place, client)| Some((place, client.late(now, &self.settings)?)))
            .collect();
        for (place, late) in late {
            match late {
                Late::Quietly => self.close(place, kit),
                Late::Deaf => {
                    self.counts.timed_out += 1;
                    self.hang_up(place, kit);
                }
                Late::Told(why) => {
                    self.counts.timed_out += 1;
                    self.refuse(place, &Problem::new(408, why), now, kit);
                }
            }
        }
    }

    /// The time as HTTP tells it, for the answers of this turn.
    pub(crate) fn set_date(&mut self, wall: impl FnOnce() -> SystemTime, now: Time) {
        self.date.set(wall, now);
    }

    /// Writes what can be written at once, for the last time.
    pub(crate) fn close_all(&mut self, now: Time, kit: &mut Kit) {
        self.flush(now, kit);
        let _ = kit.registry.deregister(&mut self.socket);
        let places: Vec<usize> = self.clients.iter().map(|(place, _)| place).collect();
        for place in places {
            self.close(place, kit);
        }
    }
}

/// What has taken too long, and how its end is told.
enum Late {
    Quietly,
    Deaf,
    Told(&'static str),
}

impl Client {
    /// Whether what is read now can be made use of.
    fn listens(&self) -> bool {
        match self.state {
            State::Idle | State::Head | State::Body { .. } => self.outgoing.len() <= UNTAKEN_BYTES_MAX,
            State::Waiting { .. } | State::Streaming { .. } => self.rest.is_some() && !self.is_held,
            State::Tunnel { is_over, .. } => !is_over && !self.is_held,
            State::Events { .. } => false,
            State::Closing => true,
        }
    }

    fn is_disconnected(&self) -> bool {
        // A tunnel may be shut in both directions with its last bytes unread.
        let is_shut = self.stream.peer_addr().is_err() && !matches!(self.state, State::Tunnel { .. });
        is_shut || !matches!(self.stream.take_error(), Ok(None))
    }

    fn late(&self, now: Time, settings: &config::Http) -> Option<Late> {
        let body_timeout = settings.body_timeout_ms.millis();
        // How long a tunnel may stand still is looked at where it ends.
        let is_tunnel = matches!(self.state, State::Tunnel { .. });
        if !is_tunnel && !self.outgoing.is_empty() && now - self.taken_at > body_timeout {
            return Some(Late::Deaf);
        }
        let waited = now - self.since;
        match self.state {
            State::Idle => (waited > settings.idle_timeout_ms.millis()).then_some(Late::Quietly),
            State::Head => (waited > settings.head_timeout_ms.millis()).then_some(Late::Told("the head took too long")),
            State::Body { .. } => (waited > body_timeout).then_some(Late::Told("the body took too long")),
            State::Closing => (waited > LINGER && self.outgoing.is_empty()).then_some(Late::Quietly),
            // Of a body that nobody takes its client is not to blame.
            State::Waiting { .. } if self.listens() => {
                (waited > body_timeout).then_some(Late::Told("the body took too long"))
            }
            State::Streaming { .. } if self.listens() => (waited > body_timeout).then_some(Late::Deaf),
            State::Waiting { .. } | State::Streaming { .. } | State::Tunnel { .. } | State::Events { .. } => None,
        }
    }
}

impl State {
    /// The call that is under way.
    fn ticket(&self) -> Option<Ticket> {
        match self {
            State::Waiting { ticket, .. } => *ticket,
            State::Streaming { ticket, .. } | State::Tunnel { ticket, .. } => Some(*ticket),
            State::Idle | State::Head | State::Body { .. } | State::Events { .. } | State::Closing => None,
        }
    }
}

/// How long a client is given to close after its last answer.
const LINGER: Duration = Duration::from_secs(2);

fn mark_dirty(place: usize, client: &mut Client, dirty: &mut Vec<usize>, now: Time) {
    if !client.is_dirty {
        client.is_dirty = true;
        dirty.push(place);
        // What is added for a client that is behind gives it no more time.
        if !client.is_behind {
            client.taken_at = now;
        }
    }
}

fn connection_line(exchange: Exchange, keeps_alive: bool) -> Option<&'static str> {
    match (keeps_alive, exchange.is_http11) {
        (false, _) => Some("close"),
        (true, false) => Some("keep-alive"),
        (true, true) => None,
    }
}

fn write_head(
    out: &mut Vec<u8>,
    status: u16,
    content_type: &str,
    headers: &[u8],
    date: &str,
    connection: Option<&str>,
) {
    http::write_status_line(out, status);
    if !content_type.is_empty() {
        http::write_header(out, "Content-Type", content_type.as_bytes());
    }
    out.extend_from_slice(headers);
    http::write_header(out, "Date", date.as_bytes());
    if let Some(connection) = connection {
        http::write_header(out, "Connection", connection.as_bytes());
    }
}

fn write_problem(out: &mut Vec<u8>, problem: &Problem, date: &str, connection: &str) {
    let mut headers = Vec::new();
    problem.write_headers(&mut headers);
    let body = problem.body();
    write_head(out, problem.status(), Problem::MEDIA_TYPE, &headers, date, Some(connection));
    http::write_length(out, body.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.as_bytes());
}

/// The Date header, made twice a second at most; the wall clock is read only then.
#[derive(Default)]
struct Date {
    text: String,
    made_at: Option<Time>,
}

impl Date {
    fn set(&mut self, wall: impl FnOnce() -> SystemTime, now: Time) {
        if self.made_at.is_none_or(|made_at| now - made_at >= Duration::from_millis(500)) {
            self.made_at = Some(now);
            self.text = httpdate::fmt_http_date(wall());
        }
    }

    fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes on until a fact holds.
    fn until<T>(mut fact: impl FnMut() -> Option<T>) -> T {
        let began = std::time::Instant::now();
        loop {
            if let Some(value) = fact() {
                return value;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "waited in vain");
            std::thread::yield_now();
        }
    }

    /// An answer that was made after the flush of a turn waited for other news, or for the next sweep.
    #[test]
    fn an_answer_leaves_something_to_do_until_it_is_flushed_and_is_owed_until_it_is_sent() {
        let poll = mio::Poll::new().expect("there are descriptors");
        let mut kit = Kit::new(poll.registry().try_clone().expect("there are descriptors"));
        let settings = config::Http { listen: "127.0.0.1:0".to_owned(), ..config::Http::default() };
        let mut listener = Listener::bind(&settings).expect("there is a free port");
        let mut client = std::net::TcpStream::connect(listener.address()).expect("it listens");
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("the kernel takes it");
        let arrival = until(|| {
            listener.accept(Time::ZERO, &mut kit);
            listener.ready(0, Readiness { is_readable: true, ..Readiness::default() }, Time::ZERO, &mut kit);
            listener.next_arrival()
        });
        assert!(!listener.has_unwritten() && !listener.owes());
        let body = vec![b'x'; 64 << 20];
        listener.respond(arrival.place, arrival.serial, 200, "", b"", &body, Time::ZERO, &mut kit);
        assert!(listener.has_unwritten() && listener.owes());
        listener.flush(Time::ZERO, &mut kit);
        assert!(!listener.has_unwritten() && listener.owes(), "sockets do not hold so much");
        drop(client);
        until(|| {
            listener.ready(0, Readiness::default(), Time::ZERO, &mut kit);
            (!listener.owes()).then_some(())
        });
    }
}
