//! Demi's world: the same actions under a virtual clock, with seeded faults.
//!
//! The conductor decides everything and touches nothing, so everything around it can be pretended. A [`World`] draws
//! a configuration, a workload and rates of faults from one number, performs the conductor's actions on models of
//! processes, threads and services, and keeps books of its own (`ledger.rs`) about what each caller and platform was
//! promised. Hours pass in milliseconds, and whatever goes wrong can be had again by its seed.
//!
//! | what | where |
//! |---|---|
//! | clock, steps, the ways to an end | `world.rs` |
//! | what is done about each action, and what happens by itself | `world/perform.rs` |
//! | what instances are in truth | `machine.rs` |
//! | what goes wrong and how often | `faults.rs` |
//! | configurations and requests, and how soon all must be well again | `workload.rs` |
//! | what must hold, whatever goes wrong | `ledger.rs`, by subject in `ledger/` |
//! | what was recorded of a real machine, lived once more | `replay.rs` |
//!
//! A body whose head has been relayed has no deadline in the conductor: the world takes it that whoever carries the
//! body ends it as broken when it does not move, as the reactor does.

#![forbid(unsafe_code)]

mod faults;
mod ledger;
mod machine;
pub mod replay;
mod report;
#[cfg(test)]
mod tests;
mod workload;
mod world;

use std::ops::Range;
use std::panic::{catch_unwind, AssertUnwindSafe};

pub use faults::Fault;
pub use report::{Faults, Fnv1a, Report, Sight, Sights, Summary, Tally};
pub use world::World;

/// Runs every seed of the range.
///
/// # Panics
/// At the first seed that fails, with a message that names it and how to replay it.
pub fn sweep(seeds: Range<u64>) -> Summary {
    sweep_with(seeds, |_| ())
}

fn sweep_with(seeds: Range<u64>, prepare: impl Fn(&mut World)) -> Summary {
    let mut summary = Summary::default();
    for seed in seeds {
        let mut world = World::new(seed);
        prepare(&mut world);
        match autopsy(&mut world) {
            Ok(report) => summary.add(&report),
            Err(reason) => panic!(
                "seed {seed} failed; replay with DEMI_SEED={seed} cargo test -p demi-sim replay -- --nocapture\n{reason}"
            ),
        }
    }
    summary
}

/// Lives a world to its end and returns its report, or why it failed; the world is left as it was then, with its
/// trace if it was recorded.
pub fn autopsy(world: &mut World) -> Result<Report, String> {
    catch_unwind(AssertUnwindSafe(|| {
        world.live();
        world.report()
    }))
    .map_err(|panic| reason(&*panic))
}

/// What a panic said.
fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}
