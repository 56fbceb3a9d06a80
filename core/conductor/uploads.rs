//! A request whose body is on its way to an instance piece by piece, and kept by nobody: it cannot be given to another, and
//! its time is counted from when the body last moved.

use crate::event::{Instance, Ticket};
use crate::requests::Place;
use crate::timers::Timer;
use crate::Conductor;

impl Conductor {
    /// More of the body went to the instance, or the last of it.
    pub(crate) fn moved(&mut self, ticket: Ticket, instance: Instance) {
        let Some(request) = self.request(ticket) else {
            self.stats.stale += 1;
            return;
        };
        // Its answer may flow already: then nothing is left that the body could change.
        if request.place != (Place::Out { instance, headed: false }) {
            return;
        }
        let timeout = self.router.rule(request.route).map_or(request.deadline - request.given_at, |rule| rule.timeout);
        let (slot, deadline) = (instance.slot as usize, self.now + timeout);
        let attempt_end = self.attempt_end(slot, request.route, deadline);
        let slow_at = self.slow_at(request.platform as usize, attempt_end);
        let now = self.now;
        let entry = self.request_mut(ticket);
        (entry.is_committed, entry.deadline) = (true, deadline);
        (entry.given_at, entry.slow_at) = (now, slow_at);
        // Whoever takes the body is not silent.
        self.slots[slot].progress = now;
        self.timers.cancel(Timer::Hedge(ticket));
        self.set_timer(Timer::Expire(ticket), attempt_end);
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Bounded, Config, Host, Platform, Route};
    use crate::event::{Action, Answer, Ask, Event, Instance, Outcome, Ticket};
    use crate::router::RouteId;
    use crate::time::Time;
    use crate::Conductor;

    const TICKET: Ticket = Ticket::new(0, 0);

    /// Two instances, a route that tries again for a second, and a request that is out at one of them.
    struct Story {
        conductor: Conductor,
        with: Instance,
    }

    impl Story {
        fn begin() -> Story {
            let mut platform = Platform::new("up", Host::Http);
            platform.upstreams = vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
            let mut route = Route::to("up");
            (route.retries, route.idempotent) = (Bounded::new(3).expect("it is in range"), true);
            route.timeout_ms = Bounded::new(1_000).expect("it is in range");
            platform.health.interval_ms = Bounded::new(3_600_000);
            route.fallback = vec!["echo".to_owned()];
            let platforms = vec![platform, Platform::new("echo", Host::Inline)];
            let config = Config { platforms, routes: vec![route], ..Config::default() };
            let mut conductor = Conductor::new(&config, 1);
            let mut out = Vec::new();
            conductor.handle(Time::ZERO, Event::Began, &mut out);
            for slot in 0..2 {
                conductor.handle(Time::ZERO, Event::Started { instance: Instance { slot, run: 1 } }, &mut out);
            }
            let probed: Vec<Instance> = (0..2).map(|slot| Instance { slot, run: 1 }).collect();
            for instance in probed {
                let verdict = crate::Verdict::Pass;
                conductor.handle(Time::ZERO, Event::Probed { instance, verdict }, &mut out);
            }
            out.clear();
            let asked = Event::Asked {
                ticket: TICKET,
                route: Some(RouteId(0)),
                ask: Ask { idempotent: true, in_parts: true, ..Ask::default() },
            };
            conductor.handle(Time::ZERO, asked, &mut out);
            let with = out.iter().find_map(|action| match action {
                Action::Dispatch { instance, .. } => Some(*instance),
                _ => None,
            });
            Story { conductor, with: with.expect("an instance takes it") }
        }

        fn at(&mut self, millis: u64, event: Event) -> Vec<Action> {
            let mut out = Vec::new();
            self.conductor.handle(Time::from_millis(millis), event, &mut out);
            self.conductor.check();
            out
        }

        fn moved(&mut self, millis: u64) {
            let instance = self.with;
            let mut actions = self.at(millis, Event::Moved { ticket: TICKET, instance });
            actions.retain(|action| !matches!(action, Action::Probe { .. }));
            assert_eq!(actions, []);
        }

        fn answer(&mut self, millis: u64, event: Event) -> Option<Answer> {
            self.at(millis, event).into_iter().find_map(|action| match action {
                Action::Answer { answer, .. } => Some(answer),
                _ => None,
            })
        }
    }

    #[test]
    fn a_request_of_which_something_was_passed_on_is_not_tried_again() {
        let mut story = Story::begin();
        story.moved(1);
        let answered = Event::Answered { ticket: TICKET, instance: story.with, outcome: Outcome::Broken };
        assert_eq!(story.answer(2, answered), Some(Answer::Broken));
        // The same, had nothing moved.
        let mut story = Story::begin();
        let answered = Event::Answered { ticket: TICKET, instance: story.with, outcome: Outcome::Broken };
        assert_eq!(story.answer(2, answered), None);
        // Nor does another platform get it, when its time is up.
        let mut story = Story::begin();
        story.moved(1);
        assert_eq!(story.answer(1_001, Event::Elapsed), Some(Answer::TimedOut));
    }

    #[test]
    fn a_body_that_moves_has_its_time_counted_from_then() {
        let mut story = Story::begin();
        for step in 1..=10 {
            story.moved(step * 900);
        }
        assert_eq!(story.answer(9_999, Event::Elapsed), None);
        assert_eq!(story.answer(10_000, Event::Elapsed), Some(Answer::TimedOut));
    }

    #[test]
    fn a_body_that_moves_on_behind_its_answer_changes_nothing() {
        let mut story = Story::begin();
        let instance = story.with;
        story.moved(1);
        story.at(2, Event::Headed { ticket: TICKET, instance });
        story.moved(3);
        assert_eq!(story.answer(100_000, Event::Elapsed), None, "what flows has no end");
        let answered = Event::Answered { ticket: TICKET, instance, outcome: Outcome::Replied };
        assert_eq!(story.answer(100_000, answered), Some(Answer::Relayed));
        story.moved(100_001);
    }
}
