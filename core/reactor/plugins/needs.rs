//! Who needs whom: plugins whose needs are not there, or that need each other in a circle, are refused.

use std::collections::{HashMap, HashSet};

use demi_conductor::config::{nearest, Mistake, Platform};

use super::Search;

/// Nearest names that are looked for in one discovery: each is measured against all there are, and whoever has more
/// unknown names has most likely got one thing wrong everywhere.
const HINTS_MAX: usize = 32;

impl Search<'_> {
    /// Refuses candidates until every one that is left can be started after what it needs.
    pub(super) fn settle_needs(&mut self) {
        loop {
            self.refuse_unmet();
            let Some(circle) = self.circle() else { return };
            let names: Vec<&str> = circle.iter().map(|node| self.node(*node).name.as_str()).collect();
            let what = format!("platforms need each other in a circle: {} → {}", names.join(" → "), names[0]);
            let count = self.platforms().len();
            let mut candidates: Vec<usize> = circle.iter().filter_map(|node| node.checked_sub(count)).collect();
            if candidates.is_empty() {
                return; // A circle of configured platforms alone is a mistake of the configuration.
            }
            candidates.sort_unstable();
            for index in candidates.into_iter().rev() {
                let remedy = "remove one of these needs".to_owned();
                self.refuse_candidate(index, vec![Mistake { at: "needs".to_owned(), what: what.clone(), remedy }]);
            }
        }
    }

    /// Refuses those that need what is unknown or refused, and then those that need them.
    fn refuse_unmet(&mut self) {
        loop {
            let known: HashSet<&str> = self.nodes().map(|platform| platform.name.as_str()).collect();
            let mut unmet = Vec::new();
            for (index, candidate) in self.candidates.iter().enumerate() {
                let needs = candidate.platform.needs.iter().enumerate();
                let unknown: Vec<(usize, String)> = needs
                    .filter(|(_, need)| !known.contains(need.as_str()))
                    .map(|(number, need)| (number, need.clone()))
                    .collect();
                if !unknown.is_empty() {
                    unmet.push((index, unknown));
                }
            }
            if unmet.is_empty() {
                return;
            }
            for (index, needs) in unmet.into_iter().rev() {
                let mistakes = needs.into_iter().map(|(number, need)| self.unmet(number, &need)).collect();
                self.refuse_candidate(index, mistakes);
            }
        }
    }

    fn unmet(&mut self, number: usize, need: &str) -> Mistake {
        let at = format!("needs[{number}]");
        let refused = self.refused.iter().find(|(_, refused)| refused.name.as_deref() == Some(need));
        if let Some((_, refused)) = refused {
            let what = format!("it needs {need:?}, which is refused itself");
            return Mistake { at, what, remedy: format!("mend that one first: {}", refused.problems.path.display()) };
        }
        self.hints += 1;
        let is_affordable = self.hints <= HINTS_MAX;
        let known: Vec<&str> = self.nodes().filter(|_| is_affordable).map(|platform| platform.name.as_str()).collect();
        let remedy = match nearest(need, &known) {
            Some(near) => format!("did you mean {near:?}?"),
            None => "name a platform of the configuration, or another plugin".to_owned(),
        };
        Mistake { at, what: format!("no platform is named {need:?}"), remedy }
    }

    /// Every platform: first the configured ones, then the candidates.
    fn nodes(&self) -> impl Iterator<Item = &Platform> {
        self.platforms().iter().chain(self.candidates.iter().map(|candidate| &candidate.platform))
    }

    fn node(&self, index: usize) -> &Platform {
        match index.checked_sub(self.platforms().len()) {
            Some(candidate) => &self.candidates[candidate].platform,
            None => &self.platforms()[index],
        }
    }

    /// Indices along a circle of needs, if there is one; one with a candidate in it rather than one without.
    fn circle(&self) -> Option<Vec<usize>> {
        let position: HashMap<&str, usize> =
            self.nodes().enumerate().map(|(index, platform)| (platform.name.as_str(), index)).collect();
        let needs: Vec<Vec<usize>> = self
            .nodes()
            .map(|platform| platform.needs.iter().filter_map(|need| position.get(need.as_str()).copied()).collect())
            .collect();
        let mut needed_by = vec![Vec::new(); needs.len()];
        for (index, needs) in needs.iter().enumerate() {
            needs.iter().for_each(|need| needed_by[*need].push(index));
        }
        // What nothing is missing for is placed; what is left is on a circle or needs one.
        let mut missing: Vec<usize> = needs.iter().map(Vec::len).collect();
        let mut ready: Vec<usize> = (0..needs.len()).filter(|index| missing[*index] == 0).collect();
        while let Some(placed) = ready.pop() {
            for needy in &needed_by[placed] {
                missing[*needy] -= 1;
                if missing[*needy] == 0 {
                    ready.push(*needy);
                }
            }
        }
        // Every one that is left needs another that is left: following such needs must come back. From each start, so
        // that a circle of configured platforms does not hide another.
        let mut visited = vec![0usize; needs.len()];
        let mut configured_only = None;
        for start in (0..needs.len()).rev().filter(|index| missing[*index] > 0) {
            let mut way = vec![start];
            visited[start] = start + 1;
            loop {
                let last = way[way.len() - 1];
                let next = needs[last].iter().copied().find(|need| missing[*need] > 0)?;
                if let Some(begin) = way.iter().position(|index| *index == next) {
                    let circle = way.split_off(begin);
                    if circle.iter().any(|index| *index >= self.platforms().len()) {
                        return Some(circle);
                    }
                    configured_only = Some(circle);
                    break;
                }
                if visited[next] > 0 {
                    break; // It leads where an earlier start has led.
                }
                visited[next] = start + 1;
                way.push(next);
            }
        }
        configured_only
    }
}
