//! How an engine runs.

use super::limits::Limits;
use std::num::NonZeroUsize;
use sysinfo::System;
use tritone_runtime::batch::PAGE_TOKENS;
use tritone_runtime::error::Error;
use tritone_runtime::model::Model;

/// How an engine runs. None of it changes an answer.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// How many answers run at once at most. Each makes the step of all others a little longer.
    pub parallel: usize,
    /// How many jobs wait at most while there is no place for them.
    pub max_queue: usize,
    /// Bytes of all keys and values, those that are kept for later jobs included. `None`: twice what `parallel` answers
    /// with a full context take, but not more than a quarter of the memory that is free when the engine starts (where
    /// the system says how much), and in any case enough for one of them.
    pub cache_bytes: Option<usize>,
    /// Prompt tokens that a step takes beside a token of each answer: answers under way wait for so many at most. With 64
    /// a prompt is read as fast as it can be (BitNet-2B-4T, one AVX-512 core: 5.7 ms a token; 6.7 with 32, 5.6 with 512).
    pub chunk: usize,
    /// How many tokens a prompt and its answer have at most. `None`: as many as the model was made for.
    pub context: Option<usize>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions { parallel: 8, max_queue: 128, cache_bytes: None, chunk: 64, context: None }
    }
}

/// Why an engine does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An option that cannot be.
    #[error("{option} is {value}, but {rule}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What was given.
        value: String,
        /// What it must be.
        rule: String,
    },
    /// The runtime cannot work.
    #[error(transparent)]
    Runtime(#[from] Error),
    /// The system gives no threads.
    #[error("the system refused to start the engine's threads ({0})")]
    Thread(std::io::Error),
}

impl EngineOptions {
    /// The most answers at once: a larger number is a mistake.
    pub const MAX_PARALLEL: usize = 1024;

    /// What may be asked of an engine with these options.
    pub(super) fn limits(&self, model: &Model, page_bytes: usize) -> Result<Limits, StartError> {
        let refuse = |option, value: usize, rule| Err(StartError::Option { option, value: value.to_string(), rule });
        if !(1..=EngineOptions::MAX_PARALLEL).contains(&self.parallel) {
            return refuse(
                "the number of answers at once",
                self.parallel,
                format!("it must be from 1 to {}", EngineOptions::MAX_PARALLEL),
            );
        }
        let Some(chunk) = NonZeroUsize::new(self.chunk) else {
            return refuse("the prompt tokens of a step", 0, "it must be at least 1".to_owned());
        };
        let longest = model.config().context_length;
        let context = self.context.unwrap_or(longest);
        if !(1..=longest).contains(&context) {
            let rule = format!("it must be from 1 to {longest}, what this model was made for");
            return refuse("the context length", context, rule);
        }
        let context_pages = context.div_ceil(PAGE_TOKENS);
        let pages = match self.cache_bytes {
            Some(bytes) => bytes / page_bytes,
            None => {
                let wanted = 2 * self.parallel * context_pages;
                let share = free_memory().map_or(wanted, |free| free / 4 / page_bytes);
                wanted.min(share).max(context_pages)
            }
        };
        if pages < context_pages {
            let needed = context_pages * page_bytes;
            let rule = format!(
                "one answer with a context of {context} tokens takes {needed} bytes; allow that or a shorter context"
            );
            return refuse("the memory for keys and values", self.cache_bytes.unwrap_or_default(), rule);
        }
        let (parallel, max_queue, vocab) = (self.parallel, self.max_queue, model.config().vocab_size);
        Ok(Limits { parallel, max_queue, pages, chunk, context, vocab })
    }
}

/// Bytes of memory that are free now, within the limits of a container; nothing where the system does not say.
fn free_memory() -> Option<usize> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    let free = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory).min(system.available_memory());
    usize::try_from(free).ok()
}
