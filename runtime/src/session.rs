//! One sequence on its way through a model: its tokens, its cache, its threads.

use crate::error::{Error, Result};
use crate::forward::{Forward, RopeTables};
use crate::kv_cache::KvCache;
use crate::model::Inner;
use crate::profile::{Observer, Off, Profile};
use crate::skipped::Skipped;
use crate::threads::Pool;
use std::sync::Arc;

/// How many prompt tokens go through the layers at once when the caller does not say.
pub const DEFAULT_CHUNK: usize = 128;

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
    skipped: Skipped,
    /// While there is one, the parts of the work are timed.
    pub(crate) profile: Option<Profile>,
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
            skipped: Skipped::default(),
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
        self.check(&[token])?;
        let hidden = self.forward(&[token])?;
        self.logits = self.head(hidden, 1);
        finite(&self.logits, self.tokens.len() - 1)?;
        Ok(&self.logits)
    }

    /// The logits after the last token fed; empty before the first.
    #[must_use]
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The log-probability of `token` after the last token fed, before any sampling setting.
    ///
    /// # Panics
    /// No token was fed, or `token` is outside the vocabulary.
    #[must_use]
    pub fn logprob(&self, token: u32) -> f32 {
        self.log_softmax(&self.logits, token)
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
            None => self.step(&mut Off).logits(hidden, n_tokens),
            Some(mut profile) => {
                let logits = self.step(&mut profile).logits(hidden, n_tokens);
                self.profile = Some(profile);
                logits
            }
        }
    }

    fn step<'a, O: Observer>(&'a mut self, observer: &'a mut O) -> Forward<'a, O> {
        Forward {
            model: &self.model,
            pool: &mut self.pool,
            cache: &mut self.cache,
            rope: &mut self.rope,
            skipped: &mut self.skipped,
            observer,
        }
    }
}

fn chunk_or_default(chunk: usize) -> usize {
    if chunk == 0 { DEFAULT_CHUNK } else { chunk }
}

fn finite(logits: &[f32], position: usize) -> Result<()> {
    if logits.iter().all(|logit| logit.is_finite()) { Ok(()) } else { Err(Error::NonFiniteLogits { position }) }
}
