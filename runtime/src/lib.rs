//! Runs ternary language models: GGUF, tokenizer, transformer, KV cache, sampling.
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod attention;
pub mod batch;
pub mod budget;
pub mod checkpoint;
pub mod config;
pub mod embedding;
pub mod error;
pub mod evaluate;
mod feed_forward;
mod forward;
pub mod generate;
pub mod gguf;
mod head;
mod inventory;
mod kv_cache;
mod linear;
#[allow(unsafe_code)]
mod mmap;
pub mod model;
mod packed;
mod pages;
mod prepared;
pub mod profile;
pub mod quantize;
mod rope;
pub mod safetensors;
pub mod sampler;
pub mod scores;
mod scratch;
mod screen;
pub mod session;
pub mod skipped;
mod speculation;
mod states;
mod steps;
pub mod template;
pub mod threads;
pub mod tokenizer;
mod weights;

pub use tritone_kernels::cpu::request_amx;
pub use tritone_kernels::{isa, selftest};
