use super::*;
use crate::shell::integration;
use demi_conductor::config::{Bounded, Host, Platform};
use demi_conductor::lifecycle::Then;
use demi_conductor::Random;
use demi_trace::{Entry, Told, HEADER};

/// A day's begin.
const MIDNIGHT: u64 = 20_783 * DAY_MS;
const MINUTE: Duration = Duration::from_secs(60);

/// A recorder, both clocks, and the files that its lines got to.
struct Bench {
    recorder: Recorder,
    at: Moment,
    files: std::collections::BTreeMap<u64, String>,
    sights: Vec<Sight>,
}

fn asleep() -> Sight {
    Sight { state: "asleep", kb: 0, running: 0, asked: 0 }
}

impl Bench {
    fn new(platforms: usize) -> Bench {
        Bench::after(platforms, 0)
    }

    /// In whose file so many bytes are already.
    fn after(platforms: usize, bytes: u64) -> Bench {
        let integrations = (0..platforms).map(|place| integration(&platform(&format!("platform-{place}"))));
        let today = (MIDNIGHT / DAY_MS, bytes);
        let mut bench = Bench {
            recorder: Recorder::new(Scaler::default(), integrations.collect(), today),
            at: Moment { now: Time::ZERO, real: Time::ZERO, unix_ms: MIDNIGHT },
            files: std::collections::BTreeMap::new(),
            sights: vec![asleep(); platforms],
        };
        bench.look();
        bench
    }

    fn passes(&mut self, span: Duration) {
        self.at.now = self.at.now + span;
        self.at.real = self.at.now;
        self.at.unix_ms += span.as_millis() as u64;
    }

    fn look(&mut self) {
        self.recorder.look(self.at, self.sights.iter().copied());
    }

    fn measured(&mut self, used_mb: u64) {
        let (ram_total, left) = (4_000_000_000, 4_000_000_000 - used_mb * 1_000_000);
        let (ram_headroom, ram_headroom_total) = (left, ram_total);
        let sample = Sample { ram_total, ram_available: left, ram_headroom, ram_headroom_total, ..Sample::default() };
        self.recorder.measured(self.at, &sample);
    }

    fn ordered(&mut self) -> bool {
        self.recorder.put(self.at, &Record::Ordered { platform: 0, order: "start" })
    }

    fn hand_over(&mut self) {
        let files = &mut self.files;
        self.recorder.hand_over(|day, text| {
            let file: &mut String = files.entry(day).or_default();
            assert!(!file.is_empty() || text.starts_with(HEADER), "it cannot be read alone: {text}");
            file.push_str(&std::mem::take(text));
            true
        });
    }

    /// What was recorded, each file read alone.
    fn told(&mut self) -> Vec<Entry> {
        self.hand_over();
        let read = |text: &String| demi_trace::read(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        self.files.values().flat_map(read).collect()
    }

    fn records(&mut self) -> Vec<Record> {
        let told = self.told().into_iter().filter_map(|entry| match entry.told {
            Told::Record(record) => Some(record),
            Told::Begin(_) => None,
        });
        // Without how everything was at the begin.
        told.skip(2 * self.sights.len()).collect()
    }

    fn begins(&mut self) -> Vec<(u64, bool, usize)> {
        let told = self.told().into_iter().filter_map(|entry| match entry.told {
            Told::Begin(setup) => Some((setup.unix_ms, setup.continues, setup.platforms.len())),
            Told::Record(_) => None,
        });
        told.collect()
    }
}

fn platform(name: &str) -> Platform {
    Platform { command: vec!["plugin".to_owned()], ..Platform::new(name, Host::Process(1)) }
}

#[test]
fn ram_is_recorded_every_five_seconds_and_when_it_moves() {
    let mut bench = Bench::new(0);
    for second in 0..60 {
        bench.measured(if second < 30 { 2_000 } else { 2_010 });
        bench.passes(Duration::from_secs(1));
    }
    assert_eq!(bench.records().len(), 12);
    bench.measured(2_040);
    bench.passes(Duration::from_secs(1));
    bench.measured(2_060);
    bench.measured(2_090);
    let moved: Vec<Record> = bench.records().split_off(12);
    let ram = |used_kb| Record::Measured(Ram { total_kb: 4_000_000, used_kb, narrowest_kb: None });
    assert_eq!(moved, [ram(2_040_000), ram(2_090_000)], "by a hundredth of all: 40 MB");
}

#[test]
fn a_sample_that_makes_no_sense_is_not_recorded_and_a_narrower_bound_is() {
    let mut bench = Bench::new(0);
    for (ram_total, ram_available) in [(0, 0), (999, 0), (1_000_000, 1_000_001), (0, u64::MAX)] {
        let sample = Sample { ram_total, ram_available, ..Sample::default() };
        bench.recorder.measured(bench.at, &sample);
    }
    let (ram_headroom, ram_headroom_total) = (1_000_000, 5_000_000);
    let sample = Sample {
        ram_total: 9_000_000,
        ram_available: 2_000_000,
        ram_headroom,
        ram_headroom_total,
        ..Sample::default()
    };
    bench.recorder.measured(bench.at, &sample);
    let ram = Ram { total_kb: 9_000, used_kb: 7_000, narrowest_kb: Some((5_000, 4_000)) };
    assert_eq!(bench.records(), [Record::Measured(ram)]);
}

#[test]
fn a_weight_is_recorded_when_it_has_moved_by_a_fiftieth_and_a_megabyte_or_another_number_runs() {
    let mut bench = Bench::new(2);
    for (kb, running) in [(100_000, 1), (101_900, 1), (102_000, 1), (102_000, 2), (90_000, 2)] {
        bench.passes(Duration::from_secs(1));
        bench.sights[1] = Sight { kb, running, ..asleep() };
        bench.look();
    }
    bench.passes(Duration::from_secs(1));
    for kb in [10_000, 10_400, 11_000, 20_000] {
        bench.sights[0].kb = kb;
        bench.look();
        bench.passes(Duration::from_millis(700));
    }
    let weighed = |platform, kb, running| Record::Weighed { platform, kb, running };
    let expected = [
        weighed(1, 100_000, 1),
        weighed(1, 102_000, 1),
        weighed(1, 102_000, 2),
        weighed(1, 90_000, 2),
        weighed(0, 10_000, 0),
        weighed(0, 11_000, 0),
    ];
    assert_eq!(bench.records(), expected);
    assert!(bench.recorder.is_look_due(bench.at.now), "the last one had to wait for its second");
    bench.look();
    assert_eq!(bench.records()[6..], [weighed(0, 20_000, 0)]);
}

#[test]
fn states_requests_orders_and_ends_are_recorded_as_they_come() {
    let mut bench = Bench::new(2);
    bench.sights[1] = Sight { state: "running", asked: 14, ..asleep() };
    bench.look();
    bench.look();
    bench.recorder.count_requests(bench.at);
    bench.passes(MINUTE);
    bench.look();
    bench.recorder.count_requests(bench.at);
    bench.ordered();
    bench.recorder.end(bench.at);
    assert!(!bench.ordered() && !bench.recorder.is_on(), "nothing comes after the end");
    let expected = [
        Record::State { platform: 1, state: "running" },
        Record::Asked { platform: 1, requests: 14 },
        Record::Ordered { platform: 0, order: "start" },
        Record::Ended,
    ];
    assert_eq!(bench.records(), expected);
    let last = bench.told().pop().map(|entry| entry.unix_ms);
    assert_eq!(last, Some(MIDNIGHT + 60_000));
}

#[test]
fn one_that_changes_is_looked_at_by_itself_and_once() {
    let mut bench = Bench::new(3);
    bench.passes(Duration::from_secs(1));
    for platform in [2, 1, 2, 9] {
        bench.recorder.note_change(platform);
    }
    assert!(!bench.recorder.is_look_due(bench.at.now));
    let mut looked_at = Vec::new();
    while let Some(platform) = bench.recorder.next_changed() {
        looked_at.push(platform);
        bench.recorder.look_at_one(bench.at, platform, Sight { state: "running", running: 1, ..asleep() });
    }
    assert_eq!(looked_at, [1, 2]);
    let expected = [1, 2].map(|platform| {
        [Record::State { platform, state: "running" }, Record::Weighed { platform, kb: 0, running: 1 }]
    });
    assert_eq!(bench.records(), expected.concat());
    bench.recorder.note_change(0);
    bench.look();
    assert_eq!(bench.recorder.next_changed(), None, "all were looked at");
}

#[test]
fn a_state_is_the_best_of_those_of_its_slots() {
    let then = Then::Shed;
    let cases = [
        (vec![State::Spare, State::Failed, State::Ready], "running"),
        (vec![State::Stopping { then }, State::Shed, State::Spare], "draining"),
        (vec![State::Backoff { until: Time::ZERO }, State::Shed], "waiting"),
        (vec![State::Shed, State::Stopped], "shed"),
        (vec![State::Spare], "stopped"),
    ];
    for (states, best) in cases {
        assert_eq!(best_state(states.iter().copied()), best, "{states:?}");
    }
}

#[test]
fn a_clock_that_is_set_is_recorded_and_one_that_a_late_turn_sees_is_not() {
    let mut bench = Bench::new(0);
    bench.passes(MINUTE);
    bench.at.unix_ms += 1_900;
    bench.measured(1_000);
    // Demi was stopped for an hour, and hears first what came meanwhile.
    bench.passes(Duration::from_secs(3_600));
    let late = Moment { now: Time::ZERO + MINUTE + MINUTE, ..bench.at };
    bench.recorder.put(late, &Record::Ordered { platform: 0, order: "stop" });
    bench.measured(1_000);
    assert_eq!(bench.recorder.clock.1, MIDNIGHT);
    // The machine was suspended for an hour, and its clock is set back then.
    bench.at.unix_ms += 3_600_000;
    bench.measured(2_000);
    bench.at.unix_ms -= 1_800_000;
    bench.measured(3_000);
    bench.files.insert(0, String::new());
    let clocks: Vec<Record> = {
        // The order is of no platform that is there; what is of interest are the clocks.
        let text: String = bench.recorder.chunks.drain(..).map(|chunk| chunk.text).collect();
        let text: Vec<&str> = text.lines().filter(|line| !line.starts_with('o')).collect();
        let entries = demi_trace::read(&(text.join("\n") + "\n")).expect("it is a trace");
        let records = entries.into_iter().filter_map(|entry| match entry.told {
            Told::Record(record @ Record::Clock(_)) => Some(record),
            Told::Record(_) | Told::Begin(_) => None,
        });
        records.collect()
    };
    let first = MIDNIGHT + 60_000 + 1_900 + 2 * 3_600_000;
    assert_eq!(clocks, [Record::Clock(first), Record::Clock(first - 1_800_000)]);
}

#[test]
fn each_day_has_a_file_that_can_be_read_alone() {
    let mut bench = Bench::new(3);
    bench.passes(Duration::from_secs(3_600));
    bench.sights[2] = Sight { state: "running", kb: 5_000, running: 1, asked: 7 };
    bench.look();
    bench.passes(Duration::from_secs(23 * 3_600));
    bench.look();
    bench.recorder.count_requests(bench.at);
    bench.hand_over();
    assert_eq!(bench.begins(), [(MIDNIGHT, false, 3), (MIDNIGHT + DAY_MS, true, 3)]);
    let second = demi_trace::read(&bench.files[&(MIDNIGHT / DAY_MS + 1)]).expect("it is a trace");
    let of_the_last: Vec<&Told> = second.iter().skip(5).map(|entry| &entry.told).collect();
    let expected = [
        Told::Record(Record::State { platform: 2, state: "running" }),
        Told::Record(Record::Weighed { platform: 2, kb: 5_000, running: 1 }),
        Told::Record(Record::Asked { platform: 2, requests: 7 }),
    ];
    assert_eq!(of_the_last, expected.iter().collect::<Vec<_>>());
    // And back, by a clock that is set.
    bench.at.unix_ms -= DAY_MS;
    bench.ordered();
    assert_eq!(bench.begins().len(), 3);
}

#[test]
fn a_platform_that_is_found_or_changed_begins_anew_before_anything_is_told_of_it() {
    let mut bench = Bench::new(1);
    bench.recorder.set_up(0, integration(&platform("platform-0")));
    assert!(bench.ordered());
    assert_eq!(bench.begins().len(), 1, "it is as it was");
    bench.recorder.set_up(1, integration(&platform("found")));
    assert!(bench.recorder.put(bench.at, &Record::Died { platform: 1 }));
    bench.recorder.set_up(1, integration(&Platform { needs: vec!["platform-0".to_owned()], ..platform("found") }));
    bench.sights.push(Sight { state: "running", ..asleep() });
    bench.look();
    assert_eq!(bench.begins(), [(MIDNIGHT, false, 1), (MIDNIGHT, true, 2), (MIDNIGHT, true, 2)]);
    let states = bench.records().into_iter().filter(|record| matches!(record, Record::State { platform: 1, .. }));
    assert_eq!(states.count(), 1);
}

#[test]
fn nothing_secret_is_in_a_trace() {
    let secret = "hunter2";
    let mut secretive = platform("voice");
    secretive.command = vec![secret.to_owned(); 3];
    secretive.env = [(secret.to_owned(), secret.to_owned())].into();
    secretive.settings = [(secret.to_owned(), secret.to_owned())].into();
    secretive.directory = Some(secret.to_owned());
    assert!(format!("{secretive:?}").matches(secret).count() >= 6, "it is where it should be");
    let mut bench = Bench::new(0);
    bench.recorder.set_up(0, integration(&secretive));
    bench.sights = vec![asleep()];
    bench.look();
    bench.hand_over();
    let text: String = bench.files.into_values().collect();
    assert!(text.contains("voice") && !text.contains(secret), "{text}");
}

#[test]
fn a_day_never_takes_more_than_two_megabytes_and_orders_are_recorded_longest() {
    let mut bench = Bench::new(2);
    let (mut thin_at, mut spent_at) = (None, None);
    for step in 0..DAY_MS / 1_000 {
        bench.sights[0].kb = 100_000 + step % 2 * 50_000;
        bench.sights[1] = Sight { state: if step % 2 == 0 { "running" } else { "waiting" }, asked: step, ..asleep() };
        bench.look();
        bench.measured(1_000 + step % 2 * 500);
        bench.recorder.count_requests(bench.at);
        bench.hand_over();
        match Room::of(bench.recorder.day_bytes) {
            Room::All => {}
            Room::Thin => thin_at = thin_at.or(Some(step)),
            Room::OrdersOnly | Room::Nothing => spent_at = spent_at.or(Some(step)),
        }
        bench.passes(Duration::from_secs(1));
        if bench.at.unix_ms / DAY_MS > MIDNIGHT / DAY_MS {
            break;
        }
    }
    let (thin_at, spent_at) = (thin_at.expect("it is much"), spent_at.expect("it is too much"));
    let per_second = THIN_BYTES / thin_at;
    let per_second_thin = (SPENT_BYTES - THIN_BYTES) / (spent_at - thin_at);
    assert!(per_second_thin * 3 < per_second * 2, "{per_second} bytes, then {per_second_thin}");
    bench.at.unix_ms = MIDNIGHT + DAY_MS - 1;
    let before = bench.recorder.day_bytes;
    bench.measured(3_000);
    bench.look();
    assert!(bench.recorder.day_bytes - before < 30, "but for the clock, which was set");
    assert!(bench.ordered());
    while bench.ordered() {
        bench.hand_over();
    }
    let length = bench.files[&(MIDNIGHT / DAY_MS)].len() as u64;
    assert_eq!(length, bench.recorder.day_bytes);
    assert!(length <= DAY_BYTES_MAX, "{length}");
    bench.passes(Duration::from_secs(1));
    assert!(bench.ordered(), "another day");
    assert_eq!(bench.begins().len(), 2);
}

#[test]
fn what_was_recorded_before_a_restart_counts() {
    let mut bench = Bench::after(1, SPENT_BYTES);
    bench.measured(1_000);
    assert!(bench.ordered() && !bench.recorder.put(bench.at, &Record::Died { platform: 0 }));
    assert_eq!((bench.begins().len(), bench.records().len()), (1, 1));
    let mut bench = Bench::after(1, DAY_BYTES_MAX - 100);
    assert!(!bench.ordered(), "there is no room to begin");
    assert_eq!(bench.begins().len(), 0);
    assert!(
        !bench.recorder.is_look_due(bench.at.now) && bench.recorder.counts().1 > 0,
        "it is not tried all the while"
    );
    bench.passes(MINUTE);
    assert!(bench.recorder.is_look_due(bench.at.now));
}

#[test]
fn with_a_clerk_who_is_busy_memory_is_bounded_and_what_is_left_out_leaves_a_trace_that_can_be_read() {
    let mut bench = Bench::new(1);
    for minute in 0..20_000 {
        bench.sights[0].asked = minute * 3;
        bench.look();
        bench.recorder.count_requests(bench.at);
        bench.measured(1_000 + minute % 7 * 100);
        bench.passes(Duration::from_secs(1));
        assert!(bench.recorder.waiting() < WAITING_BYTES_MAX + 100);
    }
    assert!(bench.recorder.is_ripe() && bench.recorder.dropped > 0);
    bench.recorder.hand_over(|_, _| false);
    assert!(bench.recorder.is_ripe(), "it is kept");
    bench.hand_over();
    assert_eq!((bench.recorder.dropped, bench.recorder.waiting()), (0, 0));
    bench.recorder.count_requests(bench.at);
    let requests: u64 = bench
        .records()
        .iter()
        .map(|record| if let Record::Asked { requests, .. } = record { *requests } else { 0 })
        .sum();
    assert_eq!(requests, 19_999 * 3, "requests are counted later");
    assert_eq!(bench.told().last().map(|entry| entry.unix_ms), Some(bench.at.unix_ms));
}

#[test]
fn after_what_was_lost_it_begins_anew() {
    let mut bench = Bench::new(1);
    bench.ordered();
    let mut lost = 0;
    bench.recorder.hand_over(|_, text| {
        lost = std::mem::take(text).len() as u64;
        true
    });
    bench.passes(MINUTE);
    bench.ordered();
    bench.recorder.lost(MIDNIGHT / DAY_MS, lost);
    assert_eq!((bench.recorder.day_bytes, bench.recorder.waiting()), (0, 0));
    bench.passes(MINUTE);
    bench.ordered();
    assert_eq!(bench.begins(), [(MIDNIGHT + 120_000, true, 1)]);
    assert_eq!(bench.records(), [Record::Ordered { platform: 0, order: "start" }]);
}

#[test]
fn with_no_days_nothing_is_recorded() {
    let trace_days = Bounded::new(0).expect("it is in the range");
    let mut bench = Bench::new(1);
    bench.recorder = Recorder::new(Scaler { trace_days, ..Scaler::default() }, Vec::new(), (0, 0));
    bench.look();
    bench.measured(1_000);
    assert!(!bench.ordered() && bench.recorder.waiting() == 0);
}

/// A day of ten platforms with a sample every 30 s, weighed each second, of which five get requests; one in ten minutes something
/// sleeps or wakes, and for one hour RAM is short and looked at each second.
#[test]
fn a_usual_day_takes_a_fraction_of_what_it_may() {
    let mut bench = Bench::new(10);
    let mut random = Random::new(7);
    let mut used = 2_000;
    for second in 0..DAY_MS / 1_000 {
        let is_short = (40_000..43_600).contains(&second);
        for place in 0..10 {
            let sight = &mut bench.sights[place];
            if random.below(6_000) == 0 {
                let wakes = sight.running == 0;
                (sight.state, sight.running) = if wakes { ("running", 1) } else { ("asleep", 0) };
                sight.kb = if wakes { 30_000 + random.below(60_000) } else { 0 };
            }
            if sight.running > 0 {
                // Some noise, and memory that grows with requests.
                let noise = random.below(400) as i64 - 200;
                sight.kb = sight.kb.saturating_add_signed(noise);
                if place < 5 && random.below(10) == 0 {
                    sight.asked += 1 + random.below(5);
                    sight.kb += random.below(500);
                }
            }
        }
        bench.look();
        if is_short || second % 30 == 0 {
            used = (used as i64 + random.below(41) as i64 - 20).clamp(1_000, 3_500) as u64;
            bench.measured(used);
        }
        if second % 60 == 0 {
            bench.recorder.count_requests(bench.at);
            bench.hand_over();
        }
        bench.passes(Duration::from_secs(1));
    }
    bench.hand_over();
    let bytes = bench.files[&(MIDNIGHT / DAY_MS)].len();
    // Not by a macro: what those print is shown only of tests that fail.
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("a day of ten platforms: {bytes} bytes\n"));
    assert!((50_000..1_000_000).contains(&bytes), "{bytes}");
}
