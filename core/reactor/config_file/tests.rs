#![allow(clippy::unwrap_used)]

use super::*;
use demi_conductor::config::{Content, Host, OnFailure};

const ADAPTERS: [&str; 3] = ["echo", "discord", "voice"];

/// A valid file that sets every field there is.
const SAMPLE: &str = r##"// A home server, with every field set: naïve, but complete.
#![enable(implicit_some)]
Config(
    http: (
        listen: "127.0.0.1:8787",
        hosts: [],
        connections_max: 2_048,
        event_streams_max: 64,
        head_bytes_max: 0x4000,
        headers_max: 100,
        body_bytes_max: 1048576,
        body_stream_bytes_max: 1073741824,
        bodies_bytes_max: 16777216,
        idle_timeout_ms: 60000,
        head_timeout_ms: 10000,
        body_timeout_ms: 10000,
        upstream_idle_max: 64,
        tunnel_idle_ms: 3600000,
        upstream_idle_ms: 30000,
    ),
    store: (path: "demi-data", cache_bytes: 1048576, dead_letters_max: 10000, bytes_per_day_max: 1073741824, dead_letters_days: 30, metrics_days: 30),
    health: (
        interval_ms: 5000,
        timeout_ms: 5000,
        degraded_ms: 200,
        fall: 3,
        rise: 2,
        doubt_interval_ms: 1000,
        down_interval_ms: 10000,
    ),
    breaker: (failures: 3, open_ms: 30000, open_max_ms: 300000),
    restart: (base_ms: 1000, max_ms: 300000, forget_ms: 600000),
    retry: (base_ms: 100, max_ms: 20000, tokens_max: 500),
    scaler: (interval_ms: 30000),
    shutdown: (grace_ms: 10000),
    requests_max: 4096,
    plugins: (paths: ["plugins"], rescan_ms: 2000),
    platforms: [
        (
            name: "discord", /* a comment /* in a comment */ ' " ) */
            host: Threads(2),
            adapter: Some("discord"),
            settings: {"greeting": "grüß \"dich\" (", "raw": r#"a " ] quote"#},
            needs: ["voice"],
            in_flight_max: 8,
            queue_max: 256,
            start_timeout_ms: 90000,
            stop_grace_ms: 5000,
            wedged_ms: 30000,
        ),
        Platform(name: "voice", host: Inline),
        (
            name: "music",
            host: Process(2),
            command: ["{demi}", "--plugin"],
            env: {"LANG": "C"},
            directory: "/srv/music",
            start: Lazy,
            sleep_after_ms: 600000,
            restart_dependents: true,
            start_budget_per_day: 1000,
            request_timeout_ms: 5000,
            drain_ms: 30000,
            limits: (
                memory_soft_mb: 100,
                memory_max_mb: Some(200),
                processes_max: 64,
                descriptors_max: 1024,
                file_max_mb: 100,
                cpu_max_s: 3600,
                log_bytes_per_second_max: 65536,
            ),
            permissions: (route: true, store: true),
            hot_reload: true,
        ),
        (
            name: "web",
            host: Http,
            upstreams: ["127.0.0.1:3000", "[::1]:3000"],
            health_path: "/healthz",
            balance: Sticky,
            sticky_cookie: "demi_session",
            sticky_cookie_max_age_s: 86400,
        ),
        (name: "files", host: Mcp(1), command: ["mcp-files"], limits: ()),
    ],
    routes: [
        (
            from: "discord",
            kind: Some("command"),
            path: "/music/*",
            content: Prefix("!play"),
            to: "music",
            timeout_ms: 5000,
            attempt_timeout_ms: 1000,
            retries: 2,
            idempotent: true,
            on_failure: DeadLetter,
        ),
        (
            content: Contains("http://"),
            path: "/web/*",
            to: "web",
            proxy: (
                strip_prefix: "/web",
                preserve_host: false,
                request_headers: {"X-Told": "1"},
                remove_request_headers: ["Cookie"],
                response_headers: {"Cache-Control": "no-store"},
                remove_response_headers: ["Server"],
            ),
        ),
        (content: Exact("// no comment"), to: "voice", on_failure: Error), // the last one
    ],
)
"##;

/// What is told about a text, without the path.
fn told(text: &str) -> Vec<String> {
    match parse(text, Path::new("demi.ron"), &ADAPTERS) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.to_string().lines().map(|line| line.replacen("demi.ron:", "", 1)).collect(),
    }
}

#[test]
fn a_file_with_every_field_is_read() {
    let config = parse(SAMPLE, Path::new("demi.ron"), &ADAPTERS).unwrap();
    assert_eq!(config.http, demi_conductor::config::Http::default());
    assert_eq!(config.platforms[0].adapter(), "discord");
    assert_eq!(config.platforms[0].settings["raw"], "a \" ] quote");
    assert_eq!(config.platforms[2].host, Host::Process(2));
    assert_eq!(config.routes[0].content, Some(Content::Prefix("!play".to_owned())));
    assert_eq!(config.routes[0].on_failure, OnFailure::DeadLetter);
}

#[test]
fn parentheses_alone_are_every_default() {
    assert_eq!(parse("()", Path::new("demi.ron"), &[]), Ok(Config::default()));
    assert_eq!(parse("\u{feff}() // with a byte order mark", Path::new("demi.ron"), &[]), Ok(Config::default()));
}

#[test]
fn an_empty_file_is_told_what_to_write() {
    let expected = ["1:1: the file is empty; write () to have every default"];
    assert_eq!(told(""), expected);
    assert_eq!(told("// nothing yet\n"), expected);
}

#[test]
fn three_mistakes_of_three_kinds_are_all_told() {
    let text = r#"(
    http: (listn: "127.0.0.1:8787"),
    health: (fall: 500),
    platforms: [(name: "echo", host: Inline)],
    routes: [
        (to: "echo"),
        (to: "ehco"),
    ],
)"#;
    assert_eq!(
        told(text),
        [
            "2:12: http has no field listn; did you mean listen?",
            "3:20: fall: 500 is outside 1 to 100; write a number in that range, or remove the field",
            "7:14: no platform is named \"ehco\"; did you mean \"echo\"?",
        ]
    );
}

#[test]
fn a_value_of_the_wrong_type_is_told_with_the_one_wanted() {
    assert_eq!(
        told("(requests_max: \"many\", platforms: [(name: echo, host: Inline, needs: \"voice\", settings: [])])"),
        [
            "1:16: requests_max must be a whole number, not \"many\"; write digits only, without quotes, unit or fraction",
            "1:43: name must be text, not echo; write \"echo\", in double quotes",
            "1:70: needs must be a list, not \"voice\"; write [\"voice\"], in brackets",
            "1:89: settings must be a map, not []; write {\"name\": \"value\"}, in braces",
        ]
    );
    assert_eq!(
        told("(health: (timeout_ms: 5s, interval_ms: 1.5, fall: -1), http: {\"listen\": \"\"}, store: 5)"),
        [
            "1:23: timeout_ms must be a whole number, not 5s; write digits only, without quotes, unit or fraction",
            "1:40: interval_ms must be a whole number, not 1.5; write digits only, without quotes, unit or fraction",
            "1:51: fall: -1 is negative or too large; write a smaller number, 0 or more",
            "1:62: http must be fields in parentheses, not {\"listen\": \"\"}; write (field: value, …)",
            "1:85: store must be fields in parentheses, not 5; write (field: value, …)",
        ]
    );
}

#[test]
fn a_missing_field_is_told_where_its_group_begins() {
    let text = "(platforms: [\n  (host: Inline),\n  (name: \"echo\"),\n], routes: [\n  (retries: 1), ()])";
    assert_eq!(
        told(text),
        [
            "2:3: a platform lacks the field name; add name: \"…\"",
            "3:3: platform \"echo\" lacks the field host; add host: Http",
            "5:3: a route lacks the field to; add to: \"…\"",
            "5:17: an item of routes lacks the field to; add to: \"…\"",
        ]
    );
}

#[test]
fn an_unknown_host_is_told_with_the_nearest_or_all() {
    let text = "(platforms: [(name: \"a\", host: Proces(2), command: [\"a\"]), (name: \"b\", host: Docker), \
                (name: \"echo\", host: \"Inline\"), (name: \"voice\", host: Threads), (name: \"c\", host: Inline(3))])";
    assert_eq!(
        told(text),
        [
            "1:32: no host is named Proces; did you mean Process?",
            "1:78: no host is named Docker; known are: Inline, Threads, Process, Mcp, Http",
            "1:108: host must be a bare word, not \"Inline\"; write Inline, without quotes",
            "1:141: Threads needs a value in parentheses; write Threads(…) with its value",
            "1:169: Inline takes nothing in parentheses; write host: Inline",
        ]
    );
}

#[test]
fn an_unknown_field_in_a_nested_item_names_the_item() {
    let text = "(platforms: [\n(name: \"echo\", host: Inline, que_max: 5),\n(nmae: \"voice\", host: Inline)],\n\
                routes: [(to: \"voice\", zzzzzzzz: 1)])";
    let told = told(text);
    assert_eq!(told[0], "2:30: platform \"echo\" has no field que_max; did you mean queue_max?");
    assert_eq!(told[1], "3:2: a platform has no field nmae; did you mean name?");
    assert!(told[2].starts_with("4:24: a route has no field zzzzzzzz; known are: from, kind,"), "{}", told[2]);
    assert_eq!(told.len(), 3);
}

#[test]
fn a_string_that_is_never_closed_is_told_where_it_begins() {
    assert_eq!(told("(\n store: (path: \"here))"), ["2:16: this text is never closed; write \" where it ends"]);
    assert_eq!(told("(store: (path: r##\"here\"#))"), ["1:16: this text is never closed; write \"## where it ends"]);
    let text = "(\n store: (path: \"here),\n http: (listen: \"127.0.0.1:1\"),\n)";
    let expected = "2:16: this text ends only on line 3; write \" where it ends, and \\\" for a quote inside it";
    assert_eq!(told(text), [expected]);
    assert_eq!(told("(http: () /* and"), ["1:11: this comment is never closed; close it with */"]);
}

#[test]
fn a_bracket_without_its_partner_is_told_and_so_is_what_stands_before_it() {
    let text = "(\n http: (lisen: \"127.0.0.1:1\"),\n platforms: [(name: \"echo\", host: Inline],\n)";
    assert_eq!(
        told(text),
        [
            "2:9: http has no field lisen; did you mean listen?",
            "3:14: this ( is not closed before the ] on line 3; write ) where it ends",
        ]
    );
    assert_eq!(told("(http: ()"), ["1:1: this ( is never closed; write ) where it ends"]);
    assert_eq!(told("(http: ()))"), ["1:11: this ) closes nothing; remove it, or look for a ) too many before it"]);
    let deep = format!("(store: {})", "[".repeat(100_000));
    assert!(told(&deep).last().is_some_and(|last| last.contains("brackets are nested more than 64 deep")));
}

#[test]
fn a_file_without_its_outer_parentheses_is_told_so() {
    let expected =
        "the configuration must stand in parentheses; write ( as the first and ) as the last character of the file";
    assert_eq!(told("http: (listen: \"\")"), [format!("1:1: {expected}")]);
    assert_eq!(told("{\"http\": {}}"), [format!("1:1: {expected}")]);
}

#[test]
fn commas_and_colons_are_mended_and_the_rest_is_told_too() {
    assert_eq!(
        told("(health: (fall: 3 rise: 0), retry = (base_ms 0), store: (,path: \"a\",,))"),
        [
            "1:18: a comma is missing here; write , before rise: 0",
            "1:25: rise: 0 is outside 1 to 100; write a number in that range, or remove the field",
            "1:35: after retry stands = instead of a colon; write retry: and its value",
            "1:46: after base_ms a colon is missing; write base_ms: and its value",
            "1:58: this comma is one too many; remove it",
            "1:69: this comma is one too many; remove it",
        ]
    );
}

#[test]
fn names_of_fields_in_quotes_or_with_dashes_are_told() {
    assert_eq!(
        told("(\"health\": (\"fall\": 3, degraded-ms: 5, degraded-mz: 4))"),
        [
            "1:2: the name of a field stands without quotes; write health: instead of \"health\":",
            "1:13: the name of a field stands without quotes; write fall: instead of \"fall\":",
            "1:24: degraded-ms is not the name of a field; write degraded_ms: with letters, digits and _ only",
            "1:40: health has no field degraded-mz; did you mean degraded_ms?",
        ]
    );
}

#[test]
fn a_field_given_twice_is_told_at_the_second() {
    let expected = "3:10: store has the field path twice; remove one of them; the first is on line 2";
    assert_eq!(told("(\nstore: (path: \"a\",\n         path: \"b\"))"), [expected]);
}

#[test]
fn columns_count_characters_and_lines_survive_carriage_returns() {
    let text = "(\r\n/* ü\r\n */ store: (path: \"grün😀\", cache_bytes: 1))";
    assert!(told(text)[0].starts_with("3:41: cache_bytes: 1 is outside"), "{:?}", told(text));
}

#[test]
fn what_follows_from_a_told_mistake_is_not_told() {
    // The platform's name is unknown, so the route may mean it.
    let text = "(platforms: [(name: 5, host: Inline)], routes: [(to: \"whatever\")])";
    assert_eq!(told(text), ["1:21: name must be text, not 5; write \"5\", in double quotes"]);
    // The command was there, only in the wrong form; likewise the adapter.
    let text =
        "(platforms: [(name: \"a\", host: Process(1), command: \"b\"), (name: \"c\", host: Inline, adapter: 5)])";
    assert_eq!(told(text).len(), 2, "{:?}", told(text));
    // A list whose items are taken out is not empty, and a list item keeps its number.
    let text = "(platforms: [5, (name: \"web\", host: Http, upstreams: [5, \"x\"])], routes: [5, (to: \"wbe\")])";
    let told = told(text);
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(told[2].starts_with("1:58: \"x\" is not an IP address"), "{told:?}");
    assert_eq!(told[4], "1:83: no platform is named \"wbe\"; did you mean \"web\"?");
}

#[test]
fn a_missing_setting_is_told_at_the_item_that_lacks_it() {
    let text = "(platforms: [\n  (name: \"a\", host: Process(1))])";
    assert!(told(text)[0].starts_with("2:3: platform \"a\" is a process without a command"));
}

#[test]
fn a_file_with_forty_mistakes_is_told_up_to_the_cap() {
    let platforms = "(name: \"echo\", host: Inline, wedged_ms: 0),\n".repeat(40);
    let told = told(&format!("(platforms: [\n{platforms}])"));
    assert_eq!(told.len(), PROBLEMS_MAX + 1);
    assert!(told[PROBLEMS_MAX - 1].starts_with("33:41: wedged_ms: 0 is outside"), "{told:?}");
    assert!(told[PROBLEMS_MAX].ends_with("there are more mistakes than these 32; correct these first"));
    let routes = "(to: \"nobody\"), ".repeat(1000);
    assert_eq!(super::tests::told(&format!("(routes: [{routes}])")).len(), PROBLEMS_MAX + 1);
}

#[test]
fn files_that_cannot_be_read_are_told_by_name() {
    let folder = std::env::temp_dir().join(format!("demi-config-file-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let told = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        load(&path, &ADAPTERS)
            .map(|loaded| loaded.config)
            .map_err(|problems| problems.to_string().replace(&format!("{}", path.display()), "F"))
    };
    assert_eq!(told("good.ron", SAMPLE.as_bytes()).map(|config| config.routes.len()), Ok(3));
    let expected = "F:2:4: this character is not UTF-8; save the file in the encoding UTF-8";
    assert_eq!(told("latin.ron", b"(\n// \xfc\n)"), Err(expected.to_owned()));
    let long = told("long.ron", &vec![b' '; FILE_BYTES_MAX + 1]).unwrap_err();
    assert_eq!(long, "F: the file is longer than 1048576 bytes; shorten it, or name the right file with --config");
    let absent = load(&folder.join("absent.ron"), &ADAPTERS).unwrap_err();
    assert!(absent
        .to_string()
        .ends_with("absent.ron: there is no such file; create it, or name another one with --config"));
    assert!(load(&folder, &ADAPTERS).unwrap_err().to_string().contains("cannot be read"));
    std::fs::remove_dir_all(&folder).unwrap();
}

struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Takes bytes out, puts some in, doubles a stretch: 1 to 6 times.
fn mutated(text: &str, random: &mut Xorshift) -> String {
    const INSERTED: &[u8] = b"()[]{},:=\"'\\/*#rb5-x \n\xc3";
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        let stretch = at..(at + 1 + random.below(12)).min(bytes.len());
        match random.below(3) {
            0 => drop(bytes.drain(stretch)),
            1 => bytes.insert(at, INSERTED[random.below(INSERTED.len())]),
            _ => {
                let copy = bytes[stretch].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn no_mutation_of_a_file_panics_and_only_sound_ones_are_accepted() {
    let rounds = std::env::var("DEMI_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2500);
    let options = ron::Options::default().with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME);
    let mut random = Xorshift(0x9E37_79B9_7F4A_7C15);
    for _ in 0..rounds {
        let text = mutated(SAMPLE, &mut random);
        let sound = options.from_str::<Config>(&text).is_ok_and(|config| config.mistakes(&ADAPTERS).is_empty());
        match parse(&text, Path::new("demi.ron"), &ADAPTERS) {
            Ok(_) => assert!(sound, "accepted:\n{text}"),
            Err(problems) => {
                assert!(!sound, "refused: {problems}\n{text}");
                assert!(!problems.problems.is_empty() && problems.problems.len() <= PROBLEMS_MAX);
                let lines = text.split('\n').count();
                for problem in &problems.problems {
                    assert!((1..=lines).contains(&problem.line) && problem.column >= 1, "{problems}\n{text}");
                    assert!(!problem.what.contains("cannot be understood"), "{problems}\n{text}");
                }
            }
        }
    }
}

// -- manifests

/// A valid manifest that sets every field there is.
const MANIFEST: &str = r#"// Set as it would be by default, where there is one.
(
    name: "weather",
    version: "1.0.0",
    protocol: "demi/1",
    command: ["./weather.py", "--metric"],
    env: {"LANG": "C"},
    settings: {"city": "Köln"},
    capabilities: ["concurrent", "trim"],
    needs: ["cache"],
    behind: ["internet"],
    health: (interval_ms: 1000, fall: Some(5)),
    breaker: (failures: 5, recovery: Reinitialize),
    start: Lazy,
    sleep_after_ms: 600000,
    instances: 1,
    in_flight_max: 32,
    queue_max: 256,
    request_timeout_ms: 5000,
    start_timeout_ms: 90000,
    stop_grace_ms: 5000,
    drain_ms: 30000,
    restart_dependents: false,
    start_budget_per_day: 1000,
    limits: (memory_soft_mb: 100, memory_max_mb: Some(200), processes_max: 64),
    permissions: (route: true, store: false),
    hot_reload: false,
)"#;

const MANIFEST_JSON: &str = r#"{
    "name": "weather",
    "version": "1.0.0",
    "protocol": "demi/1",
    "command": ["./weather.py", "--metric"],
    "env": {"LANG": "C"},
    "settings": {"city": "Köln"},
    "capabilities": ["concurrent", "trim"],
    "needs": ["cache"],
    "behind": ["internet"],
    "health": {"interval_ms": 1000, "fall": 5},
    "breaker": {"failures": 5, "recovery": "Reinitialize"},
    "start": "Lazy",
    "sleep_after_ms": 600000,
    "instances": 1,
    "in_flight_max": 32,
    "queue_max": 256,
    "request_timeout_ms": 5000,
    "start_timeout_ms": 90000,
    "stop_grace_ms": 5000,
    "drain_ms": 30000,
    "restart_dependents": false,
    "start_budget_per_day": 1000,
    "limits": {"memory_soft_mb": 100, "memory_max_mb": 200, "processes_max": 64},
    "permissions": {"route": true, "store": false},
    "hot_reload": false
}"#;

fn read_manifest(text: &str, format: Format) -> Result<Manifest, Problems> {
    manifest(text, Path::new("plugin"), format, |manifest| plugins::mistakes_for_tests(manifest))
}

/// What is told about a manifest, without the path.
fn told_of(text: &str, format: Format) -> Vec<String> {
    match read_manifest(text, format) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.to_string().lines().map(|line| line.replacen("plugin:", "", 1)).collect(),
    }
}

#[test]
fn a_manifest_says_the_same_in_either_format() {
    let ron = read_manifest(MANIFEST, Format::Ron).unwrap();
    assert_eq!(ron.limits.memory_max_mb.map(|bound| bound.value()), Some(200));
    assert_eq!(read_manifest(MANIFEST_JSON, Format::Json), Ok(ron));
}

#[test]
fn mistakes_of_many_kinds_in_a_manifest_are_all_told() {
    let text = r#"(
    naem: "weather",
    protocol: "demi/2",
    command: "./weather.py",
    capabilities: ["trim", "teleport"],
    limits: (processes_max: 0),
)"#;
    assert_eq!(
        told_of(text, Format::Ron),
        [
            "1:1: the manifest lacks the field version; add version: \"1.0.0\"",
            "2:5: the manifest has no field naem; did you mean name?",
            "3:15: \"demi/2\" is no protocol that is spoken here; this Demi speaks demi/1 and mcp; did you mean \"demi/1\"?",
            "4:14: command must be a list, not \"./weather.py\"; write [\"./weather.py\"], in brackets",
            "5:28: no capability is named \"teleport\"; known are: cancel, concurrent, route, trim",
            "6:29: processes_max: 0 is outside 1 to 100000; write a number in that range, or remove the field",
        ]
    );
}

#[test]
fn mistakes_of_many_kinds_in_json_are_all_told() {
    let text = r#"{
    "naem": "weather",
    "protocol": "demi/2",
    "command": "./weather.py",
    "capabilities": ["trim", "teleport"],
    "start": "lazy",
    "limits": {"processes_max": 0, "memroy_max_mb": 5}
}"#;
    assert_eq!(
        told_of(text, Format::Json),
        [
            "1:1: the manifest lacks the field version; add \"version\": \"1.0.0\"",
            "2:5: the manifest has no field naem; did you mean name?",
            "3:17: \"demi/2\" is no protocol that is spoken here; this Demi speaks demi/1 and mcp; did you mean \"demi/1\"?",
            "4:16: command must be a list, not string \"./weather.py\"; correct it, or remove the field",
            "5:30: no capability is named \"teleport\"; known are: cancel, concurrent, route, trim",
            "6:14: no start is named \"lazy\"; did you mean \"Lazy\"?",
            "7:33: processes_max: 0 is outside 1 to 100000; write a number in that range, or remove the field",
            "7:36: limits has no field memroy_max_mb; did you mean memory_max_mb?",
        ]
    );
}

#[test]
fn what_is_no_json_is_told_where_it_ends_to_be_any() {
    assert_eq!(told_of("{\n  \"name\": \"a\",,\n}", Format::Json)[0].split(':').next(), Some("2"));
    assert!(told_of("", Format::Json)[0].contains("the file is empty"));
    assert!(told_of("{\"name\": \"a\"", Format::Json)[0].contains("ends too early"));
    assert!(told_of("[]", Format::Json)[0].starts_with("1:1: the manifest"));
    assert!(told_of("", Format::Ron)[0].contains("write (name:"));
}

#[test]
fn a_name_is_found_in_a_manifest_that_is_broken() {
    assert_eq!(name_in("(name: \"weather\", version: [[[").as_deref(), Some("weather"));
    assert_eq!(name_in("{\"name\": \"weather\", 5").as_deref(), Some("weather"));
    assert_eq!(name_in("(name: \"not a name\")"), None);
    assert_eq!(name_in("name"), None);
}

#[test]
fn no_mutation_of_a_manifest_panics_and_only_sound_ones_are_accepted() {
    let rounds = std::env::var("DEMI_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2500);
    let mut random = Xorshift(0x9E37_79B9_7F4A_7C15);
    for _ in 0..rounds {
        for (sample, format) in [(MANIFEST, Format::Ron), (MANIFEST_JSON, Format::Json)] {
            let text = mutated(sample, &mut random);
            let read = match format {
                Format::Ron => reading::options().from_str::<Manifest>(&text).ok(),
                Format::Json => serde_json::from_str::<Manifest>(&text).ok(),
            };
            let sound = read.is_some_and(|read| plugins::mistakes_for_tests(&read).is_empty());
            match read_manifest(&text, format) {
                Ok(_) => assert!(sound, "accepted:\n{text}"),
                Err(problems) => {
                    assert!(!sound, "refused: {problems}\n{text}");
                    assert!(!problems.problems.is_empty() && problems.problems.len() <= PROBLEMS_MAX);
                    let lines = text.split('\n').count();
                    for problem in &problems.problems {
                        assert!((1..=lines).contains(&problem.line) && problem.column >= 1, "{problems}\n{text}");
                        assert!(!problem.what.contains("cannot be understood"), "{problems}\n{text}");
                    }
                }
            }
            let _ = name_in(&text);
        }
    }
}

#[test]
fn the_documentation_of_the_manifest_names_every_field() {
    let page = include_str!("../../../docs/plugins.md");
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(read_manifest(MANIFEST, Format::Ron).unwrap())
    else {
        panic!("a manifest is an object")
    };
    for (field, value) in fields {
        let names = match value.as_object().filter(|_| field == "limits" || field == "permissions") {
            Some(inner) => inner.keys().map(|key| format!("{field}.{key}")).collect(),
            None => vec![field],
        };
        for name in names {
            assert!(page.contains(&format!("| `{name}` |")), "{name} is not in docs/plugins.md");
        }
    }
}

#[test]
fn every_field_of_a_platform_stands_in_the_configuration_of_the_repository() {
    let text = include_str!("../../../config.ron");
    let platform = demi_conductor::config::Platform::new("a", Host::Inline);
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(platform) else {
        panic!("a platform is an object")
    };
    for field in fields.keys().map(String::as_str).chain(["paths", "rescan_ms", "memory_soft_mb", "cpu_max_s"]) {
        assert!(text.contains(&format!("{field}: ")), "{field} is not in config.ron");
    }
}
