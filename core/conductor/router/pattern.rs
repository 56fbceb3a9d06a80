//! Patterns of paths.
//!
//! | pattern | takes |
//! |---|---|
//! | `/a/b` | exactly this |
//! | `/a/{name}/c` | any one segment, which is not empty, in the place of `{name}` |
//! | `/a/*` | `/a` itself and everything below |
//! | `/a/{*rest}` | everything below `/a/`, at least one character |

/// Most segments of a pattern: it bounds how deep a look-up goes.
pub(crate) const SEGMENTS_MAX: usize = 32;

/// One segment of a pattern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Segment {
    Literal(Box<str>),
    Any,
}

/// What may stand behind the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tail {
    /// Nothing.
    End,
    /// Nothing, or a slash and anything.
    Below,
    /// A slash and at least one character.
    Rest,
}

/// A pattern that has been read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pattern {
    pub(super) segments: Vec<Segment>,
    pub(super) tail: Tail,
}

impl Pattern {
    /// Reads a pattern. `Err`: what is wrong with it, and the remedy.
    pub(super) fn read(text: &str) -> Result<Pattern, (String, &'static str)> {
        const REMEDY: &str = "write it as \"/exact\", \"/users/{id}\", \"/everything/below/*\" or \"/files/{*rest}\"";
        let wrong = |what: &str| Err((format!("{text:?} is not a path pattern: {what}"), REMEDY));
        let Some(inner) = text.strip_prefix('/') else { return wrong("it does not begin with /") };
        let mut pattern = Pattern { segments: Vec::new(), tail: Tail::End };
        for segment in inner.split('/') {
            if pattern.tail != Tail::End {
                return wrong("nothing may follow * or {*rest}");
            }
            let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            match name {
                None if segment == "*" => pattern.tail = Tail::Below,
                None if segment.contains(['*', '{', '}']) => {
                    return wrong("*, { and } stand for whole segments only");
                }
                None => pattern.segments.push(Segment::Literal(segment.into())),
                Some(name) => {
                    let plain = name.strip_prefix('*').unwrap_or(name);
                    if plain.is_empty() || plain.contains(['*', '{', '}']) {
                        return wrong("what stands in braces is a name, or * and a name");
                    }
                    match plain == name {
                        true => pattern.segments.push(Segment::Any),
                        false => pattern.tail = Tail::Rest,
                    }
                }
            }
        }
        if pattern.segments.len() > SEGMENTS_MAX {
            return wrong("it has more than 32 segments");
        }
        Ok(pattern)
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        let mut rest = path.strip_prefix('/');
        if path.is_empty() || rest.is_none() {
            return false;
        }
        for segment in &self.segments {
            let Some(text) = rest else { return false };
            let (found, after) = split(text);
            let fits = match segment {
                Segment::Literal(literal) => **literal == *found,
                Segment::Any => !found.is_empty(),
            };
            if !fits {
                return false;
            }
            rest = after;
        }
        match self.tail {
            Tail::End => rest.is_none(),
            Tail::Below => true,
            Tail::Rest => rest.is_some_and(|rest| !rest.is_empty()),
        }
    }

    /// Whether it takes every path that the other takes.
    pub(super) fn covers(&self, other: &Pattern) -> bool {
        let mut segments = other.segments.iter();
        for own in &self.segments {
            match (own, segments.next()) {
                (Segment::Literal(own), Some(Segment::Literal(literal))) if own == literal => {}
                (Segment::Any, Some(Segment::Any)) => {}
                (Segment::Any, Some(Segment::Literal(literal))) if !literal.is_empty() => {}
                _ => return false,
            }
        }
        match (self.tail, segments.as_slice(), other.tail) {
            (Tail::Below, _, _) | (Tail::End, [], Tail::End) | (Tail::Rest, [], Tail::Rest) => true,
            (Tail::Rest, [Segment::Literal(only)], Tail::End | Tail::Below) => !only.is_empty(),
            (Tail::Rest, [_, ..], _) => true,
            (Tail::End | Tail::Rest, _, _) => false,
        }
    }
}

/// The first segment, and what stands behind its slash if there is one.
pub(super) fn split(text: &str) -> (&str, Option<&str>) {
    text.split_once('/').map_or((text, None), |(segment, after)| (segment, Some(after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Pattern {
        Pattern::read(text).expect("it is a pattern")
    }

    #[test]
    fn each_form_takes_what_it_says_and_nothing_else() {
        for (pattern, takes, leaves) in [
            ("/", &["/"][..], &["", "/a", "//"][..]),
            ("/a/b", &["/a/b"], &["/a", "/a/b/", "/a/b/c", "a/b", "/a/bc"]),
            ("/a/", &["/a/"], &["/a", "/a//"]),
            ("/a/*", &["/a", "/a/", "/a/b/c"], &["/ab", "/", ""]),
            ("/*", &["/", "/a", "/a/b"], &["", "*"]),
            ("/u/{id}/x", &["/u/7/x"], &["/u//x", "/u/7", "/u/7/8/x"]),
            ("/f/{*rest}", &["/f/a", "/f/a/b", "/f//"], &["/f", "/f/"]),
            ("/{a}/{*rest}", &["/x/y"], &["/x", "/x/", "//y"]),
        ] {
            let pattern = read(pattern);
            takes.iter().for_each(|path| assert!(pattern.matches(path), "{pattern:?} leaves {path:?}"));
            leaves.iter().for_each(|path| assert!(!pattern.matches(path), "{pattern:?} takes {path:?}"));
        }
    }

    #[test]
    fn what_is_no_pattern_is_told() {
        for wrong in ["", "a", "/a*", "/a/*/b", "/{}", "/{a", "/{*}", "/{*rest}/b", "/{a}b", "/{a*}"] {
            assert!(Pattern::read(wrong).is_err(), "{wrong:?}");
        }
        assert!(Pattern::read(&"/a".repeat(SEGMENTS_MAX)).is_ok());
        assert!(Pattern::read(&"/a".repeat(SEGMENTS_MAX + 1)).is_err());
    }

    #[test]
    fn a_pattern_covers_another_only_if_it_takes_all_that_the_other_takes() {
        let patterns =
            ["/", "/a", "/a/", "/a/*", "/*", "/{x}", "/a/{x}", "/a/{*r}", "/{*r}", "/{x}/*", "/a/b/*", "/a/{x}/c"];
        let paths = [
            "/", "/a", "/b", "/a/", "/a//", "/a/b", "/a/x", "/a/b/", "/a/b/c", "/a/x/c", "/b/", "//", "//a", "/b/b/c/d",
        ];
        for one in patterns.map(read) {
            for other in patterns.map(read) {
                let counterexample = paths.iter().find(|path| other.matches(path) && !one.matches(path));
                assert_eq!(one.covers(&other), counterexample.is_none(), "{one:?} {other:?} {counterexample:?}");
            }
        }
    }
}
