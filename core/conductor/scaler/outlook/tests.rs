use super::*;
use crate::config::Scaler;
use crate::random::Random;

const NOW_S: u64 = 1_796_100_000;

fn at(seconds: u64) -> Time {
    Time::from_millis(seconds * 1000)
}

fn reading(second: u64, ram_percent: f64, requests_per_s: f64) -> Reading {
    Reading { ram_percent, requests_per_s, date_s: Some(NOW_S + second) }
}

fn outlook() -> Outlook {
    Outlook::new(&Scaler::default())
}

/// A number in ±1, and one that is more often near 0: the sum of twelve, with a standard deviation of 1.
fn noise(random: &mut Random) -> f64 {
    (0..12).map(|_| random.below(1 << 30) as f64 / f64::from(1 << 30) - 0.5).sum()
}

#[test]
fn with_too_little_to_go_by_there_is_no_forecast() {
    let mut outlook = outlook();
    assert_eq!(outlook.forecast(), None);
    let mut had = [None; MODELS];
    for sample in 0..200 {
        outlook.take(at(sample * 30), &reading(sample * 30, 50.0 + (sample % 3) as f64, 1.0));
        for model in Model::ALL {
            if outlook.forecast_of(model).is_some() {
                had[model as usize].get_or_insert(sample + 1);
            }
        }
    }
    // Holt needs two samples; least squares ten rows, of which the first is five minutes after the start; of the history
    // there is one every eight minutes.
    let of_history = had[Model::OlsSeasons as usize].take().expect("it has an hour and a half");
    assert_eq!(had, [Some(1), Some(1), Some(2), Some(20), None]);
    assert!((145..=165).contains(&of_history), "{of_history}");
}

#[test]
fn a_line_is_forecast_exactly_by_those_who_know_trends() {
    let mut random = Random::new(3);
    let mut outlook = outlook();
    let line = |second: u64| 30.0 + 0.002 * second as f64;
    let mut second = 0;
    while second < 20_000 {
        outlook.take(at(second), &reading(second, line(second), 2.0));
        for model in [Model::Holt, Model::Ols, Model::OlsSeasons] {
            if let Some(Forecast { ram_percent, due, .. }) = outlook.forecast_of(model) {
                assert_eq!(due, at(second + 300));
                assert!((ram_percent - line(second + 300)).abs() < 1e-9, "{model:?} at {second} s: {ram_percent}");
            }
        }
        outlook.check();
        second += 1 + random.below(60);
    }
    let error = outlook.score(Model::LastValue).mean_error.expect("it was judged");
    assert!((error - 0.6).abs() < 1e-9, "{error}");
    assert_eq!(
        outlook.fit(Model::Ols).map(|fit| fit.has(0) && !fit.has(1)),
        Some(true),
        "what was before is time again"
    );
}

#[test]
fn a_leak_promotes_who_sees_it_and_a_quiet_machine_nobody() {
    let mut random = Random::new(5);
    let mut outlook = outlook();
    let mut promoted = Vec::new();
    for sample in 0..480 {
        let leak = (sample.max(240) - 240) as f64 * 0.2;
        let taken = outlook.take(at(sample * 30), &reading(sample * 30, 40.0 + leak + 0.1 * noise(&mut random), 1.0));
        if let Taken::Promoted(promotion) = taken {
            promoted.push((sample, promotion));
        }
        outlook.check();
    }
    assert!(promoted.iter().all(|(sample, _)| *sample > 240), "while nothing happened: {promoted:?}");
    let champion = outlook.champion();
    assert!(matches!(champion, Model::Holt | Model::Ols), "{promoted:?}");
    let forecast = outlook.forecast().expect("the champion has one");
    let (low, high) = forecast.interval.expect("it was judged often enough");
    assert!((low..=high).contains(&(40.0 + 249.0 * 0.2)), "{forecast:?}");
    assert!(high - low < 5.0, "{forecast:?}");
}

/// Runs through a wave of a day with noise.
fn run(seconds: u64, step: u64) -> Outlook {
    let mut random = Random::new(11);
    let mut outlook = outlook();
    for second in (0..seconds).step_by(step as usize) {
        let wave = (std::f64::consts::TAU * second as f64 / 86_400.0).sin();
        outlook.take(at(second), &reading(second, 50.0 + 25.0 * wave + 0.2 * noise(&mut random), (second % 7) as f64));
    }
    outlook
}

#[test]
fn waves_of_a_day_are_found_and_intervals_hold_what_they_promise() {
    let outlook = run(3 * 86_400, 30);
    let fit = outlook.fit(Model::OlsSeasons).expect("there are three days");
    assert!(fit.has(3) && fit.has(4) && !fit.has(5) && !fit.has(6), "the day and not the week");
    let error = |model| outlook.score(model).mean_error.expect("it was judged");
    assert!(error(Model::OlsSeasons) < 0.8 * error(Model::LastValue), "{:?}", Model::ALL.map(error));
    for model in Model::ALL {
        let coverage = outlook.score(model).coverage.expect("it had intervals");
        assert!(coverage >= 0.85, "{model:?}: {coverage}");
    }
}

#[test]
fn without_a_date_there_are_no_seasons_and_all_else_is_the_same() {
    let (mut dated, mut undated) = (outlook(), outlook());
    let mut random = Random::new(1);
    for sample in 0..600 {
        let with = reading(sample * 30, 50.0 + noise(&mut random), 1.0);
        dated.take(at(sample * 30), &with);
        undated.take(at(sample * 30), &Reading { date_s: None, ..with });
        assert_eq!(undated.forecast_of(Model::OlsSeasons), None);
        for model in [Model::LastValue, Model::Ewma, Model::Holt, Model::Ols] {
            assert_eq!(dated.forecast_of(model), undated.forecast_of(model));
        }
    }
    assert!(dated.forecast_of(Model::OlsSeasons).is_some());
}

#[test]
fn what_is_recalled_from_before_the_start_counts_as_history() {
    let mut outlook = outlook();
    let wave = |date: u64| 50.0 + 20.0 * (std::f64::consts::TAU * (date % 86_400) as f64 / 86_400.0).cos();
    for date in (NOW_S - 86_400..NOW_S - 600).step_by(60) {
        outlook.recall(date, wave(date), wave(date - 300), 1.0);
    }
    outlook.recall(NOW_S - 500, 0.0, 50.0, 1.0);
    outlook.recall(NOW_S - 500, 50.0, f64::NAN, 1.0);
    outlook.take(at(0), &reading(0, wave(NOW_S), 1.0));
    let found = outlook.forecast_of(Model::OlsSeasons).expect("there is a day of history").ram_percent;
    assert!((found - wave(NOW_S + 300)).abs() < 1e-6, "{found} instead of {}", wave(NOW_S + 300));
}

#[test]
fn half_as_much_ram_gives_half_the_forecast_and_another_start_of_time_the_same() {
    let mut random = Random::new(9);
    let (mut whole, mut half, mut later) = (outlook(), outlook(), outlook());
    let mut second = 0;
    let mut level = 40.0;
    for _ in 0..400 {
        second += 1 + random.below(45);
        level = (level + 0.3 * noise(&mut random)).clamp(20.0, 60.0);
        let rate = 5.0 + noise(&mut random);
        whole.take(at(second), &reading(second, level, rate));
        half.take(at(second), &reading(second, level / 2.0, rate));
        later.take(at(second + 86_400 * 365), &reading(second, level, rate));
        for model in Model::ALL {
            let of = |outlook: &Outlook| outlook.forecast_of(model).map(|forecast| forecast.ram_percent);
            let (Some(full), Some(halved), Some(shifted)) = (of(&whole), of(&half), of(&later)) else { continue };
            assert!((full - 2.0 * halved).abs() < 1e-8, "{model:?} at {second} s: {full} and {halved}");
            assert!((full - shifted).abs() < 1e-6, "{model:?} at {second} s: {full} and {shifted}");
        }
    }
}

#[test]
fn all_of_it_stays_far_below_256_kib_and_never_grows() {
    let before = outlook().bytes();
    assert!(before < 80 * 1024, "{before} bytes");
    assert_eq!(run(86_400, 30).bytes(), before, "a day of samples");
    assert_eq!(run(7_200, 1).bytes(), before, "two hours of samples every second");
}

#[test]
fn any_readings_at_any_times_never_panic_and_give_shares_of_ram() {
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let mut settings = Scaler::default();
        settings.columns.lagged_ram = random.chance(800);
        settings.columns.time = random.chance(800);
        settings.horizon_ms = config::Bounded::new(10_000 + random.below(1_000_000)).expect("it is in the range");
        settings.window_ms = config::Bounded::new(60_000 + random.below(4_000_000)).expect("it is in the range");
        let mut outlook = Outlook::new(&settings);
        let bytes = outlook.bytes();
        let (mut now, mut ram, mut date) = (Time::ZERO, 50.0, NOW_S);
        for _ in 0..600 {
            let longest = Duration::from_millis(1 << random.below(18));
            now = match random.below(200) {
                0 => Time::from_nanos(random.draw() >> (10 + random.below(30))),
                1 => now,
                _ => now + random.span_below(longest),
            };
            ram = match random.below(40) {
                0 => [f64::NAN, f64::INFINITY, -5.0, 0.0, 100.0, 250.0, f64::MIN_POSITIVE][random.below(7) as usize],
                1..=8 => 50.0,
                _ => 50.0 + (ram + noise(&mut random) - 50.0).clamp(-49.0, 49.0),
            };
            date = match random.below(100) {
                0 => random.draw(),
                _ => date.wrapping_add(random.below(600)),
            };
            let requests_per_s = [f64::NAN, -1.0, 1e300, 0.0, noise(&mut random).abs()][random.below(5) as usize];
            let date_s = random.chance(950).then_some(date);
            outlook.take(now, &Reading { ram_percent: ram, requests_per_s, date_s });
            if !ram.is_finite() {
                ram = 50.0;
            }
            outlook.check();
        }
        assert_eq!(outlook.bytes(), bytes, "seed {seed}");
    }
}
