//! The end, phase by phase: see [`Phase`].

use crate::event::{Action, Errand, Signal};
use crate::lifecycle::{Input, Reason, State, Then};
use crate::shutdown::Phase;
use crate::timers::Timer;
use crate::Conductor;

/// Exit codes of an end that was ordered but did not go well: the store could not be made durable, or not in time.
const STORE_FAILED: u8 = 4;
const OUT_OF_TIME: u8 = 1;

impl Conductor {
    pub(crate) fn stop_ordered(&mut self, out: &mut Vec<Action>) {
        if self.phase == Phase::Running {
            self.stop_ordered_at = self.now;
            self.forget_orders(out);
        }
        self.enter(self.phase.next(), out);
    }

    pub(crate) fn phase_over(&mut self, out: &mut Vec<Action>) {
        if self.phase == Phase::Flushing {
            self.exit_code = OUT_OF_TIME;
        }
        self.enter(self.phase.next(), out);
    }

    fn enter(&mut self, phase: Phase, out: &mut Vec<Action>) {
        if self.phase == Phase::Done {
            return;
        }
        self.phase = phase;
        self.timers.cancel(Timer::Phase);
        if let Some(end) = phase.ends(self.stop_ordered_at, self.settings.shutdown.grace_ms.millis()) {
            self.set_timer(Timer::Phase, end);
        }
        match phase {
            Phase::Running => {}
            Phase::Draining => out.push(Action::Admit(false)),
            Phase::Stopping => self.refuse_all(out),
            Phase::Killing => self.kill_all(out),
            Phase::Flushing => {
                self.keep_peaks(out);
                out.push(Action::Flush);
            }
            // `handle` says so when it has said everything else.
            Phase::Done => {}
        }
    }

    /// The last of all actions: a timer may end the last phase before the event of the same turn has its answer.
    pub(crate) fn exit(&mut self, out: &mut Vec<Action>) {
        self.timers.clear();
        if !self.has_exited {
            self.has_exited = true;
            out.push(Action::Exit(self.exit_code));
        }
    }

    fn kill_all(&mut self, out: &mut Vec<Action>) {
        for slot in 0..self.slots.len() {
            let was_alive = self.slots[slot].life.is_alive();
            self.stop(slot, out);
            if was_alive {
                out.push(Action::Signal { instance: self.instance(slot), signal: Signal::Kill });
            }
        }
    }

    fn stop(&mut self, slot: usize, out: &mut Vec<Action>) {
        self.timers.cancel(Timer::Restart(slot as u32));
        self.take(slot, Input::End(Then::Rest, Reason::Shutdown), out);
    }

    /// Goes on to the next phase when the work of the present one is done.
    pub(crate) fn advance_ending(&mut self, out: &mut Vec<Action>) {
        if self.phase == Phase::Draining && self.live == 0 {
            self.enter(Phase::Stopping, out);
        }
        if self.phase == Phase::Stopping {
            self.stop_what_can(out);
        }
        if matches!(self.phase, Phase::Stopping | Phase::Killing) && self.slots.iter().all(|slot| !slot.is_left()) {
            self.enter(Phase::Flushing, out);
        }
    }

    /// Stops every platform that no running platform needs any more.
    fn stop_what_can(&mut self, out: &mut Vec<Action>) {
        let mut stopped_some = true;
        while stopped_some {
            stopped_some = false;
            for platform in 0..self.platforms.len() {
                let is_free = self.platforms[platform].needed_by.iter().all(|needy| self.has_ended(*needy as usize));
                if !is_free || self.has_ended(platform) {
                    continue;
                }
                for slot in self.platforms[platform].slots() {
                    self.stop(slot, out);
                }
                stopped_some |= self.has_ended(platform);
            }
        }
    }

    fn has_ended(&self, platform: usize) -> bool {
        self.slots[self.platforms[platform].slots()].iter().all(|slot| !slot.is_left())
    }

    pub(crate) fn stored(&mut self, errand: Errand, done: bool, out: &mut Vec<Action>) {
        if !done {
            self.stats.store_failures += 1;
        }
        if errand == Errand::Flush && self.phase == Phase::Flushing {
            if !done {
                self.exit_code = STORE_FAILED;
            }
            self.enter(Phase::Done, out);
        }
    }
}

impl crate::Slot {
    /// Whether something of it is still to be stopped.
    fn is_left(&self) -> bool {
        self.life.state() != State::Stopped
    }
}
