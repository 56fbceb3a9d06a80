//! `demi-bench breaker`: what a breaker costs a request, beside a struct that only counts failures in a row.
//!
//! A decision is what a breaker is asked of a request that goes well: whether it may go, that it goes, and how it ended.
//! The clock is an input and moves with each decision, so that the window turns over as it does under load.

use std::hint::black_box;
use std::time::Duration;

use argh::FromArgs;
use demi::conductor::breaker::{Breaker, Cause, Finding, Mode, Rules};
use demi::conductor::config::{self, Bounded};
use demi::conductor::{Ticket, TicketBook, Time};
use serde::Serialize;

use crate::decide::batches;
use crate::report::{aim, print, Machine, Spread, Table};
use crate::Outcome;

/// Decisions in a batch.
const BATCH: u32 = 100_000;
/// Between two decisions: 10,000 requests a second, so that a bucket of three seconds takes 30,000 of them.
const PACE: Duration = Duration::from_micros(100);
/// Between two decisions of which each finds the present bucket full.
const PACE_OF_BUCKETS: Duration = Duration::from_secs(3);

/// Most nanoseconds for a decision, and most bytes of a breaker.
const RATES_OFF_NS_MAX: f64 = 10.0;
const WINDOWS_NS_MAX: f64 = 20.0;
const BYTES_MAX: usize = 256;

#[derive(FromArgs)]
#[argh(subcommand, name = "breaker")]
/// nanoseconds per decision of a breaker, and its size
pub struct Arguments {
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    /// Nanoseconds of admitting and recording one good call, closed.
    counter_ns: Spread,
    rates_off_ns: Spread,
    windows_ns: Spread,
    /// As a request pays it: the breaker of its instance and that of the platform.
    pair_ns: Spread,
    /// Windows on, and each call is the first of its bucket.
    new_bucket_ns: Spread,
    /// Windows on, every fourth call fails: never two in a row, and too few for the rate.
    failing_ns: Spread,
    breaker_bytes: usize,
}

/// Runs `demi-bench breaker`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let machine = Machine::now();
    let windows = config::Breaker::default();
    let off = Bounded::new(0).ok_or("a rate of 0 is refused")?;
    let rates_off = config::Breaker { failure_percent: off, slow_percent: off, ..windows };
    let document = Document {
        counter_ns: counter(),
        rates_off_ns: one(&rates_off, PACE, always_good),
        windows_ns: one(&windows, PACE, always_good),
        pair_ns: pair(&windows),
        new_bucket_ns: one(&windows, PACE_OF_BUCKETS, always_good),
        failing_ns: one(&windows, PACE, fourth_bad),
        breaker_bytes: size_of::<Breaker>(),
    };
    let mut table = Table::new(&["", "median", "least", "most", "batches", "aim"]);
    for (name, spread, most) in [
        ("a struct that counts failures in a row, ns", &document.counter_ns, None),
        ("breaker, rates off, ns", &document.rates_off_ns, Some(RATES_OFF_NS_MAX)),
        ("breaker, sliding windows on, ns", &document.windows_ns, Some(WINDOWS_NS_MAX)),
        ("instance and platform, windows on, ns", &document.pair_ns, None),
        ("windows on, each call in a new bucket, ns", &document.new_bucket_ns, None),
        ("windows on, every fourth call fails, ns", &document.failing_ns, None),
    ] {
        let [median, least, largest, batches] = spread.cells();
        let aim = most.map_or_else(String::new, |most| aim(spread.median, most, "ns"));
        table.row(&[name.to_owned(), median, least, largest, batches, aim]);
    }
    let mut size = Table::new(&["", "bytes", "aim"]);
    let bytes = document.breaker_bytes;
    size.row(&["a breaker".to_owned(), bytes.to_string(), aim(bytes as f64, BYTES_MAX as f64, "bytes")]);
    print(arguments.json, &machine, &document, &[("admit and record, closed", table), ("Size", size)])
}

fn always_good(_number: u32) -> Finding {
    Finding::Good
}

fn fourth_bad(number: u32) -> Finding {
    match number % 4 {
        0 => Finding::Bad(Mode::Application),
        _ => Finding::Good,
    }
}

/// One decision. What it depends on comes out of a black box, so that none of it is known when this is compiled.
fn decide(breaker: &mut Breaker, rules: &Rules, now: Time, ticket: Ticket, finding: Finding) -> Option<Cause> {
    assert!(breaker.admits(), "the breaker that is measured has opened");
    black_box(breaker.admit(ticket));
    breaker.record(now, ticket, black_box(finding), black_box(false), rules)
}

fn one(settings: &config::Breaker, pace: Duration, finding: fn(u32) -> Finding) -> Spread {
    let rules = Rules::of_instance(settings);
    let mut breaker = Breaker::default();
    let ticket = TicketBook::default().issue();
    let mut now = Time::ZERO;
    batches(|| {
        for number in 0..BATCH {
            now = now + pace;
            let cause = decide(black_box(&mut breaker), black_box(&rules), now, ticket, finding(number));
            assert!(cause.is_none(), "these calls trip no breaker");
        }
        f64::from(BATCH)
    })
}

fn pair(settings: &config::Breaker) -> Spread {
    let rules = [Rules::of_instance(settings), Rules::of_platform(settings)];
    let mut breakers = [Breaker::default(), Breaker::default()];
    let ticket = TicketBook::default().issue();
    let mut now = Time::ZERO;
    batches(|| {
        for _ in 0..BATCH {
            now = now + PACE;
            let ([instance, platform], [of_instance, of_platform]) = (black_box(&mut breakers), black_box(&rules));
            let trips = decide(instance, of_instance, now, ticket, Finding::Good).is_some()
                | decide(platform, of_platform, now, ticket, Finding::Good).is_some();
            assert!(!trips, "good calls trip no breaker");
        }
        f64::from(BATCH)
    })
}

/// The least that can be called a breaker: the bound for the others.
struct Counter {
    failures: u32,
    is_open: bool,
}

impl Counter {
    fn record(&mut self, finding: Finding) {
        self.failures = if let Finding::Bad(_) = finding { self.failures + 1 } else { 0 };
        self.is_open |= self.failures >= 3;
    }
}

fn counter() -> Spread {
    let mut counter = Counter { failures: 0, is_open: false };
    let mut now = Time::ZERO;
    batches(|| {
        for _ in 0..BATCH {
            now = black_box(now + PACE);
            let counter = black_box(&mut counter);
            assert!(!counter.is_open, "the counter that is measured has opened");
            counter.record(black_box(Finding::Good));
        }
        f64::from(BATCH)
    })
}
