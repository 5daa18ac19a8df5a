//! `tritone inspect`: what a GGUF file or a folder of safetensors holds.

use crate::failure::{Result, Stop};
use crate::output::Listing;
use clap::Args;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use tritone_runtime::checkpoint::TensorSummary;
use tritone_runtime::config::{ActivationScales, Config};
use tritone_runtime::gguf::Gguf;
use tritone_runtime::safetensors;

/// How much of a value is shown to people.
const SHOWN_CHARS: usize = 80;

/// Options of `inspect`.
#[derive(Args)]
pub struct InspectArgs {
    /// A GGUF file, or a folder with safetensors
    file: PathBuf,
    /// Everything as one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<()> {
    // A folder is several files, so it has no hash.
    let (checkpoint, sha256) = if args.file.is_dir() {
        (safetensors::open(&args.file)?, None)
    } else {
        let gguf = Gguf::open(&args.file)?;
        let sha256 = crate::commands::logits::hex(&Sha256::digest(gguf.data().as_slice()));
        (gguf.into_checkpoint(), Some(sha256))
    };
    let summary = checkpoint.summary(true);
    let (zeros, ternary) = share(&summary.tensors);
    let share_of_zeros = (ternary > 0).then(|| zeros as f64 / ternary as f64);

    // A file that can be listed need not be a model that runs.
    let config = Config::from_checkpoint(&checkpoint).ok();
    let rules = config.as_ref().and_then(|config| {
        let activations = ActivationScales::expected(&checkpoint, config).ok()?;
        Some((config.activation.to_string(), activations.to_string()))
    });
    let embeds = config.as_ref().and_then(|config| Some((config.pooling?.to_string(), config.hidden)));

    let mut out = Listing::new();
    if args.json {
        let mut all = serde_json::to_value(&summary)
            .map_err(|error| Stop::runtime(format_args!("cannot put the summary in JSON: {error}")))?;
        if let Some(sha256) = &sha256 {
            all["sha256"] = json!(sha256);
        }
        all["ternary_weights"] = json!(ternary);
        all["share_of_zeros"] = json!(share_of_zeros);
        if let Some((ffn, activations)) = &rules {
            all["ffn"] = json!(ffn);
            all["activation_scales"] = json!(activations);
        }
        if let Some((pooling, dimensions)) = &embeds {
            all["pooling"] = json!(pooling);
            all["dimensions"] = json!(dimensions);
        }
        out.line(all)?;
        return out.finish();
    }
    out.line(format_args!("file       {}", summary.file))?;
    out.line(format_args!("size       {} bytes", summary.bytes))?;
    if let Some(sha256) = sha256 {
        out.line(format_args!("sha256     {sha256}"))?;
    }
    out.line(format_args!("format     {}", summary.format))?;
    if let Some(share) = share_of_zeros {
        out.line(format_args!("ternary    {ternary} weights, {:.1}% of them 0", share * 100.0))?;
    }
    if let Some((ffn, activations)) = rules {
        out.line(format_args!("runs with  gate {ffn}, one scale for the activations of a {activations}"))?;
    }
    if let Some((pooling, dimensions)) = embeds {
        out.line(format_args!("embeds     texts in vectors of {dimensions} numbers, pooled by the {pooling}"))?;
    }
    out.line(format_args!("\nmetadata ({})", summary.metadata.len()))?;
    for key in &summary.metadata {
        let value = key.value.to_string();
        // JSON has its control characters escaped already.
        let mut shown: String = value.chars().take(SHOWN_CHARS).collect();
        if value.chars().nth(SHOWN_CHARS).is_some() {
            shown.push('…');
        }
        let len = key.len.map(|len| format!(" ({len})")).unwrap_or_default();
        out.line(format_args!("  {}  {}{len}  {shown}", key.key.escape_debug(), key.value_type))?;
    }
    out.line(format_args!("\ntensors ({})", summary.tensors.len()))?;
    let widest = summary.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0).min(48);
    for tensor in &summary.tensors {
        let dims: Vec<String> = tensor.dims.iter().map(usize::to_string).collect();
        let zeros = match (tensor.share_of_zeros(), &tensor.problem) {
            (Some(share), _) => format!("  {:.1}% zeros", share * 100.0),
            (None, Some(problem)) => format!("  {problem}"),
            (None, None) => String::new(),
        };
        let name = tensor.name.escape_debug().to_string();
        out.line(format_args!("  {name:widest$}  {:>5}  {:>16}{zeros}", tensor.tensor_type, dims.join(" x ")))?;
    }
    out.finish()
}

/// Zeros among the ternary weights that were counted.
fn share(tensors: &[TensorSummary]) -> (u64, u64) {
    tensors
        .iter()
        .filter_map(|tensor| Some((tensor.zeros?, tensor.weights())))
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}
