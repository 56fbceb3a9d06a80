//! Sees trouble with RAM coming, and says when it is there.
//!
//! | what | where |
//! |---|---|
//! | every reading in, every forecast out | `outlook.rs` |
//! | who forecasts best, and is believed | `competition.rs` |
//! | the samples of the last half hour | `window.rs` |
//! | what seasons are taken from | `history.rs` |
//! | averages that forget, of level and trend | `smoothing.rs` |
//! | the columns that least squares explain RAM by | `features.rs` |
//! | when it is short, and when it is calm again | `policy.rs` |
//! | what was decided, with its figures | `decision.rs` |
//! | how a number depends on others, with an interval | `least_squares.rs`, `student.rs` |

pub mod competition;
pub mod decision;
pub mod features;
pub mod history;
pub mod least_squares;
pub mod outlook;
pub mod policy;
pub mod smoothing;
pub mod student;
pub mod window;

pub use competition::{Forecast, Promotion, Score};
pub use decision::{Act, Ahead, Cause, Decision, Figures, Step};
pub use outlook::{Outlook, Taken};
pub use policy::Shortage;
pub use window::{Reading, Unfit};
