//! An instance: started, probed, cut off, replaced.

use std::time::Duration;

use crate::breaker::Breaker;
use crate::event::{Action, Exit, Instance, News, Signal, Verdict};
use crate::health::{self, Health, Turn};
use crate::lifecycle::{Input, Reason, State, Step, Then};
use crate::stats::{restart_index, TrialEnd};
use crate::swap::is_making_room;
use crate::time::Time;
use crate::timers::Timer;
use crate::Conductor;

/// A timer that goes off this much too late was slept through by all of Demi (a suspended machine, a stopped
/// process), and says nothing about the instance.
pub(crate) const SLEPT_THROUGH: Duration = Duration::from_secs(1);

/// A process that was asked to end gets TERM after this, or after half its grace: one that reads its input is gone by
/// then, with its `shutdown` done, and one that does not ends by TERM, unless it handles that.
const TERMINATE_AFTER: Duration = Duration::from_secs(1);

/// An instance that starts may have its time extended so often as a whole; each extension is as long as that at most.
const EXTENSIONS_MAX: u32 = 10;
/// Its extensions are told so often at most.
const EXTENSION_TOLD_EVERY: Duration = Duration::from_secs(10);

impl Conductor {
    pub(crate) fn began(&mut self, out: &mut Vec<Action>) {
        if let Some(scaling) = &mut self.scaling {
            scaling.begin();
            self.begin_with_what_fits(out);
        }
        for platform in 0..self.platforms.len() {
            let is_eager = self.platforms[platform].start == crate::config::Start::Eager;
            if is_eager && !self.is_shed_somewhere(platform) {
                self.want_needs_of(platform, out);
            }
        }
        self.start_what_can(out);
        self.look_around();
        self.sample_due(out);
        out.push(Action::Admit(true));
    }

    pub(crate) fn sample_due(&mut self, out: &mut Vec<Action>) {
        self.set_timer(Timer::Sample, self.now + self.sample_interval());
        self.sample_asked();
        if self.is_ram_watched_closely() {
            self.weigh_due(out);
        }
        out.push(Action::Measure);
    }

    /// Starts every platform that is wanted and waits for nothing any more.
    pub(crate) fn start_what_can(&mut self, out: &mut Vec<Action>) {
        for platform in 0..self.platforms.len() {
            // One that is about to end is no longer to be counted on.
            let is_there =
                |need: &u32| self.is_platform_ready(*need as usize) && self.platforms[*need as usize].ending.is_none();
            if self.platforms[platform].needs.iter().all(is_there) {
                for slot in self.platforms[platform].slots() {
                    if self.slots[slot].life.state() == State::Waiting && !self.is_waiting_for_return(slot) {
                        self.start(slot, Input::Start, out);
                    }
                }
            }
        }
    }

    /// Starts the slot's next run, if its platform may be started once more today.
    fn start(&mut self, slot: usize, input: Input, out: &mut Vec<Action>) {
        if input == Input::Due && self.waits_for_return(slot, out) {
            return self.pump(self.slots[slot].platform as usize, out);
        }
        if self.holds_back(slot, out) {
            return;
        }
        let input = match self.refusal_to_start(slot) {
            Some(reason) => Input::Refuse(reason),
            None => input,
        };
        self.take(slot, input, out);
        if let Input::Refuse(reason) = input {
            log::error!("{} is not started: {reason}", self.title(slot));
            if self.slots[slot].is_candidate {
                self.break_off_swap(self.slots[slot].platform as usize, reason, out);
            }
            self.pump(self.slots[slot].platform as usize, out);
        }
    }

    fn refusal_to_start(&self, slot: usize) -> Option<Reason> {
        let platform = &self.platforms[self.slots[slot].platform as usize];
        let (starts, budget) = (u64::from(platform.starts), u64::from(platform.terms.start_budget));
        let is_by_hand = self.slots[slot].life.since().1 == Reason::ByHand;
        // The last twentieth is for people, and one at least.
        let kept = if budget > 1 { budget.div_ceil(20) } else { 0 };
        let may_start = starts < if is_by_hand { budget } else { budget - kept };
        let reason = Reason::BudgetSpent { budget: platform.terms.start_budget };
        (platform.host.can_be_replaced() && !may_start).then_some(reason)
    }

    pub(crate) fn is_platform_ready(&self, platform: usize) -> bool {
        let slots = &self.slots[self.platforms[platform].slots()];
        slots.iter().any(|slot| slot.life.is_ready() && !slot.is_candidate)
    }

    /// Lets the lifecycle take what happened, and does what it says.
    pub(crate) fn take(&mut self, slot: usize, input: Input, out: &mut Vec<Action>) {
        let step = self.let_live(slot, input, out);
        self.do_step(slot, step, out);
    }

    /// Lets the lifecycle take what happened, and tells if that changed its state.
    fn let_live(&mut self, slot: usize, input: Input, out: &mut Vec<Action>) -> Step {
        let life = &mut self.slots[slot].life;
        let was = life.state();
        let step = life.take(self.now, input, &self.settings.restart, &mut self.random);
        let (now, (_, reason)) = (life.state(), life.since());
        if was != now {
            self.tell(slot, News::State { was, now, reason }, out);
        }
        step
    }

    pub(crate) fn tell(&self, slot: usize, news: News, out: &mut Vec<Action>) {
        out.push(Action::Tell { platform: self.slots[slot].platform, instance: Some(self.instance(slot)), news });
    }

    fn do_step(&mut self, slot: usize, step: Step, out: &mut Vec<Action>) {
        let instance = self.instance(slot);
        match step {
            Step::None => {}
            // Nothing is left of a wait that it was in.
            Step::Rest => self.timers.cancel(Timer::Restart(slot as u32)),
            Step::Await => {
                self.timers.cancel(Timer::Restart(slot as u32));
                self.start_what_can(out);
            }
            Step::Spawn => self.spawn(slot, out),
            Step::Welcome => self.welcome(instance, out),
            Step::Drain => {
                self.keep_requests_away(instance);
                let drain = self.terms_of(slot).drain;
                self.set_timer(Timer::DrainLate(instance), self.now + drain);
                self.has_unsettled = true;
            }
            Step::Terminate => {
                self.keep_requests_away(instance);
                self.timers.cancel(Timer::StartLate(instance));
                self.timers.cancel(Timer::DrainLate(instance));
                out.push(Action::Signal { instance, signal: Signal::Shutdown });
                let (host, grace) = (self.platform_at(slot).host, self.terms_of(slot).stop_grace);
                if host.is_child() {
                    self.set_timer(Timer::Terminate(instance), self.now + TERMINATE_AFTER.min(grace / 2));
                }
                self.set_timer(Timer::Kill(instance), self.now + grace);
            }
            Step::Kill => out.push(Action::Signal { instance, signal: Signal::Kill }),
            Step::Again(Duration::ZERO) => self.start(slot, Input::Due, out),
            Step::Again(wait) => self.set_timer(Timer::Restart(slot as u32), self.now + wait),
        }
    }

    /// It is not asked any more how it is, nor tried.
    fn keep_requests_away(&mut self, instance: Instance) {
        self.timers.cancel(Timer::Probe(instance));
        self.timers.cancel(Timer::ProbeLate(instance));
        self.timers.cancel(Timer::HalfOpen(instance));
    }

    fn spawn(&mut self, slot: usize, out: &mut Vec<Action>) {
        let now = self.now;
        let edition = self.next_edition(slot);
        let entry = &mut self.slots[slot];
        entry.run += 1;
        entry.edition = edition;
        entry.health = Health::new(false);
        (entry.accused, entry.good_at, entry.returned_at) = (None, None, None);
        (entry.bad_since, entry.deferred_until, entry.acquitted_at) = (None, None, None);
        entry.started_at = now;
        (entry.trimmed_at, entry.extended_at, entry.is_put_down) = (None, None, false);
        let is_again = entry.run > 1;
        // A new edition and one that was asleep are started, not started again.
        let is_restart = matches!(
            entry.life.since().1,
            Reason::BackoffOver
                | Reason::ByHand
                | Reason::NeedRestarts
                | Reason::NeedStopped
                | Reason::Unreachable { .. }
        );
        // What it will weigh counts from now on.
        self.forget_weights();
        let ended = self.slots[slot].life.ended();
        let instance = self.instance(slot);
        let index = self.slots[slot].platform;
        let platform = self.platform_at(slot);
        platform.stats.restarts[restart_index(ended)] += u64::from(is_again && is_restart);
        let host = platform.host;
        let timeout = self.terms_of(slot).start_timeout;
        self.set_timer(Timer::StartLate(instance), now + timeout);
        out.push(Action::Start { instance, edition });
        if host.can_be_replaced() {
            self.spend_start(index, out);
        }
        if host.is_child() {
            self.weigh_soon();
        }
    }

    /// One start of today's is spent.
    fn spend_start(&mut self, index: u32, out: &mut Vec<Action>) {
        let platform = &mut self.platforms[index as usize];
        platform.starts = platform.starts.saturating_add(1);
        let (starts, budget) = (platform.starts, platform.terms.start_budget);
        out.push(Action::Spend { platform: index, starts });
        let low = (u64::from(budget) * 4).div_ceil(5);
        if u64::from(starts) == low {
            log::warn!("{} has been started {starts} times today; {budget} is the most it may", platform.name);
            let news = News::BudgetLow { starts, budget };
            out.push(Action::Tell { platform: index, instance: None, news });
        }
    }

    pub(crate) fn recalled(&mut self, platform: u32, starts: u32) {
        if let Some(platform) = self.platforms.get_mut(platform as usize) {
            platform.starts = platform.starts.max(starts);
        }
    }

    pub(crate) fn day_began(&mut self, out: &mut Vec<Action>) {
        self.platforms.iter_mut().for_each(|platform| platform.starts = 0);
        if self.phase != crate::Phase::Running {
            return;
        }
        for slot in 0..self.slots.len() {
            let life = &self.slots[slot].life;
            if life.state() == State::Failed && matches!(life.since().1, Reason::BudgetSpent { .. }) {
                self.take(slot, Input::Want(Reason::DayBegan), out);
            }
        }
    }

    pub(crate) fn started(&mut self, instance: Instance, out: &mut Vec<Action>) {
        if !self.is_current(instance) {
            self.stats.stale += 1;
            return;
        }
        self.take(instance.slot as usize, Input::Started, out);
    }

    /// A slow starter needs longer.
    pub(crate) fn extended(&mut self, instance: Instance, by: Duration, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        if !self.is_current(instance) || self.slots[slot].life.state() != State::Starting {
            self.stats.stale += 1;
            return;
        }
        let timeout = self.terms_of(slot).start_timeout;
        let latest = self.slots[slot].started_at + timeout * (1 + EXTENSIONS_MAX);
        let until = (self.now + by.min(timeout)).min(latest);
        // It asks for more time, never for less.
        if self.timers.at(Timer::StartLate(instance)).is_some_and(|at| at < until) {
            self.set_timer(Timer::StartLate(instance), until);
            // One that says so all the while is told of now and then.
            if self.slots[slot].extended_at.is_none_or(|told| self.now - told >= EXTENSION_TOLD_EVERY) {
                self.slots[slot].extended_at = Some(self.now);
                self.tell(slot, News::Extended { by: until - self.now }, out);
            }
        }
    }

    fn welcome(&mut self, instance: Instance, out: &mut Vec<Action>) {
        let slot = instance.slot as usize;
        self.timers.cancel(Timer::StartLate(instance));
        if self.slots[slot].is_candidate {
            return self.probe_due(instance, out);
        }
        // A handshake shows that an instance is well; to a service elsewhere nobody has spoken yet.
        let is_proven = self.platform_at(slot).host != crate::config::Host::Http;
        self.slots[slot].health = Health::new(is_proven);
        self.slots[slot].returned_at = Some(self.now);
        if is_proven {
            let interval = self.platform_at(slot).care.health.interval_ms.millis();
            self.probe_in_phase(instance, interval);
        }
        // What its platform's breaker waits for is not put off.
        if !is_proven || !self.platform_at(slot).breaker.is_closed() {
            self.probe_due(instance, out);
        }
        if is_proven {
            log::info!("{} is ready", self.title(slot));
        }
        self.let_sleep(self.slots[slot].platform as usize);
        self.start_what_can(out);
        self.pump(self.slots[slot].platform as usize, out);
    }

    /// Its first regular probe comes within an interval, spread evenly over it.
    pub(crate) fn probe_in_phase(&mut self, instance: Instance, interval: Duration) {
        let at = self.now + health::phase(instance.slot, interval);
        self.set_timer(Timer::Probe(instance), health::on_grid(at, interval));
    }

    pub(crate) fn restart_due(&mut self, slot: u32, out: &mut Vec<Action>) {
        self.start(slot as usize, Input::Due, out);
    }

    pub(crate) fn drain_late(&mut self, instance: Instance, out: &mut Vec<Action>) {
        self.take(instance.slot as usize, Input::Drained, out);
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
        if self.slots[slot].breaker.trial().is_some() {
            self.platform_at(slot).stats.count_trial(TrialEnd::Failed);
        }
        self.slots[slot].breaker = Breaker::default();
        self.slots[slot].accused = None;
        self.note_freed(slot);
        self.keep_peak_of(slot, out);
        self.set_weight(slot, None);
        self.forget_report(slot);
        if self.slots[slot].is_candidate {
            // One that was put down is told with the reason for that.
            let reason = match self.slots[slot].life.state() {
                State::Stopping { .. } => self.slots[slot].life.since().1,
                _ => Reason::Exited(exit),
            };
            self.swap_failed(self.slots[slot].platform as usize, reason, out);
            // There is nobody left to be told to end.
            self.let_live(slot, Input::End(Then::Spare, reason), out);
        }
        let before = self.slots[slot].life.state();
        let step = self.let_live(slot, Input::Exited(exit), out);
        let (_, reason) = self.slots[slot].life.since();
        match (self.slots[slot].life.state(), step) {
            (_, Step::Again(wait)) => {
                log::warn!("{} ended: {reason}; it is started again in {:.1} s", self.title(slot), wait.as_secs_f64());
            }
            (State::Failed, _) => log::error!("{} ended: {reason}; it is not started again", self.title(slot)),
            (State::Asleep, _) => log::info!("{} sleeps: {reason}", self.title(slot)),
            (_, _) => log::debug!("{} ended in order: {reason}", self.title(slot)),
        }
        // Its requests are broken before its next run exists, so that nothing of the old run is counted on the new.
        self.break_requests_of(instance, out);
        let is_to_come_back = matches!(self.slots[slot].life.state(), State::Backoff { .. } | State::Waiting);
        if is_to_come_back && matches!(before, State::Ready | State::Draining { .. } | State::Stopping { .. }) {
            self.restart_dependents_of(self.slots[slot].platform as usize, out);
        }
        if step == Step::Await {
            self.take_over_from_nobody(self.slots[slot].platform as usize, out);
        }
        self.do_step(slot, step, out);
        // A reload that waits may have nothing left beside which it had to.
        self.has_unsettled |= step == Step::Rest || self.platform_at(slot).swap.is_some();
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
            Timer::TrialLate(instance),
            Timer::Wedged(instance),
            Timer::DrainLate(instance),
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
        let care = &self.platforms[slot.platform as usize].care.health;
        slot.health.sent(now);
        // A breaker that is to be tried asks for a probe before its turn: that one takes the place of the regular one.
        self.timers.cancel(Timer::Probe(instance));
        let late = now + care.timeout_ms.millis();
        self.set_timer(Timer::ProbeLate(instance), late);
        out.push(Action::Probe { instance });
    }

    /// Its regular probe is due. An answer since the last one may have shown the same.
    pub(crate) fn probe_in_turn(&mut self, instance: Instance, out: &mut Vec<Action>) {
        let slot = &mut self.slots[instance.slot as usize];
        let platform = &mut self.platforms[slot.platform as usize];
        let interval = platform.care.health.interval_ms.millis();
        let is_shown = slot.good_at.is_some_and(|at| self.now - at < interval);
        let is_trusted = slot.breaker.is_closed() && slot.accused.is_none() && !slot.is_candidate;
        if is_shown && is_trusted && slot.life.is_ready() && slot.health.may_be_spared() {
            slot.health.spared();
            platform.stats.probes_spared += 1;
            return self.set_timer(Timer::Probe(instance), health::on_grid(self.now + interval, interval));
        }
        self.probe_due(instance, out);
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
        let is_full = slot.occupied() >= self.platforms[slot.platform as usize].terms.in_flight_max;
        let sent = slot.health.sent_at();
        let has_moved = sent.is_some_and(|sent| slot.heard_at > sent);
        let verdict = match () {
            () if slot.good_at > sent && sent.is_some() => Verdict::Pass,
            () if is_full || has_moved || self.now - at > SLEPT_THROUGH => Verdict::Busy,
            () => Verdict::Fail,
        };
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
        let entry = &mut self.slots[slot];
        let platform = entry.platform as usize;
        let settings = &self.platforms[platform].care.health;
        let turn = entry.health.take(self.now, verdict, settings);
        if entry.is_candidate && entry.life.is_ready() {
            return self.judge_candidate(instance, verdict, out);
        }
        if verdict == Verdict::Pass {
            entry.suspect = false;
        }
        let is_dead = entry.health.is_dead(settings);
        self.judge_breaker(instance, sent, verdict, out);
        match turn {
            Turn::None => {}
            Turn::WentDown => {
                log::warn!("{} is out: its health checks fail", self.title(slot));
                self.tell(slot, News::HealthDown, out);
            }
            Turn::CameUp => {
                log::info!("{} is back: its health checks pass", self.title(slot));
                self.slots[slot].returned_at = Some(self.now);
                self.tell(slot, News::HealthUp, out);
            }
        }
        if is_dead && self.platforms[platform].host.can_be_replaced() && self.is_to_blame(slot, out) {
            self.take(slot, Input::Sick(Reason::HealthFailed), out);
        }
        if self.slots[slot].life.is_ready() && !self.slots[slot].health.is_waiting() {
            let interval = self.slots[slot].health.interval(&self.platforms[platform].care.health);
            if turn == Turn::CameUp {
                // Those that came up together are not to be probed together for ever.
                self.probe_in_phase(instance, interval);
            } else {
                self.set_timer(Timer::Probe(instance), health::on_grid(sent + interval, interval));
            }
        }
        self.pump(platform, out);
    }

    pub(crate) fn check_instances(&self) {
        for platform in self.platforms.iter().filter(|platform| platform.host.is_child()) {
            let slots = &self.slots[platform.slots()];
            let has_candidate = slots.iter().any(|slot| slot.is_candidate);
            let spares = slots.iter().filter(|slot| is_making_room(slot.life.state())).count();
            let is_running = self.phase == crate::Phase::Running;
            assert!(!is_running || spares + usize::from(has_candidate) == 1, "{} has {spares} spares", platform.name);
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let instance = self.instance(index);
            let platform = &self.platforms[slot.platform as usize];
            assert!(
                slot.life.is_alive()
                    || !slot.drains && platform.shares[index - platform.first as usize].reported.is_none(),
                "{instance:?} is not alive and says something"
            );
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
            if let State::Draining { .. } = slot.life.state() {
                assert!(self.timers.at(Timer::DrainLate(instance)).is_some(), "{instance:?} may drain for ever");
                assert!(slot.in_flight > 0, "{instance:?} drains and has nothing left");
            }
            if slot.life.is_alive() && platform.host.is_child() && !self.has_exited {
                assert!(self.timers.at(Timer::Weigh).is_some(), "{instance:?} is alive and never weighed");
            }
            if slot.is_candidate {
                let of_swap = platform.swap.is_some_and(|swap| swap.candidate == Some(index as u32));
                assert!(of_swap && slot.in_flight == 0, "{instance:?} has to prove itself and nobody looks");
                assert!(slot.life.is_alive(), "{instance:?} has to prove itself and does not run");
            }
            let wedges = self.timers.at(Timer::Wedged(instance)).is_some();
            assert!(slot.abandoned.is_empty() || wedges || !slot.life.is_ready(), "{instance:?} may be stuck for ever");
        }
    }
}
