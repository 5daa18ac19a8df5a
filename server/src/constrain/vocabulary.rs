//! The tokens of a model as grammars see them: bytes in a prefix tree.

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::toktrie::{INVALID_TOKEN, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use std::sync::Arc;
use tritone_runtime::tokenizer::Tokenizer;

use super::Refused;

/// Longer tokens (stretches of spaces, rules of dashes) are never part of a constrained answer.
const MAX_TOKEN: usize = 255;
/// The tree counts its nodes in 22 bits, and has at most one for each byte and the root.
const MAX_BYTES: usize = (1 << 22) - 1;
/// Classes of tokens by their bytes: none, and powers of two.
const LENGTHS: usize = 9;
/// Classes of tokens by the lexemes that they can go on to.
pub(super) const CLASSES: usize = 8;

/// The bytes of a model's tokens; none for those that no constrained answer has.
pub(super) struct Words {
    words: Vec<Box<[u8]>>,
    ends: Vec<u32>,
}

impl Words {
    /// # Errors
    /// A vocabulary with more than 4 MiB of text.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Self, Refused> {
        let word = |id| match tokenizer.token_bytes(id) {
            // The tree keeps 0xff for itself; no text has it.
            bytes if bytes.len() <= MAX_TOKEN && bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER) => bytes.into(),
            _ => Box::default(),
        };
        let words: Vec<Box<[u8]>> = (0..tokenizer.vocab_size() as u32).map(word).collect();
        let bytes: usize = words.iter().map(|word| word.len()).sum();
        if bytes > MAX_BYTES {
            return Err(Refused::new(format!(
                "the tokens of this model have {bytes} bytes together; JSON and tools need a model with at most \
                 {MAX_BYTES}"
            )));
        }
        Ok(Self { words, ends: tokenizer.end_tokens().to_vec() })
    }
}

/// What is made once for a model.
pub(super) struct Vocabulary {
    pub(super) factory: ParserFactory,
    tokens: Arc<Tokens>,
    /// Tokens that end an answer, in rising order.
    pub(super) ends: Vec<u32>,
    /// Tokens that go on to at most so many lexemes after the one they begin in.
    few: [SimpleVob; CLASSES],
    /// Those of all tokens go on to at most this many.
    most: usize,
    pub(super) without_quote: SimpleVob,
    pub(super) without_tag: SimpleVob,
    /// Of these, the ones that are whole characters.
    pub(super) whole_without_tag: SimpleVob,
    /// Tokens that begin with a quote; after the first set also those with at most 1, 2, 4 ... bytes.
    short: [SimpleVob; LENGTHS],
    /// Tokens that open no object or list.
    pub(super) without_opening: SimpleVob,
}

impl Vocabulary {
    /// # Errors
    /// None that is known.
    pub(super) fn new(Words { words, ends }: &Words) -> Result<Self, Refused> {
        let words: Vec<Vec<u8>> = words.iter().map(|word| word.to_vec()).collect();
        // End tokens are no business of the tree: whether an answer may end is known without it.
        let info = TokRxInfo::new(words.len() as u32, INVALID_TOKEN);
        let tokens = Arc::new(Tokens { tree: TokTrie::from(&info, &words) });
        let shared: TokEnv = Arc::<Tokens>::clone(&tokens);
        let mut factory = ParserFactory::new(&shared, Default::default(), &slices()).map_err(Refused::internal)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            initial_lexer_fuel: 1_000_000,
            step_lexer_fuel: 500_000,
            max_lexer_states: 60_000,
            max_grammar_size: 60_000,
            max_items_in_row: 10_000,
            step_max_items: 200_000,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let set = |holds: &dyn Fn(usize, &[u8]) -> bool| {
            let mut tokens = tokens.tree.alloc_token_set();
            words.iter().enumerate().for_each(|(id, word)| tokens.set(id, holds(id, word)));
            tokens
        };
        let further: Vec<usize> = words.iter().map(|word| lexemes(word)).collect();
        let begins = |word: &[u8]| word.first() == Some(&b'"');
        Ok(Self {
            factory,
            ends: ends.clone(),
            few: std::array::from_fn(|class| set(&|id, _| further[id] <= class)),
            most: further.iter().copied().max().unwrap_or(0),
            without_quote: set(&|_, word| !word.contains(&b'"')),
            without_tag: set(&|_, word| !word.contains(&b'>')),
            whole_without_tag: set(&|_, word| !word.contains(&b'>') && std::str::from_utf8(word).is_ok()),
            short: std::array::from_fn(|class| set(&|_, word| word.len() <= (1 << class >> 1) || begins(word))),
            without_opening: set(&|_, word| !word.iter().any(|byte| b"[{".contains(byte))),
            tokens,
        })
    }

    /// Tokens that go on to at most `lexemes` lexemes; if that is many, to fewer.
    pub(super) fn with_few(&self, lexemes: usize) -> &SimpleVob {
        &self.few[lexemes.min(CLASSES - 1)]
    }

    /// Tokens that certainly fit in a string that has room for so many characters; nothing if all do.
    pub(super) fn fit(&self, room: usize) -> Option<&SimpleVob> {
        let class = room.checked_ilog2().map_or(0, |power| power as usize + 1);
        (room < MAX_TOKEN).then(|| &self.short[class])
    }

    /// No token.
    pub(super) fn no_tokens(&self) -> SimpleVob {
        self.tokens.tree.alloc_token_set()
    }

    /// No token goes on to more lexemes.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// The bytes of a token.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        if (token as usize) < self.tokens.tree.vocab_size() { self.tokens.tree.token(token) } else { &[] }
    }

    /// The fewest tokens that spell a text.
    ///
    /// # Errors
    /// A text that cannot be spelled.
    pub(super) fn cut(&self, text: &[u8]) -> Result<Vec<u32>, Refused> {
        let tree = &self.tokens.tree;
        // From the end: the fewest tokens from each place, and the first of them.
        let mut best: Vec<Option<(usize, u32, usize)>> = vec![None; text.len() + 1];
        best[text.len()] = Some((0, 0, text.len()));
        for begin in (0..text.len()).rev() {
            let mut node = tree.root();
            for (end, &byte) in text.iter().enumerate().skip(begin) {
                match tree.child_at_byte(node, byte) {
                    Some(child) => node = child,
                    None => break,
                }
                if let (Some(token), Some((rest, ..))) = (node.token_id(), best[end + 1])
                    && best[begin].is_none_or(|(count, ..)| rest + 1 < count)
                {
                    best[begin] = Some((rest + 1, token, end + 1));
                }
            }
        }
        let mut tokens = Vec::new();
        let mut place = 0;
        while place < text.len() {
            let Some((_, token, next)) = best[place] else {
                return Err(Refused::new(
                    "the tokens of this model cannot spell JSON, so it cannot answer in this form",
                ));
            };
            tokens.push(token);
            place = next;
        }
        Ok(tokens)
    }
}

/// Sets of tokens that are allowed or not as a whole within most strings: those of characters that stand for themselves,
/// for strings with little room, with more, and without limit.
fn slices() -> [String; 3] {
    [",10", ",30", ","].map(|most| format!("[^\"\\\\\\x00-\\x1F\\x7F]{{1{most}}}"))
}

/// How many lexemes a token can go on to. Each begins with a mark, or right after one that is a lexeme by itself.
fn lexemes(word: &[u8]) -> usize {
    2 * word.iter().filter(|byte| b"[{,:\"<>\n".contains(byte)).count()
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
