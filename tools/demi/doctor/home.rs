//! What Demi itself wants: a configuration, a directory to write to, descriptors.

use std::path::{Path, PathBuf};

use demi::config_file;
use demi::Config;
use rustix::fs::{access, statvfs, Access};
use rustix::process::{getrlimit, Resource};

use super::{megabytes, Check};
use crate::page::counted;
use crate::{adapter_names, configuration, plan};

/// With less than this the store is shut soon.
const DISK_FREE_BYTES_MIN: u64 = 100_000_000;
/// Descriptors of an instance: three pipes, the process itself, one to spare.
const DESCRIPTORS_OF_INSTANCE: u64 = 5;
/// What Demi needs beside connections and instances.
const DESCRIPTORS_OF_DEMI: u64 = 64;

/// `path` is that of a configuration, if one was named. With its `scaler.ram_total_mb`, if that is there.
pub(super) fn look(path: Option<&Path>) -> (Vec<Check>, Option<u64>) {
    let path = path.map(Path::to_path_buf).or_else(configuration::find);
    let (check, config) = configured(path.as_deref());
    let base = path.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    let ram_total_mb = config.scaler.ram_total_mb.map(|megabytes| megabytes.value());
    (vec![check, data(&base.join(&config.store.path)), descriptors(&config)], ram_total_mb)
}

/// What `--dry-run` would say, in a line; and what is configured, or else the default.
fn configured(path: Option<&Path>) -> (Check, Config) {
    const NAME: &str = "configuration";
    let Some(path) = path else {
        let candidates: Vec<String> =
            configuration::candidates().iter().map(|path| path.display().to_string()).collect();
        let check = Check::fail(
            NAME,
            "none was found",
            format!("write one of these, or name one with --config PATH:\n  {}", candidates.join("\n  ")),
        );
        return (check, Config::default());
    };
    let shown = path.display();
    let loaded = match config_file::load(path, &adapter_names()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            let text = problems.to_string();
            let seen = format!("it has {}", counted(text.lines().count(), "mistake"));
            return (Check::fail(NAME, seen, text), Config::default());
        }
    };
    let config = loaded.config;
    if let Err(mistakes) = plan::check(&config) {
        let lines: Vec<String> = mistakes.iter().map(|mistake| format!("{shown}: {mistake}")).collect();
        return (Check::fail(NAME, format!("it has {}", counted(lines.len(), "mistake")), lines.join("\n")), config);
    }
    let counts = [counted(config.platforms.len(), "platform"), counted(config.routes.len(), "route")].join(", ");
    let (warnings, refused) = (loaded.warnings.len(), loaded.refused.len());
    let check = match warnings + refused {
        0 => Check::ok(NAME, format!("{shown}: {counts}")),
        _ => {
            let seen =
                format!("{shown}: {counts}, {}, {}", counted(warnings, "warning"), counted(refused, "refused plugin"));
            Check::note(NAME, seen, "this says which:\n  demi --dry-run")
        }
    };
    (check, config)
}

/// Whether there is, or can be, a store in a directory.
fn data(path: &Path) -> Check {
    const NAME: &str = "data directory";
    // A relative path without any part is here.
    let ancestors = path.ancestors().map(|part| if part.as_os_str().is_empty() { Path::new(".") } else { part });
    let found: Option<PathBuf> = ancestors.into_iter().find(|part| part.exists()).map(Path::to_path_buf);
    let shown = path.display();
    let writable = found.as_deref().ok_or(rustix::io::Errno::NOENT).and_then(|found| {
        if !found.is_dir() {
            return Err(rustix::io::Errno::NOTDIR);
        }
        access(found, Access::WRITE_OK | Access::EXEC_OK)?;
        statvfs(found)
    });
    match writable {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let seen = format!("{shown} can be written, {} are free there", megabytes(free));
            match free {
                DISK_FREE_BYTES_MIN.. => Check::ok(NAME, seen),
                _ => Check::note(NAME, seen, "free some, or set `store.path` to another disk"),
            }
        }
        Err(error) => Check::fail(
            NAME,
            format!("{shown} cannot be written by this user: {error}"),
            format!("set `store.path` to a directory that can, or as root:\n  install -d -o USER {shown}"),
        ),
    }
}

/// Whether as many descriptors are granted as the configuration may use. Demi raises its own limit up to what is granted.
fn descriptors(config: &Config) -> Check {
    let instances: u64 = config.platforms.iter().map(|platform| platform.instances() as u64).sum();
    let wanted = config.http.connections_max.value() + DESCRIPTORS_OF_INSTANCE * instances + DESCRIPTORS_OF_DEMI;
    judge_descriptors(getrlimit(Resource::Nofile).maximum, wanted)
}

/// `granted`: `None` if there is no limit.
fn judge_descriptors(granted: Option<u64>, wanted: u64) -> Check {
    match granted {
        None => Check::ok("descriptors", "as many as it likes"),
        Some(granted) if granted >= wanted => {
            Check::ok("descriptors", format!("{granted} are granted, {wanted} may be needed"))
        }
        Some(granted) => Check::note(
            "descriptors",
            format!("{granted} are granted, and http.connections_max with all instances may need {wanted}"),
            format!(
                "lower http.connections_max, or below [Service] of its unit:\n  LimitNOFILE={}",
                wanted.next_power_of_two()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_store_may_be_where_it_can_be_made() {
        let directory = std::env::temp_dir().join(format!("demi-doctor-data-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("it can be written");
        assert_ne!(data(&directory.join("not/there/yet")).verdict, Verdict::Fail);
        assert_ne!(data(Path::new("not-there-yet")).verdict, Verdict::Fail, "here");
        std::fs::write(directory.join("file"), "").expect("it can be written");
        let check = data(&directory.join("file/below"));
        assert!(check.verdict == Verdict::Fail && check.remedy.is_some(), "{check:?}");
        let _ = std::fs::remove_dir_all(&directory);
    }

    #[test]
    fn too_few_descriptors_are_told_with_the_line_that_grants_more() {
        assert_eq!(judge_descriptors(Some(100), 100).verdict, Verdict::Ok);
        assert_eq!(judge_descriptors(None, 100).verdict, Verdict::Ok);
        let remedy = judge_descriptors(Some(1024), 2132).remedy.expect("it is missing");
        assert!(remedy.ends_with("\n  LimitNOFILE=4096"), "{remedy}");
    }
}
