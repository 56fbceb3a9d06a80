//! The books that the world keeps of its own: what was promised to whom, told apart from what the conductor believes.
//!
//! `Conductor::check` asserts that its tables agree with each other. The ledger asserts what a caller, a platform or
//! an operator would notice: a request answered twice or never, work for the dead, a start too many, an end in the
//! wrong order. It sees events and actions only, and a status now and then.
//!
//! | what is judged | where |
//! |---|---|
//! | what a request was promised: its time, whom it is passed on to, its one end | `ledger/requests.rs` |
//! | its attempts: given, hedged, tried again, answered, cut short | `ledger/attempts.rs` |
//! | whose turn it is, and who may have it: who is full, drains or is cut off | `ledger/balance.rs` |
//! | starts and ends of instances, their order and their reasons | `ledger/lifecycle.rs` |
//! | what people, requests and other platforms want of a platform | `ledger/orders.rs` |
//! | who is shed, restored or held back for RAM | `ledger/ram.rs` |

mod attempts;
mod balance;
mod lifecycle;
mod orders;
mod ram;
mod requests;

use std::collections::BTreeSet;
use std::time::Duration;

use demi_conductor::config::{Config, Host, Start};
use demi_conductor::lifecycle::Reason;
use demi_conductor::{Action, Conductor, Event, Instance, News, Outcome, Phase, Ticket, Time};

use crate::report::{Sight, Sights};
use ram::{Account, Ram};
use requests::Requests;

/// An instance over its runs.
#[derive(Clone, Debug)]
struct Slot {
    platform: usize,
    run: u32,
    started_at: Option<Time>,
    has_exited: bool,
    is_ending: bool,
    is_killed: bool,
    bad_config: bool,
    /// Attempts that it has by the conductor's word.
    out: u32,
    /// What a thread really holds, with the deadlines; nothing but the thread itself can take from this.
    held: Vec<(Ticket, Time)>,
    /// It has said that it wants no new requests, and not otherwise since.
    drains: bool,
    /// Its breaker was told to be open until then, and not to have closed since.
    open_until: Option<Time>,
    /// The last start followed an exit in the same turn, and the run before it did not last.
    at_once: bool,
    edition: u32,
    /// Health checks that it has passed in this run.
    passes: u32,
    draining_since: Option<Time>,
    /// Why it is in its state, as it was told.
    why: Option<Reason>,
    /// It is shed, or about to be.
    is_shed: bool,
    /// What it was last found to weigh, bytes.
    weight: u64,
    /// The least that this run was found to weigh, bytes.
    least: u64,
    /// Its last start was after a wait, or instead of one.
    after_backoff: bool,
}

#[derive(Debug)]
struct Platform {
    host: Host,
    in_flight_max: u32,
    wedged: Duration,
    queue_age_max: Option<Duration>,
    needs: Vec<usize>,
    slots: std::ops::Range<usize>,
    drain: Duration,
    sleep_after: Option<Duration>,
    request_timeout: Option<Duration>,
    start_budget: u32,
    /// Starts since the day began; unknown if that was in a turn in which it was started as well.
    starts: Option<u32>,
    /// Somebody asked for it, or a person had something to do with it or with what needs it.
    is_wanted: bool,
    /// A person stopped it, and nobody has wanted it since.
    is_stopped: bool,
    is_isolated: bool,
    /// Editions that it may be started from, and the one that has taken over.
    editions: BTreeSet<u32>,
    adopted: u32,
    /// A person ordered the reload that came last.
    is_reloaded_by_hand: bool,
    /// Editions one of whose instances has passed its health checks.
    proven: BTreeSet<u32>,
    /// When its last request ended.
    used_at: Time,
    /// Its own breaker was told to be open until then, and not to have closed since.
    open_until: Option<Time>,
    /// What it depends on and was told to be lost.
    lost: BTreeSet<u32>,
    /// When somebody last ordered something of it.
    ordered_at: Option<Time>,
    ram: Account,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Ledger {
    platforms: Vec<Platform>,
    slots: Vec<Slot>,
    requests: Requests,
    ram: Ram,
    forget: Duration,
    /// Where in its end Demi was after the last turn.
    phase: Phase,
    has_exited: bool,
    pub(crate) sights: Sights,
}

impl Ledger {
    pub(crate) fn new(config: &Config) -> Ledger {
        let mut slots = Vec::new();
        let mut platforms = Vec::new();
        for (index, platform) in config.platforms.iter().enumerate() {
            let first = slots.len();
            slots.extend((0..platform.slots()).map(|_| Slot::new(index)));
            platforms.push(Platform {
                host: platform.host,
                in_flight_max: platform.in_flight_max(),
                wedged: platform.wedged_ms.millis(),
                queue_age_max: platform.queue_age_max_ms.map(|bound| bound.millis()),
                needs: platform.needs.iter().filter_map(|name| position(config, name)).collect(),
                slots: first..slots.len(),
                drain: platform.drain_ms.millis(),
                sleep_after: platform.sleep_after_ms.map(|bound| bound.millis()),
                request_timeout: platform.request_timeout_ms.map(|bound| bound.millis()),
                start_budget: platform.start_budget_per_day.count(),
                starts: Some(0),
                is_wanted: platform.start == Start::Eager,
                is_stopped: platform.start == Start::Manual,
                is_isolated: false,
                editions: BTreeSet::from([0]),
                adopted: 0,
                is_reloaded_by_hand: false,
                proven: BTreeSet::from([0]),
                used_at: Time::ZERO,
                open_until: None,
                lost: BTreeSet::new(),
                ordered_at: None,
                ram: Account::new(platform),
            });
        }
        Ledger {
            platforms,
            slots,
            requests: Requests::new(config),
            ram: Ram::new(config.scaler),
            forget: config.restart.forget_ms.millis(),
            phase: Phase::Running,
            has_exited: false,
            sights: Sights::default(),
        }
    }

    fn saw(&mut self, sight: Sight) {
        self.sights.add(sight as usize, 1);
    }

    fn is_alive(&self, slot: usize) -> bool {
        self.slots[slot].run > 0 && !self.slots[slot].has_exited
    }

    /// Enters what happened and what the conductor did about it, and asserts that it may.
    pub(crate) fn enter(&mut self, now: Time, event: &Event, actions: &[Action], conductor: &Conductor) {
        assert!(!self.has_exited, "something happened after the exit");
        let mut turn = self.note_event(now, event, actions);
        turn.is_stirred = actions.iter().any(|action| {
            matches!(action, Action::Tell { news: News::State { .. } | News::HealthDown | News::HealthUp, .. })
        });
        for (index, action) in actions.iter().enumerate() {
            assert!(!self.has_exited, "{action:?} after Exit");
            self.note_action(now, action, &actions[index + 1..], &turn, conductor);
        }
        self.close_turn(now, &turn, conductor);
    }

    fn note_event(&mut self, now: Time, event: &Event, actions: &[Action]) -> Turn {
        let mut turn = Turn::default();
        match *event {
            Event::Asked { ticket, route, ask } => self.note_asked(now, ticket, route, ask, &mut turn),
            Event::PostLoaded { ticket, .. } => self.note_delivery(now, ticket, &mut turn),
            Event::Gone { ticket } => self.note_gone(ticket, &mut turn),
            Event::Moved { ticket, instance } => self.note_moved(now, ticket, instance, actions, &mut turn),
            Event::Headed { ticket, instance } => turn.headed = self.is_awaited(ticket, instance).then_some(ticket),
            Event::Answered { ticket, instance, outcome } => {
                self.note_answer(ticket, instance, outcome, actions, &mut turn)
            }
            Event::Deferred { ticket, instance, outcome, after } => {
                self.note_deferral(ticket, instance, now + after, actions);
                self.note_answer(ticket, instance, outcome, actions, &mut turn);
            }
            Event::Reported { instance, report } => self.note_report(instance, report),
            Event::Started { instance } => self.note_started(now, instance),
            Event::Exited { instance, exit } => self.note_exited(instance, exit, &mut turn),
            Event::Probed { instance, verdict } => self.note_probed(instance, verdict),
            Event::Recalled { platform, starts } => self.platforms[platform as usize].starts = Some(starts),
            Event::DayBegan => self.note_day(actions),
            Event::Began => self.note_beginning(),
            Event::Ordered(order) => self.note_order(now, order, actions),
            Event::Measured { sample } => self.note_sample(now, sample),
            Event::Weighed { instance, weight } => self.note_weight(now, instance, weight),
            Event::PeakRecalled { platform, bytes, .. } => self.platforms[platform as usize].ram.recalled = bytes,
            Event::Extended { .. }
            | Event::Reinitialized { .. }
            | Event::Reached { .. }
            | Event::Posted { .. }
            | Event::PostLost { .. }
            | Event::PostStored { .. }
            | Event::Stored { .. }
            | Event::AllWeighed { .. }
            | Event::Elapsed => {}
        }
        turn
    }

    fn note_action(&mut self, now: Time, action: &Action, rest: &[Action], turn: &Turn, conductor: &Conductor) {
        match *action {
            Action::Dispatch { ticket, instance } => self.note_dispatch(now, ticket, instance, false, turn, conductor),
            Action::Hedge { ticket, instance } => self.note_dispatch(now, ticket, instance, true, turn, conductor),
            Action::Prefer { ticket, instance } => self.note_preference(ticket, instance, turn),
            Action::Cancel { ticket, instance } => self.note_cancel(now, ticket, instance, rest, turn),
            Action::FallBack { ticket, platform } => self.note_fall_back(now, ticket, platform as usize, turn),
            Action::Relay { ticket } => self.note_relay(ticket, turn),
            Action::Answer { ticket, answer } => self.note_end(now, ticket, answer, turn),
            Action::Bury { ticket, answer, attempts } => self.note_burial(now, ticket, answer, attempts, turn),
            Action::Start { instance, edition } => self.note_start(now, instance, edition, turn),
            Action::Signal { instance, signal } => self.note_signal(now, instance, signal, turn, conductor),
            Action::Probe { instance } => self.assert_in_use(instance, turn, "a probe"),
            Action::Reinitialize { instance } => self.assert_in_use(instance, turn, "another initialisation"),
            Action::Spend { platform, starts } => self.note_spending(platform as usize, starts),
            Action::Adopt { platform, edition } => self.note_adoption(platform as usize, edition),
            Action::Reject { platform, edition } => {
                self.platforms[platform as usize].editions.remove(&edition);
            }
            Action::Tell { platform, instance, news } => self.note_news(now, platform as usize, instance, news, turn),
            Action::Decide { decision } => self.note_decision(now, &decision, rest, turn, conductor),
            Action::KeepPeak { platform, bytes } => self.note_peak_kept(now, platform as usize, bytes, rest, turn),
            Action::Trim { .. } => self.saw(Sight::Trimmed),
            Action::Exit(_) => {
                assert_eq!(self.requests.live, 0, "Demi exited and left requests without an end");
                for slot in 0..self.slots.len() {
                    assert!(
                        !self.is_alive(slot) || self.slots[slot].is_killed,
                        "Demi exited and left slot {slot} alive"
                    );
                }
                self.has_exited = true;
            }
            Action::Deliver { .. }
            | Action::Settle { .. }
            | Action::NoteTries { .. }
            | Action::BuryPost { .. }
            | Action::Reach { .. }
            | Action::Measure
            | Action::Admit(_)
            | Action::Flush
            | Action::Weigh => {}
        }
    }

    fn note_news(&mut self, now: Time, platform: usize, instance: Option<Instance>, news: News, turn: &Turn) {
        match (news, instance) {
            (News::State { was, now: state, reason }, Some(instance)) => {
                self.note_state(now, instance, was, state, reason, turn)
            }
            (News::SwapDone, _) => {
                self.forgive(platform);
                self.saw(Sight::SwapDone);
            }
            // What says that its configuration is bad is of the old edition.
            (News::SwapUntried, _) => self.forgive(platform),
            (News::SwapFailed { .. }, _) => {
                // What said that its configuration is bad was of the new edition.
                self.forgive(platform);
                self.saw(Sight::SwapFailed);
            }
            (News::Extended { .. }, _) => self.saw(Sight::Extended),
            (News::Reinitialized { done: true }, _) => self.saw(Sight::Reinitialized),
            (News::DrainBegan, Some(instance)) => self.note_drain_began(instance),
            (News::DrainEnded, Some(instance)) => self.note_drain_ended(instance),
            (News::BreakerOpened { cause, until }, instance) => self.note_opened(platform, instance, cause, until),
            (News::BreakerClosed { is_by_hand }, instance) => self.note_closed(platform, instance, is_by_hand),
            (News::Acquitted { .. }, Some(instance)) => self.note_acquittal(instance),
            (News::Unreachable { target }, _) => self.note_lost(platform, target),
            (News::Reachable { target }, _) => self.note_back(now, platform, target),
            (_, _) => {}
        }
    }

    fn close_turn(&mut self, now: Time, turn: &Turn, conductor: &Conductor) {
        if let Some(instance) = turn.exited {
            self.take_all_from(instance);
        }
        if let Some((deadline, ticket)) = self.requests.due.first() {
            assert!(*deadline > now || self.has_exited, "{ticket:?} outlived its deadline");
        }
        self.phase = conductor.phase();
        assert_eq!(self.requests.live, conductor.live(), "the conductor has another count of live requests");
    }

    /// Compares the books with what the conductor tells people.
    pub(crate) fn audit(&self, conductor: &Conductor) {
        for (platform, told) in self.platforms.iter().zip(conductor.platforms()) {
            for status in &told.instances {
                let slot = status.slot as usize;
                let entry = &self.slots[slot];
                assert_eq!(
                    status.drains,
                    entry.drains && self.is_alive(slot),
                    "slot {slot} is shown with another wish"
                );
                assert_eq!(status.run, entry.run, "slot {slot} is shown with another run");
                assert_eq!(status.in_flight, entry.out, "slot {slot} is shown with another count of requests");
                let is_shown_alive = matches!(
                    status.state,
                    "starting" | "proving" | "ready" | "degraded" | "wedged" | "down" | "draining" | "stopping"
                );
                assert_eq!(is_shown_alive, self.is_alive(slot), "slot {slot} is shown as {}", status.state);
                let is_open =
                    matches!(status.state, "ready" | "degraded") && status.breaker == "closed" && !entry.drains;
                let is_free = is_open && status.health != "unproven" && status.in_flight < platform.in_flight_max;
                assert!(!is_free || told.queued == 0, "requests wait for {} while slot {slot} is free", told.name);
            }
        }
    }
}

/// What one turn was about.
#[derive(Debug, Default)]
struct Turn {
    /// A request came, after the timers that were due.
    asked: Option<Ticket>,
    /// The head of an awaited answer came.
    headed: Option<Ticket>,
    /// An awaited answer came.
    answered: Option<(Ticket, Instance, Outcome)>,
    /// Who is there and well is not the same after it as before.
    is_stirred: bool,
    /// A second instance was asked just before the answer of the first one came.
    hedged: Option<Ticket>,
    /// Part of its body went to its instance.
    moved: Option<Ticket>,
    /// A caller hung up; a timer that was due before that may still have had its request tried again.
    gone: Option<Ticket>,
    /// A run ended.
    exited: Option<Instance>,
    /// A thread let go of what it held until now, with the deadline of that.
    let_go: Option<(Instance, Time)>,
}

fn position(config: &Config, name: &str) -> Option<usize> {
    config.platforms.iter().position(|platform| platform.name == name)
}

impl Slot {
    fn new(platform: usize) -> Slot {
        Slot {
            platform,
            run: 0,
            started_at: None,
            has_exited: false,
            is_ending: false,
            is_killed: false,
            bad_config: false,
            out: 0,
            held: Vec::new(),
            drains: false,
            open_until: None,
            at_once: false,
            edition: 0,
            passes: 0,
            draining_since: None,
            why: None,
            after_backoff: false,
            is_shed: false,
            weight: 0,
            least: 0,
        }
    }
}
