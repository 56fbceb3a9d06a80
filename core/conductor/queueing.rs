//! Who of those that wait for a platform has the next turn, and who does not wait at all, each told as a short story.

use crate::config::{Bounded, Config, Host, Platform, Route, Start, Urgency};
use crate::{
    Action, Answer, Ask, Conductor, Event, Instance, Outcome, PostId, Posting, Refusal, RouteId, Ticket, Time, Tries,
};
use Urgency::{High, Low, Normal};

/// A platform with one hand.
struct Story {
    conductor: Conductor,
    now: Time,
    tickets: u32,
}

const FIRST_RUN: Instance = Instance { slot: 0, run: 1 };

/// What of a platform these stories are about, with one hand and room for two that wait.
fn narrow() -> Platform {
    Platform { queue_max: bounded(2), ..Platform::new("narrow", Host::Threads(1)) }
}

fn bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(number: u64) -> Bounded<LOW, HIGH, DEFAULT> {
    Bounded::new(number).expect("the number is in its range")
}

impl Story {
    fn begin(platforms: Vec<Platform>, routes: Vec<Route>) -> Story {
        let config = Config { platforms, routes, ..Config::default() };
        assert_eq!(config.mistakes(&["narrow", "wide"]), []);
        let mut story = Story { conductor: Conductor::new(&config, 1), now: Time::ZERO, tickets: 0 };
        for action in story.happens(Event::Began) {
            if let Action::Start { instance, .. } = action {
                story.happens(Event::Started { instance });
            }
        }
        story
    }

    /// One platform that has its hand full.
    fn busy(platform: Platform, route: Route) -> (Story, Ticket) {
        let mut story = Story::begin(vec![platform], vec![route]);
        let (first, actions) = story.ask(Normal);
        assert_eq!(dispatched(&actions), [first]);
        (story, first)
    }

    fn happens(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.conductor.handle(self.now, event, &mut out);
        self.conductor.check();
        out
    }

    /// Time passes, timer by timer. Nobody answers.
    fn passes(&mut self, millis: u64) -> Vec<Action> {
        let until = Time::from_nanos(self.now.as_nanos() + millis * 1_000_000);
        let mut all = Vec::new();
        while let Some((at, _)) = self.conductor.deadline().filter(|(at, _)| *at <= until) {
            self.now = at;
            all.extend(self.happens(Event::Elapsed));
        }
        self.now = until;
        all
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket::new(self.tickets, 0)
    }

    fn ask(&mut self, urgency: Urgency) -> (Ticket, Vec<Action>) {
        let ticket = self.ticket();
        let route = Some(RouteId(0));
        (ticket, self.happens(Event::Asked { ticket, route, ask: Ask { urgency, ..Ask::default() } }))
    }

    /// The one that is asked answers; who gets its hand then.
    fn answers(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let answered = Event::Answered { ticket, instance: FIRST_RUN, outcome: Outcome::Replied };
        dispatched(&self.happens(answered))
    }
}

fn dispatched(actions: &[Action]) -> Vec<Ticket> {
    let dispatch = |action: &Action| match action {
        Action::Dispatch { ticket, .. } => Some(*ticket),
        _ => None,
    };
    actions.iter().filter_map(dispatch).collect()
}

/// Who is refused, and why.
fn refused(actions: &[Action]) -> Vec<(Ticket, Refusal)> {
    let refusal = |action: &Action| match action {
        Action::Answer { ticket, answer: Answer::Refused(refusal, after) } => {
            assert!(!after.is_zero(), "who is refused is told when to come back");
            Some((*ticket, *refusal))
        }
        _ => None,
    };
    actions.iter().filter_map(refusal).collect()
}

#[test]
fn an_internal_request_passes_a_chat_message() {
    let (mut story, first) = Story::busy(Platform { queue_max: bounded(8), ..narrow() }, Route::to("narrow"));
    let [kept, chat, other_chat, internal] = [Low, Normal, Normal, High].map(|urgency| story.ask(urgency).0);
    assert_eq!(story.answers(first), [internal]);
    assert_eq!(story.answers(internal), [chat]);
    assert_eq!(story.answers(chat), [other_chat], "among equals the first");
    assert_eq!(story.answers(other_chat), [kept]);
}

#[test]
fn the_last_of_the_least_urgent_gives_way_when_there_is_no_room() {
    let (mut story, first) = Story::busy(narrow(), Route::to("narrow"));
    let (normal, _) = story.ask(Normal);
    let (low, _) = story.ask(Low);
    let (high, actions) = story.ask(High);
    assert_eq!(refused(&actions), [(low, Refusal::QueueFull)]);
    let (late, actions) = story.ask(Normal);
    assert_eq!(refused(&actions), [(late, Refusal::QueueFull)], "nobody gives way to an equal");
    assert_eq!(story.conductor.platforms[0].stats.displaced, 1);
    assert_eq!(story.answers(first), [high]);
    assert_eq!(story.answers(high), [normal]);
}

#[test]
fn who_gives_way_goes_to_the_next_platform_of_its_route() {
    let route = Route { fallback: vec!["wide".to_owned()], ..Route::to("narrow") };
    let wide = Platform::new("wide", Host::Threads(1));
    let mut story = Story::begin(vec![Platform { queue_max: bounded(1), ..narrow() }, wide], vec![route]);
    story.ask(Normal);
    let (low, _) = story.ask(Low);
    let (_, actions) = story.ask(High);
    assert_eq!(dispatched(&actions), [low]);
    assert!(actions.contains(&Action::FallBack { ticket: low, platform: 1 }), "{actions:?}");
}

#[test]
fn what_a_route_says_comes_before_who_asks() {
    let (mut story, first) = Story::busy(narrow(), Route { urgency: Some(Low), ..Route::to("narrow") });
    let [urgent, other] = [High, Low].map(|urgency| story.ask(urgency).0);
    let (late, actions) = story.ask(High);
    assert_eq!(refused(&actions), [(late, Refusal::QueueFull)]);
    assert_eq!(story.answers(first), [urgent]);
    assert_eq!(story.answers(urgent), [other]);
}

#[test]
fn a_kept_message_that_gives_way_keeps_its_turn_and_that_is_no_attempt() {
    let (mut story, first) = Story::busy(Platform { queue_max: bounded(1), ..narrow() }, Route::to("narrow"));
    let post = PostId(1);
    let due = story.now;
    let posting = Posting { route: Some(RouteId(0)), key: 0, due, expires: None, tries: Tries::default() };
    story.happens(Event::Posted { post, posting });
    let delivery = story.ticket();
    story.happens(Event::PostLoaded { post, ticket: delivery });
    let (chat, actions) = story.ask(Normal);
    assert_eq!(refused(&actions), [(delivery, Refusal::QueueFull)]);
    assert_eq!(story.answers(first), [chat]);
    story.answers(chat);
    let actions = story.passes(1_000);
    assert!(actions.contains(&Action::Deliver { post }), "{actions:?}");
    let delivery = story.ticket();
    assert_eq!(dispatched(&story.happens(Event::PostLoaded { post, ticket: delivery })), [delivery]);
}

/// One hand, room for many, and nobody waits for more than a tenth of a second behind others.
fn impatient() -> Platform {
    Platform { queue_max: bounded(100), queue_age_max_ms: Some(bounded(100)), ..narrow() }
}

#[test]
fn behind_one_that_has_waited_for_too_long_nobody_waits_who_is_no_more_urgent() {
    let (mut story, first) = Story::busy(impatient(), Route::to("narrow"));
    let (waiting, _) = story.ask(Normal);
    story.passes(100);
    assert_eq!(refused(&story.ask(Normal).1), [], "that is no longer than any may wait");
    story.passes(1);
    for urgency in [Normal, Low] {
        let (late, actions) = story.ask(urgency);
        assert_eq!(refused(&actions), [(late, Refusal::QueueAge)]);
    }
    let (urgent, actions) = story.ask(High);
    assert_eq!(refused(&actions), [], "it passes them");
    assert_eq!(story.conductor.platforms[0].stats.refused[Refusal::QueueAge as usize], 2);
    assert_eq!(story.answers(first), [urgent]);
    assert_eq!(story.answers(urgent), [waiting]);
    assert_eq!(refused(&story.ask(Normal).1), [], "the one that had waited has had its turn");
}

#[test]
fn one_that_is_less_urgent_may_have_waited_for_long_and_keeps_nobody_away() {
    let (mut story, _) = Story::busy(impatient(), Route::to("narrow"));
    story.ask(Low);
    story.passes(200);
    assert_eq!(refused(&story.ask(Normal).1), []);
    let (late, actions) = story.ask(Low);
    assert_eq!(refused(&actions), [(late, Refusal::QueueAge)]);
}

#[test]
fn what_waits_for_a_start_waits_as_long_as_it_must_and_that_is_not_held_against_who_comes_later() {
    let lazy = Platform { start: Start::Lazy, ..impatient() };
    let mut story = Story::begin(vec![lazy], vec![Route::to("narrow")]);
    let (first, _) = story.ask(Normal);
    story.passes(1_000);
    let (second, actions) = story.ask(Normal);
    assert_eq!(refused(&actions), [], "nobody is there whom it could wait for behind the first");
    story.passes(1_000);
    assert_eq!(dispatched(&story.happens(Event::Started { instance: FIRST_RUN })), [first]);
    let (third, actions) = story.ask(Normal);
    assert_eq!(refused(&actions), [], "those that wait have done so for an instance that is there for no time yet");
    assert_eq!(story.answers(first), [second]);
    story.passes(101);
    let (late, actions) = story.ask(Normal);
    assert_eq!(refused(&actions), [(late, Refusal::QueueAge)]);
    assert_eq!(story.answers(second), [third]);
}
