//! The server over real sockets: what it answers, what it refuses, how it ends.

mod client;
mod hostile;
mod life;
mod protocol;
