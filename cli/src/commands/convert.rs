//! `tritone convert`: a model in another tensor type, tensor by tensor.

use crate::args::I2sBytes;
use crate::failure::{Result, Stop};
use crate::interrupt;
use crate::load;
use crate::model_file::{Embedding, ModelFile, PIECE, Ternary, too_odd};
use crate::output::{emit, note};
use clap::Args;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tritone_runtime::checkpoint::{Checkpoint, Tensor, TensorType, TernaryTensor, Value};
use tritone_runtime::config::{ACTIVATIONS_KEY, Activation, ActivationScales, Config};
use tritone_runtime::error::Error;
use tritone_runtime::gguf::Writer;
use tritone_runtime::quantize::{ScaleGrid, TernaryEncoder, TernaryFormat, quantize_row};

/// Keys that describe the source file, not the model.
const OWN_KEYS: [&str; 6] =
    ["general.alignment", "general.file_type", "split.no", "split.count", "split.tensors.count", ACTIVATIONS_KEY];

/// Weights of TQ1_0 and TQ2_0 that share a scale.
const TQ_BLOCK: usize = 256;

/// Rows of an embedding after which memory that was read is given back.
const RELEASED_ROWS: usize = 4096;

/// Options of `convert`.
#[derive(Args)]
pub struct ConvertArgs {
    /// The model to read
    source: PathBuf,
    /// The GGUF file to write
    target: PathBuf,
    /// Type of the ternary weights; left out: i2_s if every tensor has one scale, else t5
    #[arg(long, value_enum, value_name = "TYPE")]
    to: Option<Ternary>,
    /// Type of embedding and head; left out: as they are
    #[arg(long, value_enum, value_name = "TYPE")]
    embedding: Option<Embedding>,
    /// Where weights lie in the bytes of the source's I2_S tensors, which the file does not tell
    #[arg(long, value_enum, default_value_t = I2sBytes::Published)]
    i2s_layout: I2sBytes,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
    /// No bar and no line at the end
    #[arg(short, long)]
    quiet: bool,
    /// One JSON object that sums up
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &ConvertArgs) -> Result<()> {
    interrupt::install()?;
    let start = Instant::now();
    refuse_own_source(&args.source, &args.target)?;
    ModelFile::check(&args.target, args.force)?;
    let mut checkpoint = load::source(Some(&args.source))?.open()?;
    checkpoint.set_i2s_layout(args.i2s_layout.into());
    let config = Config::from_checkpoint(&checkpoint)?;
    config.expect_tensors(&checkpoint)?;
    let activations = ActivationScales::expected(&checkpoint, &config)?;
    let embedding = args.embedding.map(TensorType::from);
    let format = match args.to {
        Some(format) => format.into(),
        None => default_format(&checkpoint)?,
    };

    let mut writer = Writer::new();
    if format.alignment() != 32 {
        writer.align(format.alignment());
    }
    for (key, value) in checkpoint.metadata() {
        if !OWN_KEYS.contains(&&**key) {
            writer.key(key, value.clone());
        }
    }
    writer.key("general.file_type", Value::U32(format.file_type()));
    writer.key(ACTIVATIONS_KEY, Value::String(activations.to_string()));
    let mut jobs = Vec::with_capacity(checkpoint.tensors().len());
    let mut bytes = 0;
    for tensor in checkpoint.tensors() {
        let job = Job::plan(tensor, format_of(tensor, format, &config)?, embedding)?;
        job.keeps_activations(activations)?;
        let (type_id, len) = job.size()?;
        writer.tensor(tensor.name(), tensor.dims(), type_id, len);
        bytes += len as u64;
        jobs.push(job);
    }
    let mut file = ModelFile::begin(&args.target, &writer, bytes, args.quiet)?;
    for job in &jobs {
        job.write(&mut file)?;
    }
    file.finish()?;

    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let all = json!({
            "source": args.source.display().to_string(),
            "target": args.target.display().to_string(),
            "type": format.name(),
            "tensors": jobs.len(),
            "tensor_bytes": bytes,
            "seconds": seconds,
        });
        emit(format_args!("{all}\n"))?;
    } else if !args.quiet {
        let gigabytes = bytes as f64 / 1e9;
        let (target, name) = (args.target.display(), format.name());
        note(format_args!("{target}: {} tensors in {name}, {gigabytes:.2} GB, made in {seconds:.1} s", jobs.len()));
    }
    Ok(())
}

/// Refuses to write over what is being read, even with `--force`.
fn refuse_own_source(source: &Path, target: &Path) -> Result<()> {
    match (fs::canonicalize(source), fs::canonicalize(target)) {
        (Ok(source), Ok(target)) if target.starts_with(&source) => Err(Stop::usage(
            format_args!("{} is what is to be read", target.display()),
            "give the new file another name",
        )),
        _ => Ok(()),
    }
}

fn default_format(checkpoint: &Checkpoint) -> Result<TernaryFormat> {
    for tensor in checkpoint.tensors().iter().filter(|tensor| tensor.is_ternary()) {
        if tensor.ternary()?.tensor_scale().is_none() || !tensor.cols().is_multiple_of(128) {
            return Ok(TernaryFormat::T5);
        }
    }
    Ok(TernaryFormat::I2S)
}

/// The type that a tensor gets. T5 saves bytes that are read, but rows of up and columns of down are mostly skipped where
/// the gate is `relu^2`, and the layouts that can skip are made of I2_S: from T5 that takes most of a second at each start.
fn format_of(tensor: &Tensor, format: TernaryFormat, config: &Config) -> Result<TernaryFormat> {
    let is_skipped = [".ffn_up.weight", ".ffn_down.weight"].iter().any(|name| tensor.name().ends_with(name));
    if format == TernaryFormat::T5
        && config.activation == Activation::ReluSquared
        && is_skipped
        && tensor.is_ternary()
        && tensor.cols().is_multiple_of(128)
        && tensor.ternary()?.tensor_scale().is_some()
    {
        return Ok(TernaryFormat::I2S);
    }
    Ok(format)
}

/// What is to be done with one tensor.
enum Job<'a> {
    Ternary { tensor: &'a Tensor, ternary: TernaryTensor, format: TernaryFormat },
    Float { tensor: &'a Tensor, ty: TensorType },
}

impl<'a> Job<'a> {
    fn plan(tensor: &'a Tensor, format: TernaryFormat, embedding: Option<TensorType>) -> Result<Job<'a>> {
        let is_embedding = matches!(tensor.name(), "token_embd.weight" | "output.weight");
        let ty = tensor.tensor_type();
        match embedding {
            Some(ty) if is_embedding => Ok(Job::Float { tensor, ty }),
            _ if tensor.is_ternary() => Ok(Job::Ternary { tensor, ternary: tensor.ternary()?, format }),
            _ if is_embedding => Ok(Job::Float { tensor, ty }),
            // Norms and single scales: other engines want them in F32, which holds them exactly.
            _ if tensor.rows() == 1 => Ok(Job::Float { tensor, ty: TensorType::F32 }),
            _ => Err(Stop::from(Error::Unsupported {
                at: Box::new(tensor.place()),
                what: format!(
                    "the matrix has type {}, but only embedding and head may have one that is not ternary",
                    ty.name()
                ),
                fix: "convert a ternary model".into(),
            })),
        }
    }

    /// Refuses a type in which the activations of a model with one scale for each of the weights' own blocks would have others:
    /// it would compute something else.
    fn keeps_activations(&self, activations: ActivationScales) -> Result<()> {
        let Job::Ternary { tensor, ternary, format } = self else { return Ok(()) };
        let block = match format {
            TernaryFormat::I2S => ternary.cols(),
            TernaryFormat::Tq1_0 | TernaryFormat::Tq2_0 => TQ_BLOCK,
            TernaryFormat::T5 => ternary.block(),
        };
        if activations == ActivationScales::Token || block == ternary.block() {
            return Ok(());
        }
        Err(Stop::from(Error::Unsupported {
            at: Box::new(tensor.place()),
            what: format!(
                "here {} activations share a scale, as the weights do, but in {} it would be {block}, and the answers would change",
                ternary.block(),
                format.name()
            ),
            fix: "t5 keeps the scales of blocks".into(),
        }))
    }

    fn encoder(tensor: &Tensor, ternary: &TernaryTensor, format: TernaryFormat) -> Result<TernaryEncoder> {
        let grid = match ternary.tensor_scale() {
            Some(_) => ScaleGrid::Tensor,
            None => ScaleGrid::Blocks(ternary.block()),
        };
        Ok(TernaryEncoder::new(format, ternary.rows(), ternary.cols(), grid, tensor.place())?)
    }

    /// Type number and bytes.
    fn size(&self) -> Result<(u32, usize)> {
        match self {
            Job::Ternary { tensor, ternary, format } => {
                Ok((format.type_id(), Job::encoder(tensor, ternary, *format)?.len()))
            }
            Job::Float { tensor, ty } if *ty == tensor.tensor_type() => Ok((ty.id(), tensor.data().len())),
            Job::Float { tensor, ty } => match ty.tensor_bytes(tensor.rows(), tensor.cols()) {
                Some(len) => Ok((ty.id(), len)),
                None => Err(too_odd(tensor.place(), tensor.cols(), *ty)),
            },
        }
    }

    fn write(&self, file: &mut ModelFile) -> Result<()> {
        let mut out = Vec::with_capacity(2 * PIECE);
        match self {
            Job::Ternary { tensor, ternary, format } => {
                let mut encoder = Job::encoder(tensor, ternary, *format)?;
                let mut trits = vec![0; ternary.cols()];
                let mut scales = vec![0.0; ternary.blocks_per_row()];
                for row in 0..ternary.rows() {
                    ternary.row_trits(row, &mut trits)?;
                    for (block, scale) in scales.iter_mut().enumerate() {
                        *scale = ternary.scale(row, block)?;
                    }
                    encoder.push_row(&trits, &scales, &mut out)?;
                    file.write_piece(&mut out)?;
                }
                encoder.finish(&mut out);
            }
            Job::Float { tensor, ty } if *ty == tensor.tensor_type() => {
                let len = tensor.data().len();
                for start in (0..len).step_by(PIECE) {
                    let Some(piece) = tensor.data().view(start..len.min(start + PIECE)) else { break };
                    file.write(&piece)?;
                    piece.release();
                }
            }
            Job::Float { tensor, ty } => {
                let mut values = vec![0.0; tensor.cols()];
                for row in 0..tensor.rows() {
                    if row % RELEASED_ROWS == 0 {
                        tensor.data().release();
                    }
                    tensor.dequantize_row(row, &mut values)?;
                    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                        return Err(Stop::from(Error::Malformed {
                            at: Box::new(tensor.place()),
                            what: format!("row {row} holds {value}"),
                            fix: "the file is damaged, download it again",
                        }));
                    }
                    quantize_row(*ty, &values, &mut out);
                    file.write_piece(&mut out)?;
                }
            }
        }
        // Memory holds one tensor of the source at a time.
        self.tensor().data().release();
        file.write(&out)
    }

    fn tensor(&self) -> &'a Tensor {
        match self {
            Job::Ternary { tensor, .. } | Job::Float { tensor, .. } => tensor,
        }
    }
}
