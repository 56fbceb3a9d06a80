//! The clerk: one thread for errands that block, so that the reactor never does: the store, and measuring.
//!
//! What waits is done as a group: everything is written, made durable by one sync, and only then told to those who need
//! to know that it is durable. While the disk syncs the next group gathers, so the busier it is the fewer syncs an errand
//! takes. What need not be durable is answered at once and causes no sync.

mod archive;
mod posts;
mod spending;
mod vault;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver, RecvTimeoutError, Sender};
use demi_conductor::{config, Errand, Event, Instance, Ticket};
use demi_platform::Fault;
use serde_json::value::RawValue;

use crate::api::{self, History, Listing, ScalingPage};
use crate::chronicle::{unix_ms, Entry, EVENTS_MAX};
use crate::mailbox::{Letter, PluginStored, Postbox};
use crate::plugins::{self, Change, Rescan};
use crate::problem::Problem;
use crate::sampler::Sampler;
use crate::store::{DeadLetter, KeptDecision, KeptPeak, LetterFilter, LetterPage, Minute, Store, StoreError};

pub(crate) use archive::Archive;
use posts::TakenIn;
pub(crate) use posts::{End, Ending, Found, Parcel, PostErrand, PostRead};
use spending::{Level, Spending};
use vault::Vault;

/// Most errands that wait; one more is refused, and told as not done.
const ERRANDS_MAX: usize = 1024;
/// What happened is not kept while so many errands wait.
const ERRANDS_BEFORE_NOTES_MAX: usize = ERRANDS_MAX / 2;
/// A reader is refused while so many errands wait: what must be kept goes before what someone would like to see.
const ERRANDS_BEFORE_LISTING_MAX: usize = 16;

/// A plugin is refused while so many errands wait: its values may have 64 KiB each, and dead letters go first.
const ERRANDS_BEFORE_PLUGINS_MAX: usize = 64;

/// Errands of one group at most. They are done before the first of them is told, so this bounds how long that waits; a
/// sync costs so much more than a write that larger groups gain nothing.
const GROUP_MAX: usize = 256;

/// Between two looks at what the store has kept for long enough. Some of it goes at each, when nothing waits.
const CHORES_INTERVAL: Duration = Duration::from_secs(60);

/// Results of posts that go at one of these looks.
const FORGOTTEN_MAX: usize = 1_000;

const DAY_MS: u64 = 86_400_000;

/// What is still to be kept when Demi ends is given this long; a store that hangs must not keep Demi from ending.
const FINISH_MAX: Duration = Duration::from_secs(1);

enum Order {
    Measure,
    Bury(Ticket, Box<DeadLetter>),
    Flush,
    Letters { place: usize, serial: u64, errand: LetterErrand },
    Replayed { id: u64, error: Option<String> },
    Plugin(Box<PluginOrder>),
    History { place: usize, serial: u64, history: History },
    Post(PostErrand),
    Note(Vec<Note>),
    Minutes { unix_minute: u32, minutes: Vec<(String, Minute)> },
    Trace { unix_day: u64, text: String },
    Spend { platform: String, unix_day: u32, starts: u32 },
    KeepPeak { platform: String, unix_s: u64, bytes: u64 },
    Decided(Vec<KeptDecision>),
    Decisions { place: usize, serial: u64, page: Box<ScalingPage>, before: u64 },
    Rescan { unix_day: u32, refused: Vec<PathBuf> },
    Reread { number: u64, unix_day: u32, manifest: Option<PathBuf>, refused: Vec<PathBuf> },
}

/// What a client wants of dead letters.
pub(crate) enum LetterErrand {
    List(Listing),
    Show(u64),
    Edit {
        id: u64,
        /// As before, if it is empty.
        content_type: String,
        body: Vec<u8>,
    },
    Remove(u64),
    Purge(LetterFilter),
    /// To be replayed.
    Fetch(Listing),
    FetchOne(u64),
}

/// A plugin's errand to the store.
pub(crate) struct PluginOrder {
    /// Who wants it, under which id.
    pub(crate) instance: Instance,
    pub(crate) id: Box<RawValue>,
    /// The platform's name.
    pub(crate) plugin: String,
    pub(crate) key: String,
    pub(crate) errand: PluginErrand,
}

/// What is to be done with the value under its key.
pub(crate) enum PluginErrand {
    Get,
    /// None: take it away.
    Put(Option<Box<RawValue>>),
}

/// Something that happened to a platform, to be kept.
pub(crate) struct Note {
    pub(crate) platform: String,
    pub(crate) entry: Entry,
}

/// What the store remembers of a platform.
#[derive(Default)]
pub(crate) struct Memory {
    /// What happened to it last, oldest first.
    pub(crate) history: Vec<Entry>,
    /// How often it was started today.
    pub(crate) starts: u32,
    /// What an instance of it has weighed at most, and how long ago.
    pub(crate) peak: Option<KeptPeak>,
}

impl Memory {
    /// Blocks for the disk. What cannot be read is logged and left out.
    pub(crate) fn of(platform: &str, unix_day: u32, store: &Store) -> Memory {
        let failed = |error: &StoreError| log::error!("what is known of {platform} cannot be read: {error}");
        let history = store.history(platform, EVENTS_MAX).inspect_err(failed).unwrap_or_default();
        let starts = store.starts(platform, unix_day).inspect_err(failed).unwrap_or_default();
        let peak = store.peak(platform, unix_ms() / 1000).inspect_err(failed).unwrap_or_default();
        Memory { history, starts, peak }
    }
}

impl Memory {
    /// What the conductor is to know of it, of the platform with this index.
    pub(crate) fn events(&self, platform: u32) -> impl Iterator<Item = Event> {
        let starts = (self.starts > 0).then_some(Event::Recalled { platform, starts: self.starts });
        let peak = self.peak.map(|KeptPeak { bytes, age }| Event::PeakRecalled { platform, bytes, age });
        starts.into_iter().chain(peak)
    }
}

/// What is told of the store, for the metrics and the status.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoreFacts {
    /// Syncs, each for a group of errands.
    pub(crate) syncs: u64,
    /// Errands in these groups that had to be durable.
    pub(crate) synced: u64,
    /// Bytes written since the start, as the kernel counts them.
    pub(crate) written_bytes: u64,
    /// As many were written today as may be: only what must not be lost still is.
    pub(crate) is_spent: bool,
    /// Why it is shut, if it is.
    pub(crate) trouble: Option<String>,
    /// Dead letters by platform.
    pub(crate) letters: BTreeMap<String, u64>,
    /// When the one was given up that is kept longest.
    pub(crate) oldest_letter_unix_ms: Option<u64>,
}

impl StoreFacts {
    /// Of a store that has just been opened. Blocks for the disk.
    pub(crate) fn of(store: &Store) -> StoreFacts {
        let mut facts = StoreFacts::default();
        facts.look_at(store);
        facts
    }

    /// How many dead letters there are.
    pub(crate) fn dead_letters(&self) -> u64 {
        self.letters.values().sum()
    }

    fn look_at(&mut self, store: &Store) {
        self.letters = store.letters_by_platform();
        // What cannot be read is told when it is asked for.
        self.oldest_letter_unix_ms = store.oldest_letter().ok().flatten();
    }
}

/// What a look at the plugin folders found.
pub(crate) struct Rescanned {
    /// Each change; with a platform that came or changed, what the store remembers of it.
    pub(crate) changes: Vec<(Change, Memory)>,
    /// Folders and manifests that were refused and are not there any more.
    pub(crate) vanished: Vec<PathBuf>,
}

/// The sending end, on the reactor's thread.
pub(crate) struct Clerk {
    /// Unbounded, because a bounded channel of crossbeam holds memory for all it may ever hold; the bound is kept in
    /// [`Clerk::send`], which is exact with a single sender.
    orders: Sender<Order>,
    thread: thread::JoinHandle<()>,
    /// Nothing is ever sent: it is disconnected when the thread has ended, however it did.
    ended: Receiver<()>,
}

impl Clerk {
    /// Starts the thread. `archive`: where what happens is recorded.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub(crate) fn start(
        store: Store,
        sampler: Sampler,
        archive: Archive,
        rescan: Rescan,
        bounds: config::Posts,
        postbox: Postbox,
    ) -> std::io::Result<Clerk> {
        Clerk::spawn(move |inbox| work(inbox, store, sampler, archive, rescan, bounds, &postbox))
    }

    fn spawn(work: impl FnOnce(&Receiver<Order>) + Send + 'static) -> std::io::Result<Clerk> {
        let (orders, inbox) = unbounded();
        let (alive, ended) = bounded(0);
        let work = move || {
            // Dropped last, when the store is closed.
            let _alive: Sender<()> = alive;
            work(&inbox);
        };
        let thread = thread::Builder::new().name("demi-clerk".to_owned()).stack_size(1 << 20).spawn(work)?;
        Ok(Clerk { orders, thread, ended })
    }

    /// Has the machine measured. False if too much is waiting.
    pub(crate) fn measure(&self) -> bool {
        self.send(Order::Measure, ERRANDS_MAX)
    }

    /// Has a dead letter kept. False if too much is waiting.
    pub(crate) fn bury(&self, ticket: Ticket, letter: DeadLetter) -> bool {
        self.send(Order::Bury(ticket, Box::new(letter)), ERRANDS_MAX)
    }

    /// Has everything made durable. False if too much is waiting.
    pub(crate) fn flush(&self) -> bool {
        self.send(Order::Flush, ERRANDS_MAX)
    }

    /// Has dead letters seen to for the client at a place. False if too much is waiting.
    pub(crate) fn letters(&self, place: usize, serial: u64, errand: LetterErrand) -> bool {
        self.send(Order::Letters { place, serial, errand }, ERRANDS_BEFORE_LISTING_MAX)
    }

    /// Has a dead letter taken away that was replayed, or marked with what went wrong; no answer. False if too much is
    /// waiting.
    pub(crate) fn replayed(&self, id: u64, error: Option<String>) -> bool {
        self.send(Order::Replayed { id, error }, ERRANDS_MAX)
    }

    /// Has a value looked up, or kept, for a plugin. False if too much is waiting.
    pub(crate) fn serve_plugin(&self, order: PluginOrder) -> bool {
        self.send(Order::Plugin(Box::new(order)), ERRANDS_BEFORE_PLUGINS_MAX)
    }

    /// Has something done about posts. False if too much is waiting; then nothing is, and no letter follows.
    pub(crate) fn post(&self, errand: PostErrand) -> bool {
        let max = errand.errands_max();
        self.send(Order::Post(errand), max)
    }

    /// Has what happened kept; no answer. False if too much is waiting: what must be kept goes before.
    pub(crate) fn note(&self, notes: Vec<Note>) -> bool {
        self.send(Order::Note(notes), ERRANDS_BEFORE_NOTES_MAX)
    }

    /// Has it kept what platforms did in a minute; no answer. False if too much is waiting: what must be kept goes before.
    pub(crate) fn minutes(&self, unix_minute: u32, minutes: Vec<(String, Minute)>) -> bool {
        self.send(Order::Minutes { unix_minute, minutes }, ERRANDS_BEFORE_NOTES_MAX)
    }

    /// Has it recorded what happened on a day; an answer only if it is lost. False, and the text is as it was, if too much is
    /// waiting: what must be kept goes before.
    pub(crate) fn record(&self, unix_day: u64, text: &mut String) -> bool {
        self.takes_notes() && self.send(Order::Trace { unix_day, text: std::mem::take(text) }, ERRANDS_BEFORE_NOTES_MAX)
    }

    /// Has it read what a platform did for the client at a place. False if too much is waiting.
    pub(crate) fn history(&self, place: usize, serial: u64, history: History) -> bool {
        self.send(Order::History { place, serial, history }, ERRANDS_BEFORE_LISTING_MAX)
    }

    /// Has it kept how often a platform was started on a day; no answer. False if too much is waiting.
    pub(crate) fn spend(&self, platform: &str, unix_day: u32, starts: u32) -> bool {
        self.send(Order::Spend { platform: platform.to_owned(), unix_day, starts }, ERRANDS_MAX)
    }

    /// Has it kept what an instance of a platform has weighed at most, as of a date in unix seconds; no answer. False if too much
    /// is waiting: what must be kept goes before.
    pub(crate) fn keep_peak(&self, platform: &str, unix_s: u64, bytes: u64) -> bool {
        self.send(Order::KeepPeak { platform: platform.to_owned(), unix_s, bytes }, ERRANDS_BEFORE_NOTES_MAX)
    }

    /// Whether what is nice to have is kept, or too much is waiting.
    pub(crate) fn takes_notes(&self) -> bool {
        self.orders.len() < ERRANDS_BEFORE_NOTES_MAX
    }

    /// Has it kept what was decided about RAM; no answer. False if too much is waiting: what must be kept goes before.
    pub(crate) fn decided(&self, decisions: Vec<KeptDecision>) -> bool {
        self.send(Order::Decided(decisions), ERRANDS_BEFORE_NOTES_MAX)
    }

    /// Has a page completed with what was decided before this number, for the client at a place. False if too much is waiting.
    pub(crate) fn decisions(&self, place: usize, serial: u64, page: Box<ScalingPage>, before: u64) -> bool {
        self.send(Order::Decisions { place, serial, page, before }, ERRANDS_BEFORE_LISTING_MAX)
    }

    /// Has the plugin folders looked at; `refused` are those that were refused before. False if too much is waiting.
    pub(crate) fn rescan(&self, unix_day: u32, refused: Vec<PathBuf>) -> bool {
        self.send(Order::Rescan { unix_day, refused }, ERRANDS_BEFORE_LISTING_MAX)
    }

    /// Has the plugin folders looked at, so that no change is told after what it led to, and then a manifest read, if
    /// there is one. False if too much is waiting.
    pub(crate) fn reread(&self, number: u64, unix_day: u32, manifest: Option<PathBuf>, refused: Vec<PathBuf>) -> bool {
        self.send(Order::Reread { number, unix_day, manifest, refused }, ERRANDS_BEFORE_LISTING_MAX)
    }

    fn send(&self, order: Order, max: usize) -> bool {
        self.orders.len() < max && self.orders.send(order).is_ok()
    }

    /// Waits until the thread has done everything and closed the store, but not for ever: then it is left behind.
    pub(crate) fn finish(self) {
        let Clerk { orders, thread, ended } = self;
        drop(orders);
        if ended.recv_timeout(FINISH_MAX) == Err(RecvTimeoutError::Timeout) {
            log::error!("the store has not answered for {FINISH_MAX:?}; it is left as it is");
        } else if thread.join().is_err() {
            log::error!("the clerk panicked; see above");
        }
    }
}

fn work(
    inbox: &Receiver<Order>,
    store: Store,
    sampler: Sampler,
    archive: Archive,
    rescan: Rescan,
    bounds: config::Posts,
    postbox: &Postbox,
) {
    let facts = StoreFacts::of(&store);
    let written = store.written().unwrap_or_default();
    let spending = Spending::new(store.bytes_per_day_max(), written);
    let mut office = Office {
        vault: Vault::new(store),
        spending,
        rescan,
        sampler,
        archive,
        history_fails: false,
        minutes_fail: false,
        bounds,
        refuses_posts: false,
        refuses_ends: false,
        owed: Vec::new(),
        facts,
        postbox,
    };
    let mut chores_at = Instant::now();
    loop {
        let now = Instant::now();
        let wait = office.vault.again_at().map_or(CHORES_INTERVAL, |at| at.saturating_duration_since(now));
        match inbox.recv_timeout(wait.min(CHORES_INTERVAL)) {
            Ok(first) => {
                let group = std::iter::once(first).chain(inbox.try_iter().take(GROUP_MAX - 1));
                group.for_each(|order| office.perform(order));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if inbox.is_empty() && Instant::now() >= chores_at {
            chores_at = Instant::now() + CHORES_INTERVAL;
            office.do_chores();
        }
        office.commit();
        office.look_at_spending();
        office.look_at_disk();
    }
}

/// Where errands are done.
struct Office<'p> {
    vault: Vault,
    spending: Spending,
    rescan: Rescan,
    sampler: Sampler,
    archive: Archive,
    history_fails: bool,
    minutes_fail: bool,
    bounds: config::Posts,
    /// Whether the last post was refused for want of room, which was told.
    refuses_posts: bool,
    /// The same of a post that was to become a dead letter.
    refuses_ends: bool,
    /// Whom to tell that what was written is durable.
    owed: Vec<Owed>,
    facts: StoreFacts,
    postbox: &'p Postbox,
}

/// What was written, as far as it could be, and is told once it is durable.
enum Owed {
    Buried(Ticket, Result<u64, String>),
    Plugin(PluginStored),
    /// The page that the client at a place gets.
    Page {
        place: usize,
        serial: u64,
        page: Vec<u8>,
    },
    /// A post that was taken in.
    Taken(TakenIn),
    /// The end of this post.
    PostEnded(u64, Box<End>),
    /// What the client at a place is told that follows messages.
    Found {
        place: usize,
        serial: u64,
        found: Found,
    },
    /// Nobody waits for it.
    Nobody,
    Flush,
}

impl Office<'_> {
    fn perform(&mut self, order: Order) {
        match order {
            Order::Measure => {
                if let Some(sample) = self.sampler.measure() {
                    self.postbox.post(Letter::Measured(Box::new(sample)));
                }
            }
            Order::Bury(ticket, letter) => {
                let buried = self.vault.ask(|store| store.bury(&letter)).map_err(|error| error.to_string());
                self.owed.push(Owed::Buried(ticket, buried));
            }
            Order::Flush => {
                let today = self.spending.today();
                // What cannot be written is told by the flush.
                let _ = self.vault.ask(|store| store.keep_written(today));
                self.owed.push(Owed::Flush);
            }
            Order::Letters { place, serial, errand } => self.see_to_letters(place, serial, errand),
            Order::Replayed { id, error } => {
                let kept = match error {
                    None => self.vault.ask(|store| store.remove(id)),
                    Some(error) => self.vault.ask(|store| {
                        store.change(id, |letter| {
                            letter.replays = letter.replays.saturating_add(1);
                            letter.last_error = error;
                        })
                    }),
                };
                match kept {
                    Ok(_) => self.owed.push(Owed::Nobody),
                    Err(StoreError::Shut(_)) => {}
                    Err(error) => log::error!("what became of dead letter {id} at its replay is not kept: {error}"),
                }
            }
            Order::Plugin(order) => {
                let writes = matches!(order.errand, PluginErrand::Put(_));
                let stored = serve_plugin(&mut self.vault, *order);
                if writes && stored.answer.is_ok() {
                    self.owed.push(Owed::Plugin(stored));
                } else {
                    self.postbox.post(Letter::PluginStored(Box::new(stored)));
                }
            }
            Order::History { place, serial, history } => {
                let spans =
                    self.vault.ask(|store| store.minutes(&history.platform, history.from, history.to, history.step));
                let page = spans.map(|spans| api::history_json(&history, &spans)).map_err(|error| {
                    if !matches!(error, StoreError::Shut(_)) {
                        log::error!("what {} did cannot be read: {error}", history.platform);
                    }
                    Box::new(store_problem(error))
                });
                self.postbox.post(Letter::Listed { place, serial, page });
            }
            Order::Post(errand) => self.see_to_post(errand),
            Order::Note(notes) => self.note(&notes),
            Order::Minutes { unix_minute, minutes } => self.keep_minutes(unix_minute, &minutes),
            Order::Trace { unix_day, text } => {
                if !self.archive.append(unix_day, &text, self.spending.allows_more()) {
                    self.postbox.post(Letter::TraceLost { unix_day, bytes: text.len() as u64 });
                }
            }
            Order::Spend { platform, unix_day, starts } => {
                let kept = self.vault.ask(|store| {
                    store.spend(&platform, unix_day, starts)?;
                    store.hand_over()
                });
                if let Err(error) = kept.or_else(told_already) {
                    log::error!("that {platform} was started {starts} times today is not kept: {error}");
                }
            }
            Order::KeepPeak { platform, unix_s, bytes } => self.keep_peak(&platform, unix_s, bytes),
            Order::Decided(decisions) => self.keep_decisions(&decisions),
            Order::Decisions { place, serial, page, before } => {
                let older = self.vault.ask(|store| store.decisions(before, page.room()));
                let page = older.map(|older| page.complete(older)).map_err(|error| {
                    if !matches!(error, StoreError::Shut(_)) {
                        log::error!("what was decided about RAM cannot be read: {error}");
                    }
                    Box::new(store_problem(error))
                });
                self.postbox.post(Letter::Listed { place, serial, page });
            }
            Order::Rescan { unix_day, refused } => {
                let changes = self.rescan.rescan();
                self.tell_changes(changes, unix_day, refused);
            }
            Order::Reread { number, unix_day, manifest, refused } => {
                let changes = self.rescan.rescan_at_once();
                self.tell_changes(changes, unix_day, refused);
                let folder = manifest.as_deref().and_then(Path::parent);
                let read = folder.map(plugins::examine).transpose();
                let read = read.map(|platform| platform.map(Box::new)).map_err(|problems| problems.to_string());
                self.postbox.post(Letter::Reread(number, read));
            }
        }
    }

    fn see_to_letters(&mut self, place: usize, serial: u64, errand: LetterErrand) {
        let writes = matches!(errand, LetterErrand::Edit { .. } | LetterErrand::Remove(_) | LetterErrand::Purge(_));
        let found = |id: u64, letter: Option<DeadLetter>| letter.ok_or_else(|| api::no_letter(id));
        let mut fetched = None;
        // Fetched letters go another way.
        let done = self.vault.ask(|store| match errand {
            LetterErrand::List(Listing { filter, after, limit }) => {
                store.list(&filter, after, limit).map(|page| Ok(api::dead_letters_json(&page)))
            }
            LetterErrand::Show(id) => {
                let letter = store.find(id);
                letter.map(|letter| found(id, letter).map(|letter| api::dead_letter_json(id, &letter)))
            }
            LetterErrand::Edit { id, content_type, body } => {
                let changed = store.change(id, |letter| {
                    letter.body = body;
                    if !content_type.is_empty() {
                        letter.content_type = content_type;
                    }
                });
                let letter = changed.and_then(|_| store.find(id));
                letter.map(|letter| found(id, letter).map(|letter| api::dead_letter_json(id, &letter)))
            }
            LetterErrand::Remove(id) => store.remove(id).map(|was_there| match was_there {
                true => Ok(api::purged_json(1, false)),
                false => Err(api::no_letter(id)),
            }),
            LetterErrand::Purge(filter) => store.purge(&filter).map(|(purged, more)| {
                log::info!("{purged} dead letters were purged by hand");
                Ok(api::purged_json(purged, more))
            }),
            LetterErrand::Fetch(Listing { filter, after, limit }) => {
                store.list(&filter, after, limit).map(|mut page| {
                    page.letters.retain(|(_, letter)| !letter.is_remains());
                    fetched = Some(page);
                    Ok(Vec::new())
                })
            }
            LetterErrand::FetchOne(id) => store.find(id).map(|letter| {
                let letter = found(id, letter)?;
                if letter.is_remains() {
                    return Err(api::only_remains(id));
                }
                fetched = Some(LetterPage { letters: vec![(id, letter)], next: None });
                Ok(Vec::new())
            }),
        });
        if let Some(page) = fetched {
            return self.postbox.post(Letter::Fetched { place, serial, page });
        }
        let page = match done {
            Ok(Ok(page)) if writes => return self.owed.push(Owed::Page { place, serial, page }),
            Ok(page) => page.map_err(Box::new),
            Err(error) => {
                if !matches!(error, StoreError::Shut(_)) {
                    log::error!("dead letters could not be seen to: {error}");
                }
                Err(Box::new(store_problem(error)))
            }
        };
        self.postbox.post(Letter::Listed { place, serial, page });
    }

    fn keep_minutes(&mut self, unix_minute: u32, minutes: &[(String, Minute)]) {
        if !self.spending.allows_more() {
            return;
        }
        let kept = self.vault.ask(|store| {
            store.keep_minutes(unix_minute, minutes)?;
            store.forget_old_minutes(unix_minute)?;
            store.hand_over()
        });
        match (&kept, self.minutes_fail) {
            (Err(error), false) => log::error!("what platforms do in each minute is not kept: {error}"),
            (Ok(()), true) => log::info!("what platforms do in each minute is kept again"),
            (Ok(()), false) | (Err(_), true) => {}
        }
        self.minutes_fail = kept.is_err();
    }

    fn keep_peak(&mut self, platform: &str, unix_s: u64, bytes: u64) {
        if !self.spending.allows_more() {
            return;
        }
        let kept = self.vault.ask(|store| {
            store.keep_peak(platform, unix_s, bytes)?;
            store.hand_over()
        });
        match kept {
            Ok(()) => log::debug!("{platform}: it is kept that an instance weighs {bytes} bytes at most"),
            Err(StoreError::Shut(_)) => {}
            Err(error) => log::error!("{platform}: that an instance weighs {bytes} bytes at most is not kept: {error}"),
        }
    }

    fn keep_decisions(&mut self, decisions: &[KeptDecision]) {
        if !self.spending.allows_more() {
            return;
        }
        let kept = self.vault.ask(|store| {
            decisions.iter().try_for_each(|decision| store.keep_decision(decision))?;
            store.hand_over()
        });
        match (kept, decisions.last()) {
            (Ok(()), Some(last)) => log::debug!("what was decided about RAM is kept up to number {}", last.number),
            (Ok(()), None) | (Err(StoreError::Shut(_)), _) => {}
            (Err(error), _) => log::error!("what was decided about RAM is not kept: {error}"),
        }
    }

    fn note(&mut self, notes: &[Note]) {
        if !self.spending.allows_more() {
            return;
        }
        let kept = self.vault.ask(|store| {
            notes.iter().try_for_each(|note| store.note(&note.platform, &note.entry))?;
            store.hand_over()
        });
        // Once until it works again: each state change would say the same.
        match (&kept, self.history_fails) {
            (Err(error), false) => log::error!("what happens to platforms is not kept: {error}"),
            (Ok(()), true) => log::info!("what happens to platforms is kept again"),
            (Ok(()), false) | (Err(_), true) => {}
        }
        self.history_fails = kept.is_err();
    }

    fn tell_changes(&self, changes: Vec<Change>, unix_day: u32, refused: Vec<PathBuf>) {
        let changes = changes.into_iter().map(|change| {
            let memory = match &change {
                // One that has changed comes as well, if it could not be taken in before.
                Change::Came(platform) | Change::Changed { platform: Ok(platform), .. } => {
                    self.vault.store().map(|store| Memory::of(&platform.name, unix_day, store)).unwrap_or_default()
                }
                Change::Changed { .. } | Change::Gone { .. } | Change::Refused(_) => Memory::default(),
            };
            (change, memory)
        });
        let changes = changes.collect();
        let vanished = refused.into_iter().filter(|path| !path.exists()).collect();
        self.postbox.post(Letter::Rescanned(Box::new(Rescanned { changes, vanished })));
    }

    /// Sees how much was written, and tells it when it becomes much or too much.
    fn look_at_spending(&mut self) {
        let unix_day = u32::try_from(unix_ms() / DAY_MS).unwrap_or(u32::MAX);
        let Some(level) = self.spending.look(unix_day, spending::written_bytes()) else { return };
        let max = self.spending.bytes_per_day_max();
        self.facts.is_spent = level == Level::Spent;
        match level {
            Level::Low => log::info!("a new day: everything is written again"),
            Level::High => log::warn!(
                "most of `store.bytes_per_day_max` ({max}) was written today; at that only what must not be lost is written"
            ),
            Level::Spent => log::error!(
                "`store.bytes_per_day_max` ({max}) was written today; until midnight (UTC) only what must not be lost is \
                 written, not what happens to platforms and RAM nor what they do in each minute"
            ),
        }
        self.tell_facts();
    }

    /// Tries again what the disk refused, if it is time to, and tells how the store is if that has changed.
    fn look_at_disk(&mut self) {
        self.vault.look(Instant::now());
        if self.vault.trouble() != self.facts.trouble.as_deref() {
            self.tell_facts();
        }
    }

    fn tell_facts(&mut self) {
        if let Some(store) = self.vault.store() {
            self.facts.look_at(store);
        }
        self.facts.written_bytes = self.spending.total_bytes();
        self.facts.trouble = self.vault.trouble().map(str::to_owned);
        self.postbox.post(Letter::Store(Box::new(self.facts.clone())));
    }

    /// Takes away what has been kept for long enough, and keeps and tells how much was written.
    fn do_chores(&mut self) {
        if self.vault.store().is_none() {
            return;
        }
        let today = self.spending.today();
        if let Err(error) = self.vault.ask(|store| store.keep_written(today)) {
            log::error!("how much was written today is not kept: {error}");
        }
        let remembered_max = self.bounds.remembered_max.value();
        if let Err(error) = self.vault.ask(|store| store.forget_posts(unix_ms(), remembered_max, FORGOTTEN_MAX)) {
            log::error!("results of posts that are too old could not be taken away: {error}");
        }
        match self.vault.ask(|store| store.forget_letters(unix_ms())) {
            Ok((gone, _)) if gone.is_empty() => {}
            Ok((gone, _)) => {
                let gone: Vec<String> = gone.iter().map(|(platform, count)| format!("{count} of {platform}")).collect();
                let gone = gone.join(", ");
                log::warn!("dead letters older than `store.dead_letters_days` were taken away: {gone}");
                self.owed.push(Owed::Nobody);
            }
            Err(error) => log::error!("dead letters that are too old could not be taken away: {error}"),
        }
        self.tell_facts();
    }

    /// Makes durable what the group has written, and tells everyone who waits for that.
    fn commit(&mut self) {
        if self.owed.is_empty() {
            return;
        }
        let was_shut = self.vault.store().is_none();
        let flushed = self.vault.ask(Store::flush).map_err(|error| error.to_string());
        if let (Err(error), false) = (&flushed, was_shut) {
            log::error!("the store could not be flushed: {error}");
        }
        self.facts.syncs += 1;
        self.facts.synced += self.owed.len() as u64;
        // First, so that whoever has an answer finds it counted.
        self.tell_facts();
        for owed in std::mem::take(&mut self.owed) {
            match owed {
                Owed::Buried(ticket, buried) => {
                    let buried = buried.and_then(|number| flushed.clone().map(|()| number));
                    self.postbox.post(Letter::Stored(Errand::Bury, buried.is_ok()));
                    self.postbox.post(Letter::Buried(ticket, buried));
                }
                Owed::Plugin(mut stored) => {
                    if let Err(error) = &flushed {
                        stored.answer = Err(Fault::failed(error.clone()));
                    }
                    self.postbox.post(Letter::PluginStored(Box::new(stored)));
                }
                Owed::Page { place, serial, page } => {
                    let page = flushed.clone().map(|()| page);
                    let page = page.map_err(|error| Box::new(Problem::new(500, error).code("store")));
                    self.postbox.post(Letter::Listed { place, serial, page });
                }
                Owed::Taken(taken) => self.tell_taken(taken, &flushed),
                Owed::PostEnded(id, end) => self.postbox.post(Letter::PostEnded(id, flushed.is_ok().then_some(end))),
                Owed::Found { place, serial, found } => {
                    let found = flushed.clone().map(|()| found);
                    let found = found.map_err(|error| Box::new(Problem::new(500, error).code("store")));
                    self.postbox.post(Letter::Found { place, serial, found });
                }
                Owed::Nobody => {}
                Owed::Flush => self.postbox.post(Letter::Stored(Errand::Flush, flushed.is_ok())),
            }
        }
    }
}

/// That the store is shut was told when it was.
fn told_already(error: StoreError) -> Result<(), StoreError> {
    match error {
        StoreError::Shut(_) => Ok(()),
        error => Err(error),
    }
}

/// For whoever asked; one that is shut may be open again in a while.
fn store_problem(error: StoreError) -> Problem {
    let problem = |status| Problem::new(status, error.to_string()).code("store");
    match error {
        StoreError::Shut(_) => problem(503).retry_after(Duration::from_secs(30)),
        _ => problem(500),
    }
}

fn serve_plugin(vault: &mut Vault, order: PluginOrder) -> PluginStored {
    let PluginOrder { instance, id, plugin, key, errand } = order;
    let done = match errand {
        PluginErrand::Get => vault.ask(|store| store.plugin_get(&plugin, &key)),
        PluginErrand::Put(value) => {
            let value = value.as_ref().map(|value| value.get().as_bytes());
            vault.ask(|store| store.plugin_put(&plugin, &key, value)).map(|()| None)
        }
    };
    let answer = done.map_err(|error| match error {
        StoreError::Refused(why) => Fault::mistaken(why),
        StoreError::Shut(_) => Fault::failed(error.to_string()),
        error => {
            log::error!("a value of {plugin} could not be kept or read: {error}");
            Fault::failed(error.to_string())
        }
    });
    PluginStored { instance, id, answer: answer.and_then(|value| value.map(read_value).transpose()) }
}

/// It was JSON when it was put.
fn read_value(bytes: Vec<u8>) -> Result<Box<RawValue>, Fault> {
    let unreadable = |why: String| Fault::failed(format!("the value in the store is damaged: {why}"));
    let text = String::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
    RawValue::from_string(text).map_err(|error| unreadable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_hangs_does_not_keep_demi_from_ending() {
        let (release, gate) = bounded::<()>(0);
        let (seen, ended) = bounded::<()>(0);
        let clerk = Clerk::spawn(move |_| {
            let _seen = seen;
            let _ = gate.recv();
        });
        // Would never return.
        clerk.expect("it starts").finish();
        drop(release);
        assert_eq!(ended.recv_timeout(Duration::from_secs(30)), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn what_waits_is_done_before_the_end() {
        let (done, count) = unbounded();
        let clerk = Clerk::spawn(move |inbox| inbox.iter().for_each(|_| done.send(()).expect("it is counted")));
        let clerk = clerk.expect("it starts");
        for _ in 0..100 {
            assert!(clerk.flush());
        }
        clerk.finish();
        assert_eq!(count.try_iter().count(), 100);
    }
}
