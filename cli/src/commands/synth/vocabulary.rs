//! Made-up vocabularies of the right size: 256 bytes, merges of frequent letters, and the control
//! tokens by which chats of a family work. Any text can be encoded.

use super::random::Random;
use super::shape::{Family, Shape};
use std::collections::HashSet;
use tritone_runtime::checkpoint::{Array, Value};
use tritone_runtime::gguf::Writer;

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// Letters by how often English has them.
const LETTERS: &str = "etaoinshrdlcumwfgypbvkjxqz";

/// A space in the byte-level alphabet.
const SPACE: char = 'Ġ';

/// The longest made-up token in characters.
const LONGEST: u8 = 12;

/// Tokens of text before the control tokens, given how many tokens there are in all.
fn control_names(family: Family, vocab: usize) -> Vec<String> {
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    match family {
        Family::Llama3 => {
            let mut all = names(&[
                "<|begin_of_text|>",
                "<|end_of_text|>",
                "<|reserved_special_token_0|>",
                "<|reserved_special_token_1|>",
                "<|finetune_right_pad_id|>",
                "<|reserved_special_token_2|>",
                "<|start_header_id|>",
                "<|end_header_id|>",
                "<|eom_id|>",
                "<|eot_id|>",
                "<|python_tag|>",
            ]);
            // The real vocabulary has 256 of them after 128,000 tokens of text.
            if vocab >= 128_256 {
                all.extend((3..248).map(|i| format!("<|reserved_special_token_{i}|>")));
            }
            all
        }
        Family::Qwen => names(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
    }
}

const LLAMA3_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";

const QWEN_TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Where Qwen's real vocabulary has its first control token; what follows them is unused.
const QWEN_TEXT_TOKENS: usize = 151_643;

/// Adds the tokenizer's keys. The shape has room for the bytes and the control tokens.
pub fn write(shape: &Shape, seed: u64, writer: &mut Writer) {
    let control = control_names(shape.family, shape.vocab);
    let mut n_text = shape.vocab - control.len();
    if shape.family == Family::Qwen {
        n_text = n_text.min(QWEN_TEXT_TOKENS);
    }
    let (mut tokens, merges) = text_tokens(n_text, seed);
    let mut types = vec![NORMAL; n_text];
    types.resize(n_text + control.len(), CONTROL);
    let id = |name: &str| (n_text + control.iter().position(|token| token == name).expect("a control token")) as u32;
    let (pre, bos, eos, eot, template) = match shape.family {
        Family::Llama3 => {
            ("llama-bpe", id("<|begin_of_text|>"), id("<|end_of_text|>"), id("<|eot_id|>"), LLAMA3_TEMPLATE)
        }
        Family::Qwen => ("qwen2", id("<|endoftext|>"), id("<|im_end|>"), id("<|im_end|>"), QWEN_TEMPLATE),
    };
    tokens.extend(control);
    for i in tokens.len()..shape.vocab {
        tokens.push(format!("[PAD{i}]"));
        types.push(UNUSED);
    }
    writer.key("tokenizer.ggml.model", Value::String("gpt2".into()));
    writer.key("tokenizer.ggml.pre", Value::String(pre.into()));
    writer.key("tokenizer.ggml.tokens", Value::Array(Array::from_strings(tokens)));
    writer.key("tokenizer.ggml.token_type", Value::Array(Array::from_i32s(&types)));
    writer.key("tokenizer.ggml.merges", Value::Array(Array::from_strings(merges)));
    writer.key("tokenizer.ggml.bos_token_id", Value::U32(bos));
    writer.key("tokenizer.ggml.eos_token_id", Value::U32(eos));
    writer.key("tokenizer.ggml.eot_token_id", Value::U32(eot));
    writer.key("tokenizer.ggml.add_bos_token", Value::Bool(shape.family == Family::Llama3));
    writer.key("tokenizer.chat_template", Value::String(template.into()));
}

/// The first 256 tokens are the bytes; each one after them is made by one merge of two earlier
/// ones. Letter pairs come first, so that ordinary text is cut into pieces of a few letters.
fn text_tokens(n: usize, seed: u64) -> (Vec<String>, Vec<String>) {
    let mut tokens: Vec<String> = byte_alphabet().map(String::from).to_vec();
    let mut known: HashSet<String> = tokens.iter().cloned().collect();
    let mut merges = Vec::with_capacity(n - tokens.len());
    let mut add = |left: &str, right: &str, tokens: &mut Vec<String>| {
        let joined = format!("{left}{right}");
        if tokens.len() < n && known.insert(joined.clone()) {
            merges.push(format!("{left} {right}"));
            tokens.push(joined);
        }
    };
    let letters: Vec<String> = LETTERS.chars().map(String::from).collect();
    for letter in &letters {
        add(&SPACE.to_string(), letter, &mut tokens);
    }
    for sum in 0..2 * letters.len() {
        for i in 0..=sum.min(letters.len() - 1) {
            if let Some(right) = letters.get(sum - i) {
                add(&letters[i], right, &mut tokens);
            }
        }
    }
    let mut random = Random::new(seed, u64::MAX, 0);
    // How long a token is as the left half of a pair and as the right one, which starts with no space. Most pairs are too
    // long, and these bytes tell it without a look at the texts.
    let length = |token: &String| {
        let chars = token.chars().count() as u8;
        [chars, if token.starts_with(SPACE) { LONGEST } else { chars }]
    };
    let mut lengths: Vec<[u8; 2]> = tokens.iter().map(length).collect();
    while tokens.len() < n {
        // Tokens after the bytes start with a space or a letter and go on with letters.
        let left = 256 + random.below(tokens.len() - 256);
        let right = 256 + random.below(tokens.len() - 256);
        if lengths[left][0] + lengths[right][1] <= LONGEST {
            let (left, right) = (tokens[left].clone(), tokens[right].clone());
            add(&left, &right, &mut tokens);
            lengths.extend(tokens[lengths.len()..].iter().map(length));
        }
    }
    (tokens, merges)
}

/// GPT-2's names of the bytes: printable ones stand for themselves, the others are U+0100 and up.
fn byte_alphabet() -> [char; 256] {
    let mut shifted = 0x100;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte as u8),
        _ => {
            shifted += 1;
            char::from_u32(shifted - 1).expect("below U+0144")
        }
    })
}

/// The fewest tokens that a vocabulary of the family has.
pub fn fewest(family: Family) -> usize {
    256 + control_names(family, 0).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_different_and_merges_make_them() {
        let (tokens, merges) = text_tokens(5000, 1);
        assert_eq!(tokens.len(), 5000);
        assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), 5000);
        for (merge, token) in merges.iter().zip(&tokens[256..]) {
            assert_eq!(merge.replacen(' ', "", 1), *token);
        }
        assert_eq!(text_tokens(5000, 1).0, tokens);
        assert_eq!(text_tokens(300, 1).0[..], tokens[..300]);
        // The same seed has always made these.
        assert_eq!(tokens[4996..], ["aazfllfbae", "epcsgghhxc", "umeemybggdlf", "bkscdtvxnx"]);
    }
}
