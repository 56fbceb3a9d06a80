//! An instance: started, probed, cut off, replaced.

use std::time::Duration;

use crate::breaker::{Breaker, Finding};
use crate::config::Host;
use crate::event::{Action, Exit, Instance, Signal, Verdict};
use crate::health::{self, Health, Turn};
use crate::lifecycle::{Input, Reason, State, Step};
use crate::time::Time;
use crate::timers::Timer;
use crate::Conductor;

/// A timer that goes off this much too late was slept through by all of Demi (a suspended machine, a stopped
/// process), and says nothing about the instance.
const SLEPT_THROUGH: Duration = Duration::from_secs(1);

/// A process that was asked to end gets TERM after this, or after half its grace: one that reads its input is gone by
/// then, with its `shutdown` done, and one that does not ends by TERM, unless it handles that.
const TERMINATE_AFTER: Duration = Duration::from_secs(1);

impl Conductor {
    pub(crate) fn began(&mut self, out: &mut Vec<Action>) {
        self.start_what_can(out);
        self.sample_due(out);
        out.push(Action::Admit(true));
    }

    pub(crate) fn sample_due(&mut self, out: &mut Vec<Action>) {
        self.set_timer(Timer::Sample, self.now + self.settings.sampling.interval_ms.millis());
        out.push(Action::Measure);
    }

    /// Starts every platform that waits for nothing any more.
    fn start_what_can(&mut self, out: &mut Vec<Action>) {
        for platform in 0..self.platforms.len() {
            if self.platforms[platform].needs.iter().all(|need| self.is_platform_ready(*need as usize)) {
                for slot in self.platforms[platform].slots() {
                    self.take(slot, Input::Start, out);
                }
            }
        }
    }

    fn is_platform_ready(&self, platform: usize) -> bool {
        self.slots[self.platforms[platform].slots()].iter().any(|slot| slot.life.is_ready())
    }

    /// Lets the lifecycle take what happened, and does what it says.
    pub(crate) fn take(&mut self, slot: usize, input: Input, out: &mut Vec<Action>) {
        let step = self.slots[slot].life.take(self.now, input, &self.settings.restart, &mut self.random);
        self.do_step(slot, step, out);
    }

    fn do_step(&mut self, slot: usize, step: Step, out: &mut Vec<Action>) {
        let instance = self.instance(slot);
        match step {
            Step::None | Step::Rest => {}
            Step::Spawn => self.spawn(slot, out),
            Step::Welcome => self.welcome(instance, out),
            Step::Terminate => {
                self.timers.cancel(Timer::StartLate(instance));
                self.timers.cancel(Timer::Probe(instance));
                out.push(Action::Signal { instance, signal: Signal::Shutdown });
                let platform = self.platform_at(slot);
                let (host, grace) = (platform.host, platform.stop_grace);
                if matches!(host, Host::Process(_)) {
                    self.set_timer(Timer::Terminate(instance), self.now + TERMINATE_AFTER.min(grace / 2));
                }
                self.set_timer(Timer::Kill(instance), self.now + grace);
            }
            Step::Kill => out.push(Action::Signal { instance, signal: Signal::Kill }),
            Step::Again(Duration::ZERO) => self.take(slot, Input::Due, out),
            Step::Again(wait) => self.set_timer(Timer::Restart(slot as u32), self.now + wait),
        }
    }

    fn spawn(&mut self, slot: usize, out: &mut Vec<Action>) {
        let entry = &mut self.slots[slot];
        entry.run += 1;
        entry.health = Health::new(false);
        let is_again = entry.run > 1;
        let instance = self.instance(slot);
        let platform = self.platform_at(slot);
        platform.stats.restarts += u64::from(is_again);
        let timeout = platform.start_timeout;
        self.set_timer(Timer::StartLate(instance), self.now + timeout);
        out.push(Action::Start { instance });
    }

    pub(crate) fn started(&mut self, instance: Instance, out: &mut Vec<Action>) {
        if !self.is_current(instance) {
            self.stats.stale += 1;
            return;
        }
        self.take(instance.slot as usize, Input::Started, out);
    }

    fn welcome(&mut self, instance: Instance, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        self.timers.cancel(Timer::StartLate(instance));
        // A handshake shows that an instance is well; to a service elsewhere nobody has spoken yet.
        let is_proven = self.platform_at(slot).host != Host::Http;
        self.slots[slot].health = Health::new(is_proven);
        if is_proven {
            let phase = health::phase(instance.slot, self.settings.health.interval_ms.millis());
            self.set_timer(Timer::Probe(instance), self.now + phase);
        } else {
            self.probe_due(instance, out);
        }
        if is_proven {
            log::info!("{} is ready", self.title(slot));
        }
        self.start_what_can(out);
        self.pump(self.slots[slot].platform as usize, out);
    }

    pub(crate) fn restart_due(&mut self, slot: u32, out: &mut Vec<Action>) {
        self.take(slot as usize, Input::Due, out);
    }

    pub(crate) fn start_late(&mut self, instance: Instance, out: &mut Vec<Action>) {
        self.take(instance.slot as usize, Input::TooLate, out);
    }

    pub(crate) fn wedged(&mut self, instance: Instance, out: &mut Vec<Action>) {
        self.take(instance.slot as usize, Input::Sick(Reason::Wedged), out);
    }

    pub(crate) fn exited(&mut self, instance: Instance, exit: Exit, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        if !self.is_current(instance) || !self.slots[slot].life.is_alive() {
            self.stats.stale += 1;
            return;
        }
        self.forget_timers(instance);
        self.slots[slot].abandoned.clear();
        self.slots[slot].suspect = false;
        self.slots[slot].breaker = Breaker::default();
        let before = self.slots[slot].life.state();
        let step = self.slots[slot].life.take(self.now, Input::Exited(exit), &self.settings.restart, &mut self.random);
        match (before, step) {
            (State::Stopping { again: false }, _) => log::debug!("{} ended in order", self.title(slot)),
            (_, Step::Again(wait)) => {
                let (_, reason) = self.slots[slot].life.since();
                log::warn!("{} ended: {reason}; it is started again in {:.1} s", self.title(slot), wait.as_secs_f64());
            }
            (_, _) => {
                let (_, reason) = self.slots[slot].life.since();
                log::error!("{} ended: {reason}; it is not started again", self.title(slot));
            }
        }
        // Its requests are broken before its next run exists, so that nothing of the old run is counted on the new.
        self.break_requests_of(instance, out);
        self.do_step(slot, step, out);
        self.pump(self.slots[slot].platform as usize, out);
    }

    fn forget_timers(&mut self, instance: Instance) {
        for timer in [
            Timer::Probe(instance),
            Timer::ProbeLate(instance),
            Timer::StartLate(instance),
            Timer::Terminate(instance),
            Timer::Kill(instance),
            Timer::HalfOpen(instance),
            Timer::Wedged(instance),
        ] {
            self.timers.cancel(timer);
        }
    }

    pub(crate) fn probe_due(&mut self, instance: Instance, out: &mut Vec<Action>) {
        let now = self.now;
        let slot = &mut self.slots[instance.slot as usize];
        if !slot.life.is_ready() || slot.health.is_waiting() {
            return;
        }
        slot.health.sent(now);
        // A breaker that is to be tried asks for a probe before its turn: that one takes the place of the regular one.
        self.timers.cancel(Timer::Probe(instance));
        self.set_timer(Timer::ProbeLate(instance), now + self.settings.health.timeout_ms.millis());
        out.push(Action::Probe { instance });
    }

    pub(crate) fn probed(&mut self, instance: Instance, verdict: Verdict, out: &mut Vec<Action>) {
        if !self.is_current(instance) {
            self.stats.stale += 1;
            return;
        }
        self.judge(instance, verdict, out);
    }

    pub(crate) fn probe_late(&mut self, at: Time, instance: Instance, out: &mut Vec<Action>) {
        let slot = &self.slots[instance.slot as usize];
        let is_full = slot.occupied() >= self.platforms[slot.platform as usize].in_flight_max;
        let has_moved = slot.health.sent_at().is_some_and(|sent| slot.heard_at > sent);
        let is_excused = is_full || has_moved || self.now - at > SLEPT_THROUGH;
        let verdict = if is_excused { Verdict::Busy } else { Verdict::Fail };
        self.judge(instance, verdict, out);
    }

    fn judge(&mut self, instance: Instance, verdict: Verdict, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        let Some(sent) = self.slots[slot].health.sent_at() else {
            self.stats.stale += 1;
            return;
        };
        self.timers.cancel(Timer::ProbeLate(instance));
        let took = self.now - sent;
        self.platform_at(slot).stats.count_probe(verdict, took);
        if verdict == Verdict::Pass {
            self.slots[slot].suspect = false;
        }
        let turn = self.slots[slot].health.take(self.now, verdict, &self.settings.health);
        self.judge_breaker(instance, verdict);
        match turn {
            Turn::None => {}
            Turn::WentDown => log::warn!("{} is out: its health checks fail", self.title(slot)),
            Turn::CameUp => log::info!("{} is back: its health checks pass", self.title(slot)),
        }
        if turn == Turn::WentDown && self.platform_at(slot).can_be_replaced() {
            self.take(slot, Input::Sick(Reason::HealthFailed), out);
        }
        if self.slots[slot].life.is_ready() {
            let interval = self.slots[slot].health.interval(&self.settings.health);
            self.set_timer(Timer::Probe(instance), sent + interval);
        }
        self.pump(self.slots[slot].platform as usize, out);
    }

    fn judge_breaker(&mut self, instance: Instance, verdict: Verdict) {
        let slot = instance.slot as usize;
        let finding = match verdict {
            Verdict::Pass => Finding::Good,
            Verdict::Fail => Finding::Bad,
            Verdict::Busy => Finding::Nothing,
        };
        #[cfg(feature = "plants")]
        if finding == Finding::Bad && self.plant == Some(crate::Plant::BreakerClockMovedByProbes) {
            let now = self.now;
            if let Some(until) = self.slots[slot].breaker.move_deadline(now) {
                self.set_timer(Timer::HalfOpen(instance), until);
            }
        }
        let now = self.now;
        let breaker = &mut self.slots[slot].breaker;
        if let Some(until) = breaker.probed(now, finding, &self.settings.breaker, &mut self.random) {
            self.note_opened(slot, until);
        }
    }

    /// A breaker has opened until this time.
    pub(crate) fn note_opened(&mut self, slot: usize, until: Time) {
        let wait = (until - self.now).as_secs_f64();
        log::warn!("{}: its breaker opens for {wait:.1} s after repeated failures", self.title(slot));
        self.platform_at(slot).stats.opened += 1;
        self.set_timer(Timer::HalfOpen(self.instance(slot)), until);
    }

    pub(crate) fn half_open_due(&mut self, instance: Instance, out: &mut Vec<Action>) {
        // Its trial is the probe that is under way, or one that is sent now.
        if self.slots[instance.slot as usize].breaker.half_open() {
            self.probe_due(instance, out);
        }
    }

    pub(crate) fn check_instances(&self) {
        for (index, slot) in self.slots.iter().enumerate() {
            let instance = self.instance(index);
            let platform = &self.platforms[slot.platform as usize];
            slot.breaker.check(&self.settings.breaker);
            assert!(slot.occupied() <= platform.in_flight_max, "{instance:?} has more than it may");
            assert!(slot.life.is_alive() || slot.occupied() == 0, "{instance:?} is not alive and has requests");
            if slot.life.is_ready() {
                let is_probed = self.timers.at(Timer::Probe(instance)).is_some();
                let is_waited_for = self.timers.at(Timer::ProbeLate(instance)).is_some();
                assert!(is_probed != is_waited_for, "{instance:?} is ready and nobody asks how it is");
                assert_eq!(
                    slot.breaker.open_until(),
                    self.timers.at(Timer::HalfOpen(instance)),
                    "{instance:?}: an open breaker must have its deadline, and only an open one"
                );
            }
            let is_to_restart = matches!(slot.life.state(), State::Backoff { .. });
            assert_eq!(is_to_restart, self.timers.at(Timer::Restart(index as u32)).is_some(), "{instance:?} restart");
            if slot.life.state() == State::Starting {
                assert!(self.timers.at(Timer::StartLate(instance)).is_some(), "{instance:?} may start for ever");
            }
            let wedges = self.timers.at(Timer::Wedged(instance)).is_some();
            assert!(slot.abandoned.is_empty() || wedges || !slot.life.is_ready(), "{instance:?} may be stuck for ever");
        }
    }
}
