//! `demi-bench health`: what it costs to ask every instance how it is, and what Demi costs while it does nothing else.
//!
//! A tick is one interval of health checks, five seconds, in which each instance is asked once and answers. It is measured
//! in three ways: its decisions alone; the processor time of the thread that a whole reactor runs on, with platforms whose
//! answer costs nothing, if all are asked in one turn; and the same if the reactor waits as it likes. Then checks are spread
//! over the interval, and the thread is woken up for nearly each. What such a thread takes without any platform is taken off.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use argh::FromArgs;
use demi::conductor::config::Http;
use demi::{Config, Host, Options, Platform, Reactor};
use rustix::time::{clock_gettime, ClockId};
use serde::Serialize;

use crate::decide::{health_tick, processes};
use crate::demi::{executable, free_port, Bare, Demi};
use crate::report::{aim, number, print, progress, Machine, Spread, Table};
use crate::{procfs, Outcome};

/// The interval of health checks, which is the configuration's default.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long Demi settles before it counts as idle.
const SETTLE: Duration = Duration::from_secs(5);
/// Upstreams of a platform that is a service elsewhere.
const UPSTREAMS: u16 = 50;

/// Most milliseconds of the reactor's thread for a tick of 1,000 and of 10,000 instances, and most percent of a core.
const TICK_1000_MS_MAX: f64 = 1.0;
const TICK_10000_MS_MAX: f64 = 10.0;
const IDLE_PERCENT_MAX: f64 = 0.1;

#[derive(FromArgs)]
#[argh(subcommand, name = "health")]
/// a health check of 1,000 and 10,000 instances; CPU time of an idle Demi with ten platforms
pub struct Arguments {
    /// intervals of five seconds that a reactor with 1,000 platforms is measured for (default 4)
    #[argh(option, default = "4")]
    intervals: usize,
    /// seconds over which the CPU time of an idle Demi is taken (default 30)
    #[argh(option, default = "30")]
    idle_seconds: u64,
    /// the demi executable (default: the one beside this one)
    #[argh(option)]
    demi: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    /// Decisions alone: every instance asked and its answer heard, microseconds.
    decisions_1000_processes_us: Spread,
    decisions_1000_upstreams_us: Spread,
    decisions_10000_processes_us: Spread,
    decisions_10000_upstreams_us: Spread,
    /// A reactor with 1,000 inline platforms: CPU time of its thread in an interval, microseconds, less what one without
    /// platforms takes.
    reactor_1000_one_turn_us: Spread,
    reactor_1000_us: Spread,
    /// Without platforms.
    reactor_0_one_turn_us: Spread,
    reactor_0_us: Spread,
    /// Turns in an interval, if it waits as it likes.
    reactor_1000_turns: f64,
    reactor_0_turns: f64,
    idle: Idle,
}

/// Demi with ten platforms and no request: all its threads, without its children.
#[derive(Serialize)]
struct Idle {
    seconds: f64,
    cpu_percent: f64,
    wakeups_per_s: f64,
    threads: Vec<Thread>,
}

#[derive(Serialize)]
struct Thread {
    name: String,
    cpu_percent: f64,
    wakeups_per_s: f64,
}

/// Runs `demi-bench health`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let executable = executable(arguments.demi.as_deref())?;
    let machine = Machine::now();
    progress("decisions");
    let decisions_1000_processes_us = health_tick(&processes(1000));
    let decisions_1000_upstreams_us = health_tick(&upstreams(1000));
    let decisions_10000_processes_us = health_tick(&processes(10_000));
    let decisions_10000_upstreams_us = health_tick(&upstreams(10_000));
    progress("a reactor without platforms");
    let [none_one_turn, none] = Ticking::both(0, arguments.intervals)?;
    progress("a reactor with 1,000 platforms");
    let [one_turn, many] = Ticking::both(1000, arguments.intervals)?;
    progress("an idle Demi with ten platforms");
    let idle = Idle::measure(&executable, Duration::from_secs(arguments.idle_seconds))?;
    let document = Document {
        decisions_1000_processes_us,
        decisions_1000_upstreams_us,
        decisions_10000_processes_us,
        decisions_10000_upstreams_us,
        reactor_1000_one_turn_us: one_turn.less(&none_one_turn),
        reactor_1000_us: many.less(&none),
        reactor_0_one_turn_us: Spread::of(&none_one_turn.cpu_us),
        reactor_0_us: Spread::of(&none.cpu_us),
        reactor_1000_turns: many.turns,
        reactor_0_turns: none.turns,
        idle,
    };
    print(arguments.json, &machine, &document, &document.tables())
}

impl Document {
    fn tables(&self) -> Vec<(&'static str, Table)> {
        let mut ticks = Table::new(&["µs", "median", "least", "most", "times", "aim"]);
        for (name, spread, most) in [
            ("decisions alone, 1,000 processes", &self.decisions_1000_processes_us, Some(TICK_1000_MS_MAX)),
            ("decisions alone, 1,000 upstreams", &self.decisions_1000_upstreams_us, Some(TICK_1000_MS_MAX)),
            ("decisions alone, 10,000 processes", &self.decisions_10000_processes_us, Some(TICK_10000_MS_MAX)),
            ("decisions alone, 10,000 upstreams", &self.decisions_10000_upstreams_us, Some(TICK_10000_MS_MAX)),
            ("reactor, 1,000 inline platforms, in one turn", &self.reactor_1000_one_turn_us, Some(TICK_1000_MS_MAX)),
            ("reactor, 1,000 inline platforms, spread", &self.reactor_1000_us, Some(TICK_1000_MS_MAX)),
            ("reactor, no platform, in one turn (taken off)", &self.reactor_0_one_turn_us, None),
            ("reactor, no platform, spread (taken off)", &self.reactor_0_us, None),
        ] {
            let [median, least, largest, times] = spread.cells();
            let aim = most.map_or_else(String::new, |most| aim(spread.median / 1e3, most, "ms"));
            ticks.row(&[name.to_owned(), median, least, largest, times, aim]);
        }
        let mut turns = Table::new(&["", "turns"]);
        turns.row(&["1,000 inline platforms".to_owned(), number(self.reactor_1000_turns)]);
        turns.row(&["no platform".to_owned(), number(self.reactor_0_turns)]);
        let mut idle = Table::new(&["thread", "CPU %", "wake-ups/s", "aim"]);
        let percent = |percent: f64| format!("{percent:.3}");
        for Thread { name, cpu_percent, wakeups_per_s } in &self.idle.threads {
            idle.row(&[name.clone(), percent(*cpu_percent), number(*wakeups_per_s), String::new()]);
        }
        let Idle { cpu_percent, wakeups_per_s, .. } = &self.idle;
        let aim = aim(*cpu_percent, IDLE_PERCENT_MAX, "%");
        idle.row(&["all".to_owned(), percent(*cpu_percent), number(*wakeups_per_s), aim]);
        vec![
            ("One tick: every instance is asked once how it is", ticks),
            ("Turns of the reactor in a tick", turns),
            ("An idle Demi: 4 inline, 2 threads, 2 processes, 2 http", idle),
        ]
    }
}

/// So many instances of services elsewhere. Nobody speaks to them here.
fn upstreams(instances: u16) -> Vec<Platform> {
    let platform = |index: u16| Platform {
        upstreams: (0..UPSTREAMS).map(|upstream| format!("127.0.0.1:{}", 1 + index * UPSTREAMS + upstream)).collect(),
        ..Platform::new(&format!("p{index}"), Host::Http)
    };
    (0..instances / UPSTREAMS).map(platform).collect()
}

/// What the thread of a reactor took, interval by interval.
struct Ticking {
    cpu_us: Vec<f64>,
    /// In an interval, on average.
    turns: f64,
}

impl Ticking {
    /// A reactor that turns once in an interval, and one that waits as it likes.
    fn both(platforms: usize, intervals: usize) -> Outcome<[Ticking; 2]> {
        let directory = std::env::temp_dir().join(format!("demi-bench-health-{}", std::process::id()));
        fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let measured = Ticking::both_in(&directory, platforms, intervals);
        let _ = fs::remove_dir_all(&directory);
        measured
    }

    fn both_in(directory: &Path, platforms: usize, intervals: usize) -> Outcome<[Ticking; 2]> {
        let platform = |index: usize| Platform {
            adapter: Some(demi_echo::ADAPTER.name.to_owned()),
            ..Platform::new(&format!("p{index}"), Host::Inline)
        };
        let config = Config {
            http: Http { listen: "127.0.0.1:0".to_owned(), ..Http::default() },
            platforms: (0..platforms).map(platform).collect(),
            ..Config::default()
        };
        let options = Options { base: directory.to_owned(), ..Options::default() };
        let mut reactor =
            Reactor::new(&config, &[demi_echo::ADAPTER], options).map_err(|error| format!("the reactor: {error}"))?;
        // The first interval is not like the others: everything starts in it. And after the turns that were put together
        // all checks fall together, so those come last.
        turn_for(&mut reactor, INTERVAL)?;
        let spread = Ticking::measure(&mut reactor, intervals, turn_for)?;
        turn_after(&mut reactor, INTERVAL)?;
        let one_turn = Ticking::measure(&mut reactor, intervals, turn_after)?;
        reactor.handle().shutdown().map_err(|error| format!("the reactor does not end: {error}"))?;
        reactor.run().map_err(|error| format!("the reactor: {error}"))?;
        Ok([one_turn, spread])
    }

    fn measure(
        reactor: &mut Reactor,
        intervals: usize,
        turn: fn(&mut Reactor, Duration) -> Outcome<u32>,
    ) -> Outcome<Ticking> {
        let (mut cpu_us, mut turns) = (Vec::new(), 0);
        for _ in 0..intervals {
            let before = thread_cpu();
            turns += turn(reactor, INTERVAL)?;
            cpu_us.push((thread_cpu() - before).as_secs_f64() * 1e6);
        }
        Ok(Ticking { cpu_us, turns: f64::from(turns) / intervals.max(1) as f64 })
    }

    /// What it took more than another one usually does.
    fn less(&self, other: &Ticking) -> Spread {
        let usual = Spread::of(&other.cpu_us).median;
        Spread::of(&self.cpu_us.iter().map(|cpu| cpu - usual).collect::<Vec<_>>())
    }
}

/// Leaves a reactor alone for so long, and turns it then until it has nothing left to do; how often.
fn turn_after(reactor: &mut Reactor, span: Duration) -> Outcome<u32> {
    std::thread::sleep(span);
    let mut turns = 0;
    loop {
        turn(reactor, Duration::ZERO)?;
        turns += 1;
        if !reactor.wait().is_zero() {
            return Ok(turns);
        }
    }
}

/// Turns a reactor for so long; how often.
fn turn_for(reactor: &mut Reactor, span: Duration) -> Outcome<u32> {
    let end = Instant::now() + span;
    let mut turns = 0;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(turns);
        }
        turn(reactor, left)?;
        turns += 1;
    }
}

fn turn(reactor: &mut Reactor, wait: Duration) -> Outcome<()> {
    match reactor.turn(Some(wait)) {
        Ok(None) => Ok(()),
        Ok(Some(code)) => Err(format!("the reactor ended with code {code}")),
        Err(error) => Err(format!("the reactor: {error}")),
    }
}

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

impl Idle {
    fn measure(executable: &Path, span: Duration) -> Outcome<Idle> {
        let services = [Bare::responder()?, Bare::responder()?];
        let port = free_port()?;
        let config = config(port, services.each_ref().map(|service| service.address));
        let (mut demi, _) = Demi::start(executable, SocketAddr::from(([127, 0, 0, 1], port)), &config)?;
        let pid = demi.pid();
        std::thread::sleep(SETTLE);
        let gone = || format!("process {pid} is gone");
        let before = procfs::tasks(pid).ok_or_else(gone)?;
        let begin = Instant::now();
        std::thread::sleep(span);
        demi.alive()?;
        let seconds = begin.elapsed().as_secs_f64();
        let after = procfs::tasks(pid).ok_or_else(gone)?;
        demi.stop()?;
        let mut threads: Vec<Thread> = Vec::new();
        for task in after {
            let earlier = before.iter().find(|earlier| earlier.tid == task.tid);
            let cpu = task.cpu.saturating_sub(earlier.map_or(Duration::ZERO, |earlier| earlier.cpu));
            let sleeps = task.sleeps - earlier.map_or(0, |earlier| earlier.sleeps);
            let (cpu_percent, wakeups_per_s) = (cpu.as_secs_f64() / seconds * 100.0, sleeps as f64 / seconds);
            // Threads of one name are shown together.
            match threads.iter_mut().find(|thread| thread.name == task.name) {
                Some(thread) => {
                    thread.cpu_percent += cpu_percent;
                    thread.wakeups_per_s += wakeups_per_s;
                }
                None => threads.push(Thread { name: task.name, cpu_percent, wakeups_per_s }),
            }
        }
        Ok(Idle {
            seconds,
            cpu_percent: threads.iter().map(|thread| thread.cpu_percent).sum(),
            wakeups_per_s: threads.iter().map(|thread| thread.wakeups_per_s).sum(),
            threads,
        })
    }
}

/// Ten platforms of every kind, each with all defaults.
fn config(port: u16, services: [SocketAddr; 2]) -> String {
    let mut platforms = String::new();
    for index in 0..4 {
        platforms.push_str(&format!("    (name: \"inline{index}\", host: Inline, adapter: \"echo\"),\n"));
    }
    for index in 0..2 {
        platforms.push_str(&format!("    (name: \"threads{index}\", host: Threads(1), adapter: \"echo\"),\n"));
        let command = "[\"{demi}\", \"plugin\", \"serve\", \"echo\"]";
        platforms.push_str(&format!("    (name: \"process{index}\", host: Process(1), command: {command}),\n"));
    }
    // One is asked by a connection alone, the other by a request.
    let [connected, asked] = services;
    platforms.push_str(&format!("    (name: \"http0\", host: Http, upstreams: [\"{connected}\"]),\n"));
    platforms.push_str(&format!("    (name: \"http1\", host: Http, upstreams: [\"{asked}\"], health_path: \"/\"),\n"));
    format!(
        "(\n  http: (listen: \"127.0.0.1:{port}\"),\n  store: (path: \"data\"),\n  platforms: [\n{platforms}  ],\n)\n"
    )
}
