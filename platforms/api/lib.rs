//! What an integration implements, in process or on the wire.
//!
//! An integration is a [`Platform`]. Compiled in, it runs on the reactor's thread or on worker threads; in a process of
//! its own, [`plugin_main`] lets it speak the wire protocol of [`codec`] on stdin and stdout. It is the same trait and
//! the same requests either way, but for [`Request::host`] and [`Request::headers`], which stay in Demi's process. One
//! that wants something of Demi itself is made with a [`Host`] by [`plugin_main_with`].

#![forbid(unsafe_code)]

pub mod codec;
mod plugin;
mod request;

use std::collections::BTreeMap;
use std::time::Duration;

pub use codec::Level;
pub use plugin::{plugin_main, plugin_main_with, Host};
pub use request::{Parts, Reply, Request, RequestBuf};

/// What the configuration says to a platform: `settings` of its entry.
pub type Settings = BTreeMap<String, String>;

/// An integration. One value serves one instance; its methods are never called at the same time.
pub trait Platform: Send {
    /// Called first; may block (within `start_timeout_ms`) unless the platform is hosted inline. Called again, between
    /// two requests, each time that the instance's breaker opens, if the configuration says `breaker: (recovery:
    /// Reinitialize)`: then it should begin anew, with fresh connections for instance.
    ///
    /// # Errors
    /// A sentence that says what is missing; the instance is then started again later.
    fn initialize(&mut self, settings: &Settings) -> Result<(), Fault>;

    /// How it is. Called every few seconds, never while a request is being handled.
    fn health_check(&mut self) -> Health {
        Health::up()
    }

    /// Answers a request by filling in `reply`, which is empty (status 200) when it comes.
    ///
    /// # Errors
    /// A [`Fault`] says whose fault it is; that decides what the caller is told and whether it counts as a sign of
    /// illness. What was written to `reply` is then dropped.
    fn handle_request(&mut self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Fault>;

    /// Gives memory back that it can do without.
    fn trim(&mut self) {}

    /// Called once, last.
    fn shutdown(&mut self) {}
}

/// Why a request, or an initialisation, failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whose fault it is.
    pub kind: FaultKind,
    /// A sentence for the caller.
    pub message: String,
    /// It is of no use to ask again sooner than this from now on. Demi counts an hour of it at most.
    pub retry_after: Option<Duration>,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The caller's: the request cannot be answered as it is. No sign of illness; the caller is told 400.
    Mistaken,
    /// The platform's: it tried and failed. Counts against its breaker; the caller is told 502.
    Failed,
    /// Nobody's: it is full and did nothing. The caller is told 503.
    Busy,
}

impl Fault {
    /// The caller's fault.
    pub fn mistaken(message: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Mistaken, message)
    }

    /// The platform's fault.
    pub fn failed(message: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Failed, message)
    }

    /// Nobody's fault.
    pub fn busy(message: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Busy, message)
    }

    /// The same, and when it may be asked again: `Fault::busy("the day's quota is used up").after(wait)`. Demi does not ask
    /// this instance again sooner, and tells the caller if nobody else can answer.
    #[must_use]
    pub fn after(self, wait: Duration) -> Fault {
        Fault { retry_after: Some(wait), ..self }
    }

    fn new(kind: FaultKind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into(), retry_after: None }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

/// How a platform is. How long it took to say so, and when, is measured by whoever asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The verdict.
    pub status: Status,
    /// What is wrong, if something is.
    pub error: Option<String>,
}

/// The verdict of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Well.
    Up,
    /// Out of order: counts as a failed health check.
    Down,
    /// Every hand is full: neither pass nor fail.
    Busy,
    /// Alive, and wants no requests now: after several such answers in a row it gets none, and it is not started again
    /// for that.
    Unready,
}

impl Health {
    /// Well.
    pub fn up() -> Health {
        Health { status: Status::Up, error: None }
    }

    /// Out of order, and why.
    pub fn down(error: impl Into<String>) -> Health {
        Health { status: Status::Down, error: Some(error.into()) }
    }

    /// Wants no requests now, and why.
    pub fn unready(why: impl Into<String>) -> Health {
        Health { status: Status::Unready, error: Some(why.into()) }
    }
}

/// What is compiled in under a name: makes one platform for one instance.
#[derive(Clone, Copy)]
pub struct Adapter {
    /// The name that `adapter:` in the configuration refers to.
    pub name: &'static str,
    /// Makes a platform; called once for each start of each instance, on the thread that will run it.
    pub make: fn() -> Box<dyn Platform>,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Adapter").field("name", &self.name).finish_non_exhaustive()
    }
}
