//! Lifecycle: starts and ends of instances, in the right order and for a reason.

use demi_conductor::breaker::Cause;
use demi_conductor::lifecycle::{Reason, State, Then};
use demi_conductor::{Conductor, Instance, News, Phase, Signal, Time};

use super::requests::Record;
use super::{Ledger, Slot, Turn};
use crate::report::Sight;

impl Ledger {
    /// Whether every platform that needs this one has ended.
    pub(super) fn is_free(&self, platform: usize) -> bool {
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

    pub(super) fn note_news(
        &mut self,
        now: Time,
        platform: usize,
        instance: Option<Instance>,
        news: News,
        turn: &Turn,
    ) {
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
