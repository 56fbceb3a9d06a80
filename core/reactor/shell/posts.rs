//! Posts: takes them in for clients, puts them to the conductor when they are durable, and has kept what became of them.
//!
//! A post is told to the conductor when it is durable, and nothing is known of it here but while it is under way. Every
//! errand of a post is answered by one letter of the clerk; what the clerk does not take is answered here at once, and the
//! conductor tries again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use demi_conductor::balance::fingerprint;
use demi_conductor::{Action, Conductor, Event, Grave, Outcome, PostId, Posting, RouteId, Router, Ticket, Time, Tries};
use demi_platform::{Request, RequestBuf};

use super::callers::has_dot_segments;
use super::Shell;
use crate::api;
use crate::calls::{Call, Origin};
use crate::chronicle::unix_ms;
use crate::clerk::{End, Ending, Parcel, PostErrand, PostRead};
use crate::http;
use crate::kit::outcome_of_status;
use crate::problem::Problem;
use crate::store::{Post, PostEnd, PostResult, Store, StoreError};

/// The header that says to a platform which message it gets: one that it has had already has the same number.
const MESSAGE_HEADER: &str = "Demi-Message";

/// Posts by what became of them, since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PostCounts {
    pub(crate) accepted: u64,
    pub(crate) delivered: u64,
    /// In the order of [`PostCounts::GRAVES`].
    buried: [u64; PostCounts::GRAVES.len()],
}

impl PostCounts {
    const GRAVES: [Grave; 6] =
        [Grave::NoRoute, Grave::Expired, Grave::Rejected, Grave::Poison, Grave::Failed, Grave::Damaged];

    /// Those that became dead letters, by why.
    pub(crate) fn buried(&self) -> impl Iterator<Item = (Grave, u64)> {
        PostCounts::GRAVES.into_iter().zip(self.buried)
    }

    fn bury(&mut self, grave: Grave) {
        for (known, count) in PostCounts::GRAVES.into_iter().zip(&mut self.buried) {
            *count += u64::from(known == grave);
        }
    }
}

/// What the shell knows of posts that are under way.
#[derive(Default)]
pub(crate) struct Deliveries {
    /// Those that a call delivers.
    out: BTreeSet<u64>,
    /// Those that are tried again, and how that has gone, until it is known what went wrong.
    tries: BTreeMap<u64, Tries>,
    /// How those ended whose end is not durable yet.
    endings: BTreeMap<u64, Ending>,
    /// The number of the end that was kept last when this was made.
    pub(super) last_end: u64,
    pub(super) counts: PostCounts,
}

impl Deliveries {
    /// Tells the conductor every post that waits, at the start. What it wants done at once is added to `actions`. Blocks for
    /// the disk.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) fn recall(
        store: &Store,
        conductor: &mut Conductor,
        actions: &mut Vec<Action>,
    ) -> Result<Deliveries, StoreError> {
        let mut deliveries = Deliveries::default();
        let clock = Clock { now: Time::ZERO, unix_ms: unix_ms() };
        store.pending(|id, post| {
            let route = route_of(&post, conductor.router());
            let key = key_of(&post.conversation);
            let tries = Tries { attempts: post.attempts, kills: post.kills };
            let event = clock.posted(id, route, key, post.not_before_unix_ms, post.expires_unix_ms, tries);
            conductor.handle(Time::ZERO, event, actions);
        })?;
        deliveries.last_end = store.last_end();
        if conductor.posts() > 0 {
            log::info!("{} messages wait to be delivered", conductor.posts());
        }
        Ok(deliveries)
    }
}

/// What the reactor's clock shows at a moment of the day.
#[derive(Clone, Copy)]
struct Clock {
    now: Time,
    unix_ms: u64,
}

impl Clock {
    /// What is past is now.
    fn time(self, unix_ms: u64) -> Time {
        self.now + Duration::from_millis(unix_ms.saturating_sub(self.unix_ms))
    }

    fn posted(self, id: u64, route: Option<RouteId>, key: u64, not_before: u64, expires: u64, tries: Tries) -> Event {
        let expires = (expires != 0).then(|| self.time(expires));
        let posting = Posting { route, key, due: self.time(not_before), expires, tries };
        Event::Posted { post: PostId(id), posting }
    }
}

/// What stands for a conversation; 0: none.
fn key_of(conversation: &str) -> u64 {
    if conversation.is_empty() {
        0
    } else {
        fingerprint(conversation.as_bytes()).max(1)
    }
}

/// Where a post goes by today's rules. One that named its platform does so again; and what no rule takes any more goes where
/// it would have gone.
fn route_of(post: &Post, router: &Router) -> Option<RouteId> {
    let by_rules = (!post.route.is_empty()).then(|| router.find(&api::question(&request_of(post), false)));
    by_rules.flatten().or_else(|| router.to(&post.platform))
}

/// What a message has of headers when it is delivered.
pub(super) fn write_message_headers(headers: &mut Vec<u8>, id: u64, content_type: &str) {
    http::write_header(headers, MESSAGE_HEADER, id.to_string().as_bytes());
    // Who has headers says everything by them.
    if !content_type.is_empty() {
        http::write_header(headers, "Content-Type", content_type.as_bytes());
    }
}

fn request_of(post: &Post) -> Request<'_> {
    Request {
        from: &post.from,
        kind: &post.kind,
        method: &post.method,
        target: &post.target,
        content_type: &post.content_type,
        body: &post.body,
        ..Request::default()
    }
}

impl Shell {
    // ---- clients ------------------------------------------------------------------------------------------------

    /// Has a message kept; the client waits until it is durable.
    pub(super) fn post(&mut self, place: usize, serial: u64, request: &RequestBuf, conductor: &Conductor) {
        if let Err(problem) = self.try_post(place, serial, &request.request(), conductor) {
            self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit);
        }
    }

    fn try_post(
        &mut self,
        place: usize,
        serial: u64,
        outer: &Request<'_>,
        conductor: &Conductor,
    ) -> Result<(), Problem> {
        let now_ms = unix_ms();
        let idempotency_key = api::idempotency_key(outer.headers)?;
        let (route, post) = api::read_message(outer.body, now_ms, |inner, to, wishes| {
            if has_dot_segments(inner.path()) {
                return Err(Problem::new(400, "the path has . or .. segments; send it resolved"));
            }
            let router = conductor.router();
            let no_route = || Problem::new(404, "no route matches this message; it is not kept").code("no_route");
            let route = match to {
                "" => router.find(&api::question(inner, false)).ok_or_else(no_route)?,
                to => router.to(to).ok_or_else(|| api::no_platform(conductor, to))?,
            };
            let rule = router.rule(route).ok_or_else(no_route)?;
            let platform = rule.platform;
            let api::Wishes { conversation, not_before_unix_ms, expires_unix_ms } = wishes;
            let expires_unix_ms = match (expires_unix_ms, rule.message_ttl) {
                (0, Some(ttl)) => now_ms.max(not_before_unix_ms).saturating_add(ttl.as_millis() as u64),
                (said, _) => said,
            };
            let post = Post {
                accepted_unix_ms: now_ms,
                not_before_unix_ms,
                expires_unix_ms,
                platform: self.roster[platform as usize].name().to_owned(),
                route: if to.is_empty() { format!("routes[{}]", route.0) } else { String::new() },
                conversation,
                idempotency_key,
                from: inner.from.to_owned(),
                kind: inner.kind.to_owned(),
                method: inner.method.to_owned(),
                target: inner.target.to_owned(),
                content_type: inner.content_type.to_owned(),
                body: inner.body.to_vec(),
                ..Post::default()
            };
            Ok((route, post))
        })??;
        let (key, held) = (key_of(&post.conversation), post.body.len());
        let errand = PostErrand::Take { place, serial, route, key, held, post: Box::new(post) };
        if !self.send_post(errand) {
            return Err(api::store_busy());
        }
        self.kit.calls.hold(held);
        Ok(())
    }

    /// The clerk has made a message durable, or could not.
    pub(super) fn posted(&mut self, place: usize, serial: u64, held: usize, posted: Result<Box<Parcel>, Box<Problem>>) {
        self.kit.calls.let_go(held);
        let parcel = match posted {
            Ok(parcel) => parcel,
            Err(problem) => {
                return self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit);
            }
        };
        let Parcel { id, route, key, not_before_unix_ms, expires_unix_ms, is_new, waits } = *parcel;
        self.deliveries.counts.accepted += u64::from(is_new);
        // One that was written when the disk refused to sync was not told, and is durable now; any other the conductor knows.
        if waits {
            let clock = Clock { now: self.now, unix_ms: unix_ms() };
            let event = clock.posted(id, Some(route), key, not_before_unix_ms, expires_unix_ms, Tries::default());
            self.kit.events.push_back(event);
        }
        let mut headers = self.kit.buffer();
        http::write_header(&mut headers, "Location", format!("/v1/messages/{id}").as_bytes());
        let (now, kit) = (self.now, &mut self.kit);
        self.listener.respond(place, serial, 202, api::JSON, &headers, &api::queued_json(id), now, kit);
        headers.clear();
        self.kit.take_back(&mut headers);
    }

    /// Has the clerk look up what became of a message; the client waits.
    pub(super) fn show_message(&mut self, place: usize, serial: u64, id: u64) {
        if !self.send_post(PostErrand::Show { place, serial, id }) {
            self.listener.respond_problem(place, serial, &api::store_busy(), self.now, &mut self.kit);
        }
    }

    pub(super) fn send_post(&self, errand: PostErrand) -> bool {
        self.clerk.as_ref().is_some_and(|clerk| clerk.post(errand))
    }

    // ---- what the conductor orders ------------------------------------------------------------------------------

    pub(super) fn deliver(&mut self, post: PostId) {
        if !self.send_post(PostErrand::Read(post.0)) {
            self.kit.events.push_back(Event::PostLost { post, for_good: false });
        }
    }

    /// The clerk has brought a post to mind, or cannot: opens the call that delivers it.
    pub(super) fn post_read(&mut self, id: u64, read: PostRead, conductor: &Conductor) {
        let post = match read {
            PostRead::Post(post) => post,
            PostRead::NotNow | PostRead::Never => {
                let for_good = matches!(read, PostRead::Never);
                return self.kit.events.push_back(Event::PostLost { post: PostId(id), for_good });
            }
        };
        let mut headers = self.kit.buffer();
        write_message_headers(&mut headers, id, &post.content_type);
        let mut buffer = self.kit.calls.buffer();
        Arc::make_mut(&mut buffer).fill(&Request { headers: &headers, ..request_of(&post) });
        headers.clear();
        self.kit.take_back(&mut headers);
        let route = conductor.route_of(PostId(id));
        let ticket = self.open(buffer, Origin::Post { id }, route, conductor);
        self.deliveries.out.insert(id);
        self.kit.events.push_back(Event::PostLoaded { post: PostId(id), ticket });
    }

    /// Has kept that a post was delivered. Without a ticket it is tried again, with what was to be kept.
    pub(super) fn settle_post(&mut self, post: PostId, ticket: Option<Ticket>, attempts: u32) {
        let call = ticket.and_then(|ticket| self.kit.calls.get(ticket));
        if let Some(call) = call {
            let attempt = &call.attempt;
            let instance = attempt.instance.map(|instance| self.bays[instance.slot as usize].name.clone());
            let result = PostResult {
                settled_unix_ms: unix_ms(),
                end: PostEnd::Delivered,
                status: attempt.reply.status,
                attempts,
                error: String::new(),
                instance: instance.unwrap_or_default(),
            };
            self.deliveries.endings.insert(post.0, Ending::Delivered(result));
        }
        self.keep_ending(post.0);
    }

    /// Has a post kept as a dead letter. If a call has just failed to deliver it, its answer is told next, and only then it
    /// is known what went wrong.
    pub(super) fn bury_post(&mut self, post: PostId, grave: Grave, attempts: u32) {
        let buried = Ending::Buried { grave, attempts, status: 0, error: String::new() };
        self.deliveries.endings.entry(post.0).or_insert(buried);
        if !self.deliveries.out.contains(&post.0) {
            self.keep_ending(post.0);
        }
    }

    /// A post is tried again: how that has gone is noted when the call that failed has told what went wrong.
    pub(super) fn note_tries(&mut self, post: PostId, tries: Tries) {
        self.deliveries.tries.insert(post.0, tries);
    }

    fn keep_ending(&mut self, id: u64) {
        let ending = self.deliveries.endings.get(&id).cloned();
        let sent = ending.is_some_and(|ending| self.send_post(PostErrand::End { id, ending: Box::new(ending) }));
        if !sent {
            self.kit.events.push_back(Event::PostStored { post: PostId(id), done: false });
        }
    }

    /// A call that was to deliver a post has ended.
    pub(super) fn delivery_ended(&mut self, id: u64, call: &Call, problem: Option<&Problem>) {
        if !self.deliveries.out.remove(&id) {
            return;
        }
        let tries = self.deliveries.tries.remove(&id);
        let status = call.attempt.reply.status;
        let error = match problem {
            Some(problem) => problem.detail().to_owned(),
            None if outcome_of_status(status) == Outcome::Replied => String::new(),
            None => format!("it answered with status {status}"),
        };
        match self.deliveries.endings.get_mut(&id) {
            Some(Ending::Buried { status: last_status, error: last_error, .. }) => {
                (*last_status, *last_error) = (if problem.is_none() { status } else { 0 }, error);
                self.keep_ending(id);
            }
            Some(Ending::Delivered(_)) => {}
            None => {
                // What cannot be noted is only tried more often.
                if let Some(tries) = tries {
                    self.tell_attempt(id, tries.attempts, &error);
                    self.send_post(PostErrand::Note { id, tries, error });
                }
            }
        }
    }

    /// The end of a post is durable, or could not be kept.
    pub(super) fn post_ended(&mut self, id: u64, end: Option<Box<End>>) {
        let done = end.is_some();
        if let Some(end) = end {
            self.tell_end(id, &end);
            match self.deliveries.endings.remove(&id) {
                Some(Ending::Delivered(_)) => self.deliveries.counts.delivered += 1,
                Some(Ending::Buried { grave, .. }) => self.deliveries.counts.bury(grave),
                None => {}
            }
        }
        self.kit.events.push_back(Event::PostStored { post: PostId(id), done });
    }
}
