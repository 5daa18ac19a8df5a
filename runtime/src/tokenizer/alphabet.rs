//! The byte-level alphabet of GPT-2: every byte stands as one printable character.
//!
//! Bytes that are printable in Latin-1 (0x21-0x7e, 0xa1-0xac, 0xae-0xff) stand as themselves; the other 68 take the
//! code points from U+0100 on, in order of the byte. A vocabulary writes its tokens in this alphabet, so a space is
//! `Ġ` (U+0120). The mapping is one to one, hence tokens can be kept as plain bytes once they are read.

/// Whether a byte stands as the code point of the same value.
const fn is_itself(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// `SHIFTED[i]` is the byte written as U+0100 + i.
const SHIFTED: [u8; 68] = {
    let mut table = [0; 68];
    let (mut byte, mut i) = (0, 0);
    while byte < 256 {
        if !is_itself(byte as u8) {
            table[i] = byte as u8;
            i += 1;
        }
        byte += 1;
    }
    table
};

/// The byte a character of the alphabet stands for, or `None` for a character outside it.
fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(byte) => is_itself(byte).then_some(byte),
        Err(_) => SHIFTED.get((code - 0x100) as usize).copied(),
    }
}

/// Appends the bytes that `text` stands for; returns false, and appends nothing, when a character is outside the
/// alphabet.
pub(super) fn append_bytes(text: &str, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    for c in text.chars() {
        match byte_of(c) {
            Some(byte) => out.push(byte),
            None => {
                out.truncate(start);
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut seen = [0; 256];
        for code in 0..0x200 {
            if let Some(byte) = char::from_u32(code).and_then(byte_of) {
                seen[usize::from(byte)] += 1;
            }
        }
        assert_eq!(seen, [1; 256]);
    }

    #[test]
    fn known_characters() {
        let mut out = Vec::new();
        assert!(append_bytes("ĠaĊÃ©Ń", &mut out));
        assert_eq!(out, b" a\n\xc3\xa9\xad");
        assert!(!append_bytes("a b", &mut out));
        assert!(!append_bytes("▁", &mut out));
        assert_eq!(out.len(), 6, "a refused text appends nothing");
    }
}
