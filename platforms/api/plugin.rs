//! Runs a platform as a process of its own.

use std::io::{self, BufRead, Write};

use crate::codec;
use crate::{Fault, Platform, Reply, RequestBuf};

/// Speaks the wire protocol on stdin and stdout until stdin ends or `shutdown` is called; blocks until then.
///
/// One request at a time; then [`Platform::shutdown`] is called, for which there is a second, or half of
/// `stop_grace_ms` if that is shorter, before Demi sends TERM: handle that if you need more. Log with `eprintln!`: stderr goes to Demi's log under the platform's name. Never print to
/// stdout.
///
/// # Errors
/// If stdin cannot be read or stdout cannot be written, which is the case when Demi is gone.
pub fn plugin_main(platform: &mut dyn Platform) -> io::Result<()> {
    let mut stdin = io::stdin().lock();
    let mut stdout = io::stdout().lock();
    serve(platform, &mut stdin, &mut stdout)
}

fn serve(platform: &mut dyn Platform, input: &mut impl BufRead, output: &mut impl Write) -> io::Result<()> {
    let mut line = Vec::new();
    let mut answer = Vec::new();
    let mut buffer = RequestBuf::default();
    let mut reply = Reply::default();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let Some(message) = codec::read_message(&line) else {
            eprintln!("passed over a line that is no JSON-RPC message");
            continue;
        };
        answer.clear();
        match (message.method.as_deref(), message.id) {
            (Some("initialize"), Some(id)) => match initialize(platform, &message) {
                Ok(()) => codec::write_initialized(&mut answer, id),
                Err(fault) => codec::write_fault(&mut answer, id, &fault),
            },
            (Some("handle"), Some(id)) => {
                reply.clear();
                let read = codec::read_handle(message.params, &mut buffer).map_err(Fault::mistaken);
                match read.and_then(|()| platform.handle_request(&buffer.request(), &mut reply)) {
                    Ok(()) => codec::write_reply(&mut answer, id, &reply),
                    Err(fault) => codec::write_fault(&mut answer, id, &fault),
                }
            }
            (Some("health"), Some(id)) => codec::write_health_result(&mut answer, id, &platform.health_check()),
            (Some("trim"), Some(id)) => {
                platform.trim();
                codec::write_health_result(&mut answer, id, &platform.health_check());
            }
            (Some("shutdown"), _) => break,
            (Some(method), Some(id)) => {
                codec::write_error(&mut answer, id, codec::NO_METHOD, &format!("there is no method {method:?}"));
            }
            // A cancelled request was answered before its cancellation could be read: one at a time.
            (Some(_), None) | (None, _) => {}
        }
        output.write_all(&answer)?;
        output.flush()?;
    }
    platform.shutdown();
    Ok(())
}

fn initialize(platform: &mut dyn Platform, message: &codec::Message<'_>) -> Result<(), Fault> {
    let wanted = codec::read_initialize(message.params).map_err(Fault::mistaken)?;
    if wanted.protocol != codec::PROTOCOL {
        return Err(Fault::mistaken(format!(
            "protocol {} is not spoken here, {} is",
            wanted.protocol,
            codec::PROTOCOL
        )));
    }
    platform.initialize(&wanted.settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Request, Settings};

    struct Upper {
        is_shut_down: bool,
    }

    impl Platform for Upper {
        fn initialize(&mut self, _: &Settings) -> Result<(), Fault> {
            Ok(())
        }

        fn handle_request(&mut self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Fault> {
            let text = request.text().ok_or_else(|| Fault::mistaken("not a text"))?;
            reply.text(&text.to_uppercase());
            Ok(())
        }

        fn shutdown(&mut self) {
            self.is_shut_down = true;
        }
    }

    fn talk(input: &str) -> (String, bool) {
        let mut platform = Upper { is_shut_down: false };
        let mut output = Vec::new();
        serve(&mut platform, &mut input.as_bytes(), &mut output).expect("memory can be read and written");
        (String::from_utf8(output).expect("JSON is UTF-8"), platform.is_shut_down)
    }

    #[test]
    fn it_shakes_hands_answers_and_ends_with_its_input() {
        let (answers, is_shut_down) = talk(concat!(
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":1,"name":"upper"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":2,"method":"handle","params":{"body":"hi"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":3,"method":"health"}"#,
            "\n"
        ));
        let lines: Vec<&str> = answers.lines().collect();
        assert_eq!(lines[0], r#"{"jsonrpc":"2.0","id":1,"result":{"protocol":1}}"#);
        assert!(lines[1].contains(r#""body":"HI""#), "{}", lines[1]);
        assert_eq!(lines[2], r#"{"jsonrpc":"2.0","id":3,"result":{"status":"up"}}"#);
        assert!(is_shut_down);
    }

    #[test]
    fn garbage_unknown_methods_and_a_foreign_protocol_end_nothing() {
        let (answers, _) = talk(concat!(
            "garbage\n",
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":9,"name":"upper"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":2,"method":"dance"}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":3,"method":"handle","params":{"body_base64":"/w=="}}"#,
            "\n"
        ));
        let codes: Vec<i64> = answers
            .lines()
            .map(|line| codec::read_message(line.as_bytes()).and_then(|message| message.error).map_or(0, |e| e.code))
            .collect();
        assert_eq!(codes, [codec::MISTAKEN, codec::NO_METHOD, codec::MISTAKEN]);
    }
}
