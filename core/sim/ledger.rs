//! The books that the world keeps of its own: what was promised to whom, told apart from what the conductor believes.
//!
//! `Conductor::check` asserts that its tables agree with each other. The ledger asserts what a caller, a platform or
//! an operator would notice: a request answered twice or never, work for the dead, a start too many, an end in the
//! wrong order. It sees events and actions only, and a status now and then.
//!
//! | what is judged | where |
//! |---|---|
//! | what a request was promised: its time, whom it is passed on to, its one end | `ledger/requests.rs` |
//! | its attempts: given, hedged, tried again, answered, cut short | `ledger/attempts.rs` |
//! | whose turn it is, and who may have it | `ledger/balance.rs` |
//! | starts and ends of instances, their order and their reasons | `ledger/lifecycle.rs` |
//! | what people, requests and other platforms want of a platform | `ledger/orders.rs` |
//! | who is shed, restored or held back for RAM | `ledger/ram.rs` |

mod attempts;
mod balance;
mod lifecycle;
mod orders;
mod ram;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use demi_conductor::config::{Config, Host, OnFailure, Scaler, Start, Urgency};
use demi_conductor::lifecycle::Reason;
use demi_conductor::{
    Action, Ask, Conductor, Event, Exit, Instance, News, Outcome, Phase, RouteId, Ticket, Time, Verdict, MEGABYTE,
};

use crate::report::{Sight, Sights};
use requests::{Promise, Record, CHAIN_MAX};

/// An instance over its runs.
#[derive(Clone, Debug)]
struct Slot {
    platform: usize,
    run: u32,
    started_at: Option<Time>,
    has_exited: bool,
    is_ending: bool,
    is_killed: bool,
    bad_config: bool,
    /// Attempts that it has by the conductor's word.
    out: u32,
    /// What a thread really holds, with the deadlines; nothing but the thread itself can take from this.
    held: Vec<(Ticket, Time)>,
    /// It has said that it wants no new requests, and not otherwise since.
    drains: bool,
    /// Its breaker was told to be open until then, and not to have closed since.
    open_until: Option<Time>,
    /// The last start followed an exit in the same turn, and the run before it did not last.
    at_once: bool,
    edition: u32,
    /// Health checks that it has passed in this run.
    passes: u32,
    draining_since: Option<Time>,
    /// Why it is in its state, as it was told.
    why: Option<Reason>,
    /// It is shed, or about to be.
    is_shed: bool,
    /// What it was last found to weigh, bytes.
    weight: u64,
    /// The least that this run was found to weigh, bytes.
    least: u64,
    /// Its last start was after a wait, or instead of one.
    after_backoff: bool,
}

#[derive(Debug)]
struct Platform {
    host: Host,
    in_flight_max: u32,
    wedged: Duration,
    queue_age_max: Option<Duration>,
    needs: Vec<usize>,
    slots: std::ops::Range<usize>,
    drain: Duration,
    sleep_after: Option<Duration>,
    request_timeout: Option<Duration>,
    start_budget: u32,
    /// Starts since the day began; unknown if that was in a turn in which it was started as well.
    starts: Option<u32>,
    /// Somebody asked for it, or a person had something to do with it or with what needs it.
    is_wanted: bool,
    /// A person stopped it, and nobody has wanted it since.
    is_stopped: bool,
    is_isolated: bool,
    /// Editions that it may be started from.
    editions: BTreeSet<u32>,
    /// Editions one of whose instances has passed its health checks.
    proven: BTreeSet<u32>,
    /// When its last request ended.
    used_at: Time,
    /// Its own breaker was told to be open until then, and not to have closed since.
    open_until: Option<Time>,
    /// What it depends on and was told to be lost.
    lost: BTreeSet<u32>,
    may_be_shed: bool,
    priority: u32,
    /// When it was shed, if it is, and when it was before, as far as nobody had started it by hand.
    shed_at: Option<Time>,
    sheds: Vec<Time>,
    has_come_back: bool,
    /// It was not shed, but not started.
    is_held_back: bool,
    /// When somebody last ordered something of it.
    ordered_at: Option<Time>,
    /// The most that one of its instances was found to weigh, bytes, and when.
    peak: (u64, Time),
    /// When one of its instances was last found to weigh so much more than at its least that it may go out of turn.
    grown_at: Option<Time>,
    /// What it had weighed before Demi began, bytes, and when that was last kept anew.
    recalled: u64,
    kept_at: Option<Time>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Ledger {
    platforms: Vec<Platform>,
    promises: Vec<Promise>,
    forget: Duration,
    records: Vec<Option<Record>>,
    /// Routes of requests that are about to deliver messages.
    deliveries: BTreeMap<Ticket, (RouteId, Option<Time>)>,
    /// Requests whose end is due at a time: all but those whose answer is flowing.
    due: BTreeSet<(Time, Ticket)>,
    live: usize,
    arrivals: u64,
    slots: Vec<Slot>,
    /// Where in its end Demi was after the last turn.
    phase: Phase,
    has_exited: bool,
    scaler: Scaler,
    /// Used RAM at the last sample that made sense, thousandths, and since when no sample was above `restore_percent`.
    ram_permille: u64,
    /// The same, and all of it, bytes.
    ram: (u64, u64),
    /// When that was, unless one that makes no sense has come since.
    ram_at: Option<Time>,
    /// What instances weighed that have ended since, and between the sample before and that one, bytes.
    freed: (u64, u64),
    calm_since: Option<Time>,
    pub(crate) sights: Sights,
}

impl Ledger {
    pub(crate) fn new(config: &Config) -> Ledger {
        let position = |name: &String| config.platforms.iter().position(|platform| platform.name == *name);
        let mut slots = Vec::new();
        let mut platforms = Vec::new();
        for (index, platform) in config.platforms.iter().enumerate() {
            let first = slots.len();
            slots.extend((0..platform.slots()).map(|_| Slot::new(index)));
            platforms.push(Platform {
                host: platform.host,
                in_flight_max: platform.in_flight_max(),
                wedged: platform.wedged_ms.millis(),
                queue_age_max: platform.queue_age_max_ms.map(|bound| bound.millis()),
                needs: platform.needs.iter().filter_map(position).collect(),
                slots: first..slots.len(),
                drain: platform.drain_ms.millis(),
                sleep_after: platform.sleep_after_ms.map(|bound| bound.millis()),
                request_timeout: platform.request_timeout_ms.map(|bound| bound.millis()),
                start_budget: platform.start_budget_per_day.count(),
                starts: Some(0),
                is_wanted: platform.start == Start::Eager,
                is_stopped: platform.start == Start::Manual,
                is_isolated: false,
                editions: BTreeSet::from([0]),
                proven: BTreeSet::from([0]),
                used_at: Time::ZERO,
                open_until: None,
                lost: BTreeSet::new(),
                may_be_shed: platform.may_be_shed(),
                priority: platform.priority(),
                shed_at: None,
                sheds: Vec::new(),
                has_come_back: false,
                is_held_back: false,
                ordered_at: None,
                peak: (0, Time::ZERO),
                grown_at: None,
                recalled: 0,
                kept_at: None,
            });
        }
        let promises: Vec<Promise> = config
            .routes
            .iter()
            .filter_map(|route| {
                let timeout = route.timeout_ms.millis();
                let own_timeout = platforms[position(&route.to)?].request_timeout;
                let route_attempt_timeout = route.attempt_timeout_ms.map_or(timeout, |bound| bound.millis());
                assert!(route.fallback.len() <= CHAIN_MAX, "the world draws no longer chain");
                Some(Promise {
                    platform: position(&route.to)?,
                    timeout,
                    attempt_timeout: route_attempt_timeout.min(own_timeout.unwrap_or(timeout)),
                    route_attempt_timeout,
                    chain: std::array::from_fn(|place| route.fallback.get(place).and_then(&position)),
                    attempts_max: 1 + route.retries.count(),
                    idempotent: route.idempotent,
                    is_kept: route.on_failure == OnFailure::DeadLetter,
                    urgency: route.urgency,
                })
            })
            .collect();
        Ledger {
            platforms,
            promises,
            forget: config.restart.forget_ms.millis(),
            records: Vec::new(),
            deliveries: BTreeMap::new(),
            due: BTreeSet::new(),
            live: 0,
            arrivals: 0,
            slots,
            phase: Phase::Running,
            has_exited: false,
            scaler: config.scaler,
            ram_permille: 0,
            ram: (0, 0),
            ram_at: None,
            freed: (0, 0),
            calm_since: None,
            sights: Sights::default(),
        }
    }

    fn saw(&mut self, sight: Sight) {
        self.sights.add(sight as usize, 1);
    }

    fn is_alive(&self, slot: usize) -> bool {
        self.slots[slot].run > 0 && !self.slots[slot].has_exited
    }

    /// Enters what happened and what the conductor did about it, and asserts that it may.
    pub(crate) fn enter(&mut self, now: Time, event: &Event, actions: &[Action], conductor: &Conductor) {
        assert!(!self.has_exited, "something happened after the exit");
        let mut turn = self.note_event(now, event, actions);
        turn.is_stirred = actions.iter().any(|action| {
            matches!(action, Action::Tell { news: News::State { .. } | News::HealthDown | News::HealthUp, .. })
        });
        for (index, action) in actions.iter().enumerate() {
            assert!(!self.has_exited, "{action:?} after Exit");
            self.note_action(now, action, &actions[index + 1..], &turn, conductor);
        }
        self.close_turn(now, &turn, conductor);
    }

    fn note_event(&mut self, now: Time, event: &Event, actions: &[Action]) -> Turn {
        let mut turn = Turn::default();
        match *event {
            Event::Asked { ticket, route, ask } => self.note_asked(now, ticket, route, ask, &mut turn),
            Event::PostLoaded { ticket, .. } => {
                let (route, begins_before) = self.deliveries.remove(&ticket).unzip();
                let ask = Ask { idempotent: true, urgency: Urgency::Low, ..Ask::default() };
                self.note_asked(now, ticket, route, ask, &mut turn);
                let record = self.record_mut(ticket, "the delivery");
                (record.is_delivery, record.begins_before) = (true, begins_before.flatten());
            }
            Event::Headed { ticket, instance } => {
                turn.headed = self.is_awaited(ticket, instance).then_some(ticket);
            }
            Event::Answered { ticket, instance, outcome } | Event::Deferred { ticket, instance, outcome, .. } => {
                let is_heard =
                    self.is_awaited(ticket, instance) && !actions.contains(&Action::Cancel { ticket, instance });
                if let (Event::Deferred { after, .. }, true) = (*event, is_heard) {
                    self.record_mut(ticket, "an answer").deferred = Some((instance, now + after));
                }
                self.note_answer(ticket, instance, outcome, actions, &mut turn)
            }
            Event::Gone { ticket } => {
                if self.is_live(ticket) {
                    self.record_mut(ticket, "the going").gone = true;
                    turn.gone = Some(ticket);
                }
            }
            Event::Started { instance } => {
                let slot = &mut self.slots[instance.slot as usize];
                if slot.run == instance.run && !slot.has_exited && slot.started_at.is_none() {
                    slot.started_at = Some(now);
                }
            }
            Event::Exited { instance, exit } => {
                let slot = &mut self.slots[instance.slot as usize];
                assert!(slot.run == instance.run && !slot.has_exited, "the world ended {instance:?} twice");
                slot.has_exited = true;
                self.freed.0 += std::mem::take(&mut slot.weight);
                // What was ordered to end is not the configuration's fault, but it says so all the same.
                slot.bad_config |= exit == Exit::Code(78);
                turn.exited = Some(instance);
            }
            Event::Probed { instance, verdict } => {
                let slot = &mut self.slots[instance.slot as usize];
                if slot.run == instance.run && verdict == Verdict::Pass {
                    slot.passes += 1;
                    if slot.passes >= 2 {
                        self.platforms[slot.platform].proven.insert(slot.edition);
                    }
                }
            }
            Event::Recalled { platform, starts } => self.platforms[platform as usize].starts = Some(starts),
            Event::PeakRecalled { platform, bytes, .. } => self.platforms[platform as usize].recalled = bytes,
            Event::DayBegan => {
                for (index, platform) in self.platforms.iter_mut().enumerate() {
                    let spends = |action: &Action| matches!(action, Action::Spend { platform, .. } if *platform as usize == index);
                    platform.starts = (!actions.iter().any(spends)).then_some(0);
                }
            }
            Event::Ordered(order) => self.note_order(now, order, actions),
            Event::Measured { sample } => self.note_sample(now, sample),
            Event::Weighed { instance, weight } => {
                let slot = &mut self.slots[instance.slot as usize];
                let is_known = slot.run == instance.run && !slot.has_exited;
                if is_known {
                    let before = std::mem::replace(&mut slot.weight, weight.rss_bytes);
                    let platform = &mut self.platforms[slot.platform];
                    if weight.rss_bytes >= platform.peak.0 {
                        platform.peak = (weight.rss_bytes, now);
                    }
                    slot.least = if before == 0 { weight.rss_bytes } else { slot.least.min(weight.rss_bytes) };
                    // Half of the least spike.
                    if weight.rss_bytes - slot.least >= self.scaler.spike_min_mb.value() * MEGABYTE / 2 {
                        platform.grown_at = Some(now);
                    }
                }
            }
            Event::Began => {
                for platform in 0..self.platforms.len() {
                    if self.platforms[platform].is_wanted {
                        self.want(platform, false);
                    }
                }
            }
            Event::Moved { ticket, instance } => self.note_moved(now, ticket, instance, actions, &mut turn),
            Event::Reported { instance, report } => {
                let slot = &mut self.slots[instance.slot as usize];
                if slot.run == instance.run && !slot.has_exited {
                    slot.drains = report.drain;
                }
            }
            Event::Extended { .. }
            | Event::Reinitialized { .. }
            | Event::Reached { .. }
            | Event::Posted { .. }
            | Event::PostLost { .. }
            | Event::PostStored { .. }
            | Event::Stored { .. }
            | Event::AllWeighed { .. }
            | Event::Elapsed => {}
        }
        turn
    }

    fn note_action(&mut self, now: Time, action: &Action, rest: &[Action], turn: &Turn, conductor: &Conductor) {
        match *action {
            Action::Dispatch { ticket, instance } => self.note_dispatch(now, ticket, instance, false, turn, conductor),
            Action::Hedge { ticket, instance } => self.note_dispatch(now, ticket, instance, true, turn, conductor),
            Action::Prefer { ticket, instance } => {
                self.record_mut(ticket, "the preference");
                let is_it = turn.answered.is_some_and(|(of, with, _)| (of, with) == (ticket, instance));
                let is_gone = turn.exited == Some(instance);
                let is_late = !self.is_awaited(ticket, instance);
                assert!(is_it || is_gone || is_late || turn.headed == Some(ticket), "{instance:?} has not answered");
                self.saw(Sight::HedgeWon);
            }
            Action::Relay { ticket } => {
                assert_eq!(turn.headed, Some(ticket), "an answer was relayed whose head has not come");
                let record = self.record_mut(ticket, "the relay");
                assert!(!record.headed, "{ticket:?} was relayed twice");
                record.headed = true;
                let (deadline, is_delivery) = (record.deadline, record.is_delivery);
                if !is_delivery {
                    self.due.remove(&(deadline, ticket));
                }
                self.saw(Sight::Streamed);
            }
            Action::FallBack { ticket, platform } => self.note_fall_back(now, ticket, platform as usize, turn),
            Action::Cancel { ticket, instance } => self.note_cancel(now, ticket, instance, rest, turn),
            Action::Answer { ticket, answer } => self.note_end(now, ticket, answer, turn),
            Action::Bury { ticket, answer, attempts } => {
                let record = self.record_mut(ticket, "the burial");
                assert!(record.promise.is_some_and(|promise| promise.is_kept), "{ticket:?} was buried unasked");
                assert_eq!(
                    record.attempts_before + record.attempts,
                    attempts,
                    "{ticket:?} was buried with the wrong count of attempts"
                );
                self.saw(Sight::Buried);
                self.note_end(now, ticket, answer, turn);
            }
            Action::Probe { instance } => self.assert_in_use(instance, turn, "a probe"),
            Action::Start { instance, edition } => self.note_start(now, instance, edition, turn),
            Action::Tell { platform, instance, news } => self.note_news(now, platform as usize, instance, news, turn),
            Action::Adopt { platform, edition } => {
                let entry = &mut self.platforms[platform as usize];
                assert!(entry.editions.contains(&edition), "edition {edition} was adopted and never ordered");
                entry.editions.retain(|other| *other >= edition);
                entry.proven.insert(edition);
                let others = entry.slots.clone();
                for slot in others {
                    assert!(
                        !self.is_alive(slot) || self.slots[slot].edition == edition,
                        "edition {edition} was adopted while slot {slot} is of another"
                    );
                }
            }
            Action::Reject { platform, edition } => {
                self.platforms[platform as usize].editions.remove(&edition);
            }
            Action::Spend { platform, starts } => {
                let entry = &mut self.platforms[platform as usize];
                if let Some(before) = entry.starts {
                    assert_eq!(starts, before + 1, "starts of platform {platform} were miscounted");
                    entry.starts = Some(starts);
                }
                assert!(starts <= entry.start_budget, "a platform was started beyond its budget");
            }
            Action::KeepPeak { platform, bytes } => {
                let is_ending = self.phase != Phase::Running || rest.contains(&Action::Flush) || turn.exited.is_some();
                let entry = &mut self.platforms[platform as usize];
                let is_known = bytes <= entry.peak.0.max(entry.recalled);
                let is_soon = entry.kept_at.is_some_and(|at| now - at < Duration::from_secs(60)) && !is_ending;
                assert!(is_known && !is_soon, "{platform} keeps {bytes} and had {:?}", entry.peak);
                entry.kept_at = Some(now);
                self.saw(Sight::KeptPeak);
            }
            Action::Trim { .. } => self.saw(Sight::Trimmed),
            Action::Decide { decision } => self.note_decision(now, &decision, rest, turn, conductor),
            Action::Signal { instance, signal } => self.note_signal(now, instance, signal, turn, conductor),
            Action::Exit(_) => {
                assert_eq!(self.live, 0, "Demi exited and left requests without an end");
                for slot in 0..self.slots.len() {
                    assert!(
                        !self.is_alive(slot) || self.slots[slot].is_killed,
                        "Demi exited and left slot {slot} alive"
                    );
                }
                self.has_exited = true;
            }
            Action::Reinitialize { instance } => self.assert_in_use(instance, turn, "another initialisation"),
            Action::Deliver { .. }
            | Action::Settle { .. }
            | Action::NoteTries { .. }
            | Action::BuryPost { .. }
            | Action::Reach { .. }
            | Action::Measure
            | Action::Admit(_)
            | Action::Flush
            | Action::Weigh => {}
        }
    }

    fn close_turn(&mut self, now: Time, turn: &Turn, conductor: &Conductor) {
        if let Some(instance) = turn.exited {
            // What is to be tried again has been taken from it without a word: there was nobody left to tell.
            let mut taken = 0;
            for record in self.records.iter_mut().flatten() {
                if record.is_with(instance) {
                    record.take_from(instance);
                    record.acted_on = true;
                    taken += 1;
                }
            }
            let slot = &mut self.slots[instance.slot as usize];
            if slot.run == instance.run {
                assert_eq!(slot.out, taken, "the count of what {instance:?} had is off");
                slot.out = 0;
            }
        }
        if let Some((deadline, ticket)) = self.due.first() {
            assert!(*deadline > now || self.has_exited, "{ticket:?} outlived its deadline");
        }
        self.phase = conductor.phase();
        assert_eq!(self.live, conductor.live(), "the conductor has another count of live requests");
    }

    /// Compares the books with what the conductor tells people.
    pub(crate) fn audit(&self, conductor: &Conductor) {
        for (platform, told) in self.platforms.iter().zip(conductor.platforms()) {
            for status in &told.instances {
                let slot = status.slot as usize;
                let entry = &self.slots[slot];
                assert_eq!(
                    status.drains,
                    entry.drains && self.is_alive(slot),
                    "slot {slot} is shown with another wish"
                );
                assert_eq!(status.run, entry.run, "slot {slot} is shown with another run");
                assert_eq!(status.in_flight, entry.out, "slot {slot} is shown with another count of requests");
                let is_shown_alive = matches!(
                    status.state,
                    "starting" | "proving" | "ready" | "degraded" | "wedged" | "down" | "draining" | "stopping"
                );
                assert_eq!(is_shown_alive, self.is_alive(slot), "slot {slot} is shown as {}", status.state);
                let is_open =
                    matches!(status.state, "ready" | "degraded") && status.breaker == "closed" && !entry.drains;
                let is_free = is_open && status.health != "unproven" && status.in_flight < platform.in_flight_max;
                assert!(!is_free || told.queued == 0, "requests wait for {} while slot {slot} is free", told.name);
            }
        }
    }
}

/// What one turn was about.
#[derive(Debug, Default)]
struct Turn {
    /// A request came, after the timers that were due.
    asked: Option<Ticket>,
    /// The head of an awaited answer came.
    headed: Option<Ticket>,
    /// An awaited answer came.
    answered: Option<(Ticket, Instance, Outcome)>,
    /// It never reached the instance, and did not before either: that counts once.
    missed_again: bool,
    /// Who is there and well is not the same after it as before.
    is_stirred: bool,
    /// A second instance was asked just before the answer of the first one came.
    hedged: Option<Ticket>,
    /// Part of its body went to its instance.
    moved: Option<Ticket>,
    /// A caller hung up; a timer that was due before that may still have had its request tried again.
    gone: Option<Ticket>,
    /// A run ended.
    exited: Option<Instance>,
    /// A thread let go of what it held until now, with the deadline of that.
    let_go: Option<(Instance, Time)>,
}

impl Slot {
    fn new(platform: usize) -> Slot {
        Slot {
            platform,
            run: 0,
            started_at: None,
            has_exited: false,
            is_ending: false,
            is_killed: false,
            bad_config: false,
            out: 0,
            held: Vec::new(),
            drains: false,
            open_until: None,
            at_once: false,
            edition: 0,
            passes: 0,
            draining_since: None,
            why: None,
            after_backoff: false,
            is_shed: false,
            weight: 0,
            least: 0,
        }
    }
}
