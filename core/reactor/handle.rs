//! How the rest of a host program speaks to a running reactor, from any thread.

use std::time::Duration;

use crossbeam_channel::{bounded, Receiver, Sender};
use demi_platform::{Request, RequestBuf};

use crate::mailbox::{Letter, Postbox};

/// What a host program wants of the reactor.
pub(crate) enum Wish {
    Ask(RequestBuf, Caller),
    Status(Sender<String>),
    Order(String, PlatformOrder, Caller),
    Stop,
}

/// Whoever in the host program waits for an answer.
pub(crate) struct Caller(pub(crate) Sender<Answered>);

/// What one may want of a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformOrder {
    /// Start it and what it needs, whatever kept it from running, and let it have requests.
    Start,
    /// Stop it, after those that need it; they wait for it to come back.
    Stop,
    /// Stop it and start it again, as it is configured now.
    Restart,
    /// Start a new edition of a child process (its manifest is read anew) beside the one that runs, and replace that
    /// once the new one has proven itself.
    Reload,
    /// Let it run and give it no requests until it is started by hand.
    Isolate,
    /// Close its breakers and those of its instances.
    Close,
}

impl PlatformOrder {
    /// Every order.
    pub const ALL: [PlatformOrder; 6] = [
        PlatformOrder::Start,
        PlatformOrder::Stop,
        PlatformOrder::Restart,
        PlatformOrder::Reload,
        PlatformOrder::Isolate,
        PlatformOrder::Close,
    ];

    /// The word for it, in paths of the API.
    pub const fn name(self) -> &'static str {
        match self {
            PlatformOrder::Start => "start",
            PlatformOrder::Stop => "stop",
            PlatformOrder::Restart => "restart",
            PlatformOrder::Reload => "reload",
            PlatformOrder::Isolate => "isolate",
            PlatformOrder::Close => "close",
        }
    }
}

/// A line to a running reactor. Clone it for each thread.
#[derive(Clone)]
pub struct Handle {
    pub(crate) postbox: Postbox,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// As over HTTP: 200 to 599; 400 no request, 404 no route, 502 the platform broke, 503 refused, 504 no answer in time.
    pub status: u16,
    /// Media type of the body; `application/problem+json` if Demi itself says what went wrong.
    pub content_type: String,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a request could not even be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleError {
    /// The reactor has ended.
    Ended,
    /// More is waiting for the reactor than may; ask again later.
    Full,
    /// No answer came within the time that the caller was ready to wait.
    TimedOut,
}

impl std::fmt::Display for HandleError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            HandleError::Ended => "the reactor has ended",
            HandleError::Full => "more is waiting for the reactor than may; ask again later",
            HandleError::TimedOut => "no answer came in time",
        })
    }
}

impl std::error::Error for HandleError {}

impl Handle {
    /// Puts a request; the answer comes on the channel. Does not block.
    ///
    /// An empty method is `POST`. What could not stand in an HTTP request is answered with status 400: a method that is
    /// no token, or `CONNECT`; a target that is neither empty nor a path of visible ASCII; a host or media type with
    /// bytes that no header may hold; `headers` that are not lines of `Name: value`, each ended by CRLF.
    ///
    /// Where requests wait for a platform it comes before what clients ask, unless its kind is `message` or its route says
    /// how urgent it is.
    ///
    /// # Errors
    /// [`HandleError::Ended`] or [`HandleError::Full`].
    pub fn ask(&self, request: &Request<'_>) -> Result<Receiver<Answered>, HandleError> {
        let mut buffer = RequestBuf::default();
        let method = if request.method.is_empty() { "POST" } else { request.method };
        buffer.fill(&Request { method, ..*request });
        let (sender, receiver) = bounded(1);
        self.post(Wish::Ask(buffer, Caller(sender)))?;
        Ok(receiver)
    }

    /// Puts a request and waits for its answer. Must not be called on the reactor's thread.
    ///
    /// # Errors
    /// As [`Handle::ask`], and [`HandleError::TimedOut`] after `wait`.
    pub fn ask_and_wait(&self, request: &Request<'_>, wait: Duration) -> Result<Answered, HandleError> {
        receive(&self.ask(request)?, wait)
    }

    /// The status, as `GET /v1/status` gives it. Must not be called on the reactor's thread.
    ///
    /// # Errors
    /// As [`Handle::ask_and_wait`].
    pub fn status(&self, wait: Duration) -> Result<String, HandleError> {
        let (sender, receiver) = bounded(1);
        self.post(Wish::Status(sender))?;
        receive(&receiver, wait)
    }

    /// Orders something of a platform; the answer comes on the channel once the order is taken, not when it is carried
    /// out: status 202, or a problem with 404 if no platform has this name, 409 with the reason if it cannot be done, or
    /// 503 if too much is waiting. Does not block.
    ///
    /// # Errors
    /// [`HandleError::Ended`] or [`HandleError::Full`].
    pub fn order(&self, platform: &str, order: PlatformOrder) -> Result<Receiver<Answered>, HandleError> {
        let (sender, receiver) = bounded(1);
        self.post(Wish::Order(platform.to_owned(), order, Caller(sender)))?;
        Ok(receiver)
    }

    /// As [`Handle::order`], and waits for the answer. Must not be called on the reactor's thread.
    ///
    /// # Errors
    /// As [`Handle::order`], and [`HandleError::TimedOut`] after `wait`.
    pub fn order_and_wait(
        &self,
        platform: &str,
        order: PlatformOrder,
        wait: Duration,
    ) -> Result<Answered, HandleError> {
        receive(&self.order(platform, order)?, wait)
    }

    /// Orders the end; once more, and the present phase of the end is cut short. Does not block.
    ///
    /// # Errors
    /// [`HandleError::Ended`] or [`HandleError::Full`].
    pub fn shutdown(&self) -> Result<(), HandleError> {
        self.post(Wish::Stop)
    }

    fn post(&self, wish: Wish) -> Result<(), HandleError> {
        use crossbeam_channel::TrySendError;
        self.postbox.try_post(Letter::Wished(wish)).map_err(|refused| match refused {
            TrySendError::Full(_) => HandleError::Full,
            TrySendError::Disconnected(_) => HandleError::Ended,
        })
    }
}

fn receive<T>(receiver: &Receiver<T>, wait: Duration) -> Result<T, HandleError> {
    use crossbeam_channel::RecvTimeoutError;
    receiver.recv_timeout(wait).map_err(|error| match error {
        RecvTimeoutError::Timeout => HandleError::TimedOut,
        RecvTimeoutError::Disconnected => HandleError::Ended,
    })
}
