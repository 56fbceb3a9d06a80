//! Heads as they are passed on: what each side is told of the other, and what the route changes of that.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use demi_conductor::config::Proxy;
use demi_platform::Request;

use crate::http;
use crate::sticky::Cookie;

/// From whom a request that is passed on came to Demi.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hop {
    pub(crate) from: IpAddr,
    pub(crate) is_http11: bool,
    /// It offers to change protocols.
    pub(crate) upgrades: bool,
}

impl Hop {
    /// Whether there is a protocol that the service may be offered.
    pub(crate) fn offers(self, headers: &[u8]) -> bool {
        self.upgrades && offered(headers).next().is_some()
    }

    /// Whether what it says of hops before it is believed: only what runs on this machine is. Nothing else can connect as
    /// long as Demi listens on loopback alone.
    fn is_trusted(self) -> bool {
        self.from.is_loopback()
    }

    /// Whether the client spoke https with the first hop, as far as that can be believed.
    pub(crate) fn came_by_https(self, headers: &[u8]) -> bool {
        let first = |name| values(headers, name).flat_map(http::list).next();
        let protocol = first("x-forwarded-proto").or_else(|| {
            let parts = first("forwarded")?.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let mut named = parts.filter_map(|part| part.split_at_checked("proto=".len()));
            let value = named.find(|(name, _)| name.eq_ignore_ascii_case(b"proto="))?.1;
            Some(value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value))
        });
        self.is_trusted() && protocol.is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"https"))
    }
}

/// Appends the head of a request as this hop sends it, but for its framing and the empty line at its end. `hop`: whose
/// request it is, unless Demi made it itself. `cookie`: one that is Demi's own business.
pub(crate) fn write_request_head(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    address: SocketAddr,
    proxy: Option<&Proxy>,
    hop: Option<Hop>,
    cookie: Option<&Cookie>,
) {
    out.extend_from_slice(request.method.as_bytes());
    out.push(b' ');
    write_target(out, request.target, proxy);
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    let is_host_kept = proxy.is_none_or(|proxy| proxy.preserve_host) && !request.host.is_empty();
    if is_host_kept {
        out.extend_from_slice(request.host.as_bytes());
    } else {
        write_text(out, address);
    }
    out.extend_from_slice(b"\r\n");
    let replaces = |name: &[u8]| proxy.is_some_and(|proxy| proxy.replaces_in_request(name));
    let is_ours = |name: &[u8]| match name.len() {
        3 => hop.is_some() && name.eq_ignore_ascii_case(b"via"),
        4 => name.eq_ignore_ascii_case(b"host"),
        9 => hop.is_some() && name.eq_ignore_ascii_case(b"forwarded"),
        15..=18 => hop.is_some() && is_x_forwarded(name),
        _ => false,
    };
    let stripped = cookie.and_then(|cookie| cookie.without(request.headers));
    let headers = stripped.as_deref().unwrap_or(request.headers);
    http::copy_end_to_end(headers, |name| is_ours(name) || replaces(name), out);
    if request.headers.is_empty() && !request.content_type.is_empty() && !replaces(b"content-type") {
        http::write_header(out, "Content-Type", request.content_type.as_bytes());
    }
    if let Some(hop) = hop {
        let takes_trailers = |value: &[u8]| http::list(value).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
        if hop.is_http11 && values(request.headers, "te").any(takes_trailers) {
            out.extend_from_slice(b"Connection: TE\r\nTE: trailers\r\n");
        }
        write_way(out, request, proxy, hop, replaces);
    }
    for (name, value) in proxy.into_iter().flat_map(|proxy| &proxy.request_headers) {
        http::write_header(out, name, value.as_bytes());
    }
}

/// Appends what the head of a message in chunks says of its trailers.
pub(crate) fn write_announcement(out: &mut Vec<u8>, headers: &[u8]) {
    for value in values(headers, "trailer") {
        out.extend_from_slice(b"Trailer: ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends the end of a body in chunks with those of its trailers that its service may get.
pub(crate) fn write_request_end(out: &mut Vec<u8>, trailers: &[u8], proxy: Option<&Proxy>) {
    let mut passed = Vec::new();
    let replaces = |name: &[u8]| proxy.is_some_and(|proxy| proxy.replaces_in_request(name));
    http::copy_trailers(trailers, replaces, &mut passed);
    http::write_last_chunk(out, &passed);
}

/// Those trailers of an answer that its caller may get.
pub(crate) fn response_trailers(trailers: &[u8], proxy: Option<&Proxy>) -> Vec<u8> {
    let mut passed = Vec::new();
    let replaces = |name: &[u8]| proxy.is_some_and(|proxy| proxy.replaces_in_response(name));
    http::copy_trailers(trailers, replaces, &mut passed);
    passed
}

/// Appends the lines that offer the service the protocols that the client wants to speak.
pub(crate) fn write_offer(out: &mut Vec<u8>, headers: &[u8]) {
    out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: ");
    for (index, protocol) in offered(headers).enumerate() {
        out.extend_from_slice(if index > 0 { b", " } else { b"" });
        out.extend_from_slice(protocol);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the lines that tell the client which protocols are spoken from here on. False if the service chose none, or
/// one that it was not offered.
pub(crate) fn write_choice(out: &mut Vec<u8>, answer: &[u8], request: &[u8]) -> bool {
    let mut chosen = protocols(answer).peekable();
    if chosen.peek().is_none() {
        return false;
    }
    out.extend_from_slice(b"Connection: Upgrade\r\n");
    for protocol in chosen {
        if !offered(request).any(|offer| offer.eq_ignore_ascii_case(protocol)) {
            return false;
        }
        out.extend_from_slice(b"Upgrade: ");
        out.extend_from_slice(protocol);
        out.extend_from_slice(b"\r\n");
    }
    true
}

fn protocols(headers: &[u8]) -> impl Iterator<Item = &[u8]> {
    values(headers, "upgrade").flat_map(http::list).filter(|protocol| !protocol.is_empty())
}

/// The protocols of an offer that may be carried. HTTP itself, plain or in TLS, is not: the requests in such a tunnel would
/// pass by all routes, limits and rewritings ("h2c smuggling").
fn offered(headers: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_http = |protocol: &[u8]| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
        ["h2", "h2c", "h3", "http", "tls"].iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
    };
    protocols(headers).filter(move |protocol| !is_http(protocol))
}

/// Appends the end-to-end header lines of an upstream's answer as its caller gets them. `Date` is written anew.
pub(crate) fn write_response_lines(out: &mut Vec<u8>, head: &http::ResponseHead<'_>, proxy: Option<&Proxy>) {
    let replaces = |name: &[u8]| proxy.is_some_and(|proxy| proxy.replaces_in_response(name));
    let is_ours = |name: &[u8]| name.eq_ignore_ascii_case(b"date") || name.eq_ignore_ascii_case(b"via");
    http::copy_end_to_end(head.headers_bytes, |name| is_ours(name) || replaces(name), out);
    if head.framing == http::Framing::Chunked {
        write_announcement(out, head.headers_bytes);
    }
    write_via(out, head.headers_bytes, head.http11);
    for (name, value) in proxy.into_iter().flat_map(|proxy| &proxy.response_headers) {
        http::write_header(out, name, value.as_bytes());
    }
}

fn is_x_forwarded(name: &[u8]) -> bool {
    ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix"]
        .iter()
        .any(|known| http::is_same_name(name, known.as_bytes()))
}

/// The target without the prefix that the route strips, if it has it in whole segments.
fn write_target(out: &mut Vec<u8>, target: &str, proxy: Option<&Proxy>) {
    let prefix = proxy.and_then(|proxy| proxy.strip_prefix.as_deref());
    let rest = prefix.and_then(|prefix| target.strip_prefix(prefix));
    let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with(['/', '?'])).unwrap_or(target);
    if !rest.starts_with('/') && rest != "*" {
        out.push(b'/');
    }
    out.extend_from_slice(rest.as_bytes());
}

/// Over whom the request has come: what trusted hops before said, and the one that has just been made.
fn write_way(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    proxy: Option<&Proxy>,
    hop: Hop,
    replaces: impl Fn(&[u8]) -> bool,
) {
    let earlier = if hop.is_trusted() { request.headers } else { b"" };
    write_via(out, request.headers, hop.is_http11);
    if !replaces(b"forwarded") {
        write_forwarded(out, request.host, earlier, hop);
    }
    if !replaces(b"x-forwarded-for") {
        begin_list(out, "X-Forwarded-For", values(earlier, "x-forwarded-for"));
        write_text(out, hop.from);
        out.extend_from_slice(b"\r\n");
    }
    // Of these the first hop knew best.
    let kept = |name: &'static str| values(earlier, name).next();
    if !replaces(b"x-forwarded-proto") {
        http::write_header(out, "X-Forwarded-Proto", kept("x-forwarded-proto").unwrap_or(b"http"));
    }
    let host = kept("x-forwarded-host").unwrap_or(request.host.as_bytes());
    if !host.is_empty() && !replaces(b"x-forwarded-host") {
        http::write_header(out, "X-Forwarded-Host", host);
    }
    let before = kept("x-forwarded-prefix").unwrap_or_default();
    let stripped = proxy.and_then(|proxy| proxy.strip_prefix.as_deref()).unwrap_or_default();
    if !(before.is_empty() && stripped.is_empty() || replaces(b"x-forwarded-prefix")) {
        let prefix = [before.strip_suffix(b"/").unwrap_or(before), stripped.as_bytes()].concat();
        http::write_header(out, "X-Forwarded-Prefix", &prefix);
    }
}

/// The way as RFC 7239 tells it. Hops that were told of in `X-Forwarded-For` alone are told of here too (§7.4), so that a
/// service that believes `Forwarded` more does not take the last proxy for the client.
fn write_forwarded(out: &mut Vec<u8>, host: &str, earlier: &[u8], hop: Hop) {
    // Within an open quote everything behind it would belong to it.
    let is_closed = |value: &&[u8]| value.iter().filter(|byte| **byte == b'"').count() % 2 == 0;
    begin_list(out, "Forwarded", values(earlier, "forwarded").filter(is_closed));
    if values(earlier, "forwarded").next().is_none() {
        let nodes = values(earlier, "x-forwarded-for").flat_map(|value| value.split(|byte| *byte == b','));
        for node in nodes {
            let node = std::str::from_utf8(node).ok().and_then(|node| node.trim().parse().ok());
            write_node(out, node);
            out.extend_from_slice(b", ");
        }
    }
    write_node(out, Some(hop.from));
    if !host.is_empty() {
        // Of a host that was parsed no byte needs an escape.
        out.extend_from_slice(b";host=\"");
        out.extend_from_slice(host.as_bytes());
        out.push(b'"');
    }
    out.extend_from_slice(b";proto=http\r\n");
}

fn write_node(out: &mut Vec<u8>, node: Option<IpAddr>) {
    match node {
        Some(IpAddr::V4(address)) => write_text(out, format_args!("for={address}")),
        Some(IpAddr::V6(address)) => write_text(out, format_args!("for=\"[{address}]\"")),
        None => out.extend_from_slice(b"for=unknown"),
    }
}

fn write_via(out: &mut Vec<u8>, headers: &[u8], is_http11: bool) {
    begin_list(out, "Via", values(headers, "via"));
    out.extend_from_slice(if is_http11 { b"1.1 demi\r\n" } else { b"1.0 demi\r\n" });
}

/// Appends a header's name and what came before, ready for one element more.
fn begin_list<'v>(out: &mut Vec<u8>, name: &str, earlier: impl Iterator<Item = &'v [u8]>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    for value in earlier {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
}

/// The values of all lines with this name that say something.
fn values<'h>(headers: &'h [u8], name: &'static str) -> impl Iterator<Item = &'h [u8]> {
    let is_it = move |line: &(&[u8], &[u8])| line.0.eq_ignore_ascii_case(name.as_bytes()) && !line.1.is_empty();
    http::header_lines(headers).filter(is_it).map(|(_, value)| value)
}

fn write_text(out: &mut Vec<u8>, text: impl std::fmt::Display) {
    write!(out, "{text}").expect("a vector takes all that is written");
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: Request<'_> = Request {
        from: "http",
        kind: "",
        method: "GET",
        target: "/up/x?y=1",
        content_type: "",
        host: "named:80",
        headers: b"",
        body: b"",
    };

    fn head(request: &Request<'_>, proxy: Option<&Proxy>, from: &str) -> String {
        let mut out = Vec::new();
        let hop = Hop { from: from.parse().expect("it is an address"), is_http11: true, upgrades: false };
        let address = "127.0.0.1:3000".parse().expect("it is an address");
        write_request_head(&mut out, request, address, proxy, Some(hop), None);
        String::from_utf8(out).expect("it is text")
    }

    fn value<'h>(head: &'h str, name: &str) -> Option<&'h str> {
        let mut found = head.lines().filter_map(|line| line.split_once(": ")).filter(|(key, _)| *key == name);
        let value = found.next().map(|(_, value)| value);
        assert!(found.next().is_none(), "{name} is there twice: {head}");
        value
    }

    #[test]
    fn the_first_proxy_tells_who_asked_and_for_whom() {
        let head = head(&NAMED, None, "127.0.0.1");
        assert!(head.starts_with("GET /up/x?y=1 HTTP/1.1\r\nHost: named:80\r\n"), "{head}");
        assert_eq!(value(&head, "X-Forwarded-For"), Some("127.0.0.1"));
        assert_eq!(value(&head, "X-Forwarded-Proto"), Some("http"));
        assert_eq!(value(&head, "X-Forwarded-Host"), Some("named:80"));
        assert_eq!(value(&head, "Forwarded"), Some("for=127.0.0.1;host=\"named:80\";proto=http"));
        assert_eq!(value(&head, "Via"), Some("1.1 demi"));
        assert_eq!(value(&head, "X-Forwarded-Prefix"), None);
    }

    #[test]
    fn what_a_proxy_on_this_machine_said_before_is_kept_and_what_a_stranger_said_is_not() {
        let headers =
            b"x-forwarded-for: 192.0.2.7\r\nX-Forwarded-For: 2001:db8::1, bogus\r\nX-Forwarded-Proto: https\r\n\
            X-Forwarded-Host: far.example\r\nVia: 1.0 front\r\n";
        let request = Request { headers, ..NAMED };
        let known = head(&request, None, "::1");
        assert_eq!(value(&known, "X-Forwarded-For"), Some("192.0.2.7, 2001:db8::1, bogus, ::1"));
        assert_eq!(value(&known, "X-Forwarded-Proto"), Some("https"));
        assert_eq!(value(&known, "X-Forwarded-Host"), Some("far.example"));
        assert_eq!(value(&known, "Via"), Some("1.0 front, 1.1 demi"));
        let way = "for=192.0.2.7, for=\"[2001:db8::1]\", for=unknown, for=\"[::1]\";host=\"named:80\";proto=http";
        assert_eq!(value(&known, "Forwarded"), Some(way));
        let strange = head(&request, None, "192.0.2.1");
        assert_eq!(value(&strange, "X-Forwarded-For"), Some("192.0.2.1"));
        assert_eq!(value(&strange, "X-Forwarded-Proto"), Some("http"));
        assert_eq!(value(&strange, "X-Forwarded-Host"), Some("named:80"));
        assert_eq!(value(&strange, "Forwarded"), Some("for=192.0.2.1;host=\"named:80\";proto=http"));
    }

    #[test]
    fn a_protocol_that_would_carry_requests_past_the_routes_is_not_offered() {
        let hop = Hop { from: "127.0.0.1".parse().expect("it is an address"), is_http11: true, upgrades: true };
        let offer = b"Upgrade: h2c, WebSocket\r\nupgrade: , TLS/1.0\r\nUpgrade: HTTP/2.0, x/1\r\n";
        let mut out = Vec::new();
        write_offer(&mut out, offer);
        assert_eq!(out, b"Connection: Upgrade\r\nUpgrade: WebSocket, x/1\r\n");
        assert!(hop.offers(offer) && !hop.offers(b"Upgrade: h2c\r\n") && !hop.offers(b""));
        assert!(!Hop { upgrades: false, ..hop }.offers(offer));
        for (answer, is_right) in [
            (b"Upgrade: websocket\r\n".as_slice(), true),
            (b"Upgrade: h2c\r\n", false),
            (b"Upgrade: websocket, y\r\n", false),
            (b"X: 1\r\n", false),
        ] {
            assert_eq!(write_choice(&mut Vec::new(), answer, offer), is_right, "{answer:?}");
        }
    }

    #[test]
    fn a_quote_that_never_ends_does_not_swallow_this_hop() {
        let request = Request { headers: b"Forwarded: for=a\r\nForwarded: for=\"b\r\n", ..NAMED };
        let head = head(&request, None, "127.0.0.1");
        assert_eq!(value(&head, "Forwarded"), Some("for=a, for=127.0.0.1;host=\"named:80\";proto=http"));
    }

    #[test]
    fn a_prefix_is_stripped_and_told() {
        let proxy = Proxy { strip_prefix: Some("/up".to_owned()), preserve_host: false, ..Proxy::default() };
        for (target, sent) in
            [("/up/x?y=1", "/x?y=1"), ("/up", "/"), ("/up?y", "/?y"), ("/up/", "/"), ("/upper", "/upper"), ("", "/")]
        {
            let head = head(&Request { target, ..NAMED }, Some(&proxy), "127.0.0.1");
            assert!(head.starts_with(&format!("GET {sent} HTTP/1.1\r\nHost: 127.0.0.1:3000\r\n")), "{target}: {head}");
            assert_eq!(value(&head, "X-Forwarded-Prefix"), Some("/up"));
            assert_eq!(value(&head, "X-Forwarded-Host"), Some("named:80"));
        }
    }

    #[test]
    fn headers_are_set_and_removed_in_any_case_and_demis_own_too() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let proxy = Proxy {
            request_headers: [("X-User".to_owned(), "demi".to_owned())].into(),
            remove_request_headers: list(&["cookie", "forwarded", "X-FORWARDED-FOR"]),
            response_headers: [("Server".to_owned(), "demi".to_owned())].into(),
            remove_response_headers: list(&["X-Powered-By"]),
            ..Proxy::default()
        };
        let request = Request { headers: b"x-user: root\r\nCookie: a\r\ncookie: b\r\nX-Else: 1\r\n", ..NAMED };
        let head = head(&request, Some(&proxy), "127.0.0.1");
        assert_eq!(value(&head, "X-User"), Some("demi"));
        assert_eq!(value(&head, "X-Else"), Some("1"));
        for gone in ["x-user", "Cookie", "cookie", "Forwarded", "X-Forwarded-For"] {
            assert_eq!(value(&head, gone), None, "{head}");
        }
        let limits = http::Limits { head_bytes_max: 4096, headers_max: 16, body_bytes_max: 0 };
        let answer =
            b"HTTP/1.0 200 OK\r\nServer: x\r\nx-powered-by: y\r\nDate: z\r\nX-Far: 1\r\nContent-Length: 0\r\n\r\n";
        let answer = http::parse_response(answer, false, &limits).expect("it is sound").expect("it is whole");
        let mut out = Vec::new();
        write_response_lines(&mut out, &answer, Some(&proxy));
        assert_eq!(out, b"X-Far: 1\r\nVia: 1.0 demi\r\nServer: demi\r\n");
    }
}
