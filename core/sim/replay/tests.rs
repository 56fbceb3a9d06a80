//! The replay can be trusted: what it says of a record that it made itself is what happened.

use demi_conductor::config::{Bounded, Host, Scaler, Start};
use demi_conductor::{Random, Time};
use demi_trace::{read, Entry, Integration, Ram, Record, Setup, Told, Writer, HEADER};

use super::{happened, replay, Course, Refused};

const SUNDAY_MS: u64 = 1_796_083_200_000;
/// Ten GB, so that a hundred MB are a percent.
const TOTAL_KB: u64 = 10_000_000;

fn bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(number: u64) -> Bounded<LOW, HIGH, DEFAULT> {
    Bounded::new(number).expect("the number is in its range")
}

fn child(name: &str, priority: u32) -> Integration {
    Integration {
        name: name.to_owned(),
        host: Host::Process(1),
        start: Start::Eager,
        sleep_after_ms: None,
        needs: Vec::new(),
        shed: true,
        priority,
        value: None,
        drain_ms: 5_000,
    }
}

/// Writes a trace by hand.
struct Script {
    writer: Writer,
    text: String,
    at_s: u64,
}

impl Script {
    fn begin(platforms: Vec<Integration>) -> Script {
        let scaler = Scaler { enabled: false, interval_ms: bounded(10_000), ..Scaler::default() };
        let setup = Setup { unix_ms: SUNDAY_MS, continues: false, scaler, platforms };
        let mut script = Script { writer: Writer::default(), text: String::new(), at_s: 0 };
        script.writer.begin(Time::ZERO, &setup, &mut script.text);
        script
    }

    /// Begins anew, as Demi does after a reload.
    fn go_on(&mut self, scaler: Scaler, platforms: Vec<Integration>) {
        let setup = Setup { unix_ms: SUNDAY_MS + self.at_s * 1_000, continues: true, scaler, platforms };
        self.writer.begin(Time::from_millis(self.at_s * 1_000), &setup, &mut self.text);
    }

    fn put(&mut self, record: Record) {
        self.writer.put(Time::from_millis(self.at_s * 1_000), &record, &mut self.text);
    }

    fn weigh(&mut self, platform: u32, kb: u64) {
        self.put(Record::Weighed { platform, kb, running: u32::from(kb > 0) });
    }

    fn measure(&mut self, used_kb: u64) {
        let ram = Ram { total_kb: TOTAL_KB, used_kb: used_kb.min(TOTAL_KB), narrowest_kb: None };
        self.put(Record::Measured(ram));
    }

    fn read(&self) -> Vec<Entry> {
        read(&self.text).expect("it is a trace")
    }
}

/// An hour: everything else uses 6 GB, and "leaky" grows by 10 MB a second from the tenth minute to the fifteenth, and by 1 MB
/// a second in the last half hour; it stays heavy.
fn leak() -> Vec<Entry> {
    let mut script = Script::begin(vec![child("leaky", 400), child("other", 100)]);
    let mut leaky_kb = 100_000;
    for second in (0..=3_600).step_by(10) {
        script.at_s = second;
        leaky_kb += match second {
            600..900 => 100_000,
            1_800.. => 10_000,
            _ => 0,
        };
        script.weigh(0, leaky_kb);
        script.weigh(1, 200_000);
        script.measure(6_000_000 + leaky_kb + 200_000);
        if second % 60 == 0 {
            script.put(Record::Asked { platform: 0, requests: 6 });
        }
    }
    script.read()
}

fn scaled(setup: &mut Setup) {
    setup.scaler = Scaler { champion: setup.scaler.champion, ..Scaler::default() };
}

fn acts(course: &Course) -> Vec<(&str, Option<usize>)> {
    course.decisions.iter().map(|decided| (decided.act.as_str(), decided.platform)).collect()
}

/// When something was decided, seconds from the beginning of the trace.
fn times(course: &Course, act: &str) -> Vec<u64> {
    let of_act = course.decisions.iter().filter(|decided| decided.act == act);
    of_act.map(|decided| (decided.unix_ms - SUNDAY_MS) / 1_000).collect()
}

#[test]
fn what_was_recorded_is_counted() {
    let course = happened(&leak(), |_| ()).expect("it can be told");
    assert_eq!((course.span_ms, course.runs), (3_600_000, 1));
    assert_eq!(course.dates, Some((SUNDAY_MS, SUNDAY_MS + 3_600_000)));
    assert!((980..=1_000).contains(&course.peak_permille), "{}", course.peak_permille);
    // From 8 GB at 770 s on.
    assert!((2_820_000..2_850_000).contains(&course.above_shed_ms), "{}", course.above_shed_ms);
    assert_eq!((course.decisions.len(), course.lost_ms()), (0, 0));
}

#[test]
fn nothing_that_is_switched_off_changes_anything() {
    let entries = leak();
    let [was, would] = [happened(&entries, |_| ()), replay(&entries, |_| ())];
    let (was, would) = (was.expect("it can be told"), would.expect("it can be replayed"));
    assert_eq!((would.peak_permille, would.above_shed_ms), (was.peak_permille, was.above_shed_ms));
    assert_eq!((would.span_ms, would.lost_ms(), would.decisions), (was.span_ms, 0, vec![]));
}

#[test]
fn days_without_a_scaler_are_as_they_were() {
    for (name, text) in [
        ("leak", include_str!("../../../tests/fixtures/traces/leak.trace")),
        ("spike", include_str!("../../../tests/fixtures/traces/spike.trace")),
        ("sawtooth", include_str!("../../../tests/fixtures/traces/sawtooth.trace")),
    ] {
        let entries = read(text).expect("it is a trace");
        let [was, would] = [happened(&entries, |_| ()), replay(&entries, |_| ())];
        let (was, would) = (was.expect("it can be told"), would.expect("it can be replayed"));
        assert!(was.peak_permille.abs_diff(would.peak_permille) <= 2, "{name}: {was:?} {would:?}");
        // Between two samples the record has a line, and the replay what platforms weighed.
        let is_near = |one: u64, other: u64| one.abs_diff(other) <= 30_000;
        assert!(is_near(was.critical_ms, would.critical_ms), "{name}: {was:?} {would:?}");
        assert!(is_near(was.above_shed_ms, would.above_shed_ms), "{name}: {was:?} {would:?}");
    }
}

#[test]
fn what_leaked_is_shed_and_comes_back_small_and_leaks_on() {
    // The other is spared, so that it is the leak that has to go.
    let course = replay(&leak(), |setup| {
        scaled(setup);
        setup.platforms[0].priority = 10;
    });
    let course = course.expect("it can be replayed");
    let (sheds, restores) = (times(&course, "shed"), times(&course, "restore"));
    assert!(sheds[0] > 700 && sheds[0] < 780, "{:?}", acts(&course));
    assert_eq!(restores.len(), sheds.len(), "{:?}", acts(&course));
    assert!(restores[0] >= sheds[0] + 300, "after five minutes of calm");
    assert!(course.critical_ms == 0 && course.peak_permille < 850, "{}", course.peak_permille);
    // It is back before the second leak, from 100 MB: 6.3 GB and 1.8 GB more are no 80 %… so it is not shed for what it was.
    assert!(sheds.len() <= 2, "{sheds:?}");
    assert!(
        course.platforms[0].shed_ms >= 300_000 && course.platforms[0].requests_lost >= 25,
        "{:?}",
        course.platforms
    );
}

#[test]
fn a_lower_threshold_sheds_earlier() {
    let at = |percent: u64| {
        let course = replay(&leak(), |setup| {
            scaled(setup);
            setup.scaler.use_forecasts = false;
            setup.scaler.shed_percent = bounded(percent);
        });
        times(&course.expect("it can be replayed"), "shed")[0]
    };
    assert!(at(70) + 40 < at(75) && at(75) + 40 < at(80), "{} {} {}", at(70), at(75), at(80));
}

#[test]
fn the_same_is_the_same_again() {
    let entries = leak();
    let once = || replay(&entries, scaled).expect("it can be replayed");
    assert_eq!(once(), once());
}

/// Writes what a replay did, as a Demi would have recorded it that ran then with those settings.
fn recorded(entries: &[Entry], change: fn(&mut Setup)) -> (Vec<Entry>, Course) {
    let text = std::cell::RefCell::new(String::new());
    let course = super::course(entries, change, |run, bases, book| {
        text.borrow_mut().push_str(&super::machine::log::live(run, bases, book));
    });
    let entries = read(&text.into_inner()).expect("it is a trace");
    (entries, course.expect("it can be replayed"))
}

#[test]
fn a_record_that_is_replayed_with_its_own_settings_decides_the_same() {
    let change = |setup: &mut Setup| {
        scaled(setup);
        setup.platforms[0].priority = 10;
    };
    let (entries, was) = recorded(&leak(), change);
    let would = replay(&entries, |_| ()).expect("it can be replayed");
    assert_eq!(acts(&would), acts(&was));
    for act in ["shed", "restore"] {
        let pairs = times(&would, act).into_iter().zip(times(&was, act));
        let late: Vec<u64> = pairs.map(|(would, was)| would.abs_diff(was)).collect();
        assert!(late.iter().all(|seconds| *seconds <= 30), "{act}: {late:?}");
    }
    let told = happened(&entries, |_| ()).expect("it can be told");
    assert_eq!((told.sheds(), told.restores()), (was.sheds(), was.restores()));
    let shed_ms = |course: &Course| course.platforms[0].shed_ms;
    assert!(shed_ms(&told).abs_diff(shed_ms(&was)) < 10_000, "{} {}", shed_ms(&told), shed_ms(&was));
}

#[test]
fn a_gap_begins_anew_and_is_not_counted() {
    let mut script = Script::begin(vec![child("leaky", 400)]);
    for second in (0..=600).chain(5_000..=5_600).step_by(10) {
        script.at_s = second;
        script.weigh(0, 100_000);
        script.measure(6_000_000);
    }
    let course = replay(&script.read(), scaled).expect("it can be replayed");
    assert_eq!((course.runs, course.span_ms / 60_000), (2, 19));
}

#[test]
fn samples_that_were_recorded_more_seldom_than_they_were_taken_are_no_gaps() {
    let mut script = Script::begin(vec![child("late", 400)]);
    // It runs, and is weighed a second later.
    script.weigh(0, 0);
    script.put(Record::Weighed { platform: 0, kb: 0, running: 1 });
    script.measure(6_500_000);
    script.at_s = 1;
    script.weigh(0, 500_000);
    for second in (30..=600).step_by(30) {
        script.at_s = second;
        script.measure(6_500_000);
    }
    let entries = read(&script.text.replace("\"interval_ms\":10000", "\"interval_ms\":1000")).expect("it is a trace");
    let course = replay(&entries, |_| ()).expect("it can be replayed");
    assert_eq!((course.runs, course.span_ms, course.peak_permille), (1, 600_000, 650));
}

#[test]
fn what_ended_by_itself_does_so_again_and_what_was_stopped_by_hand_is_down() {
    let mut script = Script::begin(vec![child("frail", 400), child("idle", 100)]);
    for second in (0..=1_200).step_by(10) {
        script.at_s = second;
        if second == 300 {
            script.put(Record::Died { platform: 0 });
            script.put(Record::State { platform: 0, state: "waiting" });
            script.weigh(0, 0);
            script.put(Record::State { platform: 0, state: "starting" });
        }
        if second == 400 {
            script.put(Record::Ordered { platform: 1, order: "stop" });
            script.put(Record::State { platform: 1, state: "stopped" });
        }
        script.weigh(0, if second < 300 { 1_000_000 } else { 200_000 });
        script.weigh(1, if second < 400 { 300_000 } else { 0 });
        let used_kb = if second < 300 { 7_300_000 } else { 6_500_000 } - if second < 400 { 0 } else { 300_000 };
        script.measure(used_kb);
    }
    let entries = script.read();
    let [was, would] = [happened(&entries, |_| ()), replay(&entries, |_| ())];
    let (was, would) = (was.expect("it can be told"), would.expect("it can be replayed"));
    assert_eq!(was.peak_permille, would.peak_permille);
    assert_eq!((was.platforms[1].lost_ms(), would.platforms[1].lost_ms()), (0, 0), "a person wanted it so");
}

fn decided(platform: u32, is_done: bool) -> Record {
    let act = "shed".to_owned();
    Record::Decided { platform: Some(platform), act, ram_permille: 600, threshold_percent: 80, is_done }
}

#[test]
fn what_would_have_fitted_all_the_while_was_shed_needlessly() {
    let mut script = Script::begin(vec![child("a", 400), child("b", 100)]);
    for second in (0..=3_600).step_by(10) {
        script.at_s = second;
        // Both are killed at the tenth minute, by somebody who is wrong.
        if second == 600 {
            for platform in [0, 1] {
                script.put(decided(platform, true));
                script.put(Record::State { platform, state: "shed" });
            }
        }
        script.weigh(0, if second < 600 { 1_000_000 } else { 0 });
        script.weigh(1, if second < 600 { 100_000 } else { 0 });
        script.measure(if second < 600 { 7_000_000 } else { 6_000_000 } + if second < 1_200 { 0 } else { 1_500_000 });
    }
    let course = happened(&script.read(), |_| ()).expect("it can be told");
    let needless: Vec<Option<bool>> = course.decisions.iter().map(|decided| decided.is_needless).collect();
    assert_eq!(needless, [Some(false), Some(true)], "with 1 GB more it would have been at 85 %");
    assert_eq!(course.needless, 1);
}

#[test]
fn what_was_only_told_has_not_happened() {
    for (is_done, count) in [(true, 1), (false, 0)] {
        let mut script = Script::begin(vec![child("a", 400)]);
        script.put(decided(0, is_done));
        script.measure(6_000_000);
        script.at_s = 10;
        script.measure(6_000_000);
        let course = happened(&script.read(), |_| ()).expect("it can be told");
        assert_eq!((course.decisions.len(), course.sheds()), (count, count as u32));
    }
}

/// Two weigh the same, and RAM is short in the tenth minute and from the thirtieth on. In the twentieth it begins anew.
fn short_twice(scaler: Scaler, platforms: Vec<Integration>) -> Vec<Entry> {
    let mut script = Script::begin(vec![child("a", 100), child("b", 400)]);
    for second in (0..=3_600).step_by(10) {
        script.at_s = second;
        if second == 1_200 {
            script.go_on(scaler, platforms.clone());
        }
        script.weigh(0, 500_000);
        script.weigh(1, 500_000);
        script.measure(if (600..900).contains(&second) || second >= 1_800 { 8_200_000 } else { 5_000_000 });
    }
    script.read()
}

fn shed_of(course: &Course) -> Vec<&str> {
    let sheds = course.decisions.iter().filter(|decided| decided.act == "shed");
    sheds.filter_map(|decided| Some(course.platforms[decided.platform?].name.as_str())).collect()
}

#[test]
fn what_a_reload_has_changed_holds_from_then_on() {
    let scaler = Scaler { enabled: false, interval_ms: bounded(10_000), ..Scaler::default() };
    let sheds = |platforms: Vec<Integration>| {
        let course = replay(&short_twice(scaler, platforms), scaled).expect("it can be replayed");
        assert_eq!(course.runs, 1, "it goes on, and knows what it has learned");
        shed_of(&course).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let (a, b) = (child("a", 100), child("b", 400));
    assert_eq!(sheds(vec![a.clone(), b.clone()]), ["a", "a"]);
    assert_eq!(sheds(vec![a.clone(), child("b", 50)]), ["a", "b"]);
    assert_eq!(sheds(vec![Integration { shed: false, ..a }, b]), ["a", "b"]);
}

#[test]
fn what_is_asked_in_the_minute_in_which_it_was_found_is_asked_after_that() {
    let mut script = Script::begin(vec![child("a", 100)]);
    for second in (0..=600).step_by(10) {
        script.at_s = second;
        if second == 300 {
            let scaler = Scaler { enabled: false, interval_ms: bounded(10_000), ..Scaler::default() };
            script.go_on(scaler, vec![child("a", 100), child("b", 400)]);
        }
        if second == 310 {
            script.put(Record::Asked { platform: 1, requests: 10 });
        }
        script.measure(5_000_000);
    }
    let course = replay(&script.read(), |_| ()).expect("it can be replayed");
    assert_eq!((course.runs, course.platforms.len()), (1, 2));
}

#[test]
fn what_no_reload_can_change_begins_anew() {
    let scaler = Scaler { enabled: false, interval_ms: bounded(10_000), ..Scaler::default() };
    let other = Scaler { calm_ms: bounded(60_000), ..scaler };
    let needy = Integration { needs: vec!["b".to_owned()], ..child("a", 100) };
    for (scaler, a) in [(other, child("a", 100)), (scaler, needy)] {
        let course = replay(&short_twice(scaler, vec![a, child("b", 400)]), scaled).expect("it can be replayed");
        assert_eq!((course.runs, shed_of(&course)), (2, vec!["a", "a"]));
    }
}

#[test]
fn the_time_of_a_clock_that_was_set_has_not_passed() {
    for unix_ms in [0, SUNDAY_MS - 86_400_000, 250_000_000_000_000] {
        let mut script = Script::begin(vec![child("a", 400)]);
        for second in (0..=600).step_by(10) {
            script.at_s = second;
            if second == 300 {
                script.put(Record::Clock(unix_ms));
            }
            script.weigh(0, 100_000);
            script.measure(6_000_000);
        }
        let course = replay(&script.read(), scaled).expect("it can be replayed");
        assert_eq!((course.runs, course.span_ms), (1, 600_000));
        assert_eq!(course.dates, Some((SUNDAY_MS, unix_ms + 300_000)));
    }
}

#[test]
fn dates_at_the_end_of_all_numbers_are_added_up_without_a_panic() {
    let mut entries = leak();
    for _ in 0..3 {
        for record in [Record::Clock(0), Record::Weighed { platform: 0, kb: u64::MAX, running: u32::MAX }] {
            let unix_ms = if record == Record::Clock(0) { 0 } else { u64::MAX - 615 };
            entries.push(Entry { unix_ms, told: Told::Record(record) });
        }
    }
    let ram = Ram { total_kb: TOTAL_KB, used_kb: 6_000_000, narrowest_kb: None };
    entries.push(Entry { unix_ms: u64::MAX, told: Told::Record(Record::Measured(ram)) });
    for change in [(|_| ()) as fn(&mut Setup), scaled] {
        let [was, would] = [happened(&entries, change), replay(&entries, change)];
        let (was, would) = (was.expect("it can be told"), would.expect("it can be replayed"));
        assert_eq!((was.runs, would.runs), (2, 2), "what comes after centuries comes after a gap");
        assert!(was.span_ms <= 3_600_000 && would.span_ms <= 3_600_000, "{} {}", was.span_ms, would.span_ms);
    }
}

/// What is left when the lines that make no sense are taken out.
fn readable(mut text: String) -> Vec<Entry> {
    loop {
        let malformed = match read(&text) {
            Ok(entries) => return entries,
            Err(malformed) => malformed,
        };
        let lines = text.lines().enumerate().filter(|(index, _)| index + 1 != malformed.line);
        text = lines.map(|(_, line)| line.to_owned() + "\n").collect();
    }
}

/// Puts other numbers in the place of some, behind the first line, and leaves some lines out.
fn edited(text: &str, random: &mut Random) -> String {
    const ODD: [u64; 12] = [
        0,
        1,
        2,
        999,
        60_000,
        3_600_000,
        u32::MAX as u64,
        1_000_000_000_000,
        253_402_300_799_999,
        18_446_744_073_709_551,
        u64::MAX - 615,
        u64::MAX,
    ];
    let one_in = [10, 100, 1_000][random.below(3) as usize];
    let (first, mut rest) = text.split_at(HEADER.len());
    let mut out = first.to_owned();
    while let Some(start) = rest.find(|letter: char| letter.is_ascii_digit()) {
        let (before, number) = rest.split_at(start);
        let end = number.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(number.len());
        let (number, after) = number.split_at(end);
        out.push_str(before);
        match random.below(one_in) {
            0 => out.push_str(&ODD[random.below(ODD.len() as u64) as usize].to_string()),
            _ => out.push_str(number),
        }
        rest = after;
    }
    out.push_str(rest);
    let is_kept = |index: usize, random: &mut Random| index == 0 || random.below(4 * one_in) > 0;
    let lines = out.lines().enumerate().filter(|(index, _)| is_kept(*index, random));
    lines.map(|(_, line)| line.to_owned() + "\n").collect()
}

#[test]
fn no_number_makes_a_replay_panic_or_take_for_ever() {
    let mut script = Script::begin(vec![child("a", 100), child("b", 400)]);
    for second in (0..=600).step_by(10) {
        script.at_s = second;
        if second % 150 == 0 {
            script.put(Record::Clock(SUNDAY_MS + second * 1_000));
            script.put(Record::Asked { platform: 1, requests: 6 });
            script.put(Record::Died { platform: 0 });
            script.put(decided(0, true));
            let scaler = Scaler { interval_ms: bounded(10_000), ..Scaler::default() };
            script.go_on(scaler, vec![child("a", 300), child("b", 200), child("c", 500)]);
            script.put(Record::Asked { platform: 2, requests: 6 });
            script.put(Record::Ordered { platform: 2, order: "stop" });
        }
        script.weigh(0, 100_000 + second);
        script.weigh(1, 200_000);
        script.measure(7_700_000 + second * 1_000);
    }
    let (mut read_count, mut replayed) = (0, 0);
    for seed in 0..40 {
        let entries = readable(edited(&script.text, &mut Random::new(seed)));
        read_count += usize::from(!entries.is_empty());
        for change in [(|_| ()) as fn(&mut Setup), scaled] {
            let was = happened(&entries, change);
            let would = replay(&entries, change);
            replayed += usize::from(was.is_ok() && would.is_ok());
        }
    }
    assert!(read_count > 20 && replayed > 20, "{read_count} {replayed}");
}

#[test]
fn what_was_sampled_for_centuries_is_refused() {
    let mut script = Script::begin(vec![child("a", 400)]);
    let hour = "\"interval_ms\":3600000";
    for quarter in 0..10_000 {
        script.at_s = quarter * 4 * 3_600;
        script.measure(6_000_000);
    }
    let text = script.text.replace("\"interval_ms\":10000", hour);
    let refused = replay(&read(&text).expect("it is a trace"), |_| ()).expect_err("it is long");
    assert_eq!(refused.to_string(), "there are samples of 1666 days in it, and 1000 are the most; give a part of them");
}

#[test]
fn what_cannot_be_replayed_is_refused_with_the_reason() {
    let script = Script::begin(vec![child("a", 400)]);
    assert_eq!(replay(&script.read(), |_| ()), Err(Refused::Empty));
    let wrong = replay(&leak(), |setup| setup.scaler.restore_percent = bounded(90)).expect_err("it makes no sense");
    assert!(wrong.to_string().contains("scaler.restore_percent: is not below"), "{wrong}");
    let circle = replay(&leak(), |setup| {
        setup.platforms[0].needs = vec!["other".to_owned()];
        setup.platforms[1].needs = vec!["leaky".to_owned()];
    });
    assert!(matches!(circle, Err(Refused::Mistakes(_))));
    assert!(replay(&leak(), |setup| setup.platforms[0].name = "other".to_owned()).is_err());
}
