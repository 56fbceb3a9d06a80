//! Control groups (version 2), where they are delegated to Demi: the kernel then holds each run to its limits at once,
//! instead of Demi once a second.
//!
//! ```text
//!   own cgroup ──► demi                   Demi itself: a cgroup that hands controllers down must hold no process
//!              └─► demi-run-echo-0-3      platform, index and run of a child
//! ```
//!
//! Nothing is touched unless the group is really ours: delegated by the service manager, or the root of a container's
//! own view, and without other processes in it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use demi_conductor::config::Limits;

/// Bytes of a megabyte, as limits count them.
const MEGABYTE: u64 = 1_000_000;
/// Demi's own group below the one that it was started in.
const OWN: &str = "demi";
/// What the names of runs' groups begin with: what bears it and is there before the first start, a killed Demi has left.
const RUN: &str = "demi-run-";
/// The kernel counts threads where `limits.processes_max` counts processes. So it is given this many for each process,
/// and enough for one program of many threads; what has more processes than it may is found by weighing, and told.
const TASKS_PER_PROCESS: u32 = 16;
const TASKS_MIN: u32 = 256;
/// Groups below a run's own, which a plugin may have made, are removed down to this depth.
const DEPTH_MAX: u32 = 16;
/// A group can be removed once the last process in it is gone, which takes the kernel a moment after the kill.
const REMOVALS_MAX: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(10);

/// The group below which each run gets one of its own.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    base: PathBuf,
    has_memory: bool,
    has_pids: bool,
}

/// A run's group: its directory, and the file by which a process enters it.
pub(crate) struct Group {
    pub(crate) path: PathBuf,
    pub(crate) entrance: OwnedFd,
}

/// Who is asking, for tests to say otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub(crate) pid: u32,
    /// Everything is writable for root, which therefore says nothing about whose it is.
    pub(crate) is_root: bool,
}

impl Cgroups {
    /// Takes over the group that this process is in, which `own` (`/proc/self/cgroup`) names, below `root`
    /// (`/sys/fs/cgroup`). Moves the whole process to a group below it.
    ///
    /// # Errors
    /// Why it cannot be used, in words; then everything is as before.
    pub(crate) fn take_over(root: &Path, own: &str, who: Who) -> Result<Cgroups, String> {
        let cgroups = Cgroups::candidate(root, own, who)?;
        let base = &cgroups.base;
        let refused = |error: io::Error| format!("{} is not delegated: {error}", base.display());
        let inner = base.join(OWN);
        match fs::create_dir(&inner) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(refused(error)),
            _ => {}
        }
        let moved = write(&inner, "cgroup.procs", &who.pid.to_string())
            .and_then(|()| write(base, "cgroup.subtree_control", &cgroups.controllers("+")));
        if let Err(error) = moved {
            let _ = write(base, "cgroup.procs", &who.pid.to_string());
            let _ = fs::remove_dir(&inner);
            return Err(refused(error));
        }
        cgroups.remove_leftovers();
        Ok(cgroups)
    }

    /// What `take_over` would take over. Changes nothing.
    ///
    /// # Errors
    /// Why it would not, in words, as far as that can be told without trying.
    fn candidate(root: &Path, own: &str, who: Who) -> Result<Cgroups, String> {
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).ok_or("there is no cgroup v2")?;
        // An empty path would leave a slash at the end.
        let base: PathBuf = root.components().chain(Path::new(path.trim_start_matches('/')).components()).collect();
        let read = |name: &str| fs::read_to_string(base.join(name));
        let controllers = read("cgroup.controllers").map_err(|_| format!("{} is no cgroup v2", base.display()))?;
        let has = |wanted: &str| controllers.split_ascii_whitespace().any(|name| name == wanted);
        let (has_memory, has_pids) = (has("memory"), has("pids"));
        if !has_memory && !has_pids {
            return Err(format!("{} has neither the memory nor the pids controller", base.display()));
        }
        let Ok(kind) = read("cgroup.type") else {
            return Err(format!("{} is the root of the machine's groups, which is nobody's to take", base.display()));
        };
        if kind.trim() != "domain" {
            return Err(format!("{} is not a group that can be divided", base.display()));
        }
        if who.is_root && path != "/" && !is_marked_delegated(&base) {
            return Err(format!("{} is not delegated; a service says Delegate=yes", base.display()));
        }
        let procs = read("cgroup.procs").map_err(|error| error.to_string())?;
        if procs.split_ascii_whitespace().any(|word| word.parse() != Ok(who.pid)) {
            return Err(format!("{} holds other processes than Demi", base.display()));
        }
        Ok(Cgroups { base, has_memory, has_pids })
    }

    /// What a Demi that was killed has left: its guard has ended the processes, but not removed their groups.
    fn remove_leftovers(&self) {
        let is_run = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with(RUN));
        let entries = fs::read_dir(&self.base).into_iter().flatten().flatten();
        let groups: Vec<PathBuf> = entries.filter(is_run).map(|entry| entry.path()).collect();
        groups.iter().for_each(|group| kill(group));
        remove(groups);
    }

    /// Undoes `take_over` as far as that can be: a group that hands controllers down takes no process, so whoever starts
    /// the next Demi in it could not put that there.
    pub(crate) fn give_back(self, pid: u32) {
        let wanted = self.controllers("-");
        let gone = write(&self.base, "cgroup.subtree_control", &wanted)
            .and_then(|()| write(&self.base, "cgroup.procs", &pid.to_string()))
            .and_then(|()| fs::remove_dir(self.base.join(OWN)));
        if let Err(error) = gone {
            log::debug!("the control group {} stays divided: {error}", self.base.display());
        }
    }

    /// As `cgroup.subtree_control` takes them.
    fn controllers(&self, sign: &str) -> String {
        let names = [(self.has_memory, "memory"), (self.has_pids, "pids")];
        let words: Vec<String> =
            names.iter().filter(|(has, _)| *has).map(|(_, name)| format!("{sign}{name}")).collect();
        words.join(" ")
    }

    /// Which controllers hold the limits, for one line in the log.
    pub(crate) fn describe(&self) -> String {
        let what = match (self.has_memory, self.has_pids) {
            (true, true) => "memory and processes",
            (true, false) => "memory",
            _ => "processes",
        };
        format!("the kernel holds plugins to their limits of {what}, in control groups below {}", self.base.display())
    }

    /// The directory of a run's group.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.base.join(format!("{RUN}{name}"))
    }

    /// Makes a group for a run.
    ///
    /// # Errors
    /// If the kernel refuses the group or a limit; nothing is left of it then.
    pub(crate) fn open(&self, name: &str, limits: &Limits) -> io::Result<Group> {
        let path = self.path_of(name);
        fs::create_dir(&path)?;
        let opened = self
            .set(&path, limits)
            .and_then(|()| fs::OpenOptions::new().write(true).open(path.join("cgroup.procs")).map(OwnedFd::from));
        match opened {
            Ok(entrance) => Ok(Group { path, entrance }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    fn set(&self, path: &Path, limits: &Limits) -> io::Result<()> {
        // The soft limit is not for the kernel: above memory.high, without swap to give way to, a program all but stands
        // still and fails its health checks. It is to be asked to give some back and to go on meanwhile.
        if let (true, Some(max)) = (self.has_memory, limits.memory_max_mb) {
            write(path, "memory.max", &(max.value() * MEGABYTE).to_string())?;
            // All of it or nothing: half a tree is of no use to anybody. Kernels before 4.19 do not know it.
            let _ = write(path, "memory.oom.group", "1");
            // As much again, so that it can make room for others while it is idle; without a bound it would fill the
            // swap and never end. The file is missing where the kernel does not count swap.
            let _ = write(path, "memory.swap.max", &(max.value() * MEGABYTE).to_string());
        }
        if self.has_pids {
            let tasks_max = limits.processes_max.count().saturating_mul(TASKS_PER_PROCESS).max(TASKS_MIN);
            write(path, "pids.max", &tasks_max.to_string())?;
        }
        Ok(())
    }
}

/// Whether the control group that this process is in could be divided among plugins, on the machine whose `proc` and `sys`
/// lie below `root`. Changes nothing. Blocks for a moment.
///
/// # Errors
/// Why not, in words.
pub fn delegation(root: &Path) -> Result<(), String> {
    use rustix::fs::{access, Access};
    let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let who = Who { pid: std::process::id(), is_root: rustix::process::geteuid().is_root() };
    let base = Cgroups::candidate(&root.join("sys/fs/cgroup"), &own, who)?.base;
    let refused = |error| format!("{} is not delegated: {error}", base.display());
    let control = base.join("cgroup.subtree_control");
    access(&base, Access::WRITE_OK).and_then(|()| access(&control, Access::WRITE_OK)).map_err(refused)
}

/// What the kernel did in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Toll {
    /// How often it killed because memory was used up.
    pub(crate) oom_kills: u64,
    /// Whether the group was at its own limit of memory. If not, the machine or a group above had none left.
    pub(crate) is_over_memory: bool,
    /// How often it refused a process or thread.
    pub(crate) forks_refused: u64,
}

/// What the kernel did in this group since it was made.
pub(crate) fn toll(group: &Path) -> Toll {
    let read = |file: &str, key: &str| {
        let events = fs::read_to_string(group.join(file)).unwrap_or_default();
        let count = events.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        count.and_then(|text| text.trim().parse().ok()).unwrap_or(0u64)
    };
    Toll {
        oom_kills: read("memory.events", "oom_kill"),
        is_over_memory: read("memory.events", "oom") > 0,
        forks_refused: read("pids.events", "max"),
    }
}

/// Kills everything in a group. Kernels before 5.14 cannot; then the marker finds what is left.
pub(crate) fn kill(group: &Path) {
    let _ = write(group, "cgroup.kill", "1");
}

/// Removes groups once nothing is in them any more. Blocks for half a second at most, however many they are.
pub(crate) fn remove(mut groups: Vec<PathBuf>) {
    for _ in 0..REMOVALS_MAX {
        groups
            .retain(|group| remove_tree(group, DEPTH_MAX).is_err_and(|error| error.kind() != io::ErrorKind::NotFound));
        if groups.is_empty() {
            return;
        }
        std::thread::sleep(REMOVAL_PAUSE);
    }
    for group in groups {
        log::warn!("{}: the control group of a run that has ended cannot be removed", group.display());
    }
}

/// The files of a group cannot be removed, and need not be.
fn remove_tree(group: &Path, depth_max: u32) -> io::Result<()> {
    if depth_max > 0 {
        for entry in fs::read_dir(group)?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path(), depth_max - 1)?;
            }
        }
    }
    fs::remove_dir(group)
}

/// Writes to a file that the kernel has made: one that is not there is not made.
fn write(group: &Path, name: &str, text: &str) -> io::Result<()> {
    use std::io::Write;
    let path = group.join(name);
    let written = fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// What systemd marks a delegated group with.
fn is_marked_delegated(path: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0u8; 8];
        matches!(rustix::fs::getxattr(path, *name, &mut value), Ok(length) if value[..length].starts_with(b"1"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use demi_conductor::config::Bounded;

    const WHO: Who = Who { pid: 77, is_root: false };

    /// A directory that looks like a delegated group; the files that a kernel would make are made by the test.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> Fake {
            let path = std::env::temp_dir().join(format!("demi-cgroup-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            let fake = Fake(path);
            fake.group("a/b", &[("cgroup.controllers", "cpu memory pids\n"), ("cgroup.type", "domain\n")]);
            fake.group("a/b", &[("cgroup.procs", "77\n"), ("cgroup.subtree_control", "")]);
            fake.group("a/b/demi", &[("cgroup.procs", "")]);
            fake
        }

        fn group(&self, path: &str, files: &[(&str, &str)]) {
            let path = self.0.join(path);
            fs::create_dir_all(&path).expect("it can be written");
            for (name, text) in files {
                fs::write(path.join(name), text).expect("it can be written");
            }
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.join(path)).expect("it is there")
        }

        fn take_over(&self) -> Result<Cgroups, String> {
            Cgroups::take_over(&self.0, "1:name=systemd:/x\n0::/a/b\n", WHO)
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn demi_moves_to_a_leaf_and_hands_the_controllers_down() {
        let fake = Fake::new("leaf");
        let cgroups = fake.take_over().expect("it is delegated");
        assert_eq!(fake.read("a/b/demi/cgroup.procs"), "77");
        assert_eq!(fake.read("a/b/cgroup.subtree_control"), "+memory +pids");
        assert!(cgroups.describe().contains("memory and processes"));
    }

    /// Makes the files that a kernel would make with a group.
    fn set_limits(fake: &Fake, cgroups: &Cgroups, limits: &Limits) -> io::Result<()> {
        let kernel = [
            "memory.high",
            "memory.max",
            "memory.oom.group",
            "memory.swap.max",
            "pids.max",
            "cgroup.procs",
            "cgroup.kill",
        ];
        fake.group("a/b/demi-run-echo-0-1", &kernel.map(|name| (name, "")));
        cgroups.set(&cgroups.path_of("echo-0-1"), limits)
    }

    #[test]
    fn a_run_gets_a_group_with_its_limits() {
        let fake = Fake::new("limits");
        let cgroups = fake.take_over().expect("it is delegated");
        let limits = Limits { memory_soft_mb: Bounded::new(40), memory_max_mb: Bounded::new(60), ..Limits::default() };
        set_limits(&fake, &cgroups, &limits).expect("it is granted");
        let read = |name: &str| fake.read(&format!("a/b/demi-run-echo-0-1/{name}"));
        assert_eq!((read("memory.max"), read("memory.oom.group")), ("60000000".to_owned(), "1".to_owned()));
        assert_eq!(read("memory.swap.max"), "60000000", "the swap is no way out");
        assert_eq!(read("memory.high"), "", "nobody is made to stand still");
    }

    #[test]
    fn threads_are_not_held_to_the_limit_of_processes() {
        let fake = Fake::new("tasks");
        let cgroups = fake.take_over().expect("it is delegated");
        for (processes_max, tasks_max) in [(1, "256"), (20, "320"), (100_000, "1600000")] {
            let limits =
                Limits { processes_max: Bounded::new(processes_max).expect("it is in range"), ..Limits::default() };
            set_limits(&fake, &cgroups, &limits).expect("it is granted");
            assert_eq!(fake.read("a/b/demi-run-echo-0-1/pids.max"), tasks_max);
        }
    }

    #[test]
    fn what_the_kernel_did_in_a_group_is_read_from_its_counts() {
        let fake = Fake::new("toll");
        let group = fake.0.join("a/b");
        assert_eq!(toll(&group), Toll::default(), "without its files");
        fake.group(
            "a/b",
            &[("memory.events", "max 9\noom 2\noom_kill 3\noom_group_kill 1\n"), ("pids.events", "max 7\n")],
        );
        assert_eq!(toll(&group), Toll { oom_kills: 3, is_over_memory: true, forks_refused: 7 });
        fake.group("a/b", &[("memory.events", "max 0\noom 0\noom_kill 1\n")]);
        assert!(!toll(&group).is_over_memory, "the machine had no memory left");
    }

    #[test]
    fn what_a_killed_demi_left_is_removed_and_nothing_else_is() {
        let fake = Fake::new("leftovers");
        // Groups are directories that hold no files; the kernel's cannot be removed one by one.
        fake.group("a/b/demi-run-echo-0-7/made-by-the-plugin/deeper", &[]);
        fake.group("a/b/somebody", &[]);
        fake.take_over().expect("it is delegated");
        assert!(!fake.0.join("a/b/demi-run-echo-0-7").exists());
        assert!(fake.0.join("a/b/somebody").exists() && fake.0.join("a/b/demi").exists());
    }

    #[test]
    fn a_group_that_is_there_already_is_not_used_for_another_run() {
        let fake = Fake::new("again");
        let cgroups = fake.take_over().expect("it is delegated");
        fake.group("a/b/demi-run-echo-0-1", &[]);
        // Its counts would be those of the run before.
        assert!(cgroups.open("echo-0-1", &Limits::default()).is_err());
    }

    #[test]
    fn what_was_taken_over_is_given_back() {
        let fake = Fake::new("given-back");
        let cgroups = fake.take_over().expect("it is delegated");
        fs::remove_file(fake.0.join("a/b/demi/cgroup.procs")).expect("it is there");
        fs::write(fake.0.join("a/b/cgroup.procs"), "").expect("it can be written");
        cgroups.give_back(WHO.pid);
        assert_eq!(fake.read("a/b/cgroup.subtree_control"), "-memory -pids");
        assert_eq!(fake.read("a/b/cgroup.procs"), "77");
        assert!(!fake.0.join("a/b/demi").exists());
    }

    #[test]
    fn a_limit_that_is_refused_leaves_no_group_behind() {
        let fake = Fake::new("refused");
        let cgroups = fake.take_over().expect("it is delegated");
        // No such file: as where the controller was taken away meanwhile.
        assert!(cgroups.open("echo-0-1", &Limits::default()).is_err());
        assert!(!cgroups.path_of("echo-0-1").exists());
    }

    #[test]
    fn a_machine_without_the_memory_controller_still_has_its_processes_held() {
        let fake = Fake::new("no-memory");
        fake.group("a/b", &[("cgroup.controllers", "cpu pids\n")]);
        let cgroups = fake.take_over().expect("it is delegated");
        assert_eq!(fake.read("a/b/cgroup.subtree_control"), "+pids");
        set_limits(&fake, &cgroups, &Limits { memory_max_mb: Bounded::new(60), ..Limits::default() }).expect("granted");
        assert_eq!(fake.read("a/b/demi-run-echo-0-1/memory.max"), "");
    }

    #[test]
    fn whether_a_group_could_be_taken_over_is_told_without_touching_it() {
        let fake = Fake::new("candidate");
        let candidate = Cgroups::candidate(&fake.0, "0::/a/b\n", WHO).expect("it is delegated");
        assert!(candidate.has_memory && candidate.has_pids);
        assert_eq!(
            (fake.read("a/b/demi/cgroup.procs"), fake.read("a/b/cgroup.procs")),
            (String::new(), "77\n".to_owned())
        );
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let cases = [
            ("others", ("cgroup.procs", "77\n78\n"), "other processes"),
            ("none", ("cgroup.controllers", "cpu io\n"), "neither the memory"),
            ("threaded", ("cgroup.type", "threaded\n"), "divided"),
            ("invalid", ("cgroup.type", "domain invalid\n"), "divided"),
        ];
        for (name, file, why) in cases {
            let fake = Fake::new(name);
            fake.group("a/b", &[file]);
            let told = fake.take_over().expect_err(name);
            assert!(told.contains(why), "{told}");
            assert_eq!(fake.read("a/b/demi/cgroup.procs"), "");
        }
        let fake = Fake::new("machine");
        fs::remove_file(fake.0.join("a/b/cgroup.type")).expect("it is there");
        let told = fake.take_over().expect_err("the root of all groups has no type");
        assert!(told.contains("root of the machine"), "{told}");
        let fake = Fake::new("root");
        let told =
            Cgroups::take_over(&fake.0, "0::/a/b\n", Who { is_root: true, ..WHO }).expect_err("root may anything");
        assert!(told.contains("Delegate=yes"), "{told}");
        let told = Cgroups::take_over(&fake.0, "4:memory:/x\n", WHO).expect_err("version 1");
        assert!(told.contains("no cgroup v2"), "{told}");
    }

    #[test]
    fn demi_goes_back_if_the_controllers_cannot_be_handed_down() {
        let fake = Fake::new("back");
        fs::remove_file(fake.0.join("a/b/cgroup.subtree_control")).expect("it is there");
        fs::write(fake.0.join("a/b/cgroup.procs"), "").expect("it can be written");
        assert!(fake.take_over().is_err());
        assert_eq!(fake.read("a/b/cgroup.procs"), "77");
    }
}
