//! Chooses the next token from the logits.
//!
//! A chain of small filters over a list of candidates, in the usual order: penalties, top-k, top-p, min-p, temperature,
//! draw. The result is the same on every platform: exponentials come from `libm`, sums are taken in a defined order
//! (that of the candidates: by falling logit where a filter has sorted them, by token id otherwise), equal logits are
//! ordered by token id, and the random numbers are our own.
//!
//! A candidate is one `u64`: the logit's bits, arranged so that integers compare as the floats do, above the complement of
//! the token id. One integer comparison then orders by falling logit and rising id, and no two candidates are equal.
//! Filters sort only as far as they need: 128 k logits are never sorted as a whole for a top-p of 0.95.

use std::collections::{BTreeSet, HashMap};

use crate::error::Error;
use crate::scores::{Need, Scores};

/// The settings of a [`Sampler`].
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// Divides the logits; 0 always takes the best token.
    pub temperature: f32,
    /// Keeps the k best tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest best tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this probable relative to the best; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens; 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many of the last tokens count as recent, for all three penalties; 0 turns them off.
    pub repeat_last_n: usize,
    /// Subtracted from a token's logit for each time it is among the recent ones.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of a recent token.
    pub presence_penalty: f32,
    /// Starts the random numbers: the same seed, the same tokens.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
        }
    }
}

/// Why settings or logits are refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// A setting outside its range.
    #[error("{name} is {value}; it must be {range}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// What was given.
        value: f32,
        /// What is allowed.
        range: &'static str,
    },
    /// A logit that is NaN or plus infinity.
    #[error("the logit of token {token} at position {position} is {value}: the model or its file is damaged")]
    Logit {
        /// The token's id.
        token: u32,
        /// The logit.
        value: f32,
        /// Number of tokens before this one.
        position: usize,
    },
    /// No logits at all, or all are minus infinity.
    #[error("no token at position {position} has a logit above minus infinity, so none can be chosen")]
    NoneLeft {
        /// Number of tokens before this one.
        position: usize,
    },
}

impl From<SamplerError> for Error {
    fn from(error: SamplerError) -> Self {
        match error {
            SamplerError::Setting { name, value, range } => {
                Error::InvalidOption { option: name, value: value.to_string(), rule: format!("it must be {range}") }
            }
            SamplerError::Logit { position, .. } | SamplerError::NoneLeft { position } => {
                Error::NonFiniteLogits { position }
            }
        }
    }
}

impl SamplerConfig {
    fn has_penalties(&self) -> bool {
        self.repeat_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`SamplerError::Setting`] for the first one that is not a number or outside its range.
    pub fn validate(&self) -> Result<(), SamplerError> {
        let from_zero = |x: f32| x.is_finite() && x >= 0.0;
        let within_one = |x: f32| (0.0..=1.0).contains(&x);
        // Far more than anyone wants, and too little to make a sound logit infinite.
        let bounded = |x: f32| (-100.0..=100.0).contains(&x);
        let checks = [
            ("temperature", self.temperature, from_zero(self.temperature), "0 or more, and finite"),
            ("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "more than 0 and at most 1"),
            ("min-p", self.min_p, within_one(self.min_p), "from 0 to 1"),
            ("repeat penalty", self.repeat_penalty, (0.01..=100.0).contains(&self.repeat_penalty), "from 0.01 to 100"),
            ("frequency penalty", self.frequency_penalty, bounded(self.frequency_penalty), "from -100 to 100"),
            ("presence penalty", self.presence_penalty, bounded(self.presence_penalty), "from -100 to 100"),
        ];
        match checks.into_iter().find(|check| !check.2) {
            Some((name, value, _, range)) => Err(SamplerError::Setting { name, value, range }),
            None => Ok(()),
        }
    }
}

/// Chooses tokens; holds the state of the random numbers and a buffer.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    random: Xoshiro256PlusPlus,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// Settings that [`SamplerConfig::validate`] refuses.
    pub fn new(config: SamplerConfig) -> Result<Self, SamplerError> {
        config.validate()?;
        let random = Xoshiro256PlusPlus::from_seed(config.seed);
        Ok(Self { config, random, candidates: Candidates::default() })
    }

    /// The settings.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// The logits without which the choice after `history` and then `token` could come out otherwise.
    ///
    /// Penalties move the logits of recent tokens only. So the k best after them are among the recent tokens and the
    /// `k + recent` best before them.
    #[must_use]
    pub fn need_after(&self, history: &[u32], token: u32) -> Need {
        let config = &self.config;
        let mut recent_tokens = BTreeSet::new();
        if config.has_penalties() {
            // One more than is recent then: it does no harm.
            recent_tokens.extend(recent(config, history));
            recent_tokens.insert(token);
        }
        let recent = recent_tokens;
        let top = |count: usize| Need::Top {
            count: count.saturating_add(recent.len()),
            tokens: recent.iter().copied().collect(),
        };
        if config.temperature == 0.0 {
            top(1)
        } else if config.top_k > 0 {
            top(config.top_k)
        } else if config.min_p > 0.0 && config.top_p >= 1.0 && recent.is_empty() {
            // Above the rounding of the filter's exponential and of its argument.
            Need::Within { below: 1e-3 - libm::logf(config.min_p) }
        } else {
            Need::All
        }
    }

    /// Chooses one token. `logits` holds one value per token id (at most 2^32); `history` the tokens so far, the last one at the end.
    ///
    /// # Errors
    /// No logits, a logit that is NaN or plus infinity, or none above minus infinity.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, SamplerError> {
        self.choose(Scores::All(logits), history)
    }

    /// Chooses one token from the scores that [`Sampler::need_after`] asked for: the same as from all of them.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn choose(&mut self, scores: Scores<'_>, history: &[u32]) -> Result<u32, SamplerError> {
        let Self { config, random, candidates } = self;
        candidates.fill(scores, history.len())?;
        candidates.penalise(config, history)?;
        if config.temperature == 0.0 {
            return candidates.best().map(|(id, _)| id);
        }
        candidates.top_k(config.top_k);
        candidates.top_p(config.top_p)?;
        candidates.min_p(config.min_p)?;
        candidates.draw(config.temperature, random)
    }
}

/// The tokens that penalties are about.
fn recent<'h>(config: &SamplerConfig, history: &'h [u32]) -> &'h [u32] {
    &history[history.len() - config.repeat_last_n.min(history.len())..]
}

/// A float's bits in the order of its value; -0 is taken for 0.
fn order(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

fn key(id: u32, logit: f32) -> u64 {
    u64::from(order(logit)) << 32 | u64::from(!id)
}

fn id_of(key: u64) -> u32 {
    !(key as u32)
}

fn logit_of(key: u64) -> f32 {
    let bits = (key >> 32) as u32;
    f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits })
}

/// How probable a token is relative to one whose logit is `best`.
fn weight(logit: f32, best: f32) -> f32 {
    libm::expf(logit - best)
}

/// The tokens still in play.
#[derive(Debug, Clone, Default)]
struct Candidates {
    keys: Vec<u64>,
    /// How many tokens there are, those left out before included.
    all: usize,
    /// This many at the front are in falling order, and none after them is larger.
    sorted: usize,
    /// Number of tokens before this one, for error messages.
    position: usize,
}

impl Candidates {
    fn fill(&mut self, scores: Scores<'_>, position: usize) -> Result<(), SamplerError> {
        self.position = position;
        self.sorted = 0;
        self.all = scores.vocab_size();
        self.keys.clear();
        for (token, value) in scores.iter() {
            if value.is_nan() || value == f32::INFINITY {
                return Err(SamplerError::Logit { token, value, position });
            }
            self.keys.push(key(token, value));
        }
        Ok(())
    }

    /// Repeat, frequency and presence penalty. Candidates must still be in order of id.
    fn penalise(&mut self, config: &SamplerConfig, history: &[u32]) -> Result<(), SamplerError> {
        if !config.has_penalties() {
            return Ok(());
        }
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for &id in recent(config, history) {
            *counts.entry(id).or_default() += 1;
        }
        let all = self.keys.len() == self.all;
        for (id, count) in counts {
            let at = if all { id as usize } else { self.keys.partition_point(|&key| id_of(key) < id) };
            let Some(slot) = self.keys.get_mut(at).filter(|key| id_of(**key) == id) else {
                continue;
            };
            let logit = logit_of(*slot);
            let scaled = if logit > 0.0 { logit / config.repeat_penalty } else { logit * config.repeat_penalty };
            let value = scaled - count as f32 * config.frequency_penalty - config.presence_penalty;
            if value.is_nan() || value == f32::INFINITY {
                return Err(SamplerError::Logit { token: id, value, position: self.position });
            }
            *slot = key(id, value);
        }
        Ok(())
    }

    /// The best token and its logit.
    fn best(&self) -> Result<(u32, f32), SamplerError> {
        let best = if self.sorted > 0 { self.keys.first() } else { self.keys.iter().max() };
        match best.map(|&key| (id_of(key), logit_of(key))) {
            Some((id, logit)) if logit > f32::NEG_INFINITY => Ok((id, logit)),
            _ => Err(SamplerError::NoneLeft { position: self.position }),
        }
    }

    /// Brings the `count` best to the front, in falling order.
    fn sort_to(&mut self, count: usize) {
        let count = count.min(self.keys.len());
        if count <= self.sorted {
            return;
        }
        let falling = |a: &u64, b: &u64| b.cmp(a);
        let rest = &mut self.keys[self.sorted..];
        let wanted = count - self.sorted;
        if wanted < rest.len() {
            rest.select_nth_unstable_by(wanted, falling);
        }
        rest[..wanted].sort_unstable_by(falling);
        self.sorted = count;
    }

    fn top_k(&mut self, k: usize) {
        // Judged by all tokens, so that what was left out before changes nothing of the order.
        if k == 0 || k >= self.all {
            return;
        }
        self.sort_to(k);
        self.keys.truncate(k);
    }

    /// Keeps the shortest front whose probabilities reach `p`, of those of all candidates before this filter.
    fn top_p(&mut self, p: f32) -> Result<(), SamplerError> {
        if p >= 1.0 {
            return Ok(());
        }
        let (_, best) = self.best()?;
        // Before any sorting, so that the order of the sum does not depend on how a library selects.
        let total: f64 = self.keys.iter().map(|&key| f64::from(weight(logit_of(key), best))).sum();
        let wanted = total * f64::from(p);
        let (mut sum, mut kept) = (0.0, 0);
        while sum < wanted && kept < self.keys.len() {
            if kept == self.sorted {
                self.sort_to(self.sorted.max(64) * 4);
            }
            sum += f64::from(weight(logit_of(self.keys[kept]), best));
            kept += 1;
        }
        self.sort_to(kept);
        self.keys.truncate(kept);
        self.sorted = kept;
        Ok(())
    }

    fn min_p(&mut self, p: f32) -> Result<(), SamplerError> {
        if p <= 0.0 {
            return Ok(());
        }
        let (_, best) = self.best()?;
        // A sorted front stays one: the filter keeps the larger and their order.
        self.keys.retain(|&key| weight(logit_of(key), best) >= p);
        self.sorted = self.sorted.min(self.keys.len());
        Ok(())
    }

    /// Draws one token with probability proportional to `exp(logit / temperature)`.
    fn draw(&self, temperature: f32, random: &mut Xoshiro256PlusPlus) -> Result<u32, SamplerError> {
        let (mut chosen, best) = self.best()?;
        let weight = |key: u64| f64::from(libm::expf((logit_of(key) - best) / temperature));
        let total: f64 = self.keys.iter().map(|&key| weight(key)).sum();
        let mut left = random.unit() * total;
        for &key in &self.keys {
            let weight = weight(key);
            if weight > 0.0 {
                chosen = id_of(key);
                if left < weight {
                    break;
                }
                left -= weight;
            }
        }
        Ok(chosen)
    }
}

/// xoshiro256++ 1.0 by David Blackman and Sebastiano Vigna (public domain, prng.di.unimi.it), seeded through SplitMix64 as
/// its authors advise.
#[derive(Debug, Clone)]
struct Xoshiro256PlusPlus([u64; 4]);

impl Xoshiro256PlusPlus {
    fn from_seed(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number from 0 up to, but not including, 1: a multiple of 2^-53.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(logits: &[f32]) -> Candidates {
        let mut candidates = Candidates::default();
        candidates.fill(Scores::All(logits), 0).unwrap();
        candidates
    }

    fn ids(candidates: &Candidates) -> Vec<u32> {
        candidates.keys.iter().map(|&key| id_of(key)).collect()
    }

    #[test]
    fn reference_random_numbers() {
        // The first outputs of the authors' C program for the state 1, 2, 3, 4.
        let mut random = Xoshiro256PlusPlus([1, 2, 3, 4]);
        let first = [41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205];
        assert_eq!(first.map(|_| random.next()), first);
        // And of SplitMix64 for the seed 1477776061723855037.
        let seeded = Xoshiro256PlusPlus::from_seed(1477776061723855037);
        assert_eq!(seeded.0[..2], [1985237415132408290, 2979275885539914483]);
    }

    #[test]
    fn keys_keep_logit_and_id() {
        for (id, logit) in [(0, 1.5), (u32::MAX, -2.25), (7, 0.0), (9, f32::NEG_INFINITY), (3, 1e-40)] {
            assert_eq!((id_of(key(id, logit)), logit_of(key(id, logit))), (id, logit));
        }
        assert!(key(1, 2.0) > key(2, 2.0) && key(2, 2.0) > key(0, 1.0) && key(0, -1.0) > key(1, -2.0));
    }

    #[test]
    fn top_k_takes_the_best_and_the_lower_id_of_equals() {
        let mut c = candidates(&[1.0, 3.0, 2.0, 3.0, 2.0, -1.0]);
        c.top_k(3);
        assert_eq!(ids(&c), [1, 3, 2]);
        let mut c = candidates(&[1.0, 2.0]);
        c.top_k(0);
        assert_eq!(ids(&c), [0, 1]);
    }

    #[test]
    fn top_p_takes_the_shortest_front() {
        // Probabilities 0.1, 0.5, 0.1, 0.3.
        let logits = [0.1_f32, 0.5, 0.1, 0.3].map(f32::ln);
        for (p, expected) in [
            (0.01, &[1][..]),
            (0.49, &[1]),
            (0.51, &[1, 3]),
            (0.79, &[1, 3]),
            (0.85, &[1, 3, 0]),
            (0.95, &[1, 3, 0, 2]),
        ] {
            let mut c = candidates(&logits);
            c.top_p(p).unwrap();
            assert_eq!(ids(&c), expected, "top-p {p}");
        }
    }

    #[test]
    fn top_p_over_many_equals_a_full_sort() {
        let mut random = Xoshiro256PlusPlus::from_seed(1);
        let logits: Vec<f32> = (0..5000).map(|_| (random.unit() * 4.0) as f32).collect();
        let mut partly = candidates(&logits);
        partly.top_p(0.7).unwrap();
        let mut sorted: Vec<u32> = (0..5000).collect();
        sorted.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let mut sum = 0.0;
        sorted.retain(|&id| {
            let keep = sum < 0.7 * total;
            sum += f64::from(logits[id as usize]).exp();
            keep
        });
        assert!(sorted.len() > 1000);
        // The last candidate may fall on either side: the two sums are rounded differently.
        let n = ids(&partly).len();
        assert!(n.abs_diff(sorted.len()) <= 1, "{n} {}", sorted.len());
        let n = n.min(sorted.len());
        assert_eq!(ids(&partly)[..n], sorted[..n]);
    }

    #[test]
    fn min_p_is_relative_to_the_best() {
        let logits = [0.05_f32, 0.5, 0.15, 0.3].map(f32::ln);
        for (p, expected) in [(0.0, &[0, 1, 2, 3][..]), (0.2, &[1, 2, 3]), (0.4, &[1, 3]), (1.0, &[1])] {
            let mut c = candidates(&logits);
            c.min_p(p).unwrap();
            assert_eq!(ids(&c), expected, "min-p {p}");
        }
        let mut c = candidates(&logits);
        c.top_k(3);
        c.min_p(0.4).unwrap();
        assert_eq!(ids(&c), [1, 3]);
    }

    #[test]
    fn penalties_by_hand() {
        let config = SamplerConfig {
            repeat_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            repeat_last_n: 4,
            ..SamplerConfig::default()
        };
        let mut c = candidates(&[4.0, -4.0, 1.0, 8.0]);
        // Token 3 lies before the last four; token 99 is outside the vocabulary.
        c.penalise(&config, &[3, 0, 0, 1, 99]).unwrap();
        let logits: Vec<f32> = c.keys.iter().map(|&key| logit_of(key)).collect();
        assert_eq!(logits, [4.0 / 2.0 - 1.0 - 0.25, -8.0 - 0.5 - 0.25, 1.0, 8.0]);
        let off = SamplerConfig { repeat_last_n: 0, ..config };
        let mut c = candidates(&[4.0, -4.0]);
        c.penalise(&off, &[0, 1]).unwrap();
        assert_eq!(c.keys, candidates(&[4.0, -4.0]).keys);
    }
}
