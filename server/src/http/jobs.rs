//! Jobs of one request: how they are made, and what comes of them.

use super::routes::apart;
use super::state::{Ready, State};
use crate::api::chat::AnswerFormat;
use crate::api::error::ApiError;
use crate::api::sampling::Sampling;
use crate::constrain::{Grammar, Tools};
use crate::engine::job::{Event, Failure, Job, Usage};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout_at;

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
    /// The prompts come from the field `param`; `deadline` is that of the request.
    pub(super) fn new(
        state: &State,
        ready: &'a Ready,
        sampling: &'a Sampling,
        param: &'static str,
        deadline: Option<Instant>,
    ) -> Plan<'a> {
        let seed = sampling.seed.unwrap_or_else(|| state.random());
        Plan { ready, sampling, param, seed, deadline, logprobs: None }
    }

    /// How many tokens a prompt is cut into before it is refused: so many more than it may have that most refusals can
    /// say by how much it is too long.
    pub(super) fn most_tokens(&self) -> Result<usize, ApiError> {
        Ok(self.ready.engine()?.context_length().saturating_mul(2))
    }

    /// A prompt that fits into the context; it comes as nothing where it has more than [`most_tokens`](Self::most_tokens).
    pub(super) fn fitting(&self, prompt: Option<Vec<u32>>) -> Result<Vec<u32>, ApiError> {
        let context = self.ready.engine()?.context_length();
        let n = match prompt {
            Some(prompt) if prompt.len() <= context => return Ok(prompt),
            Some(prompt) => prompt.len().to_string(),
            None => format!("more than {}", self.most_tokens()?),
        };
        let param = self.param;
        let message = format!("`{param}` has {n} tokens, but the context of this server holds {context}; shorten it");
        Err(ApiError::field(param, message).coded("context_length_exceeded"))
    }

    /// The job for a prompt that fits; answers are of the form of `grammar`.
    pub(super) fn job(&self, prompt: Vec<u32>, grammar: Option<&Grammar>) -> Result<Job, ApiError> {
        let Plan { ready, sampling, .. } = self;
        let engine = ready.engine()?;
        let (context, parallel, vocab) =
            (engine.context_length(), engine.parallel(), engine.model().config().vocab_size);
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

/// Whether answers must be of some form.
pub(super) fn has_grammar(format: &AnswerFormat, tools: Option<&Tools>) -> bool {
    *format != AnswerFormat::Text || tools.is_some()
}

/// Makes jobs of a request that has been read. Grammars are made one at a time, since the worst take seconds: other
/// requests keep the threads. Whoever waits for his turn and goes is not begun.
pub(super) async fn begin<T: Send + 'static>(
    state: &State,
    deadline: Option<Instant>,
    with_grammar: bool,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if !with_grammar {
        return apart(work).await;
    }
    let turn = Arc::clone(&state.grammar_turn).acquire_owned();
    let turn = match deadline {
        Some(deadline) => timeout_at(deadline.into(), turn).await.map_err(|_| Failure::TimedOut)?,
        None => turn.await,
    };
    apart(move || {
        // It is held to the end of the work, even if nobody waits for that any more. It is never closed.
        let _turn = turn;
        work()
    })
    .await
}

/// The grammar of a form.
pub(super) fn grammar(
    ready: &Ready,
    format: &AnswerFormat,
    tools: Option<&Tools>,
    param: &str,
) -> Result<Option<Grammar>, ApiError> {
    if !has_grammar(format, tools) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineOptions;
    use crate::http::ServeOptions;
    use std::sync::mpsc::channel;
    use std::time::Duration;
    use tokio::time::timeout;

    const MOMENT: Duration = Duration::from_millis(50);

    fn state() -> State {
        State::new(ServeOptions::without_connections(String::new(), EngineOptions::default()))
    }

    #[test]
    fn grammars_wait_for_each_other_and_hold_nobody_else_up() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let state = state();
            let (go, wait) = channel::<()>();
            let slow = begin(&state, None, true, move || Ok(wait.recv()));
            // Its client goes, but the work is under way.
            assert!(timeout(MOMENT, slow).await.is_err());
            let deadline = Instant::now().checked_add(MOMENT);
            let late = begin(&state, deadline, true, || Ok(())).await.unwrap_err();
            assert_eq!(late.status, 504);
            assert_eq!(begin(&state, None, false, || Ok(1)).await.unwrap(), 1);
            go.send(()).unwrap();
            assert_eq!(begin(&state, None, true, || Ok(2)).await.unwrap(), 2);
        });
    }

    #[test]
    fn what_nobody_waits_for_is_not_begun() {
        let runtime = tokio::runtime::Builder::new_multi_thread().max_blocking_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let ((go, wait), (done, order)) = (channel::<()>(), channel());
            let first = tokio::spawn(apart(move || Ok(wait.recv())));
            tokio::time::sleep(MOMENT).await;
            let sent = done.clone();
            assert!(timeout(MOMENT, apart(move || Ok(sent.send(1)))).await.is_err());
            go.send(()).unwrap();
            apart(move || Ok(done.send(2))).await.unwrap().unwrap();
            first.await.unwrap().unwrap().unwrap();
            assert_eq!(order.recv(), Ok(2));
        });
    }
}
