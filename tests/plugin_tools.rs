//! The commands for authors of plugins, and those that talk to a Demi that runs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{demi_command, install, misbehaving, until, Demi, Directory, Nowhere};

fn demi(arguments: &[&str]) -> Output {
    demi_command().args(arguments).output().expect("it runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

// ---- demi plugin new, demi plugin check ------------------------------------------------------------------------

/// Writes a plugin in a language that this machine has; `None`, and a word about it, if it has not.
fn new_plugin(directory: &Directory, language: &str, needs: &str) -> Option<PathBuf> {
    if Command::new(needs).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        println!("skipped: {needs} is not installed");
        return None;
    }
    let name = format!("my-{language}");
    let mut command = demi_command();
    let output = command.current_dir(directory.path()).args(["plugin", "new", &name, "--lang", language]).output();
    let output = output.expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("demi plugin check"), "{}", stdout(&output));
    let folder = directory.path().join("plugins").join(name);
    assert_eq!(mode(&folder), 0o755);
    Some(folder)
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("it was written").permissions().mode() & 0o777
}

fn check(path: &Path) -> (Option<i32>, String) {
    let output = demi_command().args(["plugin", "check"]).arg(path).output().expect("it runs");
    (output.status.code(), stdout(&output) + &stderr(&output))
}

/// Every step of the check passes, and every step is made.
fn assert_conforms(folder: &Path) {
    let (code, text) = check(folder);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("14 ok, 0 failed, 0 skipped"), "{text}");
    assert!(text.contains("it was echoed"), "{text}");
}

#[test]
fn a_new_plugin_in_python_passes_the_check() {
    let directory = Directory::new();
    let Some(folder) = new_plugin(&directory, "python", "python3") else { return };
    assert_eq!((mode(&folder.join("my-python.py")), mode(&folder.join("plugin.ron"))), (0o755, 0o644));
    assert_conforms(&folder);
}

#[test]
fn a_new_plugin_in_node_passes_the_check() {
    let directory = Directory::new();
    if let Some(folder) = new_plugin(&directory, "node", "node") {
        assert_conforms(&folder);
    }
}

#[test]
fn a_new_plugin_in_sh_passes_the_check() {
    let directory = Directory::new();
    let folder = new_plugin(&directory, "sh", "true").expect("every system has a shell");
    assert_conforms(&folder);
}

#[test]
fn a_new_plugin_in_rust_passes_the_check() {
    let directory = Directory::new();
    let folder = new_plugin(&directory, "rust", "cargo").expect("cargo runs this test");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(&folder).env_remove("CARGO_TARGET_DIR").args(["build", "--release", "--offline"]);
    let built = build.output().expect("cargo runs this test");
    let told = stderr(&built);
    if !built.status.success() && ["no matching package", "--offline"].iter().any(|word| told.contains(word)) {
        println!("skipped: serde_json is not in the registry's cache");
        return;
    }
    assert!(built.status.success(), "{told}");
    assert_conforms(&folder);
}

#[test]
fn a_new_plugin_takes_nobodys_place() {
    let directory = Directory::new();
    let folder = directory.path().join("there");
    let new = |name: &str| {
        let mut command = demi_command();
        command.args(["plugin", "new", name, "--lang", "sh", "--dir"]).arg(&folder).output().expect("it runs")
    };
    let bad = new("no name");
    assert_eq!(bad.status.code(), Some(2));
    assert!(stderr(&bad).contains("letters, digits") && !folder.exists(), "{}", stderr(&bad));
    assert_eq!(new("one").status.code(), Some(0));
    let again = new("two");
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("is there already") && stderr(&again).contains("--dir"), "{}", stderr(&again));
    let manifest = std::fs::read_to_string(folder.join("plugin.ron")).expect("it was written");
    assert!(manifest.contains("\"one\"") && !folder.join("two.sh").exists());
}

/// A folder with a manifest of the program that misbehaves.
fn misbehaving_plugin(directory: &Directory, mode: &str) -> PathBuf {
    let words: String = mode.split(' ').map(|word| format!(", {word:?}")).collect();
    let text = format!("(name: \"bad\", version: \"1\", command: [{:?}{words}], stop_grace_ms: 500)", misbehaving());
    directory.write("plugin.ron", &text);
    directory.path().to_owned()
}

#[test]
fn a_plugin_that_misbehaves_fails_at_the_right_line() {
    for (mode, step, seen) in [
        ("exits 3", "handshake", "exit code 3"),
        ("dies-on-request", "a request", "exit code 3"),
        ("prints", "stdout", "hello from a plugin that prints"),
        ("ignores-term", "TERM", "lives on"),
        ("slow-goodbye 60000", "shutdown", "lives on"),
    ] {
        let directory = Directory::new();
        let (code, text) = check(&misbehaving_plugin(&directory, mode));
        assert_eq!(code, Some(1), "{mode}: {text}");
        let start = format!("FAIL  {step}: ");
        let line = text.lines().find(|line| line.starts_with(&start));
        assert!(line.is_some_and(|line| line.contains(seen)), "{mode}: {start} … {seen} is not in\n{text}");
        let healthy = text.lines().any(|line| line.starts_with("ok    health: "));
        assert_eq!(healthy, !mode.starts_with("exits"), "{mode}: {text}");
    }
}

#[test]
fn a_plugin_that_is_checked_finds_the_environment_that_demi_gives_it() {
    let directory = Directory::new();
    install(
        &directory.path().join("p.sh"),
        "#!/bin/sh\n[ -d \"$TMPDIR\" ] && [ -z \"$(ls -A \"$TMPDIR\")\" ] && echo yes >> empty || echo no >> empty\n: > \"$TMPDIR/used\"\n\
         tr '\\0' '\\n' < /proc/$$/environ > environ\nread -r line\nexit 3\n",
    );
    let manifest = r#"{"name":"envious","version":"1","command":["./p.sh"],"env":{"A":"b","DEMI_INSTANCE":"x/9"}}"#;
    directory.write("plugin.json", manifest);
    let mut command = demi_command();
    command.args(["plugin", "check"]).arg(directory.path()).env("OF_THE_CALLER", "1");
    assert_eq!(command.output().expect("it runs").status.code(), Some(1));
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).expect("it was written");
    let environment = read("environ");
    let mut words: Vec<_> = environment.lines().filter_map(|line| line.split_once('=')).collect();
    words.sort_unstable();
    let names: Vec<_> = words.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["A", "DEMI_INSTANCE", "PATH", "TMPDIR"]);
    assert_eq!((words[0].1, words[1].1), ("b", "envious/0"));
    assert!(read("empty").lines().all(|line| line == "yes") && !Path::new(words[3].1).exists());
}

#[test]
fn a_plugin_that_hangs_is_told_in_half_a_minute_and_leaves_nothing_behind() {
    let directory = Directory::new();
    let mark = format!("demi-hangs-{}", std::process::id());
    // With a grace of five seconds the steps before would leave no time for the last.
    let manifest = format!(r#"{{"name":"h","version":"1","command":["./h.sh","{mark}"],"stop_grace_ms":500}}"#);
    directory.write("plugin.json", &manifest);
    let script = "#!/bin/sh\ntrap '' TERM\nread -r line\n\
        echo '{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"protocol\":1}}'\nwhile :; do sleep 1; done\n";
    install(&directory.path().join("h.sh"), script);
    let began = Instant::now();
    let (code, text) = check(directory.path());
    assert_eq!(code, Some(1), "{text}");
    // Not a measurement: the command promises this bound.
    assert!(began.elapsed() < Duration::from_secs(30), "{text}");
    assert!(text.contains("FAIL  health: ") && text.contains("FAIL  TERM: "), "{text}");
    let command_lines = std::fs::read_dir("/proc").expect("Linux has /proc").flatten();
    let left: Vec<_> = command_lines
        .filter(|entry| std::fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|line| line.contains(&mark)))
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_broken_manifest_and_what_others_may_write_to_are_told() {
    let directory = Directory::new();
    directory.write("plugin.ron", "(name: \"a b\", version: \"1\", protocol: \"demi/9\", command: [\"./x\"])");
    let (code, text) = check(directory.path());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAIL  manifest: ") && text.contains("demi/9") && text.contains("a b"), "{text}");

    let directory = Directory::new();
    let manifest = directory.write("plugin.ron", "(name: \"a\", version: \"1\", command: [\"./x\"])");
    std::fs::set_permissions(&manifest, std::fs::Permissions::from_mode(0o666)).expect("it is ours");
    let (code, text) = check(&manifest);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAIL  manifest: ") && text.contains("chmod o-w"), "{text}");

    assert_eq!(check(Path::new("/nowhere")).0, Some(2));
}

#[test]
fn an_mcp_server_is_checked_in_its_own_protocol() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: python3 is not installed");
        return;
    }
    let directory = Directory::new();
    let manifest = "(name: \"m\", version: \"1\", protocol: \"mcp\", command: [\"python3\", \"server.py\"])";
    directory.write("plugin.ron", manifest);
    directory.write(
        "server.py",
        r#"
import json, sys
for line in sys.stdin.buffer:
    try:
        message = json.loads(line)
        id, method = message["id"], message["method"]
    except (ValueError, KeyError, TypeError):
        continue
    answer = {"jsonrpc": "2.0", "id": id}
    if method == "initialize":
        answer["result"] = {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": {}}
    elif method == "ping":
        answer["result"] = {}
    elif method == "tools/list":
        answer["result"] = {"tools": [{"name": "add", "inputSchema": {"type": "object"}}]}
    else:
        answer["error"] = {"code": -32602, "message": "no"}
    print(json.dumps(answer), flush=True)
"#,
    );
    let (code, text) = check(directory.path());
    assert_eq!(code, Some(0), "{text}");
    for line in
        ["protocol 2024-11-05", "ok    tools: 1: add", "ok    an unknown tool: error -32602", "ok    end of stdin"]
    {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

// ---- commands that talk to a Demi that runs --------------------------------------------------------------------

#[test]
fn without_a_demi_each_command_says_so() {
    let nowhere = Nowhere::new();
    let address = nowhere.address.to_string();
    for words in
        [&["platforms"][..], &["platforms", "x"], &["why", "x"], &["logs", "x"], &["stop", "x"], &["reload", "x"]]
    {
        let output = demi(&[words, &["--address", &address]].concat());
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let told = stderr(&output);
        assert!(told.contains(&format!("no Demi answers at {address}")) && told.contains("demi run"), "{told}");
        assert!(output.stdout.is_empty(), "{words:?}");
    }
}

#[test]
fn the_configuration_says_where_demi_is() {
    let directory = Directory::new();
    let nowhere = Nowhere::new();
    let address = nowhere.address.to_string();
    let config = directory.write("config.ron", &format!("(http: (listen: {address:?}))"));
    let found = demi_command().current_dir(directory.path()).arg("platforms").output().expect("it runs");
    assert!(stderr(&found).contains(&address), "{}", stderr(&found));
    let named = demi_command().args(["platforms", "--config"]).arg(&config).output().expect("it runs");
    assert!(stderr(&named).contains(&address), "{}", stderr(&named));
    directory.write("config.ron", "(nonsense: 1)");
    let broken = demi_command().args(["platforms", "--config"]).arg(&config).output().expect("it runs");
    assert_eq!(broken.status.code(), Some(3));
    assert!(stderr(&broken).contains("nonsense") && stderr(&broken).contains("--address"), "{}", stderr(&broken));
}

#[test]
fn a_running_demi_tells_of_its_platforms() {
    let demi = Demi::start(
        r#"platforms: [(name: "child", host: Process(2), command: ["{demi}", "plugin", "serve", "echo"]), (name: "echo", host: Inline)]"#,
    );
    demi.wait_ready();
    let address = demi.address.to_string();
    let ask = |words: &[&str]| self::demi(&[words, &["--address", &address]].concat());
    let table = until("both children serve", || {
        let text = stdout(&ask(&["platforms"]));
        let row = text.lines().find(|line| line.starts_with("child "))?;
        (row.contains(" process ") && row.contains(" ready ") && row.contains(" 2/2 ")).then_some(text)
    });
    assert!(table.starts_with("NAME ") && table.contains("\necho "), "{table}");
    assert!(!table.contains('\u{1b}'), "no control codes where no terminal is: {table:?}");
    let one = stdout(&ask(&["platforms", "child"]));
    for pid in demi.pids("child") {
        assert!(one.contains(&format!("pid {pid}")), "{one}");
    }
    let json: serde_json::Value = serde_json::from_str(&stdout(&ask(&["platforms", "child", "--json"]))).expect("JSON");
    assert_eq!(json["name"], "child");
    let unknown = ask(&["platforms", "chidl"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("chidl") && stderr(&unknown).contains("child"), "{}", stderr(&unknown));
    // Whoever closes the pipe early has read enough.
    let mut early = demi_command().args(["platforms", "--address", &address]).spawn().expect("it runs");
    drop(early.stdout.take());
    assert_eq!(early.wait().expect("it is our child").code(), Some(0));
}
