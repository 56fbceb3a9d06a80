use super::*;
use crate::config::{Bounded, Scaler};
use crate::random::Random;

fn bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(number: u64) -> Bounded<LOW, HIGH, DEFAULT> {
    Bounded::new(number).expect("the number is in its range")
}

/// A competition that is given samples every 30 s, and forecasts that are so far off.
struct Bench {
    competition: Competition,
    now: Time,
    promotions: Vec<(Time, Promotion)>,
}

const STEP: Duration = Duration::from_secs(30);
const HORIZON: Duration = Duration::from_secs(300);

impl Bench {
    fn new(settings: &Scaler) -> Bench {
        Bench { competition: Competition::new(settings), now: Time::ZERO, promotions: Vec::new() }
    }

    /// A sample of 50 %, and forecasts with these errors.
    fn step(&mut self, errors: [Option<f64>; MODELS]) {
        self.now = self.now + STEP;
        if let Some(promotion) = self.competition.judge(self.now, 50.0) {
            self.promotions.push((self.now, promotion));
        }
        let due = self.now + HORIZON;
        let forecast = |error: f64| Forecast::new(self.now, due, 50.0 + error, Some(1.0));
        self.competition.enter(due, &errors.map(|error| error.map(forecast)));
        self.competition.check();
    }

    fn steps(&mut self, count: usize, errors: [Option<f64>; MODELS]) {
        (0..count).for_each(|_| self.step(errors));
    }

    fn promoted(&self) -> Vec<Model> {
        self.promotions.iter().map(|(_, promotion)| promotion.to).collect()
    }
}

fn two(last_value: f64, ols: f64) -> [Option<f64>; MODELS] {
    [Some(last_value), None, None, Some(ols), None]
}

#[test]
fn a_champion_that_may_not_be_replaced_is_not() {
    let mut bench = Bench::new(&Scaler { may_promote: false, ..Scaler::default() });
    bench.steps(200, two(2.0, 0.1));
    bench.steps(200, [None, None, None, Some(0.1), None]);
    assert_eq!((bench.competition.champion(), bench.promoted()), (Model::LastValue, vec![]));
}

#[test]
fn a_forecast_is_judged_at_its_time_on_the_line_between_the_samples_on_either_side() {
    let mut competition = Competition::new(&Scaler::default());
    let (made_at, due) = (Time::ZERO, Time::from_millis(300_000));
    let forecast = Forecast::new(made_at, due, 53.0, Some(2.0));
    competition.enter(due, &[Some(forecast), None, None, None, None]);
    competition.judge(Time::from_millis(290_000), 50.0);
    assert_eq!(competition.score(Model::LastValue), Score::default());
    competition.judge(Time::from_millis(310_000), 54.0);
    let score = competition.score(Model::LastValue);
    assert_eq!(score, Score { rounds: 1, mean_error: Some(1.0), coverage: Some(1.0) });
    assert_eq!(competition.score(Model::Ols), Score::default());
}

#[test]
fn nobody_is_judged_across_a_gap() {
    let mut bench = Bench::new(&Scaler::default());
    bench.steps(30, two(5.0, 1.0));
    assert!(bench.competition.leading[Model::Ols as usize].is_some());
    bench.now = bench.now + Duration::from_secs(3_600);
    bench.step(two(5.0, 1.0));
    assert_eq!(bench.competition.unjudged(), 10);
    assert_eq!(bench.competition.leading, [None; MODELS], "it has to lead for ten minutes anew");
    assert_eq!(bench.competition.score(Model::Ols).rounds, 20);
}

#[test]
fn who_is_better_by_the_margin_for_ten_minutes_is_promoted_with_its_figures() {
    let mut bench = Bench::new(&Scaler::default());
    // The first is judged after five minutes, twenty after fifteen, and then it leads for ten.
    bench.steps(49, two(-2.0, 1.5));
    assert_eq!(bench.promotions, []);
    bench.steps(60, two(-2.0, 1.5));
    let [(at, promotion)] = bench.promotions[..] else { panic!("{:?}", bench.promotions) };
    assert_eq!(at, Time::from_millis(1_500_000));
    let led = Duration::from_secs(600);
    let (from, to) = (Model::LastValue, Model::Ols);
    let wanted = Promotion { to, from, to_error_milli: 1_500, from_error_milli: Some(2_000), rounds: 40, led };
    assert_eq!(promotion, wanted);
    assert_eq!(bench.competition.champion(), Model::Ols);
    assert_eq!(
        promotion.to_string(),
        "promoted ols over last_value: its mean error was 1.500 points against 2.000 over 40 forecasts, and it had led \
         for 10 min"
    );
}

#[test]
fn less_than_the_margin_or_than_a_twentieth_of_a_point_is_no_lead() {
    for (champion, challenger) in [(1.0, 0.91), (0.1, 0.06), (0.0, 0.0), (0.04, 0.0), (1.0, 1.0), (1.0, 3.0)] {
        let mut bench = Bench::new(&Scaler::default());
        bench.steps(500, two(champion, challenger));
        assert_eq!(bench.promotions, [], "{challenger} against {champion}");
    }
    let mut bench = Bench::new(&Scaler { margin_percent: bounded(5), ..Scaler::default() });
    bench.steps(500, two(1.0, 0.91));
    assert_eq!(bench.promoted(), [Model::Ols]);
}

#[test]
fn what_swings_more_than_it_leads_is_no_lead_and_what_is_small_and_steady_is() {
    // Both lead by a fifth of a point; over an hour, with twelve independent rounds, a swing of 0.2 is certain and 1 not.
    for (swing, leads) in [(0.2, true), (1.0, false)] {
        let mut bench = Bench::new(&Scaler::default());
        for step in 0..1_000 {
            let sign = if step % 2 == 0 { 1.0 } else { -1.0 };
            bench.step(two(1.5 + swing * sign, 1.3));
        }
        assert_eq!(!bench.promotions.is_empty(), leads, "{swing}");
    }
}

#[test]
fn of_several_that_lead_the_best_is_promoted() {
    let mut bench = Bench::new(&Scaler::default());
    bench.steps(200, [Some(3.0), Some(2.0), Some(0.5), Some(1.0), None]);
    assert_eq!(bench.promoted(), [Model::Holt]);
}

#[test]
fn a_champion_without_forecasts_is_replaced_by_whoever_has_them() {
    let mut bench = Bench::new(&Scaler { champion: Model::OlsSeasons, ..Scaler::default() });
    bench.steps(100, [Some(3.0), Some(2.0), None, None, None]);
    assert_eq!(bench.promoted(), [Model::Ewma]);
    let text = bench.promotions[0].1.to_string();
    assert!(text.contains("2.000 points and the other had no forecast, over 40 forecasts"), "{text}");
}

#[test]
fn a_champion_whose_forecasts_are_still_to_be_judged_is_not_absent() {
    let settings = Scaler { champion: Model::Ols, lead_ms: bounded(0), ..Scaler::default() };
    let mut bench = Bench::new(&settings);
    bench.steps(25, [Some(2.0), None, None, None, None]);
    // Twenty rounds without it come before the first with it.
    bench.steps(200, two(2.0, 1.0));
    assert_eq!(bench.promotions, []);
    let mut bench = Bench::new(&settings);
    bench.steps(25, [Some(2.0), None, None, None, None]);
    bench.step(two(2.0, 1.0));
    bench.steps(200, [Some(2.0), None, None, None, None]);
    let [(at, promotion)] = bench.promotions[..] else { panic!("{:?}", bench.promotions) };
    assert_eq!(at - Time::ZERO, STEP * (26 + 10 + 20), "but when none of the next twenty has one, it is");
    assert!(promotion.to_string().ends_with("the other had no forecast, over 45 forecasts, and it had led for 0 s"));
}

#[test]
fn a_short_lead_is_told_in_seconds() {
    let told = |seconds| {
        let (to, from, led) = (Model::Ols, Model::LastValue, Duration::from_secs(seconds));
        Promotion { to, from, to_error_milli: 1, from_error_milli: Some(2), rounds: 20, led }.to_string()
    };
    for (seconds, ending) in
        [(0, "for 0 s"), (50, "for 50 s"), (119, "for 119 s"), (120, "for 2 min"), (700, "for 11 min")]
    {
        assert!(told(seconds).ends_with(ending), "{}", told(seconds));
    }
}

#[test]
fn who_has_been_promoted_stays_until_twenty_rounds_and_ten_minutes_say_otherwise() {
    // Whatever comes: the two are good and bad in turns of every length, which is the worst that can be.
    for half_period in 1..120 {
        let mut bench = Bench::new(&Scaler::default());
        for step in 0..3_000 {
            let is_first = step / half_period % 2 == 0;
            bench.step(if is_first { two(5.0, 0.0) } else { two(0.0, 5.0) });
        }
        for pair in bench.promotions.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= 20 * STEP + Duration::from_secs(600), "{half_period}: {pair:?}");
        }
        // Turns that are short beside the hour that is remembered hardly ever change anything.
        let most = if half_period <= 10 { 1 } else { 3_000 / half_period + 1 };
        assert!(bench.promotions.len() <= most, "{half_period}: {} promotions", bench.promotions.len());
    }
}

#[test]
fn chance_alone_promotes_hardly_ever() {
    let mut promotions = 0;
    for seed in 0..50 {
        let mut random = Random::new(seed);
        let mut bench = Bench::new(&Scaler::default());
        for _ in 0..2_880 {
            bench.step([0; MODELS].map(|_| Some(random.below(1 << 20) as f64 / f64::from(1 << 20) * 2.0 - 1.0)));
        }
        promotions += bench.promotions.len();
    }
    assert!(promotions < 5, "{promotions} promotions in fifty days of forecasters that are all the same");
}

#[test]
fn intervals_are_as_wide_as_95_percent_of_errors_were() {
    let mut bench = Bench::new(&Scaler::default());
    bench.steps(29, two(1.0, 0.0));
    assert_eq!(bench.competition.half_width(Model::LastValue), None, "nineteen are too few");
    for error in 0..128 {
        bench.step(two(f64::from(error) / 10.0, 0.0));
    }
    bench.steps(10, two(0.0, 0.0));
    // Of 0.0 to 12.7 the 123rd: 0.95 × 129 = 122.55.
    let half_width = bench.competition.half_width(Model::LastValue).expect("there are enough");
    assert!((half_width - 12.2).abs() < 1e-9, "{half_width}");
    assert_eq!(bench.competition.half_width(Model::Ols), Some(0.0));
    assert_eq!(bench.competition.half_width(Model::Holt), None);
    let score = bench.competition.score(Model::LastValue);
    assert_eq!(score.rounds, 128);
    assert_eq!(score.coverage, Some(11.0 / 128.0), "those up to 1.0");
    assert!((score.mean_error.expect("there are rounds") - 6.35).abs() < 1e-9);
}

#[test]
fn samples_that_come_every_second_are_not_all_judged() {
    let mut competition = Competition::new(&Scaler::default());
    for second in 0..3_600 {
        let now = Time::from_millis(second * 1000);
        competition.judge(now, 50.0);
        let forecast = Forecast::new(now, now + HORIZON, 51.0, None);
        competition.enter(now + HORIZON, &[Some(forecast); MODELS]);
        competition.check();
    }
    assert!(competition.pending.len() <= 31);
    assert_eq!(competition.score(Model::Ewma), Score { rounds: 128, mean_error: Some(1.0), coverage: None });
    assert_eq!(competition.unjudged(), 0);
}

#[test]
fn any_forecasts_at_any_times_keep_it_within_its_bounds() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let settings = Scaler {
            horizon_ms: bounded(10_000 + random.below(3_590_001)),
            lead_ms: bounded(random.below(1_000_000)),
            margin_percent: bounded(1 + random.below(90)),
            ..Scaler::default()
        };
        let mut competition = Competition::new(&settings);
        let bytes = competition.heap_bytes();
        let mut now = Time::ZERO;
        for _ in 0..1_000 {
            let longest = Duration::from_millis(1 << random.below(24));
            now = now + Duration::from_nanos(1) + random.span_below(longest);
            if let Some(promotion) = competition.judge(now, random.below(100_001) as f64 / 1000.0) {
                assert_ne!(promotion.from, promotion.to);
                assert_eq!(promotion.to, competition.champion());
            }
            let due = now + settings.horizon_ms.millis();
            competition.enter(
                due,
                &Model::ALL.map(|_| {
                    let value = random.below(200) as f64 - 50.0;
                    (random.below(4) > 0).then(|| Forecast::new(now, due, value, random.chance(500).then_some(3.0)))
                }),
            );
            competition.check();
        }
        for model in Model::ALL {
            let Score { mean_error, coverage, .. } = competition.score(model);
            assert!(mean_error.is_none_or(|error| (0.0..=100.0).contains(&error)), "seed {seed}");
            assert!(coverage.is_none_or(|part| (0.0..=1.0).contains(&part)), "seed {seed}");
        }
        assert_eq!(competition.heap_bytes(), bytes);
    }
}
