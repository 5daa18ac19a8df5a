//! Sequences that share steps have the bits that each has alone, whoever comes and goes beside it, whatever they share.

use std::path::PathBuf;
use tritone_runtime::batch::{Batch, Feed, Logits, PAGE_TOKENS, Sequence};
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::scores::{Need, Scores};

const MODELS: [&str; 3] =
    ["bitnet-relu2/model-i2_s.gguf", "llama-silu-bitlinear/model-tq1_0.gguf", "qwen3-group128/model-q2_0.gguf"];

fn load(name: &str, threads: usize) -> Model {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name);
    let options = LoadOptions { threads: Some(threads), ..LoadOptions::default() };
    Model::load(Source::File(path), &options, &mut |_| {}).unwrap()
}

fn text(model: &Model, seed: u32, n: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size as u32;
    (0..n as u32).map(|i| (i * i * 3 + i * 17 + seed * 101 + 7) % vocab).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// The logits after each of `tokens`, alone.
fn alone(model: &Model, tokens: &[u32]) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    let mut session = model.session(None).unwrap();
    session.prefill_all(tokens, 0, &mut |_, logits| all.push(bits(logits))).unwrap();
    all
}

/// That the logits are those after the sequence's tokens.
#[track_caller]
fn check(logits: &Logits, sequence: &Sequence, expected: &[Vec<u32>]) {
    let expected = &expected[sequence.tokens().len() - 1];
    for (id, logit) in logits.scores().iter() {
        assert_eq!(logit.to_bits(), expected[id as usize], "token {id}");
    }
}

#[test]
fn sequences_come_and_go() {
    for name in MODELS {
        for threads in [1, 3] {
            let model = load(name, threads);
            let mut batch = Batch::new(&model).unwrap();
            // Sequence i joins at step i with a prompt of its own length, cut in chunks of 5, and then takes single tokens.
            let n_tokens = [23, 40, 9, 61];
            let texts: Vec<_> = (0..).zip(n_tokens).map(|(i, n)| text(&model, i, n)).collect();
            let expected: Vec<_> = texts.iter().map(|text| alone(&model, text)).collect();
            let mut sequences: Vec<_> = texts.iter().map(|_| batch.sequence()).collect();
            let mut checked = 0;
            for step in 0.. {
                let mut feeds = Vec::new();
                let mut fed = Vec::new();
                for (i, sequence) in sequences.iter_mut().enumerate().filter(|(i, _)| *i <= step) {
                    let done = sequence.tokens().len();
                    let left = &texts[i][done..];
                    if left.is_empty() {
                        continue;
                    }
                    let n = if done < texts[i].len() / 2 { 5 } else { 1 };
                    let needs = [Some(Need::All), None, Some(Need::top(3)), Some(Need::Within { below: 1.0 })];
                    feeds.push(Feed {
                        sequence,
                        tokens: &left[..n.min(left.len())],
                        need: needs[(i + step) % 4].clone(),
                    });
                    fed.push(i);
                }
                if feeds.is_empty() {
                    break;
                }
                let wanted: Vec<_> =
                    fed.iter().zip(&feeds).filter(|(_, feed)| feed.need.is_some()).map(|(i, _)| *i).collect();
                let logits = batch.step(&mut feeds).unwrap();
                assert_eq!(logits.len(), wanted.len());
                for (i, logits) in wanted.into_iter().zip(logits) {
                    check(&logits.unwrap(), &sequences[i], &expected[i]);
                    checked += 1;
                }
            }
            assert!(checked > 40, "{checked}");
            assert!(sequences.iter().zip(&texts).all(|(sequence, text)| sequence.tokens() == text));
        }
    }
}

#[test]
fn forks_share_pages_and_no_fate() {
    let model = load(MODELS[0], 2);
    let limit = model.config().context_length;
    let n = (2 * PAGE_TOKENS + 30).min(limit - 8);
    let mut batch = Batch::new(&model).unwrap();
    let mut first = batch.sequence();
    let common = text(&model, 1, n);
    batch.step(&mut [Feed { sequence: &mut first, tokens: &common, need: None }]).unwrap();
    let pages: Vec<usize> = first.pages().collect();
    assert_eq!(pages.len(), n.div_ceil(PAGE_TOKENS));
    for kept in [n, n - 7, PAGE_TOKENS.min(n - 1), 1] {
        let mut fork = first.fork(kept);
        assert_eq!(fork.tokens(), &common[..kept]);
        assert!(fork.pages().eq(pages.iter().copied().take(kept.div_ceil(PAGE_TOKENS))));
        let more = text(&model, 9, 6);
        let whole = [&common[..kept], &more].concat();
        let expected = alone(&model, &whole);
        // The first goes on as well.
        let own = text(&model, 5, 2);
        let mut other = first.fork(n);
        let mut feeds = [
            Feed { sequence: &mut fork, tokens: &more, need: Some(Need::All) },
            Feed { sequence: &mut other, tokens: &own, need: Some(Need::All) },
        ];
        let logits = batch.step(&mut feeds).unwrap();
        check(logits[0].as_ref().unwrap(), &fork, &expected);
        check(logits[1].as_ref().unwrap(), &other, &alone(&model, &[&common[..], &own].concat()));
        // Whole pages stay shared; the one written to is its own.
        let shared = kept / PAGE_TOKENS;
        assert!(fork.pages().take(shared).eq(pages.iter().copied().take(shared)));
        assert!(fork.pages().skip(shared).all(|page| !pages.contains(&page)));
    }
    assert!(first.pages().eq(pages), "nobody wrote to the first one's pages");
}

#[test]
fn refused_feeds_change_nothing() {
    let model = load(MODELS[0], 1);
    let mut batch = Batch::new(&model).unwrap();
    let (mut good, mut bad) = (batch.sequence(), batch.sequence());
    let vocab = model.config().vocab_size as u32;
    let long = vec![1; model.config().context_length + 1];
    for tokens in [&[][..], &[vocab], &long] {
        let mut feeds = [
            Feed { sequence: &mut good, tokens: &[1], need: Some(Need::All) },
            Feed { sequence: &mut bad, tokens, need: Some(Need::All) },
        ];
        assert!(batch.step(&mut feeds).is_err());
        assert!(good.tokens().is_empty() && bad.tokens().is_empty());
    }
    assert!(batch.step(&mut []).unwrap().is_empty());
    let logits = batch.step(&mut [Feed { sequence: &mut good, tokens: &[1], need: Some(Need::All) }]).unwrap();
    assert!(matches!(logits[0].as_ref().unwrap().scores(), Scores::All(all) if all.len() == vocab as usize));
}

#[test]
fn log_probabilities_are_those_of_a_session() {
    let model = load(MODELS[1], 1);
    let mut session = model.session(None).unwrap();
    session.prefill(&[1, 2], 0).unwrap();
    let mut batch = Batch::new(&model).unwrap();
    let mut sequence = batch.sequence();
    let feed = Feed { sequence: &mut sequence, tokens: &[1, 2], need: Some(Need::All) };
    let logits = batch.step(&mut [feed]).unwrap().swap_remove(0).unwrap();
    let Scores::All(all) = logits.scores() else { panic!("all were asked for") };
    let softmax = batch.log_softmax(all);
    let ids = 0..all.len() as u32;
    assert!(ids.into_iter().all(|id| softmax.of(all[id as usize]).to_bits() == session.logprob(id).to_bits()));
}
