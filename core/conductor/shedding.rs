//! RAM runs short: one step at a time, the mildest first, and back again when it is calm.
//!
//! ```text
//!  short ──► trim: all give memory back ──► sleep: who is idle ──► shed: the lowest priority drains and stops ──► …
//!                                                                              ▲
//!  emergency ──────────────────────────────────────────────────────────────────┴─ kill: it does not drain
//!
//!  calm for calm_ms, and the last one shed fits ──► it is restored, and what is calm is counted anew
//! ```
//!
//! After a step nothing more is done until it is over and its time to show has passed; what it has won is told then. Where RAM
//! rises too fast for that, a trim has until the next sample only, which is soon. Nobody is
//! shed whom a running platform needs: those go before it. What comes back last is what went first, unless what went later does not
//! fit (`restoring.rs`); what fits is told by `fitting.rs`. A person who starts something overrules this, but in an emergency. With
//! `scaler.forecast_only` what would have been shed counts as gone.

mod fitting;
mod restoring;

use std::collections::VecDeque;
use std::time::Duration;

use crate::event::{Action, News, RamSource, Sample, Signal};
use crate::footprint::Trend;
use crate::lifecycle::{Input, Reason, State, Then};
use crate::orders::{is_at_rest, is_shed};
use crate::scaler::policy::{Finding, Policy, Shortage};
use crate::scaler::{Act, Ahead, Cause, Decision, Figures, Outlook, Reading, Step, Taken};
use crate::shutdown::Phase;
use crate::swap::is_making_room;
use crate::time::Time;
use crate::timers::Timer;
use crate::{config, Conductor};

/// Decisions that are remembered.
const LOG_MAX: usize = 128;
/// A platform that was shed again within so many times `calm_ms` of its return has its next wait doubled…
const RELAPSE_CALMS: u32 = 4;
/// …so often at most.
const DOUBLINGS_MAX: u32 = 3;
/// A run that has started so lately may still grow to what its platform is known to weigh.
const GROWS_FOR: Duration = Duration::from_secs(30);
/// The same is told again after this.
const TELL_AGAIN: Duration = Duration::from_secs(600);
/// Whoever grows by less than this part of RAM within the horizon, percent, is not to blame that it is short…
const CULPRIT_PERCENT: u64 = 5;
/// …nor that it will be.
const CULPRIT_AHEAD_PERCENT: u64 = 2;
/// What something is worth is divided by bytes, and is still to differ.
const WORTH: u64 = 1 << 50;

/// What is known of RAM, and what was done about it.
#[derive(Debug)]
pub(crate) struct Scaling {
    policy: Policy,
    outlook: Outlook,
    /// Those that are shed, or would be, in the order in which they were.
    shed: Vec<u32>,
    /// Those that would have been put to sleep, and when, if nothing is done but told: until they are asked.
    dozing: Vec<(u32, Time)>,
    /// The last step, until it has shown what it has won.
    step: Option<Underway>,
    trimmed_at: Option<Time>,
    is_exhausted: bool,
    /// What the last one that could not come back was told, when.
    held: Option<(u32, Act, Time)>,
    log: VecDeque<Decision>,
    /// How many there were, by the index of their act.
    counts: [u64; Act::NAMES.len()],
    /// Requests that had come at the last sample, and when that was.
    asked: (u64, Time),
    /// What all children weighed at the last sample, and what the first look at the machine after it said was available.
    moved_from: (u64, Option<u64>),
    /// When something last came back.
    returned_at: Option<Time>,
    has_begun: bool,
    /// What instances weighed that have ended since the last sample, bytes: it counts as used in there. And those of them that
    /// have since the next one was asked for.
    freed: u64,
    freed_since_asked: u64,
}

/// A step that was taken.
#[derive(Clone, Copy, Debug)]
struct Underway {
    step: Step,
    platform: Option<u32>,
    since: Time,
    /// When what it was about had ended.
    over_at: Option<Time>,
    used_before: u64,
    weighed: u64,
}

impl Scaling {
    pub(crate) fn new(settings: &config::Scaler) -> Scaling {
        Scaling {
            policy: Policy::new(settings),
            outlook: Outlook::new(settings),
            shed: Vec::new(),
            dozing: Vec::new(),
            step: None,
            trimmed_at: None,
            is_exhausted: false,
            held: None,
            log: VecDeque::with_capacity(LOG_MAX),
            counts: [0; Act::NAMES.len()],
            asked: (0, Time::ZERO),
            moved_from: (0, None),
            returned_at: None,
            has_begun: false,
            freed: 0,
            freed_since_asked: 0,
        }
    }

    /// Demi begins: from here on something is done.
    pub(crate) fn begin(&mut self) {
        self.has_begun = true;
    }
}

impl Conductor {
    /// The machine was measured.
    pub(crate) fn measured(&mut self, sample: Sample, out: &mut Vec<Action>) {
        self.sample = Some((self.now, sample));
        let weight_total = self.weight_total;
        if let Some(scaling) = &mut self.scaling {
            scaling.moved_from = (weight_total, None);
            scaling.freed = scaling.freed_since_asked;
        }
        let has_begun = self.scaling.as_ref().is_some_and(|scaling| scaling.has_begun);
        if !has_begun || self.phase != Phase::Running {
            return;
        }
        let (now, asked) = (self.now, self.asked_count);
        let used = self.used(&sample);
        let Some(scaling) = &mut self.scaling else { return };
        let ram_percent = used as f64 / sample.ram_total as f64 * 100.0;
        let span = (now - scaling.asked.1).as_secs_f64();
        let requests_per_s = (asked - scaling.asked.0) as f64 / span;
        let taken = scaling.outlook.take(now, &Reading { ram_percent, requests_per_s, date_s: sample.date_s });
        if let Taken::Unfit(_) = taken {
            return;
        }
        scaling.asked = (asked, now);
        let forecast = scaling.outlook.forecast();
        let finding = scaling.policy.take(now, ram_percent, forecast.as_ref());
        if let Taken::Promoted(promotion) = taken {
            self.decide(None, Act::Believe(promotion), out);
        }
        self.look_at_step(out);
        match finding {
            Finding::Fair => {
                self.restore_held(out);
                self.resume_swap();
            }
            Finding::Short(shortage) => self.relieve(shortage, out),
            Finding::Calm(calm) => {
                self.restore_next(calm, out);
                self.restore_held(out);
                self.resume_swap();
            }
        }
        let next = now + self.sample_interval();
        if self.timers.at(Timer::Sample).is_none_or(|at| at > next) {
            self.set_timer(Timer::Sample, next);
        }
    }

    /// Another sample is asked for: what ends from here on may still be in there.
    pub(crate) fn sample_asked(&mut self) {
        if let Some(scaling) = &mut self.scaling {
            scaling.freed_since_asked = 0;
        }
    }

    /// An instance has ended, and with it what it used.
    pub(crate) fn note_freed(&mut self, slot: usize) {
        let bytes = self.slots[slot].weight.map_or(0, |weight| weight.rss_bytes);
        if let Some(scaling) = &mut self.scaling {
            scaling.freed = scaling.freed.saturating_add(bytes);
            scaling.freed_since_asked = scaling.freed_since_asked.saturating_add(bytes);
        }
    }

    /// Until the next sample.
    pub(crate) fn sample_interval(&self) -> Duration {
        let settings = &self.settings.scaler;
        match self.is_ram_watched_closely() {
            true if self.is_pressing() => settings.fast_interval_ms.millis() / 2,
            true => settings.fast_interval_ms.millis(),
            false => settings.interval_ms.millis(),
        }
    }

    /// Whether RAM is near the threshold, or a step is being looked at: then what children weigh has to be as fresh as the samples.
    pub(crate) fn is_ram_watched_closely(&self) -> bool {
        let is_close = |scaling: &Scaling| scaling.policy.is_near() || scaling.step.is_some();
        self.scaling.as_deref().is_some_and(is_close)
    }

    /// All children have been weighed, and the machine was looked at in passing.
    pub(crate) fn all_weighed(&mut self, available: Option<u64>) {
        let (now, bytes) = (self.now, self.weight_total);
        let to_come = bytes.saturating_add(self.promised());
        let Some((_, sample)) = self.sample else { return };
        let Some(scaling) = &mut self.scaling else { return };
        let is_spike = scaling.policy.weigh(now, to_come, sample.ram_total);
        // Of a limit that is narrower than the machine nothing is told in passing.
        let is_of_machine =
            matches!(sample.ram_source, RamSource::MemAvailable | RamSource::Estimate | RamSource::System);
        let weighed_before = scaling.moved_from.0;
        let seen = available.filter(|_| is_of_machine);
        let seen_before = seen.map(|available| *scaling.moved_from.1.get_or_insert(available));
        let has_moved = self.has_moved(weighed_before, bytes)
            || seen.zip(seen_before).is_some_and(|(available, before)| self.has_moved(before, available));
        if is_spike || has_moved {
            self.sample_now();
        }
    }

    /// Whether so many bytes that became others are a move of RAM that cannot wait for the next sample.
    fn has_moved(&self, before: u64, now: u64) -> bool {
        let Some((_, sample)) = self.sample else { return false };
        let percent = self.settings.scaler.moved_percent.value();
        percent > 0 && sample.ram_total > 0 && before.abs_diff(now) >= sample.ram_total / 100 * percent
    }

    /// Has RAM measured now.
    fn sample_now(&mut self) {
        if self.phase == Phase::Running {
            self.set_timer(Timer::Sample, self.now);
        }
    }

    /// An instance was found to weigh so much: it may be the most that one of its platform has.
    pub(crate) fn note_footprint(&mut self, slot: usize, bytes: u64, out: &mut Vec<Action>) {
        let (now, platform) = (self.now, self.slots[slot].platform);
        if self.slots[slot].trend.is_none() {
            // What is there at the start has not grown fast.
            self.forget_weights();
        }
        let is_watched = self.scaling.is_some();
        let entry = &mut self.platforms[platform as usize];
        let instances = self.slots[entry.slots()].iter().filter(|slot| slot.weight.is_some()).count() as u32;
        let trend = self.slots[slot].trend.get_or_insert(Trend::begin(now, bytes));
        let kept = entry.footprint.weigh(now, bytes, trend, instances).filter(|_| is_watched);
        out.extend(kept.map(|bytes| Action::KeepPeak { platform, bytes }));
    }

    /// A run has ended: what it was seen to weigh is kept now, or nobody knows it after a crash of Demi.
    pub(crate) fn keep_peak_of(&mut self, slot: usize, out: &mut Vec<Action>) {
        let (now, platform) = (self.now, self.slots[slot].platform);
        let is_watched = self.scaling.is_some();
        let kept = self.platforms[platform as usize].footprint.at_end_of_run(now).filter(|_| is_watched);
        out.extend(kept.map(|bytes| Action::KeepPeak { platform, bytes }));
    }

    /// Demi ends: what had to wait to be kept is kept now.
    pub(crate) fn keep_peaks(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let peaks = (0..).zip(&mut self.platforms).filter_map(|(platform, entry)| {
            entry.footprint.at_end(now).map(|bytes| Action::KeepPeak { platform, bytes })
        });
        if self.scaling.is_some() {
            out.extend(peaks);
        }
    }

    pub(crate) fn peak_recalled(&mut self, platform: u32, bytes: u64, age: Duration) {
        let now = self.now;
        if let Some(platform) = self.platforms.get_mut(platform as usize) {
            platform.footprint.recall(now, bytes, age);
        }
    }

    /// Some child is another now: what all weigh together is not compared with before.
    pub(crate) fn forget_weights(&mut self) {
        if let Some(scaling) = &mut self.scaling {
            scaling.policy.forget_weights();
        }
    }

    /// Used RAM, bytes: without what would have been shed, if nothing is done but told.
    fn used(&self, sample: &Sample) -> u64 {
        let used = sample.ram_total.saturating_sub(sample.ram_available);
        match &self.scaling {
            Some(scaling) if self.settings.scaler.forecast_only => {
                let dozing = scaling.dozing.iter().map(|(platform, _)| platform).filter(|one| self.is_dozing(**one));
                let gone = scaling.shed.iter().chain(dozing.filter(|one| !self.is_listed(**one)));
                used.saturating_sub(gone.map(|platform| self.weighs(*platform as usize)).sum())
            }
            Some(_) | None => used,
        }
    }

    /// What the instances of a platform weigh, bytes.
    fn weighs(&self, platform: usize) -> u64 {
        let slots = self.slots[self.platforms[platform].slots()].iter();
        slots.filter_map(|slot| slot.weight).map(|weight| weight.rss_bytes).sum()
    }

    /// Takes the next step, if the last one has shown what it has won.
    fn relieve(&mut self, shortage: Shortage, out: &mut Vec<Action>) {
        let is_emergency = shortage == Shortage::Emergency;
        if !self.may_step(is_emergency) {
            return;
        }
        self.conclude_step(out);
        let calm = self.settings.scaler.calm_ms.millis();
        let trimmed_at = self.scaling.as_ref().and_then(|scaling| scaling.trimmed_at);
        let is_trimmed = trimmed_at.is_some_and(|at| self.now - at < calm);
        if !is_emergency && !is_trimmed && self.trim_all(shortage, out) {
            return;
        }
        let in_its_turn = Cause { shortage, is_out_of_turn: false };
        let idle = if is_emergency { None } else { self.next_to_sleep() };
        if let Some(platform) = idle {
            self.begin_step(Step::Sleep, Some(platform), in_its_turn, out);
            if self.settings.scaler.forecast_only {
                return self.let_doze(platform as u32);
            }
            return self.put_to_sleep(platform, self.reason_of(shortage), out);
        }
        let draining = if is_emergency { self.next_to_put_down() } else { None };
        // Of a spike that nobody is to blame for only the threshold makes something.
        let is_spike = matches!(shortage, Shortage::Spike { .. });
        let in_turn = || if is_spike { None } else { self.next_to_shed(is_emergency) };
        let culprit = if draining.is_none() { self.culprit(shortage) } else { None };
        let cause = Cause { is_out_of_turn: culprit.is_some(), ..in_its_turn };
        let Some(platform) = draining.or(culprit).or_else(in_turn) else {
            let is_short = matches!(shortage, Shortage::Above | Shortage::Emergency);
            return if is_short {
                self.note_exhausted(out)
            };
        };
        let step = if is_emergency && self.platforms[platform].host.is_child() { Step::Kill } else { Step::Shed };
        self.begin_step(step, Some(platform), cause, out);
        self.shed(platform, step, self.reason_of(shortage), out);
        if is_spike {
            // It was answered.
            self.forget_weights();
        }
    }

    fn may_step(&self, is_emergency: bool) -> bool {
        let Some(step) = self.scaling.as_ref().and_then(|scaling| scaling.step) else { return true };
        let has_time = self.now - step.since < self.cooldown(is_emergency);
        is_emergency && (step.step != Step::Kill || !has_time) || step.step == Step::Trim && self.is_pressing()
    }

    /// Whether there is no time to see what a trim wins.
    fn is_pressing(&self) -> bool {
        self.scaling.as_ref().is_some_and(|scaling| scaling.policy.is_pressing())
    }

    fn cooldown(&self, is_emergency: bool) -> Duration {
        let cooldown = self.settings.scaler.cooldown_ms.millis();
        if is_emergency {
            cooldown / 5
        } else {
            cooldown
        }
    }

    fn begin_step(&mut self, step: Step, platform: Option<usize>, cause: Cause, out: &mut Vec<Action>) {
        let act = match step {
            Step::Trim => Act::Trim,
            Step::Sleep => Act::Sleep,
            Step::Shed => Act::Shed,
            Step::Kill => Act::Kill,
        };
        self.decide_for(platform, act, Some(cause), out);
        let used_before = self.sample.map_or(0, |(_, sample)| self.used(&sample));
        let weighed = platform.map_or(0, |platform| self.weighs(platform));
        let platform = platform.map(|platform| platform as u32);
        let underway = Underway { step, platform, since: self.now, over_at: None, used_before, weighed };
        let Some(scaling) = &mut self.scaling else { return };
        scaling.is_exhausted = false;
        if step == Step::Trim {
            scaling.trimmed_at = Some(self.now);
        }
        scaling.step = Some(underway);
    }

    /// Sees whether what the last step was about has ended, and tells what it has won.
    fn look_at_step(&mut self, out: &mut Vec<Action>) {
        let Some(step) = self.scaling.as_ref().and_then(|scaling| scaling.step) else { return };
        let is_leaving = |state: State| matches!(state, State::Draining { .. } | State::Stopping { .. });
        let is_over = step.platform.is_none_or(|platform| {
            let slots = &self.slots[self.platforms[platform as usize].slots()];
            !slots.iter().any(|slot| is_leaving(slot.life.state()))
        });
        let over_at = step.over_at.or(is_over.then_some(if step.platform.is_none() { step.since } else { self.now }));
        if over_at.is_some_and(|at| self.now - at >= self.cooldown(step.step == Step::Kill)) {
            return self.conclude_step(out);
        }
        if let Some(scaling) = &mut self.scaling {
            scaling.step = Some(Underway { over_at, ..step });
        }
    }

    fn conclude_step(&mut self, out: &mut Vec<Action>) {
        let Some(step) = self.scaling.as_mut().and_then(|scaling| scaling.step.take()) else { return };
        // What was not done has won nothing.
        let Some((_, sample)) = self.sample.filter(|_| !self.settings.scaler.forecast_only) else { return };
        let bytes = (step.used_before as i64).saturating_sub(self.used(&sample) as i64);
        let act = Act::Won { step: step.step, weighed: step.weighed, bytes };
        self.decide(step.platform.map(|platform| platform as usize), act, out);
    }

    fn reason_of(&self, shortage: Shortage) -> Reason {
        let settings = &self.settings.scaler;
        let ram_permille = self.figures(0).ram_permille;
        let (shed, emergency) = (settings.shed_percent.count(), settings.emergency_percent.count());
        match shortage {
            Shortage::Above => Reason::RamShort { ram_permille, at_percent: shed },
            Shortage::Emergency => Reason::RamEmergency { ram_permille, at_percent: emergency },
            Shortage::Forecast { ram_permille } => Reason::RamForecast { ram_permille, at_percent: shed },
            Shortage::Spike { from, to } => Reason::RamSpike { from, to },
        }
    }

    /// Asks every child that is ready to give memory back. Whether there is one.
    fn trim_all(&mut self, shortage: Shortage, out: &mut Vec<Action>) -> bool {
        let is_asked = |slot: &usize| {
            let entry = &self.slots[*slot];
            self.platforms[entry.platform as usize].host.is_child() && entry.life.is_ready()
        };
        if !(0..self.slots.len()).any(|slot| is_asked(&slot)) {
            return false;
        }
        if !self.settings.scaler.forecast_only {
            let asked = (0..self.slots.len()).filter(is_asked);
            out.extend(asked.map(|slot| Action::Trim { instance: self.instance(slot) }));
        }
        // Who goes next, and whether it fits again, depends on what they weigh by now.
        self.weigh_due(out);
        self.begin_step(Step::Trim, None, Cause { shortage, is_out_of_turn: false }, out);
        true
    }

    /// Whether it may be stopped for want of RAM, as things are.
    pub(crate) fn may_go(&self, platform: usize) -> bool {
        let entry = &self.platforms[platform];
        let is_needed = |needy: &u32| {
            let slots = &self.slots[self.platforms[*needy as usize].slots()];
            !self.is_told_gone(*needy) && slots.iter().any(|slot| slot.life.is_alive())
        };
        entry.terms.may_be_shed && !entry.is_changing() && !entry.needed_by.iter().any(is_needed)
    }

    /// Whether it is among those that were shed, or would have been.
    pub(crate) fn is_listed(&self, platform: u32) -> bool {
        self.scaling.as_ref().is_some_and(|scaling| scaling.shed.contains(&platform))
    }

    /// Whether nothing is done but told, and it would not run any more.
    fn is_told_gone(&self, platform: u32) -> bool {
        self.settings.scaler.forecast_only && (self.is_listed(platform) || self.is_dozing(platform))
    }

    /// Whether it would have been put to sleep, and nobody has asked for it since.
    fn is_dozing(&self, platform: u32) -> bool {
        let entry = &self.platforms[platform as usize];
        let stays = |(of, since): &(u32, Time)| *of == platform && entry.used_at <= *since && entry.live == 0;
        self.scaling.as_ref().is_some_and(|scaling| scaling.dozing.iter().any(stays))
    }

    /// It would have been put to sleep.
    fn let_doze(&mut self, platform: u32) {
        let now = self.now;
        let Some(scaling) = &mut self.scaling else { return };
        scaling.dozing.retain(|(other, _)| *other != platform);
        scaling.dozing.push((platform, now));
    }

    /// The idle platform with the lowest priority that may sleep.
    fn next_to_sleep(&self) -> Option<usize> {
        let is_idle = |platform: &usize| {
            let entry = &self.platforms[*platform];
            let slots = &self.slots[entry.slots()];
            entry.terms.sleep_after.is_some()
                && entry.live == 0
                && self.now - entry.used_at >= self.cooldown(false)
                && slots.iter().any(|slot| slot.life.is_ready())
                && slots.iter().all(|slot| slot.occupied() == 0)
                && !self.is_told_gone(*platform as u32)
                && self.may_go(*platform)
        };
        (0..self.platforms.len()).filter(is_idle).min_by_key(|platform| self.platforms[*platform].terms.priority)
    }

    /// Whether it may be shed now.
    fn goes(&self, platform: usize, is_emergency: bool) -> bool {
        let entry = &self.platforms[platform];
        let is_spared = self.is_started_by_hand(platform) && !is_emergency;
        let is_told = self.is_told_gone(platform as u32);
        let holds = |slot: &crate::Slot| {
            let state = slot.life.state();
            state.is_alive() && !is_at_rest(state) && !is_shed(state)
        };
        !is_spared && !is_told && self.may_go(platform) && self.slots[entry.slots()].iter().any(holds)
    }

    /// The platform that goes whatever its priority is, because to shed others would only put it off. It weighs unusually much,
    /// and as it grows, it would alone bring RAM to `emergency_percent` within the horizon, and from there to the end within a
    /// minute; or it is half of what makes a forecast come true, or of a spike.
    fn culprit(&self, shortage: Shortage) -> Option<usize> {
        let settings = &self.settings.scaler;
        // A spike is no forecast.
        let is_asked = settings.use_forecasts || matches!(shortage, Shortage::Spike { .. });
        let (_, sample) = self.sample.filter(|_| is_asked)?;
        let (used, percent) = (self.used(&sample), sample.ram_total / 100);
        let emergency = settings.emergency_percent.value();
        let left = (percent * emergency).saturating_sub(used);
        let last = percent * (100 - emergency).max(CULPRIT_PERCENT);
        let horizon_s = settings.horizon_ms.millis().as_secs();
        let (enough, within_s) = match shortage {
            Shortage::Forecast { ram_permille } => {
                let ahead = sample.ram_total / 1000 * u64::from(ram_permille);
                ((ahead.saturating_sub(used) / 2).min(left).max(percent * CULPRIT_AHEAD_PERCENT), horizon_s)
            }
            Shortage::Above => (left.max(last), horizon_s),
            Shortage::Emergency => (last, 60),
            // It has happened already.
            Shortage::Spike { from, to } => ((to - from) / 2, 0),
        };
        let grows = |platform: usize| {
            let entry = &self.platforms[platform];
            let of_slot = |slot: &crate::Slot| {
                let (weight, trend) = slot.weight.zip(slot.trend)?;
                let is_unusual = entry.footprint.is_unusual(weight.rss_bytes, GROWS_FOR);
                let bytes = match within_s {
                    0 => trend.rise_bytes(),
                    _ => trend.growth_bytes_per_s().saturating_mul(within_s),
                };
                is_unusual.then_some(bytes)
            };
            (self.slots[entry.slots()].iter().filter_map(of_slot).fold(0, u64::saturating_add), platform)
        };
        let is_emergency = shortage == Shortage::Emergency;
        let may_go = (0..self.platforms.len()).filter(|platform| self.goes(*platform, is_emergency)).map(grows);
        may_go.max().filter(|(growth, _)| *growth >= enough.max(1)).map(|(_, platform)| platform)
    }

    /// The platform with the lowest priority of those that may go; of several the one that is worth least for what it weighs.
    fn next_to_shed(&self, is_emergency: bool) -> Option<usize> {
        let goes = |platform: &usize| self.goes(*platform, is_emergency);
        let rank = |platform: &usize| {
            let terms = &self.platforms[*platform].terms;
            (terms.priority, u64::from(terms.value) * WORTH / self.weighs(*platform).max(1))
        };
        (0..self.platforms.len()).filter(goes).min_by_key(rank)
    }

    /// Whether a person has started it lately.
    pub(crate) fn is_started_by_hand(&self, platform: usize) -> bool {
        let calm = self.settings.scaler.calm_ms.millis();
        self.platforms[platform].footprint.by_hand_at.is_some_and(|at| self.now - at < calm)
    }

    /// A platform that is shed and still drains.
    fn next_to_put_down(&self) -> Option<usize> {
        let drains = |platform: &usize| {
            let entry = &self.platforms[*platform];
            let is_left = |slot: &crate::Slot| slot.life.is_alive() && is_shed(slot.life.state()) && !slot.is_put_down;
            entry.host.is_child() && self.slots[entry.slots()].iter().any(is_left)
        };
        (0..self.platforms.len()).find(drains)
    }

    fn shed(&mut self, platform: usize, step: Step, reason: Reason, out: &mut Vec<Action>) {
        self.list(platform);
        self.platforms[platform].footprint.is_held = false;
        if self.settings.scaler.forecast_only {
            return;
        }
        for slot in self.platforms[platform].slots() {
            let state = self.slots[slot].life.state();
            // What leaves its slot to the next edition is ending anyway.
            let is_leaving_slot = is_making_room(state);
            let is_touched = !is_leaving_slot && !is_at_rest(state);
            match step {
                Step::Kill if is_touched || is_leaving_slot => {
                    if is_touched {
                        self.take(slot, Input::End(Then::Shed, reason), out);
                    }
                    if self.slots[slot].life.is_alive() {
                        self.slots[slot].is_put_down = true;
                        out.push(Action::Signal { instance: self.instance(slot), signal: Signal::Kill });
                    }
                }
                Step::Shed if is_touched => self.take(slot, Input::Drain(Then::Shed, reason), out),
                Step::Trim | Step::Sleep | Step::Shed | Step::Kill => {}
            }
        }
        self.has_unsettled = true;
        // Whoever waits for it goes elsewhere, or is told.
        self.pump(platform, out);
    }

    /// Gives it its place among those that come back, if it has none.
    pub(crate) fn list(&mut self, platform: usize) {
        let now = self.now;
        let relapse_max = self.settings.scaler.calm_ms.millis() * RELAPSE_CALMS;
        let is_shed = self.settings.scaler.forecast_only || self.is_shed_somewhere(platform);
        let Some(scaling) = &mut self.scaling else { return };
        // One that came back by hand since it was shed has lost its place.
        scaling.shed.retain(|other| is_shed || *other != platform as u32);
        if !scaling.shed.contains(&(platform as u32)) {
            scaling.shed.push(platform as u32);
            let footprint = &mut self.platforms[platform].footprint;
            let is_relapse = footprint.restored_at.is_some_and(|at| now - at < relapse_max);
            footprint.relapses = if is_relapse { (footprint.relapses + 1).min(DOUBLINGS_MAX) } else { 0 };
        }
    }

    fn note_exhausted(&mut self, out: &mut Vec<Action>) {
        let Some(scaling) = &mut self.scaling else { return };
        if !std::mem::replace(&mut scaling.is_exhausted, true) {
            self.decide(None, Act::Exhausted, out);
        }
    }

    /// How RAM is now, with what it is forecast to be; `None` before the first sample, or if nobody watches it.
    pub fn ram_figures(&self) -> Option<Figures> {
        self.sample.filter(|_| self.scaling.is_some()).map(|_| self.figures(self.settings.scaler.shed_percent.count()))
    }

    /// How RAM is watched.
    pub fn scaler(&self) -> &config::Scaler {
        &self.settings.scaler
    }

    fn figures(&self, threshold_percent: u32) -> Figures {
        let Some(((_, sample), scaling)) = self.sample.zip(self.scaling.as_ref()) else { return Figures::default() };
        let ram_used = self.used(&sample);
        let model = scaling.outlook.champion();
        Figures {
            ram_permille: (u128::from(ram_used) * 1000 / u128::from(sample.ram_total.max(1))) as u32,
            ram_used,
            ram_total: sample.ram_total,
            forecast: scaling.outlook.forecast().map(|forecast| Ahead::of(model, &forecast)),
            threshold_percent,
            cause: None,
        }
    }

    /// Enters a decision into the log, and tells it of its platform.
    pub(crate) fn decide(&mut self, platform: Option<usize>, act: Act, out: &mut Vec<Action>) {
        self.decide_for(platform, act, None, out);
    }

    fn decide_for(&mut self, platform: Option<usize>, act: Act, cause: Option<Cause>, out: &mut Vec<Action>) {
        let settings = &self.settings.scaler;
        let threshold = match act {
            Act::Kill => settings.emergency_percent.count(),
            Act::Restore | Act::Delay => settings.restore_percent.count(),
            Act::Trim
            | Act::Sleep
            | Act::Shed
            | Act::Exhausted
            | Act::Won { .. }
            | Act::Wait { .. }
            | Act::Refuse { .. }
            | Act::Postpone { .. }
            | Act::Overrule { .. }
            | Act::Believe(_) => settings.shed_percent.count(),
        };
        let is_done = !settings.forecast_only;
        let (at, figures) = (self.now, Figures { cause, ..self.figures(threshold) });
        let decision = Decision { at, platform: platform.map(|index| index as u32), act, figures, is_done };
        let Some(scaling) = &mut self.scaling else { return };
        if scaling.log.len() == LOG_MAX {
            scaling.log.pop_front();
        }
        scaling.log.push_back(decision);
        scaling.counts[act.index()] += 1;
        out.push(Action::Decide { decision });
        if let Some(platform) = platform {
            self.tell_platform(platform, News::Scaled { decision }, out);
        }
    }

    /// What was decided about RAM lately, oldest first.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.scaling.iter().flat_map(|scaling| &scaling.log)
    }

    /// How many decisions about RAM there were, in the order of [`Act::NAMES`]; `None` if `scaler.enabled` is false.
    pub fn decision_counts(&self) -> Option<&[u64; Act::NAMES.len()]> {
        self.scaling.as_ref().map(|scaling| &scaling.counts)
    }

    /// What forecasts RAM; `None` if `scaler.enabled` is false.
    pub fn outlook(&self) -> Option<&Outlook> {
        self.scaling.as_ref().map(|scaling| &scaling.outlook)
    }

    /// Since when RAM has been calm enough for what was shed to come back, if it is.
    pub fn calm_since(&self) -> Option<Time> {
        self.scaling.as_ref()?.policy.calm_since()
    }

    pub(crate) fn check_scaling(&self) {
        let total: u64 = self.slots.iter().filter_map(|slot| slot.weight).map(|weight| weight.rss_bytes).sum();
        assert_eq!(total, self.weight_total, "what all children weigh is miscounted");
        let Some(scaling) = &self.scaling else {
            let is_shed = self.slots.iter().any(|slot| is_shed(slot.life.state()));
            return assert!(!is_shed, "something is shed and nobody watches RAM");
        };
        assert!(scaling.freed_since_asked <= scaling.freed, "more has ended since the next sample than since the last");
        scaling.outlook.check();
        assert!(scaling.log.len() <= LOG_MAX, "the log of decisions has outgrown its bound");
        let most = scaling.shed.len().max(scaling.dozing.len());
        assert!(most <= self.platforms.len(), "more is shed than there is");
        for platform in 0..self.platforms.len() {
            let is_lost = self.is_shed_somewhere(platform) && !scaling.shed.contains(&(platform as u32));
            assert!(!is_lost, "{} is shed and will never come back", self.platforms[platform].name);
        }
    }
}
