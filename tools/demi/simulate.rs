//! `demi simulate`: recorded days, lived once more with other settings. What it is a model of is in docs/simulate.md.

mod settings;
mod sources;

use std::fmt::{Display, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use demi::traces::format::{Entry, Setup, Told};
use demi_sim::replay::{happened, replay, Course, Decided, Fate, Refused, CRITICAL_PERCENT};
use serde::Serialize;
use serde_json::Value;

use crate::page::{aligned, counted, moment, plain};
use crate::{print, FAILED, USAGE};
use settings::Change;

/// What is asked.
pub(crate) struct SimulateAsked {
    /// Files and folders; none: what Demi has recorded.
    pub(crate) traces: Vec<PathBuf>,
    /// A span.
    pub(crate) last: Option<String>,
    /// Keys with their values.
    pub(crate) set: Vec<(String, String)>,
    /// Most decisions that are told.
    pub(crate) decisions: usize,
    pub(crate) config: Option<PathBuf>,
    pub(crate) json: bool,
}

/// Why it cannot be simulated, with the exit code of that.
pub(crate) struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    fn new(code: u8, what: impl Display) -> Failure {
        Failure { code, text: what.to_string() }
    }
}

/// Prints what would have been beside what was.
pub(crate) fn simulate(asked: &SimulateAsked) -> ExitCode {
    match text(asked) {
        Ok(text) => print(&text),
        Err(Failure { code, text }) => {
            eprintln!("demi: {}", text.trim_end());
            ExitCode::from(code)
        }
    }
}

fn text(asked: &SimulateAsked) -> Result<String, Failure> {
    let entries = sources::entries(asked)?;
    let changes = settings::changes(&asked.set, &entries)?;
    let change = |setup: &mut Setup| {
        for change in &changes {
            // Each was tried before on all of them.
            let _ = change.apply(setup);
        }
    };
    let refused = |refused: Refused| match refused {
        Refused::Mistakes(_) if !changes.is_empty() => Failure::new(USAGE, format!("with what is set, {refused}")),
        Refused::Mistakes(_) | Refused::Empty | Refused::TooLong(_) => Failure::new(FAILED, refused),
    };
    let simulated = replay(&entries, change).map_err(refused)?;
    let happened = happened(&entries, change).map_err(refused)?;
    let setup = last_setup(&entries).ok_or_else(|| Failure::new(FAILED, Refused::Empty))?;
    let mut changed = setup.clone();
    change(&mut changed);
    let told = Comparison { was: setup, is: &changed, changes: &changes, happened: &happened, simulated: &simulated };
    match asked.json {
        true => Ok(serde_json::to_string_pretty(&told.page()).expect("text and numbers always serialise") + "\n"),
        false => Ok(told.describe(asked.decisions)),
    }
}

/// The settings that were recorded last.
fn last_setup(entries: &[Entry]) -> Option<&Setup> {
    entries.iter().rev().find_map(|entry| match &entry.told {
        Told::Begin(setup) => Some(&**setup),
        Told::Record(_) => None,
    })
}

/// All that there is to tell.
struct Comparison<'c> {
    was: &'c Setup,
    is: &'c Setup,
    changes: &'c [Change],
    happened: &'c Course,
    simulated: &'c Course,
}

#[derive(Serialize)]
struct Page<'p> {
    from_unix_ms: u64,
    to_unix_ms: u64,
    set: Vec<SetPage<'p>>,
    happened: CoursePage<'p>,
    simulated: CoursePage<'p>,
}

#[derive(Serialize)]
struct SetPage<'p> {
    key: &'p str,
    value: &'p Value,
    /// What it was last.
    was: Option<Value>,
}

#[derive(Serialize)]
struct CoursePage<'p> {
    span_ms: u64,
    runs: u32,
    peak_percent: f64,
    critical_ms: u64,
    above_emergency_ms: u64,
    above_shed_ms: u64,
    sheds: u32,
    kills: u32,
    restores: u32,
    trims: u32,
    needless: u32,
    not_judged: u32,
    lost_ms: u64,
    platforms: Vec<FatePage<'p>>,
    decisions: Vec<DecisionPage<'p>>,
    decisions_left_out: u64,
}

#[derive(Serialize)]
struct FatePage<'p> {
    platform: &'p str,
    shed_ms: u64,
    down_ms: u64,
    requests_lost: u64,
    sheds: u32,
    kills: u32,
    sleeps: u32,
    restores: u32,
}

#[derive(Serialize)]
struct DecisionPage<'p> {
    unix_ms: u64,
    platform: Option<&'p str>,
    act: &'p str,
    ram_percent: f64,
    threshold_percent: u32,
    forecast_percent: Option<f64>,
    forecast_by: Option<&'static str>,
    needless: Option<bool>,
}

fn percent(permille: u32) -> f64 {
    f64::from(permille) / 10.0
}

impl<'c> CoursePage<'c> {
    fn new(course: &'c Course) -> CoursePage<'c> {
        let fate = |fate: &'c Fate| FatePage {
            platform: &fate.name,
            shed_ms: fate.shed_ms,
            down_ms: fate.down_ms,
            requests_lost: fate.requests_lost,
            sheds: fate.sheds,
            kills: fate.kills,
            sleeps: fate.sleeps,
            restores: fate.restores,
        };
        let decision = |decided: &'c Decided| DecisionPage {
            unix_ms: decided.unix_ms,
            platform: decided.platform.map(|platform| course.platforms[platform].name.as_str()),
            act: &decided.act,
            ram_percent: percent(decided.ram_permille),
            threshold_percent: decided.threshold_percent,
            forecast_percent: decided.forecast.map(|(permille, _)| percent(permille)),
            forecast_by: decided.forecast.map(|(_, model)| model.name()),
            needless: decided.is_needless,
        };
        CoursePage {
            span_ms: course.span_ms,
            runs: course.runs,
            peak_percent: percent(course.peak_permille),
            critical_ms: course.critical_ms,
            above_emergency_ms: course.above_emergency_ms,
            above_shed_ms: course.above_shed_ms,
            sheds: course.sheds(),
            kills: course.kills(),
            restores: course.restores(),
            trims: course.trims,
            needless: course.needless,
            not_judged: not_judged(course),
            lost_ms: course.lost_ms(),
            platforms: course.platforms.iter().map(fate).collect(),
            decisions: course.decisions.iter().map(decision).collect(),
            decisions_left_out: course.decisions_left_out,
        }
    }
}

/// Sheds and kills of which nobody can tell whether they were needless, because what was recorded ends too early. One that drained and
/// was killed then is judged once.
fn not_judged(course: &Course) -> u32 {
    let (mut last, mut count) = (vec![""; course.platforms.len()], 0);
    for decided in &course.decisions {
        let (act, Some(platform)) = (decided.act.as_str(), decided.platform) else { continue };
        if !matches!(act, "shed" | "kill" | "restore") {
            continue;
        }
        let was = std::mem::replace(&mut last[platform], act);
        let is_one = act == "shed" || act == "kill" && was != "shed";
        count += u32::from(is_one && decided.is_needless.is_none());
    }
    count
}

/// A date without its milliseconds.
fn second(unix_ms: u64) -> String {
    moment(unix_ms)[.."2025-01-01 00:00:00".len()].to_owned()
}

fn minutes(millis: u64) -> String {
    format!("{:.1} min", millis as f64 / 60_000.0)
}

impl Comparison<'_> {
    fn dates(&self) -> (u64, u64) {
        self.simulated.dates.unwrap_or_default()
    }

    fn page(&self) -> Page<'_> {
        let (from_unix_ms, to_unix_ms) = self.dates();
        Page {
            from_unix_ms,
            to_unix_ms,
            set: self
                .changes
                .iter()
                .map(|change| SetPage { key: &change.key, value: &change.value, was: change.before(self.was) })
                .collect(),
            happened: CoursePage::new(self.happened),
            simulated: CoursePage::new(self.simulated),
        }
    }

    /// For a person to read.
    fn describe(&self, decisions_max: usize) -> String {
        let mut text = String::new();
        let (from, to) = self.dates();
        let minutes = self.simulated.span_ms as f64 / 60_000.0;
        let span = if minutes < 60.0 { format!("{minutes:.0} min") } else { format!("{:.1} h", minutes / 60.0) };
        let runs = counted(self.simulated.runs as usize, "run");
        // Writing to a string cannot fail.
        let _ =
            writeln!(text, "{} to {} (UTC): {span} with samples, in {runs} without a gap", second(from), second(to));
        match self.changes {
            [] => text.push_str("nothing is set: as it was recorded\n"),
            changes => changes.iter().for_each(|change| self.describe_change(change, &mut text)),
        }
        if !self.is.scaler.enabled {
            text.push_str("scaler.enabled is false: nothing is done; --set scaler.enabled=true does\n");
        } else if self.is.scaler.forecast_only {
            text.push_str("scaler.forecast_only: nothing is done, and the decisions are what would have been\n");
        }
        text.push('\n');
        text.push_str(&self.table());
        self.describe_decisions(decisions_max, &mut text);
        text.push_str(
            "\nThis is a model: asking for memory wins nothing here, and what a platform weighs that was not running then is \
             inferred\nfrom what it weighed when it was (docs/simulate.md).\n",
        );
        text
    }

    fn describe_change(&self, change: &Change, text: &mut String) {
        let shown = |value: &Value| plain(value.as_str().map_or_else(|| value.to_string(), str::to_owned).as_str());
        let was = change.before(self.was).map_or_else(|| "not there".to_owned(), |was| shown(&was));
        let _ = writeln!(text, "set {} = {} (was {was})", plain(&change.key), shown(&change.value));
    }

    fn table(&self) -> String {
        let both = [self.happened, self.simulated];
        let mut rows = vec![["", "HAPPENED", "SIMULATED"].map(str::to_owned)];
        let mut row = |what: String, of: &dyn Fn(&Course) -> String| {
            let [happened, simulated] = both.map(of);
            rows.push([what, happened, simulated]);
        };
        let scaler = &self.is.scaler;
        row(format!("RAM at {CRITICAL_PERCENT} % or more"), &|course| minutes(course.critical_ms));
        let emergency = scaler.emergency_percent.value();
        if emergency != CRITICAL_PERCENT {
            row(format!("RAM at {emergency} % or more (emergency_percent)"), &|course| {
                minutes(course.above_emergency_ms)
            });
        }
        let shed = scaler.shed_percent.value();
        row(format!("RAM at {shed} % or more (shed_percent)"), &|course| minutes(course.above_shed_ms));
        row("most of RAM used".to_owned(), &|course| format!("{:.1} %", percent(course.peak_permille)));
        row("sheds".to_owned(), &|course| course.sheds().to_string());
        row("kills".to_owned(), &|course| course.kills().to_string());
        row("of these needless".to_owned(), &|course| match not_judged(course) {
            0 => course.needless.to_string(),
            more => format!("{}, and {more} not judged", course.needless),
        });
        row("restores".to_owned(), &|course| course.restores().to_string());
        let sleeps = |course: &Course| course.platforms.iter().map(|fate| fate.sleeps).sum::<u32>();
        if both.iter().any(|course| sleeps(course) > 0) {
            row("put to sleep".to_owned(), &|course| sleeps(course).to_string());
        }
        let lost = |course: &Course| course.platforms.iter().map(|fate| fate.requests_lost).sum::<u64>();
        row("requests refused for want of RAM".to_owned(), &|course| lost(course).to_string());
        row("service lost".to_owned(), &|course| minutes(course.lost_ms()));
        for fate in &self.simulated.platforms {
            let of = |course: &Course| {
                let fate = course.platforms.iter().find(|other| other.name == fate.name);
                minutes(fate.map_or(0, Fate::lost_ms))
            };
            row(format!("  {}", plain(&fate.name)), &of);
        }
        aligned(&rows)
    }

    fn describe_decisions(&self, most: usize, text: &mut String) {
        let of = |course: &Course, whose: &'static str| -> Vec<(u64, &'static str, String)> {
            course.decisions.iter().map(|decided| (decided.unix_ms, whose, sentence(course, decided))).collect()
        };
        let mut decisions = of(self.happened, "happened");
        decisions.extend(of(self.simulated, "simulated"));
        decisions.sort_by_key(|(unix_ms, _, _)| *unix_ms);
        if decisions.is_empty() || most == 0 {
            return;
        }
        let count = decisions.len();
        let kept_out = self.happened.decisions_left_out + self.simulated.decisions_left_out;
        let _ = writeln!(text, "\nwhat was decided, oldest first:");
        for (unix_ms, whose, sentence) in decisions.into_iter().take(most) {
            let _ = writeln!(text, "  {}  {whose:<9}  {}", second(unix_ms), plain(&sentence));
        }
        let more = count.saturating_sub(most) as u64 + kept_out;
        if more > 0 {
            let _ = writeln!(text, "  and {more} more; --decisions {} tells of them", count.min(10_000));
        }
    }
}

/// A decision, in a sentence.
fn sentence(course: &Course, decided: &Decided) -> String {
    let name = decided.platform.map_or("all", |platform| course.platforms[platform].name.as_str());
    let what = match decided.act.as_str() {
        "trim" => "everybody is asked for memory".to_owned(),
        "sleep" => format!("{name} is put to sleep"),
        "shed" => format!("{name} is shed"),
        "kill" => format!("{name} is killed"),
        "restore" => format!("{name} comes back"),
        "wait" => format!("{name} would come back, but does not fit"),
        "delay" => format!("{name} would come back, but for the forecast"),
        "refuse" => format!("{name} is not started: it does not fit"),
        "postpone" => format!("the new edition of {name} waits: it does not fit beside the old one"),
        "overrule" => format!("{name} is started or reloaded by hand, though it does not fit"),
        "exhausted" => "nobody is left who may be shed".to_owned(),
        "believe" => decided
            .forecast
            .map_or("another is believed".to_owned(), |(_, model)| format!("{} is believed", model.name())),
        other => format!("{name}: {other}"),
    };
    let forecast = decided.forecast.filter(|_| matches!(decided.act.as_str(), "shed" | "trim" | "sleep" | "delay"));
    let forecast =
        forecast.map(|(permille, model)| format!(", forecast {:.1} % by {}", percent(permille), model.name()));
    let needless = if decided.is_needless == Some(true) { "; needless" } else { "" };
    format!("{what}: RAM {:.1} %{}{needless}", percent(decided.ram_permille), forecast.unwrap_or_default())
}
