//! Rotary position embedding: cosines and sines, kept from step to step.

use crate::config::{Config, RopeScaling, RopeStyle};
use std::sync::Arc;
use tritone_kernels::float::{self, FloatKernels};

/// Cosines and sines of the positions used so far, `[position][rope_dim / 2]`.
#[derive(Clone)]
pub(crate) struct RopeTables {
    /// Those of layers with a sliding window, if there are any.
    windowed: Option<Box<RopeTables>>,
    dim: usize,
    theta: f32,
    scaling: RopeScaling,
    style: RopeStyle,
    factors: Option<Arc<[f32]>>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTables {
    pub(crate) fn new(config: &Config, factors: Option<Arc<[f32]>>) -> RopeTables {
        let tables = |windowed, theta, scaling, factors| RopeTables {
            windowed,
            dim: config.rope_dim,
            theta,
            scaling,
            style: config.rope_style,
            factors,
            cos: Vec::new(),
            sin: Vec::new(),
        };
        let windowed = config.window.map(|window| Box::new(tables(None, window.rope_theta, RopeScaling::None, None)));
        let factors = match (config.rope_scaling.divisors(config.rope_dim, config.rope_theta), factors) {
            (Some(divisors), Some(factors)) => Some(divisors.iter().zip(&*factors).map(|(a, b)| a * b).collect()),
            (divisors, factors) => divisors.map(Arc::from).or(factors),
        };
        tables(windowed, config.rope_theta, config.rope_scaling, factors)
    }

    /// Those of layers with a sliding window, or without one.
    pub(crate) fn of(&self, windowed: bool) -> &RopeTables {
        self.windowed.as_deref().filter(|_| windowed).unwrap_or(self)
    }

    /// Makes room for positions below `end`.
    pub(crate) fn extend(&mut self, end: usize) {
        if let Some(windowed) = &mut self.windowed {
            windowed.extend(end);
        }
        let half = self.dim / 2;
        for position in self.cos.len() / half..end {
            let start = position * half;
            self.cos.resize(start + half, 0.0);
            self.sin.resize(start + half, 0.0);
            float::rope_table(
                position as f64 / f64::from(self.scaling.position_divisor()),
                self.theta,
                self.factors.as_deref(),
                &mut self.cos[start..],
                &mut self.sin[start..],
            );
            let magnitude = self.scaling.magnitude();
            for value in self.cos[start..].iter_mut().chain(&mut self.sin[start..]) {
                *value *= magnitude;
            }
        }
    }

    /// Rotates heads of `head_dim` at a position.
    pub(crate) fn rotate(&self, float: &FloatKernels, position: usize, heads: &mut [f32], head_dim: usize) {
        let half = self.dim / 2;
        let at = position * half..(position + 1) * half;
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        match self.style {
            RopeStyle::Neox => float.rope_neox(heads, head_dim, cos, sin),
            RopeStyle::Interleaved => float.rope_interleaved(heads, head_dim, cos, sin),
        }
    }
}
