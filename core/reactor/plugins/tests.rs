#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::*;
use crate::config_file::{load, Loaded};

/// A directory of plugins, beside a configuration, that is removed with the test.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Home {
    fn new() -> Home {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("demi-plugins-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("plugins")).unwrap();
        mode(&path.join("plugins"), 0o755);
        Home(path)
    }

    fn directory(&self) -> PathBuf {
        self.0.join("plugins")
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Writes a file below the directory of plugins, with the folders on the way to it; its time lies in the past, and
    /// another one at each writing.
    fn write(&self, path: &str, text: &str) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = self.directory().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        mode(path.parent().unwrap(), 0o755);
        fs::write(&path, text).unwrap();
        mode(&path, 0o644);
        let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + NEXT.fetch_add(1, Ordering::Relaxed));
        fs::File::options().write(true).open(&path).unwrap().set_modified(past).unwrap();
        path
    }

    /// A plugin with a program, and these further fields.
    fn plugin(&self, folder: &str, name: &str, fields: &str) {
        let text = format!("(name: {name:?}, version: \"1.0.0\", command: [\"./run\"], {fields})");
        self.write(&format!("{folder}/plugin.ron"), &text);
        self.program(folder, "#!/bin/sh\n");
    }

    fn program(&self, folder: &str, text: &str) {
        mode(&self.write(&format!("{folder}/run"), text), 0o755);
    }

    fn config(&self, text: &str) -> PathBuf {
        let path = self.0.join("config.ron");
        fs::write(&path, text).unwrap();
        path
    }

    fn discover(&self) -> Discovery {
        self.discover_beside(&[])
    }

    fn discover_beside(&self, platforms: &[Platform]) -> Discovery {
        let config = Config { platforms: platforms.to_vec(), ..Config::default() };
        discover(&[self.directory()], Path::new("config.ron"), &config)
    }

    fn rescan(&self) -> Rescan {
        Rescan::new(vec![self.directory()], "config.ron".into(), &Config::default(), self.discover())
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn names(discovery: &Discovery) -> Vec<&str> {
    discovery.found.iter().map(|found| found.platform.name.as_str()).collect()
}

/// The one refusal there is.
fn refused(discovery: &Discovery) -> String {
    assert_eq!(discovery.refused.len(), 1, "{:?} and {:?}", names(discovery), discovery.refused);
    discovery.refused[0].to_string()
}

fn needy(name: &str, needs: &[&str]) -> Platform {
    Platform { needs: needs.iter().map(|need| (*need).to_owned()).collect(), ..Platform::new(name, Host::Inline) }
}

// -- what is found

#[test]
fn plugins_are_found_in_the_order_of_their_folders_and_other_things_are_passed_over() {
    let home = Home::new();
    home.plugin("b", "second", "");
    home.plugin("a", "first", "");
    home.write(
        "c/plugin.json",
        r#"{"name": "third", "version": "1", "command": ["{demi}", "plugin", "serve", "echo"]}"#,
    );
    home.write("notes.txt", "");
    home.write("empty/readme", "");
    home.write(".git/plugin.ron", "(");
    let discovery = home.discover();
    assert_eq!(names(&discovery), ["first", "second", "third"]);
    assert_eq!(discovery.refused, []);
    let platform = &discovery.found[0].platform;
    assert_eq!(platform.directory.as_deref(), home.folder("a").to_str());
    assert_eq!(discovery.found[0].files, [home.folder("a/plugin.ron"), home.folder("a/./run")]);
}

#[test]
fn a_missing_directory_holds_no_plugins_and_one_named_twice_is_looked_at_once() {
    let home = Home::new();
    home.plugin("a", "a", "");
    symlink(home.directory(), home.0.join("alias")).unwrap();
    let directories = [home.0.join("nowhere"), home.directory(), home.0.join("alias"), home.directory()];
    let discovery = discover(&directories, Path::new("config.ron"), &Config::default());
    assert_eq!((names(&discovery), discovery.refused.len()), (vec!["a"], 0));
}

#[test]
fn a_directory_that_is_none_or_that_others_may_write_is_refused_and_the_rest_is_found() {
    let home = Home::new();
    home.plugin("a", "a", "");
    fs::create_dir(home.0.join("open")).unwrap();
    mode(&home.0.join("open"), 0o777);
    fs::write(home.0.join("file"), "").unwrap();
    let directories = [home.0.join("file"), home.0.join("open"), home.0.join("file/below"), home.directory()];
    let discovery = discover(&directories, Path::new("config.ron"), &Config::default());
    assert_eq!(names(&discovery), ["a"]);
    let told: Vec<String> = discovery.refused.iter().map(Refused::to_string).collect();
    assert!(told[0].contains("file: this is no directory; name a directory in plugins.paths"), "{told:?}");
    assert!(told[1].contains("open: it may be written by everybody") && told[1].contains("chmod o-w"), "{told:?}");
    assert!(told[2].contains("cannot be looked at"), "{told:?}");
    assert_eq!(discovery.refused[0].name, None);
}

// -- what is refused

#[test]
fn a_broken_manifest_is_refused_under_its_name_and_stops_nothing() {
    let home = Home::new();
    home.plugin("a", "first", "");
    home.plugin("b", "second", "que_max: 5");
    home.plugin("c", "third", "");
    let discovery = home.discover();
    assert_eq!(names(&discovery), ["first", "third"]);
    let told = refused(&discovery);
    assert!(told.contains("b/plugin.ron:1:") && told.contains("did you mean queue_max?"), "{told}");
    assert_eq!(discovery.refused[0].name.as_deref(), Some("second"));
    assert_eq!(discovery.refused[0].folder, home.folder("b"));
}

#[test]
fn what_any_platform_may_not_be_a_plugin_may_not_be_either_and_it_is_told_where_it_stands() {
    let home = Home::new();
    home.plugin("a", "a b", "\nenv: {\"A=B\": \"\"},\nlimits: (memory_soft_mb: 2, memory_max_mb: 1),");
    let told = refused(&home.discover());
    assert!(told.contains("plugin.ron:1:8: \"a b\" is not a name"), "{told}");
    assert!(told.contains("plugin.ron:2:6: \"A=B\" is not the name of an environment variable"), "{told}");
    assert!(told.contains("plugin.ron:3:26: is above memory_max_mb"), "{told}");
}

#[test]
fn an_unknown_protocol_version_is_refused_at_its_field() {
    let home = Home::new();
    home.write(
        "a/plugin.json",
        "{\"name\": \"a\", \"version\": \"1\",\n\"protocol\": \"demi/9\", \"command\": [\"sh\"]}",
    );
    let told = refused(&home.discover());
    assert!(told.contains("plugin.json:2:13: \"demi/9\" is no protocol"), "{told}");
}

#[test]
fn a_command_that_is_missing_or_not_executable_is_refused() {
    let home = Home::new();
    home.plugin("a", "a", "");
    fs::remove_file(home.folder("a/run")).unwrap();
    assert!(refused(&home.discover()).contains("run is not there; put it there"));
    home.write("a/run", "");
    let told = refused(&home.discover());
    assert!(told.contains("plugin.ron:1:") && told.contains("run is not executable; make it so: chmod +x"), "{told}");
    fs::remove_file(home.folder("a/run")).unwrap();
    fs::create_dir(home.folder("a/run")).unwrap();
    assert!(refused(&home.discover()).contains("run is no file"));
    let command = |program: &str| {
        home.write("a/plugin.ron", &format!("(name: \"a\", version: \"1\", command: [{program:?}])"));
        home.discover()
    };
    assert!(refused(&command("no-such-program")).contains("no executable \"no-such-program\" is on PATH"));
    assert!(refused(&command("")).contains("is a process without a command"));
    for sound in ["sh", "{demi}", "/bin/sh"] {
        assert_eq!(command(sound).refused, [], "{sound}");
    }
}

#[test]
fn what_others_may_write_is_refused_and_what_the_group_may_write_is_not() {
    let home = Home::new();
    home.plugin("a", "a", "");
    for path in ["a", "a/plugin.ron", "a/run"] {
        let path = home.directory().join(path);
        let before = fs::metadata(&path).unwrap().permissions().mode();
        mode(&path, before | 0o022);
        let told = refused(&home.discover());
        assert!(told.contains("may be written by everybody") && told.contains("chmod o-w"), "{told}");
        mode(&path, before | 0o020);
        assert_eq!(home.discover().refused, [], "{}", path.display());
    }
}

#[test]
fn demi_in_a_command_is_its_executable_wherever_it_stands() {
    let command = ["{demi}", "--with={demi}", "{Demi}"].map(str::to_owned);
    assert_eq!(with_executable(&command, Path::new("/bin/demi")), ["/bin/demi", "--with=/bin/demi", "{Demi}"]);
    assert!(names_demi("{demi}-more") && !names_demi("demi"));
}

#[test]
fn a_script_that_the_program_is_given_is_held_to_the_same() {
    let home = Home::new();
    home.write("a/plugin.ron", "(name: \"a\", version: \"1\", command: [\"sh\", \"main.sh\"])");
    let script = home.write("a/main.sh", "");
    assert_eq!(home.discover().found[0].files.last(), Some(&script));
    mode(&script, 0o666);
    assert!(refused(&home.discover()).contains("main.sh may be written by everybody"));
}

#[test]
fn what_belongs_to_somebody_else_is_refused_unless_that_is_root() {
    let home = Home::new();
    home.plugin("a", "a", "");
    let somebody = 4242;
    let directories = [home.directory()];
    let found_by = |user| search(&directories, Path::new("config.ron"), &Config::default(), &BTreeMap::new(), user);
    if effective_user() == 0 {
        assert_eq!(names(&found_by(somebody)), ["a"], "root's files are trusted");
        std::os::unix::fs::chown(home.folder("a/run"), Some(somebody), None).unwrap();
        let told = refused(&found_by(0));
        assert!(told.contains("run belongs to user 4242, who is neither the one that runs Demi (0)"), "{told}");
        assert_eq!(names(&found_by(somebody)), ["a"]);
    } else {
        assert!(refused(&found_by(somebody)).contains("who is neither the one that runs Demi (4242) nor root"));
    }
}

#[test]
fn symlinks_out_of_the_directory_are_followed_and_their_targets_are_held_to_the_same() {
    let home = Home::new();
    let outside = home.0.join("outside");
    fs::create_dir(&outside).unwrap();
    mode(&outside, 0o755);
    fs::copy("/bin/true", outside.join("run")).unwrap();
    mode(&outside.join("run"), 0o755);
    fs::write(outside.join("plugin.ron"), "(name: \"a\", version: \"1\", command: [\"./run\"])").unwrap();
    symlink(&outside, home.folder("a")).unwrap();
    assert_eq!(names(&home.discover()), ["a"]);
    mode(&outside, 0o777);
    assert!(refused(&home.discover()).contains("may be written by everybody"));
    // The folder is ours, and its program a symlink to a place where others can put another one.
    fs::remove_file(home.folder("a")).unwrap();
    home.write("a/plugin.ron", "(name: \"a\", version: \"1\", command: [\"./run\"])");
    symlink(outside.join("run"), home.folder("a/run")).unwrap();
    assert!(refused(&home.discover()).contains("outside may be written by everybody"));
    mode(&outside, 0o755);
    assert_eq!(home.discover().refused, []);
    mode(&outside.join("run"), 0o757);
    assert!(refused(&home.discover()).contains("run may be written by everybody"));
    fs::remove_dir_all(&outside).unwrap();
    symlink(&outside, home.folder("b")).unwrap();
    let discovery = home.discover();
    assert!(discovery.refused[0].to_string().contains("run is not there"), "{:?}", discovery.refused);
    assert!(discovery.refused[1].to_string().contains("b: this symlink leads nowhere"), "{:?}", discovery.refused);
}

#[test]
fn two_manifests_in_a_folder_are_one_too_many() {
    let home = Home::new();
    home.plugin("a", "a", "");
    home.write("a/plugin.json", "{}");
    assert!(refused(&home.discover()).contains("a: there are both a plugin.ron and a plugin.json; keep the one"));
}

#[test]
fn a_manifest_that_is_too_long_or_no_file_or_no_text_is_refused() {
    let home = Home::new();
    home.write("a/plugin.ron", &" ".repeat(MANIFEST_BYTES_MAX + 1));
    assert!(refused(&home.discover()).contains("longer than 65536 bytes; shorten it"));
    fs::write(home.folder("a/plugin.ron"), b"(\n\xff").unwrap();
    assert!(refused(&home.discover()).contains("plugin.ron:2:1: this character is not UTF-8"));
    fs::remove_file(home.folder("a/plugin.ron")).unwrap();
    fs::create_dir(home.folder("a/plugin.ron")).unwrap();
    assert!(refused(&home.discover()).contains("the manifest is no file"));
}

#[test]
fn a_name_that_is_taken_is_refused_with_both_files() {
    let home = Home::new();
    home.plugin("a", "echo", "");
    home.plugin("b", "music", "");
    home.plugin("c", "music", "");
    let discovery = home.discover_beside(&[needy("echo", &[])]);
    assert_eq!(names(&discovery), ["music"]);
    let told: Vec<String> = discovery.refused.iter().map(Refused::to_string).collect();
    assert!(told[0].contains("a/plugin.ron:1:8: the name \"echo\" is taken by config.ron"), "{told:?}");
    let owner = home.folder("b/plugin.ron");
    assert!(told[1].contains("c/plugin.ron:1:8:") && told[1].contains(owner.to_str().unwrap()), "{told:?}");
}

#[test]
fn unknown_needs_are_refused_with_the_nearest_name_and_so_are_those_that_need_the_refused() {
    let home = Home::new();
    home.plugin("a", "a", "needs: [\"b\"]");
    home.plugin("b", "b", "needs: [\"ehco\"]");
    home.plugin("c", "c", "needs: [\"echo\", \"d\"]");
    home.plugin("d", "d", "");
    let discovery = home.discover_beside(&[needy("echo", &[])]);
    assert_eq!(names(&discovery), ["c", "d"]);
    let told: Vec<String> = discovery.refused.iter().map(Refused::to_string).collect();
    assert!(
        told[0].contains("it needs \"b\", which is refused itself") && told[0].contains("b/plugin.ron"),
        "{told:?}"
    );
    assert!(told[1].contains("no platform is named \"ehco\"; did you mean \"echo\"?"), "{told:?}");
}

#[test]
fn a_circle_is_refused_whole_with_those_that_need_it_and_without_the_rest() {
    let home = Home::new();
    home.plugin("a", "a", "needs: [\"b\"]");
    home.plugin("b", "b", "needs: [\"a\"]");
    home.plugin("c", "c", "needs: [\"a\"]");
    home.plugin("d", "d", "needs: [\"d\"]");
    home.plugin("e", "e", "needs: [\"config\"]");
    home.plugin("f", "f", "");
    let configured = [needy("config", &["e"]), needy("x", &["y"]), needy("y", &["x"])];
    let discovery = home.discover_beside(&configured);
    assert_eq!(names(&discovery), ["f"]);
    let told: Vec<String> = discovery.refused.iter().map(Refused::to_string).collect();
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(told[0].contains("a → b → a") || told[0].contains("b → a → b"), "{told:?}");
    assert!(told[1].contains("in a circle"), "{told:?}");
    assert!(told[2].contains("which is refused itself"), "{told:?}");
    assert!(told[3].contains("d → d"), "{told:?}");
    assert!(told[4].contains("config → e") || told[4].contains("e → config"), "{told:?}");
}

#[test]
fn platforms_and_instances_stay_bounded() {
    let home = Home::new();
    home.plugin("a", "a", "instances: 256");
    home.plugin("b", "b", "");
    home.plugin("c", "c", "needs: [\"a\"]");
    let children = |count: usize| -> Vec<Platform> {
        (0..count).map(|index| Platform::new(&format!("p{index}"), Host::Process(255))).collect()
    };
    let discovery = home.discover_beside(&children(63));
    assert_eq!(names(&discovery), ["b"]);
    let told: Vec<String> = discovery.refused.iter().map(Refused::to_string).collect();
    assert!(told[0].contains("more than 16384 instances"), "{told:?}");
    assert!(told[1].contains("which is refused itself"), "{told:?}");
    let many: Vec<Platform> = (0..PLATFORMS_MAX - 1).map(|index| needy(&format!("p{index}"), &[])).collect();
    let discovery = home.discover_beside(&many);
    assert_eq!(names(&discovery), ["a"]);
    assert_eq!(discovery.refused.len(), 2);
}

// -- the merge

fn loaded(home: &Home, text: &str) -> Result<Loaded, String> {
    load(&home.config(text), &["echo"]).map_err(|problems| problems.to_string())
}

#[test]
fn plugins_stand_behind_the_platforms_of_the_file_and_routes_and_needs_may_name_them() {
    let home = Home::new();
    home.plugin("a", "weather", "needs: [\"echo\"]");
    let text = "(platforms: [(name: \"echo\", host: Inline, start: Eager), (name: \"late\", host: Inline, \
                adapter: \"echo\", needs: [\"weather\"])], routes: [(to: \"weather\")])";
    let Loaded { config, refused, .. } = loaded(&home, text).unwrap();
    let names: Vec<&str> = config.platforms.iter().map(|platform| platform.name.as_str()).collect();
    assert_eq!((names, refused.len()), (vec!["echo", "late", "weather"], 0));
    assert_eq!(config.mistakes(&["echo"]), []);
    assert_eq!(config.start_order(), Ok(vec![0, 2, 1]));
}

#[test]
fn directories_are_those_of_the_configuration_and_start_where_it_stands() {
    let home = Home::new();
    home.plugin("../more/a", "weather", "");
    assert!(loaded(&home, "(routes: [(to: \"weather\")])").is_err());
    let loaded = loaded(&home, "(plugins: (paths: [\"more\", \"nowhere\"]), routes: [(to: \"weather\")])").unwrap();
    let plugin = loaded.config.platforms[0].plugin.as_ref().unwrap();
    assert_eq!(plugin.folder, home.0.join("more/a"));
}

#[test]
fn a_refused_plugin_that_is_named_has_a_stand_in_and_the_configuration_is_sound() {
    let home = Home::new();
    home.plugin("a", "weather", "needs: [\"nobody\"]");
    home.plugin("b", "unnamed", "needs: [\"nobody\"]");
    let text = "(platforms: [(name: \"late\", host: Inline, adapter: \"echo\", needs: [\"weather\"])], \
                routes: [(to: \"weather\")])";
    let Loaded { config, refused, .. } = loaded(&home, text).unwrap();
    assert_eq!((config.platforms.len(), refused.len()), (2, 2));
    assert!(is_stand_in(&config.platforms[1]) && !is_stand_in(&config.platforms[0]));
    assert_eq!(config.platforms[1].start, Start::Manual);
    assert_eq!(config.mistakes(&["echo"]), []);
    assert!(!Path::new(NO_PROGRAM).exists());
}

#[test]
fn a_plugin_lies_behind_what_the_configuration_names_and_nothing_else() {
    let home = Home::new();
    home.plugin("a", "near", "behind: [\"internet\"], health: (fall: 5), breaker: (recovery: Restart)");
    home.plugin("b", "far", "behind: [\"internet\",\n\"intranet\"]");
    home.plugin("c", "vpn", "behind: [\"tunnel\"]");
    home.plugin("d", "server", "protocol: \"mcp\", breaker: (recovery: Reinitialize)");
    home.plugin("e", "hasty", "breaker: (open_ms: 400)");
    let text = "(breaker: (open_ms: 10, open_max_ms: 300), reachability: [(name: \"internet\", check: Gateway), \
                (name: \"tunnel\", check: Platform(\"vpn\"))], routes: [(to: \"server\")])";
    let Loaded { config, refused, mut rescan, .. } = loaded(&home, text).unwrap();
    let names: Vec<&str> = config.platforms.iter().map(|platform| platform.name.as_str()).collect();
    assert_eq!(names, ["near", "vpn", "server"], "the last two are named by the configuration");
    assert_eq!(config.mistakes(&[]), []);
    let near = &config.platforms[0];
    assert_eq!((near.behind.as_slice(), near.health.fall.map(Bounded::value)), (&["internet".to_owned()][..], Some(5)));
    assert!(config.platforms[1..].iter().all(is_stand_in));
    let told: Vec<String> = refused.iter().map(ToString::to_string).collect();
    let expected = [
        ("b/plugin.ron:2:1: ", "no entry of reachability is named \"intranet\"; did you mean \"internet\"?"),
        ("c/plugin.ron:1:", "\"tunnel\" of `reachability` is this plugin itself; remove it"),
        ("d/plugin.ron:1:", "Reinitialize cannot be done for host Mcp(1)"),
        ("e/plugin.ron:1:", " is below breaker.open_ms"),
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (told, (place, what)) in told.iter().zip(expected) {
        assert!(told.contains(place) && told.contains(what), "{told}");
    }
    // The rules are the same as long as Demi runs.
    assert_eq!(rescan.rescan(), []);
    home.plugin("f", "later", "behind: [\"intranet\"]");
    let changes = rescan.rescan();
    assert!(
        matches!(&changes[..], [Change::Refused(refused)] if refused.to_string().contains("intranet")),
        "{changes:?}"
    );
    home.plugin("f", "later", "behind: [\"internet\"]");
    assert!(matches!(&rescan.rescan()[..], [Change::Came(platform)] if platform.behind == ["internet"]));
}

#[test]
fn a_stand_in_has_what_no_reload_can_change_as_far_as_that_can_be_read() {
    let home = Home::new();
    let shaped = "protocol: \"mcp\", instances: 3, needs: [\"echo\"]";
    home.plugin("a", "misspelt", &format!("{shaped}, que_max: 5"));
    home.plugin("b", "open", shaped);
    mode(&home.folder("b/plugin.ron"), 0o666);
    home.plugin("c", "lost", "needs: [\"echo\", \"nobody\"]");
    home.plugin("d", "selfish", "needs: [\"selfish\"]");
    home.plugin("e", "cut", "(");
    home.plugin("f", "huge", "instances: 256, command: [\"./nothing\"]");
    let routes = |names: &[&str]| names.iter().map(|name| format!("(to: {name:?}),")).collect::<String>();
    let load = |platforms: &str, names: &[&str]| {
        let text = format!("(platforms: [(name: \"echo\", host: Inline), {platforms}], routes: [{}])", routes(names));
        let Loaded { config, .. } = loaded(&home, &text).unwrap();
        let stand_ins = config.platforms.into_iter().filter(is_stand_in);
        stand_ins.map(|platform| (platform.name, platform.host, platform.needs)).collect::<Vec<_>>()
    };
    let echo = || vec!["echo".to_owned()];
    assert_eq!(
        load("", &["misspelt", "open", "lost", "cut"]),
        [
            ("misspelt".to_owned(), Host::Mcp(3), echo()),
            ("open".to_owned(), Host::Mcp(3), echo()),
            ("lost".to_owned(), Host::Process(1), echo()),
            ("cut".to_owned(), Host::Process(1), Vec::new()),
        ]
    );
    assert_eq!(load("", &["selfish"]), [("selfish".to_owned(), Host::Process(1), Vec::new())], "no circle comes of it");
    let many: String =
        (0..63).map(|index| format!("(name: \"p{index}\", host: Process(255), command: [\"sh\"]),")).collect();
    assert_eq!(
        load(&many, &["huge"]),
        [("huge".to_owned(), Host::Process(1), Vec::new())],
        "there is room for no more"
    );
}

#[test]
fn a_route_that_may_mean_a_refused_plugin_without_a_name_is_told_which() {
    let home = Home::new();
    home.write("a/plugin.ron", "(version: \"1\")");
    let told = loaded(&home, "(routes: [(to: \"weather\")])").unwrap_err();
    assert!(told.contains("config.ron:1:16: no platform is named \"weather\""), "{told}");
    assert!(told.contains("or mend the plugin that was refused: ") && told.contains("lacks the field name"), "{told}");
}

#[test]
fn a_broken_configuration_is_judged_with_its_plugins() {
    let home = Home::new();
    home.plugin("a", "weather", "");
    let told = loaded(&home, "(requests_max: 0, routes: [(to: \"weather\"), (to: \"wether\")])").unwrap_err();
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.contains("did you mean \"weather\"?"), "{told}");
}

// -- looking again

#[test]
fn the_looking_may_be_done_on_any_thread() {
    let home = Home::new();
    home.plugin("a", "a", "");
    let mut rescan = home.rescan();
    assert_eq!(std::thread::spawn(move || rescan.rescan()).join().unwrap(), []);
}

#[test]
fn rights_that_change_nothing_are_no_change() {
    let home = Home::new();
    home.plugin("a", "a", "");
    let mut rescan = home.rescan();
    assert_eq!(rescan.rescan(), []);
    mode(&home.folder("a/run"), 0o700);
    assert_eq!(rescan.rescan(), []);
}

#[test]
fn what_has_not_changed_is_not_told() {
    let home = Home::new();
    home.plugin("a", "a", "");
    home.plugin("b", "b", "needs: [\"nobody\"]");
    let mut rescan = home.rescan();
    assert_eq!(rescan.rescan(), []);
    // The same content, written again, and a file that nothing rests on.
    home.plugin("a", "a", "");
    home.write("a/notes", "");
    assert_eq!(rescan.rescan(), []);
    assert_eq!(rescan.rescan(), []);
}

#[test]
fn a_plugin_that_came_changed_and_went_is_told_each_once() {
    let home = Home::new();
    let mut rescan = home.rescan();
    home.plugin("a", "a", "");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Came(platform)] if platform.name == "a"), "{changes:?}");
    assert_eq!(rescan.rescan(), []);
    // Its manifest.
    home.plugin("a", "a", "queue_max: 5");
    let changes = rescan.rescan();
    let is_new = |platform: &Platform| platform.queue_max.value() == 5;
    assert!(matches!(&changes[..], [Change::Changed { platform: Ok(p), .. }] if is_new(p)), "{changes:?}");
    assert_eq!(rescan.rescan(), []);
    // Its program.
    home.program("a", "#!/bin/sh\nexit\n");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Changed { name, platform: Ok(_) }] if name == "a"), "{changes:?}");
    assert_eq!(rescan.rescan(), []);
    // All of it.
    fs::remove_dir_all(home.folder("a")).unwrap();
    assert_eq!(rescan.rescan(), [Change::Gone { name: "a".to_owned() }]);
    assert_eq!(rescan.rescan(), []);
    // One that is back is known.
    home.plugin("a", "a", "queue_max: 5");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Changed { platform: Ok(_), .. }]), "{changes:?}");
}

#[test]
fn a_script_is_watched_as_the_program_is() {
    let home = Home::new();
    home.write("a/plugin.ron", "(name: \"a\", version: \"1\", command: [\"sh\", \"main.sh\"])");
    home.write("a/main.sh", "one");
    let mut rescan = home.rescan();
    assert_eq!(rescan.rescan(), []);
    home.write("a/main.sh", "two");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Changed { platform: Ok(_), .. }]), "{changes:?}");
}

#[test]
fn a_plugin_that_breaks_is_told_with_its_mistakes_and_again_when_it_is_whole() {
    let home = Home::new();
    home.plugin("a", "a", "");
    let mut rescan = home.rescan();
    assert_eq!(rescan.rescan(), []);
    home.plugin("a", "a", "que_max: 5");
    let changes = rescan.rescan();
    let [Change::Changed { name, platform: Err(problems) }] = &changes[..] else { panic!("{changes:?}") };
    assert!(name == "a" && problems.to_string().contains("queue_max"), "{problems}");
    assert_eq!(rescan.rescan(), []);
    home.plugin("a", "a", "");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Changed { platform: Ok(_), .. }]), "{changes:?}");
    // Rights are watched too.
    mode(&home.folder("a/run"), 0o777);
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Changed { platform: Err(_), .. }]), "{changes:?}");
}

#[test]
fn a_newcomer_that_is_refused_is_told_once_and_when_it_is_mended_it_came() {
    let home = Home::new();
    let mut rescan = home.rescan();
    home.plugin("a", "a", "que_max: 5");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Refused(refused)] if refused.name.as_deref() == Some("a")), "{changes:?}");
    assert_eq!(rescan.rescan(), []);
    home.plugin("b", "b", "");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Came(_)]), "{changes:?}");
    home.plugin("a", "a", "");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Came(platform)] if platform.name == "a"), "{changes:?}");
}

#[test]
fn a_newcomer_does_not_take_the_name_of_one_that_runs() {
    let home = Home::new();
    home.plugin("b", "music", "");
    let mut rescan = home.rescan();
    home.plugin("a", "music", "");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Refused(refused)] if refused.folder == home.folder("a")), "{changes:?}");
}

#[test]
fn a_program_that_was_missing_is_noticed_when_it_is_there() {
    let home = Home::new();
    home.plugin("a", "a", "");
    fs::remove_file(home.folder("a/run")).unwrap();
    let mut rescan = home.rescan();
    assert_eq!(rescan.rescan(), []);
    home.program("a", "#!/bin/sh\n");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Came(_)]), "{changes:?}");
}

#[test]
fn a_stand_in_changes_when_its_plugin_is_mended() {
    let home = Home::new();
    home.plugin("a", "weather", "que_max: 5");
    let mut rescan = loaded(&home, "(routes: [(to: \"weather\")])").unwrap().rescan;
    assert_eq!(rescan.rescan(), []);
    home.plugin("a", "weather", "");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Changed { name, platform: Ok(_) }] if name == "weather"), "{changes:?}");
}

#[test]
fn the_program_of_a_configured_platform_is_watched() {
    let home = Home::new();
    home.program("../tools", "one");
    let program = home.0.join("tools/run");
    let text = format!("(platforms: [(name: \"child\", host: Process(1), command: [{program:?}])])");
    let mut rescan = loaded(&home, &text).unwrap().rescan;
    assert_eq!(rescan.rescan(), []);
    home.program("../tools", "one");
    assert_eq!(rescan.rescan(), []);
    home.program("../tools", "two");
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Changed { name, platform: Ok(_) }] if name == "child"), "{changes:?}");
    fs::remove_file(&program).unwrap();
    let changes = rescan.rescan();
    assert!(matches!(&changes[..], [Change::Changed { platform: Err(_), .. }]), "{changes:?}");
    assert_eq!(rescan.rescan(), []);
}

#[test]
fn what_is_no_file_is_no_program_and_is_not_waited_for() {
    let home = Home::new();
    let tools = home.0.join("tools");
    home.program("../tools", "one");
    let program = tools.join("run");
    let text = format!(
        "(platforms: [(name: \"path\", host: Process(1), command: [{program:?}]), \
         (name: \"word\", host: Process(1), command: [\"run\"], env: {{\"PATH\": {tools:?}}})])"
    );
    let mut rescan = loaded(&home, &text).unwrap().rescan;
    assert_eq!(rescan.rescan(), []);
    let make_pipe = || {
        fs::remove_file(&program).unwrap();
        let (kind, rights) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o755));
        rustix::fs::mknodat(rustix::fs::CWD, &program, kind, rights, 0).unwrap();
    };
    make_pipe();
    // On a thread of its own: one that waits for somebody to write to the pipe never comes back.
    let looked = |mut rescan: Rescan| {
        let (told, hear) = std::sync::mpsc::channel();
        std::thread::spawn(move || told.send((rescan.rescan_at_once(), rescan)).unwrap());
        hear.recv_timeout(Duration::from_secs(30)).expect("it waits for nobody")
    };
    let (changes, rescan) = looked(rescan);
    let is_broken = |change: &Change| matches!(change, Change::Changed { platform: Err(problems), .. } if problems.to_string().contains("not there or not executable"));
    assert!(changes.len() == 2 && changes.iter().all(is_broken), "{changes:?}");
    // Also for who begins with it.
    drop(rescan);
    let (changes, _) = looked(loaded(&home, &text).unwrap().rescan);
    assert_eq!(changes, []);
}

#[test]
fn what_is_no_file_is_not_read() {
    let home = Home::new();
    let file = home.write("a/notes", "text");
    assert!(files::open_file(&file).is_ok());
    for other in [home.folder("a"), PathBuf::from("/dev/null")] {
        assert!(files::open_file(&other).is_err(), "{}", other.display());
    }
}

#[test]
fn a_file_that_is_being_written_is_left_for_a_later_scan_but_not_for_ever() {
    let home = Home::new();
    home.plugin("a", "a", "");
    let mut rescan = home.rescan();
    assert_eq!(rescan.rescan(), []);
    let mut scans = 0;
    let changes = loop {
        // Written anew right before each scan.
        fs::write(home.folder("a/run"), format!("{scans}")).unwrap();
        let changes = rescan.rescan();
        scans += 1;
        if !changes.is_empty() {
            break changes;
        }
        assert!(scans < 100, "it is told at last");
    };
    assert!(matches!(&changes[..], [Change::Changed { platform: Ok(_), .. }]), "{changes:?}");
}

#[test]
fn plugins_of_a_directory_that_cannot_be_used_any_more_are_broken_and_not_gone() {
    let home = Home::new();
    home.plugin("a", "a", "");
    let mut rescan = home.rescan();
    assert_eq!(rescan.rescan(), []);
    mode(&home.directory(), 0o777);
    let changes = rescan.rescan();
    assert!(changes.iter().any(|change| matches!(change, Change::Changed { platform: Err(_), .. })), "{changes:?}");
    assert!(!changes.contains(&Change::Gone { name: "a".to_owned() }));
}
