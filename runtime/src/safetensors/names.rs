//! Names of tensors: Hugging Face's on the left, GGUF's on the right.

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

const LAYER: [(&str, &str); 17] = [
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
    ("self_attn.rotary_emb.inv_freq", ""),
    ("rotary_emb.inv_freq", ""),
];

/// What the tensor `name` is.
pub(super) fn meaning(name: &str) -> Meaning {
    if let Some(matrix) = name.strip_suffix(".weight_scale") {
        return match meaning(&format!("{matrix}.weight")) {
            Meaning::Tensor(tensor) => Meaning::ScaleOf(tensor),
            _ => Meaning::Unknown,
        };
    }
    match name {
        "model.embed_tokens.weight" => return Meaning::Tensor("token_embd.weight".into()),
        "model.norm.weight" => return Meaning::Tensor("output_norm.weight".into()),
        "lm_head.weight" => return Meaning::Tensor("output.weight".into()),
        "model.rotary_emb.inv_freq" => return Meaning::Redundant,
        _ => {}
    }
    let parts = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = parts.filter(|(layer, _)| layer.bytes().all(|b| b.is_ascii_digit())) else {
        return Meaning::Unknown;
    };
    match LAYER.iter().find(|(from, _)| *from == part) {
        Some((_, "")) => Meaning::Redundant,
        Some((_, to)) => Meaning::Tensor(format!("blk.{layer}.{to}")),
        None => Meaning::Unknown,
    }
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
        assert_eq!(meaning("model.layers.12.mlp.up_proj.weight"), tensor("blk.12.ffn_up.weight"));
        assert_eq!(
            meaning("model.layers.0.self_attn.q_proj.weight_scale"),
            Meaning::ScaleOf("blk.0.attn_q.weight".into())
        );
        assert_eq!(meaning("lm_head.weight"), tensor("output.weight"));
        assert_eq!(meaning("model.layers.x.mlp.up_proj.weight"), Meaning::Unknown);
        assert_eq!(meaning("model.layers.0.self_attn.q_proj.bias"), Meaning::Unknown);
        assert_eq!(meaning("model.layers.0.self_attn.rotary_emb.inv_freq"), Meaning::Redundant);
        assert!(is_ternary("blk.3.ffn_down.weight"));
        assert!(!is_ternary("blk.3.ffn_norm.weight") && !is_ternary("token_embd.weight"));
    }
}
