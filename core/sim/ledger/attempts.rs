//! Attempts: a request is given to an instance, perhaps to a second one, and comes back from there or is taken away.

use std::time::Duration;

use demi_conductor::config::Host;
use demi_conductor::{Action, Answer, Conductor, Instance, InstanceStatus, Outcome, Refusal, Ticket, Time};

use super::balance::status;
use super::{Ledger, Turn};
use crate::report::Sight;

impl Ledger {
    /// A request is given to an instance, or to a second one.
    pub(super) fn note_dispatch(
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

    /// A part of a request's body is with an instance, and nobody else has it any more.
    pub(super) fn note_moved(
        &mut self,
        now: Time,
        ticket: Ticket,
        instance: Instance,
        actions: &[Action],
        turn: &mut Turn,
    ) {
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
    pub(super) fn note_answer(
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

    pub(super) fn note_cancel(&mut self, now: Time, ticket: Ticket, instance: Instance, rest: &[Action], turn: &Turn) {
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
}
