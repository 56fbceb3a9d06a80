//! Instances that are far worse than their peers are cut off like those that fail.
//!
//! Compared are instances that take requests and have had enough calls lately. Never are more than half of a platform's
//! instances out for this: then it is not they that are worse.

use std::time::Duration;

use crate::breaker::Cause;
use crate::event::Action;
use crate::timers::Timer;
use crate::Conductor;

/// What is compared of an instance.
#[derive(Clone, Copy, Debug)]
struct Showing {
    slot: usize,
    usual: Duration,
    failure_percent: u32,
}

impl Conductor {
    /// A platform has work: its instances are compared, if it has several, until it has none any more.
    pub(crate) fn compare_soon(&mut self, index: usize) {
        let platform = &mut self.platforms[index];
        if platform.is_compared || platform.count < 2 || platform.care.outliers.interval_ms.value() == 0 {
            return;
        }
        platform.is_compared = true;
        let interval = platform.care.outliers.interval_ms.millis();
        self.set_timer(Timer::Compare(index as u32), self.now + interval);
    }

    pub(crate) fn compare_due(&mut self, index: u32, out: &mut Vec<Action>) {
        let index = index as usize;
        let platform = &mut self.platforms[index];
        platform.is_compared = false;
        if platform.live > 0 {
            self.compare_soon(index);
        }
        if self.is_excused(index) {
            return;
        }
        while let Some((slot, cause)) = self.worst_of(index) {
            self.tripped(slot, cause, out);
        }
        self.pump(index, out);
    }

    /// The instance that is the worst, if it is far worse than the others and may be cut off.
    fn worst_of(&self, index: usize) -> Option<(usize, Cause)> {
        let settings = &self.platforms[index].care.outliers;
        let ready = self.platforms[index].slots().filter(|slot| {
            let entry = &self.slots[*slot];
            entry.life.is_ready() && !entry.is_candidate
        });
        let (mut count, mut out) = (0, 0);
        let mut showings = Vec::new();
        for slot in ready {
            let entry = &self.slots[slot];
            count += 1;
            let is_in_use = entry.health.is_up() && entry.breaker.is_closed() && entry.accused.is_none();
            out += usize::from(!is_in_use);
            let recent = entry.breaker.recent(self.now, &self.platforms[index].care.instance_rules);
            if is_in_use && recent.calls >= settings.calls_min.count() {
                let failure_percent = (u64::from(recent.failures) * 100 / u64::from(recent.calls)) as u32;
                showings.push(Showing { slot, usual: entry.usual, failure_percent });
            }
        }
        if (out + 1) * 2 > count {
            return None;
        }
        let found = |one: &Showing| Some((one.slot, cause_of(one, &showings, settings)?));
        showings.iter().rev().filter_map(found).max_by_key(|(_, cause)| match *cause {
            // Failures are worse than slowness.
            Cause::FailsMore { percent, peers } => (1, u128::from(percent - peers)),
            Cause::Slower { usual, .. } => (0, usual.as_nanos()),
            _ => (0, 0),
        })
    }
}

fn cause_of(one: &Showing, all: &[Showing], settings: &crate::config::Outliers) -> Option<Cause> {
    let others = all.iter().filter(|other| other.slot != one.slot);
    let count = others.clone().count() as u32;
    if count == 0 {
        return None;
    }
    let peers = others.clone().map(|other| other.failure_percent).sum::<u32>() / count;
    let points = settings.failure_points.count();
    if points > 0 && one.failure_percent >= peers + points {
        return Some(Cause::FailsMore { percent: one.failure_percent, peers });
    }
    let mut usuals: Vec<Duration> = others.map(|other| other.usual).collect();
    usuals.sort_unstable();
    // The upper of two in the middle, so that it takes more to be cut off.
    let peers = usuals[usuals.len() / 2];
    let times = settings.latency_times.count();
    let is_slower = times > 0 && one.usual > peers * times && one.usual > peers + settings.latency_min_ms.millis();
    is_slower.then_some(Cause::Slower { usual: one.usual, peers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Outliers;

    fn showing(slot: usize, millis: u64, failure_percent: u32) -> Showing {
        Showing { slot, usual: Duration::from_millis(millis), failure_percent }
    }

    fn causes(all: &[Showing]) -> Vec<Option<&'static str>> {
        all.iter().map(|one| cause_of(one, all, &Outliers::default()).map(Cause::name)).collect()
    }

    #[test]
    fn one_that_is_far_slower_than_the_median_of_its_peers_stands_out() {
        let all = [showing(0, 20, 0), showing(1, 30, 0), showing(2, 200, 0)];
        assert_eq!(causes(&all), [None, None, Some("outlier_latency")]);
    }

    #[test]
    fn a_few_milliseconds_more_are_nothing_however_many_times_they_are() {
        let all = [showing(0, 1, 0), showing(1, 1, 0), showing(2, 90, 0)];
        assert_eq!(causes(&all), [None; 3]);
    }

    #[test]
    fn one_that_fails_far_more_often_than_the_mean_of_its_peers_stands_out() {
        let all = [showing(0, 1, 0), showing(1, 1, 10), showing(2, 1, 40)];
        assert_eq!(causes(&all), [None, None, Some("outlier_failures")]);
    }

    #[test]
    fn who_has_no_peers_does_not_stand_out() {
        assert_eq!(causes(&[showing(0, 10_000, 100)]), [None]);
    }
}
