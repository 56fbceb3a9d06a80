//! A client that keeps its connection, and looks closely at what comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::support::{Demi, Response};

/// One connection to Demi.
pub struct Client {
    pub stream: TcpStream,
    bytes: Vec<u8>,
}

impl Client {
    pub fn of(demi: &Demi) -> Client {
        let stream = demi.connect();
        stream.set_nodelay(true).expect("a TCP option can be set");
        Client { stream, bytes: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("Demi reads");
    }

    /// Sends no more, and goes on listening.
    pub fn finish_sending(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("the connection is there");
    }

    /// Goes, and says so at once: by its end alone a client may only have finished sending.
    pub fn reset(self) {
        let at_once = Some(std::time::Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&self.stream, at_once).expect("a socket option can be set");
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.send(get(path));
        self.answer()
    }

    /// The next answer, whole. Panics if the connection ends before it does.
    pub fn answer(&mut self) -> Response {
        let mut answer = self.head();
        if matches!(answer.status, 100..=199 | 204 | 304) {
            return answer;
        }
        answer.body = if answer.header("Transfer-Encoding").is_some_and(|coding| coding == "chunked") {
            let mut body = Vec::new();
            while let Some(chunk) = self.chunk() {
                body.extend_from_slice(&chunk);
            }
            lossy(&body)
        } else {
            let length = answer.header("Content-Length").expect("an answer says how long it is");
            lossy(&self.bytes(length.parse().expect("a length is a number")))
        };
        answer
    }

    /// The next head, be it of an interim answer; what follows stays to be read.
    pub fn head(&mut self) -> Response {
        let end = loop {
            match self.bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => assert!(self.read(), "the connection ended where a head should be: {:?}", lossy(&self.bytes)),
            }
        };
        let head: Vec<u8> = self.bytes.drain(..end).collect();
        assert!(head.starts_with(b"HTTP/1.1 "), "{:?}", lossy(&head));
        Response::parse(&lossy(&head))
    }

    /// The next chunk of a body; `None` after the last.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.line();
        let length = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("{line:?} is no chunk size"));
        if length == 0 {
            // Trailers are looked at elsewhere.
            while !self.line().is_empty() {}
            return None;
        }
        let chunk = self.bytes(length);
        assert_eq!(self.line(), "", "a chunk ends where its size says");
        Some(chunk)
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> String {
        let end = loop {
            match self.bytes.windows(2).position(|end| end == b"\r\n") {
                Some(end) => break end,
                None => assert!(self.read(), "the connection ended within a line"),
            }
        };
        let line = lossy(&self.bytes[..end]);
        self.bytes.drain(..end + 2);
        line
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.bytes.len() < count {
            assert!(self.read(), "the connection ended {} bytes early", count - self.bytes.len());
        }
        self.bytes.drain(..count).collect()
    }

    /// All that comes until Demi closes; a reset is as good as an end.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.read() {}
        std::mem::take(&mut self.bytes)
    }

    /// Waits for the end, before which nothing may come.
    pub fn expect_end(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "nothing should come any more: {:?}", lossy(&rest));
    }

    /// Reads once; false at the end. Panics if Demi is silent for too long.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 64 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.bytes.extend_from_slice(&bytes[..count]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("Demi neither answered nor closed; so far: {:?}", lossy(&self.bytes))
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(_) => false,
        }
    }
}

/// A request without a body.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

/// A request with a body of known length.
pub fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A request with its body in these chunks.
pub fn post_chunked<'c>(path: &str, chunks: impl IntoIterator<Item = &'c str>) -> String {
    let mut text = format!("POST {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in chunks {
        text.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    }
    text + "0\r\n\r\n"
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
