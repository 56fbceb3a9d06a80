//! A route: which requests it takes, where they go, and what becomes of one that fails.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{is_host, Bounded, Mistakes, Proxy, FALLBACKS_MAX, HOUR_MS};

/// What becomes of a call that failed for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum OnFailure {
    /// The caller is told; nothing is kept.
    #[default]
    Error,
    /// The caller is told, and the request is kept as a dead letter.
    DeadLetter,
}

/// Who of those that wait for a platform has the next turn (the word is that of RFC 9218).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Urgency {
    /// Before all others: what platforms and the host program ask of each other.
    High,
    /// What clients ask, and what platforms pass on for people.
    #[default]
    Normal,
    /// Behind all others: what nobody waits for.
    Low,
}

impl Urgency {
    /// The most urgent first.
    pub const ALL: [Urgency; 3] = [Urgency::High, Urgency::Normal, Urgency::Low];
}

/// What a request's text must be like.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Content {
    /// Exactly this.
    Exact(String),
    /// It begins with this.
    Prefix(String),
    /// This stands somewhere in it.
    Contains(String),
    /// All of it looks like this: `*` stands for anything, `?` for one character.
    Glob(String),
    /// A regular expression matches somewhere in it (docs/routing.md).
    Regex(String),
    /// One of these is a whole word of it.
    Keywords(Vec<String>),
}

/// What the value of a request's header must be like.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum HeaderValue {
    /// Anything, as long as the header is there.
    Present,
    /// Exactly this.
    Exact(String),
    /// It begins with this.
    Prefix(String),
}

/// A rule: every matcher that is given must match; then the request goes `to` a platform.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The platform that the request came from, as the request says.
    #[serde(default)]
    pub from: Option<String>,
    /// The kind of request, as the request says (`message`, `command`, …).
    #[serde(default)]
    pub kind: Option<String>,
    /// The HTTP method.
    #[serde(default)]
    pub method: Option<String>,
    /// The host that the request is for, without a port. HTTP requests for it are served by `to`.
    #[serde(default)]
    pub host: Option<String>,
    /// A path: exact (`/play`), with segments that may be anything (`/users/{id}`), everything below (`/music/*`), or
    /// everything below but the path itself (`/files/{*rest}`). HTTP requests that match it are served by `to`.
    #[serde(default)]
    pub path: Option<String>,
    /// Headers, by their names in upper or lower case; each must be there and be like this.
    #[serde(default)]
    pub headers: BTreeMap<String, HeaderValue>,
    /// What the body, read as text, must be like.
    #[serde(default)]
    pub content: Option<Content>,
    /// Whether upper and lower case are the same in `content`: of ASCII letters, and in patterns of all letters.
    #[serde(default)]
    pub ignore_case: bool,
    /// Rules of a higher priority come before those of a lower one; among equals the order of the file holds.
    #[serde(default)]
    pub priority: i32,
    /// Who comes first among those that wait for a platform, whoever asks. Default: by who asks, see docs/routing.md.
    #[serde(default)]
    pub urgency: Option<Urgency>,
    /// The platform that gets it.
    pub to: String,
    /// From the question to the answer, all attempts together.
    #[serde(default)]
    pub timeout_ms: Bounded<1, HOUR_MS, 5_000>,
    /// One attempt, if shorter than the whole; worth setting only with `retries`.
    #[serde(default)]
    pub attempt_timeout_ms: Option<Bounded<1, HOUR_MS, 1>>,
    /// Further attempts after a failed one.
    #[serde(default)]
    pub retries: Bounded<0, 10, 0>,
    /// Whether a second instance is asked when the first has not answered within the route's 95th percentile; the first
    /// answer wins. Only for requests that may be asked twice; each costs the platform as many tokens as a retry.
    #[serde(default)]
    pub hedge: bool,
    /// Whether the platform may be asked the same thing twice. Only then is a request that may have arrived tried again.
    #[serde(default)]
    pub idempotent: bool,
    /// Platforms that get it in turn, within its time, if the one before does not take it or fails for good. One that may
    /// have been acted on is passed on only if it may be asked twice.
    #[serde(default)]
    pub fallback: Vec<String>,
    /// What becomes of a call that failed for good.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// For messages (`POST /v1/messages`) that do not say so themselves: not to be begun any more when they are so old.
    #[serde(default)]
    pub message_ttl_ms: Option<Bounded<1, { 365 * 24 * HOUR_MS }, 1>>,
    /// For a platform with host `Http`: what is changed of what is passed on.
    #[serde(default)]
    pub proxy: Proxy,
}

impl Route {
    /// A rule that matches everything, with every default.
    pub fn to(platform: &str) -> Route {
        Route {
            from: None,
            kind: None,
            method: None,
            host: None,
            path: None,
            headers: BTreeMap::new(),
            content: None,
            ignore_case: false,
            priority: 0,
            urgency: None,
            to: platform.to_owned(),
            timeout_ms: Bounded::default(),
            attempt_timeout_ms: None,
            retries: Bounded::default(),
            hedge: false,
            idempotent: false,
            fallback: Vec::new(),
            on_failure: OnFailure::Error,
            message_ttl_ms: None,
            proxy: Proxy::default(),
        }
    }
}

impl Route {
    pub(super) fn check(&self, at: &str, names: &[&str], found: &mut Mistakes) {
        if !names.contains(&self.to.as_str()) {
            found.add_unknown(format!("{at}.to"), "platform", &self.to, names);
        }
        if let Some(host) = self.host.as_deref().filter(|host| !is_host(host)) {
            found.add(
                format!("{at}.host"),
                format!("{host:?} is not a host"),
                "write a name or an IP address alone, without a port, as in \"music.example\"",
            );
        }
        if self.fallback.len() > FALLBACKS_MAX {
            found.add(
                format!("{at}.fallback"),
                format!("{} platforms are more than {FALLBACKS_MAX}", self.fallback.len()),
                "leave out the last of them",
            );
        }
        for (index, name) in self.fallback.iter().enumerate() {
            let at = format!("{at}.fallback[{index}]");
            if !names.contains(&name.as_str()) {
                found.add_unknown(at, "platform", name, names);
            } else if *name == self.to || self.fallback[..index].contains(name) {
                found.add(at, format!("{name:?} has had it before"), "remove it, or name another platform");
            }
        }
        for (field, what, remedy) in crate::router::faults(self) {
            found.add(format!("{at}.{field}"), what, remedy);
        }
        if let Some(path) = &self.path {
            let stem = path.strip_suffix("/*").unwrap_or(path);
            if RESERVED_PATHS.iter().any(|reserved| reserves(reserved, stem)) {
                found.add(
                    format!("{at}.path"),
                    format!("{path:?} belongs to Demi's own API"),
                    &format!("choose a path outside {}", RESERVED_PATHS.join(", ")),
                );
            }
        }
    }
}

/// Paths that Demi answers itself; a route cannot take them.
pub const RESERVED_PATHS: [&str; 4] = ["/v1", "/healthz", "/readyz", "/metrics"];

fn reserves(reserved: &str, path: &str) -> bool {
    path.strip_prefix(reserved).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
