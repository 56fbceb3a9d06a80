//! A second instance is asked when the first takes longer than answers of the route usually do; the first answer wins.
//! (Dean and Barroso, The Tail at Scale, 2013.)

use std::time::Duration;

use crate::balance::usual_after;
use crate::breaker::Finding;
use crate::event::{Action, Instance, Outcome, Ticket};
use crate::requests::{Attempt, Place, Request};
use crate::router::RouteId;
use crate::stats::Recent;
use crate::time::Time;
use crate::timers::Timer;
use crate::Conductor;

/// The part of answers that came sooner, in thousandths, when a second instance is asked.
const PERMILLE: u64 = 950;
/// Fewer answers in the last minutes have no such part worth the name.
const ANSWERS_MIN: u64 = 20;

/// So many answers change little in what most of them take.
const ANSWERS_PER_COUNT: u32 = 32;

/// What answers of a route that hedges have taken lately.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    recent: Recent,
    /// When a second instance is asked; none while too little is known.
    patience: Option<Duration>,
    /// Answers since that was counted.
    since: u32,
}

impl Latency {
    fn note(&mut self, now: Time, took: Duration) {
        self.recent.record(now, took);
        self.since += 1;
        if self.patience.is_none() || self.since >= ANSWERS_PER_COUNT {
            let (count, [usual]) = self.recent.percentiles(now, [PERMILLE]);
            // A percentile is an eighth off at most; on a route whose answers all take the same, nobody is asked twice.
            self.patience = (count >= ANSWERS_MIN).then_some(usual + usual / 8);
            self.since = 0;
        }
    }
}

impl Conductor {
    /// A request was answered: that is what its route usually takes.
    pub(crate) fn note_latency(&mut self, route: RouteId, given_at: Time) {
        if let Some(Some(latency)) = self.latencies.get_mut(route.0 as usize) {
            latency.note(self.now, self.now - given_at);
        }
    }

    /// A request that may be done twice was given to its first instance: if its route hedges, it is looked at again when it
    /// takes too long.
    pub(crate) fn hedge_later(&mut self, ticket: Ticket, route: RouteId, attempt_end: Time) {
        let Some(Some(latency)) = self.latencies.get(route.0 as usize) else { return };
        let at = latency.patience.map(|patience| self.now + patience);
        if let Some(at) = at.filter(|at| *at < attempt_end) {
            self.set_timer(Timer::Hedge(ticket), at);
        }
    }

    pub(crate) fn hedge_due(&mut self, ticket: Ticket, out: &mut Vec<Action>) {
        let Some(request) = self.request(ticket) else { return };
        let Place::Out { instance, headed: false } = request.place else { return };
        let platform = request.platform as usize;
        // After a jump of the clock its own time may be up as well.
        let is_up = self.timers.at(Timer::Expire(ticket)).is_none_or(|end| end <= self.now);
        // Nobody waits for what delivers a message, and it should arrive once if that can be.
        let is_unwanted = self.platforms[platform].is_isolated || self.delivers(ticket);
        let is_allowed = request.second.is_none() && !is_up && !is_unwanted && self.phase.admits();
        let Some(slot) = self.pick_other(platform, instance.slot).filter(|_| is_allowed) else { return };
        if !self.platforms[platform].breaker.is_closed() || !self.platforms[platform].budget.pay_for_hedge() {
            return;
        }
        self.platforms[platform].stats.hedges += 1;
        let attempt_end = self.attempt_end(slot, request.route, request.deadline);
        let slow_at = self.give(slot, ticket, attempt_end);
        let attempt = Attempt { instance: self.instance(slot), given_at: self.now, slow_at };
        self.request_mut(ticket).second = Some(attempt);
        out.push(Action::Hedge { ticket, instance: attempt.instance });
    }

    /// One of the two that have the request has answered for good: the other is told that nobody waits for it any more.
    /// Returns the request as it is then.
    pub(crate) fn drop_other(&mut self, request: Request, instance: Instance, out: &mut Vec<Action>) -> Request {
        let ticket = request.ticket;
        self.timers.cancel(Timer::Hedge(ticket));
        let Some(second) = request.second else {
            self.prefer_if_second(&request, out);
            return request;
        };
        let first = request.attempt();
        let (kept, dropped, is_second) =
            if second.instance == instance { (second, first, true) } else { (first, second, request.is_second) };
        let entry = self.request_mut(ticket);
        entry.second = None;
        entry.keep(kept, is_second);
        let request = *entry;
        self.platforms[request.platform as usize].stats.hedges_won += u64::from(is_second);
        self.prefer_if_second(&request, out);
        let slot = &mut self.slots[dropped.instance.slot as usize];
        let waited = self.now - dropped.given_at;
        // Who is outrun again and again must not look as quick as when it last answered.
        let is_late = waited > slot.usual;
        if is_late {
            slot.usual = usual_after(slot.usual, waited);
        }
        // The one that was asked first took longer than most answers do.
        let was_first = dropped.given_at < kept.given_at;
        let finding = if is_late && was_first { Finding::Late } else { Finding::Nothing };
        self.abandon(ticket, dropped, finding, out);
        request
    }

    /// The answer that counts is that of the instance that was asked second.
    pub(crate) fn prefer_if_second(&mut self, request: &Request, out: &mut Vec<Action>) {
        if let (true, Place::Out { instance, .. }) = (request.is_second, request.place) {
            out.push(Action::Prefer { ticket: request.ticket, instance });
        }
    }

    /// One of the two that have the request has failed: what counts is what the other will say. Whether there is another.
    pub(crate) fn goes_on_elsewhere(&mut self, ticket: Ticket, failed: Instance, outcome: Outcome) -> bool {
        let entry = self.request_mut(ticket);
        let Some(second) = entry.second.take() else { return false };
        if second.instance != failed {
            entry.keep(second, true);
            entry.first_ended = Some(outcome);
        }
        true
    }

    /// What the failure of a request with all its instances comes to: if the second one did nothing, it is that of the
    /// first one, whose answer is what counts.
    pub(crate) fn last_failure(&mut self, request: Request, outcome: Outcome) -> (Request, Outcome) {
        let did_nothing = request.is_second && matches!(outcome, Outcome::Unsent | Outcome::Busy);
        let Some(first) = request.first_ended.filter(|_| did_nothing) else { return (request, outcome) };
        let entry = self.request_mut(request.ticket);
        entry.is_second = false;
        (*entry, first)
    }
}

impl Request {
    /// The attempt that is made, or the first of the two.
    pub(crate) fn attempt(&self) -> Attempt {
        let Place::Out { instance, .. } = self.place else { unreachable!("only what is out has an attempt") };
        Attempt { instance, given_at: self.given_at, slow_at: self.slow_at }
    }

    fn keep(&mut self, attempt: Attempt, is_second: bool) {
        self.place = Place::Out { instance: attempt.instance, headed: false };
        (self.given_at, self.slow_at, self.is_second) = (attempt.given_at, attempt.slow_at, is_second);
    }
}
