//! The guard: a tiny process that outlives Demi for a moment and sees to it that nothing else does.
//!
//! The kernel ends Demi's direct children when Demi is killed, and no others: what a plugin started in a session of its
//! own would live on. The guard holds the read end of a pipe whose other end only Demi has. At its end, unless Demi said
//! goodbye before, it kills every process that bears Demi's token, until there is none.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{pidfd_open, pidfd_send_signal, Pid, PidfdFlags, Signal};

use crate::procfs::Procfs;
use crate::sandbox;
use crate::weigh::Scales;

/// What Demi says when it ends in order.
const GOODBYE: &str = "bye\n";
/// Longest token that is taken: ours have 32 characters.
const TOKEN_BYTES_MAX: u64 = 256;
/// A shorter one could be part of somebody else's word, and would have the guard kill what is not ours.
const TOKEN_BYTES_MIN: usize = 16;
/// Looks at most, at its end; each kills whatever it finds, so that only something that forks faster is left.
const ROUNDS_MAX: usize = 200;
/// Between two looks.
const ROUND_PAUSE: Duration = Duration::from_millis(10);
/// The guard is given this long to end after the goodbye, or after it was killed.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

/// Demi's side: its guard.
pub(crate) struct Guard {
    process: Child,
    line: ChildStdin,
}

impl Guard {
    /// Starts `program guard` and tells it whom to look for.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(program: &Path, token: &str) -> io::Result<Guard> {
        let mut command = Command::new(program);
        command.arg("guard").env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        sandbox::detach(&mut command);
        Guard::tell(sandbox::spawn(&mut command)?, token)
    }

    /// Tells a process whom to look for. One that cannot be told is no guard: it is killed and reaped.
    fn tell(mut process: Child, token: &str) -> io::Result<Guard> {
        let line = process.stdin.take().ok_or_else(|| io::Error::other("its pipe is missing"));
        // A pipe takes so little at once.
        let told = line.and_then(|mut line| writeln!(line, "{token}").map(|()| line));
        match told {
            Ok(line) => Ok(Guard { process, line }),
            Err(error) => {
                let _ = process.kill();
                reap(&mut process);
                Err(error)
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it still runs; reaps it if not.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Lets it go.
    pub(crate) fn dismiss(self) {
        let Guard { mut process, mut line } = self;
        let _ = line.write_all(GOODBYE.as_bytes());
        drop(line);
        reap(&mut process);
    }
}

/// Waits for the end of a process that is about to end, but not for ever.
fn reap(process: &mut Child) {
    let deadline = Instant::now() + FAREWELL_MAX;
    while matches!(process.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The guard's side: what `demi guard` does. Reads a token from stdin and waits, blocking, for the end of that; unless
/// it is told goodbye before, it kills every process that bears the token, and returns when two looks in a row find none.
/// TERM, INT and HUP are ignored: whoever ends Demi ends its guard by that.
///
/// # Errors
/// If stdin brings no token.
pub fn keep_guard() -> io::Result<()> {
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let mut input = BufReader::with_capacity(512, io::stdin().lock());
    let mut token = String::new();
    input.by_ref().take(TOKEN_BYTES_MAX).read_line(&mut token)?;
    let token = token.trim();
    if token.len() < TOKEN_BYTES_MIN {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "stdin brought no token; Demi starts its guard itself"));
    }
    let mut farewell = String::new();
    input.take(TOKEN_BYTES_MAX).read_to_string(&mut farewell)?;
    if farewell != GOODBYE {
        kill_all(token);
    }
    Ok(())
}

fn kill_all(token: &str) {
    let mut scales = Scales::new(Procfs::new(Path::new("/proc")), token.to_owned(), 0, None);
    let mut quiet = 0;
    for _ in 0..ROUNDS_MAX {
        let found = scales.belonging(None);
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        if quiet == 2 {
            return;
        }
        for pid in found.into_iter().filter(|pid| *pid != std::process::id()) {
            kill_if(&mut scales, pid, |scales| scales.belongs(pid, None));
        }
        std::thread::sleep(ROUND_PAUSE);
    }
}

/// Kills a process if it still is who it was taken for: that is asked once its descriptor is held, so that its number
/// cannot have become another's in between. The descriptor, if it was killed.
pub(crate) fn kill_if(
    scales: &mut Scales,
    pid: u32,
    is_meant: impl FnOnce(&mut Scales) -> bool,
) -> Option<std::os::fd::OwnedFd> {
    let process = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
    if !is_meant(scales) {
        return None;
    }
    pidfd_send_signal(&process, Signal::KILL).ok()?;
    Some(process)
}

/// For tests: a process has its environment only a moment after it was started.
#[cfg(test)]
pub(crate) fn wait_until_marked(scales: &mut Scales, pids: &[u32]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !pids.iter().all(|pid| scales.belongs(*pid, None)) {
        assert!(Instant::now() < deadline, "they never bear the mark");
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{waitid, WaitId, WaitIdOptions};

    #[test]
    fn a_guard_that_cannot_be_told_whom_to_look_for_is_reaped() {
        let process = crate::sandbox::spawn(Command::new("true").stdin(Stdio::piped())).expect("there is true");
        let pid = Pid::from_child(&process);
        let ended = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        assert!(ended.expect("it is ours").is_some(), "nobody reads its pipe any more");
        let Err(error) = Guard::tell(process, "0123456789abcdef") else { panic!("it is told") };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let after = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        assert_eq!(after.err(), Some(rustix::io::Errno::CHILD));
    }
}
