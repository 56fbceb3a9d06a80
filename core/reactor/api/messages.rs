//! `/v1/messages`: what is to be delivered though nobody waits for the answer. `docs/messages.md` describes it.

use demi_platform::Request;
use serde::Serialize;

use super::{parse_ask, read_parsed, Ask};
use crate::http;
use crate::problem::Problem;
use crate::store::{Post, PostEnd, PostResult};

/// The header that makes two messages the same one.
const IDEMPOTENCY_HEADER: &str = "Idempotency-Key";

/// The longest that a message may be told to wait: one that waits for ever holds back its conversation for ever.
const WAITS_MS_MAX: u64 = 365 * 86_400_000;

/// What a client says of a message besides the request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// The conversation within which order is kept; empty if it has none.
    pub(crate) conversation: String,
    /// Not to be delivered before, unix milliseconds; 0: at once.
    pub(crate) not_before_unix_ms: u64,
    /// Not to be delivered after, unix milliseconds; 0: never.
    pub(crate) expires_unix_ms: u64,
}

/// Lets `take` have the request that the body of `POST /v1/messages` describes, the name of the platform that it is for,
/// which is empty if the rules decide, and what is wished besides. `unix_ms` is now.
pub(crate) fn read_message<T>(
    body: &[u8],
    unix_ms: u64,
    take: impl FnOnce(&Request<'_>, &str, Wishes) -> T,
) -> Result<T, Problem> {
    let mut ask = parse_ask(body)?;
    if !(ask.headers.is_empty() && ask.host.is_empty()) {
        let what = "a message is kept without headers and host; leave them out, or use POST /v1/requests";
        return Err(Problem::new(400, what));
    }
    let wishes = Wishes::of(&mut ask, unix_ms)?;
    read_parsed(ask, |request, to| take(request, to, wishes))
}

impl Wishes {
    fn of(ask: &mut Ask<'_>, unix_ms: u64) -> Result<Wishes, Problem> {
        let refuse = |what: &str| Err(Problem::new(400, what));
        let not_before_unix_ms = match (ask.not_before.take(), ask.delay_ms.take()) {
            (Some(_), Some(_)) => return refuse("not_before and delay_ms exclude each other; send one of them"),
            (Some(at), None) => at,
            (None, Some(delay)) => unix_ms.saturating_add(delay),
            (None, None) => 0,
        };
        if not_before_unix_ms > unix_ms.saturating_add(WAITS_MS_MAX) {
            return refuse(
                "it would wait for longer than a year; not_before is in unix milliseconds, delay_ms in milliseconds",
            );
        }
        let expires_unix_ms = match ask.expires_after_ms.take() {
            Some(0) => {
                return refuse("expires_after_ms must be at least 1; leave it out for a message that does not expire")
            }
            Some(after) => unix_ms.saturating_add(after),
            None => 0,
        };
        if expires_unix_ms != 0 && expires_unix_ms <= not_before_unix_ms {
            return refuse("it would expire before it may be delivered; expires_after_ms counts from now");
        }
        let conversation = ask.key.take().map(|key| key.0.into_owned()).unwrap_or_default();
        Ok(Wishes { conversation, not_before_unix_ms, expires_unix_ms })
    }
}

/// The idempotency key of a request; empty if it has none.
pub(crate) fn idempotency_key(headers: &[u8]) -> Result<String, Problem> {
    let is_it = |name: &[u8]| name.eq_ignore_ascii_case(IDEMPOTENCY_HEADER.as_bytes());
    let mut keys = http::header_lines(headers).filter(|(name, _)| is_it(name)).map(|(_, value)| value);
    let refuse = |what: &str| Err(Problem::new(400, what));
    match (keys.next(), keys.next()) {
        (None, _) => Ok(String::new()),
        (Some(_), Some(_)) => refuse("it has two Idempotency-Key lines; send one"),
        (Some(b""), None) => refuse("its Idempotency-Key is empty; leave it out, or give it a value"),
        (Some(key), None) => match std::str::from_utf8(key) {
            Ok(key) => Ok(key.to_owned()),
            Err(_) => refuse("its Idempotency-Key is not UTF-8"),
        },
    }
}

/// There is no message of this number, or none any more.
pub(crate) fn no_message(id: u64) -> Problem {
    let what = format!("there is no message {id}; what became of one is known for a day");
    Problem::new(404, what).code("no_message")
}

#[derive(Serialize)]
struct Queued {
    id: String,
    status: &'static str,
}

/// A message was taken in.
pub(crate) fn queued_json(id: u64) -> Vec<u8> {
    super::json(&Queued { id: id.to_string(), status: "queued" }).body
}

#[derive(Serialize)]
struct Waiting<'p> {
    #[serde(flatten)]
    queued: Queued,
    platform: &'p str,
    attempts: u32,
    accepted_unix_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before_unix_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_unix_ms: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    last_error: &'p str,
}

/// A message that has not ended.
pub(crate) fn waiting_json(id: u64, post: &Post) -> Vec<u8> {
    let time = |unix_ms: u64| (unix_ms != 0).then_some(unix_ms);
    let waiting = Waiting {
        queued: Queued { id: id.to_string(), status: "queued" },
        platform: &post.platform,
        attempts: post.attempts,
        accepted_unix_ms: post.accepted_unix_ms,
        not_before_unix_ms: time(post.not_before_unix_ms),
        expires_unix_ms: time(post.expires_unix_ms),
        last_error: &post.last_error,
    };
    super::json(&waiting).body
}

#[derive(Serialize)]
#[serde(untagged)]
enum Ended<'r> {
    Delivered { id: String, status: &'static str, unix_ms: u64, attempts: u32, answer: Answer<'r> },
    Dead { id: String, status: &'static str, unix_ms: u64, attempts: u32, reason: &'r str, dead_letter: u64 },
}

/// What the platform answered; a status of 0 means that a crash of the disk came between the answer and its being kept.
#[derive(Serialize)]
struct Answer<'r> {
    status: u16,
    instance: &'r str,
}

/// A message that has ended.
pub(crate) fn ended_json(id: u64, result: &PostResult) -> Vec<u8> {
    let (id, unix_ms, attempts) = (id.to_string(), result.settled_unix_ms, result.attempts);
    let ended = match result.end {
        PostEnd::Delivered => {
            let answer = Answer { status: result.status, instance: &result.instance };
            Ended::Delivered { id, status: "delivered", unix_ms, attempts, answer }
        }
        PostEnd::Buried(dead_letter) => {
            Ended::Dead { id, status: "dead", unix_ms, attempts, reason: &result.error, dead_letter }
        }
    };
    super::json(&ended).body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &[u8]) -> Result<(String, String, Wishes), Problem> {
        read_message(body, 1_000, |request, to, wishes| {
            (to.to_owned(), String::from_utf8_lossy(request.body).into_owned(), wishes)
        })
    }

    #[test]
    fn a_message_says_when_it_is_to_be_delivered_and_in_which_conversation() {
        let whole = br#"{"to":"a","content":"b","key":"c","delay_ms":5,"expires_after_ms":7}"#;
        let wishes = Wishes { conversation: "c".into(), not_before_unix_ms: 1_005, expires_unix_ms: 1_007 };
        assert_eq!(read(whole).expect("it is right"), ("a".into(), "b".into(), wishes));
        let wishes = read(br#"{"not_before":77}"#).expect("it is right").2;
        assert_eq!(wishes, Wishes { conversation: String::new(), not_before_unix_ms: 77, expires_unix_ms: 0 });
    }

    #[test]
    fn a_message_that_contradicts_itself_or_could_not_be_kept_whole_is_refused() {
        for wrong in [
            &br#"{"not_before":1,"delay_ms":1}"#[..],
            br#"{"expires_after_ms":0}"#,
            br#"{"delay_ms":10,"expires_after_ms":10}"#,
            br#"{"headers":{"A":"b"}}"#,
            br#"{"host":"a.example"}"#,
            br#"{"delay_ms":-1}"#,
        ] {
            assert_eq!(read(wrong).expect_err("it is wrong").status(), 400);
        }
    }
}
