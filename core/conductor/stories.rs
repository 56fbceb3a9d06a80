//! What becomes of a platform over its life, each told as a short story. The world (`core/sim`) tells the long ones.

use std::time::Duration;

use crate::config::{Balance, Bounded, Config, Host, Platform, Start};
use crate::lifecycle::{Reason, State};
use crate::{
    Action, Answer, Ask, Conductor, Event, Exit, Instance, News, Order, Outcome, Refusal, Report, RouteId, Signal,
    Terms, Ticket, Time, Verdict, Weight,
};

struct Story {
    conductor: Conductor,
    platforms: Vec<Platform>,
    now: Time,
    tickets: u32,
}

fn bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(number: u64) -> Bounded<LOW, HIGH, DEFAULT> {
    Bounded::new(number).expect("the number is in its range")
}

fn process(name: &str, start: Start) -> Platform {
    Platform { start, ..Platform::new(name, Host::Process(1)) }
}

const fn run(slot: u32, run: u32) -> Instance {
    Instance { slot, run }
}

impl Story {
    fn begin(platforms: Vec<Platform>) -> Story {
        let config = Config { platforms: platforms.clone(), ..Config::default() };
        let mut story = Story { conductor: Conductor::new(&config, 1), platforms, now: Time::ZERO, tickets: 0 };
        story.happens(Event::Began);
        story
    }

    fn happens(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.conductor.handle(self.now, event, &mut out);
        self.conductor.check();
        out
    }

    /// Time passes, timer by timer, with every probe answered and every child that is asked to end gone at once.
    fn passes(&mut self, span: Duration) -> Vec<Action> {
        let until = self.now + span;
        let mut all = Vec::new();
        while let Some((at, _)) = self.conductor.deadline().filter(|(at, _)| *at <= until) {
            self.now = at;
            let actions = self.happens(Event::Elapsed);
            all.extend(self.follow(actions));
        }
        self.now = until;
        all
    }

    /// Does what was ordered: probes pass, and what is told to end ends. Returns that and all that follows.
    fn follow(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let mut all = Vec::new();
        for action in actions {
            all.push(action);
            let more = match action {
                Action::Probe { instance } => self.happens(Event::Probed { instance, verdict: Verdict::Pass }),
                Action::Signal { instance, .. } => self.happens(Event::Exited { instance, exit: Exit::Code(0) }),
                _ => continue,
            };
            all.extend(self.follow(more));
        }
        all
    }

    fn does(&mut self, event: Event) -> Vec<Action> {
        let actions = self.happens(event);
        self.follow(actions)
    }

    fn ask(&mut self, platform: &str) -> (Ticket, Vec<Action>) {
        self.tickets += 1;
        let ticket = Ticket::new(self.tickets, 0);
        let route = self.conductor.router().to(platform);
        assert!(route.is_some(), "every platform has a rule of its own");
        (ticket, self.happens(Event::Asked { ticket, route, ask: Ask::default() }))
    }

    fn reload(&mut self, platform: u32, edition: u32) -> Vec<Action> {
        let terms = Terms::of(&self.platforms[platform as usize]);
        self.does(Event::Ordered(Order::Reload { platform, edition, terms, is_by_hand: true }))
    }

    fn states(&self) -> Vec<&'static str> {
        let platforms = self.conductor.platforms();
        platforms.flat_map(|platform| platform.instances.into_iter().map(|instance| instance.state)).collect()
    }
}

fn started(actions: &[Action]) -> Vec<Instance> {
    let start = |action: &Action| match action {
        Action::Start { instance, .. } => Some(*instance),
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

fn dispatched(actions: &[Action]) -> Vec<(Ticket, Instance)> {
    let dispatch = |action: &Action| match action {
        Action::Dispatch { ticket, instance } => Some((*ticket, *instance)),
        _ => None,
    };
    actions.iter().filter_map(dispatch).collect()
}

fn reasons(actions: &[Action]) -> Vec<(State, Reason)> {
    let reason = |action: &Action| match action {
        Action::Tell { news: News::State { now, reason, .. }, .. } => Some((*now, *reason)),
        _ => None,
    };
    actions.iter().filter_map(reason).collect()
}

#[test]
fn the_first_request_starts_a_lazy_platform_and_what_it_needs_and_waits() {
    let needy = Platform { needs: vec!["need".to_owned()], ..process("needy", Start::Lazy) };
    let mut story = Story::begin(vec![needy, process("need", Start::Lazy)]);
    assert_eq!(story.states(), ["asleep", "asleep"]);
    assert!(story.conductor.is_ready(), "whoever asks is served");
    let (ticket, actions) = story.ask("needy");
    assert_eq!(started(&actions), [run(2, 1)], "what it needs comes first");
    assert_eq!(started(&story.does(Event::Started { instance: run(2, 1) })), [run(0, 1)]);
    let actions = story.does(Event::Started { instance: run(0, 1) });
    assert_eq!(dispatched(&actions), [(ticket, run(0, 1))]);
}

#[test]
fn whoever_waits_for_a_start_waits_in_a_bounded_queue_and_within_his_time() {
    let platform =
        Platform { queue_max: bounded(1), request_timeout_ms: Some(bounded(700)), ..process("slow", Start::Lazy) };
    let mut story = Story::begin(vec![platform]);
    let (first, _) = story.ask("slow");
    let (second, actions) = story.ask("slow");
    let is_refused = |ticket, refusal| move |action: &Action| matches!(action, Action::Answer { ticket: of, answer: Answer::Refused(why, _) } if *of == ticket && *why == refusal);
    assert!(actions.iter().any(is_refused(second, Refusal::QueueFull)), "{actions:?}");
    let actions = story.passes(Duration::from_millis(700));
    assert!(actions.iter().any(is_refused(first, Refusal::QueueTimeout)), "{actions:?}");
}

#[test]
fn an_idle_platform_sleeps_before_what_it_needs_and_wakes_by_a_request() {
    let sleep_after_ms = Some(bounded(10_000));
    let needy = Platform { needs: vec!["need".to_owned()], sleep_after_ms, ..process("needy", Start::Eager) };
    let need = Platform { sleep_after_ms, ..process("need", Start::Eager) };
    let mut story = Story::begin(vec![needy, need]);
    story.does(Event::Started { instance: run(2, 1) });
    story.does(Event::Started { instance: run(0, 1) });
    story.passes(Duration::from_secs(9));
    assert_eq!(story.states(), ["ready", "ready"]);
    let (ticket, _) = story.ask("needy");
    story.does(Event::Answered { ticket, instance: run(0, 1), outcome: Outcome::Replied });
    story.passes(Duration::from_secs(9));
    assert_eq!(story.states(), ["ready", "ready"], "it was asked nine seconds ago");
    story.passes(Duration::from_secs(12));
    assert_eq!(story.states(), ["asleep", "asleep"]);
    let (_, actions) = story.ask("needy");
    assert_eq!(started(&actions), [run(2, 2)]);
}

#[test]
fn what_is_stopped_by_hand_stays_so_and_those_that_need_it_stop_before_it_and_wait() {
    let needy = Platform { needs: vec!["need".to_owned()], ..process("needy", Start::Eager) };
    let mut story = Story::begin(vec![needy, process("need", Start::Eager)]);
    story.does(Event::Started { instance: run(2, 1) });
    story.does(Event::Started { instance: run(0, 1) });
    let actions = story.does(Event::Ordered(Order::Stop { platform: 1 }));
    let ended: Vec<u32> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Signal { instance, signal: Signal::Shutdown } => Some(instance.slot),
            _ => None,
        })
        .collect();
    assert_eq!(ended, [0, 2]);
    assert_eq!(story.states(), ["waiting", "stopped"]);
    assert_eq!(started(&story.passes(Duration::from_secs(3600))), []);
    let actions = story.does(Event::Ordered(Order::Start { platform: 1 }));
    assert_eq!(started(&actions), [run(2, 2)]);
    assert_eq!(started(&story.does(Event::Started { instance: run(2, 2) })), [run(0, 2)]);
}

#[test]
fn those_that_need_it_are_restarted_after_it_if_that_is_wanted() {
    for is_wanted in [false, true] {
        let needy = Platform { needs: vec!["need".to_owned()], ..process("needy", Start::Eager) };
        let need = Platform { restart_dependents: is_wanted, ..process("need", Start::Eager) };
        let mut story = Story::begin(vec![needy, need]);
        story.does(Event::Started { instance: run(2, 1) });
        story.does(Event::Started { instance: run(0, 1) });
        let actions = story.does(Event::Exited { instance: run(2, 1), exit: Exit::Signal(11) });
        assert_eq!(started(&actions), [run(2, 2)]);
        assert_eq!(story.states(), if is_wanted { ["waiting", "starting"] } else { ["ready", "starting"] });
        let actions = story.does(Event::Started { instance: run(2, 2) });
        assert_eq!(started(&actions), if is_wanted { vec![run(0, 2)] } else { vec![] });
    }
}

#[test]
fn a_reload_replaces_the_old_edition_once_the_new_one_has_passed_two_health_checks() {
    let mut story = Story::begin(vec![process("one", Start::Eager)]);
    story.does(Event::Started { instance: run(0, 1) });
    let (held, _) = story.ask("one");
    assert_eq!(started(&story.reload(0, 1)), [run(1, 1)]);
    story.happens(Event::Started { instance: run(1, 1) });
    story.happens(Event::Probed { instance: run(1, 1), verdict: Verdict::Pass });
    let (early, actions) = story.ask("one");
    assert_eq!(dispatched(&actions), [(early, run(0, 1))], "one pass is not enough");
    let actions = story.passes(Duration::from_millis(150));
    assert!(reasons(&actions).iter().any(|(_, reason)| *reason == Reason::Replaced), "{actions:?}");
    let (late, actions) = story.ask("one");
    assert_eq!(dispatched(&actions), [(late, run(1, 1))]);
    assert_eq!(story.states(), ["draining", "ready"], "what the old one holds, it may finish");
    story.does(Event::Answered { ticket: held, instance: run(0, 1), outcome: Outcome::Replied });
    let actions = story.does(Event::Answered { ticket: early, instance: run(0, 1), outcome: Outcome::Replied });
    assert!(actions.contains(&Action::Adopt { platform: 0, edition: 1 }), "{actions:?}");
    assert_eq!(story.states(), ["ready"]);
}

#[test]
fn a_new_edition_that_ends_is_late_or_ill_leaves_the_old_one_where_it_is() {
    let broken = [
        Event::Exited { instance: run(1, 1), exit: Exit::Code(1) },
        Event::Probed { instance: run(1, 1), verdict: Verdict::Fail },
        Event::Weighed { instance: run(1, 1), weight: Weight { processes: 1000, ..Weight::default() } },
        Event::Elapsed,
    ];
    for event in broken {
        let mut story = Story::begin(vec![process("one", Start::Eager)]);
        story.does(Event::Started { instance: run(0, 1) });
        story.reload(0, 1);
        if let Event::Elapsed = event {
            story.passes(Duration::from_secs(91));
        } else {
            story.happens(Event::Started { instance: run(1, 1) });
            let actions = story.does(event);
            let is_failed = |action: &Action| matches!(action, Action::Tell { news: News::SwapFailed { .. }, .. });
            assert!(actions.iter().any(is_failed), "{actions:?}");
            assert!(actions.contains(&Action::Reject { platform: 0, edition: 1 }), "{actions:?}");
        }
        assert_eq!(story.states(), ["ready"], "after {event:?}");
        let (ticket, actions) = story.ask("one");
        assert_eq!(dispatched(&actions), [(ticket, run(0, 1))]);
        // And the next one may try.
        assert_eq!(started(&story.reload(0, 2)), [run(1, 2)]);
    }
}

#[test]
fn a_reload_mends_what_its_configuration_kept_from_running() {
    let mut story = Story::begin(vec![process("one", Start::Eager)]);
    story.does(Event::Exited { instance: run(0, 1), exit: Exit::Code(78) });
    assert_eq!(story.states(), ["failed"]);
    assert_eq!(started(&story.passes(Duration::from_secs(86_400))), []);
    let actions = story.reload(0, 1);
    assert!(actions.contains(&Action::Start { instance: run(0, 2), edition: 1 }), "{actions:?}");
}

#[test]
fn the_budget_of_a_day_keeps_a_twentieth_for_people_and_comes_back_with_the_next_day() {
    let platform = Platform { start_budget_per_day: bounded(20), ..process("one", Start::Eager) };
    let mut story = Story::begin(vec![platform]);
    let mut runs = 1;
    let mut told = Vec::new();
    while story.states() != ["failed"] {
        assert!(runs <= 20, "it is started beyond its budget");
        told.extend(story.does(Event::Exited { instance: run(0, runs), exit: Exit::Code(1) }));
        told.extend(story.passes(Duration::from_secs(400)));
        runs += started(&told).len() as u32 - (runs - 1);
    }
    assert_eq!(runs, 19, "nineteen of twenty by itself");
    let low = Action::Tell { platform: 0, instance: None, news: News::BudgetLow { starts: 16, budget: 20 } };
    assert_eq!(told.iter().filter(|action| **action == low).count(), 1, "a warning at four fifths");
    let by_hand = Event::Ordered(Order::Start { platform: 0 });
    assert_eq!(started(&story.does(by_hand)), [run(0, 20)]);
    story.does(Event::Exited { instance: run(0, 20), exit: Exit::Code(1) });
    assert_eq!(started(&story.does(by_hand)), [], "not even for people");
    assert_eq!(started(&story.does(Event::DayBegan)), [run(0, 21)]);
}

#[test]
fn what_the_store_remembers_counts_against_the_budget() {
    let platform = Platform { start_budget_per_day: bounded(20), ..process("one", Start::Eager) };
    let config = Config { platforms: vec![platform.clone()], ..Config::default() };
    let mut story =
        Story { conductor: Conductor::new(&config, 1), platforms: vec![platform], now: Time::ZERO, tickets: 0 };
    story.happens(Event::Recalled { platform: 0, starts: 19 });
    assert_eq!(started(&story.happens(Event::Began)), []);
    assert_eq!(story.states(), ["failed"]);
}

#[test]
fn a_slow_starter_that_says_so_has_more_time_but_not_for_ever() {
    let platform = Platform { start_timeout_ms: bounded(1_000), ..process("slow", Start::Eager) };
    let mut story = Story::begin(vec![platform]);
    let mut pleas = 0;
    while story.states() == ["starting"] && story.conductor.platforms().all(|platform| platform.instances[0].run == 1) {
        story.does(Event::Extended { instance: run(0, 1), by: Duration::from_secs(3600) });
        story.passes(Duration::from_millis(900));
        pleas += 1;
        assert!(pleas < 100, "it starts for ever");
    }
    assert_eq!(pleas, 13, "eleven times its timeout, nine tenths at a time");
}

#[test]
fn an_isolated_platform_runs_and_gets_no_requests_until_it_is_started_by_hand() {
    let mut story = Story::begin(vec![process("one", Start::Eager)]);
    story.does(Event::Started { instance: run(0, 1) });
    story.does(Event::Ordered(Order::Isolate { platform: 0 }));
    let (ticket, actions) = story.ask("one");
    let is_refused = |action: &Action| matches!(action, Action::Answer { ticket: of, answer: Answer::Refused(Refusal::Isolated, _) } if *of == ticket);
    assert!(actions.iter().any(is_refused), "{actions:?}");
    assert_eq!(story.states(), ["ready"]);
    story.does(Event::Ordered(Order::Start { platform: 0 }));
    let (ticket, actions) = story.ask("one");
    assert_eq!(dispatched(&actions), [(ticket, run(0, 1))]);
}

#[test]
fn a_tree_above_its_soft_limit_is_asked_to_trim_once_and_above_the_hard_one_killed() {
    let mut platform = process("heavy", Start::Eager);
    platform.limits.memory_soft_mb = Some(bounded(50));
    platform.limits.memory_max_mb = Some(bounded(100));
    let mut story = Story::begin(vec![platform]);
    story.does(Event::Started { instance: run(0, 1) });
    let weigh = |megabytes: u64| {
        let weight = Weight { rss_bytes: megabytes * 1_000_000, pss_bytes: None, processes: 1, descriptors: 8 };
        Event::Weighed { instance: run(0, 1), weight }
    };
    let trim = Action::Trim { instance: run(0, 1) };
    let trims: Vec<bool> = [40, 60, 61, 40, 60].map(|size| story.does(weigh(size)).contains(&trim)).to_vec();
    assert_eq!(trims, [false, true, false, false, true]);
    let actions = story.happens(weigh(101));
    assert!(actions.contains(&Action::Signal { instance: run(0, 1), signal: Signal::Kill }), "{actions:?}");
    let limit = Reason::MemoryLimit { used: 101_000_000, max: 100_000_000 };
    assert_eq!(reasons(&actions).last().map(|(_, reason)| *reason), Some(limit));
}

#[test]
fn a_platform_that_is_found_later_is_asked_by_its_name() {
    let mut story = Story::begin(vec![process("one", Start::Eager)]);
    assert_eq!(story.conductor.router().to("two"), None);
    let found = Platform { needs: vec!["one".to_owned()], ..process("two", Start::Lazy) };
    assert_eq!(story.conductor.add(&found), 1);
    story.does(Event::Started { instance: run(0, 1) });
    let (_, actions) = story.ask("two");
    assert_eq!(started(&actions), [run(2, 1)]);
    assert_ne!(story.conductor.router().to("one"), Some(RouteId(0)), "its own rule is none of the configured ones");
}

#[test]
fn a_reload_ends_when_the_new_edition_may_not_be_started() {
    let platform = Platform { start_budget_per_day: bounded(3), ..process("one", Start::Eager) };
    let mut story = Story::begin(vec![platform]);
    story.does(Event::Started { instance: run(0, 1) });
    let rejected = |edition| Action::Reject { platform: 0, edition };
    assert!(!story.reload(0, 1).contains(&rejected(1)));
    story.does(Event::Exited { instance: run(1, 1), exit: Exit::Code(1) });
    assert!(story.reload(0, 2).contains(&rejected(2)), "the last of three starts is for people");
    assert_eq!(story.states(), ["ready"]);
    assert!(story.conductor.platforms().all(|platform| !platform.is_reloading));
}

#[test]
fn a_reload_does_not_wait_for_what_the_new_edition_needs() {
    let needy = Platform { needs: vec!["need".to_owned()], ..process("needy", Start::Eager) };
    let mut story = Story::begin(vec![needy, process("need", Start::Eager)]);
    story.does(Event::Started { instance: run(2, 1) });
    story.does(Event::Started { instance: run(0, 1) });
    story.does(Event::Exited { instance: run(2, 1), exit: Exit::Code(78) });
    assert!(story.reload(0, 1).contains(&Action::Reject { platform: 0, edition: 1 }));
    assert_eq!(story.states(), ["ready", "failed"]);
}

#[test]
fn a_new_edition_begins_under_its_own_terms() {
    let mut platform = process("one", Start::Eager);
    platform.limits.memory_max_mb = Some(bounded(50));
    platform.start_timeout_ms = bounded(1_000);
    let mut story = Story::begin(vec![platform]);
    story.does(Event::Started { instance: run(0, 1) });
    story.platforms[0].limits.memory_max_mb = Some(bounded(100));
    story.platforms[0].start_timeout_ms = bounded(5_000);
    story.reload(0, 1);
    story.passes(Duration::from_secs(4));
    story.happens(Event::Started { instance: run(1, 1) });
    let weight = Weight { rss_bytes: 80_000_000, pss_bytes: None, processes: 1, descriptors: 8 };
    story.does(Event::Weighed { instance: run(1, 1), weight });
    story.does(Event::Probed { instance: run(1, 1), verdict: Verdict::Pass });
    let actions = story.passes(Duration::from_millis(150));
    assert!(actions.contains(&Action::Adopt { platform: 0, edition: 1 }), "{actions:?}");
}

#[test]
fn what_has_failed_halfway_is_taken_back_everywhere() {
    let mut story = Story::begin(vec![Platform { host: Host::Process(2), ..process("two", Start::Eager) }]);
    story.does(Event::Started { instance: run(0, 1) });
    story.does(Event::Started { instance: run(1, 1) });
    story.reload(0, 1);
    story.happens(Event::Started { instance: run(2, 1) });
    story.happens(Event::Probed { instance: run(2, 1), verdict: Verdict::Pass });
    let actions = story.passes(Duration::from_millis(150));
    assert_eq!(started(&actions), [run(0, 2)], "the first is replaced, its slot is for the next");
    // Which ends, and with it the reload: the one that was replaced is replaced again.
    let actions = story.does(Event::Exited { instance: run(0, 2), exit: Exit::Code(1) });
    assert!(actions.contains(&Action::Reject { platform: 0, edition: 1 }), "{actions:?}");
    assert!(actions.contains(&Action::Start { instance: run(0, 3), edition: 0 }), "{actions:?}");
    story.happens(Event::Started { instance: run(0, 3) });
    story.happens(Event::Probed { instance: run(0, 3), verdict: Verdict::Pass });
    story.passes(Duration::from_millis(150));
    let editions: Vec<u32> = story
        .conductor
        .platforms()
        .flat_map(|platform| platform.instances.into_iter().map(|instance| instance.edition))
        .collect();
    assert_eq!((story.states(), editions), (vec!["ready", "ready"], vec![0, 0]));
}

#[test]
fn a_new_edition_that_is_always_busy_has_not_proven_itself() {
    let mut story = Story::begin(vec![process("one", Start::Eager)]);
    story.does(Event::Started { instance: run(0, 1) });
    story.reload(0, 1);
    story.happens(Event::Started { instance: run(1, 1) });
    for _ in 0..200 {
        story.happens(Event::Probed { instance: run(1, 1), verdict: Verdict::Busy });
        story.now = story.now + Duration::from_millis(100);
        story.happens(Event::Elapsed);
    }
    assert!(story.conductor.platforms().all(|platform| !platform.is_reloading));
}

#[test]
fn who_is_started_while_what_it_needs_is_about_to_stop_has_that_started_as_well() {
    let needy = Platform { needs: vec!["need".to_owned()], ..process("needy", Start::Eager) };
    let mut story = Story::begin(vec![needy, process("need", Start::Eager)]);
    story.does(Event::Started { instance: run(2, 1) });
    story.does(Event::Started { instance: run(0, 1) });
    let (held, _) = story.ask("needy");
    story.does(Event::Ordered(Order::Stop { platform: 1 }));
    assert_eq!(story.states(), ["draining", "ready"]);
    story.does(Event::Ordered(Order::Start { platform: 0 }));
    story.does(Event::Answered { ticket: held, instance: run(0, 1), outcome: Outcome::Replied });
    story.does(Event::Started { instance: run(0, 2) });
    assert_eq!(story.states(), ["ready", "ready"]);
}

#[test]
fn who_needs_what_is_stopped_refuses_at_once() {
    let needy = Platform { needs: vec!["need".to_owned()], ..process("needy", Start::Eager) };
    let mut story = Story::begin(vec![needy, process("need", Start::Manual)]);
    assert_eq!(story.states(), ["waiting", "stopped"]);
    let (ticket, actions) = story.ask("needy");
    let is_refused = |action: &Action| matches!(action, Action::Answer { ticket: of, answer: Answer::Refused(Refusal::NotReady, _) } if *of == ticket);
    assert!(actions.iter().any(is_refused), "{actions:?}");
}

fn wants(instance: Instance, weight: Option<u32>, drain: bool) -> Event {
    Event::Reported { instance, report: Report { weight, drain } }
}

#[test]
fn what_an_instance_has_said_of_itself_ends_with_its_run() {
    let platform = Platform { balance: Balance::Weighted, ..process("plugin", Start::Eager) };
    let mut story = Story::begin(vec![platform]);
    story.does(wants(run(0, 1), Some(5), true));
    story.does(Event::Started { instance: run(0, 1) });
    let told = |story: &Story| {
        let status = story.conductor.platforms().next().expect("there is one").instances[0].clone();
        (status.turns_weight, status.drains)
    };
    assert_eq!(told(&story), (Some(5), true), "what it said before it had started holds");
    let restarted = started(&story.does(Event::Exited { instance: run(0, 1), exit: Exit::Code(0) }));
    assert_eq!(restarted, [run(0, 2)]);
    story.does(wants(run(0, 1), Some(9), true));
    story.does(Event::Started { instance: run(0, 2) });
    assert_eq!(told(&story), (Some(1), false));
    let (ticket, actions) = story.ask("plugin");
    assert_eq!(dispatched(&actions), [(ticket, run(0, 2))]);
}

#[test]
fn a_new_edition_that_wants_no_requests_does_not_take_over() {
    let mut story = Story::begin(vec![process("plugin", Start::Eager)]);
    story.does(Event::Started { instance: run(0, 1) });
    story.reload(0, 1);
    story.does(wants(run(1, 1), None, true));
    story.does(Event::Started { instance: run(1, 1) });
    story.passes(Duration::from_secs(2));
    let (ticket, actions) = story.ask("plugin");
    assert_eq!(dispatched(&actions), [(ticket, run(0, 1))], "the old one serves on");
    story.does(Event::Answered { ticket, instance: run(0, 1), outcome: Outcome::Replied });
    story.does(wants(run(1, 1), None, false));
    story.passes(Duration::from_secs(2));
    let (ticket, actions) = story.ask("plugin");
    assert_eq!(dispatched(&actions), [(ticket, run(1, 1))]);
}

#[test]
fn a_reload_replaces_one_that_drains_first_and_weights_go_with_the_instances() {
    let platform = Platform {
        balance: Balance::Weighted,
        weights: vec![bounded(5), bounded(3)],
        ..Platform::new("plugin", Host::Process(2))
    };
    let mut story = Story::begin(vec![platform]);
    story.does(Event::Started { instance: run(0, 1) });
    story.does(Event::Started { instance: run(1, 1) });
    story.does(wants(run(1, 1), None, true));
    story.reload(0, 1);
    story.does(Event::Started { instance: run(2, 1) });
    let weights = |story: &Story| {
        let instances = story.conductor.platforms().next().expect("there is one").instances;
        let told = instances.iter().map(|told| (told.slot, told.edition, told.turns_weight.unwrap_or_default()));
        told.collect::<Vec<(u32, u32, u32)>>()
    };
    story.passes(Duration::from_millis(200));
    assert_eq!(weights(&story)[0], (0, 0, 5), "the one that serves is still there");
    assert!(weights(&story).contains(&(2, 1, 3)), "{:?}", weights(&story));
    story.does(Event::Started { instance: run(1, 2) });
    story.passes(Duration::from_secs(1));
    assert_eq!(weights(&story), [(1, 1, 5), (2, 1, 3)]);
}
