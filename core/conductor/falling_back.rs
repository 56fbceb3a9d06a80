//! Another platform, if one does not take a request or has failed for good: the next of the route's `fallback`, within
//! the time that the request has left.
//!
//! At its new platform it is like one that was just asked: attempts are counted anew, and it waits if it must. One that
//! may have been acted on goes on only if it may be asked twice, as with any other attempt; one whose body passes in parts,
//! only to those that take it so.

use crate::breaker::Finding;
use crate::config::Host;
use crate::event::{Action, Answer, Outcome, Refusal, Ticket};
use crate::requests::{Place, Request};
use crate::shutdown::Phase;
use crate::Conductor;

impl Conductor {
    /// The place in its route's fallback of the platform that gets a request which would end so, if any does.
    pub(crate) fn next_in_chain(&mut self, ticket: Ticket, answer: Answer, outcome: Option<Outcome>) -> Option<u32> {
        let &mut Request { route, place, deadline, attempts, idempotent, passed_on, in_parts, is_committed, .. } =
            self.request_mut(ticket);
        let takes = |platform: u32| !in_parts || self.platforms[platform as usize].host == Host::Http;
        let mut chain = (0..).zip(&self.router.rule(route)?.fallback).skip(passed_on as usize);
        let (next, _) = chain.find(|(_, platform)| takes(**platform))?;
        let is_over = match answer {
            Answer::Relayed => !matches!(outcome, Some(Outcome::Failed | Outcome::Busy)),
            Answer::Broken | Answer::TimedOut => false,
            Answer::Refused(refusal, _) => match refusal {
                Refusal::QueueFull
                | Refusal::QueueAge
                | Refusal::BreakerOpen
                | Refusal::NotReady
                | Refusal::Isolated
                | Refusal::Shed => false,
                // Its time is up, or Demi as a whole takes no more.
                Refusal::QueueTimeout | Refusal::Draining | Refusal::TooMany => true,
            },
            Answer::NoRoute | Answer::Unheard => true,
        };
        // Who was too busy has done nothing.
        let may_be_done = attempts > u32::from(outcome == Some(Outcome::Busy));
        let is_flowing = matches!(place, Place::Out { headed: true, .. });
        let may_go_on = self.phase == Phase::Running && self.now < deadline && (idempotent || !may_be_done);
        let may_go_on = may_go_on && !self.delivers_too_late(ticket);
        (may_go_on && !is_over && !is_flowing && !is_committed).then_some(next)
    }

    /// Gives a request that no instance has to the platform in this place of its route's fallback.
    pub(crate) fn fall_back(&mut self, ticket: Ticket, place: u32, answer: Answer, out: &mut Vec<Action>) {
        let (now, route) = (self.now, self.request_mut(ticket).route);
        let Some(&next) = self.router.rule(route).and_then(|rule| rule.fallback.get(place as usize)) else { return };
        let platform = self.leave(ticket);
        let last = &mut self.platforms[platform as usize];
        last.stats.passed_on += 1;
        if let Answer::Refused(refusal, _) = answer {
            last.stats.count_refusal(refusal);
        }
        let name = |platform: u32| &self.platforms[platform as usize].name;
        log::debug!("a request goes from {} to {}: {answer:?}", name(platform), name(next));
        let next_platform = &mut self.platforms[next as usize];
        next_platform.used_at = now;
        next_platform.live += 1;
        next_platform.stats.asked += 1;
        let request = self.request_mut(ticket);
        *request = Request {
            platform: next,
            place: Place::Queued,
            attempts: 0,
            misses: 0,
            attempts_before: request.attempts_before + request.attempts,
            passed_on: place + 1,
            headed_late: false,
            second: None,
            is_second: false,
            first_ended: None,
            shown: (Finding::Nothing, false),
            queued_at: now,
            missed: None,
            ..*request
        };
        out.push(Action::FallBack { ticket, platform: next });
        self.place(ticket, None, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Bounded, Config, Host, OnFailure, Platform, Route};
    use crate::{Ask, Event, Instance, Report, RouteId, Time, Verdict};

    struct Story {
        conductor: Conductor,
        now: Time,
        tickets: u32,
    }

    const CHAIN: [&str; 3] = ["main", "backup", "last"];

    impl Story {
        /// Three platforms, of which those that are named are up, with room for one request each and none that waits.
        fn begin(up: &[&str], idempotent: bool) -> Story {
            Story::begin_with([Host::Threads(1); 3], up, idempotent)
        }

        fn begin_with(hosts: [Host; 3], up: &[&str], idempotent: bool) -> Story {
            let platform = |place: usize| {
                let mut platform = Platform::new(CHAIN[place], hosts[place]);
                platform.queue_max = Bounded::new(0).expect("it is in range");
                if hosts[place] == Host::Http {
                    platform.upstreams = vec!["127.0.0.1:1".to_owned()];
                }
                platform
            };
            let route = Route {
                fallback: CHAIN[1..].iter().map(|name| (*name).to_owned()).collect(),
                idempotent,
                on_failure: OnFailure::DeadLetter,
                ..Route::to("main")
            };
            let config =
                Config { platforms: [0, 1, 2].map(platform).to_vec(), routes: vec![route], ..Config::default() };
            assert_eq!(config.mistakes(&CHAIN), []);
            let mut story = Story { conductor: Conductor::new(&config, 1), now: Time::ZERO, tickets: 0 };
            for action in story.happens(Event::Began) {
                if let Action::Start { instance, .. } = action {
                    if up.contains(&CHAIN[instance.slot as usize]) {
                        story.happens(Event::Started { instance });
                        if hosts[instance.slot as usize] == Host::Http {
                            story.happens(Event::Probed { instance, verdict: Verdict::Pass });
                        }
                    }
                }
            }
            story
        }

        fn happens(&mut self, event: Event) -> Vec<Action> {
            let mut out = Vec::new();
            self.conductor.handle(self.now, event, &mut out);
            self.conductor.check();
            out
        }

        fn ask(&mut self) -> (Ticket, Vec<Action>) {
            self.ask_so(Ask::default())
        }

        fn ask_so(&mut self, ask: Ask) -> (Ticket, Vec<Action>) {
            self.tickets += 1;
            let ticket = Ticket::new(self.tickets, 0);
            let route = Some(RouteId(0));
            (ticket, self.happens(Event::Asked { ticket, route, ask }))
        }

        fn answers(&mut self, ticket: Ticket, instance: Instance, outcome: Outcome) -> Vec<Action> {
            self.happens(Event::Answered { ticket, instance, outcome })
        }
    }

    const fn first_run(slot: u32) -> Instance {
        Instance { slot, run: 1 }
    }

    /// What was decided of requests.
    fn said(actions: &[Action]) -> Vec<Action> {
        let is_said = |action: &&Action| {
            matches!(
                action,
                Action::FallBack { .. } | Action::Dispatch { .. } | Action::Answer { .. } | Action::Bury { .. }
            )
        };
        actions.iter().filter(is_said).copied().collect()
    }

    #[test]
    fn what_a_full_platform_refuses_the_next_one_takes() {
        let mut story = Story::begin(&CHAIN, false);
        let (_, actions) = story.ask();
        assert!(matches!(said(&actions)[..], [Action::Dispatch { instance: Instance { slot: 0, .. }, .. }]));
        let (ticket, actions) = story.ask();
        let dispatch = Action::Dispatch { ticket, instance: first_run(1) };
        assert_eq!(said(&actions), [Action::FallBack { ticket, platform: 1 }, dispatch]);
        let (ticket, actions) = story.ask();
        let [first, second] = [1, 2].map(|platform| Action::FallBack { ticket, platform });
        assert_eq!(said(&actions), [first, second, Action::Dispatch { ticket, instance: first_run(2) }]);
        let (_, actions) = story.ask();
        assert_eq!([0, 1, 2].map(|platform| story.conductor.platforms[platform].stats.passed_on), [3, 2, 0]);
        let last = said(&actions).last().copied();
        assert!(
            matches!(last, Some(Action::Answer { answer: Answer::Refused(Refusal::QueueFull, _), .. })),
            "{last:?}"
        );
    }

    #[test]
    fn a_body_that_passes_in_parts_goes_on_only_to_those_that_take_it_so() {
        let in_parts = Ask { idempotent: true, in_parts: true, ..Ask::default() };
        let mut story = Story::begin_with([Host::Http, Host::Threads(1), Host::Http], &CHAIN, false);
        let (ticket, _) = story.ask_so(in_parts);
        let beyond = said(&story.answers(ticket, first_run(0), Outcome::Broken));
        let dispatch = Action::Dispatch { ticket, instance: first_run(2) };
        assert_eq!(beyond, [Action::FallBack { ticket, platform: 2 }, dispatch]);
        let last = said(&story.answers(ticket, first_run(2), Outcome::Broken));
        assert_eq!(last, [Action::Bury { ticket, answer: Answer::Broken, attempts: 2 }], "its chain is at its end");
        let mut story = Story::begin_with([Host::Http, Host::Threads(1), Host::Inline], &CHAIN, false);
        let (ticket, _) = story.ask_so(in_parts);
        let nobody = said(&story.answers(ticket, first_run(0), Outcome::Broken));
        assert_eq!(nobody, [Action::Bury { ticket, answer: Answer::Broken, attempts: 1 }]);
    }

    #[test]
    fn what_a_platform_does_not_take_that_drains_the_next_one_takes() {
        let mut story = Story::begin(&CHAIN, false);
        let report = Report { weight: None, drain: true };
        story.happens(Event::Reported { instance: first_run(0), report });
        let (ticket, actions) = story.ask();
        let dispatch = Action::Dispatch { ticket, instance: first_run(1) };
        assert_eq!(said(&actions), [Action::FallBack { ticket, platform: 1 }, dispatch]);
    }

    #[test]
    fn what_failed_is_asked_elsewhere_only_if_it_may_be_asked_twice() {
        let mut story = Story::begin(&CHAIN, true);
        let (ticket, _) = story.ask();
        for slot in 0..2 {
            let said = said(&story.answers(ticket, first_run(slot), Outcome::Failed));
            let dispatch = Action::Dispatch { ticket, instance: first_run(slot + 1) };
            assert_eq!(said, [Action::FallBack { ticket, platform: slot + 1 }, dispatch]);
        }
        let said_last = said(&story.answers(ticket, first_run(2), Outcome::Failed));
        assert_eq!(said_last, [Action::Bury { ticket, answer: Answer::Relayed, attempts: 3 }]);
        let mut story = Story::begin(&CHAIN, false);
        let (ticket, _) = story.ask();
        let said_once = said(&story.answers(ticket, first_run(0), Outcome::Failed));
        assert_eq!(said_once, [Action::Bury { ticket, answer: Answer::Relayed, attempts: 1 }]);
    }

    #[test]
    fn who_was_too_busy_has_done_nothing_so_another_may() {
        let mut story = Story::begin(&CHAIN, false);
        let (ticket, _) = story.ask();
        let said = said(&story.answers(ticket, first_run(0), Outcome::Busy));
        assert_eq!(
            said,
            [Action::FallBack { ticket, platform: 1 }, Action::Dispatch { ticket, instance: first_run(1) }]
        );
    }

    #[test]
    fn nothing_goes_on_after_its_time() {
        let mut story = Story::begin(&CHAIN, true);
        let (ticket, _) = story.ask();
        story.now = Time::from_millis(5_000);
        let said = said(&story.happens(Event::Elapsed));
        assert_eq!(said, [Action::Bury { ticket, answer: Answer::TimedOut, attempts: 1 }]);
    }

    #[test]
    fn a_caller_s_own_mistake_is_nobody_else_s_business() {
        let mut story = Story::begin(&CHAIN, true);
        let (ticket, _) = story.ask();
        let said = said(&story.answers(ticket, first_run(0), Outcome::Mistaken));
        assert_eq!(said, [Action::Answer { ticket, answer: Answer::Relayed }]);
    }
}
