"""Builds the tokenizer and the token files from a corpus of stories.

    python prepare.py --corpus stories.txt --heldout stories-heldout.txt --out runs/story

Stories are separated by lines `<|endoftext|>`. Each becomes <|begin_of_text|> text <|end_of_text|>.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
# The split rule of the Llama-3 tokenizer, a fact of that format.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def stories(path):
    for story in Path(path).read_text(encoding="utf-8").split("<|endoftext|>"):
        if story := story.strip():
            yield story


def train_tokenizer(path, vocab):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories(path), trainer)
    assert tokenizer.get_vocab_size() == vocab
    return tokenizer


def encode(tokenizer, path):
    ids, starts = [], []
    for encoding in tokenizer.encode_batch(list(stories(path))):
        starts.append(len(ids))
        ids += [0, *encoding.ids, 1]
    return np.array(ids, dtype=np.uint16), np.array(starts, dtype=np.int64)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--heldout", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--vocab", type=int, default=4096)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(args.corpus, args.vocab)
    tokenizer.save(str(args.out / "tokenizer.json"))
    for name, path in [("train", args.corpus), ("heldout", args.heldout)]:
        ids, starts = encode(tokenizer, path)
        size = sum(len(story.encode()) for story in stories(path))
        np.savez(args.out / f"{name}.npz", ids=ids, starts=starts, bytes=size)
        print(json.dumps({"part": name, "stories": len(starts), "tokens": len(ids), "bytes": size}))


if __name__ == "__main__":
    main()
