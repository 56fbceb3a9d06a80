//! What happened to a platform lately, in sentences, and what it logged: two bounded rings, which hold no memory until
//! something happens. The conductor's news becomes a sentence here and nowhere else.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use demi_conductor::lifecycle::{Reason, State};
use demi_conductor::scaler::{Act, Decision, Shortage};
use demi_conductor::{Exit, Instance, News, Time, MEGABYTE};
use serde::{Deserialize, Serialize};

/// State changes kept of a platform: some ten lives of one instance.
pub(crate) const EVENTS_MAX: usize = 64;
/// Log lines kept of a platform.
const LINES_MAX: usize = 200;
/// Bytes of their texts; the longest line is an eighth of it.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Something that happened to a platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) unix_ms: u64,
    /// To which of its instances, if not to all.
    pub(crate) instance: Option<u32>,
    pub(crate) text: String,
}

/// A line that an instance has logged, on its way from its pipe to the log and the ring.
#[derive(Debug)]
pub(crate) struct LogLine {
    pub(crate) instance: Instance,
    pub(crate) level: log::Level,
    /// Without control characters.
    pub(crate) text: String,
    /// Lines before it that were dropped, if that is what it tells.
    pub(crate) dropped: u64,
}

/// A log line in the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    /// Counts the lines of the platform since Demi began, from 1.
    pub(crate) seq: u64,
    pub(crate) unix_ms: u64,
    pub(crate) level: &'static str,
    pub(crate) instance: u32,
    pub(crate) text: Box<str>,
}

/// The two rings of a platform.
#[derive(Debug, Default)]
pub(crate) struct Chronicle {
    events: VecDeque<Entry>,
    lines: VecDeque<Line>,
    line_bytes: usize,
    last_seq: u64,
}

/// Some of the log lines, oldest first.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LinePage<'c> {
    pub(crate) lines: Vec<&'c Line>,
    /// What to give as `after` for those that follow.
    pub(crate) next: u64,
    /// Lines after `after` that the ring does not hold any more.
    pub(crate) dropped: u64,
}

impl Chronicle {
    /// A chronicle that goes on from what the store remembers, oldest first.
    pub(crate) fn new(mut remembered: Vec<Entry>) -> Chronicle {
        remembered.drain(..remembered.len().saturating_sub(EVENTS_MAX));
        Chronicle { events: remembered.into(), ..Chronicle::default() }
    }

    /// Adds what happened; the oldest gives way.
    pub(crate) fn add(&mut self, entry: Entry) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(entry);
    }

    /// Takes back what was added.
    pub(crate) fn take_back(&mut self, entry: &Entry) {
        if let Some(position) = self.events.iter().rposition(|other| other == entry) {
            self.events.remove(position);
        }
    }

    /// What happened, newest first.
    pub(crate) fn events(&self) -> impl Iterator<Item = &Entry> {
        self.events.iter().rev()
    }

    /// Adds a log line; the oldest give way.
    pub(crate) fn log(&mut self, unix_ms: u64, level: log::Level, instance: u32, text: String) {
        self.last_seq += 1;
        self.line_bytes += text.len();
        let (seq, text) = (self.last_seq, text.into_boxed_str());
        self.lines.push_back(Line { seq, unix_ms, level: level_name(level), instance, text });
        while self.lines.len() > LINES_MAX || self.line_bytes > LINE_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.line_bytes -= oldest.text.len();
        }
    }

    /// Log lines, newest first.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().rev()
    }

    /// The first `limit` lines after a number, or the last `limit` of all.
    pub(crate) fn page(&self, after: Option<u64>, limit: usize) -> LinePage<'_> {
        // Whoever has seen more than there was ever logged has seen it before Demi began.
        let after = after.map(|after| if after > self.last_seq { 0 } else { after });
        let first = self.lines.front().map_or(self.last_seq + 1, |line| line.seq);
        let skipped = match after {
            Some(after) => (after + 1).saturating_sub(first) as usize,
            None => self.lines.len().saturating_sub(limit),
        };
        let lines: Vec<&Line> = self.lines.iter().skip(skipped).take(limit).collect();
        let next = lines.last().map_or(after.unwrap_or(self.last_seq), |line| line.seq);
        LinePage { lines, next, dropped: after.map_or(0, |after| first.saturating_sub(after + 1)) }
    }
}

const fn level_name(level: log::Level) -> &'static str {
    match level {
        log::Level::Error => "error",
        log::Level::Warn => "warn",
        log::Level::Info => "info",
        log::Level::Debug => "debug",
        log::Level::Trace => "trace",
    }
}

/// The wall clock, milliseconds since the unix epoch; 0 before it.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The news as a sentence about an instance or platform, "it". `target` names what stands in `reachability` at an index.
pub(crate) fn sentence<'t>(news: &News, now: Time, target: impl Fn(u32) -> &'t str) -> String {
    let megabytes = |bytes: u64| bytes as f64 / MEGABYTE as f64;
    match *news {
        News::State { was, now: state, reason: Reason::Unreachable { target: index } } => {
            let reason = format!("{}, which it lies behind, cannot be reached", target(index));
            state_sentence(was, state, Reason::Unreachable { target: index }, &reason, now)
        }
        News::State { was, now: state, reason } => state_sentence(was, state, reason, &reason.to_string(), now),
        News::BreakerOpened { cause, until } => {
            format!("its breaker opened for {}: {cause}", span(until.since(now)))
        }
        News::BreakerClosed { is_by_hand: false } => "its breaker closed: it gets requests again".to_owned(),
        News::BreakerClosed { is_by_hand: true } => "its breaker was closed by hand: it gets requests again".to_owned(),
        News::Acquitted { cause } => {
            format!("its breaker stays closed, though {cause}: it is the last one, and its health check passed")
        }
        News::Reinitialized { done: true } => "it was initialised again, because its breaker opened".to_owned(),
        News::Reinitialized { done: false } => "it could not be initialised again when its breaker opened".to_owned(),
        News::Unreachable { target: index } => {
            format!("{} cannot be reached: what fails meanwhile is not held against it", target(index))
        }
        News::Reachable { target: index } => format!("{} can be reached again", target(index)),
        News::DrainBegan => "it wants no new requests, and goes on with those that it has".to_owned(),
        News::DrainEnded => "it wants requests again".to_owned(),
        News::HealthDown => "its health checks fail: it gets no requests".to_owned(),
        News::HealthUp => "its health checks pass again".to_owned(),
        News::Trimmed { rss_bytes, soft_bytes } => format!(
            "it uses {:.0} MB of memory, and limits.memory_soft_mb is {:.0}: it was asked to give some back",
            megabytes(rss_bytes),
            megabytes(soft_bytes)
        ),
        News::Extended { by } => format!("it needs longer to start: {} more", span(by)),
        News::SwapBegan => "a new edition is tried beside it".to_owned(),
        News::SwapUntried => "nothing of it runs: its next start is of the new edition".to_owned(),
        News::SwapDone => "the new edition has taken over".to_owned(),
        News::SwapFailed { reason } => {
            format!("a new edition did not take over: {reason}; the old one stays")
        }
        News::Isolated => "it is isolated by hand: it gets no requests until it is started by hand".to_owned(),
        News::Released => "it may have requests again".to_owned(),
        News::Scaled { decision } => decided(&decision, "it"),
        News::BudgetLow { starts, budget } => {
            format!("it has been started {starts} times today, and start_budget_per_day is {budget}")
        }
    }
}

/// A decision about RAM as a sentence, with its figures. `whom` is the platform that it is about.
pub(crate) fn decided(decision: &Decision, whom: &str) -> String {
    let megabytes = |bytes: u64| bytes.div_ceil(MEGABYTE);
    let percent = |permille: u32| format!("{:.1} %", f64::from(permille) / 10.0);
    let figures = &decision.figures;
    let forecast = figures.forecast.map(|ahead| {
        let interval = ahead.interval_permille.map(|(low, high)| format!(", {} to {}", percent(low), percent(high)));
        let (ram, interval) = (percent(ahead.ram_permille), interval.unwrap_or_default());
        format!(", forecast {ram}{interval} by {}", ahead.model.name())
    });
    let (ram, threshold) = (percent(figures.ram_permille), figures.threshold_percent);
    let seen = format!("RAM {ram}{}, threshold {threshold} %", forecast.unwrap_or_default());
    let cause = match figures.cause.map(|cause| cause.shortage) {
        Some(Shortage::Spike { from, to }) => {
            format!("a spike of what platforms weigh, {} to {} MB; ", megabytes(from), megabytes(to))
        }
        Some(Shortage::Forecast { .. }) => "it is forecast; ".to_owned(),
        Some(Shortage::Emergency) => "an emergency; ".to_owned(),
        Some(Shortage::Above) | None => String::new(),
    };
    let seen = format!("{cause}{seen}");
    let turn =
        if figures.cause.is_some_and(|cause| cause.is_out_of_turn) { " before its turn, for it grows" } else { "" };
    let (is, was) = if decision.is_done { ("is", "") } else { ("would have been", "would have ") };
    let stays = if decision.is_done { "does not" } else { "would not" };
    match decision.act {
        Act::Trim if decision.is_done => format!("everybody is asked to give memory back: {seen}"),
        Act::Trim => format!("everybody would have been asked to give memory back: {seen}"),
        Act::Sleep => format!("{whom} {is} put to sleep, for it is idle: {seen}"),
        Act::Shed => format!("{whom} {is} shed{turn}: {seen}"),
        Act::Kill => format!("{whom} {is} killed and shed{turn}: {seen}"),
        Act::Exhausted => format!("nobody is left who may be shed: {seen}"),
        Act::Won { weighed, bytes, .. } => {
            let (more, moved) = if bytes < 0 { ("more", bytes.unsigned_abs()) } else { ("less", bytes.unsigned_abs()) };
            let weighed = if weighed > 0 { format!("; {whom} had {} MB", megabytes(weighed)) } else { String::new() };
            format!("since that step {} MB {more} of RAM are used{weighed}: {seen}", moved / MEGABYTE)
        }
        Act::Restore if decision.is_done => format!("{whom} comes back, for there is RAM again: {seen}"),
        Act::Restore => format!("{whom} {was}come back: {seen}"),
        Act::Wait { missing } => {
            format!("{whom} {stays} come back yet, for {} MB are missing: {seen}", megabytes(missing))
        }
        Act::Delay => format!("{whom} {stays} come back yet, for RAM is forecast to grow: {seen}"),
        Act::Refuse { missing } => {
            let is_not = if decision.is_done { "is not started" } else { "would not have been started" };
            format!("{whom} {is_not}, for {} MB are missing: {seen}", megabytes(missing))
        }
        Act::Postpone { missing } => {
            let is_not = if decision.is_done { "is not started" } else { "would not have been started" };
            let missing = megabytes(missing);
            format!("the new edition of {whom} {is_not} yet, for {missing} MB are missing beside the old one: {seen}")
        }
        Act::Overrule { missing } => {
            format!("{whom} is started or reloaded by hand, though {} MB are missing: {seen}", megabytes(missing))
        }
        Act::Believe(promotion) => promotion.to_string(),
    }
}

/// `why` is the reason in words.
fn state_sentence(was: State, state: State, reason: Reason, why: &str, now: Time) -> String {
    match state {
        State::Asleep => format!("it sleeps: {why}; its next request wakes it"),
        State::Waiting if was.is_alive() => format!("it ended, and waits to be started: {why}"),
        State::Waiting => format!("it waits to be started: {why}"),
        State::Starting => format!("it starts: {why}"),
        State::Ready => format!("it is ready: {why}"),
        State::Draining { .. } => format!("it gets no more requests and is about to end: {why}"),
        State::Stopping { .. } if is_put_down(reason) => format!("it is killed: {why}"),
        State::Stopping { .. } => format!("it is told to end: {why}"),
        State::Backoff { until } => {
            let wait = until.since(now);
            let when = if wait.is_zero() { "at once".to_owned() } else { format!("in {}", span(wait)) };
            format!("it ended: {why}; it is started again {when}")
        }
        State::Stopped => format!("it is stopped: {why}"),
        State::Failed => match remedy(reason) {
            Some(remedy) => format!("it is not started again: {why}; {remedy}"),
            None => format!("it is not started again: {why}"),
        },
        State::Shed => format!("it is shed: {why}; it comes back when there is RAM for it"),
        State::Spare => format!("it has ended: {why}"),
    }
}

/// Whether an instance that has to go for this gets no time for it.
const fn is_put_down(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::MemoryLimit { .. } | Reason::ProcessLimit { .. } | Reason::StartTimeout | Reason::RamEmergency { .. }
    )
}

/// What a person can do about an instance that has failed for this reason.
pub(crate) const fn remedy(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::Exited(Exit::Code(78)) => {
            Some("correct its configuration, then `demi reload` tries it with what is new")
        }
        Reason::BudgetSpent { .. } => Some(
            "it is started when the next day begins (UTC), or by `demi start` while some of the last twentieth is left",
        ),
        _ => None,
    }
}

/// A span for people.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..120 => format!("{:.1} s", span.as_secs_f64()),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use demi_conductor::breaker::{Cause, Mode};
    use demi_conductor::lifecycle::Then;

    const FAILED: Cause = Cause::InARow(Mode::Application);

    fn entry(number: u64) -> Entry {
        Entry { unix_ms: number, instance: Some(0), text: number.to_string() }
    }

    fn logged(count: u64, bytes: usize) -> Chronicle {
        let mut chronicle = Chronicle::default();
        (1..=count).for_each(|number| chronicle.log(number, log::Level::Info, 0, "x".repeat(bytes)));
        chronicle
    }

    fn seqs(page: &LinePage<'_>) -> Vec<u64> {
        page.lines.iter().map(|line| line.seq).collect()
    }

    #[test]
    fn the_newest_events_are_kept_and_told_first() {
        let mut chronicle = Chronicle::new((0..100).map(entry).collect());
        assert_eq!(chronicle.events().count(), EVENTS_MAX);
        chronicle.add(entry(100));
        let times: Vec<u64> = chronicle.events().map(|entry| entry.unix_ms).collect();
        assert_eq!((times.len(), times[0], times[63]), (EVENTS_MAX, 100, 37));
        chronicle.take_back(&entry(99));
        let times: Vec<u64> = chronicle.events().map(|entry| entry.unix_ms).take(2).collect();
        assert_eq!(times, [100, 98]);
    }

    #[test]
    fn log_lines_are_bounded_by_their_number_and_by_their_bytes() {
        let many = logged(1_000, 1);
        assert_eq!((many.lines.len(), many.line_bytes), (LINES_MAX, LINES_MAX));
        let long = logged(100, 8 * 1024);
        assert_eq!((long.lines.len(), long.line_bytes), (8, LINE_BYTES_MAX));
        assert_eq!(long.lines().map(|line| line.seq).collect::<Vec<u64>>(), (93..=100).rev().collect::<Vec<u64>>());
    }

    #[test]
    fn who_follows_the_log_gets_each_line_once_and_is_told_what_is_lost() {
        let mut chronicle = logged(5, 1);
        let page = chronicle.page(None, 2);
        assert_eq!((seqs(&page), page.next, page.dropped), (vec![4, 5], 5, 0));
        let page = chronicle.page(Some(1), 2);
        assert_eq!((seqs(&page), page.next, page.dropped), (vec![2, 3], 3, 0));
        let page = chronicle.page(Some(5), 2);
        assert_eq!((seqs(&page), page.next, page.dropped), (vec![], 5, 0));
        (0..LINES_MAX).for_each(|_| chronicle.log(0, log::Level::Warn, 1, String::new()));
        let page = chronicle.page(Some(3), 1);
        assert_eq!((seqs(&page), page.next, page.dropped), (vec![6], 6, 2));
        // It has read the log of an earlier run of Demi.
        let page = chronicle.page(Some(1_000), 1);
        assert_eq!((seqs(&page), page.dropped), (vec![6], 5));
        let nothing = Chronicle::default();
        assert_eq!(nothing.page(Some(7), 10), LinePage { lines: Vec::new(), next: 0, dropped: 0 });
    }

    #[test]
    fn news_are_told_in_sentences() {
        let now = Time::from_nanos(5_000_000_000);
        let target = |index| ["gateway", "internet"][index as usize];
        let state = |was, state, reason| sentence(&News::State { was, now: state, reason }, now, target);
        let backoff = |seconds: u64| State::Backoff { until: now + Duration::from_secs(seconds) };
        let exited = Reason::Exited(Exit::Code(3));
        for (told, expected) in [
            (state(State::Starting, State::Ready, Reason::HandshakeAnswered), "it is ready: it has started"),
            (state(State::Ready, backoff(1), exited), "it ended: it exited with code 3; it is started again in 1.0 s"),
            (state(State::Ready, backoff(0), exited), "it ended: it exited with code 3; it is started again at once"),
            (
                state(
                    State::Ready,
                    State::Stopping { then: Then::Again },
                    Reason::MemoryLimit { used: 30_000_000, max: 20_000_000 },
                ),
                "it is killed: it used 30 MB of memory, and limits.memory_max_mb is 20",
            ),
            (
                state(
                    State::Ready,
                    State::Stopping { then: Then::Again },
                    Reason::DescriptorLimit { used: 1_000, max: 1_024 },
                ),
                "it is told to end: ",
            ),
            (
                sentence(&News::BreakerOpened { cause: FAILED, until: now + Duration::from_secs(30) }, now, target),
                "its breaker opened for 30.0 s: requests in a row failed",
            ),
            (
                sentence(&News::Unreachable { target: 1 }, now, target),
                "internet cannot be reached: what fails meanwhile is not held against it",
            ),
            (sentence(&News::Reachable { target: 0 }, now, target), "gateway can be reached again"),
            (
                state(State::Backoff { until: now }, State::Waiting, Reason::Unreachable { target: 1 }),
                "it waits to be started: internet, which it lies behind, cannot be reached",
            ),
            (
                sentence(&News::SwapFailed { reason: Reason::HealthFailed }, now, target),
                "a new edition did not take over: its health checks failed; the old one stays",
            ),
        ] {
            assert!(told.starts_with(expected), "{told} is not {expected}");
        }
        let bad = state(State::Starting, State::Failed, Reason::Exited(Exit::Code(78)));
        assert!(bad.contains("78") && bad.contains("demi reload"), "{bad}");
    }

    #[test]
    fn decisions_about_ram_are_told_with_their_figures() {
        use demi_conductor::config::Model;
        use demi_conductor::scaler::{Ahead, Cause, Figures, Step};
        let forecast = Ahead { model: Model::Ols, ram_permille: 843, interval_permille: Some((801, 886)) };
        let figures =
            Figures { ram_permille: 782, forecast: Some(forecast), threshold_percent: 80, ..Figures::default() };
        let of = |act, is_done| decided(&Decision { at: Time::ZERO, platform: Some(0), act, figures, is_done }, "it");
        let seen = "RAM 78.2 %, forecast 84.3 %, 80.1 % to 88.6 % by ols, threshold 80 %";
        assert_eq!(of(Act::Shed, true), format!("it is shed: {seen}"));
        assert_eq!(of(Act::Shed, false), format!("it would have been shed: {seen}"));
        assert_eq!(of(Act::Restore, false), format!("it would have come back: {seen}"));
        let spike = Shortage::Spike { from: 340 * MEGABYTE, to: 690 * MEGABYTE };
        let blamed = Figures { cause: Some(Cause { shortage: spike, is_out_of_turn: true }), ..figures };
        let decision = Decision { at: Time::ZERO, platform: Some(0), act: Act::Shed, figures: blamed, is_done: true };
        let expected =
            format!("it is shed before its turn, for it grows: a spike of what platforms weigh, 340 to 690 MB; {seen}");
        assert_eq!(decided(&decision, "it"), expected);
        let won = Act::Won { step: Step::Shed, weighed: 120 * MEGABYTE, bytes: 100 * MEGABYTE as i64 };
        assert_eq!(of(won, true), format!("since that step 100 MB less of RAM are used; it had 120 MB: {seen}"));
        let wait = Act::Wait { missing: 1 };
        assert_eq!(of(wait, true), format!("it does not come back yet, for 1 MB are missing: {seen}"));
    }

    #[test]
    fn spans_are_as_exact_as_people_want_them() {
        let of = |seconds| span(Duration::from_secs(seconds));
        assert_eq!([of(12), of(600), of(7_300), of(200_000)], ["12.0 s", "10 min", "2 h", "2 days"]);
    }
}
