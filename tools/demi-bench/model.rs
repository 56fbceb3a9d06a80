//! `demi-bench model`: what a forecast of RAM costs, and what its forecasters hold.
//!
//! A fit and its prediction are least squares over so many rows, the coefficients of all columns, one prediction and its
//! 95 % interval. A reading is all that one sample causes: both fits over full windows, the averages, the errors of every
//! forecaster and their comparison.

use std::hint::black_box;

use argh::FromArgs;
use demi::conductor::config::Scaler;
use demi::conductor::scaler::least_squares::{Fit, Row, COLUMNS};
use demi::conductor::scaler::student::two_sided;
use demi::conductor::scaler::{Outlook, Reading};
use demi::conductor::{Random, Time};
use serde::Serialize;

use crate::decide::batches;
use crate::report::{aim, print, Machine, Spread, Table};
use crate::Outcome;

/// Fits and readings in a batch.
const BATCH: u32 = 200;
/// Between two samples, milliseconds, and the samples of two days.
const STEP_MS: u64 = 30_000;
const WARM_UP: u64 = 2 * 86_400_000 / STEP_MS;

/// Most microseconds for a fit and its prediction, and most bytes of all forecasters.
const FIT_US_MAX: f64 = 20.0;
const BYTES_MAX: usize = 256 * 1024;

#[derive(FromArgs)]
#[argh(subcommand, name = "model")]
/// microseconds per forecast of RAM, and the memory of the forecasters
pub struct Arguments {
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    /// Fit, prediction and interval, microseconds: half an hour of samples every 30 s without seasons, then all columns.
    fit_60_rows_3_columns_us: Spread,
    fit_60_rows_us: Spread,
    fit_120_rows_us: Spread,
    fit_180_rows_us: Spread,
    /// The part of that which is the quantile of Student's t, 172 degrees of freedom.
    quantile_us: Spread,
    /// All that a sample causes.
    reading_us: Spread,
    outlook_bytes: usize,
}

/// Runs `demi-bench model`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let machine = Machine::now();
    let document = Document {
        fit_60_rows_3_columns_us: fits(60, 3)?,
        fit_60_rows_us: fits(60, COLUMNS)?,
        fit_120_rows_us: fits(120, COLUMNS)?,
        fit_180_rows_us: fits(180, COLUMNS)?,
        quantile_us: quantiles(),
        reading_us: readings(),
        outlook_bytes: Outlook::new(&Scaler::default()).bytes(),
    };
    let mut table = Table::new(&["", "median", "least", "most", "batches", "aim"]);
    for (name, spread, has_aim) in [
        ("60 rows, bias and 3 columns, µs", &document.fit_60_rows_3_columns_us, true),
        ("60 rows, bias and 7 columns, µs", &document.fit_60_rows_us, true),
        ("120 rows, bias and 7 columns, µs", &document.fit_120_rows_us, true),
        ("180 rows, bias and 7 columns, µs", &document.fit_180_rows_us, true),
        ("of which Student's t, µs", &document.quantile_us, false),
        ("a reading: two fits, all forecasters, their scores, µs", &document.reading_us, false),
    ] {
        let [median, least, largest, batches] = spread.cells();
        let aim = if has_aim { aim(spread.median, FIT_US_MAX, "µs") } else { String::new() };
        table.row(&[name.to_owned(), median, least, largest, batches, aim]);
    }
    let mut size = Table::new(&["", "bytes", "aim"]);
    let bytes = document.outlook_bytes;
    size.row(&["all forecasters".to_owned(), bytes.to_string(), aim(bytes as f64, BYTES_MAX as f64, "bytes")]);
    print(arguments.json, &machine, &document, &[("fit, predict and interval", table), ("Size", size)])
}

/// A number in ±1.
fn drawn(random: &mut Random) -> f64 {
    random.below(1 << 53) as f64 / (1u64 << 52) as f64 - 1.0
}

fn fits(count: u32, columns: usize) -> Outcome<Spread> {
    let mut random = Random::new(1);
    let rows: Vec<Row> = (0..count)
        .map(|number| {
            let mut columns = [0.0; COLUMNS].map(|_: f64| drawn(&mut random));
            columns[0] = f64::from(number) * 30.0;
            Row { columns, target: 50.0 + columns[1] + drawn(&mut random) }
        })
        .collect();
    let mut used = [false; COLUMNS];
    used[..columns].fill(true);
    let at = rows[0].columns;
    Fit::of(rows.iter(), used).ok_or("the rows cannot be fitted")?;
    Ok(batches(|| {
        for _ in 0..BATCH {
            if let Some(fit) = Fit::of(black_box(&rows).iter(), black_box(used)) {
                let half_width = two_sided(0.95, fit.degrees()) * fit.prediction_error(black_box(&at));
                black_box((fit.predict(black_box(&at)), half_width));
            }
        }
        f64::from(BATCH) * 1e3
    }))
}

fn quantiles() -> Spread {
    batches(|| {
        for _ in 0..BATCH {
            black_box(two_sided(black_box(0.95), black_box(172)));
        }
        f64::from(BATCH) * 1e3
    })
}

fn readings() -> Spread {
    let mut random = Random::new(1);
    let mut outlook = Outlook::new(&Scaler::default());
    let mut sample = 0;
    let mut take = |outlook: &mut Outlook| {
        sample += 1;
        let wave = (sample as f64 / 500.0).sin();
        let ram_percent = 50.0 + 20.0 * wave + drawn(&mut random);
        let requests_per_s = 5.0 + drawn(&mut random);
        let date_s = Some(1_796_100_000 + sample * STEP_MS / 1000);
        outlook.take(Time::from_millis(sample * STEP_MS), &Reading { ram_percent, requests_per_s, date_s })
    };
    for _ in 0..WARM_UP {
        take(&mut outlook);
    }
    batches(|| {
        for _ in 0..BATCH {
            black_box(take(black_box(&mut outlook)));
        }
        f64::from(BATCH) * 1e3
    })
}
