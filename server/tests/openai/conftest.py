"""One server for all tests, and clients that speak with it."""

import json
import pathlib
import secrets
import sys

import openai
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from tritone_server import Server  # noqa: E402


@pytest.fixture(scope="session")
def key():
    return secrets.token_hex(16)


@pytest.fixture(scope="session")
def server(key, tmp_path_factory):
    """The embedded model behind a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(key + "\n")
    keys.chmod(0o600)
    with Server("--api-key-file", keys, key=key) as server:
        yield server
    assert key not in server.said(), "the server wrote a key to its log"


@pytest.fixture(scope="session")
def client(server, key):
    """A client that does not try again: a test sees the first answer."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=300) as client:
        yield client


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture
def chat(client, model):
    """Asks for a short answer; what a test says goes before."""

    def ask(content="Tell me a story about a bear.", **fields):
        fields.setdefault("messages", [{"role": "user", "content": content}])
        if "max_completion_tokens" not in fields:
            fields.setdefault("max_tokens", 24)
        return client.chat.completions.create(model=model, **fields)

    return ask


@pytest.fixture(scope="session")
def tokens_of(server):
    """The tokens of a text, without those that begin or end one."""

    def ask(text):
        return json.loads(server.ask("/tokenize", {"content": text}))["tokens"]

    return ask
