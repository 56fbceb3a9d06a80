//! What callers ask, and what they are told.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use demi_conductor::balance::fingerprint;
use demi_conductor::config::{Host, OnFailure, Urgency};
use demi_conductor::{Answer, Ask, Conductor, Errand, Event, Outcome, Refusal, RouteId, Ticket};
use demi_platform::{FaultKind, Request, RequestBuf};

use super::{Burial, Shell, INSTANCE_HEADER};
use crate::api::{self, Facts, Page};
use crate::calls::{Call, Origin};
use crate::chronicle::unix_ms;
use crate::forward;
use crate::handle::{Answered, Caller};
use crate::http;
use crate::kit::outcome_of_status;
use crate::listener::Arrival;
use crate::problem::Problem;
use crate::store::DeadLetter;

/// What became of a request as a dead letter.
#[derive(Clone, Copy)]
pub(super) enum Kept {
    /// Its route does not want it kept, or it did not fail.
    NotWanted,
    /// It is kept under this number.
    Under(u64),
    /// It should have been kept and could not be.
    Lost,
}

/// The code of a problem for which the caller is to blame.
const MISTAKEN: &str = "mistaken";

impl Kept {
    fn of(number: Result<u64, String>) -> Kept {
        number.map_or(Kept::Lost, Kept::Under)
    }
}

/// A request with this header, whatever its value, is told how far it is in interim responses with a header of this name.
pub(super) const PROGRESS_HEADER: &str = "Demi-Progress";

/// Requests with the same value of this header go to the same instance, if their platform is balanced so.
pub(crate) const KEY_HEADER: &str = "Demi-Key";

impl Shell {
    /// Takes one complete request from the listener. False if there is none.
    pub(crate) fn take_arrival(&mut self, conductor: &Conductor) -> bool {
        let Some(arrival) = self.listener.next_arrival() else { return false };
        self.arrived(arrival, conductor);
        true
    }

    fn arrived(&mut self, arrival: Arrival, conductor: &Conductor) {
        let Arrival { place, serial, request, hop, upload } = arrival;
        let view = request.request();
        if let Some(upload) = &upload {
            let is_sound = self.hosts.take(view.host) && !has_dot_segments(view.path());
            let route = conductor.router().find(&api::question(&view, true));
            if !(is_sound && self.is_streamed(route, upload.length(), conductor)) {
                return self.listener.gather(place, serial, request, self.now, &mut self.kit);
            }
        }
        let origin = Origin::Client { place, serial };
        if !self.hosts.take(view.host) {
            self.listener.respond_problem(place, serial, &misdirected(view.host), self.now, &mut self.kit);
            return self.kit.calls.give_back(request);
        }
        if has_dot_segments(view.path()) {
            let problem = Problem::new(400, "the path has . or .. segments; send it resolved");
            self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit);
            return self.kit.calls.give_back(request);
        }
        let Some(page) = Page::of(view.path()) else {
            let route = conductor.router().find(&api::question(&view, true));
            let (idempotent, wants_progress) = (api::is_idempotent(&view), wants_progress(view.headers));
            let mut key = key_of(&view, route, conductor);
            let (mut cookie, mut gift) = (None, None);
            if let Some(of_platform) = platform_of(route, conductor).and_then(|platform| self.cookies.of(platform)) {
                // Whoever says by itself where it belongs needs no cookie.
                if key.is_none() {
                    let stuck = self.cookies.stick(&of_platform, view.headers, hop);
                    (key, gift) = (Some(stuck.key), stuck.gift);
                }
                cookie = Some(of_platform);
            }
            let ask = Ask { idempotent, key, in_parts: upload.is_some(), ..Ask::default() };
            let ticket = self.ask_by_key(request, origin, route, ask, conductor);
            if let Some(call) = self.kit.calls.get(ticket) {
                (call.hop, call.wants_progress) = (Some(hop), wants_progress);
                (call.cookie, call.gift, call.upload) = (cookie, gift, upload);
            }
            return;
        };
        // A stream that a page begins is held open, and there are only so many.
        let is_held = matches!(page, Page::MessageEvents(_));
        if (is_held || !matches!(view.method, "GET" | "HEAD")) && !self.hosts.take_sender(view.headers) {
            let what =
                "a web page of another site may not order or ask this; use a program such as curl, or a page whose \
                        host is in `http.hosts` of the configuration";
            let problem = Problem::new(403, what).code("cross_site");
            self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit);
            return self.kit.calls.give_back(request);
        }
        let allowed = page.allowed();
        let is_allowed = allowed.split(", ").any(|method| method == view.method);
        if page == Page::Unknown || !is_allowed {
            let problem = match page {
                Page::Unknown => Problem::new(404, "there is no such page; see GET /v1/status"),
                _ => {
                    let detail = format!("{} does not take {}; use {allowed}", view.path(), view.method);
                    Problem::new(405, detail).allow(allowed)
                }
            };
            self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit);
        } else if page == Page::Requests {
            self.asked_over_api(place, serial, &request, conductor);
        } else if page == Page::Messages {
            self.post(place, serial, &request, conductor);
        } else if let Page::Message(id) = page {
            self.show_message(place, serial, id);
        } else if let Page::MessageEvents(id) = page {
            match id {
                Some(id) => self.follow_message(place, serial, id, &view),
                None => self.follow_all(place, serial, &view),
            }
        } else if matches!(page, Page::DeadLetters | Page::DeadLetter(_) | Page::Replay(_)) {
            self.ask_for_letters(place, serial, page, &view);
        } else if page == Page::MetricsHistory {
            self.show_minutes(place, serial, view.query(), conductor);
        } else if page == Page::Scaling {
            self.show_scaling(place, serial, view.query(), conductor);
        } else if let Page::Order(name, order) = page {
            self.order(name, order, origin, conductor);
        } else {
            let answered = self.with_facts(|facts| api::answer(page, &view, conductor, facts));
            match answered {
                Ok(page) => {
                    let (now, kit) = (self.now, &mut self.kit);
                    self.listener.respond(place, serial, page.status, page.content_type, b"", &page.body, now, kit);
                }
                Err(problem) => self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit),
            }
        }
        self.kit.calls.give_back(request);
    }

    /// Whether what a route leads to takes a body of this length as it comes (`None`: nobody knows how long it will be).
    /// What may have to be kept as a dead letter is gathered, and what may have to go to a fallback that needs it whole, if
    /// it is known to be short enough for that.
    fn is_streamed(&self, route: Option<RouteId>, length: Option<u64>, conductor: &Conductor) -> bool {
        let Some(rule) = route.and_then(|route| conductor.router().rule(route)) else { return false };
        let takes_parts = |platform: u32| self.roster[platform as usize].present_blueprint().host == Host::Http;
        let can_be_gathered = length.is_some_and(|length| self.listener.gathers(length));
        takes_parts(rule.platform)
            && rule.on_failure == OnFailure::Error
            && (!can_be_gathered || rule.fallback.iter().all(|platform| takes_parts(*platform)))
    }

    fn asked_over_api(&mut self, place: usize, serial: u64, request: &RequestBuf, conductor: &Conductor) {
        let outer = request.request();
        let mut buffer = self.kit.calls.buffer();
        let asked = api::read_ask(outer.body, |inner, to| {
            Arc::make_mut(&mut buffer).fill(inner);
            match to {
                "" => Ok(conductor.router().find(&api::question(inner, false))),
                to => conductor.router().to(to).map(Some).ok_or_else(|| api::no_platform(conductor, to)),
            }
        });
        match asked.and_then(|route| route) {
            Ok(route) => {
                let idempotent = api::is_idempotent(&outer);
                let ticket = self.ask(buffer, Origin::Client { place, serial }, route, idempotent, conductor);
                self.note_wish_for_progress(ticket, wants_progress(outer.headers));
            }
            Err(problem) => {
                self.kit.calls.give_back(buffer);
                self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit);
            }
        }
    }

    pub(super) fn listed(&mut self, place: usize, serial: u64, page: Result<Vec<u8>, Box<Problem>>) {
        let (now, kit) = (self.now, &mut self.kit);
        match page {
            Ok(body) => self.listener.respond(place, serial, 200, api::JSON, b"", &body, now, kit),
            Err(problem) => self.listener.respond_problem(place, serial, &problem, now, kit),
        }
    }

    pub(super) fn asked_by_host(&mut self, request: RequestBuf, caller: Caller, conductor: &Conductor) {
        let view = request.request();
        if let Err(problem) = api::check_asked(&view) {
            // Whoever does not wait any more needs no answer.
            let _ = caller.0.try_send(told(&problem));
            return;
        }
        let route = conductor.router().find(&api::question(&view, false));
        let idempotent = view.is_idempotent();
        self.ask(Arc::new(request), Origin::Caller(caller), route, idempotent, conductor);
    }

    /// Opens a call and puts it to the conductor.
    pub(super) fn ask(
        &mut self,
        request: Arc<RequestBuf>,
        origin: Origin,
        route: Option<RouteId>,
        idempotent: bool,
        conductor: &Conductor,
    ) -> Ticket {
        let key = key_of(&request.request(), route, conductor);
        self.ask_by_key(request, origin, route, Ask { idempotent, key, ..Ask::default() }, conductor)
    }

    /// As `ask`, of a request whose key is known; its urgency goes by who asks.
    pub(super) fn ask_by_key(
        &mut self,
        request: Arc<RequestBuf>,
        origin: Origin,
        route: Option<RouteId>,
        ask: Ask,
        conductor: &Conductor,
    ) -> Ticket {
        let urgency = urgency_of(&origin, request.request().kind);
        let ticket = self.open(request, origin, route, conductor);
        self.kit.events.push_back(Event::Asked { ticket, route, ask: Ask { urgency, ..ask } });
        ticket
    }

    /// Opens a call, which is still to be put to the conductor.
    pub(super) fn open(
        &mut self,
        request: Arc<RequestBuf>,
        origin: Origin,
        route: Option<RouteId>,
        conductor: &Conductor,
    ) -> Ticket {
        let connection = match origin {
            Origin::Client { place, .. } => Some(place),
            Origin::Caller(_)
            | Origin::Plugin { .. }
            | Origin::Replay { .. }
            | Origin::Post { .. }
            | Origin::Nobody => None,
        };
        let ticket = self.kit.calls.open(request, origin, platform_of(route, conductor));
        if let Some(call) = self.kit.calls.get(ticket) {
            call.route = route;
            call.proxy = route.and_then(|route| self.proxies.get(route.0 as usize)?.clone());
        }
        if let Some(place) = connection {
            self.listener.ticketed(place, ticket);
        }
        ticket
    }

    fn note_wish_for_progress(&mut self, ticket: Ticket, wants_progress: bool) {
        if let Some(call) = self.kit.calls.get(ticket).filter(|_| wants_progress) {
            call.wants_progress = true;
        }
    }

    pub(super) fn with_facts<T>(&self, ask: impl FnOnce(&Facts<'_>) -> T) -> T {
        ask(&Facts {
            now: self.now,
            connections: self.listener.len(),
            counts: self.listener.counts(),
            listen: self.listener.address(),
            store: &self.store_facts,
            posts: &self.deliveries.counts,
            turns: &self.turns,
            trace: self.recorder.counts(),
            body_bytes: self.kit.calls.bytes(),
            pid_of: &|slot| self.children.pid(slot),
            roster: &self.roster,
            refused: &self.desk.refused,
            reason_of: &|slot| self.bays[slot as usize].reason,
            dropped_lines_of: &|slot| self.bays[slot as usize].dropped_lines,
        })
    }

    pub(super) fn answer(&mut self, ticket: Ticket, answer: Answer, conductor: &Conductor) {
        if let Some(call) = self.kit.calls.close(ticket) {
            self.tell(call, answer, Kept::NotWanted, conductor);
        }
    }

    pub(super) fn bury(&mut self, ticket: Ticket, answer: Answer, attempts: u32, conductor: &Conductor) {
        if self.kit.calls.get(ticket).is_some_and(|call| matches!(call.origin, Origin::Replay { .. })) {
            // It is a dead letter already.
            return self.answer(ticket, answer, conductor);
        }
        let Some((mut call, held)) = self.kit.calls.close_and_hold(ticket) else { return };
        let request = call.request.request();
        let platform = self.platform_name(&call).unwrap_or_default();
        let letter = DeadLetter {
            buried_at_unix_ms: unix_ms(),
            platform: platform.to_owned(),
            reason: reason(&call, answer),
            attempts,
            from: request.from.to_owned(),
            kind: request.kind.to_owned(),
            method: request.method.to_owned(),
            target: request.target.to_owned(),
            content_type: request.content_type.to_owned(),
            body: request.body.to_vec(),
            route: route_of(&call, platform, conductor),
            ..DeadLetter::default()
        };
        // The letter has the only copy from here on.
        self.kit.calls.drop_body(&mut call);
        if self.clerk.as_ref().is_some_and(|clerk| clerk.bury(ticket, letter)) {
            self.burials.insert(ticket.number(), Burial { call, answer, held });
        } else {
            self.kit.calls.let_go(held);
            log::error!("a dead letter could not be kept: too much is waiting for the store");
            self.kit.events.push_back(Event::Stored { errand: Errand::Bury, done: false });
            self.tell(call, answer, Kept::Lost, conductor);
        }
    }

    pub(super) fn buried(&mut self, ticket: Ticket, number: Result<u64, String>, conductor: &Conductor) {
        if let (Err(error), None) = (&number, &self.store_facts.trouble) {
            log::error!("a dead letter could not be kept: {error}");
        }
        if let Some(Burial { call, answer, held }) = self.burials.remove(&ticket.number()) {
            self.kit.calls.let_go(held);
            self.tell(call, answer, Kept::of(number), conductor);
        }
    }

    /// Tells whoever waits.
    fn tell(&mut self, mut call: Call, answer: Answer, kept: Kept, conductor: &Conductor) {
        let problem = self.problem(&call, answer);
        self.note_mishap(&call, answer, problem.as_ref());
        let problem = problem.map(|problem| match kept {
            Kept::NotWanted => problem,
            Kept::Under(number) => problem.dead_letter(number),
            Kept::Lost => problem.also("it could not be kept as a dead letter"),
        });
        match std::mem::replace(&mut call.origin, Origin::Nobody) {
            Origin::Client { place, serial } if self.listener.is_streaming(place, serial) => {
                // Demi's own end breaks an answer off; a tunnel has no end of its own, and is closed in order.
                let is_ordered = matches!(answer, Answer::Refused(..)) && self.listener.is_tunnel(place, serial);
                let trailers = forward::response_trailers(&call.attempt.trailers, call.proxy.as_deref());
                let is_whole = problem.is_none() || is_ordered;
                self.listener.end_stream(place, serial, is_whole, &trailers, self.now, &mut self.kit);
            }
            Origin::Client { place, serial } => match problem {
                Some(problem) => self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit),
                None => self.respond(place, serial, &call, kept),
            },
            Origin::Caller(caller) => {
                let reply = &mut call.attempt.reply;
                let answered = match problem {
                    Some(problem) => told(&problem),
                    None => Answered {
                        status: reply.status,
                        content_type: reply.content_type.clone(),
                        body: std::mem::take(&mut reply.body),
                    },
                };
                // Whoever does not wait any more needs no answer.
                let _ = caller.0.try_send(answered);
            }
            Origin::Plugin { instance, id } => self.tell_plugin(instance, &id, &call, problem.as_ref()),
            Origin::Replay { letter } => self.replayed(letter, &call, answer, problem.as_ref(), conductor),
            Origin::Post { id } => self.delivery_ended(id, &call, problem.as_ref()),
            Origin::Nobody => {}
        }
        self.kit.calls.recycle(call);
    }

    /// Keeps in mind that a call ended unwell and the caller was not to blame.
    fn note_mishap(&mut self, call: &Call, answer: Answer, problem: Option<&Problem>) {
        let Some(platform) = call.platform else { return };
        if matches!((&call.origin, answer), (Origin::Post { .. }, Answer::Refused(..))) {
            // It waits, and would be noted each time that it is tried whether it still has to.
            return;
        }
        let answered = || format!("it answered with status {}", call.attempt.reply.status);
        let is_failed = answer == Answer::Relayed && outcome_of_status(call.attempt.reply.status) == Outcome::Failed;
        let (kind, detail) = match problem {
            Some(problem) => (problem.word().unwrap_or("failed"), Cow::Borrowed(problem.detail())),
            None if is_failed => ("failed", Cow::Owned(answered())),
            None => return,
        };
        if kind == MISTAKEN {
            return;
        }
        let instance = call.attempt.instance.map(|instance| self.bays[instance.slot as usize].index);
        self.roster[platform as usize].mishaps.add(unix_ms(), instance, kind, &detail);
    }

    /// What the caller is told if it is not what the platform answered.
    fn problem(&self, call: &Call, answer: Answer) -> Option<Problem> {
        let name =
            call.attempt.instance.map_or("the platform", |instance| self.bays[instance.slot as usize].name.as_str());
        let wanted = call.attempt.retry_after().unwrap_or_default();
        let problem = match (answer, &call.attempt.fault) {
            (Answer::Relayed, None) | (Answer::Unheard, _) => return None,
            (Answer::Relayed, Some(fault)) => match fault.kind {
                FaultKind::Mistaken => Problem::new(400, &fault.message).code(MISTAKEN),
                FaultKind::Failed => Problem::new(502, &fault.message).code("failed"),
                FaultKind::Busy => {
                    let after = call.attempt.retry_after().unwrap_or(Duration::from_secs(1));
                    Problem::new(503, &fault.message).code("busy").retry_after(after)
                }
            },
            (Answer::Broken, fault) => {
                let detail = match fault {
                    Some(fault) => format!("{name} broke before it answered: {fault}"),
                    None => format!("{name} broke before it answered"),
                };
                Problem::new(502, detail).code("broken")
            }
            (Answer::TimedOut, _) => Problem::new(504, format!("{name} did not answer in time")).code("timed_out"),
            (Answer::NoRoute, _) if call.request.request().from == "http" => {
                let detail = "no route with a `path` matches; rules without one take only POST /v1/requests";
                Problem::new(404, detail).code("no_route")
            }
            (Answer::NoRoute, _) => {
                Problem::new(404, "no route matches this request; see `routes` in the configuration").code("no_route")
            }
            (Answer::Refused(_, after), Some(fault)) if fault.kind == FaultKind::Busy => {
                Problem::new(503, &fault.message).code("busy").retry_after(after.max(wanted))
            }
            // What it said of itself is worth more than what could be said of it.
            (Answer::Refused(Refusal::QueueFull, _), None) if call.attempt.deferred.is_some() => return None,
            (Answer::Refused(refusal, after), _) => {
                let why = match refusal {
                    Refusal::QueueFull => "as many requests wait for the platform as may",
                    Refusal::QueueAge => "a request has waited for the platform for as long as any may",
                    Refusal::QueueTimeout => "no instance became free in time",
                    Refusal::BreakerOpen => "its breaker is open after repeated failures",
                    Refusal::NotReady => "no instance of the platform takes requests",
                    Refusal::Draining => "Demi is ending",
                    Refusal::Isolated => "the platform is isolated; `demi start` gives it requests again",
                    Refusal::Shed => "there is no RAM for the platform now; `demi why` says when it comes back",
                    Refusal::TooMany => "as many requests are under way as may",
                };
                Problem::new(503, why).code(refusal.name()).retry_after(after.max(wanted))
            }
        };
        Some(match self.platform_name(call) {
            Some(platform) => problem.platform(platform),
            None => problem,
        })
    }

    /// The platform that the request was routed to.
    fn platform_name(&self, call: &Call) -> Option<&str> {
        call.platform.map(|platform| self.roster[platform as usize].name())
    }

    /// Says who answered.
    fn write_instance(&self, call: &Call, headers: &mut Vec<u8>) {
        if let Some(instance) = call.attempt.instance {
            http::write_header(headers, INSTANCE_HEADER, self.bays[instance.slot as usize].name.as_bytes());
        }
    }

    /// Passes on what the platform answered.
    fn respond(&mut self, place: usize, serial: u64, call: &Call, kept: Kept) {
        let reply = &call.attempt.reply;
        let mut headers = self.kit.buffer();
        let content_type = if call.attempt.has_head {
            headers.extend_from_slice(&call.attempt.head);
            headers.extend_from_slice(call.gift.as_deref().unwrap_or_default());
            ""
        } else {
            reply.content_type.as_str()
        };
        self.write_instance(call, &mut headers);
        if let Kept::Under(number) = kept {
            http::write_header(&mut headers, "Demi-Dead-Letter", number.to_string().as_bytes());
        }
        let (now, kit) = (self.now, &mut self.kit);
        let is_head = call.request.request().method == "HEAD";
        if call.attempt.has_head && is_head {
            // Its length is that of an answer to a GET, which only its upstream knows.
            self.listener.begin_stream(place, serial, call.ticket, reply.status, &headers, call.attempt.length, now);
            self.listener.end_stream(place, serial, true, b"", now, kit);
        } else {
            self.listener.respond(place, serial, reply.status, content_type, &headers, &reply.body, now, kit);
        }
        headers.clear();
        self.kit.take_back(&mut headers);
    }
}

/// Index of the platform to which a rule leads.
fn platform_of(route: Option<RouteId>, conductor: &Conductor) -> Option<u32> {
    route.and_then(|route| conductor.router().rule(route)).map(|rule| rule.platform)
}

/// What stands for the key that a request gives in its header, if its platform goes by keys.
fn key_of(request: &Request<'_>, route: Option<RouteId>, conductor: &Conductor) -> Option<u64> {
    platform_of(route, conductor).filter(|platform| conductor.goes_by_keys(*platform))?;
    http::header(request.headers, KEY_HEADER).map(fingerprint)
}

/// Longest host that is repeated to who sent it: the longest name, with a port.
const HOST_SHOWN_MAX: usize = 260;

#[cold]
fn misdirected(host: &str) -> Problem {
    // A host that was parsed is ASCII; of another nothing is shown.
    let shown = host.get(..host.len().min(HOST_SHOWN_MAX)).unwrap_or_default();
    let what = format!(
        "this Demi does not go by the host {shown:?}; if a reverse proxy passes requests on under it, add it without its \
         port to `http.hosts` in the configuration"
    );
    Problem::new(421, what).code("misdirected")
}

/// Whether a client wants interim responses that say how far its request is. Unasked they are not sent: some clients take
/// an interim response that they do not know for the answer.
fn wants_progress(headers: &[u8]) -> bool {
    http::header(headers, PROGRESS_HEADER).is_some()
}

/// The kind of what a person has said, which a platform or the host program passes on.
const MESSAGE_KIND: &str = "message";

/// How urgent a request is by who asks. What platforms and the host program ask by themselves comes before what they pass
/// on for people, and what nobody waits for comes last.
fn urgency_of(origin: &Origin, kind: &str) -> Urgency {
    match origin {
        Origin::Plugin { .. } | Origin::Caller(_) if kind != MESSAGE_KIND => Urgency::High,
        Origin::Plugin { .. } | Origin::Caller(_) | Origin::Client { .. } => Urgency::Normal,
        Origin::Replay { .. } | Origin::Post { .. } | Origin::Nobody => Urgency::Low,
    }
}

/// A problem, for the host program.
pub(super) fn told(problem: &Problem) -> Answered {
    Answered {
        status: problem.status(),
        content_type: Problem::MEDIA_TYPE.to_owned(),
        body: problem.body().into_bytes(),
    }
}

/// The rule that a request went by; empty if it named its platform.
fn route_of(call: &Call, platform: &str, conductor: &Conductor) -> String {
    let direct = conductor.router().to(platform);
    call.route.filter(|route| Some(*route) != direct).map_or(String::new(), |route| format!("routes[{}]", route.0))
}

/// Why a request was kept, for whoever looks at it later.
fn reason(call: &Call, answer: Answer) -> String {
    match (answer, &call.attempt.fault) {
        (_, Some(fault)) => fault.message.clone(),
        (Answer::Relayed, None) => format!("it answered with status {}", call.attempt.reply.status),
        (Answer::Broken, None) => "it broke before it answered".to_owned(),
        (Answer::TimedOut, None) => "it did not answer in time".to_owned(),
        (Answer::Refused(refusal, _), None) => refusal.name().to_owned(),
        (Answer::NoRoute | Answer::Unheard, None) => "nobody was asked".to_owned(),
    }
}

/// A rule for everything below a path must not let through what leads out of it again, however it is written.
pub(super) fn has_dot_segments(path: &str) -> bool {
    path.split('/').any(|segment| {
        let mut rest = segment;
        let mut dots = 0;
        while let Some(after) = after_dot(rest) {
            rest = after;
            dots += 1;
        }
        rest.is_empty() && matches!(dots, 1 | 2)
    })
}

fn after_dot(text: &str) -> Option<&str> {
    text.strip_prefix('.').or_else(|| text.strip_prefix("%2e")).or_else(|| text.strip_prefix("%2E"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_platforms_ask_by_themselves_comes_before_what_people_say_and_kept_messages_come_last() {
        let (sender, _receiver) = crossbeam_channel::bounded(1);
        let host = Origin::Caller(Caller(sender));
        let id = serde_json::value::RawValue::from_string("1".to_owned()).expect("it is JSON");
        let plugin = Origin::Plugin { instance: demi_conductor::Instance { slot: 0, run: 1 }, id };
        let client = Origin::Client { place: 0, serial: 1 };
        for (origin, message, other) in [
            (&host, Urgency::Normal, Urgency::High),
            (&plugin, Urgency::Normal, Urgency::High),
            (&client, Urgency::Normal, Urgency::Normal),
            (&Origin::Replay { letter: 1 }, Urgency::Low, Urgency::Low),
            (&Origin::Post { id: 1 }, Urgency::Low, Urgency::Low),
        ] {
            let found = ["message", "question", ""].map(|kind| urgency_of(origin, kind));
            assert_eq!(found, [message, other, other]);
        }
    }

    #[test]
    fn a_path_that_leads_out_of_itself_is_known_however_it_is_written() {
        for path in ["/a/../b", "/..", "/a/%2e%2E/b", "/a/.%2e", "/./a"] {
            assert!(has_dot_segments(path), "{path}");
        }
        for path in ["/a/b", "/a..b", "/...", "/.well-known/x", ""] {
            assert!(!has_dot_segments(path), "{path}");
        }
    }
}
