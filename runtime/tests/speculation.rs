//! Speculation changes speed only: the same pieces, the same end and the same session as without it.

use std::path::PathBuf;
use tritone_runtime::generate::{Finish, GenerateOptions, Generation, Piece, Speculation, Stats};
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::sampler::SamplerConfig;
use tritone_runtime::scores::Need;
use tritone_runtime::session::Session;
use tritone_runtime::tokenizer::SpecialTokens;

const MODELS: [&str; 4] = [
    "tests/data/models/bitnet-relu2/model-i2_s.gguf",
    "tests/data/models/llama-silu-bitlinear/model-tq1_0.gguf",
    "tests/data/models/qwen3-group128/model-q2_0.gguf",
    "../models/story.gguf",
];

fn load(file: &str) -> Model {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
    Model::load(Source::File(path), &LoadOptions::default(), &mut |_| {}).unwrap()
}

fn story(text: &str) -> (Model, Vec<u32>) {
    let model = load(MODELS[3]);
    let ids = model.tokenizer().encode(text, SpecialTokens::Plain, model.tokenizer().adds_bos());
    (model, ids)
}

/// A text that says everything again and one that says nothing twice.
fn prompts(model: &Model) -> [Vec<u32>; 2] {
    let vocab = model.config().vocab_size as u32;
    [(0..60).map(|i| 20 + i % 12).collect(), (0..60u32).map(|i| (i * i * 7 + i * 13 + 5) % vocab).collect()]
}

fn samplers() -> [SamplerConfig; 3] {
    let default = SamplerConfig::default();
    [
        SamplerConfig { temperature: 0.0, ..default.clone() },
        SamplerConfig { temperature: 0.7, seed: 11, ..default.clone() },
        SamplerConfig {
            temperature: 0.9,
            repeat_penalty: 1.1,
            frequency_penalty: 0.2,
            presence_penalty: 0.1,
            seed: 5,
            ..default
        },
    ]
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// What can be seen of a generation and of its session.
#[derive(Debug, PartialEq)]
struct Outcome {
    pieces: Vec<Piece>,
    finish: Option<Finish>,
    tokens: Vec<u32>,
    /// Bits of the best logit and its token: with guesses others may be left out.
    best: Option<(u32, u32)>,
}

/// Takes at most `take` pieces, then drops the generation.
fn generate(session: &mut Session, prompt: &[u32], options: &GenerateOptions, take: usize) -> (Outcome, Stats) {
    let mut generation = Generation::new(session, prompt, options).unwrap();
    let pieces = generation.by_ref().take(take).map(Result::unwrap).collect();
    let (finish, stats) = (generation.finish(), generation.stats());
    drop(generation);
    let best = session.scores().best();
    let logit = session.scores().iter().find(|(id, _)| Some(*id) == best).map(|(_, logit)| logit.to_bits());
    let outcome = Outcome { pieces, finish, tokens: session.tokens().to_vec(), best: best.zip(logit) };
    (outcome, stats)
}

/// Generates with each kind of speculation in a session of its own, twice: the second time with the
/// first one's answer in the session. Returns what was seen without speculation and the figures with it.
fn same(
    model: &Model,
    context: Option<usize>,
    prompt: &[u32],
    options: &GenerateOptions,
    take: usize,
) -> (Outcome, Stats) {
    let run = |speculation| {
        let options = GenerateOptions { speculation, ..options.clone() };
        let mut session = model.session(context).unwrap();
        let (first, stats) = generate(&mut session, prompt, &options, take);
        let second = (session.position() + 4 < session.context_length()).then(|| {
            let last = first.pieces.last().map_or(3, |piece| piece.id);
            generate(&mut session, &[last, 3, 4], &options, take).0
        });
        (first, second, stats)
    };
    let (first, second, plain) = run(Speculation::Off);
    assert_eq!((plain.drafted_tokens, plain.accepted_tokens), (0, 0));
    assert_eq!(plain.steps, first.pieces.len().saturating_sub(1));
    for speculation in [Speculation::Always, Speculation::Adaptive] {
        let (guessed, continued, stats) = run(speculation);
        assert!(guessed == first, "{speculation:?} {options:?}: {:?}, not {:?}", guessed.pieces, first.pieces);
        assert!(continued == second, "{speculation:?} {options:?}: the session goes on otherwise");
        assert_eq!(stats.steps + stats.accepted_tokens, plain.steps);
        assert!(stats.accepted_tokens <= stats.drafted_tokens);
    }
    (first, run(Speculation::Always).2)
}

#[test]
fn the_output_is_that_of_single_steps() {
    for file in MODELS {
        let model = load(file);
        let mut drafted = 0;
        for prompt in prompts(&model) {
            for sampler in samplers() {
                for ignore_eos in [false, true] {
                    let options = GenerateOptions {
                        max_tokens: Some(40),
                        sampler: sampler.clone(),
                        ignore_eos,
                        ..Default::default()
                    };
                    drafted += same(&model, None, &prompt, &options, usize::MAX).1.drafted_tokens;
                }
            }
        }
        assert!(drafted > 0, "{file}: nothing was ever guessed");
    }
}

const REFRAIN: &str = "The bear said: \"Who has been sleeping in my bed?\" The fox said: \"Who has been sleeping in my \
                       bed?\" The wolf said: \"Who has been";

#[test]
fn a_repetition_takes_fewer_steps() {
    let (model, ids) = story(&"\"Who is there?\" said the wolf. ".repeat(12));
    let sampler = SamplerConfig { temperature: 0.0, ..Default::default() };
    let options = GenerateOptions { max_tokens: Some(32), sampler, ignore_eos: true, ..Default::default() };
    let (_, stats) = same(&model, None, &ids, &options, usize::MAX);
    assert!(stats.accepted_tokens > 0 && stats.steps < 31, "{stats:?}");
}

#[test]
fn generations_may_be_dropped_anywhere() {
    let (model, ids) = story(REFRAIN);
    for sampler in samplers() {
        for take in [0, 1, 2, 3, 5, 8, 13] {
            let options = GenerateOptions { sampler: sampler.clone(), ignore_eos: true, ..Default::default() };
            let options = GenerateOptions { max_tokens: Some(14), ..options };
            same(&model, None, &ids, &options, take);
        }
    }
}

#[test]
fn limits_hold() {
    let (model, ids) = story(REFRAIN);
    let sampler = SamplerConfig { temperature: 0.0, ..Default::default() };
    let options = GenerateOptions { sampler, ignore_eos: true, ..Default::default() };
    for max_tokens in [0, 1, 2, 3, 9] {
        let options = GenerateOptions { max_tokens: Some(max_tokens), ..options.clone() };
        let (outcome, stats) = same(&model, None, &ids, &options, usize::MAX);
        assert_eq!((outcome.pieces.len(), outcome.finish), (max_tokens, Some(Finish::MaxTokens)));
        assert!(stats.steps + stats.drafted_tokens <= max_tokens * 8);
    }
    for room in [0, 1, 2, 7] {
        let (outcome, _) = same(&model, Some(ids.len() + room), &ids, &options, usize::MAX);
        assert_eq!((outcome.pieces.len(), outcome.finish), (room + 1, Some(Finish::ContextFull)));
    }
    let options = GenerateOptions { stop: vec!["in my".to_owned()], max_tokens: Some(40), ..options };
    same(&model, None, &ids, &options, usize::MAX);
}

#[test]
fn a_draft_leaves_no_trace() {
    for file in MODELS {
        let model = load(file);
        let [_, ids] = prompts(&model);
        let mut plain = model.session(None).unwrap();
        plain.prefill(&ids, 0).unwrap();
        let mut drafting = model.session(None).unwrap();
        // 60 positions: drafts cross the bounds of key blocks and of what a vector holds.
        drafting.prefill(&ids[..1], 0).unwrap();
        for (i, &token) in ids.iter().enumerate().skip(1) {
            let right = &ids[i + 1..ids.len().min(i + 1 + i % 4)];
            let draft = [right, &[1, 2, 3][..i % 3]].concat();
            drafting.decode_with_draft(token, &draft, &Need::All).unwrap();
            assert_eq!(drafting.tokens(), &ids[..=i]);
        }
        assert!(bits(plain.logits()) == bits(drafting.logits()), "{file}");
        // A draft that is there is neither in the way of a prompt nor of forgetting.
        for session in [&mut plain, &mut drafting] {
            session.decode_with_draft(5, &[6, 7, 8], &Need::All).unwrap();
        }
        let go_on = drafting.prefill(&[6, 7, 9], 0).unwrap().to_vec();
        assert!(bits(&go_on) == bits(plain.prefill(&[6, 7, 9], 1).unwrap()), "{file}");
        drafting.decode_with_draft(5, &[6, 7], &Need::All).unwrap();
        drafting.truncate(30);
        plain.truncate(30);
        assert!(bits(drafting.decode(6).unwrap()) == bits(plain.decode(6).unwrap()), "{file}");
    }
}

#[test]
fn drafts_that_cannot_be_are_refused() {
    let model = load(MODELS[0]);
    let mut session = model.session(Some(4)).unwrap();
    assert!(session.decode_with_draft(1, &[2, 3, 4, 5], &Need::All).is_err());
    assert!(session.decode_with_draft(1, &[u32::MAX], &Need::All).is_err());
    assert_eq!(session.position(), 0);
    session.decode_with_draft(1, &[2, 3, 4], &Need::All).unwrap();
    assert_eq!(session.position(), 1);
}

/// What was fed before the end was asked for stays, and the rest can follow.
#[test]
fn a_prompt_can_be_left_half_way() {
    let model = load(MODELS[0]);
    let prompt: Vec<u32> = (0..100).map(|i| i * 7 % 300).collect();
    let options = GenerateOptions { max_tokens: Some(8), chunk: 16, ..GenerateOptions::default() };
    let all = |session: &mut Session, prompt: &[u32]| {
        Generation::new(session, prompt, &options).unwrap().map(|piece| piece.unwrap().id).collect::<Vec<_>>()
    };
    let expected = all(&mut model.session(None).unwrap(), &prompt);

    let mut session = model.session(None).unwrap();
    let mut asked = 0;
    let mut twice = || {
        asked += 1;
        asked <= 2
    };
    assert!(Generation::begin(&mut session, &prompt, &options, &mut twice).unwrap().is_none());
    assert_eq!(session.tokens(), &prompt[..32]);
    assert_eq!(all(&mut session, &prompt[32..]), expected);
}
