//! `tokenizer.json` and the files beside it: what is read gives the ids of Hugging Face's `tokenizers`, and what is not
//! implemented is refused by name.

mod llama_folder;

use llama_folder::Folder;
use serde_json::{Value, json};
use tritone_runtime::checkpoint::{self, Bytes, Checkpoint};
use tritone_runtime::gguf::{Gguf, Writer};
use tritone_runtime::template::{ChatTemplate, Message};
use tritone_runtime::tokenizer::{SpecialTokens, Tokenizer};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn sequence(list: &str, steps: &[Value]) -> Value {
    json!({"type": "Sequence", list: steps})
}

fn cut(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// The byte-level tokenizer with other steps.
fn steps(normalizer: Value, pre_tokenizer: Value) -> Folder {
    Folder::llama().json("tokenizer.json", |file| {
        file["normalizer"] = normalizer;
        file["pre_tokenizer"] = pre_tokenizer;
    })
}

#[test]
fn steps_of_published_byte_level_tokenizers() {
    let rule = |normalizer: Value, pre_tokenizer: Value| {
        steps(normalizer, pre_tokenizer).open().unwrap().get::<&str>("tokenizer.ggml.pre").unwrap().to_owned()
    };
    let cuts = |regex: &str| sequence("pretokenizers", &[cut(regex), byte_level(false)]);
    let nfc = json!({"type": "NFC"});
    assert_eq!(rule(Value::Null, cuts(LLAMA3)), "llama-bpe");
    let kept = json!({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Removed", "invert": true});
    assert_eq!(rule(Value::Null, sequence("pretokenizers", &[kept, byte_level(false)])), "llama-bpe");
    assert_eq!(rule(nfc.clone(), cuts(QWEN2)), "qwen2");
    assert_eq!(rule(sequence("normalizers", &[]), cuts(QWEN2)), "qwen2");
    assert_eq!(rule(sequence("normalizers", &[nfc]), cuts(QWEN2)), "qwen2");
    assert_eq!(rule(Value::Null, byte_level(true)), "gpt-2");
    assert_eq!(rule(Value::Null, json!({"type": "ByteLevel", "add_prefix_space": false})), "gpt-2");
    // Llama 3.
    let whole = |file: &mut Value| file["model"]["ignore_merges"] = json!(true);
    Folder::llama().json("tokenizer.json", whole).open().unwrap();
}

#[test]
fn steps_that_are_not_implemented() {
    let cuts = sequence("pretokenizers", &[cut(LLAMA3), byte_level(false)]);
    for (normalizer, name) in [
        (json!({"type": "Lowercase"}), "Lowercase"),
        (json!({"type": "Strip", "strip_left": true, "strip_right": true}), "Strip"),
        (sequence("normalizers", &[json!({"type": "NFC"}), json!({"type": "NFKC"})]), "NFKC"),
        (json!({"type": "Replace", "pattern": {"String": "a"}, "content": "b"}), "Replace ('a', content 'b')"),
        (json!({"type": "\u{1b}[2J"}), "\\u{1b}[2J"),
    ] {
        steps(normalizer, cuts.clone()).refused(&["tokenizer.json: the normalizer is", name, "NFC"]);
    }
    let with = |key: &str, value: Value, mut step: Value| {
        step[key] = value;
        step
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let at_spaces = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": false});
    for (parts, name) in [
        (vec![digits, byte_level(true)], "Digits, ByteLevel"),
        (vec![json!({"type": "Punctuation", "behavior": "Contiguous"}), byte_level(true)], "Punctuation (behavior"),
        (vec![at_spaces, byte_level(false)], "Split (' ', behavior 'Removed'"),
        (vec![with("behavior", json!("Removed"), cut(LLAMA3)), byte_level(false)], "behavior 'Removed'"),
        (vec![with("invert", json!(true), cut(LLAMA3)), byte_level(false)], "invert true"),
        (vec![cut(LLAMA3), byte_level(true)], "use_regex true"),
        (vec![cut(LLAMA3), cut(QWEN2), byte_level(false)], "Split"),
        (vec![byte_level(false)], "use_regex false"),
        (vec![with("add_prefix_space", json!(true), byte_level(true))], "add_prefix_space true"),
        // What is not said is true.
        (vec![json!({"type": "ByteLevel", "use_regex": true})], "ByteLevel (use_regex true)"),
    ] {
        let pre_tokenizer = sequence("pretokenizers", &parts);
        steps(Value::Null, pre_tokenizer).refused(&["tokenizer.json: text is cut into words by", name, "GPT-2"]);
    }
    let many = vec![byte_level(true); 1000];
    steps(Value::Null, sequence("pretokenizers", &many)).refused(&["and others"]);

    let model = |key: &str, value: Value| Folder::llama().json("tokenizer.json", |file| file["model"][key] = value);
    model("continuing_subword_prefix", json!("##")).refused(&["continuing_subword_prefix", "'##'"]);
    model("end_of_word_suffix", json!("</w>")).refused(&["end_of_word_suffix", "'</w>'"]);
    model("dropout", json!(0.1)).refused(&["dropout"]);
    for harmless in [("continuing_subword_prefix", json!("")), ("dropout", json!(0.0))] {
        model(harmless.0, harmless.1).open().unwrap();
    }
    let whole = |file: &mut Value| file["model"]["ignore_merges"] = json!(true);
    steps(Value::Null, byte_level(true)).json("tokenizer.json", whole).refused(&["ignore_merges"]);
    let post = json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]});
    Folder::llama()
        .json("tokenizer.json", |file| file["post_processor"] = post)
        .refused(&["the post-processor is RobertaProcessing"]);
}

#[test]
fn added_tokens_that_are_found_in_other_ways() {
    let token = |key: &str| Folder::llama().json("tokenizer.json", |file| file["added_tokens"][2][key] = json!(true));
    for key in ["lstrip", "rstrip", "single_word"] {
        token(key).refused(&["tokenizer.json: the added token '<|eot_id|>'", key]);
    }
    token("normalized").open().unwrap();
    // Not found where a normalizer puts nothing before it.
    let with = |special: bool| {
        pieces(prepend(), Value::Null).json("tokenizer.json", |file| {
            file["added_tokens"][2]["normalized"] = json!(true);
            file["added_tokens"][2]["special"] = json!(special);
        })
    };
    with(false).refused(&["'</s>'", "normalized"]);
    with(true).open().unwrap();
}

fn replace() -> Value {
    json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
}

fn prepend() -> Value {
    sequence("normalizers", &[json!({"type": "Prepend", "prepend": "▁"}), replace()])
}

/// SentencePiece with byte fallback: the pieces of " hello", from 259 on.
fn pieces(normalizer: Value, pre_tokenizer: Value) -> Folder {
    let names = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let words = ["▁", "h", "e", "l", "o", "lo", "he", "hel", "hello", "▁hello"].map(str::to_owned);
    let all = names.chain(bytes).chain(words).enumerate();
    let vocab: serde_json::Map<String, Value> = all.map(|(id, text)| (text, json!(id))).collect();
    let added = |(id, text): (usize, &str)| json!({"id": id, "content": text, "special": true, "normalized": false});
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"].into_iter().enumerate().map(added).collect();
    let tokenizer = json!({
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [["l", "o"], ["h", "e"], ["he", "l"], ["hel", "lo"], ["▁", "hello"]],
        },
    });
    Folder::llama().with("tokenizer.json", tokenizer.to_string()).with("tokenizer_config.json", "{}")
}

fn metaspace(options: Value) -> Value {
    let mut step = json!({"type": "Metaspace", "replacement": "▁"});
    step.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    step
}

fn tokenizer(folder: &Folder) -> Tokenizer {
    Tokenizer::from_checkpoint(&folder.open().unwrap()).unwrap()
}

const TEXTS: [&str; 8] =
    ["hello", " hello", "▁hello", "hello hello", "hello</s>hello", "</s>hello", "</s> hello", "  hello </s>"];

/// Ids of `TEXTS` as `tokenizers` 0.23.3 makes them, without the post-processor.
#[test]
fn spaces_before_text() {
    const WITH: u32 = 268;
    const WITHOUT: u32 = 267;
    const SPACE: u32 = 259;
    const END: u32 = 2;
    let never: [&[u32]; 8] = [
        &[WITHOUT],
        &[WITH],
        &[WITH],
        &[WITHOUT, WITH],
        &[WITHOUT, END, WITHOUT],
        &[END, WITHOUT],
        &[END, WITH],
        &[SPACE, WITH, SPACE, END],
    ];
    let always: [&[u32]; 8] = [
        &[WITH],
        &[SPACE, WITH],
        &[SPACE, WITH],
        &[WITH, WITH],
        &[WITH, END, WITH],
        &[END, WITH],
        &[END, SPACE, WITH],
        &[SPACE, SPACE, WITH, SPACE, END],
    ];
    let if_missing: [&[u32]; 8] = [
        &[WITH],
        &[WITH],
        &[WITH],
        &[WITH, WITH],
        &[WITH, END, WITH],
        &[END, WITH],
        &[END, WITH],
        &[SPACE, WITH, SPACE, END],
    ];
    let mut first = if_missing;
    first[4] = &[WITH, END, WITHOUT];
    first[5] = &[END, WITHOUT];
    let gemma = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    for (folder, expected) in [
        (pieces(prepend(), Value::Null), always),
        (pieces(replace(), gemma), never),
        (pieces(Value::Null, metaspace(json!({"prepend_scheme": "always", "split": false}))), if_missing),
        (pieces(Value::Null, metaspace(json!({"prepend_scheme": "always", "split": true}))), if_missing),
        (pieces(Value::Null, metaspace(json!({}))), if_missing),
        (pieces(Value::Null, metaspace(json!({"prepend_scheme": "first", "split": false}))), first),
        (pieces(Value::Null, metaspace(json!({"prepend_scheme": "never", "split": false}))), never),
        (pieces(Value::Null, metaspace(json!({"add_prefix_space": false}))), never),
    ] {
        let tokenizer = tokenizer(&folder);
        for (text, expected) in TEXTS.into_iter().zip(expected) {
            assert_eq!(tokenizer.encode(text, SpecialTokens::Parse, false), expected, "{text:?}");
            // A token that begins the text alone does not make its end a beginning.
            assert_eq!(tokenizer.encode_marked(text, false, usize::MAX).as_deref(), Some(expected), "{text:?}, marked");
        }
        for text in ["hello", "hello hello", "hello</s>hello"] {
            let ids = tokenizer.encode(text, SpecialTokens::Parse, true);
            assert_eq!(String::from_utf8(tokenizer.decode(&ids)).unwrap(), text.replace("</s>", ""));
        }
    }
}

#[test]
fn pieces_that_are_prepared_otherwise() {
    let parts = &["tokenizer.json: text is prepared by the normalizer", "byte fallback"];
    let refused = |normalizer: Value, pre_tokenizer: Value, name: &str| {
        pieces(normalizer, pre_tokenizer).refused(&[parts[0], name, parts[1]]);
    };
    refused(Value::Null, Value::Null, "none and the pre-tokenizer none");
    refused(json!({"type": "Prepend", "prepend": "▁"}), Value::Null, "Prepend");
    refused(sequence("normalizers", &[json!({"type": "NFKC"}), replace()]), Value::Null, "NFKC, Replace");
    let lower =
        sequence("normalizers", &[json!({"type": "Lowercase"}), json!({"type": "Prepend", "prepend": "▁"}), replace()]);
    refused(lower, Value::Null, "Lowercase, Prepend");
    refused(
        sequence("normalizers", &[json!({"type": "Prepend", "prepend": "_"}), replace()]),
        Value::Null,
        "prepend '_'",
    );
    let other = json!({"type": "Replace", "pattern": {"String": " "}, "content": "_"});
    refused(other, Value::Null, "content '_'");
    refused(replace(), byte_level(true), "ByteLevel");
    refused(Value::Null, metaspace(json!({"replacement": "_"})), "replacement '_'");
    refused(Value::Null, metaspace(json!({"prepend_scheme": "last"})), "'last'");
    refused(prepend(), metaspace(json!({})), "Metaspace");
    let whole = |file: &mut Value| file["model"]["ignore_merges"] = json!(true);
    pieces(replace(), Value::Null).json("tokenizer.json", whole).refused(&["ignore_merges"]);
    // A token over two words is never made where words are merged apart.
    for (split, text) in [(true, "o▁h"), (true, "▁▁")] {
        pieces(Value::Null, metaspace(json!({"split": split})))
            .json("tokenizer.json", |file| file["model"]["vocab"][text] = json!(269))
            .refused(&["Metaspace", text, "split"]);
    }
}

/// A GGUF file of the hand-made pieces with one key more.
fn with_key(key: &str, value: checkpoint::Value) -> Checkpoint {
    let mut writer = Writer::new();
    for (key, value) in pieces(prepend(), Value::Null).open().unwrap().metadata() {
        writer.key(key, value.clone());
    }
    writer.key(key, value);
    let file = writer.begin(Vec::new()).unwrap().finish().unwrap();
    Gguf::from_bytes(Bytes::from(file), "made.gguf").unwrap().into_checkpoint()
}

#[track_caller]
fn refused_key(key: &str, value: checkpoint::Value, part: &str) {
    let message = Tokenizer::from_checkpoint(&with_key(key, value)).unwrap_err().to_string();
    assert!(message.contains(part), "{message}");
}

#[test]
fn spaces_before_text_in_gguf() {
    let key = "tritone.space_prefix";
    let text = |text: &str| checkpoint::Value::String(text.into());
    let made = Tokenizer::from_checkpoint(&with_key(key, text("first-if-missing"))).unwrap();
    assert_eq!(made.encode(" hello", SpecialTokens::Plain, false), [268]);
    refused_key(key, text("later\n"), "made.gguf: tritone.space_prefix is \"later\\n\"");
}

#[test]
fn ends_in_gguf() {
    let key = "tritone.end_token_ids";
    let ids = |ids: &[u32]| checkpoint::Value::Array(checkpoint::Array::from_u32s(ids));
    let made = Tokenizer::from_checkpoint(&with_key(key, ids(&[7, 5]))).unwrap();
    assert!(made.is_end(7) && made.is_end(5) && !made.is_end(6));
    refused_key(key, ids(&[5, 1 << 20]), "tritone.end_token_ids is 1048576");
    refused_key(key, checkpoint::Value::String("5".into()), "an array of integers");
}

#[test]
fn a_template_of_its_own() {
    let render = |folder: &Folder| {
        let checkpoint = folder.open().unwrap();
        let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
        let template = ChatTemplate::from_checkpoint(&checkpoint, &tokenizer)?;
        template.render(&[Message::new("user", "Hi")], true)
    };
    const NAME: &str = "chat_template.jinja";
    let own = "{% for m in messages %}<{{ m.content }}>\r\n.{% endfor %}";
    assert_eq!(render(&Folder::llama().with(NAME, own)).unwrap(), "<Hi>\n.");
    // Also where the older file has none, or none that fits.
    let without = |file: &mut Value| drop(file.as_object_mut().unwrap().remove("chat_template"));
    assert_eq!(render(&Folder::llama().json("tokenizer_config.json", without).with(NAME, own)).unwrap(), "<Hi>\n.");
    assert_eq!(render(&Folder::llama()).unwrap(), "User: Hi<|eot_id|>Assistant: ");
    Folder::llama().with(NAME, [b'a', 0xff]).refused(&[NAME, "byte 1", "UTF-8"]);
    Folder::llama().with(NAME, "a".repeat(100_000)).refused(&["chat template", "100000 bytes"]);
    Folder::llama().with(NAME, "{% for").refused(&["chat template"]);
}

#[test]
fn whether_texts_begin_with_a_token() {
    let adds = |post_processor: Value, config: Value| {
        let folder = Folder::llama().json("tokenizer.json", |file| file["post_processor"] = post_processor);
        let folder = folder.json("tokenizer_config.json", |file| file["add_bos_token"] = config);
        tokenizer(&folder).adds_bos()
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let begin = json!({"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}});
    let template =
        |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
    let adding = template(json!([begin, text]));
    assert!(adds(Value::Null, Value::Null), "as is usual with this kind");
    assert!(!adds(bytes.clone(), Value::Null));
    assert!(!adds(template(json!([text])), Value::Null));
    assert!(adds(adding.clone(), Value::Null));
    assert!(adds(sequence("processors", &[bytes.clone(), adding.clone()]), Value::Null));
    // What the other file says outright comes first.
    assert!(adds(bytes, json!(true)));
    assert!(!adds(adding, json!(false)));
}

#[test]
fn all_tokens_that_end_an_answer() {
    let ends = |generation: Value| {
        let folder = Folder::llama().with("generation_config.json", json!({"eos_token_id": generation}).to_string());
        let checkpoint = folder.open().unwrap();
        let own = checkpoint.find::<Vec<u32>>("tritone.end_token_ids").unwrap();
        (Tokenizer::from_checkpoint(&checkpoint).unwrap().end_tokens().to_vec(), own)
    };
    // 1 and 2 are known by their names.
    assert_eq!(ends(json!([1, 300, 301])), (vec![1, 2, 300, 301], Some(vec![1, 300, 301])));
    assert_eq!(ends(json!([1, 300])), (vec![1, 2, 300], None));
    assert_eq!(ends(json!(301)), (vec![1, 2, 301], None));
    // None, as some write it.
    assert_eq!(ends(json!([-1, 300])), (vec![1, 2, 300], None));
    assert_eq!(ends(Value::Null).0, [1, 2]);
    let folder = Folder::llama().with("generation_config.json", r#"{"eos_token_id": [1, 300, 99999]}"#);
    folder.refused(&["end_token_ids is 99999", "512 tokens"]);
}
