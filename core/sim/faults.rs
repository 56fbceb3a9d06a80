//! What goes wrong, and how often in this seed.
//!
//! Every seed draws its own rates, many of them zero: a world in which everything fails a little hides the bug that
//! needs one thing to fail often and another never.

use demi_conductor::Random;

use crate::report::{kinds, Faults};

kinds! {
    /// A kind of fault.
    pub enum Fault {
        CrashAtStart => "a start failed",
        BadConfig => "a process exited with 78",
        NeverStarts => "a start was never answered",
        CrashInFlight => "an instance crashed with work in hand",
        Freeze => "an instance froze",
        Thaw => "a frozen instance went on",
        Rotten => "a run failed most of its requests and probes",
        Failed => "a platform said that it failed",
        Mistaken => "a platform said that the caller was at fault",
        Broken => "a connection broke or a worker panicked",
        Unsent => "a request did not reach its instance",
        Full => "an instance said that it is full",
        SlowAnswer => "an answer was slow",
        NeverAnswered => "an answer was lost",
        StuckThread => "a thread never let go",
        BrokenAfterHead => "an answer broke after its head",
        EndlessStream => "an answer streamed without end",
        Duplicate => "an instance answered twice",
        AnswerAfterCancel => "an answer came after its cancellation",
        AnswerOfOldRun => "an answer came from a run that had ended",
        FailedProbe => "a probe failed",
        LostProbe => "a probe was lost",
        SlowProbe => "a probe was slow",
        BusyProbe => "a probe found every hand full",
        IgnoredTerm => "an instance ignored TERM",
        CallerGone => "a caller hung up",
        ClockJump => "the clock jumped",
        LateTurn => "a turn of the loop was late",
        TooHeavy => "an instance used more memory than it may",
        Heavy => "an instance used more memory than it should",
        Leaks => "an instance leaked memory",
        RamFills => "something else took RAM",
        BadSample => "a sample of RAM made no sense",
        Forks => "an instance forked without end",
        LeaksDescriptors => "an instance leaked descriptors",
        SlowStart => "an instance needed longer to start and said so",
        BadEdition => "a new edition could not run",
        Unready => "an instance said that it is not ready",
        Drains => "an instance said that it wants no new requests",
        Reweighed => "an instance reported another weight",
        Deferred => "an instance that failed said when to come back",
        NotReinitialized => "an instance could not be initialised again",
        TargetAway => "something that platforms depend on went away",
        LostLook => "a look at something that platforms depend on was lost",
        Poison => "a message ended whoever had it",
        Crash => "Demi was killed and started again",
        Person => "a person gave an order",
        Midnight => "a day began",
        StoreFailed => "the store failed",
        StoreSilent => "the store did not answer",
        RouteGone => "no rule took a message any more",
        DiskRot => "what was kept of a message could not be read any more",
        ClockSet => "the wall clock was set",
    }
}

impl Fault {
    /// The highest rate that a seed may draw, in thousandths of the opportunities.
    const fn permille_max(self) -> u64 {
        match self {
            Fault::ClockJump => 2,
            Fault::Crash => 8,
            Fault::BadConfig => 12,
            Fault::TooHeavy | Fault::Forks | Fault::LeaksDescriptors | Fault::Midnight => 10,
            Fault::Freeze => 15,
            Fault::RamFills => 500,
            Fault::BadSample | Fault::ClockSet => 20,
            Fault::Leaks => 200,
            Fault::Heavy | Fault::Person | Fault::TargetAway => 50,
            Fault::Unready | Fault::LostLook | Fault::Poison | Fault::DiskRot | Fault::RouteGone | Fault::Reweighed => {
                100
            }
            Fault::Drains => 60,
            Fault::CrashInFlight | Fault::StuckThread | Fault::NeverAnswered => 40,
            Fault::LateTurn => 60,
            Fault::NeverStarts
            | Fault::Mistaken
            | Fault::Broken
            | Fault::Unsent
            | Fault::Full
            | Fault::Duplicate
            | Fault::EndlessStream
            | Fault::BusyProbe => 100,
            Fault::SlowAnswer | Fault::LostProbe | Fault::SlowProbe | Fault::CallerGone => 150,
            Fault::Failed | Fault::FailedProbe | Fault::BrokenAfterHead | Fault::StoreSilent | Fault::Rotten => 250,
            Fault::BadEdition | Fault::SlowStart | Fault::NotReinitialized => 300,
            Fault::Deferred => 500,
            Fault::CrashAtStart | Fault::IgnoredTerm | Fault::StoreFailed => 350,
            Fault::Thaw | Fault::AnswerAfterCancel | Fault::AnswerOfOldRun => 900,
        }
    }
}

/// Decides at each opportunity whether a fault strikes, and counts those that do.
#[derive(Debug)]
pub(crate) struct Dice {
    rates: [u32; Fault::ALL.len()],
    random: Random,
    is_calm: bool,
    struck: Faults,
}

impl Dice {
    pub(crate) fn new(mut random: Random) -> Dice {
        // One seed in sixteen has no faults at all: what goes wrong then is wrong in fair weather.
        let is_fair = random.below(16) == 0;
        let rates = Fault::ALL.map(|fault| {
            let rate = random.below(fault.permille_max() + 1) as u32;
            let is_absent = random.below(3) == 0;
            if is_absent || is_fair {
                0
            } else {
                rate.max(1)
            }
        });
        Dice { rates, random, is_calm: false, struck: Faults::default() }
    }

    /// Whether the fault strikes now.
    pub(crate) fn strike(&mut self, fault: Fault) -> bool {
        let strikes = !self.is_calm && self.rates[fault as usize] > 0 && self.random.chance(self.rates[fault as usize]);
        if strikes {
            self.struck.add(fault as usize, 1);
        }
        strikes
    }

    /// From now on nothing strikes any more.
    pub(crate) fn calm(&mut self) {
        self.is_calm = true;
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.is_calm
    }

    pub(crate) fn struck(&self) -> &Faults {
        &self.struck
    }
}
