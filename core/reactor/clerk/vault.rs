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

    fn skipped(why: &str) {
        // Not by a macro: what those print is shown only of tests that fail.
        let _ = writeln!(std::io::stderr(), "skipped: {why}");
    }

    fn succeeds(command: &mut Command) -> bool {
        command.output().is_ok_and(|output| output.status.success())
    }

    impl Disk {
        /// One in memory; `None`, and a line that says so, where this process may not mount it.
        fn new(bytes: usize) -> Option<Disk> {
            let size = format!("size={bytes}");
            Disk::mount("full", |command| command.args(["-t", "tmpfs", "-o", &size, "tmpfs"]))
        }

        /// The file system in an image, which turns read-only when it finds an error; else as [`Disk::new`].
        fn of(image: &Path) -> Option<Disk> {
            Disk::mount("read-only", |command| command.args(["-o", "loop,errors=remount-ro"]).arg(image))
        }

        fn mount(name: &str, what: impl FnOnce(&mut Command) -> &mut Command) -> Option<Disk> {
            let path = std::env::temp_dir().join(format!("demi-disk-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("the temporary directory can be written");
            if succeeds(what(&mut Command::new("mount")).arg(&path)) {
                return Some(Disk(path));
            }
            let _ = std::fs::remove_dir(&path);
            skipped("no disk may be mounted here");
            None
        }

        /// As if the kernel had found an error on it.
        fn turn_read_only(&self) {
            let mounts = std::fs::read_to_string("/proc/mounts").expect("it is there on Linux");
            let path = self.0.to_string_lossy();
            let device = mounts.lines().find_map(|line| {
                let (device, rest) = line.split_once(' ')?;
                rest.starts_with(&*path).then(|| device.trim_start_matches("/dev/").to_owned())
            });
            let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", device.expect("it is mounted"));
            std::fs::write(trigger, "a test").expect("ext4 takes it");
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

    #[test]
    fn a_disk_that_turns_read_only_shuts_the_store_and_what_was_kept_is_there_when_it_is_mounted_again() {
        let image = std::env::temp_dir().join(format!("demi-disk-{}.img", std::process::id()));
        std::fs::File::create(&image).and_then(|file| file.set_len(32 << 20)).expect("there is room");
        if !succeeds(Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&image)) {
            let _ = std::fs::remove_file(&image);
            return skipped("there is no mkfs.ext4");
        }
        let Some(disk) = Disk::of(&image) else {
            let _ = std::fs::remove_file(&image);
            return;
        };
        let mut vault = open(&disk.0.join("data"));
        let kept = bury(&mut vault, "before").expect("it can be written");
        disk.turn_read_only();
        let error = bury(&mut vault, "after").expect_err("nothing can be written");
        assert!(error.to_string().contains("read-only file system"), "{error}");
        assert!(vault.trouble().is_some_and(|why| why.contains("mount it writable")) && vault.store().is_none());
        let again_at = vault.again_at().expect("it is shut");
        vault.look(again_at);
        assert!(vault.trouble().is_some_and(|why| why.contains("read-only")), "it still is");
        drop(vault);
        drop(disk);

        let disk = Disk::of(&image).expect("it could be mounted before");
        let mut vault = open(&disk.0.join("data"));
        let page = vault.ask(|store| store.list(&Default::default(), 0, 500)).expect("it is open");
        assert_eq!(page.letters.iter().map(|(id, _)| *id).collect::<Vec<u64>>(), [kept]);
        drop(vault);
        drop(disk);
        let _ = std::fs::remove_file(&image);
    }
}
