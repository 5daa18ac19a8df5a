"""The story model: BitNet b1.58 in the 2B-4T architecture, small, quantisation-aware.

Grouped-query attention, relu^2 in the feed-forward layer, a norm before the output projection and
another before down, embedding tied to the head. `Shape` gives the full size, 12.6 M ternary weights.
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


class Ternary(torch.autograd.Function):
    """The ternary weight on the way forward, the identity on the way back."""

    @staticmethod
    def forward(ctx, w):
        trits, scale = ternary(w)
        return trits * scale

    @staticmethod
    def backward(ctx, grad):
        return grad


class Int8(torch.autograd.Function):
    """Activations rounded as the engine rounds them, one absmax scale per token; identity back.

    |x| * (127 / max) is at most 127 but for the last bit, so rounding alone stays in range.
    """

    @staticmethod
    def forward(ctx, x):
        top = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True)).clamp_(min=1e-5)
        return (x * (127.0 / top)).round_().mul_(top / 127.0)

    @staticmethod
    def backward(ctx, grad):
        return grad


class BitLinear(nn.Linear):
    """A linear layer with ternary weights and int8 activations, straight-through gradients."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out, bias=False)


def project(x, layers, quantize):
    """`x` through several layers that share one rounding of the activations and one product."""
    weights = [layer.weight for layer in layers]
    if quantize:
        x, weights = Int8.apply(x), [Ternary.apply(w) for w in weights]
    y = F.linear(x, torch.cat(weights) if len(weights) > 1 else weights[0])
    return y.split([layer.out_features for layer in layers], dim=-1)


class HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of `softmax(h @ w.T)`, in slices so that the logits stay in cache.

    The gradients are made on the way forward, while each slice is at hand.
    """

    @staticmethod
    def forward(ctx, h, w, targets, rows=384):
        n, loss = len(h), 0.0
        grad_h, grad_w = torch.empty_like(h), torch.zeros_like(w)
        for start in range(0, n, rows):
            at = slice(start, start + rows)
            p, goal = (h[at] @ w.T).float(), targets[at, None]
            log_z = p.logsumexp(-1, keepdim=True)
            loss += (log_z - p.gather(1, goal)).sum()
            p = p.sub_(log_z).exp_()
            p.scatter_add_(1, goal, torch.full_like(log_z, -1.0)).div_(n)
            grad_h[at] = p @ w
            grad_w.addmm_(p.T, h[at])
        ctx.save_for_backward(grad_h, grad_w)
        return loss / n

    @staticmethod
    def backward(ctx, grad):
        grad_h, grad_w = ctx.saved_tensors
        return grad_h * grad, grad_w * grad, None, None


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


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

    def forward(self, x, cos, sin, quantize):
        s = self.s
        b, t, _ = x.shape

        def heads(y, n):
            return y.view(b, t, n, s.head_dim).transpose(1, 2)

        q, k, v = project(self.attn_norm(x), (self.attn_q, self.attn_k, self.attn_v), quantize)
        q, k = rotate(heads(q, s.heads), cos, sin), rotate(heads(k, s.kv_heads), cos, sin)
        v = heads(v, s.kv_heads)
        group = s.heads // s.kv_heads
        k, v = (y.repeat_interleave(group, dim=1) for y in (k, v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        a = a.transpose(1, 2).reshape(b, t, s.heads * s.head_dim)
        x = x + project(self.attn_sub_norm(a), (self.attn_output,), quantize)[0]
        gate, up = project(self.ffn_norm(x), (self.ffn_gate, self.ffn_up), quantize)
        h = F.relu(gate).square() * up
        return x + project(self.ffn_sub_norm(h), (self.ffn_down,), quantize)[0]


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

    def hidden(self, ids, quantize):
        cos, sin = rope_tables(self.shape, ids.shape[1], ids.device)
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, cos, sin, quantize)
        return self.output_norm(x)

    def loss(self, ids, targets, quantize=True):
        """Mean cross-entropy per token, in nats."""
        h, w, y = self.hidden(ids, quantize).flatten(0, 1), self.token_embd.weight, targets.flatten()
        if h.is_cuda:
            return F.cross_entropy(F.linear(h, w).float(), y)
        return HeadLoss.apply(h.float(), w, y)
