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

    /// A folder is found, of something that has weighed so much, MB; its index.
    fn finds(&mut self, platform: &Platform, peak: u64) -> u32 {
        let index = self.conductor.add(platform);
        self.weights.resize(self.weights.len() + platform.slots(), peak);
        self.runs.resize(self.weights.len(), None);
        self.happens(Event::PeakRecalled { platform: index, bytes: peak * MEGABYTE, age: Duration::ZERO });
        index
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
fn what_is_found_while_demi_runs_starts_only_if_it_fits_and_so_does_what_is_back() {
    let mut machine = Machine::begin(vec![child("files")], Scaler::default());
    machine.passes(60);
    let voice = machine.finds(&child("voice"), 2_000);
    machine.uses(6_500);
    let actions = machine.happens(Event::Ordered(Order::Enroll { platform: voice }));
    assert_eq!((machine.states(), refused(&actions)), (vec!["ready", "shed"], vec![Some(voice)]), "{actions:?}");
    machine.uses(4_000);
    machine.passes(60);
    assert_eq!(machine.states(), ["ready"; 2]);
    let why = machine.conductor.platforms().nth(1).expect("it is there").instances[0].why.clone();
    assert!(!why.contains("by hand"), "{why}");
    machine.happens(Event::Ordered(Order::Retire { platform: voice }));
    machine.background = 6_500;
    machine.passes(40);
    machine.happens(Event::Ordered(Order::Enroll { platform: voice }));
    assert_eq!(machine.states(), ["ready", "shed"]);
    // Whoever starts it means it.
    machine.happens(Event::Ordered(Order::Start { platform: voice }));
    assert_eq!(machine.states(), ["ready"; 2]);
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

/// `voice` weighs 2,000 MB, and so would a second one of it.
fn with_room_for_one(platform: Platform) -> Machine {
    let mut machine = Machine::begin(vec![child("files"), platform], Scaler::default());
    let slots = slot_of(1) as usize..=slot_of(1) as usize + 1;
    machine.weights[slots].fill(2_000);
    machine.background = 4_500;
    machine.passes(60);
    machine
}

impl Machine {
    fn reload(&mut self, is_by_hand: bool) -> Vec<Action> {
        self.reload_to(1, is_by_hand)
    }

    fn reload_to(&mut self, edition: u32, is_by_hand: bool) -> Vec<Action> {
        let terms = crate::Terms::of(&child("voice"));
        self.happens(Event::Ordered(Order::Reload { platform: 1, edition, terms, is_by_hand }))
    }

    /// The edition of what runs of `voice`, and whether another is to come.
    fn edition(&self) -> (Vec<u32>, bool) {
        let voice = self.conductor.platforms().nth(1).expect("it is there");
        (voice.instances.iter().map(|instance| instance.edition).collect(), voice.is_reloading)
    }
}

#[test]
fn a_change_is_taken_up_only_when_both_editions_fit_and_the_old_one_stays_until_then() {
    let mut machine = with_room_for_one(child("voice"));
    let actions = machine.reload(false);
    assert_eq!(told(&actions).first().map(|told| told.act), Some(Act::Postpone { missing: 600 * MEGABYTE }));
    let actions = machine.passes(600);
    assert_eq!((starts_of(&actions, 1), told(&actions)), (0, vec![]), "and that is told once");
    assert_eq!((machine.states(), machine.edition()), (vec!["ready"; 2], (vec![0], true)));
    let waits = machine.conductor.platforms().nth(1).expect("it is there").reload_waits;
    assert_eq!(waits.as_deref(), Some("it starts beside the old one when 800 MB more are free"));
    machine.background = 3_800;
    machine.passes(40);
    assert_eq!(machine.edition(), (vec![0], true), "it would fit, but with nothing to spare");
    machine.background = 3_600;
    machine.passes(40);
    assert_eq!((machine.states(), machine.edition()), (vec!["ready"; 2], (vec![1], false)));
}

#[test]
fn what_changes_again_while_a_change_waits_takes_its_place_and_nothing_has_failed() {
    let mut machine = with_room_for_one(child("voice"));
    machine.reload(false);
    let actions = machine.reload_to(2, false);
    assert!(actions.contains(&Action::Reject { platform: 1, edition: 1 }), "{actions:?}");
    assert!(told(&actions).is_empty(), "that it waits was told: {actions:?}");
    let has_failed = |action: &Action| matches!(action, Action::Tell { news: News::SwapFailed { .. }, .. });
    assert!(!actions.iter().any(has_failed), "{actions:?}");
    assert_eq!((starts_of(&actions, 1), machine.edition()), (0, (vec![0], true)));
    machine.background = 3_000;
    machine.passes(60);
    assert_eq!(machine.edition(), (vec![2], false));
    // A person does not wait, whatever does.
    let mut machine = with_room_for_one(child("voice"));
    machine.reload(false);
    assert_eq!(starts_of(&machine.reload_to(2, true), 1), 1);
}

#[test]
fn a_person_has_both_editions_run_though_they_do_not_fit_but_in_an_emergency() {
    let mut machine = with_room_for_one(child("voice"));
    let actions = machine.reload(true);
    assert_eq!(told(&actions).first().map(|told| told.act), Some(Act::Overrule { missing: 600 * MEGABYTE }));
    assert_eq!(starts_of(&actions, 1), 1, "{actions:?}");
    machine.passes(5);
    assert_eq!((machine.states()[1], machine.edition()), ("ready", (vec![1], false)));
    let mut machine = with_room_for_one(Platform { shed: Some(false), ..child("voice") });
    machine.uses(7_500);
    let actions = machine.reload(true);
    assert!(matches!(told(&actions)[..], [Decision { act: Act::Refuse { .. }, .. }]), "{actions:?}");
    assert!(actions.contains(&Action::Reject { platform: 1, edition: 1 }), "{actions:?}");
    assert_eq!((machine.states()[1], machine.edition()), ("ready", (vec![0], false)));
}

#[test]
fn what_is_shed_while_its_new_edition_waits_comes_back_as_that() {
    let mut machine = with_room_for_one(child("voice"));
    machine.reload(false);
    machine.background = 6_500;
    machine.passes(60);
    assert_eq!(machine.states(), ["ready", "shed"], "a reload that waits spares nobody");
    assert!(!machine.edition().1, "there is nothing left beside which it would have to fit");
    machine.background = 3_000;
    machine.passes(600);
    assert_eq!((machine.states(), machine.edition()), (vec!["ready"; 2], (vec![1], false)));
}

#[test]
fn what_crashes_while_its_new_edition_waits_goes_on_as_it_was() {
    let mut machine = with_room_for_one(child("voice"));
    machine.reload(false);
    machine.crashes(1);
    assert_eq!((machine.states(), machine.edition()), (vec!["ready"; 2], (vec![0], true)));
}

#[test]
fn with_forecast_only_a_new_edition_does_not_wait_and_it_is_told_that_it_would_have() {
    let scaler = Scaler { forecast_only: true, ..Scaler::default() };
    let mut machine = Machine::begin(vec![child("files"), child("voice")], scaler);
    machine.weights[slot_of(1) as usize] = 2_000;
    machine.background = 4_500;
    machine.passes(60);
    let actions = machine.reload(false);
    assert!(matches!(told(&actions)[..], [Decision { act: Act::Postpone { .. }, is_done: false, .. }]), "{actions:?}");
    machine.passes(5);
    assert_eq!(machine.edition(), (vec![1], false));
}

#[test]
fn a_new_edition_that_waits_is_what_starts_after_a_stop_and_after_a_restart() {
    for order in [Order::Stop { platform: 1 }, Order::Retire { platform: 1 }, Order::Restart { platform: 1 }] {
        let mut machine = with_room_for_one(child("voice"));
        machine.reload(false);
        machine.happens(Event::Ordered(order));
        machine.passes(5);
        machine.happens(Event::Ordered(Order::Start { platform: 1 }));
        machine.passes(5);
        assert_eq!((machine.states(), machine.edition()), (vec!["ready"; 2], (vec![1], false)), "{order:?}");
    }
    let files = Platform { restart_dependents: true, ..child("files") };
    let mut machine = Machine::begin(vec![files, needs("voice", "files")], Scaler::default());
    machine.weights[slot_of(1) as usize] = 2_000;
    machine.background = 4_500;
    machine.passes(60);
    machine.reload(false);
    machine.crashes(0);
    machine.passes(5);
    assert_eq!((machine.states(), machine.edition()), (vec!["ready"; 2], (vec![1], false)));
}

#[test]
fn who_needs_whom_is_looked_at_once_however_many_ways_lead_there() {
    let name = |layer: usize, place: usize| format!("p{layer}-{place}");
    let layers = 40;
    let platforms = (0..layers).flat_map(|layer| {
        (0..3).map(move |place| {
            let needs = if layer == 0 { Vec::new() } else { (0..3).map(|place| name(layer - 1, place)).collect() };
            Platform { needs, ..child(&name(layer, place)) }
        })
    });
    let mut machine = Machine::new(platforms.collect(), Vec::new(), Scaler::default());
    machine.weights.fill(1);
    machine.happens(Event::Began);
    assert_eq!(machine.states(), vec!["ready"; layers * 3]);
    for platform in 0..3 {
        machine.happens(Event::Ordered(Order::Stop { platform }));
    }
    machine.passes(5);
    let last = layers as u32 * 3 - 1;
    machine.happens(Event::Ordered(Order::Start { platform: last }));
    assert_eq!(machine.states(), vec!["ready"; layers * 3]);
}
