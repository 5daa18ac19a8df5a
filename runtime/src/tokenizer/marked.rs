//! Keeps names of control tokens in what people write from becoming control tokens.
//!
//! A chat template puts messages and control tokens, both by name, into one text. Before that a mark is put between the
//! characters of every name in a message; encoding takes such a name for text and drops the marks, so that the model sees
//! exactly what was written, and nobody can end his turn and speak as another by writing `<|eot_id|>`.

use super::Tokenizer;
use super::vocab::TokenKind;
use std::borrow::Cow;

/// Marks names that are only text. Unicode says that this code point is never a character, so texts do not have it.
const MARK: char = '\u{fdd0}';

/// A name can appear only where marking another one moved what is found; no vocabulary needs more rounds than this.
const MAX_ROUNDS: usize = 8;

impl Tokenizer {
    /// `text` with marks in the names of control tokens: for [`encode_marked`](Self::encode_marked).
    ///
    /// Nothing where that cannot be done: the text has the mark itself, or a control token has a name of one character.
    pub fn mark_controls<'t>(&self, text: &'t str) -> Option<Cow<'t, str>> {
        if text.contains(MARK) {
            return None;
        }
        let mut marked = Cow::Borrowed(text);
        for _ in 0..MAX_ROUNDS {
            let is_control = |id: u32| self.vocab.kinds[id as usize] != TokenKind::UserDefined;
            let found = self.specials.find(&marked).filter(|&(_, _, id)| is_control(id));
            let names: Vec<(usize, usize)> = found.map(|(start, end, _)| (start, end)).collect();
            if names.is_empty() {
                return Some(marked);
            }
            let mut next = String::with_capacity(marked.len() + names.len() * 32);
            let mut done = 0;
            for (start, end) in names {
                next.push_str(&marked[done..start]);
                next.extend(marked[start..end].chars().flat_map(|c| [c, MARK]));
                done = end;
            }
            next.push_str(&marked[done..]);
            marked = Cow::Owned(next);
        }
        None
    }

    /// The tokens of a text whose names of control tokens mean those tokens, except where they are marked. Marks are left
    /// out; otherwise as [`encode_within`](Self::encode_within).
    pub fn encode_marked(&self, text: &str, add_bos: bool, most: usize) -> Option<Vec<u32>> {
        self.encode_between(text, &self.specials, add_bos, most, |stretch| {
            if stretch.contains(MARK) { Cow::Owned(stretch.replace(MARK, "")) } else { Cow::Borrowed(stretch) }
        })
    }
}
