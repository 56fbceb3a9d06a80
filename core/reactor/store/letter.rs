//! A dead letter and its bytes on disk.

use super::coding::{put_bytes, put_number, take_bytes, take_number, take_text};

/// A message that could not be delivered, kept until someone replays or purges it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// When it was given up, in milliseconds since the unix epoch.
    pub buried_at_unix_ms: u64,
    /// The platform that should have handled it.
    pub platform: String,
    /// Why it was given up.
    pub reason: String,
    /// How often delivery was tried.
    pub attempts: u32,
    /// The platform or client it came from.
    pub from: String,
    /// The kind of request.
    pub kind: String,
    /// The method of the request.
    pub method: String,
    /// The target of the request.
    pub target: String,
    /// The media type of the body; empty if none was given.
    pub content_type: String,
    /// The body as it came, text or not.
    pub body: Vec<u8>,
}

impl DeadLetter {
    /// The version of the encoding below, its first byte.
    pub(super) const VERSION: u8 = 1;

    /// Version, then the fields in the order of the struct: numbers as LEB128, texts and the body with their length in
    /// front.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.bytes());
        out.push(Self::VERSION);
        put_number(&mut out, self.buried_at_unix_ms);
        put_bytes(&mut out, self.platform.as_bytes());
        put_bytes(&mut out, self.reason.as_bytes());
        put_number(&mut out, u64::from(self.attempts));
        for text in [&self.from, &self.kind, &self.method, &self.target, &self.content_type] {
            put_bytes(&mut out, text.as_bytes());
        }
        put_bytes(&mut out, &self.body);
        out
    }

    /// How long its texts and its body are together.
    pub(super) fn bytes(&self) -> usize {
        let texts = [&self.platform, &self.reason, &self.from, &self.kind, &self.method, &self.target];
        texts.iter().map(|text| text.len()).sum::<usize>() + self.content_type.len() + self.body.len()
    }

    /// None if these are not exactly the bytes of one letter.
    pub(super) fn decode(bytes: &[u8]) -> Option<DeadLetter> {
        let (&version, mut rest) = bytes.split_first()?;
        if version != Self::VERSION {
            return None;
        }
        let rest = &mut rest;
        let letter = DeadLetter {
            buried_at_unix_ms: take_number(rest)?,
            platform: take_text(rest)?,
            reason: take_text(rest)?,
            attempts: take_number(rest)?.try_into().ok()?,
            from: take_text(rest)?,
            kind: take_text(rest)?,
            method: take_text(rest)?,
            target: take_text(rest)?,
            content_type: take_text(rest)?,
            body: take_bytes(rest)?.to_vec(),
        };
        rest.is_empty().then_some(letter)
    }
}
