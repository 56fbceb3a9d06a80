//! Whether an instance is well, by what its probes found.
//!
//! ```text
//!             pass                   fall failures in a row
//!  Unproven ─────────► Up ─────────────────────────────────► Down
//!     │                ▲                                       │
//!     │                └────────── rise passes in a row ───────┘
//!     └── fail ──► Down
//! ```
//!
//! Busy is neither pass nor fail and leaves everything as it is. An instance that says that it is not ready is taken out
//! like one that fails (readiness), but only failures in a row have it started anew (liveness).

use std::time::Duration;

use crate::config;
use crate::event::Verdict;
use crate::time::Time;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing is known yet; the first verdict decides.
    Unproven,
    Up {
        failures: u32,
    },
    Down {
        passes: u32,
    },
}

/// What a verdict changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    None,
    /// It is out.
    WentDown,
    /// It is back, or proven for the first time.
    CameUp,
}

/// The health of one run of an instance.
#[derive(Clone, Debug)]
pub struct Health {
    standing: Standing,
    /// When the probe that is under way was sent.
    probed_at: Option<Time>,
    slow: bool,
    last_took: Option<Duration>,
    last_at: Option<Time>,
    /// It has been up in this run: what has never been up is looked for more often.
    was_up: bool,
    /// Failures in a row, but for answers that it is not ready.
    failures: u32,
    /// When the first of the failures in a row was asked for.
    failing_since: Option<Time>,
    /// When it last went out or came back.
    turned_at: Option<Time>,
    /// The last verdict was that it is not ready.
    is_unready: bool,
    /// The last probe was left out because of an answer.
    is_spared: bool,
}

impl Health {
    /// Of an instance that has just shown, by its handshake, that it is well (`proven`), or of which nothing is
    /// known.
    pub fn new(proven: bool) -> Health {
        Health {
            standing: if proven { Standing::Up { failures: 0 } } else { Standing::Unproven },
            probed_at: None,
            slow: false,
            last_took: None,
            last_at: None,
            was_up: proven,
            failures: 0,
            failing_since: None,
            turned_at: None,
            is_unready: false,
            is_spared: false,
        }
    }

    /// Whether a probe may be left out because something else has shown that it is well: nothing speaks against it, and
    /// the one before was not left out.
    pub fn may_be_spared(&self) -> bool {
        self.standing == Standing::Up { failures: 0 } && !self.slow && !self.is_spared && !self.is_waiting()
    }

    /// A probe was left out.
    pub fn spared(&mut self) {
        self.is_spared = true;
    }

    /// A probe was sent.
    pub fn sent(&mut self, now: Time) {
        self.probed_at = Some(now);
        self.is_spared = false;
    }

    /// When the probe that is under way was sent.
    pub fn sent_at(&self) -> Option<Time> {
        self.probed_at
    }

    /// Whether a probe is under way.
    pub fn is_waiting(&self) -> bool {
        self.probed_at.is_some()
    }

    /// The probe that is under way came back; without one nothing happens. Returns what changed.
    pub fn take(&mut self, now: Time, verdict: Verdict, settings: &config::Health) -> Turn {
        let Some(sent) = self.probed_at.take() else { return Turn::None };
        if verdict != Verdict::Busy {
            self.last_took = Some(now - sent);
            self.last_at = Some(now);
            self.slow = now - sent > settings.degraded_ms.millis();
        }
        self.was_up |= verdict == Verdict::Pass;
        match verdict {
            Verdict::Busy => {}
            Verdict::Pass => (self.failures, self.failing_since) = (0, None),
            Verdict::Unready => (self.failures, self.failing_since) = (0, self.failing_since.or(Some(sent))),
            Verdict::Fail => {
                self.failures = self.failures.saturating_add(1);
                self.failing_since = self.failing_since.or(Some(sent));
            }
        }
        let turn = self.turn(verdict, settings);
        if turn != Turn::None {
            self.turned_at = Some(now);
        }
        turn
    }

    fn turn(&mut self, verdict: Verdict, settings: &config::Health) -> Turn {
        if verdict != Verdict::Busy {
            self.is_unready = verdict == Verdict::Unready;
        }
        match (self.standing, verdict) {
            (_, Verdict::Busy) => Turn::None,
            (Standing::Unproven, Verdict::Pass) => {
                self.standing = Standing::Up { failures: 0 };
                Turn::CameUp
            }
            (Standing::Unproven, Verdict::Fail | Verdict::Unready) => {
                self.standing = Standing::Down { passes: 0 };
                Turn::WentDown
            }
            (Standing::Up { .. }, Verdict::Pass) => {
                self.standing = Standing::Up { failures: 0 };
                Turn::None
            }
            (Standing::Up { failures }, Verdict::Fail | Verdict::Unready) if failures + 1 < settings.fall.count() => {
                self.standing = Standing::Up { failures: failures + 1 };
                Turn::None
            }
            (Standing::Up { .. }, Verdict::Fail | Verdict::Unready) => {
                self.standing = Standing::Down { passes: 0 };
                Turn::WentDown
            }
            (Standing::Down { passes }, Verdict::Pass) if passes + 1 < settings.rise.count() => {
                self.standing = Standing::Down { passes: passes + 1 };
                Turn::None
            }
            (Standing::Down { .. }, Verdict::Pass) => {
                self.standing = Standing::Up { failures: 0 };
                Turn::CameUp
            }
            (Standing::Down { .. }, Verdict::Fail | Verdict::Unready) => {
                self.standing = Standing::Down { passes: 0 };
                Turn::None
            }
        }
    }

    /// Whether requests may go to it.
    pub fn is_up(&self) -> bool {
        matches!(self.standing, Standing::Up { .. })
    }

    /// Whether nothing is known of it yet.
    pub fn is_unproven(&self) -> bool {
        self.standing == Standing::Unproven
    }

    /// Whether enough probes failed to take it out.
    pub fn is_down(&self) -> bool {
        matches!(self.standing, Standing::Down { .. })
    }

    /// Whether so many probes in a row failed that it is to be started anew.
    pub fn is_dead(&self, settings: &config::Health) -> bool {
        let fall = settings.restart_fall.count().max(settings.fall.count());
        self.is_down() && self.failures >= fall
    }

    /// What it failed so far was not its fault: it has to fail as often again to be dead.
    pub fn excuse(&mut self) {
        (self.failures, self.failing_since) = (0, None);
    }

    /// When the first of the failures in a row was asked for, if the last probe did not pass.
    pub fn failing_since(&self) -> Option<Time> {
        self.failing_since
    }

    /// When it last went out or came back.
    pub fn turned_at(&self) -> Option<Time> {
        self.turned_at
    }

    /// Whether it said last that it is alive and wants no requests.
    pub fn is_unready(&self) -> bool {
        self.is_unready
    }

    /// Whether it has been up since it was first looked at.
    pub fn was_up(&self) -> bool {
        self.was_up
    }

    /// Up, but its last answer was slow.
    pub fn is_degraded(&self) -> bool {
        self.is_up() && self.slow
    }

    /// The name in status and metrics.
    pub fn name(&self) -> &'static str {
        match self.standing {
            Standing::Unproven => "unproven",
            Standing::Up { .. } if self.slow => "degraded",
            Standing::Up { .. } => "up",
            Standing::Down { .. } => "down",
        }
    }

    /// How long to wait before the next probe: shorter in doubt, longer while down.
    pub fn interval(&self, settings: &config::Health) -> Duration {
        match self.standing {
            Standing::Unproven | Standing::Up { failures: 0 } => settings.interval_ms.millis(),
            Standing::Up { .. } => settings.doubt_interval_ms.millis(),
            Standing::Down { passes: 0 } if self.was_up => settings.down_interval_ms.millis(),
            Standing::Down { .. } => settings.doubt_interval_ms.millis(),
        }
    }

    /// How long the last probe took that was not busy, and when it came back.
    pub fn last(&self) -> Option<(Duration, Time)> {
        self.last_took.zip(self.last_at)
    }
}

/// Where in the interval a slot's probes fall: the golden ratio spreads any number of slots evenly, and a slot that
/// is added moves no other (Knuth, TAOCP 6.4, on multiplicative hashing).
pub fn phase(slot: u32, interval: Duration) -> Duration {
    let fraction = slot.wrapping_mul(2_654_435_769);
    Duration::from_nanos(((interval.as_nanos() * u128::from(fraction)) >> 32) as u64)
}

/// The parts of an interval that probes fall on, so that those of many instances share a wake-up: for a thousand
/// instances, waking up costs far more than probing.
const PHASES: u128 = 16;

/// The moment next to this one that probes at this interval fall on, the same for all instances. So what is probed once in
/// an interval stays where it is in it, however late each wake-up is.
pub fn on_grid(at: Time, interval: Duration) -> Time {
    let nanos = u128::from(at.as_nanos());
    let step = (interval.as_nanos() / PHASES).max(1);
    Time::from_nanos(((nanos + step / 2) / step * step) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(health: &mut Health, verdict: Verdict) -> Turn {
        health.sent(Time::ZERO);
        health.take(Time::from_millis(1), verdict, &config::Health::default())
    }

    #[test]
    fn three_failures_in_a_row_take_it_out_and_two_passes_bring_it_back() {
        let mut health = Health::new(true);
        assert_eq!(probe(&mut health, Verdict::Fail), Turn::None);
        assert_eq!(probe(&mut health, Verdict::Fail), Turn::None);
        assert!(health.is_up());
        assert_eq!(probe(&mut health, Verdict::Fail), Turn::WentDown);
        assert_eq!(probe(&mut health, Verdict::Pass), Turn::None);
        assert!(!health.is_up());
        assert_eq!(probe(&mut health, Verdict::Pass), Turn::CameUp);
        assert!(health.is_up());
    }

    #[test]
    fn a_pass_between_failures_starts_the_count_again() {
        let mut health = Health::new(true);
        for verdict in [Verdict::Fail, Verdict::Fail, Verdict::Pass, Verdict::Fail, Verdict::Fail] {
            assert_eq!(probe(&mut health, verdict), Turn::None);
        }
    }

    #[test]
    fn busy_is_neither_pass_nor_fail() {
        let mut health = Health::new(true);
        probe(&mut health, Verdict::Fail);
        probe(&mut health, Verdict::Fail);
        assert_eq!(probe(&mut health, Verdict::Busy), Turn::None);
        assert!(health.is_up());
        assert_eq!(probe(&mut health, Verdict::Fail), Turn::WentDown);
    }

    #[test]
    fn one_that_is_not_ready_is_taken_out_and_is_not_dead() {
        let settings = config::Health::default();
        let mut health = Health::new(true);
        for _ in 0..2 {
            assert_eq!(probe(&mut health, Verdict::Unready), Turn::None);
        }
        assert_eq!(probe(&mut health, Verdict::Unready), Turn::WentDown);
        assert!(!health.is_dead(&settings));
        for _ in 0..2 {
            probe(&mut health, Verdict::Fail);
            assert!(!health.is_dead(&settings));
        }
        probe(&mut health, Verdict::Fail);
        assert!(health.is_dead(&settings));
    }

    #[test]
    fn one_that_fails_may_be_out_for_long_before_it_is_started_anew() {
        let settings =
            config::Health { restart_fall: config::Bounded::new(5).expect("it is in the range"), ..Default::default() };
        let mut health = Health::new(true);
        let dead: Vec<bool> = (0..5)
            .map(|_| {
                probe(&mut health, Verdict::Fail);
                health.is_dead(&settings)
            })
            .collect();
        assert_eq!(dead, [false, false, false, false, true]);
    }

    #[test]
    fn a_probe_is_left_out_only_if_all_is_well_and_never_twice_in_a_row() {
        let mut health = Health::new(true);
        assert!(health.may_be_spared());
        health.spared();
        assert!(!health.may_be_spared());
        probe(&mut health, Verdict::Pass);
        assert!(health.may_be_spared());
        probe(&mut health, Verdict::Fail);
        assert!(!health.may_be_spared());
    }

    #[test]
    fn a_verdict_without_a_probe_under_way_changes_nothing() {
        let mut health = Health::new(true);
        for _ in 0..5 {
            assert_eq!(health.take(Time::ZERO, Verdict::Fail, &config::Health::default()), Turn::None);
        }
        assert!(health.is_up());
    }

    #[test]
    fn a_slow_pass_degrades_and_a_fast_one_mends() {
        let mut health = Health::new(true);
        health.sent(Time::ZERO);
        health.take(Time::from_millis(201), Verdict::Pass, &config::Health::default());
        assert!(health.is_degraded() && health.is_up());
        probe(&mut health, Verdict::Pass);
        assert!(!health.is_degraded());
    }

    #[test]
    fn probes_come_faster_in_doubt_and_slower_while_down() {
        let settings = config::Health::default();
        let mut health = Health::new(true);
        let mut intervals = vec![health.interval(&settings).as_secs()];
        for verdict in [Verdict::Fail, Verdict::Fail, Verdict::Fail, Verdict::Pass, Verdict::Pass] {
            probe(&mut health, verdict);
            intervals.push(health.interval(&settings).as_secs());
        }
        assert_eq!(intervals, [5, 1, 1, 10, 1, 5]);
    }

    #[test]
    fn what_has_never_been_up_is_looked_for_every_second() {
        let mut health = Health::new(false);
        assert_eq!(probe(&mut health, Verdict::Fail), Turn::WentDown);
        assert_eq!(health.interval(&config::Health::default()), Duration::from_secs(1));
    }

    #[test]
    fn probes_of_many_slots_share_sixteen_moments_evenly_and_stay_there() {
        let interval = Duration::from_secs(5);
        let mut moments = std::collections::BTreeMap::new();
        for slot in 0..1000 {
            let mut at = on_grid(Time::ZERO + phase(slot, interval), interval);
            let first = at.as_nanos() % 5_000_000_000;
            for round in 0..100 {
                // Each wake-up is a little late.
                at = on_grid(at + Duration::from_micros(round * 7) + interval, interval);
            }
            assert_eq!(at.as_nanos() % 5_000_000_000, first);
            *moments.entry(first).or_insert(0) += 1;
        }
        assert_eq!(moments.len(), 16);
        assert!(moments.values().all(|count| (55..=70).contains(count)), "{moments:?}");
    }

    #[test]
    fn phases_of_many_slots_leave_no_crowd() {
        let interval = Duration::from_secs(5);
        let mut phases: Vec<Duration> = (0..1000).map(|slot| phase(slot, interval)).collect();
        phases.sort();
        let widest = phases.windows(2).map(|pair| pair[1] - pair[0]).max();
        let narrowest = phases.windows(2).map(|pair| pair[1] - pair[0]).min();
        assert!(widest < Some(Duration::from_millis(15)), "{widest:?}");
        assert!(narrowest > Some(Duration::from_millis(1)), "{narrowest:?}");
    }
}
