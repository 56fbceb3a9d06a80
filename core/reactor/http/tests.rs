#![allow(clippy::unwrap_used)]

use super::*;

const LIMITS: Limits = Limits { head_bytes_max: 4096, headers_max: 32, body_bytes_max: 1000 };

const REQUESTS: [&[u8]; 6] = [
    b"GET / HTTP/1.1\r\nHost: localhost:8787\r\n\r\n",
    b"\r\n\r\nGET /a?b=c HTTP/1.0\r\n\r\n",
    b"POST /ask HTTP/1.1\r\nhost:x\r\nContent-Type: application/json\r\nContent-Length: 17\r\nExpect: 100-Continue\r\n\r\n",
    b"POST http://h:1/p?q HTTP/1.1\r\nHost: h:1\r\nTransfer-Encoding: Chunked\r\nConnection: close , x-a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost:\r\nX-Text: caf\xc3\xa9 \t\r\nX-Empty:\t \r\n\r\n",
    b"\r\nGET /chat HTTP/1.1\r\nHost: [::1]:80\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n",
];
const RESPONSES: [&[u8]; 4] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\n",
    b"HTTP/1.1 503 \r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
    b"HTTP/1.0 200\r\nConnection: keep-alive\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
];
const CHUNKED: [&[u8]; 4] = [
    b"5\r\nhello\r\n0\r\n\r\n",
    b"3;a=\"b c\"\r\nhel\r\n0002; x\r\nlo\r\n000\r\n\r\n",
    b"1\r\nh\r\n4\r\nello\r\n0;end\r\nX-Sum: 1\r\nX-Empty:\r\n\r\n",
    b"0\r\n\r\n",
];

fn request(text: &[u8]) -> Result<Option<RequestHead<'_>>, Malformed> {
    parse_request(text, &LIMITS)
}

fn accepted(text: &[u8]) -> RequestHead<'_> {
    let head = request(text).unwrap_or_else(|e| panic!("{e:?}: {}", text.escape_ascii()));
    head.unwrap_or_else(|| panic!("incomplete: {}", text.escape_ascii()))
}

#[track_caller]
fn refused(status: u16, text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    match request(text) {
        Err(malformed) if malformed.status == status => {}
        other => panic!("wanted {status} for {}, got {other:?}", text.escape_ascii()),
    }
}

/// A POST with these header lines beside Host.
fn post(lines: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n")
}

fn response(text: &[u8]) -> Result<Option<ResponseHead<'_>>, Malformed> {
    parse_response(text, false, &LIMITS)
}

fn decode_all(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, usize, bool), Malformed> {
    let (mut body, mut out, mut taken) = (Body::new(framing, LIMITS.body_bytes_max), Vec::new(), 0);
    for piece in pieces {
        taken += body.decode(piece, &mut out)?;
    }
    Ok((out, taken, body.is_done()))
}

fn chunks_refused(status: u16, text: &[u8]) {
    match decode_all(Framing::Chunked, &[text]) {
        Err(malformed) if malformed.status == status => {}
        other => panic!("wanted {status} for {}, got {other:?}", text.escape_ascii()),
    }
}

#[test]
fn a_head_is_taken_apart() {
    let head = accepted(b"POST /a?b HTTP/1.1\r\nHost: h:1\r\nContent-Type: a/b \r\ncontent-length: 3\r\n\r\nabcGET");
    assert_eq!((head.method, head.target, head.host, head.http11), ("POST", "/a?b", "h:1", true));
    assert_eq!((head.framing, head.keep_alive, head.content_type), (Framing::Length(3), true, Some("a/b")));
    assert_eq!(head.headers_bytes, b"Host: h:1\r\nContent-Type: a/b \r\ncontent-length: 3\r\n");
    assert_eq!(head.len, 20 + head.headers_bytes.len() + 2);
    let bare = accepted(b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!((bare.headers_bytes, bare.framing, bare.keep_alive, bare.host), (&b""[..], Framing::Empty, false, ""));
}

#[test]
fn every_prefix_of_a_head_is_incomplete() {
    for text in REQUESTS {
        for end in 0..text.len() {
            assert!(matches!(request(&text[..end]), Ok(None)), "{}", text[..end].escape_ascii());
        }
        assert_eq!(accepted(text).len, text.len());
        assert_eq!(accepted(&[text, b"GET\n\0"].concat()).len, text.len());
    }
    for text in RESPONSES {
        for end in 0..text.len() {
            assert!(matches!(response(&text[..end]), Ok(None)), "{}", text[..end].escape_ascii());
        }
        assert_eq!(response(text).unwrap().unwrap().len, text.len());
    }
}

#[test]
fn a_head_over_the_limit_is_431_complete_or_not() {
    let fits = |bytes: usize| format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(bytes - 32));
    assert_eq!(accepted(fits(4096).as_bytes()).len, 4096);
    refused(431, fits(4097));
    refused(431, &fits(9000).as_bytes()[..4096]);
    assert!(matches!(request(&fits(9000).as_bytes()[..4095]), Ok(None)));
    refused(431, format!("GET / HTTP/1.1\r\nHost: x\r\n{}", "A: b\r\n".repeat(900)));
}

#[test]
fn a_request_line_over_the_limit_is_414() {
    refused(414, format!("GET /{}", "a".repeat(4096)));
    refused(414, format!("\r\nGET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(4096)));
    refused(414, "A".repeat(4096));
    assert!(matches!(request("A".repeat(4095).as_bytes()), Ok(None)));
}

#[test]
fn too_many_header_lines_are_431() {
    let with = |count: usize| format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(count - 1));
    accepted(with(32).as_bytes());
    refused(431, with(33));
    let unbounded = Limits { headers_max: usize::MAX, ..LIMITS };
    assert!(parse_request(with(256).as_bytes(), &unbounded).is_ok());
    assert_eq!(parse_request(with(257).as_bytes(), &unbounded).unwrap_err().status, 431);
}

#[test]
fn a_bare_line_feed_anywhere_in_a_head_is_400() {
    for text in REQUESTS {
        for at in (1..text.len()).filter(|&at| text[at] == b'\n') {
            let bare = [&text[..at - 1], &text[at..]].concat();
            refused(400, &bare);
            refused(400, &bare[..at]); // at once, without waiting for the rest
        }
    }
    for text in RESPONSES {
        for at in (1..text.len()).filter(|&at| text[at] == b'\n') {
            let bare = [&text[..at - 1], &text[at..]].concat();
            assert_eq!(response(&bare).unwrap_err().status, 502);
            assert_eq!(response(&bare[..at]).unwrap_err().status, 502);
        }
    }
}

#[test]
fn a_bare_carriage_return_is_400() {
    refused(400, "GET /\r HTTP/1.1\r\nHost: x\r\n\r\n");
    refused(400, "GET / HTTP/1.1\rHost: x\r\n\r\n");
    refused(400, post("A: b\rC: d"));
    refused(400, post("A: b\r\r"));
    refused(400, "\rGET / HTTP/1.1\r\nHost: x\r\n\r\n");
}

#[test]
fn a_folded_line_is_400() {
    refused(400, post("A: b\r\n c"));
    refused(400, post("A: b\r\n\tc"));
    refused(400, "GET / HTTP/1.1\r\n Host: x\r\n\r\n");
    assert_eq!(response(b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n").unwrap_err().status, 502);
}

#[test]
fn a_nul_or_control_byte_is_400_wherever_it_stands() {
    for text in REQUESTS {
        for at in 0..text.len() {
            for byte in [0, 1, 0x0b, 0x7f] {
                let mut text = text.to_vec();
                text[at] = byte;
                // In place of the final LF or CR too: the head is then wrong, not incomplete.
                refused(400, text);
            }
        }
    }
}

#[test]
fn white_space_before_the_colon_or_an_empty_name_is_400() {
    refused(400, post("A : b"));
    refused(400, post("A\t: b"));
    refused(400, post("Content-Length : 3"));
    refused(400, post(": b"));
    refused(400, post("no colon"));
    refused(400, post("A(b): c"));
    refused(400, post("Caf\u{e9}: c"));
}

#[test]
fn content_length_beside_transfer_encoding_is_400() {
    refused(400, post("Content-Length: 3\r\nTransfer-Encoding: chunked"));
    refused(400, post("Transfer-Encoding: chunked\r\nContent-Length: 0"));
    refused(400, post("Transfer-Encoding: chunked\r\nContent-Length: 999999"));
    refused(400, post("Transfer-Encoding: gzip, chunked\r\nContent-Length: 3"));
}

#[test]
fn a_content_length_that_is_not_one_number_is_400() {
    for value in ["", "5, 5", "5,5", "+5", "-5", "5a", "0x5", "5 5", "5.0", "\u{665}", "18446744073709551616"] {
        refused(400, post(&format!("Content-Length: {value}")));
    }
    refused(400, post("Content-Length: 5\r\nContent-Length: 5"));
    refused(400, post("Content-Length: 5\r\ncontent-length: 6"));
    assert_eq!(accepted(post("Content-Length:\t 005 ").as_bytes()).framing, Framing::Length(5));
    assert_eq!(accepted(post("Content-Length: 0").as_bytes()).framing, Framing::Length(0));
}

#[test]
fn a_content_length_over_the_bound_is_413() {
    assert_eq!(accepted(post("Content-Length: 1000").as_bytes()).framing, Framing::Length(1000));
    refused(413, post("Content-Length: 1001"));
    refused(413, post("Content-Length: 18446744073709551615"));
}

#[test]
fn transfer_encoding_in_http_1_0_is_400() {
    refused(400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
    refused(400, "POST / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nTransfer-Encoding: identity\r\n\r\n");
}

#[test]
fn an_unknown_transfer_coding_is_501_and_an_unending_one_400() {
    assert_eq!(accepted(post("Transfer-Encoding:\tCHUNKED ").as_bytes()).framing, Framing::Chunked);
    refused(501, post("Transfer-Encoding: gzip, chunked"));
    refused(501, post("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"));
    for value in ["chunked, gzip", "chunked, chunked", "gzip", "identity", "xchunked", "chunked;a=b", "\"chunked\""] {
        refused(400, post(&format!("Transfer-Encoding: {value}")));
    }
    for value in ["", ",", "chunked,", ",chunked", "chunked\x0b", "\x0cchunked", "chunk ed"] {
        refused(400, post(&format!("Transfer-Encoding: {value}")));
    }
    refused(400, post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"));
    refused(400, post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"));
    refused(400, post("Transfer-Encoding: chunked\r\nTransfer-Encoding:"));
}

#[test]
fn http_1_1_needs_exactly_one_valid_host() {
    refused(400, "GET / HTTP/1.1\r\n\r\n");
    refused(400, "GET http://x/ HTTP/1.1\r\n\r\n");
    refused(400, post("Host: x"));
    refused(400, "GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n");
    for value in ["a b", "a/b", "a@b", "a#b", "a?b", "a\\b", "<a>", "caf\u{e9}", "a, b"] {
        refused(400, format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n"));
    }
    for value in ["", "a", "a.b:80", "[::1]:80", "127.0.0.1", "a_b", "%41"] {
        assert_eq!(accepted(format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n").as_bytes()).host, value);
    }
}

#[test]
fn another_version_is_505_and_what_is_no_version_400() {
    for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/3.0", "HTTP/2", "HTTP/9.9"] {
        refused(505, format!("GET / {version}\r\nHost: x\r\n\r\n"));
    }
    for version in ["http/1.1", "HTTPS/1.1", "HTTP/1.10", "HTTP/1,1", "HTTP /1.1", "ICE/1.0", "HTTP/11", "HTTP/1.1 "] {
        refused(400, format!("GET / {version}\r\nHost: x\r\n\r\n"));
    }
    refused(400, "GET /\r\n\r\n"); // HTTP/0.9
    refused(400, "GET /  HTTP/1.1\r\nHost: x\r\n\r\n");
    refused(400, "GET  / HTTP/1.1\r\nHost: x\r\n\r\n");
    refused(400, "GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n");
}

#[test]
fn the_http_2_preface_is_505() {
    refused(505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    refused(505, "PRI * HTTP/2");
    assert!(matches!(request(b"PRI * HTTP/"), Ok(None)));
}

#[test]
fn an_absolute_target_is_reduced_to_its_path() {
    let of = |target: &str| {
        let text = format!("GET {target} HTTP/1.1\r\nHost: other\r\n\r\n");
        request(text.as_bytes()).map(|head| head.map(|head| (head.target.to_owned(), head.host.to_owned())))
    };
    let reduced = |path: &str, host: &str| Ok(Some((path.to_owned(), host.to_owned())));
    assert_eq!(of("http://h:1/a?b"), reduced("/a?b", "h:1"));
    assert_eq!(of("HTTPS://h"), reduced("/", "h"));
    assert_eq!(of("http://h/?u=http://x"), reduced("/?u=http://x", "h"));
    assert_eq!(of("/?u=http://x"), reduced("/?u=http://x", "other"));
    assert_eq!(of("//h/a"), reduced("//h/a", "other"));
    for target in
        ["http://", "http:///a", "http://u@h/", "http://h?q", "ftp://h/", "http:/a", "a", "a/b", "?a", "://h/"]
    {
        assert_eq!(of(target).unwrap_err().status, 400, "{target}");
    }
}

#[test]
fn an_asterisk_is_only_for_options() {
    assert_eq!(accepted(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").target, "*");
    refused(400, "GET * HTTP/1.1\r\nHost: x\r\n\r\n");
    refused(400, "options * HTTP/1.1\r\nHost: x\r\n\r\n");
    refused(400, "OPTIONS ** HTTP/1.1\r\nHost: x\r\n\r\n");
}

#[test]
fn connect_is_501() {
    refused(501, "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n");
    refused(501, "CONNECT / HTTP/1.0\r\n\r\n");
}

#[test]
fn a_fragment_or_a_byte_that_is_not_visible_ascii_in_the_target_is_400() {
    for byte in (0..=b' ').chain([b'#']).chain(0x7f..=0xff) {
        refused(400, [b"GET /a", &[byte][..], b"b HTTP/1.1\r\nHost: x\r\n\r\n"].concat());
    }
    refused(400, "GET /caf\u{e9} HTTP/1.1\r\nHost: x\r\n\r\n");
}

#[test]
fn two_empty_lines_before_a_request_are_skipped_and_counted() {
    let text = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for blank in 0..=2 {
        let text = "\r\n".repeat(blank) + text;
        assert_eq!(accepted(text.as_bytes()).len, text.len());
    }
    refused(400, "\r\n\r\n\r\n".to_owned() + text);
    refused(400, "\r\n\r\n\r");
    refused(400, "\n".to_owned() + text);
}

#[test]
fn what_cannot_start_a_request_is_400_at_once() {
    for first in [0x16, 0, b' ', b'\n', b'\t', 0x80, 0xff, b'{', b'"', b':'] {
        refused(400, [first]);
    }
    refused(400, b"\r\n\x16");
    refused(400, b"\rX");
}

#[test]
fn keep_alive_follows_version_and_connection_options() {
    let keeps = |version: &str, lines: &str| {
        accepted(format!("GET / HTTP/1.{version}\r\nHost: x\r\n{lines}\r\n").as_bytes()).keep_alive
    };
    assert!(keeps("1", ""));
    assert!(keeps("1", "Connection: x-close, closed\r\n"));
    assert!(!keeps("1", "Connection: Close\r\n"));
    assert!(!keeps("1", "Connection: keep-alive\r\nconnection: a,,CLOSE ,b\r\n"));
    assert!(!keeps("0", ""));
    assert!(keeps("0", "Connection: a, Keep-Alive\r\n"));
    assert!(!keeps("0", "Connection: keep-alive\r\nConnection: close\r\n"));
}

#[test]
fn too_many_connection_options_are_400() {
    accepted(post(&format!("Connection: {}", ["a"; 16].join(","))).as_bytes());
    refused(400, post(&format!("Connection: {}", ["a"; 17].join(","))));
    refused(400, post(["Connection: a, b"; 9].join("\r\n").as_str()));
}

#[test]
fn only_100_continue_is_expected_and_only_in_http_1_1() {
    assert!(accepted(post("Content-Length: 5\r\nExpect: 100-Continue").as_bytes()).expect_continue);
    assert!(accepted(post("Transfer-Encoding: chunked\r\nExpect: 100-continue").as_bytes()).expect_continue);
    assert!(!accepted(post("Content-Length: 0\r\nExpect: 100-continue").as_bytes()).expect_continue);
    let old = b"POST / HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    assert!(!accepted(old).expect_continue);
    refused(417, post("Expect: tea"));
    refused(417, post("Expect: 100-continue, tea"));
    refused(417, post("Expect: 100-continue\r\nExpect:"));
}

#[test]
fn two_content_types_are_400() {
    refused(400, post("Content-Type: text/plain\r\nContent-Type: application/json"));
    assert_eq!(accepted(post("Content-Type: caf\u{e9}").as_bytes()).content_type, None);
}

#[test]
fn a_response_is_framed_by_status_method_and_headers() {
    let framed = |status: u16, lines: &str, request_was_head: bool| {
        let text = format!("HTTP/1.1 {status} X\r\n{lines}\r\n");
        parse_response(text.as_bytes(), request_was_head, &LIMITS).map(|head| head.unwrap().framing)
    };
    assert_eq!(framed(200, "", false), Ok(Framing::UntilClose));
    assert_eq!(framed(200, "Content-Length: 5\r\n", false), Ok(Framing::Length(5)));
    assert_eq!(framed(200, "Transfer-Encoding: chunked\r\n", false), Ok(Framing::Chunked));
    assert_eq!(framed(200, "Content-Length: 99999\r\n", true), Ok(Framing::Empty));
    for status in [100, 103, 204, 304] {
        assert_eq!(framed(status, "Content-Length: 5\r\n", false), Ok(Framing::Empty));
    }
    for lines in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: 1001\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
    ] {
        assert_eq!(framed(200, lines, false).unwrap_err().status, 502, "{lines}");
    }
}

#[test]
fn a_response_keeps_the_connection_only_if_it_ends_by_itself() {
    let keeps = |text: &str| response(format!("{text}\r\n\r\n").as_bytes()).unwrap().unwrap().keep_alive;
    assert!(keeps("HTTP/1.1 200 OK\r\nContent-Length: 0"));
    assert!(keeps("HTTP/1.1 204 No Content"));
    assert!(!keeps("HTTP/1.1 200 OK"));
    assert!(!keeps("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close"));
    assert!(!keeps("HTTP/1.0 200 OK\r\nContent-Length: 0"));
    assert!(keeps("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive"));
    assert!(!keeps("HTTP/1.1 101 Switching Protocols"));
}

#[test]
fn a_bad_response_is_502_whatever_is_wrong() {
    for text in [
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "X",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 099 X\r\n\r\n",
        "HTTP/1.1 600 X\r\n\r\n",
        "HTTP/1.1 2000 X\r\n\r\n",
        "HTTP/1.1  200 X\r\n\r\n",
        "HTTP/1.1 200 X\0\r\n\r\n",
        "HTTP/1.1 200 X\r\nA : b\r\n\r\n",
        "HTTP/1.0 200 X\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        assert_eq!(response(text.as_bytes()).unwrap_err().status, 502, "{text}");
    }
    assert_eq!(response(format!("HTTP/1.1 200 {}", "a".repeat(4096)).as_bytes()).unwrap_err().status, 502);
    let lines = "A: b\r\n".repeat(33);
    assert_eq!(response(format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes()).unwrap_err().status, 502);
    let head = response(b"HTTP/1.1 200 caf\xe9\r\n\r\n").unwrap().unwrap();
    assert_eq!((head.status, head.headers_bytes), (200, &b""[..]));
}

#[test]
fn header_lines_are_trimmed_and_found_in_any_case() {
    let head = accepted(REQUESTS[4]);
    let lines: Vec<_> = header_lines(head.headers_bytes).collect();
    assert_eq!(lines, [(&b"Host"[..], &b""[..]), (b"X-Text", "caf\u{e9}".as_bytes()), (b"X-Empty", b"")]);
    assert_eq!(header(head.headers_bytes, "x-text"), Some("caf\u{e9}".as_bytes()));
    assert_eq!(header(head.headers_bytes, "x-tex"), None);
    assert_eq!(header_lines(b"\r\nno colon\r\na:b").collect::<Vec<_>>(), [(&b"a"[..], &b"b"[..])]);
    let long = "A: 0123456789abcdefghijklmnopqrstuvwxyz\r\nB-and-a-long-name-too:: :\r\nC: \r\n";
    let values: Vec<_> = header_lines(long.as_bytes()).map(|(_, value)| value.len()).collect();
    assert_eq!(values, [36, 3, 0]);
}

#[test]
fn only_end_to_end_lines_are_copied() {
    let lines = b"Host: x\r\nCONNECTION: close, X-Hop\r\nConnection: x-two\r\nx-hop: 1\r\nX-Two: 2\r\nKeep-Alive: 5\r\n\
        Proxy-Connection: a\r\nProxy-Authorization: Basic x\r\nProxy-Authenticate: Basic\r\nTE: trailers\r\nTrailer: a\r\n\
        Transfer-Encoding: chunked\r\nUpgrade: h2c\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\
        Authorization:Bearer y\t\r\nX-Hops: stays\r\nX-Drop: me\r\n";
    let mut out = b"> ".to_vec();
    copy_end_to_end(lines, |name| name.eq_ignore_ascii_case(b"x-drop"), &mut out);
    assert_eq!(out.escape_ascii().to_string(), "> Host: x\\r\\nAuthorization: Bearer y\\r\\nX-Hops: stays\\r\\n");
}

#[test]
fn a_body_of_known_length_ends_there() {
    assert_eq!(decode_all(Framing::Length(5), &[b"hel", b"", b"loGET"]), Ok((b"hello".to_vec(), 5, true)));
    assert_eq!(decode_all(Framing::Length(5), &[b"hell"]), Ok((b"hell".to_vec(), 4, false)));
    assert_eq!(decode_all(Framing::Length(0), &[b"GET"]), Ok((vec![], 0, true)));
    assert_eq!(decode_all(Framing::Empty, &[b"GET"]), Ok((vec![], 0, true)));
}

#[test]
fn a_close_ends_only_a_body_that_waits_for_it() {
    let mut body = Body::new(Framing::UntilClose, 10);
    let mut out = Vec::new();
    assert_eq!(body.decode(b"hello", &mut out), Ok(5));
    assert!(!body.is_done());
    assert_eq!(body.closed(), Ok(()));
    assert!(body.is_done());
    assert_eq!(body.decode(b"x", &mut out), Ok(0));
    assert_eq!(Body::new(Framing::Empty, 10).closed(), Ok(()));
    assert_eq!(Body::new(Framing::Length(1), 10).closed().unwrap_err().status, 400);
    assert_eq!(Body::new(Framing::Chunked, 10).closed().unwrap_err().status, 400);
}

#[test]
fn any_split_of_a_chunked_body_decodes_to_the_same() {
    for text in CHUNKED {
        let followed = [text, b"GET"].concat();
        let whole = decode_all(Framing::Chunked, &[&followed]).unwrap();
        assert_eq!((whole.1, whole.2), (text.len(), true));
        for at in 0..=text.len() {
            let (out, taken, done) = decode_all(Framing::Chunked, &[&text[..at], &followed[at..]]).unwrap();
            assert_eq!((&out, taken, done), (&whole.0, text.len(), true));
            let (out, taken, done) = decode_all(Framing::Chunked, &[&text[..at]]).unwrap();
            assert_eq!((taken, done), (at, at == text.len()), "{}", text[..at].escape_ascii());
            assert!(whole.0.starts_with(&out));
        }
        let bytes: Vec<_> = text.chunks(1).collect();
        assert_eq!(decode_all(Framing::Chunked, &bytes).unwrap(), whole);
    }
    assert_eq!(decode_all(Framing::Chunked, &[CHUNKED[1]]).unwrap().0, b"hello");
    assert_eq!(decode_all(Framing::Chunked, &[CHUNKED[2]]).unwrap().0, b"hello");
}

#[test]
fn a_bad_chunk_size_is_400() {
    for text in [
        "\r\n", ";a\r\n", "g\r\n", "0x5\r\n", "-1\r\n", "+1\r\n", " 5\r\n", "5 5\r\n", "5 \r\n", "5 ;a\r\n", "5\rx",
        "\0",
    ] {
        chunks_refused(400, text.as_bytes());
    }
    chunks_refused(400, b"00000000000000005\r\n"); // 17 digits
    chunks_refused(413, b"0fffffffffffffff\r\n");
    chunks_refused(413, b"ffffffffffffffff\r\n");
}

#[test]
fn a_bare_line_feed_in_a_chunked_body_is_400() {
    for text in CHUNKED {
        for at in (1..text.len()).filter(|&at| text[at] == b'\n') {
            chunks_refused(400, &[&text[..at - 1], &text[at..]].concat());
        }
    }
    chunks_refused(400, b"5;a\nb\r\nhello\r\n0\r\n\r\n");
}

#[test]
fn chunk_data_without_its_end_of_line_is_400() {
    chunks_refused(400, b"5\r\nhello0\r\n\r\n");
    chunks_refused(400, b"5\r\nhello!\r\n0\r\n\r\n");
    chunks_refused(400, b"5\r\nhello\rx");
    chunks_refused(400, b"4\r\nhello\r\n0\r\n\r\n");
}

#[test]
fn chunk_extensions_are_bounded_by_line_and_by_message() {
    let line = |bytes: usize| format!("1;{}\r\nx\r\n", "a".repeat(bytes - 2));
    assert!(decode_all(Framing::Chunked, &[line(256).as_bytes()]).is_ok());
    chunks_refused(400, line(257).as_bytes());
    chunks_refused(400, &line(9000).as_bytes()[..300]);
    chunks_refused(400, b"5;a\0\r\n");
    assert!(decode_all(Framing::Chunked, &[line(256).repeat(64).as_bytes()]).is_ok());
    chunks_refused(400, line(256).repeat(65).as_bytes());
}

#[test]
fn trailers_are_dropped_when_valid_and_short() {
    let with = |trailers: &str| format!("5\r\nhello\r\n0\r\n{trailers}\r\n");
    let long = format!("A: {}\r\n", "b".repeat(8192 - 5));
    for trailers in ["", "A: b\r\n", "A:\r\nContent-Length: 7\r\n", &long] {
        let text = with(trailers);
        assert_eq!(decode_all(Framing::Chunked, &[text.as_bytes()]), Ok((b"hello".to_vec(), text.len(), true)));
    }
    for trailers in
        ["A : b\r\n", ": b\r\n", "A\r\n", "A: b\r\n c\r\n", " A: b\r\n", "A: \0\r\n", "A: b\rc\r\n", "\rx", "\n"]
    {
        chunks_refused(400, with(trailers).as_bytes());
    }
    chunks_refused(400, with(&format!("A: {}\r\n", "b".repeat(8192 - 4))).as_bytes());
    chunks_refused(400, with(&"A: b\r\n".repeat(8192 / 6 + 1)).as_bytes());
}

#[test]
fn a_body_over_the_bound_is_413_before_its_bytes_are_taken() {
    for (framing, text) in [
        (Framing::Length(1001), "x".to_owned()),
        (Framing::Chunked, "3e9\r\n".to_owned()),
        (Framing::UntilClose, "x".repeat(1001)),
    ] {
        let mut out = Vec::new();
        assert_eq!(Body::new(framing, 1000).decode(text.as_bytes(), &mut out).unwrap_err().status, 413);
        assert!(out.is_empty());
    }
    chunks_refused(413, format!("3e8\r\n{}\r\n1\r\n", "x".repeat(1000)).as_bytes());
    let full = format!("3E8\r\n{}\r\n0\r\n\r\n", "x".repeat(1000));
    assert_eq!(decode_all(Framing::Chunked, &[full.as_bytes()]).unwrap().0.len(), 1000);
    assert!(decode_all(Framing::UntilClose, &["x".repeat(1000).as_bytes()]).is_ok());
}

#[test]
fn what_is_written_can_be_read() {
    let mut out = Vec::new();
    write_status_line(&mut out, 200);
    write_header(&mut out, "Content-Type", b"text/plain");
    write_header(&mut out, "Transfer-Encoding", b"chunked");
    out.extend_from_slice(b"\r\n");
    let head = response(&out).unwrap().unwrap();
    assert_eq!((head.status, head.framing), (200, Framing::Chunked));
    let mut body = Vec::new();
    for payload in [&b"hello"[..], b"", &[b'x'; 300]] {
        write_chunk(&mut body, payload);
    }
    assert!(body.starts_with(b"5\r\nhello\r\n12c\r\nxxx"));
    write_last_chunk(&mut body, b"");
    let (payload, taken, done) = decode_all(Framing::Chunked, &[&body]).unwrap();
    assert_eq!((payload.len(), taken, done), (305, body.len(), true));
}

#[test]
fn a_written_header_stays_one_line() {
    let mut out = Vec::new();
    write_header(&mut out, "X-A\r\n: b", b"c\r\nEvil: 1\n\0d\xc3\xa9\t.");
    assert_eq!(out, b"X-Ab: c  Evil: 1  d\xc3\xa9\t.\r\n");
    out.clear();
    write_header(&mut out, "\r\n", b"x");
    assert_eq!(out, b"");
}

#[test]
fn numbers_and_statuses_are_written_in_full() {
    let mut out = Vec::new();
    for n in [0, 9, 10, 12345, u64::MAX] {
        write_length(&mut out, n);
    }
    let lines = String::from_utf8(out).unwrap();
    let numbers: Vec<_> = lines.lines().map(|line| line.strip_prefix("Content-Length: ").unwrap()).collect();
    assert_eq!(numbers, ["0", "9", "10", "12345", "18446744073709551615"]);
    for (status, line) in [(299, "299 "), (404, "404 Not Found"), (7, "500 Internal Server Error")] {
        let mut out = Vec::new();
        write_status_line(&mut out, status);
        assert_eq!(out, format!("HTTP/1.1 {line}\r\n").as_bytes());
    }
}

/// Xorshift64: enough to vary messages, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn no_mutated_message_panics_or_is_taken_beyond_its_end() {
    const SPICE: [&[u8]; 12] = [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b":",
        b" ",
        b",",
        b"chunked",
        b"Content-Length: 1\r\n",
        b"0\r\n\r\n",
        b"\xff",
        b"f",
    ];
    let seeds: Vec<&[u8]> = [&REQUESTS[..], &RESPONSES, &CHUNKED].concat();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut heads, mut bodies) = (0, 0);
    for _ in 0..20_000 {
        let mut text = seeds[dice.below(seeds.len())].to_vec();
        text.extend_from_slice(CHUNKED[dice.below(CHUNKED.len())]);
        for _ in 0..dice.below(4) {
            let at = dice.below(text.len());
            match dice.below(4) {
                0 => text[at] = dice.below(256) as u8,
                1 if text.len() > 1 => drop(text.remove(at)),
                2 => text.truncate(at + 1),
                _ => drop(text.splice(at..at, SPICE[dice.below(SPICE.len())].iter().copied())),
            }
        }
        let mut parsed = None;
        if let Ok(Some(head)) = request(&text) {
            assert!(!has_bare_lf(&text[..head.len]) && !text[..head.len].contains(&0));
            assert!(head.target.starts_with('/') || head.target == "*");
            parsed = Some((head.len, head.headers_bytes, head.framing));
        } else if let Ok(Some(head)) = response(&text) {
            assert!(!has_bare_lf(&text[..head.len]) && !text[..head.len].contains(&0));
            parsed = Some((head.len, head.headers_bytes, head.framing));
        }
        let (start, headers_bytes, framing) = parsed.unwrap_or((0, b"", Framing::Chunked));
        assert!(start <= text.len() && headers_bytes.len() <= start);
        let mut copied = Vec::new();
        copy_end_to_end(headers_bytes, |_| false, &mut copied);
        assert_eq!(header(&copied, "transfer-encoding"), None);

        let input = &text[start..];
        let split = dice.below(input.len() + 1);
        let whole = decode_all(framing, &[input]);
        let pieces = {
            let (mut body, mut out) = (Body::new(framing, LIMITS.body_bytes_max), Vec::new());
            body.decode(&input[..split], &mut out).and_then(|first| {
                assert!(first == split || body.is_done());
                let second = body.decode(&input[first..], &mut out)?;
                assert!(first + second <= input.len() && out.len() <= first + second);
                Ok((out, first + second, body.is_done()))
            })
        };
        assert_eq!(pieces, whole, "{}", text.escape_ascii());
        heads += parsed.is_some() as usize;
        bodies += whole.is_ok() as usize;
    }
    assert!(heads > 2000 && bodies > 2000, "the mutations are too wild to reach the decoders: {heads} {bodies}");
}

#[test]
fn a_wait_is_told_in_seconds_or_as_a_time_of_day_after_the_date_of_the_answer() {
    let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    for (lines, seconds) in [
        ("Retry-After: 120\r\n".to_owned(), Some(120)),
        ("retry-after:0\r\n".to_owned(), Some(0)),
        (format!("Retry-After: {}\r\n", "9".repeat(30)), Some(u64::MAX)),
        (format!("{date}Retry-After: Sun, 06 Nov 1994 08:50:00 GMT\r\n"), Some(23)),
        (format!("{date}Retry-After: Sunday, 06-Nov-94 08:49:38 GMT\r\n"), Some(1)),
        (format!("{date}Retry-After: Sun, 06 Nov 1994 08:00:00 GMT\r\n"), Some(0)),
        ("Retry-After: Sun, 06 Nov 1994 08:50:00 GMT\r\n".to_owned(), None),
        (format!("{date}Retry-After: soon\r\n"), None),
        ("Retry-After:\r\n".to_owned(), None),
        ("Retry-After: -1\r\n".to_owned(), None),
        (date.to_owned(), None),
    ] {
        assert_eq!(retry_after(lines.as_bytes()), seconds.map(Duration::from_secs), "{lines}");
    }
}

#[test]
fn trailers_come_out_as_they_were_sent_whatever_the_pieces() {
    let message = b"3\r\nabc\r\n0;x\r\nX-One: 1\r\nX-Two:\t2 \r\n\r\nNEXT";
    for piece in 1..=message.len() {
        let mut body = Body::new(Framing::Chunked, 100);
        let (mut out, mut trailers, mut taken) = (Vec::new(), Vec::new(), 0);
        for bytes in message.chunks(piece) {
            taken += body.decode_with_trailers(bytes, &mut out, &mut trailers).expect("it is sound");
        }
        assert_eq!(
            (out.as_slice(), trailers.as_slice()),
            (b"abc".as_slice(), b"X-One: 1\r\nX-Two:\t2 \r\n".as_slice())
        );
        assert_eq!((taken, body.is_done()), (message.len() - 4, true));
    }
}

#[test]
fn a_trailer_that_would_change_what_was_decided_is_not_passed_on() {
    let mut lines = b"X-Checksum: 1\r\nserver-timing: a\r\nX-Not: 1\r\n".to_vec();
    for name in [
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Trailer",
        "TE",
        "Host",
        "Authorization",
        "Cookie",
        "Set-Cookie",
        "If-Match",
        "Content-Type",
        "X-Forwarded-For",
        "Forwarded",
        "Proxy-Authorization",
        "Upgrade",
        "Location",
        "Demi-Instance",
    ] {
        lines.extend_from_slice(format!("{}: 1\r\n", name.to_ascii_lowercase()).as_bytes());
        lines.extend_from_slice(format!("{name}: 2\r\n").as_bytes());
    }
    let mut out = Vec::new();
    copy_trailers(&lines, |name| name.eq_ignore_ascii_case(b"x-not"), &mut out);
    assert_eq!(out, b"X-Checksum: 1\r\nserver-timing: a\r\n");
}

#[test]
fn a_body_that_turns_out_to_be_too_long_is_refused_when_that_is_known() {
    let decoded = |input: &[u8]| {
        let mut body = Body::new(if input[0] == b'L' { Framing::Length(100) } else { Framing::Chunked }, 1000);
        let input = input.strip_prefix(b"L").unwrap_or(input);
        body.decode(input, &mut Vec::new()).expect("it is sound so far");
        body
    };
    assert!(decoded(b"Labc").limit(97).is_ok());
    assert!(decoded(b"Labc").limit(96).is_err());
    assert!(decoded(b"10\r\nabc").limit(13).is_ok());
    assert!(decoded(b"10\r\nabc").limit(12).is_err());
    let mut body = decoded(b"3\r\nabc\r\n");
    assert!(body.limit(4).is_ok());
    assert!(body.decode(b"5\r\nabcde\r\n", &mut Vec::new()).is_err());
}

#[test]
fn a_service_says_how_it_wants_to_be_balanced_and_garbage_is_told() {
    for (headers, expected) in [
        ("", Ok((None, false))),
        ("demi-weight: 3\r\nDEMI-DRAIN: ?1\r\n", Ok((Some(3), true))),
        ("Demi-Weight: 1000\r\nDemi-Drain: ?0\r\n", Ok((Some(1_000), false))),
        ("Demi-Weight: 0\r\n", Err("Demi-Weight")),
        ("Demi-Weight: 1001\r\n", Err("Demi-Weight")),
        ("Demi-Weight: 99999999999999999999\r\n", Err("Demi-Weight")),
        ("Demi-Weight: +3\r\n", Err("Demi-Weight")),
        ("Demi-Weight:\r\n", Err("Demi-Weight")),
        ("Demi-Weight: 3\r\nDemi-Drain: yes\r\n", Err("Demi-Drain")),
        ("Demi-Drain:\r\n", Err("Demi-Drain")),
    ] {
        let told = report(headers.as_bytes());
        match (told, expected) {
            (Ok(told), Ok(expected)) => assert_eq!((told.weight, told.drain), expected, "{headers}"),
            (Err(why), Err(header)) => assert!(why.starts_with(header), "{headers}: {why}"),
            (told, _) => panic!("{headers}: {told:?}"),
        }
    }
}
