//! Who is cut off: what the breakers of instances and platforms make of the calls that end, and what follows from it.
//!
//! The last instance of a platform is not cut off for failed calls alone: if its breaker trips, it stays in use and is
//! asked how it is, and what it answers decides. A platform as a whole is cut off for its calls, whatever its probes say.
//! If most instances of a platform are cut off and the rest have their hands full, requests go to those all the same.

use crate::breaker::{Cause, Finding};
use crate::config::{Host, Recovery};
use crate::event::{Action, Instance, News, Ticket, Verdict};
use crate::lifecycle::{Input, Reason, Then};
use crate::stats::TrialEnd;
use crate::time::Time;
use crate::timers::Timer;
use crate::Conductor;

impl Conductor {
    /// A request goes to an instance: if that tries a breaker, it is not waited for for ever.
    pub(crate) fn admit(&mut self, slot: usize, ticket: Ticket) {
        let platform = self.slots[slot].platform as usize;
        if self.slots[slot].breaker.admit(ticket) {
            let trial = self.platforms[platform].care.breaker.trial_ms.millis();
            self.set_timer(Timer::TrialLate(self.instance(slot)), self.now + trial);
        }
        if self.platforms[platform].breaker.admit(ticket) {
            let trial = self.platforms[platform].care.breaker.trial_ms.millis();
            self.set_timer(Timer::PlatformTrialLate(platform as u32), self.now + trial);
        }
    }

    /// A call of an instance has ended. `is_gone`: the run is over, and its breaker with it.
    pub(crate) fn record(
        &mut self,
        slot: usize,
        ticket: Ticket,
        finding: Finding,
        is_slow: bool,
        is_gone: bool,
        out: &mut Vec<Action>,
    ) {
        let index = self.slots[slot].platform as usize;
        // What fails behind something that cannot be reached says nothing of whoever failed.
        let is_excused = self.is_excused(index);
        let is_bad = matches!(finding, Finding::Bad(_));
        let finding = if is_excused && is_bad { Finding::Nothing } else { finding };
        let is_slow = is_slow && !is_excused;
        let entry = &mut self.slots[slot];
        if is_bad {
            entry.bad_since = entry.bad_since.or(Some(self.now));
        } else if finding == Finding::Good {
            entry.bad_since = None;
        }
        let (now, platform) = (self.now, &mut self.platforms[index]);
        if !is_gone {
            let breaker = &mut self.slots[slot].breaker;
            let was_closed = breaker.is_closed();
            let is_trial = !was_closed && breaker.trial() == Some(ticket);
            let cause = breaker.record(now, ticket, finding, is_slow, &platform.care.instance_rules);
            if is_trial {
                platform.stats.count_trial(TrialEnd::of(finding));
                self.trial_ended(slot, out);
            }
            if let Some(cause) = cause.filter(|_| !is_excused) {
                self.tripped(slot, cause, out);
            }
        }
        // What ends without a trial is counted when the request ends: see `record_end`.
        let platform = &mut self.platforms[index];
        if !platform.breaker.is_closed() {
            let is_trial = platform.breaker.trial() == Some(ticket);
            let cause = platform.breaker.record(now, ticket, finding, is_slow, &platform.care.platform_rules);
            if is_trial {
                self.timers.cancel(Timer::PlatformTrialLate(index as u32));
                self.platform_may_have_closed(index, out);
            }
            if let Some(cause) = cause.filter(|_| !is_excused) {
                self.platform_tripped(index, cause, out);
            }
        }
    }

    /// A request has ended for a platform, by the finding of its last attempt: what another instance made good is nothing
    /// that the platform as a whole failed.
    pub(crate) fn record_end(
        &mut self,
        index: usize,
        ticket: Ticket,
        finding: Finding,
        is_slow: bool,
        out: &mut Vec<Action>,
    ) {
        let platform = &mut self.platforms[index];
        if finding == Finding::Nothing || !platform.breaker.is_closed() {
            return;
        }
        let cause = platform.breaker.record(self.now, ticket, finding, is_slow, &platform.care.platform_rules);
        if let Some(cause) = cause.filter(|_| !self.is_excused(index)) {
            self.platform_tripped(index, cause, out);
        }
    }

    /// The request that tried the breaker of an instance does so no more.
    fn trial_ended(&mut self, slot: usize, out: &mut Vec<Action>) {
        self.timers.cancel(Timer::TrialLate(self.instance(slot)));
        if self.slots[slot].breaker.is_closed() {
            self.closed(slot, false, out);
        }
    }

    fn closed(&mut self, slot: usize, is_by_hand: bool, out: &mut Vec<Action>) {
        log::info!("{}: its breaker closes", self.title(slot));
        self.slots[slot].returned_at = Some(self.now);
        self.tell(slot, News::BreakerClosed { is_by_hand }, out);
    }

    /// The breaker of an instance has tripped, or the instance is far worse than its peers.
    pub(crate) fn tripped(&mut self, slot: usize, cause: Cause, out: &mut Vec<Action>) {
        if self.slots[slot].accused.is_some() {
            return;
        }
        if cause != Cause::ProbeFailed && self.is_last(slot) {
            log::debug!("{}: its breaker has tripped and it is the last one: {cause}", self.title(slot));
            self.slots[slot].accused = Some(cause);
            return self.probe_due(self.instance(slot), out);
        }
        self.cut_off(slot, cause, out);
    }

    /// Whether it takes requests and no other instance of its platform does.
    fn is_last(&self, slot: usize) -> bool {
        let mut others = self.platforms[self.slots[slot].platform as usize].slots().filter(|other| *other != slot);
        self.is_up(slot) && !others.any(|other| self.is_in_use(other) && self.slots[other].breaker.admits())
    }

    fn cut_off(&mut self, slot: usize, cause: Cause, out: &mut Vec<Action>) {
        let instance = self.instance(slot);
        let platform = &mut self.platforms[self.slots[slot].platform as usize];
        let breaker = &mut self.slots[slot].breaker;
        let until = breaker.open(self.now, &platform.care.instance_rules, &mut self.random);
        platform.stats.count_opened(cause);
        let (recovery, host) = (platform.care.breaker.recovery, platform.host);
        self.slots[slot].accused = None;
        let wait = (until - self.now).as_secs_f64();
        log::warn!("{}: its breaker opens for {wait:.1} s: {cause}", self.title(slot));
        self.tell(slot, News::BreakerOpened { cause, until }, out);
        self.timers.cancel(Timer::TrialLate(instance));
        self.set_timer(Timer::HalfOpen(instance), until);
        self.recover(slot, recovery, host, out);
    }

    /// What else is done about an instance that is cut off.
    fn recover(&mut self, slot: usize, recovery: Recovery, host: Host, out: &mut Vec<Action>) {
        let instance = self.instance(slot);
        if !self.slots[slot].life.is_ready() || self.slots[slot].is_candidate {
            return;
        }
        let (platform, since) = (self.slots[slot].platform as usize, self.slots[slot].bad_since);
        if recovery != Recovery::Probe && self.is_doubtful(platform, since) {
            // It may be what it lies behind that fails: that is looked at now, and its breaker is tried in any case.
            return self.look_behind(platform, out);
        }
        match recovery {
            Recovery::Restart if host.can_be_replaced() => {
                self.take(slot, Input::Drain(Then::Again, Reason::BreakerOpened), out);
            }
            Recovery::Reinitialize if host.can_be_initialized_again() => out.push(Action::Reinitialize { instance }),
            Recovery::Probe | Recovery::Restart | Recovery::Reinitialize => {}
        }
    }

    pub(crate) fn reinitialized(&mut self, instance: Instance, done: bool, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        if !self.is_current(instance) || !self.slots[slot].life.is_ready() {
            self.stats.stale += 1;
            return;
        }
        self.tell(slot, News::Reinitialized { done }, out);
        if !done {
            self.take(slot, Input::Sick(Reason::NotReinitialized), out);
        }
    }

    /// A probe of an instance came back, which may be the trial of its breaker or the answer to what it is accused of.
    pub(crate) fn judge_breaker(&mut self, instance: Instance, sent: Time, verdict: Verdict, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        let index = self.slots[slot].platform as usize;
        let finding = match verdict {
            Verdict::Pass => Finding::Good,
            Verdict::Fail | Verdict::Unready if self.is_excused(index) => return,
            Verdict::Fail | Verdict::Unready => Finding::Bad(crate::breaker::Mode::Application),
            Verdict::Busy => Finding::Nothing,
        };
        #[cfg(feature = "plants")]
        if matches!(finding, Finding::Bad(_)) && self.plant == Some(crate::Plant::BreakerClockMovedByProbes) {
            let now = self.now;
            if let Some(until) = self.slots[slot].breaker.move_deadline(now) {
                self.set_timer(Timer::HalfOpen(instance), until);
            }
        }
        // One that is busy has shown nothing: it stays accused until it does.
        let accused = self.slots[slot].accused.take_if(|_| finding != Finding::Nothing);
        if let Some(cause) = accused {
            if finding == Finding::Good {
                self.acquit(slot, cause, out);
            } else {
                self.cut_off(slot, cause, out);
            }
        } else {
            let was_closed = self.slots[slot].breaker.is_closed();
            let cause = self.slots[slot].breaker.probed(finding);
            if !was_closed && self.slots[slot].breaker.is_closed() {
                self.closed(slot, false, out);
            }
            if let Some(cause) = cause {
                self.tripped(slot, cause, out);
            }
        }
        // One instance that is well is enough for its platform to be tried. Those that are asked at the same time are one
        // witness, however many they are.
        let platform = &mut self.platforms[index];
        if matches!(finding, Finding::Good | Finding::Nothing) && sent > platform.vouched_at {
            platform.vouched_at = self.now;
            // One that is busy shows that somebody is there: then a request is the first trial.
            let _ = platform.breaker.probed(finding);
            self.platform_may_have_closed(index, out);
        }
    }

    fn acquit(&mut self, slot: usize, cause: Cause, out: &mut Vec<Action>) {
        self.slots[slot].breaker.acquit();
        self.timers.cancel(Timer::TrialLate(self.instance(slot)));
        self.platform_at(slot).stats.acquitted += 1;
        log::info!(
            "{}: it stays in use, as the last one that passes its health checks, though {cause}",
            self.title(slot)
        );
        let window = self.platform_at(slot).care.breaker.window_ms.millis();
        let told = &mut self.slots[slot].acquitted_at;
        // Under load it may be so again and again.
        if told.is_none_or(|told| self.now - told >= window) {
            *told = Some(self.now);
            self.tell(slot, News::Acquitted { cause }, out);
        }
    }

    pub(crate) fn half_open_due(&mut self, instance: Instance, out: &mut Vec<Action>) {
        // Its trial is the probe that is under way, or one that is sent now.
        if self.slots[instance.slot as usize].breaker.half_open() {
            self.probe_due(instance, out);
        }
    }

    pub(crate) fn trial_late(&mut self, instance: Instance, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        let Some(ticket) = self.slots[slot].breaker.trial() else { return };
        self.slots[slot].breaker.give_back(ticket);
        self.platform_at(slot).stats.count_trial(TrialEnd::Returned);
        self.pump(self.slots[slot].platform as usize, out);
    }

    /// The answer of a request has begun to flow, for hours perhaps: another may try the breakers that it tried.
    pub(crate) fn give_back_trials(&mut self, slot: usize, ticket: Ticket, out: &mut Vec<Action>) {
        let platform = self.slots[slot].platform as usize;
        let is_trial = self.slots[slot].breaker.give_back(ticket);
        if is_trial {
            self.platforms[platform].stats.count_trial(TrialEnd::Returned);
            self.timers.cancel(Timer::TrialLate(self.instance(slot)));
        }
        let is_platform_trial = self.platforms[platform].breaker.give_back(ticket);
        if is_platform_trial {
            self.timers.cancel(Timer::PlatformTrialLate(platform as u32));
        }
        if is_trial || is_platform_trial {
            self.pump(platform, out);
        }
    }

    // A platform as a whole.

    fn platform_tripped(&mut self, index: usize, cause: Cause, out: &mut Vec<Action>) {
        let platform = &mut self.platforms[index];
        let until = platform.breaker.open(self.now, &platform.care.platform_rules, &mut self.random);
        platform.is_cut_off = true;
        platform.stats.platform_opened[cause.index()] += 1;
        let wait = (until - self.now).as_secs_f64();
        log::warn!("{}: the breaker of the platform opens for {wait:.1} s: {cause}", platform.name);
        self.tell_platform(index, News::BreakerOpened { cause, until }, out);
        self.timers.cancel(Timer::PlatformTrialLate(index as u32));
        self.set_timer(Timer::PlatformHalfOpen(index as u32), until);
        let platform = &self.platforms[index];
        let (recovery, host) = (platform.care.breaker.recovery, platform.host);
        // Nobody serves now, so all may go at once.
        for slot in platform.slots() {
            self.recover(slot, recovery, host, out);
        }
    }

    fn platform_may_have_closed(&mut self, index: usize, out: &mut Vec<Action>) {
        let platform = &mut self.platforms[index];
        if platform.breaker.is_closed() && std::mem::take(&mut platform.is_cut_off) {
            log::info!("{}: the breaker of the platform closes", platform.name);
            self.tell_platform(index, News::BreakerClosed { is_by_hand: false }, out);
        }
    }

    pub(crate) fn platform_half_open_due(&mut self, index: u32, out: &mut Vec<Action>) {
        if !self.platforms[index as usize].breaker.half_open() {
            return;
        }
        for slot in self.platforms[index as usize].slots() {
            if self.slots[slot].life.is_ready() && !self.slots[slot].is_candidate {
                self.probe_due(self.instance(slot), out);
            }
        }
    }

    pub(crate) fn platform_trial_late(&mut self, index: u32, out: &mut Vec<Action>) {
        let breaker = &mut self.platforms[index as usize].breaker;
        if let Some(ticket) = breaker.trial() {
            breaker.give_back(ticket);
            self.pump(index as usize, out);
        }
    }

    /// Whether the platform's own breaker lets a request through.
    pub(crate) fn platform_admits(&mut self, index: usize) -> bool {
        if self.platforms[index].breaker.admits() {
            return true;
        }
        let is_probed = self.slots[self.platforms[index].slots()].iter().any(|slot| slot.life.is_ready());
        let breaker = &mut self.platforms[index].breaker;
        if is_probed || breaker.is_open() || breaker.trial().is_some() {
            return false;
        }
        // Half-open, and nobody is there to be probed: the request that wakes it is the trial.
        let _ = breaker.probed(Finding::Nothing);
        breaker.admits()
    }

    /// Whether most of its instances that are well are cut off, so that they are better than nobody.
    pub(crate) fn panics(&self, index: usize) -> bool {
        let (mut count, mut out) = (0, 0);
        for slot in self.platforms[index].slots().filter(|slot| self.is_in_use(*slot)) {
            count += 1;
            out += usize::from(!self.slots[slot].breaker.admits());
        }
        count > 1 && out * 2 > count
    }

    /// A person closes the breakers of a platform.
    pub(crate) fn close_ordered(&mut self, index: usize, out: &mut Vec<Action>) {
        for slot in self.platforms[index].slots() {
            self.slots[slot].accused = None;
            let was_closed = self.slots[slot].breaker.is_closed();
            self.slots[slot].breaker.reset();
            if was_closed {
                continue;
            }
            let instance = self.instance(slot);
            self.timers.cancel(Timer::HalfOpen(instance));
            self.timers.cancel(Timer::TrialLate(instance));
            self.closed(slot, true, out);
        }
        let platform = &mut self.platforms[index];
        platform.breaker.reset();
        if std::mem::take(&mut platform.is_cut_off) {
            self.timers.cancel(Timer::PlatformHalfOpen(index as u32));
            self.timers.cancel(Timer::PlatformTrialLate(index as u32));
            self.tell_platform(index, News::BreakerClosed { is_by_hand: true }, out);
        }
        self.pump(index, out);
    }

    pub(crate) fn check_cutoffs(&self) {
        if self.has_exited {
            return;
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let instance = self.instance(index);
            slot.breaker.check(&self.platforms[slot.platform as usize].care.instance_rules);
            assert!(slot.accused.is_none() || slot.life.is_alive(), "{instance:?} is accused and not alive");
            let is_waited_for = self.timers.at(Timer::TrialLate(instance)).is_some();
            assert_eq!(slot.breaker.trial().is_some(), is_waited_for, "{instance:?}: a trial must have a deadline");
        }
        for (index, platform) in self.platforms.iter().enumerate() {
            platform.breaker.check(&platform.care.platform_rules);
            let until = self.timers.at(Timer::PlatformHalfOpen(index as u32));
            assert_eq!(
                platform.breaker.open_until(),
                until,
                "{}: an open breaker must have its deadline",
                platform.name
            );
            assert_eq!(platform.is_cut_off, !platform.breaker.is_closed(), "{}: who is cut off is told", platform.name);
            let is_waited_for = self.timers.at(Timer::PlatformTrialLate(index as u32)).is_some();
            assert_eq!(platform.breaker.trial().is_some(), is_waited_for, "{}: a trial has no deadline", platform.name);
            if let Some(trial) = platform.breaker.trial() {
                assert!(self.is_out(trial, index), "the trial of {} was never returned", platform.name);
            }
        }
    }
}

impl TrialEnd {
    fn of(finding: Finding) -> TrialEnd {
        match finding {
            Finding::Good => TrialEnd::Passed,
            Finding::Bad(_) => TrialEnd::Failed,
            Finding::Late | Finding::Nothing => TrialEnd::Returned,
        }
    }
}
