//! Texts to vectors: embedding models, and any other model as far as it goes.
//!
//! All tokens of a text go through the layers; their hidden states after the last norm are pooled as the model was
//! trained ([`Pooling`]) and scaled to length 1. Several texts share a step, which reads the weights once for all of
//! them. A vector depends on its text alone, bit for bit: the tokens of a mean are added in their order, the squares of
//! the length in the order of all long sums.
//!
//! A model that generates text can be pooled too: the mean of its hidden states, with a warning
//! ([`Embedder::warning`]), since nobody trained them for that.

use crate::config::Pooling;
use crate::error::{Error, Place, Result};
use crate::kv_cache::Span;
use crate::model::{Inner, Model};
use crate::steps::Steps;
use crate::tokenizer::SpecialTokens;
use std::sync::Arc;

/// The least length that a vector is divided by, as everybody has it.
const LEAST_LENGTH: f32 = 1e-12;

/// How texts become vectors; the default is what the model says.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmbedOptions {
    /// How tokens become one vector; `None`: as the model was trained, or the mean if it was not.
    pub pooling: Option<Pooling>,
    /// The most tokens of a text; `None`: as many as the model was made for.
    pub context_length: Option<usize>,
    /// How many tokens go through the layers at once (0: [`prompt_chunk`](tritone_kernels::registry::prompt_chunk)); it changes
    /// no bit.
    pub chunk: usize,
}

/// Makes vectors of texts with one model.
pub struct Embedder {
    steps: Steps,
    pooling: Pooling,
    context_length: usize,
    chunk: usize,
    /// The token that comes behind each text.
    end: Option<u32>,
    warning: Option<String>,
}

/// A text on its way through the layers.
struct Begun {
    /// Which one.
    text: usize,
    span: Span,
    /// Sum of the hidden states that count, so far.
    pooled: Vec<f32>,
}

impl Embedder {
    /// Starts the threads.
    ///
    /// # Errors
    /// As [`Embedder::with_options`].
    pub fn new(model: &Model) -> Result<Embedder> {
        Embedder::with_options(model, &EmbedOptions::default())
    }

    /// The same with a choice of pooling, context and chunk.
    ///
    /// # Errors
    /// A context length that the model does not have, a model that pools its end token and does not name it, or the
    /// system refuses a thread.
    pub fn with_options(model: &Model, options: &EmbedOptions) -> Result<Embedder> {
        let config = model.config();
        let limit = config.context_length;
        let context_length = options.context_length.unwrap_or(limit);
        if context_length == 0 || context_length > limit {
            return Err(Error::InvalidOption {
                option: "the context length",
                value: context_length.to_string(),
                rule: format!("it must be from 1 to {limit}, what this model was made for"),
            });
        }
        let pooling = options.pooling.or(config.pooling).unwrap_or(Pooling::Mean);
        let tokenizer = model.tokenizer();
        // A model that was trained to pool the end token was trained with one behind each text.
        let ends = tokenizer.adds_eos() || config.pooling == Some(Pooling::Last);
        let end = tokenizer.eos().filter(|_| ends);
        if ends && end.is_none() {
            return Err(Error::Malformed {
                at: Box::new(Place::default().key("tokenizer.ggml.eos_token_id")),
                what: "the model makes vectors of the token that ends a text, but names no such token".to_owned(),
                fix: "convert the model again with a converter that writes the key",
            });
        }
        let warning = match (config.pooling, options.pooling) {
            (None, None) => Some(
                "this model was not trained for embeddings: what comes is the mean of its hidden states, \
                 which tells less about what a text means"
                    .to_owned(),
            ),
            (None, Some(_)) => Some("this model was not trained for embeddings".to_owned()),
            (Some(trained), Some(asked)) if trained != asked => {
                Some(format!("this model was trained to pool in another way ({trained})"))
            }
            (Some(_), _) => None,
        };
        let chunk = model.inner.chunk(options.chunk);
        let steps = Steps::new(Arc::clone(&model.inner))?;
        Ok(Embedder { steps, pooling, context_length, chunk, end, warning })
    }

    /// Elements of a vector.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.model().config.hidden
    }

    /// How tokens become one vector.
    #[must_use]
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// The most tokens that a text may have.
    #[must_use]
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// A sentence for the user, if the vectors are not what the model was trained to make.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The tokens of a text as the model was trained to see them, with those that begin and end it. Names of control
    /// tokens in the text are only text.
    #[must_use]
    pub fn tokens(&self, text: &str) -> Vec<u32> {
        let tokenizer = &self.model().tokenizer;
        let mut tokens = tokenizer.encode(text, SpecialTokens::Plain, tokenizer.adds_bos());
        tokens.extend(self.end);
        tokens
    }

    /// The vectors of some texts, each of length 1 and [`Embedder::dimensions`] elements.
    ///
    /// # Errors
    /// A text without tokens, with more than fit, or with an id outside the vocabulary; weights that make a vector
    /// that is not finite. No text has a vector then.
    pub fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        self.embed_with(texts, &mut |_| {})
    }

    /// As [`Embedder::embed`], and says after each step how many tokens more are done.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    pub fn embed_with(&mut self, texts: &[Vec<u32>], progress: &mut dyn FnMut(usize)) -> Result<Vec<Vec<f32>>> {
        for (text, tokens) in texts.iter().enumerate() {
            self.check(text + 1, tokens)?;
        }
        let mut vectors = vec![Vec::new(); texts.len()];
        let mut waiting = 0..texts.len();
        // A step takes what is left of the text that did not fit the one before, and then whole texts while they fit.
        let mut begun: Vec<Begun> = Vec::new();
        loop {
            let mut tokens = Vec::new();
            let mut taken = 0;
            while tokens.len() < self.chunk {
                if taken == begun.len() {
                    let Some(text) = waiting.next() else { break };
                    let span = Span::new(self.steps.cache());
                    begun.push(Begun { text, span, pooled: vec![0.0; self.dimensions()] });
                }
                let Begun { text, span, .. } = &mut begun[taken];
                let left = &texts[*text][span.position..];
                span.n_tokens = left.len().min(self.chunk - tokens.len());
                tokens.extend_from_slice(&left[..span.n_tokens]);
                taken += 1;
            }
            if tokens.is_empty() {
                return Ok(vectors);
            }
            let spans = begun.iter_mut().map(|one| &mut one.span).collect();
            let hidden = self.steps.layers(spans, &tokens)?;
            let mut states = hidden.chunks_exact(self.dimensions());
            let mut unfinished = Vec::with_capacity(1);
            for mut one in begun {
                let last = texts[one.text].len() - 1;
                for (position, state) in (one.span.position..).zip(states.by_ref().take(one.span.n_tokens)) {
                    self.pool(position, position == last, state, &mut one.pooled);
                }
                one.span.position += one.span.n_tokens;
                if one.span.position > last {
                    self.normalise(&mut one.pooled);
                    if !one.pooled.iter().all(|x| x.is_finite()) {
                        return Err(Error::NonFiniteLogits { position: last });
                    }
                    vectors[one.text] = one.pooled;
                } else {
                    unfinished.push(one);
                }
            }
            begun = unfinished;
            progress(tokens.len());
        }
    }

    /// The first elements of a vector, scaled to length 1 again: models trained for it say nearly as much with fewer.
    ///
    /// # Errors
    /// No dimensions, or more than the vector has.
    pub fn shorten(&self, vector: &[f32], dimensions: usize) -> Result<Vec<f32>> {
        if dimensions == 0 || dimensions > vector.len() {
            return Err(Error::InvalidOption {
                option: "the number of dimensions",
                value: dimensions.to_string(),
                rule: format!("it must be from 1 to {}, what this model's vectors have", vector.len()),
            });
        }
        let mut vector = vector[..dimensions].to_vec();
        self.normalise(&mut vector);
        Ok(vector)
    }

    /// How alike two vectors of length 1 are, from -1 to 1: the cosine of the angle between them.
    ///
    /// # Panics
    /// They differ in their number of elements.
    #[must_use]
    pub fn similarity(&self, a: &[f32], b: &[f32]) -> f32 {
        self.model().float.dot_f32(a, b)
    }

    fn model(&self) -> &Inner {
        &self.steps.model
    }

    /// Refuses text number `text`.
    fn check(&self, text: usize, tokens: &[u32]) -> Result<()> {
        match self.steps.check(tokens, 0, self.context_length) {
            Ok(_) => Ok(()),
            Err(Error::PromptTooLong { tokens, context, .. }) => Err(Error::TextTooLong { text, tokens, context }),
            Err(_) if tokens.is_empty() => Err(Error::EmptyText { text }),
            Err(other) => Err(other),
        }
    }

    /// Takes the hidden state of one token into account, in the order of the tokens.
    fn pool(&self, position: usize, is_last: bool, state: &[f32], pooled: &mut [f32]) {
        let counts = match self.pooling {
            Pooling::Mean => true,
            Pooling::First => position == 0,
            Pooling::Last => is_last,
        };
        if counts {
            let model = self.model();
            let mut normed = vec![0.0; state.len()];
            model.float.rms_norm(state, &model.weights.output_norm, model.config.rms_eps, &mut normed);
            // The sum does for the mean, as only the direction is kept.
            model.float.add_assign(pooled, &normed);
        }
    }

    fn normalise(&self, vector: &mut [f32]) {
        let length = self.model().float.dot_f32(vector, vector).sqrt();
        let length = if length < LEAST_LENGTH { LEAST_LENGTH } else { length };
        vector.iter_mut().for_each(|x| *x /= length);
    }
}
