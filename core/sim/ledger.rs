//! The books that the world keeps of its own: what was promised to whom, told apart from what the conductor believes.
//!
//! `Conductor::check` asserts that its tables agree with each other. The ledger asserts what a caller, a platform or
//! an operator would notice: a request answered twice or never, work for the dead, a start too many, an end in the
//! wrong order. It sees events and actions only, and a status now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use demi_conductor::breaker::Cause;
use demi_conductor::config::{Config, Host, OnFailure, Scaler, Start, Urgency};
use demi_conductor::lifecycle::{Reason, State, Then};
use demi_conductor::scaler::{Act, Decision};
use demi_conductor::{
    Action, Answer, Ask, Conductor, Event, Exit, Instance, InstanceStatus, News, Order, Outcome, Phase, Refusal,
    RouteId, Sample, Signal, Ticket, Time, Verdict, MEGABYTE,
};

use crate::report::{Sight, Sights};

/// What a route promises.
#[derive(Clone, Copy, Debug)]
struct Promise {
    platform: usize,
    timeout: Duration,
    attempt_timeout: Duration,
    /// What the route allows for an attempt, whatever the platform does.
    route_attempt_timeout: Duration,
    attempts_max: u32,
    idempotent: bool,
    is_kept: bool,
    urgency: Option<Urgency>,
    /// Who may have it afterwards, in this order.
    chain: [Option<usize>; CHAIN_MAX],
}

/// Platforms that the world gives a route at most beside its own.
const CHAIN_MAX: usize = 2;
/// What has grown in this time may be shed before its turn, for growing.
const GROWN_LATELY: Duration = Duration::from_secs(120);
/// What a platform has weighed at most counts nearly whole for so long.
const PEAK_COUNTS: Duration = Duration::from_secs(120);

/// A request that has not ended.
#[derive(Clone, Copy, Debug)]
struct Record {
    ticket: Ticket,
    promise: Option<Promise>,
    idempotent: bool,
    urgency: Urgency,
    /// Its place among all that came to a platform, and when it came to its present one.
    arrival: u64,
    arrived_at: Time,
    deadline: Time,
    /// With whom, and with whom else.
    out: Option<Instance>,
    second: Option<Instance>,
    /// This run wants not to be asked again before this.
    deferred: Option<(Instance, Time)>,
    /// How the attempt of the first of two ended, while the second one's was made.
    first_ended: Option<Outcome>,
    /// Whoever has it was asked second.
    is_second: bool,
    /// When it was given to the first of them.
    since: Time,
    headed: bool,
    /// It delivers a message.
    is_delivery: bool,
    gone: bool,
    attempts: u32,
    /// At platforms that had it before, and how many those were.
    attempts_before: u32,
    passed_on: usize,
    misses: u32,
    /// The slot that it last failed to reach.
    missed: Option<u32>,
    /// An attempt may have been acted on, so that only an idempotent request may be tried again.
    acted_on: bool,
    /// Only an upstream can take it.
    in_parts: bool,
    /// Part of its body is with an instance, and nobody has the whole any more.
    is_moved: bool,
    /// It is not to be begun at this time or later.
    begins_before: Option<Time>,
}

impl Record {
    /// Whether this run has it.
    fn is_with(&self, instance: Instance) -> bool {
        self.out == Some(instance) || self.second == Some(instance)
    }

    /// Its platform has not tried it yet: it waits for its turn there.
    fn is_fresh(&self) -> bool {
        self.out.is_none() && self.attempts + self.misses == 0
    }

    /// This run has it no more; another may go on with it.
    fn take_from(&mut self, instance: Instance) {
        if self.second == Some(instance) {
            self.second = None;
        } else if self.out == Some(instance) {
            self.out = self.second.take();
            self.is_second = self.out.is_some();
        }
    }

    /// When the present wait or attempt is over.
    fn expires(&self) -> Time {
        match (self.out, self.promise) {
            (Some(_), Some(promise)) => self.deadline.min(self.since + promise.attempt_timeout),
            (Some(_), None) | (None, _) => self.deadline,
        }
    }
}

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

    /// Requests that have not ended.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Requests that have not ended and whose answer is not flowing.
    pub(crate) fn waiting(&self) -> usize {
        self.due.len()
    }

    pub(crate) fn is_live(&self, ticket: Ticket) -> bool {
        self.record(ticket).is_some()
    }

    /// The route's timeout, as the callers of the ticket know it.
    pub(crate) fn timeout(&self, route: Option<RouteId>) -> Duration {
        route.map_or(Duration::ZERO, |route| self.promises[route.0 as usize].timeout)
    }

    /// Whether what this route leads to takes bodies as they come. What may have to be kept as a dead letter is gathered.
    pub(crate) fn may_stream(&self, route: RouteId) -> bool {
        let promise = self.promises[route.0 as usize];
        self.platforms[promise.platform].host == Host::Http && !promise.is_kept
    }

    /// Whether the body of a request passes while it still comes.
    pub(crate) fn is_in_parts(&self, ticket: Ticket) -> bool {
        self.record(ticket).is_some_and(|record| record.in_parts)
    }

    /// The platform that a ticket was routed to.
    pub(crate) fn platform_of(&self, route: RouteId) -> usize {
        self.promises[route.0 as usize].platform
    }

    /// The request of this ticket will deliver a message on this route, which is not to be begun after a time.
    pub(crate) fn expect_delivery(&mut self, ticket: Ticket, route: RouteId, expires: Option<Time>) {
        self.deliveries.insert(ticket, (route, expires));
    }

    /// Whether an answer to this ticket is expected from this run.
    pub(crate) fn is_awaited(&self, ticket: Ticket, instance: Instance) -> bool {
        self.record(ticket).is_some_and(|record| record.is_with(instance))
    }

    fn record(&self, ticket: Ticket) -> Option<&Record> {
        self.records.get(ticket.slot())?.as_ref().filter(|record| record.ticket == ticket)
    }

    fn record_mut(&mut self, ticket: Ticket, what: &str) -> &mut Record {
        let record = self.records.get_mut(ticket.slot()).and_then(Option::as_mut);
        record
            .filter(|record| record.ticket == ticket)
            .unwrap_or_else(|| panic!("{what} of {ticket:?}, which has ended"))
    }

    fn saw(&mut self, sight: Sight) {
        self.sights.add(sight as usize, 1);
    }

    fn is_alive(&self, slot: usize) -> bool {
        self.slots[slot].run > 0 && !self.slots[slot].has_exited
    }

    /// Whether every platform that needs this one has ended.
    fn is_free(&self, platform: usize) -> bool {
        self.platforms
            .iter()
            .filter(|needy| needy.needs.contains(&platform))
            .all(|needy| needy.slots.clone().all(|slot| !self.is_alive(slot)))
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

    /// A request comes in.
    fn note_asked(&mut self, now: Time, ticket: Ticket, route: Option<RouteId>, ask: Ask, turn: &mut Turn) {
        self.arrivals += 1;
        let promise = route.map(|route| self.promises[route.0 as usize]);
        let timeout = promise.map_or(Duration::ZERO, |promise| promise.timeout);
        let record = Record {
            ticket,
            promise,
            idempotent: ask.idempotent || promise.is_some_and(|promise| promise.idempotent),
            urgency: promise.and_then(|promise| promise.urgency).unwrap_or(ask.urgency),
            arrival: self.arrivals,
            arrived_at: now,
            deadline: now + timeout,
            out: None,
            second: None,
            is_second: false,
            first_ended: None,
            deferred: None,
            since: now,
            headed: false,
            is_delivery: false,
            gone: false,
            attempts: 0,
            attempts_before: 0,
            passed_on: 0,
            misses: 0,
            missed: None,
            acted_on: false,
            in_parts: ask.in_parts,
            is_moved: false,
            begins_before: None,
        };
        if self.records.len() <= ticket.slot() {
            self.records.resize(ticket.slot() + 1, None);
        }
        assert!(self.records[ticket.slot()].is_none(), "the world issued {ticket:?} twice");
        self.records[ticket.slot()] = Some(record);
        self.due.insert((record.deadline, ticket));
        self.live += 1;
        turn.asked = Some(ticket);
        if let Some(promise) = promise {
            self.want(promise.platform, false);
        }
    }

    /// A part of a request's body is with an instance, and nobody else has it any more.
    fn note_moved(&mut self, now: Time, ticket: Ticket, instance: Instance, actions: &[Action], turn: &mut Turn) {
        let is_cancelled = actions.contains(&Action::Cancel { ticket, instance });
        if !self.is_awaited(ticket, instance) || is_cancelled {
            return;
        }
        turn.moved = Some(ticket);
        let record = self.record_mut(ticket, "a body");
        let timeout = record.promise.map_or(Duration::ZERO, |promise| promise.timeout);
        if record.headed || record.out != Some(instance) {
            return;
        }
        let before = std::mem::replace(&mut record.deadline, now + timeout);
        (record.is_moved, record.since) = (true, now);
        let after = record.deadline;
        self.due.remove(&(before, ticket));
        self.due.insert((after, ticket));
        self.saw(Sight::Moved);
    }

    /// Due timers come first in a turn: an attempt whose time is up is cancelled before its answer is looked at.
    fn note_answer(
        &mut self,
        ticket: Ticket,
        instance: Instance,
        outcome: Outcome,
        actions: &[Action],
        turn: &mut Turn,
    ) {
        let slot = &mut self.slots[instance.slot as usize];
        if slot.run == instance.run {
            if let Some(index) = slot.held.iter().position(|(held, _)| *held == ticket) {
                turn.let_go = Some((instance, slot.held.swap_remove(index).1));
            }
        }
        let is_cancelled = actions.contains(&Action::Cancel { ticket, instance });
        if !self.is_awaited(ticket, instance) || is_cancelled {
            return;
        }
        self.slots[instance.slot as usize].out -= 1;
        turn.answered = Some((ticket, instance, outcome));
        // A timer that was due before may have had a second instance asked.
        let hedge = actions.iter().find_map(|action| match *action {
            Action::Hedge { ticket: of, instance } if of == ticket => Some(instance),
            _ => None,
        });
        turn.hedged = hedge.map(|_| ticket);
        let record = self.record_mut(ticket, "an answer");
        record.second = record.second.or(hedge);
        let (is_last, was_second) = (record.second.is_none(), record.is_second);
        if !is_last && record.out == Some(instance) {
            record.first_ended = Some(outcome);
        }
        record.take_from(instance);
        // Neither of the two has done anything: then there was no attempt.
        let did_nothing = was_second && matches!(outcome, Outcome::Unsent | Outcome::Busy);
        if is_last && did_nothing && record.first_ended == Some(Outcome::Unsent) {
            record.attempts -= 1;
            if outcome == Outcome::Busy {
                record.misses += 1;
                record.missed = Some(instance.slot);
            }
        }
        match outcome {
            // Of two, one that did not arrive changes nothing for the other.
            Outcome::Unsent if !is_last => record.acted_on = true,
            Outcome::Unsent => {
                record.attempts -= u32::from(!was_second);
                record.misses += 1;
                turn.missed_again = record.missed == Some(instance.slot);
                record.missed = Some(instance.slot);
            }
            Outcome::Failed | Outcome::Broken => record.acted_on = true,
            Outcome::Replied | Outcome::Mistaken | Outcome::Busy => {}
        }
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

    /// Ready, as far as the world knows. A run whose exit is this turn's event may get work from a timer before it.
    fn assert_in_use(&self, instance: Instance, turn: &Turn, what: &str) {
        let slot = &self.slots[instance.slot as usize];
        assert_eq!(slot.run, instance.run, "{what} for an old run");
        assert!(!slot.has_exited || turn.exited == Some(instance), "{what} for {instance:?}, which is dead");
        assert!(slot.started_at.is_some(), "{what} for {instance:?}, which has not started");
        assert!(!slot.is_ending, "{what} for {instance:?}, which is ending");
    }

    /// A request is given to an instance, or to a second one.
    fn note_dispatch(
        &mut self,
        now: Time,
        ticket: Ticket,
        instance: Instance,
        is_second: bool,
        turn: &Turn,
        conductor: &Conductor,
    ) {
        self.assert_in_use(instance, turn, "work");
        if !is_second {
            self.assert_its_turn(now, ticket, turn);
        }
        let record = self.record_mut(ticket, "the dispatch");
        let promise = record.promise.unwrap_or_else(|| panic!("{ticket:?} has no route and was dispatched"));
        let is_noted = is_second && turn.hedged == Some(ticket);
        if !is_noted {
            assert_eq!(record.out.is_some(), is_second, "{ticket:?} was dispatched while {:?} has it", record.out);
            assert!(record.second.is_none() && record.out != Some(instance), "{ticket:?} was given to too many");
        }
        assert!(record.idempotent || !is_second, "{ticket:?} was given to a second instance and may not be");
        let is_gone = record.gone && turn.gone != Some(ticket);
        assert!(!is_gone && !record.headed, "{ticket:?} was dispatched and nobody waits for it");
        assert!(record.idempotent || !record.acted_on, "{ticket:?} may have been done and was tried again");
        assert!(record.attempts < promise.attempts_max + u32::from(is_second), "{ticket:?} was tried too often");
        assert!(record.deadline > now, "{ticket:?} was dispatched after its time");
        let is_late = record.attempts == 0 && record.begins_before.is_some_and(|late| late <= now);
        assert!(!is_late, "{ticket:?} delivers a message that is too late");
        // A timer that was due before its body moved may have had a second instance asked.
        let is_whole = !record.is_moved || (is_second && turn.moved == Some(ticket));
        assert!(is_whole, "{ticket:?} was given to another and nobody has its body any more");
        let in_parts = record.in_parts;
        let is_early = record.deferred.is_some_and(|(run, until)| run == instance && until > now);
        assert!(!is_early, "{ticket:?} was given to {instance:?} before the time that it had asked for");
        record.deferred = None;
        let is_retry = record.attempts + record.misses > 0 && !is_second;
        if is_noted {
            // With the answer that came in the same turn.
        } else if is_second {
            record.second = Some(instance);
        } else {
            record.attempts += 1;
            (record.is_second, record.first_ended) = (false, None);
            (record.out, record.since) = (Some(instance), now);
        }
        let deadline = record.deadline;
        let in_flight_max = self.platforms[promise.platform].in_flight_max;
        let entry = &mut self.platforms[promise.platform];
        assert!(!entry.is_isolated, "{ticket:?} was dispatched to what is isolated");
        let slot = &mut self.slots[instance.slot as usize];
        assert!(
            entry.proven.contains(&slot.edition),
            "{instance:?} was given work before its edition has proven itself"
        );
        assert_eq!(slot.platform, promise.platform, "{ticket:?} went to another platform than its route's");
        let takes = !in_parts || self.platforms[promise.platform].host == Host::Http;
        assert!(takes, "{ticket:?} was given to {instance:?} before all of its body was there");
        assert!(!slot.drains, "{instance:?} was given {ticket:?} and wants no new requests");
        slot.out += 1;
        assert!(slot.out <= in_flight_max, "{instance:?} was given more than it takes");
        if matches!(self.platforms[promise.platform].host, Host::Threads(_)) {
            slot.held.push((ticket, deadline));
            assert!(slot.held.len() <= in_flight_max as usize, "{instance:?} holds more than it has hands");
        }
        let open_until = slot.open_until;
        let (of_platform, slots) = {
            let platform = &self.platforms[promise.platform];
            (platform.open_until, platform.slots.clone())
        };
        let is_held = of_platform.is_some_and(|until| until > now);
        assert!(!is_held, "{ticket:?} was dispatched while the breaker of its platform is open");
        if of_platform.is_some() {
            self.saw(Sight::Trial);
        }
        match open_until {
            Some(until) if until > now => {
                // Among those that are well, as far as the conductor tells of that.
                let is_well = |slot: &usize| {
                    let entry = &self.slots[*slot];
                    let with = Instance { slot: *slot as u32, run: entry.run };
                    let is_up = |told: InstanceStatus| {
                        matches!(told.state, "ready" | "degraded" | "wedged") && told.health != "down"
                    };
                    let is_up = || status(conductor, with).is_some_and(is_up);
                    let is_started = self.is_alive(*slot) && entry.started_at.is_some();
                    let is_in_use = is_started && !entry.is_ending && !entry.drains;
                    is_in_use && (with == instance || is_up())
                };
                let is_out = |slot: &usize| self.slots[*slot].open_until.is_some();
                let well = slots.filter(is_well);
                let (all, out) = (well.clone().count(), well.filter(is_out).count());
                // What the conductor tells is how things were after the turn.
                let is_most = out * 2 > all || turn.is_stirred;
                assert!(is_most, "{instance:?} was given work while its breaker is open");
                self.saw(Sight::Panicked);
            }
            // The conductor alone knows whether it has closed since.
            Some(_) if status(conductor, instance).is_some_and(|status| status.breaker == "half_open") => {
                self.saw(Sight::Trial);
            }
            Some(_) | None => {}
        }
        if is_second {
            self.saw(Sight::Hedged);
        }
        if is_retry {
            self.saw(Sight::Retried);
        }
    }

    /// What has not been tried by its platform yet is given to an instance only after all that are more urgent, or as urgent
    /// and have come before it.
    fn assert_its_turn(&mut self, now: Time, ticket: Ticket, turn: &Turn) {
        let Some(record) = self.record(ticket).filter(|record| record.is_fresh()).copied() else { return };
        let platform = record.promise.map(|promise| promise.platform);
        // What came in this turn came after the timers that were due.
        let waits = |other: &&Record| {
            let is_there =
                other.promise.map(|promise| promise.platform) == platform && turn.asked != Some(other.ticket);
            is_there && other.is_fresh() && other.ticket != ticket && other.deadline > now
        };
        let mut is_overtaken = false;
        for other in self.records.iter().flatten().filter(waits) {
            let turns = [&record, other].map(|record| (record.urgency as usize, record.arrival));
            assert!(turns[0] < turns[1], "{ticket:?} was dispatched before {:?}, whose turn it was", other.ticket);
            is_overtaken |= other.urgency != record.urgency && other.arrival < record.arrival;
        }
        if is_overtaken {
            self.saw(Sight::Overtaken);
        }
    }

    fn note_cancel(&mut self, now: Time, ticket: Ticket, instance: Instance, rest: &[Action], turn: &Turn) {
        let is_answered = turn.headed == Some(ticket) || turn.answered.is_some_and(|(of, _, _)| of == ticket);
        let record = self.record_mut(ticket, "the cancellation");
        assert!(record.is_with(instance), "an attempt was cancelled that is not made");
        let has_expired = record.expires() <= now && (!record.headed || record.is_delivery);
        let is_gone = record.gone;
        let draining = |action: &Action| matches!(action, Action::Answer { ticket: of, answer: Answer::Refused(Refusal::Draining, _) } if *of == ticket);
        let is_refused = rest.iter().any(draining);
        assert!(has_expired || is_gone || is_refused || is_answered, "{ticket:?} was cut short at {instance:?}");
        record.take_from(instance);
        record.acted_on = true;
        self.slots[instance.slot as usize].out -= 1;
        self.saw(Sight::Cancelled);
    }

    /// Who has the request next, if its platform does not take it, and the place of that one in its route's chain.
    fn next_of(&self, ticket: Ticket) -> Option<(usize, usize)> {
        let record = self.record(ticket)?;
        let chain = record.promise?.chain;
        let takes = |next: usize| !record.in_parts || self.platforms[next].host == Host::Http;
        (record.passed_on..CHAIN_MAX).filter_map(|place| Some((place, chain[place]?))).find(|(_, next)| takes(*next))
    }

    /// Another platform has the request from here on: the next of its route's.
    fn note_fall_back(&mut self, now: Time, ticket: Ticket, platform: usize, turn: &Turn) {
        let request_timeout = self.platforms[platform].request_timeout;
        let phase = self.phase;
        self.arrivals += 1;
        let mut arrival = self.arrivals;
        // The timers that were due came before what was asked in this turn.
        if let Some(asked) = turn.asked.filter(|asked| *asked != ticket && self.record(*asked).is_some()) {
            std::mem::swap(&mut self.record_mut(asked, "what was asked").arrival, &mut arrival);
        }
        let place = self
            .next_of(ticket)
            .and_then(|(place, next)| (next == platform).then_some(place))
            .unwrap_or_else(|| panic!("{ticket:?} went to another platform than the next of its route's"));
        let record = self.record_mut(ticket, "the fallback");
        (record.arrival, record.arrived_at) = (arrival, now);
        let promise = record.promise.as_mut().unwrap_or_else(|| panic!("{ticket:?} has no route and was passed on"));
        let last = std::mem::replace(&mut promise.platform, platform);
        let attempt_timeout = promise.route_attempt_timeout;
        promise.attempt_timeout = attempt_timeout.min(request_timeout.unwrap_or(attempt_timeout));
        // A timer that was due before its caller hung up may have passed it on.
        let is_gone = record.gone && turn.gone != Some(ticket);
        assert!(!record.headed && !is_gone && record.deadline > now, "{ticket:?} was passed on too late");
        let may_be_done = record.acted_on || record.out.is_some();
        assert!(record.idempotent || !may_be_done, "{ticket:?} may have been done and was passed on");
        assert!(!record.is_moved, "{ticket:?} was passed on and nobody has its body any more");
        assert!(record.second.is_none(), "{ticket:?} was passed on and the second that has it was not told");
        assert_eq!(phase, Phase::Running, "{ticket:?} was passed on while Demi ends");
        let holder = record.out.take();
        record.attempts_before += record.attempts;
        (record.attempts, record.misses, record.missed) = (0, 0, None);
        record.passed_on = place + 1;
        if let Some(with) = holder {
            assert_eq!(turn.exited, Some(with), "{ticket:?} was passed on and {with:?} was not told");
            self.slots[with.slot as usize].out -= 1;
        }
        self.platforms[last].used_at = now;
        self.platforms[platform].used_at = now;
        self.want(platform, false);
        self.saw(Sight::PassedOn);
    }

    fn note_end(&mut self, now: Time, ticket: Ticket, answer: Answer, turn: &Turn) {
        let record = *self.record_mut(ticket, "another end");
        let is_answered = turn.answered.is_some_and(|(of, _, _)| of == ticket);
        let holder = record.out;
        let is_late = record.begins_before.is_some_and(|late| late <= now);
        let is_up = record.expires() <= now || record.deadline <= now || is_late;
        let (fits, sight) = match answer {
            Answer::Relayed => (is_answered, Sight::Relayed),
            Answer::Broken => (is_answered || (holder.is_some() && holder == turn.exited), Sight::Broken),
            Answer::TimedOut => {
                let may_end = !record.headed || record.is_delivery;
                (holder.is_none() && may_end && record.attempts > 0, Sight::TimedOut)
            }
            Answer::NoRoute => (record.promise.is_none(), Sight::NoRoute),
            // Of a message that is too late nobody is asked.
            Answer::Unheard => (record.gone || is_late, Sight::Unheard),
            Answer::Refused(Refusal::QueueTimeout, _) => (is_up && record.attempts == 0, Sight::QueueTimeout),
            // It waited for its platform's turn already.
            Answer::Refused(Refusal::QueueFull, _) if record.is_fresh() && record.arrived_at < now => {
                let urgency = record.urgency as usize;
                let platform = record.promise.map(|promise| promise.platform);
                let others = self.records.iter().flatten();
                let mut rivals = others.filter(|other| other.promise.map(|promise| promise.platform) == platform);
                let gives_way = rivals.any(|other| (other.urgency as usize) < urgency && other.arrived_at <= now);
                (gives_way, Sight::Displaced)
            }
            Answer::Refused(Refusal::QueueFull, _) => (true, Sight::QueueFull),
            Answer::Refused(Refusal::QueueAge, _) => {
                let platform = record.promise.map(|promise| promise.platform);
                let max = platform.and_then(|platform| self.platforms[platform].queue_age_max);
                let has_waited = |other: &Record| {
                    other.promise.map(|promise| promise.platform) == platform
                        && other.out.is_none()
                        && other.urgency as usize <= record.urgency as usize
                        && max.is_some_and(|max| now - other.arrived_at > max)
                };
                (self.records.iter().flatten().any(has_waited), Sight::QueueAge)
            }
            Answer::Refused(Refusal::BreakerOpen, _) => (true, Sight::BreakerOpen),
            Answer::Refused(Refusal::NotReady, _) => (true, Sight::NotReady),
            Answer::Refused(Refusal::Draining, _) => (true, Sight::Draining),
            Answer::Refused(Refusal::Isolated, _) => (true, Sight::Isolated),
            Answer::Refused(Refusal::Shed, after) => {
                let may_be = record.promise.is_some_and(|promise| self.platforms[promise.platform].may_be_shed);
                (self.sheds() && may_be && after >= Duration::from_secs(1), Sight::NoRam)
            }
            Answer::Refused(Refusal::TooMany, _) => (record.attempts == 0, Sight::TooMany),
        };
        assert!(fits, "{answer:?} is not what came of {record:?}");
        assert!(record.second.is_none(), "{ticket:?} ended and the second that has it was not told");
        if let Some(with) = holder {
            assert_eq!(turn.exited, Some(with), "{ticket:?} ended with {answer:?} and {with:?} was not told");
            self.slots[with.slot as usize].out -= 1;
        }
        let was_asked = answer != Answer::Unheard || record.gone;
        if let Some(promise) = record.promise.filter(|_| was_asked) {
            self.platforms[promise.platform].used_at = now;
        }
        self.due.remove(&(record.deadline, ticket));
        self.records[ticket.slot()] = None;
        self.live -= 1;
        self.saw(sight);
    }

    /// A request or a person wants it, and with it all that it needs.
    fn want(&mut self, platform: usize, is_by_hand: bool) {
        let entry = &mut self.platforms[platform];
        entry.is_wanted = true;
        if is_by_hand {
            entry.is_stopped = false;
        }
        for need in entry.needs.clone() {
            self.want(need, is_by_hand);
        }
    }

    /// Whether anything is done about RAM.
    fn sheds(&self) -> bool {
        self.scaler.enabled && !self.scaler.forecast_only
    }

    /// Whether it was shed and will come back by itself.
    pub(crate) fn is_shed(&self, platform: usize) -> bool {
        let entry = &self.platforms[platform];
        entry.shed_at.is_some() && !entry.is_stopped
    }

    fn note_sample(&mut self, now: Time, sample: Sample) {
        let used = sample.ram_total.saturating_sub(sample.ram_available);
        // Two at one moment: calm is counted by the first.
        let is_second = self.ram_at == Some(now);
        self.ram_at = (used > 0).then_some(now);
        if used == 0 || self.phase != Phase::Running {
            return;
        }
        self.freed = (0, self.freed.0);
        self.ram = (used, sample.ram_total);
        self.ram_permille = (u128::from(used) * 1000 / u128::from(sample.ram_total)) as u64;
        let is_calm =
            u128::from(used) * 100 <= u128::from(sample.ram_total) * u128::from(self.scaler.restore_percent.value());
        if !is_second {
            self.calm_since = if is_calm { self.calm_since.or(Some(now)) } else { None };
        }
    }

    /// What was decided about RAM may be.
    fn note_decision(&mut self, now: Time, decision: &Decision, rest: &[Action], turn: &Turn, conductor: &Conductor) {
        assert!(self.scaler.enabled, "{decision:?} and nobody watches RAM");
        assert_eq!(decision.is_done, !self.scaler.forecast_only, "{decision:?}");
        if !decision.is_done {
            return self.saw(Sight::WouldHave);
        }
        let (ram, platform) = (self.ram_permille, decision.platform.map(|platform| platform as usize));
        match decision.act {
            Act::Trim => self.saw(Sight::TrimmedAll),
            Act::Exhausted => self.saw(Sight::Exhausted),
            Act::Sleep => self.saw(Sight::SleptForRam),
            Act::Refuse { missing } => self.note_refusal(now, platform.expect("one is refused"), missing, rest),
            Act::Restore => {
                let platform = platform.expect("one is restored");
                let calm = self.calm_since.map(|since| now - since);
                let is_calm = calm.is_some_and(|calm| calm >= self.scaler.calm_ms.millis());
                let is_held = self.platforms[platform].is_held_back;
                assert!(is_calm || is_held, "{platform} came back after {calm:?} of calm");
                self.assert_it_fits(now, platform);
                let shed_at = self.platforms[platform].shed_at;
                let is_next = (0..self.platforms.len())
                    .all(|other| self.platforms[other].shed_at <= shed_at || self.may_let_pass(other));
                assert!(
                    shed_at.is_some() && (is_next || is_held),
                    "{platform} came back before what was shed after it"
                );
                let entry = &mut self.platforms[platform];
                (entry.has_come_back, entry.is_held_back) = (true, false);
                self.calm_since = Some(now);
                self.saw(Sight::Restored);
            }
            Act::Shed | Act::Kill => {
                let platform = platform.expect("one is shed");
                assert!(ram >= self.scaler.restore_percent.value() * 10, "{platform} was shed at {ram}");
                let is_emergency = ram >= self.scaler.emergency_percent.value() * 10;
                assert!(decision.act == Act::Shed || is_emergency, "{platform} was killed at {ram}");
                self.assert_its_time(now, platform, is_emergency, turn, conductor);
                self.saw(if decision.act == Act::Shed { Sight::Shed } else { Sight::PutDown });
                let entry = &mut self.platforms[platform];
                entry.is_held_back = false;
                if entry.shed_at.is_none() {
                    entry.shed_at = Some(now);
                    let window = self.scaler.calm_ms.millis() * 12;
                    entry.sheds.retain(|at| now - *at < window);
                    entry.sheds.push(now);
                    assert!(entry.sheds.len() <= 5, "{platform} comes and goes: {:?}", entry.sheds);
                }
            }
            Act::Overrule { .. } | Act::Won { .. } | Act::Wait { .. } | Act::Delay | Act::Believe(_) => {}
        }
    }

    /// Whether something may keep it from coming back: it has not ended, it came back in vain before, it waits for room only, or
    /// it may not fit.
    fn may_let_pass(&self, platform: usize) -> bool {
        let entry = &self.platforms[platform];
        let ends = entry.slots.clone().any(|slot| self.is_alive(slot));
        ends || entry.has_come_back || entry.is_held_back || self.may_be_too_much()
    }

    /// Whether everything that is known to weigh something, with all of its instances and itself once more, is too much.
    fn may_be_too_much(&self) -> bool {
        let known = |of: &Platform| of.peak.0.max(of.recalled) * (of.slots.len() as u64 + 1);
        let (used, total) = self.ram;
        used.saturating_add(self.platforms.iter().map(known).sum()) >= total / 100 * self.scaler.shed_percent.value()
    }

    /// A platform is not started: an instance of it that was to be is shed, or a request or a person has come in vain.
    fn note_refusal(&mut self, now: Time, platform: usize, missing: u64, rest: &[Action]) {
        let is_held = rest.iter().any(|action| match action {
            Action::Tell { platform: of, news: News::State { now: State::Shed, reason, .. }, .. } => {
                *of as usize == platform && *reason == (Reason::NoRoom { missing })
            }
            _ => false,
        });
        if !is_held {
            return self.saw(Sight::TooHeavy);
        }
        let entry = &self.platforms[platform];
        let is_needed = self.platforms.iter().any(|needy| needy.needs.contains(&platform) && !needy.may_be_shed);
        assert!(entry.may_be_shed && !is_needed, "{platform} is held back and may not be");
        let is_known = entry.peak.0.max(entry.recalled) > 0;
        assert!(is_known || !entry.needs.is_empty(), "{platform} is held back and nobody has weighed it");
        assert!(self.may_be_too_much(), "{platform} is held back and fits: {:?}", self.ram);
        let entry = &mut self.platforms[platform];
        entry.is_held_back |= entry.shed_at.is_none();
        entry.shed_at = entry.shed_at.or(Some(now));
        self.saw(Sight::HeldBack);
    }

    /// With what a platform is known to weigh at most, RAM stays below the threshold.
    fn assert_it_fits(&self, now: Time, platform: usize) {
        let entry = &self.platforms[platform];
        let (peak, at) = entry.peak;
        let known = if now - at < PEAK_COUNTS { peak / 10 * 9 } else { 0 };
        let shed = entry.slots.clone().filter(|slot| self.slots[*slot].is_shed).count() as u64;
        let (used, total) = self.ram;
        let limit = total / 100 * self.scaler.shed_percent.value();
        assert!(used + known * shed < limit, "{platform} came back and does not fit: {used} {known} {limit}");
    }

    /// It is started again by itself, and it is not certain that it does not fit.
    fn assert_it_may_fit(&self, now: Time, platform: usize) {
        let entry = &self.platforms[platform];
        let (peak, at) = entry.peak;
        let is_known = now - at < PEAK_COUNTS && peak > 0;
        let is_fresh = self.ram_at.is_some_and(|at| now - at <= self.scaler.interval_ms.millis() * 3);
        // A person, or a reload, had a hand in it; or something needs it.
        let is_touched = entry.ordered_at.is_some_and(|at| now - at < Duration::from_secs(7_200));
        let is_needed = self.platforms.iter().any(|needy| needy.needs.contains(&platform));
        let is_watched = self.sheds() && self.phase == Phase::Running;
        if !is_watched || !entry.may_be_shed || !is_known || !is_fresh || is_touched || is_needed {
            return;
        }
        let (used, total) = self.ram;
        let rest = used.saturating_sub(self.freed.0 + self.freed.1);
        let limit = total / 100 * self.scaler.shed_percent.value();
        assert!(rest + peak / 10 * 9 < limit, "{platform} was started again and does not fit: {rest} {peak} {limit}");
    }

    /// Nobody whose priority is lower is left who may be shed, as far as the books know.
    fn assert_its_time(&self, now: Time, platform: usize, is_emergency: bool, turn: &Turn, conductor: &Conductor) {
        let entry = &self.platforms[platform];
        assert!(entry.may_be_shed, "{platform} was shed and may not be");
        let runs = |of: &Platform| of.slots.clone().any(|slot| self.is_alive(slot));
        let needed = |index: usize| self.platforms.iter().any(|needy| needy.needs.contains(&index) && runs(needy));
        // One that drains already is put down whoever has come to need it meanwhile.
        let is_anew = entry.shed_at.is_none();
        assert!(!is_anew || !needed(platform) || turn.exited.is_some(), "{platform} was shed and is needed");
        if is_emergency || !is_anew || turn.exited.is_some() {
            return;
        }
        let lately = self.scaler.calm_ms.millis() + Duration::from_secs(60);
        for (index, told) in conductor.platforms().enumerate() {
            let other = &self.platforms[index];
            let is_touched = other.ordered_at.is_some_and(|at| now - at < lately) || told.is_reloading;
            let is_in_use = |slot: usize| {
                self.is_alive(slot) && self.slots[slot].started_at.is_some() && !self.slots[slot].is_ending
            };
            let is_in_order = other.slots.clone().all(|slot| self.slots[slot].draining_since.is_none());
            let stands = other.slots.clone().any(is_in_use) && is_in_order && other.shed_at.is_none();
            let goes_first = other.may_be_shed && other.priority < entry.priority && stands;
            let grows = self.scaler.use_forecasts && entry.grown_at.is_some_and(|at| now - at < GROWN_LATELY);
            assert!(!goes_first || needed(index) || is_touched || grows, "{platform} was shed before {index}");
        }
    }

    fn note_order(&mut self, now: Time, order: Order, actions: &[Action]) {
        let is_heard = self.phase == Phase::Running;
        self.note_hand(now, order);
        match order {
            Order::Shutdown => {}
            Order::Start { platform } if is_heard => {
                self.platforms[platform as usize].is_isolated = false;
                self.forgive(platform as usize);
                self.want(platform as usize, true);
            }
            Order::Restart { platform } if is_heard => {
                self.forgive(platform as usize);
                self.want(platform as usize, true);
            }
            // What a timer of the same turn still gives it came before.
            Order::Isolate { platform } if is_heard => {
                let is_late = |action: &Action| matches!(action, Action::Dispatch { .. });
                self.platforms[platform as usize].is_isolated = !actions.iter().any(is_late);
            }
            Order::Reload { platform, edition, .. } => {
                self.platforms[platform as usize].editions.insert(edition);
                if is_heard {
                    self.forgive(platform as usize);
                }
            }
            // It is stopped once those that need it have ended: see `note_news`.
            Order::Start { .. }
            | Order::Restart { .. }
            | Order::Isolate { .. }
            | Order::Close { .. }
            | Order::Stop { .. }
            | Order::Retire { .. } => {}
        }
    }

    /// Somebody has a hand in a platform, and in what it needs.
    fn note_hand(&mut self, now: Time, order: Order) {
        let (Order::Start { platform }
        | Order::Stop { platform }
        | Order::Retire { platform }
        | Order::Restart { platform }
        | Order::Reload { platform, .. }
        | Order::Isolate { platform }
        | Order::Close { platform }) = order
        else {
            return;
        };
        let mut open = vec![platform as usize];
        while let Some(platform) = open.pop() {
            self.platforms[platform].ordered_at = Some(now);
            self.platforms[platform].sheds.clear();
            open.extend(self.platforms[platform].needs.iter().copied());
            let needy = (0..self.platforms.len()).filter(|other| {
                let entry = &self.platforms[*other];
                entry.needs.contains(&platform) && entry.ordered_at != Some(now)
            });
            open.extend(needy);
        }
    }

    /// What it was left alone for may have been mended, and what it needs as well.
    fn forgive(&mut self, platform: usize) {
        for slot in self.platforms[platform].slots.clone() {
            self.slots[slot].bad_config = false;
        }
        for need in self.platforms[platform].needs.clone() {
            self.forgive(need);
        }
    }

    fn note_news(&mut self, now: Time, platform: usize, instance: Option<Instance>, news: News, turn: &Turn) {
        match (news, instance) {
            (News::State { was, now: state, reason }, Some(instance)) => {
                let slot = &mut self.slots[instance.slot as usize];
                slot.after_backoff = matches!(was, State::Backoff { .. });
                slot.why = Some(reason);
                slot.is_shed = matches!(
                    state,
                    State::Shed | State::Draining { then: Then::Shed } | State::Stopping { then: Then::Shed }
                );
                if slot.is_shed {
                    let is_fine = self.sheds() && self.platforms[platform].may_be_shed;
                    assert!(is_fine, "{instance:?} was shed and may not be");
                } else {
                    let slots = self.platforms[platform].slots.clone();
                    if !self.slots[slots].iter().any(|slot| slot.is_shed) {
                        self.platforms[platform].shed_at = None;
                    }
                }
                match state {
                    State::Draining { then } => {
                        let is_stopped = then == Then::Rest && matches!(reason, Reason::ByHand | Reason::Gone);
                        assert!(!is_stopped || self.is_free(platform), "{instance:?} was stopped before what needs it");
                        let slot = &mut self.slots[instance.slot as usize];
                        slot.draining_since = slot.draining_since.or(Some(now));
                        let has_work = slot.out > 0;
                        let is_of_breaker = reason == Reason::BreakerOpened;
                        if then == Then::Sleep && reason == Reason::Idle {
                            self.note_sleep(now, platform, turn);
                        }
                        if is_of_breaker {
                            self.saw(Sight::BreakerRestart);
                        }
                        if has_work {
                            self.saw(Sight::Drained);
                        }
                    }
                    State::Starting if was == State::Waiting => {
                        let needs = self.platforms[platform].needs.clone();
                        for need in needs.iter().map(|need| &self.platforms[*need]) {
                            let is_up = |slot: usize| self.is_alive(slot) && self.slots[slot].started_at.is_some();
                            assert!(need.slots.clone().any(is_up), "{instance:?} was started before what it needs");
                        }
                        let is_held = !self.platforms[platform].lost.is_empty() && self.phase == Phase::Running;
                        assert!(
                            !(is_held && matches!(reason, Reason::Unreachable { .. })),
                            "{instance:?} was started again before what it lies behind was back"
                        );
                        match reason {
                            Reason::Unreachable { .. } => self.saw(Sight::Held),
                            Reason::Asked => self.saw(Sight::Woken),
                            Reason::NeedRestarts => self.saw(Sight::Followed),
                            _ => {}
                        }
                    }
                    State::Stopped if matches!(reason, Reason::ByHand | Reason::Gone) => {
                        self.platforms[platform].is_stopped = true
                    }
                    State::Starting if was != State::Waiting => {
                        let is_held = !self.platforms[platform].lost.is_empty() && self.phase == Phase::Running;
                        assert!(!is_held, "{instance:?} was started again while what it lies behind is away");
                        if reason == Reason::BackoffOver {
                            self.assert_it_may_fit(now, platform);
                        }
                    }
                    // One of a new edition makes room instead: it has not proven itself.
                    State::Stopping { then: Then::Again } if reason == Reason::HealthFailed => {
                        let is_excused = !self.platforms[platform].lost.is_empty();
                        assert!(!is_excused, "{instance:?} was ended while what it lies behind is away");
                    }
                    State::Failed => self.saw(match reason {
                        Reason::BudgetSpent { .. } => Sight::Spent,
                        _ => Sight::BadConfig,
                    }),
                    _ => {}
                }
                match reason {
                    Reason::MemoryLimit { .. } | Reason::ProcessLimit { .. } => self.saw(Sight::Limited),
                    Reason::DescriptorLimit { .. } => self.saw(Sight::Leaked),
                    _ => {}
                }
            }
            (News::SwapDone, _) => {
                self.forgive(platform);
                self.saw(Sight::SwapDone);
            }
            (News::SwapFailed { .. }, _) => {
                // What said that its configuration is bad was of the new edition.
                self.forgive(platform);
                self.saw(Sight::SwapFailed);
            }
            (News::Extended { .. }, _) => self.saw(Sight::Extended),
            (News::DrainBegan, Some(instance)) => {
                assert!(self.slots[instance.slot as usize].drains, "{instance:?} was told to want no requests");
                self.saw(Sight::Withdrew);
            }
            (News::DrainEnded, Some(instance)) => {
                assert!(!self.slots[instance.slot as usize].drains, "{instance:?} was told to want requests");
                self.saw(Sight::Resumed);
            }
            (News::BreakerOpened { cause, until }, Some(instance)) => {
                let is_excused = !self.platforms[platform].lost.is_empty();
                let is_passive = !matches!(cause, Cause::ProbeFailed | Cause::Slower { .. } | Cause::FailsMore { .. });
                assert!(!(is_excused && is_passive), "{instance:?} was cut off for what it lies behind");
                self.slots[instance.slot as usize].open_until = Some(until);
                self.see_cause(cause);
            }
            (News::BreakerOpened { until, .. }, None) => {
                assert!(self.platforms[platform].lost.is_empty(), "{platform} was cut off for what it lies behind");
                self.platforms[platform].open_until = Some(until);
                self.saw(Sight::PlatformOpened);
            }
            (News::BreakerClosed { is_by_hand }, instance) => {
                match instance {
                    Some(instance) => self.slots[instance.slot as usize].open_until = None,
                    None => self.platforms[platform].open_until = None,
                }
                self.saw(if is_by_hand { Sight::ClosedByHand } else { Sight::Closed });
            }
            (News::Acquitted { .. }, Some(instance)) => {
                self.slots[instance.slot as usize].open_until = None;
                self.saw(Sight::Acquitted);
            }
            (News::Reinitialized { done: true }, _) => self.saw(Sight::Reinitialized),
            (News::Unreachable { target }, _) => {
                self.platforms[platform].lost.insert(target);
                self.saw(Sight::Unreachable);
            }
            (News::Reachable { target }, _) => {
                self.platforms[platform].lost.remove(&target);
                self.saw(Sight::Reachable);
                // What is open is tried at once.
                let slots = self.platforms[platform].slots.clone();
                let untils = self.slots[slots].iter_mut().map(|slot| &mut slot.open_until);
                for until in untils.chain([&mut self.platforms[platform].open_until]).flatten() {
                    *until = now.min(*until);
                }
            }
            (_, _) => {}
        }
    }

    fn see_cause(&mut self, cause: Cause) {
        match cause {
            Cause::Slower { .. } => self.saw(Sight::Slower),
            Cause::FailsMore { .. } => self.saw(Sight::FailsMore),
            Cause::SlowRate { .. } => self.saw(Sight::SlowRate),
            Cause::FailureRate { .. } => self.saw(Sight::FailureRate),
            Cause::InARow(_) | Cause::TrialFailed | Cause::ProbeFailed => {}
        }
    }

    fn note_sleep(&mut self, now: Time, platform: usize, turn: &Turn) {
        let entry = &self.platforms[platform];
        let after = entry.sleep_after.expect("only what may sleep is put to sleep");
        assert!(now - entry.used_at >= after, "platform {platform} was put to sleep before it was idle for {after:?}");
        let is_of = |record: &&Record| {
            turn.asked != Some(record.ticket) && record.promise.is_some_and(|promise| promise.platform == platform)
        };
        assert_eq!(self.records.iter().flatten().find(is_of).map(|record| record.ticket), None, "it had work");
        self.saw(Sight::Slept);
    }

    fn note_start(&mut self, now: Time, instance: Instance, edition: u32, turn: &Turn) {
        let index = instance.slot as usize;
        let slot = &self.slots[index];
        assert!(!self.is_alive(index), "{instance:?} was started while run {} is alive", slot.run);
        assert_eq!(slot.run + 1, instance.run, "runs go up by one");
        assert!(!slot.bad_config, "{instance:?} was started again with a bad configuration");
        assert!(self.phase <= Phase::Stopping, "{instance:?} was started while the rest is put down");
        let entry = &self.platforms[slot.platform];
        let is_needed = self.platforms.iter().any(|needy| needy.is_wanted && needy.needs.contains(&slot.platform));
        assert!(entry.is_wanted || is_needed || entry.editions.len() > 1, "{instance:?} was started unasked");
        assert!(!entry.is_stopped || turn.exited.is_some(), "{instance:?} was started after it was stopped by hand");
        assert!(entry.editions.contains(&edition), "{instance:?} was started from edition {edition}, which is gone");
        if instance.run > 1 {
            self.saw(Sight::Restarted);
        }
        let slot = &self.slots[index];
        let is_same_turn = turn.exited.is_some_and(|exited| exited.slot == instance.slot);
        let lasted = slot.started_at.is_some_and(|since| now - since >= self.forget);
        let is_at_once = is_same_turn && slot.after_backoff;
        assert!(!(is_at_once && slot.at_once && !lasted), "{instance:?} was started at once twice in a row");
        let fresh = Slot::new(slot.platform);
        self.slots[index] = Slot { run: instance.run, at_once: is_at_once, edition, ..fresh };
    }

    fn note_signal(&mut self, now: Time, instance: Instance, signal: Signal, turn: &Turn, conductor: &Conductor) {
        let index = instance.slot as usize;
        assert_eq!(self.slots[index].run, instance.run, "a signal for an old run");
        assert!(self.is_alive(index) || turn.exited == Some(instance), "a signal for {instance:?}, which is dead");
        let has_started = self.slots[index].started_at.is_some();
        let was_ending = std::mem::replace(&mut self.slots[index].is_ending, true);
        if signal == Signal::Kill {
            self.slots[index].is_killed = true;
            let is_late = !was_ending && !has_started;
            return self.saw(if is_late { Sight::StartTimeout } else { Sight::Killed });
        }
        if signal == Signal::Terminate {
            return assert!(was_ending, "{instance:?} was sent TERM before it was asked to end");
        }
        assert!(!was_ending, "{instance:?} was told to end twice");
        // As it was told before, and not as it is after the turn: more than one thing may happen in it.
        let Some(why) = self.slots[index].why else { return };
        let platform = self.slots[index].platform;
        let entry = &self.slots[index];
        if is_gentle(why) && entry.out > 0 && turn.answered.is_none() && turn.exited.is_none() {
            let is_over = entry.draining_since.is_some_and(|since| now - since >= self.platforms[platform].drain);
            assert!(
                is_over,
                "{instance:?} was told to end with requests in hand before its time to drain was over: {why}"
            );
        }
        if why == Reason::Shutdown && conductor.phase() == Phase::Stopping {
            assert!(self.is_free(platform), "{instance:?} was stopped before what needs it");
        } else if why == Reason::Wedged {
            let let_go = turn.let_go.filter(|(of, _)| *of == instance).map(|(_, deadline)| deadline);
            let held = self.slots[index].held.iter().map(|(_, deadline)| *deadline);
            let patience = self.platforms[platform].wedged;
            let is_stuck = held.chain(let_go).any(|deadline| deadline + patience <= now);
            assert!(is_stuck, "{instance:?} was given up as wedged and has held nothing for that long");
            self.saw(Sight::Wedged);
        } else if why == Reason::HealthFailed {
            self.saw(Sight::Sick);
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

/// For such a reason nothing is ended before its requests have.
fn is_gentle(why: Reason) -> bool {
    matches!(
        why,
        Reason::ByHand
            | Reason::Idle
            | Reason::NeedStopped
            | Reason::NeedRestarts
            | Reason::Replaced
            | Reason::BreakerOpened
            | Reason::RamShort { .. }
            | Reason::RamForecast { .. }
            | Reason::RamSpike { .. }
    )
}

/// What the conductor shows of an instance.
fn status(conductor: &Conductor, instance: Instance) -> Option<InstanceStatus> {
    let mut platforms = conductor.platforms();
    let platform = platforms.nth(conductor.platform_of(instance))?;
    platform.instances.into_iter().find(|status| status.slot == instance.slot)
}
