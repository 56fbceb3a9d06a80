//! Conversations with servers that are only scripted.

use std::sync::Arc;

use demi_platform::FaultKind;
use serde_json::{json, Value};

use super::*;
use crate::calls::Origin;

const INSTANCE: Instance = Instance { slot: 3, run: 7 };

/// A wire, the calls behind it, and what came of the last line.
struct Script {
    wire: McpWire,
    calls: Calls,
    heard: Vec<Heard>,
    out: Vec<u8>,
}

impl Script {
    /// Nothing said yet.
    fn new() -> Script {
        Script { wire: McpWire::new(64 * 1024), calls: Calls::default(), heard: Vec::new(), out: Vec::new() }
    }

    /// Greeted, and not yet answered.
    fn greeted() -> Script {
        let mut script = Script::new();
        script.wire.greet("tools/0", &Settings::new(), &mut script.out);
        script
    }

    /// After a handshake with a server that has no tools.
    fn started() -> Script {
        let mut script = Script::greeted();
        script.said();
        script.hears(&initialized("2025-06-18", json!({})));
        script.said();
        script
    }

    /// After a handshake with a server that has these.
    fn with_tools(names: &[&str]) -> Script {
        let mut script = Script::greeted();
        script.said();
        script.hears(&initialized("2025-11-25", json!({"tools": {"listChanged": true}})));
        script.said();
        let tools: Vec<Value> = names.iter().map(|name| json!({"name": name, "inputSchema": {}})).collect();
        script.hears(&answer(2, json!({ "tools": tools })));
        script
    }

    /// What was written since this was asked last, message by message.
    fn said(&mut self) -> Vec<Value> {
        let text = String::from_utf8(std::mem::take(&mut self.out)).expect("JSON is UTF-8");
        assert!(text.is_empty() || text.ends_with('\n'), "a message ends its line: {text:?}");
        text.lines().map(|line| serde_json::from_str(line).expect("each line is a message")).collect()
    }

    /// What came of a line.
    fn hears(&mut self, line: &Value) -> &[Heard] {
        self.reads(line.to_string().as_bytes())
    }

    fn reads(&mut self, line: &[u8]) -> &[Heard] {
        self.heard.clear();
        self.wire.take_line(line, INSTANCE, &mut self.calls, &mut self.heard, &mut self.out);
        &self.heard
    }

    /// Opens a call and asks for it.
    fn asks(&mut self, request: &Request<'_>) -> (Ticket, Result<u64, Fault>) {
        let mut buffer = self.calls.buffer();
        Arc::make_mut(&mut buffer).fill(request);
        let ticket = self.calls.open(buffer, Origin::Nobody, None);
        self.calls.reset(ticket, INSTANCE);
        (ticket, self.wire.ask(ticket, request, &mut self.out))
    }

    /// Calls a tool that takes no arguments.
    fn calls(&mut self, tool: &str) -> (Ticket, u64) {
        let (ticket, id) = self.asks(&Request { kind: tool, ..Request::default() });
        (ticket, id.expect("it can be asked"))
    }

    fn refusal(&mut self, request: &Request<'_>) -> Fault {
        self.asks(request).1.expect_err("it cannot be asked")
    }

    fn outcome(&self) -> Outcome {
        match self.heard[..] {
            [Heard::Answered { outcome, .. }] => outcome,
            _ => panic!("one answer was expected: {:?}", self.heard),
        }
    }

    fn logged(&self) -> Vec<(log::Level, &str)> {
        let line = |heard: &'_ Heard| matches!(heard, Heard::Logged { .. });
        assert!(self.heard.iter().all(line), "log lines were expected: {:?}", self.heard);
        self.heard
            .iter()
            .filter_map(|heard| match heard {
                Heard::Logged { level, text } => Some((*level, text.as_str())),
                _ => None,
            })
            .collect()
    }

    fn tools(&self) -> Vec<Value> {
        let list = self.heard.iter().find_map(|heard| match heard {
            Heard::Tools(list) => Some(list.get()),
            _ => None,
        });
        serde_json::from_str(list.expect("tools were heard")).expect("they are a JSON array")
    }

    fn reply(&mut self, ticket: Ticket) -> (u16, Value) {
        let reply = &self.calls.get(ticket).expect("it is under way").attempt.reply;
        assert_eq!(reply.content_type, "application/json");
        (reply.status, serde_json::from_slice(&reply.body).expect("it is JSON"))
    }

    fn fault(&mut self, ticket: Ticket) -> Fault {
        self.calls.get(ticket).expect("it is under way").attempt.fault.clone().expect("it has a fault")
    }
}

fn answer(id: u64, result: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": result})
}

fn error(id: u64, code: i64, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}

fn notification(method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "method": method, "params": params})
}

fn initialized(revision: &str, capabilities: Value) -> Value {
    let server = json!({"name": "scripted", "version": "1"});
    answer(1, json!({"protocolVersion": revision, "capabilities": capabilities, "serverInfo": server}))
}

fn has_started(heard: &[Heard]) -> bool {
    heard.iter().any(|heard| matches!(heard, Heard::Started))
}

fn refused(heard: &[Heard]) -> &str {
    match heard {
        [Heard::Refused(why)] => why,
        _ => panic!("a refusal was expected: {heard:?}"),
    }
}

// ---- the beginning ---------------------------------------------------------------------------------------------

#[test]
fn the_handshake_offers_the_newest_revision_and_takes_the_servers() {
    for revision in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "what-comes-later"] {
        let mut script = Script::greeted();
        let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "demi", "version": env!("CARGO_PKG_VERSION")},
        }});
        assert_eq!(script.said(), [hello]);
        assert!(has_started(script.hears(&initialized(revision, json!({})))), "{revision}");
        assert_eq!(script.said(), [json!({"jsonrpc": "2.0", "method": "notifications/initialized"})]);
    }
}

#[test]
fn an_answer_that_is_no_handshake_is_refused_with_what_is_missing() {
    let no_revision = answer(1, json!({"capabilities": {}}));
    let cases = [
        (no_revision, "protocolVersion"),
        (answer(1, json!([])), "not an object"),
        (answer(1, json!({"protocolVersion": 1})), "not an object that fits"),
        (json!({"jsonrpc": "2.0", "id": 1}), "neither result nor error"),
        (error(1, -32_603, "no disk"), "no disk (-32603)"),
    ];
    for (line, part) in cases {
        let mut script = Script::greeted();
        let why = refused(script.hears(&line)).to_owned();
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn a_server_that_names_its_revisions_is_met_in_the_newest_of_them_once() {
    let mut script = Script::greeted();
    script.said();
    let refusal = |id: u64| {
        let data = json!({"supported": ["2024-10-07", "2024-11-05"], "requested": "2025-11-25"});
        json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32_602, "message": "unsupported", "data": data}})
    };
    assert!(script.hears(&refusal(1)).is_empty());
    assert_eq!(script.said()[0]["params"]["protocolVersion"], "2024-11-05");
    assert!(refused(script.hears(&refusal(2))).contains("unsupported"));
    assert!(script.said().is_empty());
}

#[test]
fn a_server_without_a_handshake_is_told_who_asks_in_every_request() {
    let by_name = json!({"jsonrpc": "2.0", "id": 1, "error": {
        "code": -32_022, "message": "no", "data": {"supported": ["2026-07-28"], "requested": "2025-11-25"},
    }});
    for refusal in [by_name, error(1, -32_601, "Method not found")] {
        let mut script = Script::greeted();
        script.said();
        assert!(script.hears(&refusal).is_empty());
        let said = script.said();
        assert_eq!(said[0]["method"], "server/discover");
        let discovered = json!({"resultType": "complete", "supportedVersions": ["2026-07-28"],
            "capabilities": {"tools": {}}, "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "new", "version": "2"}}});
        assert!(has_started(script.hears(&answer(2, discovered.clone()))));
        script.wire.probe(&mut script.out);
        script.calls("echo");
        let said = script.said();
        let methods: Vec<&Value> = said.iter().map(|message| &message["method"]).collect();
        assert_eq!(methods, ["tools/list", "server/discover", "tools/call"], "and there is no ping");
        for message in &said {
            let meta = &message["params"]["_meta"];
            assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
            assert_eq!(meta["io.modelcontextprotocol/clientInfo"]["name"], "demi");
            assert_eq!(meta["io.modelcontextprotocol/clientCapabilities"], json!({}));
        }
        script.hears(&answer(4, discovered));
        assert!(matches!(script.heard[..], [Heard::Probed(Verdict::Pass, None)]));
    }
}

#[test]
fn a_server_that_takes_neither_beginning_is_refused_with_both_reasons() {
    let mut script = Script::greeted();
    script.hears(&error(1, -32_601, "no handshake here"));
    let why = refused(script.hears(&error(2, -32_601, "nothing to discover"))).to_owned();
    assert!(why.contains("no handshake here") && why.contains("nothing to discover"), "{why}");
    script = Script::greeted();
    script.hears(&error(1, -32_601, "no handshake here"));
    let later = json!({"supportedVersions": ["2031-01-01"], "capabilities": {}});
    assert!(refused(script.hears(&answer(2, later))).contains("2031-01-01"));
}

#[test]
fn settings_are_not_passed_on_and_that_is_said() {
    let mut script = Script::new();
    let settings = Settings::from([("city".to_owned(), "Oslo".to_owned())]);
    script.wire.greet("tools/0", &settings, &mut script.out);
    assert!(!String::from_utf8_lossy(&script.out).contains("Oslo"));
    script.hears(&initialized("2025-06-18", json!({})));
    let warns =
        |heard: &Heard| matches!(heard, Heard::Logged { level: log::Level::Warn, text } if text.contains("settings"));
    assert!(script.heard.iter().any(warns));
}

// ---- tools -----------------------------------------------------------------------------------------------------

#[test]
fn tools_are_listed_page_by_page() {
    let mut script = Script::greeted();
    script.said();
    script.hears(&initialized("2025-06-18", json!({"tools": {}})));
    assert_eq!(script.said()[1], json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}));
    let first = json!({"tools": [{"name": "a", "description": "first", "inputSchema": {}}], "nextCursor": "p2"});
    assert!(script.hears(&answer(2, first)).is_empty());
    assert_eq!(script.said()[0]["params"], json!({"cursor": "p2"}));
    script.hears(&answer(3, json!({"tools": [{"name": "b"}, {"no": "name"}]})));
    let expected = [json!({"name": "a", "description": "first"}), json!({"name": "b", "description": ""})];
    assert_eq!(script.tools(), expected);
}

#[test]
fn a_list_of_tools_without_an_end_is_ended() {
    let mut script = Script::greeted();
    script.said();
    script.hears(&initialized("2025-06-18", json!({"tools": {}})));
    let mut id = 2;
    while !script.heard.iter().any(|heard| matches!(heard, Heard::Tools(_))) {
        assert!(id < 1_000, "it is asked for ever");
        script.hears(&answer(id, json!({"tools": [{"name": format!("t{id}")}], "nextCursor": "again"})));
        id += 1;
    }
    assert_eq!(script.tools().len(), TOOL_PAGES_MAX);
    assert!(matches!(&script.heard[0], Heard::Logged { level: log::Level::Warn, .. }));
}

#[test]
fn many_and_long_tools_are_bounded() {
    for (count, description, expected) in [(TOOLS_MAX + 5, 1, TOOLS_MAX), (1_000, 100_000, 127)] {
        let mut script = Script::greeted();
        script.hears(&initialized("2025-06-18", json!({"tools": {}})));
        let tool = |index: usize| json!({"name": format!("t{index}"), "description": "ü".repeat(description)});
        script.hears(&answer(2, json!({"tools": (0..count).map(tool).collect::<Vec<Value>>()})));
        assert_eq!(script.tools().len(), expected);
        assert!(script.heard.iter().any(|heard| matches!(heard, Heard::Logged { level: log::Level::Warn, .. })));
    }
}

#[test]
fn changed_tools_are_listed_again_at_most_once_between_health_checks() {
    let mut script = Script::with_tools(&["a"]);
    script.wire.probe(&mut script.out);
    script.said();
    let changed = notification("notifications/tools/list_changed", json!({}));
    script.hears(&changed);
    assert_eq!(script.said()[0]["method"], "tools/list", "at once, the first time");
    script.hears(&changed);
    script.hears(&changed);
    assert!(script.said().is_empty());
    script.hears(&answer(4, json!({"tools": [{"name": "b"}]})));
    assert_eq!(script.tools()[0]["name"], "b");
    assert!(script.said().is_empty(), "not before the next health check");
    script.wire.probe(&mut script.out);
    let methods: Vec<Value> = script.said().into_iter().map(|message| message["method"].clone()).collect();
    assert_eq!(methods, ["ping", "tools/list"]);
    script.hears(&answer(6, json!({"tools": []})));
    script.wire.probe(&mut script.out);
    assert_eq!(script.said().len(), 1, "nothing has changed since");
}

#[test]
fn a_server_that_cannot_list_its_tools_is_used_all_the_same() {
    for line in [error(2, -32_603, "broken"), answer(2, json!({"tools": 5})), json!({"jsonrpc": "2.0", "id": 2})] {
        let mut script = Script::greeted();
        script.hears(&initialized("2025-06-18", json!({"tools": {}})));
        script.hears(&line);
        assert_eq!(script.logged()[0].0, log::Level::Warn);
        script.calls("echo");
    }
}

// ---- requests --------------------------------------------------------------------------------------------------

#[test]
fn a_kind_names_the_tool_and_the_body_its_arguments() {
    let mut script = Script::started();
    let (_, id) =
        script.asks(&Request { kind: "echo", target: "/x/other", body: br#"{"a":1.50}"#, ..Request::default() });
    assert_eq!(id, Ok(2));
    assert!(String::from_utf8_lossy(&script.out).contains("1.50"), "numbers stay as they were written");
    let expected = json!({"name": "echo", "arguments": {"a": 1.5}, "_meta": {"progressToken": 2}});
    assert_eq!(script.said(), [json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": expected})]);
}

#[test]
fn without_a_kind_the_end_of_the_path_names_the_tool() {
    let mut script = Script::started();
    script
        .asks(&Request { target: "/tools/echo?x=y", body: b" \r\n", ..Request::default() })
        .1
        .expect("it can be asked");
    let params = &script.said()[0]["params"];
    assert_eq!((&params["name"], &params["arguments"]), (&json!("echo"), &json!({})));
}

#[test]
fn arguments_over_many_lines_are_sent_in_one() {
    let mut script = Script::started();
    let body = b"{\r\n  \"text\": \"a\\nb\",\n  \"list\": [\n1,\n2]\n}\n";
    script.asks(&Request { kind: "echo", body, ..Request::default() }).1.expect("it can be asked");
    assert_eq!(script.said()[0]["params"]["arguments"], json!({"text": "a\nb", "list": [1, 2]}));
}

#[test]
fn what_cannot_be_arguments_is_refused_with_an_example() {
    let mut script = Script::started();
    for body in [&b"hello"[..], b"[1]", b"\"text\"", b"null", b"7", b"{\"a\":}", b"{} {}", b"\xff", b"{\"a\":\"\xff\"}"]
    {
        let fault = script.refusal(&Request { kind: "echo", body, ..Request::default() });
        assert_eq!(fault.kind, FaultKind::Mistaken);
        assert!(fault.message.contains(EXAMPLE), "{fault}");
    }
    let fault = script.refusal(&Request { target: "/", ..Request::default() });
    assert!(fault.message.contains("which tool?"), "{fault}");
    let fault = script.refusal(&Request { kind: "tools/call", body: b"{\"_meta\":1}", ..Request::default() });
    assert_eq!(fault.kind, FaultKind::Mistaken);
    assert!(script.said().is_empty() && script.wire.pending.is_empty(), "nothing was begun");
}

#[test]
fn a_request_that_is_too_long_for_a_line_is_refused_and_leaves_no_trace() {
    let mut script = Script::started();
    let body = json!({"text": "x".repeat(64 * 1024)}).to_string();
    let fault = script.refusal(&Request { kind: "echo", body: body.as_bytes(), ..Request::default() });
    assert_eq!(fault.kind, FaultKind::Mistaken);
    assert!(script.said().is_empty() && script.wire.pending.is_empty());
}

#[test]
fn a_kind_that_is_a_method_is_passed_on_with_its_parameters() {
    for method in METHODS {
        let mut script = Script::started();
        let body = br#"{"uri":"demo://1","_meta":{"mine":true,"progressToken":"stolen"}}"#;
        script.asks(&Request { kind: method, body, ..Request::default() }).1.expect("it can be asked");
        let said = &script.said()[0];
        assert_eq!(said["method"], method);
        assert_eq!(said["params"], json!({"uri": "demo://1", "_meta": {"mine": true, "progressToken": 2}}));
    }
    let mut script = Script::started();
    let (ticket, _) = script.asks(&Request { kind: "resources/list", ..Request::default() });
    script.hears(&answer(2, json!({"resources": []})));
    assert_eq!(script.reply(ticket), (200, json!({"resources": []})));
}

#[test]
fn a_result_comes_back_as_it_was_given() {
    let mut script = Script::started();
    let (ticket, id) = script.calls("weather");
    let line =
        format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[],"structuredContent":{{"c":1.50}},"x":1}}}}"#);
    script.reads(line.as_bytes());
    assert_eq!(script.outcome(), Outcome::Replied);
    let reply = &script.calls.get(ticket).expect("it is under way").attempt.reply;
    assert_eq!(reply.body, br#"{"content":[],"structuredContent":{"c":1.50},"x":1}"#);
}

#[test]
fn a_tool_that_failed_is_a_failure_with_its_content() {
    let mut script = Script::with_tools(&["fail"]);
    let (ticket, id) = script.calls("fail");
    let result = json!({"content": [{"type": "text", "text": "no disk"}], "isError": true});
    script.hears(&answer(id, result.clone()));
    assert_eq!(script.outcome(), Outcome::Failed);
    assert_eq!(script.reply(ticket), (502, result));
}

#[test]
fn a_call_that_no_tool_could_take_is_its_callers_mistake() {
    let mut script = Script::with_tools(&["echo"]);
    let unknown = json!({"content": [{"type": "text", "text": "Unknown tool: ehco"}], "isError": true});
    let (ticket, id) = script.calls("ehco");
    script.hears(&answer(id, unknown.clone()));
    assert_eq!(script.outcome(), Outcome::Mistaken);
    assert_eq!(script.reply(ticket), (400, unknown.clone()));
    let invalid =
        json!({"content": [{"type": "text", "text": "MCP error -32602: Input validation error"}], "isError": true});
    let (ticket, id) = script.calls("echo");
    script.hears(&answer(id, invalid.clone()));
    assert_eq!(script.outcome(), Outcome::Mistaken);
    assert_eq!(script.reply(ticket), (400, invalid));
    // While the list is out of date, nobody knows what is unknown.
    script.hears(&notification("notifications/tools/list_changed", json!({})));
    let (_, id) = script.calls("ehco");
    script.hears(&answer(id, unknown));
    assert_eq!(script.outcome(), Outcome::Failed);
}

#[test]
fn an_error_says_whose_fault_it_is() {
    let cases = [
        (-32_602, Outcome::Mistaken, FaultKind::Mistaken),
        (-32_601, Outcome::Mistaken, FaultKind::Mistaken),
        (-32_002, Outcome::Mistaken, FaultKind::Mistaken),
        (-32_603, Outcome::Failed, FaultKind::Failed),
        (-32_000, Outcome::Failed, FaultKind::Failed),
        (1, Outcome::Failed, FaultKind::Failed),
    ];
    for (code, outcome, kind) in cases {
        let mut script = Script::started();
        let (ticket, id) = script.calls("echo");
        script.hears(&error(id, code, "so it is"));
        assert_eq!(script.outcome(), outcome);
        assert_eq!(script.fault(ticket), Fault { kind, message: format!("so it is ({code})"), retry_after: None });
    }
    let mut script = Script::with_tools(&["echo"]);
    let (ticket, id) = script.calls("ehco");
    script.hears(&error(id, -32_000, "never heard of it"));
    assert_eq!(script.outcome(), Outcome::Mistaken);
    assert_eq!(script.fault(ticket).kind, FaultKind::Mistaken);
}

#[test]
fn an_answer_of_another_shape_is_a_broken_answer() {
    let shapes = [
        json!({"result": 5}),
        json!({"result": []}),
        json!({"result": {"isError": "yes"}}),
        json!({"result": null}),
        json!({}),
    ];
    for shape in shapes {
        let mut script = Script::started();
        let (ticket, id) = script.calls("echo");
        let mut line = shape;
        line["jsonrpc"] = "2.0".into();
        line["id"] = id.into();
        script.hears(&line);
        assert_eq!(script.outcome(), Outcome::Broken, "{line}");
        assert_eq!(script.fault(ticket).kind, FaultKind::Failed);
    }
    let mut script = Script::started();
    let (ticket, id) = script.calls("echo");
    script.hears(&json!({"jsonrpc": "2.0", "id": id, "error": "just a text"}));
    assert_eq!(script.outcome(), Outcome::Failed);
    assert!(script.fault(ticket).message.contains("just a text"));
}

#[test]
fn an_answer_is_taken_once_and_only_for_what_was_asked() {
    let mut script = Script::started();
    let (ticket, id) = script.calls("echo");
    for stray in [json!(id + 1), json!(0), json!("2"), json!(2.0), json!(-2), json!({"a": 1})] {
        script.hears(&json!({"jsonrpc": "2.0", "id": stray, "result": {}}));
        assert_eq!(script.logged()[0].0, log::Level::Debug);
    }
    script.hears(&answer(id, json!({"first": 1})));
    assert_eq!(script.outcome(), Outcome::Replied);
    script.hears(&answer(id, json!({"second": 2})));
    assert_eq!(script.logged().len(), 1);
    assert_eq!(script.reply(ticket).1, json!({"first": 1}));
}

#[test]
fn the_answer_to_what_another_instance_has_by_now_is_not_read_into_it() {
    let mut script = Script::started();
    let (ticket, id) = script.calls("echo");
    script.calls.reset(ticket, Instance { slot: 4, run: 1 });
    script.hears(&answer(id, json!({"late": true})));
    assert_eq!(script.outcome(), Outcome::Replied, "the conductor knows whose answer it waits for");
    assert!(script.calls.get(ticket).expect("it is under way").attempt.reply.body.is_empty());
}

#[test]
fn a_cancelled_request_is_told_and_its_answer_passed_over() {
    let mut script = Script::started();
    let (_, id) = script.calls("slow");
    script.said();
    script.wire.cancel(id, &mut script.out);
    let params = json!({"requestId": id, "reason": CANCEL_REASON});
    assert_eq!(script.said(), [json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})]);
    script.hears(&answer(id, json!({})));
    assert_eq!(script.logged()[0].0, log::Level::Debug);
    script.wire.cancel(id, &mut script.out);
    script.wire.cancel(99, &mut script.out);
    assert!(script.said().is_empty(), "only what is under way is cancelled");
}

#[test]
fn so_many_requests_wait_and_no_more() {
    let mut script = Script::started();
    for _ in 0..OUTSTANDING_MAX {
        script.calls("slow");
        script.out.clear();
    }
    assert_eq!(script.refusal(&Request { kind: "slow", ..Request::default() }).kind, FaultKind::Busy);
}

// ---- health ----------------------------------------------------------------------------------------------------

#[test]
fn a_ping_is_a_health_check_even_if_the_server_does_not_know_it() {
    let null = json!({"jsonrpc": "2.0", "id": 2, "result": null});
    for (line, verdict) in [
        (answer(2, json!({})), Verdict::Pass),
        (null, Verdict::Pass),
        (error(2, -32_601, "Method not found"), Verdict::Pass),
        (error(2, -32_603, "I am ill"), Verdict::Fail),
    ] {
        let mut script = Script::started();
        script.wire.probe(&mut script.out);
        assert_eq!(script.said(), [json!({"jsonrpc": "2.0", "id": 2, "method": "ping"})]);
        match script.hears(&line) {
            [Heard::Probed(heard, why)] => {
                assert_eq!(*heard, verdict, "{line}");
                assert_eq!(why.is_some(), verdict == Verdict::Fail);
            }
            heard => panic!("{heard:?}"),
        }
    }
}

#[test]
fn an_earlier_health_check_is_forgotten() {
    let mut script = Script::started();
    script.wire.probe(&mut script.out);
    script.wire.probe(&mut script.out);
    script.hears(&answer(2, json!({})));
    assert_eq!(script.logged().len(), 1);
    script.hears(&answer(3, json!({})));
    assert!(matches!(script.heard[..], [Heard::Probed(Verdict::Pass, None)]));
}

#[test]
fn the_end_and_the_wish_for_memory_are_no_messages() {
    let mut script = Script::started();
    assert!(!script.wire.trim(&mut script.out));
    script.wire.shut_down(&mut script.out);
    assert!(script.said().is_empty());
}

// ---- what it says by itself ------------------------------------------------------------------------------------

#[test]
fn a_servers_own_requests_are_answered_under_their_own_ids() {
    let mut script = Script::started();
    for id in [json!(1), json!("a \"text\""), json!(-7), json!(1.5)] {
        script.hears(&json!({"jsonrpc": "2.0", "id": id, "method": "ping"}));
        assert_eq!(script.said(), [json!({"jsonrpc": "2.0", "id": id, "result": {}})]);
        for method in ["roots/list", "sampling/createMessage", "elicitation/create", "anything"] {
            script.hears(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": {}}));
            let said = script.said();
            assert_eq!((&said[0]["id"], &said[0]["error"]["code"]), (&id, &json!(-32_601)), "{method}");
            assert_eq!(script.logged()[0].0, log::Level::Debug);
        }
    }
}

#[test]
fn a_server_that_asks_without_reading_or_with_huge_ids_is_not_answered() {
    let mut script = Script::started();
    script.hears(&json!({"jsonrpc": "2.0", "id": "x".repeat(ID_BYTES_MAX), "method": "ping"}));
    assert_eq!(script.logged()[0].0, log::Level::Warn);
    assert!(script.said().is_empty());
    for id in 0..10 {
        script.out.resize(UNREAD_BYTES_MAX, b' ');
        script.hears(&json!({"jsonrpc": "2.0", "id": id, "method": "ping"}));
        assert!(script.logged().is_empty(), "just not too much");
        let full = script.out.len();
        script.hears(&json!({"jsonrpc": "2.0", "id": id, "method": "ping"}));
        assert_eq!((script.logged()[0].0, script.out.len()), (log::Level::Warn, full));
    }
}

#[test]
fn progress_is_told_for_what_is_under_way() {
    let mut script = Script::started();
    let (ticket, id) = script.calls("slow");
    let params = json!({"progressToken": id, "progress": 3, "total": 10, "message": "copying\u{7}"});
    match script.hears(&notification("notifications/progress", params)) {
        [Heard::Logged { level, text }, Heard::Progress { ticket: of, note }] => {
            assert_eq!((*level, *of), (log::Level::Debug, ticket));
            assert_eq!(*text, format!("request {}: progress 3 of 10: copying\u{fffd}", ticket.number()));
            assert_eq!(note, "progress 3 of 10: copying\u{fffd}");
        }
        heard => panic!("{heard:?}"),
    }
    script.hears(&answer(id, json!({})));
    for token in [json!(id), json!(99), json!("2"), json!(null)] {
        script.hears(&notification("notifications/progress", json!({"progressToken": token, "progress": 4})));
        assert!(script.heard.is_empty(), "{token}");
    }
}

#[test]
fn log_messages_keep_their_level_and_are_bounded() {
    let levels = [
        ("debug", log::Level::Debug),
        ("info", log::Level::Info),
        ("notice", log::Level::Info),
        ("warning", log::Level::Warn),
        ("error", log::Level::Error),
        ("critical", log::Level::Error),
        ("alert", log::Level::Error),
        ("emergency", log::Level::Error),
        ("unheard of", log::Level::Info),
    ];
    let mut script = Script::started();
    for (name, level) in levels {
        script.hears(&notification("notifications/message", json!({"level": name, "data": "a\u{1b}[31mb"})));
        assert_eq!(script.logged(), [(level, "a\u{fffd}[31mb")]);
    }
    let data = json!({"level": "info", "logger": "db", "data": {"rows": 5}});
    script.hears(&notification("notifications/message", data));
    assert_eq!(script.logged(), [(log::Level::Info, "db: {\"rows\":5}")]);
    script.hears(&notification("notifications/message", json!({"level": "info", "data": "x".repeat(50_000)})));
    assert!(script.logged()[0].1.len() <= LOG_LINE_BYTES_MAX + 4);
    script.hears(&notification("notifications/message", json!([1])));
    assert_eq!(script.logged().len(), 1);
}

#[test]
fn other_notifications_are_logged() {
    let mut script = Script::started();
    script.hears(&notification("notifications/resources/updated", json!({"uri": "demo://1"})));
    assert_eq!(script.logged(), [(log::Level::Debug, "notifications/resources/updated {\"uri\":\"demo://1\"}")]);
}

#[test]
fn what_is_no_message_is_a_log_line() {
    let mut script = Script::started();
    let lines =
        [&b"Server running on stdio"[..], b"{}", b"[]", b"[1]", b"[INFO] up", b"{\"jsonrpc\":\"1.0\",\"id\":1}"];
    for line in lines {
        script.reads(line);
        assert_eq!(script.logged(), [(log::Level::Info, String::from_utf8_lossy(line).as_ref())]);
    }
    script.reads(b"\x1b[2J\xff{\"jsonrpc\"\r");
    assert_eq!(script.logged()[0].1, "\u{fffd}[2J\u{fffd}{\"jsonrpc\"");
    assert!(script.reads(b" \r").is_empty());
    script.reads(&b"[".repeat(60_000));
    assert!(script.logged()[0].1.len() <= LOG_LINE_BYTES_MAX + 4);
    script.hears(&json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32_700, "message": "Parse error"}}));
    assert_eq!(script.logged(), [(log::Level::Warn, "Parse error (-32700)")]);
}

#[test]
fn a_batch_is_heard_message_by_message() {
    let mut script = Script::started();
    let (ticket, first) = script.calls("a");
    let (_, second) = script.calls("b");
    script.said();
    let log = notification("notifications/message", json!({"level": "info", "data": "between"}));
    let ping = json!({"jsonrpc": "2.0", "id": "p", "method": "ping"});
    script.hears(&json!([answer(second, json!({})), log, 7, ping, answer(first, json!({"a": 1}))]));
    match &script.heard[..] {
        [Heard::Answered { .. }, Heard::Logged { text, .. }, Heard::Answered { ticket: of, .. }] => {
            assert_eq!((text.as_str(), *of), ("between", ticket));
        }
        heard => panic!("{heard:?}"),
    }
    assert_eq!(script.said(), [json!({"jsonrpc": "2.0", "id": "p", "result": {}})]);
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    script.hears(&json!(vec![ping; BATCH_MAX + 1]));
    assert_eq!(script.said().len(), BATCH_MAX);
    assert_eq!(script.logged()[0].0, log::Level::Warn);
}

#[test]
fn no_line_makes_it_panic_or_say_more_than_it_may() {
    let lines = [
        initialized("2025-06-18", json!({"tools": {}})),
        answer(1, json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "_meta": {}})),
        answer(2, json!({"tools": [{"name": "a", "description": "b"}], "nextCursor": "c"})),
        answer(3, json!({"content": [{"type": "text", "text": "MCP error -32602: x"}], "isError": true})),
        json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -32_022, "message": "m", "data": {"supported": ["x"]}}}),
        json!([notification("notifications/progress", json!({"progressToken": 3, "progress": 1, "message": "m"}))]),
        notification("notifications/message", json!({"level": "info", "logger": "l", "data": {"a": [1, "ü"]}})),
        json!({"jsonrpc": "2.0", "id": "x", "method": "ping"}),
    ];
    let mut state: u64 = 1;
    let mut draw = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    for _ in 0..4_000 {
        let mut script = Script::greeted();
        for _ in 0..4 {
            let mut line = lines[draw(lines.len())].to_string().into_bytes();
            for _ in 0..draw(4) {
                let place = draw(line.len());
                line[place] = [b'"', b'{', b'}', b'[', b']', b'0', b'9', b'-', b',', 0, 0xff, b'\\'][draw(12)];
            }
            line.truncate(line.len() - draw(2) * draw(line.len()));
            script.reads(&line);
            assert!(script.heard.len() <= 4, "{:?} of {:?}", script.heard, String::from_utf8_lossy(&line));
            if draw(2) == 0 {
                script.calls("a");
            }
        }
        assert!(script.out.len() < 8_192);
        script.said();
    }
}
