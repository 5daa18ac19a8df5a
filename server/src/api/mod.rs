//! What requests say: bytes to checked values, one file an endpoint.
//!
//! A body becomes `Fields` first, text by name; each field is then read as what it must be, so that a
//! mistake is answered with the field's name. A field that nobody reads is refused, unless it is null or on a list of
//! those that change no answer. Nothing here knows a model: what depends on one is checked where the job is made.

pub mod batch;
pub mod chat;
pub mod completions;
mod content;
pub mod embeddings;
pub mod error;
mod fields;
pub mod responses;
pub mod sampling;
pub mod tokenize;
