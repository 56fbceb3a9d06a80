//! What is spoken with a child: bytes out, facts in, and no process, pipe or clock anywhere near.
//!
//! [`Wire`] has one implementation for Demi's own protocol and one for the Model Context Protocol. Whoever owns the
//! pipes hands each whole line to [`Wire::take_line`], acts on what was [`Heard`], and writes what has gathered in `out`.

use std::time::Duration;

use demi_conductor::{Instance, Outcome, Report, Ticket, Verdict};
use demi_platform::{Fault, Request, RequestBuf, Settings};
use serde_json::value::RawValue;

use crate::calls::Calls;

/// Longest log line that is kept; the rest of it is dropped.
pub(crate) const LOG_LINE_BYTES_MAX: usize = 8 * 1024;
/// A child that leaves so much unread on its stdin is full, and one that only asks is not answered any more: neither
/// must fill memory. Where one line may be longer than this, that counts for the former.
pub(crate) const UNREAD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a child said.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The handshake is done.
    Started,
    /// The handshake failed for good: the child is put down.
    Refused(String),
    /// It was initialised again, or why it could not be.
    Reinitialized(Result<(), String>),
    /// The answer to a request, or the fault, stands in its call.
    Answered { ticket: Ticket, outcome: Outcome },
    /// The answer to a health check, and what was wrong.
    Probed(Verdict, Option<String>),
    /// How far it is with a request, for whoever waits: one line, without control characters.
    Progress { ticket: Ticket, note: String },
    /// A line for its log, already without control characters.
    Logged { level: log::Level, text: String },
    /// It needs so much longer to start.
    Extend(Duration),
    /// It says how it wants to be balanced from now on.
    Report(Report),
    /// It puts a request of its own; the answer goes to [`Wire::answer_route`] under this id.
    /// `to` names the platform that shall have it, whatever the rules say.
    Route { id: Box<RawValue>, to: Option<String>, request: RequestBuf },
    /// It wants a value that it has put; the answer goes to [`Wire::answer_store`].
    StoreGet { id: Box<RawValue>, key: String },
    /// It puts a value, or takes one away (`None`).
    StorePut { id: Box<RawValue>, key: String, value: Option<Box<RawValue>> },
    /// The tools of an MCP server, as it lists them: a JSON array.
    Tools(Box<RawValue>),
}

/// One side of a conversation with one run of a child.
pub(crate) trait Wire: Send {
    /// Writes the first message. `name` is `platform/index`.
    fn greet(&mut self, name: &str, settings: &Settings, out: &mut Vec<u8>);

    /// Writes the first message once more, to a child that has answered it. An earlier one that is not answered is
    /// forgotten. Whether the protocol allows that.
    fn greet_again(&mut self, out: &mut Vec<u8>) -> bool;

    /// Writes a request; returns the id under which [`Wire::cancel`] knows it.
    ///
    /// # Errors
    /// A fault if it cannot be said in this protocol, or would be longer than a line may be; nothing is written then.
    fn ask(&mut self, ticket: Ticket, request: &Request<'_>, out: &mut Vec<u8>) -> Result<u64, Fault>;

    /// Writes that nobody waits for this request any more. Its answer will be passed over.
    fn cancel(&mut self, id: u64, out: &mut Vec<u8>);

    /// Writes a health check; an earlier one that is not answered is forgotten.
    fn probe(&mut self, out: &mut Vec<u8>);

    /// Writes the wish for memory, if the child understands that. Whether it does.
    fn trim(&mut self, out: &mut Vec<u8>) -> bool;

    /// Writes the last message.
    fn shut_down(&mut self, out: &mut Vec<u8>);

    /// Takes one line from its stdout, without the line end; appends what was heard, and to `out` what is to be said to
    /// that at once. Answers are read into the calls of this instance.
    fn take_line(
        &mut self,
        line: &[u8],
        instance: Instance,
        calls: &mut Calls,
        heard: &mut Vec<Heard>,
        out: &mut Vec<u8>,
    );

    /// Writes the answer to [`Heard::Route`].
    fn answer_route(&mut self, id: &RawValue, answer: Result<&demi_platform::Reply, &Fault>, out: &mut Vec<u8>);

    /// Writes the answer to [`Heard::StoreGet`] (the value, or none) or [`Heard::StorePut`] (none).
    fn answer_store(&mut self, id: &RawValue, answer: Result<Option<&RawValue>, &Fault>, out: &mut Vec<u8>);
}

/// A text for a log that a terminal may show, in one line: white space for line ends and tabs, no other control
/// characters, and what is no UTF-8 replaced. Of one that is longer than so many bytes the beginning, and a mark.
pub(crate) fn printable(bytes: &[u8], bytes_max: usize) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(bytes_max)]);
    let shown = text.trim_end().chars().map(|character| match character {
        '\n' | '\r' | '\t' => ' ',
        character if character.is_control() => '\u{fffd}',
        character => character,
    });
    shown.chain((bytes.len() > bytes_max).then_some('…')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_one_line_without_control_characters_and_marked_where_it_was_cut() {
        assert_eq!(printable(b"a\tb\nc\x1b[31m \r\n", 100), "a b c\u{fffd}[31m");
        assert_eq!(printable(b"gr\xfcn", 100), "gr\u{fffd}n");
        assert_eq!(printable(b"12345", 5), "12345");
        assert_eq!(printable(b"123456", 5), "12345…");
    }
}
