//! The lines of a check.

use std::io::Write;

use crate::page::plain;

/// Longest line; what a plugin wrote may be longer.
const LINE_CHARACTERS_MAX: usize = 400;

/// Prints a line for each step and counts.
#[derive(Default)]
pub(super) struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
    last_words: Vec<String>,
}

impl Report {
    /// It is as it should be.
    pub(super) fn ok(&mut self, step: &str, seen: &str) {
        self.passed += 1;
        line("ok", step, seen);
    }

    /// It is not.
    pub(super) fn fail(&mut self, step: &str, expected: &str, seen: &str) {
        self.failed += 1;
        line("FAIL", step, &format!("expected {expected}; seen: {seen}"));
    }

    /// It could not be tried.
    pub(super) fn skip(&mut self, step: &str, why: &str) {
        self.skipped += 1;
        line("skip", step, why);
    }

    /// What a run that failed had written on stderr; the last one is told at the end.
    pub(super) fn keep_last_words(&mut self, lines: Vec<String>) {
        if !lines.is_empty() {
            self.last_words = lines;
        }
    }

    /// Prints the summary; whether nothing failed.
    pub(super) fn conclude(&self) -> bool {
        if self.failed > 0 && !self.last_words.is_empty() {
            write("\nthe last it wrote on stderr:\n");
            for words in &self.last_words {
                write(&format!("  {}\n", cut(&plain(words))));
            }
        }
        write(&format!("\n{} ok, {} failed, {} skipped\n", self.passed, self.failed, self.skipped));
        self.failed == 0
    }
}

fn line(verdict: &str, step: &str, text: &str) {
    write(&format!("{}\n", cut(&plain(&format!("{verdict:<6}{step}: {text}")))));
}

/// Whoever closes stdout early has read enough; the exit code tells the rest.
fn write(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LINE_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
