//! `demi-bench memory`: the memory and the idle CPU time of Demi's own process, and of its children.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use argh::FromArgs;
use serde::{Deserialize, Serialize};

use crate::demi::{config, executable, free_port, Client, Demi, Host};
use crate::load::{self, Load, Pace};
use crate::report::{number, print, progress, Machine, Table};
use crate::{procfs, Outcome};

/// How long Demi settles before its memory counts as idle.
const SETTLE: Duration = Duration::from_secs(3);
/// Connections under load, and of the first step; then of the second.
const FEW: usize = 64;
const MANY: usize = 1000;

#[derive(FromArgs)]
#[argh(subcommand, name = "memory")]
/// PSS idle, with connections and under load; threads; CPU time when idle
pub struct Arguments {
    /// the configuration to start Demi with; it is copied to a directory of its own, so that `store.path` is too, and
    /// `http.listen` is replaced by a free port (default: ./config.ron, else an inline echo)
    #[argh(option)]
    config: Option<PathBuf>,
    /// the path to ask for (default: that of the configuration's first route, else /healthz)
    #[argh(option)]
    path: Option<String>,
    /// seconds over which idle CPU time is taken (default 10)
    #[argh(option, default = "10")]
    idle_seconds: u64,
    /// seconds of load (default 5)
    #[argh(option, default = "5")]
    seconds: u64,
    /// the demi executable (default: the one beside this one)
    #[argh(option)]
    demi: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    config: String,
    path: String,
    idle_pss_kib: u64,
    idle_cpu_percent: f64,
    idle_wakeups_per_s: f64,
    threads: u64,
    rss_max_kib: u64,
    steps: Vec<Step>,
    /// PSS of Demi and all its children together, idle.
    tree_idle_pss_kib: u64,
    children: Vec<Child>,
}

#[derive(Serialize)]
struct Step {
    name: String,
    pss_kib: u64,
    private_kib: u64,
    failed: u64,
}

#[derive(Serialize)]
struct Child {
    pid: u32,
    command: String,
    pss_kib: u64,
    private_kib: u64,
}

/// Runs `demi-bench memory`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let executable = executable(arguments.demi.as_deref())?;
    let machine = Machine::now();
    let source = Source::find(arguments.config.as_deref(), &executable)?;
    let path = arguments.path.clone().unwrap_or(source.path);
    let (mut demi, _) = Demi::start(&executable, source.address, &source.text)?;
    let pid = demi.pid();
    let mut steps = Vec::new();
    progress("idle");
    std::thread::sleep(SETTLE);
    steps.push(Step::now("idle, 3 s after the start", pid, 0)?);
    let children: Vec<Child> = procfs::descendants(pid).into_iter().filter_map(Child::now).collect();
    let tree_idle_pss_kib = steps[0].pss_kib + children.iter().map(|child| child.pss_kib).sum::<u64>();

    let gone = || format!("process {pid} is gone");
    let (cpu, sleeps) = (procfs::cpu_fine(pid).ok_or_else(gone)?, procfs::sleeps(pid).ok_or_else(gone)?);
    let begin = Instant::now();
    std::thread::sleep(Duration::from_secs(arguments.idle_seconds));
    demi.alive()?;
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = procfs::cpu_fine(pid).ok_or_else(gone)?.saturating_sub(cpu);
    let sleeps = procfs::sleeps(pid).ok_or_else(gone)?.saturating_sub(sleeps);

    Client::new(demi.address).expect_200(&path)?;
    for count in [FEW, MANY] {
        progress(&format!("{count} connections"));
        let mut load = Load::open(demi.address, load::request(&path, 0), count)?;
        let tally = load.run(Pace::Once, Duration::from_secs(10), &mut || demi.alive())?;
        std::thread::sleep(Duration::from_millis(500));
        steps.push(Step::now(&format!("{count} idle connections after a request each"), pid, tally.failed())?);
    }
    progress("load");
    let mut load = Load::open(demi.address, load::request(&path, 0), FEW)?;
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut most: Option<Step> = None;
    let name = format!("under load on {FEW} connections, the most seen");
    let tally = load.run(Pace::Closed, Duration::from_secs(arguments.seconds), &mut || {
        demi.alive()?;
        let step = Step::now(&name, pid, 0)?;
        if most.as_ref().is_none_or(|most| most.pss_kib < step.pss_kib) && Instant::now() < end {
            most = Some(step);
        }
        Ok(())
    })?;
    let mut most = most.map_or_else(|| Step::now(&name, pid, 0), Ok)?;
    most.failed = tally.failed();
    steps.push(most);
    drop(load);
    std::thread::sleep(Duration::from_secs(1));
    steps.push(Step::now("1 s after the load", pid, 0)?);

    let document = Document {
        config: source.name,
        path,
        idle_pss_kib: steps[0].pss_kib,
        idle_cpu_percent: cpu.as_secs_f64() / seconds * 100.0,
        idle_wakeups_per_s: sleeps as f64 / seconds,
        threads: procfs::threads(pid).ok_or_else(gone)?,
        rss_max_kib: procfs::rss_max_kib(pid).ok_or_else(gone)?,
        steps,
        tree_idle_pss_kib,
        children,
    };
    demi.stop()?;
    let mib = |kib: u64| format!("{:.2}", kib as f64 / 1024.0);
    let mut own = Table::new(&["", "PSS MiB", "private MiB", "failed"]);
    for step in &document.steps {
        own.row(&[step.name.clone(), mib(step.pss_kib), mib(step.private_kib), step.failed.to_string()]);
    }
    let mut children = Table::new(&["", "PSS MiB", "private MiB"]);
    for child in &document.children {
        children.row(&[format!("{} {}", child.pid, child.command), mib(child.pss_kib), mib(child.private_kib)]);
    }
    let mut rest = Table::new(&["", ""]);
    rest.row(&["most resident (VmHWM) MiB".to_owned(), mib(document.rss_max_kib)]);
    rest.row(&["threads".to_owned(), document.threads.to_string()]);
    rest.row(&["CPU % idle".to_owned(), format!("{:.3}", document.idle_cpu_percent)]);
    rest.row(&["wake-ups/s idle".to_owned(), number(document.idle_wakeups_per_s)]);
    rest.row(&["PSS of Demi and its children, idle, MiB".to_owned(), mib(document.tree_idle_pss_kib)]);
    let title = format!("Demi's own process, {}, GET {}", document.config, document.path);
    let mut tables = vec![(title.as_str(), own), ("Also", rest)];
    if !document.children.is_empty() {
        tables.push(("Its children, idle (pages of the one executable are shared among all)", children));
    }
    print(arguments.json, &machine, &document, &tables)
}

impl Step {
    fn now(name: &str, pid: u32, failed: u64) -> Outcome<Step> {
        let read = || Some((procfs::pss_kib(pid)?, procfs::private_kib(pid)?));
        let (pss_kib, private_kib) = read().ok_or_else(|| format!("the memory of process {pid} cannot be read"))?;
        Ok(Step { name: name.to_owned(), pss_kib, private_kib, failed })
    }
}

impl Child {
    fn now(pid: u32) -> Option<Child> {
        let (pss_kib, private_kib) = (procfs::pss_kib(pid)?, procfs::private_kib(pid)?);
        Some(Child { pid, command: procfs::command(pid), pss_kib, private_kib })
    }
}

/// The configuration to measure with, made harmless.
struct Source {
    name: String,
    text: String,
    address: SocketAddr,
    path: String,
}

/// The few fields of a configuration that matter here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Glance {
    http: GlanceHttp,
    routes: Vec<GlanceRoute>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GlanceHttp {
    listen: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GlanceRoute {
    path: Option<serde::de::IgnoredAny>,
}

impl Source {
    fn find(given: Option<&Path>, executable: &Path) -> Outcome<Source> {
        let port = free_port()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let file = given.unwrap_or(Path::new("config.ron"));
        if given.is_none() && !file.exists() {
            let text = config(executable, port, &[Host::Inline], "");
            return Ok(Source { name: "an inline echo".to_owned(), text, address, path: "/inline".to_owned() });
        }
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| format!("{name}: {error}"))?;
        let options = ron::Options::default().with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME);
        let glance: Glance = options.from_str(&text).map_err(|error| format!("{name}: {error}"))?;
        // Both are looked up in the text, since a route's path may be of more than one kind.
        let path = glance.routes.iter().any(|route| route.path.is_some()).then(|| quoted_after(&text, "path:", "/"));
        let path = path.flatten().unwrap_or_else(|| "/healthz".to_owned());
        let listen = glance.http.listen.unwrap_or_else(|| "127.0.0.1:8787".to_owned());
        let replaced = replace_listen(&text, &listen, &address.to_string());
        let address = match &replaced {
            Some(_) => address,
            None => listen.parse().map_err(|_| format!("{name}: http.listen is {listen:?}; no address with a port"))?,
        };
        Ok(Source { name, text: replaced.unwrap_or(text), address, path })
    }
}

/// The first string after `field` that begins with `start`, outside of comments.
fn quoted_after(text: &str, field: &str, start: &str) -> Option<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines
        .filter_map(|line| line.split_once(field)?.1.split('"').nth(1))
        .find(|value| value.starts_with(start))
        .map(str::to_owned)
}

/// The text with the value of `listen` replaced, if it is written there.
fn replace_listen(text: &str, from: &str, to: &str) -> Option<String> {
    let mut done = false;
    let replace = |line: &str| {
        let comment = line.trim_start().starts_with("//");
        if done || comment || !line.contains("listen:") || !line.contains(&format!("\"{from}\"")) {
            return line.to_owned();
        }
        done = true;
        line.replacen(&format!("\"{from}\""), &format!("\"{to}\""), 1)
    };
    let lines: Vec<String> = text.lines().map(replace).collect();
    done.then(|| lines.join("\n") + "\n")
}
