//! Cookies that keep a client with the instance that it met first: `sticky_cookie` of a platform.
//!
//! The value is a key and nothing more: which instance it leads to is decided anew for each request, so that it outlives
//! instances. It is Demi's own business and not passed on.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::Arc;

use demi_conductor::balance::fingerprint;
use demi_conductor::config::Platform;

use crate::forward::Hop;
use crate::http;

/// Hexadecimal digits of a key: 128 bits, so that two clients never have the same.
const KEY_DIGITS: usize = 32;

/// The cookies of all platforms, and where their keys come from.
pub(crate) struct Cookies {
    /// By the index of the platform. Those that are found while Demi runs are no services and have none.
    cookies: Vec<Option<Arc<Cookie>>>,
    /// Of a secret that each start draws anew: nobody who has some keys can tell another.
    secret: RandomState,
    made: u64,
}

/// A platform's cookie.
#[derive(Debug)]
pub(crate) struct Cookie {
    name: String,
    /// How long its client keeps it, seconds; as long as its session if absent.
    max_age_s: Option<u64>,
}

/// What a request is given an instance by.
pub(crate) struct Stuck {
    /// Stands for its key.
    pub(crate) key: u64,
    /// The lines with which its client gets the key, if it had none.
    pub(crate) gift: Option<Vec<u8>>,
}

impl Cookies {
    /// Those of a configuration without mistakes.
    pub(crate) fn new(platforms: &[Platform]) -> Cookies {
        let cookie = |platform: &Platform| {
            let max_age_s = platform.sticky_cookie_max_age_s.map(|seconds| seconds.value());
            Some(Arc::new(Cookie { name: platform.sticky_cookie.clone()?, max_age_s }))
        };
        Cookies { cookies: platforms.iter().map(cookie).collect(), secret: RandomState::new(), made: 0 }
    }

    /// The one of a platform, if it has one.
    pub(crate) fn of(&self, platform: u32) -> Option<Arc<Cookie>> {
        self.cookies.get(platform as usize)?.clone()
    }

    /// What the cookie of this request says, or a new one.
    pub(crate) fn stick(&mut self, cookie: &Cookie, headers: &[u8], hop: Hop) -> Stuck {
        if let Some(key) = cookie.key(headers) {
            return Stuck { key: fingerprint(key), gift: None };
        }
        let key = self.make_key();
        Stuck { key: fingerprint(key.as_bytes()), gift: Some(cookie.gift(&key, hop.came_by_https(headers))) }
    }

    fn make_key(&mut self) -> String {
        self.made += 1;
        let half = |which: u8| self.secret.hash_one((self.made, which));
        format!("{:016x}{:016x}", half(0), half(1))
    }
}

impl Cookie {
    /// The key that a request brings: the value of the first cookie of this name that is one.
    fn key<'h>(&self, headers: &'h [u8]) -> Option<&'h [u8]> {
        let values = lines(headers).flat_map(pairs).filter_map(|pair| self.value(pair));
        values.map(unquoted).find(|value| is_key(value))
    }

    /// Header lines without the cookies of this name, all else byte for byte; `None` if there are none.
    pub(crate) fn without(&self, headers: &[u8]) -> Option<Vec<u8>> {
        let is_ours = |pair: &[u8]| self.value(pair).is_some();
        if !lines(headers).flat_map(pairs).any(is_ours) {
            return None;
        }
        let mut rest = Vec::with_capacity(headers.len());
        for (name, value) in http::header_lines(headers) {
            let kept = match is_cookie(name) {
                true => Cow::Owned(pairs(value).filter(|pair| !is_ours(pair)).collect::<Vec<&[u8]>>().join(&b';')),
                false => Cow::Borrowed(value),
            };
            let kept = kept.trim_ascii_start();
            if !(is_cookie(name) && kept.is_empty()) {
                for part in [name, b": ", kept, b"\r\n"] {
                    rest.extend_from_slice(part);
                }
            }
        }
        Some(rest)
    }

    /// The lines that give a client this key. What is in such an answer is for one client: from a cache all would get the
    /// same key.
    fn gift(&self, key: &str, is_https: bool) -> Vec<u8> {
        let mut lines = Vec::new();
        let mut write =
            |part: std::fmt::Arguments<'_>| lines.write_fmt(part).expect("a vector takes all that is written");
        write(format_args!("Set-Cookie: {}={key}; Path=/; HttpOnly; SameSite=Lax", self.name));
        if let Some(seconds) = self.max_age_s {
            write(format_args!("; Max-Age={seconds}"));
        }
        write(format_args!("{}\r\nCache-Control: private\r\n", if is_https { "; Secure" } else { "" }));
        lines
    }

    /// The value of a pair, if it has this name.
    fn value<'h>(&self, pair: &'h [u8]) -> Option<&'h [u8]> {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        (pair[..equals].trim_ascii() == self.name.as_bytes()).then(|| pair[equals + 1..].trim_ascii())
    }
}

/// The cookie lines of a request; there should be one at most (RFC 6265 §5.4).
fn lines(headers: &[u8]) -> impl Iterator<Item = &[u8]> {
    http::header_lines(headers).filter(|(name, _)| is_cookie(name)).map(|(_, value)| value)
}

fn is_cookie(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"cookie")
}

/// A semicolon ends a pair wherever it stands: browsers know no quotes here.
fn pairs(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b';')
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

/// Whether a value may be one that Demi gave: others are bounded by nothing and are passed over.
fn is_key(value: &[u8]) -> bool {
    value.len() == KEY_DIGITS && value.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use demi_conductor::config::{Bounded, Host};

    use super::*;

    const ONE: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "ffffffffffffffffffffffffffffffff";

    fn cookies(max_age_s: Option<u64>) -> (Cookies, Arc<Cookie>) {
        let mut platform = Platform::new("web", Host::Http);
        platform.sticky_cookie = Some("demi".to_owned());
        platform.sticky_cookie_max_age_s = max_age_s.and_then(Bounded::new);
        let cookies = Cookies::new(&[Platform::new("echo", Host::Inline), platform]);
        assert!(cookies.of(0).is_none() && cookies.of(7).is_none());
        let cookie = cookies.of(1).expect("it has one");
        (cookies, cookie)
    }

    fn hop(from: &str) -> Hop {
        Hop { from: from.parse().expect("it is an address"), is_http11: true, upgrades: false }
    }

    /// The key that these header lines bring.
    fn key(headers: &str) -> Option<String> {
        let key = cookies(None).1.key(headers.as_bytes()).map(<[u8]>::to_vec);
        key.map(|key| String::from_utf8(key).expect("it is text"))
    }

    #[test]
    fn a_key_is_found_wherever_it_stands_among_cookies() {
        for headers in [
            format!("Cookie: demi={ONE}\r\n"),
            format!("A: b\r\ncOOKIE:demi={ONE}\r\n"),
            format!("Cookie: a=1; demi={ONE}; b=2\r\n"),
            format!("Cookie: a=1;demi={ONE};\r\n"),
            format!("Cookie: demi=\"{ONE}\"\r\n"),
            format!("Cookie:  demi = {ONE} \t; a=1\r\n"),
            format!("Cookie: a=1\r\nCookie: demi={ONE}\r\n"),
            format!("Cookie: demi={ONE}; demi={OTHER}\r\n"),
            format!("Cookie: demi=stale; demi={ONE}\r\n"),
            format!("Cookie: demi={ONE}\r\nCookie: demi={OTHER}\r\n"),
        ] {
            assert_eq!(key(&headers).as_deref(), Some(ONE), "{headers}");
        }
    }

    #[test]
    fn what_demi_did_not_give_is_no_key() {
        for headers in [
            String::new(),
            format!("X-Cookie: demi={ONE}\r\n"),
            format!("Cookie: Demi={ONE}\r\n"),
            format!("Cookie: xdemi={ONE}; demi2={ONE}\r\n"),
            format!("Cookie: a=demi={ONE}\r\n"),
            "Cookie: demi\r\n".to_owned(),
            "Cookie: demi=\r\n".to_owned(),
            "Cookie: demi=\"\"\r\n".to_owned(),
            format!("Cookie: demi={}\r\n", &ONE[1..]),
            format!("Cookie: demi={ONE}0\r\n"),
            format!("Cookie: demi={}\r\n", ONE.to_uppercase()),
            format!("Cookie: demi=\"{ONE}\r\n"),
            format!("Cookie: demi={}\r\n", "a".repeat(10_000)),
            "Cookie: demi=0123456789abcdef0123456789abcde\u{e9}\r\n".to_owned(),
        ] {
            assert_eq!(key(&headers), None, "{headers}");
        }
    }

    #[test]
    fn other_cookies_are_passed_on_byte_for_byte_and_ours_is_not() {
        let cookie = cookies(None).1;
        for (headers, rest) in [
            (format!("A: b\r\nCookie: demi={ONE}\r\nC: d\r\n"), "A: b\r\nC: d\r\n"),
            (format!("Cookie: a=1; demi={ONE}; b=\"2 ,\"\r\n"), "Cookie: a=1; b=\"2 ,\"\r\n"),
            (format!("Cookie: demi={ONE}; a=1\r\n"), "Cookie: a=1\r\n"),
            (format!("cookie: a=1; demi={ONE}\r\n"), "cookie: a=1\r\n"),
            (format!("Cookie: a==;  b;demi={ONE};c=\u{e9}\r\n"), "Cookie: a==;  b;c=\u{e9}\r\n"),
            (format!("Cookie: demi={ONE}; demi=stale\r\nCookie: a=1;;\r\n"), "Cookie: a=1;;\r\n"),
            ("Cookie: demi=\r\nX-Cookie: demi=1; a\r\n".to_owned(), "X-Cookie: demi=1; a\r\n"),
        ] {
            let without = cookie.without(headers.as_bytes()).expect("there is one");
            assert_eq!(String::from_utf8_lossy(&without), rest, "{headers}");
        }
        for headers in ["", "A: b\r\n", "Cookie: a=1; Demi=2\r\n", "Cookie: demi\r\n"] {
            assert_eq!(cookie.without(headers.as_bytes()), None, "{headers}");
        }
    }

    #[test]
    fn a_client_without_a_key_gets_one_that_leads_where_its_first_request_went() {
        let (mut cookies, cookie) = cookies(None);
        let mut seen = BTreeSet::new();
        for _ in 0..100 {
            let stuck = cookies.stick(&cookie, b"Cookie: a=1\r\n", hop("127.0.0.1"));
            let gift = String::from_utf8(stuck.gift.expect("it had none")).expect("it is text");
            let (key, rest) = gift.strip_prefix("Set-Cookie: demi=").expect("it is the cookie").split_at(KEY_DIGITS);
            assert_eq!(rest, "; Path=/; HttpOnly; SameSite=Lax\r\nCache-Control: private\r\n");
            assert!(seen.insert(key.to_owned()), "{key} was given twice");
            let again = cookies.stick(&cookie, format!("Cookie: demi={key}\r\n").as_bytes(), hop("127.0.0.1"));
            assert_eq!((again.key, again.gift), (stuck.key, None));
        }
    }

    #[test]
    fn a_cookie_lasts_as_long_as_it_is_to_and_is_for_https_alone_where_that_is_spoken() {
        let (mut cookies, cookie) = cookies(Some(60));
        for (from, headers, is_secure) in [
            ("127.0.0.1", "", false),
            ("127.0.0.1", "X-Forwarded-Proto: https\r\n", true),
            ("::1", "X-Forwarded-Proto: HTTPS, http\r\n", true),
            ("127.0.0.1", "X-Forwarded-Proto: http, https\r\n", false),
            ("192.0.2.1", "X-Forwarded-Proto: https\r\n", false),
            ("127.0.0.1", "Forwarded: for=192.0.2.1;Proto=\"https\", for=127.0.0.1;proto=http\r\n", true),
            ("127.0.0.1", "Forwarded: for=192.0.2.1, for=127.0.0.1;proto=https\r\n", false),
            ("127.0.0.1", "Forwarded: proto=https\r\nX-Forwarded-Proto: http\r\n", false),
        ] {
            let stuck = cookies.stick(&cookie, headers.as_bytes(), hop(from));
            let gift = String::from_utf8(stuck.gift.expect("it had none")).expect("it is text");
            let end = if is_secure { "; Max-Age=60; Secure\r\n" } else { "; Max-Age=60\r\n" };
            assert!(gift.lines().next().is_some_and(|line| line.ends_with(end.trim_end())), "{headers}: {gift}");
        }
    }
}
