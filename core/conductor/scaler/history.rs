//! What seasons are taken from: one row for each 180th of a day (8 minutes), or of however long `history_hours` says.
//!
//! A row has what RAM was one horizon before, so that rows may lie as far apart as they like; and a fit over the whole
//! history costs no more than one over the window. It has a date of its own, since seasons follow the date and not the
//! time since start:
//!
//! | what comes | what becomes of it |
//! |---|---|
//! | no date | nothing is kept |
//! | a second row of the same 180th | nothing: the first stays |
//! | a date before the last, of a clock that was put back | what has later dates is forgotten: it was wrong |
//! | a date far ahead: a machine that slept, a clock that was put right | a gap; what is too old by now is forgotten |

use std::collections::VecDeque;

use super::features::{seasonal, DATE_MAX, TIME};
use super::least_squares::Row;
use crate::config;

/// Most rows.
pub const ROWS_MAX: usize = 180;

/// Rows with dates. See the module.
#[derive(Clone, Debug)]
pub struct History {
    span_s: u64,
    /// With time in seconds since 1970.
    rows: VecDeque<Row>,
}

impl History {
    /// An empty one.
    pub fn new(settings: &config::Scaler) -> History {
        History { span_s: settings.history_hours.value() * 3600, rows: VecDeque::with_capacity(ROWS_MAX + 1) }
    }

    /// Keeps a row of this date, seconds since 1970, if it is time for one. Whether any row has come or gone.
    pub fn take(&mut self, date_s: u64, row: &Row) -> bool {
        if date_s > DATE_MAX {
            return false;
        }
        let (count, first) = (self.rows.len(), self.oldest_s());
        while self.newest_s().is_some_and(|newest| newest > date_s) {
            self.rows.pop_back();
        }
        while self.oldest_s().is_some_and(|oldest| date_s - oldest > self.span_s) {
            self.rows.pop_front();
        }
        let slot = |date: u64| u128::from(date) * ROWS_MAX as u128 / u128::from(self.span_s);
        if self.newest_s().is_some_and(|newest| slot(newest) == slot(date_s)) {
            return self.rows.len() != count || self.oldest_s() != first;
        }
        if self.rows.len() == ROWS_MAX {
            self.rows.pop_front();
        }
        self.rows.push_back(Row { columns: seasonal(date_s, row.columns), target: row.target });
        true
    }

    /// What least squares go by.
    pub fn rows(&self) -> impl Iterator<Item = &Row> + Clone {
        self.rows.iter()
    }

    /// How many seconds lie between the oldest row and the newest.
    pub fn reach_s(&self) -> u64 {
        self.oldest_s().zip(self.newest_s()).map_or(0, |(oldest, newest)| newest - oldest)
    }

    fn oldest_s(&self) -> Option<u64> {
        self.rows.front().map(|row| row.columns[TIME] as u64)
    }

    fn newest_s(&self) -> Option<u64> {
        self.rows.back().map(|row| row.columns[TIME] as u64)
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaler::features::trend;

    const NOW: u64 = 1_796_100_000;

    fn row() -> Row {
        Row { columns: trend(1.0, 50.0, 2.0), target: 51.0 }
    }

    fn day() -> History {
        let mut history = History::new(&config::Scaler::default());
        for sample in 0..3 * 2_880 {
            history.take(NOW + sample * 30, &row());
            assert!(history.rows.len() <= ROWS_MAX);
        }
        history
    }

    #[test]
    fn a_day_has_a_row_every_eight_minutes() {
        let history = day();
        assert_eq!(history.rows().count(), ROWS_MAX);
        assert!((85_000..=86_400).contains(&history.reach_s()), "{}", history.reach_s());
        let dates: Vec<f64> = history.rows().map(|row| row.columns[TIME]).collect();
        assert!(dates.windows(2).all(|pair| pair[1] - pair[0] == 480.0), "{dates:?}");
        assert_eq!(history.rows().next().map(|row| (row.target, row.columns[1])), Some((51.0, 50.0)));
    }

    #[test]
    fn a_clock_that_is_put_back_takes_what_is_later_with_it() {
        let mut history = day();
        let newest = history.newest_s().expect("there are rows");
        history.take(newest - 3_600, &row());
        assert!(history.newest_s().expect("there are rows") <= newest - 3_600);
        assert!(history.rows().count() > ROWS_MAX - 10);
        history.take(0, &row());
        assert_eq!((history.rows().count(), history.reach_s()), (1, 0));
    }

    #[test]
    fn a_clock_that_jumps_ahead_leaves_what_is_younger_than_a_day() {
        let mut history = day();
        let newest = history.newest_s().expect("there are rows");
        history.take(newest + 12 * 3_600, &row());
        let left = history.rows().count();
        assert!((ROWS_MAX / 2..=ROWS_MAX / 2 + 2).contains(&left), "{left}");
        history.take(DATE_MAX, &row());
        assert_eq!(history.rows().count(), 1);
        history.take(u64::MAX, &row());
        assert_eq!(history.newest_s(), Some(DATE_MAX), "a date that is none is passed over");
    }

    #[test]
    fn every_length_that_can_be_set_keeps_to_the_same_rows() {
        for hours in [1, 5, 24, 168, 1_344] {
            let history_hours = config::Bounded::new(hours).expect("it is in the range");
            let mut history = History::new(&config::Scaler { history_hours, ..config::Scaler::default() });
            let bytes = history.heap_bytes();
            for step in 0..1_000 {
                history.take(NOW + step * hours * 7, &row());
            }
            assert!((170..=ROWS_MAX).contains(&history.rows().count()), "{hours} h: {}", history.rows().count());
            assert_eq!(history.heap_bytes(), bytes);
        }
    }
}
