//! Names of tensors: Hugging Face's on the left, GGUF's on the right.

/// The architecture whose names and norms are its own.
const GEMMA: &str = "gemma3";

/// What a name means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The tensor of this name in GGUF.
    Tensor(String),
    /// The scale of the packed matrix that has this name in GGUF.
    ScaleOf(String),
    /// Can be computed from the configuration.
    Redundant,
    /// Nothing we know.
    Unknown,
}

const LAYER: [(&str, &str); 24] = [
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight"),
    ("self_attn.attn_sub_norm.weight", "attn_sub_norm.weight"),
    // As bitnet_b1_58-large and -3B have it.
    ("self_attn.inner_attn_ln.weight", "attn_sub_norm.weight"),
    ("post_attention_layernorm.weight", "ffn_norm.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
    ("mlp.ffn_sub_norm.weight", "ffn_sub_norm.weight"),
    ("mlp.ffn_layernorm.weight", "ffn_sub_norm.weight"),
    // Norms that stand before one matrix alone.
    ("self_attn.q_proj.norm.weight", "attn_q_norm_in.weight"),
    ("self_attn.k_proj.norm.weight", "attn_k_norm_in.weight"),
    ("self_attn.v_proj.norm.weight", "attn_v_norm_in.weight"),
    ("self_attn.o_proj.norm.weight", "attn_output_norm_in.weight"),
    ("mlp.gate_proj.norm.weight", "ffn_gate_norm_in.weight"),
    ("mlp.up_proj.norm.weight", "ffn_up_norm_in.weight"),
    ("mlp.down_proj.norm.weight", "ffn_down_norm_in.weight"),
    ("self_attn.rotary_emb.inv_freq", ""),
    ("rotary_emb.inv_freq", ""),
];

/// What Gemma means by names that others use otherwise or not at all.
const GEMMA_LAYER: [(&str, &str); 3] = [
    ("post_attention_layernorm.weight", "post_attention_norm.weight"),
    ("pre_feedforward_layernorm.weight", "ffn_norm.weight"),
    ("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
];

/// What the tensor `name` is in a model of an architecture (GGUF's name for it). Models without an output head have no
/// `model.` before their names.
pub(super) fn meaning(architecture: &str, name: &str) -> Meaning {
    if let Some(matrix) = name.strip_suffix(".weight_scale") {
        return match meaning(architecture, &format!("{matrix}.weight")) {
            Meaning::Tensor(tensor) => Meaning::ScaleOf(tensor),
            _ => Meaning::Unknown,
        };
    }
    let name = name.strip_prefix("model.").unwrap_or(name);
    match name {
        "embed_tokens.weight" => return Meaning::Tensor("token_embd.weight".into()),
        "norm.weight" => return Meaning::Tensor("output_norm.weight".into()),
        "lm_head.weight" => return Meaning::Tensor("output.weight".into()),
        "rotary_emb.inv_freq" => return Meaning::Redundant,
        _ => {}
    }
    let parts = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = parts.filter(|(layer, _)| layer.bytes().all(|b| b.is_ascii_digit())) else {
        return Meaning::Unknown;
    };
    let own: &[(&str, &str)] = if architecture == GEMMA { &GEMMA_LAYER } else { &[] };
    match own.iter().chain(&LAYER).find(|(from, _)| *from == part) {
        Some((_, "")) => Meaning::Redundant,
        Some((_, to)) => Meaning::Tensor(format!("blk.{layer}.{to}")),
        None => Meaning::Unknown,
    }
}

/// Whether a name is that of a norm before one matrix alone.
pub(super) fn is_input_norm(name: &str) -> bool {
    name.ends_with("_proj.norm.weight")
}

/// Whether GGUF has `1 + w` where the folder of a model of this architecture has `w`.
pub(super) fn adds_one(architecture: &str, name: &str) -> bool {
    architecture == GEMMA && name.ends_with("norm.weight")
}

/// Whether the matrix of this name in GGUF has ternary weights.
pub(super) fn is_ternary(name: &str) -> bool {
    const MATRICES: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(_, part)| part);
    part.and_then(|part| part.strip_suffix(".weight")).is_some_and(|part| MATRICES.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let tensor = |name: &str| Meaning::Tensor(name.to_owned());
        let meaning = |name: &str| super::meaning("qwen3", name);
        assert_eq!(meaning("model.layers.12.mlp.up_proj.weight"), tensor("blk.12.ffn_up.weight"));
        assert_eq!(
            meaning("model.layers.0.self_attn.q_proj.weight_scale"),
            Meaning::ScaleOf("blk.0.attn_q.weight".into())
        );
        assert_eq!(meaning("lm_head.weight"), tensor("output.weight"));
        assert_eq!(meaning("model.layers.x.mlp.up_proj.weight"), Meaning::Unknown);
        assert_eq!(meaning("model.layers.0.self_attn.q_proj.bias"), Meaning::Unknown);
        assert_eq!(meaning("model.layers.0.self_attn.rotary_emb.inv_freq"), Meaning::Redundant);
        assert_eq!(meaning("layers.2.self_attn.o_proj.norm.weight"), tensor("blk.2.attn_output_norm_in.weight"));
        assert_eq!(meaning("layers.2.post_attention_layernorm.weight"), tensor("blk.2.ffn_norm.weight"));
        assert_eq!(meaning("layers.2.post_feedforward_layernorm.weight"), Meaning::Unknown);
        let gemma = |name: &str| super::meaning("gemma3", name);
        assert_eq!(gemma("layers.2.post_attention_layernorm.weight"), tensor("blk.2.post_attention_norm.weight"));
        assert_eq!(gemma("layers.2.pre_feedforward_layernorm.weight"), tensor("blk.2.ffn_norm.weight"));
        assert_eq!(gemma("norm.weight"), tensor("output_norm.weight"));
        for (name, adds) in [("blk.0.attn_q_norm.weight", true), ("blk.0.attn_q_norm_in.weight", false)] {
            assert_eq!((adds_one("gemma3", name), adds_one("qwen3", name)), (adds, false));
        }
        assert!(
            is_input_norm("layers.0.mlp.up_proj.norm.weight") && !is_input_norm("layers.0.self_attn.q_norm.weight")
        );
        assert!(is_ternary("blk.3.ffn_down.weight"));
        assert!(!is_ternary("blk.3.ffn_norm.weight") && !is_ternary("token_embd.weight"));
    }
}
