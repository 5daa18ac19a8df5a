//! The requests: lines that a thread reads ahead, so that a slow pipe holds nobody up.

use crate::commands::logits::hex;
use crate::failure::{Result, Stop};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use tritone_server::api::batch::{BadLine, BatchLine, MAX_LINE_BYTES};

/// Lines that are read before anybody wants them.
const READ_AHEAD: usize = 4;
/// So much of a hash that no two requests have the same.
const DIGEST_BYTES: usize = 16;
/// U+FEFF in UTF-8, with which some editors begin a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line of the input that is not empty.
pub struct Line {
    /// What it asks for, or what is wrong with it.
    pub content: std::result::Result<BatchLine, BadLine>,
    /// The bytes of the input up to its end.
    pub end: u64,
}

impl Line {
    /// What the request is called, as far as it says so.
    pub fn custom_id(&self) -> Option<&str> {
        match &self.content {
            Ok(request) => Some(&request.custom_id),
            Err(bad) => bad.custom_id.as_deref(),
        }
    }
}

/// Tells requests and models apart: the endpoint, the body as it stands and the name of the model that is asked.
pub fn digest(request: &BatchLine, model_name: &str) -> String {
    let mut hash = Sha256::new();
    for part in [request.endpoint.path(), model_name, &request.body] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize()[..DIGEST_BYTES])
}

/// What comes of waiting for a line.
pub enum Next {
    /// A line.
    Line(Line),
    /// There are no more.
    End,
    /// It has not come yet.
    NotYet,
}

/// The requests.
pub struct Requests {
    name: String,
    size: Option<u64>,
    /// Nothing stands for the end.
    lines: Receiver<Result<Option<Line>>>,
}

impl Requests {
    /// Begins to read.
    pub fn open(path: &Path) -> Result<Requests> {
        let (name, size, reader): (String, Option<u64>, Box<dyn Read + Send>) = if path == Path::new("-") {
            ("standard input".to_owned(), None, Box::new(io::stdin()))
        } else {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|error| unreadable(&name, &error))?;
            let size = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len());
            (name, size, Box::new(file))
        };
        let (sender, lines) = sync_channel(READ_AHEAD);
        let thread = std::thread::Builder::new().name("tritone-requests".to_owned());
        let source = name.clone();
        thread
            .spawn(move || read(BufReader::new(reader), &source, &sender))
            .map_err(|error| Stop::runtime(format_args!("the system gives no thread to read with: {error}")))?;
        Ok(Requests { name, size, lines })
    }

    /// What the input is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the input, where it is a file.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Waits at most so long for the next line.
    pub fn next(&mut self, patience: Duration) -> Result<Next> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Ok(line?.map_or(Next::End, Next::Line)),
            Err(RecvTimeoutError::Timeout) => Ok(Next::NotYet),
            Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
        }
    }

    /// The next line, however long that takes; nothing at the end.
    pub fn wait(&mut self) -> Result<Option<Line>> {
        self.lines.recv().unwrap_or_else(|_| Err(self.gone()))
    }

    /// The end was not said: what was read is not all.
    fn gone(&self) -> Stop {
        Stop::runtime(format_args!("the thread that reads {} has failed", self.name))
    }
}

fn unreadable(name: &str, error: &io::Error) -> Stop {
    Stop::runtime(format_args!("cannot read {name}: {error}"))
}

/// The thread. It ends when nobody listens any more, too.
fn read(mut reader: impl BufRead, name: &str, lines: &SyncSender<Result<Option<Line>>>) {
    // Of each name its digest: names may be long, and there may be many.
    let mut names: HashSet<[u8; 32]> = HashSet::new();
    let mut end = 0;
    loop {
        let content = match next(&mut reader, &mut end) {
            Ok(Some(Raw::Text(text))) => BatchLine::decode(&text),
            Ok(Some(Raw::TooLong)) => Err(BadLine::too_long()),
            Ok(None) => return drop(lines.send(Ok(None))),
            Err(error) => return drop(lines.send(Err(unreadable(name, &error)))),
        };
        let mut line = Line { content, end };
        if let Some(id) = line.custom_id()
            && !names.insert(Sha256::digest(id).into())
        {
            line.content = Err(BadLine::duplicate(id.to_owned()));
        }
        if lines.send(Ok(Some(line))).is_err() {
            return;
        }
    }
}

#[derive(Debug, PartialEq)]
enum Raw {
    Text(Vec<u8>),
    /// It was thrown away.
    TooLong,
}

/// The next line that is not empty, without its end; `end` counts the bytes that were read.
fn next(reader: &mut impl BufRead, end: &mut u64) -> io::Result<Option<Raw>> {
    loop {
        let mut text = Vec::new();
        let mark = if *end == 0 { BYTE_ORDER_MARK } else { b"" };
        // Room for a longest line and its end.
        let room = mark.len() + MAX_LINE_BYTES + 2;
        let n = (&mut *reader).take(room as u64).read_until(b'\n', &mut text)?;
        *end += n as u64;
        if n == 0 {
            return Ok(None);
        }
        let is_whole = text.last() == Some(&b'\n');
        if is_whole {
            text.pop();
            text.pop_if(|last| *last == b'\r');
        }
        if text.starts_with(mark) {
            text.drain(..mark.len());
        }
        if text.len() > MAX_LINE_BYTES {
            drop(text);
            if !is_whole {
                *end += reader.skip_until(b'\n')? as u64;
            }
            return Ok(Some(Raw::TooLong));
        }
        if !text.trim_ascii().is_empty() {
            return Ok(Some(Raw::Text(text)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> (Vec<Raw>, u64) {
        let (mut reader, mut end, mut lines) = (BufReader::with_capacity(3, bytes), 0, Vec::new());
        while let Some(line) = next(&mut reader, &mut end).unwrap() {
            lines.push(line);
        }
        (lines, end)
    }

    #[test]
    fn empty_lines_are_left_out() {
        let text = |text: &str| Raw::Text(text.as_bytes().to_vec());
        assert_eq!(all(b"a\r\n\n \t\r\n b \n\nc"), (vec![text("a"), text(" b "), text("c")], 14));
        assert_eq!(all(b"\n\n"), (vec![], 2));
        assert_eq!(all(b""), (vec![], 0));
        // A mark at the beginning is none of the text; elsewhere it is.
        assert_eq!(all(b"\xef\xbb\xbfa\n\xef\xbb\xbfb"), (vec![text("a"), text("\u{feff}b")], 9));
        assert_eq!(all(b"\xef\xbb\xbf\na"), (vec![text("a")], 5));
    }

    #[test]
    fn lines_that_are_too_long_are_thrown_away_whole() {
        let line = |n: usize, end: &str| [&vec![b'x'; n][..], end.as_bytes(), b"a\n"].concat();
        for (n, end) in [(MAX_LINE_BYTES, "\n"), (MAX_LINE_BYTES, "\r\n")] {
            let (lines, read) = all(&line(n, end));
            assert!(matches!(&lines[..], [Raw::Text(long), Raw::Text(_)] if long.len() == n));
            assert_eq!(read, (n + end.len() + 2) as u64);
        }
        for n in 1..4 {
            let (lines, read) = all(&line(MAX_LINE_BYTES + n, "\n"));
            assert_eq!(lines, [Raw::TooLong, Raw::Text(b"a".to_vec())]);
            assert_eq!(read, (MAX_LINE_BYTES + n + 3) as u64);
        }
    }
}
