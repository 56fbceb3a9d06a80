//! `demi-bench queue`: how fast messages are acknowledged, what those that wait cost, and how fast Demi starts with them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use serde::Serialize;

use crate::demi::{config, executable, free_port, Demi, Host};
use crate::load::{Load, Pace};
use crate::procfs::private_kib;
use crate::report::{number, print, progress, Machine, Run, Table};
use crate::Outcome;

/// A message that waits does so for a day: what is measured is the queue.
const WAITS_MS: u64 = 86_400_000;
/// The longest load until as many wait as shall.
const FILLED_IN_MAX: Duration = Duration::from_secs(600);
/// Between two looks at how many wait.
const STEP: Duration = Duration::from_millis(500);
const ROOM: &str = "posts: (queue_max: 10000000),";

#[derive(FromArgs)]
#[argh(subcommand, name = "queue")]
/// messages acknowledged per second, memory of those that wait, and the start with them
pub struct Arguments {
    /// seconds of the loop that is measured (default 5)
    #[argh(option, default = "5")]
    seconds: u64,
    /// keep-alive connections (default 64)
    #[argh(option, default = "64")]
    connections: usize,
    /// bytes of each message (default 200)
    #[argh(option, default = "200")]
    body_bytes: usize,
    /// messages that wait when memory and the start are measured, at least (default 100000)
    #[argh(option, default = "100000")]
    waiting: u64,
    /// the demi executable (default: the one beside this one)
    #[argh(option)]
    demi: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    connections: usize,
    body_bytes: usize,
    run: Run,
    waiting: u64,
    private_kib_empty: u64,
    private_kib_full: u64,
    private_kib_after_start: u64,
    start_to_ready_ms: f64,
    start_to_ready_empty_ms: f64,
}

/// Runs `demi-bench queue`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let executable = executable(arguments.demi.as_deref())?;
    let machine = Machine::now();
    let port = free_port()?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let config = config(&executable, port, &[Host::Inline], ROOM);
    let (mut demi, empty) = Demi::start(&executable, address, &config)?;
    let memory = |demi: &Demi| private_kib(demi.pid()).ok_or_else(|| "demi is gone".to_owned());
    let private_kib_empty = memory(&demi)?;
    let mut load = Load::open(address, message(arguments.body_bytes), arguments.connections)?;
    progress("closed loop");
    let tally = load.run(Pace::Closed, Duration::from_secs(arguments.seconds), &mut || demi.alive())?;
    let run = Run::from(&tally);
    let mut waiting = tally.latency.len();
    progress("filling the queue");
    let mut filled_in = Duration::ZERO;
    while waiting < arguments.waiting && filled_in < FILLED_IN_MAX {
        waiting += load.run(Pace::Closed, STEP, &mut || demi.alive())?.latency.len();
        filled_in += STEP;
    }
    drop(load);
    let private_kib_full = memory(&demi)?;
    progress("start after a kill");
    demi.kill();
    let start = demi.start_again(&executable)?;
    let private_kib_after_start = memory(&demi)?;
    demi.stop()?;
    let document = Document {
        connections: arguments.connections,
        body_bytes: arguments.body_bytes,
        run,
        waiting,
        private_kib_empty,
        private_kib_full,
        private_kib_after_start,
        start_to_ready_ms: start.as_secs_f64() * 1e3,
        start_to_ready_empty_ms: empty.as_secs_f64() * 1e3,
    };
    let ms = |us: f64| number(us / 1e3);
    let latency = &document.run.latency_us;
    let mut rates = Table::new(&["messages/s", "p50 ms", "p99 ms", "p99.9 ms", "errors"]);
    let errors = document.run.errors_text();
    let rate = number(document.run.requests_per_s);
    rates.row(&[rate, ms(latency.p50), ms(latency.p99), ms(latency.p99_9), errors]);
    let mut costs = Table::new(&["", "empty", "full", "started again"]);
    let mib = |kib: u64| number(kib as f64 / 1024.0);
    let sizes = [document.private_kib_empty, document.private_kib_full, document.private_kib_after_start].map(mib);
    let [empty, full, again] = sizes;
    costs.row(&["private memory, MiB".to_owned(), empty, full, again]);
    let (empty, again) = (number(document.start_to_ready_empty_ms), number(document.start_to_ready_ms));
    costs.row(&["start to ready, ms".to_owned(), empty, String::new(), again]);
    let titles = [
        format!("Messages of {} B acknowledged, {} clients", document.body_bytes, document.connections),
        format!("With {} messages waiting", document.waiting),
    ];
    print(arguments.json, &machine, &document, &[(&titles[0], rates), (&titles[1], costs)])
}

/// The request that posts a message, which waits.
fn message(body_bytes: usize) -> Vec<u8> {
    let text = "x".repeat(body_bytes);
    let body = format!(r#"{{"to":"inline","delay_ms":{WAITS_MS},"content":"{text}"}}"#);
    let length = body.len();
    let head = format!("POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n");
    (head + &body).into_bytes()
}
