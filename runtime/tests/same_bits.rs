//! The contract: the logits of a text have the same bits on every instruction set, for every
//! number of threads, every layout and every way the text is cut into chunks.

use std::path::PathBuf;
use tritone_runtime::isa::{Detected, Isa, Level};
use tritone_runtime::model::{LayoutChoice, LoadOptions, Model, Source};

const LENGTH: usize = 200;

fn load(model: &str, level: Level, threads: usize, layout: LayoutChoice) -> Model {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(model);
    let options = LoadOptions { level: Some(level), threads: Some(threads), layout, kernel: None };
    Model::load(Source::File(path), &options, &mut |_| {}).unwrap()
}

/// Tokens that depend on nothing.
fn text(vocab: usize) -> Vec<u32> {
    (0..LENGTH as u32).map(|i| (i * i * 7 + i * 13 + 5) % vocab as u32).collect()
}

/// The bits of the logits of all positions, folded into one number (FNV-1a).
fn fingerprint(model: &Model, chunk: usize) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let tokens = text(model.config().vocab_size);
    let mut session = model.session(None).unwrap();
    let mut fold = |logits: &[f32]| {
        for byte in logits.iter().flat_map(|logit| logit.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    if chunk == 1 {
        for token in tokens {
            fold(session.decode(token).unwrap());
        }
    } else {
        session.prefill_all(&tokens, chunk, &mut |_, logits| fold(logits)).unwrap();
    }
    hash
}

fn levels() -> Vec<Level> {
    let required = std::env::var("TRITONE_REQUIRE").unwrap_or_default();
    Level::ALL
        .into_iter()
        .filter(|level| {
            let can = Isa::with_level(*level, Detected::here()).is_ok();
            if !can {
                eprintln!("skipped: this processor lacks {level}");
                assert!(!required.split(',').any(|name| name == level.name()), "TRITONE_REQUIRE names {level}");
            }
            can
        })
        .collect()
}

fn check(file: &str, golden: u64) {
    let reference = fingerprint(&load(file, Level::Scalar, 1, LayoutChoice::Auto), 0);
    assert_eq!(
        reference, golden,
        "{file}: the scalar logits are {reference:#018x}, another machine had {golden:#018x}"
    );
    for level in levels() {
        for layout in [LayoutChoice::Auto, LayoutChoice::I2s, LayoutChoice::T3, LayoutChoice::T5] {
            let model = load(file, level, 2, layout);
            assert_eq!(fingerprint(&model, 0), golden, "{file} {level} {layout:?}");
        }
        for threads in [1, 3] {
            for chunk in [1, 2, 7, LENGTH] {
                let model = load(file, level, threads, LayoutChoice::Auto);
                assert_eq!(fingerprint(&model, chunk), golden, "{file} {level} {threads} threads, chunks of {chunk}");
            }
        }
    }
}

#[test]
fn one_scale_for_a_tensor() {
    check("bitnet-relu2/model-i2_s.gguf", 0x89e4_faa9_8bab_1982);
}

#[test]
fn silu_and_interleaved_rope() {
    check("llama-silu-bitlinear/model-tq1_0.gguf", 0x6dfa_b48c_5bc1_07f9);
}

#[test]
fn scales_for_groups() {
    check("qwen3-group128/model-q2_0.gguf", 0x7de7_24f2_58b3_dc4b);
}
