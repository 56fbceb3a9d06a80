//! What was decided about RAM: told in the log, kept, and shown with its figures. What platforms weigh at most is kept.

use std::collections::VecDeque;

use demi_conductor::scaler::{Act, Decision};
use demi_conductor::Conductor;

use super::Shell;
use crate::api;
use crate::chronicle::{self, unix_ms};
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

    /// Takes those that are to be kept, oldest first.
    fn take_unkept(&mut self) -> Vec<KeptDecision> {
        let count = std::mem::take(&mut self.unkept);
        self.last.range(self.last.len() - count..).cloned().collect()
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

    /// Has kept what was decided in this turn.
    pub(super) fn keep_decisions(&mut self) {
        if self.decisions.unkept == 0 {
            return;
        }
        let unkept = self.decisions.take_unkept();
        let count = unkept.len();
        if !self.clerk.as_ref().is_some_and(|clerk| clerk.decided(unkept)) {
            log::debug!("the clerk is too busy to keep {count} decisions about RAM");
        }
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
        assert_eq!(numbers(&decisions.take_unkept()), [42, 43, 44]);
        assert!(decisions.take_unkept().is_empty());
        (0..2 * DECISIONS_SHOWN as u64).for_each(|number| decisions.add(page(number)));
        assert_eq!(decisions.take_unkept().len(), DECISIONS_SHOWN);
        assert_eq!(decisions.newest().map(|kept| kept.number).next(), Some(44 + 2 * DECISIONS_SHOWN as u64));
        assert_eq!(decisions.newest().count(), DECISIONS_SHOWN);
    }
}
