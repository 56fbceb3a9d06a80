//! `demi why NAME`: why a platform is in its state, newest first.

use std::fmt::Write;
use std::process::ExitCode;

use crate::arguments::Remote;
use crate::client::{platform_path, Client};
use crate::page::{moment, plain, Happening, WhyPage};
use crate::platforms::print_json;
use crate::print;

/// Tells it.
pub(crate) fn tell(remote: &Remote, name: &str) -> ExitCode {
    let path = platform_path(name, "/why");
    let client = match Client::find(remote) {
        Ok(client) => client,
        Err(failure) => return failure.tell(),
    };
    if remote.json {
        return match client.get(&path) {
            Ok(body) => print_json(&body).map_or_else(|failed| failed, |_| ExitCode::SUCCESS),
            Err(failure) => failure.tell(),
        };
    }
    match client.read::<WhyPage>(&path) {
        Ok(page) => print(&text(&page)),
        Err(failure) => failure.tell(),
    }
}

fn text(page: &WhyPage) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for sentence in page.now.iter().chain(&page.next) {
        let _ = writeln!(text, "{}", plain(sentence));
    }
    if !page.history.is_empty() {
        let _ = writeln!(text, "\nwhat happened, newest first:");
    }
    for happening in &page.history {
        let _ = writeln!(text, "  {}  {}", moment(happening.unix_ms), sentence(&page.platform, happening));
    }
    if !page.log.is_empty() {
        let _ = writeln!(text, "\nwhat it logged, newest first:");
    }
    for logged in &page.log {
        let who = format!("{}/{}", page.platform, logged.instance);
        let _ = writeln!(text, "  {}  {who} {}: {}", moment(logged.unix_ms), logged.level, plain(&logged.text));
    }
    text
}

/// What happened, and to whom.
pub(crate) fn sentence(platform: &str, happening: &Happening) -> String {
    match happening.instance {
        Some(instance) => format!("{platform}/{instance}: {}", plain(&happening.text)),
        None => format!("{platform}: {}", plain(&happening.text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::Scripted;

    #[test]
    fn what_is_next_and_was_is_told_in_lines() {
        let server = Scripted::pages(&[(
            200,
            r#"{"platform":"a","now":["a/0 is in backoff since 2 s: it ended with exit code 3"],
                "next":["a/0: it is started again in 4 s"],
                "history":[{"unix_ms":1735689600250,"instance":0,"text":"it ended with exit code 3"},
                           {"unix_ms":1735689600000,"instance":null,"text":"its folder was found"}],
                "log":[{"unix_ms":1735689600249,"level":"error","instance":0,"text":"no \u001b[31mtoken"}]}"#,
        )]);
        let page = server.client().read(&platform_path("a", "/why")).expect("the server answers");
        let expected = "a/0 is in backoff since 2 s: it ended with exit code 3\n\
            a/0: it is started again in 4 s\n\n\
            what happened, newest first:\n  2025-01-01 00:00:00.250Z  a/0: it ended with exit code 3\n  \
            2025-01-01 00:00:00.000Z  a: its folder was found\n\n\
            what it logged, newest first:\n  2025-01-01 00:00:00.249Z  a/0 error: no \\u{1b}[31mtoken\n";
        assert_eq!(text(&page), expected);
        assert_eq!(server.requests(), ["GET /v1/platforms/a/why HTTP/1.1"]);
    }
}
