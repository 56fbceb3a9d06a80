//! Demi as a library: the conductor of a program's integrations, without an async runtime.
//!
//! ```no_run
//! use std::time::Duration;
//! use demi::{Config, Host, Options, Platform, Reactor, Request, Route};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = Config::default();
//! config.platforms.push(Platform::new("echo", Host::Threads(2)));
//! config.routes.push(Route::to("echo"));
//! let reactor = Reactor::new(&config, &[demi_echo::ADAPTER], Options::default())?;
//! let handle = reactor.handle();
//! let asking = std::thread::spawn(move || {
//!     let answer = handle.ask_and_wait(&Request { body: b"hello", ..Request::default() }, Duration::from_secs(5));
//!     handle.shutdown().map(|()| answer)
//! });
//! reactor.run()?; // or `turn(wait)` inside a loop of your own
//! assert_eq!(asking.join().expect("it does not panic")??.body, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! - A [`Reactor`] belongs to one thread. [`Handle`]s speak to it from any thread.
//! - An integration is a [`PlatformTrait`]; an [`Adapter`] registers it under a name for `Inline` and `Threads` hosts.
//!   [`plugin_main`] makes it a process of its own, and [`plugin_main_with`] one that asks something of Demi itself.
//! - The library installs no signal handler (unless [`Options::handles_signals`] asks for it) and no logger, starts no
//!   thread before [`Reactor::new`], reads no environment variable but `PATH` for children, and reaps no process that
//!   it did not start (unless [`Options::is_subreaper`] asks for it).
//! - [`conductor`] is the pure part, for those who want to drive it themselves; `demi-sim` shows how.

#![forbid(unsafe_code)]

pub use demi_conductor as conductor;
pub use demi_conductor::config::{Bounded, Config, Content, Host, Mistake, OnFailure, Platform, Route, Urgency};
pub use demi_platform::Host as PluginHost;
pub use demi_platform::Platform as PlatformTrait;
pub use demi_platform::{
    plugin_main, plugin_main_with, Adapter, Fault, FaultKind, Health, Level, Reply, Request, Settings, Status,
};
pub use demi_reactor::{
    config_file, delegation, gauge, keep_guard, plugins, traces, Answered, Handle, HandleError, Options, PlatformOrder,
    Reactor, StartError,
};
