//! The highest numbers that were given out, in a file beside the database.
//!
//! sled 0.34 passes over the end of its log without a word where it finds that damaged, and what was written there is gone as if
//! it had never been. What stands here tells of it, and whatever takes the place of a damaged database goes on from it: whoever
//! remembers the numbers of messages must not meet one twice. Written after each sync of the database and not synced itself, so
//! that it is never ahead of what was durable.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// The file's name, in the data directory.
const FILE: &str = "given";

/// What was given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) next_letter: u64,
    pub(super) next_post: u64,
    /// The number of the last end of a post.
    pub(super) last_end: u64,
}

impl Given {
    /// What stands in a data directory; nothing, if that cannot be read. Blocks for the disk.
    pub(super) fn read(directory: &Path) -> Given {
        let text = fs::read_to_string(directory.join(FILE)).unwrap_or_default();
        Given::parse(&text).unwrap_or_default()
    }

    fn parse(text: &str) -> Option<Given> {
        let mut words = text.strip_suffix('\n')?.split(' ');
        let mut number = |name: &str| (words.next()? == name).then(|| words.next()?.parse().ok()).flatten();
        let given = Given {
            next_letter: number("next_letter")?,
            next_post: number("next_post")?,
            last_end: number("last_end")?,
        };
        words.next().is_none().then_some(given)
    }

    fn text(&self) -> String {
        let Given { next_letter, next_post, last_end } = self;
        // Always as long, so that one that is written over another leaves nothing of it.
        format!("next_letter {next_letter:020} next_post {next_post:020} last_end {last_end:020}\n")
    }
}

/// The file, and what stands in it.
#[derive(Debug)]
pub(super) struct GivenFile {
    file: Option<File>,
    written: Given,
}

impl GivenFile {
    /// Of a data directory. Without one that can be written only less is noticed.
    pub(super) fn open(directory: &Path) -> GivenFile {
        let path = directory.join(FILE);
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let opened = opened.map_err(|error| log::warn!("{} cannot be written: {error}", path.display()));
        GivenFile { file: opened.ok(), written: Given::default() }
    }

    /// Writes it down if it is news.
    pub(super) fn note(&mut self, given: Given) {
        if let Some(file) = self.file.as_ref().filter(|_| given != self.written) {
            if file.write_all_at(given.text().as_bytes(), 0).is_ok() {
                self.written = given;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_garbled_is_nothing() {
        let given = Given { next_letter: 1, next_post: u64::MAX, last_end: 7 };
        let text = given.text();
        assert_eq!(Given::parse(&text), Some(given));
        for end in 0..text.len() {
            assert_eq!(Given::parse(&text[..end]), None, "cut at {end}");
        }
        assert_eq!(Given::parse(&text.replace("post", "past")), None);
        assert_eq!(Given::parse(&format!("{} x\n", text.trim_end())), None);
    }
}
