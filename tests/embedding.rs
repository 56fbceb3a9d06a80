//! Demi as a library: a host program with an adapter of its own, in this very process.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use demi::{
    Adapter, Config, Fault, Handle, Options, PlatformOrder, PlatformTrait, Reactor, Reply, Request, Settings,
    StartError,
};

use crate::support::{ask, is_alive, until, with_patience, Directory, HOSTS, PATIENCE};

/// Does what the body says.
struct Moody {
    made: u32,
}

static MADE: AtomicU32 = AtomicU32::new(0);
static FAILS_TO_START: AtomicBool = AtomicBool::new(false);

/// How many requests have been dawdled over, and how many of them may be answered: one test's only.
static DAWDLERS: AtomicU32 = AtomicU32::new(0);
pub static LET_GO: AtomicU32 = AtomicU32::new(0);

impl PlatformTrait for Moody {
    fn initialize(&mut self, _: &Settings) -> Result<(), Fault> {
        match FAILS_TO_START.load(Ordering::Relaxed) {
            true => Err(Fault::failed("not today")),
            false => Ok(()),
        }
    }

    fn handle_request(&mut self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Fault> {
        match request.text() {
            Some("panic") => panic!("this panic belongs to the test"),
            Some("stick") => loop {
                std::thread::park();
            },
            Some("dawdle") => {
                let number = DAWDLERS.fetch_add(1, Ordering::SeqCst);
                until("it may let go", || (LET_GO.load(Ordering::SeqCst) > number).then_some(()));
            }
            Some("fail") => return Err(Fault::failed("it did not work")),
            Some("mistake") => return Err(Fault::mistaken("that makes no sense")),
            Some("busy") => return Err(Fault::busy("come back later")),
            Some("status 99") => reply.status = 99,
            _ => {}
        }
        reply.text(&self.made.to_string());
        Ok(())
    }

    fn shutdown(&mut self) {
        if PANICS_AT_THE_END.load(Ordering::Relaxed) {
            panic!("this panic in shutdown belongs to the test");
        }
    }
}

static PANICS_AT_THE_END: AtomicBool = AtomicBool::new(false);

const MOODY: Adapter =
    Adapter { name: "moody", make: || Box::new(Moody { made: MADE.fetch_add(1, Ordering::Relaxed) }) };

/// Panics also when it is dropped.
struct Bitter;

impl PlatformTrait for Bitter {
    fn initialize(&mut self, _: &Settings) -> Result<(), Fault> {
        Ok(())
    }

    fn handle_request(&mut self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Fault> {
        assert!(request.text() != Some("panic"), "this panic belongs to the test");
        reply.text("well");
        Ok(())
    }

    fn shutdown(&mut self) {
        panic!("this panic in shutdown belongs to the test");
    }
}

impl Drop for Bitter {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("this panic in drop belongs to the test");
        }
    }
}

pub const BITTER: Adapter = Adapter { name: "bitter", make: || Box::new(Bitter) };

const ADAPTERS: [Adapter; 3] = [MOODY, BITTER, demi_echo::ADAPTER];

fn config(adapters: &[Adapter], sections: &str) -> Config {
    let sections = with_patience(sections);
    let text = format!(
        "(http: (listen: \"127.0.0.1:0\", {HOSTS}), store: (path: \"data\"), scaler: (enabled: false), {sections})"
    );
    let names: Vec<&str> = adapters.iter().map(|adapter| adapter.name).collect();
    demi::config_file::parse(&text, std::path::Path::new("test.ron"), &names)
        .unwrap_or_else(|problems| panic!("{problems}"))
}

/// One that nobody turns yet.
pub fn reactor(directory: &Directory, sections: &str) -> Reactor {
    made(directory, sections).unwrap_or_else(|error| panic!("{error}"))
}

fn made(directory: &Directory, sections: &str) -> Result<Reactor, StartError> {
    let options = Options {
        base: directory.path().to_owned(),
        executable: Some(env!("CARGO_BIN_EXE_demi").into()),
        ..Options::default()
    };
    Reactor::new(&config(&ADAPTERS, sections), &ADAPTERS, options)
}

/// A reactor on a thread of its own, ended with the test.
pub struct Hosted {
    pub handle: Handle,
    pub address: std::net::SocketAddr,
    thread: Option<std::thread::JoinHandle<u8>>,
    _directory: Directory,
}

impl Hosted {
    pub fn start(sections: &str) -> Hosted {
        Hosted::start_with(&ADAPTERS, sections)
    }

    /// As `start`, with the adapters of another test.
    pub fn start_with(adapters: &'static [Adapter], sections: &str) -> Hosted {
        let directory = Directory::new();
        let base = directory.path().to_owned();
        let sections = sections.to_owned();
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let options = Options { base, executable: Some(env!("CARGO_BIN_EXE_demi").into()), ..Options::default() };
            let config = config(adapters, &sections);
            let reactor = Reactor::new(&config, adapters, options).unwrap_or_else(|error| panic!("{error}"));
            sender.send((reactor.handle(), reactor.address())).expect("the test waits for it");
            reactor.run().expect("the poll works")
        });
        let (handle, address) = receiver.recv_timeout(PATIENCE).expect("the reactor was made");
        let hosted = Hosted { handle, address, thread: Some(thread), _directory: directory };
        until("it is ready", || (hosted.get("/readyz").0 == 200).then_some(()));
        hosted
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let response = ask(self.address, "GET", path, "");
        (response.status, response.body)
    }

    pub fn say(&self, body: &str) -> (u16, String) {
        let request = Request { method: "POST", body: body.as_bytes(), ..Request::default() };
        let answered = self.handle.ask_and_wait(&request, PATIENCE).expect("the reactor runs");
        (answered.status, String::from_utf8(answered.body).expect("it is text"))
    }

    pub fn instance(&self, platform: &str, index: usize) -> serde_json::Value {
        let page = self.get(&format!("/v1/platforms/{platform}")).1;
        serde_json::from_str::<serde_json::Value>(&page).expect("it is JSON")["instances"][index].clone()
    }

    pub fn metric(&self, line: &str) -> u64 {
        let page = self.get("/metrics").1;
        let found = page.lines().find_map(|candidate| candidate.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or_else(|| panic!("no {line} in\n{page}"))
    }

    /// Orders the end and returns the exit code.
    pub fn end(mut self) -> u8 {
        self.handle.shutdown().expect("the reactor runs");
        self.thread.take().expect("it is ended once").join().expect("the reactor does not panic")
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        let _ = self.handle.shutdown();
        let _ = self.handle.shutdown();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the reactor panicked");
        }
    }
}

#[test]
fn a_worker_that_panics_answers_502_is_counted_and_the_pool_goes_on() {
    let hosted = Hosted::start(
        "platforms: [(name: \"moody\", host: Threads(2))], routes: [(to: \"moody\")],
        breaker: (failures: 1000, platform_failures: 0, failure_percent: 0)",
    );
    for _ in 0..20 {
        assert_eq!(hosted.say("panic").0, 502);
    }
    for _ in 0..20 {
        assert_eq!(hosted.say("hello").0, 200);
    }
    assert_eq!(hosted.metric(r#"demi_attempts_total{platform="moody",outcome="broken"}"#), 20);
    assert_eq!(hosted.metric(r#"demi_plugin_failure_total{platform="moody",error_type="broken"}"#), 20);
    for reason in ["exited", "health", "breaker", "other"] {
        assert_eq!(hosted.metric(&format!(r#"demi_restarts_total{{platform="moody",reason="{reason}"}}"#)), 0);
    }
    assert!((0..2).all(|index| hosted.instance("moody", index)["run"] == 1), "no thread had to be started again");
    assert_eq!(hosted.end(), 0);
}

#[test]
fn a_worker_that_is_stuck_for_ever_is_shown_routed_around_and_replaced() {
    // Two workers, one of which is stuck and will be left behind after this time.
    let stuck_for = |wedged_ms: u64| {
        let hosted = Hosted::start(&format!(
            r#"platforms: [(name: "moody", host: Threads(2), wedged_ms: {wedged_ms}, stop_grace_ms: 100)],
            routes: [(kind: "patient", to: "moody", timeout_ms: 60000), (to: "moody", timeout_ms: 200)]"#,
        ));
        assert_eq!(hosted.say("stick").0, 504);
        hosted
    };
    let hosted = stuck_for(3_600_000);
    let stuck = (0..2).find(|index| hosted.instance("moody", *index)["state"] == "wedged").expect("it is shown");
    assert!(hosted.instance("moody", stuck)["next"].as_str().is_some_and(|next| next.contains("replaced")));
    for _ in 0..20 {
        let request = Request { kind: "patient", body: b"hello", ..Request::default() };
        let answered = hosted.handle.ask_and_wait(&request, PATIENCE).expect("the reactor runs");
        assert_eq!(answered.status, 200, "the other one serves");
    }
    drop(hosted);
    let hosted = stuck_for(300);
    until("it was replaced", || {
        let instances = [0, 1].map(|index| hosted.instance("moody", index));
        let is_new = instances.iter().any(|instance| instance["run"] == 2);
        (is_new && instances.iter().all(|instance| instance["state"] == "ready")).then_some(())
    });
    assert_eq!(hosted.end(), 0);
}

#[test]
fn an_inline_platform_that_panics_answers_502_and_starts_again() {
    let hosted = Hosted::start(
        "platforms: [(name: \"moody\", host: Inline)], routes: [(to: \"moody\")], restart: (forget_ms: 0)",
    );
    let first = hosted.say("hello").1;
    for run in 2..5 {
        assert_eq!(hosted.say("panic").0, 502);
        until("it has started again", || {
            let instance = hosted.instance("moody", 0);
            (instance["run"] == run && instance["state"] == "ready").then_some(())
        });
    }
    let (status, last) = hosted.say("hello");
    assert_eq!(status, 200);
    assert_ne!(first, last, "it is another one");
    assert_eq!(hosted.end(), 0);
}

#[test]
fn what_a_platform_says_went_wrong_reaches_the_caller() {
    for host in ["Inline", "Threads(1)"] {
        let hosted = Hosted::start(&format!(
            "platforms: [(name: \"moody\", host: {host})], routes: [(to: \"moody\")], breaker: (failures: 1000)"
        ));
        for (body, status) in [("fail", 502), ("mistake", 400), ("busy", 503)] {
            assert_eq!(hosted.say(body).0, status, "{host}: {body}");
        }
        let response = ask(hosted.address, "POST", "/v1/requests", r#"{"content":"mistake"}"#);
        assert_eq!(response.json()["detail"], "that makes no sense");
    }
}

#[test]
fn a_handle_asks_tells_the_status_and_ends_the_reactor_from_any_thread() {
    let hosted = Hosted::start("platforms: [(name: \"echo\", host: Threads(2))], routes: [(to: \"echo\")]");
    let askers: Vec<_> = (0..4)
        .map(|number| {
            let handle = hosted.handle.clone();
            std::thread::spawn(move || {
                for count in 0..200 {
                    let body = format!("{number} {count}");
                    let request = Request { method: "POST", body: body.as_bytes(), ..Request::default() };
                    let answered = handle.ask_and_wait(&request, PATIENCE).expect("the reactor runs");
                    assert_eq!((answered.status, answered.body), (200, body.into_bytes()));
                }
            })
        })
        .collect();
    askers.into_iter().for_each(|asker| asker.join().expect("every answer is its own"));
    let status = hosted.handle.status(PATIENCE).expect("the reactor runs");
    let status: serde_json::Value = serde_json::from_str(&status).expect("it is JSON");
    assert_eq!(status["platforms"][0]["name"], "echo");
    let order = |name, order| hosted.handle.order_and_wait(name, order, PATIENCE).expect("the reactor runs").status;
    assert_eq!([order("echo", PlatformOrder::Isolate), order("nobody", PlatformOrder::Isolate)], [202, 404]);
    let refused = hosted.handle.ask_and_wait(&Request::default(), PATIENCE).expect("the reactor runs");
    assert_eq!(refused.status, 503, "{refused:?}");
    let handle = hosted.handle.clone();
    assert_eq!(hosted.end(), 0);
    let asked = handle.ask_and_wait(&Request::default(), PATIENCE);
    assert_eq!(asked, Err(demi::HandleError::Ended));
    assert_eq!(handle.shutdown(), Err(demi::HandleError::Ended));
}

#[test]
fn a_program_with_a_loop_of_its_own_turns_the_reactor() {
    let directory = Directory::new();
    let mut reactor = reactor(
        &directory,
        r#"platforms: [(name: "echo", host: Inline), (name: "child", host: Process(1), command: ["{demi}", "plugin", "serve", "echo"])],
        routes: [(kind: "child", to: "child"), (to: "echo")]"#,
    );
    let handle = reactor.handle();
    // As a host program would: a poll of its own says when the reactor has something to do.
    let mut poll = mio::Poll::new().expect("there is a poll to have");
    let descriptor = reactor.as_raw_fd();
    let mut source = mio::unix::SourceFd(&descriptor);
    poll.registry().register(&mut source, mio::Token(0), mio::Interest::READABLE).expect("it is pollable");
    let mut events = mio::Events::with_capacity(1);
    for kind in ["inline", "child"] {
        let request = Request { kind, body: b"hello", ..Request::default() };
        // Nothing is left to do, so that only the request can be what the poll tells of.
        until("it is idle", || {
            assert_eq!(reactor.turn(Some(Duration::ZERO)).expect("the poll works"), None);
            poll.poll(&mut events, Some(Duration::from_millis(20))).expect("the poll works");
            (events.is_empty() && reactor.wait() > Duration::ZERO).then_some(())
        });
        let receiver = handle.ask(&request).expect("the reactor runs");
        poll.poll(&mut events, Some(PATIENCE)).expect("the poll works");
        assert!(!events.is_empty(), "{kind}: the descriptor did not become readable");
        let answered = until("it is answered", || {
            assert_eq!(reactor.turn(Some(Duration::ZERO)).expect("the poll works"), None);
            receiver.try_recv().ok()
        });
        assert_eq!((answered.status, answered.body.as_slice()), (200, &b"hello"[..]), "{kind}");
    }
    handle.shutdown().expect("the reactor runs");
    let code = until("it ends", || reactor.turn(Some(Duration::ZERO)).expect("the poll works"));
    assert_eq!(code, 0);
}

#[test]
fn a_dropped_reactor_takes_its_children_with_it_and_gives_the_store_back() {
    let directory = Directory::new();
    for _ in 0..5 {
        let sections =
            r#"platforms: [(name: "child", host: Process(2), command: ["{demi}", "plugin", "serve", "echo"])]"#;
        // Whoever drops one waits for its disk no longer than a second.
        let mut reactor = until("the store is given back", || made(&directory, sections).ok());
        let address = reactor.address();
        let asker = std::thread::spawn(move || {
            until("the children are there", || {
                let page = ask(address, "GET", "/v1/platforms/child", "").json();
                let instances = page["instances"].as_array()?.clone();
                let pids: Vec<u64> = instances.iter().filter_map(|instance| instance["pid"].as_u64()).collect();
                (pids.len() == 2).then_some(pids)
            })
        });
        while !asker.is_finished() {
            reactor.turn(Some(Duration::from_millis(1))).expect("the poll works");
        }
        let pids = asker.join().expect("they are there");
        drop(reactor);
        for pid in pids {
            assert!(!is_alive(pid as u32));
        }
    }
}
