//! Real MCP servers as plugins of a real Demi. `tests/fixtures/install-mcp.sh` installs them; where one is missing its
//! tests say so and pass.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{json, Value};

use crate::support::{until, Demi, Response};

const EVERYTHING: &str = "@modelcontextprotocol/server-everything";
const MEMORY: &str = "@modelcontextprotocol/server-memory";

/// What starts an installed server, as words of a configuration; `None`, and a line that says so, if it is missing.
fn command(name: &str) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let installed = std::env::var_os("DEMI_TEST_MCP").map_or(root.join("target/mcp"), |path| root.join(path));
    let (program, script) = match name {
        "mcp" => (installed.join("venv/bin/python"), root.join("tests/fixtures/mcp_server.py")),
        _ => (PathBuf::from("node"), installed.join("node_modules").join(name).join("dist/index.js")),
    };
    let runs =
        std::process::Command::new(&program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !runs || !script.exists() {
        // Not by a macro: what those print is shown only of tests that fail.
        let _ = writeln!(std::io::stderr(), "skipped: {name} is not installed");
        return None;
    }
    let arguments: &[&str] = if name == EVERYTHING { &["stdio"] } else { &[] };
    let words = [program.display().to_string(), script.display().to_string()];
    Some(words.iter().map(String::as_str).chain(arguments.iter().copied()).map(|word| format!("{word:?}, ")).collect())
}

/// A Demi that hosts one server, is ready, and sends everything to it.
fn hosting(name: &str) -> Option<Demi> {
    let command = command(name)?;
    let demi = Demi::start(&format!(
        r#"
            platforms: [(name: "tools", host: Mcp(1), command: [{command}])],
            routes: [(path: "/tools/*", to: "tools"), (to: "tools", timeout_ms: 60000)],
        "#
    ));
    demi.wait_ready();
    Some(demi)
}

fn call(demi: &Demi, tool: &str, arguments: &Value) -> Response {
    demi.post("/v1/requests", &json!({"kind": tool, "json": arguments}).to_string())
}

/// The text that a tool answers with.
fn text(response: &Response) -> String {
    response.json()["content"][0]["text"].as_str().expect("a tool answers with text").to_owned()
}

#[test]
fn a_tool_of_a_node_server_is_called_by_its_name() {
    let Some(demi) = hosting(EVERYTHING) else { return };
    let answer = call(&demi, "echo", &json!({"message": "hi"}));
    assert_eq!((answer.status, text(&answer)), (200, "Echo: hi".to_owned()));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let answer = demi.post("/tools/echo", "{\n  \"message\": \"by path\"\n}");
    assert_eq!((answer.status, text(&answer)), (200, "Echo: by path".to_owned()));
    let answer = call(&demi, "get-structured-content", &json!({"location": "Chicago"}));
    assert_eq!(answer.json()["structuredContent"]["temperature"], 36);
    let answer = call(&demi, "resources/list", &json!({}));
    assert!(answer.json()["resources"].is_array(), "{answer:?}");
}

#[test]
fn a_callers_mistake_is_told_and_does_not_count_against_the_server() {
    let Some(demi) = hosting(EVERYTHING) else { return };
    for _ in 0..5 {
        assert_eq!(call(&demi, "echo", &json!({"massage": "hi"})).status, 400);
    }
    let answer = demi.post("/tools/echo", "hello");
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("not JSON"), "{answer:?}");
    assert_eq!(call(&demi, "echo", &json!({"message": "hi"})).status, 200);
    assert_eq!(demi.instance("tools", 0)["breaker"], "closed");
}

#[test]
fn a_memory_server_remembers_between_requests() {
    let Some(command) = command(MEMORY) else { return };
    let directory = std::sync::Arc::new(crate::support::Directory::new());
    let file = directory.path().join("memory.jsonl");
    let demi = Demi::start_in(
        directory,
        "",
        &format!(
            r#"
                platforms: [(name: "memory", host: Mcp(1), command: [{command}], env: {{"MEMORY_FILE_PATH": {file:?}}})],
                routes: [(to: "memory", timeout_ms: 60000)],
            "#
        ),
    );
    demi.wait_ready();
    let entity = json!({"name": "Oslo", "entityType": "city", "observations": ["it snows"]});
    assert_eq!(call(&demi, "create_entities", &json!({"entities": [entity]})).status, 200);
    let graph = call(&demi, "read_graph", &json!({}));
    assert!(graph.status == 200 && graph.body.contains("Oslo"), "{graph:?}");
}

#[test]
fn a_python_server_is_hosted_with_its_failures_and_its_log() {
    let Some(demi) = hosting("mcp") else { return };
    assert_eq!(call(&demi, "add", &json!({"left": 2, "right": 40})).json()["structuredContent"]["result"], 42);
    let answer = call(&demi, "fail", &json!({"why": "no disk"}));
    assert_eq!(answer.status, 502);
    assert!(text(&answer).contains("no disk"), "{answer:?}");
    assert_eq!(call(&demi, "say", &json!({"text": "it is late"})).status, 200);
    until("it is logged as the warning that it is", || {
        demi.log().lines().any(|line| line.contains("WARN") && line.contains("it is late")).then_some(())
    });
}

#[test]
fn a_caller_that_hangs_up_cancels_a_tool_that_was_making_progress() {
    let Some(demi) = hosting("mcp") else { return };
    let body = json!({"kind": "slow", "json": {"steps": 36_000}}).to_string();
    let mut stream = demi.connect();
    let length = body.len();
    write!(stream, "POST /v1/requests HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}")
        .expect("it reads");
    until("progress is logged", || demi.log().contains("of 36000").then_some(()));
    // By its end alone a client may only have finished sending.
    rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO)).expect("it can be set");
    drop(stream);
    until("the tool is cancelled", || demi.log().contains("slow was cancelled").then_some(()));
    assert_eq!(call(&demi, "add", &json!({"left": 1, "right": 1})).status, 200);
}

#[test]
fn a_client_that_asks_for_it_is_told_how_far_its_request_is_and_no_other() {
    let Some(demi) = hosting("mcp") else { return };
    let body = json!({"kind": "slow", "json": {"steps": 3}}).to_string();
    let length = body.len();
    let mut client = crate::client::Client::of(&demi);
    for wish in ["Demi-Progress: yes\r\n", ""] {
        client
            .send(format!("POST /v1/requests HTTP/1.1\r\nHost: test\r\n{wish}Content-Length: {length}\r\n\r\n{body}"));
        let mut told = Vec::new();
        let answer = loop {
            let answer = client.answer();
            match answer.status {
                102 => told.push(answer.header("Demi-Progress").expect("it says how far").to_owned()),
                _ => break answer,
            }
        };
        assert_eq!(answer.status, 200, "{answer:?}");
        let expected: &[&str] = &["progress 1 of 3: step 1", "progress 2 of 3: step 2", "progress 3 of 3: step 3"];
        assert_eq!(told, if wish.is_empty() { &[] } else { expected });
    }
}

#[test]
fn a_server_passes_its_health_checks_and_ends_with_demi() {
    let Some(mut demi) = hosting("mcp") else { return };
    until("a health check is passed", || demi.instance("tools", 0)["probe_ms"].as_f64());
    let pids = demi.pids("tools");
    demi.signal(rustix::process::Signal::TERM);
    assert!(demi.wait().success());
    assert!(pids.iter().all(|pid| !crate::support::is_alive(*pid)));
    assert!(!demi.log().contains("is killed"), "the end of its input was enough");
}

#[test]
fn what_speaks_no_mcp_is_put_down_with_its_reason() {
    let refusal = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"no licence"}}"#;
    let script = format!("read line; echo hello; echo '{refusal}'; exec cat >/dev/null");
    let demi = Demi::start(&format!(
        r#"platforms: [(name: "tools", host: Mcp(1), command: ["sh", "-c", {script:?}])], routes: [(to: "tools")]"#
    ));
    until("its refusal is logged", || demi.log().contains("no licence").then_some(()));
    until("what it printed is logged", || demi.log().contains("tools/0: hello").then_some(()));
}
