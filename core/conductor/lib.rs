//! Demi's decisions.
pub mod config;
mod time;
pub use time::Time;
