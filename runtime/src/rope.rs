//! Rotary position embedding: cosines and sines, kept from step to step.

use crate::config::{Config, RopeStyle};
use std::sync::Arc;
use tritone_kernels::float::{self, FloatKernels};

/// Cosines and sines of the positions used so far, `[position][rope_dim / 2]`.
#[derive(Clone)]
pub(crate) struct RopeTables {
    /// Those of layers with a sliding window, if there are any.
    windowed: Option<Box<RopeTables>>,
    dim: usize,
    theta: f32,
    scale: f32,
    style: RopeStyle,
    factors: Option<Arc<[f32]>>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTables {
    pub(crate) fn new(config: &Config, factors: Option<Arc<[f32]>>) -> RopeTables {
        let tables = |windowed, theta, scale, factors| RopeTables {
            windowed,
            dim: config.rope_dim,
            theta,
            scale,
            style: config.rope_style,
            factors,
            cos: Vec::new(),
            sin: Vec::new(),
        };
        let windowed = config.window.map(|window| Box::new(tables(None, window.rope_theta, 1.0, None)));
        tables(windowed, config.rope_theta, config.rope_scale, factors)
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
                position as f64 / f64::from(self.scale),
                self.theta,
                self.factors.as_deref(),
                &mut self.cos[start..],
                &mut self.sin[start..],
            );
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
