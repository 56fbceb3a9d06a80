//! Attempts: a request is given to an instance, perhaps to a second one, and comes back from there or is taken away.

use std::time::Duration;

use demi_conductor::{Action, Answer, Conductor, Instance, Outcome, Refusal, Ticket, Time};

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
        let record = self.requests.record_mut(ticket, "the dispatch");
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
        let record = *record;
        self.note_load(&record, promise.platform, instance);
        self.note_passage(now, ticket, instance, turn, conductor);
        if is_second {
            self.saw(Sight::Hedged);
        }
        if is_retry {
            self.saw(Sight::Retried);
        }
    }

    /// Of two that have it, the answer of this one counts.
    pub(super) fn note_preference(&mut self, ticket: Ticket, instance: Instance, turn: &Turn) {
        self.requests.record_mut(ticket, "the preference");
        let is_it = turn.answered.is_some_and(|(of, with, _)| (of, with) == (ticket, instance));
        let is_gone = turn.exited == Some(instance);
        let is_late = !self.is_awaited(ticket, instance);
        assert!(is_it || is_gone || is_late || turn.headed == Some(ticket), "{instance:?} has not answered");
        self.saw(Sight::HedgeWon);
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
        if !self.is_heard(ticket, instance, actions) {
            return;
        }
        turn.moved = Some(ticket);
        let record = self.requests.record_mut(ticket, "a body");
        let timeout = record.promise.map_or(Duration::ZERO, |promise| promise.timeout);
        if record.headed || record.out != Some(instance) {
            return;
        }
        let before = std::mem::replace(&mut record.deadline, now + timeout);
        (record.is_moved, record.since) = (true, now);
        let after = record.deadline;
        self.requests.due.remove(&(before, ticket));
        self.requests.due.insert((after, ticket));
        self.saw(Sight::Moved);
    }

    /// Due timers come first in a turn: an attempt whose time is up is cancelled before its answer is looked at.
    fn is_heard(&self, ticket: Ticket, instance: Instance, actions: &[Action]) -> bool {
        self.is_awaited(ticket, instance) && !actions.contains(&Action::Cancel { ticket, instance })
    }

    /// An instance wants not to be asked for this again before a time.
    pub(super) fn note_deferral(&mut self, ticket: Ticket, instance: Instance, until: Time, actions: &[Action]) {
        if self.is_heard(ticket, instance, actions) {
            self.requests.record_mut(ticket, "an answer").deferred = Some((instance, until));
        }
    }

    /// An attempt has ended.
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
        if !self.is_heard(ticket, instance, actions) {
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
        let record = self.requests.record_mut(ticket, "an answer");
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
            }
        }
        match outcome {
            // Of two, one that did not arrive changes nothing for the other.
            Outcome::Unsent if !is_last => record.acted_on = true,
            Outcome::Unsent => {
                record.attempts -= u32::from(!was_second);
                record.misses += 1;
            }
            Outcome::Failed | Outcome::Broken => record.acted_on = true,
            Outcome::Replied | Outcome::Mistaken | Outcome::Busy => {}
        }
    }

    pub(super) fn note_cancel(&mut self, now: Time, ticket: Ticket, instance: Instance, rest: &[Action], turn: &Turn) {
        let is_answered = turn.headed == Some(ticket) || turn.answered.is_some_and(|(of, _, _)| of == ticket);
        let record = self.requests.record_mut(ticket, "the cancellation");
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

    /// A run has ended. What is to be tried again has been taken from it without a word: there was nobody left to tell.
    pub(super) fn take_all_from(&mut self, instance: Instance) {
        let mut taken = 0;
        for record in self.requests.records.iter_mut().flatten() {
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
}
