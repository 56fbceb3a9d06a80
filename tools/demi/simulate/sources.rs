//! Where the recorded days come from: files that are named, or what Demi has recorded.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use demi::traces::format::{Entry, Record, Setup, Told};
use demi::{config_file, traces};

use super::{Failure, SimulateAsked};
use crate::{adapter_names, configuration, CONFIG, FAILED, USAGE};

/// How far is looked back if nobody says how far.
const LAST: &str = "7d";
/// Most entries: a fortnight of samples each second, and more than Demi records in a year.
const ENTRIES_MAX: usize = 5_000_000;
/// A clock that is set back may have a day end after the next has begun, by so much.
const OVERLAP_MAX_MS: u64 = 3_600_000;
const SUFFIX: &str = "trace";

/// What was recorded, in the order of the dates.
pub(super) fn entries(asked: &SimulateAsked) -> Result<Vec<Entry>, Failure> {
    let entries = match (&asked.traces[..], &asked.last) {
        ([], last) => last_of_store(asked.config.as_deref(), last.as_deref().unwrap_or(LAST))?,
        (_, Some(_)) => {
            return Err(Failure::new(USAGE, "--last is about what Demi has recorded; give either it or --trace"));
        }
        (paths, None) => of_files(paths)?,
    };
    if entries.len() > ENTRIES_MAX {
        let text = format!("there are {} lines, and {ENTRIES_MAX} are the most; give fewer days", entries.len());
        return Err(Failure::new(FAILED, text));
    }
    Ok(entries)
}

fn of_files(paths: &[PathBuf]) -> Result<Vec<Entry>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(of_folder(path)?);
        } else {
            files.push(path.clone());
        }
    }
    once(&mut files);
    let mut recorded: Vec<(&Path, Vec<Entry>)> = Vec::new();
    for file in &files {
        let entries = traces::read(file).map_err(|error| Failure::new(FAILED, error))?;
        recorded.push((file, entries));
    }
    recorded.retain(|(_, entries)| !entries.is_empty());
    recorded.sort_by_key(|(_, entries)| entries[0].unix_ms);
    for pair in recorded.windows(2) {
        let [(file, entries), (next, later)] = pair else { continue };
        if entries.last().is_some_and(|last| last.unix_ms > later[0].unix_ms + OVERLAP_MAX_MS) {
            let text = format!(
                "{} goes on after {} has begun, so that they are of different machines; give one of the two",
                file.display(),
                next.display()
            );
            return Err(Failure::new(FAILED, text));
        }
    }
    Ok(recorded.into_iter().flat_map(|(_, entries)| entries).collect())
}

/// Leaves out what is a file that was named before, perhaps by another way: what was recorded once happened once.
fn once(files: &mut Vec<PathBuf>) {
    let mut known = HashSet::new();
    files.retain(|file| known.insert(file.canonicalize().unwrap_or_else(|_| file.clone())));
}

fn of_folder(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unreadable = |error| Failure::new(FAILED, format!("{} cannot be read: {error}", path.display()));
    let mut files = Vec::new();
    for file in std::fs::read_dir(path).map_err(unreadable)? {
        let file = file.map_err(unreadable)?.path();
        // What is no regular file may have no end, nor even a begin.
        if file.extension().is_some_and(|extension| extension == SUFFIX) && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Failure::new(FAILED, format!("there is no regular file named *.{SUFFIX} in {}", path.display())));
    }
    files.sort();
    Ok(files)
}

/// What is in the store of the configuration.
fn last_of_store(config: Option<&Path>, last: &str) -> Result<Vec<Entry>, Failure> {
    let Some(path) = config.map(Path::to_path_buf).or_else(configuration::find) else {
        let text = "no configuration was found, which says where the store is; name one with --config PATH, or a trace with --trace FILE";
        return Err(Failure::new(CONFIG, text));
    };
    let loaded = config_file::load(&path, &adapter_names()).map_err(|problems| Failure::new(CONFIG, problems))?;
    let store = path.parent().unwrap_or(Path::new("")).join(&loaded.config.store.path);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let since_ms = now_ms.saturating_sub(millis(last));
    let entries = traces::read_last(&store, since_ms).map_err(|error| Failure::new(FAILED, error))?;
    Ok(since(entries, since_ms))
}

/// Of a span that the command line has taken.
fn millis(span: &str) -> u64 {
    let (number, unit) = span.split_at(span.len() - 1);
    let unit_s = match unit {
        "d" => 86_400,
        "h" => 3_600,
        "m" => 60,
        _ => 1,
    };
    number.parse().unwrap_or(0_u64).saturating_mul(unit_s * 1_000)
}

/// What was recorded from a date on, with how things were then.
fn since(entries: Vec<Entry>, unix_ms: u64) -> Vec<Entry> {
    let first = entries.iter().position(|entry| entry.unix_ms >= unix_ms).unwrap_or(entries.len());
    let mut setup: Option<Setup> = None;
    // By platform: what was told of its state, and of its weight.
    let mut known: Vec<[Option<Record>; 2]> = Vec::new();
    for entry in &entries[..first] {
        match &entry.told {
            Told::Begin(begun) => {
                known = vec![[None, None]; begun.platforms.len()];
                setup = Some(Setup { unix_ms, continues: true, ..(**begun).clone() });
            }
            Told::Record(record @ Record::State { platform, .. }) => {
                known[*platform as usize][0] = Some(record.clone())
            }
            Told::Record(record @ Record::Weighed { platform, .. }) => {
                known[*platform as usize][1] = Some(record.clone())
            }
            Told::Record(_) => {}
        }
    }
    let begin = setup.map(|setup| Told::Begin(Box::new(setup)));
    let known = known.into_iter().flatten().flatten().map(Told::Record);
    let then = begin.into_iter().chain(known).map(|told| Entry { unix_ms, told });
    then.chain(entries[first..].iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_that_many_milliseconds() {
        assert_eq!(["90m", "24h", "7d", "5s"].map(millis), [5_400_000, 86_400_000, 604_800_000, 5_000]);
    }

    #[test]
    fn a_file_counts_once_by_whatever_ways_it_is_named_and_a_fifo_never() {
        let folder = std::env::temp_dir().join(format!("demi-sources-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("it can be written");
        let begin = r#"begin {"unix_ms":1000,"scaler":{},"platforms":[]}"#;
        std::fs::write(folder.join("a.trace"), format!("demi-trace 1\n{begin}\nm 0 10 5\n")).expect("there is room");
        std::os::unix::fs::symlink("a.trace", folder.join("b.trace")).expect("there is room");
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("c.trace"), rustix::fs::Mode::RWXU).expect("there is room");
        let entries = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(|path| folder.join(path)).collect();
            of_files(&paths).map(|entries| entries.len()).map_err(|failure| failure.text)
        };
        for paths in [&["a.trace"][..], &["a.trace", "a.trace"], &["", "./a.trace", "b.trace"], &[""]] {
            assert_eq!(entries(paths), Ok(2), "{paths:?}");
        }
        assert!(entries(&["c.trace"]).is_err_and(|error| error.contains("c.trace cannot be read: it is a FIFO")));
        let _ = std::fs::remove_dir_all(&folder);
    }

    #[test]
    fn what_is_cut_in_the_middle_begins_with_how_things_were() {
        let begin = r#"begin {"unix_ms":1000,"scaler":{},"platforms":[{"name":"a","host":{"Process":1},"shed":true,"priority":1,"drain_ms":0}]}"#;
        let text =
            format!("demi-trace 1\n{begin}\ns 0 0 running\nw 0 0 5000 1\nm 1000 10 5\nw 1000 0 6000 1\nm 1000 10 6\n");
        let all = traces::format::read(&text).expect("it is a trace");
        let cut = since(all.clone(), 3_500);
        let Told::Begin(setup) = &cut[0].told else { panic!("{cut:?}") };
        assert_eq!((setup.unix_ms, setup.continues, cut.len()), (3_500, true, 4));
        assert_eq!(cut[2].told, Told::Record(Record::Weighed { platform: 0, kb: 6_000, running: 1 }));
        assert_eq!(cut[3], all[5]);
        assert_eq!(since(all.clone(), 0), all, "and one that begins later is left as it is");
        assert_eq!(since(all, 9_000).len(), 3);
    }
}
