//! {{name}}: a plugin for Demi.
//!
//! JSON-RPC 2.0, one message a line: Demi asks on stdin, answers go to stdout, and stderr is the log. So: `eprintln!`, and
//! never `println!`.

use std::io::{self, BufRead, Write};
use std::sync::Mutex;
use std::thread;

use serde_json::{json, Value};

// ---- your own code: these three -------------------------------------------------------------------------------------

/// What a request that is not answered means.
#[allow(dead_code)]
enum Fault {
    /// It cannot be answered as it is: its caller is at fault, and not this plugin.
    Mistaken(String),
    /// This plugin tried and failed.
    Failed(String),
}

/// Called once, before anything else. `settings` are those of plugin.ron.
fn initialize(_settings: &Value) -> Result<(), Fault> {
    Ok(())
}

/// Answers one request; may be called by several threads at once. `request` has what else is known: from, kind, method,
/// target, content_type.
fn handle(body: &str, _request: &Value) -> Result<String, Fault> {
    Ok(body.to_owned())
}

/// `None` if all is well, or else a sentence about what is not.
fn health() -> Option<String> {
    None
}

// ---- the protocol: no need to change anything below -----------------------------------------------------------------

static OUT: Mutex<()> = Mutex::new(());

fn send(message: Value) {
    let _one_at_a_time = OUT.lock();
    // When nobody reads any more, stdin ends too.
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{message}").and_then(|()| stdout.flush());
}

fn answer(id: &Value, result: Result<Value, Fault>) {
    match result {
        Ok(result) => send(json!({"jsonrpc": "2.0", "id": id, "result": result})),
        Err(Fault::Mistaken(text)) => fail(id, -32001, &text),
        Err(Fault::Failed(text)) => fail(id, -32000, &text),
    }
}

fn fail(id: &Value, code: i64, text: &str) {
    send(json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}}));
}

fn greeting(params: &Value) -> Result<Value, Fault> {
    if params["protocol"] != 1 {
        return Err(Fault::Mistaken("only protocol 1 is spoken here".to_owned()));
    }
    initialize(&params["settings"])?;
    Ok(json!({"protocol": 1}))
}

fn reply(request: &Value) -> Result<Value, Fault> {
    // What is not UTF-8 comes as body_base64; decode it with a crate of your choice if you expect any.
    if !request["body_base64"].is_null() {
        return Err(Fault::Mistaken("this plugin takes text only".to_owned()));
    }
    let body = handle(request["body"].as_str().unwrap_or_default(), request)?;
    Ok(json!({"status": 200, "content_type": "text/plain; charset=utf-8", "body": body}))
}

fn how_it_is() -> Value {
    match health() {
        Some(error) => json!({"status": "down", "error": error}),
        None => json!({"status": "up"}),
    }
}

fn main() {
    // Leaving the scope waits for what was begun. Demi gives no more requests at once than in_flight_max, so threads are few.
    thread::scope(|scope| {
        let mut stdin = io::stdin().lock();
        let mut line = Vec::new();
        while stdin.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let message: Option<Value> = serde_json::from_slice(&line).ok();
            line.clear();
            let Some(mut message) = message.filter(Value::is_object) else {
                eprintln!("passed over a line that is no message");
                continue;
            };
            let (id, params) = (message["id"].take(), message["params"].take());
            match message["method"].as_str() {
                Some("initialize") => answer(&id, greeting(&params)),
                Some("handle") => {
                    scope.spawn(move || answer(&id, reply(&params)));
                }
                // trim asks to give memory back; here there is nothing to give.
                Some("health" | "trim") => answer(&id, Ok(how_it_is())),
                Some("shutdown") => break,
                // cancel: nobody waits for that answer any more, and nobody minds it.
                Some("cancel") | None => {}
                Some(method) if !id.is_null() => fail(&id, -32601, &format!("there is no method {method:?}")),
                Some(_) => {}
            }
        }
    });
}
