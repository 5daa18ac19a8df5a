#!/usr/bin/env python3
"""Measures what users of `tritone serve` get: how many tokens a second many streams have against one, and how long
a short question waits while a long prompt is being read.

Starts the server itself, on the model given, and takes rounds: one stream, then many, again and again, so that
whatever else the machine does meets both alike. Prints medians as Markdown. Python's standard library is enough.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "server" / "tests"))
from tritone_server import Server, command  # noqa: E402


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tritone", default=command("release"), help="the command")
    parser.add_argument("--model", required=True, help="a model file, with a context of more than --long tokens")
    parser.add_argument("--streams", type=int, default=8, help="how many there are at once")
    parser.add_argument("-n", type=int, default=64, help="tokens of each stream")
    parser.add_argument("-r", type=int, default=5, help="rounds")
    parser.add_argument("--long", type=int, default=2000, help="tokens of the long prompt")
    parser.add_argument("--short", type=int, default=8, help="tokens of a short prompt")
    parser.add_argument("--chunk", type=int, default=64, help="tokens of a prompt that the server reads in one step")
    parser.add_argument("--json", action="store_true", help="every measurement instead of the tables")
    parser.add_argument("options", nargs="*", help="further options for the server, after --")
    return parser.parse_args()


class Timed:
    """When a request was sent, when each piece of its answer came, and how many tokens it had."""

    def __init__(self):
        self.sent, self.pieces, self.tokens = time.perf_counter(), [], 0

    @property
    def first(self):
        return self.pieces[0] - self.sent


async def stream(port, model, prompt, tokens):
    """Asks for exactly so many tokens. Its prompts are tokens, so that their number is known."""
    # Random models end where they like; without end tokens they do not.
    body = {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    timed = Timed()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()
    status = await reader.readline()
    if b" 200 " not in status:
        sys.exit(f"the server answered {status.decode().strip()}: {(await reader.read()).decode(errors='replace')}")
    while (line := await reader.readline()) and line != b"data: [DONE]\n":
        if line.startswith(b"data: {"):
            part = json.loads(line[6:])
            if "error" in part:
                sys.exit(f"the server failed: {part['error']}")
            if part.get("choices"):
                timed.pieces.append(time.perf_counter())
            if part.get("usage"):
                timed.tokens = part["usage"]["completion_tokens"]
    writer.close()
    if timed.tokens != tokens:
        sys.exit(f"asked for {tokens} tokens, the server gave {timed.tokens}")
    return timed


class Bench:
    def __init__(self, port, model, options):
        self.port, self.model, self.options = port, model, options
        self.chance = random.Random(1)

    def prompt(self, tokens):
        """Never the same twice, so that nothing of it is known to the server."""
        return [self.chance.randrange(300, 3000) for _ in range(tokens)]

    async def rate(self, streams):
        """Tokens a second of all together, from the first token of any to the last of all."""
        ask = (stream(self.port, self.model, self.prompt(self.options.short), self.options.n) for _ in range(streams))
        timed = await asyncio.gather(*ask)
        seconds = max(one.pieces[-1] for one in timed) - min(one.pieces[0] for one in timed)
        return sum(one.tokens - 1 for one in timed) / seconds

    async def long_alone(self):
        return (await stream(self.port, self.model, self.prompt(self.options.long), 1)).first

    async def short_alone(self):
        return (await stream(self.port, self.model, self.prompt(self.options.short), 1)).first

    async def short_beside_long(self, long_seconds):
        """Time to the first token of a short prompt that comes at any time while a long one is being read."""
        long = asyncio.create_task(stream(self.port, self.model, self.prompt(self.options.long), 1))
        await asyncio.sleep(self.chance.uniform(0.05, 0.7) * long_seconds)
        first = (await stream(self.port, self.model, self.prompt(self.options.short), 1)).first
        if long.done():
            sys.exit("the long prompt was read before the short one was answered; there is nothing to measure")
        await long
        return first


async def measure(server, options):
    model = server.model()
    bench = Bench(server.port, model, options)
    await bench.rate(options.streams)
    rounds = []
    for number in range(options.r):
        one, many = await bench.rate(1), await bench.rate(options.streams)
        long, alone = await bench.long_alone(), await bench.short_alone()
        beside = await bench.short_beside_long(long)
        chunk = long / -(-options.long // options.chunk)
        rounds.append({"one": one, "many": many, "ratio": many / one, "long": long, "chunk": chunk, "alone": alone,
                       "beside": beside, "chunks": beside / chunk})
        print(f"round {number + 1} of {options.r} is done", file=sys.stderr, flush=True)
    return {"model": model, "rounds": rounds}


def tables(found, options):
    rounds = found["rounds"]

    def median(name):
        return statistics.median(one[name] for one in rounds)

    def span(name, digits):
        values = [one[name] for one in rounds]
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    print(f"`{found['model']}`, {os.cpu_count()} cores, medians of {len(rounds)} rounds (least to most).\n")
    print(f"| streams of {options.n} tokens | tokens/s |\n|---|---:|")
    print(f"| 1 | {span('one', 1)} |\n| {options.streams}, together | {span('many', 1)} |")
    print(f"| {options.streams} against 1 | {span('ratio', 2)} |\n")
    print("| | seconds |\n|---|---:|")
    print(f"| first token after {options.long} tokens, alone | {span('long', 2)} |")
    print(f"| of that a chunk of {options.chunk} | {span('chunk', 3)} |")
    print(f"| first token after {options.short} tokens, alone | {span('alone', 3)} |")
    print(f"| the same while {options.long} tokens are read | {span('beside', 3)} |")
    print(f"| the same, in chunks | {span('chunks', 2)} |")
    print(f"\nAt least 3.5 times the tokens: {'yes' if median('ratio') >= 3.5 else 'no'}. "
          f"Under three chunks: {'yes' if median('chunks') < 3 else 'no'}.")


def main():
    options = arguments()
    given = ["--parallel", options.streams, "--model", options.model, *options.options]
    with Server(*given, program=options.tritone) as server:
        found = asyncio.run(measure(server, options))
    if options.json:
        print(json.dumps(found))
    else:
        tables(found, options)


if __name__ == "__main__":
    main()
