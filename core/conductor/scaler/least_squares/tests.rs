use super::*;
use crate::random::Random;
use crate::scaler::student::two_sided;

const ALL: [bool; COLUMNS] = [true; COLUMNS];

fn row(columns: &[f64], target: f64) -> Row {
    let mut row = Row { target, ..Row::default() };
    row.columns[..columns.len()].copy_from_slice(columns);
    row
}

fn fit(rows: &[Row]) -> Option<Fit> {
    Fit::of(rows.iter(), ALL)
}

/// A number in ±1.
fn drawn(random: &mut Random) -> f64 {
    random.below(1 << 53) as f64 / (1u64 << 52) as f64 - 1.0
}

/// One case of the fixture: what `reference.py` says of these rows.
#[derive(Default)]
struct Case {
    name: String,
    width: usize,
    rows: Vec<Row>,
    /// Intercept and coefficients, and whether they are Ridge's.
    fit: Option<(Vec<f64>, bool)>,
    /// The same in exact arithmetic, rounded at the end.
    exact: Option<Vec<f64>>,
    std: Option<f64>,
    at: Vec<At>,
}

struct At {
    columns: [f64; COLUMNS],
    prediction: f64,
    interval: Option<(f64, f64)>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("../../../../tests/fixtures/scaler/least_squares.txt").lines() {
        let (word, rest) = line.split_once(' ').expect("a line has a word and numbers");
        if word == "case" {
            let (name, width) = rest.split_once(' ').expect("a case has a name and its number of columns");
            let width = width.parse().expect("it is a number");
            cases.push(Case { name: name.to_owned(), width, ..Case::default() });
            continue;
        }
        let case = cases.last_mut().expect("a case has begun");
        let numbers: Vec<f64> = rest.split(' ').map_while(|word| word.parse().ok()).collect();
        let (columns, last) = numbers.split_at(case.width.min(numbers.len()));
        match word {
            "row" => case.rows.push(row(columns, last[0])),
            "fit" | "ridge" => case.fit = Some((numbers, word == "ridge")),
            "exact" => case.exact = Some(numbers),
            "std" => case.std = Some(numbers[0]),
            "at" => case.at.push(At {
                columns: row(columns, 0.0).columns,
                prediction: last[0],
                interval: last.get(1).zip(last.get(2)).map(|(low, high)| (*low, *high)),
            }),
            _ => panic!("{word:?} is not known"),
        }
    }
    cases
}

/// Whether two numbers are the same to this part of what they are made of.
#[track_caller]
fn agree(what: &str, found: f64, wanted: f64, part: f64, size: f64) {
    assert!((found - wanted).abs() <= part * size, "{what}: {found:e} instead of {wanted:e}");
}

/// From the least to the largest of what rows have.
fn spread(case: &Case, number: impl Fn(&Row) -> f64) -> f64 {
    let (least, most) = case
        .rows
        .iter()
        .map(number)
        .fold((f64::MAX, f64::MIN), |(least, most), number| (number.min(least), number.max(most)));
    most - least
}

#[test]
fn coefficients_and_predictions_are_those_of_scikit_learn_and_intervals_those_of_statsmodels() {
    let cases = cases();
    assert_eq!(cases.len(), 9, "the fixture has other cases");
    for case in &cases {
        let fit = fit(&case.rows).expect("every case can be fitted");
        let name = &case.name;
        if let Some((wanted, is_ridge)) = &case.fit {
            assert_eq!(fit.is_ridge(), *is_ridge, "{name}");
            for column in 0..case.width {
                // scikit-learn does not scale: where one column is a million times another it keeps ten digits of what the
                // one does to the target, and of its coefficient as many as that leaves.
                let effect = spread(case, |row| row.target) / spread(case, |row| row.columns[column]);
                let size = if effect.is_finite() { effect.max(wanted[column + 1].abs()) } else { 0.0 };
                agree(&format!("{name} {column}"), fit.coefficients()[column], wanted[column + 1], 1e-9, size);
            }
            // The intercept is a difference of these.
            let size = (0..COLUMNS).map(|column| (fit.coefficients[column] * fit.means.columns[column]).abs());
            agree(&format!("{name} intercept"), fit.intercept(), wanted[0], 1e-9, size.sum::<f64>() + wanted[0].abs());
        }
        if let Some(exact) = &case.exact {
            for column in 0..case.width {
                let wanted = exact[column + 1];
                agree(&format!("{name} {column}"), fit.coefficients()[column], wanted, 1e-9, wanted.abs());
            }
            agree(&format!("{name} exact intercept"), fit.intercept(), exact[0], 1e-9, exact[0].abs());
        }
        if let Some(std) = case.std {
            agree(&format!("{name} std"), fit.residual_std(), std, 1e-9, std);
        }
        for at in &case.at {
            let prediction = fit.predict(&at.columns);
            agree(&format!("{name} prediction"), prediction, at.prediction, 1e-9, at.prediction.abs());
            if let Some((low, high)) = at.interval {
                let half = two_sided(0.95, fit.degrees()) * fit.prediction_error(&at.columns);
                // Of the width, which is far less than the number where that is in bytes.
                agree(&format!("{name} low"), prediction - half, low, 1e-6, high - low);
                agree(&format!("{name} high"), prediction + half, high, 1e-6, high - low);
            }
        }
    }
}

#[test]
fn a_constant_column_and_one_that_others_give_are_left_out() {
    let rows: Vec<Row> = (0..40)
        .map(|number| {
            let time = f64::from(number);
            row(&[time, 0.1, 3.0 * time - 7.0, (time * 0.9).sin()], 2.0 * time + 1.0)
        })
        .collect();
    let fit = fit(&rows).expect("there are enough rows");
    assert_eq!([0, 1, 2, 3, 4].map(|column| fit.has(column)), [true, false, false, true, false]);
    assert!(!fit.is_ridge());
    assert_eq!(fit.degrees(), 37);
    agree("the line", fit.predict(&rows[0].columns), 1.0, 1e-12, 1.0);
    assert!(fit.prediction_error(&rows[0].columns) < 1e-12);
}

#[test]
fn a_column_that_is_not_used_does_not_matter() {
    let mut random = Random::new(1);
    let rows: Vec<Row> = (0..100)
        .map(|number| row(&[f64::from(number), drawn(&mut random), drawn(&mut random)], drawn(&mut random)))
        .collect();
    let mut used = ALL;
    used[1] = false;
    let fit = Fit::of(rows.iter(), used).expect("there are enough rows");
    let without: Vec<Row> =
        rows.iter().map(|full| row(&[full.columns[0], 0.0, full.columns[2]], full.target)).collect();
    assert_eq!(fit.coefficients(), super::Fit::of(without.iter(), ALL).expect("as many rows").coefficients());
}

#[test]
fn no_more_rows_than_coefficients_give_no_fit_and_constant_columns_need_none() {
    let rows: Vec<Row> = (0..5).map(|number| row(&[f64::from(number), f64::from(number * number)], 1.0)).collect();
    assert_eq!([0, 1, 2, 3, 4].map(|count| fit(&rows[..count]).is_some()), [false, false, false, false, true]);
    let mean = fit(&[row(&[], 1.0), row(&[], 2.0)]).expect("a mean has one degree of freedom");
    assert_eq!((mean.predict(&[9.0; COLUMNS]), mean.degrees()), (1.5, 1));
    agree("s √(1 + 1/2)", mean.prediction_error(&[9.0; COLUMNS]), (0.5f64 * 1.5).sqrt(), 1e-15, 1.0);
}

#[test]
fn numbers_that_are_not_finite_or_whose_squares_are_not_give_no_fit() {
    for wrong in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e200, f64::MAX] {
        let good: Vec<Row> = (0..30).map(|number| row(&[f64::from(number), f64::from(number % 3)], 1.0)).collect();
        for place in 0..3 {
            let mut rows = good.clone();
            if place < 2 {
                rows[17].columns[place] = wrong;
            } else {
                rows[17].target = wrong;
            }
            if let Some(fit) = fit(&rows) {
                assert!(wrong.is_finite(), "{wrong} in place {place} was fitted");
                assert!(fit.predict(&good[0].columns).is_finite(), "{wrong} in place {place}");
            }
        }
    }
}

#[test]
fn any_rows_give_finite_numbers_or_no_fit() {
    let mut fits = 0;
    for seed in 0..2_000 {
        let mut random = Random::new(seed);
        let scales: Vec<f64> = (0..=COLUMNS).map(|_| 10f64.powi(random.below(24) as i32 - 12)).collect();
        let offsets: Vec<f64> = (0..=COLUMNS).map(|_| drawn(&mut random) * 1e3).collect();
        let rows: Vec<Row> = (0..random.below(150))
            .map(|number| {
                let mut numbers = [0.0; COLUMNS + 1];
                for column in 0..=COLUMNS {
                    numbers[column] = match (seed + column as u64) % 5 {
                        0 => offsets[column],
                        1 if column > 0 => numbers[column - 1] * scales[column],
                        2 if column > 1 => numbers[column - 2] + drawn(&mut random) * scales[column],
                        3 => number as f64 * scales[column] + offsets[column],
                        _ => drawn(&mut random) * scales[column] + offsets[column],
                    };
                }
                row(&numbers[..COLUMNS], numbers[COLUMNS])
            })
            .collect();
        let Some(fit) = fit(&rows) else { continue };
        fits += 1;
        let somewhere = rows[0].columns.map(|number| number + drawn(&mut random));
        for number in [fit.predict(&somewhere), fit.prediction_error(&somewhere), fit.residual_std(), fit.intercept()] {
            assert!(number.is_finite(), "seed {seed}");
        }
    }
    assert!(fits > 1_500, "only {fits} were fitted");
}

#[test]
fn the_order_of_rows_does_not_matter_and_units_only_change_units() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let mut rows: Vec<Row> = (0..20 + random.below(180))
            .map(|number| {
                let columns = [number as f64, drawn(&mut random) * 40.0 + 50.0, drawn(&mut random)];
                row(&columns, columns[0] * 0.1 + columns[1] * 0.7 - columns[2] + drawn(&mut random))
            })
            .collect();
        let at = rows[0].columns.map(|number| number + 1.0);
        let before = fit(&rows).expect("there are enough rows");
        for place in (1..rows.len()).rev() {
            rows.swap(place, random.below(place as u64 + 1) as usize);
        }
        let shuffled = fit(&rows).expect("there are as many rows");
        agree("shuffled", shuffled.predict(&at), before.predict(&at), 1e-11, 100.0);
        agree("shuffled", shuffled.prediction_error(&at), before.prediction_error(&at), 1e-10, 1.0);

        // Percent become bytes, seconds nanoseconds, with another origin.
        let (scale, unit) = (8.1e7, 1e9);
        let convert =
            |[time, ram, rate, ..]: [f64; COLUMNS]| row(&[time * unit + 1e12, ram * scale, rate], 0.0).columns;
        let converted: Vec<Row> =
            rows.iter().map(|row| Row { columns: convert(row.columns), target: row.target * scale }).collect();
        let other = fit(&converted).expect("there are as many rows");
        agree("converted", other.predict(&convert(at)), before.predict(&at) * scale, 1e-10, 100.0 * scale);
        agree("converted", other.prediction_error(&convert(at)), before.prediction_error(&at) * scale, 1e-9, scale);
        agree("converted", other.coefficients()[0], before.coefficients()[0] * scale / unit, 1e-9, 0.1 * scale / unit);
    }
}
