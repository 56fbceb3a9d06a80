//! How long work stood still for want of memory (PSI).

/// What a file of pressure says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalls {
    /// Somebody stood still.
    pub some: Stall,
    /// Everybody stood still who had something to do.
    pub full: Stall,
}

/// How long that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Of the last ten seconds, in thousandths.
    pub avg10_permille: u32,
    /// Since the kernel counts, microseconds.
    pub total_us: u64,
}

impl Stalls {
    /// `None` if one of the two is missing, or is no share of time.
    pub(super) fn parse(text: &str) -> Option<Stalls> {
        let stall = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            let value = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            let avg10 = value("avg10")?.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent))?;
            Some(Stall { avg10_permille: (avg10 * 10.0).round() as u32, total_us: value("total")?.parse().ok()? })
        };
        Some(Stalls { some: stall("some")?, full: stall("full")? })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::recorded;
    use super::super::Reader;
    use super::*;

    #[test]
    fn shares_and_totals_are_read() {
        let signals = Reader::new(&recorded("container-v2")).read();
        let idle = Stalls {
            some: Stall { avg10_permille: 0, total_us: 812_345 },
            full: Stall { avg10_permille: 0, total_us: 640_123 },
        };
        assert_eq!(signals.stalls, Ok(idle));
        let pressed = Stalls {
            some: Stall { avg10_permille: 123, total_us: 45_678_901 },
            full: Stall { avg10_permille: 31, total_us: 12_345_678 },
        };
        assert_eq!(signals.groups.levels[0].stalls, Ok(pressed), "that of the group that is limited");
    }

    #[test]
    fn what_is_no_share_of_time_is_refused() {
        let line = |avg10: &str, total: &str| format!("some avg10={avg10} total={total}\nfull avg10=0.00 total=1\n");
        assert!(Stalls::parse(&line("100.00", "18446744073709551615")).is_some());
        for (avg10, total) in [("100.01", "1"), ("-1", "1"), ("NaN", "1"), ("inf", "1"), ("", "1"), ("1.0", "-1")] {
            assert_eq!(Stalls::parse(&line(avg10, total)), None, "{avg10} {total}");
        }
        assert_eq!(Stalls::parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"), None, "half of it");
    }
}
