//! Where the routes of a file stand, and which of them never get a request.

use demi_conductor::config::Config;
use demi_conductor::router::{overlaps, Overlap};

use super::outline::Outline;
use super::{Problem, PROBLEMS_MAX};

/// Line and column of each route, from 1, in the order of the file.
pub(super) fn places(text: &str) -> Vec<(usize, usize)> {
    let outline = Outline::of(text);
    let is_routes = |key: &std::ops::Range<usize>| &text[key.clone()] == "routes";
    let fields = outline.root.iter().flat_map(|root| &root.items);
    let routes = fields.filter(|entry| entry.key.as_ref().is_some_and(is_routes)).flat_map(|entry| &entry.value.items);
    // Counted on from the one before: a file may have ten thousand.
    let (mut line, mut line_start, mut at) = (1, 0, 0);
    let place = |route: &super::outline::Entry| {
        for (newline, _) in text[at..route.value.start].match_indices('\n') {
            line += 1;
            line_start = at + newline + 1;
        }
        at = route.value.start;
        (line, 1 + text[line_start..at].chars().count())
    };
    routes.map(place).collect()
}

/// What to tell of routes that never get a request, at most [`PROBLEMS_MAX`] and how many more there are.
pub(super) fn warnings(config: &Config, text: &str) -> Vec<Problem> {
    let found = overlaps(config);
    if found.is_empty() {
        return Vec::new();
    }
    let places = places(text);
    let mut warnings: Vec<Problem> =
        found.iter().take(PROBLEMS_MAX).filter_map(|overlap| warning(config, &places, *overlap)).collect();
    if let Some(last) = warnings.last_mut().filter(|_| found.len() > PROBLEMS_MAX) {
        last.remedy.push_str(&format!("; {} more can never match either", found.len() - PROBLEMS_MAX));
    }
    warnings
}

fn warning(config: &Config, places: &[(usize, usize)], Overlap { route, by, is_same }: Overlap) -> Option<Problem> {
    let ((line, column), (line_of_other, _)) = (*places.get(route)?, *places.get(by)?);
    let (to, other_to) = (&config.routes[route].to, &config.routes[by].to);
    let (number, other) = (route + 1, format!("rule {} on line {line_of_other}", by + 1));
    let (what, remedy) = match is_same {
        true if to != other_to => (
            format!("rule {number} to {to:?} looks at the same as {other} to {other_to:?}, which gets everything"),
            "remove one of them, or tell them apart",
        ),
        true => (format!("rule {number} looks at the same as {other}, which gets everything"), "remove one of them"),
        false => (
            format!("rule {number} can never match: {other} comes before it and takes all that it would"),
            "move it up, give it a higher priority, or remove it",
        ),
    };
    Some(Problem { line, column, what, remedy: remedy.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use std::path::Path;

    fn told(text: &str) -> Vec<String> {
        let config = parse(text, Path::new("demi.ron"), &["a", "b"]).expect("it has no mistakes");
        let told =
            |problem: &Problem| format!("{}:{}: {}; {}", problem.line, problem.column, problem.what, problem.remedy);
        warnings(&config, text).iter().map(told).collect()
    }

    #[test]
    fn rules_that_get_nothing_are_told_with_both_lines() {
        let text = r#"(
    platforms: [(name: "a", host: Inline), (name: "b", host: Inline)],
    routes: [
        (path: "/x/*", to: "a"), (path: "/x/{y}", to: "a"),
        // ü
        (from: "ü", to: "a"), (path: "/x/*", to: "b"),
        (to: "b"), (kind: "k", priority: 1, to: "b"), (to: "b"),
    ],
)"#;
        assert_eq!(
            told(text),
            [
                "4:34: rule 2 can never match: rule 1 on line 4 comes before it and takes all that it would; \
                 move it up, give it a higher priority, or remove it",
                "6:31: rule 4 to \"b\" looks at the same as rule 1 on line 4 to \"a\", which gets everything; \
                 remove one of them, or tell them apart",
                "7:55: rule 7 looks at the same as rule 5 on line 7, which gets everything; remove one of them",
            ]
        );
    }

    #[test]
    fn a_great_many_are_counted_and_not_all_told() {
        let rules = "(to: \"a\"), ".repeat(100);
        let text = format!("(platforms: [(name: \"a\", host: Inline)], routes: [{rules}])");
        let told = told(&text);
        assert_eq!(told.len(), PROBLEMS_MAX);
        assert!(told[PROBLEMS_MAX - 1].ends_with("67 more can never match either"), "{told:?}");
    }
}
