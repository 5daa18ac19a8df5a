//! `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`, as GGUF's `tokenizer.ggml.*` keys.
//!
//! Two kinds are read, if their steps are among those of `steps.rs`. Byte-level BPE, and SentencePiece vocabularies that were turned into BPE with byte fallback
//! (Llama 2), whose merges are ranked by what were scores: the rank of the merge that makes a token
//! becomes its score again.

use super::config::{HfConfig, Ids};
use super::steps::{self, Step};
use super::{from_json, malformed};
use crate::checkpoint::{Array, Value};
use crate::config::Pooling;
use crate::error::{Error, Place, Result, shown};
use crate::tokenizer::{END_TOKENS_KEY, SPACE_PREFIX_KEY, SpacePrefix};
use serde::Deserialize;
use std::collections::HashMap;

/// GGUF's types of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Names and contents of the files.
pub(super) struct Files<'f> {
    pub(super) tokenizer: (&'f str, &'f [u8]),
    pub(super) config: Option<(&'f str, &'f [u8])>,
    pub(super) generation: Option<(&'f str, &'f [u8])>,
    /// The chat template by itself, as newer folders have it.
    pub(super) template: Option<(&'f str, &'f [u8])>,
}

#[derive(Deserialize)]
pub(super) struct TokenizerFile {
    pub(super) model: BpeModel,
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedToken>,
    pub(super) normalizer: Option<Step>,
    pub(super) pre_tokenizer: Option<Step>,
    pub(super) post_processor: Option<Step>,
}

#[derive(Deserialize)]
pub(super) struct BpeModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    pub(super) dropout: Option<f32>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

#[derive(Deserialize)]
pub(super) struct AddedToken {
    id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
    /// Whether it takes the white space before it.
    #[serde(default)]
    pub(super) lstrip: bool,
    /// Whether it takes the white space behind it.
    #[serde(default)]
    pub(super) rstrip: bool,
    /// Whether it is found between words only.
    #[serde(default)]
    pub(super) single_word: bool,
    /// Whether it is searched for in what the normalizer makes of a text.
    #[serde(default)]
    pub(super) normalized: bool,
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

impl ChatTemplates {
    fn chosen(self) -> Option<String> {
        match self {
            ChatTemplates::One(template) => Some(template),
            ChatTemplates::Named(all) => {
                let default = all.iter().position(|template| template.name == "default").unwrap_or(0);
                all.into_iter().nth(default).map(|template| template.template)
            }
        }
    }
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Default, Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<Ids>,
}

pub(super) fn refused(file: &str, what: String, fix: &str) -> Error {
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
    steps::check(file, &parsed)?;
    let rule = if parsed.model.byte_fallback { None } else { Some(steps::word_rule(file, &parsed)?) };
    let tokens = Tokens::collect(file, &parsed, vocab_size)?;

    // What GGUF has no key for.
    let mut own = Vec::new();
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
            let prefix = steps::space_prefix(file, &parsed, tokens.pieces())?;
            put("add_space_prefix", Value::Bool(prefix != SpacePrefix::Never));
            if let Some(name) = prefix.own_name() {
                own.push((SPACE_PREFIX_KEY.to_owned(), Value::String(name.into())));
            }
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
    let bos = id_of(&named.bos_token).or_else(|| config.bos_token_id.as_ref()?.0.first().copied());
    let Ids(ends) = generation.eos_token_id.or_else(|| config.eos_token_id.clone()).unwrap_or_default();
    let appended = steps::appended(&parsed).and_then(|name| tokens.id(name));
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
        if ends.iter().any(|&id| Some(id) != eos && id != eot) {
            own.push((END_TOKENS_KEY.to_owned(), Value::Array(Array::from_u32s(&ends))));
        }
    }
    let prepends_bos =
        bos.and_then(|id| tokens.texts.get(id as usize)).is_some_and(|bos| steps::prepends(&parsed, bos));
    // Where no step follows the model nothing is said, and GGUF's readers do what is usual with the kind of tokenizer; that is
    // right for chat models only.
    let is_said = parsed.post_processor.is_some() || pooling.is_some();
    let add_bos = named.add_bos_token.or(is_said.then_some(prepends_bos));
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
    // A folder may have both; the file by itself is the one that applies.
    let template = match files.template {
        Some((file, bytes)) => Some(own_template(file, bytes)?),
        None => named.chat_template.and_then(ChatTemplates::chosen),
    };
    if let Some(template) = template {
        metadata.push(("tokenizer.chat_template".to_owned(), Value::String(template)));
    }
    metadata.append(&mut own);
    Ok(())
}

/// The text of a file with a chat template.
fn own_template(file: &str, bytes: &[u8]) -> Result<String> {
    match std::str::from_utf8(bytes) {
        // Ends of lines as Python reads them.
        Ok(text) => Ok(text.replace("\r\n", "\n")),
        Err(error) => {
            let at = Place::file(file).at(error.valid_up_to() as u64);
            Err(malformed(at, "the chat template is not UTF-8".to_owned()))
        }
    }
}

fn optional<T: Default + serde::de::DeserializeOwned>(file: Option<(&str, &[u8])>) -> Result<T> {
    file.map_or_else(|| Ok(T::default()), |(name, bytes)| from_json(name, bytes))
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

    /// Texts that merges can make.
    fn pieces(&self) -> impl Iterator<Item = &str> {
        let all = self.texts.iter().zip(&self.types);
        all.filter(|(_, kind)| matches!(**kind, NORMAL | USER_DEFINED)).map(|(text, _)| text.as_str())
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
