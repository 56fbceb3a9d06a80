//! What must survive a crash: the only place that knows sled.
//!
//! Every call here blocks on the disk, so the store lives on the clerk thread and nowhere else; it is `Send` but not
//! `Sync`, which keeps a second thread out. Below the data directory:
//!
//! ```text
//! demi.lock        flock held for life, with the holder's pid inside
//! db/              sled's own files
//! db/letters/ID    the letters too long for a page
//! given            the highest numbers that were given out; see `given.rs`
//! traces/          what was recorded of RAM and requests, which is not the store's; see `traces.rs`
//! db.damaged-<s>   a database that could not be read, set aside whole at that unix second
//! ```
//!
//! The trees: `history` and `starts` are told of in `history.rs`, `plugin_values` in `values.rs`; `meta` holds `schema`,
//! the version of this layout (u32, big endian); `dead_letters` holds the letters by
//! id (u64, big endian). The tally (next id, count) sits there under the last key of all, thus in the page a new letter
//! goes to anyway, and is written in one batch with it: both survive a crash or neither does. Those for what may be lost with the
//! machine are described in `history.rs`, `minutes.rs`, `peaks.rs` and `decisions.rs`.
//!
//! A letter longer than `INLINE_BYTES` has a file of its own, synced before the entry that names it. Why: sled 0.34
//! splits a page by the number of its items (more than 16), whatever their size, rewrites it whole every ten changes,
//! and moves one above a quarter of a segment to a file which it never syncs. With short values no page gets there, so
//! one fdatasync makes an entry durable; and a hundred letters of 1 MB cost no memory, where sled kept 48 MB.
//!
//! An error of the disk (full, failed) stays with sled until the store is dropped and opened again.

mod coding;
mod decisions;
mod given;
mod history;
mod letter;
mod letters;
mod migrations;
mod minutes;
mod peaks;
mod posts;
mod values;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use demi_conductor::config::Store as Settings;
use rustix::fs::{flock, FlockOperation};

pub(crate) use decisions::{KeptDecision, DECISIONS_MAX};
use given::{Given, GivenFile};
pub use letter::{DeadLetter, LetterFilter};
pub use letters::LetterPage;
pub(crate) use minutes::{Minute, Span};
pub(crate) use peaks::KeptPeak;
pub(crate) use posts::{cut as cut_error, Post, PostEnd, PostResult, Posted};
pub use values::check_value;

/// The layout this version reads and writes.
const SCHEMA: u32 = 3;

/// sled's unit of writing; its write buffer is this large and becomes resident as it fills. sled's default is 512 KiB.
/// It is written into the database, so changing it is a migration.
const SEGMENT_BYTES: usize = 128 * 1024;

/// The longest letter sled gets to see. A page has at most 17 items before it splits, and 17 × 1,024 with their keys stay
/// well below the quarter segment (32 KiB) above which sled moves a page to a file it never syncs.
const INLINE_BYTES: usize = 1024;

/// How many reads of a page make sled's cache look at its queue.
const SETTLE_READS: usize = 65;

/// A page that has split is at least half of 16 full, so every eighth letter meets each page.
const SETTLE_EVERY: usize = 8;

/// Between two looks of sled at segments that are worth packing.
const PACK_EVERY_MS: u64 = 600_000;

/// How long to wait for a lock whose holder is gone. sled's own may be held for a moment by a store just dropped in this
/// process: sled closes its file from a background thread.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Sorts after every id that can be given out.
const TALLY_KEY: [u8; 8] = [0xff; 8];

/// The store of one data directory, held under an exclusive lock until dropped. Dropping it flushes.
pub struct Store {
    letters: sled::Tree,
    values: values::Values,
    history: sled::Tree,
    starts: sled::Tree,
    minutes: sled::Tree,
    decisions: sled::Tree,
    peaks: sled::Tree,
    /// Peaks that are of no use any more were looked for.
    has_forgotten_peaks: Cell<bool>,
    metrics_days: u64,
    /// The hour in which old minutes were last looked for.
    minutes_forgotten_at: Cell<Option<u32>>,
    /// How many entries the history of a platform has, as far as one was added since the store was opened.
    noted: RefCell<BTreeMap<Box<str>, u32>>,
    /// Tells entries of the same millisecond apart.
    sequence: Cell<u32>,
    db: sled::Db,
    /// The file sled writes to, opened once more: sled's flush hands the data to the disk (sync_file_range) without
    /// telling the disk to empty its cache.
    database: File,
    path: PathBuf,
    dead_letters_max: u64,
    dead_letters_days: u64,
    tally: Cell<Tally>,
    census: RefCell<letters::Census>,
    posts: sled::Tree,
    posts_tally: Cell<Tally>,
    /// The number of the end of a post that was kept last.
    last_end: Cell<u64>,
    /// Files that no entry names any more, once that is durable.
    doomed: RefCell<Vec<PathBuf>>,
    /// After a failed fdatasync the kernel may call lost pages clean, and a second one would succeed: never ask twice.
    sync_failed: Cell<bool>,
    given: RefCell<GivenFile>,
    settings: Settings,
    /// Last, so that it is released last.
    lock: Arc<Lock>,
}

/// The lock of a data directory, let go by the last who has it.
struct Lock(File);

impl Drop for Lock {
    /// By itself a lock lasts as long as any copy of its descriptor, and a child that is being started by this process, whichever
    /// thread does it, has copies of all until it has become another program.
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Where a store was and will be again: its directory, locked.
pub(crate) struct Site {
    path: PathBuf,
    settings: Settings,
    lock: Arc<Lock>,
}

impl Site {
    /// Opens the store that is here; see [`Store::open`].
    ///
    /// # Errors
    /// With the site, for another try.
    #[allow(clippy::result_large_err)] // once in a while, and never in a loop
    pub(crate) fn open(self) -> Result<Store, (Site, StoreError)> {
        Store::open_at(&self.path, &self.settings, &self.lock).map_err(|error| (self, error))
    }

    /// Whether as much can be written as sled writes at once. Blocks for the disk.
    pub(crate) fn try_to_write(&self) -> Result<(), StoreError> {
        let path = self.path.join("probe");
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(&vec![0; 2 * SEGMENT_BYTES])?;
            file.sync_all()
        };
        let written = write().map_err(|e| StoreError::from_io(&path, e));
        // What cannot be removed is overwritten the next time.
        let _ = fs::remove_file(&path);
        written
    }
}

/// What the store can refuse, each with its remedy.
#[derive(Debug)]
pub enum StoreError {
    /// Another process (or another store of this one) has the directory.
    Held {
        /// The data directory.
        path: PathBuf,
        /// The holder's process id, if it is known.
        pid: Option<u32>,
        /// The holder's command name, if it is known.
        name: Option<String>,
    },
    /// The data directory, or what leads to it, is a file.
    NotADirectory {
        /// The data directory.
        path: PathBuf,
    },
    /// The user Demi runs as may not write here.
    Denied {
        /// What could not be opened or written.
        path: PathBuf,
    },
    /// The file system is mounted read-only.
    ReadOnly {
        /// What could not be written.
        path: PathBuf,
    },
    /// The disk, or the user's share of it, is full.
    DiskFull {
        /// What could not be written.
        path: PathBuf,
    },
    /// A newer Demi wrote this database. Nothing in it was changed.
    Newer {
        /// The data directory.
        path: PathBuf,
        /// The schema version found.
        found: u32,
        /// The newest schema version this Demi knows.
        known: u32,
    },
    /// The database is sound but was made by another version or setting of sled. Nothing in it was changed.
    Foreign {
        /// The database.
        path: PathBuf,
        /// What sled says about it.
        what: String,
    },
    /// The database cannot be read at some place. When this is found at open, the database is set aside instead.
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// There are as many dead letters as the config allows; none was added.
    Full {
        /// How many there are.
        buried: u64,
        /// `store.dead_letters_max`.
        max: u64,
    },
    /// As many posts wait as the config allows; none was taken.
    PostsFull {
        /// How many wait.
        waiting: u64,
        /// `posts.queue_max`.
        max: u64,
    },
    /// A plugin or a client may not keep this; a sentence says why.
    Refused(String),
    /// The disk refused before, as a sentence says, and the store waits until it does not any more.
    Shut(String),
    /// Any other failure of the disk or the file system.
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The next id to give out and the number of letters there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    next_id: u64,
    count: u64,
}

impl Store {
    /// Opens the store in the directory `path`, made with mode 0700 if absent, with the bounds of `settings`, whose own
    /// path is not looked at.
    ///
    /// A database that cannot be read is renamed to `db.damaged-<unix seconds>`, which is logged as an error, and a new
    /// one is started; it is never deleted. Blocks for the lock, the recovery of what was written since the last open,
    /// and a few syncs when new.
    pub fn open(path: &Path, settings: &Settings) -> Result<Store, StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| match fs::metadata(path) {
            Ok(found) if !found.is_dir() => StoreError::NotADirectory { path: path.to_owned() },
            _ => StoreError::from_io(path, e),
        })?;
        let site =
            Site { path: path.to_owned(), settings: settings.clone(), lock: Arc::new(Lock(lock_directory(path)?)) };
        site.open().map_err(|(_, error)| error)
    }

    /// Closes it and keeps the lock. Blocks for the disk.
    pub(crate) fn close(self) -> Site {
        let Store { path, settings, lock, .. } = self;
        Site { path, settings, lock }
    }

    fn open_at(path: &Path, settings: &Settings, lock: &Arc<Lock>) -> Result<Store, StoreError> {
        let cache_bytes = settings.cache_bytes.value();
        let db_path = path.join("db");
        let given = Given::read(path);
        let mut is_told = false;
        let opened = match open_database(&db_path, cache_bytes) {
            Err(StoreError::Damaged { what, .. }) => {
                let aside = set_aside(&db_path)?;
                log::error!(
                    "the database {} cannot be read ({what}); it is kept as {} and a new one was started: what waited in \
                     it is missing until it is repaired or given up",
                    db_path.display(),
                    aside.display()
                );
                is_told = true;
                open_database(&db_path, cache_bytes)
            }
            opened => opened,
        }?;
        let lost = |next: u64, given: u64| (next < given).then(|| format!("{next} to {}", given - 1));
        let lost_posts = lost(opened.posts_tally.next_id, given.next_post);
        let lost_letters = lost(opened.tally.next_id, given.next_letter);
        for (noun, numbers) in [("messages", lost_posts), ("dead letters", lost_letters)] {
            if let Some(numbers) = numbers.filter(|_| !is_told) {
                log::error!(
                    "the database {} has lost its end: {noun} {numbers} were kept and are missing; look at the disk",
                    db_path.display()
                );
            }
        }
        let burials = opened.burials;
        let store = Store {
            letters: opened.letters,
            values: values::Values::default(),
            history: opened.history,
            starts: opened.starts,
            minutes: opened.minutes,
            decisions: opened.decisions,
            peaks: opened.peaks,
            has_forgotten_peaks: Cell::new(false),
            metrics_days: settings.metrics_days.value(),
            minutes_forgotten_at: Cell::new(None),
            noted: RefCell::default(),
            sequence: Cell::new(0),
            db: opened.db,
            database: opened.database,
            path: path.to_owned(),
            dead_letters_max: settings.dead_letters_max.value(),
            dead_letters_days: settings.dead_letters_days.value(),
            tally: Cell::new(opened.tally.not_below(given.next_letter)),
            census: RefCell::new(opened.census),
            posts: opened.posts,
            posts_tally: Cell::new(opened.posts_tally.not_below(given.next_post)),
            last_end: Cell::new(opened.last_end.max(given.last_end)),
            doomed: RefCell::default(),
            sync_failed: Cell::new(false),
            given: RefCell::new(GivenFile::open(path)),
            settings: settings.clone(),
            lock: Arc::clone(lock),
        };
        store.finish_burials(&burials)?;
        Ok(store)
    }

    /// Returns when everything written so far is on the disk, the disk's own cache included: one sync for however many
    /// writes. Once this has failed, it fails until the store is opened again, because what the kernel lost it does not
    /// tell twice.
    pub fn flush(&self) -> Result<(), StoreError> {
        let db_path = self.path.join("db");
        if self.sync_failed.get() {
            let source = io::Error::other("an earlier sync failed");
            return Err(StoreError::Io { path: db_path, source });
        }
        self.guarded(|| self.db.flush())?;
        self.database.sync_data().map_err(|e| {
            self.sync_failed.set(true);
            StoreError::from_io(&db_path, e)
        })?;
        self.given.borrow_mut().note(Given {
            next_letter: self.tally.get().next_id,
            next_post: self.posts_tally.get().next_id,
            last_end: self.last_end.get(),
        });
        for path in self.doomed.borrow_mut().drain(..) {
            // One that stays is found at the next start.
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    /// `store.bytes_per_day_max`.
    pub(crate) fn bytes_per_day_max(&self) -> u64 {
        self.settings.bytes_per_day_max.value()
    }

    fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { path: self.path.join("db"), what }
    }

    /// Reads one key until sled's cache notices. sled 0.34 spreads its pages over 256 queues and looks at what to evict
    /// from one only after 64 reads from it, so 16,000 pages could pile up whatever the cache's capacity; this makes it
    /// look at the queue of this key's page. Takes about 20 µs.
    fn settle(&self, tree: &sled::Tree, key: &[u8]) -> Result<(), StoreError> {
        for _ in 0..SETTLE_READS {
            self.guarded(|| tree.contains_key(key))?;
        }
        Ok(())
    }

    /// Calls into sled, which panics at some kinds of damage; the clerk must outlive that.
    fn guarded<T>(&self, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        guarded(&self.path.join("db"), call)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path).field("tally", &self.tally.get()).finish_non_exhaustive()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Held { path, pid, name } => {
                write!(f, "data directory {} is held by ", path.display())?;
                match (pid, name) {
                    (Some(pid), Some(name)) => write!(f, "process {pid} ({name})")?,
                    (Some(pid), None) => write!(f, "process {pid}")?,
                    (None, _) => write!(f, "another process")?,
                }
                write!(f, "; stop it or set `store.path` to another directory")
            }
            StoreError::NotADirectory { path } => {
                write!(f, "data directory {} is a file; move it or set `store.path` to a directory", path.display())
            }
            StoreError::Denied { path } => write!(
                f,
                "no permission to write {}; make it belong to the user demi runs as or set `store.path` to another \
                 directory",
                path.display()
            ),
            StoreError::ReadOnly { path } => write!(
                f,
                "{} is on a read-only file system; mount it writable or set `store.path` to another directory",
                path.display()
            ),
            StoreError::DiskFull { path } => write!(
                f,
                "no space left to write {}; free some, or set `store.path` to another disk",
                path.display()
            ),
            StoreError::Newer { path, found, known } => write!(
                f,
                "data directory {} has schema {found}, this demi knows up to {known}; use a newer demi or set \
                 `store.path` to another directory",
                path.display()
            ),
            StoreError::Foreign { path, what } => write!(
                f,
                "database {} was made by another version of demi ({what}); use that version or set `store.path` to \
                 another directory",
                path.display()
            ),
            StoreError::Damaged { path, what } => write!(
                f,
                "database {} is damaged ({what}); restart demi, and if that does not help restore it from a backup or \
                 move it away",
                path.display()
            ),
            StoreError::Full { buried, max } => write!(
                f,
                "there are {buried} dead letters and `store.dead_letters_max` is {max}; replay or purge some, or raise it"
            ),
            StoreError::PostsFull { waiting, max } => {
                write!(f, "{waiting} messages wait, and `posts.queue_max` is {max}; see why they do, or raise it")
            }
            StoreError::Shut(why) => write!(f, "the store is shut: {why}"),
            StoreError::Refused(why) => f.write_str(why),
            StoreError::Io { path, source } => {
                write!(f, "cannot use {}: {source}; check the disk and `store.path`", path.display())
            }
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl StoreError {
    /// Whether it is the disk that refuses, or the system for its sake.
    pub(crate) fn is_of_disk(&self) -> bool {
        matches!(
            self,
            StoreError::DiskFull { .. }
                | StoreError::ReadOnly { .. }
                | StoreError::Denied { .. }
                | StoreError::Io { .. }
        )
    }

    fn from_io(path: &Path, source: io::Error) -> StoreError {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::PermissionDenied => StoreError::Denied { path },
            ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { path },
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                StoreError::DiskFull { path }
            }
            ErrorKind::NotADirectory => StoreError::NotADirectory { path },
            _ => StoreError::Io { path, source },
        }
    }

    fn from_sled(path: &Path, error: sled::Error) -> StoreError {
        let damaged = |what: String| StoreError::Damaged { path: path.to_owned(), what };
        match error {
            // sled reports a file that ends too early, or holds what it cannot parse, as an error of input.
            sled::Error::Io(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) => {
                damaged(e.to_string())
            }
            sled::Error::Io(e) => StoreError::from_io(path, e),
            // Settings that are not text: sled 0.34 takes them for those of a very old sled, which we never used.
            sled::Error::Unsupported(what) if what.contains("earlier than 0.29") => damaged(what),
            sled::Error::Unsupported(what) => StoreError::Foreign { path: path.to_owned(), what },
            sled::Error::Corruption { at, .. } => match at {
                Some(at) => damaged(format!("a checksum does not match at {at:?}")),
                None => damaged("a checksum does not match".into()),
            },
            other => damaged(other.to_string()),
        }
    }
}

impl Tally {
    /// The same, but that ids below this one are not given out.
    fn not_below(self, next_id: u64) -> Tally {
        Tally { next_id: self.next_id.max(next_id), ..self }
    }

    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next_id.to_be_bytes());
        bytes[8..].copy_from_slice(&self.count.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Tally> {
        let (next_id, count) = bytes.split_first_chunk::<8>()?;
        Some(Tally { next_id: u64::from_be_bytes(*next_id), count: u64::from_be_bytes(count.try_into().ok()?) })
    }
}

fn id_of(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

/// Takes the lock of a data directory and writes our pid into it, for whoever comes second.
fn lock_directory(path: &Path) -> Result<File, StoreError> {
    take_lock(path, || thread::sleep(Duration::from_millis(1)))
}

/// As [`lock_directory`]; `rest` comes between two tries.
fn take_lock(path: &Path, mut rest: impl FnMut()) -> Result<File, StoreError> {
    let lock_path = path.join("demi.lock");
    let failed = |e: io::Error| StoreError::from_io(&lock_path, e);
    // Not truncated here: until the lock is ours, the pid inside is the holder's.
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(failed)?;
    let began = Instant::now();
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                lock.seek(SeekFrom::Start(0)).map_err(failed)?;
                let pid = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok());
                let name = pid
                    .and_then(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok())
                    .map(|name| name.trim_end().to_owned());
                // One that was killed may have left a child that is about to become another program, and has the lock until then.
                if name.is_some() || began.elapsed() > LOCK_WAIT {
                    return Err(StoreError::Held { path: path.to_owned(), pid, name });
                }
                rest();
            }
            Err(e) => return Err(failed(e.into())),
        }
    }
    lock.set_len(0)
        .and_then(|()| lock.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(lock, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(lock)
}

/// What [`open_database`] found or made.
struct Opened {
    db: sled::Db,
    letters: sled::Tree,
    history: sled::Tree,
    starts: sled::Tree,
    minutes: sled::Tree,
    decisions: sled::Tree,
    peaks: sled::Tree,
    database: File,
    tally: Tally,
    census: letters::Census,
    posts: sled::Tree,
    posts_tally: Tally,
    last_end: u64,
    /// Posts that dead letters were, with the letters.
    burials: Vec<(u64, u64)>,
}

fn open_database(path: &Path, cache_bytes: u64) -> Result<Opened, StoreError> {
    // Made last, when all else is durable: without it the database is new, or was new when the power went.
    let new = !path.join("letters").exists();
    let db = guarded_open(path, cache_bytes)?;
    let damaged = |what: &str| StoreError::Damaged { path: path.to_owned(), what: what.to_owned() };

    let file = path.join("db");
    let database = File::open(&file).map_err(|e| StoreError::from_io(&file, e))?;
    let sync = || {
        guarded(path, || db.flush())?;
        database.sync_data().map_err(|e| StoreError::from_io(&file, e))
    };

    let meta = guarded(path, || db.open_tree("meta"))?;
    match guarded(path, || meta.get("schema"))? {
        None if new => {
            guarded(path, || meta.insert("schema", &SCHEMA.to_be_bytes()))?;
        }
        None => return Err(damaged("its schema version is gone")),
        Some(bytes) => match <[u8; 4]>::try_from(&bytes[..]).map(u32::from_be_bytes) {
            Ok(SCHEMA) => {}
            Ok(found) if found > SCHEMA => {
                let path = path.parent().unwrap_or(path).to_owned();
                return Err(StoreError::Newer { path, found, known: SCHEMA });
            }
            Ok(found) if found > 0 => migrations::migrate(path, &db, &meta, found, sync)?,
            Ok(_) | Err(_) => return Err(damaged("its schema version is none that ever was")),
        },
    }

    let letters = guarded(path, || db.open_tree("dead_letters"))?;
    let tally = match guarded(path, || letters.get(TALLY_KEY))? {
        Some(bytes) => Tally::decode(&bytes).ok_or_else(|| damaged("the tally of its dead letters is unreadable"))?,
        None if new => {
            let first = Tally { next_id: 1, count: 0 };
            guarded(path, || letters.insert(TALLY_KEY, &first.encode()))?;
            first
        }
        // Where sled finds its log damaged it may go back to an older state, an empty one too, without an error.
        None => return Err(damaged("the tally of its dead letters is gone")),
    };
    // The tally is written with each letter, so a letter at or above it is a sign of damage, not of a crash.
    if let Some((key, _)) = guarded(path, || letters.get_lt(TALLY_KEY))? {
        match id_of(&key) {
            Some(last) if last < tally.next_id => {}
            _ => return Err(damaged("a dead letter has an id that was never given")),
        }
    }

    let history = guarded(path, || db.open_tree("history"))?;
    let starts = guarded(path, || db.open_tree("starts"))?;
    let minutes = guarded(path, || db.open_tree("minutes"))?;
    let decisions = guarded(path, || db.open_tree("decisions"))?;
    let peaks = guarded(path, || db.open_tree("peaks"))?;

    if new {
        sync()?;
        let letter_files = path.join("letters");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&letter_files)
            .map_err(|e| StoreError::from_io(&letter_files, e))?;
        sync_new(path, &database).map_err(|e| StoreError::from_io(path, e))?;
    }
    let posts = guarded(path, || db.open_tree("posts"))?;
    let posts_tally = match guarded(path, || posts.get(posts::POSTS_TALLY_KEY))? {
        Some(bytes) => Tally::decode(&bytes).ok_or_else(|| damaged("the tally of its posts is unreadable"))?,
        None => Tally { next_id: 1, count: 0 },
    };
    if let Some((key, _)) = guarded(path, || posts.get_lt(posts::POSTS_TALLY_KEY))? {
        match id_of(&key[1..]) {
            Some(last) if last < posts_tally.next_id => {}
            _ => return Err(damaged("a post has an id that was never given")),
        }
    }
    let last_end = guarded(path, || posts::last_end_of(&posts))?;
    let post_files = path.join("posts");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&post_files)
        .map_err(|e| StoreError::from_io(&post_files, e))?;
    letters::remove_strays(&post_files, |id| guarded(path, || posts.contains_key(posts::name_of(id))))?;
    let (census, burials) = letters::count(path, &letters)?;
    letters::remove_strays(&path.join("letters"), |id| guarded(path, || letters.contains_key(id.to_be_bytes())))?;
    Ok(Opened {
        db,
        letters,
        history,
        starts,
        minutes,
        decisions,
        peaks,
        database,
        tally,
        census,
        posts,
        posts_tally,
        last_end,
        burials,
    })
}

/// Makes the files of a new database durable: sled syncs neither its settings nor the directories.
fn sync_new(path: &Path, database: &File) -> io::Result<()> {
    File::open(path.join("conf"))?.sync_all()?;
    database.sync_all()?;
    for directory in path.ancestors().take(3).filter(|p| !p.as_os_str().is_empty()) {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

fn guarded_open(path: &Path, cache_bytes: u64) -> Result<sled::Db, StoreError> {
    // What must be durable is flushed by whoever writes it. sled's flushing thread is there because it alone packs the
    // half-empty segments that the history leaves behind, and that is not urgent.
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(cache_bytes)
        .segment_size(SEGMENT_BYTES)
        .mode(sled::Mode::LowSpace)
        .use_compression(false)
        .flush_every_ms(Some(PACK_EVERY_MS));
    let since = Instant::now();
    loop {
        match guarded(path, || config.open()) {
            // No other Demi can hold it, because we have `demi.lock`.
            Err(StoreError::Io { source, .. })
                if source.to_string().contains("could not acquire lock") && since.elapsed() < LOCK_WAIT =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

fn guarded<T>(path: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| StoreError::from_sled(path, e)),
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("sled panicked");
            Err(StoreError::Damaged { path: path.to_owned(), what: what.to_owned() })
        }
    }
}

/// Renames a damaged database to a name that is free.
fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    // A clock before 1970 is no reason not to start.
    let mut seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    loop {
        let aside = path.with_file_name(format!("db.damaged-{seconds}"));
        if !aside.exists() {
            fs::rename(path, &aside).map_err(|e| StoreError::from_io(path, e))?;
            return Ok(aside);
        }
        seconds += 1;
    }
}

#[cfg(test)]
mod tests;
