//! The end of Demi, phase by phase.
//!
//! ```text
//!   Running ──► Draining ──► Stopping ──► Killing ──► Flushing ──► Done
//!               no request   platforms    KILL to     the store    Exit
//!               is admitted  in reverse   the rest    is synced,
//!                                                     clients take
//!                                                     their answers
//! ```
//!
//! Each phase ends when its work is done, when its time is up, or when the order to stop is given once more.

use std::time::Duration;

use crate::time::Time;

/// Where in its end Demi is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not ending.
    Running,
    /// No request is admitted; those under way go on.
    Draining,
    /// Platforms are asked to end, each after those that need it.
    Stopping,
    /// What is left is put down.
    Killing,
    /// The store makes everything durable, and clients take what they are still owed of their answers.
    Flushing,
    /// Over.
    Done,
}

impl Phase {
    /// The phase after this one.
    pub const fn next(self) -> Phase {
        match self {
            Phase::Running => Phase::Draining,
            Phase::Draining => Phase::Stopping,
            Phase::Stopping => Phase::Killing,
            Phase::Killing => Phase::Flushing,
            Phase::Flushing | Phase::Done => Phase::Done,
        }
    }

    /// Whether requests that are under way may still be given to instances.
    pub const fn admits(self) -> bool {
        matches!(self, Phase::Running | Phase::Draining)
    }

    /// The name in status.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Running => "running",
            Phase::Draining => "draining",
            Phase::Stopping => "stopping",
            Phase::Killing => "killing",
            Phase::Flushing => "flushing",
            Phase::Done => "done",
        }
    }

    /// When this phase is over at the latest, if the order to stop came at `began` and all must be over in `grace`:
    /// half of it for requests, most of the rest for platforms, a twentieth each for what is put down and for the
    /// store.
    pub fn ends(self, began: Time, grace: Duration) -> Option<Time> {
        match self {
            Phase::Running | Phase::Done => None,
            Phase::Draining => Some(began + grace / 2),
            Phase::Stopping => Some(began + grace * 18 / 20),
            Phase::Killing => Some(began + grace * 19 / 20),
            Phase::Flushing => Some(began + grace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_phases_together_fit_the_grace() {
        let grace = Duration::from_secs(10);
        let mut phase = Phase::Draining;
        let mut last = Time::ZERO;
        while let Some(end) = phase.ends(Time::ZERO, grace) {
            assert!(end > last, "{phase:?} ends before it begins");
            last = end;
            phase = phase.next();
        }
        assert_eq!((phase, last), (Phase::Done, Time::ZERO + grace));
    }
}
