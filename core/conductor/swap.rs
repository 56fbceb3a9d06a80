//! A new edition beside the old: one instance after the other is replaced, each once its successor has proven itself.
//!
//! ```text
//!   spare slot ──► candidate: Starting ──► Ready ──► two health checks pass ──► takes requests
//!                         │ ends, is late, is ill                                   │
//!                         ▼                                                         ▼
//!                  the old one stays                            the old one drains, ends and is the spare slot
//! ```
//!
//! For a while there is one instance more than before. Unless a person has ordered it, the next one is started only if it fits in
//! RAM, and waits otherwise (`holding.rs`). What runs goes on meanwhile, and may be shed, put to sleep, stopped and restarted like
//! any other; if none of it runs any more, it comes back as the new edition.

use std::time::Duration;

use crate::event::{Action, Instance, News, Terms, Verdict};
use crate::health::Health;
use crate::lifecycle::{Input, Reason, State, Then};
use crate::timers::Timer;
use crate::Conductor;

/// A reload that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swap {
    edition: u32,
    terms: Terms,
    /// A person has ordered it: it waits for nothing.
    pub(crate) is_by_hand: bool,
    /// Until there is RAM for an instance more.
    pub(crate) waits: bool,
    /// The slot of the instance that has to prove itself.
    pub(crate) candidate: Option<u32>,
    /// Health checks that it was asked, and that it has passed.
    probes: u32,
    passes: u32,
}

impl Swap {
    pub(crate) fn to(edition: u32, terms: Terms, is_by_hand: bool) -> Swap {
        Swap { edition, terms, is_by_hand, waits: false, candidate: None, probes: 0, passes: 0 }
    }
}

/// Health checks that a new edition must pass before it gets a request.
const PASSES: u32 = 2;
/// Between them.
const PASS_INTERVAL: Duration = Duration::from_millis(100);
/// A new edition that has not passed them after so many, because it was busy, has not proven itself.
const PROBES_MAX: u32 = 100;

impl Conductor {
    pub(crate) fn reload_ordered(&mut self, platform: usize, swap: Swap, out: &mut Vec<Action>) {
        let is_possible = self.platforms[platform].host.is_child() && self.platforms[platform].ending.is_none();
        if !is_possible || swap.is_by_hand && self.refuses_reload(platform, out) {
            return out.push(Action::Reject { platform: platform as u32, edition: swap.edition });
        }
        let entry = &self.platforms[platform];
        let slots = &self.slots[entry.slots()];
        let runs = |edition: u32| slots.iter().any(|slot| slot.life.is_alive() && slot.edition == edition);
        let has_not_begun = |swap: &Swap| swap.waits && swap.edition != entry.edition && !runs(swap.edition);
        let waiting = entry.swap.filter(has_not_begun);
        match waiting {
            // It has not failed, and it is known already that there is no room.
            Some(Swap { edition, .. }) => out.push(Action::Reject { platform: platform as u32, edition }),
            None => self.break_off_swap(platform, Reason::SwapBrokenOff, out),
        }
        self.platforms[platform].swap = Some(Swap { waits: waiting.is_some() && !swap.is_by_hand, ..swap });
        self.has_unsettled = true;
        log::info!("{}: a new edition is tried", self.platforms[platform].name);
        self.tell_platform(platform, News::SwapBegan, out);
    }

    /// Goes on with the reload of a platform as far as that goes now. Whether anything was done.
    pub(crate) fn advance_swap(&mut self, platform: usize, out: &mut Vec<Action>) -> bool {
        let Some(swap) = self.platforms[platform].swap.filter(|swap| swap.candidate.is_none()) else { return false };
        let slots = self.platforms[platform].slots();
        let is_old = |slot: &usize| {
            let entry = &self.slots[*slot];
            let is_leaving = matches!(
                entry.life.state(),
                State::Draining { then: Then::Spare | Then::Sleep | Then::Shed | Then::Rest }
                    | State::Stopping { then: Then::Spare | Then::Sleep | Then::Shed | Then::Rest }
            );
            entry.life.is_alive() && entry.edition != swap.edition && !is_leaving
        };
        if !slots.clone().any(|slot| is_old(&slot)) {
            return self.finish_swap(platform, swap, out);
        }
        let spare = slots.clone().find(|slot| self.slots[*slot].life.state() == State::Spare);
        let Some(spare) = spare.filter(|_| !swap.waits) else { return false };
        if !swap.is_by_hand && self.postpones_swap(platform, out) {
            self.platforms[platform].swap = Some(Swap { waits: true, ..swap });
            return false;
        }
        self.slots[spare].is_candidate = true;
        self.platforms[platform].swap = Some(Swap { candidate: Some(spare as u32), probes: 0, passes: 0, ..swap });
        self.take(spare, Input::Want(Reason::NewEdition), out);
        // It is not waited for what it needs: the old one runs without, and a reload must end.
        if self.slots[spare].is_candidate && self.slots[spare].life.state() == State::Waiting {
            self.break_off_swap(platform, Reason::NeedsOthers, out);
        }
        true
    }

    /// Of which edition the slot's next run is: of the one that is tried, or else of the one that has taken over.
    pub(crate) fn next_edition(&self, slot: usize) -> u32 {
        let platform = &self.platforms[self.slots[slot].platform as usize];
        match platform.swap {
            Some(swap) if self.slots[slot].is_candidate => swap.edition,
            Some(_) | None => platform.edition,
        }
    }

    /// What holds for the slot's run: a new edition begins under its own terms.
    pub(crate) fn terms_of(&self, slot: usize) -> Terms {
        let entry = &self.slots[slot];
        let platform = &self.platforms[entry.platform as usize];
        platform.swap.filter(|swap| swap.edition == entry.edition).map_or(platform.terms, |swap| swap.terms)
    }

    /// No instance of an old edition takes requests any more.
    fn finish_swap(&mut self, platform: usize, swap: Swap, out: &mut Vec<Action>) -> bool {
        let slots = self.platforms[platform].slots();
        if self.slots[slots.clone()].iter().any(|slot| slot.life.is_alive() && slot.edition != swap.edition) {
            return false;
        }
        let entry = &mut self.platforms[platform];
        entry.swap = None;
        if entry.edition == swap.edition {
            // All that a new edition had replaced is back.
            return true;
        }
        entry.edition = swap.edition;
        entry.terms = swap.terms;
        self.router.set_timeout(platform, swap.terms.request_timeout);
        let is_tried = self.slots[slots.clone()].iter().any(|slot| slot.life.is_alive());
        if is_tried {
            log::info!("{}: the new edition has taken over", self.platforms[platform].name);
        }
        self.tell_platform(platform, if is_tried { News::SwapDone } else { News::SwapUntried }, out);
        out.push(Action::Adopt { platform: platform as u32, edition: swap.edition });
        for slot in slots {
            // What could not run may have been mended by this.
            if matches!(self.slots[slot].life.state(), State::Failed | State::Backoff { .. }) {
                self.take(slot, Input::Want(Reason::NewEdition), out);
            }
        }
        self.let_sleep(platform);
        // More may be asked at once of an instance than before.
        self.pump(platform, out);
        true
    }

    /// A health check of a new edition came back.
    pub(crate) fn judge_candidate(&mut self, instance: Instance, verdict: Verdict, out: &mut Vec<Action>) {
        let platform = self.slots[instance.slot as usize].platform as usize;
        let Some(swap) = &mut self.platforms[platform].swap else { return };
        swap.probes += 1;
        // One that wants no requests has not shown that it can take the place of one that does.
        let is_drained = self.slots[instance.slot as usize].drains && verdict == Verdict::Pass;
        let verdict = if is_drained { Verdict::Busy } else { verdict };
        match verdict {
            Verdict::Fail | Verdict::Unready => return self.break_off_swap(platform, Reason::HealthFailed, out),
            Verdict::Busy if swap.probes >= PROBES_MAX => {
                return self.break_off_swap(platform, Reason::HealthFailed, out);
            }
            Verdict::Busy => {}
            Verdict::Pass => swap.passes += 1,
        }
        if swap.passes < PASSES {
            return self.set_timer(Timer::Probe(instance), self.now + PASS_INTERVAL);
        }
        self.promote(platform, instance, out);
    }

    /// The candidate takes requests, and one of the old edition goes.
    fn promote(&mut self, platform: usize, instance: Instance, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        self.slots[slot].is_candidate = false;
        self.slots[slot].health = Health::new(true);
        self.slots[slot].returned_at = Some(self.now);
        self.probe_in_phase(instance, self.platforms[platform].care.health.interval_ms.millis());
        let Some(swap) = &mut self.platforms[platform].swap else { return };
        swap.candidate = None;
        let edition = swap.edition;
        let mut others = self.platforms[platform].slots();
        // One that is on its way down goes before one that works.
        let old = |slot: &usize| self.slots[*slot].edition != edition && self.slots[*slot].life.is_alive();
        let is_leaving = |slot: &usize| is_making_room(self.slots[*slot].life.state());
        let is_of_no_use = |slot: &usize| !self.slots[*slot].life.is_ready() || self.slots[*slot].drains;
        let worst = others.clone().find(|slot| old(slot) && !is_leaving(slot) && is_of_no_use(slot));
        let gone = worst.or_else(|| others.find(|slot| old(slot) && !is_leaving(slot)));
        if let Some(gone) = gone {
            self.platforms[platform].swap_weights(gone, slot);
            let input = match self.slots[gone].life.state() {
                State::Stopping { .. } => Input::End(Then::Spare, Reason::Replaced),
                _ if self.replaces_without_draining() => Input::End(Then::Spare, Reason::Replaced),
                _ => Input::Drain(Then::Spare, Reason::Replaced),
            };
            self.take(gone, input, out);
        } else {
            self.make_room(platform, slot, out);
        }
        self.has_unsettled = true;
        self.start_what_can(out);
        self.pump(platform, out);
    }

    #[cfg(feature = "plants")]
    fn replaces_without_draining(&self) -> bool {
        self.plant == Some(crate::Plant::ReplacedWithoutDraining)
    }

    #[cfg(not(feature = "plants"))]
    fn replaces_without_draining(&self) -> bool {
        false
    }

    /// The old ones ended by themselves meanwhile, and perhaps came back as what was wanted: one is too many all the same,
    /// and its slot is the spare one from here on.
    fn make_room(&mut self, platform: usize, promoted: usize, out: &mut Vec<Action>) {
        let slots = self.platforms[platform].slots();
        if self.slots[slots.clone()].iter().any(|slot| is_making_room(slot.life.state())) {
            return;
        }
        let mut others = slots.filter(|slot| *slot != promoted);
        let idle = others.clone().find(|slot| !self.slots[*slot].life.is_alive());
        if let Some(idle) = idle {
            self.platforms[platform].swap_weights(idle, promoted);
            self.take(idle, Input::End(Then::Spare, Reason::Replaced), out);
        } else if let Some(other) = others.next() {
            self.platforms[platform].swap_weights(other, promoted);
            let is_ready = self.slots[other].life.is_ready();
            let input = if is_ready { Input::Drain } else { Input::End };
            self.take(other, input(Then::Spare, Reason::Replaced), out);
        }
    }

    /// Ends the reload of a platform, if one is under way: what runs of the old edition stays.
    pub(crate) fn break_off_swap(&mut self, platform: usize, reason: Reason, out: &mut Vec<Action>) {
        let Some(swap) = self.platforms[platform].swap else { return };
        let candidate = swap.candidate;
        self.swap_failed(platform, reason, out);
        if let Some(candidate) = candidate {
            self.take(candidate as usize, Input::End(Then::Spare, reason), out);
        }
    }

    /// What runs is about to be ended: a reload of it that has begun to is broken off. One that waits goes on when that is done.
    pub(crate) fn break_off_swap_under_way(&mut self, platform: usize, out: &mut Vec<Action>) {
        if self.platforms[platform].swap.is_some_and(|swap| !swap.waits) {
            self.break_off_swap(platform, Reason::SwapBrokenOff, out);
        }
    }

    /// Has a new edition that waits take over, if nothing is left beside which it had to.
    pub(crate) fn take_over_from_nobody(&mut self, platform: usize, out: &mut Vec<Action>) {
        if let Some(swap) = self.platforms[platform].swap.filter(|swap| swap.waits) {
            self.finish_swap(platform, swap, out);
        }
    }

    /// The new edition did not prove itself. Where it has taken the place of some instances already, the old one comes
    /// back in the same way.
    pub(crate) fn swap_failed(&mut self, platform: usize, reason: Reason, out: &mut Vec<Action>) {
        let Some(swap) = self.platforms[platform].swap.take() else { return };
        if let Some(candidate) = swap.candidate {
            self.slots[candidate as usize].is_candidate = false;
        }
        let (edition, terms) = (self.platforms[platform].edition, self.platforms[platform].terms);
        if swap.edition == edition {
            log::warn!("{}: the old edition did not come back everywhere: {reason}", self.platforms[platform].name);
            return;
        }
        log::warn!("{}: the new edition did not take over: {reason}", self.platforms[platform].name);
        self.tell_platform(platform, News::SwapFailed { reason }, out);
        out.push(Action::Reject { platform: platform as u32, edition: swap.edition });
        let is_left = |slot: usize| {
            let entry = &self.slots[slot];
            entry.edition == swap.edition && entry.life.is_alive() && swap.candidate != Some(slot as u32)
        };
        if reason != Reason::SwapBrokenOff && self.platforms[platform].slots().any(is_left) {
            self.platforms[platform].swap = Some(Swap::to(edition, terms, swap.is_by_hand));
            self.has_unsettled = true;
        }
    }
}

/// Whether its slot is, or will be, the spare one.
pub(crate) fn is_making_room(state: State) -> bool {
    matches!(state, State::Spare | State::Draining { then: Then::Spare } | State::Stopping { then: Then::Spare })
}
