//! What has come, gone and changed since the last look.
//!
//! A scan looks again at every path that the last verdicts rest on (manifests, programs, scripts, folders: a few `stat` a
//! plugin) and lists the directories. Only if something looks different are all plugins judged anew, by the same rules as
//! at the start, and compared with what is known. A file that looks different but has the same content has not changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::hash::Hasher;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use demi_conductor::config::{Config, Platform, INSTANCES_MAX, PLATFORMS_MAX};

use super::files::{is_executable, look, open_file, Seen, Stamp};
use super::{effective_user, list, names_demi, search, Discovery, Refused, Shape};
use crate::config_file::Problems;

/// A file that was written so shortly ago may still be written to: all is looked at again at the next scan.
const SETTLE: Duration = Duration::from_millis(100);
/// Scans in a row that may be put off for that; a file that is written to all the time must not hide the others.
const PUT_OFF_MAX: u32 = 5;
/// Longer files are told apart by their size and time alone: reading them all at once would drive what is in use out of
/// the page cache of a small machine.
const HASHED_BYTES_MAX: u64 = 64 << 20;

/// Something that happened to the plugin folders, or to the program of a configured platform.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A plugin that was not known before.
    Came(Platform),
    /// The manifest, the program, or a script of its folder that the program is given has other content; or it is back
    /// after it was broken or gone, perhaps as it was. With `Err` it cannot be used as it is now; what runs may go on.
    Changed {
        /// Which platform.
        name: String,
        /// What it is now.
        platform: Result<Platform, Problems>,
    },
    /// The folder, or its manifest, is not there any more.
    Gone {
        /// Which platform.
        name: String,
    },
    /// A plugin that was not known before, or a whole directory, cannot be used.
    Refused(Refused),
}

/// A platform that was told of.
#[derive(Clone, Debug)]
struct Known {
    /// As it was last when it was sound; of a stand-in none.
    platform: Option<Platform>,
    /// Its folder; none if it is a configured one.
    folder: Option<PathBuf>,
    files: Vec<PathBuf>,
    state: State,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Sound,
    /// Told with these problems.
    Broken(Problems),
    Gone,
}

/// Looks at plugin folders again and again, on whatever thread; nothing is told twice.
#[derive(Clone, Debug)]
pub struct Rescan {
    directories: Vec<PathBuf>,
    configuration: PathBuf,
    /// What stands in the configuration file, without its routes.
    config: Config,
    known: BTreeMap<String, Known>,
    /// Refused plugins and directories that were told, by folder.
    refused: BTreeMap<PathBuf, Problems>,
    seen: HashMap<PathBuf, Seen>,
    listed: Vec<(PathBuf, Vec<OsString>)>,
    /// The content of files that make up a platform, as it was when they looked so.
    contents: HashMap<PathBuf, (Stamp, u64)>,
    put_off: u32,
    /// Platforms that were ever told of and the slots that they have: who took them in keeps them, also when they are gone.
    told: usize,
    slots: usize,
}

impl Rescan {
    /// Begins with what a discovery has found: `directories`, `configuration` and `config` are those that it was given.
    pub fn new(directories: Vec<PathBuf>, configuration: PathBuf, config: &Config, discovery: Discovery) -> Rescan {
        // There may be many, and no plugin is judged by them.
        let config = Config { routes: Vec::new(), ..config.clone() };
        let platforms = &config.platforms;
        let Discovery { found, refused, mut seen, listed } = discovery;
        let mut known = BTreeMap::new();
        for found in found {
            let folder = found.platform.plugin.as_ref().map(|plugin| plugin.folder.clone());
            let entry = Known { folder, files: found.files, state: State::Sound, platform: Some(found.platform) };
            known.insert(entry.platform.as_ref().map_or_else(String::new, |platform| platform.name.clone()), entry);
        }
        for platform in platforms.iter().filter(|platform| platform.host.is_child()) {
            let Some(program) = program_of(platform) else { continue };
            seen.entry(program.clone()).or_insert_with(|| look(&program));
            let state = verdict(&program, &configuration).map_or_else(State::Broken, |()| State::Sound);
            let entry = Known { folder: None, files: vec![program], state, platform: Some(platform.clone()) };
            known.insert(platform.name.clone(), entry);
        }
        let configured = platforms.iter().filter(|platform| !known.contains_key(&platform.name));
        let slots = configured.clone().map(Platform::slots).sum::<usize>()
            + known.values().filter_map(|known| known.platform.as_ref()).map(Platform::slots).sum::<usize>();
        let told = configured.count() + known.len();
        let refused = refused.into_iter().map(|refused| (refused.folder, refused.problems)).collect();
        Rescan {
            directories,
            configuration,
            config,
            known,
            refused,
            seen,
            listed,
            contents: HashMap::new(),
            put_off: 0,
            told,
            slots,
        }
    }

    /// A platform of the configuration is a stand-in for a refused plugin: when that is mended it has changed, not come.
    pub(crate) fn stands_in(&mut self, platform: &Platform, refused: &Refused) {
        let state = State::Broken(refused.problems.clone());
        let folder = Some(refused.folder.clone());
        (self.told, self.slots) = (self.told + 1, self.slots + platform.slots());
        self.known.insert(platform.name.clone(), Known { platform: None, folder, files: Vec::new(), state });
    }

    /// Looks once. Blocks on the file system: some microseconds a plugin as long as nothing has changed. The first look
    /// reads the programs once, to know their content.
    ///
    /// Files that were written within the last tenth of a second are left for the next scan, which tells the change.
    pub fn rescan(&mut self) -> Vec<Change> {
        self.look(PUT_OFF_MAX)
    }

    /// As [`Rescan::rescan`], but tells what was written just now as well: for whoever was told that it is complete.
    pub fn rescan_at_once(&mut self) -> Vec<Change> {
        self.look(0)
    }

    fn look(&mut self, put_off_max: u32) -> Vec<Change> {
        let now = SystemTime::now();
        let seen: HashMap<PathBuf, Seen> = self.seen.keys().map(|path| (path.clone(), look(path))).collect();
        let is_listed_so = |(directory, names): &(PathBuf, Vec<OsString>)| {
            list(directory).map_or(names.is_empty(), |(now, _)| now == *names)
        };
        let is_fresh = |seen: &Seen| seen.is_ok_and(|stamp| stamp.is_fresh(now, SETTLE));
        if seen == self.seen && self.listed.iter().all(is_listed_so) {
            self.put_off = 0;
            self.learn_contents();
            return Vec::new();
        }
        if seen.values().any(is_fresh) && self.put_off < put_off_max {
            self.put_off += 1;
            return Vec::new();
        }
        let incumbents =
            self.known.iter().filter_map(|(name, known)| Some((name.clone(), known.folder.clone()?))).collect();
        let mut discovery = search(&self.directories, &self.configuration, &self.config, &incumbents, effective_user());
        // New folders were not among what was looked at above.
        if discovery.seen.values().any(is_fresh) && self.put_off < put_off_max {
            self.put_off += 1;
            return Vec::new();
        }
        self.put_off = 0;
        for program in self.config.platforms.iter().filter_map(program_of) {
            discovery.seen.entry(program.clone()).or_insert_with(|| look(&program));
        }
        self.compare(discovery)
    }

    fn compare(&mut self, discovery: Discovery) -> Vec<Change> {
        let Discovery { found, refused, seen, listed } = discovery;
        let before = std::mem::replace(&mut self.seen, seen);
        self.listed = listed;
        let mut changes = Vec::new();
        let mut there = HashSet::new();
        let mut contents = std::mem::take(&mut self.contents);
        // A program may belong to many.
        let mut verdicts: HashMap<PathBuf, bool> = HashMap::new();
        let mut has_changed = |path: &PathBuf| {
            let differs = || content_differs(path, before.get(path), self.seen.get(path), &mut contents);
            *verdicts.entry(path.clone()).or_insert_with(differs)
        };
        for found in found {
            let name = found.platform.name.clone();
            there.insert(name.clone());
            let folder = found.platform.plugin.as_ref().map(|plugin| plugin.folder.clone());
            if let Some(folder) = &folder {
                self.refused.remove(folder);
            }
            let known = Known {
                platform: Some(found.platform.clone()),
                folder,
                files: found.files.clone(),
                state: State::Sound,
            };
            let is_new = !self.known.contains_key(&name);
            if is_new && (self.told >= PLATFORMS_MAX || self.slots + found.platform.slots() > INSTANCES_MAX) {
                changes.push(Change::Refused(no_room(&found.platform)));
                continue;
            }
            match self.known.insert(name, known) {
                None => {
                    self.told += 1;
                    self.slots += found.platform.slots();
                    changes.push(Change::Came(found.platform));
                }
                Some(old) => {
                    // All of them are asked, so that each has its content taken down.
                    let contents = found.files.iter().filter(|path| has_changed(path)).count();
                    let is_same = old.state == State::Sound
                        && old.files == found.files
                        && old.platform.as_ref() == Some(&found.platform);
                    if contents > 0 || !is_same {
                        let name = found.platform.name.clone();
                        changes.push(Change::Changed { name, platform: Ok(found.platform) });
                    }
                }
            }
        }
        let mut still_refused = BTreeMap::new();
        for refused in refused {
            let Refused { folder, problems, .. } = &refused;
            let known = self.known.iter_mut().find(|(name, known)| {
                known.folder.as_ref() == Some(folder) && known.state != State::Gone && !there.contains(name.as_str())
            });
            if let Some((name, known)) = known {
                there.insert(name.clone());
                let state = State::Broken(problems.clone());
                if known.state != state {
                    known.state = state;
                    changes.push(Change::Changed { name: name.clone(), platform: Err(problems.clone()) });
                }
            } else if self.refused.get(folder) != Some(problems) {
                changes.push(Change::Refused(refused.clone()));
            }
            still_refused.insert(refused.folder, refused.problems);
        }
        self.refused = still_refused;
        for (name, known) in &mut self.known {
            let Some(platform) = known.platform.as_ref().filter(|_| known.folder.is_none()) else {
                let Some(folder) = known.folder.as_ref().filter(|_| !there.contains(name)) else { continue };
                // What is in a directory that cannot be read is not known to be gone.
                let state = match folder.parent().and_then(|directory| self.refused.get(directory)) {
                    Some(problems) => State::Broken(problems.clone()),
                    None => State::Gone,
                };
                if known.state != state {
                    changes.push(match &state {
                        State::Broken(problems) => {
                            Change::Changed { name: name.clone(), platform: Err(problems.clone()) }
                        }
                        State::Sound | State::Gone => Change::Gone { name: name.clone() },
                    });
                    known.state = state;
                }
                continue;
            };
            let Some(program) = known.files.first() else { continue };
            let state = verdict(program, &self.configuration).map_or_else(State::Broken, |()| State::Sound);
            let differs = has_changed(program);
            if known.state == state && !(differs && state == State::Sound) {
                continue;
            }
            let platform = match &state {
                State::Broken(problems) => Err(problems.clone()),
                State::Sound | State::Gone => Ok(platform.clone()),
            };
            known.state = state;
            changes.push(Change::Changed { name: name.clone(), platform });
        }
        self.contents = contents;
        self.learn_contents();
        changes
    }

    /// Reads those files that make up a platform and whose content is not known as they look now.
    fn learn_contents(&mut self) {
        let files: HashSet<&PathBuf> = self.known.values().flat_map(|known| &known.files).collect();
        self.contents.retain(|path, _| files.contains(path));
        for path in files {
            let Some(Ok(stamp)) = self.seen.get(path) else { continue };
            if self.contents.get(path).is_none_or(|(read_at, _)| read_at != stamp) {
                if let Some(content) = content_of(path, stamp) {
                    self.contents.insert(path.clone(), (*stamp, content));
                }
            }
        }
    }
}

/// Why a plugin that is sound cannot be taken in.
fn no_room(platform: &Platform) -> Refused {
    let (folder, path) = match &platform.plugin {
        Some(plugin) => (plugin.folder.clone(), plugin.manifest.clone()),
        None => (PathBuf::new(), PathBuf::new()),
    };
    let what = "so many plugins have come and gone that there is no room for another".to_owned();
    let problems = Problems::one(&path, (0, 0), what, "restart Demi");
    Refused { name: Some(platform.name.clone()), folder, problems, shape: Some(Shape::of(platform)) }
}

/// The program of a configured platform, where it is known without a search.
fn program_of(platform: &Platform) -> Option<PathBuf> {
    let program = platform.command.first().filter(|_| platform.host.is_child())?;
    if program.is_empty() || names_demi(program) {
        return None; // Another Demi takes a new start of Demi.
    }
    if program.contains('/') {
        // Looked at whatever is there, so that it is noticed when a program is put in its place; only files are ever read.
        return Some(PathBuf::from(program));
    }
    let search = platform.env.get("PATH").map(OsString::from).or_else(|| std::env::var_os("PATH"))?;
    std::env::split_paths(&search).map(|directory| directory.join(program)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    look(path).is_ok_and(|stamp| stamp.is_file()) && is_executable(path)
}

/// Whether the program of a configured platform can be run.
fn verdict(program: &Path, configuration: &Path) -> Result<(), Problems> {
    if is_program(program) {
        return Ok(());
    }
    let what = format!("{} is not there or not executable", program.display());
    Err(Problems::one(configuration, (0, 0), what, "put an executable file there, or name another one"))
}

/// Whether a file has other content than before; takes down what it has now.
fn content_differs(
    path: &PathBuf,
    before: Option<&Seen>,
    now: Option<&Seen>,
    contents: &mut HashMap<PathBuf, (Stamp, u64)>,
) -> bool {
    let (Some(Ok(before)), Some(Ok(now))) = (before, now) else {
        return before != now;
    };
    if before == now {
        return false;
    }
    let old = contents.get(path).filter(|(read_at, _)| read_at == before).map(|(_, content)| *content);
    let new = content_of(path, now);
    match new {
        Some(content) => drop(contents.insert(path.clone(), (*now, content))),
        None => drop(contents.remove(path)),
    }
    old.is_none() || old != new
}

/// A number that stands for a file's content, if it is a file and can be read, is not too long, and stays as it was looked
/// at. It tells versions apart, not friend from foe (who may write the file at all is judged by its owner and mode), so a
/// hash without cryptography will do; and it is only compared with others of the same run, so its key may be any.
fn content_of(path: &Path, stamp: &Stamp) -> Option<u64> {
    if !stamp.is_file() || stamp.size() > HASHED_BYTES_MAX {
        return None;
    }
    let mut file = open_file(path).ok()?.take(HASHED_BYTES_MAX);
    let mut hasher = std::hash::DefaultHasher::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer).ok()? {
            // If it was replaced meanwhile, what was read may belong to the next look.
            0 => return (look(path) == Ok(*stamp)).then(|| hasher.finish()),
            length => hasher.write(&buffer[..length]),
        }
    }
}
