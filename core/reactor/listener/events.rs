//! Clients whose answer is a stream of events (server-sent events, as the HTML standard has them): told what comes about when
//! it does, until that is all or they are too slow.
//!
//! Such a connection ends with its stream. Nothing more is read from it, and a client that says that it sends no more has gone:
//! whoever only waits has no other way to say so.

use std::time::Duration;

use demi_conductor::Time;

use super::{mark_dirty, write_head, Listener, State, StreamFraming};
use crate::http;
use crate::kit::Kit;
use crate::problem::Problem;

/// So much may wait for a client; one that leaves more untaken is cut off. The system holds about as much again.
const EVENTS_BYTES_MAX: usize = 64 * 1024;

/// A stream is never silent for longer, but for the second until the next sweep: whoever is between keeps it open, and a
/// client that is not there any more is noticed.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A comment, which clients pass over.
const BEAT: &[u8] = b":\n\n";

/// The stream is of this moment, and a reverse proxy that gathers it (nginx) would hold it back.
const HEADERS: &[u8] = b"Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n";

impl Listener {
    /// Why no more clients get streams of events, if they do not.
    pub(crate) fn refuse_events(&mut self) -> Option<Problem> {
        let problem = |code, what| Problem::new(503, what).code(code).retry_after(Duration::from_secs(5));
        if self.is_draining {
            return Some(problem("draining", "Demi is ending"));
        }
        if self.event_streams() < self.settings.event_streams_max.size() {
            return None;
        }
        self.counts.event_streams_refused += 1;
        Some(problem("event_streams", "as many streams of events are open as may (http.event_streams_max)"))
    }

    /// How many streams of events are open.
    pub(super) fn event_streams(&self) -> usize {
        self.clients.iter().filter(|(_, client)| matches!(client.state, State::Events { .. })).count()
    }

    /// Answers the request that this connection waits for with a stream that begins with `events`. Whether it goes on; if
    /// not, it has ended in order.
    pub(crate) fn begin_events(&mut self, place: usize, serial: u64, events: &[u8], now: Time, kit: &mut Kit) -> bool {
        let date = self.date.text();
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else { return false };
        let State::Waiting { exchange, .. } = client.state else { return false };
        let framing = match exchange {
            _ if exchange.is_head => StreamFraming::Empty,
            _ if exchange.is_http11 => StreamFraming::Chunked,
            _ => StreamFraming::UntilClose,
        };
        let out = &mut client.outgoing.bytes;
        write_head(out, 200, "text/event-stream", HEADERS, date, Some("close"));
        if framing == StreamFraming::Chunked {
            http::write_header(out, "Transfer-Encoding", b"chunked");
        }
        out.extend_from_slice(b"\r\n");
        client.forget_rest();
        client.ends_by_close = framing == StreamFraming::UntilClose;
        client.state = State::Events { framing };
        // Where that cannot be done it is only noticed later who is slow.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&client.stream, EVENTS_BYTES_MAX);
        mark_dirty(place, client, &mut self.dirty, now);
        let is_over = exchange.is_head || client.sees_end;
        self.counts.event_streams += u64::from(!exchange.is_head);
        self.tell(place, serial, events, now, kit);
        if is_over {
            self.end_events(place, serial, now);
        }
        self.follows(place, serial)
    }

    /// Adds to a stream of events. A client for which too much waits is cut off.
    pub(crate) fn tell(&mut self, place: usize, serial: u64, events: &[u8], now: Time, kit: &mut Kit) {
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else { return };
        let State::Events { framing } = client.state else { return };
        let is_over = |client: &super::Client| client.outgoing.len() + events.len() > EVENTS_BYTES_MAX;
        if is_over(client) {
            // All of it may be of this turn, and nobody has had a chance to take it.
            self.flush_one(place, now, kit);
        }
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else { return };
        if is_over(client) {
            log::debug!("a client that follows events does not take them and is cut off");
            self.counts.event_streams_cut_off += 1;
            return self.hang_up(place, kit);
        }
        let out = &mut client.outgoing.bytes;
        match framing {
            StreamFraming::Chunked => http::write_chunk(out, events),
            StreamFraming::UntilClose | StreamFraming::Length(_) => out.extend_from_slice(events),
            StreamFraming::Empty => {}
        }
        client.since = now;
        mark_dirty(place, client, &mut self.dirty, now);
    }

    /// All is told.
    pub(crate) fn end_events(&mut self, place: usize, serial: u64, now: Time) {
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else { return };
        let State::Events { framing } = client.state else { return };
        if framing == StreamFraming::Chunked {
            http::write_last_chunk(&mut client.outgoing.bytes, b"");
        }
        (client.state, client.since) = (State::Closing, now);
        mark_dirty(place, client, &mut self.dirty, now);
    }

    /// What this stream should tell cannot be told: it ends before its end.
    pub(crate) fn break_events(&mut self, place: usize, serial: u64, kit: &mut Kit) {
        if self.follows(place, serial) {
            self.hang_up(place, kit);
        }
    }

    /// Whether this connection is a stream of events.
    pub(crate) fn follows(&self, place: usize, serial: u64) -> bool {
        let client = self.clients.get(place).filter(|client| client.serial == serial);
        client.is_some_and(|client| matches!(client.state, State::Events { .. }))
    }

    /// Whether this connection is a stream of events and its client has taken all so far.
    pub(crate) fn is_abreast(&self, place: usize, serial: u64) -> bool {
        self.follows(place, serial) && self.clients[place].outgoing.is_empty()
    }

    /// Ends all streams of events. Those who are behind are cut off: nobody waits for them.
    pub(super) fn end_all_events(&mut self, now: Time, kit: &mut Kit) {
        for (place, serial) in self.events_where(|_| true) {
            self.end_events(place, serial, now);
            self.flush_one(place, now, kit);
            if self.clients.get(place).is_some_and(|client| !client.outgoing.is_empty()) {
                self.close(place, kit);
            }
        }
    }

    /// Lets those streams be heard that have been silent for long.
    pub(super) fn beat(&mut self, now: Time, kit: &mut Kit) {
        for (place, serial) in self.events_where(|since| now - since >= HEARTBEAT) {
            self.tell(place, serial, BEAT, now, kit);
        }
    }

    /// The streams that were last told something at a time like this.
    fn events_where(&self, is_meant: impl Fn(Time) -> bool) -> Vec<(usize, u64)> {
        let is_stream = |client: &super::Client| matches!(client.state, State::Events { .. }) && is_meant(client.since);
        let streams = self.clients.iter().filter(|(_, client)| is_stream(client));
        streams.map(|(place, client)| (place, client.serial)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use demi_conductor::config;

    use super::*;
    use crate::kit::Readiness;

    struct Scene {
        _poll: mio::Poll,
        kit: Kit,
        listener: Listener,
        client: TcpStream,
        place: usize,
        serial: u64,
    }

    impl Scene {
        /// A client that has asked, and whose stream has begun.
        fn begin() -> Scene {
            let poll = mio::Poll::new().expect("there are descriptors");
            let mut kit = Kit::new(poll.registry().try_clone().expect("there are descriptors"));
            let settings = config::Http { listen: "127.0.0.1:0".to_owned(), ..config::Http::default() };
            let mut listener = Listener::bind(&settings).expect("there is a free port");
            let mut client = TcpStream::connect(listener.address()).expect("it listens");
            client.write_all(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n").expect("the kernel takes it");
            let began = std::time::Instant::now();
            let readable = Readiness { is_readable: true, ..Readiness::default() };
            let arrival = loop {
                listener.accept(Time::ZERO, &mut kit);
                listener.ready(0, readable, Time::ZERO, &mut kit);
                match listener.next_arrival() {
                    Some(arrival) => break arrival,
                    None => assert!(began.elapsed() < Duration::from_secs(30), "nothing came"),
                }
            };
            let (place, serial) = (arrival.place, arrival.serial);
            assert!(listener.begin_events(place, serial, b"", Time::ZERO, &mut kit));
            assert_eq!(listener.counts().event_streams_open, 1);
            Scene { _poll: poll, kit, listener, client, place, serial }
        }

        fn tell(&mut self, events: &[u8], now: Time) {
            self.listener.tell(self.place, self.serial, events, now, &mut self.kit);
            self.listener.flush(now, &mut self.kit);
        }
    }

    #[test]
    fn a_stream_is_heard_of_every_fifteen_seconds_whatever_else_it_is_told() {
        let mut scene = Scene::begin();
        for second in 1..=60 {
            if second == 20 {
                scene.tell(b"data: 1\n\n", Time::from_millis(20_000));
            }
            scene.listener.sweep(Time::from_millis(second * 1_000), &mut scene.kit);
            scene.listener.flush(Time::from_millis(second * 1_000), &mut scene.kit);
        }
        scene.listener.end_events(scene.place, scene.serial, Time::from_millis(60_000));
        scene.listener.flush(Time::from_millis(60_000), &mut scene.kit);
        let mut text = String::new();
        scene.client.read_to_string(&mut text).expect("it ends in order");
        let (_, body) = text.split_once("\r\n\r\n").expect("it has a head");
        let beat = "3\r\n:\n\n\r\n";
        assert_eq!(body, format!("{beat}9\r\ndata: 1\n\n\r\n{beat}{beat}0\r\n\r\n"), "at 15, 20, 35 and 50");
    }

    #[test]
    fn a_client_that_takes_nothing_is_cut_off_and_holds_little_until_then() {
        let mut scene = Scene::begin();
        let mut told = 0;
        while scene.listener.follows(scene.place, scene.serial) {
            assert!(told < 64 << 20, "nobody holds so much");
            scene.tell(&[b'x'; 100], Time::ZERO);
            told += 100;
            assert!(scene.listener.clients.iter().all(|(_, client)| client.outgoing.len() <= EVENTS_BYTES_MAX));
        }
        let counts = scene.listener.counts();
        assert_eq!((scene.listener.len(), counts.event_streams_open, counts.event_streams_cut_off), (0, 0, 1));
        let mut rest = Vec::new();
        // A reset is as good as an end.
        let _ = scene.client.read_to_end(&mut rest);
        assert!(!rest.ends_with(b"0\r\n\r\n"), "it looks as if it had ended in order");
    }

    #[test]
    fn a_client_that_is_behind_does_not_hold_up_the_end_of_demi() {
        let mut scene = Scene::begin();
        while scene.listener.clients[scene.place].outgoing.len() < EVENTS_BYTES_MAX / 2 {
            scene.tell(&[b'x'; 100], Time::ZERO);
        }
        assert!(scene.listener.follows(scene.place, scene.serial));
        scene.listener.drain(Time::ZERO, &mut scene.kit);
        assert!(!scene.listener.follows(scene.place, scene.serial) && !scene.listener.owes());
        assert_eq!(scene.listener.refuse_events().map(|problem| problem.status()), Some(503));
    }
}
