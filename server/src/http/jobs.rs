//! Jobs of one request: how they are made, and what comes of them.

use super::state::{Ready, State};
use crate::api::chat::AnswerFormat;
use crate::api::error::ApiError;
use crate::api::sampling::Sampling;
use crate::constrain::{Grammar, Tools};
use crate::engine::job::{Event, Failure, Job, Usage};
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;

/// Checks of a request what depends on the model, and makes jobs of its prompts.
pub(super) struct Plan<'a> {
    pub(super) ready: &'a Ready,
    pub(super) sampling: &'a Sampling,
    /// The field that the prompts come from.
    pub(super) param: &'static str,
    pub(super) seed: u64,
    pub(super) deadline: Option<Instant>,
    pub(super) logprobs: Option<usize>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(state: &State, ready: &'a Ready, sampling: &'a Sampling, param: &'static str) -> Plan<'a> {
        // A time beyond what the clock can say is none that ends.
        let deadline = Instant::now().checked_add(state.options.timeout);
        let seed = sampling.seed.unwrap_or_else(|| state.random());
        Plan { ready, sampling, param, seed, deadline, logprobs: None }
    }

    /// The job for a prompt; answers are of the form of `grammar`.
    pub(super) fn job(&self, prompt: Vec<u32>, grammar: Option<&Grammar>) -> Result<Job, ApiError> {
        let Plan { ready, sampling, param, .. } = self;
        let engine = ready.engine()?;
        let (context, parallel, vocab) =
            (engine.context_length(), engine.parallel(), engine.model().config().vocab_size);
        if prompt.len() > context {
            let n = prompt.len();
            let message =
                format!("`{param}` has {n} tokens, but the context of this server holds {context}; shorten it");
            return Err(ApiError::field(*param, message).coded("context_length_exceeded"));
        }
        if sampling.n > parallel {
            let message = format!("`n` is {}; this server gives from 1 to {parallel} answers", sampling.n);
            return Err(ApiError::field("n", message));
        }
        if let Some((token, _)) = sampling.logit_bias.iter().find(|(token, _)| *token as usize >= vocab) {
            let message = format!("`logit_bias` has the token {token}, but this model's are below {vocab}");
            return Err(ApiError::field("logit_bias", message));
        }
        // The last token need not fit into the context.
        let room = context - prompt.len() + 1;
        let budget = sampling.max_tokens.unwrap_or(room).min(room);
        let constraint = grammar.map(|grammar| grammar.constraint(budget)).transpose();
        let constraint = constraint.map_err(|error| ApiError::field("max_tokens", error.to_string()))?;
        let mut sampler = sampling.sampler.clone();
        sampler.seed = self.seed;
        Ok(Job {
            prompt,
            n: sampling.n,
            max_tokens: sampling.max_tokens,
            sampler,
            logit_bias: sampling.logit_bias.clone(),
            stop: sampling.stop.clone(),
            ignore_eos: sampling.ignore_eos,
            logprobs: self.logprobs,
            constraint,
            deadline: self.deadline,
        })
    }

    /// Begins jobs: all or none.
    pub(super) fn submit(&self, jobs: Vec<Job>) -> Result<Jobs, ApiError> {
        let engine = self.ready.engine()?;
        let begun = engine.submit_all(jobs).map_err(|failure| {
            let wrong = matches!(failure, Failure::Invalid(_));
            let error = ApiError::from(failure);
            if wrong { error.at(self.param) } else { error }
        })?;
        Ok(Jobs { receivers: begun.into_iter().map(Some).collect(), first: 0 })
    }
}

/// The grammar of a form.
pub(super) fn grammar(
    ready: &Ready,
    format: &AnswerFormat,
    tools: Option<&Tools>,
    param: &str,
) -> Result<Option<Grammar>, ApiError> {
    if *format == AnswerFormat::Text && tools.is_none() {
        return Ok(None);
    }
    let refused = |error: crate::constrain::Refused| {
        let param = if *format == AnswerFormat::Text { "tools" } else { param };
        ApiError::field(param, error.to_string())
    };
    let grammars = ready.grammars.as_ref().map_err(|error| refused(error.clone()))?;
    grammars.compile(format.as_format(), tools).map_err(refused)
}

/// Jobs that are under way. Dropping them ends them.
pub(super) struct Jobs {
    /// Nothing where a job is done.
    receivers: Vec<Option<UnboundedReceiver<Event>>>,
    /// Who is looked at first, so that all get on.
    first: usize,
}

impl Jobs {
    /// What happens next, and to which job; nothing when all are done. Nothing comes of the others after a failure.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Event)>> {
        let n = self.receivers.len();
        let mut waiting = false;
        for i in (0..n).map(|i| (self.first + i) % n) {
            let Some(receiver) = &mut self.receivers[i] else { continue };
            match receiver.poll_recv(cx) {
                Poll::Pending => waiting = true,
                Poll::Ready(event) => {
                    let ended = || Event::Failed(Failure::Internal("the engine has ended".to_owned()));
                    let event = event.unwrap_or_else(ended);
                    match event {
                        Event::Done(_) => self.receivers[i] = None,
                        Event::Failed(_) => self.receivers.clear(),
                        Event::Token(_) | Event::Finished { .. } => {}
                    }
                    self.first = (i + 1) % n;
                    return Poll::Ready(Some((i, event)));
                }
            }
        }
        if waiting { Poll::Pending } else { Poll::Ready(None) }
    }

    /// As [`Jobs::poll_next`]. Waits without end only while something is under way.
    pub(super) async fn next(&mut self) -> Option<(usize, Event)> {
        poll_fn(|cx| self.poll_next(cx)).await
    }
}

/// What several jobs took.
pub(super) fn add(sum: &mut Usage, one: Usage) {
    sum.prompt_tokens += one.prompt_tokens;
    sum.cached_tokens += one.cached_tokens;
    sum.completion_tokens += one.completion_tokens;
}

/// What jobs took, as answers say it.
pub(super) fn usage(usage: Usage) -> serde_json::Value {
    serde_json::json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}
