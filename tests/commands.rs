//! The command line, as a person meets it.

use std::process::{Command, Output};

use crate::support::{demi_command, until, Demi, Directory, HOSTS};

fn demi(arguments: &[&str]) -> Output {
    demi_command().args(arguments).output().expect("it runs")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A command that finds no configuration but where the test puts one.
fn lonely(directory: &Directory) -> Command {
    let mut command = demi_command();
    command.current_dir(directory.path()).env_remove("XDG_CONFIG_HOME").env("HOME", directory.path().join("home"));
    command
}

#[test]
fn help_and_version_are_told_and_mean_success() {
    let help = demi(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    for word in
        ["--config", "--log-level", "--dry-run", "--version", "run", "platforms", "plugin", "doctor", "Exit codes"]
    {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    for arguments in [&["run", "--help"][..], &["plugin", "--help"], &["plugin", "new", "--help"], &["why", "--help"]] {
        assert_eq!(demi(arguments).status.code(), Some(0), "{arguments:?}");
    }
    let version = demi(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&version.stdout), concat!("demi ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_wrong_command_line_is_told_and_means_2() {
    let wrong: [&[&str]; 9] = [
        &["--nonsense"],
        &["dance"],
        &["--config"],
        &["--log-level", "loud"],
        &["plugin", "serve", "nosuch"],
        &["plugin", "echo"],
        &["plugin"],
        &["stop"],
        &["platforms", "--address", "nowhere"],
    ];
    for arguments in wrong {
        let output = demi(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", told(&output));
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
    assert!(told(&demi(&["plugin", "serve", "nosuch"])).contains("echo"), "the known ones are named");
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let directory = Directory::new();
    let config = directory.write(
        "config.ron",
        r#"(platforms: [(name: "b", host: Threads(3), adapter: "echo", needs: ["a"]), (name: "a", host: Inline, adapter: "echo")],
            routes: [(path: "/b", to: "b"), (to: "a")])"#,
    );
    let output = demi_command().args(["--dry-run", "--config"]).arg(config).output().expect("it runs");
    let plan = told(&output);
    assert_eq!(output.status.code(), Some(0), "{plan}");
    for line in ["start order    a → b", "3 worker threads", "needs a", "path /b → b", "nothing was started"] {
        assert!(plan.contains(line), "{line} is not in\n{plan}");
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).expect("it is there").flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_dry_run_finds_a_program_that_is_not_there() {
    let directory = Directory::new();
    let config =
        directory.write("config.ron", r#"(platforms: [(name: "a", host: Process(1), command: ["/nowhere/nothing"])])"#);
    let output = demi_command().args(["run", "--dry-run", "--config"]).arg(config).output().expect("it runs");
    assert_eq!(output.status.code(), Some(3));
    assert!(told(&output).contains("/nowhere/nothing"), "{}", told(&output));
}

#[test]
fn three_mistakes_in_a_configuration_are_told_at_once_with_line_and_remedy() {
    let directory = Directory::new();
    let config = directory.write(
        "config.ron",
        "(\n    htpp: (listen: \"127.0.0.1:0\"),\n    health: (interval_ms: 1),\n    platforms: [(name: \"echo\", host: Inline)],\n    routes: [(to: \"ehco\")],\n)\n",
    );
    let output = demi_command().arg("--config").arg(&config).output().expect("it runs");
    let text = told(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    for (line, offence, remedy) in [(2, "htpp", "http"), (3, "1", "10"), (5, "ehco", "echo")] {
        let start = format!("{}:{line}:", config.display());
        let found =
            text.lines().find(|found| found.starts_with(&start)).unwrap_or_else(|| panic!("{start} in\n{text}"));
        assert!(found.contains(offence) && found.contains(remedy) && found.contains("; "), "{found}");
    }
    assert_eq!(text.lines().count(), 3, "{text}");
}

#[test]
fn without_a_configuration_the_places_are_told_where_it_was_looked_for() {
    let directory = Directory::new();
    let output = lonely(&directory).output().expect("it runs");
    let text = told(&output);
    if std::path::Path::new("/etc/demi/config.ron").exists() {
        return;
    }
    assert_eq!(output.status.code(), Some(3), "{text}");
    for place in ["config.ron", "/home/.config/demi/config.ron", "/etc/demi/config.ron"] {
        assert!(text.contains(place), "{place} is not in\n{text}");
    }
}

#[test]
fn the_configuration_that_was_found_is_named() {
    let directory = Directory::new();
    let home = directory.path().join("xdg/demi");
    std::fs::create_dir_all(&home).expect("it can be written");
    std::fs::write(home.join("config.ron"), "()").expect("it can be written");
    let find = || {
        let mut command = lonely(&directory);
        let output = command.env("XDG_CONFIG_HOME", directory.path().join("xdg")).arg("--dry-run").output();
        told(&output.expect("it runs"))
    };
    assert!(find().contains(&home.join("config.ron").display().to_string()), "{}", find());
    // One in the working directory comes first.
    directory.write("config.ron", "()");
    assert!(find().contains("configuration  config.ron"), "{}", find());
}

#[test]
fn what_is_no_configuration_file_is_told_as_such() {
    let directory = Directory::new();
    let binary = directory.path().join("binary");
    std::fs::write(&binary, [0xff, 0xfe, 0x00]).expect("it can be written");
    for (path, what) in
        [(directory.path().to_owned(), "cannot be read"), (binary, "UTF-8"), ("/nowhere/c".into(), "no such file")]
    {
        let output = demi_command().arg("--config").arg(&path).output().expect("it runs");
        assert_eq!(output.status.code(), Some(3), "{}", told(&output));
        assert!(told(&output).contains(what), "{}", told(&output));
    }
}

#[test]
fn the_configuration_of_the_repository_runs_as_it_is() {
    let text = include_str!("../config.ron");
    let ours = "listen: \"127.0.0.1:8787\"";
    assert!(text.contains(ours), "the port of the documentation is the one in config.ron");
    // Another port, another directory and the hosts that tests name, and nothing else: `start_in` would write sections of its own.
    let directory = Directory::new();
    let config = directory.write("config.ron", &text.replace(ours, &format!("listen: \"127.0.0.1:0\", {HOSTS}")));
    let demi = Demi::start_from(std::sync::Arc::new(directory), &config);
    demi.wait_ready();
    for path in ["/pool", "/child", "/echo/there"] {
        assert_eq!(demi.post(path, "hello").body, "hello", "{path}");
    }
    let routed = demi.post("/v1/requests", r#"{"from":"discord","content":"!play something"}"#);
    assert_eq!((routed.status, routed.body.as_str()), (200, "!play something"));
    until("every platform is ready", || {
        let status = demi.json("/v1/status");
        status["platforms"].as_array()?.iter().all(|platform| platform["ready"] == true).then_some(())
    });
}

#[test]
fn the_doctor_needs_no_demi_and_leaves_nothing_behind() {
    let directory = Directory::new();
    let config =
        directory.write("config.ron", r#"(platforms: [(name: "echo", host: Inline)], routes: [(to: "echo")])"#);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/machines/raspberry-pi-os");
    let doctor = |arguments: &[&str]| {
        let mut command = lonely(&directory);
        command.args(["doctor", "--root", root]).args(arguments).output().expect("it runs")
    };
    let output = doctor(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    for line in ["cgroup_enable=memory cgroup_memory=1", "psi=1", "config.ron: 1 platform, 1 route", "(57.4 %)"] {
        assert!(told(&output).contains(line), "{line} is not in\n{}", told(&output));
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).expect("it is there").flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    std::fs::write(config, "(platforms: [(name: \"echo\", hots: Inline)])").expect("it can be written");
    let output = doctor(&["--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!((&found["ok"], &found["ram"]["source"]), (&false.into(), &"mem_available".into()));
    let checks = found["checks"].as_array().expect("it is a list");
    let failed: Vec<_> = checks.iter().filter(|check| check["verdict"] == "fail").collect();
    assert!(failed.len() == 1 && failed[0]["remedy"].as_str().is_some_and(|text| text.contains("did you mean host?")));
}
