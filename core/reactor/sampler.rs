//! Measures the machine for the clerk. Memory and pressure are read where the kernel tells of them (`gauge.rs`); the load
//! of the cores, and memory where there is no `/proc/meminfo`, is told by sysinfo.

use std::path::{Path, PathBuf};

use demi_conductor::{RamSource, Sample, MEGABYTE};
use sysinfo::{MemoryRefreshKind, System};

use crate::chronicle::unix_ms;
use crate::gauge::{Given, Meminfo, Missing, Reader, Signals};
use crate::procfs::Procfs;

/// Most processes that are looked at to find what Demi and its children use.
const PROCESSES_MAX: usize = 16_384;
/// A clock that shows a date before 2020 was never set: small machines without a battery begin in 1970.
const CLOCK_UNSET_BELOW_MS: u64 = 1_577_836_800_000;

/// What is measured.
pub(crate) struct Site {
    /// Where `proc` and `sys` are.
    pub(crate) root: PathBuf,
    /// What Demi and its children may use together; `None`: as much as the machine and the control groups grant.
    pub(crate) ram_total_mb: Option<u64>,
    /// The directory of the store.
    pub(crate) data: PathBuf,
}

/// Takes samples.
pub(crate) struct Sampler {
    site: Site,
    reader: Reader,
    proc: Procfs,
    pid: u32,
    page_bytes: u64,
    /// `None` on a kernel that sysinfo cannot read; that was logged once.
    system: Option<System>,
    /// That there is nothing to go by was told, and has not changed since.
    is_blind: bool,
}

impl Sampler {
    /// Blocks for a moment.
    pub(crate) fn new(site: Site) -> Sampler {
        let system = System::new().map_err(|error| log::warn!("the load of the machine cannot be measured: {error}"));
        Sampler {
            reader: Reader::new(&site.root),
            proc: Procfs::new(&site.root.join("proc")),
            pid: std::process::id(),
            page_bytes: rustix::param::page_size() as u64,
            system: system.ok(),
            is_blind: false,
            site,
        }
    }

    /// Blocks for some tenths of a millisecond. `None` if there is nothing that makes sense, which is told once until
    /// there is again: no figures are better than wrong ones.
    pub(crate) fn measure(&mut self) -> Option<Sample> {
        let mut signals = self.reader.read();
        let mut cpu_permille = 0;
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            cpu_permille = (system.global_cpu_usage() * 10.0).clamp(0.0, 1000.0) as u32;
            if signals.meminfo == Err(Missing::Absent) {
                signals.meminfo = told_by(system);
            }
        }
        let total = self.site.ram_total_mb.map(|total| total.saturating_mul(MEGABYTE));
        let given = total.map(|total| Given { total, used: self.used() });
        let ram = signals.ram(given);
        self.tell(&signals, ram.is_none());
        let ram = ram?;
        let swap = signals.meminfo.map_or((0, 0), |memory| (memory.swap_used(), memory.swap_total));
        Some(Sample {
            ram_available: ram.available,
            ram_total: ram.total,
            ram_source: ram.source,
            ram_headroom: ram.headroom,
            ram_headroom_total: ram.headroom_total,
            ram_limit: ram.limit,
            arc_reclaimable: ram.arc_reclaimable,
            pressure: signals.pressure(),
            swap_used: swap.0,
            swap_total: swap.1,
            cpu_permille,
            own_rss: self.proc.stat(self.pid).map_or(0, |stat| stat.rss_pages * self.page_bytes),
            disk_free: disk_free(&self.site.data),
            date_s: date_s(unix_ms()),
        })
    }

    fn tell(&mut self, signals: &Signals, is_blind: bool) {
        match (is_blind, self.is_blind) {
            (true, false) => {
                let what = match signals.meminfo {
                    Err(missing) => format!("/proc/meminfo {missing}"),
                    Ok(_) => "what Demi and its children use cannot be read".to_owned(),
                };
                log::warn!("memory cannot be measured: {what}; decisions go without it, see `demi doctor`");
            }
            (false, true) => log::info!("memory is measured again"),
            (true, true) | (false, false) => {}
        }
        self.is_blind = is_blind;
    }

    /// Resident memory of Demi and of all that descends from it; 0 if not even its own can be read.
    fn used(&mut self) -> u64 {
        let (mut left, mut pages, mut seen) = (vec![self.pid], 0, 0);
        while let Some(pid) = left.pop().filter(|_| seen < PROCESSES_MAX) {
            seen += 1;
            let Some(stat) = self.proc.stat(pid).filter(|stat| !stat.is_zombie) else { continue };
            pages += stat.rss_pages;
            self.proc.children(pid, stat.threads, &mut left);
        }
        pages * self.page_bytes
    }
}

/// Memory as sysinfo tells it, if that makes sense.
fn told_by(system: &mut System) -> Result<Meminfo, Missing> {
    system.refresh_memory_specifics(MemoryRefreshKind::everything());
    let memory = Meminfo {
        total: system.total_memory(),
        available: system.available_memory(),
        source: RamSource::System,
        swap_total: system.total_swap(),
        swap_free: system.free_swap().min(system.total_swap()),
    };
    Some(memory).filter(|memory| memory.available < memory.total).ok_or(Missing::Absent)
}

/// Seconds since 1970; `None` of a clock that cannot be right.
fn date_s(unix_ms: u64) -> Option<u64> {
    (unix_ms >= CLOCK_UNSET_BELOW_MS).then_some(unix_ms / 1000)
}

fn disk_free(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gauge::tests::{recorded, Made};

    fn sampler(root: &Path, ram_total_mb: Option<u64>) -> Sampler {
        Sampler::new(Site { root: root.to_owned(), ram_total_mb, data: std::env::temp_dir() })
    }

    #[test]
    fn the_machine_has_memory_and_this_process_uses_some() {
        let sample = sampler(Path::new("/"), None).measure().expect("this kernel can be read");
        assert!(sample.ram_total > 0 && sample.ram_available <= sample.ram_total, "{sample:?}");
        assert!(sample.ram_headroom <= sample.ram_available, "{sample:?}");
        assert!(sample.own_rss > 0 && sample.own_rss < sample.ram_total, "{sample:?}");
        assert!(sample.disk_free.is_some_and(|free| free > 0), "{sample:?}");
        assert_eq!(sample.date_s, date_s(sample.date_s.expect("the clock of this machine is set") * 1000));
    }

    #[test]
    fn a_clock_that_was_never_set_shows_no_date() {
        assert_eq!([0, 86_400_000, 1_577_836_799_999].map(date_s), [None; 3]);
        assert_eq!(date_s(1_577_836_800_999), Some(1_577_836_800));
    }

    #[test]
    fn a_sample_says_where_its_figures_come_from() {
        let sample = sampler(&recorded("container-v2"), None).measure().expect("it can be told");
        let pressure = sample.pressure.expect("its group tells");
        assert_eq!((sample.ram_source, sample.ram_limit), (RamSource::CgroupV2, Some(536_870_912)));
        assert_eq!((pressure.some_permille, pressure.full_permille, sample.swap_total), (123, 31, 0));
        let sample = sampler(&recorded("zfs-server"), None).measure().expect("it can be told");
        assert_eq!((sample.ram_source, sample.arc_reclaimable), (RamSource::MemAvailable, 7_600_000_000));
    }

    #[test]
    fn of_a_total_that_is_given_demi_and_all_that_descends_from_it_use_some() {
        let stat =
            |pid: u32, pages: u64| format!("{pid} (a) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 1000 {pages} 0\n");
        let made = Made::new("given", &[]);
        let mut sampler = sampler(&made.0, Some(100));
        sampler.system = None;
        assert_eq!(sampler.measure(), None, "not even its own can be read");
        assert!(sampler.is_blind);
        sampler.pid = 10;
        sampler.page_bytes = 4096;
        for (pid, pages, children) in [(10, 1000, "20 30 "), (20, 2000, "21"), (21, 4000, ""), (30, 8000, "99")] {
            made.write(&format!("proc/{pid}/stat"), &stat(pid, pages));
            made.write(&format!("proc/{pid}/task/{pid}/children"), children);
        }
        let sample = sampler.measure().expect("it can be told");
        assert_eq!((sample.ram_source, sample.ram_total), (RamSource::Configured, 100_000_000));
        assert_eq!((sample.ram_available, sample.own_rss), (100_000_000 - 15_000 * 4096, 1000 * 4096));
        assert!(!sampler.is_blind, "it is told again if it is gone again");
    }

    #[test]
    fn nonsense_is_not_sent() {
        let made = Made::new("nonsense", &[("proc/meminfo", "MemTotal: 10 kB\nMemAvailable: 11 kB\n")]);
        let mut sampler = sampler(&made.0, None);
        assert_eq!((sampler.measure(), sampler.is_blind), (None, true));
        made.write("proc/meminfo", "MemTotal: 10 kB\nMemAvailable: 4 kB\n");
        assert_eq!(sampler.measure().map(|sample| sample.ram_available), Some(4096));
        made.write("proc/meminfo", "MemTotal: 0 kB\nMemAvailable: 0 kB\n");
        assert_eq!((sampler.measure(), sampler.is_blind), (None, true));
    }

    /// The cost of a sample on this machine; run with `--ignored --nocapture`, in release mode for the figure.
    #[test]
    #[ignore = "a measurement, not a test"]
    fn cost_of_a_sample() {
        for ram_total_mb in [None, Some(1000)] {
            let mut sampler = sampler(Path::new("/"), ram_total_mb);
            let cpu = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            let before = cpu();
            for _ in 0..1000 {
                assert!(sampler.measure().is_some());
            }
            let after = cpu();
            let nanos = (after.tv_sec - before.tv_sec) * 1_000_000_000 + after.tv_nsec - before.tv_nsec;
            println!("{} us of CPU a sample, total given: {ram_total_mb:?}", nanos / 1_000_000);
        }
    }
}
