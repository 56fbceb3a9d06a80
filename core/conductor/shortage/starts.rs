//! Whatever starts by itself starts only if it fits, each told as a short story.

use super::*;

fn needs(name: &str, need: &str) -> Platform {
    Platform { needs: vec![need.to_owned()], ..child(name) }
}

impl Machine {
    /// Everything else uses so much from now on, MB, and that was just measured.
    fn uses(&mut self, megabytes: u64) {
        self.background = megabytes;
        self.happens(Event::Measured { sample: self.sample() });
    }
}

fn starts_of(actions: &[Action], platform: usize) -> usize {
    let slot = slot_of(platform);
    let is_its = |action: &&Action| matches!(action, Action::Start { instance, .. } if instance.slot / 2 == slot / 2);
    actions.iter().filter(is_its).count()
}

fn refused(actions: &[Action]) -> Vec<Option<u32>> {
    let decisions = told(actions).into_iter();
    decisions.filter(|decision| matches!(decision.act, Act::Refuse { .. })).map(|decision| decision.platform).collect()
}

/// `voice` needs `base` and is restarted with it.
fn with_a_dependent(scaler: Scaler) -> Machine {
    let base = Platform { restart_dependents: true, ..child("base") };
    let mut machine = Machine::begin(vec![base, needs("voice", "base")], scaler);
    machine.weights[slot_of(1) as usize] = 2_000;
    machine.background = 5_500;
    machine.passes(60);
    assert_eq!(machine.states(), ["ready"; 2]);
    machine
}

#[test]
fn what_is_restarted_after_what_it_needs_is_started_again_only_if_it_still_fits() {
    let mut machine = with_a_dependent(Scaler::default());
    machine.crashes(0);
    assert_eq!(machine.states(), ["ready"; 2], "what it had is free again");
    let mut machine = with_a_dependent(Scaler::default());
    machine.uses(6_000);
    let actions = machine.crashes(0);
    assert_eq!(machine.states(), ["ready", "shed"]);
    assert_eq!((starts_of(&actions, 1), refused(&actions)), (0, vec![Some(1)]), "{actions:?}");
    let why = machine.conductor.platforms().nth(1).expect("it is there").instances[0].why.clone();
    assert_eq!(why, "it was not started, for 100 MB are missing below scaler.shed_percent");
    machine.uses(5_000);
    machine.passes(60);
    assert_eq!(machine.states(), ["ready"; 2], "it need not be calm: {}", machine.next_of(1));
}

#[test]
fn what_comes_back_with_what_a_person_starts_does_so_only_if_it_fits() {
    let mut machine = with_a_dependent(Scaler::default());
    machine.happens(Event::Ordered(Order::Stop { platform: 0 }));
    machine.background = 6_500;
    machine.passes(40);
    let actions = machine.happens(Event::Ordered(Order::Start { platform: 0 }));
    assert_eq!((machine.states(), refused(&actions)), (vec!["ready", "shed"], vec![Some(1)]), "{actions:?}");
    // Whoever means it says so, and then what it needs is meant as well.
    let mut machine = with_a_dependent(Scaler::default());
    machine.happens(Event::Ordered(Order::Stop { platform: 0 }));
    machine.background = 6_500;
    machine.passes(40);
    let actions = machine.happens(Event::Ordered(Order::Start { platform: 1 }));
    assert_eq!((machine.states(), refused(&actions)), (vec!["ready"; 2], vec![]), "{actions:?}");
}

#[test]
fn what_had_to_wait_for_what_it_needs_is_looked_at_when_that_is_there() {
    let base = Platform { start: Start::Manual, ..child("base") };
    let platforms = vec![base, needs("voice", "base")];
    let mut machine = Machine::begin_with(platforms, Scaler::default(), &[0, 2_000], 3_000);
    assert_eq!(machine.states(), ["stopped", "waiting"]);
    machine.uses(6_500);
    machine.happens(Event::Ordered(Order::Start { platform: 0 }));
    assert_eq!(machine.states(), ["ready", "shed"]);
}

#[test]
fn what_had_used_up_its_starts_begins_the_next_day_only_if_it_fits() {
    let spent = || {
        let voice = Platform { start_budget_per_day: bounded(3), ..child("voice") };
        let mut machine = Machine::begin(vec![child("files"), voice], Scaler::default());
        machine.weights[slot_of(1) as usize] = 2_000;
        machine.passes(60);
        for _ in 0..2 {
            machine.crashes(1);
            machine.passes(10);
        }
        assert_eq!(machine.states(), ["ready", "failed"]);
        machine
    };
    let mut machine = spent();
    machine.happens(Event::DayBegan);
    assert_eq!(machine.states(), ["ready"; 2]);
    let mut machine = spent();
    machine.uses(6_500);
    let actions = machine.happens(Event::DayBegan);
    assert_eq!((machine.states(), refused(&actions)), (vec!["ready", "shed"], vec![Some(1)]), "{actions:?}");
    machine.uses(4_000);
    machine.passes(60);
    assert_eq!(machine.states(), ["ready"; 2]);
}

#[test]
fn with_forecast_only_a_start_that_does_not_fit_is_made_all_the_same_and_told() {
    let mut machine = with_a_dependent(Scaler { forecast_only: true, ..Scaler::default() });
    machine.uses(6_000);
    let actions = machine.crashes(0);
    assert_eq!((machine.states(), refused(&actions)), (vec!["ready"; 2], vec![Some(1)]), "{actions:?}");
    assert!(machine.conductor.decisions().all(|decision| !decision.is_done));
}
