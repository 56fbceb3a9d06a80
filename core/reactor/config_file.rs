//! Reading the configuration file: RON in, a checked [`Config`] or every mistake at once out.
//!
//! RON's deserialiser stops at the first error. To find the others, the text is first drawn as an *outline*: which
//! brackets, fields and items stand where. Each error that the deserialiser tells is looked up in the outline and
//! mended in a copy of the text (a misspelt name is replaced by the one meant, a bad value taken out, a missing one
//! filled in), and the copy is read again. Positions are always those of the original. A mistake that only follows
//! from such mending is not told: too little is better than nonsense.
//!
//! ```text
//! text ── outline ──┐
//!   └── ron ── error ── told, mended ── ron ── … ── Config ── Config::mistakes ── located in the outline
//! ```

mod outline;
mod reading;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use demi_conductor::config::Config;

use outline::Outline;
use reading::Reading;

/// Longest file that is read, bytes. A thousand platforms with all their fields stay below half of it.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Most problems told at once; whoever has more has most likely got one thing wrong everywhere.
pub const PROBLEMS_MAX: usize = 32;
/// Most readings of one text: each problem may need one more, untold, mending.
const READINGS_MAX: usize = 3 * PROBLEMS_MAX;
/// Deepest nesting of brackets; a valid file needs 5. It bounds the recursion of the outline.
const DEPTH_MAX: usize = 64;

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0 if the file as a whole is meant.
    pub line: usize,
    /// From 1, in characters; 0 if the file as a whole is meant.
    pub column: usize,
    /// What is wrong, with the offending name.
    pub what: String,
    /// What to do about it, with the nearest known name.
    pub remedy: String,
}

/// Every mistake in a file, in the order of the file, at most [`PROBLEMS_MAX`].
///
/// `Display` prints one line each: `PATH:LINE:COLUMN: what; remedy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file, as it was named to [`load`].
    pub path: PathBuf,
    /// The mistakes; never empty.
    pub problems: Vec<Problem>,
    /// There are mistakes beyond [`PROBLEMS_MAX`].
    pub more: bool,
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        for (index, problem) in self.problems.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            let Problem { line, column, what, remedy } = problem;
            match line {
                0 => write!(formatter, "{newline}{path}: {what}; {remedy}")?,
                _ => write!(formatter, "{newline}{path}:{line}:{column}: {what}; {remedy}")?,
            }
        }
        if self.more {
            write!(formatter, "\n{path}: there are more mistakes than these {PROBLEMS_MAX}; correct these first")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Reads and checks a file; `adapters` are the names compiled in. Blocks on the file system.
pub fn load(path: &Path, adapters: &[&str]) -> Result<Config, Problems> {
    let whole = |what: String, remedy: &str| Problems::one(path, (0, 0), what, remedy);
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        return Err(match error.kind() {
            std::io::ErrorKind::NotFound => {
                whole("there is no such file".to_owned(), "create it, or name another one with --config")
            }
            std::io::ErrorKind::PermissionDenied => {
                whole("the file may not be read".to_owned(), "let the user that runs Demi read it")
            }
            _ => whole(format!("the file cannot be read: {error}"), "name a readable file with --config"),
        });
    }
    if bytes.len() > FILE_BYTES_MAX {
        let what = format!("the file is longer than {FILE_BYTES_MAX} bytes");
        return Err(whole(what, "shorten it, or name the right file with --config"));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(text, path, adapters),
        Err(error) => {
            let sound = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let what = "this character is not UTF-8".to_owned();
            Err(Problems::one(path, place(&sound, sound.len()), what, "save the file in the encoding UTF-8"))
        }
    }
}

/// Checks the text of a file; `path` is only named in the problems.
pub fn parse(text: &str, path: &Path, adapters: &[&str]) -> Result<Config, Problems> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let outline = Outline::of(text);
    let mut reading = Reading::new(text, &outline);
    let config = reading.read();
    if let Some(config) = &config {
        reading.judge(config, adapters);
    }
    match config {
        Some(config) if reading.found.is_empty() && reading.edits.is_empty() => Ok(config),
        _ => Err(reading.problems(path)),
    }
}

impl Problems {
    fn one(path: &Path, (line, column): (usize, usize), what: String, remedy: &str) -> Problems {
        let problem = Problem { line, column, what, remedy: remedy.to_owned() };
        Problems { path: path.to_owned(), problems: vec![problem], more: false }
    }
}

/// Line and column, from 1, of a byte offset.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.rfind('\n').map_or(0, |newline| newline + 1);
    (1 + before.matches('\n').count(), 1 + before[line..].chars().count())
}

/// The byte offset of a line and column as ron tells them.
fn offset(text: &str, position: ron::error::Position) -> usize {
    let mut rest = position.line.saturating_sub(1);
    let start = match rest {
        0 => 0,
        _ => text
            .bytes()
            .position(|byte| {
                rest -= usize::from(byte == b'\n');
                rest == 0
            })
            .map_or(text.len(), |newline| newline + 1),
    };
    let column = position.col.saturating_sub(1);
    text[start..].char_indices().nth(column).map_or(text.len(), |(index, _)| start + index)
}

#[cfg(test)]
mod tests;
