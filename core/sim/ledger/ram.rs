//! RAM: who is shed and restored, in which order and how often, and who is held back.

use std::time::Duration;

use demi_conductor::lifecycle::{Reason, State};
use demi_conductor::scaler::{Act, Decision};
use demi_conductor::{Action, Conductor, News, Phase, Sample, Time};

use super::{Ledger, Platform, Turn};
use crate::report::Sight;

/// What has grown in this time may be shed before its turn, for growing.
const GROWN_LATELY: Duration = Duration::from_secs(120);
/// What a platform has weighed at most counts nearly whole for so long.
const PEAK_COUNTS: Duration = Duration::from_secs(120);

impl Ledger {
    /// Whether anything is done about RAM.
    pub(super) fn sheds(&self) -> bool {
        self.scaler.enabled && !self.scaler.forecast_only
    }

    /// Whether it was shed and will come back by itself.
    pub(crate) fn is_shed(&self, platform: usize) -> bool {
        let entry = &self.platforms[platform];
        entry.shed_at.is_some() && !entry.is_stopped
    }

    pub(super) fn note_sample(&mut self, now: Time, sample: Sample) {
        let used = sample.ram_total.saturating_sub(sample.ram_available);
        // Two at one moment: calm is counted by the first.
        let is_second = self.ram_at == Some(now);
        self.ram_at = (used > 0).then_some(now);
        if used == 0 || self.phase != Phase::Running {
            return;
        }
        self.freed = (0, self.freed.0);
        self.ram = (used, sample.ram_total);
        self.ram_permille = (u128::from(used) * 1000 / u128::from(sample.ram_total)) as u64;
        let is_calm =
            u128::from(used) * 100 <= u128::from(sample.ram_total) * u128::from(self.scaler.restore_percent.value());
        if !is_second {
            self.calm_since = if is_calm { self.calm_since.or(Some(now)) } else { None };
        }
    }

    /// What was decided about RAM may be.
    pub(super) fn note_decision(
        &mut self,
        now: Time,
        decision: &Decision,
        rest: &[Action],
        turn: &Turn,
        conductor: &Conductor,
    ) {
        assert!(self.scaler.enabled, "{decision:?} and nobody watches RAM");
        assert_eq!(decision.is_done, !self.scaler.forecast_only, "{decision:?}");
        if !decision.is_done {
            return self.saw(Sight::WouldHave);
        }
        let (ram, platform) = (self.ram_permille, decision.platform.map(|platform| platform as usize));
        match decision.act {
            Act::Trim => self.saw(Sight::TrimmedAll),
            Act::Exhausted => self.saw(Sight::Exhausted),
            Act::Sleep => self.saw(Sight::SleptForRam),
            Act::Refuse { missing } => self.note_refusal(now, platform.expect("one is refused"), missing, rest),
            Act::Restore => {
                let platform = platform.expect("one is restored");
                let calm = self.calm_since.map(|since| now - since);
                let is_calm = calm.is_some_and(|calm| calm >= self.scaler.calm_ms.millis());
                let is_held = self.platforms[platform].is_held_back;
                assert!(is_calm || is_held, "{platform} came back after {calm:?} of calm");
                self.assert_it_fits(now, platform);
                let shed_at = self.platforms[platform].shed_at;
                let is_next = (0..self.platforms.len())
                    .all(|other| self.platforms[other].shed_at <= shed_at || self.may_let_pass(other));
                assert!(
                    shed_at.is_some() && (is_next || is_held),
                    "{platform} came back before what was shed after it"
                );
                let entry = &mut self.platforms[platform];
                (entry.has_come_back, entry.is_held_back) = (true, false);
                self.calm_since = Some(now);
                self.saw(Sight::Restored);
            }
            Act::Shed | Act::Kill => {
                let platform = platform.expect("one is shed");
                assert!(ram >= self.scaler.restore_percent.value() * 10, "{platform} was shed at {ram}");
                let is_emergency = ram >= self.scaler.emergency_percent.value() * 10;
                assert!(decision.act == Act::Shed || is_emergency, "{platform} was killed at {ram}");
                self.assert_its_time(now, platform, is_emergency, turn, conductor);
                self.saw(if decision.act == Act::Shed { Sight::Shed } else { Sight::PutDown });
                let entry = &mut self.platforms[platform];
                entry.is_held_back = false;
                if entry.shed_at.is_none() {
                    entry.shed_at = Some(now);
                    let window = self.scaler.calm_ms.millis() * 12;
                    entry.sheds.retain(|at| now - *at < window);
                    entry.sheds.push(now);
                    assert!(entry.sheds.len() <= 5, "{platform} comes and goes: {:?}", entry.sheds);
                }
            }
            Act::Overrule { .. } | Act::Won { .. } | Act::Wait { .. } | Act::Delay | Act::Believe(_) => {}
        }
    }

    /// Whether something may keep it from coming back: it has not ended, it came back in vain before, it waits for room only, or
    /// it may not fit.
    fn may_let_pass(&self, platform: usize) -> bool {
        let entry = &self.platforms[platform];
        let ends = entry.slots.clone().any(|slot| self.is_alive(slot));
        ends || entry.has_come_back || entry.is_held_back || self.may_be_too_much()
    }

    /// Whether everything that is known to weigh something, with all of its instances and itself once more, is too much.
    fn may_be_too_much(&self) -> bool {
        let known = |of: &Platform| of.peak.0.max(of.recalled) * (of.slots.len() as u64 + 1);
        let (used, total) = self.ram;
        used.saturating_add(self.platforms.iter().map(known).sum()) >= total / 100 * self.scaler.shed_percent.value()
    }

    /// A platform is not started: an instance of it that was to be is shed, or a request or a person has come in vain.
    fn note_refusal(&mut self, now: Time, platform: usize, missing: u64, rest: &[Action]) {
        let is_held = rest.iter().any(|action| match action {
            Action::Tell { platform: of, news: News::State { now: State::Shed, reason, .. }, .. } => {
                *of as usize == platform && *reason == (Reason::NoRoom { missing })
            }
            _ => false,
        });
        if !is_held {
            return self.saw(Sight::TooHeavy);
        }
        let entry = &self.platforms[platform];
        let is_needed = self.platforms.iter().any(|needy| needy.needs.contains(&platform) && !needy.may_be_shed);
        assert!(entry.may_be_shed && !is_needed, "{platform} is held back and may not be");
        let is_known = entry.peak.0.max(entry.recalled) > 0;
        assert!(is_known || !entry.needs.is_empty(), "{platform} is held back and nobody has weighed it");
        assert!(self.may_be_too_much(), "{platform} is held back and fits: {:?}", self.ram);
        let entry = &mut self.platforms[platform];
        entry.is_held_back |= entry.shed_at.is_none();
        entry.shed_at = entry.shed_at.or(Some(now));
        self.saw(Sight::HeldBack);
    }

    /// With what a platform is known to weigh at most, RAM stays below the threshold.
    fn assert_it_fits(&self, now: Time, platform: usize) {
        let entry = &self.platforms[platform];
        let (peak, at) = entry.peak;
        let known = if now - at < PEAK_COUNTS { peak / 10 * 9 } else { 0 };
        let shed = entry.slots.clone().filter(|slot| self.slots[*slot].is_shed).count() as u64;
        let (used, total) = self.ram;
        let limit = total / 100 * self.scaler.shed_percent.value();
        assert!(used + known * shed < limit, "{platform} came back and does not fit: {used} {known} {limit}");
    }

    /// It is started again by itself, and it is not certain that it does not fit.
    pub(super) fn assert_it_may_fit(&self, now: Time, platform: usize) {
        let entry = &self.platforms[platform];
        let (peak, at) = entry.peak;
        let is_known = now - at < PEAK_COUNTS && peak > 0;
        let is_fresh = self.ram_at.is_some_and(|at| now - at <= self.scaler.interval_ms.millis() * 3);
        // A person, or a reload, had a hand in it; or something needs it.
        let is_touched = entry.ordered_at.is_some_and(|at| now - at < Duration::from_secs(7_200));
        let is_needed = self.platforms.iter().any(|needy| needy.needs.contains(&platform));
        let is_watched = self.sheds() && self.phase == Phase::Running;
        if !is_watched || !entry.may_be_shed || !is_known || !is_fresh || is_touched || is_needed {
            return;
        }
        let (used, total) = self.ram;
        let rest = used.saturating_sub(self.freed.0 + self.freed.1);
        let limit = total / 100 * self.scaler.shed_percent.value();
        assert!(rest + peak / 10 * 9 < limit, "{platform} was started again and does not fit: {rest} {peak} {limit}");
    }

    /// Nobody whose priority is lower is left who may be shed, as far as the books know.
    fn assert_its_time(&self, now: Time, platform: usize, is_emergency: bool, turn: &Turn, conductor: &Conductor) {
        let entry = &self.platforms[platform];
        assert!(entry.may_be_shed, "{platform} was shed and may not be");
        let runs = |of: &Platform| of.slots.clone().any(|slot| self.is_alive(slot));
        let needed = |index: usize| self.platforms.iter().any(|needy| needy.needs.contains(&index) && runs(needy));
        // One that drains already is put down whoever has come to need it meanwhile.
        let is_anew = entry.shed_at.is_none();
        assert!(!is_anew || !needed(platform) || turn.exited.is_some(), "{platform} was shed and is needed");
        if is_emergency || !is_anew || turn.exited.is_some() {
            return;
        }
        let lately = self.scaler.calm_ms.millis() + Duration::from_secs(60);
        for (index, told) in conductor.platforms().enumerate() {
            let other = &self.platforms[index];
            let is_touched = other.ordered_at.is_some_and(|at| now - at < lately) || told.is_reloading;
            let is_in_use = |slot: usize| {
                self.is_alive(slot) && self.slots[slot].started_at.is_some() && !self.slots[slot].is_ending
            };
            let is_in_order = other.slots.clone().all(|slot| self.slots[slot].draining_since.is_none());
            let stands = other.slots.clone().any(is_in_use) && is_in_order && other.shed_at.is_none();
            let goes_first = other.may_be_shed && other.priority < entry.priority && stands;
            let grows = self.scaler.use_forecasts && entry.grown_at.is_some_and(|at| now - at < GROWN_LATELY);
            assert!(!goes_first || needed(index) || is_touched || grows, "{platform} was shed before {index}");
        }
    }
}
