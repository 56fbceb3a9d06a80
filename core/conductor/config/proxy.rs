//! How a request that is passed on to an HTTP service is changed on its way there, and its answer on its way back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Mistakes, Route};

/// What a route to an `Http` platform changes of the messages that it passes on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxy {
    /// The beginning of the path that the service does not get to see; whole segments, and part of the route's `path`.
    pub strip_prefix: Option<String>,
    /// Whether the service is told the host that the client named, and not its own address.
    pub preserve_host: bool,
    /// Header lines that the service gets, in place of the client's of the same names.
    pub request_headers: BTreeMap<String, String>,
    /// Names of headers that the service does not get.
    pub remove_request_headers: Vec<String>,
    /// Header lines that the client gets, in place of the service's of the same names.
    pub response_headers: BTreeMap<String, String>,
    /// Names of headers that the client does not get.
    pub remove_response_headers: Vec<String>,
}

impl Default for Proxy {
    fn default() -> Self {
        Proxy {
            strip_prefix: None,
            preserve_host: true,
            request_headers: BTreeMap::new(),
            remove_request_headers: Vec::new(),
            response_headers: BTreeMap::new(),
            remove_response_headers: Vec::new(),
        }
    }
}

/// Most entries of each list of headers; every message is compared with each.
pub const PROXY_HEADERS_MAX: usize = 64;
/// Longest value of a header that a route sets, bytes.
const VALUE_BYTES_MAX: usize = 4096;

/// Headers that say where a message ends or what becomes of its connection: a second opinion on either is how a request is
/// smuggled, so that no route has a say in them. `Via` is among them because a proxy must not hide (RFC 9110 §7.6.3).
const OWN_HEADERS: [&str; 13] = [
    "Connection",
    "Content-Length",
    "Expect",
    "Host",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "Via",
];

impl Proxy {
    /// Whether the service gets no header of this name but what the route says.
    pub fn replaces_in_request(&self, name: &[u8]) -> bool {
        names(&self.request_headers, &self.remove_request_headers, name)
    }

    /// Whether the client gets no header of this name but what the route says.
    pub fn replaces_in_response(&self, name: &[u8]) -> bool {
        names(&self.response_headers, &self.remove_response_headers, name)
    }

    /// Tells what cannot be meant. `is_http`: the route leads to an `Http` platform.
    pub(super) fn check(&self, at: &str, route: &Route, is_http: bool, found: &mut Mistakes) {
        if *self == Proxy::default() {
            return;
        }
        if !is_http {
            found.add(
                at.to_owned(),
                format!("means nothing for platform {:?}, whose host is not Http", route.to),
                "remove it, or lead the route to a platform with host: Http",
            );
        }
        if let Some(prefix) = &self.strip_prefix {
            let covers = |path: &str| {
                path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if !prefix.starts_with('/') || prefix.ends_with('/') {
                let what = format!("{prefix:?} is not the beginning of a path");
                found.add(format!("{at}.strip_prefix"), what, "write it as \"/music\", without a slash at its end");
            } else if !route.path.as_deref().is_some_and(covers) {
                let what = format!("{prefix:?} is not the beginning of the route's path");
                found.add(
                    format!("{at}.strip_prefix"),
                    what,
                    "make it whole segments of `path`, from its first slash on",
                );
            }
        }
        let lists = [
            ("request_headers", &self.request_headers, "remove_request_headers", &self.remove_request_headers),
            ("response_headers", &self.response_headers, "remove_response_headers", &self.remove_response_headers),
        ];
        for (set_name, set, removed_name, removed) in lists {
            let set_at = format!("{at}.{set_name}");
            check_count(&set_at, set.len(), found);
            check_count(&format!("{at}.{removed_name}"), removed.len(), found);
            for (name, value) in set {
                check_header_name(&set_at, name, found);
                if set_name == "response_headers" && name.eq_ignore_ascii_case("Date") {
                    found.add(set_at.clone(), "Date is written by Demi".to_owned(), "leave it out");
                }
                if !is_value(value) {
                    let what = format!("the value of {name:?} cannot stand in a header");
                    let remedy = "use at most 4096 bytes of visible ASCII, with spaces only between them";
                    found.add(set_at.clone(), what, remedy);
                }
                let namesakes = set.keys().filter(|other| other.eq_ignore_ascii_case(name)).count();
                if namesakes > 1 || removed.iter().any(|other| other.eq_ignore_ascii_case(name)) {
                    let what = format!("{name:?} is named twice: names of headers are the same in any case");
                    found.add(set_at.clone(), what, "leave one of them; what is set is replaced anyhow");
                }
            }
            for (index, name) in removed.iter().enumerate() {
                check_header_name(&format!("{at}.{removed_name}[{index}]"), name, found);
            }
        }
    }
}

/// Whether two names are the same to any reader: to some a dash is an underscore (CGI, WSGI), and whoever relies on what a
/// route sets must not find something else under such a name.
fn is_same_name(one: &[u8], other: &[u8]) -> bool {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    one.len() == other.len() && one.iter().map(plain).eq(other.iter().map(plain))
}

fn names(set: &BTreeMap<String, String>, removed: &[String], name: &[u8]) -> bool {
    set.keys().chain(removed).any(|other| is_same_name(other.as_bytes(), name))
}

fn check_count(at: &str, count: usize, found: &mut Mistakes) {
    if count > PROXY_HEADERS_MAX {
        let what = format!("{count} headers are more than {PROXY_HEADERS_MAX}");
        found.add(at.to_owned(), what, "leave some of them to the service");
    }
}

fn check_header_name(at: &str, name: &str, found: &mut Mistakes) {
    if !is_token(name) {
        let what = format!("{name:?} is not the name of a header");
        found.add(at.to_owned(), what, "use letters, digits and '-', as in \"X-Name\"");
    } else if OWN_HEADERS.iter().any(|own| is_same_name(own.as_bytes(), name.as_bytes())) {
        let remedy = if name.eq_ignore_ascii_case("Host") { "see preserve_host" } else { "leave it out" };
        found.add(at.to_owned(), format!("{name} is Demi's own business"), remedy);
    }
}

/// A token (RFC 9110 §5.6.2), as names of headers and of cookies (RFC 6265 §4.1.1) are, of a length that a name has.
pub(super) fn is_token(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=256).contains(&name.len()) && name.bytes().all(is_plain)
}

fn is_value(value: &str) -> bool {
    value.len() <= VALUE_BYTES_MAX && value.trim() == value && value.bytes().all(|byte| matches!(byte, b' '..=0x7e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Host, Platform};

    /// Where the mistakes are of a route to this host with this section.
    fn mistakes(host: Host, proxy: Proxy) -> Vec<String> {
        let mut platform = Platform::new("echo", host);
        if host == Host::Http {
            platform.upstreams = vec!["127.0.0.1:1".to_owned()];
        }
        let route = Route { path: Some("/files/*".to_owned()), proxy, ..Route::to("echo") };
        let config = Config { platforms: vec![platform], routes: vec![route], ..Config::default() };
        config.mistakes(&["echo"]).into_iter().map(|mistake| mistake.at).collect()
    }

    fn set(lines: &[(&str, &str)]) -> BTreeMap<String, String> {
        lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_section_of_a_route_to_another_host_is_a_mistake() {
        let proxy = Proxy { preserve_host: false, ..Proxy::default() };
        assert_eq!(mistakes(Host::Inline, proxy.clone()), ["routes[0].proxy"]);
        assert_eq!(mistakes(Host::Http, proxy), [""; 0]);
        assert_eq!(mistakes(Host::Inline, Proxy::default()), [""; 0]);
    }

    #[test]
    fn a_prefix_is_stripped_only_in_whole_segments_of_the_path() {
        for (prefix, is_right) in
            [("/files", true), ("/fil", false), ("files", false), ("/files/", false), ("/files/x", false), ("", false)]
        {
            let found = mistakes(Host::Http, Proxy { strip_prefix: Some(prefix.to_owned()), ..Proxy::default() });
            assert_eq!(found.is_empty(), is_right, "{prefix:?}: {found:?}");
        }
    }

    #[test]
    fn what_could_end_a_header_line_or_frame_a_message_is_refused() {
        for (name, value) in [
            ("X", "a\r\nX-Evil: 1"),
            ("X", "a\nb"),
            ("X", "a\0b"),
            ("X", " a"),
            ("X", "ä"),
            ("X Y", "a"),
            ("X:", "a"),
            ("", "a"),
            ("X\r\nY", "a"),
            ("content-length", "5"),
            ("Transfer-Encoding", "chunked"),
            ("connection", "close"),
            ("Host", "evil"),
            ("VIA", "nobody"),
        ] {
            let line = set(&[(name, value)]);
            let request = Proxy { request_headers: line.clone(), ..Proxy::default() };
            assert_eq!(mistakes(Host::Http, request), ["routes[0].proxy.request_headers"], "{name:?}: {value:?}");
            let response = Proxy { response_headers: line, ..Proxy::default() };
            assert_eq!(mistakes(Host::Http, response), ["routes[0].proxy.response_headers"], "{name:?}: {value:?}");
        }
        let removed = Proxy { remove_request_headers: vec!["X".to_owned(), "te".to_owned()], ..Proxy::default() };
        assert_eq!(mistakes(Host::Http, removed), ["routes[0].proxy.remove_request_headers[1]"]);
        let fine = Proxy { request_headers: set(&[("X-A", ""), ("x-b", "a, b;c=\"d\"")]), ..Proxy::default() };
        assert_eq!(mistakes(Host::Http, fine), [""; 0]);
    }

    #[test]
    fn a_header_that_is_named_twice_is_told() {
        let twice = Proxy { request_headers: set(&[("X-A", "1"), ("x-a", "2")]), ..Proxy::default() };
        assert_eq!(mistakes(Host::Http, twice), ["routes[0].proxy.request_headers"; 2]);
        let both = Proxy {
            response_headers: set(&[("Server", "x")]),
            remove_response_headers: vec!["server".to_owned()],
            ..Proxy::default()
        };
        assert_eq!(mistakes(Host::Http, both), ["routes[0].proxy.response_headers"]);
    }
}
