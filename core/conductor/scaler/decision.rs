//! What was decided about RAM, with what it was decided by: the audit log.

use super::competition::{Forecast, Promotion};
use super::policy::Shortage;
use crate::config::Model;
use crate::time::Time;

/// A decision. Whole numbers, so that it can be compared and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// When.
    pub at: Time,
    /// Index of the platform that it is about; `None`: of all.
    pub platform: Option<u32>,
    /// What.
    pub act: Act,
    /// What it went by.
    pub figures: Figures,
    /// `false` with `scaler.forecast_only`: it would have been.
    pub is_done: bool,
}

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// Everybody is asked to give memory back.
    Trim,
    /// An idle platform is put to sleep.
    Sleep,
    /// A platform is drained and stopped until there is RAM for it.
    Shed,
    /// A platform is killed, and is shed from then on.
    Kill,
    /// RAM is short, and nobody is left who may be shed.
    Exhausted,
    /// A step has shown what it has won.
    Won {
        /// The step.
        step: Step,
        /// What the platform weighed before it, bytes; 0 if nobody knows, or if it was about all.
        weighed: u64,
        /// By how much less RAM was used after it, bytes; negative if more.
        bytes: i64,
    },
    /// A platform that was shed comes back.
    Restore,
    /// It would come back, but for this many bytes that are missing.
    Wait {
        /// Bytes.
        missing: u64,
    },
    /// It would come back, but for the forecast.
    Delay,
    /// It was to be started, and was not: so many bytes are missing.
    Refuse {
        /// Bytes.
        missing: u64,
    },
    /// A new edition was to be started beside the old one, and waits: so many bytes are missing.
    Postpone {
        /// Bytes.
        missing: u64,
    },
    /// It is started, or reloaded, by hand, though so many bytes are missing.
    Overrule {
        /// Bytes.
        missing: u64,
    },
    /// Another forecaster is believed from now on.
    Believe(Promotion),
}

/// A step of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Ask for memory.
    Trim,
    /// Put to sleep.
    Sleep,
    /// Drain and stop.
    Shed,
    /// Kill.
    Kill,
}

impl Act {
    /// Every name, for tables of counters.
    pub const NAMES: [&str; 13] = [
        "trim",
        "sleep",
        "shed",
        "kill",
        "exhausted",
        "won",
        "restore",
        "wait",
        "delay",
        "refuse",
        "postpone",
        "overrule",
        "believe",
    ];

    /// Where its name stands among all.
    pub const fn index(self) -> usize {
        match self {
            Act::Trim => 0,
            Act::Sleep => 1,
            Act::Shed => 2,
            Act::Kill => 3,
            Act::Exhausted => 4,
            Act::Won { .. } => 5,
            Act::Restore => 6,
            Act::Wait { .. } => 7,
            Act::Delay => 8,
            Act::Refuse { .. } => 9,
            Act::Postpone { .. } => 10,
            Act::Overrule { .. } => 11,
            Act::Believe(_) => 12,
        }
    }

    /// The name in the audit log.
    pub const fn name(self) -> &'static str {
        Act::NAMES[self.index()]
    }
}

/// What a decision goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Figures {
    /// Used RAM, thousandths of all.
    pub ram_permille: u32,
    /// The same, bytes.
    pub ram_used: u64,
    /// All RAM, bytes.
    pub ram_total: u64,
    /// What it is forecast to be.
    pub forecast: Option<Ahead>,
    /// What it was compared with, percent.
    pub threshold_percent: u32,
    /// Why a step was taken; `None` of what is no step.
    pub cause: Option<Cause>,
}

/// Why a step was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cause {
    /// Why RAM was taken for short.
    pub shortage: Shortage,
    /// Its platform goes before its turn, because it is to blame.
    pub is_out_of_turn: bool,
}

/// A forecast in whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ahead {
    /// Who made it.
    pub model: Model,
    /// Used RAM, thousandths of all.
    pub ram_permille: u32,
    /// Between which it lies with 95 %.
    pub interval_permille: Option<(u32, u32)>,
}

impl Ahead {
    /// Of a forecast.
    pub fn of(model: Model, forecast: &Forecast) -> Ahead {
        let permille = |percent: f64| (percent * 10.0).round() as u32;
        let interval_permille = forecast.interval.map(|(low, high)| (permille(low), permille(high)));
        Ahead { model, ram_permille: permille(forecast.ram_percent), interval_permille }
    }
}
