//! What must happen between fork and exec: the only unsafe code of Demi.
//!
//! The alternative, a launcher stage of the same executable, needs no unsafe but costs one more exec for each start
//! and cannot serve a host program that embeds Demi, whose executable is not ours.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::process::{
    getpid, getppid, getrlimit, set_parent_process_death_signal, setrlimit, setsid, Pid, Resource, Rlimit, Signal,
};

/// Descriptors that are looked at one by one on a kernel without `close_range` (before 5.11).
const DESCRIPTORS_LOOKED_AT_MAX: u64 = 65_536;
/// Between the CPU limit, which the kernel tells with XCPU, and its end by KILL, seconds.
const CPU_GRACE_S: u64 = 5;
/// Signals have these numbers on every architecture but MIPS, which has 127 and refuses the size of the mask below.
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;
/// Bytes of the kernel's own mask of signals.
const SIGNAL_MASK_BYTES: usize = 8;

/// What the kernel holds a child to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Confines {
    /// Most open descriptors of each process; never more than Demi's own hard limit.
    pub(crate) descriptors_max: u64,
    /// Longest file it may write, bytes.
    pub(crate) file_bytes_max: Option<u64>,
    /// Processor time of each process, seconds.
    pub(crate) cpu_s_max: Option<u64>,
}

/// Held from before a child's pipes are made until after its exec.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts a child, one at a time in this process, whichever thread asks. Blocks until its exec, which is a millisecond
/// or so, and until that of another that is being started.
///
/// A child has a copy of every descriptor until its exec closes them. One that was forked while the pipes of another
/// are being made would hold that other's end of them: what is written there after that other has closed it would seem
/// to have arrived.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Makes the child leader of its own session and process group, has the kernel kill it when Demi dies, lets it gain no
/// rights by exec, holds it to its limits, gives it signals as they are by default and no descriptor beyond the first
/// three, and has the kernel take it before Demi when memory is short. With `entrance`, which is some cgroup's
/// `cgroup.procs`, it enters that first, so that nothing it does is outside.
///
/// The parent-death signal is tied to the *thread* that starts the child, so children must be started on the
/// reactor's thread, which lives as long as Demi.
pub(crate) fn isolate(command: &mut Command, confines: Confines, entrance: Option<OwnedFd>) {
    let parent = getpid();
    let prepare = move || -> io::Result<()> {
        if let Some(entrance) = &entrance {
            rustix::io::write(entrance, b"0")?;
        }
        setsid()?;
        die_with(parent)?;
        rustix::thread::set_no_new_privs(true)?;
        confine(confines)?;
        volunteer();
        reset_signals()?;
        close_on_exec();
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. `prepare` makes plain system calls only
    // (write, setsid, prctl, prlimit, getppid, open of a constant path, close, rt_sigaction, sigprocmask, close_range, fcntl),
    // through rustix, which issues them directly, or through libc's thin wrappers, which POSIX lists as safe; it neither
    // allocates nor locks, and what it captures is dropped in the parent only, since exec or _exit ends the child's copy.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Makes the guard leader of its own session, out of reach of the terminal's Ctrl-C, without any descriptor beyond the
/// first three. It is to outlive Demi, so nothing ends it when Demi ends.
pub(crate) fn detach(command: &mut Command) {
    let prepare = || -> io::Result<()> {
        setsid()?;
        reset_signals()?;
        close_on_exec();
        Ok(())
    };
    // SAFETY: as above: setsid, rt_sigaction, sigprocmask, close_range and fcntl only.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Has the kernel kill this process when the thread that started it dies.
fn die_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Demi may have died before the signal was set; then nobody would ever send it.
    if getppid() != Some(parent) {
        return Err(io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error()));
    }
    Ok(())
}

fn confine(confines: Confines) -> io::Result<()> {
    lower(Resource::Nofile, confines.descriptors_max, confines.descriptors_max)?;
    lower(Resource::Core, 0, 0)?;
    if let Some(bytes) = confines.file_bytes_max {
        lower(Resource::Fsize, bytes, bytes)?;
    }
    if let Some(seconds) = confines.cpu_s_max {
        lower(Resource::Cpu, seconds, seconds.saturating_add(CPU_GRACE_S))?;
    }
    Ok(())
}

/// Sets a limit, never above the hard one that there is: raising that takes a right that Demi must not need.
fn lower(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let ceiling = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let hard = hard.min(ceiling);
    setrlimit(resource, Rlimit { current: Some(soft.min(hard)), maximum: Some(hard) })?;
    Ok(())
}

/// When memory is short, the kernel takes a child before it takes Demi. If that cannot be said, it is as it was.
fn volunteer() {
    let path = c"/proc/self/oom_score_adj";
    if let Ok(file) = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::io::write(&file, b"300");
    }
}

/// Ignored signals and the mask are inherited over exec: a child of a Demi under `nohup` must not be deaf to HUP.
fn reset_signals() -> io::Result<()> {
    // The kernel's `sigaction` of any architecture, all zero: the default disposition, no flag, an empty mask.
    let default = [0u64; 8];
    for signal in SIGNALS {
        // SAFETY: the kernel reads its `sigaction`, at most 32 bytes, from a buffer that is larger, and writes nothing.
        // It refuses KILL and STOP, which changes nothing. The C library is passed by, because it refuses two signals
        // that it keeps for itself, and a process may have inherited them ignored; in this one exec follows.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                SIGNAL_MASK_BYTES,
            );
        }
    }
    // SAFETY: `sigset_t` is plain numbers, for which zero is a value; `sigemptyset` initialises it, and both calls are
    // async-signal-safe. After fork this is the only thread.
    let result = unsafe {
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &empty, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whatever is open beyond the first three closes at exec: what Demi forgot to mark, and what whoever started Demi let
/// slip through. Closing at once would take away the pipe by which the parent hears of a failed exec.
fn close_on_exec() {
    // SAFETY: `close_range` takes plain numbers, changes flags of this process's own table only, and a kernel that does
    // not know it or its flag says so.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return;
    }
    let open_max = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS_LOOKED_AT_MAX);
    for descriptor in 3..open_max.min(DESCRIPTORS_LOOKED_AT_MAX) as i32 {
        // SAFETY: `fcntl` with F_SETFD takes plain numbers; on a descriptor that is not open it fails, which is fine.
        unsafe {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Stdio;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    /// A child that takes long between fork and exec.
    fn slow() -> Command {
        let mut command = Command::new("true");
        // SAFETY: it sleeps, by a system call, and neither allocates nor locks.
        unsafe {
            command.pre_exec(|| {
                std::thread::sleep(Duration::from_millis(10));
                Ok(())
            });
        }
        command
    }

    /// In a process of its own: between fork and exec a child holds every descriptor of this one, so also the locks on
    /// the stores of other tests.
    #[test]
    fn a_child_that_is_being_started_holds_no_pipe_of_another() {
        let own = std::env::current_exe().expect("it runs");
        let arguments = ["--exact", "sandbox::tests::slow_starts_side_by_side", "--ignored"];
        let output = spawn(Command::new(own).args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()));
        let output = output.and_then(Child::wait_with_output).expect("it can be run again");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
    }

    #[test]
    #[ignore = "the test above runs it"]
    fn slow_starts_side_by_side() {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let mut child = spawn(&mut slow()).expect("there is `true`");
                    let _ = child.wait();
                }
            });
            let deadline = Instant::now() + Duration::from_secs(1);
            let mut arrived = 0;
            while Instant::now() < deadline {
                let mut child = spawn(Command::new("true").stdin(Stdio::piped())).expect("there is `true`");
                let mut line = child.stdin.take().expect("it has a pipe");
                let _ = child.wait();
                arrived += u32::from(line.write_all(b"to nobody").is_ok());
            }
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(arrived, 0, "what nobody could read was written");
        });
    }
}
