//! The steps for `protocol: "demi/1"`.

use demi::{Reply, Request};
use demi_platform::codec;
use serde_json::value::{to_raw_value, RawValue};
use serde_json::{json, Value};

use super::subject::{Answer, Seen, Subject};
use super::suite::{tell, Suite, PROMPT, WORKING};

/// Requests at once: as many as show that ids are kept apart, and few enough for one who answers them in turn.
const AT_ONCE: u64 = 16;
/// The body of a long request: as long as Demi lets one be by default.
const LONG_BODY_BYTES: usize = 1 << 20;

const STEPS: [&str; 10] = [
    "health",
    "a request",
    "16 requests at once",
    "cancellation",
    "garbage",
    "an unknown method",
    "a long request",
    "shutdown",
    "end of stdin",
    "TERM",
];

/// Checks everything, in this order.
pub(super) fn run(suite: &mut Suite<'_>) {
    if suite.shake_hands().is_none() {
        return suite.give_up(&STEPS);
    }
    suite.step(STEPS[0], health);
    suite.step(STEPS[1], request);
    suite.step(STEPS[2], requests_at_once);
    suite.step(STEPS[3], cancellation);
    suite.garbage();
    suite.step(STEPS[5], unknown_method);
    suite.step(STEPS[6], long_request);
    suite.endings();
}

/// What was expected, and what was seen.
type Failed = (String, String);

fn failed(expected: &str, seen: String) -> Failed {
    (expected.to_owned(), seen)
}

fn health(suite: &Suite<'_>, subject: &mut Subject) -> Result<String, Failed> {
    let expected = r#"`health` to be answered with {"status":"up"}, "down" or "busy""#;
    let id = subject.call("health", &Value::Null);
    match subject.answer(id, suite.within(PROMPT)) {
        Seen::Answer(Answer::Result(result)) => match codec::read_health(&raw(&result)) {
            Ok(health) => Ok(format!("it says that it is {}", result["status"].as_str().unwrap_or_default())
                + &health.error.map_or(String::new(), |error| format!(": {error}"))),
            Err(error) => Err(failed(expected, format!("the answer {result}, which does not fit: {error}"))),
        },
        other => Err(failed(expected, tell(&other))),
    }
}

fn request(suite: &Suite<'_>, subject: &mut Subject) -> Result<String, Failed> {
    let body = "hello from demi plugin check: \"quotes\", a \\ and grüße";
    let id = ask(subject, body.as_bytes());
    let seen = subject.answer(id, suite.within(WORKING));
    read_reply(&seen).map(|reply| match reply {
        Response::Reply(reply) if reply.body == body.as_bytes() => {
            format!("it was echoed with status {}", reply.status)
        }
        Response::Reply(reply) => format!("answered with status {} and {} bytes", reply.status, reply.body.len()),
        Response::Fault(fault) => format!("answered with {fault}"),
    })
}

fn requests_at_once(suite: &Suite<'_>, subject: &mut Subject) -> Result<String, Failed> {
    let ids: Vec<u64> = (0..AT_ONCE).map(|number| ask(subject, format!("request {number}").as_bytes())).collect();
    let deadline = suite.within(WORKING);
    for id in &ids {
        let seen = subject.answer(*id, deadline);
        if !matches!(seen, Seen::Answer(_)) {
            let answered = ids.iter().filter(|id| subject.answers_to(**id) > 0).count();
            let seen = format!("{answered} answers, then {}", tell(&seen));
            return Err(failed("16 answers to 16 requests that were sent at once", seen));
        }
        read_reply(&seen)?;
    }
    // Whoever answers twice has done so by the time that he answers something asked later.
    suite.sign_of_life(subject).map_err(|seen| failed("it to live on after 16 requests", seen))?;
    match ids.iter().find(|id| subject.answers_to(**id) > 1) {
        Some(id) => Err(failed("each id to be answered exactly once", format!("two answers to {id}"))),
        None => Ok("each was answered exactly once".to_owned()),
    }
}

fn cancellation(suite: &Suite<'_>, subject: &mut Subject) -> Result<String, Failed> {
    let cancelled = ask(subject, b"nobody waits for this");
    let mut line = Vec::new();
    codec::write_cancel(&mut line, cancelled);
    // One that was never asked, as after an answer that crossed its cancellation.
    codec::write_cancel(&mut line, cancelled + 1_000_000);
    subject.send(line);
    let next = ask(subject, b"somebody waits for this");
    let seen = subject.answer(next, suite.within(WORKING));
    if !matches!(seen, Seen::Answer(_)) {
        return Err(failed("a request after a cancelled one to be answered", tell(&seen)));
    }
    read_reply(&seen)?;
    let answered = if subject.answers_to(cancelled) == 0 { "not answered" } else { "answered all the same" };
    Ok(format!("the next request is answered; the cancelled one was {answered}"))
}

fn unknown_method(suite: &Suite<'_>, subject: &mut Subject) -> Result<String, Failed> {
    let expected = format!("error {} to a method that does not exist", codec::NO_METHOD);
    let id = subject.call("demi.check.nothing", &Value::Null);
    match subject.answer(id, suite.within(PROMPT)) {
        Seen::Answer(Answer::Error { code, .. }) => Ok(format!("error {code}")),
        other => Err((expected, tell(&other))),
    }
}

fn long_request(suite: &Suite<'_>, subject: &mut Subject) -> Result<String, Failed> {
    let id = ask(subject, &vec![b'x'; LONG_BODY_BYTES]);
    let seen = subject.answer(id, suite.within(WORKING));
    if !matches!(seen, Seen::Answer(_)) {
        return Err(failed("a body of 1 MiB to be answered or refused", tell(&seen)));
    }
    let told = match read_reply(&seen)? {
        Response::Reply(reply) => format!("a body of 1 MiB is answered with {} bytes", reply.body.len()),
        Response::Fault(fault) => format!("a body of 1 MiB is refused: {fault}"),
    };
    suite.sign_of_life(subject).map_err(|seen| failed("it to live on after a body of 1 MiB", seen))?;
    Ok(told)
}

/// Sends a request, as Demi writes it.
fn ask(subject: &mut Subject, body: &[u8]) -> u64 {
    let id = subject.next_id();
    let request = Request {
        from: "check",
        kind: "message",
        method: "POST",
        target: "/check",
        content_type: "text/plain; charset=utf-8",
        body,
        ..Request::default()
    };
    let mut line = Vec::new();
    codec::write_handle(&mut line, id, &request);
    subject.send(line);
    id
}

/// A well-formed answer to a request: a fault is one too.
enum Response {
    Reply(Reply),
    /// In words.
    Fault(String),
}

/// Reads the answer to a request.
fn read_reply(seen: &Seen) -> Result<Response, Failed> {
    let expected = r#"a request to be answered with {"status":200,"body":"…"}, or an error"#;
    match seen {
        Seen::Answer(Answer::Result(result)) => {
            let mut reply = Reply::default();
            match codec::read_reply(&raw(result), &mut reply) {
                Ok(()) => Ok(Response::Reply(reply)),
                Err(error) => {
                    Err(failed(expected, format!("the answer {}, which does not fit: {error}", json!(result))))
                }
            }
        }
        Seen::Answer(Answer::Error { code: 0, .. }) => Err(failed(expected, "an error without a code".to_owned())),
        Seen::Answer(Answer::Error { code, message }) => Ok(Response::Fault(format!("error {code}: {message}"))),
        other => Err(failed(expected, tell(other))),
    }
}

fn raw(value: &Value) -> Box<RawValue> {
    to_raw_value(value).expect("what was JSON is JSON")
}
