//! `demi plugin check PATH`: starts a plugin for real and puts it to the test, a line for each.
//!
//! A step that the plugin does not survive is told, and the next one begins with another run of it. Every wait has an end,
//! and all of them together have one too: a plugin that hangs is told as such in less than half a minute.

mod demi1;
mod mcp;
mod report;
mod subject;
mod suite;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use demi::{plugins, Config, Host, Mistake, Platform};

use report::Report;
use subject::{kill_descendants, Recipe};
use suite::Suite;

use crate::{FAILED, USAGE};

/// What a folder's manifest may be named.
const MANIFEST_NAMES: [&str; 2] = ["plugin.ron", "plugin.json"];

/// Checks the plugin of a folder or manifest.
pub(crate) fn check(path: &Path) -> ExitCode {
    let Some(file) = manifest_file(path) else {
        eprintln!(
            "demi: {} is neither a manifest nor a folder with a {}; `demi plugin new` writes one",
            path.display(),
            MANIFEST_NAMES.join(" or ")
        );
        return ExitCode::from(USAGE);
    };
    let mut report = Report::default();
    if let Some(plugin) = inspect(&file, &mut report) {
        if let Err(error) = put_to_the_test(&plugin, &mut report) {
            eprintln!("demi: the check cannot be made: {error}");
            return ExitCode::from(FAILED);
        }
    }
    if report.conclude() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    }
}

/// The manifest that is meant.
fn manifest_file(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    if path.is_file() {
        return Some(path);
    }
    MANIFEST_NAMES.iter().map(|name| path.join(name)).find(|file| file.is_file())
}

/// What can be judged without starting it.
fn inspect(file: &Path, report: &mut Report) -> Option<Platform> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    match plugins::examine(folder) {
        Ok(platform) => {
            let version = platform.plugin.as_ref().map_or("", |plugin| plugin.version.as_str());
            report.ok("manifest", &format!("{} {version}, {}", platform.name, platform.host.name()));
            Some(platform)
        }
        Err(problems) => {
            report.fail(
                "manifest",
                "one without mistakes, of files that not everybody can change",
                &problems.to_string(),
            );
            None
        }
    }
}

/// What a configuration with this platform alone says about it; that others are needed, and that it lies behind
/// something, is no mistake here.
pub(crate) fn mistakes_of(platform: &Platform) -> Vec<Mistake> {
    let alone = Platform { needs: Vec::new(), behind: Vec::new(), ..platform.clone() };
    let config = Config { platforms: vec![alone], ..Config::default() };
    let mut mistakes = config.mistakes(&[]);
    for mistake in &mut mistakes {
        mistake.at = mistake.at.trim_start_matches("platforms[0].").to_owned();
    }
    mistakes
}

fn put_to_the_test(plugin: &Platform, report: &mut Report) -> std::io::Result<()> {
    let demi = std::env::current_exe()?;
    let temporary = Temporary::new()?;
    let command = plugins::with_executable(&plugin.command, &demi);
    let recipe = Recipe {
        demi,
        command,
        environment: plugin.env.clone(),
        folder: plugin.directory.as_deref().unwrap_or("/").into(),
        temporary: temporary.0.clone(),
        title: format!("{}/0", plugin.name),
    };
    // What a plugin leaves behind becomes a child of this process and not of init: so it is found, and ended.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut suite = Suite::new(recipe, plugin, report);
    match plugin.host {
        Host::Mcp(_) => mcp::run(&mut suite),
        _ => demi1::run(&mut suite),
    }
    drop(suite);
    kill_descendants();
    Ok(())
}

/// Where the temporary directories of its runs are; removed with the check.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> std::io::Result<Temporary> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("demi-check-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Temporary(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed is left to whoever cleans the temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
