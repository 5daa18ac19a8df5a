//! Several sequences on their way through a model together: a step reads the weights once for all of them.
//!
//! Who shares a step with a sequence changes none of its bits: every token is treated alone, whatever stands beside it.
//! Sequences share the memory of what they have in common ([`Sequence::fork`]), in pages of [`PAGE_TOKENS`] positions.

use crate::error::Result;
use crate::kv_cache::Span;
use crate::model::Model;
use crate::scores::Need;
use crate::session::finite;
use crate::skipped::Skipped;
use crate::steps::Steps;
use std::sync::Arc;
use tritone_kernels::float::ATTENTION_BLOCK;

pub use crate::steps::{LogSoftmax, Logits};

/// Positions of a page of the KV cache.
pub const PAGE_TOKENS: usize = ATTENTION_BLOCK;

/// Tokens and all that a model remembers of them.
#[derive(Debug)]
pub struct Sequence {
    tokens: Vec<u32>,
    span: Span,
}

impl Sequence {
    /// The tokens fed so far.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// A sequence that begins with the first `n` tokens of this one, which need not be computed again. It takes no
    /// memory of its own until tokens are fed to it, and then at most a page more than these.
    #[must_use]
    pub fn fork(&self, n: usize) -> Sequence {
        let tokens = self.tokens[..n.min(self.tokens.len())].to_vec();
        Sequence { span: Span::new(self.span.cache.fork(tokens.len())), tokens }
    }

    /// Numbers of its pages: shared pages have the same number.
    pub fn pages(&self) -> impl Iterator<Item = usize> {
        self.span.cache.pages()
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.span.cache.page_bytes()
    }
}

/// What a step does with a sequence.
#[derive(Debug)]
pub struct Feed<'a> {
    /// The sequence.
    pub sequence: &'a mut Sequence,
    /// Tokens that come next; at least one.
    pub tokens: &'a [u32],
    /// Which logits are wanted after the last of them, if any.
    pub need: Option<Need>,
}

/// Takes steps with any sequences of one model.
pub struct Batch {
    pub(crate) steps: Steps,
}

impl Batch {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system refuses a thread, or the model makes embeddings (see [`crate::embedding::Embedder`]).
    pub fn new(model: &Model) -> Result<Batch> {
        model.inner.has_logits()?;
        Ok(Batch { steps: Steps::new(Arc::clone(&model.inner))? })
    }

    /// An empty sequence.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence { tokens: Vec::new(), span: Span::new(self.steps.cache()) }
    }

    /// What turns the logits of a step, all of them, into log-probabilities with the bits of
    /// [`crate::session::Session::log_softmax`].
    #[must_use]
    pub fn log_softmax(&self, logits: &[f32]) -> LogSoftmax {
        self.steps.log_softmax(logits)
    }

    /// What was left out of products since the beginning.
    #[must_use]
    pub fn skipped(&self) -> Skipped {
        self.steps.skipped
    }

    /// Feeds all sequences and returns at least the logits that are needed, one result for each feed that needs some,
    /// in their order. They have the bits that [`crate::session::Session`] gives them.
    ///
    /// # Errors
    /// A feed without tokens, with an id outside the vocabulary, or with more than fit the model's context; nothing was
    /// fed then. Logits that are not finite are an error of one sequence only.
    pub fn step(&mut self, feeds: &mut [Feed<'_>]) -> Result<Vec<Result<Logits>>> {
        let limit = self.steps.model.config.context_length;
        for feed in &*feeds {
            self.steps.check(feed.tokens, feed.sequence.tokens.len(), limit)?;
        }
        if feeds.is_empty() {
            return Ok(Vec::new());
        }
        let mut tokens = Vec::new();
        let mut wanted = Vec::new();
        for feed in &mut *feeds {
            let span = &mut feed.sequence.span;
            (span.position, span.n_tokens) = (feed.sequence.tokens.len(), feed.tokens.len());
            tokens.extend_from_slice(feed.tokens);
            if let Some(need) = &feed.need {
                wanted.push((tokens.len() - 1, need.clone()));
            }
        }
        let spans = feeds.iter_mut().map(|feed| &mut feed.sequence.span).collect();
        let hidden = self.steps.layers(spans, &tokens)?;
        for feed in &mut *feeds {
            feed.sequence.tokens.extend_from_slice(feed.tokens);
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let width = self.steps.model.config.hidden;
        let states: Vec<f32> =
            wanted.iter().flat_map(|(token, _)| &hidden[token * width..(token + 1) * width]).copied().collect();
        let (_, needs): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let logits = self.steps.logits(&states, &needs)?;
        let positions = feeds.iter().filter(|feed| feed.need.is_some()).map(|feed| feed.sequence.tokens.len() - 1);
        Ok(logits.into_iter().zip(positions).map(|(one, at)| finite(&one.values, at).map(|()| one)).collect())
    }
}
