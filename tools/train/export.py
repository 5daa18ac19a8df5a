"""Writes a checkpoint as GGUF: ternary matrices in I2_S, embedding in F16, norms in F32.

    python export.py --run runs/story --checkpoint final.pt --out ../../models/story.gguf

With several checkpoints the mean of their weights is written.
"""

import argparse
import json
from pathlib import Path

from gguf_file import ALIGNMENT, F16, F32, I2_S, pack_i2s, write
from model import Shape, ternary
from prepare import SPECIAL
from train import load

NORMAL, CONTROL = 1, 3
FILE_TYPE_I2_S = 40


def tokenizer_metadata(path):
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    if [model["vocab"][t] for t in tokens] != list(range(len(tokens))) or tokens[: len(SPECIAL)] != SPECIAL:
        raise ValueError(f"{path}: token ids must run from 0 without a gap, control tokens first")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    begin, end, turn = range(len(SPECIAL))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if t in SPECIAL else NORMAL for t in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": begin,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.eot_token_id": turn,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def shape_metadata(shape, seen):
    arch = "bitnet-b1.58"
    return {
        "general.architecture": arch,
        "general.name": "Tritone story model",
        "general.description": f"Children's stories from public-domain books; {seen} tokens of training.",
        "general.license": "mit OR apache-2.0",
        "general.alignment": ALIGNMENT,
        "general.file_type": FILE_TYPE_I2_S,
        f"{arch}.vocab_size": shape.vocab,
        f"{arch}.context_length": shape.context,
        f"{arch}.embedding_length": shape.hidden,
        f"{arch}.block_count": shape.layers,
        f"{arch}.feed_forward_length": shape.ffn,
        f"{arch}.attention.head_count": shape.heads,
        f"{arch}.attention.head_count_kv": shape.kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": shape.eps,
        f"{arch}.rope.dimension_count": shape.head_dim,
        f"{arch}.rope.freq_base": shape.rope_theta,
    }


def tensor(name, value):
    value = value.float()
    if name == "token_embd.weight":
        return name, value.shape, F16, value.half().numpy().tobytes()
    if value.dim() == 1:
        return name, value.shape, F32, value.numpy().tobytes()
    trits, scale = ternary(value)
    return name, value.shape, I2_S, pack_i2s(trits.numpy(), float(scale))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--checkpoint", nargs="+", default=["final.pt"], help="files in the run's folder")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    state = load([args.run / name for name in args.checkpoint], "cpu")
    metadata = shape_metadata(Shape(**state["shape"]), state["seen"])
    metadata |= tokenizer_metadata(args.run / "tokenizer.json")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write(args.out, metadata, [tensor(name, value) for name, value in state["model"].items()])
    print(f"{args.out}: {args.out.stat().st_size} bytes after {state['seen']} tokens of training")


if __name__ == "__main__":
    main()
