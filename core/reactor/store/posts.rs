//! Posts: requests for whose answer nobody waits, kept until they are delivered, buried or expired.
//!
//! One tree, `posts`, so that everything that belongs to a post changes in one batch. The first byte of a key says what it
//! is; ids, times and the numbers of the tally are u64, big endian:
//!
//! ```text
//! 1, id           a post: see `encode`. One longer than `INLINE_BYTES` has a file, `db/posts/ID`, for what never changes
//! 1, 0xff × 8     the tally: next id, posts that wait
//! 2, key          what an idempotency key was used for: hash of the request (u128), id
//! 3, id           what became of it
//! 4, time, id     when the two above and the one below are forgotten (unix milliseconds): the number of its end, and its
//!                 idempotency key
//! 5, number       the end with this number: whose it was
//! ```
//!
//! What became of a post is remembered for a day, and so is its key, from the moment that it is settled. Ends are numbered in
//! the order in which they are kept, whatever the clock does: by its microseconds, or by one more than the last where it has not
//! gone on. So no number is given twice, though nothing is left that remembers the last.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use demi_conductor::Grave;

use super::coding::{put_bytes, put_number, take_bytes, take_number, take_text};
use super::letters::write_file;
use super::{id_of, DeadLetter, Store, StoreError, Tally, INLINE_BYTES, SETTLE_EVERY};

/// The directory of the files of long posts, in the data directory.
pub(super) const POST_FILES: &str = "db/posts";

/// How long results and idempotency keys are remembered, milliseconds.
const REMEMBERED_MS: u64 = 86_400_000;
/// Longest idempotency key, bytes: it is a key of the tree.
const KEY_BYTES_MAX: usize = 256;
/// Longest error that is kept, bytes.
const ERROR_BYTES_MAX: usize = 200;

const POST: u8 = 1;
const KEY: u8 = 2;
const RESULT: u8 = 3;
const FORGET: u8 = 4;
const END: u8 = 5;

/// The first byte of a post's entry.
const POST_VERSION: u8 = 2;
/// The first byte of a result.
const RESULT_VERSION: u8 = 1;

/// A request that was taken for delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Post {
    /// When it was taken, unix milliseconds, as all times here.
    pub accepted_unix_ms: u64,
    /// Not to be delivered before; 0: at once.
    pub not_before_unix_ms: u64,
    /// Not to be delivered any more then; 0: never.
    pub expires_unix_ms: u64,
    /// How often delivery was tried.
    pub attempts: u32,
    /// In how many of these attempts the instance ended that had it.
    pub kills: u32,
    /// What went wrong at the first attempt; cut to 200 bytes.
    pub first_error: String,
    /// What went wrong at the last attempt; cut to 200 bytes.
    pub last_error: String,
    /// The platform that it goes to.
    pub platform: String,
    /// The rule that it goes by, as `routes[2]`; empty if it names its platform.
    pub route: String,
    /// The conversation within which order is kept; empty if it has none.
    pub conversation: String,
    /// What makes it the same post as another with the same; empty if it has none. At most 256 bytes.
    pub idempotency_key: String,
    /// The platform or client it came from.
    pub from: String,
    /// The kind of request.
    pub kind: String,
    /// The method of the request.
    pub method: String,
    /// The target of the request.
    pub target: String,
    /// The media type of the body; empty if none was given.
    pub content_type: String,
    /// The body.
    pub body: Vec<u8>,
}

/// What became of taking a post.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It is kept under this id. It is taken for good when the next [`Store::flush`] has returned.
    New(u64),
    /// The same request was taken under this key before, with this id, and this became of it, if anything did. That it was
    /// taken is certain when the next [`Store::flush`] has returned.
    Known(u64, Option<PostResult>),
    /// The key was used for another request, which has this id.
    Conflict(u64),
}

/// How a post ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PostEnd {
    /// Its platform answered it well.
    #[default]
    Delivered,
    /// It is the dead letter with this id.
    Buried(u64),
}

/// What became of a post.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostResult {
    /// When it was settled, unix milliseconds.
    pub settled_unix_ms: u64,
    /// How it ended.
    pub end: PostEnd,
    /// The status of the last answer; 0 if there was none.
    pub status: u16,
    /// How often delivery was tried.
    pub attempts: u32,
    /// What went wrong last; cut to 200 bytes.
    pub error: String,
    /// Who answered it well, as `name/0`; empty if nobody did. Cut to 200 bytes.
    pub instance: String,
}

impl Post {
    /// What never changes: numbers and texts in the order of the struct.
    fn encode_request(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96 + self.body.len());
        put_number(&mut out, self.accepted_unix_ms);
        for text in self.request_texts() {
            put_bytes(&mut out, text.as_bytes());
        }
        put_bytes(&mut out, &self.body);
        out
    }

    fn request_texts(&self) -> [&String; 8] {
        [
            &self.route,
            &self.conversation,
            &self.idempotency_key,
            &self.from,
            &self.kind,
            &self.method,
            &self.target,
            &self.content_type,
        ]
    }

    fn decode_request(&mut self, bytes: &[u8]) -> Option<()> {
        let rest = &mut { bytes };
        self.accepted_unix_ms = take_number(rest)?;
        self.route = take_text(rest)?;
        self.conversation = take_text(rest)?;
        self.idempotency_key = take_text(rest)?;
        self.from = take_text(rest)?;
        self.kind = take_text(rest)?;
        self.method = take_text(rest)?;
        self.target = take_text(rest)?;
        self.content_type = take_text(rest)?;
        self.body = take_bytes(rest)?.to_vec();
        rest.is_empty().then_some(())
    }

    /// What stands in the tree before the request: version, what changes, how long the request is, and the idempotency key,
    /// because that must go with the post even if its file is lost.
    fn encode_head(&self, request_bytes: usize) -> Vec<u8> {
        let mut out = vec![POST_VERSION];
        put_number(&mut out, request_bytes as u64);
        put_number(&mut out, self.not_before_unix_ms);
        put_number(&mut out, self.expires_unix_ms);
        put_number(&mut out, self.attempts.into());
        put_number(&mut out, self.kills.into());
        put_bytes(&mut out, self.platform.as_bytes());
        put_bytes(&mut out, self.idempotency_key.as_bytes());
        put_bytes(&mut out, cut(&self.first_error).as_bytes());
        put_bytes(&mut out, cut(&self.last_error).as_bytes());
        out
    }

    /// The same key and the same of these is the same post.
    fn request_hash(&self) -> u128 {
        let mut hash = Fnv128::default();
        for text in [&self.platform, &self.from, &self.kind, &self.method, &self.target, &self.content_type] {
            hash.take(text.as_bytes());
        }
        hash.take(self.conversation.as_bytes());
        hash.take(&self.body);
        hash.0
    }
}

/// An entry of the tree: a post without its request, and the request if that stands there as well.
struct Entry<'e> {
    post: Post,
    /// Bytes of the request, wherever it is.
    bytes: usize,
    request: Option<&'e [u8]>,
}

impl Entry<'_> {
    fn decode(entry: &[u8]) -> Option<Entry<'_>> {
        let (&POST_VERSION, mut rest) = entry.split_first()? else { return None };
        let rest = &mut rest;
        let bytes = usize::try_from(take_number(rest)?).ok()?;
        let mut post = Post {
            not_before_unix_ms: take_number(rest)?,
            expires_unix_ms: take_number(rest)?,
            attempts: take_number(rest)?.try_into().ok()?,
            kills: take_number(rest)?.try_into().ok()?,
            platform: take_text(rest)?,
            idempotency_key: take_text(rest)?,
            ..Post::default()
        };
        post.first_error = take_text(rest)?;
        post.last_error = take_text(rest)?;
        let request = match rest.len() {
            0 => None,
            length if length == bytes => Some(*rest),
            _ => return None,
        };
        Some(Entry { post, bytes, request })
    }
}

impl PostResult {
    fn encode(&self) -> Vec<u8> {
        let (end, letter) = match self.end {
            PostEnd::Delivered => (0, 0),
            PostEnd::Buried(letter) => (1, letter),
        };
        let mut out = vec![RESULT_VERSION, end];
        for number in [letter, self.settled_unix_ms, self.status.into(), self.attempts.into()] {
            put_number(&mut out, number);
        }
        put_bytes(&mut out, cut(&self.error).as_bytes());
        put_bytes(&mut out, cut(&self.instance).as_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<PostResult> {
        let ([RESULT_VERSION, end], mut rest) = bytes.split_first_chunk::<2>()? else { return None };
        let rest = &mut rest;
        let letter = take_number(rest)?;
        let end = match end {
            0 => PostEnd::Delivered,
            1 => PostEnd::Buried(letter),
            _ => return None,
        };
        let settled_unix_ms = take_number(rest)?;
        let status = take_number(rest)?.try_into().ok()?;
        let attempts = take_number(rest)?.try_into().ok()?;
        let error = take_text(rest)?;
        let instance = take_text(rest)?;
        rest.is_empty().then_some(PostResult { settled_unix_ms, end, status, attempts, error, instance })
    }
}

impl Store {
    /// Takes a post, unless its idempotency key says that it was taken before. Ids increase by one and are never given
    /// twice. Blocks for the disk. After an error of the disk the post may or may not be there after a restart.
    ///
    /// # Errors
    /// [`StoreError::PostsFull`] if `waiting_max` wait; [`StoreError::Full`] if it could not
    /// become a dead letter; [`StoreError::Refused`] if the key is too long; or a failure of the disk.
    pub fn post(&self, post: &Post, waiting_max: u64) -> Result<Posted, StoreError> {
        let key = &post.idempotency_key;
        if key.len() > KEY_BYTES_MAX {
            let length = key.len();
            return Err(StoreError::Refused(format!(
                "an idempotency key has at most {KEY_BYTES_MAX} bytes; this one has {length}"
            )));
        }
        let hash = post.request_hash();
        if !key.is_empty() {
            if let Some((known_hash, id)) = self.key_record(key)? {
                let result = self.post_result(id)?;
                // A key that outlived what it was used for stands for nothing.
                if result.is_some() || self.post_entry(id)?.is_some() {
                    return Ok(if known_hash == hash { Posted::Known(id, result) } else { Posted::Conflict(id) });
                }
            }
        }
        let Tally { next_id: id, count } = self.posts_tally.get();
        if count >= waiting_max {
            return Err(StoreError::PostsFull { waiting: count, max: waiting_max });
        }
        let buried = self.tally.get().count;
        if buried >= self.dead_letters_max {
            // If it failed it could not be kept.
            return Err(StoreError::Full { buried, max: self.dead_letters_max });
        }
        let after = Tally { next_id: id + 1, count: count + 1 };
        let request = post.encode_request();
        let mut entry = post.encode_head(request.len());
        if entry.len() + request.len() <= INLINE_BYTES {
            entry.extend_from_slice(&request);
        } else {
            write_file(&self.path.join(POST_FILES), id, &request)?;
        }
        let name = tagged(POST, id);
        let mut batch = sled::Batch::default();
        batch.insert(&name, entry);
        batch.insert(&POSTS_TALLY_KEY, &after.encode());
        if !key.is_empty() {
            batch.insert(key_name(key), [&hash.to_be_bytes()[..], &id.to_be_bytes()].concat());
        }
        self.guarded(|| self.posts.apply_batch(batch))?;
        self.posts_tally.set(after);
        self.settle(&self.posts, &name)?;
        Ok(Posted::New(id))
    }

    /// How many posts wait. Kept in memory; does not block.
    #[cfg(test)]
    pub(super) fn posts_waiting(&self) -> u64 {
        self.posts_tally.get().count
    }

    /// Visits every post that waits, in the order of their ids, with its id. Holds one of them at a time. Of one that cannot be
    /// read there is what its entry says, or nothing: that is told again by whoever reads it. Blocks for the disk, for about
    /// half a second for 100,000 posts.
    pub fn pending(&self, mut visit: impl FnMut(u64, Post)) -> Result<(), StoreError> {
        let mut range = self.posts.range(tagged(POST, 0)..POSTS_TALLY_KEY);
        let mut count = 0usize;
        while let Some((key, entry)) = self.guarded(|| range.next().transpose())? {
            let id = id_of(&key[1..]).ok_or_else(|| self.damaged("a post has a malformed id".into()))?;
            let post = self.whole(id, &entry);
            visit(id, post.unwrap_or_else(|_| Entry::decode(&entry).map(|entry| entry.post).unwrap_or_default()));
            count += 1;
            if count.is_multiple_of(SETTLE_EVERY) {
                self.settle(&self.posts, &key)?;
            }
        }
        let expected = self.posts_tally.get();
        if expected.count != count as u64 {
            log::error!("{} messages should wait and {count} do: look at the disk", expected.count);
            self.posts_tally.set(Tally { count: count as u64, ..expected });
        }
        Ok(())
    }

    /// The post with this id, if it waits. Blocks for the disk.
    pub fn read_post(&self, id: u64) -> Result<Option<Post>, StoreError> {
        let Some(entry) = self.post_entry(id)? else { return Ok(None) };
        self.whole(id, &entry).map(Some)
    }

    /// As [`Store::read_post`], for people: of one that cannot be read there is what its entry says, and what was found.
    pub fn show_post(&self, id: u64) -> Result<Option<Post>, StoreError> {
        let Some(entry) = self.post_entry(id)? else { return Ok(None) };
        match self.whole(id, &entry) {
            Err(StoreError::Damaged { what, .. }) => {
                let known = Entry::decode(&entry).map(|entry| entry.post).unwrap_or_default();
                Ok(Some(Post { last_error: what, ..known }))
            }
            post => post.map(Some),
        }
    }

    /// A post out of its entry, and out of its file if it has one.
    fn whole(&self, id: u64, entry: &[u8]) -> Result<Post, StoreError> {
        let unreadable = || self.damaged(format!("post {id} is unreadable"));
        let Entry { mut post, request, .. } = Entry::decode(entry).ok_or_else(unreadable)?;
        match request {
            Some(request) => post.decode_request(request),
            None => {
                let path = self.post_file(id);
                let request = fs::read(&path).map_err(|e| match e.kind() {
                    ErrorKind::NotFound => self.damaged(format!("the file of post {id} is gone")),
                    _ => StoreError::from_io(&path, e),
                })?;
                post.decode_request(&request)
            }
        }
        .ok_or_else(unreadable)?;
        Ok(post)
    }

    /// Remembers how delivery of a post goes; false if it does not wait. Not worth a sync of its own: at worst it is tried
    /// once more. Blocks for the disk.
    pub fn note_tries(&self, id: u64, attempts: u32, kills: u32, error: &str) -> Result<bool, StoreError> {
        let Some(entry) = self.post_entry(id)? else { return Ok(false) };
        let Some(Entry { mut post, bytes, request }) = Entry::decode(&entry) else {
            return Err(self.damaged(format!("post {id} is unreadable")));
        };
        (post.attempts, post.kills) = (attempts, kills);
        if post.first_error.is_empty() {
            post.first_error = error.to_owned();
        }
        post.last_error = error.to_owned();
        let mut changed = post.encode_head(bytes);
        if let Some(request) = request {
            if changed.len() + request.len() <= INLINE_BYTES {
                changed.extend_from_slice(request);
            } else {
                // What went wrong has left no room for it.
                write_file(&self.path.join(POST_FILES), id, request)?;
            }
        }
        let name = tagged(POST, id);
        self.guarded(|| self.posts.insert(name, changed))?;
        self.settle(&self.posts, &name)?;
        Ok(true)
    }

    /// Ends a post that waits: it goes, and what became of it is remembered for a day; false if it does not wait. Durable
    /// when the next [`Store::flush`] has returned. Blocks for the disk.
    pub fn settle_post(&self, id: u64, result: &PostResult) -> Result<bool, StoreError> {
        let Some(entry) = self.post_entry(id)? else { return Ok(false) };
        let known = Entry::decode(&entry);
        let is_in_file = known.as_ref().is_none_or(|entry| entry.request.is_none());
        // Of one that cannot be read nobody knows the key, which then stands for nothing.
        let key = known.map(|entry| entry.post.idempotency_key).unwrap_or_default();
        let before = self.posts_tally.get();
        let after = Tally { count: before.count.saturating_sub(1), ..before };
        let mut batch = sled::Batch::default();
        batch.remove(&tagged(POST, id));
        batch.insert(&POSTS_TALLY_KEY, &after.encode());
        batch.insert(&tagged(RESULT, id), result.encode());
        let number = result.settled_unix_ms.saturating_mul(1_000).max(self.last_end.get().saturating_add(1));
        batch.insert(&tagged(END, number), &id.to_be_bytes());
        let forgotten = [&number.to_be_bytes()[..], key.as_bytes()].concat();
        batch.insert(forget_name(result.settled_unix_ms.saturating_add(REMEMBERED_MS), id), forgotten);
        self.guarded(|| self.posts.apply_batch(batch))?;
        self.posts_tally.set(after);
        self.last_end.set(number);
        if is_in_file {
            self.doomed.borrow_mut().push(self.post_file(id));
        }
        self.settle(&self.posts, &tagged(POST, id))?;
        Ok(true)
    }

    /// Makes a post that waits a dead letter, whose id it returns; `None` if it does not wait. The letter is written first,
    /// so that a crash can double it but not lose it; [`Store::open`] then knows it by the post's id. Durable when the next
    /// [`Store::flush`] has returned. Blocks for the disk.
    ///
    /// # Errors
    /// As [`Store::bury`]; then the post still waits.
    pub fn bury_post(&self, id: u64, letter: DeadLetter, status: u16) -> Result<Option<u64>, StoreError> {
        if self.post_entry(id)?.is_none() {
            return Ok(None);
        }
        let letter = DeadLetter { post: id, ..letter };
        let buried = self.bury(&letter)?;
        self.settle_post(id, &Store::burial(buried, &letter, status))?;
        Ok(Some(buried))
    }

    /// Makes a post that cannot be read a dead letter, whose body is what is left of it and whose errors say what was found.
    /// Otherwise as [`Store::bury_post`].
    pub fn bury_damaged(&self, id: u64, what: &str, unix_ms: u64) -> Result<Option<u64>, StoreError> {
        let Some(entry) = self.post_entry(id)? else { return Ok(None) };
        let head = Entry::decode(&entry);
        let is_in_file = head.as_ref().is_some_and(|entry| entry.request.is_none());
        let in_file = is_in_file.then(|| fs::read(self.post_file(id)).ok()).flatten();
        let known = head.map(|entry| entry.post).unwrap_or_default();
        let letter = DeadLetter {
            buried_at_unix_ms: unix_ms,
            platform: known.platform,
            reason: Grave::Damaged.name().to_owned(),
            attempts: known.attempts,
            content_type: "application/octet-stream".to_owned(),
            body: in_file.unwrap_or_else(|| entry.to_vec()),
            first_error: known.first_error,
            last_error: what.to_owned(),
            ..DeadLetter::default()
        };
        self.bury_post(id, letter, 0)
    }

    fn burial(buried: u64, letter: &DeadLetter, status: u16) -> PostResult {
        PostResult {
            settled_unix_ms: letter.buried_at_unix_ms,
            end: PostEnd::Buried(buried),
            status,
            attempts: letter.attempts,
            error: letter.reason.clone(),
            instance: String::new(),
        }
    }

    /// Ends the posts that are dead letters already: a crash came between the one and the other.
    pub(super) fn finish_burials(&self, posts: &[(u64, u64)]) -> Result<(), StoreError> {
        let mut finished = 0;
        for (post, buried) in posts {
            if self.post_entry(*post)?.is_some() {
                let letter = self.find(*buried)?.unwrap_or_default();
                self.settle_post(*post, &Store::burial(*buried, &letter, 0))?;
                finished += 1;
            }
        }
        if finished > 0 {
            self.flush()?;
            log::info!("{finished} posts were dead letters already and do not wait any more");
        }
        Ok(())
    }

    /// What became of a post, if it was settled in the last day. Blocks for the disk.
    pub fn post_result(&self, id: u64) -> Result<Option<PostResult>, StoreError> {
        let result = self.guarded(|| self.posts.get(tagged(RESULT, id)))?;
        let unreadable = || self.damaged(format!("the result of post {id} is unreadable"));
        result.map(|result| PostResult::decode(&result).ok_or_else(unreadable)).transpose()
    }

    /// The number of the end that was kept last; 0 if none is remembered. Does not block.
    pub(crate) fn last_end(&self) -> u64 {
        self.last_end.get()
    }

    /// The ends after the one with this number that are remembered, in the order in which they were kept, and `max` of them
    /// at most: their numbers, whose they were, and what became of those. Blocks for the disk.
    pub fn ends(&self, after: u64, max: usize) -> Result<Vec<(u64, u64, PostResult)>, StoreError> {
        let Some(first) = after.checked_add(1) else { return Ok(Vec::new()) };
        let mut range = self.posts.range(tagged(END, first)..=tagged(END, u64::MAX));
        let mut ends = Vec::new();
        while ends.len() < max {
            let Some((name, id)) = self.guarded(|| range.next().transpose())? else { break };
            let (Some(number), Some(id)) = (id_of(&name[1..]), id_of(&id)) else {
                return Err(self.damaged("the end of a post is malformed".into()));
            };
            if let Some(result) = self.post_result(id)? {
                ends.push((number, id, result));
            }
        }
        Ok(ends)
    }

    /// Forgets results and idempotency keys of more than a day ago, and those of posts that are not among the last
    /// `remembered_max`; `max` of them at most. How many went. Not worth a sync. Blocks for the disk.
    pub(crate) fn forget_posts(&self, unix_ms: u64, remembered_max: u64, max: usize) -> Result<usize, StoreError> {
        let mut forgotten = 0;
        let until = self.posts_tally.get().next_id.saturating_sub(remembered_max);
        while forgotten < max {
            let first = self.guarded(|| self.posts.range(forget_names()).next().transpose())?;
            let Some((name, remembered)) = first else { break };
            let Some(id) = name.last_chunk::<8>().map(|id| u64::from_be_bytes(*id)) else { break };
            if name[..] >= forget_name(unix_ms, 0)[..] && id >= until {
                break;
            }
            // Whatever stands there, it must not keep others from being forgotten.
            let (number, key) = remembered.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
            let mut batch = sled::Batch::default();
            batch.remove(&name);
            batch.remove(&tagged(RESULT, id));
            batch.remove(&tagged(END, u64::from_be_bytes(*number)));
            if let Ok(key) = std::str::from_utf8(key) {
                if self.key_record(key)?.is_some_and(|(_, used_for)| used_for == id) {
                    batch.remove(key_name(key));
                }
            }
            self.guarded(|| self.posts.apply_batch(batch))?;
            self.settle(&self.posts, &name)?;
            forgotten += 1;
        }
        Ok(forgotten)
    }

    fn post_entry(&self, id: u64) -> Result<Option<sled::IVec>, StoreError> {
        let name = tagged(POST, id);
        if name == POSTS_TALLY_KEY {
            return Ok(None);
        }
        self.guarded(|| self.posts.get(name))
    }

    fn post_file(&self, id: u64) -> PathBuf {
        self.path.join(POST_FILES).join(id.to_string())
    }

    /// What a key was used for: the hash of the request, and the post.
    fn key_record(&self, key: &str) -> Result<Option<(u128, u64)>, StoreError> {
        let record = self.guarded(|| self.posts.get(key_name(key)))?;
        Ok(record.and_then(|record| {
            let (hash, id) = record.split_first_chunk::<16>()?;
            Some((u128::from_be_bytes(*hash), u64::from_be_bytes(id.try_into().ok()?)))
        }))
    }
}

/// An entry as schema 2 had it, as it is now; `None` if it is so already, or unreadable. There the head had a number that
/// stood for the conversation and no number of kills, and the idempotency key stood in the request alone, which is in the
/// file if there is one. Also the request, if it needs a file from now on.
pub(super) fn of_schema_2(entry: &[u8], file: impl FnOnce() -> Option<Vec<u8>>) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let (1, mut rest) = entry.split_first().map(|(version, rest)| (*version, rest))? else { return None };
    let rest = &mut rest;
    let bytes = usize::try_from(take_number(rest)?).ok()?;
    let mut post = Post {
        not_before_unix_ms: take_number(rest)?,
        expires_unix_ms: take_number(rest)?,
        attempts: take_number(rest)?.try_into().ok()?,
        ..Post::default()
    };
    let _conversation = take_number(rest)?;
    post.platform = take_text(rest)?;
    post.first_error = take_text(rest)?;
    post.last_error = take_text(rest)?;
    let inline = (!rest.is_empty()).then_some(*rest);
    // One whose file is lost has no key that anybody knows.
    let _ = match inline {
        Some(request) => post.decode_request(request),
        None => file().and_then(|request| post.decode_request(&request)),
    };
    let mut entry = post.encode_head(bytes);
    match inline {
        Some(request) if entry.len() + request.len() > INLINE_BYTES => return Some((entry, Some(request.to_vec()))),
        Some(request) => entry.extend_from_slice(request),
        None => {}
    }
    Some((entry, None))
}

/// What is remembered to be forgotten, as schema 2 had it: the idempotency key alone, before which now stands the number of
/// the end. `None` if it is so already; no key begins with a zero byte.
pub(super) fn forgotten_of_schema_2(key: &[u8]) -> Option<Vec<u8>> {
    (key.first() != Some(&0)).then(|| [&[0; 8], key].concat())
}

/// The keys of all that is to be forgotten.
pub(super) fn forget_names() -> std::ops::Range<[u8; 1]> {
    [FORGET]..[FORGET + 1]
}

/// Sorts after every post.
pub(super) const POSTS_TALLY_KEY: [u8; 9] = [POST, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/// The number of the end that was kept last; 0 if there is none.
pub(super) fn last_end_of(posts: &sled::Tree) -> sled::Result<u64> {
    let last = posts.range(tagged(END, 0)..=tagged(END, u64::MAX)).next_back().transpose()?;
    Ok(last.and_then(|(name, _)| id_of(&name[1..])).unwrap_or_default())
}

/// The key of a post, of its result or of its end.
fn tagged(tag: u8, id: u64) -> [u8; 9] {
    let mut name = [tag; 9];
    name[1..].copy_from_slice(&id.to_be_bytes());
    name
}

/// The key of a post.
pub(super) fn name_of(id: u64) -> [u8; 9] {
    tagged(POST, id)
}

fn key_name(key: &str) -> Vec<u8> {
    [&[KEY], key.as_bytes()].concat()
}

fn forget_name(unix_ms: u64, id: u64) -> Vec<u8> {
    [&[FORGET][..], &unix_ms.to_be_bytes(), &id.to_be_bytes()].concat()
}

/// As much of an error as is kept.
pub(crate) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(ERROR_BYTES_MAX)]
}

/// FNV-1a with 128 bits: the same in every version of Rust, which that of the standard library need not be. Two requests of
/// one client under one key that meet by accident are rarer than a disk that lies.
struct Fnv128(u128);

impl Default for Fnv128 {
    fn default() -> Self {
        Fnv128(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fnv128 {
    /// A part, and where it ends.
    fn take(&mut self, part: &[u8]) {
        let length = (part.len() as u64).to_be_bytes();
        for byte in part.iter().chain(&length) {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
}

#[cfg(test)]
mod tests;
