//! One sequence on its way through a model: its tokens, its cache, its threads.

use crate::error::{Error, Result};
use crate::kv_cache::Span;
use crate::model::Inner;
use crate::scores::{Need, Scores};
use crate::skipped::Skipped;
use crate::steps::{Logits, Steps};
use std::collections::VecDeque;
use std::sync::Arc;

/// A sequence of tokens and everything that the model remembers of them.
///
/// Made by [`crate::model::Model::session`]. The logits depend on the tokens alone: not on the
/// number of threads, nor on how the prompt was cut into chunks.
pub struct Session {
    pub(crate) steps: Steps,
    span: Span,
    tokens: Vec<u32>,
    context_length: usize,
    logits: Logits,
    ahead: Ahead,
}

/// What was computed for tokens that may come after the last one.
#[derive(Default)]
struct Ahead {
    tokens: VecDeque<u32>,
    /// The hidden state after each of them, and what was made of it.
    states: VecDeque<(Vec<f32>, Kept)>,
}

/// The logits of one hidden state, at least what `need` needs.
struct Kept {
    need: Need,
    logits: Logits,
}

impl Session {
    pub(crate) fn new(model: Arc<Inner>, context_length: Option<usize>) -> Result<Session> {
        model.has_logits()?;
        let config = &model.config;
        let limit = config.context_length;
        let context_length = context_length.unwrap_or(limit);
        if context_length == 0 || context_length > limit {
            return Err(Error::InvalidOption {
                option: "the context length",
                value: context_length.to_string(),
                rule: format!("it must be from 1 to {limit}, what this model was made for"),
            });
        }
        let logits = Logits { ids: None, values: Vec::new(), vocab_size: config.vocab_size };
        let steps = Steps::new(model)?;
        let span = Span::new(steps.cache());
        Ok(Session { steps, span, tokens: Vec::new(), context_length, logits, ahead: Ahead::default() })
    }

    /// How many tokens the model has seen.
    #[must_use]
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// How many tokens fit.
    #[must_use]
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// The tokens seen so far.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The model this sequence runs on.
    #[must_use]
    pub fn model(&self) -> crate::model::Model {
        crate::model::Model::from_inner(Arc::clone(&self.steps.model))
    }

    /// Bytes that keys and values take now.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.span.cache.bytes()
    }

    /// What was left out of products since the session began or since [`Session::restart_skipped`].
    #[must_use]
    pub fn skipped(&self) -> Skipped {
        self.steps.skipped
    }

    /// Starts to count anew.
    pub fn restart_skipped(&mut self) {
        self.steps.skipped = Skipped::default();
    }

    /// Forgets all tokens after the first `n`.
    pub fn truncate(&mut self, n: usize) {
        self.tokens.truncate(n);
        self.ahead = Ahead::default();
        self.span.cache.truncate(self.tokens.len());
    }

    /// Feeds tokens, `chunk` at a time (0: [`prompt_chunk`](tritone_kernels::registry::prompt_chunk)), and returns the logits
    /// (`vocab_size` of them) after the last one. The logits do not depend on `chunk`.
    ///
    /// # Errors
    /// No tokens, an id outside the vocabulary, more tokens than fit, or logits that are not
    /// finite. After an error about the tokens nothing was fed.
    pub fn prefill(&mut self, tokens: &[u32], chunk: usize) -> Result<&[f32]> {
        self.prefill_for(tokens, chunk, &Need::All)?;
        Ok(&self.logits.values)
    }

    /// Feeds tokens like [`Session::prefill`] and returns at least the logits after the last one that are needed, as
    /// [`Session::decode_for`] does.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn prefill_for(&mut self, tokens: &[u32], chunk: usize, need: &Need) -> Result<Scores<'_>> {
        self.prefill_while(tokens, chunk, need, &mut || true)?;
        Ok(self.scores())
    }

    /// Feeds tokens like [`Session::prefill_for`] as long as `go_on` says so before each chunk, and returns whether all were
    /// fed. If not, those that were are in the session, without logits after them.
    pub(crate) fn prefill_while(
        &mut self,
        tokens: &[u32],
        chunk: usize,
        need: &Need,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool> {
        self.check(tokens)?;
        let mut hidden = Vec::new();
        for part in tokens.chunks(self.steps.model.chunk(chunk)) {
            if !go_on() {
                return Ok(false);
            }
            hidden = self.forward(part)?;
        }
        let last = hidden.split_off(hidden.len() - self.steps.model.config.hidden);
        self.logits = self.scores_of(&last, need)?.swap_remove(0).logits;
        finite(&self.logits.values, self.tokens.len() - 1)?;
        Ok(true)
    }

    /// Feeds tokens like [`Session::prefill`] and calls `each(i, logits after tokens[i])` for all.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn prefill_all(&mut self, tokens: &[u32], chunk: usize, each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.check(tokens)?;
        let vocab = self.steps.model.config.vocab_size;
        let mut done = 0;
        for part in tokens.chunks(self.steps.model.chunk(chunk)) {
            let hidden = self.forward(part)?;
            let logits = self.steps.all_logits(hidden);
            self.logits.values.clear();
            self.logits.ids = None;
            for row in logits.chunks(vocab) {
                finite(row, done)?;
                each(done, row);
                done += 1;
            }
            logits[logits.len() - vocab..].clone_into(&mut self.logits.values);
        }
        Ok(())
    }

    /// Feeds one token and returns the logits after it.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<&[f32]> {
        self.decode_for(token, &Need::All)?;
        Ok(&self.logits.values)
    }

    /// Feeds one token and returns at least the logits after it that are needed, with the bits that
    /// [`Session::decode`] gives them.
    ///
    /// From the third step on that does not need all of them, a copy of the output head in 8 bits
    /// tells which rows matter; making it takes a fraction of a second and half the memory of halves. See
    /// [`crate::model::LoadOptions::full_head`].
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode_for(&mut self, token: u32, need: &Need) -> Result<Scores<'_>> {
        self.decode_with_draft(token, &[], need)
    }

    /// As [`Session::decode_for`], and computes in the same batch what would come of the tokens `draft` after it.
    ///
    /// They are no part of the sequence: [`Session::tokens`] and [`Session::position`] do not count them. If the
    /// tokens fed next, one at a time, are those of the draft, their logits are there already; else what was
    /// computed for them is forgotten. While it is kept, `draft` is not looked at.
    ///
    /// # Errors
    /// As [`Session::prefill`], and a draft that does not fit behind the token.
    pub fn decode_with_draft(&mut self, token: u32, draft: &[u32], need: &Need) -> Result<Scores<'_>> {
        let kept = if let Some((hidden, kept)) = self.foresees(token).then(|| self.ahead.states.pop_front()).flatten() {
            self.ahead.tokens.pop_front();
            self.tokens.push(token);
            if kept.need.covers(need) { kept } else { self.scores_of(&hidden, need)?.swap_remove(0) }
        } else {
            let batch: Vec<u32> = [&[token], draft].concat();
            self.check(&batch)?;
            let hidden = self.forward(&batch)?;
            self.tokens.truncate(self.tokens.len() - draft.len());
            let states = hidden.chunks_exact(self.steps.model.config.hidden).map(<[f32]>::to_vec);
            let mut states: VecDeque<_> = states.zip(self.scores_of(&hidden, need)?).collect();
            let first = states.pop_front();
            self.ahead = Ahead { tokens: draft.iter().copied().collect(), states };
            first.expect("a state for each token").1
        };
        self.logits = kept.logits;
        // Logits of a draft are looked at only when their turn comes, so that an error does not depend on it.
        finite(&self.logits.values, self.tokens.len() - 1)?;
        Ok(self.scores())
    }

    /// Whether what follows `token` is known already.
    pub(crate) fn foresees(&self, token: u32) -> bool {
        self.ahead.tokens.front() == Some(&token)
    }

    /// What the last step gave: the logits after the last token fed.
    #[must_use]
    pub fn scores(&self) -> Scores<'_> {
        self.logits.scores()
    }

    /// The logits after the last token fed; empty before the first, and after a step that was not asked for all of
    /// them (see [`Session::scores`]).
    #[must_use]
    pub fn logits(&self) -> &[f32] {
        if self.logits.ids.is_none() { &self.logits.values } else { &[] }
    }

    /// The log-probability of `token` after the last token fed, before any sampling setting.
    ///
    /// # Panics
    /// There are not all logits (see [`Session::logits`]), or `token` is outside the vocabulary.
    #[must_use]
    pub fn logprob(&self, token: u32) -> f32 {
        self.log_softmax(self.logits(), token)
    }

    /// The log-probability of `token` under some logits of this model.
    ///
    /// # Panics
    /// `token` is not below the number of logits.
    #[must_use]
    pub fn log_softmax(&self, logits: &[f32], token: u32) -> f32 {
        self.steps.log_softmax(logits).of(logits[token as usize])
    }

    /// The last token and those before it, once they are known to be acceptable.
    fn check<'t>(&self, tokens: &'t [u32]) -> Result<(u32, &'t [u32])> {
        self.steps.check(tokens, self.tokens.len(), self.context_length)
    }

    /// Feeds acceptable tokens; returns the hidden states `[token][hidden]` after the last layer.
    fn forward(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let position = self.tokens.len();
        if !self.ahead.tokens.is_empty() {
            self.truncate(position);
        }
        (self.span.position, self.span.n_tokens) = (position, tokens.len());
        let hidden = self.steps.layers(vec![&mut self.span], tokens)?;
        self.tokens.extend_from_slice(tokens);
        Ok(hidden)
    }

    /// At least the logits that are needed after each of some hidden states.
    fn scores_of(&mut self, hidden: &[f32], need: &Need) -> Result<Vec<Kept>> {
        let n = hidden.len() / self.steps.model.config.hidden;
        let logits = self.steps.logits(hidden, &vec![need.clone(); n])?;
        Ok(logits.into_iter().map(|logits| Kept { need: need.clone(), logits }).collect())
    }
}

/// Refuses logits of a damaged model.
pub(crate) fn finite(logits: &[f32], position: usize) -> Result<()> {
    if logits.iter().all(|logit| logit.is_finite()) { Ok(()) } else { Err(Error::NonFiniteLogits { position }) }
}
