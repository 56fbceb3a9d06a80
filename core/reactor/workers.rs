//! Worker threads: each is one instance, with an adapter of its own and a bounded queue.
//!
//! A panic is caught: the caller is answered, and the adapter, whose state nobody can vouch for, is made anew. A thread
//! that does not let go of a request cannot be ended; when the conductor gives it up it is left behind, and what it
//! says later misses because its run is over.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{bounded, Receiver, Sender, TrySendError};
use demi_conductor::{Exit, Instance, Ticket, Verdict};
use demi_platform::{Adapter, Health, Platform, Reply, RequestBuf, Settings, Status};

use crate::mailbox::{Handled, Letter, Postbox};

/// What a worker is told to do.
enum Job {
    Handle(Ticket, Arc<RequestBuf>),
    Probe,
    Reinitialize,
}

/// A running worker, as the reactor sees it.
pub(crate) struct Worker {
    /// None once it was asked to end: the thread ends when nothing is left in a queue that nobody fills.
    jobs: Option<Sender<Job>>,
    /// A probe waits in the queue; one that is stuck gets no second.
    is_probed: Arc<AtomicBool>,
}

/// Enough for any adapter that is not recursive without end; only pages that are touched cost memory.
const STACK_BYTES: usize = 1 << 20;

impl Worker {
    /// Starts a thread; it posts `Started` or `Exited` when its adapter is initialised.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub(crate) fn start(
        instance: Instance,
        name: &str,
        adapter: Adapter,
        settings: Settings,
        in_flight_max: u32,
        postbox: Postbox,
    ) -> std::io::Result<Worker> {
        // The conductor never gives it more than `in_flight_max`; a probe and an initialisation must fit besides.
        let (jobs, inbox) = bounded(in_flight_max as usize + 2);
        let is_probed = Arc::new(AtomicBool::new(false));
        let desk =
            Desk { instance, name: name.to_owned(), adapter, settings, postbox, is_probed: Arc::clone(&is_probed) };
        thread::Builder::new().name(name.chars().take(15).collect()).stack_size(STACK_BYTES).spawn(move || {
            // Whatever an adapter does, even panic when it is dropped, its end is told.
            let exit = catch_unwind(AssertUnwindSafe(|| desk.work(&inbox))).unwrap_or(Exit::Misbehaved);
            desk.postbox.post(Letter::Exited(desk.instance, exit));
        })?;
        Ok(Worker { jobs: Some(jobs), is_probed })
    }

    /// Hands a request over. False if the queue is full or the thread is gone.
    pub(crate) fn handle(&self, ticket: Ticket, request: Arc<RequestBuf>) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(Job::Handle(ticket, request)).is_ok())
    }

    /// Asks how it is; it answers when it has finished what it has in hand, once however often it was asked meanwhile.
    /// False if that cannot even be queued.
    pub(crate) fn probe(&self) -> bool {
        let Some(jobs) = &self.jobs else { return false };
        if self.is_probed.swap(true, Ordering::AcqRel) {
            return true;
        }
        let is_queued = jobs.try_send(Job::Probe).is_ok();
        if !is_queued {
            self.is_probed.store(false, Ordering::Release);
        }
        is_queued
    }

    /// Has its adapter initialised again when it has finished what it has in hand; `Letter::Reinitialized` follows. False
    /// if the thread is gone.
    pub(crate) fn reinitialize(&self) -> bool {
        let Some(jobs) = &self.jobs else { return false };
        match jobs.try_send(Job::Reinitialize) {
            // It is full only if an earlier order waits, whose answer is as good.
            Ok(()) | Err(TrySendError::Full(_)) => true,
            Err(TrySendError::Disconnected(_)) => false,
        }
    }

    /// Asks it to end after what it has in hand and in its queue.
    pub(crate) fn stop(&mut self) {
        self.jobs = None;
    }
}

/// What a worker's thread owns.
struct Desk {
    instance: Instance,
    name: String,
    adapter: Adapter,
    settings: Settings,
    postbox: Postbox,
    is_probed: Arc<AtomicBool>,
}

impl Desk {
    fn work(&self, inbox: &Receiver<Job>) -> Exit {
        let Some(mut platform) = self.make() else { return Exit::NotInitialised };
        self.postbox.post(Letter::Started(self.instance));
        while let Ok(job) = inbox.recv() {
            match job {
                Job::Handle(ticket, request) => {
                    let handled = self.handle(platform.as_mut(), &request);
                    drop(request);
                    let panicked = matches!(handled, Handled::Panicked);
                    self.postbox.post(Letter::Handled(ticket, self.instance, handled));
                    if panicked {
                        let Some(fresh) = self.make() else { return Exit::NotInitialised };
                        platform = fresh;
                    }
                }
                Job::Probe => {
                    self.is_probed.store(false, Ordering::Release);
                    let (verdict, why) = check_health(platform.as_mut(), &self.name);
                    self.postbox.post(Letter::Probed(self.instance, verdict, why));
                }
                Job::Reinitialize => {
                    let done = initialize_again(platform.as_mut(), &self.settings, &self.name);
                    self.postbox.post(Letter::Reinitialized(self.instance, done));
                }
            }
        }
        shut_down(platform, &self.name);
        Exit::Code(0)
    }

    fn make(&self) -> Option<Box<dyn Platform>> {
        make_platform(self.adapter, &self.settings, &self.name)
    }

    fn handle(&self, platform: &mut dyn Platform, request: &RequestBuf) -> Handled {
        let mut reply = Reply::default();
        match handle_caught(platform, request, &mut reply, &self.name) {
            Some(Ok(())) => Handled::Replied(reply),
            Some(Err(fault)) => Handled::Refused(fault),
            None => Handled::Panicked,
        }
    }
}

/// Makes and initialises a platform; says in the log why that failed.
pub(crate) fn make_platform(adapter: Adapter, settings: &Settings, name: &str) -> Option<Box<dyn Platform>> {
    let made = catch_unwind(AssertUnwindSafe(|| {
        let mut platform = (adapter.make)();
        platform.initialize(settings).map(|()| platform)
    }));
    match made {
        Ok(Ok(platform)) => Some(platform),
        Ok(Err(fault)) => {
            log::error!("{name}: could not be initialised: {fault}");
            None
        }
        Err(_) => {
            log::error!("{name}: panicked while it was initialised");
            None
        }
    }
}

/// Initialises a platform again; says in the log why that failed; then it should be ended.
pub(crate) fn initialize_again(platform: &mut dyn Platform, settings: &Settings, name: &str) -> bool {
    match catch_unwind(AssertUnwindSafe(|| platform.initialize(settings))) {
        Ok(Ok(())) => true,
        Ok(Err(fault)) => {
            log::error!("{name}: could not be initialised again: {fault}");
            false
        }
        Err(_) => {
            log::error!("{name}: panicked while it was initialised again");
            false
        }
    }
}

/// Ends a platform in order.
pub(crate) fn shut_down(mut platform: Box<dyn Platform>, name: &str) {
    if catch_unwind(AssertUnwindSafe(|| platform.shutdown())).is_err() {
        log::warn!("{name}: panicked in its shutdown");
    }
    discard(platform, name);
}

/// Drops a platform, which may run code of its own.
pub(crate) fn discard(platform: Box<dyn Platform>, name: &str) {
    if catch_unwind(AssertUnwindSafe(|| drop(platform))).is_err() {
        log::warn!("{name}: panicked while it was dropped");
    }
}

/// Lets the platform handle a request. `None` if it panicked; its state must then not be used again.
pub(crate) fn handle_caught(
    platform: &mut dyn Platform,
    request: &RequestBuf,
    reply: &mut Reply,
    name: &str,
) -> Option<Result<(), demi_platform::Fault>> {
    let request = request.request();
    let caught = catch_unwind(AssertUnwindSafe(|| platform.handle_request(&request, reply)));
    caught.map_err(|_| log::error!("{name}: panicked while it handled a request; the caller is told 502")).ok()
}

/// Asks a platform how it is; a panic counts as failed.
pub(crate) fn check_health(platform: &mut dyn Platform, name: &str) -> (Verdict, Option<String>) {
    let health = catch_unwind(AssertUnwindSafe(|| platform.health_check()))
        .unwrap_or_else(|_| Health::down("panicked in its health check"));
    verdict(health, name)
}

/// What a health check found, in the conductor's words, and what is wrong, which goes to the log as well.
pub(crate) fn verdict(health: Health, name: &str) -> (Verdict, Option<String>) {
    match health.status {
        Status::Up => (Verdict::Pass, None),
        Status::Busy => (Verdict::Busy, None),
        Status::Unready => {
            let why = health.error.unwrap_or_else(|| "no reason given".to_owned());
            log::debug!("{name}: wants no requests now: {why}");
            (Verdict::Unready, Some(why))
        }
        Status::Down => {
            let why = health.error.unwrap_or_else(|| "no reason given".to_owned());
            log::warn!("{name}: health check failed: {why}");
            (Verdict::Fail, Some(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use demi_conductor::TicketBook;
    use demi_platform::{Fault, Request};
    use mio::{Poll, Token, Waker};

    use super::*;
    use crate::mailbox::mailbox;

    /// Holds each request until its gate is opened.
    struct Gated;

    static IS_OPEN: AtomicBool = AtomicBool::new(false);

    impl Platform for Gated {
        fn initialize(&mut self, _: &Settings) -> Result<(), Fault> {
            Ok(())
        }

        fn handle_request(&mut self, _: &Request<'_>, _: &mut Reply) -> Result<(), Fault> {
            while !IS_OPEN.load(Ordering::Acquire) {
                thread::park_timeout(Duration::from_millis(1));
            }
            Ok(())
        }
    }

    #[test]
    fn a_worker_that_was_stuck_and_often_probed_ends_when_it_was_stopped() {
        let poll = Poll::new().expect("there is a poll to have");
        let (postbox, mailbox) = mailbox(Waker::new(poll.registry(), Token(0)).expect("it can be woken"));
        let adapter = Adapter { name: "gated", make: || Box::new(Gated) };
        let instance = Instance { slot: 0, run: 1 };
        let mut worker = Worker::start(instance, "gated/0", adapter, Settings::new(), 1, postbox).expect("it starts");
        assert!(worker.handle(TicketBook::default().issue(), Arc::default()));
        for _ in 0..10 {
            assert!(worker.probe(), "a probe that waits already is as good as another");
        }
        worker.stop();
        assert!(!worker.handle(TicketBook::default().issue(), Arc::default()) && !worker.probe());
        IS_OPEN.store(true, Ordering::Release);
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut probes = 0;
        loop {
            match mailbox.take() {
                Some(Letter::Exited(exited, exit)) => {
                    assert_eq!((exited, exit), (instance, Exit::Code(0)));
                    break;
                }
                Some(Letter::Probed(..)) => probes += 1,
                Some(_) => {}
                None => {
                    assert!(Instant::now() < deadline, "it does not end");
                    thread::park_timeout(Duration::from_millis(1));
                }
            }
        }
        assert_eq!(probes, 1);
    }
}
