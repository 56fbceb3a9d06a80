//! The sweep, and the tests that it can be trusted: it repeats itself, it sees everything, it finds planted bugs.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::panic;
use std::sync::Once;

use demi_conductor::Plant;

use crate::{autopsy, sweep, sweep_with, Fault, Fnv1a, Sight, Summary, World};

const SEEDS: u64 = 256;

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs something that is expected to panic without the noise of it.
fn quietly<T>(what: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                loud(info);
            }
        }));
    });
    IS_QUIET.set(true);
    let result = what();
    IS_QUIET.set(false);
    result
}

#[test]
fn two_hundred_and_fifty_six_seeds_pass_and_see_every_fault_and_every_answer_to_it() {
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        let halves = [0..SEEDS / 2, SEEDS / 2..SEEDS].map(|seeds| scope.spawn(|| sweep(seeds)));
        for half in halves {
            summary.join(&half.join().unwrap_or_else(|panic| panic::resume_unwind(panic)));
        }
    });
    assert_eq!(summary.seeds, SEEDS);
    let faults = Fault::ALL.iter().map(|fault| fault.words()).zip(summary.faults.counts());
    let sights = Sight::ALL.iter().map(|sight| sight.words()).zip(summary.sights.counts());
    let missed: Vec<&str> = faults.chain(sights).filter(|(_, count)| **count == 0).map(|(words, _)| words).collect();
    assert!(missed.is_empty(), "the sweep tests nothing of this: {missed:?}");
}

#[test]
fn the_same_seed_is_the_same_run_and_another_is_another() {
    let runs: Vec<u64> = (1000..1006).map(|seed| World::run(seed).hash).collect();
    let again: Vec<u64> = (1000..1006).map(|seed| World::run(seed).hash).collect();
    assert_eq!(runs, again);
    assert!((1..runs.len()).all(|index| !runs[..index].contains(&runs[index])), "{runs:x?}");
}

#[test]
fn recording_a_run_does_not_change_it() {
    let mut world = World::new(1001);
    world.record();
    assert_eq!(autopsy(&mut world), Ok(World::run(1001)));
    assert!(world.trace().len() > 100);
}

#[test]
fn the_hash_is_fnv_1a() {
    let mut hasher = Fnv1a::default();
    hasher.write(b"foobar");
    assert_eq!(hasher.finish(), 0x8594_4171_f739_67e8);
    let mut other = Fnv1a::default();
    (1_u8, 2_u64).hash(&mut other);
    assert_ne!(hasher.finish(), other.finish());
}

/// Asserts that the sweep finds the bug, and that nothing else is wrong with the seed that does.
fn assert_found(plant: Plant, why: &str) {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.plant(plant);
        if let Err(reason) = quietly(|| autopsy(&mut world)) {
            assert!(reason.contains(why), "{plant:?} was found at seed {seed} for another reason: {reason}");
            World::run(seed);
            return;
        }
    }
    panic!("{plant:?} was planted and not found");
}

#[test]
fn the_sweep_finds_a_breaker_whose_clock_is_moved_by_probes() {
    assert_found(Plant::BreakerClockMovedByProbes, "deadline was moved");
}

#[test]
fn the_sweep_finds_a_trial_that_is_never_returned() {
    assert_found(Plant::TrialNeverReturned, "never returned");
}

#[test]
fn the_sweep_finds_an_accepted_answer_of_an_old_run() {
    assert_found(Plant::LateAnswerAccepted, "Relayed is not what came of");
}

#[test]
fn the_sweep_finds_a_reload_that_cuts_requests_short() {
    assert_found(Plant::ReplacedWithoutDraining, "before its time to drain was over: a new edition took its place");
}

#[test]
fn a_failing_seed_is_named_with_the_way_to_replay_it() {
    let plant = |world: &mut World| world.plant(Plant::TrialNeverReturned);
    let panic = quietly(|| panic::catch_unwind(|| sweep_with(0..SEEDS, plant))).expect_err("the plant is found");
    let message = panic.downcast_ref::<String>().expect("the message is made with a number in it");
    let seed = message.split_whitespace().nth(1).expect("the second word is the seed");
    assert!(message.starts_with(&format!("seed {seed} failed; replay with DEMI_SEED={seed} ")), "{message}");
}

/// `DEMI_SEED=n cargo test -p demi-sim replay -- --nocapture`: one seed with all that happened in it, or with
/// `DEMI_LINES=n` the last so many lines of that.
#[test]
fn replay_the_seed_in_demi_seed() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let Some(seed) = number("DEMI_SEED") else { return };
    let mut world = World::new(seed);
    world.record();
    let result = autopsy(&mut world);
    let lines = number("DEMI_LINES").map_or(world.trace().len(), |lines| lines as usize);
    for line in &world.trace()[world.trace().len().saturating_sub(lines)..] {
        println!("{line}");
    }
    match result {
        Ok(report) => println!("seed {seed} passes: {report:?}"),
        Err(reason) => panic!("seed {seed} failed: {reason}"),
    }
}
