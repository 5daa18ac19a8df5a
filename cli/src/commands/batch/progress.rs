//! A bar over the bytes of the requests, on a terminal, once the work has taken a while.

use super::Counts;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// Work that takes longer than this shows a bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is shown of the work.
pub struct Progress {
    began: Instant,
    /// Whether anything is to be shown.
    shows: bool,
    /// Bytes of the requests, if that is known.
    size: Option<u64>,
    /// Bytes of those that were answered before.
    start: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Of `size` bytes `start` are done.
    pub fn new(size: Option<u64>, start: u64, quiet: bool) -> Progress {
        let shows = !quiet && io::stderr().is_terminal();
        Progress { began: Instant::now(), shows, size, start, bar: None }
    }

    /// Now all lines up to this byte are done.
    pub fn set(&mut self, bytes: u64, counts: &Counts) {
        let elapsed = self.began.elapsed();
        if !self.shows || (self.bar.is_none() && elapsed < PATIENCE) {
            return;
        }
        let (size, start) = (self.size, self.start);
        let bar = self.bar.get_or_insert_with(|| bar(size, start));
        let rate = counts.completion_tokens as f64 / elapsed.as_secs_f64();
        let failed = if counts.failed > 0 { format!(", {} failed", counts.failed) } else { String::new() };
        bar.set_message(format!("{} lines{failed}, {rate:.0} tokens/s", counts.lines));
        bar.set_position(bytes.saturating_sub(start));
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn bar(size: Option<u64>, start: u64) -> ProgressBar {
    let style = |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    match size {
        Some(size) => {
            // What was done before says nothing about the speed.
            ProgressBar::new(size.saturating_sub(start)).with_style(style("{wide_bar} {msg}, {eta} to go"))
        }
        None => ProgressBar::new_spinner().with_style(style("{spinner} {msg}")),
    }
}
