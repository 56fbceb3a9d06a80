//! Removes what runs that have ended left on disk: their temporary directories, which stand in the trash, and their
//! control groups.
//!
//! A plugin may leave a million files behind, and a control group goes only when its last process has. So this has a
//! thread of its own, which nobody waits for before Demi ends. It is started when there is first something to remove.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{bounded, Sender, TrySendError};

use crate::cgroup;

/// Most runs whose remains wait. The trash needs no more than one, as it is always emptied whole; so this is how many
/// empty control groups are remembered while a large directory is removed, at 32 bytes each.
const WAITING_MAX: usize = 256;

/// What is done for a run: its control group, if it had one, is removed and the trash emptied.
type Task = Arc<dyn Fn(Option<&Path>) + Send + Sync>;

/// The sending end, on the warden's thread.
pub(crate) struct Remover {
    task: Task,
    running: Option<Running>,
    /// It was told that the thread does not keep up.
    is_behind: bool,
}

struct Running {
    queue: Sender<Option<PathBuf>>,
    thread: thread::JoinHandle<()>,
}

impl Remover {
    /// Empties `trash`. If there is something in it already, at once.
    pub(crate) fn new(trash: PathBuf) -> Remover {
        let is_empty = std::fs::read_dir(&trash).map_or(true, |mut entries| entries.next().is_none());
        let mut remover = Remover::with(Arc::new(move |group| {
            if let Some(group) = group {
                cgroup::remove(vec![group.to_owned()]);
            }
            empty(&trash);
        }));
        if !is_empty {
            remover.remove(None);
        }
        remover
    }

    pub(crate) fn with(task: Task) -> Remover {
        Remover { task, running: None, is_behind: false }
    }

    /// Has the trash emptied and a group removed. Does not wait. False if so much waits that the group is left where it
    /// is, which was told.
    pub(crate) fn remove(&mut self, group: Option<PathBuf>) -> bool {
        let Some(running) = self.running() else { return false };
        match running.queue.try_send(group) {
            Ok(()) => {
                self.is_behind = false;
                true
            }
            Err(TrySendError::Full(_)) => {
                if !std::mem::replace(&mut self.is_behind, true) {
                    log::warn!(
                        "the removal of what plugins leave behind does not keep up: {WAITING_MAX} runs wait for it; \
                         their files take up space meanwhile, and control groups of more runs are left empty"
                    );
                }
                false
            }
            Err(TrySendError::Disconnected(_)) => {
                log::error!(
                    "the thread that removes what plugins leave behind has ended; see above. The next has one anew"
                );
                self.running = None;
                false
            }
        }
    }

    fn running(&mut self) -> Option<&Running> {
        if self.running.is_none() {
            let (queue, inbox) = bounded::<Option<PathBuf>>(WAITING_MAX);
            let task = Arc::clone(&self.task);
            let work = move || inbox.iter().for_each(|group| task(group.as_deref()));
            match thread::Builder::new().name("demi-remover".to_owned()).stack_size(256 * 1024).spawn(work) {
                Ok(thread) => self.running = Some(Running { queue, thread }),
                Err(error) => log::error!("what plugins leave behind cannot be removed, for want of a thread: {error}"),
            }
        }
        self.running.as_ref()
    }

    /// Waits until all is removed.
    pub(crate) fn finish(self) {
        if let Some(Running { queue, thread }) = self.running {
            drop(queue);
            if thread.join().is_err() {
                log::error!("the thread that removes what plugins leave behind panicked; see above");
            }
        }
    }
}

/// Removes every entry of a directory.
fn empty(trash: &Path) {
    for entry in std::fs::read_dir(trash).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Err(error) = std::fs::remove_dir_all(&path) {
            log::warn!("{} cannot be removed: {error}; remove it yourself", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_removal_and_a_full_queue_is_told() {
        let (go, wait) = bounded::<()>(0);
        let mut remover = Remover::with(Arc::new(move |_| {
            let _ = wait.recv();
        }));
        assert!(remover.running.is_none(), "no thread before there is something to remove");
        // The thread may or may not have taken the first one.
        let taken = (0..WAITING_MAX + 2).filter(|_| remover.remove(None)).count();
        assert!((WAITING_MAX..=WAITING_MAX + 1).contains(&taken), "{taken}");
        assert!(remover.is_behind);
        drop(go);
        remover.finish();
    }

    #[test]
    fn a_thread_that_panicked_is_replaced() {
        let (done, seen) = bounded(1);
        let mut remover = Remover::with(Arc::new(move |group| match group {
            Some(group) => drop(done.send(group.to_owned())),
            None => panic!("this is a test"),
        }));
        assert!(remover.remove(None));
        // Whatever is put into the queue before the panic is lost; after it, it is noticed.
        while remover.running.as_ref().is_some_and(|running| !running.thread.is_finished()) {
            thread::yield_now();
        }
        assert!(!remover.remove(None));
        assert!(remover.remove(Some("a-group".into())));
        assert_eq!(seen.recv().expect("the new thread does it"), Path::new("a-group"));
        remover.finish();
    }

    #[test]
    fn what_lies_in_the_trash_from_before_is_removed() {
        let trash = std::env::temp_dir().join(format!("demi-trash-{}", std::process::id()));
        std::fs::create_dir_all(trash.join("old/deep")).expect("it can be made");
        Remover::new(trash.clone()).finish();
        assert_eq!(std::fs::read_dir(&trash).expect("it is there").count(), 0);
        assert!(Remover::new(trash.clone()).running.is_none(), "nothing to do, no thread");
        std::fs::remove_dir(&trash).expect("it is empty");
    }
}
