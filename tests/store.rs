//! The store as the whole of Demi uses it.

use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::process::Signal;

use crate::support::{demi_command, until, Demi, Directory, HOSTS};

/// Nothing listens there: every request fails at once and is kept.
const LOST: &str = "platforms: [(name: \"lost\", host: Http, upstreams: [\"127.0.0.1:9\"])],
    routes: [(path: \"/lost\", to: \"lost\", on_failure: DeadLetter)]";

/// Requests on one connection, and the connections.
const PIPELINED: usize = 20;
const CLIENTS: usize = 16;

/// Demi's own count.
fn count(demi: &Demi, metric: &str) -> usize {
    let page = demi.get("/metrics").body;
    let line = page.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{metric} is not on the page"))
}

/// Has a client send many requests at once.
fn send(demi: &Demi) -> TcpStream {
    let mut stream = demi.connect();
    let request = "POST /lost HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";
    stream.write_all(request.repeat(PIPELINED).as_bytes()).expect("Demi reads");
    stream
}

#[test]
fn many_that_come_at_once_are_made_durable_by_one_fdatasync_and_none_without() {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        // Not by a macro: what those print is shown only of tests that fail.
        let _ = writeln!(std::io::stderr(), "skipped: strace is not installed");
        return;
    }
    let directory = Arc::new(Directory::new());
    let trace = directory.path().join("trace");
    let text = format!("(http: (listen: \"127.0.0.1:0\", {HOSTS}), store: (path: \"data\"), {LOST})");
    let config = directory.write("config.ron", &text);
    // -D: Demi is our child and the tracer is not in its way.
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-e", "trace=fdatasync", "-o"]).arg(&trace).arg(env!("CARGO_BIN_EXE_demi"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let demi = Demi::start_command(command, directory, &config);
    let synced = || {
        let trace = std::fs::read_to_string(&trace).unwrap_or_default();
        // One that another thread interrupts takes two lines, of which only the last has a result.
        trace.lines().filter(|line| line.contains("fdatasync") && line.ends_with("= 0")).count()
    };
    let begin = synced();
    let clients: Vec<TcpStream> = (0..CLIENTS).map(|_| send(&demi)).collect();
    let all = PIPELINED * CLIENTS;
    until("every request is kept", || (demi.json("/v1/status")["dead_letters"] == all).then_some(()));
    let (syncs, errands) = (count(&demi, "demi_store_syncs_total"), count(&demi, "demi_store_synced_total"));
    assert_eq!(errands, all, "each of them waited for a sync");
    assert!((1..errands).contains(&syncs), "{syncs} syncs of {errands} errands");
    until("strace has written what it saw", || (synced() - begin >= syncs).then_some(()));
    drop(clients);
}

#[test]
fn what_a_platform_did_is_still_known_after_a_restart() {
    let sections = "platforms: [(name: \"echo\", host: Inline)], routes: [(path: \"/echo\", to: \"echo\")]";
    let mut demi = Demi::start(sections);
    demi.wait_ready();
    (0..5).for_each(|_| assert_eq!(demi.post("/echo", "hello").status, 200));
    demi.signal(Signal::TERM);
    demi.wait();
    let demi = Demi::start_in(Arc::clone(&demi.directory), "", sections);
    let page = demi.json("/v1/metrics/history?platform=echo&from=-1h&step=1h");
    let points = page["points"].as_array().expect("there are points");
    // The hour before and the present one, as the case may be: five in all.
    let sum = |column: &str| points.iter().filter_map(|point| point[column].as_u64()).sum::<u64>();
    assert_eq!((sum("request_count"), sum("error_count")), (5, 0), "{page}");
    assert!(points.iter().any(|point| point["response_time_ms"].as_f64().is_some_and(|mean| mean > 0.0)), "{page}");
    let told =
        demi_command().args(["history", "echo", "--address", &demi.address.to_string()]).output().expect("it runs");
    let table = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(table.starts_with("echo, each line 15 min\nFROM (UTC)"), "{table}");
    for (query, status) in [("platform=nobody", 404), ("", 400), ("platform=echo&from=-30d&step=60", 400)] {
        assert_eq!(demi.get(&format!("/v1/metrics/history?{query}")).status, status, "{query}");
    }
}

/// A disk of its own, gone with the test.
struct Disk(PathBuf);

impl Disk {
    /// A new one in this directory, mounted as `data`; `None` if none may be mounted here, which is told.
    fn mount(directory: &Directory, options: &str) -> Option<Disk> {
        let path = directory.path().join("data");
        std::fs::create_dir(&path).expect("it is not there");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            let _ = writeln!(std::io::stderr(), "skipped: no disk may be mounted here");
            return None;
        }
        Some(Disk(path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_read_only_disk_is_refused_at_the_start_with_the_remedy() {
    let directory = Directory::new();
    let Some(_disk) = Disk::mount(&directory, "ro") else { return };
    let text = "(http: (listen: \"127.0.0.1:0\"), store: (path: \"data\"))";
    let output = demi_command().arg("--config").arg(directory.write("config.ron", text)).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(told.contains("is on a read-only file system; mount it writable"), "{told}");
}

#[test]
fn a_full_disk_is_told_once_and_shown_until_there_is_room_again() {
    let directory = Arc::new(Directory::new());
    let Some(disk) = Disk::mount(&directory, "size=8m") else { return };
    let mut demi = Demi::start_in(Arc::clone(&directory), "", LOST);
    assert_eq!(demi.post("/lost", "first").json()["dead_letter"], 1);
    assert_eq!(demi.json("/v1/status")["store"], "ok");
    let filler = disk.0.join("filler");
    let mut file = std::fs::File::create(&filler).expect("there is room for an empty file");
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    let body = "x".repeat(100_000);
    let lost = demi.post("/lost", &body);
    assert!(lost.status == 502 || lost.status == 503, "{lost:?}");
    assert!(lost.body.contains("it could not be kept as a dead letter"), "{lost:?}");
    let why = until("it is shown", || {
        let store = demi.json("/v1/status")["store"].as_str().map(str::to_owned)?;
        (store != "ok").then_some(store)
    });
    assert!(why.contains("no space left"), "{why}");
    let ready = demi.get("/readyz");
    assert!(ready.status == 503 && ready.body.contains("the store is shut: no space left"), "{ready:?}");
    (0..20).for_each(|_| drop(demi.post("/lost", &body)));
    let is_told = |line: &&str| line.contains("ERROR") && line.contains("no space left");
    until("it is told", || demi.log().lines().find(is_told).map(|_| ()));
    std::fs::remove_file(&filler).expect("it is there");
    until("it works again", || (demi.json("/v1/status")["store"] == "ok").then_some(()));
    assert_ne!(demi.post("/lost", "last").json()["dead_letter"], serde_json::Value::Null);
    assert_eq!(demi.json("/v1/dead-letters/1")["body"], "first");
    demi.signal(Signal::TERM);
    demi.wait();
    assert_eq!(demi.log().lines().filter(is_told).count(), 1, "{}", demi.log());
}

#[test]
fn when_the_day_s_bytes_are_written_only_what_must_not_be_lost_still_is() {
    let directory = Arc::new(Directory::new());
    let store = "store: (path: \"data\", bytes_per_day_max: 1)";
    let text = format!("(http: (listen: \"127.0.0.1:0\", {HOSTS}), {store}, {LOST})");
    let config = directory.write("config.ron", &text);
    let mut demi = Demi::start_from(Arc::clone(&directory), &config);
    if !std::fs::read_to_string("/proc/self/io").is_ok_and(|text| text.contains("write_bytes")) {
        let _ = writeln!(std::io::stderr(), "skipped: this kernel does not count what is written");
        return;
    }
    let mut letter = 0;
    until("a byte was written", || {
        letter += 1;
        assert_eq!(demi.post("/lost", "hello").json()["dead_letter"], letter);
        demi.json("/v1/status")["store"].as_str()?.contains("bytes_per_day_max").then_some(())
    });
    assert_eq!(demi.post("/lost", "hello").json()["dead_letter"], letter + 1, "a dead letter must not be lost");
    let is_told =
        |line: &&str| line.contains("ERROR") && line.contains("`store.bytes_per_day_max` (1) was written today");
    assert!(!demi.get("/readyz").body.contains("store"), "nothing is wrong with it");
    demi.signal(Signal::TERM);
    demi.wait();
    assert_eq!(demi.log().lines().filter(is_told).count(), 1, "{}", demi.log());
}
