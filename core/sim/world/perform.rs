//! The world's side of every action and event: what the reactor, the kernel and the platforms would do.

use std::time::Duration;

use demi_conductor::config::Host;
use demi_conductor::scaler::Act;
use demi_conductor::{
    Action, Ask, Errand, Event, Exit, Instance, Order, Outcome, PostId, Report, RouteId, Sample, Signal, Terms, Ticket,
    Time, Verdict, Weight,
};

use crate::faults::Fault;
use crate::machine::{State, Work, WEIGHT, WEIGHT_LEAKED_MAX};
use crate::workload;

use super::mail::{End, Letter};
use super::{World, DATE_S, RAM};

/// What is to come, at its time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Coming {
    /// Requests come in.
    Arrivals,
    /// News that nothing can stop any more.
    News(Event),
    /// A caller hangs up.
    HangsUp(Ticket),
    /// A run answers its handshake.
    Starts(Instance),
    /// The head of an attempt's answer.
    Head(Instance, u64),
    /// A part of a request's body, or the last of it, goes to its instance.
    Moves(Instance, u64),
    /// An attempt ends.
    Answer(Instance, u64, Outcome),
    /// The body of an attempt's answer has not moved for as long as the reactor allows.
    Stall(Instance, u64),
    /// A run looks into itself.
    Verdict(Instance, Verdict),
    /// A run crashes.
    Crash(Instance),
    /// A frozen run goes on.
    Thaw(Instance),
    /// A run that was asked to end does.
    Ends(Instance),
    /// Demi learns that a run has ended.
    Exits(Instance, Exit),
    /// A run that is slow to start says so.
    Pleads(Instance),
    /// A message is kept.
    Committed(Letter),
    /// A message is posted once more.
    Repeated(PostId),
    /// The body of a message is in memory.
    Loaded(PostId),
    /// The end of a message is kept.
    Ended(PostId, End),
    /// A person has had time to think.
    Person,
    /// The files of some platform have changed, and that is taken up.
    Changes,
    /// A run says how it wants to be balanced.
    Says(Instance, Report),
    /// A run that wanted no requests wants some again.
    Resumes(Instance),
    /// Something that platforms depend on can be reached again.
    Back(u32),
}

/// As in the reactor: a body that has not moved for so long is given up.
const STALL: Duration = Duration::from_secs(10);

impl World {
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Dispatch { ticket, instance } => self.dispatch(ticket, instance),
            // Of a body that passes through there is one copy.
            Action::Hedge { ticket, instance } if self.ledger.is_in_parts(ticket) => {
                self.come(Duration::ZERO, Coming::News(Event::Answered { ticket, instance, outcome: Outcome::Busy }));
            }
            Action::Hedge { ticket, instance } => self.dispatch(ticket, instance),
            Action::Answer { ticket, .. } => self.book.retire(ticket),
            Action::Bury { ticket, .. } => {
                self.book.retire(ticket);
                self.store(Errand::Bury, 50);
            }
            Action::Cancel { ticket, instance } => self.cancel(ticket, instance),
            // That is when a new edition may not fit beside the old one.
            Action::Decide { decision } if decision.act == Act::Trim => {
                let delay = self.within(2_000);
                self.come(delay, Coming::Changes);
            }
            Action::Relay { .. }
            | Action::Admit(_)
            | Action::Decide { .. }
            | Action::Adopt { .. }
            | Action::Reject { .. }
            | Action::Spend { .. }
            | Action::Prefer { .. }
            | Action::FallBack { .. }
            | Action::Tell { .. } => {}
            Action::Probe { instance } => self.probe(instance),
            Action::Start { instance, edition } => self.start(instance, edition),
            Action::Signal { instance, signal: Signal::Shutdown } => {
                // Every other process does not read its input, or not now, and hears TERM only.
                let is_process = self.model(instance).host.is_child();
                let is_heard = !is_process || self.random.below(2) == 0;
                self.terminate(instance, is_heard);
            }
            Action::Signal { instance, signal: Signal::Terminate } => self.terminate(instance, true),
            Action::Signal { instance, signal: Signal::Kill } => {
                if self.model(instance).lives(instance) {
                    let (exit, delay) = (self.model(instance).exit_by_kill(), self.within(3));
                    self.die(instance, exit, delay);
                }
            }
            Action::Trim { instance } => {
                if self.model(instance).lives(instance) {
                    let weight = &mut self.model(instance).weight;
                    *weight -= (*weight - WEIGHT) / 2;
                }
            }
            Action::Measure => {
                self.move_background();
                self.set_clock();
                let mut sample = self.ram();
                if self.dice.strike(Fault::BadSample) {
                    let nonsense = [(0, 0), (1, 1), (u64::MAX, RAM), (u64::MAX, 0), (0, u64::MAX)];
                    (sample.ram_available, sample.ram_total) = nonsense[self.random.below(5) as usize];
                }
                let delay = self.within(20);
                self.come(delay, Coming::News(Event::Measured { sample }));
            }
            Action::Reach { target } => self.reach(target),
            Action::Reinitialize { instance } => {
                if self.model(instance).lives(instance) {
                    let done = !self.dice.strike(Fault::NotReinitialized);
                    let delay = self.within(200);
                    self.come(delay, Coming::News(Event::Reinitialized { instance, done }));
                }
            }
            Action::Deliver { post } => self.deliver(post),
            Action::Settle { post, .. } => self.close_post(post, End::Delivered),
            Action::NoteTries { post, tries } => self.note_tries(post, tries),
            Action::BuryPost { post, grave, .. } => self.close_post(post, End::Dead(grave)),
            Action::KeepPeak { platform, bytes } => self.peaks[platform as usize] = Some((bytes, self.now)),
            Action::Weigh => self.weigh(),
            Action::Flush => self.store(Errand::Flush, 5),
            Action::Exit(code) => self.exit = Some(code),
        }
    }

    /// What else uses RAM comes and goes, at once or little by little.
    fn move_background(&mut self) {
        if self.dice.is_calm() {
            return;
        }
        if self.dice.strike(Fault::RamFills) {
            self.background_goal = 600 + self.random.below(400);
        } else if self.random.below(10) == 0 {
            self.background_goal = 100 + self.random.below(500);
        }
        let part = 1 + self.random.below(8) as i64;
        let step = (self.background_goal as i64 - self.background as i64) / part;
        self.background = self.background.saturating_add_signed(step);
    }

    /// Somebody, or a time server, sets the wall clock: by a little, to 1970, or far into the future.
    fn set_clock(&mut self) {
        if self.dice.strike(Fault::ClockSet) {
            let hours = self.random.below(100) * 3_600;
            self.date_s = match self.random.below(4) {
                0 => self.date_s.saturating_sub(hours),
                1 => self.date_s + hours,
                2 => hours,
                _ => DATE_S,
            };
        }
    }

    /// As it is.
    pub(super) fn ram(&self) -> Sample {
        let children = self.models.iter().filter(|model| {
            let is_there = model.state != State::Absent;
            model.host.is_child() && is_there
        });
        let used = RAM / 1000 * self.background + children.map(|model| model.weight).sum::<u64>();
        let date_s = Some(self.date_s + self.now.since(Time::ZERO).as_secs()).filter(|date_s| *date_s > DATE_S / 2);
        Sample { ram_available: RAM.saturating_sub(used), ram_total: RAM, date_s, ..Sample::default() }
    }

    fn reach(&mut self, target: u32) {
        if self.dice.strike(Fault::TargetAway) {
            self.away[target as usize] = true;
            let span = workload::span(&mut self.random, 1_000, 120_000);
            self.come(span, Coming::Back(target));
        }
        if self.dice.strike(Fault::LostLook) {
            return;
        }
        let verdict = if self.away[target as usize] { Verdict::Fail } else { Verdict::Pass };
        let delay = self.within(50);
        self.come(delay, Coming::News(Event::Reached { target, verdict }));
    }

    /// Whether something that the platform depends on is away, so that most of what it does fails.
    fn is_behind(&mut self, platform: usize) -> bool {
        let behind = &self.config.platforms[platform].behind;
        let targets = self.config.reachability.iter().zip(&self.away);
        let is_cut = targets.into_iter().any(|(target, away)| *away && behind.contains(&target.name));
        is_cut && self.random.chance(900)
    }

    fn store(&mut self, errand: Errand, millis: u64) {
        let delay = self.within(millis);
        let done = !self.dice.strike(Fault::StoreFailed);
        if errand == Errand::Flush {
            self.flushed = None;
        }
        if !self.dice.strike(Fault::StoreSilent) {
            self.come(delay, Coming::News(Event::Stored { errand, done }));
        }
    }

    fn dispatch(&mut self, ticket: Ticket, instance: Instance) {
        self.raise_ghost(ticket, instance);
        let slot = instance.slot as usize;
        let model = &self.models[slot];
        if model.run != instance.run || model.state == State::Absent {
            return; // Its exit was handled in the same turn and broke this.
        }
        let (host, platform) = (model.host, model.platform);
        if model.state == State::Dying || self.dice.strike(Fault::Unsent) {
            return self.answer_at_once(ticket, instance, Outcome::Unsent);
        }
        if host != Host::Inline && self.dice.strike(Fault::Full) {
            return self.answer_at_once(ticket, instance, Outcome::Busy);
        }
        if self.models[slot].can_freeze() && self.dice.strike(Fault::Freeze) {
            self.freeze(instance);
        }
        let is_fatal = self.is_poison(ticket) || self.dice.strike(Fault::CrashInFlight);
        if self.models[slot].can_be_replaced() && is_fatal {
            let delay = if self.is_poison(ticket) { Duration::ZERO } else { self.within(100) };
            self.come(delay, Coming::Crash(instance));
        }
        self.may_report(instance);
        self.sequence += 1;
        let mut work = Work { ticket, serial: self.sequence, is_stuck: false, is_endless: false, is_headed: false };
        let lost = if self.models[slot].is_thread() { Fault::StuckThread } else { Fault::NeverAnswered };
        work.is_stuck = self.models[slot].can_freeze() && self.dice.strike(lost);
        if !work.is_stuck {
            work.is_endless = self.promise_answer(instance, work.serial, host, platform);
        }
        if self.ledger.is_in_parts(ticket) {
            let delay = self.within(8);
            self.come(delay, Coming::Moves(instance, work.serial));
        }
        self.models[slot].hand.push(work);
    }

    fn answer_at_once(&mut self, ticket: Ticket, instance: Instance, outcome: Outcome) {
        let delay = if self.random.below(2) == 0 { Duration::ZERO } else { self.within(2) };
        self.come(delay, Coming::News(Event::Answered { ticket, instance, outcome }));
    }

    /// When and how an attempt will be answered. Returns whether the answer streams without end.
    fn promise_answer(&mut self, instance: Instance, serial: u64, host: Host, platform: usize) -> bool {
        let is_rotten = self.model(instance).is_rotten && !self.dice.is_calm() && self.random.chance(800);
        let is_rotten = is_rotten || self.is_behind(platform);
        let outcome = match () {
            () if is_rotten || self.dice.strike(Fault::Failed) => Outcome::Failed,
            () if self.dice.strike(Fault::Mistaken) => Outcome::Mistaken,
            () if self.dice.strike(Fault::Broken) => Outcome::Broken,
            () => Outcome::Replied,
        };
        let mut delay = if host == Host::Inline { Duration::from_nanos(1) } else { self.within(8) };
        if host != Host::Inline && self.dice.strike(Fault::SlowAnswer) {
            let routes = self.config.routes.iter().filter(|route| route.to == self.config.platforms[platform].name);
            let timeout = routes.map(|route| route.timeout_ms.millis()).max().unwrap_or_default();
            delay = self.random.span_below(timeout * 3 / 2);
        }
        if !self.model(instance).can_babble() || self.random.below(5) > 0 {
            self.come(delay, Coming::Answer(instance, serial, outcome));
            return false;
        }
        self.come(delay, Coming::Head(instance, serial));
        // One at most in each instance, and never in its only hand, or calm could not come.
        let model = self.model(instance);
        let has_room = model.in_flight_max > 1 && !model.hand.iter().any(|work| work.is_endless);
        if has_room && self.dice.strike(Fault::EndlessStream) {
            return true;
        }
        let outcome = if self.dice.strike(Fault::BrokenAfterHead) { Outcome::Broken } else { outcome };
        let body = self.within(500);
        self.come(delay + body, Coming::Answer(instance, serial, outcome));
        false
    }

    fn cancel(&mut self, ticket: Ticket, instance: Instance) {
        let model = self.model(instance);
        if model.run != instance.run || model.is_thread() {
            return; // A thread cannot be told.
        }
        let Some(work) = model.hand.iter().rev().find(|work| work.ticket == ticket).copied() else { return };
        if work.is_endless || work.is_stuck || !self.dice.strike(Fault::AnswerAfterCancel) {
            self.model(instance).take(work.serial);
        }
    }

    fn probe(&mut self, instance: Instance) {
        let model = &self.models[instance.slot as usize];
        if !model.lives(instance) {
            return;
        }
        let is_full = model.is_thread() && model.hand.len() >= model.in_flight_max;
        let platform = model.platform;
        let is_rotten = model.is_rotten && !self.dice.is_calm() && self.random.chance(500);
        let is_rotten = is_rotten || self.is_behind(platform);
        if self.models[instance.slot as usize].can_freeze() && self.dice.strike(Fault::Freeze) {
            self.freeze(instance);
        }
        if self.dice.strike(Fault::LostProbe) {
            return;
        }
        let verdict = match () {
            () if is_full || self.dice.strike(Fault::BusyProbe) => Verdict::Busy,
            () if self.models[instance.slot as usize].is_bad_edition => Verdict::Fail,
            () if is_rotten || self.dice.strike(Fault::FailedProbe) => Verdict::Fail,
            () if self.dice.strike(Fault::Unready) => Verdict::Unready,
            () => Verdict::Pass,
        };
        self.may_report(instance);
        let mut delay = self.within(10);
        if self.dice.strike(Fault::SlowProbe) {
            delay = self.random.span_below(self.config.health.timeout_ms.millis() * 2);
        }
        self.come(delay, Coming::Verdict(instance, verdict));
    }

    /// A run may say how it wants to be balanced, at any time: here with its probes and its requests.
    fn may_report(&mut self, instance: Instance) {
        if !self.models[instance.slot as usize].can_report() {
            return;
        }
        let before = self.model(instance).report;
        let mut report = before;
        if self.dice.strike(Fault::Reweighed) {
            report.weight = (self.random.below(4) > 0).then(|| 1 + self.random.below(20) as u32);
        }
        if !report.drain && self.dice.strike(Fault::Drains) {
            report.drain = true;
            let span = workload::span(&mut self.random, 10, 20_000);
            self.come(span, Coming::Resumes(instance));
        }
        if report != before {
            let delay = self.within(10);
            self.come(delay, Coming::Says(instance, report));
        }
    }

    fn says(&mut self, instance: Instance, report: Report) -> Option<Event> {
        // What it was about to say when calm came, it says no more.
        let report = Report { drain: report.drain && !self.dice.is_calm(), ..report };
        let model = self.model(instance);
        if !model.lives(instance) || model.is_frozen && report.drain {
            return None;
        }
        model.report = report;
        Some(Event::Reported { instance, report })
    }

    /// Each child is weighed, and by the time Demi hears of it some have ended.
    fn weigh(&mut self) {
        for slot in 0..self.models.len() {
            let model = &self.models[slot];
            let instance = Instance { slot: slot as u32, run: model.run };
            if !model.host.is_child() || !model.lives(instance) {
                continue;
            }
            if self.dice.strike(Fault::Leaks) {
                let more = self.random.below(20_000_000);
                let weight = &mut self.models[slot].weight;
                *weight = (*weight + more).min(WEIGHT_LEAKED_MAX);
            }
            let rss_bytes = self.models[slot].weight;
            let mut weight = Weight { rss_bytes, pss_bytes: None, processes: 1, descriptors: 8 };
            if self.dice.strike(Fault::Heavy) {
                weight.rss_bytes = (workload::SOFT_MB + 1) * 1_000_000;
            }
            if self.dice.strike(Fault::TooHeavy) {
                weight.rss_bytes = (workload::MAX_MB + 1) * 1_000_000;
            }
            if self.dice.strike(Fault::Forks) {
                weight.processes = workload::PROCESSES as u32 + 1;
            }
            if self.dice.strike(Fault::LeaksDescriptors) {
                weight.descriptors = workload::DESCRIPTORS as u32;
            }
            let delay = self.within(20);
            self.come(delay, Coming::News(Event::Weighed { instance, weight }));
        }
        let available = self.ram().ram_available;
        let delay = self.within(20);
        self.come(delay, Coming::News(Event::AllWeighed { available: Some(available) }));
    }

    /// Whether a reload was to something that cannot run; decided once for each edition.
    fn is_bad_edition(&mut self, platform: usize, edition: u32) -> bool {
        self.bad_editions.contains(&(platform, edition))
    }

    /// Somebody wants something of some platform.
    pub(super) fn order(&mut self) -> Event {
        let platform = self.random.below(self.config.platforms.len() as u64) as u32;
        let order = match self.random.below(12) {
            0 | 1 => Order::Start { platform },
            2 => Order::Stop { platform },
            3 => Order::Restart { platform },
            4 => Order::Isolate { platform },
            5 => Order::Retire { platform },
            6 => Order::Enroll { platform },
            7 | 8 => Order::Close { platform },
            _ => self.reload(platform, true),
        };
        Event::Ordered(order)
    }

    pub(super) fn reload(&mut self, platform: u32, is_by_hand: bool) -> Order {
        let index = platform as usize;
        self.editions[index] += 1;
        let edition = self.editions[index];
        if self.dice.strike(Fault::BadEdition) {
            self.bad_editions.push((index, edition));
        }
        Order::Reload { platform, edition, terms: Terms::of(&self.config.platforms[index]), is_by_hand }
    }

    fn start(&mut self, instance: Instance, edition: u32) {
        let model = self.model(instance);
        model.start(instance.run);
        let (host, platform) = (model.host, model.platform);
        if self.is_bad_edition(platform, edition) {
            self.model(instance).is_bad_edition = true;
            // It ends before its handshake, or is ill from the beginning.
            if self.random.below(2) == 0 {
                let (exit, delay) = (Exit::Code(1), self.within(50));
                return self.die(instance, exit, delay);
            }
        }
        if self.dice.strike(Fault::CrashAtStart) {
            let exits = [Exit::NotStarted, Exit::NotInitialised, Exit::Code(1), Exit::Signal(11), Exit::Misbehaved];
            let exit = exits[self.random.below(5) as usize];
            let delay = if exit == Exit::NotStarted { Duration::ZERO } else { self.within(50) };
            return self.die(instance, exit, delay);
        }
        if host.is_child() && self.dice.strike(Fault::BadConfig) {
            let delay = self.within(50);
            return self.die(instance, Exit::Code(78), delay);
        }
        if host.is_child() && self.dice.strike(Fault::SlowStart) {
            let timeout = self.config.platforms[platform].start_timeout_ms.millis();
            self.come(timeout * 3 / 4, Coming::Pleads(instance));
            let late = self.random.span_below(timeout / 2);
            return self.come(timeout + late, Coming::Starts(instance));
        }
        if host == Host::Inline || !self.dice.strike(Fault::NeverStarts) {
            let delay = if host == Host::Inline { Duration::ZERO } else { self.within(100) };
            self.come(delay, Coming::Starts(instance));
        }
    }

    fn terminate(&mut self, instance: Instance, is_heard: bool) {
        if !self.model(instance).lives(instance) {
            return;
        }
        let model = self.model(instance);
        model.state = State::Terminating;
        let is_deaf = model.can_be_replaced();
        if is_heard && !(is_deaf && self.dice.strike(Fault::IgnoredTerm)) {
            let delay = self.within(20);
            self.come(delay, Coming::Ends(instance));
        }
    }

    fn freeze(&mut self, instance: Instance) {
        let model = self.model(instance);
        if model.is_frozen {
            return;
        }
        model.is_frozen = true;
        let flowing: Vec<u64> = model.hand.iter().filter(|work| work.is_headed).map(|work| work.serial).collect();
        for serial in flowing {
            self.come(STALL, Coming::Stall(instance, serial));
        }
        if self.dice.strike(Fault::Thaw) {
            let delay = self.within(20_000);
            self.come(delay, Coming::Thaw(instance));
        }
    }

    /// A run ends in truth; Demi learns of it after `delay`. What it held is lost, but some of it may be heard yet.
    fn die(&mut self, instance: Instance, exit: Exit, delay: Duration) {
        let is_told_of_each = self.random.below(3) == 0;
        let model = self.model(instance);
        model.state = State::Dying;
        let hand = std::mem::take(&mut model.hand);
        for work in hand {
            let (ticket, outcome) = (work.ticket, Outcome::Replied);
            if self.dice.strike(Fault::AnswerOfOldRun) {
                let late = delay + self.within(500);
                self.come(late, Coming::News(Event::Answered { ticket, instance, outcome }));
                self.ghosts.push((ticket, instance));
            } else if is_told_of_each {
                self.come(delay / 2, Coming::News(Event::Answered { ticket, instance, outcome: Outcome::Broken }));
            }
        }
        self.come(delay, Coming::Exits(instance, exit));
    }

    /// The worst moment for the answer of an old run is while the next run of its slot has the same request.
    fn raise_ghost(&mut self, ticket: Ticket, instance: Instance) {
        let is_it = |ghost: &(Ticket, Instance)| ghost.0 == ticket && ghost.1.slot == instance.slot;
        if let Some(index) = self.ghosts.iter().position(is_it) {
            let (ticket, instance) = self.ghosts.swap_remove(index);
            let soon = self.within(5);
            self.come(soon, Coming::News(Event::Answered { ticket, instance, outcome: Outcome::Replied }));
        }
    }

    /// The event that Demi would notice, if it would.
    pub(super) fn happen(&mut self, coming: Coming) -> Option<Event> {
        match coming {
            Coming::Arrivals => self.arrive(),
            Coming::News(event) => {
                if let Event::Stored { errand: Errand::Flush, done } = event {
                    self.flushed = Some(done);
                }
                Some(event)
            }
            Coming::HangsUp(ticket) => {
                (self.ledger.is_live(ticket) && !self.dice.is_calm()).then_some(Event::Gone { ticket })
            }
            Coming::Starts(instance) => {
                let model = self.model(instance);
                if !model.lives(instance) {
                    return None;
                }
                if model.state == State::Starting {
                    model.state = State::Ready;
                }
                let is_rotten = self.dice.strike(Fault::Rotten);
                self.model(instance).is_rotten = is_rotten;
                Some(Event::Started { instance })
            }
            Coming::Head(instance, serial) => {
                let model = self.model(instance);
                if !model.lives(instance) || model.is_frozen {
                    return None;
                }
                let work = model.hand.iter_mut().find(|work| work.serial == serial)?;
                work.is_headed = true;
                Some(Event::Headed { ticket: work.ticket, instance })
            }
            Coming::Answer(instance, serial, outcome) => self.answer(instance, serial, outcome),
            Coming::Moves(instance, serial) => {
                let model = self.model(instance);
                let lives = model.lives(instance) && !model.is_frozen;
                let work = model.hand.iter().find(|work| work.serial == serial && lives)?;
                let (ticket, goes_on) = (work.ticket, self.random.below(4) > 0);
                if goes_on {
                    let delay = self.within(400);
                    self.come(delay, Coming::Moves(instance, serial));
                }
                Some(Event::Moved { ticket, instance })
            }
            Coming::Stall(instance, serial) => {
                let model = self.model(instance);
                if !model.lives(instance) || !model.is_frozen {
                    return None;
                }
                let ticket = model.take(serial)?.ticket;
                Some(Event::Answered { ticket, instance, outcome: Outcome::Broken })
            }
            Coming::Verdict(instance, verdict) => {
                let is_heard = !self.model(instance).is_frozen;
                is_heard.then_some(Event::Probed { instance, verdict })
            }
            Coming::Crash(instance) => {
                if self.model(instance).lives(instance) && !self.dice.is_calm() {
                    let delay = self.within(50);
                    self.die(instance, Exit::Signal(11), delay);
                }
                None
            }
            Coming::Thaw(instance) => {
                self.thaw(instance);
                None
            }
            Coming::Ends(instance) => {
                let model = self.model(instance);
                if model.lives(instance) && !model.is_frozen && !model.has_stuck_hand() {
                    self.die(instance, Exit::Code(0), Duration::ZERO);
                }
                None
            }
            Coming::Pleads(instance) => {
                let is_starting = self.model(instance).lives(instance);
                let by = self.config.platforms[self.models[instance.slot as usize].platform].start_timeout_ms.millis();
                is_starting.then_some(Event::Extended { instance, by })
            }
            Coming::Committed(letter) => Some(self.committed(letter)),
            Coming::Repeated(post) => self.repeated(post),
            Coming::Loaded(post) => self.loaded(post),
            Coming::Ended(post, end) => Some(self.ended(post, end)),
            Coming::Person => self.person(),
            Coming::Changes => self.changes(),
            Coming::Says(instance, report) => self.says(instance, report),
            Coming::Resumes(instance) => {
                let Report { weight, .. } = self.model(instance).report;
                self.says(instance, Report { weight, drain: false })
            }
            Coming::Back(target) => {
                self.away[target as usize] = false;
                None
            }
            Coming::Exits(instance, exit) => {
                self.model(instance).state = State::Absent;
                Some(Event::Exited { instance, exit })
            }
        }
    }

    fn arrive(&mut self) -> Option<Event> {
        if !self.arrivals {
            return None;
        }
        let is_calm = self.dice.is_calm();
        let (size, gap) = self.workload.next(is_calm);
        for _ in 0..size {
            let (route, idempotent) = self.workload.question(self.conductor.router(), is_calm);
            self.ask(route, idempotent);
        }
        if !is_calm && self.random.below(4) == 0 {
            self.post();
        }
        self.come(gap, Coming::Arrivals);
        None
    }

    /// A person looks in, and sometimes does something.
    fn person(&mut self) -> Option<Event> {
        if self.dice.is_calm() {
            return None;
        }
        let pause = self.random.span_below(Duration::from_secs(2));
        self.come(pause, Coming::Person);
        if self.dice.strike(Fault::Midnight) {
            return Some(Event::DayBegan);
        }
        if self.exit_due.is_none() && self.dice.strike(Fault::Crash) {
            self.crash();
            return None;
        }
        self.dice.strike(Fault::Person).then(|| self.order())
    }

    fn changes(&mut self) -> Option<Event> {
        if self.dice.is_calm() {
            return None;
        }
        let platform = self.random.below(self.config.platforms.len() as u64) as u32;
        Some(Event::Ordered(self.reload(platform, false)))
    }

    pub(super) fn ask(&mut self, route: Option<RouteId>, idempotent: bool) -> Ticket {
        let ticket = self.book.issue();
        self.requests += 1;
        if self.dice.strike(Fault::CallerGone) {
            let patience = self.random.span_below(self.ledger.timeout(route) * 3 / 2);
            self.come(patience, Coming::HangsUp(ticket));
        }
        // Few keys, so that some meet again; every fourth request has none.
        let key = Some(ticket.number() % 13).filter(|_| !ticket.number().is_multiple_of(4));
        let urgency = workload::urgency(ticket);
        // Only what goes to an upstream first is begun before all of its body is there.
        let in_parts = ticket.number().is_multiple_of(5) && route.is_some_and(|route| self.ledger.may_stream(route));
        let ask = Ask { idempotent, key, urgency, in_parts };
        self.come(Duration::ZERO, Coming::News(Event::Asked { ticket, route, ask }));
        ticket
    }

    fn answer(&mut self, instance: Instance, serial: u64, outcome: Outcome) -> Option<Event> {
        let model = self.model(instance);
        if !model.lives(instance) {
            return None;
        }
        if model.is_frozen {
            model.held.push((serial, outcome));
            return None;
        }
        let babbles = model.can_babble();
        let ticket = model.take(serial)?.ticket;
        if babbles && self.dice.strike(Fault::Duplicate) {
            let outcomes = [Outcome::Replied, Outcome::Failed, Outcome::Broken, Outcome::Busy];
            let outcome = outcomes[self.random.below(4) as usize];
            let late = self.within(300);
            self.come(late, Coming::News(Event::Answered { ticket, instance, outcome }));
        }
        if matches!(outcome, Outcome::Failed | Outcome::Busy) && self.dice.strike(Fault::Deferred) {
            let after = workload::span(&mut self.random, 1, 10_000);
            return Some(Event::Deferred { ticket, instance, outcome, after });
        }
        Some(Event::Answered { ticket, instance, outcome })
    }

    pub(super) fn thaw(&mut self, instance: Instance) {
        let model = self.model(instance);
        if !model.lives(instance) || !model.is_frozen {
            return;
        }
        model.is_frozen = false;
        let is_terminating = model.state == State::Terminating;
        for (serial, outcome) in std::mem::take(&mut model.held) {
            let delay = self.within(20);
            self.come(delay, Coming::Answer(instance, serial, outcome));
        }
        if is_terminating {
            let delay = self.within(20);
            self.come(delay, Coming::Ends(instance));
        }
    }
}
