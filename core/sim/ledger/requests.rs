//! Requests and what they were promised: to be tried so often, passed on to whom their route names, and ended once, in time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use demi_conductor::config::{Config, Host, OnFailure, Urgency};
use demi_conductor::{Answer, Ask, Instance, Outcome, Phase, Refusal, RouteId, Ticket, Time};

use super::{position, Ledger, Turn};
use crate::report::Sight;

/// What a route promises.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    pub(super) platform: usize,
    pub(super) timeout: Duration,
    attempt_timeout: Duration,
    /// What the route allows for an attempt, whatever the platform does.
    route_attempt_timeout: Duration,
    pub(super) attempts_max: u32,
    idempotent: bool,
    is_kept: bool,
    urgency: Option<Urgency>,
    /// Who may have it afterwards, in this order.
    chain: [Option<usize>; CHAIN_MAX],
}

/// Platforms that the world gives a route at most beside its own.
const CHAIN_MAX: usize = 2;

/// All requests that have not ended, and what routes promise them.
#[derive(Debug)]
pub(super) struct Requests {
    promises: Vec<Promise>,
    pub(super) records: Vec<Option<Record>>,
    /// Routes of requests that are about to deliver messages.
    deliveries: BTreeMap<Ticket, (RouteId, Option<Time>)>,
    /// Requests whose end is due at a time: all but those whose answer is flowing.
    pub(super) due: BTreeSet<(Time, Ticket)>,
    pub(super) live: usize,
    arrivals: u64,
}

/// A request that has not ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) ticket: Ticket,
    pub(super) promise: Option<Promise>,
    pub(super) idempotent: bool,
    pub(super) urgency: Urgency,
    /// Its place among all that came to a platform, and when it came to its present one.
    pub(super) arrival: u64,
    arrived_at: Time,
    pub(super) deadline: Time,
    /// With whom, and with whom else.
    pub(super) out: Option<Instance>,
    pub(super) second: Option<Instance>,
    /// This run wants not to be asked again before this.
    pub(super) deferred: Option<(Instance, Time)>,
    /// How the attempt of the first of two ended, while the second one's was made.
    pub(super) first_ended: Option<Outcome>,
    /// Whoever has it was asked second.
    pub(super) is_second: bool,
    /// When it was given to the first of them.
    pub(super) since: Time,
    pub(super) headed: bool,
    /// It delivers a message.
    pub(super) is_delivery: bool,
    pub(super) gone: bool,
    pub(super) attempts: u32,
    /// At platforms that had it before, and how many those were.
    attempts_before: u32,
    passed_on: usize,
    pub(super) misses: u32,
    /// An attempt may have been acted on, so that only an idempotent request may be tried again.
    pub(super) acted_on: bool,
    /// Only an upstream can take it.
    pub(super) in_parts: bool,
    /// Part of its body is with an instance, and nobody has the whole any more.
    pub(super) is_moved: bool,
    /// It is not to be begun at this time or later.
    pub(super) begins_before: Option<Time>,
}

impl Requests {
    pub(super) fn new(config: &Config) -> Requests {
        let promises = config.routes.iter().filter_map(|route| {
            let platform = position(config, &route.to)?;
            let timeout = route.timeout_ms.millis();
            let own_timeout = config.platforms[platform].request_timeout_ms.map(|bound| bound.millis());
            let route_attempt_timeout = route.attempt_timeout_ms.map_or(timeout, |bound| bound.millis());
            assert!(route.fallback.len() <= CHAIN_MAX, "the world draws no longer chain");
            Some(Promise {
                platform,
                timeout,
                attempt_timeout: route_attempt_timeout.min(own_timeout.unwrap_or(timeout)),
                route_attempt_timeout,
                chain: std::array::from_fn(|place| position(config, route.fallback.get(place)?)),
                attempts_max: 1 + route.retries.count(),
                idempotent: route.idempotent,
                is_kept: route.on_failure == OnFailure::DeadLetter,
                urgency: route.urgency,
            })
        });
        Requests {
            promises: promises.collect(),
            records: Vec::new(),
            deliveries: BTreeMap::new(),
            due: BTreeSet::new(),
            live: 0,
            arrivals: 0,
        }
    }

    pub(super) fn record(&self, ticket: Ticket) -> Option<&Record> {
        self.records.get(ticket.slot())?.as_ref().filter(|record| record.ticket == ticket)
    }

    pub(super) fn record_mut(&mut self, ticket: Ticket, what: &str) -> &mut Record {
        let record = self.records.get_mut(ticket.slot()).and_then(Option::as_mut);
        record
            .filter(|record| record.ticket == ticket)
            .unwrap_or_else(|| panic!("{what} of {ticket:?}, which has ended"))
    }

    /// Those that are with this platform, or wait for it.
    pub(super) fn at(&self, platform: Option<usize>) -> impl Iterator<Item = &Record> {
        self.records.iter().flatten().filter(move |record| record.platform() == platform)
    }
}

impl Record {
    /// Who is to answer it now.
    pub(super) fn platform(&self) -> Option<usize> {
        self.promise.map(|promise| promise.platform)
    }

    /// Whether this run has it.
    pub(super) fn is_with(&self, instance: Instance) -> bool {
        self.out == Some(instance) || self.second == Some(instance)
    }

    /// Its platform has not tried it yet: it waits for its turn there.
    pub(super) fn is_fresh(&self) -> bool {
        self.out.is_none() && self.attempts + self.misses == 0
    }

    /// This run has it no more; another may go on with it.
    pub(super) fn take_from(&mut self, instance: Instance) {
        if self.second == Some(instance) {
            self.second = None;
        } else if self.out == Some(instance) {
            self.out = self.second.take();
            self.is_second = self.out.is_some();
        }
    }

    /// When the present wait or attempt is over.
    pub(super) fn expires(&self) -> Time {
        match (self.out, self.promise) {
            (Some(_), Some(promise)) => self.deadline.min(self.since + promise.attempt_timeout),
            (Some(_), None) | (None, _) => self.deadline,
        }
    }
}

impl Ledger {
    /// Requests that have not ended.
    pub(crate) fn live(&self) -> usize {
        self.requests.live
    }

    /// Requests that have not ended and whose answer is not flowing.
    pub(crate) fn waiting(&self) -> usize {
        self.requests.due.len()
    }

    pub(crate) fn is_live(&self, ticket: Ticket) -> bool {
        self.requests.record(ticket).is_some()
    }

    /// The route's timeout, as the callers of the ticket know it.
    pub(crate) fn timeout(&self, route: Option<RouteId>) -> Duration {
        route.map_or(Duration::ZERO, |route| self.requests.promises[route.0 as usize].timeout)
    }

    /// Whether what this route leads to takes bodies as they come. What may have to be kept as a dead letter is gathered.
    pub(crate) fn may_stream(&self, route: RouteId) -> bool {
        let promise = self.requests.promises[route.0 as usize];
        self.platforms[promise.platform].host == Host::Http && !promise.is_kept
    }

    /// Whether the body of a request passes while it still comes.
    pub(crate) fn is_in_parts(&self, ticket: Ticket) -> bool {
        self.requests.record(ticket).is_some_and(|record| record.in_parts)
    }

    /// The platform that a ticket was routed to.
    pub(crate) fn platform_of(&self, route: RouteId) -> usize {
        self.requests.promises[route.0 as usize].platform
    }

    /// The request of this ticket will deliver a message on this route, which is not to be begun after a time.
    pub(crate) fn expect_delivery(&mut self, ticket: Ticket, route: RouteId, expires: Option<Time>) {
        self.requests.deliveries.insert(ticket, (route, expires));
    }

    /// Whether an answer to this ticket is expected from this run.
    pub(crate) fn is_awaited(&self, ticket: Ticket, instance: Instance) -> bool {
        self.requests.record(ticket).is_some_and(|record| record.is_with(instance))
    }

    /// A request comes in.
    pub(super) fn note_asked(&mut self, now: Time, ticket: Ticket, route: Option<RouteId>, ask: Ask, turn: &mut Turn) {
        self.requests.arrivals += 1;
        let promise = route.map(|route| self.requests.promises[route.0 as usize]);
        let timeout = promise.map_or(Duration::ZERO, |promise| promise.timeout);
        let record = Record {
            ticket,
            promise,
            idempotent: ask.idempotent || promise.is_some_and(|promise| promise.idempotent),
            urgency: promise.and_then(|promise| promise.urgency).unwrap_or(ask.urgency),
            arrival: self.requests.arrivals,
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
            acted_on: false,
            in_parts: ask.in_parts,
            is_moved: false,
            begins_before: None,
        };
        if self.requests.records.len() <= ticket.slot() {
            self.requests.records.resize(ticket.slot() + 1, None);
        }
        assert!(self.requests.records[ticket.slot()].is_none(), "the world issued {ticket:?} twice");
        self.requests.records[ticket.slot()] = Some(record);
        self.requests.due.insert((record.deadline, ticket));
        self.requests.live += 1;
        turn.asked = Some(ticket);
        if let Some(promise) = promise {
            self.want(promise.platform, false);
        }
    }

    /// A message is to be delivered.
    pub(super) fn note_delivery(&mut self, now: Time, ticket: Ticket, turn: &mut Turn) {
        let (route, begins_before) = self.requests.deliveries.remove(&ticket).unzip();
        let ask = Ask { idempotent: true, urgency: Urgency::Low, ..Ask::default() };
        self.note_asked(now, ticket, route, ask, turn);
        let record = self.requests.record_mut(ticket, "the delivery");
        (record.is_delivery, record.begins_before) = (true, begins_before.flatten());
    }

    /// A caller hung up.
    pub(super) fn note_gone(&mut self, ticket: Ticket, turn: &mut Turn) {
        if self.is_live(ticket) {
            self.requests.record_mut(ticket, "the going").gone = true;
            turn.gone = Some(ticket);
        }
    }

    /// Its answer flows from the head on.
    pub(super) fn note_relay(&mut self, ticket: Ticket, turn: &Turn) {
        assert_eq!(turn.headed, Some(ticket), "an answer was relayed whose head has not come");
        let record = self.requests.record_mut(ticket, "the relay");
        assert!(!record.headed, "{ticket:?} was relayed twice");
        record.headed = true;
        let (deadline, is_delivery) = (record.deadline, record.is_delivery);
        if !is_delivery {
            self.requests.due.remove(&(deadline, ticket));
        }
        self.saw(Sight::Streamed);
    }

    /// It ends as a dead letter.
    pub(super) fn note_burial(&mut self, now: Time, ticket: Ticket, answer: Answer, attempts: u32, turn: &Turn) {
        let record = self.requests.record_mut(ticket, "the burial");
        assert!(record.promise.is_some_and(|promise| promise.is_kept), "{ticket:?} was buried unasked");
        assert_eq!(
            record.attempts_before + record.attempts,
            attempts,
            "{ticket:?} was buried with the wrong count of attempts"
        );
        self.saw(Sight::Buried);
        self.note_end(now, ticket, answer, turn);
    }

    /// Who has the request next, if its platform does not take it, and the place of that one in its route's chain.
    fn next_of(&self, ticket: Ticket) -> Option<(usize, usize)> {
        let record = self.requests.record(ticket)?;
        let chain = record.promise?.chain;
        let takes = |next: usize| !record.in_parts || self.platforms[next].host == Host::Http;
        (record.passed_on..CHAIN_MAX).filter_map(|place| Some((place, chain[place]?))).find(|(_, next)| takes(*next))
    }

    /// Another platform has the request from here on: the next of its route's.
    pub(super) fn note_fall_back(&mut self, now: Time, ticket: Ticket, platform: usize, turn: &Turn) {
        let request_timeout = self.platforms[platform].request_timeout;
        let phase = self.phase;
        self.requests.arrivals += 1;
        let mut arrival = self.requests.arrivals;
        // The timers that were due came before what was asked in this turn.
        if let Some(asked) = turn.asked.filter(|asked| *asked != ticket && self.requests.record(*asked).is_some()) {
            std::mem::swap(&mut self.requests.record_mut(asked, "what was asked").arrival, &mut arrival);
        }
        let place = self
            .next_of(ticket)
            .and_then(|(place, next)| (next == platform).then_some(place))
            .unwrap_or_else(|| panic!("{ticket:?} went to another platform than the next of its route's"));
        let record = self.requests.record_mut(ticket, "the fallback");
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
        (record.attempts, record.misses) = (0, 0);
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

    pub(super) fn note_end(&mut self, now: Time, ticket: Ticket, answer: Answer, turn: &Turn) {
        let record = *self.requests.record_mut(ticket, "another end");
        let (fits, sight) = self.judge(now, &record, answer, turn);
        assert!(fits, "{answer:?} is not what came of {record:?}");
        assert!(record.second.is_none(), "{ticket:?} ended and the second that has it was not told");
        if let Some(with) = record.out {
            assert_eq!(turn.exited, Some(with), "{ticket:?} ended with {answer:?} and {with:?} was not told");
            self.slots[with.slot as usize].out -= 1;
        }
        let was_asked = answer != Answer::Unheard || record.gone;
        if let Some(promise) = record.promise.filter(|_| was_asked) {
            self.platforms[promise.platform].used_at = now;
        }
        self.requests.due.remove(&(record.deadline, ticket));
        self.requests.records[ticket.slot()] = None;
        self.requests.live -= 1;
        self.saw(sight);
    }

    /// Whether this may be the end of it, and what has been seen if so.
    fn judge(&self, now: Time, record: &Record, answer: Answer, turn: &Turn) -> (bool, Sight) {
        let is_answered = turn.answered.is_some_and(|(of, _, _)| of == record.ticket);
        let holder = record.out;
        let is_late = record.begins_before.is_some_and(|late| late <= now);
        match answer {
            Answer::Relayed => (is_answered, Sight::Relayed),
            Answer::Broken => (is_answered || (holder.is_some() && holder == turn.exited), Sight::Broken),
            Answer::TimedOut => {
                let may_end = !record.headed || record.is_delivery;
                (holder.is_none() && may_end && record.attempts > 0, Sight::TimedOut)
            }
            Answer::NoRoute => (record.promise.is_none(), Sight::NoRoute),
            // Of a message that is too late nobody is asked.
            Answer::Unheard => (record.gone || is_late, Sight::Unheard),
            Answer::Refused(Refusal::QueueTimeout, _) => {
                let is_up = record.expires() <= now || record.deadline <= now || is_late;
                (is_up && record.attempts == 0, Sight::QueueTimeout)
            }
            // It waited for its platform's turn already.
            Answer::Refused(Refusal::QueueFull, _) if record.is_fresh() && record.arrived_at < now => {
                let urgency = record.urgency as usize;
                let mut rivals = self.requests.at(record.platform());
                let gives_way = rivals.any(|other| (other.urgency as usize) < urgency && other.arrived_at <= now);
                (gives_way, Sight::Displaced)
            }
            Answer::Refused(Refusal::QueueFull, _) => (true, Sight::QueueFull),
            Answer::Refused(Refusal::QueueAge, _) => {
                let max = record.platform().and_then(|platform| self.platforms[platform].queue_age_max);
                let has_waited = |other: &Record| {
                    other.out.is_none()
                        && other.urgency as usize <= record.urgency as usize
                        && max.is_some_and(|max| now - other.arrived_at > max)
                };
                (self.requests.at(record.platform()).any(has_waited), Sight::QueueAge)
            }
            Answer::Refused(Refusal::BreakerOpen, _) => (true, Sight::BreakerOpen),
            Answer::Refused(Refusal::NotReady, _) => (true, Sight::NotReady),
            Answer::Refused(Refusal::Draining, _) => (true, Sight::Draining),
            Answer::Refused(Refusal::Isolated, _) => (true, Sight::Isolated),
            Answer::Refused(Refusal::Shed, after) => {
                let may_be = record.platform().is_some_and(|platform| self.may_be_shed(platform));
                (may_be && after >= Duration::from_secs(1), Sight::NoRam)
            }
            Answer::Refused(Refusal::TooMany, _) => (record.attempts == 0, Sight::TooMany),
        }
    }
}
