//! How well a model predicts a text, and how far two models are apart.
//!
//! A text longer than the context is cut into windows ([`Windows`]); [`score`] feeds one and gives
//! the negative log-likelihood of each of its tokens, [`Likelihood`] sums them up. [`Comparison`]
//! does the same for two sets of logits and measures their distance.
//!
//! ```
//! use tritone_runtime::evaluate::{Cut, Likelihood, Windows};
//!
//! let windows = Windows::new(1100, 512, Cut::SecondHalves)?;
//! assert_eq!(windows.len(), 2);
//! assert_eq!((windows.get(1).tokens, windows.get(1).scored), (512..1024, 769..1024));
//!
//! let mut likelihood = Likelihood::default();
//! likelihood.add(std::f64::consts::LN_2, 4);
//! assert_eq!(likelihood.perplexity(), Some(2.0));
//! assert_eq!(likelihood.bits_per_byte(), Some(0.25));
//! # Ok::<(), tritone_runtime::error::Error>(())
//! ```

mod likelihood;

pub use likelihood::{Likelihood, Scorer};

use crate::error::{Error, Result};
use crate::session::Session;
use std::ops::Range;

/// How a text is cut into windows, and which tokens of a window are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Whole chunks of the context's length, one after the other; what is left at the end is not
    /// used. With `first = context / 2`, the logits after a chunk's tokens `first` to `context - 2`
    /// score its tokens `first + 1` to `context - 1`. This is the definition of llama.cpp's
    /// `perplexity` program, and so of most published figures.
    SecondHalves,
    /// Windows that move on by this many tokens. Each token of the text but the first is scored
    /// once: in the first window all, in a later one the new ones, which have at least
    /// `context - stride` tokens before them. The last window may be shorter.
    Sliding(usize),
}

/// A part of a text that is fed at once. Both ranges count tokens of the text from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens that the model sees.
    pub tokens: Range<usize>,
    /// Those of them that are scored; never the first.
    pub scored: Range<usize>,
}

/// The windows of a text.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    n_tokens: usize,
    context: usize,
    cut: Cut,
}

impl Windows {
    /// Cuts a text of `n_tokens` tokens into windows of at most `context`.
    ///
    /// # Errors
    /// `InvalidOption` for a context or a stride that scores nothing, and for a text that is too
    /// short for a single token to be scored.
    pub fn new(n_tokens: usize, context: usize, cut: Cut) -> Result<Windows> {
        let (least_context, needed, unit) = match cut {
            Cut::SecondHalves => (3, context, format!("one chunk of {context}")),
            Cut::Sliding(_) => (2, 2, "one token to be predicted from another".to_owned()),
        };
        if context < least_context {
            return Err(invalid(
                "--ctx",
                context,
                format!("it must be at least {least_context} for a token to be scored"),
            ));
        }
        if let Cut::Sliding(stride) = cut
            && !(1..context).contains(&stride)
        {
            return Err(invalid(
                "--stride",
                stride,
                format!("it must be from 1 to {}, below the context", context - 1),
            ));
        }
        if n_tokens < needed {
            return Err(invalid(
                "the text's number of tokens",
                n_tokens,
                format!("{needed} are needed for {unit}; give a longer text or a smaller --ctx"),
            ));
        }
        Ok(Windows { n_tokens, context, cut })
    }

    /// How many windows there are, at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "there is always a window")]
    pub fn len(&self) -> usize {
        match self.cut {
            Cut::SecondHalves => self.n_tokens / self.context,
            Cut::Sliding(stride) => 1 + self.n_tokens.saturating_sub(self.context).div_ceil(stride),
        }
    }

    /// Window `i`.
    ///
    /// # Panics
    /// There are not that many.
    #[must_use]
    pub fn get(&self, i: usize) -> Window {
        assert!(i < self.len(), "window {i} of {}", self.len());
        match self.cut {
            Cut::SecondHalves => {
                let (start, end) = (i * self.context, (i + 1) * self.context);
                Window { tokens: start..end, scored: start + self.context / 2 + 1..end }
            }
            Cut::Sliding(stride) => {
                let start = i * stride;
                let end = (start + self.context).min(self.n_tokens);
                let known = if i == 0 { 1 } else { self.context - stride };
                Window { tokens: start..end, scored: start + known..end }
            }
        }
    }

    /// The windows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Window> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }
}

fn invalid(option: &'static str, value: usize, rule: String) -> Error {
    Error::InvalidOption { option, value: value.to_string(), rule }
}

/// Feeds the tokens of a window to an emptied session and calls `each(index, nll)` for every scored
/// token, `index` counting in the text and `nll` being `-ln` of the probability that the model gave
/// it. `begin`, the begin-of-text token of models that expect one, takes the place of the window's
/// first token. The results do not depend on `chunk`, see [`Session::prefill`].
///
/// # Errors
/// As [`Session::prefill_all`].
///
/// # Panics
/// The window is not within the text, or scores its first token or none.
pub fn score(
    session: &mut Session,
    text: &[u32],
    window: &Window,
    begin: Option<u32>,
    chunk: usize,
    each: &mut dyn FnMut(usize, f64),
) -> Result<()> {
    let mut scorer = Scorer::new(session.model().isa());
    feed(session, text, window, begin, chunk, &mut |index, logits| each(index, scorer.nll(logits, text[index])))
}

/// Feeds a window as [`score`] does and calls `each(index, logits that predict token index)`.
fn feed(
    session: &mut Session,
    text: &[u32],
    window: &Window,
    begin: Option<u32>,
    chunk: usize,
    each: &mut dyn FnMut(usize, &[f32]),
) -> Result<()> {
    let vocab = session.model().config().vocab_size;
    if let Some(bad) = text[window.tokens.clone()].iter().find(|id| **id as usize >= vocab) {
        let rule = format!("it must be below {vocab}, the size of this model's vocabulary");
        return Err(Error::InvalidOption { option: "a token id", value: bad.to_string(), rule });
    }
    let (fed, first) = fed(text, window, begin);
    session.truncate(0);
    let (before, rest) = fed.split_at(first);
    if !before.is_empty() {
        session.prefill(before, chunk)?;
    }
    session.prefill_all(rest, chunk, &mut |i, logits| each(window.scored.start + i, logits))
}

/// The tokens of a window that are to be fed, and the number of the first whose logits are scored.
fn fed(text: &[u32], window: &Window, begin: Option<u32>) -> (Vec<u32>, usize) {
    let Window { tokens, scored } = window;
    assert!(tokens.start < scored.start && scored.start < scored.end && scored.end <= tokens.end, "{window:?}");
    // What comes after the last scored token is nobody's question.
    let mut fed = text[tokens.start..scored.end - 1].to_vec();
    if let Some(begin) = begin {
        fed[0] = begin;
    }
    (fed, scored.start - 1 - tokens.start)
}

/// Tokens that go through two models in turn: enough for a good speed, and few enough for their
/// logits to be held (34 MB with 128,256 of them).
const COMPARED_AT_ONCE: usize = 64;

/// Feeds the same window to two models with vocabularies of the same size and adds every scored
/// position to `comparison`; `bytes(token)` says how much text a token stands for. `begin` is as in
/// [`score`].
///
/// # Errors
/// As [`Session::prefill_all`], for either model.
///
/// # Panics
/// As [`score`], and if the models have different numbers of logits.
pub fn compare(
    [a, b]: [&mut Session; 2],
    text: &[u32],
    window: &Window,
    begin: Option<u32>,
    bytes: &dyn Fn(u32) -> usize,
    comparison: &mut Comparison,
) -> Result<()> {
    let (fed, first) = fed(text, window, begin);
    a.truncate(0);
    b.truncate(0);
    let mut position = 0;
    for part in fed.chunks(COMPARED_AT_ONCE) {
        let mut held = Vec::new();
        a.prefill_all(part, 0, &mut |_, logits| held.extend_from_slice(logits))?;
        let vocab = held.len() / part.len();
        b.prefill_all(part, 0, &mut |i, logits| {
            if position + i >= first {
                let next = text[window.tokens.start + position + i + 1];
                comparison.add(&held[i * vocab..(i + 1) * vocab], logits, next, bytes(next));
            }
        })?;
        position += part.len();
    }
    Ok(())
}

/// How far the logits of a model B are from those of a model A, over many positions. Sums run in
/// `f64`, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    positions: u64,
    logits: u64,
    identical_positions: u64,
    same_top: u64,
    largest: f64,
    sum: f64,
    sum_of_squares: f64,
    sum_of_squares_a: f64,
    kl_sum: f64,
    kl_largest: f64,
    a: Likelihood,
    b: Likelihood,
}

impl Comparison {
    /// Adds the logits of both at one position, the token that follows in the text, and how many
    /// bytes of text it stands for.
    ///
    /// # Panics
    /// There are no logits, not equally many, or `next` has none.
    pub fn add(&mut self, a: &[f32], b: &[f32], next: u32, bytes: usize) {
        assert_eq!(a.len(), b.len(), "vocabularies of one size");
        self.positions += 1;
        self.logits += a.len() as u64;
        let mut same_bits = true;
        for (&a, &b) in a.iter().zip(b) {
            let (difference, a_wide) = ((f64::from(a) - f64::from(b)).abs(), f64::from(a));
            same_bits &= a.to_bits() == b.to_bits();
            self.largest = self.largest.max(difference);
            self.sum += difference;
            self.sum_of_squares += difference * difference;
            self.sum_of_squares_a += a_wide * a_wide;
        }
        self.identical_positions += u64::from(same_bits);
        let (top_a, top_b) = (top(a), top(b));
        self.same_top += u64::from(top_a == top_b);

        // sum of p (ln p - ln q), with ln p = a - max - ln(sum of exp(a - max)).
        let (max_a, max_b) = (f64::from(a[top_a]), f64::from(b[top_b]));
        let (sum_a, sum_b) = (exp_sum(a, max_a), exp_sum(b, max_b));
        let (norm_a, norm_b) = (max_a + libm::log(sum_a), max_b + libm::log(sum_b));
        let terms = a.iter().zip(b).map(|(&a, &b)| {
            let (ln_p, ln_q) = (f64::from(a) - norm_a, f64::from(b) - norm_b);
            libm::exp(ln_p) * (ln_p - ln_q)
        });
        // It is never negative but for rounding.
        let kl = terms.sum::<f64>().max(0.0);
        self.kl_sum += kl;
        self.kl_largest = self.kl_largest.max(kl);
        self.a.add(norm_a - f64::from(a[next as usize]), bytes);
        self.b.add(norm_b - f64::from(b[next as usize]), bytes);
    }

    /// Positions added.
    #[must_use]
    pub fn positions(&self) -> u64 {
        self.positions
    }

    /// Positions whose logits are the same, bit for bit.
    #[must_use]
    pub fn identical_positions(&self) -> u64 {
        self.identical_positions
    }

    /// Whether all are.
    #[must_use]
    pub fn is_identical(&self) -> bool {
        self.identical_positions == self.positions
    }

    /// Largest `|a - b|` of a logit.
    #[must_use]
    pub fn largest_difference(&self) -> f64 {
        self.largest
    }

    /// Mean `|a - b|` of all logits; 0 without any.
    #[must_use]
    pub fn mean_difference(&self) -> f64 {
        self.sum / self.logits.max(1) as f64
    }

    /// Root of the mean of `(a - b)^2`; 0 without any.
    #[must_use]
    pub fn rms_difference(&self) -> f64 {
        (self.sum_of_squares / self.logits.max(1) as f64).sqrt()
    }

    /// Root of the mean of `a^2`: what differences are compared with; 0 without any.
    #[must_use]
    pub fn rms(&self) -> f64 {
        (self.sum_of_squares_a / self.logits.max(1) as f64).sqrt()
    }

    /// Mean Kullback-Leibler divergence `KL(A || B)` of the next-token probabilities, in nats; 0
    /// without any.
    #[must_use]
    pub fn mean_kl(&self) -> f64 {
        self.kl_sum / self.positions.max(1) as f64
    }

    /// The largest of them.
    #[must_use]
    pub fn largest_kl(&self) -> f64 {
        self.kl_largest
    }

    /// Positions at which both find the same token likeliest (of equals the one with the lower id).
    #[must_use]
    pub fn same_top(&self) -> u64 {
        self.same_top
    }

    /// How well A predicted the text.
    #[must_use]
    pub fn a(&self) -> &Likelihood {
        &self.a
    }

    /// How well B predicted it.
    #[must_use]
    pub fn b(&self) -> &Likelihood {
        &self.b
    }
}

/// Where the largest logit is.
fn top(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best
}

fn exp_sum(logits: &[f32], max: f64) -> f64 {
    logits.iter().map(|&logit| libm::exp(f64::from(logit) - max)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, Model, Source};
    use std::f64::consts::LN_2;
    use std::path::PathBuf;

    fn model() -> Model {
        let path = "tests/data/models/bitnet-relu2/model-i2_s.gguf";
        let source = Source::File(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path));
        Model::load(source, &LoadOptions::default(), &mut |_| {}).unwrap()
    }

    fn text(n: u32, vocab: usize) -> Vec<u32> {
        (0..n).map(|i| (i * i * 5 + i * 11 + 3) % vocab as u32).collect()
    }

    /// By the definition, in `f64`.
    fn naive_nll(logits: &[f32], token: u32) -> f64 {
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        sum.ln() - f64::from(logits[token as usize])
    }

    #[test]
    fn sliding_windows_score_every_token_once_with_enough_before_it() {
        for n in 2..40 {
            for context in 2..12 {
                for stride in 1..context {
                    let windows = Windows::new(n, context, Cut::Sliding(stride)).unwrap();
                    let mut next = 1;
                    for window in windows.iter() {
                        assert_eq!(window.scored.start, next, "{n} {context} {stride}");
                        assert!(window.scored.end > next && window.tokens.len() <= context);
                        assert_eq!(window.scored.end, window.tokens.end);
                        let before = window.scored.start - window.tokens.start;
                        assert!(before >= context - stride || window.tokens.start == 0);
                        next = window.scored.end;
                    }
                    assert_eq!(next, n);
                }
            }
        }
    }

    #[test]
    fn second_halves_are_those_of_the_common_tool() {
        let windows = Windows::new(30, 8, Cut::SecondHalves).unwrap();
        let all: Vec<_> = windows.iter().map(|window| (window.tokens, window.scored)).collect();
        assert_eq!(all, [(0..8, 5..8), (8..16, 13..16), (16..24, 21..24)]);
        let odd = Windows::new(7, 7, Cut::SecondHalves).unwrap();
        assert_eq!(odd.get(0).scored, 4..7);
    }

    #[test]
    fn what_cannot_be_scored_is_refused_with_numbers() {
        let refused = |n, context, cut| Windows::new(n, context, cut).unwrap_err().to_string();
        let short = refused(500, 512, Cut::SecondHalves);
        assert!(short.contains("500") && short.contains("512 are needed"), "{short}");
        assert!(refused(1, 512, Cut::Sliding(100)).contains("2 are needed"));
        assert!(refused(100, 2, Cut::SecondHalves).contains("at least 3"));
        assert!(refused(100, 8, Cut::Sliding(8)).contains("from 1 to 7"));
        assert!(refused(100, 8, Cut::Sliding(0)).contains("from 1 to 7"));
    }

    #[test]
    fn scores_are_the_naive_ones() {
        let model = model();
        let text = text(50, model.config().vocab_size);
        let begin = Some(7);
        for cut in [Cut::SecondHalves, Cut::Sliding(5), Cut::Sliding(15)] {
            let mut session = model.session(None).unwrap();
            let mut likelihood = Likelihood::default();
            let mut expected = Vec::new();
            for window in Windows::new(text.len(), 16, cut).unwrap().iter() {
                score(&mut session, &text, &window, begin, 3, &mut |index, nll| {
                    let mut before = text[window.tokens.start..index].to_vec();
                    before[0] = 7;
                    let mut fresh = model.session(None).unwrap();
                    let naive = naive_nll(fresh.prefill(&before, 0).unwrap(), text[index]);
                    assert!((nll - naive).abs() < 1e-5, "{cut:?} token {index}: {nll} {naive}");
                    likelihood.add(nll, 3);
                    expected.push(naive);
                })
                .unwrap();
            }
            assert_eq!(expected.len(), if cut == Cut::SecondHalves { 21 } else { 49 });
            let n = expected.len() as f64;
            let mean = expected.iter().sum::<f64>() / n;
            let variance = expected.iter().map(|nll| (nll - mean).powi(2)).sum::<f64>() / n;
            let error = mean.exp() * (variance / (n - 1.0)).sqrt();
            assert!((likelihood.perplexity().unwrap() / mean.exp() - 1.0).abs() < 1e-5);
            assert!((likelihood.standard_error().unwrap() / error - 1.0).abs() < 1e-4);
            assert!((likelihood.bits_per_byte().unwrap() - mean / LN_2 / 3.0).abs() < 1e-5);
        }
    }

    #[test]
    fn ids_outside_the_vocabulary_are_refused() {
        let model = model();
        let mut session = model.session(None).unwrap();
        let window = Window { tokens: 0..3, scored: 1..3 };
        let error = score(&mut session, &[1, 2, u32::MAX], &window, None, 0, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("below"), "{error}");
    }

    #[test]
    fn a_model_is_identical_with_itself() {
        let model = model();
        let text = text(100, model.config().vocab_size);
        let mut sessions = [model.session(None).unwrap(), model.session(None).unwrap()];
        let mut comparison = Comparison::default();
        let window = Window { tokens: 0..100, scored: 40..100 };
        compare(sessions.each_mut(), &text, &window, None, &|_| 1, &mut comparison).unwrap();
        assert!(comparison.is_identical());
        assert_eq!((comparison.positions(), comparison.same_top(), comparison.a().bytes()), (60, 60, 60));
        assert_eq!((comparison.largest_difference(), comparison.largest_kl()), (0.0, 0.0));
        let mut likelihood = Likelihood::default();
        score(&mut sessions[0], &text, &window, None, 0, &mut |_, nll| likelihood.add(nll, 1)).unwrap();
        let difference = likelihood.mean_nll().unwrap() - comparison.b().mean_nll().unwrap();
        assert!(difference.abs() < 1e-5, "{difference}");
    }

    #[test]
    fn differences_are_those_by_hand() {
        let mut comparison = Comparison::default();
        // Probabilities 1/2, 1/4, 1/4 against 1/4, 1/4, 1/2, with other offsets.
        let ln = |p: f64| p.ln() as f32;
        comparison.add(&[ln(0.5), ln(0.25), ln(0.25)], &[ln(0.25), ln(0.25), ln(0.5)], 2, 1);
        let kl = 0.5 * 2f64.ln() - 0.25 * 2f64.ln();
        assert!((comparison.mean_kl() - kl).abs() < 1e-7, "{}", comparison.mean_kl());
        assert_eq!((comparison.same_top(), comparison.identical_positions()), (0, 0));
        assert!((comparison.largest_difference() - 2f64.ln()).abs() < 1e-6);
        assert!((comparison.mean_difference() - 2.0 * 2f64.ln() / 3.0).abs() < 1e-6);
        assert!((comparison.a().perplexity().unwrap() - 4.0).abs() < 1e-5);
        assert!((comparison.b().perplexity().unwrap() - 2.0).abs() < 1e-5);
        comparison.add(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], 0, 1);
        assert_eq!((comparison.same_top(), comparison.identical_positions()), (1, 1));
        assert!(!comparison.is_identical());
    }
}
