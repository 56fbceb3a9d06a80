//! Conversations with real servers. `tests/fixtures/install-mcp.sh` installs them; where one is missing its tests say so
//! and pass.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};

use super::*;
use crate::calls::Origin;

const INSTANCE: Instance = Instance { slot: 0, run: 1 };

/// How long a test waits for a line before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server and the wire to it. Its stderr stays the test's.
struct Served {
    wire: McpWire,
    calls: Calls,
    heard: Vec<Heard>,
    process: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Served {
    /// Starts a server; `None`, and a line that says so, if it is not installed.
    fn start(name: &str, script: &str, arguments: &[&str]) -> Option<Served> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        let installed = std::env::var_os("DEMI_TEST_MCP").map_or(root.join("target/mcp"), |path| root.join(path));
        let (program, script) = match script.strip_suffix(".py") {
            Some(_) => (installed.join("venv/bin/python"), root.join(script)),
            None => ("node".into(), installed.join("node_modules").join(script)),
        };
        let program_is_there = program.is_relative() || program.exists();
        let started = (program_is_there && script.exists()).then(|| {
            let mut command = Command::new(&program);
            command.arg(&script).args(arguments).env("MEMORY_FILE_PATH", memory_file());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        });
        let Some(Ok(mut process)) = started else {
            // Not by a macro: what those print is shown only of tests that fail.
            let _ = writeln!(std::io::stderr(), "skipped: {name} is not installed");
            return None;
        };
        let output = BufReader::new(process.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Some(Served {
            wire: McpWire::new(1024 * 1024),
            calls: Calls::default(),
            heard: Vec::new(),
            input: process.stdin.take(),
            process,
            lines,
        })
    }

    /// A server written with the TypeScript SDK, greeted.
    fn node(name: &str, arguments: &[&str]) -> Option<Served> {
        let mut served = Served::start(name, &format!("{name}/dist/index.js"), arguments)?;
        served.greet();
        Some(served)
    }

    fn everything() -> Option<Served> {
        Served::node("@modelcontextprotocol/server-everything", &["stdio"])
    }

    /// The server written with the Python SDK, in a revision with a handshake or without.
    fn python(era: Era) -> Option<Served> {
        let mut served = Served::start("mcp", "tests/fixtures/mcp_server.py", &[])?;
        match era {
            Era::Handshake => served.greet(),
            Era::Stateless => {
                let mut out = Vec::new();
                served.wire.discover("no handshake was tried".to_owned(), &mut out);
                served.send(&out);
                served.until_started();
            }
        }
        Some(served)
    }

    fn greet(&mut self) {
        let mut out = Vec::new();
        self.wire.greet("test/0", &Settings::new(), &mut out);
        self.send(&out);
        self.until_started();
    }

    fn until_started(&mut self) {
        self.until("it has started", |heard| matches!(heard, Heard::Started).then_some(()));
    }

    fn send(&mut self, bytes: &[u8]) {
        self.input.as_mut().expect("it is open").write_all(bytes).expect("it reads");
    }

    /// Reads until something is heard; what was heard before that is forgotten.
    fn until<T>(&mut self, what: &str, mut is_it: impl FnMut(&Heard) -> Option<T>) -> T {
        loop {
            while !self.heard.is_empty() {
                let heard = self.heard.remove(0);
                if let Some(found) = is_it(&heard) {
                    return found;
                }
            }
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{error} before {what}"));
            let mut out = Vec::new();
            self.wire.take_line(line.as_bytes(), INSTANCE, &mut self.calls, &mut self.heard, &mut out);
            self.send(&out);
        }
    }

    fn tools(&mut self) -> Vec<String> {
        let list = self.until("its tools are known", |heard| match heard {
            Heard::Tools(list) => Some(list.to_owned()),
            _ => None,
        });
        let tools: Vec<Value> = serde_json::from_str(list.get()).expect("it is an array");
        tools.iter().map(|tool| tool["name"].as_str().expect("a tool has a name").to_owned()).collect()
    }

    fn ask(&mut self, kind: &str, body: &Value) -> (Ticket, u64) {
        let body = body.to_string();
        let request = Request { kind, body: body.as_bytes(), ..Request::default() };
        let mut buffer = self.calls.buffer();
        Arc::make_mut(&mut buffer).fill(&request);
        let ticket = self.calls.open(buffer, Origin::Nobody, None);
        self.calls.reset(ticket, INSTANCE);
        let mut out = Vec::new();
        let id = self.wire.ask(ticket, &request, &mut out).expect("it can be asked");
        self.send(&out);
        (ticket, id)
    }

    fn answer(&mut self, ticket: Ticket) -> (Outcome, u16, Value) {
        let outcome = self.until("it has answered", |heard| match heard {
            Heard::Answered { ticket: of, outcome } if *of == ticket => Some(*outcome),
            _ => None,
        });
        let call = self.calls.close(ticket).expect("it is under way");
        let body = match call.attempt.fault {
            Some(fault) => Value::String(fault.message),
            None => serde_json::from_slice(&call.attempt.reply.body).expect("it is JSON"),
        };
        (outcome, call.attempt.reply.status, body)
    }

    fn call(&mut self, kind: &str, body: &Value) -> (Outcome, u16, Value) {
        let (ticket, _) = self.ask(kind, body);
        self.answer(ticket)
    }

    fn is_well(&mut self) {
        let mut out = Vec::new();
        self.wire.probe(&mut out);
        self.send(&out);
        let verdict = self.until("it is well", |heard| match heard {
            Heard::Probed(verdict, _) => Some(*verdict),
            _ => None,
        });
        assert_eq!(verdict, Verdict::Pass);
    }

    /// The end of its input must be enough for it to end.
    fn ends_with_its_input(mut self) {
        self.input = None;
        let end = loop {
            if let Err(end) = self.lines.recv_timeout(PATIENCE) {
                break end;
            }
        };
        assert_eq!(end, RecvTimeoutError::Disconnected, "it lives on without an input");
        self.process.wait().expect("it is our child");
    }
}

/// Where the memory server keeps its graph; by itself it would do so beside its program.
fn memory_file() -> PathBuf {
    std::env::temp_dir().join(format!("demi-test-memory-{}.jsonl", std::process::id()))
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn everything_lists_its_tools_echoes_is_well_and_ends() {
    let Some(mut server) = Served::everything() else { return };
    let tools = server.tools();
    assert!(tools.iter().any(|tool| tool == "echo") && tools.len() > 8, "{tools:?}");
    let (outcome, status, result) = server.call("echo", &json!({"message": "hi"}));
    assert_eq!((outcome, status), (Outcome::Replied, 200));
    assert_eq!(result["content"][0]["text"], "Echo: hi");
    server.is_well();
    server.ends_with_its_input();
}

#[test]
fn everything_gives_structured_content() {
    let Some(mut server) = Served::everything() else { return };
    let (outcome, _, result) = server.call("get-structured-content", &json!({"location": "Chicago"}));
    assert_eq!(outcome, Outcome::Replied);
    assert_eq!(result["structuredContent"]["temperature"], 36);
}

#[test]
fn everything_is_not_blamed_for_what_its_callers_get_wrong() {
    let Some(mut server) = Served::everything() else { return };
    server.tools();
    for (tool, arguments) in
        [("ehco", json!({})), ("echo", json!({"massage": "hi"})), ("resources/read", json!({"uri": "no://where"}))]
    {
        let (outcome, _, result) = server.call(tool, &arguments);
        assert_eq!(outcome, Outcome::Mistaken, "{tool}: {result}");
    }
}

#[test]
fn everything_offers_resources_and_prompts_as_methods() {
    let Some(mut server) = Served::everything() else { return };
    let (outcome, _, list) = server.call("resources/list", &json!({}));
    assert_eq!(outcome, Outcome::Replied);
    let uri = &list["resources"][0]["uri"];
    let (outcome, _, read) = server.call("resources/read", &json!({ "uri": uri }));
    assert_eq!((outcome, &read["contents"][0]["uri"]), (Outcome::Replied, uri));
    let (_, _, prompts) = server.call("prompts/list", &json!({}));
    assert!(prompts["prompts"].as_array().is_some_and(|prompts| !prompts.is_empty()), "{prompts}");
    assert_eq!(server.call("resources/templates/list", &json!({})).0, Outcome::Replied);
}

#[test]
fn everything_tells_of_progress_and_lets_go_of_what_is_cancelled() {
    let Some(mut server) = Served::everything() else { return };
    let (ticket, id) = server.ask("trigger-long-running-operation", &json!({"duration": 3600, "steps": 72_000}));
    let note = server.until("it makes progress", |heard| match heard {
        Heard::Progress { ticket: of, note } if *of == ticket => Some(note.clone()),
        _ => None,
    });
    assert!(note.contains("72000"), "{note}");
    let mut out = Vec::new();
    server.wire.cancel(id, &mut out);
    server.send(&out);
    let (outcome, _, _) = server.call("echo", &json!({"message": "still there"}));
    assert_eq!(outcome, Outcome::Replied);
    server.is_well();
}

#[test]
fn everything_logs() {
    let Some(mut server) = Served::everything() else { return };
    server.ask("toggle-simulated-logging", &json!({}));
    server.until("it logs", |heard| match heard {
        Heard::Logged { text, .. } => text.contains("level message").then_some(()),
        _ => None,
    });
}

#[test]
fn memory_keeps_a_graph() {
    let Some(mut server) = Served::node("@modelcontextprotocol/server-memory", &[]) else { return };
    let name = format!("test {}", std::process::id());
    let entity = json!({"name": name, "entityType": "test", "observations": ["it is there"]});
    let (outcome, _, made) = server.call("create_entities", &json!({"entities": [entity]}));
    assert_eq!(outcome, Outcome::Replied, "{made}");
    let (_, _, graph) = server.call("read_graph", &json!({}));
    assert!(graph.to_string().contains(&name), "{graph}");
    server.is_well();
    server.ends_with_its_input();
    std::fs::remove_file(memory_file()).expect("it kept its graph there");
}

#[test]
fn python_is_spoken_to_in_both_eras() {
    for era in [Era::Handshake, Era::Stateless] {
        let Some(mut server) = Served::python(era) else { return };
        assert_eq!(server.tools(), ["add", "fail", "slow", "say", "learn"]);
        let (outcome, status, sum) = server.call("add", &json!({"left": 2, "right": 40}));
        assert_eq!((outcome, status, &sum["structuredContent"]["result"]), (Outcome::Replied, 200, &json!(42)));
        let (outcome, status, why) = server.call("fail", &json!({"why": "no disk"}));
        assert_eq!((outcome, status), (Outcome::Failed, 502), "{why}");
        assert!(why["content"][0]["text"].as_str().is_some_and(|text| text.contains("no disk")), "{why}");
        assert_eq!(server.call("ad", &json!({})).0, Outcome::Mistaken);
        server.is_well();
        server.ends_with_its_input();
    }
}

#[test]
fn python_logs_in_both_eras() {
    for era in [Era::Handshake, Era::Stateless] {
        let Some(mut server) = Served::python(era) else { return };
        server.ask("say", &json!({"text": "it is late"}));
        let level = server.until("it logs", |heard| match heard {
            Heard::Logged { level, text } => text.contains("it is late").then_some(*level),
            _ => None,
        });
        assert_eq!(level, log::Level::Warn, "{era:?}");
    }
}

#[test]
fn python_tells_of_progress_and_lets_go_of_what_is_cancelled() {
    for era in [Era::Handshake, Era::Stateless] {
        let Some(mut server) = Served::python(era) else { return };
        let (ticket, id) = server.ask("slow", &json!({"steps": 36_000}));
        let text = server.until("it makes progress", |heard| match heard {
            Heard::Logged { text, .. } => text.contains("progress").then(|| text.clone()),
            _ => None,
        });
        assert!(text.starts_with(&format!("request {}: ", ticket.number())) && text.contains("36000"), "{text}");
        let mut out = Vec::new();
        server.wire.cancel(id, &mut out);
        server.send(&out);
        server.is_well();
        server.ends_with_its_input();
    }
}

#[test]
fn python_tells_that_its_tools_have_changed() {
    let Some(mut server) = Served::python(Era::Handshake) else { return };
    server.tools();
    server.ask("learn", &json!({"name": "dance"}));
    server.until("it tells", |heard| matches!(heard, Heard::Answered { .. }).then_some(()));
    server.is_well();
    assert!(server.tools().contains(&"dance".to_owned()));
}
