"""Held-out perplexity and bits per byte of an exported model, from the GGUF file alone.

    python evaluate.py --model ../../models/story.gguf --heldout stories-heldout.txt \\
        --sample ../../models/heldout-sample.txt --out ../../models/story-eval.json

The forward pass is float32 over the stored trits and int8 activations, written apart from the
trainer's. Products of trits and int8 codes are sums under 2^24, so float32 holds them exactly.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from gguf_file import F16, F32, I2_S, Reader, unpack_i2s
from model import rope_tables, rotate
from prepare import LLAMA3_SPLIT, SPECIAL, stories

DEFINITION = (
    "The text is split at lines '<|endoftext|>' and each story is stripped of white space at both ends. "
    "A story becomes the begin token followed by its tokens (no end token), cut into windows of `window` "
    "tokens without overlap, the last one shorter. Each window is fed to an empty cache; every token of it "
    "but the first is scored; windows of one token are left out. `nll` is the sum of -ln p in nats, "
    "`perplexity` is exp(nll / scored_tokens), `bits_per_byte` is nll / ln 2 / scored_bytes, where "
    "scored_bytes counts the UTF-8 bytes of the scored tokens."
)


class Model:
    def __init__(self, path):
        file = Reader(path)
        self.metadata, self.weights = file.metadata, {}
        for name, (shape, kind, data) in file.tensors.items():
            count = math.prod(shape)
            if kind == I2_S:
                trits, scale = unpack_i2s(data, *shape)
                self.weights[name] = torch.from_numpy(trits.astype(np.float32)), np.float32(scale)
            else:
                flat = np.frombuffer(data, {F32: np.float32, F16: np.float16}[kind], count)
                self.weights[name] = torch.from_numpy(flat.astype(np.float32).reshape(shape))
        get = lambda key: self.metadata[f"{self.metadata['general.architecture']}.{key}"]
        self.layers, self.context = get("block_count"), get("context_length")
        self.heads, self.kv_heads = get("attention.head_count"), get("attention.head_count_kv")
        self.head_dim, self.eps = get("rope.dimension_count"), get("attention.layer_norm_rms_epsilon")
        self.rope_theta = get("rope.freq_base")
        self.rope = rope_tables(self, self.context, "cpu")

    def norm(self, x, name):
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weights[f"{name}.weight"]

    def linear(self, x, name):
        trits, scale = self.weights[f"{name}.weight"]
        largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
        codes = (x * (127.0 / largest)).round().clamp(-127, 127)
        return F.linear(codes, trits) * (largest / 127.0 * float(scale))

    def layer(self, x, i):
        n = len(x)
        split = lambda y, heads: y.view(n, heads, self.head_dim).transpose(0, 1)
        cos, sin = (table[:n] for table in self.rope)
        h = self.norm(x, f"blk.{i}.attn_norm")
        q = rotate(split(self.linear(h, f"blk.{i}.attn_q"), self.heads), cos, sin)
        k = rotate(split(self.linear(h, f"blk.{i}.attn_k"), self.kv_heads), cos, sin)
        v = split(self.linear(h, f"blk.{i}.attn_v"), self.kv_heads)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
        scores = q @ k.mT / math.sqrt(self.head_dim)
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -math.inf)
        a = (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
        x = x + self.linear(self.norm(a, f"blk.{i}.attn_sub_norm"), f"blk.{i}.attn_output")
        h = self.norm(x, f"blk.{i}.ffn_norm")
        h = F.relu(self.linear(h, f"blk.{i}.ffn_gate")).square() * self.linear(h, f"blk.{i}.ffn_up")
        return x + self.linear(self.norm(h, f"blk.{i}.ffn_sub_norm"), f"blk.{i}.ffn_down")

    @torch.no_grad()
    def nll(self, ids):
        """-ln p of each token but the first."""
        x = self.weights["token_embd.weight"][ids[:-1]]
        for i in range(self.layers):
            x = self.layer(x, i)
        logits = F.linear(self.norm(x, "output_norm"), self.weights["token_embd.weight"])
        return F.cross_entropy(logits.double(), torch.tensor(ids[1:]), reduction="none")


def tokenizer(metadata):
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in metadata["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    return bpe


def evaluate(model, path, window, keep):
    """Totals over a text, and the first `keep` windows in full."""
    bpe, begin = tokenizer(model.metadata), model.metadata["tokenizer.ggml.bos_token_id"]
    # Byte-level tokens are one character a byte, so a token's length is its count of bytes.
    size = [0 if t in SPECIAL else len(t) for t in model.metadata["tokenizer.ggml.tokens"]]
    total = {"stories": 0, "tokens": 0, "scored_tokens": 0, "scored_bytes": 0}
    nll, first = 0.0, []
    for story in stories(path):
        ids = [begin, *bpe.encode(story, add_special_tokens=False).ids]
        total["stories"] += 1
        total["tokens"] += len(ids)
        for at in range(0, len(ids), window):
            piece = ids[at : at + window]
            if len(piece) < 2:
                continue
            part = float(model.nll(piece).sum())
            if len(first) < keep:
                first.append({"ids": piece, "nll": round(part, 4)})
            nll += part
            total["scored_tokens"] += len(piece) - 1
            total["scored_bytes"] += sum(size[i] for i in piece[1:])
    total["nll"] = round(nll, 3)
    total["perplexity"] = round(math.exp(nll / total["scored_tokens"]), 4)
    total["bits_per_byte"] = round(nll / math.log(2) / total["scored_bytes"], 4)
    return total, first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--heldout", required=True, type=Path)
    parser.add_argument("--sample", type=Path, help="a slice of the held-out text kept beside the model")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = Model(args.model)
    total, first = evaluate(model, args.heldout, args.window, 3)
    report = {
        "model_sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "definition": DEFINITION,
        "window": args.window,
        "heldout": total,
        "windows": first,
    }
    if args.sample:
        part, _ = evaluate(model, args.sample, args.window, 0)
        report["sample"] = {"file": args.sample.name, **part}
    if args.out:
        args.out.write_text(json.dumps(report) + "\n")
    print(json.dumps({k: report[k] for k in ("heldout", "sample") if k in report}, indent=1))


if __name__ == "__main__":
    main()
