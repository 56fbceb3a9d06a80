//! The bare responder: what any HTTP server on mio and httparse costs at least on this machine. One thread,
//! edge-triggered, keep-alive and pipelining, and nothing else: no limits, no time-outs, no routing. It answers
//! with the request's body, or with its path if there is none, as Demi's echo does.

use std::io::{self, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);

struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Serves until the process ends.
pub fn serve(listener: std::net::TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(256);
    let mut clients: Slab<Client> = Slab::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    let entry = clients.vacant_entry();
                    stream.set_nodelay(true)?;
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, Token(entry.key()), interest)?;
                    entry.insert(Client { stream, input: Vec::new(), output: Vec::new() });
                }
                continue;
            }
            let Some(client) = clients.get_mut(event.token().0) else { continue };
            if client.turn(event.is_read_closed(), &mut chunk).is_err() {
                clients.remove(event.token().0);
            }
        }
    }
}

impl Client {
    /// Reads what there is, answers what is complete, writes what fits. An error ends the connection.
    fn turn(&mut self, closed: bool, chunk: &mut [u8]) -> io::Result<()> {
        loop {
            match self.stream.read(chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.input.extend_from_slice(&chunk[..count]);
                    self.answer()?;
                    // A short read has emptied the socket (epoll(7)), unless the peer's end follows it.
                    if count < chunk.len() && !closed {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        flush(&mut self.stream, &mut self.output)
    }

    fn answer(&mut self) -> io::Result<()> {
        let mut used = 0;
        while used < self.input.len() {
            let input = &self.input[used..];
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut request = httparse::Request::new(&mut headers);
            let head = match request.parse(input).map_err(io::Error::other)? {
                httparse::Status::Complete(head) => head,
                httparse::Status::Partial => break,
            };
            let end = head + body_bytes(request.headers)?;
            if input.len() < end {
                break;
            }
            let path = request.path.unwrap_or("/").as_bytes();
            let body = if end > head { &input[head..end] } else { path };
            write!(
                self.output,
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\r\n",
                body.len()
            )?;
            if request.method != Some("HEAD") {
                self.output.extend_from_slice(body);
            }
            used += end;
        }
        self.input.drain(..used);
        Ok(())
    }
}

/// Writes what the socket takes and keeps the rest for the next writable edge.
pub fn flush(stream: &mut TcpStream, output: &mut Vec<u8>) -> io::Result<()> {
    while !output.is_empty() {
        match stream.write(output) {
            Ok(count) if count == output.len() => output.clear(),
            Ok(count) => drop(output.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The length of the body after this head; a chunked body is beyond a bare server and ends the connection.
pub fn body_bytes(headers: &[httparse::Header<'_>]) -> io::Result<usize> {
    let mut bytes = 0;
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).map_err(io::Error::other)?;
            bytes = text.trim().parse().map_err(io::Error::other)?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(io::Error::other("chunked bodies are not supported"));
        }
    }
    Ok(bytes)
}
