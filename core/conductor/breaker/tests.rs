use super::*;
use crate::config::{Bounded, Breaker as Settings};

struct Bench {
    breaker: Breaker,
    rules: Rules,
    random: Random,
    now: Time,
    next: u32,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(&Settings::default())
    }

    fn with(settings: &Settings) -> Bench {
        Bench {
            breaker: Breaker::default(),
            rules: Rules::of_instance(settings),
            random: Random::new(1),
            now: Time::ZERO,
            next: 0,
        }
    }

    fn admit(&mut self) -> Ticket {
        assert!(self.breaker.admits());
        self.next += 1;
        let ticket = Ticket::new(self.next, 0);
        self.breaker.admit(ticket);
        ticket
    }

    /// A call that ends so; a breaker that trips is opened.
    fn end(&mut self, ticket: Ticket, finding: Finding) -> Option<Time> {
        let cause = self.breaker.record(self.now, ticket, finding, false, &self.rules);
        cause.map(|_| self.breaker.open(self.now, &self.rules, &mut self.random))
    }

    fn call(&mut self, finding: Finding) -> Option<Time> {
        let ticket = self.admit();
        self.end(ticket, finding)
    }

    fn probe(&mut self, finding: Finding) -> Option<Time> {
        let cause = self.breaker.probed(finding);
        cause.map(|_| self.breaker.open(self.now, &self.rules, &mut self.random))
    }

    fn open(&mut self) -> Time {
        loop {
            if let Some(until) = self.call(BAD) {
                return until;
            }
        }
    }

    fn half_open(&mut self) {
        self.now = self.open();
        assert!(self.breaker.half_open());
    }
}

const BAD: Finding = Finding::Bad(Mode::Application);

fn bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(number: u64) -> Bounded<LOW, HIGH, DEFAULT> {
    Bounded::new(number).expect("the test stays in the range")
}

#[test]
fn three_failures_in_a_row_open_it_for_thirty_seconds() {
    let mut bench = Bench::new();
    assert_eq!([bench.call(BAD), bench.call(BAD)], [None, None]);
    let until = bench.call(BAD).expect("the third failure opens it");
    assert!(until >= Time::from_millis(30_000) && until < Time::from_millis(33_000), "{until:?}");
    assert!(!bench.breaker.admits());
}

#[test]
fn a_success_between_failures_starts_the_count_again_and_a_mistake_does_not_count() {
    let mut bench = Bench::new();
    for finding in [BAD, BAD, Finding::Good, BAD, Finding::Nothing, BAD] {
        assert_eq!(bench.call(finding), None);
    }
}

#[test]
fn each_kind_of_failure_counts_against_its_own_number() {
    let settings = Settings { timeouts: bounded(2), application_errors: bounded(6), ..Settings::default() };
    let mut bench = Bench::with(&settings);
    let [timeout, error] = [Finding::Bad(Mode::Timeout), BAD];
    // A half and three sixths are one.
    for finding in [error, error, timeout] {
        assert_eq!(bench.call(finding), None);
    }
    assert!(bench.call(error).is_some());
    let mut bench = Bench::with(&settings);
    assert_eq!(bench.call(timeout), None);
    assert!(bench.call(timeout).is_some());
    let mut bench = Bench::with(&settings);
    let broken = Finding::Bad(Mode::Transport);
    assert_eq!([bench.call(broken), bench.call(broken)], [None, None], "as many as `failures`");
    assert!(bench.call(broken).is_some());
}

#[test]
fn half_of_at_least_ten_calls_within_the_window_open_it_though_no_two_failed_in_a_row() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        assert_eq!([bench.call(BAD), bench.call(Finding::Good)], [None, None]);
    }
    assert_eq!(bench.call(BAD), None, "nine calls have no rate");
    assert!(bench.call(Finding::Good).is_some(), "five of ten failed, and it is the tenth that shows it");
}

#[test]
fn what_is_older_than_the_window_is_forgotten_a_tenth_at_a_time() {
    let mut bench = Bench::new();
    for second in 0..10 {
        bench.now = Time::from_millis(second * 3_000);
        assert_eq!(bench.call(if second % 2 == 0 && second > 0 { BAD } else { Finding::Good }), None);
    }
    assert_eq!(bench.breaker.recent(bench.now, &bench.rules), Tally { calls: 10, failures: 4, slow: 0 });
    bench.now = Time::from_millis(30_000);
    assert_eq!(bench.call(Finding::Good), None);
    assert_eq!(bench.breaker.recent(bench.now, &bench.rules).calls, 10, "the first tenth is gone");
    bench.now = Time::from_millis(300_000);
    assert_eq!(bench.breaker.recent(bench.now, &bench.rules), Tally::default(), "though nobody has called since");
    assert_eq!(bench.call(Finding::Good), None);
    assert_eq!(bench.breaker.recent(bench.now, &bench.rules), Tally { calls: 1, failures: 0, slow: 0 });
}

#[test]
fn slow_calls_open_it_though_none_failed() {
    let mut bench = Bench::new();
    let mut causes = Vec::new();
    for call in 0..10 {
        let ticket = bench.admit();
        causes.extend(bench.breaker.record(bench.now, ticket, Finding::Good, call % 2 == 0, &bench.rules));
    }
    assert_eq!(causes, [Cause::SlowRate { slow: 5, calls: 10 }]);
}

#[test]
fn a_rate_of_zero_percent_is_none() {
    let off = Settings { failure_percent: bounded(0), slow_percent: bounded(0), ..Settings::default() };
    let mut bench = Bench::with(&off);
    for _ in 0..100 {
        assert_eq!([bench.call(BAD), bench.call(BAD), bench.call(Finding::Good)], [None; 3]);
    }
}

#[test]
fn one_that_is_acquitted_is_closed_and_counts_from_nothing() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        let ticket = bench.admit();
        let _ = bench.breaker.record(bench.now, ticket, BAD, false, &bench.rules);
    }
    bench.breaker.acquit();
    assert_eq!([bench.call(BAD), bench.call(BAD)], [None, None]);
    assert!(bench.call(BAD).is_some());
}

#[test]
fn nothing_moves_the_deadline_of_an_open_breaker() {
    let mut bench = Bench::new();
    let early = bench.admit();
    let until = bench.open();
    bench.now = Time::from_millis(20_000);
    for finding in [BAD, Finding::Good, Finding::Nothing] {
        assert_eq!(bench.probe(finding), None);
        assert_eq!(bench.end(early, finding), None);
        assert_eq!(bench.breaker.open_until(), Some(until));
    }
}

#[test]
fn half_open_admits_nobody_before_a_probe_has_passed() {
    let mut bench = Bench::new();
    bench.half_open();
    assert!(!bench.breaker.admits());
    bench.probe(Finding::Good);
    assert!(bench.breaker.admits());
}

#[test]
fn half_open_admits_one_trial_at_a_time() {
    let mut bench = Bench::new();
    bench.half_open();
    bench.probe(Finding::Good);
    let trial = bench.admit();
    assert!(!bench.breaker.admits());
    bench.end(trial, Finding::Good);
    assert_eq!(bench.breaker.name(), "closed");
}

#[test]
fn an_abandoned_trial_returns_its_permit() {
    let mut bench = Bench::new();
    bench.half_open();
    bench.probe(Finding::Good);
    let trial = bench.admit();
    bench.end(trial, Finding::Nothing);
    assert!(bench.breaker.admits());
}

#[test]
fn a_trial_whose_answer_flows_or_is_late_lets_another_try_and_does_not_count_any_more() {
    let mut bench = Bench::new();
    bench.half_open();
    bench.probe(Finding::Good);
    let flowing = bench.admit();
    assert!(bench.breaker.give_back(flowing));
    assert!(bench.breaker.admits());
    let trial = bench.admit();
    bench.end(flowing, BAD);
    assert_eq!(bench.breaker.name(), "half_open");
    bench.end(trial, Finding::Good);
    assert_eq!(bench.breaker.name(), "closed");
    assert!(!bench.breaker.give_back(trial));
}

#[test]
fn another_requests_end_does_not_return_the_trial() {
    let mut bench = Bench::new();
    let early = bench.admit();
    bench.half_open();
    bench.probe(Finding::Good);
    bench.admit();
    bench.end(early, Finding::Good);
    assert_eq!(bench.breaker.name(), "half_open");
    assert!(!bench.breaker.admits());
}

#[test]
fn failed_trials_double_the_wait_up_to_five_minutes_and_a_good_request_forgets_them() {
    let mut bench = Bench::new();
    bench.half_open();
    let mut waits = Vec::new();
    for _ in 0..5 {
        let until = bench.probe(BAD).expect("a failed trial opens it again");
        waits.push((until - bench.now).as_secs());
        bench.now = until;
        assert!(bench.breaker.half_open());
    }
    for (wait, least) in waits.iter().zip([60, 120, 240, 300, 300]) {
        assert!((least..=least + least / 10).contains(wait), "{waits:?}");
    }
    bench.probe(Finding::Good);
    let trial = bench.admit();
    bench.end(trial, Finding::Good);
    let until = bench.open();
    assert!((until - bench.now).as_secs() <= 33);
}

#[test]
fn two_probes_in_a_row_close_it_when_no_request_comes() {
    let mut bench = Bench::new();
    bench.half_open();
    bench.probe(Finding::Good);
    bench.probe(Finding::Good);
    assert_eq!(bench.breaker.name(), "closed");
}

#[test]
fn closing_by_probes_alone_does_not_forget_how_often_it_opened() {
    let mut bench = Bench::new();
    bench.half_open();
    bench.probe(Finding::Good);
    bench.probe(Finding::Good);
    let until = bench.open();
    assert!((until - bench.now).as_secs() >= 60);
}

#[test]
fn causes_stand_in_the_table_under_their_names() {
    let nothing = Duration::ZERO;
    let causes = [
        Cause::InARow(Mode::Timeout),
        Cause::InARow(Mode::Transport),
        Cause::InARow(Mode::Application),
        Cause::FailureRate { failures: 0, calls: 0 },
        Cause::SlowRate { slow: 0, calls: 0 },
        Cause::TrialFailed,
        Cause::ProbeFailed,
        Cause::Slower { usual: nothing, peers: nothing },
        Cause::FailsMore { percent: 0, peers: 0 },
    ];
    assert_eq!(causes.map(Cause::name), CAUSES);
    assert_eq!(causes.map(Cause::index), std::array::from_fn(|index| index));
}

/// A breaker as slow and plain as can be: it keeps every call and counts anew each time.
struct Naive {
    numbers: [u64; 3],
    settings: Settings,
    /// Since the last good one.
    row: Vec<Mode>,
    /// Which tenth of a window it ended in, counted from the start of time; whether it failed; whether it was slow.
    calls: Vec<(u64, bool, bool)>,
    state: NaiveState,
    opened: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum NaiveState {
    Closed,
    Open(Time),
    /// A probe has to come first; probes that have passed; who tries.
    Trying {
        needs_probe: bool,
        passes: u32,
        by: Option<Ticket>,
    },
}

impl Naive {
    fn admits(&self) -> bool {
        match self.state {
            NaiveState::Closed => true,
            NaiveState::Open(_) => false,
            NaiveState::Trying { needs_probe, by, .. } => !needs_probe && by.is_none(),
        }
    }

    fn admit(&mut self, ticket: Ticket) {
        if let NaiveState::Trying { by, .. } = &mut self.state {
            *by = Some(ticket);
        }
    }

    /// Whether it trips.
    fn end(&mut self, now: Time, ticket: Ticket, finding: Finding, is_slow: bool) -> bool {
        match self.state {
            NaiveState::Open(_) => false,
            NaiveState::Closed => self.end_closed(now, finding, is_slow),
            NaiveState::Trying { by, .. } if by != Some(ticket) => false,
            NaiveState::Trying { passes, .. } => match finding {
                Finding::Good => {
                    self.clear();
                    (self.state, self.opened) = (NaiveState::Closed, 0);
                    false
                }
                Finding::Bad(_) => {
                    self.state = NaiveState::Trying { needs_probe: true, passes, by: None };
                    true
                }
                Finding::Late | Finding::Nothing => {
                    self.state = NaiveState::Trying { needs_probe: false, passes, by: None };
                    false
                }
            },
        }
    }

    fn end_closed(&mut self, now: Time, finding: Finding, is_slow: bool) -> bool {
        let (is_bad, is_slow) = match finding {
            Finding::Nothing => return false,
            Finding::Late => (false, true),
            Finding::Good => {
                self.row.clear();
                self.opened = 0;
                (false, is_slow)
            }
            Finding::Bad(mode) => {
                self.row.push(mode);
                (true, is_slow)
            }
        };
        let tenth = self.settings.window_ms.value() * 100_000;
        let present = now.as_nanos() / tenth;
        self.calls.push((present, is_bad, is_slow));
        let recent: Vec<_> = self.calls.iter().filter(|(bucket, _, _)| bucket + 10 > present).collect();
        let share = |part: usize, percent: u64| percent > 0 && part as u64 * 100 >= percent * recent.len() as u64;
        let failures = recent.iter().filter(|(_, is_bad, _)| *is_bad).count();
        let slow = recent.iter().filter(|(_, _, is_slow)| *is_slow).count();
        let has_rate = recent.len() as u64 >= self.settings.calls_min.value();
        // a/x + b/y + c/z >= 1, without fractions.
        let [x, y, z] = self.numbers.map(u128::from);
        let count = |mode: Mode| self.row.iter().filter(|one| **one == mode).count() as u128;
        let harm = count(Mode::Timeout) * y * z + count(Mode::Transport) * x * z + count(Mode::Application) * x * y;
        is_bad && harm >= x * y * z
            || has_rate
                && (share(failures, self.settings.failure_percent.value())
                    || share(slow, self.settings.slow_percent.value()))
    }

    fn probed(&mut self, finding: Finding) -> bool {
        let NaiveState::Trying { needs_probe: _, passes, by } = self.state else { return false };
        let passes = passes + u32::from(finding == Finding::Good);
        if finding == Finding::Good && passes >= 2 && by.is_none() {
            self.clear();
            self.state = NaiveState::Closed;
            return false;
        }
        if let Finding::Bad(_) = finding {
            return true;
        }
        self.state = NaiveState::Trying { needs_probe: false, passes, by };
        false
    }

    fn open(&mut self, until: Time) {
        self.clear();
        (self.state, self.opened) = (NaiveState::Open(until), self.opened + 1);
    }

    fn clear(&mut self) {
        self.row.clear();
        self.calls.clear();
    }
}

fn drawn(random: &mut Random) -> Settings {
    let mut below = |high: u64| random.below(high);
    let open_ms = 10 + below(5_000);
    Settings {
        failures: bounded(1 + below(6)),
        timeouts: bounded(below(8)),
        transport_errors: bounded(below(8)),
        application_errors: bounded(below(8)),
        window_ms: bounded(100 + below(20_000)),
        calls_min: bounded(1 + below(20)),
        failure_percent: bounded(below(101)),
        slow_percent: bounded(below(101)),
        open_ms: bounded(open_ms),
        open_max_ms: bounded(open_ms << below(5)),
        ..Settings::default()
    }
}

#[test]
fn over_random_traces_it_does_what_a_plain_one_does_that_counts_everything_anew() {
    let mut trips = 0;
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let settings = drawn(&mut random);
        let mut bench = Bench::with(&settings);
        let own = |number: u64| if number == 0 { settings.failures.value() } else { number };
        let mut naive = Naive {
            numbers: [
                settings.timeouts.value(),
                settings.transport_errors.value(),
                settings.application_errors.value(),
            ]
            .map(own),
            settings,
            row: Vec::new(),
            calls: Vec::new(),
            state: NaiveState::Closed,
            opened: 0,
        };
        let mut out: Vec<Ticket> = Vec::new();
        let [bad, slow] = [random.below(1000) as u32, random.below(1000) as u32];
        for step in 0..600 {
            let most = Duration::from_millis(1 << random.below(13));
            bench.now = bench.now + random.span_below(most);
            let finding = |random: &mut Random| match random.below(12) {
                0 => Finding::Nothing,
                1 => Finding::Late,
                _ if random.chance(bad) => {
                    Finding::Bad([Mode::Timeout, Mode::Transport, Mode::Application][random.below(3) as usize])
                }
                _ => Finding::Good,
            };
            let trip = match random.below(8) {
                0 => {
                    let what = finding(&mut random);
                    (bench.breaker.probed(what).is_some(), naive.probed(what))
                }
                1 if bench.breaker.open_until().is_some_and(|until| until <= bench.now) => {
                    bench.breaker.half_open();
                    naive.state = NaiveState::Trying { needs_probe: true, passes: 0, by: None };
                    (false, false)
                }
                2..=4 if !out.is_empty() => {
                    let ticket = out.swap_remove(random.below(out.len() as u64) as usize);
                    let (what, is_slow) = (finding(&mut random), random.chance(slow));
                    let trips = bench.breaker.record(bench.now, ticket, what, is_slow, &bench.rules).is_some();
                    (trips, naive.end(bench.now, ticket, what, is_slow))
                }
                _ if bench.breaker.admits() => {
                    assert!(naive.admits(), "seed {seed}, step {step}");
                    let ticket = bench.admit();
                    naive.admit(ticket);
                    out.push(ticket);
                    (false, false)
                }
                _ => (false, false),
            };
            assert_eq!(trip.0, trip.1, "seed {seed}, step {step}: {:?} {:?}", bench.breaker, naive.state);
            if trip.0 {
                trips += 1;
                if random.below(4) == 0 {
                    bench.breaker.acquit();
                    naive.clear();
                    naive.state = NaiveState::Closed;
                } else {
                    let until = bench.breaker.open(bench.now, &bench.rules, &mut bench.random);
                    naive.open(until);
                    let least =
                        (settings.open_ms.value() << (naive.opened - 1).min(16)).min(settings.open_max_ms.value());
                    let wait = (until - bench.now).as_micros() as u64;
                    assert!((least * 1000..=least * 1100).contains(&wait), "seed {seed}, step {step}: {wait} {least}");
                }
            }
            let state = match naive.state {
                NaiveState::Closed => "closed",
                NaiveState::Open(_) => "open",
                NaiveState::Trying { .. } => "half_open",
            };
            assert_eq!(
                (bench.breaker.name(), bench.breaker.admits()),
                (state, naive.admits()),
                "seed {seed}, step {step}"
            );
            bench.breaker.check(&bench.rules);
        }
    }
    assert!(trips > 1_000, "only {trips} trips were compared");
}
