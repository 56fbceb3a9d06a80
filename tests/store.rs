//! The store as the whole of Demi uses it.

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::support::{until, Demi, Directory, HOSTS};

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
