//! Between this process and a plugin that is checked: a stage of the same executable that leads a session of its own, is
//! killed when the check is, and then becomes the plugin. What must happen between fork and exec would take unsafe
//! code; here it happens in between, in a process that is nobody else's.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The first argument by which the stage is asked for; not for people, and so not in the help.
pub(crate) const WORD: &str = "--launch-a-plugin-to-check";
/// As a shell says that a command was not found or cannot be executed.
const NOT_EXECUTED: u8 = 127;

/// Becomes the program of the command line, if the stage is asked for. Returns only if that fails.
pub(crate) fn if_asked() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != WORD {
        return None;
    }
    let words: Vec<OsString> = words.collect();
    let (program, arguments) = words.split_first()?;
    // It is no leader of a group, having just been forked; and if the signal cannot be set, its stdin still ends.
    let _ = rustix::process::setsid();
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let error = Command::new(program).args(arguments).exec();
    eprintln!("{} cannot be executed: {error}", program.display());
    Some(ExitCode::from(NOT_EXECUTED))
}
