//! Lifecycle: starts and ends of instances, in the right order and for a reason.

use demi_conductor::lifecycle::{Reason, State, Then};
use demi_conductor::{Action, Conductor, Exit, Instance, Phase, Signal, Time, Verdict};

use super::{Ledger, Slot, Turn};
use crate::report::Sight;

impl Ledger {
    /// Whether every platform that needs this one has ended.
    fn is_free(&self, platform: usize) -> bool {
        self.platforms
            .iter()
            .filter(|needy| needy.needs.contains(&platform))
            .all(|needy| needy.slots.clone().all(|slot| !self.is_alive(slot)))
    }

    /// Ready, as far as the world knows. A run whose exit is this turn's event may get work from a timer before it.
    pub(super) fn assert_in_use(&self, instance: Instance, turn: &Turn, what: &str) {
        let slot = &self.slots[instance.slot as usize];
        assert_eq!(slot.run, instance.run, "{what} for an old run");
        assert!(!slot.has_exited || turn.exited == Some(instance), "{what} for {instance:?}, which is dead");
        assert!(slot.started_at.is_some(), "{what} for {instance:?}, which has not started");
        assert!(!slot.is_ending, "{what} for {instance:?}, which is ending");
    }

    pub(super) fn note_started(&mut self, now: Time, instance: Instance) {
        let slot = &mut self.slots[instance.slot as usize];
        if slot.run == instance.run && !slot.has_exited && slot.started_at.is_none() {
            slot.started_at = Some(now);
        }
    }

    pub(super) fn note_exited(&mut self, instance: Instance, exit: Exit, turn: &mut Turn) {
        let slot = &mut self.slots[instance.slot as usize];
        assert!(slot.run == instance.run && !slot.has_exited, "the world ended {instance:?} twice");
        slot.has_exited = true;
        self.ram.freed.0 += std::mem::take(&mut slot.weight);
        // What was ordered to end is not the configuration's fault, but it says so all the same.
        slot.bad_config |= exit == Exit::Code(78);
        turn.exited = Some(instance);
    }

    /// Two health checks that are passed prove the edition.
    pub(super) fn note_probed(&mut self, instance: Instance, verdict: Verdict) {
        let slot = &mut self.slots[instance.slot as usize];
        if slot.run == instance.run && verdict == Verdict::Pass {
            slot.passes += 1;
            if slot.passes >= 2 {
                self.platforms[slot.platform].proven.insert(slot.edition);
            }
        }
    }

    /// Another day has begun, and with it another budget of starts.
    pub(super) fn note_day(&mut self, actions: &[Action]) {
        for (index, platform) in self.platforms.iter_mut().enumerate() {
            let spends =
                |action: &Action| matches!(action, Action::Spend { platform, .. } if *platform as usize == index);
            platform.starts = (!actions.iter().any(spends)).then_some(0);
        }
    }

    /// A start is counted.
    pub(super) fn note_spending(&mut self, platform: usize, starts: u32) {
        let entry = &mut self.platforms[platform];
        if let Some(before) = entry.starts {
            assert_eq!(starts, before + 1, "starts of platform {platform} were miscounted");
            entry.starts = Some(starts);
        }
        assert!(starts <= entry.start_budget, "a platform was started beyond its budget");
    }

    /// An edition has taken over.
    pub(super) fn note_adoption(&mut self, platform: usize, edition: u32) {
        let entry = &mut self.platforms[platform];
        assert!(entry.editions.contains(&edition), "edition {edition} was adopted and never ordered");
        entry.editions.retain(|other| *other >= edition);
        entry.adopted = edition;
        entry.proven.insert(edition);
        let others = entry.slots.clone();
        for slot in others {
            assert!(
                !self.is_alive(slot) || self.slots[slot].edition == edition,
                "edition {edition} was adopted while slot {slot} is of another"
            );
        }
    }

    /// An instance is told to be in another state.
    pub(super) fn note_state(
        &mut self,
        now: Time,
        instance: Instance,
        was: State,
        state: State,
        reason: Reason,
        turn: &Turn,
    ) {
        let slot = &mut self.slots[instance.slot as usize];
        slot.after_backoff = matches!(was, State::Backoff { .. });
        slot.why = Some(reason);
        let platform = slot.platform;
        self.note_shed(instance, state);
        match state {
            State::Draining { then } => self.note_draining(now, instance, then, reason, turn),
            State::Starting if was == State::Waiting => self.note_waited(now, instance, reason),
            State::Starting => {
                let is_held = !self.platforms[platform].lost.is_empty() && self.phase == Phase::Running;
                assert!(!is_held, "{instance:?} was started again while what it lies behind is away");
                if reason == Reason::BackoffOver {
                    self.assert_it_may_fit(now, platform);
                }
            }
            State::Stopped if matches!(reason, Reason::ByHand | Reason::Gone) => {
                self.platforms[platform].is_stopped = true
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

    fn note_draining(&mut self, now: Time, instance: Instance, then: Then, reason: Reason, turn: &Turn) {
        let platform = self.slots[instance.slot as usize].platform;
        let is_stopped = then == Then::Rest && matches!(reason, Reason::ByHand | Reason::Gone);
        assert!(!is_stopped || self.is_free(platform), "{instance:?} was stopped before what needs it");
        let slot = &mut self.slots[instance.slot as usize];
        slot.draining_since = slot.draining_since.or(Some(now));
        let has_work = slot.out > 0;
        if then == Then::Sleep && reason == Reason::Idle {
            self.note_sleep(now, platform, turn);
        }
        if reason == Reason::BreakerOpened {
            self.saw(Sight::BreakerRestart);
        }
        if has_work {
            self.saw(Sight::Drained);
        }
    }

    /// It is started after it has waited: for what it needs, or for what it lies behind.
    fn note_waited(&mut self, now: Time, instance: Instance, reason: Reason) {
        let platform = self.slots[instance.slot as usize].platform;
        let entry = &self.platforms[platform];
        for need in entry.needs.iter().map(|need| &self.platforms[*need]) {
            let is_up = |slot: usize| self.is_alive(slot) && self.slots[slot].started_at.is_some();
            assert!(need.slots.clone().any(is_up), "{instance:?} was started before what it needs");
        }
        let is_held = !entry.lost.is_empty() && self.phase == Phase::Running;
        assert!(
            !(is_held && matches!(reason, Reason::Unreachable { .. })),
            "{instance:?} was started again before what it lies behind was back"
        );
        if !matches!(reason, Reason::ByHand | Reason::NewEdition) {
            self.assert_it_may_fit(now, platform);
        }
        match reason {
            Reason::Unreachable { .. } => self.saw(Sight::Held),
            Reason::Asked => self.saw(Sight::Woken),
            Reason::NeedRestarts => self.saw(Sight::Followed),
            _ => {}
        }
    }

    fn note_sleep(&mut self, now: Time, platform: usize, turn: &Turn) {
        let entry = &self.platforms[platform];
        let after = entry.sleep_after.expect("only what may sleep is put to sleep");
        assert!(now - entry.used_at >= after, "platform {platform} was put to sleep before it was idle for {after:?}");
        let work =
            self.requests.at(Some(platform)).map(|record| record.ticket).find(|ticket| turn.asked != Some(*ticket));
        assert_eq!(work, None, "it had work");
        self.saw(Sight::Slept);
    }

    pub(super) fn note_start(&mut self, now: Time, instance: Instance, edition: u32, turn: &Turn) {
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
        // Beside the one that has taken over before.
        if edition != entry.adopted && !entry.is_reloaded_by_hand {
            self.assert_one_more_may_fit(now, slot.platform);
        }
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

    pub(super) fn note_signal(
        &mut self,
        now: Time,
        instance: Instance,
        signal: Signal,
        turn: &Turn,
        conductor: &Conductor,
    ) {
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
