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

use crate::balance::usual_after;
use crate::breaker::{Finding, Mode, TRIAL_RETRY_AFTER};
use crate::config::{Host, Urgency};
use crate::dead_letter;
use crate::event::{Action, Answer, Ask, Instance, Outcome, Refusal, Ticket};
use crate::instances::SLEPT_THROUGH;
use crate::lifecycle::{Reason, State, Then};
use crate::retry::{Decision, Failure, History};
use crate::router::RouteId;
use crate::shutdown::Phase;
use crate::time::Time;
use crate::timers::Timer;
use crate::{Conductor, Platform};

/// What is known of a request that has not ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) ticket: Ticket,
    pub(crate) route: RouteId,
    pub(crate) platform: u32,
    pub(crate) place: Place,
    pub(crate) asked_at: Time,
    pub(crate) deadline: Time,
    /// At its present platform.
    pub(crate) attempts: u32,
    pub(crate) misses: u32,
    /// At those that had it before.
    pub(crate) attempts_before: u32,
    /// How many platforms of its route's fallback have had their turn, or could not take it.
    pub(crate) passed_on: u32,
    pub(crate) idempotent: bool,
    /// Which instance it goes to, where keys decide.
    pub(crate) key: Option<u64>,
    pub(crate) urgency: Urgency,
    /// When the present attempt began, and when it will have been slow.
    pub(crate) given_at: Time,
    pub(crate) slow_at: Time,
    /// The head of its answer came after that.
    pub(crate) headed_late: bool,
    /// Another instance has it as well.
    pub(crate) second: Option<Attempt>,
    /// The present attempt is that of an instance that was asked second.
    pub(crate) is_second: bool,
    /// How the attempt of the first instance ended, if the second one's is still made.
    pub(crate) first_ended: Option<Outcome>,
    /// What the last attempt that showed something showed of the platform, and whether it was slow.
    pub(crate) shown: (Finding, bool),
    /// When it was queued.
    pub(crate) queued_at: Time,
    /// The slot that it last failed to reach.
    pub(crate) missed: Option<u32>,
    /// Its body is passed on while it still comes.
    pub(crate) in_parts: bool,
    /// Part of that was passed on and is not held any more.
    pub(crate) is_committed: bool,
}

/// An instance has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) instance: Instance,
    pub(crate) given_at: Time,
    /// When it will have been slow.
    pub(crate) slow_at: Time,
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
    pub(crate) fn asked(&mut self, ticket: Ticket, route: Option<RouteId>, ask: Ask, out: &mut Vec<Action>) {
        self.asked_count += 1;
        let Some((route, rule)) = route.and_then(|route| Some((route, self.router.rule(route)?))) else {
            self.stats.no_route += 1;
            return self.turn_away(ticket, Answer::NoRoute, out);
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
            return self.turn_away(ticket, Answer::Refused(refusal, after), out);
        }
        let Ask { idempotent, key, urgency, in_parts } = ask;
        let is_idempotent = idempotent || rule.idempotent;
        let (of, timeout, urgency) = (rule.platform, rule.timeout, rule.urgency.unwrap_or(urgency));
        if self.requests.len() <= ticket.slot() {
            self.requests.resize(ticket.slot() + 1, None);
        }
        let place = &mut self.requests[ticket.slot()];
        assert!(place.is_none(), "{ticket:?} was issued while its place was taken");
        *place = Some(Request {
            ticket,
            route,
            platform: of,
            place: Place::Queued,
            asked_at: self.now,
            deadline: self.now + timeout,
            attempts: 0,
            misses: 0,
            attempts_before: 0,
            passed_on: 0,
            idempotent: is_idempotent,
            key,
            urgency,
            given_at: self.now,
            slow_at: self.now,
            headed_late: false,
            second: None,
            is_second: false,
            first_ended: None,
            shown: (Finding::Nothing, false),
            queued_at: self.now,
            missed: None,
            in_parts,
            is_committed: false,
        });
        self.platforms[platform].stats.asked += 1;
        self.platforms[platform].live += 1;
        self.live += 1;
        self.place(ticket, None, out);
    }

    /// A request ends before it has begun.
    fn turn_away(&mut self, ticket: Ticket, answer: Answer, out: &mut Vec<Action>) {
        self.delivery_ended(ticket, answer, None, false, out);
        out.push(Action::Answer { ticket, answer });
    }

    pub(crate) fn request(&self, ticket: Ticket) -> Option<Request> {
        self.requests.get(ticket.slot())?.as_ref().filter(|request| request.ticket == ticket).copied()
    }

    /// A request that is in a queue or with an instance, and therefore has not ended.
    pub(crate) fn live_request(&self, ticket: Ticket) -> Request {
        self.request(ticket).expect("what is queued or given to an instance has not ended")
    }

    pub(crate) fn request_mut(&mut self, ticket: Ticket) -> &mut Request {
        self.requests[ticket.slot()].as_mut().expect("the caller has just looked it up")
    }

    /// Gives the request to an instance, or queues it, or refuses it.
    pub(crate) fn place(&mut self, ticket: Ticket, avoid: Option<u32>, out: &mut Vec<Action>) {
        let &mut Request { platform, deadline, key, urgency, .. } = self.request_mut(ticket);
        let platform = platform as usize;
        if self.now >= deadline {
            return self.end_waiting(ticket, out);
        }
        if self.platforms[platform].is_isolated {
            return self.end(ticket, Answer::Refused(Refusal::Isolated, NOT_SOON), None, out);
        }
        let picked = match avoid {
            Some(avoid) => self.pick_again(platform, avoid),
            // What has come free in this turn is for those that wait: they have it at the end of the turn.
            None if self.platforms[platform].queue.has_before(urgency) => None,
            None => self.pick(platform, key, None),
        };
        if let (Some(avoid), None, Some(until)) = (avoid, picked, self.deferred_until(platform)) {
            // Nobody else takes it now, and those who would want not to be asked yet.
            self.request_mut(ticket).place = Place::Waiting { avoid };
            self.set_timer(Timer::Expire(ticket), deadline);
            return self.set_timer(Timer::Retry(ticket), until.min(deadline));
        }
        if let Some(slot) = picked {
            return self.dispatch(ticket, slot, out);
        }
        if self.phase == Phase::Running && self.platform_admits(platform) {
            if self.is_too_heavy(platform, out) {
                return self.end(ticket, Answer::Refused(Refusal::Shed, NOT_SOON), None, out);
            }
            self.wake(platform, Reason::Asked, out);
        }
        match self.prospect(platform, deadline) {
            Prospect::Refuse(refusal, after) => self.end(ticket, Answer::Refused(refusal, after), None, out),
            Prospect::Wait => self.enqueue(ticket, out),
        }
    }

    /// Has it wait for an instance, if there is room or somebody gives way.
    fn enqueue(&mut self, ticket: Ticket, out: &mut Vec<Action>) {
        let now = self.now;
        let &mut Request { platform, deadline, urgency, .. } = self.request_mut(ticket);
        self.note_attendance(platform as usize);
        if self.is_too_old(platform as usize, urgency) {
            return self.end(ticket, Answer::Refused(Refusal::QueueAge, TRY_AGAIN_AFTER), None, out);
        }
        let Platform { queue, terms, .. } = &mut self.platforms[platform as usize];
        let has_room = queue.len() < terms.queue_max;
        let displaced = if has_room { None } else { queue.last_below(urgency) };
        if !has_room && displaced.is_none() {
            return self.end(ticket, Answer::Refused(Refusal::QueueFull, TRY_AGAIN_AFTER), None, out);
        }
        queue.push(urgency, ticket);
        let entry = self.request_mut(ticket);
        (entry.place, entry.queued_at) = (Place::Queued, now);
        self.set_timer(Timer::Expire(ticket), deadline);
        // Only then: another that falls back on this platform meanwhile must not find the place that is taken.
        if let Some(displaced) = displaced {
            self.platforms[platform as usize].stats.displaced += 1;
            self.end(displaced, Answer::Refused(Refusal::QueueFull, TRY_AGAIN_AFTER), None, out);
        }
    }

    /// Looks whether somebody is there for what waits, who may have his hands full.
    fn note_attendance(&mut self, platform: usize) {
        if self.platforms[platform].terms.queue_age_max.is_none() {
            return;
        }
        let is_attended = self.platforms[platform].slots().any(|slot| self.takes_in_turn(slot));
        let since = &mut self.platforms[platform].attended_since;
        *since = if is_attended { since.or(Some(self.now)) } else { None };
    }

    /// Whether a request that comes now would wait for too long, as one does that it would wait behind. What waits for an
    /// instance to start waits as long as it must.
    fn is_too_old(&self, platform: usize, urgency: Urgency) -> bool {
        let Platform { queue, terms, attended_since, .. } = &self.platforms[platform];
        let (Some(max), Some(attended_since)) = (terms.queue_age_max, *attended_since) else { return false };
        let mut since =
            queue.fronts_before(urgency).map(|front| self.live_request(front).queued_at.max(attended_since));
        since.any(|since| self.now - since > max)
    }

    /// Whether a request that no instance takes now should wait: yes if one is only busy or about to start.
    fn prospect(&self, platform: usize, deadline: Time) -> Prospect {
        let breaker = &self.platforms[platform].breaker;
        if !breaker.admits() {
            let after = breaker.open_until().map_or(TRIAL_RETRY_AFTER, |until| until - self.now);
            return Prospect::Refuse(Refusal::BreakerOpen, after);
        }
        let panics = self.panics(platform);
        let mut soonest = (Refusal::NotReady, NOT_SOON);
        for index in self.platforms[platform].slots() {
            let slot = &self.slots[index];
            let candidate = match slot.life.state() {
                // A slot that is to prove itself or is not in use is no prospect; the one that it stands beside is.
                _ if slot.is_candidate => continue,
                State::Spare | State::Draining { then: Then::Spare } | State::Stopping { then: Then::Spare } => {
                    continue
                }
                // What it needs was stopped or has failed: it waits in vain.
                State::Waiting if !self.can_come(platform) => (Refusal::NotReady, NOT_SOON),
                State::Waiting if self.is_waiting_for_return(index) => {
                    (Refusal::NotReady, self.settings.health.down_interval_ms.millis())
                }
                State::Asleep
                | State::Waiting
                | State::Starting
                | State::Draining { then: Then::Again | Then::Wait | Then::Sleep }
                | State::Stopping { then: Then::Again | Then::Wait | Then::Sleep } => return Prospect::Wait,
                // As one that answers its health checks so: nobody knows for how long, and another platform may take it.
                State::Ready if slot.drains => {
                    (Refusal::NotReady, slot.health.interval(&self.platforms[platform].care.health))
                }
                State::Ready if slot.health.is_up() => match slot.breaker.open_until() {
                    None if slot.breaker.admits() => return Prospect::Wait,
                    Some(_) if panics => return Prospect::Wait,
                    None => (Refusal::BreakerOpen, TRIAL_RETRY_AFTER),
                    Some(until) => (Refusal::BreakerOpen, until - self.now),
                },
                State::Ready if slot.health.is_unproven() => return Prospect::Wait,
                State::Ready => (Refusal::NotReady, slot.health.interval(&self.platforms[platform].care.health)),
                State::Backoff { until } if until < deadline => return Prospect::Wait,
                State::Backoff { until } => (Refusal::NotReady, until - self.now),
                State::Shed | State::Draining { then: Then::Shed } | State::Stopping { then: Then::Shed } => {
                    (Refusal::Shed, self.restored_in(platform))
                }
                State::Draining { then: Then::Rest }
                | State::Stopping { then: Then::Rest }
                | State::Stopped
                | State::Failed => (Refusal::NotReady, NOT_SOON),
            };
            if candidate.1 < soonest.1 || candidate.0 == Refusal::Shed && soonest == (Refusal::NotReady, NOT_SOON) {
                soonest = candidate;
            }
        }
        Prospect::Refuse(soonest.0, soonest.1)
    }

    fn dispatch(&mut self, ticket: Ticket, slot: usize, out: &mut Vec<Action>) {
        let &mut Request { deadline, route, attempts, idempotent, .. } = self.request_mut(ticket);
        let attempt_end = self.attempt_end(slot, route, deadline);
        let slow_at = self.give(slot, ticket, attempt_end);
        let (instance, given_at) = (self.instance(slot), self.now);
        let request = self.request_mut(ticket);
        request.place = Place::Out { instance, headed: false };
        request.attempts += 1;
        (request.given_at, request.slow_at) = (given_at, slow_at);
        (request.is_second, request.first_ended) = (false, None);
        if attempts == 0 {
            if idempotent {
                self.hedge_later(ticket, route, attempt_end);
            }
        } else {
            self.platform_at(slot).stats.retries += 1;
        }
        // Always set: an attempt that follows another in the same turn must not inherit its end.
        self.set_timer(Timer::Expire(ticket), attempt_end);
        out.push(Action::Dispatch { ticket, instance });
    }

    /// The time of an attempt that begins now is up then.
    pub(crate) fn attempt_end(&self, slot: usize, route: RouteId, deadline: Time) -> Time {
        let own_timeout = self.platforms[self.slots[slot].platform as usize].terms.request_timeout;
        let attempt_timeout = self.router.rule(route).map(|rule| rule.attempt_timeout);
        let spans = [own_timeout, attempt_timeout].into_iter().flatten();
        spans.fold(deadline, |end, span| end.min(self.now + span))
    }

    /// An instance gets a request, with time until then. Returns when it will have been slow.
    pub(crate) fn give(&mut self, slot: usize, ticket: Ticket, attempt_end: Time) -> Time {
        let now = self.now;
        let entry = &mut self.slots[slot];
        if entry.in_flight == entry.flowing {
            entry.progress = now;
        }
        entry.in_flight += 1;
        self.admit(slot, ticket);
        let platform = self.slots[slot].platform as usize;
        self.compare_soon(platform);
        self.slow_at(platform, attempt_end)
    }

    /// When an attempt that begins now will have been slow.
    pub(crate) fn slow_at(&self, platform: usize, attempt_end: Time) -> Time {
        let now = self.now;
        let slow_nanos = match self.platforms[platform].care.breaker.slow_ms.value() {
            0 => attempt_end.as_nanos().saturating_sub(now.as_nanos()) / 5 * 4,
            millis => millis * 1_000_000,
        };
        Time::from_nanos(now.as_nanos().saturating_add(slow_nanos))
    }

    pub(crate) fn headed(&mut self, ticket: Ticket, instance: Instance, out: &mut Vec<Action>) {
        let is_awaited = |request: &Request| match request.place {
            Place::Out { instance: with, headed: false } => with == instance || request.has_second(instance),
            Place::Out { headed: true, .. } | Place::Queued | Place::Waiting { .. } => false,
        };
        let Some(request) = self.request(ticket).filter(is_awaited) else {
            self.stats.stale += 1;
            return;
        };
        let request = self.drop_other(request, instance, out);
        let is_late = self.now > request.slow_at;
        let entry = self.request_mut(ticket);
        entry.place = Place::Out { instance, headed: true };
        entry.headed_late = is_late;
        self.heard_of(instance.slot as usize, request.given_at);
        self.slots[instance.slot as usize].flowing += 1;
        // Nobody takes what flows in answer to a message, so its time is up as ever.
        if !self.delivers(ticket) {
            self.timers.cancel(Timer::Expire(ticket));
        }
        self.note_latency(request.route, request.given_at);
        out.push(Action::Relay { ticket });
        self.give_back_trials(instance.slot as usize, ticket, out);
        self.pump(request.platform as usize, out);
    }

    pub(crate) fn answered(
        &mut self,
        ticket: Ticket,
        instance: Instance,
        outcome: Outcome,
        after: Option<Duration>,
        out: &mut Vec<Action>,
    ) {
        let current = self.request(ticket).filter(|request| match request.place {
            Place::Out { instance: with, .. } => {
                with == instance || request.has_second(instance) || self.accepts_old_runs(with, instance)
            }
            Place::Queued | Place::Waiting { .. } => false,
        });
        let Some(request) = current else { return self.answered_late(ticket, instance, out) };
        let slot = instance.slot as usize;
        let platform = request.platform as usize;
        self.platforms[platform].stats.count_outcome(outcome);
        let missed_again = outcome == Outcome::Unsent && request.missed == Some(instance.slot);
        let finding = if missed_again { Finding::Nothing } else { Finding::of(outcome) };
        let attempt = request.second.filter(|second| second.instance == instance).unwrap_or(request.attempt());
        let is_headed = matches!(request.place, Place::Out { headed: true, .. });
        let is_slow = if is_headed { request.headed_late } else { self.now > attempt.slow_at };
        self.release(slot, ticket, is_headed, finding, is_slow, out);
        if matches!(outcome, Outcome::Replied | Outcome::Mistaken | Outcome::Failed | Outcome::Busy) {
            // The head of an answer that flows was what was waited for, and has been heard of.
            if is_headed {
                self.spoke(slot);
            } else {
                self.heard_of(slot, attempt.given_at);
            }
        }
        match outcome {
            Outcome::Replied | Outcome::Mistaken => {
                if outcome == Outcome::Replied {
                    self.platforms[platform].budget.refill(&self.settings.retry);
                    self.slots[slot].good_at = Some(self.now);
                }
                // What flows has been preferred, and its usual time taken, with its head.
                if !is_headed {
                    self.note_latency(request.route, attempt.given_at);
                    if request.is_hedged() {
                        self.drop_other(request, instance, out);
                    }
                }
                self.end(ticket, Answer::Relayed, Some(outcome), out);
            }
            Outcome::Failed | Outcome::Broken | Outcome::Unsent | Outcome::Busy => {
                if let Some(after) = after {
                    // Whoever said so before still means it.
                    self.slots[slot].deferred_until = self.slots[slot].deferred_until.max(Some(self.now + after));
                }
                if !self.goes_on_elsewhere(ticket, instance, outcome) {
                    let (request, outcome) = self.last_failure(request, outcome);
                    self.attempt_failed(request, instance, Failure::Ended(outcome), after, out);
                }
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
    fn release(
        &mut self,
        slot: usize,
        ticket: Ticket,
        was_headed: bool,
        finding: Finding,
        is_slow: bool,
        out: &mut Vec<Action>,
    ) {
        self.slots[slot].in_flight -= 1;
        self.slots[slot].flowing -= u32::from(was_headed);
        if let Finding::Good | Finding::Bad(_) = finding {
            let is_excused = finding != Finding::Good && self.is_excused(self.slots[slot].platform as usize);
            self.request_mut(ticket).shown = if is_excused { (Finding::Nothing, false) } else { (finding, is_slow) };
        }
        if finding == Finding::Nothing && self.keeps_trials() {
            return;
        }
        let is_gone = !self.slots[slot].life.is_alive();
        self.record(slot, ticket, finding, is_slow, is_gone, out);
    }

    /// The only attempt that was made, or the last one of two, has failed.
    fn attempt_failed(
        &mut self,
        request: Request,
        instance: Instance,
        failure: Failure,
        after: Option<Duration>,
        out: &mut Vec<Action>,
    ) {
        self.timers.cancel(Timer::Hedge(request.ticket));
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
        let wait = match self.retry_decision(request, instance, failure, after) {
            Decision::AtOnce { otherwise } => match self.pick_other(request.platform as usize, instance.slot) {
                Some(other) => return self.dispatch(request.ticket, other, out),
                None => otherwise,
            },
            Decision::After(wait) => wait,
            Decision::GiveUp => return self.end_failed(request, answer, outcome, out),
        };
        if self.now + wait >= request.deadline {
            return self.end_failed(request, answer, outcome, out);
        }
        self.request_mut(request.ticket).place = Place::Waiting { avoid: instance.slot };
        self.set_timer(Timer::Expire(request.ticket), request.deadline);
        self.set_timer(Timer::Retry(request.ticket), self.now + wait);
    }

    /// It failed for good: if the answer says so, it is that of the instance that was asked last.
    fn end_failed(&mut self, request: Request, answer: Answer, outcome: Option<Outcome>, out: &mut Vec<Action>) {
        self.prefer_if_second(&request, out);
        self.end(request.ticket, answer, outcome, out);
    }

    fn note_failure(&mut self, request: Request, instance: Instance, outcome: Option<Outcome>) -> Request {
        let entry = self.request_mut(request.ticket);
        if outcome == Some(Outcome::Unsent) {
            // A second instance was no attempt of its own.
            entry.attempts -= u32::from(!entry.is_second);
            entry.misses += 1;
            entry.missed = Some(instance.slot);
        }
        *entry
    }

    fn retry_decision(
        &mut self,
        request: Request,
        instance: Instance,
        failure: Failure,
        after: Option<Duration>,
    ) -> Decision {
        let is_headed = matches!(request.place, Place::Out { headed: true, .. });
        let is_isolated = self.platforms[request.platform as usize].is_isolated;
        if is_headed
            || request.is_committed
            || is_isolated
            || self.phase > Phase::Draining
            || self.now >= request.deadline
            || self.delivers_too_late(request.ticket)
        {
            return Decision::GiveUp;
        }
        let history = History {
            attempts: request.attempts,
            misses: request.misses,
            // What delivers a message is tried again by its own rules.
            retries: match self.delivers(request.ticket) {
                true => 0,
                false => self.router.rule(request.route).map_or(0, |rule| rule.retries),
            },
            idempotent: request.idempotent,
            time_left: request.deadline - self.now,
            after,
            has_other: after.is_some() && self.pick_other(request.platform as usize, instance.slot).is_some(),
        };
        let budget = &mut self.platforms[request.platform as usize].budget;
        budget.decide(failure, history, &self.settings.retry, &mut self.random)
    }

    pub(crate) fn retry_due(&mut self, ticket: Ticket, out: &mut Vec<Action>) {
        let Some(request) = self.request(ticket) else { return };
        if let Place::Waiting { avoid } = request.place {
            // After a clock jump this may be due before the time of what it delivers is told to be up.
            match self.delivers_too_late(ticket) {
                true => self.end_waiting(ticket, out),
                false => self.place(ticket, Some(avoid), out),
            }
        }
    }

    pub(crate) fn expired(&mut self, at: Time, ticket: Ticket, out: &mut Vec<Action>) {
        let Some(request) = self.request(ticket) else { return };
        let platform = request.platform as usize;
        match request.place {
            Place::Queued | Place::Waiting { .. } => self.end_waiting(ticket, out),
            Place::Out { instance, .. } => {
                let is_slept_through = self.now - at > SLEPT_THROUGH;
                for attempt in request.attempts_made() {
                    self.platforms[platform].stats.timeouts += 1;
                    let slot = &mut self.slots[attempt.instance.slot as usize];
                    // One that had less time than its answers usually take is not to blame.
                    let had_time = at - attempt.given_at >= slot.usual && !is_slept_through;
                    slot.suspect |= had_time;
                    let finding = if had_time { Finding::Bad(Mode::Timeout) } else { Finding::Nothing };
                    self.abandon(ticket, attempt, finding, out);
                }
                let entry = self.request_mut(ticket);
                entry.second = None;
                let request = *entry;
                self.attempt_failed(request, instance, Failure::TimedOut, None, out);
            }
        }
        self.pump(platform, out);
    }

    /// The time of a request is up that no instance has.
    pub(crate) fn end_waiting(&mut self, ticket: Ticket, out: &mut Vec<Action>) {
        let answer = match self.request_mut(ticket).attempts {
            0 => Answer::Refused(Refusal::QueueTimeout, TRY_AGAIN_AFTER),
            _ => Answer::TimedOut,
        };
        self.end(ticket, answer, None, out);
    }

    pub(crate) fn gone(&mut self, ticket: Ticket, out: &mut Vec<Action>) {
        let Some(request) = self.request(ticket) else { return };
        self.stats.gone += 1;
        for attempt in request.attempts_made() {
            self.abandon(ticket, attempt, Finding::Nothing, out);
        }
        self.end(ticket, Answer::Unheard, None, out);
        self.pump(request.platform as usize, out);
    }

    /// Nobody waits for this attempt any more. A thread cannot be made to let go, so it stays occupied until it does.
    pub(crate) fn abandon(&mut self, ticket: Ticket, attempt: Attempt, finding: Finding, out: &mut Vec<Action>) {
        let instance = attempt.instance;
        let slot = instance.slot as usize;
        let request = self.live_request(ticket);
        let was_headed = request.place == Place::Out { instance, headed: true };
        // What was cut off before it was slow shows nothing.
        let is_slow = self.now > attempt.slow_at;
        self.release(slot, ticket, was_headed, finding, is_slow, out);
        if matches!(self.platforms[request.platform as usize].host, Host::Threads(_)) {
            let patience = self.platforms[request.platform as usize].terms.wedged;
            self.slots[slot].abandoned.push((ticket, request.deadline + patience));
            self.await_abandoned(instance);
        }
        out.push(Action::Cancel { ticket, instance });
    }

    /// The worker is wedged when the patience with any one of its abandoned requests is over.
    fn await_abandoned(&mut self, instance: Instance) {
        match self.slots[instance.slot as usize].abandoned.iter().map(|(_, until)| *until).min() {
            Some(until) => self.set_timer(Timer::Wedged(instance), until),
            None => self.timers.cancel(Timer::Wedged(instance)),
        }
    }

    /// The one place where a request ends, unless another platform shall have it.
    pub(crate) fn end(&mut self, ticket: Ticket, answer: Answer, outcome: Option<Outcome>, out: &mut Vec<Action>) {
        let &mut Request { platform, shown, .. } = self.request_mut(ticket);
        match answer {
            Answer::Unheard
            | Answer::NoRoute
            | Answer::Refused(Refusal::Draining | Refusal::TooMany | Refusal::Isolated, _) => {}
            Answer::Relayed | Answer::Broken | Answer::TimedOut | Answer::Refused(_, _) => {
                self.record_end(platform as usize, ticket, shown.0, shown.1, out);
            }
        }
        if let Some(next) = self.next_in_chain(ticket, answer, outcome) {
            return self.fall_back(ticket, next, answer, out);
        }
        let &mut Request { route, place, asked_at, attempts, attempts_before, .. } = self.request_mut(ticket);
        let platform = self.leave(ticket);
        self.requests[ticket.slot()] = None;
        self.live -= 1;
        let now = self.now;
        let delivers = self.delivers(ticket);
        let platform = &mut self.platforms[platform as usize];
        match answer {
            Answer::Relayed => platform.stats.count_answer(now, now - asked_at),
            Answer::Refused(refusal, _) => platform.stats.count_refusal(refusal),
            Answer::Broken | Answer::TimedOut | Answer::NoRoute | Answer::Unheard => {}
        }
        if delivers {
            let is_gone = |instance: Instance| !self.slots[instance.slot as usize].life.is_alive();
            let killed = matches!(place, Place::Out { instance, .. } if is_gone(instance));
            self.delivery_ended(ticket, answer, outcome, killed, out);
            return out.push(Action::Answer { ticket, answer });
        }
        let on_failure = self.router.rule(route).map(|rule| rule.on_failure).unwrap_or_default();
        if dead_letter::is_kept(on_failure, answer, outcome) {
            platform.stats.buried += 1;
            out.push(Action::Bury { ticket, answer, attempts: attempts_before + attempts });
        } else {
            out.push(Action::Answer { ticket, answer });
        }
    }

    /// A request has nothing to do with its platform any more. Which that was.
    pub(crate) fn leave(&mut self, ticket: Ticket) -> u32 {
        for timer in [Timer::Expire(ticket), Timer::Retry(ticket), Timer::Hedge(ticket)] {
            self.timers.cancel(timer);
        }
        let now = self.now;
        let &mut Request { platform, place, queued_at, urgency, .. } = self.request_mut(ticket);
        let last = &mut self.platforms[platform as usize];
        last.used_at = now;
        last.live -= 1;
        if place == Place::Queued {
            last.stats.queue_duration.record(now - queued_at);
            last.queue.remove(urgency, ticket);
        }
        platform
    }

    /// Something changed for the platform: gives what waits to whoever is free, and refuses what waits in vain.
    pub(crate) fn pump(&mut self, platform: usize, out: &mut Vec<Action>) {
        self.note_attendance(platform);
        while let Some(ticket) = self.platforms[platform].queue.front() {
            let request = self.live_request(ticket);
            // After a clock jump other timers may be served before the one that ends this request.
            if self.now >= request.deadline || self.delivers_too_late(ticket) {
                self.end_waiting(ticket, out);
                continue;
            }
            if let Some(slot) = self.pick(platform, request.key, None) {
                self.platforms[platform].queue.remove(request.urgency, ticket);
                self.platforms[platform].stats.queue_duration.record(self.now - request.queued_at);
                self.dispatch(ticket, slot, out);
                continue;
            }
            match self.prospect(platform, request.deadline) {
                Prospect::Wait => return,
                Prospect::Refuse(refusal, after) => self.end(ticket, Answer::Refused(refusal, after), None, out),
            }
        }
        self.let_posts_go(platform, out);
    }

    /// The run is no more: every request that it had is broken.
    pub(crate) fn break_requests_of(&mut self, instance: Instance, out: &mut Vec<Action>) {
        for index in 0..self.requests.len() {
            let Some(request) = self.requests[index] else { continue };
            if request.attempts_made().any(|attempt| attempt.instance == instance) {
                self.answered(request.ticket, instance, Outcome::Broken, None, out);
            }
        }
    }

    /// Demi ends: every request that is left is refused.
    pub(crate) fn refuse_all(&mut self, out: &mut Vec<Action>) {
        for index in 0..self.requests.len() {
            let Some(request) = self.requests[index] else { continue };
            for attempt in request.attempts_made() {
                self.abandon(request.ticket, attempt, Finding::Nothing, out);
            }
            let grace = self.settings.shutdown.grace_ms.millis();
            self.end(request.ticket, Answer::Refused(Refusal::Draining, grace), None, out);
        }
    }

    /// How long the request that has waited longest for the platform has.
    pub(crate) fn queue_age(&self, platform: usize) -> Duration {
        let fronts = self.platforms[platform].queue.fronts_before(Urgency::Low);
        let oldest = fronts.map(|ticket| self.live_request(ticket).queued_at).min();
        oldest.map_or(Duration::ZERO, |since| self.now - since)
    }

    /// Whether it is with an instance of the platform.
    pub(crate) fn is_out(&self, ticket: Ticket, platform: usize) -> bool {
        let is_out =
            |request: Request| request.platform as usize == platform && matches!(request.place, Place::Out { .. });
        self.request(ticket).is_some_and(is_out)
    }

    pub(crate) fn check_requests(&self) {
        let live = self.requests.iter().flatten();
        assert_eq!(live.clone().count(), self.live, "the count of live requests is off");
        for request in live {
            let mut queued = self.platforms[request.platform as usize].queue.iter();
            let is_queued = queued.any(|queued| queued == (request.urgency, request.ticket));
            let expires = self.timers.at(Timer::Expire(request.ticket)).is_some();
            let retries = self.timers.at(Timer::Retry(request.ticket)).is_some();
            let (queued, expiring, retrying) = match request.place {
                Place::Queued => (true, true, false),
                Place::Waiting { .. } => (false, true, true),
                Place::Out { headed, .. } => (false, !headed || self.delivers(request.ticket), false),
            };
            assert_eq!((is_queued, expires, retries), (queued, expiring, retrying), "{request:?} is misplaced");
            let is_hedged_later = self.timers.at(Timer::Hedge(request.ticket)).is_some();
            let is_single = matches!(request.place, Place::Out { headed: false, .. }) && request.second.is_none();
            assert!(is_single || !is_hedged_later, "{request:?} is to be hedged and cannot be");
            assert!(request.second.is_none() || request.idempotent, "{request:?} is asked twice");
        }
        for platform in &self.platforms {
            assert!(
                platform.swap.is_some() || platform.queue.len() <= platform.terms.queue_max,
                "the queue of {} is too long",
                platform.name
            );
            assert_eq!(
                platform.queue.iter().count(),
                platform.queue.len(),
                "the queue of {} is miscounted",
                platform.name
            );
            let mut before = None;
            for (urgency, ticket) in platform.queue.iter() {
                let request = self.request(ticket);
                assert!(request.is_some(), "{ticket:?} is queued and has ended");
                let queued = request.map(|request| (urgency as usize, request.queued_at));
                assert!(before <= queued, "{ticket:?} stands behind one that came after it");
                before = queued;
            }
        }
        for (slot, entry) in self.slots.iter().enumerate() {
            let with = self.instance(slot);
            let held = self.requests.iter().flatten().flat_map(|request| request.attempts_made());
            let held = held.filter(|attempt| attempt.instance == with);
            assert_eq!(held.count(), entry.in_flight as usize, "in-flight count of {with:?} is off");
            if let Some(trial) = entry.breaker.trial() {
                let is_out = self
                    .request(trial)
                    .is_some_and(|request| request.attempts_made().any(|attempt| attempt.instance == with));
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

impl Request {
    /// With whom it is: nobody, one instance, or two.
    pub(crate) fn attempts_made(&self) -> impl Iterator<Item = Attempt> {
        let first = matches!(self.place, Place::Out { .. }).then(|| self.attempt());
        first.into_iter().chain(self.second)
    }

    /// Whether no instance has it.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.place, Place::Queued | Place::Waiting { .. })
    }

    /// Whether a second instance was asked, and either of them may still have it.
    fn is_hedged(&self) -> bool {
        self.second.is_some() || self.is_second
    }

    fn has_second(&self, instance: Instance) -> bool {
        self.second.is_some_and(|second| second.instance == instance)
    }
}

impl Finding {
    /// What an outcome shows of the instance. The caller's own mistake shows nothing, and neither does being full.
    fn of(outcome: Outcome) -> Finding {
        match outcome {
            Outcome::Replied => Finding::Good,
            Outcome::Mistaken | Outcome::Busy => Finding::Nothing,
            Outcome::Failed => Finding::Bad(Mode::Application),
            Outcome::Broken | Outcome::Unsent => Finding::Bad(Mode::Transport),
        }
    }
}
