//! The replay of a trace: the real conductor, unchanged, around a machine that behaves as was recorded. It answers what would have
//! been shed last week at 75 %, and when it would have come back.
//!
//! | what | where |
//! |---|---|
//! | a trace as curves of RAM and weights | `replay/record.rs` |
//! | what an instance weighs that was started at another time than in the record | `replay/body.rs` |
//! | what is counted, and which sheds were needless | `replay/course.rs` |
//! | the machine, clocks and events | `replay/machine.rs` |
//!
//! It is a model, and differs from what would have been where the record does not tell:
//!
//! - What is used of RAM is what was used, less what the platforms weighed, and what those of the replay weigh; never more than all.
//!   What wanted more than there was does not show in a record.
//! - An instance that runs as in the record weighs the same. One that is started at another time begins as light as its platform
//!   has been seen half a minute after a start, and grows as the record grew from then on. So a leak goes on, from a small beginning.
//! - Asking for memory (`trim`) wins nothing, but for what was won in the record at that time.
//! - Starts, ends and answers take no time, and nobody is ill. An instance that ended by itself in the record does so in the
//!   replay if it is the same run there; one that ended while RAM was nearly all used only if it is so in the replay, too.
//! - Requests of a minute are spread over it; where a trace has very many, each stands for several.
//! - After a gap in the record, of four intervals and two minutes at least, Demi begins anew and has learned nothing; and so it does
//!   where the settings of the scaler, or what no reload can change of a platform, are others than before.
//! - What a reload has changed, it changes in the replay, when the record tells of it. The time of a clock that was set has not passed.

mod body;
mod course;
mod machine;
mod record;
#[cfg(test)]
mod tests;

use std::fmt;

use demi_conductor::config::{Bounded, Config, Health, Host, Mistake, Outliers, Platform, Start};
use demi_trace::{Entry, Integration, Setup};

pub use course::{Course, Decided, Fate, CRITICAL_PERCENT, DECISIONS_MAX};

const DAY_MS: u64 = 86_400_000;
/// More days with samples take too long: each second of them is lived through. Nobody has kept so many.
const DAYS_MAX: u64 = 1_000;

/// Why a trace cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// RAM was never measured in it.
    Empty,
    /// It has samples of so many days.
    TooLong(u64),
    /// The settings make no sense.
    Mistakes(Vec<Mistake>),
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Empty => {
                write!(formatter, "there is no sample of RAM in it; give a trace of a Demi that ran for longer")
            }
            Refused::TooLong(days) => {
                write!(
                    formatter,
                    "there are samples of {days} days in it, and {DAYS_MAX} are the most; give a part of them"
                )
            }
            Refused::Mistakes(mistakes) => {
                let mistakes: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
                write!(formatter, "{}", mistakes.join("\n"))
            }
        }
    }
}

impl std::error::Error for Refused {}

/// What would have been, with the settings of each run changed by `change`. The same trace and the same change give the same
/// answer each time. On another machine the last digits of a forecast may be others, and what hangs by them: powers and waves
/// are those of its C library. A week takes seconds.
///
/// # Errors
/// If there is nothing to replay, or settings make no sense, as they are recorded or after the change.
pub fn replay(entries: &[Entry], change: impl Fn(&mut Setup)) -> Result<Course, Refused> {
    course(entries, change, machine::live)
}

/// What was, by the record, in the same terms: `change` decides only at what share of RAM time counts as short, and which
/// sheds count as needless.
///
/// # Errors
/// As of [`replay`].
pub fn happened(entries: &[Entry], change: impl Fn(&mut Setup)) -> Result<Course, Refused> {
    course(entries, change, |run, _, book| machine::tell(run, book))
}

fn course(
    entries: &[Entry],
    change: impl Fn(&mut Setup),
    live: impl Fn(&record::Run, &[f64], &mut course::Book<'_>),
) -> Result<Course, Refused> {
    let mut runs = record::runs(entries);
    let days = runs.iter().map(record::Run::end_ms).sum::<u64>() / DAY_MS;
    if days > DAYS_MAX {
        return Err(Refused::TooLong(days));
    }
    let mut course = Course::default();
    for run in &mut runs {
        run.change(&change);
        let mistakes = mistakes(run);
        if !mistakes.is_empty() {
            return Err(Refused::Mistakes(mistakes));
        }
    }
    for run in &runs {
        let names: Vec<String> = run.names().cloned().collect();
        let bases = record::bases(&runs, &names);
        let mut book = course::Book::new(&mut course, &run.setup.scaler);
        live(run, &bases, &mut book);
        let (first, last) = (run.date(0), run.date(run.end_ms()));
        course.dates = Some((course.dates.map_or(first, |(first, _)| first), last));
    }
    if runs.is_empty() {
        return Err(Refused::Empty);
    }
    Ok(course)
}

/// What is wrong with the settings of a run, those of platforms that were found later included.
fn mistakes(run: &record::Run) -> Vec<Mistake> {
    let names: Vec<&str> = run.names().map(String::as_str).collect();
    let mut config = config_of(&run.setup);
    config.platforms.extend(run.found().map(platform_of));
    config.mistakes(&names)
}

/// The configuration of such a run: as it was as far as RAM goes, and elsewhere so that nothing happens.
fn config_of(setup: &Setup) -> Config {
    let hour = Health { interval_ms: longest(), timeout_ms: longest(), ..Health::default() };
    Config {
        health: hour,
        outliers: Outliers { interval_ms: Bounded::new(0).expect("0 is in the range"), ..Outliers::default() },
        scaler: setup.scaler,
        platforms: setup.platforms.iter().map(platform_of).collect(),
        requests_max: Bounded::new(1_000_000).expect("it is the end of the range"),
        ..Config::default()
    }
}

fn longest<const LOW: u64, const DEFAULT: u64>() -> Bounded<LOW, 3_600_000, DEFAULT> {
    Bounded::new(3_600_000).expect("it is the end of the range")
}

fn platform_of(integration: &Integration) -> Platform {
    let mut platform = Platform::new(&integration.name, integration.host);
    platform.needs.clone_from(&integration.needs);
    platform.start_budget_per_day = Bounded::new(1_000_000).expect("it is the end of the range");
    platform.drain_ms = Bounded::new(integration.drain_ms).unwrap_or_else(longest);
    match integration.host {
        Host::Process(_) | Host::Mcp(_) => platform.command = vec!["plugin".to_owned()],
        Host::Http => platform.upstreams = vec!["127.0.0.1:1".to_owned()],
        Host::Inline | Host::Threads(_) => {}
    }
    if integration.host.can_be_replaced() {
        platform.shed = Some(integration.shed);
        platform.priority =
            Some(Bounded::new(u64::from(integration.priority.min(1_000))).expect("it is no more than the most"));
        platform.value = integration.value.and_then(|value| Bounded::new(u64::from(value)));
    }
    if integration.host != Host::Http {
        platform.start = integration.start;
        platform.sleep_after_ms = integration.sleep_after_ms.and_then(Bounded::new);
    }
    platform
}

/// Whether it is started without being asked for.
fn is_eager(integration: &Integration) -> bool {
    integration.host == Host::Http || integration.start == Start::Eager
}

impl record::Run {
    fn change(&mut self, change: impl Fn(&mut Setup)) {
        change(&mut self.setup);
        // What was found later, or reloaded, is changed as if it had been there.
        for (_, happening) in &mut self.happenings {
            if let record::Happening::Found(platform) | record::Happening::Renewed { to: platform, .. } = happening {
                let mut setup = Setup { platforms: vec![(**platform).clone()], ..self.setup.clone() };
                change(&mut setup);
                if let Some(changed) = setup.platforms.pop() {
                    **platform = changed;
                }
            }
        }
    }

    fn found(&self) -> impl Iterator<Item = &Integration> {
        self.happenings.iter().filter_map(|(_, happening)| match happening {
            record::Happening::Found(platform) => Some(&**platform),
            _ => None,
        })
    }
}
