//! `demi logs NAME`: what a platform has logged, and what it logs from now on.

use std::process::ExitCode;
use std::time::Duration;

use crate::arguments::Remote;
use crate::client::{platform_path, Client, Failure};
use crate::page::{counted, moment, plain, LogsPage};
use crate::platforms::print_json;
use crate::print_some;

/// Between two looks for new lines: soon enough for a person, and rare enough to cost nothing.
const INTERVAL: Duration = Duration::from_millis(500);
/// Most lines in an answer while following; what is more comes with the next look, at once.
const FOLLOWED_MAX: usize = 1000;

/// Prints the last lines; with `follow` goes on until it is ended or nobody reads any more.
pub(crate) fn print_lines(remote: &Remote, name: &str, follow: bool, lines: usize) -> ExitCode {
    let client = match Client::find(remote) {
        Ok(client) => client,
        Err(failure) => return failure.tell(),
    };
    let mut reader = Reader { client, name, next: None };
    let mut limit = lines;
    loop {
        let is_first = reader.next.is_none();
        let (page, body) = match reader.fetch(limit) {
            Ok(answer) => answer,
            Err(failure) => return failure.tell(),
        };
        if let Some(losses) = losses(name, &page) {
            eprintln!("demi: {losses}");
        }
        let printed = match remote.json {
            true if page.lines.is_empty() && !is_first => Ok(true),
            true => print_json(&body),
            false => print_some(&text(name, &page)),
        };
        match printed {
            Ok(true) if follow => {}
            Ok(_) => return ExitCode::SUCCESS,
            Err(failed) => return failed,
        }
        if is_first || page.lines.len() < limit {
            std::thread::sleep(INTERVAL);
        }
        limit = FOLLOWED_MAX;
    }
}

/// Reads a log from where it last was.
struct Reader<'r> {
    client: Client,
    name: &'r str,
    next: Option<u64>,
}

impl Reader<'_> {
    /// The next page, and what was sent for it.
    fn fetch(&mut self, limit: usize) -> Result<(LogsPage, Vec<u8>), Failure> {
        let after = self.next.map_or(String::new(), |next| format!("&after={next}"));
        let path = platform_path(self.name, &format!("/logs?limit={limit}{after}"));
        let body = self.client.get(&path)?;
        let page: LogsPage = self.client.understand(&path, &body)?;
        self.next = Some(page.next);
        Ok((page, body))
    }
}

/// How many lines before those of the page are lost, if any.
fn losses(name: &str, page: &LogsPage) -> Option<String> {
    (page.dropped > 0).then(|| format!("{} dropped: {name} wrote too fast", counted(page.dropped as usize, "line")))
}

fn text(name: &str, page: &LogsPage) -> String {
    let line = |line: &crate::page::Logged| {
        format!("{}  {name}/{} {:<5}  {}\n", moment(line.unix_ms), line.instance, line.level, plain(&line.text))
    };
    page.lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::Scripted;

    #[test]
    fn following_goes_on_where_the_last_page_ended_and_each_page_tells_its_own_losses() {
        let server = Scripted::pages(&[
            (200, r#"{"lines":[{"seq":7,"unix_ms":0,"level":"warn","instance":1,"text":"hot"}],"next":7,"dropped":2}"#),
            (200, r#"{"lines":[],"next":9,"dropped":2}"#),
            (200, r#"{"lines":[],"next":9,"dropped":0}"#),
        ]);
        let mut reader = Reader { client: server.client(), name: "a", next: None };
        let (page, _) = reader.fetch(100).expect("the server answers");
        assert_eq!(text("a", &page), "1970-01-01 00:00:00.000Z  a/1 warn   hot\n");
        let losses: Vec<Option<String>> = std::iter::once(losses("a", &page))
            .chain((0..2).map(|_| losses("a", &reader.fetch(1000).expect("the server answers").0)))
            .collect();
        let told = Some("2 lines dropped: a wrote too fast".to_owned());
        assert_eq!(losses, [told.clone(), told, None]);
        let asked = [
            "GET /v1/platforms/a/logs?limit=100 HTTP/1.1",
            "GET /v1/platforms/a/logs?limit=1000&after=7 HTTP/1.1",
            "GET /v1/platforms/a/logs?limit=1000&after=9 HTTP/1.1",
        ];
        assert_eq!(server.requests(), asked);
    }
}
