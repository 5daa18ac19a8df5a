//! Continuous batching: one thread takes steps with all answers that are under way.

pub mod job;
