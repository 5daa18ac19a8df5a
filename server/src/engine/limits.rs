//! What may be asked of an engine.

use super::job::{Failure, Job};
use std::num::NonZeroUsize;
use tritone_runtime::batch::PAGE_TOKENS;
use tritone_runtime::tokenizer::StopStrings;

/// More alternatives for a token than this would be a message of megabytes for each answer.
const MAX_LOGPROBS: usize = 128;

/// A bias of 100 moves a token from never to always.
const MAX_BIAS: f32 = 100.0;

/// Bounds of jobs and of the engine itself.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Answers at once.
    pub(super) parallel: usize,
    /// Jobs that wait.
    pub(super) max_queue: usize,
    /// Pages of keys and values.
    pub(super) pages: usize,
    /// Prompt tokens of a step.
    pub(super) chunk: NonZeroUsize,
    /// Tokens of a prompt and its answer.
    pub(super) context: usize,
    /// Tokens that there are.
    pub(super) vocab: usize,
}

impl Limits {
    /// Refuses more jobs at once than ever find room.
    pub(super) fn check_count(&self, n_jobs: usize) -> Result<(), Failure> {
        let most = self.parallel.saturating_add(self.max_queue);
        if n_jobs > most {
            let sentence = format!("{n_jobs} prompts come at once, but this server takes at most {most}; send fewer");
            return Err(Failure::Invalid(sentence));
        }
        Ok(())
    }

    /// Refuses a job that can never be done; returns its stop strings ready for use.
    pub(super) fn check(&self, job: &Job) -> Result<StopStrings, Failure> {
        let invalid = |sentence: String| Err(Failure::Invalid(sentence));
        let (n_prompt, context, vocab) = (job.prompt.len(), self.context, self.vocab);
        if n_prompt == 0 {
            return invalid("the prompt is empty; it needs at least one token".to_owned());
        }
        if let Some(token) = job.prompt.iter().find(|token| **token as usize >= vocab) {
            return invalid(format!("the prompt has the token {token}, but this model's tokens are below {vocab}"));
        }
        if n_prompt > context {
            return invalid(format!(
                "the prompt has {n_prompt} tokens, but the context of this server holds {context}; shorten the prompt"
            ));
        }
        if !(1..=self.parallel).contains(&job.n) {
            return invalid(format!("{} answers are asked for; this server gives from 1 to {}", job.n, self.parallel));
        }
        if let Some(count) = job.logprobs.filter(|count| *count > MAX_LOGPROBS) {
            return invalid(format!("{count} log-probabilities a token are asked for, the limit is {MAX_LOGPROBS}"));
        }
        for (token, bias) in &job.logit_bias {
            if *token as usize >= vocab {
                return invalid(format!("a bias is given for the token {token}, but this model's are below {vocab}"));
            }
            if !(-MAX_BIAS..=MAX_BIAS).contains(bias) {
                return invalid(format!("the bias of token {token} is {bias}; it must be from -100 to 100"));
            }
        }
        job.sampler.validate().map_err(|error| Failure::Invalid(error.to_string()))?;
        let stop = StopStrings::new(&job.stop).map_err(|error| Failure::Invalid(error.to_string()))?;
        let pages = self.pages_of(job);
        if pages > self.pages {
            return invalid(format!(
                "{} answers of up to {} tokens with their prompt take {pages} pages of memory, but this server has {}; \
                 ask for fewer or shorter answers",
                job.n,
                self.longest(job),
                self.pages
            ));
        }
        Ok(stop)
    }

    /// How many tokens of an answer of a job, its prompt included, go through the model at most. The last one chosen
    /// does not.
    pub(super) fn longest(&self, job: &Job) -> usize {
        let answer = job.max_tokens.unwrap_or(usize::MAX).max(1) - 1;
        job.prompt.len().saturating_add(answer).min(self.context)
    }

    /// How many pages a job takes at most: those that its prompt fills are shared by its answers.
    pub(super) fn pages_of(&self, job: &Job) -> usize {
        let shared = job.prompt.len() / PAGE_TOKENS;
        shared + job.n * (self.longest(job).div_ceil(PAGE_TOKENS) - shared)
    }
}

/// How many numbers two lists begin with alike.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
