//! The load generator: one thread, one poll, at most one request in flight on each keep-alive connection.
//!
//! Open loop: request `k` is due at `begin + k / rate` whether or not earlier ones were answered, and its latency
//! counts from that moment, so a server that stalls is charged for every request that had to wait ("coordinated
//! omission", Gil Tene). A periodic timerfd wakes the generator, since `epoll_wait` counts in whole milliseconds.
//! Closed loop: each connection asks again as soon as it is answered.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::Outcome;

const TIMER: Token = Token(usize::MAX);
/// How often time-outs, broken connections and the server's life are looked at.
const HOUSEKEEPING_NS: u64 = 50_000_000;
/// How long a connection that could not be made waits for its next try.
const RECONNECT_NS: u64 = 10_000_000;
/// A request without an answer for so long has failed.
const REQUEST_TIMEOUT_NS: u64 = 10_000_000_000;
/// How long `Load::open` waits for the connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that the generator reads.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// The longest latency that the histogram tells apart: ten minutes.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each connection asks again as soon as it is answered.
    Closed,
    /// So many requests a second, evenly spaced, on whichever connection is free.
    Open(u32),
    /// One request on each connection, then nothing.
    Once,
}

/// What came of a run.
pub struct Tally {
    /// ns from the intended moment of sending to the last byte of the answer, of the 2xx answers.
    pub latency: Histogram<u64>,
    /// The same of the others.
    pub latency_of_refusals: Histogram<u64>,
    /// ns from the intended moment to the real one although a connection was free: the generator's own lateness.
    pub lag: Histogram<u64>,
    /// Answers by status.
    pub status: BTreeMap<u16, u64>,
    /// Connections that broke under a request, or answered what is not HTTP.
    pub broken: u64,
    /// Requests without an answer in `REQUEST_TIMEOUT_NS`.
    pub timed_out: u64,
    /// Requests that were due and found no connection until the end.
    pub unsent: u64,
    /// Connections made anew, also after an orderly close.
    pub reconnects: u64,
    /// From the first intended moment to the last answer.
    pub span: Duration,
    /// CPU time of the generator.
    pub own_cpu: Duration,
}

impl Tally {
    fn new() -> Self {
        let histogram = || Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are in order");
        Tally {
            latency: histogram(),
            latency_of_refusals: histogram(),
            lag: histogram(),
            status: BTreeMap::new(),
            broken: 0,
            timed_out: 0,
            unsent: 0,
            reconnects: 0,
            span: Duration::ZERO,
            own_cpu: Duration::ZERO,
        }
    }

    /// Answers of any status.
    pub fn answered(&self) -> u64 {
        self.status.values().sum()
    }

    /// Everything that is not a 2xx answer.
    pub fn failed(&self) -> u64 {
        let refused: u64 = self.status.iter().filter(|(status, _)| **status / 100 != 2).map(|(_, count)| count).sum();
        refused + self.broken + self.timed_out + self.unsent
    }

    /// 2xx answers a second.
    pub fn rate(&self) -> f64 {
        self.latency.len() as f64 / self.span.as_secs_f64().max(1e-9)
    }

    /// 2xx answers that took longer than `bound`.
    pub fn slower_than(&self, bound: Duration) -> u64 {
        self.latency.count_between(bound.as_nanos() as u64 + 1, LATENCY_NS_MAX)
    }
}

/// The bytes of a request: a GET, or a POST if there is a body.
pub fn request(path: &str, body_bytes: usize) -> Vec<u8> {
    let head = match body_bytes {
        0 => format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
        _ => format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n\
             Content-Length: {body_bytes}\r\n\r\n"
        ),
    };
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + body_bytes, b'x');
    bytes
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// The connection is being made.
    Connecting,
    /// Ready for a request.
    Idle,
    /// A request is under way. Times in ns since `Load::origin`.
    Waiting { intended: u64, sent: u64, unwritten: usize },
    /// It could not be made; next try at this time.
    Broken { retry: u64 },
}

struct Connection {
    stream: Option<TcpStream>,
    state: State,
    input: Vec<u8>,
    filled: usize,
}

/// Open connections to one server, and the request that they send.
pub struct Load {
    poll: Poll,
    address: SocketAddr,
    request: Vec<u8>,
    connections: Vec<Connection>,
    idle: VecDeque<usize>,
    timer: OwnedFd,
    origin: Instant,
    // Of the present run:
    tally: Tally,
    closed_loop: bool,
    last_answer: u64,
    end: u64,
}

impl Load {
    /// Opens `connections` connections and waits until all of them stand.
    pub fn open(address: SocketAddr, request: Vec<u8>, connections: usize) -> Outcome<Load> {
        allow_descriptors(connections as u64 + 64);
        let fault = |error: io::Error| format!("the load generator cannot poll: {error}");
        let poll = Poll::new().map_err(fault)?;
        let timer =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
                .map_err(|error| fault(error.into()))?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE).map_err(fault)?;
        let mut load = Load {
            poll,
            address,
            request,
            connections: Vec::with_capacity(connections),
            idle: VecDeque::with_capacity(connections),
            timer,
            origin: Instant::now(),
            tally: Tally::new(),
            closed_loop: false,
            last_answer: 0,
            end: 0,
        };
        for index in 0..connections {
            let state = State::Broken { retry: 0 };
            load.connections.push(Connection { stream: None, state, input: vec![0; 2048], filled: 0 });
            load.connect(index);
        }
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut events = Events::with_capacity(1024);
        while load.idle.len() < connections {
            if Instant::now() > deadline {
                let standing = load.idle.len();
                return Err(format!("{address} took only {standing} of {connections} connections in 5 s"));
            }
            load.wait(&mut events)?;
            load.housekeep();
        }
        load.tally.reconnects = 0;
        Ok(load)
    }

    /// Sends requests for `span`, then waits for the answers still owed. `alive` is asked 20 times a second whether
    /// going on makes sense.
    pub fn run(&mut self, pace: Pace, span: Duration, alive: &mut dyn FnMut() -> Outcome<()>) -> Outcome<Tally> {
        let cpu = own_cpu();
        self.tally = Tally::new();
        self.closed_loop = matches!(pace, Pace::Closed);
        let begin = self.now();
        self.last_answer = begin;
        self.end = begin + span.as_nanos() as u64;
        let (interval, mut open_left) = match pace {
            Pace::Open(rate) => {
                (1_000_000_000 / u64::from(rate.max(1)), (span.as_secs_f64() * f64::from(rate)).round() as u64)
            }
            Pace::Closed | Pace::Once => (0, 0),
        };
        if open_left == 0 {
            for index in std::mem::take(&mut self.idle) {
                self.ask(index, begin, begin);
            }
        } else {
            self.set_timer(interval)?;
        }
        let mut due = begin;
        let mut housekeeping = begin + HOUSEKEEPING_NS;
        let mut events = Events::with_capacity(1024);
        loop {
            let now = self.now();
            while open_left > 0 && due <= now {
                let Some(index) = self.idle.pop_front() else { break };
                // A request that came due while every connection was busy says nothing about the generator.
                if now - due < interval {
                    let _ = self.tally.lag.record(now - due);
                }
                self.ask(index, due, now);
                due += interval;
                open_left -= 1;
            }
            let over = match pace {
                Pace::Once => true,
                Pace::Closed | Pace::Open(_) => now >= self.end,
            };
            if over && ((open_left == 0 && self.waiting() == 0) || now >= self.end + REQUEST_TIMEOUT_NS) {
                break;
            }
            if now >= housekeeping {
                housekeeping = now + HOUSEKEEPING_NS;
                self.housekeep();
                alive()?;
            }
            self.wait(&mut events)?;
        }
        self.set_timer(0)?;
        self.tally.unsent += open_left;
        for index in 0..self.connections.len() {
            if matches!(self.connections[index].state, State::Waiting { .. }) {
                self.tally.timed_out += 1;
                self.connect(index);
            }
        }
        self.tally.span = Duration::from_nanos(self.last_answer - begin);
        self.tally.own_cpu = own_cpu().saturating_sub(cpu);
        Ok(std::mem::replace(&mut self.tally, Tally::new()))
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    fn waiting(&self) -> usize {
        self.connections.iter().filter(|connection| matches!(connection.state, State::Waiting { .. })).count()
    }

    fn wait(&mut self, events: &mut Events) -> Outcome<()> {
        match self.poll.poll(events, Some(Duration::from_nanos(HOUSEKEEPING_NS))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other.map_err(|error| format!("the load generator cannot poll: {error}"))?,
        }
        for event in events.iter() {
            if event.token() == TIMER {
                // A periodic timerfd goes on only after its count has been read.
                let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                continue;
            }
            let index = event.token().0;
            if event.is_writable() {
                self.writable(index);
            }
            if event.is_readable() || event.is_read_closed() {
                self.readable(index, event.is_read_closed());
            }
        }
        Ok(())
    }

    fn writable(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(stream) = connection.stream.as_ref() else { return };
        match connection.state {
            State::Connecting => {
                if !matches!(stream.take_error(), Ok(None)) {
                    return self.broke(index);
                }
                if stream.peer_addr().is_ok() {
                    let _ = stream.set_nodelay(true);
                    self.freed(index);
                }
            }
            State::Waiting { unwritten, .. } if unwritten > 0 => self.write(index),
            State::Waiting { .. } | State::Idle | State::Broken { .. } => {}
        }
    }

    fn readable(&mut self, index: usize, closed: bool) {
        loop {
            let connection = &mut self.connections[index];
            let (State::Idle | State::Waiting { .. }, Some(stream)) = (connection.state, connection.stream.as_mut())
            else {
                return;
            };
            if connection.filled == connection.input.len() {
                if connection.filled >= ANSWER_BYTES_MAX {
                    return self.broke(index);
                }
                connection.input.resize(connection.filled * 2, 0);
            }
            let room = connection.input.len() - connection.filled;
            match stream.read(&mut connection.input[connection.filled..]) {
                Ok(0) => return self.broke(index),
                Ok(count) => {
                    connection.filled += count;
                    if !self.answered(index) {
                        return;
                    }
                    // A short read has emptied the socket (epoll(7)), unless the peer's end follows it.
                    if count < room && !closed {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.broke(index),
            }
        }
    }

    /// Takes the answer if it is complete; false if the connection was given up.
    fn answered(&mut self, index: usize) -> bool {
        let now = self.now();
        let connection = &mut self.connections[index];
        let answer = match parse(&connection.input[..connection.filled]) {
            Ok(None) => return true,
            Ok(Some(answer)) if answer.end == connection.filled => answer,
            Ok(Some(_)) | Err(_) => {
                self.broke(index);
                return false;
            }
        };
        let State::Waiting { intended, .. } = connection.state else {
            self.broke(index);
            return false;
        };
        connection.filled = 0;
        *self.tally.status.entry(answer.status).or_insert(0) += 1;
        let is_refusal = answer.status / 100 != 2;
        let histogram = if is_refusal { &mut self.tally.latency_of_refusals } else { &mut self.tally.latency };
        let _ = histogram.record((now - intended).max(1));
        self.last_answer = now;
        if answer.close {
            self.connect(index);
            return false;
        }
        self.freed(index);
        true
    }

    /// The connection can take a request: the next one at once in a closed loop.
    fn freed(&mut self, index: usize) {
        self.connections[index].state = State::Idle;
        let now = self.now();
        if self.closed_loop && now < self.end {
            self.ask(index, now, now);
        } else {
            self.idle.push_back(index);
        }
    }

    fn ask(&mut self, index: usize, intended: u64, now: u64) {
        self.connections[index].state = State::Waiting { intended, sent: now, unwritten: self.request.len() };
        self.write(index);
    }

    fn write(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let (State::Waiting { unwritten, .. }, Some(stream)) = (&mut connection.state, connection.stream.as_mut())
        else {
            return;
        };
        while *unwritten > 0 {
            match stream.write(&self.request[self.request.len() - *unwritten..]) {
                Ok(count) => *unwritten -= count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.broke(index),
            }
        }
    }

    fn broke(&mut self, index: usize) {
        match self.connections[index].state {
            State::Waiting { .. } => {
                self.tally.broken += 1;
                self.connect(index);
            }
            State::Connecting => {
                let retry = self.now() + RECONNECT_NS;
                self.connections[index].stream = None;
                self.connections[index].state = State::Broken { retry };
            }
            State::Idle | State::Broken { .. } => self.connect(index),
        }
    }

    fn connect(&mut self, index: usize) {
        self.tally.reconnects += 1;
        self.idle.retain(|idle| *idle != index);
        let retry = self.now() + RECONNECT_NS;
        let connection = &mut self.connections[index];
        connection.filled = 0;
        connection.stream = None;
        connection.state = State::Broken { retry };
        let Ok(mut stream) = TcpStream::connect(self.address) else { return };
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut stream, Token(index), interest).is_ok() {
            connection.stream = Some(stream);
            connection.state = State::Connecting;
        }
    }

    fn housekeep(&mut self) {
        let now = self.now();
        for index in 0..self.connections.len() {
            match self.connections[index].state {
                State::Waiting { sent, .. } if now > sent + REQUEST_TIMEOUT_NS => {
                    self.tally.timed_out += 1;
                    self.connect(index);
                }
                State::Broken { retry } if now >= retry => self.connect(index),
                State::Waiting { .. } | State::Broken { .. } | State::Connecting | State::Idle => {}
            }
        }
    }

    /// Wakes the poll each `interval` ns; 0 ends that.
    fn set_timer(&self, interval: u64) -> Outcome<()> {
        let span = Timespec { tv_sec: (interval / 1_000_000_000) as i64, tv_nsec: (interval % 1_000_000_000) as i64 };
        let every = Itimerspec { it_interval: span, it_value: span };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &every)
            .map_err(|error| format!("the load generator cannot set its timer: {error}"))?;
        Ok(())
    }
}

/// A complete answer at the beginning of the input.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Whether the server will close.
    pub close: bool,
    /// Where the answer ends.
    pub end: usize,
    /// The body, if it came in one piece.
    pub body: std::ops::Range<usize>,
}

/// Reads one answer; `None` while it is incomplete. Interim answers (1xx) are skipped.
pub fn parse(input: &[u8]) -> Result<Option<Answer>, &'static str> {
    let mut start = 0;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 24];
        let mut response = httparse::Response::new(&mut headers);
        let head = match response.parse(&input[start..]) {
            Ok(httparse::Status::Complete(head)) => start + head,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("the answer is not HTTP/1.1"),
        };
        let status = response.code.unwrap_or(0);
        if status / 100 == 1 {
            start = head;
            continue;
        }
        let (mut length, mut chunked, mut close) = (None, false, response.version == Some(0));
        for header in response.headers.iter() {
            match header.name.len() {
                10 if header.name.eq_ignore_ascii_case("connection") => {
                    close = header.value.eq_ignore_ascii_case(b"close");
                }
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    let text = std::str::from_utf8(header.value).map_err(|_| "content-length is not a number")?;
                    length = Some(text.trim().parse::<usize>().map_err(|_| "content-length is not a number")?);
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => chunked = true,
                _ => {}
            }
        }
        let end = match length {
            _ if chunked => match chunked_end(input, head)? {
                Some(end) => end,
                None => return Ok(None),
            },
            Some(length) => head + length,
            None if status == 204 || status == 304 => head,
            None => return Err("the answer has no length"),
        };
        return Ok((input.len() >= end).then_some(Answer { status, close, end, body: head..end }));
    }
}

/// The end of a chunked body without trailers, or with them.
fn chunked_end(input: &[u8], mut at: usize) -> Result<Option<usize>, &'static str> {
    loop {
        match httparse::parse_chunk_size(&input[at..]) {
            Ok(httparse::Status::Complete((line, 0))) => {
                at += line;
                // Trailers end, as heads do, with an empty line.
                while let Some(length) = input[at..].windows(2).position(|pair| pair == b"\r\n") {
                    at += length + 2;
                    if length == 0 {
                        return Ok(Some(at));
                    }
                }
                return Ok(None);
            }
            Ok(httparse::Status::Complete((line, size))) => {
                at += line + size as usize + 2;
                if at > input.len() {
                    return Ok(None);
                }
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("a chunk has no size"),
        }
    }
}

fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Raises this process's own bound on open files if it is too low; a Demi started before keeps its own.
fn allow_descriptors(count: u64) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(input: &[u8]) -> Option<usize> {
        parse(input).expect("the answer is well-formed").map(|answer| answer.end)
    }

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcrest";
        assert_eq!(end(answer), Some(answer.len() - 4));
        assert_eq!(end(&answer[..answer.len() - 5]), None);
    }

    #[test]
    fn a_chunked_answer_ends_after_its_trailers() {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n";
        for length in 0..answer.len() {
            assert_eq!(end(&answer[..length]), None, "{length} bytes");
        }
        assert_eq!(end(answer), Some(answer.len()));
    }

    #[test]
    fn an_interim_answer_is_skipped() {
        let answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(end(&answer[..25]), None);
        assert_eq!(end(answer), Some(answer.len()));
    }
}
