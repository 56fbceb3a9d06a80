//! A Demi of its own for each test: the real binary, a real directory, a real port. Ended, with all its children, when
//! the test ends, however it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{bind, getsockname, listen, socket_with, AddressFamily, SocketFlags, SocketType};

/// How long a test waits for anything before it gives up: long enough for a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The hosts that tests name, as a field of `http`.
pub const HOSTS: &str = r#"hosts: ["test", "x", "named"]"#;

/// Waits until a fact holds, looking again every millisecond.
pub fn until<T>(what: &str, mut fact: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = fact() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Sections of a configuration in which nobody is called degraded because the machine that tests is slow.
pub fn with_patience(sections: &str) -> String {
    let patience = "health: (degraded_ms: 3600000, ";
    match sections.trim_start().strip_prefix("health: (") {
        Some(rest) => format!("{patience}{rest}"),
        None if sections.contains("health: (") => sections.to_owned(),
        None => format!("{patience}), {sections}"),
    }
}

/// A directory that is removed with the test.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("demi-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary directory can be written");
        Directory(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("the temporary directory can be written");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Puts an executable file in place at once, as an installation would. Another process writes it: whoever is being started by
/// another test at that moment holds what this one has open, and what is open to be written cannot be executed.
pub fn install(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    let mut command = Command::new("sh");
    command.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(&fresh).stdin(Stdio::piped());
    let mut writer = command.spawn().expect("every system has a shell");
    writer.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads");
    assert!(writer.wait().expect("it is our child").success(), "the directory can be written");
    std::fs::rename(&fresh, path).expect("it is the same directory");
}

/// An address at which nobody listens but whom the test has listen, and which nobody else is given as long as this lives: by itself an
/// address is given to whoever asks next once it is free.
pub struct Nowhere {
    _socket: OwnedFd,
    pub address: SocketAddr,
}

impl Nowhere {
    pub fn new() -> Nowhere {
        let (socket, address) = bound("127.0.0.1:0".parse().expect("it is an address"));
        Nowhere { _socket: socket, address }
    }

    /// Has somebody listen there until that is dropped, with room for so many connections that are not accepted yet.
    pub fn listen(&self, backlog: i32) -> TcpListener {
        let (socket, _) = bound(self.address);
        listen(&socket, backlog).expect("it is bound");
        TcpListener::from(socket)
    }
}

/// A socket that does not listen; several may be bound to one address.
fn bound(address: SocketAddr) -> (OwnedFd, SocketAddr) {
    let kept = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, kept, None).expect("there are descriptors");
    set_socket_reuseaddr(&socket, true).expect("a socket option can be set");
    bind(&socket, &address).expect("it is free, or ours");
    let address = getsockname(&socket).expect("it is bound").try_into().expect("it is an address of the internet");
    (socket, address)
}

/// A running Demi.
pub struct Demi {
    pub process: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
    /// Reads the log to its end.
    reader: std::thread::JoinHandle<()>,
    /// Dropped last, when the process is gone.
    pub directory: Arc<Directory>,
}

/// The command that runs the product binary.
pub fn demi_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demi"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The program with which tests try what a bad plugin does; its modes are listed in its source.
pub fn misbehaving() -> String {
    let target = Path::new(env!("CARGO_BIN_EXE_demi")).parent().expect("a file is in a directory").to_owned();
    target.join("examples/misbehaving").display().to_string()
}

impl Demi {
    /// Starts Demi with these sections of a configuration (all but `http`, which gets a free port).
    pub fn start(sections: &str) -> Demi {
        Demi::start_with_http("", sections)
    }

    /// As `start`, with further fields for `http`.
    pub fn start_with_http(http: &str, sections: &str) -> Demi {
        Demi::start_in(Arc::new(Directory::new()), http, sections)
    }

    /// As `start`, in a directory that may hold a store already.
    pub fn start_in(directory: Arc<Directory>, http: &str, sections: &str) -> Demi {
        // Whatever RAM the machine that tests has left.
        let scaler = if sections.contains("scaler:") { "" } else { "scaler: (enabled: false)," };
        let sections = with_patience(sections);
        let text =
            format!("(http: (listen: \"127.0.0.1:0\", {HOSTS}, {http}), store: (path: \"data\"), {scaler} {sections})");
        let config = directory.write("config.ron", &text);
        Demi::start_from(directory, &config)
    }

    /// Starts Demi with a configuration file of its own.
    pub fn start_from(directory: Arc<Directory>, config: &Path) -> Demi {
        Demi::start_command(demi_command(), directory, config)
    }

    /// As `start_from`, by a command that runs the binary with what is added to it.
    pub fn start_command(mut command: Command, directory: Arc<Directory>, config: &Path) -> Demi {
        let mut process = command
            .args(["--log-level", "debug", "--config"])
            .arg(config)
            .spawn()
            .expect("the binary was built for this test");
        let log = Arc::new(Mutex::new(String::new()));
        let mut lines = BufReader::new(process.stderr.take().expect("stderr is piped"));
        let copy = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            while matches!(lines.read_line(&mut line), Ok(1..)) {
                copy.lock().expect("no test panics while it holds the log").push_str(&line);
                line.clear();
            }
        });
        let address = until("Demi listens", || {
            let log = log.lock().expect("no test panics while it holds the log");
            if let Ok(Some(status)) = process.try_wait() {
                panic!("Demi ended with {status} before it listened:\n{log}");
            }
            log.split("listening on http://").nth(1)?.lines().next()?.trim().parse().ok()
        });
        Demi { process, address, log, reader, directory }
    }

    /// What of its log has come so far: it is written and read by threads of their own, so that a line may come later than
    /// the answer to a request that came after it.
    pub fn log(&self) -> String {
        self.log.lock().expect("no test panics while it holds the log").clone()
    }

    /// Waits until its log has this text.
    pub fn wait_for_log(&self, text: &str) {
        until(&format!("the log has {text:?}"), || self.log().contains(text).then_some(()));
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A fresh connection with a read timeout.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("Demi accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream
    }

    /// Sends bytes on a fresh connection and reads until Demi closes it.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // It may be answered, and the connection closed, before all of it is sent.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        // A reset after the answer is as good as an end.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, "")
    }

    pub fn post(&self, path: &str, body: &str) -> Response {
        self.request("POST", path, body)
    }

    pub fn request(&self, method: &str, path: &str, body: &str) -> Response {
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        Response::parse(&self.raw(text.as_bytes()))
    }

    pub fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.get(path).body).expect("the page is JSON")
    }

    pub fn wait_ready(&self) {
        until("Demi is ready", || (self.get("/readyz").status == 200).then_some(()));
    }

    /// Waits until all instances of all platforms are ready: a platform is as soon as one of them is.
    pub fn wait_all_ready(&self) {
        until("all instances are ready", || {
            let pages = self.json("/v1/platforms");
            let instances =
                pages.as_array()?.iter().flat_map(|page| page["instances"].as_array().into_iter().flatten());
            instances.into_iter().all(|instance| instance["state"] == "ready").then_some(())
        });
    }

    /// One instance's page.
    pub fn instance(&self, platform: &str, index: usize) -> serde_json::Value {
        self.json(&format!("/v1/platforms/{platform}"))["instances"][index].clone()
    }

    /// The process numbers of a platform's children.
    pub fn pids(&self, platform: &str) -> Vec<u32> {
        let page = self.json(&format!("/v1/platforms/{platform}"));
        let instances = page["instances"].as_array().expect("a platform has instances");
        instances.iter().filter_map(|instance| instance["pid"].as_u64()).map(|pid| pid as u32).collect()
    }

    /// The most memory that it has had so far.
    pub fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel keeps count");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("it is a number") * 1024
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        kill(self.pid(), signal);
    }

    /// Waits for its end and that of its log.
    pub fn wait(&mut self) -> ExitStatus {
        let process = &mut self.process;
        let status = until("Demi ends", || process.try_wait().expect("it is our child"));
        until("its log ends", || self.reader.is_finished().then_some(()));
        status
    }
}

impl Drop for Demi {
    fn drop(&mut self) {
        // Its children die with it: the kernel sees to that, and a test checks it.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("---- the log of Demi ----\n{}", self.log());
        }
    }
}

/// Asks any Demi, in whichever process it runs.
pub fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Response {
    let mut stream = TcpStream::connect(address).expect("Demi accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    // It may be answered, and the connection closed, before all of it is sent.
    let _ = stream.write_all((head + body).as_bytes());
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut answer);
    Response::parse(&String::from_utf8_lossy(&answer))
}

/// Sends a signal to any process.
pub fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process number is not zero");
    rustix::process::kill_process(pid, signal).expect("the process is there and ours");
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    /// Takes the first answer of a connection apart; with `Connection: close` the rest is its body. Status 0 if there
    /// was no answer.
    pub fn parse(text: &str) -> Response {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Response { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
