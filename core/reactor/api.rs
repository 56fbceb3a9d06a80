//! Demi's own API: what the paths below `/v1` and the health pages answer.

use std::borrow::Cow;

use demi_conductor::config::Host;
use demi_conductor::{Conductor, Question, Time};
use demi_platform::Request;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::http;
use crate::metrics;
use crate::problem::Problem;

/// A page of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page<'p> {
    /// `POST /v1/requests`.
    Requests,
    /// `GET /v1/status`.
    Status,
    /// `GET /v1/platforms`.
    Platforms,
    /// `GET /v1/platforms/NAME`.
    Platform(&'p str),
    /// `GET /healthz`: the process is alive.
    Alive,
    /// `GET /readyz`: every platform takes requests.
    Ready,
    /// `GET /metrics`.
    Metrics,
    /// A path of the API that leads nowhere.
    Unknown,
}

impl<'p> Page<'p> {
    /// The page of a path; `None` if the path does not belong to the API.
    pub(crate) fn of(path: &'p str) -> Option<Page<'p>> {
        Some(match path {
            "/v1/requests" => Page::Requests,
            "/v1/status" => Page::Status,
            "/v1/platforms" => Page::Platforms,
            "/healthz" => Page::Alive,
            "/readyz" => Page::Ready,
            "/metrics" => Page::Metrics,
            "/v1" => Page::Unknown,
            _ => match path.strip_prefix("/v1/") {
                Some(rest) => match rest.strip_prefix("platforms/") {
                    Some(name) if !name.is_empty() && !name.contains('/') => Page::Platform(name),
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
}

/// What the reactor knows and the conductor does not.
pub(crate) struct Facts<'f> {
    pub(crate) now: Time,
    pub(crate) connections: usize,
    pub(crate) counts: crate::listener::Counts,
    pub(crate) listen: std::net::SocketAddr,
    pub(crate) dead_letters: u64,
    pub(crate) slow_turns: u64,
    pub(crate) body_bytes: usize,
    pub(crate) pid_of: &'f dyn Fn(u32) -> Option<u32>,
}

/// An answer to a question about Demi itself.
pub(crate) struct PageAnswer {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) body: Vec<u8>,
}

const JSON: &str = "application/json";

/// Answers a GET of a page. The caller has checked the method.
pub(crate) fn answer(page: Page<'_>, conductor: &Conductor, facts: &Facts<'_>) -> Result<PageAnswer, Problem> {
    let text = |status, text: &str| PageAnswer {
        status,
        content_type: "text/plain; charset=utf-8",
        body: text.as_bytes().to_vec(),
    };
    Ok(match page {
        Page::Alive => text(200, "alive\n"),
        Page::Ready if conductor.is_ready() => text(200, "ready\n"),
        Page::Ready => text(503, &unready(conductor)),
        Page::Metrics => PageAnswer {
            status: 200,
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            body: metrics::render(conductor, facts).into_bytes(),
        },
        Page::Status => json(&status(conductor, facts)),
        Page::Platforms => json(&platforms(conductor, facts).collect::<Vec<_>>()),
        Page::Platform(name) => match platforms(conductor, facts).find(|platform| platform.name == name) {
            Some(platform) => json(&platform),
            None => {
                let names: Vec<&str> = conductor.platforms().map(|platform| platform.name).collect();
                let known = names.join(", ");
                return Err(Problem::new(404, format!("no platform is named {name:?}; known are: {known}")));
            }
        },
        Page::Requests | Page::Unknown => return Err(Problem::new(404, "there is no such page; see GET /v1/status")),
    })
}

fn json(value: &impl Serialize) -> PageAnswer {
    let mut body = serde_json::to_vec(value).expect("text and numbers always serialise");
    body.push(b'\n');
    PageAnswer { status: 200, content_type: JSON, body }
}

fn unready(conductor: &Conductor) -> String {
    let mut text = format!("not ready: {}\n", conductor.phase().name());
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

fn status<'s>(conductor: &'s Conductor, facts: &Facts<'_>) -> StatusPage<'s> {
    StatusPage {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        phase: conductor.phase().name(),
        ready: conductor.is_ready(),
        uptime_s: seconds(facts.now, Time::ZERO),
        listen: facts.listen.to_string(),
        connections: facts.connections,
        requests_in_flight: conductor.live(),
        dead_letters: facts.dead_letters,
        ram: conductor.sample().map(|(at, sample)| Ram { measured_s_ago: seconds(facts.now, at), sample }),
        platforms: conductor
            .platforms()
            .map(|platform| Brief {
                name: platform.name,
                ready: platform.is_ready,
                instances_ready: platform.instances.iter().filter(|instance| is_serving(instance.state)).count(),
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

fn is_serving(state: &str) -> bool {
    matches!(state, "ready" | "degraded")
}

fn seconds(now: Time, then: Time) -> f64 {
    (now.since(then).as_secs_f64() * 1000.0).round() / 1000.0
}

#[derive(Serialize)]
struct PlatformPage<'s> {
    name: &'s str,
    host: &'static str,
    ready: bool,
    queued: usize,
    requests: u64,
    restarts: u64,
    instances: Vec<InstancePage>,
}

#[derive(Serialize)]
struct InstancePage {
    #[serde(flatten)]
    status: demi_conductor::InstanceStatus,
    since_s_ago: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
}

fn platforms<'s>(conductor: &'s Conductor, facts: &'s Facts<'_>) -> impl Iterator<Item = PlatformPage<'s>> + 's {
    conductor.platforms().map(|platform| PlatformPage {
        name: platform.name,
        host: match platform.host {
            Host::Inline => "inline",
            Host::Threads(_) => "threads",
            Host::Process(_) => "process",
            Host::Http => "http",
        },
        ready: platform.is_ready,
        queued: platform.queued,
        requests: platform.stats.asked,
        restarts: platform.stats.restarts,
        instances: platform
            .instances
            .into_iter()
            .map(|status| InstancePage {
                since_s_ago: seconds(facts.now, status.since),
                pid: (facts.pid_of)(status.slot),
                status,
            })
            .collect(),
    })
}

/// The body of `POST /v1/requests`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask<'a> {
    #[serde(borrow, default)]
    from: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    path: Cow<'a, str>,
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    json: Option<&'a RawValue>,
}

/// Lets `take` have the request that the body of `POST /v1/requests` describes.
pub(crate) fn read_ask<T>(body: &[u8], take: impl FnOnce(&Request<'_>) -> T) -> Result<T, Problem> {
    let example = r#"write for example {"from":"discord","content":"hello"}"#;
    let ask: Ask<'_> = serde_json::from_slice(body)
        .map_err(|error| Problem::new(400, format!("the body is not a request: {error}; {example}")))?;
    let (content_type, body) = match (&ask.content, ask.json) {
        (Some(_), Some(_)) => return Err(Problem::new(400, "content and json exclude each other; send one of them")),
        (Some(content), None) => ("text/plain; charset=utf-8", content.as_bytes()),
        (None, Some(json)) => (JSON, json.get().as_bytes()),
        (None, None) => ("", &b""[..]),
    };
    if !ask.path.is_empty() && !is_target(&ask.path) {
        return Err(Problem::new(400, format!("path {:?} must begin with / and have no spaces", ask.path)));
    }
    let request = Request {
        from: &ask.from,
        kind: &ask.kind,
        method: "POST",
        target: &ask.path,
        content_type,
        body,
        ..Request::default()
    };
    Ok(take(&request))
}

/// A path that may be passed on in a request line.
fn is_target(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

/// What the router is asked of a request.
pub(crate) fn question<'q>(request: &Request<'q>, by_path: bool) -> Question<'q> {
    Question { from: request.from, kind: request.kind, path: request.path(), content: request.body, by_path }
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
        assert_eq!(Page::of("/v1/platforms/echo"), Some(Page::Platform("echo")));
        assert_eq!(Page::of("/v1/platforms/"), Some(Page::Unknown));
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
    fn a_request_is_text_or_json_and_never_both() {
        let body = |json: &[u8]| read_ask(json, |request| (request.content_type.to_owned(), request.body.to_vec()));
        assert_eq!(body(br#"{"content":"a\nb"}"#).expect("it is text").1, b"a\nb");
        assert_eq!(body(br#"{"json":{"a": 1}}"#).expect("it is JSON").1, br#"{"a": 1}"#);
        for wrong in
            [&br#"{"content":"a","json":1}"#[..], b"{", b"[]", br#"{"contents":"a"}"#, br#"{"path":"a"}"#, b"\xff"]
        {
            assert_eq!(body(wrong).expect_err("it is wrong").status(), 400);
        }
    }
}
