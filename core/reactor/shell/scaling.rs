//! What was decided about RAM is told in the log; `GET /v1/scaling` has it with its figures.

use demi_conductor::scaler::{Act, Decision};

use super::Shell;
use crate::chronicle;

impl Shell {
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
