//! An embedding model's mind: do sentences of one meaning lie nearer to each other than to the rest?
//!
//! Partners have hardly a word in common, so that a model which only counts words gains little. That trained models pass
//! is what they are trained for; weights that were read in a wrong layout make vectors that all look alike or all differ.

use super::Report;
use crate::failure::Result;
use serde_json::{Value, json};
use std::fmt;
use std::time::Instant;
use tritone_runtime::config::Pooling;
use tritone_runtime::embedding::Embedder;
use tritone_runtime::model::Model;

const PAIRS: [[&str; 2]; 6] = [
    ["The cat is asleep on the roof.", "A kitten naps on top of the house."],
    ["The bank raised its interest rates.", "Borrowing money became more expensive."],
    ["It rained in the village all day.", "From morning to night water fell on the hamlet."],
    ["The doctor gave the child some medicine.", "A physician treated a young patient with drugs."],
    ["Our train left the station an hour late.", "The railway was delayed by sixty minutes."],
    ["She baked bread in the kitchen.", "A woman made a loaf in her oven."],
];

pub struct Meaning {
    dimensions: usize,
    pooling: Pooling,
    /// Mean cosines of partners and of all other pairs of sentences; none where vectors are not finite.
    cosines: Option<Cosines>,
    seconds: f64,
}

#[derive(Clone, Copy)]
struct Cosines {
    partners: f64,
    others: f64,
}

impl Meaning {
    /// Turns the sentences into vectors and compares these.
    pub fn examine(model: &Model, report: &mut Report) -> Result<Meaning> {
        let began = Instant::now();
        let mut embedder = Embedder::new(model)?;
        let tokens: Vec<Vec<u32>> = PAIRS.as_flattened().iter().map(|text| embedder.tokens(text)).collect();
        let cosines = match embedder.embed(&tokens) {
            Ok(vectors) => Some(compare(&vectors, |a, b| embedder.similarity(a, b))),
            Err(error) => {
                report.problem(error.to_string());
                None
            }
        };
        if cosines.is_some_and(|cosines| cosines.partners <= cosines.others) {
            report.problem(
                "sentences of one meaning lie no nearer to each other than to the rest: the weights are random, or read \
                 in another layout than they were written in (--i2s-layout)",
            );
        }
        let (dimensions, pooling) = (embedder.dimensions(), embedder.pooling());
        Ok(Meaning { dimensions, pooling, cosines, seconds: began.elapsed().as_secs_f64() })
    }

    pub fn to_json(&self) -> Value {
        json!({
            "dimensions": self.dimensions,
            "pooling": self.pooling.to_string(),
            "cosine_of_partners": self.cosines.map(|cosines| cosines.partners),
            "cosine_of_others": self.cosines.map(|cosines| cosines.others),
            "seconds": self.seconds,
        })
    }
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  vectors of {} numbers ({}): ", self.dimensions, self.pooling)?;
        match self.cosines {
            Some(Cosines { partners, others }) => writeln!(
                f,
                "sentences of one meaning have a cosine of {partners:.3}, others of {others:.3} ({:.1} s)",
                self.seconds
            ),
            None => writeln!(f, "none could be made ({:.1} s)", self.seconds),
        }
    }
}

/// Vectors `2 i` and `2 i + 1` are partners.
fn compare(vectors: &[Vec<f32>], cosine: impl Fn(&[f32], &[f32]) -> f32) -> Cosines {
    let (mut partners, mut others) = ((0.0, 0u32), (0.0, 0u32));
    for (i, a) in vectors.iter().enumerate() {
        for (j, b) in vectors.iter().enumerate().skip(i + 1) {
            let (sum, n) = if i / 2 == j / 2 { &mut partners } else { &mut others };
            *sum += f64::from(cosine(a, b));
            *n += 1;
        }
    }
    Cosines { partners: partners.0 / f64::from(partners.1), others: others.0 / f64::from(others.1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_partners() {
        let vectors: Vec<Vec<f32>> = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]].map(Vec::from).into();
        let Cosines { partners, others } = compare(&vectors, |a, b| a[0] * b[0] + a[1] * b[1]);
        assert!((partners - 0.9).abs() < 1e-6 && (others - 0.3).abs() < 1e-6);
    }
}
