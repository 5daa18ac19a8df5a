//! The engine from outside, with the story model.

mod jobs;
mod life;
mod same_answers;
