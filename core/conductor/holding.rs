//! What would start by itself and is known not to fit stays down, and comes back like what was shed.
//!
//! Looked at when Demi begins, for all that is to start at once: those that may not be shed come first, then the others by their
//! priority, the highest first; and just before any instance is started: again after its end, after what it needs, when what it
//! lies behind is back, on another day. What nobody has weighed yet starts. So does what is needed by something that may not be
//! shed, and what a person has started lately, with what that needs. A new edition waits beside the old one until there is RAM for
//! both.

use std::cmp::Reverse;

use crate::event::Action;
use crate::lifecycle::{Input, Reason, State, Then};
use crate::scaler::Act;
use crate::shutdown::Phase;
use crate::Conductor;

impl Conductor {
    /// Demi begins, and RAM was measured or not: holds back what does not fit beside what goes before it.
    pub(crate) fn begin_with_what_fits(&mut self, out: &mut Vec<Action>) {
        let count = self.platforms.len();
        let is_wanted = |platform: &usize| {
            self.slots[self.platforms[*platform].slots()].iter().any(|slot| slot.life.state() == State::Waiting)
        };
        let mut order: Vec<usize> = (0..count).filter(is_wanted).collect();
        order.sort_by_key(|platform| (self.may_be_held(*platform), Reverse(self.platforms[*platform].terms.priority)));
        let (mut counted, mut planned) = (vec![false; count], 0_u64);
        let mut missing = vec![None; count];
        for platform in order {
            if counted[platform] {
                continue;
            }
            let mut with_it = counted.clone();
            let more = self.weigh_with_needs(platform, &mut with_it);
            let all = planned.saturating_add(more);
            missing[platform] = self.missing_for(all).filter(|_| more > 0 && self.may_be_held(platform));
            if missing[platform].is_none() {
                (counted, planned) = (with_it, all);
            }
        }
        // What is held last comes back first.
        let mut held: Vec<usize> = (0..count).filter(|platform| missing[*platform].is_some()).collect();
        held.sort_by_key(|platform| self.platforms[*platform].terms.priority);
        for platform in held {
            self.hold_after_needy(platform, &mut missing, out);
        }
    }

    /// Those that need it are held before it, so that they come back after it.
    fn hold_after_needy(&mut self, platform: usize, missing: &mut Vec<Option<u64>>, out: &mut Vec<Action>) {
        let Some(bytes) = missing[platform].take() else { return };
        for needy in self.platforms[platform].needed_by.clone() {
            self.hold_after_needy(needy as usize, missing, out);
        }
        self.hold(platform, bytes, out);
    }

    /// An instance is to be started now: whether it stays down instead, because it is known not to fit.
    pub(crate) fn holds_back(&mut self, slot: usize, out: &mut Vec<Action>) -> bool {
        let platform = self.slots[slot].platform as usize;
        let Some(missing) = self.shortfall_of_one(platform) else { return false };
        let is_running = self.phase == Phase::Running;
        let is_ordered = self.slots[slot].life.since().1 == Reason::ByHand || self.is_wanted_by_hand(platform);
        if !is_running || is_ordered || !self.may_be_held(platform) || !self.may_go(platform) {
            return false;
        }
        self.hold(platform, missing, out);
        self.slots[slot].life.state() == State::Shed
    }

    /// An instance of a new edition is to be started beside what runs: whether it waits, because it is known not to fit.
    pub(crate) fn postpones_swap(&mut self, platform: usize, out: &mut Vec<Action>) -> bool {
        let Some(missing) = self.shortfall_of_one(platform) else { return false };
        self.decide(Some(platform), Act::Postpone { missing }, out);
        !self.settings.scaler.forecast_only
    }

    /// Whether a person has lately started it, or something that needs it.
    fn is_wanted_by_hand(&self, platform: usize) -> bool {
        self.has_above(platform, |one| self.is_started_by_hand(one))
    }

    /// Whether it, and all that needs it, may be shed, and whether that would not be told anew.
    fn may_be_held(&self, platform: usize) -> bool {
        let is_told = self.settings.scaler.forecast_only && self.is_listed(platform as u32);
        !is_told && !self.has_above(platform, |one| !self.platforms[one].terms.may_be_shed)
    }

    /// Whether it is so, or something that needs it. Each is looked at once, however many ways lead there.
    fn has_above(&self, platform: usize, is_so: impl Fn(usize) -> bool) -> bool {
        let (mut seen, mut open) = (vec![false; self.platforms.len()], vec![platform]);
        while let Some(one) = open.pop() {
            if is_so(one) {
                return true;
            }
            if !std::mem::replace(&mut seen[one], true) {
                open.extend(self.platforms[one].needed_by.iter().map(|needy| *needy as usize));
            }
        }
        false
    }

    /// What it is known to weigh at most, with what it needs, bytes; what is counted already is left out, and the rest is from
    /// now on.
    pub(crate) fn weigh_with_needs(&self, platform: usize, counted: &mut [bool]) -> u64 {
        if std::mem::replace(&mut counted[platform], true) {
            return 0;
        }
        let own = self.own_weight_to_come(platform);
        let needs = self.platforms[platform].needs.iter();
        needs.map(|need| self.weigh_with_needs(*need as usize, counted)).fold(own, u64::saturating_add)
    }

    /// What of it waits to be started stays down.
    fn hold(&mut self, platform: usize, missing: u64, out: &mut Vec<Action>) {
        let is_new = !self.is_shed_somewhere(platform);
        self.list(platform);
        if is_new {
            self.platforms[platform].footprint.is_held = true;
        }
        self.decide(Some(platform), Act::Refuse { missing }, out);
        if self.settings.scaler.forecast_only {
            return;
        }
        for slot in self.platforms[platform].slots() {
            if matches!(self.slots[slot].life.state(), State::Waiting | State::Backoff { .. }) {
                self.take(slot, Input::Drain(Then::Shed, Reason::NoRoom { missing }), out);
            }
        }
        // Whoever waits for it goes elsewhere, or is told.
        self.pump(platform, out);
    }
}
