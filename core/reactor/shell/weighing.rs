//! Children are weighed by the warden, and what it found is told to the conductor.

use demi_conductor::{Event, Instance, Weight};

use super::Shell;
use crate::warden::Unweighed;

impl Shell {
    /// Has the trees of all children weighed.
    pub(super) fn weigh(&mut self) {
        match self.children.weigh() {
            // That it has gone is told by itself, as an error, and once.
            Ok(()) | Err(Unweighed::Gone) => {}
            Err(Unweighed::Busy) => log::debug!("the warden is too busy to weigh"),
        }
    }

    pub(super) fn weighed(&mut self, weights: Vec<(Instance, Weight)>, available: Option<u64>) {
        if !weights.is_empty() {
            self.recorder.wants_look(self.now);
        }
        let events = weights.into_iter().map(|(instance, weight)| Event::Weighed { instance, weight });
        self.kit.events.extend(events.chain([Event::AllWeighed { available }]));
    }
}
