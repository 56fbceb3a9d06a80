//! What was decided about RAM, with its figures.
//!
//! One tree, `decisions`, which an older Demi does not look at, so that it is no new schema:
//!
//! ```text
//! number (u64, big endian)    as it stands on the page of the API, JSON
//! ```
//!
//! Numbers go on over restarts, whatever the clock says meanwhile. None of it is worth an fdatasync: it is handed over like the
//! history.

use serde_json::value::RawValue;

use super::{id_of, Store, StoreError, INLINE_BYTES, SETTLE_EVERY};

/// Most decisions that are kept.
pub(crate) const DECISIONS_MAX: usize = 1_000;
/// Most entries that make room for a new one: more than one only if an earlier Demi kept more.
const REMOVED_PER_DECISION_MAX: usize = 8;

/// A decision, as it is kept and shown.
#[derive(Clone, Debug)]
pub(crate) struct KeptDecision {
    /// Each has one more than the one before.
    pub(crate) number: u64,
    pub(crate) page: Box<RawValue>,
}

impl Store {
    /// Keeps a decision; beyond [`DECISIONS_MAX`] the oldest goes. Durable after [`Store::hand_over`] as far as said there. Blocks
    /// for the disk if pages must be read.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if it is longer than an entry may be, or a failure of the disk.
    pub(crate) fn keep_decision(&self, decision: &KeptDecision) -> Result<(), StoreError> {
        let page = decision.page.get();
        if page.len() > INLINE_BYTES {
            return Err(StoreError::Refused(format!("it has {} bytes, and {INLINE_BYTES} are the most", page.len())));
        }
        let key = decision.number.to_be_bytes();
        self.guarded(|| self.decisions.insert(key, page))?;
        for _ in 0..REMOVED_PER_DECISION_MAX {
            let Some((oldest, _)) = self.guarded(|| self.decisions.first())? else { break };
            let is_in_place = id_of(&oldest)
                .is_some_and(|number| number <= decision.number && decision.number - number < DECISIONS_MAX as u64);
            if is_in_place {
                break;
            }
            self.guarded(|| self.decisions.remove(&oldest))?;
        }
        self.settle(&self.decisions, &key)
    }

    /// What was decided before this number, newest first, so many at most; what cannot be read is left out. Blocks for the disk.
    pub(crate) fn decisions(&self, before: u64, limit: usize) -> Result<Vec<KeptDecision>, StoreError> {
        let mut found = Vec::new();
        let mut range = self.decisions.range(..before.to_be_bytes()).rev();
        let mut read = 0usize;
        while found.len() < limit {
            let Some((key, page)) = self.guarded(|| range.next().transpose())? else { break };
            found.extend(decision(&key, &page));
            read += 1;
            if read.is_multiple_of(SETTLE_EVERY) {
                self.settle(&self.decisions, &key)?;
            }
        }
        Ok(found)
    }
}

fn decision(key: &[u8], page: &[u8]) -> Option<KeptDecision> {
    let page = RawValue::from_string(String::from_utf8(page.to_vec()).ok()?).ok()?;
    let is_object = page.get().starts_with('{');
    Some(KeptDecision { number: id_of(key)?, page }).filter(|_| is_object)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Scratch;
    use super::*;

    fn made(number: u64) -> KeptDecision {
        let page = RawValue::from_string(format!(r#"{{"act":"trim","unix_ms":{number}}}"#)).expect("it is JSON");
        KeptDecision { number, page }
    }

    fn numbers(store: &Store, before: u64, limit: usize) -> Vec<u64> {
        store.decisions(before, limit).expect("they are read").iter().map(|kept| kept.number).collect()
    }

    #[test]
    fn decisions_come_back_newest_first_and_the_oldest_give_way() {
        let scratch = Scratch::new();
        let store = scratch.open();
        assert!(numbers(&store, u64::MAX, 10).is_empty());
        (1..=1_200).for_each(|number| store.keep_decision(&made(number)).expect("it is kept"));
        drop(store);
        let store = scratch.open();
        assert_eq!(numbers(&store, u64::MAX, 3), [1_200, 1_199, 1_198]);
        assert_eq!(numbers(&store, 203, usize::MAX), [202, 201]);
        assert_eq!(numbers(&store, u64::MAX, usize::MAX).len(), DECISIONS_MAX);
        assert_eq!(store.decisions(u64::MAX, 1).expect("it is read")[0].page.get(), made(1_200).page.get());
    }

    #[test]
    fn what_is_damaged_or_too_long_is_left_out() {
        let scratch = Scratch::new();
        let store = scratch.open();
        store.keep_decision(&made(1)).expect("it is kept");
        for (key, page) in
            [(&b"12345678"[..], &b"{"[..]), (b"short", b"{}"), (b"12345679", b"7"), (b"1234567a", &[0xff])]
        {
            store.decisions.insert(key, page).expect("it is kept");
        }
        assert_eq!(numbers(&store, u64::MAX, usize::MAX), [1]);
        let long = RawValue::from_string(format!(r#"{{"text":"{}"}}"#, "x".repeat(INLINE_BYTES))).expect("it is JSON");
        let refused = store.keep_decision(&KeptDecision { number: 2, page: long });
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    }

    #[test]
    fn numbers_that_cannot_be_do_not_grow_beyond_the_bound() {
        let scratch = Scratch::new();
        let store = scratch.open();
        (0..50).for_each(|number| store.keep_decision(&made(u64::MAX - number)).expect("it is kept"));
        (1..=1_200).for_each(|number| store.keep_decision(&made(number)).expect("it is kept"));
        assert!(numbers(&store, u64::MAX, usize::MAX).len() <= DECISIONS_MAX + 50);
    }
}
