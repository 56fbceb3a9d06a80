//! What becomes of instances that fail, each told as a short story. The world (`core/sim`) tells the long ones.

use std::time::Duration;

use crate::breaker::Cause;
use crate::config::{
    Bounded, Breaker, Check, Config, Health, Host, OwnBreaker, Platform, Reachability, Recovery, Route,
};
use crate::lifecycle::{Reason, State};
use crate::{
    Action, Answer, Ask, Conductor, Event, Exit, Instance, News, Order, Outcome, Refusal, Report, RouteId, Signal,
    Ticket, Time, Verdict,
};

struct Story {
    conductor: Conductor,
    now: Time,
    tickets: u32,
    /// Slots whose probes fail, and those that say that they are not ready.
    ill: Vec<u32>,
    unready: Vec<u32>,
    /// Every probe finds every hand full.
    busy: bool,
    /// Targets that cannot be reached.
    away: Vec<u32>,
}

fn bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(number: u64) -> Bounded<LOW, HIGH, DEFAULT> {
    Bounded::new(number).expect("the number is in its range")
}

const SECOND: Duration = Duration::from_secs(1);

impl Story {
    /// Everything has started, and a few seconds have passed.
    fn begin(config: &Config) -> Story {
        let names: Vec<&str> = config.platforms.iter().map(|platform| platform.name.as_str()).collect();
        assert_eq!(config.mistakes(&names), [], "the story begins with a mistake");
        let conductor = Conductor::new(config, 1);
        let nobody = Vec::new;
        let (ill, unready, away) = (nobody(), nobody(), nobody());
        let mut story = Story { conductor, now: Time::ZERO, tickets: 0, ill, unready, busy: false, away };
        story.happens(Event::Began);
        story.passes(SECOND * 30);
        story
    }

    /// One platform of so many upstreams, with one route.
    fn of_upstreams(count: u16) -> Story {
        Story::begin(&Config { platforms: vec![upstreams(count)], routes: vec![Route::to("up")], ..Config::default() })
    }

    fn happens(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.conductor.handle(self.now, event, &mut out);
        self.conductor.check();
        out.extend(self.follow(out.clone()));
        out
    }

    /// Does what was ordered, at once; returns what follows from that.
    fn follow(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let mut more = Vec::new();
        for action in actions {
            let event = match action {
                Action::Probe { instance } if self.busy => Event::Probed { instance, verdict: Verdict::Busy },
                Action::Probe { instance } if self.ill.contains(&instance.slot) => {
                    Event::Probed { instance, verdict: Verdict::Fail }
                }
                Action::Probe { instance } if self.unready.contains(&instance.slot) => {
                    Event::Probed { instance, verdict: Verdict::Unready }
                }
                Action::Probe { instance } => Event::Probed { instance, verdict: Verdict::Pass },
                Action::Reach { target } if self.away.contains(&target) => {
                    Event::Reached { target, verdict: Verdict::Fail }
                }
                Action::Reach { target } => Event::Reached { target, verdict: Verdict::Pass },
                Action::Start { instance, .. } => Event::Started { instance },
                Action::Signal { instance, signal: Signal::Shutdown } => {
                    Event::Exited { instance, exit: Exit::Code(0) }
                }
                _ => continue,
            };
            more.extend(self.happens(event));
        }
        more
    }

    fn passes(&mut self, span: Duration) -> Vec<Action> {
        let until = self.now + span;
        let mut all = Vec::new();
        while let Some((at, _)) = self.conductor.deadline().filter(|(at, _)| *at <= until) {
            self.now = at;
            all.extend(self.happens(Event::Elapsed));
        }
        self.now = until;
        all
    }

    fn ask(&mut self) -> (Ticket, Vec<Action>) {
        self.ask_for(RouteId(0))
    }

    fn ask_for(&mut self, route: RouteId) -> (Ticket, Vec<Action>) {
        self.tickets += 1;
        let ticket = Ticket::new(self.tickets, 0);
        (ticket, self.happens(Event::Asked { ticket, route: Some(route), ask: Ask::default() }))
    }

    /// A request that is answered so, this much later. By whom, or with what it was refused.
    fn call(&mut self, outcome: Outcome, after: Duration) -> Result<(Instance, Vec<Action>), Refusal> {
        let (ticket, actions) = self.ask();
        let instance = given_to(&actions, ticket).ok_or_else(|| refused(&actions, ticket))?;
        self.passes(after);
        Ok((instance, self.happens(Event::Answered { ticket, instance, outcome })))
    }

    fn breakers(&self) -> Vec<&'static str> {
        self.conductor.platforms().flat_map(|platform| platform.instances).map(|one| one.breaker).collect()
    }

    fn states(&self) -> Vec<&'static str> {
        self.conductor.platforms().flat_map(|platform| platform.instances).map(|one| one.state).collect()
    }
}

fn upstreams(count: u16) -> Platform {
    Platform {
        upstreams: (0..count).map(|index| format!("127.0.0.1:{}", 3000 + index)).collect(),
        ..Platform::new("up", Host::Http)
    }
}

fn process(name: &str) -> Platform {
    Platform { command: vec!["plugin".to_owned()], ..Platform::new(name, Host::Process(1)) }
}

fn given_to(actions: &[Action], of: Ticket) -> Option<Instance> {
    actions.iter().rev().find_map(|action| match *action {
        Action::Dispatch { ticket, instance } if ticket == of => Some(instance),
        _ => None,
    })
}

fn refused(actions: &[Action], of: Ticket) -> Refusal {
    let refusal = actions.iter().find_map(|action| match *action {
        Action::Answer { ticket, answer: Answer::Refused(refusal, _) } if ticket == of => Some(refusal),
        _ => None,
    });
    refusal.expect("what is not given to anybody is refused in these stories")
}

fn opened(actions: &[Action]) -> Vec<(Option<u32>, Cause)> {
    let opened = |action: &Action| match *action {
        Action::Tell { instance, news: News::BreakerOpened { cause, .. }, .. } => {
            Some((instance.map(|instance| instance.slot), cause))
        }
        _ => None,
    };
    actions.iter().filter_map(opened).collect()
}

fn has_news(actions: &[Action], is_it: fn(&News) -> bool) -> bool {
    actions.iter().any(|action| matches!(action, Action::Tell { news, .. } if is_it(news)))
}

#[test]
fn the_last_instance_stays_in_use_if_its_health_check_passes_and_is_cut_off_if_not() {
    for is_ill in [false, true] {
        let mut story = Story::of_upstreams(1);
        for _ in 0..2 {
            let (_, actions) = story.call(Outcome::Failed, Duration::ZERO).expect("it is in use");
            assert!(!actions.iter().any(|action| matches!(action, Action::Probe { .. })));
        }
        if is_ill {
            story.ill = vec![0];
        }
        let (instance, actions) = story.call(Outcome::Failed, Duration::ZERO).expect("it is in use");
        assert!(actions.contains(&Action::Probe { instance }), "it is asked at once how it is");
        assert_eq!(story.breakers(), [if is_ill { "open" } else { "closed" }]);
        assert_eq!(has_news(&actions, |news| matches!(news, News::Acquitted { .. })), !is_ill);
    }
}

#[test]
fn of_several_instances_one_that_fails_is_cut_off_though_its_health_check_passes_and_the_last_is_not() {
    let mut story = Story::of_upstreams(2);
    while story.breakers().iter().all(|breaker| *breaker == "closed") {
        let (instance, _) = story.call(Outcome::Failed, Duration::ZERO).expect("some instance is in use");
        if instance.slot == 1 {
            let _ = story.call(Outcome::Replied, Duration::ZERO);
        }
    }
    let open = story.breakers().iter().position(|breaker| *breaker == "open").expect("it was waited for");
    for _ in 0..3 {
        let Ok((instance, _)) = story.call(Outcome::Failed, Duration::ZERO) else { break };
        assert_ne!(instance.slot as usize, open);
    }
    assert_eq!(story.breakers()[1 - open], "closed");
}

#[test]
fn a_platform_is_cut_off_when_ten_calls_in_a_row_fail_and_tried_by_a_health_check_first() {
    let mut story = Story::of_upstreams(1);
    let mut causes = Vec::new();
    let refusal = loop {
        match story.call(Outcome::Failed, Duration::ZERO) {
            Ok((_, actions)) => causes.extend(opened(&actions)),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, Refusal::BreakerOpen);
    let [(None, Cause::FailureRate { failures: 10, calls: 10 } | Cause::InARow(_))] = causes[..] else {
        panic!("{causes:?}")
    };
    let told = story.conductor.platforms().next().map(|platform| (platform.breaker, platform.is_ready));
    assert_eq!(told, Some(("open", false)));
    let actions = story.passes(SECOND * 33);
    assert!(actions.iter().any(|action| matches!(action, Action::Probe { .. })));
    story.call(Outcome::Replied, Duration::ZERO).expect("it is the trial, or the probes have closed it");
    let told = story.conductor.platforms().next().map(|platform| (platform.breaker, platform.is_ready));
    assert_eq!(told, Some(("closed", true)));
}

#[test]
fn when_most_instances_are_cut_off_they_get_what_the_others_have_no_hand_for() {
    let platform = Platform { in_flight_max: Some(bounded(1)), queue_max: bounded(0), ..upstreams(3) };
    let never = Breaker { platform_failures: bounded(0), failure_percent: bounded(0), ..Breaker::default() };
    let config =
        Config { platforms: vec![platform], routes: vec![Route::to("up")], breaker: never, ..Config::default() };
    let mut story = Story::begin(&config);
    while story.breakers().iter().filter(|breaker| **breaker == "open").count() < 2 {
        story.call(Outcome::Failed, Duration::ZERO).expect("some instance is in use");
    }
    let well = story.breakers().iter().position(|breaker| *breaker == "closed").expect("the last one stays");
    let (first, actions) = story.ask();
    assert_eq!(given_to(&actions, first).map(|instance| instance.slot as usize), Some(well), "who is well comes first");
    let (second, actions) = story.ask();
    assert!(given_to(&actions, second).is_some_and(|instance| instance.slot as usize != well));
    let panics = story.conductor.platforms().map(|platform| platform.stats.panics).sum::<u64>();
    assert_eq!(panics, 1);
}

#[test]
fn one_that_comes_back_beside_others_gets_few_requests_at_first_and_its_share_after_ten_seconds() {
    let mut story = Story::of_upstreams(2);
    story.ill = vec![1];
    story.passes(SECOND * 60);
    assert_eq!(story.states(), ["ready", "down"]);
    story.ill.clear();
    while story.states() != ["ready", "ready"] {
        story.passes(Duration::from_millis(100));
    }
    let share = |story: &mut Story| {
        let calls = (0..200).map(|_| story.call(Outcome::Replied, Duration::ZERO).expect("both are well").0.slot);
        calls.filter(|slot| *slot == 1).count()
    };
    let at_first = share(&mut story);
    assert!((5..50).contains(&at_first), "{at_first} of 200");
    story.passes(SECOND * 10);
    let later = share(&mut story);
    assert!((70..130).contains(&later), "{later} of 200");
}

#[test]
fn one_that_is_far_slower_than_its_peers_is_cut_off() {
    let mut story = Story::of_upstreams(3);
    let mut causes = Vec::new();
    for _ in 0..400 {
        let (ticket, actions) = story.ask();
        let instance = given_to(&actions, ticket).expect("there is room");
        let takes = if instance.slot == 2 { 900 } else { 5 };
        causes.extend(opened(&story.passes(Duration::from_millis(takes))));
        causes.extend(opened(&story.happens(Event::Answered { ticket, instance, outcome: Outcome::Replied })));
        if !causes.is_empty() {
            break;
        }
    }
    let [(Some(2), Cause::Slower { .. })] = causes[..] else { panic!("{causes:?}") };
}

#[test]
fn a_trial_that_takes_too_long_lets_the_next_request_try() {
    let mut story = Story::of_upstreams(1);
    story.ill = vec![0];
    for _ in 0..3 {
        let _ = story.call(Outcome::Broken, Duration::ZERO);
    }
    assert_eq!(story.breakers(), ["open"]);
    story.ill.clear();
    while story.breakers() != ["half_open"] {
        story.passes(Duration::from_millis(100));
    }
    let is_admitting = |story: &Story| story.conductor.platforms().any(|platform| platform.instances[0].is_serving);
    while !is_admitting(&story) {
        story.passes(Duration::from_millis(10));
    }
    let route = RouteId(0);
    let (trial, actions) = story.ask_for(route);
    assert!(given_to(&actions, trial).is_some());
    let (other, actions) = story.ask();
    assert_eq!((given_to(&actions, other), refused(&actions, other)), (None, Refusal::BreakerOpen));
    // The attempt has five seconds, its trial ten: what flows longer has given it back.
    story.passes(SECOND * 5);
    assert!(is_admitting(&story) || story.breakers() == ["open"]);
}

#[test]
fn a_person_closes_breakers() {
    let mut story = Story::of_upstreams(1);
    while story.call(Outcome::Failed, Duration::ZERO).is_ok() {}
    let actions = story.happens(Event::Ordered(Order::Close { platform: 0 }));
    assert!(has_news(&actions, |news| *news == News::BreakerClosed { is_by_hand: true }));
    story.call(Outcome::Replied, Duration::ZERO).expect("it is in use again");
}

#[test]
fn a_breaker_that_opens_has_its_instance_replaced_or_initialised_again_if_that_is_wanted() {
    for recovery in [Recovery::Restart, Recovery::Reinitialize] {
        let own = OwnBreaker { recovery: Some(recovery), ..OwnBreaker::default() };
        let platform = Platform { breaker: own, host: Host::Process(2), ..process("up") };
        let config = Config { platforms: vec![platform], routes: vec![Route::to("up")], ..Config::default() };
        let mut story = Story::begin(&config);
        let mut all = Vec::new();
        while opened(&all).is_empty() {
            all.extend(story.call(Outcome::Failed, Duration::ZERO).expect("one is in use").1);
        }
        let instance = Instance { slot: opened(&all)[0].0.expect("it is an instance's"), run: 1 };
        match recovery {
            Recovery::Restart => {
                let reason = News::State {
                    was: State::Ready,
                    now: State::Draining { then: crate::lifecycle::Then::Again },
                    reason: Reason::BreakerOpened,
                };
                assert!(all.iter().any(|action| matches!(action, Action::Tell { news, .. } if *news == reason)));
                let again = Instance { run: 2, ..instance };
                assert!(all.contains(&Action::Start { instance: again, edition: 0 }));
            }
            Recovery::Reinitialize | Recovery::Probe => {
                assert!(all.contains(&Action::Reinitialize { instance }));
                let told = story.happens(Event::Reinitialized { instance, done: false });
                assert!(told.contains(&Action::Signal { instance, signal: Signal::Shutdown }), "it is replaced then");
            }
        }
    }
}

#[test]
fn one_that_is_not_ready_gets_no_requests_and_is_not_started_anew() {
    let mut story =
        Story::begin(&Config { platforms: vec![process("up")], routes: vec![Route::to("up")], ..Config::default() });
    story.unready = vec![0];
    let actions = story.passes(SECOND * 120);
    assert!(!actions.iter().any(|action| matches!(action, Action::Signal { .. })));
    assert_eq!(story.states(), ["down"]);
    let (ticket, actions) = story.ask();
    assert_eq!(refused(&actions, ticket), Refusal::NotReady);
    story.unready.clear();
    story.passes(SECOND * 30);
    assert_eq!(story.states(), ["ready"]);
}

#[test]
fn every_other_health_check_is_left_out_while_answers_show_the_same() {
    let mut story = Story::of_upstreams(1);
    let mut probes = 0;
    for _ in 0..60 {
        story.call(Outcome::Replied, Duration::ZERO).expect("it is well");
        let actions = story.passes(SECOND);
        probes += actions.iter().filter(|action| matches!(action, Action::Probe { .. })).count();
    }
    assert_eq!(probes, 6, "every ten seconds instead of every five");
    let idle = story.passes(SECOND * 60);
    assert_eq!(idle.iter().filter(|action| matches!(action, Action::Probe { .. })).count(), 12);
}

#[test]
fn several_instances_that_pass_at_once_are_one_witness_for_their_platform() {
    let mut story = Story::of_upstreams(2);
    while story.conductor.platforms().all(|platform| platform.breaker == "closed") {
        let _ = story.call(Outcome::Failed, Duration::ZERO);
    }
    let until = story.conductor.platforms().next().and_then(|platform| platform.breaker_until).expect("it is open");
    story.passes(until - story.now);
    assert_eq!(story.conductor.platforms().next().map(|platform| platform.breaker), Some("half_open"));
    let actions = story.passes(SECOND * 6);
    assert!(has_news(&actions, |news| matches!(news, News::BreakerClosed { .. })), "two rounds close it");
}

#[test]
fn a_platform_whose_instance_says_that_it_is_busy_is_tried_by_a_request() {
    let mut story = Story::of_upstreams(1);
    while story.call(Outcome::Failed, Duration::ZERO).is_ok() {}
    story.busy = true;
    story.passes(SECOND * 40);
    story.call(Outcome::Replied, Duration::ZERO).expect("whoever is busy is there");
    assert_eq!(story.conductor.platforms().next().map(|platform| platform.breaker), Some("closed"));
}

#[test]
fn the_only_instance_is_replaced_when_its_platform_is_cut_off_if_that_is_wanted() {
    let own = OwnBreaker { recovery: Some(Recovery::Restart), ..OwnBreaker::default() };
    let platform = Platform { breaker: own, ..process("up") };
    let config = Config { platforms: vec![platform], routes: vec![Route::to("up")], ..Config::default() };
    let mut story = Story::begin(&config);
    let mut all = Vec::new();
    while let Ok((_, actions)) = story.call(Outcome::Failed, Duration::ZERO) {
        all.extend(actions);
    }
    let again = Action::Start { instance: Instance { slot: 0, run: 2 }, edition: 0 };
    assert_eq!(all.iter().filter(|action| **action == again).count(), 1);
}

#[test]
fn two_that_both_want_not_to_be_asked_yet_are_not() {
    let route = Route { retries: bounded(5), idempotent: true, timeout_ms: bounded(30_000), ..Route::to("up") };
    let mut story = Story::begin(&Config { platforms: vec![upstreams(2)], routes: vec![route], ..Config::default() });
    let (ticket, mut actions) = story.ask();
    for _ in 0..2 {
        let instance = given_to(&actions, ticket).expect("one of the two has not said so yet");
        story.happens(Event::Deferred { ticket, instance, outcome: Outcome::Failed, after: SECOND * 3 });
        actions = story.passes(SECOND * 2);
    }
    assert_eq!(given_to(&actions, ticket), None);
    assert!(given_to(&story.passes(SECOND), ticket).is_some());
}

#[test]
fn a_platform_that_sleeps_is_not_away() {
    let gate = Platform { sleep_after_ms: Some(bounded(1_000)), ..process("gate") };
    let bot = Platform { behind: vec!["gate".to_owned()], ..process("bot") };
    let reachability = vec![Reachability { name: "gate".to_owned(), check: Check::Platform("gate".to_owned()) }];
    let config =
        Config { platforms: vec![gate, bot], routes: vec![Route::to("bot")], reachability, ..Config::default() };
    let mut story = Story::begin(&config);
    assert_eq!(story.states(), ["asleep", "ready"]);
    let bot = Instance { slot: 2, run: 1 };
    let actions = story.happens(Event::Exited { instance: bot, exit: Exit::Code(1) });
    assert!(actions.contains(&Action::Start { instance: Instance { run: 2, ..bot }, edition: 0 }));
}

#[test]
fn nothing_is_replaced_for_its_breaker_before_it_is_known_that_the_network_is_there() {
    let own = OwnBreaker { recovery: Some(Recovery::Restart), ..OwnBreaker::default() };
    let mut config = behind_internet();
    config.platforms[1] = Platform { breaker: own, host: Host::Process(2), ..config.platforms[1].clone() };
    for is_away in [true, false] {
        let mut story = Story::begin(&config);
        story.passes(SECOND * 7);
        story.away = if is_away { vec![0] } else { Vec::new() };
        let mut all = Vec::new();
        for _ in 0..12 {
            all.extend(story.call(Outcome::Failed, SECOND).map(|(_, actions)| actions).unwrap_or_default());
        }
        assert!(!opened(&all).is_empty());
        let has_restarted = all.iter().any(|action| matches!(action, Action::Start { .. }));
        assert!(!has_restarted || !is_away, "it was restarted for the network's sake");
    }
}

#[test]
fn slow_calls_behind_what_is_away_open_nothing_when_it_is_back() {
    let mut story = Story::begin(&behind_internet());
    story.away = vec![0];
    story.passes(SECOND * 60);
    for _ in 0..12 {
        let _ = story.call(Outcome::Replied, Duration::from_millis(4_500));
    }
    story.away.clear();
    story.passes(SECOND * 20);
    let (_, actions) = story.call(Outcome::Replied, Duration::from_millis(1)).expect("it is well");
    assert_eq!(opened(&actions), []);
}

#[test]
fn whoever_wants_not_to_be_asked_yet_is_not_though_the_other_has_its_hands_full() {
    let route = Route { retries: bounded(3), idempotent: true, timeout_ms: bounded(30_000), ..Route::to("up") };
    let platform = Platform { in_flight_max: Some(bounded(1)), ..upstreams(2) };
    let mut story = Story::begin(&Config { platforms: vec![platform], routes: vec![route], ..Config::default() });
    let (ticket, actions) = story.ask();
    let first = given_to(&actions, ticket).expect("both are free");
    story.happens(Event::Deferred { ticket, instance: first, outcome: Outcome::Failed, after: SECOND * 20 });
    let (other, actions) = story.ask();
    let busy = given_to(&actions, other).expect("one is free");
    let early = story.passes(SECOND * 4);
    match busy == first {
        true => assert!(given_to(&early, ticket).is_some_and(|instance| instance != first)),
        false => assert_eq!(given_to(&early, ticket), None, "it had asked for twenty seconds"),
    }
}

fn behind_internet() -> Config {
    let bot = Platform { behind: vec!["internet".to_owned()], ..process("bot") };
    let feed = Platform { needs: vec!["bot".to_owned()], behind: vec!["internet".to_owned()], ..process("feed") };
    let check = Check::Tcp("192.0.2.1:53".to_owned());
    let reachability = vec![Reachability { name: "internet".to_owned(), check }];
    Config { platforms: vec![feed, bot], routes: vec![Route::to("bot")], reachability, ..Config::default() }
}

#[test]
fn nothing_is_restarted_behind_what_cannot_be_reached_and_all_is_tried_in_order_when_it_is_back() {
    let mut story = Story::begin(&behind_internet());
    assert_eq!(story.states(), ["ready", "ready"]);
    // Both fail as soon as the internet is away, long before Demi has noticed that by itself.
    (story.ill, story.away) = (vec![0, 2], vec![0]);
    let actions = story.passes(SECOND * 600);
    assert!(has_news(&actions, |news| matches!(news, News::Unreachable { target: 0 })));
    assert!(
        !actions.iter().any(|action| matches!(action, Action::Signal { .. } | Action::Start { .. })),
        "{actions:?}"
    );
    assert_eq!(opened(&actions), []);
    assert_eq!(story.states(), ["down", "down"]);
    let why = story.conductor.platforms().flat_map(|platform| platform.instances).next().map(|one| one.why);
    assert!(why.is_some_and(|why| why.contains("internet")));
    story.away.clear();
    let actions = story.passes(SECOND * 15);
    let back = actions.iter().position(|action| matches!(action, Action::Tell { news: News::Reachable { .. }, .. }));
    let probed: Vec<u32> = actions[back.expect("it is back")..]
        .iter()
        .filter_map(|action| match action {
            Action::Probe { instance } => Some(instance.slot),
            _ => None,
        })
        .collect();
    assert_eq!(probed[..2], [2, 0], "what is needed comes first");
    story.ill.clear();
    story.passes(SECOND * 15);
    assert_eq!(story.states(), ["ready", "ready"]);
}

#[test]
fn what_fails_while_all_that_it_depends_on_is_there_is_replaced_as_ever() {
    let mut story = Story::begin(&behind_internet());
    story.ill = vec![2];
    let actions = story.passes(SECOND * 30);
    assert!(actions.contains(&Action::Signal { instance: Instance { slot: 2, run: 1 }, signal: Signal::Shutdown }));
}

#[test]
fn one_that_ends_behind_what_cannot_be_reached_is_started_when_that_is_back_or_by_hand() {
    let mut story = Story::begin(&behind_internet());
    story.away = vec![0];
    story.passes(SECOND * 60);
    let bot = Instance { slot: 2, run: 1 };
    let actions = story.happens(Event::Exited { instance: bot, exit: Exit::Code(1) });
    let next = Action::Start { instance: Instance { run: 2, ..bot }, edition: 0 };
    let actions: Vec<Action> = actions.into_iter().chain(story.passes(SECOND * 600)).collect();
    assert!(!actions.contains(&next), "it would only end again");
    let (ticket, refusal) = story.ask();
    assert_eq!(refused(&refusal, ticket), Refusal::NotReady);
    assert!(story.happens(Event::Ordered(Order::Start { platform: 1 })).contains(&next), "a person knows better");
    story.happens(Event::Exited { instance: Instance { run: 2, ..bot }, exit: Exit::Code(1) });
    story.away.clear();
    let third = Action::Start { instance: Instance { run: 3, ..bot }, edition: 0 };
    assert!(story.passes(SECOND * 15).contains(&third));
}

#[test]
fn what_has_never_been_reached_excuses_nobody() {
    let config = behind_internet();
    let mut story = Story::begin(&Config { platforms: Vec::new(), routes: Vec::new(), ..Config::default() });
    story.conductor = Conductor::new(&config, 1);
    (story.now, story.ill, story.away) = (Time::ZERO, vec![2], vec![0]);
    story.happens(Event::Began);
    let actions = story.passes(SECOND * 60);
    assert!(actions.contains(&Action::Signal { instance: Instance { slot: 2, run: 1 }, signal: Signal::Shutdown }));
    assert!(!has_news(&actions, |news| matches!(news, News::Unreachable { .. })));
}

fn hedging() -> Story {
    let route = Route { hedge: true, idempotent: true, ..Route::to("up") };
    // Those that are outrun all the time are cut off for that, which is another story.
    let breaker = Breaker { slow_percent: bounded(0), ..Breaker::default() };
    let mut story =
        Story::begin(&Config { platforms: vec![upstreams(2)], routes: vec![route], breaker, ..Config::default() });
    for _ in 0..100 {
        story.call(Outcome::Replied, Duration::from_millis(10)).expect("both are well");
    }
    story
}

/// A request that takes longer than usual: the ticket, who has it, and who was asked second.
fn hedged(story: &mut Story) -> (Ticket, Instance, Instance) {
    let (ticket, actions) = story.ask();
    let first = given_to(&actions, ticket).expect("both are well");
    let actions = story.passes(Duration::from_millis(20));
    let second = actions.iter().find_map(|action| match *action {
        Action::Hedge { ticket: of, instance } if of == ticket => Some(instance),
        _ => None,
    });
    (ticket, first, second.expect("it has taken longer than 95 of 100"))
}

#[test]
fn a_second_instance_is_asked_when_the_first_takes_long_and_the_loser_is_told() {
    for is_second_quicker in [true, false] {
        let mut story = hedging();
        let (ticket, first, second) = hedged(&mut story);
        assert_ne!(first, second);
        let (winner, loser) = if is_second_quicker { (second, first) } else { (first, second) };
        let actions = story.happens(Event::Answered { ticket, instance: winner, outcome: Outcome::Replied });
        let told = [Action::Cancel { ticket, instance: loser }, Action::Answer { ticket, answer: Answer::Relayed }];
        let prefer = Action::Prefer { ticket, instance: second };
        let expected: Vec<Action> = is_second_quicker.then_some(prefer).into_iter().chain(told).collect();
        assert_eq!(actions, expected);
        let late = story.happens(Event::Answered { ticket, instance: loser, outcome: Outcome::Replied });
        assert_eq!(late, [], "nobody waits for it any more");
    }
}

#[test]
fn one_that_wants_no_requests_is_not_asked_second_either() {
    let mut story = hedging();
    let (ticket, actions) = story.ask();
    let first = given_to(&actions, ticket).expect("both are well");
    let report = Report { weight: None, drain: true };
    story.happens(Event::Reported { instance: Instance { slot: 1 - first.slot, run: 1 }, report });
    let actions = story.passes(Duration::from_millis(20));
    assert!(!actions.iter().any(|action| matches!(action, Action::Hedge { .. })), "{actions:?}");
}

#[test]
fn one_that_is_outrun_again_and_again_is_cut_off() {
    let route = Route { hedge: true, idempotent: true, ..Route::to("up") };
    let mut story = Story::begin(&Config { platforms: vec![upstreams(2)], routes: vec![route], ..Config::default() });
    for _ in 0..100 {
        story.call(Outcome::Replied, Duration::from_millis(10)).expect("both are well");
    }
    let mut all = Vec::new();
    for _ in 0..400 {
        let (ticket, actions) = story.ask();
        let Some(first) = given_to(&actions, ticket) else { break };
        // The second one never answers.
        let (takes, answers) = if first.slot == 1 { (20, Instance { slot: 0, run: 1 }) } else { (10, first) };
        all.extend(story.passes(Duration::from_millis(takes)));
        all.extend(story.happens(Event::Answered { ticket, instance: answers, outcome: Outcome::Replied }));
        if !opened(&all).is_empty() {
            break;
        }
    }
    let [(Some(1), Cause::SlowRate { .. } | Cause::Slower { .. })] = opened(&all)[..] else {
        panic!("{:?}", opened(&all))
    };
}

#[test]
fn when_one_of_two_fails_the_other_one_decides() {
    for is_first in [true, false] {
        let mut story = hedging();
        let (ticket, first, second) = hedged(&mut story);
        let (failing, other) = if is_first { (first, second) } else { (second, first) };
        assert_eq!(story.happens(Event::Answered { ticket, instance: failing, outcome: Outcome::Broken }), []);
        let actions = story.happens(Event::Answered { ticket, instance: other, outcome: Outcome::Replied });
        assert_eq!(actions.last(), Some(&Action::Answer { ticket, answer: Answer::Relayed }));
        assert_eq!(actions.contains(&Action::Prefer { ticket, instance: other }), is_first);
    }
}

#[test]
fn a_stream_of_the_second_instance_flows_alone() {
    let mut story = hedging();
    let (ticket, first, second) = hedged(&mut story);
    let actions = story.happens(Event::Headed { ticket, instance: second });
    let expected = [
        Action::Prefer { ticket, instance: second },
        Action::Cancel { ticket, instance: first },
        Action::Relay { ticket },
    ];
    assert_eq!(actions, expected);
}

#[test]
fn a_second_instance_costs_tokens_and_none_is_asked_when_they_are_spent() {
    let mut story = hedging();
    let mut asked = 0;
    loop {
        let (ticket, actions) = story.ask();
        let first = given_to(&actions, ticket).expect("both are well");
        let actions = story.passes(Duration::from_millis(20));
        let second = actions.iter().find_map(|action| match *action {
            Action::Hedge { instance, .. } => Some(instance),
            _ => None,
        });
        asked += usize::from(second.is_some());
        let instance = second.unwrap_or(first);
        story.happens(Event::Answered { ticket, instance, outcome: Outcome::Mistaken });
        if second.is_none() {
            break;
        }
    }
    assert_eq!(asked, 100, "500 tokens, five each, and nothing that gives any back");
}

#[test]
fn whoever_says_when_to_come_back_is_asked_again_then() {
    let route = Route { retries: bounded(2), idempotent: true, timeout_ms: bounded(30_000), ..Route::to("up") };
    let mut story = Story::begin(&Config { platforms: vec![upstreams(1)], routes: vec![route], ..Config::default() });
    let (ticket, actions) = story.ask();
    let instance = given_to(&actions, ticket).expect("it is well");
    story.happens(Event::Deferred { ticket, instance, outcome: Outcome::Failed, after: SECOND * 7 });
    let early = story.passes(Duration::from_millis(6_999));
    assert_eq!(given_to(&early, ticket), None);
    assert_eq!(given_to(&story.passes(Duration::from_millis(2)), ticket), Some(instance));
}

#[test]
fn one_platform_has_its_own_numbers() {
    let own = OwnBreaker { failures: Some(bounded(1)), ..OwnBreaker::default() };
    let strict = Platform { breaker: own, ..upstreams(2) };
    let config = Config {
        platforms: vec![strict],
        routes: vec![Route::to("up")],
        health: Health { rise: bounded(1), ..Health::default() },
        ..Config::default()
    };
    let mut story = Story::begin(&config);
    let (_, actions) = story.call(Outcome::Failed, Duration::ZERO).expect("it is well");
    assert_eq!(opened(&actions).len(), 1);
}
