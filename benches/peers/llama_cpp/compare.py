#!/usr/bin/env python3
"""Measures Tritone beside llama.cpp, as llama-cpp-python packs it, on the same files.

Both engines take turns: one process of the one, one of the other, again and again. A pair is two
neighbours in time, and what is shown is the median of the pairs' ratios, so that whatever else the
machine does meets both alike. Each process loads the file, warms up, reads a prompt of -p tokens into
an empty context and decodes -n tokens into an empty context, each the likeliest after the last.

The files are random models made by `tritone synth` and `tritone convert`; they are kept in --models.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
KINDS = ("prefill", "decode")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--tritone", type=pathlib.Path, default=target / "release" / "tritone", help="the command")
    parser.add_argument("--venv", type=pathlib.Path, default=target / "peers" / "llama_cpp",
                        help="virtual environment that has llama-cpp-python, or where it is to be installed")
    parser.add_argument("--models", type=pathlib.Path, default=target / "peers" / "models", help="folder of the files")
    parser.add_argument("--shape", default=str(HERE / "shape.json"), help="as for tritone synth")
    parser.add_argument("--types", default="tq2_0,tq1_0", help="types of the ternary weights")
    parser.add_argument("--embedding", default="f16", help="type of embedding and head")
    parser.add_argument("--relu-density", default="0.15",
                        help="share of gates that are positive, which is what Tritone need not skip of up and down; "
                             "0.15 is what trained models have")
    parser.add_argument("-p", type=count, default=64, help="tokens of the prompt")
    parser.add_argument("-n", type=count, default=32, help="tokens to decode")
    parser.add_argument("-t", type=counts, default=[1, 2], help="numbers of threads")
    parser.add_argument("-r", type=count, default=5, help="pairs")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--peer", nargs=4, metavar=("FILE", "P", "N", "T"), help=argparse.SUPPRESS)
    return parser.parse_args()


def count(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return number


def counts(text):
    return [count(part) for part in text.split(",")]


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command):
    """What a command writes; its messages go where ours go."""
    try:
        return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    except FileNotFoundError:
        sys.exit(f"error: there is no {command[0]}; build it with cargo build --release or give --tritone")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {' '.join(map(str, command))} ended with status {error.returncode}")


def environment(folder):
    """The Python of an environment in which llama_cpp can be imported."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        say(f"making {folder}")
        venv.create(folder, with_pip=True)
    found = subprocess.run([python, "-c", "import llama_cpp"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if found.returncode != 0:
        say("installing llama-cpp-python; it is compiled here, which takes a while")
        run([python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"])
    return python


def model(args, kind):
    """The random model in a type; the first one is made, the others are converted from it."""
    args.models.mkdir(parents=True, exist_ok=True)
    stem = pathlib.Path(args.shape).stem
    first = args.types.split(",")[0]
    path = {name: args.models / f"{stem}-{name}-{args.embedding}-{args.relu_density}.gguf" for name in (first, kind)}
    if not path[first].exists():
        run([args.tritone, "synth", "--shape", args.shape, "--type", first, "--embedding", args.embedding,
             "--relu-density", args.relu_density, "-o", path[first]])
    if not path[kind].exists():
        run([args.tritone, "convert", path[first], path[kind], "--to", kind])
    return path[kind]


def tritone(args, path, threads):
    """Tokens a second."""
    report = json.loads(run([args.tritone, "bench", "--quiet", "-m", path, "-p", args.p, "-n", args.n, "-t", threads,
                             "-r", 1, "--batch", 1, "-o", "json"]))
    figures = report["runs"][0]
    return {kind: figures[kind]["tokens_per_second"]["median"] for kind in KINDS}


def peer(args, python, path, threads):
    """Tokens a second."""
    return json.loads(run([python, __file__, "--peer", path, args.p, args.n, threads]))


def measure_peer(path, prompt, generate, threads):
    """Runs in the environment: llama.cpp through the C functions, without the Python class on top."""
    import ctypes

    import llama_cpp as llama
    import numpy

    @llama.llama_log_callback
    def silent(_level, _text, _data):
        pass

    llama.llama_log_set(silent, None)
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    loaded = llama.llama_model_load_from_file(path.encode(), params)
    if not loaded:
        sys.exit(f"error: llama.cpp can't load {path}")
    params = llama.llama_context_default_params()
    params.n_ctx = max(prompt, generate) + 8
    params.n_batch = params.n_ubatch = max(prompt, 32)
    params.n_threads = params.n_threads_batch = threads
    context = llama.llama_init_from_model(loaded, params)
    if not context:
        sys.exit("error: llama.cpp made no context")
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(loaded))

    def feed(tokens):
        array = (llama.llama_token * len(tokens))(*tokens)
        status = llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            sys.exit(f"error: llama.cpp returned {status}")
        logits = ctypes.cast(llama.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float))
        return int(numpy.ctypeslib.as_array(logits, (vocab,)).argmax())

    def clear():
        llama.llama_memory_clear(llama.llama_get_memory(context), True)

    # Any tokens do: the weights are random.
    tokens = [(i * i * 7 + i * 13 + 5) % min(vocab, 100_000) for i in range(prompt)]
    feed(tokens[:32])
    clear()
    began = time.perf_counter()
    token = feed(tokens)
    prefill = prompt / (time.perf_counter() - began)
    clear()
    began = time.perf_counter()
    for _ in range(generate):
        token = feed([token])
    decode = generate / (time.perf_counter() - began)
    print(json.dumps({"prefill": prefill, "decode": decode}))


def main():
    args = arguments()
    if args.peer:
        path, *numbers = args.peer
        return measure_peer(path, *map(int, numbers))
    python = environment(args.venv)
    results = []
    for kind in args.types.split(","):
        path = model(args, kind)
        for threads in args.t:
            pairs = []
            for turn in range(args.r):
                say(f"{kind}, {threads} threads, pair {turn + 1} of {args.r}")
                # Who is first changes too.
                if turn % 2 == 0:
                    ours = tritone(args, path, threads)
                    theirs = peer(args, python, path, threads)
                else:
                    theirs = peer(args, python, path, threads)
                    ours = tritone(args, path, threads)
                pairs.append((ours, theirs))
            for what in KINDS:
                results.append({
                    "type": kind,
                    "threads": threads,
                    "what": what,
                    "tritone": statistics.median(ours[what] for ours, _ in pairs),
                    "llama_cpp": statistics.median(theirs[what] for _, theirs in pairs),
                    "ratio": statistics.median(ours[what] / theirs[what] for ours, theirs in pairs),
                    "ratios": [ours[what] / theirs[what] for ours, theirs in pairs],
                })
    if args.json:
        print(json.dumps({"prompt": args.p, "generate": args.n, "pairs": args.r, "results": results}))
        return None
    print("| file | threads | tokens/s of | Tritone | llama.cpp | ratio |")
    print("|---|---:|---|---:|---:|---:|")
    for row in results:
        what = f"prefill {args.p}" if row["what"] == "prefill" else f"decode {args.n}"
        print(f"| {row['type']} | {row['threads']} | {what} | {row['tritone']:.2f} | {row['llama_cpp']:.2f} "
              f"| {row['ratio']:.2f} |")
    return None


if __name__ == "__main__":
    main()
