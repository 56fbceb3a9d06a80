//! A trace as runs without a gap: curves of RAM and of what platforms weighed, and what happened when.
//!
//! What a platform weighed is a line through what was told of it. A little more or less than before is not told at once, so a small
//! step has come about all the while since the last figure; a large one since the last sample, or that would have told. What
//! starts or ends does so at once, and if it is told in the moment of a sample, after that.

use demi_conductor::config::Host;
use demi_trace::{Entry, Integration, Ram, Record, Setup, Told};

/// So many intervals without a sample are a gap, as for whoever forecasts…
const GAP_INTERVALS: u64 = 4;
/// …of this at least: when a day's trace is nearly full, RAM is recorded so seldom, however often it is measured.
const INTERVAL_MIN_MS: u64 = 30_000;
/// Requests of a minute are spread over it.
const MINUTE_MS: u64 = 60_000;
/// After this an instance is no longer growing to what it weighs when it has just been started.
const SETTLES_MS: u64 = 30_000;
/// A step by this part of the weight is a small one.
const LITTLE: f64 = 0.05;
/// Most requests that are asked one by one; of more than that each stands for several.
const ASKED_MAX: u64 = 500_000;
/// No run gets longer, whatever a trace says: five hundred years, which nanoseconds can still count.
const AT_MS_MAX: u64 = 500 * 366 * 86_400_000;

/// A run of Demi, or the part of one between two gaps. Times are milliseconds since its beginning.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// As it began; those that were found later stand in `happenings`.
    pub(super) setup: Setup,
    /// What ran at its beginning had been started before.
    pub(super) is_cut: bool,
    /// In the order of their times; never empty.
    pub(super) samples: Vec<Sampled>,
    /// What each platform weighed, those that were found later too.
    pub(super) lines: Vec<Line>,
    /// In the order of their times.
    pub(super) happenings: Vec<(u64, Happening)>,
    /// Milliseconds since 1970 at a time: each holds until the next.
    dates: Vec<(u64, u64)>,
}

/// RAM, when it was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampled {
    pub(super) at_ms: u64,
    pub(super) ram: Ram,
    /// What of the used RAM none of the platforms weighed, kB.
    pub(super) background_kb: f64,
}

/// What happened, besides weights and samples.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    /// A platform was found while Demi ran.
    Found(Box<Integration>),
    /// A platform was reloaded, and is another than before in what a reload can change.
    Renewed {
        platform: usize,
        to: Box<Integration>,
    },
    /// A request came, which stands for so many.
    Asked {
        platform: usize,
        worth: u32,
    },
    /// One of those that are written in the trace.
    State {
        platform: usize,
        state: &'static str,
    },
    Ordered {
        platform: usize,
        order: &'static str,
    },
    Died {
        platform: usize,
    },
    /// It was done, too.
    Decided {
        platform: Option<usize>,
        act: String,
        ram_permille: u32,
        threshold_percent: u32,
    },
}

/// What a platform weighed over time.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    points: Vec<Point>,
}

/// What was told of a platform's weight.
#[derive(Clone, Copy, Debug)]
struct Point {
    /// From here on it moved towards this.
    from_ms: u64,
    at_ms: u64,
    /// All instances, and how many ran.
    kb: f64,
    running: u32,
    /// By how much an instance has grown since the beginning of the line, starts and ends left out.
    growth_kb: f64,
    /// When what runs was started, if that is known.
    started_ms: Option<u64>,
}

impl Point {
    fn of_each(&self) -> f64 {
        self.kb / f64::from(self.running.max(1))
    }
}

/// A platform's weight at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weighed {
    /// Of all instances, and of each, kB.
    pub(super) kb: f64,
    pub(super) each_kb: f64,
    pub(super) running: u32,
    /// See the point.
    pub(super) growth_kb: f64,
    pub(super) started_ms: Option<u64>,
}

impl Line {
    /// At a time. `place` is where the last look was, and the next one must not be earlier.
    pub(super) fn at(&self, at_ms: u64, place: &mut usize) -> Weighed {
        while self.points.get(*place + 1).is_some_and(|next| next.at_ms <= at_ms) {
            *place += 1;
        }
        let next = self.points.get(*place + 1);
        let Some(point) = self.points.get(*place).filter(|point| point.at_ms <= at_ms) else {
            return Weighed::default();
        };
        let mut weighed = Weighed {
            kb: point.kb,
            each_kb: point.of_each(),
            running: point.running,
            growth_kb: point.growth_kb,
            started_ms: point.started_ms,
        };
        let Some(next) = next else { return weighed };
        if point.running > 0 && point.kb == 0.0 {
            // It had not been weighed yet.
            (weighed.kb, weighed.each_kb) = (next.kb, next.of_each());
            return weighed;
        }
        if point.running > 0 && at_ms > next.from_ms {
            let part = (at_ms - next.from_ms) as f64 / (next.at_ms - next.from_ms).max(1) as f64;
            let between = |from: f64, to: f64| from + (to - from) * part;
            weighed.kb = between(weighed.kb, next.kb);
            weighed.each_kb = between(weighed.each_kb, next.of_each());
            weighed.growth_kb = between(weighed.growth_kb, next.growth_kb);
        }
        weighed
    }

    /// When something of it is started next, after a time at which a look found `place`.
    pub(super) fn next_start(&self, at_ms: u64, place: usize) -> Option<u64> {
        self.points.get(place..)?.iter().filter_map(|point| point.started_ms).find(|started_ms| *started_ms > at_ms)
    }

    /// Whether instances ran when it begins.
    pub(super) fn is_running_first(&self) -> bool {
        self.points.first().is_some_and(|point| point.running > 0 && point.started_ms.is_none())
    }

    /// What an instance weighs that has just been started, if that was seen: the least at the end of its first half minute.
    fn young_kb(&self) -> Option<f64> {
        let mut least: Option<f64> = None;
        for (index, point) in self.points.iter().enumerate() {
            let Some(started_ms) = point.started_ms.filter(|_| point.running > 0 && point.kb > 0.0) else { continue };
            let is_young =
                |point: &Point| point.started_ms == Some(started_ms) && point.at_ms <= started_ms + SETTLES_MS;
            let is_last = !self.points.get(index + 1).is_some_and(|next| is_young(next) && next.running > 0);
            if is_young(point) && is_last {
                least = Some(least.map_or(point.of_each(), |least| least.min(point.of_each())));
            }
        }
        least
    }

    fn least_kb(&self) -> Option<f64> {
        let weights = self.points.iter().filter(|point| point.running > 0 && point.kb > 0.0).map(Point::of_each);
        weights.min_by(f64::total_cmp)
    }
}

impl Run {
    /// Where a time lies among the dates: milliseconds since 1970.
    pub(super) fn date(&self, at_ms: u64) -> u64 {
        let place = self.dates.partition_point(|(from, _)| *from <= at_ms).saturating_sub(1);
        let (from, unix_ms) = self.dates[place];
        unix_ms + at_ms.saturating_sub(from)
    }

    /// When the last sample was taken.
    pub(super) fn end_ms(&self) -> u64 {
        self.samples.last().map_or(0, |sample| sample.at_ms)
    }

    /// RAM and background at a time, on the line between two samples. `place` as for a line.
    pub(super) fn ram_at(&self, at_ms: u64, place: &mut usize) -> Sampled {
        while self.samples.get(*place + 1).is_some_and(|next| next.at_ms <= at_ms) {
            *place += 1;
        }
        let sample = self.samples[*place];
        let Some(next) = self.samples.get(*place + 1).filter(|_| at_ms > sample.at_ms) else {
            return Sampled { at_ms, ..sample };
        };
        let part = (at_ms - sample.at_ms) as f64 / (next.at_ms - sample.at_ms) as f64;
        let between = |from: u64, to: u64| (from as f64 + (to as f64 - from as f64) * part) as u64;
        let used_kb = between(sample.ram.used_kb, next.ram.used_kb).min(sample.ram.total_kb);
        let background_kb = sample.background_kb + (next.background_kb - sample.background_kb) * part;
        Sampled { at_ms, ram: Ram { used_kb, ..sample.ram }, background_kb }
    }
}

/// What an instance of each platform, by its name, weighs when it has just been started, kB.
pub(super) fn bases(runs: &[Run], names: &[String]) -> Vec<f64> {
    let base = |name: &String| {
        let lines = || {
            runs.iter().filter_map(|run| {
                let place = run.names().position(|other| other == name)?;
                run.lines.get(place)
            })
        };
        let least = |of: fn(&Line) -> Option<f64>| lines().filter_map(of).min_by(f64::total_cmp);
        least(Line::young_kb).or_else(|| least(Line::least_kb)).unwrap_or(0.0)
    };
    names.iter().map(base).collect()
}

impl Run {
    /// Of its platforms, those that were found later too.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        let found = self.happenings.iter().filter_map(|(_, happening)| match happening {
            Happening::Found(platform) => Some(&platform.name),
            _ => None,
        });
        self.setup.platforms.iter().map(|platform| &platform.name).chain(found)
    }
}

/// The runs of a trace. A part without samples is left out.
pub(super) fn runs(entries: &[Entry]) -> Vec<Run> {
    let requests = entries.iter().map(|entry| match entry.told {
        Told::Record(Record::Asked { requests, .. }) => u128::from(requests),
        _ => 0,
    });
    let worth = requests.sum::<u128>().div_ceil(u128::from(ASKED_MAX)).max(1);
    // Of more than that there is one for each line, which is the least.
    let worth = u64::try_from(worth).unwrap_or(u64::MAX);
    let mut reader = Reader { worth, done: Vec::new(), building: None };
    for entry in entries {
        reader.take(entry);
    }
    reader.finish();
    reader.done
}

struct Reader {
    /// So many requests are one that is asked.
    worth: u64,
    done: Vec<Run>,
    building: Option<Building>,
}

struct Building {
    run: Run,
    at_ms: u64,
    unix_ms: u64,
    /// All platforms, as they are now.
    platforms: Vec<Integration>,
    /// The platforms of the last `begin`, as places in this run.
    places: Vec<usize>,
    states: Vec<&'static str>,
    /// Since when there is each.
    found_ms: Vec<u64>,
    /// Something told that what runs of it is another than before.
    is_new: Vec<bool>,
    last_sample_ms: Option<u64>,
    /// Nothing but weights has been told since the last sample.
    is_sampled: bool,
}

impl Reader {
    fn take(&mut self, entry: &Entry) {
        match &entry.told {
            Told::Begin(setup) => match &mut self.building {
                Some(building) if building.can_go_on(entry.unix_ms, setup) => {
                    building.pass(entry.unix_ms);
                    building.goes_on(setup);
                }
                Some(_) | None => {
                    self.finish();
                    self.building = Some(Building::new((**setup).clone(), entry.unix_ms, setup.continues));
                }
            },
            Told::Record(record) => {
                let Some(building) = &mut self.building else { return };
                building.pass(entry.unix_ms);
                if matches!(record, Record::Measured(_)) && building.is_gap(building.at_ms) {
                    let next = building.after_gap();
                    self.finish();
                    self.building = Some(next);
                }
                let Some(building) = &mut self.building else { return };
                building.record(record, self.worth);
            }
        }
    }

    fn finish(&mut self) {
        let Some(Building { mut run, .. }) = self.building.take() else { return };
        if run.samples.is_empty() {
            return;
        }
        let mut places = vec![0; run.lines.len()];
        for sample in &mut run.samples {
            let lines = run.lines.iter().zip(&mut places);
            let weighed: f64 = lines.map(|(line, place)| line.at(sample.at_ms, place).kb).sum();
            // Below zero where platforms share what each of them is said to weigh.
            sample.background_kb = sample.ram.used_kb as f64 - weighed;
        }
        let end_ms = run.end_ms();
        run.happenings.retain(|(at_ms, _)| *at_ms <= end_ms);
        run.happenings.sort_by_key(|(at_ms, _)| *at_ms);
        self.done.push(run);
    }
}

impl Building {
    fn new(setup: Setup, unix_ms: u64, is_cut: bool) -> Building {
        let count = setup.platforms.len();
        Building {
            at_ms: 0,
            unix_ms,
            platforms: setup.platforms.clone(),
            places: (0..count).collect(),
            states: vec!["asleep"; count],
            found_ms: vec![0; count],
            is_new: vec![!is_cut; count],
            last_sample_ms: None,
            is_sampled: false,
            run: Run {
                setup,
                is_cut,
                samples: Vec::new(),
                lines: vec![Line::default(); count],
                happenings: Vec::new(),
                dates: vec![(0, unix_ms)],
            },
        }
    }

    /// Where in the run a date lies that is not before the last.
    fn moved(&self, unix_ms: u64) -> u64 {
        self.at_ms.saturating_add(unix_ms.saturating_sub(self.unix_ms)).min(AT_MS_MAX)
    }

    fn pass(&mut self, unix_ms: u64) {
        self.at_ms = self.moved(unix_ms);
        self.unix_ms = unix_ms;
    }

    fn is_gap(&self, at_ms: u64) -> bool {
        let interval_ms = self.run.setup.scaler.interval_ms.value().max(INTERVAL_MIN_MS);
        at_ms - self.last_sample_ms.unwrap_or(0) > interval_ms * GAP_INTERVALS
    }

    /// The same platforms, from here on.
    fn after_gap(&self) -> Building {
        let setup = Setup { platforms: self.platforms.clone(), unix_ms: self.unix_ms, ..self.run.setup.clone() };
        let mut next = Building::new(setup, self.unix_ms, true);
        for (place, line) in self.run.lines.iter().enumerate() {
            if let Some(last) = line.points.last() {
                next.weigh(place, last.kb, last.running);
            }
        }
        next.places.clone_from(&self.places);
        next.states.clone_from(&self.states);
        next
    }

    /// Whether a run that begins then is this one still: it says so, there is no gap, and nothing has changed but what a reload
    /// can change.
    fn can_go_on(&self, unix_ms: u64, setup: &Setup) -> bool {
        let is_alike = |platform: &Integration| {
            let known = self.platforms.iter().find(|known| known.name == platform.name);
            known.is_none_or(|known| known == platform || is_reloaded(known, platform))
        };
        setup.continues
            && !self.is_gap(self.moved(unix_ms))
            && setup.scaler == self.run.setup.scaler
            && setup.platforms.iter().all(is_alike)
    }

    fn goes_on(&mut self, setup: &Setup) {
        self.run.dates.push((self.at_ms, self.unix_ms));
        self.places.clear();
        for platform in &setup.platforms {
            let known = self.platforms.iter().position(|known| known.name == platform.name);
            self.places.push(known.unwrap_or(self.platforms.len()));
            let to = Box::new(platform.clone());
            match known {
                Some(known) if self.platforms[known] == *platform => continue,
                Some(known) => {
                    self.platforms[known] = platform.clone();
                    self.run.happenings.push((self.at_ms, Happening::Renewed { platform: known, to }));
                }
                None => {
                    self.platforms.push(platform.clone());
                    self.run.lines.push(Line::default());
                    self.states.push("asleep");
                    self.found_ms.push(self.at_ms);
                    self.is_new.push(true);
                    self.run.happenings.push((self.at_ms, Happening::Found(to)));
                }
            }
        }
    }

    fn record(&mut self, record: &Record, worth: u64) {
        if !matches!(record, Record::Measured(_) | Record::Weighed { .. }) {
            self.is_sampled = false;
        }
        let place = |platform: u32| self.places.get(platform as usize).copied();
        match record {
            Record::Measured(ram) => {
                (self.last_sample_ms, self.is_sampled) = (Some(self.at_ms), true);
                self.run.samples.push(Sampled { at_ms: self.at_ms, ram: *ram, background_kb: 0.0 });
            }
            Record::Weighed { platform, kb, running } => {
                let Some(place) = place(*platform) else { return };
                self.weigh(place, *kb as f64, *running);
            }
            Record::Asked { platform, requests } => {
                let Some(place) = place(*platform) else { return };
                self.ask(place, *requests, worth);
            }
            Record::State { platform, state } => {
                let Some(place) = place(*platform) else { return };
                let was = std::mem::replace(&mut self.states[place], state);
                let has_ended = !matches!(*state, "running" | "starting" | "draining");
                if has_ended && self.run.lines[place].points.last().is_some_and(|last| last.running > 0) {
                    self.weigh(place, 0.0, 0);
                }
                self.is_new[place] |= *state == "starting" && was != "starting";
                self.run.happenings.push((self.at_ms, Happening::State { platform: place, state }));
            }
            Record::Ordered { platform, order } => {
                let Some(platform) = place(*platform) else { return };
                self.run.happenings.push((self.at_ms, Happening::Ordered { platform, order }));
            }
            Record::Died { platform } => {
                let Some(platform) = place(*platform) else { return };
                self.is_new[platform] = true;
                self.run.happenings.push((self.at_ms, Happening::Died { platform }));
            }
            // Traces of before tell only by the settings that nothing was done.
            Record::Decided { is_done, .. } if !is_done || self.run.setup.scaler.forecast_only => {}
            Record::Decided { platform, act, ram_permille, threshold_percent, .. } => {
                let platform = platform.and_then(place);
                let (act, ram_permille, threshold_percent) = (act.clone(), *ram_permille, *threshold_percent);
                let decided = Happening::Decided { platform, act, ram_permille, threshold_percent };
                self.run.happenings.push((self.at_ms, decided));
            }
            Record::Clock(unix_ms) => {
                self.unix_ms = *unix_ms;
                self.run.dates.push((self.at_ms, *unix_ms));
            }
            Record::Ended => {}
        }
    }

    fn weigh(&mut self, place: usize, kb: f64, running: u32) {
        let points = &mut self.run.lines[place].points;
        let last = points.last().copied();
        let is_after_sample = self.last_sample_ms == Some(self.at_ms) && !self.is_sampled;
        let at_ms = (self.at_ms + u64::from(is_after_sample)).max(last.map_or(0, |last| last.at_ms));
        let is_same = last.is_some_and(|last| last.running > 0 && running > 0) && !self.is_new[place];
        let mut point = Point { from_ms: at_ms, at_ms, kb, running, growth_kb: 0.0, started_ms: None };
        if let Some(last) = last {
            let is_alike = is_same && last.running == running;
            // What has just been started comes to weigh what it does, and has not been weighed at first.
            let is_settled = last.kb > 0.0 && last.started_ms.is_none_or(|started| last.at_ms >= started + SETTLES_MS);
            let more = if is_alike && is_settled { point.of_each() - last.of_each() } else { 0.0 };
            point.growth_kb = last.growth_kb + more;
            if is_alike && (kb - last.kb).abs() <= last.kb * LITTLE {
                point.from_ms = last.at_ms;
            } else if is_alike {
                let mut earlier = self.run.samples.iter().rev().map(|sample| sample.at_ms);
                point.from_ms = earlier.find(|before| *before < at_ms).unwrap_or(0).max(last.at_ms);
            }
        }
        if running > 0 {
            let is_first_of_cut = last.is_none() && self.run.is_cut && !self.is_new[place];
            point.started_ms = match last {
                Some(last) if is_same => last.started_ms,
                _ if is_first_of_cut => None,
                _ => Some(at_ms),
            };
            self.is_new[place] = false;
        }
        if last.is_some_and(|last| last.at_ms == at_ms) {
            points.pop();
        }
        points.push(point);
    }

    fn ask(&mut self, platform: usize, requests: u64, worth: u64) {
        let count = (requests / worth).max(u64::from(requests > 0));
        for number in 0..count {
            let before = MINUTE_MS * (2 * number + 1) / (2 * count);
            let at_ms = self.at_ms.saturating_sub(before).max(self.found_ms[platform]);
            // What does not divide goes with the first.
            let rest = if number == 0 { requests - requests / count * count } else { 0 };
            let worth = u32::try_from(requests / count + rest).unwrap_or(u32::MAX);
            self.run.happenings.push((at_ms, Happening::Asked { platform, worth }));
        }
    }
}

/// Whether a reload can have made the one of the other. Anything else takes another Demi.
fn is_reloaded(was: &Integration, is: &Integration) -> bool {
    let is_child = matches!(is.host, Host::Process(_) | Host::Mcp(_));
    is_child && was.host == is.host && was.needs == is.needs
}
