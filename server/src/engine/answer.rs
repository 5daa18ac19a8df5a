//! One answer: from the logits after its last token to its next token and text.

use super::inbox::Request;
use super::job::{Failure, FinishReason, Job, Logprobs, Token};
use super::masks::Constrained;
use crate::metrics::Metrics;
use tritone_runtime::batch::{Batch, Logits};
use tritone_runtime::model::Model;
use tritone_runtime::sampler::Sampler;
use tritone_runtime::scores::{Need, Scores};
use tritone_runtime::tokenizer::{StopStrings, Utf8Stream};

/// What answers have in common.
pub(super) struct World<'w> {
    pub(super) model: &'w Model,
    pub(super) batch: &'w Batch,
    pub(super) metrics: &'w Metrics,
    /// How many tokens a sequence can have.
    pub(super) context: usize,
}

/// The state of an answer, its keys and values apart.
pub(super) struct Answer {
    index: usize,
    sampler: Sampler,
    stop: StopStrings,
    utf8: Utf8Stream,
    is_constrained: bool,
    /// Nothing while it is away, to find what it allows next.
    constraint: Option<Constrained>,
    n_tokens: usize,
}

/// What an answer has chosen.
pub(super) enum Chosen {
    /// A token; with a reason it is the last one, and its text has all that was held back.
    Known(Token, Option<FinishReason>),
    /// A token of which the constraint has to say whether it is the last one.
    Unsure(Token, Constrained),
}

impl Answer {
    /// Answer `index` of a job at its beginning. A constraint, if it has one, is away.
    pub(super) fn new(request: &Request, index: usize, is_constrained: bool) -> Result<Answer, Failure> {
        let job = &request.job;
        let mut sampler = job.sampler.clone();
        sampler.seed = sampler.seed.wrapping_add(index as u64);
        let sampler = Sampler::new(sampler).map_err(|error| Failure::Invalid(error.to_string()))?;
        Ok(Answer {
            index,
            sampler,
            stop: request.stop.clone(),
            utf8: Utf8Stream::new(),
            is_constrained,
            constraint: None,
            n_tokens: 0,
        })
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// Whether its constraint has yet to say what may come next.
    pub(super) fn is_away(&self) -> bool {
        self.is_constrained && self.constraint.is_none()
    }

    /// Takes its constraint back; says whether anything may come next.
    pub(super) fn take_back(&mut self, constrained: Constrained) -> bool {
        let goes_on = !constrained.is_over();
        self.constraint = Some(constrained);
        goes_on
    }

    /// The logits without which the choice after `history` and then `token` could come out otherwise.
    ///
    /// A bias moves the logits of some tokens only. So the k best with it are among these and the `k + biases` best
    /// without.
    pub(super) fn need(&self, job: &Job, history: &[u32], token: u32) -> Need {
        if self.is_constrained || job.logprobs.is_some() {
            return Need::All;
        }
        let need = self.sampler.need_after(history, token);
        if job.logit_bias.is_empty() {
            return need;
        }
        match need {
            Need::Top { count, mut tokens } => {
                tokens.extend(job.logit_bias.iter().map(|(token, _)| token));
                Need::Top { count: count.saturating_add(job.logit_bias.len()), tokens }
            }
            // What is near the best one without a bias need not be with it.
            Need::All | Need::Within { .. } => Need::All,
        }
    }

    /// Chooses the next token after `history`, which is what `logits` are the logits after.
    pub(super) fn next(
        &mut self,
        world: &World<'_>,
        job: &Job,
        logits: &Logits,
        history: &[u32],
    ) -> Result<Chosen, Failure> {
        let scores = logits.scores();
        let id = self.choose(job, scores, history)?;
        let logprobs = match (job.logprobs, scores) {
            (Some(count), Scores::All(all)) => Some(logprobs(world.batch, all, id, count)),
            _ => None,
        };
        self.n_tokens += 1;
        let tokenizer = world.model.tokenizer();
        // Nothing comes after the end of what a constraint describes.
        let ends = tokenizer.is_end(id) && (!job.ignore_eos || self.is_constrained);
        let mut text = String::new();
        if !ends {
            text = self.stop.push(&self.utf8.push(tokenizer.token_bytes(id)));
        }
        let mut token = Token { answer: self.index, id, text, logprobs };
        let reason = if ends || self.stop.stopped() {
            Some(FinishReason::Stop)
        } else if job.max_tokens.is_some_and(|most| self.n_tokens >= most) || history.len() >= world.context {
            Some(FinishReason::Length)
        } else if let Some(constrained) = self.constraint.take() {
            return Ok(Chosen::Unsure(token, constrained));
        } else {
            None
        };
        if reason.is_some() {
            self.complete(&mut token);
        }
        Ok(Chosen::Known(token, reason))
    }

    /// Adds the text that was held back to the last token.
    pub(super) fn complete(&mut self, token: &mut Token) {
        if !self.stop.stopped() {
            let held = self.utf8.finish();
            token.text.push_str(&self.stop.push(&held));
            token.text.push_str(&self.stop.finish());
        }
    }

    fn choose(&mut self, job: &Job, scores: Scores<'_>, history: &[u32]) -> Result<u32, Failure> {
        let Answer { sampler, constraint, .. } = self;
        let chosen = if constraint.is_none() && job.logit_bias.is_empty() {
            sampler.choose(scores, history)
        } else {
            let allowed = |id: u32| constraint.as_ref().is_none_or(|constraint| constraint.allows(id));
            let (ids, mut logits): (Vec<u32>, Vec<f32>) = scores.iter().filter(|(id, _)| allowed(*id)).unzip();
            for (token, bias) in &job.logit_bias {
                if let Ok(at) = ids.binary_search(token) {
                    logits[at] += bias;
                }
            }
            sampler.choose(Scores::Some { ids: &ids, logits: &logits, vocab_size: scores.vocab_size() }, history)
        };
        chosen.map_err(|error| Failure::Internal(error.to_string()))
    }
}

/// Log-probabilities of a token and of the likeliest, under all logits.
fn logprobs(batch: &Batch, logits: &[f32], chosen: u32, count: usize) -> Logprobs {
    let softmax = batch.log_softmax(logits);
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let falling = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count < ids.len() {
        ids.select_nth_unstable_by(count, falling);
        ids.truncate(count);
    }
    ids.sort_unstable_by(falling);
    let top = ids.into_iter().map(|id| (id, softmax.of(logits[id as usize]))).collect();
    Logprobs { chosen: softmax.of(logits[chosen as usize]), top }
}
