//! A small HTTP client that asks a Demi which runs: one connection a question, blocking, bounded in time and size.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use demi::config_file;
use serde::de::DeserializeOwned;
use serde::Deserialize;

use crate::arguments::Remote;
use crate::{configuration, CONFIG, FAILED, USAGE};

/// Demi answers pages about itself in the turn in which it hears of them; the rest is for a machine that swaps.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is taken, bytes: a thousand log lines of 16 KB.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Demi sends fewer than ten header lines; what is before it may add some.
const HEADERS_MAX: usize = 64;
/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;
/// Where Demi listens when nothing says otherwise.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8787";

/// Why there is no answer to go on with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What Demi said, if it said anything.
    pub(crate) status: Option<u16>,
    /// The exit code that it means.
    code: u8,
    text: String,
}

impl Failure {
    fn new(text: String) -> Failure {
        Failure { status: None, code: FAILED, text }
    }

    /// A mistake on the command line.
    pub(crate) fn of_usage(what: &str) -> Failure {
        Failure { code: USAGE, ..Failure::new(what.to_owned()) }
    }

    /// Tells it on stderr.
    pub(crate) fn tell(&self) -> ExitCode {
        eprintln!("demi: {self}");
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Asks one Demi.
pub(crate) struct Client {
    address: String,
    patience: Duration,
}

impl Client {
    /// The Demi that the command line or the configuration names.
    ///
    /// # Errors
    /// If the configuration cannot be read, or leaves the port to the system.
    pub(crate) fn find(remote: &Remote) -> Result<Client, Failure> {
        let address = match &remote.address {
            Some(address) => address.clone(),
            None => match remote.config.clone().or_else(configuration::find) {
                Some(path) => config_file::listen_address(&path).map_err(|problems| Failure {
                    code: CONFIG,
                    ..Failure::new(format!(
                        "the configuration, which would say where Demi listens, has mistakes; correct them or give \
                             --address HOST:PORT\n{problems}"
                    ))
                })?,
                None => DEFAULT_ADDRESS.to_owned(),
            },
        };
        if address.ends_with(":0") {
            return Err(Failure::new(
                "the configuration leaves the port to the system; give --address HOST:PORT as Demi's log tells it"
                    .to_owned(),
            ));
        }
        Ok(Client { address, patience: PATIENCE })
    }

    /// What a page says, as it is.
    ///
    /// # Errors
    /// If nobody answers, or the answer is not 2xx: then what its problem says.
    pub(crate) fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        self.ask("GET", path)
    }

    /// What a page says, read.
    ///
    /// # Errors
    /// As [`Client::get`], and if the page is not what it should be.
    pub(crate) fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.understand(path, &self.get(path)?)
    }

    /// Reads what the page of this path said.
    ///
    /// # Errors
    /// If it is not what it should be.
    pub(crate) fn understand<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(body).map_err(|error| {
            Failure::new(format!(
                "what answers at {} is not understood: GET {path}: {error}; is it a Demi of this version?",
                self.address
            ))
        })
    }

    /// Posts nothing to a page.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn post(&self, path: &str) -> Result<Vec<u8>, Failure> {
        self.ask("POST", path)
    }

    /// Puts a body in the place of a page's.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn put(&self, path: &str, content_type: Option<&str>, body: &[u8]) -> Result<Vec<u8>, Failure> {
        let content_type = content_type.map(|media| format!("Content-Type: {media}\r\n")).unwrap_or_default();
        self.send("PUT", path, &format!("{content_type}Content-Length: {}\r\n", body.len()), body)
    }

    /// Takes away what is behind a page.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn delete(&self, path: &str) -> Result<Vec<u8>, Failure> {
        self.ask("DELETE", path)
    }

    fn ask(&self, method: &str, path: &str) -> Result<Vec<u8>, Failure> {
        self.send(method, path, if method == "POST" { "Content-Length: 0\r\n" } else { "" }, b"")
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Vec<u8>, Failure> {
        let (status, body) = self.exchange(method, path, headers, body).map_err(|why| {
            Failure::new(format!("no Demi answers at {} ({why}); is it running? see `demi run`", self.address))
        })?;
        if (200..=299).contains(&status) {
            return Ok(body);
        }
        let text = match serde_json::from_slice::<Problem>(&body) {
            Ok(Problem { detail: Some(detail), .. }) => detail,
            Ok(Problem { title: Some(title), .. }) => format!("{method} {path}: {status} {title}"),
            _ => format!("{method} {path} at {} was answered with status {status}", self.address),
        };
        Err(Failure { status: Some(status), ..Failure::new(text) })
    }

    fn exchange(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<(u16, Vec<u8>), String> {
        let deadline = Instant::now() + self.patience;
        let mut stream = self.connect(deadline)?;
        let host = &self.address;
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n");
        stream.set_write_timeout(Some(self.patience)).map_err(|error| error.to_string())?;
        stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        // One that does not want all of it says why in its answer.
        let _ = stream.write_all(body);
        let mut bytes = Vec::new();
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.silence());
            }
            stream.set_read_timeout(Some(left)).map_err(|error| error.to_string())?;
            let count = match stream.read(&mut chunk) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(self.silence())
                }
                Err(error) => return Err(error.to_string()),
            };
            bytes.extend_from_slice(&chunk[..count]);
            if let Some(answer) = read_answer(&bytes, count == 0)? {
                return Ok(answer);
            }
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"));
            }
        }
    }

    fn silence(&self) -> String {
        format!("no whole answer within {} s", self.patience.as_secs_f64())
    }

    /// The first of the host's addresses that takes a connection.
    fn connect(&self, deadline: Instant) -> Result<TcpStream, String> {
        let addresses: Vec<SocketAddr> = self.address.to_socket_addrs().map_err(|error| error.to_string())?.collect();
        let mut why = "the name has no address".to_owned();
        for address in addresses {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => return Ok(stream),
                Err(error) => why = error.to_string(),
            }
        }
        Err(why)
    }
}

/// The part of an RFC 9457 problem that is for people.
#[derive(Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
}

/// A platform's page, or one below it.
pub(crate) fn platform_path(name: &str, below: &str) -> String {
    format!("/v1/platforms/{}{below}", encoded(name))
}

/// A name as it may stand in a path or a query.
pub(crate) fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        // What is unreserved in RFC 3986 stands for itself.
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Status and body of the answer in `bytes`, once it is complete; `has_ended` if no more will come.
fn read_answer(bytes: &[u8], has_ended: bool) -> Result<Option<(u16, Vec<u8>)>, String> {
    let mut rest = bytes;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut answer = httparse::Response::new(&mut headers);
        let head = match answer.parse(rest) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) if has_ended => return Err("the connection ended too early".to_owned()),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("it does not speak HTTP: {error}")),
        };
        rest = &rest[head..];
        let status = answer.code.unwrap_or_default();
        if (100..=199).contains(&status) {
            continue;
        }
        let value = |name: &str| {
            let header = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(header.value).ok().map(str::trim)
        };
        let body = if status == 204 || status == 304 {
            Some(Vec::new())
        } else if value("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            read_chunks(rest)?
        } else if let Some(length) = value("content-length") {
            let length: usize = length.parse().map_err(|_| format!("{length:?} is not a length"))?;
            if length > ANSWER_BYTES_MAX {
                return Err(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"));
            }
            rest.get(..length).map(<[u8]>::to_vec)
        } else {
            has_ended.then(|| rest.to_vec())
        };
        return match body {
            Some(body) => Ok(Some((status, body))),
            None if has_ended => Err("the connection ended too early".to_owned()),
            None => Ok(None),
        };
    }
}

/// The body in chunks, once the last is there; trailers are passed over.
fn read_chunks(bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut chunks = Vec::new();
    let mut rest = bytes;
    loop {
        let (start, length) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("a chunk of its answer has no size".to_owned()),
        };
        if length == 0 {
            return Ok(Some(chunks.concat()));
        }
        let length = usize::try_from(length).ok().filter(|length| *length <= ANSWER_BYTES_MAX);
        let Some(length) = length else {
            return Err(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"));
        };
        let Some(chunk) = rest.get(start..start + length) else { return Ok(None) };
        chunks.push(chunk);
        rest = rest.get(start + length + 2..).unwrap_or_default();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    /// A server that takes one connection for each answer, sends it and closes; hands back the requests.
    pub(crate) struct Scripted {
        address: String,
        thread: JoinHandle<Vec<String>>,
    }

    impl Scripted {
        pub(crate) fn new(answers: Vec<Vec<u8>>) -> Scripted {
            let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
            let address = listener.local_addr().expect("it is bound").to_string();
            let thread = std::thread::spawn(move || {
                let serve = |answer: Vec<u8>| {
                    let (mut stream, _) = listener.accept().expect("the client connects");
                    let mut request = Vec::new();
                    let mut chunk = [0; 1024];
                    while !request.ends_with(b"\r\n\r\n") {
                        let count = stream.read(&mut chunk).expect("the client writes");
                        assert!(count > 0, "the request ended early");
                        request.extend_from_slice(&chunk[..count]);
                    }
                    // A client that has enough may go before the end.
                    let _ = stream.write_all(&answer);
                    String::from_utf8(request).expect("it is text").lines().next().unwrap_or_default().to_owned()
                };
                answers.into_iter().map(serve).collect()
            });
            Scripted { address, thread }
        }

        /// As `new`, with a JSON page for each answer.
        pub(crate) fn pages(pages: &[(u16, &str)]) -> Scripted {
            let page = |(status, body): &(u16, &str)| {
                format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
            };
            Scripted::new(pages.iter().map(page).collect())
        }

        pub(crate) fn client(&self) -> Client {
            Client { address: self.address.clone(), patience: PATIENCE }
        }

        pub(crate) fn address(&self) -> &str {
            &self.address
        }

        /// The request lines, once every answer was fetched.
        pub(crate) fn requests(self) -> Vec<String> {
            self.thread.join().expect("every answer was fetched in order")
        }
    }

    #[test]
    fn what_is_wrong_beside_the_address_keeps_nobody_from_asking() {
        let path = std::env::temp_dir().join(format!("demi-client-{}.ron", std::process::id()));
        let find = |text: &str| {
            std::fs::write(&path, text).expect("the temporary directory can be written");
            let remote = Remote { address: None, config: Some(path.clone()), json: false };
            let found = Client::find(&remote).map(|client| client.address);
            std::fs::remove_file(&path).expect("it was just written");
            found
        };
        let route = r#"(http: (listen: "127.0.0.1:4242"), routes: [(to: "a plugin that is gone")])"#;
        assert_eq!(find(route).as_deref(), Ok("127.0.0.1:4242"));
        let told = find(r#"(http: (listen: "nowhere"))"#).expect_err("it is no address");
        assert!(told.code == CONFIG && told.to_string().contains("ron:1:"), "{told}");
    }

    #[test]
    fn a_body_is_read_by_its_length_in_chunks_or_up_to_the_end() {
        let server = Scripted::new(vec![
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more".to_vec(),
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\n\r\nhello".to_vec(),
        ]);
        let client = server.client();
        for path in ["/length", "/chunks", "/end"] {
            assert_eq!(client.get(path).as_deref(), Ok(&b"hello"[..]), "{path}");
        }
        assert_eq!(server.requests(), ["GET /length HTTP/1.1", "GET /chunks HTTP/1.1", "GET /end HTTP/1.1"]);
    }

    #[test]
    fn an_answer_is_complete_at_its_last_byte_and_not_before() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        ] {
            for end in 0..answer.len() {
                assert_eq!(read_answer(&answer[..end], false), Ok(None), "{end}");
                assert!(read_answer(&answer[..end], true).is_err(), "{end}");
            }
            assert_eq!(read_answer(answer, false), Ok(Some((200, b"hello".to_vec()))));
        }
    }

    #[test]
    fn what_is_too_long_or_no_http_is_refused() {
        let long = "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
        let chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffff\r\n";
        for answer in [long, chunk, "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"]
        {
            assert!(read_answer(answer.as_bytes(), false).is_err(), "{answer}");
        }
    }

    #[test]
    fn a_problem_is_told_in_its_own_words() {
        let server = Scripted::pages(&[
            (404, r#"{"title":"Not Found","detail":"no platform is named \"x\"; did you mean \"y\"?"}"#),
            (502, "<html>"),
        ]);
        let client = server.client();
        let failure = client.post(&platform_path("x", "/start")).expect_err("it is a problem");
        assert_eq!(
            (failure.status, failure.to_string().as_str()),
            (Some(404), "no platform is named \"x\"; did you mean \"y\"?")
        );
        assert!(client.get("/").expect_err("it is no page").to_string().contains("502"));
        assert_eq!(server.requests()[0], "POST /v1/platforms/x/start HTTP/1.1");
    }

    #[test]
    fn nobody_there_is_told_with_what_to_do() {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("there is one");
        let client = Client { address: free.to_string(), patience: PATIENCE };
        let text = client.get("/").expect_err("nobody listens").to_string();
        assert!(text.contains(&format!("no Demi answers at {free}")) && text.contains("demi run"), "{text}");
    }

    #[test]
    fn one_who_never_answers_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let client = Client { address, patience: Duration::from_millis(20) };
        let text = client.get("/").expect_err("nobody answers").to_string();
        assert!(text.contains("no whole answer within 0.02 s"), "{text}");
    }

    #[test]
    fn a_name_cannot_leave_its_place_in_the_path() {
        assert_eq!(platform_path("a-b_1", "/why"), "/v1/platforms/a-b_1/why");
        assert_eq!(platform_path("../x y?", ""), "/v1/platforms/..%2Fx%20y%3F");
    }
}
