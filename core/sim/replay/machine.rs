//! A machine that behaves as a trace says, around the conductor; and the record itself, told in the same terms.

#[cfg(test)]
pub(super) mod log;

use std::collections::VecDeque;

use demi_conductor::config::{Platform, Start};
use demi_conductor::lifecycle::State;
use demi_conductor::scaler::{Act, Decision};
use demi_conductor::{
    Action, Answer, Ask, Conductor, Event, Exit, Instance, News, Order, Outcome, Refusal, RouteId, Sample, Terms,
    Ticket, TicketBook, Time, Verdict, Weight,
};

use demi_trace::{Integration, SIZE_KB_MAX};

use super::body::Body;
use super::course::{Book, Decided, Service, CRITICAL_PERCENT};
use super::record::{Happening, Run, Weighed};
use super::{config_of, is_eager, platform_of};

/// The machine is looked at so often.
const TICK_MS: u64 = 1_000;
/// Bytes of a kB, as traces count them.
const KILOBYTE: f64 = 1_000.0;
/// Every choice of the conductor follows from it.
const SEED: u64 = 1;

/// Lives a run through.
pub(super) fn live(run: &Run, bases: &[f64], book: &mut Book<'_>) {
    Machine::new(run, bases, book).live();
}

struct Machine<'r, 'b, 'c> {
    run: &'r Run,
    bases: &'r [f64],
    book: &'b mut Book<'c>,
    conductor: Conductor,
    at_ms: u64,
    now: Time,
    tickets: TicketBook,
    /// By the slot of the ticket: whose request it is, and for how many it stands.
    asked: Vec<(usize, u32)>,
    slots: Vec<Slot>,
    /// By platform: the rule that leads to it.
    routes: Vec<RouteId>,
    /// By platform: where the last look at its line was, and what was found there.
    places: Vec<usize>,
    recorded: Vec<Weighed>,
    ram_place: usize,
    /// By platform: the best state of its instances, as its place among those of a trace.
    best: Vec<usize>,
    /// How many reloads there were.
    editions: u32,
    /// What was shed, as if it had gone on.
    ghosts: Vec<(usize, Vec<Body>)>,
    coming: VecDeque<Event>,
    actions: Vec<Action>,
    /// What a Demi would have recorded, if a test wants to know.
    #[cfg(test)]
    log: Option<log::Log>,
}

struct Slot {
    platform: usize,
    is_weighed: bool,
    state: State,
    run: u32,
    body: Option<Body>,
    /// What was last told of it, kB.
    told_kb: Option<u64>,
}

impl<'r, 'b, 'c> Machine<'r, 'b, 'c> {
    fn new(run: &'r Run, bases: &'r [f64], book: &'b mut Book<'c>) -> Machine<'r, 'b, 'c> {
        let config = config_of(&run.setup);
        let mut machine = Machine {
            run,
            bases,
            book,
            conductor: Conductor::new(&config, SEED),
            at_ms: 0,
            now: Time::ZERO,
            tickets: TicketBook::default(),
            asked: Vec::new(),
            slots: Vec::new(),
            routes: Vec::new(),
            places: Vec::new(),
            recorded: Vec::new(),
            ram_place: 0,
            best: Vec::new(),
            editions: 0,
            ghosts: Vec::new(),
            coming: VecDeque::new(),
            actions: Vec::new(),
            #[cfg(test)]
            log: None,
        };
        for platform in &config.platforms {
            machine.add(platform);
        }
        machine
    }

    fn add(&mut self, platform: &Platform) {
        let index = self.routes.len();
        self.book.add(&platform.name);
        self.routes.push(self.conductor.router().to(&platform.name).expect("the platform is there"));
        self.places.push(0);
        self.best.push(0);
        self.recorded.push(Weighed::default());
        for slot in 0..platform.slots() {
            let state = match platform.start {
                _ if slot >= platform.instances() => State::Spare,
                Start::Eager => State::Waiting,
                Start::Lazy => State::Asleep,
                Start::Manual => State::Stopped,
            };
            let is_weighed = platform.host.is_child();
            self.slots.push(Slot { platform: index, is_weighed, state, run: 0, body: None, told_kb: None });
        }
    }

    fn live(&mut self) {
        self.begin();
        self.pass();
    }

    fn begin(&mut self) {
        self.look();
        self.happens(Event::Began);
        if !self.run.is_cut {
            return;
        }
        // What runs has been started before; here it is started now.
        for (index, platform) in self.run.setup.platforms.iter().enumerate() {
            let has_run = self.recorded[index].running > 0 || self.run.lines[index].is_running_first();
            if has_run && !is_eager(platform) {
                match platform.start {
                    Start::Manual => self.order(index, "start"),
                    _ => self.ask(index, 0),
                }
            }
        }
    }

    /// Until the last sample.
    fn pass(&mut self) {
        let end_ms = self.run.end_ms();
        let (mut next_tick_ms, mut next) = (TICK_MS, 0);
        loop {
            let happening = self.run.happenings.get(next);
            let at_happening = happening.map_or(u64::MAX, |(at_ms, _)| *at_ms);
            let at_ms = next_tick_ms.min(at_happening);
            if at_ms > end_ms && at_happening > end_ms {
                return;
            }
            self.pass_until(at_ms.min(end_ms));
            self.at_ms = at_ms;
            self.now = self.now.max(Time::from_millis(at_ms));
            self.look();
            if next_tick_ms == at_ms {
                next_tick_ms += TICK_MS;
                self.tick();
            } else if let Some((_, happening)) = happening {
                next += 1;
                self.happening(happening);
            }
        }
    }

    /// Lets the conductor's timers go off up to a time.
    fn pass_until(&mut self, until_ms: u64) {
        let until = Time::from_millis(until_ms);
        while let Some((at, _)) = self.conductor.deadline().filter(|(at, _)| *at <= until) {
            self.now = at;
            self.at_ms = at.as_nanos() / 1_000_000;
            self.look();
            self.happens(Event::Elapsed);
        }
    }

    /// Sees what is recorded of now.
    fn look(&mut self) {
        let lines = self.run.lines.iter().zip(&mut self.places);
        for (recorded, (line, place)) in self.recorded.iter_mut().zip(lines) {
            *recorded = line.at(self.at_ms, place);
        }
        for slot in &mut self.slots {
            if let Some(body) = &mut slot.body {
                body.look(self.at_ms, &self.recorded[slot.platform]);
            }
        }
    }

    fn happening(&mut self, happening: &Happening) {
        #[cfg(test)]
        self.log_happening(happening);
        match happening {
            Happening::Found(integration) => {
                let platform = platform_of(integration);
                let index = self.conductor.add(&platform);
                self.add(&platform);
                if is_eager(integration) {
                    self.happens(Event::Ordered(Order::Start { platform: index }));
                }
            }
            Happening::Renewed { platform, to } => self.renew(*platform, to),
            Happening::Asked { platform, worth } => self.ask(*platform, *worth),
            Happening::Ordered { platform, order } => self.order(*platform, order),
            Happening::Died { platform } => self.die(*platform),
            Happening::State { .. } | Happening::Decided { .. } => {}
        }
    }

    /// A request, which stands for so many.
    fn ask(&mut self, platform: usize, worth: u32) {
        let ticket = self.tickets.issue();
        if self.asked.len() <= ticket.slot() {
            self.asked.resize(ticket.slot() + 1, (0, 0));
        }
        self.asked[ticket.slot()] = (platform, worth);
        let route = Some(self.routes[platform]);
        self.happens(Event::Asked { ticket, route, ask: Ask::default() });
    }

    /// It was reloaded, and is set up like this from now on.
    fn renew(&mut self, platform: usize, to: &Integration) {
        self.editions += 1;
        let (platform, edition, terms) = (platform as u32, self.editions, Terms::of(&platform_of(to)));
        // Whether a person ordered it is not recorded; one that does not fit here is taken up when it does.
        self.happens(Event::Ordered(Order::Reload { platform, edition, terms, is_by_hand: false }));
    }

    fn order(&mut self, platform: usize, order: &str) {
        let platform = platform as u32;
        let order = match order {
            "start" => Order::Start { platform },
            "stop" => Order::Stop { platform },
            "restart" => Order::Restart { platform },
            "isolate" => Order::Isolate { platform },
            _ => return,
        };
        self.happens(Event::Ordered(order));
    }

    /// An instance ended by itself in the record: so does the same run here.
    fn die(&mut self, platform: usize) {
        let sampled = self.run.ram_at(self.at_ms, &mut self.ram_place);
        let is_critical = |used_kb: f64| used_kb * 100.0 >= (sampled.ram.total_kb * CRITICAL_PERCENT) as f64;
        if is_critical(sampled.ram.used_kb as f64) && !is_critical(self.used_kb(sampled.background_kb)) {
            return;
        }
        let dies =
            |slot: &Slot| slot.platform == platform && slot.body.is_some_and(|body| body.is_recorded(self.at_ms));
        let Some(index) = self.slots.iter().position(dies) else { return };
        let slot = &mut self.slots[index];
        slot.body = None;
        let instance = Instance { slot: index as u32, run: slot.run };
        self.happens(Event::Exited { instance, exit: Exit::Signal(9) });
    }

    fn used_kb(&self, background_kb: f64) -> f64 {
        background_kb + self.slots.iter().filter_map(|slot| slot.body.map(|body| body.weight_kb())).sum::<f64>()
    }

    /// What is used of RAM, kB, and all of it; and the same of the bound that leaves least.
    fn ram(&mut self) -> ((f64, u64), (f64, u64)) {
        let sampled = self.run.ram_at(self.at_ms, &mut self.ram_place);
        let total_kb = sampled.ram.total_kb;
        let used_kb = self.used_kb(sampled.background_kb);
        let held = |used_kb: f64, total_kb: u64| (used_kb.clamp(1.0, total_kb as f64), total_kb);
        let more_kb = used_kb - sampled.ram.used_kb as f64;
        let narrowest = match sampled.ram.narrowest_kb {
            Some((total_kb, narrow_kb)) => held(narrow_kb as f64 + more_kb, total_kb),
            None => held(used_kb, total_kb),
        };
        (held(used_kb, total_kb), narrowest)
    }

    fn sample(&mut self) -> Sample {
        let bytes = |kb: f64| (kb * KILOBYTE) as u64;
        let ((used_kb, total_kb), (narrow_kb, narrow_total_kb)) = self.ram();
        Sample {
            ram_available: bytes(total_kb as f64 - used_kb),
            ram_total: bytes(total_kb as f64),
            ram_headroom: bytes(narrow_total_kb as f64 - narrow_kb),
            ram_headroom_total: bytes(narrow_total_kb as f64),
            date_s: Some(self.run.date(self.at_ms) / 1000),
            ..Sample::default()
        }
    }

    /// A second is over.
    fn tick(&mut self) {
        let ((used_kb, total_kb), _) = self.ram();
        let mut best = std::mem::take(&mut self.best);
        best.fill(usize::MAX);
        for slot in &self.slots {
            best[slot.platform] = best[slot.platform].min(place_of(slot.state));
        }
        let services = best.iter().map(|place| Service::of(*place));
        self.book.pass(TICK_MS, used_kb, total_kb, services);
        self.best = best;
        if let Some(outlook) = self.conductor.outlook() {
            self.book.course.believed_ms[outlook.champion() as usize] += TICK_MS;
        }
        if self.ghosts.is_empty() {
            return;
        }
        for (platform, bodies) in &mut self.ghosts {
            for body in bodies {
                body.look(self.at_ms, &self.recorded[*platform]);
            }
        }
        let (ghosts, slots) = (&self.ghosts, &self.slots);
        self.book.judge(self.at_ms, used_kb, total_kb, |platform| {
            let ghost = ghosts.iter().find(|(of, _)| *of == platform);
            let would_kb: f64 = ghost.map_or(0.0, |(_, bodies)| bodies.iter().map(|body| body.weight_kb()).sum());
            let own = slots.iter().filter(|slot| slot.platform == platform).filter_map(|slot| slot.body);
            (would_kb - own.map(|body| body.weight_kb()).sum::<f64>()).max(0.0)
        });
        let book = &self.book;
        self.ghosts.retain(|(platform, _)| book.is_judging(*platform));
    }
}

impl Machine<'_, '_, '_> {
    /// Lets it happen, with all that follows at once.
    fn happens(&mut self, event: Event) {
        self.coming.push_back(event);
        while let Some(event) = self.coming.pop_front() {
            let mut actions = std::mem::take(&mut self.actions);
            self.conductor.handle(self.now, event, &mut actions);
            for action in actions.drain(..) {
                self.perform(action);
            }
            self.actions = actions;
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start { instance, .. } => self.start(instance),
            Action::Signal { instance, .. } => self.end(instance),
            Action::Probe { instance } => self.coming.push_back(Event::Probed { instance, verdict: Verdict::Pass }),
            Action::Dispatch { ticket, instance } => {
                self.coming.push_back(Event::Answered { ticket, instance, outcome: Outcome::Replied });
            }
            Action::Answer { ticket, answer } | Action::Bury { ticket, answer, .. } => self.answered(ticket, answer),
            Action::Measure => {
                let sample = self.sample();
                #[cfg(test)]
                self.log_sample(&sample);
                self.coming.push_back(Event::Measured { sample });
            }
            Action::Weigh => {
                #[cfg(test)]
                self.log_weights();
                self.weigh();
            }
            Action::Decide { decision } => self.decided(&decision),
            Action::Tell { instance: Some(instance), news: News::State { now, .. }, .. } => {
                self.slots[instance.slot as usize].state = now;
                #[cfg(test)]
                self.log_state(instance);
            }
            Action::Reinitialize { instance } => self.coming.push_back(Event::Reinitialized { instance, done: true }),
            Action::Tell { .. }
            | Action::Hedge { .. }
            | Action::Prefer { .. }
            | Action::FallBack { .. }
            | Action::Relay { .. }
            | Action::Cancel { .. }
            | Action::Deliver { .. }
            | Action::Settle { .. }
            | Action::NoteTries { .. }
            | Action::BuryPost { .. }
            | Action::Reach { .. }
            | Action::Trim { .. }
            | Action::Adopt { .. }
            | Action::Reject { .. }
            | Action::Spend { .. }
            | Action::KeepPeak { .. }
            | Action::Admit(_)
            | Action::Flush
            | Action::Exit(_) => {}
        }
    }

    fn start(&mut self, instance: Instance) {
        let slot = &mut self.slots[instance.slot as usize];
        let recorded = &self.recorded[slot.platform];
        let is_first_of_cut = self.run.is_cut && self.at_ms == 0;
        let next_ms = self.run.lines[slot.platform].next_start(self.at_ms, self.places[slot.platform]);
        slot.run = instance.run;
        slot.told_kb = None;
        slot.body = Some(Body::start(self.at_ms, self.bases[slot.platform], recorded, next_ms, is_first_of_cut));
        self.coming.push_back(Event::Started { instance });
    }

    fn end(&mut self, instance: Instance) {
        let slot = &mut self.slots[instance.slot as usize];
        if slot.run == instance.run && slot.body.take().is_some() {
            self.coming.push_back(Event::Exited { instance, exit: Exit::Code(0) });
        }
    }

    fn answered(&mut self, ticket: Ticket, answer: Answer) {
        let (platform, worth) = self.asked[ticket.slot()];
        self.tickets.retire(ticket);
        if let Answer::Refused(Refusal::Shed, _) = answer {
            self.book.lose(platform, u64::from(worth));
        }
    }

    /// Tells what has changed, and one that has not, as often as all would be told.
    fn weigh(&mut self) {
        let mut unchanged = None;
        let count = self.coming.len();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(body) = slot.body.filter(|_| slot.is_weighed) else { continue };
            let kb = body.weight_kb().clamp(1.0, SIZE_KB_MAX as f64) as u64;
            let rss_bytes = kb * KILOBYTE as u64;
            let weight = Weight { rss_bytes, pss_bytes: None, processes: 1, descriptors: 8 };
            let weighed = Event::Weighed { instance: Instance { slot: index as u32, run: slot.run }, weight };
            if slot.told_kb.replace(kb) == Some(kb) {
                unchanged = Some(weighed);
            } else {
                self.coming.push_back(weighed);
            }
        }
        if self.coming.len() == count {
            self.coming.extend(unchanged);
        }
        let ((used_kb, total_kb), _) = self.ram();
        let available = ((total_kb as f64 - used_kb) * KILOBYTE) as u64;
        self.coming.push_back(Event::AllWeighed { available: Some(available) });
    }

    fn decided(&mut self, decision: &Decision) {
        let platform = decision.platform.map(|platform| platform as usize);
        let figures = &decision.figures;
        #[cfg(test)]
        self.log_decision(decision);
        // What steps have won is that nothing else has changed: no act.
        if let Act::Won { .. } = decision.act {
            return;
        }
        let decided = Decided {
            unix_ms: self.run.date(self.at_ms),
            platform,
            act: decision.act.name().to_owned(),
            ram_permille: figures.ram_permille,
            threshold_percent: figures.threshold_percent,
            forecast: figures.forecast.map(|ahead| (ahead.ram_permille, ahead.model)),
            is_needless: None,
        };
        if let (true, Some(platform)) = (self.book.decide(self.at_ms, decided), platform) {
            let bodies = self.slots.iter().filter(|slot| slot.platform == platform);
            let bodies = bodies.filter_map(|slot| slot.body).collect();
            self.ghosts.push((platform, bodies));
        }
    }
}

/// The place among the states of a trace of what an instance is doing; behind all of them if there is none.
fn place_of(state: State) -> usize {
    demi_trace::place_of(state).unwrap_or(usize::MAX)
}

/// Tells the record itself.
pub(super) fn tell(run: &Run, book: &mut Book<'_>) {
    let names: Vec<&String> = run.names().collect();
    for name in &names {
        book.add(name);
    }
    let eager = run.setup.platforms.iter().map(|platform| if is_eager(platform) { "waiting" } else { "asleep" });
    let mut states: Vec<&str> = eager.collect();
    states.resize(names.len(), "asleep");
    let mut places = vec![0; names.len()];
    let mut weights = vec![Weighed::default(); names.len()];
    // What the shed ones weighed then.
    let mut gone_kb = vec![0.0; names.len()];
    let (mut ram_place, mut next, mut at_ms) = (0, 0, 0);
    loop {
        at_ms += TICK_MS;
        if at_ms > run.end_ms() {
            return;
        }
        while let Some((since_ms, happening)) = run.happenings.get(next).filter(|(since_ms, _)| *since_ms <= at_ms) {
            next += 1;
            match happening {
                Happening::State { platform, state } => states[*platform] = state,
                Happening::Asked { platform, worth } if states[*platform] == "shed" => {
                    book.lose(*platform, u64::from(*worth));
                }
                Happening::Decided { platform, act, ram_permille, threshold_percent } if act != "won" => {
                    let (act, ram_permille, threshold_percent) = (act.clone(), *ram_permille, *threshold_percent);
                    let (unix_ms, platform) = (run.date(*since_ms), *platform);
                    let (forecast, is_needless) = (None, None);
                    let decided =
                        Decided { unix_ms, platform, act, ram_permille, threshold_percent, forecast, is_needless };
                    if let (true, Some(platform)) = (book.decide(*since_ms, decided), platform) {
                        gone_kb[platform] = weights[platform].kb;
                    }
                }
                _ => {}
            }
        }
        for (weight, (line, place)) in weights.iter_mut().zip(run.lines.iter().zip(&mut places)) {
            *weight = line.at(at_ms, place);
        }
        let sampled = run.ram_at(at_ms, &mut ram_place);
        let (used_kb, total_kb) = (sampled.ram.used_kb as f64, sampled.ram.total_kb);
        let place = |state: &&str| demi_trace::STATES.iter().position(|other| other == state).unwrap_or(usize::MAX);
        let services = weights.iter().zip(&states).map(|(weight, state)| match weight.running {
            0 => Service::of(place(state)),
            _ => Service::Fine,
        });
        book.pass(TICK_MS, used_kb, total_kb, services);
        book.judge(at_ms, used_kb, total_kb, |platform| (gone_kb[platform] - weights[platform].kb).max(0.0));
    }
}
