//! What was decided about RAM: told in the log, kept, and shown with its figures. What platforms weigh at most is kept.

use std::collections::VecDeque;

use demi_conductor::scaler::{Act, Decision};
use demi_conductor::Conductor;

use super::Shell;
use crate::api;
use crate::chronicle::{self, unix_ms};
use crate::clerk::Clerk;
use crate::store::KeptDecision;

/// Decisions that are held in memory, each of half a kilobyte; those before are in the store.
pub(crate) const DECISIONS_SHOWN: usize = 128;

/// The last decisions, of earlier runs of Demi as well.
#[derive(Default)]
pub(super) struct Decisions {
    /// Oldest first.
    last: VecDeque<KeptDecision>,
    /// How many of them, from the newest on, were not given to the clerk yet.
    unkept: usize,
    /// The clerk was too busy for them, and that was told.
    is_behind: bool,
}

impl Decisions {
    fn add(&mut self, page: Box<serde_json::value::RawValue>) {
        if self.last.len() == DECISIONS_SHOWN {
            self.last.pop_front();
        }
        let number = self.last.back().map_or(1, |last| last.number.saturating_add(1));
        self.last.push_back(KeptDecision { number, page });
        self.unkept = (self.unkept + 1).min(DECISIONS_SHOWN);
    }

    /// Those that are to be kept, oldest first.
    fn unkept(&self) -> Vec<KeptDecision> {
        self.last.range(self.last.len() - self.unkept..).cloned().collect()
    }

    /// Gives those that are to be kept to the clerk, which may be too busy: then they wait here for another time.
    fn hand_over(&mut self, take: impl FnOnce(Vec<KeptDecision>) -> bool) {
        if take(self.unkept()) {
            (self.unkept, self.is_behind) = (0, false);
        } else if !self.is_behind {
            self.is_behind = true;
            log::debug!("the clerk is too busy to keep what is decided about RAM; it is kept later");
        }
    }

    /// Newest first.
    pub(super) fn newest(&self) -> impl Iterator<Item = &KeptDecision> {
        self.last.iter().rev()
    }
}

impl Shell {
    /// What the store remembers of earlier runs, newest first.
    pub(crate) fn recall_decisions(&mut self, decisions: Vec<KeptDecision>) {
        self.decisions.last = decisions.into_iter().rev().collect();
    }

    pub(super) fn hear_decision(&mut self, decision: &Decision) {
        let name = decision.platform.map(|platform| self.roster[platform as usize].name());
        let told = chronicle::decided(decision, name.unwrap_or("it"));
        match decision.act {
            Act::Trim | Act::Shed | Act::Kill | Act::Exhausted | Act::Overrule { .. } | Act::Refuse { .. } => {
                log::warn!("{told}");
            }
            Act::Sleep
            | Act::Won { .. }
            | Act::Restore
            | Act::Wait { .. }
            | Act::Postpone { .. }
            | Act::Delay
            | Act::Believe(_) => {
                log::info!("{told}");
            }
        }
        let page = api::decision_json(unix_ms(), name, decision, told);
        self.decisions.add(page);
    }

    /// Has kept what was decided in this turn, and before it if the clerk was too busy.
    pub(super) fn keep_decisions(&mut self) {
        if self.decisions.unkept > 0 && !(self.decisions.is_behind && self.is_clerk_busy()) {
            let clerk = self.clerk.as_ref();
            self.decisions.hand_over(|unkept| clerk.is_some_and(|clerk| clerk.decided(unkept)));
        }
    }

    fn is_clerk_busy(&self) -> bool {
        !self.clerk.as_ref().is_some_and(Clerk::takes_notes)
    }

    /// Shows how RAM is and what was decided about it. More than is in memory the clerk reads; the client waits.
    pub(super) fn show_scaling(&mut self, place: usize, serial: u64, query: &str, conductor: &Conductor) {
        self.keep_decisions();
        let page = api::read_scaling(query).map(|limit| {
            let decisions = self.decisions.newest().take(limit).map(|kept| kept.page.clone()).collect();
            api::ScalingPage::new(conductor, limit, decisions, self.now)
        });
        let problem = match page {
            Ok(page) => {
                let before = self.decisions.last.front().map_or(0, |first| first.number);
                // As long as there is room in memory, all that there are stand there.
                if page.room() == 0 || self.decisions.last.len() < DECISIONS_SHOWN {
                    let (body, now) = (page.complete(Vec::new()), self.now);
                    return self.listener.respond(place, serial, 200, api::JSON, b"", &body, now, &mut self.kit);
                }
                match self.clerk.as_ref().is_some_and(|clerk| clerk.decisions(place, serial, Box::new(page), before)) {
                    true => return,
                    false => api::store_busy(),
                }
            }
            Err(problem) => problem,
        };
        self.listener.respond_problem(place, serial, &problem, self.now, &mut self.kit);
    }

    /// Has it kept what an instance of a platform has weighed at most.
    pub(super) fn keep_peak(&self, platform: u32, bytes: u64) {
        let name = self.roster[platform as usize].name();
        if !self.clerk.as_ref().is_some_and(|clerk| clerk.keep_peak(name, unix_ms() / 1000, bytes)) {
            log::debug!("{name}: the clerk is too busy to keep what it weighs at most");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64) -> Box<serde_json::value::RawValue> {
        serde_json::value::to_raw_value(&number).expect("it is a number")
    }

    #[test]
    fn decisions_go_on_from_what_the_store_remembers_and_each_is_kept_once() {
        let mut decisions = Decisions::default();
        decisions.last.push_back(KeptDecision { number: 41, page: page(0) });
        (0..3).for_each(|number| decisions.add(page(number)));
        let numbers = |kept: &[KeptDecision]| kept.iter().map(|kept| kept.number).collect::<Vec<u64>>();
        let mut given = Vec::new();
        decisions.hand_over(|unkept| {
            given = unkept;
            true
        });
        assert_eq!(numbers(&given), [42, 43, 44]);
        assert!(decisions.unkept().is_empty());
        (0..2 * DECISIONS_SHOWN as u64).for_each(|number| decisions.add(page(number)));
        assert_eq!(decisions.unkept().len(), DECISIONS_SHOWN);
        assert_eq!(decisions.newest().map(|kept| kept.number).next(), Some(44 + 2 * DECISIONS_SHOWN as u64));
        assert_eq!(decisions.newest().count(), DECISIONS_SHOWN);
    }

    /// They were forgotten: shown until Demi ended, and not known to the next one.
    #[test]
    fn decisions_for_which_the_clerk_is_too_busy_are_kept_later() {
        let mut decisions = Decisions::default();
        decisions.add(page(0));
        decisions.hand_over(|_| false);
        decisions.add(page(1));
        let mut given = Vec::new();
        decisions.hand_over(|unkept| {
            given = unkept;
            true
        });
        assert_eq!(given.iter().map(|kept| kept.number).collect::<Vec<u64>>(), [1, 2]);
        assert!(decisions.unkept().is_empty() && !decisions.is_behind);
    }
}
