//! The cache of ZFS, which the kernel counts as used though it is given back when others need it.

/// What `arcstats` says. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arc {
    /// What the cache takes.
    pub size: u64,
    /// What it keeps in any case.
    pub min: u64,
}

impl Arc {
    /// `None` if it says nothing of its size.
    pub(super) fn parse(text: &str) -> Option<Arc> {
        // Name, type, value.
        let value = |name: &str| {
            text.lines().find_map(|line| {
                let mut words = line.split_ascii_whitespace();
                (words.next()? == name).then(|| words.nth(1)?.parse().ok()).flatten()
            })
        };
        Some(Arc { size: value("size")?, min: value("c_min")? })
    }

    /// What it would give back.
    pub fn reclaimable(&self) -> u64 {
        self.size.saturating_sub(self.min)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::recorded;
    use super::super::Reader;
    use super::*;

    #[test]
    fn what_is_above_its_minimum_would_be_given_back() {
        let arc = Reader::new(&recorded("zfs-server")).read().arc.expect("it is there");
        assert_eq!(arc, Arc { size: 8_120_505_600, min: 520_505_600 });
        assert_eq!(arc.reclaimable(), 7_600_000_000);
        assert_eq!(Arc { size: 5, min: 9 }.reclaimable(), 0, "it has not grown to it yet");
    }

    #[test]
    fn a_name_that_only_begins_the_same_is_another() {
        assert_eq!(Arc::parse("c_minimum 4 1\nsizes 4 2\n"), None);
        assert_eq!(Arc::parse("c_min 4\nsize 4 2\n"), None);
        assert_eq!(Arc::parse("c_min 4 1\nsize 4 2\n"), Some(Arc { size: 2, min: 1 }));
    }
}
