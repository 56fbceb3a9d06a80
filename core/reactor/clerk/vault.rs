//! The store as the clerk has it: open, or shut because the disk refuses.
//!
//! ```text
//!          an error of the disk
//!   open ───────────────────────► shut: every errand fails at once with the same reason, told once
//!     ▲                            │
//!     └────────────────────────────┘ every second at first, every half minute at last: something can be written
//! ```
//!
//! An error of the disk stays with sled, and a sync that failed may not be asked for again; so the store is closed, and
//! opened anew when there is room. The lock on the data directory is kept meanwhile.

use std::time::{Duration, Instant};

use crate::store::{Site, Store, StoreError};

/// The first wait for a disk that refuses, doubled up to the last.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);

pub(super) struct Vault {
    /// `None` only while it is being opened or closed.
    state: Option<State>,
}

enum State {
    Open(Box<Store>),
    Shut { site: Site, why: String, again_at: Instant, wait: Duration },
}

impl Vault {
    pub(super) fn new(store: Store) -> Vault {
        Vault { state: Some(State::Open(Box::new(store))) }
    }

    /// Asks the store. If the disk refuses, the store is shut from now on. Blocks for the disk.
    ///
    /// # Errors
    /// Of the store; [`StoreError::Shut`] while it is shut.
    pub(super) fn ask<T>(&mut self, errand: impl FnOnce(&Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        match &self.state {
            Some(State::Open(store)) => {
                let done = errand(store);
                if let Err(error) = &done {
                    if error.is_of_disk() {
                        self.shut(error.to_string());
                    }
                }
                done
            }
            Some(State::Shut { why, .. }) => Err(StoreError::Shut(why.clone())),
            None => Err(StoreError::Shut("it is being opened".to_owned())),
        }
    }

    /// Why it is shut, if it is.
    pub(super) fn trouble(&self) -> Option<&str> {
        match &self.state {
            Some(State::Shut { why, .. }) => Some(why),
            Some(State::Open(_)) | None => None,
        }
    }

    /// The store, if it is open.
    pub(super) fn store(&self) -> Option<&Store> {
        match &self.state {
            Some(State::Open(store)) => Some(store),
            Some(State::Shut { .. }) | None => None,
        }
    }

    /// When to look again at a disk that refuses.
    pub(super) fn again_at(&self) -> Option<Instant> {
        match &self.state {
            Some(State::Shut { again_at, .. }) => Some(*again_at),
            Some(State::Open(_)) | None => None,
        }
    }

    /// Opens the store again if it is time to, and something can be written. Blocks for the disk.
    pub(super) fn look(&mut self, now: Instant) {
        if self.again_at().is_none_or(|at| now < at) {
            return;
        }
        let Some(State::Shut { site, wait, .. }) = self.state.take() else { return };
        let opened = match site.try_to_write() {
            Ok(()) => site.open(),
            Err(error) => Err((site, error)),
        };
        self.state = Some(match opened {
            Ok(store) => {
                log::info!("the store works again");
                State::Open(Box::new(store))
            }
            Err((site, error)) => {
                let wait = (wait * 2).min(AGAIN_MAX);
                State::Shut { site, why: error.to_string(), again_at: now + wait, wait }
            }
        });
    }

    fn shut(&mut self, why: String) {
        let Some(State::Open(store)) = self.state.take() else { return };
        log::error!("the store is shut: {why}; until it works again nothing is kept, and it is tried again by itself");
        let site = store.close();
        self.state = Some(State::Shut { site, why, again_at: Instant::now() + AGAIN_MIN, wait: AGAIN_MIN });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DeadLetter;
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// A small disk of its own, gone with the test.
    struct Disk(PathBuf);

    impl Disk {
        /// `None`, and a line that says so, where this process may not mount one.
        fn new(bytes: usize) -> Option<Disk> {
            let path = std::env::temp_dir().join(format!("demi-disk-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("the temporary directory can be written");
            let size = format!("size={bytes}");
            let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).output();
            if mounted.is_ok_and(|output| output.status.success()) {
                return Some(Disk(path));
            }
            let _ = std::fs::remove_dir(&path);
            // Not by a macro: what those print is shown only of tests that fail.
            let _ = writeln!(std::io::stderr(), "skipped: no disk may be mounted here");
            None
        }

        /// Takes all room but for so many bytes.
        fn fill(&self, but: usize) -> PathBuf {
            let path = self.0.join("filler");
            let mut file = std::fs::File::create(&path).expect("there is room for an empty file");
            while file.write_all(&[1; 4096]).is_ok() {}
            let length = file.metadata().expect("it is open").len();
            file.set_len(length.saturating_sub(but as u64)).expect("a file can be made shorter");
            path
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).output();
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    fn open(path: &Path) -> Vault {
        Vault::new(Store::open(path, &demi_conductor::config::Store::default()).expect("there is room"))
    }

    fn bury(vault: &mut Vault, body: &str) -> Result<u64, StoreError> {
        let letter = DeadLetter { body: body.into(), ..DeadLetter::default() };
        let buried = vault.ask(|store| store.bury(&letter));
        buried.and_then(|id| vault.ask(Store::flush).map(|()| id))
    }

    #[test]
    fn on_a_full_disk_everything_fails_with_the_reason_and_works_again_when_there_is_room() {
        let Some(disk) = Disk::new(8 << 20) else { return };
        let data = disk.0.join("data");
        let mut vault = open(&data);
        let mut kept = Vec::new();
        for _ in 0..20 {
            kept.push(bury(&mut vault, "hello").expect("there is room"));
        }
        let filler = disk.fill(100_000);
        let error = loop {
            match bury(&mut vault, &"x".repeat(900)) {
                Ok(id) => kept.push(id),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("no space left"), "{error}");
        assert!(vault.trouble().is_some_and(|why| why.contains("no space left")) && vault.store().is_none());
        let again = bury(&mut vault, "x").expect_err("it is shut");
        assert!(matches!(&again, StoreError::Shut(why) if why.contains("no space left")), "{again}");

        // Still full: it stays shut, and the waits get longer.
        let first = vault.again_at().expect("it is shut");
        vault.look(first - Duration::from_millis(1));
        assert_eq!(vault.again_at(), Some(first), "not before its time");
        vault.look(first);
        let second = vault.again_at().expect("it is still shut");
        assert_eq!(second - first, AGAIN_MIN * 2);

        std::fs::remove_file(filler).expect("it is there");
        vault.look(second);
        assert_eq!(vault.trouble(), None);
        let after = bury(&mut vault, "after").expect("there is room");
        let page = vault.ask(|store| store.list(&Default::default(), 0, 500)).expect("it is open");
        let there: Vec<u64> = page.letters.iter().map(|(id, _)| *id).collect();
        assert!(kept.iter().all(|id| there.contains(id)), "what was kept is there: {kept:?} of {there:?}");
        assert!(there.contains(&after) && !kept.contains(&after));
        let aside = std::fs::read_dir(&data).expect("it is there").flatten();
        assert!(aside.filter(|entry| entry.file_name().to_string_lossy().contains("damaged")).count() == 0);
    }
}
