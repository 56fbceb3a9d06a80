//! What was recorded of RAM, requests and platforms, by day: `<store.path>/traces/YYYY-MM-DD.trace`, by the date in universal
//! time. They are files of their own and not in the database, so that they can be read while Demi runs and holds that.
//!
//! What stands in them is described in `demi_trace`, which writes and reads it.

use std::fmt;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The format: what entries tell, and how they are written and read.
pub use demi_trace as format;
use demi_trace::{Entry, Malformed, HEADER};

/// Below the directory of the store.
const DIRECTORY: &str = "traces";
const SUFFIX: &str = ".trace";
pub(crate) const DAY_MS: u64 = 86_400_000;
/// No file gets longer: so much a day, whatever happens.
pub(crate) const DAY_BYTES_MAX: u64 = 2_000_000;
/// A longer file is none that Demi wrote.
const FILE_BYTES_MAX: u64 = 64_000_000;
/// In the year 9999; later ones have no name of ten characters.
const UNIX_DAY_MAX: u64 = 2_932_896;

/// Why no trace could be read.
#[derive(Debug)]
pub enum TraceError {
    /// Nothing was recorded since then.
    Nothing {
        /// Where it would be.
        directory: PathBuf,
    },
    /// A file, or the directory, cannot be read.
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file holds what makes no sense.
    Malformed {
        /// Which.
        path: PathBuf,
        /// Where, and what.
        malformed: Malformed,
    },
}

impl fmt::Display for TraceError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TraceError::Nothing { directory } => write!(
                formatter,
                "nothing was recorded in {} since then; Demi records while it runs, if `scaler.trace_days` is above 0",
                directory.display()
            ),
            TraceError::Unreadable { path, error } => write!(formatter, "{} cannot be read: {error}", path.display()),
            TraceError::Malformed { path, malformed } => write!(
                formatter,
                "{}, {malformed}; take the file away, or mend that line, to read the others",
                path.display()
            ),
        }
    }
}

impl std::error::Error for TraceError {}

/// Where the traces are that belong to the store at this path.
pub fn directory(store: &Path) -> PathBuf {
    store.join(DIRECTORY)
}

/// What was recorded since the begin of the day (UTC) of a date, milliseconds since 1970, in the order of the days. `store` is the
/// path of the store: `store.path` of the configuration, from where that starts.
///
/// The first entry is a `begin`, and so is that of each day. Days of which there is no file are passed over. Demi may run
/// meanwhile. Blocks for the disk.
///
/// # Errors
/// If there is no file at all, one cannot be read, or one holds what is no trace.
pub fn read_last(store: &Path, since_unix_ms: u64) -> Result<Vec<Entry>, TraceError> {
    let directory = directory(store);
    let mut entries = Vec::new();
    for unix_day in days(&directory)?.into_iter().filter(|unix_day| *unix_day >= since_unix_ms / DAY_MS) {
        let path = directory.join(name_of(unix_day));
        entries.extend(read(&path)?);
    }
    if entries.is_empty() {
        return Err(TraceError::Nothing { directory });
    }
    Ok(entries)
}

/// What one file holds, of Demi or of somebody else. Blocks for the disk.
///
/// # Errors
/// If it cannot be read, or is no trace.
pub fn read(path: &Path) -> Result<Vec<Entry>, TraceError> {
    let unreadable = |error| TraceError::Unreadable { path: path.to_owned(), error };
    let mut text = Vec::new();
    let file = open_regular(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes; cut it in two"))));
    }
    // Names in a line that was cut off may end in the middle of a character.
    let text = String::from_utf8_lossy(&text);
    if HEADER.starts_with(&*text) {
        // Cut off before there was anything in it.
        return Ok(Vec::new());
    }
    demi_trace::read(&text).map_err(|malformed| TraceError::Malformed { path: path.to_owned(), malformed })
}

/// Opens a file to read, if it is one: whoever opens a FIFO waits for somebody who writes, and a device may have no end.
fn open_regular(path: &Path) -> io::Result<File> {
    let refuse = |kind: FileType| match irregular(kind) {
        Some(what) => Err(io::Error::other(format!("it is {what}, and a trace is a regular file"))),
        None => Ok(()),
    };
    refuse(fs::metadata(path)?.file_type())?;
    // It may have become another meanwhile.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    refuse(file.metadata()?.file_type())?;
    Ok(file)
}

/// What something is that is no regular file, in words.
pub(crate) fn irregular(kind: FileType) -> Option<&'static str> {
    match kind {
        _ if kind.is_file() => None,
        _ if kind.is_symlink() => Some("a symbolic link"),
        _ if kind.is_dir() => Some("a directory"),
        _ if kind.is_fifo() => Some("a FIFO"),
        _ if kind.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
}

/// Days of which there are files, in order. None if there is no directory. What has such a name and is no regular file, nor a link
/// to one, is passed over.
pub(crate) fn days(directory: &Path) -> Result<Vec<u64>, TraceError> {
    let unreadable = |error| TraceError::Unreadable { path: directory.to_owned(), error };
    let files = match fs::read_dir(directory) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut days = Vec::new();
    for file in files {
        let file = file.map_err(unreadable)?;
        let day = file.file_name().to_str().and_then(day_of);
        days.extend(day.filter(|_| file.path().is_file()));
    }
    days.sort_unstable();
    Ok(days)
}

/// The name of the file of a day, counted from 1970.
pub(crate) fn name_of(unix_day: u64) -> String {
    let (year, month, day) = date_of(unix_day.min(UNIX_DAY_MAX));
    format!("{year:04}-{month:02}-{day:02}{SUFFIX}")
}

/// The day whose file has exactly this name.
fn day_of(name: &str) -> Option<u64> {
    let date = name.strip_suffix(SUFFIX)?;
    let mut parts = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    // What the calendar has comes out as it went in, and nothing else does.
    let unix_day = day_at(year, month, day)?;
    (name_of(unix_day) == name).then_some(unix_day)
}

/// Year, month and day, after Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`: years begin in March, so
/// that the day that some of them have more is their last.
fn date_of(unix_day: u64) -> (u64, u64, u64) {
    let shifted = unix_day + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// The other way round, `days_from_civil`. `None` before 1970 and of what is no month or day at all.
fn day_at(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;
    use demi_conductor::config::{Host, Scaler, Start};
    use demi_conductor::Time;
    use demi_trace::{Integration, Record, Setup, Told, Writer};

    /// A store of its own, gone with the test.
    struct Site(PathBuf);

    impl Site {
        fn new(name: &str) -> Site {
            let path = std::env::temp_dir().join(format!("demi-traces-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(directory(&path)).expect("the temporary directory can be written");
            Site(path)
        }

        fn write(&self, name: &str, text: impl AsRef<[u8]>) {
            fs::write(directory(&self.0).join(name), text).expect("there is room");
        }
    }

    impl Drop for Site {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn text(unix_ms: u64) -> String {
        let voice = Integration {
            name: "vöice".to_owned(),
            host: Host::Process(1),
            start: Start::Eager,
            sleep_after_ms: None,
            needs: Vec::new(),
            shed: true,
            priority: 100,
            value: None,
            drain_ms: 5_000,
        };
        let setup = Setup { unix_ms, continues: true, scaler: Scaler::default(), platforms: vec![voice] };
        let (mut writer, mut text) = (Writer::default(), String::new());
        writer.begin(Time::ZERO, &setup, &mut text);
        writer.put(Time::from_millis(7), &Record::State { platform: 0, state: "running" }, &mut text);
        text
    }

    #[test]
    fn days_have_the_names_of_their_dates_and_no_other_file_is_one() {
        for (day, name) in [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (20_783, "2026-11-26"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
            (UNIX_DAY_MAX, "9999-12-31"),
        ] {
            assert_eq!(name_of(day), format!("{name}.trace"));
        }
        for day in (0..UNIX_DAY_MAX).step_by(13) {
            assert_eq!(day_of(&name_of(day)), Some(day));
        }
        assert_eq!(name_of(u64::MAX), "9999-12-31.trace");
        for name in [
            "2026-11-26",
            "2026-11-26.trace.gz",
            "2026-11-31.trace",
            "2026-02-29.trace",
            "2026-1-06.trace",
            "+026-11-26.trace",
            "1969-12-31.trace",
            "02026-11-26.trace",
            "2026-11-26-1.trace",
            "mine.trace",
            ".trace",
        ] {
            assert_eq!(day_of(name), None, "{name}");
        }
    }

    #[test]
    fn the_files_since_a_day_are_read_in_order_and_days_may_be_missing() {
        let site = Site::new("order");
        for day in [20_000, 20_001, 20_005] {
            site.write(&name_of(day), text(day * DAY_MS));
        }
        site.write("notes.txt", "not mine");
        let begins = |since| {
            let entries = read_last(&site.0, since).expect("they can be read");
            let begins = entries.iter().filter(|entry| matches!(entry.told, Told::Begin(_)));
            (begins.map(|entry| entry.unix_ms / DAY_MS).collect::<Vec<_>>(), entries.len())
        };
        assert_eq!(begins(0), (vec![20_000, 20_001, 20_005], 6));
        assert_eq!(begins(20_001 * DAY_MS + 5), (vec![20_001, 20_005], 4));
        assert_eq!(begins(20_002 * DAY_MS), (vec![20_005], 2));
    }

    #[test]
    fn where_nothing_was_recorded_it_is_said_what_records() {
        let site = Site::new("nothing");
        let error = read_last(&site.0, 0).expect_err("there is nothing").to_string();
        assert!(error.contains("`scaler.trace_days` is above 0") && error.contains("traces"), "{error}");
        fs::remove_dir(directory(&site.0)).expect("it is empty");
        assert!(matches!(read_last(&site.0, 0), Err(TraceError::Nothing { .. })));
    }

    #[test]
    fn a_file_that_is_malformed_is_named_with_its_line() {
        let site = Site::new("malformed");
        site.write(&name_of(20_000), text(20_000 * DAY_MS));
        site.write(&name_of(20_001), text(20_001 * DAY_MS) + "m 0 10 11\n");
        let error = read_last(&site.0, 0).expect_err("it makes no sense").to_string();
        assert!(error.contains("2024-10-05.trace, line 4: 11 kB of 10 kB"), "{error}");
    }

    #[test]
    fn what_is_no_regular_file_is_passed_over_in_the_store_and_refused_by_its_path() {
        let site = Site::new("irregular");
        let place = |day| directory(&site.0).join(name_of(day));
        site.write(&name_of(20_000), text(20_000 * DAY_MS));
        rustix::fs::mkfifoat(rustix::fs::CWD, place(20_001), rustix::fs::Mode::RWXU).expect("there is room");
        let socket = std::os::unix::net::UnixListener::bind(place(20_002)).expect("there is room");
        fs::create_dir(place(20_003)).expect("there is room");
        std::os::unix::fs::symlink("nothing", place(20_004)).expect("there is room");
        std::os::unix::fs::symlink(name_of(20_000), place(20_005)).expect("there is room");
        assert_eq!(days(&directory(&site.0)).expect("it can be read"), [20_000, 20_005]);
        assert_eq!(read_last(&site.0, 0).map(|entries| entries.len()).ok(), Some(4));
        for (path, what) in [
            (place(20_001), "a FIFO"),
            (place(20_002), "a socket"),
            (place(20_003), "a directory"),
            (PathBuf::from("/dev/zero"), "a device"),
        ] {
            let error = read(&path).expect_err(what).to_string();
            let told = format!("{} cannot be read: it is {what}, and a trace is a regular file", path.display());
            assert_eq!(error, told);
        }
        drop(socket);
    }

    #[test]
    fn a_day_that_was_cut_off_anywhere_is_read_up_to_there() {
        let site = Site::new("cut");
        let text = text(20_000 * DAY_MS);
        for end in 0..=text.len() {
            site.write(&name_of(20_000), &text.as_bytes()[..end]);
            match read_last(&site.0, 0) {
                Ok(entries) => assert!(entries.len() < 3),
                Err(TraceError::Nothing { .. }) => {}
                Err(error) => panic!("at {end}: {error}"),
            }
        }
    }
}
