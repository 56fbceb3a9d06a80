//! What must happen between fork and exec: the only unsafe code of Demi.
//!
//! The alternative, a launcher stage of the same executable, needs no unsafe but costs one more exec for each start
//! and cannot serve a host program that embeds Demi, whose executable is not ours.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{
    getpid, getppid, getrlimit, set_parent_process_death_signal, setrlimit, setsid, Resource, Rlimit, Signal,
};

/// What a program may expect: one that uses `select` cannot deal with more. Demi itself may have raised its own limit.
const DESCRIPTORS: u64 = 1024;

/// Makes the child leader of its own session and process group, has the kernel kill it when Demi dies, and gives it the
/// usual limit of descriptors.
///
/// The parent-death signal is tied to the *thread* that starts the child, so children must be started on the
/// reactor's thread, which lives as long as Demi.
pub(crate) fn isolate(command: &mut Command) {
    let parent = getpid();
    let prepare = move || -> io::Result<()> {
        setsid()?;
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let current = current.map_or(DESCRIPTORS, |current| current.min(DESCRIPTORS));
        setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum })?;
        // Demi may have died before the signal was set; then nobody would ever send it.
        if getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error()));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. `prepare` makes plain system calls only
    // (setsid, prctl, prlimit, getppid) through rustix, which issues them directly; it neither allocates nor locks, and it
    // captures one integer by value.
    unsafe {
        command.pre_exec(prepare);
    }
}
