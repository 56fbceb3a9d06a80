//! `demi simulate`, as a person meets it.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::{demi_command, Directory};

fn simulate(arguments: &[&str]) -> Output {
    demi_command().arg("simulate").args(arguments).output().expect("it runs")
}

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/traces").join(name);
    path.to_str().expect("the path is text").to_owned()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn what_would_have_been_stands_beside_what_was() {
    let leak = fixture("leak.trace");
    let arguments = ["--trace", &leak, "--set", "scaler.enabled=true", "--set", "scaler.shed_percent=75"];
    let output = simulate(&arguments);
    let text = told(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        "2026-03-02 09:00:00 to 2026-03-02 19:00:00 (UTC): 10.0 h with samples",
        "set scaler.shed_percent = 75 (was 80)",
        "RAM at 95 % or more                 24.7 min  0.0 min",
        "voice is shed: RAM 7",
        "This is a model",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert_eq!(told(&simulate(&arguments)), text, "the same is the same again");
}

#[test]
fn programs_are_told_the_same() {
    let output = simulate(&["--trace", &fixture("spike.trace"), "--set", "scaler.enabled=true", "--json"]);
    let page: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!((page["happened"]["span_ms"].as_u64(), page["happened"]["sheds"].as_u64()), (Some(14_400_000), Some(0)));
    assert!(page["simulated"]["sheds"].as_u64() > Some(0) && page["set"][0]["was"] == false, "{page}");
    assert!(page["simulated"]["decisions"][0]["act"].is_string(), "{page}");
}

#[test]
fn what_the_end_of_a_trace_cuts_short_is_told_as_not_judged_and_who_drained_and_was_killed_is_one() {
    let directory = Directory::new();
    let platform = r#"{"name":"voice","host":{"Process":1},"shed":true,"priority":100,"drain_ms":5000}"#;
    let begin = format!(r#"begin {{"unix_ms":1000000,"scaler":{{"enabled":false}},"platforms":[{platform}]}}"#);
    let mut text = format!("demi-trace 1\n{begin}\ns 0 0 running\nw 0 0 1000000 1\nm 1000 10000000 7000000\n");
    text += "d 0 0 shed 700 80\ns 0 0 draining\nd 5000 0 kill 700 80\ns 0 0 shed\nw 0 0 0 0\n";
    (0..20).for_each(|_| text += "m 30000 10000000 6000000\n");
    let path = directory.path().join("short.trace");
    std::fs::write(&path, text).expect("it can be written");
    let path = path.to_str().expect("the path is text");
    let told = told(&simulate(&["--trace", path]));
    let line = told.lines().find(|line| line.starts_with("of these needless")).unwrap_or_default();
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>().join(" "),
        "of these needless 0, and 1 not judged 0",
        "{told}"
    );
    let output = simulate(&["--trace", path, "--json"]);
    let page: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!((&page["happened"]["not_judged"], &page["simulated"]["not_judged"]), (&1.into(), &0.into()));
}

#[test]
fn what_cannot_be_simulated_is_told_with_the_exit_code_of_that() {
    let directory = Directory::new();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("it can be written");
        path
    };
    let broken = file("broken.trace", "hello\n");
    let config = file("config.ron", "(store: (path: \"data\"))");
    let [broken, config] = [&broken, &config].map(|path| path.to_str().expect("the path is text").to_owned());
    let (leak, spike) = (fixture("leak.trace"), fixture("spike.trace"));
    for (arguments, code, what) in [
        (&["--trace", &leak, "--set", "scaler.shed_percent=101"][..], 2, "101 is outside 2 to 100"),
        (
            &["--trace", &leak, "--set", "scaler.shed_percent=60"],
            2,
            "restore_percent is 65 (the default) and scaler.shed_percent is 60",
        ),
        (&["--trace", &leak, "--set", "platforms.voce.shed=false"], 2, "did you mean \"voice\"?"),
        (&["--trace", &leak, "--last", "1d"], 2, "either it or --trace"),
        (&["--trace", &leak, "--trace", &spike], 1, "different machines"),
        (&["--trace", &broken], 1, "line 1"),
        (&["--trace", "nowhere.trace"], 1, "nowhere.trace cannot be read"),
        (&["--config", &config], 1, "nothing was recorded"),
        (&["--config", "nowhere.ron"], 3, "nowhere.ron"),
    ] {
        let output = simulate(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", told(&output));
        assert!(told(&output).contains(what) && output.stdout.is_empty(), "{arguments:?}: {}", told(&output));
    }
}

#[test]
fn the_traces_of_the_tests_stay_small() {
    for name in ["leak", "daily", "spike", "sawtooth", "arc"] {
        let text = std::fs::read(fixture(&format!("{name}.trace"))).expect("it is there");
        assert!(text.len() <= 200_000, "{name}: {} bytes", text.len());
    }
}
