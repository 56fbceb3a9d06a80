//! Balance: which request has its turn, and which instance may have it.

use demi_conductor::breaker::Cause;
use demi_conductor::config::Host;
use demi_conductor::{Conductor, Instance, InstanceStatus, Report, Ticket, Time};

use super::requests::Record;
use super::{Ledger, Turn};
use crate::report::Sight;

impl Ledger {
    /// What has not been tried by its platform yet is given to an instance only after all that are more urgent, or as urgent
    /// and have come before it.
    pub(super) fn assert_its_turn(&mut self, now: Time, ticket: Ticket, turn: &Turn) {
        let Some(record) = self.requests.record(ticket).filter(|record| record.is_fresh()).copied() else { return };
        // What came in this turn came after the timers that were due.
        let waits = |other: &&Record| {
            turn.asked != Some(other.ticket) && other.is_fresh() && other.ticket != ticket && other.deadline > now
        };
        let mut is_overtaken = false;
        for other in self.requests.at(record.platform()).filter(waits) {
            let turns = [&record, other].map(|record| (record.urgency as usize, record.arrival));
            assert!(turns[0] < turns[1], "{ticket:?} was dispatched before {:?}, whose turn it was", other.ticket);
            is_overtaken |= other.urgency != record.urgency && other.arrival < record.arrival;
        }
        if is_overtaken {
            self.saw(Sight::Overtaken);
        }
    }

    /// The instance has one request more, and may have it.
    pub(super) fn note_load(&mut self, record: &Record, platform: usize, instance: Instance) {
        let ticket = record.ticket;
        let entry = &self.platforms[platform];
        assert!(!entry.is_isolated, "{ticket:?} was dispatched to what is isolated");
        let slot = &mut self.slots[instance.slot as usize];
        assert!(
            entry.proven.contains(&slot.edition),
            "{instance:?} was given work before its edition has proven itself"
        );
        assert_eq!(slot.platform, platform, "{ticket:?} went to another platform than its route's");
        let takes = !record.in_parts || entry.host == Host::Http;
        assert!(takes, "{ticket:?} was given to {instance:?} before all of its body was there");
        assert!(!slot.drains, "{instance:?} was given {ticket:?} and wants no new requests");
        slot.out += 1;
        assert!(slot.out <= entry.in_flight_max, "{instance:?} was given more than it takes");
        if matches!(entry.host, Host::Threads(_)) {
            slot.held.push((ticket, record.deadline));
            assert!(slot.held.len() <= entry.in_flight_max as usize, "{instance:?} holds more than it has hands");
        }
    }

    /// No breaker keeps the request from the instance, or it is a trial, or most are cut off.
    pub(super) fn note_passage(
        &mut self,
        now: Time,
        ticket: Ticket,
        instance: Instance,
        turn: &Turn,
        conductor: &Conductor,
    ) {
        let slot = &self.slots[instance.slot as usize];
        let (of_instance, of_platform) = (slot.open_until, self.platforms[slot.platform].open_until);
        let is_held = of_platform.is_some_and(|until| until > now);
        assert!(!is_held, "{ticket:?} was dispatched while the breaker of its platform is open");
        if of_platform.is_some() {
            self.saw(Sight::Trial);
        }
        match of_instance {
            Some(until) if until > now => {
                // What the conductor tells is how things were after the turn.
                let is_most = self.are_most_cut_off(instance, conductor) || turn.is_stirred;
                assert!(is_most, "{instance:?} was given work while its breaker is open");
                self.saw(Sight::Panicked);
            }
            // The conductor alone knows whether it has closed since.
            Some(_) if status(conductor, instance).is_some_and(|status| status.breaker == "half_open") => {
                self.saw(Sight::Trial);
            }
            Some(_) | None => {}
        }
    }

    /// Whether most of the instance's platform are cut off, of those that are well as far as the conductor tells of that.
    fn are_most_cut_off(&self, instance: Instance, conductor: &Conductor) -> bool {
        let is_well = |slot: &usize| {
            let entry = &self.slots[*slot];
            let with = Instance { slot: *slot as u32, run: entry.run };
            let is_up =
                |told: InstanceStatus| matches!(told.state, "ready" | "degraded" | "wedged") && told.health != "down";
            let is_up = || status(conductor, with).is_some_and(is_up);
            let is_started = self.is_alive(*slot) && entry.started_at.is_some();
            let is_in_use = is_started && !entry.is_ending && !entry.drains;
            is_in_use && (with == instance || is_up())
        };
        let is_out = |slot: &usize| self.slots[*slot].open_until.is_some();
        let well = self.platforms[self.slots[instance.slot as usize].platform].slots.clone().filter(is_well);
        let (all, out) = (well.clone().count(), well.filter(is_out).count());
        out * 2 > all
    }

    /// An instance says how it wants to be treated.
    pub(super) fn note_report(&mut self, instance: Instance, report: Report) {
        let slot = &mut self.slots[instance.slot as usize];
        if slot.run == instance.run && !slot.has_exited {
            slot.drains = report.drain;
        }
    }

    pub(super) fn note_drain_began(&mut self, instance: Instance) {
        assert!(self.slots[instance.slot as usize].drains, "{instance:?} was told to want no requests");
        self.saw(Sight::Withdrew);
    }

    pub(super) fn note_drain_ended(&mut self, instance: Instance) {
        assert!(!self.slots[instance.slot as usize].drains, "{instance:?} was told to want requests");
        self.saw(Sight::Resumed);
    }

    /// The breaker of an instance has opened, or that of a platform.
    pub(super) fn note_opened(&mut self, platform: usize, instance: Option<Instance>, cause: Cause, until: Time) {
        let is_excused = !self.platforms[platform].lost.is_empty();
        let Some(instance) = instance else {
            assert!(!is_excused, "{platform} was cut off for what it lies behind");
            self.platforms[platform].open_until = Some(until);
            return self.saw(Sight::PlatformOpened);
        };
        let is_passive = !matches!(cause, Cause::ProbeFailed | Cause::Slower { .. } | Cause::FailsMore { .. });
        assert!(!(is_excused && is_passive), "{instance:?} was cut off for what it lies behind");
        self.slots[instance.slot as usize].open_until = Some(until);
        match cause {
            Cause::Slower { .. } => self.saw(Sight::Slower),
            Cause::FailsMore { .. } => self.saw(Sight::FailsMore),
            Cause::SlowRate { .. } => self.saw(Sight::SlowRate),
            Cause::FailureRate { .. } => self.saw(Sight::FailureRate),
            Cause::InARow(_) | Cause::TrialFailed | Cause::ProbeFailed => {}
        }
    }

    pub(super) fn note_closed(&mut self, platform: usize, instance: Option<Instance>, is_by_hand: bool) {
        match instance {
            Some(instance) => self.slots[instance.slot as usize].open_until = None,
            None => self.platforms[platform].open_until = None,
        }
        self.saw(if is_by_hand { Sight::ClosedByHand } else { Sight::Closed });
    }

    pub(super) fn note_acquittal(&mut self, instance: Instance) {
        self.slots[instance.slot as usize].open_until = None;
        self.saw(Sight::Acquitted);
    }

    /// Something that the platform lies behind is lost.
    pub(super) fn note_lost(&mut self, platform: usize, target: u32) {
        self.platforms[platform].lost.insert(target);
        self.saw(Sight::Unreachable);
    }

    /// It is back: what is open is tried at once.
    pub(super) fn note_back(&mut self, now: Time, platform: usize, target: u32) {
        self.platforms[platform].lost.remove(&target);
        self.saw(Sight::Reachable);
        let slots = self.platforms[platform].slots.clone();
        let untils = self.slots[slots].iter_mut().map(|slot| &mut slot.open_until);
        for until in untils.chain([&mut self.platforms[platform].open_until]).flatten() {
            *until = now.min(*until);
        }
    }
}

/// What the conductor shows of an instance.
fn status(conductor: &Conductor, instance: Instance) -> Option<InstanceStatus> {
    let mut platforms = conductor.platforms();
    let platform = platforms.nth(conductor.platform_of(instance))?;
    platform.instances.into_iter().find(|status| status.slot == instance.slot)
}
