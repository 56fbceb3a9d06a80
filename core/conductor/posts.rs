//! Posts: messages that were acknowledged because they are kept, and are delivered at least once.
//!
//! ```text
//!              its turn, its time          its body is in memory        the platform stands behind it
//!   Waiting ───────────────────► Loading ───────────────────────► Out ───────────────────────────────► Settling
//!      ▲                            │                              │                                      │ kept
//!      └──────── lost for now ──────┘       to be tried again      │ failed for good, or its time is up   ▼
//!      └───────────────────────────────────────────────────────────┴──────► Burying ───────kept────────► gone
//! ```
//!
//! An attempt to deliver a post is a call like any other, whose caller is the post. Whoever keeps posts says that one is
//! durable ([`Event::Posted`](crate::Event::Posted)) and brings its body to mind when told to; what is decided here is
//! when, and what becomes of it. Posts of one conversation go one after the other, in the order of their numbers. A
//! platform that takes no requests now is asked again after a while, with one post, and that is no attempt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::config::Urgency;
use crate::event::{Action, Answer, Grave, Outcome, PostId, Posting, Refusal, Ticket, Tries};
use crate::router::RouteId;
use crate::shutdown::Phase;
use crate::time::Time;
use crate::timers::Timer;
use crate::Conductor;

/// Where a post is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// To be delivered when it is due, or as soon after that as its platform has a place for it.
    Waiting,
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
    fn tries(&self) -> Tries {
        Tries { attempts: self.attempts.into(), kills: self.kills.into() }
    }
}

/// The posts of a platform.
#[derive(Debug, Default)]
struct Line {
    /// Those whose time has come, in the order in which it did.
    due: VecDeque<PostId>,
    /// Loading or out.
    under_way: usize,
    /// It takes no requests: nothing is tried before this.
    held_until: Option<Time>,
    /// Held because no instance was there for a post: over as soon as one is.
    is_deserted: bool,
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
    behind: BTreeMap<u64, VecDeque<PostId>>,
    /// By the index of the platform.
    lines: Vec<Line>,
    /// What could not be kept, and when that is tried again.
    unkept: BTreeSet<PostId>,
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
        let place = Place::Waiting;
        let post = Post { key, due, expires, route: route.unwrap_or(NOWHERE), attempts, kills, place };
        self.posts.all.insert(id, post);
        if route.is_none() {
            return self.bury_post(id, Grave::NoRoute, out);
        }
        self.posts.by_expiry.extend(expires.map(|expires| (expires, id)));
        if key != 0 {
            match self.posts.behind.get_mut(&key) {
                Some(behind) => {
                    behind.push_back(id);
                    return self.set_post_timer();
                }
                None => drop(self.posts.behind.insert(key, VecDeque::new())),
            }
        }
        self.let_wait(id, due, out);
    }

    /// It is at the head of its conversation, or in none, and has its turn at this time.
    fn let_wait(&mut self, id: PostId, due: Time, out: &mut Vec<Action>) {
        let Some(post) = self.posts.all.get_mut(&id) else { return };
        (post.place, post.due) = (Place::Waiting, due);
        let route = post.route;
        let platform = self.platform_by(route);
        if due > self.now {
            self.posts.by_due.insert((due, id));
        } else {
            self.posts.line(platform).due.push_back(id);
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
        let unkept = (!self.posts.unkept.is_empty()).then_some(self.posts.unkept_due);
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
            let platform = self.platform_by(self.posts.all[&id].route);
            self.posts.line(platform).due.push_back(id);
        }
        if self.posts.unkept_due <= self.now {
            for id in std::mem::take(&mut self.posts.unkept) {
                self.keep_end(id, out);
            }
        }
        for platform in 0..self.posts.lines.len() {
            self.deliver_what_can(platform as u32, out);
        }
        self.set_post_timer();
    }

    /// Its time is up: one that is out may still be delivered.
    fn expire(&mut self, id: PostId, out: &mut Vec<Action>) {
        let Some(post) = self.posts.all.get(&id) else { return };
        match post.place {
            Place::Waiting => self.bury_post(id, Grave::Expired, out),
            Place::Loading | Place::Out | Place::Settling | Place::Burying { .. } => {}
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
        while self.posts.line(platform).under_way < most {
            let Some(id) = self.posts.line(platform).due.pop_front() else { return };
            let Some(post) = self.posts.all.get_mut(&id) else { continue };
            post.place = Place::Loading;
            self.posts.line(platform).under_way += 1;
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
        post.place = Place::Out;
        post.attempts = post.attempts.saturating_add(1);
        let (route, key) = (post.route, (post.key != 0).then_some(post.key));
        self.posts.by_ticket.insert(ticket, id);
        self.asked(ticket, Some(route), true, key, Urgency::Low, out);
    }

    /// Its body could not be brought to mind: not now, or never again.
    pub(crate) fn post_lost(&mut self, id: PostId, for_good: bool, out: &mut Vec<Action>) {
        let Some(post) = self.posts.all.get(&id).filter(|post| post.place == Place::Loading) else {
            self.stats.stale += 1;
            return;
        };
        let platform = self.platform_by(post.route);
        self.posts.line(platform).under_way -= 1;
        if for_good {
            self.bury_post(id, Grave::Damaged, out);
        } else {
            self.let_wait(id, self.now + STORE_AGAIN_AFTER, out);
        }
        self.deliver_what_can(platform, out);
    }

    /// Whether the request delivers a post: then nobody else is told what became of it, and it is no dead letter.
    pub(crate) fn delivers(&self, ticket: Ticket) -> bool {
        !self.posts.by_ticket.is_empty() && self.posts.by_ticket.contains_key(&ticket)
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
        let is_late = post.expires.is_some_and(|expires| expires <= self.now);
        let platform = self.platform_by(route);
        let settings = &self.settings.posts;
        let most = settings.attempts_max.count();
        self.posts.line(platform).under_way -= 1;
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
                if let Some(post) = self.posts.all.get_mut(&id) {
                    post.attempts = post.attempts.saturating_sub(1);
                }
                let until = self.now + after.clamp(HELD_MIN, HELD_MAX);
                let line = self.posts.line(platform);
                line.held_until = Some(until);
                // What an instance refused, which is there, is not tried again before its time.
                let is_out = matches!(refusal, Refusal::NotReady | Refusal::Isolated | Refusal::BreakerOpen);
                line.is_deserted = is_out && outcome.is_none();
                if is_late {
                    self.bury_post(id, Grave::Expired, out);
                } else {
                    // It keeps its turn.
                    self.set_due(id, self.now);
                    self.posts.line(platform).due.push_front(id);
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

    fn set_due(&mut self, id: PostId, due: Time) {
        if let Some(post) = self.posts.all.get_mut(&id) {
            (post.place, post.due) = (Place::Waiting, due);
        }
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
        if post.place == Place::Waiting {
            let (due, key, platform) = (post.due, post.key, self.platform_by(post.route));
            self.posts.by_due.remove(&(due, id));
            if let Some(line) = self.posts.lines.get_mut(platform as usize) {
                line.due.retain(|other| *other != id);
            }
            if let Some(behind) = self.posts.behind.get_mut(&key) {
                // One that was not at the head leaves no gap; the head is not in there.
                let length = behind.len();
                behind.retain(|other| *other != id);
                if behind.len() < length {
                    self.set_key(id, 0);
                }
            }
        }
        self.set_place(id, Place::Burying { grave });
        self.keep_end(id, out);
    }

    fn set_key(&mut self, id: PostId, key: u64) {
        if let Some(post) = self.posts.all.get_mut(&id) {
            post.key = key;
        }
    }

    /// Has the end of a post kept, as far as that needs no answer that is gone by now.
    fn keep_end(&mut self, id: PostId, out: &mut Vec<Action>) {
        let Some(post) = self.posts.all.get(&id) else { return };
        match post.place {
            Place::Burying { grave } => out.push(Action::BuryPost { post: id, grave, attempts: post.attempts.into() }),
            Place::Settling => out.push(Action::Settle { post: id, ticket: None, attempts: post.attempts.into() }),
            Place::Waiting | Place::Loading | Place::Out => {}
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
            self.posts.unkept.insert(id);
            self.posts.unkept_due = self.now + STORE_AGAIN_AFTER;
            return self.set_post_timer();
        }
        let (key, expires) = (post.key, post.expires);
        self.posts.unkept.remove(&id);
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
        let Some(behind) = self.posts.behind.get_mut(&key) else { return };
        let Some(next) = behind.pop_front() else {
            self.posts.behind.remove(&key);
            return;
        };
        if let Some(due) = self.posts.all.get(&next).filter(|post| post.place == Place::Waiting).map(|post| post.due) {
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
            let is_timed = |due: &Time| posts.by_due.contains(&(*due, *id));
            match &post.place {
                Place::Waiting => {
                    let line = posts.lines.get(self.platform_by(post.route) as usize);
                    let in_line = line.is_some_and(|line| line.due.contains(id));
                    let is_behind = posts.behind.get(&post.key).is_some_and(|behind| behind.contains(id));
                    let places = u32::from(is_timed(&post.due)) + u32::from(in_line) + u32::from(is_behind);
                    assert_eq!(places, 1, "{id:?} waits in {places} places");
                }
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
            let has_room =
                line.under_way < if line.held_until.is_some() { 1 } else { self.settings.posts.in_flight_max.size() };
            // In a late turn what is due now comes in the next.
            let is_next = self.timers.at(Timer::Post).is_some_and(|at| at <= self.now + Duration::from_nanos(1));
            let is_stuck = !line.due.is_empty() && may_go && has_room && !is_next && self.phase == Phase::Running;
            assert!(!is_stuck, "posts wait for platform {index}, which has room for them");
        }
        let is_waiting = !posts.by_due.is_empty() || !posts.by_expiry.is_empty();
        let is_timed = self.timers.at(Timer::Post).is_some();
        assert!(!is_waiting || is_timed || self.phase != Phase::Running, "posts wait and nobody looks");
        assert!(posts.unkept.is_empty() || is_timed || self.has_exited, "what could not be kept is forgotten");
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
            let starts = out.iter().filter_map(|action| match action {
                Action::Start { instance, .. } => Some(*instance),
                _ => None,
            });
            for instance in starts.collect::<Vec<Instance>>() {
                out.extend(self.happens(Event::Started { instance }));
            }
            out
        }

        fn posted(&mut self, post: PostId, tries: Tries) -> Vec<Action> {
            let posting = Posting { route: Some(M), key: 0, due: self.now, expires: None, tries };
            self.happens(Event::Posted { post, posting })
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
}
