//! The steps for `protocol: "mcp"`: a Model Context Protocol server on stdin and stdout.

use serde_json::{json, Value};

use super::subject::{Answer, Seen, Subject};
use super::suite::{tell, Suite, PROMPT, WORKING};

const STEPS: [&str; 6] = ["ping", "tools", "an unknown tool", "garbage", "end of stdin", "TERM"];

/// Checks everything, in this order.
pub(super) fn run(suite: &mut Suite<'_>) {
    let Some(greeting) = suite.shake_hands() else { return suite.give_up(&STEPS) };
    suite.step(STEPS[0], |suite, subject| {
        let answered = suite.sign_of_life(subject);
        answered.map(|()| "answered".to_owned()).map_err(|seen| ("`ping` to be answered".to_owned(), seen))
    });
    if greeting["capabilities"]["tools"].is_object() {
        suite.step(STEPS[1], tools);
        suite.step(STEPS[2], unknown_tool);
    } else {
        suite.report.skip(STEPS[1], "it does not say that it has tools");
        suite.report.skip(STEPS[2], "it does not say that it has tools");
    }
    suite.garbage();
    suite.endings();
}

fn tools(suite: &Suite<'_>, subject: &mut Subject) -> Result<String, (String, String)> {
    let id = subject.call("tools/list", &json!({}));
    let seen = subject.answer(id, suite.within(WORKING));
    let listed = match &seen {
        Seen::Answer(Answer::Result(result)) => result["tools"].as_array(),
        _ => None,
    };
    let is_sound = |tool: &Value| tool["name"].is_string() && tool["inputSchema"].is_object();
    match listed {
        Some(tools) if tools.iter().all(is_sound) => {
            let names: Vec<&str> = tools.iter().filter_map(|tool| tool["name"].as_str()).collect();
            Ok(format!("{}: {}", tools.len(), names.join(", ")))
        }
        _ => {
            Err(("`tools/list` to be answered with tools that have a name and an inputSchema".to_owned(), tell(&seen)))
        }
    }
}

fn unknown_tool(suite: &Suite<'_>, subject: &mut Subject) -> Result<String, (String, String)> {
    let id = subject.call("tools/call", &json!({"name": "demi-check-nothing", "arguments": {}}));
    let told = match subject.answer(id, suite.within(PROMPT)) {
        Seen::Answer(Answer::Error { code, .. }) => format!("error {code}"),
        Seen::Answer(Answer::Result(result)) if result["isError"] == true => "isError".to_owned(),
        other => return Err(("an error, or isError, to a tool that does not exist".to_owned(), tell(&other))),
    };
    match suite.sign_of_life(subject) {
        Ok(()) => Ok(told),
        Err(seen) => Err(("it to live on after a tool that does not exist".to_owned(), seen)),
    }
}
