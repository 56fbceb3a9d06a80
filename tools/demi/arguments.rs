//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;

use crate::dead::{Dead, Filter, NewBody};
use crate::doctor::DoctorAsked;
use crate::simulate::SimulateAsked;
use crate::USAGE;

/// Conducts the integrations of a home server: starts them, watches them, routes to them, and says why.
///
/// Without a subcommand it runs. Exit codes: 0 clean, 1 runtime failure, 2 usage, 3 configuration, 4 store, 5 listener.
#[derive(FromArgs)]
struct Raw {
    /// configuration file; default: ./config.ron, $XDG_CONFIG_HOME/demi/config.ron, /etc/demi/config.ron
    #[argh(option)]
    config: Option<PathBuf>,
    /// error, warn, info, debug or trace; default: info
    #[argh(option, default = "log::LevelFilter::Info", from_str_fn(level))]
    log_level: log::LevelFilter,
    /// check everything, print the plan, start and write nothing
    #[argh(switch)]
    dry_run: bool,
    /// print the version
    #[argh(switch)]
    version: bool,
    #[argh(subcommand)]
    command: Option<RawCommand>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum RawCommand {
    Run(RawRun),
    Platforms(RawPlatforms),
    Health(RawHealth),
    History(RawHistory),
    Dead(RawDead),
    Why(RawWhy),
    Logs(RawLogs),
    Start(RawStart),
    Stop(RawStop),
    Restart(RawRestart),
    Reload(RawReload),
    Isolate(RawIsolate),
    Close(RawClose),
    Plugin(RawPlugin),
    Route(RawRoute),
    Doctor(RawDoctor),
    Scaling(RawScaling),
    Simulate(RawSimulate),
}

/// Run until told to stop (the default).
#[derive(FromArgs)]
#[argh(subcommand, name = "run")]
struct RawRun {
    /// configuration file; default: ./config.ron, $XDG_CONFIG_HOME/demi/config.ron, /etc/demi/config.ron
    #[argh(option)]
    config: Option<PathBuf>,
    /// error, warn, info, debug or trace; default: info
    #[argh(option, from_str_fn(level))]
    log_level: Option<log::LevelFilter>,
    /// check everything, print the plan, start and write nothing
    #[argh(switch)]
    dry_run: bool,
}

/// A command that talks to a Demi that runs: its own fields, and those that all such commands have in common.
macro_rules! remote {
    ($name:ident, $word:tt, $what:tt, { $($fields:tt)* }) => {
        #[derive(FromArgs)]
        #[argh(subcommand, name = $word, description = $what)]
        struct $name {
            $($fields)*
            /// where Demi listens, HOST:PORT; default: http.listen of the configuration, else 127.0.0.1:8787
            #[argh(option, from_str_fn(address))]
            address: Option<String>,
            /// configuration file that says where Demi listens; default: the one that `demi run` takes
            #[argh(option)]
            config: Option<PathBuf>,
            /// print the answer of the API as it is
            #[argh(switch)]
            json: bool,
        }

        impl $name {
            fn remote(&self, config: Option<PathBuf>) -> Remote {
                Remote { address: self.address.clone(), config: self.config.clone().or(config), json: self.json }
            }
        }
    };
}

/// A command that tells a Demi that runs what to do with a platform, and waits for it to be done.
macro_rules! order {
    ($name:ident, $word:tt, $what:tt) => {
        remote!($name, $word, $what, {
            /// the platform
            #[argh(positional)]
            name: String,
            /// longest wait for it to be done, seconds, 0 to 3600; default: 30
            #[argh(option, default = "WAIT", from_str_fn(wait))]
            wait: Duration,
            /// do not wait for it to be done
            #[argh(switch)]
            no_wait: bool,
        });

        impl $name {
            fn order(self, order: Order, config: Option<PathBuf>) -> Command {
                let wait = if self.no_wait { None } else { Some(self.wait) };
                Command::Order { remote: self.remote(config), order, name: self.name, wait }
            }
        }
    };
}

/// Long enough for what starts slowly, short enough for a person.
const WAIT: Duration = Duration::from_secs(30);

remote!(RawPlatforms, "platforms", "List the platforms of the Demi that runs; with NAME, all that is known of one.", {
    /// only this platform, with everything that is known of it
    #[argh(positional)]
    name: Option<String>,
});
remote!(RawHealth, "health", "Tell how the platforms are, how long answers take, and what went wrong lately.", {
    /// only this platform, with its instances, its errors and its history
    #[argh(positional)]
    name: Option<String>,
});
remote!(RawHistory, "history", "Tell what a platform did and used over time.", {
    /// the platform
    #[argh(positional)]
    name: String,
    /// how far to look back, such as 90m, 24h or 7d; default: 24h
    #[argh(option, default = "\"24h\".to_owned()", from_str_fn(span))]
    last: String,
    /// how much makes a line, such as 5m, 1h or 1d; default: what makes at most 150 lines
    #[argh(option, from_str_fn(span))]
    step: Option<String>,
});
/// See, change, replay or take away what could not be delivered.
#[derive(FromArgs)]
#[argh(subcommand, name = "dead")]
struct RawDead {
    #[argh(subcommand)]
    command: RawDeadCommand,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum RawDeadCommand {
    List(RawDeadList),
    Show(RawDeadShow),
    Edit(RawDeadEdit),
    Replay(RawDeadReplay),
    Purge(RawDeadPurge),
}

/// A command about dead letters: its own fields, and how the answer is printed.
macro_rules! dead {
    ($name:ident, $word:tt, $what:tt, { $($fields:tt)* }) => {
        remote!($name, $word, $what, {
            $($fields)*
            /// table, or json for the answer of the API as it is; default: table
            #[argh(option, default = "false", from_str_fn(is_json))]
            format: bool,
        });

        impl $name {
            fn dead(&self, config: Option<PathBuf>, dead: Dead) -> Command {
                let mut remote = self.remote(config);
                remote.json |= self.format;
                Command::Dead { remote, dead }
            }
        }
    };
}

/// As `dead`, for a command that may be about some of the letters.
macro_rules! some_dead {
    ($name:ident, $word:tt, $what:tt, { $($fields:tt)* }) => {
        dead!($name, $word, $what, {
            $($fields)*
            /// only those of this platform
            #[argh(option)]
            platform: Option<String>,
            /// only those that went by this rule, such as routes[2]
            #[argh(option)]
            route: Option<String>,
            /// only those whose reason contains this
            #[argh(option)]
            reason: Option<String>,
            /// only those given up longer ago, such as 90m, 24h or 7d
            #[argh(option, from_str_fn(span))]
            older_than: Option<String>,
            /// only those given up since, such as 90m, 24h or 7d
            #[argh(option, from_str_fn(span))]
            newer_than: Option<String>,
        });

        impl $name {
            fn filter(&self) -> Filter {
                Filter {
                    platform: self.platform.clone(),
                    route: self.route.clone(),
                    reason: self.reason.clone(),
                    older_than: self.older_than.clone(),
                    newer_than: self.newer_than.clone(),
                }
            }
        }
    };
}

some_dead!(RawDeadList, "list", "List dead letters, oldest first.", {
    /// so many at most, 1 to 500; default: 50
    #[argh(option, default = "50", from_str_fn(letters))]
    limit: u32,
    /// go on after this id
    #[argh(option, default = "0")]
    after: u64,
});
dead!(RawDeadShow, "show", "Show all of a dead letter.", {
    /// its id
    #[argh(positional)]
    id: u64,
});
dead!(RawDeadEdit, "edit", "Give a dead letter another body, to be replayed then.", {
    /// its id
    #[argh(positional)]
    id: u64,
    /// the body
    #[argh(option)]
    body: Option<String>,
    /// a file with the body; - is stdin, which is the default
    #[argh(option)]
    file: Option<PathBuf>,
    /// the body's media type; default: as before
    #[argh(option, from_str_fn(media))]
    content_type: Option<String>,
});
some_dead!(RawDeadReplay, "replay", "Send dead letters again; what is answered well goes, the rest is marked.", {
    /// their ids
    #[argh(positional)]
    ids: Vec<u64>,
    /// all that there are
    #[argh(switch)]
    all: bool,
});
some_dead!(RawDeadPurge, "purge", "Take dead letters away for good.", {
    /// their ids
    #[argh(positional)]
    ids: Vec<u64>,
    /// all that there are, if nothing else is said
    #[argh(switch)]
    yes: bool,
});
remote!(RawWhy, "why", "Tell why a platform is in its state, what happens next, and what happened before.", {
    /// the platform
    #[argh(positional)]
    name: String,
});
remote!(RawLogs, "logs", "Print the last lines that a platform has logged.", {
    /// the platform
    #[argh(positional)]
    name: String,
    /// go on printing as lines come
    #[argh(switch, short = 'f')]
    follow: bool,
    /// so many lines, 1 to 1000; default: 100. Demi keeps the last 200, at most 64 KiB
    #[argh(option, default = "100", from_str_fn(lines))]
    lines: usize,
});
order!(RawStart, "start", "Start a platform and what it needs, whatever kept it from running.");
order!(RawStop, "stop", "Stop a platform, after those that need it, until it is started again.");
order!(RawRestart, "restart", "Stop a platform and start it again.");
order!(
    RawReload,
    "reload",
    "Start a new edition of a platform beside the old one, and replace that once it is proven."
);
order!(RawIsolate, "isolate", "Let a platform run and give it no requests until it is started by hand.");
order!(RawClose, "close", "Close a platform's breakers by hand, and forget what was held against it.");

/// Write, check, serve or reload a plugin.
#[derive(FromArgs)]
#[argh(subcommand, name = "plugin")]
struct RawPlugin {
    #[argh(subcommand)]
    command: RawPluginCommand,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum RawPluginCommand {
    New(RawNew),
    Check(RawCheck),
    Serve(RawServe),
    Reload(RawReload),
}

/// Write a plugin that works, to put your own code into.
#[derive(FromArgs)]
#[argh(subcommand, name = "new")]
struct RawNew {
    /// the plugin's name: 1 to 64 letters, digits, '-' or '_'
    #[argh(positional)]
    name: String,
    /// python, node, rust or sh
    #[argh(option, from_str_fn(language))]
    lang: Language,
    /// the folder to write; it must not exist; default: plugins/NAME
    #[argh(option)]
    dir: Option<PathBuf>,
}

/// Start a plugin, put it to the test, and print a line for each: ok, FAIL or skip. Takes less than 30 seconds. It finds
/// the environment that Demi gives it, but is held to none of its limits.
#[derive(FromArgs)]
#[argh(subcommand, name = "check")]
struct RawCheck {
    /// the plugin's folder, or its manifest
    #[argh(positional)]
    path: PathBuf,
}

/// Serve a compiled-in adapter on stdin and stdout, as a child process of Demi.
#[derive(FromArgs)]
#[argh(subcommand, name = "serve")]
struct RawServe {
    /// name of the adapter, such as echo
    #[argh(positional)]
    adapter: String,
}

/// Ask the routing table.
#[derive(FromArgs)]
#[argh(subcommand, name = "route")]
struct RawRoute {
    #[argh(subcommand)]
    command: RawRouteCommand,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum RawRouteCommand {
    Test(RawRouteTest),
}

/// Tell which rule takes a request, where it goes, and why the other rules do not take it. Asks the configuration; Demi need
/// not run. Ends with 1 if no rule matches.
#[derive(FromArgs)]
#[argh(subcommand, name = "test")]
struct RawRouteTest {
    /// where the request comes from, such as discord
    #[argh(option, default = "String::new()")]
    platform: String,
    /// its kind, such as message
    #[argh(option, default = "String::new()")]
    kind: String,
    /// its method; default: POST, or GET with --http
    #[argh(option)]
    method: Option<String>,
    /// the host that it is for
    #[argh(option, default = "String::new()")]
    host: String,
    /// its path; a query is left out
    #[argh(option, default = "String::new()")]
    path: String,
    /// 'Name: value', as often as there are headers
    #[argh(option, from_str_fn(header))]
    header: Vec<String>,
    /// its text
    #[argh(option, default = "String::new()")]
    content: String,
    /// a plain HTTP request, which only rules with a path or a host take
    #[argh(switch)]
    http: bool,
    /// configuration file; default: the one that `demi run` takes
    #[argh(option)]
    config: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

impl RawRouteTest {
    fn asked(self, config: Option<PathBuf>) -> RouteAsked {
        let (method, from) = if self.http { ("GET", "http") } else { ("POST", "") };
        RouteAsked {
            from: if self.platform.is_empty() { from.to_owned() } else { self.platform },
            kind: self.kind,
            method: self.method.unwrap_or_else(|| method.to_owned()),
            host: self.host,
            path: self.path.split('?').next().unwrap_or_default().to_owned(),
            headers: self.header.concat(),
            content: self.content,
            is_plain_http: self.http,
            config: self.config.or(config),
            json: self.json,
        }
    }
}

/// Tell what Demi finds on this machine and what it misses, with the line that puts it right.
///
/// Needs no Demi that runs and changes nothing. Run it as the user that runs Demi. Exit codes: 0 all that matters is there,
/// 1 it is not, 2 usage.
#[derive(FromArgs)]
#[argh(subcommand, name = "doctor")]
struct RawDoctor {
    /// configuration file; default: the one that `demi run` takes
    #[argh(option)]
    config: Option<PathBuf>,
    /// where the machine's proc and sys are, to look at a copy of another machine's; default: /
    #[argh(option, default = "PathBuf::from(\"/\")")]
    root: PathBuf,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

/// What is done about RAM.
#[derive(FromArgs)]
#[argh(subcommand, name = "scaling")]
struct RawScaling {
    #[argh(subcommand)]
    command: RawScalingCommand,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum RawScalingCommand {
    Log(RawScalingLog),
}

remote!(RawScalingLog, "log", "Tell how RAM is, and what was decided about it lately, with the figures.", {
    /// so many decisions, newest first, 1 to 1000; default: 128. Demi keeps the last 1000, over restarts
    #[argh(option, default = "128", from_str_fn(decisions))]
    limit: usize,
});

/// Tell what would have been shed, and when it would have come back, with other settings: recorded days, lived once more.
///
/// Needs no Demi that runs and changes nothing. It is a model: docs/simulate.md says of what. Exit codes: 0, 1 nothing can be
/// replayed, 2 usage, 3 configuration.
#[derive(FromArgs)]
#[argh(subcommand, name = "simulate")]
struct RawSimulate {
    /// a trace, or a folder of some; as often as there are. Default: what Demi has recorded, see --last
    #[argh(option)]
    trace: Vec<PathBuf>,
    /// how far to look back in what Demi has recorded, such as 90m, 24h or 7d; default: 7d
    #[argh(option, from_str_fn(span))]
    last: Option<String>,
    /// KEY=VALUE, as often as there are: scaler.shed_percent=75, scaler.champion=Ols, platforms.NAME.priority=10,
    /// platforms.NAME.value=300, platforms.NAME.shed=false
    #[argh(option, from_str_fn(setting))]
    set: Vec<(String, String)>,
    /// so many decisions are told, 0 to 10000; default: 30
    #[argh(option, default = "30", from_str_fn(decisions_or_none))]
    decisions: usize,
    /// configuration file that says where the store is; default: the one that `demi run` takes
    #[argh(option)]
    config: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

/// What the command line asks for.
pub(crate) enum Command {
    Version,
    Run(RunOptions),
    Platforms {
        remote: Remote,
        name: Option<String>,
    },
    Health {
        remote: Remote,
        name: Option<String>,
    },
    Dead {
        remote: Remote,
        dead: Dead,
    },
    History {
        remote: Remote,
        name: String,
        last: String,
        step: Option<String>,
    },
    ScalingLog {
        remote: Remote,
        limit: usize,
    },
    Why {
        remote: Remote,
        name: String,
    },
    Logs {
        remote: Remote,
        name: String,
        follow: bool,
        lines: usize,
    },
    Order {
        remote: Remote,
        order: Order,
        name: String,
        wait: Option<Duration>,
    },
    PluginNew {
        name: String,
        language: Language,
        folder: Option<PathBuf>,
    },
    PluginCheck {
        path: PathBuf,
    },
    PluginServe {
        adapter: String,
    },
    RouteTest(RouteAsked),
    Doctor(DoctorAsked),
    Simulate(SimulateAsked),
    /// `demi guard`, which help does not tell of: only Demi starts it.
    Guard,
}

/// How to run, whether `run` was written or not.
pub(crate) struct RunOptions {
    pub(crate) config: Option<PathBuf>,
    pub(crate) log_level: log::LevelFilter,
    pub(crate) dry_run: bool,
}

/// What the routing table is asked.
pub(crate) struct RouteAsked {
    pub(crate) from: String,
    pub(crate) kind: String,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    /// Lines, each ended by CRLF.
    pub(crate) headers: String,
    pub(crate) content: String,
    pub(crate) is_plain_http: bool,
    pub(crate) config: Option<PathBuf>,
    pub(crate) json: bool,
}

/// Which Demi to talk to, and whether a program reads the answer.
pub(crate) struct Remote {
    pub(crate) address: Option<String>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) json: bool,
}

/// What to tell Demi to do with a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Start,
    Stop,
    Restart,
    Reload,
    Isolate,
    Close,
}

impl Order {
    /// The word for it on the command line and in the API.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Order::Start => "start",
            Order::Stop => "stop",
            Order::Restart => "restart",
            Order::Reload => "reload",
            Order::Isolate => "isolate",
            Order::Close => "close",
        }
    }
}

/// In what a new plugin is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    Python,
    Node,
    Rust,
    Sh,
}

/// Reads the command line. `Err` is the exit code after help was printed, or a mistake was told.
pub(crate) fn parse() -> Result<Command, ExitCode> {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (name, rest) = words.split_first().map_or(("demi", &[][..]), |(name, rest)| (*name, rest));
    let name = std::path::Path::new(name).file_name().and_then(|name| name.to_str()).unwrap_or("demi");
    if rest == ["guard"] {
        return Ok(Command::Guard);
    }
    match Raw::from_args(&[name], rest) {
        Ok(raw) => Ok(raw.into()),
        Err(early) if early.status.is_ok() => Err(crate::print(&early.output)),
        Err(early) => {
            eprintln!("{}", early.output.trim_end());
            eprintln!("Run {name} --help for more information.");
            Err(ExitCode::from(USAGE))
        }
    }
}

impl From<Raw> for Command {
    fn from(raw: Raw) -> Command {
        if raw.version {
            return Command::Version;
        }
        let config = raw.config;
        let Some(command) = raw.command else {
            return Command::Run(RunOptions { config, log_level: raw.log_level, dry_run: raw.dry_run });
        };
        // Options may stand before or after the subcommand; those after it win.
        match command {
            RawCommand::Run(run) => Command::Run(RunOptions {
                config: run.config.or(config),
                log_level: run.log_level.unwrap_or(raw.log_level),
                dry_run: run.dry_run || raw.dry_run,
            }),
            RawCommand::Platforms(raw) => Command::Platforms { remote: raw.remote(config), name: raw.name },
            RawCommand::Health(raw) => Command::Health { remote: raw.remote(config), name: raw.name },
            RawCommand::Dead(raw) => match raw.command {
                RawDeadCommand::List(raw) => {
                    raw.dead(config, Dead::List { filter: raw.filter(), limit: raw.limit, after: raw.after })
                }
                RawDeadCommand::Show(raw) => raw.dead(config, Dead::Show { id: raw.id }),
                RawDeadCommand::Edit(raw) => {
                    let body = NewBody { text: raw.body.clone(), file: raw.file.clone() };
                    raw.dead(config, Dead::Edit { id: raw.id, body, content_type: raw.content_type.clone() })
                }
                RawDeadCommand::Replay(raw) => {
                    let (ids, filter) = (raw.ids.clone(), raw.filter());
                    raw.dead(config, Dead::Replay { ids, filter, all: raw.all })
                }
                RawDeadCommand::Purge(raw) => {
                    let (ids, filter) = (raw.ids.clone(), raw.filter());
                    raw.dead(config, Dead::Purge { ids, filter, yes: raw.yes })
                }
            },
            RawCommand::History(raw) => {
                let remote = raw.remote(config);
                Command::History { remote, name: raw.name, last: raw.last, step: raw.step }
            }
            RawCommand::Scaling(RawScaling { command: RawScalingCommand::Log(raw) }) => {
                Command::ScalingLog { remote: raw.remote(config), limit: raw.limit }
            }
            RawCommand::Why(raw) => Command::Why { remote: raw.remote(config), name: raw.name },
            RawCommand::Logs(raw) => {
                let remote = raw.remote(config);
                Command::Logs { remote, name: raw.name, follow: raw.follow, lines: raw.lines }
            }
            RawCommand::Start(raw) => raw.order(Order::Start, config),
            RawCommand::Stop(raw) => raw.order(Order::Stop, config),
            RawCommand::Restart(raw) => raw.order(Order::Restart, config),
            RawCommand::Reload(raw) => raw.order(Order::Reload, config),
            RawCommand::Isolate(raw) => raw.order(Order::Isolate, config),
            RawCommand::Close(raw) => raw.order(Order::Close, config),
            RawCommand::Plugin(plugin) => match plugin.command {
                RawPluginCommand::New(new) => {
                    Command::PluginNew { name: new.name, language: new.lang, folder: new.dir }
                }
                RawPluginCommand::Check(check) => Command::PluginCheck { path: check.path },
                RawPluginCommand::Serve(serve) => Command::PluginServe { adapter: serve.adapter },
                RawPluginCommand::Reload(raw) => raw.order(Order::Reload, config),
            },
            RawCommand::Route(route) => match route.command {
                RawRouteCommand::Test(test) => Command::RouteTest(test.asked(config)),
            },
            RawCommand::Doctor(raw) => {
                Command::Doctor(DoctorAsked { config: raw.config.or(config), root: raw.root, json: raw.json })
            }
            RawCommand::Simulate(raw) => Command::Simulate(SimulateAsked {
                traces: raw.trace,
                last: raw.last,
                set: raw.set,
                decisions: raw.decisions,
                config: raw.config.or(config),
                json: raw.json,
            }),
        }
    }
}

fn level(word: &str) -> Result<log::LevelFilter, String> {
    word.parse().map_err(|_| format!("{word:?} is not a log level; use error, warn, info, debug or trace"))
}

fn address(word: &str) -> Result<String, String> {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    match word.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && is_port(port) => Ok(word.to_owned()),
        _ => Err(format!("{word:?} is not an address with a port; write it as 127.0.0.1:8787")),
    }
}

fn wait(word: &str) -> Result<Duration, String> {
    match word.parse::<f64>() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("{word:?} is not a number of seconds from 0 to 3600")),
    }
}

fn is_json(word: &str) -> Result<bool, String> {
    match word {
        "json" => Ok(true),
        "table" => Ok(false),
        _ => Err(format!("{word:?} is not a format; use table or json")),
    }
}

fn letters(word: &str) -> Result<u32, String> {
    match word.parse() {
        Ok(count @ 1..=500) => Ok(count),
        _ => Err(format!("{word:?} is not a number of dead letters from 1 to 500")),
    }
}

fn media(word: &str) -> Result<String, String> {
    if word.is_empty() || word.chars().any(char::is_control) {
        return Err(format!("{word:?} is not a media type; write it as text/plain"));
    }
    Ok(word.to_owned())
}

fn span(word: &str) -> Result<String, String> {
    let (number, unit) = word.split_at(word.len() - usize::from(word.ends_with(['s', 'm', 'h', 'd'])));
    match number.parse::<u32>() {
        Ok(1..) if !unit.is_empty() && !number.starts_with('+') => Ok(word.to_owned()),
        _ => Err(format!("{word:?} is not a span of time; write it as 90m, 24h or 7d")),
    }
}

fn setting(word: &str) -> Result<(String, String), String> {
    match word.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{word:?} is not a setting with its value; write it as scaler.shed_percent=75")),
    }
}

fn decisions_or_none(word: &str) -> Result<usize, String> {
    match word.parse() {
        Ok(count @ 0..=10_000) => Ok(count),
        _ => Err(format!("{word:?} is not a number of decisions from 0 to 10000")),
    }
}

fn lines(word: &str) -> Result<usize, String> {
    match word.parse() {
        Ok(count @ 1..=1000) => Ok(count),
        _ => Err(format!("{word:?} is not a number of lines from 1 to 1000")),
    }
}

fn decisions(word: &str) -> Result<usize, String> {
    match word.parse() {
        Ok(count @ 1..=1000) => Ok(count),
        _ => Err(format!("{word:?} is not a number of decisions from 1 to 1000")),
    }
}

fn header(word: &str) -> Result<String, String> {
    match word.split_once(':') {
        Some((name, value)) if !name.is_empty() && !word.contains(['\r', '\n']) => {
            Ok(format!("{}: {}\r\n", name.trim(), value.trim()))
        }
        _ => Err(format!("{word:?} is not a header; write it as 'Name: value'")),
    }
}

fn language(word: &str) -> Result<Language, String> {
    Ok(match word {
        "python" => Language::Python,
        "node" => Language::Node,
        "rust" => Language::Rust,
        "sh" => Language::Sh,
        _ => return Err(format!("there is no template for {word:?}; use python, node, rust or sh")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Command {
        Raw::from_args(&["demi"], words).map(Command::from).unwrap_or_else(|early| panic!("{}", early.output))
    }

    fn refused(words: &[&str]) -> String {
        match Raw::from_args(&["demi"], words) {
            Ok(_) => panic!("{words:?} is taken"),
            Err(early) => early.output,
        }
    }

    #[test]
    fn options_may_stand_before_the_command_and_those_after_it_win() {
        let Command::Platforms { remote, name } = read(&["--config", "a", "platforms"]) else { panic!() };
        assert_eq!((remote.config, name), (Some(PathBuf::from("a")), None));
        let words = ["--config", "a", "platforms", "x", "--config", "b", "--json", "--address", "[::1]:80"];
        let Command::Platforms { remote, name } = read(&words) else { panic!() };
        assert_eq!((remote.config, name.as_deref(), remote.json), (Some(PathBuf::from("b")), Some("x"), true));
        assert_eq!(remote.address.as_deref(), Some("[::1]:80"));
    }

    #[test]
    fn an_order_waits_unless_told_not_to() {
        for (words, expected) in [
            (&["stop", "x"][..], Some(WAIT)),
            (&["stop", "x", "--wait", "0.5"], Some(Duration::from_millis(500))),
            (&["stop", "x", "--no-wait"], None),
        ] {
            let Command::Order { order, wait, .. } = read(words) else { panic!() };
            assert_eq!((order, wait), (Order::Stop, expected), "{words:?}");
        }
        for words in [&["reload", "x"][..], &["plugin", "reload", "x"]] {
            assert!(matches!(read(words), Command::Order { order: Order::Reload, .. }), "{words:?}");
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused_with_the_range() {
        for (words, remedy) in [
            (&["logs", "x", "--lines", "0"][..], "1 to 1000"),
            (&["start", "x", "--wait", "forever"], "0 to 3600"),
            (&["history", "x", "--last", "yesterday"], "90m, 24h or 7d"),
            (&["history", "x", "--step", "5"], "90m, 24h or 7d"),
            (&["dead", "list", "--limit", "501"], "1 to 500"),
            (&["dead", "list", "--format", "xml"], "table or json"),
            (&["dead", "purge", "--older-than", "soon"], "90m, 24h or 7d"),
            (&["dead", "edit", "1", "--content-type", "a\r\nb"], "text/plain"),
            (&["platforms", "--address", "localhost"], "127.0.0.1:8787"),
            (&["platforms", "--address", ":80"], "127.0.0.1:8787"),
            (&["route", "test", "--header", "x"], "Name: value"),
            (&["simulate", "--set", "scaler.shed_percent"], "scaler.shed_percent=75"),
            (&["simulate", "--decisions", "10001"], "0 to 10000"),
            (&["simulate", "--last", "week"], "90m, 24h or 7d"),
            (&["plugin", "new", "x", "--lang", "cobol"], "python, node, rust or sh"),
        ] {
            assert!(refused(words).contains(remedy), "{words:?}: {}", refused(words));
        }
    }

    #[test]
    fn every_command_explains_itself() {
        let commands: [&[&str]; 29] = [
            &["simulate"],
            &["scaling"],
            &["scaling", "log"],
            &["run"],
            &["platforms"],
            &["health"],
            &["history"],
            &["dead"],
            &["dead", "list"],
            &["dead", "show"],
            &["dead", "edit"],
            &["dead", "replay"],
            &["dead", "purge"],
            &["why"],
            &["logs"],
            &["start"],
            &["stop"],
            &["restart"],
            &["reload"],
            &["isolate"],
            &["close"],
            &["plugin"],
            &["plugin", "new"],
            &["plugin", "check"],
            &["plugin", "serve"],
            &["plugin", "reload"],
            &["route"],
            &["route", "test"],
            &["doctor"],
        ];
        for words in commands {
            let help = refused(&[words, &["--help"]].concat());
            assert!(help.starts_with("Usage: demi ") && help.contains("--help"), "{words:?}: {help}");
        }
    }
}
