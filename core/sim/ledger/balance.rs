//! Balance: which request has its turn, and which instance may have it.

use demi_conductor::breaker::Cause;
use demi_conductor::{Conductor, Instance, InstanceStatus, Ticket, Time};

use super::requests::Record;
use super::{Ledger, Turn};
use crate::report::Sight;

impl Ledger {
    /// What has not been tried by its platform yet is given to an instance only after all that are more urgent, or as urgent
    /// and have come before it.
    pub(super) fn assert_its_turn(&mut self, now: Time, ticket: Ticket, turn: &Turn) {
        let Some(record) = self.record(ticket).filter(|record| record.is_fresh()).copied() else { return };
        let platform = record.promise.map(|promise| promise.platform);
        // What came in this turn came after the timers that were due.
        let waits = |other: &&Record| {
            let is_there =
                other.promise.map(|promise| promise.platform) == platform && turn.asked != Some(other.ticket);
            is_there && other.is_fresh() && other.ticket != ticket && other.deadline > now
        };
        let mut is_overtaken = false;
        for other in self.records.iter().flatten().filter(waits) {
            let turns = [&record, other].map(|record| (record.urgency as usize, record.arrival));
            assert!(turns[0] < turns[1], "{ticket:?} was dispatched before {:?}, whose turn it was", other.ticket);
            is_overtaken |= other.urgency != record.urgency && other.arrival < record.arrival;
        }
        if is_overtaken {
            self.saw(Sight::Overtaken);
        }
    }

    pub(super) fn see_cause(&mut self, cause: Cause) {
        match cause {
            Cause::Slower { .. } => self.saw(Sight::Slower),
            Cause::FailsMore { .. } => self.saw(Sight::FailsMore),
            Cause::SlowRate { .. } => self.saw(Sight::SlowRate),
            Cause::FailureRate { .. } => self.saw(Sight::FailureRate),
            Cause::InARow(_) | Cause::TrialFailed | Cause::ProbeFailed => {}
        }
    }
}

/// What the conductor shows of an instance.
pub(super) fn status(conductor: &Conductor, instance: Instance) -> Option<InstanceStatus> {
    let mut platforms = conductor.platforms();
    let platform = platforms.nth(conductor.platform_of(instance))?;
    platform.instances.into_iter().find(|status| status.slot == instance.slot)
}
