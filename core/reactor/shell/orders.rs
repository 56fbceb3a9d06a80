//! What is wanted of platforms by people, by host programs and by their own folders, and what is told of them.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use demi_conductor::config::{Config, Platform, Start, INSTANCES_MAX, PLATFORMS_MAX};
use demi_conductor::lifecycle::State;
use demi_conductor::{Conductor, Event, Instance, News, Order, Phase, Terms, Time};
use serde_json::value::RawValue;

use super::roster::{self, Listed};
use super::{Bay, Hosted, Shell};
use crate::api;
use crate::calls::Origin;
use crate::chronicle::{self, Entry};
use crate::clerk::{Clerk, Memory, Note, Rescanned};
use crate::config_file::Problems;
use crate::handle::{Answered, PlatformOrder};
use crate::mishaps::HEALTH_CHECK;
use crate::plugins::{self, Change, Refused};
use crate::problem::Problem;
use crate::start;

/// The shortest interval between two looks at plugin folders: shorter ones would keep the clerk busy.
const RESCAN_MIN: Duration = Duration::from_millis(100);
/// The day is looked at this often, however far away its end seems: the clock may be set, the machine may be suspended.
const DAY_LOOK: Duration = Duration::from_secs(60);
/// Most folders that are kept as refused; of more, nobody would read the list.
const REFUSED_MAX: usize = 1_000;
/// Longest text of an event: some of the mistakes in a manifest that is wrong throughout.
const REMARK_BYTES_MAX: usize = 4 * 1024;
/// Most reloads whose manifests are being read.
const REREADS_MAX: usize = 64;

const DAY_MS: u64 = 24 * 3_600_000;

/// What is under way between the shell, the clerk and plugin folders.
pub(crate) struct Desk {
    /// What `{demi}` stands for in commands.
    pub(super) executable: PathBuf,
    /// Where relative paths start.
    pub(super) base: PathBuf,
    rescan_interval: Option<Duration>,
    rescan_at: Option<Time>,
    is_rescanning: bool,
    day: u32,
    day_look_at: Time,
    /// Folders and manifests that are no plugins, and why.
    pub(super) refused: BTreeMap<PathBuf, String>,
    /// Platforms that were found and that the conductor does not know yet.
    found: VecDeque<(Platform, Memory)>,
    /// Platforms that were found and cannot be taken in as things are, by name: they are tried again when another comes.
    /// They are among the refused. At most [`PLATFORMS_MAX`].
    turned_away: BTreeMap<String, (Platform, Memory)>,
    /// Reloads whose manifests the clerk is reading.
    rereads: BTreeMap<u64, (u32, Origin)>,
    last_reread: u64,
    /// What happened in this turn and is still to be kept.
    notes: Vec<Noted>,
}

/// Something that happened in this turn.
struct Noted {
    platform: u32,
    entry: Entry,
    /// An instance waits to be started.
    is_waiting: bool,
}

impl Desk {
    /// `refused` are the folders that were refused so far; `day` is the one for which starts were recalled.
    pub(crate) fn new(executable: PathBuf, base: PathBuf, refused: Vec<Refused>, rescan_ms: u64, day: u32) -> Desk {
        let rescan_interval = (rescan_ms > 0).then(|| Duration::from_millis(rescan_ms).max(RESCAN_MIN));
        Desk {
            executable,
            base,
            rescan_interval,
            rescan_at: rescan_interval.map(|interval| Time::ZERO + interval),
            is_rescanning: false,
            day,
            day_look_at: Time::ZERO,
            refused: refused.into_iter().map(told_of).take(REFUSED_MAX).collect(),
            found: VecDeque::new(),
            turned_away: BTreeMap::new(),
            rereads: BTreeMap::new(),
            last_reread: 0,
            notes: Vec::new(),
        }
    }

    /// Whether the wall clock says another day than before; a clock that is set back counts as well.
    fn look_at_day(&mut self, now: Time, unix_ms: u64) -> bool {
        // A little after its end: timers are exact and wall clocks are not.
        let left = Duration::from_millis(DAY_MS - unix_ms % DAY_MS + 10);
        self.day_look_at = now + left.min(DAY_LOOK);
        let day = (unix_ms / DAY_MS) as u32;
        std::mem::replace(&mut self.day, day) != day
    }

    fn refuse(&mut self, path: PathBuf, problem: String) {
        if self.refused.get(&path) == Some(&problem) {
            return;
        }
        log::warn!("{} is no plugin: {problem}", path.display());
        if self.refused.len() < REFUSED_MAX || self.refused.contains_key(&path) {
            self.refused.insert(path, problem);
        }
    }
}

/// Under which path a refused folder is told of, and what.
fn told_of(refused: Refused) -> (PathBuf, String) {
    let problem = refused.to_string();
    (refused.problems.path, problem)
}

/// Indices of platforms, each after those of them that it needs.
fn in_order_of_needs<'p>(platforms: impl Iterator<Item = &'p Platform>) -> Vec<usize> {
    let bare = |platform: &Platform| Platform {
        needs: platform.needs.clone(),
        ..Platform::new(&platform.name, platform.host)
    };
    let config = Config { platforms: platforms.map(bare).collect(), ..Config::default() };
    // Needs in a circle are refused where folders are looked at; if they came here, none of them could be taken in.
    config.start_order().unwrap_or_else(|_| (0..config.platforms.len()).collect())
}

/// The day of the wall clock (UTC), counted from the unix epoch.
pub(crate) fn unix_day() -> u32 {
    (chronicle::unix_ms() / DAY_MS) as u32
}

impl Shell {
    // ---- orders -------------------------------------------------------------------------------------------------

    /// Takes an order and answers whoever gave it.
    pub(super) fn order(&mut self, name: &str, order: PlatformOrder, origin: Origin, conductor: &Conductor) {
        let Some(platform) = self.roster.iter().position(|listed| listed.name() == name) else {
            return self.refuse_order(origin, &api::no_platform(conductor, name));
        };
        let index = platform as u32;
        let listed = &self.roster[platform];
        let missing = match order {
            PlatformOrder::Start | PlatformOrder::Restart => conductor.missing_in_emergency(platform),
            PlatformOrder::Reload => conductor.missing_to_reload_in_emergency(platform),
            PlatformOrder::Stop | PlatformOrder::Isolate | PlatformOrder::Close => None,
        };
        let refusal = if conductor.phase() != Phase::Running {
            Some("Demi is ending".to_owned())
        } else if listed.is_gone && order != PlatformOrder::Stop {
            Some(format!("the folder of {name} is gone; put it back, and it is started again"))
        } else if let Some(missing) = missing {
            let missing = missing.div_ceil(demi_conductor::MEGABYTE);
            Some(format!("RAM has nearly run out, and {missing} MB are missing for {name}; stop something else first"))
        } else if order == PlatformOrder::Reload && !listed.platform().host.is_child() {
            let host = listed.platform().host.name();
            Some(format!("{name} is hosted as {host}, and only child processes are reloaded; restart Demi instead"))
        } else {
            None
        };
        if let Some(why) = refusal {
            return self.refuse_order(origin, &Problem::new(409, why).code("not_possible").platform(name));
        }
        let order = match order {
            PlatformOrder::Start => Order::Start { platform: index },
            PlatformOrder::Stop => Order::Stop { platform: index },
            PlatformOrder::Restart => Order::Restart { platform: index },
            PlatformOrder::Isolate => Order::Isolate { platform: index },
            PlatformOrder::Close => Order::Close { platform: index },
            PlatformOrder::Reload => return self.reread(index, origin),
        };
        self.accept_order(origin, order);
    }

    fn accept_order(&mut self, origin: Origin, order: Order) {
        let (index, word) = match order {
            Order::Start { platform } | Order::Enroll { platform } => (platform, PlatformOrder::Start),
            Order::Stop { platform } | Order::Retire { platform } => (platform, PlatformOrder::Stop),
            Order::Restart { platform } => (platform, PlatformOrder::Restart),
            Order::Reload { platform, .. } => (platform, PlatformOrder::Reload),
            Order::Isolate { platform } => (platform, PlatformOrder::Isolate),
            Order::Close { platform } => (platform, PlatformOrder::Close),
            Order::Shutdown => return self.kit.events.push_back(Event::Ordered(order)),
        };
        let name = self.roster[index as usize].name();
        log::info!("{name}: {} is ordered", word.name());
        let body = format!("{{\"platform\":\"{name}\",\"order\":\"{}\"}}\n", word.name()).into_bytes();
        self.kit.events.push_back(Event::Ordered(order));
        self.record_order(index, word, &origin);
        match origin {
            Origin::Client { place, serial } => {
                self.listener.respond(place, serial, 202, api::JSON, b"", &body, self.now, &mut self.kit);
            }
            Origin::Caller(caller) => {
                // Whoever does not wait any more needs no answer.
                let _ = caller.0.try_send(Answered { status: 202, content_type: api::JSON.to_owned(), body });
            }
            Origin::Plugin { .. } | Origin::Replay { .. } | Origin::Post { .. } | Origin::Nobody => {}
        }
    }

    fn refuse_order(&mut self, origin: Origin, problem: &Problem) {
        match origin {
            Origin::Client { place, serial } => {
                self.listener.respond_problem(place, serial, problem, self.now, &mut self.kit);
            }
            Origin::Caller(caller) => {
                let _ = caller.0.try_send(super::callers::told(problem));
            }
            Origin::Plugin { .. } | Origin::Replay { .. } | Origin::Post { .. } | Origin::Nobody => {}
        }
    }

    // ---- reloads ------------------------------------------------------------------------------------------------

    /// Has the clerk read the platform's manifest; [`Shell::reread_done`] goes on.
    fn reread(&mut self, index: u32, origin: Origin) {
        let manifest = self.roster[index as usize].platform().plugin.as_ref().map(|plugin| plugin.manifest.clone());
        self.desk.last_reread += 1;
        let (number, day) = (self.desk.last_reread, self.desk.day);
        let refused = self.desk.refused.keys().cloned().collect();
        let is_taken = self.desk.rereads.len() < REREADS_MAX
            && self.clerk.as_ref().is_some_and(|clerk| clerk.reread(number, day, manifest, refused));
        if is_taken {
            self.desk.rereads.insert(number, (index, origin));
        } else {
            let problem = Problem::new(503, "too much is waiting for the clerk, who reads manifests");
            self.refuse_order(origin, &problem.code("store_busy").retry_after(Duration::from_secs(1)));
        }
    }

    /// The manifest was read, or the platform has none and is as it was.
    pub(super) fn reread_done(
        &mut self,
        number: u64,
        read: Result<Option<Box<Platform>>, String>,
        conductor: &Conductor,
    ) {
        let Some((index, origin)) = self.desk.rereads.remove(&number) else { return };
        let platform = read.map(|read| match read {
            Some(platform) => *platform,
            None => self.roster[index as usize].platform().clone(),
        });
        let order = match conductor.phase() {
            Phase::Running => platform.and_then(|platform| self.make_edition(index, platform, true)),
            _ => Err("Demi is ending".to_owned()),
        };
        match order {
            Ok(order) => self.accept_order(origin, order),
            Err(why) => {
                let listed = &mut self.roster[index as usize];
                if listed.is_update_waiting() {
                    listed.update_problem = Some(why.clone());
                }
                let name = listed.name().to_owned();
                self.remark(index, format!("it was not reloaded: {why}"));
                self.refuse_order(origin, &Problem::new(409, why).code("not_reloaded").platform(&name));
            }
        }
    }

    /// Makes the next edition of a platform; the order has the conductor try it.
    fn make_edition(&mut self, index: u32, platform: Platform, is_by_hand: bool) -> Result<Order, String> {
        let blueprint = start::blueprint(&platform, &[], &self.desk.executable, &self.desk.base);
        let terms = Terms::of(&platform);
        let listed = &mut self.roster[index as usize];
        let differences = roster::fixed_differences(listed.platform(), &platform);
        if !differences.is_empty() {
            let what = differences.join(", ");
            return Err(format!("{what}, which no reload can change; restart Demi to apply it, or undo it"));
        }
        let Some(edition) = listed.add(blueprint, platform) else {
            return Err("too many reloads of it were broken off halfway; restart it first".to_owned());
        };
        listed.awaits_swap = Some(edition);
        Ok(Order::Reload { platform: index, edition, terms, is_by_hand })
    }

    pub(super) fn adopt(&mut self, platform: u32, edition: u32) {
        let listed = &mut self.roster[platform as usize];
        listed.adopt(edition);
        listed.awaits_swap = listed.awaits_swap.filter(|awaited| *awaited != edition);
        self.record_setup(platform);
    }

    pub(super) fn reject(&mut self, platform: u32, edition: u32) {
        let listed = &mut self.roster[platform as usize];
        listed.reject(edition);
        // Of one that began the conductor has told what became of it; and it gives up an earlier one for a later.
        if listed.awaits_swap == Some(edition) {
            listed.awaits_swap = None;
            listed.swaps_failed += 1;
            let why = "it is being stopped or restarted, or RAM has nearly run out";
            self.remark(platform, format!("it was not reloaded: {why}; try again later"));
        }
    }

    // ---- plugin folders -----------------------------------------------------------------------------------------

    /// When to look again at folders, the day and the minute.
    pub(crate) fn looks_at(&self) -> Time {
        let others = [self.desk.rescan_at, self.minutes.next_at()];
        others.into_iter().flatten().fold(self.desk.day_look_at, Time::min)
    }

    /// Has folders looked at, and sees whether another day or minute has begun, if it is time to.
    pub(crate) fn look_around(&mut self, conductor: &Conductor) {
        self.turn_minute(conductor);
        self.record(self.now >= self.desk.day_look_at, conductor);
        if self.now >= self.desk.day_look_at && self.desk.look_at_day(self.now, chronicle::unix_ms()) {
            log::debug!("another day has begun");
            self.kit.events.push_back(Event::DayBegan);
        }
        if let (Some(at), Some(interval)) = (self.desk.rescan_at, self.desk.rescan_interval) {
            if self.now >= at {
                self.desk.rescan_at = Some(self.now + interval);
                if !self.desk.is_rescanning {
                    let refused = self.desk.refused.keys().cloned().collect();
                    let day = self.desk.day;
                    self.desk.is_rescanning = self.clerk.as_ref().is_some_and(|clerk| clerk.rescan(day, refused));
                }
            }
        }
    }

    /// The clerk has looked at the plugin folders.
    pub(super) fn rescanned(&mut self, rescanned: Rescanned, conductor: &Conductor) {
        self.desk.is_rescanning = false;
        for path in rescanned.vanished {
            self.desk.refused.remove(&path);
        }
        if conductor.phase() != Phase::Running {
            return;
        }
        let mut came = Vec::new();
        for (change, memory) in rescanned.changes {
            match change {
                Change::Came(platform) => came.push((platform, memory)),
                Change::Changed { name, platform } => match (self.position(&name), platform) {
                    (Some(index), platform) => self.changed(index, platform),
                    // It could not be taken in as it was.
                    (None, Ok(platform)) => came.push((platform, memory)),
                    (None, Err(problems)) => {
                        self.forget_turned_away(&name);
                        self.desk.refuse(problems.path.clone(), problems.to_string());
                    }
                },
                Change::Gone { name } => self.gone(&name),
                Change::Refused(refused) => {
                    let (path, problem) = told_of(refused);
                    self.desk.refuse(path, problem);
                }
            }
        }
        if !came.is_empty() {
            self.take_in(came);
        }
    }

    /// Takes in what has come, and with it what could not be taken in before: each after what it needs.
    fn take_in(&mut self, came: Vec<(Platform, Memory)>) {
        let mut before = std::mem::take(&mut self.desk.turned_away);
        for (platform, _) in &came {
            before.remove(&platform.name);
        }
        let mut all: Vec<_> = before.into_values().chain(came).map(Some).collect();
        let order = in_order_of_needs(all.iter().flatten().map(|(platform, _)| platform));
        for index in order {
            if let Some((platform, memory)) = all[index].take() {
                self.came(platform, memory);
            }
        }
    }

    fn forget_turned_away(&mut self, name: &str) {
        let turned_away = self.desk.turned_away.remove(name);
        if let Some(plugin) = turned_away.and_then(|(platform, _)| platform.plugin) {
            self.desk.refused.remove(&plugin.manifest);
        }
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.roster.iter().position(|listed| listed.name() == name)
    }

    fn came(&mut self, platform: Platform, memory: Memory) {
        let known = self.position(&platform.name);
        let gone = known.filter(|index| self.roster[*index].is_gone);
        let objection = if gone.is_some() { None } else { self.objection(&platform, known.is_some()) };
        if let Some(plugin) = &platform.plugin {
            self.desk.refused.remove(&plugin.folder);
            if objection.is_none() {
                self.desk.refused.remove(&plugin.manifest);
            }
        }
        match (gone, objection) {
            (Some(index), _) => self.came_back(index as u32, platform, "is back"),
            (None, None) => self.desk.found.push_back((platform, memory)),
            (None, Some(objection)) => {
                let manifest = platform.plugin.as_ref().map(|plugin| plugin.manifest.clone());
                self.desk.refuse(manifest.unwrap_or_default(), objection);
                if self.desk.turned_away.len() < PLATFORMS_MAX {
                    self.desk.turned_away.insert(platform.name.clone(), (platform, memory));
                }
            }
        }
    }

    /// Why a platform cannot be taken in while Demi runs.
    fn objection(&self, platform: &Platform, is_known: bool) -> Option<String> {
        let found = || self.desk.found.iter().map(|(platform, _)| platform);
        let is_there = |name: &String| self.position(name).is_some() || found().any(|other| other.name == *name);
        let missing = platform.needs.iter().find(|need| !is_there(need));
        let slots: usize = self.bays.len() + found().map(Platform::slots).sum::<usize>();
        if is_known || found().any(|other| other.name == platform.name) {
            Some(format!("another platform is named {:?}; rename one of them", platform.name))
        } else if let Some(missing) = missing {
            Some(format!("it needs {missing:?}, which is not there; add that"))
        } else if self.roster.len() + self.desk.found.len() >= PLATFORMS_MAX || slots + platform.slots() > INSTANCES_MAX
        {
            Some(format!("there are {PLATFORMS_MAX} platforms or {INSTANCES_MAX} instances already; remove some"))
        } else {
            None
        }
    }

    /// `what` is what its folder did.
    fn came_back(&mut self, index: u32, platform: Platform, what: &str) {
        let is_manual = platform.start == Start::Manual;
        // It may have changed meanwhile; an edition that is adopted from here on has that.
        self.roster[index as usize].note_change(None);
        match self.make_edition(index, platform, false) {
            Ok(order) => {
                self.roster[index as usize].is_gone = false;
                self.remark(index, format!("its folder {what}"));
                self.kit.events.push_back(Event::Ordered(order));
                if !is_manual {
                    self.kit.events.push_back(Event::Ordered(Order::Enroll { platform: index }));
                }
            }
            Err(why) => {
                self.remark(index, format!("its folder {what} and cannot be taken up: {why}"));
                self.roster[index as usize].update_problem = Some(why);
            }
        }
    }

    fn changed(&mut self, index: usize, platform: Result<Platform, Problems>) {
        // A folder that was refused because of its name may tell the name of another.
        let is_its_own = match (&self.roster[index].platform().plugin, &platform) {
            (Some(own), Ok(platform)) => platform.plugin.as_ref().is_some_and(|plugin| plugin.folder == own.folder),
            (Some(own), Err(problems)) => problems.path.starts_with(&own.folder),
            (None, platform) => platform.as_ref().is_ok_and(|platform| platform.plugin.is_none()),
        };
        if !is_its_own {
            let name = self.roster[index].name();
            return log::debug!("a folder that was refused and names itself {name} has changed");
        }
        let platform = platform.map_err(|problems| problems.to_string());
        let problem = platform.as_ref().err().cloned();
        let text = match &problem {
            None => "its manifest or executable has changed: an update is waiting".to_owned(),
            Some(problem) => format!("its manifest has changed and cannot be taken up: {problem}"),
        };
        self.roster[index].note_change(problem);
        // One that was gone, or refused from the beginning, has nothing that runs beside which it had to wait.
        let is_stand_in = plugins::is_stand_in(self.roster[index].platform());
        if let (true, Ok(platform)) = (self.roster[index].is_gone || is_stand_in, &platform) {
            let what = if self.roster[index].is_gone { "is back" } else { "is mended" };
            return self.came_back(index as u32, platform.clone(), what);
        }
        self.remark(index as u32, text);
        let Some(platform) = platform.ok().filter(|platform| platform.hot_reload) else { return };
        match self.make_edition(index as u32, platform, false) {
            Ok(order) => self.accept_order(Origin::Nobody, order),
            Err(why) => {
                self.roster[index].update_problem = Some(why.clone());
                self.remark(index as u32, format!("it was not reloaded: {why}"));
            }
        }
    }

    fn gone(&mut self, name: &str) {
        let Some(index) = self.position(name) else {
            self.forget_turned_away(name);
            return self.desk.found.retain(|(platform, _)| platform.name != name);
        };
        if self.roster[index].platform().plugin.is_none() {
            return log::debug!("a folder that was refused and named itself {name} is gone");
        }
        self.roster[index].is_gone = true;
        self.remark(index as u32, "its folder is gone: it is stopped".to_owned());
        self.kit.events.push_back(Event::Ordered(Order::Retire { platform: index as u32 }));
    }

    /// A platform that was found and that the conductor is to take in; [`Shell::taken_in`] goes on.
    pub(crate) fn next_found(&mut self) -> Option<(Platform, Memory)> {
        self.desk.found.pop_front()
    }

    /// The conductor has taken in a platform, which is its last one.
    pub(crate) fn taken_in(&mut self, platform: Platform, memory: Memory) {
        let index = self.roster.len() as u32;
        let blueprint = start::blueprint(&platform, &[], &self.desk.executable, &self.desk.base);
        self.bays.extend((0..platform.slots()).map(|slot| Bay::new(&platform.name, index, slot)));
        let start = platform.start;
        self.kit.events.extend(memory.events(index));
        self.roster.push(Listed::new(blueprint, platform, memory.history));
        self.record_setup(index);
        self.remark(index, "its folder was found".to_owned());
        if start == Start::Eager {
            self.kit.events.push_back(Event::Ordered(Order::Enroll { platform: index }));
        }
    }

    /// Takes the list of a platform's tools, a JSON array.
    pub(crate) fn note_tools(&mut self, platform: u32, tools: &RawValue) {
        let Some(listed) = self.roster.get_mut(platform as usize) else { return };
        if !listed.note_tools(tools) {
            log::debug!("{}: what it lists are no tools", listed.name());
        }
    }

    // ---- what is told -------------------------------------------------------------------------------------------

    /// The conductor tells what happened to a platform.
    pub(super) fn hear_news(&mut self, platform: u32, instance: Option<Instance>, news: &News, conductor: &Conductor) {
        self.record_news(platform, news);
        let index = instance.map(|instance| conductor.index_of(instance));
        let mut is_waiting = false;
        match (news, instance) {
            (News::State { was, now, reason }, Some(instance)) => {
                self.bays[instance.slot as usize].reason = (*now != State::Spare).then_some(*reason);
                is_waiting = *now == State::Waiting;
                if (*was, *now) == (State::Waiting, State::Starting) {
                    self.forget_wait(platform, index);
                }
            }
            (News::SwapBegan, _) => self.roster[platform as usize].awaits_swap = None,
            (News::SwapDone | News::SwapUntried, _) => self.roster[platform as usize].swaps_done += 1,
            (News::SwapFailed { .. }, _) => self.roster[platform as usize].swaps_failed += 1,
            _ => {}
        }
        let target = |index: u32| {
            let target = conductor.targets().nth(index as usize);
            target.map_or("what it lies behind", |target| target.name)
        };
        let text = chronicle::sentence(news, self.now, target);
        self.note(platform, Entry { unix_ms: chronicle::unix_ms(), instance: index, text }, is_waiting);
    }

    /// An instance that starts in the turn in which it was wanted is not told to have waited.
    fn forget_wait(&mut self, platform: u32, index: Option<u32>) {
        let is_its_own = |noted: &Noted| noted.platform == platform && noted.entry.instance == index;
        let position = self.desk.notes.iter().rposition(is_its_own);
        if let Some(position) = position.filter(|position| self.desk.notes[*position].is_waiting) {
            let waited = self.desk.notes.remove(position);
            self.roster[platform as usize].chronicle.take_back(&waited.entry);
        }
    }

    /// Tells what happened to a platform and the conductor does not know.
    fn remark(&mut self, platform: u32, mut text: String) {
        text.truncate(text.floor_char_boundary(REMARK_BYTES_MAX));
        log::info!("{}: {text}", self.roster[platform as usize].name());
        self.note(platform, Entry { unix_ms: chronicle::unix_ms(), instance: None, text }, false);
    }

    /// Tells why an instance could not be started, which the conductor does not know.
    pub(super) fn tell_not_started(&mut self, platform: u32, instance: u32, why: &str) {
        let mut text = format!("it could not be started: {why}");
        text.truncate(text.floor_char_boundary(REMARK_BYTES_MAX));
        self.note(platform, Entry { unix_ms: chronicle::unix_ms(), instance: Some(instance), text }, false);
    }

    fn note(&mut self, platform: u32, entry: Entry, is_waiting: bool) {
        self.roster[platform as usize].chronicle.add(entry.clone());
        self.desk.notes.push(Noted { platform, entry, is_waiting });
    }

    /// Has what happened in this turn kept.
    pub(super) fn keep_notes(&mut self) {
        if self.desk.notes.is_empty() {
            return;
        }
        let name = |platform: u32| self.roster[platform as usize].name().to_owned();
        let notes: Vec<Note> = std::mem::take(&mut self.desk.notes)
            .into_iter()
            .map(|noted| Note { platform: name(noted.platform), entry: noted.entry })
            .collect();
        let count = notes.len();
        if !self.clerk.as_ref().is_some_and(|clerk| clerk.note(notes)) {
            log::debug!("the clerk is too busy to keep {count} state changes");
        }
    }

    /// Has it kept how often a platform was started today.
    pub(super) fn spend(&mut self, platform: u32, starts: u32) {
        let (name, day) = (self.roster[platform as usize].name(), self.desk.day);
        if !self.clerk.as_ref().is_some_and(|clerk: &Clerk| clerk.spend(name, day, starts)) {
            log::warn!("{name}: the clerk is too busy to keep that it was started {starts} times today");
        }
    }

    /// Takes what failed health checks have said since the last turn.
    pub(super) fn take_complaints(&mut self) {
        while let Some((instance, why)) = self.kit.complaints.pop_front() {
            let Some(bay) = self.bays.get(instance.slot as usize) else { continue };
            let mishaps = &mut self.roster[bay.platform as usize].mishaps;
            mishaps.add(chronicle::unix_ms(), Some(bay.index), HEALTH_CHECK, &why);
        }
    }

    /// Takes what children have logged since the last turn: to the log, and to the rings.
    pub(super) fn take_log_lines(&mut self) {
        if self.kit.log_lines.is_empty() {
            return;
        }
        let unix_ms = chronicle::unix_ms();
        while let Some(line) = self.kit.log_lines.pop_front() {
            let Some(bay) = self.bays.get_mut(line.instance.slot as usize) else { continue };
            bay.dropped_lines += line.dropped;
            log::log!(target: "plugin", line.level, "{}: {}", bay.name, line.text);
            let listed = &mut self.roster[bay.platform as usize];
            listed.dropped_lines += line.dropped;
            listed.chronicle.log(unix_ms, line.level, bay.index, line.text);
        }
    }
}

impl Bay {
    /// A slot in which nothing has run yet.
    pub(super) fn new(platform_name: &str, platform: u32, index: usize) -> Bay {
        Bay {
            name: format!("{platform_name}/{index}"),
            platform,
            index: index as u32,
            hosted: Hosted::Nothing,
            left_behind: Vec::new(),
            reason: None,
            dropped_lines: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use demi_conductor::config::Host;

    #[test]
    fn what_comes_is_taken_in_after_what_it_needs() {
        let needy = |name: &str, needs: &[&str]| Platform {
            needs: needs.iter().map(|need| (*need).to_owned()).collect(),
            ..Platform::new(name, Host::Process(1))
        };
        let came = [needy("a", &["b", "there"]), needy("b", &["c"]), needy("c", &[]), needy("d", &["nobody"])];
        assert_eq!(in_order_of_needs(came.iter()), [2, 3, 1, 0]);
        let circle = [needy("a", &["a"]), needy("b", &[])];
        assert_eq!(in_order_of_needs(circle.iter()), [0, 1], "none is lost");
    }

    #[test]
    fn the_day_is_looked_at_each_minute_and_just_after_its_end() {
        let mut desk = Desk::new(PathBuf::new(), PathBuf::new(), Vec::new(), 0, 20_000);
        let now = Time::from_nanos(7_000_000_000);
        let noon = 20_000 * DAY_MS + DAY_MS / 2;
        assert!(!desk.look_at_day(now, noon), "it is the day for which starts were recalled");
        assert_eq!(desk.day_look_at - now, DAY_LOOK);
        assert!(!desk.look_at_day(now, 20_001 * DAY_MS - 1));
        assert_eq!(desk.day_look_at - now, Duration::from_millis(11));
        assert!(desk.look_at_day(now, 20_001 * DAY_MS), "another day");
        assert!(!desk.look_at_day(now, 20_001 * DAY_MS + 1), "told once");
        assert!(desk.look_at_day(now, noon), "the clock was set back");
    }
}
