//! The smallest integration: answers with the body that it was sent, or with the path if there is none.

#![forbid(unsafe_code)]

use demi_platform::{Adapter, Fault, Platform, Reply, Request, Settings};

/// For the registration list: `adapter: "echo"`.
pub const ADAPTER: Adapter = Adapter { name: "echo", make: || Box::new(Echo) };

/// Answers with what it was sent. Never blocks, so it can be hosted inline.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Platform for Echo {
    fn initialize(&mut self, _settings: &Settings) -> Result<(), Fault> {
        Ok(())
    }

    fn handle_request(&mut self, request: &Request<'_>, reply: &mut Reply) -> Result<(), Fault> {
        if request.body.is_empty() {
            reply.text(request.target);
        } else {
            reply.content_type.push_str(request.content_type);
            reply.body.extend_from_slice(request.body);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_with_the_body_or_else_the_path() {
        let mut reply = Reply::default();
        let request = Request { target: "/a", body: b"hello", ..Request::default() };
        assert_eq!(Echo.handle_request(&request, &mut reply), Ok(()));
        assert_eq!(reply.body, b"hello");
        reply.clear();
        assert_eq!(Echo.handle_request(&Request { body: b"", ..request }, &mut reply), Ok(()));
        assert_eq!(reply.body, b"/a");
    }
}
