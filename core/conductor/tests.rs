//! What the world (`core/sim`) found, each as small as it can be told.

use std::time::Duration;

use crate::config::{Bounded, Config, Host, Platform, Route};
use crate::{
    Action, Answer, Ask, Conductor, Event, Instance, Order, Outcome, RouteId, Signal, Ticket, Time, Timer, Verdict,
};

struct Bench {
    conductor: Conductor,
    now: Time,
    tickets: u32,
}

fn bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(number: u64) -> Bounded<LOW, HIGH, DEFAULT> {
    Bounded::new(number).expect("the number is in its range")
}

impl Bench {
    /// One platform of one instance, which has started and passed a probe, a millisecond after the beginning.
    fn new(platform: Platform, route: Route) -> Bench {
        let config = Config { platforms: vec![platform], routes: vec![route], ..Config::default() };
        let mut bench = Bench { conductor: Conductor::new(&config, 1), now: Time::ZERO, tickets: 0 };
        bench.handle(Event::Began);
        bench.handle(Event::Started { instance: ONE });
        bench.at(1, Event::Elapsed);
        bench.handle(Event::Probed { instance: ONE, verdict: Verdict::Pass });
        bench
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.conductor.handle(self.now, event, &mut out);
        self.conductor.check();
        out.retain(|action| *action != Action::Weigh);
        out
    }

    fn at(&mut self, millis: u64, event: Event) -> Vec<Action> {
        self.now = Time::from_millis(millis);
        self.handle(event)
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket::new(self.tickets, 0)
    }

    fn asked(&mut self) -> Event {
        Event::Asked { ticket: self.ticket(), route: Some(RouteId(0)), ask: Ask { idempotent: true, ..Ask::default() } }
    }

    fn answered(&self, outcome: Outcome) -> Event {
        Event::Answered { ticket: Ticket::new(self.tickets, 0), instance: ONE, outcome }
    }
}

const ONE: Instance = Instance { slot: 0, run: 1 };

fn process() -> Platform {
    Platform::new("one", Host::Process(1))
}

#[test]
fn a_breakers_trial_takes_the_place_of_the_regular_probe() {
    let mut bench = Bench::new(process(), Route::to("one"));
    for _ in 0..3 {
        let asked = bench.asked();
        bench.handle(asked);
        bench.handle(bench.answered(Outcome::Failed));
    }
    let mut probes_after_half_open = 0;
    while probes_after_half_open < 2 {
        let (at, timer) = bench.conductor.deadline().expect("there is always a probe to come");
        bench.now = at;
        let actions = bench.handle(Event::Elapsed);
        probes_after_half_open += u32::from(timer == Timer::HalfOpen(ONE) || probes_after_half_open > 0);
        if actions.contains(&Action::Probe { instance: ONE }) && probes_after_half_open == 0 {
            bench.handle(Event::Probed { instance: ONE, verdict: Verdict::Pass });
        }
    }
}

#[test]
fn an_attempt_that_follows_another_at_once_has_its_own_time() {
    let route = Route { attempt_timeout_ms: Some(bounded(600)), timeout_ms: bounded(1_000), ..Route::to("one") };
    let mut bench = Bench::new(Platform::new("one", Host::Process(2)), route);
    bench.handle(Event::Started { instance: Instance { slot: 1, run: 1 } });
    let asked = bench.asked();
    let ticket = Ticket::new(1, 0);
    let [Action::Dispatch { instance: first, .. }] = bench.handle(asked)[..] else { panic!("one of the two is free") };
    let second = Instance { slot: 1 - first.slot, run: 1 };
    let missed = Event::Answered { ticket, instance: first, outcome: Outcome::Unsent };
    assert_eq!(bench.at(501, missed), [Action::Dispatch { ticket, instance: second }]);
    assert_eq!(bench.at(1_000, Event::Elapsed), []);
    let told = Action::Answer { ticket, answer: Answer::TimedOut };
    assert_eq!(bench.at(1_001, Event::Elapsed), [Action::Cancel { ticket, instance: second }, told]);
}

#[test]
fn one_request_that_reaches_nobody_opens_no_breaker() {
    let mut bench = Bench::new(process(), Route { timeout_ms: bounded(60_000), ..Route::to("one") });
    let asked = bench.asked();
    bench.handle(asked);
    let mut tries = 0;
    loop {
        let actions = bench.handle(bench.answered(Outcome::Unsent));
        assert_eq!(bench.conductor.platforms().next().map(|platform| platform.stats.opened.iter().sum()), Some(0u64));
        if actions.iter().any(|action| matches!(action, Action::Answer { .. })) {
            break;
        }
        tries += 1;
        while bench.handle(Event::Elapsed).iter().all(|action| !matches!(action, Action::Dispatch { .. })) {
            bench.now = bench.conductor.deadline().expect("it waits to be tried again").0;
        }
    }
    assert_eq!(tries, 3);
}

#[test]
fn an_answer_that_flows_does_not_make_its_instance_silent() {
    let mut bench = Bench::new(Platform::new("one", Host::Process(2)), Route::to("one"));
    bench.handle(Event::Started { instance: Instance { slot: 1, run: 1 } });
    let asked = bench.asked();
    let ticket = Ticket::new(1, 0);
    let [Action::Dispatch { instance, .. }] = bench.handle(asked)[..] else { panic!("one of the two is free") };
    bench.handle(Event::Headed { ticket, instance });
    let mut served = [0, 0];
    for turn in 0..200 {
        let asked = bench.asked();
        let [Action::Dispatch { instance, ticket }] = bench.at(1_000 + turn, asked)[..] else { continue };
        bench.handle(Event::Answered { ticket, instance, outcome: Outcome::Replied });
        served[instance.slot as usize] += 1;
    }
    assert!(served.iter().all(|count| *count > 50), "{served:?}");
}

#[test]
fn a_frozen_process_fails_its_health_checks_though_it_has_work_in_hand() {
    let mut bench = Bench::new(process(), Route { timeout_ms: bounded(3_600_000), ..Route::to("one") });
    let asked = bench.asked();
    bench.handle(asked);
    let mut signalled = false;
    while !signalled && bench.now < Time::from_millis(60_000) {
        bench.now = bench.conductor.deadline().expect("there is always a probe to come").0;
        let shutdown = Action::Signal { instance: ONE, signal: Signal::Shutdown };
        signalled = bench.handle(Event::Elapsed).contains(&shutdown);
    }
    assert!(signalled, "it was never replaced");
}

#[test]
fn a_request_whose_time_is_up_is_not_tried_again_when_the_clock_jumps() {
    let route = Route { retries: bounded(3), ..Route::to("one") };
    let mut bench = Bench::new(process(), route);
    let asked = bench.asked();
    bench.handle(asked);
    assert_eq!(bench.handle(bench.answered(Outcome::Broken)), [], "it waits to be tried again");
    let ticket = Ticket::new(1, 0);
    let actions = bench.at(3_600_000, Event::Elapsed);
    assert!(actions.contains(&Action::Answer { ticket, answer: Answer::TimedOut }), "{actions:?}");
    assert!(!actions.contains(&Action::Dispatch { ticket, instance: ONE }), "{actions:?}");
}

#[test]
fn a_worker_is_wedged_by_one_request_that_it_holds_too_long_and_not_by_several_that_it_lets_go() {
    let mut platform = Platform::new("one", Host::Threads(1));
    platform.in_flight_max = Some(bounded(2));
    let mut bench = Bench::new(platform, Route { timeout_ms: bounded(1_000), ..Route::to("one") });
    let first = bench.asked();
    bench.handle(first);
    let let_go = bench.answered(Outcome::Replied);
    let second = bench.asked();
    bench.at(501, second);
    bench.at(1_501, Event::Elapsed);
    // Both are abandoned now; the first would be held too long at 31 s, the second at 31.5 s.
    bench.at(30_000, let_go);
    let shutdown = Action::Signal { instance: ONE, signal: Signal::Shutdown };
    assert!(!bench.at(31_500, Event::Elapsed).contains(&shutdown));
    assert!(bench.at(31_501, Event::Elapsed).contains(&shutdown));
}

#[test]
fn an_answer_that_flows_for_ever_does_not_keep_a_breaker_half_open() {
    let mut bench = Bench::new(process(), Route::to("one"));
    for _ in 0..3 {
        let asked = bench.asked();
        bench.handle(asked);
        bench.handle(bench.answered(Outcome::Failed));
    }
    bench.at(40_000, Event::Elapsed);
    bench.handle(Event::Probed { instance: ONE, verdict: Verdict::Pass });
    let trial = bench.asked();
    bench.handle(trial);
    bench.handle(Event::Headed { ticket: Ticket::new(4, 0), instance: ONE });
    let other = bench.asked();
    let dispatch = Action::Dispatch { ticket: Ticket::new(5, 0), instance: ONE };
    assert_eq!(bench.handle(other), [dispatch], "another request may try");
    bench.now = bench.now + Duration::from_millis(1);
    bench.handle(bench.answered(Outcome::Replied));
    let status: Vec<_> = bench.conductor.platforms().flat_map(|platform| platform.instances).collect();
    assert_eq!(status[0].breaker, "closed");
}

#[test]
fn a_process_is_asked_to_end_then_sent_term_then_killed() {
    for (grace_ms, term_ms) in [(5_000, 1_000), (600, 300)] {
        let mut platform = process();
        platform.stop_grace_ms = bounded(grace_ms);
        let mut bench = Bench::new(platform, Route::to("one"));
        let signal = |signal| Action::Signal { instance: ONE, signal };
        assert!(bench.at(1_000, Event::Ordered(Order::Shutdown)).contains(&signal(Signal::Shutdown)));
        assert_eq!(bench.at(1_000 + term_ms - 1, Event::Elapsed), []);
        assert_eq!(bench.at(1_000 + term_ms, Event::Elapsed), [signal(Signal::Terminate)]);
        assert_eq!(bench.at(1_000 + grace_ms, Event::Elapsed), [signal(Signal::Kill)]);
    }
}

#[test]
fn nothing_comes_after_the_exit() {
    let mut bench = Bench::new(process(), Route::to("one"));
    bench.handle(Event::Ordered(Order::Shutdown));
    bench.handle(Event::Exited { instance: ONE, exit: crate::Exit::Code(0) });
    let asked = bench.asked();
    let actions = bench.at(60_000, asked);
    assert_eq!(actions.last(), Some(&Action::Exit(1)));
    let is_answer = |action: &Action| matches!(action, Action::Answer { .. });
    assert!(actions.iter().any(is_answer), "the request that came in the same turn is answered first: {actions:?}");
    assert_eq!(bench.conductor.deadline(), None);
}
