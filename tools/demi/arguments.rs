//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use argh::FromArgs;

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
    Plugin(Plugin),
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

/// Serve a compiled-in adapter on stdin and stdout, as a child process of Demi.
#[derive(FromArgs)]
#[argh(subcommand, name = "plugin")]
pub(crate) struct Plugin {
    /// name of the adapter, such as echo
    #[argh(positional)]
    pub(crate) adapter: String,
}

/// What the command line asks for.
pub(crate) struct Arguments {
    pub(crate) version: bool,
    pub(crate) options: RunOptions,
    pub(crate) command: Option<Command>,
}

/// A subcommand.
pub(crate) enum Command {
    Run(Run),
    Plugin(Plugin),
}

/// `demi run`.
pub(crate) struct Run {
    pub(crate) options: RunOptions,
}

/// How to run, whether `run` was written or not.
#[derive(Clone)]
pub(crate) struct RunOptions {
    pub(crate) config: Option<PathBuf>,
    pub(crate) log_level: log::LevelFilter,
    pub(crate) dry_run: bool,
}

/// Reads the command line. `Err` is the exit code after help was printed, or a mistake was told.
pub(crate) fn parse() -> Result<Arguments, ExitCode> {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (name, rest) = words.split_first().map_or(("demi", &[][..]), |(name, rest)| (*name, rest));
    let name = std::path::Path::new(name).file_name().and_then(|name| name.to_str()).unwrap_or("demi");
    match Raw::from_args(&[name], rest) {
        Ok(raw) => Ok(raw.into()),
        Err(early) if early.status.is_ok() => Err(crate::print(&early.output)),
        Err(early) => {
            eprint!("{}", early.output);
            eprintln!("Run {name} --help for more information.");
            Err(ExitCode::from(USAGE))
        }
    }
}

impl From<Raw> for Arguments {
    fn from(raw: Raw) -> Arguments {
        let options = RunOptions { config: raw.config, log_level: raw.log_level, dry_run: raw.dry_run };
        let command = raw.command.map(|command| match command {
            RawCommand::Plugin(plugin) => Command::Plugin(plugin),
            // Options may stand before or after `run`; those after it win.
            RawCommand::Run(run) => Command::Run(Run {
                options: RunOptions {
                    config: run.config.or_else(|| options.config.clone()),
                    log_level: run.log_level.unwrap_or(options.log_level),
                    dry_run: run.dry_run || options.dry_run,
                },
            }),
        });
        Arguments { version: raw.version, options, command }
    }
}

fn level(word: &str) -> Result<log::LevelFilter, String> {
    word.parse().map_err(|_| format!("{word:?} is not a log level; use error, warn, info, debug or trace"))
}
