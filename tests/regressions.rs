//! Faults that were found once: one test each.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::embedding::{reactor, Hosted, LET_GO};
use crate::proxying::Upstream;
use crate::support::{demi_command, kill, misbehaving, until, Demi, Directory, PATIENCE};

#[test]
fn an_inline_platform_that_panics_in_its_shutdown_or_drop_ends_nothing_but_itself() {
    let hosted = Hosted::start(
        "platforms: [(name: \"bitter\", host: Inline)], routes: [(to: \"bitter\")], restart: (forget_ms: 0)",
    );
    assert_eq!(hosted.say("panic").0, 502);
    until("it has started again", || (hosted.instance("bitter", 0)["run"] == 2).then_some(()));
    assert_eq!(hosted.say("hello").0, 200);
    assert_eq!(hosted.end(), 0);
}

#[test]
fn a_worker_whose_platform_panics_when_dropped_is_started_again() {
    let hosted = Hosted::start(
        "platforms: [(name: \"bitter\", host: Threads(1))], routes: [(to: \"bitter\")], restart: (forget_ms: 0)",
    );
    assert_eq!(hosted.say("panic").0, 502);
    until("it answers again", || (hosted.say("hello").0 == 200).then_some(()));
    assert_eq!(hosted.end(), 0);
}

#[test]
fn a_worker_that_lets_go_after_it_was_given_up_does_not_count_as_left_behind() {
    let hosted = Hosted::start(
        r#"platforms: [(name: "moody", host: Threads(1), wedged_ms: 100, stop_grace_ms: 0)],
        routes: [(to: "moody", timeout_ms: 1)], restart: (forget_ms: 0), breaker: (failures: 1000)"#,
    );
    // More often than a slot may leave threads behind for good.
    for run in 2..12 {
        assert_eq!(hosted.say("dawdle").0, 504);
        until("it was replaced", || {
            let instance = hosted.instance("moody", 0);
            (instance["run"] == run && instance["state"] == "ready").then_some(())
        });
        LET_GO.fetch_add(1, Ordering::SeqCst);
    }
    assert_eq!(hosted.end(), 0);
}

#[test]
fn a_plugin_that_prints_lines_without_end_fills_neither_the_log_nor_the_reactor_s_time() {
    let flood = "yes & yes >&2";
    let demi = Demi::start(&format!(
        r#"platforms: [(name: "flood", host: Process(1), command: ["sh", "-c", "{flood}"]), (name: "echo", host: Inline)],
        routes: [(to: "echo")]"#
    ));
    let mut answers = 0;
    // At the end of each second in which lines were dropped, that is told once.
    until("some were answered while lines were dropped for some seconds, and that was told", || {
        assert_eq!(demi.post("/v1/requests", r#"{"content":"hello"}"#).body, "hello");
        answers += 1;
        (answers > 5 && demi.log().matches("more lines were dropped").count() >= 3).then_some(())
    });
    assert!(demi.log().len() < 8 << 20, "{} bytes of log", demi.log().len());
}

#[test]
fn whoever_closes_stdout_early_meets_no_panic() {
    for arguments in [&["--help"][..], &["--version"]] {
        let (reader, writer) = std::io::pipe().expect("there is a pipe to have");
        drop(reader);
        let output = demi_command().args(arguments).stdout(writer).output().expect("it runs");
        assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]), "{arguments:?}");
        let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
        let output = demi_command().args(arguments).stdout(full).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    }
}

#[test]
fn a_body_that_json_must_escape_reaches_a_process_and_comes_back() {
    let demi = Demi::start(
        r#"platforms: [(name: "child", host: Process(1), command: ["{demi}", "plugin", "serve", "echo"], in_flight_max: 1)],
        routes: [(path: "/child", to: "child", timeout_ms: 3600000)]"#,
    );
    demi.wait_ready();
    for body in ["\0", "\u{1f}", "\"", "\\", "\n", "\u{fc}"] {
        let body = body.repeat((1 << 20) / body.len());
        let response = demi.post("/child", &body);
        assert!(response.status == 200 && response.body == body, "{} {}", response.status, response.body.len());
    }
    assert_eq!(demi.instance("child", 0)["run"], 1, "the child was not put down");
}

#[test]
fn a_body_as_long_as_the_configuration_allows_reaches_a_process() {
    let demi = Demi::start_with_http(
        "body_bytes_max: 8388608, bodies_bytes_max: 67108864",
        r#"platforms: [(name: "child", host: Process(1), command: ["{demi}", "plugin", "serve", "echo"], in_flight_max: 1)],
        routes: [(path: "/child", to: "child", timeout_ms: 3600000)]"#,
    );
    demi.wait_ready();
    let body = "\"".repeat(8 << 20);
    let response = demi.post("/child", &body);
    assert!(response.status == 200 && response.body == body, "{} {}", response.status, response.body.len());
    assert_eq!(demi.instance("child", 0)["run"], 1, "the child was not put down");
}

#[test]
fn a_request_that_is_too_long_for_a_process_is_refused_and_the_process_lives() {
    let hosted = Hosted::start(
        r#"platforms: [(name: "child", host: Process(1), command: ["{demi}", "plugin", "serve", "echo"])], routes: [(to: "child")]"#,
    );
    let (status, problem) = hosted.say(&"x".repeat(4 << 20));
    assert_eq!(status, 400, "{problem}");
    assert!(problem.contains("too long for a process"), "{problem}");
    assert_eq!(hosted.say("hello"), (200, "hello".to_owned()));
    assert_eq!(hosted.instance("child", 0)["run"], 1, "the child was not put down");
    assert_eq!(hosted.end(), 0);
}

#[test]
fn a_process_is_given_time_for_its_shutdown() {
    let mut demi = Demi::start(&format!(
        r#"platforms: [(name: "slow", host: Process(1), command: [{:?}, "slow-goodbye", "300"], stop_grace_ms: 20000)]"#,
        misbehaving()
    ));
    demi.wait_ready();
    demi.signal(Signal::TERM);
    assert_eq!(demi.wait().code(), Some(0));
    for line in ["slow/0: goodbye", "ended: exit status: 0"] {
        assert!(demi.log().contains(line), "{}", demi.log());
    }
}

#[test]
fn a_process_that_does_not_listen_is_sent_term_long_before_its_grace_is_over() {
    let mut demi = Demi::start(
        r#"shutdown: (grace_ms: 3600000),
        platforms: [(name: "deaf", host: Process(1), command: ["sleep", "1000"], stop_grace_ms: 3600000)]"#,
    );
    until("it is started", || demi.pids("deaf").first().copied());
    demi.signal(Signal::TERM);
    assert_eq!(demi.wait().code(), Some(0));
    assert!(demi.log().contains("ended: signal: 15"), "{}", demi.log());
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let directory = Directory::new();
    let config = directory.write(
        "config.ron",
        r#"(http: (listen: "127.0.0.1:0"), platforms: [
            (name: "echo", host: Inline), (name: "loud", host: Process(4), command: ["yes"])], routes: [(to: "echo")])"#,
    );
    let mut process = crate::support::demi_command().arg("--config").arg(config).spawn().expect("it was built");
    let mut log = std::io::BufReader::with_capacity(1, process.stderr.take().expect("it is piped"));
    let address: std::net::SocketAddr = loop {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut log, &mut line).expect("it logs");
        if let Some((_, address)) = line.trim().split_once("listening on http://") {
            break address.parse().expect("it is an address");
        }
    };
    until("the pipe is full", || {
        let waiting = rustix::io::ioctl_fionread(log.get_ref()).expect("it is a pipe");
        (waiting > 60_000).then_some(())
    });
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(crate::support::PATIENCE)).expect("a timeout can be set");
    std::io::Write::write_all(&mut stream, b"GET /healthz HTTP/1.0\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    let _ = std::io::Read::read_to_string(&mut stream, &mut answer);
    kill(process.id(), Signal::TERM);
    let status = until("it ends", || process.try_wait().expect("it is ours"));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn what_an_upstream_does_not_implement_opens_no_breaker() {
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = upstream.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in upstream.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut head = [0; 4096];
            if matches!(std::io::Read::read(&mut stream, &mut head), Ok(1..)) {
                let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.0 501 Not Implemented\r\n\r\n");
            }
        }
    });
    let demi = Demi::start(&format!(
        r#"platforms: [(name: "old", host: Http, upstreams: ["{address}"])], routes: [(path: "/*", to: "old")]"#
    ));
    demi.wait_ready();
    for _ in 0..5 {
        assert_eq!(demi.request("OPTIONS", "/x", "").status, 501);
    }
    assert_eq!(demi.instance("old", 0)["breaker"], "closed");
}

#[test]
fn answers_that_came_while_demi_was_stopped_are_heard_though_their_time_is_over() {
    let demi = Demi::start(&format!(
        r#"platforms: [(name: "slow", host: Process(1), command: ["{}", "asks"])],
        routes: [(path: "/slow", to: "slow", timeout_ms: 1500)]"#,
        misbehaving()
    ));
    demi.wait_ready();
    let go = demi.directory.path().join("go");
    let (told, answers) = channel();
    let request = format!("wait {}", go.display());
    std::thread::scope(|scope| {
        scope.spawn(|| told.send(demi.post("/slow", &request)).expect("the test waits for it"));
        until("it has the request", || (demi.instance("slow", 0)["in_flight"] == 1).then_some(()));
        demi.signal(Signal::STOP);
        std::fs::write(&go, "").expect("it can be written");
        let stopped = Instant::now();
        until("its time is over", || (stopped.elapsed() > Duration::from_millis(1_700)).then_some(()));
        demi.signal(Signal::CONT);
    });
    let answer = answers.recv().expect("it was sent");
    assert_eq!((answer.status, answer.body.as_str()), (200, "it is there"), "{answer:?}");
}

#[test]
fn a_request_whose_body_has_gone_to_one_service_in_part_is_not_given_to_the_fallback() {
    let demi = demi_with_a_service_that_breaks_off_after(1_000_000);
    let answer = demi.request("PUT", "/up/x", &"x".repeat(5_000_000));
    assert_eq!(answer.status, 502, "{answer:?}");
}

#[test]
fn a_fallback_that_needs_a_body_whole_never_gets_a_part_of_it() {
    // What has gone when this service breaks off may be no more than what Demi has kept of it.
    let demi = demi_with_a_service_that_breaks_off_after(1_000);
    let answer = demi.request("PUT", "/up/x", &"x".repeat(5_000_000));
    assert_eq!(answer.status, 502, "it is too long to be kept: {answer:?}");
    let answer = demi.request("PUT", "/up/x", &"x".repeat(500_000));
    assert_eq!((answer.status, answer.body.len()), (200, 500_000));
}

/// Demi with a route to a service that reads so much of an upload and closes, and then to `echo`.
fn demi_with_a_service_that_breaks_off_after(bytes: usize) -> Demi {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // An upload is begun and left.
            let mut head = vec![0; 16_384];
            // Whoever only looks whether it is there sends nothing, and may be gone already.
            if stream.read(&mut head).is_ok_and(|read| head[..read].starts_with(b"PUT")) {
                stream.read_exact(&mut vec![0; bytes]).expect("the body is longer");
            }
        }
    });
    let demi = Demi::start(&format!(
        r#"platforms: [(name: "up", host: Http, upstreams: ["{address}"]), (name: "echo", host: Inline)],
        routes: [(path: "/up/*", to: "up", fallback: ["echo"], idempotent: true)]"#
    ));
    demi.wait_ready();
    demi
}

/// The lock of the store lasted as long as any copy of its descriptor, and a child that is being started at that moment, by whichever
/// thread of the process, has copies of all until it has become another program.
#[test]
fn a_store_can_be_opened_again_though_a_child_that_is_being_started_has_its_descriptors() {
    use rustix::process::{getpid, pidfd_getfd, pidfd_open, PidfdFlags, PidfdGetfdFlags};

    let directory = Directory::new();
    let sections = "platforms: [(name: \"echo\", host: Inline)]";
    let first = reactor(&directory, sections);
    let lock = directory.path().join("data/demi.lock");
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("Linux has /proc").flatten();
    let held = descriptors
        .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == lock))
        .find_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .expect("it is open");
    // As such a child has it.
    let own = pidfd_open(getpid(), PidfdFlags::empty()).expect("it runs");
    let Ok(copy) = pidfd_getfd(&own, held, PidfdGetfdFlags::empty()) else {
        // Not by a macro: what those print is shown only of tests that fail.
        let _ = writeln!(std::io::stderr(), "skipped: no descriptor may be copied here");
        return;
    };
    drop(first);
    drop(reactor(&directory, sections));
    drop(copy);
}

/// Its time was counted from just before whatever was due when the answer was heard, which is as much sooner as that was late.
#[test]
fn a_service_that_says_when_to_ask_again_is_not_asked_sooner_by_a_demi_that_is_late() {
    let (go, gone) = channel::<()>();
    let (gone, asked) = (Mutex::new(gone), Arc::new(Mutex::new(Vec::new())));
    let noted = asked.clone();
    let upstream = Upstream::start(move |peer| {
        while peer.request().is_some() {
            let mut asked = noted.lock().expect("no test panics while it holds it");
            asked.push(Instant::now());
            if asked.len() > 1 {
                peer.answer("hello");
                continue;
            }
            let _ = gone.lock().expect("no thread panics here").recv_timeout(PATIENCE);
            peer.send("HTTP/1.1 429 x\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let demi = Demi::start(&format!(
        r#"health: (interval_ms: 50), platforms: [(name: "up", host: Http, upstreams: ["{}"])],
        routes: [(path: "/up/*", to: "up", retries: 1, timeout_ms: 60000)]"#,
        upstream.address
    ));
    demi.wait_ready();
    let went_on = std::thread::scope(|scope| {
        let asking = scope.spawn(|| demi.get("/up/x"));
        until("it has the request", || (upstream.asked() == 1).then_some(()));
        demi.signal(Signal::STOP);
        go.send(()).expect("the service waits");
        let stopped = Instant::now();
        until("a while has passed", || (stopped.elapsed() > Duration::from_millis(700)).then_some(()));
        let went_on = Instant::now();
        demi.signal(Signal::CONT);
        let answer = asking.join().expect("it is answered");
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"), "{answer:?}");
        went_on
    });
    let asked = asked.lock().expect("no test panics while it holds it");
    assert!(asked.len() == 2 && asked[1] - went_on >= Duration::from_secs(1), "{:?}", asked[1] - went_on);
}
