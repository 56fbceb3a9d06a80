//! A run of the plugin that is checked: its process, and what is said to it and by it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use demi_platform::codec;
use rustix::process::{
    kill_process_group, pidfd_open, pidfd_send_signal, waitpid, Pid, PidfdFlags, Signal, WaitOptions,
};
use serde_json::{json, Value};

use crate::launch;

/// Longest line that is taken, as Demi takes them with its default of `body_bytes_max`.
const LINE_BYTES_MAX: usize = codec::line_bytes_max(1 << 20);
/// Lines that wait to be looked at, and lines that wait to be written; a check has fewer under way.
const LINES_MAX: usize = 256;
/// Last lines of stderr that are kept.
const LAST_WORDS_MAX: usize = 10;
/// Longest of those, bytes.
const LAST_WORD_BYTES_MAX: u64 = 1024;
/// Between two looks whether it has ended, while nothing is heard.
const LOOK: Duration = Duration::from_millis(5);
/// After KILL a process is gone, unless it hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(1);
/// So often are processes looked for that must be killed: one may have started another in between.
const KILL_ROUNDS: usize = 20;
/// Forefathers of a process that are looked at: a chain that changes meanwhile must not be followed for ever.
const ANCESTORS_MAX: usize = 1024;

/// How to start it.
pub(super) struct Recipe {
    /// This executable, which becomes the plugin.
    pub(super) demi: PathBuf,
    pub(super) command: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) folder: PathBuf,
    /// Where each run gets a temporary directory of its own.
    pub(super) temporary: PathBuf,
    /// `platform/index`.
    pub(super) title: String,
}

/// The answer to a call.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Result(Value),
    Error { code: i64, message: String },
}

/// What came of waiting for something.
#[derive(Debug)]
pub(super) enum Seen {
    Answer(Answer),
    Silence(Duration),
    End(ExitStatus),
}

/// What it wrote on stdout that nobody can use.
#[derive(Default)]
pub(super) struct Strays {
    pub(super) count: usize,
    pub(super) first: String,
}

impl Strays {
    fn add(&mut self, what: &str, line: &[u8]) {
        self.count += 1;
        if self.count == 1 {
            let shown: String = String::from_utf8_lossy(line).chars().take(100).collect();
            self.first = format!("{what}: {shown}");
        }
    }
}

enum Said {
    Line(Vec<u8>),
    TooLong(Vec<u8>),
}

/// A run, in a session of its own. Dropped, it is killed with all that is in its session.
pub(super) struct Subject {
    child: Child,
    input: Option<SyncSender<Vec<u8>>>,
    output: Receiver<Said>,
    last_words: Arc<Mutex<VecDeque<String>>>,
    answers: BTreeMap<u64, Vec<Answer>>,
    last_id: u64,
    status: Option<ExitStatus>,
    pub(super) strays: Strays,
}

impl Subject {
    /// Starts it, in the environment that Demi starts it in.
    ///
    /// # Errors
    /// If the system has no process, pipe, directory or thread to give. That its program cannot be executed shows as its
    /// end.
    pub(super) fn start(recipe: &Recipe) -> io::Result<Subject> {
        let temporary = fresh_directory(&recipe.temporary)?;
        let mut child = Command::new(&recipe.demi)
            .arg(launch::WORD)
            .args(&recipe.command)
            .env_clear()
            .env("TMPDIR", temporary)
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(&recipe.environment)
            .env("DEMI_INSTANCE", &recipe.title)
            .current_dir(&recipe.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = child.stderr.take().expect("it is piped");
        let (input, to_write) = sync_channel(LINES_MAX);
        let (said, output) = sync_channel(LINES_MAX);
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&last_words);
        let subject = Subject {
            child,
            input: Some(input),
            output,
            last_words,
            answers: BTreeMap::new(),
            last_id: 0,
            status: None,
            strays: Strays::default(),
        };
        // They end with its pipes. Whoever does not read or write must not hold up the check.
        Builder::new().name("stdin".to_owned()).spawn(move || write_lines(stdin, &to_write))?;
        Builder::new().name("stdout".to_owned()).spawn(move || read_lines(BufReader::new(stdout), &said))?;
        Builder::new().name("stderr".to_owned()).spawn(move || keep_lines(BufReader::new(stderr), &kept))?;
        Ok(subject)
    }

    /// Writes bytes, line ends included. They are lost if it does not read.
    pub(super) fn send(&mut self, bytes: Vec<u8>) {
        if let Some(input) = &self.input {
            let _ = input.try_send(bytes);
        }
    }

    /// Calls a method; the id by which it is answered.
    pub(super) fn call(&mut self, method: &str, params: &Value) -> u64 {
        let id = self.next_id();
        self.write_call(&format!("\"id\":{id},"), method, params);
        id
    }

    /// Tells it something.
    pub(super) fn notify(&mut self, method: &str, params: &Value) {
        self.write_call("", method, params);
    }

    /// An id that was not used in this run.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// In the order in which Demi writes the fields: a plugin in a language without JSON may rely on it.
    fn write_call(&mut self, id: &str, method: &str, params: &Value) {
        let params = if params.is_null() { String::new() } else { format!(",\"params\":{params}") };
        self.send(format!("{{\"jsonrpc\":\"2.0\",{id}\"method\":\"{method}\"{params}}}\n").into_bytes());
    }

    fn write(&mut self, message: Value) {
        self.send(format!("{message}\n").into_bytes());
    }

    /// Waits for the answer to a call.
    pub(super) fn answer(&mut self, id: u64, deadline: Instant) -> Seen {
        let began = Instant::now();
        loop {
            if let Some(answer) = self.answers.get(&id).and_then(|answers| answers.first()) {
                return Seen::Answer(answer.clone());
            }
            if let Some(status) = self.status {
                return Seen::End(status);
            }
            if Instant::now() >= deadline {
                return Seen::Silence(began.elapsed());
            }
            self.listen();
        }
    }

    /// How often a call was answered so far.
    pub(super) fn answers_to(&self, id: u64) -> usize {
        self.answers.get(&id).map_or(0, Vec::len)
    }

    /// Whether it has not ended, as far as was heard.
    pub(super) fn is_alive(&mut self) -> bool {
        self.listen();
        self.status.is_none()
    }

    /// Ends its stdin, once all is written.
    pub(super) fn close_input(&mut self) {
        self.input = None;
    }

    /// Sends TERM to its process group, as Demi does.
    pub(super) fn terminate(&self) {
        // Once it is reaped, its number may be another's. One that is gone shows as such.
        if self.status.is_none() {
            let _ = kill_process_group(pid_of(&self.child), Signal::TERM);
        }
    }

    /// Waits for its end.
    pub(super) fn end(&mut self, deadline: Instant) -> Option<ExitStatus> {
        while self.status.is_none() && Instant::now() < deadline {
            self.listen();
        }
        self.status
    }

    /// The last that it wrote on stderr.
    pub(super) fn last_words(&self) -> Vec<String> {
        lock(&self.last_words).iter().cloned().collect()
    }

    /// Takes what it said, and looks whether it has ended; returns soon.
    fn listen(&mut self) {
        // It is looked at before its output is: what it wrote before its end is taken first.
        let ended = self.status.is_none().then(|| self.child.try_wait()).and_then(Result::ok).flatten();
        let mut wait = LOOK;
        for _ in 0..LINES_MAX {
            match self.output.recv_timeout(wait) {
                Ok(Said::Line(line)) => self.take(&line),
                Ok(Said::TooLong(start)) => {
                    self.strays.add(&format!("a line of more than {LINE_BYTES_MAX} bytes"), &start);
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    // Its stdout is closed and it may live on: do not spin.
                    std::thread::sleep(LOOK);
                    break;
                }
            }
            wait = Duration::ZERO;
        }
        if ended.is_some() {
            self.status = ended;
        }
    }

    /// Takes a line from its stdout.
    fn take(&mut self, line: &[u8]) {
        let message = match serde_json::from_slice::<Value>(line) {
            Ok(message) if message["jsonrpc"] == "2.0" => message,
            Ok(_) => return self.strays.add("a line that is no JSON-RPC 2.0", line),
            Err(_) => return self.strays.add("a line that is no message", line),
        };
        if let Some(method) = message["method"].as_str() {
            if let Some(id) = message.get("id") {
                let answer = answer_to_plugin(id, method);
                self.write(answer);
            }
            return;
        }
        let answer = match (message.get("result"), message.get("error")) {
            (Some(result), None) => Answer::Result(result.clone()),
            (None, Some(error)) => Answer::Error {
                code: error["code"].as_i64().unwrap_or_default(),
                message: error["message"].as_str().unwrap_or_default().to_owned(),
            },
            (Some(_), Some(_)) => return self.strays.add("an answer that is both a result and an error", line),
            (None, None) => return self.strays.add("a message that is neither a call nor an answer", line),
        };
        match (&message["id"], message["id"].as_u64()) {
            (_, Some(id)) if (1..=self.last_id).contains(&id) => {
                let answers = self.answers.entry(id).or_default();
                answers.push(answer);
                if answers.len() > 1 {
                    // Once is told; a plugin that answers for ever must not fill the memory.
                    answers.truncate(2);
                    self.strays.add("a second answer to the same request", line);
                }
            }
            // An error without an id answers what could not be read.
            (Value::Null, _) if matches!(answer, Answer::Error { .. }) => {}
            _ => self.strays.add("an answer to an id that nobody used", line),
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let pid = pid_of(&self.child);
        kill_all(|process| process.session == pid.as_raw_nonzero().get());
        let _ = self.child.kill();
        let deadline = Instant::now() + KILL_PATIENCE;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
    }
}

/// What is said to a plugin that asks something of Demi.
fn answer_to_plugin(id: &Value, method: &str) -> Value {
    match method {
        "ping" => json!({"jsonrpc": "2.0", "id": id, "result": {}}),
        "store.get" | "store.put" | "route" => {
            let message = format!("{method:?} is not there while the plugin is checked");
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": codec::FAILED, "message": message}})
        }
        _ => {
            let message = format!("there is no method {method:?}");
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": codec::NO_METHOD, "message": message}})
        }
    }
}

/// A directory that is empty, and that only this user may enter.
fn fresh_directory(parent: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let path = parent.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
    std::fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32).expect("a child has a number above zero")
}

fn lock(words: &Mutex<VecDeque<String>>) -> MutexGuard<'_, VecDeque<String>> {
    words.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_lines(mut stdin: ChildStdin, lines: &Receiver<Vec<u8>>) {
    for line in lines {
        if stdin.write_all(&line).is_err() {
            return;
        }
    }
}

/// Hands over line by line. Of a line that is too long its beginning is handed over, and the rest passed over.
fn read_lines(mut stdout: impl BufRead, said: &SyncSender<Said>) {
    loop {
        let mut line = Vec::new();
        let count = stdout.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line).unwrap_or(0);
        if count == 0 {
            return;
        }
        let is_whole = line.last() == Some(&b'\n');
        let is_too_long = !is_whole && count > LINE_BYTES_MAX;
        let what = if is_too_long {
            line.truncate(LAST_WORD_BYTES_MAX as usize);
            Said::TooLong(line)
        } else {
            // The last line may lack its end.
            line.truncate(line.len() - usize::from(is_whole));
            Said::Line(line)
        };
        // Told before its end is looked for, which may never come.
        if said.send(what).is_err() || (is_too_long && stdout.skip_until(b'\n').is_err()) {
            return;
        }
    }
}

fn keep_lines(mut stderr: impl BufRead, kept: &Mutex<VecDeque<String>>) {
    let mut line = Vec::new();
    while stderr.by_ref().take(LAST_WORD_BYTES_MAX).read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        let mut kept = lock(kept);
        kept.push_back(text);
        if kept.len() > LAST_WORDS_MAX {
            kept.pop_front();
        }
        line.clear();
    }
}

/// A process, as the kernel tells of it.
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    is_zombie: bool,
}

/// The process with a number, if there is one.
fn process(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let is_zombie = fields.next()? == "Z";
    let mut number = || fields.next()?.parse().ok();
    let (parent, _group, session): (_, i32, _) = (number()?, number()?, number()?);
    Some(Process { pid, parent, session, is_zombie })
}

/// Every process.
fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn own_number() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Whether this process has started it, directly or not.
fn is_descendant(mut parent: i32) -> bool {
    for _ in 0..ANCESTORS_MAX {
        if parent == own_number() {
            return true;
        }
        match process(parent) {
            Some(next) => parent = next.parent,
            None => return false,
        }
    }
    false
}

/// Kills those descendants that are meant until there are none.
fn kill_all(is_meant: impl Fn(&Process) -> bool) {
    let is_meant = |process: &Process| !process.is_zombie && is_meant(process) && is_descendant(process.parent);
    for _ in 0..KILL_ROUNDS {
        let meant: Vec<Process> = processes().into_iter().filter(is_meant).collect();
        if meant.is_empty() {
            return;
        }
        for process in meant {
            kill(process.pid, is_meant);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills a process if it is still meant. That is asked once its descriptor is held, so that its number cannot have become
/// another's in between.
fn kill(pid: i32, is_meant: impl Fn(&Process) -> bool) {
    let Some(held) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return };
    if process(pid).is_some_and(|process| is_meant(&process)) {
        // One that has ended meanwhile needs no signal.
        let _ = pidfd_send_signal(held, Signal::KILL);
    }
}

/// Kills whatever this process has started, directly or not, and what was left behind to it.
pub(super) fn kill_descendants() {
    // A parent has been killed before its children are looked at, so they are children of this process by then.
    kill_all(|process| process.parent == own_number());
    for process in processes().iter().filter(|process| process.parent == own_number()) {
        // The number of a child stays its own until it is reaped.
        let _ = waitpid(Pid::from_raw(process.pid), WaitOptions::NOHANG);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_end_is_told_by_its_beginning_and_the_next_one_is_read() {
        let (said, lines) = sync_channel(8);
        let mut bytes = b"one\n".to_vec();
        bytes.extend(std::iter::repeat_n(b'x', LINE_BYTES_MAX + 1));
        bytes.extend(b"\ntwo\nthree");
        read_lines(&bytes[..], &said);
        drop(said);
        let shown: Vec<String> = lines
            .iter()
            .map(|said| match said {
                Said::Line(line) => String::from_utf8_lossy(&line).into_owned(),
                Said::TooLong(line) => format!("too long, {}", line.len()),
            })
            .collect();
        assert_eq!(shown, ["one", "too long, 1024", "two", "three"]);
    }

    #[test]
    fn this_process_is_among_the_processes_with_its_parent() {
        let own = own_number();
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        assert!(processes().iter().any(|process| process.pid == own && process.parent == parent));
    }

    #[test]
    fn only_who_is_still_meant_once_it_is_held_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("there is sleep");
        let pid = child.id() as i32;
        kill(pid, |_| false);
        assert!(matches!(child.try_wait(), Ok(None)), "its number might be another's by now");
        kill(pid, |process| is_descendant(process.parent));
        assert!(!child.wait().expect("it is ours").success());
        assert!(process(pid).is_none() && !is_descendant(1), "the first process is nobody's");
    }
}
