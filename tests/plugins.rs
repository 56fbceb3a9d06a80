//! Plugin folders, as the product binary finds them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use crate::support::{demi_command, until, Demi, Directory};

const GOOD: &str = r#"(name: "good", version: "2.1.0", command: ["{demi}", "plugin", "serve", "echo"])"#;

/// A plugin folder in the place where one is looked for without being told.
fn write_plugin(directory: &Directory, folder: &str, manifest: &str) {
    std::fs::create_dir_all(directory.path().join("plugins").join(folder)).expect("it can be written");
    directory.write(&format!("plugins/{folder}/plugin.ron"), manifest);
}

fn dry_run(config: &Path) -> (Output, String) {
    let output = demi_command().args(["--dry-run", "--config"]).arg(config).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output, text)
}

#[test]
fn a_dry_run_shows_the_plugins_and_those_that_are_refused_and_means_0() {
    let directory = Directory::new();
    write_plugin(&directory, "good", GOOD);
    write_plugin(&directory, "bad", r#"(name: "bad", version: "1", command: ["no-such-program"])"#);
    let config = directory.write("config.ron", r#"(routes: [(path: "/good", to: "good"), (path: "/bad", to: "bad")])"#);
    let (output, plan) = dry_run(&config);
    assert_eq!(output.status.code(), Some(0), "{plan}");
    let folder = directory.path().join("plugins/good");
    for line in [
        "good         1 processes: {demi} plugin serve echo; starts at its first request".to_owned(),
        format!("version 2.1.0 in {}", folder.display()),
        "bad          a plugin that is refused; starts by hand".to_owned(),
        "plugins/bad/plugin.ron:1:38: no executable \"no-such-program\" is on PATH".to_owned(),
        "until then requests for bad are answered 503".to_owned(),
        "path /good → good".to_owned(),
    ] {
        assert!(plan.contains(&line), "{line} is not in\n{plan}");
    }
}

#[test]
fn a_configuration_with_a_mistake_of_its_own_means_3_with_plugins_too() {
    let directory = Directory::new();
    write_plugin(&directory, "good", GOOD);
    let config = directory.write("config.ron", r#"(routes: [(to: "good"), (to: "goood")])"#);
    let (output, told) = dry_run(&config);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("did you mean \"good\"?") && told.lines().count() == 1, "{told}");
}

#[test]
fn a_broken_plugin_keeps_nothing_from_running_and_its_route_says_so() {
    let directory = Arc::new(Directory::new());
    write_plugin(&directory, "good", GOOD);
    write_plugin(&directory, "bad", "(name: \"bad\", version: \"1\", comand: [\"sh\"])");
    let open = directory.path().join("plugins/open");
    write_plugin(&directory, "open", r#"(name: "open", version: "1", command: ["sh"])"#);
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    let sections = r#"platforms: [(name: "echo", host: Inline)],
        routes: [(path: "/good", to: "good"), (path: "/bad", to: "bad"), (path: "/*", to: "echo")]"#;
    let demi = Demi::start_in(Arc::clone(&directory), "", sections);
    let good = until("the plugin answers", || Some(demi.post("/good", "hello")).filter(|answer| answer.status == 200));
    assert_eq!(good.body, "hello");
    // Not by the rule behind it, whose platform was never meant.
    let bad = demi.post("/bad", "hello");
    assert_eq!(bad.status, 503, "{bad:?}");
    assert_eq!(demi.post("/other", "hello").body, "hello");
    let log = demi.log();
    for line in [
        "bad/plugin.ron:1:29: the manifest has no field comand; did you mean command?",
        "plugins/open: it may be written by everybody",
    ] {
        let line = log.lines().find(|told| told.contains(line)).unwrap_or_else(|| panic!("{line} is not in\n{log}"));
        assert!(line.contains("WARN  refused: "), "{line}");
    }
}
