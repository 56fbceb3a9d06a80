//! From each earlier layout of the store to the next. A step may be cut short anywhere and is then taken again as a whole,
//! so it must do no harm to what it has done already. The version is written last, when what the step did is durable.

use std::fs;
use std::path::Path;

use super::letter::Head;
use super::posts;
use super::{guarded, DeadLetter, StoreError, SCHEMA, SETTLE_EVERY, SETTLE_READS, TALLY_KEY};

/// Changes a database from one version to the next. `path` is that of the database.
type Step = fn(path: &Path, db: &sled::Db) -> Result<(), StoreError>;

/// By the version that they begin with, from 1 on. `tests/fixtures/store-vN` is a store of version N.
const STEPS: [Step; SCHEMA as usize - 1] = [give_heads, give_keys];

/// Takes a database of an earlier version to the present one. `sync` makes durable what was written. Blocks for the disk.
pub(super) fn migrate(
    path: &Path,
    db: &sled::Db,
    meta: &sled::Tree,
    found: u32,
    sync: impl Fn() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for version in found..SCHEMA {
        STEPS[version as usize - 1](path, db)?;
        sync()?;
        guarded(path, || meta.insert("schema", &(version + 1).to_be_bytes()))?;
        sync()?;
        log::info!("the store was taken from version {version} to {}", version + 1);
    }
    Ok(())
}

/// 1 to 2: an entry that stands for a letter in a file says of which platform it is, and what else is looked for. Letters of
/// version 1 are read as they are; those of version 2 no earlier Demi can read.
fn give_heads(path: &Path, db: &sled::Db) -> Result<(), StoreError> {
    let letters = guarded(path, || db.open_tree("dead_letters"))?;
    let mut range = letters.range(..TALLY_KEY);
    let mut number = 0usize;
    while let Some((key, entry)) = guarded(path, || range.next().transpose())? {
        if entry == [Head::IN_FILE] {
            let id = super::id_of(&key).unwrap_or_default();
            let file = path.join("letters").join(id.to_string());
            // One that is gone or cannot be read is told when it is looked at.
            let letter = fs::read(file).ok().and_then(|bytes| DeadLetter::decode(&bytes)).unwrap_or_default();
            guarded(path, || letters.insert(&key, letter.head().encode()))?;
        }
        number += 1;
        settle(path, &letters, &key, number)?;
    }
    Ok(())
}

/// 2 to 3: the entry of a post counts the instances that ended with it and has its idempotency key, and what is to be forgotten
/// has the number of its end, which is 0 for those of before.
fn give_keys(path: &Path, db: &sled::Db) -> Result<(), StoreError> {
    let tree = guarded(path, || db.open_tree("posts"))?;
    let mut range = tree.range(posts::name_of(0)..posts::POSTS_TALLY_KEY);
    let mut number = 0usize;
    while let Some((key, entry)) = guarded(path, || range.next().transpose())? {
        let id = super::id_of(&key[1..]).unwrap_or_default();
        let files = path.join("posts");
        let file = || fs::read(files.join(id.to_string())).ok();
        if let Some((changed, request)) = posts::of_schema_2(&entry, file) {
            if let Some(request) = request {
                super::letters::write_file(&files, id, &request)?;
            }
            guarded(path, || tree.insert(&key, changed))?;
        }
        number += 1;
        settle(path, &tree, &key, number)?;
    }
    let mut range = tree.range(posts::forget_names());
    while let Some((key, remembered)) = guarded(path, || range.next().transpose())? {
        if let Some(changed) = posts::forgotten_of_schema_2(&remembered) {
            guarded(path, || tree.insert(&key, changed))?;
        }
        number += 1;
        settle(path, &tree, &key, number)?;
    }
    Ok(())
}

/// Has sled's cache notice now and then what was read; see `Store::settle`.
fn settle(path: &Path, tree: &sled::Tree, key: &[u8], number: usize) -> Result<(), StoreError> {
    if number.is_multiple_of(SETTLE_EVERY) {
        for _ in 0..SETTLE_READS {
            guarded(path, || tree.contains_key(key))?;
        }
    }
    Ok(())
}
