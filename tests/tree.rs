//! What must not be there: async runtimes in the tree, effects in the conductor, unsafe code in all but one file.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Names of packages, as cargo tells them.
fn tree(arguments: &[&str]) -> Vec<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(root())
        .args(["tree", "--offline", "--prefix", "none", "--format", "{p}", "-e", "normal"])
        .args(arguments)
        .output()
        .expect("cargo runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("names are text");
    text.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

#[test]
fn no_async_runtime_is_in_the_tree() {
    let names = tree(&["--workspace"]);
    assert!(names.iter().any(|name| name == "mio"), "the tree was not read: {names:?}");
    let runtimes = [
        "tokio",
        "async-std",
        "async-executor",
        "async-global-executor",
        "async-io",
        "smol",
        "futures",
        "futures-executor",
        "futures-util",
        "glommio",
        "monoio",
        "compio",
        "embassy-executor",
        "hyper",
        "actix-rt",
        "pollster",
    ];
    for runtime in runtimes {
        assert!(!names.iter().any(|name| name == runtime), "{runtime} is in the tree");
    }
}

#[test]
fn the_conductor_has_nothing_to_act_with() {
    let names = tree(&["-p", "demi-conductor"]);
    assert!(names.iter().any(|name| name == "serde"), "the tree was not read: {names:?}");
    for name in ["mio", "crossbeam-channel", "sled", "sysinfo", "rustix", "libc", "demi-platform", "demi-reactor"] {
        assert!(!names.iter().any(|found| found == name), "{name} is below the conductor");
    }
}

#[test]
fn platforms_and_the_conductor_do_not_know_each_other() {
    let names = tree(&["-p", "demi-platform"]);
    assert!(!names.iter().any(|name| name == "demi-conductor" || name == "demi-reactor"), "{names:?}");
}

#[test]
fn unsafe_code_is_in_one_file() {
    let mut found = Vec::new();
    for folder in ["core", "platforms", "tools", "tests", "benches"] {
        look_through(&root().join(folder), &mut found);
    }
    assert_eq!(found, [root().join("core/reactor/sandbox.rs")]);
}

fn look_through(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                look_through(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("sources are text");
            if text.lines().any(has_unsafe) {
                found.push(path);
            }
        }
    }
}

/// Whether a line opens unsafe code: the word before a block, function, implementation or extern, outside comments.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let word = concat!("un", "safe");
    code.match_indices(word).any(|(at, _)| {
        let is_start = !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
        let rest = code[at + word.len()..].trim_start();
        is_start && ["{", "fn ", "impl ", "extern ", "trait "].iter().any(|what| rest.starts_with(what))
    })
}
