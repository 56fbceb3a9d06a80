//! The warden: one thread that looks after the process trees of children, so that the reactor never waits for `/proc`
//! or for the end of a process.
//!
//! It weighs when it is told to, kills and reaps what runs have left behind, and keeps the guard alive. Nothing that it
//! does takes long: a sweep is one look at a time, with orders heard in between, and what is slow to remove is left to
//! the [`Remover`]. So weighings are on time whatever a run left behind. It is started with the first child.

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver, RecvTimeoutError, Sender, TryRecvError};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{waitid, WaitId, WaitIdOptions};

use crate::cgroup;
use crate::guard::{kill_if, Guard};
use crate::mailbox::{Letter, Postbox};
use crate::procfs::Procfs;
use crate::remover::Remover;
use crate::weigh::{Scales, Stray, Tree};

/// A weighing is left out while so many orders wait: the next one is due in a second.
const ORDERS_BEFORE_WEIGHING_MAX: usize = 4;
/// Looks for what a run has left behind that find something, at most: each kills all it finds, so only what forks
/// faster than it can be looked for is left, and found again at the next weighing.
const ROUNDS_MAX: u32 = 100;
/// Looks in a row that must find nothing: a process that is in the middle of an exec has no environment for a moment.
const QUIET_LOOKS: u32 = 2;
/// Between two looks, at first; twice as long after each that has found something, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// By then a killed process is usually gone.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Ends that are remembered for reaping.
const ENDS_MAX: usize = 1024;
/// A guard that ended is started again so often; then something is wrong that starting does not cure.
const GUARD_STARTS_MAX: u32 = 10;
/// What is still to be done when Demi ends is given this long.
const FINISH_MAX: Duration = Duration::from_secs(2);

enum Order {
    /// Weigh these.
    Weigh(Vec<Tree>),
    /// This run has ended and was reaped.
    Ended { run: String, group: Option<PathBuf> },
    /// This one was killed, and is to be reaped once it has ended.
    Reap(Child),
}

/// Why there is no weighing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unweighed {
    /// The last ones are not over.
    Busy,
    /// The thread has ended, which was told as an error.
    Gone,
}

/// What the warden is told once.
pub(crate) struct Duties {
    pub(crate) token: String,
    /// Whether orphans come back to Demi.
    pub(crate) is_subreaper: bool,
    /// Whether trees are weighed by PSS, too.
    pub(crate) weighs_pss: bool,
    /// The executable that serves as guard.
    pub(crate) guard: Option<PathBuf>,
    /// The directory whose entries are to be removed.
    pub(crate) trash: PathBuf,
    pub(crate) postbox: Postbox,
}

/// The sending end, on the reactor's thread.
pub(crate) struct Warden {
    /// Unbounded, because a bounded channel of crossbeam holds memory for all it may ever hold. Weighings are bounded
    /// here, and ends by the conductor, which starts an instance that does not last less and less often.
    orders: Sender<Order>,
    thread: thread::JoinHandle<()>,
    /// Nothing is ever sent: it is disconnected when the thread has ended, however it did.
    ended: Receiver<()>,
    /// It was told that the thread has ended.
    is_end_told: Cell<bool>,
}

impl Warden {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub(crate) fn start(duties: Duties) -> std::io::Result<Warden> {
        // Before the first child is there: whoever is, is not ours.
        let adopter = duties.is_subreaper.then(std::process::id);
        let page_bytes = rustix::param::page_size() as u64;
        let mut scales = Scales::new(Procfs::new(Path::new("/proc")), duties.token.clone(), page_bytes, adopter);
        if duties.weighs_pss {
            scales.weigh_pss();
        }
        let (orders, inbox) = unbounded();
        let (alive, ended) = bounded(0);
        let work = move || {
            let _alive: Sender<()> = alive;
            work(&inbox, Work::new(scales, Remover::new(duties.trash.clone()), duties));
        };
        let thread = thread::Builder::new().name("demi-warden".to_owned()).stack_size(256 * 1024).spawn(work)?;
        Ok(Warden { orders, thread, ended, is_end_told: Cell::new(false) })
    }

    /// Has trees weighed.
    ///
    /// # Errors
    /// If too much is waiting, or the thread has ended.
    pub(crate) fn weigh(&self, trees: Vec<Tree>) -> Result<(), Unweighed> {
        if self.orders.len() >= ORDERS_BEFORE_WEIGHING_MAX && !self.is_gone() {
            return Err(Unweighed::Busy);
        }
        self.order(Order::Weigh(trees))
    }

    /// Has everything removed that a run left behind: processes, its control group, its temporary directory in the trash.
    pub(crate) fn ended(&self, run: String, group: Option<PathBuf>) {
        // That it has gone is told.
        let _ = self.order(Order::Ended { run, group });
    }

    /// Has a child that was killed reaped, however long it takes to end.
    pub(crate) fn reap(&self, child: Child) {
        // That it has gone is told.
        let _ = self.order(Order::Reap(child));
    }

    fn order(&self, order: Order) -> Result<(), Unweighed> {
        if self.orders.send(order).is_ok() {
            return Ok(());
        }
        if !self.is_end_told.replace(true) {
            log::error!(
                "the thread that watches over plugins has ended, see above: nobody holds them to limits.memory_max_mb and \
                 limits.processes_max any more, or removes what they leave behind; restart Demi"
            );
        }
        Err(Unweighed::Gone)
    }

    fn is_gone(&self) -> bool {
        self.ended.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Has everything removed that any run left behind, and waits for it, but not for ever.
    pub(crate) fn finish(self) {
        let Warden { orders, thread, ended, .. } = self;
        drop(orders);
        if ended.recv_timeout(FINISH_MAX) == Err(RecvTimeoutError::Timeout) {
            log::error!(
                "what plugins left behind is not all removed after {FINISH_MAX:?}; it is left to the next start"
            );
        } else if thread.join().is_err() {
            log::error!("the warden panicked; see above");
        }
    }
}

fn work(inbox: &Receiver<Order>, mut work: Work) {
    work.see_to_guard();
    loop {
        let order = match work.sweeps.iter().map(|sweep| sweep.due).min() {
            Some(due) => inbox.recv_deadline(due),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match order {
            Ok(Order::Weigh(trees)) => {
                work.see_to_guard();
                work.weigh(&trees);
            }
            Ok(Order::Ended { run, group }) => {
                if let Some(group) = &group {
                    cgroup::kill(group);
                }
                work.sweeps.push_back(Sweep::new(Some(run), group));
            }
            Ok(Order::Reap(child)) => {
                work.scales.spare(child.id());
                work.unreaped.push(child);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        work.go_on();
    }
    work.finish();
}

/// A search for what a run has left behind, as far as it has come.
struct Sweep {
    /// Any, if none is named.
    run: Option<String>,
    group: Option<PathBuf>,
    /// When the next look is due.
    due: Instant,
    pause: Duration,
    /// Looks that have found something.
    rounds: u32,
    /// Looks in a row that have found nothing.
    quiet: u32,
    killed: BTreeSet<u32>,
    /// Of those that were killed and not reaped.
    ends: Vec<OwnedFd>,
}

impl Sweep {
    fn new(run: Option<String>, group: Option<PathBuf>) -> Sweep {
        Sweep {
            run,
            group,
            due: Instant::now(),
            pause: PAUSE_MIN,
            rounds: 0,
            quiet: 0,
            killed: BTreeSet::new(),
            ends: Vec::new(),
        }
    }
}

struct Work {
    scales: Scales,
    guard: Option<Guard>,
    guard_starts: u32,
    /// As many as runs have ended within seconds, which the conductor bounds.
    sweeps: VecDeque<Sweep>,
    /// Strays that were killed and not reaped yet.
    ends: Vec<OwnedFd>,
    /// Children that were given up. Each cost a start, which the conductor bounds.
    unreaped: Vec<Child>,
    remover: Remover,
    duties: Duties,
}

impl Work {
    fn new(scales: Scales, remover: Remover, duties: Duties) -> Work {
        Work {
            scales,
            guard: None,
            guard_starts: 0,
            sweeps: VecDeque::new(),
            ends: Vec::new(),
            unreaped: Vec::new(),
            remover,
            duties,
        }
    }

    fn weigh(&mut self, trees: &[Tree]) {
        let weighing = self.scales.weigh(trees);
        for stray in weighing.strays {
            self.remove(stray);
        }
        let available = self.scales.proc.available();
        self.duties.postbox.post(Letter::Weighed { weights: weighing.weights, available });
    }

    /// Reaps who has ended, and does one look of the sweep that is due, if one is.
    fn go_on(&mut self) {
        self.ends.retain(|end| !reap(end));
        let scales = &mut self.scales;
        self.unreaped.retain_mut(|child| {
            let is_running = matches!(child.try_wait(), Ok(None));
            if !is_running {
                scales.spare_no_more(child.id());
            }
            is_running
        });
        let now = Instant::now();
        let Some(place) = self.sweeps.iter().position(|sweep| sweep.due <= now) else { return };
        let Some(mut sweep) = self.sweeps.remove(place) else { return };
        if self.look(&mut sweep) {
            self.remover.remove(sweep.group);
        } else {
            self.sweeps.push_back(sweep);
        }
    }

    /// The end of Demi: everything is seen through.
    fn finish(mut self) {
        let mut last = Sweep::new(None, None);
        while !self.look(&mut last) {
            thread::sleep(last.due.saturating_duration_since(Instant::now()));
        }
        for stray in self.scales.foundlings() {
            self.remove(stray);
        }
        wait_for(&self.ends, Instant::now() + PAUSE_MAX);
        for sweep in std::mem::take(&mut self.sweeps) {
            self.remover.remove(sweep.group);
        }
        self.go_on();
        self.remover.remove(None);
        self.remover.finish();
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
    }

    /// Kills a stray. It is reaped when it has ended.
    fn remove(&mut self, stray: Stray) {
        let is_meant = |scales: &mut Scales| scales.proc.stat(stray.pid).is_some_and(|stat| stat.start == stray.start);
        if let Some(end) = kill_if(&mut self.scales, stray.pid, is_meant) {
            if !stray.is_zombie {
                log::warn!("process {} belongs to no run of a plugin any more and was killed", stray.pid);
            }
            // One that is not remembered is a stray again at the next weighing.
            if !reap(&end) && self.ends.len() < ENDS_MAX {
                self.ends.push(end);
            }
        }
    }

    /// Looks once for what a run has left behind and kills it. Whether the sweep is over; if not, when it goes on is noted.
    fn look(&mut self, sweep: &mut Sweep) -> bool {
        let name = sweep.run.as_deref();
        let mut found = self.scales.belonging(name);
        found.retain(|pid| self.guard.as_ref().is_none_or(|guard| guard.pid() != *pid));
        // Whose parent has ended meanwhile is ours to reap by now.
        sweep.ends.retain(|end| !reap(end));
        if found.is_empty() {
            sweep.quiet += 1;
            sweep.pause = PAUSE_MIN;
        } else {
            sweep.quiet = 0;
            sweep.rounds += 1;
        }
        let is_futile = sweep.rounds > ROUNDS_MAX;
        if is_futile {
            log::error!("{}: {} processes that it left behind cannot be killed", name.unwrap_or("all"), found.len());
        }
        if is_futile || sweep.quiet == QUIET_LOOKS {
            if !sweep.killed.is_empty() {
                let count = sweep.killed.len();
                log::info!("{}: {count} processes that it left behind were killed", name.unwrap_or("all plugins"));
            }
            return true;
        }
        for pid in found {
            let end = kill_if(&mut self.scales, pid, |scales| scales.belongs(pid, name));
            if let Some(end) = end.filter(|_| sweep.killed.insert(pid)) {
                sweep.ends.push(end);
            }
        }
        sweep.ends.truncate(ENDS_MAX);
        sweep.due = Instant::now() + sweep.pause;
        if sweep.quiet == 0 {
            sweep.pause = PAUSE_MAX.min(2 * sweep.pause);
        }
        false
    }

    fn see_to_guard(&mut self) {
        let Some(program) = &self.duties.guard else { return };
        if let Some(mut guard) = self.guard.take() {
            if guard.is_alive() {
                self.guard = Some(guard);
                return;
            }
            log::warn!("the guard (process {}) has ended; it is started again", guard.pid());
            self.scales.spare_no_more(guard.pid());
        }
        if self.guard_starts == GUARD_STARTS_MAX {
            self.guard_starts += 1;
            log::error!(
                "the guard has ended {GUARD_STARTS_MAX} times and is not started again: if Demi is killed, what plugins \
                 started may outlive it"
            );
        }
        if self.guard_starts >= GUARD_STARTS_MAX {
            return;
        }
        self.guard_starts += 1;
        match Guard::start(program, &self.duties.token) {
            Ok(guard) => {
                self.scales.spare(guard.pid());
                log::debug!("the guard is process {}", guard.pid());
                self.guard = Some(guard);
            }
            Err(error) => log::warn!("{}: the guard cannot be started: {error}", program.display()),
        }
    }
}

/// Waits until all these processes have ended, or until the deadline.
fn wait_for(ends: &[OwnedFd], deadline: Instant) {
    for end in ends {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else { return };
        // Interrupted or failed: then the next start of Demi finds it.
        let _ = poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&left));
    }
}

/// Reaps a process that has ended and is a child of Demi. By its descriptor, which no other process can have; what is
/// not a child of Demi is somebody else's to reap. Whether it is done.
fn reap(end: &OwnedFd) -> bool {
    matches!(waitid(WaitId::PidFd(end.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn duties(token: &str) -> (Duties, crate::mailbox::Mailbox) {
        let poll = mio::Poll::new().expect("there is a poll");
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("it can be woken");
        let (postbox, mailbox) = crate::mailbox::mailbox(waker);
        let trash = PathBuf::from("/nonexistent");
        (
            Duties { token: token.to_owned(), is_subreaper: false, weighs_pss: false, guard: None, trash, postbox },
            mailbox,
        )
    }

    fn scales(token: &str) -> Scales {
        Scales::new(Procfs::new(Path::new("/proc")), token.to_owned(), 4096, None)
    }

    fn token(of: &str) -> String {
        format!("test-{of}{:024}", std::process::id())
    }

    fn spawn(token: &str, run: &str) -> Child {
        let word = format!("{token}:{run}");
        crate::sandbox::spawn(Command::new("sleep").arg("30").env(crate::weigh::MARKER, word)).expect("there is sleep")
    }

    fn sweep_out(work: &mut Work, run: Option<&str>) {
        let mut sweep = Sweep::new(run.map(str::to_owned), None);
        while !work.look(&mut sweep) {
            thread::yield_now();
        }
    }

    fn weighed(mailbox: &crate::mailbox::Mailbox) -> bool {
        matches!(mailbox.take(), Some(Letter::Weighed { .. }))
    }

    #[test]
    fn what_bears_the_mark_of_a_run_is_killed_and_reaped_and_nothing_else_is() {
        let token = token("mark");
        let (mut past, mut present) = (spawn(&token, "p/0:1"), spawn(&token, "p/0:11"));
        let (duties, mailbox) = duties(&token);
        let mut work = Work::new(scales(&token), Remover::new(duties.trash.clone()), duties);
        crate::guard::wait_until_marked(&mut work.scales, &[past.id(), present.id()]);
        sweep_out(&mut work, Some("p/0:1"));
        assert!(past.try_wait().is_err(), "the sweep has reaped it");
        assert!(matches!(present.try_wait(), Ok(None)), "another run's");
        sweep_out(&mut work, None);
        assert!(present.try_wait().is_err());
        drop(mailbox);
    }

    #[test]
    fn it_weighs_while_a_run_is_swept_up_and_a_large_directory_is_removed() {
        let token = token("busy");
        let (duties, mailbox) = duties(&token);
        let (begin, begun) = bounded(1);
        let (go, wait) = bounded::<()>(0);
        let remover = Remover::with(std::sync::Arc::new(move |_| {
            let _ = begin.try_send(());
            let _ = wait.recv();
        }));
        let task = Work::new(scales(&token), remover, duties);
        let (orders, inbox) = unbounded();
        let thread = thread::spawn(move || work(&inbox, task));
        orders.send(Order::Ended { run: "p/0:1".to_owned(), group: None }).expect("it is there");
        begun.recv().expect("the removal begins once the sweep is over");
        orders.send(Order::Ended { run: "p/0:2".to_owned(), group: None }).expect("it is there");
        orders.send(Order::Weigh(Vec::new())).expect("it is there");
        let deadline = Instant::now() + Duration::from_secs(30);
        while !weighed(&mailbox) {
            assert!(Instant::now() < deadline, "it waits for the removal");
            thread::yield_now();
        }
        drop((go, orders));
        thread.join().expect("it does not panic");
    }

    #[test]
    fn a_child_that_was_given_up_is_reaped_when_it_ends() {
        let token = token("reap");
        let (duties, _mailbox) = duties(&token);
        let child = crate::sandbox::spawn(Command::new("sleep").arg("30")).expect("there is sleep");
        let pid = child.id();
        let mut work = Work::new(scales(&token), Remover::new(duties.trash.clone()), duties);
        work.unreaped.push(child);
        work.go_on();
        assert_eq!(work.unreaped.len(), 1, "it lives, and nobody waits for it");
        work.unreaped[0].kill().expect("it is ours");
        while !work.unreaped.is_empty() {
            work.go_on();
        }
        assert_eq!(work.scales.proc.stat(pid), None);
    }

    #[test]
    fn a_warden_that_has_gone_is_not_taken_for_one_that_is_busy() {
        let (orders, inbox) = unbounded();
        let (alive, ended) = bounded(0);
        let thread = thread::spawn(|| {});
        let warden = Warden { orders, thread, ended, is_end_told: Cell::new(false) };
        for _ in 0..ORDERS_BEFORE_WEIGHING_MAX {
            assert_eq!(warden.weigh(Vec::new()), Ok(()));
        }
        assert_eq!(warden.weigh(Vec::new()), Err(Unweighed::Busy));
        assert!(!warden.is_end_told.get());
        drop((inbox, alive));
        assert_eq!(warden.weigh(Vec::new()), Err(Unweighed::Gone));
        assert!(warden.is_end_told.get());
        warden.finish();
    }
}
