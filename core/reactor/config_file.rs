//! Reading the configuration file and plugins' manifests: text in, a checked value or every mistake at once out.
//!
//! RON's deserialiser stops at the first error. To find the others, the text is drawn as an *outline*: which brackets,
//! fields and items stand where. Each error that the deserialiser tells is looked up in the outline and mended in a copy
//! of the text (a misspelt name is replaced by the one meant, a bad value taken out, a missing one filled in), and the
//! copy is read again. Positions are always those of the original. A mistake that only follows from such mending is not
//! told: too little is better than nonsense. A sound file is read once and never outlined.
//!
//! ```text
//! text ── ron ── Config ── plugins merged in ── Config::mistakes ── none
//!   └── outline ── error ── told, mended ── ron ── … ── Config ── mistakes ── located in the outline
//! ```
//!
//! A manifest in JSON is read by serde_json, whose errors are mended in much the same way (`json.rs`).
//!
//! **A refused plugin never keeps Demi from starting.** If a route or a configured platform names one, a stand-in takes
//! its place: a platform that is started by hand only and cannot be. Requests for it are answered 503 and go to no other
//! rule, those that need it wait for it, the status says why, and when its folder is mended at run time it is taken up,
//! unless what no reload can change is not what the manifest said before, as far as that could be read.

mod json;
mod outline;
mod reading;
mod routes;

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use demi_conductor::config::{Check, Config, Host, Mistake, Platform, INSTANCES_MAX, PLATFORMS_MAX};
use demi_conductor::manifest::Manifest;
use serde::de::DeserializeOwned;

use crate::plugins::{self, Discovery, Refused, Rescan};
use outline::Outline;
use reading::{Reading, Subject};

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

impl Problem {
    /// As one line: `PATH:LINE:COLUMN: what; remedy`.
    pub fn at(&self, path: &Path) -> String {
        let (Problem { line, column, what, remedy }, path) = (self, path.display());
        match line {
            0 => format!("{path}: {what}; {remedy}"),
            _ => format!("{path}:{line}:{column}: {what}; {remedy}"),
        }
    }
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
            write!(formatter, "{newline}{}", problem.at(&self.path))?;
        }
        if self.more {
            write!(formatter, "\n{path}: there are more mistakes than these {PROBLEMS_MAX}; correct these first")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// What a configuration file and the plugin folders that it names come to.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration. The platforms of plugins stand behind those of the file, in the order in which they were found;
    /// behind them the stand-ins (see [`plugins::is_stand_in`]).
    pub config: Config,
    /// What is most likely not meant so, but keeps nothing from starting: rules that can never match.
    pub warnings: Vec<Problem>,
    /// Plugins, and whole directories of them, that cannot be used, each with the reason.
    pub refused: Vec<Refused>,
    /// Notices what has changed in the files since.
    pub rescan: Rescan,
}

/// Reads and checks a file, and finds the plugins in the directories that it names; `adapters` are the names compiled
/// in. Blocks on the file system.
///
/// # Errors
/// Every mistake in the file. A broken plugin is none: it is told in [`Loaded::refused`].
pub fn load(path: &Path, adapters: &[&str]) -> Result<Loaded, Problems> {
    let text = read_text(path)?;
    let mut outcome = None;
    let config = check(&text, path, &reading::CONFIG, |config: &mut Config| {
        let directories = directories(config, path);
        let configured = config.clone();
        let discovery = plugins::discover(&directories, path, &configured);
        merge(config, &discovery);
        let mut mistakes = config.mistakes(adapters);
        mistakes.iter_mut().for_each(|mistake| blame(mistake, &discovery.refused));
        outcome = Some((directories, configured, discovery));
        mistakes
    })?;
    let (directories, configured, discovery) = outcome.expect("a configuration is only returned after it was judged");
    let refused = discovery.refused.clone();
    let mut rescan = Rescan::new(directories, path.to_owned(), &configured, discovery);
    for refused in &refused {
        let is_stand_in =
            |platform: &&Platform| plugins::is_stand_in(platform) && Some(&platform.name) == refused.name.as_ref();
        if let Some(platform) = config.platforms.iter().find(is_stand_in) {
            rescan.stands_in(platform, refused);
        }
    }
    let warnings = routes::warnings(&config, without_mark(&text));
    Ok(Loaded { config, warnings, refused, rescan })
}

/// The directories in which plugin folders are looked for. Absolute, because a child's program is looked for from its
/// own working directory.
fn directories(config: &Config, path: &Path) -> Vec<PathBuf> {
    let base = path.parent().unwrap_or(Path::new(""));
    let absolute = |directory: &String| {
        let directory = base.join(directory);
        std::path::absolute(&directory).unwrap_or(directory)
    };
    config.plugins.paths.iter().filter(|path| !path.is_empty()).map(absolute).collect()
}

/// Adds the platforms of plugins, and stand-ins for refused ones that the file names.
fn merge(config: &mut Config, discovery: &Discovery) {
    config.platforms.extend(discovery.found.iter().map(|found| found.platform.clone()));
    let first = config.platforms.len();
    let mut slots: usize = config.platforms.iter().map(Platform::slots).sum();
    for refused in &discovery.refused {
        let Some(name) = &refused.name else { continue };
        let is_named = config.routes.iter().any(|route| route.to == *name || route.fallback.contains(name))
            || config.platforms.iter().any(|platform| platform.needs.contains(name))
            || config.reachability.iter().any(|entry| entry.check == Check::Platform(name.clone()));
        let is_taken = config.platforms.iter().any(|platform| platform.name == *name);
        if is_named && !is_taken && config.platforms.len() < PLATFORMS_MAX {
            let mut stand_in = plugins::stand_in(name, refused);
            if slots + stand_in.slots() > INSTANCES_MAX {
                stand_in.host = Host::Process(1);
            }
            slots += stand_in.slots();
            config.platforms.push(stand_in);
        }
    }
    // What it was refused for must be no mistake of the configuration: how it is looked after, a need that is not there,
    // or one in a circle.
    let alone = Config { platforms: Vec::new(), routes: Vec::new(), ..config.clone() };
    for stand_in in &mut config.platforms[first..] {
        if !is_sound(stand_in, &alone) {
            stand_in.behind.clear();
            (stand_in.health, stand_in.breaker) = Default::default();
        }
    }
    let names: HashSet<String> = config.platforms.iter().map(|platform| platform.name.clone()).collect();
    for stand_in in &mut config.platforms[first..] {
        stand_in.needs.retain(|need| names.contains(need));
    }
    if config.start_order().is_err() {
        config.platforms[first..].iter_mut().for_each(|stand_in| stand_in.needs.clear());
    }
}

/// Whether how a platform is looked after is no mistake in this configuration, which has no platforms.
fn is_sound(platform: &Platform, config: &Config) -> bool {
    let itself = Check::Platform(platform.name.clone());
    let behind_itself = |name: &String| config.reachability.iter().any(|at| at.name == *name && at.check == itself);
    let platform = Platform { needs: Vec::new(), ..platform.clone() };
    let is_behind_itself = platform.behind.iter().any(behind_itself);
    let mistakes = Config { platforms: vec![platform], ..config.clone() }.mistakes(&[]);
    let fields = ["platforms[0].health", "platforms[0].breaker", "platforms[0].behind"];
    !is_behind_itself && !mistakes.iter().any(|mistake| fields.iter().any(|field| mistake.at.starts_with(field)))
}

/// Whoever names a platform that is not there may mean a plugin that was refused and could not even say its name.
fn blame(mistake: &mut Mistake, refused: &[Refused]) {
    let names_platform = [".needs[", ".fallback["].iter().any(|list| mistake.at.contains(list))
        || mistake.at.ends_with(".to")
        || mistake.at.ends_with(".check");
    if let Some(first) = refused.first().filter(|_| names_platform) {
        let others = match refused.len() {
            1 => String::new(),
            count => format!(" (and {} others)", count - 1),
        };
        mistake.remedy.push_str(&format!("; or mend the plugin that was refused{others}: {first}"));
    }
}

fn read_text(path: &Path) -> Result<String, Problems> {
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
    text_of(bytes, path)
}

/// Bytes of a file as text.
pub(crate) fn text_of(bytes: Vec<u8>, path: &Path) -> Result<String, Problems> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let sound = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
        let what = "this character is not UTF-8".to_owned();
        Problems::one(path, place(&sound, sound.len()), what, "save the file in the encoding UTF-8")
    })
}

/// Checks the text of a configuration file alone, without plugins; `path` is only named in the problems.
///
/// # Errors
/// Every mistake in the text.
pub fn parse(text: &str, path: &Path, adapters: &[&str]) -> Result<Config, Problems> {
    check(text, path, &reading::CONFIG, |config: &mut Config| config.mistakes(adapters))
}

/// Line and column of each route of a configuration file that [`load`] has found no mistake in, from 1, in the order of
/// the file. Blocks on the file system.
///
/// # Errors
/// If the file cannot be read.
pub fn route_places(path: &Path) -> Result<Vec<(usize, usize)>, Problems> {
    read_text(path).map(|text| routes::places(without_mark(&text)))
}

/// Where a configuration file says that Demi listens (`http.listen`), for whoever wants to speak to the Demi that runs:
/// neither plugins are looked for nor is anything else judged than the form of the file. Blocks on the file system.
///
/// # Errors
/// If the file cannot be read, is no configuration, or says no address.
pub fn listen_address(path: &Path) -> Result<String, Problems> {
    let text = read_text(path)?;
    let judge = |config: &mut Config| {
        let alone = Config { http: config.http.clone(), ..Config::default() };
        alone.mistakes(&[])
    };
    check(&text, path, &reading::CONFIG, judge).map(|config| config.http.listen)
}

/// How a manifest is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Ron,
    Json,
}

/// Checks the text of a manifest. `judge` finds the mistakes in values that are each well formed.
pub(crate) fn manifest(
    text: &str,
    path: &Path,
    format: Format,
    judge: impl FnOnce(&mut Manifest) -> Vec<Mistake>,
) -> Result<Manifest, Problems> {
    match format {
        Format::Ron => check(text, path, &reading::MANIFEST, judge),
        Format::Json => json::check(text, path, &reading::MANIFEST, judge),
    }
}

/// Mistakes in a manifest that is otherwise sound, each where it stands.
pub(crate) fn placed(text: &str, path: &Path, format: Format, mistakes: Vec<Mistake>) -> Problems {
    let text = without_mark(text);
    match format {
        Format::Ron => {
            let outline = Outline::of(text);
            let mut reading = Reading::new(text, &outline, &reading::MANIFEST);
            reading.judge(mistakes);
            reading.problems(path)
        }
        Format::Json => json::placed(text, path, mistakes),
    }
}

/// The name that a manifest gives its plugin, however broken the rest is.
pub(crate) fn name_in(text: &str) -> Option<String> {
    let text = without_mark(text);
    let outline = Outline::of(text);
    let is_name =
        |entry: &&outline::Entry| entry.key.as_ref().is_some_and(|key| text[key.clone()].trim_matches('"') == "name");
    let value = &outline.root.as_ref()?.items.iter().find(is_name)?.value;
    let name = text[value.start..value.end].strip_prefix('"')?.strip_suffix('"')?;
    let is_plain = |character: char| character.is_ascii_alphanumeric() || character == '-' || character == '_';
    (!name.is_empty() && name.len() <= 64 && name.chars().all(is_plain)).then(|| name.to_owned())
}

/// Reads a text and judges what it says.
fn check<T: DeserializeOwned>(
    text: &str,
    path: &Path,
    subject: &'static Subject,
    judge: impl FnOnce(&mut T) -> Vec<Mistake>,
) -> Result<T, Problems> {
    let text = without_mark(text);
    if let Ok(mut value) = reading::options().from_str::<T>(text) {
        let mistakes = judge(&mut value);
        if mistakes.is_empty() {
            return Ok(value);
        }
        let outline = Outline::of(text);
        let mut reading = Reading::new(text, &outline, subject);
        reading.judge(mistakes);
        return Err(reading.problems(path));
    }
    let outline = Outline::of(text);
    let mut reading = Reading::new(text, &outline, subject);
    if let Some(mut value) = reading.read::<T>() {
        reading.judge(judge(&mut value));
    }
    Err(reading.problems(path))
}

/// A text without the byte order mark that some editors put before it.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

impl Problems {
    /// One problem; at line 0 it is about the file as a whole.
    pub(crate) fn one(path: &Path, (line, column): (usize, usize), what: String, remedy: &str) -> Problems {
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
