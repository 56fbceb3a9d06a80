//! Posts: messages that were acknowledged because they are kept, and are delivered at least once.
//!
//! ```text
//!              its turn, its time          its body is in memory        the platform stands behind it
//!   waiting ───────────────────► Loading ───────────────────────► Out ───────────────────────────────► Settling
//!      ▲                            │                              │                                      │ kept
//!      └──────── lost for now ──────┘       to be tried again      │ failed for good, or its time is up   ▼
//!      └───────────────────────────────────────────────────────────┴──────► Burying ───────kept────────► gone
//!
//!   waiting: Behind ── the one before it ended ──► Early ── it is due ──► InLine
//! ```
//!
//! An attempt to deliver a post is a call like any other, whose caller is the post. Whoever keeps posts says that one is
//! durable ([`Event::Posted`](crate::Event::Posted)) and brings its body to mind when told to; what is decided here is
//! when, and what becomes of it. Posts of one conversation go one after the other, in the order of their numbers. A
//! platform that takes no requests now is asked again after a while, with one post, and that is no attempt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::config::Urgency;
use crate::event::{Action, Answer, Ask, Grave, Outcome, PostId, Posting, Refusal, Ticket, Tries};
use crate::router::RouteId;
use crate::shutdown::Phase;
use crate::time::Time;
use crate::timers::Timer;
use crate::Conductor;

/// Where a post is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Others of its conversation come first.
    Behind,
    /// It is not due yet.
    Early,
    /// As soon as its platform has a place for it.
    InLine,
    /// Its body is being brought to mind.
    Loading,
    /// A call delivers it.
    Out,
    /// It was delivered, and that is being kept.
    Settling,
    /// It failed for good, and is being kept as a dead letter.
    Burying { grave: Grave },
}

/// A post that has not ended. Small, because there may be very many.
#[derive(Clone, Debug)]
struct Post {
    /// Zero if it belongs to no conversation.
    key: u64,
    /// When it was, or is, to be delivered.
    due: Time,
    expires: Option<Time>,
    route: RouteId,
    /// As many as there may be.
    attempts: u16,
    /// One that has ended more instances than fit is poison.
    kills: u8,
    place: Place,
}

const _: () = assert!(size_of::<Post>() == 32, "a hundred thousand shall fit in a small machine");

impl Post {
    fn is_late(&self, now: Time) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    fn tries(&self) -> Tries {
        Tries { attempts: self.attempts.into(), kills: self.kills.into() }
    }
}

/// Posts one after the other. One that ends before its turn is passed over when that comes, because to take it out of the
/// middle costs as much as all the others together.
#[derive(Debug, Default)]
struct Row {
    ids: VecDeque<PostId>,
    /// How many of them are not in it any more.
    left: usize,
}

impl Row {
    fn is_empty(&self) -> bool {
        self.ids.len() == self.left
    }

    /// The next of those that are in it still.
    fn pop(&mut self, is_in: impl Fn(PostId) -> bool) -> Option<PostId> {
        while let Some(id) = self.ids.pop_front() {
            if is_in(id) {
                return Some(id);
            }
            self.left -= 1;
        }
        None
    }

    /// One is not in it any more.
    fn leave(&mut self, is_in: impl Fn(PostId) -> bool) {
        self.left += 1;
        if self.left * 2 > self.ids.len() {
            self.ids.retain(|id| is_in(*id));
            self.left = 0;
        }
    }
}

/// The posts of a platform.
#[derive(Debug, Default)]
struct Line {
    /// Those whose time has come, in the order in which it did.
    due: Row,
    /// Loading or out.
    under_way: usize,
    /// It takes no requests: nothing is tried before this.
    held_until: Option<Time>,
    /// Held because no instance was there for a post: over as soon as one is.
    is_deserted: bool,
    /// Under way alone, because an instance ended that had it among others: if that happens again it was this one's doing.
    suspect: Option<PostId>,
}

impl Line {
    /// One is not under way any more.
    fn let_go(&mut self, id: PostId) {
        self.under_way -= 1;
        self.suspect = self.suspect.filter(|suspect| *suspect != id);
    }
}

/// All posts that have not ended.
#[derive(Debug, Default)]
pub(crate) struct Posts {
    all: BTreeMap<PostId, Post>,
    /// Those that wait for a time to come.
    by_due: BTreeSet<(Time, PostId)>,
    by_expiry: BTreeSet<(Time, PostId)>,
    by_ticket: BTreeMap<Ticket, PostId>,
    /// By conversation: who is not yet at its head. The head itself is not in there.
    behind: BTreeMap<u64, Row>,
    /// By the index of the platform.
    lines: Vec<Line>,
    /// Those whose end could not be kept, longest first: what was delivered, and what failed.
    unsettled: VecDeque<PostId>,
    unburied: VecDeque<PostId>,
    /// When that is tried again.
    unkept_due: Time,
}

impl Posts {
    /// How many have not ended.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    fn line(&mut self, platform: u32) -> &mut Line {
        let index = platform as usize;
        if self.lines.len() <= index {
            self.lines.resize_with(index + 1, Line::default);
        }
        &mut self.lines[index]
    }

    fn has_unkept(&self) -> bool {
        !(self.unsettled.is_empty() && self.unburied.is_empty())
    }

    /// The next whose turn it is at a platform.
    fn next_in_line(&mut self, platform: u32) -> Option<PostId> {
        let Posts { all, lines, .. } = self;
        let is_in = |id| all.get(&id).is_some_and(|post| post.place == Place::InLine);
        lines.get_mut(platform as usize)?.due.pop(is_in)
    }

    /// The next of a conversation; `None` if there is nobody behind its head, which then is forgotten.
    fn next_behind(&mut self, key: u64) -> Option<PostId> {
        let Posts { all, behind, .. } = self;
        let is_in = |id| all.get(&id).is_some_and(|post| post.place == Place::Behind);
        let next = behind.get_mut(&key)?.pop(is_in);
        if next.is_none() {
            behind.remove(&key);
        }
        next
    }

    /// Takes one that waits out of where it does.
    fn take_out(&mut self, id: PostId, platform: u32) {
        let Some(post) = self.all.get_mut(&id) else { return };
        let (place, due, key) = (post.place, post.due, post.key);
        // So that it is found to be nowhere any more.
        post.place = Place::Loading;
        match place {
            Place::Behind => {
                // One that was not at the head leaves no gap.
                post.key = 0;
                let Posts { all, behind, .. } = self;
                if let Some(row) = behind.get_mut(&key) {
                    row.leave(|id| all.get(&id).is_some_and(|post| post.place == Place::Behind));
                }
            }
            Place::Early => drop(self.by_due.remove(&(due, id))),
            Place::InLine => {
                let Posts { all, lines, .. } = self;
                if let Some(line) = lines.get_mut(platform as usize) {
                    line.due.leave(|id| all.get(&id).is_some_and(|post| post.place == Place::InLine));
                }
            }
            Place::Loading | Place::Out | Place::Settling | Place::Burying { .. } => {}
        }
    }
}

/// The route of a post that no rule takes any more.
const NOWHERE: RouteId = RouteId(u32::MAX);
/// A post that killed so many instances is tried no more.
const KILLS_MAX: u32 = 2;
/// What the store could not do, or bring to mind, is tried again after this.
const STORE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A platform that refuses is asked again after a time within these bounds, whatever it says.
const HELD_MIN: Duration = Duration::from_millis(100);
const HELD_MAX: Duration = Duration::from_secs(30);
/// So many posts may fall due in one turn, so that a hundred thousand do not hold the loop.
const DUE_PER_TURN: usize = 256;
/// So many ends are tried again at once: far fewer than wait for the store at most, so that nobody else is refused there.
const UNKEPT_PER_TRY: usize = 256;

impl Conductor {
    /// A post is kept: it is to be delivered.
    pub(crate) fn posted(&mut self, id: PostId, posting: Posting, out: &mut Vec<Action>) {
        let Posting { route, key, due, expires, tries } = posting;
        if self.posts.all.contains_key(&id) {
            // Its sender asked once more, under the same idempotency key.
            return;
        }
        let route = route.filter(|route| self.router.rule(*route).is_some());
        let attempts = tries.attempts.try_into().unwrap_or(u16::MAX);
        let kills = tries.kills.try_into().unwrap_or(u8::MAX);
        let place = Place::Behind;
        let mut post = Post { key, due, expires, route: route.unwrap_or(NOWHERE), attempts, kills, place };
        let grave = match route {
            None => Some(Grave::NoRoute),
            Some(_) => post.is_late(self.now).then_some(Grave::Expired),
        };
        if let Some(grave) = grave {
            // It has no turn that others of its conversation would have to wait for.
            (post.key, post.place) = (0, Place::Burying { grave });
            self.posts.all.insert(id, post);
            return self.keep_end(id, out);
        }
        self.posts.all.insert(id, post);
        self.posts.by_expiry.extend(expires.map(|expires| (expires, id)));
        if key != 0 {
            match self.posts.behind.get_mut(&key) {
                Some(behind) => {
                    behind.ids.push_back(id);
                    return self.set_post_timer();
                }
                None => drop(self.posts.behind.insert(key, Row::default())),
            }
        }
        self.let_wait(id, due, out);
    }

    /// It is at the head of its conversation, or in none, and has its turn at this time.
    fn let_wait(&mut self, id: PostId, due: Time, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(post) = self.posts.all.get_mut(&id) else { return };
        (post.place, post.due) = (if due > now { Place::Early } else { Place::InLine }, due);
        let route = post.route;
        let platform = self.platform_by(route);
        if due > now {
            self.posts.by_due.insert((due, id));
        } else {
            self.posts.line(platform).due.ids.push_back(id);
            self.deliver_what_can(platform, out);
        }
        self.set_post_timer();
    }

    fn set_post_timer(&mut self) {
        // A line whose hold is over goes on when the one that is under way has ended.
        let is_held = |line: &&Line| !line.due.is_empty() && line.under_way == 0;
        let held = self.posts.lines.iter().filter(is_held).filter_map(|line| line.held_until).min();
        let due = self.posts.by_due.first().map(|(at, _)| *at);
        let expiry = self.posts.by_expiry.first().map(|(at, _)| *at);
        let is_running = self.phase == Phase::Running;
        let work = [held, due, expiry].into_iter().flatten().filter(|_| is_running);
        let unkept = self.posts.has_unkept().then_some(self.posts.unkept_due);
        match work.chain(unkept).min() {
            Some(at) => self.set_timer(Timer::Post, at),
            None => self.timers.cancel(Timer::Post),
        }
    }

    pub(crate) fn posts_due(&mut self, out: &mut Vec<Action>) {
        for _ in 0..DUE_PER_TURN {
            let Some((_, id)) = self.posts.by_expiry.first().copied().filter(|(at, _)| *at <= self.now) else { break };
            self.posts.by_expiry.pop_first();
            self.expire(id, out);
        }
        for _ in 0..DUE_PER_TURN {
            let Some((due, id)) = self.posts.by_due.first().copied().filter(|(at, _)| *at <= self.now) else { break };
            self.posts.by_due.remove(&(due, id));
            let Some(post) = self.posts.all.get_mut(&id) else { continue };
            post.place = Place::InLine;
            let route = post.route;
            let platform = self.platform_by(route);
            self.posts.line(platform).due.ids.push_back(id);
        }
        if self.posts.unkept_due <= self.now {
            // What was delivered comes first: whatever waits behind it may go then.
            for _ in 0..UNKEPT_PER_TRY {
                let Posts { unsettled, unburied, .. } = &mut self.posts;
                let Some(id) = unsettled.pop_front().or_else(|| unburied.pop_front()) else { break };
                self.keep_end(id, out);
            }
            self.posts.unkept_due = self.now + STORE_AGAIN_AFTER;
        }
        for platform in 0..self.posts.lines.len() {
            self.deliver_what_can(platform as u32, out);
        }
        self.set_post_timer();
    }

    /// Its time is up: one that an instance has may still be delivered.
    fn expire(&mut self, id: PostId, out: &mut Vec<Action>) {
        let Some(post) = self.posts.all.get(&id) else { return };
        match post.place {
            Place::Behind | Place::Early | Place::InLine => self.bury_post(id, Grave::Expired, out),
            Place::Out => {
                let ticket = self.posts.by_ticket.iter().find_map(|(ticket, of)| (*of == id).then_some(*ticket));
                let waits = |ticket: &Ticket| self.request(*ticket).is_some_and(|request| request.waits());
                if let Some(ticket) = ticket.filter(waits) {
                    self.end_waiting(ticket, out);
                }
            }
            // Looked at when its body is there.
            Place::Loading | Place::Settling | Place::Burying { .. } => {}
        }
    }

    /// Starts to deliver what is due for a platform, as far as it may have at once.
    fn deliver_what_can(&mut self, platform: u32, out: &mut Vec<Action>) {
        if self.phase != Phase::Running {
            return;
        }
        let (now, most) = (self.now, self.settings.posts.in_flight_max.size());
        let line = self.posts.line(platform);
        let most = match line.held_until {
            Some(until) if until > now => return,
            // One finds out whether it takes requests again.
            Some(_) => 1,
            None => most,
        };
        loop {
            let line = self.posts.line(platform);
            if line.under_way >= most || line.suspect.is_some() {
                return;
            }
            let is_free = line.under_way == 0;
            let Some(id) = self.posts.next_in_line(platform) else { return };
            let Some(post) = self.posts.all.get_mut(&id) else { continue };
            if post.is_late(now) {
                post.place = Place::Loading;
                self.bury_post(id, Grave::Expired, out);
                continue;
            }
            let is_suspect = post.kills > 0;
            if is_suspect && !is_free {
                return self.posts.line(platform).due.ids.push_front(id);
            }
            post.place = Place::Loading;
            let line = self.posts.line(platform);
            line.under_way += 1;
            line.suspect = is_suspect.then_some(id);
            out.push(Action::Deliver { post: id });
        }
    }

    /// Something changed for the platform: what was held because nobody was there goes on if someone is.
    pub(crate) fn let_posts_go(&mut self, platform: usize, out: &mut Vec<Action>) {
        let now = self.now;
        let is_held = |line: &&mut Line| line.is_deserted && line.held_until.is_some_and(|until| until > now);
        if self.posts.lines.get_mut(platform).filter(is_held).is_none() || self.platforms[platform].is_isolated {
            return;
        }
        if self.pick(platform, None, None).is_some() {
            self.posts.lines[platform].held_until = Some(now);
            self.deliver_what_can(platform as u32, out);
            self.set_post_timer();
        }
    }

    /// Its body is in memory, as the request of this ticket.
    pub(crate) fn post_loaded(&mut self, id: PostId, ticket: Ticket, out: &mut Vec<Action>) {
        let Some(post) = self.posts.all.get_mut(&id).filter(|post| post.place == Place::Loading) else {
            self.stats.stale += 1;
            // Nobody waits for what it brings.
            return out.push(Action::Answer { ticket, answer: Answer::Unheard });
        };
        if post.is_late(self.now) {
            out.push(Action::Answer { ticket, answer: Answer::Unheard });
            return self.post_lost(id, false, out);
        }
        post.place = Place::Out;
        post.attempts = post.attempts.saturating_add(1);
        let (route, key) = (post.route, (post.key != 0).then_some(post.key));
        self.posts.by_ticket.insert(ticket, id);
        let ask = Ask { idempotent: true, key, urgency: Urgency::Low, in_parts: false };
        self.asked(ticket, Some(route), ask, out);
    }

    /// Its body could not be brought to mind: not now, or never again.
    pub(crate) fn post_lost(&mut self, id: PostId, for_good: bool, out: &mut Vec<Action>) {
        let Some(post) = self.posts.all.get(&id).filter(|post| post.place == Place::Loading) else {
            self.stats.stale += 1;
            return;
        };
        let (platform, is_late) = (self.platform_by(post.route), post.is_late(self.now));
        self.posts.line(platform).let_go(id);
        if for_good {
            self.bury_post(id, Grave::Damaged, out);
        } else if is_late {
            self.bury_post(id, Grave::Expired, out);
        } else {
            self.let_wait(id, self.now + STORE_AGAIN_AFTER, out);
        }
        self.deliver_what_can(platform, out);
        // If the line is held, nothing else is under way that would see to it.
        self.set_post_timer();
    }

    /// Whether the request delivers a post: then nobody else is told what became of it, and it is no dead letter.
    pub(crate) fn delivers(&self, ticket: Ticket) -> bool {
        !self.posts.by_ticket.is_empty() && self.posts.by_ticket.contains_key(&ticket)
    }

    /// Whether the request delivers a post that is not to be begun any more.
    pub(crate) fn delivers_too_late(&self, ticket: Ticket) -> bool {
        let post = self.posts.by_ticket.get(&ticket).and_then(|id| self.posts.all.get(id));
        post.is_some_and(|post| post.is_late(self.now))
    }

    /// An attempt to deliver a post has ended. `killed`: with the end of the instance that had it.
    pub(crate) fn delivery_ended(
        &mut self,
        ticket: Ticket,
        answer: Answer,
        outcome: Option<Outcome>,
        killed: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(id) = self.posts.by_ticket.remove(&ticket) else { return };
        let Some(post) = self.posts.all.get_mut(&id) else { return };
        post.kills = post.kills.saturating_add(u8::from(killed));
        let (tries, route) = (post.tries(), post.route);
        let is_late = post.is_late(self.now);
        let platform = self.platform_by(route);
        let most = self.settings.posts.attempts_max.count();
        self.posts.line(platform).let_go(id);
        let Some(post) = self.posts.all.get_mut(&id) else { return };
        match (answer, outcome) {
            (Answer::Relayed, Some(Outcome::Replied)) => {
                self.posts.line(platform).held_until = None;
                self.set_place(id, Place::Settling);
                out.push(Action::Settle { post: id, ticket: Some(ticket), attempts: tries.attempts });
            }
            (Answer::Relayed, Some(Outcome::Mistaken)) => {
                self.posts.line(platform).held_until = None;
                self.bury_post(id, Grave::Rejected, out);
            }
            // It was not tried: the platform takes nothing now.
            (Answer::Refused(refusal, after), _) => {
                post.attempts = post.attempts.saturating_sub(1);
                if is_late {
                    self.bury_post(id, Grave::Expired, out);
                } else {
                    // It keeps its turn.
                    (post.place, post.due) = (Place::InLine, self.now);
                    let until = self.now + after.clamp(HELD_MIN, HELD_MAX);
                    let line = self.posts.line(platform);
                    line.due.ids.push_front(id);
                    line.held_until = Some(until);
                    // What an instance refused, which is there, is not tried again before its time.
                    let is_out =
                        matches!(refusal, Refusal::NotReady | Refusal::Isolated | Refusal::BreakerOpen | Refusal::Shed);
                    line.is_deserted = is_out && outcome.is_none();
                }
            }
            (Answer::Relayed | Answer::Broken | Answer::TimedOut | Answer::NoRoute | Answer::Unheard, _) => {
                self.posts.line(platform).held_until = None;
                if tries.kills >= KILLS_MAX {
                    self.bury_post(id, Grave::Poison, out);
                } else if is_late {
                    self.bury_post(id, Grave::Expired, out);
                } else if tries.attempts >= most {
                    self.bury_post(id, Grave::Failed, out);
                } else {
                    let base = self.settings.posts.base_ms.millis().saturating_mul(1 << (tries.attempts - 1).min(20));
                    let wait = self.random.span_below(base.min(self.settings.posts.max_ms.millis()));
                    out.push(Action::NoteTries { post: id, tries });
                    self.let_wait(id, self.now + wait, out);
                }
            }
        }
        self.deliver_what_can(platform, out);
        self.set_post_timer();
    }

    /// The index of the platform that a route leads to.
    fn platform_by(&self, route: RouteId) -> u32 {
        self.router.rule(route).map_or(u32::MAX, |rule| rule.platform)
    }

    /// The route of a post that has not ended, if there is one.
    pub fn route_of(&self, id: PostId) -> Option<RouteId> {
        self.posts.all.get(&id).map(|post| post.route).filter(|route| *route != NOWHERE)
    }

    fn set_place(&mut self, id: PostId, place: Place) {
        if let Some(post) = self.posts.all.get_mut(&id) {
            post.place = place;
        }
    }

    /// It failed for good.
    fn bury_post(&mut self, id: PostId, grave: Grave, out: &mut Vec<Action>) {
        let Some(post) = self.posts.all.get(&id) else { return };
        let platform = self.platform_by(post.route);
        self.posts.take_out(id, platform);
        self.set_place(id, Place::Burying { grave });
        self.keep_end(id, out);
    }

    /// Has the end of a post kept, as far as that needs no answer that is gone by now.
    fn keep_end(&mut self, id: PostId, out: &mut Vec<Action>) {
        let Some(post) = self.posts.all.get(&id) else { return };
        match post.place {
            Place::Burying { grave } => out.push(Action::BuryPost { post: id, grave, attempts: post.attempts.into() }),
            Place::Settling => out.push(Action::Settle { post: id, ticket: None, attempts: post.attempts.into() }),
            Place::Behind | Place::Early | Place::InLine | Place::Loading | Place::Out => {}
        }
    }

    /// The end of a post is kept, or could not be: then it is tried again, and the post is not delivered once more.
    pub(crate) fn post_stored(&mut self, id: PostId, done: bool, out: &mut Vec<Action>) {
        let is_ending = |post: &&Post| matches!(post.place, Place::Settling | Place::Burying { .. });
        let Some(post) = self.posts.all.get(&id).filter(is_ending) else {
            self.stats.stale += 1;
            return;
        };
        if !done {
            self.stats.store_failures += 1;
            let is_delivered = post.place == Place::Settling;
            if !self.posts.has_unkept() {
                self.posts.unkept_due = self.now + STORE_AGAIN_AFTER;
            }
            let Posts { unsettled, unburied, .. } = &mut self.posts;
            let row = if is_delivered { unsettled } else { unburied };
            row.push_back(id);
            return self.set_post_timer();
        }
        let (key, expires) = (post.key, post.expires);
        self.posts.all.remove(&id);
        if let Some(expires) = expires {
            self.posts.by_expiry.remove(&(expires, id));
        }
        if key != 0 {
            self.next_of(key, out);
        }
        self.set_post_timer();
    }

    /// The head of a conversation has ended: the next has its turn.
    fn next_of(&mut self, key: u64, out: &mut Vec<Action>) {
        let Some(next) = self.posts.next_behind(key) else { return };
        if let Some(due) = self.posts.all.get(&next).map(|post| post.due) {
            self.let_wait(next, due, out);
        }
    }

    /// Posts that have not ended.
    pub fn posts(&self) -> usize {
        self.posts.len()
    }

    pub(crate) fn check_posts(&self) {
        let posts = &self.posts;
        for (id, post) in &posts.all {
            let is_early = posts.by_due.contains(&(post.due, *id));
            let line = posts.lines.get(self.platform_by(post.route) as usize);
            let times_in = |row: Option<&Row>| row.map_or(0, |row| row.ids.iter().filter(|other| *other == id).count());
            match &post.place {
                Place::Behind => {
                    assert_eq!(times_in(posts.behind.get(&post.key)), 1, "{id:?} is behind nobody");
                }
                Place::Early => assert!(is_early, "{id:?} waits for a time that nobody looks at"),
                Place::InLine => assert_eq!(times_in(line.map(|line| &line.due)), 1, "{id:?} is in no line"),
                Place::Out => {
                    let ticket = posts.by_ticket.iter().find_map(|(ticket, of)| (of == id).then_some(*ticket));
                    let is_live = ticket.is_some_and(|ticket| self.request(ticket).is_some());
                    assert!(is_live, "{id:?} is out and its call has ended");
                }
                Place::Loading | Place::Settling | Place::Burying { .. } => {}
            }
            assert!(post.key == 0 || posts.behind.contains_key(&post.key), "{id:?} has left its conversation");
        }
        for (index, line) in posts.lines.iter().enumerate() {
            let under_way = posts.all.values().filter(|post| {
                self.platform_by(post.route) as usize == index && matches!(post.place, Place::Loading | Place::Out)
            });
            assert_eq!(under_way.count(), line.under_way, "the count of posts under way is off");
            let may_go = line.held_until.is_none_or(|until| until <= self.now);
            let is_in = |id: &&PostId| posts.all.get(id).is_some_and(|post| post.place == Place::InLine);
            let is_suspect = line.due.ids.iter().find(is_in).is_some_and(|id| posts.all[id].kills > 0);
            let most = if line.held_until.is_some() { 1 } else { self.settings.posts.in_flight_max.size() };
            let most = if is_suspect { 1 } else { most };
            let has_room = line.under_way < most && line.suspect.is_none();
            // In a late turn what is due now comes in the next.
            let is_next = self.timers.at(Timer::Post).is_some_and(|at| at <= self.now + Duration::from_nanos(1));
            let is_stuck = !line.due.is_empty() && may_go && has_room && !is_next && self.phase == Phase::Running;
            assert!(!is_stuck, "posts wait for platform {index}, which has room for them");
        }
        let is_waiting = !posts.by_due.is_empty() || !posts.by_expiry.is_empty();
        let is_timed = self.timers.at(Timer::Post).is_some();
        assert!(!is_waiting || is_timed || self.phase != Phase::Running, "posts wait and nobody looks");
        assert!(!posts.has_unkept() || is_timed || self.has_exited, "what could not be kept is forgotten");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Host, Platform};
    use crate::{Event, Exit, Instance, RouteId};

    const M: RouteId = RouteId(0);

    struct Story {
        conductor: Conductor,
        now: Time,
    }

    impl Story {
        fn begin() -> Story {
            let config = Config {
                platforms: vec![Platform::new("m", Host::Process(1))],
                routes: vec![crate::config::Route::to("m")],
                ..Config::default()
            };
            let mut story = Story { conductor: Conductor::new(&config, 1), now: Time::ZERO };
            story.happens(Event::Began);
            story
        }

        fn happens(&mut self, event: Event) -> Vec<Action> {
            let mut out = Vec::new();
            self.conductor.handle(self.now, event, &mut out);
            self.conductor.check();
            for action in out.clone() {
                let news = match action {
                    Action::Start { instance, .. } => Event::Started { instance },
                    Action::Probe { instance } => Event::Probed { instance, verdict: crate::Verdict::Pass },
                    _ => continue,
                };
                out.extend(self.happens(news));
            }
            out
        }

        fn posted(&mut self, post: PostId, tries: Tries) -> Vec<Action> {
            let posting = self.posting(0, None);
            self.happens(Event::Posted { post, posting: Posting { tries, ..posting } })
        }

        fn posting(&self, key: u64, expires: Option<Time>) -> Posting {
            Posting { route: Some(M), key, due: self.now, expires, tries: Tries::default() }
        }

        /// So many messages are posted at once, numbered from 1.
        fn posted_many(&mut self, count: u64, posting: Posting) -> Vec<Action> {
            (1..=count).flat_map(|post| self.happens(Event::Posted { post: PostId(post), posting })).collect()
        }

        /// Time passes until something of this kind is ordered.
        fn waits_for(&mut self, is_meant: impl Fn(&Action) -> bool) -> Action {
            for _ in 0..1_000 {
                self.now = self.conductor.deadline().expect("something is to come").0;
                if let Some(action) = self.happens(Event::Elapsed).into_iter().find(&is_meant) {
                    return action;
                }
            }
            panic!("it never comes");
        }

        /// Its body is there, it goes to an instance, and that ends with it.
        fn kills(&mut self, post: PostId, ticket: Ticket) -> Vec<Action> {
            let actions = self.happens(Event::PostLoaded { post, ticket });
            let instance = actions.iter().find_map(|action| match action {
                Action::Dispatch { instance, .. } => Some(*instance),
                _ => None,
            });
            let instance = instance.expect("the instance is free");
            self.happens(Event::Exited { instance, exit: Exit::Signal(11) })
        }
    }

    #[test]
    fn what_was_noted_of_a_message_counts_after_a_start() {
        let mut story = Story::begin();
        let post = PostId(7);
        story.posted(post, Tries::default());
        let actions = story.kills(post, Ticket::new(0, 0));
        let tries = Tries { attempts: 1, kills: 1 };
        assert!(actions.contains(&Action::NoteTries { post, tries }), "{actions:?}");

        let mut story = Story::begin();
        assert!(story.posted(post, tries).contains(&Action::Deliver { post }));
        let actions = story.kills(post, Ticket::new(0, 0));
        assert!(actions.contains(&Action::BuryPost { post, grave: Grave::Poison, attempts: 2 }), "{actions:?}");
    }

    #[test]
    fn what_cannot_be_read_now_is_read_later_and_what_never_can_be_is_given_up() {
        let mut story = Story::begin();
        let post = PostId(7);
        story.posted(post, Tries::default());
        assert_eq!(story.happens(Event::PostLost { post, for_good: false }), []);
        story.waits_for(|action| *action == Action::Deliver { post });
        let actions = story.happens(Event::PostLost { post, for_good: true });
        assert_eq!(actions, [Action::BuryPost { post, grave: Grave::Damaged, attempts: 0 }]);
        story.happens(Event::PostStored { post, done: true });
        assert_eq!(story.conductor.posts(), 0);
    }

    fn delivered(actions: &[Action]) -> Vec<PostId> {
        actions
            .iter()
            .filter_map(|action| if let Action::Deliver { post } = action { Some(*post) } else { None })
            .collect()
    }

    fn buried(actions: &[Action], as_what: Grave) -> Vec<PostId> {
        let is_it = |action: &Action| match *action {
            Action::BuryPost { post, grave, .. } if grave == as_what => Some(post),
            _ => None,
        };
        actions.iter().filter_map(is_it).collect()
    }

    #[test]
    fn a_line_that_is_held_goes_on_though_all_that_was_being_read_is_lost() {
        let mut story = Story::begin();
        let reading = delivered(&story.posted_many(40, story.posting(0, None)));
        story.happens(Event::Ordered(crate::Order::Isolate { platform: 0 }));
        let (first, rest) = reading.split_first().expect("some are read");
        let actions = story.happens(Event::PostLoaded { post: *first, ticket: Ticket::new(0, 0) });
        let is_refused = |action: &Action| matches!(action, Action::Answer { answer: Answer::Refused(..), .. });
        assert!(actions.iter().any(is_refused), "{actions:?}");
        for post in rest {
            story.happens(Event::PostLost { post: *post, for_good: true });
        }
        story.waits_for(|action| matches!(action, Action::Deliver { .. }));
    }

    #[test]
    fn what_is_too_late_when_it_is_told_is_not_delivered() {
        let mut story = Story::begin();
        let actions = story.posted_many(40, story.posting(0, Some(story.now)));
        assert_eq!((delivered(&actions).len(), buried(&actions, Grave::Expired).len()), (0, 40));
    }

    #[test]
    fn what_becomes_too_late_while_its_body_is_read_or_cannot_be_is_not_begun() {
        for is_loaded in [true, false] {
            let mut story = Story::begin();
            let post = PostId(1);
            let expires = story.now + Duration::from_millis(10);
            let posting = story.posting(0, Some(expires));
            assert_eq!(delivered(&story.happens(Event::Posted { post, posting })), [post]);
            story.now = expires;
            story.happens(Event::Elapsed);
            let ticket = Ticket::new(0, 0);
            let actions = story.happens(match is_loaded {
                true => Event::PostLoaded { post, ticket },
                false => Event::PostLost { post, for_good: false },
            });
            assert_eq!(buried(&actions, Grave::Expired), [post], "{actions:?}");
            assert_eq!(actions.contains(&Action::Answer { ticket, answer: Answer::Unheard }), is_loaded);
        }
    }

    #[test]
    fn what_becomes_too_late_in_the_queue_of_its_platform_is_not_begun() {
        let mut story = Story::begin();
        for number in 0..64 {
            let ticket = Ticket::new(100 + number, 0);
            let (route, urgency) = (Some(M), Urgency::Normal);
            story.happens(Event::Asked { ticket, route, ask: Ask { urgency, ..Ask::default() } });
        }
        let (post, ticket) = (PostId(1), Ticket::new(0, 0));
        let expires = story.now + Duration::from_millis(10);
        let posting = story.posting(0, Some(expires));
        story.happens(Event::Posted { post, posting });
        assert!(!story.happens(Event::PostLoaded { post, ticket }).iter().any(|action| match action {
            Action::Dispatch { ticket: of, .. } => *of == ticket,
            _ => false,
        }));
        story.now = expires;
        let actions = story.happens(Event::Elapsed);
        assert_eq!(buried(&actions, Grave::Expired), [post], "{actions:?}");
    }

    #[test]
    fn one_that_leads_nowhere_takes_no_turn_of_its_conversation() {
        let mut story = Story::begin();
        let [first, lost, last] = [1, 2, 3].map(PostId);
        let posting = story.posting(7, None);
        assert_eq!(delivered(&story.happens(Event::Posted { post: first, posting })), [first]);
        let nowhere = Posting { route: None, ..posting };
        let actions = story.happens(Event::Posted { post: lost, posting: nowhere });
        assert_eq!(buried(&actions, Grave::NoRoute), [lost]);
        story.happens(Event::Posted { post: last, posting });
        assert_eq!(delivered(&story.happens(Event::PostStored { post: lost, done: true })), []);
        let ticket = Ticket::new(0, 0);
        let actions = story.happens(Event::PostLoaded { post: first, ticket });
        let instance = actions.iter().find_map(|action| match action {
            Action::Dispatch { instance, .. } => Some(*instance),
            _ => None,
        });
        let instance = instance.expect("the instance is free");
        story.happens(Event::Answered { ticket, instance, outcome: Outcome::Replied });
        assert_eq!(delivered(&story.happens(Event::PostStored { post: first, done: true })), [last]);
    }

    #[test]
    fn ends_that_cannot_be_kept_are_tried_again_in_portions_and_each_has_its_turn() {
        let mut story = Story::begin();
        let actions = story.posted_many(1_000, story.posting(0, Some(story.now)));
        for post in buried(&actions, Grave::Expired) {
            story.happens(Event::PostStored { post, done: false });
        }
        let mut tried = BTreeSet::new();
        for _ in 0..4 {
            story.now = story.now + STORE_AGAIN_AFTER;
            let posts = buried(&story.happens(Event::Elapsed), Grave::Expired);
            assert!(posts.len() <= UNKEPT_PER_TRY, "{}", posts.len());
            for post in posts {
                tried.insert(post);
                story.happens(Event::PostStored { post, done: false });
            }
        }
        assert_eq!(tried.len(), 1_000, "nobody is tried twice before another is");
    }

    #[test]
    fn those_that_leave_a_row_before_their_turn_do_not_stay_in_it() {
        let mut row = Row { ids: (0..1_000).map(PostId).collect(), left: 0 };
        let mut gone = BTreeSet::new();
        for id in (0..1_000).rev().filter(|id| id % 10 > 0) {
            gone.insert(PostId(id));
            row.leave(|id| !gone.contains(&id));
        }
        assert!(row.ids.len() <= 200 && !row.is_empty(), "{}", row.ids.len());
        let mut left = Vec::new();
        while let Some(PostId(id)) = row.pop(|id| !gone.contains(&id)) {
            left.push(id);
        }
        assert_eq!(left, (0..1_000).step_by(10).collect::<Vec<u64>>());
        assert!(row.is_empty() && row.left == 0);
    }

    #[test]
    fn after_an_instance_ended_with_several_each_is_tried_alone_and_only_the_guilty_one_is_poison() {
        let mut story = Story::begin();
        let posts: Vec<PostId> = (1..=4).map(PostId).collect();
        assert_eq!(delivered(&story.posted_many(4, story.posting(0, None))), posts);
        let mut with = None;
        for (ticket, post) in (0..).map(|number| Ticket::new(number, 0)).zip(&posts) {
            with = dispatched(&story.happens(Event::PostLoaded { post: *post, ticket }));
        }
        let exited = |instance: Option<Instance>| Event::Exited {
            instance: instance.expect("it is up"),
            exit: Exit::Signal(11),
        };
        let mut news = story.happens(exited(with));
        let (mut tickets, mut ended) = ((10..).map(|number| Ticket::new(number, 0)), Vec::new());
        while ended.len() < posts.len() {
            let under_way = delivered(&std::mem::take(&mut news));
            assert!(under_way.len() < 2, "{under_way:?} are under way together");
            let [post] = under_way[..] else {
                story.now = story.conductor.deadline().expect("something is to come").0;
                news = story.happens(Event::Elapsed);
                continue;
            };
            // Long after all are due.
            story.now = story.now + Duration::from_secs(10);
            assert_eq!(delivered(&story.happens(Event::Elapsed)), [], "beside {post:?}");
            let ticket = tickets.next().expect("there are many");
            let with = dispatched(&story.happens(Event::PostLoaded { post, ticket }));
            if post == PostId(3) {
                news = story.happens(exited(with));
                assert_eq!(buried(&news, Grave::Poison), [post]);
            } else {
                let instance = with.expect("it is up");
                news = story.happens(Event::Answered { ticket, instance, outcome: Outcome::Replied });
            }
            ended.push(post);
        }
        ended.sort();
        assert_eq!(ended, posts);
    }

    fn dispatched(actions: &[Action]) -> Option<Instance> {
        actions.iter().find_map(|action| match action {
            Action::Dispatch { instance, .. } => Some(*instance),
            _ => None,
        })
    }
}
