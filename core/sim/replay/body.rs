//! What an instance weighs in the replay.
//!
//! ```text
//!  started ─┬─ when it was in the record, to a minute ──► as recorded ── the record's ends before it does ──┐
//!           │                                                                                               ▼
//!           └─ at another time: at first what its platform weighs when it is young ──────────────► grows as recorded
//! ```
//!
//! Whoever grows as recorded becomes heavier and lighter by what an instance of the record does at that time, and is never
//! lighter than a young one. Starts and ends in the record are no growth, and while nothing runs there it stays as it is.

use super::record::Weighed;

/// Started so much earlier or later than in the record, it is the same run.
const ALIKE_MS: u64 = 60_000;

/// What ends in the record is told of in several lines, so far apart at most.
const TOLD_MS: u64 = 2_000;

/// A run of an instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    kb: f64,
    base_kb: f64,
    course: Course,
}

#[derive(Clone, Copy, Debug)]
enum Course {
    /// Weighs what the record says, once that run has started; which is told by when that was.
    Follows { started_ms: Option<u64> },
    /// Grows as the record does; this is how far that had grown at the last look, and when it left the record.
    Grows { growth_kb: f64, left_ms: Option<u64> },
}

impl Body {
    /// One that is started now, beside what is recorded; `next_ms` is when something is started there next.
    pub(super) fn start(
        at_ms: u64,
        base_kb: f64,
        recorded: &Weighed,
        next_ms: Option<u64>,
        is_first_of_cut: bool,
    ) -> Body {
        let present_ms = recorded.started_ms.filter(|_| recorded.running > 0);
        let near = [present_ms, next_ms].into_iter().flatten().filter(|other| at_ms.abs_diff(*other) <= ALIKE_MS);
        let started_ms = near.min_by_key(|other| at_ms.abs_diff(*other));
        let is_alike = started_ms.is_some() || is_first_of_cut && recorded.running > 0;
        let course = if is_alike {
            Course::Follows { started_ms }
        } else {
            Course::Grows { growth_kb: recorded.growth_kb, left_ms: None }
        };
        let mut body = Body { kb: base_kb, base_kb, course };
        body.look(at_ms, recorded);
        body
    }

    /// What it weighed at the last look, kB.
    pub(super) fn weight_kb(&self) -> f64 {
        self.kb
    }

    /// Grows to what it weighs now. To be done often, with what is recorded of now.
    pub(super) fn look(&mut self, at_ms: u64, recorded: &Weighed) {
        match &mut self.course {
            Course::Follows { started_ms } if recorded.running > 0 && recorded.started_ms == *started_ms => {
                self.kb = recorded.each_kb;
            }
            // The record's run is to start soon.
            Course::Follows { started_ms } if started_ms.is_some_and(|started_ms| started_ms > at_ms) => {}
            Course::Follows { .. } => {
                self.course = Course::Grows { growth_kb: recorded.growth_kb, left_ms: Some(at_ms) };
            }
            Course::Grows { growth_kb, .. } => {
                let more = recorded.growth_kb - std::mem::replace(growth_kb, recorded.growth_kb);
                self.kb = (self.kb + more).max(self.base_kb.min(self.kb));
            }
        }
    }

    /// Whether it is the run that was recorded, or was until just now.
    pub(super) fn is_recorded(&self, at_ms: u64) -> bool {
        match self.course {
            Course::Follows { .. } => true,
            Course::Grows { left_ms, .. } => left_ms.is_some_and(|left_ms| at_ms <= left_ms + TOLD_MS),
        }
    }
}
