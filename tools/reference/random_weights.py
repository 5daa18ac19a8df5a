#!/usr/bin/env python3
"""A folder like another, with other random weights: the small models of the tests, made anew.

    python random_weights.py ../../runtime/tests/data/models/bitnet-relu2 /tmp/bitnet-relu2 --seed 1
    python reference.py --write /tmp/bitnet-relu2

Configuration and tokenizer are copied. Tensors keep names, types and shapes; their numbers are drawn as such models have
them: trits that are 0 in 42 of 100 cases, one scale a matrix (or one for 128 weights of a row), norms near one.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.bitnet import pack_weights

GROUP = 128


def trits(shape, random):
    draws = torch.rand(shape, generator=random)
    return torch.where(draws < 0.42, 0, torch.where(draws < 0.71, 1, -1)).to(torch.int8)


def tensor(name, old, packed, random):
    """Random numbers in place of `old`. `packed` says whether the folder holds packed weights."""
    if old.dtype == torch.uint8:
        rows, cols = old.shape
        return pack_weights(trits((4 * rows, cols), random))
    if name.endswith("weight_scale"):
        # About 1 / sqrt(width): multiplied or divided by, as the old one is.
        return (old.float() * (0.8 + 0.4 * torch.rand(old.shape, generator=random))).to(old.dtype)
    if old.ndim == 1:
        return (1 + 0.1 * torch.randn(old.shape, generator=random)).to(old.dtype)
    if "proj" in name and not packed:
        rows, cols = old.shape
        scales = old.float().abs().max() * (0.6 + 0.4 * torch.rand((rows, cols // GROUP, 1), generator=random))
        # The scale is rounded first, so that every weight is exactly plus or minus it.
        weights = trits((rows, cols // GROUP, GROUP), random) * scales.to(torch.float16)
        return weights.reshape(rows, cols).to(old.dtype)
    return (old.float().std() * torch.randn(old.shape, generator=random)).to(old.dtype)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("like", type=Path, help="a folder of a small model")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    source = args.like / "model.safetensors"
    if not source.is_file():
        sys.exit(f"{args.like} is no folder with a small model: model.safetensors is missing")
    if args.out.exists():
        sys.exit(f"{args.out} is there already: give a folder that is not")
    old = load_file(source)
    random = torch.Generator().manual_seed(args.seed)
    packed = any(value.dtype == torch.uint8 for value in old.values())
    new = {name: tensor(name, value, packed, random) for name, value in sorted(old.items())}
    # Complete or not there: the folder gets its name last.
    temporary = args.out.with_name(args.out.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(args.like / name, temporary / name)
    save_file({name: value.contiguous() for name, value in new.items()}, temporary / "model.safetensors", {"format": "pt"})
    temporary.rename(args.out)


if __name__ == "__main__":
    main()
