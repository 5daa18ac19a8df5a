//! Reads a [`VocabSpec`] from a checkpoint.

use super::{END_TOKENS_KEY, PreTokenizer, SPACE_PREFIX_KEY, SpacePrefix, Tokenizer, VocabError, VocabKind, VocabSpec};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, shown};

/// The vocabulary of Llama-3, whose files may lack the rule that cuts words.
const LLAMA3_TOKENS: usize = 128_256;

impl Tokenizer {
    /// The tokenizer in a model file.
    ///
    /// # Errors
    /// A missing or ill-typed key, a tokenizer or a rule that is not implemented, and what
    /// [`Tokenizer::new`] refuses.
    pub fn from_checkpoint(file: &Checkpoint) -> Result<Self> {
        let tokens = file.array_str("tokenizer.ggml.tokens")?;
        let kind = match file.str("tokenizer.ggml.model")? {
            "gpt2" => VocabKind::Bpe(pre_tokenizer(file, tokens.len())?),
            "llama" => VocabKind::Spm,
            other => {
                return Err(refuse(
                    file,
                    format!("the tokenizer \"{}\" is not known", other.escape_debug()),
                    "Tritone reads gpt2 (byte-level BPE) and llama (SentencePiece)",
                ));
            }
        };
        let mut spec = VocabSpec::new(kind);
        spec.tokens = tokens.map(str::as_bytes).collect();
        spec.token_types = file.find("tokenizer.ggml.token_type")?.unwrap_or_default();
        match kind {
            VocabKind::Bpe(_) => {
                let merges = file.array_str("tokenizer.ggml.merges")?;
                spec.merges = merges.map(str::as_bytes).collect();
            }
            VocabKind::Spm => {
                spec.scores = file.get("tokenizer.ggml.scores")?;
                spec.space_prefix = space_prefix(file)?;
            }
        }
        spec.bos = file.find("tokenizer.ggml.bos_token_id")?;
        spec.eos = file.find("tokenizer.ggml.eos_token_id")?;
        spec.eot = file.find("tokenizer.ggml.eot_token_id")?;
        spec.ends = file.find(END_TOKENS_KEY)?.unwrap_or_default();
        spec.unk = file.find("tokenizer.ggml.unknown_token_id")?;
        spec.add_bos = file.find("tokenizer.ggml.add_bos_token")?;
        spec.add_eos = file.find("tokenizer.ggml.add_eos_token")?;
        Tokenizer::new(&spec).map_err(|error: VocabError| {
            refuse(file, error.to_string(), "the file is damaged or was converted wrongly: get it again")
        })
    }
}

fn space_prefix(file: &Checkpoint) -> Result<Option<SpacePrefix>> {
    if let Some(name) = file.find::<&str>(SPACE_PREFIX_KEY)? {
        return SpacePrefix::from_own_name(name).map(Some).ok_or_else(|| {
            refuse(
                file,
                format!("{SPACE_PREFIX_KEY} is \"{}\"", shown(name)),
                "this program knows if-missing and first-if-missing; a newer one may have written the file",
            )
        });
    }
    let add: Option<bool> = file.find("tokenizer.ggml.add_space_prefix")?;
    Ok(add.map(|add| if add { SpacePrefix::Always } else { SpacePrefix::Never }))
}

fn pre_tokenizer(file: &Checkpoint, tokens: usize) -> Result<PreTokenizer> {
    let name = file.find::<&str>("tokenizer.ggml.pre")?;
    match name {
        None | Some("default") if tokens == LLAMA3_TOKENS => Ok(PreTokenizer::Llama3),
        None => Err(refuse(
            file,
            format!("tokenizer.ggml.pre is missing, and {tokens} tokens are not Llama-3's {LLAMA3_TOKENS}"),
            "convert the model again with a converter that writes this key",
        )),
        Some(name) => PreTokenizer::from_name(name).ok_or_else(|| {
            refuse(
                file,
                format!("the rule \"{}\" (tokenizer.ggml.pre) is not known", name.escape_debug()),
                "Tritone reads llama-bpe, qwen2, gpt-2 and their kin",
            )
        }),
    }
}

fn refuse(file: &Checkpoint, what: String, fix: &str) -> Error {
    Error::Tokenizer { what: format!("{}: {what}", file.file()), fix: fix.into() }
}
