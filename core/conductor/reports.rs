//! What instances say of themselves to whoever balances requests: how often they want to be asked, and that they want no new
//! requests for now (the idea is that of HAProxy's agent checks).
//!
//! One that drains by its own wish goes on with what it has, is asked how it is as ever, and gets nothing new: no request,
//! second attempt or trial. If nobody of a platform is left, its requests are refused as if nobody were ready. The end of the
//! run is the end of all that it has said.

use std::time::Duration;

use crate::event::{Action, Instance, News, Report, WEIGHT_MAX};
use crate::{Conductor, Platform, Share};

/// That an instance drains by its own wish is told so often at most, and that it does not any more with it.
const DRAIN_TOLD_EVERY: Duration = Duration::from_secs(10);

impl Conductor {
    /// An instance says how it wants to be balanced.
    pub(crate) fn reported(&mut self, instance: Instance, report: Report, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        if !self.is_current(instance) || !self.slots[slot].life.is_alive() {
            self.stats.stale += 1;
            return;
        }
        let is_sound = report.weight.is_none_or(|weight| (1..=WEIGHT_MAX).contains(&weight));
        assert!(is_sound, "whoever hears a weight sees to it that it is in its range");
        self.weigh_anew(slot, report.weight);
        if std::mem::replace(&mut self.slots[slot].drains, report.drain) == report.drain {
            return;
        }
        self.tell_drain(slot, out);
        if !report.drain && self.slots[slot].life.is_ready() {
            self.slots[slot].returned_at = Some(self.now);
        }
        self.pump(self.slots[slot].platform as usize, out);
    }

    /// A run is over, and with it all that it has said.
    pub(crate) fn forget_report(&mut self, slot: usize) {
        self.weigh_anew(slot, None);
        self.slots[slot].drains = false;
        self.share_mut(slot).is_drain_told = false;
    }

    fn weigh_anew(&mut self, slot: usize, reported: Option<u32>) {
        if std::mem::replace(&mut self.share_mut(slot).reported, reported) == reported {
            return;
        }
        log::debug!("{}: its weight is {}", self.title(slot), self.weight_of(slot));
        let slots = self.platforms[self.slots[slot].platform as usize].slots();
        let total = slots.map(|slot| self.weight_of(slot)).sum();
        self.platform_at(slot).turns.reweigh(total);
    }

    /// One that changes its mind all the while is told of now and then.
    fn tell_drain(&mut self, slot: usize, out: &mut Vec<Action>) {
        let (now, drains) = (self.now, self.slots[slot].drains);
        let share = self.share_mut(slot);
        let is_due = share.drain_told_at.is_none_or(|told| now - told >= DRAIN_TOLD_EVERY);
        if drains && is_due {
            (share.drain_told_at, share.is_drain_told) = (Some(now), true);
            log::info!("{} wants no new requests", self.title(slot));
            self.tell(slot, News::DrainBegan, out);
        } else if !drains && std::mem::take(&mut share.is_drain_told) {
            log::info!("{} wants requests again", self.title(slot));
            self.tell(slot, News::DrainEnded, out);
        }
    }

    /// How often it is asked against the others: as it says itself, or else as it is configured.
    pub(crate) fn weight_of(&self, slot: usize) -> u32 {
        let share = self.share(slot);
        share.reported.unwrap_or(share.weight)
    }

    pub(crate) fn share(&self, slot: usize) -> &Share {
        let platform = &self.platforms[self.slots[slot].platform as usize];
        &platform.shares[slot - platform.first as usize]
    }

    fn share_mut(&mut self, slot: usize) -> &mut Share {
        let platform = self.platform_at(slot);
        &mut platform.shares[slot - platform.first as usize]
    }
}

impl Platform {
    /// Of two of its slots each is from now on weighed as the other was: an instance has moved.
    pub(crate) fn swap_weights(&mut self, one: usize, other: usize) {
        let [one, other] = [one, other].map(|slot| slot - self.first as usize);
        let weights = [one, other].map(|position| self.shares[position].weight);
        (self.shares[one].weight, self.shares[other].weight) = (weights[1], weights[0]);
    }
}
