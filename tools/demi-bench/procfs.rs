//! What Linux tells about a process under `/proc`.

use std::fs;
use std::time::Duration;

/// CPU time (user and system, threads that have ended included) in ticks of 10 ms: for a span under load.
pub fn cpu(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks: u64 = field::<u64>(&stat, 11)? + field::<u64>(&stat, 12)?;
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// CPU time of the present threads in ns, from the scheduler: for a span that uses next to nothing. Falls back to
/// `cpu` on a kernel without it.
pub fn cpu_fine(pid: u32) -> Option<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let Ok(text) = fs::read_to_string(task.ok()?.path().join("schedstat")) else { return cpu(pid) };
        total += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(total))
}

/// What one thread has used so far.
pub struct Task {
    pub tid: u32,
    pub name: String,
    /// CPU time, in ns from the scheduler.
    pub cpu: Duration,
    /// How often it has gone to sleep of its own accord: about the wake-ups.
    pub sleeps: u64,
}

/// The present threads of a process; `None` if it is gone, or if the kernel keeps no such figures.
pub fn tasks(pid: u32) -> Option<Vec<Task>> {
    let read = |entry: fs::DirEntry| {
        let path = entry.path();
        let cpu = fs::read_to_string(path.join("schedstat")).ok()?;
        Some(Task {
            tid: entry.file_name().to_str()?.parse().ok()?,
            name: fs::read_to_string(path.join("comm")).ok()?.trim().to_owned(),
            cpu: Duration::from_nanos(cpu.split(' ').next()?.parse().ok()?),
            sleeps: status(&path, "voluntary_ctxt_switches:")?,
        })
    };
    // A thread may end while it is read.
    let tasks: Vec<Task> = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().filter_map(read).collect();
    (!tasks.is_empty()).then_some(tasks)
}

/// How often the threads have gone to sleep of their own accord: about the wake-ups.
pub fn sleeps(pid: u32) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    Some(tasks.flatten().filter_map(|task| status(&task.path(), "voluntary_ctxt_switches:")).sum())
}

/// Proportional set size in KiB: shared pages are divided among those who share them.
pub fn pss_kib(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    labelled(&rollup, "Pss:")
}

/// Pages of no other process in KiB.
pub fn private_kib(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(labelled(&rollup, "Private_Clean:")? + labelled(&rollup, "Private_Dirty:")?)
}

/// Resident memory in KiB.
pub fn rss_kib(pid: u32) -> Option<u64> {
    status(format!("/proc/{pid}").as_ref(), "VmRSS:")
}

/// The most resident memory so far in KiB.
pub fn rss_max_kib(pid: u32) -> Option<u64> {
    status(format!("/proc/{pid}").as_ref(), "VmHWM:")
}

/// Threads.
pub fn threads(pid: u32) -> Option<u64> {
    status(format!("/proc/{pid}").as_ref(), "Threads:")
}

/// Parent of a process; `None` if there is no such process.
pub fn parent(pid: u32) -> Option<u32> {
    field(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, 1)
}

/// Children and their children, by pid.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(parent) = parent(child) {
            parents.push((child, parent));
        }
    }
    let mut found = vec![pid];
    let mut index = 0;
    while index < found.len() {
        let of = found[index];
        found.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(child, _)| *child));
        index += 1;
    }
    found.remove(0);
    found.sort_unstable();
    found
}

/// The words of a process's command line.
pub fn command(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()
}

/// A field of `stat`, counted from the one after the name, which may hold spaces and brackets itself.
fn field<T: std::str::FromStr>(stat: &str, index: usize) -> Option<T> {
    stat.rsplit_once(") ")?.1.split(' ').nth(index)?.parse().ok()
}

fn status(directory: &std::path::Path, label: &str) -> Option<u64> {
    labelled(&fs::read_to_string(directory.join("status")).ok()?, label)
}

fn labelled(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(label))?;
    line[label.len()..].split_whitespace().next()?.parse().ok()
}
