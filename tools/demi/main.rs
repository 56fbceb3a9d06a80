//! The product binary. Which command is in which file is here; what Demi does is in the library.

#![forbid(unsafe_code)]

mod arguments;
mod check;
mod client;
mod configuration;
mod dead;
mod doctor;
mod health;
mod history;
mod journal;
mod launch;
mod logs;
mod order;
mod page;
mod plan;
mod platforms;
mod route;
mod run;
mod scaffold;
mod scaling;
mod serve;
mod simulate;
mod why;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use demi::Adapter;

use arguments::Command;

/// What is compiled in. A new adapter is one line here.
const ADAPTERS: [Adapter; 1] = [demi_echo::ADAPTER];

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const CONFIG: u8 = 3;

fn main() -> ExitCode {
    let began = Instant::now();
    if let Some(failed) = launch::if_asked() {
        return failed;
    }
    let command = match arguments::parse() {
        Ok(command) => command,
        Err(exit) => return exit,
    };
    match command {
        Command::Version => print(concat!("demi ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Run(options) => run::conduct(&options, began),
        Command::Platforms { remote, name } => platforms::show(&remote, name.as_deref()),
        Command::Health { remote, name } => health::show(&remote, name.as_deref()),
        Command::Dead { remote, dead } => dead::see_to(&remote, dead),
        Command::History { remote, name, last, step } => history::show(&remote, &name, &last, step.as_deref()),
        Command::ScalingLog { remote, limit } => scaling::log(&remote, limit),
        Command::Why { remote, name } => why::tell(&remote, &name),
        Command::Logs { remote, name, follow, lines } => logs::print_lines(&remote, &name, follow, lines),
        Command::Order { remote, order, name, wait } => order::give(&remote, order, &name, wait),
        Command::PluginNew { name, language, folder } => scaffold::write(&name, language, folder),
        Command::PluginCheck { path } => check::check(&path),
        Command::PluginServe { adapter } => serve::serve(&adapter),
        Command::RouteTest(asked) => route::test(&asked),
        Command::Doctor(asked) => doctor::examine(&asked),
        Command::Simulate(asked) => simulate::simulate(&asked),
        Command::Guard => guard(),
    }
}

/// Outlives another Demi, to kill what is left of its children if it does not end in order.
fn guard() -> ExitCode {
    match demi::keep_guard() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demi: {error}");
            ExitCode::from(USAGE)
        }
    }
}

/// The names under which adapters are compiled in.
fn adapter_names() -> Vec<&'static str> {
    ADAPTERS.iter().map(|adapter| adapter.name).collect()
}

/// Prints to stdout. Whoever closes it early has read enough.
fn print(text: &str) -> ExitCode {
    match print_some(text) {
        Ok(_) => ExitCode::SUCCESS,
        Err(failed) => failed,
    }
}

/// Prints to stdout; whether there is still a reader. `Err` is the exit code after the trouble was told.
fn print_some(text: &str) -> Result<bool, ExitCode> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            eprintln!("demi: stdout cannot be written: {error}");
            Err(ExitCode::from(FAILED))
        }
    }
}
