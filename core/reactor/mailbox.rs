//! The one way by which other threads reach the reactor: a bounded channel and a waker that is rung once per batch.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use crossbeam_channel::{bounded, never, Receiver, Sender, TrySendError};
use demi_conductor::config::Platform;
use demi_conductor::{Errand, Exit, Instance, Sample, Ticket, Verdict, Weight};
use demi_platform::{Fault, Reply};
use mio::Waker;
use serde_json::value::RawValue;

use crate::clerk::{End, Found, Parcel, PostRead, Rescanned, StoreFacts};
use crate::handle::Wish;
use crate::problem::Problem;
use crate::store::LetterPage;

/// Most letters that wait: as many as one turn takes. A thread that finds the box full waits for the reactor, which is
/// what it would do for its next request anyway. The box has room for all of them from the start (88 bytes each, all
/// resident), so ten times as many would cost most of a megabyte.
const LETTERS_MAX: usize = 1024;

/// What another thread tells the reactor.
pub(crate) enum Letter {
    /// A worker is initialised.
    Started(Instance),
    /// A worker has ended.
    Exited(Instance, Exit),
    /// A worker was asked how it is: what was found, and what is wrong.
    Probed(Instance, Verdict, Option<String>),
    /// A worker was initialised again, or could not be.
    Reinitialized(Instance, bool),
    /// A target of `reachability` was looked at, for the look with this number.
    Reached { target: u32, look: u64, verdict: Verdict },
    /// A worker has dealt with a request.
    Handled(Ticket, Instance, Handled),
    /// The clerk measured the machine.
    Measured(Box<Sample>),
    /// So many bytes of what was recorded on a day could not be kept: what comes next begins anew.
    TraceLost { unix_day: u64, bytes: u64 },
    /// The warden weighed the children.
    Weighed {
        weights: Vec<(Instance, Weight)>,
        /// What the machine says is available then, bytes, if it says so.
        available: Option<u64>,
    },
    /// The clerk kept a dead letter, and under which number.
    Buried(Ticket, Result<u64, String>),
    /// The clerk has read what the client at a place wants to see: the body of the page, or why there is none.
    Listed { place: usize, serial: u64, page: Result<Vec<u8>, Box<Problem>> },
    /// The clerk has read dead letters that the client at a place wants replayed.
    Fetched { place: usize, serial: u64, page: LetterPage },
    /// The clerk has taken in what the client at a place posts, or says why not.
    Posted { place: usize, serial: u64, held: usize, posted: Result<Box<Parcel>, Box<Problem>> },
    /// The clerk has brought a post to mind, or cannot now.
    PostRead(u64, PostRead),
    /// The clerk has made the end of a post durable, or could not.
    PostEnded(u64, Option<Box<End>>),
    /// The clerk has read what the client at a place is told that follows messages, or why it cannot be told.
    Found { place: usize, serial: u64, found: Result<Found, Box<Problem>> },
    /// The clerk has looked up, or kept, a value for a plugin.
    PluginStored(Box<PluginStored>),
    /// The clerk has looked at the plugin folders.
    Rescanned(Box<Rescanned>),
    /// The clerk has read a platform's manifest anew, if it has one, for the reload with this number.
    Reread(u64, Result<Option<Box<Platform>>, String>),
    /// How the store is, and what is counted of it.
    Store(Box<StoreFacts>),
    /// The clerk did another errand.
    Stored(Errand, bool),
    /// The host program wants something.
    Wished(Wish),
}

/// What became of a plugin's errand to the store.
pub(crate) struct PluginStored {
    /// Who asked, under which id.
    pub(crate) instance: Instance,
    pub(crate) id: Box<RawValue>,
    /// The value, if one was asked for and is there.
    pub(crate) answer: Result<Option<Box<RawValue>>, Fault>,
}

/// What became of a request on a worker.
pub(crate) enum Handled {
    /// An answer.
    Replied(Reply),
    /// The platform said no.
    Refused(Fault),
    /// The platform panicked.
    Panicked,
}

/// The sending end: one for each thread.
#[derive(Clone)]
pub(crate) struct Postbox {
    letters: Sender<Letter>,
    bell: Arc<Bell>,
}

struct Bell {
    waker: Waker,
    /// Rung and not yet answered: no need to ring again.
    is_rung: AtomicBool,
}

/// The receiving end, on the reactor's thread.
pub(crate) struct Mailbox {
    letters: Receiver<Letter>,
    bell: Arc<Bell>,
}

pub(crate) fn mailbox(waker: Waker) -> (Postbox, Mailbox) {
    let (sender, receiver) = bounded(LETTERS_MAX);
    let bell = Arc::new(Bell { waker, is_rung: AtomicBool::new(false) });
    (Postbox { letters: sender, bell: Arc::clone(&bell) }, Mailbox { letters: receiver, bell })
}

impl Postbox {
    /// Posts a letter; waits while the box is full. If the reactor is gone, the letter is dropped: nobody is left to
    /// read it.
    pub(crate) fn post(&self, letter: Letter) {
        if self.letters.send(letter).is_ok() {
            self.ring();
        }
    }

    /// Posts a letter unless the box is full or the reactor is gone; then the letter comes back.
    pub(crate) fn try_post(&self, letter: Letter) -> Result<(), TrySendError<Letter>> {
        self.letters.try_send(letter)?;
        self.ring();
        Ok(())
    }

    fn ring(&self) {
        if !self.bell.is_rung.swap(true, Ordering::AcqRel) {
            // Waking fails only if the reactor's poll is gone, and with it whoever could be woken.
            let _ = self.bell.waker.wake();
        }
    }
}

impl Mailbox {
    /// To be called before letters are taken, so that one posted meanwhile rings again.
    pub(crate) fn answer_bell(&self) {
        self.bell.is_rung.store(false, Ordering::Release);
        // A full fence: the store above must be seen before the letters below are looked at.
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// The next letter, if there is one.
    pub(crate) fn take(&self) -> Option<Letter> {
        self.letters.try_recv().ok()
    }

    /// Drops what waits and whatever is posted from now on, so that no thread waits for a reactor that reads no more.
    pub(crate) fn close(&mut self) {
        self.letters = never();
    }
}
