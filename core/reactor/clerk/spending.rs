//! How much is written in a day: an SD card wears out by it.
//!
//! What is handed to sled says little, because sled rewrites pages and segments. So it is counted what the kernel counts
//! for this process, in which hardly anything but the store writes files: `write_bytes` of `/proc/self/io`. sled writes from
//! threads of its own, so that of the clerk's thread alone would miss most of it. On a file system in memory it stays 0.

/// A warning comes when so many parts of a hundred are used.
const WARNED_AT_PERCENT: u64 = 80;

/// What is written today, and what may be.
pub(super) struct Spending {
    /// 0: as much as there is to write.
    bytes_per_day_max: u64,
    unix_day: u32,
    today_bytes: u64,
    /// Since the start.
    total_bytes: u64,
    /// The kernel's count when it was last looked at.
    counted_bytes: Option<u64>,
    level: Level,
}

/// How much of what may be written today is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Low,
    High,
    /// Only what must not be lost is written.
    Spent,
}

impl Spending {
    /// With what was written on a day before the start.
    pub(super) fn new(bytes_per_day_max: u64, (unix_day, today_bytes): (u32, u64)) -> Spending {
        Spending { bytes_per_day_max, unix_day, today_bytes, total_bytes: 0, counted_bytes: None, level: Level::Low }
    }

    /// Takes the kernel's count, and says to what the level has changed, if it has.
    pub(super) fn look(&mut self, unix_day: u32, written_bytes: Option<u64>) -> Option<Level> {
        if unix_day != self.unix_day {
            (self.unix_day, self.today_bytes) = (unix_day, 0);
        }
        if let Some(written) = written_bytes {
            // What was written before the first look was not the store's.
            let more = written.saturating_sub(self.counted_bytes.unwrap_or(written));
            self.counted_bytes = Some(written);
            self.today_bytes = self.today_bytes.saturating_add(more);
            self.total_bytes = self.total_bytes.saturating_add(more);
        }
        let level = match self.bytes_per_day_max {
            0 => Level::Low,
            max if self.today_bytes >= max => Level::Spent,
            max if self.today_bytes >= (max / 100 * WARNED_AT_PERCENT).max(1) => Level::High,
            _ => Level::Low,
        };
        let has_changed = level != self.level;
        self.level = level;
        has_changed.then_some(level)
    }

    /// Whether what is nice to have may still be written.
    pub(super) fn allows_more(&self) -> bool {
        self.level != Level::Spent
    }

    pub(super) fn today(&self) -> (u32, u64) {
        (self.unix_day, self.today_bytes)
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    pub(super) fn bytes_per_day_max(&self) -> u64 {
        self.bytes_per_day_max
    }
}

/// Bytes that this process has caused to be written to disks, as far as the kernel counts that.
pub(super) fn written_bytes() -> Option<u64> {
    read_written(&std::fs::read_to_string("/proc/self/io").ok()?)
}

fn read_written(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_is_told_once_and_a_new_day_begins_at_nothing() {
        let mut spending = Spending::new(1_000, (7, 0));
        assert_eq!(spending.look(7, Some(50_000)), None, "what was before the first look does not count");
        assert_eq!(spending.look(7, Some(50_799)), None);
        assert_eq!(spending.look(7, Some(50_800)), Some(Level::High));
        assert_eq!(spending.look(7, Some(50_999)), None);
        assert_eq!(spending.look(7, Some(51_000)), Some(Level::Spent));
        assert!(!spending.allows_more());
        assert_eq!(spending.look(7, None), None);
        assert_eq!(spending.look(8, Some(51_010)), Some(Level::Low));
        assert!(spending.allows_more());
        assert_eq!((spending.today(), spending.total_bytes()), ((8, 10), 1_010));
    }

    #[test]
    fn what_was_written_before_a_restart_counts_on_its_day_only() {
        let mut spending = Spending::new(1_000, (7, 990));
        spending.look(7, Some(0));
        assert_eq!(spending.look(7, Some(10)), Some(Level::Spent));
        let mut spending = Spending::new(1_000, (6, 990));
        spending.look(7, Some(0));
        assert_eq!(spending.look(7, Some(10)), None);
    }

    #[test]
    fn without_a_maximum_nothing_is_ever_spent() {
        let mut spending = Spending::new(0, (7, u64::MAX));
        assert_eq!(spending.look(7, Some(1)), None);
        assert!(spending.allows_more());
    }

    #[test]
    fn the_kernel_s_count_is_found_and_not_its_namesake() {
        let text = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 7\n";
        assert_eq!((read_written(text), read_written("cancelled_write_bytes: 7\n")), (Some(6), None));
    }
}
