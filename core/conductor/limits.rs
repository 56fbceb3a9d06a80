//! What a child may use: its process tree is weighed every second, asked to trim above the soft limit and killed above
//! the hard one.

use std::time::Duration;

use crate::event::{Action, Instance, News, Weight};
use crate::lifecycle::{Input, Reason};
use crate::timers::Timer;
use crate::Conductor;

/// Between two weighings.
const WEIGH_INTERVAL: Duration = Duration::from_secs(1);
/// An instance that stays above its soft limit is asked to trim again after this.
const TRIM_INTERVAL: Duration = Duration::from_secs(60);

impl Conductor {
    /// Sees to it that the children are weighed.
    pub(crate) fn weigh_soon(&mut self) {
        if self.timers.at(Timer::Weigh).is_none() {
            self.set_timer(Timer::Weigh, self.now + WEIGH_INTERVAL);
        }
    }

    pub(crate) fn weigh_due(&mut self, out: &mut Vec<Action>) {
        let is_child = |slot: &crate::Slot| self.platforms[slot.platform as usize].host.is_child();
        if self.slots.iter().any(|slot| slot.life.is_alive() && is_child(slot)) {
            out.push(Action::Weigh);
            self.weigh_soon();
        }
    }

    pub(crate) fn weighed(&mut self, instance: Instance, weight: Weight, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        if !self.is_current(instance) || !self.slots[slot].life.is_alive() {
            self.stats.stale += 1;
            return;
        }
        self.set_weight(slot, Some(weight));
        self.note_footprint(slot, weight.rss_bytes, out);
        let terms = self.terms_of(slot);
        let reason = match terms {
            _ if weight.processes > terms.processes_max => {
                Reason::ProcessLimit { used: weight.processes, max: terms.processes_max }
            }
            crate::Terms { memory_max: Some(max), .. } if weight.rss_bytes > max => {
                Reason::MemoryLimit { used: weight.rss_bytes, max }
            }
            _ => return self.weigh_softly(instance, weight, out),
        };
        log::error!("{} is killed: {reason}", self.title(slot));
        self.end_by_limit(slot, Input::Kill(reason), reason, out);
    }

    /// What it is known to weigh, and with that all children together.
    pub(crate) fn set_weight(&mut self, slot: usize, weight: Option<Weight>) {
        let bytes = |weight: Option<Weight>| weight.map_or(0, |weight| weight.rss_bytes);
        let before = std::mem::replace(&mut self.slots[slot].weight, weight);
        self.weight_total = self.weight_total - bytes(before) + bytes(weight);
        if weight.is_none() {
            self.slots[slot].trend = None;
        }
    }

    /// A candidate that takes too much has not proven itself.
    fn end_by_limit(&mut self, slot: usize, input: Input, reason: Reason, out: &mut Vec<Action>) {
        if self.slots[slot].is_candidate {
            self.break_off_swap(self.slots[slot].platform as usize, reason, out);
        }
        self.take(slot, input, out);
    }

    fn weigh_softly(&mut self, instance: Instance, weight: Weight, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        let terms = self.terms_of(slot);
        if !self.slots[slot].life.is_ready() {
            return;
        }
        // The last twentieth is not to be counted on: what needs one more descriptor has most likely failed already.
        if u64::from(weight.descriptors) * 20 >= u64::from(terms.descriptors_max) * 19 {
            let reason = Reason::DescriptorLimit { used: weight.descriptors, max: terms.descriptors_max };
            log::warn!("{} is replaced: {reason}", self.title(slot));
            return self.end_by_limit(slot, Input::Sick(reason), reason, out);
        }
        let Some(soft_bytes) = terms.memory_soft else { return };
        let entry = &mut self.slots[slot];
        // Below nine tenths of it, going above it once more is news again.
        if weight.rss_bytes * 10 < soft_bytes * 9 {
            entry.trimmed_at = None;
        }
        let is_told = entry.trimmed_at.is_some_and(|at| self.now - at < TRIM_INTERVAL);
        if weight.rss_bytes > soft_bytes && !is_told {
            entry.trimmed_at = Some(self.now);
            let megabytes = |bytes: u64| bytes / 1_000_000;
            log::warn!(
                "{} uses {} MB of memory, limits.memory_soft_mb is {}; it is asked to trim",
                self.title(slot),
                megabytes(weight.rss_bytes),
                megabytes(soft_bytes)
            );
            out.push(Action::Trim { instance });
            self.tell(slot, News::Trimmed { rss_bytes: weight.rss_bytes, soft_bytes }, out);
        }
    }
}
