//! The contract: the logits of a run, and so its greedy text, have the same bits on every instruction
//! set, for every number of threads, every layout and every way the prompt is cut into chunks.
//!
//! `TRITONE_EMULATED=1` takes fewer combinations, for an emulated processor.

mod embedding_models;

use embedding_models::{Folder, references};
use std::path::{Path, PathBuf};
use tritone_runtime::embedding::{EmbedOptions, Embedder};
use tritone_runtime::generate::{GenerateOptions, Generation, Speculation};
use tritone_runtime::isa::{Detected, Isa, Level};
use tritone_runtime::model::{LayoutChoice, LoadOptions, Model, Source};
use tritone_runtime::sampler::SamplerConfig;

/// Enough for GEMM when it is fed whole.
const PROMPT: usize = 100;

/// Tokens chosen greedily after the prompt.
const GREEDY: usize = 100;

fn load(model: &str, level: Level, threads: usize, layout: LayoutChoice) -> Model {
    load_at(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(model), level, threads, layout)
}

fn load_at(path: &Path, level: Level, threads: usize, layout: LayoutChoice) -> Model {
    let options = LoadOptions { level: Some(level), threads: Some(threads), layout, ..LoadOptions::default() };
    Model::load(Source::File(path.to_owned()), &options, &mut |_| {}).unwrap()
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, four bytes further.
fn fnv(hash: u64, bytes: [u8; 4]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Tokens that depend on nothing.
fn prompt(vocab: usize) -> Vec<u32> {
    (0..PROMPT as u32).map(|i| (i * i * 7 + i * 13 + 5) % vocab as u32).collect()
}

/// The bits of the logits of all positions and the tokens that follow from them, folded into one
/// number (FNV-1a). With `guess`, checks that guessing ahead leads to the same tokens and logits.
fn fingerprint(model: &Model, chunk: usize, guess: bool) -> u64 {
    let mut hash = FNV_OFFSET;
    let mut fold = |bytes: [u8; 4]| hash = fnv(hash, bytes);
    let tokens = prompt(model.config().vocab_size);
    let mut session = model.session(None).unwrap();
    session
        .prefill_all(&tokens, chunk, &mut |_, logits| logits.iter().for_each(|logit| fold(logit.to_le_bytes())))
        .unwrap();
    let mut greedy = Vec::new();
    for _ in 0..GREEDY {
        let logits = session.logits();
        let best = (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
        greedy.push(best);
        fold(best.to_le_bytes());
        session.decode(best).unwrap().iter().for_each(|logit| fold(logit.to_le_bytes()));
    }
    if !guess {
        return hash;
    }
    let mut speculative = model.session(None).unwrap();
    let options = GenerateOptions {
        max_tokens: Some(GREEDY),
        sampler: SamplerConfig { temperature: 0.0, ..SamplerConfig::default() },
        ignore_eos: true,
        chunk,
        speculation: Speculation::Always,
        ..GenerateOptions::default()
    };
    let generation = Generation::new(&mut speculative, &tokens, &options).unwrap();
    let guessed: Vec<u32> = generation.map(|piece| piece.unwrap().id).collect();
    assert_eq!(guessed, greedy);
    let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    assert!(bits(speculative.decode(greedy[GREEDY - 1]).unwrap()) == bits(session.logits()));
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
    let reference = fingerprint(&load(file, Level::Scalar, 1, LayoutChoice::Auto), 0, true);
    assert_eq!(
        reference, golden,
        "{file}: the scalar logits are {reference:#018x}, another machine had {golden:#018x}"
    );
    let levels = levels();
    if std::env::var_os("TRITONE_EMULATED").is_some() {
        for level in levels.into_iter().filter(|level| *level != Level::Scalar) {
            let model = load(file, level, 3, LayoutChoice::Auto);
            assert_eq!(fingerprint(&model, 7, true), golden, "{file} {level}");
        }
        return;
    }
    // Small batches in the packed layouts, on the best level: each has rows of its own in the registry.
    if let Some(best) = levels.last() {
        for layout in [LayoutChoice::T3, LayoutChoice::T5] {
            let model = load(file, *best, 2, layout);
            for chunk in 1..=9 {
                assert_eq!(fingerprint(&model, chunk, false), golden, "{file} {best} {layout:?}, chunks of {chunk}");
            }
        }
    }
    for level in levels {
        if level == Level::Scalar {
            // The reference is this level with one thread.
            let model = load(file, level, 3, LayoutChoice::T3);
            assert_eq!(fingerprint(&model, 7, true), golden, "{file} {level} t3, 3 threads, chunks of 7");
            continue;
        }
        for layout in [LayoutChoice::Auto, LayoutChoice::I2s, LayoutChoice::T3, LayoutChoice::T5] {
            let model = load(file, level, 2, layout);
            assert_eq!(fingerprint(&model, 0, true), golden, "{file} {level} {layout:?}");
        }
        for threads in [1, 3] {
            for chunk in [1, 7, 37, PROMPT] {
                let model = load(file, level, threads, LayoutChoice::Auto);
                assert_eq!(
                    fingerprint(&model, chunk, threads == 3),
                    golden,
                    "{file} {level} {threads} threads, chunks of {chunk}"
                );
            }
        }
    }
}

#[test]
fn one_scale_for_a_tensor() {
    check("bitnet-relu2/model-i2_s.gguf", 0x14e5_9aa6_2ab0_fae2);
}

#[test]
fn one_scale_in_all_blocks() {
    // The bits of I2_S: the scales of this model are exact in half precision.
    check("bitnet-relu2/model-tq2_0.gguf", 0x14e5_9aa6_2ab0_fae2);
}

#[test]
fn silu_and_interleaved_rope() {
    check("llama-silu-bitlinear/model-tq1_0.gguf", 0x8824_f466_52d8_c54f);
}

#[test]
fn scales_for_groups() {
    check("qwen3-group128/model-q2_0.gguf", 0xe2b1_da63_a4d6_fe67);
}

/// The bits of the vectors of all reference texts, which pass through the layers together.
fn vectors(model: &Model, kind: &str, chunk: usize) -> u64 {
    let options = EmbedOptions { chunk, ..EmbedOptions::default() };
    let mut embedder = Embedder::with_options(model, &options).unwrap();
    let texts: Vec<Vec<u32>> = references(kind).into_iter().map(|(_, ids, _)| ids).collect();
    let vectors = embedder.embed(&texts).unwrap();
    vectors.iter().flatten().fold(FNV_OFFSET, |hash, x| fnv(hash, x.to_le_bytes()))
}

/// Vectors of an embedding model; its sliding windows begin within blocks of attention.
fn check_vectors(kind: &str, golden: u64) {
    let folder = Folder::new(kind).write();
    let load = |level, threads, layout| load_at(&folder.0, level, threads, layout);
    let reference = vectors(&load(Level::Scalar, 1, LayoutChoice::Auto), kind, 0);
    assert_eq!(
        reference, golden,
        "{kind}: the scalar vectors are {reference:#018x}, another machine had {golden:#018x}"
    );
    let emulated = std::env::var_os("TRITONE_EMULATED").is_some();
    for level in levels().into_iter().filter(|level| *level != Level::Scalar || !emulated) {
        for (threads, layout, chunk) in [
            (3, LayoutChoice::Auto, 7),
            (1, LayoutChoice::I2s, 100),
            (2, LayoutChoice::T3, 1),
            (2, LayoutChoice::T5, 0),
            (3, LayoutChoice::Auto, 256),
        ] {
            let model = load(level, threads, layout);
            let what = format!("{kind} {level} {layout:?}, {threads} threads, chunks of {chunk}");
            assert_eq!(vectors(&model, kind, chunk), golden, "{what}");
            if emulated {
                break;
            }
        }
    }
}

#[test]
fn vectors_of_qwen3() {
    check_vectors("qwen3", 0xab8f_b94a_c6e1_5b76);
}

#[test]
fn vectors_of_gemma3() {
    check_vectors("gemma3", 0x7174_af3b_453d_f8cd);
}
