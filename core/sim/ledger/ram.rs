//! RAM: who is shed and restored, in which order and how often, and who is held back.

use std::time::Duration;

use demi_conductor::config::{self, Scaler};
use demi_conductor::lifecycle::{Reason, State, Then};
use demi_conductor::scaler::{Act, Decision};
use demi_conductor::{Action, Conductor, Instance, News, Phase, Sample, Time, Weight, MEGABYTE};

use super::{Ledger, Platform, Turn};
use crate::report::Sight;

/// What has grown in this time may be shed before its turn, for growing.
const GROWN_LATELY: Duration = Duration::from_secs(120);
/// For so long, and `calm_ms` more, a start may still be for what somebody has ordered.
const TOUCHED: Duration = Duration::from_secs(600);
/// What a platform has weighed at most counts nearly whole for so long.
const PEAK_COUNTS: Duration = Duration::from_secs(120);

/// What is known of RAM.
#[derive(Debug)]
pub(super) struct Ram {
    scaler: Scaler,
    /// What was used of it at the last sample that made sense, thousandths.
    permille: u64,
    /// The same, and all of it, bytes.
    bytes: (u64, u64),
    /// When that was, unless one that makes no sense has come since.
    measured_at: Option<Time>,
    /// What instances weighed that have ended since, and between the sample before and that one, bytes.
    pub(super) freed: (u64, u64),
    /// Since when no sample was above `restore_percent`.
    calm_since: Option<Time>,
}

impl Ram {
    pub(super) fn new(scaler: Scaler) -> Ram {
        Ram { scaler, permille: 0, bytes: (0, 0), measured_at: None, freed: (0, 0), calm_since: None }
    }
}

/// What a platform weighs, and how it fares when RAM is short.
#[derive(Debug)]
pub(super) struct Account {
    may_be_shed: bool,
    priority: u32,
    /// When it was shed, if it is, and when it was before, as far as nobody had started it by hand.
    shed_at: Option<Time>,
    pub(super) sheds: Vec<Time>,
    has_come_back: bool,
    /// It was not shed, but not started.
    is_held_back: bool,
    /// The most that one of its instances was found to weigh, bytes, and when.
    peak: (u64, Time),
    /// When one of its instances was last found to weigh so much more than at its least that it may go out of turn.
    grown_at: Option<Time>,
    /// What it had weighed before Demi began, bytes, and when that was last kept anew.
    pub(super) recalled: u64,
    kept_at: Option<Time>,
}

impl Account {
    pub(super) fn new(platform: &config::Platform) -> Account {
        Account {
            may_be_shed: platform.may_be_shed(),
            priority: platform.priority(),
            shed_at: None,
            sheds: Vec::new(),
            has_come_back: false,
            is_held_back: false,
            peak: (0, Time::ZERO),
            grown_at: None,
            recalled: 0,
            kept_at: None,
        }
    }
}

impl Ledger {
    /// Whether anything is done about RAM.
    fn sheds(&self) -> bool {
        self.ram.scaler.enabled && !self.ram.scaler.forecast_only
    }

    /// Whether this one may be shed, and somebody does it.
    pub(super) fn may_be_shed(&self, platform: usize) -> bool {
        self.sheds() && self.platforms[platform].ram.may_be_shed
    }

    /// Whether it was shed and will come back by itself.
    pub(crate) fn is_shed(&self, platform: usize) -> bool {
        let entry = &self.platforms[platform];
        entry.ram.shed_at.is_some() && !entry.is_stopped
    }

    pub(super) fn note_sample(&mut self, now: Time, sample: Sample) {
        let used = sample.ram_total.saturating_sub(sample.ram_available);
        // Two at one moment: calm is counted by the first.
        let is_second = self.ram.measured_at == Some(now);
        self.ram.measured_at = (used > 0).then_some(now);
        if used == 0 || self.phase != Phase::Running {
            return;
        }
        self.ram.freed = (0, self.ram.freed.0);
        self.ram.bytes = (used, sample.ram_total);
        self.ram.permille = (u128::from(used) * 1000 / u128::from(sample.ram_total)) as u64;
        let is_calm = u128::from(used) * 100
            <= u128::from(sample.ram_total) * u128::from(self.ram.scaler.restore_percent.value());
        if !is_second {
            self.ram.calm_since = if is_calm { self.ram.calm_since.or(Some(now)) } else { None };
        }
    }

    pub(super) fn note_weight(&mut self, now: Time, instance: Instance, weight: Weight) {
        let slot = &mut self.slots[instance.slot as usize];
        if slot.run != instance.run || slot.has_exited {
            return;
        }
        let before = std::mem::replace(&mut slot.weight, weight.rss_bytes);
        let account = &mut self.platforms[slot.platform].ram;
        if weight.rss_bytes >= account.peak.0 {
            account.peak = (weight.rss_bytes, now);
        }
        slot.least = if before == 0 { weight.rss_bytes } else { slot.least.min(weight.rss_bytes) };
        // Half of the least spike.
        if weight.rss_bytes - slot.least >= self.ram.scaler.spike_min_mb.value() * MEGABYTE / 2 {
            account.grown_at = Some(now);
        }
    }

    /// What a platform weighs at most is kept for the next run of Demi.
    pub(super) fn note_peak_kept(&mut self, now: Time, platform: usize, bytes: u64, rest: &[Action], turn: &Turn) {
        let is_ending = self.phase != Phase::Running || rest.contains(&Action::Flush) || turn.exited.is_some();
        let account = &mut self.platforms[platform].ram;
        let is_known = bytes <= account.peak.0.max(account.recalled);
        let is_soon = account.kept_at.is_some_and(|at| now - at < Duration::from_secs(60)) && !is_ending;
        assert!(is_known && !is_soon, "{platform} keeps {bytes} and had {:?}", account.peak);
        account.kept_at = Some(now);
        self.saw(Sight::KeptPeak);
    }

    /// An instance is in another state: perhaps it is shed now, or about to be, or not any more.
    pub(super) fn note_shed(&mut self, instance: Instance, state: State) {
        let slot = &mut self.slots[instance.slot as usize];
        let platform = slot.platform;
        slot.is_shed =
            matches!(state, State::Shed | State::Draining { then: Then::Shed } | State::Stopping { then: Then::Shed });
        if slot.is_shed {
            assert!(self.may_be_shed(platform), "{instance:?} was shed and may not be");
        } else {
            let slots = self.platforms[platform].slots.clone();
            if !self.slots[slots].iter().any(|slot| slot.is_shed) {
                self.platforms[platform].ram.shed_at = None;
            }
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
        assert!(self.ram.scaler.enabled, "{decision:?} and nobody watches RAM");
        assert_eq!(decision.is_done, !self.ram.scaler.forecast_only, "{decision:?}");
        if !decision.is_done {
            return self.saw(Sight::WouldHave);
        }
        let platform = decision.platform.map(|platform| platform as usize);
        match decision.act {
            Act::Trim => self.saw(Sight::TrimmedAll),
            Act::Exhausted => self.saw(Sight::Exhausted),
            Act::Sleep => self.saw(Sight::SleptForRam),
            Act::Refuse { missing } => self.note_refusal(now, platform.expect("one is refused"), missing, rest),
            Act::Restore => self.note_restored(now, platform.expect("one is restored")),
            Act::Shed | Act::Kill => {
                self.note_taken(now, platform.expect("one is shed"), decision.act, turn, conductor)
            }
            Act::Postpone { .. } => {
                assert!(self.may_be_too_much(), "a new edition of {platform:?} waits and fits: {:?}", self.ram.bytes);
                self.saw(Sight::Postponed);
            }
            Act::Overrule { .. } | Act::Won { .. } | Act::Wait { .. } | Act::Delay | Act::Believe(_) => {}
        }
    }

    /// A platform comes back: after a calm, if it fits, and the one that was shed last before the others.
    fn note_restored(&mut self, now: Time, platform: usize) {
        let calm = self.ram.calm_since.map(|since| now - since);
        let is_calm = calm.is_some_and(|calm| calm >= self.ram.scaler.calm_ms.millis());
        let is_held = self.platforms[platform].ram.is_held_back;
        assert!(is_calm || is_held, "{platform} came back after {calm:?} of calm");
        self.assert_it_fits(now, platform);
        let shed_at = self.platforms[platform].ram.shed_at;
        let is_next = (0..self.platforms.len())
            .all(|other| self.platforms[other].ram.shed_at <= shed_at || self.may_let_pass(other));
        assert!(shed_at.is_some() && (is_next || is_held), "{platform} came back before what was shed after it");
        let account = &mut self.platforms[platform].ram;
        (account.has_come_back, account.is_held_back) = (true, false);
        self.ram.calm_since = Some(now);
        self.saw(Sight::Restored);
    }

    /// A platform is shed, or killed: when RAM is short, in its turn, and not over and over.
    fn note_taken(&mut self, now: Time, platform: usize, act: Act, turn: &Turn, conductor: &Conductor) {
        let ram = self.ram.permille;
        assert!(ram >= self.ram.scaler.restore_percent.value() * 10, "{platform} was shed at {ram}");
        let is_emergency = ram >= self.ram.scaler.emergency_percent.value() * 10;
        assert!(act == Act::Shed || is_emergency, "{platform} was killed at {ram}");
        self.assert_its_time(now, platform, is_emergency, turn, conductor);
        self.saw(if act == Act::Shed { Sight::Shed } else { Sight::PutDown });
        let account = &mut self.platforms[platform].ram;
        account.is_held_back = false;
        if account.shed_at.is_none() {
            account.shed_at = Some(now);
            let window = self.ram.scaler.calm_ms.millis() * 12;
            account.sheds.retain(|at| now - *at < window);
            account.sheds.push(now);
            assert!(account.sheds.len() <= 5, "{platform} comes and goes: {:?}", account.sheds);
        }
    }

    /// Whether something may keep it from coming back: it has not ended, it came back in vain before, it waits for room only, or
    /// it may not fit.
    fn may_let_pass(&self, platform: usize) -> bool {
        let entry = &self.platforms[platform];
        let ends = entry.slots.clone().any(|slot| self.is_alive(slot));
        ends || entry.ram.has_come_back || entry.ram.is_held_back || self.may_be_too_much()
    }

    /// Whether everything that is known to weigh something, with all of its instances and itself once more, is too much.
    fn may_be_too_much(&self) -> bool {
        let known = |of: &Platform| of.ram.peak.0.max(of.ram.recalled) * (of.slots.len() as u64 + 1);
        let (used, total) = self.ram.bytes;
        used.saturating_add(self.platforms.iter().map(known).sum())
            >= total / 100 * self.ram.scaler.shed_percent.value()
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
        let is_needed = self.platforms.iter().any(|needy| needy.needs.contains(&platform) && !needy.ram.may_be_shed);
        assert!(entry.ram.may_be_shed && !is_needed, "{platform} is held back and may not be");
        let is_known = entry.ram.peak.0.max(entry.ram.recalled) > 0;
        assert!(is_known || !entry.needs.is_empty(), "{platform} is held back and nobody has weighed it");
        assert!(self.may_be_too_much(), "{platform} is held back and fits: {:?}", self.ram.bytes);
        let entry = &mut self.platforms[platform];
        entry.ram.is_held_back |= entry.ram.shed_at.is_none();
        entry.ram.shed_at = entry.ram.shed_at.or(Some(now));
        self.saw(Sight::HeldBack);
    }

    /// With what a platform is known to weigh at most, RAM stays below the threshold.
    fn assert_it_fits(&self, now: Time, platform: usize) {
        let entry = &self.platforms[platform];
        let (peak, at) = entry.ram.peak;
        let known = if now - at < PEAK_COUNTS { peak / 10 * 9 } else { 0 };
        let shed = entry.slots.clone().filter(|slot| self.slots[*slot].is_shed).count() as u64;
        let (used, total) = self.ram.bytes;
        let limit = total / 100 * self.ram.scaler.shed_percent.value();
        assert!(used + known * shed < limit, "{platform} came back and does not fit: {used} {known} {limit}");
    }

    /// It is started by itself, and it is not certain that it does not fit.
    pub(super) fn assert_it_may_fit(&self, now: Time, platform: usize) {
        let entry = &self.platforms[platform];
        // A person, or a reload, had a hand in it; or something needs it.
        let is_touched = entry.ordered_at.is_some_and(|at| now - at < TOUCHED + self.ram.scaler.calm_ms.millis());
        let is_needed = self.platforms.iter().any(|needy| needy.needs.contains(&platform));
        if entry.ram.may_be_shed && !is_touched && !is_needed {
            self.assert_one_more_may_fit(now, platform);
        }
    }

    /// It is not certain that one instance more does not fit.
    pub(super) fn assert_one_more_may_fit(&self, now: Time, platform: usize) {
        let (peak, at) = self.platforms[platform].ram.peak;
        let is_known = now - at < PEAK_COUNTS && peak > 0;
        let is_fresh = self.ram.measured_at.is_some_and(|at| now - at <= self.ram.scaler.interval_ms.millis() * 3);
        if !self.sheds() || self.phase != Phase::Running || !is_known || !is_fresh {
            return;
        }
        let (used, total) = self.ram.bytes;
        let rest = used.saturating_sub(self.ram.freed.0 + self.ram.freed.1);
        let limit = total / 100 * self.ram.scaler.shed_percent.value();
        assert!(rest + peak / 10 * 9 < limit, "{platform} was started and does not fit: {rest} {peak} {limit}");
    }

    /// Nobody whose priority is lower is left who may be shed, as far as the books know.
    fn assert_its_time(&self, now: Time, platform: usize, is_emergency: bool, turn: &Turn, conductor: &Conductor) {
        let entry = &self.platforms[platform];
        assert!(entry.ram.may_be_shed, "{platform} was shed and may not be");
        let runs = |of: &Platform| of.slots.clone().any(|slot| self.is_alive(slot));
        let needed = |index: usize| self.platforms.iter().any(|needy| needy.needs.contains(&index) && runs(needy));
        // One that drains already is put down whoever has come to need it meanwhile.
        let is_anew = entry.ram.shed_at.is_none();
        assert!(!is_anew || !needed(platform) || turn.exited.is_some(), "{platform} was shed and is needed");
        if is_emergency || !is_anew || turn.exited.is_some() {
            return;
        }
        let lately = self.ram.scaler.calm_ms.millis() + Duration::from_secs(60);
        for (index, told) in conductor.platforms().enumerate() {
            let other = &self.platforms[index];
            let is_touched = other.ordered_at.is_some_and(|at| now - at < lately) || told.is_reloading;
            let is_in_use = |slot: usize| {
                self.is_alive(slot) && self.slots[slot].started_at.is_some() && !self.slots[slot].is_ending
            };
            let is_in_order = other.slots.clone().all(|slot| self.slots[slot].draining_since.is_none());
            let stands = other.slots.clone().any(is_in_use) && is_in_order && other.ram.shed_at.is_none();
            let goes_first = other.ram.may_be_shed && other.ram.priority < entry.ram.priority && stands;
            let grows = self.ram.scaler.use_forecasts && entry.ram.grown_at.is_some_and(|at| now - at < GROWN_LATELY);
            assert!(!goes_first || needed(index) || is_touched || grows, "{platform} was shed before {index}");
        }
    }
}
