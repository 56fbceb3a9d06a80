//! Plugin folders: found, checked, and looked at again.
//!
//! A plugin is a folder with a `plugin.ron` or a `plugin.json` in one of the directories that `plugins.paths` names.
//! [`discover`] turns each into a platform or refuses it with the reason and the remedy; one that is refused stops nothing
//! else. [`Rescan`] tells what has come, gone and changed since.
//!
//! What everybody can write, or belongs to others than root and the user that runs Demi, is never run: whoever can write a
//! manifest, or the program that it names, decides what is executed in that user's name. What its group can write passes:
//! whoever gave the group that right has decided so.

mod files;
mod needs;
mod rescan;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use demi_conductor::config::{
    Bounded, Check, Config, Host, Mistake, OwnBreaker, OwnHealth, Platform, Plugin, Start, INSTANCES_MAX, PLATFORMS_MAX,
};
use demi_conductor::manifest::Manifest;

use crate::config_file::{self, Format, Problems};
use files::{is_executable, open_file, Fault, Files, Seen, Stamp};

pub use rescan::{Change, Rescan};

/// Longest manifest that is read, bytes. One with every field set is a twentieth of it.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024;
/// Most names in one directory that are looked at: room for every plugin that there can be, and three other things beside
/// each.
pub const ENTRIES_MAX: usize = 4 * PLATFORMS_MAX;

/// A plugin that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What its manifest describes; [`Platform::plugin`] says where it stands.
    pub platform: Platform,
    /// Its manifest, its program, and the scripts of its folder that the program is given: what makes it up.
    pub(crate) files: Vec<PathBuf>,
}

/// A plugin, or a whole directory, that cannot be used.
///
/// `Display` prints one line for each problem: `PATH:LINE:COLUMN: what; remedy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The name that its manifest gives it, or else that of its folder; none if it is a directory of plugins.
    pub name: Option<String>,
    /// The folder; the directory, if it is one of plugins.
    pub folder: PathBuf,
    /// Why, with the file that must be mended.
    pub problems: Problems,
    /// What its manifest says of what no reload can change, if it can be read at all.
    pub(crate) shape: Option<Box<Shape>>,
}

/// What of a platform is fixed as long as Demi runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    host: Host,
    needs: Vec<String>,
    behind: Vec<String>,
    health: OwnHealth,
    breaker: OwnBreaker,
}

impl Shape {
    fn of(platform: &Platform) -> Box<Shape> {
        let Platform { host, needs, behind, health, breaker, .. } = platform;
        let (needs, behind) = (needs.clone(), behind.clone());
        Box::new(Shape { host: *host, needs, behind, health: *health, breaker: *breaker })
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.problems.fmt(formatter)
    }
}

/// What was found in the directories.
#[derive(Debug, Default)]
pub struct Discovery {
    /// In the order of the directories, and in each by the name of the folder.
    pub found: Vec<Found>,
    /// In the same order.
    pub refused: Vec<Refused>,
    /// Every path that a verdict rests on, and what was seen there.
    pub(crate) seen: HashMap<PathBuf, Seen>,
    /// The names of the folders in each directory.
    pub(crate) listed: Vec<(PathBuf, Vec<OsString>)>,
}

/// Looks for plugins in directories. `config` is what stands in the configuration file `configuration`: the names of its
/// platforms are taken, plugins may need those, and may lie behind what it names in `reachability`. Blocks on the file
/// system; never fails as a whole.
///
/// The running user and PATH are those of this process. A directory that does not exist holds no plugins.
pub fn discover(directories: &[PathBuf], configuration: &Path, config: &Config) -> Discovery {
    search(directories, configuration, config, &BTreeMap::new(), effective_user())
}

/// Checks one plugin folder by itself, by the rules of [`discover`] that need no configuration: its manifest, and the
/// files that make it up. Blocks on the file system.
///
/// # Errors
/// Every mistake, with its file, line and remedy.
pub fn examine(folder: &Path) -> Result<Platform, Problems> {
    let (Some(directory), Some(name)) = (folder.parent(), folder.file_name()) else {
        let what = "this is no folder of a plugin".to_owned();
        return Err(Problems::one(folder, (0, 0), what, "name a folder that holds a plugin.ron"));
    };
    let mut search = Search::new(folder, None, effective_user());
    search.check_folder(directory, &name.to_owned());
    match (search.candidates.pop(), search.refused.pop()) {
        (Some(candidate), _) => Ok(candidate.platform),
        (None, Some((_, refused))) => Err(refused.problems),
        (None, None) => {
            let what = "there is neither a plugin.ron nor a plugin.json in this folder".to_owned();
            Err(Problems::one(folder, (0, 0), what, "`demi plugin new` writes one"))
        }
    }
}

/// What stands for Demi's own executable in commands, anywhere in a word.
const DEMI: &str = "{demi}";

/// A command as it is started: with the executable in place of each `{demi}`.
pub fn with_executable(command: &[String], executable: &Path) -> Vec<String> {
    command.iter().map(|word| word.replace(DEMI, &executable.to_string_lossy())).collect()
}

/// Whether a word of a command means Demi's own executable, or a path made of it: nobody looks for that.
pub fn names_demi(word: &str) -> bool {
    word.contains(DEMI)
}

/// Why a plugin may not be started now, if others have come to be able to write what would be executed, or it is not
/// there any more. A few looks at the file system, no reading: what is executed is judged when it is executed.
pub(crate) fn distrusted(platform: &Platform) -> Option<String> {
    let plugin = platform.plugin.as_ref().filter(|_| !is_stand_in(platform))?;
    let mut search = Search::new(&plugin.manifest, None, effective_user());
    let mut fault = None;
    for path in [&plugin.folder, &plugin.manifest] {
        fault = fault.or_else(|| search.distrust(path, &plugin.folder, &path.display().to_string()));
    }
    let fault = fault.or_else(|| search.check_command(&plugin.folder, platform, &mut Vec::new()).err());
    fault.map(|(what, remedy)| format!("{what}; {remedy}"))
}

fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// As [`discover`], for this user. `incumbents`, by name, are folders whose plugins run already: a newcomer does not take
/// their names.
fn search(
    directories: &[PathBuf],
    configuration: &Path,
    config: &Config,
    incumbents: &BTreeMap<String, PathBuf>,
    user: u32,
) -> Discovery {
    Search::new(configuration, Some(config), user).run(directories, incumbents)
}

/// The program of a stand-in: nothing can ever be there.
const NO_PROGRAM: &str = "/dev/null/refused-plugin";

/// A platform in the place of a refused plugin that something names: it is started by hand only, and cannot be. So
/// requests for it are answered 503 and what needs it waits. What no reload can change it has of the plugin, as far as
/// that can be read: so it can be taken up when it is mended.
pub(crate) fn stand_in(name: &str, refused: &Refused) -> Platform {
    let shape = refused.shape.clone().unwrap_or_else(|| Shape::of(&Platform::new(name, Host::Process(1))));
    let mut platform = Platform::new(name, shape.host);
    platform.needs = shape.needs;
    (platform.behind, platform.health, platform.breaker) = (shape.behind, shape.health, shape.breaker);
    platform.command = vec![NO_PROGRAM.to_owned()];
    platform.start = Start::Manual;
    platform.queue_max = Bounded::new(0).expect("0 is in the range");
    platform.plugin = Some(Plugin {
        folder: refused.folder.clone(),
        manifest: refused.problems.path.clone(),
        version: "refused".to_owned(),
        capabilities: Vec::new(),
    });
    platform
}

/// Whether a platform only stands in the place of a refused plugin.
pub fn is_stand_in(platform: &Platform) -> bool {
    platform.plugin.is_some() && platform.command.first().is_some_and(|program| program == NO_PROGRAM)
}

/// A plugin whose own files are sound.
struct Candidate {
    /// Where it comes in the order.
    place: usize,
    folder: PathBuf,
    manifest: PathBuf,
    text: String,
    format: Format,
    platform: Platform,
    files: Vec<PathBuf>,
}

/// What is wrong with a plugin, and what its manifest says all the same of what no reload can change.
type Unusable = (Problems, Option<Box<Shape>>);

struct Search<'s> {
    files: Files,
    configuration: &'s Path,
    /// What stands in it; none if that is not known.
    config: Option<&'s Config>,
    candidates: Vec<Candidate>,
    /// With their places in the order.
    refused: Vec<(usize, Refused)>,
    listed: Vec<(PathBuf, Vec<OsString>)>,
    place: usize,
    /// Nearest names that were looked for.
    hints: usize,
}

impl<'s> Search<'s> {
    fn new(configuration: &'s Path, config: Option<&'s Config>, user: u32) -> Search<'s> {
        Search {
            files: Files::new(user, std::env::var_os("PATH").unwrap_or_default()),
            configuration,
            config,
            candidates: Vec::new(),
            refused: Vec::new(),
            listed: Vec::new(),
            place: 0,
            hints: 0,
        }
    }

    /// Those of the configuration.
    fn platforms(&self) -> &'s [Platform] {
        self.config.map_or(&[], |config| &config.platforms)
    }

    fn run(mut self, directories: &[PathBuf], incumbents: &BTreeMap<String, PathBuf>) -> Discovery {
        let mut identities = Vec::new();
        for directory in directories {
            let seen = self.files.look(directory);
            if seen.is_ok_and(|stamp| identities.contains(&stamp.identity())) {
                continue; // The same one under another name, or named twice.
            }
            identities.extend(seen.map(|stamp| stamp.identity()));
            match self.check_directory(directory, seen) {
                Ok(names) => {
                    for name in &names {
                        self.check_folder(directory, name);
                    }
                    self.listed.push((directory.clone(), names));
                }
                Err((what, remedy)) => self.refuse_directory(directory, what, &remedy),
            }
        }
        self.settle_names(incumbents);
        self.settle_needs();
        self.settle_sizes();
        self.refused.sort_by_key(|(place, _)| *place);
        let found = |candidate: Candidate| Found { platform: candidate.platform, files: candidate.files };
        Discovery {
            found: self.candidates.into_iter().map(found).collect(),
            refused: self.refused.into_iter().map(|(_, refused)| refused).collect(),
            seen: self.files.into_seen(),
            listed: self.listed,
        }
    }

    fn refuse_directory(&mut self, directory: &Path, what: String, remedy: &str) {
        let problems = Problems::one(directory, (0, 0), what, remedy);
        self.place += 1;
        self.refused.push((self.place, Refused { name: None, folder: directory.to_owned(), problems, shape: None }));
    }

    /// The names in it that may be plugin folders, in order.
    fn check_directory(&mut self, directory: &Path, seen: Seen) -> Result<Vec<OsString>, Fault> {
        match seen {
            Err(std::io::ErrorKind::NotFound) => return Ok(Vec::new()),
            Err(kind) => return Err((format!("the directory cannot be looked at: {kind}"), READABLE.to_owned())),
            Ok(stamp) if !stamp.is_directory() => {
                return Err(("this is no directory".to_owned(), "name a directory in plugins.paths".to_owned()));
            }
            Ok(stamp) => {
                if let Some(fault) = self.files.distrust(directory, &stamp, "it") {
                    return Err(fault);
                }
            }
        }
        let (names, is_cut) =
            list(directory).map_err(|error| (format!("the directory cannot be read: {error}"), READABLE.to_owned()))?;
        if is_cut {
            let what = format!("more than {ENTRIES_MAX} names are in this directory; the rest is passed over");
            self.refuse_directory(directory, what, "keep only plugins in it");
        }
        Ok(names)
    }

    /// Takes a folder in as a candidate, refuses it, or passes it over if it is no plugin.
    fn check_folder(&mut self, directory: &Path, name: &OsString) {
        let folder = directory.join(name);
        let (ron, json) = (folder.join("plugin.ron"), folder.join("plugin.json"));
        let (has_ron, has_json) = (self.files.look(&ron), self.files.look(&json));
        let is_absent = |seen: &Seen| matches!(seen, Err(std::io::ErrorKind::NotFound));
        let (manifest, seen, format) = match (is_absent(&has_ron), is_absent(&has_json)) {
            (true, true) => {
                // No plugin; but a symlink that leads nowhere was meant to be one.
                if self.files.look(&folder).is_err() {
                    let what = "this symlink leads nowhere".to_owned();
                    let problems = Problems::one(&folder, (0, 0), what, "mend or remove it");
                    self.refuse_folder(folder, None, None, problems);
                }
                return;
            }
            (false, true) => (ron, has_ron, Format::Ron),
            (true, false) => (json, has_json, Format::Json),
            (false, false) => {
                let what = "there are both a plugin.ron and a plugin.json".to_owned();
                let problems = Problems::one(&folder, (0, 0), what, "keep the one that you edit and remove the other");
                return self.refuse_folder(folder, None, None, problems);
            }
        };
        let text = match seen {
            Ok(stamp) => read_manifest(&manifest, &stamp),
            Err(kind) => {
                let what = format!("the manifest cannot be looked at: {kind}");
                Err(Problems::one(&manifest, (0, 0), what, READABLE))
            }
        };
        let text = match text {
            Ok(text) => text,
            Err(problems) => return self.refuse_folder(folder, None, None, problems),
        };
        match self.check_plugin(&folder, &manifest, &text, format) {
            Ok((platform, files)) => {
                self.place += 1;
                self.candidates.push(Candidate { place: self.place, folder, manifest, text, format, platform, files });
            }
            Err((problems, shape)) => self.refuse_folder(folder, config_file::name_in(&text), shape, problems),
        }
    }

    fn refuse_folder(&mut self, folder: PathBuf, name: Option<String>, shape: Option<Box<Shape>>, problems: Problems) {
        let name = name.or_else(|| Some(folder.file_name()?.to_string_lossy().into_owned()));
        self.place += 1;
        self.refused.push((self.place, Refused { name, folder, problems, shape }));
    }

    /// Checks one plugin by itself: the platform that it describes, and the files that make it up. With the problems comes
    /// what its manifest says all the same.
    fn check_plugin(
        &mut self,
        folder: &Path,
        manifest: &Path,
        text: &str,
        format: Format,
    ) -> Result<(Platform, Vec<PathBuf>), Unusable> {
        let mut described = None;
        let read = config_file::manifest(text, manifest, format, |read: &mut Manifest| {
            let platform = read.platform(folder, manifest);
            let mistakes = mistakes_of(read, &platform, self.config);
            described = Some(platform);
            mistakes
        });
        let shape = described.as_ref().map(Shape::of);
        for path in [folder, manifest] {
            if let Some((what, remedy)) = self.distrust(path, folder, "it") {
                return Err((Problems::one(path, (0, 0), what, &remedy), shape));
            }
        }
        if let Err(problems) = read {
            return Err((problems, shape));
        }
        let platform = described.expect("a manifest is only returned after it was judged");
        let mut files = vec![manifest.to_owned()];
        match self.check_command(folder, &platform, &mut files) {
            Ok(()) => Ok((platform, files)),
            Err((what, remedy)) => {
                let mistake = Mistake { at: "command".to_owned(), what, remedy };
                Err((config_file::placed(text, manifest, format, vec![mistake]), shape))
            }
        }
    }

    /// What is wrong if others may change it, or put something else in its place.
    fn distrust(&mut self, path: &Path, folder: &Path, subject: &str) -> Option<Fault> {
        let stamp = self.files.look(path).ok()?;
        let fault = self.files.distrust(path, &stamp, subject);
        // The directories of plugins were checked already.
        let is_plain = path == folder && !path.is_symlink();
        fault.or_else(|| if is_plain { None } else { self.files.distrust_place_of(path, folder) })
    }

    /// Whether the program is there and may be executed; adds it, and the scripts that it is given, to `files`.
    fn check_command(&mut self, folder: &Path, platform: &Platform, files: &mut Vec<PathBuf>) -> Result<(), Fault> {
        let Some((program, arguments)) = platform.command.split_first() else {
            return Ok(());
        };
        if !names_demi(program) {
            let path = self.check_program(program, platform)?;
            if program.contains('/') {
                if let Some(fault) = self.distrust(&path, folder, &path.display().to_string()) {
                    return Err(fault);
                }
            } else if let Some(fault) = self
                .files
                .look(&path)
                .ok()
                .and_then(|stamp| self.files.distrust(&path, &stamp, &path.display().to_string()))
            {
                return Err(fault);
            }
            files.push(path);
        }
        for argument in arguments.iter().filter(|argument| !argument.starts_with('-') && !argument.is_empty()) {
            let path = folder.join(argument);
            if path.starts_with(folder) && self.files.look(&path).is_ok_and(|stamp| stamp.is_file()) {
                if let Some(fault) = self.distrust(&path, folder, &path.display().to_string()) {
                    return Err(fault);
                }
                files.push(path);
            }
        }
        Ok(())
    }

    fn check_program(&mut self, program: &str, platform: &Platform) -> Result<PathBuf, Fault> {
        if !program.contains('/') {
            let search = platform.env.get("PATH").map(String::as_str);
            return self.files.program(program, search).ok_or_else(|| {
                let what = format!("no executable {program:?} is on PATH");
                (what, format!("install it, or write \"./{program}\" if it is in the folder"))
            });
        }
        let path = PathBuf::from(program);
        match self.files.look(&path) {
            Ok(stamp) if !stamp.is_file() => {
                Err((format!("{program} is no file"), "name a program and its arguments".to_owned()))
            }
            Ok(_) if is_executable(&path) => Ok(path),
            Ok(_) => Err((format!("{program} is not executable"), format!("make it so: chmod +x {program}"))),
            Err(std::io::ErrorKind::NotFound) => {
                let remedy = "put it there, or name a program without a slash to have it looked for on PATH";
                Err((format!("{program} is not there"), remedy.to_owned()))
            }
            Err(kind) => Err((format!("{program} cannot be looked at: {kind}"), READABLE.to_owned())),
        }
    }

    /// Refuses a candidate for a mistake that only shows beside the others.
    fn refuse_candidate(&mut self, index: usize, mistakes: Vec<Mistake>) {
        let candidate = self.candidates.remove(index);
        let Candidate { place, folder, manifest, text, format, platform, .. } = candidate;
        let problems = config_file::placed(&text, &manifest, format, mistakes);
        let shape = Some(Shape::of(&platform));
        self.refused.push((place, Refused { name: Some(platform.name), folder, problems, shape }));
    }

    /// Each name belongs to the configuration, else to who runs under it already, else to the first.
    fn settle_names(&mut self, incumbents: &BTreeMap<String, PathBuf>) {
        let mut owners: HashMap<String, PathBuf> = HashMap::new();
        for candidate in &self.candidates {
            let name = &candidate.platform.name;
            if incumbents.get(name).is_some_and(|folder| *folder == candidate.folder) {
                owners.insert(name.clone(), candidate.manifest.clone());
            }
        }
        let configured = self.platforms().iter().map(|platform| (platform.name.clone(), self.configuration.to_owned()));
        owners.extend(configured);
        let mut index = 0;
        while index < self.candidates.len() {
            let candidate = &self.candidates[index];
            let name = &candidate.platform.name;
            let owner = owners.entry(name.clone()).or_insert_with(|| candidate.manifest.clone());
            if *owner == candidate.manifest {
                index += 1;
                continue;
            }
            let what = format!("the name {name:?} is taken by {}", owner.display());
            let remedy = "give one of them another name".to_owned();
            self.refuse_candidate(index, vec![Mistake { at: "name".to_owned(), what, remedy }]);
        }
    }

    /// Keeps the tables of the conductor bounded.
    fn settle_sizes(&mut self) {
        let mut platforms = self.platforms().len();
        let mut instances: usize = self.platforms().iter().map(Platform::slots).sum();
        let mut index = 0;
        while index < self.candidates.len() {
            let slots = self.candidates[index].platform.slots();
            let remedy = "run a second Demi for the rest".to_owned();
            if platforms >= PLATFORMS_MAX {
                let what = format!("there are {PLATFORMS_MAX} platforms already, and no room for more");
                self.refuse_candidate(index, vec![Mistake { at: "name".to_owned(), what, remedy }]);
            } else if instances + slots > INSTANCES_MAX {
                let what = format!("with it there would be more than {INSTANCES_MAX} instances over all platforms");
                let remedy = format!("lower its instances, or {remedy}");
                self.refuse_candidate(index, vec![Mistake { at: "instances".to_owned(), what, remedy }]);
            } else {
                (platforms, instances) = (platforms + 1, instances + slots);
                index += 1;
            }
        }
        // One that was refused here may be needed by one that was not.
        self.settle_needs();
    }
}

const READABLE: &str = "let the user that runs Demi read it";

/// The names of what may be a plugin folder, in order, and whether there were more than are looked at.
fn list(directory: &Path) -> std::io::Result<(Vec<OsString>, bool)> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_symlink());
        let name = entry.file_name();
        if !is_folder || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if names.len() == ENTRIES_MAX {
            return Ok((sorted(names), true));
        }
        names.push(name);
    }
    Ok((sorted(names), false))
}

fn sorted(mut names: Vec<OsString>) -> Vec<OsString> {
    names.sort_unstable();
    names
}

/// The text of a manifest, if it is the file that was looked at.
fn read_manifest(path: &Path, stamp: &Stamp) -> Result<String, Problems> {
    let whole = |what: String, remedy: &str| Problems::one(path, (0, 0), what, remedy);
    if !stamp.is_file() {
        return Err(whole("the manifest is no file".to_owned(), "put a text file in its place"));
    }
    let too_long = || {
        let what = format!("the manifest is longer than {MANIFEST_BYTES_MAX} bytes");
        whole(what, "shorten it")
    };
    if stamp.size() > MANIFEST_BYTES_MAX as u64 {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(stamp.size() as usize + 1);
    match open_file(path).and_then(|file| file.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() > MANIFEST_BYTES_MAX => Err(too_long()),
        Ok(_) => config_file::text_of(bytes, path),
        Err(error) => Err(whole(format!("the manifest cannot be read: {error}"), READABLE)),
    }
}

/// The mistakes of a manifest by itself, with those that any platform can have in this configuration.
fn mistakes_of(manifest: &Manifest, platform: &Platform, config: Option<&Config>) -> Vec<Mistake> {
    let mut mistakes = manifest.mistakes();
    // Who it needs is judged when all are known.
    let mut alone = Config { platforms: vec![Platform { needs: Vec::new(), ..platform.clone() }], ..Config::default() };
    match config {
        Some(config) => {
            (alone.health, alone.breaker) = (config.health, config.breaker);
            alone.reachability.clone_from(&config.reachability);
            mistakes.extend(behind_itself(platform, config));
        }
        // What it may lie behind is not known.
        None => alone.platforms[0].behind.clear(),
    }
    for mistake in alone.mistakes(&[]) {
        let Some(at) = mistake.at.strip_prefix("platforms[0].") else { continue };
        if !mistakes.iter().any(|told| told.at == at) {
            // A manifest is about one platform only.
            let what = mistake.what.replace("platforms[0].", "");
            mistakes.push(Mistake { at: at.to_owned(), what, ..mistake });
        }
    }
    mistakes
}

/// What it says to lie behind and is itself.
fn behind_itself<'p>(platform: &'p Platform, config: &'p Config) -> impl Iterator<Item = Mistake> + 'p {
    let is_itself = |name: &String| {
        let mut named = config.reachability.iter().filter(|entry| entry.name == *name);
        named.any(|entry| entry.check == Check::Platform(platform.name.clone()))
    };
    platform.behind.iter().enumerate().filter(move |(_, name)| is_itself(name)).map(|(index, name)| Mistake {
        at: format!("behind[{index}]"),
        what: format!("{name:?} of `reachability` is this plugin itself"),
        remedy: "remove it".to_owned(),
    })
}

/// Every mistake of a manifest by itself.
#[cfg(test)]
pub(crate) fn mistakes_for_tests(manifest: &Manifest) -> Vec<Mistake> {
    mistakes_of(manifest, &manifest.platform(Path::new("/plugins/x"), Path::new("/plugins/x/plugin.ron")), None)
}

#[cfg(test)]
mod tests;
