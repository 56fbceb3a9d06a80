//! Timers as values: setting one again moves it, and whoever owns the clock asks when to come back.
//!
//! A four-ary heap with a table of places per kind of timer, so that moving and cancelling cost no search and
//! setting allocates nothing once the tables have grown to the number of live requests and instances.

use crate::event::{Instance, Ticket};
use crate::time::Time;

/// What to come back for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// The request's time, or its attempt's, is up.
    Expire(Ticket),
    /// The request is to be tried again.
    Retry(Ticket),
    /// The instance is to be probed.
    Probe(Instance),
    /// The probe should have come back.
    ProbeLate(Instance),
    /// The slot is to be started again.
    Restart(u32),
    /// The instance should have started.
    StartLate(Instance),
    /// The process was asked to end and should have by itself.
    Terminate(Instance),
    /// The instance should have ended.
    Kill(Instance),
    /// The breaker may be tried.
    HalfOpen(Instance),
    /// The request that tries the breaker has taken too long.
    TrialLate(Instance),
    /// The breaker of the platform, by its index, may be tried.
    PlatformHalfOpen(u32),
    /// The request that tries the platform's breaker has taken too long.
    PlatformTrialLate(u32),
    /// The route's usual time is over: a second instance may be asked.
    Hedge(Ticket),
    /// It is to be looked whether this, by its index, can be reached.
    Reach(u32),
    /// The look should have come back.
    ReachLate(u32),
    /// The instances of the platform, by its index, are to be compared with each other.
    Compare(u32),
    /// The worker should have let go of a request that it was too late for.
    Wedged(Instance),
    /// The instance has drained for as long as it may.
    DrainLate(Instance),
    /// The platform, by its index, may have been idle for long enough to sleep.
    Sleep(u32),
    /// The children are to be weighed.
    Weigh,
    /// Messages are to be delivered, or are too late.
    Post,
    /// The machine is to be measured.
    Sample,
    /// The present phase of the shutdown is over.
    Phase,
}

const KINDS: usize = 23;
const NOWHERE: u32 = u32::MAX;

impl Timer {
    /// Which table, and which place in it. One timer of a kind can be set per request or slot.
    fn key(self) -> (usize, usize) {
        match self {
            Timer::Expire(ticket) => (0, ticket.slot()),
            Timer::Retry(ticket) => (1, ticket.slot()),
            Timer::Probe(instance) => (2, instance.slot as usize),
            Timer::ProbeLate(instance) => (3, instance.slot as usize),
            Timer::Restart(slot) => (4, slot as usize),
            Timer::StartLate(instance) => (5, instance.slot as usize),
            Timer::Kill(instance) => (6, instance.slot as usize),
            Timer::HalfOpen(instance) => (7, instance.slot as usize),
            Timer::Wedged(instance) => (8, instance.slot as usize),
            Timer::Sample => (9, 0),
            Timer::Phase => (10, 0),
            Timer::Terminate(instance) => (11, instance.slot as usize),
            Timer::DrainLate(instance) => (12, instance.slot as usize),
            Timer::Sleep(platform) => (13, platform as usize),
            Timer::Weigh => (14, 0),
            Timer::TrialLate(instance) => (15, instance.slot as usize),
            Timer::PlatformHalfOpen(platform) => (16, platform as usize),
            Timer::PlatformTrialLate(platform) => (17, platform as usize),
            Timer::Hedge(ticket) => (18, ticket.slot()),
            Timer::Reach(target) => (19, target as usize),
            Timer::ReachLate(target) => (20, target as usize),
            Timer::Compare(platform) => (21, platform as usize),
            Timer::Post => (22, 0),
        }
    }
}

/// The timers that are set.
#[derive(Debug, Default)]
pub struct Timers {
    heap: Vec<(Time, Timer)>,
    places: [Vec<u32>; KINDS],
}

impl Timers {
    /// Sets the timer, or moves it if one of its kind is set for the same request or slot.
    pub fn set(&mut self, timer: Timer, at: Time) {
        let (kind, index) = timer.key();
        let places = &mut self.places[kind];
        if places.len() <= index {
            places.resize(index + 1, NOWHERE);
        }
        let place = places[index];
        if place == NOWHERE {
            self.heap.push((at, timer));
            self.rise(self.heap.len() - 1);
        } else {
            self.heap[place as usize] = (at, timer);
            let place = self.rise(place as usize);
            self.sink(place);
        }
    }

    /// Takes the timer away; nothing happens if it is not set.
    pub fn cancel(&mut self, timer: Timer) {
        let (kind, index) = timer.key();
        let Some(place) = self.places[kind].get(index).copied().filter(|place| *place != NOWHERE) else { return };
        self.remove(place as usize);
    }

    /// The earliest timer; among equals the lower by kind and number, so that order never depends on history.
    pub fn next(&self) -> Option<(Time, Timer)> {
        self.heap.first().copied()
    }

    /// Takes the earliest timer if it is due.
    pub fn pop(&mut self, now: Time) -> Option<(Time, Timer)> {
        let due = self.next().filter(|(at, _)| *at <= now)?;
        self.remove(0);
        Some(due)
    }

    /// When this very timer will go off.
    pub fn at(&self, timer: Timer) -> Option<Time> {
        let (kind, index) = timer.key();
        let place = self.places[kind].get(index).copied().filter(|place| *place != NOWHERE)?;
        let (at, set) = self.heap[place as usize];
        (set == timer).then_some(at)
    }

    /// Takes all away.
    pub fn clear(&mut self) {
        while !self.heap.is_empty() {
            self.remove(self.heap.len() - 1);
        }
    }

    /// How many are set.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    fn remove(&mut self, place: usize) {
        let (_, gone) = self.heap.swap_remove(place);
        let (kind, index) = gone.key();
        self.places[kind][index] = NOWHERE;
        if place < self.heap.len() {
            let place = self.rise(place);
            self.sink(place);
        }
    }

    fn note(&mut self, place: usize) {
        let (kind, index) = self.heap[place].1.key();
        self.places[kind][index] = place as u32;
    }

    fn rise(&mut self, mut place: usize) -> usize {
        while place > 0 {
            let parent = (place - 1) / 4;
            if self.heap[parent] <= self.heap[place] {
                break;
            }
            self.heap.swap(parent, place);
            self.note(place);
            place = parent;
        }
        self.note(place);
        place
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let children = 4 * place + 1..(4 * place + 5).min(self.heap.len());
            let Some(least) = children.min_by_key(|child| self.heap[*child]) else { break };
            if self.heap[place] <= self.heap[least] {
                break;
            }
            self.heap.swap(place, least);
            self.note(place);
            place = least;
        }
        self.note(place);
    }

    /// Asserts that heap and places agree and that no child is before its parent.
    pub fn check(&self) {
        for (place, entry) in self.heap.iter().enumerate() {
            let (kind, index) = entry.1.key();
            assert_eq!(self.places[kind][index] as usize, place, "{entry:?} is not where its table says");
            assert!(place == 0 || self.heap[(place - 1) / 4] <= *entry, "{entry:?} is before its parent");
        }
        let placed = self.places.iter().flatten().filter(|place| **place != NOWHERE).count();
        assert_eq!(placed, self.heap.len(), "a table names a timer that is not in the heap");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn expire(slot: u32) -> Timer {
        Timer::Expire(Ticket::new(slot, 0))
    }

    #[test]
    fn setting_again_moves_and_never_doubles() {
        let mut timers = Timers::default();
        timers.set(Timer::Sample, Time::from_nanos(5));
        timers.set(Timer::Sample, Time::from_nanos(9));
        assert_eq!(timers.pop(Time::from_nanos(8)), None);
        assert_eq!(timers.pop(Time::from_nanos(9)), Some((Time::from_nanos(9), Timer::Sample)));
        assert!(timers.is_empty());
    }

    #[test]
    fn a_new_occupant_of_a_place_takes_over_its_timer() {
        let mut timers = Timers::default();
        let old = Timer::Probe(Instance { slot: 3, run: 1 });
        let new = Timer::Probe(Instance { slot: 3, run: 2 });
        timers.set(old, Time::from_nanos(1));
        timers.set(new, Time::from_nanos(2));
        assert_eq!((timers.at(old), timers.at(new), timers.len()), (None, Some(Time::from_nanos(2)), 1));
    }

    #[test]
    fn the_heap_agrees_with_a_sorted_map_over_random_traces() {
        let mut timers = Timers::default();
        let mut model: BTreeMap<Timer, Time> = BTreeMap::new();
        let mut random = crate::random::Random::new(7);
        for step in 0..20_000 {
            let timer = expire(random.below(50) as u32);
            match random.below(4) {
                0 => {
                    timers.cancel(timer);
                    model.remove(&timer);
                }
                1 => {
                    let expected = model.iter().map(|(timer, at)| (*at, *timer)).min();
                    let now = Time::from_nanos(random.below(1000));
                    let popped = timers.pop(now);
                    assert_eq!(popped, expected.filter(|(at, _)| *at <= now), "step {step}");
                    if let Some((_, timer)) = popped {
                        model.remove(&timer);
                    }
                }
                _ => {
                    let at = Time::from_nanos(random.below(1000));
                    timers.set(timer, at);
                    model.insert(timer, at);
                }
            }
            timers.check();
        }
    }
}
