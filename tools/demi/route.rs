//! `demi route test`: which rule takes a request, and why the others do not.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use demi::conductor::{Miss, Question, Router};
use demi::config_file;
use demi::{Route, Urgency};
use serde::Serialize;

use crate::arguments::RouteAsked;
use crate::{adapter_names, configuration, plan, print, CONFIG, FAILED};

#[derive(Serialize)]
struct Told<'t> {
    /// `None` if no rule takes it.
    rule: Option<Verdict<'t>>,
    /// In the order in which rules come, the one that takes it left out.
    others: Vec<Verdict<'t>>,
}

#[derive(Serialize)]
struct Verdict<'t> {
    /// From 1, in the order of the file.
    number: usize,
    line: usize,
    matchers: Vec<String>,
    to: &'t str,
    priority: i32,
    /// `None`: by who asks.
    urgency: Option<Urgency>,
    timeout_ms: u64,
    fallback: &'t [String],
    on_failure: String,
    /// The field of the first matcher that does not match; `None` if all do.
    #[serde(skip_serializing_if = "Option::is_none")]
    misses: Option<&'static str>,
    /// Why it does not take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// Prints which rule takes the request.
pub(crate) fn test(asked: &RouteAsked) -> ExitCode {
    let Some(path) = asked.config.clone().or_else(configuration::find) else {
        eprintln!("demi: no configuration was found; name one with --config PATH. Looked for:");
        configuration::candidates().iter().for_each(|path| eprintln!("  {}", path.display()));
        return ExitCode::from(CONFIG);
    };
    let loaded = config_file::load(&path, &adapter_names());
    let (loaded, places) = match loaded.and_then(|loaded| Ok((loaded, config_file::route_places(&path)?))) {
        Ok(both) => both,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(CONFIG);
        }
    };
    let question = Question {
        from: &asked.from,
        kind: &asked.kind,
        method: &asked.method,
        host: &asked.host,
        path: &asked.path,
        headers: asked.headers.as_bytes(),
        content: asked.content.as_bytes(),
        by_path: asked.is_plain_http,
    };
    let router = Router::new(&loaded.config);
    let found = router.find(&question);
    let mut told = Told { rule: None, others: Vec::new() };
    for (id, miss) in router.explain(&question) {
        let number = id.0 as usize;
        let (route, line) = (&loaded.config.routes[number], places.get(number).map_or(0, |(line, _)| *line));
        let is_found = found == Some(id);
        let verdict = verdict(number + 1, line, route, miss.as_ref(), &question, is_found);
        match is_found {
            true => told.rule = Some(verdict),
            false => told.others.push(verdict),
        }
    }
    let text = match asked.json {
        true => serde_json::to_string_pretty(&told).expect("text and numbers always serialise") + "\n",
        false => describe(&told, &path),
    };
    let printed = print(&text);
    match told.rule {
        Some(_) => printed,
        None => ExitCode::from(FAILED),
    }
}

fn verdict<'t>(
    number: usize,
    line: usize,
    route: &'t Route,
    miss: Option<&Miss>,
    question: &Question<'_>,
    is_found: bool,
) -> Verdict<'t> {
    let late = || "it would, but comes later".to_owned();
    Verdict {
        number,
        line,
        matchers: plan::matchers(route),
        to: &route.to,
        priority: route.priority,
        urgency: route.urgency,
        timeout_ms: route.timeout_ms.value(),
        fallback: &route.fallback,
        on_failure: format!("{:?}", route.on_failure),
        misses: miss.map(Miss::field),
        why: (!is_found).then(|| miss.map_or_else(late, |miss| why(miss, route, question))),
    }
}

/// What a rule wants, and what the request is instead.
fn why(miss: &Miss, route: &Route, question: &Question<'_>) -> String {
    let wants = |what: &str, wanted: &Option<String>, is: &str| {
        let wanted = wanted.as_deref().unwrap_or_default();
        match is {
            "" => format!("{what} is not {wanted:?}: it has none"),
            _ => format!("{what} is not {wanted:?} but {is:?}"),
        }
    };
    match miss {
        Miss::PlainHttp => "it names neither a path nor a host, so it is for messages only".to_owned(),
        Miss::From => wants("platform", &route.from, question.from),
        Miss::Kind => wants("kind", &route.kind, question.kind),
        Miss::Method => wants("method", &route.method, question.method),
        Miss::Host => wants("host", &route.host, question.host),
        Miss::Path => wants("path", &route.path, question.path),
        Miss::Header(name) => {
            let wanted = route.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
            wanted.map_or_else(String::new, |(name, value)| format!("header {name} is not {value:?}"))
        }
        Miss::Content => {
            route.content.as_ref().map_or_else(String::new, |content| format!("content is not {content:?}"))
        }
    }
}

fn describe(told: &Told<'_>, path: &Path) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = match &told.rule {
        None => writeln!(text, "no rule takes it"),
        Some(rule) => writeln!(
            text,
            "rule {} at {}:{} takes it: to {} within {} ms, on failure {}",
            rule.number,
            path.display(),
            rule.line,
            rule.to,
            rule.timeout_ms,
            rule.on_failure
        ),
    };
    if let Some(rule) = &told.rule {
        let everything = if rule.matchers.is_empty() { "every message".to_owned() } else { rule.matchers.join(", ") };
        let _ = writeln!(text, "  {everything}");
        let fallback = if rule.fallback.is_empty() { "none".to_owned() } else { rule.fallback.join(", then ") };
        let _ = writeln!(text, "  fallback: {fallback}");
        let urgency = rule.urgency.map_or("by who asks".to_owned(), |urgency| format!("{urgency:?}"));
        let _ = writeln!(text, "  urgency: {urgency}");
    }
    if !told.others.is_empty() {
        let _ = writeln!(text, "not the others, in their order:");
    }
    for other in &told.others {
        let why = other.why.as_deref().unwrap_or_default();
        let _ = writeln!(text, "  rule {:<4} line {:<5} to {:<12} {why}", other.number, other.line, other.to);
    }
    text
}
