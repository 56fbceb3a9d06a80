//! Demi's own API: what the paths below `/v1` and the health pages answer.

mod dead_letters;
mod events;
mod health;
mod history;
mod messages;
mod platforms;
mod scaling;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use demi_conductor::lifecycle::Reason;
use demi_conductor::{Conductor, Question, Time};
use demi_platform::Request;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::clerk::StoreFacts;
use crate::handle::PlatformOrder;
use crate::http;
use crate::metrics::{self, Format};
use crate::problem::Problem;
use crate::shell::{Listed, PostCounts, KEY_HEADER};

pub(crate) use dead_letters::{
    dead_letter_json, dead_letters_json, no_letter, only_remains, purged_json, read_listing, read_purge,
    replaying_json, Listing,
};
pub(crate) use events::{attempt_event, check_accept, ended_event, last_event_id, position, waiting_event};
pub(crate) use history::{history_json, read_history, History};
pub(crate) use messages::{ended_json, idempotency_key, no_message, queued_json, read_message, waiting_json, Wishes};
pub(crate) use platforms::{no_platform, Topic};
pub(crate) use scaling::{decision_json, read_scaling, ScalingPage};

/// A page of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page<'p> {
    /// `POST /v1/requests`.
    Requests,
    /// `POST /v1/messages`, which the clerk answers.
    Messages,
    /// `GET /v1/messages/ID`, which the clerk answers.
    Message(u64),
    /// `GET /v1/messages/ID/events`, or `/v1/messages/events` for the ends of all.
    MessageEvents(Option<u64>),
    /// `GET /v1/status`.
    Status,
    /// `GET /v1/health`.
    Health,
    /// `GET /v1/scaling`, for which the clerk may be asked.
    Scaling,
    /// `GET /v1/platforms`.
    Platforms,
    /// `GET` and `DELETE /v1/dead-letters`, which the clerk answers.
    DeadLetters,
    /// `GET`, `PUT` and `DELETE /v1/dead-letters/ID`, which the clerk answers.
    DeadLetter(u64),
    /// `POST /v1/dead-letters/ID/replay`, or `/v1/dead-letters/replay` for those that the query means.
    Replay(Option<u64>),
    /// `GET /v1/platforms/NAME`, and `/logs`, `/events` and `/why` below it.
    Platform(&'p str, Topic),
    /// `POST /v1/platforms/NAME/ORDER`.
    Order(&'p str, PlatformOrder),
    /// `GET /v1/plugins`.
    Plugins,
    /// `GET /healthz`: the process is alive.
    Alive,
    /// `GET /readyz`: every platform takes requests.
    Ready,
    /// `GET /metrics`.
    Metrics,
    /// `GET /v1/metrics/history`, which the clerk answers.
    MetricsHistory,
    /// A path of the API that leads nowhere.
    Unknown,
}

impl<'p> Page<'p> {
    /// The page of a path; `None` if the path does not belong to the API.
    pub(crate) fn of(path: &'p str) -> Option<Page<'p>> {
        Some(match path {
            "/v1/requests" => Page::Requests,
            "/v1/messages" => Page::Messages,
            "/v1/status" => Page::Status,
            "/v1/health" => Page::Health,
            "/v1/scaling" => Page::Scaling,
            "/v1/platforms" => Page::Platforms,
            "/v1/dead-letters" => Page::DeadLetters,
            "/v1/metrics/history" => Page::MetricsHistory,
            "/v1/plugins" => Page::Plugins,
            "/healthz" => Page::Alive,
            "/readyz" => Page::Ready,
            "/metrics" => Page::Metrics,
            "/v1" => Page::Unknown,
            _ => match path.strip_prefix("/v1/") {
                Some(rest) => match rest.split_once('/') {
                    Some(("platforms", rest)) => Page::of_platform(rest),
                    Some(("dead-letters", rest)) => Page::of_letter(rest),
                    Some(("messages", rest)) => Page::of_message(rest),
                    _ => Page::Unknown,
                },
                None => {
                    let below = |page: &str| path.strip_prefix(page).is_some_and(|rest| rest.starts_with('/'));
                    if !(below("/healthz") || below("/readyz") || below("/metrics")) {
                        return None;
                    }
                    Page::Unknown
                }
            },
        })
    }

    /// The page of what stands behind `/v1/dead-letters/`.
    fn of_letter(rest: &str) -> Page<'p> {
        match rest.split_once('/') {
            None if rest == "replay" => Page::Replay(None),
            None => number(rest).map_or(Page::Unknown, Page::DeadLetter),
            Some((id, "replay")) => number(id).map_or(Page::Unknown, |id| Page::Replay(Some(id))),
            Some(_) => Page::Unknown,
        }
    }

    /// The page of what stands behind `/v1/messages/`.
    fn of_message(rest: &str) -> Page<'p> {
        match rest.split_once('/') {
            None if rest == "events" => Page::MessageEvents(None),
            None => number(rest).map_or(Page::Unknown, Page::Message),
            Some((id, "events")) => number(id).map_or(Page::Unknown, |id| Page::MessageEvents(Some(id))),
            Some(_) => Page::Unknown,
        }
    }

    /// The methods that it takes, as they stand in `Allow`.
    pub(crate) const fn allowed(self) -> &'static str {
        match self {
            Page::Requests | Page::Messages | Page::Order(..) | Page::Replay(_) => "POST",
            Page::DeadLetters => "GET, HEAD, DELETE",
            Page::DeadLetter(_) => "GET, HEAD, PUT, DELETE",
            _ => "GET, HEAD",
        }
    }

    /// The page of what stands behind `/v1/platforms/`.
    fn of_platform(rest: &'p str) -> Page<'p> {
        let (name, word) = rest.split_once('/').map_or((rest, None), |(name, word)| (name, Some(word)));
        let order = |word: &str| PlatformOrder::ALL.into_iter().find(|order| order.name() == word);
        match word {
            _ if name.is_empty() => Page::Unknown,
            None => Page::Platform(name, Topic::State),
            Some(word) => match (Topic::of(word), order(word)) {
                (Some(topic), _) => Page::Platform(name, topic),
                (None, Some(order)) => Page::Order(name, order),
                (None, None) => Page::Unknown,
            },
        }
    }
}

/// The number that stands in a path.
fn number(word: &str) -> Option<u64> {
    let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| word.parse().ok()).flatten()
}

/// What the reactor knows and the conductor does not.
pub(crate) struct Facts<'f> {
    pub(crate) now: Time,
    pub(crate) connections: usize,
    pub(crate) counts: crate::listener::Counts,
    pub(crate) listen: std::net::SocketAddr,
    pub(crate) store: &'f StoreFacts,
    pub(crate) posts: &'f PostCounts,
    pub(crate) turns: &'f metrics::Turns,
    /// Bytes recorded today, and lines that found no room.
    pub(crate) trace: (u64, u64),
    pub(crate) body_bytes: usize,
    /// The process of a slot.
    pub(crate) pid_of: &'f dyn Fn(u32) -> Option<u32>,
    /// What the shell keeps of each platform, in the conductor's order.
    pub(crate) roster: &'f [Listed],
    /// Plugin folders that were not taken in, and why.
    pub(crate) refused: &'f BTreeMap<PathBuf, String>,
    /// Why the state of a slot last changed.
    pub(crate) reason_of: &'f dyn Fn(u32) -> Option<Reason>,
    /// Log lines of a slot that were not kept.
    pub(crate) dropped_lines_of: &'f dyn Fn(u32) -> u64,
}

/// An answer to a question about Demi itself.
pub(crate) struct PageAnswer {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) body: Vec<u8>,
}

pub(crate) const JSON: &str = "application/json";

/// Answers a GET of a page. The caller has checked the method.
pub(crate) fn answer(
    page: Page<'_>,
    request: &Request<'_>,
    conductor: &Conductor,
    facts: &Facts<'_>,
) -> Result<PageAnswer, Problem> {
    let text = |status, text: &str| PageAnswer {
        status,
        content_type: "text/plain; charset=utf-8",
        body: text.as_bytes().to_vec(),
    };
    Ok(match page {
        Page::Alive => text(200, "alive\n"),
        Page::Ready if is_ready(conductor, facts) => text(200, "ready\n"),
        Page::Ready => text(503, &unready(conductor, facts)),
        Page::Metrics => {
            let accept = http::header(request.headers, "accept").and_then(|accept| std::str::from_utf8(accept).ok());
            let format = Format::of(accept);
            let body = metrics::render(conductor, facts, format).into_bytes();
            PageAnswer { status: 200, content_type: format.content_type(), body }
        }
        Page::Status => json(&status(conductor, facts)),
        Page::Health => health::page(request.query(), conductor, facts)?,
        Page::Platforms => platforms::all(conductor, facts),
        Page::Platform(name, topic) => platforms::one(name, topic, request.query(), conductor, facts)?,
        Page::Plugins => platforms::plugins(facts),
        Page::Requests
        | Page::Messages
        | Page::Message(_)
        | Page::MessageEvents(_)
        | Page::Order(..)
        | Page::Unknown
        | Page::DeadLetters
        | Page::DeadLetter(_)
        | Page::Replay(_)
        | Page::Scaling
        | Page::MetricsHistory => return Err(Problem::new(404, "there is no such page; see GET /v1/status")),
    })
}

/// Too much waits for the clerk.
pub(crate) fn store_busy() -> Problem {
    Problem::new(503, "too much is waiting for the store").code("store_busy").retry_after(Duration::from_secs(1))
}

fn json(value: &impl Serialize) -> PageAnswer {
    let mut body = serde_json::to_vec(value).expect("text and numbers always serialise");
    body.push(b'\n');
    PageAnswer { status: 200, content_type: JSON, body }
}

/// Whether every platform takes requests, and what must be kept can be.
pub(crate) fn is_ready(conductor: &Conductor, facts: &Facts<'_>) -> bool {
    conductor.is_ready() && facts.store.trouble.is_none()
}

fn unready(conductor: &Conductor, facts: &Facts<'_>) -> String {
    let mut text = format!("not ready: {}\n", conductor.phase().name());
    if let Some(why) = &facts.store.trouble {
        text.push_str(&format!("the store is shut: {why}\n"));
    }
    for platform in conductor.platforms().filter(|platform| !platform.is_ready) {
        for instance in platform.instances {
            text.push_str(&format!("{}/{}: {}: {}\n", platform.name, instance.instance, instance.state, instance.why));
        }
    }
    text
}

#[derive(Serialize)]
struct StatusPage<'s> {
    version: &'static str,
    pid: u32,
    phase: &'static str,
    ready: bool,
    store: &'s str,
    uptime_s: f64,
    listen: String,
    connections: usize,
    requests_in_flight: usize,
    dead_letters: u64,
    ram: Option<Ram>,
    platforms: Vec<Brief<'s>>,
}

#[derive(Serialize)]
struct Ram {
    measured_s_ago: f64,
    #[serde(flatten)]
    sample: demi_conductor::Sample,
}

#[derive(Serialize)]
struct Brief<'s> {
    name: &'s str,
    ready: bool,
    instances_ready: usize,
    instances: usize,
    queued: usize,
}

fn status<'s>(conductor: &'s Conductor, facts: &'s Facts<'_>) -> StatusPage<'s> {
    StatusPage {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        phase: conductor.phase().name(),
        ready: is_ready(conductor, facts),
        store: match &facts.store.trouble {
            Some(why) => why,
            None if facts.store.is_spent => "store.bytes_per_day_max was written: only what must not be lost still is",
            None => "ok",
        },
        uptime_s: seconds(facts.now, Time::ZERO),
        listen: facts.listen.to_string(),
        connections: facts.connections,
        requests_in_flight: conductor.live(),
        dead_letters: facts.store.dead_letters(),
        ram: conductor.sample().map(|(at, sample)| Ram { measured_s_ago: seconds(facts.now, at), sample }),
        platforms: conductor
            .platforms()
            .map(|platform| Brief {
                name: platform.name,
                ready: platform.is_ready,
                instances_ready: platform.instances.iter().filter(|instance| instance.is_serving).count(),
                instances: platform.instances.len(),
                queued: platform.queued,
            })
            .collect(),
    }
}

/// The status page as JSON, for a host program.
pub(crate) fn status_json(conductor: &Conductor, facts: &Facts<'_>) -> String {
    serde_json::to_string(&status(conductor, facts)).expect("text and numbers always serialise")
}

fn seconds(now: Time, then: Time) -> f64 {
    (now.since(then).as_secs_f64() * 1000.0).round() / 1000.0
}

/// Reads a query in which each of these names may stand once, with a number.
fn read_numbers<const COUNT: usize>(
    query: &str,
    names: [&str; COUNT],
    example: &str,
) -> Result<[Option<u64>; COUNT], Problem> {
    let mut numbers = [None; COUNT];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let wrong = |what: &str| Problem::new(400, format!("{name}={value}: {what}; try ?{example}"));
        let Some(position) = names.iter().position(|known| *known == name) else {
            return Err(wrong("there is no such parameter"));
        };
        if numbers[position].is_some() {
            return Err(wrong("it is given twice"));
        }
        let number = value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse::<u64>().ok()).flatten();
        numbers[position] = Some(number.ok_or_else(|| wrong(&format!("{name} must be a number")))?);
    }
    Ok(numbers)
}

/// The body of `POST /v1/requests`, and of `POST /v1/messages`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask<'a> {
    /// The platform that it goes to without a rule.
    #[serde(borrow, default)]
    to: Cow<'a, str>,
    #[serde(borrow, default)]
    from: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    path: Cow<'a, str>,
    /// `POST` if absent.
    #[serde(borrow, default)]
    method: Cow<'a, str>,
    #[serde(borrow, default)]
    host: Cow<'a, str>,
    #[serde(borrow, default)]
    headers: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    /// The same as the header `Demi-Key`; of a message its conversation.
    #[serde(borrow, default)]
    key: Option<Text<'a>>,
    #[serde(borrow, default)]
    content: Option<Text<'a>>,
    #[serde(borrow, default)]
    json: Option<&'a RawValue>,
    /// These three only of a message: when it is to be delivered, unix milliseconds.
    #[serde(default)]
    not_before: Option<u64>,
    /// The same, from now on.
    #[serde(default)]
    delay_ms: Option<u64>,
    /// When it is not to be delivered any more, from now on.
    #[serde(default)]
    expires_after_ms: Option<u64>,
}

/// A text that is borrowed if it can be: serde copies what stands in an `Option<Cow>`.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'t>(#[serde(borrow)] Cow<'t, str>);

/// Lets `take` have the request that the body of `POST /v1/requests` describes, and the name of the platform that it is
/// for, which is empty if the rules decide.
pub(crate) fn read_ask<T>(body: &[u8], take: impl FnOnce(&Request<'_>, &str) -> T) -> Result<T, Problem> {
    let ask = parse_ask(body)?;
    if ask.not_before.or(ask.delay_ms).or(ask.expires_after_ms).is_some() {
        let what =
            "not_before, delay_ms and expires_after_ms are for messages; use POST /v1/messages, or leave them out";
        return Err(Problem::new(400, what));
    }
    read_parsed(ask, take)
}

fn parse_ask(body: &[u8]) -> Result<Ask<'_>, Problem> {
    let example = r#"write for example {"from":"discord","content":"hello"}"#;
    // A list would be read as the fields in their order.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(Problem::new(400, format!("the body is a list, which is no request; {example}")));
    }
    serde_json::from_slice(body)
        .map_err(|error| Problem::new(400, format!("the body is not a request: {error}; {example}")))
}

fn read_parsed<T>(mut ask: Ask<'_>, take: impl FnOnce(&Request<'_>, &str) -> T) -> Result<T, Problem> {
    if let Some(key) = ask.key.take() {
        ask.headers.insert(Cow::Borrowed(KEY_HEADER), key.0);
    }
    let (content_type, body) = match (&ask.content, ask.json) {
        (Some(_), Some(_)) => return Err(Problem::new(400, "content and json exclude each other; send one of them")),
        (Some(content), None) => ("text/plain; charset=utf-8", content.0.as_bytes()),
        (None, Some(json)) => (JSON, json.get().as_bytes()),
        (None, None) => ("", &b""[..]),
    };
    if !ask.path.is_empty() && !is_target(&ask.path) {
        return Err(Problem::new(400, format!("path {:?} must begin with / and have no spaces", ask.path)));
    }
    let headers = header_lines(&ask.headers, content_type)?;
    let stated = ask.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    let content_type = stated.map_or(content_type, |(_, value)| value.trim());
    let request = Request {
        from: &ask.from,
        kind: &ask.kind,
        method: if ask.method.is_empty() { "POST" } else { &ask.method },
        target: &ask.path,
        content_type,
        host: &ask.host,
        headers: &headers,
        body,
    };
    check_asked(&request)?;
    Ok(take(&request, &ask.to))
}

/// The headers of a message as lines; with its type, because who has headers says everything by them.
fn header_lines(headers: &BTreeMap<Cow<'_, str>, Cow<'_, str>>, content_type: &str) -> Result<Vec<u8>, Problem> {
    let mut lines = Vec::new();
    let mut is_typed = headers.is_empty() || content_type.is_empty();
    for (name, value) in headers {
        lines.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        // None may bring others along.
        if name.contains([':', '\r', '\n']) || value.contains(['\r', '\n']) {
            return Err(Problem::new(400, format!("header {name:?} is not a name with a value of one line")));
        }
        is_typed |= name.eq_ignore_ascii_case("content-type");
    }
    if !is_typed {
        lines.extend_from_slice(format!("Content-Type: {content_type}\r\n").as_bytes());
    }
    Ok(lines)
}

/// Whether what a host program asks may be passed on over HTTP: nobody has parsed it yet.
pub(crate) fn check_asked(request: &Request<'_>) -> Result<(), Problem> {
    let refuse = |what: String| Err(Problem::new(400, what));
    if !http::is_method(request.method) {
        return refuse(format!("method {:?} is not one that is passed on", request.method));
    }
    if !request.target.is_empty() && !is_target(request.target) {
        return refuse(format!("target {:?} must begin with / and have no spaces", request.target));
    }
    if !http::is_host(request.host.as_bytes()) {
        return refuse(format!("host {:?} is not a host with an optional port", request.host));
    }
    if !http::is_value(request.content_type.as_bytes()) {
        return refuse(format!("content type {:?} holds a control byte", request.content_type));
    }
    if !http::are_header_lines(request.headers) {
        return refuse("headers must be lines of `Name: value`, each ended by CRLF".to_owned());
    }
    Ok(())
}

/// A path that may be passed on in a request line.
fn is_target(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

/// What the router is asked of a request.
pub(crate) fn question<'q>(request: &Request<'q>, by_path: bool) -> Question<'q> {
    Question {
        from: request.from,
        kind: request.kind,
        method: request.method,
        host: request.host,
        path: request.path(),
        headers: request.headers,
        content: request.body,
        by_path,
    }
}

/// Whether the caller says that asking twice does no harm.
pub(crate) fn is_idempotent(request: &Request<'_>) -> bool {
    request.is_idempotent() || http::header(request.headers, "idempotency-key").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_known_by_their_path_and_namesakes_are_not_taken() {
        assert_eq!(Page::of("/v1/status"), Some(Page::Status));
        assert_eq!(Page::of("/v1/health"), Some(Page::Health));
        assert_eq!(Page::of("/v1/platforms/echo"), Some(Page::Platform("echo", Topic::State)));
        assert_eq!(Page::of("/v1/platforms/echo/why"), Some(Page::Platform("echo", Topic::Why)));
        assert_eq!(Page::of("/v1/platforms/why"), Some(Page::Platform("why", Topic::State)));
        assert_eq!(Page::of("/v1/platforms/echo/stop"), Some(Page::Order("echo", PlatformOrder::Stop)));
        assert_eq!(Page::of("/v1/platforms/echo/stop/it"), Some(Page::Unknown));
        assert_eq!(Page::of("/v1/platforms//stop"), Some(Page::Unknown));
        assert_eq!(Page::of("/v1/plugins"), Some(Page::Plugins));
        assert_eq!(Page::of("/v1/platforms/"), Some(Page::Unknown));
        assert_eq!(Page::of("/v1/dead-letters"), Some(Page::DeadLetters));
        assert_eq!(Page::of("/v1/dead-letters/1"), Some(Page::DeadLetter(1)));
        assert_eq!(Page::of("/v1/dead-letters/1/replay"), Some(Page::Replay(Some(1))));
        assert_eq!(Page::of("/v1/dead-letters/replay"), Some(Page::Replay(None)));
        assert_eq!(Page::of("/v1/messages"), Some(Page::Messages));
        assert_eq!(Page::of("/v1/messages/1"), Some(Page::Message(1)));
        assert_eq!(Page::of("/v1/messages/1/x"), Some(Page::Unknown));
        assert_eq!(Page::of("/v1/messages/1/events"), Some(Page::MessageEvents(Some(1))));
        assert_eq!(Page::of("/v1/messages/events"), Some(Page::MessageEvents(None)));
        assert_eq!(Page::of("/v1/messages/x/events"), Some(Page::Unknown));
        for wrong in ["/v1/dead-letters/", "/v1/dead-letters/+1", "/v1/dead-letters/1/", "/v1/dead-letters/x/replay"] {
            assert_eq!(Page::of(wrong), Some(Page::Unknown), "{wrong}");
        }
        assert_eq!(Page::of("/v1/metrics/history"), Some(Page::MetricsHistory));
        assert_eq!(Page::of("/v1/metrics"), Some(Page::Unknown));
        assert_eq!(Page::of("/v1/nonsense"), Some(Page::Unknown));
        assert_eq!(Page::of("/metrics/x"), Some(Page::Unknown));
        assert_eq!(Page::of("/v10"), None);
        assert_eq!(Page::of("/metricsx"), None);
    }

    #[test]
    fn every_reserved_path_belongs_to_the_api() {
        for path in demi_conductor::config::RESERVED_PATHS {
            assert!(Page::of(path).is_some(), "{path}");
            assert!(Page::of(&format!("{path}/x")).is_some(), "{path}/x");
        }
    }

    #[test]
    fn a_message_may_say_what_a_plain_request_says_by_itself() {
        let ask = br#"{"method":"PUT","host":"a.example","headers":{"X-B":"c","X-A":"\u00e9"},"path":"/x?y"}"#;
        let told = |request: &Request<'_>| {
            let question = question(request, false);
            (question.method.to_owned(), question.host.to_owned(), question.headers.to_vec(), question.path.to_owned())
        };
        let (method, host, headers, path) = read_ask(ask, |request, _| told(request)).expect("it is right");
        assert_eq!((method.as_str(), host.as_str(), path.as_str()), ("PUT", "a.example", "/x"));
        assert_eq!(headers, "X-A: \u{e9}\r\nX-B: c\r\n".as_bytes());
        assert_eq!(read_ask(b"{}", |request, _| told(request)).expect("it is right").0, "POST");
        let typed = |headers: &str| {
            let ask = format!(r#"{{"headers":{headers},"json":1}}"#);
            let both = |request: &Request<'_>| (request.content_type.to_owned(), request.headers.to_vec());
            read_ask(ask.as_bytes(), |request, _| both(request)).expect("it is right")
        };
        assert_eq!(typed(r#"{"A":"b"}"#), (JSON.to_owned(), b"A: b\r\nContent-Type: application/json\r\n".to_vec()));
        assert_eq!(typed(r#"{"content-TYPE":"a/b"}"#), ("a/b".to_owned(), b"content-TYPE: a/b\r\n".to_vec()));
        assert_eq!(typed("{}"), (JSON.to_owned(), Vec::new()));
    }

    #[test]
    fn a_request_is_text_or_json_and_never_both() {
        let body = |json: &[u8]| read_ask(json, |request, _| (request.content_type.to_owned(), request.body.to_vec()));
        assert_eq!(body(br#"{"content":"a\nb"}"#).expect("it is text").1, b"a\nb");
        assert_eq!(body(br#"{"json":{"a": 1}}"#).expect("it is JSON").1, br#"{"a": 1}"#);
        for wrong in [
            &br#"{"content":"a","json":1}"#[..],
            b"{",
            b"[]",
            br#"{"contents":"a"}"#,
            br#"{"path":"a"}"#,
            br#"{"method":"GET /"}"#,
            br#"{"host":"a b"}"#,
            br#"{"headers":{"A b":"c"}}"#,
            br#"{"headers":{"A":"b\r\nC: d"}}"#,
            br#"{"headers":{"A: b\r\nC":"d"}}"#,
            b"\xff",
        ] {
            assert_eq!(body(wrong).expect_err("it is wrong").status(), 400);
        }
    }
}
