//! One sequence on its way through a model: its tokens, its cache, its threads.

use crate::error::{Error, Result};
use crate::forward::{Forward, RopeTables};
use crate::kv_cache::KvCache;
use crate::model::Inner;
use crate::profile::{Observer, Off, Profile};
use crate::scores::{Need, Scores};
use crate::scratch::Scratch;
use crate::screen::Screen;
use crate::skipped::Skipped;
use crate::threads::Pool;
use std::collections::VecDeque;
use std::sync::Arc;

/// How many prompt tokens go through the layers at once when the caller does not say.
pub const DEFAULT_CHUNK: usize = 512;

/// A sequence of tokens and everything that the model remembers of them.
///
/// Made by [`crate::model::Model::session`]. The logits depend on the tokens alone: not on the
/// number of threads, nor on how the prompt was cut into chunks.
pub struct Session {
    model: Arc<Inner>,
    pool: Pool,
    cache: KvCache,
    rope: RopeTables,
    tokens: Vec<u32>,
    context_length: usize,
    logits: Vec<f32>,
    /// Whose logits these are, if not all tokens'.
    chosen: Option<Vec<u32>>,
    /// Steps that did not need all logits.
    partial_steps: u32,
    /// Steps to go for which the whole head is read, since the copy left too many rows.
    full_steps: u32,
    ahead: Ahead,
    skipped: Skipped,
    scratch: Scratch,
    /// While there is one, the parts of the work are timed.
    pub(crate) profile: Option<Profile>,
}

/// What was computed for tokens that may come after the last one.
#[derive(Default)]
struct Ahead {
    tokens: VecDeque<u32>,
    /// The hidden state after each of them, and what was made of it.
    states: VecDeque<(Vec<f32>, Kept)>,
}

/// The logits of one hidden state.
struct Kept {
    /// They are at least what this needs.
    need: Need,
    /// Whose logits they are, if not all tokens'.
    ids: Option<Vec<u32>>,
    logits: Vec<f32>,
}

impl Session {
    pub(crate) fn new(model: Arc<Inner>, context_length: Option<usize>) -> Result<Session> {
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
        let pool = Pool::new(model.n_threads)?;
        let cache = KvCache::new(config.n_layers, config.n_kv_heads, config.head_dim, model.cache_type);
        let rope = RopeTables::new(config, model.weights.rope_factors.clone());
        Ok(Session {
            pool,
            cache,
            rope,
            tokens: Vec::new(),
            context_length,
            logits: Vec::new(),
            chosen: None,
            partial_steps: 0,
            full_steps: 0,
            ahead: Ahead::default(),
            skipped: Skipped::default(),
            scratch: Scratch::default(),
            profile: None,
            model,
        })
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
        crate::model::Model::from_inner(Arc::clone(&self.model))
    }

    /// Bytes that keys and values take now.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// What was left out of products since the session began or since [`Session::restart_skipped`].
    #[must_use]
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// Starts to count anew.
    pub fn restart_skipped(&mut self) {
        self.skipped = Skipped::default();
    }

    /// Forgets all tokens after the first `n`.
    pub fn truncate(&mut self, n: usize) {
        self.tokens.truncate(n);
        self.ahead = Ahead::default();
        self.cache.truncate(self.tokens.len());
    }

    /// Feeds tokens, `chunk` at a time (0: [`DEFAULT_CHUNK`]), and returns the logits
    /// (`vocab_size` of them) after the last one. The logits do not depend on `chunk`.
    ///
    /// # Errors
    /// No tokens, an id outside the vocabulary, more tokens than fit, or logits that are not
    /// finite. After an error about the tokens nothing was fed.
    pub fn prefill(&mut self, tokens: &[u32], chunk: usize) -> Result<&[f32]> {
        let (last, before) = self.check(tokens)?;
        for part in before.chunks(chunk_or_default(chunk)) {
            self.forward(part)?;
        }
        self.decode(last)
    }

    /// Feeds tokens like [`Session::prefill`] and calls `each(i, logits after tokens[i])` for all.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn prefill_all(&mut self, tokens: &[u32], chunk: usize, each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.check(tokens)?;
        let vocab = self.model.config.vocab_size;
        let mut done = 0;
        for part in tokens.chunks(chunk_or_default(chunk)) {
            let hidden = self.forward(part)?;
            let logits = self.head(hidden, part.len());
            self.logits.clear();
            self.chosen = None;
            for row in logits.chunks(vocab) {
                finite(row, done)?;
                each(done, row);
                done += 1;
                row.clone_into(&mut self.logits);
            }
        }
        Ok(())
    }

    /// Feeds one token and returns the logits after it.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<&[f32]> {
        self.decode_for(token, &Need::All)?;
        Ok(&self.logits)
    }

    /// Feeds one token and returns at least the logits after it that are needed, with the bits that
    /// [`Session::decode`] gives them.
    ///
    /// After some two dozen steps that do not need all of them, a copy of the output head in 8 bits
    /// tells which rows matter; making it takes up to a second and half the memory of halves. See
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
            let states = hidden.chunks_exact(self.model.config.hidden).map(<[f32]>::to_vec);
            let mut states: VecDeque<_> = states.zip(self.scores_of(&hidden, need)?).collect();
            let first = states.pop_front();
            self.ahead = Ahead { tokens: draft.iter().copied().collect(), states };
            first.expect("a state for each token").1
        };
        (self.chosen, self.logits) = (kept.ids, kept.logits);
        // Logits of a draft are looked at only when their turn comes, so that an error does not depend on it.
        finite(&self.logits, self.tokens.len() - 1)?;
        Ok(self.scores())
    }

    /// Whether what follows `token` is known already.
    pub(crate) fn foresees(&self, token: u32) -> bool {
        self.ahead.tokens.front() == Some(&token)
    }

    /// What the last step gave: the logits after the last token fed.
    #[must_use]
    pub fn scores(&self) -> Scores<'_> {
        match &self.chosen {
            None => Scores::All(&self.logits),
            Some(ids) => Scores::Some { ids, logits: &self.logits, vocab_size: self.model.config.vocab_size },
        }
    }

    /// The logits after the last token fed; empty before the first, and after a step that was not asked for all of
    /// them (see [`Session::scores`]).
    #[must_use]
    pub fn logits(&self) -> &[f32] {
        if self.chosen.is_none() { &self.logits } else { &[] }
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
        let logit = logits[token as usize];
        let partial = self.model.float.softmax(&mut logits.to_vec());
        (f64::from(logit) - f64::from(partial.max) - libm::log(f64::from(partial.sum))) as f32
    }

    /// The last token and those before it, once they are known to be acceptable.
    fn check<'t>(&self, tokens: &'t [u32]) -> Result<(u32, &'t [u32])> {
        let Some((&last, before)) = tokens.split_last() else {
            return Err(Error::InvalidOption {
                option: "the prompt",
                value: "empty".to_owned(),
                rule: "it must have at least one token".to_owned(),
            });
        };
        let vocab = self.model.config.vocab_size;
        if let Some(&bad) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(Error::InvalidOption {
                option: "a token id",
                value: bad.to_string(),
                rule: format!("it must be below {vocab}, the size of this model's vocabulary"),
            });
        }
        let needed = self.tokens.len() + tokens.len();
        if needed > self.context_length {
            return Err(Error::PromptTooLong {
                tokens: needed,
                context: self.context_length,
                limit: self.model.config.context_length,
            });
        }
        Ok((last, before))
    }

    /// Feeds acceptable tokens; returns the hidden states `[token][hidden]` after the last layer.
    fn forward(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let position = self.tokens.len();
        if !self.ahead.tokens.is_empty() {
            self.truncate(position);
        }
        let hidden = match self.profile.take() {
            None => self.step(&mut Off).layers(tokens, position),
            Some(mut profile) => {
                let hidden = self.step(&mut profile).layers(tokens, position);
                self.profile = Some(profile);
                hidden
            }
        }?;
        self.tokens.extend_from_slice(tokens);
        Ok(hidden)
    }

    /// Logits `[token][vocab_size]` of hidden states.
    fn head(&mut self, hidden: Vec<f32>, n_tokens: usize) -> Vec<f32> {
        match self.profile.take() {
            None => all_logits(self.step(&mut Off), hidden, n_tokens),
            Some(mut profile) => {
                let logits = all_logits(self.step(&mut profile), hidden, n_tokens);
                self.profile = Some(profile);
                logits
            }
        }
    }

    /// At least the logits that are needed after each of some hidden states.
    fn scores_of(&mut self, hidden: &[f32], need: &Need) -> Result<Vec<Kept>> {
        let screen = self.screen(need)?;
        let scores = match self.profile.take() {
            None => needed_logits(self.step(&mut Off), hidden.to_vec(), screen.as_ref(), need),
            Some(mut profile) => {
                let scores = needed_logits(self.step(&mut profile), hidden.to_vec(), screen.as_ref(), need);
                self.profile = Some(profile);
                scores
            }
        };
        let most = self.model.config.vocab_size / 2;
        if scores.iter().any(|(ids, _)| ids.as_ref().is_some_and(|ids| ids.len() > most)) {
            self.full_steps = FULL_STEPS;
        }
        Ok(scores.into_iter().map(|(ids, logits)| Kept { need: need.clone(), ids, logits }).collect())
    }

    /// The head's 8-bit copy, if it is of use for this step.
    fn screen(&mut self, need: &Need) -> Result<Option<Arc<Screen>>> {
        let model = Arc::clone(&self.model);
        if *need == Need::All || model.full_head || model.weights.head.as_linear().is_some() {
            return Ok(None);
        }
        self.partial_steps = self.partial_steps.saturating_add(1);
        self.full_steps = self.full_steps.saturating_sub(1);
        if self.full_steps > 0 {
            return Ok(None);
        }
        if let Some(screen) = model.screen.get() {
            return Ok(screen.clone());
        }
        if self.partial_steps < WORTH_A_COPY {
            return Ok(None);
        }
        let shape = (model.config.vocab_size, model.config.hidden);
        let screen = Screen::build(&model.weights.head, shape, model.float, &mut self.pool)?.map(Arc::new);
        // Another session may have been faster; both made the same.
        Ok(model.screen.get_or_init(|| screen).clone())
    }

    fn step<'a, O: Observer>(&'a mut self, observer: &'a mut O) -> Forward<'a, O> {
        Forward {
            model: &self.model,
            pool: &mut self.pool,
            cache: &mut self.cache,
            rope: &mut self.rope,
            skipped: &mut self.skipped,
            scratch: &mut self.scratch,
            observer,
        }
    }
}

/// Steps that read the whole head before its copy is made. Making it takes as long as some 40 steps save (2B-4T shape,
/// two AVX2 cores: 0.75 s, and 16 ms less for a step), so a short answer is better off without.
const WORTH_A_COPY: u32 = 24;

/// For so many steps the whole head is read after the copy left more than half of the rows.
const FULL_STEPS: u32 = 32;

fn all_logits<O: Observer>(mut step: Forward<'_, O>, hidden: Vec<f32>, n_tokens: usize) -> Vec<f32> {
    let hidden = step.output_norm(hidden);
    step.logits(hidden, n_tokens)
}

/// Of each hidden state at least the logits that are needed, and whose they are if not all tokens'.
fn needed_logits<O: Observer>(
    mut step: Forward<'_, O>,
    hidden: Vec<f32>,
    screen: Option<&Arc<Screen>>,
    need: &Need,
) -> Vec<(Option<Vec<u32>>, Vec<f32>)> {
    let hidden = step.output_norm(hidden);
    let (width, vocab) = (step.model.config.hidden, step.model.config.vocab_size);
    let n = hidden.len() / width;
    let chosen = screen.map(|screen| step.chosen_logits(screen, &hidden, need)).unwrap_or_default();
    if chosen.iter().all(Option::is_none) {
        return step.logits(hidden, n).chunks(vocab).map(|logits| (None, logits.to_vec())).collect();
    }
    let states = chosen.into_iter().zip(hidden.chunks_exact(width));
    let scores = states.map(|(chosen, state)| match chosen {
        Some((ids, logits)) => (Some(ids), logits),
        None => (None, step.logits(state.to_vec(), 1)),
    });
    scores.collect()
}

fn chunk_or_default(chunk: usize) -> usize {
    if chunk == 0 { DEFAULT_CHUNK } else { chunk }
}

fn finite(logits: &[f32], position: usize) -> Result<()> {
    if logits.iter().all(|logit| logit.is_finite()) { Ok(()) } else { Err(Error::NonFiniteLogits { position }) }
}
