//! The output head in two stages gives the tokens, and for them the bits, of the whole head.

use std::path::PathBuf;
use tritone_runtime::generate::{GenerateOptions, Generation};
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::sampler::SamplerConfig;
use tritone_runtime::scores::{Need, Scores};

/// Heads in F16, F32 and Q6_K among them; the last one is trained.
const MODELS: [&str; 4] = [
    "runtime/tests/data/models/bitnet-relu2/model-i2_s.gguf",
    "runtime/tests/data/models/llama-silu-bitlinear/model-tq1_0.gguf",
    "runtime/tests/data/models/qwen3-group128/model-q2_0.gguf",
    "models/story.gguf",
];

fn load(name: &str, full_head: bool) -> Model {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    let options = LoadOptions { full_head, threads: Some(2), ..LoadOptions::default() };
    Model::load(Source::File(path), &options, &mut |_| {}).unwrap()
}

fn generated(model: &Model, sampler: &SamplerConfig, prompt: &[u32]) -> (Vec<u32>, String) {
    let options = GenerateOptions {
        max_tokens: Some(60),
        sampler: sampler.clone(),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let mut session = model.session(None).unwrap();
    let pieces = Generation::new(&mut session, prompt, &options).unwrap();
    let pieces: Vec<_> = pieces.map(|piece| piece.unwrap()).collect();
    (pieces.iter().map(|piece| piece.id).collect(), pieces.into_iter().map(|piece| piece.text).collect())
}

#[test]
fn texts_are_the_same() {
    let plain = SamplerConfig { top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerConfig::default() };
    let samplers = [
        SamplerConfig { temperature: 0.0, ..plain.clone() },
        SamplerConfig { temperature: 0.0, repeat_penalty: 1.3, frequency_penalty: 0.2, ..plain.clone() },
        SamplerConfig { top_k: 40, seed: 1, ..plain.clone() },
        SamplerConfig { top_k: 5, top_p: 0.9, temperature: 1.5, seed: 2, ..plain.clone() },
        SamplerConfig { top_k: 12, min_p: 0.02, presence_penalty: 1.0, repeat_penalty: 0.8, seed: 3, ..plain.clone() },
        SamplerConfig { min_p: 0.1, temperature: 2.0, seed: 4, ..plain.clone() },
        SamplerConfig { top_p: 0.95, seed: 5, ..plain.clone() },
        SamplerConfig { min_p: 0.05, repeat_penalty: 1.1, seed: 6, ..plain },
        SamplerConfig::default(),
    ];
    for name in MODELS {
        let (whole, staged) = (load(name, true), load(name, false));
        for sampler in &samplers {
            let vocab = whole.config().vocab_size as u32;
            let prompt: Vec<u32> = (1..12).map(|i| i * 31 % vocab).collect();
            let expected = generated(&whole, sampler, &prompt);
            assert_eq!(generated(&staged, sampler, &prompt), expected, "{name}, {sampler:?}");
        }
    }
}

#[test]
fn chosen_logits_have_the_bits_of_all_logits() {
    let mut left_out = 0;
    for name in MODELS {
        let (whole, staged) = (load(name, true), load(name, false));
        let (mut whole, mut staged) = (whole.session(None).unwrap(), staged.session(None).unwrap());
        let needs = [
            Need::top(1),
            Need::top(40),
            Need::Top { count: 3, tokens: vec![7, 2, 7] },
            Need::Within { below: 2.0 },
            Need::All,
        ];
        let mut token = 3;
        for step in 0..40 {
            let need = &needs[step % needs.len()];
            // Every third time they are those after a prompt.
            let tokens = if step % 3 == 2 { vec![token, 9, 4] } else { vec![token] };
            let all = whole.prefill(&tokens, 2).unwrap().to_vec();
            let scores = match tokens[..] {
                [token] => staged.decode_for(token, need),
                _ => staged.prefill_for(&tokens, 2, need),
            };
            let scores = scores.unwrap();
            let mut order: Vec<u32> = (0..all.len() as u32).collect();
            order.sort_by(|a, b| all[*b as usize].total_cmp(&all[*a as usize]).then(a.cmp(b)));
            let given: Vec<(u32, u32)> = scores.iter().map(|(id, logit)| (id, logit.to_bits())).collect();
            for (id, bits) in &given {
                assert_eq!(*bits, all[*id as usize].to_bits(), "{name}, {need:?}, token {id}");
            }
            let least = all[order[0] as usize] - 2.0;
            let wanted: Vec<u32> = match need {
                Need::Top { count, tokens } => order.iter().take(*count).chain(tokens).copied().collect(),
                Need::Within { .. } => order.iter().copied().filter(|id| all[*id as usize] >= least).collect(),
                Need::All => order.clone(),
            };
            assert!(wanted.iter().all(|id| given.iter().any(|(given, _)| given == id)), "{name}, {need:?}");
            assert_eq!(scores.best(), Some(order[0]), "{name}, {need:?}");
            assert_eq!(scores.vocab_size(), all.len());
            let partial = matches!(scores, Scores::Some { .. });
            left_out += all.len() - given.len();
            assert_eq!(staged.logits().is_empty(), partial);
            token = order[step % 3];
        }
        assert!(whole.skipped().density().head_rows.is_none());
    }
    assert!(left_out > 0, "the copy was used");
}
