//! What is counted of a course of things, recorded or replayed.

use demi_conductor::config::{Model, Scaler};
use demi_trace::STATES;

/// A shed is judged for this long, milliseconds.
const JUDGED_MS: u64 = 30 * 60_000;
/// RAM used to this share or more may end in the kernel's killing something, percent.
pub const CRITICAL_PERCENT: u64 = 95;
/// Decisions that are kept; of more only the number is.
pub const DECISIONS_MAX: usize = 10_000;

/// What a trace comes to, as it was recorded or with other settings.
///
/// A shed or kill was *needless* if RAM would have stayed below `shed_percent` without it: in each second of half an hour from the
/// decision on, with what that platform weighed, and would have come to weigh as far as that is known, in place of what it weighs
/// shed or restored. What the end of the trace cut short is not judged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course {
    /// Time with samples, milliseconds.
    pub span_ms: u64,
    /// Runs of Demi, or parts of them between gaps.
    pub runs: u32,
    /// Milliseconds since 1970 of the first moment and the last.
    pub dates: Option<(u64, u64)>,
    /// The most of RAM that was used, thousandths.
    pub peak_permille: u32,
    /// How long RAM was at `shed_percent` or more, at `emergency_percent`, and at [`CRITICAL_PERCENT`], milliseconds.
    pub above_shed_ms: u64,
    /// See above.
    pub above_emergency_ms: u64,
    /// See above.
    pub critical_ms: u64,
    /// How its platforms fared, in the order in which they appear.
    pub platforms: Vec<Fate>,
    /// How often everybody was asked for memory. In a replay that wins nothing.
    pub trims: u32,
    /// Sheds and kills that were needless.
    pub needless: u32,
    /// For how long each was believed, in the order of [`Model::ALL`], milliseconds; none in a record.
    pub believed_ms: [u64; Model::ALL.len()],
    /// What was decided, oldest first; the first [`DECISIONS_MAX`].
    pub decisions: Vec<Decided>,
    /// Those that were not kept.
    pub decisions_left_out: u64,
}

/// How a platform fared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// Its name.
    pub name: String,
    /// How long it was down for want of RAM, milliseconds.
    pub shed_ms: u64,
    /// How long it was down otherwise though it was wanted: it waited, was starting, or had failed.
    pub down_ms: u64,
    /// Requests that came while it was down for want of RAM.
    pub requests_lost: u64,
    /// How often it was drained and stopped.
    pub sheds: u32,
    /// How often it was killed.
    pub kills: u32,
    /// How often it was put to sleep for want of RAM.
    pub sleeps: u32,
    /// How often it came back.
    pub restores: u32,
}

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// Which of the course's platforms; `None`: all.
    pub platform: Option<usize>,
    /// The name of the act, as in the audit log.
    pub act: String,
    /// Used RAM, thousandths of all.
    pub ram_permille: u32,
    /// What it was compared with, percent.
    pub threshold_percent: u32,
    /// What it was forecast to be, thousandths, and by whom.
    pub forecast: Option<(u32, Model)>,
    /// Whether the platform would have fitted all the while; `None` if that cannot be told, or for other acts.
    pub is_needless: Option<bool>,
}

impl Course {
    /// Of all platforms together.
    pub fn sheds(&self) -> u32 {
        self.platforms.iter().map(|fate| fate.sheds).sum()
    }

    /// Of all platforms together.
    pub fn kills(&self) -> u32 {
        self.platforms.iter().map(|fate| fate.kills).sum()
    }

    /// Of all platforms together.
    pub fn restores(&self) -> u32 {
        self.platforms.iter().map(|fate| fate.restores).sum()
    }

    /// Of all platforms together, milliseconds.
    pub fn lost_ms(&self) -> u64 {
        self.platforms.iter().map(Fate::lost_ms).sum()
    }
}

impl Fate {
    /// How long it was down though it was wanted, for whatever reason, milliseconds.
    pub fn lost_ms(&self) -> u64 {
        self.shed_ms + self.down_ms
    }
}

/// How a platform is, as far as service goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// It serves, or rests as it was told to.
    Fine,
    /// There is no RAM for it.
    Shed,
    /// It should be there and is not.
    Down,
}

impl Service {
    /// Of one of the states of a trace, by its place among them.
    pub(super) fn of(place: usize) -> Service {
        match STATES.get(place) {
            Some(&"shed") => Service::Shed,
            Some(&("starting" | "waiting" | "failed")) => Service::Down,
            Some(_) | None => Service::Fine,
        }
    }
}

/// A shed that is being judged.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// Which of the run's platforms.
    platform: usize,
    began_ms: u64,
    /// Its place among the decisions, if it was kept.
    decision: Option<usize>,
    is_needed: bool,
}

/// Keeps the books of a run.
pub(super) struct Book<'c> {
    pub(super) course: &'c mut Course,
    /// Of each of the run's platforms, its place in the course.
    pub(super) places: Vec<usize>,
    pub(super) settings: Scaler,
    trials: Vec<Trial>,
}

impl<'c> Book<'c> {
    pub(super) fn new(course: &'c mut Course, settings: &Scaler) -> Book<'c> {
        course.runs += 1;
        Book { course, places: Vec::new(), settings: *settings, trials: Vec::new() }
    }

    /// One more platform.
    pub(super) fn add(&mut self, name: &str) {
        let known = self.course.platforms.iter().position(|fate| fate.name == name);
        self.places.push(known.unwrap_or(self.course.platforms.len()));
        if known.is_none() {
            self.course.platforms.push(Fate { name: name.to_owned(), ..Fate::default() });
        }
    }

    /// So long it was like this.
    pub(super) fn pass(&mut self, span_ms: u64, used_kb: f64, total_kb: u64, services: impl Iterator<Item = Service>) {
        let course = &mut *self.course;
        let permille = permille(used_kb, total_kb);
        course.span_ms += span_ms;
        course.peak_permille = course.peak_permille.max(permille);
        let [shed, emergency] = [self.settings.shed_percent.value(), self.settings.emergency_percent.value()];
        let spans = [&mut course.above_shed_ms, &mut course.above_emergency_ms, &mut course.critical_ms];
        for (span, percent) in spans.into_iter().zip([shed, emergency, CRITICAL_PERCENT]) {
            if u64::from(permille) >= percent * 10 {
                *span += span_ms;
            }
        }
        for (place, service) in self.places.iter().zip(services) {
            let fate = &mut course.platforms[*place];
            match service {
                Service::Fine => {}
                Service::Shed => fate.shed_ms += span_ms,
                Service::Down => fate.down_ms += span_ms,
            }
        }
    }

    /// Something was decided about one of the run's platforms, or all. Whether that is to be judged from now on.
    pub(super) fn decide(&mut self, at_ms: u64, decided: Decided) -> bool {
        let fate = decided.platform.map(|platform| &mut self.course.platforms[self.places[platform]]);
        let count = match (decided.act.as_str(), fate) {
            ("shed", Some(fate)) => Some(&mut fate.sheds),
            ("kill", Some(fate)) => Some(&mut fate.kills),
            ("sleep", Some(fate)) => Some(&mut fate.sleeps),
            ("restore", Some(fate)) => Some(&mut fate.restores),
            ("trim", _) => Some(&mut self.course.trims),
            _ => None,
        };
        if let Some(count) = count {
            *count += 1;
        }
        let is_kept = self.course.decisions.len() < DECISIONS_MAX;
        let trial = decided.platform.filter(|_| matches!(decided.act.as_str(), "shed" | "kill"));
        // One that drains and is killed then was shed once.
        let trial = trial.filter(|platform| !self.trials.iter().any(|trial| trial.platform == *platform));
        if let Some(platform) = trial {
            let decision = is_kept.then_some(self.course.decisions.len());
            self.trials.push(Trial { platform, began_ms: at_ms, decision, is_needed: false });
        }
        if is_kept {
            let platform = decided.platform.map(|platform| self.places[platform]);
            self.course.decisions.push(Decided { platform, ..decided });
        } else {
            self.course.decisions_left_out += 1;
        }
        trial.is_some()
    }

    /// So many requests for one of the run's platforms came while there was no RAM for it.
    pub(super) fn lose(&mut self, platform: usize, requests: u64) {
        self.course.platforms[self.places[platform]].requests_lost += requests;
    }

    /// Whether a shed of it is being judged.
    pub(super) fn is_judging(&self, platform: usize) -> bool {
        self.trials.iter().any(|trial| trial.platform == platform)
    }

    /// Judges what was shed. `look` tells how much more a platform would weigh, kB.
    pub(super) fn judge(&mut self, at_ms: u64, used_kb: f64, total_kb: u64, mut look: impl FnMut(usize) -> f64) {
        let shed = self.settings.shed_percent.value() * 10;
        let course = &mut *self.course;
        self.trials.retain_mut(|trial| {
            let missing_kb = look(trial.platform);
            trial.is_needed |= u64::from(permille(used_kb + missing_kb, total_kb)) >= shed;
            let is_over = trial.is_needed || at_ms - trial.began_ms >= JUDGED_MS;
            if is_over {
                course.needless += u32::from(!trial.is_needed);
                if let Some(decision) = trial.decision {
                    course.decisions[decision].is_needless = Some(!trial.is_needed);
                }
            }
            !is_over
        });
    }
}

/// A share, thousandths; rounded down, as the conductor does.
fn permille(used_kb: f64, total_kb: u64) -> u32 {
    (used_kb.max(0.0) * 1000.0 / total_kb.max(1) as f64) as u32
}
