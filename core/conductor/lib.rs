//! Demi's decisions: pure, without clock, thread, file descriptor, payload byte or global.
//!
//! Whoever drives it (the reactor for real, the world in simulation) calls [`Conductor::handle`] with what happened
//! and performs the actions that are appended, in order; and comes back at [`Conductor::deadline`] with
//! [`Event::Elapsed`]. A failed effect is another event, so there is one error path, the normal one.
//!
//! | story | where |
//! |---|---|
//! | a request, from the question to its one end | `requests.rs` |
//! | which instance gets it | `picking.rs` |
//! | an instance: started, probed, cut off, replaced | `instances.rs` |
//! | breakers: what trips them, who is spared, what is tried | `cutoffs.rs` |
//! | instances that are far worse than their peers | `outliers.rs` |
//! | what platforms depend on, and patience while it is away | `reach.rs` |
//! | a second instance that is asked as well | `hedging.rs` |
//! | messages that are kept until they are delivered | `posts.rs` |
//! | another platform, if one does not take a request or fails | `falling_back.rs` |
//! | what people and other platforms want of a platform; sleep | `orders.rs` |
//! | a new edition beside the old | `swap.rs` |
//! | what a child may use | `limits.rs` |
//! | RAM that runs short, and is enough again | `shedding.rs` |
//! | what does not fit and is not started | `holding.rs` |
//! | what instances say of themselves to whoever balances requests | `reports.rs` |
//! | the end, phase by phase | `ending.rs` |
//!
//! The leaves (`lifecycle`, `health`, `breaker`, `router`, `balance`, `footprint`, `queue`, `retry`, `dead_letter`, `scaler`,
//! `shutdown`) answer questions and take facts. They know no other leaf and emit no action.

#![forbid(unsafe_code)]

pub mod balance;
#[cfg(test)]
mod balancing;
pub mod breaker;
pub mod config;
mod cutoffs;
mod dead_letter;
mod ending;
mod event;
mod falling_back;
mod footprint;
pub mod health;
mod hedging;
mod holding;
#[cfg(test)]
mod illness;
mod instances;
pub mod lifecycle;
mod limits;
pub mod manifest;
mod orders;
mod outliers;
mod picking;
mod posts;
mod queue;
#[cfg(test)]
mod queueing;
mod random;
mod reach;
mod reports;
mod requests;
pub mod retry;
pub mod router;
pub mod scaler;
mod shedding;
#[cfg(test)]
mod shortage;
mod shutdown;
pub mod stats;
mod status;
#[cfg(test)]
mod stories;
mod swap;
#[cfg(test)]
mod tests;
mod time;
mod timers;
mod uploads;

pub use event::{
    Action, Answer, Ask, Errand, Event, Exit, Grave, Instance, News, Order, Outcome, PostId, Posting, Pressure,
    RamSource, Refusal, Report, Sample, Signal, Terms, Ticket, TicketBook, Tries, Verdict, Weight, MEGABYTE,
    WEIGHT_MAX,
};
pub use random::Random;
pub use router::{Miss, Overlap, Question, RouteId, Router, Rule};
pub use shutdown::Phase;
pub use status::{InstanceStatus, PlatformLoad, PlatformStatus, TargetStatus, INSTANCE_STATES};
pub use time::Time;
pub use timers::{Timer, Timers};

use balance::{fingerprint, Turns};
use breaker::{Breaker, Cause, Rules};
use config::{Balance, Config, Host, Start};
use footprint::{Footprint, Trend};
use health::Health;
use hedging::Latency;
use lifecycle::{Lifecycle, Reason, State, Then};
use posts::Posts;
use queue::Queue;
use reach::Target;
use requests::Request;
use retry::Budget;
use shedding::Scaling;
use stats::{PlatformStats, Stats};
use swap::Swap;

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
    /// A reload ends the old edition with its requests in hand.
    ReplacedWithoutDraining,
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
    /// What platforms depend on, by its index in `reachability`.
    targets: Vec<Target>,
    posts: Posts,
    /// What answers of routes that hedge have taken lately, by the index of the route.
    latencies: Vec<Option<Box<Latency>>>,
    /// Some instance drains, some platform is to end after others, or some reload is under way: see to it at the end of
    /// the turn.
    has_unsettled: bool,
    sample: Option<(Time, Sample)>,
    /// `None` if `scaler.enabled` is false.
    scaling: Option<Box<Scaling>>,
    /// What all children weigh together, bytes.
    weight_total: u64,
    /// Requests that have come.
    asked_count: u64,
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
    outliers: config::Outliers,
    restart: config::Restart,
    retry: config::Retry,
    posts: config::Posts,
    scaler: config::Scaler,
    shutdown: config::Shutdown,
    requests_max: usize,
}

/// A platform and what waits for it.
#[derive(Debug)]
struct Platform {
    name: String,
    host: Host,
    start: Start,
    /// Its slots are `first..first + count`; of a child process one more than it has instances.
    first: u32,
    count: u32,
    terms: Terms,
    care: Care,
    /// Its own breaker: that of all its instances together.
    breaker: Breaker,
    /// Its own breaker is not closed, and that was told.
    is_cut_off: bool,
    /// When a probe last spoke for it; what was asked before that speaks no more.
    vouched_at: Time,
    /// A comparison of its instances is due.
    is_compared: bool,
    queue: Queue,
    /// Since when somebody has been there for what waits; `None`: nobody is, or nothing has waited yet.
    attended_since: Option<Time>,
    /// What stands for each of its slots, and how often it is asked against the others.
    shares: Vec<Share>,
    turns: Turns,
    needs: Vec<u32>,
    needed_by: Vec<u32>,
    /// What it depends on, by the index in `reachability`.
    behind: Vec<u32>,
    /// To be drained for this once those that need it have ended.
    ending: Option<(Then, Reason)>,
    /// A person keeps requests away from it.
    is_isolated: bool,
    /// The edition that its instances are started from.
    edition: u32,
    swap: Option<Swap>,
    /// Starts since the day began.
    starts: u32,
    /// Requests for it that have not ended.
    live: u32,
    /// When its last request came or ended.
    used_at: Time,
    budget: Budget,
    footprint: Footprint,
    stats: PlatformStats,
}

/// How a platform is probed, cut off and compared: what holds for all, where it has nothing of its own.
#[derive(Debug)]
struct Care {
    health: config::Health,
    breaker: config::Breaker,
    outliers: config::Outliers,
    instance_rules: Rules,
    platform_rules: Rules,
}

impl Care {
    fn of(platform: &config::Platform, settings: &Settings) -> Care {
        let breaker = platform.breaker.over(&settings.breaker);
        Care {
            health: platform.health.over(&settings.health),
            breaker,
            outliers: platform.outliers.over(&settings.outliers),
            instance_rules: Rules::of_instance(&breaker),
            platform_rules: Rules::of_platform(&breaker),
        }
    }
}

/// A slot's part in the balance of its platform.
#[derive(Debug)]
struct Share {
    identity: u64,
    /// As it is configured, and as its run has said.
    weight: u32,
    reported: Option<u32>,
    /// When it was last told that it wants no new requests, and whether that still stands as told.
    drain_told_at: Option<Time>,
    is_drain_told: bool,
}

impl Share {
    /// An upstream is known by its address, so that its keys stay with it wherever it stands in the list.
    fn all(platform: &config::Platform) -> Vec<Share> {
        let share = |slot: usize| Share {
            identity: match platform.upstreams.get(slot) {
                Some(address) => fingerprint(address.as_bytes()),
                None => slot as u64,
            },
            weight: platform.weights.get(slot).map_or(1, |weight| weight.count()),
            reported: None,
            drain_told_at: None,
            is_drain_told: false,
        };
        (0..platform.slots()).map(share).collect()
    }
}

impl Platform {
    fn new(config: &config::Platform, first: usize, settings: &Settings) -> Platform {
        Platform {
            name: config.name.clone(),
            host: config.host,
            start: config.start,
            first: first as u32,
            count: config.slots() as u32,
            terms: Terms::of(config),
            care: Care::of(config, settings),
            breaker: Breaker::default(),
            is_cut_off: false,
            vouched_at: Time::ZERO,
            is_compared: false,
            queue: Queue::default(),
            attended_since: None,
            shares: Share::all(config),
            turns: Turns::default(),
            needs: Vec::new(),
            needed_by: Vec::new(),
            behind: Vec::new(),
            ending: None,
            is_isolated: false,
            edition: 0,
            swap: None,
            starts: 0,
            live: 0,
            used_at: Time::ZERO,
            budget: Budget::new(&settings.retry),
            footprint: Footprint::default(),
            stats: PlatformStats::default(),
        }
    }

    fn slots(&self) -> std::ops::Range<usize> {
        self.first as usize..(self.first + self.count) as usize
    }

    /// Whether it is to end after others, or a reload of it is under way; one that waits for RAM is not.
    fn is_changing(&self) -> bool {
        self.ending.is_some() || self.swap.is_some_and(|swap| !swap.waits)
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
    /// Its breaker has tripped for this and it stays in use as the last one, until a probe shows whether it is well.
    accused: Option<Cause>,
    /// When it last came back; its share of requests grows from then on.
    returned_at: Option<Time>,
    /// When the first of the failed calls since its last good one ended.
    bad_since: Option<Time>,
    /// Until when it wants not to be asked again what it could not do.
    deferred_until: Option<Time>,
    /// When it was last told that it stays in use though its breaker has tripped.
    acquitted_at: Option<Time>,
    in_flight: u32,
    /// Those of them whose answers are flowing already.
    flowing: u32,
    /// Requests that nobody waits for any more and that a thread cannot be made to let go of, each with the end of the
    /// patience with it.
    abandoned: Vec<(Ticket, Time)>,
    /// When it last answered.
    heard_at: Time,
    /// When it last answered with what it stands behind.
    good_at: Option<Time>,
    /// When it last answered, or went from idle to busy.
    progress: Time,
    /// A request of this run ran out of time and nothing was heard since.
    suspect: bool,
    /// How long it usually takes to answer.
    usual: std::time::Duration,
    /// Of which edition of its platform its run is, or its last one was.
    edition: u32,
    /// Of a new edition that has to prove itself; takes no requests.
    is_candidate: bool,
    started_at: Time,
    /// It has said that it wants no new requests.
    drains: bool,
    /// What its process tree was last found to use.
    weight: Option<Weight>,
    /// How that has moved lately.
    trend: Option<Trend>,
    /// When it was last asked to give memory back, as long as it has not.
    trimmed_at: Option<Time>,
    /// It was killed for want of RAM, and is not known to have ended.
    is_put_down: bool,
    /// When it was last told that it needs longer to start.
    extended_at: Option<Time>,
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
        let mut conductor = Conductor::empty(config, seed);
        // Needs may stand after what needs them.
        for platform in &config.platforms {
            conductor.add_platform(platform);
        }
        for (index, platform) in config.platforms.iter().enumerate() {
            for need in &platform.needs {
                let position = config.platforms.iter().position(|other| other.name == *need);
                let position = position.expect("a configuration without mistakes names what is there");
                conductor.connect(index as u32, position as u32);
            }
        }
        conductor
    }

    /// Takes in a platform that was found after the start; returns its index. [`Event::Ordered`] with
    /// [`Order::Enroll`] starts it, and so does its first request if it is lazy. What it needs must be there already.
    ///
    /// The one input that is no event: an event holds no text.
    ///
    /// # Panics
    /// If something that it needs is not there, or its name is taken.
    pub fn add(&mut self, platform: &config::Platform) -> u32 {
        assert!(self.router.to(&platform.name).is_none(), "{} is there already", platform.name);
        self.router.add(platform);
        let index = self.add_platform(platform);
        for need in &platform.needs {
            let position = self.platforms.iter().position(|other| other.name == *need);
            let position = position.expect("whoever adds a platform has seen that what it needs is there");
            self.connect(index, position as u32);
        }
        index
    }

    fn add_platform(&mut self, platform: &config::Platform) -> u32 {
        let index = self.platforms.len() as u32;
        let first = self.slots.len();
        let (state, reason) = match platform.start {
            Start::Eager => (State::Waiting, Reason::NeedsOthers),
            Start::Lazy => (State::Asleep, Reason::NotAskedYet),
            Start::Manual => (State::Stopped, Reason::Manual),
        };
        self.slots.extend((0..platform.instances()).map(|_| Slot::new(index, Lifecycle::new(state, reason))));
        let spares = platform.slots() - platform.instances();
        let spare = || Slot::new(index, Lifecycle::new(State::Spare, Reason::Unused));
        self.slots.extend((0..spares).map(|_| spare()));
        self.platforms.push(Platform::new(platform, first, &self.settings));
        self.put_behind(index, platform);
        index
    }

    fn connect(&mut self, needy: u32, need: u32) {
        self.platforms[needy as usize].needs.push(need);
        self.platforms[need as usize].needed_by.push(needy);
    }

    fn empty(config: &Config, seed: u64) -> Conductor {
        Conductor {
            settings: Settings {
                health: config.health,
                breaker: config.breaker,
                outliers: config.outliers,
                restart: config.restart.clone(),
                retry: config.retry.clone(),
                posts: config.posts,
                scaler: config.scaler,
                shutdown: config.shutdown.clone(),
                requests_max: config.requests_max.size(),
            },
            router: Router::new(config),
            platforms: Vec::new(),
            slots: Vec::new(),
            requests: Vec::new(),
            live: 0,
            timers: Timers::default(),
            random: Random::new(seed),
            targets: Target::all(config),
            posts: Posts::default(),
            latencies: config.routes.iter().map(|route| route.hedge.then(Box::default)).collect(),
            phase: Phase::Running,
            stop_ordered_at: Time::ZERO,
            exit_code: 0,
            has_exited: false,
            has_unsettled: false,
            sample: None,
            scaling: config.scaler.enabled.then(|| Box::new(Scaling::new(&config.scaler))),
            weight_total: 0,
            asked_count: 0,
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
            Event::Asked { ticket, route, ask } => self.asked(ticket, route, ask, out),
            Event::Moved { ticket, instance } => self.moved(ticket, instance),
            Event::Headed { ticket, instance } => self.headed(ticket, instance, out),
            Event::Answered { ticket, instance, outcome } => self.answered(ticket, instance, outcome, None, out),
            Event::Deferred { ticket, instance, outcome, after } => {
                self.answered(ticket, instance, outcome, Some(after), out);
            }
            Event::Gone { ticket } => self.gone(ticket, out),
            Event::Started { instance } => self.started(instance, out),
            Event::Extended { instance, by } => self.extended(instance, by, out),
            Event::Weighed { instance, weight } => self.weighed(instance, weight, out),
            Event::Reported { instance, report } => self.reported(instance, report, out),
            Event::Exited { instance, exit } => self.exited(instance, exit, out),
            Event::Probed { instance, verdict } => self.probed(instance, verdict, out),
            Event::Reinitialized { instance, done } => self.reinitialized(instance, done, out),
            Event::Reached { target, verdict } => self.reached(target, verdict, out),
            Event::Posted { post, posting } => self.posted(post, posting, out),
            Event::PostLoaded { post, ticket } => self.post_loaded(post, ticket, out),
            Event::PostLost { post, for_good } => self.post_lost(post, for_good, out),
            Event::PostStored { post, done } => self.post_stored(post, done, out),
            Event::AllWeighed { available } => self.all_weighed(available),
            Event::Measured { sample } => self.measured(sample, out),
            Event::Stored { errand, done } => self.stored(errand, done, out),
            Event::Ordered(order) => self.ordered(order, out),
            Event::Recalled { platform, starts } => self.recalled(platform, starts),
            Event::PeakRecalled { platform, bytes, age } => self.peak_recalled(platform, bytes, age),
            Event::DayBegan => self.day_began(out),
            Event::Elapsed => {}
        }
        if self.has_unsettled {
            self.settle_platforms(out);
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
            Timer::Expire(ticket) => self.expired(at, ticket, out),
            Timer::Retry(ticket) => self.retry_due(ticket, out),
            Timer::Probe(instance) => self.probe_in_turn(instance, out),
            Timer::ProbeLate(instance) => self.probe_late(at, instance, out),
            Timer::Restart(slot) => self.restart_due(slot, out),
            Timer::StartLate(instance) => self.start_late(instance, out),
            Timer::Terminate(instance) => out.push(Action::Signal { instance, signal: Signal::Terminate }),
            Timer::Kill(instance) => out.push(Action::Signal { instance, signal: Signal::Kill }),
            Timer::HalfOpen(instance) => self.half_open_due(instance, out),
            Timer::TrialLate(instance) => self.trial_late(instance, out),
            Timer::PlatformHalfOpen(platform) => self.platform_half_open_due(platform, out),
            Timer::PlatformTrialLate(platform) => self.platform_trial_late(platform, out),
            Timer::Hedge(ticket) => self.hedge_due(ticket, out),
            Timer::Reach(target) => self.reach_due(target, out),
            Timer::ReachLate(target) => self.reach_late(at, target, out),
            Timer::Compare(platform) => self.compare_due(platform, out),
            Timer::Wedged(instance) => self.wedged(instance, out),
            Timer::DrainLate(instance) => self.drain_late(instance, out),
            Timer::Sleep(platform) => self.sleep_due(platform, out),
            Timer::Post => self.posts_due(out),
            Timer::Weigh => self.weigh_due(out),
            Timer::Sample => self.sample_due(out),
            Timer::Phase => self.phase_over(out),
        }
    }

    /// When to come back with [`Event::Elapsed`], and what for. Always later than the last `handle`.
    pub fn deadline(&self) -> Option<(Time, Timer)> {
        self.timers.next()
    }

    /// Whether keys of requests decide which of a platform's instances gets them; `platform` is its index.
    pub fn goes_by_keys(&self, platform: u32) -> bool {
        self.platforms.get(platform as usize).is_some_and(|platform| platform.terms.balance == Balance::Sticky)
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

    /// Which of its platform's slots this is, counted from 0.
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
        self.check_cutoffs();
        self.check_targets();
        self.check_posts();
        self.check_scaling();
        if self.phase != Phase::Running && self.phase != Phase::Done {
            assert!(self.timers.at(Timer::Phase).is_some(), "the phase {:?} has no end", self.phase);
        }
    }
}

impl Slot {
    fn new(platform: u32, life: Lifecycle) -> Slot {
        Slot {
            platform,
            run: 0,
            life,
            health: Health::new(false),
            breaker: Breaker::default(),
            accused: None,
            returned_at: None,
            bad_since: None,
            deferred_until: None,
            acquitted_at: None,
            in_flight: 0,
            flowing: 0,
            abandoned: Vec::new(),
            heard_at: Time::ZERO,
            good_at: None,
            progress: Time::ZERO,
            suspect: false,
            usual: std::time::Duration::ZERO,
            edition: 0,
            is_candidate: false,
            started_at: Time::ZERO,
            drains: false,
            weight: None,
            trend: None,
            trimmed_at: None,
            is_put_down: false,
            extended_at: None,
        }
    }
}
