//! `demi plugin new NAME --lang …`: writes a plugin that works.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use demi::{Host, Platform};

use crate::arguments::Language;
use crate::check::mistakes_of;
use crate::{print, FAILED, USAGE};

/// What others may read and nobody else may write: Demi refuses what others may write to.
const FILE_MODE: u32 = 0o644;
const PROGRAM_MODE: u32 = 0o755;

/// What cargo keeps below `target/release` itself, and so refuses as the name of a program.
const CARGO_NAMES: [&str; 4] = ["build", "deps", "examples", "incremental"];

/// A file of a plugin: where, what, and with which permissions.
struct File {
    path: String,
    text: String,
    mode: u32,
}

/// Writes the plugin; by default to `plugins/NAME`.
pub(crate) fn write(name: &str, language: Language, folder: Option<PathBuf>) -> ExitCode {
    if let Some(mistake) = mistake_in(name, language) {
        eprintln!("demi: {mistake}");
        return ExitCode::from(USAGE);
    }
    let folder = folder.unwrap_or_else(|| Path::new("plugins").join(name));
    match write_folder(&folder, &files(name, language)) {
        Ok(()) => print(&next_steps(name, language, &folder)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let folder = folder.display();
            eprintln!("demi: {folder} is there already and is left as it is; remove it, or name another with --dir");
            ExitCode::from(FAILED)
        }
        Err(error) => {
            eprintln!("demi: {} cannot be written: {error}", folder.display());
            ExitCode::from(FAILED)
        }
    }
}

/// What is wrong with a name, by the rule that configurations have.
fn mistake_in(name: &str, language: Language) -> Option<String> {
    if language == Language::Rust && CARGO_NAMES.contains(&name) {
        return Some(format!("name: cargo builds no program named {name:?}; choose another, such as \"my-{name}\""));
    }
    let platform = Platform { command: vec!["program".to_owned()], ..Platform::new(name, Host::Process(1)) };
    mistakes_of(&platform).iter().find(|mistake| mistake.at == "name").map(ToString::to_string)
}

fn files(name: &str, language: Language) -> Vec<File> {
    let (program, source, capabilities, in_flight) = match language {
        Language::Python => (format!("{name}.py"), include_str!("templates/python.py"), r#""concurrent", "trim""#, 8),
        Language::Node => (format!("{name}.mjs"), include_str!("templates/node.mjs"), r#""concurrent", "trim""#, 32),
        Language::Rust => ("src/main.rs".to_owned(), include_str!("templates/rust.rs"), r#""concurrent", "trim""#, 32),
        Language::Sh => (format!("{name}.sh"), include_str!("templates/shell.sh"), "", 1),
    };
    let command = match language {
        Language::Rust => format!("target/release/{name}"),
        Language::Python | Language::Node | Language::Sh => format!("./{program}"),
    };
    let why = if in_flight == 1 { "                   // it does one thing at a time" } else { "" };
    let (build, limits) = match language {
        Language::Rust => (
            "\n`cargo build --release` builds it; do that first, and after each change.\n",
            "It takes text; a body that is not UTF-8 is refused until you decode `body_base64`.",
        ),
        Language::Sh => ("", "What a shell cannot do is told at the top of the program."),
        Language::Python | Language::Node => ("", "What is printed by mistake goes to the log."),
    };
    let fill = |template: &str| {
        template
            .replace("{{name}}", name)
            .replace("{{program}}", &program)
            .replace("{{command}}", &format!("\"{command}\""))
            .replace("{{capabilities}}", capabilities)
            .replace("{{in_flight_max}}", &in_flight.to_string())
            .replace("{{in_flight_why}}", why)
            .replace("{{build}}", build)
            .replace("{{limits}}", limits)
    };
    let file = |path: &str, template: &str, mode: u32| File { path: path.to_owned(), text: fill(template), mode };
    let mut files = vec![
        file("plugin.ron", include_str!("templates/plugin.ron"), FILE_MODE),
        file("README.md", include_str!("templates/README.md"), FILE_MODE),
    ];
    if language == Language::Rust {
        files.push(file("Cargo.toml", include_str!("templates/rust.toml"), FILE_MODE));
        files.push(file(".gitignore", "/target\n", FILE_MODE));
        files.push(file(&program, source, FILE_MODE));
    } else {
        files.push(file(&program, source, PROGRAM_MODE));
    }
    files
}

/// Writes a new folder; one that is there is left alone.
fn write_folder(folder: &Path, files: &[File]) -> io::Result<()> {
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(PROGRAM_MODE).create(parent)?;
    }
    let create = |folder: &Path| {
        DirBuilder::new().mode(PROGRAM_MODE).create(folder)?;
        // Not as the umask would have it: Demi may run as another user.
        std::fs::set_permissions(folder, Permissions::from_mode(PROGRAM_MODE))
    };
    create(folder)?;
    for File { path, text, mode } in files {
        let path = folder.join(path);
        if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
            create(parent)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(*mode).open(&path)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(*mode))?;
    }
    Ok(())
}

fn next_steps(name: &str, language: Language, folder: &Path) -> String {
    let shown = folder.display();
    let mut steps = vec![format!("written: {shown}")];
    if language == Language::Rust {
        steps.push(format!("build it: cargo build --release --manifest-path {shown}/Cargo.toml"));
    }
    steps.push(format!("check it: demi plugin check {shown}"));
    steps.push(format!("a Demi whose `plugins.paths` holds this folder finds it by itself: demi platforms {name}"));
    steps.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANGUAGES: [Language; 4] = [Language::Python, Language::Node, Language::Rust, Language::Sh];

    #[test]
    fn nothing_of_a_template_is_left_unfilled() {
        for language in LANGUAGES {
            for file in files("my-plugin", language) {
                assert!(!file.text.contains("{{"), "{language:?}: {}: {}", file.path, file.text);
                assert!(file.text.ends_with('\n') && file.mode & 0o022 == 0, "{language:?}: {}", file.path);
            }
        }
    }

    #[test]
    fn a_name_is_judged_as_in_a_configuration() {
        for name in ["", "a b", "../x", "ü", &"x".repeat(65)] {
            assert!(mistake_in(name, Language::Sh).is_some_and(|told| told.contains("letters, digits")), "{name:?}");
        }
        for name in ["a", "2fa", "my-plugin_1"] {
            assert_eq!(mistake_in(name, Language::Rust), None, "{name:?}");
        }
        assert_eq!(mistake_in("build", Language::Sh), None);
        assert!(mistake_in("build", Language::Rust).is_some_and(|told| told.contains("my-build")));
    }
}
