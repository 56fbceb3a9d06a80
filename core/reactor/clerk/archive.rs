//! The files of traces: what was recorded is appended to that of its day, and those that are too old are taken away.
//!
//! Each text is one write, without a sync: what a loss of power takes is a minute. A file that ends in the middle of a line,
//! because there was no room or no power, loses that line before anything is appended. What comes after a text that could not
//! be kept tells times from its last line, so it is refused as well, up to a text that begins anew.
//!
//! What has the name of a day and is no trace is somebody else's, and is not touched: a link is not followed, nor is a line cut off
//! that Demi did not write.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use demi_trace::HEADER;

use crate::traces::{self, DAY_BYTES_MAX};

/// The end of a file is looked through in pieces of this length.
const PIECE: usize = 4096;

/// Where traces are kept.
pub(crate) struct Archive {
    directory: PathBuf,
    days_max: u64,
    /// The day of the last text.
    unix_day: Option<u64>,
    /// Something could not be kept: the next text must begin anew.
    awaits_begin: bool,
    /// That it could not was told.
    fails: bool,
}

impl Archive {
    /// One that keeps so many days in this directory, which is made when there is something to keep.
    pub(crate) fn new(directory: PathBuf, days_max: u64) -> Archive {
        Archive { directory, days_max, unix_day: None, awaits_begin: false, fails: false }
    }

    /// Takes a text that belongs at the end of a day's file, and says whether it is kept. On another day than the last one,
    /// takes away what is too old. Blocks for the disk.
    pub(super) fn append(&mut self, unix_day: u64, text: &str, may_write: bool) -> bool {
        if self.awaits_begin && !text.starts_with(HEADER) || !may_write {
            self.awaits_begin = true;
            return false;
        }
        let kept = self.write(unix_day, text);
        match (&kept, self.fails) {
            (Err(error), false) => {
                log::error!("what happens to RAM is not recorded in {}: {error}", self.directory.display());
            }
            (Ok(()), true) => log::info!("what happens to RAM is recorded again"),
            (Ok(()), false) | (Err(_), true) => {}
        }
        (self.fails, self.awaits_begin) = (kept.is_err(), kept.is_err());
        if kept.is_ok() && self.unix_day.replace(unix_day) != Some(unix_day) {
            self.forget(unix_day);
        }
        kept.is_ok()
    }

    fn write(&self, unix_day: u64, text: &str) -> io::Result<()> {
        let path = self.directory.join(traces::name_of(unix_day));
        let open = || open(&path);
        let mut file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
                open()?
            }
            file => file?,
        };
        if !is_trace(&file)? {
            let what = format!("{} is no trace: it does not begin with {HEADER:?}; move it away", path.display());
            return Err(io::Error::other(what));
        }
        let length = end_of_lines(&mut file)?;
        // That of another Demi, or of a day that came twice.
        if length + text.len() as u64 > DAY_BYTES_MAX {
            return Err(io::Error::other(format!("{} would be longer than {DAY_BYTES_MAX} bytes", path.display())));
        }
        if length < file.metadata()?.len() {
            file.set_len(length)?;
        }
        file.write_all(text.as_bytes()).inspect_err(|_| {
            // What fits of it is cut off now or, if that fails as well, before something is appended.
            let _ = file.set_len(length);
        })
    }

    /// Takes away the files of days that were too long ago, and of the others the oldest, if there are more than of so many
    /// days: a clock that is wrong makes days that are never long ago.
    fn forget(&self, unix_day: u64) {
        let days = match traces::days(&self.directory) {
            Ok(days) => days,
            Err(error) => return log::error!("what was recorded too long ago cannot be taken away: {error}"),
        };
        let (old, mut young): (Vec<u64>, Vec<u64>) = days
            .into_iter()
            .filter(|other| *other != unix_day)
            .partition(|other| other.saturating_add(self.days_max) <= unix_day);
        let surplus = (young.len() as u64 + 1).saturating_sub(self.days_max.max(1));
        for day in old.into_iter().chain(young.drain(..surplus as usize)) {
            let path = self.directory.join(traces::name_of(day));
            if let Err(error) = fs::remove_file(&path) {
                log::error!("{} was recorded too long ago and cannot be taken away: {error}", path.display());
            }
        }
    }
}

/// Opens a file to append to it, or makes it. One that is no regular file is refused, and so is a link to one.
fn open(path: &Path) -> io::Result<File> {
    let refused = |kind| {
        let what = traces::irregular(kind)?;
        let what = format!("{} is {what}, and a trace is a regular file; move it away", path.display());
        Some(io::Error::other(what))
    };
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(path);
    let file = opened.map_err(|error| {
        let found = fs::symlink_metadata(path).ok();
        found.and_then(|found| refused(found.file_type())).unwrap_or(error)
    })?;
    match refused(file.metadata()?.file_type()) {
        Some(error) => Err(error),
        None => Ok(file),
    }
}

/// Whether a file begins as a trace does, or has been cut off before it could.
fn is_trace(file: &File) -> io::Result<bool> {
    let (mut begin, mut length) = ([0; HEADER.len() + 1], 0);
    while length < begin.len() {
        match file.read_at(&mut begin[length..], length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    Ok(HEADER.bytes().chain([b'\n']).zip(&begin[..length]).all(|(wanted, found)| wanted == *found))
}

/// Where the last line ends that does.
fn end_of_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut piece = [0; PIECE];
    while end > 0 {
        let start = end.saturating_sub(PIECE as u64);
        let piece = &mut piece[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(piece)?;
        if let Some(place) = piece.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + place as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Site(PathBuf);

    impl Site {
        fn new(name: &str) -> Site {
            let path = std::env::temp_dir().join(format!("demi-archive-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Site(path)
        }

        fn archive(&self, days_max: u64) -> Archive {
            Archive::new(self.0.join("traces"), days_max)
        }

        fn names(&self) -> Vec<String> {
            let files = fs::read_dir(self.0.join("traces")).expect("it is there").flatten();
            let mut names: Vec<String> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }

        fn text(&self, unix_day: u64) -> String {
            fs::read_to_string(self.0.join("traces").join(traces::name_of(unix_day))).expect("it is there")
        }
    }

    impl Drop for Site {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn begin(line: &str) -> String {
        format!("{HEADER}\n{line}\n")
    }

    #[test]
    fn what_comes_is_appended_to_its_day_and_a_line_that_was_cut_off_is_not_there_any_more() {
        let site = Site::new("append");
        let mut archive = site.archive(14);
        assert!(archive.append(20_000, &begin("one"), true));
        assert!(archive.append(20_000, "two\n", true));
        let path = site.0.join("traces").join(traces::name_of(20_000));
        for cut_off in ["thr".to_owned(), "x".repeat(3 * PIECE + 5)] {
            let mut file = OpenOptions::new().append(true).open(&path).expect("it is there");
            file.write_all(cut_off.as_bytes()).expect("there is room");
            assert!(site.archive(14).append(20_000, &begin("four"), true));
        }
        assert_eq!(site.text(20_000), begin("one") + "two\n" + &begin("four") + &begin("four"));
        fs::write(&path, "demi-tra").expect("there is room");
        assert!(archive.append(20_000, &begin("five"), true));
        assert!(archive.append(20_001, &begin("six"), true));
        assert_eq!((site.text(20_000), site.text(20_001)), (begin("five"), begin("six")));
    }

    #[test]
    fn what_is_no_trace_is_neither_followed_nor_cut_nor_appended_to() {
        let site = Site::new("foreign");
        let traces = site.0.join("traces");
        fs::create_dir_all(&traces).expect("there is room");
        let (target, path) = (site.0.join("target"), traces.join(traces::name_of(20_000)));
        let foreign = ["", "all of mine\nand a line without an end", HEADER, "demi-trace 10\n", "demi-trace 2\n"];
        for text in foreign {
            fs::write(&target, text).expect("there is room");
            std::os::unix::fs::symlink(&target, &path).expect("there is room");
            let error = site.archive(14).write(20_000, &begin("one")).expect_err("it is a link").to_string();
            let told = format!("{} is a symbolic link, and a trace is a regular file; move it away", path.display());
            assert_eq!(error, told);
            assert_eq!(fs::read_to_string(&target).ok().as_deref(), Some(text));
            fs::remove_file(&path).expect("it is there");
            if HEADER.starts_with(text) {
                continue;
            }
            fs::rename(&target, &path).expect("it is there");
            let mut archive = site.archive(14);
            assert!(!archive.append(20_000, &begin("one"), true) && archive.fails, "{text:?}");
            let error = archive.write(20_000, &begin("one")).expect_err("it is no trace").to_string();
            assert!(error.contains("is no trace: it does not begin with \"demi-trace 1\"; move it away"), "{error}");
            assert_eq!(site.text(20_000), text);
            fs::remove_file(&path).expect("it is there");
            assert!(archive.append(20_000, &begin("two"), true) && !archive.fails);
            fs::remove_file(&path).expect("it is there");
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).expect("there is room");
        let error = site.archive(14).write(20_000, &begin("one")).expect_err("it is a FIFO").to_string();
        assert!(error.contains("is a FIFO"), "{error}");
        fs::remove_file(&path).expect("it is there");
        fs::create_dir(&path).expect("there is room");
        let error = site.archive(14).write(20_000, &begin("one")).expect_err("it is a directory").to_string();
        assert!(error.contains("is a directory"), "{error}");
    }

    #[test]
    fn days_that_are_too_old_go_and_nothing_else_does() {
        let site = Site::new("forget");
        fs::create_dir_all(site.0.join("traces")).expect("there is room");
        let others = ["2024-10-01.trace.old", "notes", "2024-9-01.trace"];
        let names = [19_985, 19_986, 19_987, 19_999, 20_002].map(traces::name_of);
        for name in others.into_iter().chain(names.iter().map(String::as_str)) {
            fs::write(site.0.join("traces").join(name), "mine\n").expect("there is room");
        }
        let mut archive = site.archive(14);
        assert!(archive.append(20_000, &begin("one"), true));
        let mut left: Vec<String> = others.map(str::to_owned).to_vec();
        left.extend([19_987, 19_999, 20_000, 20_002].map(traces::name_of));
        left.sort();
        assert_eq!(site.names(), left);
        // A clock that is wrong makes days without end.
        for unix_day in 30_000..30_040 {
            assert!(archive.append(unix_day, &begin("one"), true));
        }
        assert!(archive.append(20_003, &begin("one"), true));
        assert_eq!(site.names().len(), others.len() + 14);
        assert!(site.names().contains(&traces::name_of(20_003)));
    }

    #[test]
    fn after_what_is_lost_nothing_is_kept_that_does_not_begin_anew() {
        let site = Site::new("lost");
        let mut archive = site.archive(14);
        assert!(archive.append(20_000, &begin("one"), true));
        assert!(!archive.append(20_000, "two\n", false), "too much was written today");
        assert!(!archive.append(20_000, "three\n", true), "its times begin where two ended");
        assert!(archive.append(20_000, &begin("four"), true));
        let long = begin(&"x".repeat(DAY_BYTES_MAX as usize));
        assert!(!archive.append(20_000, &long, true));
        assert!(archive.fails && !archive.append(20_000, "five\n", true));
        assert!(archive.append(20_000, &begin("six"), true));
        assert!(!archive.fails);
        assert_eq!(site.text(20_000), begin("one") + &begin("four") + &begin("six"));
    }

    #[test]
    fn where_nothing_can_be_written_nothing_is_kept_until_it_can() {
        let site = Site::new("refused");
        fs::write(&site.0, "a file and no directory").expect("there is room");
        let mut archive = site.archive(14);
        assert!(!archive.append(20_000, &begin("one"), true));
        assert!(archive.fails);
        fs::remove_file(&site.0).expect("it is there");
        assert!(archive.append(20_000, &begin("two"), true));
        assert_eq!((site.text(20_000), archive.fails), (begin("two"), false));
    }
}
