//! The tokenizer against the vectors of other implementations, its own inverse, and hostile input.

mod tokenizer_specs;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use tokenizer_specs::{bytes_spec, spm_spec};
use tritone_runtime::gguf::Gguf;
use tritone_runtime::tokenizer::{
    PreTokenizer, SpecialTokens, StopError, StopStrings, Tokenizer, Utf8Stream, VocabKind, VocabSpec,
};

const MODELS: [&str; 3] =
    ["bitnet-relu2/model-i2_s.gguf", "llama-silu-bitlinear/model-i2_s.gguf", "qwen3-group128/model-q2_0.gguf"];

fn model_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)
}

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let mut all: Vec<Tokenizer> =
        MODELS.iter().map(|name| Tokenizer::from_checkpoint(&Gguf::open(model_path(name)).unwrap()).unwrap()).collect();
    for rule in [PreTokenizer::Llama3, PreTokenizer::Qwen2, PreTokenizer::Gpt2] {
        all.push(Tokenizer::new(&bytes_spec(rule)).unwrap());
    }
    all
});

static SPM: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::new(&spm_spec()).unwrap());

fn plain(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, SpecialTokens::Plain, false)
}

/// The big vocabularies lie beside the repository; without them these tests say so and pass.
fn shared(file: &str) -> Option<PathBuf> {
    let root = std::env::var_os("TRITONE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let path = root.join("vectors/tokenizer").join(file);
    if !path.exists() {
        assert!(std::env::var_os("TRITONE_SHARED").is_none(), "{} is not there", path.display());
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn check_vectors(file: &str, adds_bos: bool) {
    let Some(path) = shared(file) else {
        return;
    };
    let tokenizer = Tokenizer::from_checkpoint(&Gguf::open(&path).unwrap()).unwrap();
    let read = |extension| std::fs::read_to_string(format!("{}.{extension}", path.display())).unwrap();
    let (inputs, outputs) = (read("inp"), read("out"));
    let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
    let outputs: Vec<&str> = outputs.lines().collect();
    // The last separator is followed by nothing.
    assert_eq!(inputs.len(), outputs.len() + 1);
    assert!(outputs.len() > 40);
    for (text, expected) in inputs.iter().zip(&outputs) {
        let expected: Vec<u32> = expected.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(plain(&tokenizer, text), expected, "{text:?}");
        assert_eq!(String::from_utf8(tokenizer.decode(&expected)).unwrap(), *text);
    }
    assert_eq!(tokenizer.adds_bos(), adds_bos);
}

#[test]
fn llama3_vectors() {
    check_vectors("ggml-vocab-llama-bpe.gguf", true);
}

#[test]
fn qwen2_vectors() {
    check_vectors("ggml-vocab-qwen2.gguf", false);
}

#[test]
fn llama2_vectors() {
    check_vectors("ggml-vocab-llama-spm.gguf", true);
}

#[test]
fn llama3_ends_on_both_tokens() {
    let Some(path) = shared("ggml-vocab-llama-bpe.gguf") else {
        return;
    };
    let tokenizer = Tokenizer::from_checkpoint(&Gguf::open(path).unwrap()).unwrap();
    assert!(tokenizer.is_end(128_001) && tokenizer.is_end(128_009));
    assert_eq!(tokenizer.special_id("<|eot_id|>"), Some(128_009));
    let prompt = "User: Hi<|eot_id|>Assistant: ";
    let ids = tokenizer.encode(prompt, SpecialTokens::Parse, true);
    assert_eq!((ids[0], ids.contains(&128_009)), (128_000, true));
    assert!(!tokenizer.encode(prompt, SpecialTokens::Plain, true).contains(&128_009));
}

#[test]
fn prompts_of_the_reference_models() {
    for (name, tokenizer) in MODELS.iter().zip(TOKENIZERS.iter()) {
        let path = model_path(name).with_file_name("reference.json");
        let reference: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in reference.as_array().unwrap() {
            let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let text = case["prompt"].as_str().unwrap();
            assert!(tokenizer.adds_bos());
            assert_eq!(tokenizer.encode(text, SpecialTokens::Plain, true), expected, "{name}: {text}");
        }
    }
}

#[test]
fn special_tokens() {
    let tokenizer = &TOKENIZERS[0];
    let parse = |text, bos| tokenizer.encode(text, SpecialTokens::Parse, bos);
    assert_eq!(tokenizer.end_tokens(), [1, 2]);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(1)));
    assert_eq!(parse("<|eot_id|>", false), [2]);
    assert_eq!(parse("", true), [0]);
    assert_eq!(parse("<|begin_of_text|>", true), [0], "no second begin");
    assert_eq!(parse("<|begin_of_text|>", false), [0]);
    let mut expected = plain(tokenizer, "a");
    expected.push(2);
    expected.extend(plain(tokenizer, "b"));
    assert_eq!(parse("a<|eot_id|>b", false), expected);
    let text = "a<|eot_id|>b";
    let ids = plain(tokenizer, text);
    assert!(ids.iter().all(|&id| id > 2));
    assert_eq!(tokenizer.decode(&ids), text.as_bytes());
    assert_eq!(tokenizer.decode(&expected), b"ab");
    assert_eq!(tokenizer.token_name(2), Some(&b"<|eot_id|>"[..]));
    assert_eq!(tokenizer.token_name(768), None);
    assert_eq!(tokenizer.decode(&[768, u32::MAX]), b"");
}

#[test]
fn sentencepiece_by_hand() {
    let tokenizer = &*SPM;
    // " hello": the pair of the highest score first.
    assert_eq!(plain(tokenizer, "hello"), [267]);
    assert_eq!(plain(tokenizer, " hello"), [259, 267]);
    // "é" is no token: its bytes are. Byte b is token 3 + b.
    assert_eq!(plain(tokenizer, "é"), [259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(tokenizer.encode("lo", SpecialTokens::Plain, true), [1, 259, 264]);
    // The space is put before each stretch of text, and taken away from each.
    let ids = tokenizer.encode("lo</s>lo", SpecialTokens::Parse, false);
    assert_eq!(ids, [259, 264, 2, 259, 264]);
    assert_eq!(tokenizer.decode(&ids), b"lolo");
    // Names of byte tokens and control tokens are not text.
    assert!(!plain(tokenizer, "<s><0x41>").contains(&1) && !plain(tokenizer, "<0x41>").contains(&(3 + 0x41)));
    // With an unknown token, bytes may be missing.
    let mut spec = spm_spec();
    spec.token_types[3 + 0xa9] = 5;
    assert_eq!(plain(&Tokenizer::new(&spec).unwrap(), "é"), [259, 0]);
    spec.unk = None;
    spec.token_types[0] = 5;
    let error = Tokenizer::new(&spec).unwrap_err().to_string();
    assert!(error.contains("0xa9"), "{error}");
}

#[test]
fn user_defined_tokens_are_found_in_plain_text() {
    let mut spec = bytes_spec(PreTokenizer::Qwen2);
    spec.tokens.extend([&b"<think>"[..], b"<|im_end|>", b"<think>x"]);
    spec.token_types = vec![1; 259];
    spec.token_types.extend([4, 3, 4]);
    let n = spec.tokens.len() as u32;
    let tokenizer = Tokenizer::new(&spec).unwrap();
    assert_eq!(plain(&tokenizer, "<think><think>x"), [n - 3, n - 1], "the longest wins");
    assert!(!plain(&tokenizer, "<|im_end|>").contains(&(n - 2)));
    assert_eq!(tokenizer.decode(&[n - 3, n - 2]), b"<think>");
    assert!(tokenizer.is_end(n - 2));
}

#[test]
fn marked_names_are_text() {
    let tokenizer = Tokenizer::new(&spm_spec()).unwrap();
    let written = "hello</s> <s>hello<unk></s";
    let marked = tokenizer.mark_controls(written).unwrap();
    assert_ne!(marked, written);
    let as_marked = |text: &str, add_bos| tokenizer.encode_marked(text, add_bos, usize::MAX).unwrap();
    assert_eq!(as_marked(&marked, true), tokenizer.encode(written, SpecialTokens::Plain, true));
    // Around them the names of a template mean tokens.
    let ends = |text: &str| [tokenizer.encode(text, SpecialTokens::Plain, true), vec![2]].concat();
    assert_eq!(as_marked(&format!("<s>{marked}</s>"), true), ends(written));
    assert_eq!(tokenizer.mark_controls("hello").unwrap(), "hello");
    assert_eq!(tokenizer.mark_controls("a\u{fdd0}b"), None);
    // Names that overlap, one within what is left when the other is marked.
    let mut spec = spm_spec();
    spec.tokens.extend([&b"<<e>"[..], b"e>>", b"!"]);
    spec.token_types.extend([3, 3, 1]);
    spec.scores.extend([0.0; 3]);
    let tokenizer = Tokenizer::new(&spec).unwrap();
    for written in ["<<e>>", "<<e>>>", "e>><<e>", "<<<e>>>>"] {
        let marked = tokenizer.mark_controls(written).unwrap();
        let tokens = tokenizer.encode_marked(&marked, false, usize::MAX).unwrap();
        assert_eq!(tokens, tokenizer.encode(written, SpecialTokens::Plain, false));
    }
    // One character cannot be marked.
    *spec.token_types.last_mut().unwrap() = 3;
    assert_eq!(Tokenizer::new(&spec).unwrap().mark_controls("hello!"), None);
}

#[test]
fn texts_of_too_many_tokens_are_not_cut_to_their_end() {
    let mut words = bytes_spec(PreTokenizer::Qwen2);
    words.tokens.push(b"<think>");
    words.token_types = vec![1; words.tokens.len()];
    *words.token_types.last_mut().unwrap() = 4;
    let mut unknown = spm_spec();
    unknown.token_types[3 + 0xa9] = 5;
    for spec in [words, spm_spec(), unknown] {
        let tokenizer = Tokenizer::new(&spec).unwrap();
        for text in ["", "hello", "hello hello▁▁ hello", "<s>hello</s>", "<think><think> a", "éé𝄞𝄞𝄞", "日本"]
        {
            for special in [SpecialTokens::Parse, SpecialTokens::Plain] {
                let tokens = tokenizer.encode(text, special, true);
                for most in 0..tokens.len() + 2 {
                    let expected = (tokens.len() <= most).then_some(&tokens);
                    let within = tokenizer.encode_within(text, special, true, most);
                    assert_eq!(within.as_ref(), expected, "{text} in {most}");
                    let marked = tokenizer.encode_marked(text, true, most).map(|tokens| tokens.len());
                    let length = tokenizer.encode(text, SpecialTokens::Parse, true).len();
                    assert_eq!(marked, (length <= most).then_some(length), "{text} in {most}");
                }
            }
        }
        // Cut to its end this would take long.
        let long = "a".repeat(1 << 25);
        assert_eq!(tokenizer.encode_within(&long, SpecialTokens::Plain, true, 1000), None);
    }
}

#[test]
fn hostile_text_takes_linear_time() {
    for unit in ["a", " ", "ab", "\n", "é", "0", "'", " a", "the "] {
        let text = unit.repeat(200_000 / unit.len());
        for tokenizer in TOKENIZERS.iter().chain([&*SPM]) {
            let ids = plain(tokenizer, &text);
            assert_eq!(tokenizer.decode(&ids), text.as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn decode_inverts_encode(text in "\\PC{0,40}|[ \t\r\n'a-e0-9.é日🦊]{0,60}", parse: bool) {
        let special = if parse { SpecialTokens::Parse } else { SpecialTokens::Plain };
        // SentencePiece cannot tell this character from a space.
        let text = text.replace('▁', "");
        for tokenizer in TOKENIZERS.iter().chain([&*SPM]) {
            let ids = tokenizer.encode(&text, special, true);
            prop_assert_eq!(String::from_utf8(tokenizer.decode(&ids)).unwrap(), text.as_str());
        }
    }

    #[test]
    fn utf8_stream_equals_the_whole(bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x80..0xf8_u8], 0..40), cut in 1..7_usize) {
        let mut stream = Utf8Stream::new();
        let mut text: String = bytes.chunks(cut).map(|piece| stream.push(piece)).collect();
        text += &stream.finish();
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn utf8_stream_holds_back_only_a_character(text in "[aé日🦊]{0,20}") {
        let mut stream = Utf8Stream::new();
        let mut shown = String::new();
        for (i, byte) in text.bytes().enumerate() {
            shown += &stream.push(&[byte]);
            prop_assert_eq!(&shown, &text[..text.floor_char_boundary(i + 1)]);
        }
    }

    #[test]
    fn stop_strings_equal_a_search(
        stops in prop::collection::vec("[abé]{1,4}", 0..4),
        text in "[abcé]{0,30}",
        cuts in prop::collection::vec(0..6_usize, 0..20),
    ) {
        // The first end of any stop string, and the longest that ends there.
        let ends = text.char_indices().map(|(i, c)| i + c.len_utf8());
        let cut = ends.into_iter().find_map(|end| {
            stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(|stop| end - stop.len()).min()
        });
        let mut matcher = StopStrings::new(&stops).unwrap();
        let (mut shown, mut rest) = (String::new(), text.as_str());
        for cut in cuts {
            let (piece, tail) = rest.split_at(rest.floor_char_boundary(cut));
            shown += &matcher.push(piece);
            rest = tail;
            let seen = &text[..text.len() - rest.len()];
            if !matcher.stopped() {
                let held = &seen[shown.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)), "held for nothing");
            }
        }
        shown += &matcher.push(rest);
        prop_assert_eq!(matcher.stopped(), cut.is_some());
        if cut.is_none() {
            shown += &matcher.finish();
        }
        prop_assert_eq!(shown.as_str(), &text[..cut.unwrap_or(text.len())]);
    }
}

#[test]
fn stop_strings_are_checked() {
    assert_eq!(StopStrings::new(["a", ""]).unwrap_err(), StopError::Empty(1));
    assert_eq!(StopStrings::new(["a"; 65]).unwrap_err(), StopError::TooMany(65));
    assert!(matches!(StopStrings::new(["a".repeat(5000)]), Err(StopError::TooLong { index: 0, bytes: 5000 })));
    let mut stop = StopStrings::new(["aab"]).unwrap();
    assert_eq!((stop.push("aaa"), stop.push("ac")), ("a".into(), "aaac".into()));
    assert_eq!((stop.push("xaab"), stop.push("more")), ("x".into(), String::new()));
}

fn refusal(spec: &VocabSpec) -> String {
    let error = Tokenizer::new(spec).expect_err("this vocabulary must be refused").to_string();
    assert!(!error.contains('\n') && error.len() < 300, "{error}");
    error
}

#[test]
fn hostile_vocabularies() {
    let bpe = VocabKind::Bpe(PreTokenizer::Llama3);
    assert_eq!(refusal(&VocabSpec::new(bpe)), "the vocabulary has no tokens");
    let change = |change: &dyn Fn(&mut VocabSpec<'static>)| {
        let mut spec = bytes_spec(PreTokenizer::Llama3);
        change(&mut spec);
        refusal(&spec)
    };
    assert_eq!(change(&|s| s.merges.push(b"a nothere")), "merge 3 names \"nothere\", which is not in the vocabulary");
    assert!(change(&|s| s.merges.push(b"a z")).contains("\"az\""), "the merged token is missing");
    for merge in [&b""[..], b"a", b" a", b"a ", b"a b c", b"\xff b", "a ▁".as_bytes()] {
        assert!(change(&|s| s.merges.push(merge)).starts_with("merge 3"));
    }
    assert_eq!(change(&|s| s.merges.push(b"a b")), "merges 0 and 3 join the same pair, \"a b\"");
    assert!(change(&|s| s.tokens.push(b"ab")).contains("are both \"ab\""));
    assert!(change(&|s| { s.tokens.extend([&b"<|x|>"[..]; 2]) }).contains("are both \"<|x|>\""));
    assert!(
        change(&|s| {
            s.tokens.remove(0);
            s.merges.clear();
        })
        .contains("no token for the byte 0x")
    );
    assert!(change(&|s| s.token_types = vec![1; 3]).contains("token_type has 3 entries"));
    assert!(change(&|s| s.token_types = vec![7; s.tokens.len()]).contains("token 0 has type 7"));
    assert!(change(&|s| s.eos = Some(1 << 20)).contains("eos_token_id is 1048576"));
    assert!(change(&|s| s.bos = Some(u32::MAX)).contains("bos_token_id"));
    let long: &'static [u8] = vec![b'x'; 5 << 20].leak();
    assert!(
        change(&|s| {
            s.tokens.push(long);
            s.token_types = vec![1; 259];
            s.token_types.push(3);
        })
        .contains("special tokens")
    );
    let mut spec = spm_spec();
    spec.scores.pop();
    assert!(refusal(&spec).contains("tokenizer.ggml.scores has"));
    let mut spec = spm_spec();
    spec.scores[265] = f32::NAN;
    assert_eq!(refusal(&spec), "the score of token 265 is not a number");
    let mut spec = spm_spec();
    spec.tokens[4] = b"<0x00>";
    assert!(refusal(&spec).contains("are both \"<0x00>\""));
}
