//! The wire protocol, version 1: JSON-RPC 2.0, one message a line, on stdin and stdout.
//!
//! `docs/plugin-protocol.md` describes it for authors, with every message; a test here reads its examples.
//!
//! | the host says | parameters | answer |
//! |---|---|---|
//! | `initialize`, perhaps again | `{"protocol":1,"name","settings","host"}` | `{"protocol":1,"capabilities":["trim"],"version"}` |
//! | `handle` | `{"from","kind","method","target","content_type","body"}` | `{"status":200,"content_type","body"}` |
//! | `health` | – | `{"status":"up"}`, `"down"`, `"busy"` or `"unready"`, with `"error"` |
//! | `cancel` (no answer) | `{"id"}` of a `handle` that nobody waits for any more | |
//! | `trim` (no answer) | –; only to those that declare it | |
//! | `shutdown` (no answer) | – | |
//!
//! | the plugin says | parameters | answer |
//! |---|---|---|
//! | `route` | as of `handle`, and `"to"` | as to `handle` |
//! | `store.get` | `{"key"}` | `{"value"}`, null if there is none |
//! | `store.put` | `{"key","value"}`; null takes it away | `{}` |
//! | `log` (no answer) | `{"level","message"}` | |
//! | `extend` (no answer) | `{"ms"}` | |
//! | `report` (no answer) | `{"weight","drain"}`; what is left out is as if nothing had been said | |
//!
//! A body that is not UTF-8, or that JSON's escapes would make more than twice as long, travels as `body_base64`
//! instead of `body`, in either direction: so a line is never much longer than twice its body, and the host refuses
//! one that is longer than [`line_bytes_max`]. The host and the header lines of an HTTP request do not travel: only a
//! platform in Demi's own process sees them. Fields that are empty may be left out, and fields that are not known are
//! passed over.

use std::borrow::Cow;
use std::time::Duration;

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Fault, FaultKind, Health, Reply, Request, Settings, Status};

/// The version that this host speaks.
pub const PROTOCOL: u32 = 1;

/// Error code: the platform tried and failed.
pub const FAILED: i64 = -32_000;
/// Error code: the request cannot be answered as it is.
pub const MISTAKEN: i64 = -32_001;
/// Error code: the platform is full and did nothing.
pub const BUSY: i64 = -32_002;
/// Error code: the plugin may not ask for this; its manifest says what it may.
pub const NOT_PERMITTED: i64 = -32_003;
/// Error code of JSON-RPC itself: this is no request (its id is none, too long, or in use).
pub const BAD_REQUEST: i64 = -32_600;
/// Error code of JSON-RPC itself: there is no such method.
pub const NO_METHOD: i64 = -32_601;
/// Error code of JSON-RPC itself: the parameters do not fit.
pub const BAD_PARAMS: i64 = -32_602;

/// The highest weight that a plugin may report.
pub const WEIGHT_MAX: u32 = 1_000;

/// Longest id of a plugin's own request, in bytes as it is written.
pub const ID_BYTES_MAX: usize = 128;

/// Longest line that the host writes or reads if a body has at most `body_bytes_max` bytes, its line end not counted:
/// twice the body, which is all that [`write_handle`] and [`write_reply`] make of one, and 256 KiB for what is around it
/// (the head of an HTTP request has at most 64 KiB); at least 2 MiB, so that answers may be longer than questions.
pub const fn line_bytes_max(body_bytes_max: usize) -> usize {
    let bytes = 2 * body_bytes_max + 256 * 1024;
    if bytes > 2 * 1024 * 1024 {
        bytes
    } else {
        2 * 1024 * 1024
    }
}

/// Any message, of either side: borrowed from its line.
#[derive(Debug, Deserialize)]
pub struct Message<'m> {
    /// Must be `"2.0"`.
    #[serde(borrow)]
    pub jsonrpc: Cow<'m, str>,
    /// As it is written. Absent in a notification; null counts as absent.
    #[serde(borrow, default)]
    pub id: Option<&'m RawValue>,
    /// Present in a call or notification.
    #[serde(borrow, default)]
    pub method: Option<Cow<'m, str>>,
    /// Its parameters.
    #[serde(borrow, default)]
    pub params: Option<&'m RawValue>,
    /// Present in an answer.
    #[serde(borrow, default)]
    pub result: Option<&'m RawValue>,
    /// Present in an answer that is an error.
    #[serde(default)]
    pub error: Option<WireError>,
}

impl Message<'_> {
    /// Its id, if that is a number of the kind that the host gives out.
    pub fn number(&self) -> Option<u64> {
        self.id.and_then(|id| id.get().parse().ok())
    }
}

/// Whether something can be the id of a request: a number or a text of at most [`ID_BYTES_MAX`] bytes.
pub fn is_id(id: &RawValue) -> bool {
    let text = id.get();
    text.len() <= ID_BYTES_MAX && text.starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit())
}

/// The error of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(from = "AnyError")]
pub struct WireError {
    /// One of the codes of this module.
    pub code: i64,
    /// A sentence.
    pub message: String,
    /// More, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<ErrorData>,
}

/// What an error says besides.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ErrorData {
    /// It is of no use to ask again sooner, milliseconds from now on.
    pub retry_after_ms: u64,
}

/// An error as plugins write it. One without a code, or that is not even an object, still says that something failed.
#[derive(Deserialize)]
#[serde(untagged)]
enum AnyError {
    Proper {
        code: i64,
        #[serde(default)]
        message: String,
        /// Anything; only what is known of it is heard.
        #[serde(default)]
        data: serde_json::Value,
    },
    Other(serde_json::Value),
}

impl From<AnyError> for WireError {
    fn from(error: AnyError) -> WireError {
        match error {
            AnyError::Proper { code, message, data } => {
                let retry_after_ms = data.get("retry_after_ms").and_then(serde_json::Value::as_u64);
                WireError { code, message, data: retry_after_ms.map(|retry_after_ms| ErrorData { retry_after_ms }) }
            }
            AnyError::Other(serde_json::Value::String(message)) => WireError { code: FAILED, message, data: None },
            AnyError::Other(value) => WireError { code: FAILED, message: value.to_string(), data: None },
        }
    }
}

#[derive(Serialize)]
struct Call<'c, P> {
    jsonrpc: &'c str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    method: &'c str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<P>,
}

#[derive(Serialize)]
struct Response<I, R> {
    jsonrpc: &'static str,
    id: I,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<R>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<WireError>,
}

/// Parameters of `initialize`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Initialize {
    /// The version that the host speaks.
    pub protocol: u32,
    /// Which instance it is: `platform/index`, the platform's name in the configuration and a number from 0.
    pub name: String,
    /// Its settings.
    #[serde(default)]
    pub settings: Settings,
    /// What the host offers.
    #[serde(default)]
    pub host: Offer,
}

/// What the host offers to a plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Offer {
    /// What it may ask for.
    pub permissions: Permitted,
    /// Longest line in either direction, its line end not counted.
    pub line_bytes_max: u64,
}

/// What a plugin may ask of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Permitted {
    /// `route`.
    pub route: bool,
    /// `store.get` and `store.put`.
    pub store: bool,
}

/// The answer to `initialize`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Initialized {
    /// The version of the protocol that the plugin speaks.
    pub protocol: u32,
    /// What it understands beyond what everyone must: `trim`. Others are passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Its own version, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// How much a line of a log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Someone should be woken.
    Error,
    /// Someone should look tomorrow.
    #[serde(alias = "warning")]
    Warn,
    /// Something changed for a user.
    Info,
    /// A branch was taken.
    Debug,
    /// Everything.
    Trace,
}

/// A line for the log of a plugin.
#[derive(Debug, Serialize, Deserialize)]
pub struct Log {
    /// How much it matters.
    #[serde(default = "info")]
    pub level: Level,
    /// What it says.
    pub message: String,
}

/// The answer to `store.get`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stored<'r> {
    /// JSON as it was put; none if nothing was.
    #[serde(borrow, default)]
    pub value: Option<&'r RawValue>,
}

/// A text that is borrowed if it can be: serde copies what stands in an `Option<Cow>`.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Text<'t>(#[serde(borrow)] Cow<'t, str>);

#[derive(Serialize, Deserialize)]
struct WireRequest<'r> {
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    from: Cow<'r, str>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    kind: Cow<'r, str>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    method: Cow<'r, str>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    target: Cow<'r, str>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    content_type: Cow<'r, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    body: Option<Text<'r>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    body_base64: Option<Text<'r>>,
    /// Of a `route`: which platform shall have it, whatever the rules say.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    to: Option<Text<'r>>,
}

#[derive(Serialize, Deserialize)]
struct WireReply<'r> {
    #[serde(default = "ok")]
    status: u16,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    content_type: Cow<'r, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    body: Option<Text<'r>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    body_base64: Option<Text<'r>>,
}

#[derive(Serialize, Deserialize)]
struct WireHealth {
    status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Cancel {
    id: u64,
}

#[derive(Serialize, Deserialize)]
struct StoreGet<'r> {
    #[serde(borrow)]
    key: Cow<'r, str>,
}

#[derive(Serialize, Deserialize)]
struct StorePut<'r> {
    #[serde(borrow)]
    key: Cow<'r, str>,
    /// Must be there: a value that was forgotten takes nothing away.
    #[serde(borrow)]
    value: &'r RawValue,
}

#[derive(Serialize, Deserialize)]
struct Extend {
    ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Report {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    drain: bool,
}

/// The answer to what has nothing to tell but that it was done.
#[derive(Serialize)]
struct Done {}

fn ok() -> u16 {
    200
}

fn info() -> Level {
    Level::Info
}

/// Appends a message and its line end. Writing JSON to memory cannot fail for these types.
fn write_line(out: &mut Vec<u8>, message: &impl Serialize) {
    serde_json::to_writer(&mut *out, message).expect("plain structs of text and numbers always serialise");
    out.push(b'\n');
}

fn write_call<P: Serialize>(out: &mut Vec<u8>, id: Option<u64>, method: &str, params: Option<P>) {
    write_line(out, &Call { jsonrpc: "2.0", id, method, params });
}

fn write_result<R: Serialize>(out: &mut Vec<u8>, id: impl Serialize, result: R) {
    write_line(out, &Response { jsonrpc: "2.0", id, result: Some(result), error: None });
}

/// Appends the host's `initialize`.
pub fn write_initialize(out: &mut Vec<u8>, id: u64, name: &str, settings: &Settings, host: Offer) {
    let params = Initialize { protocol: PROTOCOL, name: name.to_owned(), settings: settings.clone(), host };
    write_call(out, Some(id), "initialize", Some(params));
}

/// Appends the host's `handle`.
pub fn write_handle(out: &mut Vec<u8>, id: u64, request: &Request<'_>) {
    write_call(out, Some(id), "handle", Some(WireRequest::new(request, None)));
}

/// Appends the host's `health`.
pub fn write_health(out: &mut Vec<u8>, id: u64) {
    write_call::<()>(out, Some(id), "health", None);
}

/// Appends the host's `cancel` of the `handle` with this id.
pub fn write_cancel(out: &mut Vec<u8>, id: u64) {
    write_call(out, None, "cancel", Some(Cancel { id }));
}

/// Appends the host's `trim`.
pub fn write_trim(out: &mut Vec<u8>) {
    write_call::<()>(out, None, "trim", None);
}

/// Appends the host's `shutdown`.
pub fn write_shutdown(out: &mut Vec<u8>) {
    write_call::<()>(out, None, "shutdown", None);
}

/// Appends the plugin's answer to `initialize`.
pub fn write_initialized(out: &mut Vec<u8>, id: impl Serialize, capabilities: &[&str]) {
    let capabilities = capabilities.iter().map(|&capability| capability.to_owned()).collect();
    write_result(out, id, Initialized { protocol: PROTOCOL, capabilities, version: None });
}

/// Appends the answer to `handle` or `route`. The id is a number, or as it was written.
pub fn write_reply(out: &mut Vec<u8>, id: impl Serialize, reply: &Reply) {
    let (body, body_base64) = wire_body(&reply.body);
    let content_type = reply.content_type.as_str().into();
    write_result(out, id, WireReply { status: reply.status, content_type, body, body_base64 });
}

/// Appends the plugin's answer to `health`.
pub fn write_health_result(out: &mut Vec<u8>, id: impl Serialize, health: &Health) {
    write_result(out, id, WireHealth { status: health.status, error: health.error.clone() });
}

/// Appends the plugin's `route`. `request.from` does not travel: the host knows whom it hears.
pub fn write_route(out: &mut Vec<u8>, id: u64, request: &Request<'_>, to: Option<&str>) {
    let request = Request { from: "", ..*request };
    write_call(out, Some(id), "route", Some(WireRequest::new(&request, to)));
}

/// Appends the plugin's `store.get`.
pub fn write_store_get(out: &mut Vec<u8>, id: u64, key: &str) {
    write_call(out, Some(id), "store.get", Some(StoreGet { key: key.into() }));
}

/// Appends the plugin's `store.put`; null takes away what is there.
pub fn write_store_put(out: &mut Vec<u8>, id: u64, key: &str, value: &RawValue) {
    write_call(out, Some(id), "store.put", Some(StorePut { key: key.into(), value }));
}

/// Appends the host's answer to `store.get`.
pub fn write_stored(out: &mut Vec<u8>, id: impl Serialize, value: Option<&RawValue>) {
    write_result(out, id, Stored { value });
}

/// Appends an answer that says only that it was done.
pub fn write_done(out: &mut Vec<u8>, id: impl Serialize) {
    write_result(out, id, Done {});
}

/// Appends the plugin's `log`.
pub fn write_log(out: &mut Vec<u8>, level: Level, message: &str) {
    write_call(out, None, "log", Some(Log { level, message: message.to_owned() }));
}

/// Appends the plugin's `extend`.
pub fn write_extend(out: &mut Vec<u8>, ms: u64) {
    write_call(out, None, "extend", Some(Extend { ms }));
}

/// Appends the plugin's `report`. A weight that is outside 1 to [`WEIGHT_MAX`] is passed over by the host.
pub fn write_report(out: &mut Vec<u8>, weight: Option<u32>, drain: bool) {
    write_call(out, None, "report", Some(Report { weight, drain }));
}

/// Appends an answer that is an error. The id is a number, as it was written, or none if that could not be read.
pub fn write_error(out: &mut Vec<u8>, id: impl Serialize, code: i64, message: &str) {
    write_wire_error(out, id, WireError { code, message: message.to_owned(), data: None });
}

fn write_wire_error(out: &mut Vec<u8>, id: impl Serialize, error: WireError) {
    write_line(out, &Response::<_, ()> { jsonrpc: "2.0", id, result: None, error: Some(error) });
}

/// Appends the answer to a `handle` or `route` that failed.
pub fn write_fault(out: &mut Vec<u8>, id: impl Serialize, fault: &Fault) {
    let code = match fault.kind {
        FaultKind::Mistaken => MISTAKEN,
        FaultKind::Failed => FAILED,
        FaultKind::Busy => BUSY,
    };
    let data = fault.retry_after.map(|wait| ErrorData {
        // Half a millisecond is no leave to ask at once.
        retry_after_ms: u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX),
    });
    write_wire_error(out, id, WireError { code, message: fault.message.clone(), data });
}

impl<'r> WireRequest<'r> {
    fn new(request: &Request<'r>, to: Option<&'r str>) -> WireRequest<'r> {
        let (body, body_base64) = wire_body(request.body);
        WireRequest {
            from: request.from.into(),
            kind: request.kind.into(),
            method: request.method.into(),
            target: request.target.into(),
            content_type: request.content_type.into(),
            body,
            body_base64,
            to: to.map(|to| Text(to.into())),
        }
    }
}

fn wire_body(body: &[u8]) -> (Option<Text<'_>>, Option<Text<'_>>) {
    match std::str::from_utf8(body) {
        Ok("") => (None, None),
        Ok(text) if escaped_bytes(body) <= 2 * body.len() => (Some(Text(text.into())), None),
        _ => (None, Some(Text(STANDARD.encode(body).into()))),
    }
}

/// How long a text is as serde_json writes it: a few control characters have short escapes, the others take six bytes.
fn escaped_bytes(text: &[u8]) -> usize {
    let length = |byte: &u8| match byte {
        b'"' | b'\\' | 8 | b'\t' | b'\n' | 12 | b'\r' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.iter().map(length).sum()
}

fn read_body(body: Option<Text<'_>>, base64: Option<Text<'_>>, out: &mut Vec<u8>) -> Result<(), String> {
    match (body, base64) {
        (Some(_), Some(_)) => Err("body and body_base64 exclude each other".to_owned()),
        (Some(text), None) => {
            out.extend_from_slice(text.0.as_bytes());
            Ok(())
        }
        (None, Some(base64)) => {
            STANDARD.decode_vec(base64.0.as_bytes(), out).map_err(|error| format!("body_base64 is not base64: {error}"))
        }
        (None, None) => Ok(()),
    }
}

/// Reads one line. `None` if it is no JSON-RPC 2.0 message, and therefore a log line.
pub fn read_message(line: &[u8]) -> Option<Message<'_>> {
    // Most lines that are no message show it at once, and a plugin may print many.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let message: Message<'_> = serde_json::from_slice(line).ok()?;
    (message.jsonrpc == "2.0").then_some(message)
}

/// Reads the parameters of `initialize`.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_initialize(params: Option<&RawValue>) -> Result<Initialize, String> {
    read(params)
}

/// Reads the answer to `initialize`.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_initialized(result: &RawValue) -> Result<Initialized, String> {
    read(Some(result))
}

/// Reads the parameters of `handle` and fills `buffer` with the request.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_handle(params: Option<&RawValue>, buffer: &mut crate::RequestBuf) -> Result<(), String> {
    let wire: WireRequest<'_> = read(params)?;
    fill(buffer, &wire.from, &wire);
    read_body(wire.body, wire.body_base64, buffer.body_mut())
}

/// Reads the parameters of `route` and fills `buffer` with the request, which comes from the platform `from`. Returns
/// which platform shall have it, if it says so.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_route(
    params: Option<&RawValue>,
    from: &str,
    buffer: &mut crate::RequestBuf,
) -> Result<Option<String>, String> {
    let wire: WireRequest<'_> = read(params)?;
    fill(buffer, from, &wire);
    read_body(wire.body, wire.body_base64, buffer.body_mut())?;
    Ok(wire.to.map(|to| to.0.into_owned()))
}

/// Everything but the body, whose buffer is filled last.
fn fill(buffer: &mut crate::RequestBuf, from: &str, wire: &WireRequest<'_>) {
    buffer.fill(&Request {
        from,
        kind: &wire.kind,
        method: &wire.method,
        target: &wire.target,
        content_type: &wire.content_type,
        ..Request::default()
    });
}

/// Reads the answer to `handle` into `reply`, which must be empty.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_reply(result: &RawValue, reply: &mut Reply) -> Result<(), String> {
    let wire: WireReply<'_> = read(Some(result))?;
    if !(200..=599).contains(&wire.status) {
        return Err(format!("status {} is outside 200 to 599", wire.status));
    }
    reply.status = wire.status;
    reply.content_type.push_str(&wire.content_type);
    read_body(wire.body, wire.body_base64, &mut reply.body)
}

/// Reads the answer to `health`.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_health(result: &RawValue) -> Result<Health, String> {
    let wire: WireHealth = read(Some(result))?;
    Ok(Health { status: wire.status, error: wire.error })
}

/// Reads the parameters of `cancel`: the id of the `handle` that nobody waits for.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_cancel(params: Option<&RawValue>) -> Result<u64, String> {
    read::<Cancel>(params).map(|cancel| cancel.id)
}

/// Reads the parameters of `store.get`: the key.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_store_get(params: Option<&RawValue>) -> Result<String, String> {
    read::<StoreGet<'_>>(params).map(|get| get.key.into_owned())
}

/// Reads the parameters of `store.put`: the key and the value, none if it shall be taken away.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_store_put(params: Option<&RawValue>) -> Result<(String, Option<Box<RawValue>>), String> {
    let put: StorePut<'_> = read(params)?;
    let value = (put.value.get() != "null").then(|| put.value.to_owned());
    Ok((put.key.into_owned(), value))
}

/// Reads the answer to `store.get`.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_stored(result: &RawValue) -> Result<Option<&RawValue>, String> {
    read::<Stored<'_>>(Some(result)).map(|stored| stored.value)
}

/// Reads the parameters of `log`.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_log(params: Option<&RawValue>) -> Result<Log, String> {
    read(params)
}

/// Reads the parameters of `extend`: milliseconds.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_extend(params: Option<&RawValue>) -> Result<u64, String> {
    read::<Extend>(params).map(|extend| extend.ms)
}

/// Reads the parameters of `report`: the weight, if it is told, and whether the plugin drains.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn read_report(params: Option<&RawValue>) -> Result<(Option<u32>, bool), String> {
    let Report { weight, drain } = read(params)?;
    match weight {
        Some(weight) if !(1..=WEIGHT_MAX).contains(&weight) => {
            Err(format!("weight {weight} is outside 1 to {WEIGHT_MAX}; who wants no requests says \"drain\": true"))
        }
        _ => Ok((weight, drain)),
    }
}

fn read<'r, T: Deserialize<'r>>(value: Option<&'r RawValue>) -> Result<T, String> {
    let text = value.map_or("null", RawValue::get);
    // A list would be read as the fields in their order.
    if text.starts_with('[') {
        return Err("this must be an object and is a list".to_owned());
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Fault {
        let kind = match error.code {
            MISTAKEN | NOT_PERMITTED | BAD_PARAMS => FaultKind::Mistaken,
            BUSY => FaultKind::Busy,
            _ => FaultKind::Failed,
        };
        let retry_after = error.data.map(|data| Duration::from_millis(data.retry_after_ms));
        Fault { kind, message: error.message, retry_after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestBuf;

    fn message(line: &[u8]) -> Message<'_> {
        assert_eq!(line.last(), Some(&b'\n'), "a message is a line");
        assert!(!line[..line.len() - 1].contains(&b'\n'), "a message is one line");
        read_message(line).expect("it is a message")
    }

    #[test]
    fn an_error_says_when_to_ask_again_and_what_else_it_says_is_passed_over() {
        let mut out = Vec::new();
        write_fault(&mut out, 1, &Fault::busy("full").after(Duration::from_micros(1500)));
        let fault = Fault::from(message(&out).error.expect("it is an error"));
        assert_eq!(fault, Fault::busy("full").after(Duration::from_millis(2)));
        for data in ["", r#","data":null"#, r#","data":"soon""#, r#","data":{"retry_after_ms":-1,"x":[]}"#] {
            let line =
                format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{{\"code\":-32002,\"message\":\"full\"{data}}}}}\n");
            let fault = Fault::from(message(line.as_bytes()).error.expect("it is an error"));
            assert_eq!(fault, Fault::busy("full"), "{data}");
        }
    }

    #[test]
    fn a_request_crosses_the_wire_whatever_its_body() {
        for body in [&b""[..], b"hello", b"line\nline", "grüße".as_bytes(), &[0, 159, 255]] {
            let request =
                Request { from: "discord", kind: "message", method: "POST", target: "/a", body, ..Request::default() };
            let mut line = Vec::new();
            write_handle(&mut line, 7, &request);
            let message = message(&line);
            assert_eq!((message.number(), message.method.as_deref()), (Some(7), Some("handle")));
            let mut buffer = RequestBuf::default();
            read_handle(message.params, &mut buffer).expect("what was written can be read");
            assert_eq!(buffer.request(), request);
        }
    }

    #[test]
    fn a_reply_crosses_the_wire_whatever_its_body() {
        for body in [vec![], b"hello".to_vec(), vec![255, 0, 1]] {
            let reply = Reply { status: 201, content_type: "text/plain".to_owned(), body };
            let mut line = Vec::new();
            write_reply(&mut line, 8, &reply);
            let mut read = Reply::default();
            read_reply(message(&line).result.expect("it is an answer"), &mut read).expect("it can be read");
            assert_eq!(read, reply);
        }
    }

    #[test]
    fn a_line_is_at_most_twice_as_long_as_its_body_whatever_is_in_it() {
        let kinds =
            [&[0][..], b"\x1f", b"\x7f", b"\"", b"\\", b"\n", b"\x08", b"x", "\u{fc}".as_bytes(), &[255], b"\0aaaaa"];
        for kind in kinds {
            let body = kind.repeat(10_000);
            let (mut question, mut answer) = (Vec::new(), Vec::new());
            write_handle(&mut question, 1, &Request { body: &body, ..Request::default() });
            write_reply(&mut answer, 1, &Reply { body: body.clone(), ..Reply::default() });
            for line in [&question, &answer] {
                assert!(line.len() <= 2 * body.len() + 128, "{kind:?}: {} bytes", line.len());
            }
            let (mut buffer, mut reply) = (RequestBuf::default(), Reply::default());
            read_handle(message(&question).params, &mut buffer).expect("what was written can be read");
            read_reply(message(&answer).result.expect("it is an answer"), &mut reply).expect("it can be read");
            assert!(buffer.request().body == body && reply.body == body, "{kind:?}");
        }
    }

    #[test]
    fn an_escaped_text_is_as_long_as_it_was_counted() {
        for byte in 0..0x80 {
            let text = String::from_utf8(vec![byte]).expect("it is ASCII");
            let json = serde_json::to_string(&text).expect("a text serialises");
            assert_eq!(escaped_bytes(text.as_bytes()) + 2, json.len(), "{json}");
        }
    }

    #[test]
    fn a_json_body_stays_legible_on_the_wire() {
        let mut line = Vec::new();
        write_handle(&mut line, 1, &Request { body: br#"{"a":"b","c":["\n"]}"#, ..Request::default() });
        assert!(String::from_utf8_lossy(&line).contains(r#""body":""#));
    }

    #[test]
    fn a_fault_keeps_its_kind() {
        for fault in [Fault::mistaken("a"), Fault::failed("b"), Fault::busy("c")] {
            let mut line = Vec::new();
            write_fault(&mut line, 9, &fault);
            assert_eq!(Fault::from(message(&line).error.expect("it is an error")), fault);
        }
    }

    #[test]
    fn what_is_no_message_is_a_log_line() {
        for line in [&b"hello"[..], b"{}", b"[1]", b"{\"jsonrpc\":\"1.0\",\"id\":1}", b"\xff\xfe", b""] {
            assert!(read_message(line).is_none(), "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_status_out_of_range_is_refused() {
        let result: &RawValue = serde_json::from_str("{\"status\":99}").expect("it is JSON");
        assert!(read_reply(result, &mut Reply::default()).is_err());
    }

    #[test]
    fn the_plugins_own_requests_and_notices_cross_the_wire() {
        let mut line = Vec::new();
        write_route(&mut line, 1, &Request { from: "x", kind: "k", body: b"hi", ..Request::default() }, Some("echo"));
        let mut buffer = RequestBuf::default();
        let to = read_route(message(&line).params, "weather", &mut buffer).expect("what was written can be read");
        let request = buffer.request();
        assert_eq!(
            (to.as_deref(), request.from, request.kind, request.body),
            (Some("echo"), "weather", "k", &b"hi"[..])
        );

        line.clear();
        let value: &RawValue = serde_json::from_str("{\"a\": [1]}").expect("it is JSON");
        write_store_put(&mut line, 2, "key", value);
        let (key, put) = read_store_put(message(&line).params).expect("what was written can be read");
        assert_eq!((key.as_str(), put.as_deref().map(RawValue::get)), ("key", Some(value.get())));

        line.clear();
        write_log(&mut line, Level::Warn, "two\nlines");
        let log = read_log(message(&line).params).expect("what was written can be read");
        assert_eq!((log.level, log.message.as_str()), (Level::Warn, "two\nlines"));

        line.clear();
        write_extend(&mut line, 250);
        assert_eq!(read_extend(message(&line).params), Ok(250));

        for report in [(None, false), (Some(1), false), (Some(WEIGHT_MAX), true), (None, true)] {
            line.clear();
            write_report(&mut line, report.0, report.1);
            assert_eq!(read_report(message(&line).params), Ok(report));
        }
        for (weight, drain) in [(Some(0), false), (Some(WEIGHT_MAX + 1), true)] {
            line.clear();
            write_report(&mut line, weight, drain);
            assert!(read_report(message(&line).params).is_err_and(|why| why.contains("outside 1 to 1000")));
        }
    }

    #[test]
    fn an_error_says_something_however_it_is_written() {
        let error = |text: &str| {
            let line = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{text}}}");
            read_message(line.as_bytes()).expect("it is a message").error.expect("it is an error")
        };
        assert_eq!((error(r#"{"code":5}"#).code, error(r#"{"code":5}"#).message.as_str()), (5, ""));
        assert_eq!((error("\"no\"").code, error("\"no\"").message.as_str()), (FAILED, "no"));
        assert_eq!(error(r#"{"why":1}"#).message, r#"{"why":1}"#);
    }

    #[test]
    fn every_example_of_the_protocols_description_can_be_read() {
        let text = include_str!("../../docs/plugin-protocol.md");
        let mut met = std::collections::BTreeSet::new();
        for fence in text.split("```json\n").skip(1) {
            let fence = fence.split("```").next().expect("a text has a beginning");
            let mut asked: Vec<(String, String)> = Vec::new();
            for line in fence.lines() {
                let message = read_message(line.as_bytes()).unwrap_or_else(|| panic!("{line}"));
                let read = match message.method.as_deref() {
                    Some(method) => {
                        let id = message.id.map_or("", RawValue::get).to_owned();
                        asked.push((id, method.to_owned()));
                        met.insert(method.to_owned());
                        read_example(method, &message)
                    }
                    None => {
                        let id = message.id.expect("an answer has an id").get();
                        let method = &asked.iter().find(|(asked, _)| asked == id).expect("it was asked before").1;
                        match (message.result, &message.error) {
                            (Some(result), None) => read_example_answer(method, result),
                            (None, Some(_)) => Ok(()),
                            _ => Err("it has both or neither".to_owned()),
                        }
                    }
                };
                assert_eq!(read, Ok(()), "{line}");
            }
        }
        let methods = [
            "cancel",
            "extend",
            "handle",
            "health",
            "initialize",
            "log",
            "report",
            "route",
            "shutdown",
            "store.get",
            "store.put",
            "trim",
        ];
        assert!(met.iter().map(String::as_str).eq(methods), "{met:?}");
    }

    fn read_example(method: &str, message: &Message<'_>) -> Result<(), String> {
        let has_answer = !["cancel", "trim", "shutdown", "log", "extend", "report"].contains(&method);
        assert_eq!(message.id.is_some(), has_answer, "{method}");
        assert!(message.id.is_none_or(is_id), "{method}");
        let params = message.params;
        match method {
            "initialize" => read_initialize(params).map(drop),
            "handle" => read_handle(params, &mut RequestBuf::default()),
            "cancel" => read_cancel(params).map(drop),
            "route" => read_route(params, "weather", &mut RequestBuf::default()).map(drop),
            "store.get" => read_store_get(params).map(drop),
            "store.put" => read_store_put(params).map(drop),
            "log" => read_log(params).map(drop),
            "extend" => read_extend(params).map(drop),
            "report" => read_report(params).map(drop),
            "health" | "trim" | "shutdown" if params.is_none() => Ok(()),
            _ => Err(format!("{method} is not told of in the codec")),
        }
    }

    fn read_example_answer(method: &str, result: &RawValue) -> Result<(), String> {
        match method {
            "initialize" => read_initialized(result).map(drop),
            "handle" | "route" => read_reply(result, &mut Reply::default()),
            "health" => read_health(result).map(drop),
            "store.get" => read_stored(result).map(drop),
            "store.put" if result.get() == "{}" => Ok(()),
            _ => Err(format!("{method} has no answer")),
        }
    }
}
