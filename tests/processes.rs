//! Children that die, freeze, hang and misbehave, and Demi's own beginning and end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{demi_command, is_alive, kill, misbehaving, until, Demi, Directory, Response, PATIENCE};

/// A platform of one child that does what `mode` says; `more` are further fields.
fn plugin(name: &str, mode: &str, more: &str) -> String {
    let words: String = mode.split(' ').map(|word| format!(", {word:?}")).collect();
    format!("(name: {name:?}, host: Process(1), command: [{:?}{words}], {more}),", misbehaving())
}

/// A word in the environment of children, by which they and all that they start are found again.
struct Mark(String);

impl Mark {
    fn new() -> Mark {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Mark(format!("DEMI_TEST_MARK={}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// As a field of a platform.
    fn field(&self) -> String {
        let (name, value) = self.0.split_once('=').expect("a mark has both");
        format!("env: {{{name:?}: {value:?}}}")
    }

    /// The processes that bear it.
    fn bearers(&self) -> Vec<u32> {
        let numbered = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
        let processes = std::fs::read_dir("/proc").expect("Linux has /proc").flatten().filter_map(numbered);
        let bears = |pid: &u32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == self.0.as_bytes())
        };
        processes.filter(bears).filter(|pid| is_alive(*pid)).collect()
    }

    fn wait_for(&self, count: usize) -> Vec<u32> {
        until(&format!("{count} processes bear {}", self.0), || {
            Some(self.bearers()).filter(|bearers| bearers.len() == count)
        })
    }
}

/// A client that keeps its connection.
struct Client(TcpStream);

impl Client {
    fn new(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("Demi accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_nodelay(true).expect("it can be set");
        Client(stream)
    }

    fn send(&mut self, path: &str, body: &str) {
        let length = body.len();
        let text = format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}");
        self.0.write_all(text.as_bytes()).expect("Demi reads");
    }

    fn receive(&mut self) -> Response {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if text.contains("\r\n\r\n") {
                let response = Response::parse(&text);
                let length = response.header("content-length").map_or(0, |text| text.parse().expect("it is a length"));
                if response.body.len() >= length {
                    return response;
                }
            }
            match self.0.read(&mut chunk) {
                Ok(0) => return Response::parse(&text),
                Ok(count) => bytes.extend_from_slice(&chunk[..count]),
                Err(error) => panic!("{error} after {text:?}"),
            }
        }
    }

    fn post(&mut self, path: &str, body: &str) -> Response {
        self.send(path, body);
        self.receive()
    }
}

fn state(demi: &Demi, platform: &str) -> String {
    demi.instance(platform, 0)["state"].as_str().expect("an instance has a state").to_owned()
}

fn run(demi: &Demi, platform: &str) -> u64 {
    demi.instance(platform, 0)["run"].as_u64().expect("an instance has a run")
}

fn why(demi: &Demi, platform: &str) -> String {
    demi.instance(platform, 0)["why"].as_str().expect("an instance says why").to_owned()
}

// ---- children that die or freeze -------------------------------------------------------------------------------

const TWO_CHILDREN: &str = r#"
    restart: (forget_ms: 0),
    platforms: [(name: "child", host: Process(2), command: ["{demi}", "plugin", "serve", "echo"])],
    routes: [(path: "/child", to: "child", retries: 3, idempotent: true)],
"#;

#[test]
fn a_killed_child_is_running_again_under_a_new_number() {
    let demi = Demi::start(TWO_CHILDREN);
    demi.wait_ready();
    let before = demi.pids("child");
    kill(before[0], Signal::KILL);
    until("both children are up and one is new", || {
        let after = demi.pids("child");
        let page = demi.json("/v1/platforms/child");
        let all_ready = page["instances"].as_array()?.iter().all(|instance| instance["state"] == "ready");
        (all_ready && after.len() == 2 && after[0] != before[0] && after[1] == before[1]).then_some(())
    });
    assert_eq!(demi.post("/child", "hello").body, "hello");
    assert!(!is_alive(before[0]));
}

#[test]
fn no_request_fails_while_children_are_killed_in_turn() {
    let demi = Demi::start(TWO_CHILDREN);
    demi.wait_ready();
    let is_over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let clients: Vec<_> = (0..2)
        .map(|number| {
            let (address, is_over, answered) = (demi.address, Arc::clone(&is_over), Arc::clone(&answered));
            std::thread::spawn(move || {
                let mut client = Client::new(address);
                let mut sent = 0;
                while sent < 300 || !is_over.load(Ordering::Relaxed) {
                    let body = format!("{number} {sent}");
                    let response = client.post("/child", &body);
                    assert_eq!((response.status, &response.body), (200, &body), "{response:?}");
                    sent += 1;
                    answered[number].store(sent, Ordering::Relaxed);
                }
                sent
            })
        })
        .collect();
    for round in 0..10 {
        let counts = || [0, 1].map(|number: usize| answered[number].load(Ordering::Relaxed));
        let (before, counts_before) = (demi.pids("child"), counts());
        kill(before[round % 2], Signal::KILL);
        // A request may be tried three times more: on a slow machine one could be hit by four kills.
        until("no request is older than this kill", || {
            assert!(!clients.iter().any(|client| client.is_finished()), "a request failed");
            counts().iter().zip(counts_before).all(|(now, before)| *now > before).then_some(())
        });
        until("both children are up again", || {
            let after = demi.pids("child");
            let page = demi.json("/v1/platforms/child");
            let all_ready = page["instances"].as_array()?.iter().all(|instance| instance["state"] == "ready");
            (all_ready && after.len() == 2 && after[round % 2] != before[round % 2]).then_some(())
        });
    }
    is_over.store(true, Ordering::Relaxed);
    let sent: u32 = clients.into_iter().map(|client| client.join().expect("no request failed")).sum();
    println!("{sent} requests while 10 children were killed");
}

#[test]
fn a_frozen_child_slows_few_requests_and_is_replaced() {
    let demi = Demi::start(
        r#"
        health: (interval_ms: 500, timeout_ms: 300, doubt_interval_ms: 100),
        platforms: [(name: "child", host: Process(2), command: ["{demi}", "plugin", "serve", "echo"], stop_grace_ms: 100)],
        routes: [(path: "/child", to: "child", retries: 3, idempotent: true, attempt_timeout_ms: 1000)],
        "#,
    );
    demi.wait_ready();
    let frozen = demi.pids("child")[0];
    // 500 requests a second for two seconds; the child is frozen after the first half second.
    const CLIENTS: u32 = 10;
    const EACH: u32 = 100;
    let pause = Duration::from_millis(20);
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let address = demi.address;
            std::thread::spawn(move || {
                let mut client = Client::new(address);
                for count in 0..EACH {
                    let due = pause * count + pause * number / CLIENTS;
                    while began.elapsed() < due {
                        std::thread::park_timeout(due - began.elapsed().min(due));
                    }
                    if number == 0 && count == EACH / 4 {
                        kill(frozen, Signal::STOP);
                    }
                    assert_eq!(client.post("/child", "hello").status, 200);
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("no request failed"));
    until("the frozen child is dead", || (!is_alive(frozen)).then_some(()));
    // Those that the frozen one was given wait for their next attempt; how long all others take is up to the machine.
    let page = demi.get("/metrics").body;
    let attempts = page.lines().filter_map(|line| line.strip_prefix("demi_attempts_total{platform=\"child\",outcome="));
    let lost = attempts.filter(|rest| !rest.starts_with("\"replied\""));
    let slow: u32 = lost.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<u32>().ok()).sum();
    println!("{slow} attempts of {} requests were lost", CLIENTS * EACH);
    assert!(slow <= 20, "{slow} requests were slow");
    until("both serve again", || {
        let page = demi.json("/v1/platforms/child");
        page["instances"].as_array()?.iter().all(|instance| instance["state"] == "ready").then_some(())
    });
    let mut seen = std::collections::BTreeSet::new();
    // Idle, the one that spoke last gets everything; several at once are shared.
    let mut clients: Vec<Client> = (0..8).map(|_| Client::new(demi.address)).collect();
    until("both have answered", || {
        clients.iter_mut().for_each(|client| client.send("/child", "hello"));
        for client in &mut clients {
            seen.insert(client.receive().header("demi-instance")?.to_owned());
        }
        (seen.len() == 2).then_some(())
    });
}

// ---- nothing is left behind ------------------------------------------------------------------------------------

#[test]
fn kill_9_of_demi_leaves_no_direct_child_behind() {
    let mut marks = Vec::new();
    for round in 0..20 {
        let mark = Mark::new();
        let sections = format!(
            r#"platforms: [
                (name: "one", host: Process(2), command: ["{{demi}}", "plugin", "serve", "echo"], {field}),
                {ignores}
            ]"#,
            field = mark.field(),
            ignores = plugin("two", "ignores-term", &mark.field()),
        );
        let mut demi = Demi::start(&sections);
        // Every other time it is killed while it is still starting them.
        let children = if round % 2 == 0 {
            demi.wait_ready();
            mark.wait_for(3)
        } else {
            mark.bearers()
        };
        demi.signal(Signal::KILL);
        demi.wait();
        mark.wait_for(0);
        // A process loses its environment, by which its mark is seen, a moment before it is gone.
        until("the children are gone", || children.iter().all(|child| !is_alive(*child)).then_some(()));
        marks.push(mark);
    }
    for mark in marks {
        assert_eq!(mark.bearers(), [0u32; 0]);
    }
}

#[test]
fn what_a_child_started_ends_with_it() {
    let mark = Mark::new();
    let spawner = plugin("spawner", "spawns-child", &mark.field());
    let mut demi = Demi::start(&format!("platforms: [{spawner}], routes: [(path: \"/spawner\", to: \"spawner\")]"));
    demi.wait_ready();
    let grandchild = |demi: &Demi| demi.post("/spawner", "").body.parse::<u32>().expect("it says a number");
    let first = grandchild(&demi);
    assert!(is_alive(first));
    kill(demi.pids("spawner")[0], Signal::KILL);
    until("the grandchild is gone", || (!is_alive(first)).then_some(()));
    until("the child runs again", || (run(&demi, "spawner") == 2 && state(&demi, "spawner") == "ready").then_some(()));
    let second = grandchild(&demi);
    assert!(is_alive(second));
    demi.signal(Signal::TERM);
    assert_eq!(demi.wait().code(), Some(0));
    mark.wait_for(0);
    // A process loses its environment, by which its mark is seen, a moment before it is gone.
    until("the grandchild is gone", || (!is_alive(second)).then_some(()));
}

/// What the descriptors of a process lead to, but for the standard three.
fn descriptors(process: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{process}/fd")).expect("it runs").flatten();
    let beyond = entries.filter(|entry| !["0", "1", "2"].iter().any(|standard| entry.file_name() == *standard));
    beyond.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}

/// What a restarted child has inherited: what its descriptors lead to, and the names in its environment.
fn inheritance() -> (Vec<std::path::PathBuf>, Vec<String>) {
    let demi = Demi::start(
        r#"platforms: [(name: "child", host: Process(1), command: ["{demi}", "plugin", "serve", "echo"], env: {"A": "b"})]"#,
    );
    demi.wait_ready();
    let _clients: Vec<TcpStream> = (0..5).map(|_| demi.connect()).collect();
    let first = demi.pids("child")[0];
    kill(first, Signal::KILL);
    let second = until("it runs again", || demi.pids("child").first().copied().filter(|pid| *pid != first));
    demi.wait_ready();
    let ours = descriptors("self");
    let mut more = descriptors(&second.to_string());
    more.retain(|target| !ours.contains(target));
    let environment = std::fs::read_to_string(format!("/proc/{second}/environ")).expect("it runs");
    let names = environment.split('\0').filter_map(|entry| Some(entry.split_once('=')?.0.to_owned())).collect();
    (more, names)
}

#[test]
fn a_child_inherits_three_descriptors_and_no_environment_but_its_own() {
    // Whoever runs this test may have let a descriptor slip through at one moment; those of Demi itself (its poll, its
    // listener, its clients) would slip through each time.
    let (more, names) = (0..3).map(|_| inheritance()).min_by_key(|(more, _)| more.len()).expect("three are some");
    assert_eq!(more, Vec::<std::path::PathBuf>::new(), "these are Demi's and were inherited");
    assert!(
        names.iter().all(|name| ["A", "PATH", "TMPDIR", "DEMI_INSTANCE", "DEMI_TOKEN"].contains(&name.as_str())),
        "{names:?}"
    );
}

// ---- Demi's own beginning and end ------------------------------------------------------------------------------

#[test]
fn a_second_demi_says_who_holds_the_store_or_the_port() {
    let first = Demi::start("");
    let pid = format!("process {}", first.pid());
    let same_store = first.directory.write("second.ron", "(http: (listen: \"127.0.0.1:0\"), store: (path: \"data\"))");
    let output = demi_command().arg("--config").arg(same_store).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(told.contains(&first.pid().to_string()), "{told}");

    let elsewhere = Directory::new();
    let same_port = format!("(http: (listen: \"{}\"), store: (path: \"data\"))", first.address);
    let output = demi_command().arg("--config").arg(elsewhere.write("c.ron", &same_port)).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{told}");
    assert!(told.contains(&pid), "{told}");
    assert_eq!(first.get("/healthz").status, 200);
}

#[test]
fn a_signal_during_the_start_ends_it() {
    for signal in [Signal::TERM, Signal::INT] {
        let mark = Mark::new();
        let slow = plugin("slow", "slow-start 60000", &mark.field());
        let stubborn = plugin("stubborn", "ignores-term", &format!("{}, stop_grace_ms: 200", mark.field()));
        let mut demi = Demi::start(&format!("platforms: [{slow}{stubborn}]"));
        mark.wait_for(2);
        demi.signal(signal);
        assert_eq!(demi.wait().code(), Some(0));
        assert_eq!(mark.bearers(), [0u32; 0]);
    }
}

#[test]
fn a_signal_at_any_moment_leaves_nothing_behind() {
    let directory = Arc::new(Directory::new());
    let mark = Mark::new();
    let config = directory.write(
        "config.ron",
        &format!(
            r#"(http: (listen: "127.0.0.1:0"), store: (path: "data"), scaler: (enabled: false), platforms: [
                (name: "child", host: Process(3), command: ["{{demi}}", "plugin", "serve", "echo"], {})])"#,
            mark.field()
        ),
    );
    for round in 0..20 {
        let mut process = demi_command().arg("--config").arg(&config).spawn().expect("it runs");
        // The further it gets the later the round.
        for _ in 0..round * 2 {
            std::hint::black_box(std::fs::read_to_string("/proc/self/status").expect("Linux has it"));
            std::thread::park_timeout(Duration::from_micros(500));
        }
        kill(process.id(), Signal::TERM);
        let status = until("Demi ends", || process.try_wait().expect("it is our child"));
        use std::os::unix::process::ExitStatusExt;
        // Before its first line of code nothing has begun, and the signal ends it by itself.
        assert!(status.code() == Some(0) || status.signal() == Some(15), "{status}");
        mark.wait_for(0);
    }
}

#[test]
fn a_signal_during_load_lets_what_is_under_way_be_answered() {
    let mark = Mark::new();
    let slow = plugin("slow", "asks", &mark.field());
    let mut demi = Demi::start(&format!("platforms: [{slow}], routes: [(path: \"/slow\", to: \"slow\")]"));
    demi.wait_ready();
    let go = demi.directory.path().join("go");
    let mut clients: Vec<Client> = (0..3).map(|_| Client::new(demi.address)).collect();
    clients.iter_mut().for_each(|client| client.send("/slow", &format!("wait {}", go.display())));
    until("they are under way", || (demi.instance("slow", 0)["in_flight"] == 3).then_some(()));
    demi.signal(Signal::TERM);
    demi.wait_for_log("no request is admitted any more");
    std::fs::write(&go, "").expect("it can be written");
    for client in &mut clients {
        let response = client.receive();
        assert_eq!((response.status, response.body.as_str()), (200, "it is there"), "{response:?}");
    }
    assert_eq!(demi.wait().code(), Some(0));
    assert_eq!(mark.bearers(), [0u32; 0]);
}

#[test]
fn a_child_that_ignores_term_is_killed_after_its_grace() {
    let mark = Mark::new();
    let stubborn = plugin("stubborn", "ignores-term", &format!("{}, stop_grace_ms: 200", mark.field()));
    let mut demi = Demi::start(&format!("shutdown: (grace_ms: 60000), platforms: [{stubborn}]"));
    demi.wait_ready();
    demi.signal(Signal::TERM);
    assert_eq!(demi.wait().code(), Some(0));
    assert_eq!(mark.bearers(), [0u32; 0]);
}

#[test]
fn the_grace_of_the_whole_end_comes_before_that_of_a_child() {
    let mark = Mark::new();
    let stubborn = plugin("stubborn", "ignores-term", &format!("{}, stop_grace_ms: 600000", mark.field()));
    let mut demi = Demi::start(&format!("shutdown: (grace_ms: 10000), platforms: [{stubborn}]"));
    demi.wait_ready();
    demi.signal(Signal::TERM);
    // A twentieth of the grace is for the store, and a busy disk may need half a second.
    assert_eq!(demi.wait().code(), Some(0));
    mark.wait_for(0);
}

#[test]
fn a_second_signal_hurries_a_hanging_end() {
    let mark = Mark::new();
    let stubborn = plugin("stubborn", "ignores-term", &format!("{}, stop_grace_ms: 600000", mark.field()));
    let mut demi = Demi::start(&format!("shutdown: (grace_ms: 600000), platforms: [{stubborn}]"));
    demi.wait_ready();
    demi.signal(Signal::TERM);
    until("the end has begun", || demi.log().contains("ending: no request").then_some(()));
    assert!(demi.process.try_wait().expect("it is our child").is_none(), "nothing hangs");
    demi.signal(Signal::INT);
    assert_eq!(demi.wait().code(), Some(0));
    assert_eq!(mark.bearers(), [0u32; 0]);
}

#[test]
fn a_platform_starts_after_what_it_needs_and_stops_before_it() {
    let base = plugin("base", "slow-start 2000", "");
    let front = plugin("front", "ignores-term", "needs: [\"base\"], stop_grace_ms: 200");
    let mut demi = Demi::start(&format!("platforms: [{front}{base}]"));
    until("front was seen waiting while base was starting, on one page", || {
        let page = demi.json("/v1/platforms");
        let instance = |name: &str| {
            let platforms = page["platforms"].as_array().or(page.as_array()).expect("it lists platforms");
            let found = platforms.iter().find(|platform| platform["name"] == name);
            found.expect("it is configured")["instances"][0].clone()
        };
        let (base, front) = (instance("base"), instance("front"));
        assert!(base["state"] == "starting" || base["state"] == "waiting", "nobody looked in time: {base}");
        assert_eq!(front["state"], "waiting");
        assert!(front["why"].as_str().is_some_and(|why| why.contains("needs")), "{front}");
        (base["state"] == "starting").then_some(())
    });
    demi.wait_ready();
    demi.signal(Signal::TERM);
    assert_eq!(demi.wait().code(), Some(0));
    let log = demi.log();
    let ended = |name: &str| log.find(&format!("{name}/0: process")).unwrap_or_else(|| panic!("{name} ended:\n{log}"));
    assert!(ended("front") < ended("base"), "{log}");
}

// ---- plugins that misbehave ------------------------------------------------------------------------------------

/// Demi with a platform "bad" that misbehaves and a platform "good" that does not.
fn with_bad(mode: &str, more: &str, route: &str, sections: &str) -> Demi {
    let bad = plugin("bad", mode, more);
    let good = plugin("good", "none", "");
    Demi::start(&format!(
        "platforms: [{bad}{good}], routes: [(path: \"/bad\", to: \"bad\", {route}), (path: \"/good\", to: \"good\")], {sections}"
    ))
}

fn good_answers(demi: &Demi) {
    assert_eq!(demi.post("/good", "still here").body, "still here");
}

#[test]
fn what_a_plugin_prints_is_logged_and_disturbs_nothing() {
    let demi = with_bad("prints", "", "", "");
    demi.wait_ready();
    for count in 0..3 {
        assert_eq!(demi.post("/bad", &format!("{count}")).body, format!("{count}"));
    }
    until("its lines are in the log", || {
        let log = demi.log();
        let lines = ["hello from a plugin that prints", "and this is its stderr", "{\"not\": \"json-rpc\"}"];
        lines.iter().all(|line| log.contains(&format!("bad/0: {line}"))).then_some(())
    });
    assert_eq!(run(&demi, "bad"), 1);
}

#[test]
fn a_plugin_that_says_its_configuration_is_bad_is_not_started_again() {
    let demi = with_bad("exits 78", "", "", "restart: (base_ms: 1, max_ms: 1)");
    until("it has failed", || (state(&demi, "bad") == "failed").then_some(()));
    assert!(why(&demi, "bad").contains("78"), "{}", why(&demi, "bad"));
    until("the other one is up", || (state(&demi, "good") == "ready").then_some(()));
    let refused = demi.post("/bad", "hello");
    assert_eq!(refused.status, 503, "{refused:?}");
    good_answers(&demi);
    assert_eq!((run(&demi, "bad"), state(&demi, "bad")), (1, "failed".to_owned()));
    assert_eq!(demi.get("/readyz").status, 503);
}

#[test]
fn a_plugin_that_ends_again_and_again_is_backed_off_and_the_others_answer() {
    let demi = with_bad("exits 1", "", "", "restart: (base_ms: 20, max_ms: 40)");
    until("the other one is up", || (state(&demi, "good") == "ready").then_some(()));
    until("it was started five times", || {
        good_answers(&demi);
        (run(&demi, "bad") >= 5).then_some(())
    });
    until("it waits for its next start", || {
        let instance = demi.instance("bad", 0);
        let is_told = instance["next"].as_str().is_some_and(|next| next.contains("started again"));
        (instance["state"] == "backoff" && is_told && instance["why"] == "it exited with code 1").then_some(())
    });
}

#[test]
fn a_start_that_takes_too_long_is_ended_and_tried_again() {
    let mark = Mark::new();
    let more = format!("start_timeout_ms: 150, {}", mark.field());
    let demi = with_bad("slow-start 60000", &more, "", "restart: (base_ms: 20, max_ms: 40)");
    until("it was started three times", || (run(&demi, "bad") >= 3).then_some(()));
    until("it says why", || why(&demi, "bad").contains("start_timeout_ms").then_some(()));
    assert!(mark.bearers().len() <= 1, "late starters are still there: {:?}", mark.bearers());
    until("the other one is up", || (state(&demi, "good") == "ready").then_some(()));
    good_answers(&demi);
}

#[test]
fn a_plugin_that_dies_on_a_request_costs_that_request_and_runs_again() {
    let demi = with_bad("dies-on-request", "", "retries: 3", "restart: (forget_ms: 0)");
    demi.wait_ready();
    for round in 1..=3 {
        let broken = demi.post("/bad", "hello");
        assert_eq!(broken.status, 502, "{broken:?}");
        assert_eq!(broken.json()["platform"], "bad");
        until("it runs again", || (run(&demi, "bad") == round + 1 && state(&demi, "bad") == "ready").then_some(()));
    }
    good_answers(&demi);
}

#[test]
fn a_plugin_that_never_answers_times_out_and_is_then_cut_off() {
    // Its only instance is well as far as its health checks can tell, so that alone its breaker does not open.
    let demi = with_bad("never-answers", "", "timeout_ms: 100", "breaker: (platform_failures: 3)");
    demi.wait_ready();
    for _ in 0..3 {
        let asked = Instant::now();
        let late = demi.post("/bad", "hello");
        assert_eq!(late.status, 504, "{late:?}");
        assert!(asked.elapsed() >= Duration::from_millis(100));
    }
    let refused = demi.post("/bad", "hello");
    assert_eq!((refused.status, &refused.json()["code"]), (503, &"breaker_open".into()), "{refused:?}");
    let after: u64 = refused.header("retry-after").and_then(|text| text.parse().ok()).expect("it says when");
    assert!((1..=40).contains(&after), "{after}");
    assert_eq!(demi.instance("bad", 0)["breaker"], "closed");
    good_answers(&demi);
}

#[test]
fn a_plugin_that_sends_a_line_without_end_is_put_down() {
    let demi = with_bad("floods", "", "", "restart: (base_ms: 3600000, max_ms: 3600000)");
    // The first restart is at once, the second in an hour.
    until("it was put down twice", || (run(&demi, "bad") == 2 && state(&demi, "bad") == "backoff").then_some(()));
    assert_eq!(why(&demi, "bad"), "it broke the protocol");
    demi.wait_for_log("bad/0: sent a line that is longer than any answer may be");
    good_answers(&demi);
}

#[test]
fn a_program_that_is_not_there_is_told_and_the_others_run() {
    let demi = Demi::start(&format!(
        r#"platforms: [(name: "bad", host: Process(2), command: ["/nowhere/nothing"]), {}],
        routes: [(path: "/good", to: "good"), (path: "/bad", to: "bad", timeout_ms: 100)]"#,
        plugin("good", "none", "")
    ));
    until("the other one is up", || (state(&demi, "good") == "ready").then_some(()));
    good_answers(&demi);
    until("it is told", || (why(&demi, "bad") == "it could not be started").then_some(()));
    demi.wait_for_log("/nowhere/nothing could not be started: No such file");
    assert_eq!(demi.post("/bad", "hello").status, 503);
}
