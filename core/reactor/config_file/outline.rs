//! The outline of a RON text: which brackets, fields and items stand where. Lenient, and it never fails: what it cannot
//! make sense of it tells as a fault, and outlines nothing behind that.

use std::ops::Range;

use super::{place, DEPTH_MAX};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Leaf,
    /// `( … )`, perhaps with a word before it.
    Group,
    List,
    Map,
}

/// A value: all offsets are bytes of the text.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) start: usize,
    /// Behind the closing bracket or the last character.
    pub(super) end: usize,
    /// Behind the leading word, `start` if there is none. Of a leaf, its end.
    pub(super) word_end: usize,
    pub(super) shape: Shape,
    pub(super) items: Vec<Entry>,
}

/// A field of a group, an item of a list, or a pair of a map.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Option<Range<usize>>,
    pub(super) value: Node,
    pub(super) start: usize,
    /// Behind the value and whatever else stands before the comma.
    pub(super) end: usize,
    /// Behind the comma; without one, where the next thing begins.
    pub(super) until: usize,
}

#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) what: String,
    pub(super) remedy: String,
}

#[derive(Debug)]
pub(super) struct Outline {
    /// None if there is nothing but comments.
    pub(super) root: Option<Node>,
    /// What stands behind the root, if anything does.
    pub(super) behind: Option<usize>,
    /// Every string, in the order of the text.
    pub(super) strings: Vec<Range<usize>>,
    /// The first bracket, string or comment that does not end as it should; nothing is outlined behind it.
    pub(super) fault: Option<Fault>,
}

impl Outline {
    pub(super) fn of(text: &str) -> Outline {
        let mut scan = Scan { text, at: 0, strings: Vec::new(), fault: None };
        scan.trivia();
        while scan.rest().starts_with('#') && scan.fault.is_none() {
            scan.node(0); // `#!`
            scan.trivia();
            if scan.peek() == Some('[') {
                scan.node(0);
                scan.trivia();
            }
        }
        let root = scan.peek().filter(|next| !is_closer(*next)).map(|_| scan.node(0));
        scan.trivia();
        let behind = (!scan.rest().is_empty() && scan.fault.is_none()).then_some(scan.at);
        if let Some(closer) = scan.peek().filter(|next| behind.is_some() && is_closer(*next)) {
            let remedy = format!("remove it, or look for a {closer} too many before it");
            scan.fail(scan.at, format!("this {closer} closes nothing"), &remedy);
        }
        Outline { root, behind, strings: scan.strings, fault: scan.fault }
    }
}

pub(super) struct Scan<'t> {
    pub(super) text: &'t str,
    pub(super) at: usize,
    pub(super) strings: Vec<Range<usize>>,
    pub(super) fault: Option<Fault>,
}

impl Scan<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn fail(&mut self, at: usize, what: String, remedy: &str) {
        if self.fault.is_none() {
            self.fault = Some(Fault { at, what, remedy: remedy.to_owned() });
        }
        self.at = self.text.len();
    }

    /// Passes white space and comments.
    fn trivia(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches(is_white);
            self.at += rest.len() - trimmed.len();
            if self.rest().starts_with("//") {
                self.at += self.rest().find('\n').unwrap_or(self.rest().len());
            } else if self.rest().starts_with("/*") {
                self.block_comment();
            } else {
                return;
            }
        }
    }

    fn block_comment(&mut self) {
        let start = self.at;
        let mut level = 0usize;
        loop {
            let Some(next) = self.rest().find(['/', '*']) else {
                return self.fail(start, "this comment is never closed".to_owned(), "close it with */");
            };
            self.at += next;
            if self.rest().starts_with("/*") {
                level += 1;
                self.at += 2;
            } else if self.rest().starts_with("*/") {
                level -= 1;
                self.at += 2;
                if level == 0 {
                    return;
                }
            } else {
                self.at += 1;
            }
        }
    }

    /// Passes a value; at least one character unless the text is at its end.
    fn node(&mut self, depth: usize) -> Node {
        let start = self.at;
        if !self.string() {
            self.word();
            let word_end = self.at;
            if word_end > start {
                self.trivia();
            }
            match self.peek() {
                Some(open @ ('(' | '[' | '{')) if open == '(' || word_end == start => {
                    return self.container(start, word_end, open, depth);
                }
                Some(other) if word_end == start => self.at += other.len_utf8(),
                _ => self.at = word_end,
            }
        }
        Node { start, end: self.at, word_end: self.at, shape: Shape::Leaf, items: Vec::new() }
    }

    fn container(&mut self, start: usize, word_end: usize, open: char, depth: usize) -> Node {
        let (closer, shape) = match open {
            '(' => (')', Shape::Group),
            '[' => (']', Shape::List),
            _ => ('}', Shape::Map),
        };
        let bracket = self.at;
        let mut items = Vec::new();
        self.at += 1;
        if depth >= DEPTH_MAX {
            let what = format!("brackets are nested more than {DEPTH_MAX} deep");
            self.fail(bracket, what, "no file that is read here needs more than 5; remove the others");
        }
        while self.fault.is_none() {
            self.trivia();
            match self.peek() {
                Some(next) if next == closer => {
                    self.at += 1;
                    break;
                }
                Some(next) if is_closer(next) => {
                    let what = format!("this {open} is not closed before the {next} on line {}", self.line());
                    self.fail(bracket, what, &format!("write {closer} where it ends"));
                }
                None => {
                    self.fail(bracket, format!("this {open} is never closed"), &format!("write {closer} where it ends"))
                }
                Some(',') => self.at += 1,
                Some(_) => items.push(self.entry(shape, depth + 1)),
            }
        }
        Node { start, end: self.at, word_end, shape, items }
    }

    fn line(&self) -> usize {
        place(self.text, self.at).0
    }

    fn entry(&mut self, shape: Shape, depth: usize) -> Entry {
        let start = self.at;
        let mut value = self.node(depth);
        let mut key = None;
        self.trivia();
        if matches!(self.peek(), Some(':' | '=')) {
            key = Some(value.start..value.end);
            self.at += 1;
            let colon = self.at;
            self.trivia();
            value = match self.peek() {
                Some(next) if next != ',' && !is_closer(next) => self.node(depth),
                _ => Node { start: colon, end: colon, word_end: colon, shape: Shape::Leaf, items: Vec::new() },
            };
        }
        let mut end = value.end;
        loop {
            self.at = end;
            self.trivia();
            match self.peek() {
                Some(',') => self.at += 1,
                Some(next) if !is_closer(next) && shape != Shape::List && !self.key_follows() => {
                    end = self.node(depth).end;
                    continue;
                }
                _ => {}
            }
            return Entry { key, value, start, end, until: self.at };
        }
    }

    /// Whether a word or string with a colon, or what somebody takes for one, comes next.
    fn key_follows(&mut self) -> bool {
        let (at, strings) = (self.at, self.strings.len());
        if !self.string() {
            self.word();
        }
        let passed = self.at > at;
        self.trivia();
        let colon = passed && matches!(self.peek(), Some(':' | '='));
        self.at = if self.fault.is_none() { at } else { self.text.len() };
        self.strings.truncate(strings);
        colon
    }

    fn word(&mut self) {
        let rest = self.rest();
        let mut before_slash = false;
        for (index, character) in rest.char_indices() {
            if before_slash && matches!(character, '/' | '*') {
                self.at += index - 1;
                return;
            }
            if is_white(character) || "()[]{},:=\"".contains(character) {
                self.at += index;
                return;
            }
            before_slash = character == '/';
        }
        self.at += rest.len();
    }

    /// Passes a string, raw string, byte string or character, if one comes next.
    fn string(&mut self) -> bool {
        let start = self.at;
        let rest = self.rest();
        let plain = rest.strip_prefix('b').unwrap_or(rest);
        let raw = plain.strip_prefix('r');
        let body = raw.unwrap_or(plain);
        let quote = body.trim_start_matches('#');
        let hashes = body.len() - quote.len();
        if let Some(inner) = plain.strip_prefix('\'') {
            let length = char_length(inner);
            self.at += length.map_or(0, |length| rest.len() - inner.len() + length);
            return length.is_some();
        }
        let Some(inner) = quote.strip_prefix('"').filter(|_| raw.is_some() || hashes == 0) else {
            return false;
        };
        let length = match raw {
            Some(_) => {
                let ending = format!("\"{}", "#".repeat(hashes));
                inner.find(&ending).map(|index| index + ending.len())
            }
            None => quoted_length(inner),
        };
        match length {
            Some(length) => {
                self.at += rest.len() - inner.len() + length;
                self.strings.push(start..self.at);
            }
            None => {
                let closing = format!("\"{}", if raw.is_some() { "#".repeat(hashes) } else { String::new() });
                self.fail(start, "this text is never closed".to_owned(), &format!("write {closing} where it ends"));
            }
        }
        true
    }
}

/// Bytes up to and with the closing quote.
fn quoted_length(inner: &str) -> Option<usize> {
    let mut escaped = false;
    for (index, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(index + 1),
            _ => {}
        }
    }
    None
}

/// Bytes of a character literal behind its opening quote, with the closing one.
fn char_length(inner: &str) -> Option<usize> {
    let mut characters = inner.char_indices();
    let (_, first) = characters.next()?;
    if first == '\\' {
        characters.next()?;
        return characters.take(10).find(|(_, character)| *character == '\'').map(|(index, _)| index + 1);
    }
    characters.next().filter(|(_, character)| *character == '\'').map(|(index, _)| index + 1)
}

/// What RON takes for white space.
fn is_white(character: char) -> bool {
    matches!(
        character,
        ' ' | '\t' | '\n' | '\r' | '\x0B' | '\x0C' | '\u{85}' | '\u{200E}' | '\u{200F}' | '\u{2028}' | '\u{2029}'
    )
}

fn is_closer(character: char) -> bool {
    matches!(character, ')' | ']' | '}')
}
