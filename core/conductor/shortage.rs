//! What is done when RAM runs short, each told as a short story. Platforms weigh what they are said to; the rest of the
//! machine does too.

mod starts;

use std::time::Duration;

use crate::config::{Bounded, Config, Host, Model, Platform, Route, Scaler, Start};
use crate::lifecycle::{Reason, State, Then};
use crate::scaler::{Act, Decision, Step};
use crate::{
    Action, Answer, Ask, Conductor, Event, Exit, Instance, News, Order, Outcome, PostId, Posting, Refusal, RouteId,
    Sample, Signal, Ticket, Time, Tries, Verdict, Weight, MEGABYTE,
};

/// The machine has ten thousand megabytes, so that one hundred are a percent.
const TOTAL_MB: u64 = 10_000;

struct Machine {
    conductor: Conductor,
    now: Time,
    tickets: u32,
    /// By slot: what its present run weighs, MB.
    weights: Vec<u64>,
    runs: Vec<Option<u32>>,
    /// What everything else uses, MB.
    background: u64,
    /// What the wall clock shows at the beginning of time, seconds since 1970.
    date_s: Option<u64>,
    /// What is asked to end does not.
    is_deaf: bool,
    /// Whose health checks fail, by slot.
    ill: Option<u32>,
    posts_loaded: u64,
}

fn bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(number: u64) -> Bounded<LOW, HIGH, DEFAULT> {
    Bounded::new(number).expect("the number is in its range")
}

fn child(name: &str) -> Platform {
    Platform { command: vec!["plugin".to_owned()], ..Platform::new(name, Host::Process(1)) }
}

/// Of platforms with one instance and a spare slot each.
const fn slot_of(platform: usize) -> u32 {
    platform as u32 * 2
}

impl Machine {
    fn begin(platforms: Vec<Platform>, scaler: Scaler) -> Machine {
        let routes = platforms
            .iter()
            .map(|platform| Route { timeout_ms: bounded(600_000), ..Route::to(&platform.name) })
            .collect();
        Machine::with_routes(platforms, routes, scaler)
    }

    fn with_routes(platforms: Vec<Platform>, routes: Vec<Route>, scaler: Scaler) -> Machine {
        let mut machine = Machine::new(platforms, routes, scaler);
        machine.happens(Event::Began);
        machine
    }

    /// With what platforms are remembered to have weighed at most, and with so much in use by everything else, MB.
    fn begin_with(platforms: Vec<Platform>, scaler: Scaler, peaks: &[u64], background: u64) -> Machine {
        let mut machine = Machine::new(platforms, Vec::new(), scaler);
        for (platform, peak) in (0..).zip(peaks).filter(|(_, peak)| **peak > 0) {
            let (bytes, age) = (peak * MEGABYTE, Duration::ZERO);
            machine.happens(Event::PeakRecalled { platform, bytes, age });
        }
        machine.background = background;
        machine.happens(Event::Measured { sample: machine.sample() });
        machine.happens(Event::Began);
        machine
    }

    fn new(platforms: Vec<Platform>, routes: Vec<Route>, scaler: Scaler) -> Machine {
        let slots = platforms.iter().map(Platform::slots).sum();
        let config = Config { platforms, routes, scaler, ..Config::default() };
        let names: Vec<&str> = config.platforms.iter().map(|platform| platform.name.as_str()).collect();
        assert_eq!(config.mistakes(&names), []);
        Machine {
            conductor: Conductor::new(&config, 1),
            now: Time::ZERO,
            tickets: 0,
            weights: vec![100; slots],
            runs: vec![None; slots],
            background: 3_000,
            date_s: None,
            is_deaf: false,
            ill: None,
            posts_loaded: 0,
        }
    }

    fn sample(&self) -> Sample {
        let ram_available = TOTAL_MB.saturating_sub(self.used()) * MEGABYTE;
        let date_s = self.date_s.map(|date_s| date_s + self.now.since(Time::ZERO).as_secs());
        Sample { ram_available, ram_total: TOTAL_MB * MEGABYTE, date_s, ..Sample::default() }
    }

    fn used(&self) -> u64 {
        let runs = self.runs.iter().zip(&self.weights).filter(|(run, _)| run.is_some());
        self.background + runs.map(|(_, weight)| weight).sum::<u64>()
    }

    /// Lets it happen, with all that follows at once.
    fn happens(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.conductor.handle(self.now, event, &mut out);
        self.conductor.check();
        let mut all = Vec::new();
        for action in out {
            all.push(action);
            let more = match action {
                Action::Start { instance, .. } => {
                    self.runs[instance.slot as usize] = Some(instance.run);
                    self.happens(Event::Started { instance })
                }
                Action::Probe { instance } => {
                    let verdict = if self.ill == Some(instance.slot) { Verdict::Fail } else { Verdict::Pass };
                    self.happens(Event::Probed { instance, verdict })
                }
                Action::Signal { instance, signal } if signal == Signal::Kill || !self.is_deaf => {
                    match self.runs[instance.slot as usize].take() {
                        Some(_) => self.happens(Event::Exited { instance, exit: Exit::Code(0) }),
                        None => continue,
                    }
                }
                Action::Measure => self.happens(Event::Measured { sample: self.sample() }),
                Action::Weigh => {
                    let mut more = Vec::new();
                    for slot in 0..self.runs.len() {
                        let Some(run) = self.runs[slot] else { continue };
                        let instance = Instance { slot: slot as u32, run };
                        let rss_bytes = self.weights[slot] * MEGABYTE;
                        let weight = Weight { rss_bytes, pss_bytes: None, processes: 1, descriptors: 8 };
                        more.extend(self.happens(Event::Weighed { instance, weight }));
                    }
                    let available = TOTAL_MB.saturating_sub(self.used()) * MEGABYTE;
                    more.extend(self.happens(Event::AllWeighed { available: Some(available) }));
                    more
                }
                Action::Deliver { post } => {
                    self.tickets += 1;
                    self.posts_loaded += 1;
                    self.happens(Event::PostLoaded { post, ticket: Ticket::new(self.tickets, 0) })
                }
                _ => continue,
            };
            all.extend(more);
        }
        all
    }

    fn passes(&mut self, seconds: u64) -> Vec<Action> {
        let until = self.now + Duration::from_secs(seconds);
        let mut all = Vec::new();
        while let Some((at, _)) = self.conductor.deadline().filter(|(at, _)| *at <= until) {
            self.now = at;
            all.extend(self.happens(Event::Elapsed));
        }
        self.now = until;
        all
    }

    fn ask(&mut self, route: u32) -> (Ticket, Vec<Action>) {
        self.tickets += 1;
        let ticket = Ticket::new(self.tickets, 0);
        let route = Some(RouteId(route));
        let asked = Event::Asked { ticket, route, ask: Ask::default() };
        (ticket, self.happens(asked))
    }

    /// Its run ends by itself.
    fn crashes(&mut self, platform: usize) -> Vec<Action> {
        let slot = slot_of(platform);
        let run = self.runs[slot as usize].take().expect("it runs");
        self.happens(Event::Exited { instance: Instance { slot, run }, exit: Exit::Signal(11) })
    }

    fn answers(&mut self, ticket: Ticket, platform: usize) -> Vec<Action> {
        let slot = slot_of(platform);
        let run = self.runs[slot as usize].expect("it runs");
        self.happens(Event::Answered { ticket, instance: Instance { slot, run }, outcome: Outcome::Replied })
    }

    fn states(&self) -> Vec<&'static str> {
        let platforms = self.conductor.platforms();
        platforms.flat_map(|platform| platform.instances.into_iter().map(|instance| instance.state)).collect()
    }

    fn acts(&self) -> Vec<(Option<u32>, &'static str)> {
        self.conductor.decisions().map(|decision| (decision.platform, decision.act.name())).collect()
    }

    fn next_of(&self, platform: usize) -> String {
        let told = self.conductor.platforms().nth(platform).expect("it is there");
        told.instances[0].next.clone().expect("something happens next")
    }
}

fn told(actions: &[Action]) -> Vec<Decision> {
    let scaled = |action: &Action| match action {
        Action::Tell { news: News::Scaled { decision }, .. } => Some(*decision),
        _ => None,
    };
    actions.iter().filter_map(scaled).collect()
}

fn refusal(actions: &[Action], ticket: Ticket) -> Option<(Refusal, Duration)> {
    actions.iter().find_map(|action| match action {
        Action::Answer { ticket: of, answer: Answer::Refused(refusal, after) } if *of == ticket => {
            Some((*refusal, *after))
        }
        _ => None,
    })
}

fn three() -> Vec<Platform> {
    vec![child("files"), child("discord"), child("voice")]
}

#[test]
fn first_memory_is_asked_back_then_the_lowest_priority_goes_and_no_more_than_needed() {
    let mut machine = Machine::begin(three(), Scaler::default());
    machine.passes(60);
    assert_eq!(machine.acts(), []);
    machine.background = 7_750;
    let actions = machine.passes(120);
    assert_eq!(actions.iter().filter(|action| matches!(action, Action::Trim { .. })).count(), 3);
    let of_voice = Some(2);
    let all = [(None, "trim"), (None, "won"), (of_voice, "shed"), (of_voice, "won")];
    assert_eq!(machine.acts(), all, "7,950 of 10,000 MB are left");
    assert_eq!(machine.states(), ["ready", "ready", "shed"]);
    let won = machine.conductor.decisions().last().expect("there is one");
    let act = Act::Won { step: Step::Shed, weighed: 100 * MEGABYTE, bytes: 100 * MEGABYTE as i64 };
    assert_eq!((won.act, won.figures.ram_permille, won.figures.threshold_percent), (act, 795, 80));
}

#[test]
fn what_was_shed_comes_back_in_reverse_one_by_one_after_calm() {
    let mut machine = Machine::begin(three(), Scaler::default());
    machine.background = 8_500;
    machine.passes(300);
    assert_eq!(machine.states(), ["shed", "shed", "shed"]);
    assert_eq!(machine.acts().last(), Some(&(None, "exhausted")));
    machine.background = 5_000;
    let mut back = Vec::new();
    for minute in 1..=40 {
        for decision in told(&machine.passes(60)).into_iter().filter(|decision| decision.act == Act::Restore) {
            back.push((decision.platform, minute));
        }
    }
    let platforms: Vec<Option<u32>> = back.iter().map(|(platform, _)| *platform).collect();
    assert_eq!(platforms, [Some(0), Some(1), Some(2)]);
    assert!(back[0].1 >= 5 && back[1].1 - back[0].1 >= 5 && back[2].1 - back[1].1 >= 5, "{back:?}");
    assert_eq!(machine.states(), ["ready", "ready", "ready"]);
}

#[test]
fn what_does_not_fit_stays_away_and_says_how_much_is_missing() {
    let mut machine = Machine::begin(vec![child("voice")], Scaler::default());
    machine.weights[0] = 2_000;
    machine.background = 6_200;
    machine.passes(300);
    assert_eq!(machine.states(), ["shed"]);
    let actions = machine.passes(900);
    assert_eq!(machine.states(), ["shed"], "6,200 and 2,000 of 8,000");
    let waits: Vec<u64> = told(&actions)
        .iter()
        .filter_map(|decision| match decision.act {
            Act::Wait { missing } => Some(missing / MEGABYTE),
            _ => None,
        })
        .collect();
    assert!((195..=200).contains(&waits[0]), "it always weighs the same: {waits:?}");
    assert!(waits.len() <= 2, "it is not told all the while");
    assert!(machine.next_of(0).contains("MB more are free"), "{}", machine.next_of(0));
    machine.background = 5_000;
    machine.passes(600);
    assert_eq!(machine.states(), ["ready"]);
}

#[test]
fn a_request_for_what_is_shed_is_refused_with_a_time_or_goes_to_the_next() {
    let routes = vec![Route::to("voice"), Route { fallback: vec!["files".to_owned()], ..Route::to("voice") }];
    let mut machine = Machine::with_routes(vec![child("files"), child("voice")], routes, Scaler::default());
    machine.background = 7_850;
    machine.passes(120);
    assert_eq!(machine.states(), ["ready", "shed"]);
    let (ticket, actions) = machine.ask(0);
    assert_eq!(refusal(&actions, ticket), Some((Refusal::Shed, Duration::from_secs(60))));
    let (ticket, actions) = machine.ask(1);
    let passed_on = Action::FallBack { ticket, platform: 0 };
    assert!(actions.contains(&passed_on) && refusal(&actions, ticket).is_none(), "{actions:?}");
    machine.background = 4_000;
    machine.passes(200);
    let (ticket, actions) = machine.ask(0);
    let (_, after) = refusal(&actions, ticket).expect("it is refused");
    assert!((30..=200).contains(&after.as_secs()), "what is left of five minutes of calm: {after:?}");
    assert!(machine.next_of(1).starts_with("it comes back in "), "{}", machine.next_of(1));
}

#[test]
fn requests_in_hand_end_in_order_before_their_platform_does_and_messages_wait() {
    let mut machine = Machine::begin(vec![child("files"), child("voice")], Scaler::default());
    let (ticket, _) = machine.ask(1);
    machine.background = 7_850;
    machine.passes(2);
    let mut seconds = 2;
    while machine.states()[1] != "draining" {
        machine.passes(1);
        seconds += 1;
        assert!(seconds < 90, "{:?}", machine.acts());
    }
    let (late, actions) = machine.ask(1);
    assert_eq!(refusal(&actions, late).map(|(refusal, _)| refusal), Some(Refusal::Shed));
    let actions = machine.answers(ticket, 1);
    assert!(actions.contains(&Action::Answer { ticket, answer: Answer::Relayed }), "{actions:?}");
    assert_eq!(machine.states()[1], "shed");
    let posting = Posting { route: Some(RouteId(1)), key: 0, due: Time::ZERO, expires: None, tries: Tries::default() };
    machine.happens(Event::Posted { post: PostId(1), posting });
    machine.passes(600);
    assert_eq!((machine.conductor.posts(), machine.states()[1]), (1, "shed"), "it is kept");
    machine.background = 3_000;
    let loaded = machine.posts_loaded;
    machine.passes(500);
    assert!(machine.posts_loaded > loaded && machine.states()[1] == "ready", "and is delivered when there is RAM");
}

#[test]
fn in_an_emergency_nothing_drains() {
    let mut machine = Machine::begin(vec![child("files"), child("voice")], Scaler::default());
    machine.ask(1);
    machine.ask(0);
    machine.background = 9_500;
    let actions = machine.passes(34);
    let killed = Action::Signal { instance: Instance { slot: slot_of(1), run: 1 }, signal: Signal::Kill };
    assert!(actions.contains(&killed), "{:?}", machine.acts());
    assert!(!actions.iter().any(|action| matches!(action, Action::Trim { .. })), "there is no time to ask");
    assert_eq!(machine.states(), ["shed", "shed"]);
}

#[test]
fn what_drains_is_put_down_when_it_becomes_an_emergency() {
    let mut machine = Machine::begin(vec![child("files"), child("voice")], Scaler::default());
    machine.is_deaf = true;
    machine.ask(1);
    machine.background = 7_850;
    for _ in 0..90 {
        if machine.states()[1] != "draining" {
            machine.passes(1);
        }
    }
    machine.background = 9_400;
    machine.passes(3);
    assert_eq!(machine.states()[1], "shed");
    assert!(machine.acts().contains(&(Some(1), "kill")), "{:?}", machine.acts());
}

#[test]
fn nothing_is_shed_that_may_not_be_or_that_a_running_platform_needs() {
    let kept = Platform { shed: Some(false), needs: vec!["needed".to_owned()], ..child("kept") };
    let needed = Platform { priority: Some(bounded(0)), ..child("needed") };
    let goes = Platform { needs: vec!["base-voice".to_owned()], ..child("goes") };
    let platforms = vec![kept, needed, goes, child("base-voice"), Platform::new("inline", Host::Inline)];
    let mut machine = Machine::begin(platforms, Scaler::default());
    machine.background = 8_500;
    machine.passes(300);
    assert_eq!(machine.states(), ["ready", "ready", "shed", "shed", "ready"]);
    let sheds: Vec<Option<u32>> =
        machine.acts().into_iter().filter(|(_, act)| *act == "shed").map(|(platform, _)| platform).collect();
    assert_eq!(sheds, [Some(2), Some(3)], "whoever needs it goes first, whatever the priorities");
    machine.background = 3_000;
    machine.passes(1_000);
    assert_eq!(machine.states(), ["ready"; 5]);
}

#[test]
fn an_idle_platform_that_may_sleep_is_put_to_sleep_before_anything_is_shed() {
    let sleepy = Platform { sleep_after_ms: Some(bounded(3_600_000)), ..child("sleepy") };
    let mut machine = Machine::begin(vec![sleepy, child("voice")], Scaler::default());
    machine.background = 7_850;
    machine.passes(120);
    assert_eq!(machine.states(), ["asleep", "ready"]);
    assert_eq!(machine.acts().iter().map(|(_, act)| *act).collect::<Vec<_>>(), ["trim", "won", "sleep", "won"]);
    // Its next request wakes it if there is RAM for it, and is refused otherwise.
    let (ticket, actions) = machine.ask(0);
    assert_eq!(refusal(&actions, ticket).map(|(refusal, _)| refusal), Some(Refusal::Shed));
    assert_eq!(told(&actions).len(), 1, "and why is told");
    machine.background = 6_000;
    machine.passes(60);
    let (_, actions) = machine.ask(0);
    assert!(actions.iter().any(|action| matches!(action, Action::Start { .. })), "{actions:?}");
}

#[test]
fn a_person_may_overrule_it_but_in_an_emergency() {
    let mut machine = Machine::begin(vec![child("voice")], Scaler::default());
    machine.background = 7_950;
    machine.passes(60);
    assert_eq!(machine.states(), ["shed"]);
    let actions = machine.happens(Event::Ordered(Order::Start { platform: 0 }));
    assert!(matches!(told(&actions)[..], [Decision { act: Act::Overrule { .. }, .. }]), "{actions:?}");
    machine.passes(120);
    assert_eq!(machine.states(), ["ready"], "it is left alone for a while");
    machine.passes(300);
    assert_eq!(machine.states(), ["shed"]);
    machine.background = 9_600;
    machine.passes(5);
    let actions = machine.happens(Event::Ordered(Order::Start { platform: 0 }));
    assert!(matches!(told(&actions)[..], [Decision { act: Act::Refuse { .. }, .. }]), "{actions:?}");
    assert_eq!(machine.states(), ["shed"]);
    // What is stopped by hand is not brought back by anybody else.
    machine.happens(Event::Ordered(Order::Stop { platform: 0 }));
    machine.background = 1_000;
    machine.passes(3_600);
    assert_eq!(machine.states(), ["stopped"]);
}

#[test]
fn with_forecast_only_nothing_is_done_and_everything_is_told() {
    let scaler = Scaler { forecast_only: true, ..Scaler::default() };
    let mut machine = Machine::begin(three(), scaler);
    machine.background = 7_850;
    let mut actions = machine.passes(300);
    machine.background = 3_000;
    actions.extend(machine.passes(900));
    assert_eq!(machine.states(), ["ready", "ready", "ready"]);
    let acts = machine.acts();
    assert_eq!(
        acts,
        [(None, "trim"), (Some(2), "shed"), (Some(1), "shed"), (Some(1), "restore"), (Some(2), "restore")]
    );
    assert!(machine.conductor.decisions().all(|decision| !decision.is_done));
    let is_deed = |action: &Action| matches!(action, Action::Trim { .. } | Action::Signal { .. });
    assert!(!actions.iter().any(is_deed));
}

#[test]
fn with_forecast_only_who_is_idle_would_have_been_put_to_sleep_until_it_is_asked() {
    let sleepy = Platform { sleep_after_ms: Some(bounded(3_600_000)), ..child("sleepy") };
    let scaler = Scaler { forecast_only: true, ..Scaler::default() };
    let mut machine = Machine::begin(vec![sleepy, child("voice")], scaler);
    machine.weights[0] = 500;
    machine.background = 7_450;
    machine.passes(120);
    assert_eq!((machine.states(), machine.acts()), (vec!["ready"; 2], vec![(None, "trim"), (Some(0), "sleep")]));
    let (ticket, _) = machine.ask(0);
    machine.passes(60);
    assert_eq!(machine.acts().split_off(2), [(Some(1), "shed")], "it is there again, and has something to do");
    machine.answers(ticket, 0);
    machine.passes(60);
    machine.background = 7_550;
    machine.passes(60);
    assert_eq!(machine.acts().split_off(3), [(Some(0), "sleep")]);
    assert_eq!(machine.states(), ["ready"; 2]);
}

#[test]
fn what_is_shed_again_soon_after_its_return_waits_twice_as_long_each_time() {
    let mut machine = Machine::begin(vec![child("voice")], Scaler::default());
    machine.weights[0] = 10;
    let mut sheds = Vec::new();
    for second in 0..2 * 3_600_u64 {
        // Whenever it runs, something else takes all that there is.
        machine.background = if machine.runs[0].is_some() { 8_200 } else { 5_000 };
        let actions = machine.passes(1);
        if told(&actions).iter().any(|decision| decision.act == Act::Shed) {
            sheds.push(second);
        }
    }
    let waits: Vec<u64> = sheds.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!((4..=6).contains(&sheds.len()), "{sheds:?}");
    assert!(waits[0] < waits[1] && waits[1] < waits[2], "{waits:?}");
}

#[test]
fn a_spike_has_something_done_before_the_threshold_and_at_once() {
    let mut machine = Machine::begin(vec![child("files"), child("voice")], Scaler::default());
    machine.background = 6_500;
    machine.passes(100);
    machine.weights[0] = 800;
    let actions = machine.passes(2);
    assert!(actions.iter().any(|action| matches!(action, Action::Trim { .. })), "within two seconds");
    assert!(machine.states().contains(&"shed"), "and nobody waits to see what that wins: {:?}", machine.acts());
    let spikes = |decision: &Decision| decision.act == Act::Shed && decision.figures.ram_permille < 800;
    assert!(machine.conductor.decisions().any(spikes), "{:?}", machine.acts());
}

#[test]
fn samples_that_say_nothing_change_nothing_and_a_machine_that_slept_begins_its_calm_anew() {
    let mut machine = Machine::begin(vec![child("voice")], Scaler::default());
    machine.background = 8_500;
    machine.passes(120);
    assert_eq!(machine.states(), ["shed"]);
    machine.background = 3_000;
    machine.passes(280);
    for (ram_available, ram_total) in [(0, 0), (2, 1), (1, 1), (u64::MAX, 0)] {
        machine.now = machine.now + Duration::from_millis(1);
        machine.happens(Event::Measured { sample: Sample { ram_available, ram_total, ..Sample::default() } });
    }
    machine.now = machine.now + Duration::from_secs(7 * 3_600);
    machine.happens(Event::Elapsed);
    assert_eq!(machine.states(), ["shed"], "nobody looked for seven hours");
    machine.passes(400);
    assert_eq!(machine.states(), ["ready"]);
}

#[test]
fn a_platform_that_is_lazy_is_not_woken_where_it_does_not_fit() {
    let mut machine = Machine::begin(vec![Platform { start: Start::Lazy, ..child("voice") }], Scaler::default());
    machine.ask(0);
    machine.weights[0] = 3_000;
    machine.passes(5);
    assert_eq!(machine.states(), ["ready"]);
    machine.happens(Event::Exited { instance: Instance { slot: 0, run: 1 }, exit: Exit::Code(78) });
    machine.runs[0] = None;
    assert_eq!(machine.states(), ["failed"]);
    machine.background = 5_500;
    machine.passes(60);
    assert_eq!(machine.conductor.shortfall(0).map(|bytes| bytes / MEGABYTE), Some(499));
}

#[test]
fn what_was_learned_before_demi_began_counts_and_what_is_learned_is_to_be_kept() {
    let mut machine = Machine::begin(vec![Platform { start: Start::Lazy, ..child("voice") }], Scaler::default());
    machine.happens(Event::PeakRecalled { platform: 0, bytes: 4_000 * MEGABYTE, age: Duration::from_secs(86_400) });
    machine.background = 6_500;
    machine.passes(60);
    let (ticket, actions) = machine.ask(0);
    assert_eq!(refusal(&actions, ticket).map(|(refusal, _)| refusal), Some(Refusal::Shed), "half of it does not fit");
    machine.background = 5_500;
    machine.passes(60);
    let (ticket, _) = machine.ask(0);
    machine.weights[0] = 2_200;
    let is_kept = |action: &Action| matches!(action, Action::KeepPeak { .. });
    let actions = machine.passes(10);
    machine.answers(ticket, 0);
    assert_eq!(machine.states(), ["ready"]);
    let kept: Vec<&Action> = actions.iter().filter(|action| is_kept(action)).collect();
    assert_eq!(kept, [&Action::KeepPeak { platform: 0, bytes: 2_200 * MEGABYTE }], "it was a day ago");
    machine.weights[0] = 2_400;
    assert!(!machine.passes(20).iter().any(is_kept), "too soon");
    let actions = machine.happens(Event::Ordered(Order::Shutdown));
    assert!(actions.contains(&Action::KeepPeak { platform: 0, bytes: 2_400 * MEGABYTE }), "{actions:?}");
}

#[test]
fn a_scaler_that_is_off_does_nothing() {
    let scaler = Scaler { enabled: false, ..Scaler::default() };
    let mut machine = Machine::begin(three(), scaler);
    machine.background = 9_800;
    machine.passes(600);
    assert_eq!((machine.states(), machine.acts()), (vec!["ready"; 3], vec![]));
    assert!(machine.conductor.outlook().is_none());
}

#[test]
fn the_reason_for_which_it_is_shed_stays_with_it() {
    let mut machine = Machine::begin(vec![child("voice")], Scaler::default());
    machine.background = 8_100;
    let actions = machine.passes(60);
    let reason = Reason::RamShort { ram_permille: 820, at_percent: 80 };
    let is_it = |action: &Action| matches!(action, Action::Tell { news: News::State { now: State::Draining { then: Then::Shed }, reason: why, .. }, .. } if *why == reason);
    assert!(actions.iter().any(is_it), "{:?}", machine.acts());
    let told = machine.conductor.platforms().next().expect("it is there").instances[0].clone();
    assert_eq!(told.why, "RAM was at 82.0 %, and scaler.shed_percent is 80");
}

#[test]
fn at_the_start_those_with_the_highest_priority_come_first_and_the_rest_as_soon_as_it_fits() {
    let mut machine = Machine::begin_with(three(), Scaler::default(), &[1_500, 1_200, 1_000], 6_000);
    assert_eq!(machine.states(), ["ready", "shed", "shed"]);
    let missing: Vec<(Option<u32>, Act)> =
        machine.conductor.decisions().map(|decision| (decision.platform, decision.act)).collect();
    let refused = |megabytes: u64| Act::Refuse { missing: megabytes * MEGABYTE };
    assert_eq!(missing, [(Some(2), refused(500)), (Some(1), refused(700))], "beside what files is known to weigh");
    let why = machine.conductor.platforms().nth(1).expect("it is there").instances[0].why.clone();
    assert_eq!(why, "it was not started, for 700 MB are missing below scaler.shed_percent");
    assert_eq!(machine.next_of(1), "it starts when 1000 MB more are free", "with files at what it may come to");
    machine.passes(40);
    assert_eq!(machine.states(), ["ready", "ready", "shed"], "files weighs 100 MB after all");
    machine.passes(60);
    assert_eq!(machine.states(), ["ready"; 3]);
}

#[test]
fn at_the_start_a_lower_priority_that_fits_goes_on_where_a_higher_one_does_not() {
    let machine = Machine::begin_with(three(), Scaler::default(), &[3_000, 100, 1_000], 6_000);
    assert_eq!(machine.states(), ["shed", "ready", "ready"]);
}

#[test]
fn what_nobody_has_weighed_starts_and_so_does_what_is_needed_by_what_may_not_be_shed() {
    let kept = Platform { shed: Some(false), needs: vec!["needed".to_owned()], ..child("kept") };
    let needed = Platform { needs: vec!["base".to_owned()], ..child("needed") };
    let platforms = vec![kept, needed, child("base"), child("voice"), child("unknown")];
    let mut machine = Machine::begin_with(platforms.clone(), Scaler::default(), &[9_000, 9_000, 9_000, 10], 7_000);
    assert_eq!(machine.states(), ["ready", "ready", "ready", "shed", "ready"]);
    machine.crashes(2);
    assert_eq!(machine.states()[2], "ready", "nor is it when it ends");
    // And without a sample nobody knows whether anything fits.
    let mut machine = Machine::new(platforms, Vec::new(), Scaler::default());
    machine.happens(Event::PeakRecalled { platform: 3, bytes: 9_000 * MEGABYTE, age: Duration::ZERO });
    machine.happens(Event::Measured { sample: Sample::default() });
    machine.happens(Event::Began);
    assert_eq!(machine.states(), ["ready"; 5]);
}

#[test]
fn what_is_needed_counts_with_what_needs_it_and_comes_back_before_it() {
    let needs = |name: &str, need: &str| Platform { needs: vec![need.to_owned()], ..child(name) };
    let lazy = Platform { start: Start::Lazy, ..child("lazy-voice") };
    let platforms = vec![needs("files", "base-voice"), child("base-voice"), needs("discord", "lazy-voice"), lazy];
    let mut machine = Machine::begin_with(platforms.clone(), Scaler::default(), &[100, 3_000, 100, 3_000], 6_000);
    assert_eq!(machine.states(), ["shed", "shed", "shed", "asleep"], "nor is it woken for nothing");
    machine.background = 4_000;
    let mut seen = vec![machine.states()];
    for _ in 0..120 {
        machine.passes(1);
        if seen.last() != Some(&machine.states()) {
            seen.push(machine.states());
        }
    }
    let with_its_need = ["shed", "shed", "ready", "ready"];
    let then = [["shed", "shed", "shed", "asleep"], with_its_need, ["shed", "ready", "ready", "ready"], ["ready"; 4]];
    assert_eq!(seen, then);
    // What two need is there once.
    let platforms = vec![needs("files", "base-voice"), child("base-voice"), needs("discord", "base-voice")];
    let machine = Machine::begin_with(platforms, Scaler::default(), &[100, 1_500, 100], 6_000);
    assert_eq!(machine.states(), ["ready"; 3]);
}

#[test]
fn after_a_crash_it_is_started_again_only_if_it_still_fits() {
    let begin = || {
        let mut machine = Machine::begin(vec![child("files"), child("voice")], Scaler::default());
        machine.weights[slot_of(1) as usize] = 2_000;
        machine.background = 5_500;
        machine.passes(60);
        machine
    };
    let mut machine = begin();
    machine.crashes(1);
    assert_eq!(machine.states(), ["ready", "ready"], "what it had is free again, whatever the last sample says");
    let mut machine = begin();
    machine.background = 6_000;
    machine.happens(Event::Measured { sample: machine.sample() });
    let actions = machine.crashes(1);
    assert_eq!(machine.states(), ["ready", "shed"]);
    assert!(matches!(told(&actions)[..], [Decision { act: Act::Refuse { .. }, .. }]), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Start { .. })), "{actions:?}");
    let (ticket, actions) = machine.ask(1);
    assert_eq!(refusal(&actions, ticket).map(|(refusal, _)| refusal), Some(Refusal::Shed));
    machine.background = 4_000;
    machine.passes(700);
    assert_eq!(machine.states(), ["ready", "ready"]);
}

#[test]
fn a_restart_that_had_to_wait_is_looked_at_when_its_time_has_come() {
    let mut machine = Machine::begin(vec![child("voice")], Scaler::default());
    machine.weights[0] = 2_000;
    machine.background = 5_000;
    machine.passes(60);
    machine.crashes(0);
    machine.passes(2);
    machine.crashes(0);
    assert_eq!(machine.states(), ["backoff"]);
    machine.background = 8_500;
    machine.happens(Event::Measured { sample: machine.sample() });
    let actions = machine.passes(10);
    assert_eq!(machine.states(), ["shed"]);
    assert!(matches!(told(&actions)[..], [Decision { act: Act::Refuse { .. }, is_done: true, .. }]), "{actions:?}");
    machine.background = 6_500;
    // Whoever starts it by hand has it started, and it may crash as it likes for a while.
    machine.happens(Event::Ordered(Order::Start { platform: 0 }));
    machine.passes(2);
    machine.crashes(0);
    assert_eq!(machine.states(), ["ready"]);
}

#[test]
fn with_forecast_only_what_does_not_fit_is_started_and_told_once() {
    let scaler = Scaler { forecast_only: true, ..Scaler::default() };
    let mut machine = Machine::begin_with(three(), scaler, &[1_500, 1_200, 1_000], 6_000);
    assert_eq!(machine.states(), ["ready"; 3]);
    assert_eq!(machine.acts(), [(Some(2), "refuse"), (Some(1), "refuse")]);
    machine.crashes(2);
    machine.passes(60);
    assert_eq!((machine.states(), machine.acts().len()), (vec!["ready"; 3], 2));
    assert!(machine.conductor.decisions().all(|decision| !decision.is_done));
}

#[test]
fn where_ram_rises_so_fast_that_it_would_run_out_meanwhile_a_trim_is_not_waited_for() {
    for (per_second, waits) in [(20, true), (200, false)] {
        let mut machine = Machine::begin(three(), Scaler::default());
        machine.background = 7_000;
        machine.passes(100);
        let mut shed_after = None;
        let mut trimmed_at = None;
        for second in 1..60 {
            machine.background += per_second;
            machine.passes(1);
            let acts = machine.acts();
            let has = |act: &str| acts.iter().any(|(_, name)| *name == act);
            trimmed_at = trimmed_at.or(has("trim").then_some(second));
            shed_after = shed_after.or(has("shed").then_some(second));
        }
        let (trimmed_at, shed_after) = trimmed_at.zip(shed_after).expect("both were done");
        assert_eq!(shed_after - trimmed_at >= 10, waits, "{per_second} MB/s: {trimmed_at} s and {shed_after} s");
    }
}

#[test]
fn ram_that_moves_is_measured_within_two_seconds_and_ram_that_does_not_is_left_alone() {
    let mut machine = Machine::begin(three(), Scaler::default());
    machine.passes(70);
    let measures = |actions: &[Action]| actions.iter().filter(|action| **action == Action::Measure).count();
    machine.background = 3_150;
    assert_eq!(measures(&machine.passes(20)), 0, "a point and a half");
    // Something that is no child of Demi takes it.
    machine.background = 6_500;
    assert_eq!(measures(&machine.passes(2)), 1);
    assert_eq!(measures(&machine.passes(20)), 0, "and then it stays as it is");
    for megabytes in (6_500..7_300).step_by(100) {
        machine.background = megabytes;
        assert!(measures(&machine.passes(2)) <= 1);
    }
    machine.background = 9_600;
    machine.passes(2);
    assert!(machine.acts().iter().any(|(_, act)| *act == "kill"), "{:?}", machine.acts());
}

#[test]
fn what_a_child_takes_fast_is_measured_at_once_where_a_total_is_given_too() {
    let mut machine = Machine::begin(three(), Scaler::default());
    machine.passes(70);
    machine.weights[slot_of(0) as usize] = 350;
    let actions = machine.passes(2);
    assert!(actions.contains(&Action::Measure), "two points and a half");
}

#[test]
fn what_does_not_fit_lets_those_pass_that_do() {
    let mut machine = Machine::begin(vec![child("files"), child("voice")], Scaler::default());
    machine.weights[slot_of(0) as usize] = 3_000;
    machine.background = 6_000;
    machine.passes(300);
    assert_eq!(machine.states(), ["shed", "shed"], "9,100 of 10,000");
    machine.passes(600);
    assert_eq!(machine.states(), ["shed", "shed"], "files was shed last, is worth more, and has no room");
    machine.passes(400);
    assert_eq!(machine.states(), ["shed", "ready"], "ten minutes are long enough to wait for it");
    assert!(machine.next_of(0).contains("MB more are free"), "{}", machine.next_of(0));
    machine.background = 3_000;
    machine.passes(600);
    assert_eq!(machine.states(), ["ready", "ready"]);
}

#[test]
fn of_two_with_the_same_priority_the_one_that_is_worth_least_for_what_it_weighs_goes() {
    for (value_of_heavy, goes) in [(100, "heavy"), (299, "heavy"), (301, "light")] {
        let heavy = Platform { value: Some(bounded(value_of_heavy)), ..child("heavy") };
        let mut machine = Machine::begin(vec![heavy, child("light")], Scaler::default());
        machine.weights[slot_of(0) as usize] = 300;
        machine.passes(10);
        machine.background = 7_650;
        machine.passes(60);
        let shed = machine.conductor.decisions().find(|decision| decision.act == Act::Shed).expect("one is shed");
        assert_eq!(["heavy", "light"][shed.platform.expect("it is about one") as usize], goes, "{value_of_heavy}");
    }
}

#[test]
fn a_sample_s_date_lets_seasons_be_forecast_and_a_clock_that_jumps_does_no_harm() {
    let scaler = Scaler { history_hours: bounded(1), ..Scaler::default() };
    let mut machine = Machine::begin(three(), scaler);
    let seasons = |machine: &Machine| {
        machine.conductor.check();
        let outlook = machine.conductor.outlook().expect("it is on");
        outlook.forecast_of(Model::OlsSeasons).map(|forecast| forecast.ram_percent.round())
    };
    machine.passes(1_800);
    assert_eq!(seasons(&machine), None, "nobody knows the date");
    let now = 1_796_100_000;
    let day = 86_400;
    for date_s in [now, now - 3 * day, now + 4_000 * day, now, 0, u64::MAX / 2, now + 600, now] {
        machine.date_s = Some(date_s);
        machine.passes(31);
        // What is left of the rows explains what it can.
        seasons(&machine);
        machine.passes(1_800);
        let known = if date_s > day << 30 { None } else { Some(33.0) };
        assert_eq!(seasons(&machine), known, "{date_s}");
    }
    assert_eq!((machine.states(), machine.acts()), (vec!["ready"; 3], vec![]));
}

/// `files` grows, and of all it would be shed last.
fn grows(per_second: u64, scaler: Scaler) -> Machine {
    let files = Platform { priority: Some(bounded(900)), ..child("files") };
    let mut machine = Machine::begin(vec![files, child("discord"), child("voice")], scaler);
    machine.background = 6_000;
    // So long that nobody remembers how it was before.
    machine.passes(5_400);
    while !machine.states().contains(&"shed") {
        machine.weights[slot_of(0) as usize] += per_second;
        machine.passes(1);
        assert!(machine.now < Time::from_millis(14_400_000), "nothing is shed: {:?}", machine.acts());
    }
    machine
}

#[test]
fn what_would_alone_use_up_what_is_left_goes_first_and_comes_back_small() {
    let mut machine = grows(20, Scaler::default());
    assert_eq!(machine.states(), ["shed", "ready", "ready"]);
    machine.weights[slot_of(0) as usize] = 100;
    machine.passes(3_600);
    assert_eq!(machine.states(), ["ready"; 3], "what it leaked is not held against it for long");
    let no_forecasts = Scaler { use_forecasts: false, ..Scaler::default() };
    assert_eq!(
        grows(20, no_forecasts).states(),
        ["ready", "ready", "shed"],
        "without forecasts priority decides alone"
    );
}

#[test]
fn what_is_shed_for_a_forecast_is_what_makes_it_come_true() {
    let machine = grows(1, Scaler { champion: crate::config::Model::Holt, may_promote: false, ..Scaler::default() });
    let shed = machine.conductor.decisions().find(|decision| decision.act == Act::Shed).expect("one is shed");
    assert_eq!(shed.platform, Some(0));
    assert!(shed.figures.ram_permille < 800, "{shed:?}");
}

#[test]
fn an_edition_that_did_not_prove_itself_and_is_put_down_leaves_its_slot_to_the_next() {
    let slow_to_end = Platform { stop_grace_ms: bounded(60_000), ..child("voice") };
    let mut machine = Machine::begin(vec![slow_to_end.clone()], Scaler::default());
    (machine.is_deaf, machine.ill) = (true, Some(1));
    let terms = crate::Terms::of(&slow_to_end);
    machine.happens(Event::Ordered(Order::Reload { platform: 0, edition: 1, terms, is_by_hand: true }));
    machine.passes(30);
    assert_eq!(machine.runs.iter().flatten().count(), 2, "the new one does not end: {:?}", machine.states());
    machine.background = 9_600;
    machine.passes(3);
    assert_eq!((machine.runs.iter().flatten().count(), machine.states()), (0, vec!["shed"]));
    (machine.is_deaf, machine.ill, machine.background) = (false, None, 3_000);
    machine.passes(600);
    assert_eq!(machine.states(), ["ready"]);
}

#[test]
fn what_was_held_back_starts_as_soon_as_it_fits_though_ram_is_not_calm() {
    let mut machine = Machine::begin(vec![child("files"), child("voice")], Scaler::default());
    machine.weights[slot_of(1) as usize] = 500;
    machine.background = 6_800;
    machine.passes(3_600);
    machine.weights[slot_of(1) as usize] = 1_000;
    machine.passes(5);
    machine.weights[slot_of(1) as usize] = 500;
    machine.passes(20);
    machine.background = 7_100;
    machine.passes(40);
    machine.crashes(1);
    assert_eq!(machine.states(), ["ready", "shed"], "7,200 and nearly 1,000");
    machine.passes(3_600);
    assert_eq!(machine.states(), ["ready"; 2], "7,200 and hardly more than 500: {}", machine.next_of(1));
}

#[test]
fn what_leaked_slowly_is_not_refused_for_ever() {
    let lazy = Platform { start: Start::Lazy, sleep_after_ms: Some(bounded(120_000)), ..child("voice") };
    let mut machine = Machine::begin(vec![lazy], Scaler::default());
    machine.background = 4_500;
    for minute in 0..600 {
        let (ticket, _) = machine.ask(0);
        machine.passes(5);
        if machine.states()[0] == "ready" {
            machine.answers(ticket, 0);
        }
        machine.weights[0] = 100 + minute * 4;
        machine.passes(55);
    }
    machine.passes(300);
    assert_eq!(machine.states(), ["asleep"]);
    (machine.weights[0], machine.background) = (100, 6_000);
    machine.passes(2 * 86_400);
    let (ticket, actions) = machine.ask(0);
    assert_eq!(refusal(&actions, ticket), None, "what nobody has seen for two days counts for a quarter");
}

#[test]
fn one_that_loads_to_what_it_usually_weighs_is_no_spike_and_no_culprit() {
    let mut machine = Machine::begin(vec![child("files"), child("voice")], Scaler::default());
    (machine.weights[0], machine.weights[slot_of(1) as usize]) = (900, 1_400);
    machine.background = 5_000;
    machine.passes(3_600);
    machine.background = 6_000;
    machine.passes(120);
    assert_eq!(machine.states(), ["ready", "shed"]);
    machine.background = 5_450;
    let (mut was, mut age) = (None, 0);
    for _ in 0..4 * 3_600 {
        let run = machine.runs[slot_of(1) as usize];
        age = if run == was { age + 1 } else { 0 };
        was = run;
        machine.weights[slot_of(1) as usize] = (50 + age * 100).min(1_400);
        machine.passes(1);
    }
    let sheds = machine.acts().iter().filter(|(_, act)| *act == "shed").count();
    assert_eq!((sheds, machine.states()), (1, vec!["ready"; 2]), "{:?}", machine.acts());
}

#[test]
fn an_unequal_pair_is_not_the_culprit_of_what_another_takes() {
    let pair = Platform {
        priority: Some(bounded(900)),
        command: vec!["plugin".to_owned()],
        ..Platform::new("pair", Host::Process(2))
    };
    let mut machine = Machine::begin(vec![pair, child("files"), child("voice")], Scaler::default());
    (machine.weights[0], machine.weights[1], machine.background) = (50, 600, 6_200);
    machine.passes(3_600);
    let last = machine.weights.len() - 2;
    machine.weights[last] = 1_000;
    machine.passes(5);
    let sheds: Vec<Option<u32>> =
        machine.acts().into_iter().filter(|(_, act)| *act == "shed").map(|(platform, _)| platform).collect();
    assert_eq!(sheds, [Some(2)]);
}

#[test]
fn a_spike_is_over_when_what_made_it_is_gone() {
    let threads =
        Platform { shed: Some(true), priority: Some(bounded(1_000)), ..Platform::new("bot", Host::Threads(1)) };
    let mut machine = Machine::begin(vec![child("files"), threads], Scaler::default());
    machine.background = 6_700;
    machine.passes(100);
    machine.weights[0] = 1_150;
    machine.passes(30);
    assert_eq!(machine.states()[0], "shed");
    machine.weights[0] = 100;
    let measures = machine.passes(3_600).iter().filter(|action| **action == Action::Measure).count();
    assert!(measures < 200, "{measures} in an hour");
    machine.background = 7_000;
    machine.passes(60);
    assert_eq!(machine.states()[1], "ready");
}

#[test]
fn in_an_emergency_of_something_else_priority_decides() {
    let prized = Platform { priority: Some(bounded(1_000)), ..child("prized") };
    let mut machine = Machine::begin(vec![prized, child("stub")], Scaler::default());
    (machine.weights[slot_of(1) as usize], machine.background) = (1_500, 5_000);
    machine.passes(3_600);
    for second in 0..100 {
        machine.weights[0] += 2;
        machine.background = if second < 90 { 5_000 } else { 8_000 };
        machine.passes(1);
    }
    assert_eq!(machine.states(), ["ready", "shed"]);
}

#[test]
fn a_heap_that_goes_to_and_fro_is_not_shed_for_what_everything_else_takes() {
    let heap = Platform { priority: Some(bounded(1_000)), ..child("heap") };
    let mut machine = Machine::begin(vec![heap, child("stub")], Scaler::default());
    (machine.weights[slot_of(1) as usize], machine.background) = (500, 5_000);
    for second in 0..7_200 {
        machine.weights[0] = 400 + second % 180 * 3;
        machine.background = 5_000 + second.saturating_sub(4_000) * 3 / 2;
        machine.passes(1);
        if machine.states().contains(&"shed") {
            break;
        }
    }
    assert_eq!(machine.states(), ["ready", "shed"]);
}

#[test]
fn what_two_need_is_counted_once() {
    let needs = |name: &str, of: &[&str]| {
        let needs = of.iter().map(|of| (*of).to_owned()).collect();
        Platform { needs, start: Start::Lazy, ..child(name) }
    };
    let diamond = vec![needs("base", &[]), needs("l", &["base"]), needs("r", &["base"]), needs("top", &["l", "r"])];
    let mut machine = Machine::begin(diamond, Scaler::default());
    machine.happens(Event::PeakRecalled { platform: 0, bytes: 1_000 * MEGABYTE, age: Duration::ZERO });
    machine.background = 6_500;
    machine.passes(60);
    assert_eq!(machine.conductor.shortfall(3), None);
}

#[test]
fn a_spike_that_nobody_may_be_shed_for_costs_nobody_else_his_place() {
    let kept = Platform { shed: Some(false), ..child("voice") };
    let mut machine = Machine::begin(vec![kept, child("a"), child("b")], Scaler::default());
    machine.background = 6_300;
    machine.passes(100);
    machine.weights[0] = 900;
    let actions = machine.passes(60);
    assert!(actions.iter().any(|action| matches!(action, Action::Trim { .. })), "they are asked");
    assert_eq!((machine.states(), machine.acts().last()), (vec!["ready"; 3], Some(&(None, "won"))));
}

#[test]
fn nobody_is_expected_to_weigh_more_than_he_may() {
    let limits = crate::config::Limits { memory_max_mb: Some(bounded(1_000)), ..Default::default() };
    let mut machine = Machine::begin(vec![Platform { limits, ..child("voice") }], Scaler::default());
    machine.weights[0] = 2_000;
    machine.passes(3);
    let peak = |machine: &Machine| machine.conductor.platforms().next().expect("it is there").peak_bytes / MEGABYTE;
    assert_eq!(peak(&machine), 1_000, "it was killed above that");
}
