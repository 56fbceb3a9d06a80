//! Weighs the process trees of children, and finds what has strayed from them.
//!
//! A tree is what descends from the child. A process that forks twice and calls `setsid` leaves session, group and
//! ancestry; where Demi is a child subreaper such a one comes back to Demi as a child that it did not start. Whose it is
//! is told by the marker in the environment that it was started with, or, if it has cleared that, by the tree in which it
//! was seen earlier. It is weighed with that tree while the run lives, and is a stray afterwards.
//!
//! The lists of the living are made on the reactor's thread, a moment before they are used here: a child that was
//! started or reaped in between looks like a stray. So whatever is not certain has to look so in two weighings in a row,
//! between which the reactor has told of every child that it has.
//!
//! Resident memory is added up over the processes of a tree; what they share counts for each. If it is asked for, memory is
//! told without that as well (PSS). That takes the kernel a hundred times as long, so a weighing looks at as many trees as
//! its time allows, and at the next ones the next time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use demi_conductor::{Instance, Weight};

use crate::procfs::{Procfs, Stat};

/// The name of the marker in the environment.
pub(crate) const MARKER: &str = "DEMI_TOKEN";

/// Most processes that are looked at in one weighing, over all trees: sixteen times as many as 64 trees of a few need,
/// and few enough to be looked at in some hundredths of a second. A tree that is cut off by it is over its own limit.
const PROCESSES_MAX: usize = 16_384;
/// Most processes of a tree whose descriptors are counted.
const COUNTED_MAX: u32 = 64;
/// What a weighing may spend on PSS before it leaves the other trees to the next one: a thousandth of the time, as there is
/// one each second. One tree is looked at in any case.
const PSS_TIME_MAX: Duration = Duration::from_millis(1);
/// Most children of Demi that are looked at for strays in one weighing; the rest has its turn when these are gone.
const ORPHANS_MAX: usize = 4_096;

/// The tree of one run of an instance.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) instance: Instance,
    /// `platform/index`.
    pub(crate) title: String,
    pub(crate) pid: u32,
}

/// What a run's processes bear after the token: `platform/index:run`.
pub(crate) fn owner(title: &str, run: u32) -> String {
    format!("{title}:{run}")
}

/// A process that belongs to no living run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stray {
    pub(crate) pid: u32,
    /// By which it is known again.
    pub(crate) start: u64,
    pub(crate) is_zombie: bool,
}

/// What a weighing found.
#[derive(Debug, Default)]
pub(crate) struct Weighing {
    pub(crate) weights: Vec<(Instance, Weight)>,
    pub(crate) strays: Vec<Stray>,
}

/// Weighs, and remembers from one weighing to the next who was seen where.
pub(crate) struct Scales {
    pub(crate) proc: Procfs,
    token: String,
    page_bytes: u64,
    /// Demi's own number, where orphans come back to it.
    adopter: Option<u32>,
    /// Children that Demi had before it started any, and its guard: none of ours to judge.
    spared: Vec<u32>,
    /// It had children before it started any: what these leave behind bears no marker and cannot be told from strays.
    is_mixed: bool,
    /// Whose each process was in the last weighing.
    members: BTreeMap<u32, (u64, String)>,
    /// What looked like a stray in the last weighing.
    suspects: BTreeMap<u32, u64>,
    /// If it is asked for.
    shares: Option<Shares>,
}

/// PSS of trees, as it was last read.
#[derive(Default)]
struct Shares {
    /// By run.
    known: BTreeMap<String, u64>,
    /// Whose turn it is, among the trees.
    turn: usize,
}

impl Scales {
    /// `adopter` is Demi's own number if it is a child subreaper.
    pub(crate) fn new(proc: Procfs, token: String, page_bytes: u64, adopter: Option<u32>) -> Scales {
        let mut scales = Scales {
            proc,
            token,
            page_bytes,
            adopter,
            spared: Vec::new(),
            is_mixed: false,
            members: BTreeMap::new(),
            suspects: BTreeMap::new(),
            shares: None,
        };
        scales.spared = scales.orphans();
        scales.is_mixed = !scales.spared.is_empty();
        scales
    }

    /// A child of Demi that is not to be judged.
    pub(crate) fn spare(&mut self, pid: u32) {
        self.spared.push(pid);
    }

    /// One that was spared has ended.
    pub(crate) fn spare_no_more(&mut self, pid: u32) {
        self.spared.retain(|spared| *spared != pid);
    }

    /// Weighs by PSS, too, from now on.
    pub(crate) fn weigh_pss(&mut self) {
        self.shares = Some(Shares::default());
    }

    /// Weighs each tree, and tells who belongs to none of them.
    pub(crate) fn weigh(&mut self, trees: &[Tree]) -> Weighing {
        let mut weighing = Weighing::default();
        let mut seen = BTreeMap::new();
        let mut suspects = BTreeMap::new();
        let mut weights: Vec<Option<Weight>> = vec![None; trees.len()];
        for (tree, weight) in trees.iter().zip(&mut weights) {
            self.add(tree.pid, &owner(&tree.title, tree.instance.run), weight, &mut seen);
        }
        for pid in self.orphans() {
            if seen.contains_key(&pid) || self.spared.contains(&pid) || trees.iter().any(|tree| tree.pid == pid) {
                continue;
            }
            let Some(stat) = self.proc.stat(pid) else { continue };
            let whose = self.whose(pid, stat);
            if whose.is_none() && self.is_mixed {
                continue;
            }
            let is_of = |tree: &Tree| whose.as_deref() == Some(owner(&tree.title, tree.instance.run).as_str());
            if let Some(place) = trees.iter().position(is_of).filter(|_| !stat.is_zombie) {
                let tree = &trees[place];
                self.add(pid, &owner(&tree.title, tree.instance.run), &mut weights[place], &mut seen);
            } else if stat.is_zombie && trees.iter().any(is_of)
                || whose.as_deref().is_some_and(|whose| is_past(whose, trees))
                || self.suspects.get(&pid) == Some(&stat.start)
            {
                weighing.strays.push(Stray { pid, start: stat.start, is_zombie: stat.is_zombie });
            } else {
                suspects.insert(pid, stat.start);
            }
        }
        if let Some(mut shares) = self.shares.take() {
            shares.read(&mut self.proc, trees, &seen, PSS_TIME_MAX);
            for (tree, weight) in trees.iter().zip(&mut weights) {
                if let Some(weight) = weight {
                    weight.pss_bytes = shares.known.get(&owner(&tree.title, tree.instance.run)).copied();
                }
            }
            self.shares = Some(shares);
        }
        let found = trees.iter().zip(weights);
        weighing.weights = found.filter_map(|(tree, weight)| Some((tree.instance, weight?))).collect();
        (self.members, self.suspects) = (seen, suspects);
        weighing
    }

    /// Adds a process and all that descend from it to a weight.
    fn add(&mut self, root: u32, whose: &str, weight: &mut Option<Weight>, seen: &mut BTreeMap<u32, (u64, String)>) {
        let mut left = vec![root];
        while let Some(pid) = left.pop() {
            if seen.len() >= PROCESSES_MAX || seen.contains_key(&pid) {
                continue;
            }
            let Some(stat) = self.proc.stat(pid).filter(|stat| !stat.is_zombie) else { continue };
            let weight = weight.get_or_insert_default();
            weight.rss_bytes += stat.rss_pages * self.page_bytes;
            weight.processes += 1;
            if weight.processes <= COUNTED_MAX {
                weight.descriptors = weight.descriptors.max(self.proc.descriptors(pid));
            }
            seen.insert(pid, (stat.start, whose.to_owned()));
            self.proc.children(pid, stat.threads, &mut left);
        }
    }

    /// The children of Demi, whoever started them, where orphans come back to it.
    fn orphans(&mut self) -> Vec<u32> {
        let mut found = Vec::new();
        if let Some((adopter, stat)) = self.adopter.and_then(|pid| Some((pid, self.proc.stat(pid)?))) {
            self.proc.children(adopter, stat.threads, &mut found);
        }
        found.truncate(ORPHANS_MAX);
        found
    }

    /// The run that a process belongs to, as far as that can be told.
    fn whose(&mut self, pid: u32, stat: Stat) -> Option<String> {
        if let Some((_, whose)) = self.members.get(&pid).filter(|(start, _)| *start == stat.start) {
            return Some(whose.clone());
        }
        let word = self.proc.word(pid, MARKER, &self.token)?;
        Some(word.strip_prefix(&self.token)?.strip_prefix(':')?.to_owned())
    }

    /// Whether a process belongs to that run; to any run of this Demi, if none is named. By its marker, or because it was
    /// seen in that tree.
    pub(crate) fn belongs(&mut self, pid: u32, run: Option<&str>) -> bool {
        if self.adopter == Some(pid) {
            return false;
        }
        let was_seen = self.members.get(&pid).filter(|(_, whose)| run.is_none_or(|run| run == whose));
        if let Some(start) = was_seen.map(|(start, _)| *start) {
            if self.proc.stat(pid).is_some_and(|stat| stat.start == start) {
                return true;
            }
        }
        let Some(word) = self.proc.word(pid, MARKER, &self.token) else { return false };
        let whose = word.strip_prefix(&self.token).and_then(|rest| rest.strip_prefix(':'));
        whose.is_some_and(|whose| run.is_none_or(|run| run == whose))
    }

    /// Everybody who belongs to that run, zombies not among them; see [`Scales::belongs`].
    pub(crate) fn belonging(&mut self, run: Option<&str>) -> Vec<u32> {
        let everybody = self.proc.everybody();
        everybody
            .into_iter()
            .filter(|pid| self.belongs(*pid, run) && self.proc.stat(*pid).is_some_and(|stat| !stat.is_zombie))
            .collect()
    }

    /// At the end of Demi, when none of its own children is left: the children that it has nevertheless. None if it had
    /// some before it started any, for what these leave behind is not ours.
    pub(crate) fn foundlings(&mut self) -> Vec<Stray> {
        let orphans = if self.is_mixed { Vec::new() } else { self.orphans() };
        let mut found = Vec::new();
        for pid in orphans {
            if let Some(stat) = self.proc.stat(pid).filter(|_| !self.spared.contains(&pid)) {
                found.push(Stray { pid, start: stat.start, is_zombie: stat.is_zombie });
            }
        }
        found
    }
}

impl Shares {
    /// Reads those of as many trees as the time allows, beginning where the last time left off.
    fn read(&mut self, proc: &mut Procfs, trees: &[Tree], seen: &BTreeMap<u32, (u64, String)>, time: Duration) {
        let owners: Vec<String> = trees.iter().map(|tree| owner(&tree.title, tree.instance.run)).collect();
        self.known.retain(|run, _| owners.contains(run));
        let began = Instant::now();
        for _ in 0..owners.len() {
            let run = &owners[self.turn % owners.len()];
            self.turn = (self.turn + 1) % owners.len();
            let members: Vec<u32> = seen
                .iter()
                .filter(|(_, (_, whose))| whose == run)
                .map(|(pid, _)| *pid)
                .take(COUNTED_MAX as usize)
                .collect();
            let sum = members.into_iter().map(|pid| proc.pss(pid)).sum::<Option<u64>>();
            match sum.filter(|sum| *sum > 0) {
                Some(sum) => self.known.insert(run.clone(), sum),
                // Half a tree tells nothing.
                None => self.known.remove(run),
            };
            if began.elapsed() >= time {
                return;
            }
        }
    }
}

/// Whether a later run of the same instance is among the living.
fn is_past(whose: &str, trees: &[Tree]) -> bool {
    let Some((title, run)) = whose.rsplit_once(':') else { return false };
    let Ok(run) = run.parse::<u32>() else { return false };
    trees.iter().any(|tree| tree.title == title && tree.instance.run > run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    /// A recorded `/proc`, in a directory that is removed with the test.
    struct Recorded(PathBuf);

    const DEMI: u32 = 10;

    impl Recorded {
        fn new(name: &str) -> Recorded {
            let path = std::env::temp_dir().join(format!("demi-weigh-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            let recorded = Recorded(path);
            recorded.process(DEMI, 1, 5, 100, "");
            recorded
        }

        fn write(&self, path: String, text: &str) {
            let path = self.0.join(path);
            std::fs::create_dir_all(path.parent().expect("it is below the root")).expect("it can be written");
            std::fs::write(path, text).expect("it can be written");
        }

        fn process(&self, pid: u32, start: u64, descriptors: u32, pages: u64, environment: &str) {
            self.stat(pid, "S", start, pages);
            self.write(format!("{pid}/environ"), environment);
            for descriptor in 0..descriptors {
                self.write(format!("{pid}/fd/{descriptor}"), "");
            }
            self.children(pid, "");
        }

        fn stat(&self, pid: u32, state: &str, start: u64, pages: u64) {
            let stat = format!("{pid} (a ) b) {state} 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start} 1000 {pages} 0\n");
            self.write(format!("{pid}/stat"), &stat);
        }

        fn children(&self, pid: u32, children: &str) {
            self.write(format!("{pid}/task/{pid}/children"), children);
        }

        fn end(&self, pid: u32) {
            std::fs::remove_dir_all(self.0.join(pid.to_string())).expect("it is there");
        }

        fn scales(&self) -> Scales {
            Scales::new(Procfs::new(&self.0), "t0".to_owned(), 4096, Some(DEMI))
        }
    }

    impl Drop for Recorded {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn tree(slot: u32, run: u32, pid: u32) -> Tree {
        Tree { instance: Instance { slot, run }, title: format!("p/{slot}"), pid }
    }

    fn stray(pid: u32, start: u64) -> Stray {
        Stray { pid, start, is_zombie: false }
    }

    #[test]
    fn a_tree_weighs_what_all_its_processes_weigh() {
        let recorded = Recorded::new("tree");
        let mut scales = recorded.scales();
        recorded.process(20, 2, 4, 10, "DEMI_TOKEN=t0:p/0:1\0");
        recorded.process(21, 3, 9, 20, "");
        recorded.process(22, 4, 3, 30, "");
        recorded.process(30, 5, 3, 7, "DEMI_TOKEN=t0:p/1:4\0");
        recorded.children(DEMI, "20 30 ");
        recorded.children(20, "21 ");
        recorded.children(21, "22 ");
        let found = scales.weigh(&[tree(0, 1, 20), tree(1, 4, 30), tree(2, 1, 99)]);
        let weight = |pages: u64, processes, descriptors| Weight {
            rss_bytes: pages * 4096,
            pss_bytes: None,
            processes,
            descriptors,
        };
        let expected =
            [(Instance { slot: 0, run: 1 }, weight(60, 3, 9)), (Instance { slot: 1, run: 4 }, weight(7, 1, 3))];
        assert_eq!((found.weights.as_slice(), found.strays.len()), (&expected[..], 0));
    }

    #[test]
    fn what_left_its_session_counts_for_the_run_whose_marker_it_bears() {
        let recorded = Recorded::new("escaped");
        let mut scales = recorded.scales();
        recorded.process(20, 2, 4, 10, "");
        recorded.process(40, 6, 3, 5, "A=b\0DEMI_TOKEN=t0:p/0:1\0");
        recorded.process(41, 7, 3, 5, "");
        recorded.children(DEMI, "20 40");
        recorded.children(40, "41");
        let found = scales.weigh(&[tree(0, 1, 20)]);
        assert_eq!(found.weights[0].1.processes, 3);
        // The marker of another run, or of another Demi, is another's.
        assert!(scales.belonging(Some("p/0:1")).contains(&40));
        assert!(scales.belonging(Some("p/0:11")).is_empty());
        let mut other = Scales::new(Procfs::new(&recorded.0), "t1".to_owned(), 4096, None);
        assert!(other.belonging(None).is_empty());
    }

    #[test]
    fn a_process_that_cleared_its_environment_is_known_by_the_tree_it_was_seen_in() {
        let recorded = Recorded::new("cleared");
        let mut scales = recorded.scales();
        recorded.process(20, 2, 4, 10, "");
        recorded.process(21, 3, 4, 10, "");
        recorded.children(DEMI, "20");
        recorded.children(20, "21");
        scales.weigh(&[tree(0, 1, 20)]);
        recorded.children(20, "");
        recorded.children(DEMI, "20 21");
        let found = scales.weigh(&[tree(0, 1, 20)]);
        assert_eq!((found.weights[0].1.processes, found.strays.len()), (2, 0));
        // Its number alone is not enough: another process may have that by now.
        recorded.stat(21, "S", 99, 10);
        assert!(!scales.belongs(21, Some("p/0:1")));
    }

    #[test]
    fn what_is_left_of_an_earlier_run_is_a_stray_at_once_and_what_is_unknown_only_the_second_time() {
        let recorded = Recorded::new("strays");
        let mut scales = recorded.scales();
        recorded.process(11, 1, 3, 5, "");
        scales.spare(11);
        recorded.process(20, 2, 4, 10, "");
        recorded.process(40, 6, 3, 5, "DEMI_TOKEN=t0:p/0:1\0");
        recorded.process(50, 7, 3, 5, "");
        // Started after the list was made, by its marker or before its exec: not to be judged yet.
        recorded.process(60, 8, 3, 5, "DEMI_TOKEN=t0:p/0:3\0");
        recorded.children(DEMI, "11 20 40 50 60");
        assert_eq!(scales.weigh(&[tree(0, 2, 20)]).strays, [stray(40, 6)]);
        recorded.end(60);
        recorded.process(60, 9, 3, 5, "");
        assert_eq!(scales.weigh(&[tree(0, 2, 20)]).strays, [stray(40, 6), stray(50, 7)], "and 60 is another now");
    }

    #[test]
    fn a_demi_that_had_children_before_judges_nobody_without_a_marker() {
        let recorded = Recorded::new("mixed");
        recorded.process(11, 1, 3, 5, "");
        recorded.children(DEMI, "11");
        let mut scales = recorded.scales();
        recorded.process(20, 2, 4, 10, "");
        recorded.process(50, 7, 3, 5, "");
        recorded.children(DEMI, "11 20 50");
        for _ in 0..3 {
            assert!(scales.weigh(&[tree(0, 1, 20)]).strays.is_empty());
        }
        assert!(scales.foundlings().is_empty());
    }

    #[test]
    fn a_zombie_weighs_nothing_and_is_reaped_once_it_is_surely_not_one_of_the_children() {
        let recorded = Recorded::new("zombie");
        let mut scales = recorded.scales();
        recorded.stat(50, "Z", 7, 0);
        recorded.process(20, 2, 4, 10, "");
        recorded.children(DEMI, "20 50");
        assert!(scales.weigh(&[tree(0, 1, 20)]).strays.is_empty());
        let found = scales.weigh(&[tree(0, 1, 20)]);
        assert_eq!(found.strays, [Stray { pid: 50, start: 7, is_zombie: true }]);
        assert_eq!(found.weights[0].1.processes, 1);
    }

    #[test]
    fn what_is_shared_is_divided_tree_by_tree_if_that_is_asked_for() {
        let recorded = Recorded::new("shares");
        let mut scales = recorded.scales();
        for (pid, pss) in [(20, 10), (21, 5), (30, 7)] {
            recorded.process(pid, 2, 4, 10, "");
            recorded.write(
                format!("{pid}/smaps_rollup"),
                &format!("1-2 [rollup]\nRss: 40 kB\nPss: {pss} kB\nPss_Dirty: 1 kB\n"),
            );
        }
        recorded.process(40, 2, 4, 10, "");
        recorded.children(20, "21");
        let trees = [tree(0, 1, 20), tree(1, 1, 30), tree(2, 1, 40)];
        let told = |scales: &mut Scales| -> Vec<Option<u64>> {
            scales.weigh(&trees).weights.iter().map(|(_, weight)| weight.pss_bytes).collect()
        };
        assert_eq!(told(&mut scales), [None, None, None], "nobody asks");
        scales.weigh_pss();
        // However slow this machine is, each has had its turn by then.
        for _ in 0..trees.len() {
            told(&mut scales);
        }
        assert_eq!(told(&mut scales), [Some(15 * 1024), Some(7 * 1024), None], "one of them does not tell");
    }

    #[test]
    fn when_the_time_is_up_the_next_tree_has_its_turn_the_next_time() {
        let recorded = Recorded::new("turns");
        let (mut shares, mut proc, mut seen) = (Shares::default(), Procfs::new(&recorded.0), BTreeMap::new());
        let trees = [tree(0, 1, 20), tree(1, 1, 30)];
        for pid in [20, 30] {
            recorded.write(format!("{pid}/smaps_rollup"), "Pss: 1 kB\n");
        }
        seen.insert(20, (1, "p/0:1".to_owned()));
        seen.insert(30, (1, "p/1:1".to_owned()));
        let mut known = |trees: &[Tree]| {
            shares.read(&mut proc, trees, &seen, Duration::ZERO);
            shares.known.keys().cloned().collect::<Vec<String>>()
        };
        assert_eq!(known(&trees), ["p/0:1"]);
        assert_eq!(known(&trees), ["p/0:1", "p/1:1"]);
        assert_eq!(known(&trees[1..]), ["p/1:1"], "of a run that has ended nothing is remembered");
        assert_eq!(known(&[]), [""; 0]);
    }

    /// The cost of one weighing on real processes; run with `--ignored --nocapture`, in release mode for the figure.
    #[test]
    #[ignore = "a measurement, not a test"]
    fn cost_of_weighing_twenty_trees_of_two() {
        let spawn = || {
            crate::sandbox::spawn(std::process::Command::new("sh").args(["-c", "sleep 1000 & wait"]))
                .expect("there is sh")
        };
        let mut children: Vec<_> = (0..20).map(|_| spawn()).collect();
        let trees: Vec<Tree> =
            children.iter().zip(0..).map(|(child, slot)| Tree { pid: child.id(), ..tree(slot, 1, 0) }).collect();
        let mut scales = Scales::new(Procfs::new(Path::new("/proc")), "t0".to_owned(), 4096, None);
        scales.adopter = Some(std::process::id());
        for asks_for_pss in [false, true] {
            if asks_for_pss {
                scales.weigh_pss();
            }
            measure(&mut scales, &trees, asks_for_pss);
        }
        for child in &mut children {
            let mut below = Vec::new();
            scales.proc.children(child.id(), 1, &mut below);
            child.kill().expect("it is ours");
            child.wait().expect("it is ours");
            for pid in below {
                let pid = rustix::process::Pid::from_raw(pid as i32).expect("it is a number");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    fn measure(scales: &mut Scales, trees: &[Tree], asks_for_pss: bool) {
        let began = std::time::Instant::now();
        let cpu = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let before = cpu();
        for _ in 0..1000 {
            assert_eq!(scales.weigh(trees).weights.len(), 20);
        }
        let after = cpu();
        let nanos = (after.tv_sec - before.tv_sec) * 1_000_000_000 + after.tv_nsec - before.tv_nsec;
        println!(
            "{} us of CPU a weighing, {:?} in all; with PSS: {asks_for_pss}",
            nanos / 1_000_000,
            began.elapsed() / 1000
        );
    }
}
