//! What went wrong with a platform lately: requests whose callers were told so, and health checks that said why. A bounded
//! ring, in which the same trouble again is counted and not kept again, so that a storm of one kind leaves the others.

use std::collections::VecDeque;

use serde::Serialize;

/// Mishaps kept of a platform.
const MISHAPS_MAX: usize = 16;
/// Characters kept of what was said.
const DETAIL_CHARS_MAX: usize = 200;
/// The kind of a health check that failed; those of requests are the codes of problems.
pub(crate) const HEALTH_CHECK: &str = "health_check";

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Mishap {
    /// When it last did.
    pub(crate) unix_ms: u64,
    /// With which instance, if one had the request.
    pub(crate) instance: Option<u32>,
    /// A word for programs.
    pub(crate) kind: &'static str,
    /// What was said of it.
    pub(crate) detail: Box<str>,
    /// How often it did since it was first kept.
    pub(crate) times: u64,
}

/// The mishaps of a platform.
#[derive(Debug, Default)]
pub(crate) struct Mishaps(VecDeque<Mishap>);

impl Mishaps {
    /// Adds one; the oldest gives way.
    pub(crate) fn add(&mut self, unix_ms: u64, instance: Option<u32>, kind: &'static str, detail: &str) {
        let end = detail.char_indices().nth(DETAIL_CHARS_MAX).map_or(detail.len(), |(end, _)| end);
        let detail = &detail[..end];
        let is_same = |other: &Mishap| other.instance == instance && other.kind == kind && *other.detail == *detail;
        let known = self.0.iter().rposition(is_same).and_then(|position| self.0.remove(position));
        if known.is_none() && self.0.len() == MISHAPS_MAX {
            self.0.pop_front();
        }
        let mishap = match known {
            Some(known) => Mishap { unix_ms, times: known.times + 1, ..known },
            None => Mishap { unix_ms, instance, kind, detail: detail.into(), times: 1 },
        };
        self.0.push_back(mishap);
    }

    /// Newest first.
    pub(crate) fn newest(&self) -> impl Iterator<Item = &Mishap> {
        self.0.iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_told_first() {
        let mut mishaps = Mishaps::default();
        (0..100).for_each(|number| mishaps.add(number, Some(0), "failed", &number.to_string()));
        let kept: Vec<u64> = mishaps.newest().map(|mishap| mishap.unix_ms).collect();
        assert_eq!(kept, (84..100).rev().collect::<Vec<u64>>());
    }

    #[test]
    fn a_storm_of_one_kind_is_counted_and_leaves_the_others() {
        let mut mishaps = Mishaps::default();
        mishaps.add(0, Some(1), "broken", "it broke");
        (1..=1000).for_each(|number| mishaps.add(number, None, "queue_full", "too many"));
        mishaps.add(1001, Some(1), "broken", "it broke");
        mishaps.add(1002, Some(0), "broken", "it broke");
        let kept: Vec<_> = mishaps.newest().map(|mishap| (mishap.instance, mishap.unix_ms, mishap.times)).collect();
        assert_eq!(kept, [(Some(0), 1002, 1), (Some(1), 1001, 2), (None, 1000, 1000)]);
    }

    #[test]
    fn of_a_long_tale_the_beginning_is_kept() {
        let mut mishaps = Mishaps::default();
        (0..2).for_each(|number| mishaps.add(0, None, "failed", &format!("{}{number}", "ü".repeat(DETAIL_CHARS_MAX))));
        let [only] = &mishaps.newest().collect::<Vec<_>>()[..] else { panic!("{mishaps:?}") };
        assert_eq!((only.detail.chars().count(), only.times), (DETAIL_CHARS_MAX, 2));
    }
}
