//! Runs ternary language models: GGUF, tokenizer, transformer, KV cache, sampling.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod attention;
pub mod config;
pub mod error;
pub mod generate;
pub mod gguf;
pub mod kv_cache;
#[allow(unsafe_code)]
mod mmap;
pub mod model;
pub mod sampler;
pub mod template;
pub mod threads;
pub mod tokenizer;
pub mod weights;
