#!/usr/bin/env python3
"""A small tokenizer of Gemma's kind and the ids that the `tokenizers` package gives some texts with it.

    python gemma_tokenizer.py OUT

Gemma's tokenizer.json is a SentencePiece vocabulary turned into BPE: a normalizer writes spaces as another character, what
is not in the vocabulary is spelled in bytes, runs of spaces and of newlines are tokens added by name, and a template puts
tokens before and behind a text.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

SPACE = "\u2581"
WORDS = "the and was king said fox ing ed old there that little went out see who once upon time world".split()
TEXTS = [
    "",
    "The old king said that he was there",
    " once upon a time",
    "two  spaces, three   spaces, five     spaces and a tab\tand  ",
    "one\n\ntwo\n\n\n\nthree\n",
    "kings kingdom foxes thethethe outing",
    "ümläut, 日本語, 🦊",
    "<eos> in a text <unk> and <0x41>",
    "<b>bold</b>",
]


def main():
    out = Path(sys.argv[1])
    vocab = {name: i for i, name in enumerate(["<pad>", "<eos>", "<bos>", "<unk>"])}
    added = [{"id": i, "content": name, "special": True} for name, i in vocab.items()]
    runs = ["\n", "\n\n", "\n\n\n", *(SPACE * n for n in range(2, 6)), "<b>", "</b>"]
    for name in runs:
        added.append({"id": len(vocab), "content": name, "special": False})
        vocab[name] = len(vocab)
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    # Every way to make a token of two others is a merge, in the order of the tokens' ranks.
    ranked = [SPACE * n for n in range(2, 6)]
    for word in WORDS:
        for text in (word, SPACE + word):
            ranked += [text[:end] for end in range(2, len(text) + 1)]
    ranked = list(dict.fromkeys(ranked))
    for text in [SPACE, *sorted(set("".join(WORDS) + ",ABCTbm")), *ranked]:
        vocab.setdefault(text, len(vocab))
    merges = [[text[:i], text[i:]] for text in ranked for i in range(1, len(text)) if text[:i] in vocab and text[i:] in vocab]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [token | flags for token in added],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("<bos>"), {"Sequence": {"id": "A", "type_id": 0}}, special("<eos>")],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [vocab[name]], "tokens": [name]} for name in ("<bos>", "<eos>")},
        },
        "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": merges,
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n")
    library = Tokenizer.from_file(str(out / "tokenizer.json"))
    # Names of control tokens in a text are text here.
    library.encode_special_tokens = True
    ids = [{"text": text, "ids": library.encode(text).ids} for text in TEXTS]
    (out / "ids.json").write_text(json.dumps(ids, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
