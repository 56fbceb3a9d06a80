//! Errors as RFC 9457 problems.

use std::time::Duration;

use serde::Serialize;

use crate::http;

/// What went wrong with a request, for its caller.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Problem {
    status: u16,
    detail: String,
    /// A word for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// Under which number the request was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter: Option<u64>,
    #[serde(skip)]
    allow: Option<&'static str>,
}

/// What is sent of it.
#[derive(Serialize)]
struct Page<'p> {
    /// `about:blank` says that the status tells it all (RFC 9457 §4.2.1).
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    #[serde(flatten)]
    problem: &'p Problem,
}

impl Problem {
    /// The media type of a problem.
    pub(crate) const MEDIA_TYPE: &'static str = "application/problem+json";

    pub(crate) fn new(status: u16, detail: impl Into<String>) -> Problem {
        Problem {
            status,
            detail: detail.into(),
            code: None,
            platform: None,
            retry_after_ms: None,
            dead_letter: None,
            allow: None,
        }
    }

    pub(crate) fn code(mut self, code: &'static str) -> Problem {
        self.code = Some(code);
        self
    }

    pub(crate) fn platform(mut self, name: &str) -> Problem {
        self.platform = Some(name.to_owned());
        self
    }

    pub(crate) fn retry_after(mut self, wait: Duration) -> Problem {
        self.retry_after_ms = Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        self
    }

    pub(crate) fn dead_letter(mut self, number: u64) -> Problem {
        self.dead_letter = Some(number);
        self
    }

    /// Says one thing more.
    pub(crate) fn also(mut self, more: &str) -> Problem {
        self.detail.push_str("; ");
        self.detail.push_str(more);
        self
    }

    pub(crate) fn allow(mut self, methods: &'static str) -> Problem {
        self.allow = Some(methods);
        self
    }

    /// The word for programs.
    pub(crate) fn word(&self) -> Option<&'static str> {
        self.code
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// When to ask again, if that is of use.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.retry_after_ms.map(Duration::from_millis)
    }

    /// The header lines that go with it.
    pub(crate) fn write_headers(&self, out: &mut Vec<u8>) {
        if let Some(millis) = self.retry_after_ms {
            out.extend_from_slice(b"Retry-After: ");
            http::write_decimal(out, millis.div_ceil(1000).max(1));
            out.extend_from_slice(b"\r\n");
        }
        if let Some(methods) = self.allow {
            http::write_header(out, "Allow", methods.as_bytes());
        }
    }

    /// The body.
    pub(crate) fn body(&self) -> String {
        let page = Page { kind: "about:blank", title: http::reason_phrase(self.status), problem: self };
        let mut body = serde_json::to_string(&page).expect("text and numbers always serialise");
        body.push('\n');
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_what_to_do_next() {
        let problem = Problem::new(503, "no").code("queue_full").retry_after(Duration::from_millis(1200));
        let mut headers = Vec::new();
        problem.write_headers(&mut headers);
        assert_eq!(headers, b"Retry-After: 2\r\n");
        let body: serde_json::Value = serde_json::from_str(&problem.body()).expect("it is JSON");
        assert_eq!((body["status"].as_u64(), body["title"].as_str()), (Some(503), Some("Service Unavailable")));
        assert_eq!((body["code"].as_str(), body["retry_after_ms"].as_u64()), (Some("queue_full"), Some(1200)));
    }
}
