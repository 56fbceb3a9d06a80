//! What a run leaves behind: its hash, its figures, and what was seen on the way.

use std::hash::Hasher;
use std::time::Duration;

use crate::faults::Fault;

/// Declares an enum whose variants are counted in a [`Tally`]: each with the words that a person reads.
macro_rules! kinds {
    ($(#[$meta:meta])* pub enum $name:ident { $($variant:ident => $words:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = $words] $variant,)*
        }

        impl $name {
            /// Every kind, for tables.
            pub const ALL: [$name; [$($words),*].len()] = [$($name::$variant),*];

            /// What a person reads.
            pub const fn words(self) -> &'static str {
                match self {
                    $($name::$variant => $words,)*
                }
            }
        }
    };
}
pub(crate) use kinds;

kinds! {
    /// What the conductor was seen doing. A sweep that never saw one of these has not tested it.
    pub enum Sight {
        Relayed => "an answer was relayed",
        Streamed => "an answer was relayed from its head on",
        Broken => "a caller was told that the platform broke",
        TimedOut => "a caller was told that time was up",
        PassedOn => "a request went to the next platform of its route",
        QueueFull => "a request was refused: queue full",
        QueueAge => "a request was refused: others have waited too long",
        Displaced => "a request gave way to a more urgent one",
        Overtaken => "a request waited while a more urgent one passed it",
        QueueTimeout => "a request was refused: waited too long",
        BreakerOpen => "a request was refused: breakers open",
        NotReady => "a request was refused: nobody up",
        Draining => "a request was refused: Demi is ending",
        Isolated => "a request was refused: isolated by hand",
        NoRam => "a request was refused: no RAM for its platform",
        TooMany => "a request was refused: too many under way",
        NoRoute => "a request had no route",
        Unheard => "a caller hung up and its request ended",
        Buried => "a request was kept as a dead letter",
        Retried => "a request was tried again",
        Cancelled => "an attempt was cancelled",
        Opened => "a breaker opened",
        Trial => "a request tried a half-open breaker",
        Closed => "a breaker closed",
        ClosedByHand => "a breaker was closed by hand",
        Acquitted => "a breaker tripped and its instance stayed in use, as the last one",
        Slower => "an instance was cut off because it was far slower than its peers",
        FailsMore => "an instance was cut off because it failed far more often than its peers",
        SlowRate => "a breaker opened because calls were slow",
        FailureRate => "a breaker opened for the rate of failures",
        PlatformOpened => "the breaker of a platform opened",
        Panicked => "a request went to an instance that is cut off, because most are",
        Reinitialized => "an instance was initialised again",
        BreakerRestart => "an instance was replaced because its breaker opened",
        Hedged => "a second instance was asked",
        HedgeWon => "the second instance's answer was the one that counted",
        Delivered => "a message was delivered",
        Expired => "a message was too late and is a dead letter",
        Rejected => "a message was at fault and is a dead letter",
        Undeliverable => "a message failed for good and is a dead letter",
        Poison => "a message that ended two instances is a dead letter",
        Unroutable => "a message that leads nowhere is a dead letter",
        Damaged => "a message that could not be read is a dead letter",
        Moved => "a part of a request's body went to its instance",
        Remembered => "attempts before a crash counted after it",
        Crashed => "Demi went on after a crash",
        Unreachable => "something that platforms depend on was lost",
        Reachable => "something that platforms depend on was back",
        Held => "an instance was not started again before what it lies behind was back",
        Restarted => "an instance was started again",
        StartTimeout => "a start took too long and was ended",
        Sick => "an instance was ended because its probes failed",
        Wedged => "an instance was ended because it did not let go",
        Killed => "an instance had to be killed",
        Stale => "news of an old run or an ended ticket was passed over",
        StoppedInStorm => "Demi was stopped amid faults",
        StoppedTwice => "the order to stop was given more than once",
        OutOfTime => "Demi exited with 1: the store did not answer in time",
        StoreFailed => "Demi exited with 4: the store failed",
        Recovered => "all was well again after the faults",
        Slept => "an idle platform was put to sleep",
        Woken => "a request woke a platform",
        Drained => "an instance drained with requests in hand",
        Withdrew => "an instance drained by its own wish",
        Resumed => "an instance wanted requests again",
        SwapDone => "a new edition took over",
        SwapFailed => "a new edition did not prove itself and the old one stayed",
        Limited => "an instance was killed for what it used",
        Trimmed => "an instance was asked for memory",
        TrimmedAll => "RAM was short and everybody was asked for memory",
        SleptForRam => "RAM was short and an idle platform was put to sleep",
        Shed => "RAM was short and a platform was shed",
        PutDown => "RAM had nearly run out and a platform was killed",
        Exhausted => "RAM was short and nobody was left to be shed",
        Restored => "a platform that was shed came back",
        KeptPeak => "what a platform weighs at most was kept",
        WouldHave => "what would have been done about RAM was told and not done",
        HeldBack => "a platform was not started by itself: it is known not to fit",
        Postponed => "a new edition waited, for it does not fit beside the old one",
        TooHeavy => "a platform was not started: there was no RAM for it",
        Leaked => "an instance was replaced for its descriptors",
        Followed => "an instance was restarted after what it needs",
        Spent => "an instance was not started because of its budget",
        Extended => "a slow starter was given longer",
        BadConfig => "an instance was left alone because its configuration is bad",
    }
}

/// Counts by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally<const N: usize>([u64; N]);

/// How often each fault struck.
pub type Faults = Tally<{ Fault::ALL.len() }>;
/// How often each thing was seen.
pub type Sights = Tally<{ Sight::ALL.len() }>;

impl<const N: usize> Default for Tally<N> {
    fn default() -> Self {
        Tally([0; N])
    }
}

impl<const N: usize> Tally<N> {
    /// Counts `more` of a kind (an enum made by `kinds!`, as its number).
    pub(crate) fn add(&mut self, kind: usize, more: u64) {
        self.0[kind] += more;
    }

    /// In the order of the enum's `ALL`.
    pub fn counts(&self) -> &[u64; N] {
        &self.0
    }

    /// Of all kinds together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    fn absorb(&mut self, other: &Tally<N>) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }
}

/// What one seed came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of every time, event and action in order: equal for equal seeds.
    pub hash: u64,
    /// Calls of `Conductor::handle`.
    pub steps: u64,
    /// From start to exit by the world's clock.
    pub simulated: Duration,
    /// Requests asked.
    pub requests: u64,
    /// The exit code.
    pub exit: u8,
    /// What went wrong on purpose.
    pub faults: Faults,
    /// What the conductor did about it.
    pub sights: Sights,
}

/// What a range of seeds came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many.
    pub seeds: u64,
    /// Of all hashes, whatever the order of the seeds.
    pub hash: u64,
    /// Calls of `Conductor::handle`.
    pub steps: u64,
    /// By the worlds' clocks.
    pub simulated: Duration,
    /// Requests asked.
    pub requests: u64,
    /// What went wrong on purpose.
    pub faults: Faults,
    /// What the conductor did about it.
    pub sights: Sights,
}

impl Summary {
    /// Adds one seed's report.
    pub fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.hash ^= report.hash;
        self.steps += report.steps;
        self.simulated += report.simulated;
        self.requests += report.requests;
        self.faults.absorb(&report.faults);
        self.sights.absorb(&report.sights);
    }

    /// Adds another range's summary.
    pub fn join(&mut self, other: &Summary) {
        self.seeds += other.seeds;
        self.hash ^= other.hash;
        self.steps += other.steps;
        self.simulated += other.simulated;
        self.requests += other.requests;
        self.faults.absorb(&other.faults);
        self.sights.absorb(&other.sights);
    }
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo): unlike the standard library's hasher it is the same in every release, and
/// every integer goes in at a fixed width, so a hash means the same on every machine.
#[derive(Clone, Debug)]
pub struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Fnv1a(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv1a {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write(&number.to_le_bytes());
    }

    fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    /// Discriminants of enums come in here: one byte holds any of ours.
    fn write_isize(&mut self, number: isize) {
        self.write(&[number as u8]);
    }
}
