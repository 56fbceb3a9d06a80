//! What every part of the reactor's shell works with.

use std::collections::VecDeque;

use demi_conductor::{Event, Instance, Outcome, Ticket};
use demi_platform::RequestBuf;
use mio::Registry;
use serde_json::value::RawValue;

use crate::calls::Calls;
use crate::chronicle::LogLine;

/// Bytes read from one source at a time.
pub(crate) const SCRATCH_BYTES: usize = 64 * 1024;
/// Reads from one source in one turn; then others have theirs.
pub(crate) const READS_PER_TURN: usize = 16;
/// A buffer that has grown beyond this is given back once it is empty.
const BUFFER_BYTES_KEPT: usize = 16 * 1024;
const BUFFERS_KEPT: usize = 128;

/// What every part of the shell works with.
pub(crate) struct Kit {
    pub(crate) registry: Registry,
    pub(crate) calls: Calls,
    /// What happened, for the conductor to hear in this turn.
    pub(crate) events: VecDeque<Event>,
    /// What children have logged in this turn. Bounded by what each may log in a second.
    pub(crate) log_lines: VecDeque<LogLine>,
    /// What failed health checks have said in this turn. Bounded: an instance has one under way.
    pub(crate) complaints: VecDeque<(Instance, String)>,
    /// What children have asked for in this turn. Bounded by what each may have under way.
    pub(crate) plugin_asks: VecDeque<(Instance, PluginAsk)>,
    /// Where bytes are read to before anybody owns them.
    pub(crate) scratch: Box<[u8]>,
    buffers: Vec<Vec<u8>>,
}

/// What a child wants of Demi, under an id of its own.
pub(crate) enum PluginAsk {
    /// A request to be answered by another platform: the one that it names, or else the one that the rules say.
    Route { id: Box<RawValue>, to: Option<String>, request: RequestBuf },
    /// A value that it has put.
    StoreGet { id: Box<RawValue>, key: String },
    /// A value to be kept, or taken away.
    StorePut { id: Box<RawValue>, key: String, value: Option<Box<RawValue>> },
    /// How far it is with a request, for whoever waits for the answer.
    Progress { ticket: Ticket, note: String },
    /// Its tools, as an MCP server lists them, to be shown.
    Tools(Box<RawValue>),
    /// Nothing more: it has ended, and what it asked for is not needed any more.
    Ended,
}

impl Kit {
    pub(crate) fn new(registry: Registry) -> Kit {
        Kit {
            registry,
            calls: Calls::default(),
            events: VecDeque::new(),
            log_lines: VecDeque::new(),
            complaints: VecDeque::new(),
            plugin_asks: VecDeque::new(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            buffers: Vec::new(),
        }
    }

    /// An attempt ended. Whoever made it may have said when to ask again.
    pub(crate) fn ended(&mut self, ticket: Ticket, instance: Instance, outcome: Outcome) {
        let after = self.calls.attempt(ticket, instance).and_then(|attempt| attempt.retry_after());
        self.events.push_back(match after {
            Some(after) => Event::Deferred { ticket, instance, outcome, after },
            None => Event::Answered { ticket, instance, outcome },
        });
    }

    /// An empty buffer, used before.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_default()
    }

    /// Takes an empty buffer out of a connection that has nothing to keep in it, so that idle connections own none.
    pub(crate) fn take_back(&mut self, buffer: &mut Vec<u8>) {
        if buffer.is_empty() && buffer.capacity() > 0 {
            let buffer = std::mem::take(buffer);
            if buffer.capacity() <= BUFFER_BYTES_KEPT && self.buffers.len() < BUFFERS_KEPT {
                self.buffers.push(buffer);
            }
        }
    }
}

/// What the poll says of a socket.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Readiness {
    /// There is something to read, if only the end.
    pub(crate) is_readable: bool,
    /// The peer will send no more than what is there.
    pub(crate) sees_end: bool,
    /// The connection is broken in both directions.
    pub(crate) is_broken: bool,
}

impl Readiness {
    pub(crate) fn of(event: &mio::event::Event) -> Readiness {
        let is_broken = event.is_error() || (event.is_read_closed() && event.is_write_closed());
        Readiness {
            is_readable: event.is_readable() || event.is_read_closed() || is_broken,
            sees_end: event.is_read_closed() || is_broken,
            is_broken,
        }
    }
}

/// Bytes that have come and are not understood yet: what is taken moves the mark, so that a deep pipeline is not moved
/// up at each of its requests, and the buffer is given back when all is taken.
#[derive(Default)]
pub(crate) struct Incoming {
    bytes: Vec<u8>,
    taken: usize,
}

impl Incoming {
    /// What is left.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }

    /// Takes bytes from the front.
    pub(crate) fn take(&mut self, count: usize, kit: &mut Kit) {
        self.taken += count;
        if self.is_empty() {
            self.clear();
            kit.take_back(&mut self.bytes);
        }
    }

    /// Adds what has come.
    pub(crate) fn add(&mut self, bytes: &[u8], kit: &mut Kit) {
        if bytes.is_empty() {
            return;
        }
        if self.bytes.capacity() == 0 {
            self.bytes = kit.buffer();
        }
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.taken = 0;
    }
}

/// Bytes on their way out: what is written moves the mark, and the buffer is emptied when all is.
#[derive(Default)]
pub(crate) struct Outgoing {
    pub(crate) bytes: Vec<u8>,
    written: usize,
}

impl Outgoing {
    /// Nothing yet, in a buffer used before.
    pub(crate) fn new(bytes: Vec<u8>) -> Outgoing {
        Outgoing { bytes, written: 0 }
    }

    /// How many are left.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Whether all is written.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes as much as goes without waiting. Returns whether all is written.
    pub(crate) fn write_to(&mut self, sink: &mut impl std::io::Write) -> std::io::Result<bool> {
        while self.written < self.bytes.len() {
            match sink.write(&self.bytes[self.written..]) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.compact();
                    return Ok(false);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.written = 0;
        Ok(true)
    }

    /// A peer that always leaves a rest must not make the buffer grow by what it has taken.
    fn compact(&mut self) {
        if self.written > SCRATCH_BYTES && self.written > self.bytes.len() / 2 {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.written = 0;
    }
}

/// What the status of an answer shows of whoever gave it.
pub(crate) fn outcome_of_status(status: u16) -> Outcome {
    match status {
        // What is not implemented, or not in this version of HTTP, is no sign of illness either.
        400..=499 | 501 | 505 => Outcome::Mistaken,
        500..=599 => Outcome::Failed,
        _ => Outcome::Replied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three bytes at a time, and every other time none.
    struct Slow {
        taken: Vec<u8>,
        is_full: bool,
    }

    impl std::io::Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.is_full = !self.is_full;
            if !self.is_full {
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(3);
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_sink_gets_every_byte_once() {
        let mut sink = Slow { taken: Vec::new(), is_full: false };
        let mut outgoing = Outgoing::default();
        outgoing.bytes.extend_from_slice(b"hello world");
        while !outgoing.write_to(&mut sink).expect("it is only slow") {}
        assert_eq!(sink.taken, b"hello world");
        assert!(outgoing.is_empty());
    }
}
