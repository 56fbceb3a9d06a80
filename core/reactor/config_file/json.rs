//! Reading JSON: serde_json stops at the first error too, and tells the line and column just behind it. What stands there
//! is looked up in the outline (a JSON text has the brackets of a RON text, and nothing else that matters here), told,
//! blanked out in a copy of the same length, and the copy is read again.

use std::path::Path;

use demi_conductor::config::{nearest, Mistake};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::outline::{Entry, Node, Outline};
use super::reading::Subject;
use super::{place, without_mark, Problem, Problems, PROBLEMS_MAX, READINGS_MAX};

/// Reads a text and judges what it says.
pub(super) fn check<T: DeserializeOwned>(
    text: &str,
    path: &Path,
    subject: &'static Subject,
    judge: impl FnOnce(&mut T) -> Vec<Mistake>,
) -> Result<T, Problems> {
    let text = without_mark(text);
    if let Ok(mut value) = serde_json::from_str::<T>(text) {
        let mistakes = judge(&mut value);
        return if mistakes.is_empty() { Ok(value) } else { Err(placed(text, path, mistakes)) };
    }
    let outline = Outline::of(text);
    let mut reading =
        Reading { text, outline: &outline, subject, copy: text.to_owned(), filled: Vec::new(), found: Vec::new() };
    if let Some(mut value) = reading.read::<T>() {
        for mistake in judge(&mut value) {
            let field = mistake.at.split(['.', '[']).next().unwrap_or("").to_owned();
            let is_spoilt = |field: &str| reading.filled.iter().any(|filled| filled == field);
            let follows =
                subject.influences.iter().any(|(cause, effects)| is_spoilt(cause) && effects.contains(&field.as_str()));
            if !is_spoilt(&field) && !follows {
                reading.tell(locate(&outline, text, &mistake.at), mistake.what, mistake.remedy);
            }
        }
    }
    Err(problems(text, path, reading.found))
}

/// Mistakes in a text that is otherwise sound, each where it stands.
pub(super) fn placed(text: &str, path: &Path, mistakes: Vec<Mistake>) -> Problems {
    let outline = Outline::of(text);
    let found = mistakes.into_iter().map(|mistake| Found {
        at: locate(&outline, text, &mistake.at),
        what: mistake.what,
        remedy: mistake.remedy,
    });
    problems(text, path, found.collect())
}

struct Found {
    at: usize,
    what: String,
    remedy: String,
}

struct Reading<'t> {
    text: &'t str,
    outline: &'t Outline,
    subject: &'static Subject,
    /// The text with what was told blanked out: everything in it stands where it stands in the text.
    copy: String,
    /// Fields whose value is not what was written.
    filled: Vec<String>,
    found: Vec<Found>,
}

impl Reading<'_> {
    /// Tells and blanks out until the text can be read. None if it cannot be.
    fn read<T: DeserializeOwned>(&mut self) -> Option<T> {
        for _ in 0..READINGS_MAX {
            let (copy, inserted) = self.copy_with_fillers();
            let error = match serde_json::from_str::<T>(&copy) {
                Ok(value) => return Some(value),
                Err(error) => error,
            };
            // Behind what is wrong, in the copy; what was put in stands behind the first bracket.
            let behind = offset(&copy, error.line(), error.column());
            let at = if behind > inserted.end { behind - inserted.len() } else { behind.min(inserted.start) };
            if !self.mend(at.saturating_sub(1), &error) || self.found.len() > PROBLEMS_MAX {
                break;
            }
        }
        None
    }

    fn copy_with_fillers(&self) -> (String, std::ops::Range<usize>) {
        // Only an object has room for them.
        let root = self.outline.root.as_ref().filter(|root| self.text[root.start..].starts_with('{'));
        let Some(start) = root.map(|root| root.start + 1) else {
            return (self.copy.clone(), 0..0);
        };
        let mut fillers = String::new();
        for required in self.subject.required.iter().filter(|required| self.filled.iter().any(|f| f == required.field))
        {
            fillers.push_str(&format!("\"{}\":{},", required.field, required.filler));
        }
        let has_more = self.copy[start..].trim_start().starts_with('"');
        if !has_more && fillers.ends_with(',') {
            fillers.pop();
        }
        let mut copy = self.copy.clone();
        copy.insert_str(start, &fillers);
        (copy, start..start + fillers.len())
    }

    fn tell(&mut self, at: usize, what: String, remedy: String) {
        self.found.push(Found { at, what, remedy });
    }

    /// Tells an error and blanks out what is wrong. False if the text cannot be read on.
    fn mend(&mut self, at: usize, error: &serde_json::Error) -> bool {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or("").to_owned();
        let reachable = self.outline.fault.as_ref().is_none_or(|fault| at < fault.at);
        let Some(root) = self.outline.root.as_ref().filter(|_| reachable && error.classify() == Category::Data) else {
            let (what, remedy) = match error.classify() {
                _ if self.text.trim().is_empty() => (
                    "the file is empty".to_owned(),
                    "write {\"name\": \"…\", \"version\": \"1.0.0\", \"command\": [\"./program\"]}",
                ),
                Category::Eof => ("the file ends too early".to_owned(), "close every bracket and every quote"),
                _ => (format!("this is not JSON: {message}"), "correct it; what follows was not read"),
            };
            self.tell(at, what, remedy.to_owned());
            return false;
        };
        if let Some(field) = message.strip_prefix("missing field ").map(|rest| rest.trim_matches('`').to_owned()) {
            if self.filled.contains(&field) {
                return false;
            }
            let hint = self.subject.required.iter().find(|required| required.field == field).map_or("…", |r| r.hint);
            self.tell(
                root.start,
                format!("{} lacks the field {field}", self.subject.noun),
                format!("add \"{field}\": {hint}"),
            );
            self.filled.push(field);
            return true;
        }
        let way = self.way(root, at);
        let Some((parent, entry)) = way.last().copied() else {
            let what = format!("{} must be an object: {message}", self.subject.noun);
            self.tell(root.start, what, "write {\"field\": value, …}".to_owned());
            return false;
        };
        if let Some(rest) = message.strip_prefix("unknown field ") {
            let mut names = rest.split('`').skip(1).step_by(2);
            let name = names.next().unwrap_or("").to_owned();
            let known: Vec<&str> = names.collect();
            let near = nearest(&name, &known);
            let remedy = match near {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known are: {}", known.join(", ")),
            };
            let owner = self.owner(&way);
            self.tell(entry.start, format!("{owner} has no field {name}"), remedy);
            // The one meant must not be told as missing.
            let is_required = |near: &&str| self.subject.required.iter().any(|required| required.field == *near);
            let is_there = |near: &&str| parent.items.iter().any(|entry| self.key(entry) == Some(*near));
            if let Some(near) = near.filter(|near| is_required(near) && !is_there(near)) {
                self.filled.push(near.to_owned());
            }
            return self.blank(parent, entry);
        }
        if let Some(rest) = message.strip_prefix("duplicate field ") {
            let name = rest.trim_matches('`');
            let what = format!("{} has the field {name} twice", self.owner(&way));
            self.tell(entry.start, what, "remove one of them".to_owned());
            return self.blank(parent, entry);
        }
        let field = way.iter().rev().find_map(|(_, entry)| self.key(entry)).unwrap_or("it").to_owned();
        let (what, remedy) = told(&field, &message);
        self.tell(entry.value.start, what, remedy);
        if let Some(name) = way.first().and_then(|(_, entry)| self.key(entry)) {
            self.filled.push(name.to_owned());
        }
        // An item of a list is taken out with the whole list: which of its siblings are sound is not known.
        match way.iter().rev().find(|(_, entry)| entry.key.is_some()).copied() {
            Some((parent, entry)) => self.blank(parent, entry),
            None => false,
        }
    }

    /// What stands around an offset, outermost first: each with the value that it stands in.
    fn way<'o>(&self, root: &'o Node, at: usize) -> Vec<(&'o Node, &'o Entry)> {
        let (mut way, mut parent) = (Vec::new(), root);
        while let Some(entry) = parent.items.iter().rfind(|entry| entry.start <= at) {
            if at >= entry.end && at >= entry.until {
                break;
            }
            way.push((parent, entry));
            parent = &entry.value;
        }
        way
    }

    fn key(&self, entry: &Entry) -> Option<&str> {
        entry.key.as_ref().map(|key| self.text[key.clone()].trim_matches('"'))
    }

    fn owner(&self, way: &[(&Node, &Entry)]) -> String {
        let above = way.iter().rev().skip(1).find_map(|(_, entry)| self.key(entry));
        above.unwrap_or(self.subject.noun).to_owned()
    }

    /// Takes an entry out of the copy, with one comma.
    fn blank(&mut self, parent: &Node, entry: &Entry) -> bool {
        let mut range = entry.start..entry.end;
        if self.copy[entry.end..entry.until].contains(',') {
            range.end = entry.until;
        } else if let Some(comma) = self.copy[parent.start..entry.start].trim_end().strip_suffix(',') {
            range.start = parent.start + comma.len();
        }
        if self.copy[entry.start..entry.end].trim().is_empty() {
            return false;
        }
        let blank: String =
            self.copy[range.clone()].bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect();
        self.copy.replace_range(range, &blank);
        true
    }
}

/// What is wrong with the value of a field, and the remedy.
fn told(field: &str, message: &str) -> (String, String) {
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let mut names = rest.split('`').skip(1).step_by(2);
        let name = names.next().unwrap_or("");
        let known: Vec<&str> = names.collect();
        let remedy = match nearest(name, &known) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("known are: {}", known.join(", ")),
        };
        return (format!("no {field} is named {name:?}"), remedy);
    }
    if message.contains("is outside") {
        return (format!("{field}: {message}"), "write a number in that range, or remove the field".to_owned());
    }
    if let Some((found, expected)) =
        message.split_once(": ").map_or(message, |(_, rest)| rest).split_once(", expected ")
    {
        let expected = match expected {
            "a sequence" => "a list",
            "a map" => "an object",
            "u64" => "a whole number, 0 or more",
            "a string" => "text",
            other => other,
        };
        return (format!("{field} must be {expected}, not {found}"), "correct it, or remove the field".to_owned());
    }
    (format!("{field}: {message}"), "correct it, or remove the field".to_owned())
}

/// The byte offset behind a line and column as serde_json tells them: lines from 1, columns in bytes.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let mut at = (start + column).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Where a path such as `capabilities[2]` leads, or its nearest ancestor.
fn locate(outline: &Outline, text: &str, path: &str) -> usize {
    let Some(mut node) = outline.root.as_ref() else {
        return 0;
    };
    for step in path.split(['.', '[']) {
        let next = match step.strip_suffix(']') {
            Some(index) => index.parse().ok().and_then(|index: usize| node.items.get(index)),
            None => node
                .items
                .iter()
                .find(|entry| entry.key.as_ref().is_some_and(|key| text[key.clone()].trim_matches('"') == step)),
        };
        match next {
            Some(entry) => node = &entry.value,
            None => break,
        }
    }
    node.start
}

fn problems(text: &str, path: &Path, mut found: Vec<Found>) -> Problems {
    found.sort_by_key(|found| found.at);
    if found.is_empty() {
        // Only a mistake that follows from one that was told is passed over, so there is none of that kind.
        let (what, remedy) = ("the file cannot be understood".to_owned(), "compare it with the example".to_owned());
        found.push(Found { at: 0, what, remedy });
    }
    let more = found.len() > PROBLEMS_MAX;
    found.truncate(PROBLEMS_MAX);
    let problem = |found: Found| {
        let at = (0..=found.at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let (line, column) = place(text, at);
        Problem { line, column, what: found.what, remedy: found.remedy }
    };
    Problems { path: path.to_owned(), problems: found.into_iter().map(problem).collect(), more }
}
