//! `demi-bench decide`: what a decision costs, in nanoseconds, without any I/O.
//!
//! Each line is the median of many batches, so that a batch in which the machine did something else does not count.

use std::hint::black_box;
use std::time::{Duration, Instant};

use argh::FromArgs;
use demi::conductor::{
    Action, Ask, Conductor, Event, Instance, Outcome as How, Question, RouteId, TicketBook, Time, Verdict,
};
use demi::{Config, Host, Platform, Route};
use serde::Serialize;

use crate::report::{print, Machine, Spread, Table};
use crate::Outcome;

/// Decisions in a batch, and batches in a line.
const BATCH: u32 = 10_000;
const BATCHES: usize = 101;

#[derive(FromArgs)]
#[argh(subcommand, name = "decide")]
/// nanoseconds per decision of the conductor, without any I/O
pub struct Arguments {
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    /// Asked and Answered, nanoseconds for both events together.
    request_inline_ns: Spread,
    request_two_processes_ns: Spread,
    /// The same while a thousand other requests are under way.
    request_among_a_thousand_ns: Spread,
    /// The router alone, where the last of so many rules matches.
    route_10_rules_ns: Spread,
    route_1000_rules_ns: Spread,
    /// All probes of a thousand instances sent and answered once, microseconds.
    health_tick_1000_us: Spread,
}

/// Runs `demi-bench decide`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let machine = Machine::now();
    let document = Document {
        request_inline_ns: requests(Host::Inline, 0),
        request_two_processes_ns: requests(Host::Process(2), 0),
        request_among_a_thousand_ns: requests(Host::Process(64), 1000),
        route_10_rules_ns: routes(10),
        route_1000_rules_ns: routes(1000),
        health_tick_1000_us: health_tick(&processes(1000)),
    };
    let mut table = Table::new(&["", "median", "least", "most", "batches"]);
    for (name, spread) in [
        ("request, inline (two events), ns", &document.request_inline_ns),
        ("request, two processes (two events), ns", &document.request_two_processes_ns),
        ("request among 1,000 under way, 64 processes, ns", &document.request_among_a_thousand_ns),
        ("route, the last of 10 rules, ns", &document.route_10_rules_ns),
        ("route, the last of 1,000 rules, ns", &document.route_1000_rules_ns),
        ("health tick of 1,000 instances, µs", &document.health_tick_1000_us),
    ] {
        let [median, least, most, batches] = spread.cells();
        table.row(&[name.to_owned(), median, least, most, batches]);
    }
    print(arguments.json, &machine, &document, &[("cost of a decision", table)])
}

/// A conductor without disk or network, and a clock that the benchmark moves.
struct Bench {
    conductor: Conductor,
    now: Time,
    out: Vec<Action>,
    book: TicketBook,
}

impl Bench {
    /// One platform whose instances are all ready.
    fn new(host: Host) -> Bench {
        let config = Config {
            platforms: vec![Platform::new("echo", host)],
            routes: vec![Route::to("echo")],
            ..Config::default()
        };
        let mut bench = Bench {
            conductor: Conductor::new(&config, 1),
            now: Time::ZERO,
            out: Vec::new(),
            book: TicketBook::default(),
        };
        bench.handle(Event::Began);
        for action in std::mem::take(&mut bench.out) {
            if let Action::Start { instance, .. } = action {
                bench.handle(Event::Started { instance });
            }
        }
        bench.out.clear();
        bench
    }

    fn handle(&mut self, event: Event) {
        self.conductor.handle(self.now, event, &mut self.out);
    }

    /// Asks; returns who was given the request, unless it must wait.
    fn ask(&mut self) -> Option<(demi::conductor::Ticket, Instance)> {
        let ticket = self.book.issue();
        self.handle(Event::Asked { ticket, route: Some(RouteId(0)), ask: Ask::default() });
        let dispatched = match self.out.last() {
            Some(Action::Dispatch { ticket, instance }) => Some((*ticket, *instance)),
            _ => None,
        };
        self.out.clear();
        dispatched
    }

    /// Has every probe that was sent come back well; how many those were.
    fn pass(&mut self) -> usize {
        let mut probed = 0;
        for action in std::mem::take(&mut self.out) {
            if let Action::Probe { instance } = action {
                self.handle(Event::Probed { instance, verdict: Verdict::Pass });
                probed += 1;
            }
        }
        self.out.clear();
        probed
    }

    fn answer(&mut self, ticket: demi::conductor::Ticket, instance: Instance) {
        self.handle(Event::Answered { ticket, instance, outcome: How::Replied });
        self.book.retire(ticket);
        self.out.clear();
    }
}

fn requests(host: Host, others: usize) -> Spread {
    let mut bench = Bench::new(host);
    for _ in 0..others {
        bench.ask();
    }
    batches(|| {
        for _ in 0..BATCH {
            // Little virtual time passes, so that hardly any probe falls due.
            bench.now = bench.now + Duration::from_nanos(100);
            let (ticket, instance) = bench.ask().expect("an instance is free");
            bench.answer(ticket, instance);
        }
        f64::from(BATCH)
    })
}

fn routes(count: usize) -> Spread {
    let routes = (0..count).map(|index| Route { path: Some(format!("/path/{index}")), ..Route::to("echo") }).collect();
    let config = Config { platforms: vec![Platform::new("echo", Host::Inline)], routes, ..Config::default() };
    let conductor = Conductor::new(&config, 1);
    let path = format!("/path/{}", count - 1);
    let question = Question { path: &path, by_path: true, ..Question::default() };
    batches(|| {
        for _ in 0..BATCH / 10 {
            black_box(conductor.router().find(black_box(&question)));
        }
        f64::from(BATCH / 10)
    })
}

/// So many instances of child processes, over as few platforms as may have them.
pub fn processes(instances: u16) -> Vec<Platform> {
    let hosts = instances.div_ceil(256);
    (0..hosts).map(|index| Platform::new(&format!("p{index}"), Host::Process(instances / hosts))).collect()
}

/// Sends and answers every probe of an interval; microseconds for all instances of the platforms.
pub fn health_tick(platforms: &[Platform]) -> Spread {
    let config = Config { platforms: platforms.to_vec(), ..Config::default() };
    let mut bench =
        Bench { conductor: Conductor::new(&config, 1), now: Time::ZERO, out: Vec::new(), book: TicketBook::default() };
    bench.handle(Event::Began);
    for action in std::mem::take(&mut bench.out) {
        if let Action::Start { instance, .. } = action {
            bench.handle(Event::Started { instance });
        }
    }
    // A service elsewhere has not been spoken to yet, and is asked at once.
    bench.pass();
    let instances: usize = platforms.iter().map(Platform::instances).sum();
    let interval = |bench: &mut Bench| {
        let end = bench.now + Duration::from_secs(5);
        let mut probed = 0;
        while let Some((at, _)) = bench.conductor.deadline().filter(|(at, _)| *at <= end) {
            bench.now = at;
            bench.handle(Event::Elapsed);
            probed += bench.pass();
        }
        bench.now = end;
        probed
    };
    // Those whose turn is at the very moment they came up are asked at both ends of their first interval.
    interval(&mut bench);
    batches(|| {
        assert_eq!(interval(&mut bench), instances, "each instance is probed once in an interval");
        1000.0
    })
}

/// Nanoseconds per decision: `batch` does some and says how many.
pub fn batches(mut batch: impl FnMut() -> f64) -> Spread {
    batch();
    let per_decision: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let began = Instant::now();
            let decisions = batch();
            began.elapsed().as_nanos() as f64 / decisions
        })
        .collect();
    Spread::of(&per_decision)
}
