"""Trains the story model; stops and resumes at any time.

    python train.py --run runs/story --minutes 60                  # constant learning rate
    python train.py --run runs/story --minutes 60 --resume         # go on
    python train.py --run runs/story --minutes 15 --resume --decay # decay to zero, the final model

The learning rate is constant after a short warm-up, so that `stable.pt` can be continued for any
length; `--decay` leaves it alone and writes `final.pt`. The ternary matrices are trained with Muon
(orthogonalised momentum, Keller Jordan 2024), everything else with Adam. CUDA is used when there is
one, bf16 where the machine multiplies it in hardware.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch

from model import BitLinear, Shape, StoryModel


def orthogonalize(g, steps):
    """Nearest half-orthogonal matrices of a batch `[n, rows, cols]` by Newton-Schulz iteration."""
    transposed = g.shape[1] > g.shape[2]
    x = g.mT if transposed else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, steps=4):
        super().__init__(list(params), dict(lr=lr, momentum=momentum, steps=steps))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                by_shape.setdefault(tuple(p.shape), []).append(p)
            for (rows, cols), params in by_shape.items():
                grads = []
                for p in params:
                    m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    grads.append(p.grad.lerp(m, group["momentum"]))
                updates = orthogonalize(torch.stack(grads), group["steps"])
                lr = group["lr"] * max(1.0, rows / cols) ** 0.5
                for p, update in zip(params, updates):
                    p.add_(update, alpha=-lr)


class Stream:
    """Endless windows of shuffled stories; the order is a function of (seed, epoch)."""

    def __init__(self, path, seed=1):
        data = np.load(path)
        self.ids, starts = data["ids"], data["starts"]
        self.parts = list(zip(starts, [*starts[1:], len(self.ids)]))
        self.seed, self.epoch, self.at = seed, 0, 0
        self.load()

    def load(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.parts))
        self.tokens = np.concatenate([self.ids[slice(*self.parts[i])] for i in order])

    def batch(self, n, length):
        need = n * length + 1
        if self.at + need > len(self.tokens):
            self.epoch, self.at = self.epoch + 1, 0
            self.load()
        piece = self.tokens[self.at : self.at + need].astype(np.int64)
        self.at += n * length
        piece = torch.from_numpy(piece)
        return piece[:-1].view(n, length), piece[1:].view(n, length)


@torch.no_grad()
def heldout_bits_per_byte(model, path, n_bytes, window, limit, device):
    """A quick look at a part of the held-out text; evaluate.py does it exactly."""
    ids = torch.from_numpy(np.load(path)["ids"].astype(np.int64))[: limit + 1]
    fraction = limit / len(np.load(path)["ids"])
    n = (len(ids) - 1) // window
    x, y = ids[: n * window].view(n, window), ids[1 : n * window + 1].view(n, window)
    total = 0.0
    for i in range(0, n, 8):
        total += float(model.loss(x[i : i + 8].to(device), y[i : i + 8].to(device))) * x[i : i + 8].numel()
    return total / math.log(2) / (n_bytes * fraction)


def save(path, **state):
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder made by prepare.py")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--decay", action="store_true", help="learning rate to zero over --minutes")
    parser.add_argument("--batch", type=int, default=4096, help="tokens per step")
    parser.add_argument("--length", type=int, default=256, help="tokens per window")
    parser.add_argument("--lr-muon", type=float, default=0.02)
    parser.add_argument("--lr-adam", type=float, default=0.003)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--qat-from", type=int, default=1_500_000, help="tokens in full precision first")
    parser.add_argument("--heldout-bytes", type=int, default=287_820)
    for name, default in Shape().as_dict().items():
        if name not in ("vocab", "rope_theta", "eps"):
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(1)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    amx = "amx_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False
    bf16 = device == "cuda" or amx
    shape = Shape(
        layers=args.layers, hidden=args.hidden, ffn=args.ffn, heads=args.heads,
        kv_heads=args.kv_heads, head_dim=args.head_dim, context=args.context,
    )
    model = StoryModel(shape).to(device)
    matrices = [m.weight for m in model.modules() if isinstance(m, BitLinear)]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(matrices, args.lr_muon)
    adam = torch.optim.Adam(others, args.lr_adam, betas=(0.9, 0.95))
    stream = Stream(args.run / "train.npz")
    seen, steps = 0, 0
    if args.resume:
        state = torch.load(args.run / "stable.pt", map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        seen, steps = state["seen"], state["steps"]
        stream.epoch, stream.at = state["epoch"], state["at"]
        stream.load()
    step_loss = model.loss if args.no_compile else torch.compile(model.loss)
    log = open(args.run / "log.jsonl", "a", buffering=1)
    began = saved = time.time()
    running = None
    while (elapsed := time.time() - began) < args.minutes * 60:
        factor = min(1.0, (steps + 1) / args.warmup)
        if args.decay:
            factor *= max(0.0, 1 - elapsed / (args.minutes * 60))
        for optimizer, lr in ((muon, args.lr_muon), (adam, args.lr_adam)):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        model.set_quantize(seen >= args.qat_from)
        x, y = stream.batch(args.batch // args.length, args.length)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = step_loss(x.to(device), y.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        seen, steps = seen + args.batch, steps + 1
        running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
        last = time.time() - began >= args.minutes * 60
        if steps % 20 == 0:
            log.write(json.dumps({"steps": steps, "tokens": seen, "loss": round(running, 4), "lr": factor, "minutes": round((time.time() - began) / 60, 2)}) + "\n")
        if steps % 200 == 0 or last:
            model.eval()
            model.set_quantize(True)
            bpb = heldout_bits_per_byte(model, args.run / "heldout.npz", args.heldout_bytes, 512, 16384, device)
            model.train()
            log.write(json.dumps({"steps": steps, "tokens": seen, "heldout_bits_per_byte": round(bpb, 4)}) + "\n")
        if time.time() - saved > 180 or last:
            saved = time.time()
            save(
                args.run / ("final.pt" if args.decay else "stable.pt"),
                model=model.state_dict(), muon=muon.state_dict(), adam=adam.state_dict(),
                seen=seen, steps=steps, epoch=stream.epoch, at=stream.at, shape=model.shape.as_dict(),
            )


if __name__ == "__main__":
    main()
