//! What happened to each platform, and how often it was started today.
//!
//! Two trees, which an older Demi does not look at, so that they are no new schema:
//!
//! ```text
//! history   name, 0, unix milliseconds, sequence (big endian)   {"instance":0,"text":"…"}
//! starts    name                                                unix day, count (u32, big endian)
//!           0, written                                          unix day (u32), bytes written on it (u64, big endian)
//! ```
//!
//! Neither is worth an fdatasync: what is written here is handed to the kernel by [`Store::hand_over`], so that it
//! survives the end of Demi, however it ends, and reaches the disk itself with the next letter or at the end.

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, INLINE_BYTES};
use crate::chronicle::Entry;

/// Most entries kept of a platform.
const HISTORY_MAX: u32 = 200;
/// Most entries that make room for a new one: more than one only if an earlier Demi kept more.
const REMOVED_PER_NOTE_MAX: u32 = 8;
/// JSON writes a control character as six.
const LONGEST_ESCAPE: usize = 6;
/// Unix milliseconds and sequence, at the end of a key.
const STAMP_BYTES: usize = 12;

/// Stands among the platforms of `starts`; none is named so.
const WRITTEN_KEY: &[u8] = b"\0written";

/// What stands in an entry besides its key.
#[derive(Serialize, Deserialize)]
struct Value<'v> {
    instance: Option<u32>,
    #[serde(borrow)]
    text: std::borrow::Cow<'v, str>,
}

impl Store {
    /// Keeps what happened to a platform; beyond `HISTORY_MAX` the oldest goes. Durable after [`Store::hand_over`] as
    /// far as said there. Blocks for the disk if pages must be read.
    pub(crate) fn note(&self, platform: &str, entry: &Entry) -> Result<(), StoreError> {
        let prefix = prefix(platform);
        let mut count = match self.noted.borrow().get(platform) {
            Some(count) => *count,
            None => self.count(&prefix)?,
        };
        let sequence = self.sequence.replace(self.sequence.get().wrapping_add(1));
        let mut key = prefix.clone();
        key.extend_from_slice(&entry.unix_ms.to_be_bytes());
        key.extend_from_slice(&sequence.to_be_bytes());
        let value = encode(entry);
        self.guarded(|| self.history.insert(&key, value))?;
        count += 1;
        for _ in 0..REMOVED_PER_NOTE_MAX {
            if count <= HISTORY_MAX {
                break;
            }
            let Some((oldest, _)) = self.guarded(|| self.history.scan_prefix(&prefix).next().transpose())? else {
                break;
            };
            self.guarded(|| self.history.remove(&oldest))?;
            count -= 1;
        }
        self.noted.borrow_mut().insert(platform.into(), count);
        self.settle(&self.history, &key)
    }

    /// What happened to a platform last, oldest first; what cannot be read is left out. Blocks for the disk.
    pub(crate) fn history(&self, platform: &str, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let prefix = prefix(platform);
        let mut entries = Vec::new();
        let mut range = self.history.scan_prefix(&prefix).rev();
        while entries.len() < limit {
            let Some((key, value)) = self.guarded(|| range.next().transpose())? else { break };
            entries.extend(entry(&key[prefix.len()..], &value));
        }
        entries.reverse();
        Ok(entries)
    }

    /// Keeps how often a platform was started on a day. Durable after [`Store::hand_over`] as far as said there.
    pub(crate) fn spend(&self, platform: &str, unix_day: u32, starts: u32) -> Result<(), StoreError> {
        let mut value = [0; 8];
        value[..4].copy_from_slice(&unix_day.to_be_bytes());
        value[4..].copy_from_slice(&starts.to_be_bytes());
        self.guarded(|| self.starts.insert(platform, &value))?;
        self.settle(&self.starts, platform.as_bytes())
    }

    /// How often a platform was started on this day, as far as is known.
    pub(crate) fn starts(&self, platform: &str, unix_day: u32) -> Result<u32, StoreError> {
        let value = self.guarded(|| self.starts.get(platform))?;
        let read = |value: &[u8]| {
            let (day, starts) = value.split_first_chunk::<4>()?;
            let starts = u32::from_be_bytes(starts.try_into().ok()?);
            (u32::from_be_bytes(*day) == unix_day).then_some(starts)
        };
        Ok(value.and_then(|value| read(&value)).unwrap_or(0))
    }

    /// Hands what was written to the kernel: it survives the end of this process, but not that of the machine. Blocks
    /// for the kernel.
    pub(crate) fn hand_over(&self) -> Result<(), StoreError> {
        self.guarded(|| self.db.flush()).map(|_| ())
    }

    /// How many bytes were written on which day, as was last kept.
    pub(crate) fn written(&self) -> Result<(u32, u64), StoreError> {
        let value = self.guarded(|| self.starts.get(WRITTEN_KEY))?;
        let read = |value: &[u8]| {
            let (day, bytes) = value.split_first_chunk::<4>()?;
            Some((u32::from_be_bytes(*day), u64::from_be_bytes(bytes.try_into().ok()?)))
        };
        Ok(value.and_then(|value| read(&value)).unwrap_or_default())
    }

    /// Keeps how many bytes were written on a day. Durable after [`Store::hand_over`] as far as said there.
    pub(crate) fn keep_written(&self, (unix_day, bytes): (u32, u64)) -> Result<(), StoreError> {
        let mut value = [0; 12];
        value[..4].copy_from_slice(&unix_day.to_be_bytes());
        value[4..].copy_from_slice(&bytes.to_be_bytes());
        self.guarded(|| self.starts.insert(WRITTEN_KEY, &value))?;
        self.settle(&self.starts, WRITTEN_KEY)?;
        self.hand_over()
    }

    fn count(&self, prefix: &[u8]) -> Result<u32, StoreError> {
        let mut count = 0;
        let mut range = self.history.scan_prefix(prefix);
        while self.guarded(|| range.next().transpose())?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}

/// No name holds a 0, so no other platform's keys begin so.
fn prefix(platform: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(platform.len() + 1 + STAMP_BYTES);
    key.extend_from_slice(platform.as_bytes());
    key.push(0);
    key
}

/// An entry's value, cut to what sled may be given.
fn encode(entry: &Entry) -> Vec<u8> {
    let mut text = &entry.text[..entry.text.floor_char_boundary(INLINE_BYTES)];
    loop {
        let value = Value { instance: entry.instance, text: text.into() };
        let value = serde_json::to_vec(&value).expect("text and numbers always serialise");
        if value.len() <= INLINE_BYTES {
            return value;
        }
        // What is cut is never more than what is too much, however much of it is escaped.
        let surplus = (value.len() - INLINE_BYTES).div_ceil(LONGEST_ESCAPE);
        text = &text[..text.floor_char_boundary(text.len() - surplus)];
    }
}

fn entry(stamp: &[u8], value: &[u8]) -> Option<Entry> {
    let (unix_ms, _) = stamp.split_first_chunk::<8>()?;
    let Value { instance, text } = serde_json::from_slice(value).ok()?;
    Some(Entry { unix_ms: u64::from_be_bytes(*unix_ms), instance, text: text.into_owned() })
}
