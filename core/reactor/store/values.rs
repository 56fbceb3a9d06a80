//! What plugins keep in the store: small values of JSON under keys of their own.
//!
//! One tree, `plugin_values`. A value is cut into pieces of at most `INLINE_BYTES`, for the reason that long letters have
//! files: a page with longer items may end up in a file that sled never syncs. The pieces of a value stand one after the
//! other, under plugin, key and number, with a zero byte between each, and change in one batch:
//!
//! ```text
//! weather\0last\0\0     first piece
//! weather\0last\0\1     second piece
//! ```

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;

use super::{Store, StoreError, INLINE_BYTES, SETTLE_READS};

/// Longest key. It stands in front of each piece, so 17 of those with their keys must stay below a quarter segment.
const KEY_BYTES_MAX: usize = 256;
/// Longest value: what a message may carry is far more, and a value is written as a whole each time.
const VALUE_BYTES_MAX: usize = 64 * 1024;
/// All keys and values of a plugin: they are read once to count them.
const PLUGIN_BYTES_MAX: usize = 1024 * 1024;
/// Most keys of a plugin.
const PLUGIN_KEYS_MAX: usize = 1000;

/// The tree, opened when a plugin first asks for it, and what is counted of each plugin that has asked.
#[derive(Default)]
pub(super) struct Values {
    tree: OnceCell<sled::Tree>,
    tallies: RefCell<BTreeMap<String, Tally>>,
}

/// What a plugin keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    keys: usize,
    bytes: usize,
}

/// Whether a value of so many bytes may be kept under this key, as far as that can be said without the store.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn check_value(key: &str, value_bytes: usize) -> Result<(), String> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX || key.chars().any(char::is_control) {
        let length = key.len();
        return Err(format!(
            "a key has 1 to {KEY_BYTES_MAX} bytes and no control characters; this one has {length} bytes"
        ));
    }
    if value_bytes > VALUE_BYTES_MAX {
        return Err(format!("a value has at most {VALUE_BYTES_MAX} bytes as JSON; this one has {value_bytes}"));
    }
    Ok(())
}

impl Store {
    /// What `plugin` last put under this key. Blocks for the disk.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if there can be no such key, or a failure of the disk.
    pub fn plugin_get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        check_value(key, 0).map_err(StoreError::Refused)?;
        let tree = self.values()?;
        let stem = stem(plugin, key);
        let mut value = None;
        for piece in tree.scan_prefix(&stem) {
            let (_, piece) = self.guarded(|| piece)?;
            value.get_or_insert_with(Vec::new).extend_from_slice(&piece);
        }
        self.settle_values(tree, &stem)?;
        Ok(value)
    }

    /// Keeps a value for `plugin` under a key, or takes it away (`None`); that is on the disk when the next
    /// [`Store::flush`] has returned. Blocks for the disk. After a failure of the disk the old or the new value is there,
    /// never a part of one.
    ///
    /// # Errors
    /// [`StoreError::Refused`] beyond the bounds of this module, or a failure of the disk.
    pub fn plugin_put(&self, plugin: &str, key: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
        check_value(key, value.map_or(0, <[u8]>::len)).map_err(StoreError::Refused)?;
        let tree = self.values()?;
        let stem = stem(plugin, key);
        let mut batch = sled::Batch::default();
        let (mut had, mut had_bytes) = (false, 0);
        for piece in tree.scan_prefix(&stem) {
            let (name, piece) = self.guarded(|| piece)?;
            had = true;
            had_bytes += piece.len();
            batch.remove(name);
        }
        let before = self.tally(tree, plugin)?;
        let mut after = before;
        if had {
            after.keys -= 1;
            after.bytes -= had_bytes + key.len();
        }
        if let Some(value) = value {
            after.keys += 1;
            after.bytes += value.len() + key.len();
            let is_more = after.keys > before.keys || after.bytes > before.bytes;
            if is_more && (after.keys > PLUGIN_KEYS_MAX || after.bytes > PLUGIN_BYTES_MAX) {
                return Err(StoreError::Refused(format!(
                    "{plugin} would keep {} bytes under {} keys, and {PLUGIN_BYTES_MAX} bytes under {PLUGIN_KEYS_MAX} \
                     keys are the most; put null to take a value away",
                    after.bytes, after.keys
                )));
            }
            // Even an empty value has a piece, by which it is known.
            let count = value.len().div_ceil(INLINE_BYTES).max(1);
            for number in 0..count {
                let start = number * INLINE_BYTES;
                let piece = &value[start..value.len().min(start + INLINE_BYTES)];
                let mut name = stem.clone();
                name.push(u8::try_from(number).expect("the longest value has 64 pieces"));
                batch.insert(name, piece);
            }
        } else if !had {
            return Ok(());
        }
        self.guarded(|| tree.apply_batch(batch))?;
        self.values.tallies.borrow_mut().insert(plugin.to_owned(), after);
        self.settle_values(tree, &stem)
    }

    fn values(&self) -> Result<&sled::Tree, StoreError> {
        if let Some(tree) = self.values.tree.get() {
            return Ok(tree);
        }
        let tree = self.guarded(|| self.db.open_tree("plugin_values"))?;
        Ok(self.values.tree.get_or_init(|| tree))
    }

    /// What a plugin keeps: counted when it is first asked for, and carried on from there.
    fn tally(&self, tree: &sled::Tree, plugin: &str) -> Result<Tally, StoreError> {
        if let Some(tally) = self.values.tallies.borrow().get(plugin) {
            return Ok(*tally);
        }
        let mut prefix = plugin.as_bytes().to_vec();
        prefix.push(0);
        let mut tally = Tally::default();
        for piece in tree.scan_prefix(&prefix) {
            let (name, piece) = self.guarded(|| piece)?;
            tally.bytes += piece.len();
            if name.last() == Some(&0) {
                tally.keys += 1;
                // Without the prefix, the zero byte behind the key and the number.
                tally.bytes += name.len() - prefix.len() - 2;
            }
        }
        self.values.tallies.borrow_mut().insert(plugin.to_owned(), tally);
        Ok(tally)
    }

    /// As `settle` of the letters, for this tree.
    fn settle_values(&self, tree: &sled::Tree, key: &[u8]) -> Result<(), StoreError> {
        for _ in 0..SETTLE_READS {
            self.guarded(|| tree.contains_key(key))?;
        }
        Ok(())
    }
}

fn stem(plugin: &str, key: &str) -> Vec<u8> {
    let mut stem = Vec::with_capacity(plugin.len() + key.len() + 3);
    stem.extend_from_slice(plugin.as_bytes());
    stem.push(0);
    stem.extend_from_slice(key.as_bytes());
    stem.push(0);
    stem
}
