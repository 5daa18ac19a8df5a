"""A `tritone serve` process of our own, for tests and benchmarks that look at it from outside."""

import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_SECONDS = 120
STOP_SECONDS = 60


def command(profile="debug"):
    """The command to test: the environment's TRITONE, or what cargo built."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return os.environ.get("TRITONE") or str(target / profile / "tritone")


class Server:
    """Starts the server on a free port, waits until it is ready, and ends it as an administrator would.

    As a context manager it fails where the server did not end with status 0.
    """

    def __init__(self, *options, program=None, port=0, key=None):
        self.log = tempfile.NamedTemporaryFile(prefix="tritone-serve-", suffix=".log")
        arguments = [program or command(), "serve", "--host", "127.0.0.1", "--port", str(port), *map(str, options)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.port, self.key = None, key
        try:
            self._wait()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def said(self):
        """What it wrote so far."""
        with open(self.log.name, encoding="utf-8", errors="replace") as log:
            return log.read()

    def _wait(self):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self.process.returncode}:\n{self.said()}")
            found = re.search(r"http://127\.0\.0\.1:(\d+)", self.said())
            if found:
                self.port = int(found[1])
                if self.healthy():
                    return
            time.sleep(0.05)
        raise RuntimeError(f"the server was not ready after {START_SECONDS} s:\n{self.said()}")

    def healthy(self):
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def ask(self, path, body=None):
        """The text that comes back from a path; a body is sent as JSON."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60) as response:
            return response.read().decode()

    def model(self):
        """The name of its model."""
        return json.loads(self.ask("/v1/models"))["data"][0]["id"]

    def metrics(self):
        """The numbers without labels that /metrics has, by name."""
        pairs = (line.split() for line in self.ask("/metrics").splitlines() if not line.startswith("#"))
        return {pair[0]: float(pair[1]) for pair in pairs if len(pair) >= 2 and "{" not in pair[0]}

    def resident_bytes(self):
        """The memory that it has, from Linux' /proc."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def stop(self):
        """Asks it to end and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        status = self.stop()
        if status != 0:
            raise RuntimeError(f"the server ended with status {status} after SIGTERM:\n{self.said()}")
