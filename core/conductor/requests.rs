//! A request, from the question to its one end.
//!
//! ```text
//!            an instance is free                    it answered
//!   asked ───────────────────────► Out ───────────────────────────► Answer or Bury
//!     │                          ▲  │ ▲                                  ▲
//!     │ all busy or starting     │  │ │ an instance came free, or        │
//!     ├──────────► Queued ───────┘  │ │ the wait is over                 │
//!     │                             └─► Waiting (to be tried again)      │
//!     └── refused ───────────────────────────────────────────────────────┘
//! ```

use std::time::Duration;

use crate::balance::{usual_after, Load, Silence};
use crate::breaker::{Finding, TRIAL_RETRY_AFTER};
use crate::config::Host;
use crate::dead_letter;
use crate::event::{Action, Answer, Instance, Outcome, Refusal, Ticket};
use crate::lifecycle::{Reason, State, Then};
use crate::retry::{Decision, Failure, History};
use crate::router::RouteId;
use crate::shutdown::Phase;
use crate::time::Time;
use crate::timers::Timer;
use crate::Conductor;

/// What is known of a request that has not ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    ticket: Ticket,
    route: RouteId,
    platform: u32,
    pub(crate) place: Place,
    asked_at: Time,
    deadline: Time,
    attempts: u32,
    misses: u32,
    idempotent: bool,
    /// When the present attempt began.
    given_at: Time,
    /// The slot that it last failed to reach.
    missed: Option<u32>,
}

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In its platform's queue.
    Queued,
    /// To be tried again, elsewhere than in this slot if that can be.
    Waiting { avoid: u32 },
    /// With an instance. `headed`: its answer is flowing and it cannot be tried again.
    Out { instance: Instance, headed: bool },
}

/// Whether waiting for a platform has a prospect.
enum Prospect {
    Wait,
    Refuse(Refusal, Duration),
}

/// What a caller is told whose instance turned out to be full or gone, or who waited in vain.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// What a caller is told when nothing is known of when the platform will be back.
pub(crate) const NOT_SOON: Duration = Duration::from_secs(60);

impl Conductor {
    pub(crate) fn asked(&mut self, ticket: Ticket, route: Option<RouteId>, idempotent: bool, out: &mut Vec<Action>) {
        let Some((route, rule)) = route.and_then(|route| Some((route, self.router.rule(route)?))) else {
            self.stats.no_route += 1;
            return out.push(Action::Answer { ticket, answer: Answer::NoRoute });
        };
        let platform = rule.platform as usize;
        self.platforms[platform].used_at = self.now;
        let refusal = if self.phase != Phase::Running {
            Some((Refusal::Draining, self.settings.shutdown.grace_ms.millis()))
        } else if self.live >= self.settings.requests_max {
            Some((Refusal::TooMany, TRY_AGAIN_AFTER))
        } else {
            None
        };
        if let Some((refusal, after)) = refusal {
            let stats = &mut self.platforms[platform].stats;
            stats.asked += 1;
            stats.count_refusal(refusal);
            return out.push(Action::Answer { ticket, answer: Answer::Refused(refusal, after) });
        }
        let request = Request {
            ticket,
            route,
            platform: rule.platform,
            place: Place::Queued,
            asked_at: self.now,
            deadline: self.now + rule.timeout,
            attempts: 0,
            misses: 0,
            idempotent: idempotent || rule.idempotent,
            given_at: self.now,
            missed: None,
        };
        if self.requests.len() <= ticket.slot() {
            self.requests.resize(ticket.slot() + 1, None);
        }
        assert!(self.requests[ticket.slot()].is_none(), "{ticket:?} was issued while its place was taken");
        self.platforms[platform].stats.asked += 1;
        self.platforms[platform].live += 1;
        self.requests[ticket.slot()] = Some(request);
        self.live += 1;
        self.place(request, None, out);
    }

    fn request(&self, ticket: Ticket) -> Option<Request> {
        self.requests.get(ticket.slot()).copied().flatten().filter(|request| request.ticket == ticket)
    }

    /// A request that is in a queue, and therefore has not ended.
    pub(crate) fn queued(&self, ticket: Ticket) -> Request {
        self.request(ticket).expect("what is queued has not ended")
    }

    fn request_mut(&mut self, ticket: Ticket) -> &mut Request {
        self.requests[ticket.slot()].as_mut().expect("the caller has just looked it up")
    }

    /// Gives the request to an instance, or queues it, or refuses it.
    fn place(&mut self, request: Request, avoid: Option<u32>, out: &mut Vec<Action>) {
        let platform = request.platform as usize;
        if self.now >= request.deadline {
            return self.end_waiting(request, out);
        }
        if self.platforms[platform].is_isolated {
            return self.end(request, Answer::Refused(Refusal::Isolated, NOT_SOON), None, out);
        }
        if let Some(slot) = self.pick(platform, avoid) {
            return self.dispatch(request.ticket, slot, out);
        }
        if self.phase == Phase::Running {
            self.wake(platform, Reason::Asked, out);
        }
        match self.prospect(platform, request.deadline) {
            Prospect::Refuse(refusal, after) => self.end(request, Answer::Refused(refusal, after), None, out),
            Prospect::Wait if self.platforms[platform].queue.len() >= self.platforms[platform].terms.queue_max => {
                self.end(request, Answer::Refused(Refusal::QueueFull, TRY_AGAIN_AFTER), None, out);
            }
            Prospect::Wait => {
                self.request_mut(request.ticket).place = Place::Queued;
                self.set_timer(Timer::Expire(request.ticket), request.deadline);
                self.platforms[platform].queue.push_back(request.ticket);
            }
        }
    }

    /// The instance that gets the next request: the better of two drawn at random; if neither takes requests, or the
    /// better one is silent, the best of all. `avoid` is taken only if nothing else is to be had.
    fn pick(&mut self, platform: usize, avoid: Option<u32>) -> Option<usize> {
        let first = self.platforms[platform].first as usize;
        let count = u64::from(self.platforms[platform].count);
        if count == 1 {
            return self.takes_requests(first).then_some(first);
        }
        let one = self.random.below(count);
        let other = (one + 1 + self.random.below(count - 1)) % count;
        let drawn = [first + one as usize, first + other as usize];
        let candidates = drawn.map(|slot| avoid != Some(slot as u32) && self.takes_requests(slot));
        if count == 2 && candidates != [true, true] {
            // Nothing to choose: of a child process one of the two is the spare slot.
            let only = drawn.into_iter().zip(candidates).find(|(_, takes)| *takes).map(|(slot, _)| slot);
            return only.or_else(|| avoid.map(|slot| slot as usize).filter(|slot| self.takes_requests(*slot)));
        }
        match self.best_of(drawn.into_iter(), avoid) {
            Some((slot, load)) if load.silence == Silence::NONE && candidates == [true, true] => Some(slot),
            Some(_) | None => {
                // From one of them on, so that chance decides between equals.
                let all = (0..count).map(|step| first + ((one + step) % count) as usize);
                let best = self.best_of(all, avoid).map(|(slot, _)| slot);
                best.or_else(|| avoid.map(|slot| slot as usize).filter(|slot| self.takes_requests(*slot)))
            }
        }
    }

    /// The best instance but this one.
    fn pick_other(&self, platform: usize, than: u32) -> Option<usize> {
        self.best_of(self.platforms[platform].slots(), Some(than)).map(|(slot, _)| slot)
    }

    fn best_of(&self, slots: impl Iterator<Item = usize>, avoid: Option<u32>) -> Option<(usize, Load)> {
        slots
            .filter(|slot| avoid != Some(*slot as u32) && self.takes_requests(*slot))
            .map(|slot| (slot, self.load(slot)))
            .min_by(|(_, one), (_, other)| one.compare(other))
    }

    fn takes_requests(&self, slot: usize) -> bool {
        let entry = &self.slots[slot];
        entry.life.is_ready()
            && !entry.is_candidate
            && entry.health.is_up()
            && entry.breaker.admits()
            && entry.occupied() < self.platforms[entry.platform as usize].terms.in_flight_max
    }

    fn load(&self, slot: usize) -> Load {
        let entry = &self.slots[slot];
        // Answers that flow, for hours perhaps, say nothing of how soon the next will come.
        let waiting = entry.in_flight - entry.flowing;
        let silence = match waiting {
            _ if entry.suspect => Silence::SUSPECT,
            0 => Silence::NONE,
            1.. => Silence::lasting(self.now - entry.progress, entry.usual),
        };
        // Between idle ones chance decides.
        let progress = if waiting == 0 { Time::ZERO } else { entry.progress };
        Load { silence, in_flight: waiting, progress }
    }

    /// Whether a request that no instance takes now should wait: yes if one is only busy or about to start.
    fn prospect(&self, platform: usize, deadline: Time) -> Prospect {
        let mut soonest = (Refusal::NotReady, NOT_SOON);
        for slot in &self.slots[self.platforms[platform].slots()] {
            let candidate = match slot.life.state() {
                // A slot that is to prove itself or is not in use is no prospect; the one that it stands beside is.
                _ if slot.is_candidate => continue,
                State::Spare | State::Draining { then: Then::Spare } | State::Stopping { then: Then::Spare } => {
                    continue
                }
                // What it needs was stopped or has failed: it waits in vain.
                State::Waiting if !self.can_come(platform) => (Refusal::NotReady, NOT_SOON),
                State::Asleep
                | State::Waiting
                | State::Starting
                | State::Draining { then: Then::Again | Then::Wait | Then::Sleep }
                | State::Stopping { then: Then::Again | Then::Wait | Then::Sleep } => return Prospect::Wait,
                State::Ready if slot.health.is_up() => match slot.breaker.open_until() {
                    None if slot.breaker.admits() => return Prospect::Wait,
                    None => (Refusal::BreakerOpen, TRIAL_RETRY_AFTER),
                    Some(until) => (Refusal::BreakerOpen, until - self.now),
                },
                State::Ready if slot.health.is_unproven() => return Prospect::Wait,
                State::Ready => (Refusal::NotReady, slot.health.interval(&self.settings.health)),
                State::Backoff { until } if until < deadline => return Prospect::Wait,
                State::Backoff { until } => (Refusal::NotReady, until - self.now),
                State::Draining { then: Then::Rest }
                | State::Stopping { then: Then::Rest }
                | State::Stopped
                | State::Failed => (Refusal::NotReady, NOT_SOON),
            };
            if candidate.1 < soonest.1 {
                soonest = candidate;
            }
        }
        Prospect::Refuse(soonest.0, soonest.1)
    }

    fn dispatch(&mut self, ticket: Ticket, slot: usize, out: &mut Vec<Action>) {
        let instance = self.instance(slot);
        let now = self.now;
        let entry = &mut self.slots[slot];
        if entry.in_flight == entry.flowing {
            entry.progress = now;
        }
        entry.in_flight += 1;
        entry.breaker.admit(ticket);
        let request = self.request_mut(ticket);
        request.place = Place::Out { instance, headed: false };
        request.attempts += 1;
        request.given_at = now;
        let (attempts, deadline, route) = (request.attempts, request.deadline, request.route);
        if attempts > 1 {
            self.platform_at(slot).stats.retries += 1;
        }
        // Always set: an attempt that follows another in the same turn must not inherit its end.
        let own_timeout = self.platform_at(slot).terms.request_timeout;
        let attempt_timeout = self.router.rule(route).map(|rule| rule.attempt_timeout);
        let attempt_end =
            [own_timeout, attempt_timeout].into_iter().flatten().fold(deadline, |end, span| end.min(now + span));
        self.set_timer(Timer::Expire(ticket), attempt_end);
        out.push(Action::Dispatch { ticket, instance });
    }

    pub(crate) fn headed(&mut self, ticket: Ticket, instance: Instance, out: &mut Vec<Action>) {
        match self.request(ticket).map(|request| request.place) {
            Some(Place::Out { instance: with, headed: false }) if with == instance => {
                let given_at = self.request_mut(ticket).given_at;
                self.request_mut(ticket).place = Place::Out { instance, headed: true };
                self.heard_of(instance.slot as usize, given_at);
                self.slots[instance.slot as usize].flowing += 1;
                self.timers.cancel(Timer::Expire(ticket));
                out.push(Action::Relay { ticket });
                if self.slots[instance.slot as usize].breaker.give_back(ticket) {
                    self.pump(self.slots[instance.slot as usize].platform as usize, out);
                }
            }
            Some(_) | None => self.stats.stale += 1,
        }
    }

    pub(crate) fn answered(&mut self, ticket: Ticket, instance: Instance, outcome: Outcome, out: &mut Vec<Action>) {
        let current = self.request(ticket).filter(|request| match request.place {
            Place::Out { instance: with, .. } => with == instance || self.accepts_old_runs(with, instance),
            Place::Queued | Place::Waiting { .. } => false,
        });
        let Some(request) = current else { return self.answered_late(ticket, instance, out) };
        let slot = instance.slot as usize;
        let platform = request.platform as usize;
        self.platforms[platform].stats.count_outcome(outcome);
        let missed_again = outcome == Outcome::Unsent && request.missed == Some(instance.slot);
        let finding = if missed_again { Finding::Nothing } else { Finding::of(outcome) };
        self.release(slot, request, finding, out);
        if matches!(outcome, Outcome::Replied | Outcome::Mistaken | Outcome::Failed | Outcome::Busy) {
            match request.place {
                // Its head was what was waited for, and has been heard of.
                Place::Out { headed: true, .. } => self.spoke(slot),
                Place::Out { headed: false, .. } | Place::Queued | Place::Waiting { .. } => {
                    self.heard_of(slot, request.given_at);
                }
            }
        }
        match outcome {
            Outcome::Replied => {
                self.platforms[platform].budget.refill(&self.settings.retry);
                self.end(request, Answer::Relayed, Some(outcome), out);
            }
            Outcome::Mistaken => self.end(request, Answer::Relayed, Some(outcome), out),
            Outcome::Failed | Outcome::Broken | Outcome::Unsent | Outcome::Busy => {
                self.attempt_failed(request, instance, Failure::Ended(outcome), out);
            }
        }
        self.pump(platform, out);
    }

    /// An answer that nobody waits for: a thread that finally lets go of a request takes others again.
    fn answered_late(&mut self, ticket: Ticket, instance: Instance, out: &mut Vec<Action>) {
        self.stats.stale += 1;
        if !self.is_current(instance) {
            return;
        }
        let slot = &mut self.slots[instance.slot as usize];
        let Some(index) = slot.abandoned.iter().position(|(abandoned, _)| *abandoned == ticket) else { return };
        slot.abandoned.swap_remove(index);
        self.spoke(instance.slot as usize);
        self.await_abandoned(instance);
        let platform = self.slots[instance.slot as usize].platform as usize;
        self.pump(platform, out);
    }

    /// The instance said something of a request that it was given at this time.
    fn heard_of(&mut self, slot: usize, given_at: Time) {
        let took = self.now - given_at;
        self.spoke(slot);
        let entry = &mut self.slots[slot];
        entry.usual = usual_after(entry.usual, took);
    }

    /// The instance said something.
    fn spoke(&mut self, slot: usize) {
        let entry = &mut self.slots[slot];
        entry.heard_at = self.now;
        entry.progress = self.now;
        entry.suspect = false;
    }

    /// The instance has the request no more.
    fn release(&mut self, slot: usize, request: Request, finding: Finding, out: &mut Vec<Action>) {
        let ticket = request.ticket;
        self.slots[slot].in_flight -= 1;
        self.slots[slot].flowing -= u32::from(matches!(request.place, Place::Out { headed: true, .. }));
        if !self.slots[slot].life.is_alive() {
            // Its run is over, and its breaker with it.
            return;
        }
        if finding == Finding::Nothing && self.keeps_trials() {
            return;
        }
        let entry = &mut self.slots[slot];
        let opened = entry.breaker.record(self.now, ticket, finding, &self.settings.breaker, &mut self.random);
        if let Some(until) = opened {
            self.note_opened(slot, until, out);
        }
    }

    fn attempt_failed(&mut self, request: Request, instance: Instance, failure: Failure, out: &mut Vec<Action>) {
        let answer = match failure {
            Failure::TimedOut => Answer::TimedOut,
            Failure::Ended(Outcome::Failed | Outcome::Replied | Outcome::Mistaken) => Answer::Relayed,
            Failure::Ended(Outcome::Broken) => Answer::Broken,
            Failure::Ended(Outcome::Unsent) => Answer::Refused(Refusal::NotReady, TRY_AGAIN_AFTER),
            Failure::Ended(Outcome::Busy) => Answer::Refused(Refusal::QueueFull, TRY_AGAIN_AFTER),
        };
        let outcome = match failure {
            Failure::Ended(outcome) => Some(outcome),
            Failure::TimedOut => None,
        };
        let request = self.note_failure(request, instance, outcome);
        let wait = match self.retry_decision(request, failure) {
            Decision::AtOnce { otherwise } => match self.pick_other(request.platform as usize, instance.slot) {
                Some(other) => return self.dispatch(request.ticket, other, out),
                None => otherwise,
            },
            Decision::After(wait) => wait,
            Decision::GiveUp => return self.end(request, answer, outcome, out),
        };
        if self.now + wait >= request.deadline {
            return self.end(request, answer, outcome, out);
        }
        self.request_mut(request.ticket).place = Place::Waiting { avoid: instance.slot };
        self.set_timer(Timer::Expire(request.ticket), request.deadline);
        self.set_timer(Timer::Retry(request.ticket), self.now + wait);
    }

    fn note_failure(&mut self, request: Request, instance: Instance, outcome: Option<Outcome>) -> Request {
        let entry = self.request_mut(request.ticket);
        if outcome == Some(Outcome::Unsent) {
            entry.attempts -= 1;
            entry.misses += 1;
            entry.missed = Some(instance.slot);
        }
        *entry
    }

    fn retry_decision(&mut self, request: Request, failure: Failure) -> Decision {
        let is_headed = matches!(request.place, Place::Out { headed: true, .. });
        let is_isolated = self.platforms[request.platform as usize].is_isolated;
        if is_headed || is_isolated || self.phase > Phase::Draining || self.now >= request.deadline {
            return Decision::GiveUp;
        }
        let history = History {
            attempts: request.attempts,
            misses: request.misses,
            retries: self.router.rule(request.route).map_or(0, |rule| rule.retries),
            idempotent: request.idempotent,
            time_left: request.deadline - self.now,
        };
        let budget = &mut self.platforms[request.platform as usize].budget;
        budget.decide(failure, history, &self.settings.retry, &mut self.random)
    }

    pub(crate) fn retry_due(&mut self, ticket: Ticket, out: &mut Vec<Action>) {
        let Some(request) = self.request(ticket) else { return };
        if let Place::Waiting { avoid } = request.place {
            self.place(request, Some(avoid), out);
        }
    }

    pub(crate) fn expired(&mut self, ticket: Ticket, out: &mut Vec<Action>) {
        let Some(request) = self.request(ticket) else { return };
        let platform = request.platform as usize;
        match request.place {
            Place::Queued | Place::Waiting { .. } => self.end_waiting(request, out),
            Place::Out { instance, .. } => {
                self.platforms[platform].stats.timeouts += 1;
                self.slots[instance.slot as usize].suspect = true;
                self.abandon(request, instance, Finding::Bad, out);
                self.attempt_failed(request, instance, Failure::TimedOut, out);
            }
        }
        self.pump(platform, out);
    }

    /// The time of a request is up that no instance has.
    fn end_waiting(&mut self, request: Request, out: &mut Vec<Action>) {
        let answer = match request.attempts {
            0 => Answer::Refused(Refusal::QueueTimeout, TRY_AGAIN_AFTER),
            _ => Answer::TimedOut,
        };
        self.end(request, answer, None, out);
    }

    pub(crate) fn gone(&mut self, ticket: Ticket, out: &mut Vec<Action>) {
        let Some(request) = self.request(ticket) else { return };
        self.stats.gone += 1;
        if let Place::Out { instance, .. } = request.place {
            self.abandon(request, instance, Finding::Nothing, out);
        }
        self.end(request, Answer::Unheard, None, out);
        self.pump(request.platform as usize, out);
    }

    /// Nobody waits for this attempt any more. A thread cannot be made to let go, so it stays occupied until it does.
    fn abandon(&mut self, request: Request, instance: Instance, finding: Finding, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        self.release(slot, request, finding, out);
        if matches!(self.platforms[request.platform as usize].host, Host::Threads(_)) {
            let patience = self.platforms[request.platform as usize].terms.wedged;
            self.slots[slot].abandoned.push((request.ticket, request.deadline + patience));
            self.await_abandoned(instance);
        }
        out.push(Action::Cancel { ticket: request.ticket, instance });
    }

    /// The worker is wedged when the patience with any one of its abandoned requests is over.
    fn await_abandoned(&mut self, instance: Instance) {
        match self.slots[instance.slot as usize].abandoned.iter().map(|(_, until)| *until).min() {
            Some(until) => self.set_timer(Timer::Wedged(instance), until),
            None => self.timers.cancel(Timer::Wedged(instance)),
        }
    }

    /// The one place where a request ends.
    pub(crate) fn end(&mut self, request: Request, answer: Answer, outcome: Option<Outcome>, out: &mut Vec<Action>) {
        let ticket = request.ticket;
        let place = self.requests[ticket.slot()].take().map(|request| request.place);
        self.live -= 1;
        self.timers.cancel(Timer::Expire(ticket));
        self.timers.cancel(Timer::Retry(ticket));
        let now = self.now;
        let platform = &mut self.platforms[request.platform as usize];
        platform.used_at = now;
        platform.live -= 1;
        if place == Some(Place::Queued) {
            platform.queue.retain(|queued| *queued != ticket);
        }
        match answer {
            Answer::Relayed => platform.stats.request_duration.record(self.now - request.asked_at),
            Answer::Refused(refusal, _) => platform.stats.count_refusal(refusal),
            Answer::Broken | Answer::TimedOut | Answer::NoRoute | Answer::Unheard => {}
        }
        let on_failure = self.router.rule(request.route).map(|rule| rule.on_failure).unwrap_or_default();
        if dead_letter::is_kept(on_failure, answer, outcome) {
            platform.stats.buried += 1;
            out.push(Action::Bury { ticket, answer, attempts: request.attempts });
        } else {
            out.push(Action::Answer { ticket, answer });
        }
    }

    /// Something changed for the platform: gives what waits to whoever is free, and refuses what waits in vain.
    pub(crate) fn pump(&mut self, platform: usize, out: &mut Vec<Action>) {
        while let Some(ticket) = self.platforms[platform].queue.front().copied() {
            let request = self.queued(ticket);
            // After a clock jump other timers may be served before the one that ends this request.
            if self.now >= request.deadline {
                self.end_waiting(request, out);
                continue;
            }
            if let Some(slot) = self.pick(platform, None) {
                self.platforms[platform].queue.pop_front();
                self.dispatch(ticket, slot, out);
                continue;
            }
            match self.prospect(platform, request.deadline) {
                Prospect::Wait => return,
                Prospect::Refuse(refusal, after) => self.end(request, Answer::Refused(refusal, after), None, out),
            }
        }
    }

    /// The run is no more: every request that it had is broken.
    pub(crate) fn break_requests_of(&mut self, instance: Instance, out: &mut Vec<Action>) {
        for index in 0..self.requests.len() {
            let Some(request) = self.requests[index] else { continue };
            if matches!(request.place, Place::Out { instance: with, .. } if with == instance) {
                self.answered(request.ticket, instance, Outcome::Broken, out);
            }
        }
    }

    /// Demi ends: every request that is left is refused.
    pub(crate) fn refuse_all(&mut self, out: &mut Vec<Action>) {
        for index in 0..self.requests.len() {
            let Some(request) = self.requests[index] else { continue };
            if let Place::Out { instance, .. } = request.place {
                self.abandon(request, instance, Finding::Nothing, out);
            }
            let grace = self.settings.shutdown.grace_ms.millis();
            self.end(request, Answer::Refused(Refusal::Draining, grace), None, out);
        }
    }

    pub(crate) fn check_requests(&self) {
        let live = self.requests.iter().flatten();
        assert_eq!(live.clone().count(), self.live, "the count of live requests is off");
        for request in live {
            let is_queued = self.platforms[request.platform as usize].queue.contains(&request.ticket);
            let expires = self.timers.at(Timer::Expire(request.ticket)).is_some();
            let retries = self.timers.at(Timer::Retry(request.ticket)).is_some();
            let (queued, expiring, retrying) = match request.place {
                Place::Queued => (true, true, false),
                Place::Waiting { .. } => (false, true, true),
                Place::Out { headed, .. } => (false, !headed, false),
            };
            assert_eq!((is_queued, expires, retries), (queued, expiring, retrying), "{request:?} is misplaced");
        }
        for platform in &self.platforms {
            assert!(
                platform.swap.is_some() || platform.queue.len() <= platform.terms.queue_max,
                "the queue of {} is too long",
                platform.name
            );
            for ticket in &platform.queue {
                assert!(self.request(*ticket).is_some(), "{ticket:?} is queued and has ended");
            }
        }
        for (slot, entry) in self.slots.iter().enumerate() {
            let with = self.instance(slot);
            let held = self.requests.iter().flatten();
            let held = held.filter(|request| matches!(request.place, Place::Out { instance, .. } if instance == with));
            assert_eq!(held.count(), entry.in_flight as usize, "in-flight count of {with:?} is off");
            if let Some(trial) = entry.breaker.trial() {
                let is_out = self
                    .request(trial)
                    .is_some_and(|request| matches!(request.place, Place::Out { instance, .. } if instance == with));
                assert!(is_out, "the trial of {with:?} was never returned");
            }
        }
    }

    #[cfg(feature = "plants")]
    fn accepts_old_runs(&self, with: Instance, from: Instance) -> bool {
        self.plant == Some(crate::Plant::LateAnswerAccepted) && with.slot == from.slot
    }

    #[cfg(not(feature = "plants"))]
    fn accepts_old_runs(&self, _with: Instance, _from: Instance) -> bool {
        false
    }

    #[cfg(feature = "plants")]
    fn keeps_trials(&self) -> bool {
        self.plant == Some(crate::Plant::TrialNeverReturned)
    }

    #[cfg(not(feature = "plants"))]
    fn keeps_trials(&self) -> bool {
        false
    }
}

impl Finding {
    /// What an outcome shows of the instance. The caller's own mistake shows nothing, and neither does being full.
    fn of(outcome: Outcome) -> Finding {
        match outcome {
            Outcome::Replied => Finding::Good,
            Outcome::Mistaken | Outcome::Busy => Finding::Nothing,
            Outcome::Failed | Outcome::Broken | Outcome::Unsent => Finding::Bad,
        }
    }
}
