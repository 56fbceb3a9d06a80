//! The messages of the Model Context Protocol: what is read of them, bounded and lenient, and how they are written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::children::wire::{printable, LOG_LINE_BYTES_MAX};

/// Versions that a server names are read up to so many; five are known.
const REVISIONS_MAX: usize = 32;

// ---- reading ---------------------------------------------------------------------------------------------------

/// Any message: borrowed from its line. Ids are kept raw, because a server may choose texts for its own.
#[derive(Debug, Deserialize)]
pub(super) struct Message<'m> {
    #[serde(borrow)]
    jsonrpc: Cow<'m, str>,
    #[serde(borrow, default)]
    pub(super) id: Option<&'m RawValue>,
    #[serde(borrow, default)]
    pub(super) method: Option<Cow<'m, str>>,
    #[serde(borrow, default)]
    pub(super) params: Option<&'m RawValue>,
    #[serde(borrow, default)]
    pub(super) result: Option<&'m RawValue>,
    #[serde(borrow, default)]
    pub(super) error: Option<&'m RawValue>,
}

/// Reads one line. `None` if it is no JSON-RPC 2.0 message.
pub(super) fn read_message(line: &[u8]) -> Option<Message<'_>> {
    // Most lines that are no message show it at once, and a server may print many.
    if line.first() != Some(&b'{') {
        return None;
    }
    let message: Message<'_> = serde_json::from_slice(line).ok()?;
    let says_something = message.method.is_some() || message.id.is_some() || message.error.is_some();
    (message.jsonrpc == "2.0" && says_something).then_some(message)
}

/// Reads several messages in one line.
pub(super) fn read_batch<const MAX: usize>(line: &[u8]) -> Option<AtMost<&RawValue, MAX>> {
    if line.first() != Some(&b'[') {
        return None;
    }
    serde_json::from_slice(line).ok()
}

/// Reads an object. By itself serde would take an array for one, field by field.
pub(super) fn read_object<'m, T: Deserialize<'m>>(raw: &'m RawValue) -> Option<T> {
    raw.get().starts_with('{').then(|| serde_json::from_str(raw.get()).ok()).flatten()
}

/// The beginning of an array: whoever sends a longer one decides nothing about memory.
#[derive(Debug)]
pub(super) struct AtMost<T, const MAX: usize> {
    pub(super) items: Vec<T>,
    /// There were more.
    pub(super) has_more: bool,
}

impl<T, const MAX: usize> Default for AtMost<T, MAX> {
    fn default() -> Self {
        AtMost { items: Vec::new(), has_more: false }
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for AtMost<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Taker<T, const MAX: usize>(AtMost<T, MAX>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Taker<T, MAX> {
            type Value = AtMost<T, MAX>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(mut self, mut sequence: A) -> Result<Self::Value, A::Error> {
                while self.0.items.len() < MAX {
                    let Some(item) = sequence.next_element()? else { return Ok(self.0) };
                    self.0.items.push(item);
                }
                while sequence.next_element::<IgnoredAny>()?.is_some() {
                    self.0.has_more = true;
                }
                Ok(self.0)
            }
        }

        deserializer.deserialize_seq(Taker(AtMost::default()))
    }
}

/// The answer to `initialize`.
#[derive(Deserialize)]
pub(super) struct Initialized<'m> {
    #[serde(borrow, default, rename = "protocolVersion")]
    pub(super) protocol_version: Option<Cow<'m, str>>,
    #[serde(borrow, default)]
    pub(super) capabilities: Option<&'m RawValue>,
    #[serde(borrow, default, rename = "serverInfo")]
    pub(super) server: Option<&'m RawValue>,
}

/// The answer to `server/discover`.
#[derive(Deserialize)]
pub(super) struct Discovered<'m> {
    #[serde(borrow, rename = "supportedVersions")]
    pub(super) supported_versions: AtMost<Cow<'m, str>, REVISIONS_MAX>,
    #[serde(borrow, default)]
    pub(super) capabilities: Option<&'m RawValue>,
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<&'m RawValue>,
}

impl<'m> Discovered<'m> {
    /// Who answers, if it says so.
    pub(super) fn server(&self) -> Option<&'m RawValue> {
        #[derive(Deserialize)]
        struct Meta<'m> {
            #[serde(borrow, default, rename = "io.modelcontextprotocol/serverInfo")]
            server: Option<&'m RawValue>,
        }
        serde_json::from_str::<Meta<'m>>(self.meta?.get()).ok()?.server
    }
}

/// What is known of a server when it begins.
pub(super) struct Beginning<'m> {
    pub(super) revision: &'m str,
    pub(super) server: Option<&'m RawValue>,
    pub(super) abilities: Option<&'m RawValue>,
}

/// What of a server's capabilities makes a difference.
#[derive(Deserialize)]
pub(super) struct Capabilities<'m> {
    #[serde(borrow, default)]
    pub(super) tools: Option<&'m RawValue>,
}

/// What a server calls itself.
#[derive(Default, Deserialize)]
pub(super) struct Identity<'m> {
    #[serde(borrow, default)]
    pub(super) name: Cow<'m, str>,
    #[serde(borrow, default)]
    pub(super) version: Cow<'m, str>,
}

/// The answer to `tools/list`.
#[derive(Deserialize)]
pub(super) struct ToolPage<'m> {
    #[serde(borrow)]
    pub(super) tools: AtMost<&'m RawValue, { super::TOOLS_MAX }>,
    #[serde(borrow, default, rename = "nextCursor")]
    pub(super) next_cursor: Option<Cow<'m, str>>,
}

/// A tool as a server lists it.
#[derive(Deserialize)]
pub(super) struct Listed<'m> {
    #[serde(borrow)]
    name: Cow<'m, str>,
    #[serde(borrow, default)]
    description: Option<Cow<'m, str>>,
}

impl Listed<'_> {
    /// As Demi keeps it.
    pub(super) fn tool(&self, description_bytes_max: usize) -> Tool {
        let mut description = self.description.as_deref().unwrap_or_default();
        let is_cut = description.len() > description_bytes_max;
        if is_cut {
            description = &description[..description.floor_char_boundary(description_bytes_max)];
        }
        Tool {
            name: self.name.clone().into_owned(),
            description: format!("{description}{}", if is_cut { "…" } else { "" }),
        }
    }
}

/// A tool as Demi shows it.
#[derive(Serialize)]
pub(super) struct Tool {
    pub(super) name: String,
    pub(super) description: String,
}

/// What of a result says whose fault it is.
#[derive(Deserialize)]
pub(super) struct ToolResult<'m> {
    #[serde(default, rename = "isError")]
    pub(super) is_error: Option<bool>,
    #[serde(borrow, default)]
    content: Option<&'m RawValue>,
}

impl ToolResult<'_> {
    /// The TypeScript SDK hands on in this shape what it finds wrong with a call before its tool has seen it.
    pub(super) fn blames_caller(&self) -> bool {
        #[derive(Deserialize)]
        struct Part<'m> {
            #[serde(borrow)]
            text: Cow<'m, str>,
        }
        let content = self.content.map_or("[]", RawValue::get);
        let Ok(parts) = serde_json::from_str::<AtMost<&RawValue, 1>>(content) else { return false };
        let first = parts.items.first().and_then(|part| serde_json::from_str::<Part<'_>>(part.get()).ok());
        let codes = [super::BAD_PARAMS, super::NO_METHOD];
        first.is_some_and(|part| codes.iter().any(|code| part.text.starts_with(&format!("MCP error {code}:"))))
    }
}

/// The error of an answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: i64,
    message: String,
    /// The revisions that it says it speaks, if that is what failed.
    pub(super) supported: Vec<String>,
}

impl Failure {
    /// Reads what can be read: an error of another shape is still an error.
    pub(super) fn read(raw: &RawValue) -> Failure {
        #[derive(Deserialize)]
        struct Error<'m> {
            code: i64,
            #[serde(borrow, default)]
            message: Cow<'m, str>,
            #[serde(borrow, default)]
            data: Option<&'m RawValue>,
        }
        #[derive(Default, Deserialize)]
        struct Data {
            supported: AtMost<String, REVISIONS_MAX>,
        }
        match serde_json::from_str::<Error<'_>>(raw.get()) {
            Ok(error) => {
                let data: Data = error.data.and_then(|data| serde_json::from_str(data.get()).ok()).unwrap_or_default();
                Failure { code: error.code, message: error.message.into_owned(), supported: data.supported.items }
            }
            Err(_) => Failure { code: 0, message: raw.get().to_owned(), supported: Vec::new() },
        }
    }

    /// For people.
    pub(super) fn text(&self, bytes_max: usize) -> String {
        format!("{} ({})", printable(self.message.as_bytes(), bytes_max), self.code)
    }
}

/// The parameters of `notifications/message`.
#[derive(Default, Deserialize)]
pub(super) struct Note<'m> {
    #[serde(borrow, default)]
    level: Cow<'m, str>,
    #[serde(borrow, default)]
    logger: Option<Cow<'m, str>>,
    #[serde(borrow, default)]
    data: Option<&'m RawValue>,
}

impl Note<'_> {
    /// The protocol has the eight levels of syslog.
    pub(super) fn level(&self) -> log::Level {
        match self.level.as_ref() {
            "debug" => log::Level::Debug,
            "warning" => log::Level::Warn,
            "error" | "critical" | "alert" | "emergency" => log::Level::Error,
            _ => log::Level::Info,
        }
    }

    /// A text as it is, anything else as JSON.
    pub(super) fn text(&self) -> String {
        let data = self.data.map_or("", RawValue::get);
        let data = serde_json::from_str::<String>(data).map_or(Cow::Borrowed(data), Cow::Owned);
        let logger = self.logger.as_deref().filter(|logger| !logger.is_empty());
        let text = logger.map_or_else(|| data.to_string(), |logger| format!("{logger}: {data}"));
        printable(text.as_bytes(), LOG_LINE_BYTES_MAX)
    }
}

/// The parameters of `notifications/progress`.
#[derive(Deserialize)]
pub(super) struct Progress<'m> {
    #[serde(borrow, rename = "progressToken")]
    pub(super) token: &'m RawValue,
    #[serde(borrow, default)]
    progress: Option<&'m RawValue>,
    #[serde(borrow, default)]
    total: Option<&'m RawValue>,
    #[serde(borrow, default)]
    message: Option<Cow<'m, str>>,
}

impl Progress<'_> {
    /// For people.
    pub(super) fn text(&self) -> String {
        let progress = self.progress.map_or("?", RawValue::get);
        let total = self.total.map(|total| format!(" of {total}")).unwrap_or_default();
        let message = self.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
        printable(format!("progress {progress}{total}{message}").as_bytes(), LOG_LINE_BYTES_MAX)
    }
}

// ---- writing ---------------------------------------------------------------------------------------------------

#[derive(Serialize)]
struct Outbound<'o, P> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    method: &'o str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'o P>,
}

#[derive(Serialize)]
struct Answer<'o, R> {
    jsonrpc: &'static str,
    id: &'o RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<R>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Complaint<'o>>,
}

#[derive(Serialize)]
struct Complaint<'o> {
    code: i64,
    message: &'o str,
}

#[derive(Serialize)]
struct Cancelled<'o> {
    #[serde(rename = "requestId")]
    id: u64,
    reason: &'o str,
}

#[derive(Serialize)]
struct Nothing {}

/// The parameters of `initialize`.
#[derive(Serialize)]
pub(super) struct Founding<'o> {
    #[serde(rename = "protocolVersion")]
    revision: &'o str,
    capabilities: Nothing,
    #[serde(rename = "clientInfo")]
    client: Client,
}

impl Founding<'_> {
    pub(super) fn new(revision: &str) -> Founding<'_> {
        Founding { revision, capabilities: Nothing {}, client: Client::default() }
    }
}

#[derive(Serialize)]
struct Client {
    name: &'static str,
    version: &'static str,
}

impl Default for Client {
    fn default() -> Self {
        Client { name: "demi", version: env!("CARGO_PKG_VERSION") }
    }
}

/// What goes into the `_meta` of a request.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    /// Under which the server may tell of progress.
    pub(super) progress_token: Option<u64>,
    /// Said in each request if it was not said once for all.
    pub(super) revision: Option<&'static str>,
}

#[derive(Serialize)]
struct Meta<'o> {
    #[serde(rename = "progressToken", skip_serializing_if = "Option::is_none")]
    progress_token: Option<u64>,
    #[serde(flatten)]
    envelope: Option<Envelope>,
    #[serde(flatten)]
    rest: BTreeMap<String, &'o RawValue>,
}

#[derive(Serialize)]
struct Envelope {
    #[serde(rename = "io.modelcontextprotocol/protocolVersion")]
    revision: &'static str,
    #[serde(rename = "io.modelcontextprotocol/clientInfo")]
    client: Client,
    #[serde(rename = "io.modelcontextprotocol/clientCapabilities")]
    capabilities: Nothing,
    /// Without it a server logs nothing in this revision.
    #[serde(rename = "io.modelcontextprotocol/logLevel")]
    log_level: &'static str,
}

#[derive(Serialize)]
pub(super) struct Bare<'o> {
    #[serde(rename = "_meta")]
    meta: Meta<'o>,
}

#[derive(Serialize)]
pub(super) struct Page<'o> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<&'o str>,
    #[serde(rename = "_meta", skip_serializing_if = "Option::is_none")]
    meta: Option<Meta<'o>>,
}

#[derive(Serialize)]
pub(super) struct Call<'o> {
    name: &'o str,
    arguments: &'o RawValue,
    #[serde(rename = "_meta")]
    meta: Meta<'o>,
}

#[derive(Serialize)]
pub(super) struct Merged<'o> {
    #[serde(rename = "_meta")]
    meta: Meta<'o>,
    #[serde(flatten)]
    rest: BTreeMap<String, &'o RawValue>,
}

impl Caller {
    fn meta<'o>(self, mut rest: BTreeMap<String, &'o RawValue>) -> Meta<'o> {
        // What Demi says of itself is not for its callers to say.
        rest.retain(|key, _| key != "progressToken" && !key.starts_with("io.modelcontextprotocol/client"));
        rest.remove("io.modelcontextprotocol/protocolVersion");
        rest.remove("io.modelcontextprotocol/logLevel");
        let envelope = self.revision.map(|revision| Envelope {
            revision,
            client: Client::default(),
            capabilities: Nothing {},
            log_level: "info",
        });
        Meta { progress_token: self.progress_token, envelope, rest }
    }

    /// Parameters that say nothing else.
    pub(super) fn params<'o>(self) -> Bare<'o> {
        Bare { meta: self.meta(BTreeMap::new()) }
    }

    /// The parameters of `tools/list`.
    pub(super) fn page(self, cursor: Option<&str>) -> Page<'_> {
        Page { cursor, meta: self.revision.map(|_| self.meta(BTreeMap::new())) }
    }

    /// The parameters of `tools/call`.
    pub(super) fn call<'o>(self, name: &'o str, arguments: &'o RawValue) -> Call<'o> {
        Call { name, arguments, meta: self.meta(BTreeMap::new()) }
    }

    /// A caller's own parameters, which may bring a `_meta` of their own.
    ///
    /// # Errors
    /// If they are no object, or their `_meta` is none.
    pub(super) fn merged(self, params: &RawValue) -> Result<Merged<'_>, serde_json::Error> {
        let mut rest: BTreeMap<String, &RawValue> = serde_json::from_str(params.get())?;
        let theirs = rest.remove("_meta").map(|meta| serde_json::from_str(meta.get())).transpose()?;
        Ok(Merged { meta: self.meta(theirs.unwrap_or_default()), rest })
    }
}

/// Appends a message and its line end. Writing JSON to memory cannot fail for these types.
fn write_line(out: &mut Vec<u8>, message: &impl Serialize) {
    serde_json::to_writer(&mut *out, message).expect("structs of texts, numbers and JSON always serialise");
    out.push(b'\n');
}

/// Appends a request, or a notification if it has no id.
pub(super) fn write(out: &mut Vec<u8>, id: Option<u64>, method: &str, params: &impl Serialize) {
    write_line(out, &Outbound { jsonrpc: "2.0", id, method, params: Some(params) });
}

/// Appends a request or notification without parameters.
pub(super) fn write_bare(out: &mut Vec<u8>, id: Option<u64>, method: &str) {
    write_line(out, &Outbound::<()> { jsonrpc: "2.0", id, method, params: None });
}

/// Appends that nobody waits for a request.
pub(super) fn write_cancelled(out: &mut Vec<u8>, id: u64, reason: &str) {
    write(out, None, "notifications/cancelled", &Cancelled { id, reason });
}

/// Appends the answer to the server's `ping`.
pub(super) fn write_pong(out: &mut Vec<u8>, id: &RawValue) {
    write_line(out, &Answer { jsonrpc: "2.0", id, result: Some(Nothing {}), error: None });
}

/// Appends an answer that is an error.
pub(super) fn write_error(out: &mut Vec<u8>, id: &RawValue, code: i64, message: &str) {
    write_line(out, &Answer::<()> { jsonrpc: "2.0", id, result: None, error: Some(Complaint { code, message }) });
}
