//! A vocabulary as plain data, its checks, and the tables made of it.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

use super::alphabet;
use super::split::PreTokenizer;

/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VocabKind {
    /// Byte-level BPE (`tokenizer.ggml.model` = `gpt2`) over words cut by the rule given.
    Bpe(PreTokenizer),
    /// SentencePiece with scores and byte fallback (`llama`).
    Spm,
}

/// Where SentencePiece puts a space before text. Special tokens cut a text into stretches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpacePrefix {
    /// Nowhere.
    Never,
    /// Before each stretch.
    Always,
    /// Before each stretch that does not begin with one.
    IfMissing,
    /// Before the text, unless it begins with one or with a special token.
    FirstIfMissing,
}

impl SpacePrefix {
    /// What GGUF's `add_space_prefix` cannot say, under [`SPACE_PREFIX_KEY`].
    pub(crate) fn own_name(self) -> Option<&'static str> {
        match self {
            Self::Never | Self::Always => None,
            Self::IfMissing => Some("if-missing"),
            Self::FirstIfMissing => Some("first-if-missing"),
        }
    }

    pub(super) fn from_own_name(name: &str) -> Option<Self> {
        [Self::IfMissing, Self::FirstIfMissing].into_iter().find(|prefix| prefix.own_name() == Some(name))
    }

    /// Whether a stretch that is not empty gets a space; `begins` says whether the text begins with it.
    pub(super) fn applies(self, stretch: &str, begins: bool) -> bool {
        let is_missing = !stretch.starts_with([' ', '▁']);
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::IfMissing => is_missing,
            Self::FirstIfMissing => is_missing && begins,
        }
    }
}

/// Our own key beside GGUF's `tokenizer.ggml.add_space_prefix`: where that does not say exactly what is meant.
pub(crate) const SPACE_PREFIX_KEY: &str = "tritone.space_prefix";

/// Our own key beside GGUF's two ids of tokens that end an answer: all of them, where there are more.
pub(crate) const END_TOKENS_KEY: &str = "tritone.end_token_ids";

/// A vocabulary before it is checked: what a file says, borrowed from it.
///
/// Ids are positions in `tokens`. Lists that may be absent are empty.
#[derive(Debug, Clone)]
pub struct VocabSpec<'a> {
    /// How text becomes tokens.
    pub kind: VocabKind,
    /// The text of every token: in the byte-level alphabet for BPE, with `▁` for a space for SentencePiece.
    pub tokens: Vec<&'a [u8]>,
    /// One of 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte for every token. If empty, control and
    /// byte tokens are told by their names.
    pub token_types: Vec<i32>,
    /// SentencePiece only: the score of every token; a pair of a higher score is joined first.
    pub scores: Vec<f32>,
    /// BPE only: `left right` per rule, in order of rank.
    pub merges: Vec<&'a [u8]>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// Tokens that end an answer beside these two.
    pub ends: Vec<u32>,
    /// Stands for text that cannot be spelled.
    pub unk: Option<u32>,
    /// Whether texts begin with `bos`; by default true for SentencePiece and Llama-3.
    pub add_bos: Option<bool>,
    /// Whether texts end with `eos`; by default false.
    pub add_eos: Option<bool>,
    /// SentencePiece only: where a space is put before text; by default always.
    pub space_prefix: Option<SpacePrefix>,
}

impl VocabSpec<'_> {
    /// A vocabulary of `kind` with nothing in it.
    pub fn new(kind: VocabKind) -> Self {
        Self {
            kind,
            tokens: Vec::new(),
            token_types: Vec::new(),
            scores: Vec::new(),
            merges: Vec::new(),
            bos: None,
            eos: None,
            eot: None,
            ends: Vec::new(),
            unk: None,
            add_bos: None,
            add_eos: None,
            space_prefix: None,
        }
    }
}

/// Why a vocabulary is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VocabError {
    /// No tokens.
    #[error("the vocabulary has no tokens")]
    Empty,
    /// More tokens or bytes than 32-bit positions can name.
    #[error("the vocabulary has {tokens} tokens and {bytes} bytes of text, more than 2^24 tokens or 2^30 bytes")]
    TooLarge {
        /// Number of tokens.
        tokens: usize,
        /// Their length together.
        bytes: usize,
    },
    /// A list that must have one entry per token does not.
    #[error("{list} has {found} entries for {tokens} tokens: the file is damaged or was converted wrongly")]
    Length {
        /// The GGUF key of the list.
        list: &'static str,
        /// Its length.
        found: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// A token type that is not 1 to 6.
    #[error("token {token} has type {found}; types are 1 to 6")]
    Type {
        /// The token's id.
        token: usize,
        /// The type found.
        found: i32,
    },
    /// A score that is not a number.
    #[error("the score of token {token} is not a number")]
    Score {
        /// The token's id.
        token: usize,
    },
    /// Two tokens with the same text.
    #[error("tokens {first} and {second} are both \"{text}\": every token must have a text of its own")]
    Duplicate {
        /// The smaller id.
        first: u32,
        /// The larger id.
        second: u32,
        /// What both stand for, shortened.
        text: String,
    },
    /// A byte that no token can spell.
    #[error("the vocabulary has no token for the byte 0x{byte:02x}, so not every text could be written in it")]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// A rule that is not two parts with a space between.
    #[error("merge {merge}, \"{text}\", is not two tokens with a space between them")]
    Merge {
        /// The rule's rank.
        merge: usize,
        /// The rule, shortened.
        text: String,
    },
    /// A rule that names a text that is no token.
    #[error("merge {merge} names \"{text}\", which is not in the vocabulary")]
    MergeUnknown {
        /// The rule's rank.
        merge: usize,
        /// The part that is missing, shortened.
        text: String,
    },
    /// A rule that is given twice.
    #[error("merges {first} and {second} join the same pair, \"{text}\"")]
    MergeTwice {
        /// The smaller rank.
        first: u32,
        /// The larger rank.
        second: usize,
        /// The rule, shortened.
        text: String,
    },
    /// A special id that is no token.
    #[error("{key} is {id}, but the vocabulary has only {tokens} tokens")]
    Id {
        /// The GGUF key of the id.
        key: &'static str,
        /// The id.
        id: u32,
        /// Number of tokens.
        tokens: usize,
    },
    /// Special tokens whose texts are too long together to be searched for.
    #[error("the special tokens are {bytes} bytes long together, the limit is {MAX_SPECIAL_BYTES}")]
    SpecialsTooLong {
        /// Their length.
        bytes: usize,
    },
}

const MAX_TOKENS: usize = 1 << 24;
const MAX_BYTES: usize = 1 << 30;
/// The search automaton takes tens of bytes of memory for each of these; the largest known vocabulary has 80 KB.
pub(super) const MAX_SPECIAL_BYTES: usize = 4 << 20;

/// Names of tokens that end an answer whatever the file says about its end token.
const END_NAMES: [&[u8]; 7] =
    [b"<|eot_id|>", b"<|im_end|>", b"<|end_of_text|>", b"<|endoftext|>", b"<|eom_id|>", b"<|end|>", b"<end_of_turn>"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Byte(u8),
}

/// The tokens' bytes one after another, and the lookup from text to id.
#[derive(Debug, Clone)]
pub(super) struct Vocab {
    bytes: Vec<u8>,
    /// Token `i` is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<u32>,
    pub(super) kinds: Vec<TokenKind>,
    /// Ids of the normal tokens, by their bytes. Seeded per process, so that no file can be made to collide.
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

/// A text for an error message: readable, on one line, not too long.
pub(super) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(160)]);
    let mut short: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().count() > 40 {
        short.push('…');
    }
    short
}

/// The byte that a token named `<0x41>` stands for.
fn byte_name(text: &[u8]) -> Option<u8> {
    let hex = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    match hex {
        [b'0'..=b'9' | b'A'..=b'F' | b'a'..=b'f', b'0'..=b'9' | b'A'..=b'F' | b'a'..=b'f'] => {
            u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
        }
        _ => None,
    }
}

fn kind_of(spec: &VocabSpec, id: usize) -> Result<TokenKind, VocabError> {
    let text = spec.tokens[id];
    if END_NAMES.contains(&text) {
        return Ok(TokenKind::Control);
    }
    let is = |special: Option<u32>| special == Some(id as u32);
    Ok(match spec.token_types.get(id) {
        Some(1 | 5) => TokenKind::Normal,
        Some(2) => TokenKind::Unknown,
        Some(3) => TokenKind::Control,
        // Runs of spaces of Gemma, which merges make: text has spaces where their names have another character.
        Some(4) if spec.kind == VocabKind::Spm && std::str::from_utf8(text).is_ok_and(|text| text.contains('▁')) => {
            TokenKind::Normal
        }
        Some(4) => TokenKind::UserDefined,
        // A byte token whose name is not a byte can only be shown as it is written.
        Some(6) => byte_name(text).map_or(TokenKind::UserDefined, TokenKind::Byte),
        Some(&found) => return Err(VocabError::Type { token: id, found }),
        None if is(spec.unk) => TokenKind::Unknown,
        None if is(spec.bos) || is(spec.eos) || is(spec.eot) => TokenKind::Control,
        None if text.starts_with(b"<|") && text.ends_with(b"|>") => TokenKind::Control,
        None => match (spec.kind, byte_name(text)) {
            (VocabKind::Spm, Some(byte)) => TokenKind::Byte(byte),
            _ => TokenKind::Normal,
        },
    })
}

fn check(spec: &VocabSpec) -> Result<(), VocabError> {
    let tokens = spec.tokens.len();
    if tokens == 0 {
        return Err(VocabError::Empty);
    }
    let bytes = spec.tokens.iter().fold(0_usize, |sum, token| sum.saturating_add(token.len()));
    if tokens > MAX_TOKENS || bytes > MAX_BYTES {
        return Err(VocabError::TooLarge { tokens, bytes });
    }
    let types = spec.token_types.len();
    if types != 0 && types != tokens {
        return Err(VocabError::Length { list: "tokenizer.ggml.token_type", found: types, tokens });
    }
    if spec.kind == VocabKind::Spm {
        let found = spec.scores.len();
        if found != tokens {
            return Err(VocabError::Length { list: "tokenizer.ggml.scores", found, tokens });
        }
        if let Some(token) = spec.scores.iter().position(|score| score.is_nan()) {
            return Err(VocabError::Score { token });
        }
    }
    let ids = [
        ("tokenizer.ggml.bos_token_id", spec.bos),
        ("tokenizer.ggml.eos_token_id", spec.eos),
        ("tokenizer.ggml.eot_token_id", spec.eot),
        ("tokenizer.ggml.unknown_token_id", spec.unk),
    ];
    let ids = ids.into_iter().filter_map(|(key, id)| Some((key, id?)));
    for (key, id) in ids.chain(spec.ends.iter().map(|&id| (END_TOKENS_KEY, id))) {
        if id as usize >= tokens {
            return Err(VocabError::Id { key, id, tokens });
        }
    }
    Ok(())
}

impl Vocab {
    pub(super) fn new(spec: &VocabSpec) -> Result<Self, VocabError> {
        check(spec)?;
        let count = spec.tokens.len();
        let mut vocab = Self {
            bytes: Vec::with_capacity(spec.tokens.iter().map(|token| token.len()).sum()),
            ends: Vec::with_capacity(count),
            kinds: Vec::with_capacity(count),
            table: HashTable::with_capacity(count),
            hasher: DefaultHashBuilder::default(),
        };
        for id in 0..count {
            vocab.push(spec, id)?;
        }
        Ok(vocab)
    }

    fn push(&mut self, spec: &VocabSpec, id: usize) -> Result<(), VocabError> {
        let text = spec.tokens[id];
        let kind = kind_of(spec, id)?;
        let start = self.bytes.len();
        let mut by_text = kind == TokenKind::Normal && !text.is_empty();
        match (kind, spec.kind, std::str::from_utf8(text)) {
            (TokenKind::Byte(byte), ..) => self.bytes.push(byte),
            // A normal token outside the alphabet is never reached by merging: it is only ever printed.
            (TokenKind::Normal, VocabKind::Bpe(_), Ok(text)) if alphabet::append_bytes(text, &mut self.bytes) => {}
            (TokenKind::Normal, VocabKind::Spm, Ok(text)) => {
                self.bytes.extend_from_slice(text.replace('▁', " ").as_bytes());
            }
            _ => {
                self.bytes.extend_from_slice(text);
                by_text = false;
            }
        }
        self.ends.push(self.bytes.len() as u32);
        self.kinds.push(kind);
        if by_text {
            let bytes = &self.bytes[start..];
            if let Some(first) = self.find(bytes) {
                return Err(VocabError::Duplicate { first, second: id as u32, text: shown(bytes) });
            }
            let hash = self.hasher.hash_one(bytes);
            let Self { bytes, ends, table, hasher, .. } = self;
            table.insert_unique(hash, id as u32, |&other| hasher.hash_one(slice(bytes, ends, other)));
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; for a control token, its name.
    ///
    /// # Panics
    /// If `id` is not below `len()`.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        slice(&self.bytes, &self.ends, id)
    }

    /// The normal token with these bytes.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(bytes);
        self.table.find(hash, |&id| self.bytes(id) == bytes).copied()
    }

    /// The tokens that end an answer: those the file names and those known by name, in rising order.
    pub(super) fn end_tokens(&self, spec: &VocabSpec) -> Vec<u32> {
        let named = (0..self.len() as u32).filter(|&id| END_NAMES.contains(&spec.tokens[id as usize]));
        let mut ids: Vec<u32> = named.chain(spec.eos).chain(spec.eot).chain(spec.ends.iter().copied()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

fn slice<'a>(bytes: &'a [u8], ends: &[u32], id: u32) -> &'a [u8] {
    let id = id as usize;
    let start = if id == 0 { 0 } else { ends[id - 1] as usize };
    &bytes[start..ends[id] as usize]
}

/// Finds special tokens in text: the leftmost, and the longest of those that start there.
#[derive(Debug, Clone)]
pub(super) struct Specials {
    search: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl Specials {
    /// The special tokens whose kind is `wanted`.
    pub(super) fn new(vocab: &Vocab, wanted: impl Fn(TokenKind) -> bool) -> Result<Self, VocabError> {
        let ids: Vec<u32> = (0..vocab.len() as u32)
            .filter(|&id| wanted(vocab.kinds[id as usize]) && !vocab.bytes(id).is_empty())
            .collect();
        let mut sorted: Vec<(&[u8], u32)> = ids.iter().map(|&id| (vocab.bytes(id), id)).collect();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(VocabError::Duplicate { first: pair[0].1, second: pair[1].1, text: shown(pair[0].0) });
        }
        let bytes = sorted.iter().map(|(text, _)| text.len()).sum();
        let too_long = VocabError::SpecialsTooLong { bytes };
        if bytes > MAX_SPECIAL_BYTES {
            return Err(too_long);
        }
        let search = if ids.is_empty() {
            None
        } else {
            let search = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .kind(Some(AhoCorasickKind::ContiguousNFA))
                .build(ids.iter().map(|&id| vocab.bytes(id)))
                .map_err(|_| too_long)?;
            Some(search)
        };
        Ok(Self { search, ids })
    }

    /// All special tokens in `text`, in order: where each starts and ends, and its id.
    pub(super) fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, usize, u32)> + 'a {
        let found = self.search.iter().flat_map(move |search| search.find_iter(text));
        found
            .map(|found| (found.start(), found.end(), self.ids[found.pattern().as_usize()]))
            // A token that is not valid UTF-8 could match within a character; such a match is no text.
            .filter(|&(start, end, _)| text.is_char_boundary(start) && text.is_char_boundary(end))
    }
}
