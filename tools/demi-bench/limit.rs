//! `demi-bench limit`: how far Demi is from what the machine allows.
//!
//! The same closed loop against the bare responder and Demi's inline answer, and against the bare forwarder and
//! Demi's `Http` platform, in turn within each round and in reversed order in every other round, so that a machine
//! that slows down meanwhile slows all of them. The figure is the median of the rounds' own ratios.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use serde::Serialize;

use crate::demi::{config, executable, free_port, Bare, Client, Demi, Host};
use crate::load::{self, Load, Pace};
use crate::report::{median, number, print, progress, Machine, Table};
use crate::request::{phase, Phase};
use crate::Outcome;

/// What the CPU time of a request may be, in that of the bare server.
const CPU_RATIO_AIM: f64 = 1.5;

#[derive(FromArgs)]
#[argh(subcommand, name = "limit")]
/// CPU time per request and requests per second beside the bare responder and forwarder, in the same run
pub struct Arguments {
    /// rounds, of which the median counts (default 5)
    #[argh(option, default = "5")]
    rounds: usize,
    /// seconds of each of a round's four loops (default 3)
    #[argh(option, default = "3")]
    seconds: u64,
    /// keep-alive connections (default 64)
    #[argh(option, default = "64")]
    connections: usize,
    /// bytes of the request's body; 0 is a GET (default 0)
    #[argh(option, default = "0")]
    body_bytes: usize,
    /// the demi executable (default: the one beside this one)
    #[argh(option)]
    demi: Option<PathBuf>,
    /// measure the bare servers only, without a Demi
    #[argh(switch)]
    bare: bool,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    rounds: usize,
    seconds: u64,
    connections: usize,
    body_bytes: usize,
    cpu_ratio_aim: f64,
    servers: Vec<Server>,
    ratios: Vec<Ratio>,
}

#[derive(Serialize)]
struct Server {
    name: &'static str,
    cpu_us_per_request: f64,
    requests_per_s: f64,
    failed: u64,
    rounds: Vec<Phase>,
}

#[derive(Serialize)]
struct Ratio {
    name: String,
    cpu: f64,
    requests_per_s: f64,
    cpu_by_round: Vec<f64>,
}

struct Contestant {
    name: &'static str,
    address: SocketAddr,
    path: &'static str,
    pid: u32,
    phases: Vec<Phase>,
}

/// Runs `demi-bench limit`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let machine = Machine::now();
    let (responder, upstream) = (Bare::responder()?, Bare::responder()?);
    let forwarder = Bare::forwarder(upstream.address)?;
    let contestant = |name, address, path, pid| Contestant { name, address, path, pid, phases: Vec::new() };
    let mut contestants = vec![
        contestant("bare responder", responder.address, "/inline", responder.pid()),
        contestant("bare forwarder", forwarder.address, "/http", forwarder.pid()),
    ];
    let mut demi = match arguments.bare {
        true => None,
        false => {
            let executable = executable(arguments.demi.as_deref())?;
            let port = free_port()?;
            let config = config(&executable, port, &[Host::Inline, Host::Http(upstream.address)], "");
            Some(Demi::start(&executable, SocketAddr::from(([127, 0, 0, 1], port)), &config)?.0)
        }
    };
    if let Some(demi) = &demi {
        contestants.insert(1, contestant("demi inline", demi.address, "/inline", demi.pid()));
        contestants.push(contestant("demi http", demi.address, "/http", demi.pid()));
    }
    for contestant in &contestants {
        let answered = Client::new(contestant.address).expect_200(contestant.path);
        answered.map_err(|fault| format!("{}: {fault}", contestant.name))?;
    }
    for round in 0..arguments.rounds {
        progress(&format!("round {} of {}", round + 1, arguments.rounds));
        let mut order: Vec<usize> = (0..contestants.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let contestant = &mut contestants[index];
            let request = load::request(contestant.path, arguments.body_bytes);
            let mut load = Load::open(contestant.address, request, arguments.connections)?;
            let mut alive = || demi.as_mut().map_or(Ok(()), Demi::alive);
            let span = Duration::from_secs(arguments.seconds);
            contestant.phases.push(phase(&mut load, Pace::Closed, span, contestant.pid, &mut alive)?);
        }
    }
    if let Some(demi) = demi {
        demi.stop()?;
    }
    let ratios = match arguments.bare {
        true => Vec::new(),
        false => vec![ratio(&contestants[1], &contestants[0]), ratio(&contestants[3], &contestants[2])],
    };
    let document = Document {
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        connections: arguments.connections,
        body_bytes: arguments.body_bytes,
        cpu_ratio_aim: CPU_RATIO_AIM,
        servers: contestants.into_iter().map(Contestant::server).collect(),
        ratios,
    };
    let mut servers = Table::new(&["", "CPU µs/request", "requests/s", "p50 µs", "p99 µs", "failed"]);
    for server in &document.servers {
        let middle = |of: fn(&Phase) -> f64| number(median(&server.rounds.iter().map(of).collect::<Vec<_>>()));
        servers.row(&[
            server.name.to_owned(),
            number(server.cpu_us_per_request),
            number(server.requests_per_s),
            middle(|phase| phase.run.latency_us.p50),
            middle(|phase| phase.run.latency_us.p99),
            server.failed.to_string(),
        ]);
    }
    let mut ratios = Table::new(&["", "CPU", "aim", "requests/s"]);
    for ratio in &document.ratios {
        let aim = if ratio.cpu <= CPU_RATIO_AIM { "met" } else { "missed" };
        let aim = format!("≤ {CPU_RATIO_AIM}: {aim}");
        ratios.row(&[ratio.name.clone(), format!("{:.2}×", ratio.cpu), aim, format!("{:.2}×", ratio.requests_per_s)]);
    }
    let title = format!(
        "Closed loop on {} connections, median of {} rounds of {} s",
        document.connections, document.rounds, document.seconds
    );
    let mut tables = vec![(title.as_str(), servers)];
    if !document.ratios.is_empty() {
        tables.push(("Ratio, median of the rounds' own", ratios));
    }
    print(arguments.json, &machine, &document, &tables)
}

fn ratio(demi: &Contestant, bare: &Contestant) -> Ratio {
    let by_round = |of: fn(&Phase) -> f64| -> Vec<f64> {
        demi.phases.iter().zip(&bare.phases).map(|(demi, bare)| of(demi) / of(bare).max(1e-9)).collect()
    };
    let cpu_by_round = by_round(|phase| phase.cpu_us_per_request);
    Ratio {
        name: format!("{} : {}", demi.name, bare.name),
        cpu: median(&cpu_by_round),
        requests_per_s: median(&by_round(|phase| phase.run.requests_per_s)),
        cpu_by_round,
    }
}

impl Contestant {
    fn server(self) -> Server {
        let middle = |of: fn(&Phase) -> f64| median(&self.phases.iter().map(of).collect::<Vec<_>>());
        Server {
            name: self.name,
            cpu_us_per_request: middle(|phase| phase.cpu_us_per_request),
            requests_per_s: middle(|phase| phase.run.requests_per_s),
            failed: self.phases.iter().map(|phase| phase.run.failed).sum(),
            rounds: self.phases,
        }
    }
}
