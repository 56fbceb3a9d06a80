//! `demi-bench spike`: a child process takes so much memory at once that RAM is short; how soon is some of it free again?
//!
//! `scaler.ram_total_mb` makes RAM small, everything else is as by default. Two child processes hold some of it; then one of
//! them takes more than twice what both have, within a fraction of a second, and RAM is above `shed_percent`. The other has the
//! lower priority, so it is what Demi sheds. What the whole tree has is read from `/proc` every few milliseconds, by this
//! program and not by Demi.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use argh::FromArgs;
use demi::{plugin_main_with, Fault, Health, PlatformTrait, Reply, Request, Settings};
use serde::Serialize;

use crate::demi::{executable, free_port, Client, Demi};
use crate::procfs;
use crate::report::{aim, number, print, progress, Machine, Spread, Table};
use crate::Outcome;

/// RAM that there is, MB, and at what part of it something is done.
const TOTAL_MB: u64 = 600;
const SHED_PERCENT: u64 = 80;
/// What both hold before.
const HELD_MB: u64 = 110;
/// What the one takes.
const TAKEN_MB: u64 = 280;
/// So much less than there was is freed, MB.
const FREED_MB: u64 = 1;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const REACTION_MS_AIM: f64 = 2_000.0;
const BYTES_OF_MB: usize = 1_000_000;

#[derive(FromArgs)]
#[argh(subcommand, name = "spike")]
/// how soon memory is free again when a child process takes much of it at once
pub struct Arguments {
    /// spikes, each of a Demi of its own (default 10)
    #[argh(option, default = "10")]
    runs: usize,
    /// the demi executable (default: the one beside this one)
    #[argh(option)]
    demi: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(FromArgs)]
#[argh(subcommand, name = "hold-memory")]
/// (inner) be a plugin that holds memory, and takes more at its first request
pub struct Hold {
    /// what it holds, MB
    #[argh(option)]
    held: u64,
    /// what it takes, MB
    #[argh(option, default = "0")]
    taken: u64,
}

#[derive(Serialize)]
struct Document {
    total_mb: u64,
    taken_mb: u64,
    reaction_ms_aim: f64,
    crossing_to_freed_ms: Spread,
    most_percent: Spread,
}

/// Runs `demi-bench spike`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    if arguments.runs == 0 {
        return Err("--runs must be at least 1".to_owned());
    }
    let executable = executable(arguments.demi.as_deref())?;
    let machine = Machine::now();
    let (mut reactions, mut most) = (Vec::new(), Vec::new());
    for index in 0..arguments.runs {
        progress(&format!("spike {} of {}", index + 1, arguments.runs));
        // So that the crossing falls on other moments between two looks of Demi's each time.
        let rest = Duration::from_millis(1_500 + 1_000 * index as u64 / arguments.runs as u64);
        let (reaction, peak) = spike(&executable, rest)?;
        reactions.push(reaction.as_secs_f64() * 1e3);
        most.push(peak as f64 / TOTAL_MB as f64 / BYTES_OF_MB as f64 * 100.0);
    }
    let document = Document {
        total_mb: TOTAL_MB,
        taken_mb: TAKEN_MB,
        reaction_ms_aim: REACTION_MS_AIM,
        crossing_to_freed_ms: Spread::of(&reactions),
        most_percent: Spread::of(&most),
    };
    let mut table = Table::new(&["", "median", "least", "most", "runs", "aim"]);
    let reaction = &document.crossing_to_freed_ms;
    let [median, least, worst, runs] = reaction.cells();
    let told = aim(reaction.max, REACTION_MS_AIM, "ms");
    table.row(&["crossing to the first freed MB, ms".to_owned(), median, least, worst, runs, told]);
    let peak = &document.most_percent;
    let cells = [peak.median, peak.min, peak.max].map(number);
    let [median, least, worst] = cells;
    table.row(&["most RAM in use, %".to_owned(), median, least, worst, peak.runs.to_string(), String::new()]);
    let title = format!("{TAKEN_MB} of {TOTAL_MB} MB taken at once; looked at every {} ms", LOOK.as_millis());
    print(arguments.json, &machine, &document, &[(&title, table)])
}

/// From the moment at which RAM is short to that at which there is a MB less in use; and the most that was.
fn spike(executable: &std::path::Path, rest: Duration) -> Outcome<(Duration, u64)> {
    let port = free_port()?;
    let bench = std::env::current_exe().map_err(|error| error.to_string())?;
    let held = |more: &str| format!("[{bench:?}, \"hold-memory\", \"--held\", \"{HELD_MB}\"{more}]");
    let config = format!(
        "(http: (listen: \"127.0.0.1:{port}\"), store: (path: \"data\"), scaler: (ram_total_mb: {TOTAL_MB}),\n\
         platforms: [\n  (name: \"files\", host: Process(1), command: {}),\n\
         (name: \"voice\", host: Process(1), command: {}),\n],\n\
         routes: [(path: \"/files\", to: \"files\"), (path: \"/voice\", to: \"voice\")],)",
        held(&format!(", \"--taken\", \"{TAKEN_MB}\"")),
        held(""),
    );
    let (mut demi, _) = Demi::start(executable, SocketAddr::from(([127, 0, 0, 1], port)), &config)?;
    let mut client = Client::new(demi.address);
    std::thread::sleep(rest);
    let tree: Vec<u32> = std::iter::once(demi.pid()).chain(procfs::descendants(demi.pid())).collect();
    let used = || tree.iter().filter_map(|pid| procfs::rss_kib(*pid)).sum::<u64>() * 1024;
    let threshold = TOTAL_MB * BYTES_OF_MB as u64 / 100 * SHED_PERCENT;
    if used() >= threshold {
        return Err("RAM was short before the spike".to_owned());
    }
    client.expect_200("/files")?;
    let begin = Instant::now();
    let (mut crossed, mut most) = (None, 0);
    loop {
        let now = used();
        most = most.max(now);
        crossed = crossed.or((now >= threshold).then(Instant::now));
        match crossed {
            Some(crossed) if now + FREED_MB * BYTES_OF_MB as u64 <= most => {
                let reaction = crossed.elapsed();
                demi.stop()?;
                return Ok((reaction, most));
            }
            Some(_) | None if begin.elapsed() > PATIENCE => {
                return Err(format!(
                    "nothing was freed {PATIENCE:?} after the spike, with {most} bytes in use at most"
                ));
            }
            Some(_) | None => {}
        }
        demi.alive()?;
        std::thread::sleep(LOOK);
    }
}

struct Holder {
    taken: u64,
    held: Vec<Vec<u8>>,
}

impl Holder {
    fn take(&mut self, megabytes: u64) {
        self.held.extend((0..megabytes).map(|_| vec![1; BYTES_OF_MB]));
    }
}

impl PlatformTrait for Holder {
    fn initialize(&mut self, _: &Settings) -> Result<(), Fault> {
        Ok(())
    }

    fn health_check(&mut self) -> Health {
        Health::up()
    }

    fn handle_request(&mut self, _: &Request<'_>, reply: &mut Reply) -> Result<(), Fault> {
        let taken = std::mem::take(&mut self.taken);
        self.take(taken);
        reply.text(&format!("{} MB", self.held.len()));
        Ok(())
    }

    fn shutdown(&mut self) {}
}

/// Runs `demi-bench hold-memory`.
pub fn hold(arguments: &Hold) -> Outcome<()> {
    let mut holder = Holder { taken: arguments.taken, held: Vec::new() };
    holder.take(arguments.held);
    plugin_main_with(|_| Box::new(holder)).map_err(|error| error.to_string())
}
