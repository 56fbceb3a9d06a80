//! `demi-bench request`: what each way of hosting an integration costs a request.
//!
//! Per host an open loop at a fixed rate gives the latency, and a closed loop on all connections gives requests per
//! second and CPU time per request. The bare responder and forwarder go first under the same load; the latency that
//! Demi adds is the difference of the percentiles.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use serde::Serialize;

use crate::demi::{config, executable, free_port, Bare, Client, Demi, Host};
use crate::load::{self, Load, Pace};
use crate::report::{number, print, progress, Machine, Run, Table};
use crate::{procfs, Outcome};

/// Load before each measurement that is not counted.
pub const WARM_UP: Duration = Duration::from_millis(500);

#[derive(FromArgs)]
#[argh(subcommand, name = "request")]
/// latency at a fixed rate, requests per second and CPU time per request of every host
pub struct Arguments {
    /// requests per second of the open loop (default 2000)
    #[argh(option, default = "2000")]
    rate: u32,
    /// seconds of each of the two loops (default 10)
    #[argh(option, default = "10")]
    seconds: u64,
    /// keep-alive connections (default 64)
    #[argh(option, default = "64")]
    connections: usize,
    /// bytes of the request's body; 0 is a GET (default 0)
    #[argh(option, default = "0")]
    body_bytes: usize,
    /// only this host: inline, threads, process or http; may be repeated
    #[argh(option)]
    host: Vec<String>,
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
    connections: usize,
    body_bytes: usize,
    targets: Vec<Target>,
}

#[derive(Serialize)]
struct Target {
    name: String,
    /// Latency above that of the bare server under the same open loop.
    added_p50_us: Option<f64>,
    added_p99_us: Option<f64>,
    open_loop: Phase,
    closed_loop: Phase,
}

/// One loop with what the server used for it.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    #[serde(flatten)]
    pub run: Run,
    /// User and system time of the server's own process for each answer.
    pub cpu_us_per_request: f64,
    /// The same of its children.
    pub children_cpu_us_per_request: f64,
}

/// Runs `demi-bench request`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    const HOSTS: [&str; 4] = ["inline", "threads", "process", "http"];
    if let Some(wrong) = arguments.host.iter().find(|host| !HOSTS.contains(&host.as_str())) {
        return Err(format!("--host {wrong:?} is not one of {}", HOSTS.join(", ")));
    }
    let executable = executable(arguments.demi.as_deref())?;
    let machine = Machine::now();
    let upstream = Bare::responder()?;
    let mut hosts = vec![Host::Inline, Host::Threads(2), Host::Process(2), Host::Http(upstream.address)];
    hosts.retain(|host| arguments.host.is_empty() || arguments.host.iter().any(|name| name == host.name()));

    let mut targets = vec![{
        let bare = Bare::responder()?;
        arguments.measure("bare responder", bare.address, "/inline", bare.pid(), &mut || Ok(()))?
    }];
    if hosts.iter().any(|host| matches!(host, Host::Http(_))) {
        let bare = Bare::forwarder(upstream.address)?;
        targets.push(arguments.measure("bare forwarder", bare.address, "/http", bare.pid(), &mut || Ok(()))?);
    }
    let port = free_port()?;
    let (mut demi, _) =
        Demi::start(&executable, SocketAddr::from(([127, 0, 0, 1], port)), &config(&executable, port, &hosts, ""))?;
    for host in &hosts {
        let path = format!("/{}", host.name());
        let (address, pid) = (demi.address, demi.pid());
        let mut target =
            arguments.measure(&format!("demi {}", host.name()), address, &path, pid, &mut || demi.alive())?;
        let bare = &targets[usize::from(matches!(host, Host::Http(_)))].open_loop.run.latency_us;
        target.added_p50_us = Some(target.open_loop.run.latency_us.p50 - bare.p50);
        target.added_p99_us = Some(target.open_loop.run.latency_us.p99 - bare.p99);
        targets.push(target);
    }
    demi.stop()?;
    let document = Document {
        rate: arguments.rate,
        seconds: arguments.seconds,
        connections: arguments.connections,
        body_bytes: arguments.body_bytes,
        targets,
    };
    let tables = document.tables();
    let titles = [
        format!(
            "Open loop, {} requests/s for {} s on {} connections: µs from the intended moment of sending",
            document.rate, document.seconds, document.connections
        ),
        format!("Closed loop on {} connections for {} s", document.connections, document.seconds),
    ];
    let titled: Vec<(&str, Table)> = titles.iter().map(String::as_str).zip(tables).collect();
    print(arguments.json, &machine, &document, &titled)
}

impl Arguments {
    fn measure(
        &self,
        name: &str,
        address: SocketAddr,
        path: &str,
        pid: u32,
        alive: &mut dyn FnMut() -> Outcome<()>,
    ) -> Outcome<Target> {
        Client::new(address).expect_200(path).map_err(|fault| format!("{name}: {fault}"))?;
        let request = load::request(path, self.body_bytes);
        let mut load = Load::open(address, request, self.connections)?;
        let span = Duration::from_secs(self.seconds);
        progress(&format!("{name}: open loop"));
        let open_loop = phase(&mut load, Pace::Open(self.rate), span, pid, alive)?;
        progress(&format!("{name}: closed loop"));
        let closed_loop = phase(&mut load, Pace::Closed, span, pid, alive)?;
        Ok(Target { name: name.to_owned(), added_p50_us: None, added_p99_us: None, open_loop, closed_loop })
    }
}

/// Warms up, then measures one loop and the CPU time of the server for it.
pub fn phase(
    load: &mut Load,
    pace: Pace,
    span: Duration,
    pid: u32,
    alive: &mut dyn FnMut() -> Outcome<()>,
) -> Outcome<Phase> {
    load.run(pace, WARM_UP, alive)?;
    let children = procfs::descendants(pid);
    let cpu = |pid: u32| procfs::cpu(pid).ok_or_else(|| format!("process {pid} is gone"));
    let children_cpu = || children.iter().filter_map(|child| procfs::cpu(*child)).sum::<Duration>();
    let (before, children_before) = (cpu(pid)?, children_cpu());
    let tally = load.run(pace, span, alive)?;
    let used = cpu(pid)?.saturating_sub(before);
    let children_used = children_cpu().saturating_sub(children_before);
    let per_request = |used: Duration| used.as_secs_f64() * 1e6 / tally.answered().max(1) as f64;
    Ok(Phase {
        run: Run::from(&tally),
        cpu_us_per_request: per_request(used),
        children_cpu_us_per_request: per_request(children_used),
    })
}

impl Document {
    fn tables(&self) -> [Table; 2] {
        let mut open = Table::new(&[
            "",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max",
            "added p50",
            "added p99",
            "requests/s",
            "lag p99",
            "errors",
        ]);
        let mut closed = Table::new(&["", "requests/s", "CPU µs/request", "children's", "p50 µs", "p99 µs", "errors"]);
        let added = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:+.0}"));
        for target in &self.targets {
            let Run { latency_us, requests_per_s, generator_lag_p99_us, .. } = &target.open_loop.run;
            open.row(&[
                target.name.clone(),
                number(latency_us.p50),
                number(latency_us.p90),
                number(latency_us.p99),
                number(latency_us.p99_9),
                number(latency_us.max),
                added(target.added_p50_us),
                added(target.added_p99_us),
                number(*requests_per_s),
                number(*generator_lag_p99_us),
                target.open_loop.run.errors_text(),
            ]);
            let Run { latency_us, requests_per_s, .. } = &target.closed_loop.run;
            closed.row(&[
                target.name.clone(),
                number(*requests_per_s),
                number(target.closed_loop.cpu_us_per_request),
                number(target.closed_loop.children_cpu_us_per_request),
                number(latency_us.p50),
                number(latency_us.p99),
                target.closed_loop.run.errors_text(),
            ]);
        }
        [open, closed]
    }
}
