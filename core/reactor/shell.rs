//! Does what the conductor orders, and turns what happens into events.

mod callers;
mod dead_letters;
mod followers;
mod minutes;
mod orders;
mod plugin_calls;
mod posts;
mod recorder;
mod recording;
mod roster;
mod scaling;
mod weighing;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use demi_conductor::config::{Config, Host, Proxy};
use demi_conductor::lifecycle::Reason;
use demi_conductor::{
    Action, Answer, Conductor, Errand, Event, Exit, Instance, Order, Outcome, Signal, Ticket, Time, Verdict,
};
use demi_platform::{Adapter, Platform, Settings};
use signal_hook_mio::v1_0::Signals;

use crate::api;
use crate::calls::{Call, Link, Origin};
use crate::children::{outcome_of_fault, Children};
use crate::chronicle::unix_ms;
use crate::clerk::{Clerk, StoreFacts};
use crate::handle::{Handle, Wish};
use crate::http;
use crate::kit::{outcome_of_status, Kit, Readiness};
use crate::listener::Listener;
use crate::mailbox::{Handled, Letter, Mailbox, Postbox};
use crate::metrics::Turns;
use crate::origin::Hosts;
use crate::plugins;
use crate::reach::Lookouts;
use crate::spawn::{Recipe, Yard};
use crate::sticky::Cookies;
use crate::tokens::Source;
use crate::upload::{Passage, Upload};
use crate::upstream::{Checkup, Upstreams};
use crate::workers::{self, Worker};

pub(crate) use callers::KEY_HEADER;
use dead_letters::Replays;
use followers::Followers;
use minutes::MinuteBook;
pub(crate) use orders::{unix_day, Desk};
use plugin_calls::PluginCalls;
pub(crate) use posts::{Deliveries, PostCounts};
use recorder::Recorder;
pub(crate) use recording::integration;
pub(crate) use roster::Listed;
pub(crate) use scaling::DECISIONS_SHOWN;

/// What is needed to start an instance of a platform.
pub(crate) struct Blueprint {
    pub(crate) host: Host,
    pub(crate) adapter: Option<Adapter>,
    pub(crate) settings: Settings,
    pub(crate) recipe: Option<Recipe>,
    pub(crate) addresses: Vec<SocketAddr>,
    /// How an upstream is asked how it is; by connecting, if there is none.
    pub(crate) checkup: Option<Arc<Checkup>>,
    pub(crate) in_flight_max: u32,
}

/// What runs in a slot.
enum Hosted {
    Nothing,
    Inline(Box<dyn Platform>),
    Worker(Worker),
    Child,
    Upstream(SocketAddr),
}

/// A slot: what runs in it, and what it has left behind.
struct Bay {
    /// `platform/index`, for the log and for callers.
    name: String,
    /// Index of its platform, and which of its slots it is.
    platform: u32,
    index: u32,
    hosted: Hosted,
    /// Runs whose threads could not be ended and are still there.
    left_behind: Vec<u32>,
    /// Why its state last changed.
    reason: Option<Reason>,
    /// Log lines that were not kept.
    dropped_lines: u64,
}

/// A call that has ended and whose request the clerk is keeping.
struct Burial {
    call: Call,
    answer: Answer,
    /// Bytes of its request, which count as held until they are kept.
    held: usize,
}

/// A slot starts no further thread while so many of its threads cannot be ended.
const LEFT_BEHIND_MAX: usize = 8;
/// Letters taken from the mailbox in one turn; then others have theirs.
const LETTERS_PER_TURN: usize = 1024;
/// At the end clients are given so long to take what is theirs, once everything else is done.
const OWED_MAX: Duration = Duration::from_secs(2);
/// Longest streamed answer that is gathered for a host program's own request.
const GATHERED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The header that says which instance answered.
const INSTANCE_HEADER: &str = "Demi-Instance";

/// Everything that the reactor owns besides the poll and the conductor.
pub(crate) struct Shell {
    pub(crate) kit: Kit,
    pub(crate) now: Time,
    pub(crate) listener: Listener,
    hosts: Hosts,
    pub(crate) exit: Option<u8>,
    pub(crate) turns: Turns,
    mailbox: Mailbox,
    has_letters: bool,
    postbox: Postbox,
    clerk: Option<Clerk>,
    children: Children,
    upstreams: Upstreams,
    lookouts: Lookouts,
    /// By the number of the route: what it changes of what it passes on.
    proxies: Vec<Option<Arc<Proxy>>>,
    cookies: Cookies,
    signals: Option<Signals>,
    /// By the index of the platform.
    roster: Vec<Listed>,
    desk: Desk,
    /// By the index of the slot.
    bays: Vec<Bay>,
    /// Calls that have ended and whose callers are told once the clerk has kept them.
    burials: BTreeMap<u64, Burial>,
    plugin_calls: PluginCalls,
    /// What the clerk said when all was to be stored, and when: the conductor hears it once no client is owed anything, or
    /// clients have had time enough.
    stored: Option<(bool, Time)>,
    /// Streamed answers whose clients are slow.
    paused: Vec<Ticket>,
    replays: Replays,
    deliveries: Deliveries,
    followers: Followers,
    minutes: MinuteBook,
    recorder: Recorder,
    /// By how much `now` is before the time that it is.
    lag: Duration,
    decisions: scaling::Decisions,
    /// What the clerk last said of the store.
    store_facts: StoreFacts,
}

impl Shell {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        kit: Kit,
        mut listener: Listener,
        mailbox: Mailbox,
        postbox: Postbox,
        clerk: Clerk,
        yard: Yard,
        roster: Vec<Listed>,
        desk: Desk,
        signals: Option<Signals>,
        store_facts: StoreFacts,
        deliveries: Deliveries,
        trace_bytes: u64,
        config: &Config,
    ) -> Shell {
        listener.stream_bodies(config.platforms.iter().any(|platform| platform.host == Host::Http));
        let bays = (0..)
            .zip(&config.platforms)
            .flat_map(|(number, platform)| {
                (0..platform.slots()).map(move |index| Bay::new(&platform.name, number, index))
            })
            .collect();
        let integrations = roster.iter().map(|listed| integration(listed.platform())).collect();
        let recorder = Recorder::new(config.scaler, integrations, (unix_day().into(), trace_bytes));
        Shell {
            kit,
            now: Time::ZERO,
            listener,
            hosts: Hosts::new(&config.http.hosts),
            exit: None,
            turns: Turns::default(),
            mailbox,
            has_letters: false,
            postbox,
            clerk: Some(clerk),
            children: Children::new(config.http.body_bytes_max.value(), yard),
            upstreams: Upstreams::new(&config.http),
            lookouts: Lookouts::new(config),
            proxies: config.routes.iter().map(|route| rewriting(&route.proxy)).collect(),
            cookies: Cookies::new(&config.platforms),
            signals,
            roster,
            desk,
            bays,
            burials: BTreeMap::new(),
            plugin_calls: PluginCalls::new(config.http.bodies_bytes_max.size()),
            stored: None,
            paused: Vec::new(),
            replays: Replays::default(),
            followers: Followers::new(deliveries.last_end),
            deliveries,
            minutes: MinuteBook::new(config.store.metrics_days.value()),
            recorder,
            lag: Duration::ZERO,
            decisions: scaling::Decisions::default(),
            store_facts,
        }
    }

    /// `lag`: by how much that is before the time that it is.
    pub(crate) fn set_now(&mut self, now: Time, lag: Duration) {
        (self.now, self.lag) = (now, lag);
        self.listener.set_date(SystemTime::now, now);
    }

    /// An answer is heard as if it had come before what was due, and so perhaps before it came: the time for which it wants to be left
    /// alone counts from the time that it is.
    pub(crate) fn counted_from_now(&self, event: Event) -> Event {
        match event {
            Event::Deferred { ticket, instance, outcome, after } => {
                Event::Deferred { ticket, instance, outcome, after: after.saturating_add(self.lag) }
            }
            event => event,
        }
    }

    pub(crate) fn handle(&self) -> Handle {
        Handle { postbox: self.postbox.clone() }
    }

    // ---- what happens -------------------------------------------------------------------------------------------

    /// Lets a ready source yield what happened.
    pub(crate) fn ready(&mut self, event: &mio::event::Event, conductor: &Conductor) {
        let readiness = Readiness::of(event);
        match Source::of(event.token()) {
            Some(Source::Listener) => self.listener.accept(self.now, &mut self.kit),
            Some(Source::Mailbox) => self.take_letters(conductor),
            Some(Source::Signals) => self.take_signals(),
            Some(Source::Client(place)) => self.listener.ready(place, readiness, self.now, &mut self.kit),
            Some(Source::Upstream(place)) => self.upstreams.ready(place, readiness, self.now, &mut self.kit),
            Some(Source::ChildInput(place)) => self.children.write(place, &mut self.kit),
            Some(Source::ChildOutput(place)) => self.children.read(place, self.now, &mut self.kit),
            Some(Source::ChildErrors(place)) => self.children.read_errors(place, self.now, &mut self.kit),
            Some(Source::ChildEnd(place)) => self.children.end(place, self.now, &mut self.kit),
            None => {}
        }
    }

    fn take_signals(&mut self) {
        let Some(signals) = &mut self.signals else { return };
        for signal in signals.pending() {
            log::info!("signal {signal} orders the end");
            self.kit.events.push_back(Event::Ordered(Order::Shutdown));
        }
    }

    fn take_letters(&mut self, conductor: &Conductor) {
        self.mailbox.answer_bell();
        self.has_letters = false;
        for _ in 0..LETTERS_PER_TURN {
            let Some(letter) = self.mailbox.take() else { return };
            self.take_letter(letter, conductor);
        }
        self.has_letters = true;
    }

    fn take_letter(&mut self, letter: Letter, conductor: &Conductor) {
        let event = match letter {
            Letter::Started(instance) => Event::Started { instance },
            Letter::Probed(instance, verdict, why) => {
                self.kit.complaints.extend(why.map(|why| (instance, why)));
                Event::Probed { instance, verdict }
            }
            Letter::Reinitialized(instance, done) => Event::Reinitialized { instance, done },
            Letter::Reached { target, look, verdict } if self.lookouts.is_awaited(target, look) => {
                Event::Reached { target, verdict }
            }
            // The conductor did not wait so long.
            Letter::Reached { .. } => return,
            Letter::Exited(instance, exit) => {
                // One that was left behind has let go at last.
                self.bays[instance.slot as usize].left_behind.retain(|run| *run != instance.run);
                Event::Exited { instance, exit }
            }
            Letter::Weighed { weights, available } => return self.weighed(weights, available),
            Letter::Measured(sample) => {
                self.record_sample(&sample);
                Event::Measured { sample: *sample }
            }
            Letter::TraceLost { unix_day, bytes } => return self.recorder.lost(unix_day, bytes),
            Letter::Store(facts) => {
                self.store_facts = *facts;
                return;
            }
            Letter::Stored(Errand::Flush, done) => {
                self.stored = Some((done, self.now));
                return;
            }
            Letter::Stored(errand, done) => Event::Stored { errand, done },
            Letter::Handled(ticket, instance, handled) => {
                let outcome = self.take_handled(ticket, instance, handled);
                return self.kit.ended(ticket, instance, outcome);
            }
            Letter::Buried(ticket, number) => return self.buried(ticket, number, conductor),
            Letter::Fetched { place, serial, page } => return self.replay(place, serial, page, conductor),
            Letter::Listed { place, serial, page } => return self.listed(place, serial, page),
            Letter::Posted { place, serial, held, posted } => return self.posted(place, serial, held, posted),
            Letter::PostRead(id, read) => return self.post_read(id, read, conductor),
            Letter::PostEnded(id, end) => return self.post_ended(id, end),
            Letter::Found { place, serial, found } => return self.found(place, serial, found),
            Letter::PluginStored(stored) => return self.plugin_stored(&stored),
            Letter::Rescanned(rescanned) => return self.rescanned(*rescanned, conductor),
            Letter::Reread(number, read) => return self.reread_done(number, read, conductor),
            Letter::Wished(Wish::Order(platform, order, caller)) => {
                return self.order(&platform, order, Origin::Caller(caller), conductor);
            }
            Letter::Wished(Wish::Stop) => Event::Ordered(Order::Shutdown),
            Letter::Wished(Wish::Ask(request, caller)) => return self.asked_by_host(request, caller, conductor),
            Letter::Wished(Wish::Status(sender)) => {
                // Whoever does not wait any more needs no answer.
                let _ = sender.try_send(self.with_facts(|facts| api::status_json(conductor, facts)));
                return;
            }
        };
        self.kit.events.push_back(event);
    }

    fn take_handled(&mut self, ticket: Ticket, instance: Instance, handled: Handled) -> Outcome {
        let attempt = self.kit.calls.attempt(ticket, instance);
        match handled {
            Handled::Replied(reply) => {
                let outcome = outcome_of_status(reply.status);
                if let Some(attempt) = attempt {
                    attempt.reply = reply;
                }
                outcome
            }
            Handled::Refused(fault) => {
                let outcome = outcome_of_fault(fault.kind);
                if let Some(attempt) = attempt {
                    attempt.fault = Some(fault);
                }
                outcome
            }
            Handled::Panicked => Outcome::Broken,
        }
    }

    // ---- turns --------------------------------------------------------------------------------------------------

    /// Whether something is left to do without any news.
    pub(crate) fn has_more(&self) -> bool {
        self.has_letters
            || self.listener.listed() > 0
            || self.listener.accepts_on()
            || self.listener.has_unwritten()
            || self.children.has_unread()
            || self.upstreams.has_unread()
            || !self.kit.events.is_empty()
            || !self.kit.plugin_asks.is_empty()
    }

    /// Goes on where the last turn left off.
    pub(crate) fn read_rest(&mut self, conductor: &Conductor) {
        if self.has_letters {
            self.take_letters(conductor);
        }
        if self.listener.accepts_on() {
            self.listener.accept(self.now, &mut self.kit);
        }
        self.children.read_rest(self.now, &mut self.kit);
        self.upstreams.read_rest(self.now, &mut self.kit);
    }

    /// Goes on with the client that has waited longest.
    pub(crate) fn go_on_next(&mut self) {
        self.listener.go_on_next(self.now, &mut self.kit);
    }

    /// Whether a sweep has anything to look at.
    pub(crate) fn needs_sweep(&self) -> bool {
        self.listener.needs_sweep() || self.upstreams.needs_sweep() || self.children.needs_sweep()
    }

    /// Ends what has taken too long on connections.
    pub(crate) fn sweep(&mut self) {
        self.listener.sweep(self.now, &mut self.kit);
        self.upstreams.sweep(self.now, &mut self.kit);
        self.children.sweep(self.now, &mut self.kit);
    }

    /// Writes what has gathered for clients, and lets streams flow again whose clients have caught up. Of an ordered end
    /// tells that all is stored, once clients have taken theirs as well.
    pub(crate) fn flush(&mut self) {
        self.take_log_lines();
        self.take_complaints();
        self.keep_notes();
        self.keep_decisions();
        self.listener.flush(self.now, &mut self.kit);
        self.read_on_for_followers();
        let (calls, listener, upstreams) = (&mut self.kit.calls, &self.listener, &mut self.upstreams);
        self.paused.retain(|ticket| {
            let Some(call) = calls.get(*ticket) else { return false };
            let Origin::Client { place, serial } = call.origin else { return false };
            let stays_paused = !listener.takes_more(place, serial);
            if let (false, Link::Upstream(upstream)) = (stays_paused, call.attempt.link) {
                upstreams.pause(*ticket, upstream, false);
            }
            stays_paused
        });
        let is_over = |since: Time| !self.listener.owes() || self.now - since > OWED_MAX;
        if let Some((done, _)) = self.stored.filter(|(_, since)| is_over(*since)) {
            self.stored = None;
            self.kit.events.push_back(Event::Stored { errand: Errand::Flush, done });
        }
    }

    /// Moves the bodies of streamed answers from their upstreams to their clients.
    pub(crate) fn move_streams(&mut self) {
        self.move_uploads();
        while let Some(ticket) = self.upstreams.next_relay() {
            let Some(call) = self.kit.calls.get(ticket) else { continue };
            match call.origin {
                Origin::Client { place, serial } => {
                    let is_slow = self.listener.stream(place, serial, &call.attempt.reply.body, self.now);
                    call.attempt.reply.body.clear();
                    if call.attempt.is_over {
                        self.listener.shut(place, serial, self.now);
                    }
                    if let (true, Link::Upstream(upstream)) = (is_slow, call.attempt.link) {
                        self.upstreams.pause(ticket, upstream, true);
                        if !self.paused.contains(&ticket) {
                            self.paused.push(ticket);
                        }
                    }
                }
                Origin::Caller(_) | Origin::Plugin { .. } if call.attempt.reply.body.len() > GATHERED_BYTES_MAX => {
                    let (link, instance) = (call.attempt.link, call.attempt.instance);
                    if let (Link::Upstream(upstream), Some(instance)) = (link, instance) {
                        self.upstreams.cancel(ticket, upstream, &mut self.kit);
                        let outcome = Outcome::Broken;
                        self.kit.events.push_back(Event::Answered { ticket, instance, outcome });
                    }
                }
                // Nobody reads it; only how it ends is of interest.
                Origin::Replay { .. } | Origin::Post { .. } => call.attempt.reply.body.clear(),
                Origin::Caller(_) | Origin::Plugin { .. } | Origin::Nobody => {}
            }
        }
    }

    /// Moves what clients send while their requests are under way, and has more of it read where it was taken.
    fn move_uploads(&mut self) {
        while let Some(ticket) = self.listener.next_moved() {
            if let Some(Link::Upstream(upstream)) = self.kit.calls.get(ticket).map(|call| call.attempt.link) {
                self.upstreams.feed(ticket, upstream, self.now, &mut self.kit);
            }
        }
        while let Some(ticket) = self.upstreams.next_hungry() {
            let origin = self.kit.calls.get(ticket).map(|call| &call.origin);
            if let Some(Origin::Client { place, serial }) = origin {
                self.listener.read_on(*place, *serial, self.now);
            }
        }
    }

    // ---- what the conductor orders ------------------------------------------------------------------------------

    pub(crate) fn perform(&mut self, action: Action, conductor: &Conductor) {
        match action {
            Action::Dispatch { ticket, instance } => self.dispatch(ticket, instance),
            Action::Relay { ticket } => self.relay(ticket),
            Action::Answer { ticket, answer } => self.answer(ticket, answer, conductor),
            Action::Cancel { ticket, instance } => self.cancel(ticket, instance),
            Action::Bury { ticket, answer, attempts } => self.bury(ticket, answer, attempts, conductor),
            Action::Probe { instance } => self.probe(instance, conductor),
            Action::Hedge { ticket, instance } => self.hedge(ticket, instance),
            Action::Prefer { ticket, instance } => self.kit.calls.prefer(ticket, instance),
            Action::FallBack { ticket, platform } => {
                if let Some(call) = self.kit.calls.get(ticket) {
                    call.platform = Some(platform);
                }
            }
            Action::Reach { target } => self.reach(target),
            Action::Reinitialize { instance } => self.reinitialize(instance, conductor),
            Action::Start { instance, edition } => self.start(instance, edition, conductor),
            Action::Signal { instance, signal } => self.signal(instance, signal),
            Action::Measure => {
                if !self.clerk.as_ref().is_some_and(Clerk::measure) {
                    log::debug!("the clerk is too busy to measure");
                }
            }
            Action::Admit(true) => self.admit(),
            Action::Admit(false) => {
                log::info!("ending: no request is admitted any more");
                self.listener.drain(self.now, &mut self.kit);
            }
            Action::Flush => {
                self.keep_notes();
                self.keep_decisions();
                self.keep_minutes(unix_ms(), conductor);
                self.record_end(conductor);
                if !self.clerk.as_ref().is_some_and(Clerk::flush) {
                    self.stored = Some((false, self.now));
                }
            }
            Action::Exit(code) => self.end(code),
            Action::Deliver { post } => self.deliver(post),
            Action::Settle { post, ticket, attempts } => self.settle_post(post, ticket, attempts),
            Action::NoteTries { post, tries } => self.note_tries(post, tries),
            Action::BuryPost { post, grave, attempts } => self.bury_post(post, grave, attempts),
            Action::Weigh => self.weigh(),
            Action::Trim { instance } => self.children.trim(instance, &mut self.kit),
            Action::Adopt { platform, edition } => self.adopt(platform, edition),
            Action::Reject { platform, edition } => self.reject(platform, edition),
            Action::Spend { platform, starts } => self.spend(platform, starts),
            Action::Decide { decision } => {
                self.hear_decision(&decision);
                self.record_decision(&decision);
            }
            Action::KeepPeak { platform, bytes } => self.keep_peak(platform, bytes),
            Action::Tell { platform, instance, news } => self.hear_news(platform, instance, &news, conductor),
        }
    }

    fn admit(&mut self) {
        match self.listener.admit(&self.kit.registry) {
            Ok(()) => log::info!("listening on http://{}", self.listener.address()),
            Err(error) => {
                log::error!("the listener cannot be polled: {error}");
                self.exit = Some(5);
            }
        }
    }

    fn end(&mut self, code: u8) {
        self.listener.close_all(self.now, &mut self.kit);
        self.leave_nothing();
        log::info!("ended with code {code}");
        self.exit = Some(code);
    }

    /// No child is left behind and the store is closed: another may open it at once. The only place where the reactor
    /// waits, and each time for a second at most: what hangs even then is told and left.
    fn leave_nothing(&mut self) {
        self.children.kill_all();
        self.mailbox.close();
        if let Some(clerk) = self.clerk.take() {
            clerk.finish();
        }
    }

    fn dispatch(&mut self, ticket: Ticket, instance: Instance) {
        self.kit.calls.reset(ticket, instance);
        self.put(ticket, instance);
    }

    fn hedge(&mut self, ticket: Ticket, instance: Instance) {
        if self.kit.calls.upload(ticket).is_some() {
            // Of what passes through there is one copy.
            return self.kit.ended(ticket, instance, Outcome::Busy);
        }
        self.kit.calls.double(ticket, instance);
        self.put(ticket, instance);
    }

    /// Puts a request to an instance. What becomes of it is an event.
    fn put(&mut self, ticket: Ticket, instance: Instance) {
        let bay = &mut self.bays[instance.slot as usize];
        let Some((request, attempt)) = self.kit.calls.task(ticket, instance) else { return };
        let outcome = match &mut bay.hosted {
            Hosted::Inline(platform) => {
                match workers::handle_caught(platform.as_mut(), request, &mut attempt.reply, &bay.name) {
                    Some(Ok(())) => outcome_of_status(attempt.reply.status),
                    Some(Err(fault)) => {
                        let outcome = outcome_of_fault(fault.kind);
                        attempt.fault = Some(fault);
                        outcome
                    }
                    None => {
                        // Nobody can vouch for its state: it ends, and the conductor starts it anew.
                        if let Hosted::Inline(platform) = std::mem::replace(&mut bay.hosted, Hosted::Nothing) {
                            workers::discard(platform, &bay.name);
                        }
                        let exit = Exit::Misbehaved;
                        self.kit.events.push_back(Event::Answered { ticket, instance, outcome: Outcome::Broken });
                        return self.kit.events.push_back(Event::Exited { instance, exit });
                    }
                }
            }
            Hosted::Worker(worker) => {
                if worker.handle(ticket, Arc::clone(request)) {
                    return;
                }
                Outcome::Unsent
            }
            Hosted::Child => return self.children.handle(ticket, instance, &mut self.kit),
            Hosted::Upstream(address) => {
                return self.upstreams.handle(ticket, instance, *address, self.now, &mut self.kit);
            }
            Hosted::Nothing => Outcome::Unsent,
        };
        self.kit.ended(ticket, instance, outcome);
    }

    fn relay(&mut self, ticket: Ticket) {
        let Some(call) = self.kit.calls.get(ticket) else { return };
        if let Origin::Client { place, serial } = call.origin {
            let attempt = &mut call.attempt;
            let (status, length) = (attempt.reply.status, attempt.length);
            if let Some(instance) = attempt.instance {
                http::write_header(
                    &mut attempt.head,
                    INSTANCE_HEADER,
                    self.bays[instance.slot as usize].name.as_bytes(),
                );
            }
            if let Some(gift) = &call.gift {
                attempt.head.extend_from_slice(gift);
            }
            if status == 101 {
                self.listener.begin_tunnel(place, serial, ticket, &attempt.head, self.now);
                call.upload = Some(Box::new(Upload::new(Passage::Tunnel)));
            } else {
                self.listener.begin_stream(place, serial, ticket, status, &attempt.head, length, self.now);
            }
        }
        if let Link::Upstream(upstream) = call.attempt.link {
            self.upstreams.relay(ticket, upstream, self.now, &mut self.kit);
        }
    }

    fn cancel(&mut self, ticket: Ticket, instance: Instance) {
        match self.kit.calls.attempt(ticket, instance).map(|attempt| attempt.link) {
            Some(Link::Child(id)) => self.children.cancel(id, instance, &mut self.kit),
            Some(Link::Upstream(upstream)) => self.upstreams.cancel(ticket, upstream, &mut self.kit),
            Some(Link::None) | None => {}
        }
    }

    fn probe(&mut self, instance: Instance, conductor: &Conductor) {
        let bay = &mut self.bays[instance.slot as usize];
        let verdict = match &mut bay.hosted {
            Hosted::Inline(platform) => {
                let (verdict, why) = workers::check_health(platform.as_mut(), &bay.name);
                self.kit.complaints.extend(why.map(|why| (instance, why)));
                verdict
            }
            Hosted::Worker(worker) if worker.probe() => return,
            Hosted::Worker(_) => Verdict::Busy,
            Hosted::Child => return self.children.probe(instance, &mut self.kit),
            Hosted::Upstream(address) => {
                let blueprint = self.roster[conductor.platform_of(instance)].present_blueprint();
                let checkup = blueprint.checkup.clone();
                return self.upstreams.probe(instance, *address, checkup, self.now, &mut self.kit);
            }
            Hosted::Nothing => Verdict::Fail,
        };
        self.kit.events.push_back(Event::Probed { instance, verdict });
    }

    fn reinitialize(&mut self, instance: Instance, conductor: &Conductor) {
        let bay = &mut self.bays[instance.slot as usize];
        let done = match &mut bay.hosted {
            Hosted::Inline(platform) => {
                let settings = &self.roster[conductor.platform_of(instance)].present_blueprint().settings;
                workers::initialize_again(platform.as_mut(), settings, &bay.name)
            }
            Hosted::Worker(worker) if worker.reinitialize() => return,
            Hosted::Child => return self.children.reinitialize(instance, &mut self.kit),
            // What runs elsewhere is not ours to initialise, and the configuration says so.
            Hosted::Worker(_) | Hosted::Upstream(_) | Hosted::Nothing => false,
        };
        self.kit.events.push_back(Event::Reinitialized { instance, done });
    }

    fn reach(&mut self, target: u32) {
        if let Err(error) = self.lookouts.look(target, &self.postbox) {
            log::error!("there is no thread to look at what platforms depend on: {error}");
            // Nothing is known of it.
            self.kit.events.push_back(Event::Reached { target, verdict: Verdict::Busy });
        }
    }

    fn start(&mut self, instance: Instance, edition: u32, conductor: &Conductor) {
        let platform = conductor.platform_of(instance);
        let index = conductor.index_of(instance) as usize;
        if let Some(why) = self.roster[platform].platform_of(edition).and_then(plugins::distrusted) {
            log::error!("{}: it is not started: {why}", self.bays[instance.slot as usize].name);
            self.bays[instance.slot as usize].hosted = Hosted::Nothing;
            self.kit.events.push_back(Event::Exited { instance, exit: Exit::NotStarted });
            return self.tell_not_started(platform as u32, index as u32, &why);
        }
        let Some(blueprint) = self.roster[platform].blueprint(edition) else {
            log::error!("edition {edition} of {instance:?} is not there any more");
            return self.kit.events.push_back(Event::Exited { instance, exit: Exit::NotStarted });
        };
        let bay = &mut self.bays[instance.slot as usize];
        let mut why = None;
        let started = match (blueprint.host, blueprint.adapter, &blueprint.recipe) {
            (Host::Inline, Some(adapter), _) => workers::make_platform(adapter, &blueprint.settings, &bay.name)
                .map(Hosted::Inline)
                .ok_or(Exit::NotInitialised),
            (Host::Threads(_), Some(adapter), _) if bay.left_behind.len() < LEFT_BEHIND_MAX => {
                let settings = blueprint.settings.clone();
                let postbox = self.postbox.clone();
                Worker::start(instance, &bay.name, adapter, settings, blueprint.in_flight_max, postbox)
                    .map(Hosted::Worker)
                    .map_err(|error| not_started(&bay.name, &error, &mut why))
            }
            (Host::Threads(_), Some(_), _) => {
                log::error!(
                    "{}: {LEFT_BEHIND_MAX} of its threads cannot be ended; no more are started until one ends",
                    bay.name
                );
                Err(Exit::NotStarted)
            }
            (Host::Process(_) | Host::Mcp(_), _, Some(recipe)) => {
                self.children.start(instance, &bay.name, recipe, &mut self.kit).map(|()| Hosted::Child).map_err(
                    |error| not_started(&format!("{}: {}", bay.name, recipe.program.display()), &error, &mut why),
                )
            }
            (Host::Http, _, _) => {
                blueprint.addresses.get(index).map(|address| Hosted::Upstream(*address)).ok_or(Exit::NotStarted)
            }
            (Host::Inline | Host::Threads(_), None, _) | (Host::Process(_) | Host::Mcp(_), _, None) => {
                Err(Exit::NotStarted)
            }
        };
        match started {
            Ok(hosted) => {
                let is_at_once = matches!(hosted, Hosted::Inline(_) | Hosted::Upstream(_));
                bay.hosted = hosted;
                if is_at_once {
                    self.kit.events.push_back(Event::Started { instance });
                }
            }
            Err(exit) => {
                bay.hosted = Hosted::Nothing;
                self.kit.events.push_back(Event::Exited { instance, exit });
                if let Some(why) = why {
                    self.tell_not_started(platform as u32, index as u32, &why);
                }
            }
        }
    }

    fn signal(&mut self, instance: Instance, signal: Signal) {
        let bay = &mut self.bays[instance.slot as usize];
        let exit = match (&mut bay.hosted, signal) {
            (Hosted::Inline(_), _) => {
                if let Hosted::Inline(platform) = std::mem::replace(&mut bay.hosted, Hosted::Nothing) {
                    workers::shut_down(platform, &bay.name);
                }
                Exit::Code(0)
            }
            (Hosted::Worker(worker), Signal::Shutdown) => return worker.stop(),
            // Meant for processes: a thread cannot be told twice.
            (Hosted::Worker(_), Signal::Terminate) => return,
            (Hosted::Worker(_), Signal::Kill) => {
                bay.left_behind.push(instance.run);
                log::warn!("{}: its thread does not end and is left behind", bay.name);
                Exit::Abandoned
            }
            (Hosted::Child, signal) => return self.children.signal(instance, signal, &mut self.kit),
            (Hosted::Upstream(_), _) => {
                self.upstreams.stop(instance, &mut self.kit);
                Exit::Code(0)
            }
            (Hosted::Nothing, _) => return,
        };
        bay.hosted = Hosted::Nothing;
        self.kit.events.push_back(Event::Exited { instance, exit });
    }
}

impl Drop for Shell {
    /// However the reactor ends.
    fn drop(&mut self) {
        self.leave_nothing();
    }
}

/// What a route changes, if it changes anything.
fn rewriting(proxy: &Proxy) -> Option<Arc<Proxy>> {
    (*proxy != Proxy::default()).then(|| Arc::new(proxy.clone()))
}

fn not_started(name: &str, error: &std::io::Error, why: &mut Option<String>) -> Exit {
    log::error!("{name} could not be started: {error}");
    *why = Some(error.to_string());
    Exit::NotStarted
}
