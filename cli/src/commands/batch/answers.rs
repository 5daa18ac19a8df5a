//! The answers: standard output, a device, or a file that grows beside its place and outlives a crash.

use crate::failure::{Result, Stop};
use crate::output::{emit, refused};
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tritone_server::api::batch::{FIRST_BYTES, Record};

/// Where answers go.
pub enum Answers {
    /// Standard output.
    Stdout,
    /// A device or a pipe.
    Device(File, PathBuf),
    /// A file in the making.
    Part(Part),
}

/// A file that is moved to `target` when it is complete.
pub struct Part {
    path: PathBuf,
    target: PathBuf,
    file: File,
    /// Reads the lines of an earlier run; nothing once they have all been seen.
    earlier: Option<BufReader<File>>,
    /// Whether it was not there before.
    is_new: bool,
    /// Whole lines of an earlier run that have been seen.
    lines: u64,
    /// Their bytes.
    bytes: u64,
}

impl Answers {
    /// Whether `path` stands for standard output.
    pub fn is_stdout(path: &Path) -> bool {
        path == Path::new("-")
    }

    /// Opens `path`. A file that is complete is not touched unless `force` says so; one in the making is taken up again.
    pub fn open(path: &Path, force: bool) -> Result<Answers> {
        if Answers::is_stdout(path) {
            return Ok(Answers::Stdout);
        }
        // Through a link the file it points to is replaced, not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&target) {
            Ok(meta) if meta.is_file() && !force => {
                return Err(Stop::usage(
                    format_args!("{} is there already", path.display()),
                    "--force writes over it, or give another name",
                ));
            }
            Ok(meta) if !meta.is_file() && !meta.is_dir() => {
                let file = File::options().write(true).open(&target).map_err(|error| refused(path, error))?;
                return Ok(Answers::Device(file, target));
            }
            _ => {}
        }
        let Some(name) = target.file_name().filter(|_| !target.is_dir()) else {
            return Err(Stop::usage(
                format_args!("cannot write {}: it is not the name of a file", path.display()),
                "-o takes a file, such as answers.jsonl",
            ));
        };
        let mut part = OsString::from(name);
        part.push(".part");
        Part::open(target.with_file_name(part), target).map(Answers::Part)
    }

    /// Refuses to write over what is to be read.
    pub fn refuse_own_input(&self, input: &Path) -> Result<()> {
        let (Answers::Part(Part { path, target, .. }), Ok(input)) = (self, fs::canonicalize(input)) else {
            return Ok(());
        };
        if [path, target].into_iter().any(|path| fs::canonicalize(path).is_ok_and(|path| path == input)) {
            return Err(Stop::usage(
                format_args!("{} is what is to be read", input.display()),
                "give the answers another name",
            ));
        }
        Ok(())
    }

    /// What the output is called.
    pub fn name(&self) -> String {
        match self {
            Answers::Stdout => "standard output".to_owned(),
            Answers::Device(_, path) => path.display().to_string(),
            Answers::Part(part) => part.path.display().to_string(),
        }
    }

    /// The next line of an earlier run. At the end of the whole lines the rest is cut off.
    pub fn next_kept(&mut self) -> Result<Option<Record>> {
        match self {
            Answers::Part(part) => part.next_kept(),
            Answers::Stdout | Answers::Device(..) => Ok(None),
        }
    }

    /// The lines of the earlier run belong to something else.
    pub fn foreign(&self, why: impl Display) -> Stop {
        Stop::Error {
            message: format!("{} does not belong to these requests: {why}", self.name()),
            hint: Some("give -o another name, or delete that file to begin anew"),
            status: crate::failure::RUNTIME,
        }
    }

    /// Adds a line, whole and at once.
    pub fn line(&mut self, mut record: String) -> Result<()> {
        record.push('\n');
        match self {
            Answers::Stdout => emit(record),
            Answers::Device(file, path) => file.write_all(record.as_bytes()).map_err(|error| refused(path, error)),
            Answers::Part(part) => part.file.write_all(record.as_bytes()).map_err(|error| refused(&part.path, error)),
        }
    }

    /// What whoever stops here has to know; so many lines are written.
    pub fn how_to_go_on(&self, lines: u64) -> String {
        match self {
            Answers::Part(part) => {
                let path = part.path.display();
                format!("stopped: {path} has {lines} lines, and the same command goes on behind them")
            }
            _ => format!("stopped after {lines} lines"),
        }
    }

    /// Puts the complete file in its place.
    pub fn finish(self) -> Result<()> {
        let Answers::Part(Part { path, target, file, .. }) = &self else { return Ok(()) };
        file.sync_all().map_err(|error| refused(path, error))?;
        fs::rename(path, target).map_err(|error| refused(target, error))
    }
}

impl Part {
    fn open(path: PathBuf, target: PathBuf) -> Result<Part> {
        let failed = |error| refused(&path, error);
        let existing = File::options().read(true).write(true).open(&path);
        let (mut file, is_new) = match existing {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                (File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?, true)
            }
            existing => (existing.map_err(failed)?, false),
        };
        match file.try_lock() {
            // Where there are no locks, nobody is kept out.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Stop::runtime(format_args!(
                    "{} is being written by another process; wait for it, or give -o another name",
                    path.display()
                )));
            }
        }
        let mut first = Vec::new();
        (&mut file).take(FIRST_BYTES.len() as u64).read_to_end(&mut first).map_err(failed)?;
        if !FIRST_BYTES.starts_with(&first) {
            return Err(Stop::runtime(format_args!(
                "{} is no file of answers in the making; give -o another name, or move that file away",
                path.display()
            )));
        }
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let earlier = file.try_clone().map_err(failed)?;
        Ok(Part { path, target, file, earlier: Some(BufReader::new(earlier)), is_new, lines: 0, bytes: 0 })
    }

    fn next_kept(&mut self) -> Result<Option<Record>> {
        let Some(earlier) = &mut self.earlier else { return Ok(None) };
        let mut line = Vec::new();
        earlier
            .read_until(b'\n', &mut line)
            .map_err(|error| Stop::runtime(format_args!("cannot read {}: {error}", self.path.display())))?;
        if line.pop() != Some(b'\n') {
            self.earlier = None;
            let failed = |error| refused(&self.path, error);
            self.file.set_len(self.bytes).map_err(failed)?;
            self.file.seek(SeekFrom::End(0)).map_err(failed)?;
            return Ok(None);
        }
        self.lines += 1;
        self.bytes += line.len() as u64 + 1;
        match Record::decode(&line, self.lines) {
            Some(record) => Ok(Some(record)),
            None => Err(Stop::runtime(format_args!(
                "line {} of {} is damaged; delete that line and all behind it to go on from there",
                self.lines,
                self.path.display()
            ))),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // What failed before the first line leaves nothing behind.
        if self.is_new && self.file.metadata().is_ok_and(|meta| meta.len() == 0) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
