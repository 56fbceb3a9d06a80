//! A map from texts to numbers that is made once and then only asked: one hash and, most of the time, one comparison,
//! however many texts there are. The texts come from the configuration, so nobody can choose them to collide.

/// What a text stands for, and within what: the same text may stand in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag {
    pub(super) sort: Sort,
    /// A number from an earlier look-up, or 0.
    pub(super) within: u32,
}

/// What a text can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sort {
    /// A segment of a path, within a node.
    Segment,
    /// Where a request came from: its list of rules.
    From,
    /// Where a request came from: a number for it, within which kinds stand.
    Origin,
    /// A kind, within an origin.
    KindOf,
    Kind,
    Host,
    Method,
    /// The name of a header: its list of rules.
    Header,
    /// The name of a header: a number for it, within which values stand.
    HeaderName,
    /// A value, within the name of its header.
    HeaderValue,
    Word,
    /// A word in lower case.
    FoldedWord,
}

impl Sort {
    pub(super) const fn alone(self) -> Tag {
        Tag { sort: self, within: 0 }
    }

    pub(super) const fn within(self, number: u32) -> Tag {
        Tag { sort: self, within: number }
    }
}

#[derive(Debug)]
struct Entry {
    tag: Tag,
    text: Box<[u8]>,
    number: u32,
}

/// The map.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Entry>,
    /// Indices of entries plus one, 0 where there is none; a power of two, at least twice as many as entries.
    places: Vec<u32>,
}

impl Table {
    /// The number of a text, which is set to `otherwise` if there is none yet.
    pub(super) fn number(&mut self, tag: Tag, text: &[u8], otherwise: u32) -> u32 {
        if let Some(number) = self.get(tag, text) {
            return number;
        }
        self.entries.push(Entry { tag, text: text.into(), number: otherwise });
        if self.places.len() < 2 * self.entries.len() {
            self.places = vec![0; (4 * self.entries.len()).next_power_of_two()];
            for index in 0..self.entries.len() {
                self.place(index);
            }
        } else {
            self.place(self.entries.len() - 1);
        }
        otherwise
    }

    fn place(&mut self, index: usize) {
        let mask = self.places.len() - 1;
        let entry = &self.entries[index];
        let mut at = hash(entry.tag, &entry.text) & mask;
        while self.places[at] != 0 {
            at = (at + 1) & mask;
        }
        self.places[at] = index as u32 + 1;
    }

    /// The number of a text.
    pub(super) fn get(&self, tag: Tag, text: &[u8]) -> Option<u32> {
        let mask = self.places.len().checked_sub(1)?;
        let mut at = hash(tag, text) & mask;
        loop {
            let entry = &self.entries[self.places[at].checked_sub(1)? as usize];
            if entry.tag == tag && *entry.text == *text {
                return Some(entry.number);
            }
            at = (at + 1) & mask;
        }
    }
}

/// After the hash of rustc (FxHash), with the high bits, which are the good ones, folded into the low.
fn hash(tag: Tag, text: &[u8]) -> usize {
    const FACTOR: u64 = 0x517c_c1b7_2722_0a95;
    let step = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    let mut hash = step(tag.sort as u64, u64::from(tag.within) << 32 | text.len() as u64);
    let mut chunks = text.chunks_exact(8);
    for chunk in &mut chunks {
        hash = step(hash, u64::from_le_bytes(chunk.try_into().expect("the chunks are of eight bytes")));
    }
    let rest = chunks.remainder().iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    hash = step(hash, rest);
    (hash ^ hash >> 29 ^ hash >> 47) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_has_the_number_it_was_given_first_within_what_it_stands_in() {
        let mut table = Table::default();
        assert_eq!(table.get(Sort::Kind.alone(), b"x"), None);
        for number in 0..5000_u32 {
            let text = format!("text {number}");
            assert_eq!(table.number(Sort::Kind.alone(), text.as_bytes(), number), number);
            assert_eq!(table.number(Sort::Segment.within(number), b"same", number), number);
        }
        for number in 0..5000_u32 {
            let text = format!("text {number}");
            assert_eq!(table.number(Sort::Kind.alone(), text.as_bytes(), 9999), number);
            assert_eq!(table.get(Sort::Host.alone(), text.as_bytes()), None);
            assert_eq!(table.get(Sort::Segment.within(number), b"same"), Some(number));
        }
    }
}
