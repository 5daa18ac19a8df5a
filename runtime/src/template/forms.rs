//! The known forms of conversations, for files without a template.

use crate::tokenizer::Tokenizer;

/// A known form, for files without a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatForm {
    /// BitNet-b1.58-2B-4T: `User: …<|eot_id|>Assistant: `.
    BitNet,
    /// Llama-3: a header with the role, then the message and `<|eot_id|>`.
    Llama3,
    /// `<|im_start|>role`, the message, `<|im_end|>`: Qwen and others.
    ChatMl,
    /// `User: …` and `Assistant: …` on lines, without control tokens.
    Plain,
}

impl ChatForm {
    pub(super) fn source(self) -> &'static str {
        match self {
            Self::BitNet => {
                "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content | trim }}<|eot_id|>{% endfor %}\
                 {% if add_generation_prompt %}Assistant: {% endif %}"
            }
            Self::Llama3 => {
                "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ '\\n\\n' }}\
                 {{ m.content | trim }}<|eot_id|>{% endfor %}\
                 {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}"
            }
            Self::ChatMl => {
                "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\\n' }}{{ m.content }}<|im_end|>{{ '\\n' }}{% endfor %}\
                 {% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
            }
            Self::Plain => {
                "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content | trim }}{{ '\\n' }}{% endfor %}\
                 {% if add_generation_prompt %}Assistant:{% endif %}"
            }
        }
    }

    /// The form for a file of this architecture and vocabulary.
    pub(super) fn choose(architecture: &str, tokenizer: &Tokenizer) -> Self {
        let has = |name| tokenizer.special_id(name).is_some();
        if architecture.starts_with("bitnet") && has("<|eot_id|>") {
            Self::BitNet
        } else if has("<|start_header_id|>") && has("<|eot_id|>") {
            Self::Llama3
        } else if has("<|im_start|>") && has("<|im_end|>") {
            Self::ChatMl
        } else {
            Self::Plain
        }
    }
}
