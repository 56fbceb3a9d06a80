//! Which of several instances gets a request: of two drawn at random the less loaded one.
//!
//! Two random choices are almost as good as asking all and never herd (Mitzenmacher, 2001). In-flight counts alone
//! are too slow to see a frozen process, so an instance that has been silent with work in hand counts as worse than
//! any other, whatever its count.

use std::cmp::Ordering;
use std::time::Duration;

use crate::time::Time;

/// An instance that has work in hand and has not answered anything for so long is passed over while another is to
/// be had. Ten times what a local answer takes; a platform that is always slower stalls everywhere alike, and then
/// the count decides as if this rule were not there.
pub const STALL: Duration = Duration::from_millis(50);

/// How loaded an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Silent with work in hand, or a request of its run out of time and nothing was heard since.
    pub stalled: bool,
    /// Requests it has.
    pub in_flight: u32,
    /// When it last answered, or last went from nothing in hand to something.
    pub progress: Time,
}

impl Load {
    /// Less is better: not stalled, then fewer in flight, then heard of more recently.
    pub fn compare(&self, other: &Load) -> Ordering {
        self.stalled
            .cmp(&other.stalled)
            .then(self.in_flight.cmp(&other.in_flight))
            .then(other.progress.cmp(&self.progress))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Load = Load { stalled: false, in_flight: 0, progress: Time::ZERO };

    #[test]
    fn fewer_in_flight_wins_and_among_equals_the_one_that_spoke_last() {
        let busy = Load { in_flight: 2, ..IDLE };
        let lively = Load { progress: Time::from_millis(1), ..IDLE };
        assert_eq!(IDLE.compare(&busy), Ordering::Less);
        assert_eq!(lively.compare(&IDLE), Ordering::Less);
    }

    #[test]
    fn a_stalled_instance_is_worse_than_a_busy_one() {
        let stalled = Load { stalled: true, in_flight: 1, ..IDLE };
        let busy = Load { in_flight: 30, ..IDLE };
        assert_eq!(busy.compare(&stalled), Ordering::Less);
    }
}
