//! What the engine is asked for and what it says.

use std::time::Instant;
use tritone_runtime::sampler::SamplerConfig;

/// A prompt and how to go on from it.
pub struct Job {
    /// The prompt; at least one token.
    pub prompt: Vec<u32>,
    /// How many answers; they share the work of the prompt. Answer `i` draws with the seed `seed + i`.
    pub n: usize,
    /// At most this many tokens an answer; `None`: until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// Added to the logits of some tokens before anything else.
    pub logit_bias: Vec<(u32, f32)>,
    /// Texts that end an answer; they are not part of it.
    pub stop: Vec<String>,
    /// Whether to go on after an end token.
    pub ignore_eos: bool,
    /// Log-probabilities of each token and of so many of the likeliest, under the model itself.
    pub logprobs: Option<usize>,
    /// What an answer must look like.
    pub constraint: Option<Box<dyn Constraint>>,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// Restricts the tokens of an answer.
pub trait Constraint: Send {
    /// The same at the same place, for another answer.
    fn fork(&self) -> Box<dyn Constraint>;

    /// Sets bit `id % 32` of word `id / 32` for each token that may come next; end tokens among them where the answer
    /// may end. `mask` has a bit for every token and comes cleared.
    ///
    /// # Errors
    /// A sentence, where the constraint itself gives up: a grammar that is too large, say.
    fn allow(&mut self, mask: &mut [u32]) -> Result<(), String>;

    /// Takes a token that was allowed and chosen.
    ///
    /// # Errors
    /// As [`Constraint::allow`].
    fn accept(&mut self, token: u32) -> Result<(), String>;
}

/// What happens to a job, in this order: any number of `Token`s of any answer, a `Finished` for each answer, and then
/// `Done`; or `Failed`, after which nothing comes. Dropping the receiver ends the job within one step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// One more token of an answer.
    Token(Token),
    /// The end of an answer.
    Finished {
        /// Which answer.
        answer: usize,
        /// Why.
        reason: FinishReason,
    },
    /// The end of all answers.
    Done(Usage),
    /// The job cannot be done, or not to its end.
    Failed(Failure),
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Which answer, from 0.
    pub answer: usize,
    /// The token.
    pub id: u32,
    /// Text that became certain with it: valid UTF-8, empty while a character or a possible stop string is incomplete.
    pub text: String,
    /// Log-probabilities, if they were asked for.
    pub logprobs: Option<Logprobs>,
}

/// Log-probabilities (natural logarithm) before a token was chosen, under the model itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// That of the token.
    pub chosen: f32,
    /// The likeliest tokens, falling.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop string, or the constraint allows nothing more.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
}

/// What a job took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were known from an earlier job.
    pub cached_tokens: usize,
    /// Tokens of all answers, end tokens included.
    pub completion_tokens: usize,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// It asks for what cannot be: a token that is none, a prompt that does not fit.
    #[error("{0}")]
    Invalid(String),
    /// Too many are waiting.
    #[error("{waiting} requests are waiting already; try again in a moment")]
    QueueFull {
        /// How many.
        waiting: usize,
    },
    /// The deadline came first.
    #[error("the request took longer than the time limit of this server")]
    TimedOut,
    /// The server is about to end.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The model or the machine failed.
    #[error("{0}")]
    Internal(String),
}
