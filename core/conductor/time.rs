//! Time as a value: made by whoever owns a clock, compared and added here.

use std::num::NonZeroU64;
use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanoseconds since start. Only the reactor and the world make one out of a clock. One that may be absent takes no more room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(/** The nanoseconds and one. */ NonZeroU64);

const _: () = assert!(size_of::<Option<Time>>() == 8, "a hundred thousand messages have two each");

impl Default for Time {
    fn default() -> Self {
        Time::ZERO
    }
}

impl Time {
    /// The moment of start.
    pub const ZERO: Time = Time(NonZeroU64::MIN);

    /// A time from nanoseconds since start (584 years fit, but for the last nanosecond).
    pub const fn from_nanos(nanos: u64) -> Time {
        Time(NonZeroU64::MIN.saturating_add(nanos))
    }

    /// A time from milliseconds since start.
    pub const fn from_millis(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    /// Nanoseconds since start.
    pub const fn as_nanos(self) -> u64 {
        self.0.get() - 1
    }

    /// The last moment before this one.
    pub const fn just_before(self) -> Time {
        Time::from_nanos(self.as_nanos().saturating_sub(1))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, span: Duration) -> Time {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(nanos))
    }
}

impl Sub<Time> for Time {
    type Output = Duration;

    fn sub(self, earlier: Time) -> Duration {
        self.since(earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_saturates_and_since_never_goes_negative() {
        let late = Time::from_nanos(u64::MAX - 2);
        assert_eq!(late + Duration::from_secs(1), Time::from_nanos(u64::MAX - 1));
        assert_eq!(Time::from_nanos(u64::MAX), Time::from_nanos(u64::MAX - 1));
        assert_eq!(Time::ZERO.since(late), Duration::ZERO);
        assert_eq!(Time::from_millis(3) - Time::from_millis(1), Duration::from_millis(2));
    }
}
