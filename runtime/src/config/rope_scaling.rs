//! How rotary frequencies are stretched, in models that see more positions than they were first trained with.

use super::{bounded, invalid, positive};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Place, Result, shown};
use std::f64::consts::TAU;

/// What is done to positions or frequencies before a head is rotated.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// Positions are divided by a factor.
    Linear {
        /// A positive number.
        factor: f32,
    },
    /// Slow frequencies are divided by a factor, fast ones are kept.
    Yarn(Yarn),
}

/// The numbers of [YaRN](https://arxiv.org/abs/2309.00071), section 3, with `rope.scaling.*` of GGUF as their source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// By what the slow frequencies are divided; at least 1.
    pub factor: f32,
    /// Positions that the model was first trained with.
    pub original_context: usize,
    /// Frequencies with more turns than this in the original context are kept.
    pub beta_fast: f32,
    /// Those with fewer turns than this are divided by the whole factor.
    pub beta_slow: f32,
    /// Multiplies what the factor itself does to the length of queries and keys.
    pub attention_factor: f32,
}

impl RopeScaling {
    /// Reads `{architecture}.rope.scaling.*` as llama.cpp does: without a type, a factor is linear.
    pub(super) fn read(checkpoint: &Checkpoint, architecture: &str, context_length: usize) -> Result<RopeScaling> {
        let key = |suffix: &str| format!("{architecture}.rope.scaling.{suffix}");
        match checkpoint.find::<&str>(&key("type"))? {
            Some("none") => Ok(RopeScaling::None),
            None | Some("linear") => {
                // The second is the older name; 0 stands for nothing said.
                let names = [key("factor"), format!("{architecture}.rope.scale_linear")];
                for name in names {
                    if checkpoint.find::<f32>(&name)?.is_some_and(|factor| factor != 0.0) {
                        let factor = positive(checkpoint, &name, 1.0)?;
                        return Ok(if factor == 1.0 { RopeScaling::None } else { RopeScaling::Linear { factor } });
                    }
                }
                Ok(RopeScaling::None)
            }
            Some("yarn") => Yarn::read(checkpoint, &key, context_length).map(RopeScaling::Yarn),
            Some(other) => Err(Error::Unsupported {
                at: Box::new(Place::file(checkpoint.file()).key(key("type"))),
                what: format!("RoPE scaling of type '{}'", shown(other)),
                fix: "models with none, with linear scaling or with YaRN run here".to_owned(),
            }),
        }
    }

    /// What divides each of `dim / 2` frequencies `theta^(-2i / dim)`, where they differ.
    pub(crate) fn divisors(&self, dim: usize, theta: f32) -> Option<Vec<f32>> {
        match self {
            RopeScaling::Yarn(yarn) => Some(yarn.divisors(dim, theta)),
            RopeScaling::None | RopeScaling::Linear { .. } => None,
        }
    }

    /// What divides positions.
    pub(crate) fn position_divisor(&self) -> f32 {
        match self {
            RopeScaling::Linear { factor } => *factor,
            RopeScaling::None | RopeScaling::Yarn(_) => 1.0,
        }
    }

    /// What multiplies rotated queries and keys, each of the two.
    pub(crate) fn magnitude(&self) -> f32 {
        match self {
            RopeScaling::Yarn(yarn) => yarn.magnitude(),
            RopeScaling::None | RopeScaling::Linear { .. } => 1.0,
        }
    }
}

impl Yarn {
    fn read(checkpoint: &Checkpoint, key: &dyn Fn(&str) -> String, context_length: usize) -> Result<Yarn> {
        // Of other architectures, whose attention has a scale of its own to go with these.
        for (suffix, neutral) in [("yarn_log_multiplier", 0.0), ("yarn_ext_factor", 1.0)] {
            if checkpoint.find::<f32>(&key(suffix))?.is_some_and(|value| value != neutral) {
                return Err(Error::Unsupported {
                    at: Box::new(Place::file(checkpoint.file()).key(key(suffix))),
                    what: "the model uses it".to_owned(),
                    fix: "YaRN without it runs here".to_owned(),
                });
            }
        }
        let float = |suffix: &str, default: f32| positive(checkpoint, &key(suffix), default);
        let original_context = match checkpoint.find::<u64>(&key("original_context_length"))? {
            Some(length) => bounded(checkpoint, &key("original_context_length"), length)?,
            None => context_length,
        };
        checkpoint.get::<f32>(&key("factor"))?;
        let yarn = Yarn {
            factor: float("factor", 1.0)?,
            original_context,
            beta_fast: float("yarn_beta_fast", 32.0)?,
            beta_slow: float("yarn_beta_slow", 1.0)?,
            attention_factor: float("attn_factor", 1.0)? * float("yarn_attn_factor", 1.0)?,
        };
        if yarn.factor < 1.0 || yarn.beta_fast <= yarn.beta_slow {
            let what = format!(
                "YaRN with a factor of {}, from {} to {} turns; the factor must be at least 1, and the turns must rise",
                yarn.factor, yarn.beta_slow, yarn.beta_fast
            );
            return Err(invalid(checkpoint, what));
        }
        Ok(yarn)
    }

    /// At which pair of elements a frequency makes so many turns in the original context.
    fn pair_with(&self, turns: f32, dim: usize, theta: f32) -> f64 {
        let turns_of_first = self.original_context as f64 / TAU;
        dim as f64 * libm::log(turns_of_first / f64::from(turns)) / (2.0 * libm::log(f64::from(theta)))
    }

    fn divisors(&self, dim: usize, theta: f32) -> Vec<f32> {
        let first = self.pair_with(self.beta_fast, dim, theta).floor().max(0.0);
        let last = self.pair_with(self.beta_slow, dim, theta).ceil().min(dim as f64 - 1.0);
        let factor = f64::from(self.factor);
        let divisor = |pair: usize| {
            let divided = ((pair as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - divided) + divided / factor)) as f32
        };
        (0..dim / 2).map(divisor).collect()
    }

    fn magnitude(&self) -> f32 {
        self.attention_factor * (0.1 * libm::log(f64::from(self.factor)) + 1.0) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Value;

    fn read(keys: &[(&str, Value)]) -> Result<RopeScaling> {
        let metadata = keys.iter().map(|(key, value)| (format!("qwen3.rope.{key}"), value.clone())).collect();
        let checkpoint = Checkpoint::new("test".into(), "GGUF".to_owned(), 0, metadata, Vec::new())?;
        RopeScaling::read(&checkpoint, "qwen3", 40_960)
    }

    fn text(text: &str) -> Value {
        Value::String(text.into())
    }

    #[test]
    fn kinds() {
        let factor = |factor| ("scaling.factor", Value::F32(factor));
        assert_eq!(read(&[]).unwrap(), RopeScaling::None);
        assert_eq!(read(&[("scaling.type", text("none")), factor(8.0)]).unwrap(), RopeScaling::None);
        let linear = RopeScaling::Linear { factor: 8.0 };
        assert_eq!(read(&[("scaling.type", text("linear")), factor(8.0)]).unwrap(), linear);
        assert_eq!(read(&[factor(8.0)]).unwrap(), linear);
        assert_eq!(read(&[("scale_linear", Value::F32(8.0))]).unwrap(), linear);
        assert_eq!(read(&[("scale_linear", Value::F32(2.0)), factor(8.0)]).unwrap(), linear);
        assert_eq!(read(&[("scale_linear", Value::F32(8.0)), factor(0.0)]).unwrap(), linear);
        assert_eq!(read(&[("scale_linear", Value::F32(0.0))]).unwrap(), RopeScaling::None);
        assert!(read(&[factor(-8.0)]).unwrap_err().to_string().contains("positive"));

        let yarn =
            Yarn { factor: 8.0, original_context: 40_960, beta_fast: 32.0, beta_slow: 1.0, attention_factor: 1.0 };
        let kind = ("scaling.type", text("yarn"));
        assert_eq!(read(&[kind.clone(), factor(8.0)]).unwrap(), RopeScaling::Yarn(yarn));
        let all = [
            kind.clone(),
            factor(8.0),
            ("scaling.original_context_length", Value::U32(16_384)),
            ("scaling.yarn_beta_fast", Value::F32(16.0)),
            ("scaling.yarn_beta_slow", Value::F32(2.0)),
            ("scaling.attn_factor", Value::F32(1.5)),
            ("scaling.yarn_attn_factor", Value::F32(2.0)),
            ("scaling.yarn_ext_factor", Value::F32(1.0)),
            ("scaling.yarn_log_multiplier", Value::F32(0.0)),
        ];
        let numbers =
            Yarn { factor: 8.0, original_context: 16_384, beta_fast: 16.0, beta_slow: 2.0, attention_factor: 3.0 };
        assert_eq!(read(&all).unwrap(), RopeScaling::Yarn(numbers));

        let refused = |more: &[(&str, Value)], words: &[&str]| {
            let error = read(&[std::slice::from_ref(&kind), more].concat()).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        refused(&[], &["qwen3.rope.scaling.factor", "missing"]);
        refused(&[factor(0.5)], &["factor of 0.5", "at least 1"]);
        refused(&[factor(f32::NAN)], &["scaling.factor", "finite"]);
        refused(&[factor(-1.0)], &["scaling.factor", "positive"]);
        refused(&[factor(4.0), ("scaling.yarn_beta_slow", Value::F32(32.0))], &["from 32 to 32 turns"]);
        refused(&[factor(4.0), ("scaling.yarn_log_multiplier", Value::F32(0.1))], &["yarn_log_multiplier", "uses it"]);
        refused(&[factor(4.0), ("scaling.yarn_ext_factor", Value::F32(0.0))], &["yarn_ext_factor", "uses it"]);
        refused(&[factor(4.0), ("scaling.original_context_length", Value::U32(0))], &["original_context_length"]);
        let error = read(&[("scaling.type", text("longrope"))]).unwrap_err().to_string();
        assert!(error.contains("'longrope'") && error.contains("YaRN"), "{error}");
    }

    /// Ternary-Bonsai 1.7B and 8B: what divides some of their frequencies in Transformers 5.24.0 (float32).
    #[test]
    fn frequencies_of_published_models() {
        let small = [(0, 1.0), (17, 1.0), (18, 1.046_154), (22, 1.283_019), (28, 1.942_857), (33, 3.4), (34, 4.0)];
        let large = [(0, 1.0), (20, 1.0), (21, 1.046_154), (25, 1.283_019), (33, 2.344_828), (36, 3.4), (37, 4.0)];
        for (original_context, expected) in [(8192, small), (16_384, large)] {
            let yarn = Yarn { factor: 4.0, original_context, beta_fast: 32.0, beta_slow: 1.0, attention_factor: 1.0 };
            let divisors = yarn.divisors(128, 1e6);
            assert_eq!((divisors.len(), divisors[63]), (64, 4.0));
            for (pair, divisor) in expected {
                assert!((divisors[pair] - divisor).abs() < 1e-6 * divisor, "{pair}: {} {divisor}", divisors[pair]);
            }
            assert!((yarn.magnitude() - 1.138_629_4).abs() < 2e-7, "{}", yarn.magnitude());
        }
    }

    /// Numbers that no model has, but a file may: they give finite angles.
    #[test]
    fn frequencies_of_extreme_numbers() {
        for (factor, original_context, beta_fast, beta_slow) in
            [(1.0, 1, 2.0, 1.0), (f32::MAX, 1 << 20, f32::MAX, f32::MIN_POSITIVE), (4.0, 1, 1e30, 1e20)]
        {
            let yarn = Yarn { factor, original_context, beta_fast, beta_slow, attention_factor: 1.0 };
            for (dim, theta) in [(2, 1.000_000_1), (64, f32::MAX), (128, 1e6)] {
                let divisors = yarn.divisors(dim, theta);
                assert_eq!(divisors.len(), dim / 2);
                assert!(divisors.iter().all(|divisor| (1.0..=factor).contains(divisor)), "{yarn:?}: {divisors:?}");
            }
        }
    }
}
