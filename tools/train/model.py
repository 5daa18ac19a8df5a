"""The story model: BitNet b1.58 in the 2B-4T architecture, small, quantisation-aware.

Shapes: 8 layers of width 384, feed-forward 1024 with relu^2, 6 query heads and 2 key/value heads of
64, norms before the output projection and before down, tied embedding.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Shape:
    vocab: int = 4096
    layers: int = 8
    hidden: int = 384
    ffn: int = 1024
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    context: int = 1024
    rope_theta: float = 10000.0
    eps: float = 1e-5

    def as_dict(self):
        return asdict(self)


def ternary(w):
    """Trits and the multiplier of a master weight: absmean quantisation (arXiv 2402.17764)."""
    scale = w.abs().mean().clamp(min=1e-5)
    return (w / scale).round().clamp(-1, 1), scale


def int8_activations(x):
    """Activations rounded as the engine rounds them: one absmax scale per token."""
    scale = 127.0 / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
    return (x * scale).round().clamp(-128, 127) / scale


class BitLinear(nn.Linear):
    """A linear layer with ternary weights and int8 activations, straight-through gradients."""

    quantize = True

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x):
        w = self.weight
        if self.quantize:
            x = x + (int8_activations(x) - x).detach()
            trits, scale = ternary(w)
            w = w + (trits * scale - w).detach()
        return F.linear(x, w)


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rope_tables(shape, length, device):
    half = torch.arange(0, shape.head_dim, 2, device=device, dtype=torch.float64)
    angle = torch.outer(
        torch.arange(length, device=device, dtype=torch.float64),
        shape.rope_theta ** (-half / shape.head_dim),
    )
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    """Turns element i of each head with element i + head_dim / 2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.attn_norm = RMSNorm(s.hidden, s.eps)
        self.attn_q = BitLinear(s.hidden, s.heads * s.head_dim)
        self.attn_k = BitLinear(s.hidden, s.kv_heads * s.head_dim)
        self.attn_v = BitLinear(s.hidden, s.kv_heads * s.head_dim)
        self.attn_sub_norm = RMSNorm(s.heads * s.head_dim, s.eps)
        self.attn_output = BitLinear(s.heads * s.head_dim, s.hidden)
        self.ffn_norm = RMSNorm(s.hidden, s.eps)
        self.ffn_gate = BitLinear(s.hidden, s.ffn)
        self.ffn_up = BitLinear(s.hidden, s.ffn)
        self.ffn_sub_norm = RMSNorm(s.ffn, s.eps)
        self.ffn_down = BitLinear(s.ffn, s.hidden)

    def forward(self, x, cos, sin):
        s = self.s
        b, t, _ = x.shape
        h = self.attn_norm(x)

        def heads(y, n):
            return y.view(b, t, n, s.head_dim).transpose(1, 2)

        q = rotate(heads(self.attn_q(h), s.heads), cos, sin)
        k = rotate(heads(self.attn_k(h), s.kv_heads), cos, sin)
        v = heads(self.attn_v(h), s.kv_heads)
        group = s.heads // s.kv_heads
        k, v = (y.repeat_interleave(group, dim=1) for y in (k, v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        a = a.transpose(1, 2).reshape(b, t, s.heads * s.head_dim)
        x = x + self.attn_output(self.attn_sub_norm(a))
        h = self.ffn_norm(x)
        h = F.relu(self.ffn_gate(h)).square() * self.ffn_up(h)
        return x + self.ffn_down(self.ffn_sub_norm(h))


class StoryModel(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.hidden)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = RMSNorm(shape.hidden, shape.eps)
        nn.init.normal_(self.token_embd.weight, std=0.04)
        for block in self.blk:
            for layer in block.children():
                if isinstance(layer, BitLinear):
                    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            for layer in (block.attn_output, block.ffn_down):
                layer.weight.data /= (2 * shape.layers) ** 0.5

    def set_quantize(self, on):
        for module in self.modules():
            if isinstance(module, BitLinear):
                module.quantize = on

    def hidden(self, ids):
        cos, sin = rope_tables(self.shape, ids.shape[1], ids.device)
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, cos, sin)
        return self.output_norm(x)

    def logits(self, ids):
        return F.linear(self.hidden(ids), self.token_embd.weight)

    def loss(self, ids, targets):
        logits = self.logits(ids)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
