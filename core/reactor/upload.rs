//! What a client sends while its request is under way already: the rest of a long body, or its half of a tunnel.
//!
//! It waits with the call, between the connection that it came from and the one that takes it. Whoever puts bytes in stops
//! at [`UPLOAD_BYTES_MAX`]; whoever takes them says so, and then more is read. Until something was taken the request is all
//! there, and may be given to another instance.

/// So much may wait before nothing more is read of the client; what one read brings comes on top.
pub(crate) const UPLOAD_BYTES_MAX: usize = 64 * 1024;

/// What has come of a client and is still to be passed on.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) passage: Passage,
    pub(crate) bytes: Vec<u8>,
    /// Trailer lines of a body in chunks, as they came; at most as many as a message may have.
    pub(crate) trailers: Vec<u8>,
    /// All has come.
    pub(crate) is_done: bool,
}

/// What is uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// The client's half of a tunnel.
    Tunnel,
    /// A body that is so long in all; `None` if its client will say with its last chunk.
    Body { length: Option<u64> },
}

impl Upload {
    /// Nothing has come yet.
    pub(crate) fn new(passage: Passage) -> Upload {
        Upload { passage, bytes: Vec::new(), trailers: Vec::new(), is_done: false }
    }

    /// How long the body is in all, if that is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match self.passage {
            Passage::Body { length } => length,
            Passage::Tunnel => None,
        }
    }

    /// Whether more may be put in.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes.len() < UPLOAD_BYTES_MAX
    }
}
