//! The server over real sockets: what it answers, what it refuses, how it ends.

mod client;
mod crowds;
#[path = "../../../runtime/tests/embedding_models/mod.rs"]
mod embedding_models;
mod embeddings;
mod hostile;
mod life;
mod protocol;
