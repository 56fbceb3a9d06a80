//! `demi-bench crash`: whether what Demi acknowledged survives when it is killed.
//!
//! In each round clients post messages as fast as they are acknowledged, a recipient in this process writes down what is
//! delivered, and Demi is killed at a random instant and started again in the same directory. At the end every message
//! that was answered with 202 must have come, and one may have come twice only with a kill in between.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use argh::FromArgs;
use serde::Serialize;

use crate::demi::{config, executable, free_port, Client, Demi, Host};
use crate::report::{print, progress, Machine, Spread, Table};
use crate::{load, Outcome};

/// Demi is killed after a time between these from when it is ready.
const LIFE_MIN: Duration = Duration::from_millis(10);
const LIFE_MAX: Duration = Duration::from_millis(250);
/// A platform that Demi finds anew is tried at once, and what failed is tried again soon.
const QUICK: &str = "posts: (base_ms: 10, max_ms: 100, attempts_max: 1000),";
/// How long all that was acknowledged may take to be delivered at the end.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two looks at how many wait.
const LOOK: Duration = Duration::from_millis(20);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(FromArgs)]
#[argh(subcommand, name = "crash")]
/// kills Demi again and again under a load of messages, and counts those that were acknowledged and lost
pub struct Arguments {
    /// kills (default 20)
    #[argh(option, default = "20")]
    rounds: usize,
    /// clients that post (default 8)
    #[argh(option, default = "8")]
    clients: usize,
    /// the demi executable (default: the one beside this one)
    #[argh(option)]
    demi: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    rounds: usize,
    clients: usize,
    acknowledged: usize,
    /// Answered with 202 and never delivered: must be 0.
    lost: usize,
    /// Delivered though the client got no answer, because Demi was killed before it.
    unacknowledged: usize,
    /// Delivered more than once with a kill in between.
    doubled: usize,
    /// Delivered more than once without one: must be 0.
    doubled_without_kill: usize,
    restart_to_ready_ms: Spread,
}

/// What the recipient knows.
#[derive(Default)]
struct Recipient {
    /// In which rounds each message came.
    got: Mutex<BTreeMap<String, Vec<usize>>>,
    /// The present round.
    round: AtomicUsize,
    /// Connections that stand.
    connections: AtomicUsize,
}

/// Runs `demi-bench crash`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    if arguments.rounds == 0 || arguments.clients == 0 {
        return Err("--rounds and --clients must be at least 1".to_owned());
    }
    let executable = executable(arguments.demi.as_deref())?;
    let machine = Machine::now();
    let recipient = Arc::new(Recipient::default());
    let recipient_address = receive(&recipient)?;
    let port = free_port()?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let config = config(&executable, port, &[Host::Http(recipient_address)], QUICK);
    let (mut demi, _) = Demi::start(&executable, address, &config)?;
    let acknowledged = Mutex::new(Vec::new());
    let mut restarts = Vec::new();
    for number in 0..arguments.rounds {
        let is_over = AtomicBool::new(false);
        let restarted = std::thread::scope(|scope| {
            for client in 0..arguments.clients {
                let (is_over, acknowledged) = (&is_over, &acknowledged);
                scope.spawn(move || post_until(address, &format!("{number}-{client}"), is_over, acknowledged));
            }
            std::thread::sleep(life());
            demi.kill();
            is_over.store(true, Ordering::Relaxed);
            recipient.end_round(number + 1)?;
            demi.start_again(&executable)
        });
        restarts.push(restarted?.as_secs_f64() * 1e3);
        if (number + 1) % 10 == 0 {
            progress(&format!("{} kills", number + 1));
        }
    }
    wait_until_delivered(&mut demi)?;
    demi.stop()?;
    let acknowledged = acknowledged.into_inner().map_err(|_| "a client panicked")?;
    let got = recipient.got.lock().map_err(|_| "the recipient panicked")?;
    let is_doubled_in_a_round = |rounds: &&Vec<usize>| rounds.windows(2).any(|pair| pair[0] == pair[1]);
    let document = Document {
        rounds: arguments.rounds,
        clients: arguments.clients,
        acknowledged: acknowledged.len(),
        lost: acknowledged.iter().filter(|message| !got.contains_key(*message)).count(),
        unacknowledged: (got.len() + acknowledged.iter().filter(|message| !got.contains_key(*message)).count())
            .saturating_sub(acknowledged.len()),
        doubled: got.values().filter(|rounds| rounds.len() > 1).count(),
        doubled_without_kill: got.values().filter(is_doubled_in_a_round).count(),
        restart_to_ready_ms: Spread::of(&restarts),
    };
    let mut table = Table::new(&["", "count"]);
    for (name, count) in [
        ("kills", document.rounds),
        ("acknowledged", document.acknowledged),
        ("acknowledged and lost", document.lost),
        ("delivered and not acknowledged (killed before the answer)", document.unacknowledged),
        ("delivered twice, with a kill between", document.doubled),
        ("delivered twice, without", document.doubled_without_kill),
    ] {
        table.row(&[name.to_owned(), count.to_string()]);
    }
    let [median, least, most, _] = document.restart_to_ready_ms.cells();
    let title = format!("Messages; a start after a kill took {median} ms to ready ({least} to {most})");
    print(arguments.json, &machine, &document, &[(&title, table)])?;
    match (document.lost, document.doubled_without_kill) {
        (0, 0) => Ok(()),
        (lost, doubled) => {
            Err(format!("{lost} acknowledged messages are lost and {doubled} were doubled without a kill"))
        }
    }
}

fn life() -> Duration {
    let spread = (LIFE_MAX - LIFE_MIN).as_micros() as u64;
    // Each has keys of its own, from the system's randomness.
    LIFE_MIN + Duration::from_micros(RandomState::new().hash_one(0) % spread)
}

/// Posts messages that differ until Demi is gone; writes down those that it acknowledged.
fn post_until(address: SocketAddr, name: &str, is_over: &AtomicBool, acknowledged: &Mutex<Vec<String>>) {
    let mut input = Vec::new();
    for number in 0.. {
        let Ok(mut stream) = connect(address) else { return };
        for number in (number * 1000)..(number + 1) * 1000 {
            if is_over.load(Ordering::Relaxed) {
                return;
            }
            let message = format!("{name}-{number}");
            match post(&mut stream, &message, &mut input) {
                Ok(202) => acknowledged.lock().expect("no client panics with it").push(message),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

fn post(stream: &mut TcpStream, message: &str, input: &mut Vec<u8>) -> io::Result<u16> {
    let body = format!(r#"{{"to":"http","content":"{message}"}}"#);
    let length = body.len();
    let head = format!("POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + &body).as_bytes())?;
    input.clear();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        input.extend_from_slice(&chunk[..count]);
        if let Some(answer) = load::parse(input).map_err(io::Error::other)? {
            return Ok(answer.status);
        }
    }
}

/// Starts the recipient, which lives as long as this process; returns where it listens.
fn receive(recipient: &Arc<Recipient>) -> Outcome<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| format!("no free port: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let recipient = Arc::clone(recipient);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            recipient.connections.fetch_add(1, Ordering::SeqCst);
            let recipient = Arc::clone(&recipient);
            std::thread::spawn(move || {
                // A connection that ends with Demi is what this is about.
                let _ = recipient.take_deliveries(&stream);
                recipient.connections.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    Ok(address)
}

impl Recipient {
    /// What a Demi that was killed had sent still belongs to its round.
    fn end_round(&self, next: usize) -> Outcome<()> {
        let begin = Instant::now();
        // A connection that was made just before the kill may not have been accepted yet.
        loop {
            std::thread::sleep(LOOK);
            if self.connections.load(Ordering::SeqCst) == 0 {
                break;
            }
            if begin.elapsed() > ANSWER_TIMEOUT {
                return Err("connections of a Demi that was killed do not end".to_owned());
            }
        }
        self.round.store(next, Ordering::SeqCst);
        Ok(())
    }

    fn take_deliveries(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (mut reader, mut writer) = (BufReader::new(stream), stream);
        let mut line = String::new();
        loop {
            let mut length = 0;
            loop {
                line.clear();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                let header = line.trim_end().split_once(':');
                if let Some((_, value)) = header.filter(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
                    length = value.trim().parse().map_err(io::Error::other)?;
                }
                if line.trim_end().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let message = String::from_utf8(body).map_err(io::Error::other)?;
            let round = self.round.load(Ordering::SeqCst);
            self.got.lock().expect("no recipient panics with it").entry(message).or_default().push(round);
            writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        }
    }
}

fn wait_until_delivered(demi: &mut Demi) -> Outcome<()> {
    let mut client = Client::new(demi.address);
    let begin = Instant::now();
    loop {
        let (_, page) = client.get("/metrics").map_err(|error| format!("GET /metrics: {error}"))?;
        if String::from_utf8_lossy(&page).contains("\ndemi_posts_queued 0\n") {
            return Ok(());
        }
        demi.alive()?;
        if begin.elapsed() > DELIVERY_TIMEOUT {
            return Err(format!("messages still wait {DELIVERY_TIMEOUT:?} after the last start"));
        }
        std::thread::sleep(LOOK);
    }
}
