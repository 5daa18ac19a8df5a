//! The tokens of a model as grammars see them: bytes in a prefix tree.

use llguidance::toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{ParserFactory, api::ParserLimits, earley::SlicedBiasComputer};
use std::sync::Arc;
use tritone_runtime::tokenizer::Tokenizer;

use super::Refused;

/// Longer tokens (stretches of spaces, rules of dashes) are never part of a constrained answer.
const MAX_TOKEN: usize = 255;
/// The tree counts its nodes in 22 bits, and has at most one for each byte and the root.
const MAX_BYTES: usize = (1 << 22) - 1;

/// What is made once for a model.
pub(super) struct Vocabulary {
    pub(super) factory: ParserFactory,
    /// Tokens that end an answer, in rising order.
    pub(super) ends: Vec<u32>,
}

impl Vocabulary {
    /// # Errors
    /// A vocabulary with more than 4 MiB of text.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Self, Refused> {
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32)
            .map(|id| match tokenizer.token_bytes(id) {
                // The tree keeps 0xff for itself; no text has it.
                bytes if bytes.len() <= MAX_TOKEN && bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER) => {
                    bytes.to_vec()
                }
                _ => Vec::new(),
            })
            .collect();
        let bytes: usize = words.iter().map(Vec::len).sum();
        if bytes > MAX_BYTES {
            return Err(Refused::new(format!(
                "the tokens of this model have {bytes} bytes together; JSON and tools need a model with at most \
                 {MAX_BYTES}"
            )));
        }
        // End tokens are no business of the tree: whether an answer may end is known without it.
        let info = TokRxInfo::new(words.len() as u32, INVALID_TOKEN);
        let tokens: TokEnv = Arc::new(Tokens { tree: TokTrie::from(&info, &words) });
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&tokens, Default::default(), &slices).map_err(Refused::internal)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self { factory, ends: tokenizer.end_tokens().to_vec() })
    }
}

struct Tokens {
    tree: TokTrie,
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.tree
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.tree.greedy_tokenize(text)
    }

    /// The model chooses among all ways to spell what a grammar forces.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
