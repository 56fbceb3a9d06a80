//! What waits for an instance of a platform: the most urgent comes first, and among equals the one that has waited longest.

use std::collections::VecDeque;

use crate::config::Urgency;
use crate::event::Ticket;

/// A line for each urgency. Whoever owns it bounds it: over all lines, by `queue_max`.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lines: [VecDeque<Ticket>; Urgency::ALL.len()],
    /// In all of them: mostly nobody waits, and that should be seen at a glance.
    count: usize,
}

impl Queue {
    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Puts one behind all that are as urgent.
    pub(crate) fn push(&mut self, urgency: Urgency, ticket: Ticket) {
        self.lines[urgency as usize].push_back(ticket);
        self.count += 1;
    }

    /// Whose turn it is.
    pub(crate) fn front(&self) -> Option<Ticket> {
        if self.count == 0 {
            return None;
        }
        self.lines.iter().find_map(VecDeque::front).copied()
    }

    /// Whether some wait that whoever comes now with this urgency waits behind.
    pub(crate) fn has_before(&self, urgency: Urgency) -> bool {
        self.count > 0 && self.fronts_before(urgency).next().is_some()
    }

    /// Those that have waited longest of each urgency that is not below this one: whoever comes now waits behind them.
    pub(crate) fn fronts_before(&self, urgency: Urgency) -> impl Iterator<Item = Ticket> + '_ {
        self.lines[..=urgency as usize].iter().filter_map(VecDeque::front).copied()
    }

    /// The one that gives way to one of this urgency if there is no room: of the least urgent, and less urgent than this,
    /// the one that came last.
    pub(crate) fn last_below(&self, urgency: Urgency) -> Option<Ticket> {
        self.lines[urgency as usize + 1..].iter().rev().find_map(VecDeque::back).copied()
    }

    /// Takes one out. At once at either end of its line, where most are; else in proportion to how many wait.
    pub(crate) fn remove(&mut self, urgency: Urgency, ticket: Ticket) {
        let line = &mut self.lines[urgency as usize];
        let before = line.len();
        if line.front() == Some(&ticket) {
            line.pop_front();
        } else if line.back() == Some(&ticket) {
            line.pop_back();
        } else if let Some(place) = line.iter().position(|queued| *queued == ticket) {
            line.remove(place);
        }
        self.count -= before - line.len();
    }

    /// Every one that waits, with its urgency.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Urgency, Ticket)> + '_ {
        let lines = Urgency::ALL.into_iter().zip(&self.lines);
        lines.flat_map(|(urgency, line)| line.iter().map(move |ticket| (urgency, *ticket)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Urgency::{High, Low, Normal};

    const fn ticket(number: u32) -> Ticket {
        Ticket::new(number, 0)
    }

    fn queue(urgencies: &[Urgency]) -> Queue {
        let mut queue = Queue::default();
        urgencies.iter().zip(0..).for_each(|(urgency, number)| queue.push(*urgency, ticket(number)));
        queue
    }

    /// The numbers in the order of their turns.
    fn turns(mut queue: Queue) -> Vec<usize> {
        let mut turns = Vec::new();
        while let Some(next) = queue.front() {
            let (urgency, _) = queue.iter().find(|(_, queued)| *queued == next).expect("it is in there");
            queue.remove(urgency, next);
            turns.push(next.slot());
        }
        assert_eq!(queue.len(), 0);
        turns
    }

    #[test]
    fn the_most_urgent_has_its_turn_and_among_equals_the_first() {
        assert_eq!(turns(queue(&[Low, Normal, High, Normal, High, Low])), [2, 4, 1, 3, 0, 5]);
    }

    #[test]
    fn who_gives_way_is_the_last_of_the_least_urgent_and_never_an_equal() {
        let queue = queue(&[Normal, Low, Low, Normal]);
        assert_eq!(queue.last_below(High), Some(ticket(2)));
        assert_eq!(queue.last_below(Normal), Some(ticket(2)));
        assert_eq!(queue.last_below(Low), None);
        assert_eq!(self::queue(&[Normal, High]).last_below(High), Some(ticket(0)));
        assert_eq!(self::queue(&[Normal, High]).last_below(Normal), None);
    }

    #[test]
    fn whoever_comes_waits_behind_those_that_are_as_urgent_or_more() {
        let queue = queue(&[Low, Normal, Normal, High]);
        let before = |urgency| queue.fronts_before(urgency).map(Ticket::slot).collect::<Vec<usize>>();
        assert_eq!(before(High), [3]);
        assert_eq!(before(Normal), [3, 1]);
        assert_eq!(before(Low), [3, 1, 0]);
    }

    #[test]
    fn one_leaves_from_wherever_it_stands() {
        for gone in 0..4 {
            let mut queue = queue(&[Normal; 4]);
            queue.remove(Normal, ticket(gone));
            queue.remove(Normal, ticket(gone));
            assert_eq!(turns(queue), (0..4).filter(|number| *number != gone as usize).collect::<Vec<usize>>());
        }
    }
}
