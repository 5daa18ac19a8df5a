//! GGUF files that are written piece by piece: atomic, with a bar, ended by Ctrl-C.

use crate::failure::{Result, Stop};
use crate::interrupt::Watch;
use crate::output::{OutputFile, refused};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tritone_runtime::checkpoint::TensorType;
use tritone_runtime::error::{Error, Place};
use tritone_runtime::gguf::{DataWriter, Writer};
use tritone_runtime::quantize::TernaryFormat;

/// Types for ternary weights by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ternary {
    /// Two bits a weight, one scale for a tensor: the published BitNet files
    #[value(name = "i2_s")]
    I2S,
    /// 1.69 bits a weight, a scale for 256 weights; other engines read it
    #[value(name = "tq1_0")]
    Tq1_0,
    /// 2.06 bits a weight, a scale for 256 weights; other engines read it
    #[value(name = "tq2_0")]
    Tq2_0,
    /// Five weights in a byte, used in place by this program
    #[value(name = "t5")]
    T5,
}

impl From<Ternary> for TernaryFormat {
    fn from(ternary: Ternary) -> TernaryFormat {
        match ternary {
            Ternary::I2S => TernaryFormat::I2S,
            Ternary::Tq1_0 => TernaryFormat::Tq1_0,
            Ternary::Tq2_0 => TernaryFormat::Tq2_0,
            Ternary::T5 => TernaryFormat::T5,
        }
    }
}

/// Types for embeddings and heads by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Embedding {
    /// Two bytes a weight
    #[value(name = "f16")]
    F16,
    /// Eight bits a weight and a scale for 32
    #[value(name = "q8_0")]
    Q8_0,
    /// Six bits a weight and scales for 16 and 256
    #[value(name = "q6_k")]
    Q6K,
}

impl From<Embedding> for TensorType {
    fn from(embedding: Embedding) -> TensorType {
        match embedding {
            Embedding::F16 => TensorType::F16,
            Embedding::Q8_0 => TensorType::Q8_0,
            Embedding::Q6K => TensorType::Q6K,
        }
    }
}

/// Bytes that are gathered before they are written.
pub const PIECE: usize = 1 << 20;

/// The refusal of rows that are no whole number of a float type's blocks.
pub fn too_odd(at: Place, cols: usize, ty: TensorType) -> Stop {
    Stop::from(Error::Unsupported {
        at: Box::new(at),
        what: format!("rows of {cols} weights are no whole number of the blocks of {}", ty.name()),
        fix: "--embedding f16 takes rows of any length".into(),
    })
}

/// Whether a [`ModelFile`] is being written: a process that ends then leaves it behind.
static OPEN: AtomicBool = AtomicBool::new(false);

/// Sets [`OPEN`] while it lives.
struct Open;

impl Open {
    fn mark() -> Open {
        OPEN.store(true, Ordering::SeqCst);
        Open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.store(false, Ordering::SeqCst);
    }
}

/// A GGUF file being written. Dropped before [`ModelFile::finish`] it leaves nothing behind.
pub struct ModelFile {
    data: DataWriter<OutputFile>,
    path: PathBuf,
    bar: Option<ProgressBar>,
    watch: Watch,
    /// The last to go, after the file.
    _open: Open,
}

impl ModelFile {
    /// Refuses to write over a file unless `force` says so. Devices and pipes may be written.
    pub fn check(path: &Path, force: bool) -> Result<()> {
        match fs::metadata(path) {
            Ok(meta) if meta.is_file() && !force => Err(Stop::usage(
                format_args!("{} is there already", path.display()),
                "--force writes over it, or give another name",
            )),
            _ => Ok(()),
        }
    }

    /// Whether a thread is writing one now. If it is not once Ctrl-C was pressed under a [`Watch`], it will not be later.
    pub fn is_open() -> bool {
        OPEN.load(Ordering::SeqCst)
    }

    /// Starts `path` with the header of `writer`; `bytes` of tensor data are to follow.
    pub fn begin(path: &Path, writer: &Writer, bytes: u64, quiet: bool) -> Result<ModelFile> {
        let (watch, open) = (Watch::start(), Open::mark());
        if watch.pressed() {
            return Err(Stop::Interrupted);
        }
        let data = writer.begin(OutputFile::create(path)?).map_err(|error| refused(path, error))?;
        let bar = (!quiet && io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("writing {wide_bar} {bytes}/{total_bytes} {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(bytes).with_style(style)
        });
        Ok(ModelFile { data, path: path.to_owned(), bar, watch, _open: open })
    }

    /// Adds bytes to the tensors, in the order in which they were declared.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.watch.pressed() {
            return Err(Stop::Interrupted);
        }
        self.data.write(bytes).map_err(|error| refused(&self.path, error))?;
        if let Some(bar) = &self.bar {
            bar.inc(bytes.len() as u64);
        }
        Ok(())
    }

    /// Writes what has gathered in `out` once it is a piece of a good size.
    pub fn write_piece(&mut self, out: &mut Vec<u8>) -> Result<()> {
        if out.len() >= PIECE {
            self.write(out)?;
            out.clear();
        }
        Ok(())
    }

    /// Puts the complete file in its place.
    pub fn finish(self) -> Result<()> {
        let file = self.data.finish().map_err(|error| refused(&self.path, error))?;
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        file.finish()
    }
}
