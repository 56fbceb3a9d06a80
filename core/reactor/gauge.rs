//! What a machine tells of its memory: the signals that there are, and why the others are missing.
//!
//! Each reader takes a root directory, below which `proc` and `sys` lie, so that tests and `demi doctor --root` read
//! recorded machines. What is read is bounded, and nothing is written.
//!
//! | signal | from | read by |
//! |---|---|---|
//! | memory and swap of the machine | `/proc/meminfo` | `meminfo.rs` |
//! | what ZFS would give back | `/proc/spl/kstat/zfs/arcstats` | `arc.rs` |
//! | how long work stood still for memory | `/proc/pressure/memory`, `memory.pressure` | `stalls.rs` |
//! | limits of control groups, of both versions | `memory.max` and the like | `groups.rs` |
//!
//! What follows from all of them together is in `ladder.rs`.

mod arc;
mod groups;
mod ladder;
mod meminfo;
mod stalls;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use arc::Arc;
pub use groups::{Groups, Level, Version};
pub use ladder::{Given, Ram};
pub use meminfo::Meminfo;
pub use stalls::{Stall, Stalls};

use groups::Mounts;

/// Longest file that is read. The list of mounts of a machine with hundreds of containers is the longest; it is cut there.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Why a signal is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is no such file.
    Absent,
    /// The kernel can do it and has it switched off.
    Off,
    /// This user may not read it.
    Denied,
    /// It cannot be read, or says what makes no sense.
    Garbled,
}

impl Missing {
    fn of(error: &io::Error) -> Missing {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Missing::Absent,
            io::ErrorKind::Unsupported => Missing::Off,
            io::ErrorKind::PermissionDenied => Missing::Denied,
            _ => Missing::Garbled,
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Missing::Absent => "is not there",
            Missing::Off => "is switched off",
            Missing::Denied => "may not be read by this user",
            Missing::Garbled => "cannot be read, or makes no sense",
        })
    }
}

/// Reads the signals of a machine, time and again.
pub struct Reader {
    root: PathBuf,
    mounts: Mounts,
}

impl Reader {
    /// Of the machine whose `proc` and `sys` lie below `root`: `/` outside of tests. Looks where control groups are
    /// mounted, which is not looked at again. Blocks for a moment.
    pub fn new(root: &Path) -> Reader {
        Reader { root: root.to_owned(), mounts: Mounts::find(root) }
    }

    /// All signals, as they are now. Blocks for a moment: some tenths of a millisecond.
    pub fn read(&self) -> Signals {
        let parsed = |path: &str| read(&self.root.join(path));
        Signals {
            meminfo: parsed("proc/meminfo").and_then(|text| Meminfo::parse(&text).ok_or(Missing::Garbled)),
            arc: match self.mounts.is_meminfo_made_up {
                // That of the host, and no part of what it says there.
                true => Err(Missing::Absent),
                false => {
                    parsed("proc/spl/kstat/zfs/arcstats").and_then(|text| Arc::parse(&text).ok_or(Missing::Garbled))
                }
            },
            stalls: parsed("proc/pressure/memory").and_then(|text| Stalls::parse(&text).ok_or(Missing::Garbled)),
            groups: self.mounts.read(&self.root),
        }
    }
}

/// What a machine says of its memory at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Signals {
    /// Memory and swap of the machine.
    pub meminfo: Result<Meminfo, Missing>,
    /// The cache of ZFS.
    pub arc: Result<Arc, Missing>,
    /// How long work stood still for memory, on the whole machine.
    pub stalls: Result<Stalls, Missing>,
    /// The control groups that this process is in.
    pub groups: Groups,
}

/// Reads a file up to its bound.
fn read(path: &Path) -> Result<String, Missing> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(Missing::of(&error)),
    }
}

/// The number behind a word that begins a line, without its unit.
pub(crate) fn number(text: &str, word: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line
            .strip_prefix(word)?
            .strip_prefix(|next: char| next == ':' || next.is_ascii_whitespace())?
            .split_ascii_whitespace();
        words.next()?.parse().ok()
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine as it was recorded in `tests/fixtures/machines`.
    pub(crate) fn recorded(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/machines").join(name)
    }

    /// A machine that a test makes up, in a directory that is removed with it.
    pub(crate) struct Made(pub(crate) PathBuf);

    impl Made {
        pub(crate) fn new(name: &str, files: &[(&str, &str)]) -> Made {
            let path = std::env::temp_dir().join(format!("demi-gauge-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).expect("it can be written");
            let made = Made(path);
            files.iter().for_each(|(file, text)| made.write(file, text));
            made
        }

        pub(crate) fn write(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            std::fs::create_dir_all(path.parent().expect("it is below the root")).expect("it can be written");
            std::fs::write(path, text).expect("it can be written");
        }

        pub(crate) fn signals(&self) -> Signals {
            Reader::new(&self.0).read()
        }
    }

    impl Drop for Made {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn each_recorded_machine_tells_what_it_can() {
        for (name, has_arc, has_stalls, version, limits) in [
            ("raspberry-pi-os", false, false, None, 0),
            ("container-v2", false, true, Some(Version::Two), 1),
            ("container-v1", false, false, Some(Version::One), 1),
            ("zfs-server", true, true, Some(Version::Two), 0),
            ("old-kernel", false, false, None, 0),
        ] {
            let signals = Reader::new(&recorded(name)).read();
            let told =
                (signals.arc.is_ok(), signals.stalls.is_ok(), signals.groups.version, signals.groups.levels.len());
            assert_eq!(told, (has_arc, has_stalls, version, limits), "{name}");
            assert!(signals.meminfo.is_ok(), "{name}");
        }
    }

    #[test]
    fn a_machine_without_any_of_it_tells_that_nothing_is_there() {
        let signals = Made::new("nothing", &[]).signals();
        assert_eq!(
            (signals.meminfo, signals.arc, signals.stalls),
            (Err(Missing::Absent), Err(Missing::Absent), Err(Missing::Absent))
        );
        assert_eq!(signals.groups, Groups::default());
    }

    #[test]
    fn what_is_empty_or_garbage_is_no_signal() {
        for text in ["", "\0\u{fffd}\n::\n", "MemTotal: many kB\nsize\nsome avg10=\n", "9999999999999999999999999999"] {
            let files = [
                "proc/meminfo",
                "proc/spl/kstat/zfs/arcstats",
                "proc/pressure/memory",
                "proc/self/cgroup",
                "proc/self/mountinfo",
            ];
            let signals = Made::new("garbage", &files.map(|file| (file, text))).signals();
            assert_eq!(
                (signals.meminfo, signals.arc, signals.stalls),
                (Err(Missing::Garbled), Err(Missing::Garbled), Err(Missing::Garbled)),
                "{text:?}"
            );
            assert!(signals.groups.levels.is_empty());
        }
    }

    #[test]
    fn why_a_file_cannot_be_read_is_told_apart() {
        let made = Made::new("unreadable", &[("proc/meminfo/here/is", "a directory"), ("proc/pressure", "a file")]);
        assert_eq!(made.signals().meminfo, Err(Missing::Garbled));
        assert_eq!(made.signals().stalls, Err(Missing::Absent));
        let of = |error: rustix::io::Errno| Missing::of(&error.into());
        assert_eq!(of(rustix::io::Errno::OPNOTSUPP), Missing::Off, "as a kernel answers that has PSI switched off");
        assert_eq!(of(rustix::io::Errno::ACCESS), Missing::Denied);
        assert_eq!(of(rustix::io::Errno::IO), Missing::Garbled);
    }

    #[test]
    fn the_arc_of_a_host_is_no_part_of_a_meminfo_that_was_made_up_for_a_container() {
        let made = Made::new(
            "lxcfs",
            &[
                ("proc/spl/kstat/zfs/arcstats", "c_min 4 1\nsize 4 100\n"),
                ("proc/self/mountinfo", "1 2 0:3 /proc/meminfo /proc/meminfo rw - fuse.lxcfs lxcfs rw\n"),
            ],
        );
        assert_eq!(made.signals().arc, Err(Missing::Absent));
    }

    #[test]
    fn a_file_is_read_up_to_its_bound() {
        let long = "MemTotal: 10 kB\nMemAvailable: 5 kB\n".to_owned() + &"x".repeat(2 * FILE_BYTES_MAX as usize);
        let made = Made::new("long", &[("proc/meminfo", &long)]);
        assert_eq!(read(&made.0.join("proc/meminfo")).map(|text| text.len()), Ok(FILE_BYTES_MAX as usize));
        assert!(made.signals().meminfo.is_ok());
    }

    #[test]
    fn this_machine_tells_of_its_memory() {
        let signals = Reader::new(Path::new("/")).read();
        assert!(signals.meminfo.is_ok_and(|memory| memory.total > 0), "this kernel can be read");
    }
}
