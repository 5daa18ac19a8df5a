//! `tritone synth`: a random model of a real shape.

mod random;
mod shape;
mod vocabulary;
mod weights;

use crate::failure::{Result, Stop};
use crate::interrupt;
use crate::model_file::{Embedding, ModelFile, PIECE, Ternary, too_odd};
use crate::output::{emit, note};
use clap::Args;
use serde_json::json;
use shape::Shape;
use std::path::PathBuf;
use std::time::Instant;
use tritone_runtime::checkpoint::{TensorType, Value};
use tritone_runtime::config::Activation;
use tritone_runtime::error::Place;
use tritone_runtime::gguf::Writer;
use tritone_runtime::quantize::{ScaleGrid, TernaryEncoder, TernaryFormat, quantize_row};
use weights::{Content, Spec, Weights};

/// What `--help` says after the options.
pub const HELP: &str =
    "FILE.json has the keys of a Hugging Face config.json: model_type (bitnet, llama, qwen3), hidden_act
(relu2, silu), num_hidden_layers, hidden_size, intermediate_size, num_attention_heads, vocab_size, and if
wanted num_key_value_heads, head_dim, max_position_embeddings, rope_theta, rms_norm_eps, tie_word_embeddings.

Examples:
  tritone synth --shape bitnet-2b-4t -o m.gguf
  tritone synth --shape story --type t5 --relu-density 0.1 -o small.gguf
  tritone synth --shape config.json --type tq2_0 --embedding q6_k -o m.gguf";

/// Share of zeros where the user does not say: about what trained models have.
pub const ZEROS: f64 = 0.42;

/// Options of `synth`.
#[derive(Args)]
pub struct SynthArgs {
    /// bitnet-2b-4t, bonsai-8b, llama3-8b, story, or a FILE.json
    #[arg(long, value_name = "SHAPE")]
    pub shape: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// The same seed, the same file
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Share of the ternary weights that are 0
    #[arg(long, value_name = "SHARE", default_value_t = ZEROS)]
    pub zeros: f64,
    /// Share of gates that are positive, for models with relu^2; left out: 0.15
    #[arg(long, value_name = "SHARE")]
    pub relu_density: Option<f64>,
    /// Type of the ternary weights; left out: t5 for shapes with scales for blocks, else i2_s
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub ternary: Option<Ternary>,
    /// Type of embedding and head; left out: ternary for bonsai-8b, else f16
    #[arg(long, value_enum, value_name = "TYPE")]
    pub embedding: Option<Embedding>,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
    /// No bar and no line at the end
    #[arg(short, long)]
    pub quiet: bool,
    /// One JSON object that sums up
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &SynthArgs) -> Result<()> {
    interrupt::install()?;
    make(args)
}

/// Makes the model; Ctrl-C is taken over already.
pub fn make(args: &SynthArgs) -> Result<()> {
    let start = Instant::now();
    let shape = Shape::find(&args.shape)?;
    if !(0.0..=0.95).contains(&args.zeros) {
        return Err(Stop::usage(format_args!("--zeros is {}", args.zeros), "it is a share from 0 to 0.95"));
    }
    let relu = shape.activation() == Activation::ReluSquared;
    let density = match args.relu_density {
        Some(_) if !relu => {
            return Err(Stop::usage(
                format_args!("the shape {} has no relu^2 gates", shape.name),
                "leave --relu-density out",
            ));
        }
        Some(density) if !(0.01..=0.5).contains(&density) => {
            return Err(Stop::usage(format_args!("--relu-density is {density}"), "it is a share from 0.01 to 0.5"));
        }
        density => density.unwrap_or(0.15),
    };
    ModelFile::check(&args.output, args.force)?;
    let weights = Weights::plan(&shape, args.seed, args.zeros, density).map_err(Stop::runtime)?;
    let default = if shape.block > 0 { Ternary::T5 } else { Ternary::I2S };
    let format = TernaryFormat::from(args.ternary.unwrap_or(default));
    let embedding = match args.embedding {
        Some(embedding) => Some(TensorType::from(embedding)),
        None => (!shape.ternary_embedding).then_some(TensorType::F16),
    };
    let synth = Synth { shape: &shape, weights: &weights, format, embedding };

    let mut writer = Writer::new();
    if format.alignment() != 32 {
        writer.align(format.alignment());
    }
    synth.metadata(args.seed, &mut writer);
    let mut bytes = 0;
    for spec in &weights.specs {
        let (type_id, len) = synth.size(spec)?;
        let dims = if spec.rows == 1 { vec![spec.cols] } else { vec![spec.cols, spec.rows] };
        writer.tensor(&spec.name, &dims, type_id, len);
        bytes += len as u64;
    }
    let mut file = ModelFile::begin(&args.output, &writer, bytes, args.quiet)?;
    for tensor in 0..weights.specs.len() {
        synth.write(tensor, &mut file)?;
    }
    file.finish()?;

    let seconds = start.elapsed().as_secs_f64();
    let params: usize = weights.specs.iter().map(|spec| spec.rows * spec.cols).sum();
    if args.json {
        let all = json!({
            "file": args.output.display().to_string(),
            "shape": shape.name,
            "architecture": shape.architecture,
            "type": format.name(),
            "tensors": weights.specs.len(),
            "parameters": params,
            "tensor_bytes": bytes,
            "zeros": args.zeros,
            "relu_density": relu.then_some(density),
            "seed": args.seed,
            "seconds": seconds,
        });
        emit(format_args!("{all}\n"))?;
    } else if !args.quiet {
        note(format_args!(
            "{}: {} in {}, {:.2} billion weights in {:.2} GB, made in {seconds:.1} s",
            args.output.display(),
            shape.name,
            format.name(),
            params as f64 / 1e9,
            bytes as f64 / 1e9,
        ));
    }
    Ok(())
}

struct Synth<'a> {
    shape: &'a Shape,
    weights: &'a Weights,
    format: TernaryFormat,
    /// Type of embedding and head; none: ternary.
    embedding: Option<TensorType>,
}

impl Synth<'_> {
    fn metadata(&self, seed: u64, writer: &mut Writer) {
        let shape = self.shape;
        let text = |text: &str| Value::String(text.into());
        let number = |n: usize| Value::U32(n as u32);
        writer.key("general.architecture", text(shape.architecture));
        writer.key("general.name", text(&format!("random {}, seed {seed}", shape.name)));
        writer.key("general.file_type", Value::U32(self.format.file_type()));
        let keys = [
            ("block_count", number(shape.layers)),
            ("context_length", number(shape.context)),
            ("embedding_length", number(shape.hidden)),
            ("feed_forward_length", number(shape.ffn)),
            ("vocab_size", number(shape.vocab)),
            ("attention.head_count", number(shape.heads)),
            ("attention.head_count_kv", number(shape.kv_heads)),
            ("attention.key_length", number(shape.head_dim)),
            ("attention.value_length", number(shape.head_dim)),
            ("attention.layer_norm_rms_epsilon", Value::F32(shape.rms_eps)),
            ("rope.dimension_count", number(shape.head_dim)),
            ("rope.freq_base", Value::F32(shape.rope_theta)),
        ];
        let yarn = shape.yarn.into_iter().flat_map(|(factor, context)| {
            [
                ("rope.scaling.type", text("yarn")),
                ("rope.scaling.factor", Value::F32(factor)),
                ("rope.scaling.original_context_length", number(context)),
            ]
        });
        for (key, value) in keys.into_iter().chain(yarn) {
            writer.key(&format!("{}.{key}", shape.architecture), value);
        }
        vocabulary::write(shape, seed, writer);
    }

    /// The type of a tensor that is no matrix of trits.
    fn float_type(&self, spec: &Spec) -> Option<TensorType> {
        match spec.content {
            Content::Norm(_) => Some(TensorType::F32),
            Content::Embedding | Content::Head => self.embedding,
            Content::Matrix(_) => None,
        }
    }

    /// TQ types have their own blocks, and I2_S has none.
    fn grid(&self) -> ScaleGrid {
        match (self.format, self.shape.block) {
            (TernaryFormat::T5, block) if block > 0 => ScaleGrid::Blocks(block),
            _ => ScaleGrid::Tensor,
        }
    }

    fn encoder(&self, spec: &Spec) -> Result<TernaryEncoder> {
        let place = Place::default().tensor(&spec.name);
        Ok(TernaryEncoder::new(self.format, spec.rows, spec.cols, self.grid(), place)?)
    }

    /// Type number and bytes.
    fn size(&self, spec: &Spec) -> Result<(u32, usize)> {
        let Some(ty) = self.float_type(spec) else {
            return Ok((self.format.type_id(), self.encoder(spec)?.len()));
        };
        match ty.tensor_bytes(spec.rows, spec.cols) {
            Some(len) => Ok((ty.id(), len)),
            None => Err(too_odd(Place::default().tensor(&spec.name), spec.cols, ty)),
        }
    }

    fn write(&self, tensor: usize, file: &mut ModelFile) -> Result<()> {
        let spec = &self.weights.specs[tensor];
        let mut out = Vec::with_capacity(2 * PIECE);
        if let Some(ty) = self.float_type(spec) {
            let mut values = vec![0.0; spec.cols];
            for row in 0..spec.rows {
                match spec.content {
                    Content::Norm(around) => self.weights.norm(tensor, around, &mut values),
                    _ => self.weights.embedding_row(&spec.content, row, &mut values),
                }
                quantize_row(ty, &values, &mut out);
                file.write_piece(&mut out)?;
            }
            return file.write(&out);
        }
        let mut encoder = self.encoder(spec)?;
        let mut trits = vec![0; spec.cols];
        let mut scales = vec![0.0; self.grid().per_row(spec.cols)];
        for row in 0..spec.rows {
            let scale = match &spec.content {
                Content::Matrix(matrix) => {
                    self.weights.matrix_row(tensor, row, matrix, &mut trits);
                    matrix.scale
                }
                _ => {
                    self.weights.embedding_trits(&spec.content, row, &mut trits);
                    self.weights.embedding_scale()
                }
            };
            match self.grid() {
                ScaleGrid::Tensor => scales.fill(scale),
                ScaleGrid::Blocks(_) => self.weights.block_scales(tensor, row, scale, &mut scales),
            }
            encoder.push_row(&trits, &scales, &mut out)?;
            file.write_piece(&mut out)?;
        }
        encoder.finish(&mut out);
        file.write(&out)
    }
}
