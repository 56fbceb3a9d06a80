//! What an instance of each platform has weighed at most, for the scaler.
//!
//! One tree, `peaks`, which an older Demi does not look at, so that it is no new schema:
//!
//! ```text
//! name    unix seconds, bytes (u64, big endian)
//! ```
//!
//! A peak counts for half a day later, so one that was not seen again for a month is nothing and goes. None of it is worth an
//! fdatasync: it is handed over like the history.

use std::time::Duration;

use super::{Store, StoreError};

/// No machine that Demi runs on has so much memory: what says so is damaged.
const BYTES_MAX: u64 = 1 << 50;
/// A machine without a clock of its own begins with a time that is somewhat behind: a date that is ahead by no more than this
/// counts as now.
const AHEAD_MAX_S: u64 = 86_400;
/// What is older is of no use: after so many halvings of a terabyte a kilobyte is left.
const AGE_MAX_S: u64 = 30 * 86_400;

/// What an instance of a platform has weighed at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeptPeak {
    pub(crate) bytes: u64,
    /// How long ago it was found to.
    pub(crate) age: Duration,
}

impl Store {
    /// Keeps what an instance of a platform has weighed at most, as of a date in unix seconds. Durable after
    /// [`Store::hand_over`] as far as said there. Blocks for the disk if pages must be read.
    pub(crate) fn keep_peak(&self, platform: &str, unix_s: u64, bytes: u64) -> Result<(), StoreError> {
        if !self.has_forgotten_peaks.replace(true) {
            self.forget_peaks(unix_s)?;
        }
        let mut value = [0; 16];
        value[..8].copy_from_slice(&unix_s.to_be_bytes());
        value[8..].copy_from_slice(&bytes.to_be_bytes());
        self.guarded(|| self.peaks.insert(platform, &value))?;
        self.settle(&self.peaks, platform.as_bytes())
    }

    /// What an instance of a platform has weighed at most, as of a date in unix seconds; what cannot be is passed over. Blocks
    /// for the disk.
    pub(crate) fn peak(&self, platform: &str, unix_s: u64) -> Result<Option<KeptPeak>, StoreError> {
        let value = self.guarded(|| self.peaks.get(platform))?;
        Ok(value.and_then(|value| read(&value, unix_s)))
    }

    /// Takes away what is of no use any more: that of platforms which are long gone. Blocks for the disk.
    fn forget_peaks(&self, unix_s: u64) -> Result<(), StoreError> {
        let mut range = self.peaks.iter();
        while let Some((name, value)) = self.guarded(|| range.next().transpose())? {
            if read(&value, unix_s).is_none() {
                self.guarded(|| self.peaks.remove(&name))?;
            }
        }
        Ok(())
    }
}

fn read(value: &[u8], unix_s: u64) -> Option<KeptPeak> {
    let (date, bytes) = value.split_first_chunk::<8>()?;
    let (date, bytes) = (u64::from_be_bytes(*date), u64::from_be_bytes(bytes.try_into().ok()?));
    let age_s = unix_s.saturating_sub(date);
    let is_sound = date <= unix_s.saturating_add(AHEAD_MAX_S) && age_s <= AGE_MAX_S && (1..=BYTES_MAX).contains(&bytes);
    is_sound.then_some(KeptPeak { bytes, age: Duration::from_secs(age_s) })
}

#[cfg(test)]
mod tests {
    use super::super::tests::Scratch;
    use super::*;

    const NOW: u64 = 1_760_000_000;

    fn known(bytes: u64, age_s: u64) -> Option<KeptPeak> {
        Some(KeptPeak { bytes, age: Duration::from_secs(age_s) })
    }

    #[test]
    fn a_peak_comes_back_with_its_age_over_restarts_and_the_last_one_counts() {
        let scratch = Scratch::new();
        let store = scratch.open();
        assert_eq!(store.peak("voice", NOW).expect("it is read"), None);
        store.keep_peak("voice", NOW - 500, 7).expect("it is kept");
        store.keep_peak("voice", NOW, 120_000_000).expect("it is kept");
        store.keep_peak("voice-2", NOW, 1).expect("it is kept");
        drop(store);
        let store = scratch.open();
        assert_eq!(store.peak("voice", NOW + 3_600).expect("it is read"), known(120_000_000, 3_600));
        assert_eq!(store.peak("files", NOW).expect("it is read"), None);
    }

    #[test]
    fn what_cannot_be_is_passed_over() {
        let scratch = Scratch::new();
        let store = scratch.open();
        for (date, bytes, expected) in [
            (NOW, BYTES_MAX, known(BYTES_MAX, 0)),
            (NOW, BYTES_MAX + 1, None),
            (NOW, u64::MAX, None),
            (NOW, 0, None),
            (NOW + AHEAD_MAX_S, 5, known(5, 0)),
            (NOW + AHEAD_MAX_S + 1, 5, None),
            (u64::MAX, 5, None),
            (NOW - AGE_MAX_S, 5, known(5, AGE_MAX_S)),
            (NOW - AGE_MAX_S - 1, 5, None),
            (0, 5, None),
        ] {
            store.keep_peak("voice", date, bytes).expect("it is kept");
            assert_eq!(store.peak("voice", NOW).expect("it is read"), expected, "{bytes} bytes at {date}");
        }
        for damaged in [&b""[..], b"1234567", &[0; 15], &[1; 17]] {
            store.peaks.insert("voice", damaged).expect("it is kept");
            assert_eq!(store.peak("voice", NOW).expect("it is read"), None, "{damaged:?}");
        }
    }

    #[test]
    fn peaks_of_platforms_that_are_long_gone_go() {
        let scratch = Scratch::new();
        let store = scratch.open();
        for number in 0..100 {
            store.keep_peak(&format!("gone-{number}"), NOW - AGE_MAX_S - 1, 5).expect("it is kept");
        }
        store.keep_peak("lately", NOW - AGE_MAX_S, 5).expect("it is kept");
        drop(store);
        let store = scratch.open();
        store.keep_peak("voice", NOW, 5).expect("it is kept");
        assert_eq!(store.peaks.len(), 2);
    }
}
