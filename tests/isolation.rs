//! Children that take more than they may, or try to get away: each ends contained, the reason is told, and the others
//! are served meanwhile.

use std::os::fd::AsRawFd;

use rustix::process::Signal;

use crate::support::{is_alive, misbehaving, until, Demi};

/// Demi with a platform `bad` that does what `mode` says and one that echoes.
fn with_bad(mode: &str, limits: &str) -> Demi {
    let words: String = mode.split(' ').map(|word| format!(", {word:?}")).collect();
    let demi = Demi::start(&format!(
        r#"restart: (forget_ms: 0),
        platforms: [
            (name: "bad", host: Process(1), command: [{program:?}{words}], limits: ({limits}), stop_grace_ms: 300),
            (name: "good", host: Process(1), command: ["{{demi}}", "plugin", "serve", "echo"]),
        ],
        routes: [(path: "/bad", to: "bad"), (path: "/good", to: "good")]"#,
        program = misbehaving(),
    ));
    demi.wait_ready();
    demi
}

/// Waits until the status of the bad one says why, now, in its history or in its log, while the good one answers each
/// time.
fn told(demi: &Demi, what: &str) {
    until(&format!("it is told that {what}"), || {
        good_answers(demi);
        let page = demi.json("/v1/platforms/bad/why");
        let texts = |name: &str| page[name].as_array().expect("the page has it").clone();
        let says = |text: &serde_json::Value| text.as_str().is_some_and(|text| text.contains(what));
        let is_told = texts("now").iter().any(says)
            || [texts("history"), texts("log")].concat().iter().any(|entry| says(&entry["text"]));
        is_told.then_some(())
    });
}

fn good_answers(demi: &Demi) {
    let answer = demi.post("/good", "still here");
    assert_eq!((answer.status, answer.body.as_str()), (200, "still here"));
}

fn runs_again(demi: &Demi) {
    until("it runs again, and the reason is kept", || {
        good_answers(demi);
        let instance = demi.instance("bad", 0);
        (instance["run"].as_u64() >= Some(2) && instance["state"] == "ready").then_some(())
    });
}

/// The processes that bear the token of this Demi's children, but for those themselves.
fn token(pid: u32) -> String {
    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).expect("it runs");
    let word = environment.split('\0').find_map(|entry| entry.strip_prefix("DEMI_TOKEN=")).expect("it has a token");
    word.split(':').next().expect("a token stands first").to_owned()
}

fn bearers(token: &str) -> Vec<u32> {
    let numbered = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let processes = std::fs::read_dir("/proc").expect("Linux has /proc").flatten().filter_map(numbered);
    let bears = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(token)
    };
    processes.filter(bears).filter(|pid| is_alive(*pid)).collect()
}

#[test]
fn a_fork_bomb_is_killed_whole_and_the_others_are_served() {
    let demi = with_bad("fork-bomb 300", "processes_max: 20");
    let token = token(demi.pids("bad")[0]);
    demi.post("/bad", "");
    told(&demi, "limits.processes_max is 20");
    runs_again(&demi);
    until("only the two children are left", || (bearers(&token).len() == 2).then_some(()));
}

#[test]
fn a_memory_hog_is_killed_and_the_others_are_served() {
    let demi = with_bad("hogs 400", "memory_max_mb: 60");
    demi.post("/bad", "");
    // By weighing, or by the kernel where control groups are delegated.
    told(&demi, "limits.memory_max_mb");
    runs_again(&demi);
}

#[test]
fn above_the_soft_limit_it_is_told_to_trim_and_lives() {
    let demi = with_bad("hogs 60", "memory_soft_mb: 30");
    let pid = demi.pids("bad")[0];
    demi.post("/bad", "");
    told(&demi, "limits.memory_soft_mb is 30: it was asked to give some back");
    assert_eq!(demi.pids("bad"), [pid]);
}

#[test]
fn who_leaks_descriptors_is_replaced_before_it_fails_and_the_others_are_served() {
    let demi = with_bad("leaks 200", "descriptors_max: 64");
    demi.post("/bad", "");
    told(&demi, "limits.descriptors_max is 64");
    runs_again(&demi);
}

#[test]
fn a_log_without_end_is_read_no_further_than_its_limit_and_the_others_are_served() {
    const LIMIT_BYTES: u64 = 16_384;
    const PIPE_BYTES: u64 = 64 * 1024;
    const LINE: &str = "a line that nobody wants to read, and there are many of them";
    // So many times the limit are read in a second of what is for the log.
    for (mode, share) in [("logs-without-end", 4), ("prints-without-end", 16)] {
        let demi = with_bad(mode, &format!("log_bytes_per_second_max: {LIMIT_BYTES}"));
        let dropped = || demi.instance("bad", 0)["log_lines_dropped"].as_u64().expect("it is counted");
        // At the end of each second in which lines were dropped, that is told once: so nothing here reads a clock.
        let seconds = || demi.log().matches("more lines were dropped").count() as u64;
        let before = until("the status says that lines are dropped", || {
            good_answers(&demi);
            Some(dropped()).filter(|dropped| *dropped > 0)
        });
        until("it goes on for some seconds", || {
            good_answers(&demi);
            (seconds() >= 4).then_some(())
        });
        assert!(dropped() > before, "{mode}");
        let answer = demi.post("/bad", "");
        let written: u64 = answer.body.parse().expect("it says how much it has got rid of");
        // And the first one and the present one, of which nothing is told yet; at the end of each, one read more.
        let seconds = seconds() + 2;
        let read_max = seconds * (share * LIMIT_BYTES + PIPE_BYTES);
        assert!(written <= read_max + PIPE_BYTES, "{mode}: {written} bytes in {seconds} seconds");
        let kept = demi.log().matches(LINE).count() * LINE.len();
        assert!(kept as u64 <= seconds * LIMIT_BYTES, "{mode}: {kept} bytes kept in {seconds} seconds");
    }
}

#[test]
fn who_ignores_term_and_forks_twice_is_gone_with_all_it_started() {
    for mode in ["escapes", "escapes 1"] {
        let mut demi = with_bad(mode, "");
        let escaped: u32 = demi.post("/bad", "").body.parse().expect("it says a number");
        assert!(is_alive(escaped), "{mode}");
        demi.signal(Signal::TERM);
        assert_eq!(demi.wait().code(), Some(0), "{mode}");
        assert!(!is_alive(escaped), "{mode}");
    }
}

#[test]
fn what_a_run_left_behind_is_gone_before_the_next_is_weighed() {
    let demi = with_bad("escapes", "");
    let first = demi.pids("bad")[0];
    let escaped: u32 = demi.post("/bad", "").body.parse().expect("it says a number");
    crate::support::kill(first, Signal::KILL);
    let entry = std::path::PathBuf::from(format!("/proc/{escaped}"));
    until("the escaped process is gone and reaped", || (!entry.exists()).then_some(()));
    runs_again(&demi);
}

#[test]
fn after_kill_9_of_demi_nothing_is_left_not_even_the_guard() {
    let mut demi = with_bad("escapes", "");
    let escaped: u32 = demi.post("/bad", "").body.parse().expect("it says a number");
    let token = token(demi.pids("bad")[0]);
    let guard = until("the guard stands", || {
        demi.log().split("the guard is process ").nth(1)?.lines().next()?.trim().parse::<u32>().ok()
    });
    let rollup = std::fs::read_to_string(format!("/proc/{guard}/smaps_rollup")).unwrap_or_default();
    println!("the guard: {:?}", rollup.lines().find(|line| line.starts_with("Pss:")));
    // While it starts, its libraries and what it reads of /proc are open as well.
    until("it holds nothing but its standard descriptors", || {
        let open = std::fs::read_dir(format!("/proc/{guard}/fd")).expect("it runs").count();
        (open == 3).then_some(())
    });
    demi.signal(Signal::KILL);
    demi.wait();
    until("nothing is left", || (bearers(&token).is_empty() && !is_alive(escaped) && !is_alive(guard)).then_some(()));
}

#[test]
fn a_guard_that_is_killed_is_started_again_and_a_goodbye_ends_it() {
    let mut demi = with_bad("", "");
    let guards = |demi: &Demi| -> Vec<u32> {
        let log = demi.log();
        let words = log.split("the guard is process ").skip(1);
        words.filter_map(|rest| rest.lines().next()?.trim().parse().ok()).collect()
    };
    let first = until("the guard stands", || guards(&demi).first().copied());
    crate::support::kill(first, Signal::KILL);
    let second = until("another guard stands", || guards(&demi).get(1).copied());
    assert!(is_alive(second));
    demi.signal(Signal::TERM);
    assert_eq!(demi.wait().code(), Some(0));
    // Demi waits for it, but not for ever.
    until("it is gone", || (!is_alive(second)).then_some(()));
}

#[test]
fn a_child_finds_a_clean_place_and_no_way_out() {
    // Whoever starts Demi may have left a descriptor open for it: this one has no close-on-exec.
    let open =
        std::fs::File::open("/etc/hostname").or_else(|_| std::fs::File::open("/etc/passwd")).expect("one is there");
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).expect("it is open");
    let demi = Demi::start(&format!(
        r#"platforms: [(name: "bad", host: Process(1), command: [{:?}, "shows"], directory: "/", env: {{"A": "b"}},
            limits: (descriptors_max: 99, file_max_mb: 7, cpu_max_s: 1000))],
        routes: [(path: "/bad", to: "bad")]"#,
        misbehaving()
    ));
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::CLOEXEC).expect("it is open");
    demi.wait_ready();
    let shown = |what: &str| demi.post("/bad", what).body;
    let leaked = std::fs::read_link(format!("/proc/self/fd/{}", open.as_raw_fd())).expect("it is open");
    let of_demi = std::fs::read_dir(format!("/proc/{}/fd", demi.pid())).expect("it runs").flatten();
    let mut targets = of_demi.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    assert!(targets.any(|target| target == leaked), "Demi itself has it");
    assert!(!shown("fd").contains(leaked.to_str().expect("it is text")), "{}", shown("fd"));
    // Its own three, and the directory that it is reading.
    assert_eq!(shown("fd").lines().count(), 4, "{}", shown("fd"));

    let environment = shown("environ");
    let mut names: Vec<&str> = environment.split('\0').filter_map(|entry| Some(entry.split_once('=')?.0)).collect();
    names.sort_unstable();
    assert_eq!(names, ["A", "DEMI_INSTANCE", "DEMI_TOKEN", "PATH", "TMPDIR"]);
    assert_eq!((shown("cwd").as_str(), shown("$DEMI_INSTANCE").as_str()), ("/", "bad/0"));

    let temporary = std::path::PathBuf::from(shown("$TMPDIR"));
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&temporary).expect("it is there").permissions().mode();
    assert_eq!((mode & 0o777, temporary.starts_with(demi.directory.path())), (0o700, true), "{temporary:?}");

    let status = shown("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells it");
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!((field("SigBlk"), field("SigIgn")), ("0000000000000000".to_owned(), "0000000000001000".to_owned()));
    assert_eq!(shown("oom_score_adj").trim(), "300");
    let limits = shown("limits");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells it");
        line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(limit("Max open files"), "99 99");
    assert_eq!(limit("Max core file size"), "0 0");
    assert_eq!(limit("Max file size"), "7000000 7000000");
    assert_eq!(limit("Max cpu time"), "1000 1005");

    std::fs::write(temporary.join("left"), "behind").expect("it is a directory");
    let first = demi.pids("bad")[0];
    crate::support::kill(first, Signal::KILL);
    until("it runs again", || demi.pids("bad").first().copied().filter(|pid| *pid != first));
    demi.wait_ready();
    assert!(temporary.exists() && !temporary.join("left").exists(), "each run begins with an empty one");
}

#[test]
fn a_directory_that_is_not_there_is_told() {
    let demi = Demi::start(
        r#"platforms: [(name: "bad", host: Process(1), command: ["{demi}", "plugin", "serve", "echo"], directory: "nowhere"),
            (name: "good", host: Process(1), command: ["{demi}", "plugin", "serve", "echo"])],
        routes: [(path: "/good", to: "good")]"#,
    );
    until("the good one answers", || (demi.post("/good", "").status == 200).then_some(()));
    told(&demi, "nowhere is not there; make it, or correct `directory`");
}
