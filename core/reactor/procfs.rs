//! Reads what the kernel tells of processes, in as few system calls as it can be told in.
//!
//! The root is a parameter, so that tests read a recorded tree. Nothing here signals anybody.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest file that is read of a process: an environment of the usual size. One that is longer is cut there; Demi's
/// own words stand wherever the child's first exec put them, so more than is usual is allowed for.
const FILE_BYTES_MAX: usize = 256 * 1024;
/// `f_type` of a real procfs.
const PROC_SUPER_MAGIC: i128 = 0x9fa0;

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) is_zombie: bool,
    pub(crate) threads: u32,
    /// Ticks since boot: a process number with its start is never another process's.
    pub(crate) start: u64,
    pub(crate) rss_pages: u64,
}

/// A reader of `/proc`, with buffers that it keeps.
pub(crate) struct Procfs {
    root: PathBuf,
    /// Whether the size of `/proc/PID/fd` is the number of open descriptors (since Linux 6.2).
    counts_descriptors: bool,
    path: String,
    buffer: Vec<u8>,
}

impl Procfs {
    /// Reads below `root`, which is `/proc` outside of tests.
    pub(crate) fn new(root: &Path) -> Procfs {
        let is_real = rustix::fs::statfs(root).is_ok_and(|stat| i128::from(stat.f_type) == PROC_SUPER_MAGIC);
        let size = std::fs::metadata(root.join("self/fd")).map_or(0, |about| about.len());
        Procfs {
            root: root.to_owned(),
            counts_descriptors: is_real && size > 0,
            path: String::new(),
            buffer: Vec::new(),
        }
    }

    /// What is known of a process; `None` if there is none.
    pub(crate) fn stat(&mut self, pid: u32) -> Option<Stat> {
        self.read(|path| write_path(path, &[&pid, &"/stat"]), false)?;
        let text = String::from_utf8_lossy(&self.buffer);
        // The name stands in parentheses and may hold any character; nothing after it is a parenthesis.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let is_zombie = matches!(fields.next()?, "Z" | "X");
        Some(Stat {
            is_zombie,
            threads: fields.nth(16)?.parse().ok()?,
            start: fields.nth(1)?.parse().ok()?,
            rss_pages: fields.nth(1)?.parse().ok()?,
        })
    }

    /// Memory of a process in which what it shares is divided by how many share it, bytes; `None` if there is no such
    /// process, or if that is not for us to know. The kernel walks all its pages: that takes a millisecond for some hundred
    /// megabytes.
    pub(crate) fn pss(&mut self, pid: u32) -> Option<u64> {
        self.read(|path| write_path(path, &[&pid, &"/smaps_rollup"]), false)?;
        crate::gauge::number(&String::from_utf8_lossy(&self.buffer), "Pss")?.checked_mul(1024)
    }

    /// What the kernel could give out without swapping, bytes; `None` if it does not say so.
    pub(crate) fn available(&mut self) -> Option<u64> {
        self.read(|path| write_path(path, &[&"/meminfo"]), false)?;
        crate::gauge::number(&String::from_utf8_lossy(&self.buffer), "MemAvailable")?.checked_mul(1024)
    }

    /// Appends the children of a process with so many threads.
    pub(crate) fn children(&mut self, pid: u32, threads: u32, found: &mut Vec<u32>) {
        if threads <= 1 {
            return self.children_of_thread(pid, pid, found);
        }
        for thread in numbers_in(&self.root.join(pid.to_string()).join("task")) {
            self.children_of_thread(pid, thread, found);
        }
    }

    fn children_of_thread(&mut self, pid: u32, thread: u32, found: &mut Vec<u32>) {
        if self.read(|path| write_path(path, &[&pid, &"/task/", &thread, &"/children"]), true).is_some() {
            let numbers = self.buffer.split(|byte| *byte == b' ').filter_map(|word| std::str::from_utf8(word).ok());
            found.extend(numbers.filter_map(|word| word.trim().parse::<u32>().ok()));
        }
    }

    /// How many descriptors a process has open; 0 if that is not for us to know.
    pub(crate) fn descriptors(&mut self, pid: u32) -> u32 {
        self.set_path(|path| write_path(path, &[&pid, &"/fd"]));
        if self.counts_descriptors {
            return std::fs::metadata(&self.path).map_or(0, |about| u32::try_from(about.len()).unwrap_or(u32::MAX));
        }
        std::fs::read_dir(&self.path).map_or(0, |entries| u32::try_from(entries.count()).unwrap_or(u32::MAX))
    }

    /// The value of a word in the environment that a process was started with, if it begins with `prefix`.
    pub(crate) fn word(&mut self, pid: u32, name: &str, prefix: &str) -> Option<String> {
        self.read(|path| write_path(path, &[&pid, &"/environ"]), true)?;
        let mut values = self.buffer.split(|byte| *byte == 0).filter_map(|entry| {
            let value = std::str::from_utf8(entry).ok()?.strip_prefix(name)?.strip_prefix('=')?;
            value.starts_with(prefix).then(|| value.to_owned())
        });
        values.next_back()
    }

    /// Every process that there is.
    pub(crate) fn everybody(&self) -> Vec<u32> {
        numbers_in(&self.root)
    }

    fn set_path(&mut self, write: impl FnOnce(&mut String)) {
        self.path.clear();
        self.path.push_str(&self.root.to_string_lossy());
        self.path.push('/');
        write(&mut self.path);
    }

    /// Reads a file into the buffer: by one call if it is short, as the kernel gives it out whole.
    fn read(&mut self, write: impl FnOnce(&mut String), is_long: bool) -> Option<()> {
        self.set_path(write);
        self.buffer.clear();
        let mut file = File::open(&self.path).ok()?;
        let mut chunk = [0; 4096];
        while self.buffer.len() < FILE_BYTES_MAX {
            match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => {
                    self.buffer.extend_from_slice(&chunk[..count]);
                    if !is_long {
                        break;
                    }
                }
                Err(_) => return None,
            }
        }
        Some(())
    }
}

fn write_path(path: &mut String, parts: &[&dyn std::fmt::Display]) {
    use std::fmt::Write;
    for part in parts {
        // Writing to a string cannot fail.
        let _ = write!(path, "{part}");
    }
}

fn numbers_in(directory: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_with_what_it_uses() {
        let mut proc = Procfs::new(Path::new("/proc"));
        let own = std::process::id();
        let stat = proc.stat(own).expect("it runs");
        assert!(!stat.is_zombie && stat.threads >= 1 && stat.start > 0 && stat.rss_pages > 0);
        assert!(proc.descriptors(own) >= 3);
        assert!(proc.pss(own).is_none_or(|pss| pss > 0), "kernels before 4.14 do not tell");
        assert!(proc.everybody().contains(&own));
        assert_eq!(proc.stat(0), None);
    }

    #[test]
    fn a_child_is_found_by_its_parent_and_by_its_environment() {
        let mut child = crate::sandbox::spawn(std::process::Command::new("sleep").arg("30").env("MARK", "a:b"))
            .expect("it is there");
        let mut proc = Procfs::new(Path::new("/proc"));
        let threads = proc.stat(std::process::id()).expect("it runs").threads;
        let mut found = Vec::new();
        proc.children(std::process::id(), threads.max(2), &mut found);
        assert!(found.contains(&child.id()), "{found:?}");
        // An exec takes the old environment away a moment before the new one is there.
        let word = loop {
            match proc.word(child.id(), "MARK", "a:") {
                Some(word) => break word,
                None => assert!(matches!(child.try_wait(), Ok(None)), "it ended without a mark"),
            }
        };
        assert_eq!(word, "a:b");
        assert_eq!(proc.word(child.id(), "MARK", "b"), None);
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        assert_eq!(proc.word(child.id(), "MARK", "a:"), None);
    }
}
