//! Messages that the world's people post, the store that keeps them, and crashes of Demi in between.
//!
//! The store here is what a disk would hold: what was committed is there after a crash, and what was not may be or not.
//! What was acknowledged must end exactly once in it, delivered or as a dead letter.

use std::collections::{BTreeMap, BTreeSet};

use demi_conductor::{Conductor, Event, Grave, PostId, Posting, RouteId, Ticket, Time, Tries};

use crate::faults::Fault;
use crate::ledger::Ledger;
use crate::machine::Model;
use crate::report::Sight;
use crate::workload;

use super::perform::Coming;
use super::World;

/// A message as it is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Letter {
    pub(super) route: RouteId,
    /// No rule takes it.
    is_lost: bool,
    key: u64,
    due: Time,
    expires: Option<Time>,
    /// Whoever has it ends.
    is_poison: bool,
    /// As the disk has it.
    tries: Tries,
    /// In this run of Demi, so many instances ended that had it.
    kills: u32,
    /// Its body cannot be read any more.
    is_damaged: bool,
}

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Delivered,
    Dead(Grave),
}

/// What the disk holds, and what people were told.
#[derive(Debug, Default)]
pub(super) struct Mail {
    next: u64,
    kept: BTreeMap<PostId, Letter>,
    ended: BTreeMap<PostId, End>,
    acknowledged: BTreeSet<PostId>,
    /// Requests that deliver what ends whoever has it.
    poison: BTreeSet<Ticket>,
    /// Requests that deliver something.
    deliveries: BTreeSet<Ticket>,
    /// Those that this run of Demi is done with.
    closed: BTreeSet<PostId>,
}

impl Mail {
    /// Numbers go up in the order in which messages are kept.
    fn keep(&mut self, letter: Letter) -> PostId {
        self.next += 1;
        let id = PostId(self.next);
        self.kept.insert(id, letter);
        id
    }
}

impl World {
    /// Somebody posts a message; it is acknowledged when it is kept.
    pub(super) fn post(&mut self) {
        let route = RouteId(self.random.below(self.config.routes.len() as u64) as u32);
        let due = match self.random.below(4) {
            0 => self.now + workload::span(&mut self.random, 10, 20_000),
            _ => self.now,
        };
        let expires = (self.random.below(4) == 0).then(|| due + workload::span(&mut self.random, 100, 60_000));
        let is_poison = self.dice.strike(Fault::Poison);
        let letter = Letter {
            route,
            is_lost: self.dice.strike(Fault::RouteGone),
            key: self.random.below(5),
            due,
            expires,
            is_poison,
            tries: Tries::default(),
            kills: 0,
            is_damaged: self.dice.strike(Fault::DiskRot),
        };
        let delay = self.within(50);
        if !self.dice.strike(Fault::StoreFailed) {
            self.come(delay, Coming::Committed(letter));
        }
    }

    pub(super) fn committed(&mut self, letter: Letter) -> Event {
        let id = self.mail.keep(letter);
        self.mail.acknowledged.insert(id);
        if self.random.below(8) == 0 {
            let delay = self.within(2_000);
            self.come(delay, Coming::Repeated(id));
        }
        self.posted(id, letter)
    }

    /// Whoever posted a message does so again, under the same idempotency key.
    pub(super) fn repeated(&self, post: PostId) -> Option<Event> {
        self.mail.kept.get(&post).map(|letter| self.posted(post, *letter))
    }

    fn posted(&self, post: PostId, letter: Letter) -> Event {
        let Letter { route, is_lost, key, due, expires, tries, .. } = letter;
        let route = Some(route).filter(|_| !is_lost);
        Event::Posted { post, posting: Posting { route, key, due, expires, tries } }
    }

    /// Its body is read, which may fail for now.
    pub(super) fn deliver(&mut self, post: PostId) {
        assert!(self.mail.kept.contains_key(&post), "{post:?} is delivered and not kept");
        assert!(!self.mail.closed.contains(&post), "{post:?} is delivered once more");
        let Letter { is_lost, key, expires, is_damaged, tries, kills, .. } = self.mail.kept[&post];
        assert!(!is_lost, "{post:?} is delivered and leads nowhere");
        assert!(expires.is_none_or(|expires| expires > self.now), "{post:?} is begun after its time");
        assert!(tries.kills.max(kills) < 2, "{post:?} has killed {tries:?}, {kills} now, and is delivered again");
        let is_before =
            |(id, letter): (&PostId, &Letter)| letter.key == key && *id < post && !self.mail.closed.contains(id);
        assert!(
            key == 0 || !self.mail.kept.iter().any(is_before),
            "{post:?} has overtaken another of its conversation"
        );
        let delay = self.within(20);
        let coming = match self.dice.strike(Fault::StoreFailed) {
            true => Coming::News(Event::PostLost { post, for_good: false }),
            false if is_damaged => Coming::News(Event::PostLost { post, for_good: true }),
            false => Coming::Loaded(post),
        };
        self.come(delay, coming);
    }

    pub(super) fn loaded(&mut self, post: PostId) -> Option<Event> {
        let Letter { route, is_poison, expires, .. } = *self.mail.kept.get(&post)?;
        let ticket = self.book.issue();
        self.mail.deliveries.insert(ticket);
        if is_poison {
            self.mail.poison.insert(ticket);
        }
        self.requests += 1;
        self.ledger.expect_delivery(ticket, route, expires);
        Some(Event::PostLoaded { post, ticket })
    }

    /// How a message fares is kept, unless the store fails.
    pub(super) fn note_tries(&mut self, post: PostId, tries: Tries) {
        let letter = self.mail.kept.get_mut(&post).expect("what is tried again is kept");
        assert!(
            tries.attempts > letter.tries.attempts && tries.kills >= letter.tries.kills,
            "{post:?} had {:?} and now has {tries:?}",
            letter.tries
        );
        letter.kills = tries.kills;
        if !self.dice.strike(Fault::StoreFailed) {
            letter.tries = tries;
        }
    }

    /// The end of a message is kept, unless the store fails.
    pub(super) fn close_post(&mut self, post: PostId, end: End) {
        let is_damaged = self.mail.kept.get(&post).is_some_and(|letter| letter.is_damaged);
        assert!(end != End::Dead(Grave::Damaged) || is_damaged, "{post:?} is given up and can be read");
        self.mail.closed.insert(post);
        let delay = self.within(50);
        let coming = match self.dice.strike(Fault::StoreFailed) {
            true => Coming::News(Event::PostStored { post, done: false }),
            false => Coming::Ended(post, end),
        };
        self.come(delay, coming);
    }

    pub(super) fn ended(&mut self, post: PostId, end: End) -> Event {
        self.end_on_disk(post, end);
        Event::PostStored { post, done: true }
    }

    fn end_on_disk(&mut self, post: PostId, end: End) {
        assert!(self.mail.kept.remove(&post).is_some(), "{post:?} has ended twice");
        self.mail.ended.insert(post, end);
        self.ledger.sights.add(
            match end {
                End::Delivered => Sight::Delivered,
                End::Dead(Grave::Expired) => Sight::Expired,
                End::Dead(Grave::Poison) => Sight::Poison,
                End::Dead(Grave::Rejected) => Sight::Rejected,
                End::Dead(Grave::Failed) => Sight::Undeliverable,
                End::Dead(Grave::Damaged) => Sight::Damaged,
                End::Dead(Grave::NoRoute) => Sight::Unroutable,
            } as usize,
            1,
        );
    }

    /// Demi is killed, with everything that it runs, and started again. What was on its way to the disk got there or not.
    pub(super) fn crash(&mut self) {
        let coming = std::mem::take(&mut self.coming);
        for (_, coming) in coming {
            let is_lucky = self.random.below(2) == 0;
            match coming {
                // Kept, and nobody was told: it may be delivered all the same.
                Coming::Committed(letter) if is_lucky => drop(self.mail.keep(letter)),
                Coming::Ended(post, end) if is_lucky => self.end_on_disk(post, end),
                _ => {}
            }
        }
        self.mail.closed.clear();
        self.mail.poison.clear();
        self.mail.deliveries.clear();
        let seed = self.random.draw();
        let sights = std::mem::take(&mut self.ledger.sights);
        for platform in self.conductor.platforms() {
            self.opened_before += platform.stats.opened.iter().sum::<u64>();
        }
        self.conductor = Conductor::new(&self.config, seed);
        self.models = Model::all(&self.config);
        self.book = Default::default();
        self.ledger = Ledger::new(&self.config);
        self.ledger.sights = sights;
        self.ledger.sights.add(Sight::Crashed as usize, 1);
        self.actions.clear();
        self.ghosts.clear();
        self.away.fill(false);
        self.editions.fill(0);
        self.bad_editions.clear();
        self.begin();
        let kept: Vec<(PostId, Letter)> = self
            .mail
            .kept
            .iter_mut()
            .map(|(id, letter)| {
                letter.kills = 0;
                (*id, *letter)
            })
            .collect();
        for (id, letter) in kept {
            self.ledger.sights.add(Sight::Remembered as usize, u64::from(letter.tries.attempts > 0));
            let event = self.posted(id, letter);
            self.handle(event);
        }
    }

    /// Whether whoever has this request ends.
    pub(super) fn is_poison(&self, ticket: Ticket) -> bool {
        self.mail.poison.contains(&ticket)
    }

    /// Whether messages wait to be delivered.
    pub(super) fn has_mail(&self) -> bool {
        !self.mail.kept.is_empty()
    }

    /// What was acknowledged is kept, or has ended.
    pub(super) fn check_mail(&self) {
        for id in &self.mail.acknowledged {
            let (is_kept, has_ended) = (self.mail.kept.contains_key(id), self.mail.ended.contains_key(id));
            assert!(is_kept != has_ended, "{id:?} was acknowledged and is lost");
        }
    }
}
