//! What a token of the poll stands for: a kind and an index, packed into one number.

use mio::Token;

/// A source of readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The listening socket.
    Listener,
    /// Another thread posted something to the mailbox.
    Mailbox,
    /// A signal came in.
    Signals,
    /// A client's connection, by its place.
    Client(usize),
    /// A connection to an upstream, by its place.
    Upstream(usize),
    /// A child's stdin, by its place.
    ChildInput(usize),
    /// A child's stdout.
    ChildOutput(usize),
    /// A child's stderr.
    ChildErrors(usize),
    /// A child's end: its pidfd.
    ChildEnd(usize),
}

const KIND_BITS: u32 = 4;

impl From<Source> for Token {
    fn from(source: Source) -> Token {
        let (kind, index) = match source {
            Source::Listener => (0, 0),
            Source::Mailbox => (1, 0),
            Source::Signals => (2, 0),
            Source::Client(index) => (3, index),
            Source::Upstream(index) => (4, index),
            Source::ChildInput(index) => (5, index),
            Source::ChildOutput(index) => (6, index),
            Source::ChildErrors(index) => (7, index),
            Source::ChildEnd(index) => (8, index),
        };
        Token(index << KIND_BITS | kind)
    }
}

impl Source {
    /// Whether it brings requests, rather than news of those under way.
    pub(crate) fn asks(token: Token) -> bool {
        matches!(Source::of(token), Some(Source::Listener | Source::Client(_)))
    }

    /// What the token stands for. `None` only for a token that was not made from a source.
    pub(crate) fn of(token: Token) -> Option<Source> {
        let index = token.0 >> KIND_BITS;
        Some(match token.0 & ((1 << KIND_BITS) - 1) {
            0 => Source::Listener,
            1 => Source::Mailbox,
            2 => Source::Signals,
            3 => Source::Client(index),
            4 => Source::Upstream(index),
            5 => Source::ChildInput(index),
            6 => Source::ChildOutput(index),
            7 => Source::ChildErrors(index),
            8 => Source::ChildEnd(index),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_comes_back_from_its_token() {
        for source in
            [Source::Listener, Source::Mailbox, Source::Client(0), Source::Client(70_000), Source::ChildEnd(3)]
        {
            assert_eq!(Source::of(source.into()), Some(source));
        }
    }
}
