//! `demi dead`: what could not be delivered, and what becomes of it.

use std::fmt::Write as _;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;

use crate::arguments::Remote;
use crate::client::{encoded, Client, Failure};
use crate::page::{aligned, counted, moment, plain, span};
use crate::print;

/// How long a replay waits for those before it to be over.
const REPLAY_WAIT: Duration = Duration::from_secs(60);
/// Between two tries.
const REPLAY_PAUSE: Duration = Duration::from_millis(200);
/// Longest body that is read, bytes: more than Demi takes with any configuration.
const BODY_BYTES_MAX: u64 = 64 << 20;
/// Characters of a reason in the table.
const REASON_SHOWN: usize = 60;

/// What to do with dead letters.
pub(crate) enum Dead {
    List { filter: Filter, limit: u32, after: u64 },
    Show { id: u64 },
    Edit { id: u64, body: NewBody, content_type: Option<String> },
    Replay { ids: Vec<u64>, filter: Filter, all: bool },
    Purge { ids: Vec<u64>, filter: Filter, yes: bool },
}

/// Which letters are meant: those for which all that is given holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) platform: Option<String>,
    pub(crate) route: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) older_than: Option<String>,
    pub(crate) newer_than: Option<String>,
}

/// Where a letter's new body comes from: one of these, or standard input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NewBody {
    pub(crate) text: Option<String>,
    /// `-` is standard input.
    pub(crate) file: Option<PathBuf>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// As it stands in a query, with what else stands there.
    fn query(&self, more: &[(&str, String)]) -> String {
        let own = [
            ("platform", &self.platform),
            ("route", &self.route),
            ("reason", &self.reason),
            ("older_than", &self.older_than),
            ("newer_than", &self.newer_than),
        ];
        let own = own.into_iter().filter_map(|(name, value)| Some((name, encoded(value.as_ref()?))));
        let pairs = own.chain(more.iter().cloned()).map(|(name, value)| format!("{name}={value}"));
        let query = pairs.collect::<Vec<_>>().join("&");
        if query.is_empty() {
            query
        } else {
            format!("?{query}")
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LettersPage {
    dead_letters: Vec<LetterPage>,
    next: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LetterPage {
    id: u64,
    buried_at_unix_ms: u64,
    platform: String,
    route: String,
    reason: String,
    attempts: u64,
    first_error: String,
    replays: u64,
    last_error: String,
    conversation: String,
    from: String,
    kind: String,
    method: String,
    target: String,
    content_type: String,
    body: Option<String>,
    body_base64: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Purged {
    purged: u64,
    more: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Replaying {
    replaying: Vec<u64>,
    next: Option<u64>,
}

/// Does it, and prints what came of it.
pub(crate) fn see_to(remote: &Remote, dead: Dead) -> ExitCode {
    match Client::find(remote).and_then(|client| text(&client, dead, remote.json)) {
        Ok(text) => print(&text),
        Err(failure) => failure.tell(),
    }
}

fn text(client: &Client, dead: Dead, json: bool) -> Result<String, Failure> {
    match dead {
        Dead::List { filter, limit, after } => {
            let path = format!(
                "/v1/dead-letters{}",
                filter.query(&[("limit", limit.to_string()), ("after", after.to_string())])
            );
            if json {
                return as_it_is(&client.get(&path)?);
            }
            Ok(table(&client.read(&path)?, unix_ms()))
        }
        Dead::Show { id } => {
            let path = format!("/v1/dead-letters/{id}");
            if json {
                return as_it_is(&client.get(&path)?);
            }
            Ok(description(&client.read(&path)?))
        }
        Dead::Edit { id, body, content_type } => {
            let body = read_body(body)?;
            let answer = client.put(&format!("/v1/dead-letters/{id}"), content_type.as_deref(), &body)?;
            if json {
                return as_it_is(&answer);
            }
            Ok(format!("dead letter {id} has a new body of {}\n", counted(body.len(), "byte")))
        }
        Dead::Replay { ids, filter, all } => {
            let replayed = replay(client, &ids, &filter, all)?;
            if json {
                let ids = replayed.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
                return Ok(format!("{{\"replaying\":[{ids}]}}\n"));
            }
            let count = counted(replayed.len(), "dead letter");
            Ok(format!("{count} replayed; what is answered well goes, the rest is marked: see `demi dead list`\n"))
        }
        Dead::Purge { ids, filter, yes } => {
            let purged = purge(client, &ids, &filter, yes)?;
            if json {
                return Ok(format!("{{\"purged\":{purged}}}\n"));
            }
            Ok(format!("{} taken away for good\n", counted(purged as usize, "dead letter")))
        }
    }
}

fn as_it_is(body: &[u8]) -> Result<String, Failure> {
    Ok(String::from_utf8_lossy(body).trim_end().to_owned() + "\n")
}

fn replay(client: &Client, ids: &[u64], filter: &Filter, all: bool) -> Result<Vec<u64>, Failure> {
    if ids.is_empty() == (filter.is_empty() && !all) {
        return Err(Failure::of_usage("say which dead letters: their ids, or --platform and the like, or --all"));
    }
    let mut replayed = Vec::new();
    for id in ids {
        let path = format!("/v1/dead-letters/{id}/replay");
        let page: Replaying = client.understand(&path, &post_when_there_is_room(client, &path)?)?;
        replayed.extend(page.replaying);
    }
    let mut after = ids.is_empty().then_some(0);
    while let Some(from) = after {
        let path = format!("/v1/dead-letters/replay{}", filter.query(&[("after", from.to_string())]));
        let page: Replaying = client.understand(&path, &post_when_there_is_room(client, &path)?)?;
        replayed.extend(page.replaying);
        after = page.next;
    }
    Ok(replayed)
}

/// Demi replays so many at once; then it says 503 until some are over.
fn post_when_there_is_room(client: &Client, path: &str) -> Result<Vec<u8>, Failure> {
    let began = Instant::now();
    loop {
        match client.post(path) {
            Err(failure) if failure.status == Some(503) && began.elapsed() < REPLAY_WAIT => {
                std::thread::sleep(REPLAY_PAUSE);
            }
            answer => return answer,
        }
    }
}

fn purge(client: &Client, ids: &[u64], filter: &Filter, yes: bool) -> Result<u64, Failure> {
    let is_all = filter.is_empty();
    if ids.is_empty() && is_all && !yes {
        let what = "this would take all dead letters away for good; say which by id, --platform and the like, or --yes";
        return Err(Failure::of_usage(what));
    }
    let mut count = 0;
    for id in ids {
        let path = format!("/v1/dead-letters/{id}");
        count += client.understand::<Purged>(&path, &client.delete(&path)?)?.purged;
    }
    while ids.is_empty() {
        let all = [("all", "true".to_owned())];
        let path = format!("/v1/dead-letters{}", filter.query(if is_all { &all } else { &[] }));
        let page: Purged = client.understand(&path, &client.delete(&path)?)?;
        count += page.purged;
        if !page.more {
            break;
        }
    }
    Ok(count)
}

fn read_body(body: NewBody) -> Result<Vec<u8>, Failure> {
    let path = match (body.text, body.file) {
        (Some(_), Some(_)) => return Err(Failure::of_usage("--body and --file exclude each other; give one of them")),
        (Some(text), None) => return Ok(text.into_bytes()),
        (None, file) => file.unwrap_or_else(|| PathBuf::from("-")),
    };
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(BODY_BYTES_MAX).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(&path).and_then(|file| file.take(BODY_BYTES_MAX).read_to_end(&mut bytes))
    };
    read.map_err(|error| Failure::of_usage(&format!("{} cannot be read: {error}", path.display())))?;
    if bytes.is_empty() && path.as_os_str() == "-" {
        return Err(Failure::of_usage("nothing came from standard input; for an empty body write --body ''"));
    }
    Ok(bytes)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn table(page: &LettersPage, unix_ms: u64) -> String {
    if page.dead_letters.is_empty() && page.next.is_none() {
        return "there are no such dead letters\n".to_owned();
    }
    let head = ["ID", "AGE", "PLATFORM", "ROUTE", "ATTEMPTS", "REPLAYS", "WHY"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(page.dead_letters.iter().map(|letter| {
        let why = if letter.last_error.is_empty() { &letter.reason } else { &letter.last_error };
        let why = plain(why);
        let why = match why.char_indices().nth(REASON_SHOWN) {
            Some((end, _)) => format!("{}…", &why[..end]),
            None => why,
        };
        [
            letter.id.to_string(),
            span(unix_ms.saturating_sub(letter.buried_at_unix_ms) as f64 / 1000.0),
            plain(&letter.platform),
            plain(if letter.route.is_empty() { "-" } else { &letter.route }),
            letter.attempts.to_string(),
            letter.replays.to_string(),
            why,
        ]
    }));
    let mut text = aligned(&rows);
    if let Some(next) = page.next {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "there are more; go on with --after {next}");
    }
    text
}

fn description(letter: &LetterPage) -> String {
    let body = match (&letter.body, &letter.body_base64) {
        (Some(body), _) => plain_lines(body),
        (None, Some(base64)) => format!("(in base64) {base64}"),
        (None, None) => String::new(),
    };
    let rows = [
        ("dead letter", letter.id.to_string()),
        ("given up", moment(letter.buried_at_unix_ms)),
        ("platform", letter.platform.clone()),
        ("route", letter.route.clone()),
        ("reason", letter.reason.clone()),
        ("first error", letter.first_error.clone()),
        ("attempts", letter.attempts.to_string()),
        ("replays", letter.replays.to_string()),
        ("last error", letter.last_error.clone()),
        ("conversation", letter.conversation.clone()),
        ("from", letter.from.clone()),
        ("kind", letter.kind.clone()),
        ("method", letter.method.clone()),
        ("target", letter.target.clone()),
        ("content type", letter.content_type.clone()),
    ];
    let rows: Vec<[String; 2]> = rows
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| [name.to_owned(), plain(&value)])
        .collect();
    format!("{}\n{body}\n", aligned(&rows))
}

/// As [`plain`], but its lines stay lines.
fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::Scripted;

    fn voice() -> Filter {
        Filter { platform: Some("voice".to_owned()), reason: Some("no answer".to_owned()), ..Filter::default() }
    }

    #[test]
    fn the_list_shows_age_and_the_last_error_and_where_it_goes_on() {
        let page = LettersPage {
            dead_letters: vec![
                LetterPage {
                    id: 1,
                    platform: "voice".into(),
                    reason: "no\u{1b} answer".into(),
                    attempts: 2,
                    ..LetterPage::default()
                },
                LetterPage {
                    id: 12,
                    buried_at_unix_ms: 3_600_000,
                    platform: "echo".into(),
                    route: "routes[2]".into(),
                    reason: "it broke".into(),
                    replays: 3,
                    last_error: "x".repeat(70),
                    ..LetterPage::default()
                },
            ],
            next: Some(12),
        };
        let expected = format!(
            "ID  AGE     PLATFORM  ROUTE      ATTEMPTS  REPLAYS  WHY\n\
             1   2 h     voice     -          2         0        no\\u{{1b}} answer\n\
             12  60 min  echo      routes[2]  0         3        {}…\n\
             there are more; go on with --after 12\n",
            "x".repeat(60)
        );
        assert_eq!(table(&page, 7_200_000), expected);
        assert_eq!(table(&LettersPage::default(), 0), "there are no such dead letters\n");
    }

    #[test]
    fn a_list_asks_for_what_is_meant() {
        let server = Scripted::pages(&[(200, "{}")]);
        let list = Dead::List { filter: voice(), limit: 5, after: 7 };
        text(&server.client(), list, false).expect("the server answers");
        let asked = "GET /v1/dead-letters?platform=voice&reason=no%20answer&limit=5&after=7 HTTP/1.1";
        assert_eq!(server.requests(), [asked]);
    }

    #[test]
    fn a_replay_goes_on_to_the_last_and_waits_while_there_is_no_room() {
        let server = Scripted::pages(&[
            (202, r#"{"replaying":[1,2],"next":2}"#),
            (503, r#"{"detail":"full"}"#),
            (202, r#"{"replaying":[5],"next":null}"#),
        ]);
        let replay = Dead::Replay { ids: Vec::new(), filter: voice(), all: false };
        assert!(text(&server.client(), replay, false).expect("it is done").starts_with("3 dead letters replayed"));
        let query = "platform=voice&reason=no%20answer&after";
        let asked = [0, 2, 2].map(|after| format!("POST /v1/dead-letters/replay?{query}={after} HTTP/1.1"));
        assert_eq!(server.requests(), asked);
    }

    #[test]
    fn a_purge_goes_on_to_the_last_and_of_all_needs_a_yes() {
        let server = Scripted::pages(&[(200, r#"{"purged":1000,"more":true}"#), (200, r#"{"purged":5,"more":false}"#)]);
        let purge = |yes| Dead::Purge { ids: Vec::new(), filter: Filter::default(), yes };
        let refused = text(&server.client(), purge(false), false).expect_err("it is not said");
        assert!(refused.to_string().contains("--yes"), "{refused}");
        let told = text(&server.client(), purge(true), false).expect("it is done");
        assert_eq!(told, "1005 dead letters taken away for good\n");
        assert_eq!(server.requests(), ["DELETE /v1/dead-letters?all=true HTTP/1.1"; 2]);
    }

    #[test]
    fn nothing_or_too_much_said_of_a_replay_is_a_mistake() {
        let server = Scripted::pages(&[]);
        for (ids, filter, all) in
            [(vec![], Filter::default(), false), (vec![1], voice(), false), (vec![1], Filter::default(), true)]
        {
            let refused = text(&server.client(), Dead::Replay { ids, filter, all }, false).expect_err("it is wrong");
            assert!(refused.to_string().contains("--all"), "{refused}");
        }
    }
}
