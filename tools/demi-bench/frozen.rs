//! `demi-bench frozen`: how many requests suffer when one of two children is stopped or killed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use argh::FromArgs;
use rustix::process::Signal;
use serde::Serialize;

use crate::demi::{config, executable, free_port, signal, Client, Demi, Host};
use crate::load::{self, Load, Pace};
use crate::report::{number, print, progress, Machine, Run, Table};
use crate::request::WARM_UP;
use crate::restart::AT_ONCE;
use crate::{procfs, Outcome};

/// A request that takes longer has suffered.
const SLOW: Duration = Duration::from_millis(50);
/// Load before the signal and after the child is let go on.
const MARGIN: Duration = Duration::from_secs(1);
/// Slow requests that one frozen child may cost.
const SLOW_AIM: u64 = 5;

#[derive(FromArgs)]
#[argh(subcommand, name = "frozen")]
/// slow and failed requests while one of two children is stopped (SIGSTOP) or killed (SIGKILL)
pub struct Arguments {
    /// requests per second (default 500)
    #[argh(option, default = "500")]
    rate: u32,
    /// seconds for which the child is stopped (default 10)
    #[argh(option, default = "10")]
    seconds: u64,
    /// keep-alive connections (default 64)
    #[argh(option, default = "64")]
    connections: usize,
    /// the demi executable (default: the one beside this one)
    #[argh(option)]
    demi: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    rate: u32,
    seconds: u64,
    slow_ms: u64,
    slow_aim: u64,
    cases: Vec<Case>,
}

#[derive(Serialize)]
struct Case {
    signal: &'static str,
    slow: u64,
    failed: u64,
    /// Whether the aim is met: at most `slow_aim` slow ones for SIGSTOP, none failed for SIGKILL.
    met: bool,
    #[serde(flatten)]
    run: Run,
}

/// Runs `demi-bench frozen`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let executable = executable(arguments.demi.as_deref())?;
    let machine = Machine::now();
    let document = Document {
        rate: arguments.rate,
        seconds: arguments.seconds,
        slow_ms: SLOW.as_millis() as u64,
        slow_aim: SLOW_AIM,
        cases: vec![
            arguments.case(&executable, "SIGSTOP", Signal::STOP)?,
            arguments.case(&executable, "SIGKILL", Signal::KILL)?,
        ],
    };
    let mut table = Table::new(&["", "requests", "slow", "failed", "aim", "p99 ms", "max ms", "errors"]);
    for case in &document.cases {
        table.row(&[
            case.signal.to_owned(),
            case.run.answered.to_string(),
            case.slow.to_string(),
            case.failed.to_string(),
            if case.met { "met" } else { "missed" }.to_owned(),
            number(case.run.latency_us.p99 / 1e3),
            number(case.run.latency_us.max / 1e3),
            case.run.errors_text(),
        ]);
    }
    let title = format!(
        "One of two children at {} requests/s for {} s; slow is over {} ms; \
         aims: SIGSTOP at most {} slow, SIGKILL none failed",
        document.rate, document.seconds, document.slow_ms, document.slow_aim
    );
    print(arguments.json, &machine, &document, &[(&title, table)])
}

impl Arguments {
    fn case(&self, executable: &Path, name: &'static str, kind: Signal) -> Outcome<Case> {
        progress(name);
        let port = free_port()?;
        let config = config(executable, port, &[Host::Process(2)], AT_ONCE);
        let (mut demi, _) = Demi::start(executable, SocketAddr::from(([127, 0, 0, 1], port)), &config)?;
        Client::new(demi.address).expect_200("/process")?;
        let instances = Client::new(demi.address).instances("process")?;
        let child = instances
            .iter()
            .find_map(|instance| instance.ready_pid())
            .ok_or_else(|| format!("no instance is ready: {instances:?}"))?;
        let parent = procfs::parent(child);
        let mut load = Load::open(demi.address, load::request("/process", 0), self.connections)?;
        load.run(Pace::Open(self.rate), WARM_UP, &mut || demi.alive())?;
        let frozen = Duration::from_secs(self.seconds);
        // The generator's thread must not do this: a look at /proc would make it late.
        let hand = std::thread::spawn(move || {
            std::thread::sleep(MARGIN);
            signal(child, kind)?;
            std::thread::sleep(frozen);
            // Demi may have ended it by now, and the number may be someone else's.
            if parent.is_some() && procfs::parent(child) == parent {
                let _ = signal(child, Signal::CONT);
            }
            Ok(())
        });
        let tally = load.run(Pace::Open(self.rate), MARGIN + frozen + MARGIN, &mut || demi.alive());
        hand.join().unwrap_or_else(|_| Err("the signalling thread panicked".to_owned()))?;
        let tally = tally?;
        demi.stop()?;
        let (slow, failed) = (tally.slower_than(SLOW), tally.failed());
        let met = match kind {
            Signal::KILL => failed == 0,
            _ => slow + failed <= SLOW_AIM,
        };
        Ok(Case { signal: name, slow, failed, met, run: Run::from(&tally) })
    }
}
