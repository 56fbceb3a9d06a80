//! Reading a text again and again: tell an error, mend it in a copy, read the copy. What a text is about (which fields
//! must be there, which depend on which) is its [`Subject`].

use std::ops::Range;
use std::path::Path;

use demi_conductor::config::{nearest, Mistake};
use ron::extensions::Extensions;
use ron::Error;
use serde::de::DeserializeOwned;

use super::outline::{Entry, Node, Outline, Shape};
use super::{offset, place, Problem, Problems, PROBLEMS_MAX, READINGS_MAX};

/// A change to the copy of the text that is read.
pub(super) struct Edit {
    at: Range<usize>,
    with: String,
    kind: Mending,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mending {
    Removed,
    Replaced,
    /// A value that nobody wrote.
    Filled,
}

pub(super) struct Found {
    at: usize,
    what: String,
    remedy: String,
}

/// An entry and the value it stands in.
#[derive(Clone, Copy)]
pub(super) struct Step<'o> {
    parent: &'o Node,
    entry: &'o Entry,
}

/// A field that must be there.
pub(super) struct Required {
    pub(super) field: &'static str,
    /// A value for it, so that the rest can be read; a mistake that follows from it is not told (see `influences`).
    pub(super) filler: &'static str,
    /// The value that a person is shown.
    pub(super) hint: &'static str,
}

/// What a text is about.
pub(super) struct Subject {
    /// What to call the whole.
    pub(super) noun: &'static str,
    /// What to write into an empty file.
    pub(super) empty: &'static str,
    pub(super) required: &'static [Required],
    /// Fields on whose value the verdict about their siblings depends: if the first is unknown, the others are not
    /// judged.
    pub(super) influences: &'static [(&'static str, &'static [&'static str])],
}

/// The configuration.
pub(super) const CONFIG: Subject = Subject {
    noun: "the configuration",
    empty: "write () to have every default",
    required: &[
        Required { field: "name", filler: "\"\"", hint: "\"…\"" },
        Required { field: "host", filler: "Http", hint: "Http" },
        Required { field: "to", filler: "\"\"", hint: "\"…\"" },
    ],
    influences: &[
        ("name", &["adapter", "command", "upstreams"]),
        (
            "host",
            &[
                "name",
                "adapter",
                "command",
                "env",
                "directory",
                "upstreams",
                "health_path",
                "health_method",
                "health_status",
                "health_body",
                "sticky_cookie",
                "breaker",
                "start",
                "sleep_after_ms",
                "limits",
                "permissions",
                "hot_reload",
            ],
        ),
        ("adapter", &["name"]),
        ("health_path", &["health_method", "health_status", "health_body"]),
        ("health_method", &["health_body"]),
        ("balance", &["sticky_cookie"]),
        ("sticky_cookie", &["sticky_cookie_max_age_s"]),
        ("open_ms", &["open_max_ms"]),
        ("check", &["behind"]),
        ("base_ms", &["max_ms"]),
    ],
};

/// A plugin's manifest.
pub(super) const MANIFEST: Subject = Subject {
    noun: "the manifest",
    empty: "write (name: \"…\", version: \"1.0.0\", command: [\"./program\"])",
    required: &[
        Required { field: "name", filler: "\"\"", hint: "\"…\"" },
        Required { field: "version", filler: "\"\"", hint: "\"1.0.0\"" },
        Required { field: "command", filler: "[]", hint: "[\"./program\"]" },
    ],
    influences: &[("name", &["command"]), ("protocol", &["permissions", "breaker"])],
};

/// How RON is read here: a value that may be absent is written without `Some`.
pub(super) fn options() -> ron::Options {
    ron::Options::default().with_default_extension(Extensions::IMPLICIT_SOME)
}

pub(super) struct Reading<'o> {
    text: &'o str,
    outline: &'o Outline,
    subject: &'static Subject,
    /// In the order of the text, never overlapping.
    pub(super) edits: Vec<Edit>,
    pub(super) found: Vec<Found>,
    /// Fields whose value is not what was written: start of their group, and name.
    spoilt: Vec<(usize, String)>,
    /// Starts of entries whose name was replaced by the one most likely meant.
    guessed: Vec<usize>,
}

impl<'o> Reading<'o> {
    pub(super) fn new(text: &'o str, outline: &'o Outline, subject: &'static Subject) -> Reading<'o> {
        let (edits, found, spoilt, guessed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Reading { text, outline, subject, edits, found, spoilt, guessed }
    }

    /// Tells and mends until the text can be read. None if it cannot be, or if there are too many problems.
    pub(super) fn read<T: DeserializeOwned>(&mut self) -> Option<T> {
        let options = options();
        for _ in 0..READINGS_MAX {
            let copy = self.copy();
            let error = match options.from_str::<T>(&copy) {
                Ok(value) => return Some(value),
                Err(error) => error,
            };
            let Some(at) = self.original(offset(&copy, error.span.end)) else {
                break;
            };
            log::trace!("{}: {error}", self.subject.noun);
            if !self.mend(at, &error.code) || self.found.len() > PROBLEMS_MAX {
                break;
            }
        }
        None
    }

    pub(super) fn problems(mut self, path: &Path) -> Problems {
        self.found.sort_by_key(|found| found.at);
        self.found.dedup_by(|right, left| right.at == left.at && right.what == left.what);
        if self.found.is_empty() {
            // Only an error inside our own filler without a problem before it would lead here.
            self.tell(0, "the file cannot be understood".to_owned(), "compare it with the example".to_owned());
        }
        let more = self.found.len() > PROBLEMS_MAX;
        self.found.truncate(PROBLEMS_MAX);
        let problem = |found: Found| {
            let (line, column) = place(self.text, found.at);
            Problem { line, column, what: found.what, remedy: found.remedy }
        };
        Problems { path: path.to_owned(), problems: self.found.into_iter().map(problem).collect(), more }
    }

    fn tell(&mut self, at: usize, what: String, remedy: String) {
        self.found.push(Found { at, what, remedy });
    }

    // -- the copy and its offsets

    fn copy(&self) -> String {
        let mut copy = String::with_capacity(self.text.len());
        let mut from = 0;
        for edit in &self.edits {
            copy.push_str(&self.text[from..edit.at.start]);
            copy.push_str(&edit.with);
            from = edit.at.end;
        }
        copy.push_str(&self.text[from..]);
        copy
    }

    /// Where an offset of the copy is in the original; None inside a filler.
    fn original(&self, offset: usize) -> Option<usize> {
        let (mut copied, mut from) = (0, 0);
        for edit in &self.edits {
            let kept = edit.at.start - from;
            if offset < copied + kept || (offset == copied + kept && !edit.with.is_empty()) {
                break;
            }
            copied += kept + edit.with.len();
            if offset < copied {
                return (edit.kind != Mending::Filled).then_some(edit.at.start);
            }
            from = edit.at.end;
        }
        Some((from + offset - copied).min(self.text.len()))
    }

    fn edit(&mut self, at: Range<usize>, with: String, kind: Mending) {
        if kind == Mending::Removed {
            let comma = |edit: &Edit| edit.at.start == at.end && edit.with == ",";
            self.edits.retain(|edit| edit.at.end <= at.start || (edit.at.start >= at.end && !comma(edit)));
        }
        // What is put in at a place goes before what is changed from there on.
        let order = |range: &Range<usize>| (range.start, !range.is_empty());
        let index = self.edits.partition_point(|edit| order(&edit.at) <= order(&at));
        self.edits.insert(index, Edit { at, with, kind });
    }

    fn is_removed(&self, entry: &Entry) -> bool {
        let removes =
            |edit: &Edit| edit.kind == Mending::Removed && edit.at.start <= entry.start && entry.end <= edit.at.end;
        self.edits.iter().any(removes)
    }

    // -- the outline around an offset

    /// The entries around an offset, outermost first.
    fn way(&self, at: usize) -> Vec<Step<'o>> {
        let mut way = Vec::new();
        let mut node = self.outline.root.as_ref();
        while let Some(parent) = node {
            let index = parent.items.partition_point(|entry| entry.start <= at);
            let Some(entry) = index
                .checked_sub(1)
                .map(|index| &parent.items[index])
                .filter(|entry| at <= entry.end || at < entry.until || !self.text[..entry.until].ends_with(','))
            else {
                break;
            };
            way.push(Step { parent, entry });
            node = Some(&entry.value);
        }
        way
    }

    /// The name of an entry's field, as written or as mended.
    fn key(&self, entry: &Entry) -> Option<&str> {
        let key = entry.key.as_ref()?;
        match self.edits.iter().find(|edit| edit.at == *key && edit.kind == Mending::Replaced) {
            Some(edit) => Some(&edit.with),
            None => Some(&self.text[key.clone()]),
        }
    }

    /// How to call the group that a step's entry stands in.
    fn owner(&self, way: &[Step<'o>]) -> String {
        let Some((last, above)) = way.split_last() else {
            return self.subject.noun.to_owned();
        };
        let Some(holder) = above.last() else {
            return self.subject.noun.to_owned();
        };
        if let Some(key) = self.key(holder.entry) {
            return key.to_owned();
        }
        let list = above.iter().rev().find_map(|step| self.key(step.entry)).unwrap_or("list");
        let noun = list.strip_suffix('s').unwrap_or(list);
        let named = last.parent.items.iter().find(|entry| self.key(entry) == Some("name"));
        match named.map(|entry| self.shown(&entry.value)).filter(|name| name.starts_with('"')) {
            Some(name) => format!("{noun} {name}"),
            None => format!("a {noun}"),
        }
    }

    /// How to call the value of the last step.
    fn subject(&self, way: &[Step<'o>], at: usize) -> String {
        let Some(step) = way.last() else {
            return self.subject.noun.to_owned();
        };
        let value = &step.entry.value;
        if value.shape == Shape::Group && value.word_end > value.start && at > value.word_end {
            return format!("the value in {}( )", &self.text[value.start..value.word_end]);
        }
        match self.key(step.entry) {
            Some(key) => key.to_owned(),
            None => {
                let list = way.iter().rev().find_map(|step| self.key(step.entry)).unwrap_or("the list");
                format!("an item of {list}")
            }
        }
    }

    /// A value as it is written, cut short.
    fn shown(&self, node: &Node) -> String {
        self.cut(&self.text[node.start..node.end])
    }

    fn cut(&self, text: &str) -> String {
        let line = text.lines().next().unwrap_or("");
        match line.char_indices().nth(32) {
            Some((index, _)) => format!("{}…", &line[..index]),
            None if line.len() < text.len() => format!("{line}…"),
            None if text.is_empty() => "nothing".to_owned(),
            None => text.to_owned(),
        }
    }

    // -- errors of the deserialiser

    /// Tells an error and mends the copy. False if it cannot be mended.
    fn mend(&mut self, at: usize, error: &Error) -> bool {
        if self.outline.fault.as_ref().is_some_and(|fault| at >= fault.at) || self.outline.root.is_none() {
            return self.give_up(at, error);
        }
        let comma = |character: char| character == ',' || "([{".contains(character);
        if self.text[at..].starts_with(',') && self.text[..at].trim_end().ends_with(comma) {
            self.tell(at, "this comma is one too many".to_owned(), "remove it".to_owned());
            self.edit(at..at + 1, String::new(), Mending::Replaced);
            return true;
        }
        match error {
            Error::NoSuchStructField { expected, found, .. } => self.unknown_field(at, found, expected),
            Error::DuplicateStructField { field, .. } => self.duplicate_field(at, field),
            Error::MissingStructField { field, .. } => self.missing_field(at, field),
            Error::NoSuchEnumVariant { expected, found, .. } => self.unknown_variant(at, found, expected),
            Error::ExpectedComma | Error::ExpectedStructLikeEnd | Error::ExpectedOptionEnd => self.surplus(at, error),
            Error::ExpectedMapColon => self.missing_colon(at, error),
            Error::ExpectedIdentifier | Error::SuggestRawIdentifier(_) => self.no_word(at, error),
            _ => self.bad_value(at, error),
        }
    }

    fn unknown_field(&mut self, at: usize, name: &str, known: &[&str]) -> bool {
        let way = self.way(at);
        let Some(step) = way.last().copied() else {
            return self.give_up(at, &Error::ExpectedIdentifier);
        };
        let written = step.entry.key.clone().unwrap_or(step.entry.value.start..step.entry.value.word_end);
        let near = nearest(name, known);
        let remedy = match near {
            Some(near) => format!("did you mean {near}?"),
            None => format!("known are: {}", known.join(", ")),
        };
        let name = &self.text[written.clone()];
        let what = format!("{} has no field {name}", self.owner(&way));
        self.found.retain(|found| found.at != written.start);
        self.tell(written.start, what, remedy);
        let taken =
            |name| step.parent.items.iter().any(|entry| !self.is_removed(entry) && self.key(entry) == Some(name));
        match near.filter(|near| !taken(near)) {
            Some(near) if !self.is_guessed(step.entry) => {
                self.edits.retain(|edit| edit.at != written);
                self.edit(written, near.to_owned(), Mending::Replaced);
                self.guessed.push(step.entry.start);
                true
            }
            _ => self.remove(&way, false),
        }
    }

    fn is_guessed(&self, entry: &Entry) -> bool {
        self.guessed.contains(&entry.start)
    }

    fn duplicate_field(&mut self, at: usize, name: &str) -> bool {
        let way = self.way(at);
        let Some(step) = way.last().copied() else {
            return self.give_up(at, &Error::ExpectedIdentifier);
        };
        let first =
            step.parent.items.iter().find(|entry| self.key(entry) == Some(name)).map_or(at, |entry| entry.start);
        let line = place(self.text, first).0;
        if !self.is_guessed(step.entry) {
            let what = format!("{} has the field {name} twice", self.owner(&way));
            self.tell(step.entry.start, what, format!("remove one of them; the first is on line {line}"));
        }
        self.remove(&way, false)
    }

    fn missing_field(&mut self, at: usize, name: &str) -> bool {
        // `at` is the closing bracket of the group.
        let mut way = self.way(at);
        while way.last().is_some_and(|step| step.entry.value.end != at + 1) {
            way.pop();
        }
        let outermost = self.outline.root.as_ref().filter(|root| root.end == at + 1);
        let Some(group) = way.last().map(|step| &step.entry.value).or(outermost) else {
            return self.give_up(at, &Error::ExpectedIdentifier);
        };
        let required = self.subject.required.iter().find(|required| required.field == name);
        if !self.is_spoilt(group.start, name) {
            let owner = match group.items.first() {
                Some(entry) => {
                    let inner: Vec<Step> = way.iter().copied().chain([Step { parent: group, entry }]).collect();
                    self.owner(&inner)
                }
                None => self.subject(&way, group.start),
            };
            let hint = required.map_or("…", |required| required.hint);
            self.tell(group.start, format!("{owner} lacks the field {name}"), format!("add {name}: {hint}"));
        }
        match required {
            Some(Required { filler, .. }) if group.shape == Shape::Group => {
                self.spoilt.push((group.start, name.to_owned()));
                let Some(bracket) = self.text[group.word_end..group.end].find('(') else {
                    return false;
                };
                let inside = group.word_end + bracket + 1;
                self.edit(inside..inside, format!("{name}: {filler}, "), Mending::Filled);
                true
            }
            _ => self.remove(&way, true),
        }
    }

    fn unknown_variant(&mut self, at: usize, name: &str, known: &[&str]) -> bool {
        let way = self.values(at);
        let Some(step) = way.last().copied() else {
            return self.give_up(at, &Error::ExpectedIdentifier);
        };
        let value = &step.entry.value;
        let word = value.start..value.word_end;
        if self.is_guessed(step.entry) || self.edits.iter().any(|edit| edit.at == word) {
            return self.remove(&way, true);
        }
        let near = nearest(name, known);
        let remedy = match near {
            Some(near) => format!("did you mean {near}?"),
            None => format!("known are: {}", known.join(", ")),
        };
        self.tell(value.start, format!("no {} is named {name}", self.subject(&way, value.start)), remedy);
        match near {
            Some(near) if &self.text[word.clone()] == name => {
                self.edit(word, near.to_owned(), Mending::Replaced);
                true
            }
            _ => self.remove(&way, true),
        }
    }

    /// Something stands where a comma or the end should.
    fn surplus(&mut self, at: usize, error: &Error) -> bool {
        if self.runaway(at).is_some() {
            return self.give_up(at, error);
        }
        let way = self.way(at);
        let Some(step) = way.last().copied() else {
            return self.give_up(at, error);
        };
        let before = step.parent.items.partition_point(|entry| entry.start < at);
        if step.entry.start == at && before > 0 && matches!(error, Error::ExpectedComma) {
            let end = step.parent.items[before - 1].end;
            let next = self.cut(&self.text[step.entry.start..step.entry.end]);
            self.tell(end, "a comma is missing here".to_owned(), format!("write , before {next}"));
            self.edit(end..end, ",".to_owned(), Mending::Replaced);
            return true;
        }
        let way = self.values(at);
        let Some(step) = way.last().copied() else {
            return self.give_up(at, error);
        };
        let value = &step.entry.value;
        let shown = self.shown(value);
        let inside = at < value.end;
        let word = self.text[value.start..value.word_end].to_owned();
        let subject = self.subject(&way, value.start);
        if self.is_quiet(&way) {
        } else if inside && shown.starts_with(|first: char| first.is_ascii_digit()) {
            let remedy = "write digits only, without quotes, unit or fraction".to_owned();
            self.tell(value.start, format!("{subject} must be a whole number, not {shown}"), remedy);
        } else if inside && value.shape == Shape::Group && at <= value.word_end + 1 && !word.is_empty() {
            let remedy = format!("write {subject}: {word}");
            self.tell(value.start, format!("{word} takes nothing in parentheses"), remedy);
        } else {
            let surplus = self.cut(self.text.get(at..value.end.max(step.entry.end)).unwrap_or(""));
            let remedy = "remove it, or write a comma before it if it is the next field".to_owned();
            self.tell(at, format!("{surplus} does not belong to the value of {subject}"), remedy);
        }
        self.remove(&way, true)
    }

    fn missing_colon(&mut self, at: usize, error: &Error) -> bool {
        let way = self.way(at);
        let equals = self.text[at..].starts_with('=');
        let Some(step) = way.last().copied().filter(|step| equals || step.entry.key.is_none()) else {
            return self.give_up(at, error);
        };
        if self.runaway(at).is_some() {
            return self.give_up(at, error);
        }
        let written = step.entry.key.clone().unwrap_or(step.entry.value.start..step.entry.value.word_end);
        let name = self.text[written].to_owned();
        if equals {
            self.tell(at, format!("after {name} stands = instead of a colon"), format!("write {name}: and its value"));
            self.edit(at..at + 1, ":".to_owned(), Mending::Replaced);
        } else if at >= step.entry.end || step.entry.value.shape != Shape::Leaf {
            self.tell(step.entry.start, format!("{name} has no value"), format!("write {name}: and its value"));
            return self.remove(&way, false);
        } else {
            self.tell(at, format!("after {name} a colon is missing"), format!("write {name}: and its value"));
            self.spoilt.push((step.parent.start, name));
            return self.remove(&way, false);
        }
        true
    }

    /// A word should stand here: the name of a field, or of one choice among some.
    fn no_word(&mut self, at: usize, error: &Error) -> bool {
        let way = self.way(at);
        let Some(step) = way.last().copied() else {
            return self.give_up(at, error);
        };
        let key = step.entry.key.clone().filter(|key| at <= key.end);
        let Some(key) = key else {
            return self.bad_value(at, error);
        };
        let written = &self.text[key.clone()];
        let bare: String = written
            .trim_matches('"')
            .chars()
            .map(|character| if character.is_alphanumeric() { character } else { '_' })
            .collect();
        if bare.is_empty() || self.edits.iter().any(|edit| edit.at == key) {
            return self.give_up(at, error);
        }
        if written.starts_with('"') {
            let remedy = format!("write {bare}: instead of {written}:");
            self.tell(key.start, "the name of a field stands without quotes".to_owned(), remedy);
        } else if bare == written {
            return self.give_up(at, error);
        } else {
            let remedy = format!("write {bare}: with letters, digits and _ only");
            self.tell(key.start, format!("{written} is not the name of a field"), remedy);
        }
        // If the name is unknown with underscores too, the next reading tells the known ones instead.
        self.edit(key, bare, Mending::Replaced);
        true
    }

    fn bad_value(&mut self, at: usize, error: &Error) -> bool {
        let way = self.values(at);
        let Some(step) = way.last().copied().filter(|_| !is_syntax(error)) else {
            return self.give_up(at, error);
        };
        let value = &step.entry.value;
        // `5s` is read as 5, and that may be out of range; the unit is the mistake.
        let cut = value.shape == Shape::Leaf && at < value.end && matches!(error, Error::Message(_));
        let error = if cut { &Error::ExpectedInteger } else { error };
        if !self.is_quiet(&way) {
            let subject = self.subject(&way, at);
            let payload = subject.starts_with("the value in ");
            let shown = match payload {
                true => value.items.first().map_or("nothing".to_owned(), |entry| self.shown(&entry.value)),
                false => self.shown(value),
            };
            let (mut what, remedy) = self.told(&subject, &shown, value, error);
            if shown == "nothing" {
                what = format!("{subject} is missing");
            }
            self.tell(value.start, what, remedy);
        }
        self.remove(&way, true)
    }

    /// What is wrong with a value, and the remedy.
    fn told(&self, subject: &str, shown: &str, value: &Node, error: &Error) -> (String, String) {
        let must = |what: &str| format!("{subject} must be {what}, not {shown}");
        let word = &self.text[value.start..value.word_end];
        let leaf = value.shape == Shape::Leaf;
        match error {
            Error::Message(message) if message.contains("is outside") => {
                (format!("{subject}: {message}"), "write a number in that range, or remove the field".to_owned())
            }
            Error::Message(message) => {
                (format!("{subject}: {message}"), "write a value that is allowed, or remove the field".to_owned())
            }
            Error::ExpectedInteger | Error::UnderscoreAtBeginning | Error::InvalidIntegerDigit { .. } => {
                (must("a whole number"), "write digits only, without quotes, unit or fraction".to_owned())
            }
            Error::IntegerOutOfBounds => {
                (format!("{subject}: {shown} is negative or too large"), "write a smaller number, 0 or more".to_owned())
            }
            Error::ExpectedBoolean => (must("true or false"), "write true or false, without quotes".to_owned()),
            Error::ExpectedString if leaf && !shown.ends_with('…') && shown != "nothing" => {
                (must("text"), format!("write \"{}\", in double quotes", shown.trim_matches('\'')))
            }
            Error::ExpectedString => (must("text"), "write it in double quotes".to_owned()),
            Error::ExpectedArray if value.shape == Shape::Group => {
                (must("a list"), "write [ before it and ] behind it".to_owned())
            }
            Error::ExpectedArray => (must("a list"), format!("write [{shown}], in brackets")),
            Error::ExpectedMap => (must("a map"), "write {\"name\": \"value\"}, in braces".to_owned()),
            Error::ExpectedStructLike if leaf => {
                (format!("{word} needs a value in parentheses"), format!("write {word}(…) with its value"))
            }
            Error::ExpectedDifferentStructName { expected, found } if value.shape == Shape::Group => {
                (format!("{subject} is not a {found}"), format!("write ( … ) or {expected}( … )"))
            }
            Error::ExpectedStructLike
            | Error::ExpectedNamedStructLike(_)
            | Error::ExpectedDifferentStructName { .. } => {
                (must("fields in parentheses"), "write (field: value, …)".to_owned())
            }
            Error::ExpectedIdentifier | Error::SuggestRawIdentifier(_) => {
                let remedy = match shown.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
                    Some(bare) => format!("write {bare}, without quotes"),
                    None => "write one of the choices, without quotes".to_owned(),
                };
                (must("a bare word"), remedy)
            }
            Error::InvalidEscape(_) => {
                (format!("{subject} has a \\ that means nothing"), "write \\\\ for one backslash".to_owned())
            }
            Error::InvalidValueForType { expected, .. } => (must(expected), "correct it".to_owned()),
            Error::ExceededRecursionLimit => (format!("{subject} is nested too deep"), "remove brackets".to_owned()),
            other => (format!("{subject}: {}", lower(&other.to_string())), "correct it".to_owned()),
        }
    }

    /// The way to the innermost thing that can be taken out: a field, an item of a list, a pair of a map.
    fn values(&self, at: usize) -> Vec<Step<'o>> {
        let mut way = self.way(at);
        while way.last().is_some_and(|step| step.entry.key.is_none() && step.parent.shape == Shape::Group) {
            way.pop();
        }
        way
    }

    /// Whether the value was only tried under a guessed name, so that its mistakes may be ours.
    fn is_quiet(&self, way: &[Step<'o>]) -> bool {
        way.last().is_some_and(|step| {
            let value = &step.entry.value;
            let word = value.start..value.word_end;
            self.is_guessed(step.entry) || self.edits.iter().any(|edit| edit.at == word && !word.is_empty())
        })
    }

    /// Takes the last entry of a way out. `spoils`: what it said is not known now.
    fn remove(&mut self, way: &[Step<'o>], spoils: bool) -> bool {
        let Some(step) = way.last() else {
            return false;
        };
        if self.is_removed(step.entry) {
            return false;
        }
        let field = way.iter().rev().find_map(|step| match step.parent.shape {
            Shape::Group => self.key(step.entry).map(|key| (step.parent.start, key.to_owned())),
            _ => None,
        });
        self.spoilt.extend(field.filter(|_| spoils));
        self.edit(step.entry.start..step.entry.until, String::new(), Mending::Removed);
        true
    }

    // -- errors of syntax

    /// The string that most likely lacks its closing quote, if the text goes wrong right behind it.
    fn runaway(&self, at: usize) -> Option<&Range<usize>> {
        let before = self.outline.strings.partition_point(|string| string.end <= at);
        let string = self.outline.strings.get(before.checked_sub(1)?)?;
        let near = !self.text[string.end..at].contains('\n');
        (near && (string.end == at || self.text[string.clone()].contains('\n'))).then_some(string)
    }

    /// Tells the one error of syntax that stops the reading.
    fn give_up(&mut self, at: usize, error: &Error) -> bool {
        let (at, what, remedy) = if let Some(string) = self.runaway(at).filter(|_| is_syntax(error)) {
            let remedy = "write \" where it ends, and \\\" for a quote inside it".to_owned();
            match place(self.text, string.end).0 {
                line if line == place(self.text, string.start).0 => {
                    (string.start, "this text ends in the wrong place".to_owned(), remedy)
                }
                line => (string.start, format!("this text ends only on line {line}"), remedy),
            }
        } else if let Some(fault) = &self.outline.fault {
            (fault.at, fault.what.clone(), fault.remedy.clone())
        } else {
            let (at, what, remedy) = self.unreadable(at, error);
            (at, what, remedy.to_owned())
        };
        self.found.retain(|found| found.at < at);
        self.tell(at, what, remedy);
        false
    }

    fn unreadable(&self, at: usize, error: &Error) -> (usize, String, &'static str) {
        let Some(root) = &self.outline.root else {
            return (0, "the file is empty".to_owned(), self.subject.empty);
        };
        let behind = self.outline.behind;
        if root.shape != Shape::Group || behind.is_some_and(|behind| self.text[behind..].starts_with(':')) {
            let what = format!("{} must stand in parentheses", self.subject.noun);
            return (root.start, what, "write ( as the first and ) as the last character of the file");
        }
        match error {
            Error::TrailingCharacters => {
                let what = format!("{} has ended before this", self.subject.noun);
                (at, what, "remove it, or the ) too many before it")
            }
            Error::ExpectedDifferentStructName { expected, found } if self.way(at).is_empty() => {
                let what = format!("{} is named {found} instead of {expected}", self.subject.noun);
                (root.start, what, "begin the file with ( alone")
            }
            Error::ExpectedIdentifier => (
                at,
                "the name of a field is missing here".to_owned(),
                "write name: value, and one comma between two fields",
            ),
            other => (at, lower(&other.to_string()), "correct it; what follows was not read"),
        }
    }

    // -- mistakes in values that are each well formed

    fn is_spoilt(&self, group: usize, field: &str) -> bool {
        self.spoilt.iter().any(|(start, name)| *start == group && name == field)
    }

    /// Adds mistakes in values, unless they follow from a problem already told.
    pub(super) fn judge(&mut self, mistakes: Vec<Mistake>) {
        let Some(root) = &self.outline.root else {
            return;
        };
        let names_known = !self.is_spoilt(root.start, "platforms")
            && !self.spoilt.iter().any(|(group, field)| field == "name" && *group != root.start);
        for mistake in mistakes {
            let names_platform =
                mistake.at.ends_with(".to") || mistake.at.contains(".needs[") || mistake.at.contains(".fallback[");
            let near = mistake.remedy.starts_with("did you mean") && !mistake.remedy.contains("\"\"");
            if names_platform && !names_known && !near {
                continue;
            }
            if let Some(at) = self.locate(root, &mistake.at) {
                self.tell(at, mistake.what, mistake.remedy);
            }
            if self.found.len() > PROBLEMS_MAX {
                return;
            }
        }
    }

    /// Where a path such as `routes[2].to` leads, or its nearest ancestor; None if its value is not what was written.
    fn locate(&self, root: &Node, path: &str) -> Option<usize> {
        let mut node = root;
        let mut steps = path.split(['.', '[']).peekable();
        while let Some(step) = steps.next() {
            let mut kept = node.items.iter().filter(|entry| !self.is_removed(entry));
            let next = match step.strip_suffix(']') {
                Some(index) => index.parse().ok().and_then(|index: usize| kept.nth(index)),
                None => {
                    let judges = |(cause, effects): &(&str, &[&str])| {
                        self.is_spoilt(node.start, cause) && effects.contains(&step)
                    };
                    if steps.peek().is_none()
                        && (self.is_spoilt(node.start, step) || self.subject.influences.iter().any(judges))
                    {
                        return None;
                    }
                    kept.find(|entry| self.key(entry) == Some(step))
                }
            };
            match next {
                Some(entry) => node = &entry.value,
                None => break,
            }
        }
        Some(node.start)
    }
}

/// Errors after which nothing can be said about what follows.
fn is_syntax(error: &Error) -> bool {
    matches!(
        error,
        Error::Eof
            | Error::ExpectedComma
            | Error::ExpectedMapColon
            | Error::ExpectedArrayEnd
            | Error::ExpectedMapEnd
            | Error::ExpectedStructLikeEnd
            | Error::ExpectedOptionEnd
            | Error::ExpectedStringEnd
            | Error::ExpectedAttribute
            | Error::ExpectedAttributeEnd
            | Error::NoSuchExtension(_)
            | Error::UnclosedBlockComment
            | Error::UnclosedLineComment
            | Error::UnexpectedChar(_)
            | Error::TrailingCharacters
    )
}

fn lower(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_lowercase().chain(characters).collect())
}
