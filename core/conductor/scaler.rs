//! Sees trouble with RAM coming.
//!
//! | what | where |
//! |---|---|
//! | how a number depends on others, with an interval | `least_squares.rs`, `student.rs` |

pub mod least_squares;
pub mod student;
