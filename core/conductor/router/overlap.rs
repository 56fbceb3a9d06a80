//! Rules that never get anything, because one that comes before them takes it all.

use super::in_order;
use super::matchers::Matchers;
use crate::config::Config;

/// Most pairs of rules that are compared: about a fifth of a second. Of 10,000 rules all are.
const PAIRS_MAX: usize = 50_000_000;

/// A rule that never gets a request, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Its index in the configuration.
    pub route: usize,
    /// Index of one that comes before it and takes every request that it would.
    pub by: usize,
    /// Both look at the same.
    pub is_same: bool,
}

/// Every rule that can never match, in the order of the configuration. That several rules together take all that another
/// would is not noticed. Rules with mistakes are passed over.
pub fn overlaps(config: &Config) -> Vec<Overlap> {
    let ready = |(number, route)| Some((number, Matchers::new(route).ok()?));
    let rules: Vec<(u32, Matchers)> = in_order(&config.routes).filter_map(ready).collect();
    let mut found = Vec::new();
    let mut pairs = 0;
    for (rank, (number, rule)) in rules.iter().enumerate() {
        pairs += rank;
        if pairs > PAIRS_MAX {
            log::debug!("only the first {rank} rules were looked through for some that can never match");
            break;
        }
        if let Some((by, first)) = rules[..rank].iter().find(|(_, earlier)| earlier.covers(rule)) {
            found.push(Overlap { route: *number as usize, by: *by as usize, is_same: rule.covers(first) });
        }
    }
    found.sort_by_key(|overlap| overlap.route);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Content, HeaderValue, Route};

    fn found(routes: Vec<Route>) -> Vec<(usize, usize, bool)> {
        let overlaps = overlaps(&Config { routes, ..Config::default() });
        overlaps.into_iter().map(|overlap| (overlap.route, overlap.by, overlap.is_same)).collect()
    }

    fn path(path: &str) -> Route {
        Route { path: Some(path.to_owned()), ..Route::to("echo") }
    }

    fn content(content: Content) -> Route {
        Route { content: Some(content), ..Route::to("echo") }
    }

    #[test]
    fn what_an_earlier_rule_takes_a_later_one_never_gets() {
        assert_eq!(
            found(vec![path("/a/*"), path("/a/b"), path("/{x}/b"), path("/a/{y}/c")]),
            [(1, 0, false), (3, 0, false)]
        );
        let short = content(Content::Prefix("!p".to_owned()));
        let long = content(Content::Prefix("!play".to_owned()));
        assert_eq!(found(vec![short.clone(), long.clone()]), [(1, 0, false)]);
        assert_eq!(found(vec![long, short]), []);
        let any = Route { headers: [("X-A".to_owned(), HeaderValue::Present)].into(), ..Route::to("echo") };
        let one =
            Route { headers: [("x-a".to_owned(), HeaderValue::Exact("1".to_owned()))].into(), ..Route::to("echo") };
        assert_eq!(found(vec![any.clone(), one.clone()]), [(1, 0, false)]);
        assert_eq!(found(vec![one, any]), []);
    }

    #[test]
    fn rules_that_look_at_the_same_are_told_as_such() {
        let first = Route { from: Some("discord".to_owned()), ..Route::to("echo") };
        assert_eq!(found(vec![first.clone(), Route { to: "other".to_owned(), ..first }]), [(1, 0, true)]);
    }

    #[test]
    fn priority_decides_who_is_in_whose_way() {
        let wide = Route { priority: 1, ..path("/a/*") };
        assert_eq!(found(vec![path("/a/b"), wide]), [(0, 1, false)]);
    }

    #[test]
    fn a_rule_for_messages_is_in_no_path_s_way() {
        assert_eq!(found(vec![Route::to("echo"), path("/a")]), []);
        let host = Route { host: Some("a.example".to_owned()), ..Route::to("echo") };
        assert_eq!(found(vec![host.clone(), Route { host: host.host.clone(), ..path("/a") }]), [(1, 0, false)]);
    }

    #[test]
    fn spellings_that_only_the_later_one_takes_keep_it_alive() {
        let exact = content(Content::Contains("song".to_owned()));
        let folded = Route { ignore_case: true, ..exact.clone() };
        assert_eq!(found(vec![exact.clone(), folded.clone()]), []);
        assert_eq!(found(vec![folded, exact]), [(1, 0, false)]);
    }
}
