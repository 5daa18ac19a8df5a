#!/usr/bin/env python3
"""What Transformers says to the prompts of a small model: makes reference.json, or checks the one that is there.

    python reference.py ../../runtime/tests/data/models/*/            # how far is each from the library's answer
    python reference.py --write --force ../../runtime/tests/data/models/bitnet-relu2

With --rope the rotary parameters are other ones than those in config.json, and the answers are in reference-TYPE.json:

    python reference.py --rope '{"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 128}' ../../runtime/tests/data/models/llama-silu-bitlinear
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging
from tokenizers import Tokenizer

PROMPTS = [
    "Once upon a time there was a little fox who",
    "The old king said that he would go",
    "It wasn't 12345 o'clock,",
]
GREEDY = 48
# A float32 forward pass on another machine sums in another order. Activations are rounded to int8 inside the two BitNet
# models, and a code that flips moves the logits by percents: then the greedy tokens and their margins say what happened.
CLOSE = 1e-4


def load(folder, rope):
    """The model in float32, its own classes, quantised as its config says."""
    config = AutoConfig.from_pretrained(folder)
    if rope:
        config.rope_parameters = rope
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    # Transformers leaves scales of packed layers in bfloat16, whatever is asked for; widening is exact.
    return torch.nn.Module.float(model).eval()


def ids_of(folder, text):
    """Token ids with the begin token in front, as the GGUF files say."""
    config = json.loads((folder / "config.json").read_text())
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    bos = config.get("bos_token_id")
    return ids if bos is None else [bos, *ids]


@torch.no_grad()
def answer(model, prompt, ids):
    logits = model(torch.tensor([ids])).logits[0].float()
    log_probabilities = logits.log_softmax(-1)
    nll = [-float(log_probabilities[i, token]) for i, token in enumerate(ids[1:])]
    greedy, margins, text = [], [], list(ids)
    for _ in range(GREEDY):
        # Fed whole each time, so that no cache is involved.
        best = model(torch.tensor([text])).logits[0, -1].float().topk(2)
        greedy.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        text.append(greedy[-1])
    return {
        "prompt": prompt,
        "ids": ids,
        "last_logits": logits[-1].tolist(),
        "nll": nll,
        "greedy": greedy,
        "greedy_margin": margins,
    }


def distance(ours, theirs):
    """Of two lists of numbers: rms of the difference over the rms of the second."""
    ours, theirs = torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64)
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).norm() / theirs.norm())


def check(folder, answers, old):
    """Prints one line a prompt; returns whether all are close."""
    good = len(answers) == len(old)
    for new, known in zip(answers, old):
        same = sum(1 for _ in iter_equal(new["greedy"], known["greedy"]))
        logits, nll = distance(new["last_logits"], known["last_logits"]), distance(new["nll"], known["nll"])
        ids = "the same ids" if new["ids"] == known["ids"] else f"OTHER IDS {new['ids']}"
        print(f"{folder.name}: {ids}, logits {logits:.1e}, nll {nll:.1e}, {same} of {GREEDY} greedy tokens equal")
        good = good and new["ids"] == known["ids"] and max(logits, nll) < CLOSE
    return good


def iter_equal(ours, theirs):
    for a, b in zip(ours, theirs):
        if a != b:
            return
        yield a


def write(path, answers, force):
    if path.exists() and not force:
        sys.exit(f"{path} is there already: --force writes over it")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(answers))
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="Hugging Face folders of small models")
    parser.add_argument("--write", action="store_true", help="write reference.json instead of checking it")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.add_argument("--rope", type=json.loads, metavar="JSON", help="rotary parameters in place of the config's")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(2)
    good = True
    for folder in args.folders:
        path = folder / (f"reference-{args.rope['rope_type']}.json" if args.rope else "reference.json")
        if not (folder / "config.json").is_file():
            sys.exit(f"{folder} is no Hugging Face folder: config.json is missing")
        old = json.loads(path.read_text()) if path.is_file() else []
        if not old and not args.write:
            sys.exit(f"{path} is missing: --write makes it")
        prompts = [known["prompt"] for known in old] or PROMPTS
        model = load(folder, args.rope)
        answers = [answer(model, prompt, ids_of(folder, prompt)) for prompt in prompts]
        if args.write:
            write(path, answers, args.force)
        else:
            good = check(folder, answers, old) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
