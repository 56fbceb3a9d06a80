//! Demi's decisions: pure, without clock, thread, file descriptor, payload byte or global.
//!
//! Whoever drives it (the reactor for real, the world in simulation) calls [`Conductor::handle`] with what happened
//! and performs the actions that are appended, in order; and comes back at [`Conductor::deadline`] with
//! [`Event::Elapsed`]. A failed effect is another event, so there is one error path, the normal one.
//!
//! | story | where |
//! |---|---|
//! | a request, from the question to its one end | `requests.rs` |
//! | an instance: started, probed, cut off, replaced | `instances.rs` |
//! | the end, phase by phase | `ending.rs` |
//!
//! The leaves (`lifecycle`, `health`, `breaker`, `router`, `balance`, `retry`, `dead_letter`, `shutdown`) answer
//! questions and take facts. They know no other leaf and emit no action.

#![forbid(unsafe_code)]

pub mod balance;
pub mod breaker;
pub mod config;
mod dead_letter;
mod ending;
mod event;
pub mod health;
mod instances;
pub mod lifecycle;
mod random;
mod requests;
pub mod retry;
mod router;
mod shutdown;
pub mod stats;
mod status;
#[cfg(test)]
mod tests;
mod time;
mod timers;

use std::collections::VecDeque;

pub use event::{
    Action, Answer, Errand, Event, Exit, Instance, Order, Outcome, Refusal, Sample, Signal, Ticket, TicketBook, Verdict,
};
pub use random::Random;
pub use router::{Question, RouteId, Router, Rule};
pub use shutdown::Phase;
pub use status::{InstanceStatus, PlatformStatus, INSTANCE_STATES};
pub use time::Time;
pub use timers::{Timer, Timers};

use breaker::Breaker;
use config::{Config, Host};
use health::Health;
use lifecycle::Lifecycle;
use requests::Request;
use retry::Budget;
use stats::{PlatformStats, Stats};

/// Bugs that can be planted to show that the world finds them.
#[cfg(feature = "plants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// A failed probe starts the wait of an open breaker again.
    BreakerClockMovedByProbes,
    /// A trial whose request is abandoned keeps its permit.
    TrialNeverReturned,
    /// The answer of an old run is taken for one of the present run.
    LateAnswerAccepted,
}

/// Decides. See the crate's documentation.
#[derive(Debug)]
pub struct Conductor {
    settings: Settings,
    router: Router,
    platforms: Vec<Platform>,
    slots: Vec<Slot>,
    /// By the slot of the ticket.
    requests: Vec<Option<Request>>,
    live: usize,
    timers: Timers,
    random: Random,
    phase: Phase,
    stop_ordered_at: Time,
    exit_code: u8,
    has_exited: bool,
    sample: Option<(Time, Sample)>,
    stats: Stats,
    now: Time,
    #[cfg(feature = "plants")]
    plant: Option<Plant>,
}

/// The parts of the configuration that decisions look at.
#[derive(Clone, Debug)]
struct Settings {
    health: config::Health,
    breaker: config::Breaker,
    restart: config::Restart,
    retry: config::Retry,
    sampling: config::Sampling,
    shutdown: config::Shutdown,
    requests_max: usize,
}

/// A platform and what waits for it.
#[derive(Debug)]
struct Platform {
    name: String,
    host: Host,
    /// Its instances are the slots `first..first + count`.
    first: u32,
    count: u32,
    in_flight_max: u32,
    queue: VecDeque<Ticket>,
    queue_max: usize,
    start_timeout: std::time::Duration,
    stop_grace: std::time::Duration,
    wedged: std::time::Duration,
    needs: Vec<u32>,
    needed_by: Vec<u32>,
    budget: Budget,
    stats: PlatformStats,
}

impl Platform {
    fn slots(&self) -> std::ops::Range<usize> {
        self.first as usize..(self.first + self.count) as usize
    }

    /// Whether ending a run and starting another is a cure: a thread or process, not a remote service.
    fn can_be_replaced(&self) -> bool {
        matches!(self.host, Host::Threads(_) | Host::Process(_))
    }
}

/// An instance over all its runs.
#[derive(Debug)]
struct Slot {
    platform: u32,
    run: u32,
    life: Lifecycle,
    health: Health,
    breaker: Breaker,
    in_flight: u32,
    /// Those of them whose answers are flowing already.
    flowing: u32,
    /// Requests that nobody waits for any more and that a thread cannot be made to let go of, each with the end of the
    /// patience with it.
    abandoned: Vec<(Ticket, Time)>,
    /// When it last answered.
    heard_at: Time,
    /// When it last answered, or went from idle to busy.
    progress: Time,
    /// A request of this run ran out of time and nothing was heard since.
    suspect: bool,
    /// How long it usually takes to answer.
    usual: std::time::Duration,
}

impl Slot {
    fn occupied(&self) -> u32 {
        self.in_flight + self.abandoned.len() as u32
    }
}

impl Conductor {
    /// For a configuration without [mistakes](Config::mistakes). `seed` decides every choice and jitter.
    ///
    /// # Panics
    /// If platforms need each other in a circle, which is such a mistake.
    pub fn new(config: &Config, seed: u64) -> Conductor {
        config.start_order().expect("a configuration without mistakes has no circle of needs");
        let position = |name: &String| config.platforms.iter().position(|other| other.name == *name);
        let mut platforms = Vec::with_capacity(config.platforms.len());
        let mut slots = Vec::new();
        for (index, platform) in config.platforms.iter().enumerate() {
            let first = slots.len() as u32;
            slots.extend((0..platform.instances()).map(|_| Slot::new(index as u32)));
            let needs: Vec<u32> = platform.needs.iter().filter_map(position).map(|need| need as u32).collect();
            platforms.push(Platform {
                name: platform.name.clone(),
                host: platform.host,
                first,
                count: platform.instances() as u32,
                in_flight_max: platform.in_flight_max(),
                queue: VecDeque::new(),
                queue_max: platform.queue_max.size(),
                start_timeout: platform.start_timeout_ms.millis(),
                stop_grace: platform.stop_grace_ms.millis(),
                wedged: platform.wedged_ms.millis(),
                needs,
                needed_by: Vec::new(),
                budget: Budget::new(&config.retry),
                stats: PlatformStats::default(),
            });
        }
        for index in 0..platforms.len() {
            for need in platforms[index].needs.clone() {
                platforms[need as usize].needed_by.push(index as u32);
            }
        }
        Conductor {
            settings: Settings {
                health: config.health.clone(),
                breaker: config.breaker.clone(),
                restart: config.restart.clone(),
                retry: config.retry.clone(),
                sampling: config.sampling.clone(),
                shutdown: config.shutdown.clone(),
                requests_max: config.requests_max.size(),
            },
            router: Router::new(config),
            platforms,
            slots,
            requests: Vec::new(),
            live: 0,
            timers: Timers::default(),
            random: Random::new(seed),
            phase: Phase::Running,
            stop_ordered_at: Time::ZERO,
            exit_code: 0,
            has_exited: false,
            sample: None,
            stats: Stats::default(),
            now: Time::ZERO,
            #[cfg(feature = "plants")]
            plant: None,
        }
    }

    /// Fires every timer due at `now`, then takes the event; appends to `out` in order of performance.
    ///
    /// Cannot fail and does not block. Allocates only when a table grows.
    ///
    /// # Panics
    /// If `now` goes back, or an invariant is broken.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Action>) {
        assert!(now >= self.now, "time went back");
        self.now = now;
        self.stats.events += 1;
        while let Some((at, timer)) = self.timers.pop(now) {
            self.fire(at, timer, out);
        }
        match event {
            Event::Began => self.began(out),
            Event::Asked { ticket, route, idempotent } => self.asked(ticket, route, idempotent, out),
            Event::Headed { ticket, instance } => self.headed(ticket, instance, out),
            Event::Answered { ticket, instance, outcome } => self.answered(ticket, instance, outcome, out),
            Event::Gone { ticket } => self.gone(ticket, out),
            Event::Started { instance } => self.started(instance, out),
            Event::Exited { instance, exit } => self.exited(instance, exit, out),
            Event::Probed { instance, verdict } => self.probed(instance, verdict, out),
            Event::Measured { sample } => self.sample = Some((now, sample)),
            Event::Stored { errand, done } => self.stored(errand, done, out),
            Event::Ordered(Order::Stop) => self.stop_ordered(out),
            Event::Elapsed => {}
        }
        if self.phase != Phase::Running {
            self.advance_ending(out);
        }
        if self.phase == Phase::Done {
            self.exit(out);
        }
        debug_assert!(self.deadline().is_none_or(|(at, _)| at > now), "a timer was left due");
    }

    fn fire(&mut self, at: Time, timer: Timer, out: &mut Vec<Action>) {
        match timer {
            Timer::Expire(ticket) => self.expired(ticket, out),
            Timer::Retry(ticket) => self.retry_due(ticket, out),
            Timer::Probe(instance) => self.probe_due(instance, out),
            Timer::ProbeLate(instance) => self.probe_late(at, instance, out),
            Timer::Restart(slot) => self.restart_due(slot, out),
            Timer::StartLate(instance) => self.start_late(instance, out),
            Timer::Terminate(instance) => out.push(Action::Signal { instance, signal: Signal::Terminate }),
            Timer::Kill(instance) => out.push(Action::Signal { instance, signal: Signal::Kill }),
            Timer::HalfOpen(instance) => self.half_open_due(instance, out),
            Timer::Wedged(instance) => self.wedged(instance, out),
            Timer::Sample => self.sample_due(out),
            Timer::Phase => self.phase_over(out),
        }
    }

    /// When to come back with [`Event::Elapsed`], and what for. Always later than the last `handle`.
    pub fn deadline(&self) -> Option<(Time, Timer)> {
        self.timers.next()
    }

    /// The routing table, to be asked before an [`Event::Asked`] is made.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Where in its end Demi is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The last measurement of the machine and when it came.
    pub fn sample(&self) -> Option<(Time, Sample)> {
        self.sample
    }

    /// What is counted for all of Demi.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Requests under way.
    pub fn live(&self) -> usize {
        self.live
    }

    /// The platform that a slot belongs to, by its index in the configuration.
    pub fn platform_of(&self, instance: Instance) -> usize {
        self.slots[instance.slot as usize].platform as usize
    }

    /// Which of its platform's instances this is, counted from 0.
    pub fn index_of(&self, instance: Instance) -> u32 {
        instance.slot - self.platforms[self.platform_of(instance)].first
    }

    /// `platform/index`, for the log.
    fn title(&self, slot: usize) -> String {
        let platform = &self.platforms[self.slots[slot].platform as usize];
        format!("{}/{}", platform.name, slot as u32 - platform.first)
    }

    /// Sets a timer, never at or before the present: what is due now is done now or in the next turn.
    fn set_timer(&mut self, timer: Timer, at: Time) {
        self.timers.set(timer, at.max(self.now + std::time::Duration::from_nanos(1)));
    }

    fn is_current(&self, instance: Instance) -> bool {
        self.slots.get(instance.slot as usize).is_some_and(|slot| slot.run == instance.run)
    }

    fn instance(&self, slot: usize) -> Instance {
        Instance { slot: slot as u32, run: self.slots[slot].run }
    }

    fn platform_at(&mut self, slot: usize) -> &mut Platform {
        &mut self.platforms[self.slots[slot].platform as usize]
    }

    /// Plants a bug, to show that the world finds it.
    #[cfg(feature = "plants")]
    pub fn plant(&mut self, plant: Plant) {
        self.plant = Some(plant);
    }

    /// Asserts every invariant. For tests and the world; costs time in proportion to all that is alive.
    ///
    /// # Panics
    /// If one is broken.
    pub fn check(&self) {
        self.timers.check();
        self.check_requests();
        self.check_instances();
        if self.phase != Phase::Running && self.phase != Phase::Done {
            assert!(self.timers.at(Timer::Phase).is_some(), "the phase {:?} has no end", self.phase);
        }
    }
}

impl Slot {
    fn new(platform: u32) -> Slot {
        Slot {
            platform,
            run: 0,
            life: Lifecycle::default(),
            health: Health::new(false),
            breaker: Breaker::default(),
            in_flight: 0,
            flowing: 0,
            abandoned: Vec::new(),
            heard_at: Time::ZERO,
            progress: Time::ZERO,
            suspect: false,
            usual: std::time::Duration::ZERO,
        }
    }
}
