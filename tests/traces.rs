//! What Demi records of RAM, requests and platforms, as files that are read while it runs and after it ended.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use demi::traces::format::{Entry, Record, Setup, Told};
use demi::traces::{directory, read_last};
use rustix::process::Signal;

use crate::support::{kill, misbehaving, until, Demi};

/// `voice` stays small until its first request, and takes 240 MB then; and so does `photos`, which takes the 80 MB that are too much.
fn with_little_ram() -> Demi {
    let bad = misbehaving();
    Demi::start(&format!(
        r#"scaler: (ram_total_mb: 400, interval_ms: 200, fast_interval_ms: 200, cooldown_ms: 400, calm_ms: 60000,
            smoothing_ms: 1, spike_times: 0, emergency_percent: 100, use_forecasts: false),
        platforms: [
            (name: "echo", host: Inline),
            (name: "files", host: Process(1), command: [{bad:?}, "nothing"], env: {{"TOKEN": "hunter2"}}),
            (name: "voice", host: Process(1), command: [{bad:?}, "hogs", "240"]),
            (name: "photos", host: Process(1), command: [{bad:?}, "hogs", "80"]),
        ],
        routes: [(path: "/echo", to: "echo"), (path: "/talk", to: "voice"), (path: "/look", to: "photos")],"#
    ))
}

fn store(demi: &Demi) -> PathBuf {
    demi.directory.path().join("data")
}

fn entries(demi: &Demi) -> Vec<Entry> {
    read_last(&store(demi), 0).unwrap_or_else(|error| panic!("{error}"))
}

fn setups(entries: &[Entry]) -> Vec<&Setup> {
    let begins = entries.iter().filter_map(|entry| match &entry.told {
        Told::Begin(setup) => Some(&**setup),
        Told::Record(_) => None,
    });
    begins.collect()
}

/// How the only one began: at midnight (UTC) it goes on in another file.
fn the_run(entries: &[Entry]) -> &Setup {
    let setups = setups(entries);
    let (first, later) = setups.split_first().unwrap_or_else(|| panic!("it has begun: {entries:?}"));
    let is_alike = |later: &&Setup| later.continues && later.platforms == first.platforms;
    assert!(later.iter().all(is_alike), "it was one run: {entries:?}");
    first
}

fn state(demi: &Demi, platform: &str) -> String {
    demi.instance(platform, 0)["state"].as_str().unwrap_or_default().to_owned()
}

fn is_in_state(demi: &Demi, platform: &str, wanted: &str) {
    until(&format!("{platform} is {wanted}"), || (state(demi, platform) == wanted).then_some(()));
}

#[test]
fn what_happens_to_ram_requests_and_platforms_is_in_the_file_of_the_day() {
    let mut demi = with_little_ram();
    demi.wait_ready();
    (0..14).for_each(|_| assert_eq!(demi.post("/echo", "hello").status, 200));
    let first = demi.pids("files")[0];
    kill(first, Signal::KILL);
    until("it has another process", || demi.pids("files").first().filter(|pid| **pid != first).copied());
    is_in_state(&demi, "files", "ready");
    assert_eq!(demi.post("/v1/platforms/files/stop", "").status, 202);
    is_in_state(&demi, "files", "stopped");
    demi.post("/talk", "hello");
    let peak_mb = || demi.json("/v1/platforms/voice")["memory_peak_mb"].as_f64();
    until("voice was weighed as it is", || (peak_mb() >= Some(240.0)).then_some(()));
    let uptime = || demi.json("/v1/status")["uptime_s"].as_f64().expect("there is an uptime");
    let weighed_at = uptime();
    until("that was recorded, which it is each second", || (uptime() > weighed_at + 2.0).then_some(()));
    demi.post("/look", "hello");
    is_in_state(&demi, "voice", "shed");
    demi.signal(Signal::TERM);
    assert_eq!(demi.wait().code(), Some(0));

    let entries = entries(&demi);
    let setup = the_run(&entries);
    let names: Vec<&str> = setup.platforms.iter().map(|platform| platform.name.as_str()).collect();
    assert_eq!((names, setup.continues), (vec!["echo", "files", "voice", "photos"], false));
    let told = |is_it: fn(&Record) -> bool| {
        let is_told = entries.iter().any(|entry| matches!(&entry.told, Told::Record(record) if is_it(record)));
        assert!(is_told, "{entries:#?}");
    };
    told(|record| matches!(record, Record::Measured(ram) if ram.total_kb == 400_000 && ram.used_kb > 0));
    told(|record| matches!(record, Record::Weighed { platform: 2, kb: 200_000.., running: 1 }));
    // Of each minute, and it may be that one ended meanwhile.
    let requests_of = |wanted: u32| -> u64 {
        let asked = entries.iter().filter_map(|entry| match entry.told {
            Told::Record(Record::Asked { platform, requests }) if platform == wanted => Some(requests),
            _ => None,
        });
        asked.sum()
    };
    assert_eq!((requests_of(0), requests_of(2)), (14, 1), "{entries:#?}");
    told(|record| *record == Record::State { platform: 1, state: "running" });
    told(|record| *record == Record::State { platform: 1, state: "stopped" });
    told(|record| *record == Record::State { platform: 2, state: "shed" });
    told(|record| *record == Record::Ordered { platform: 1, order: "stop" });
    told(|record| *record == Record::Died { platform: 1 });
    told(|record| matches!(record, Record::Decided { platform: Some(2), act, .. } if act == "shed"));
    let deaths = entries.iter().filter(|entry| matches!(entry.told, Told::Record(Record::Died { .. })));
    assert_eq!(deaths.count(), 1, "what Demi ends does not end by itself");
    assert_eq!(entries.last().map(|entry| &entry.told), Some(&Told::Record(Record::Ended)));
    for file in fs::read_dir(directory(&store(&demi))).expect("it is there").flatten() {
        let text = fs::read_to_string(file.path()).expect("it is text");
        assert!(!text.contains("hunter2") && !text.contains("hogs"), "{text}");
    }
}

#[test]
fn a_run_after_one_that_was_killed_in_the_middle_of_a_line_goes_on_in_the_same_file() {
    let sections = "scaler: (interval_ms: 100, fast_interval_ms: 100),
        platforms: [(name: \"echo\", host: Inline)], routes: [(path: \"/echo\", to: \"echo\")]";
    let mut demi = Demi::start(sections);
    demi.wait_ready();
    // It is read while Demi runs and holds the store.
    until("it has begun", || read_last(&store(&demi), 0).ok());
    demi.signal(Signal::KILL);
    demi.wait();
    let files = || fs::read_dir(directory(&store(&demi))).expect("it is there").flatten().map(|file| file.path());
    let last = files().max().expect("there is one");
    let text = fs::read_to_string(&last).expect("it is text");
    fs::write(&last, text + "m 30000 40000").expect("there is room");
    let before = entries(&demi).len();
    let mut again = Demi::start_in(Arc::clone(&demi.directory), "", sections);
    again.wait_ready();
    until("it has begun again", || (entries(&again).len() > before).then_some(()));
    again.signal(Signal::TERM);
    assert_eq!(again.wait().code(), Some(0));
    let entries = entries(&again);
    let begins = setups(&entries).into_iter().filter(|setup| !setup.continues);
    assert_eq!(begins.count(), 2, "of each run; at midnight (UTC) it goes on in another file");
    assert!(entries.windows(2).all(|pair| pair[0].unix_ms <= pair[1].unix_ms), "{entries:?}");
    assert_eq!(entries.last().map(|entry| &entry.told), Some(&Told::Record(Record::Ended)));
}

#[test]
fn with_no_days_nothing_is_recorded_and_whoever_wants_to_read_is_told_why() {
    let mut demi = Demi::start("scaler: (trace_days: 0), platforms: [(name: \"echo\", host: Inline)]");
    demi.wait_ready();
    demi.signal(Signal::TERM);
    assert_eq!(demi.wait().code(), Some(0));
    assert!(!directory(&store(&demi)).exists());
    let error = read_last(&store(&demi), 0).expect_err("there is nothing").to_string();
    assert!(error.contains("`scaler.trace_days` is above 0"), "{error}");
}
