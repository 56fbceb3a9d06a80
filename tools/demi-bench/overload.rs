//! `demi-bench overload`: one platform is asked for ten times what it can do, and another goes on as if nothing were.
//!
//! The slow one is a service that answers each request after a while, a few at once; its platform's queue is short. Who finds
//! no place is refused with 503 and Retry-After at once. The other is a child process that is asked all the while at an even
//! rate, first alone and then beside the overload; both loads are open, so that whatever stalls is charged for it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use argh::FromArgs;
use serde::Serialize;

use crate::demi::{config, executable, free_port, Demi, Host};
use crate::load::{self, Load, Pace, Tally};
use crate::report::{aim, number, print, progress, Latency, Machine, Run, Table};
use crate::request::WARM_UP;
use crate::Outcome;

/// The service answers after this, and so many at once.
const TAKES: Duration = Duration::from_millis(20);
const AT_ONCE: u32 = 4;
const QUEUED: u32 = 8;
/// Of what the service can do.
const TIMES: u32 = 10;
/// 99 of 100 refusals are told within this.
const REFUSED_US_AIM: f64 = 1_000.0;

#[derive(FromArgs)]
#[argh(subcommand, name = "overload")]
/// how soon is refused what is too much for one platform, and what that costs another
pub struct Arguments {
    /// seconds of each of the two runs (default 10)
    #[argh(option, default = "10")]
    seconds: u64,
    /// requests per second to the platform that is well (default 200)
    #[argh(option, default = "200")]
    rate: u32,
    /// keep-alive connections of each load (default 64)
    #[argh(option, default = "64")]
    connections: usize,
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
    overload_rate: u32,
    refused_us_aim: f64,
    alone: Run,
    beside: Run,
    overloaded: Run,
    refusals_us: Latency,
}

/// Runs `demi-bench overload`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let executable = executable(arguments.demi.as_deref())?;
    let machine = Machine::now();
    let port = free_port()?;
    let service = serve_slowly().map_err(|error| format!("the slow service cannot listen: {error}"))?;
    let bounds = format!("in_flight_max: {AT_ONCE}, queue_max: {QUEUED}, upstreams");
    let config =
        config(&executable, port, &[Host::Process(1), Host::Http(service)], "").replacen("upstreams", &bounds, 1);
    let (mut demi, _) = Demi::start(&executable, SocketAddr::from(([127, 0, 0, 1], port)), &config)?;
    let address = demi.address;
    assert_refused_with_a_time(address)?;
    let span = Duration::from_secs(arguments.seconds);
    let mut healthy = Load::open(address, load::request("/process", 0), arguments.connections)?;
    healthy.run(Pace::Open(arguments.rate), WARM_UP, &mut || demi.alive())?;
    progress("one platform alone");
    let alone = healthy.run(Pace::Open(arguments.rate), span, &mut || demi.alive())?;
    progress("beside one that is overloaded");
    let connections = arguments.connections;
    let too_much = thread::spawn(move || -> Outcome<Tally> {
        let mut load = Load::open(address, load::request("/http", 0), connections)?;
        load.run(Pace::Open(overload_rate()), span, &mut || Ok(()))
    });
    let beside = healthy.run(Pace::Open(arguments.rate), span, &mut || demi.alive());
    let overloaded = too_much.join().unwrap_or_else(|_| Err("the overload panicked".to_owned()))?;
    let beside = beside?;
    demi.stop()?;
    let document = Document {
        rate: arguments.rate,
        overload_rate: overload_rate(),
        refused_us_aim: REFUSED_US_AIM,
        alone: Run::from(&alone),
        beside: Run::from(&beside),
        overloaded: Run::from(&overloaded),
        refusals_us: Latency::of(&overloaded.latency_of_refusals),
    };
    let mut table = Table::new(&["", "requests", "p50 us", "p99 us", "p99.9 us", "aim p99", "errors"]);
    let mut row = |name: &str, count: u64, latency: &Latency, aim: String, errors: String| {
        let [p50, p99, p99_9] = [latency.p50, latency.p99, latency.p99_9].map(number);
        table.row(&[name.to_owned(), count.to_string(), p50, p99, p99_9, aim, errors]);
    };
    let (alone, beside, refusals) = (&document.alone, &document.beside, &document.refusals_us);
    row("a platform alone", alone.answered, &alone.latency_us, String::new(), alone.errors_text());
    row("the same, beside", beside.answered, &beside.latency_us, String::new(), beside.errors_text());
    let told = aim(refusals.p99, REFUSED_US_AIM, "us");
    row("refusals of the overloaded", document.overloaded.failed, refusals, told, document.overloaded.errors_text());
    let title = format!(
        "{} requests/s to a platform that takes {}, beside {} to another",
        document.overload_rate,
        document.overload_rate / TIMES,
        document.rate
    );
    print(arguments.json, &machine, &document, &[(&title, table)])
}

fn overload_rate() -> u32 {
    TIMES * AT_ONCE * 1000 / TAKES.as_millis() as u32
}

/// Fills the platform until it refuses, and looks at what it says.
fn assert_refused_with_a_time(address: SocketAddr) -> Outcome<()> {
    let ask = move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /http HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let askers: Vec<_> = (0..2 * (AT_ONCE + QUEUED)).map(|_| thread::spawn(ask)).collect();
    let answers = askers.into_iter().map(|asker| asker.join().map_err(|_| "an asker panicked".to_owned()));
    let answers = answers.collect::<Outcome<Vec<_>>>()?;
    let refusal = answers.into_iter().flatten().find(|answer| answer.starts_with("HTTP/1.1 503"));
    match refusal {
        Some(refusal) if refusal.contains("\r\nRetry-After: ") => Ok(()),
        Some(refusal) => Err(format!("it refused without Retry-After: {refusal}")),
        None => Err("it refused nothing".to_owned()),
    }
}

/// A service that answers every request after a while, however many ask.
fn serve_slowly() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                // Demi sends a request in one piece, and the next when this is answered.
                let mut request = [0; 4096];
                while matches!(stream.read(&mut request), Ok(1..)) {
                    thread::sleep(TAKES);
                    if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}
