"""Trains the story model; stops and resumes at any time.

    python train.py --run runs/story --minutes 60                  # constant learning rate
    python train.py --run runs/story --minutes 60 --resume         # go on
    python train.py --run runs/story --minutes 60 --resume --stack # go on with twice the layers
    python train.py --run runs/story --minutes 15 --length 512 --decay

The learning rate is constant after a short warm-up, so that `stable.pt` can be continued for any
length; `--decay` starts from it, leaves it alone, and brings the rate to zero over the budget into
`final.pt`. `--stack` doubles the layers of the checkpoint by repeating them, so that most tokens can
be read by a shallow, cheap model first (progressive stacking, Gong et al. 2019). The ternary matrices are trained with Muon (orthogonalised momentum, Keller Jordan 2024),
everything else with Adam. CUDA is used when there is one, bf16 where the machine multiplies it in
hardware.
"""

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from model import BitLinear, Shape, StoryModel


def orthogonalize(g, steps, dtype=torch.float32):
    """Nearest half-orthogonal matrices of a batch `[n, rows, cols]` by Newton-Schulz iteration."""
    transposed = g.shape[1] > g.shape[2]
    x = g.mT if transposed else g
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if transposed else x).float()


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, dtype, momentum=0.95, steps=4):
        super().__init__(list(params), dict(lr=lr, momentum=momentum, steps=steps))
        self.dtype = dtype

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
                updates = orthogonalize(torch.stack(grads), group["steps"], self.dtype)
                lr = group["lr"] * max(1.0, rows / cols) ** 0.5
                for p, update in zip(params, updates):
                    p.add_(update, alpha=-lr)


class Stream:
    """Endless windows of shuffled stories; the order is a function of (seed, epoch)."""

    def __init__(self, data, seed=1):
        self.ids, starts = data["ids"], data["starts"]
        self.parts = list(zip(starts, [*starts[1:], len(self.ids)]))
        self.seed = seed
        self.seek(0, 0)

    def seek(self, epoch, at):
        self.epoch, self.at = epoch, at
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.parts))
        self.tokens = np.concatenate([self.ids[slice(*self.parts[i])] for i in order])

    def batch(self, n, length):
        need = n * length + 1
        if self.at + need > len(self.tokens):
            self.seek(self.epoch + 1, 0)
        piece = self.tokens[self.at : self.at + need].astype(np.int64)
        self.at += n * length
        piece = torch.from_numpy(piece)
        return piece[:-1].view(n, length), piece[1:].view(n, length)


@torch.no_grad()
def heldout_bits_per_byte(model, data, window, limit, device):
    """A quick look at the first `limit` held-out tokens; evaluate.py does it exactly."""
    ids = torch.from_numpy(data["ids"][: limit + 1].astype(np.int64))
    n = (len(ids) - 1) // window
    x, y = ids[: n * window].view(n, window), ids[1 : n * window + 1].view(n, window)
    total = 0.0
    for i in range(0, n, 8):
        total += float(model.loss(x[i : i + 8].to(device), y[i : i + 8].to(device))) * x[i : i + 8].numel()
    bytes_scored = int(data["bytes"]) * n * window / len(data["ids"])
    return total / math.log(2) / bytes_scored


def save(path, **state):
    """Never leaves half a file under the final name."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load(paths, device):
    """One checkpoint, or the last one with the mean of the weights of all."""
    states = [torch.load(path, map_location=device, weights_only=True) for path in paths]
    state = states[-1]
    for name in state["model"]:
        state["model"][name] = torch.stack([s["model"][name] for s in states]).mean(0)
    return state


def stack(state):
    """Twice the layers: the block of all layers is repeated, and the optimizers start anew."""
    layers = state["shape"]["layers"]
    state["shape"]["layers"] = 2 * layers
    for name in [name for name in state["model"] if name.startswith("blk.")]:
        _, layer, rest = name.split(".", 2)
        state["model"][f"blk.{int(layer) + layers}.{rest}"] = state["model"][name].clone()
    del state["muon"], state["adam"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder made by prepare.py")
    parser.add_argument("--minutes", type=float, default=math.inf, help="budget in wall-clock time")
    parser.add_argument("--tokens", type=float, default=math.inf, help="budget in tokens of this call")
    parser.add_argument("--resume", action="store_true", help="go on from stable.pt")
    parser.add_argument("--start", nargs="+", type=Path, help="resume from these, weights averaged")
    parser.add_argument("--stack", action="store_true", help="double the layers of the checkpoint")
    parser.add_argument("--decay", action="store_true", help="learning rate to zero over the budget")
    parser.add_argument("--batch", type=int, default=8192, help="tokens per step")
    parser.add_argument("--micro", type=int, default=1024, help="tokens per backward pass on a CPU")
    parser.add_argument("--length", type=int, default=256, help="tokens per window")
    parser.add_argument("--lr-muon", type=float, default=0.02)
    parser.add_argument("--lr-adam", type=float, default=0.003)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--qat-from", type=int, default=1_500_000, help="tokens in full precision first")
    parser.add_argument("--eval-every", type=int, default=200, help="steps")
    parser.add_argument("--save-every", type=float, default=3, help="minutes")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: where a compiler is found")
    for name, default in Shape().as_dict().items():
        if name not in ("vocab", "rope_theta", "eps"):
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    args = parser.parse_args()
    if min(args.minutes, args.tokens) == math.inf:
        parser.error("give a budget: --minutes or --tokens")
    if args.micro % args.length or args.batch % args.micro:
        parser.error("--batch must be a multiple of --micro, and that of --length")
    args.start = args.start or ([args.run / "stable.pt"] if args.resume or args.decay else None)
    return args


def matrix_type(choice, device):
    """bf16 where it is multiplied in hardware."""
    cpu = Path("/proc/cpuinfo")
    amx = cpu.exists() and "amx_bf16" in cpu.read_text()
    fast = device == "cuda" or amx
    return torch.bfloat16 if choice == "bf16" or choice == "auto" and fast else torch.float32


def main():
    args = arguments()
    torch.manual_seed(1)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = matrix_type(args.dtype, device)
    data = {part: np.load(args.run / f"{part}.npz") for part in ("train", "heldout")}
    stream = Stream(data["train"])
    seen, steps, state = 0, 0, None
    shape = {name: getattr(args, name, default) for name, default in Shape().as_dict().items()}
    if args.start:
        state = load(args.start, device)
        if args.stack:
            stack(state)
        seen, steps, shape = state["seen"], state["steps"], state["shape"] | {"context": args.context}
    model = StoryModel(Shape(**shape)).to(device)
    matrices = [m.weight for m in model.modules() if isinstance(m, BitLinear)]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(matrices, args.lr_muon, dtype)
    adam = torch.optim.Adam(others, args.lr_adam, betas=(0.9, 0.95))
    if state and "muon" in state:
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
    if state:
        model.load_state_dict(state["model"])
        stream.seek(state["epoch"], state["at"])
    compiled = args.compile if args.compile is not None else device == "cuda" or shutil.which("g++")
    if compiled:
        for block in model.blk:
            block.compile()
    # On a CPU a small piece at a time stays in its caches.
    pieces = args.batch // args.micro if device == "cpu" else 1
    out = args.run / ("final.pt" if args.decay else "stable.pt")
    log = open(args.run / "log.jsonl", "a", buffering=1)
    began = saved = time.time()
    first, running, done = seen, None, 0.0
    while done < 1:
        factor = min(1.0, (steps + 1) / args.warmup) * (1 - done if args.decay else 1)
        for optimizer, lr in ((muon, args.lr_muon), (adam, args.lr_adam)):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        x, y = stream.batch(args.batch // args.length, args.length)
        loss = 0.0
        for x_piece, y_piece in zip(x.chunk(pieces), y.chunk(pieces)):
            with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
                part = model.loss(x_piece.to(device), y_piece.to(device), seen >= args.qat_from) / pieces
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        seen, steps = seen + args.batch, steps + 1
        minutes = (time.time() - began) / 60
        done = max(minutes / args.minutes, (seen - first) / args.tokens)
        running = loss if running is None else 0.95 * running + 0.05 * loss
        record = {"steps": steps, "tokens": seen, "length": args.length, "minutes": round(minutes, 2)}
        if steps % 20 == 0:
            log.write(json.dumps(record | {"loss": round(running, 4), "lr": round(factor, 4)}) + "\n")
        if steps % args.eval_every == 0 or done >= 1:
            bpb = heldout_bits_per_byte(model, data["heldout"], 512, 16384, device)
            log.write(json.dumps(record | {"heldout_bits_per_byte": round(bpb, 4)}) + "\n")
        if time.time() - saved > args.save_every * 60 or done >= 1:
            saved = time.time()
            save(
                out, model=model.state_dict(), muon=muon.state_dict(), adam=adam.state_dict(),
                seen=seen, steps=steps, epoch=stream.epoch, at=stream.at, shape=model.shape.as_dict(),
            )


if __name__ == "__main__":
    main()
