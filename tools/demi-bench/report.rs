//! What the subcommands print: a table for people, one JSON document for machines.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::load::Tally;
use crate::Outcome;

/// Latency in µs of the 2xx answers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl Latency {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Latency {
        let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        let max = histogram.max() as f64 / 1e3;
        Latency { p50: us(0.5), p90: us(0.9), p99: us(0.99), p99_9: us(0.999), max }
    }
}

/// One run of the load generator.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub latency_us: Latency,
    pub requests_per_s: f64,
    pub answered: u64,
    pub failed: u64,
    /// Answers that are not 2xx, by status; and `broken`, `timed out`, `unsent`.
    pub errors: BTreeMap<String, u64>,
    pub reconnects: u64,
    /// How late the generator itself sent, 99th percentile; it is part of the latency.
    pub generator_lag_p99_us: f64,
    pub generator_cpu_us_per_request: f64,
}

impl From<&Tally> for Run {
    fn from(tally: &Tally) -> Run {
        let mut errors = BTreeMap::new();
        for (status, count) in tally.status.iter().filter(|(status, _)| **status / 100 != 2) {
            errors.insert(status.to_string(), *count);
        }
        for (what, count) in [("broken", tally.broken), ("timed out", tally.timed_out), ("unsent", tally.unsent)] {
            if count > 0 {
                errors.insert(what.to_owned(), count);
            }
        }
        Run {
            latency_us: Latency::of(&tally.latency),
            requests_per_s: tally.rate(),
            answered: tally.answered(),
            failed: tally.failed(),
            errors,
            reconnects: tally.reconnects,
            generator_lag_p99_us: tally.lag.value_at_quantile(0.99) as f64 / 1e3,
            generator_cpu_us_per_request: tally.own_cpu.as_secs_f64() * 1e6 / tally.answered().max(1) as f64,
        }
    }
}

impl Run {
    /// The errors in a few words.
    pub fn errors_text(&self) -> String {
        match self.errors.is_empty() {
            true => "0".to_owned(),
            false => self.errors.iter().map(|(what, count)| format!("{what}: {count}")).collect::<Vec<_>>().join(", "),
        }
    }
}

/// The machine that a figure comes from.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub kernel: String,
    /// Load average of the last minute when the measurement began: near 0 or the figures are not worth much.
    pub load_1min: f64,
}

impl Machine {
    /// This machine, now.
    pub fn now() -> Machine {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_1min: read("/proc/loadavg").split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
        }
    }

    fn line(&self) -> String {
        let Machine { cores, kernel, load_1min } = self;
        format!("{cores} cores, Linux {kernel}, load average {load_1min} at the start")
    }
}

/// Rows under headings: the first column to the left, the others to the right.
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Table {
        Table(vec![headings.iter().map(|heading| (*heading).to_owned()).collect()])
    }

    /// One more row.
    pub fn row(&mut self, cells: &[String]) {
        self.0.push(cells.to_vec());
    }

    fn print(&self) {
        let columns = self.0[0].len();
        let width = |column: usize| self.0.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.0 {
            let mut line = format!("{:<width$}", row[0], width = widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                line.push_str(&format!("  {cell:>width$}"));
            }
            println!("{}", line.trim_end());
        }
    }
}

/// Prints `document` as JSON, or the tables with their titles for people.
pub fn print(json: bool, machine: &Machine, document: &impl Serialize, tables: &[(&str, Table)]) -> Outcome<()> {
    #[derive(Serialize)]
    struct Whole<'a, T> {
        machine: &'a Machine,
        #[serde(flatten)]
        document: &'a T,
    }
    if json {
        let text = serde_json::to_string_pretty(&Whole { machine, document }).map_err(|error| error.to_string())?;
        println!("{text}");
        return Ok(());
    }
    println!("{}", machine.line());
    for (title, table) in tables {
        println!("\n{title}");
        table.print();
    }
    Ok(())
}

/// Tells a person who waits what is being measured; on stderr, so that stdout stays clean.
pub fn progress(text: &str) {
    eprintln!("… {text}");
}

/// The middle value; the mean of the middle two of an even number; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[length / 2],
        length => (sorted[length / 2 - 1] + sorted[length / 2]) / 2.0,
    }
}

/// A number of a table: three significant digits where it is small.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The cell that tells whether a figure is at most what it should be.
pub fn aim(value: f64, most: f64, unit: &str) -> String {
    format!("≤ {most} {unit}: {}", if value <= most { "met" } else { "missed" })
}

/// A middle value with its extremes.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
}

impl Spread {
    /// Of these values.
    pub fn of(values: &[f64]) -> Spread {
        Spread {
            median: median(values),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            runs: values.len(),
        }
    }

    /// Its cells in a table: median, least, most, number.
    pub fn cells(&self) -> [String; 4] {
        [number(self.median), number(self.min), number(self.max), self.runs.to_string()]
    }
}
