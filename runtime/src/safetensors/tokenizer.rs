//! `tokenizer.json` and `tokenizer_config.json`, as GGUF's `tokenizer.ggml.*` keys.
//!
//! Two kinds are read. Byte-level BPE, whose rule for cutting words is a regular expression: it is
//! compared with those that are implemented, and an unknown one is refused, because another cut
//! means other tokens. And SentencePiece vocabularies that were turned into BPE with byte fallback
//! (Llama 2), whose merges are ranked by what were scores: the rank of the merge that makes a token
//! becomes its score again.

use super::config::HfConfig;
use super::from_json;
use crate::checkpoint::{Array, Value};
use crate::config::Pooling;
use crate::error::{Error, Result, shown};
use serde::Deserialize;
use std::collections::HashMap;

/// GGUF's types of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Names and contents of the files.
pub(super) struct Files<'f> {
    pub(super) tokenizer: (&'f str, &'f [u8]),
    pub(super) config: Option<(&'f str, &'f [u8])>,
    pub(super) generation: Option<(&'f str, &'f [u8])>,
}

#[derive(Deserialize)]
struct TokenizerFile {
    model: BpeModel,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Step>,
    pre_tokenizer: Option<Step>,
    post_processor: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct BpeModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

/// A normalizer or a pre-tokenizer, or a sequence of them.
#[derive(Deserialize)]
struct Step {
    #[serde(rename = "type")]
    kind: String,
    #[serde(alias = "pretokenizers", alias = "normalizers", default)]
    steps: Vec<Step>,
    pattern: Option<Pattern>,
    use_regex: Option<bool>,
    prepend_scheme: Option<String>,
    add_prefix_space: Option<bool>,
}

#[derive(Deserialize)]
enum Pattern {
    Regex(String),
    String(#[allow(dead_code, reason = "its presence is what counts")] String),
}

impl Step {
    fn all(&self) -> Vec<&Step> {
        std::iter::once(self).chain(self.steps.iter().flat_map(Step::all)).collect()
    }
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<NamedToken>,
    eos_token: Option<NamedToken>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<ChatTemplates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NamedToken {
    Name(String),
    Object { content: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ChatTemplates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Default, Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<super::config::OneOrMore>,
}

fn refused(file: &str, what: String, fix: &str) -> Error {
    Error::Tokenizer { what: format!("{file}: {what}"), fix: fix.to_owned() }
}

/// Appends the tokenizer's keys. The vocabulary is filled up to `vocab_size`, the number of
/// vectors in the embedding, with tokens that no text gives. `pooling` is that of an embedding model.
pub(super) fn metadata(
    files: &Files<'_>,
    config: &HfConfig,
    pooling: Option<Pooling>,
    vocab_size: usize,
    metadata: &mut Vec<(String, Value)>,
) -> Result<()> {
    let file = files.tokenizer.0;
    let parsed: TokenizerFile = from_json(file, files.tokenizer.1)?;
    if parsed.model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        let kind = shown(parsed.model.kind.as_deref().unwrap_or_default());
        return Err(refused(file, format!("a tokenizer of type '{kind}'"), "BPE is read"));
    }
    let rule = if parsed.model.byte_fallback { None } else { Some(word_rule(file, &parsed)?) };
    let tokens = Tokens::collect(file, &parsed, vocab_size)?;

    let mut put = |key: &str, value: Value| metadata.push((format!("tokenizer.ggml.{key}"), value));
    match rule {
        Some(rule) => {
            put("model", Value::String("gpt2".into()));
            put("pre", Value::String(rule.into()));
            let merges = parsed.model.merges.iter().map(|merge| match merge {
                Merge::Text(text) => text.clone(),
                Merge::Pair(left, right) => format!("{left} {right}"),
            });
            put("merges", Value::Array(Array::from_strings(merges)));
        }
        None => {
            put("model", Value::String("llama".into()));
            put("scores", Value::Array(Array::from_f32s(&tokens.scores(&parsed))));
            put("add_space_prefix", Value::Bool(adds_space_prefix(&parsed)));
        }
    }
    put("tokens", Value::Array(Array::from_strings(&tokens.texts)));
    put("token_type", Value::Array(Array::from_i32s(&tokens.types)));
    if let Some(id) = parsed.model.unk_token.as_ref().and_then(|name| tokens.id(name)) {
        put("unknown_token_id", Value::U32(id));
    }

    let named: TokenizerConfig = optional(files.config)?;
    let generation: GenerationConfig = optional(files.generation)?;
    let id_of = |named: &Option<NamedToken>| match named {
        Some(NamedToken::Name(name) | NamedToken::Object { content: name }) => tokens.id(name),
        None => None,
    };
    let bos = id_of(&named.bos_token).or(config.bos_token_id);
    let ends: Vec<u32> =
        generation.eos_token_id.or_else(|| config.eos_token_id.clone()).map_or(vec![], |e| e.ids().to_vec());
    let appended = appended(&parsed).and_then(|name| tokens.id(name));
    let eos = match pooling {
        // What such a model pools is the token that was put behind texts in its training. The name in
        // tokenizer_config.json may be that of the token with which the model it was made from ended its turns.
        Some(_) => appended.or(ends.first().copied()).or(id_of(&named.eos_token)),
        None => id_of(&named.eos_token).or(ends.first().copied()),
    };
    if let Some(bos) = bos {
        put("bos_token_id", Value::U32(bos));
    }
    if let Some(eos) = eos {
        put("eos_token_id", Value::U32(eos));
    }
    // A second token that ends a turn.
    if let Some(&eot) = ends.iter().find(|&&id| Some(id) != eos) {
        put("eot_token_id", Value::U32(eot));
    }
    let prepends_bos = bos.and_then(|id| tokens.texts.get(id as usize)).is_some_and(|bos| prepends(&parsed, bos));
    // What GGUF's readers assume where nothing is said is right for chat models only.
    let add_bos = named.add_bos_token.or((prepends_bos || pooling.is_some()).then_some(prepends_bos));
    if let Some(add) = add_bos {
        put("add_bos_token", Value::Bool(add));
    }
    let add_eos = match pooling {
        Some(Pooling::Last) => Some(true),
        _ => named.add_eos_token.or((appended.is_some() && appended == eos).then_some(true)),
    };
    if let Some(add) = add_eos {
        put("add_eos_token", Value::Bool(add));
    }
    let template = named.chat_template.and_then(|templates| match templates {
        ChatTemplates::One(template) => Some(template),
        ChatTemplates::Named(all) => {
            let default = all.iter().position(|template| template.name == "default").unwrap_or(0);
            all.into_iter().nth(default).map(|template| template.template)
        }
    });
    if let Some(template) = template {
        metadata.push(("tokenizer.chat_template".to_owned(), Value::String(template)));
    }
    Ok(())
}

fn optional<T: Default + serde::de::DeserializeOwned>(file: Option<(&str, &[u8])>) -> Result<T> {
    file.map_or_else(|| Ok(T::default()), |(name, bytes)| from_json(name, bytes))
}

/// `tokenizer.ggml.pre` of a byte-level tokenizer.
fn word_rule(file: &str, parsed: &TokenizerFile) -> Result<&'static str> {
    let steps = parsed.pre_tokenizer.as_ref().map(Step::all).unwrap_or_default();
    if !steps.iter().any(|step| step.kind == "ByteLevel") {
        return Err(refused(
            file,
            "the vocabulary is neither one of bytes nor one with byte fallback".to_owned(),
            "byte-level BPE and SentencePiece with byte fallback are read",
        ));
    }
    // What composes characters first (Qwen's NFC) leaves most texts as they are; the rules here do
    // not, as the converters of this field do not.
    let regexes: Vec<&str> = steps
        .iter()
        .filter_map(|step| match &step.pattern {
            Some(Pattern::Regex(regex)) => Some(regex.as_str()),
            _ => None,
        })
        .collect();
    let built_in = steps.iter().any(|step| step.kind == "ByteLevel" && step.use_regex != Some(false));
    match regexes[..] {
        [LLAMA3] => Ok("llama-bpe"),
        [QWEN2] => Ok("qwen2"),
        [] if built_in => Ok("gpt-2"),
        _ => Err(refused(
            file,
            format!(
                "text is cut into words by {regexes:?}",
                regexes = regexes.iter().map(|r| shown(r)).collect::<Vec<_>>()
            ),
            "the rules of Llama-3, Qwen2 and GPT-2 are implemented; convert the model to GGUF with its own converter",
        )),
    }
}

/// Whether a SentencePiece text gets a space before it.
fn adds_space_prefix(parsed: &TokenizerFile) -> bool {
    let steps = |step: &Option<Step>| {
        step.as_ref().is_some_and(|step| {
            step.all().iter().any(|step| match &*step.kind {
                "Prepend" => true,
                "Metaspace" => {
                    step.prepend_scheme.as_deref().map_or(step.add_prefix_space != Some(false), |s| s != "never")
                }
                _ => false,
            })
        })
    };
    steps(&parsed.normalizer) || steps(&parsed.pre_tokenizer)
}

/// Whether the template of a single text begins with `token`.
fn prepends(parsed: &TokenizerFile, token: &str) -> bool {
    templates(parsed).any(|template| template.first().is_some_and(|part| part["SpecialToken"]["id"] == token))
}

/// The token with which the template of a single text ends, if it does with one.
fn appended(parsed: &TokenizerFile) -> Option<&str> {
    templates(parsed).find_map(|template| template.last()?["SpecialToken"]["id"].as_str())
}

/// Templates of a single text.
fn templates(parsed: &TokenizerFile) -> impl Iterator<Item = &Vec<serde_json::Value>> {
    let nested = parsed.post_processor.iter().filter_map(|post| post["processors"].as_array()).flatten();
    parsed.post_processor.iter().chain(nested).filter_map(|step| step["single"].as_array())
}

struct Tokens {
    texts: Vec<String>,
    types: Vec<i32>,
    ids: HashMap<String, u32>,
}

impl Tokens {
    fn collect(file: &str, parsed: &TokenizerFile, vocab_size: usize) -> Result<Tokens> {
        let spm = parsed.model.byte_fallback;
        let mut texts: Vec<Option<String>> = vec![None; vocab_size];
        let mut types = vec![UNUSED; vocab_size];
        let mut ids = HashMap::with_capacity(parsed.model.vocab.len());
        let own = parsed.model.vocab.iter().map(|(text, &id)| {
            let kind = match text.as_str() {
                _ if Some(text) == parsed.model.unk_token.as_ref() => UNKNOWN,
                byte if spm && byte.len() == 6 && byte.starts_with("<0x") && byte.ends_with('>') => BYTE,
                _ => NORMAL,
            };
            (id, text, kind)
        });
        let added = parsed.added_tokens.iter().map(|token| {
            let kind = match token.special {
                _ if Some(&token.content) == parsed.model.unk_token.as_ref() => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
            (token.id, &token.content, kind)
        });
        for (id, text, kind) in own.chain(added) {
            let Some(place) = texts.get_mut(id as usize) else {
                let what = format!("token {id} '{}' is past the {vocab_size} vectors of the embedding", shown(text));
                return Err(refused(file, what, "tokenizer and weights are of different models"));
            };
            if place.as_ref().is_some_and(|other| other != text) {
                let what = format!("two tokens have the id {id}, '{}' is one of them", shown(text));
                return Err(refused(file, what, "the file is damaged, download it again"));
            }
            *place = Some(text.clone());
            types[id as usize] = kind;
            ids.insert(text.clone(), id);
        }
        let texts = texts.into_iter().enumerate().map(|(id, text)| text.unwrap_or_else(|| format!("[PAD{id}]")));
        Ok(Tokens { texts: texts.collect(), types, ids })
    }

    fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// Minus the rank of the merge that makes each token; tokens that none makes come last.
    fn scores(&self, parsed: &TokenizerFile) -> Vec<f32> {
        let merges = &parsed.model.merges;
        let mut scores = vec![-(merges.len() as f32); self.texts.len()];
        for (rank, merge) in merges.iter().enumerate().rev() {
            let made = match merge {
                Merge::Text(text) => text.replacen(' ', "", 1),
                Merge::Pair(left, right) => format!("{left}{right}"),
            };
            if let Some(id) = self.id(&made) {
                scores[id as usize] = -(rank as f32);
            }
        }
        scores
    }
}
