//! What the machine tells of its memory, and what it could tell.

use std::fs;
use std::path::Path;

use demi::conductor::RamSource;
use demi::gauge::{Missing, Signals, Version};

use super::boot::Boot;
use super::{megabytes, Check};

/// A machine with more than this has room for what lies idle.
const SMALL_BYTES_MAX: u64 = 4 << 30;

pub(super) fn look(root: &Path, signals: &Signals) -> Vec<Check> {
    let boot = Boot::of(root);
    let mut checks = vec![memory(signals), limit(root, signals), pressure(signals, &boot)];
    checks.push(groups(root, signals, &boot));
    checks.extend(delegation(root, signals));
    checks.extend(swap(signals));
    checks.extend(zfs(signals));
    checks
}

fn memory(signals: &Signals) -> Check {
    match signals.meminfo {
        Ok(memory) => {
            let seen = format!("{} of {} available", megabytes(memory.available), megabytes(memory.total));
            match memory.source {
                RamSource::Estimate => Check::note(
                    "memory",
                    format!("{seen}, by an estimate: this kernel does not say it"),
                    "a kernel from Linux 3.14 on says it (MemAvailable in /proc/meminfo)",
                ),
                _ => Check::ok("memory", format!("{seen}, as the kernel says")),
            }
        }
        Err(missing) => Check::fail(
            "memory",
            format!("/proc/meminfo {missing}"),
            "let this user read it (mount -t proc proc /proc); until then nothing is decided by memory",
        ),
    }
}

fn limit(root: &Path, signals: &Signals) -> Check {
    let total = signals.meminfo.map_or(u64::MAX, |memory| memory.total);
    let levels = signals.groups.levels.iter().filter(|level| level.limit < total);
    match levels.min_by_key(|level| level.limit) {
        Some(level) => {
            let path = Path::new("/").join(level.path.strip_prefix(root).unwrap_or(&level.path));
            let (limit, used) = (megabytes(level.limit), megabytes(level.used));
            Check::ok("limit", format!("{limit}, {used} of it used, in {}", path.display()))
        }
        None => Check::ok("limit", "no control group that can be seen from here is held to less than the machine has"),
    }
}

fn pressure(signals: &Signals, boot: &Boot<'_>) -> Check {
    const NAME: &str = "pressure";
    let seen = match (signals.stalls, signals.pressure()) {
        (Ok(_), Some(pressure)) => {
            let percent = |permille: u32| f64::from(permille) / 10.0;
            let (some, full) = (percent(pressure.some_permille), percent(pressure.full_permille));
            return Check::ok(
                NAME,
                format!("some work stood still for memory {some:.1} % of the time, all {full:.1} %"),
            );
        }
        (Err(missing), _) => format!("/proc/pressure/memory {missing}"),
        (Ok(_), None) => "/proc/pressure/memory says nothing".to_owned(),
    };
    let remedy = match signals.stalls {
        Err(Missing::Denied) => "let this user read it; a container needs /proc/pressure of its host".to_owned(),
        Err(Missing::Garbled) => "a kernel from Linux 4.20 on tells of it there".to_owned(),
        _ if boot.is_before((4, 20)) => "it takes a kernel from Linux 4.20 on".to_owned(),
        _ if boot.was_told("psi=0") => boot.no_more("psi=0"),
        _ if boot.was_told("psi=1") => {
            "the kernel was told psi=1 and cannot do it; it takes one that is built with CONFIG_PSI=y (Linux 4.20)"
                .to_owned()
        }
        _ => boot.tell("psi=1"),
    };
    Check::note(NAME, format!("{seen}: memory alone tells of trouble, and later"), remedy)
}

/// Whether control groups count memory. Where they do not, no limit can be seen, and plugins are held to theirs by Demi once
/// a second instead of by the kernel at once.
fn groups(root: &Path, signals: &Signals, boot: &Boot<'_>) -> Check {
    const NAME: &str = "control groups";
    if let Some(version) = signals.groups.version {
        return match version {
            Version::Two => Check::ok(NAME, "version 2 counts memory"),
            Version::One => Check::note(
                NAME,
                "version 1 counts memory: limits are seen, and plugins cannot be held to theirs by the kernel",
                boot.tell("systemd.unified_cgroup_hierarchy=1"),
            ),
        };
    }
    if signals.groups.mounted.is_none() {
        let remedy = match boot.is_before((4, 5)) {
            true => "it takes a kernel from Linux 4.5 on",
            false => "as root, if nothing else is mounted there:\n  mount -t cgroup2 none /sys/fs/cgroup",
        };
        return Check::note(
            NAME,
            "version 2 is not mounted: no limit can be seen, and the kernel holds nobody to one",
            remedy,
        );
    }
    let (enable, pi) = ("cgroup_enable=memory", "cgroup_memory=1");
    let table = fs::read_to_string(root.join("proc/cgroups")).unwrap_or_default();
    // Name, hierarchy, number of groups, whether it is on.
    let is_on = table.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "memory").then(|| words.nth(2)).flatten().map(|word| word == "1")
    });
    let remedy = if is_on == Some(true) {
        "whoever made the group at the top hands the memory controller down, for one by this, as root there:\n  \
         echo +memory >> /sys/fs/cgroup/cgroup.subtree_control"
            .to_owned()
    } else if boot.was_told(enable) {
        "the kernel was told cgroup_enable=memory and cannot do it; it takes one that is built with CONFIG_MEMCG=y"
            .to_owned()
    } else if boot.is_raspberry_pi {
        // The firmware itself says cgroup_disable=memory, which these outdo.
        boot.tell(&format!("{enable} {pi}"))
    } else if boot.was_told("cgroup_disable=memory") {
        boot.no_more("cgroup_disable=memory")
    } else {
        boot.tell(enable)
    };
    let seen = "memory is not among the controllers: no limit can be seen, and the kernel holds no plugin to one";
    Check::note(NAME, seen, remedy)
}

/// Whether the kernel could hold plugins to their limits, as far as that can be told from here.
fn delegation(root: &Path, signals: &Signals) -> Option<Check> {
    if signals.groups.version != Some(Version::Two) {
        return None;
    }
    Some(match demi::delegation(root) {
        Ok(()) => Check::ok("delegation", "Demi may give plugins control groups of their own"),
        Err(why) => Check::note(
            "delegation",
            format!("not where this command runs: {why}"),
            "what matters is where Demi runs; below [Service] of its unit, of the system or of a user, belongs:\n  Delegate=yes",
        ),
    })
}

fn swap(signals: &Signals) -> Option<Check> {
    let memory = signals.meminfo.ok()?;
    if memory.swap_total > 0 {
        let (used, total) = (megabytes(memory.swap_used()), megabytes(memory.swap_total));
        return Some(Check::ok("swap", format!("{used} of {total} in use")));
    }
    // In a container whose limit holds it, swap is not the one thing that is missing.
    let is_small = memory.total <= SMALL_BYTES_MAX && signals.groups.levels.is_empty();
    Some(match is_small {
        false => Check::ok("swap", "none"),
        true => Check::note(
            "swap",
            format!("none, and {} of memory: what lies idle cannot make room", megabytes(memory.total)),
            "compressed swap in memory needs no disk; with systemd-zram-generator this makes half of the memory such, in \
             /etc/systemd/zram-generator.conf:\n  [zram0]\n  zram-size = ram / 2",
        ),
    })
}

fn zfs(signals: &Signals) -> Option<Check> {
    match signals.arc {
        Ok(_) => {
            let counted = signals.ram(None).map_or(0, |ram| ram.arc_reclaimable);
            Some(Check::ok("zfs", format!("{} of its cache (ARC) count as available", megabytes(counted))))
        }
        Err(Missing::Absent) => None,
        Err(missing) => Some(Check::note(
            "zfs",
            format!("/proc/spl/kstat/zfs/arcstats {missing}: its cache counts as used"),
            "let this user read it",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use demi::gauge::Reader;

    fn told(name: &str, files: &[(&str, &str)], check: &str) -> String {
        let root = std::env::temp_dir().join(format!("demi-doctor-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for (file, text) in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("it is below the root")).expect("it can be written");
            fs::write(path, text).expect("it can be written");
        }
        let checks = look(&root, &Reader::new(&root).read());
        let _ = fs::remove_dir_all(&root);
        let check = checks.into_iter().find(|found| found.name == check).expect("it is told");
        check.remedy.unwrap_or_default()
    }

    #[test]
    fn a_line_that_was_added_and_did_not_help_is_not_told_again() {
        let old = [("proc/cmdline", "quiet"), ("proc/sys/kernel/osrelease", "4.19.0-5-amd64\n")];
        assert!(told("psi-old", &old, "pressure").ends_with("from Linux 4.20 on"));
        for (line, expected) in
            [("psi=1", "CONFIG_PSI=y"), ("psi=0", "take this off the kernel command line"), ("quiet", "\n  psi=1")]
        {
            let remedy = told("psi", &[("proc/cmdline", line)], "pressure");
            assert!(remedy.contains(expected), "{line}: {remedy}");
        }
    }

    #[test]
    fn why_memory_is_not_counted_decides_what_is_to_be_done() {
        const MOUNT: (&str, &str) = ("proc/self/mountinfo", "1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        const CONTROLLERS: (&str, &str) = ("sys/fs/cgroup/cgroup.controllers", "cpu pids\n");
        let off = ("proc/cgroups", "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t1\t0\n");
        let on = ("proc/cgroups", "memory\t0\t80\t1\n");
        for (files, expected) in [
            (vec![], "mount -t cgroup2"),
            (vec![MOUNT, CONTROLLERS], "\n  cgroup_enable=memory"),
            (vec![MOUNT, CONTROLLERS, off], "\n  cgroup_enable=memory"),
            (vec![MOUNT, CONTROLLERS, on], "cgroup.subtree_control"),
            (vec![MOUNT, CONTROLLERS, off, ("proc/cmdline", "cgroup_disable=memory")], "take this off"),
            (vec![MOUNT, CONTROLLERS, off, ("proc/cmdline", "cgroup_enable=memory")], "CONFIG_MEMCG=y"),
        ] {
            let remedy = told("groups", &files, "control groups");
            assert!(remedy.contains(expected), "{files:?}: {remedy}");
        }
    }
}
