//! `demi-bench scaler`: whether anything is won by what is done about RAM, and by forecasts of it.
//!
//! Every trace of `tests/fixtures/traces`, each of a day or more of a small server without a scaler, is replayed with four ways to
//! watch RAM. Nothing is timed: the same traces give the same figures.

use std::path::PathBuf;

use argh::FromArgs;
use demi::conductor::config::{Bounded, Model, Scaler};
use demi::traces::format;
use demi_sim::replay::{happened, replay, Course};
use serde::Serialize;

use crate::report::{print, Machine, Table};
use crate::Outcome;

/// The traces, in the order of the table, each with whether the default is to be better there than thresholds alone.
const TRACES: [(&str, bool); 5] =
    [("leak", true), ("daily", true), ("spike", true), ("sawtooth", false), ("arc", false)];
/// On the other traces it may be worse by so many percent. Less than that is no difference on any.
const WORSE_MAX_PERCENT: f64 = 5.0;

#[derive(FromArgs)]
#[argh(subcommand, name = "scaler")]
/// minutes of RAM at 95 % or more, needless sheds and lost service over recorded days, with and without forecasts
pub struct Arguments {
    /// folder of the traces; default: tests/fixtures/traces
    #[argh(option, default = "PathBuf::from(\"tests/fixtures/traces\")")]
    traces: PathBuf,
    /// tell what was decided
    #[argh(switch)]
    decisions: bool,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    runs: Vec<Row>,
    verdicts: Vec<String>,
}

/// A trace with a way to watch RAM.
#[derive(Serialize)]
struct Row {
    trace: &'static str,
    way: &'static str,
    hours: f64,
    peak_percent: f64,
    minutes_at_95: f64,
    minutes_at_80: f64,
    sheds: u32,
    kills: u32,
    needless: u32,
    service_minutes_lost: f64,
    requests_lost: u64,
    /// Who was believed, with the part of the time in percent.
    believed: Vec<(&'static str, f64)>,
}

/// A way to watch RAM.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Nobody does.
    Nobody,
    /// What is, and no forecast and no spike.
    Thresholds,
    /// Least squares, whoever else forecasts better.
    Ols,
    /// As it is by default.
    Competition,
}

impl Way {
    const ALL: [Way; 4] = [Way::Nobody, Way::Thresholds, Way::Ols, Way::Competition];

    const fn name(self) -> &'static str {
        match self {
            Way::Nobody => "no scaler",
            Way::Thresholds => "thresholds only",
            Way::Ols => "OLS",
            Way::Competition => "competition",
        }
    }

    fn settings(self) -> Scaler {
        let never = Bounded::new(0).expect("0 is in the range");
        match self {
            Way::Nobody => Scaler { enabled: false, ..Scaler::default() },
            Way::Thresholds => {
                Scaler { use_forecasts: false, spike_times: never, moved_percent: never, ..Scaler::default() }
            }
            Way::Ols => Scaler { champion: Model::Ols, may_promote: false, ..Scaler::default() },
            Way::Competition => Scaler::default(),
        }
    }
}

/// Runs `demi-bench scaler`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let machine = Machine::now();
    let mut document = Document { runs: Vec::new(), verdicts: Vec::new() };
    for (trace, is_to_be_better) in TRACES {
        let path = arguments.traces.join(trace).with_extension("trace");
        let text = std::fs::read_to_string(&path).map_err(|error| {
            format!("{}: {error}; start it in the folder of the project, or give --traces", path.display())
        })?;
        let entries = format::read(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let course = |way: Way| {
            let set = |setup: &mut format::Setup| setup.scaler = way.settings();
            let course = match way {
                Way::Nobody => happened(&entries, set),
                Way::Thresholds | Way::Ols | Way::Competition => replay(&entries, set),
            };
            course.map_err(|refused| format!("{}: {refused}", path.display()))
        };
        let mut courses = Vec::new();
        for way in Way::ALL {
            let course = course(way)?;
            if arguments.decisions {
                tell(trace, way, &course);
            }
            document.runs.push(Row::new(trace, way, &course));
            courses.push(course);
        }
        if let [_, thresholds, ols, competition] = &courses[..] {
            document.verdicts.extend(verdicts(trace, is_to_be_better, thresholds, ols, competition));
        }
    }
    let mut table = Table::new(&[
        "trace",
        "",
        "h",
        "peak %",
        "min ≥ 95 %",
        "min ≥ 80 %",
        "sheds",
        "kills",
        "needless",
        "min lost",
        "requests lost",
        "believed",
    ]);
    for row in &document.runs {
        table.row(&row.cells());
    }
    let mut verdicts = Table::new(&[""]);
    for verdict in &document.verdicts {
        verdicts.row(std::slice::from_ref(verdict));
    }
    print(arguments.json, &machine, &document, &[("recorded days, lived once more", table), ("verdicts", verdicts)])
}

fn minutes(millis: u64) -> f64 {
    millis as f64 / 60_000.0
}

impl Row {
    fn new(trace: &'static str, way: Way, course: &Course) -> Row {
        let whole: u64 = course.believed_ms.iter().sum();
        let believed = Model::ALL.into_iter().zip(course.believed_ms).filter(|(_, millis)| *millis > 0);
        let believed = believed.map(|(model, millis)| (model.name(), millis as f64 * 100.0 / whole as f64));
        // Forecasts are made without being heard.
        let is_heard = way == Way::Ols || way == Way::Competition;
        Row {
            trace,
            way: way.name(),
            hours: course.span_ms as f64 / 3_600_000.0,
            peak_percent: f64::from(course.peak_permille) / 10.0,
            minutes_at_95: minutes(course.critical_ms),
            minutes_at_80: minutes(course.above_shed_ms),
            sheds: course.sheds(),
            kills: course.kills(),
            needless: course.needless,
            service_minutes_lost: minutes(course.lost_ms()),
            requests_lost: course.platforms.iter().map(|fate| fate.requests_lost).sum(),
            believed: believed.filter(|_| is_heard).collect(),
        }
    }

    fn cells(&self) -> [String; 12] {
        let tenth = |value: f64| format!("{value:.1}");
        let believed = self.believed.iter().map(|(name, percent)| format!("{name} {percent:.0} %"));
        [
            self.trace.to_owned(),
            self.way.to_owned(),
            format!("{:.0}", self.hours),
            tenth(self.peak_percent),
            tenth(self.minutes_at_95),
            tenth(self.minutes_at_80),
            self.sheds.to_string(),
            self.kills.to_string(),
            self.needless.to_string(),
            tenth(self.service_minutes_lost),
            self.requests_lost.to_string(),
            believed.collect::<Vec<_>>().join(", "),
        ]
    }
}

/// The figures that count, the first first, each with what is no difference.
fn figures(course: &Course) -> [(&'static str, f64, f64); 4] {
    [
        ("minutes at 95 % or more", minutes(course.critical_ms), 0.1),
        ("needless sheds", f64::from(course.needless), 0.5),
        ("service minutes lost", minutes(course.lost_ms()), 0.5),
        ("minutes at 80 % or more", minutes(course.above_shed_ms), 0.5),
    ]
}

/// What is to be said of a trace: whether the default does as well as it should, and whether least squares earn their place.
fn verdicts(
    trace: &str,
    is_to_be_better: bool,
    thresholds: &Course,
    ols: &Course,
    competition: &Course,
) -> Vec<String> {
    let mut said = Vec::new();
    let (aim, verdict) = if is_to_be_better {
        ("better than thresholds only", compare(competition, thresholds))
    } else {
        ("not more than 5 % worse than thresholds only", compare(competition, thresholds))
    };
    let is_met = verdict.is_better || (!is_to_be_better && verdict.worse.is_empty());
    said.push(format!("{trace}: the competition is to be {aim}: {}; {verdict}", if is_met { "met" } else { "missed" }));
    let of_ols = compare(ols, thresholds);
    if !of_ols.is_better {
        said.push(format!("{trace}: OLS does not earn its place; {of_ols}"));
    }
    let against = compare(ols, competition);
    if against.is_better {
        said.push(format!("{trace}: OLS alone does better than the competition; {against}"));
    }
    said
}

/// What of the one is better or worse than of the other by more than next to nothing.
struct Comparison {
    /// Something is better, and what counts more is not worse.
    is_better: bool,
    better: Vec<String>,
    worse: Vec<String>,
}

fn compare(one: &Course, other: &Course) -> Comparison {
    let mut comparison = Comparison { is_better: false, better: Vec::new(), worse: Vec::new() };
    for ((what, one, least), (_, other, _)) in figures(one).into_iter().zip(figures(other)) {
        let little = least.max(other * WORSE_MAX_PERCENT / 100.0);
        let told = format!("{what} {one:.1} against {other:.1}");
        if one > other + little {
            comparison.worse.push(told);
        } else if one < other - little {
            comparison.is_better |= comparison.worse.is_empty();
            comparison.better.push(told);
        }
    }
    comparison
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.better.is_empty(), self.worse.is_empty()) {
            (true, true) => write!(formatter, "as good"),
            (false, true) => write!(formatter, "better: {}", self.better.join(", ")),
            (true, false) => write!(formatter, "worse: {}", self.worse.join(", ")),
            (false, false) => {
                write!(formatter, "better: {}; worse: {}", self.better.join(", "), self.worse.join(", "))
            }
        }
    }
}

/// What was decided, on stderr.
fn tell(trace: &str, way: Way, course: &Course) {
    let begin = course.dates.map_or(0, |(first, _)| first);
    for decided in &course.decisions {
        let platform = decided.platform.map_or("all", |platform| course.platforms[platform].name.as_str());
        let needless = match decided.is_needless {
            Some(true) => ", needless",
            Some(false) | None => "",
        };
        let forecast = decided.forecast.map_or(String::new(), |(permille, model)| {
            format!(", forecast {:.1} % by {}", f64::from(permille) / 10.0, model.name())
        });
        eprintln!(
            "{trace}, {}: {:.1} min: {} {platform} at {:.1} %{forecast}{needless}",
            way.name(),
            minutes(decided.unix_ms - begin),
            decided.act,
            f64::from(decided.ram_permille) / 10.0
        );
    }
}
