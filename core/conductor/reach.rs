//! What platforms depend on, and patience while it is away.
//!
//! Demi looks for itself at what the user names in `reachability`, as it probes instances, and so tells "the internet is
//! down" from "the plugin is down". While something cannot be reached, nothing that lies behind it is restarted, no
//! breaker of it opens, and those that are open stay so. When it is back, what lies behind it is asked how it is at once,
//! each platform after those that it needs. What has never been reached is not lost but written down wrongly, and
//! excuses nobody.

use std::time::Duration;

use crate::config::{self, Check, Config};
use crate::event::{Action, News, Verdict};
use crate::health::{self, Health, Turn};
use crate::instances::SLEPT_THROUGH;
use crate::lifecycle::{Input, Reason, State};
use crate::shutdown::Phase;
use crate::time::Time;
use crate::timers::Timer;
use crate::Conductor;

/// Something that platforms depend on.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// It is this platform, by its index.
    platform: Option<u32>,
    pub(crate) health: Health,
    /// It has been reached before and cannot be now.
    pub(crate) is_lost: bool,
    /// When the last look that reached it began.
    reached_at: Option<Time>,
}

/// Between two platforms that are asked how they are when what they depend on is back.
const RETURN_STEP: Duration = Duration::from_millis(100);

impl Target {
    pub(crate) fn all(config: &Config) -> Vec<Target> {
        let index = |name: &str| config.platforms.iter().position(|platform| platform.name == name);
        let target = |entry: &config::Reachability| Target {
            name: entry.name.clone(),
            platform: match &entry.check {
                Check::Platform(name) => index(name).map(|index| index as u32),
                Check::Tcp(_) | Check::Dns(_) | Check::Gateway => None,
            },
            health: Health::new(false),
            is_lost: false,
            reached_at: None,
        };
        config.reachability.iter().map(target).collect()
    }
}

impl Conductor {
    /// Notes what a platform depends on.
    pub(crate) fn put_behind(&mut self, index: u32, platform: &config::Platform) {
        let position = |name: &String| self.targets.iter().position(|target| target.name == *name);
        let behind = platform.behind.iter().filter_map(position).map(|target| target as u32).collect();
        self.platforms[index as usize].behind = behind;
    }

    /// Demi begins: everything is looked at.
    pub(crate) fn look_around(&mut self) {
        for target in 0..self.targets.len() as u32 {
            // Soon, and not all at once: what starts now may depend on it.
            let phase = health::phase(target, Duration::from_millis(200));
            self.set_timer(Timer::Reach(target), self.now + phase);
        }
    }

    /// Something that it depends on that cannot be reached.
    pub(crate) fn lost_by(&self, platform: usize) -> Option<u32> {
        self.platforms[platform].behind.iter().copied().find(|target| self.targets[*target as usize].is_lost)
    }

    /// Whether what fails in it is not held against it.
    pub(crate) fn is_excused(&self, platform: usize) -> bool {
        self.lost_by(platform).is_some()
    }

    pub(crate) fn reach_due(&mut self, index: u32, out: &mut Vec<Action>) {
        if self.phase != Phase::Running || self.targets[index as usize].health.is_waiting() {
            return;
        }
        self.targets[index as usize].health.sent(self.now);
        self.timers.cancel(Timer::Reach(index));
        match self.targets[index as usize].platform {
            Some(platform) => {
                let verdict = self.presence(platform as usize);
                self.take_look(index, verdict, out);
            }
            None => {
                self.set_timer(Timer::ReachLate(index), self.now + self.settings.health.timeout_ms.millis());
                out.push(Action::Reach { target: index });
            }
        }
    }

    /// Whether a platform that others lie behind is there: also one that sleeps, because it wakes when it is asked.
    fn presence(&self, platform: usize) -> Verdict {
        let mut slots = self.platforms[platform].slots();
        let is_there = |slot: usize| self.is_serving(slot) || self.slots[slot].life.state() == State::Asleep;
        if slots.clone().any(is_there) {
            return Verdict::Pass;
        }
        let is_coming = slots.any(|slot| self.slots[slot].life.state() == State::Starting);
        if is_coming {
            Verdict::Busy
        } else {
            Verdict::Fail
        }
    }

    pub(crate) fn reach_late(&mut self, at: Time, index: u32, out: &mut Vec<Action>) {
        let was_asleep = self.now - at > SLEPT_THROUGH;
        self.take_look(index, if was_asleep { Verdict::Busy } else { Verdict::Fail }, out);
    }

    pub(crate) fn reached(&mut self, index: u32, verdict: Verdict, out: &mut Vec<Action>) {
        match self.targets.get(index as usize) {
            Some(target) if target.health.is_waiting() => self.take_look(index, verdict, out),
            Some(_) | None => self.stats.stale += 1,
        }
    }

    fn take_look(&mut self, index: u32, verdict: Verdict, out: &mut Vec<Action>) {
        self.timers.cancel(Timer::ReachLate(index));
        let target = &mut self.targets[index as usize];
        let Some(sent) = target.health.sent_at() else { return };
        let was_up = target.health.was_up();
        let turn = target.health.take(self.now, verdict, &self.settings.health);
        if verdict == Verdict::Pass {
            target.reached_at = Some(sent);
        }
        let interval = target.health.interval(&self.settings.health);
        match turn {
            Turn::WentDown if was_up => self.lost(index, out),
            Turn::WentDown => log::warn!(
                "{} (reachability) cannot be reached and has never been; what lies behind it is not excused",
                self.targets[index as usize].name
            ),
            Turn::CameUp if self.targets[index as usize].is_lost => self.returned(index, out),
            Turn::CameUp | Turn::None => {}
        }
        if verdict == Verdict::Pass {
            self.blame_the_dead(index, out);
        }
        if self.phase == Phase::Running {
            self.set_timer(Timer::Reach(index), sent + interval);
        }
    }

    fn lost(&mut self, index: u32, out: &mut Vec<Action>) {
        self.targets[index as usize].is_lost = true;
        log::warn!(
            "{} cannot be reached: what fails behind it is not held against it",
            self.targets[index as usize].name
        );
        for platform in self.behind(index) {
            self.tell_platform(platform, News::Unreachable { target: index }, out);
        }
    }

    fn returned(&mut self, index: u32, out: &mut Vec<Action>) {
        self.targets[index as usize].is_lost = false;
        log::info!("{} can be reached again", self.targets[index as usize].name);
        let mut at = self.now;
        for platform in self.behind(index) {
            self.tell_platform(platform, News::Reachable { target: index }, out);
            if self.is_excused(platform) {
                continue;
            }
            at = at + RETURN_STEP;
            for slot in self.platforms[platform].slots() {
                self.welcome_back(slot, at);
            }
            if let Some(until) = self.platforms[platform].breaker.hasten(at) {
                self.set_timer(Timer::PlatformHalfOpen(platform as u32), until);
            }
        }
        self.start_what_can(out);
    }

    /// It is asked how it is, and its breaker is tried, at this time, or no later.
    fn welcome_back(&mut self, slot: usize, at: Time) {
        let instance = self.instance(slot);
        let entry = &mut self.slots[slot];
        if !entry.life.is_ready() {
            return;
        }
        if let Some(until) = entry.breaker.hasten(at) {
            self.set_timer(Timer::HalfOpen(instance), until);
        }
        let health = &mut self.slots[slot].health;
        let is_ill = !health.is_up() || health.failing_since().is_some();
        health.excuse();
        if is_ill && self.timers.at(Timer::Probe(instance)).is_some() {
            self.set_timer(Timer::Probe(instance), at);
        }
    }

    /// Platforms that depend on it, each after those of them that it needs.
    fn behind(&self, index: u32) -> Vec<usize> {
        let mut order = Vec::new();
        for platform in 0..self.platforms.len() {
            self.put_in_order(platform, index, &mut order);
        }
        order
    }

    fn put_in_order(&self, platform: usize, index: u32, order: &mut Vec<usize>) {
        if !self.platforms[platform].behind.contains(&index) || order.contains(&platform) {
            return;
        }
        for need in &self.platforms[platform].needs {
            self.put_in_order(*need as usize, index, order);
        }
        order.push(platform);
    }

    /// Whether it is known that nothing but the instance itself can be to blame for its failing: all that it depends on
    /// has been reached since. Otherwise that is looked at now.
    pub(crate) fn is_to_blame(&mut self, slot: usize, out: &mut Vec<Action>) -> bool {
        let platform = self.slots[slot].platform as usize;
        let since = self.slots[slot].health.failing_since();
        if self.is_doubtful(platform, since) {
            self.look_behind(platform, out);
        }
        // A look at a platform comes back at once.
        !self.is_doubtful(platform, since)
    }

    /// Everything that it depends on is looked at now.
    pub(crate) fn look_behind(&mut self, platform: usize, out: &mut Vec<Action>) {
        for target in self.platforms[platform].behind.clone() {
            self.reach_due(target, out);
        }
    }

    /// Whether something that it depends on has not been reached since then.
    pub(crate) fn is_doubtful(&self, platform: usize, since: Option<Time>) -> bool {
        self.platforms[platform].behind.iter().any(|target| {
            let entry = &self.targets[*target as usize];
            entry.health.was_up() && (entry.is_lost || entry.reached_at < since)
        })
    }

    /// It was reached: whatever lies behind it and is dead is so by itself, unless it depends on something else.
    fn blame_the_dead(&mut self, index: u32, out: &mut Vec<Action>) {
        for platform in self.behind(index) {
            if !self.platforms[platform].host.can_be_replaced() {
                continue;
            }
            for slot in self.platforms[platform].slots() {
                let entry = &self.slots[slot];
                let is_dead = entry.life.is_ready() && entry.health.is_dead(&self.platforms[platform].care.health);
                if is_dead && !entry.is_candidate && !self.is_doubtful(platform, entry.health.failing_since()) {
                    self.take(slot, Input::Sick(Reason::HealthFailed), out);
                }
            }
        }
    }

    /// It is to be started again, and waits for what it depends on. Whether it does.
    pub(crate) fn waits_for_return(&mut self, slot: usize, out: &mut Vec<Action>) -> bool {
        let platform = self.slots[slot].platform as usize;
        let Some(target) = self.lost_by(platform).filter(|_| self.phase == Phase::Running) else { return false };
        self.take(slot, Input::Want(Reason::Unreachable { target }), out);
        true
    }

    /// Whether it waits for nothing but the return of what it depends on.
    pub(crate) fn is_waiting_for_return(&self, slot: usize) -> bool {
        let entry = &self.slots[slot];
        entry.life.state() == State::Waiting
            && matches!(entry.life.since().1, Reason::Unreachable { .. })
            && self.is_excused(entry.platform as usize)
    }

    pub(crate) fn check_targets(&self) {
        if self.phase != Phase::Running || self.stats.events == 0 {
            return;
        }
        for (index, target) in self.targets.iter().enumerate() {
            let is_due = self.timers.at(Timer::Reach(index as u32)).is_some();
            let is_waited_for = self.timers.at(Timer::ReachLate(index as u32)).is_some();
            assert!(!(is_due && is_waited_for), "{} is looked at twice", target.name);
            assert!(!target.is_lost || is_due || is_waited_for, "{} is lost for ever", target.name);
            assert!(!target.is_lost || target.health.was_up(), "{} was never there and is lost", target.name);
        }
    }
}
