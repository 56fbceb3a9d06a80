//! The product binary. Subcommands are here; what they do is in the library.

#![forbid(unsafe_code)]

mod arguments;
mod journal;
mod plan;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use demi::{config_file, Adapter, Config, Options, Reactor};

use arguments::{Arguments, Command};
use journal::Journal;

/// What is compiled in. A new adapter is one line here.
const ADAPTERS: [Adapter; 1] = [demi_echo::ADAPTER];

const USAGE: u8 = 2;
const CONFIG: u8 = 3;
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let began = Instant::now();
    match arguments::parse() {
        Ok(Arguments { version: true, .. }) => print(concat!("demi ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Arguments { command: Some(Command::Plugin(plugin)), .. }) => serve_as_plugin(&plugin.adapter),
        Ok(Arguments { command: Some(Command::Run(run)), .. }) => conduct(&run.options, began),
        Ok(Arguments { command: None, options, .. }) => conduct(&options, began),
        Err(exit) => exit,
    }
}

/// Prints to stdout. Whoever closes it early has read enough.
fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demi: stdout cannot be written: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Runs a compiled-in adapter as a child process of another Demi.
fn serve_as_plugin(name: &str) -> ExitCode {
    let Some(adapter) = ADAPTERS.iter().find(|adapter| adapter.name == name) else {
        let names: Vec<&str> = ADAPTERS.iter().map(|adapter| adapter.name).collect();
        eprintln!("demi: no adapter is named {name:?}; compiled in are: {}", names.join(", "));
        return ExitCode::from(USAGE);
    };
    match demi::plugin_main((adapter.make)().as_mut()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demi: the host is gone: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Does the main job until it is told to stop.
fn conduct(options: &arguments::RunOptions, began: Instant) -> ExitCode {
    let journal = match Journal::start() {
        Ok(journal) => journal,
        Err(error) => {
            eprintln!("demi: the system has no thread for the log: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let target = env_logger::Target::Pipe(Box::new(journal.clone()));
    env_logger::Builder::new().filter_level(options.log_level).format(write_log_line).target(target).init();
    let code = conduct_with_log(options, began);
    journal.finish();
    code
}

fn conduct_with_log(options: &arguments::RunOptions, began: Instant) -> ExitCode {
    let Some(path) = options.config.clone().or_else(find_config) else {
        eprintln!("demi: no configuration was found; name one with --config PATH. Looked for:");
        candidates().iter().for_each(|path| eprintln!("  {}", path.display()));
        return ExitCode::from(CONFIG);
    };
    let names: Vec<&str> = ADAPTERS.iter().map(|adapter| adapter.name).collect();
    let config = match config_file::load(&path, &names) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(CONFIG);
        }
    };
    if options.dry_run {
        return match plan::check(&config) {
            Ok(()) => print(&plan::describe(&config, &path)),
            Err(mistakes) => {
                mistakes.iter().for_each(|mistake| eprintln!("{}: {mistake}", path.display()));
                ExitCode::from(CONFIG)
            }
        };
    }
    log::info!("configuration: {}", path.display());
    run(&config, &path, began)
}

fn run(config: &Config, path: &Path, began: Instant) -> ExitCode {
    let base = path.parent().map(Path::to_path_buf).unwrap_or_default();
    let options = Options { base, handles_signals: true, began: Some(began), ..Options::default() };
    let reactor = match Reactor::new(config, &ADAPTERS, options) {
        Ok(reactor) => reactor,
        Err(error) => {
            eprintln!("demi: {error}");
            return ExitCode::from(error.exit_code());
        }
    };
    raise_descriptor_limit();
    for mistake in plan::check(config).err().unwrap_or_default() {
        log::warn!("{}: {mistake}; it is tried again and again meanwhile", path.display());
    }
    for line in plan::suggestions(config, reactor.address()) {
        log::info!("{line}");
    }
    match reactor.run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("demi: the event loop failed: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Time of day in UTC, level, message: a date is what journals and terminals add themselves.
fn write_log_line(out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>) -> std::io::Result<()> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs() % 86_400, since.subsec_millis());
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let level = record.level();
    writeln!(out, "{hour:02}:{minute:02}:{second:02}.{millis:03}Z {level:<5} {}", record.args())
}

/// Connections and children need descriptors, and the usual soft limit of 1024 is for programs that use `select`.
fn raise_descriptor_limit() {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        log::warn!("the limit of descriptors cannot be raised: {error}; fewer connections and children are possible");
    }
}

fn find_config() -> Option<PathBuf> {
    candidates().into_iter().find(|path| path.is_file())
}

/// Where a configuration is looked for when none is named, in this order.
fn candidates() -> Vec<PathBuf> {
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    let mut paths = vec![PathBuf::from("config.ron")];
    paths.extend(home.map(|home| home.join("demi/config.ron")));
    paths.push(PathBuf::from("/etc/demi/config.ron"));
    paths
}
