//! `demi start|stop|restart|reload|isolate|close NAME`: tells Demi, waits until the platform is where it should be, and says
//! what became of it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::arguments::{Order, Remote};
use crate::client::{platform_path, Client, Failure};
use crate::page::{plain, span, InstancePage, PlatformPage, WhyPage};
use crate::platforms::print_json;
use crate::why::sentence;
use crate::{print, FAILED};

/// Between two looks at the platform's page.
const INTERVAL: Duration = Duration::from_millis(100);
/// An order that Demi has taken shows on the page at once; after this long what shows is what became of it.
const SETTLED: Duration = Duration::from_secs(1);
/// Most sentences of the reason; `demi why` tells the rest.
const REASONS_MAX: usize = 3;

/// Gives the order; with `wait`, waits so long at most until it is done.
pub(crate) fn give(remote: &Remote, order: Order, name: &str, wait: Option<Duration>) -> ExitCode {
    match try_to_give(remote, order, name, wait) {
        Ok(exit) => exit,
        Err(failure) => failure.tell(),
    }
}

fn try_to_give(remote: &Remote, order: Order, name: &str, wait: Option<Duration>) -> Result<ExitCode, Failure> {
    let client = Client::find(remote)?;
    let page = platform_path(name, "");
    let before: PlatformPage = client.read(&page)?;
    let answer = client.post(&platform_path(name, &format!("/{}", order.word())))?;
    let began = Instant::now();
    if remote.json {
        if let Err(failed) = print_json(&answer) {
            return Ok(failed);
        }
    }
    // Who wants JSON reads JSON only.
    let done = |text: &str| if remote.json { ExitCode::SUCCESS } else { print(&format!("{text}\n")) };
    let Some(wait) = wait else {
        return Ok(done(&format!("{name}: the order to {} was taken", order.word())));
    };
    let mut was_reloading = false;
    loop {
        let now: PlatformPage = client.read(&page)?;
        was_reloading |= now.reloading;
        let progress = progress(order, &before, &now, was_reloading || began.elapsed() >= SETTLED);
        let failed = match progress {
            Progress::Done(text) => return Ok(done(&text)),
            Progress::Failed => format!("{name} {}", failure(order)),
            Progress::Waiting if began.elapsed() < wait => {
                std::thread::sleep(INTERVAL.min(wait));
                continue;
            }
            Progress::Waiting => format!("after {} {name} is not where it should be", span(wait.as_secs_f64())),
        };
        eprintln!("demi: {failed}: {}; see `demi why {name}`", reason(&client, order, name, &now));
        return Ok(ExitCode::from(FAILED));
    }
}

/// How far an order is.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// It is done; what became of it.
    Done(String),
    /// It will not be done.
    Failed,
    /// Not yet.
    Waiting,
}

/// What the pages before the order and now say about it; `is_settled` if what shows now is what became of it.
fn progress(order: Order, before: &PlatformPage, now: &PlatformPage, is_settled: bool) -> Progress {
    let name = &now.name;
    let run_before = |instance: &InstancePage| {
        before.instances.iter().find(|was| was.instance == instance.instance).map_or(0, |was| was.run)
    };
    let is_new = |instance: &InstancePage| instance.run > run_before(instance);
    let every = |fact: &dyn Fn(&InstancePage) -> bool| !now.instances.is_empty() && now.instances.iter().all(fact);
    // One that nobody asks anything may fall asleep again before it is looked at.
    let has_started = |instance: &InstancePage| instance.serving || (instance.state == "asleep" && is_new(instance));
    // The failure of before the order does not count.
    let has_failed = |instance: &InstancePage| instance.state == "failed" && (is_new(instance) || is_settled);
    let serving = now.instances.iter().filter(|instance| instance.serving).count();
    let told = format!("{serving} of {} instances serving", now.instances.len());
    let is_done = match order {
        Order::Start => !now.isolated && every(&has_started),
        Order::Restart => every(&|instance| is_new(instance) && has_started(instance)),
        Order::Stop => every(&|instance| matches!(instance.state.as_str(), "stopped" | "failed")),
        Order::Reload => !now.reloading && now.edition > before.edition,
        Order::Isolate => now.isolated,
        Order::Close => is_closed(&now.breaker) && now.instances.iter().all(|instance| is_closed(&instance.breaker)),
    };
    let is_lost = match order {
        Order::Start | Order::Restart => now.instances.iter().any(has_failed),
        Order::Reload => !now.reloading && is_settled,
        Order::Stop | Order::Isolate | Order::Close => false,
    };
    match (is_done, is_lost) {
        (true, _) => Progress::Done(match order {
            Order::Start => format!("{name} runs: {told}"),
            Order::Restart => format!("{name} runs again: {told}"),
            Order::Stop => format!("{name} is stopped until `demi start {name}`"),
            Order::Reload => format!("{name} runs edition {} in place of {}: {told}", now.edition, before.edition),
            Order::Isolate => format!("{name} gets no requests until `demi start {name}`"),
            Order::Close => format!("the breakers of {name} are closed: {told}"),
        }),
        (false, true) => Progress::Failed,
        (false, false) => Progress::Waiting,
    }
}

/// A Demi of another version may say nothing of a breaker.
fn is_closed(breaker: &str) -> bool {
    matches!(breaker, "closed" | "")
}

fn failure(order: Order) -> &'static str {
    match order {
        Order::Start | Order::Restart => "did not start",
        Order::Stop => "did not stop",
        Order::Reload => "was not reloaded, and the old edition stays",
        Order::Isolate => "was not isolated",
        Order::Close => "still has a breaker that is open",
    }
}

/// Why it is not where it should be, in a few sentences.
fn reason(client: &Client, order: Order, name: &str, now: &PlatformPage) -> String {
    let why: WhyPage = client.read(&platform_path(name, "/why")).unwrap_or_default();
    let mut sentences: Vec<String> = match order {
        // The old edition is well; what became of the new one is history.
        Order::Reload => why.history.iter().map(|happening| sentence(name, happening)).collect(),
        Order::Start | Order::Stop | Order::Restart | Order::Isolate | Order::Close => why.now,
    };
    if sentences.is_empty() {
        let said =
            |instance: &InstancePage| format!("{name}/{} is {}: {}", instance.instance, instance.state, instance.why);
        sentences = now.instances.iter().map(said).collect();
    }
    sentences.truncate(REASONS_MAX);
    plain(&sentences.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::Scripted;

    /// A page with an instance for each `(state, serving, run)`.
    fn page(edition: u32, instances: &[(&str, bool, u32)]) -> PlatformPage {
        let instance = |(index, (state, serving, run)): (usize, &(&str, bool, u32))| InstancePage {
            instance: index as u32,
            state: (*state).to_owned(),
            serving: *serving,
            run: *run,
            ..InstancePage::default()
        };
        let instances = instances.iter().enumerate().map(instance).collect();
        PlatformPage { name: "a".to_owned(), edition, instances, ..PlatformPage::default() }
    }

    fn is_done(order: Order, before: &PlatformPage, now: &PlatformPage) -> bool {
        matches!(progress(order, before, now, false), Progress::Done(_))
    }

    #[test]
    fn an_order_is_given_once_and_its_end_is_waited_for() {
        let page =
            |state: &str| format!(r#"{{"name":"a","instances":[{{"state":"{state}","serving":false,"run":1}}]}}"#);
        let (ready, draining, stopped) = (page("ready"), page("draining"), page("stopped"));
        let taken = r#"{"platform":"a","order":"stop"}"#;
        let server = Scripted::pages(&[(200, &ready), (202, taken), (200, &draining), (200, &stopped)]);
        let remote = Remote { address: Some(server.address().to_owned()), config: None, json: false };
        let exit = give(&remote, Order::Stop, "a", Some(Duration::from_secs(30)));
        assert_eq!(format!("{exit:?}"), format!("{:?}", ExitCode::SUCCESS));
        let (look, order) = ("GET /v1/platforms/a HTTP/1.1", "POST /v1/platforms/a/stop HTTP/1.1");
        assert_eq!(server.requests(), [look, order, look, look]);
    }

    #[test]
    fn an_order_that_is_not_done_in_time_has_failed_and_says_why() {
        let page = r#"{"name":"a","instances":[{"state":"stopping","run":1}]}"#;
        let server = Scripted::pages(&[(200, page), (202, "{}"), (200, page), (200, r#"{"now":["it hangs"]}"#)]);
        let remote = Remote { address: Some(server.address().to_owned()), config: None, json: true };
        let exit = give(&remote, Order::Stop, "a", Some(Duration::ZERO));
        assert_eq!(format!("{exit:?}"), format!("{:?}", ExitCode::from(FAILED)));
        assert_eq!(server.requests().last().map(String::as_str), Some("GET /v1/platforms/a/why HTTP/1.1"));
    }

    #[test]
    fn a_start_is_done_when_every_instance_serves() {
        let before = page(0, &[("stopped", false, 0), ("stopped", false, 0)]);
        assert!(!is_done(Order::Start, &before, &page(0, &[("ready", true, 1), ("starting", false, 1)])));
        assert!(is_done(Order::Start, &before, &page(0, &[("ready", true, 1), ("degraded", true, 1)])));
        assert!(is_done(Order::Start, &before, &page(0, &[("ready", true, 1), ("asleep", false, 1)])), "it has run");
        assert!(!is_done(Order::Start, &before, &page(0, &[("ready", true, 1), ("asleep", false, 0)])));
    }

    #[test]
    fn the_failure_of_before_an_order_is_not_the_failure_of_the_order() {
        let before = page(0, &[("failed", false, 3)]);
        assert_eq!(progress(Order::Start, &before, &before, false), Progress::Waiting);
        assert_eq!(progress(Order::Start, &before, &before, true), Progress::Failed, "it was not even tried");
        let again = page(0, &[("failed", false, 4)]);
        assert_eq!(progress(Order::Restart, &before, &again, false), Progress::Failed);
    }

    #[test]
    fn a_restart_is_done_when_every_run_is_new() {
        let before = page(0, &[("ready", true, 1), ("ready", true, 1)]);
        assert!(!is_done(Order::Restart, &before, &page(0, &[("ready", true, 2), ("ready", true, 1)])));
        assert!(is_done(Order::Restart, &before, &page(0, &[("ready", true, 2), ("ready", true, 2)])));
    }

    #[test]
    fn a_stop_is_done_when_nothing_runs() {
        let before = page(0, &[("ready", true, 1)]);
        assert!(!is_done(Order::Stop, &before, &page(0, &[("draining", false, 1)])));
        assert!(is_done(Order::Stop, &before, &page(0, &[("stopped", false, 1)])));
    }

    #[test]
    fn a_reload_is_done_with_the_edition_and_failed_without() {
        let before = page(1, &[("ready", true, 1)]);
        assert_eq!(progress(Order::Reload, &before, &before, false), Progress::Waiting, "it has not begun to show");
        assert_eq!(progress(Order::Reload, &before, &before, true), Progress::Failed);
        let mut swapping = page(1, &[("ready", true, 1)]);
        swapping.reloading = true;
        assert_eq!(progress(Order::Reload, &before, &swapping, true), Progress::Waiting);
        assert!(is_done(Order::Reload, &before, &page(2, &[("ready", true, 1)])));
    }

    #[test]
    fn a_close_is_done_when_every_breaker_is_closed() {
        let with = |platform: &str, instance: &str| {
            let mut page = page(0, &[("ready", true, 1), ("ready", true, 1)]);
            page.breaker = platform.to_owned();
            page.instances[1].breaker = instance.to_owned();
            page
        };
        let before = with("open", "open");
        assert!(!is_done(Order::Close, &before, &with("closed", "open")));
        assert!(!is_done(Order::Close, &before, &with("half_open", "closed")));
        assert!(is_done(Order::Close, &before, &with("closed", "closed")));
    }

    #[test]
    fn the_reason_of_a_failed_reload_is_what_happened_last() {
        let server = Scripted::pages(&[(
            200,
            r#"{"platform":"a","now":["a/0 is ready"],"history":[{"unix_ms":2,"text":"its new edition ended with exit code 1"}]}"#,
        )]);
        let told = reason(&server.client(), Order::Reload, "a", &page(1, &[("ready", true, 1)]));
        assert_eq!(told, "a: its new edition ended with exit code 1");
    }

    #[test]
    fn a_demi_that_cannot_say_why_still_says_how_it_is() {
        let server = Scripted::pages(&[(404, "{}")]);
        let told = reason(&server.client(), Order::Start, "a", &page(1, &[("backoff", false, 1)]));
        assert_eq!(told, "a/0 is backoff: ");
    }
}
