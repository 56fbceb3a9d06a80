//! A request and a reply, and the one buffer each that they live in.

/// A request, borrowed from wherever it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request<'r> {
    /// The platform that it came from (`discord`, `voice`, …); `http` for a plain HTTP request.
    pub from: &'r str,
    /// What kind it is (`message`, `command`, …); empty if nobody said.
    pub kind: &'r str,
    /// The HTTP method; `POST` for a request that came as a message.
    pub method: &'r str,
    /// Path and query; empty if it has none.
    pub target: &'r str,
    /// Media type of the body; empty if unknown.
    pub content_type: &'r str,
    /// The `Host` of a plain HTTP request; empty for a platform in a process of its own.
    pub host: &'r str,
    /// Raw header lines of a plain HTTP request, each ended by CRLF; empty for a platform in a process of its own.
    pub headers: &'r [u8],
    /// The body.
    pub body: &'r [u8],
}

impl<'r> Request<'r> {
    /// The target without its query.
    pub fn path(&self) -> &'r str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    /// The query, without the question mark.
    pub fn query(&self) -> &'r str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The body as text, if it is UTF-8.
    pub fn text(&self) -> Option<&'r str> {
        std::str::from_utf8(self.body).ok()
    }

    /// Whether the method alone says that asking twice does no harm (RFC 9110 §9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }
}

/// Everything of a request but its body.
pub type Parts<'p> = Request<'p>;

const PARTS: usize = 7;

/// A request that owns its bytes: one buffer, used again for the next request without allocating.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestBuf {
    bytes: Vec<u8>,
    /// Where each part ends: from, kind, method, target, content type, host, headers. The body is the rest.
    ends: [u32; PARTS],
}

impl RequestBuf {
    /// Forgets what it holds and takes everything of `parts`, body included.
    pub fn fill(&mut self, parts: &Parts<'_>) {
        self.bytes.clear();
        let texts = [parts.from, parts.kind, parts.method, parts.target, parts.content_type, parts.host];
        for (end, text) in self.ends.iter_mut().zip(texts) {
            self.bytes.extend_from_slice(text.as_bytes());
            *end = self.bytes.len() as u32;
        }
        self.bytes.extend_from_slice(parts.headers);
        self.ends[PARTS - 1] = self.bytes.len() as u32;
        self.bytes.extend_from_slice(parts.body);
    }

    /// The buffer, at whose end more of the body may be added. Nothing before the body may be changed.
    pub fn body_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// How many bytes it holds, body and all.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes are set aside for it.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The request.
    pub fn request(&self) -> Request<'_> {
        let part = |index: usize| {
            let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
            &self.bytes[start..self.ends[index] as usize]
        };
        // The texts were texts when they were filled in.
        let text = |index: usize| std::str::from_utf8(part(index)).unwrap_or_default();
        Request {
            from: text(0),
            kind: text(1),
            method: text(2),
            target: text(3),
            content_type: text(4),
            host: text(5),
            headers: part(6),
            body: &self.bytes[self.ends[PARTS - 1] as usize..],
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status, 200 to 599.
    pub status: u16,
    /// Media type of the body.
    pub content_type: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Default for Reply {
    fn default() -> Self {
        Reply { status: 200, content_type: String::new(), body: Vec::new() }
    }
}

impl Reply {
    /// Empties it, and keeps its buffers.
    pub fn clear(&mut self) {
        self.status = 200;
        self.content_type.clear();
        self.body.clear();
    }

    /// Fills it with text.
    pub fn text(&mut self, text: &str) {
        self.content_type.clear();
        self.content_type.push_str("text/plain; charset=utf-8");
        self.body.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_comes_out_again_and_a_second_time_too() {
        let mut buffer = RequestBuf::default();
        let long =
            Request { from: "discord", target: "/a?b=c", headers: b"x: y\r\n", body: &[7; 100], ..Request::default() };
        let short = Request { kind: "k", host: "h", body: b"x", ..Request::default() };
        for request in [long, short, long] {
            buffer.fill(&request);
            assert_eq!(buffer.request(), request);
        }
        assert_eq!((long.path(), long.query()), ("/a", "b=c"));
    }

    #[test]
    fn a_body_can_grow_after_the_rest_is_filled_in() {
        let mut buffer = RequestBuf::default();
        buffer.fill(&Request { method: "POST", ..Request::default() });
        buffer.body_mut().extend_from_slice(b"hel");
        buffer.body_mut().extend_from_slice(b"lo");
        assert_eq!(buffer.request().text(), Some("hello"));
    }
}
