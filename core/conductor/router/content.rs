//! What a request's text must be like, made ready.

use regex_automata::meta::{self, Regex};
use regex_automata::util::syntax;
use regex_automata::Input;
use regex_syntax::hir::literal::Extractor;
use regex_syntax::hir::{Hir, HirKind, Look};

use crate::config::Content;

/// So much of a text is looked at, from its beginning; a longer one is taken as if it ended there. Four times the longest
/// message of the chat services, and little enough that one look does not hold up the reactor.
pub const CONTENT_BYTES_MAX: usize = 16 * 1024;
/// Longest text or pattern of a rule, bytes.
pub(super) const TEXT_BYTES_MAX: usize = 1024;
/// Most keywords of a rule.
pub(super) const KEYWORDS_MAX: usize = 1024;
/// Most memory that one regular expression may be compiled to, bytes, and that its search may remember.
const NFA_BYTES_MAX: usize = 256 * 1024;
const CACHE_BYTES_MAX: usize = 64 * 1024;
/// Most texts of which one must occur where a regular expression matches; more are not worth looking for.
const LITERALS_MAX: usize = 32;
/// Parts of a regular expression at which such texts are looked for.
const PARTS_MAX: usize = 32;

/// The part of a text that is looked at.
pub(super) fn looked_at(content: &[u8]) -> &[u8] {
    &content[..content.len().min(CONTENT_BYTES_MAX)]
}

/// The test of a text.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) content: Content,
    /// ASCII letters are the same in upper and lower case; in patterns all letters are.
    pub(super) ignores_case: bool,
    /// For keywords: those, sorted, in lower case if case is ignored.
    pub(super) words: Vec<Box<[u8]>>,
    /// For globs and regular expressions.
    regex: Option<Regex>,
}

/// What must be in a text that passes a test: one of these.
pub(super) enum Clue {
    /// It begins with one of them.
    Beginnings(Vec<Vec<u8>>),
    /// One of them stands in it.
    Needles(Vec<Vec<u8>>),
    /// One of its words is one of them.
    Words(Vec<Vec<u8>>),
}

impl Test {
    /// Makes it ready. `Err`: why the pattern is none.
    pub(super) fn new(content: &Content, ignores_case: bool) -> Result<Test, String> {
        let mut words: Vec<Box<[u8]>> = match content {
            Content::Keywords(words) => words.iter().map(|word| folded(word.as_bytes(), ignores_case).into()).collect(),
            _ => Vec::new(),
        };
        words.sort_unstable();
        words.dedup();
        let regex = match hir(content, ignores_case)? {
            Some(hir) => Some(compile(&hir)?),
            None => None,
        };
        Ok(Test { content: content.clone(), ignores_case, words, regex })
    }

    pub(super) fn passes(&self, body: &[u8]) -> bool {
        let looked_at = looked_at(body);
        match &self.content {
            Content::Exact(text) => self.are_same(body, text.as_bytes()),
            Content::Prefix(text) => {
                let start = body.get(..text.len());
                start.is_some_and(|start| self.are_same(start, text.as_bytes()))
            }
            Content::Contains(text) => {
                text.is_empty() || looked_at.windows(text.len()).any(|window| self.are_same(window, text.as_bytes()))
            }
            Content::Keywords(_) => words(looked_at).any(|word| self.has_word(word)),
            Content::Glob(_) | Content::Regex(_) => {
                self.regex.as_ref().is_some_and(|regex| regex.is_match(Input::new(looked_at)))
            }
        }
    }

    fn are_same(&self, one: &[u8], other: &[u8]) -> bool {
        match self.ignores_case {
            true => one.eq_ignore_ascii_case(other),
            false => one == other,
        }
    }

    fn has_word(&self, word: &[u8]) -> bool {
        match self.ignores_case {
            false => self.words.binary_search_by(|own| (**own).cmp(word)).is_ok(),
            true => {
                let lower = |byte: &u8| byte.to_ascii_lowercase();
                self.words.binary_search_by(|own| own.iter().copied().cmp(word.iter().map(lower))).is_ok()
            }
        }
    }

    /// Whether it passes as soon as a search has found its needle or one of its words.
    pub(super) const fn is_decided_by_search(&self) -> bool {
        matches!(self.content, Content::Contains(_) | Content::Keywords(_))
    }

    /// Whether every text that passes the other passes this one as well. Where that is hard to tell, no.
    pub(super) fn covers(&self, other: &Test) -> bool {
        if self.content == other.content && self.ignores_case == other.ignores_case {
            return true;
        }
        let passes_all = match &self.content {
            Content::Prefix(text) | Content::Contains(text) => text.is_empty(),
            Content::Glob(pattern) => !pattern.is_empty() && pattern.bytes().all(|byte| byte == b'*'),
            Content::Exact(_) | Content::Regex(_) | Content::Keywords(_) => false,
        };
        if passes_all {
            return true;
        }
        // If only the other ignores case, it takes spellings that this one refuses.
        if other.ignores_case && !self.ignores_case {
            return false;
        }
        match (&self.content, &other.content) {
            (_, Content::Exact(text)) => self.passes(text.as_bytes()),
            (Content::Prefix(_) | Content::Contains(_), Content::Prefix(text)) => self.passes(text.as_bytes()),
            (Content::Prefix(_), Content::Glob(glob)) => {
                self.passes(glob.split(['*', '?']).next().unwrap_or("").as_bytes())
            }
            (Content::Contains(_), Content::Contains(text)) => self.passes(text.as_bytes()),
            (Content::Contains(_), Content::Keywords(words)) => words.iter().all(|word| self.passes(word.as_bytes())),
            (Content::Keywords(_), Content::Keywords(words)) => words.iter().all(|word| self.has_word(word.as_bytes())),
            _ => false,
        }
    }

    /// What a text that passes must have, and whether case matters there. None if nothing is known of it.
    pub(super) fn clue(&self) -> Option<(Clue, bool)> {
        let ignores_case = self.ignores_case;
        let text = |text: &str| vec![folded(text.as_bytes(), ignores_case)];
        let clue = match &self.content {
            Content::Exact(exact) if exact.is_empty() => return None,
            Content::Prefix(prefix) | Content::Contains(prefix) if prefix.is_empty() => return None,
            Content::Exact(exact) => Clue::Beginnings(text(exact)),
            Content::Prefix(prefix) => Clue::Beginnings(text(prefix)),
            Content::Contains(needle) => Clue::Needles(text(needle)),
            Content::Keywords(_) => Clue::Words(self.words.iter().map(|word| word.to_vec()).collect()),
            Content::Glob(_) | Content::Regex(_) => return pattern_clue(&hir(&self.content, ignores_case).ok()??),
        };
        Some((clue, ignores_case))
    }
}

/// A text, in lower case if case is ignored.
fn folded(text: &[u8], ignores_case: bool) -> Vec<u8> {
    if ignores_case {
        text.to_ascii_lowercase()
    } else {
        text.to_vec()
    }
}

/// The words of a text: letters, digits and `_` in a row. Every byte beyond ASCII belongs to a letter.
pub(super) fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| !is_word_byte(*byte)).filter(|word| !word.is_empty())
}

pub(super) fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// A glob or regular expression, read. None for what is neither.
fn hir(content: &Content, ignores_case: bool) -> Result<Option<Hir>, String> {
    let glob;
    let pattern = match content {
        Content::Regex(pattern) => pattern,
        Content::Glob(pattern) => {
            glob = expression(pattern);
            &glob
        }
        Content::Exact(_) | Content::Prefix(_) | Content::Contains(_) | Content::Keywords(_) => return Ok(None),
    };
    // A text need not be UTF-8.
    let config = syntax::Config::new().utf8(false).case_insensitive(ignores_case).nest_limit(50);
    syntax::parse_with(pattern, &config).map(Some).map_err(|error| one_line(&error.to_string()))
}

/// The regular expression of a glob: `*` stands for anything, `?` for one character, all else for itself.
fn expression(glob: &str) -> String {
    let mut expression = String::from(r"\A");
    for character in glob.chars() {
        match character {
            '*' => expression.push_str("(?s-u:.)*"),
            '?' => expression.push_str("(?s:.)"),
            other => regex_syntax::escape_into(other.encode_utf8(&mut [0; 4]), &mut expression),
        }
    }
    expression.push_str(r"\z");
    expression
}

fn compile(hir: &Hir) -> Result<Regex, String> {
    let config = meta::Config::new()
        .utf8_empty(false)
        .nfa_size_limit(Some(NFA_BYTES_MAX))
        .hybrid_cache_capacity(CACHE_BYTES_MAX);
    Regex::builder().configure(config).build_from_hir(hir).map_err(|error| match error.size_limit() {
        Some(_) => "it is too large once compiled".to_owned(),
        None => one_line(&error.to_string()),
    })
}

/// The last line of an error says what is wrong; those above draw the pattern, for which there is no room.
fn one_line(error: &str) -> String {
    let last = error.lines().next_back().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// The longest texts of which one must be where the expression matches.
fn pattern_clue(hir: &Hir) -> Option<(Clue, bool)> {
    let is_anchored = hir.properties().look_set_prefix().contains(Look::Start);
    if let Some((literals, ignores_case)) = literals(hir).filter(|_| is_anchored) {
        return Some((Clue::Beginnings(literals), ignores_case));
    }
    let parts = match hir.kind() {
        HirKind::Concat(parts) => parts.as_slice(),
        _ => std::slice::from_ref(hir),
    };
    let worth = |found: &(Vec<Vec<u8>>, bool)| found.0.iter().map(Vec::len).min().unwrap_or(0);
    let found = (0..parts.len().min(PARTS_MAX)).filter_map(|from| literals(&Hir::concat(parts[from..].to_vec())));
    let (needles, ignores_case) = found.max_by_key(worth)?;
    Some((Clue::Needles(needles), ignores_case))
}

/// The texts of which one begins each match; in lower case, and `true`, if that makes them fewer.
fn literals(hir: &Hir) -> Option<(Vec<Vec<u8>>, bool)> {
    let sequence = Extractor::new().extract(hir);
    let literals: Vec<Vec<u8>> = sequence.literals()?.iter().map(|literal| literal.as_bytes().to_vec()).collect();
    let mut lower: Vec<Vec<u8>> = literals.iter().map(|literal| literal.to_ascii_lowercase()).collect();
    lower.sort_unstable();
    lower.dedup();
    let ignores_case = lower.len() < literals.len();
    let chosen = if ignores_case { lower } else { literals };
    let is_worth = !chosen.is_empty() && chosen.len() <= LITERALS_MAX && chosen.iter().all(|text| !text.is_empty());
    is_worth.then_some((chosen, ignores_case))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(content: Content) -> Test {
        Test::new(&content, false).expect("it is a pattern")
    }

    fn text(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn each_kind_of_test_passes_what_it_says_and_nothing_else() {
        for (content, passes, fails) in [
            (Content::Exact(text("a")), &["a"][..], &["", "A", "ab"][..]),
            (Content::Prefix(text("!p")), &["!p", "!play"], &["", "!", "!P", " !p"]),
            (Content::Contains(text("so")), &["so", "a song"], &["", "s", "SO"]),
            (Content::Contains(text("")), &["", "x"], &[]),
            (
                Content::Glob(text("!play *.mp?")),
                &["!play a.mp3", "!play .mpé"],
                &["!play a.mp", "x!play a.mp3", "!play a.mp33"],
            ),
            (Content::Glob(text("*")), &["", "a\nb"], &[]),
            (Content::Glob(text("a.c")), &["a.c"], &["abc"]),
            (Content::Regex(text(r"\bsongs?\b")), &["a song", "songs!"], &["songster"]),
            (
                Content::Keywords(vec![text("play"), text("stop")]),
                &["play", "please, stop!"],
                &["", "player", "Play", "play_"],
            ),
            (Content::Keywords(vec![text("größe")]), &["die größe!"], &["größer", "gr"]),
        ] {
            let test = test(content);
            passes.iter().for_each(|text| assert!(test.passes(text.as_bytes()), "{test:?} refuses {text:?}"));
            fails.iter().for_each(|text| assert!(!test.passes(text.as_bytes()), "{test:?} passes {text:?}"));
        }
        assert!(test(Content::Glob(text("a*z"))).passes(b"a\xff\xfez"), "a text need not be UTF-8");
    }

    #[test]
    fn case_can_be_ignored_in_each() {
        for content in [
            Content::Exact(text("Play")),
            Content::Prefix(text("pL")),
            Content::Contains(text("LA")),
            Content::Glob(text("p*Y")),
            Content::Regex(text("^PLAY$")),
            Content::Keywords(vec![text("pLaY")]),
        ] {
            let test = Test::new(&content, true).expect("it is a pattern");
            ["play", "PLAY"].iter().for_each(|text| assert!(test.passes(text.as_bytes()), "{test:?}"));
        }
    }

    #[test]
    fn what_stands_behind_the_bound_is_not_seen() {
        let mut long = vec![b' '; CONTENT_BYTES_MAX];
        long.extend_from_slice(b"play");
        for content in
            [Content::Contains(text("play")), Content::Regex(text("play")), Content::Keywords(vec![text("play")])]
        {
            let test = test(content);
            assert!(!test.passes(&long), "{test:?}");
            assert!(test.passes(&long[8..]), "{test:?}");
        }
    }

    #[test]
    fn a_pattern_that_is_none_or_too_large_is_told_in_one_line() {
        for wrong in ["(", "[z-a]", r"(?:(?:\w{500}){500}){500}"] {
            let error = Test::new(&Content::Regex(text(wrong)), false).expect_err("it is wrong");
            assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn a_pattern_that_backtracks_for_ever_elsewhere_is_told_apart_in_one_pass() {
        let test = test(Content::Regex(text(r"^(?:a|a|aa)*b$")));
        assert!(!test.passes(&[b'a'; CONTENT_BYTES_MAX]));
    }

    #[test]
    fn what_a_pattern_needs_is_found_wherever_it_stands() {
        let clue = |pattern: &str, ignores_case| {
            let test = Test::new(&Content::Regex(text(pattern)), ignores_case).expect("it is a pattern");
            test.clue().map(|(clue, folds)| match clue {
                Clue::Beginnings(texts) => (true, texts, folds),
                Clue::Needles(texts) | Clue::Words(texts) => (false, texts, folds),
            })
        };
        assert_eq!(clue("^!play", false), Some((true, vec![b"!play".to_vec()], false)));
        assert_eq!(clue(r"\d+ songs", false), Some((false, vec![b" songs".to_vec()], false)));
        assert_eq!(clue("(?i)hey", false), Some((false, vec![b"hey".to_vec()], true)));
        assert_eq!(clue("one|other", false), Some((false, vec![b"one".to_vec(), b"other".to_vec()], false)));
        assert_eq!(clue(r"\d+", false).map(|(_, texts, _)| texts.len()), None);
        assert_eq!(clue(".*", false), None);
    }
}
