//! Starting and ending what is measured: Demi with a configuration of its own, and the bare servers.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{kill_process, Pid, Signal};
use serde::Deserialize;

use crate::{load, Outcome};

/// How long Demi may take to be ready, and how long to end.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one question of `Client` may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause between two looks at something that is timed; with the kernel's timer slack under 0.2 ms.
pub const LOOK: Duration = Duration::from_micros(50);

/// The executable: the one given, or `demi` beside this one.
pub fn executable(given: Option<&Path>) -> Outcome<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("demi"),
    };
    match path.canonicalize() {
        Ok(path) if path.is_file() => Ok(path),
        _ => Err(format!("{} is not there; build it (cargo build --release) or give --demi PATH", path.display())),
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> Outcome<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| format!("no free port: {error}"))?;
    Ok(listener.local_addr().map_err(|error| error.to_string())?.port())
}

/// A platform and its route in a measuring configuration.
pub enum Host {
    Inline,
    Threads(u16),
    Process(u16),
    Http(SocketAddr),
}

impl Host {
    /// The name of the platform; its path is this after a slash.
    pub fn name(&self) -> &'static str {
        match self {
            Host::Inline => "inline",
            Host::Threads(_) => "threads",
            Host::Process(_) => "process",
            Host::Http(_) => "http",
        }
    }
}

/// A configuration with these platforms; `extra` are further fields, each ending in a comma.
pub fn config(executable: &Path, port: u16, hosts: &[Host], extra: &str) -> String {
    let mut platforms = String::new();
    let mut routes = String::new();
    for host in hosts {
        let name = host.name();
        let (kind, rest) = match host {
            Host::Inline => ("Inline".to_owned(), "adapter: \"echo\"".to_owned()),
            Host::Threads(count) => (format!("Threads({count})"), "adapter: \"echo\"".to_owned()),
            Host::Process(count) => {
                let program = executable.to_string_lossy();
                (format!("Process({count})"), format!("command: [{program:?}, \"plugin\", \"serve\", \"echo\"]"))
            }
            Host::Http(upstream) => ("Http".to_owned(), format!("upstreams: [\"{upstream}\"]")),
        };
        platforms.push_str(&format!("    (name: \"{name}\", host: {kind}, {rest}),\n"));
        let safe = if let Host::Process(_) = host { ", retries: 2, idempotent: true" } else { "" };
        routes.push_str(&format!("    (path: \"/{name}\", to: \"{name}\"{safe}),\n"));
    }
    format!(
        "(\n  http: (listen: \"127.0.0.1:{port}\"),\n  store: (path: \"data\"),\n  {extra}\n  \
         platforms: [\n{platforms}  ],\n  routes: [\n{routes}  ],\n)\n"
    )
}

/// A running Demi in a directory of its own; dropping it ends it and removes the directory.
pub struct Demi {
    child: Child,
    /// Where it serves.
    pub address: SocketAddr,
    directory: PathBuf,
    ended: bool,
}

impl Demi {
    /// Writes the configuration and starts Demi; returns when `/readyz` answers 200, with the time that took since
    /// the moment before the start.
    pub fn start(executable: &Path, address: SocketAddr, config: &str) -> Outcome<(Demi, Duration)> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("demi-bench-{}-{count}", std::process::id()));
        let prepare = || -> io::Result<File> {
            fs::create_dir(&directory)?;
            fs::write(directory.join("config.ron"), config)?;
            File::create(directory.join("log"))
        };
        let log = prepare().map_err(|error| format!("{}: {error}", directory.display()))?;
        Demi::launch(executable, address, directory, log)
    }

    /// Starts Demi again in the same directory, once it has ended; the time until it is ready.
    pub fn start_again(&mut self, executable: &Path) -> Outcome<Duration> {
        let fault = |error: io::Error| format!("{}: {error}", self.directory.display());
        let log = File::options().append(true).open(self.directory.join("log")).map_err(fault)?;
        // The directory goes with the one that is started.
        let (again, time) = Demi::launch(executable, self.address, self.directory.clone(), log)?;
        let mut before = std::mem::replace(self, again);
        before.directory = PathBuf::new();
        Ok(time)
    }

    fn launch(executable: &Path, address: SocketAddr, directory: PathBuf, log: File) -> Outcome<(Demi, Duration)> {
        let begin = Instant::now();
        let child = Command::new(executable)
            .arg("run")
            .arg("--config")
            .arg(directory.join("config.ron"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                let _ = fs::remove_dir_all(&directory);
                return Err(format!("{} cannot be started: {error}", executable.display()));
            }
        };
        let mut demi = Demi { child, address, directory, ended: false };
        let mut client = Client::new(address);
        loop {
            if matches!(client.get("/readyz"), Ok((200, _))) {
                return Ok((demi, begin.elapsed()));
            }
            demi.alive()?;
            if begin.elapsed() > READY_TIMEOUT {
                return Err(format!("demi is not ready after {READY_TIMEOUT:?}; {}", demi.last_words()));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with Demi's last lines if it has ended.
    pub fn alive(&mut self) -> Outcome<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                self.ended = true;
                Err(format!("demi ended ({status}); {}", self.last_words()))
            }
            Err(error) => Err(format!("demi cannot be waited for: {error}")),
        }
    }

    /// Kills Demi, as a power cut would, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.ended = true;
    }

    /// Asks Demi to end, and waits; the time that took.
    pub fn stop(mut self) -> Outcome<Duration> {
        let begin = Instant::now();
        match self.end() {
            true => Ok(begin.elapsed()),
            false => Err(format!("demi did not end in {STOP_TIMEOUT:?} after SIGTERM; {}", self.last_words())),
        }
    }

    /// SIGTERM, then SIGKILL after `STOP_TIMEOUT`; whether the first was enough.
    fn end(&mut self) -> bool {
        if self.ended {
            return true;
        }
        self.ended = true;
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        false
    }

    fn last_words(&self) -> String {
        let log = fs::read(self.directory.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(12)..];
        match last.is_empty() {
            true => "it logged nothing".to_owned(),
            false => format!("its last lines:\n  {}", last.join("\n  ")),
        }
    }
}

impl Drop for Demi {
    fn drop(&mut self) {
        self.end();
        if !self.directory.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// One of the bare servers of `benches/limit/` as a child; dropping it ends it.
pub struct Bare {
    child: Child,
    /// Where it serves.
    pub address: SocketAddr,
}

impl Bare {
    /// The responder.
    pub fn responder() -> Outcome<Bare> {
        Bare::start(&["serve-bare"])
    }

    /// The forwarder before `to`.
    pub fn forwarder(to: SocketAddr) -> Outcome<Bare> {
        Bare::start(&["forward-bare", "--to", &to.to_string()])
    }

    fn start(arguments: &[&str]) -> Outcome<Bare> {
        let start = || -> io::Result<Child> {
            let own = std::env::current_exe()?;
            Command::new(own).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
        };
        let child = start().map_err(|error| format!("{} cannot be started: {error}", arguments[0]))?;
        let mut bare = Bare { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let mut line = String::new();
        if let Some(stdout) = bare.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
        }
        bare.address = line.trim().parse().map_err(|_| format!("{} told no address: {line:?}", arguments[0]))?;
        Ok(bare)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A blocking keep-alive client for single questions.
pub struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    input: Vec<u8>,
}

impl Client {
    /// Connects at the first question.
    pub fn new(address: SocketAddr) -> Client {
        Client { address, stream: None, input: Vec::new() }
    }

    /// Status and body (raw, if chunked) of a GET; the next question connects anew after an error.
    pub fn get(&mut self, path: &str) -> io::Result<(u16, Vec<u8>)> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect_timeout(&self.address, ANSWER_TIMEOUT)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
                stream
            }
        };
        stream.write_all(&load::request(path, 0))?;
        self.input.clear();
        let mut chunk = [0; 16 * 1024];
        loop {
            let count = stream.read(&mut chunk)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.input.extend_from_slice(&chunk[..count]);
            if let Some(answer) = load::parse(&self.input).map_err(io::Error::other)? {
                if !answer.close {
                    self.stream = Some(stream);
                }
                return Ok((answer.status, self.input[answer.body].to_vec()));
            }
        }
    }

    /// An error unless a GET answers 200.
    pub fn expect_200(&mut self, path: &str) -> Outcome<()> {
        match self.get(path) {
            Ok((200, _)) => Ok(()),
            Ok((status, body)) => Err(format!("GET {path} answered {status}: {}", String::from_utf8_lossy(&body))),
            Err(error) => Err(format!("GET {path}: {error}")),
        }
    }

    /// The instances of a platform by `GET /v1/platforms`.
    pub fn instances(&mut self, platform: &str) -> Outcome<Vec<Instance>> {
        let (status, body) = self.get("/v1/platforms").map_err(|error| format!("GET /v1/platforms: {error}"))?;
        if status != 200 {
            return Err(format!("GET /v1/platforms answered {status}"));
        }
        let platforms: Vec<Platform> =
            serde_json::from_slice(&body).map_err(|error| format!("GET /v1/platforms: {error}"))?;
        let found = platforms.into_iter().find(|candidate| candidate.name == platform);
        found.map(|found| found.instances).ok_or_else(|| format!("GET /v1/platforms shows no {platform:?}"))
    }
}

#[derive(Deserialize)]
struct Platform {
    name: String,
    instances: Vec<Instance>,
}

/// What the API tells of an instance.
#[derive(Clone, Debug, Deserialize)]
pub struct Instance {
    /// Its index within the platform.
    pub instance: u32,
    /// Its state in lower case.
    pub state: String,
    /// Its process, if it has one now.
    #[serde(default)]
    pub pid: Option<u32>,
}

impl Instance {
    /// The process, if the instance is ready.
    pub fn ready_pid(&self) -> Option<u32> {
        self.pid.filter(|_| self.state.eq_ignore_ascii_case("ready"))
    }
}

/// Sends a signal to a child of Demi, by its pid.
pub fn signal(pid: u32, signal: Signal) -> Outcome<()> {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| format!("{pid} is not a pid"))?;
    kill_process(target, signal).map_err(|error| format!("process {pid} takes no signal: {error}"))
}
