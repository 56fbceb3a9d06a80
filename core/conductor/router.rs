//! Where a request goes: of all rules whose matchers all match, the one that comes first. Rules of a higher priority come
//! before those of a lower one, and among equals the order of the configuration holds.
//!
//! The router is asked before the event is made, by whoever holds the request's text; the conductor then sees only
//! the rule's number. So the text never enters a decision, and a trace of decisions carries none.
//!
//! What a rule looks at is in `matchers.rs`; how few rules need be looked at, in `index.rs`; which rules never get
//! anything, in `overlap.rs`.

mod content;
mod headers;
mod index;
mod matchers;
mod overlap;
mod pattern;
mod table;
mod tree;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{Config, OnFailure, Platform, Route, Urgency};
use index::Index;
use matchers::Matchers;

pub use content::CONTENT_BYTES_MAX;
pub(crate) use matchers::Fault;
pub use matchers::Miss;
pub use overlap::{overlaps, Overlap};

/// Index of a rule in the configuration, or the rule that stands for a platform itself: see [`Router::to`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId(pub u32);

/// What a rule can look at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Question<'q> {
    /// The platform that the request came from.
    pub from: &'q str,
    /// Its kind.
    pub kind: &'q str,
    /// Its HTTP method; `POST` of a message.
    pub method: &'q str,
    /// The host that it is for, perhaps with a port; empty if it is for none.
    pub host: &'q str,
    /// Its path, without a query; empty if it has none.
    pub path: &'q str,
    /// Its header lines, `Name: value`, each ended by CRLF.
    pub headers: &'q [u8],
    /// Its body; the first [`CONTENT_BYTES_MAX`] of it are looked at.
    pub content: &'q [u8],
    /// Whether only rules that name a path or a host may match: a plain HTTP request must not fall to a rule for messages.
    pub by_path: bool,
}

/// What a rule says of the requests that match.
#[derive(Debug)]
pub struct Rule {
    /// Index of the platform in the configuration.
    pub platform: u32,
    /// From the question to the answer.
    pub timeout: Duration,
    /// One attempt; never longer than `timeout`.
    pub attempt_timeout: Duration,
    /// Further attempts after a failed one.
    pub retries: u32,
    /// Whether the platform may be asked twice.
    pub idempotent: bool,
    /// Who comes first among those that wait; `None`: by who asks.
    pub urgency: Option<Urgency>,
    /// Indices of the platforms that get it in turn, if the one before does not take it or fails for good.
    pub fallback: Box<[u32]>,
    /// What becomes of a call that failed for good.
    pub on_failure: OnFailure,
    /// How old a message may be when its delivery begins; `None`: as old as it likes.
    pub message_ttl: Option<Duration>,
}

/// All rules, and one more for each platform, which takes what names it.
#[derive(Debug)]
pub struct Router {
    /// By their number; `None` for a rule with a mistake.
    rules: Vec<Option<Rule>>,
    /// In the order in which rules come: their numbers and what they look at.
    order: Vec<RouteId>,
    matchers: Vec<Matchers>,
    index: Index,
    /// By the index of the platform.
    direct: Vec<Rule>,
    platforms: BTreeMap<String, u32>,
}

/// Set in the number of a rule that stands for a platform.
const DIRECT: u32 = 1 << 31;

/// The time for a request that names its platform, if that sets none.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Router {
    /// The rules of a configuration. One with a mistake (see [`Config::mistakes`]) never matches.
    pub fn new(config: &Config) -> Router {
        let positions: BTreeMap<&str, usize> = config
            .platforms
            .iter()
            .enumerate()
            .rev()
            .map(|(index, platform)| (platform.name.as_str(), index))
            .collect();
        let mut made: Vec<(RouteId, Matchers)> = Vec::with_capacity(config.routes.len());
        let mut rules = Vec::with_capacity(config.routes.len());
        for (number, route) in in_order(&config.routes) {
            let Some(platform) = positions.get(route.to.as_str()) else { continue };
            let Ok(matchers) = Matchers::new(route) else { continue };
            made.push((RouteId(number), matchers));
            let position = |name: &String| positions.get(name.as_str()).map(|position| *position as u32);
            let fallback = route.fallback.iter().filter_map(position).collect();
            rules.push((number, Rule { fallback, ..Rule::new(route, *platform) }));
        }
        let (order, matchers): (Vec<RouteId>, Vec<Matchers>) = made.into_iter().unzip();
        let mut by_number: Vec<Option<Rule>> = config.routes.iter().map(|_| None).collect();
        for (number, rule) in rules {
            by_number[number as usize] = Some(rule);
        }
        let index = Index::new(&matchers);
        let (direct, platforms) = (Vec::new(), BTreeMap::new());
        let mut router = Router { rules: by_number, order, matchers, index, direct, platforms };
        config.platforms.iter().for_each(|platform| router.add(platform));
        router
    }

    /// Adds the rule that stands for a platform; platforms are added in the order of their indices.
    pub(crate) fn add(&mut self, platform: &Platform) {
        let index = self.direct.len() as u32;
        let timeout = platform.request_timeout_ms.map_or(DIRECT_TIMEOUT, |bound| bound.millis());
        let mut rule = Rule::new(&Route::to(&platform.name), index as usize);
        (rule.timeout, rule.attempt_timeout) = (timeout, timeout);
        self.direct.push(rule);
        self.platforms.insert(platform.name.clone(), index);
    }

    /// Changes the time for a request that names its platform.
    pub(crate) fn set_timeout(&mut self, platform: usize, timeout: Option<Duration>) {
        let rule = &mut self.direct[platform];
        rule.timeout = timeout.unwrap_or(DIRECT_TIMEOUT);
        rule.attempt_timeout = rule.timeout;
    }

    /// The rule for a request that names its platform.
    pub fn to(&self, platform: &str) -> Option<RouteId> {
        self.platforms.get(platform).map(|index| RouteId(DIRECT | index))
    }

    /// The first rule that matches.
    ///
    /// Allocates nothing, but for what a regular expression needs to remember. Does not block; the cost grows with the
    /// length of the text only if there are rules that can be told by nothing else.
    pub fn find(&self, question: &Question<'_>) -> Option<RouteId> {
        self.index.find(&self.matchers, question).map(|rank| self.order[rank as usize])
    }

    /// Every rule in the order in which they come, each with the first of its matchers that does not match.
    pub fn explain(&self, question: &Question<'_>) -> Vec<(RouteId, Option<Miss>)> {
        self.order.iter().zip(&self.matchers).map(|(id, rule)| (*id, rule.miss(question, false))).collect()
    }

    /// What the rule says; `None` for a number that the router did not give.
    pub fn rule(&self, route: RouteId) -> Option<&Rule> {
        match route.0 & DIRECT {
            0 => self.rules.get(route.0 as usize)?.as_ref(),
            _ => self.direct.get((route.0 & !DIRECT) as usize),
        }
    }
}

/// Routes with their numbers, in the order in which they come.
fn in_order(routes: &[Route]) -> impl Iterator<Item = (u32, &Route)> {
    let mut order: Vec<(u32, &Route)> = (0..).zip(routes).collect();
    // A stable sort: equals stay in the order of the file.
    order.sort_by_key(|(_, route)| Reverse(route.priority));
    order.into_iter()
}

/// All that is wrong with what a route looks at.
pub(crate) fn faults(route: &Route) -> Vec<Fault> {
    Matchers::new(route).err().unwrap_or_default()
}

impl Rule {
    fn new(route: &Route, platform: usize) -> Rule {
        let timeout = route.timeout_ms.millis();
        Rule {
            platform: platform as u32,
            timeout,
            attempt_timeout: route.attempt_timeout_ms.map_or(timeout, |bound| bound.millis().min(timeout)),
            retries: route.retries.count(),
            idempotent: route.idempotent,
            urgency: route.urgency,
            fallback: Box::default(),
            on_failure: route.on_failure,
            message_ttl: route.message_ttl_ms.map(|ttl| ttl.millis()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Content, HeaderValue, Host, Platform};
    use crate::Random;

    fn router(routes: Vec<Route>) -> Router {
        let platforms = ["echo", "music"].map(|name| Platform::new(name, Host::Inline)).to_vec();
        Router::new(&Config { platforms, routes, ..Config::default() })
    }

    fn platform(router: &Router, question: Question<'_>) -> Option<u32> {
        router.find(&question).and_then(|route| router.rule(route)).map(|rule| rule.platform)
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        let play = Route { content: Some(Content::Prefix("!play".to_owned())), ..Route::to("music") };
        let router = router(vec![play, Route::to("echo")]);
        assert_eq!(platform(&router, Question { content: b"!play x", ..Question::default() }), Some(1));
        assert_eq!(platform(&router, Question { content: b"hello", ..Question::default() }), Some(0));
    }

    #[test]
    fn every_matcher_of_a_rule_must_match() {
        let strict = Route {
            from: Some("discord".to_owned()),
            kind: Some("command".to_owned()),
            content: Some(Content::Contains("song".to_owned())),
            ..Route::to("music")
        };
        let router = router(vec![strict]);
        let question = Question { from: "discord", kind: "command", content: b"a song!", ..Question::default() };
        assert_eq!(platform(&router, question), Some(1));
        assert_eq!(platform(&router, Question { from: "voice", ..question }), None);
        assert_eq!(platform(&router, Question { kind: "message", ..question }), None);
        assert_eq!(platform(&router, Question { content: b"a poem", ..question }), None);
    }

    #[test]
    fn a_stem_takes_itself_and_what_is_below_but_no_namesake() {
        let router = router(vec![Route { path: Some("/music/*".to_owned()), ..Route::to("music") }]);
        for (path, expected) in
            [("/music", Some(1)), ("/music/", Some(1)), ("/music/a/b", Some(1)), ("/musical", None), ("/", None)]
        {
            assert_eq!(platform(&router, Question { path, by_path: true, ..Question::default() }), expected, "{path}");
        }
    }

    #[test]
    fn a_plain_http_request_never_falls_to_a_rule_without_a_path() {
        let router = router(vec![Route::to("echo")]);
        let question = Question { path: "/favicon.ico", by_path: true, ..Question::default() };
        assert_eq!(platform(&router, question), None);
        assert_eq!(platform(&router, Question { by_path: false, ..question }), Some(0));
    }

    #[test]
    fn an_attempt_is_never_given_longer_than_the_whole() {
        let mut route = Route::to("echo");
        route.attempt_timeout_ms = crate::config::Bounded::new(60_000);
        let router = router(vec![route]);
        let rule = router.rule(RouteId(0)).expect("it is the only rule");
        assert_eq!(rule.attempt_timeout, Duration::from_secs(5));
    }

    #[test]
    fn a_higher_priority_comes_before_the_order_of_the_file() {
        let late = Route { priority: 5, kind: Some("command".to_owned()), ..Route::to("music") };
        let lowest = Route { priority: -1, ..Route::to("music") };
        let router = router(vec![lowest, Route::to("echo"), late]);
        assert_eq!(router.find(&Question { kind: "command", ..Question::default() }), Some(RouteId(2)));
        assert_eq!(router.find(&Question::default()), Some(RouteId(1)));
    }

    #[test]
    fn a_host_takes_plain_http_requests_whatever_its_port_and_case() {
        let router = router(vec![Route { host: Some("Music.example".to_owned()), ..Route::to("music") }]);
        let question = Question { path: "/x", host: "music.EXAMPLE:8787", by_path: true, ..Question::default() };
        assert_eq!(platform(&router, question), Some(1));
        assert_eq!(platform(&router, Question { host: "example", ..question }), None);
    }

    #[test]
    fn a_header_that_comes_twice_matches_if_one_of_its_lines_does() {
        let headers = [("X-Kind".to_owned(), HeaderValue::Exact("voice".to_owned()))].into();
        let router = router(vec![Route { headers, ..Route::to("music") }]);
        let question = Question { headers: b"x-kind: text\r\nX-KIND:  voice \r\n", ..Question::default() };
        assert_eq!(platform(&router, question), Some(1));
        assert_eq!(platform(&router, Question { headers: b"x-kind: voices\r\n", ..question }), None);
    }

    #[test]
    fn a_rule_with_a_mistake_leaves_the_numbers_of_the_others_alone() {
        let broken = Route { content: Some(Content::Regex("(".to_owned())), ..Route::to("echo") };
        let router = router(vec![broken, Route::to("nobody"), Route::to("music")]);
        assert_eq!(router.find(&Question::default()), Some(RouteId(2)));
        assert!(router.rule(RouteId(0)).is_none());
    }

    #[test]
    fn what_is_missing_is_told_by_the_first_matcher_that_fails() {
        let strict = Route { from: Some("discord".to_owned()), path: Some("/a".to_owned()), ..Route::to("music") };
        let router = router(vec![strict, Route { priority: 1, ..Route::to("echo") }]);
        let question = Question { from: "discord", path: "/b", ..Question::default() };
        assert_eq!(router.explain(&question), [(RouteId(1), None), (RouteId(0), Some(Miss::Path))]);
    }

    /// A table of mixed rules, so that many of them share texts and many overlap.
    fn mixed(random: &mut Random, count: usize) -> Vec<Route> {
        let words = ["play", "stop", "Song", "a", "ab", "music", "über"];
        let word = |random: &mut Random| words[random.below(words.len() as u64) as usize].to_owned();
        let some = |random: &mut Random, permille| random.chance(permille);
        let paths = ["/a", "/a/*", "/a/{x}", "/a/{x}/c", "/a/b/c", "/{*rest}", "/*", "/a/{*rest}", "/{x}/b"];
        let mut routes = Vec::new();
        for _ in 0..count {
            let mut route = Route::to(if some(random, 500) { "echo" } else { "music" });
            route.from = some(random, 200).then(|| word(random));
            route.kind = some(random, 200).then(|| word(random));
            route.method = some(random, 50).then(|| "GET".to_owned());
            route.host = some(random, 100).then(|| "h.example".to_owned());
            route.priority = random.below(3) as i32;
            route.path = some(random, 200).then(|| paths[random.below(paths.len() as u64) as usize].to_owned());
            if some(random, 200) {
                let value = match random.below(3) {
                    0 => HeaderValue::Present,
                    1 => HeaderValue::Exact(word(random)),
                    _ => HeaderValue::Prefix(word(random)),
                };
                route.headers = [("X-Word".to_owned(), value)].into();
            }
            let content = match random.below(9) {
                0 => Content::Exact(word(random)),
                1 => Content::Prefix(word(random)),
                2 => Content::Contains(word(random)),
                3 => Content::Glob(format!("*{}?{}*", word(random), word(random))),
                4 => Content::Glob(format!("{}*", word(random))),
                5 => Content::Regex(format!("{}\\s+{}", word(random), word(random))),
                6 => Content::Regex(format!("^(?:{}|{})", word(random), word(random))),
                7 => Content::Regex(r"\d\d".to_owned()),
                _ => Content::Keywords(vec![word(random), word(random)]),
            };
            route.content = some(random, 700).then_some(content);
            route.ignore_case = route.content.is_some() && some(random, 300);
            routes.push(route);
        }
        routes
    }

    #[test]
    fn the_index_finds_what_looking_at_every_rule_in_order_finds() {
        let mut random = Random::new(5);
        let mut hits = 0;
        for round in 0..150 {
            let routes = mixed(&mut random, 1 + round % 40);
            let router = router(routes.clone());
            assert!(routes.iter().all(|route| faults(route).is_empty()));
            for _ in 0..60 {
                let words = ["play", "PLAY", "stop", "song", "Song", "a", "ab", "x", "42", "ÜBER", "über", "music"];
                let mut word = || words[random.below(words.len() as u64) as usize];
                let (from, kind) = (word(), word());
                let content = format!("{}{}{} {}", word(), if from < kind { " " } else { "" }, word(), word());
                let headers = format!("Accept: */*\r\nx-word: {}\r\n", word());
                let paths = ["", "/", "/a", "/a/", "/a/b", "/a/b/c", "/x/b", "/a/x/c"];
                let path = paths[random.below(paths.len() as u64) as usize];
                let question = Question {
                    from,
                    kind,
                    method: if random.chance(500) { "GET" } else { "POST" },
                    host: if random.chance(500) { "H.example:80" } else { "" },
                    path,
                    headers: if random.chance(500) { headers.as_bytes() } else { b"" },
                    content: content.as_bytes(),
                    by_path: random.chance(300),
                };
                let all = router.explain(&question);
                let first = all.into_iter().find(|(_, miss)| miss.is_none()).map(|(id, _)| id);
                assert_eq!(router.find(&question), first, "{question:?} {routes:#?}");
                hits += u32::from(first.is_some());
            }
        }
        assert!((1000..8900).contains(&hits), "{hits} of 9000 found something: the table is one-sided");
    }

    #[test]
    fn a_rule_that_another_covers_is_never_found_while_that_is_there() {
        let mut random = Random::new(6);
        let mut covered = 0;
        for _ in 0..60 {
            let routes = mixed(&mut random, 12);
            let config = Config { routes: routes.clone(), ..Config::default() };
            let never: Vec<usize> = overlaps(&config).into_iter().map(|overlap| overlap.route).collect();
            covered += never.len();
            let router = router(routes.clone());
            for _ in 0..100 {
                let words = ["play", "stop", "Song", "song", "a", "ab", "music", "über", "42"];
                let mut word = || words[random.below(words.len() as u64) as usize];
                let content = format!("{} {}", word(), word());
                let question =
                    Question { from: word(), kind: word(), content: content.as_bytes(), ..Question::default() };
                let found = router.find(&question).map(|id| id.0 as usize);
                assert!(found.is_none_or(|found| !never.contains(&found)), "{question:?} {routes:#?}");
            }
        }
        assert!(covered > 50, "only {covered} rules are covered");
    }
}
