//! What people, requests and other platforms want of a platform: start, stop, restart, isolate, wake and sleep.
//!
//! A platform is stopped after those that need it, and started after those that it needs. Whoever waits for another to
//! end is kept in `Platform::ending` and looked at again at the end of each turn in which something settled.

use crate::event::{Action, Answer, News, Order, Refusal};
use crate::lifecycle::{Input, Reason, State, Then};
use crate::requests::NOT_SOON;
use crate::shutdown::Phase;
use crate::swap::Swap;
use crate::timers::Timer;
use crate::Conductor;

impl Conductor {
    pub(crate) fn ordered(&mut self, order: Order, out: &mut Vec<Action>) {
        let platform = match order {
            Order::Shutdown => return self.stop_ordered(out),
            Order::Start { platform }
            | Order::Stop { platform }
            | Order::Retire { platform }
            | Order::Enroll { platform }
            | Order::Restart { platform }
            | Order::Isolate { platform }
            | Order::Close { platform }
            | Order::Reload { platform, .. } => platform as usize,
        };
        if self.phase != Phase::Running || platform >= self.platforms.len() {
            if let Order::Reload { platform, edition, .. } = order {
                out.push(Action::Reject { platform, edition });
            }
            return;
        }
        let is_start = matches!(order, Order::Start { .. } | Order::Restart { .. });
        if is_start && self.refuses_start(platform, out) {
            return;
        }
        match order {
            Order::Start { .. } => self.start_ordered(platform, out),
            Order::Stop { .. } => self.end_in_order(platform, Then::Rest, Reason::ByHand, out),
            Order::Retire { .. } => self.end_in_order(platform, Then::Rest, Reason::Gone, out),
            Order::Enroll { .. } => self.enroll(platform, out),
            Order::Restart { .. } => self.restart_ordered(platform, out),
            Order::Isolate { .. } => self.isolate(platform, out),
            Order::Close { .. } => self.close_ordered(platform, out),
            Order::Reload { edition, terms, is_by_hand, .. } => {
                self.reload_ordered(platform, Swap::to(edition, terms, is_by_hand), out);
            }
            Order::Shutdown => {}
        }
    }

    fn start_ordered(&mut self, platform: usize, out: &mut Vec<Action>) {
        if std::mem::take(&mut self.platforms[platform].is_isolated) {
            self.tell_platform(platform, News::Released, out);
        }
        self.want(platform, Reason::ByHand, out);
        self.let_posts_go(platform, out);
    }

    /// Its folder was found, or is back.
    fn enroll(&mut self, platform: usize, out: &mut Vec<Action>) {
        self.want(platform, Reason::Found, out);
        self.let_posts_go(platform, out);
    }

    /// Wants it to run, and all that it needs, whatever kept them from it.
    fn want(&mut self, platform: usize, reason: Reason, out: &mut Vec<Action>) {
        self.want_once(platform, reason, &mut vec![false; self.platforms.len()], out);
    }

    fn want_once(&mut self, platform: usize, reason: Reason, wanted: &mut [bool], out: &mut Vec<Action>) {
        if std::mem::replace(&mut wanted[platform], true) {
            return;
        }
        self.platforms[platform].ending = None;
        for slot in self.platforms[platform].slots() {
            if self.slots[slot].life.state() != State::Spare {
                self.take(slot, Input::Want(reason), out);
            }
        }
        for need in self.platforms[platform].needs.clone() {
            let is_staying = self.platforms[need as usize].ending.is_none() && !self.is_leaving(need as usize);
            if !self.is_platform_ready(need as usize) || !is_staying {
                self.want_once(need as usize, Reason::Needed, wanted, out);
            }
        }
        self.start_what_can(out);
    }

    /// Whether some instance of it is about to rest or sleep.
    fn is_leaving(&self, platform: usize) -> bool {
        self.slots[self.platforms[platform].slots()].iter().any(|slot| {
            let state = slot.life.state();
            state.is_alive() && (is_at_rest(state) || is_asleep(state))
        })
    }

    /// Whether it runs, or will without anybody's doing.
    pub(crate) fn can_come(&self, platform: usize) -> bool {
        let (mut seen, mut open) = (vec![false; self.platforms.len()], vec![platform]);
        while let Some(one) = open.pop() {
            let entry = &self.platforms[one];
            if std::mem::replace(&mut seen[one], true) || self.slots[entry.slots()].iter().any(is_coming) {
                continue;
            }
            if !self.slots[entry.slots()].iter().any(|slot| slot.life.state() == State::Waiting) {
                return false;
            }
            open.extend(entry.needs.iter().map(|need| *need as usize));
        }
        true
    }

    /// Wakes what it needs and sleeps. What a person stopped stays so.
    pub(crate) fn want_needs_of(&mut self, platform: usize, out: &mut Vec<Action>) {
        for need in self.platforms[platform].needs.clone() {
            self.wake(need as usize, Reason::Needed, out);
        }
    }

    /// Wakes it if it sleeps, and what it needs.
    pub(crate) fn wake(&mut self, platform: usize, reason: Reason, out: &mut Vec<Action>) {
        if !self.is_asleep(platform) {
            return;
        }
        // Its needs first: so they are started in the order in which they are to be ready.
        self.want_needs_of(platform, out);
        for slot in self.platforms[platform].slots() {
            if is_asleep(self.slots[slot].life.state()) {
                self.take(slot, Input::Want(reason), out);
            }
        }
    }

    /// Whether some instance of it sleeps, or is about to.
    pub(crate) fn is_asleep(&self, platform: usize) -> bool {
        self.slots[self.platforms[platform].slots()].iter().any(|slot| is_asleep(slot.life.state()))
    }

    /// It may sleep once it has been idle for long enough.
    pub(crate) fn let_sleep(&mut self, platform: usize) {
        if let Some(after) = self.platforms[platform].terms.sleep_after {
            self.set_timer(Timer::Sleep(platform as u32), self.now + after);
        }
    }

    pub(crate) fn sleep_due(&mut self, index: u32, out: &mut Vec<Action>) {
        let platform = &self.platforms[index as usize];
        let Some(after) = platform.terms.sleep_after else { return };
        let slots = &self.slots[platform.slots()];
        if self.phase != Phase::Running || !slots.iter().any(|slot| slot.life.is_ready()) {
            return;
        }
        let has_work = platform.live > 0 || slots.iter().any(|slot| slot.occupied() > 0);
        let is_needed = platform.needed_by.iter().any(|needy| self.is_awake(*needy as usize));
        let is_changing = platform.is_changing();
        let idle_until = platform.used_at + after;
        if has_work || is_needed || is_changing {
            return self.set_timer(Timer::Sleep(index), self.now + after);
        }
        if idle_until > self.now {
            return self.set_timer(Timer::Sleep(index), idle_until);
        }
        self.put_to_sleep(index as usize, Reason::Idle, out);
    }

    pub(crate) fn put_to_sleep(&mut self, platform: usize, reason: Reason, out: &mut Vec<Action>) {
        for slot in self.platforms[platform].slots() {
            match self.slots[slot].life.state() {
                State::Starting | State::Ready | State::Backoff { .. } | State::Waiting => {
                    self.take(slot, Input::Drain(Then::Sleep, reason), out);
                }
                State::Asleep
                | State::Draining { .. }
                | State::Stopping { .. }
                | State::Stopped
                | State::Failed
                | State::Shed
                | State::Spare => {}
            }
        }
    }

    /// Whether it runs or is on its way to.
    fn is_awake(&self, platform: usize) -> bool {
        self.slots[self.platforms[platform].slots()]
            .iter()
            .any(|slot| slot.life.is_alive() || matches!(slot.life.state(), State::Waiting | State::Backoff { .. }))
    }

    fn restart_ordered(&mut self, platform: usize, out: &mut Vec<Action>) {
        // What only waits has nothing to be ended first.
        if !self.slots[self.platforms[platform].slots()].iter().any(|slot| slot.life.is_alive()) {
            return self.want(platform, Reason::ByHand, out);
        }
        // What was to stay down comes back with the rest.
        for slot in self.platforms[platform].slots() {
            let state = self.slots[slot].life.state();
            if is_at_rest(state) || is_asleep(state) || is_shed(state) {
                self.take(slot, Input::Want(Reason::ByHand), out);
            }
        }
        self.end_in_order(platform, Then::Wait, Reason::ByHand, out);
    }

    /// Ends it, after those that need it; they wait until it is back. At a restart they go on unless they are to be
    /// restarted with it.
    fn end_in_order(&mut self, platform: usize, then: Then, reason: Reason, out: &mut Vec<Action>) {
        self.break_off_swap_under_way(platform, out);
        let (ends_dependents, why) = match then {
            Then::Rest => (true, Reason::NeedStopped),
            Then::Again | Then::Wait | Then::Sleep | Then::Shed | Then::Spare => {
                (self.platforms[platform].terms.restart_dependents, Reason::NeedRestarts)
            }
        };
        self.platforms[platform].ending = Some((then, reason));
        self.has_unsettled = true;
        if !ends_dependents {
            return;
        }
        for needy in self.platforms[platform].needed_by.clone() {
            if self.is_awake(needy as usize) && self.platforms[needy as usize].ending.is_none() {
                // Those that need them go with them: what they wait for is not there.
                self.end_with_dependents(needy as usize, why, out);
            }
        }
    }

    fn end_with_dependents(&mut self, platform: usize, reason: Reason, out: &mut Vec<Action>) {
        self.break_off_swap_under_way(platform, out);
        self.platforms[platform].ending = Some((Then::Wait, reason));
        for needy in self.platforms[platform].needed_by.clone() {
            if self.is_awake(needy as usize) && self.platforms[needy as usize].ending.is_none() {
                self.end_with_dependents(needy as usize, reason, out);
            }
        }
    }

    /// It has ended and comes back: those that need it are restarted after it, if that is wanted.
    pub(crate) fn restart_dependents_of(&mut self, platform: usize, out: &mut Vec<Action>) {
        if self.phase != Phase::Running
            || !self.platforms[platform].terms.restart_dependents
            || self.is_platform_ready(platform)
        {
            return;
        }
        for needy in self.platforms[platform].needed_by.clone() {
            if self.is_awake(needy as usize) && self.platforms[needy as usize].ending.is_none() {
                self.end_with_dependents(needy as usize, Reason::NeedRestarts, out);
            }
        }
        self.has_unsettled = true;
    }

    /// Drained instances are told to end, platforms whose dependents have ended are drained, and reloads go on.
    pub(crate) fn settle_platforms(&mut self, out: &mut Vec<Action>) {
        let mut has_settled = true;
        while has_settled {
            has_settled = false;
            for slot in 0..self.slots.len() {
                let entry = &self.slots[slot];
                if matches!(entry.life.state(), State::Draining { .. }) && entry.in_flight == 0 {
                    self.take(slot, Input::Drained, out);
                    has_settled = true;
                }
            }
            for platform in 0..self.platforms.len() {
                has_settled |= self.settle_ending(platform, out);
                has_settled |= self.advance_swap(platform, out);
            }
        }
        self.has_unsettled = self.slots.iter().any(|slot| matches!(slot.life.state(), State::Draining { .. }))
            || self.platforms.iter().any(crate::Platform::is_changing);
    }

    fn settle_ending(&mut self, platform: usize, out: &mut Vec<Action>) -> bool {
        let Some((then, reason)) = self.platforms[platform].ending else { return false };
        let has_dependents = |needy: &u32| {
            let slots = self.platforms[*needy as usize].slots();
            self.platforms[*needy as usize].ending.is_some()
                || self.slots[slots].iter().any(|slot| slot.life.is_alive())
        };
        let follows = match then {
            Then::Rest => true,
            Then::Again | Then::Wait | Then::Sleep | Then::Shed | Then::Spare => {
                self.platforms[platform].terms.restart_dependents
            }
        };
        if follows && self.platforms[platform].needed_by.iter().any(has_dependents) {
            return false;
        }
        self.platforms[platform].ending = None;
        for slot in self.platforms[platform].slots() {
            let state = self.slots[slot].life.state();
            let is_touched = match then {
                Then::Rest => state != State::Spare,
                Then::Again | Then::Wait | Then::Sleep | Then::Shed | Then::Spare => {
                    let is_going = state.is_alive() || matches!(state, State::Backoff { .. });
                    is_going && !is_at_rest(state) && !is_asleep(state) && !is_shed(state)
                }
            };
            if is_touched {
                self.take(slot, Input::Drain(then, reason), out);
            }
        }
        self.pump(platform, out);
        true
    }

    fn isolate(&mut self, platform: usize, out: &mut Vec<Action>) {
        if std::mem::replace(&mut self.platforms[platform].is_isolated, true) {
            return;
        }
        log::info!("{} is isolated by hand", self.platforms[platform].name);
        self.tell_platform(platform, News::Isolated, out);
        while let Some(ticket) = self.platforms[platform].queue.front() {
            self.end(ticket, Answer::Refused(Refusal::Isolated, NOT_SOON), None, out);
        }
    }

    /// Demi ends: what was ordered before does not matter any more.
    pub(crate) fn forget_orders(&mut self, out: &mut Vec<Action>) {
        for platform in 0..self.platforms.len() {
            self.platforms[platform].ending = None;
            self.timers.cancel(Timer::Sleep(platform as u32));
            self.break_off_swap(platform, Reason::SwapBrokenOff, out);
        }
    }

    pub(crate) fn tell_platform(&self, platform: usize, news: News, out: &mut Vec<Action>) {
        out.push(Action::Tell { platform: platform as u32, instance: None, news });
    }
}

/// Whether it runs, or will whatever becomes of what it needs.
fn is_coming(slot: &crate::Slot) -> bool {
    match slot.life.state() {
        State::Starting
        | State::Ready
        | State::Backoff { .. }
        | State::Draining { then: Then::Again | Then::Wait }
        | State::Stopping { then: Then::Again | Then::Wait } => true,
        State::Waiting
        | State::Asleep
        | State::Draining { .. }
        | State::Stopping { .. }
        | State::Stopped
        | State::Failed
        | State::Shed
        | State::Spare => false,
    }
}

/// Whether it stays down, or will, until a person starts it.
pub(crate) fn is_at_rest(state: State) -> bool {
    matches!(
        state,
        State::Stopped | State::Failed | State::Draining { then: Then::Rest } | State::Stopping { then: Then::Rest }
    )
}

/// Whether it stays down, or will, until there is RAM for it.
pub(crate) fn is_shed(state: State) -> bool {
    matches!(state, State::Shed | State::Draining { then: Then::Shed } | State::Stopping { then: Then::Shed })
}

/// Whether a request wakes it.
fn is_asleep(state: State) -> bool {
    matches!(state, State::Asleep | State::Draining { then: Then::Sleep } | State::Stopping { then: Then::Sleep })
}
