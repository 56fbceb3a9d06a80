//! `demi-bench restart`: how fast Demi is ready, how fast it ends, and how fast a killed child is back.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use argh::FromArgs;
use rustix::process::Signal;
use serde::Serialize;

use crate::demi::{config, executable, free_port, signal, Client, Demi, Host, LOOK};
use crate::report::{print, progress, Machine, Spread, Table};
use crate::Outcome;

/// Every restart at once, so that the twentieth kill finds the same Demi as the first.
pub const AT_ONCE: &str = "restart: (forget_ms: 0),";
/// How long a child may take to be back.
const BACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Rest between two kills.
const REST: Duration = Duration::from_millis(100);

#[derive(FromArgs)]
#[argh(subcommand, name = "restart")]
/// start to ready without and with children, and SIGKILL of a child to ready
pub struct Arguments {
    /// starts of each kind, and kills (default 20)
    #[argh(option, default = "20")]
    runs: usize,
    /// children of the second kind of start (default 10)
    #[argh(option, default = "10")]
    children: u16,
    /// the demi executable (default: the one beside this one)
    #[argh(option)]
    demi: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    children: u16,
    start_to_ready_ms: Spread,
    start_to_ready_with_children_ms: Spread,
    kill_to_ready_ms: Spread,
    stop_ms: Spread,
    stop_with_children_ms: Spread,
}

/// Runs `demi-bench restart`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    if arguments.runs == 0 || arguments.children == 0 {
        return Err("--runs and --children must be at least 1".to_owned());
    }
    let executable = executable(arguments.demi.as_deref())?;
    let machine = Machine::now();
    progress("starts without children");
    let (start, stop) = starts(&executable, &[Host::Inline], arguments.runs)?;
    progress(&format!("starts with {} children", arguments.children));
    let hosts = [Host::Inline, Host::Process(arguments.children)];
    let (start_children, stop_children) = starts(&executable, &hosts, arguments.runs)?;
    progress("kills");
    let document = Document {
        children: arguments.children,
        start_to_ready_ms: start,
        start_to_ready_with_children_ms: start_children,
        kill_to_ready_ms: kills(&executable, arguments.runs)?,
        stop_ms: stop,
        stop_with_children_ms: stop_children,
    };
    let mut table = Table::new(&["", "median ms", "least", "most", "runs"]);
    let with = format!("with {} children", document.children);
    for (name, spread) in [
        ("start to ready, without children".to_owned(), &document.start_to_ready_ms),
        (format!("start to ready, {with}"), &document.start_to_ready_with_children_ms),
        ("SIGKILL of a child to ready".to_owned(), &document.kill_to_ready_ms),
        ("SIGTERM to end, without children".to_owned(), &document.stop_ms),
        (format!("SIGTERM to end, {with}"), &document.stop_with_children_ms),
    ] {
        let [median, least, most, runs] = spread.cells();
        table.row(&[name, median, least, most, runs]);
    }
    print(arguments.json, &machine, &document, &[("Looked at every 0.2 ms or less", table)])
}

/// Times until ready and until ended, in ms.
fn starts(executable: &Path, hosts: &[Host], runs: usize) -> Outcome<(Spread, Spread)> {
    let (mut ready, mut ended) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let port = free_port()?;
        let config = config(executable, port, hosts, AT_ONCE);
        let (demi, time) = Demi::start(executable, SocketAddr::from(([127, 0, 0, 1], port)), &config)?;
        ready.push(time.as_secs_f64() * 1e3);
        ended.push(demi.stop()?.as_secs_f64() * 1e3);
    }
    Ok((Spread::of(&ready), Spread::of(&ended)))
}

/// Times in ms from SIGKILL of one of two children until the API shows its successor ready.
fn kills(executable: &Path, runs: usize) -> Outcome<Spread> {
    let port = free_port()?;
    let config = config(executable, port, &[Host::Process(2)], AT_ONCE);
    let (mut demi, _) = Demi::start(executable, SocketAddr::from(([127, 0, 0, 1], port)), &config)?;
    let mut client = Client::new(demi.address);
    let mut times = Vec::new();
    for run in 0..runs {
        let index = (run % 2) as u32;
        let old = ready_pid(&mut client, index)?.ok_or_else(|| format!("instance {index} is not ready"))?;
        let begin = Instant::now();
        signal(old, Signal::KILL)?;
        loop {
            if ready_pid(&mut client, index)?.is_some_and(|pid| pid != old) {
                times.push(begin.elapsed().as_secs_f64() * 1e3);
                break;
            }
            demi.alive()?;
            if begin.elapsed() > BACK_TIMEOUT {
                return Err(format!("instance {index} is not back {BACK_TIMEOUT:?} after SIGKILL"));
            }
            // Without a pause the questions themselves would keep one of two cores busy.
            std::thread::sleep(LOOK);
        }
        std::thread::sleep(REST);
    }
    demi.stop()?;
    Ok(Spread::of(&times))
}

fn ready_pid(client: &mut Client, index: u32) -> Outcome<Option<u32>> {
    let instances = client.instances("process")?;
    Ok(instances.iter().find(|instance| instance.instance == index).and_then(|instance| instance.ready_pid()))
}
