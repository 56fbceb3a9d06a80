//! What a rule looks at, made ready: all of it must match.

use crate::config::{Content, HeaderValue, Route};

use super::content::{is_word_byte, Test, KEYWORDS_MAX, TEXT_BYTES_MAX};
use super::headers::{lines, without_port};
use super::index::HEADER_NAME_BYTES_MAX;
use super::pattern::Pattern;
use super::Question;

/// Most headers that a rule looks at.
const HEADERS_MAX: usize = 16;
/// Longest keyword, bytes.
const KEYWORD_BYTES_MAX: usize = 128;

/// The first matcher of a rule that a request does not match, in the order in which they are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// It is a plain HTTP request, and the rule names neither a path nor a host.
    PlainHttp,
    /// It came from another platform, or nobody said from which.
    From,
    /// It is of another kind, or of none.
    Kind,
    /// Another method.
    Method,
    /// For another host.
    Host,
    /// Another path, or none.
    Path,
    /// This header is not there, or has another value.
    Header(Box<str>),
    /// Its text is not like that.
    Content,
}

impl Miss {
    /// The field of the route that says what it should be.
    pub const fn field(&self) -> &'static str {
        match self {
            Miss::PlainHttp | Miss::Path => "path",
            Miss::From => "from",
            Miss::Kind => "kind",
            Miss::Method => "method",
            Miss::Host => "host",
            Miss::Header(_) => "headers",
            Miss::Content => "content",
        }
    }
}

/// What the value of a header must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Present,
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
}

impl Value {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Value::Present => true,
            Value::Exact(text) => **text == *value,
            Value::Prefix(text) => value.starts_with(text),
        }
    }

    /// Whether it matches whatever the other matches.
    pub(super) fn covers(&self, other: &Value) -> bool {
        match other {
            Value::Exact(text) => self.matches(text),
            Value::Prefix(text) => *self == Value::Present || matches!(self, Value::Prefix(_)) && self.matches(text),
            Value::Present => *self == Value::Present,
        }
    }
}

/// The matchers of a rule.
#[derive(Debug)]
pub(super) struct Matchers {
    /// Whether plain HTTP requests may match: a rule for messages is none for them.
    pub(super) takes_http: bool,
    pub(super) from: Option<Box<str>>,
    pub(super) kind: Option<Box<str>>,
    pub(super) method: Option<Box<str>>,
    /// In lower case, without a port.
    pub(super) host: Option<Box<str>>,
    pub(super) path: Option<Pattern>,
    /// Names in lower case.
    pub(super) headers: Vec<(Box<str>, Value)>,
    pub(super) content: Option<Test>,
}

/// What is wrong with a route's matchers: the field, what, and the remedy.
pub(crate) type Fault = (&'static str, String, &'static str);

impl Matchers {
    /// Makes the matchers of a route ready. `Err`: all that is wrong with them.
    pub(super) fn new(route: &Route) -> Result<Matchers, Vec<Fault>> {
        let mut faults = faults(route);
        let path = match route.path.as_deref().map(Pattern::read) {
            Some(Err((what, remedy))) => {
                faults.push(("path", what, remedy));
                None
            }
            Some(Ok(pattern)) => Some(pattern),
            None => None,
        };
        let content = match route.content.as_ref().map(|content| Test::new(content, route.ignore_case)) {
            Some(Err(what)) => {
                let what = format!("this is not a pattern: {what}");
                faults.push(("content", what, "see docs/routing.md for what a Regex may hold"));
                None
            }
            Some(Ok(test)) => Some(test),
            None => None,
        };
        if !faults.is_empty() {
            return Err(faults);
        }
        let boxed = |text: &Option<String>| text.as_deref().map(Box::from);
        let lower = |text: &String| text.to_ascii_lowercase().into_boxed_str();
        let value = |value: &HeaderValue| match value {
            HeaderValue::Present => Value::Present,
            HeaderValue::Exact(text) => Value::Exact(text.as_bytes().into()),
            HeaderValue::Prefix(text) => Value::Prefix(text.as_bytes().into()),
        };
        Ok(Matchers {
            takes_http: route.path.is_some() || route.host.is_some(),
            from: boxed(&route.from),
            kind: boxed(&route.kind),
            method: boxed(&route.method),
            host: route.host.as_ref().map(lower),
            path,
            headers: route.headers.iter().map(|(name, wanted)| (lower(name), value(wanted))).collect(),
            content,
        })
    }

    /// The first matcher that does not match; none if all do. `content_passes`: a search of the text has found what the
    /// rule is filed under there.
    pub(super) fn miss(&self, question: &Question<'_>, content_passes: bool) -> Option<Miss> {
        if question.by_path && !self.takes_http {
            return Some(Miss::PlainHttp);
        }
        if self.from.as_deref().is_some_and(|from| from != question.from) {
            return Some(Miss::From);
        }
        if self.kind.as_deref().is_some_and(|kind| kind != question.kind) {
            return Some(Miss::Kind);
        }
        if self.method.as_deref().is_some_and(|method| method != question.method) {
            return Some(Miss::Method);
        }
        if self.host.as_deref().is_some_and(|host| !host.eq_ignore_ascii_case(without_port(question.host))) {
            return Some(Miss::Host);
        }
        if self.path.as_ref().is_some_and(|pattern| !pattern.matches(question.path)) {
            return Some(Miss::Path);
        }
        for (name, value) in &self.headers {
            let is_named = |found: &[u8]| found.eq_ignore_ascii_case(name.as_bytes());
            if !lines(question.headers).any(|(found, text)| is_named(found) && value.matches(text)) {
                return Some(Miss::Header(name.clone()));
            }
        }
        let test = self.content.as_ref()?;
        let is_known = content_passes && test.is_decided_by_search();
        (!is_known && !test.passes(question.content)).then_some(Miss::Content)
    }

    /// Whether it matches every request that the other matches. Where that is hard to tell, no.
    pub(super) fn covers(&self, other: &Matchers) -> bool {
        fn includes<T: PartialEq>(own: &Option<T>, other: &Option<T>) -> bool {
            own.is_none() || own == other
        }
        (self.takes_http || !other.takes_http)
            && includes(&self.from, &other.from)
            && includes(&self.kind, &other.kind)
            && includes(&self.method, &other.method)
            && includes(&self.host, &other.host)
            && self.path.as_ref().is_none_or(|own| other.path.as_ref().is_some_and(|path| own.covers(path)))
            && self.headers.iter().all(|(name, own)| {
                other.headers.iter().any(|(other_name, value)| other_name == name && own.covers(value))
            })
            && self.content.as_ref().is_none_or(|own| other.content.as_ref().is_some_and(|test| own.covers(test)))
    }
}

/// What is wrong with a route's matchers, but for its patterns.
fn faults(route: &Route) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let is_token = |text: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !text.is_empty() && text.len() <= HEADER_NAME_BYTES_MAX && text.bytes().all(plain)
    };
    if let Some(method) = route.method.as_deref().filter(|method| !is_token(method)) {
        faults.push(("method", format!("{method:?} is not a method"), "write it as \"GET\""));
    }
    if route.headers.len() > HEADERS_MAX {
        let what = format!("{} headers are more than {HEADERS_MAX}", route.headers.len());
        faults.push(("headers", what, "look at fewer of them"));
    }
    for (name, value) in &route.headers {
        if !is_token(name) {
            let what = format!("{name:?} is not the name of a header");
            faults.push(("headers", what, "write it as \"X-Name\", 64 characters at most"));
        }
        let (HeaderValue::Exact(text) | HeaderValue::Prefix(text)) = value else { continue };
        if text.len() > TEXT_BYTES_MAX || text.trim_ascii() != text || text.bytes().any(|byte| byte.is_ascii_control())
        {
            let what = format!("no header has the value {text:?}");
            faults.push(("headers", what, "write up to 1024 characters, without spaces around them"));
        }
    }
    let texts = match &route.content {
        Some(
            Content::Exact(text)
            | Content::Prefix(text)
            | Content::Contains(text)
            | Content::Glob(text)
            | Content::Regex(text),
        ) => std::slice::from_ref(text),
        Some(Content::Keywords(words)) => {
            if words.is_empty() || words.len() > KEYWORDS_MAX {
                let what = format!("{} keywords are outside 1 to {KEYWORDS_MAX}", words.len());
                faults.push(("content", what, "write for example Keywords([\"play\", \"stop\"])"));
            }
            let is_word =
                |word: &&String| !word.is_empty() && word.len() <= KEYWORD_BYTES_MAX && word.bytes().all(is_word_byte);
            if let Some(word) = words.iter().find(|word| !is_word(word)) {
                let what = format!("keyword {word:?} is not one word");
                faults.push(("content", what, "use letters, digits and _, up to 128 bytes; or Contains or Regex"));
            }
            &[]
        }
        None => {
            if route.ignore_case {
                let what = "means nothing without content".to_owned();
                faults.push(("ignore_case", what, "add content, or remove it"));
            }
            &[]
        }
    };
    if texts.iter().any(|text| text.len() > TEXT_BYTES_MAX) {
        let what = format!("it is longer than {TEXT_BYTES_MAX} bytes");
        faults.push(("content", what, "look for less of it"));
    }
    faults
}
