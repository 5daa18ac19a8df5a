//! The embedded story model on held-out text, against the evaluation that belongs to the file:
//! `models/story-eval.json`, made by `tools/train/evaluate.py` in float32.

use serde::Deserialize;
use std::path::PathBuf;
use tritone_runtime::model::{CacheType, LoadOptions, Model, Source};

#[derive(Deserialize)]
struct Evaluation {
    window: usize,
    sample: Sample,
}

#[derive(Deserialize)]
struct Sample {
    file: String,
    scored_tokens: usize,
    nll: f64,
    perplexity: f64,
}

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models")
}

/// `-ln p` of all tokens but the first of each window; `definition` in the evaluation says how the
/// text is cut.
fn nll(model: &Model, text: &str, window: usize) -> (f64, usize) {
    let begin = model.tokenizer().bos().expect("the story model has a begin token");
    let (mut total, mut scored) = (0.0, 0);
    for story in text.split("<|endoftext|>").map(str::trim).filter(|story| !story.is_empty()) {
        let mut ids = vec![begin];
        ids.extend(model.tokenizer().encode(story, tritone_runtime::tokenizer::SpecialTokens::Plain, false));
        for ids in ids.chunks(window).filter(|ids| ids.len() > 1) {
            let mut session = model.session(None).unwrap();
            let scorer = model.session(None).unwrap();
            session
                .prefill_all(ids, 0, &mut |i, logits| {
                    if let Some(next) = ids.get(i + 1) {
                        total -= f64::from(scorer.log_softmax(logits, *next));
                        scored += 1;
                    }
                })
                .unwrap();
        }
    }
    (total, scored)
}

#[test]
fn perplexity_is_the_trainers() {
    let read = |file: &str| std::fs::read_to_string(models().join(file)).unwrap();
    let evaluation: Evaluation = serde_json::from_str(&read("story-eval.json")).unwrap();
    let sample = evaluation.sample;
    for (cache_type, tolerance) in [(CacheType::F16, 2e-3), (CacheType::F32, 2e-3)] {
        let options = LoadOptions { cache_type, ..LoadOptions::default() };
        let model = Model::load(Source::File(models().join("story.gguf")), &options, &mut |_| {}).unwrap();
        let (total, scored) = nll(&model, &read(&sample.file), evaluation.window);
        let perplexity = (total / scored as f64).exp();
        println!("cache in {cache_type:?}: nll {total}, perplexity {perplexity}; the trainer's {}", sample.perplexity);
        assert_eq!(scored, sample.scored_tokens);
        assert!((perplexity / sample.perplexity - 1.0).abs() < tolerance, "{perplexity} {}", sample.perplexity);
        assert!((total / sample.nll - 1.0).abs() < tolerance, "{total} {}", sample.nll);
    }
}
