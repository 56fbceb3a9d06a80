//! Which rules need to be looked at for a question, so that the cost of a decision hardly depends on how many there are.
//!
//! Each rule is filed under that one of its matchers which is the rarest among all rules: a path, a beginning of the
//! text, who asks, a header, a word or a needle of the text, and so on. A question has at most one path, one sender and
//! one host, so it meets few lists, each in the order in which the rules stand. What cannot be filed is looked at always.
//!
//! | filed under | looked up by |
//! |---|---|
//! | path | a tree of segments: one look-up in a hash table for each segment |
//! | from, kind, both, host, method, header | one look-up in the table |
//! | beginning of the text | a tree of bytes, from the first byte on |
//! | word of the text | one look-up for each word of the text |
//! | needle in the text | one pass over the text, for all needles at once (Aho and Corasick, 1975) |
//!
//! The last two look at the whole text, so they are taken only where nothing else is nearly as rare, and they are asked
//! last, and not at all if a rule that comes before all of theirs has been found by then.

use std::collections::BTreeMap;

use super::content::{looked_at, words, Clue};
use super::headers::{lines, without_port};
use super::matchers::{Matchers, Value};
use super::pattern::{split, Pattern, Segment, Tail};
use super::table::{Sort, Table};
use super::tree::Tree;
use super::Question;

/// Longest name of a header that is filed, bytes.
pub(super) const HEADER_NAME_BYTES_MAX: usize = 64;
/// Longest word and host that are looked up in lower case, bytes: they are copied for that.
const FOLDED_BYTES_MAX: usize = 256;
/// Most lists under words and needles: a question keeps a bit for each. Whoever has as many as the second has few.
const SCANNED_MAX: usize = 65_536;
const SCANNED_FEW: usize = 1_024;

/// What a rule can be filed under. A rule with several words or needles is filed under each of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Path(Pattern),
    FromKind(Box<str>, Box<str>),
    From(Box<str>),
    Kind(Box<str>),
    Host(Box<str>),
    Method(Box<str>),
    Header(Box<str>),
    HeaderValue(Box<str>, Box<[u8]>),
    Beginning(bool, Vec<u8>),
    Word(bool, Vec<u8>),
    Needle(bool, Vec<u8>),
}

impl Key {
    /// What looking for such a key costs a question that has it not, in rules looked at instead.
    const fn toll(&self) -> u32 {
        match self.group() {
            Group::Path | Group::From | Group::Kind | Group::Origin | Group::Host | Group::Method => 0,
            Group::Beginning => 1,
            Group::Header => 4,
            Group::Word => 16,
            Group::Needle => 24,
        }
    }

    const fn group(&self) -> Group {
        match self {
            Key::Path(_) => Group::Path,
            Key::FromKind(..) => Group::Origin,
            Key::From(_) => Group::From,
            Key::Kind(_) => Group::Kind,
            Key::Host(_) => Group::Host,
            Key::Method(_) => Group::Method,
            Key::Header(_) | Key::HeaderValue(..) => Group::Header,
            Key::Beginning(..) => Group::Beginning,
            Key::Word(..) => Group::Word,
            Key::Needle(..) => Group::Needle,
        }
    }

    const fn is_scanned(&self) -> bool {
        matches!(self.group(), Group::Word | Group::Needle)
    }
}

/// Keys that are looked up together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Path,
    From,
    Kind,
    Origin,
    Host,
    Method,
    Header,
    Beginning,
    Word,
    Needle,
}

const GROUPS: usize = 10;

/// The first rank among the rules of a group.
#[derive(Clone, Copy, Debug)]
struct First {
    any: u32,
    /// Among those that take plain HTTP requests.
    http: u32,
}

/// The rules that are filed under one key: their ranks, in order.
type List = Vec<u32>;
const NONE: u32 = u32::MAX;

/// A place in the tree of paths, after some segments.
#[derive(Debug)]
struct Node {
    has_literals: bool,
    any: u32,
    /// Lists, or [`NONE`].
    end: u32,
    below: u32,
    rest: u32,
}

impl Default for Node {
    fn default() -> Self {
        Node { has_literals: false, any: NONE, end: NONE, below: NONE, rest: NONE }
    }
}

/// All rules, filed.
#[derive(Debug)]
pub(super) struct Index {
    lists: Vec<List>,
    /// Lists under words and needles come first: so many.
    scanned: usize,
    table: Table,
    nodes: Vec<Node>,
    /// Which lengths the names of filed headers have: a bit for each.
    header_lengths: u128,
    /// Case matters in the first and not in the second.
    beginnings: [Option<Tree>; 2],
    needles: [Option<Tree>; 2],
    /// Those that cannot be filed.
    rest: List,
    /// By group.
    firsts: [First; GROUPS],
    /// Whether there are words for which case matters, and words for which it does not.
    has_words: [bool; 2],
}

impl Index {
    /// Files rules that stand in the order of their ranks.
    pub(super) fn new(rules: &[Matchers]) -> Index {
        let choices: Vec<Vec<Vec<Key>>> = rules.iter().map(keys).collect();
        let mut counts: BTreeMap<&Key, u32> = BTreeMap::new();
        for key in choices.iter().flatten().flatten() {
            *counts.entry(key).or_default() += 1;
        }
        let cost = |keys: &&Vec<Key>, weight: u32| {
            keys.iter().map(|key| counts[key] * weight + key.toll()).max().unwrap_or(NONE)
        };
        let mut filed: BTreeMap<(bool, &Key), List> = BTreeMap::new();
        let mut index = Index {
            lists: Vec::new(),
            scanned: 0,
            table: Table::default(),
            nodes: vec![Node::default()],
            header_lengths: 0,
            beginnings: [None, None],
            needles: [None, None],
            rest: List::new(),
            firsts: [First { any: NONE, http: NONE }; GROUPS],
            has_words: [false; 2],
        };
        let mut scanned = 0;
        for (rank, (choices, rule)) in choices.iter().zip(rules).enumerate() {
            // Whoever is found by something else has yet to look at the text.
            let weight = |keys: &&Vec<Key>| {
                let looks_at_text = rule.content.is_some() && keys.iter().all(|key| key.toll() < 16);
                1 + 3 * u32::from(looks_at_text)
            };
            let has_room = |keys: &&Vec<Key>| !keys.iter().any(Key::is_scanned) || scanned + keys.len() <= SCANNED_MAX;
            let rarest = choices.iter().filter(has_room).min_by_key(|keys| cost(keys, weight(keys)));
            let Some(keys) = rarest else {
                index.rest.push(rank as u32);
                continue;
            };
            for key in keys {
                let list = filed.entry((!key.is_scanned(), key)).or_default();
                scanned += usize::from(list.is_empty() && key.is_scanned());
                list.push(rank as u32);
                let first = &mut index.firsts[key.group() as usize];
                first.any = first.any.min(rank as u32);
                if rule.takes_http {
                    first.http = first.http.min(rank as u32);
                }
            }
        }
        index.scanned = scanned;
        let mut beginnings = [BTreeMap::new(), BTreeMap::new()];
        let mut needles = [BTreeMap::new(), BTreeMap::new()];
        for ((_, key), ranks) in filed {
            let list = index.lists.len() as u32;
            index.lists.push(ranks);
            match key {
                Key::Beginning(folds, text) => drop(beginnings[usize::from(*folds)].insert(text.clone(), list)),
                Key::Needle(folds, text) => drop(needles[usize::from(*folds)].insert(text.clone(), list)),
                key => index.file(key, list),
            }
        }
        let trees = |texts: [BTreeMap<Vec<u8>, u32>; 2]| {
            let [exact, folded] = texts;
            [(exact, false), (folded, true)].map(|(texts, folds)| (!texts.is_empty()).then(|| Tree::new(&texts, folds)))
        };
        (index.beginnings, index.needles) = (trees(beginnings), trees(needles));
        index
    }

    fn file(&mut self, key: &Key, list: u32) {
        let table = &mut self.table;
        match key {
            Key::Path(pattern) => self.file_path(pattern, list),
            Key::FromKind(from, kind) => {
                let origin = table.number(Sort::Origin.alone(), from.as_bytes(), list);
                table.number(Sort::KindOf.within(origin), kind.as_bytes(), list);
            }
            Key::From(from) => {
                table.number(Sort::From.alone(), from.as_bytes(), list);
            }
            Key::Kind(kind) => {
                table.number(Sort::Kind.alone(), kind.as_bytes(), list);
            }
            Key::Host(host) => {
                table.number(Sort::Host.alone(), host.as_bytes(), list);
            }
            Key::Method(method) => {
                table.number(Sort::Method.alone(), method.as_bytes(), list);
            }
            Key::Header(name) => {
                table.number(Sort::Header.alone(), name.as_bytes(), list);
                self.header_lengths |= 1 << name.len();
            }
            Key::HeaderValue(name, value) => {
                let number = table.number(Sort::HeaderName.alone(), name.as_bytes(), list);
                table.number(Sort::HeaderValue.within(number), value, list);
                self.header_lengths |= 1 << name.len();
            }
            Key::Word(folds, word) => {
                let sort = if *folds { Sort::FoldedWord } else { Sort::Word };
                table.number(sort.alone(), word, list);
                self.has_words[usize::from(*folds)] = true;
            }
            Key::Beginning(..) | Key::Needle(..) => unreachable!("they are filed all at once"),
        }
    }

    fn file_path(&mut self, pattern: &Pattern, list: u32) {
        let mut at = 0;
        for segment in &pattern.segments {
            let fresh = self.nodes.len() as u32;
            let next = match segment {
                Segment::Literal(text) => {
                    self.nodes[at].has_literals = true;
                    self.table.number(Sort::Segment.within(at as u32), text.as_bytes(), fresh)
                }
                Segment::Any => {
                    let any = &mut self.nodes[at].any;
                    *any = (*any).min(fresh);
                    *any
                }
            };
            if next == fresh {
                self.nodes.push(Node::default());
            }
            at = next as usize;
        }
        let node = &mut self.nodes[at];
        *match pattern.tail {
            Tail::End => &mut node.end,
            Tail::Below => &mut node.below,
            Tail::Rest => &mut node.rest,
        } = list;
    }

    /// The rank of the first rule that matches.
    pub(super) fn find(&self, rules: &[Matchers], question: &Question<'_>) -> Option<u32> {
        let mut search = Search { index: self, rules, question, best: NONE };
        search.run();
        (search.best != NONE).then_some(search.best)
    }
}

/// The keys of a rule; each entry alone would do.
fn keys(rule: &Matchers) -> Vec<Vec<Key>> {
    let mut keys = Vec::new();
    keys.extend(rule.path.clone().map(|pattern| vec![Key::Path(pattern)]));
    if let (Some(from), Some(kind)) = (&rule.from, &rule.kind) {
        keys.push(vec![Key::FromKind(from.clone(), kind.clone())]);
    }
    keys.extend(rule.from.clone().map(|from| vec![Key::From(from)]));
    keys.extend(rule.kind.clone().map(|kind| vec![Key::Kind(kind)]));
    keys.extend(rule.host.clone().map(|host| vec![Key::Host(host)]));
    for (name, value) in &rule.headers {
        keys.push(vec![match value {
            Value::Exact(value) => Key::HeaderValue(name.clone(), value.clone()),
            Value::Present | Value::Prefix(_) => Key::Header(name.clone()),
        }]);
    }
    if let Some((clue, folds)) = rule.content.as_ref().and_then(|test| test.clue()) {
        keys.push(match clue {
            Clue::Beginnings(texts) => texts.into_iter().map(|text| Key::Beginning(folds, text)).collect(),
            Clue::Needles(texts) => texts.into_iter().map(|text| Key::Needle(folds, text)).collect(),
            Clue::Words(words) => words.into_iter().map(|word| Key::Word(folds, word)).collect(),
        });
    }
    keys.extend(rule.method.clone().map(|method| vec![Key::Method(method)]));
    keys
}

/// One question on its way through the index.
struct Search<'s, 'q> {
    index: &'s Index,
    rules: &'s [Matchers],
    question: &'s Question<'q>,
    /// The first rank that matches so far.
    best: u32,
}

impl Search<'_, '_> {
    fn run(&mut self) {
        let (index, question) = (self.index, self.question);
        if self.may_win(Group::Path) {
            if let Some(path) = question.path.strip_prefix('/') {
                self.walk(0, Some(path));
            }
        }
        for (group, sort, text) in [
            (Group::From, Sort::From, question.from),
            (Group::Kind, Sort::Kind, question.kind),
            (Group::Method, Sort::Method, question.method),
        ] {
            if self.may_win(group) {
                self.look_up(sort, text.as_bytes());
            }
        }
        if self.may_win(Group::Origin) {
            if let Some(origin) = index.table.get(Sort::Origin.alone(), question.from.as_bytes()) {
                let list = index.table.get(Sort::KindOf.within(origin), question.kind.as_bytes());
                list.into_iter().for_each(|list| self.take(list, false));
            }
        }
        if self.may_win(Group::Host) {
            let host = without_port(question.host);
            with_lower_case(host.as_bytes(), |host| self.look_up(Sort::Host, host));
        }
        if self.may_win(Group::Header) {
            self.read_headers();
        }
        if self.may_win(Group::Beginning) {
            for tree in index.beginnings.iter().flatten() {
                tree.beginnings(question.content, |list| self.take(list, false));
            }
        }
        if self.may_win(Group::Word) || self.may_win(Group::Needle) {
            // The bits are set to zero each time, which few need many of.
            match index.scanned {
                ..=SCANNED_FEW => self.scan(&mut [0; SCANNED_FEW / 64]),
                _ => self.scan(&mut [0; SCANNED_MAX / 64]),
            }
        }
        self.take_all(&index.rest, false);
    }

    /// Whether a rule of this group might come before what was found.
    fn may_win(&self, group: Group) -> bool {
        let first = self.index.firsts[group as usize];
        (if self.question.by_path { first.http } else { first.any }) < self.best
    }

    fn look_up(&mut self, sort: Sort, text: &[u8]) {
        let list = self.index.table.get(sort.alone(), text);
        list.into_iter().for_each(|list| self.take(list, false));
    }

    /// Looks at the rules of a list until one matches, or none can be better than what was found.
    fn take(&mut self, list: u32, content_passes: bool) {
        self.take_all(&self.index.lists[list as usize], content_passes);
    }

    fn take_all(&mut self, ranks: &[u32], content_passes: bool) {
        for rank in ranks.iter().take_while(|rank| **rank < self.best) {
            if self.rules[*rank as usize].miss(self.question, content_passes).is_none() {
                self.best = *rank;
                return;
            }
        }
    }

    /// Follows a path from a node; `rest` is what stands behind the last slash, if there was one.
    fn walk(&mut self, at: u32, rest: Option<&str>) {
        let node = &self.index.nodes[at as usize];
        self.take_listed(node.below);
        let Some(rest) = rest else { return self.take_listed(node.end) };
        if !rest.is_empty() {
            self.take_listed(node.rest);
        }
        let (segment, after) = split(rest);
        if node.has_literals {
            if let Some(next) = self.index.table.get(Sort::Segment.within(at), segment.as_bytes()) {
                self.walk(next, after);
            }
        }
        if node.any != NONE && !segment.is_empty() {
            self.walk(node.any, after);
        }
    }

    fn take_listed(&mut self, list: u32) {
        if list != NONE {
            self.take(list, false);
        }
    }

    fn read_headers(&mut self) {
        let index = self.index;
        let may_be_filed =
            |name: &[u8]| name.len() <= HEADER_NAME_BYTES_MAX && index.header_lengths >> name.len() & 1 == 1;
        for (name, value) in lines(self.question.headers).filter(|(name, _)| may_be_filed(name)) {
            with_lower_case(name, |name| {
                self.look_up(Sort::Header, name);
                if let Some(number) = index.table.get(Sort::HeaderName.alone(), name) {
                    let list = index.table.get(Sort::HeaderValue.within(number), value);
                    list.into_iter().for_each(|list| self.take(list, false));
                }
            });
        }
    }

    /// Looks through the text for words and needles. Each list is taken once, however often it is found; `seen` has a bit
    /// for each.
    fn scan(&mut self, seen: &mut [u64]) {
        let index = self.index;
        let text = looked_at(self.question.content);
        let mut is_new = |list: &u32| {
            let (word, bit) = (&mut seen[*list as usize / 64], 1 << (list % 64));
            let is_new = *word & bit == 0;
            *word |= bit;
            is_new
        };
        if self.may_win(Group::Word) {
            for word in words(text) {
                if index.has_words[0] {
                    let list = index.table.get(Sort::Word.alone(), word).filter(&mut is_new);
                    list.into_iter().for_each(|list| self.take(list, true));
                }
                if index.has_words[1] {
                    with_lower_case(word, |word| {
                        let list = index.table.get(Sort::FoldedWord.alone(), word).filter(&mut is_new);
                        list.into_iter().for_each(|list| self.take(list, true));
                    });
                }
            }
        }
        if self.may_win(Group::Needle) {
            for tree in index.needles.iter().flatten() {
                tree.needles(text, |list| {
                    if is_new(&list) {
                        self.take(list, true);
                    }
                });
            }
        }
    }
}

/// Calls `ask` with the text in lower case, unless it is longer than anything that is filed so.
fn with_lower_case(text: &[u8], ask: impl FnOnce(&[u8])) {
    let mut copy = [0; FOLDED_BYTES_MAX];
    if let Some(copy) = copy.get_mut(..text.len()) {
        copy.copy_from_slice(text);
        copy.make_ascii_lowercase();
        ask(copy);
    }
}
