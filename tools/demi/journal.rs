//! The log on stderr, which never makes Demi wait: a terminal that is stopped or a reader that has stalled costs lines,
//! and how many is told.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender, TrySendError};
use std::sync::Arc;
use std::time::Duration;

/// Most lines that wait to be written.
const LINES_MAX: usize = 4096;
/// At the end so long is waited for them.
const LAST_LINES: Duration = Duration::from_millis(500);

enum Line {
    Text(Vec<u8>),
    Last(SyncSender<()>),
}

/// Takes lines; clone it for each who writes.
#[derive(Clone)]
pub(crate) struct Journal {
    lines: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
}

impl Journal {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub(crate) fn start() -> io::Result<Journal> {
        let (lines, inbox) = sync_channel(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&dropped);
        std::thread::Builder::new()
            .name("demi-log".to_owned())
            .stack_size(1 << 18)
            .spawn(move || work(&inbox, &count))?;
        Ok(Journal { lines, dropped })
    }

    /// Waits, but not for long, until what was logged is written.
    pub(crate) fn finish(&self) {
        let (done, wait) = sync_channel(1);
        if self.lines.try_send(Line::Last(done)).is_ok() {
            // Whoever does not read by now will not read later.
            let _ = wait.recv_timeout(LAST_LINES);
        }
    }
}

impl Write for Journal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.lines.try_send(Line::Text(bytes.to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn work(inbox: &Receiver<Line>, dropped: &AtomicU64) {
    let mut stderr = io::stderr();
    while let Ok(line) = inbox.recv() {
        // A stderr that is closed takes nothing, and there is nobody else to tell.
        match line {
            Line::Text(text) => drop(stderr.write_all(&text)),
            Line::Last(done) => drop(done.try_send(())),
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(stderr, "{lost} lines of the log were dropped: nobody took them fast enough");
        }
    }
}
