//! What was decided about RAM is told in the log; `GET /v1/scaling` has it with its figures. What platforms weigh at most is kept.

use demi_conductor::scaler::{Act, Decision};

use super::Shell;
use crate::chronicle::{self, unix_ms};

impl Shell {
    /// Has it kept what an instance of a platform has weighed at most.
    pub(super) fn keep_peak(&self, platform: u32, bytes: u64) {
        let name = self.roster[platform as usize].name();
        if !self.clerk.as_ref().is_some_and(|clerk| clerk.keep_peak(name, unix_ms() / 1000, bytes)) {
            log::debug!("{name}: the clerk is too busy to keep what it weighs at most");
        }
    }

    pub(super) fn log_decision(&self, decision: &Decision) {
        let name = decision.platform.map_or("it", |platform| self.roster[platform as usize].name());
        let told = chronicle::decided(decision, name);
        match decision.act {
            Act::Trim | Act::Shed | Act::Kill | Act::Exhausted | Act::Overrule { .. } | Act::Refuse { .. } => {
                log::warn!("{told}");
            }
            Act::Sleep | Act::Won { .. } | Act::Restore | Act::Wait { .. } | Act::Delay | Act::Believe(_) => {
                log::info!("{told}");
            }
        }
    }
}
