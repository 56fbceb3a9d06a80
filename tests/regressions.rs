//! Faults that were found once: one test each.

use std::time::{Duration, Instant};

use crate::embedding::Hosted;
use crate::support::{demi_command, until, Demi};

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
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut answers = 0;
    until("lines were dropped, and that was told", || {
        let asked = Instant::now();
        assert_eq!(demi.post("/v1/requests", r#"{"content":"hello"}"#).body, "hello");
        assert!(asked.elapsed() < Duration::from_secs(5), "an answer took {:?}", asked.elapsed());
        answers += 1;
        (Instant::now() > deadline && demi.log().contains("more lines were dropped")).then_some(())
    });
    assert!(demi.log().len() < 8 << 20, "{} bytes of log", demi.log().len());
    assert!(answers > 5, "only {answers} answers in three seconds");
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
