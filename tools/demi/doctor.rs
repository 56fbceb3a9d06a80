//! `demi doctor`: what Demi finds on this machine and what it misses, with the line that puts it right. Needs no Demi that
//! runs, and changes nothing.

mod boot;
mod home;
mod machine;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use demi::gauge::{Ram, Reader};
use serde::Serialize;

use crate::page::{counted, plain};
use crate::{print, FAILED};

/// What the doctor is asked.
pub(crate) struct DoctorAsked {
    pub(crate) config: Option<PathBuf>,
    /// Where `proc` and `sys` are.
    pub(crate) root: PathBuf,
    pub(crate) json: bool,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// As it should be.
    Ok,
    /// Demi does without it, less well.
    Note,
    /// It matters.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    seen: String,
    /// What to do about it; `None` if it is as it should be.
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, seen: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Ok, seen: seen.into(), remedy: None }
    }

    fn note(name: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Note, seen: seen.into(), remedy: Some(remedy.into()) }
    }

    fn fail(name: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Fail, seen: seen.into(), remedy: Some(remedy.into()) }
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Findings {
    /// Whether all that matters is there.
    ok: bool,
    /// `None` if it cannot be measured.
    ram: Option<RamFound>,
    /// `scaler.ram_total_mb`, if it is configured: that is what counts then.
    ram_total_mb: Option<u64>,
    checks: Vec<Check>,
}

/// The figures of RAM that are decided by. Bytes.
#[derive(Debug, Serialize)]
struct RamFound {
    total: u64,
    available: u64,
    used_percent: f64,
    source: &'static str,
    headroom: u64,
    headroom_total: u64,
    limit: Option<u64>,
    arc_reclaimable: u64,
}

impl From<Ram> for RamFound {
    fn from(ram: Ram) -> RamFound {
        let used_percent = (ram.total - ram.available) as f64 * 100.0 / ram.total as f64;
        RamFound {
            total: ram.total,
            available: ram.available,
            used_percent: (used_percent * 10.0).round() / 10.0,
            source: ram.source.name(),
            headroom: ram.headroom,
            headroom_total: ram.headroom_total,
            limit: ram.limit,
            arc_reclaimable: ram.arc_reclaimable,
        }
    }
}

/// Prints what was found.
pub(crate) fn examine(asked: &DoctorAsked) -> ExitCode {
    let mut findings = of_machine(&asked.root);
    let (checks, ram_total_mb) = home::look(asked.config.as_deref());
    findings.add(checks);
    findings.ram_total_mb = ram_total_mb;
    let text = match asked.json {
        true => serde_json::to_string_pretty(&findings).expect("text and numbers always serialise") + "\n",
        false => findings.describe(),
    };
    match print(&text) {
        ExitCode::SUCCESS if !findings.ok => ExitCode::from(FAILED),
        printed => printed,
    }
}

/// What there is on the machine whose `proc` and `sys` lie below `root`.
fn of_machine(root: &Path) -> Findings {
    let signals = Reader::new(root).read();
    let ram = signals.ram(None).map(RamFound::from);
    let mut findings = Findings { ok: true, ram, ram_total_mb: None, checks: Vec::new() };
    findings.add(machine::look(root, &signals));
    findings
}

impl Findings {
    fn add(&mut self, checks: Vec<Check>) {
        self.ok &= checks.iter().all(|check| check.verdict != Verdict::Fail);
        self.checks.extend(checks);
    }

    /// For a person to read.
    fn describe(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Note => "note",
                Verdict::Fail => "FAIL",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{verdict:<6}{}: {}", check.name, plain(&check.seen));
            for line in check.remedy.iter().flat_map(|remedy| remedy.lines()) {
                let _ = writeln!(text, "        {}", plain(line));
            }
        }
        if let Some(ram) = &self.ram {
            let _ = writeln!(
                text,
                "\nRAM: {} of {} used ({:.1} %), by {}; {}",
                megabytes(ram.total - ram.available),
                megabytes(ram.total),
                ram.used_percent,
                ram.source,
                match self.ram_total_mb {
                    Some(total) => format!(
                        "but scaler.ram_total_mb is {total}: what is to start has to fit in that, beside what Demi and its child \
                         processes weigh"
                    ),
                    None => {
                        let [left, total] = [ram.headroom, ram.headroom_total].map(megabytes);
                        format!("what is to start has to fit in {left} of {total}")
                    }
                }
            );
        }
        let count = |verdict| self.checks.iter().filter(|check| check.verdict == verdict).count();
        let notes = counted(count(Verdict::Note), "note");
        let _ = writeln!(text, "\n{} ok, {notes}, {} failed", count(Verdict::Ok), count(Verdict::Fail));
        text
    }
}

/// As limits count them.
fn megabytes(bytes: u64) -> String {
    match bytes as f64 / 1e6 {
        megabytes @ ..10_000.0 => format!("{megabytes:.0} MB"),
        megabytes => format!("{:.1} GB", megabytes / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine as it was recorded in `tests/fixtures/machines`.
    fn recorded(name: &str) -> Findings {
        of_machine(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/machines").join(name))
    }

    fn check<'f>(findings: &'f Findings, name: &str) -> &'f Check {
        findings.checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("{name} is not told"))
    }

    #[test]
    fn on_raspberry_pi_os_both_lines_are_told_with_the_file_that_they_go_into() {
        let findings = recorded("raspberry-pi-os");
        for (name, words) in [("pressure", "psi=1"), ("control groups", "cgroup_enable=memory cgroup_memory=1")] {
            let check = check(&findings, name);
            let remedy = check.remedy.as_deref().expect("it is missing");
            let expected = format!("append this to the one line of /boot/firmware/cmdline.txt, and reboot:\n  {words}");
            assert_eq!((check.verdict, remedy), (Verdict::Note, expected.as_str()));
        }
        assert!(findings.ok, "Demi runs without either");
        let ram = findings.ram.expect("it is measured");
        assert_eq!((ram.source, ram.used_percent, ram.limit), ("mem_available", 57.4, None));
    }

    #[test]
    fn in_a_container_the_limit_is_what_counts() {
        for (name, source, limit) in
            [("container-v2", "cgroup_v2", 536_870_912), ("container-v1", "cgroup_v1", 268_435_456)]
        {
            let findings = recorded(name);
            assert_eq!(check(&findings, "limit").verdict, Verdict::Ok, "{name}");
            let ram = findings.ram.as_ref().expect("it is measured");
            assert_eq!((ram.source, ram.limit), (source, Some(limit)), "{name}");
        }
        let findings = recorded("container-v1");
        let remedy = check(&findings, "control groups").remedy.as_deref().unwrap_or_default();
        assert!(remedy.contains("systemd.unified_cgroup_hierarchy=1"), "{remedy}");
    }

    #[test]
    fn what_zfs_would_give_back_is_told() {
        let findings = recorded("zfs-server");
        assert_eq!(check(&findings, "zfs").seen, "7600 MB of its cache (ARC) count as available");
        assert_eq!(check(&findings, "pressure").verdict, Verdict::Ok);
        assert_eq!(findings.ram.map(|ram| ram.arc_reclaimable), Some(7_600_000_000));
    }

    #[test]
    fn where_a_part_of_ram_is_configured_that_is_what_counts() {
        let mut findings = recorded("zfs-server");
        assert!(findings.describe().contains("; what is to start has to fit in "), "{}", findings.describe());
        findings.ram_total_mb = Some(512);
        let text = findings.describe();
        assert!(
            text.contains("; but scaler.ram_total_mb is 512: what is to start has to fit in that, beside"),
            "{text}"
        );
    }

    #[test]
    fn an_old_kernel_has_what_it_can_and_little_memory_without_swap_is_told() {
        let findings = recorded("old-kernel");
        assert!(findings.ok);
        let memory = check(&findings, "memory");
        assert!(memory.verdict == Verdict::Note && memory.seen.contains("estimate"), "{memory:?}");
        let swap = check(&findings, "swap");
        assert!(swap.remedy.as_deref().is_some_and(|remedy| remedy.contains("[zram0]")), "{swap:?}");
        let pressure = check(&findings, "pressure").remedy.as_deref().unwrap_or_default();
        assert!(pressure.ends_with("from Linux 4.20 on"), "what its kernel cannot do, no line makes it do: {pressure}");
    }

    #[test]
    fn a_machine_that_cannot_be_measured_is_a_failure() {
        let findings = recorded("none-of-that-name");
        assert!(!findings.ok && findings.ram.is_none());
        assert_eq!(check(&findings, "memory").verdict, Verdict::Fail);
        let text = findings.describe();
        assert!(text.starts_with("FAIL  memory: /proc/meminfo is not there\n        "), "{text}");
        assert!(text.contains("1 failed"), "{text}");
    }

    #[test]
    fn every_remedy_is_told_with_what_is_missing_and_nothing_else_is() {
        for name in ["raspberry-pi-os", "container-v2", "container-v1", "zfs-server", "old-kernel"] {
            for check in recorded(name).checks {
                assert_eq!(check.remedy.is_none(), check.verdict == Verdict::Ok, "{name}: {check:?}");
            }
        }
    }

    #[test]
    fn sizes_are_told_in_the_unit_that_fits() {
        let told = [0, 512_000_000, 9_999_000_000, 16_500_000_000].map(megabytes);
        assert_eq!(told, ["0 MB", "512 MB", "9999 MB", "16.5 GB"]);
    }
}
