//! The wire protocol, version 1: JSON-RPC 2.0, one message a line, on stdin and stdout.
//!
//! | the host calls | parameters | answer |
//! |---|---|---|
//! | `initialize` | `{"protocol":1,"name":"…","settings":{…}}` | `{"protocol":1}` |
//! | `handle` | `{"from","kind","method","target","content_type","body"}` | `{"status":200,"content_type":"…","body":"…"}` |
//! | `health` | – | `{"status":"up"}`, `"down"` or `"busy"`, with `"error"` |
//! | `cancel` (no answer) | `{"id":…}` of a `handle` that nobody waits for any more | |
//! | `shutdown` (no answer) | – | |
//!
//! After `shutdown` the host closes stdin; a second later, or after half of `stop_grace_ms` if that is shorter, it sends
//! TERM, and after `stop_grace_ms` KILL.
//!
//! A body that is not UTF-8, or that JSON's escapes would make more than twice as long, travels as `body_base64`
//! instead of `body`, in either direction: so a line is never much longer than twice its body, and the host refuses
//! one that is longer than [`line_bytes_max`]. The host and the header lines of an HTTP request do not travel: only a
//! platform in Demi's own process sees them. Fields that are empty may be left out. Errors carry one of the codes
//! below. A line on stdout that is not JSON-RPC, and every line on stderr, is a log line.

use std::borrow::Cow;

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
/// Error code of JSON-RPC itself: there is no such method.
pub const NO_METHOD: i64 = -32_601;
/// Error code of JSON-RPC itself: the parameters do not fit.
pub const BAD_PARAMS: i64 = -32_602;

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
    /// Absent in a notification.
    #[serde(default)]
    pub id: Option<u64>,
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

/// The error of an answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireError {
    /// One of the codes of this module.
    pub code: i64,
    /// A sentence.
    #[serde(default)]
    pub message: String,
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
struct Response<R> {
    jsonrpc: &'static str,
    id: u64,
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
}

/// The answer to `initialize`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Initialized {
    /// The version that the plugin speaks.
    pub protocol: u32,
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

fn ok() -> u16 {
    200
}

/// Appends a message and its line end. Writing JSON to memory cannot fail for these types.
fn write_line(out: &mut Vec<u8>, message: &impl Serialize) {
    serde_json::to_writer(&mut *out, message).expect("plain structs of text and numbers always serialise");
    out.push(b'\n');
}

fn write_call<P: Serialize>(out: &mut Vec<u8>, id: Option<u64>, method: &str, params: Option<P>) {
    write_line(out, &Call { jsonrpc: "2.0", id, method, params });
}

/// Appends the host's `initialize`.
pub fn write_initialize(out: &mut Vec<u8>, id: u64, name: &str, settings: &Settings) {
    let params = Initialize { protocol: PROTOCOL, name: name.to_owned(), settings: settings.clone() };
    write_call(out, Some(id), "initialize", Some(params));
}

/// Appends the host's `handle`.
pub fn write_handle(out: &mut Vec<u8>, id: u64, request: &Request<'_>) {
    let (body, body_base64) = wire_body(request.body);
    let params = WireRequest {
        from: request.from.into(),
        kind: request.kind.into(),
        method: request.method.into(),
        target: request.target.into(),
        content_type: request.content_type.into(),
        body,
        body_base64,
    };
    write_call(out, Some(id), "handle", Some(params));
}

/// Appends the host's `health`.
pub fn write_health(out: &mut Vec<u8>, id: u64) {
    write_call::<()>(out, Some(id), "health", None);
}

/// Appends the host's `cancel` of the `handle` with this id.
pub fn write_cancel(out: &mut Vec<u8>, id: u64) {
    write_call(out, None, "cancel", Some(Cancel { id }));
}

/// Appends the host's `shutdown`.
pub fn write_shutdown(out: &mut Vec<u8>) {
    write_call::<()>(out, None, "shutdown", None);
}

/// Appends the plugin's answer to `initialize`.
pub fn write_initialized(out: &mut Vec<u8>, id: u64) {
    let result = Some(Initialized { protocol: PROTOCOL });
    write_line(out, &Response { jsonrpc: "2.0", id, result, error: None });
}

/// Appends the plugin's answer to `handle`.
pub fn write_reply(out: &mut Vec<u8>, id: u64, reply: &Reply) {
    let (body, body_base64) = wire_body(&reply.body);
    let content_type = reply.content_type.as_str().into();
    let result = Some(WireReply { status: reply.status, content_type, body, body_base64 });
    write_line(out, &Response { jsonrpc: "2.0", id, result, error: None });
}

/// Appends the plugin's answer to `health`.
pub fn write_health_result(out: &mut Vec<u8>, id: u64, health: &Health) {
    let result = Some(WireHealth { status: health.status, error: health.error.clone() });
    write_line(out, &Response { jsonrpc: "2.0", id, result, error: None });
}

/// Appends an answer that is an error.
pub fn write_error(out: &mut Vec<u8>, id: u64, code: i64, message: &str) {
    let error = Some(WireError { code, message: message.to_owned() });
    write_line(out, &Response::<()> { jsonrpc: "2.0", id, result: None, error });
}

/// Appends the plugin's answer to a `handle` that failed.
pub fn write_fault(out: &mut Vec<u8>, id: u64, fault: &Fault) {
    let code = match fault.kind {
        FaultKind::Mistaken => MISTAKEN,
        FaultKind::Failed => FAILED,
        FaultKind::Busy => BUSY,
    };
    write_error(out, id, code, &fault.message);
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
    buffer.fill(&Request {
        from: &wire.from,
        kind: &wire.kind,
        method: &wire.method,
        target: &wire.target,
        content_type: &wire.content_type,
        ..Request::default()
    });
    read_body(wire.body, wire.body_base64, buffer.body_mut())
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

fn read<'r, T: Deserialize<'r>>(value: Option<&'r RawValue>) -> Result<T, String> {
    serde_json::from_str(value.map_or("null", RawValue::get)).map_err(|error| error.to_string())
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Fault {
        let kind = match error.code {
            MISTAKEN | BAD_PARAMS => FaultKind::Mistaken,
            BUSY => FaultKind::Busy,
            _ => FaultKind::Failed,
        };
        Fault { kind, message: error.message }
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
    fn a_request_crosses_the_wire_whatever_its_body() {
        for body in [&b""[..], b"hello", b"line\nline", "grüße".as_bytes(), &[0, 159, 255]] {
            let request =
                Request { from: "discord", kind: "message", method: "POST", target: "/a", body, ..Request::default() };
            let mut line = Vec::new();
            write_handle(&mut line, 7, &request);
            let message = message(&line);
            assert_eq!((message.id, message.method.as_deref()), (Some(7), Some("handle")));
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
}
