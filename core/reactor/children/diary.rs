//! How much a child may log: what is kept of it in a second, and when its pipes are left to fill up.
//!
//! Beyond `limits.log_bytes_per_second_max` lines are read, counted and dropped. Well beyond it they are not even read
//! until the second is over: the pipe fills, and the child waits in its own `write`. So a flood costs Demi what a few
//! times the bound costs, however fast it is, and other children have their turns.
//!
//! stdout is stopped later than stderr, because answers stand in the same line as what a plugin prints there by mistake:
//! only lines that are no message count, and [`OUTPUT_SHARE`] times as many of them pass. A child that prints more than
//! that in a second gets its own answers through at that pace, up to a second late for each such share; one that does
//! not print is never stopped, however many or large its answers.

use std::time::Duration;

use demi_conductor::Time;

/// What a line costs besides its bytes: a time, a level and a name stand before it in the log.
const LINE_COST: usize = 64;
/// stderr is read up to so many times the bound in a second; what is beyond the bound is dropped.
const ERRORS_SHARE: usize = 4;
/// The same for lines on stdout that are no message.
const OUTPUT_SHARE: usize = 16;
/// What is counted as one second.
const PERIOD: Duration = Duration::from_secs(1);

/// Which of a child's pipes a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pipe {
    Output,
    Errors,
}

/// How much a child has logged in the present second.
#[derive(Debug)]
pub(crate) struct Diary {
    bytes_max: usize,
    since: Time,
    kept: usize,
    output: usize,
    errors: usize,
    /// In this second, and not told yet.
    dropped: u64,
}

impl Diary {
    /// Empty; keeps so many bytes a second.
    pub(crate) fn new(bytes_max: usize) -> Diary {
        Diary { bytes_max, since: Time::ZERO, kept: 0, output: 0, errors: 0, dropped: 0 }
    }

    /// Begins another second if the last one is over. How many lines that one dropped, if any.
    pub(crate) fn turn_over(&mut self, now: Time) -> Option<u64> {
        if now - self.since < PERIOD {
            return None;
        }
        (self.since, self.kept, self.output, self.errors) = (now, 0, 0, 0);
        self.take_dropped()
    }

    /// How many lines were dropped and not told yet.
    pub(crate) fn take_dropped(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.dropped)).filter(|dropped| *dropped > 0)
    }

    /// Whether a line is to be kept; counts it as dropped if not.
    pub(crate) fn takes(&mut self, bytes: usize) -> bool {
        let cost = bytes + LINE_COST;
        if self.kept + cost <= self.bytes_max.max(LINE_COST) {
            self.kept += cost;
            return true;
        }
        self.dropped += 1;
        false
    }

    /// So much was read that is for the log. Whole chunks count, as the beginning of a line costs as much as its end.
    pub(crate) fn has_read(&mut self, pipe: Pipe, bytes: usize) {
        match pipe {
            Pipe::Output => self.output += bytes,
            Pipe::Errors => self.errors += bytes,
        }
    }

    /// Whether a pipe is to be left alone until the second is over.
    pub(crate) fn is_full(&self, pipe: Pipe) -> bool {
        match pipe {
            Pipe::Output => self.output > OUTPUT_SHARE * self.bytes_max,
            Pipe::Errors => self.errors > ERRORS_SHARE * self.bytes_max,
        }
    }

    /// Most bytes that are kept in a second.
    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_bound_is_dropped_and_counted_until_the_second_is_over() {
        let mut diary = Diary::new(1000);
        assert!(diary.takes(800));
        assert!(!diary.takes(800) && !diary.takes(800));
        assert!(diary.takes(10), "a short line still fits");
        assert_eq!(diary.turn_over(Time::from_millis(999)), None);
        assert_eq!(diary.turn_over(Time::from_millis(1000)), Some(2));
        assert!(diary.takes(800));
        assert_eq!(diary.turn_over(Time::from_millis(2000)), None);
    }

    #[test]
    fn stderr_is_left_alone_before_stdout_is_and_both_are_read_again_in_the_next_second() {
        let mut diary = Diary::new(1000);
        diary.has_read(Pipe::Errors, 4000);
        diary.has_read(Pipe::Output, 4001);
        assert!(!diary.is_full(Pipe::Errors) && !diary.is_full(Pipe::Output));
        diary.has_read(Pipe::Errors, 1);
        assert!(diary.is_full(Pipe::Errors) && !diary.is_full(Pipe::Output));
        diary.has_read(Pipe::Output, 12_000);
        assert!(diary.is_full(Pipe::Output));
        diary.turn_over(Time::from_millis(1000));
        assert!(!diary.is_full(Pipe::Errors) && !diary.is_full(Pipe::Output));
    }
}
