//! What happened, and what to do about it: all that ever crosses the border of the conductor.

use std::time::Duration;

use serde::Serialize;

use crate::breaker::Cause;
use crate::config::{Balance, Platform, Urgency};
use crate::lifecycle::{Reason, State};
use crate::router::RouteId;
use crate::scaler::Decision;
use crate::time::Time;

/// How a request is to be treated, by who asks and how it came. The default: asked once, by nobody in particular, whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ask {
    /// The caller says that asking twice does no harm (a safe method, an idempotency key).
    pub idempotent: bool,
    /// What stands for the key that it came with ([`crate::balance::fingerprint`]), if its platform goes by keys.
    pub key: Option<u64>,
    /// How urgent it is by who asks; what its rule says comes before that.
    pub urgency: Urgency,
    /// Its body is passed on while it still comes, which only an upstream ([`crate::config::Host::Http`]) can take.
    pub in_parts: bool,
}

/// One run of one instance of a platform. `run` goes up at each start, so late news of an old run misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// Index over all instances of all platforms.
    pub slot: u32,
    /// How many times this slot has been started; the first run is 1.
    pub run: u32,
}

/// A request. Its body stays with whoever issued the ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

impl Ticket {
    /// A ticket for a place in a table and the generation of that place's occupant.
    pub const fn new(slot: u32, generation: u32) -> Ticket {
        Ticket((generation as u64) << 32 | slot as u64)
    }

    /// The place in the table.
    pub const fn slot(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }

    /// Slot and generation in one number, unique among the tickets of one run of Demi.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A message that is kept until it is delivered. Numbers go up, over all runs of Demi.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PostId(pub u64);

/// Why a message was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grave {
    /// No rule matches it any more.
    NoRoute,
    /// Its time was up.
    Expired,
    /// The platform said that the message is at fault.
    Rejected,
    /// Instances ended while they had it, twice.
    Poison,
    /// Every attempt failed.
    Failed,
    /// What is kept of it cannot be read, or is not there any more.
    Damaged,
}

impl Grave {
    /// The name in metrics and dead letters.
    pub const fn name(self) -> &'static str {
        match self {
            Grave::NoRoute => "no_route",
            Grave::Expired => "expired",
            Grave::Rejected => "rejected",
            Grave::Poison => "poison",
            Grave::Failed => "failed",
            Grave::Damaged => "damaged",
        }
    }
}

/// How the delivery of a message has gone so far, over all runs of Demi as far as that was kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tries {
    /// Attempts that were made.
    pub attempts: u32,
    /// Attempts in which the instance ended that had it.
    pub kills: u32,
}

/// How a message is to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
pub struct Posting {
    /// Where it goes, as the router said; `None`: no rule matches any more.
    pub route: Option<RouteId>,
    /// Its conversation, in which order is kept; 0: none.
    pub key: u64,
    /// Not to be delivered before.
    pub due: Time,
    /// Not to be delivered after.
    pub expires: Option<Time>,
    /// What was noted of earlier attempts.
    pub tries: Tries,
}

/// Issues tickets out of a table of places: a place that is free again comes back with the next generation.
#[derive(Debug, Default)]
pub struct TicketBook {
    generations: Vec<u32>,
    free: Vec<u32>,
}

impl TicketBook {
    /// A ticket that no live request has.
    pub fn issue(&mut self) -> Ticket {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.generations.push(0);
            self.generations.len() as u32 - 1
        });
        Ticket::new(slot, self.generations[slot as usize])
    }

    /// Takes a ticket back; its number is never issued again (until 2³² others of its place were).
    pub fn retire(&mut self, ticket: Ticket) {
        assert!(self.is_live(ticket), "only a live ticket can be retired");
        let generation = &mut self.generations[ticket.slot()];
        *generation = generation.wrapping_add(1);
        self.free.push(ticket.slot() as u32);
    }

    /// Whether the ticket is the one that its place was last issued under. True from issue to retirement.
    pub fn is_live(&self, ticket: Ticket) -> bool {
        self.generations.get(ticket.slot()).is_some_and(|live| Ticket::new(ticket.slot() as u32, *live) == ticket)
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
pub enum Event {
    /// Demi is assembled and may start its platforms. Once, first.
    Began,
    /// A request came in; `route` is what the router said of it.
    Asked {
        /// Issued by whoever keeps the body.
        ticket: Ticket,
        /// `None`: no rule matches.
        route: Option<RouteId>,
        /// How it is to be treated.
        ask: Ask,
    },
    /// More of a request's body went to an instance, or the last of it, and nobody has it any more: it cannot be asked again,
    /// and its time begins anew. Only where the answer has not begun does it matter.
    Moved {
        /// Whose body.
        ticket: Ticket,
        /// To whom it goes.
        instance: Instance,
    },
    /// The head of an answer is there and its body is still flowing.
    Headed {
        /// Whose answer.
        ticket: Ticket,
        /// Who answers.
        instance: Instance,
    },
    /// An attempt ended.
    Answered {
        /// Whose attempt.
        ticket: Ticket,
        /// Who made it.
        instance: Instance,
        /// How it ended.
        outcome: Outcome,
    },
    /// An attempt ended, and whoever made it said how long to wait before it is asked again (`Retry-After`).
    Deferred {
        /// Whose attempt.
        ticket: Ticket,
        /// Who made it.
        instance: Instance,
        /// How it ended.
        outcome: Outcome,
        /// From now on.
        after: Duration,
    },
    /// The caller hung up.
    Gone {
        /// Whose caller.
        ticket: Ticket,
    },
    /// An instance is initialised and takes requests.
    Started {
        /// Which run.
        instance: Instance,
    },
    /// An instance that is starting says that it needs so much longer from now on.
    Extended {
        /// Which run.
        instance: Instance,
        /// How much longer.
        by: Duration,
    },
    /// An instance's process tree was weighed.
    Weighed {
        /// Which run.
        instance: Instance,
        /// What was found.
        weight: Weight,
    },
    /// An instance says how it wants to be balanced, from now on and until it says otherwise or its run ends.
    Reported {
        /// Which run.
        instance: Instance,
        /// What it says.
        report: Report,
    },
    /// An instance is no more, or never came to be.
    Exited {
        /// Which run.
        instance: Instance,
        /// How.
        exit: Exit,
    },
    /// A probe came back.
    Probed {
        /// Which run.
        instance: Instance,
        /// What it found.
        verdict: Verdict,
    },
    /// An instance was initialised again, or could not be.
    Reinitialized {
        /// Which run.
        instance: Instance,
        /// Whether it worked.
        done: bool,
    },
    /// A look at something that platforms depend on came back.
    Reached {
        /// Index in `reachability`.
        target: u32,
        /// Whether it could be reached.
        verdict: Verdict,
    },
    /// A message that is to be delivered is durable, now or from an earlier run.
    Posted {
        /// Its number.
        post: PostId,
        /// How it is to be delivered.
        posting: Posting,
    },
    /// The body of a message is in memory, as the request of this ticket.
    PostLoaded {
        /// Its number.
        post: PostId,
        /// Issued by whoever keeps the body.
        ticket: Ticket,
    },
    /// The body of a message cannot be had.
    PostLost {
        /// Its number.
        post: PostId,
        /// Not now, or never again.
        for_good: bool,
    },
    /// The end of a message is durable, or could not be kept.
    PostStored {
        /// Its number.
        post: PostId,
        /// Whether it is durable now.
        done: bool,
    },
    /// All children have been weighed.
    AllWeighed {
        /// What the machine says is available then, bytes, to be compared with what it said after other weighings and with nothing
        /// else; `None` if it says nothing.
        available: Option<u64>,
    },
    /// The machine was measured. Once before `Began`, if it can be, so that nothing is started that does not fit.
    Measured {
        /// What was found.
        sample: Sample,
    },
    /// The store did, or could not do, what it was asked.
    Stored {
        /// Which errand.
        errand: Errand,
        /// Whether it is durable now.
        done: bool,
    },
    /// A person, or the host program, wants something.
    Ordered(Order),
    /// The store remembers how often a platform was started today. Before `Began`.
    Recalled {
        /// Index of the platform.
        platform: u32,
        /// How often.
        starts: u32,
    },
    /// The store remembers what an instance of a platform has weighed at most. Before `Began`.
    PeakRecalled {
        /// Index of the platform.
        platform: u32,
        /// Bytes.
        bytes: u64,
        /// How long ago it was found to.
        age: Duration,
    },
    /// Another day has begun (UTC): what is counted by day starts anew.
    DayBegan,
    /// Time passed up to `deadline()`.
    Elapsed,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// An answer that the platform stands behind.
    Replied,
    /// The platform says that the caller is at fault (4xx): an answer, and no sign of illness.
    Mistaken,
    /// The platform says that it failed (5xx): an answer, and a sign of illness.
    Failed,
    /// No answer: connection lost, garbage, crash or panic. The platform may have acted on the request.
    Broken,
    /// The request never reached the instance: safe to try elsewhere.
    Unsent,
    /// The instance says that it is full: neither well nor ill, and nothing was done.
    Busy,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// With this exit code; 78 means that the configuration is bad and trying again is useless.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It could not be started (no such program, no thread, no descriptor).
    NotStarted,
    /// It was started and then refused, or misunderstood, its initialisation.
    NotInitialised,
    /// The kernel ended it, because its control group or the machine had no memory left.
    OutOfMemory,
    /// It broke the protocol and was put down.
    Misbehaved,
    /// A thread that could not be ended and was left behind.
    Abandoned,
}

/// What an instance's process tree uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Weight {
    /// Resident memory of all its processes, bytes; what they share counts for each.
    pub rss_bytes: u64,
    /// The same with what is shared divided by how many share it (PSS); `None` if it is not asked for, or not for us to
    /// know. Some seconds old at most.
    pub pss_bytes: Option<u64>,
    /// How many there are.
    pub processes: u32,
    /// Open descriptors of the one that has most.
    pub descriptors: u32,
}

/// What an instance says of itself to whoever balances requests. What it does not say is as if it had said nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Report {
    /// How often it wants to be asked against the others, 1 to [`WEIGHT_MAX`]; `None`: as it is configured.
    pub weight: Option<u32>,
    /// It wants no new requests, and goes on with those that it has.
    pub drain: bool,
}

/// The highest weight.
pub const WEIGHT_MAX: u32 = 1_000;

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Well.
    Pass,
    /// Ill, or not there.
    Fail,
    /// Alive, and wants no requests now.
    Unready,
    /// Every hand is full: neither.
    Busy,
}

/// A measurement of the machine. Bytes; `cpu` in thousandths of all cores.
///
/// Several bounds may hold at once: the machine's memory, limits of control groups, a total that the configuration gives.
/// `ram_available` and `ram_total` are those of the bound of which the largest share is in use, so that this share does
/// not jump when another bound takes its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Sample {
    /// Memory that could be used without swapping. Less than `ram_total`, or as much where nothing is counted yet.
    pub ram_available: u64,
    /// All memory. Never 0.
    pub ram_total: u64,
    /// Where these two come from.
    pub ram_source: RamSource,
    /// The least that any of the bounds leaves: what is to be started has to fit in there, too. At most `ram_available`.
    pub ram_headroom: u64,
    /// All memory of the bound that leaves the least: `ram_total`, or less.
    pub ram_headroom_total: u64,
    /// The lowest limit that holds Demi to less than the machine has, if there is one.
    pub ram_limit: Option<u64>,
    /// What of the machine's available memory is cache of ZFS, which the kernel itself counts as used.
    pub arc_reclaimable: u64,
    /// How much work stands still for want of memory, where the kernel tells.
    pub pressure: Option<Pressure>,
    /// Swap in use.
    pub swap_used: u64,
    /// All swap.
    pub swap_total: u64,
    /// Load of all cores since the last sample, 0 to 1000.
    pub cpu_permille: u32,
    /// Demi's own resident memory.
    pub own_rss: u64,
    /// What Demi may still write to the disk that its store is on, if that can be told.
    pub disk_free: Option<u64>,
    /// When it was measured, seconds since 1970 by the wall clock, which may be set at any time; `None` if it was never set.
    pub date_s: Option<u64>,
}

/// Where the figures of RAM come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RamSource {
    /// The machine, whose kernel says what is available.
    #[default]
    MemAvailable,
    /// The machine, whose kernel does not say it (before 3.14), so that it is estimated.
    Estimate,
    /// The machine, as the system tells where there is no `/proc/meminfo`.
    System,
    /// A limit of a control group, version 1.
    CgroupV1,
    /// A limit of a control group, version 2.
    CgroupV2,
    /// A total that the configuration gives, of which Demi and its children use some.
    Configured,
}

impl RamSource {
    /// All of them.
    pub const ALL: [RamSource; 6] = [
        RamSource::MemAvailable,
        RamSource::Estimate,
        RamSource::System,
        RamSource::CgroupV1,
        RamSource::CgroupV2,
        RamSource::Configured,
    ];

    /// The name in metrics and on the status page.
    pub const fn name(self) -> &'static str {
        match self {
            RamSource::MemAvailable => "mem_available",
            RamSource::Estimate => "estimate",
            RamSource::System => "system",
            RamSource::CgroupV1 => "cgroup_v1",
            RamSource::CgroupV2 => "cgroup_v2",
            RamSource::Configured => "configured",
        }
    }
}

/// How much work stood still for want of memory in the last ten seconds, in thousandths of the time (PSI, `avg10`). Of the
/// whole machine or of the control group that holds Demi, whichever is worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Pressure {
    /// Something stood still.
    pub some_permille: u32,
    /// Everything stood still that had something to do.
    pub full_permille: u32,
}

/// What the store was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errand {
    /// Keep a dead letter.
    Bury,
    /// Make everything durable before the end.
    Flush,
}

/// What a person, the host program, or whoever looks at plugin folders wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// End Demi in order; a second time: end the present phase now.
    Shutdown,
    /// Start a platform and what it needs, whatever kept it from running, and let it have requests.
    Start {
        /// Index of the platform.
        platform: u32,
    },
    /// Stop a platform, after those that need it; they wait for it to come back.
    Stop {
        /// Index of the platform.
        platform: u32,
    },
    /// Stop a platform whose folder is not there any more, in the same way.
    Retire {
        /// Index of the platform.
        platform: u32,
    },
    /// Start a platform whose folder was found, or is back, and what it needs: no person says so, so only if it fits in RAM, and
    /// what was isolated by hand stays so.
    Enroll {
        /// Index of the platform.
        platform: u32,
    },
    /// Stop it and start it again, as it is configured now.
    Restart {
        /// Index of the platform.
        platform: u32,
    },
    /// Start a new edition beside the one that runs, and replace that once the new one has proven itself.
    Reload {
        /// Index of the platform.
        platform: u32,
        /// The number of the new edition; each reload's is higher than all before.
        edition: u32,
        /// What holds for it once it has taken over.
        terms: Terms,
        /// Whether a person says so: then it does not wait until both editions fit in RAM.
        is_by_hand: bool,
    },
    /// Let it run and give it no requests until it is started by hand.
    Isolate {
        /// Index of the platform.
        platform: u32,
    },
    /// Close its breakers and those of its instances, and forget what was held against them.
    Close {
        /// Index of the platform.
        platform: u32,
    },
}

/// What of a platform's configuration a reload may change in the conductor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Most requests at once in one instance.
    pub in_flight_max: u32,
    /// Which of its instances gets a request.
    pub balance: Balance,
    /// Most requests that wait.
    pub queue_max: usize,
    /// When one has waited longer, those that are no more urgent are refused.
    pub queue_age_max: Option<Duration>,
    /// From the start to the handshake.
    pub start_timeout: Duration,
    /// From the order to end to KILL.
    pub stop_grace: Duration,
    /// From the order to drain to the order to end.
    pub drain: Duration,
    /// Patience with a worker that does not let go.
    pub wedged: Duration,
    /// Idle for so long, and it sleeps.
    pub sleep_after: Option<Duration>,
    /// Longest attempt.
    pub request_timeout: Option<Duration>,
    /// Whether those that need it are restarted after it.
    pub restart_dependents: bool,
    /// Most starts in a day.
    pub start_budget: u32,
    /// Whether it may be stopped while RAM runs short.
    pub may_be_shed: bool,
    /// Of those that may be, the one with the lowest goes first.
    pub priority: u32,
    /// What it is worth against others with the same priority.
    pub value: u32,
    /// Memory of a tree above which it is asked to trim, bytes.
    pub memory_soft: Option<u64>,
    /// Above this it is killed, bytes.
    pub memory_max: Option<u64>,
    /// Most processes of a tree.
    pub processes_max: u32,
    /// Most descriptors of a process.
    pub descriptors_max: u32,
}

/// Bytes of a megabyte, as limits count them.
pub const MEGABYTE: u64 = 1_000_000;

impl Terms {
    /// As the configuration says.
    pub fn of(platform: &Platform) -> Terms {
        let limits = &platform.limits;
        Terms {
            in_flight_max: platform.in_flight_max(),
            balance: platform.balance,
            queue_max: platform.queue_max.size(),
            queue_age_max: platform.queue_age_max_ms.map(|bound| bound.millis()),
            start_timeout: platform.start_timeout_ms.millis(),
            stop_grace: platform.stop_grace_ms.millis(),
            drain: platform.drain_ms.millis(),
            wedged: platform.wedged_ms.millis(),
            sleep_after: platform.sleep_after_ms.map(|bound| bound.millis()),
            request_timeout: platform.request_timeout_ms.map(|bound| bound.millis()),
            restart_dependents: platform.restart_dependents,
            start_budget: platform.start_budget_per_day.count(),
            may_be_shed: platform.may_be_shed(),
            priority: platform.priority(),
            value: platform.value.unwrap_or_default().count(),
            memory_soft: limits.memory_soft_mb.map(|bound| bound.value() * MEGABYTE),
            memory_max: limits.memory_max_mb.map(|bound| bound.value() * MEGABYTE),
            processes_max: limits.processes_max.count(),
            descriptors_max: limits.descriptors_max.count(),
        }
    }
}

/// What is worth telling of a platform: kept in a ring and in the store, for `demi why`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum News {
    /// The state of an instance changed.
    State {
        /// Before.
        was: State,
        /// Now.
        now: State,
        /// Why.
        reason: Reason,
    },
    /// Its breaker, or that of the whole platform, opened.
    BreakerOpened {
        /// Why.
        cause: Cause,
        /// Until when.
        until: Time,
    },
    /// Its breaker, or that of the whole platform, closed.
    BreakerClosed {
        /// A person closed it.
        is_by_hand: bool,
    },
    /// Its breaker tripped and it stays in use: it is the last one, and its health check passed.
    Acquitted {
        /// What the breaker tripped for.
        cause: Cause,
    },
    /// It was initialised again, or could not be.
    Reinitialized {
        /// Whether it worked.
        done: bool,
    },
    /// Something that it depends on cannot be reached: what fails behind that is not held against it.
    Unreachable {
        /// Index in `reachability`.
        target: u32,
    },
    /// What it depends on can be reached again.
    Reachable {
        /// Index in `reachability`.
        target: u32,
    },
    /// It wants no new requests.
    DrainBegan,
    /// It may have requests again, as far as it is concerned.
    DrainEnded,
    /// Its health checks took it out.
    HealthDown,
    /// Its health checks pass again.
    HealthUp,
    /// Its tree is above its soft limit and it was asked to trim.
    Trimmed {
        /// What it has, bytes.
        rss_bytes: u64,
        /// The soft limit, bytes.
        soft_bytes: u64,
    },
    /// It needs longer to start.
    Extended {
        /// How much longer, from now.
        by: Duration,
    },
    /// A reload began: this instance is of the new edition.
    SwapBegan,
    /// Every instance is of the new edition.
    SwapDone,
    /// None runs: the next start is of the new edition.
    SwapUntried,
    /// The new edition did not prove itself; the old one stays.
    SwapFailed {
        /// What became of the new one.
        reason: Reason,
    },
    /// A person keeps requests away from it.
    Isolated,
    /// It may have requests again.
    Released,
    /// Something was decided about it because of RAM.
    Scaled {
        /// What, with its figures.
        decision: Decision,
    },
    /// It has been started often today.
    BudgetLow {
        /// How often.
        starts: u32,
        /// How often it may.
        budget: u32,
    },
}

/// What to do about it, in order of performance.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
pub enum Action {
    /// Give the request to the instance.
    Dispatch {
        /// Which request.
        ticket: Ticket,
        /// Who shall answer it.
        instance: Instance,
    },
    /// Give the request to a second instance as well. Its answers are events with the same ticket.
    Hedge {
        /// Which request.
        ticket: Ticket,
        /// Who else shall answer it.
        instance: Instance,
    },
    /// Of the two that have the request, or had it, the second one's answer is the one that counts.
    Prefer {
        /// Which request.
        ticket: Ticket,
        /// Whose answer: who was given it by `Hedge`.
        instance: Instance,
    },
    /// The platform that had the request does not take it or has failed: it is another's from here on.
    FallBack {
        /// Which request.
        ticket: Ticket,
        /// Index of the other platform.
        platform: u32,
    },
    /// Let the answer whose head has come flow to the caller; from here it cannot be tried again.
    Relay {
        /// Whose answer.
        ticket: Ticket,
    },
    /// Tell the caller; the ticket ends here.
    Answer {
        /// Whose caller.
        ticket: Ticket,
        /// What to tell.
        answer: Answer,
    },
    /// Tell the instance that nobody waits for this any more.
    Cancel {
        /// Which request.
        ticket: Ticket,
        /// Who was working on it.
        instance: Instance,
    },
    /// Tell the caller and keep the request as a dead letter; the ticket ends here.
    Bury {
        /// Which request.
        ticket: Ticket,
        /// Why, and what the caller is told.
        answer: Answer,
        /// How many attempts were made.
        attempts: u32,
    },
    /// Bring the body of a message to mind; `PostLoaded` or `PostLost` follows.
    Deliver {
        /// Its number.
        post: PostId,
    },
    /// Keep that a message was delivered, and take it out of the queue; `PostStored` follows.
    Settle {
        /// Its number.
        post: PostId,
        /// The request with the platform's answer; `None` if that could not be kept the first time and is gone.
        ticket: Option<Ticket>,
        /// Attempts that were made.
        attempts: u32,
    },
    /// Remember how the delivery of a message goes, with what went wrong, which the end of its ticket tells next. If that
    /// cannot be kept it is left out: at worst the message is tried more often.
    NoteTries {
        /// Its number.
        post: PostId,
        /// So far.
        tries: Tries,
    },
    /// Keep a message as a dead letter, and take it out of the queue; `PostStored` follows.
    BuryPost {
        /// Its number.
        post: PostId,
        /// Why.
        grave: Grave,
        /// Attempts that were made.
        attempts: u32,
    },
    /// Ask an instance how it is.
    Probe {
        /// Which run.
        instance: Instance,
    },
    /// Look whether something that platforms depend on can be reached.
    Reach {
        /// Index in `reachability`.
        target: u32,
    },
    /// Initialise an instance again, without ending it.
    Reinitialize {
        /// Which run.
        instance: Instance,
    },
    /// Start an instance.
    Start {
        /// Which run it will be.
        instance: Instance,
        /// Of which edition of the platform: 0 is what Demi began with, and each reload is one more.
        edition: u32,
    },
    /// Ask an instance to give memory back.
    Trim {
        /// Which run.
        instance: Instance,
    },
    /// Weigh the process tree of every child.
    Weigh,
    /// Every instance is of this edition now: earlier ones are not needed any more.
    Adopt {
        /// Index of the platform.
        platform: u32,
        /// The edition.
        edition: u32,
    },
    /// This edition did not prove itself and is not needed any more.
    Reject {
        /// Index of the platform.
        platform: u32,
        /// The edition.
        edition: u32,
    },
    /// Remember how often a platform was started today.
    Spend {
        /// Index of the platform.
        platform: u32,
        /// How often.
        starts: u32,
    },
    /// Remember what an instance of a platform has weighed at most, as of now.
    KeepPeak {
        /// Index of the platform.
        platform: u32,
        /// Bytes.
        bytes: u64,
    },
    /// Something was decided about RAM, of one platform or of all.
    Decide {
        /// What, with its figures.
        decision: Decision,
    },
    /// Something worth telling happened.
    Tell {
        /// Index of the platform.
        platform: u32,
        /// To which instance, if not to all.
        instance: Option<Instance>,
        /// What.
        news: News,
    },
    /// End an instance.
    Signal {
        /// Which run.
        instance: Instance,
        /// How.
        signal: Signal,
    },
    /// Measure the machine.
    Measure,
    /// Take requests, or take no more.
    Admit(bool),
    /// Make everything that was stored durable.
    Flush,
    /// End with this exit code.
    Exit(u8),
}

/// How an instance is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Ask it to end in order (`shutdown` and the end of its input to a process, a closed queue to a thread).
    Shutdown,
    /// Make a process end that did not when it was asked (TERM to the process group).
    Terminate,
    /// End it (KILL to the process group; a thread is left behind).
    Kill,
}

/// What a caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// What the instance said.
    Relayed,
    /// Nothing was done; ask again after this long.
    Refused(Refusal, Duration),
    /// The platform broke before it answered.
    Broken,
    /// No answer in time.
    TimedOut,
    /// No rule matches.
    NoRoute,
    /// Nobody listens any more.
    Unheard,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// As many wait for the platform as may, and none of them is less urgent; or it waited and gave way to one that is more
    /// urgent.
    QueueFull,
    /// One that is as urgent, or more, has waited for longer than any may.
    QueueAge,
    /// It waited for the platform until its time was up.
    QueueTimeout,
    /// The breakers of all usable instances are open.
    BreakerOpen,
    /// No instance is up.
    NotReady,
    /// Demi is ending.
    Draining,
    /// A person keeps requests away from the platform.
    Isolated,
    /// There is no RAM for the platform now.
    Shed,
    /// As many requests are under way in all of Demi as may.
    TooMany,
}

impl Refusal {
    /// Every refusal, for tables of counters.
    pub const ALL: [Refusal; 9] = [
        Refusal::QueueFull,
        Refusal::QueueAge,
        Refusal::QueueTimeout,
        Refusal::BreakerOpen,
        Refusal::NotReady,
        Refusal::Draining,
        Refusal::Isolated,
        Refusal::Shed,
        Refusal::TooMany,
    ];

    /// The name in metrics and problems.
    pub const fn name(self) -> &'static str {
        match self {
            Refusal::QueueFull => "queue_full",
            Refusal::QueueAge => "queue_age",
            Refusal::QueueTimeout => "queue_timeout",
            Refusal::BreakerOpen => "breaker_open",
            Refusal::NotReady => "not_ready",
            Refusal::Draining => "draining",
            Refusal::Isolated => "isolated",
            Refusal::Shed => "shed",
            Refusal::TooMany => "too_many",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_ticket_is_never_live_again() {
        let mut book = TicketBook::default();
        let first = book.issue();
        let other = book.issue();
        book.retire(first);
        let second = book.issue();
        assert_eq!(first.slot(), second.slot());
        assert_ne!(first, second);
        assert!(!book.is_live(first) && book.is_live(second) && book.is_live(other));
    }
}
