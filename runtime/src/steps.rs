//! What every step through a model needs beside the sequences themselves: threads, tables, memory.

use crate::error::{Error, Result};
use crate::feed_forward::PositiveGates;
use crate::forward::Forward;
use crate::kv_cache::{KvCache, Span};
use crate::model::Inner;
use crate::profile::{Observer, Off, Profile};
use crate::rope::RopeTables;
use crate::scores::{Need, Scores};
use crate::scratch::Scratch;
use crate::screen::Screen;
use crate::skipped::Skipped;
use crate::threads::Pool;
use std::ops::Range;
use std::sync::Arc;

/// The step that makes the head's copy. Making it takes as long as seven to ten steps save (2B-4T shape, a Zen 5: 0.10 s with two
/// threads and 0.19 to 0.33 with one, AVX2 0.13 and 0.26 to 0.36, and 13 and 30 ms less for a step). An answer of a token or two
/// is better off without; one that goes on is likely to be long.
const WORTH_A_COPY: u32 = 3;

/// For so many steps the whole head is read after the copy left more than half of the rows.
const FULL_STEPS: u32 = 32;

/// Logits after a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Whose these are, rising, if not all tokens'.
    pub(crate) ids: Option<Vec<u32>>,
    pub(crate) values: Vec<f32>,
    pub(crate) vocab_size: usize,
}

impl Logits {
    /// Which tokens' logits there are, and these.
    #[must_use]
    pub fn scores(&self) -> Scores<'_> {
        match &self.ids {
            None => Scores::All(&self.values),
            Some(ids) => Scores::Some { ids, logits: &self.values, vocab_size: self.vocab_size },
        }
    }
}

/// Turns logits of one step into log-probabilities (natural logarithm).
#[derive(Clone, Copy, Debug)]
pub struct LogSoftmax {
    max: f64,
    log_sum: f64,
}

impl LogSoftmax {
    /// The log-probability of a token with this logit.
    #[must_use]
    pub fn of(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.max - self.log_sum) as f32
    }
}

pub(crate) struct Steps {
    pub(crate) model: Arc<Inner>,
    pool: Pool,
    rope: Arc<RopeTables>,
    /// Whether there was a step, so that nobody waits for the first token.
    began: bool,
    /// Steps that did not need all logits.
    partial_steps: u32,
    /// Steps to go for which the whole head is read, since the copy left too many rows.
    full_steps: u32,
    pub(crate) skipped: Skipped,
    /// Tells whether gates of a prompt are worth looking at.
    gates: PositiveGates,
    scratch: Scratch,
    /// While there is one, the parts of the work are timed.
    pub(crate) profile: Option<Profile>,
}

impl Steps {
    pub(crate) fn new(model: Arc<Inner>) -> Result<Steps> {
        Ok(Steps {
            pool: Pool::new(model.n_threads)?,
            rope: Arc::new(RopeTables::new(&model.config, model.weights.rope_factors.clone())),
            began: false,
            partial_steps: 0,
            full_steps: 0,
            skipped: Skipped::default(),
            gates: PositiveGates::new(),
            scratch: Scratch::default(),
            profile: None,
            model,
        })
    }

    /// The log-probabilities under all logits of a step.
    pub(crate) fn log_softmax(&self, logits: &[f32]) -> LogSoftmax {
        let partial = self.model.float.softmax(&mut logits.to_vec());
        LogSoftmax { max: f64::from(partial.max), log_sum: libm::log(f64::from(partial.sum)) }
    }

    /// An empty cache for a sequence.
    pub(crate) fn cache(&self) -> KvCache {
        let config = &self.model.config;
        KvCache::new(config.n_layers, config.n_kv_heads, config.head_dim, self.model.cache_type)
    }

    /// The last token and those before it, once they are known to be acceptable after `position` others in a context of
    /// so many.
    pub(crate) fn check<'t>(&self, tokens: &'t [u32], position: usize, context: usize) -> Result<(u32, &'t [u32])> {
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
        let needed = position + tokens.len();
        if needed > context {
            return Err(Error::PromptTooLong { tokens: needed, context, limit: self.model.config.context_length });
        }
        Ok((last, before))
    }

    /// The hidden states `[token][hidden]` after the last layer of `tokens`, those of the spans one after the other.
    pub(crate) fn layers(&mut self, spans: Vec<&mut Span>, tokens: &[u32]) -> Result<Vec<f32>> {
        if std::mem::replace(&mut self.began, true) {
            self.move_weights();
        }
        match self.profile.take() {
            None => self.forward(spans, &mut Off).layers(tokens),
            Some(mut profile) => {
                let hidden = self.forward(spans, &mut profile).layers(tokens);
                self.profile = Some(profile);
                hidden
            }
        }
    }

    /// Moves weights of some layers to large pages, if there are such layers left.
    fn move_weights(&mut self) {
        let layers = self.model.weights.next_to_move(self.pool.n_threads());
        if !layers.is_empty() {
            let input = (Arc::clone(&self.model), layers.start);
            let moved = |(model, first): &(Arc<Inner>, usize), items: Range<usize>, _: &mut Vec<()>| {
                let layers = &model.weights.layers[*first..];
                items.for_each(|item| layers[item].move_to_large_pages());
            };
            self.pool.run(input, layers.len(), 1, moved, |_, _| {});
        }
    }

    /// All logits `[token][vocab_size]` of hidden states.
    pub(crate) fn all_logits(&mut self, hidden: Vec<f32>) -> Vec<f32> {
        match self.profile.take() {
            None => all_logits(self.forward(Vec::new(), &mut Off), hidden),
            Some(mut profile) => {
                let logits = all_logits(self.forward(Vec::new(), &mut profile), hidden);
                self.profile = Some(profile);
                logits
            }
        }
    }

    /// For each hidden state at least the logits that are needed of it.
    pub(crate) fn logits(&mut self, hidden: &[f32], needs: &[Need]) -> Result<Vec<Logits>> {
        let width = self.model.config.hidden;
        let mut logits: Vec<Option<Logits>> = vec![None; needs.len()];
        for same in kinds(needs) {
            let Some(need) = Need::of_all(same.iter().map(|i| &needs[*i])) else { continue };
            let screen = self.screen(&need)?;
            let states = same.iter().flat_map(|i| &hidden[i * width..(i + 1) * width]).copied().collect();
            let some = match self.profile.take() {
                None => needed_logits(self.forward(Vec::new(), &mut Off), states, screen.as_ref(), &need),
                Some(mut profile) => {
                    let step = self.forward(Vec::new(), &mut profile);
                    let some = needed_logits(step, states, screen.as_ref(), &need);
                    self.profile = Some(profile);
                    some
                }
            };
            for (i, one) in same.into_iter().zip(some) {
                logits[i] = Some(one);
            }
        }
        let most = self.model.config.vocab_size / 2;
        let logits: Vec<Logits> = logits.into_iter().map(|one| one.expect("each need is of one kind")).collect();
        if logits.iter().any(|one| one.ids.as_ref().is_some_and(|ids| ids.len() > most)) {
            self.full_steps = FULL_STEPS;
        }
        Ok(logits)
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
        let screen = Screen::build(&model.weights.head, shape, model.float, model.isa, &mut self.pool)?.map(Arc::new);
        // Another session may have been faster; both made the same.
        Ok(model.screen.get_or_init(|| screen).clone())
    }

    fn forward<'a, O: Observer>(&'a mut self, spans: Vec<&'a mut Span>, observer: &'a mut O) -> Forward<'a, O> {
        Forward {
            model: &self.model,
            pool: &mut self.pool,
            spans,
            rope: &mut self.rope,
            skipped: &mut self.skipped,
            gates: &mut self.gates,
            scratch: &mut self.scratch,
            observer,
        }
    }
}

/// Which needs can be met together: all logits, the largest ones, and those near the largest.
fn kinds(needs: &[Need]) -> [Vec<usize>; 3] {
    let mut kinds = [const { Vec::new() }; 3];
    for (i, need) in needs.iter().enumerate() {
        let kind = match need {
            Need::All => 0,
            Need::Top { .. } => 1,
            Need::Within { .. } => 2,
        };
        kinds[kind].push(i);
    }
    kinds
}

fn all_logits<O: Observer>(mut step: Forward<'_, O>, hidden: Vec<f32>) -> Vec<f32> {
    let n_tokens = hidden.len() / step.model.config.hidden;
    let hidden = step.output_norm(hidden);
    step.logits(hidden, n_tokens)
}

/// Of each hidden state at least the logits that are needed, and whose they are if not all tokens'.
fn needed_logits<O: Observer>(
    mut step: Forward<'_, O>,
    hidden: Vec<f32>,
    screen: Option<&Arc<Screen>>,
    need: &Need,
) -> Vec<Logits> {
    let hidden = step.output_norm(hidden);
    let (width, vocab_size) = (step.model.config.hidden, step.model.config.vocab_size);
    let n = hidden.len() / width;
    let chosen = screen.map(|screen| step.chosen_logits(screen, &hidden, need)).unwrap_or_default();
    if chosen.iter().all(Option::is_none) {
        let logits = step.logits(hidden, n);
        return logits.chunks(vocab_size).map(|all| Logits { ids: None, values: all.to_vec(), vocab_size }).collect();
    }
    let states = chosen.into_iter().zip(hidden.chunks_exact(width));
    let scores = states.map(|(chosen, state)| match chosen {
        Some(chosen) => Logits { ids: Some(chosen.ids), values: chosen.logits, vocab_size },
        None => Logits { ids: None, values: step.logits(state.to_vec(), 1), vocab_size },
    });
    scores.collect()
}
