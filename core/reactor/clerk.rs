//! The clerk: one thread for errands that block, so that the reactor never does: the store, and measuring.

use std::thread;
use std::time::Duration;

use crossbeam_channel::{bounded, unbounded, Receiver, RecvTimeoutError, Sender};
use demi_conductor::{Errand, Sample, Ticket};

use crate::api::{self, Listing};
use crate::mailbox::{Letter, Postbox};
use crate::problem::Problem;
use crate::store::{DeadLetter, Store};

/// Most errands that wait; one more is refused, and told as not done.
const ERRANDS_MAX: usize = 1024;
/// A reader is refused while so many errands wait: what must be kept goes before what someone would like to see.
const ERRANDS_BEFORE_LISTING_MAX: usize = 16;

/// What is still to be kept when Demi ends is given this long; a store that hangs must not keep Demi from ending.
const FINISH_MAX: Duration = Duration::from_secs(1);

enum Order {
    Measure,
    Bury(Ticket, Box<DeadLetter>),
    Flush,
    List { place: usize, serial: u64, listing: Listing },
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
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub(crate) fn start(store: Store, postbox: Postbox) -> std::io::Result<Clerk> {
        Clerk::spawn(move |inbox| work(inbox, store, &postbox))
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

    /// Has dead letters read for the client at a place. False if too much is waiting.
    pub(crate) fn list(&self, place: usize, serial: u64, listing: Listing) -> bool {
        self.send(Order::List { place, serial, listing }, ERRANDS_BEFORE_LISTING_MAX)
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

fn work(inbox: &Receiver<Order>, store: Store, postbox: &Postbox) {
    let mut gauge = Gauge::new();
    while let Ok(order) = inbox.recv() {
        match order {
            Order::Measure => {
                if let Some(sample) = gauge.measure() {
                    postbox.post(Letter::Measured(sample));
                }
            }
            Order::Bury(ticket, letter) => {
                let buried = store.bury(&letter).map_err(|error| error.to_string());
                postbox.post(Letter::Stored(Errand::Bury, buried.is_ok()));
                postbox.post(Letter::Buried(ticket, buried));
            }
            Order::Flush => {
                let flushed = store.flush();
                if let Err(error) = &flushed {
                    log::error!("the store could not be flushed: {error}");
                }
                postbox.post(Letter::Stored(Errand::Flush, flushed.is_ok()));
            }
            Order::List { place, serial, listing } => {
                let page = store.list(listing.after, listing.limit).map(|page| api::dead_letters_json(&page));
                let page = page.map_err(|error| {
                    log::error!("dead letters could not be read: {error}");
                    Box::new(Problem::new(500, error.to_string()).code("store"))
                });
                postbox.post(Letter::Listed { place, serial, page });
            }
        }
    }
}

/// Measures the machine with sysinfo, which knows the ways of each kernel.
struct Gauge {
    /// `None` on a kernel that sysinfo cannot read; that was logged once.
    system: Option<sysinfo::System>,
    own_pid: Option<sysinfo::Pid>,
}

impl Gauge {
    fn new() -> Gauge {
        let system = sysinfo::System::new()
            .map_err(|error| log::warn!("the machine cannot be measured: {error}; decisions go without its memory"));
        Gauge { system: system.ok(), own_pid: sysinfo::get_current_pid().ok() }
    }

    fn measure(&mut self) -> Option<Sample> {
        use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate};
        let system = self.system.as_mut()?;
        system.refresh_memory_specifics(MemoryRefreshKind::everything());
        system.refresh_cpu_usage();
        let own = self.own_pid.map(|pid| [pid]);
        if let Some(own) = &own {
            let only_memory = ProcessRefreshKind::nothing().with_memory().without_tasks();
            system.refresh_processes_specifics(ProcessesToUpdate::Some(own), false, only_memory);
        }
        let own_rss = self.own_pid.and_then(|pid| system.process(pid)).map_or(0, sysinfo::Process::memory);
        Some(Sample {
            ram_available: system.available_memory(),
            ram_total: system.total_memory(),
            swap_used: system.used_swap(),
            swap_total: system.total_swap(),
            cpu_permille: (system.global_cpu_usage() * 10.0) as u32,
            own_rss,
        })
    }
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

    #[test]
    fn the_machine_has_memory_and_this_process_uses_some() {
        let sample = Gauge::new().measure().expect("this kernel can be read");
        assert!(sample.ram_total > 0 && sample.ram_available <= sample.ram_total);
        assert!(sample.own_rss > 0 && sample.own_rss < sample.ram_total);
    }
}
