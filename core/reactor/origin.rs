//! Which requests are meant for this Demi: by the host that they name, and by the site that a browser says they are from.
//!
//! Demi listens on loopback only and has no authentication, and a browser on the same machine lends its reach to every web
//! page. A page can give a name of its own the address 127.0.0.1 and then reads answers as if they were its own site's (DNS
//! rebinding), but its requests still carry that name in `Host`. A page can also send blindly to 127.0.0.1, but such
//! requests carry `Origin` or `Sec-Fetch-Site`, which a page cannot forge. Programs send neither.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::http;

/// Digits of a port.
const PORT_DIGITS_MAX: usize = 5;

/// The hosts under which Demi is asked: those that can only mean this machine, and those of the configuration.
pub(crate) struct Hosts {
    every: bool,
    /// Names and IPv4 addresses, without a dot at the end.
    names: Box<[String]>,
    addresses: Box<[Ipv6Addr]>,
}

impl Hosts {
    /// Takes `http.hosts` of a configuration without mistakes.
    pub(crate) fn new(configured: &[String]) -> Hosts {
        Hosts {
            every: configured.iter().any(|host| host == "*"),
            names: configured.iter().map(|host| without_last_dot(host).to_owned()).collect(),
            addresses: configured.iter().filter_map(|host| bracketed(host)?.0.parse().ok()).collect(),
        }
    }

    /// Whether a request for this authority, as `RequestHead::host` has it, is one for us. Nobody rebinds a name that is
    /// not sent: an empty one, as of HTTP/1.0 without `Host`, is.
    pub(crate) fn take(&self, authority: &str) -> bool {
        // What nearly all requests name.
        let usual = authority.strip_prefix("127.0.0.1").or_else(|| authority.strip_prefix("localhost"));
        usual.is_some_and(is_port_or_nothing) || self.every || authority.is_empty() || self.know(authority)
    }

    /// Whether the header lines of a request say of no web page that sent it that its site is a stranger's.
    pub(crate) fn take_sender(&self, headers_bytes: &[u8]) -> bool {
        http::header_lines(headers_bytes).all(|(name, value)| match name.len() {
            6 if name.eq_ignore_ascii_case(b"origin") => self.take_origin(value),
            14 if name.eq_ignore_ascii_case(b"sec-fetch-site") => !value.eq_ignore_ascii_case(b"cross-site"),
            _ => true,
        })
    }

    /// Of `null`, which a page can bring about at will, there is no host to be known.
    fn take_origin(&self, origin: &[u8]) -> bool {
        let authority = std::str::from_utf8(origin).ok().and_then(|origin| origin.split_once("://"));
        authority.is_some_and(|(_, authority)| !authority.is_empty() && self.take(authority))
    }

    #[cold]
    fn know(&self, authority: &str) -> bool {
        if let Some((literal, port)) = bracketed(authority) {
            let known = |address: Ipv6Addr| address.to_canonical().is_loopback() || self.addresses.contains(&address);
            return is_port_or_nothing(port) && literal.parse().is_ok_and(known);
        }
        let (name, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
        let name = without_last_dot(name);
        is_port_or_nothing(port)
            && (is_localhost(name)
                || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
                || self.names.iter().any(|known| known.eq_ignore_ascii_case(name)))
    }
}

/// What stands in brackets at the front, and what follows them.
fn bracketed(authority: &str) -> Option<(&str, &str)> {
    authority.strip_prefix('[')?.split_once(']')
}

/// A name that ends in a dot is the same name, from the root.
fn without_last_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

fn is_port_or_nothing(text: &str) -> bool {
    match text.strip_prefix(':') {
        Some(port) => port.len() <= PORT_DIGITS_MAX && port.bytes().all(|byte| byte.is_ascii_digit()),
        None => text.is_empty(),
    }
}

/// `localhost` and all below it, which are never looked up in the DNS (RFC 6761 §6.3). Nothing but the bytes of a name may
/// stand before it: what a reader takes for the end of a host, such as `@` or `/`, may not.
fn is_localhost(name: &str) -> bool {
    const LOCALHOST: &[u8] = b"localhost";
    let Some((below, last)) = name.as_bytes().split_last_chunk::<{ LOCALHOST.len() }>() else { return false };
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    last.eq_ignore_ascii_case(LOCALHOST)
        && (below.is_empty() || (below.len() > 1 && below.ends_with(b".") && below.iter().all(is_plain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(names: &[&str]) -> Hosts {
        Hosts::new(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>())
    }

    #[test]
    fn what_can_only_mean_this_machine_is_taken_with_any_port() {
        let hosts = hosts(&[]);
        for name in [
            "127.0.0.1",
            "127.0.0.1.",
            "127.8.7.6",
            "localhost",
            "LocalHost",
            "localhost.",
            "demi.localhost",
            "a.B-c.LOCALHOST.",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
        ] {
            for port in ["", ":", ":8787", ":0", ":65535"] {
                assert!(hosts.take(&format!("{name}{port}")), "{name}{port}");
            }
        }
        assert!(hosts.take(""), "HTTP/1.0 needs no Host");
    }

    #[test]
    fn what_a_stranger_may_own_is_not_taken_however_it_is_dressed() {
        for hosts in [hosts(&[]), hosts(&["demi.example"])] {
            for authority in [
                "evil.example",
                "localhost.evil.example",
                "127.0.0.1.evil.example",
                "127.0.0.1.nip.io:8787",
                "127.0.0.1:8787.evil.example",
                "localhost:8787.evil.example",
                "localhost:8787:8787",
                "localhost:123456",
                "localhost:+80",
                "evil-localhost",
                "evillocalhost",
                "notlocalhost:8787",
                ".localhost",
                ".",
                ":8787",
                "localhost..",
                "0.0.0.0",
                "10.0.0.1:8787",
                "0127.0.0.1",
                "127.1",
                "2130706433",
                "[::]",
                "[::2]:8787",
                "[fe80::1]",
                "[::1",
                "[::1]evil.example",
                "[::1].localhost",
                "[::1]:x",
                "[127.0.0.1]",
                "[localhost]",
                "::1",
                "*",
                "localhost@evil.example",
                "localhost:80@evil.example",
                "evil.example@.localhost",
                "evil.example/.localhost",
                "evil.example%2f.localhost",
                "evil.example#.localhost",
                "evil.example demi.localhost",
                "www.demi.example",
                "demi.example.evil.example",
                "é.localhost",
                "xélocalhost",
            ] {
                assert!(!hosts.take(authority), "{authority}");
            }
        }
    }

    #[test]
    fn configured_hosts_are_taken_in_any_case_with_any_port_and_a_star_takes_all() {
        let some = hosts(&["Demi.example.", "192.168.1.2", "[FD00::0:1]"]);
        for authority in ["demi.example", "DEMI.EXAMPLE.:443", "192.168.1.2:80", "[fd00::1]", "[fd00:0::1]:8787"] {
            assert!(some.take(authority), "{authority}");
        }
        for authority in ["demi.example..", "demi.example:x", "192.168.1.20", "[fd00::2]", "fd00::1"] {
            assert!(!some.take(authority), "{authority}");
        }
        assert!(hosts(&["a", "*"]).take("anything.example:1"));
    }

    #[test]
    fn an_absolute_target_speaks_for_its_host_and_user_information_is_refused_before() {
        let limits = http::Limits { head_bytes_max: 4096, headers_max: 16, body_bytes_max: 0 };
        let taken = |request: &str| {
            let head = http::parse_request(request.as_bytes(), &limits).map_err(|malformed| malformed.status)?;
            Ok(hosts(&[]).take(head.expect("it is whole").host))
        };
        assert_eq!(taken("GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n"), Ok(false));
        assert_eq!(taken("GET http://evil.example/ HTTP/1.0\r\n\r\n"), Ok(false));
        assert_eq!(taken("GET http://localhost:8787/ HTTP/1.1\r\nHost: evil.example\r\n\r\n"), Ok(true));
        assert_eq!(taken("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"), Ok(false));
        assert_eq!(taken("GET / HTTP/1.0\r\n\r\n"), Ok(true));
        assert_eq!(taken("GET / HTTP/1.1\r\nHost:  [::1]:8787 \r\n\r\n"), Ok(true));
        assert_eq!(taken("GET / HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n"), Err(400));
        assert_eq!(taken("GET http://localhost@evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n"), Err(400));
    }

    #[test]
    fn a_sender_is_refused_if_it_is_a_page_of_another_site() {
        let hosts = hosts(&["demi.example"]);
        for lines in [
            "",
            "Accept: */*\r\nX-Origin: http://evil.example\r\n",
            "Origin: http://127.0.0.1:8787\r\nSec-Fetch-Site: same-origin\r\n",
            "origin: https://DEMI.example\r\nsec-fetch-site: same-site\r\n",
            "Origin: http://[::1]:8787\r\n",
            "Sec-Fetch-Site: none\r\n",
        ] {
            assert!(hosts.take_sender(lines.as_bytes()), "{lines}");
        }
        for lines in [
            "Origin: null\r\n",
            "Origin:\r\n",
            "Origin: http://\r\n",
            "Origin: localhost\r\n",
            "Origin: http://evil.example\r\n",
            "ORIGIN: http://localhost.evil.example:8787\r\n",
            "Origin: http://localhost@evil.example\r\n",
            "Origin: http://localhost http://evil.example\r\n",
            "Origin: http://evil.example/.localhost\r\n",
            "Origin: http://localhost\r\nOrigin: http://evil.example\r\n",
            "Origin: \u{fffd}://localhost\u{fffd}\r\n",
            "Sec-Fetch-Site: cross-site\r\n",
            "Origin: http://localhost:3000\r\nsec-fetch-site: Cross-Site\r\n",
        ] {
            assert!(!hosts.take_sender(lines.as_bytes()), "{lines}");
        }
        let every = self::hosts(&["*"]);
        assert!(every.take_sender(b"Origin: https://other.example\r\n"));
        assert!(!every.take_sender(b"Origin: null\r\n") && !every.take_sender(b"Sec-Fetch-Site: cross-site\r\n"));
    }
}
