//! `demi-bench`: what Demi costs, measured from outside, beside a bare server where there is one to compare with.
//!
//! Every subcommand starts what it measures itself, in a directory of its own that is removed afterwards, and ends
//! it whatever happens. Run it on an otherwise idle machine; the load generator needs one core of its own.

#![forbid(unsafe_code)]

mod breaker;
mod crash;
mod decide;
mod demi;
mod discover;
mod frozen;
mod health;
mod limit;
mod load;
mod memory;
mod model;
mod overload;
mod procfs;
mod queue;
mod report;
mod request;
mod restart;
mod route;
mod scaler;
mod spike;

#[path = "../../benches/limit/forwarder.rs"]
mod forwarder;
#[path = "../../benches/limit/responder.rs"]
mod responder;

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

use argh::FromArgs;

/// A fragment that names what failed and, where there is one, the remedy.
pub type Outcome<T> = Result<T, String>;

#[derive(FromArgs)]
/// Measures a running Demi: latency, cost per request, memory, restarts, overload, messages and kills; and decisions, routing, health checks, discovery,
/// forecasts, what is done about RAM.
struct Arguments {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    Decide(decide::Arguments),
    Breaker(breaker::Arguments),
    Crash(crash::Arguments),
    Health(health::Arguments),
    Discover(discover::Arguments),
    Request(request::Arguments),
    Limit(limit::Arguments),
    Memory(memory::Arguments),
    Model(model::Arguments),
    Overload(overload::Arguments),
    Queue(queue::Arguments),
    Restart(restart::Arguments),
    Route(route::Arguments),
    Scaler(scaler::Arguments),
    Frozen(frozen::Arguments),
    Spike(spike::Arguments),
    HoldMemory(spike::Hold),
    ServeBare(ServeBare),
    ForwardBare(ForwardBare),
}

#[derive(FromArgs)]
#[argh(subcommand, name = "serve-bare")]
/// (inner) be the bare responder of `limit` until killed or until the starting process ends
struct ServeBare {
    /// port on 127.0.0.1; 0 takes a free one, and the first line on stdout tells which
    #[argh(option, default = "0")]
    port: u16,
}

#[derive(FromArgs)]
#[argh(subcommand, name = "forward-bare")]
/// (inner) be the bare forwarder of `limit` until killed or until the starting process ends
struct ForwardBare {
    /// port on 127.0.0.1; 0 takes a free one, and the first line on stdout tells which
    #[argh(option, default = "0")]
    port: u16,
    /// where to forward to, for example 127.0.0.1:8080
    #[argh(option)]
    to: SocketAddr,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let outcome = match arguments.command {
        Command::Decide(arguments) => decide::run(&arguments),
        Command::Breaker(arguments) => breaker::run(&arguments),
        Command::Crash(arguments) => crash::run(&arguments),
        Command::Health(arguments) => health::run(&arguments),
        Command::Discover(arguments) => discover::run(&arguments),
        Command::Request(arguments) => request::run(&arguments),
        Command::Limit(arguments) => limit::run(&arguments),
        Command::Memory(arguments) => memory::run(&arguments),
        Command::Model(arguments) => model::run(&arguments),
        Command::Overload(arguments) => overload::run(&arguments),
        Command::Queue(arguments) => queue::run(&arguments),
        Command::Restart(arguments) => restart::run(&arguments),
        Command::Route(arguments) => route::run(&arguments),
        Command::Scaler(arguments) => scaler::run(&arguments),
        Command::Frozen(arguments) => frozen::run(&arguments),
        Command::Spike(arguments) => spike::run(&arguments),
        Command::HoldMemory(arguments) => spike::hold(&arguments),
        Command::ServeBare(ServeBare { port }) => {
            listen(port).and_then(|listener| responder::serve(listener).map_err(|error| error.to_string()))
        }
        Command::ForwardBare(ForwardBare { port, to }) => {
            listen(port).and_then(|listener| forwarder::serve(listener, to).map_err(|error| error.to_string()))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("demi-bench: {fault}");
            ExitCode::FAILURE
        }
    }
}

/// Binds, tells the address, and makes sure that this process does not outlive the one that started it.
fn listen(port: u16) -> Outcome<TcpListener> {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    let listener = TcpListener::bind(("127.0.0.1", port)).map_err(|error| format!("port {port}: {error}"))?;
    println!("{}", listener.local_addr().map_err(|error| error.to_string())?);
    Ok(listener)
}
