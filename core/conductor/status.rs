//! What people are shown: copies of the conductor's state, made when asked for.

use std::time::Duration;

use serde::Serialize;

use crate::breaker::Tally;
use crate::config::{Balance, Host, Start};
use crate::event::Weight;
use crate::lifecycle::State;
use crate::stats::PlatformStats;
use crate::time::Time;
use crate::timers::Timer;
use crate::Conductor;

/// A sample of RAM that is older than so many of the longest intervals is not how RAM is: it cannot be measured any more.
const SAMPLE_INTERVALS_MAX: u32 = 3;

/// A platform as it is now.
#[derive(Clone, Debug)]
pub struct PlatformStatus<'c> {
    /// Its name.
    pub name: &'c str,
    /// What runs it.
    pub host: Host,
    /// Whether a request to it would be served: an instance takes requests, or the platform sleeps and wakes by one.
    pub is_ready: bool,
    /// When it is started.
    pub start: Start,
    /// Whether a person keeps requests away from it.
    pub is_isolated: bool,
    /// Whether a new edition is being tried.
    pub is_reloading: bool,
    /// If the new edition waits for RAM: when it starts, in a clause.
    pub reload_waits: Option<String>,
    /// The edition that its instances are started from.
    pub edition: u32,
    /// Starts since the day began, and the most that there may be.
    pub starts_today: (u32, u32),
    /// Requests that wait for an instance.
    pub queued: usize,
    /// How long the one that has waited longest has.
    pub queue_age: Duration,
    /// Its own breaker: `closed`, `open`, `half_open`.
    pub breaker: &'static str,
    /// Whether its own breaker lets a request through now.
    pub is_admitting: bool,
    /// Until when its own breaker is open, if it is.
    pub breaker_until: Option<Time>,
    /// Calls of the last `breaker.window_ms`, over all its instances.
    pub recent: Tally,
    /// What its retries and hedges may still draw on; `retry.tokens_max` at most.
    pub retry_tokens: u32,
    /// What an instance of it is expected to weigh at most, bytes: the most that one has, faded since. 0 if
    /// nobody knows.
    pub peak_bytes: u64,
    /// Names of what it depends on and that cannot be reached.
    pub unreachable: Vec<&'c str>,
    /// What is counted for it.
    pub stats: &'c PlatformStats,
    /// Its instances.
    pub instances: Vec<InstanceStatus>,
}

/// What a platform does to the machine, in numbers: cheap enough to be asked for all of them each second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlatformLoad {
    /// What its instances weigh together, bytes, as far as they were weighed.
    pub rss_bytes: u64,
    /// How many of them run: started, and not known to have ended.
    pub running: u32,
    /// Requests for it since the start of Demi.
    pub asked: u64,
}

/// Something that platforms depend on, as it is now.
#[derive(Clone, Debug, Serialize)]
pub struct TargetStatus<'c> {
    /// Its name.
    pub name: &'c str,
    /// `unproven`, `up`, `degraded` (a look took long) or `down`.
    pub state: &'static str,
    /// It has been reached before and cannot be now.
    pub is_lost: bool,
}

/// Every state that an instance may be shown in: those of its life, and four of one that is ready and not
/// well or not proven.
pub const INSTANCE_STATES: [&str; 14] = [
    "asleep", "waiting", "starting", "proving", "ready", "degraded", "wedged", "down", "draining", "stopping",
    "backoff", "stopped", "failed", "shed",
];

/// An instance as it is now.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceStatus {
    /// Which of its platform's instances, from 0.
    pub instance: u32,
    /// Its index over all platforms.
    #[serde(skip)]
    pub slot: u32,
    /// One of [`INSTANCE_STATES`].
    pub state: &'static str,
    /// Whether a request would be given to it.
    #[serde(rename = "serving")]
    pub is_serving: bool,
    /// Since when it is in this state.
    #[serde(skip)]
    pub since: Time,
    /// Why, in a sentence.
    pub why: String,
    /// How many times it was started.
    pub run: u32,
    /// Its breaker: `closed`, `open`, `half_open`.
    pub breaker: &'static str,
    /// Until when its breaker is open, if it is.
    #[serde(skip)]
    pub breaker_until: Option<Time>,
    /// Its breaker has tripped and it stays in use, as the last one, until a health check says how it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accused_of: Option<String>,
    /// Calls of the last `breaker.window_ms`.
    #[serde(skip)]
    pub recent: Tally,
    /// What its probes say: `unproven`, `up`, `degraded`, `down`.
    pub health: &'static str,
    /// Requests it has.
    pub in_flight: u32,
    /// How long the last probe took, milliseconds.
    pub probe_ms: Option<f64>,
    /// What happens next without anybody's doing, and in how long.
    pub next: Option<String>,
    /// Of which edition of the platform it is.
    pub edition: u32,
    /// How often it is asked against the others, if its platform goes by that or it has said something of it.
    #[serde(rename = "weight", skip_serializing_if = "Option::is_none")]
    pub turns_weight: Option<u32>,
    /// It has said that it wants no new requests.
    #[serde(rename = "drain", skip_serializing_if = "std::ops::Not::not")]
    pub drains: bool,
    /// What its process tree was last found to use.
    #[serde(skip)]
    pub weight: Option<Weight>,
}

impl Conductor {
    /// Every platform, in the order of the configuration.
    pub fn platforms(&self) -> impl Iterator<Item = PlatformStatus<'_>> + '_ {
        self.platforms.iter().enumerate().map(|(index, platform)| {
            let instances: Vec<InstanceStatus> =
                self.shown_slots(platform).map(|slot| self.instance_status(slot, platform.first)).collect();
            let sleeps = instances.iter().any(|instance| instance.state == "asleep");
            PlatformStatus {
                name: &platform.name,
                host: platform.host,
                is_ready: !platform.is_isolated
                    && !platform.breaker.is_open()
                    && (sleeps || instances.iter().any(|instance| instance.is_serving)),
                start: platform.start,
                is_isolated: platform.is_isolated,
                is_reloading: platform.swap.is_some(),
                reload_waits: platform.swap.filter(|swap| swap.waits).map(|_| self.swap_resumes(index)),
                edition: platform.edition,
                starts_today: (platform.starts, platform.terms.start_budget),
                queued: platform.queue.len(),
                queue_age: self.queue_age(index),
                breaker: platform.breaker.name(),
                is_admitting: platform.breaker.admits(),
                breaker_until: platform.breaker.open_until(),
                recent: platform.breaker.recent(self.now, &platform.care.platform_rules),
                retry_tokens: platform.budget.tokens(),
                peak_bytes: self.expected_peak(index),
                unreachable: self.unreachable(platform),
                stats: &platform.stats,
                instances,
            }
        })
    }

    /// How many platforms there are.
    pub fn platform_count(&self) -> usize {
        self.platforms.len()
    }

    /// In which states the slots of a platform are.
    pub fn states_of(&self, platform: usize) -> impl Iterator<Item = State> + '_ {
        self.slots[self.platforms[platform].slots()].iter().map(|slot| slot.life.state())
    }

    /// What a platform does to the machine now.
    pub fn load_of(&self, platform: usize) -> PlatformLoad {
        let entry = &self.platforms[platform];
        let slots = &self.slots[entry.slots()];
        PlatformLoad {
            rss_bytes: slots.iter().filter_map(|slot| slot.weight).map(|weight| weight.rss_bytes).sum(),
            running: slots.iter().filter(|slot| slot.life.is_alive()).count() as u32,
            asked: entry.stats.asked,
        }
    }

    /// How long ago RAM was measured; `None` before the first sample.
    pub fn sample_age(&self, now: Time) -> Option<Duration> {
        self.sample.map(|(at, _)| now.since(at))
    }

    /// Whether that is so long ago that nobody knows how RAM is: more than three `scaler.interval_ms`.
    pub fn is_sample_stale(&self, now: Time) -> bool {
        let age_max = self.settings.scaler.interval_ms.millis() * SAMPLE_INTERVALS_MAX;
        self.sample_age(now).is_some_and(|age| age > age_max)
    }

    /// What platforms depend on, in the order of `reachability`.
    pub fn targets(&self) -> impl Iterator<Item = TargetStatus<'_>> + '_ {
        self.targets.iter().map(|target| TargetStatus {
            name: &target.name,
            state: target.health.name(),
            is_lost: target.is_lost,
        })
    }

    fn unreachable<'c>(&'c self, platform: &'c crate::Platform) -> Vec<&'c str> {
        let targets = platform.behind.iter().map(|target| &self.targets[*target as usize]);
        targets.filter(|target| target.is_lost).map(|target| target.name.as_str()).collect()
    }

    /// The slots that are or will be instances: all but the one that is kept for the next edition.
    fn shown_slots<'c>(&'c self, platform: &'c crate::Platform) -> impl Iterator<Item = usize> + 'c {
        platform.slots().filter(|slot| self.slots[*slot].life.state() != State::Spare)
    }

    /// Whether Demi is not ending and every platform serves, sleeps, or is kept from it by a person or for want of RAM.
    pub fn is_ready(&self) -> bool {
        let is_fine = |slot: usize| {
            let state = self.slots[slot].life.state();
            self.is_serving(slot) || matches!(state, State::Asleep | State::Stopped | State::Shed)
        };
        self.phase == crate::Phase::Running
            && self
                .platforms
                .iter()
                .all(|platform| platform.is_isolated || !platform.breaker.is_open() && platform.slots().any(is_fine))
    }

    /// Whether a request would be given to it, now or when it has finished what it has.
    pub(crate) fn is_serving(&self, slot: usize) -> bool {
        let entry = &self.slots[slot];
        let has_a_hand = (entry.abandoned.len() as u32) < self.platforms[entry.platform as usize].terms.in_flight_max;
        self.is_in_use(slot) && entry.breaker.admits() && has_a_hand
    }

    /// What it depends on and cannot be reached, in a clause.
    fn away(&self, platform: &crate::Platform) -> String {
        format!("{}, which it lies behind, cannot be reached", self.unreachable(platform).join(" and "))
    }

    fn instance_status(&self, slot: usize, first: u32) -> InstanceStatus {
        let entry = &self.slots[slot];
        let instance = self.instance(slot);
        let (since, reason) = entry.life.since();
        let is_wedged = !entry.abandoned.is_empty();
        let (state, why) = match entry.life.is_ready() {
            true if entry.is_candidate => ("proving", "its new edition must pass two health checks".to_owned()),
            true if is_wedged => ("wedged", "it does not let go of a request whose caller is gone".to_owned()),
            true if entry.health.is_unproven() => ("starting", "its first health check is not back yet".to_owned()),
            true if entry.health.is_down() => {
                let platform = &self.platforms[entry.platform as usize];
                match self.unreachable(platform)[..] {
                    [] if entry.health.is_unready() => ("down", "it says that it is not ready".to_owned()),
                    [] => ("down", "its health checks failed".to_owned()),
                    [..] => ("down", format!("its health checks failed, and {}", self.away(platform))),
                }
            }
            true if entry.drains => (entry.life.name(), "it says that it wants no new requests".to_owned()),
            true if entry.health.is_degraded() => ("degraded", "its last health check was slow".to_owned()),
            true if !entry.breaker.admits() => {
                (entry.life.name(), "its breaker keeps requests away after repeated failures".to_owned())
            }
            true => {
                let again = entry.life.ended().map(|ended| format!("{reason} again: before, {ended}"));
                (entry.life.name(), again.unwrap_or_else(|| reason.to_string()))
            }
            false if self.is_waiting_for_return(slot) => {
                (entry.life.name(), self.away(&self.platforms[entry.platform as usize]))
            }
            false => (entry.life.name(), reason.to_string()),
        };
        debug_assert!(INSTANCE_STATES.contains(&state), "{state} is not counted by metrics");
        let upcoming = [
            (Timer::Restart(instance.slot), "it is started again"),
            (Timer::StartLate(instance), "its start is given up"),
            (Timer::Terminate(instance), "it is sent TERM"),
            (Timer::Kill(instance), "it is killed"),
            (Timer::DrainLate(instance), "it is ended whatever requests it has"),
            (Timer::Wedged(instance), "it is replaced"),
            (Timer::HalfOpen(instance), "its breaker is tried"),
            (Timer::ProbeLate(instance), "its health check counts as failed"),
            (Timer::Probe(instance), "its health is checked"),
        ];
        let is_shed = entry.life.state() == State::Shed;
        let comes_back = is_shed.then(|| self.comes_back(entry.platform as usize));
        let next = upcoming.iter().find_map(|(timer, what)| {
            let wait: Duration = self.timers.at(*timer)? - self.now;
            Some(format!("{what} in {:.1} s", wait.as_secs_f64()))
        });
        let next = next.or(comes_back);
        let is_weighted = self.platforms[entry.platform as usize].terms.balance == Balance::Weighted;
        let is_weighed = is_weighted || self.share(slot).reported.is_some();
        InstanceStatus {
            instance: instance.slot - first,
            slot: instance.slot,
            state,
            is_serving: self.is_serving(slot),
            since: if state == "down" { entry.health.turned_at().unwrap_or(since) } else { since },
            why,
            run: entry.run,
            breaker: entry.breaker.name(),
            breaker_until: entry.breaker.open_until(),
            accused_of: entry.accused.map(|cause| cause.to_string()),
            recent: entry.breaker.recent(self.now, &self.platforms[entry.platform as usize].care.instance_rules),
            health: entry.health.name(),
            in_flight: entry.in_flight,
            probe_ms: entry.health.last().map(|(took, _)| took.as_secs_f64() * 1000.0),
            next,
            edition: entry.edition,
            turns_weight: is_weighed.then(|| self.weight_of(slot)),
            drains: entry.drains,
            weight: entry.weight,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::Then;

    #[test]
    fn a_sample_is_how_ram_is_for_three_intervals() {
        let mut conductor = Conductor::new(&crate::config::Config::default(), 1);
        let at = |seconds: u64| Time::from_millis(seconds * 1_000);
        assert_eq!((conductor.sample_age(at(500)), conductor.is_sample_stale(at(500))), (None, false));
        let sample = crate::event::Sample { ram_total: 1_000, ..Default::default() };
        conductor.handle(at(10), crate::Event::Measured { sample }, &mut Vec::new());
        assert_eq!(conductor.sample_age(at(100)), Some(Duration::from_secs(90)));
        assert_eq!([100, 101].map(|seconds| conductor.is_sample_stale(at(seconds))), [false, true]);
    }

    #[test]
    fn every_state_of_a_life_is_among_those_that_are_shown() {
        let (until, then) = (Time::ZERO, Then::Again);
        let states = [
            State::Asleep,
            State::Waiting,
            State::Starting,
            State::Ready,
            State::Draining { then },
            State::Stopping { then },
            State::Backoff { until },
            State::Stopped,
            State::Failed,
            State::Shed,
        ];
        let names = states.map(State::name);
        assert!(names.iter().all(|name| INSTANCE_STATES.contains(name)));
        let of_the_ready: Vec<&str> = INSTANCE_STATES.into_iter().filter(|name| !names.contains(name)).collect();
        assert_eq!(of_the_ready, ["proving", "degraded", "wedged", "down"]);
    }
}
