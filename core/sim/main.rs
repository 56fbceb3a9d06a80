//! Runs seeds of the world and tells how fast, how long and what went wrong in them on purpose.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use demi_sim::{sweep, Fault, Sight, Summary};

const HELP: &str = "\
Usage: demi-sim [--seeds N] [--from N]

Simulates Demi's decisions under seeded faults and stops at the first seed that fails.

  --seeds N   how many seeds to run (default 256)
  --from N    the first seed (default 0)
  --help      this text
";

fn main() -> ExitCode {
    let (mut seeds, mut from) = (256, 0);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let number = match argument.as_str() {
            "--help" | "-h" => {
                print!("{HELP}");
                return ExitCode::SUCCESS;
            }
            "--seeds" => &mut seeds,
            "--from" => &mut from,
            _ => return usage(&format!("unknown argument {argument:?}")),
        };
        match arguments.next().and_then(|text| text.parse::<u64>().ok()) {
            Some(given) => *number = given,
            None => return usage(&format!("{argument} takes a whole number")),
        }
    }
    #[expect(clippy::disallowed_methods, reason = "the tool measures itself; no decision sees this clock")]
    let started = std::time::Instant::now();
    let summary = sweep(from..from.saturating_add(seeds));
    tell(&summary, started.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("demi-sim: {problem}; see demi-sim --help");
    ExitCode::from(2)
}

fn tell(summary: &Summary, took: f64) {
    let rate = summary.seeds as f64 / took.max(1e-9);
    let hours = summary.simulated.as_secs_f64() / 3600.0;
    println!("{} seeds in {took:.2} s: {rate:.0} seeds/s, hash {:016x}", summary.seeds, summary.hash);
    println!("{} steps, {} requests, {hours:.1} simulated hours", summary.steps, summary.requests);
    println!("\n{:>9}  faults injected", summary.faults.total());
    for (fault, count) in Fault::ALL.iter().zip(summary.faults.counts()) {
        println!("{count:>9}  {}", fault.words());
    }
    println!("\n{:>9}  things seen", summary.sights.total());
    for (sight, count) in Sight::ALL.iter().zip(summary.sights.counts()) {
        println!("{count:>9}  {}", sight.words());
    }
}
