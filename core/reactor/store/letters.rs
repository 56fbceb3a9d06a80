//! The dead letters: kept, listed, changed, taken away.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::letter::Head;
use super::{
    guarded, id_of, DeadLetter, LetterFilter, Store, StoreError, Tally, INLINE_BYTES, SETTLE_EVERY, SETTLE_READS,
    TALLY_KEY,
};

/// The directory of the files of long letters, in the data directory.
pub(super) const LETTER_FILES: &str = "db/letters";

/// A list of letters ends with the one that brings it to this: what is listed is held in memory, twice while it is sent.
pub(super) const LISTED_BYTES_MAX: usize = 1024 * 1024;

/// Letters that are looked at for one list: if few of very many are meant, a list may be short, or empty, and go on.
const LOOKED_AT_MAX: usize = 20_000;

/// Letters taken away in one go.
pub(super) const PURGED_MAX: usize = 1_000;

/// More than a group can have.
const BURIALS_MAX: usize = 1_000;

const DAY_MS: u64 = 86_400_000;

/// Some of the dead letters, in the order of their ids.
#[derive(Debug, PartialEq, Eq)]
pub struct LetterPage {
    /// The letters with their ids.
    pub letters: Vec<(u64, DeadLetter)>,
    /// The last id that was looked at, if there are letters after it.
    pub next: Option<u64>,
}

/// How many letters there are, by platform.
pub(super) type Census = BTreeMap<String, u64>;

impl Store {
    /// Keeps a letter and returns its id; it is on the disk when the next [`Store::flush`] has returned. Ids increase by
    /// one and are never given twice, not even when the letter is gone. Blocks for the disk. Nothing is ever removed to
    /// make room: at the maximum this is [`StoreError::Full`]. After any other error the letter may or may not be there
    /// after a restart.
    pub fn bury(&self, letter: &DeadLetter) -> Result<u64, StoreError> {
        let Tally { next_id: id, count } = self.tally.get();
        if count >= self.dead_letters_max {
            return Err(StoreError::Full { buried: count, max: self.dead_letters_max });
        }
        let after = Tally { next_id: id + 1, count: count + 1 };
        let entry = self.entry(id, letter)?;
        let mut batch = sled::Batch::default();
        batch.insert(&id.to_be_bytes(), entry);
        batch.insert(&TALLY_KEY, &after.encode());
        self.guarded(|| self.letters.apply_batch(batch))?;
        self.tally.set(after);
        *self.census.borrow_mut().entry(letter.head().platform).or_default() += 1;
        self.settle(&self.letters, &id.to_be_bytes())?;
        Ok(id)
    }

    /// How many letters there are. Kept in memory; does not block.
    #[cfg(test)]
    pub(super) fn dead_letters(&self) -> u64 {
        self.tally.get().count
    }

    /// How many letters there are, by platform. Kept in memory; does not block.
    pub(crate) fn letters_by_platform(&self) -> BTreeMap<String, u64> {
        self.census.borrow().clone()
    }

    /// When the letter with the lowest id was given up, unix milliseconds. Blocks for the disk.
    pub(crate) fn oldest_letter(&self) -> Result<Option<u64>, StoreError> {
        let first = self.guarded(|| self.letters.range(..TALLY_KEY).next().transpose())?;
        Ok(first.and_then(|(_, entry)| Head::of(&entry)).map(|head| head.buried_at_unix_ms))
    }

    /// The letters with an id above `after` that are meant, in the order of their ids; `after` 0 begins at the first. Stops
    /// at `limit` letters, with the letter that brings them to `LISTED_BYTES_MAX`, or after `LOOKED_AT_MAX` letters. Blocks
    /// for the disk and holds all of them in memory.
    pub fn list(&self, filter: &LetterFilter, after: u64, limit: usize) -> Result<LetterPage, StoreError> {
        let mut page = LetterPage { letters: Vec::new(), next: None };
        let mut bytes = 0;
        page.next = self.each(filter, after, |id, entry| {
            let letter = self.letter(id, entry)?;
            bytes += letter.bytes();
            page.letters.push((id, letter));
            Ok(page.letters.len() < limit && bytes < LISTED_BYTES_MAX)
        })?;
        Ok(page)
    }

    /// The letter with this id, if there is one. Blocks for the disk.
    pub fn find(&self, id: u64) -> Result<Option<DeadLetter>, StoreError> {
        if id.to_be_bytes() == TALLY_KEY {
            return Ok(None);
        }
        let entry = self.guarded(|| self.letters.get(id.to_be_bytes()))?;
        entry.map(|entry| self.letter(id, &entry)).transpose()
    }

    /// Changes the letter with this id; false if there is none. On the disk when the next [`Store::flush`] has returned.
    /// After a failure of the disk the old or the new letter is there. Blocks for the disk.
    pub fn change(&self, id: u64, change: impl FnOnce(&mut DeadLetter)) -> Result<bool, StoreError> {
        let Some(before) = self.find(id)? else { return Ok(false) };
        let mut letter = before.clone();
        change(&mut letter);
        let entry = self.entry(id, &letter)?;
        let is_inline = entry.first() != Some(&Head::IN_FILE);
        self.guarded(|| self.letters.insert(id.to_be_bytes(), entry))?;
        if is_inline {
            self.doom(id);
        }
        let mut census = self.census.borrow_mut();
        uncount(&mut census, &before.head().platform);
        *census.entry(letter.head().platform).or_default() += 1;
        Ok(true)
    }

    /// Takes the letter with this id away; false if there is none. Durable as [`Store::change`]. Blocks for the disk.
    pub fn remove(&self, id: u64) -> Result<bool, StoreError> {
        if id.to_be_bytes() == TALLY_KEY {
            return Ok(false);
        }
        let Some(entry) = self.guarded(|| self.letters.get(id.to_be_bytes()))? else { return Ok(false) };
        self.take_away(id, &entry)?;
        Ok(true)
    }

    /// Takes away the letters that are meant, `PURGED_MAX` at most: how many went, and whether there may be more. Durable
    /// as [`Store::change`]. Blocks for the disk.
    pub fn purge(&self, filter: &LetterFilter) -> Result<(u64, bool), StoreError> {
        let mut met = Vec::new();
        let next = self.each(filter, 0, |id, entry| {
            // Only what is small is remembered, not the letters.
            met.push((id, Head::of(entry)));
            Ok(met.len() < PURGED_MAX)
        })?;
        for (id, head) in &met {
            self.take_away_headed(*id, head.as_ref())?;
        }
        Ok((met.len() as u64, next.is_some()))
    }

    /// Takes away what is older than `store.dead_letters_days`, `PURGED_MAX` at most: how many went, by platform, and
    /// whether there may be more. Durable as [`Store::change`]. Blocks for the disk.
    pub(crate) fn forget_letters(&self, unix_ms: u64) -> Result<(Census, bool), StoreError> {
        let mut gone = Census::new();
        if self.dead_letters_days == 0 {
            return Ok((gone, false));
        }
        let until = unix_ms.saturating_sub(self.dead_letters_days * DAY_MS);
        loop {
            // In the order of their ids they were buried, so the first that is young enough ends the search.
            let first = self.guarded(|| self.letters.range(..TALLY_KEY).next().transpose())?;
            let Some((key, entry)) = first else { return Ok((gone, false)) };
            let (Some(id), Some(head)) = (id_of(&key), Head::of(&entry)) else { return Ok((gone, false)) };
            if head.buried_at_unix_ms >= until {
                return Ok((gone, false));
            }
            if gone.values().sum::<u64>() == PURGED_MAX as u64 {
                return Ok((gone, true));
            }
            self.take_away_headed(id, Some(&head))?;
            *gone.entry(head.platform).or_default() += 1;
        }
    }

    /// Visits the entries above `after` that are meant until `visit` says no, or `LOOKED_AT_MAX` were looked at; returns
    /// the id after which to go on, if there are letters after it.
    fn each(
        &self,
        filter: &LetterFilter,
        after: u64,
        mut visit: impl FnMut(u64, &[u8]) -> Result<bool, StoreError>,
    ) -> Result<Option<u64>, StoreError> {
        let Some(first) = after.checked_add(1) else { return Ok(None) };
        let mut range = self.letters.range(first.to_be_bytes()..TALLY_KEY);
        let (mut last, mut goes_on, mut looked_at) = (0, true, 0);
        let mut last_key: Option<sled::IVec> = None;
        while let Some((key, entry)) = self.guarded(|| range.next().transpose())? {
            if !goes_on || looked_at == LOOKED_AT_MAX {
                last_key.iter().try_for_each(|key| self.settle(&self.letters, key))?;
                return Ok(Some(last));
            }
            let id = id_of(&key).ok_or_else(|| self.damaged("a dead letter has a malformed id".into()))?;
            let head = Head::of(&entry).ok_or_else(|| self.damaged(format!("dead letter {id} is unreadable")))?;
            if filter.takes(&head) {
                goes_on = visit(id, &entry)?;
            }
            looked_at += 1;
            if looked_at.is_multiple_of(SETTLE_EVERY) {
                self.settle(&self.letters, &key)?;
            }
            last = id;
            last_key = Some(key);
        }
        // The last page of this call, which the next call may not meet again.
        last_key.iter().try_for_each(|key| self.settle(&self.letters, key))?;
        Ok(None)
    }

    fn take_away(&self, id: u64, entry: &[u8]) -> Result<(), StoreError> {
        self.take_away_headed(id, Head::of(entry).as_ref())
    }

    fn take_away_headed(&self, id: u64, head: Option<&Head>) -> Result<(), StoreError> {
        let before = self.tally.get();
        let after = Tally { count: before.count.saturating_sub(1), ..before };
        let mut batch = sled::Batch::default();
        batch.remove(&id.to_be_bytes());
        batch.insert(&TALLY_KEY, &after.encode());
        self.guarded(|| self.letters.apply_batch(batch))?;
        self.tally.set(after);
        if let Some(head) = head {
            uncount(&mut self.census.borrow_mut(), &head.platform);
        }
        self.doom(id);
        self.settle(&self.letters, &id.to_be_bytes())
    }

    /// What stands in the tree for a letter; that of a long one is made durable in its file.
    fn entry(&self, id: u64, letter: &DeadLetter) -> Result<Vec<u8>, StoreError> {
        let encoded = letter.encode();
        if encoded.len() <= INLINE_BYTES {
            return Ok(encoded);
        }
        write_file(&self.path.join(LETTER_FILES), id, &encoded)?;
        // One that was doomed and is needed again.
        self.doomed.borrow_mut().retain(|path| *path != self.file_of(id));
        Ok(letter.head().encode())
    }

    /// The letter an entry of the tree stands for.
    fn letter(&self, id: u64, entry: &[u8]) -> Result<DeadLetter, StoreError> {
        if entry.first() != Some(&Head::IN_FILE) {
            return DeadLetter::decode(entry).ok_or_else(|| self.damaged(format!("dead letter {id} is unreadable")));
        }
        let file = self.file_of(id);
        match fs::read(&file) {
            Ok(bytes) => DeadLetter::decode(&bytes)
                .ok_or_else(|| StoreError::Damaged { path: file, what: format!("dead letter {id} is unreadable") }),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Err(StoreError::Damaged { path: file, what: format!("the file of dead letter {id} is gone") })
            }
            Err(e) => Err(StoreError::from_io(&file, e)),
        }
    }

    fn file_of(&self, id: u64) -> PathBuf {
        self.path.join(LETTER_FILES).join(id.to_string())
    }

    /// A file that is not needed any more goes once that is durable.
    fn doom(&self, id: u64) {
        let path = self.file_of(id);
        if path.exists() {
            self.doomed.borrow_mut().push(path);
        }
    }
}

/// Makes a file below `directory` durable, in place of the one that may be there. One left by a crash before its entry was
/// written is overwritten: that id was never given out.
pub(super) fn write_file(directory: &Path, id: u64, bytes: &[u8]) -> Result<(), StoreError> {
    let path = directory.join(id.to_string());
    let draft = directory.join(format!("{id}{DRAFT}"));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|e| {
        // Best effort: on a full disk the half that was written should not stay.
        let _ = fs::remove_file(&draft);
        StoreError::from_io(&path, e)
    })
}

/// Behind the name of a file that is being written.
const DRAFT: &str = ".new";

/// Removes the files below `directory` that no entry names: a crash came between the one and the other.
pub(super) fn remove_strays(
    directory: &Path,
    is_named: impl Fn(u64) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) => return Err(StoreError::from_io(directory, e)),
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.parse::<u64>().ok());
        let is_draft = name.to_str().is_some_and(|name| name.ends_with(DRAFT));
        if is_draft || id.map(&is_named).transpose()? == Some(false) {
            // It takes room and does no harm: the next start tries again.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Counts the letters of a database, and says which were posts, the last of them. Blocks for the disk; takes about a
/// millisecond for a thousand.
pub(super) fn count(path: &Path, letters: &sled::Tree) -> Result<(Census, Vec<(u64, u64)>), StoreError> {
    let mut census = Census::new();
    let mut posts = Vec::new();
    let mut range = letters.range(..TALLY_KEY);
    let mut number = 0usize;
    while let Some((key, entry)) = guarded(path, || range.next().transpose())? {
        // One that cannot be read is told when it is looked at.
        let head = Head::of(&entry).unwrap_or_default();
        *census.entry(head.platform).or_default() += 1;
        if head.post > 0 {
            posts.push((head.post, id_of(&key).unwrap_or_default()));
            // A crash comes between two writes of the last group, so only the last letters can be affected.
            if posts.len() == 2 * BURIALS_MAX {
                posts.drain(..BURIALS_MAX);
            }
        }
        number += 1;
        if number.is_multiple_of(SETTLE_EVERY) {
            for _ in 0..SETTLE_READS {
                guarded(path, || letters.contains_key(&key))?;
            }
        }
    }
    Ok((census, posts))
}

fn uncount(census: &mut Census, platform: &str) {
    if let Some(count) = census.get_mut(platform) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            census.remove(platform);
        }
    }
}
