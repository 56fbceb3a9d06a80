//! Texts that begin another, and texts that stand anywhere in another, found in one pass whatever their number: a tree of
//! bytes, with a link from each node to the longest end of it that is a node as well (Aho and Corasick, 1975).
//!
//! A crate for this knows vector instructions, which are of use for a few texts in a long one, and takes 140 KB more.

use std::collections::{BTreeMap, VecDeque};

/// No node, no list.
const NONE: u32 = u32::MAX;
const ROOT: u32 = 0;

/// Texts, each with the number of a list.
#[derive(Debug)]
pub(super) struct Tree {
    folds: bool,
    nodes: Vec<Node>,
    /// The byte and the node behind it, sorted within a node.
    edges: Vec<(u8, u32)>,
    /// Where each byte leads from the root: most bytes of a text lead nowhere, and that must cost little.
    root: Box<[u32; 256]>,
}

#[derive(Clone, Debug)]
struct Node {
    /// Its edges are those from here to where the next node's are.
    edges_from: u32,
    /// The list of the text that ends here.
    list: u32,
    /// The node of the longest end of what leads here.
    end: u32,
    /// The nearest along those at which a text ends.
    ending: u32,
}

impl Tree {
    /// Of texts that are in lower case if it folds.
    pub(super) fn new(texts: &BTreeMap<Vec<u8>, u32>, folds: bool) -> Tree {
        let fresh = Node { edges_from: 0, list: NONE, end: ROOT, ending: NONE };
        let mut nodes = vec![fresh.clone()];
        let mut steps: BTreeMap<(u32, u8), u32> = BTreeMap::new();
        for (text, list) in texts {
            let mut at = ROOT;
            for byte in text {
                at = *steps.entry((at, *byte)).or_insert_with(|| {
                    nodes.push(fresh.clone());
                    nodes.len() as u32 - 1
                });
            }
            nodes[at as usize].list = *list;
        }
        nodes.push(fresh);
        let mut root = Box::new([NONE; 256]);
        let mut edges = Vec::with_capacity(steps.len());
        // The steps come in the order of the nodes that they leave.
        let mut filled = 0;
        for ((from, byte), to) in steps {
            nodes[filled..=from as usize].iter_mut().for_each(|node| node.edges_from = edges.len() as u32);
            filled = filled.max(from as usize + 1);
            edges.push((byte, to));
            if from == ROOT {
                root[usize::from(byte)] = to;
            }
        }
        nodes[filled..].iter_mut().for_each(|node| node.edges_from = edges.len() as u32);
        let mut tree = Tree { folds, nodes, edges, root };
        tree.link();
        tree
    }

    /// Links each node to its ends, the shorter ones first.
    fn link(&mut self) {
        let mut open = VecDeque::from([ROOT]);
        while let Some(at) = open.pop_front() {
            for index in self.edges_of(at) {
                let (byte, to) = self.edges[index];
                let end = if at == ROOT { ROOT } else { self.next(self.nodes[at as usize].end, byte) };
                let ending = if self.nodes[end as usize].list == NONE { self.nodes[end as usize].ending } else { end };
                (self.nodes[to as usize].end, self.nodes[to as usize].ending) = (end, ending);
                open.push_back(to);
            }
        }
    }

    fn edges_of(&self, node: u32) -> std::ops::Range<usize> {
        self.nodes[node as usize].edges_from as usize..self.nodes[node as usize + 1].edges_from as usize
    }

    fn step(&self, node: u32, byte: u8) -> Option<u32> {
        if node == ROOT {
            return Some(self.root[usize::from(byte)]).filter(|to| *to != NONE);
        }
        let edges = &self.edges[self.edges_of(node)];
        let index = edges.binary_search_by_key(&byte, |(byte, _)| *byte).ok()?;
        Some(edges[index].1)
    }

    /// Where a byte leads from a node, perhaps by way of its ends.
    fn next(&self, mut node: u32, byte: u8) -> u32 {
        loop {
            match self.step(node, byte) {
                Some(to) => return to,
                None if node == ROOT => return ROOT,
                None => node = self.nodes[node as usize].end,
            }
        }
    }

    fn fold(&self, byte: u8) -> u8 {
        if self.folds {
            byte.to_ascii_lowercase()
        } else {
            byte
        }
    }

    /// Calls `visit` with the list of each text that begins this one.
    pub(super) fn beginnings(&self, text: &[u8], mut visit: impl FnMut(u32)) {
        let mut at = ROOT;
        for byte in text {
            let Some(to) = self.step(at, self.fold(*byte)) else { return };
            at = to;
            if self.nodes[at as usize].list != NONE {
                visit(self.nodes[at as usize].list);
            }
        }
    }

    /// Calls `visit` with the list of each text that stands in this one, as often as it does.
    pub(super) fn needles(&self, text: &[u8], mut visit: impl FnMut(u32)) {
        let mut at = ROOT;
        for byte in text {
            at = self.next(at, self.fold(*byte));
            if at == ROOT {
                continue;
            }
            let node = &self.nodes[at as usize];
            let mut ended = if node.list == NONE { node.ending } else { at };
            while ended != NONE {
                let node = &self.nodes[ended as usize];
                visit(node.list);
                ended = node.ending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    fn tree(texts: &[&str], folds: bool) -> Tree {
        Tree::new(&(0..).zip(texts).map(|(list, text)| (text.as_bytes().to_vec(), list)).collect(), folds)
    }

    fn found(tree: &Tree, text: &str) -> (Vec<u32>, Vec<u32>) {
        let (mut beginnings, mut needles) = (Vec::new(), Vec::new());
        tree.beginnings(text.as_bytes(), |list| beginnings.push(list));
        tree.needles(text.as_bytes(), |list| needles.push(list));
        needles.sort_unstable();
        (beginnings, needles)
    }

    #[test]
    fn texts_within_texts_are_all_found() {
        let tree = tree(&["he", "she", "his", "hers"], false);
        assert_eq!(found(&tree, "ushers"), (vec![], vec![0, 1, 3]));
        assert_eq!(found(&tree, "hers he"), (vec![0, 3], vec![0, 0, 3]));
        assert_eq!(found(&tree, ""), (vec![], vec![]));
    }

    #[test]
    fn case_is_folded_only_where_it_is_told_to_be() {
        assert_eq!(found(&tree(&["he"], true), "HEHe"), (vec![0], vec![0, 0]));
        assert_eq!(found(&tree(&["he"], false), "HEHe"), (vec![], vec![]));
    }

    #[test]
    fn whatever_the_texts_are_what_is_found_is_what_is_there() {
        let mut random = Random::new(7);
        let mut text = |length: u64| -> String {
            (0..1 + random.below(length)).map(|_| if random.chance(500) { 'a' } else { 'b' }).collect()
        };
        for _ in 0..300 {
            let mut texts: Vec<String> = (0..8).map(|_| text(5)).collect();
            texts.sort();
            texts.dedup();
            let names: Vec<&str> = texts.iter().map(String::as_str).collect();
            let haystack = text(30);
            let (beginnings, needles) = found(&tree(&names, false), &haystack);
            let begins = |list: &u32| haystack.starts_with(names[*list as usize]);
            let mut expected: Vec<u32> = (0..names.len() as u32).filter(begins).collect();
            expected.sort_by_key(|list| names[*list as usize].len());
            assert_eq!(beginnings, expected, "{names:?} {haystack}");
            let count = |name: &str| (0..haystack.len()).filter(|at| haystack[*at..].starts_with(name)).count();
            let expected: Vec<u32> = (0..).zip(&names).flat_map(|(list, name)| vec![list; count(name)]).collect();
            assert_eq!(needles, expected, "{names:?} {haystack}");
        }
    }
}
