//! Connections to HTTP services that run elsewhere: kept alive, pooled by instance, answers streamed.
//!
//! ```text
//!   dispatch ──► idle connection, or a new one ──► request written ──► head ──► whole answer at hand: Answered
//!                                                                       │
//!                                                                       └──► Headed ──Relay──► body flows ──► Answered
//! ```
//!
//! An answer that is complete in what was read goes to the conductor in one event, and may still be tried again. A
//! longer one is announced by its head; once the conductor lets it flow it cannot be taken back.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use demi_conductor::{Event, Instance, Outcome, Report, Ticket, Time, Verdict};
use mio::net::TcpStream;
use mio::Interest;
use slab::Slab;

use crate::calls::Link;
use crate::forward;
use crate::http::{self, Body, Framing, Limits};
use crate::kit::{outcome_of_status, Incoming, Kit, Outgoing, Readiness, READS_PER_TURN};
use crate::tokens::Source;
use crate::upload::Passage;

/// How an upstream is asked how it is.
#[derive(Debug)]
pub(crate) struct Checkup {
    pub(crate) method: String,
    pub(crate) path: String,
    /// The first and the last status that pass.
    pub(crate) status: (u16, u16),
    /// What must stand in the first 64 KiB of the body.
    pub(crate) body: Option<String>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    /// Kept for the next request.
    Idle,
    Call(Errand),
    Probe,
}

/// A request on a connection.
#[derive(Clone, Copy, Debug)]
struct Errand {
    ticket: Ticket,
    is_head: bool,
    is_idempotent: bool,
    /// It offers to change protocols.
    upgrades: bool,
}

/// How far the answer is.
#[derive(Clone, Copy, Debug)]
enum Progress {
    /// The head has not come yet.
    Head,
    /// The head has come and the conductor was told; it has not said yet that the body may flow.
    Announced(Body),
    /// The head says that it failed, and the body is gathered: once it is whole, the request may still be tried again.
    Gathering(Body),
    /// The body flows.
    Flowing(Body),
    /// Another protocol is spoken. `is_over`: the upstream sends nothing more.
    Tunnel { is_over: bool },
}

/// How far what a client sends while its request is under way has been passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Uplink {
    /// There is nothing.
    None,
    /// The client's half of a tunnel.
    Tunnel,
    /// A body of known length.
    Length,
    /// A body in chunks.
    Chunked,
    /// The client's half has ended, and the upstream is to be told once it has all.
    Ending,
    /// It was told.
    Over,
}

struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    instance: Instance,
    purpose: Purpose,
    progress: Progress,
    /// Of a probe that asks for more than a connection.
    checkup: Option<Arc<Checkup>>,
    /// What has come of the body that a probe asks for, as far as it is looked at.
    looked_at: Vec<u8>,
    outgoing: Outgoing,
    uplink: Uplink,
    incoming: Incoming,
    is_connected: bool,
    /// It has served a request before: the upstream may have closed it just now.
    is_used: bool,
    /// Whoever gets the body does not take it as fast as it comes.
    is_paused: bool,
    /// There may be more to read.
    is_readable: bool,
    /// The upstream will send no more than what is there.
    sees_end: bool,
    keeps_alive: bool,
    has_heard: bool,
    since: Time,
}

/// All connections to upstreams.
pub(crate) struct Upstreams {
    connections: Slab<Connection>,
    /// Idle connections by slot, the one used last at the end.
    idle: BTreeMap<u32, Vec<usize>>,
    idle_max: usize,
    idle_time: Duration,
    limits: Limits,
    /// Connections that have more to read than one turn allows.
    unread: Vec<usize>,
    /// Calls whose body has moved forward.
    relays: VecDeque<Ticket>,
    /// Calls of which more may be read that their clients send.
    hungry: VecDeque<Ticket>,
    tunnel_idle_time: Duration,
    /// What those say of how they want to be balanced that have ever said something.
    said: BTreeMap<Instance, Said>,
}

/// What an upstream has said in its answers to health checks.
#[derive(Default)]
struct Said {
    report: Report,
    /// What it said last made no sense, and that was told.
    is_refused: bool,
}

/// Reads of a body that flows in one turn: what a slow client does not take must be noticed before there is much of it.
const FLOWING_READS_PER_TURN: usize = 2;
/// So much of the answer to a probe is looked at.
const LOOKED_AT_BYTES_MAX: usize = 64 * 1024;
/// An answer that says that it failed is gathered up to so much before it flows to whoever asked.
const GATHERED_BYTES_MAX: usize = 64 * 1024;
/// What a client sends is taken while less than this waits for its upstream.
const UPLINK_BYTES_MAX: usize = 64 * 1024;
/// A tunnel whose one half has ended may stand still so long.
const HALF_TUNNEL_IDLE_MAX: Duration = Duration::from_secs(60);
/// A body that flows may pause so long before it counts as broken off.
const SILENCE_MAX: Duration = Duration::from_secs(60);

impl Upstreams {
    pub(crate) fn new(settings: &demi_conductor::config::Http) -> Upstreams {
        Upstreams {
            connections: Slab::new(),
            idle: BTreeMap::new(),
            idle_max: settings.upstream_idle_max.size(),
            idle_time: settings.upstream_idle_ms.millis(),
            // An upstream's answer is passed on as it comes, so its length needs no bound.
            limits: Limits { head_bytes_max: 64 * 1024, headers_max: http::HEADERS_MAX, body_bytes_max: u64::MAX },
            unread: Vec::new(),
            relays: VecDeque::new(),
            hungry: VecDeque::new(),
            tunnel_idle_time: settings.tunnel_idle_ms.millis(),
            said: BTreeMap::new(),
        }
    }

    /// Sends a request. What becomes of it is an event.
    pub(crate) fn handle(&mut self, ticket: Ticket, instance: Instance, address: SocketAddr, now: Time, kit: &mut Kit) {
        // What cannot be sent twice must not meet a connection that its upstream has just closed.
        let place = match kit.calls.get(ticket).is_some_and(|call| call.goes_on()) {
            true => self.connect(instance, address, Purpose::Idle, now, kit),
            false => self.idle_or_new(instance, address, now, kit),
        };
        let Some(place) = place else {
            return kit.events.push_back(Event::Answered { ticket, instance, outcome: Outcome::Unsent });
        };
        self.ask(place, ticket, now, kit);
    }

    fn ask(&mut self, place: usize, ticket: Ticket, now: Time, kit: &mut Kit) {
        let connection = &mut self.connections[place];
        let Some(attempt) = kit.calls.attempt(ticket, connection.instance) else { return };
        attempt.link = Link::Upstream(place);
        let Some(call) = kit.calls.get(ticket) else { return };
        let request = call.request.request();
        connection.since = now;
        let upgrades = call.offers_upgrade();
        let (is_head, is_idempotent) = (request.method == "HEAD", request.is_idempotent());
        connection.purpose = Purpose::Call(Errand { ticket, is_head, is_idempotent, upgrades });
        let out = &mut connection.outgoing.bytes;
        let (proxy, cookie) = (call.proxy.as_deref(), call.cookie.as_deref());
        forward::write_request_head(out, &request, connection.address, proxy, call.hop, cookie);
        if upgrades {
            forward::write_offer(out, request.headers);
        }
        match call.upload.as_ref().map(|upload| upload.passage) {
            Some(Passage::Body { length: Some(length) }) => {
                connection.uplink = Uplink::Length;
                http::write_length(out, length);
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(request.body);
            }
            Some(Passage::Body { length: None }) => {
                connection.uplink = Uplink::Chunked;
                forward::write_announcement(out, request.headers);
                out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                http::write_chunk(out, request.body);
            }
            Some(Passage::Tunnel) | None => write_body(out, &request),
        }
        self.ready(place, Readiness::default(), now, kit);
    }

    fn idle_or_new(&mut self, instance: Instance, address: SocketAddr, now: Time, kit: &mut Kit) -> Option<usize> {
        if let Some(place) = self.idle.get_mut(&instance.slot).and_then(Vec::pop) {
            let connection = &mut self.connections[place];
            connection.instance = instance;
            connection.is_used = true;
            connection.has_heard = false;
            return Some(place);
        }
        self.connect(instance, address, Purpose::Idle, now, kit)
    }

    fn connect(
        &mut self,
        instance: Instance,
        address: SocketAddr,
        purpose: Purpose,
        now: Time,
        kit: &mut Kit,
    ) -> Option<usize> {
        let mut stream = TcpStream::connect(address).ok()?;
        let place = self.connections.vacant_key();
        kit.registry
            .register(&mut stream, Source::Upstream(place).into(), Interest::READABLE | Interest::WRITABLE)
            .ok()?;
        let _ = stream.set_nodelay(true);
        self.connections.insert(Connection {
            stream,
            address,
            instance,
            purpose,
            progress: Progress::Head,
            checkup: None,
            looked_at: Vec::new(),
            outgoing: Outgoing::new(kit.buffer()),
            uplink: Uplink::None,
            incoming: Incoming::default(),
            is_connected: false,
            is_used: false,
            is_paused: false,
            is_readable: false,
            sees_end: false,
            keeps_alive: true,
            has_heard: false,
            since: now,
        });
        Some(place)
    }

    /// Asks an upstream how it is: by a request, or else by connecting.
    pub(crate) fn probe(
        &mut self,
        instance: Instance,
        address: SocketAddr,
        checkup: Option<Arc<Checkup>>,
        now: Time,
        kit: &mut Kit,
    ) {
        let is_older_probe =
            |other: &Connection| other.instance.slot == instance.slot && matches!(other.purpose, Purpose::Probe);
        let older = self.connections.iter().find(|(_, other)| is_older_probe(other)).map(|(place, _)| place);
        if let Some(place) = older {
            self.close(place, kit);
        }
        match self.connect(instance, address, Purpose::Probe, now, kit) {
            None => kit.events.push_back(Event::Probed { instance, verdict: Verdict::Fail }),
            Some(place) => {
                if let Some(checkup) = checkup {
                    let Checkup { method, path, .. } = &*checkup;
                    let request = demi_platform::Request { method, target: path, ..Default::default() };
                    let connection = &mut self.connections[place];
                    forward::write_request_head(&mut connection.outgoing.bytes, &request, address, None, None, None);
                    write_body(&mut connection.outgoing.bytes, &request);
                    connection.checkup = Some(checkup);
                }
            }
        }
    }

    /// Nobody waits for this any more: a connection in the middle of an answer is of no further use.
    pub(crate) fn cancel(&mut self, ticket: Ticket, place: usize, kit: &mut Kit) {
        if self.connections.get(place).is_some_and(|connection| connection.serves(ticket)) {
            self.close(place, kit);
        }
    }

    /// Ends every connection of an instance.
    pub(crate) fn stop(&mut self, instance: Instance, kit: &mut Kit) {
        self.said.remove(&instance);
        let places: Vec<usize> =
            self.connections.iter().filter(|(_, other)| other.instance == instance).map(|(place, _)| place).collect();
        for place in places {
            self.close(place, kit);
        }
    }

    /// The socket is readable, writable or closed.
    pub(crate) fn ready(&mut self, place: usize, readiness: Readiness, now: Time, kit: &mut Kit) {
        let Some(connection) = self.connections.get_mut(place) else { return };
        connection.is_readable |= readiness.is_readable;
        connection.sees_end |= readiness.sees_end;
        if !connection.is_connected {
            match connection.stream.take_error() {
                Ok(None) if connection.stream.peer_addr().is_ok() => connection.is_connected = true,
                Ok(None) => return,
                Ok(Some(_)) | Err(_) => return self.fail(place, Outcome::Unsent, kit),
            }
            if matches!(connection.purpose, Purpose::Probe) && connection.outgoing.is_empty() {
                return self.probed(place, Verdict::Pass, kit);
            }
        }
        self.write(place, now, kit);
        self.read(place, now, kit);
    }

    /// Writes what it can, and takes more of what the client sends where there is room.
    fn write(&mut self, place: usize, now: Time, kit: &mut Kit) {
        self.take_upload(place, now, kit);
        loop {
            let connection = &mut self.connections[place];
            match connection.outgoing.write_to(&mut connection.stream) {
                // The poll says nothing more of a socket that has taken all: what has come meanwhile goes at once.
                Ok(true) => {
                    if !self.take_upload(place, now, kit) {
                        break;
                    }
                }
                Ok(false) => return,
                // What cannot be written is told by what is read: an upstream may refuse a long request early.
                Err(_) => {
                    connection.is_readable = true;
                    return self.note_unread(place);
                }
            }
        }
        let connection = &mut self.connections[place];
        kit.take_back(&mut connection.outgoing.bytes);
        if connection.uplink == Uplink::Ending {
            connection.uplink = Uplink::Over;
            // If it cannot be told, it is gone, and what is read tells that.
            let _ = connection.stream.shutdown(std::net::Shutdown::Write);
            self.end_tunnel_if_over(place, kit);
        }
    }

    /// A client has sent something to be passed on.
    pub(crate) fn feed(&mut self, ticket: Ticket, place: usize, now: Time, kit: &mut Kit) {
        if self.connections.get(place).is_some_and(|connection| connection.serves(ticket) && connection.is_connected) {
            self.write(place, now, kit);
        }
    }

    /// The next call of which more may be read that its client sends.
    pub(crate) fn next_hungry(&mut self) -> Option<Ticket> {
        self.hungry.pop_front()
    }

    /// Takes what the client sends, if there is room for it. Whether there is more to write.
    fn take_upload(&mut self, place: usize, now: Time, kit: &mut Kit) -> bool {
        let connection = &mut self.connections[place];
        let Purpose::Call(errand) = connection.purpose else { return false };
        let is_up = matches!(connection.uplink, Uplink::Tunnel | Uplink::Length | Uplink::Chunked);
        if !is_up || connection.outgoing.len() >= UPLINK_BYTES_MAX {
            return false;
        }
        let Some(call) = kit.calls.get(errand.ticket) else { return false };
        let Some(upload) = &mut call.upload else { return false };
        let (taken, is_done) = (upload.bytes.len(), upload.is_done);
        let out = &mut connection.outgoing.bytes;
        if connection.uplink == Uplink::Chunked {
            http::write_chunk(out, &upload.bytes);
            upload.bytes.clear();
            if is_done {
                forward::write_request_end(out, &upload.trailers, call.proxy.as_deref());
            }
        } else {
            out.append(&mut upload.bytes);
        }
        if taken > 0 || is_done {
            connection.since = now;
            if connection.uplink != Uplink::Tunnel {
                let instance = connection.instance;
                kit.events.push_back(Event::Moved { ticket: errand.ticket, instance });
                kit.calls.drop_part(errand.ticket);
            }
        }
        kit.calls.let_go(taken);
        match (is_done, connection.uplink) {
            (true, Uplink::Tunnel) => connection.uplink = Uplink::Ending,
            (true, _) => connection.uplink = Uplink::None,
            (false, _) => self.hungry.push_back(errand.ticket),
        }
        !connection.outgoing.is_empty()
    }

    /// Both halves of a tunnel have ended: that is its answer.
    fn end_tunnel_if_over(&mut self, place: usize, kit: &mut Kit) {
        let connection = &self.connections[place];
        if let (Progress::Tunnel { is_over: true }, Uplink::Over, Purpose::Call(errand)) =
            (connection.progress, connection.uplink, connection.purpose)
        {
            kit.ended(errand.ticket, connection.instance, Outcome::Replied);
            self.close(place, kit);
        }
    }

    fn read(&mut self, place: usize, now: Time, kit: &mut Kit) {
        for reads in 0..READS_PER_TURN {
            let Some(connection) = self.connections.get_mut(place) else { return };
            let flows = matches!(connection.progress, Progress::Flowing(_) | Progress::Tunnel { .. });
            if reads >= FLOWING_READS_PER_TURN && flows {
                break;
            }
            if !connection.is_readable || connection.waits() {
                return;
            }
            match connection.stream.read(&mut kit.scratch) {
                Ok(0) => return self.closed_by_peer(place, now, kit),
                Ok(count) => {
                    connection.since = now;
                    connection.has_heard = true;
                    if matches!(connection.purpose, Purpose::Idle) {
                        return self.close(place, kit);
                    }
                    // The scratch is lent out while the rest of the kit is used.
                    let scratch = std::mem::take(&mut kit.scratch);
                    connection.incoming.add(&scratch[..count], kit);
                    kit.scratch = scratch;
                    // Less than was asked for: nothing more is there until the poll says so, unless that is the end.
                    connection.is_readable = connection.sees_end || count == kit.scratch.len();
                    self.advance(place, kit);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.is_readable = false;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if matches!(connection.progress, Progress::Tunnel { .. }) => {
                    return self.fail(place, Outcome::Broken, kit);
                }
                Err(_) => return self.closed_by_peer(place, now, kit),
            }
        }
        self.note_unread(place);
    }

    /// Once, however often it is left with more: each entry leads to reads of its own.
    fn note_unread(&mut self, place: usize) {
        if self.connections.contains(place) && !self.unread.contains(&place) {
            self.unread.push(place);
        }
    }

    /// Makes what it can of the bytes that have come.
    fn advance(&mut self, place: usize, kit: &mut Kit) {
        let Some(connection) = self.connections.get_mut(place) else { return };
        match (connection.progress, connection.purpose) {
            (Progress::Head, Purpose::Call(errand)) => self.take_head(place, errand, kit),
            (Progress::Head, Purpose::Probe) => self.take_probe(place, kit),
            (Progress::Gathering(body), Purpose::Call(errand)) => self.gather(place, errand, body, kit),
            (Progress::Flowing(body), Purpose::Call(errand)) => self.take_body(place, errand, body, kit),
            (Progress::Flowing(body), Purpose::Probe) => self.take_probe_body(place, body, kit),
            (Progress::Tunnel { .. }, Purpose::Call(errand)) => self.carry(place, errand, kit),
            (Progress::Announced(_) | Progress::Gathering(_), _)
            | (Progress::Tunnel { .. }, Purpose::Probe)
            | (_, Purpose::Idle) => {}
        }
    }

    fn take_probe(&mut self, place: usize, kit: &mut Kit) {
        let connection = &mut self.connections[place];
        let Some(checkup) = connection.checkup.clone() else { return self.probed(place, Verdict::Fail, kit) };
        let is_head = checkup.method == "HEAD";
        let (length, framing, said) = loop {
            match http::parse_response(connection.incoming.rest(), is_head, &self.limits) {
                Ok(None) => return,
                Ok(Some(head)) if head.status < 200 && head.status != 101 => {
                    let length = head.len;
                    connection.incoming.take(length, kit);
                }
                Ok(Some(head)) if (checkup.status.0..=checkup.status.1).contains(&head.status) => {
                    break (head.len, head.framing, http::report(head.headers_bytes));
                }
                Ok(Some(head)) => {
                    let why = format!("it was answered with status {}", head.status);
                    return self.failed_probe(place, why, kit);
                }
                Err(malformed) => {
                    let why = format!("its answer is malformed: {}", malformed.why);
                    return self.failed_probe(place, why, kit);
                }
            }
        };
        connection.incoming.take(length, kit);
        self.take_report(place, said, kit);
        if checkup.body.is_none() {
            return self.probed(place, Verdict::Pass, kit);
        }
        self.take_probe_body(place, Body::new(framing, u64::MAX), kit);
    }

    /// What an upstream says of how it wants to be balanced, told if it has changed. What makes no sense changes nothing, and is
    /// told once.
    fn take_report(&mut self, place: usize, said: Result<Report, String>, kit: &mut Kit) {
        let Connection { instance, address, .. } = self.connections[place];
        if !self.said.contains_key(&instance) && said.as_ref().is_ok_and(|report| *report == Report::default()) {
            return;
        }
        let before = self.said.entry(instance).or_default();
        match said {
            Ok(report) => {
                before.is_refused = false;
                if std::mem::replace(&mut before.report, report) != report {
                    kit.events.push_back(Event::Reported { instance, report });
                }
            }
            Err(why) => {
                if !std::mem::replace(&mut before.is_refused, true) {
                    log::warn!("passed over what {address} says of itself in its answer to a health check: {why}");
                }
            }
        }
    }

    /// Looks for what must stand in the answer to a probe. What comes after that, or is too far behind, is not read.
    fn take_probe_body(&mut self, place: usize, mut body: Body, kit: &mut Kit) {
        let connection = &mut self.connections[place];
        let sought = connection.checkup.as_ref().and_then(|checkup| checkup.body.as_deref()).unwrap_or_default();
        let before = connection.looked_at.len();
        let decoded = body.decode(connection.incoming.rest(), &mut connection.looked_at);
        connection.looked_at.truncate(LOOKED_AT_BYTES_MAX);
        // It may have begun with what was looked at before.
        let from = before.saturating_sub(sought.len());
        if contains(&connection.looked_at[from..], sought.as_bytes()) {
            return self.probed(place, Verdict::Pass, kit);
        }
        match decoded {
            Ok(taken) if !body.is_done() && connection.looked_at.len() < LOOKED_AT_BYTES_MAX => {
                connection.incoming.take(taken, kit);
                connection.progress = Progress::Flowing(body);
            }
            Ok(_) | Err(_) => {
                let why = format!("its answer does not say {sought:?}");
                self.failed_probe(place, why, kit);
            }
        }
    }

    fn failed_probe(&mut self, place: usize, why: String, kit: &mut Kit) {
        let connection = &self.connections[place];
        log::debug!("a health check of {} failed: {why}", connection.address);
        kit.complaints.push_back((connection.instance, why));
        self.probed(place, Verdict::Fail, kit);
    }

    fn probed(&mut self, place: usize, verdict: Verdict, kit: &mut Kit) {
        let instance = self.connections[place].instance;
        kit.events.push_back(Event::Probed { instance, verdict });
        self.close(place, kit);
    }

    fn take_head(&mut self, place: usize, errand: Errand, kit: &mut Kit) {
        let connection = &mut self.connections[place];
        let mut interim = 0;
        let head = loop {
            match http::parse_response(&connection.incoming.rest()[interim..], errand.is_head, &self.limits) {
                Ok(None) => return connection.incoming.take(interim, kit),
                Ok(Some(head)) if head.status == 101 && errand.upgrades => break head,
                // Nobody asked it to change protocols.
                Ok(Some(head)) if head.status == 101 => return self.fail(place, Outcome::Broken, kit),
                Ok(Some(head)) if head.status < 200 => interim += head.len,
                Ok(Some(head)) => break head,
                Err(malformed) => {
                    log::debug!("an upstream sent a malformed answer: {}", malformed.why);
                    return self.fail(place, Outcome::Broken, kit);
                }
            }
        };
        let instance = connection.instance;
        let proxy = kit.calls.get(errand.ticket).and_then(|call| call.proxy.clone());
        let takes_trailers = kit.calls.get(errand.ticket).and_then(|call| call.hop).is_some_and(|hop| hop.is_http11);
        let task = kit.calls.task(errand.ticket, instance);
        let Some((request, attempt)) = task else { return self.close(place, kit) };
        attempt.reply.clear();
        attempt.reply.status = head.status;
        attempt.reply.content_type.push_str(head.content_type.unwrap_or_default());
        attempt.head.clear();
        forward::write_response_lines(&mut attempt.head, &head, proxy.as_deref());
        attempt.has_head = true;
        let length = interim + head.len;
        if head.status == 101 {
            if !forward::write_choice(&mut attempt.head, head.headers_bytes, request.request().headers) {
                log::debug!("{} changes to a protocol that it was not offered", connection.address);
                return self.fail(place, Outcome::Broken, kit);
            }
            connection.keeps_alive = false;
            connection.incoming.take(length, kit);
            connection.progress = Progress::Announced(Body::new(Framing::UntilClose, u64::MAX));
            return kit.events.push_back(Event::Headed { ticket: errand.ticket, instance });
        }
        attempt.deferred = match head.status {
            429 | 503 => http::retry_after(head.headers_bytes),
            _ => None,
        };
        attempt.length = match head.framing {
            // The answer to a HEAD may leave open how long that to a GET is.
            Framing::Empty if errand.is_head => content_length(head.headers_bytes),
            Framing::Empty => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        };
        connection.keeps_alive = head.keep_alive && head.framing != Framing::UntilClose;
        let mut body = Body::new(head.framing, u64::MAX);
        attempt.trailers.clear();
        let rest = &connection.incoming.rest()[length..];
        let decoded = body.decode_with_trailers(rest, &mut attempt.reply.body, &mut attempt.trailers);
        // Only what flows has trailers; an answer that may be tried again does without.
        let flows = takes_trailers && !attempt.trailers.is_empty() && head.status < 500 && attempt.deferred.is_none();
        match decoded {
            Err(_) => self.fail(place, Outcome::Broken, kit),
            Ok(taken) if body.is_done() && !flows => {
                connection.incoming.take(length + taken, kit);
                self.finish(place, errand, kit);
            }
            Ok(taken) if attempt.reply.status == 429 || attempt.reply.status >= 500 => {
                connection.incoming.take(length + taken, kit);
                connection.progress = Progress::Gathering(body);
            }
            Ok(taken) => {
                connection.incoming.take(length + taken, kit);
                self.announce(place, errand, body, kit);
            }
        }
    }

    fn announce(&mut self, place: usize, errand: Errand, body: Body, kit: &mut Kit) {
        let connection = &mut self.connections[place];
        connection.progress = Progress::Announced(body);
        kit.events.push_back(Event::Headed { ticket: errand.ticket, instance: connection.instance });
    }

    /// More of an answer that says that it failed. One that turns out to be long flows like any other.
    fn gather(&mut self, place: usize, errand: Errand, mut body: Body, kit: &mut Kit) {
        let connection = &mut self.connections[place];
        let attempt = kit.calls.attempt(errand.ticket, connection.instance);
        let Some(attempt) = attempt else { return self.close(place, kit) };
        match body.decode(connection.incoming.rest(), &mut attempt.reply.body) {
            Err(_) => self.fail(place, Outcome::Broken, kit),
            Ok(taken) => {
                let is_long = attempt.reply.body.len() > GATHERED_BYTES_MAX;
                connection.incoming.take(taken, kit);
                connection.progress = Progress::Gathering(body);
                if body.is_done() {
                    self.finish(place, errand, kit);
                } else if is_long {
                    self.announce(place, errand, body, kit);
                }
            }
        }
    }

    /// The conductor lets the answer flow.
    pub(crate) fn relay(&mut self, ticket: Ticket, place: usize, now: Time, kit: &mut Kit) {
        let Some(connection) = self.connections.get_mut(place) else { return };
        let Progress::Announced(body) = connection.progress else { return };
        let attempt = kit.calls.attempt(ticket, connection.instance);
        if attempt.is_some_and(|attempt| attempt.reply.status == 101) {
            (connection.progress, connection.uplink) = (Progress::Tunnel { is_over: false }, Uplink::Tunnel);
        } else {
            connection.progress = Progress::Flowing(body);
        }
        self.relays.push_back(ticket);
        self.advance(place, kit);
        self.read(place, now, kit);
    }

    fn take_body(&mut self, place: usize, errand: Errand, mut body: Body, kit: &mut Kit) {
        let connection = &mut self.connections[place];
        let attempt = kit.calls.attempt(errand.ticket, connection.instance);
        let Some(attempt) = attempt else { return self.close(place, kit) };
        let (rest, out) = (connection.incoming.rest(), &mut attempt.reply.body);
        match body.decode_with_trailers(rest, out, &mut attempt.trailers) {
            Err(_) => self.fail(place, Outcome::Broken, kit),
            Ok(taken) => {
                connection.incoming.take(taken, kit);
                connection.progress = Progress::Flowing(body);
                self.relays.push_back(errand.ticket);
                if body.is_done() {
                    self.finish(place, errand, kit);
                }
            }
        }
    }

    /// Passes on what the upstream sends through a tunnel.
    fn carry(&mut self, place: usize, errand: Errand, kit: &mut Kit) {
        let connection = &mut self.connections[place];
        let attempt = kit.calls.attempt(errand.ticket, connection.instance);
        let Some(attempt) = attempt else { return self.close(place, kit) };
        attempt.reply.body.extend_from_slice(connection.incoming.rest());
        let length = connection.incoming.rest().len();
        connection.incoming.take(length, kit);
        self.relays.push_back(errand.ticket);
    }

    /// The answer is complete; the connection is kept if both sides want that.
    fn finish(&mut self, place: usize, errand: Errand, kit: &mut Kit) {
        let connection = &mut self.connections[place];
        let instance = connection.instance;
        let flowed = matches!(connection.progress, Progress::Flowing(_));
        let outcome = match kit.calls.attempt(errand.ticket, instance) {
            Some(attempt) => {
                // What flows cannot be asked again.
                attempt.deferred = attempt.deferred.filter(|_| !flowed);
                match attempt.reply.status {
                    // Nothing was done: it may be asked of another, or later, whatever it is.
                    429 if attempt.deferred.is_some() => Outcome::Busy,
                    status => outcome_of_status(status),
                }
            }
            None => Outcome::Replied,
        };
        kit.ended(errand.ticket, instance, outcome);
        let idle = self.idle.entry(instance.slot).or_default();
        let is_sent = connection.outgoing.is_empty() && connection.uplink == Uplink::None;
        let is_clean = connection.incoming.is_empty() && is_sent;
        if connection.keeps_alive && is_clean && idle.len() < self.idle_max {
            connection.purpose = Purpose::Idle;
            connection.progress = Progress::Head;
            connection.is_paused = false;
            idle.push(place);
        } else {
            self.close(place, kit);
        }
    }

    fn closed_by_peer(&mut self, place: usize, now: Time, kit: &mut Kit) {
        let connection = &mut self.connections[place];
        if let (Progress::Flowing(mut body) | Progress::Gathering(mut body), Purpose::Call(errand)) =
            (connection.progress, connection.purpose)
        {
            if body.closed().is_ok() {
                connection.keeps_alive = false;
                return self.finish(place, errand, kit);
            }
        }
        if let (Progress::Tunnel { is_over: false }, Purpose::Call(errand)) = (connection.progress, connection.purpose)
        {
            (connection.progress, connection.is_readable) = (Progress::Tunnel { is_over: true }, false);
            if let Some(attempt) = kit.calls.attempt(errand.ticket, connection.instance) {
                attempt.is_over = true;
            }
            self.relays.push_back(errand.ticket);
            return self.end_tunnel_if_over(place, kit);
        }
        // An idle connection may be closed just as it is used again; asking again does no harm if the method says so.
        let is_stale = connection.is_used && !connection.has_heard;
        match connection.purpose {
            Purpose::Call(errand) if is_stale && errand.is_idempotent => self.ask_anew(place, errand, now, kit),
            Purpose::Call(_) | Purpose::Probe | Purpose::Idle => self.fail(place, Outcome::Broken, kit),
        }
    }

    /// Asks again over a new connection: other idle ones may be as stale. It shows nothing of the upstream that it
    /// closes connections that nobody used, so the conductor hears nothing of it.
    fn ask_anew(&mut self, place: usize, errand: Errand, now: Time, kit: &mut Kit) {
        let Connection { instance, address, .. } = self.connections[place];
        self.close(place, kit);
        match self.connect(instance, address, Purpose::Idle, now, kit) {
            Some(place) => self.ask(place, errand.ticket, now, kit),
            None => kit.events.push_back(Event::Answered { ticket: errand.ticket, instance, outcome: Outcome::Unsent }),
        }
    }

    fn fail(&mut self, place: usize, outcome: Outcome, kit: &mut Kit) {
        let connection = &self.connections[place];
        let instance = connection.instance;
        match connection.purpose {
            Purpose::Idle => {}
            Purpose::Probe => {
                let why = if connection.is_connected { "its connection broke" } else { "nobody takes its connection" };
                return self.failed_probe(place, why.to_owned(), kit);
            }
            Purpose::Call(errand) => {
                kit.events.push_back(Event::Answered { ticket: errand.ticket, instance, outcome });
            }
        }
        self.close(place, kit);
    }

    fn close(&mut self, place: usize, kit: &mut Kit) {
        let mut connection = self.connections.remove(place);
        let _ = kit.registry.deregister(&mut connection.stream);
        if let Some(idle) = self.idle.get_mut(&connection.instance.slot) {
            idle.retain(|other| *other != place);
        }
        self.unread.retain(|other| *other != place);
    }

    /// The next call whose body has moved forward.
    pub(crate) fn next_relay(&mut self) -> Option<Ticket> {
        self.relays.pop_front()
    }

    /// Stops or goes on reading the answer of a call, as whoever gets it can take it.
    pub(crate) fn pause(&mut self, ticket: Ticket, place: usize, is_paused: bool) {
        // It may have come to its end, and its connection to another call.
        if let Some(connection) = self.connections.get_mut(place).filter(|connection| connection.serves(ticket)) {
            let goes_on = std::mem::replace(&mut connection.is_paused, is_paused) && !is_paused;
            if goes_on {
                self.note_unread(place);
            }
        }
    }

    /// Whether some connection has more to read than the last turn allowed.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Goes on reading where the last turn left off.
    pub(crate) fn read_rest(&mut self, now: Time, kit: &mut Kit) {
        for place in std::mem::take(&mut self.unread) {
            self.read(place, now, kit);
        }
    }

    /// Gives up answers that have stopped flowing, and connections that nobody has used for long.
    pub(crate) fn sweep(&mut self, now: Time, kit: &mut Kit) {
        let is_silent = |connection: &Connection| {
            let silence_max = match (connection.purpose, connection.progress) {
                (Purpose::Idle, _) => self.idle_time,
                (_, Progress::Flowing(_)) if !connection.is_paused => SILENCE_MAX,
                (_, Progress::Tunnel { is_over }) if is_over || connection.uplink != Uplink::Tunnel => {
                    self.tunnel_idle_time.min(HALF_TUNNEL_IDLE_MAX)
                }
                (_, Progress::Tunnel { .. }) => self.tunnel_idle_time,
                _ => return false,
            };
            now - connection.since > silence_max
        };
        let silent: Vec<usize> =
            self.connections.iter().filter(|(_, other)| is_silent(other)).map(|(place, _)| place).collect();
        for place in silent {
            let is_tunnel = matches!(self.connections[place].progress, Progress::Tunnel { .. });
            // That nothing moves through a tunnel is no sign of illness.
            self.fail(place, if is_tunnel { Outcome::Replied } else { Outcome::Broken }, kit);
        }
    }

    /// Whether a sweep has anything to look at.
    pub(crate) fn needs_sweep(&self) -> bool {
        !self.connections.is_empty()
    }
}

impl Connection {
    /// Whether it is for this call.
    fn serves(&self, ticket: Ticket) -> bool {
        matches!(self.purpose, Purpose::Call(errand) if errand.ticket == ticket)
    }

    /// It must not read on: the conductor has not decided yet, or the taker is slow.
    fn waits(&self) -> bool {
        self.is_paused || matches!(self.progress, Progress::Announced(_) | Progress::Tunnel { is_over: true })
    }
}

fn contains(text: &[u8], sought: &[u8]) -> bool {
    sought.is_empty() || text.windows(sought.len()).any(|part| part == sought)
}

fn content_length(headers: &[u8]) -> Option<u64> {
    std::str::from_utf8(http::header(headers, "content-length")?).ok()?.parse().ok()
}

/// Ends the head of a request whose body is at hand with our own framing, and appends the body.
fn write_body(out: &mut Vec<u8>, request: &demi_platform::Request<'_>) {
    let is_expected = matches!(request.method, "POST" | "PUT" | "PATCH");
    if is_expected || !request.body.is_empty() {
        http::write_length(out, request.body.len() as u64);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(request.body);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Instant;

    use demi_platform::Request;

    use super::*;
    use crate::calls::Origin;

    /// Each time that it was ready and had more than may be read it was noted once more, and then read as often.
    #[test]
    fn a_body_with_more_to_read_is_gone_on_with_once_a_turn() {
        let service = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = service.local_addr().expect("it is bound");
        let poll = mio::Poll::new().expect("there are descriptors");
        let mut kit = Kit::new(poll.registry().try_clone().expect("there are descriptors"));
        let mut upstreams = Upstreams::new(&demi_conductor::config::Http::default());
        let mut request = kit.calls.buffer();
        Arc::make_mut(&mut request).fill(&Request { method: "GET", ..Request::default() });
        let ticket = kit.calls.open(request, Origin::Nobody, None);
        let instance = Instance { slot: 0, run: 1 };
        kit.calls.reset(ticket, instance);
        upstreams.handle(ticket, instance, address, Time::ZERO, &mut kit);
        let (mut peer, _) = service.accept().expect("it was connected to");
        let writing = std::thread::spawn(move || {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
            let mut is_taken = peer.write_all(head).is_ok();
            while is_taken {
                is_taken = peer.write_all(&[b'x'; 64 * 1024]).is_ok();
            }
        });
        let began = Instant::now();
        let readable = Readiness { is_readable: true, ..Readiness::default() };
        let mut times_noted = 0;
        while times_noted < 50 {
            assert!(began.elapsed() < Duration::from_secs(30), "there is never more to read");
            upstreams.ready(0, readable, Time::ZERO, &mut kit);
            if let Some(Event::Headed { .. }) = kit.events.pop_front() {
                upstreams.relay(ticket, 0, Time::ZERO, &mut kit);
            }
            if let Some(call) = kit.calls.get(ticket) {
                call.attempt.reply.body.clear();
            }
            assert!(upstreams.unread.len() <= 1, "it is noted {} times", upstreams.unread.len());
            times_noted += upstreams.unread.len();
        }
        upstreams.cancel(ticket, 0, &mut kit);
        assert!(!upstreams.has_unread());
        writing.join().expect("it ends when nobody reads");
    }
}
