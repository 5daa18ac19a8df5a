//! An HTTP server on top of `tritone-runtime`: many users share one model and one machine.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod constrain;
pub mod engine;
pub mod metrics;
pub mod page;
