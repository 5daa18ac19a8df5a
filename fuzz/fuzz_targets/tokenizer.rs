//! Arbitrary text through several vocabularies and back, arbitrary ids, hostile vocabularies, and the streams against
//! what they do to the whole text at once.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tokenizer_specs::{bytes_spec, spm_spec};
use tritone_runtime::checkpoint::Bytes;
use tritone_runtime::gguf::Gguf;
use tritone_runtime::tokenizer::{
    PreTokenizer, SpacePrefix, SpecialTokens, StopStrings, Tokenizer, Utf8Stream, VocabKind, VocabSpec,
};

#[path = "../../runtime/tests/tokenizer_specs/mod.rs"]
mod tokenizer_specs;

const RULES: [PreTokenizer; 3] = [PreTokenizer::Llama3, PreTokenizer::Qwen2, PreTokenizer::Gpt2];

const PREFIXES: [SpacePrefix; 4] =
    [SpacePrefix::Never, SpacePrefix::Always, SpacePrefix::IfMissing, SpacePrefix::FirstIfMissing];

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let model = include_bytes!("../../runtime/tests/data/models/bitnet-relu2/model-i2_s.gguf");
    let model = Gguf::from_bytes(Bytes::from(model.to_vec()), "bitnet-relu2").unwrap();
    let mut all = vec![Tokenizer::from_checkpoint(&model).unwrap(), Tokenizer::new(&spm_spec()).unwrap()];
    all.extend(RULES.map(|rule| Tokenizer::new(&bytes_spec(rule)).unwrap()));
    all
});

#[derive(Debug, Arbitrary)]
enum Input {
    Text { tokenizer: u8, parse: bool, text: String },
    Ids { tokenizer: u8, ids: Vec<u32> },
    Vocab { spec: Spec, text: String },
    Utf8 { bytes: Vec<u8>, cut: u8 },
    Stop { stops: Vec<String>, text: String, cut: u8 },
}

/// Parts of a vocabulary. The bytes that every vocabulary needs are added on request, so that some are accepted.
#[derive(Debug, Arbitrary)]
struct Spec {
    rule: Option<u8>,
    with_bytes: bool,
    tokens: Vec<Vec<u8>>,
    types: Option<Vec<u8>>,
    scores: Vec<f32>,
    merges: Vec<Merge>,
    special: [Option<u8>; 4],
    flags: [Option<bool>; 2],
    space_prefix: Option<u8>,
}

#[derive(Debug, Arbitrary)]
enum Merge {
    Text(Vec<u8>),
    /// Two tokens by number; their joined text becomes a token.
    Pair(u16, u16),
}

fn check_text(tokenizer: &Tokenizer, text: &str, special: SpecialTokens, is_exact: bool) {
    let ids = tokenizer.encode(text, special, true);
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    if is_exact && special == SpecialTokens::Plain {
        // Without the begin token: a hostile vocabulary may name one that has a text.
        assert_eq!(tokenizer.decode(&tokenizer.encode(text, special, false)), text.as_bytes());
    }
}

fn check_vocab(parts: &Spec, text: &str) {
    let kind = parts.rule.map_or(VocabKind::Spm, |rule| VocabKind::Bpe(RULES[usize::from(rule) % 3]));
    let mut spec = match (kind, parts.with_bytes) {
        (VocabKind::Bpe(rule), true) => bytes_spec(rule),
        (VocabKind::Spm, true) => spm_spec(),
        _ => VocabSpec::new(kind),
    };
    let own = spec.tokens.len();
    let mut joined = Vec::new();
    for merge in &parts.merges {
        match merge {
            Merge::Text(text) => joined.push((None, text.clone())),
            Merge::Pair(left, right) => {
                let token = |n: u16| {
                    let n = usize::from(n) % (own + parts.tokens.len()).max(1);
                    spec.tokens.get(n).copied().or_else(|| parts.tokens.get(n - own).map(Vec::as_slice)).unwrap_or(b"")
                };
                let (left, right) = (token(*left), token(*right));
                joined.push((Some([left, right].concat()), [left, b" ", right].concat()));
            }
        }
    }
    spec.tokens.extend(parts.tokens.iter().map(Vec::as_slice));
    for (token, merge) in &joined {
        spec.tokens.extend(token.as_deref().filter(|token| !spec.tokens.contains(token)));
        spec.merges.push(merge);
    }
    let count = spec.tokens.len();
    match &parts.types {
        Some(types) => {
            spec.token_types.resize(own, 1);
            spec.token_types
                .extend(types.iter().map(|&t| i32::from(t % 8)).chain(std::iter::repeat(1)).take(count - own));
        }
        None => spec.token_types.clear(),
    }
    if kind == VocabKind::Spm {
        spec.scores.extend(parts.scores.iter().copied().chain(std::iter::repeat(0.0)).take(count - own));
    }
    let id = |id: Option<u8>| id.map(|id| u32::from(id) % (count as u32 + 1));
    [spec.bos, spec.eos, spec.eot, spec.unk] = parts.special.map(id);
    [spec.add_bos, spec.add_eos] = parts.flags;
    spec.space_prefix = parts.space_prefix.map(|n| PREFIXES[usize::from(n) % 4]);
    match Tokenizer::new(&spec) {
        Ok(tokenizer) => {
            let exact = matches!(kind, VocabKind::Bpe(_));
            check_text(&tokenizer, text, SpecialTokens::Plain, exact);
            check_text(&tokenizer, text, SpecialTokens::Parse, exact);
            assert!(tokenizer.end_tokens().iter().all(|&id| tokenizer.is_end(id)));
        }
        Err(error) => {
            let sentence = error.to_string();
            assert!(!sentence.is_empty() && sentence.len() < 500 && !sentence.contains('\n'));
        }
    }
}

fn check_stop(stops: &[String], text: &str, cut: usize) {
    let Ok(mut matcher) = StopStrings::new(stops) else {
        return;
    };
    let ended = text.char_indices().map(|(i, c)| i + c.len_utf8()).find_map(|end| {
        stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(|stop| end - stop.len()).min()
    });
    let mut shown = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(rest.ceil_char_boundary(cut + 1));
        shown += &matcher.push(piece);
        rest = tail;
    }
    assert_eq!(matcher.stopped(), ended.is_some());
    if ended.is_none() {
        shown += &matcher.finish();
    }
    assert_eq!(shown, text[..ended.unwrap_or(text.len())]);
}

fuzz_target!(|input: Input| {
    let pick = |n: u8| &TOKENIZERS[usize::from(n) % TOKENIZERS.len()];
    match input {
        Input::Text { tokenizer, parse, text } => {
            let special = if parse { SpecialTokens::Parse } else { SpecialTokens::Plain };
            check_text(pick(tokenizer), &text, special, !text.contains('▁'));
        }
        Input::Ids { tokenizer, ids } => {
            let tokenizer = pick(tokenizer);
            let bytes = tokenizer.decode(&ids);
            assert!(bytes.len() <= ids.iter().map(|&id| tokenizer.token_bytes(id).len()).sum());
        }
        Input::Vocab { spec, text } => check_vocab(&spec, &text),
        Input::Utf8 { bytes, cut } => {
            let mut stream = Utf8Stream::new();
            let mut text: String = bytes.chunks(usize::from(cut % 8) + 1).map(|piece| stream.push(piece)).collect();
            text += &stream.finish();
            assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
        Input::Stop { stops, text, cut } => check_stop(&stops, &text, usize::from(cut % 16)),
    }
});
