//! Cuts text into the words that byte-level BPE merges within.
//!
//! Each published tokenizer gives a regular expression with look-ahead; the scanners here take the same decisions by
//! hand, in one pass. For Llama-3:
//!
//! ```text
//! (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N}{1,3} | ?[^\s\p{L}\p{N}]+[\r\n]* | \s*[\r\n]+ | \s+(?!\S) | \s+
//! ```
//!
//! Qwen2 has `\p{N}` instead of `\p{N}{1,3}`. GPT-2:
//!
//! ```text
//! 's|'t|'re|'ve|'m|'ll|'d | ?\p{L}+ | ?\p{N}+ | ?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+
//! ```
//!
//! The three white-space alternatives backtrack in a regex engine; over a run of white space they mean: stop after the
//! last line break in the run, else leave the last character to the word that follows, else take all of it. A run is
//! therefore read at most twice and the scan is linear for any text.

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// The rule that cuts text into words before merging (`tokenizer.ggml.pre`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreTokenizer {
    /// Llama-3 and its kin: numbers in threes; a word that is a token as a whole is taken without merging.
    Llama3,
    /// Qwen2 and Qwen3: every digit alone.
    Qwen2,
    /// GPT-2: numbers whole, contractions in lower case only.
    Gpt2,
}

impl PreTokenizer {
    /// The rule a GGUF file means by `name`, or `None` for a rule that is not implemented.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" => Some(Self::Llama3),
            "qwen2" | "deepseek-r1-qwen" => Some(Self::Qwen2),
            "gpt-2" | "gpt2" | "olmo" => Some(Self::Gpt2),
            _ => None,
        }
    }

    /// Whether a word that is a token itself is taken before any merge is tried.
    pub(super) fn takes_whole_words(self) -> bool {
        self == Self::Llama3
    }

    /// The length in bytes of the first word of `text`; 0 only for an empty text.
    pub(super) fn first_word(self, text: &str) -> usize {
        match self {
            Self::Llama3 => modern(text, 3),
            Self::Qwen2 => modern(text, 1),
            Self::Gpt2 => gpt2(text),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    /// `\r` or `\n`.
    LineBreak,
    /// Other white space.
    Space,
    Other,
}

fn class(c: char) -> Class {
    match c {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        '\r' | '\n' => Class::LineBreak,
        _ if c.is_whitespace() => Class::Space,
        _ if c.is_ascii() => Class::Other,
        _ => match c.general_category_group() {
            GeneralCategoryGroup::Letter => Class::Letter,
            GeneralCategoryGroup::Number => Class::Number,
            _ => Class::Other,
        },
    }
}

fn class_at(text: &str, at: usize) -> Option<Class> {
    text[at..].chars().next().map(class)
}

/// The end of the run of characters of class `wanted` that starts at byte `from`.
fn run(text: &str, from: usize, wanted: Class) -> usize {
    let rest = &text[from..];
    from + rest.find(|c| class(c) != wanted).unwrap_or(rest.len())
}

/// The length of a contraction's letters after the apostrophe. Case folding is Unicode's: U+017F folds to `s`.
fn contraction(after: &str, ignore_case: bool) -> Option<usize> {
    let mut chars = after.chars();
    let first = chars.next()?;
    let fold = |c: char| match c {
        'ſ' if ignore_case => 's',
        _ if ignore_case => c.to_ascii_lowercase(),
        _ => c,
    };
    match (fold(first), chars.next().map(fold)) {
        ('s' | 't' | 'm' | 'd', _) => Some(first.len_utf8()),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(2),
        _ => None,
    }
}

/// A run of white space at the start of `text`, cut as the module's head says.
fn white_space(text: &str, stop_after_line_break: bool) -> usize {
    let (mut end, mut last, mut after_break) = (0, 0, 0);
    for (at, c) in text.char_indices() {
        let class = class(c);
        if class != Class::Space && class != Class::LineBreak {
            break;
        }
        last = at;
        end = at + c.len_utf8();
        if class == Class::LineBreak {
            after_break = end;
        }
    }
    if stop_after_line_break && after_break > 0 {
        after_break
    } else if end < text.len() && last > 0 {
        last
    } else {
        end
    }
}

/// Llama-3 and Qwen2, which differ in how many digits stand together.
fn modern(text: &str, digits: usize) -> usize {
    let Some(first) = text.chars().next() else {
        return 0;
    };
    if first == '\''
        && let Some(letters) = contraction(&text[1..], true)
    {
        return 1 + letters;
    }
    let after = first.len_utf8();
    match class(first) {
        Class::Letter => return run(text, after, Class::Letter),
        Class::Number => {
            let mut ends = text.char_indices().map(|(at, c)| (at + c.len_utf8(), class(c)));
            let mut end = after;
            while let Some((next, Class::Number)) = ends.next()
                && text[..next].chars().count() <= digits
            {
                end = next;
            }
            return end;
        }
        Class::Space | Class::Other if class_at(text, after) == Some(Class::Letter) => {
            return run(text, after, Class::Letter);
        }
        _ => {}
    }
    let start = usize::from(first == ' ');
    let end = run(text, start, Class::Other);
    if end > start {
        return run(text, end, Class::LineBreak);
    }
    white_space(text, true)
}

fn gpt2(text: &str) -> usize {
    let Some(first) = text.chars().next() else {
        return 0;
    };
    if first == '\''
        && let Some(letters) = contraction(&text[1..], false)
    {
        return 1 + letters;
    }
    let start = usize::from(first == ' ');
    match class_at(text, start) {
        Some(class @ (Class::Letter | Class::Number | Class::Other)) => run(text, start, class),
        _ => white_space(text, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(rule: PreTokenizer, text: &str) -> Vec<&str> {
        let mut rest = text;
        let mut words = Vec::new();
        while !rest.is_empty() {
            let (word, tail) = rest.split_at(rule.first_word(rest));
            words.push(word);
            rest = tail;
        }
        words
    }

    #[test]
    fn llama3_words() {
        let check = |text, expected: &[&str]| assert_eq!(words(PreTokenizer::Llama3, text), expected);
        check("Hello, world!", &["Hello", ",", " world", "!"]);
        check("1234567", &["123", "456", "7"]);
        check("½²³Ⅷ", &["½²³", "Ⅷ"]);
        check("I'LL don't 'told", &["I", "'LL", " don", "'t", " '", "told"]);
        check("x'ſ'S's", &["x", "'ſ", "'S", "'s"]);
        check("a \n\n  b", &["a", " \n\n", " ", " b"]);
        check("a   ", &["a", "   "]);
        check("   a", &["  ", " a"]);
        check(" \t7", &[" ", "\t", "7"]);
        check("!!\r\n\nx", &["!!\r\n\n", "x"]);
        check(" (x)", &[" (", "x", ")"]);
        check("\tfoo\u{a0}bar", &["\tfoo", "\u{a0}bar"]);
        check("!foo", &["!foo"]);
        check("\u{85}\u{2028}x", &["\u{85}", "\u{2028}x"]);
        // A combining mark is neither letter nor number, so it opens a word of its own.
        check("e\u{301}e", &["e", "\u{301}e"]);
        check("'r'l'v're", &["'r", "'l", "'v", "'re"]);
    }

    #[test]
    fn qwen2_words() {
        let check = |text, expected: &[&str]| assert_eq!(words(PreTokenizer::Qwen2, text), expected);
        check("a 42", &["a", " ", "4", "2"]);
        check(" \r\n x", &[" \r\n", " x"]);
    }

    #[test]
    fn gpt2_words() {
        let check = |text, expected: &[&str]| assert_eq!(words(PreTokenizer::Gpt2, text), expected);
        check("Hello 12345!", &["Hello", " 12345", "!"]);
        check("I'LL I'll", &["I", "'", "LL", " I", "'ll"]);
        check("a \n\n b", &["a", " \n\n", " b"]);
        check("a\n\nb", &["a", "\n", "\n", "b"]);
        check(" ...\n", &[" ...", "\n"]);
    }

    #[test]
    fn long_runs_are_linear() {
        for unit in [" ", "\n", " \n", "a", "7", "!", "'", "\u{301}", "\u{3000}"] {
            let text = unit.repeat(300_000);
            for rule in [PreTokenizer::Llama3, PreTokenizer::Qwen2, PreTokenizer::Gpt2] {
                assert_eq!(words(rule, &text).concat(), text);
            }
        }
    }
}
