//! What is wrong with values that are each well formed, and the nearest name to one that nobody knows.

/// A mistake in values that are each well formed: where it is and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The way to the offending value, such as `routes[2].to`.
    pub at: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}; {}", self.at, self.what, self.remedy)
    }
}

/// All mistakes that were found so far.
pub(super) struct Mistakes(pub(super) Vec<Mistake>);

impl Mistakes {
    pub(super) fn add(&mut self, at: String, what: String, remedy: &str) {
        self.0.push(Mistake { at, what, remedy: remedy.to_owned() });
    }

    pub(super) fn add_unknown(&mut self, at: String, noun: &str, name: &str, known: &[&str]) {
        let remedy = match nearest(name, known) {
            Some(near) => format!("did you mean {near:?}?"),
            None if known.is_empty() => format!("there is no {noun} yet; add one"),
            None => format!("known are: {}", known.join(", ")),
        };
        self.add(at, format!("no {noun} is named {name:?}"), &remedy);
    }
}

/// The known name that a mistyped one most likely meant: smallest edit distance, at most a third of its length.
pub fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|candidate| (edit_distance(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(name.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, two rows.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, from) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, to) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}
