//! How requests are spread over the instances of a platform, each way told as a short story.

use crate::config::{Balance, Bounded, Config, Host, Platform, Route};
use crate::{
    Action, Answer, Ask, Conductor, Event, Instance, News, Outcome, Refusal, Report, RouteId, Ticket, Time, Verdict,
};

struct Story {
    conductor: Conductor,
    tickets: u32,
}

impl Story {
    /// One platform of so many services, all well.
    fn begin(balance: Balance, weights: &[u64], upstreams: usize) -> Story {
        let mut platform = Platform::new("web", Host::Http);
        platform.balance = balance;
        platform.upstreams = (0..upstreams).map(|upstream| format!("127.0.0.1:{}", 3000 + upstream)).collect();
        platform.weights = weights.iter().map(|weight| Bounded::new(*weight).expect("it is in range")).collect();
        let config = Config { platforms: vec![platform], routes: vec![Route::to("web")], ..Config::default() };
        assert_eq!(config.mistakes(&[]), []);
        let mut story = Story { conductor: Conductor::new(&config, 1), tickets: 0 };
        story.happens(Event::Began);
        story
    }

    /// Has every probe pass but those of this slot, which fail.
    fn happens_with(&mut self, at: Time, event: Event, ill: Option<u32>) -> Vec<Action> {
        let mut out = Vec::new();
        self.conductor.handle(at, event, &mut out);
        self.conductor.check();
        for action in out.clone() {
            let news = match action {
                Action::Start { instance, .. } => Event::Started { instance },
                Action::Probe { instance } if ill == Some(instance.slot) => {
                    Event::Probed { instance, verdict: Verdict::Fail }
                }
                Action::Probe { instance } => Event::Probed { instance, verdict: Verdict::Pass },
                _ => continue,
            };
            out.extend(self.happens_with(at, news, ill));
        }
        out
    }

    fn happens(&mut self, event: Event) -> Vec<Action> {
        self.happens_with(Time::ZERO, event, None)
    }

    fn ask(&mut self, at: Time, key: Option<u64>) -> (Ticket, Instance) {
        self.tickets += 1;
        let ticket = Ticket::new(self.tickets, 0);
        let asked = Event::Asked { ticket, route: Some(RouteId(0)), ask: Ask { key, ..Ask::default() } };
        let dispatch = |action: &Action| match action {
            Action::Dispatch { ticket, instance } => Some((*ticket, *instance)),
            _ => None,
        };
        self.happens_with(at, asked, None).iter().find_map(dispatch).expect("an instance is free")
    }

    /// Asks, and has it answered at once; the slot that was asked.
    fn slot(&mut self, at: Time, key: Option<u64>) -> u32 {
        let (ticket, instance) = self.ask(at, key);
        self.happens_with(at, Event::Answered { ticket, instance, outcome: Outcome::Replied }, None);
        instance.slot
    }

    /// The first run of this slot says how it wants to be balanced.
    fn reports(&mut self, at: Time, slot: u32, weight: Option<u32>, drain: bool) -> Vec<Action> {
        let event = Event::Reported { instance: Instance { slot, run: 1 }, report: Report { weight, drain } };
        self.happens_with(at, event, None)
    }

    /// This slot fails its probes until it is out.
    fn falls_ill(&mut self, slot: u32) -> Time {
        let mut at = Time::ZERO;
        while let Some((next, _)) = self.conductor.deadline().filter(|(next, _)| *next <= Time::from_millis(30_000)) {
            at = next;
            self.happens_with(at, Event::Elapsed, Some(slot));
        }
        at
    }
}

#[test]
fn each_instance_has_its_turn() {
    let mut story = Story::begin(Balance::RoundRobin, &[], 3);
    let slots: Vec<u32> = (0..6).map(|_| story.slot(Time::ZERO, None)).collect();
    assert_eq!(slots, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn a_turn_of_an_instance_that_is_out_goes_to_the_next() {
    let mut story = Story::begin(Balance::RoundRobin, &[], 3);
    let at = story.falls_ill(1);
    let slots: Vec<u32> = (0..4).map(|_| story.slot(at, None)).collect();
    assert_eq!(slots, [0, 2, 0, 2]);
}

#[test]
fn an_instance_is_asked_as_often_as_its_weight_says() {
    let mut story = Story::begin(Balance::Weighted, &[3, 1], 2);
    let slots: Vec<u32> = (0..8).map(|_| story.slot(Time::ZERO, None)).collect();
    assert_eq!(slots, [0, 0, 1, 0, 0, 0, 1, 0]);
}

#[test]
fn a_key_stays_with_its_instance_and_comes_back_to_it() {
    let mut story = Story::begin(Balance::Sticky, &[], 4);
    let before: Vec<u32> = (0..200).map(|key| story.slot(Time::ZERO, Some(key))).collect();
    assert_eq!((0..200).map(|key| story.slot(Time::ZERO, Some(key))).collect::<Vec<u32>>(), before);
    for slot in 0..4 {
        assert!(before.contains(&slot), "no key is with {slot}");
    }
    let at = story.falls_ill(2);
    for (key, slot) in (0..200).zip(before) {
        let now = story.slot(at, Some(key));
        assert!(now != 2 && (slot == 2 || slot == now), "key {key} went from {slot} to {now}");
    }
}

#[test]
fn a_silent_instance_gets_nothing_though_the_other_has_just_started() {
    // Both have just started, and are spared some of their requests.
    let mut story = Story::begin(Balance::LeastInFlight, &[], 2);
    let (_, silent) = story.ask(Time::ZERO, None);
    for step in 0..500 {
        let at = Time::from_millis(100 + step);
        assert_ne!(story.slot(at, None), silent.slot, "after {step} requests");
    }
}

#[test]
fn a_request_without_a_key_goes_where_there_is_least_to_do() {
    let mut story = Story::begin(Balance::Sticky, &[], 2);
    let (_, busy) = story.ask(Time::ZERO, None);
    assert_ne!(story.slot(Time::ZERO, None), busy.slot);
}

#[test]
fn weights_are_for_services_and_processes_and_one_for_each_that_cannot_say_for_itself() {
    let mut platform = Platform::new("web", Host::Http);
    platform.upstreams = vec!["127.0.0.1:3000".to_owned(), "127.0.0.1:3001".to_owned()];
    let weights = |numbers: &[u64]| numbers.iter().filter_map(|number| Bounded::new(*number)).collect();
    let mut told = |balance, numbers: &[u64]| {
        (platform.balance, platform.weights) = (balance, weights(numbers));
        let mistakes = Config { platforms: vec![platform.clone()], ..Config::default() }.mistakes(&[]);
        mistakes.into_iter().map(|mistake| mistake.at).collect::<Vec<String>>()
    };
    assert_eq!(told(Balance::Weighted, &[3, 1]), Vec::<String>::new());
    assert_eq!(told(Balance::Weighted, &[3]), ["platforms[0].weights"]);
    assert_eq!(told(Balance::Weighted, &[]), ["platforms[0].weights"]);
    assert_eq!(told(Balance::RoundRobin, &[3, 1]), ["platforms[0].weights"]);
    platform.health_path = Some("/".to_owned());
    platform.balance = Balance::Weighted;
    for (host, sound) in [(Host::Http, [0, 2]), (Host::Process(3), [0, 3])] {
        for count in 0..5 {
            if let Host::Process(_) = host {
                platform = Platform { command: vec!["a".to_owned()], ..Platform::new("web", host) };
                platform.balance = Balance::Weighted;
            }
            platform.weights = vec![Bounded::default(); count];
            let mistakes = Config { platforms: vec![platform.clone()], ..Config::default() }.mistakes(&[]);
            assert_eq!(mistakes.is_empty(), sound.contains(&count), "{host:?} {count} {mistakes:?}");
        }
    }
    platform = Platform::new("echo", Host::Inline);
    platform.balance = Balance::Weighted;
    let mistakes = Config { platforms: vec![platform], ..Config::default() }.mistakes(&["echo"]);
    assert_eq!(mistakes[0].at, "platforms[0].balance");
}

#[test]
fn a_cookie_is_for_services_that_go_by_keys_and_has_the_name_of_one() {
    let told = |host, balance, name: Option<&str>, max_age_s: Option<u64>| {
        let mut platform = Platform::new("web", host);
        if host == Host::Http {
            platform.upstreams = vec!["127.0.0.1:3000".to_owned()];
        }
        (platform.balance, platform.sticky_cookie) = (balance, name.map(str::to_owned));
        platform.sticky_cookie_max_age_s = max_age_s.and_then(Bounded::new);
        let mistakes = Config { platforms: vec![platform], ..Config::default() }.mistakes(&["web"]);
        mistakes.into_iter().map(|mistake| mistake.at).collect::<Vec<String>>()
    };
    let (cookie, max_age) = ("platforms[0].sticky_cookie", "platforms[0].sticky_cookie_max_age_s");
    assert_eq!(told(Host::Http, Balance::Sticky, Some("demi_session"), Some(60)), [""; 0]);
    assert_eq!(told(Host::Http, Balance::Sticky, Some("Host-a.b"), None), [""; 0]);
    assert_eq!(told(Host::Http, Balance::LeastInFlight, Some("a"), None), [cookie]);
    assert_eq!(told(Host::Inline, Balance::Sticky, Some("a"), None), [cookie]);
    assert_eq!(told(Host::Http, Balance::Sticky, None, Some(60)), [max_age]);
    for wrong in ["", "a b", "a=b", "a;b", "a\r\nb", "\"a\"", "ä", &"a".repeat(257), "__Host-a", "__Secure-a"] {
        assert_eq!(told(Host::Http, Balance::Sticky, Some(wrong), None), [cookie], "{wrong:?}");
    }
}

#[test]
fn what_an_instance_says_of_its_weight_comes_before_what_is_configured_until_it_says_nothing_of_it() {
    let mut story = Story::begin(Balance::Weighted, &[3, 1], 2);
    story.reports(Time::ZERO, 1, Some(3), false);
    let slots: Vec<u32> = (0..4).map(|_| story.slot(Time::ZERO, None)).collect();
    assert_eq!(slots, [0, 1, 0, 1]);
    story.reports(Time::ZERO, 1, None, false);
    let slots: Vec<u32> = (0..8).map(|_| story.slot(Time::ZERO, None)).collect();
    assert_eq!(slots.iter().filter(|slot| **slot == 0).count(), 6, "{slots:?}");
}

#[test]
fn one_that_drains_gets_nothing_new_however_requests_are_balanced_and_goes_on_with_what_it_has() {
    for balance in [Balance::LeastInFlight, Balance::RoundRobin, Balance::Weighted, Balance::Sticky] {
        let weights: &[u64] = if balance == Balance::Weighted { &[1, 1, 1] } else { &[] };
        let mut story = Story::begin(balance, weights, 3);
        let (ticket, instance) = story.ask(Time::ZERO, Some(7));
        let actions = story.reports(Time::ZERO, instance.slot, None, true);
        assert!(!actions.iter().any(|action| matches!(action, Action::Cancel { .. })), "{actions:?}");
        for key in 0..30 {
            assert_ne!(story.slot(Time::ZERO, Some(key)), instance.slot, "{balance:?}");
        }
        let actions = story.happens(Event::Answered { ticket, instance, outcome: Outcome::Replied });
        assert!(actions.contains(&Action::Answer { ticket, answer: Answer::Relayed }), "{actions:?}");
        let status = &story.conductor.platforms().next().expect("there is one").instances[instance.slot as usize];
        assert!(status.drains && !status.is_serving && status.state == "ready", "{status:?}");
        story.reports(Time::ZERO, instance.slot, None, false);
        let at = Time::from_millis(60_000);
        let slots: Vec<u32> = (0..30).map(|key| story.slot(at, Some(key))).collect();
        assert!(slots.contains(&instance.slot), "{balance:?} {slots:?}");
    }
}

#[test]
fn one_that_drains_is_asked_how_it_is_as_ever() {
    let mut story = Story::begin(Balance::RoundRobin, &[], 2);
    story.reports(Time::ZERO, 1, None, true);
    let mut probed = 0;
    while let Some((at, _)) = story.conductor.deadline().filter(|(at, _)| *at <= Time::from_millis(30_000)) {
        let actions = story.happens_with(at, Event::Elapsed, None);
        let is_of = |action: &&Action| matches!(action, Action::Probe { instance } if instance.slot == 1);
        probed += actions.iter().filter(is_of).count();
    }
    assert!(probed >= 5, "{probed}");
}

#[test]
fn where_everybody_drains_requests_are_refused_as_if_nobody_were_ready_those_that_wait_as_well() {
    let mut platform = Platform::new("web", Host::Http);
    platform.upstreams = vec!["127.0.0.1:3000".to_owned()];
    platform.in_flight_max = Bounded::new(1);
    let config = Config { platforms: vec![platform], routes: vec![Route::to("web")], ..Config::default() };
    let mut story = Story { conductor: Conductor::new(&config, 1), tickets: 10 };
    story.happens(Event::Began);
    story.ask(Time::ZERO, None);
    let asked = |number| Event::Asked { ticket: Ticket::new(number, 0), route: Some(RouteId(0)), ask: Ask::default() };
    let is_refused = |actions: &[Action], number| {
        actions.iter().any(|action| match action {
            Action::Answer { ticket, answer: Answer::Refused(refusal, after) } if ticket.slot() == number => {
                *refusal == Refusal::NotReady && !after.is_zero()
            }
            _ => false,
        })
    };
    assert!(!is_refused(&story.happens(asked(1)), 1), "it waits for the one that is busy");
    assert!(is_refused(&story.reports(Time::ZERO, 0, None, true), 1));
    assert!(is_refused(&story.happens(asked(2)), 2));
    assert!(!story.conductor.is_ready(), "nobody would serve");
}

#[test]
fn one_that_changes_its_mind_all_the_while_is_told_of_now_and_then() {
    let mut story = Story::begin(Balance::RoundRobin, &[], 2);
    let mut told = Vec::new();
    for step in 0..2_500 {
        let actions = story.reports(Time::from_millis(step * 10), 1, None, step.is_multiple_of(2));
        told.extend(actions.iter().filter_map(|action| match action {
            Action::Tell { news, .. } if matches!(news, News::DrainBegan | News::DrainEnded) => Some(*news),
            _ => None,
        }));
    }
    assert_eq!(told, [News::DrainBegan, News::DrainEnded].repeat(3));
}
