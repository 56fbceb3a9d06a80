//! What was shed, or held back, comes back: when it is calm, one by one, as far as it fits. A new edition that waits for room starts.

use std::time::Duration;

use super::TELL_AGAIN;
use crate::event::Action;
use crate::lifecycle::{Input, Reason, State};
use crate::orders::is_shed;
use crate::requests::NOT_SOON;
use crate::scaler::{Act, Forecast};
use crate::Conductor;

impl Conductor {
    /// Restores the one that was shed last of those that fit, if RAM has been calm for long enough.
    pub(super) fn restore_next(&mut self, calm: Duration, out: &mut Vec<Action>) {
        let is_told_only = self.settings.scaler.forecast_only;
        let Some(mut listed) = self.scaling.as_mut().map(|scaling| std::mem::take(&mut scaling.shed)) else { return };
        listed.retain(|platform| is_told_only || self.is_shed_somewhere(*platform as usize));
        let is_rested = |platform: &u32| {
            let is_leaving = |slot: &crate::Slot| slot.life.is_alive() && is_shed(slot.life.state());
            let slots = &self.slots[self.platforms[*platform as usize].slots()];
            calm >= self.restore_wait(*platform as usize) && !slots.iter().any(is_leaving)
        };
        let rested: Vec<u32> = listed.iter().copied().filter(is_rested).rev().collect();
        let Some(scaling) = &mut self.scaling else { return };
        (scaling.shed, scaling.is_exhausted) = (listed, false);
        let (Some(first), None) = (rested.first().copied(), scaling.step) else { return };
        let forecast = scaling.outlook.forecast();
        if scaling.policy.delays(forecast.as_ref()) {
            return self.tell_held(first, Act::Delay, out);
        }
        let priority = |platform: u32| self.platforms[platform as usize].terms.priority;
        let fits = |platform: &u32| self.shortfall(*platform as usize).is_none();
        // Those that are worth less might take the room that it waits for: they wait with it for a while.
        let has_waited = calm >= self.restore_wait(first as usize) + TELL_AGAIN;
        let may_pass = |platform: &u32| has_waited || priority(*platform) >= priority(first);
        match rested.iter().find(|platform| may_pass(platform) && fits(platform)) {
            Some(fitting) => self.restore(*fitting, out),
            None => {
                let missing = self.shortfall(first as usize).unwrap_or_default();
                self.tell_held(first, Act::Wait { missing }, out);
            }
        }
    }

    /// Has one of those come back that were not shed, but not started, once it fits: it had nothing to do with RAM being short.
    pub(super) fn restore_held(&mut self, out: &mut Vec<Action>) {
        let Some(scaling) = self.scaling.as_ref().filter(|_| self.may_return_early()) else { return };
        let fits = |platform: &&u32| {
            let index = **platform as usize;
            let is_held = self.platforms[index].footprint.is_held && self.is_shed_somewhere(index);
            is_held && self.shortfall_of_held(index).is_none()
        };
        let Some(platform) = scaling.shed.iter().rev().find(fits).copied() else { return };
        self.restore(platform, out);
    }

    /// Has one new edition start that waits beside the old one, once it fits. The reload goes on at the end of the turn.
    pub(super) fn resume_swap(&mut self) {
        let waits = |platform: &usize| {
            let entry = &self.platforms[*platform];
            entry.ending.is_none() && entry.swap.is_some_and(|swap| swap.waits)
        };
        let fits = |platform: &usize| self.shortfall_of_swap(*platform).is_none();
        let next = (0..self.platforms.len()).find(|platform| waits(platform) && fits(platform));
        let Some(platform) = next.filter(|_| self.may_return_early()) else { return };
        let now = self.now;
        if let (Some(scaling), Some(swap)) = (&mut self.scaling, &mut self.platforms[platform].swap) {
            (scaling.returned_at, swap.waits, self.has_unsettled) = (Some(now), false, true);
        }
    }

    /// Whether something may start that waits for room only, as far as RAM as a whole is concerned.
    fn may_return_early(&self) -> bool {
        let settings = &self.settings.scaler;
        let Some(scaling) = self.scaling.as_ref().filter(|scaling| scaling.step.is_none()) else { return false };
        let is_early = scaling.returned_at.is_some_and(|at| self.now - at < self.cooldown(false));
        let shed = settings.shed_percent.value() as f64;
        let is_ahead = |ahead: Forecast| settings.use_forecasts && ahead.ram_percent >= shed;
        !is_early && !settings.forecast_only && !scaling.outlook.forecast().is_some_and(is_ahead)
    }

    fn restore(&mut self, listed: u32, out: &mut Vec<Action>) {
        let platform = listed as usize;
        self.decide(Some(platform), Act::Restore, out);
        let now = self.now;
        let Some(scaling) = &mut self.scaling else { return };
        scaling.shed.retain(|other| *other != listed);
        scaling.policy.restored(now);
        scaling.returned_at = Some(now);
        let footprint = &mut self.platforms[platform].footprint;
        (footprint.restored_at, footprint.is_held) = (Some(now), false);
        if self.settings.scaler.forecast_only {
            return;
        }
        self.want_needs_of(platform, out);
        for slot in self.platforms[platform].slots() {
            if self.slots[slot].life.state() == State::Shed {
                self.take(slot, Input::Want(Reason::Restored), out);
            }
        }
    }

    /// Tells that it stays down, and why: now, and again after a while if that is still so.
    fn tell_held(&mut self, platform: u32, act: Act, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(scaling) = &mut self.scaling else { return };
        let is_told = scaling.held.is_some_and(|(of, told, at)| {
            of == platform && std::mem::discriminant(&told) == std::mem::discriminant(&act) && now - at < TELL_AGAIN
        });
        if !is_told {
            scaling.held = Some((platform, act, now));
            self.decide(Some(platform as usize), act, out);
        }
    }

    /// Whether an instance of it is shed, or about to be.
    pub(crate) fn is_shed_somewhere(&self, platform: usize) -> bool {
        self.slots[self.platforms[platform].slots()].iter().any(|slot| is_shed(slot.life.state()))
    }

    /// How long RAM must have been calm before it comes back.
    fn restore_wait(&self, platform: usize) -> Duration {
        self.settings.scaler.calm_ms.millis() * (1 << self.platforms[platform].footprint.relapses)
    }

    /// When it comes back at the earliest, as far as that can be told.
    pub(crate) fn restored_in(&self, platform: usize) -> Duration {
        let since = self.scaling.as_ref().and_then(|scaling| scaling.policy.calm_since());
        since.map_or(NOT_SOON, |since| {
            let left = (since + self.restore_wait(platform)).since(self.now);
            left.max(self.settings.scaler.interval_ms.millis()).max(Duration::from_secs(1))
        })
    }

    /// When a new edition that waits for room starts, in a clause.
    pub(crate) fn swap_resumes(&self, platform: usize) -> String {
        match self.shortfall_of_swap(platform).map(|bytes| bytes.div_ceil(crate::MEGABYTE)) {
            Some(missing) => format!("it starts beside the old one when {missing} MB more are free"),
            None => "it starts beside the old one after one of the next samples".to_owned(),
        }
    }

    /// When a platform that is shed comes back, in a clause.
    pub(crate) fn comes_back(&self, platform: usize) -> String {
        let settings = &self.settings.scaler;
        let (restore, wait) = (settings.restore_percent.value(), self.restore_wait(platform));
        if self.platforms[platform].footprint.is_held {
            return match self.shortfall_of_held(platform).map(|bytes| bytes.div_ceil(crate::MEGABYTE)) {
                Some(missing) => format!("it starts when {missing} MB more are free"),
                None => "it starts after one of the next samples".to_owned(),
            };
        }
        let last = self.scaling.as_ref().and_then(|scaling| scaling.shed.last().copied());
        if let Some(other) = last.filter(|other| *other as usize != platform) {
            let name = &self.platforms[other as usize].name;
            return format!("it comes back after {name}, or before if that does not fit");
        }
        let missing = self.shortfall(platform).map(|bytes| bytes.div_ceil(crate::MEGABYTE));
        match (self.calm_since(), missing) {
            (None, None) => {
                format!("it comes back when RAM has been at {restore} % or less for {} s", wait.as_secs())
            }
            (None, Some(missing)) => format!(
                "it comes back when RAM has been at {restore} % or less for {} s and {missing} MB more are free",
                wait.as_secs()
            ),
            (Some(since), None) => {
                let left = (since + wait).since(self.now).as_secs();
                format!("it comes back in {left} s, if RAM stays at {restore} % or less")
            }
            (Some(_), Some(missing)) => format!("it comes back when {missing} MB more are free"),
        }
    }
}
