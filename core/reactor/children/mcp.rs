//! The Model Context Protocol, spoken as its client with a server on its stdin and stdout.
//!
//! ```text
//!   greet ──► initialize ──answer──► initialized, Started ──► tools/list, page by page ──► Tools
//!                 │                                             ▲
//!                 └──an error that says so──► server/discover ──┘ each request carries the revision then
//! ```
//!
//! Revisions up to 2025-11-25 begin with a handshake, in which the server names the one that it wants to speak: what
//! Demi says is the same in all of them, so any is accepted. Revision 2026-07-28 has no handshake and no `ping`: every
//! request says in its `_meta` who asks and in which revision, and `server/discover` is what a health check asks for.
//! The handshake is tried first, because servers of both kinds understand it and old ones may end at anything else.
//!
//! What of a request becomes which message is written down in `docs/mcp.md`.

mod message;

use std::collections::{BTreeMap, BTreeSet};

use demi_conductor::{Instance, Outcome, Ticket, Verdict};
use demi_platform::{Fault, Reply, Request, Settings};
use serde_json::value::{to_raw_value, RawValue};

use self::message::{
    read_message, Beginning, Caller, Capabilities, Discovered, Failure, Founding, Identity, Initialized, Listed,
    Message, Note, Progress, Tool, ToolPage, ToolResult,
};
use super::wire::{printable, Heard, Wire, LOG_LINE_BYTES_MAX, UNREAD_BYTES_MAX};
use crate::calls::Calls;

/// The newest revision that begins with a handshake: what Demi offers.
const HANDSHAKE_REVISION: &str = "2025-11-25";
/// The revision without a handshake that Demi speaks.
const STATELESS_REVISION: &str = "2026-07-28";

/// The server does not know the method; of JSON-RPC itself, as the next.
const NO_METHOD: i64 = -32_601;
const BAD_PARAMS: i64 = -32_602;
/// There is no such resource, up to revision 2025-11-25.
const NO_RESOURCE: i64 = -32_002;
/// The tool wants its user sent to a page first, in revision 2025-11-25.
const NEEDS_PAGE: i64 = -32_042;
/// The request needs what this client does not offer, since revision 2026-07-28.
const NEEDS_CAPABILITY: i64 = -32_021;
/// The server does not speak the revision of the request, since revision 2026-07-28.
const NO_REVISION: i64 = -32_022;

/// Kinds that are methods of the protocol, passed on with the body as their parameters. Every other kind is a tool.
const METHODS: [&str; 9] = [
    "completion/complete",
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/templates/list",
    "server/discover",
    "tools/call",
    "tools/list",
];

/// Ids without an answer: twice what the configuration allows in one instance (`in_flight_max` is at most 4,096), so
/// that it is the conductor who says when it is full.
const OUTSTANDING_MAX: usize = 8_192;
/// A server with more tools than this is shown with so many: nobody reads more, and a cursor may lead in a circle.
const TOOLS_MAX: usize = 1_024;
const TOOL_PAGES_MAX: usize = 64;
/// Names and descriptions of all tools: they are held for each instance as long as it runs.
const TOOLS_BYTES_MAX: usize = 256 * 1024;
/// Longest description that is kept of a tool; what is longer is written for models, not for people.
const DESCRIPTION_BYTES_MAX: usize = 2 * 1024;
/// A cursor is given back as it came; a longer one ends the list.
const CURSOR_BYTES_MAX: usize = 4 * 1024;
/// Messages of one batch that are heard, as legal in revision 2025-03-26.
const BATCH_MAX: usize = 1_024;
/// A request of the server whose id is longer is not answered.
const ID_BYTES_MAX: usize = 256;
/// Longest message of an error that a caller is told.
const FAULT_BYTES_MAX: usize = 4 * 1024;

/// What is sent where the protocol asks for a reason.
const CANCEL_REASON: &str = "nobody waits for it any more";

/// Who says in which revision it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Era {
    /// Both sides, once, in the handshake.
    Handshake,
    /// The client, in each request.
    Stateless,
}

/// What an id that was sent stands for.
#[derive(Debug)]
enum Pending {
    /// The handshake; whether it is the second attempt, in a revision that the server named.
    Initialize {
        is_second: bool,
    },
    /// In the place of a handshake that failed, and why it did.
    Discover {
        first: String,
    },
    Tools,
    Probe,
    /// A request, and the tool that it calls if it calls one.
    Call {
        ticket: Ticket,
        tool: Option<Box<str>>,
    },
}

/// A list of tools that is still coming.
#[derive(Default)]
struct Listing {
    tools: Vec<Tool>,
    pages: usize,
    bytes: usize,
}

/// The client's side of a conversation with one run of an MCP server.
pub(crate) struct McpWire {
    line_bytes_max: usize,
    era: Era,
    has_settings: bool,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    listing: Option<Listing>,
    /// The tools have changed since their list was asked for last, and it is asked for again with the next health check:
    /// a server that tells of a change whenever it is asked must not keep both sides busy.
    is_stale: bool,
    /// Whether the list was asked for since the last health check.
    has_listed: bool,
    /// The names of all tools; none while that is not known for certain.
    tools: Option<BTreeSet<Box<str>>>,
}

impl McpWire {
    /// Nothing said yet. `line_bytes_max` is the longest line that is written, its end not counted.
    pub(crate) fn new(line_bytes_max: usize) -> McpWire {
        McpWire {
            line_bytes_max,
            era: Era::Handshake,
            has_settings: false,
            pending: BTreeMap::new(),
            next_id: 1,
            listing: None,
            is_stale: false,
            has_listed: false,
            tools: None,
        }
    }

    fn id_for(&mut self, pending: Pending) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, pending);
        id
    }

    /// Who asks, for the `_meta` of a request.
    fn caller(&self, progress_token: Option<u64>) -> Caller {
        Caller { progress_token, revision: (self.era == Era::Stateless).then_some(STATELESS_REVISION) }
    }

    // ---- the beginning ------------------------------------------------------------------------------------------

    fn initialize(&mut self, revision: &str, is_second: bool, out: &mut Vec<u8>) {
        let id = self.id_for(Pending::Initialize { is_second });
        message::write(out, Some(id), "initialize", &Founding::new(revision));
    }

    fn discover(&mut self, first: String, out: &mut Vec<u8>) {
        self.era = Era::Stateless;
        let id = self.id_for(Pending::Discover { first });
        message::write(out, Some(id), "server/discover", &self.caller(None).params());
    }

    fn take_initialized(&mut self, result: &RawValue, heard: &mut Vec<Heard>, out: &mut Vec<u8>) {
        let Some(answer) = message::read_object::<Initialized<'_>>(result) else {
            return heard.push(Heard::Refused("its answer to initialize is not an object that fits".to_owned()));
        };
        let Some(revision) = answer.protocol_version.filter(|revision| !revision.is_empty()) else {
            return heard.push(Heard::Refused("its answer to initialize names no protocolVersion".to_owned()));
        };
        message::write_bare(out, None, "notifications/initialized");
        self.begin(
            &Beginning { revision: &revision, server: answer.server, abilities: answer.capabilities },
            heard,
            out,
        );
    }

    fn take_discovered(&mut self, result: &RawValue, first: &str, heard: &mut Vec<Heard>, out: &mut Vec<u8>) {
        let Some(answer) = message::read_object::<Discovered<'_>>(result) else {
            return heard.push(Heard::Refused(format!("its answer to server/discover does not fit; before: {first}")));
        };
        if !answer.supported_versions.items.iter().any(|version| *version == STATELESS_REVISION) {
            let versions: Vec<&str> = answer.supported_versions.items.iter().map(AsRef::as_ref).collect();
            let versions = printable(versions.join(", ").as_bytes(), FAULT_BYTES_MAX);
            return heard.push(Heard::Refused(format!("it speaks MCP {versions}; {}", spoken())));
        }
        let server = answer.server();
        self.begin(&Beginning { revision: STATELESS_REVISION, server, abilities: answer.capabilities }, heard, out);
    }

    fn begin(&mut self, beginning: &Beginning<'_>, heard: &mut Vec<Heard>, out: &mut Vec<u8>) {
        let server = beginning.server.and_then(|server| serde_json::from_str::<Identity<'_>>(server.get()).ok());
        let Identity { name, version } = server.unwrap_or_default();
        let text =
            printable(format!("speaks MCP {}: {name} {version}", beginning.revision).as_bytes(), FAULT_BYTES_MAX);
        heard.push(Heard::Logged { level: log::Level::Info, text });
        if self.has_settings {
            let text = "MCP has no place for settings, and they are not passed on; use arguments or env".to_owned();
            heard.push(Heard::Logged { level: log::Level::Warn, text });
        }
        heard.push(Heard::Started);
        let abilities = beginning.abilities.and_then(|raw| serde_json::from_str::<Capabilities<'_>>(raw.get()).ok());
        if abilities.is_some_and(|abilities| abilities.tools.is_some()) {
            self.list_tools(out);
        }
    }

    /// A server that does not take the handshake may say which revisions it takes, or not know what a handshake is.
    fn take_refusal(&mut self, failure: &Failure, is_second: bool, heard: &mut Vec<Heard>, out: &mut Vec<u8>) {
        let says = failure.text(FAULT_BYTES_MAX);
        let is_stateless = failure.supported.iter().any(|revision| revision == STATELESS_REVISION)
            || (failure.supported.is_empty() && matches!(failure.code, NO_METHOD | NO_REVISION));
        match failure.supported.iter().max() {
            _ if is_stateless => self.discover(says, out),
            Some(newest) if !is_second => self.initialize(newest, true, out),
            _ => heard.push(Heard::Refused(format!("it refused to be initialised: {says}; {}", spoken()))),
        }
    }

    // ---- tools --------------------------------------------------------------------------------------------------

    /// Asks for the list, now or with the next health check.
    fn list_tools(&mut self, out: &mut Vec<u8>) {
        self.is_stale = self.listing.is_some() || self.has_listed;
        if self.is_stale {
            return;
        }
        self.has_listed = true;
        self.listing = Some(Listing::default());
        self.ask_for_tools(None, out);
    }

    fn ask_for_tools(&mut self, cursor: Option<&str>, out: &mut Vec<u8>) {
        let id = self.id_for(Pending::Tools);
        match (cursor, self.era) {
            (None, Era::Handshake) => message::write_bare(out, Some(id), "tools/list"),
            _ => message::write(out, Some(id), "tools/list", &self.caller(None).page(cursor)),
        }
    }

    fn take_tools(&mut self, result: Option<&RawValue>, heard: &mut Vec<Heard>, out: &mut Vec<u8>) {
        let Some(mut listing) = self.listing.take() else { return };
        let Some(page) = result.and_then(|result| serde_json::from_str::<ToolPage<'_>>(result.get()).ok()) else {
            let text = "its list of tools cannot be read".to_owned();
            heard.push(Heard::Logged { level: log::Level::Warn, text });
            return self.end_listing(None, heard);
        };
        let mut is_whole = !page.tools.has_more;
        for raw in page.tools.items {
            let Ok(listed) = serde_json::from_str::<Listed<'_>>(raw.get()) else { continue };
            let tool = listed.tool(DESCRIPTION_BYTES_MAX);
            let bytes = tool.name.len() + tool.description.len();
            if listing.tools.len() == TOOLS_MAX || listing.bytes + bytes > TOOLS_BYTES_MAX {
                is_whole = false;
                break;
            }
            listing.bytes += bytes;
            listing.tools.push(tool);
        }
        listing.pages += 1;
        match page.next_cursor.filter(|cursor| !cursor.is_empty()) {
            Some(cursor) if is_whole && listing.pages < TOOL_PAGES_MAX && cursor.len() <= CURSOR_BYTES_MAX => {
                self.listing = Some(listing);
                self.ask_for_tools(Some(&cursor), out);
            }
            next => self.end_listing(Some((listing, is_whole && next.is_none())), heard),
        }
    }

    fn end_listing(&mut self, listed: Option<(Listing, bool)>, heard: &mut Vec<Heard>) {
        self.tools = None;
        let Some((listing, is_whole)) = listed else { return };
        if is_whole && !self.is_stale {
            self.tools = Some(listing.tools.iter().map(|tool| tool.name.as_str().into()).collect());
        } else if !is_whole {
            let text = format!("it has more tools than are shown ({} of them)", listing.tools.len());
            heard.push(Heard::Logged { level: log::Level::Warn, text });
        }
        heard.push(Heard::Tools(to_raw_value(&listing.tools).expect("texts always serialise")));
    }

    /// Whether the server has said what tools it has, and this is none of them.
    fn is_no_tool(&self, tool: Option<&str>) -> bool {
        let known = self.tools.as_ref().filter(|_| !self.is_stale);
        known.zip(tool).is_some_and(|(tools, tool)| !tools.contains(tool))
    }

    // ---- what it says -------------------------------------------------------------------------------------------

    fn take_message(
        &mut self,
        message: &Message<'_>,
        instance: Instance,
        calls: &mut Calls,
        heard: &mut Vec<Heard>,
        out: &mut Vec<u8>,
    ) {
        match (message.method.as_deref(), message.id) {
            (Some(method), Some(id)) => self.take_request(method, id, heard, out),
            (Some(method), None) => self.take_notification(method, message.params, heard, out),
            (None, id) => self.take_answer(message, id, instance, calls, heard, out),
        }
    }

    /// Of what a server may ask of its client only `ping` is offered, and the capabilities say so.
    fn take_request(&mut self, method: &str, id: &RawValue, heard: &mut Vec<Heard>, out: &mut Vec<u8>) {
        let method = printable(method.as_bytes(), 128);
        if id.get().len() > ID_BYTES_MAX || out.len() > UNREAD_BYTES_MAX {
            let text = format!("its request {method} is not answered: its id is too long, or it does not read answers");
            return heard.push(Heard::Logged { level: log::Level::Warn, text });
        }
        if method == "ping" {
            return message::write_pong(out, id);
        }
        message::write_error(out, id, NO_METHOD, &format!("this client does not offer {method}"));
        let text = format!("asked for {method}, which this host does not offer");
        heard.push(Heard::Logged { level: log::Level::Debug, text });
    }

    fn take_notification(
        &mut self,
        method: &str,
        params: Option<&RawValue>,
        heard: &mut Vec<Heard>,
        out: &mut Vec<u8>,
    ) {
        let raw = params.map_or("null", RawValue::get);
        match method {
            "notifications/message" => {
                let note: Note<'_> = serde_json::from_str(raw).unwrap_or_default();
                heard.push(Heard::Logged { level: note.level(), text: note.text() });
            }
            "notifications/tools/list_changed" => self.list_tools(out),
            "notifications/progress" => {
                let Ok(progress) = serde_json::from_str::<Progress<'_>>(raw) else { return };
                let id: Option<u64> = progress.token.get().parse().ok();
                // Progress of what has been answered or cancelled may still have been on its way.
                let Some(Pending::Call { ticket, .. }) = id.and_then(|id| self.pending.get(&id)) else { return };
                let note = progress.text();
                let text = format!("request {}: {note}", ticket.number());
                heard.push(Heard::Logged { level: log::Level::Debug, text });
                heard.push(Heard::Progress { ticket: *ticket, note });
            }
            _ => {
                let text = match params {
                    Some(params) => format!("{method} {params}"),
                    None => method.to_owned(),
                };
                let text = printable(text.as_bytes(), LOG_LINE_BYTES_MAX);
                heard.push(Heard::Logged { level: log::Level::Debug, text });
            }
        }
    }

    fn take_answer(
        &mut self,
        message: &Message<'_>,
        id: Option<&RawValue>,
        instance: Instance,
        calls: &mut Calls,
        heard: &mut Vec<Heard>,
        out: &mut Vec<u8>,
    ) {
        let failure = message.error.map(Failure::read);
        let Some(pending) = id.and_then(|id| id.get().parse().ok()).and_then(|id: u64| self.pending.remove(&id)) else {
            let (level, text) = match (id, &failure) {
                // What it could not even read has no id.
                (None, Some(failure)) => (log::Level::Warn, failure.text(LOG_LINE_BYTES_MAX)),
                _ => (log::Level::Debug, "answered what nobody asked, or what was cancelled".to_owned()),
            };
            return heard.push(Heard::Logged { level, text });
        };
        match (pending, message.result, failure) {
            (Pending::Initialize { .. }, Some(result), None) => self.take_initialized(result, heard, out),
            (Pending::Initialize { is_second }, _, Some(failure)) => self.take_refusal(&failure, is_second, heard, out),
            (Pending::Initialize { .. }, None, None) => {
                heard.push(Heard::Refused("it answered initialize with neither result nor error".to_owned()));
            }
            (Pending::Discover { first }, Some(result), None) => self.take_discovered(result, &first, heard, out),
            (Pending::Discover { first }, _, failure) => {
                let says = failure.map_or_else(String::new, |failure| failure.text(FAULT_BYTES_MAX));
                heard.push(Heard::Refused(format!("it refused initialize: {first}, and server/discover: {says}")));
            }
            (Pending::Tools, result, None) => self.take_tools(result, heard, out),
            (Pending::Tools, _, Some(failure)) => {
                self.listing = None;
                let text = format!("does not list its tools: {}", failure.text(FAULT_BYTES_MAX));
                heard.push(Heard::Logged { level: log::Level::Warn, text });
                self.end_listing(None, heard);
            }
            // A server that does not know what it was asked for has read it and answered: it is alive.
            (Pending::Probe, _, Some(failure)) if failure.code != NO_METHOD => {
                heard.push(Heard::Probed(Verdict::Fail, Some(failure.text(FAULT_BYTES_MAX))));
            }
            (Pending::Probe, _, _) => heard.push(Heard::Probed(Verdict::Pass, None)),
            (Pending::Call { ticket, tool }, result, failure) => {
                let mut stray = (Reply::default(), None);
                let attempt = calls.attempt(ticket, instance);
                let (reply, fault) = match attempt {
                    Some(attempt) => (&mut attempt.reply, &mut attempt.fault),
                    None => (&mut stray.0, &mut stray.1),
                };
                let outcome = match (result, failure) {
                    (Some(result), None) => self.take_result(result, tool.as_deref(), reply, fault),
                    (_, Some(failure)) => {
                        let (outcome, why) = self.judge(&failure, tool.as_deref());
                        *fault = Some(why);
                        outcome
                    }
                    (None, None) => broken(fault, "an answer with neither result nor error"),
                };
                heard.push(Heard::Answered { ticket, outcome });
            }
        }
    }

    /// The result goes to the caller as it is; only whose fault it is, if it is one, is read out of it.
    fn take_result(
        &self,
        result: &RawValue,
        tool: Option<&str>,
        reply: &mut Reply,
        fault: &mut Option<Fault>,
    ) -> Outcome {
        let Some(read) = message::read_object::<ToolResult<'_>>(result) else {
            return broken(fault, "a result that is not an object, or whose isError is neither true nor false");
        };
        let (status, outcome) = match read.is_error.unwrap_or(false) {
            false => (200, Outcome::Replied),
            true if read.blames_caller() || self.is_no_tool(tool) => (400, Outcome::Mistaken),
            true => (502, Outcome::Failed),
        };
        reply.status = status;
        reply.content_type.push_str("application/json");
        reply.body.extend_from_slice(result.get().as_bytes());
        outcome
    }

    fn judge(&self, failure: &Failure, tool: Option<&str>) -> (Outcome, Fault) {
        let text = failure.text(FAULT_BYTES_MAX);
        match failure.code {
            BAD_PARAMS | NO_METHOD | NO_RESOURCE | NEEDS_PAGE | NEEDS_CAPABILITY => {
                (Outcome::Mistaken, Fault::mistaken(text))
            }
            _ if self.is_no_tool(tool) => (Outcome::Mistaken, Fault::mistaken(text)),
            _ => (Outcome::Failed, Fault::failed(text)),
        }
    }
}

impl Wire for McpWire {
    fn greet(&mut self, _: &str, settings: &Settings, out: &mut Vec<u8>) {
        self.has_settings = !settings.is_empty();
        self.initialize(HANDSHAKE_REVISION, false, out);
    }

    /// A server is greeted once.
    fn greet_again(&mut self, _: &mut Vec<u8>) -> bool {
        false
    }

    fn ask(&mut self, ticket: Ticket, request: &Request<'_>, out: &mut Vec<u8>) -> Result<u64, Fault> {
        if self.pending.len() >= OUTSTANDING_MAX {
            return Err(Fault::busy(format!("{OUTSTANDING_MAX} requests wait for an answer already")));
        }
        let last = || request.path().rsplit('/').next().unwrap_or_default();
        let name = if request.kind.is_empty() { last() } else { request.kind };
        if name.is_empty() {
            return Err(Fault::mistaken(format!("which tool? Name it as the kind: {EXAMPLE}")));
        }
        let body = if request.body.trim_ascii().is_empty() { b"{}" } else { request.body };
        let unfit = |what: &str| Fault::mistaken(format!("the body is {what}; send arguments by name: {EXAMPLE}"));
        let arguments: &RawValue =
            serde_json::from_slice(body).map_err(|error| unfit(&format!("not JSON ({error})")))?;
        if !arguments.get().starts_with('{') {
            return Err(unfit("JSON and no object"));
        }
        let (id, before) = (self.next_id, out.len());
        let caller = self.caller(Some(id));
        let tool = if METHODS.contains(&name) {
            let params = caller.merged(arguments).map_err(|error| unfit(&format!("not what can be sent ({error})")))?;
            message::write(out, Some(id), name, &params);
            None
        } else {
            message::write(out, Some(id), "tools/call", &caller.call(name, arguments));
            Some(name.into())
        };
        if out.len() - before > self.line_bytes_max {
            out.truncate(before);
            let bytes = self.line_bytes_max;
            return Err(Fault::mistaken(format!(
                "the request is too long for a process: {bytes} bytes on the wire at most"
            )));
        }
        // The arguments stand there as their caller wrote them, perhaps over many lines. Outside of texts, where line
        // ends cannot stand, a blank means the same.
        let end = out.len() - 1;
        for byte in out[before..end].iter_mut().filter(|byte| matches!(**byte, b'\n' | b'\r')) {
            *byte = b' ';
        }
        Ok(self.id_for(Pending::Call { ticket, tool }))
    }

    fn cancel(&mut self, id: u64, out: &mut Vec<u8>) {
        if let Some(Pending::Call { .. }) = self.pending.get(&id) {
            self.pending.remove(&id);
            message::write_cancelled(out, id, CANCEL_REASON);
        }
    }

    fn probe(&mut self, out: &mut Vec<u8>) {
        self.pending.retain(|_, pending| !matches!(pending, Pending::Probe));
        let id = self.id_for(Pending::Probe);
        match self.era {
            Era::Handshake => message::write_bare(out, Some(id), "ping"),
            Era::Stateless => message::write(out, Some(id), "server/discover", &self.caller(None).params()),
        }
        self.has_listed = false;
        if self.is_stale {
            self.list_tools(out);
        }
    }

    /// The protocol has no such wish.
    fn trim(&mut self, _: &mut Vec<u8>) -> bool {
        false
    }

    /// The end of its input is the message.
    fn shut_down(&mut self, _: &mut Vec<u8>) {}

    fn take_line(
        &mut self,
        line: &[u8],
        instance: Instance,
        calls: &mut Calls,
        heard: &mut Vec<Heard>,
        out: &mut Vec<u8>,
    ) {
        let line = line.trim_ascii();
        if line.is_empty() {
            return;
        }
        if let Some(message) = read_message(line) {
            return self.take_message(&message, instance, calls, heard, out);
        }
        let mut is_message = false;
        if let Some(batch) = message::read_batch::<BATCH_MAX>(line) {
            for message in batch.items.iter().filter_map(|raw| read_message(raw.get().as_bytes())) {
                is_message = true;
                self.take_message(&message, instance, calls, heard, out);
            }
            if is_message && batch.has_more {
                let text = format!("sent more than {BATCH_MAX} messages in a batch; the rest is passed over");
                heard.push(Heard::Logged { level: log::Level::Warn, text });
            }
        }
        if !is_message {
            heard.push(Heard::Logged { level: log::Level::Info, text: printable(line, LOG_LINE_BYTES_MAX) });
        }
    }

    /// Never called: an MCP server puts no requests of its own, so none is heard.
    fn answer_route(&mut self, _: &RawValue, _: Result<&Reply, &Fault>, _: &mut Vec<u8>) {}

    /// Never called: an MCP server keeps nothing with Demi.
    fn answer_store(&mut self, _: &RawValue, _: Result<Option<&RawValue>, &Fault>, _: &mut Vec<u8>) {}
}

/// What a caller sends, for faults that say what is amiss.
const EXAMPLE: &str = r#"{"kind":"echo","json":{"message":"hi"}}"#;

fn spoken() -> String {
    format!("Demi speaks MCP {STATELESS_REVISION}, and {HANDSHAKE_REVISION} or whatever older one the server answers")
}

fn broken(fault: &mut Option<Fault>, why: &str) -> Outcome {
    *fault = Some(Fault::failed(why));
    Outcome::Broken
}

#[cfg(test)]
mod real_tests;
#[cfg(test)]
mod tests;
