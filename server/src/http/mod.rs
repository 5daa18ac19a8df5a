//! The server: connections, routes, answers.
//!
//! `listen.rs` takes connections and ends them, `seats.rs` says which of them stay when there are too many or they hold too
//! much, and `watched.rs` tells it how each gets on; `routes.rs` says which path does what and who may, `body.rs` reads what
//! clients send within bounds of size and time. A file for each endpoint makes a job of a request of
//! [`api`](crate::api); what comes of it becomes one answer or a stream (`jobs.rs`, `stream.rs`).
//! `desk.rs` gives the same answers to programs in this process.

mod body;
mod chat;
mod completions;
mod deltas;
mod desk;
mod embeddings;
mod hosts;
mod jobs;
mod keys;
mod limits;
mod listen;
mod options;
mod responses;
mod routes;
mod seats;
mod state;
mod stream;
mod tokens;
mod watched;

pub use desk::Desk;
pub use hosts::{Hosts, HostsError};
pub use keys::{Keys, KeysError};
pub use limits::HttpLimits;
pub use listen::{serve, serve_until};
pub use options::{Origins, OriginsError, ServeError, ServeOptions};
