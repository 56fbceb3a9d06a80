//! What Demi records of RAM, requests and platforms, so that days can be replayed: the format, written and read.
//!
//! A trace is text, so that it can be looked at, sent to somebody and made by a script. Its first line is `demi-trace 1`; then
//! come lines of words with a space between them. `#` begins a comment. A line begins with what it tells and how many
//! milliseconds it comes after the one before; sizes are kB of 1,000 bytes, platforms their places in the last `begin`:
//!
//! | line | tells |
//! |---|---|
//! | `begin {…}` | a run of Demi begins, or goes on in another file: its date and settings, JSON of [`Setup`] |
//! | `m 30000 4000000 2451234` | RAM: all, and what of it is used. Two more numbers: the same of the bound that leaves least, if that is another |
//! | `w 0 2 120000 1` | a platform's instances weigh so much, and so many run |
//! | `r 0 2 14` | so many requests for it since the last such line, or since the one that would have been there |
//! | `s 120 2 shed` | its state, one of [`STATES`] |
//! | `o 5000 2 stop` | a person's order, one of [`ORDERS`] |
//! | `x 5000 2` | one of its instances ended by itself |
//! | `d 0 2 shed 801 80` | a decision: whose (`-`: all), what, used RAM in thousandths, percent it was compared with. With one more word, `told`, nothing was done |
//! | `c 0 1796100000000` | the clock was set: milliseconds since 1970 |
//! | `e 1000` | Demi ended in order |
//!
//! Every file begins with `begin`, so that each can be read alone. A last line without its end is left out, as after a loss of
//! power: of a number that was cut off nobody sees that it was longer. What begins with another letter is passed over, for later
//! versions. Dates end with the year 9999, and sizes at a petabyte.

#![forbid(unsafe_code)]

use std::fmt::{self, Write};

use demi_conductor::config::{Host, Scaler, Start};
use demi_conductor::lifecycle::State;
use demi_conductor::Time;
use serde::{Deserialize, Serialize};

/// The first line of every trace.
pub const HEADER: &str = "demi-trace 1";
/// States of a platform: the best of its instances'.
pub const STATES: [&str; 8] = ["running", "starting", "draining", "asleep", "waiting", "shed", "stopped", "failed"];
/// The last word of a decision that was only told.
const TOLD: &str = "told";
/// What a person orders.
pub const ORDERS: [&str; 4] = ["start", "stop", "restart", "isolate"];
/// A platform's place is below this.
pub const PLATFORMS_MAX: u32 = 10_000;
/// The last millisecond of the year 9999. What comes after that has no date that could be shown.
pub const UNIX_MS_MAX: u64 = 253_402_300_799_999;
/// A petabyte, kB: so many as there may be of them can be added up in bytes.
pub const SIZE_KB_MAX: u64 = 1_000_000_000_000;

/// The place among [`STATES`] of what an instance is doing. `None` of a slot that is spare: there is no instance of it.
pub fn place_of(state: State) -> Option<usize> {
    match state {
        State::Ready => Some(0),
        State::Starting => Some(1),
        State::Draining { .. } | State::Stopping { .. } => Some(2),
        State::Asleep => Some(3),
        State::Waiting | State::Backoff { .. } => Some(4),
        State::Shed => Some(5),
        State::Stopped => Some(6),
        State::Failed => Some(7),
        State::Spare => None,
    }
}

/// With what a run of Demi begins.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Setup {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// The run had begun before, and goes on here: another file, or another platform.
    #[serde(default)]
    pub continues: bool,
    /// How RAM is watched.
    pub scaler: Scaler,
    /// All of them.
    pub platforms: Vec<Integration>,
}

/// A platform, as far as RAM goes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Integration {
    /// Its name.
    pub name: String,
    /// What runs it, and in how many instances; of `Http` one is assumed.
    pub host: Host,
    /// When it is started.
    #[serde(default)]
    pub start: Start,
    /// Without a request for this long it sleeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep_after_ms: Option<u64>,
    /// Names of those that it needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// Whether it may be shed.
    pub shed: bool,
    /// The lowest is shed first.
    pub priority: u32,
    /// Of those with the same priority, what it is worth; `None`: as much as most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<u32>,
    /// How long its requests have to end, milliseconds.
    pub drain_ms: u64,
}

/// What a line tells, besides `begin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// RAM was measured.
    Measured(Ram),
    /// The instances of a platform weigh something else than before.
    Weighed {
        /// Place of the platform.
        platform: u32,
        /// What they weigh together, kB.
        kb: u64,
        /// How many run.
        running: u32,
    },
    /// Requests came for it.
    Asked {
        /// Place of the platform.
        platform: u32,
        /// How many, in the minute before.
        requests: u64,
    },
    /// It is in another state.
    State {
        /// Place of the platform.
        platform: u32,
        /// One of [`STATES`].
        state: &'static str,
    },
    /// A person ordered something.
    Ordered {
        /// Place of the platform.
        platform: u32,
        /// One of [`ORDERS`].
        order: &'static str,
    },
    /// One of its instances ended by itself.
    Died {
        /// Place of the platform.
        platform: u32,
    },
    /// Something was decided about RAM.
    Decided {
        /// Place of the platform; `None`: of all.
        platform: Option<u32>,
        /// The name of the act.
        act: String,
        /// Used RAM, thousandths of all.
        ram_permille: u32,
        /// What it was compared with, percent.
        threshold_percent: u32,
        /// `false`: it was only told, as with `scaler.forecast_only`.
        is_done: bool,
    },
    /// The clock was set. Milliseconds since 1970.
    Clock(u64),
    /// Demi ended in order.
    Ended,
}

/// How RAM was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ram {
    /// All of the bound of which the largest share is used, kB. Never 0.
    pub total_kb: u64,
    /// What of it is used, kB.
    pub used_kb: u64,
    /// The same of the bound that leaves the least, if that is another.
    pub narrowest_kb: Option<(u64, u64)>,
}

/// A line, and when it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Milliseconds since 1970, by the clock of then.
    pub unix_ms: u64,
    /// What it tells.
    pub told: Told,
}

/// What is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// A run begins, or goes on.
    Begin(Box<Setup>),
    /// Something happened.
    Record(Record),
}

/// Writes lines, each with the time since the one before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Writer {
    last: Time,
}

impl Writer {
    /// Writes the first lines of a file.
    ///
    /// # Panics
    /// Never: the settings are numbers, names and truth values.
    pub fn begin(&mut self, now: Time, setup: &Setup, out: &mut String) {
        let setup = serde_json::to_string(setup).expect("the settings can be written");
        self.last = now;
        let _ = writeln!(out, "{HEADER}\nbegin {setup}");
    }

    /// Writes a line.
    pub fn put(&mut self, now: Time, record: &Record, out: &mut String) {
        // What is left of a millisecond is not lost, or a day would have lost some.
        let millis = now.since(self.last).as_millis() as u64;
        self.last = self.last + std::time::Duration::from_millis(millis);
        // Writing to a string cannot fail.
        let _ = match record {
            Record::Measured(Ram { total_kb, used_kb, narrowest_kb: None }) => {
                writeln!(out, "m {millis} {total_kb} {used_kb}")
            }
            Record::Measured(Ram { total_kb, used_kb, narrowest_kb: Some((total, used)) }) => {
                writeln!(out, "m {millis} {total_kb} {used_kb} {total} {used}")
            }
            Record::Weighed { platform, kb, running } => writeln!(out, "w {millis} {platform} {kb} {running}"),
            Record::Asked { platform, requests } => writeln!(out, "r {millis} {platform} {requests}"),
            Record::State { platform, state } => writeln!(out, "s {millis} {platform} {state}"),
            Record::Ordered { platform, order } => writeln!(out, "o {millis} {platform} {order}"),
            Record::Died { platform } => writeln!(out, "x {millis} {platform}"),
            Record::Decided { platform, act, ram_permille, threshold_percent, is_done } => {
                let whose = platform.map_or_else(|| "-".to_owned(), |platform| platform.to_string());
                let (space, told) = if *is_done { ("", "") } else { (" ", TOLD) };
                writeln!(out, "d {millis} {whose} {act} {ram_permille} {threshold_percent}{space}{told}")
            }
            Record::Clock(unix_ms) => writeln!(out, "c {millis} {unix_ms}"),
            Record::Ended => writeln!(out, "e {millis}"),
        };
    }
}

/// Why a trace cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for Malformed {}

/// Reads one trace. What was appended to it from another, with its first line, may stand in it as well.
///
/// # Errors
/// If it is no trace, or a line other than a last one without its end says nothing that makes sense.
pub fn read(text: &str) -> Result<Vec<Entry>, Malformed> {
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    // What is no trace is none without its end, too.
    let text = if whole == 0 { text } else { &text[..whole] };
    let mut entries = Vec::new();
    let mut reader = Reader { unix_ms: None, platforms: 0 };
    for (index, line) in text.lines().enumerate() {
        if index == 0 && line != HEADER {
            let what = match line.starts_with("demi-trace ") {
                true => format!("is of another version: {line}, and this Demi reads {HEADER}"),
                false => format!("is not {HEADER:?}: this is no trace"),
            };
            return Err(Malformed { line: 1, what });
        }
        match reader.line(line) {
            Ok(entry) => entries.extend(entry),
            Err(what) => return Err(Malformed { line: index + 1, what }),
        }
    }
    Ok(entries)
}

struct Reader {
    /// Of the last line; `None` before the first `begin`.
    unix_ms: Option<u64>,
    platforms: u32,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<Option<Entry>, String> {
        if line == HEADER || line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        if let Some(setup) = line.strip_prefix("begin ") {
            let setup: Setup =
                serde_json::from_str(setup).map_err(|error| format!("the settings make no sense: {error}"))?;
            self.platforms = u32::try_from(setup.platforms.len()).unwrap_or(u32::MAX);
            if self.platforms > PLATFORMS_MAX {
                return Err(format!("has {} platforms, and {PLATFORMS_MAX} are the most", self.platforms));
            }
            self.unix_ms = Some(date(setup.unix_ms)?);
            return Ok(Some(Entry { unix_ms: setup.unix_ms, told: Told::Begin(Box::new(setup)) }));
        }
        let before = self.unix_ms.ok_or("comes before any \"begin\"")?;
        let mut words = Words(line.split(' '));
        let kind = words.word("what it tells")?;
        let after = words.number("the time since the last line")?;
        let unix_ms = before.checked_add(after).ok_or("the time since the last line is too long")?;
        let unix_ms = date(unix_ms)?;
        let Some(record) = self.record(kind, &mut words)? else { return Ok(None) };
        self.unix_ms = Some(if let Record::Clock(unix_ms) = record { unix_ms } else { unix_ms });
        Ok(Some(Entry { unix_ms, told: Told::Record(record) }))
    }

    fn record(&self, kind: &str, words: &mut Words<'_>) -> Result<Option<Record>, String> {
        let record = match kind {
            "m" => {
                let (total_kb, used_kb) = words.ram()?;
                let narrowest_kb = if words.is_over() { None } else { Some(words.ram()?) };
                Record::Measured(Ram { total_kb, used_kb, narrowest_kb })
            }
            "w" => {
                let (platform, kb) = (self.platform(words)?, words.size("a size")?);
                let running = words.number("how many run")?.min(u64::from(u32::MAX)) as u32;
                Record::Weighed { platform, kb, running }
            }
            "r" => Record::Asked { platform: self.platform(words)?, requests: words.number("how many requests")? },
            "s" => Record::State { platform: self.platform(words)?, state: words.one_of(&STATES)? },
            "o" => Record::Ordered { platform: self.platform(words)?, order: words.one_of(&ORDERS)? },
            "x" => Record::Died { platform: self.platform(words)? },
            "d" => {
                let platform = match words.word("a platform")? {
                    "-" => None,
                    word => Some(self.is_platform(word)?),
                };
                let act = words.word("an act")?.to_owned();
                let mut small = |what| words.number(what).map(|number| number.min(u64::from(u32::MAX)) as u32);
                let (ram_permille, threshold_percent) = (small("used RAM")?, small("a threshold")?);
                let is_done = words.0.next() != Some(TOLD);
                Record::Decided { platform, act, ram_permille, threshold_percent, is_done }
            }
            "c" => Record::Clock(date(words.number("a date")?)?),
            "e" => Record::Ended,
            // Of a later version.
            _ => return Ok(None),
        };
        Ok(Some(record))
    }

    fn platform(&self, words: &mut Words<'_>) -> Result<u32, String> {
        self.is_platform(words.word("a platform")?)
    }

    fn is_platform(&self, word: &str) -> Result<u32, String> {
        let place = word.parse().ok().filter(|place| *place < self.platforms);
        place.ok_or_else(|| format!("{word:?} is no platform of the {} that the last \"begin\" names", self.platforms))
    }
}

/// One that the calendar has.
fn date(unix_ms: u64) -> Result<u64, String> {
    match unix_ms {
        0..=UNIX_MS_MAX => Ok(unix_ms),
        _ => Err(format!("is of a date after the year 9999: {unix_ms} ms since 1970")),
    }
}

struct Words<'t>(std::str::Split<'t, char>);

impl<'t> Words<'t> {
    fn word(&mut self, what: &str) -> Result<&'t str, String> {
        self.0.next().filter(|word| !word.is_empty()).ok_or_else(|| format!("{what} is missing"))
    }

    fn number(&mut self, what: &str) -> Result<u64, String> {
        let word = self.word(what)?;
        word.parse().map_err(|_| format!("{what} is {word:?}, and not a whole number"))
    }

    /// Kilobytes.
    fn size(&mut self, what: &str) -> Result<u64, String> {
        match self.number(what)? {
            kb @ 0..=SIZE_KB_MAX => Ok(kb),
            kb => Err(format!("{what} is {kb} kB, and {SIZE_KB_MAX} are the most")),
        }
    }

    fn one_of(&mut self, names: &[&'static str]) -> Result<&'static str, String> {
        let word = self.word("a name")?;
        let name = names.iter().find(|name| **name == word).copied();
        name.ok_or_else(|| format!("{word:?} is none of {}", names.join(", ")))
    }

    /// All of it, and what is used.
    fn ram(&mut self) -> Result<(u64, u64), String> {
        let (total, used) = (self.size("all RAM")?, self.size("used RAM")?);
        match total {
            0 => Err("all RAM is 0".to_owned()),
            _ if used > total => Err(format!("{used} kB of {total} kB are used")),
            _ => Ok((total, used)),
        }
    }

    fn is_over(&self) -> bool {
        self.0.clone().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> Setup {
        let voice = Integration {
            name: "voice".to_owned(),
            host: Host::Process(1),
            start: Start::Lazy,
            sleep_after_ms: Some(60_000),
            needs: vec!["files".to_owned()],
            shed: true,
            priority: 100,
            value: None,
            drain_ms: 5_000,
        };
        let files = Integration {
            name: "files".to_owned(),
            sleep_after_ms: None,
            needs: Vec::new(),
            value: Some(300),
            ..voice.clone()
        };
        Setup { unix_ms: 1_796_100_000_000, continues: false, scaler: Scaler::default(), platforms: vec![voice, files] }
    }

    fn decided(platform: Option<u32>, act: &str, is_done: bool) -> Record {
        Record::Decided { platform, act: act.to_owned(), ram_permille: 801, threshold_percent: 80, is_done }
    }

    fn every_record() -> Vec<Record> {
        let ram = Ram { total_kb: 4_000_000, used_kb: 2_451_234, narrowest_kb: None };
        vec![
            Record::Measured(ram),
            Record::Measured(Ram { narrowest_kb: Some((1_000, 1_000)), ..ram }),
            Record::Weighed { platform: 1, kb: 120_000, running: 2 },
            Record::Asked { platform: 0, requests: 14 },
            Record::State { platform: 1, state: "shed" },
            Record::Ordered { platform: 0, order: "restart" },
            Record::Died { platform: 1 },
            decided(Some(1), "shed", true),
            decided(None, "trim", true),
            decided(Some(0), "kill", false),
            Record::Clock(1_796_200_000_000),
            Record::Ended,
        ]
    }

    fn written() -> String {
        let (mut writer, mut text, mut now) = (Writer::default(), String::new(), Time::from_nanos(123_456_789));
        writer.begin(now, &setup(), &mut text);
        for record in every_record() {
            // Half a millisecond is never lost.
            now = now + std::time::Duration::from_micros(30_000_500);
            writer.put(now, &record, &mut text);
        }
        text
    }

    #[test]
    fn what_was_written_is_read() {
        let entries = read(&written()).expect("it is a trace");
        let Told::Begin(read) = &entries[0].told else { panic!("{entries:?}") };
        assert_eq!((entries[0].unix_ms, &**read), (1_796_100_000_000, &setup()));
        let records: Vec<&Record> = entries[1..]
            .iter()
            .filter_map(|entry| if let Told::Record(record) = &entry.told { Some(record) } else { None })
            .collect();
        assert_eq!(records, every_record().iter().collect::<Vec<_>>());
        let spans: Vec<u64> = entries.iter().take(10).map(|entry| entry.unix_ms - 1_796_100_000_000).collect();
        assert_eq!(spans, (0..10).map(|line| line * 30_000 + line / 2).collect::<Vec<_>>());
        assert_eq!(entries.last().map(|entry| entry.unix_ms), Some(1_796_200_030_001), "by the clock that was set");
    }

    #[test]
    fn what_was_cut_off_anywhere_is_read_up_to_there() {
        let text = written();
        let all = read(&text).expect("it is a trace");
        for end in HEADER.len() + 1..=text.len() {
            let entries = read(&text[..end]).unwrap_or_else(|error| panic!("at {end}: {error}"));
            let whole = text[..end].matches('\n').count() - 1;
            assert_eq!(entries, all[..whole], "at {end}: half a number is none");
        }
    }

    #[test]
    fn what_makes_no_sense_is_told_with_its_line() {
        let begin = format!("{HEADER}\nbegin {}\n", serde_json::to_string(&setup()).expect("it can be written"));
        for (wrong, line, what) in [
            ("".to_owned() + "hello\n", 1, "no trace"),
            ("demi-trace 2\n".to_owned(), 1, "another version"),
            (format!("{HEADER}\nm 0 1 1\n"), 2, "before any \"begin\""),
            (format!("{HEADER}\nbegin {{}}\n"), 2, "missing field"),
            (begin.clone() + "m 0 10\n", 3, "used RAM is missing"),
            (begin.clone() + "m 0 10 11\n", 3, "11 kB of 10 kB"),
            (begin.clone() + "m 0 0 0\n", 3, "all RAM is 0"),
            (begin.clone() + "m -1 10 5\n", 3, "\"-1\", and not a whole number"),
            (begin.clone() + "m 18446744073709551615 10 5\n", 3, "too long"),
            (begin.clone() + "m 253402300799999 10 5\n", 3, "after the year 9999"),
            (begin.clone() + "c 0 253402300800000\n", 3, "after the year 9999"),
            (begin.replace("1796100000000", "253402300800000"), 2, "after the year 9999"),
            (begin.clone() + "w 0 1 1000000000001 1\n", 3, "1000000000001 kB, and 1000000000000 are the most"),
            (begin.clone() + "m 0 18446744073709551615 10\n", 3, "are the most"),
            ("hello".to_owned(), 1, "no trace"),
            (begin.clone() + "# fine\nw 0 2 10 1\n", 4, "\"2\" is no platform of the 2"),
            (begin.clone() + "s 0 1 dancing\n", 3, "none of running"),
        ] {
            let error = read(&wrong).expect_err(&wrong);
            assert_eq!(error.line, line, "{error}");
            assert!(error.what.contains(what), "{error}");
        }
        assert_eq!(read(&(begin + "z 5 of a later version\n")).map(|entries| entries.len()), Ok(1));
    }
}
