//! `/v1/dead-letters`: which letters someone means, and how they are shown. `docs/dead-letters.md` describes it.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde::Serialize;

use super::history::read_span;
use super::json;
use crate::problem::Problem;
use crate::store::{DeadLetter, LetterFilter, LetterPage};

/// Which dead letters someone wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) filter: LetterFilter,
    /// Those with an id above this.
    pub(crate) after: u64,
    /// So many at most.
    pub(crate) limit: usize,
}

/// Letters in a list when nobody says how many; and the most one may ask for.
const LISTED: usize = 50;
const LISTED_MAX: usize = 500;

const EXAMPLE: &str = "?platform=NAME&reason=TEXT&older_than=1d&limit=50&after=0";

/// What may stand in a query.
#[derive(Default)]
struct Words {
    filter: LetterFilter,
    after: Option<u64>,
    limit: Option<u64>,
    /// All of them are meant, and that is said.
    all: bool,
    is_filtered: bool,
}

impl Words {
    fn read(query: &str, unix_ms: u64) -> Result<Words, Problem> {
        let mut words = Words::default();
        let mut seen: Vec<&str> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let wrong = |what: &str| Problem::new(400, format!("{name}={value}: {what}; try {EXAMPLE}"));
            if seen.contains(&name) {
                return Err(wrong("it is given twice"));
            }
            seen.push(name);
            let number = || {
                let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                let number = is_number.then(|| value.parse().ok()).flatten();
                number.ok_or_else(|| wrong(&format!("{name} must be a number")))
            };
            let text = || match decoded(value) {
                Some(text) if !text.is_empty() => Ok(Some(text)),
                _ => Err(wrong("it must be a text, percent-encoded where it has to be")),
            };
            let ago = || {
                let span =
                    read_span(value).ok_or_else(|| wrong("it must be a span of time, such as 90m, 24h or 7d"))?;
                Ok(Some(unix_ms.saturating_sub(span.saturating_mul(1000))))
            };
            match name {
                "after" => words.after = Some(number()?),
                "limit" => words.limit = Some(number()?),
                "all" if value == "true" => words.all = true,
                "all" => return Err(wrong("all can only be true")),
                "platform" => words.filter.platform = text()?,
                "route" => words.filter.route = text()?,
                "reason" => words.filter.reason = text()?,
                "older_than" => words.filter.until_unix_ms = ago()?,
                "newer_than" => words.filter.from_unix_ms = ago()?,
                _ => return Err(wrong("there is no such parameter")),
            }
        }
        words.is_filtered = words.filter != LetterFilter::default();
        Ok(words)
    }
}

/// Reads the query of `GET /v1/dead-letters`, and of a replay.
pub(crate) fn read_listing(query: &str, unix_ms: u64) -> Result<Listing, Problem> {
    let words = Words::read(query, unix_ms)?;
    let limit = words.limit.map_or(LISTED, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    if !(1..=LISTED_MAX).contains(&limit) {
        let what = format!("limit={limit}: limit must be a number from 1 to {LISTED_MAX}; try {EXAMPLE}");
        return Err(Problem::new(400, what));
    }
    Ok(Listing { filter: words.filter, after: words.after.unwrap_or(0), limit })
}

/// Reads the query of `DELETE /v1/dead-letters`. Nobody takes all away by leaving something out.
pub(crate) fn read_purge(query: &str, unix_ms: u64) -> Result<LetterFilter, Problem> {
    let words = Words::read(query, unix_ms)?;
    if words.after.is_some() || words.limit.is_some() {
        return Err(Problem::new(
            400,
            "after and limit are for lists; say which letters by platform, route, reason or age",
        ));
    }
    if words.is_filtered == words.all {
        let what =
            "say which letters by platform, route, reason, older_than or newer_than, or all=true if you mean all";
        return Err(Problem::new(400, what));
    }
    Ok(words.filter)
}

/// A value of a query; `None` if it is not UTF-8, or not encoded as it should be.
fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// There is no such letter.
pub(crate) fn no_letter(id: u64) -> Problem {
    Problem::new(404, format!("there is no dead letter {id}; see GET /v1/dead-letters")).code("no_dead_letter")
}

/// There is nothing in this letter that could be sent.
pub(crate) fn only_remains(id: u64) -> Problem {
    let what = format!(
        "dead letter {id} is what is left of a message that could not be read any more, and cannot be sent; post it anew \
         and purge this one"
    );
    Problem::new(409, what).code("remains")
}

#[derive(Serialize)]
struct DeadLettersPage<'l> {
    dead_letters: Vec<DeadLetterEntry<'l>>,
    /// What to give as `after` for those that follow.
    next: Option<u64>,
}

#[derive(Serialize)]
struct DeadLetterEntry<'l> {
    id: u64,
    buried_at_unix_ms: u64,
    platform: &'l str,
    route: &'l str,
    reason: &'l str,
    attempts: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    first_error: &'l str,
    replays: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    last_error: &'l str,
    #[serde(skip_serializing_if = "is_zero")]
    post: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    conversation: &'l str,
    from: &'l str,
    kind: &'l str,
    method: &'l str,
    target: &'l str,
    content_type: &'l str,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'l str>,
    /// A body that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde wants a reference
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn entry(id: u64, letter: &DeadLetter) -> DeadLetterEntry<'_> {
    let body = std::str::from_utf8(&letter.body).ok();
    DeadLetterEntry {
        id,
        buried_at_unix_ms: letter.buried_at_unix_ms,
        platform: &letter.platform,
        route: &letter.route,
        reason: &letter.reason,
        attempts: letter.attempts,
        first_error: &letter.first_error,
        replays: letter.replays,
        last_error: &letter.last_error,
        post: letter.post,
        conversation: &letter.conversation,
        from: &letter.from,
        kind: &letter.kind,
        method: &letter.method,
        target: &letter.target,
        content_type: &letter.content_type,
        body,
        body_base64: body.is_none().then(|| STANDARD.encode(&letter.body)),
    }
}

/// The page of dead letters as JSON.
pub(crate) fn dead_letters_json(page: &LetterPage) -> Vec<u8> {
    let entries = page.letters.iter().map(|(id, letter)| entry(*id, letter));
    json(&DeadLettersPage { dead_letters: entries.collect(), next: page.next }).body
}

/// One letter as JSON.
pub(crate) fn dead_letter_json(id: u64, letter: &DeadLetter) -> Vec<u8> {
    json(&entry(id, letter)).body
}

#[derive(Serialize)]
struct Purged {
    purged: u64,
    /// There may be more of them: ask again.
    more: bool,
}

/// How many letters were taken away, as JSON.
pub(crate) fn purged_json(purged: u64, more: bool) -> Vec<u8> {
    json(&Purged { purged, more }).body
}

#[derive(Serialize)]
struct Replaying<'r> {
    replaying: &'r [u64],
    /// What to give as `after` for those that follow.
    next: Option<u64>,
}

/// Which letters are under way again, as JSON.
pub(crate) fn replaying_json(replaying: &[u64], next: Option<u64>) -> Vec<u8> {
    json(&Replaying { replaying, next }).body
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 100_000_000;

    fn listing(query: &str) -> Listing {
        read_listing(query, NOW).unwrap_or_else(|problem| panic!("{query}: {}", problem.body()))
    }

    #[test]
    fn a_listing_has_defaults_and_each_wrong_parameter_is_named() {
        let plain = |after, limit| Listing { filter: LetterFilter::default(), after, limit };
        assert_eq!(listing(""), plain(0, 50));
        assert_eq!(listing("after=7"), plain(7, 50));
        assert_eq!(listing("limit=500&after=18446744073709551615"), plain(u64::MAX, 500));
        for (query, named) in [
            ("limit=0", "limit must be a number from 1 to 500"),
            ("limit=501", "limit must be a number from 1 to 500"),
            ("limit=+5", "limit must be a number"),
            ("limit", "limit must be a number"),
            ("after=x", "after must be a number"),
            ("after=-1", "after must be a number"),
            ("after=18446744073709551616", "after must be a number"),
            ("after=1&after=2", "after=2: it is given twice"),
            ("before=1", "before=1: there is no such parameter"),
            ("reason=%f", "reason=%f: it must be a text"),
            ("reason=%ff", "reason=%ff: it must be a text"),
            ("platform=", "platform=: it must be a text"),
            ("older_than=soon", "it must be a span of time, such as 90m"),
            ("all=false", "all can only be true"),
        ] {
            let problem = read_listing(query, NOW).expect_err("it is wrong");
            assert_eq!(problem.status(), 400, "{query}");
            assert!(problem.body().contains(named), "{query}: {}", problem.body());
        }
    }

    #[test]
    fn letters_are_meant_by_what_is_known_of_them() {
        let filter =
            listing("platform=voice&route=routes%5B2%5D&reason=no+answer%21&older_than=1h&newer_than=1d").filter;
        assert_eq!(filter.platform.as_deref(), Some("voice"));
        assert_eq!(filter.route.as_deref(), Some("routes[2]"));
        assert_eq!(filter.reason.as_deref(), Some("no answer!"));
        assert_eq!((filter.from_unix_ms, filter.until_unix_ms), (Some(13_600_000), Some(96_400_000)));
    }

    #[test]
    fn nobody_takes_all_away_by_leaving_something_out() {
        for query in ["", "all=true&platform=voice", "limit=5", "platform=voice&after=7"] {
            assert_eq!(read_purge(query, NOW).expect_err("it is wrong").status(), 400, "{query}");
        }
        assert_eq!(read_purge("all=true", NOW).expect("it is said"), LetterFilter::default());
        assert_eq!(read_purge("platform=voice", NOW).expect("it is said").platform.as_deref(), Some("voice"));
    }

    #[test]
    fn a_dead_letter_shows_its_body_as_text_or_as_base64() {
        let letter = |body: &[u8]| DeadLetter { platform: "echo".into(), body: body.to_vec(), ..DeadLetter::default() };
        let page = LetterPage { letters: vec![(1, letter(b"hello")), (2, letter(b"\xff"))], next: Some(2) };
        let json: serde_json::Value = serde_json::from_slice(&dead_letters_json(&page)).expect("it is JSON");
        let letters = &json["dead_letters"];
        assert_eq!((&letters[0]["body"], &letters[0]["body_base64"]), (&"hello".into(), &serde_json::Value::Null));
        assert_eq!((&letters[1]["body"], &letters[1]["body_base64"]), (&serde_json::Value::Null, &"/w==".into()));
        assert_eq!((&json["next"], &letters[1]["id"]), (&2.into(), &2.into()));
    }
}
