//! What a client sends while its request is under way already: its half of a tunnel.
//!
//! It waits with the call, between the connection that it came from and the one that takes it. Whoever puts bytes in stops
//! at [`UPLOAD_BYTES_MAX`]; whoever takes them says so, and then more is read.

/// So much may wait before nothing more is read of the client; what one read brings comes on top.
pub(crate) const UPLOAD_BYTES_MAX: usize = 64 * 1024;

/// What has come of a client and is still to be passed on.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    pub(crate) bytes: Vec<u8>,
    /// All has come.
    pub(crate) is_done: bool,
}

impl Upload {
    /// Whether more may be put in.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes.len() < UPLOAD_BYTES_MAX
    }
}
