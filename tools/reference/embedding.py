#!/usr/bin/env python3
"""What an embedding model makes of texts, by a plain forward pass in float64: checks reference.json of a folder, or makes
a small random model and its references anew.

    python embedding.py FOLDER...                  # cosines to the folder's reference.json
    python embedding.py --make gemma3 OUT          # a folder as runtime/tests/embedding_models makes it, with references

The forward pass follows the papers and Transformers' own definitions (Qwen3Model, Gemma3TextModel) with one RMSNorm before
each ternary matrix; it shares no code with the engine. Weights come from a generator that is written down twice, here and
in the tests, so that no weights have to be stored: the references would not fit another model's.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

TOKENIZER = Path(__file__).parent / "../../runtime/tests/data/models/qwen3-group128/tokenizer.json"
TEXTS = [
    "Once upon a time there was a little fox who",
    'The king said: "Who goes there?"\n\nNobody answered.',
    "",
    # Longer than a block of attention and than any window.
    "The old king had three sons, and the first went out to see the world. " * 15,
]
HIDDEN, FFN, HEADS, KV_HEADS, HEAD, VOCAB, CONTEXT, WINDOW, PERIOD = 128, 256, 4, 2, 64, 640, 512, 16, 6
LAYERS = {"qwen3": 2, "gemma3": 7}
END = 1


def shapes(kind):
    yield "embed_tokens.weight", (VOCAB, HIDDEN)
    yield "norm.weight", (HIDDEN,)
    matrices = {
        "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
        "mlp.gate_proj": (FFN, HIDDEN),
        "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
    }
    norms = {"input_layernorm": HIDDEN, "post_attention_layernorm": HIDDEN, "self_attn.q_norm": HEAD, "self_attn.k_norm": HEAD}
    if kind == "gemma3":
        norms |= {"pre_feedforward_layernorm": HIDDEN, "post_feedforward_layernorm": HIDDEN}
    for layer in range(LAYERS[kind]):
        for name, (rows, cols) in matrices.items():
            yield f"layers.{layer}.{name}.weight", (rows, cols)
            yield f"layers.{layer}.{name}.norm.weight", (cols,)
        for name, size in norms.items():
            yield f"layers.{layer}.{name}.weight", (size,)


def make_tensors(kind):
    """Numbers of few bits, exact in bfloat16, drawn in the order of the names."""
    state = {"qwen3": 1, "gemma3": 2}[kind]

    def draw(n):
        nonlocal state
        out = np.empty(n)
        for i in range(n):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            out[i] = state >> 56
        return out

    tensors = {}
    for name, shape in sorted(shapes(kind)):
        values = draw(int(np.prod(shape))).reshape(shape) - 128
        if len(shape) == 2:
            tensors[name] = values / 128
        else:
            near_zero = kind == "gemma3" and not name.endswith("proj.norm.weight")
            tensors[name] = np.floor(values / 8) / 64 + (0 if near_zero else 1)
    return tensors


def make_config(kind):
    layers = LAYERS[kind]
    config = {
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "vocab_size": VOCAB,
        "bos_token_id": 0,
        "eos_token_id": END,
    }
    if kind == "qwen3":
        return config | {
            "architectures": ["Qwen3Model"],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
        }
    return config | {
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 50,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention" if (i + 1) % PERIOD == 0 else "sliding_attention" for i in range(layers)],
        "rope_parameters": {
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
        },
    }


def read_tensors(path):
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            if entry["dtype"] != "BF16":
                sys.exit(f"{path}: {name} is {entry['dtype']}, but BF16 is read here")
            first, end = entry["data_offsets"]
            bits = np.frombuffer(data[start + first : start + end], "<u2").astype("<u4") << 16
            tensors[name] = bits.view("<f4").astype(float).reshape(entry["shape"])
    return tensors


def write_tensors(path, tensors):
    header, data = {}, b""
    for name, values in tensors.items():
        bits = values.astype("<f4").view("<u4")
        assert not (bits & 0xFFFF).any(), f"{name} is not exact in bfloat16"
        header[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [len(data), len(data) + 2 * values.size]}
        data += (bits >> 16).astype("<u2").tobytes()
    header = json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


class Model:
    def __init__(self, config, tensors):
        self.config, self.tensors = config, tensors
        self.gemma = config["model_type"] == "gemma3_text"
        self.matrices = {}
        for name, weight in tensors.items():
            if name.endswith("_proj.weight"):
                scale = max(np.abs(weight).mean(), 1e-5)
                self.matrices[name] = np.clip(np.round(weight / scale), -1, 1) * scale

    def norm(self, x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * weight

    def own_norm(self, x, name):
        """A norm of the architecture: Gemma's are stored less one."""
        return self.norm(x, self.tensors[f"{name}.weight"] + (1 if self.gemma else 0))

    def linear(self, x, name):
        x = self.norm(x, self.tensors[f"{name}.norm.weight"])
        scale = 127 / np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5)
        return np.clip(np.round(x * scale), -128, 127) / scale @ self.matrices[f"{name}.weight"].T

    def rope(self, x, theta):
        half = x.shape[-1] // 2
        angles = np.arange(x.shape[0])[:, None] / theta ** (np.arange(half) / half)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def attention(self, x, prefix, windowed):
        c, n = self.config, len(x)
        heads, kv_heads, size = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        ropes = c["rope_parameters"]
        theta = ropes["sliding_attention" if windowed else "full_attention"]["rope_theta"] if self.gemma else ropes["rope_theta"]
        q = self.own_norm(self.linear(x, f"{prefix}q_proj").reshape(n, heads, size), f"{prefix}q_norm")
        k = self.own_norm(self.linear(x, f"{prefix}k_proj").reshape(n, kv_heads, size), f"{prefix}k_norm")
        v = self.linear(x, f"{prefix}v_proj").reshape(n, kv_heads, size)
        q, k = self.rope(q, theta), self.rope(k, theta)
        k, v = (np.repeat(y, heads // kv_heads, 1) for y in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) * (c["query_pre_attn_scalar"] if self.gemma else size) ** -0.5
        back = np.arange(n)[:, None] - np.arange(n)[None]
        seen = (back >= 0) & (back < (c["sliding_window"] if windowed else n))
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.linear(np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1), f"{prefix}o_proj")

    def feed_forward(self, x, prefix):
        gate, up = self.linear(x, f"{prefix}gate_proj"), self.linear(x, f"{prefix}up_proj")
        if self.gemma:
            gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        return self.linear(gate * up, f"{prefix}down_proj")

    def embed(self, ids):
        x = self.tensors["embed_tokens.weight"][ids]
        if self.gemma:
            x = x * np.sqrt(self.config["hidden_size"])
        kinds = self.config.get("layer_types") or []
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"layers.{layer}."
            windowed = self.gemma and kinds[layer] == "sliding_attention"
            y = self.attention(self.own_norm(x, f"{prefix}input_layernorm"), f"{prefix}self_attn.", windowed)
            if self.gemma:
                x = x + self.own_norm(y, f"{prefix}post_attention_layernorm")
                y = self.feed_forward(self.own_norm(x, f"{prefix}pre_feedforward_layernorm"), f"{prefix}mlp.")
                x = x + self.own_norm(y, f"{prefix}post_feedforward_layernorm")
            else:
                x = x + y
                x = x + self.feed_forward(self.own_norm(x, f"{prefix}post_attention_layernorm"), f"{prefix}mlp.")
        last = self.own_norm(x[-1], "norm")
        return last / np.sqrt(last @ last)


def check(folder):
    model = Model(json.loads((folder / "config.json").read_text()), read_tensors(folder / "model.safetensors"))
    for known in json.loads((folder / "reference.json").read_text()):
        vector, other = model.embed(known["ids"]), np.array(known["embedding"])
        print(f"{folder.name}: cosine {vector @ other / np.sqrt(other @ other):.9f} for {known['text'][:40]!r}")


def make(kind, out):
    if out.exists():
        sys.exit(f"{out} is there already: give a folder that is not")
    config, tensors = make_config(kind), make_tensors(kind)
    model, tokenizer = Model(config, tensors), Tokenizer.from_file(str(TOKENIZER))
    answers = []
    for text in TEXTS:
        ids = [*tokenizer.encode(text, add_special_tokens=False).ids, END]
        answers.append({"text": text, "ids": ids, "embedding": [round(float(x), 6) for x in model.embed(ids)]})
    # Complete or not there: the folder gets its name last.
    temporary = out.with_name(out.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "1_Pooling").mkdir(parents=True)
    shutil.copy(TOKENIZER, temporary / "tokenizer.json")
    steps = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [{"name": name, "path": path, "type": f"sentence_transformers.models.{kind}"} for name, path, kind in steps]
    files = {
        "config.json": config,
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, "pooling_mode_lasttoken": True},
        "tokenizer_config.json": {"eos_token": "<|end_of_text|>"},
        "reference.json": answers,
    }
    for name, content in files.items():
        (temporary / name).write_text(json.dumps(content) + "\n")
    write_tensors(temporary / "model.safetensors", tensors)
    temporary.rename(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of embedding models, or the one to make")
    parser.add_argument("--make", choices=LAYERS, help="make a folder of this architecture")
    args = parser.parse_args()
    if args.make and len(args.folders) != 1:
        sys.exit("--make makes one folder")
    for folder in args.folders:
        if args.make:
            make(args.make, folder)
        else:
            check(folder)


if __name__ == "__main__":
    main()
