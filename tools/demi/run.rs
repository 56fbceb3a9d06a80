//! `demi run`: the main job, until it is told to stop.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use demi::config_file::{self, Loaded};
use demi::{Options, Reactor};
use log::LevelFilter;

use crate::arguments::RunOptions;
use crate::configuration;
use crate::journal::Journal;
use crate::{adapter_names, plan, print, ADAPTERS, CONFIG, FAILED};

/// Conducts; `began` is when the process did.
pub(crate) fn conduct(options: &RunOptions, began: Instant) -> ExitCode {
    let journal = match Journal::start() {
        Ok(journal) => journal,
        Err(error) => {
            eprintln!("demi: the system has no thread for the log: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let target = env_logger::Target::Pipe(Box::new(journal.clone()));
    // What fails in the store is told once, by whoever asked for it; sled says it again for each of its buffers.
    let of_sled = if options.log_level == LevelFilter::Trace { LevelFilter::Trace } else { LevelFilter::Off };
    let mut builder = env_logger::Builder::new();
    builder.filter_level(options.log_level).filter_module("sled", of_sled);
    builder.format(write_log_line).target(target).init();
    let code = conduct_with_log(options, began);
    journal.finish();
    code
}

fn conduct_with_log(options: &RunOptions, began: Instant) -> ExitCode {
    let Some(path) = options.config.clone().or_else(configuration::find) else {
        eprintln!("demi: no configuration was found; name one with --config PATH. Looked for:");
        configuration::candidates().iter().for_each(|path| eprintln!("  {}", path.display()));
        return ExitCode::from(CONFIG);
    };
    let loaded = match config_file::load(&path, &adapter_names()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(CONFIG);
        }
    };
    if options.dry_run {
        return match plan::check(&loaded.config) {
            Ok(()) => print(&plan::describe(&loaded, &path)),
            Err(mistakes) => {
                mistakes.iter().for_each(|mistake| eprintln!("{}: {mistake}", path.display()));
                ExitCode::from(CONFIG)
            }
        };
    }
    log::info!("configuration: {}", path.display());
    run(&loaded, &path, began)
}

fn run(loaded: &Loaded, path: &Path, began: Instant) -> ExitCode {
    let Loaded { config, warnings, refused, rescan } = loaded;
    let base = path.parent().map(Path::to_path_buf).unwrap_or_default();
    let options = Options {
        base,
        handles_signals: true,
        began: Some(began),
        guard: std::env::current_exe().ok(),
        is_subreaper: true,
        uses_cgroups: true,
        rescan: Some(rescan.clone()),
        refused: refused.clone(),
        ..Options::default()
    };
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
    for warning in warnings {
        log::warn!("{}", warning.at(path));
    }
    for refused in refused {
        for line in format!("{refused}{}", plan::consequence(config, refused)).lines() {
            log::warn!("refused: {line}");
        }
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
    use std::io::Write;
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
