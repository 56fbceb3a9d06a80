//! From the signals that there are to the figures that are decided by.
//!
//! | bound | total | used |
//! |---|---|---|
//! | the machine | `MemTotal` | all but `MemAvailable` and what ZFS would give back |
//! | each control group with a limit below that | the limit | what the group uses, without files that nobody used lately |
//! | a total that is given, in place of the machine | that | resident memory of Demi and its children |
//!
//! The one of which the largest share is used is the one that is reached first. What is left is told of all of them, for
//! what is to be started has to fit within each.

use demi_conductor::{Pressure, RamSource};

use super::{Meminfo, Signals, Stalls, Version};

/// A total that someone gives, for containers whose `/proc/meminfo` tells of the host, and for tests. It takes the place of
/// the machine's: who else uses the machine does not matter then. Limits of control groups below it still hold. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// What there is.
    pub total: u64,
    /// Resident memory of Demi and of all that descends from it; what processes share counts for each, so this is at least
    /// what they use.
    pub used: u64,
}

/// What there is of memory, and what of it is left. Bytes; see [`demi_conductor::Sample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ram {
    /// All that may be used.
    pub total: u64,
    /// What is left of that.
    pub available: u64,
    /// Where these two come from.
    pub source: RamSource,
    /// The least that any bound leaves.
    pub headroom: u64,
    /// All that may be used of that bound.
    pub headroom_total: u64,
    /// The lowest limit below what the machine has.
    pub limit: Option<u64>,
    /// What of the machine's available memory ZFS would give back.
    pub arc_reclaimable: u64,
}

#[derive(Clone, Copy)]
struct Bound {
    total: u64,
    available: u64,
    source: RamSource,
}

impl Bound {
    fn of(total: u64, used: u64, source: RamSource) -> Bound {
        Bound { total, available: total.saturating_sub(used), source }
    }

    /// Whether a larger share of it is used than of another.
    fn is_closer_than(&self, other: &Bound) -> bool {
        // a/b < c/d, without dividing.
        u128::from(self.available) * u128::from(other.total) < u128::from(other.available) * u128::from(self.total)
    }
}

impl Signals {
    /// What there is of memory. `None` if there is neither a machine nor a total to go by, or if what is given makes no
    /// sense.
    pub fn ram(&self, given: Option<Given>) -> Option<Ram> {
        let machine = self.meminfo.ok();
        let arc_reclaimable = machine.map_or(0, |memory| self.arc_of(&memory));
        let machine = machine.map(|memory| Bound {
            total: memory.total,
            available: memory.available + arc_reclaimable,
            source: memory.source,
        });
        let base = match given {
            Some(Given { total, used }) if total > 0 && used > 0 => Bound::of(total, used, RamSource::Configured),
            Some(_) => return None,
            None => machine?,
        };
        let source = match self.groups.version {
            Some(Version::One) => RamSource::CgroupV1,
            _ => RamSource::CgroupV2,
        };
        // A limit that is higher is none, and one of 0 says nothing.
        let levels = self.groups.levels.iter().filter(|level| (1..base.total).contains(&level.limit));
        let bounds: Vec<Bound> = levels.map(|level| Bound::of(level.limit, level.used, source)).collect();
        let first = bounds.iter().fold(base, |first, bound| if bound.is_closer_than(&first) { *bound } else { first });
        // Of the machine as well if its place is taken: what it has not cannot be had.
        let all = std::iter::once(&first).chain(&bounds).chain(&machine);
        let narrowest = all.fold(first, |left, bound| if bound.available < left.available { *bound } else { left });
        let lowest = bounds.iter().map(|bound| bound.total).min();
        Some(Ram {
            total: first.total,
            available: first.available,
            source: first.source,
            headroom: narrowest.available,
            headroom_total: narrowest.total,
            limit: lowest.or(given.map(|given| given.total)),
            arc_reclaimable,
        })
    }

    /// What ZFS would give back. Of a cache that is larger than all that is used it is not the machine of which
    /// `/proc/meminfo` tells.
    fn arc_of(&self, memory: &Meminfo) -> u64 {
        let arc = self.arc.ok().filter(|arc| arc.size < memory.total - memory.available);
        arc.map_or(0, |arc| arc.reclaimable())
    }

    /// How much work stands still for want of memory: of the machine, or of a control group with a limit if that is worse.
    pub fn pressure(&self) -> Option<Pressure> {
        let of = |stalls: Stalls| Pressure {
            some_permille: stalls.some.avg10_permille,
            full_permille: stalls.full.avg10_permille,
        };
        let levels = self.groups.levels.iter().map(|level| level.stalls);
        levels.chain([self.stalls]).flatten().map(of).max()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::recorded;
    use super::super::{Arc, Groups, Level, Missing, Reader, Stall};
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A machine of 8 GiB, 2 of which are available, without anything else.
    fn machine() -> Signals {
        Signals {
            meminfo: Ok(Meminfo {
                total: 8 * GIB,
                available: 2 * GIB,
                source: RamSource::MemAvailable,
                swap_total: 0,
                swap_free: 0,
            }),
            arc: Err(Missing::Absent),
            stalls: Err(Missing::Absent),
            groups: Groups::default(),
        }
    }

    fn level(limit: u64, used: u64) -> Level {
        Level { path: "/x".into(), limit, used, stalls: Err(Missing::Absent) }
    }

    fn limited(levels: Vec<Level>) -> Signals {
        Signals { groups: Groups { version: Some(Version::Two), mounted: None, levels }, ..machine() }
    }

    fn stalls(some: u32, full: u32) -> Stalls {
        let stall = |avg10_permille| Stall { avg10_permille, total_us: 0 };
        Stalls { some: stall(some), full: stall(full) }
    }

    #[test]
    fn each_recorded_machine_has_its_figures_from_the_best_that_it_tells() {
        for (name, source, total, available, limit) in [
            ("raspberry-pi-os", RamSource::MemAvailable, 944_264 * 1024, 402_176 * 1024, None),
            ("container-v2", RamSource::CgroupV2, 536_870_912, 536_870_912 - 322_122_547, Some(536_870_912)),
            ("container-v1", RamSource::CgroupV1, 268_435_456, 268_435_456 - 134_217_728, Some(268_435_456)),
            ("zfs-server", RamSource::MemAvailable, 16_265_800 * 1024, 2_440_336 * 1024 + 7_600_000_000, None),
            ("old-kernel", RamSource::Estimate, 253_672 * 1024, 150_112 * 1024, None),
        ] {
            let ram = Reader::new(&recorded(name)).read().ram(None).expect("it can be told");
            assert_eq!((ram.source, ram.total, ram.available, ram.limit), (source, total, available, limit), "{name}");
            assert_eq!(ram.headroom, available, "{name}");
        }
    }

    #[test]
    fn the_bound_of_which_the_largest_share_is_used_is_told_with_the_least_that_any_leaves() {
        for (levels, source, total, available, headroom, limit) in [
            (vec![], RamSource::MemAvailable, 8 * GIB, 2 * GIB, 2 * GIB, None),
            // Of the machine three quarters are used, of the group less, and yet it leaves less.
            (vec![level(GIB, GIB / 2)], RamSource::MemAvailable, 8 * GIB, 2 * GIB, GIB / 2, Some(GIB)),
            (vec![level(GIB, GIB / 8 * 7)], RamSource::CgroupV2, GIB, GIB / 8, GIB / 8, Some(GIB)),
            (vec![level(GIB, 2 * GIB)], RamSource::CgroupV2, GIB, 0, 0, Some(GIB)),
            (vec![level(4 * GIB, 4 * GIB - 1), level(GIB, 0)], RamSource::CgroupV2, 4 * GIB, 1, 1, Some(GIB)),
            // None of these is a limit.
            (vec![level(8 * GIB, 8 * GIB), level(0, 0)], RamSource::MemAvailable, 8 * GIB, 2 * GIB, 2 * GIB, None),
        ] {
            let ram = limited(levels.clone()).ram(None).expect("it can be told");
            let told = (ram.source, ram.total, ram.available, ram.headroom, ram.limit);
            assert_eq!(told, (source, total, available, headroom, limit), "{levels:?}");
            let narrowest = if headroom == available { total } else { GIB };
            assert_eq!(ram.headroom_total, narrowest, "{levels:?}");
        }
    }

    #[test]
    fn a_total_that_is_given_takes_the_place_of_the_machine_but_not_of_a_lower_limit() {
        let given = |total, used| Some(Given { total, used });
        let ram = machine().ram(given(GIB, GIB / 4)).expect("it can be told");
        assert_eq!((ram.source, ram.total, ram.available), (RamSource::Configured, GIB, GIB / 4 * 3));
        assert_eq!((ram.headroom, ram.limit), (GIB / 4 * 3, Some(GIB)));
        let ram = machine().ram(given(100 * GIB, GIB)).expect("it can be told");
        let told = (ram.available, ram.headroom, ram.headroom_total);
        assert_eq!(told, (99 * GIB, 2 * GIB, 8 * GIB), "what the machine has not cannot be had");
        let ram = limited(vec![level(GIB, GIB / 2)]).ram(given(2 * GIB, GIB / 2)).expect("it can be told");
        assert_eq!((ram.source, ram.available, ram.limit), (RamSource::CgroupV2, GIB / 2, Some(GIB)));
        let without = Signals { meminfo: Err(Missing::Denied), ..machine() };
        assert_eq!(without.ram(given(GIB, GIB)).map(|ram| (ram.available, ram.headroom)), Some((0, 0)));
    }

    #[test]
    fn what_makes_no_sense_is_not_told() {
        let without = Signals { meminfo: Err(Missing::Garbled), ..limited(vec![level(GIB, 1)]) };
        assert_eq!(without.ram(None), None, "nobody knows whether the limit is one");
        assert_eq!(machine().ram(Some(Given { total: 0, used: 1 })), None);
        assert_eq!(machine().ram(Some(Given { total: GIB, used: 0 })), None, "Demi itself uses some");
    }

    #[test]
    fn a_cache_of_zfs_that_cannot_be_in_what_is_used_is_that_of_another_machine() {
        let with = |size| Signals { arc: Ok(Arc { size, min: GIB }), ..machine() };
        assert_eq!(with(5 * GIB).ram(None).map(|ram| (ram.available, ram.arc_reclaimable)), Some((6 * GIB, 4 * GIB)));
        assert_eq!(with(6 * GIB).ram(None).map(|ram| (ram.available, ram.arc_reclaimable)), Some((2 * GIB, 0)));
    }

    #[test]
    fn pressure_is_that_of_the_machine_or_of_the_group_whichever_is_worse() {
        let with = |group, machine| {
            let levels = vec![Level { stalls: group, ..level(GIB, 0) }];
            Signals { stalls: machine, ..limited(levels) }.pressure().map(|pressure| pressure.some_permille)
        };
        assert_eq!(with(Ok(stalls(20, 9)), Ok(stalls(10, 10))), Some(20));
        assert_eq!(with(Ok(stalls(5, 0)), Ok(stalls(10, 0))), Some(10));
        assert_eq!(with(Err(Missing::Absent), Ok(stalls(10, 0))), Some(10));
        assert_eq!(with(Err(Missing::Off), Err(Missing::Off)), None);
    }
}
