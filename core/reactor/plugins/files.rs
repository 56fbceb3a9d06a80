//! What was looked at on the file system, once each, and whether it can be trusted.
//!
//! Every look is kept with what was seen. So a thousand plugins that name `python3` cost one search of PATH, and whoever
//! wants to know whether the verdicts still hold looks at the same paths again and compares.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Access, OFlags};

/// What a file's metadata say: enough to tell whether it may have changed, and who may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    mode: u32,
    user: u32,
    device: u64,
    inode: u64,
    /// Of a directory 0: what comes and goes in it is looked at by name.
    size: u64,
    /// Seconds and nanoseconds. Of a directory 0.
    modified: (i64, i64),
    /// The same of its last change of any kind: copies may keep the time of the original. Of a directory 0.
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Stamp {
        let is_directory = metadata.is_dir();
        Stamp {
            mode: metadata.mode(),
            user: metadata.uid(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: if is_directory { 0 } else { metadata.size() },
            modified: if is_directory { (0, 0) } else { (metadata.mtime(), metadata.mtime_nsec()) },
            changed: if is_directory { (0, 0) } else { (metadata.ctime(), metadata.ctime_nsec()) },
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    pub(crate) fn is_file(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Which directory it is, under whatever name.
    pub(crate) fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Whether it is a file that was written so shortly before `now` that the writing may still go on, or go on unseen
    /// (the kernel's file times move in steps of some milliseconds).
    pub(crate) fn is_fresh(&self, now: SystemTime, settle: Duration) -> bool {
        let (seconds, nanos) = self.modified;
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else { return false };
        let modified = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos));
        // A time that lies ahead was set on purpose, or by another clock.
        modified.is_some_and(|modified| now.duration_since(modified).is_ok_and(|age| age < settle))
    }
}

/// What was seen at a path, symlinks followed.
pub(crate) type Seen = Result<Stamp, io::ErrorKind>;

/// Looks at a path as it is now.
pub(crate) fn look(path: &Path) -> Seen {
    std::fs::metadata(path).map(|metadata| Stamp::of(&metadata)).map_err(|error| error.kind())
}

/// Opens a file to read it, and nothing else: what was a file a moment ago may be a pipe that nobody writes to, or a
/// device, and neither is waited for.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let no_wait = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(no_wait).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"))
    }
}

/// What is wrong with a file, and what to do about it.
pub(crate) type Fault = (String, String);

/// What was looked at.
#[derive(Debug)]
pub(crate) struct Files {
    /// The user that runs Demi.
    user: u32,
    /// Where programs without a slash are looked for, unless a manifest names its own PATH.
    search: OsString,
    seen: HashMap<PathBuf, Seen>,
    programs: HashMap<(String, OsString), Option<PathBuf>>,
}

impl Files {
    pub(crate) fn new(user: u32, search: OsString) -> Files {
        Files { user, search, seen: HashMap::new(), programs: HashMap::new() }
    }

    /// Every path that was looked at, with what was seen there.
    pub(crate) fn into_seen(self) -> HashMap<PathBuf, Seen> {
        self.seen
    }

    /// What is at a path, symlinks followed; looked at once.
    pub(crate) fn look(&mut self, path: &Path) -> Seen {
        if let Some(seen) = self.seen.get(path) {
            return *seen;
        }
        let seen = look(path);
        self.seen.insert(path.to_owned(), seen);
        seen
    }

    /// What is wrong if everybody may change it, or it belongs to another than the user that runs Demi and root. `subject`
    /// is what to call it.
    pub(crate) fn distrust(&self, path: &Path, stamp: &Stamp, subject: &str) -> Option<Fault> {
        let shown = path.display();
        if stamp.mode & 0o002 != 0 {
            let remedy = format!("take that right away: chmod o-w {shown}");
            return Some((format!("{subject} may be written by everybody on this machine"), remedy));
        }
        if stamp.user != self.user && stamp.user != 0 {
            let what = format!(
                "{subject} belongs to user {}, who is neither the one that runs Demi ({}) nor root",
                stamp.user, self.user
            );
            return Some((what, format!("give it to the one that runs Demi: chown {} {shown}", self.user)));
        }
        None
    }

    /// As [`Files::distrust`] of the directory that a path is in: whoever may write there may put another file in its
    /// place, unless the sticky bit keeps them from it. If the path is a symlink, that of its target.
    pub(crate) fn distrust_place_of(&mut self, path: &Path, folder: &Path) -> Option<Fault> {
        let real = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => path.canonicalize().ok()?,
            _ => path.to_owned(),
        };
        let place = real.parent().filter(|place| *place != folder)?;
        let stamp = self.look(place).ok()?;
        let is_sticky = stamp.mode & 0o1000 != 0;
        self.distrust(place, &stamp, &place.display().to_string()).filter(|_| !is_sticky)
    }

    /// The executable that a program without a slash means, looked for in `search` or where Demi's PATH says.
    pub(crate) fn program(&mut self, name: &str, search: Option<&str>) -> Option<PathBuf> {
        let search = search.map_or_else(|| self.search.clone(), OsString::from);
        let key = (name.to_owned(), search);
        if let Some(program) = self.programs.get(&key) {
            return program.clone();
        }
        let program = std::env::split_paths(&key.1)
            .map(|directory| directory.join(name))
            .find(|path| self.look(path).is_ok_and(|stamp| stamp.is_file()) && is_executable(path));
        self.programs.insert(key, program.clone());
        program
    }
}

/// Whether the user that runs Demi may execute it.
pub(crate) fn is_executable(path: &Path) -> bool {
    rustix::fs::access(path, Access::EXEC_OK).is_ok()
}
