//! Reads the folders in which models are published on Hugging Face: `config.json`, one or several
//! `.safetensors` files, `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`.
//!
//! A folder becomes the [`Checkpoint`] that a good converter would have written as GGUF, without the
//! weights being copied or even touched: `config.rs`, `tokenizer.rs` (with `steps.rs`) and `pooling.rs` translate the metadata,
//! `names.rs` the names of tensors, and a tensor says how its trits are to be read
//! ([`Ternarise`]). The format of the weights' files: <https://github.com/huggingface/safetensors>.

mod config;
mod folder;
mod header;
mod names;
mod pooling;
mod steps;
mod tokenizer;

pub use folder::open;

#[cfg(doc)]
use crate::checkpoint::{Checkpoint, Ternarise};
use crate::error::{Error, Place};
use serde::de::DeserializeOwned;

const DOWNLOAD: &str = "the file is damaged or cut short, download it again";

const OTHER_FORM: &str = "the file is whole, but not of the form that is read here: compare it with a published model's, or give a GGUF file";

fn malformed(at: Place, what: String) -> Error {
    Error::Malformed { at: Box::new(at), what, fix: DOWNLOAD }
}

/// JSON of a known form; `serde_json` bounds the depth.
fn from_json<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| {
        let fix = if error.is_data() { OTHER_FORM } else { DOWNLOAD };
        let what = format!("this is not the JSON that belongs here: {error}");
        Error::Malformed { at: Box::new(Place::file(file)), what, fix }
    })
}

/// Reads a whole file from memory: what a fuzzer calls.
///
/// # Errors
/// What is wrong with the header.
#[doc(hidden)]
pub fn check_file(name: &str, bytes: &crate::checkpoint::Bytes) -> crate::error::Result<usize> {
    Ok(header::read(name, bytes)?.len())
}

/// Translates a configuration and a tokenizer from memory, as those of a model that generates and of one that embeds: what
/// a fuzzer calls.
///
/// # Errors
/// What is wrong with them.
#[doc(hidden)]
pub fn check_metadata(config: &[u8], tokenizer: &[u8], tokenizer_config: &[u8]) -> crate::error::Result<usize> {
    let config = config::HfConfig::parse("config.json", config)?;
    let mut n_keys = 0;
    for pooling in [None, Some(crate::config::Pooling::Last)] {
        let mut metadata = config.metadata("fuzz")?;
        tokenizer::metadata(
            &tokenizer::Files {
                tokenizer: ("tokenizer.json", tokenizer),
                config: Some(("tokenizer_config.json", tokenizer_config)),
                generation: None,
                template: None,
            },
            &config,
            pooling,
            1 << 16,
            &mut metadata,
        )?;
        n_keys += metadata.len();
    }
    Ok(n_keys)
}
