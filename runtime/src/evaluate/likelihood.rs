//! From logits to likelihoods, and their sums.

use crate::isa::Isa;
use std::f64::consts::LN_2;
use tritone_kernels::float::FloatKernels;

/// Turns logits into likelihoods, with the same bits on every instruction set.
pub struct Scorer {
    float: FloatKernels,
    scratch: Vec<f32>,
}

impl Scorer {
    /// One that computes with this instruction set; the results are the same with each.
    #[must_use]
    pub fn new(isa: Isa) -> Scorer {
        Scorer { float: FloatKernels::new(isa), scratch: Vec::new() }
    }

    /// `-ln` of the probability of `token`.
    ///
    /// # Panics
    /// If there is no such logit.
    #[must_use]
    pub fn nll(&mut self, logits: &[f32], token: u32) -> f64 {
        logits.clone_into(&mut self.scratch);
        let softmax = self.float.softmax(&mut self.scratch);
        libm::log(f64::from(softmax.sum)) + (f64::from(softmax.max) - f64::from(logits[token as usize]))
    }
}

/// Negative log-likelihoods, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Likelihood {
    tokens: u64,
    bytes: u64,
    sum: f64,
    sum_of_squares: f64,
}

impl Likelihood {
    /// Adds a token with its `-ln p` and the number of bytes of text that it stands for.
    pub fn add(&mut self, nll: f64, bytes: usize) {
        self.tokens += 1;
        self.bytes += bytes as u64;
        self.sum += nll;
        self.sum_of_squares += nll * nll;
    }

    /// Tokens added.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Mean of `-ln p`, in nats; `None` without tokens.
    #[must_use]
    pub fn mean_nll(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.sum / self.tokens as f64)
    }

    /// `exp` of the mean.
    #[must_use]
    pub fn perplexity(&self) -> Option<f64> {
        self.mean_nll().map(libm::exp)
    }

    /// Standard error of the perplexity: with the variance `v` of `n` likelihoods,
    /// `perplexity * sqrt(v / (n - 1))`, the slope of `exp` times the standard error of the mean.
    /// `None` below two tokens.
    #[must_use]
    pub fn standard_error(&self) -> Option<f64> {
        let (mean, n) = (self.mean_nll()?, self.tokens as f64);
        // Rounding may leave a little less than nothing where all are equal.
        let variance = (self.sum_of_squares / n - mean * mean).max(0.0);
        (self.tokens > 1).then(|| libm::exp(mean) * (variance / (n - 1.0)).sqrt())
    }

    /// Mean of `-log2 p`.
    #[must_use]
    pub fn bits_per_token(&self) -> Option<f64> {
        self.mean_nll().map(|mean| mean / LN_2)
    }

    /// `-log2 p` of all tokens by the number of their bytes: comparable between vocabularies.
    #[must_use]
    pub fn bits_per_byte(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.sum / LN_2 / self.bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihood_of_equal_logits_is_the_share() {
        let mut scorer = Scorer::new(Isa::detect());
        assert!((scorer.nll(&[3.0; 8], 5) - 8f64.ln()).abs() < 1e-12);
        assert!((scorer.nll(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
    }
}
