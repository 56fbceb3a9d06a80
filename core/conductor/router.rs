//! Where a request goes: the first rule, in the order of the configuration, all of whose matchers match.
//!
//! The router is asked before the event is made, by whoever holds the request's text; the conductor then sees only
//! the rule's number. So the text never enters a decision, and a trace of decisions carries none.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{Config, Content, OnFailure, Platform, Route};

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
    /// Its path, without a query; empty if it has none.
    pub path: &'q str,
    /// Its body.
    pub content: &'q [u8],
    /// Whether only rules that name a path may match: a plain HTTP request must not fall to a rule for messages.
    pub by_path: bool,
}

#[derive(Debug)]
enum Path {
    Any,
    Exact(String),
    /// Everything below, and the stem itself; kept with the slash at its end.
    Below(String),
}

/// A rule made ready.
#[derive(Debug)]
pub struct Rule {
    from: Option<String>,
    kind: Option<String>,
    path: Path,
    content: Option<Content>,
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
    /// What becomes of a call that failed for good.
    pub on_failure: OnFailure,
}

/// All rules, and one more for each platform, which takes what names it.
#[derive(Debug)]
pub struct Router {
    rules: Vec<Rule>,
    /// By the index of the platform.
    direct: Vec<Rule>,
    platforms: BTreeMap<String, u32>,
}

/// Set in the number of a rule that stands for a platform.
const DIRECT: u32 = 1 << 31;

/// The time for a request that names its platform, if that sets none.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Router {
    /// The rules of a configuration that has no mistakes; a rule to an unknown platform is left out by `None`.
    pub fn new(config: &Config) -> Router {
        let position = |name: &str| config.platforms.iter().position(|platform| platform.name == name);
        let rules = config.routes.iter().filter_map(|route| Some(Rule::new(route, position(&route.to)?)));
        let mut router = Router { rules: rules.collect(), direct: Vec::new(), platforms: BTreeMap::new() };
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
    pub fn find(&self, question: &Question<'_>) -> Option<RouteId> {
        self.rules.iter().position(|rule| rule.matches(question)).map(|index| RouteId(index as u32))
    }

    /// What the rule says; `None` for a number that the router did not give.
    pub fn rule(&self, route: RouteId) -> Option<&Rule> {
        match route.0 & DIRECT {
            0 => self.rules.get(route.0 as usize),
            _ => self.direct.get((route.0 & !DIRECT) as usize),
        }
    }
}

impl Rule {
    fn new(route: &Route, platform: usize) -> Rule {
        let timeout = route.timeout_ms.millis();
        let path = match &route.path {
            None => Path::Any,
            Some(path) => match path.strip_suffix("/*") {
                Some(stem) => Path::Below(format!("{stem}/")),
                None => Path::Exact(path.clone()),
            },
        };
        Rule {
            from: route.from.clone(),
            kind: route.kind.clone(),
            path,
            content: route.content.clone(),
            platform: platform as u32,
            timeout,
            attempt_timeout: route.attempt_timeout_ms.map_or(timeout, |bound| bound.millis().min(timeout)),
            retries: route.retries.count(),
            idempotent: route.idempotent,
            on_failure: route.on_failure,
        }
    }

    fn matches(&self, question: &Question<'_>) -> bool {
        let path = match &self.path {
            Path::Any => !question.by_path,
            Path::Exact(path) => path == question.path,
            Path::Below(stem) => question.path.starts_with(stem.as_str()) || question.path == &stem[..stem.len() - 1],
        };
        path && self.from.as_deref().is_none_or(|from| from == question.from)
            && self.kind.as_deref().is_none_or(|kind| kind == question.kind)
            && self.content.as_ref().is_none_or(|content| content.matches(question.content))
    }
}

impl Content {
    fn matches(&self, body: &[u8]) -> bool {
        match self {
            Content::Exact(text) => body == text.as_bytes(),
            Content::Prefix(text) => body.starts_with(text.as_bytes()),
            Content::Contains(text) => {
                text.is_empty() || body.windows(text.len()).any(|window| window == text.as_bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Host, Platform};

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
}
