//! The requests under way: their bodies, their answers, and who waits for them. The conductor knows only tickets.

use std::sync::Arc;
use std::time::Duration;

use demi_conductor::config::Proxy;
use demi_conductor::{Instance, RouteId, Ticket, TicketBook};
use demi_platform::{Fault, Reply, Request, RequestBuf};
use serde_json::value::RawValue;

use crate::forward::Hop;
use crate::handle::Caller;
use crate::sticky::Cookie;
use crate::upload::Upload;

/// Who waits for an answer.
pub(crate) enum Origin {
    /// A client's connection: its place, and the number of the connection that had the place.
    Client { place: usize, serial: u64 },
    /// The host program.
    Caller(Caller),
    /// A child, under an id of its own.
    Plugin { instance: Instance, id: Box<RawValue> },
    /// Nobody: this dead letter is replayed.
    Replay { letter: u64 },
    /// Nobody: this post is delivered.
    Post { id: u64 },
    /// Nobody: the answer was given, or the caller hung up.
    Nobody,
}

/// A request under way.
pub(crate) struct Call {
    pub(crate) ticket: Ticket,
    pub(crate) request: Arc<RequestBuf>,
    pub(crate) origin: Origin,
    /// Whether its client wants to be told how far it is.
    pub(crate) wants_progress: bool,
    /// Index of the platform that it was routed to.
    pub(crate) platform: Option<u32>,
    /// The rule that it goes by.
    pub(crate) route: Option<RouteId>,
    /// From whom it came, if it is passed on as it came.
    pub(crate) hop: Option<Hop>,
    /// What its route changes of it, if it is passed on.
    pub(crate) proxy: Option<Arc<Proxy>>,
    /// The cookie that is not passed on.
    pub(crate) cookie: Option<Arc<Cookie>>,
    /// Header lines that its client gets with the answer of a service.
    pub(crate) gift: Option<Vec<u8>>,
    /// What its client sends while it is under way.
    pub(crate) upload: Option<Box<Upload>>,
    /// The attempt whose answer counts.
    pub(crate) attempt: Attempt,
    /// That of a second instance, which was asked while the first had not answered.
    double: Option<Box<Attempt>>,
}

/// What one instance makes of a request.
#[derive(Default)]
pub(crate) struct Attempt {
    /// Who has it, or had it last.
    pub(crate) instance: Option<Instance>,
    /// Where it is with its host: the id of a child's call, or the place of an upstream connection.
    pub(crate) link: Link,
    /// The answer, once there is one.
    pub(crate) reply: Reply,
    /// Header lines to pass on, from an upstream's answer.
    pub(crate) head: Vec<u8>,
    /// Whether `head` and `length` are an upstream's.
    pub(crate) has_head: bool,
    /// How long an upstream's answer is, if it said so.
    pub(crate) length: Option<u64>,
    /// An upstream's answer says that nothing was done, and when to ask again.
    pub(crate) deferred: Option<Duration>,
    /// Trailer lines of an upstream's answer in chunks, as they came.
    pub(crate) trailers: Vec<u8>,
    /// Its upstream sends nothing more through the tunnel that it has become.
    pub(crate) is_over: bool,
    /// Or why there is none.
    pub(crate) fault: Option<Fault>,
}

/// Where a request is with its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Link {
    #[default]
    None,
    /// The id of the call on a child's pipe.
    Child(u64),
    /// The place of an upstream connection.
    Upstream(usize),
}

/// Whoever wants not to be asked for longer may have made a mistake; it is asked, and can say so again.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Buffers up to this size are kept for the next request; larger ones are given back.
const SPARE_BYTES_MAX: usize = 16 * 1024;
/// So many of them.
const SPARES_MAX: usize = 128;

/// All requests under way.
#[derive(Default)]
pub(crate) struct Calls {
    book: TicketBook,
    table: Vec<Option<Call>>,
    spare_requests: Vec<Arc<RequestBuf>>,
    spare_replies: Vec<Reply>,
    /// Bytes of all requests under way, of those still being read and of those still being kept.
    bytes: usize,
}

impl Calls {
    /// An empty buffer for a request.
    pub(crate) fn buffer(&mut self) -> Arc<RequestBuf> {
        self.spare_requests.pop().unwrap_or_default()
    }

    /// A buffer that is no longer needed.
    pub(crate) fn give_back(&mut self, mut buffer: Arc<RequestBuf>) {
        let is_ours = Arc::get_mut(&mut buffer).is_some();
        if is_ours && buffer.capacity() <= SPARE_BYTES_MAX && self.spare_requests.len() < SPARES_MAX {
            self.spare_requests.push(buffer);
        }
    }

    /// Bytes of requests that are held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts bytes of a request that is being read.
    pub(crate) fn hold(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// Counts no more the bytes of a request that was being read, and is dropped or becomes a call, or of one that was
    /// being kept.
    pub(crate) fn let_go(&mut self, bytes: usize) {
        self.bytes -= bytes;
    }

    /// An instance is asked: forgets what an earlier one said, and a double of it.
    pub(crate) fn reset(&mut self, ticket: Ticket, instance: Instance) {
        let Some(call) = self.get(ticket) else { return };
        call.attempt.clear();
        call.attempt.instance = Some(instance);
        if let Some(double) = call.double.take() {
            self.spare(*double);
        }
    }

    /// A second instance is asked as well.
    pub(crate) fn double(&mut self, ticket: Ticket, instance: Instance) {
        let reply = self.spare_replies.pop().unwrap_or_default();
        if let Some(call) = self.get(ticket) {
            call.double = Some(Box::new(Attempt { instance: Some(instance), reply, ..Attempt::default() }));
        }
    }

    /// The answer of this instance is the one that counts. What the other says, and where it is, is still known until
    /// the request is put to an instance again or ends.
    pub(crate) fn prefer(&mut self, ticket: Ticket, instance: Instance) {
        if let Some(Call { attempt, double: Some(double), .. }) = self.get(ticket) {
            if double.instance == Some(instance) {
                std::mem::swap(attempt, double);
            }
        }
    }

    /// A request and what this instance makes of it, if it still has it.
    pub(crate) fn task(&mut self, ticket: Ticket, instance: Instance) -> Option<(&Arc<RequestBuf>, &mut Attempt)> {
        let Call { request, attempt, double, .. } = self.get(ticket)?;
        let mut attempts = std::iter::once(attempt).chain(double.as_deref_mut());
        Some((request, attempts.find(|attempt| attempt.instance == Some(instance))?))
    }

    /// What this instance makes of a request, if it still has it.
    pub(crate) fn attempt(&mut self, ticket: Ticket, instance: Instance) -> Option<&mut Attempt> {
        Some(self.task(ticket, instance)?.1)
    }

    /// Takes a request in.
    pub(crate) fn open(&mut self, request: Arc<RequestBuf>, origin: Origin, platform: Option<u32>) -> Ticket {
        let ticket = self.book.issue();
        if self.table.len() <= ticket.slot() {
            self.table.resize_with(ticket.slot() + 1, || None);
        }
        self.bytes += request.len();
        let reply = self.spare_replies.pop().unwrap_or_default();
        self.table[ticket.slot()] = Some(Call {
            ticket,
            request,
            origin,
            wants_progress: false,
            platform,
            route: None,
            hop: None,
            proxy: None,
            cookie: None,
            gift: None,
            upload: None,
            attempt: Attempt { reply, ..Attempt::default() },
            double: None,
        });
        ticket
    }

    /// The request with this ticket, if it is still under way.
    pub(crate) fn get(&mut self, ticket: Ticket) -> Option<&mut Call> {
        self.table.get_mut(ticket.slot())?.as_mut().filter(|call| call.ticket == ticket)
    }

    /// What the client of this request still sends, if it does.
    pub(crate) fn upload(&mut self, ticket: Ticket) -> Option<&mut Upload> {
        self.get(ticket)?.upload.as_deref_mut()
    }

    /// Keeps no more of the body that had come when the request was put: it was passed on.
    pub(crate) fn drop_part(&mut self, ticket: Ticket) {
        let Some(call) = self.get(ticket) else { return };
        let request = Arc::make_mut(&mut call.request);
        let part = request.request().body.len();
        if part > 0 {
            let left = request.len() - part;
            request.body_mut().truncate(left);
            request.body_mut().shrink_to_fit();
            self.let_go(part);
        }
    }

    /// Ends the request and retires its ticket. `recycle` takes what is left of it.
    pub(crate) fn close(&mut self, ticket: Ticket) -> Option<Call> {
        let (call, held) = self.close_and_hold(ticket)?;
        self.let_go(held);
        Some(call)
    }

    /// As `close`, but the bytes of the request count as held until they are let go: it is being kept.
    pub(crate) fn close_and_hold(&mut self, ticket: Ticket) -> Option<(Call, usize)> {
        self.get(ticket)?;
        let call = self.table[ticket.slot()].take()?;
        self.book.retire(ticket);
        self.let_go(call.upload.as_ref().map_or(0, |upload| upload.bytes.len()));
        let held = call.request.len();
        Some((call, held))
    }

    /// Leaves of an ended call's request only its method, on which the answer depends.
    pub(crate) fn drop_body(&mut self, call: &mut Call) {
        let mut emptied = self.buffer();
        let method = call.request.request().method;
        Arc::make_mut(&mut emptied).fill(&Request { method, ..Request::default() });
        self.give_back(std::mem::replace(&mut call.request, emptied));
    }

    /// Keeps the buffers of an ended request for the next.
    pub(crate) fn recycle(&mut self, call: Call) {
        self.give_back(call.request);
        self.spare(call.attempt);
        if let Some(double) = call.double {
            self.spare(*double);
        }
    }

    /// Keeps the buffer of an attempt for the next.
    fn spare(&mut self, attempt: Attempt) {
        let mut reply = attempt.reply;
        if reply.body.capacity() <= SPARE_BYTES_MAX && self.spare_replies.len() < SPARES_MAX {
            reply.clear();
            self.spare_replies.push(reply);
        }
    }
}

impl Call {
    /// Whether it goes on after it was put to its service, so that it cannot be put again.
    pub(crate) fn goes_on(&self) -> bool {
        self.upload.is_some() || self.offers_upgrade()
    }

    /// Whether it offers its service to change protocols.
    pub(crate) fn offers_upgrade(&self) -> bool {
        self.hop.is_some_and(|hop| hop.offers(self.request.request().headers))
    }
}

impl Attempt {
    /// How long whoever had the request wants not to be asked again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let wait = self.fault.as_ref().and_then(|fault| fault.retry_after).or(self.deferred);
        wait.map(|wait| wait.min(RETRY_AFTER_MAX))
    }

    fn clear(&mut self) {
        self.reply.clear();
        self.head.clear();
        (self.has_head, self.length, self.deferred, self.fault) = (false, None, None, None);
        self.is_over = false;
        self.trailers.clear();
        (self.instance, self.link) = (None, Link::None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_call_is_gone_and_its_bytes_are_free() {
        let mut calls = Calls::default();
        let mut buffer = calls.buffer();
        Arc::make_mut(&mut buffer).fill(&Request { body: b"hello", ..Request::default() });
        let ticket = calls.open(buffer, Origin::Nobody, None);
        assert_eq!(calls.bytes(), 5);
        let call = calls.close(ticket).expect("it is under way");
        calls.recycle(call);
        assert_eq!(calls.bytes(), 0);
        assert!(calls.get(ticket).is_none() && calls.close(ticket).is_none());
    }

    #[test]
    fn a_request_that_is_being_kept_counts_until_it_is_and_is_not_held_twice() {
        let mut calls = Calls::default();
        let mut buffer = calls.buffer();
        Arc::make_mut(&mut buffer).fill(&Request { method: "HEAD", body: &[0; 100], ..Request::default() });
        let ticket = calls.open(buffer, Origin::Nobody, None);
        let (mut call, held) = calls.close_and_hold(ticket).expect("it is under way");
        assert_eq!((held, calls.bytes()), (104, 104));
        calls.drop_body(&mut call);
        assert_eq!((call.request.request().method, call.request.len()), ("HEAD", 4));
        calls.recycle(call);
        assert_eq!(calls.bytes(), 104);
        calls.let_go(held);
        assert_eq!(calls.bytes(), 0);
    }

    #[test]
    fn a_large_buffer_is_not_kept() {
        let mut calls = Calls::default();
        let mut buffer = calls.buffer();
        Arc::make_mut(&mut buffer).fill(&Request { body: &[0; SPARE_BYTES_MAX + 1], ..Request::default() });
        calls.give_back(buffer);
        assert_eq!(calls.buffer().capacity(), 0);
    }

    const FIRST: Instance = Instance { slot: 0, run: 1 };
    const SECOND: Instance = Instance { slot: 1, run: 1 };

    /// A request that two instances have, and what each has said.
    fn doubled(calls: &mut Calls) -> Ticket {
        let mut buffer = calls.buffer();
        Arc::make_mut(&mut buffer).fill(&Request { body: b"hello", ..Request::default() });
        let ticket = calls.open(buffer, Origin::Nobody, None);
        calls.reset(ticket, FIRST);
        calls.double(ticket, SECOND);
        for (instance, text, link) in [(FIRST, "first", Link::Child(1)), (SECOND, "second", Link::Child(2))] {
            let attempt = calls.attempt(ticket, instance).expect("it has the request");
            attempt.reply.text(text);
            attempt.link = link;
        }
        ticket
    }

    #[test]
    fn the_answer_that_is_preferred_takes_the_place_of_the_other_which_is_still_known() {
        let mut calls = Calls::default();
        let ticket = doubled(&mut calls);
        assert_eq!(calls.bytes(), 5, "it is one request");
        assert_eq!(calls.get(ticket).expect("it is under way").attempt.reply.body, b"first");
        calls.prefer(ticket, SECOND);
        let attempt = &calls.get(ticket).expect("it is under way").attempt;
        assert_eq!((attempt.reply.body.as_slice(), attempt.instance), (b"second".as_slice(), Some(SECOND)));
        assert_eq!(calls.attempt(ticket, FIRST).expect("it is to be cancelled").link, Link::Child(1));
        calls.prefer(ticket, SECOND);
        assert_eq!(calls.get(ticket).expect("it is under way").attempt.reply.body, b"second", "it is preferred once");
        let call = calls.close(ticket).expect("it is under way");
        calls.recycle(call);
        assert_eq!(calls.bytes(), 0);
    }

    #[test]
    fn a_request_that_is_put_to_an_instance_again_has_no_double_any_more() {
        let mut calls = Calls::default();
        let ticket = doubled(&mut calls);
        let third = Instance { slot: 2, run: 1 };
        calls.reset(ticket, third);
        assert!(calls.attempt(ticket, FIRST).is_none() && calls.attempt(ticket, SECOND).is_none());
        calls.prefer(ticket, SECOND);
        let attempt = &calls.get(ticket).expect("it is under way").attempt;
        assert!(attempt.reply.body.is_empty() && attempt.instance == Some(third));
    }
}
