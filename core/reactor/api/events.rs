//! What becomes of messages, as events of a stream: what the pages of messages show, when it comes about.
//! `docs/messages.md` describes them.

use serde::Serialize;

use super::messages::{ended_json, waiting_json};
use super::number;
use crate::http::{self, MediaRange};
use crate::problem::Problem;
use crate::store::{cut_error, Post, PostEnd, PostResult};

/// Whether whoever asks would take a stream of events, by its `Accept` (RFC 9110 §12.5.1).
pub(crate) fn check_accept(headers: &[u8]) -> Result<(), Problem> {
    let mut best = None;
    let lines = http::header_lines(headers).filter(|(name, _)| name.eq_ignore_ascii_case(b"accept"));
    for range in lines.flat_map(|(_, value)| http::list(value)).filter(|range| !range.is_empty()) {
        let text = String::from_utf8_lossy(range).to_ascii_lowercase();
        let MediaRange { media, weight, .. } = MediaRange::of(&text);
        let rank = match media {
            "text/event-stream" => 3,
            "text/*" => 2,
            "*/*" => 1,
            // It is asked for something, and that is something else.
            _ => 0,
        };
        best = best.max(Some((rank, weight)));
    }
    match best {
        Some((0, _) | (_, 0)) => {
            let what = "this is a stream of events; send Accept: text/event-stream, or no Accept";
            Err(Problem::new(406, what).code("not_acceptable"))
        }
        _ => Ok(()),
    }
}

/// The number of the last end that a client has been told, if it says.
pub(crate) fn last_event_id(headers: &[u8]) -> Result<Option<u64>, Problem> {
    let Some(value) = http::header(headers, "last-event-id") else { return Ok(None) };
    let number = std::str::from_utf8(value).ok().and_then(number);
    let what =
        "its Last-Event-ID is not the `id` of an event of this stream; leave it out to be told what comes from now on";
    number.map(Some).ok_or_else(|| Problem::new(400, what))
}

/// A message that has not ended.
pub(crate) fn waiting_event(id: u64, post: &Post) -> Vec<u8> {
    event(None, "queued", &waiting_json(id, post))
}

/// A message that has ended. `event_id`: what a client gives back that was cut off.
pub(crate) fn ended_event(event_id: Option<u64>, id: u64, result: &PostResult) -> Vec<u8> {
    let name = match result.end {
        PostEnd::Delivered => "delivered",
        PostEnd::Buried(_) => "dead",
    };
    event(event_id, name, &ended_json(id, result))
}

#[derive(Serialize)]
struct Attempt<'e> {
    id: String,
    status: &'static str,
    attempts: u32,
    last_error: &'e str,
}

/// An attempt to deliver a message failed, the last of so many, and it will be tried again.
pub(crate) fn attempt_event(id: u64, attempts: u32, error: &str) -> Vec<u8> {
    let attempt = Attempt { id: id.to_string(), status: "queued", attempts, last_error: cut_error(error) };
    event(None, "attempt", &super::json(&attempt).body)
}

/// Says where in the order of all ends a stream begins, and nothing else.
pub(crate) fn position(number: u64) -> Vec<u8> {
    format!("id: {number}\n\n").into_bytes()
}

/// `json` is one line, and ends as one.
fn event(id: Option<u64>, name: &str, json: &[u8]) -> Vec<u8> {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    let mut text = format!("{id}event: {name}\ndata: ").into_bytes();
    text.extend_from_slice(json);
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(event: Vec<u8>) -> String {
        String::from_utf8(event).expect("it is text")
    }

    #[test]
    fn an_event_is_the_page_of_its_message_in_one_line() {
        let result =
            PostResult { settled_unix_ms: 5, status: 200, attempts: 1, instance: "m/0".into(), ..Default::default() };
        let json =
            r#"{"id":"7","status":"delivered","unix_ms":5,"attempts":1,"answer":{"status":200,"instance":"m/0"}}"#;
        assert_eq!(text(ended_event(Some(9), 7, &result)), format!("id: 9\nevent: delivered\ndata: {json}\n\n"));
        let result = PostResult { end: PostEnd::Buried(3), error: "failed".into(), ..result };
        let dead = text(ended_event(None, 7, &result));
        assert!(dead.starts_with("event: dead\ndata: {\"id\":\"7\",\"status\":\"dead\""), "{dead}");
        let waits = text(waiting_event(7, &Post { last_error: "a\nb\r".into(), ..Post::default() }));
        assert!(
            waits.starts_with("event: queued\ndata: {") && waits.ends_with("\"last_error\":\"a\\nb\\r\"}\n\n"),
            "{waits}"
        );
        let attempt = text(attempt_event(7, 2, &"\n".repeat(10_000)));
        assert!(
            attempt.starts_with("event: attempt\ndata: {\"id\":\"7\",\"status\":\"queued\",\"attempts\":2,"),
            "{attempt}"
        );
        assert!(attempt.lines().count() == 3 && attempt.len() < 1_000, "{attempt}");
        assert_eq!(position(5), b"id: 5\n\n");
    }

    #[test]
    fn a_stream_is_for_those_who_take_one() {
        let takes = |accept: &str| check_accept(accept.as_bytes()).is_ok();
        for accept in [
            "",
            "Accept: text/event-stream\r\n",
            "accept: TEXT/Event-Stream;q=0.1, application/json\r\n",
            "Accept: */*\r\n",
            "Accept: application/json, text/*;q=0.5\r\n",
            "Accept: application/json\r\nAccept: text/event-stream\r\n",
            "Accept: text/*;q=0, text/event-stream\r\n",
            "Accept:\r\n",
        ] {
            assert!(takes(accept), "{accept}");
        }
        for accept in [
            "Accept: application/json\r\n",
            "Accept: text/event-stream;q=0, */*\r\n",
            "Accept: text/plain, application/*\r\n",
            "Accept: */*; q=0.0\r\n",
            "Accept: text/event-stream;q=\u{e9}\r\n",
        ] {
            assert!(!takes(accept), "{accept}");
        }
    }

    #[test]
    fn a_client_goes_on_after_a_number_or_is_told_that_it_is_none() {
        assert_eq!(last_event_id(b"").expect("there is none"), None);
        assert_eq!(last_event_id(b"Last-Event-ID: 17\r\n").expect("it is one"), Some(17));
        for wrong in ["", "x", "-1", "+1", "1.0", "99999999999999999999", "\u{e9}"] {
            let line = format!("last-event-id: {wrong}\r\n");
            assert_eq!(last_event_id(line.as_bytes()).expect_err("it is none").status(), 400, "{wrong}");
        }
    }
}
