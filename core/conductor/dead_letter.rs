//! Which failed calls are kept as dead letters.
//!
//! A call has a waiting caller who is always told; it is kept only if its route says so. What was refused because
//! Demi is overloaded or ending is not kept: the caller has it still, and writing to disk under overload would make
//! it worse.

use crate::config::OnFailure;
use crate::event::{Answer, Outcome, Refusal};

/// Whether a call that ends with this answer is kept.
pub fn is_kept(on_failure: OnFailure, answer: Answer, outcome: Option<Outcome>) -> bool {
    let failed = match answer {
        Answer::Relayed => outcome == Some(Outcome::Failed),
        Answer::Broken | Answer::TimedOut => true,
        Answer::Refused(
            Refusal::QueueTimeout | Refusal::BreakerOpen | Refusal::NotReady | Refusal::Isolated | Refusal::Shed,
            _,
        ) => true,
        Answer::Refused(Refusal::QueueFull | Refusal::QueueAge | Refusal::Draining | Refusal::TooMany, _)
        | Answer::NoRoute
        | Answer::Unheard => false,
    };
    failed && on_failure == OnFailure::DeadLetter
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_a_route_that_says_so_keeps_what_failed() {
        assert!(is_kept(OnFailure::DeadLetter, Answer::TimedOut, None));
        assert!(!is_kept(OnFailure::Error, Answer::TimedOut, None));
    }

    #[test]
    fn an_answered_call_is_kept_only_if_the_platform_said_that_it_failed() {
        assert!(is_kept(OnFailure::DeadLetter, Answer::Relayed, Some(Outcome::Failed)));
        assert!(!is_kept(OnFailure::DeadLetter, Answer::Relayed, Some(Outcome::Replied)));
        assert!(!is_kept(OnFailure::DeadLetter, Answer::Relayed, Some(Outcome::Mistaken)));
    }

    #[test]
    fn overload_is_not_written_to_disk() {
        for refusal in [Refusal::QueueFull, Refusal::QueueAge, Refusal::TooMany, Refusal::Draining] {
            let answer = Answer::Refused(refusal, Duration::ZERO);
            assert!(!is_kept(OnFailure::DeadLetter, answer, None));
        }
    }
}
