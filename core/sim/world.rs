//! The world: a virtual clock, a heap of things to come, and a conductor that does not know that none of it is real.

mod mail;
mod perform;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use demi_conductor::config::Config;
use demi_conductor::{Action, Conductor, Event, Instance, Order, Phase, Random, RouteId, Ticket, TicketBook, Time};

use crate::faults::{Dice, Fault};
use crate::ledger::Ledger;
use crate::machine::{Model, WEIGHT_LEAKED_MAX};
use crate::report::{Fnv1a, Report, Sight};
use crate::workload::{self, Workload};
use mail::Mail;
use perform::Coming;

/// Further steps at one moment than this are a circle of zero waits.
const STEPS_AT_ONCE_MAX: u64 = 20_000;
/// A turn that is late is so by less than this.
const LATE_TURN: Duration = Duration::from_millis(5);
/// All the RAM of a world, bytes: enough for all that it runs, if nothing else takes it.
const RAM: u64 = 4_000_000_000;
/// What of it everything else uses in calm, thousandths.
const BACKGROUND_CALM: u64 = 150;
/// The date at which a world begins, seconds since 1970: in November 2026.
const DATE_S: u64 = 1_796_100_000;
/// How often the books are compared with the status, in steps.
const AUDIT_EVERY: u64 = 32;

/// Pretends to do what the conductor orders, under a virtual clock and with seeded faults.
///
/// Everything in it follows from the seed. It panics as soon as the conductor does something that it may not, or
/// does not do in time what it must.
#[derive(Debug)]
pub struct World {
    config: Config,
    conductor: Conductor,
    now: Time,
    random: Random,
    dice: Dice,
    workload: Workload,
    coming: BTreeMap<(Time, u64), Coming>,
    sequence: u64,
    models: Vec<Model>,
    book: TicketBook,
    ledger: Ledger,
    actions: Vec<Action>,
    requests: u64,
    steps: u64,
    steps_at_once: u64,
    arrivals: bool,
    /// When the grace of the ordered stop is over, and when Demi must have exited, which lateness of the world moves.
    grace_over: Time,
    exit_due: Option<Time>,
    exit: Option<u8>,
    flushed: Option<bool>,
    mail: Mail,
    /// Breakers that opened in earlier runs of Demi.
    opened_before: u64,
    /// Which of what platforms depend on is away in truth.
    away: Vec<bool>,
    /// Answers of runs that have ended, kept to be heard when another run of the slot has the same request.
    ghosts: Vec<(Ticket, Instance)>,
    /// The last edition that each platform was told to reload to, and those that cannot run.
    editions: Vec<u32>,
    bad_editions: Vec<(usize, u32)>,
    /// What everything but instances uses of RAM and what it goes to, thousandths of all.
    background: u64,
    background_goal: u64,
    /// What the wall clock shows at the beginning of time, seconds since 1970: it is set now and then.
    date_s: u64,
    /// What is kept of what each platform has weighed at most, bytes, and when.
    peaks: Vec<Option<(u64, Time)>>,
    hash: Fnv1a,
    trace: Option<Vec<String>>,
}

impl World {
    /// The world of this seed, before anything has happened.
    pub fn new(seed: u64) -> World {
        // Streams of their own, so that a fault that is added does not draw another configuration.
        let mut root = Random::new(seed);
        let mut streams = [0; 5].map(|_| Random::new(root.draw()));
        let config = workload::config(&mut streams[0]);
        let [_, workload, dice, conductor, random] = streams;
        let mut conductor_seed = conductor;
        World {
            conductor: Conductor::new(&config, conductor_seed.draw()),
            now: Time::ZERO,
            random,
            dice: Dice::new(dice),
            workload: Workload::new(&config, workload),
            coming: BTreeMap::new(),
            sequence: 0,
            models: Model::all(&config),
            book: TicketBook::default(),
            ledger: Ledger::new(&config),
            actions: Vec::new(),
            requests: 0,
            steps: 0,
            steps_at_once: 0,
            arrivals: true,
            grace_over: Time::ZERO,
            exit_due: None,
            exit: None,
            flushed: None,
            mail: Mail::default(),
            opened_before: 0,
            away: vec![false; config.reachability.len()],
            ghosts: Vec::new(),
            editions: vec![0; config.platforms.len()],
            bad_editions: Vec::new(),
            background: BACKGROUND_CALM,
            background_goal: BACKGROUND_CALM,
            date_s: DATE_S,
            peaks: vec![None; config.platforms.len()],
            hash: Fnv1a::default(),
            trace: None,
            config,
        }
    }

    /// Plants a bug in this world's conductor.
    #[cfg(any(test, feature = "plants"))]
    pub fn plant(&mut self, plant: demi_conductor::Plant) {
        self.conductor.plant(plant);
    }

    /// From here on keeps every event and action as a line of text.
    pub fn record(&mut self) {
        self.trace = Some(vec![format!("{:#?}", self.config)]);
    }

    /// What was kept since [`World::record`]: the configuration, then a line for each event and action.
    pub fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// A whole life: faults, then either calm, recovery and a clean end, or an end amid the faults.
    ///
    /// # Panics
    /// If the conductor does what it may not, or not what it must.
    pub fn run(seed: u64) -> Report {
        let mut world = World::new(seed);
        world.live();
        world.report()
    }

    /// Lives the whole life; for a world that was planted in or that is recorded. See [`World::run`].
    pub fn live(&mut self) {
        self.begin();
        let steps_max = 400 + self.random.below(2_400);
        while self.steps < steps_max && self.now < Time::from_millis(4 * 3_600_000) {
            self.step();
        }
        if self.random.chance(750) {
            self.calm();
            self.recover();
            self.serve_every_route();
            self.stop(1);
            assert_eq!(self.exit, Some(0), "a stop in calm ends with another exit code than 0");
        } else {
            let orders = 1 + self.random.below(4);
            self.ledger.sights.add(Sight::StoppedInStorm as usize, 1);
            self.stop(orders);
        }
        self.check_mail();
    }

    /// Demi begins and the first requests are on their way.
    pub fn begin(&mut self) {
        self.come(Duration::ZERO, Coming::Arrivals);
        self.come(Duration::from_secs(1), Coming::Person);
        for platform in 0..self.config.platforms.len() {
            // Some have been busy before Demi was last ended.
            let starts = self.random.below(20) as u32;
            if self.random.below(4) == 0 {
                self.handle(Event::Recalled { platform: platform as u32, starts });
            }
            if self.peaks[platform].is_none() && self.random.below(4) == 0 {
                // It may have been more than it ever will be now.
                let bytes = 1 + self.random.below(2 * WEIGHT_LEAKED_MAX);
                let age = workload::span(&mut self.random, 1, 7 * 86_400_000);
                self.handle(Event::PeakRecalled { platform: platform as u32, bytes, age });
            } else if let Some((bytes, at)) = self.peaks[platform] {
                self.handle(Event::PeakRecalled { platform: platform as u32, bytes, age: self.now - at });
            }
        }
        // Where nothing can be measured nobody knows what fits.
        if self.random.below(4) > 0 {
            let sample = self.ram();
            self.handle(Event::Measured { sample });
        }
        self.handle(Event::Began);
    }

    /// What happened so far.
    pub fn report(&self) -> Report {
        let mut sights = self.ledger.sights.clone();
        sights.add(Sight::Opened as usize, self.opened_before);
        for platform in self.conductor.platforms() {
            sights.add(Sight::Opened as usize, platform.stats.opened.iter().sum());
        }
        sights.add(Sight::Stale as usize, self.conductor.stats().stale);
        Report {
            hash: self.hash.finish(),
            steps: self.steps,
            simulated: self.now - Time::ZERO,
            requests: self.requests,
            exit: self.exit.unwrap_or_default(),
            faults: self.dice.struck().clone(),
            sights,
        }
    }

    /// The earlier of what is to come and the conductor's deadline happens, on time or late.
    pub fn step(&mut self) {
        let next = self.coming.first_key_value().map(|((at, _), _)| *at);
        let deadline = self.conductor.deadline().map(|(at, _)| at);
        let at = match (next, deadline) {
            (Some(next), Some(deadline)) => next.min(deadline),
            (Some(at), None) | (None, Some(at)) => at,
            (None, None) => panic!("nothing will ever happen again and Demi has not exited"),
        };
        self.pass_to(at);
        if next != Some(at) {
            return self.handle(Event::Elapsed);
        }
        let Some((_, coming)) = self.coming.pop_first() else { return };
        let Some(event) = self.happen(coming) else { return };
        if let Event::Answered { ticket, instance, .. }
        | Event::Deferred { ticket, instance, .. }
        | Event::Headed { ticket, instance } = event
        {
            // News that nobody waits for comes after what is due, or a retry due now could make it look awaited.
            if !self.ledger.is_awaited(ticket, instance) && deadline.is_some_and(|at| at <= self.now) {
                self.handle(Event::Elapsed);
            }
        }
        if matches!(event, Event::Reported { .. }) && deadline.is_some_and(|at| at <= self.now) {
            // What a timer of the same turn still gives it came before, and is told from what comes after.
            self.handle(Event::Elapsed);
        }
        if self.exit.is_none() {
            self.handle(event);
        }
    }

    fn pass_to(&mut self, at: Time) {
        let before = self.now;
        let on_time = self.now.max(at);
        self.now = on_time;
        if self.dice.strike(Fault::LateTurn) {
            self.now = self.now + self.random.span_below(LATE_TURN);
        }
        if self.dice.strike(Fault::ClockJump) {
            self.now = self.now + workload::span(&mut self.random, 1_000, 3_600_000);
        }
        if self.now > on_time {
            // What is late because of the world is not the conductor's fault.
            self.exit_due = self.exit_due.map(|due| due.max(self.now + LATE_TURN));
        }
        self.steps_at_once = if self.now == before { self.steps_at_once + 1 } else { 0 };
        assert!(self.steps_at_once < STEPS_AT_ONCE_MAX, "time stands still");
        if let Some(due) = self.exit_due {
            assert!(self.now <= due + LATE_TURN, "Demi has not exited within its grace");
        }
    }

    /// Has the conductor handle the event, enters that in the books and performs what was ordered.
    fn handle(&mut self, event: Event) {
        self.steps += 1;
        let mut actions = std::mem::take(&mut self.actions);
        self.conductor.handle(self.now, event, &mut actions);
        (self.now, event).hash(&mut self.hash);
        actions.hash(&mut self.hash);
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>17.9} {event:?}", (self.now - Time::ZERO).as_secs_f64()));
            trace.extend(actions.iter().map(|action| format!("{:>17} → {action:?}", "")));
        }
        let deadline = self.conductor.deadline();
        assert!(deadline.is_none_or(|(at, _)| at > self.now), "{deadline:?} is not after now, {:?}", self.now);
        self.conductor.check();
        self.ledger.enter(self.now, &event, &actions, &self.conductor);
        if self.steps.is_multiple_of(AUDIT_EVERY) {
            self.ledger.audit(&self.conductor);
        }
        for action in actions.drain(..) {
            self.perform(action);
        }
        self.actions = actions;
    }

    fn come(&mut self, after: Duration, coming: Coming) {
        self.sequence += 1;
        self.coming.insert((self.now + after, self.sequence), coming);
    }

    /// A span from zero to just below this many milliseconds.
    fn within(&mut self, millis: u64) -> Duration {
        self.random.span_below(Duration::from_millis(millis))
    }

    fn model(&mut self, instance: Instance) -> &mut Model {
        &mut self.models[instance.slot as usize]
    }

    // The ways to an end.

    /// No fault strikes any more, requests come slowly, and a person starts all that was stopped. What is frozen or stuck stays so until the conductor
    /// replaces it; what the conductor cannot replace goes on by itself.
    pub fn calm(&mut self) {
        self.dice.calm();
        (self.background, self.background_goal) = (BACKGROUND_CALM, BACKGROUND_CALM);
        // What is nearly full starts nothing, whoever wants it to.
        let sample = self.ram();
        self.handle(Event::Measured { sample });
        self.away.fill(false);
        for slot in 0..self.models.len() {
            if !self.models[slot].can_be_replaced() {
                self.thaw(Instance { slot: slot as u32, run: self.models[slot].run });
            }
        }
        for slot in 0..self.models.len() {
            let instance = Instance { slot: slot as u32, run: self.models[slot].run };
            if self.models[slot].lives(instance) && self.models[slot].report.drain {
                self.models[slot].report.drain = false;
                self.handle(Event::Reported { instance, report: self.models[slot].report });
            }
        }
        self.handle(Event::DayBegan);
        for platform in 0..self.config.platforms.len() as u32 {
            // What was reloaded to something that cannot run is reloaded to something that can.
            let order = self.reload(platform, true);
            self.handle(Event::Ordered(order));
            // What was shed has to come back by itself.
            let is_isolated =
                self.conductor.platforms().nth(platform as usize).is_some_and(|platform| platform.is_isolated);
            if is_isolated || !self.ledger.is_shed(platform as usize) {
                self.handle(Event::Ordered(Order::Start { platform }));
            }
        }
    }

    /// After [`World::calm`]: runs until all is well, and asserts that this is soon.
    pub fn recover(&mut self) {
        let bound = workload::recovery_max(&self.config);
        let due = self.now + bound;
        loop {
            for _ in 0..16 {
                self.step();
            }
            let Err(reason) = self.wellness() else { break };
            // Days pass, or what sleeps and wakes often would be out of starts.
            self.handle(Event::DayBegan);
            self.start_what_failed();
            assert!(self.now < due, "not well {bound:?} after the last fault: {reason}");
        }
        self.ledger.sights.add(Sight::Recovered as usize, 1);
    }

    /// What was about to fail when the calm came is started by a person as well.
    fn start_what_failed(&mut self) {
        let has_failed =
            |told: &demi_conductor::PlatformStatus<'_>| told.instances.iter().any(|one| one.state == "failed");
        let failed: Vec<bool> = self.conductor.platforms().map(|told| has_failed(&told)).collect();
        for (platform, _) in failed.iter().enumerate().filter(|(_, has_failed)| **has_failed) {
            self.handle(Event::Ordered(Order::Start { platform: platform as u32 }));
        }
    }

    /// Whether everything works, or sleeps, or else what does not.
    fn wellness(&self) -> Result<(), String> {
        for (platform, told) in self.config.platforms.iter().zip(self.conductor.platforms()) {
            for status in &told.instances {
                let model = &self.models[status.slot as usize];
                let is_well = status.state == "ready" && status.health == "up" && status.breaker == "closed";
                let may_sleep = platform.sleep_after_ms.is_some() && status.state == "asleep";
                if !(may_sleep || is_well && model.is_sound()) {
                    return Err(format!("{} {status:?} {model:?}", told.name));
                }
            }
            // One that sleeps is tried by the request that wakes it.
            let is_asleep = told.instances.iter().all(|one| one.state == "asleep") && told.breaker == "half_open";
            if told.breaker != "closed" && !is_asleep {
                return Err(format!("the breaker of {} is {}", told.name, told.breaker));
            }
            if self.has_mail() {
                return Err(format!("{} messages wait", self.conductor.posts()));
            }
            if told.is_reloading || told.instances.len() != platform.instances() {
                return Err(format!("{} is being reloaded or has lost an instance", told.name));
            }
        }
        Ok(())
    }

    /// Has a platform run and an instance of it free, for what is asked of it next.
    fn wake(&mut self, platform: usize) {
        let in_flight_max = self.config.platforms[platform].in_flight_max();
        loop {
            let told = self.conductor.platforms().nth(platform).expect("it is one of the configuration");
            // What failed before the calm may still weigh against it.
            let is_free = told.instances.iter().any(|one| one.is_serving && one.in_flight < in_flight_max);
            if is_free && told.is_admitting {
                return;
            }
            if told.instances.iter().all(|one| one.state != "starting" && !one.is_serving) {
                self.handle(Event::Ordered(Order::Start { platform: platform as u32 }));
            }
            self.step();
        }
    }

    /// After [`World::recover`]: every route answers with what its platform said.
    pub fn serve_every_route(&mut self) {
        self.arrivals = false;
        // The last slow ones from before may open a breaker once more.
        while self.ledger.waiting() > 0 {
            self.step();
        }
        self.recover();
        for route in (0..self.config.routes.len() as u32).map(RouteId) {
            self.wake(self.ledger.platform_of(route));
            let before = self.ledger.sights.counts()[Sight::Relayed as usize];
            let ticket = self.ask(Some(route), false);
            self.step_until_ended(ticket);
            let after = self.ledger.sights.counts()[Sight::Relayed as usize];
            assert!(after > before, "all is well and {route:?} does not answer");
        }
    }

    fn step_until_ended(&mut self, ticket: Ticket) {
        while self.book.is_live(ticket) {
            self.step();
        }
    }

    /// Orders a stop so many times, and asserts that Demi exits within its grace.
    pub fn stop(&mut self, orders: u64) {
        let grace = self.config.shutdown.grace_ms.millis();
        self.grace_over = self.now + grace;
        self.exit_due = Some(self.grace_over + LATE_TURN);
        self.handle(Event::Ordered(Order::Shutdown));
        if orders > 1 {
            self.ledger.sights.add(Sight::StoppedTwice as usize, 1);
        }
        for _ in 1..orders {
            let delay = self.random.span_below(grace * 3 / 2);
            self.come(delay, Coming::News(Event::Ordered(Order::Shutdown)));
        }
        while self.exit.is_none() {
            self.step();
        }
        self.assert_ended();
    }

    fn assert_ended(&mut self) {
        assert_eq!(self.conductor.phase(), Phase::Done);
        assert_eq!(self.conductor.deadline(), None, "a timer is left after the exit");
        assert_eq!((self.ledger.live(), self.conductor.live()), (0, 0), "requests are left after the exit");
        let sight = match (self.exit, self.flushed) {
            (Some(0), _) => return,
            (Some(4), Some(false)) => Sight::StoreFailed,
            (Some(1), _) if self.now >= self.grace_over => Sight::OutOfTime,
            (exit, flushed) => panic!("exit code {exit:?} does not say how flushing went: {flushed:?}"),
        };
        self.ledger.sights.add(sight as usize, 1);
    }
}
