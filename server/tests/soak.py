#!/usr/bin/env python3
"""Soaks `tritone serve`: thousands of requests, many at once, from clients of all manners.

Some requests are short and some long, some stream and some do not, some are wrong and want an error. A third of the
clients go away: before they have said all, while they wait, or in the middle of the answer. Of the others some read
slowly and some send slowly. Before that every kind of request is sent alone, and each answer that is read to its end
must be equal to that one. In the end nothing may be left over in the server, and its memory must have been flat.

Python's standard library is enough. Ends with status 1 when something is not as it should be.
"""

import argparse
import asyncio
import collections
import json
import random
import socket
import statistics
import sys
import time

from tritone_server import Server

PATIENCE = 300
MEMORY_SECONDS = 0.5
MEMORY_SHARE = 0.05
JUDGED_SECONDS = 30


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="how many to send")
    parser.add_argument("--minutes", type=float, help="send none after this time, whatever --requests says")
    parser.add_argument("--clients", type=int, default=64, help="how many clients there are at once")
    parser.add_argument("--kinds", type=int, default=96, help="how many different requests there are")
    parser.add_argument("--cut", type=float, default=1 / 3, help="share of clients that go away")
    parser.add_argument("--slow", type=float, default=0.15, help="share of slow readers, and of slow senders")
    parser.add_argument("--settle", type=float, default=120, help="seconds after which memory must be flat")
    parser.add_argument("--short", action="store_true",
                        help="end with the last of --requests and judge no memory that did not settle; "
                             "without it there are more requests until memory can be judged")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn")
    parser.add_argument("--model", help="a model file instead of the embedded one")
    parser.add_argument("--parallel", type=int, default=8, help="answers at once in the server")
    return parser.parse_args()


WORDS = "the old bear went into a dark wood and found one small red house where two kind foxes lived".split()


class Kind:
    """A request, and what it is answered when it is alone."""

    def __init__(self, number, model, seed):
        chance = random.Random(f"{seed} {number}")
        # Mostly short, sometimes long, as people ask.
        length = int(min(3 + chance.expovariate(1 / 60), 500))
        words = " ".join(chance.choice(WORDS) for _ in range(length))
        body = {
            "model": model,
            "max_tokens": int(min(1 + chance.expovariate(1 / 24), 200)),
            "seed": number,
            "temperature": chance.choice([0, 0.7, 1.0]),
        }
        self.path = chance.choice(["/v1/chat/completions", "/v1/chat/completions", "/v1/completions"])
        if self.path == "/v1/completions":
            body["prompt"] = words
        else:
            body["messages"] = [{"role": "system", "content": "You tell stories to children. " * 4},
                                {"role": "user", "content": words}]
            if number % 7 == 0:
                body["response_format"] = {"type": "json_object"}
                body["max_tokens"] += 20
        if chance.random() < 0.2:
            body["stop"] = [" bear", "."]
        if chance.random() < 0.15:
            body["n"] = 2
        self.status = 200
        if number % 16 == 15:
            body["temperature"] = -1
            self.status = 400
        self.streams = chance.random() < 0.5
        if self.streams:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        self.body = json.dumps(body).encode()
        self.alone = None


def essence(kind, status, body):
    """What two answers to the same request have in common, whoever else was served meanwhile."""
    if status != 200:
        return status, json.loads(body)["error"]["message"]
    texts, reasons, usage = collections.defaultdict(str), {}, None
    if kind.streams:
        events = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
        if not events or events[-1] != "[DONE]":
            raise ValueError("the stream does not end with [DONE]")
        parts = [json.loads(event) for event in events[:-1]]
    else:
        parts = [json.loads(body)]
    for part in parts:
        if "error" in part:
            raise ValueError(f"an error in the stream: {part['error']}")
        usage = part.get("usage") or usage
        for choice in part["choices"]:
            said = choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""
            texts[choice["index"]] += said
            reasons[choice["index"]] = choice.get("finish_reason") or reasons.get(choice["index"])
    if None in reasons.values():
        raise ValueError("an answer has no reason for its end")
    return status, sorted(texts.items()), sorted(reasons.items()), usage["prompt_tokens"], usage["completion_tokens"]


class Cut(Exception):
    """The client went away, as it was meant to."""


class Client:
    """One HTTP/1.1 connection after the other."""

    def __init__(self, port, chance):
        self.port, self.chance = port, chance
        self.reader = self.writer = None

    async def ask(self, kind, manner):
        """Status and body; reuses the connection half of the time."""
        fresh = self.writer is None
        if fresh:
            # A slow reader's window is small, so that the server feels it.
            own = socket.socket()
            own.setblocking(False)
            if manner == "reads slowly":
                own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", self.port))
            self.reader, self.writer = await asyncio.open_connection(sock=own, limit=4096)
        try:
            answer = await asyncio.wait_for(self._exchange(kind, manner), PATIENCE)
        except BaseException:
            self.close()
            raise
        if self.chance.random() < 0.5:
            self.close()
        return answer

    async def _exchange(self, kind, manner):
        head = (f"POST {kind.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(kind.body)}\r\n\r\n").encode()
        message = head + kind.body
        if manner == "cut while sending":
            await self._send(message[: self.chance.randrange(1, len(message))])
            await asyncio.sleep(self.chance.uniform(0, 0.2))
            raise Cut
        if manner == "sends slowly":
            step = max(1, len(message) // 8)
            for at in range(0, len(message), step):
                await self._send(message[at : at + step])
                await asyncio.sleep(self.chance.uniform(0, 0.15))
        else:
            await self._send(message)
        if manner == "cut while waiting":
            await asyncio.sleep(self.chance.expovariate(2))
            raise Cut
        status, length = await self._head()
        body = bytearray()
        left = self.chance.randrange(1, 4000) if manner == "cut while reading" else None
        async for piece in self._body(length):
            body += piece
            if manner == "reads slowly":
                await asyncio.sleep(self.chance.uniform(0, 0.05))
            if left is not None and len(body) >= left:
                raise Cut
        if left is not None:
            # It was shorter than that: gone at once after it.
            raise Cut
        return status, bytes(body)

    async def _send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def _head(self):
        status = int((await self._line()).split()[1])
        length = None
        while line := await self._line():
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                length = int(value)
        return status, length

    async def _line(self):
        line = await self.reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the server closed the connection")
        return line.decode().strip()

    async def _body(self, length):
        """Pieces of the body; without a length it comes in chunks."""
        if length is not None:
            while length > 0:
                piece = await self.reader.readexactly(min(length, 512))
                length -= len(piece)
                yield piece
            return
        while size := int(await self._line(), 16):
            yield await self.reader.readexactly(size)
            await self._line()
        await self._line()

    def close(self):
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None


def manner_of(chance, options):
    drawn = chance.random()
    if drawn < options.cut:
        return chance.choice(["cut while sending", "cut while waiting", "cut while reading", "cut while reading"])
    drawn = (drawn - options.cut) / (1 - options.cut)
    if drawn < options.slow:
        return "reads slowly"
    return "sends slowly" if drawn < 2 * options.slow else "plain"


class Soak:
    def __init__(self, server, options, kinds):
        self.server, self.options, self.kinds = server, options, kinds
        self.chance = random.Random(options.seed)
        self.left = options.requests
        self.manners, self.tokens, self.failures = collections.Counter(), 0, []
        self.memory = []

    async def alone(self):
        client = Client(self.server.port, random.Random(0))
        for kind in self.kinds:
            status, body = await client.ask(kind, "plain")
            if status != kind.status:
                raise SystemExit(f"{kind.path} alone was answered with status {status}: {body[:500]!r}")
            kind.alone = essence(kind, status, body)
        client.close()

    async def _client(self, least, end):
        client = Client(self.server.port, self.chance)
        while (self.left > 0 or time.monotonic() < least) and time.monotonic() < end:
            self.left -= 1
            kind, manner = self.chance.choice(self.kinds), manner_of(self.chance, self.options)
            self.manners[manner] += 1
            try:
                said = essence(kind, *await client.ask(kind, manner))
            except Cut:
                continue
            except (OSError, EOFError, ValueError, KeyError, TimeoutError) as error:
                self.failures.append(f"{kind.path}, {manner}: {type(error).__name__}: {error}")
                continue
            if said != kind.alone:
                self.failures.append(f"{kind.path}, {manner}: {said} instead of {kind.alone}")
            elif said[0] == 200:
                self.tokens += said[-1]
        client.close()

    async def _watch(self, start):
        while True:
            self.memory.append((time.monotonic() - start, self.server.resident_bytes()))
            await asyncio.sleep(MEMORY_SECONDS)

    async def run(self):
        await self.alone()
        start = time.monotonic()
        end = start + 60 * self.options.minutes if self.options.minutes else float("inf")
        least = start if self.options.short else start + self.options.settle + JUDGED_SECONDS
        watch = asyncio.create_task(self._watch(start))
        await asyncio.gather(*(self._client(least, end) for _ in range(self.options.clients)))
        self.seconds = time.monotonic() - start
        watch.cancel()
        await self._rest()

    async def _rest(self):
        """Nothing runs and nothing waits when nobody asks."""
        for _ in range(100):
            numbers = await asyncio.to_thread(self.server.metrics)
            left = [numbers[f"tritone_{name}"] for name in ("queue_jobs", "running_answers", "cache_running_pages")]
            if not any(left):
                return
            await asyncio.sleep(0.1)
        self.failures.append(f"10 s after the end {left} jobs, answers and pages are left")

    def judge_memory(self):
        """A sentence; adds a failure where memory was not flat."""
        late = [size for at, size in self.memory if at >= self.options.settle]
        if len(late) < 10:
            if not self.options.short:
                self.failures.append("the run was too short to judge memory")
            return f"not judged, the run took {self.seconds:.0f} s and memory settles in {self.options.settle:.0f} s"
        # One sample is the allocator's mood; a few around each end are the memory.
        first = statistics.median(late[:5])
        worst = max(late, key=lambda size: abs(size - first))
        sentence = (f"{first / 2**20:.1f} MiB after {self.options.settle:.0f} s, "
                    f"{worst / 2**20:.1f} MiB at most away from it ({100 * (worst / first - 1):+.1f}%), "
                    f"{statistics.median(late[-5:]) / 2**20:.1f} MiB at the end")
        if abs(worst - first) > MEMORY_SHARE * first:
            self.failures.append(f"memory was not flat: {sentence}")
        return sentence


def main():
    options = arguments()
    given = ["--parallel", options.parallel, "--max-queue", 2 * options.clients]
    given += ["--model", options.model] if options.model else []
    with Server(*given) as server:
        model = server.model()
        soak = Soak(server, options, [Kind(number, model, options.seed) for number in range(options.kinds)])
        asyncio.run(soak.run())
        memory = soak.judge_memory()
        healthy = server.healthy()
    sent = sum(soak.manners.values())
    print(f"{sent} requests of {options.kinds} kinds by {options.clients} clients in {soak.seconds:.1f} s, "
          f"{sent / soak.seconds:.1f} a second")
    print(f"{soak.tokens} tokens in answers read to the end, {soak.tokens / soak.seconds:.0f} a second")
    for manner, count in sorted(soak.manners.items()):
        print(f"  {manner}: {count}")
    print(f"memory: {memory}")
    if not healthy:
        soak.failures.append("the server was not healthy at the end")
    for failure in soak.failures[:20]:
        print(f"FAILED: {failure}")
    print("the server ended well" if not soak.failures else f"{len(soak.failures)} failures")
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
