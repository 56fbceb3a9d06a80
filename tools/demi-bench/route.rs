//! `demi-bench route`: what it costs to find the rule for a request, by how many rules there are.
//!
//! The rules are of many kinds and none of them takes what another would. A batch asks for one and the same request; each
//! line is the median of many batches. The first, the middle and the last rule of each kind are asked for, and something
//! that no rule takes.

use std::hint::black_box;

use argh::FromArgs;
use demi::conductor::config::{Content, HeaderValue};
use demi::conductor::{Question, RouteId, Router};
use demi::{Config, Host, Platform, Route};
use serde::Serialize;

use crate::decide::batches;
use crate::report::{aim, print, Machine, Spread, Table};
use crate::Outcome;

/// Decisions in a batch.
const BATCH: u32 = 1_000;
/// How many rules, at most as many with patterns as may be.
const COUNTS: [usize; 4] = [10, 100, 1_000, 10_000];
/// Most nanoseconds for a decision, and most times the cost with ten rules that it may cost with a thousand.
const NS_MAX: f64 = 1_000.0;
const TIMES_MAX: f64 = 2.0;
const KINDS: usize = 10;

#[derive(FromArgs)]
#[argh(subcommand, name = "route")]
/// nanoseconds to find the rule for a request, with 10 to 10,000 rules
pub struct Arguments {
    /// print JSON
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    /// Rules of ten kinds in turn, asked for a plain HTTP request, a message, and one that none takes.
    mixed: Vec<Line>,
    /// All rules of one kind, asked for the last.
    alike: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    asked: String,
    rules: usize,
    ns: Spread,
}

/// Runs `demi-bench route`.
pub fn run(arguments: &Arguments) -> Outcome<()> {
    let machine = Machine::now();
    let mut document = Document { mixed: Vec::new(), alike: Vec::new() };
    for (name, pick) in [("first", first as fn(usize) -> usize), ("middle", middle), ("last", last)] {
        for (kind, word) in [(0, "path"), (2, "prefix of a text"), (7, "needle in a text")] {
            for rules in COUNTS {
                let asked = pick(rules);
                // The kinds come in turn, so that the one that is asked for is of this kind.
                let router = router(rules, |number| (number + KINDS - asked % KINDS + kind) % KINDS);
                document.mixed.push(line(format!("{name}, by {word}"), &router, rules, Some(asked), kind));
            }
        }
    }
    for rules in COUNTS {
        let router = router(rules, |number| number % KINDS);
        document.mixed.push(line("none, a message".to_owned(), &router, rules, None, KINDS));
    }
    let kinds = [
        (0, "exact path"),
        (1, "path with a parameter"),
        (2, "prefix"),
        (3, "from and kind"),
        (4, "host"),
        (5, "header"),
        (6, "keyword"),
        (7, "needle"),
        (8, "method and path"),
        (9, "regular expression"),
    ];
    for (kind, word) in kinds {
        for rules in COUNTS.into_iter().filter(|rules| kind != 9 || *rules <= 1_000) {
            let router = router(rules, |_| kind);
            document.alike.push(line(word.to_owned(), &router, rules, Some(rules - 1), kind));
        }
    }
    let tables =
        [("rules of ten kinds", table(&document.mixed)), ("rules of one kind, the last", table(&document.alike))];
    print(arguments.json, &machine, &document, &tables)
}

fn first(_rules: usize) -> usize {
    0
}

fn middle(rules: usize) -> usize {
    rules / 2
}

fn last(rules: usize) -> usize {
    rules - 1
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new(&["ns", "10 rules", "100", "1,000", "10,000", "1,000 rules cost", "aim"]);
    for asked in lines.chunk_by(|one, other| one.asked == other.asked) {
        let mut cells = vec![asked[0].asked.clone()];
        cells.extend(
            (0..COUNTS.len())
                .map(|column| asked.get(column).map_or_else(String::new, |line| format!("{:.0}", line.ns.median))),
        );
        let times = asked[2].ns.median / asked[0].ns.median;
        cells.push(format!("{times:.2} times 10"));
        let worst = asked.iter().map(|line| line.ns.median).fold(0.0, f64::max);
        let is_met = times <= TIMES_MAX && worst <= NS_MAX;
        cells.push(if is_met { "met".to_owned() } else { aim(times, TIMES_MAX, "times") });
        table.row(&cells);
    }
    table
}

/// So many rules, each of the kind that `kind` says of its number.
fn router(count: usize, kind: impl Fn(usize) -> usize) -> Router {
    let routes = (0..count).map(|number| rule(number, kind(number))).collect();
    Router::new(&Config { platforms: vec![Platform::new("echo", Host::Inline)], routes, ..Config::default() })
}

fn rule(number: usize, kind: usize) -> Route {
    let rule = Route::to("echo");
    let path = |path: String| Some(path);
    match kind {
        0 => Route { path: path(format!("/path/{number}")), ..rule },
        1 => Route { path: path(format!("/users/{{id}}/things/{number}")), ..rule },
        2 => Route { content: Some(Content::Prefix(format!("!order{number} "))), ..rule },
        3 => Route { from: Some(format!("origin{}", number / 64)), kind: Some(format!("kind{}", number % 64)), ..rule },
        4 => Route { host: Some(format!("host{number}.example")), ..rule },
        5 => Route {
            headers: [("X-Tenant".to_owned(), HeaderValue::Exact(format!("tenant{number}")))].into(),
            kind: Some("tenant".to_owned()),
            ..rule
        },
        6 => Route { content: Some(Content::Keywords(vec![format!("word{number}"), format!("wort{number}")])), ..rule },
        7 => Route { content: Some(Content::Contains(format!("needle{number}."))), ..rule },
        8 => Route { method: Some("PUT".to_owned()), path: path(format!("/things/{number}/*")), ..rule },
        _ => Route { content: Some(pattern(number)), ..rule },
    }
}

/// As many regular expressions as a configuration may have, and prefixes beyond.
fn pattern(number: usize) -> Content {
    match number < 10_000 && number % 100 < 10 || number < 1_000 {
        true => Content::Regex(format!(r"code{number}:\s*\d+")),
        false => Content::Prefix(format!("code{number}:")),
    }
}

/// What a request looks like that the rule of this number takes, and no other.
struct Request {
    from: String,
    kind: String,
    method: &'static str,
    host: String,
    path: String,
    headers: String,
    content: String,
    by_path: bool,
}

impl Request {
    fn of(number: usize, kind: usize) -> Request {
        let mut request = Request {
            from: "discord".to_owned(),
            kind: "message".to_owned(),
            method: "POST",
            host: String::new(),
            path: String::new(),
            headers: String::new(),
            content: "What a fine day it is, and who would have thought so yesterday?".to_owned(),
            by_path: false,
        };
        match kind {
            0 => (request.path, request.by_path) = (format!("/path/{number}"), true),
            1 => (request.path, request.by_path) = (format!("/users/17/things/{number}"), true),
            2 => request.content = format!("!order{number} and a few words more"),
            3 => {
                request.from = format!("origin{}", number / 64);
                request.kind = format!("kind{}", number % 64);
            }
            4 => {
                (request.host, request.path, request.by_path) =
                    (format!("host{number}.example:80"), "/index".to_owned(), true)
            }
            5 => {
                request.kind = "tenant".to_owned();
                request.headers.push_str(&format!("X-Tenant: tenant{number}\r\n"));
            }
            6 => request.content = format!("a few words, among them word{number}!"),
            7 => request.content = format!("a few words and a needle{number}."),
            8 => (request.method, request.path, request.by_path) = ("PUT", format!("/things/{number}/a/b"), true),
            9 => request.content = format!("your code{number}: 17"),
            _ => {}
        }
        if request.by_path {
            if request.host.is_empty() {
                request.host.push_str("127.0.0.1:8787");
            }
            request.content.clear();
            // What a client sends along.
            let headers = ["Accept: */*", "Accept-Encoding: gzip", "User-Agent: curl/8", "Connection: keep-alive"];
            headers.iter().for_each(|line| request.headers.push_str(&format!("{line}\r\n")));
        }
        request
    }

    fn question(&self) -> Question<'_> {
        Question {
            from: &self.from,
            kind: &self.kind,
            method: self.method,
            host: &self.host,
            path: &self.path,
            headers: self.headers.as_bytes(),
            content: self.content.as_bytes(),
            by_path: self.by_path,
        }
    }
}

fn line(asked: String, router: &Router, rules: usize, number: Option<usize>, kind: usize) -> Line {
    let request = Request::of(number.unwrap_or(0), kind);
    let question = request.question();
    let expected = number.map(|number| RouteId(number as u32));
    assert_eq!(router.find(&question), expected, "{asked}: another rule takes it");
    let ns = batches(|| {
        for _ in 0..BATCH {
            black_box(black_box(router).find(black_box(&question)));
        }
        f64::from(BATCH)
    });
    Line { asked, rules, ns }
}
