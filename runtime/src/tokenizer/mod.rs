//! Text to tokens and back: byte-level BPE (Llama-3, Qwen2, GPT-2) and SentencePiece (Llama-2, Gemma).
//!
//! A [`Tokenizer`] is made from a [`VocabSpec`], plain data that a file reader fills. Encoding is `O(n log n)` in the
//! length of the text whatever the text is: special tokens are found by one automaton, words are cut by a linear scan,
//! and merging uses a heap. [`Utf8Stream`] and [`StopStrings`] turn the bytes of generated tokens into text that can be
//! shown.

mod alphabet;
mod bpe;
mod load;
mod marked;
mod split;
mod spm;
mod stop;
mod utf8;
mod vocab;

pub use split::PreTokenizer;
pub use stop::{StopError, StopStrings};
pub use utf8::Utf8Stream;
pub use vocab::{VocabError, VocabKind, VocabSpec};

use bpe::{Merger, Merges};
use std::borrow::Cow;
use vocab::{Specials, TokenKind, Vocab, shown};

/// The most bytes that UTF-8 has for a character.
const MAX_CHAR_BYTES: usize = 4;

/// What the names of control tokens within a text mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// `<|eot_id|>` in the text is the token of that name: for rendered chat templates.
    Parse,
    /// The text is only text; no control token can come of it. User-defined tokens, which carry no
    /// control, are still found.
    Plain,
}

#[derive(Debug, Clone)]
enum Model {
    Bpe { rule: PreTokenizer, merges: Merges, byte_ids: Box<[u32; 256]> },
    Spm { scores: Vec<u32>, byte_ids: Box<[Option<u32>; 256]>, unk: Option<u32>, space_prefix: bool },
}

/// A vocabulary ready for use. Immutable; may be shared between threads.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    vocab: Vocab,
    model: Model,
    /// Control, unknown and user-defined tokens.
    specials: Specials,
    user_defined: Specials,
    /// The most bytes of text that one token can stand for.
    longest: usize,
    ends: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
}

impl Tokenizer {
    /// Checks a vocabulary and builds its tables.
    ///
    /// # Errors
    /// [`VocabError`] for an empty vocabulary, lists of the wrong length, tokens of the same text, rules that name
    /// unknown tokens, bytes that cannot be spelled, and ids out of range.
    pub fn new(spec: &VocabSpec) -> Result<Self, VocabError> {
        let vocab = Vocab::new(spec)?;
        let model = match spec.kind {
            VocabKind::Bpe(rule) => {
                Model::Bpe { rule, merges: read_merges(spec, &vocab)?, byte_ids: Box::new(bpe_byte_ids(&vocab)?) }
            }
            VocabKind::Spm => {
                let unk = spec
                    .unk
                    .or_else(|| vocab.kinds.iter().position(|&kind| kind == TokenKind::Unknown).map(|id| id as u32));
                Model::Spm {
                    scores: spec.scores.iter().map(|&score| spm::score_order(score)).collect(),
                    byte_ids: Box::new(spm_byte_ids(&vocab, unk)?),
                    unk,
                    space_prefix: spec.add_space_prefix.unwrap_or(true),
                }
            }
        };
        let specials = Specials::new(&vocab, |kind| {
            matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined)
        })?;
        let user_defined = Specials::new(&vocab, |kind| kind == TokenKind::UserDefined)?;
        let bos_by_default = matches!(spec.kind, VocabKind::Spm | VocabKind::Bpe(PreTokenizer::Llama3));
        let longest = (0..vocab.len() as u32).map(|id| vocab.bytes(id).len()).max().unwrap_or(0);
        Ok(Self {
            // The unknown token stands for any character.
            longest: longest.max(MAX_CHAR_BYTES),
            ends: vocab.end_tokens(spec),
            vocab,
            model,
            specials,
            user_defined,
            bos: spec.bos,
            eos: spec.eos,
            add_bos: spec.bos.is_some() && spec.add_bos.unwrap_or(bos_by_default),
            add_eos: spec.eos.is_some() && spec.add_eos.unwrap_or(false),
        })
    }

    /// The tokens of `text`. With `add_bos` the begin-of-text token comes first, if the vocabulary has one and the text
    /// does not begin with it already.
    pub fn encode(&self, text: &str, special: SpecialTokens, add_bos: bool) -> Vec<u32> {
        // No text has more tokens than can be counted.
        self.encode_within(text, special, add_bos, usize::MAX).unwrap_or_default()
    }

    /// As [`encode`](Self::encode), but nothing where that would be more than `most` tokens. However long the text is, this
    /// takes no more time than a text of so many of the longest tokens.
    pub fn encode_within(&self, text: &str, special: SpecialTokens, add_bos: bool, most: usize) -> Option<Vec<u32>> {
        let specials = match special {
            SpecialTokens::Parse => &self.specials,
            SpecialTokens::Plain => &self.user_defined,
        };
        self.encode_between(text, specials, add_bos, most, Cow::Borrowed)
    }

    /// The tokens of `text`: those of `specials` where their names are, and what `stretch` makes of the text between them.
    /// Nothing if they are more than `most`.
    fn encode_between<'t>(
        &self,
        text: &'t str,
        specials: &Specials,
        add_bos: bool,
        most: usize,
        stretch: impl Fn(&'t str) -> Cow<'t, str>,
    ) -> Option<Vec<u32>> {
        let mut out = Vec::with_capacity(most.min(text.len() / 3 + 2));
        if add_bos {
            out.extend(self.bos);
        }
        let mut merger = Merger::default();
        let mut done = 0;
        for (start, end, id) in specials.find(text) {
            self.encode_plain(&stretch(&text[done..start]), &mut merger, most, &mut out)?;
            if !(start == 0 && add_bos && Some(id) == self.bos) {
                out.push(id);
            }
            done = end;
        }
        self.encode_plain(&stretch(&text[done..]), &mut merger, most, &mut out)?;
        (out.len() <= most).then_some(out)
    }

    /// Whether `bytes` of text may come to no more than `most` tokens with those that there are.
    fn may_fit(&self, bytes: usize, most: usize, out: &[u32]) -> Option<()> {
        let room = most.checked_sub(out.len())?;
        (bytes <= room.saturating_mul(self.longest)).then_some(())
    }

    /// Appends the tokens of a text between two special tokens. Nothing where it is seen that they are more than `most`.
    fn encode_plain(&self, text: &str, merger: &mut Merger, most: usize, out: &mut Vec<u32>) -> Option<()> {
        if text.is_empty() {
            return Some(());
        }
        match &self.model {
            Model::Bpe { rule, merges, byte_ids } => {
                let mut rest = text;
                while !rest.is_empty() {
                    self.may_fit(rest.len(), most, out)?;
                    let (word, tail) = rest.split_at(rule.first_word(rest));
                    rest = tail;
                    if rule.takes_whole_words()
                        && let Some(id) = self.vocab.find(word.as_bytes())
                    {
                        out.push(id);
                        continue;
                    }
                    merger.merge(merges, word.bytes().map(|byte| byte_ids[usize::from(byte)]), out);
                }
            }
            Model::Spm { scores, byte_ids, unk, space_prefix } => {
                let mut escaped = String::with_capacity(text.len() + 1);
                if *space_prefix {
                    escaped.push(' ');
                }
                escaped.push_str(&text.replace('▁', " "));
                self.may_fit(escaped.len(), most, out)?;
                let score = |text: &str| self.vocab.find(text.as_bytes()).map(|id| scores[id as usize]);
                spm::merge(&escaped, score, |piece| {
                    if let Some(id) = self.vocab.find(piece.as_bytes()) {
                        out.push(id);
                        return;
                    }
                    let mut spelled = piece.bytes().map(|byte| byte_ids[usize::from(byte)]);
                    if spelled.clone().all(|id| id.is_some()) {
                        out.extend(spelled.by_ref().flatten());
                    } else {
                        out.extend(*unk);
                    }
                });
            }
        }
        Some(())
    }

    /// The bytes of the text that `ids` stand for: the inverse of [`encode`](Self::encode). Control tokens and ids
    /// outside the vocabulary stand for nothing.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut out = Vec::new();
        // The space that encoding puts before each stretch of text is taken away again.
        let mut begins = matches!(self.model, Model::Spm { space_prefix: true, .. });
        for &id in ids {
            let bytes = self.token_bytes(id);
            match self.vocab.kinds.get(id as usize) {
                Some(TokenKind::Normal | TokenKind::Byte(_)) => {
                    out.extend_from_slice(bytes.strip_prefix(b" ").filter(|_| begins).unwrap_or(bytes));
                    begins = false;
                }
                _ => {
                    out.extend_from_slice(bytes);
                    begins = matches!(self.model, Model::Spm { space_prefix: true, .. });
                }
            }
        }
        out
    }

    /// The bytes that a token adds to generated text: empty for a control token and for an id outside the vocabulary.
    /// They need not be whole characters; see [`Utf8Stream`].
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        match self.vocab.kinds.get(id as usize) {
            None | Some(TokenKind::Control | TokenKind::Unknown) => &[],
            Some(_) => self.vocab.bytes(id),
        }
    }

    /// What to show for a token: its bytes, or the name of a control token. `None` for an id outside the vocabulary.
    pub fn token_name(&self, id: u32) -> Option<&[u8]> {
        ((id as usize) < self.vocab.len()).then(|| self.vocab.bytes(id))
    }

    /// The control or user-defined token of this name.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        let mut found = self.specials.find(name);
        found.next().filter(|&(start, end, _)| (start, end) == (0, name.len())).map(|(_, _, id)| id)
    }

    /// Number of tokens; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether the model expects texts to begin with [`bos`](Self::bos).
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether the model expects texts to end with [`eos`](Self::eos).
    pub fn adds_eos(&self) -> bool {
        self.add_eos
    }

    /// The tokens that end an answer, in rising order: end of text, end of turn, and their kin known by name. A model may
    /// use any of them (BitNet-b1.58-2B-4T: 128001 and 128009).
    pub fn end_tokens(&self) -> &[u32] {
        &self.ends
    }

    /// Whether `id` ends an answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }
}

fn read_merges(spec: &VocabSpec, vocab: &Vocab) -> Result<Merges, VocabError> {
    let mut merges = Merges::with_capacity(spec.merges.len());
    let mut bytes = Vec::new();
    for (rank, &rule) in spec.merges.iter().enumerate() {
        let malformed = || VocabError::Merge { merge: rank, text: shown(rule) };
        let text = std::str::from_utf8(rule).map_err(|_| malformed())?;
        let (left, right) = text.split_once(' ').ok_or_else(malformed)?;
        bytes.clear();
        if left.is_empty() || right.is_empty() || !alphabet::append_bytes(left, &mut bytes) {
            return Err(malformed());
        }
        let middle = bytes.len();
        if !alphabet::append_bytes(right, &mut bytes) {
            return Err(malformed());
        }
        let find = |bytes: &[u8]| {
            let unknown = || VocabError::MergeUnknown { merge: rank, text: shown(bytes) };
            vocab.find(bytes).ok_or_else(unknown)
        };
        let (left, right, merged) = (find(&bytes[..middle])?, find(&bytes[middle..])?, find(&bytes)?);
        merges.push(left, right, merged).map_err(|first| VocabError::MergeTwice {
            first,
            second: rank,
            text: shown(rule),
        })?;
    }
    Ok(merges)
}

fn bpe_byte_ids(vocab: &Vocab) -> Result<[u32; 256], VocabError> {
    let mut ids = [0; 256];
    for byte in 0..=255 {
        ids[usize::from(byte)] = vocab.find(&[byte]).ok_or(VocabError::MissingByte { byte })?;
    }
    Ok(ids)
}

/// The byte tokens. All must be there unless the unknown token can stand in for them.
fn spm_byte_ids(vocab: &Vocab, unk: Option<u32>) -> Result<[Option<u32>; 256], VocabError> {
    let mut ids = [None; 256];
    for (id, &kind) in vocab.kinds.iter().enumerate() {
        if let TokenKind::Byte(byte) = kind {
            let second = id as u32;
            if let Some(first) = ids[usize::from(byte)].replace(second) {
                return Err(VocabError::Duplicate { first, second, text: format!("<0x{byte:02X}>") });
            }
        }
    }
    match ids.iter().position(Option::is_none) {
        Some(byte) if unk.is_none() => Err(VocabError::MissingByte { byte: byte as u8 }),
        _ => Ok(ids),
    }
}
