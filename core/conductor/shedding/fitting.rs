//! Whether a platform fits: what is used, what it is expected to weigh, and what others that have just started will still take.

use super::{GROWS_FOR, TELL_AGAIN};
use crate::event::{Action, Sample};
use crate::lifecycle::State;
use crate::scaler::Act;
use crate::Conductor;

/// What was held back comes back if there is so much more room than it needs, percent.
const HELD_MARGIN_PERCENT: u64 = 2;

impl Conductor {
    /// How many bytes are missing for all of it, and what it needs, to run below `shed_percent` with what they are known to
    /// weigh. `None`: it fits, or nobody knows.
    pub(crate) fn shortfall(&self, platform: usize) -> Option<u64> {
        self.missing_for(self.weigh_with_needs(platform, &mut vec![false; self.platforms.len()]))
    }

    /// The same of what was held back: it has to fit with something to spare.
    pub(super) fn shortfall_of_held(&self, platform: usize) -> Option<u64> {
        let more = self.weigh_with_needs(platform, &mut vec![false; self.platforms.len()]);
        self.missing_for(more.saturating_add(self.held_margin()))
    }

    /// The same of an instance of a new edition that waits.
    pub(super) fn shortfall_of_swap(&self, platform: usize) -> Option<u64> {
        self.missing_for(self.expected_peak(platform).saturating_add(self.held_margin()))
    }

    fn held_margin(&self) -> u64 {
        self.sample.map_or(0, |(_, sample)| sample.ram_total / 100 * HELD_MARGIN_PERCENT)
    }

    /// How many bytes are missing for one instance more. `None`: it fits, or nobody knows.
    pub(crate) fn shortfall_of_one(&self, platform: usize) -> Option<u64> {
        match self.expected_peak(platform) {
            0 => None,
            weight => self.missing_for(weight),
        }
    }

    /// How many bytes are missing for so many more, with what has just started and will still take some.
    pub(crate) fn missing_for(&self, more: u64) -> Option<u64> {
        let sample = self.fresh_sample()?;
        let narrowest = Sample { ram_total: sample.ram_headroom_total, ram_available: sample.ram_headroom, ..sample };
        let more = self.promised().saturating_add(more);
        let freed = self.scaling.as_ref().map_or(0, |scaling| scaling.freed);
        // Of a machine and a limit within it the one may be fuller and the other leave less.
        let bounds = [sample, narrowest].into_iter().filter(|bound| bound.ram_total > 0);
        let missing = bounds.filter_map(|bound| {
            let limit = bound.ram_total / 100 * self.settings.scaler.shed_percent.value();
            let wanted = self.used(&bound).saturating_sub(freed).saturating_add(more);
            // One that fits to the byte is shed at once.
            (wanted >= limit).then(|| (wanted - limit).max(1))
        });
        missing.max()
    }

    /// The last sample, if it still says something.
    fn fresh_sample(&self) -> Option<Sample> {
        let (at, sample) = self.sample.filter(|_| self.scaling.is_some())?;
        let is_fresh = self.now - at <= self.settings.scaler.interval_ms.millis() * 3;
        // Where nothing is used, nothing was counted.
        (is_fresh && sample.ram_total > sample.ram_available).then_some(sample)
    }

    /// The most that one instance is expected to weigh, bytes: what it was seen to, and no more than it may. 0 if nobody knows.
    pub(crate) fn expected_peak(&self, platform: usize) -> u64 {
        let entry = &self.platforms[platform];
        entry.footprint.peak(self.now).min(entry.terms.memory_max.unwrap_or(u64::MAX))
    }

    /// What it will weigh that does not run.
    pub(crate) fn own_weight_to_come(&self, platform: usize) -> u64 {
        let entry = &self.platforms[platform];
        let is_down = |slot: &&crate::Slot| !slot.life.is_alive() && slot.life.state() != State::Spare;
        let down = self.slots[entry.slots()].iter().filter(is_down).count() as u64;
        let own = self.expected_peak(platform).saturating_mul(down);
        // What only would have been shed weighs what it does.
        let is_told_only = self.settings.scaler.forecast_only && self.is_listed(platform as u32);
        if is_told_only {
            own.saturating_add(self.weighs(platform))
        } else {
            own
        }
    }

    /// By how much runs that have started lately will still grow.
    pub(super) fn promised(&self) -> u64 {
        let young = |slot: &&crate::Slot| slot.life.is_alive() && self.now - slot.started_at < GROWS_FOR;
        let growth = self.slots.iter().filter(young).map(|slot| {
            let peak = self.expected_peak(slot.platform as usize);
            peak.saturating_sub(slot.weight.map_or(0, |weight| weight.rss_bytes))
        });
        growth.fold(0, u64::saturating_add)
    }

    /// Whether there is no RAM for a platform that sleeps: then a request does not wake it. Tells so now and then.
    pub(crate) fn is_too_heavy(&mut self, platform: usize, out: &mut Vec<Action>) -> bool {
        let entry = &self.platforms[platform];
        if !entry.terms.may_be_shed || self.settings.scaler.forecast_only || !self.is_asleep(platform) {
            return false;
        }
        let is_running = self.slots[entry.slots()].iter().any(|slot| slot.life.is_alive());
        let Some(missing) = self.shortfall(platform).filter(|_| !is_running) else { return false };
        let (now, footprint) = (self.now, &mut self.platforms[platform].footprint);
        if footprint.refusal_told_at.is_none_or(|at| now - at >= TELL_AGAIN) {
            footprint.refusal_told_at = Some(now);
            self.decide(Some(platform), Act::Refuse { missing }, out);
        }
        true
    }

    /// A person starts it: that is done, but in an emergency. Whether it is not.
    pub(crate) fn refuses_start(&mut self, platform: usize, out: &mut Vec<Action>) -> bool {
        let entry = &self.platforms[platform];
        let is_running = self.slots[entry.slots()].iter().any(|slot| slot.life.is_alive());
        let (may_be_shed, is_told_only) = (entry.terms.may_be_shed, self.settings.scaler.forecast_only);
        if self.scaling.is_none() || !may_be_shed || is_told_only {
            return false;
        }
        let missing = self.shortfall(platform).filter(|_| !is_running);
        if let Some(missing) = self.missing_in_emergency(platform) {
            self.decide(Some(platform), Act::Refuse { missing }, out);
            return true;
        }
        self.platforms[platform].footprint.by_hand_at = Some(self.now);
        if let Some(missing) = missing {
            self.decide(Some(platform), Act::Overrule { missing }, out);
        }
        false
    }

    /// How many bytes are missing for a platform that does not run, if RAM has nearly run out, so that not even a person starts
    /// it.
    pub fn missing_in_emergency(&self, platform: usize) -> Option<u64> {
        let entry = &self.platforms[platform];
        let is_running = self.slots[entry.slots()].iter().any(|slot| slot.life.is_alive());
        let is_refused = entry.terms.may_be_shed && !is_running && self.is_emergency();
        self.shortfall(platform).filter(|_| is_refused)
    }

    /// A person reloads it: that is done, but in an emergency. Whether it is not.
    pub(crate) fn refuses_reload(&mut self, platform: usize, out: &mut Vec<Action>) -> bool {
        if self.scaling.is_none() || self.settings.scaler.forecast_only {
            return false;
        }
        if let Some(missing) = self.missing_to_reload_in_emergency(platform) {
            self.decide(Some(platform), Act::Refuse { missing }, out);
            return true;
        }
        self.platforms[platform].footprint.by_hand_at = Some(self.now);
        if let Some(missing) = self.shortfall_of_reload(platform) {
            self.decide(Some(platform), Act::Overrule { missing }, out);
        }
        false
    }

    /// How many bytes are missing for a new edition of a platform beside the one that runs, if RAM has nearly run out, so that not
    /// even a person has it started.
    pub fn missing_to_reload_in_emergency(&self, platform: usize) -> Option<u64> {
        self.shortfall_of_reload(platform).filter(|_| self.is_emergency())
    }

    /// How many bytes are missing for what a reload starts at first. `None`: it starts nothing, it fits, or nobody knows.
    fn shortfall_of_reload(&self, platform: usize) -> Option<u64> {
        let mut slots = self.slots[self.platforms[platform].slots()].iter();
        let is_renewed = |state: State| state.is_alive() || matches!(state, State::Failed | State::Backoff { .. });
        let starts_something = slots.any(|slot| is_renewed(slot.life.state()));
        self.shortfall_of_one(platform).filter(|_| starts_something)
    }

    /// Whether RAM has nearly run out, and something is done about it.
    fn is_emergency(&self) -> bool {
        let emergency = self.settings.scaler.emergency_percent.count() * 10;
        !self.settings.scaler.forecast_only && self.figures(0).ram_permille >= emergency
    }
}
