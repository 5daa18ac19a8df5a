//! The story model, which knows no JSON, writes under random schemas what it likes best of what is allowed.

use crate::writer::{Model, Random};
use crate::{schemas, validator};
use serde_json::{Value, json};
use std::path::Path;
use tritone_runtime::model::{LoadOptions, Model as Weights, Source};
use tritone_runtime::sampler::{Sampler, SamplerConfig};
use tritone_runtime::scores::Scores;
use tritone_runtime::tokenizer::SpecialTokens;
use tritone_server::constrain::Format;

/// Answers a prompt in at most `budget` tokens.
fn answer(weights: &Weights, model: &Model, schema: &Value, budget: usize, temperature: f32, seed: u64) -> String {
    let grammar = model.grammars.compile(Format::JsonSchema(schema), None).unwrap().unwrap();
    let mut constraint = grammar.constraint(budget).unwrap();
    let mut sampler = Sampler::new(SamplerConfig { temperature, seed, ..SamplerConfig::default() }).unwrap();
    let mut session = weights.session(None).unwrap();
    let prompt = model.tokenizer.encode("Once upon a time, a girl had a", SpecialTokens::Plain, true);
    let mut logits = session.prefill(&prompt, 0).unwrap().to_vec();
    let mut text = Vec::new();
    for _ in 0..budget {
        let mut mask = vec![0_u32; logits.len().div_ceil(32)];
        constraint.allow(&mut mask).unwrap();
        let allowed = |&(id, _): &(u32, f32)| mask[id as usize / 32] >> (id % 32) & 1 == 1;
        let (ids, kept): (Vec<u32>, Vec<f32>) = (0..).zip(logits.iter().copied()).filter(allowed).unzip();
        let scores = Scores::Some { ids: &ids, logits: &kept, vocab_size: logits.len() };
        let token = sampler.choose(scores, session.tokens()).unwrap();
        constraint.accept(token).unwrap();
        if model.tokenizer.is_end(token) {
            return String::from_utf8(text).unwrap();
        }
        text.extend_from_slice(model.tokenizer.token_bytes(token));
        logits = session.decode(token).unwrap().to_vec();
    }
    panic!("it did not end: {}\n{schema}", String::from_utf8_lossy(&text));
}

#[test]
fn a_model_that_knows_no_json() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/story.gguf");
    let weights = Weights::load(Source::File(path), &LoadOptions::default(), &mut |_| {}).unwrap();
    let model = Model::new(weights.tokenizer().clone());
    let plain = json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
        "friends": {"type": "array", "items": {"type": "string"}}}, "required": ["name", "age", "friends"]});
    for seed in 0..16 {
        let schema = if seed < 4 { plain.clone() } else { schemas::schema(&mut Random::new(seed + 600)) };
        let temperature = [0.0, 0.8, 1.5][seed as usize % 3];
        let text = answer(&weights, &model, &schema, 160, temperature, seed);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(validator(&schema).is_valid(&value), "{value}\n{schema}");
    }
}
