//! Which tensors a model of some configuration has, and the refusal of files that have others.
//!
//! What nobody reads is not harmless: a bias or one norm more means that the model was trained to compute something else
//! than we would.

use crate::checkpoint::{Checkpoint, Tensor};
use crate::config::Config;
use crate::error::{Error, Result, shown};
use std::collections::HashSet;

/// The matrices of a layer.
const MATRICES: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

/// What converters may add for each rotary frequency; nothing is read of it here but that it changes none.
const ROPE_FACTORS: [&str; 3] = ["rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight"];

/// Whether a norm of its own stands before each matrix of the layers. A file with one of them has to have all.
pub(crate) fn has_input_norms(checkpoint: &Checkpoint) -> bool {
    checkpoint.tensors().iter().any(|tensor| tensor.name().ends_with("_norm_in.weight"))
}

impl Config {
    /// Checks that the checkpoint has every tensor that a model of this configuration reads, in its shape, and none beside
    /// them. No weights are read.
    ///
    /// # Errors
    /// `MissingTensor`, `Shape`, or `Unsupported` for a tensor that nobody would read.
    pub fn expect_tensors(&self, checkpoint: &Checkpoint) -> Result<()> {
        let mut read = HashSet::new();
        let mut expect = |name: String, dims: &[usize]| -> Result<()> {
            checkpoint.tensor(&name)?.expect_dims(dims)?;
            read.insert(name);
            Ok(())
        };
        let input_norms = has_input_norms(checkpoint);
        expect("token_embd.weight".to_owned(), &[self.hidden, self.vocab_size])?;
        // A layer at a time: a damaged file may claim a million.
        for layer in 0..self.n_layers {
            for (part, dims) in self.layer_tensors(input_norms) {
                expect(format!("blk.{layer}.{part}.weight"), &dims)?;
            }
        }
        expect("output_norm.weight".to_owned(), &[self.hidden])?;
        // A head that is not the embedding, factors of the rotary frequencies, and the multipliers that some converters keep
        // apart from trits of size one.
        let scales = (0..self.n_layers)
            .flat_map(|layer| MATRICES.map(|matrix| (format!("blk.{layer}.{matrix}.scale"), vec![1])));
        let optional = [
            ("output.weight".to_owned(), vec![self.hidden, self.vocab_size]),
            ("rope_freqs.weight".to_owned(), vec![self.rope_dim / 2]),
        ];
        for (name, dims) in optional.into_iter().chain(scales) {
            if checkpoint.find_tensor(&name).is_some() {
                expect(name, &dims)?;
            }
        }
        for tensor in checkpoint.tensors().iter().filter(|tensor| !read.contains(tensor.name())) {
            if !changes_no_frequency(tensor)? {
                return Err(self.unread(tensor));
            }
        }
        Ok(())
    }

    /// What each layer has to have, with its dimensions.
    fn layer_tensors(&self, input_norms: bool) -> Vec<(String, Vec<usize>)> {
        let (q_rows, kv_rows) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        let mut all = Vec::new();
        let mut add = |part: &str, dims: &[usize]| all.push((part.to_owned(), dims.to_vec()));
        if self.has_sub_norms() {
            add("attn_sub_norm", &[q_rows]);
            add("ffn_sub_norm", &[self.ffn]);
        }
        if self.has_post_norms() {
            add("post_attention_norm", &[self.hidden]);
            add("post_ffw_norm", &[self.hidden]);
        }
        if self.has_qk_norms() {
            add("attn_q_norm", &[self.head_dim]);
            add("attn_k_norm", &[self.head_dim]);
        }
        add("attn_norm", &[self.hidden]);
        add("ffn_norm", &[self.hidden]);
        for matrix in MATRICES {
            let (rows, cols) = match matrix {
                "attn_q" => (q_rows, self.hidden),
                "attn_k" | "attn_v" => (kv_rows, self.hidden),
                "attn_output" => (self.hidden, q_rows),
                "ffn_gate" | "ffn_up" => (self.ffn, self.hidden),
                _ => (self.hidden, self.ffn),
            };
            add(matrix, &[cols, rows]);
            if input_norms {
                add(&format!("{matrix}_norm_in"), &[cols]);
            }
        }
        all
    }

    fn unread(&self, tensor: &Tensor) -> Error {
        let architecture = shown(&self.architecture_name);
        let what = match layer(tensor.name()) {
            Some(layer) if layer >= self.n_layers as u64 => {
                format!("it belongs to layer {layer}, but '{architecture}.block_count' is {}", self.n_layers)
            }
            _ => format!(
                "models of the architecture '{architecture}' do not use this {} here, so the answers would be wrong",
                kind(tensor.name())
            ),
        };
        Error::Unsupported {
            at: Box::new(tensor.place()),
            what,
            fix: "use another file of the model, or a program that knows this tensor".to_owned(),
        }
    }
}

/// Whether it is a tensor of factors for rotary frequencies, and all of them are 1.
fn changes_no_frequency(tensor: &Tensor) -> Result<bool> {
    let part = layer(tensor.name()).and_then(|_| tensor.name().splitn(3, '.').nth(2)).unwrap_or(tensor.name());
    Ok(ROPE_FACTORS.contains(&part) && tensor.to_f32()?.iter().all(|&factor| factor == 1.0))
}

/// The number in `blk.3.attn_q.bias`.
fn layer(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// What a tensor is by its name.
fn kind(name: &str) -> &'static str {
    let is_of_experts = ["_exps.", "_shexp.", "_gate_inp."].iter().any(|part| name.contains(part));
    match name.rsplit_once('.') {
        _ if is_of_experts => "weight of experts",
        Some((_, "bias")) => "bias",
        Some((_, "scale")) => "scale",
        Some((part, _)) if part.ends_with("norm") || part.ends_with("norm_in") => "norm",
        _ => "tensor",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_tensor_is() {
        assert_eq!(layer("blk.12.attn_q.bias"), Some(12));
        assert_eq!([layer("blk.x.attn_q.bias"), layer("output.bias"), layer("blk.1")], [None; 3]);
        for (name, is) in [
            ("blk.0.attn_q.bias", "bias"),
            ("output.scale", "scale"),
            ("blk.0.attn_sub_norm.weight", "norm"),
            ("blk.0.attn_q_norm_in.weight", "norm"),
            ("blk.0.ffn_up_exps.weight", "weight of experts"),
            ("blk.0.ffn_gate_inp.weight", "weight of experts"),
            ("position_embd.weight", "tensor"),
            ("odd", "tensor"),
        ] {
            assert_eq!(kind(name), is, "{name}");
        }
    }
}
