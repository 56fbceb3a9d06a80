//! Limits of the control groups that this process is in, and of all above them that can be seen from here.
//!
//! Where a group lies is told by two files: `/proc/self/cgroup` names it within its hierarchy, and `/proc/self/mountinfo`
//! says which part of the hierarchy is mounted where. In a container that may be its own part only, and the name may
//! still be the one that it has outside.

use std::path::{Path, PathBuf};

use super::{number, read, Missing, Stalls};

/// The version of control groups that has the memory controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller.
    One,
    /// One hierarchy for all.
    Two,
}

/// The control groups that this process is in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Groups {
    /// Which version counts memory; `None` if neither does.
    pub version: Option<Version>,
    /// Where version 2 is mounted, if it is.
    pub mounted: Option<PathBuf>,
    /// Those with a limit, the innermost first.
    pub levels: Vec<Level>,
}

/// A group with a limit of memory. Bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// Its directory, below the root that was given.
    pub path: PathBuf,
    /// What all in it may use together: the lower one, if it has one at which it is slowed and one at which it is ended.
    pub limit: u64,
    /// What they use, without what the kernel would take back before it ended anybody.
    pub used: u64,
    /// How long they stood still for want of memory.
    pub stalls: Result<Stalls, Missing>,
}

/// A part of a hierarchy that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// Which part.
    root: String,
    /// Where, below the root that was given.
    point: PathBuf,
}

/// Where control groups are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mounts {
    /// Version 2.
    two: Option<Mount>,
    /// The memory controller of version 1.
    one: Option<Mount>,
    /// What `/proc/meminfo` says was made up for a container (by lxcfs).
    pub(super) is_meminfo_made_up: bool,
}

impl Mounts {
    pub(super) fn find(root: &Path) -> Mounts {
        let text = read(&root.join("proc/self/mountinfo")).unwrap_or_default();
        let mut mounts = Mounts::default();
        // Number, parent, device, part, point, options and optional fields; then a dash, kind, source, options of the kind.
        for line in text.lines() {
            let Some((about, kind)) = line.split_once(" - ") else { continue };
            let mut about = about.split(' ').skip(3);
            let (Some(part), Some(point)) = (about.next(), about.next()) else { continue };
            let mut kind = kind.split(' ');
            let (kind, options) = (kind.next().unwrap_or_default(), kind.nth(1).unwrap_or_default());
            let mount = || Mount { root: part.to_owned(), point: root.join(point.trim_start_matches('/')) };
            match kind {
                "cgroup2" => mounts.two = mounts.two.or_else(|| Some(mount())),
                "cgroup" if options.split(',').any(|option| option == "memory") => {
                    mounts.one = mounts.one.or_else(|| Some(mount()));
                }
                _ => mounts.is_meminfo_made_up |= point == "/proc/meminfo",
            }
        }
        mounts
    }

    /// The groups with a limit, as they are now.
    pub(super) fn read(&self, root: &Path) -> Groups {
        let own = read(&root.join("proc/self/cgroup")).unwrap_or_default();
        let mut groups = Groups { mounted: self.two.as_ref().map(|two| two.point.clone()), ..Groups::default() };
        // Number, controllers, name.
        let name = |is_meant: fn(&str, &str) -> bool| {
            own.lines().find_map(|line| {
                let (number, rest) = line.split_once(':')?;
                let (controllers, name) = rest.split_once(':')?;
                is_meant(number, controllers).then_some(name)
            })
        };
        // A machine that counts memory in a hierarchy of version 1 does not count it in that of version 2.
        let one = self.one.as_ref().zip(name(|_, controllers| controllers.split(',').any(|name| name == "memory")));
        let two = self.two.as_ref().zip(name(|number, controllers| number == "0" && controllers.is_empty()));
        if let Some((mount, name)) = one {
            groups.version = Some(Version::One);
            groups.levels = mount.directories(name).into_iter().filter_map(level_one).collect();
        } else if let Some((mount, name)) = two.filter(|(mount, _)| counts_memory(&mount.point)) {
            groups.version = Some(Version::Two);
            groups.levels = mount.directories(name).into_iter().filter_map(level_two).collect();
        }
        groups
    }
}

impl Mount {
    /// The directories of a group and of all above it, the innermost first. One that is not there has no limit to be read.
    fn directories(&self, name: &str) -> Vec<PathBuf> {
        let below = Path::new(name).strip_prefix(&self.root).unwrap_or(Path::new(""));
        // A name may lead out of what is mounted, which says nothing of where it leads.
        let is_plain = |below: &&Path| below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        let below = Some(below).filter(is_plain).unwrap_or(Path::new(""));
        below.ancestors().map(|part| self.point.join(part)).collect()
    }
}

/// Whether memory is counted below the place where version 2 is mounted.
fn counts_memory(point: &Path) -> bool {
    read(&point.join("cgroup.controllers"))
        .is_ok_and(|names| names.split_ascii_whitespace().any(|name| name == "memory"))
}

fn level_two(path: PathBuf) -> Option<Level> {
    let value = |file: &str| read(&path.join(file)).ok()?.trim().parse::<u64>().ok();
    // Above memory.high a group is slowed until it all but stands still.
    let limit = [value("memory.max"), value("memory.high")].into_iter().flatten().min()?;
    let inactive = number(&read(&path.join("memory.stat")).ok()?, "inactive_file")?;
    let used = value("memory.current")?.saturating_sub(inactive);
    let stalls = read(&path.join("memory.pressure")).and_then(|text| Stalls::parse(&text).ok_or(Missing::Garbled));
    Some(Level { path, limit, used, stalls })
}

fn level_one(path: PathBuf) -> Option<Level> {
    let value = |file: &str| read(&path.join(file)).ok()?.trim().parse::<u64>().ok();
    let stat = read(&path.join("memory.stat")).ok()?;
    // That of the groups above, which a container does not see, holds as well.
    let limits = [value("memory.limit_in_bytes"), number(&stat, "hierarchical_memory_limit")];
    let limit = limits.into_iter().flatten().min().filter(|limit| *limit < UNLIMITED)?;
    let used = value("memory.usage_in_bytes")?.saturating_sub(number(&stat, "total_inactive_file")?);
    Some(Level { path, limit, used, stalls: Err(Missing::Absent) })
}

/// What version 1 says where there is no limit: the highest number that it can count to, in whole pages of whatever size
/// this machine's have; before Linux 3.19 it counted farther. Nobody has an exbibyte.
const UNLIMITED: u64 = 1 << 60;

#[cfg(test)]
mod tests {
    use super::super::tests::{recorded, Made};
    use super::super::Reader;
    use super::*;

    fn bounds(groups: &Groups) -> Vec<(u64, u64)> {
        groups.levels.iter().map(|level| (level.limit, level.used)).collect()
    }

    #[test]
    fn a_container_is_held_to_the_limit_of_the_group_above_its_own() {
        let groups = Reader::new(&recorded("container-v2")).read().groups;
        assert_eq!(bounds(&groups), [(536_870_912, 429_496_729 - 107_374_182)]);
        assert!(groups.levels[0].path.ends_with("sys/fs/cgroup"), "{groups:?}");
    }

    #[test]
    fn the_group_that_is_mounted_is_the_containers_own_whatever_it_is_named_outside() {
        let groups = Reader::new(&recorded("container-v1")).read().groups;
        assert_eq!(bounds(&groups), [(268_435_456, 201_326_592 - 67_108_864)]);
        assert_eq!(groups.levels[0].stalls, Err(Missing::Absent));
    }

    const TWO: (&str, &str) = ("proc/self/mountinfo", "1 2 0:3 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n");
    const ONE: (&str, &str) =
        ("proc/self/mountinfo", "1 2 0:3 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,cpu,memory\n");

    #[test]
    fn every_group_up_to_the_mount_is_looked_at() {
        let stat = "inactive_file 10\n";
        let groups = Made::new(
            "above",
            &[
                TWO,
                ("proc/self/cgroup", "0::/a/b/c\n"),
                ("sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
                ("sys/fs/cgroup/a/b/memory.max", "300"),
                ("sys/fs/cgroup/a/b/memory.high", "200\n"),
                ("sys/fs/cgroup/a/b/memory.current", "5\n"),
                ("sys/fs/cgroup/a/b/memory.stat", stat),
                ("sys/fs/cgroup/a/memory.max", "max\n"),
                ("sys/fs/cgroup/a/memory.high", "400\n"),
                ("sys/fs/cgroup/a/memory.current", "390\n"),
                ("sys/fs/cgroup/a/memory.stat", stat),
            ],
        );
        assert_eq!(bounds(&groups.signals().groups), [(200, 0), (400, 380)]);
        groups.write("sys/fs/cgroup/a/memory.current", "garbage\n");
        groups.write("sys/fs/cgroup/a/b/memory.stat", "");
        assert_eq!(bounds(&groups.signals().groups), [], "what is used below a limit must be known");
    }

    #[test]
    fn version_1_says_by_an_enormous_number_that_there_is_no_limit() {
        for (own, above, expected) in [
            ("9223372036854771712", "9223372036854771712", None),
            ("9223372036854710272", "9223372036854710272", None),
            ("18446744073709551615", "18446744073709551615", None),
            ("9223372036854771712", "4096", Some(4096)),
            ("512", "4096", Some(512)),
        ] {
            let groups = Made::new(
                "unlimited",
                &[
                    ONE,
                    ("proc/self/cgroup", "4:cpu,memory:/x\n0::/\n"),
                    ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", own),
                    ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "100\n"),
                    (
                        "sys/fs/cgroup/memory/x/memory.stat",
                        &format!("hierarchical_memory_limit {above}\ntotal_inactive_file 40\n"),
                    ),
                ],
            )
            .signals()
            .groups;
            assert_eq!(bounds(&groups).first().copied(), expected.map(|limit| (limit, 60)), "{own} {above}");
            assert_eq!(groups.version, Some(Version::One));
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_stands_for_the_place_of_the_mount() {
        let mount = Mount { root: "/pod/x".to_owned(), point: PathBuf::from("/m") };
        let directories = |name: &str| mount.directories(name);
        assert_eq!(directories("/pod/x"), [PathBuf::from("/m/")]);
        assert_eq!(directories("/pod/x/y"), [PathBuf::from("/m/y"), PathBuf::from("/m/")]);
        for name in ["/pod/xy", "/other", "/pod/x/../z", "", "../.."] {
            assert_eq!(directories(name), [PathBuf::from("/m/")], "{name}");
        }
    }
}
