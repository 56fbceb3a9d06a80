//! HTTP/1.1 on bytes alone: heads in, bodies in, heads and chunks out.
//!
//! Nothing here owns a socket, a clock or a buffer, and nothing blocks. The listener reads requests with it and
//! the upstream proxy reads responses; both sides append what they send to a `Vec<u8>` of their own. A message
//! about whose end two readers could disagree is refused rather than repaired, because such a message is how a
//! second request is smuggled past the first reader (RFC 9112 §11.2).
//!
//! A [`Body`] is a state machine that may be fed any pieces:
//!
//! ```text
//!  Length ──all bytes──► Done ◄──closed── UntilClose
//!
//!           ┌───────────────────────── LF ─────────────────────────────┐
//!           ▼                                                          │
//!  ───► ChunkSize ──CR──► ChunkSizeLf ──LF, n > 0──► ChunkData ──► ChunkCr ──► ChunkLf
//!           │ ';'             ▲    │ LF, n = 0
//!           └──► Extension ───┘CR  ▼
//!                              TrailerStart ──CR──► EndLf ──LF──► Done
//!                               │token    ▲ LF
//!                               ▼         │
//!                        TrailerName ─':'─► TrailerValue ─CR─► TrailerLf
//! ```
//!
//! An edge that is not drawn is an error; the connection is then of no further use and must be closed.

use std::mem::MaybeUninit;
use std::time::Duration;

use demi_conductor::{Report, WEIGHT_MAX};
use httparse::{Error, Header, Status};

/// More header lines than this are never accepted, whatever [`Limits::headers_max`] says; they are parsed into an
/// array on the stack (32 bytes each).
pub const HEADERS_MAX: usize = 256;
/// Most options that all `Connection` lines of a head may name together. Relaying compares each header with each
/// option, so that the product must stay small; real messages name one or two.
const CONNECTION_OPTIONS_MAX: usize = 16;
/// Empty lines skipped before a request line; RFC 9112 §2.2 asks for at least one.
const BLANK_LINES_MAX: usize = 2;
/// Hexadecimal digits of a chunk size: what fits a `u64`.
const CHUNK_DIGITS_MAX: u8 = 16;
/// Bytes of a chunk's size and extensions in one line, without the CRLF.
const CHUNK_LINE_BYTES_MAX: u16 = 256;
/// Bytes of chunk extensions in one message; without it, one-byte chunks could carry 250 unmetered bytes each.
const EXTENSION_BYTES_MAX: u16 = 16 * 1024;
/// Bytes of all trailer lines of a message.
const TRAILER_BYTES_MAX: u16 = 8 * 1024;

/// What is wrong with a message and the status that says so. The connection must be closed after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The status to answer with: 4xx or 5xx for a request, always 502 for a response's head.
    pub status: u16,
    /// A lower-case fragment that names the fault; it quotes nothing of the message.
    pub why: &'static str,
}

const fn refuse<T>(status: u16, why: &'static str) -> Result<T, Malformed> {
    Err(Malformed { status, why })
}

/// What a message may measure.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a head, with the empty lines before and after it.
    pub head_bytes_max: usize,
    /// Header lines; more than [`HEADERS_MAX`] counts as [`HEADERS_MAX`].
    pub headers_max: usize,
    /// Bytes of a body's payload, after chunk decoding.
    pub body_bytes_max: u64,
}

/// Where a message's body ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// As many bytes as `Content-Length` says, perhaps 0.
    Length(u64),
    /// After the last chunk and its trailers.
    Chunked,
    /// Where the peer closes the connection; only responses.
    UntilClose,
}

/// A request's head, borrowed from the buffer it was read into.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'b> {
    /// The method as sent; any token but `CONNECT`. Methods are case-sensitive.
    pub method: &'b str,
    /// Path and query as sent, starting with `/`, or `*` for `OPTIONS`. Of an absolute-form the scheme and the
    /// authority are cut off. Visible ASCII without `#`; percent-escapes and dot segments are left alone.
    pub target: &'b str,
    /// The authority of an absolute-form target, else the value of `Host`, else empty. Where an absolute-form and
    /// `Host` differ, this is the one to believe and to relay (RFC 9112 §3.2.2).
    pub host: &'b str,
    /// HTTP/1.1; false is HTTP/1.0.
    pub http11: bool,
    /// Where the body ends; never [`Framing::UntilClose`].
    pub framing: Framing,
    /// The peer wants to send another request on this connection.
    pub keep_alive: bool,
    /// The peer waits for `100 Continue` before it sends the body; false when there is no body to wait for.
    pub expect_continue: bool,
    /// The peer offers to change protocols (RFC 9110 §7.8); false if a body comes first, which nobody would wait for.
    pub upgrades: bool,
    /// The value of `Content-Type`; `None` too when it is not ASCII.
    pub content_type: Option<&'b str>,
    /// The header lines as sent, each ended by CRLF, without the empty line at the end.
    pub headers_bytes: &'b [u8],
    /// Bytes of the head, from the buffer's first byte to the end of the empty line.
    pub len: usize,
}

/// A response's head, borrowed from the buffer it was read into.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'b> {
    /// 100 to 599. The caller skips a 1xx head and reads on; a 101 that nobody asked for is the caller's to refuse.
    pub status: u16,
    /// HTTP/1.1; false is HTTP/1.0.
    pub http11: bool,
    /// Where the body ends.
    pub framing: Framing,
    /// The connection may carry another request once the body is done.
    pub keep_alive: bool,
    /// The value of `Content-Type`; `None` too when it is not ASCII.
    pub content_type: Option<&'b str>,
    /// The header lines as sent, each ended by CRLF, without the empty line at the end.
    pub headers_bytes: &'b [u8],
    /// Bytes of the head, from the buffer's first byte to the end of the empty line.
    pub len: usize,
}

/// Reads a request's head from the front of `buf`, which may hold more than the head. `None` asks for more bytes;
/// the head is then read again from its start, which `limits.head_bytes_max` keeps cheap.
///
/// # Errors
/// 400 for bad syntax or an ambiguous body length, 413 body too long, 414 request line too long, 417 unknown
/// expectation, 431 head too long or too many lines, 501 `CONNECT` or an unknown transfer coding, 505 version.
pub fn parse_request<'b>(buf: &'b [u8], limits: &Limits) -> Result<Option<RequestHead<'b>>, Malformed> {
    let window = &buf[..buf.len().min(limits.head_bytes_max)];
    let mut blank = 0;
    while blank < BLANK_LINES_MAX * 2 && window[blank..].starts_with(b"\r\n") {
        blank += 2;
    }
    let head = &window[blank..];
    match head.first() {
        None => return incomplete_request(head, limits, buf.len()),
        Some(b'\r') if head.len() == 1 && blank < BLANK_LINES_MAX * 2 => {
            return incomplete_request(head, limits, buf.len())
        }
        // A TLS hello starts with 0x16: say so at once instead of waiting for an end of line that never comes.
        Some(&first) if !is_token_byte(first) => return refuse(400, "this is not an HTTP request"),
        Some(_) => {}
    }

    let mut lines = [const { MaybeUninit::<Header<'b>>::uninit() }; HEADERS_MAX];
    let lines = &mut lines[..limits.headers_max.min(HEADERS_MAX)];
    let mut request = httparse::Request::new(&mut []);
    let head_bytes = match request.parse_with_uninit_headers(head, lines) {
        Ok(Status::Complete(bytes)) => bytes,
        Ok(Status::Partial) => return incomplete_request(head, limits, buf.len()),
        Err(Error::TooManyHeaders) => return refuse(431, "too many header lines"),
        Err(Error::Version) if names_another_version(head) => return refuse(505, "only HTTP/1.0 and 1.1 are spoken"),
        Err(error) => return refuse(400, describe(error)),
    };
    let head = &head[..head_bytes];
    let headers_bytes = strict_lines(head, request.headers)?;
    let method = request.method.expect("a complete request has a method");
    let http11 = request.version == Some(1);
    if method == "CONNECT" {
        return refuse(501, "tunnels are not offered");
    }
    let (target, authority) = split_target(method, request.path.expect("a complete request has a target"))?;
    let fields = Fields::read(request.headers)?;

    let host = match fields.host {
        _ if fields.host_twice => return refuse(400, "more than one Host"),
        None if http11 => return refuse(400, "Host is missing"),
        None => "",
        Some(value) if is_host(value) => ascii(value).expect("a host is ASCII"),
        Some(_) => return refuse(400, "invalid Host"),
    };
    let framing = match fields.body(http11)? {
        Some(Framing::Length(bytes)) if bytes > limits.body_bytes_max => return refuse(413, "the body is too long"),
        Some(framing) => framing,
        None => Framing::Empty,
    };
    if fields.expect_other {
        return refuse(417, "the only expectation met is 100-continue");
    }
    let has_body = !matches!(framing, Framing::Empty | Framing::Length(0));
    Ok(Some(RequestHead {
        method,
        target,
        host: authority.unwrap_or(host),
        http11,
        framing,
        keep_alive: fields.keep_alive(http11),
        // RFC 9110 §10.1.1: an HTTP/1.0 peer cannot know what a 100 is.
        expect_continue: http11 && fields.expect_continue && has_body,
        upgrades: http11 && fields.upgrades && !has_body,
        content_type: fields.content_type.and_then(ascii),
        headers_bytes,
        len: blank + head_bytes,
    }))
}

/// Reads a response's head from the front of `buf`, as [`parse_request`] does a request's. Interim heads (1xx) are
/// returned like others, with [`Framing::Empty`]; so are heads of responses that never have a body (204, 304 and
/// any answer to `HEAD`).
///
/// # Errors
/// 502 always: the peer that asked is not to blame.
pub fn parse_response<'b>(
    buf: &'b [u8],
    request_was_head: bool,
    limits: &Limits,
) -> Result<Option<ResponseHead<'b>>, Malformed> {
    let bad_gateway = |malformed: Malformed| Malformed { status: 502, ..malformed };
    let head = &buf[..buf.len().min(limits.head_bytes_max)];
    // No empty line is skipped here: one that follows a response means that its length was wrong.
    if head.first().is_some_and(|&first| first != b'H') {
        return refuse(502, "this is not an HTTP response");
    }
    let mut lines = [const { MaybeUninit::<Header<'b>>::uninit() }; HEADERS_MAX];
    let lines = &mut lines[..limits.headers_max.min(HEADERS_MAX)];
    let mut response = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let head_bytes = match parser.parse_response_with_uninit_headers(&mut response, head, lines) {
        Ok(Status::Complete(bytes)) => bytes,
        Ok(Status::Partial) if buf.len() >= limits.head_bytes_max => return refuse(502, "the head is too long"),
        Ok(Status::Partial) if has_bare_lf(head) => return refuse(502, "a line ends without CR"),
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return refuse(502, describe(error)),
    };
    let headers_bytes = strict_lines(&head[..head_bytes], response.headers).map_err(bad_gateway)?;
    let http11 = response.version == Some(1);
    let status = response.code.expect("a complete response has a status");
    if !(100..=599).contains(&status) {
        return refuse(502, "the status is out of range");
    }
    let fields = Fields::read(response.headers).map_err(bad_gateway)?;
    let framing = match fields.body(http11).map_err(bad_gateway)? {
        _ if request_was_head || matches!(status, 100..=199 | 204 | 304) => Framing::Empty,
        Some(Framing::Length(bytes)) if bytes > limits.body_bytes_max => return refuse(502, "the body is too long"),
        Some(framing) => framing,
        None => Framing::UntilClose,
    };
    Ok(Some(ResponseHead {
        status,
        http11,
        framing,
        keep_alive: fields.keep_alive(http11) && framing != Framing::UntilClose && status != 101,
        content_type: fields.content_type.and_then(ascii),
        headers_bytes,
        len: head_bytes,
    }))
}

/// The verdict on a head of which all bytes so far are well-formed. Bare line feeds are looked for here because the
/// parser takes them for line ends and would go on waiting.
#[cold]
fn incomplete_request<'b>(head: &[u8], limits: &Limits, len: usize) -> Result<Option<RequestHead<'b>>, Malformed> {
    if has_bare_lf(head) {
        refuse(400, "a line ends without CR")
    } else if len < limits.head_bytes_max {
        Ok(None)
    } else if head.contains(&b'\n') {
        refuse(431, "the head is too long")
    } else {
        refuse(414, "the request line is too long")
    }
}

fn has_bare_lf(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'\n') || bytes.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r')
}

const fn describe(error: Error) -> &'static str {
    match error {
        Error::HeaderName => "a header line is folded, or its name is invalid or followed by white space",
        Error::HeaderValue => "a header value holds a control byte",
        Error::NewLine => "a line does not end where it should",
        Error::Status => "invalid status line",
        Error::Token => "invalid method or target",
        Error::TooManyHeaders => "too many header lines",
        Error::Version => "invalid HTTP version",
    }
}

/// Whether the third word of the request line has the form of a version, or begins like one: 505 is for the HTTP
/// that we do not speak, 400 for what is not HTTP.
fn names_another_version(head: &[u8]) -> bool {
    let word = head.split(|&b| b == b' ').nth(2).unwrap_or(b"");
    match word.strip_prefix(b"HTTP/") {
        Some([major]) => major.is_ascii_digit(),
        Some([major, b'.']) => major.is_ascii_digit(),
        Some([major, b'.', minor, ..]) => major.is_ascii_digit() && minor.is_ascii_digit(),
        // "HTTP/2" without a minor number, as later versions are written.
        Some([major, b'\r', ..]) => major.is_ascii_digit(),
        _ => false,
    }
}

/// The header lines of a complete head, once it is sure that each line ended in CRLF. The parser also ends a line
/// at a bare LF, and that can only be seen where a line meets the next one.
fn strict_lines<'b>(head: &'b [u8], headers: &[Header<'b>]) -> Result<&'b [u8], Malformed> {
    let offset = |header: &Header<'_>| header.name.as_ptr() as usize - head.as_ptr() as usize;
    let crlf = |header: &Header<'_>| head[..offset(header)].ends_with(b"\r\n");
    if !head.ends_with(b"\r\n\r\n") || !headers.iter().all(crlf) {
        return refuse(400, "a line ends without CR");
    }
    let end = head.len() - 2;
    Ok(&head[headers.first().map_or(end, offset)..end])
}

/// Cuts a request's target down to origin-form (RFC 9112 §3.2) and returns an absolute-form's authority beside it.
fn split_target<'b>(method: &str, target: &'b str) -> Result<(&'b str, Option<&'b str>), Malformed> {
    if !target.bytes().fold(true, |fine, byte| fine & byte.is_ascii_graphic() & (byte != b'#')) {
        return refuse(400, "the target holds a fragment or a byte that is not visible ASCII");
    }
    if target.starts_with('/') {
        return Ok((target, None));
    }
    if target == "*" {
        return if method == "OPTIONS" { Ok((target, None)) } else { refuse(400, "the target * is for OPTIONS") };
    }
    let Some((scheme, rest)) = target.split_once("://") else { return refuse(400, "invalid target") };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return refuse(400, "the target's scheme is not http");
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if authority.is_empty() || !is_host(authority.as_bytes()) {
        return refuse(400, "invalid authority in the target");
    }
    match path {
        "" => Ok(("/", Some(authority))),
        path if path.starts_with('/') => Ok((path, Some(authority))),
        // "/?query" is nowhere in the buffer to be borrowed, and no known client leaves the slash out.
        _ => refuse(400, "the target's path is empty; put a slash before the query"),
    }
}

/// What the headers say that matters to the codec.
#[derive(Default)]
struct Fields<'b> {
    host: Option<&'b [u8]>,
    host_twice: bool,
    length: Option<u64>,
    length_twice: bool,
    transfer: bool,
    chunked_count: usize,
    chunked_last: bool,
    other_coding: bool,
    close: bool,
    persist: bool,
    upgrades: bool,
    connection_options: usize,
    expect_continue: bool,
    expect_other: bool,
    content_type: Option<&'b [u8]>,
    content_type_twice: bool,
}

impl<'b> Fields<'b> {
    fn read(headers: &[Header<'b>]) -> Result<Fields<'b>, Malformed> {
        let mut fields = Fields::default();
        for Header { name, value } in headers {
            // The length alone rules most names out.
            match name.len() {
                4 if name.eq_ignore_ascii_case("host") => fields.host_twice |= fields.host.replace(value).is_some(),
                6 if name.eq_ignore_ascii_case("expect") => match value.eq_ignore_ascii_case(b"100-continue") {
                    true => fields.expect_continue = true,
                    false => fields.expect_other = true,
                },
                10 if name.eq_ignore_ascii_case("connection") => fields.connection(value)?,
                12 if name.eq_ignore_ascii_case("content-type") => {
                    fields.content_type_twice |= fields.content_type.replace(value).is_some()
                }
                14 if name.eq_ignore_ascii_case("content-length") => {
                    fields.length_twice |= fields.length.replace(parse_length(value)?).is_some()
                }
                17 if name.eq_ignore_ascii_case("transfer-encoding") => fields.transfer_encoding(value)?,
                _ => {}
            }
        }
        if fields.length_twice {
            return refuse(400, "more than one Content-Length");
        }
        if fields.content_type_twice {
            return refuse(400, "more than one Content-Type");
        }
        Ok(fields)
    }

    fn connection(&mut self, value: &[u8]) -> Result<(), Malformed> {
        for option in list(value).filter(|option| !option.is_empty()) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.persist |= option.eq_ignore_ascii_case(b"keep-alive");
            self.upgrades |= option.eq_ignore_ascii_case(b"upgrade");
            self.connection_options += 1;
        }
        if self.connection_options > CONNECTION_OPTIONS_MAX {
            return refuse(400, "too many Connection options");
        }
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Malformed> {
        self.transfer = true;
        for coding in list(value) {
            if coding.is_empty() {
                return refuse(400, "empty transfer coding");
            }
            self.chunked_last = coding.eq_ignore_ascii_case(b"chunked");
            self.chunked_count += self.chunked_last as usize;
            self.other_coding |= !self.chunked_last;
        }
        Ok(())
    }

    /// How the headers frame the body; `None` when they do not mention one.
    fn body(&self, http11: bool) -> Result<Option<Framing>, Malformed> {
        match (self.transfer, self.length) {
            (true, Some(_)) => refuse(400, "both Content-Length and Transfer-Encoding"),
            (true, None) if !http11 => refuse(400, "Transfer-Encoding in HTTP/1.0"),
            // RFC 9112 §6.3: without chunked at the end the length cannot be known, and that outranks the 501.
            (true, None) if !self.chunked_last => refuse(400, "the last transfer coding is not chunked"),
            (true, None) if self.chunked_count > 1 => refuse(400, "chunked more than once"),
            (true, None) if self.other_coding => refuse(501, "chunked is the only transfer coding known"),
            (true, None) => Ok(Some(Framing::Chunked)),
            (false, Some(bytes)) => Ok(Some(Framing::Length(bytes))),
            (false, None) => Ok(None),
        }
    }

    fn keep_alive(&self, http11: bool) -> bool {
        !self.close && (http11 || self.persist)
    }
}

/// `1*DIGIT` and nothing else: a sign, a list or an overflow is where two readers start to differ.
fn parse_length(value: &[u8]) -> Result<u64, Malformed> {
    let mut length = if value.is_empty() { None } else { Some(0u64) };
    for &byte in value {
        let digit = byte.wrapping_sub(b'0');
        length = length.filter(|_| digit <= 9).and_then(|n| n.checked_mul(10)?.checked_add(digit.into()));
    }
    length.ok_or(Malformed { status: 400, why: "invalid Content-Length" })
}

/// The elements of a comma-separated list, trimmed, the empty ones too.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim)
}

/// One element of `Accept` (RFC 9110 §12.5.1), in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaRange<'r> {
    /// As `text/plain`, or `*/*`.
    pub media: &'r str,
    /// Its parameter `version`; empty if it has none.
    pub version: &'r str,
    /// How much it is wanted, thousandths; 0 if that is no weight.
    pub weight: u32,
}

impl MediaRange<'_> {
    /// Reads one.
    pub fn of(range: &str) -> MediaRange<'_> {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let (mut version, mut weight) = ("", 1000);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim_end() {
                "version" => version = value.trim_start().trim_matches('"'),
                "q" => weight = permille(value.trim_start()),
                _ => {}
            }
        }
        MediaRange { media, version, weight }
    }
}

/// A weight of `Accept`, 0 to 1, in thousandths; 0 if it is none.
fn permille(weight: &str) -> u32 {
    let weight = weight.parse::<f32>().ok().filter(|weight| (0.0..=1.0).contains(weight));
    weight.map_or(0, |weight| (weight * 1000.0).round() as u32)
}

/// Cuts optional white space (space and tab, no other) off both ends.
fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

fn ascii(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii())
}

/// A byte of a token (RFC 9110 §5.6.2): method, header name.
const fn is_token_byte(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+'
        | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// A byte of a header value: tab, space, visible ASCII and, for old senders, anything above it.
const fn is_value_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=0x7e | 0x80..)
}

/// Whether this may be a header's value.
pub fn is_value(value: &[u8]) -> bool {
    value.iter().all(|&byte| is_value_byte(byte))
}

/// Whether this may be the method of a request that is passed on: any token but `CONNECT`, as in [`RequestHead`].
pub fn is_method(method: &str) -> bool {
    !method.is_empty() && method.bytes().all(is_token_byte) && method != "CONNECT"
}

/// Whether these are header lines as [`RequestHead::headers_bytes`] holds them, whoever wrote them.
pub fn are_header_lines(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let Some(end) = find_lf(bytes) else { return false };
        let Some(line) = bytes[..end].strip_suffix(b"\r") else { return false };
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { return false };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || !name.iter().all(|&byte| is_token_byte(byte)) || !is_value(value) {
            return false;
        }
        bytes = &bytes[end + 1..];
    }
    true
}

/// Whether only bytes of `uri-host [":" port]` occur (RFC 3986 §3.2.2); no `@`, since user information in a host is
/// how a reader is made to see another host. The empty value is fine.
pub fn is_host(value: &[u8]) -> bool {
    value.iter().all(|byte| {
        matches!(byte, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$'
            | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'[' | b']')
    })
}

/// The header lines as (name, value), the value without white space around it. For `headers_bytes` of a head; of
/// other bytes it leaves out lines that have no colon.
pub fn header_lines(headers_bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = headers_bytes;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let (line, after) = rest.split_at(find_lf(rest).map_or(rest.len(), |at| at + 1));
            rest = after;
            if let Some(colon) = line.iter().position(|&byte| byte == b':') {
                let value = line[colon + 1..].strip_suffix(b"\r\n").unwrap_or(&line[colon + 1..]);
                return Some((&line[..colon], trim(value)));
            }
        }
        None
    })
}

/// `position` in steps that the compiler turns into one comparison of 16 bytes; a third off the time of a relayed head.
fn find_lf(bytes: &[u8]) -> Option<usize> {
    let blocks = bytes.chunks_exact(16);
    let full = blocks.take_while(|block| !block.iter().fold(false, |hit, &byte| hit | (byte == b'\n'))).count() * 16;
    bytes[full..].iter().position(|&byte| byte == b'\n').map(|at| full + at)
}

/// The value of the first header line with this name, in whatever case.
pub fn header<'b>(headers_bytes: &'b [u8], name: &str) -> Option<&'b [u8]> {
    header_lines(headers_bytes).find(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
}

/// How long whoever answered wants not to be asked again, by its `Retry-After` (RFC 9110 §10.2.3). A time of day is taken
/// from the `Date` of the same answer: whether the two clocks agree does then not matter. Without one it says nothing.
pub fn retry_after(headers_bytes: &[u8]) -> Option<Duration> {
    let text = |name| std::str::from_utf8(header(headers_bytes, name)?).ok();
    let wanted = text("retry-after")?;
    if wanted.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that no number holds mean for ever, as far as anybody is concerned.
        return (!wanted.is_empty()).then(|| Duration::from_secs(wanted.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(wanted).ok()?;
    let now = httpdate::parse_http_date(text("date")?).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

/// With which a service says in its answer to a health check how often it wants to be asked against the others.
const WEIGHT_HEADER: &str = "Demi-Weight";
/// And that it wants no new requests.
const DRAIN_HEADER: &str = "Demi-Drain";

/// What whoever answered a health check says of how it wants to be balanced: `Demi-Weight`, 1 to [`WEIGHT_MAX`], and
/// `Demi-Drain`, `?1` or `?0` (an integer and a boolean of RFC 9651, without parameters).
///
/// # Errors
/// A sentence that says what does not fit.
pub fn report(headers_bytes: &[u8]) -> Result<Report, String> {
    let weight = match header(headers_bytes, WEIGHT_HEADER) {
        None => None,
        Some(value) => {
            let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let weight =
                digits.and_then(|digits| digits.parse().ok()).filter(|weight| (1..=WEIGHT_MAX).contains(weight));
            Some(weight.ok_or_else(|| format!("{WEIGHT_HEADER} is not a whole number from 1 to {WEIGHT_MAX}"))?)
        }
    };
    let drain = match header(headers_bytes, DRAIN_HEADER) {
        None | Some(b"?0") => false,
        Some(b"?1") => true,
        Some(_) => return Err(format!("{DRAIN_HEADER} is neither ?1 nor ?0")),
    };
    Ok(Report { weight, drain })
}

/// Appends to `out` the header lines that are meant for the far end, one `Name: value` each.
///
/// Left out are those that speak of this connection only (RFC 9110 §7.6.1): `Connection` and what it names,
/// `Keep-Alive`, `Proxy-Connection`, `TE`, `Trailer`, `Transfer-Encoding` and `Upgrade`; those
/// that the relay decides anew, `Content-Length` and `Expect`; any name for which `skip` says true; and
/// `Proxy-Authenticate`, `Proxy-Authentication-Info` and `Proxy-Authorization`. The last three are not hop-by-hop by
/// RFC 9110, but §11.7 addresses them to the next proxy: relayed, a client's password for one proxy would reach a
/// service, and a service could ask for it in the name of Demi.
///
/// `Host` is relayed unless skipped; a relay writes [`RequestHead::host`] in its place.
pub fn copy_end_to_end(headers_bytes: &[u8], skip: impl Fn(&[u8]) -> bool, out: &mut Vec<u8>) {
    let mut named = [&b""[..]; CONNECTION_OPTIONS_MAX];
    let mut named_count = 0;
    for (_, value) in header_lines(headers_bytes).filter(|(name, _)| name.eq_ignore_ascii_case(b"connection")) {
        // Parsing refused a head that has more options than fit.
        for option in list(value).filter(|option| !option.is_empty()).take(CONNECTION_OPTIONS_MAX - named_count) {
            named[named_count] = option;
            named_count += 1;
        }
    }
    let named = &named[..named_count];
    out.reserve(headers_bytes.len());
    for (name, value) in header_lines(headers_bytes) {
        if !is_for_one_hop(name) && !named.iter().any(|option| option.eq_ignore_ascii_case(name)) && !skip(name) {
            out.extend_from_slice(name);
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Whether two names of headers are the same to any reader: in whatever case, and to those that make names of variables of
/// them (CGI, WSGI) a dash is an underscore. What must not come from elsewhere must not come under such a name either.
pub fn is_same_name(one: &[u8], other: &[u8]) -> bool {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    one.len() == other.len() && one.iter().map(plain).eq(other.iter().map(plain))
}

fn is_for_one_hop(name: &[u8]) -> bool {
    let is = |other: &str| is_same_name(name, other.as_bytes());
    match name.len() {
        2 => is("te"),
        6 => is("expect"),
        7 => is("trailer") || is("upgrade"),
        10 => is("connection") || is("keep-alive"),
        14 => is("content-length"),
        16 => is("proxy-connection"),
        17 => is("transfer-encoding"),
        18 => is("proxy-authenticate"),
        19 => is("proxy-authorization"),
        25 => is("proxy-authentication-info"),
        _ => false,
    }
}

/// Decodes one message's body, whatever the pieces in which it arrives.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    state: State,
    /// Payload bytes that may still come.
    room: u64,
    /// Bytes of chunk extensions so far.
    extension_bytes: u16,
}

/// See the drawing at the top of the file.
#[derive(Clone, Copy, Debug)]
enum State {
    Length { left: u64 },
    UntilClose,
    ChunkSize { size: u64, digits: u8 },
    Extension { size: u64, line_bytes: u16 },
    ChunkSizeLf { size: u64 },
    ChunkData { left: u64 },
    ChunkCr,
    ChunkLf,
    TrailerStart { trailer_bytes: u16 },
    TrailerName { trailer_bytes: u16 },
    TrailerValue { trailer_bytes: u16 },
    TrailerLf { trailer_bytes: u16 },
    EndLf,
    Done,
}

impl Body {
    /// A decoder for a body with this framing and at most `body_bytes_max` bytes of payload.
    pub fn new(framing: Framing, body_bytes_max: u64) -> Body {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(left) => State::Length { left },
            Framing::Chunked => State::ChunkSize { size: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Body { state, room: body_bytes_max, extension_bytes: 0 }
    }

    /// At most so many bytes of payload more may come.
    ///
    /// # Errors
    /// 413 if more than that is announced already.
    pub fn limit(&mut self, bytes: u64) -> Result<(), Malformed> {
        self.room = self.room.min(bytes);
        match self.state {
            State::Length { left } | State::ChunkData { left } if left > self.room => {
                refuse(413, "the body is too long")
            }
            _ => Ok(()),
        }
    }

    /// Takes bytes from the front of `input`, appends their payload to `out` and returns how many it took: all of
    /// them, or fewer if the message ends within, in which case [`Body::is_done`] is true.
    ///
    /// # Errors
    /// 413 when the payload exceeds the bound, before the excess is taken; 400 for bad chunks. These are a request's
    /// statuses; of a response either means 502. After an error the decoder is of no further use, and `out` may hold
    /// what came before the fault.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        self.decode_to(input, out, None)
    }

    /// As [`Body::decode`], and appends the trailer lines as sent, each ended by CRLF, to `trailers`.
    ///
    /// # Errors
    /// As [`Body::decode`].
    pub fn decode_with_trailers(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        trailers: &mut Vec<u8>,
    ) -> Result<usize, Malformed> {
        self.decode_to(input, out, Some(trailers))
    }

    fn decode_to(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        trailers: Option<&mut Vec<u8>>,
    ) -> Result<usize, Malformed> {
        match self.state {
            State::Length { left } => {
                if left > self.room {
                    return refuse(413, "the body is too long");
                }
                let (bytes, left) = self.take(left, input, out);
                self.state = if left == 0 { State::Done } else { State::Length { left } };
                Ok(bytes)
            }
            State::UntilClose => {
                if input.len() as u64 > self.room {
                    return refuse(413, "the body is too long");
                }
                Ok(self.take(u64::MAX, input, out).0)
            }
            State::Done => Ok(0),
            _ => self.decode_chunks(input, out, trailers),
        }
    }

    /// The message is complete: what follows belongs to the next one.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Takes the news that the peer closed its side.
    ///
    /// # Errors
    /// 400 if that cuts the message off.
    pub fn closed(&mut self) -> Result<(), Malformed> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                Ok(())
            }
            _ => refuse(400, "the peer closed before the end of the body"),
        }
    }

    /// Moves up to `left` bytes to `out`; the caller has seen that `room` suffices. Returns taken and still left.
    fn take(&mut self, left: u64, input: &[u8], out: &mut Vec<u8>) -> (usize, u64) {
        let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        out.extend_from_slice(&input[..bytes]);
        self.room -= bytes as u64;
        (bytes, left - bytes as u64)
    }

    fn decode_chunks(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        mut trailers: Option<&mut Vec<u8>>,
    ) -> Result<usize, Malformed> {
        let mut taken = 0;
        while let Some(&byte) = input.get(taken) {
            self.state = match self.state {
                State::ChunkData { left } => {
                    let (bytes, left) = self.take(left, &input[taken..], out);
                    taken += bytes;
                    self.state = if left == 0 { State::ChunkCr } else { State::ChunkData { left } };
                    continue;
                }
                State::ChunkSize { size, digits } => match (byte, hex_digit(byte)) {
                    (_, Some(_)) if digits == CHUNK_DIGITS_MAX => return refuse(400, "the chunk size is too long"),
                    (_, Some(digit)) => State::ChunkSize { size: size << 4 | digit, digits: digits + 1 },
                    (_, None) if digits == 0 => return refuse(400, "a chunk size is missing"),
                    (b'\r', None) => State::ChunkSizeLf { size },
                    (b';', None) => State::Extension { size, line_bytes: u16::from(digits) + 1 },
                    // The white space that RFC 9112 §7.1.1 tolerates before ';' too: no known sender writes it.
                    (_, None) => return refuse(400, "invalid chunk size"),
                },
                State::Extension { size, .. } if byte == b'\r' => State::ChunkSizeLf { size },
                State::Extension { size, line_bytes } => {
                    if !is_value_byte(byte) {
                        return refuse(400, "invalid chunk extension");
                    }
                    self.extension_bytes += 1;
                    if line_bytes == CHUNK_LINE_BYTES_MAX || self.extension_bytes > EXTENSION_BYTES_MAX {
                        return refuse(400, "the chunk extensions are too long");
                    }
                    State::Extension { size, line_bytes: line_bytes + 1 }
                }
                State::ChunkSizeLf { size } => match byte {
                    b'\n' if size == 0 => State::TrailerStart { trailer_bytes: 0 },
                    b'\n' if size > self.room => return refuse(413, "the body is too long"),
                    b'\n' => State::ChunkData { left: size },
                    _ => return refuse(400, "a CR is not followed by LF"),
                },
                State::ChunkCr if byte == b'\r' => State::ChunkLf,
                State::ChunkLf if byte == b'\n' => State::ChunkSize { size: 0, digits: 0 },
                State::ChunkCr | State::ChunkLf => return refuse(400, "a chunk does not end where its size says"),
                State::TrailerStart { trailer_bytes } => match byte {
                    b'\r' => State::EndLf,
                    _ if is_token_byte(byte) => State::TrailerName { trailer_bytes: one_more(trailer_bytes)? },
                    _ => return refuse(400, "invalid trailer"),
                },
                State::TrailerName { trailer_bytes } => match byte {
                    b':' => State::TrailerValue { trailer_bytes: one_more(trailer_bytes)? },
                    _ if is_token_byte(byte) => State::TrailerName { trailer_bytes: one_more(trailer_bytes)? },
                    _ => return refuse(400, "invalid trailer"),
                },
                State::TrailerValue { trailer_bytes } => match byte {
                    b'\r' => State::TrailerLf { trailer_bytes: one_more(trailer_bytes)? },
                    _ if is_value_byte(byte) => State::TrailerValue { trailer_bytes: one_more(trailer_bytes)? },
                    _ => return refuse(400, "invalid trailer"),
                },
                State::TrailerLf { trailer_bytes } => match byte {
                    b'\n' => State::TrailerStart { trailer_bytes: one_more(trailer_bytes)? },
                    _ => return refuse(400, "a CR is not followed by LF"),
                },
                State::EndLf => match byte {
                    b'\n' => State::Done,
                    _ => return refuse(400, "a CR is not followed by LF"),
                },
                State::Done => break,
                State::Length { .. } | State::UntilClose => unreachable!("a chunked body stays chunked"),
            };
            if let (true, Some(trailers)) = (self.is_in_trailers(), trailers.as_deref_mut()) {
                trailers.push(byte);
            }
            taken += 1;
        }
        Ok(taken)
    }
}

impl Body {
    /// Whether the byte just taken belongs to a line of trailers: its state is one of a line, or that of its end.
    const fn is_in_trailers(&self) -> bool {
        match self.state {
            State::TrailerName { .. } | State::TrailerValue { .. } | State::TrailerLf { .. } => true,
            State::TrailerStart { trailer_bytes } => trailer_bytes > 0,
            _ => false,
        }
    }
}

/// Appends those trailer lines that may be passed on: none that would change how the message is framed, routed, understood
/// or authorised after that was decided (RFC 9110 §6.5.1), and none for which `skip` says true.
pub fn copy_trailers(lines: &[u8], skip: impl Fn(&[u8]) -> bool, out: &mut Vec<u8>) {
    for (name, value) in header_lines(lines).filter(|(name, _)| is_trailer(name) && !skip(name)) {
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
}

fn is_trailer(name: &[u8]) -> bool {
    const NEVER: [&str; 30] = [
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expires",
        "forwarded",
        "host",
        "location",
        "max-forwards",
        "origin",
        "pragma",
        "range",
        "referer",
        "retry-after",
        "set-cookie",
        "sec-websocket-accept",
        "sec-websocket-key",
        "strict-transport-security",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-prefix",
        "x-forwarded-proto",
    ];
    let begins = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|start| is_same_name(start, prefix));
    // Conditions, what a browser vouches for, and what Demi says of itself, as well.
    let is_of_a_kind = begins(b"if-") || begins(b"sec-fetch-") || begins(b"demi-") || begins(b"access-control-");
    !is_for_one_hop(name) && !is_of_a_kind && !NEVER.iter().any(|never| is_same_name(name, never.as_bytes()))
}

const fn hex_digit(byte: u8) -> Option<u64> {
    match byte {
        b'0'..=b'9' => Some((byte - b'0') as u64),
        b'a'..=b'f' => Some((byte - b'a') as u64 + 10),
        b'A'..=b'F' => Some((byte - b'A') as u64 + 10),
        _ => None,
    }
}

fn one_more(trailer_bytes: u16) -> Result<u16, Malformed> {
    if trailer_bytes == TRAILER_BYTES_MAX {
        return refuse(400, "the trailers are too long");
    }
    Ok(trailer_bytes + 1)
}

/// Appends `HTTP/1.1 <status> <reason>` and CRLF. A status outside 100 to 599 is a fault of who chose it, and is
/// written as 500.
pub fn write_status_line(out: &mut Vec<u8>, status: u16) {
    let status = if (100..=599).contains(&status) { status } else { 500 };
    out.extend_from_slice(b"HTTP/1.1 ");
    write_decimal(out, status.into());
    out.push(b' ');
    out.extend_from_slice(reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The words for a status (RFC 9110 §15 and the IANA registry); empty if it has none here.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        511 => "Network Authentication Required",
        _ => "",
    }
}

/// Appends one header line. Whatever a name or value holds, it stays one line: bytes that no name may hold are
/// dropped, control bytes of the value become spaces, and nothing is written if no byte of the name is left.
pub fn write_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let start = out.len();
    out.extend(name.bytes().filter(|&byte| is_token_byte(byte)));
    if out.len() == start {
        return;
    }
    out.extend_from_slice(b": ");
    let value_start = out.len();
    out.extend_from_slice(value);
    for byte in &mut out[value_start..] {
        *byte = if is_value_byte(*byte) { *byte } else { b' ' };
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends `Content-Length: n` and CRLF.
pub fn write_length(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(b"Content-Length: ");
    write_decimal(out, n);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number in decimal.
pub fn write_decimal(out: &mut Vec<u8>, n: u64) {
    write_digits(out, n, 10);
}

/// Appends `payload` as one chunk. An empty payload appends nothing, since an empty chunk would end the body.
pub fn write_chunk(out: &mut Vec<u8>, payload: &[u8]) {
    if payload.is_empty() {
        return;
    }
    write_digits(out, payload.len() as u64, 16);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Appends the chunk that ends a chunked body, with these lines as its trailers, each ended by CRLF.
pub fn write_last_chunk(out: &mut Vec<u8>, trailers: &[u8]) {
    out.extend_from_slice(b"0\r\n");
    out.extend_from_slice(trailers);
    out.extend_from_slice(b"\r\n");
}

#[inline]
fn write_digits(out: &mut Vec<u8>, mut n: u64, base: u64) {
    let mut digits = [0; 20]; // u64::MAX in decimal
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[(n % base) as usize];
        n /= base;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests;
