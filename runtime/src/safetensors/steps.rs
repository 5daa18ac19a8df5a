//! Which steps of a `tokenizer.json` are implemented: normalizer, pre-tokenizer, post-processor, options of BPE and flags of
//! added tokens.
//!
//! A step that is left out gives other tokens without an error. So a file is read if its steps are those listed here, and
//! refused with the name of the step if they are not.

use super::tokenizer::{TokenizerFile, refused};
use crate::error::{Result, shown};
use crate::tokenizer::SpacePrefix;
use serde::Deserialize;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What stands for a space in SentencePiece.
const SPACE: &str = "▁";

/// Steps of a sequence that a message names.
const NAMED_STEPS: usize = 4;

/// A normalizer, a pre-tokenizer or a post-processor, or a sequence of them.
#[derive(Deserialize)]
pub(super) struct Step {
    #[serde(rename = "type")]
    kind: String,
    #[serde(alias = "pretokenizers", alias = "normalizers", alias = "processors", default)]
    steps: Vec<Step>,
    pattern: Option<Pattern>,
    behavior: Option<String>,
    invert: Option<bool>,
    use_regex: Option<bool>,
    add_prefix_space: Option<bool>,
    prepend: Option<String>,
    content: Option<String>,
    replacement: Option<String>,
    prepend_scheme: Option<String>,
    split: Option<bool>,
    /// The parts of a text by itself, in a template.
    #[serde(default)]
    single: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
enum Pattern {
    Regex(String),
    String(String),
}

impl Step {
    /// The steps one after another, sequences within sequences too.
    fn in_order(&self) -> Vec<&Step> {
        match &*self.kind {
            "Sequence" => self.steps.iter().flat_map(Step::in_order).collect(),
            _ => vec![self],
        }
    }

    /// Bytes as characters, with GPT-2's cutting into words or without any. What is not said is true.
    fn is_byte_level(&self, cuts: bool) -> bool {
        self.kind == "ByteLevel" && self.add_prefix_space == Some(false) && self.use_regex.unwrap_or(true) == cuts
    }

    /// The regular expression whose matches become words. Those listed above match all of any text, so that it is the same
    /// whether what lies between matches is kept or removed.
    fn isolated(&self) -> Option<&str> {
        match &self.pattern {
            Some(Pattern::Regex(regex)) if self.splits("Isolated", false) || self.splits("Removed", true) => {
                Some(regex)
            }
            _ => None,
        }
    }

    fn splits(&self, behavior: &str, invert: bool) -> bool {
        self.kind == "Split" && self.behavior.as_deref() == Some(behavior) && self.invert.unwrap_or(false) == invert
    }

    fn prepends_space(&self) -> bool {
        self.kind == "Prepend" && self.prepend.as_deref() == Some(SPACE)
    }

    fn replaces_spaces(&self) -> bool {
        self.kind == "Replace" && self.is_at_spaces() && self.content.as_deref() == Some(SPACE)
    }

    fn is_at_spaces(&self) -> bool {
        matches!(&self.pattern, Some(Pattern::String(text)) if text == " ")
    }

    /// The step as a message names it.
    fn named(&self) -> String {
        let mut options: Vec<String> = Vec::new();
        match &self.pattern {
            Some(Pattern::Regex(text) | Pattern::String(text)) => options.push(format!("'{}'", shown(text))),
            None => {}
        }
        let texts = [
            ("behavior", &self.behavior),
            ("prepend", &self.prepend),
            ("content", &self.content),
            ("replacement", &self.replacement),
            ("prepend_scheme", &self.prepend_scheme),
        ];
        let text = |(key, value): (&str, &Option<String>)| Some(format!("{key} '{}'", shown(value.as_deref()?)));
        options.extend(texts.into_iter().filter_map(text));
        let flags = [
            ("invert", self.invert),
            ("add_prefix_space", self.add_prefix_space),
            ("use_regex", self.use_regex),
            ("split", self.split),
        ];
        options.extend(flags.into_iter().filter_map(|(key, value)| Some(format!("{key} {}", value?))));
        let kind = shown(&self.kind);
        if options.is_empty() { kind } else { format!("{kind} ({})", options.join(", ")) }
    }
}

fn in_order(step: &Option<Step>) -> Vec<&Step> {
    step.as_ref().map(Step::in_order).unwrap_or_default()
}

fn named(steps: &[&Step]) -> String {
    if steps.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<String> = steps.iter().take(NAMED_STEPS).map(|step| step.named()).collect();
    let more = if steps.len() > NAMED_STEPS { " and others" } else { "" };
    format!("{}{more}", names.join(", "))
}

/// Refuses options of BPE, flags of added tokens and post-processors that are not implemented.
pub(super) fn check(file: &str, parsed: &TokenizerFile) -> Result<()> {
    let model = &parsed.model;
    for (key, text) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
            let what = format!("the model's {key} is '{}'", shown(text));
            return Err(refused(file, what, "vocabularies without it are read"));
        }
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        let what = "the model's dropout makes other tokens of a text each time".to_owned();
        return Err(refused(file, what, "set dropout to null in the file: it is for training only"));
    }
    // Where a normalizer puts a space before a text, it does so before the names of tokens that are searched for in what it
    // makes. Control tokens of older Llama files say so too, but chat templates mean them wherever they stand.
    let prepends = in_order(&parsed.normalizer).iter().any(|step| step.kind == "Prepend");
    for token in &parsed.added_tokens {
        let flags = [
            (token.lstrip, "lstrip"),
            (token.rstrip, "rstrip"),
            (token.single_word, "single_word"),
            (token.normalized && !token.special && prepends, "normalized"),
        ];
        if let Some((_, flag)) = flags.into_iter().find(|(set, _)| *set) {
            let what = format!("the added token '{}' is found by the rule {flag}", shown(&token.content));
            let fix = format!(
                "tokens that are found as they are written are read; set {flag} to false in the file if your texts do not have this one"
            );
            return Err(refused(file, what, &fix));
        }
    }
    let kinds = ["ByteLevel", "TemplateProcessing"];
    if let Some(step) = in_order(&parsed.post_processor).into_iter().find(|step| !kinds.contains(&&*step.kind)) {
        let what = format!("the post-processor is {}", step.named());
        return Err(refused(file, what, "ByteLevel and TemplateProcessing are read"));
    }
    Ok(())
}

/// `tokenizer.ggml.pre` of a byte-level tokenizer.
pub(super) fn word_rule(file: &str, parsed: &TokenizerFile) -> Result<&'static str> {
    let (normalizer, cuts) = (in_order(&parsed.normalizer), in_order(&parsed.pre_tokenizer));
    if !cuts.iter().any(|step| step.kind == "ByteLevel") {
        return Err(refused(
            file,
            "the vocabulary is neither one of bytes nor one with byte fallback".to_owned(),
            "byte-level BPE and SentencePiece with byte fallback are read",
        ));
    }
    // What composes characters first (Qwen's NFC) leaves most texts as they are; the rules here do
    // not, as the converters of this field do not.
    if normalizer.iter().any(|step| step.kind != "NFC") {
        let what = format!("the normalizer is {}", named(&normalizer));
        return Err(refused(file, what, "vocabularies of bytes without a normalizer, or with NFC, are read"));
    }
    let rule = match cuts[..] {
        [bytes] if bytes.is_byte_level(true) => Some("gpt-2"),
        [split, bytes] if bytes.is_byte_level(false) => match split.isolated() {
            Some(LLAMA3) => Some("llama-bpe"),
            Some(QWEN2) => Some("qwen2"),
            _ => None,
        },
        _ => None,
    };
    let Some(rule) = rule else {
        let what = format!("text is cut into words by {}", named(&cuts));
        return Err(refused(
            file,
            what,
            "the rules of Llama-3, Qwen2 and GPT-2 are implemented, each without further steps",
        ));
    };
    // Llama-3's rule takes words that are tokens whole.
    if parsed.model.ignore_merges && rule != "llama-bpe" {
        let what = "the model's ignore_merges is true".to_owned();
        return Err(refused(file, what, "it is implemented together with the rule of Llama-3"));
    }
    Ok(rule)
}

/// Where a SentencePiece text gets a space. `pieces` are the texts of tokens that merges can make.
pub(super) fn space_prefix<'p>(
    file: &str,
    parsed: &TokenizerFile,
    mut pieces: impl Iterator<Item = &'p str>,
) -> Result<SpacePrefix> {
    if parsed.model.ignore_merges {
        let what = "the model's ignore_merges is true".to_owned();
        return Err(refused(file, what, "vocabularies with byte fallback are read without it"));
    }
    let (normalizer, cuts) = (in_order(&parsed.normalizer), in_order(&parsed.pre_tokenizer));
    // Gemma's cut at spaces finds none, since the normalizer has replaced them.
    let is_whole = match cuts[..] {
        [] => true,
        [split] => split.splits("MergedWithPrevious", false) && split.is_at_spaces(),
        _ => false,
    };
    let metaspace = match cuts[..] {
        [step] if step.kind == "Metaspace" && step.replacement.as_deref() == Some(SPACE) => Some(step),
        _ => None,
    };
    let scheme = metaspace.map(|step| match (step.prepend_scheme.as_deref(), step.add_prefix_space) {
        (Some("never"), _) | (None, Some(false)) => Some(SpacePrefix::Never),
        (Some("always") | None, _) => Some(SpacePrefix::IfMissing),
        (Some("first"), _) => Some(SpacePrefix::FirstIfMissing),
        _ => None,
    });
    let prefix = match (&normalizer[..], scheme.flatten()) {
        ([prepend, replace], None) if prepend.prepends_space() && replace.replaces_spaces() && is_whole => {
            Some(SpacePrefix::Always)
        }
        ([replace], None) if replace.replaces_spaces() && is_whole => Some(SpacePrefix::Never),
        ([], prefix) => prefix,
        _ => None,
    };
    let Some(prefix) = prefix else {
        let what =
            format!("text is prepared by the normalizer {} and the pre-tokenizer {}", named(&normalizer), named(&cuts));
        return Err(refused(
            file,
            what,
            "with byte fallback, Prepend and Replace of spaces by ▁, Replace alone, and Metaspace are implemented, each without further steps",
        ));
    };
    // Words that begin with a space are merged each for itself then, which is the same if no token reaches into a second.
    let splits = metaspace.is_some_and(|step| step.split != Some(false));
    if splits && let Some(piece) = pieces.find(|piece| piece.chars().skip(1).any(|c| SPACE.contains(c))) {
        let what = format!("Metaspace cuts text before each ▁, but the token '{}' has one within", shown(piece));
        return Err(refused(file, what, "vocabularies with split set to false are read"));
    }
    Ok(prefix)
}

/// Whether the template of a single text begins with `token`.
pub(super) fn prepends(parsed: &TokenizerFile, token: &str) -> bool {
    templates(parsed).any(|template| template.first().is_some_and(|part| part["SpecialToken"]["id"] == token))
}

/// The token with which the template of a single text ends, if it does with one.
pub(super) fn appended(parsed: &TokenizerFile) -> Option<&str> {
    templates(parsed).find_map(|template| template.last()?["SpecialToken"]["id"].as_str())
}

/// Templates of a single text.
fn templates(parsed: &TokenizerFile) -> impl Iterator<Item = &Vec<serde_json::Value>> {
    in_order(&parsed.post_processor).into_iter().map(|step| &step.single)
}
