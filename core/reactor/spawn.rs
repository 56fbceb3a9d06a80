//! Starts children: what each finds around itself is decided here.
//!
//! A child finds the environment that its platform names and nothing else but `PATH`, `TMPDIR` (a directory of its own,
//! empty, which nobody else may read), `DEMI_INSTANCE` (`platform/index`) and `DEMI_TOKEN`, by which every process that
//! it starts is known to be its own.

use std::cell::OnceCell;
use std::collections::hash_map::RandomState;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use demi_conductor::config::{Limits, Permissions};
use demi_conductor::MEGABYTE;
use demi_platform::Settings;

use crate::cgroup::{self, Cgroups, Toll, Who};
use crate::mailbox::Postbox;
use crate::sandbox::{self, Confines};
use crate::warden::{Duties, Unweighed, Warden};
use crate::weigh::{owner, Tree, MARKER};

/// What is spoken with a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Demi's own.
    Demi,
    /// The Model Context Protocol.
    Mcp,
}

/// What is needed to start a platform's children.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    /// Where the child begins; Demi's own working directory if absent.
    pub(crate) directory: Option<PathBuf>,
    pub(crate) settings: Settings,
    pub(crate) limits: Limits,
    pub(crate) protocol: Protocol,
    pub(crate) permissions: Permissions,
}

/// Where children are kept: their temporary directories, their control groups, the token of this Demi, and the thread
/// that cleans up after them. On the reactor's thread. Nothing is made or started before the first child is.
pub(crate) struct Yard {
    /// The directory of the store, absolute.
    store: PathBuf,
    token: String,
    plan: Plan,
    postbox: Postbox,
    opened: OnceCell<Opened>,
}

/// What a host program allows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) guard: Option<PathBuf>,
    pub(crate) is_subreaper: bool,
    pub(crate) uses_cgroups: bool,
    /// Whether trees are weighed by PSS, too.
    pub(crate) weighs_pss: bool,
}

struct Opened {
    cgroups: Option<Cgroups>,
    warden: Warden,
}

/// Starts a run of the instance `title` (`platform/index`), with pipes on all three of its standard descriptors.
///
/// # Errors
/// If the program cannot be started, or something that it is to find around itself cannot be made.
pub(crate) fn spawn(recipe: &Recipe, title: &str, run: u32, yard: &Yard) -> io::Result<Child> {
    let opened = yard.open()?;
    let mut command = Command::new(program(&recipe.program)?);
    if let Some(directory) = &recipe.directory {
        if !directory.is_dir() {
            let why = format!("its directory {} is not there; make it, or correct `directory`", directory.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        command.current_dir(directory);
    }
    let temporary = yard.fresh_directory(title)?;
    command.args(&recipe.arguments).env_clear().env("TMPDIR", &temporary);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.envs(&recipe.environment);
    command.env("DEMI_INSTANCE", title).env(MARKER, format!("{}:{}", yard.token, owner(title, run)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let group = opened.cgroups.as_ref().and_then(|cgroups| {
        let opened = cgroups.open(&group_name(title, run), &recipe.limits);
        let told = opened.inspect_err(|error| log::warn!("{title}: it gets no control group: {error}"));
        told.ok()
    });
    let path = group.as_ref().map(|group| group.path.clone());
    sandbox::isolate(&mut command, confines(&recipe.limits), group.map(|group| group.entrance));
    sandbox::spawn(&mut command).inspect_err(|_| opened.warden.ended(owner(title, run), path))
}

fn confines(limits: &Limits) -> Confines {
    Confines {
        descriptors_max: limits.descriptors_max.value(),
        file_bytes_max: limits.file_max_mb.map(|bound| bound.value() * MEGABYTE),
        cpu_s_max: limits.cpu_max_s.map(|bound| bound.value()),
    }
}

/// A program with a slash starts where Demi runs, whatever directory the child gets; one without is looked for on PATH.
fn program(program: &Path) -> io::Result<PathBuf> {
    match program.components().count() {
        0 | 1 => Ok(program.to_owned()),
        _ => std::path::absolute(program),
    }
}

/// `platform/index` as the name of a file. The index is what stands after the last dash, so no two are the same.
fn file_name(title: &str) -> String {
    title.replace('/', "-")
}

fn group_name(title: &str, run: u32) -> String {
    format!("{}-{run}", file_name(title))
}

impl Yard {
    /// For the Demi whose store is at `store`.
    ///
    /// # Errors
    /// If there is no working directory that a relative path could start at.
    pub(crate) fn new(store: &Path, plan: Plan, postbox: Postbox) -> io::Result<Yard> {
        let store = std::path::absolute(store)?;
        Ok(Yard { store, token: draw_token(), plan, postbox, opened: OnceCell::new() })
    }

    fn open(&self) -> io::Result<&Opened> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        make_private(&self.trash())?;
        // Whatever an earlier Demi left there is nobody's any more.
        self.discard(&self.temporary())?;
        make_private(&self.temporary())?;
        if self.plan.is_subreaper {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        let cgroups = self.plan.uses_cgroups.then(take_over_cgroups).flatten();
        let warden = Warden::start(Duties {
            token: self.token.clone(),
            is_subreaper: self.plan.is_subreaper,
            weighs_pss: self.plan.weighs_pss,
            guard: self.plan.guard.clone(),
            trash: self.trash(),
            postbox: self.postbox.clone(),
        })?;
        Ok(self.opened.get_or_init(|| Opened { cgroups, warden }))
    }

    fn temporary(&self) -> PathBuf {
        self.store.join("tmp")
    }

    fn trash(&self) -> PathBuf {
        self.store.join("trash")
    }

    /// An empty directory that is the instance's alone.
    fn fresh_directory(&self, title: &str) -> io::Result<PathBuf> {
        let path = self.temporary().join(file_name(title));
        self.discard(&path)?;
        make_private(&path)?;
        Ok(path)
    }

    /// Moves a directory to the trash, which takes no longer however much is in it.
    fn discard(&self, path: &Path) -> io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        match fs::rename(path, self.trash().join(format!("{}-{number}", self.token))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path, &error)),
            _ => Ok(()),
        }
    }

    /// Has the trees of the living weighed; `Letter::Weighed` follows, if there has been a child.
    ///
    /// # Errors
    /// If the last weighing is not over, or there will be none any more.
    pub(crate) fn weigh(&self, trees: Vec<Tree>) -> Result<(), Unweighed> {
        self.opened.get().map_or(Ok(()), |opened| opened.warden.weigh(trees))
    }

    /// Has a child that was killed and cannot be kept reaped when it ends. Does not wait.
    pub(crate) fn reap(&self, child: Child) {
        if let Some(opened) = self.opened.get() {
            opened.warden.reap(child);
        }
    }

    /// A run has ended and was reaped: what it left behind is removed. What the kernel did in its control group.
    pub(crate) fn ended(&self, title: &str, run: u32) -> Toll {
        let Some(opened) = self.opened.get() else { return Toll::default() };
        let group = opened.cgroups.as_ref().map(|cgroups| cgroups.path_of(&group_name(title, run)));
        let toll = group.as_deref().map(cgroup::toll).unwrap_or_default();
        if let Err(error) = self.discard(&self.temporary().join(file_name(title))) {
            log::warn!("{title}: its temporary directory cannot be removed: {error}");
        }
        opened.warden.ended(owner(title, run), group);
        toll
    }

    /// Removes whatever any run left behind, and waits for that, but not for ever.
    pub(crate) fn close(&mut self) {
        let discarded = self.discard(&self.temporary());
        if let Some(opened) = self.opened.take() {
            if let Err(error) = discarded {
                log::warn!("temporary directories cannot be removed: {error}");
            }
            opened.warden.finish();
            if let Some(cgroups) = opened.cgroups {
                cgroups.give_back(std::process::id());
            }
        }
    }
}

fn take_over_cgroups() -> Option<Cgroups> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let who = Who { pid: std::process::id(), is_root: rustix::process::geteuid().is_root() };
    match Cgroups::take_over(Path::new("/sys/fs/cgroup"), &own, who) {
        Ok(cgroups) => {
            log::info!("{}", cgroups.describe());
            Some(cgroups)
        }
        Err(why) => {
            log::info!("plugins are held to their limits by weighing them every second, not by control groups: {why}");
            None
        }
    }
}

/// Makes a directory that only this user may enter; one that is there is made so.
fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    DirBuilder::new().mode(0o700).recursive(true).create(path).map_err(|error| at(path, &error))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|error| at(path, &error))
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// 32 hexadecimal digits that no other Demi has: the keys of the standard library's hash are drawn from the system.
fn draw_token() -> String {
    let draw = |word: u64| {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u64(word);
        hasher.finish()
    };
    format!("{:016x}{:016x}", draw(u64::from(std::process::id())), draw(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_enough_for_the_guard_and_never_the_same() {
        let (one, other) = (draw_token(), draw_token());
        assert_eq!((one.len(), other.len()), (32, 32));
        assert_ne!(one, other);
    }

    #[test]
    fn a_program_with_a_slash_does_not_depend_on_the_directory_of_the_child() {
        assert_eq!(program(Path::new("sh")).expect("it is a name"), Path::new("sh"));
        assert!(program(Path::new("./sh")).expect("there is a working directory").is_absolute());
        assert!(program(Path::new("bin/sh")).expect("there is a working directory").is_absolute());
    }
}
