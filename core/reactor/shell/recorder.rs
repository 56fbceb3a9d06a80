//! What happens to RAM, requests and platforms, gathered as lines of a trace (`demi_trace`) until the clerk takes them.
//!
//! A day has 2 MB. When three quarters of them are used, RAM and weights are recorded more seldom; near the end only what people
//! order, and where a run begins and ends. What finds no room leaves no gap in the times: each line has the time since the
//! last one that was written, and what has changed is compared with what was written last.

use std::collections::VecDeque;
use std::time::Duration;

use demi_conductor::config::Scaler;
use demi_conductor::lifecycle::State;
use demi_conductor::{Sample, Time};
use demi_trace::{Integration, Ram, Record, Setup, Writer, STATES};

use crate::traces::{DAY_BYTES_MAX, DAY_MS};

/// So much is handed over before the minute is over.
const RIPE_BYTES: usize = 16 * 1024;
/// Most that waits for a clerk who is busy, besides a beginning, which is as long as there are platforms.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// When a day's file has this length, RAM and weights are recorded more seldom…
const THIN_BYTES: u64 = DAY_BYTES_MAX / 4 * 3;
/// …and then only what people order.
const SPENT_BYTES: u64 = DAY_BYTES_MAX / 20 * 19;
/// …until not even the longest line of those has room.
const FULL_BYTES: u64 = DAY_BYTES_MAX - 100;
/// RAM is recorded again after five seconds, or when it has moved by a hundredth of all. Half a second less, so that of samples each
/// second every fifth is taken and not every sixth.
const RAM_SPAN: Duration = Duration::from_millis(4_500);
const RAM_MOVED_PARTS: u64 = 100;
/// A platform's weight is recorded again after a second, if it has moved by a fiftieth and by a megabyte. A little less, because
/// children are weighed each second.
const WEIGHT_SPAN: Duration = Duration::from_millis(900);
const WEIGHT_MOVED_PARTS: u64 = 50;
const WEIGHT_MOVED_KB: u64 = 1_000;
/// Either, when most of the day's bytes are used: after thirty seconds, whatever has moved.
const THIN_SPAN: Duration = Duration::from_millis(29_500);
/// A beginning that finds no room is tried again after this: it takes a look at every platform.
const BEGIN_AGAIN: Duration = Duration::from_secs(30);
/// The wall clock was set, or the machine was suspended, if it is so far from where it would be by the time since.
const DRIFT_MAX_MS: u64 = 2_000;

/// A moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// As the conductor has it.
    pub(super) now: Time,
    /// As it is: later, if the turn is late.
    pub(super) real: Time,
    /// By the wall clock.
    pub(super) unix_ms: u64,
}

/// What a platform is found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    /// One of [`STATES`].
    pub(super) state: &'static str,
    pub(super) kb: u64,
    pub(super) running: u32,
    /// Requests since the start of Demi.
    pub(super) asked: u64,
}

/// Gathers lines.
pub(super) struct Recorder {
    is_on: bool,
    writer: Writer,
    setup: Setup,
    /// By the index of the platform.
    platforms: Vec<Known>,
    /// What the clerk has not taken yet, oldest first.
    chunks: VecDeque<Chunk>,
    /// The day of the last chunk, and how long its file is with that.
    unix_day: u64,
    day_bytes: u64,
    /// The next line comes after a beginning, which is not tried before this.
    begin_at: Option<Time>,
    /// RAM as it was recorded last, when.
    ram: Option<(Time, Ram)>,
    /// The wall clock at a time.
    clock: (Time, u64),
    /// All platforms are worth a look then: they were weighed, or one was recorded too lately.
    look_at: Option<Time>,
    /// Those that are worth one at the end of the turn; each is in it once.
    changed: Vec<u32>,
    /// What of this day was told: that less is recorded, and that nearly nothing is.
    told: Room,
    /// Lines that found no room because the clerk was busy, since it took the last one.
    dropped: u64,
    /// All that found none.
    dropped_total: u64,
}

/// Lines for the file of a day.
struct Chunk {
    unix_day: u64,
    text: String,
}

/// What is known of a platform.
#[derive(Clone, Copy, Default)]
struct Known {
    seen: Option<Sight>,
    /// It is to be looked at.
    is_changed: bool,
    /// What of it was recorded last.
    state: Option<&'static str>,
    load: Option<(Time, u64, u32)>,
    asked: u64,
}

/// What a day's file has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Room {
    All,
    Thin,
    OrdersOnly,
    Nothing,
}

impl Room {
    fn of(day_bytes: u64) -> Room {
        match day_bytes {
            0..THIN_BYTES => Room::All,
            THIN_BYTES..SPENT_BYTES => Room::Thin,
            SPENT_BYTES..FULL_BYTES => Room::OrdersOnly,
            FULL_BYTES.. => Room::Nothing,
        }
    }
}

impl Recorder {
    /// One for these platforms. `today` is the day of the wall clock and how long its file is already, bytes.
    pub(super) fn new(scaler: Scaler, platforms: Vec<Integration>, today: (u64, u64)) -> Recorder {
        Recorder {
            is_on: scaler.trace_days.value() > 0,
            writer: Writer::default(),
            platforms: vec![Known::default(); platforms.len()],
            setup: Setup { unix_ms: 0, continues: false, scaler, platforms },
            chunks: VecDeque::new(),
            unix_day: today.0,
            day_bytes: today.1,
            begin_at: Some(Time::ZERO),
            ram: None,
            clock: (Time::ZERO, 0),
            look_at: None,
            changed: Vec::new(),
            told: Room::All,
            dropped: 0,
            dropped_total: 0,
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Whether it is worth it to hand over what has gathered before the minute is over.
    pub(super) fn is_ripe(&self) -> bool {
        self.waiting() >= RIPE_BYTES
    }

    fn waiting(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.text.len()).sum()
    }

    /// All platforms are worth a look.
    pub(super) fn wants_look(&mut self, now: Time) {
        self.look_at = Some(now);
    }

    /// One is.
    pub(super) fn note_change(&mut self, platform: u32) {
        let Some(known) = self.platforms.get_mut(platform as usize).filter(|_| self.is_on) else { return };
        if !std::mem::replace(&mut known.is_changed, true) {
            self.changed.push(platform);
        }
    }

    /// Whether it is time for a [`Recorder::look`] at all platforms: what begins tells of each.
    pub(super) fn is_look_due(&self, now: Time) -> bool {
        [self.begin_at, self.look_at].into_iter().flatten().any(|at| at <= now)
    }

    /// One to give a look by itself, [`Recorder::look_at_one`].
    pub(super) fn next_changed(&mut self) -> Option<u32> {
        self.changed.pop()
    }

    /// There are these platforms now, in this way.
    pub(super) fn set_up(&mut self, place: usize, integration: Integration) {
        match self.setup.platforms.get_mut(place) {
            Some(old) if *old == integration => return,
            Some(old) => *old = integration,
            None => {
                self.setup.platforms.push(integration);
                self.platforms.push(Known::default());
            }
        }
        self.begin_at = Some(Time::ZERO);
    }

    /// Takes what all platforms are found to do, and records what is worth it.
    pub(super) fn look(&mut self, at: Moment, sights: impl Iterator<Item = Sight>) {
        self.look_at = None;
        self.changed.clear();
        for (known, sight) in self.platforms.iter_mut().zip(sights) {
            (known.seen, known.is_changed) = (Some(sight), false);
        }
        if self.is_on && self.prepare(at) {
            (0..self.platforms.len() as u32).for_each(|platform| self.compare(at, platform));
        }
    }

    /// The same of one platform.
    pub(super) fn look_at_one(&mut self, at: Moment, platform: u32, sight: Sight) {
        let Some(known) = self.platforms.get_mut(platform as usize) else { return };
        (known.seen, known.is_changed) = (Some(sight), false);
        if self.is_on && self.prepare(at) {
            self.compare(at, platform);
        }
    }

    /// Records how a platform differs from what was recorded of it last.
    fn compare(&mut self, at: Moment, platform: u32) {
        let place = platform as usize;
        let Known { seen: Some(sight), state, load, .. } = self.platforms[place] else { return };
        if state != Some(sight.state) && self.put(at, &Record::State { platform, state: sight.state }) {
            self.platforms[place].state = Some(sight.state);
        }
        let Sight { kb, running, .. } = sight;
        let has_moved = load.is_none_or(|(_, old_kb, old_running)| {
            let moved = old_kb.abs_diff(kb);
            old_running != running || moved >= WEIGHT_MOVED_KB && moved >= old_kb / WEIGHT_MOVED_PARTS
        });
        if !has_moved {
            return;
        }
        let due = load.map_or(at.now, |(last, _, _)| last + self.span(WEIGHT_SPAN));
        if due > at.now {
            self.look_at = Some(self.look_at.map_or(due, |look| look.min(due)));
        } else if self.put(at, &Record::Weighed { platform, kb, running }) {
            self.platforms[place].load = Some((at.now, kb, running));
        }
    }

    /// A minute is over: records how many requests have come, of those that were seen last.
    pub(super) fn count_requests(&mut self, at: Moment) {
        for place in 0..self.platforms.len() {
            let Known { seen: Some(sight), asked, .. } = self.platforms[place] else { continue };
            let requests = sight.asked.saturating_sub(asked);
            if requests > 0 && self.put(at, &Record::Asked { platform: place as u32, requests }) {
                self.platforms[place].asked = sight.asked;
            }
        }
    }

    /// RAM was measured.
    pub(super) fn measured(&mut self, at: Moment, sample: &Sample) {
        let Some(ram) = ram_of(sample) else { return };
        let is_due = self.ram.is_none_or(|(last, old)| {
            let has_moved = Room::of(self.day_bytes) == Room::All && has_moved(&old, &ram);
            has_moved || at.now.since(last) >= self.span(RAM_SPAN)
        });
        if is_due && self.put(at, &Record::Measured(ram)) {
            self.ram = Some((at.now, ram));
        }
    }

    /// Demi ends in order: nothing is recorded any more.
    pub(super) fn end(&mut self, at: Moment) {
        self.put(at, &Record::Ended);
        self.is_on = false;
    }

    /// Writes a line. Whether there was room for it.
    pub(super) fn put(&mut self, at: Moment, record: &Record) -> bool {
        if !self.is_on {
            return false;
        }
        let has_room = self.prepare(at) && self.has_room(record);
        if !has_room {
            self.drop_line();
            return false;
        }
        self.write(|writer, text| writer.put(at.now, record, text));
        true
    }

    /// Sees to it that a line may be written: that the file of the day has its beginning, and the date is right.
    fn prepare(&mut self, at: Moment) -> bool {
        let unix_day = at.unix_ms / DAY_MS;
        if unix_day != self.unix_day {
            (self.unix_day, self.day_bytes, self.told) = (unix_day, 0, Room::All);
            self.begin_at = Some(Time::ZERO);
        }
        if let Some(begin_at) = self.begin_at {
            if at.now < begin_at {
                return false;
            }
            if !self.begin(at) {
                self.begin_at = Some(at.now + BEGIN_AGAIN);
                return false;
            }
        }
        let (since, unix_ms) = self.clock;
        let expected = unix_ms + at.real.since(since).as_millis() as u64;
        if expected.abs_diff(at.unix_ms) > DRIFT_MAX_MS {
            let record = Record::Clock(at.unix_ms);
            if self.has_room(&record) {
                self.write(|writer, text| writer.put(at.now, &record, text));
                self.clock = (at.real, at.unix_ms);
            }
        }
        true
    }

    /// Begins a file, or begins anew in it, with all that whoever reads only this has to know.
    fn begin(&mut self, at: Moment) -> bool {
        if Room::of(self.day_bytes) == Room::Nothing || self.waiting() >= WAITING_BYTES_MAX {
            return false;
        }
        let is_first = self.clock.1 == 0;
        (self.setup.unix_ms, self.setup.continues) = (at.unix_ms, !is_first);
        let mut text = String::new();
        let mut writer = Writer::default();
        writer.begin(at.now, &self.setup, &mut text);
        let mut seen = self.platforms.clone();
        for (platform, known) in (0..).zip(&mut seen) {
            let Some(Sight { state, kb, running, .. }) = known.seen else { continue };
            writer.put(at.now, &Record::State { platform, state }, &mut text);
            writer.put(at.now, &Record::Weighed { platform, kb, running }, &mut text);
            (known.state, known.load) = (Some(state), Some((at.now, kb, running)));
        }
        if self.day_bytes + text.len() as u64 > DAY_BYTES_MAX {
            return false;
        }
        (self.writer, self.platforms, self.clock) = (writer, seen, (at.real, at.unix_ms));
        (self.begin_at, self.ram) = (None, None);
        self.write(|_, gathered| gathered.push_str(&text));
        true
    }

    fn has_room(&self, record: &Record) -> bool {
        let is_order = matches!(record, Record::Ordered { .. } | Record::Clock(_) | Record::Ended);
        let room = Room::of(self.day_bytes);
        let fits = if is_order { room < Room::Nothing } else { room < Room::OrdersOnly };
        fits && self.waiting() < WAITING_BYTES_MAX
    }

    fn span(&self, usual: Duration) -> Duration {
        if Room::of(self.day_bytes) == Room::All {
            usual
        } else {
            THIN_SPAN
        }
    }

    fn write(&mut self, what: impl FnOnce(&mut Writer, &mut String)) {
        if self.chunks.back().is_none_or(|chunk| chunk.unix_day != self.unix_day) {
            self.chunks.push_back(Chunk { unix_day: self.unix_day, text: String::new() });
        }
        let Some(chunk) = self.chunks.back_mut() else { return };
        let before = chunk.text.len();
        what(&mut self.writer, &mut chunk.text);
        self.day_bytes += (chunk.text.len() - before) as u64;
        let room = Room::of(self.day_bytes);
        if room > self.told && self.told < Room::OrdersOnly {
            self.told = room;
            match room {
                Room::All | Room::Thin => log::info!("much was recorded of RAM today: until midnight (UTC) less is"),
                Room::OrdersOnly | Room::Nothing => log::warn!(
                    "{SPENT_BYTES} bytes were recorded of RAM today: until midnight (UTC) only what people order is"
                ),
            }
        }
    }

    /// Once until there is room again, and only where the clerk is to blame: what a day has room for is told by itself.
    fn drop_line(&mut self) {
        self.dropped_total += 1;
        if self.waiting() < WAITING_BYTES_MAX {
            return;
        }
        if self.dropped == 0 {
            log::warn!("the clerk is too busy to record what happens to RAM; some of it is left out");
        }
        self.dropped += 1;
    }

    /// Hands over what has gathered, the oldest first, as long as it is taken.
    pub(super) fn hand_over(&mut self, mut take: impl FnMut(u64, &mut String) -> bool) {
        while let Some(chunk) = self.chunks.front_mut() {
            if !take(chunk.unix_day, &mut chunk.text) {
                return;
            }
            self.chunks.pop_front();
        }
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            log::warn!("{dropped} lines of what happens to RAM were left out");
        }
    }

    /// How long the file of the day is, with what waits for the clerk, bytes, and how many lines found no room since the start.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.day_bytes, self.dropped_total)
    }

    /// So many bytes that were handed over for a day are lost. What follows them tells times from their end, so it is begun
    /// anew.
    pub(super) fn lost(&mut self, unix_day: u64, bytes: u64) {
        let waiting: u64 = self.chunks.iter().filter(|chunk| chunk.unix_day == unix_day).map(Chunk::bytes).sum();
        self.chunks.retain(|chunk| chunk.unix_day != unix_day);
        if unix_day == self.unix_day {
            self.day_bytes = self.day_bytes.saturating_sub(bytes + waiting);
            self.begin_at = Some(Time::ZERO);
        }
    }
}

impl Chunk {
    fn bytes(&self) -> u64 {
        self.text.len() as u64
    }
}

/// RAM in the units of a trace; `None` of a sample that makes no sense.
fn ram_of(sample: &Sample) -> Option<Ram> {
    let kb = |(total, left): (u64, u64)| {
        let used = total.checked_sub(left)?;
        (total >= 1_000).then_some((total / 1_000, used / 1_000))
    };
    let (total_kb, used_kb) = kb((sample.ram_total, sample.ram_available))?;
    let narrowest = kb((sample.ram_headroom_total, sample.ram_headroom));
    Some(Ram { total_kb, used_kb, narrowest_kb: narrowest.filter(|narrowest| *narrowest != (total_kb, used_kb)) })
}

fn has_moved(old: &Ram, new: &Ram) -> bool {
    let moved =
        |old: (u64, u64), new: (u64, u64)| old.0 != new.0 || old.1.abs_diff(new.1) >= (new.0 / RAM_MOVED_PARTS).max(1);
    let narrowest_moved = match (old.narrowest_kb, new.narrowest_kb) {
        (Some(old), Some(new)) => moved(old, new),
        (None, None) => false,
        (Some(_), None) | (None, Some(_)) => true,
    };
    moved((old.total_kb, old.used_kb), (new.total_kb, new.used_kb)) || narrowest_moved
}

/// The best of the states that the slots of a platform are in, as a trace names it.
pub(super) fn best_state(states: impl Iterator<Item = State>) -> &'static str {
    let best = states.filter_map(demi_trace::place_of).min();
    // A platform of spare slots alone has nothing that could run.
    best.map_or("stopped", |place| STATES[place])
}

#[cfg(test)]
#[path = "recorder/tests.rs"]
mod tests;
