//! A dead letter and its bytes on disk.

use demi_conductor::Grave;

use super::coding::{put_bytes, put_number, take_bytes, take_number, take_text};

/// A message that could not be delivered, kept until someone replays or purges it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetter {
    /// When it was given up, in milliseconds since the unix epoch.
    pub buried_at_unix_ms: u64,
    /// The platform that should have handled it.
    pub platform: String,
    /// Why it was given up.
    pub reason: String,
    /// How often delivery was tried before it was given up.
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
    /// The rule that it went by, as `routes[2]`; empty if it named its platform.
    pub route: String,
    /// What went wrong at the first attempt, if that is known.
    pub first_error: String,
    /// How often it was replayed in vain.
    pub replays: u32,
    /// What went wrong at the last replay; empty if there was none.
    pub last_error: String,
    /// The post that it was; 0 if its caller waited for an answer.
    pub post: u64,
    /// The conversation within which order is kept; empty if it has none.
    pub conversation: String,
}

/// What is known of a letter without its body. Stands in the tree for one that has a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) buried_at_unix_ms: u64,
    pub(super) post: u64,
    pub(super) platform: String,
    pub(super) route: String,
    pub(super) reason: String,
}

/// Which letters someone means: those for which all that is given holds. The default means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// The platform's whole name.
    pub platform: Option<String>,
    /// The rule, as `routes[2]`.
    pub route: Option<String>,
    /// What the first 200 bytes of the reason contain.
    pub reason: Option<String>,
    /// Given up at this moment or later, unix milliseconds.
    pub from_unix_ms: Option<u64>,
    /// Given up before this moment, unix milliseconds.
    pub until_unix_ms: Option<u64>,
}

/// Longest text of a head, bytes: three of them and the numbers stay below `INLINE_BYTES`.
const HEAD_TEXT_BYTES_MAX: usize = 200;

impl DeadLetter {
    /// Whether it is what is left of a message that could not be read any more: nothing that could be sent.
    pub fn is_remains(&self) -> bool {
        self.post != 0 && self.reason == Grave::Damaged.name()
    }

    /// The version of the encoding below, its first byte. Version 1 ended with the body.
    pub(super) const VERSION: u8 = 2;
    const WITHOUT_REPLAYS: u8 = 1;

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
        put_bytes(&mut out, self.route.as_bytes());
        put_bytes(&mut out, self.first_error.as_bytes());
        put_number(&mut out, u64::from(self.replays));
        put_bytes(&mut out, self.last_error.as_bytes());
        put_number(&mut out, self.post);
        put_bytes(&mut out, self.conversation.as_bytes());
        out
    }

    /// How long its texts and its body are together.
    pub(super) fn bytes(&self) -> usize {
        let texts = [&self.platform, &self.reason, &self.from, &self.kind, &self.method, &self.target];
        let later = [&self.content_type, &self.route, &self.first_error, &self.last_error, &self.conversation];
        texts.iter().chain(&later).map(|text| text.len()).sum::<usize>() + self.body.len()
    }

    /// None if these are not exactly the bytes of one letter, of this version or the one before.
    pub(super) fn decode(bytes: &[u8]) -> Option<DeadLetter> {
        let (&version, mut rest) = bytes.split_first()?;
        if !matches!(version, Self::WITHOUT_REPLAYS | Self::VERSION) {
            return None;
        }
        let rest = &mut rest;
        let mut letter = DeadLetter {
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
            ..DeadLetter::default()
        };
        if version == Self::VERSION {
            letter.route = take_text(rest)?;
            letter.first_error = take_text(rest)?;
            letter.replays = take_number(rest)?.try_into().ok()?;
            letter.last_error = take_text(rest)?;
            letter.post = take_number(rest)?;
            letter.conversation = take_text(rest)?;
        }
        rest.is_empty().then_some(letter)
    }

    pub(super) fn head(&self) -> Head {
        let cut = |text: &str| text[..text.floor_char_boundary(HEAD_TEXT_BYTES_MAX)].to_owned();
        Head {
            buried_at_unix_ms: self.buried_at_unix_ms,
            post: self.post,
            platform: cut(&self.platform),
            route: cut(&self.route),
            reason: cut(&self.reason),
        }
    }
}

impl Head {
    /// Stands in the tree for a letter that has its own file; no letter begins so, see [`DeadLetter::VERSION`].
    pub(super) const IN_FILE: u8 = 0;

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![Self::IN_FILE];
        put_number(&mut out, self.buried_at_unix_ms);
        put_number(&mut out, self.post);
        for text in [&self.platform, &self.route, &self.reason] {
            put_bytes(&mut out, text.as_bytes());
        }
        out
    }

    /// Of an entry of the tree, be it a head or a whole letter.
    pub(super) fn of(entry: &[u8]) -> Option<Head> {
        let Some((&Self::IN_FILE, mut rest)) = entry.split_first() else {
            return DeadLetter::decode(entry).map(|letter| letter.head());
        };
        let rest = &mut rest;
        let head = Head {
            buried_at_unix_ms: take_number(rest)?,
            post: take_number(rest)?,
            platform: take_text(rest)?,
            route: take_text(rest)?,
            reason: take_text(rest)?,
        };
        rest.is_empty().then_some(head)
    }
}

impl LetterFilter {
    pub(super) fn takes(&self, head: &Head) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        is(&self.platform, &head.platform)
            && is(&self.route, &head.route)
            && self.reason.as_ref().is_none_or(|reason| head.reason.contains(reason.as_str()))
            && self.from_unix_ms.is_none_or(|from| head.buried_at_unix_ms >= from)
            && self.until_unix_ms.is_none_or(|until| head.buried_at_unix_ms < until)
    }
}
