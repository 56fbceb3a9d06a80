//! The body of a request that is under way before all of it has come.

use std::sync::Arc;

use demi_conductor::Time;
use demi_platform::RequestBuf;

use super::{mark_dirty, Arrival, Client, Listener, State};
use crate::forward::Hop;
use crate::http::{Body, Framing, Malformed, RequestHead};
use crate::kit::Kit;
use crate::problem::Problem;
use crate::upload::{Passage, Upload};

/// A body that is longer is looked at when so much of it has come: whoever gets it may take it as it comes.
const PART_BYTES_MAX: u64 = 64 * 1024;

impl Listener {
    /// Whether there are services that take bodies as they come. If not, a body that is too long is refused at once.
    pub(crate) fn stream_bodies(&mut self, are_streamed: bool) {
        let stream_bytes_max = match self.settings.body_stream_bytes_max.value() {
            0 => u64::MAX,
            bytes => bytes,
        };
        let whole_bytes_max = self.settings.body_bytes_max.value();
        self.limits.body_bytes_max = if are_streamed { whole_bytes_max.max(stream_bytes_max) } else { whole_bytes_max };
        self.are_streamed = are_streamed;
    }

    /// Whether a body of this length is short enough to be kept whole.
    pub(crate) fn gathers(&self, length: u64) -> bool {
        length <= self.settings.body_bytes_max.value()
    }

    /// Whether a body may turn out to be one that its service takes as it comes.
    pub(super) fn may_stream(&self, head: &RequestHead<'_>) -> bool {
        let is_long = match head.framing {
            Framing::Chunked => true,
            Framing::Length(bytes) => bytes > PART_BYTES_MAX.min(self.settings.body_bytes_max.value()),
            Framing::Empty | Framing::UntilClose => false,
        };
        let path = head.target.split('?').next().unwrap_or_default();
        self.are_streamed && is_long && crate::api::Page::of(path).is_none()
    }

    /// Has it decided who gets the body, once enough of it has come for that.
    pub(super) fn part_if_enough(&mut self, place: usize, kit: &mut Kit) {
        let client = &mut self.clients[place];
        let State::Body { held, part: Some(framing), .. } = client.state else { return };
        let length = match framing {
            Framing::Length(bytes) => Some(bytes),
            Framing::Chunked | Framing::Empty | Framing::UntilClose => None,
        };
        // Whoever waits for a 100 sends nothing before; the chunks of a conversation may be small, and its answer waited for.
        if length.is_some() && !client.owes_continue && (held as u64) < PART_BYTES_MAX {
            return;
        }
        let mut upload = Box::new(Upload::new(Passage::Body { length }));
        upload.trailers = std::mem::take(&mut client.trailers);
        if let State::Body { body, request, exchange, held, .. } = std::mem::replace(&mut client.state, State::Closing)
        {
            kit.calls.let_go(held);
            client.state = State::Waiting { ticket: None, exchange };
            upload.is_done = body.is_done();
            (client.rest, client.is_held) = (Some(body).filter(|body| !body.is_done()), true);
            let hop = Hop { from: client.peer, is_http11: exchange.is_http11, upgrades: false };
            self.arrivals.push_back(Arrival { place, serial: client.serial, request, hop, upload: Some(upload) });
        }
    }

    /// Nobody takes this body as it comes: it is gathered, and arrives once more when it is whole.
    pub(crate) fn gather(&mut self, place: usize, serial: u64, request: Arc<RequestBuf>, now: Time, kit: &mut Kit) {
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else {
            return kit.calls.give_back(request);
        };
        let State::Waiting { exchange, .. } = client.state else { return kit.calls.give_back(request) };
        // There may be nothing left but the trailers, which have come.
        let rest = client.rest.take();
        let mut body = rest.unwrap_or(Body::new(Framing::Empty, 0));
        let held = request.request().body.len();
        let bytes_max = self.settings.body_bytes_max.value();
        if held as u64 > bytes_max || body.limit(bytes_max - held as u64).is_err() {
            kit.calls.give_back(request);
            self.counts.too_large += 1;
            return self.refuse(place, &Problem::new(413, "the body is too long"), now, kit);
        }
        kit.calls.hold(held);
        (client.is_held, client.since) = (false, now);
        if body.is_done() {
            kit.calls.let_go(held);
            return self.complete(place, request, exchange);
        }
        client.state = State::Body { body, request, exchange, held, part: None };
        self.continue_if_owed(place, now);
        self.list_if_more(place);
    }

    /// Tells a client that waits for it to send its body.
    pub(super) fn continue_if_owed(&mut self, place: usize, now: Time) {
        let client = &mut self.clients[place];
        if std::mem::take(&mut client.owes_continue) {
            client.outgoing.bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            mark_dirty(place, client, &mut self.dirty, now);
        }
    }

    /// Takes more of the body of a request that is under way.
    pub(super) fn understand_rest(
        &mut self,
        place: usize,
        bytes: &[u8],
        now: Time,
        kit: &mut Kit,
    ) -> Result<usize, Malformed> {
        let client = &mut self.clients[place];
        let Some(ticket) = client.state.ticket().filter(|_| !client.is_held) else { return Ok(0) };
        let Some(body) = &mut client.rest else { return Ok(0) };
        let Some(upload) = kit.calls.upload(ticket) else { return Ok(0) };
        let before = upload.bytes.len();
        let decoded = body.decode_with_trailers(bytes, &mut upload.bytes, &mut upload.trailers);
        let grown = upload.bytes.len() - before;
        client.since = now;
        client.is_held = !upload.has_room();
        if body.is_done() {
            upload.is_done = true;
            client.rest = None;
        }
        kit.calls.hold(grown);
        self.moved.push_back(ticket);
        decoded
    }
}

impl Client {
    /// The request has its answer. Whether all of it had come: if not, where the next begins nobody knows.
    pub(super) fn forget_rest(&mut self) -> bool {
        (self.is_held, self.owes_continue) = (false, false);
        self.rest.take().is_none()
    }
}
