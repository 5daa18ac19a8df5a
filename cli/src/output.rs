//! Standard output, messages, and files that appear whole or not at all.

use crate::failure::{Result, Stop};
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// A line on standard error. A closed standard error is nobody's problem.
pub fn note(message: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}

/// Writes to standard output and flushes, so that text appears as it is made.
pub fn emit(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).map_err(Stop::stdout)
}

/// Standard output in large pieces, for long listings; [`Listing::finish`] it.
pub struct Listing(BufWriter<io::StdoutLock<'static>>);

impl Listing {
    /// An empty listing.
    pub fn new() -> Listing {
        Listing(BufWriter::new(io::stdout().lock()))
    }

    /// Adds a line.
    pub fn line(&mut self, line: impl Display) -> Result<()> {
        writeln!(self.0, "{line}").map_err(Stop::stdout)
    }

    /// Adds bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).map_err(Stop::stdout)
    }

    /// Hands over what is there.
    pub fn flush(&mut self) -> Result<()> {
        self.0.flush().map_err(Stop::stdout)
    }

    /// Hands everything over.
    pub fn finish(mut self) -> Result<()> {
        self.flush()
    }
}

/// Text in bold type where standard output is a terminal and `NO_COLOR` is unset or empty.
pub struct Bold<'t>(pub &'t str);

impl Display for Bold<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if plain || !io::stdout().is_terminal() { f.write_str(self.0) } else { write!(f, "\x1b[1m{}\x1b[0m", self.0) }
    }
}

/// A file that is written beside its place and moved there once it is complete. A device or a
/// pipe is written as it is.
pub struct OutputFile {
    out: BufWriter<File>,
    target: PathBuf,
    /// Where the file is until it is complete.
    temporary: Option<PathBuf>,
}

impl OutputFile {
    /// Starts to write `path`; `hint` says what is wanted if it is no name of a file.
    pub fn create(path: &Path, hint: &'static str) -> Result<OutputFile> {
        let failed = |error| refused(path, error);
        // Through a link the file it points to is replaced, not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if fs::metadata(&target).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
            let file = File::options().write(true).open(&target).map_err(failed)?;
            return Ok(OutputFile { out: BufWriter::new(file), target, temporary: None });
        }
        let Some(name) = target.file_name().filter(|_| !target.is_dir()) else {
            return Err(Stop::usage(
                format_args!("cannot write {}: it is not the name of a file", path.display()),
                hint,
            ));
        };
        let (file, temporary) = beside(&target, name).map_err(failed)?;
        Ok(OutputFile { out: BufWriter::new(file), target, temporary: Some(temporary) })
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|error| refused(&self.target, error))
    }

    /// Puts the complete file in its place.
    pub fn finish(mut self) -> Result<()> {
        let target = self.target.clone();
        let failed = |error| refused(&target, error);
        self.out.flush().map_err(failed)?;
        if let Some(temporary) = &self.temporary {
            self.out.get_ref().sync_all().map_err(failed)?;
            fs::rename(temporary, &self.target).map_err(failed)?;
            self.temporary = None;
        }
        Ok(())
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // An error is on its way to the user already.
            let _ = fs::remove_file(temporary);
        }
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A new file beside `target`. In a container every run has the same process id, so a run that was killed may have left the
/// first names behind. Its files stay: nobody can tell from outside whether they are still written.
fn beside(target: &Path, name: &OsStr) -> io::Result<(File, PathBuf)> {
    let mut number = 0;
    loop {
        let mut hidden = OsString::from(".");
        hidden.push(name);
        match number {
            0 => hidden.push(format!(".{}.part", std::process::id())),
            _ => hidden.push(format!(".{}-{number}.part", std::process::id())),
        }
        let path = target.with_file_name(hidden);
        match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < MOST_LEFT_BEHIND => number += 1,
            file => return Ok((file?, path)),
        }
    }
}

/// So many names are tried.
const MOST_LEFT_BEHIND: u32 = 10_000;

/// Why `path` could not be written. A reader of a pipe that has enough is no error.
pub fn refused(path: &Path, error: io::Error) -> Stop {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Stop::ClosedPipe;
    }
    let fix = match error.kind() {
        io::ErrorKind::StorageFull => "; free some space or write elsewhere",
        io::ErrorKind::NotFound => "; make the folder first",
        io::ErrorKind::PermissionDenied => "; write elsewhere",
        _ => "",
    };
    Stop::runtime(format_args!("cannot write {}: {error}{fix}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_a_killed_run_left_are_not_in_the_way() {
        let folder = std::env::temp_dir().join(format!("tritone-output-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let target = folder.join("model.gguf");
        let left = OutputFile::create(&target, "").unwrap();
        let mut file = OutputFile::create(&target, "").unwrap();
        assert_ne!(file.temporary, left.temporary);
        file.write(b"whole").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        assert!(left.temporary.as_ref().unwrap().exists(), "it may belong to someone");
        drop(left);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_reader_who_has_enough_is_no_error() {
        let stop = |kind: io::ErrorKind| refused(Path::new("out"), kind.into());
        assert!(matches!(stop(io::ErrorKind::BrokenPipe), Stop::ClosedPipe));
        assert!(matches!(stop(io::ErrorKind::StorageFull), Stop::Error { .. }));
    }
}
