//! From a configuration to a reactor that is ready to turn, step by step, each timed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use demi_conductor::config::{Config, Host, Mistake, Platform};
use demi_conductor::{Conductor, Event, Time};
use demi_platform::Adapter;
use mio::{Events, Poll, Waker};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;

use crate::clerk::{Archive, Clerk, Memory, StoreFacts};
use crate::kit::Kit;
use crate::listener::Listener;
use crate::mailbox::mailbox;
use crate::plugins::{self, Discovery, Refused, Rescan};
use crate::port;
use crate::sampler::{Sampler, Site};
use crate::shell::{unix_day, Blueprint, Deliveries, Desk, Listed, Shell, DECISIONS_SHOWN};
use crate::spawn::{Plan, Protocol, Recipe, Yard};
use crate::store::{Store, StoreError};
use crate::tokens::Source;
use crate::upstream::Checkup;
use crate::{traces, Reactor, EVENTS_PER_TURN};

/// What a host program decides and a configuration cannot know.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where relative paths of the configuration start. Default: the working directory.
    pub base: PathBuf,
    /// What `{demi}` in a command stands for. Default: the running executable.
    pub executable: Option<PathBuf>,
    /// Whether TERM, INT and HUP order the end. Default: signals are the host program's business.
    pub handles_signals: bool,
    /// Decides every choice and jitter. Default: drawn from the clock and the process number.
    pub seed: Option<u64>,
    /// When the program began, for the line that tells how long the start took.
    pub began: Option<Instant>,
    /// An executable that calls [`crate::keep_guard`] when it is started with the one argument `guard`: it is started with
    /// the first child, and if this process is killed, it kills whatever children have started. Default: none.
    pub guard: Option<PathBuf>,
    /// Whether what children started and left comes back to this process (`PR_SET_CHILD_SUBREAPER`), so that it is
    /// weighed with their trees, and killed and reaped with them. What has no parent any more and bears no mark of a
    /// living child is killed then, so a host program that starts processes of its own must leave it off. Default: off.
    pub is_subreaper: bool,
    /// Whether control groups are used where they are delegated; the whole process is moved to a group below its own.
    /// Default: off.
    pub uses_cgroups: bool,
    /// Looks for plugin folders that come, go and change, from [`crate::config_file::load`]. Default: only the programs of
    /// the configuration's own child processes are looked at.
    pub rescan: Option<Rescan>,
    /// The plugins that were refused so far, from there as well: for the status.
    pub refused: Vec<Refused>,
}

/// Why the reactor could not be made.
#[derive(Debug)]
pub enum StartError {
    /// The configuration contradicts itself or names what is not there.
    Config(Vec<Mistake>),
    /// The store cannot be used.
    Store(String),
    /// The address cannot be listened on.
    Listen(String),
    /// The system has no descriptor or thread to give.
    System(std::io::Error),
}

impl StartError {
    /// The exit code that says so: 3 configuration, 4 store, 5 listener, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::Config(_) => 3,
            StartError::Store(_) => 4,
            StartError::Listen(_) => 5,
            StartError::System(_) => 1,
        }
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Config(mistakes) => {
                for (index, mistake) in mistakes.iter().enumerate() {
                    write!(formatter, "{}{mistake}", if index == 0 { "" } else { "\n" })?;
                }
                Ok(())
            }
            StartError::Store(what) | StartError::Listen(what) => formatter.write_str(what),
            StartError::System(error) => write!(formatter, "the system refused what every start needs: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<std::io::Error> for StartError {
    fn from(error: std::io::Error) -> StartError {
        StartError::System(error)
    }
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> StartError {
        StartError::Store(error.to_string())
    }
}

/// Times the steps of the start for one line in the log.
struct Steps {
    began: Instant,
    last: Instant,
    text: String,
}

impl Steps {
    fn done(&mut self, name: &str) {
        let now = Instant::now();
        let separator = if self.text.is_empty() { "" } else { ", " };
        self.text.push_str(&format!("{separator}{name} {:.1}", millis(now - self.last)));
        self.last = now;
    }
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

impl Reactor {
    /// Opens the store, registers the platforms and binds the listener. Nothing is started or accepted before the
    /// first turn. Blocks while the store is opened.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left behind.
    pub fn new(config: &Config, adapters: &[Adapter], options: Options) -> Result<Reactor, StartError> {
        let started = Instant::now();
        let began = options.began.unwrap_or(started);
        let mut steps = Steps { began, last: began, text: String::new() };
        let names: Vec<&str> = adapters.iter().map(|adapter| adapter.name).collect();
        let mistakes = config.mistakes(&names);
        if !mistakes.is_empty() {
            return Err(StartError::Config(mistakes));
        }
        steps.done("config");
        let poll = Poll::new()?;
        let signals = options.handles_signals.then(|| register_signals(&poll)).transpose()?;
        let listener = Listener::bind(&config.http)
            .map_err(|error| StartError::Listen(port::explain(&config.http.listen, &error)))?;
        steps.done("listener");
        let path = options.base.join(&config.store.path);
        let store = Store::open(&path, &config.store)?;
        let store_facts = StoreFacts::of(&store);
        steps.done("store");
        let executable = match options.executable {
            Some(executable) => executable,
            None => std::env::current_exe()?,
        };
        let today = unix_day();
        let mut recalled = Vec::new();
        let list = |(index, platform): (u32, &Platform)| {
            let memory = Memory::of(&platform.name, today, &store);
            recalled.extend(memory.events(index));
            let blueprint = blueprint(platform, adapters, &executable, &options.base);
            Listed::new(blueprint, platform.clone(), memory.history)
        };
        let roster: Vec<Listed> = (0..).zip(&config.platforms).map(list).collect();
        let (postbox, mailbox) = mailbox(Waker::new(poll.registry(), Source::Mailbox.into())?);
        let configured = || Rescan::new(Vec::new(), PathBuf::new(), config, Discovery::default());
        let rescan = options.rescan.unwrap_or_else(configured);
        let seed = options.seed.unwrap_or_else(draw_seed);
        let mut conductor = Conductor::new(config, seed);
        let mut actions = Vec::new();
        let deliveries = Deliveries::recall(&store, &mut conductor, &mut actions)?;
        let failed = |error: &StoreError| log::error!("what was decided about RAM cannot be read: {error}");
        let decisions = store.decisions(u64::MAX, DECISIONS_SHOWN).inspect_err(failed).unwrap_or_default();
        steps.done("messages");
        let ram_total_mb = config.scaler.ram_total_mb.map(|total| total.value());
        let site = Site { root: PathBuf::from("/"), ram_total_mb, data: path.clone() };
        let mut sampler = Sampler::new(site);
        // How RAM is before anything is started decides what is.
        let sample = if config.scaler.enabled { sampler.measure() } else { None };
        steps.done("RAM");
        let traces = traces::directory(&path);
        let trace_bytes = std::fs::metadata(traces.join(traces::name_of(today.into()))).map_or(0, |file| file.len());
        let archive = Archive::new(traces, config.scaler.trace_days.value());
        let clerk = Clerk::start(store, sampler, archive, rescan, config.posts, postbox.clone())?;
        let plan = Plan {
            guard: options.guard,
            is_subreaper: options.is_subreaper,
            uses_cgroups: options.uses_cgroups,
            weighs_pss: config.scaler.pss,
        };
        let yard = Yard::new(&path, plan, postbox.clone())?;
        let mut kit = Kit::new(poll.registry().try_clone()?);
        kit.events.extend(recalled);
        kit.events.extend(sample.map(|sample| Event::Measured { sample }));
        steps.done("platforms");
        let desk = Desk::new(executable, options.base, options.refused, config.plugins.rescan_ms.value(), today);
        let mut shell = Shell::new(
            kit,
            listener,
            mailbox,
            postbox,
            clerk,
            yard,
            roster,
            desk,
            signals,
            store_facts,
            deliveries,
            trace_bytes,
            config,
        );
        shell.recall_decisions(decisions);
        shell.set_now(Time::ZERO, Duration::ZERO);
        log::info!("assembled in {:.1} ms ({})", millis(steps.last - steps.began), steps.text);
        Ok(Reactor {
            poll,
            events: Events::with_capacity(EVENTS_PER_TURN),
            hears_again: false,
            conductor,
            actions,
            shell,
            started,
            next_sweep: Time::ZERO,
            has_begun: false,
            last_event: None,
        })
    }
}

fn register_signals(poll: &Poll) -> std::io::Result<Signals> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    poll.registry().register(&mut signals, Source::Signals.into(), mio::Interest::READABLE)?;
    Ok(signals)
}

/// What a platform's instances are started from. Of children it needs no adapters.
pub(crate) fn blueprint(platform: &Platform, adapters: &[Adapter], executable: &Path, base: &Path) -> Blueprint {
    let adapter = adapters.iter().find(|adapter| adapter.name == platform.adapter()).copied();
    let command = plugins::with_executable(&platform.command, executable);
    let recipe = command.split_first().map(|(program, arguments)| Recipe {
        program: program.into(),
        arguments: arguments.to_vec(),
        environment: platform.env.clone(),
        directory: platform.directory.as_ref().map(|directory| base.join(directory)),
        settings: platform.settings.clone(),
        limits: platform.limits.clone(),
        protocol: if matches!(platform.host, Host::Mcp(_)) { Protocol::Mcp } else { Protocol::Demi },
        permissions: platform.permissions,
    });
    Blueprint {
        host: platform.host,
        adapter: adapter.filter(|_| matches!(platform.host, Host::Inline | Host::Threads(_))),
        settings: platform.settings.clone(),
        recipe,
        addresses: platform.upstreams.iter().filter_map(|address| address.parse().ok()).collect(),
        checkup: platform.health_path.as_ref().map(|path| {
            Arc::new(Checkup {
                method: platform.health_method.clone().unwrap_or_else(|| "GET".to_owned()),
                path: path.clone(),
                status: platform.health_status.unwrap_or((200, 399)),
                body: platform.health_body.clone(),
            })
        }),
        in_flight_max: platform.in_flight_max(),
    }
}

fn draw_seed() -> u64 {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    nanos ^ u64::from(std::process::id()) << 32
}
