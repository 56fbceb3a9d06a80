//! `demi-bench discover`: how long it takes to find and check the plugins in a directory, one of them broken.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use argh::FromArgs;
use demi::plugins::{discover, Rescan};
use demi::Config;
use serde::Serialize;

use crate::report::{print, progress, Machine, Spread, Table};
use crate::Outcome;

#[derive(FromArgs)]
#[argh(subcommand, name = "discover")]
/// milliseconds to find, read and check plugin folders, in RON and in JSON
pub struct Arguments {
    /// plugin folders (default 1000)
    #[argh(option, default = "1000")]
    plugins: usize,
    /// discoveries of each kind (default 20)
    #[argh(option, default = "20")]
    runs: usize,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    plugins: usize,
    discover_ron_ms: Spread,
    discover_json_ms: Spread,
    /// Another look at as many plugins, of which none has changed.
    rescan_ms: Spread,
    /// The same of twenty plugins.
    rescan_20_ms: Spread,
}

/// Runs `demi-bench discover`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let (plugins, runs) = (arguments.plugins, arguments.runs);
    if plugins == 0 || plugins > 4000 || runs == 0 {
        return Err("--plugins must be 1 to 4000, and --runs at least 1".to_owned());
    }
    let machine = Machine::now();
    progress("folders with plugin.ron");
    let ron = Folders::write(plugins, true)?;
    let discover_ron_ms = ron.discoveries(runs)?;
    let rescan_ms = ron.rescans(runs)?;
    progress("folders with plugin.json");
    let discover_json_ms = Folders::write(plugins, false)?.discoveries(runs)?;
    let rescan_20_ms = Folders::write(20, true)?.rescans(runs)?;
    let document = Document { plugins, discover_ron_ms, discover_json_ms, rescan_ms, rescan_20_ms };
    let mut table = Table::new(&["", "median ms", "least", "most", "runs"]);
    for (name, spread) in [
        (format!("{plugins} plugins, RON"), &document.discover_ron_ms),
        (format!("{plugins} plugins, JSON"), &document.discover_json_ms),
        (format!("rescan of {plugins} unchanged"), &document.rescan_ms),
        ("rescan of 20 unchanged".to_owned(), &document.rescan_20_ms),
    ] {
        let [median, least, most, runs] = spread.cells();
        table.row(&[name, median, least, most, runs]);
    }
    print(arguments.json, &machine, &document, &[("Found, read and checked; one is broken", table)])
}

/// A directory of plugins that is removed afterwards.
struct Folders {
    directory: PathBuf,
    plugins: usize,
}

impl Folders {
    /// Every kind of command there is, some needs, and one field that does not exist in the one in the middle.
    fn write(plugins: usize, in_ron: bool) -> Outcome<Folders> {
        let kind = if in_ron { "ron" } else { "json" };
        let directory = std::env::temp_dir().join(format!("demi-bench-{}-{kind}-{plugins}", std::process::id()));
        let folders = Folders { directory, plugins };
        folders.fill(in_ron).map_err(|error| format!("{}: {error}", folders.directory.display()))?;
        Ok(folders)
    }

    fn fill(&self, in_ron: bool) -> io::Result<()> {
        for index in 0..self.plugins {
            let folder = self.directory.join(format!("plugin-{index:04}"));
            fs::create_dir_all(&folder)?;
            let command = match index % 3 {
                0 => "[\"./run\", \"--verbose\"]",
                1 => "[\"sh\", \"main.sh\"]",
                _ => "[\"{demi}\", \"plugin\", \"echo\"]",
            };
            let needs = if index % 10 == 9 { format!("[\"plugin-{:04}\"]", index - 9) } else { "[]".to_owned() };
            let broken = if index == self.plugins / 2 { "que_max" } else { "queue_max" };
            let text = if in_ron {
                format!(
                    "// Plugin {index}\n(\n    name: \"plugin-{index:04}\",\n    version: \"1.0.{index}\",\n    \
                     command: {command},\n    env: {{\"LANG\": \"C\"}},\n    capabilities: [\"concurrent\", \"trim\"],\n    \
                     needs: {needs},\n    {broken}: 100,\n    limits: (memory_max_mb: 100, processes_max: 8),\n)\n"
                )
            } else {
                format!(
                    "{{\n    \"name\": \"plugin-{index:04}\",\n    \"version\": \"1.0.{index}\",\n    \"command\": \
                     {command},\n    \"env\": {{\"LANG\": \"C\"}},\n    \"capabilities\": [\"concurrent\", \"trim\"],\n    \
                     \"needs\": {needs},\n    \"{broken}\": 100,\n    \"limits\": {{\"memory_max_mb\": 100, \
                     \"processes_max\": 8}}\n}}\n"
                )
            };
            fs::write(folder.join(if in_ron { "plugin.ron" } else { "plugin.json" }), text)?;
            if index % 3 < 2 {
                let program = folder.join(if index % 3 == 0 { "run" } else { "main.sh" });
                fs::write(&program, "#!/bin/sh\n")?;
                fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
            }
        }
        Ok(())
    }

    fn discoveries(&self, runs: usize) -> Outcome<Spread> {
        let directories = [self.directory.clone()];
        let mut times = Vec::new();
        for _ in 0..=runs {
            let began = Instant::now();
            let discovery = discover(&directories, Path::new("config.ron"), &Config::default());
            times.push(began.elapsed().as_secs_f64() * 1e3);
            // The broken one may be needed by another, which is refused with it.
            let (found, refused) = (discovery.found.len(), discovery.refused.len());
            if found + refused != self.plugins || refused == 0 || refused > 2 {
                let first = discovery.refused.first().map_or(String::new(), ToString::to_string);
                return Err(format!("{found} plugins were found and {refused} refused: {first}"));
            }
        }
        // The first one has read the files into the page cache.
        Ok(Spread::of(&times[1..]))
    }

    fn rescans(&self, runs: usize) -> Outcome<Spread> {
        let directories = vec![self.directory.clone()];
        let discovery = discover(&directories, Path::new("config.ron"), &Config::default());
        let mut rescan = Rescan::new(directories, "config.ron".into(), &Config::default(), discovery);
        let mut times = Vec::new();
        for _ in 0..=runs {
            let began = Instant::now();
            let changes = rescan.rescan();
            times.push(began.elapsed().as_secs_f64() * 1e3);
            if !changes.is_empty() {
                return Err(format!("nothing was changed, and told was {:?}", changes[0]));
            }
        }
        // The first one has read the programs.
        Ok(Spread::of(&times[1..]))
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
