//! Embedding models against vectors that an independent implementation computed in float32.
//!
//! The models lie beside the repository; where they are not, these tests say so and pass. Rounding activations to
//! int8 is discontinuous, so a difference in the last bit can flip a code; a cosine of 0.995 is asked for.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use tritone_runtime::embedding::Embedder;
use tritone_runtime::model::{CacheType, LoadOptions, Model, Source};

const LEAST_COSINE: f64 = 0.995;

#[derive(Deserialize)]
struct Reference {
    text: String,
    ids: Vec<u32>,
    embedding: Vec<f64>,
}

fn shared(model: &str) -> Option<PathBuf> {
    let root = std::env::var_os("TRITONE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let path = root.join("vectors/embedding").join(model);
    if !path.exists() {
        assert!(std::env::var_os("TRITONE_SHARED").is_none(), "{} is not there", path.display());
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn cosine(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let a: Vec<f64> = a.iter().map(|a| f64::from(*a)).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(&a, b) / (dot(&a, &a) * dot(b, b)).sqrt()
}

fn check(model: &str) {
    let Some(path) = shared(model) else { return };
    let references: Vec<Reference> =
        serde_json::from_str(&std::fs::read_to_string(path.join("reference.json")).unwrap()).unwrap();
    assert!(references.len() >= 3);
    for cache_type in [CacheType::F16, CacheType::F32] {
        let options = LoadOptions { cache_type, threads: Some(2), ..LoadOptions::default() };
        let model_at = Source::File(path.clone());
        let model = Model::load(model_at, &options, &mut |_| {}).unwrap();
        let mut embedder = Embedder::new(&model).unwrap();
        assert_eq!(embedder.warning(), None);
        let texts: Vec<Vec<u32>> = references.iter().map(|reference| embedder.tokens(&reference.text)).collect();
        assert!(texts.iter().zip(&references).all(|(ids, reference)| *ids == reference.ids));
        let vectors = embedder.embed(&texts).unwrap();
        let cosines: Vec<f64> =
            vectors.iter().zip(&references).map(|(vector, reference)| cosine(vector, &reference.embedding)).collect();
        println!("{}, {cache_type:?}: cosines {cosines:?}", path.display());
        assert!(cosines.iter().all(|cosine| *cosine >= LEAST_COSINE), "{cosines:?}");
    }
}

#[test]
fn qwen3() {
    check("qwen3-bitnet");
}

#[test]
fn gemma3() {
    check("gemma3-bitnet");
}
