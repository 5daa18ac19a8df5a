//! Small vocabularies made by hand.

use std::sync::LazyLock;

use tritone_runtime::tokenizer::{PreTokenizer, VocabKind, VocabSpec};

/// The character that stands for a byte in the byte-level alphabet, counted anew from its definition.
fn byte_character(byte: u8) -> char {
    let itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if itself(byte) {
        char::from(byte)
    } else {
        let before = (0..byte).filter(|&b| !itself(b)).count() as u32;
        char::from_u32(0x100 + before).unwrap()
    }
}

/// A text of each of the 256 bytes, made once, since a specification only borrows.
fn of_each_byte(text: impl Fn(u8) -> String) -> Vec<String> {
    (0..=255).map(text).collect()
}

static BYTE_CHARACTERS: LazyLock<Vec<String>> = LazyLock::new(|| of_each_byte(|byte| byte_character(byte).to_string()));
static BYTE_NAMES: LazyLock<Vec<String>> = LazyLock::new(|| of_each_byte(|byte| format!("<0x{byte:02X}>")));

/// All 256 bytes and three merges; no types.
pub fn bytes_spec(rule: PreTokenizer) -> VocabSpec<'static> {
    let mut spec = VocabSpec::new(VocabKind::Bpe(rule));
    spec.tokens = BYTE_CHARACTERS.iter().map(String::as_bytes).collect();
    spec.tokens.extend([&b"ab"[..], b"aba", "Ġab".as_bytes()]);
    spec.merges = vec![b"a b", b"ab a", "Ġ ab".as_bytes()];
    spec
}

/// Unknown, begin, end, 256 bytes, then pieces of " hello" with their scores.
pub fn spm_spec() -> VocabSpec<'static> {
    let mut spec = VocabSpec::new(VocabKind::Spm);
    spec.tokens = vec![b"<unk>", b"<s>", b"</s>"];
    spec.token_types = vec![2, 3, 3];
    for name in BYTE_NAMES.iter() {
        spec.tokens.push(name.as_bytes());
        spec.token_types.push(6);
    }
    let pieces = [
        ("▁", -9.0),
        ("h", -9.0),
        ("e", -9.0),
        ("l", -9.0),
        ("o", -9.0),
        ("lo", -1.0),
        ("he", -2.0),
        ("hel", -3.0),
        ("▁hello", -4.0),
        ("hello", -3.5),
    ];
    spec.scores = vec![0.0; spec.tokens.len()];
    for (text, score) in pieces {
        spec.tokens.push(text.as_bytes());
        spec.token_types.push(1);
        spec.scores.push(score);
    }
    (spec.unk, spec.bos, spec.eos) = (Some(0), Some(1), Some(2));
    spec
}
