import base64
import json
import math
import pathlib
import struct
import urllib.request

import openai
import pytest
from tritone_server import Server

TEXTS = ["A bear went into the woods.", "The bear walked through the forest.", "Two and two are four."]


def length(vector):
    return math.sqrt(sum(x * x for x in vector))


def test_one_text(client, model):
    answer = client.embeddings.create(model=model, input=TEXTS[0])
    assert answer.object == "list"
    assert answer.model == model
    (one,) = answer.data
    assert one.object == "embedding"
    assert one.index == 0
    assert length(one.embedding) == pytest.approx(1, abs=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_a_list_is_as_its_texts_alone(client, model):
    together = client.embeddings.create(model=model, input=TEXTS).data
    assert [one.index for one in together] == [0, 1, 2]
    for one, text in zip(together, TEXTS):
        assert one.embedding == client.embeddings.create(model=model, input=text).data[0].embedding
    assert len({len(one.embedding) for one in together}) == 1


def test_tokens_are_a_text(client, model, tokens_of):
    ids = [0, *tokens_of(TEXTS[0])]
    by_text, by_tokens = (client.embeddings.create(model=model, input=one).data[0].embedding for one in (TEXTS[0], ids))
    assert by_text == by_tokens


def test_base64_is_what_the_client_asks_for(client, model, server, key):
    numbers = client.embeddings.create(model=model, input=TEXTS[0], encoding_format="float").data[0].embedding
    # The client asks for base64 where it is not told, and decodes it.
    assert client.embeddings.create(model=model, input=TEXTS[0]).data[0].embedding == pytest.approx(numbers, abs=1e-7)
    body = json.dumps({"model": model, "input": TEXTS[0], "encoding_format": "base64"}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/embeddings", body, headers)
    with urllib.request.urlopen(request) as response:
        data = base64.b64decode(json.load(response)["data"][0]["embedding"], validate=True)
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(numbers, abs=1e-7)


def test_fewer_dimensions_are_the_first_ones(client, model):
    full = client.embeddings.create(model=model, input=TEXTS[0]).data[0].embedding
    short = client.embeddings.create(model=model, input=TEXTS[0], dimensions=64).data[0].embedding
    assert len(short) == 64
    assert short == pytest.approx([x / length(full[:64]) for x in full[:64]], abs=1e-5)


@pytest.mark.parametrize("name", ["qwen3-bitnet", "gemma3-bitnet"])
def test_embedding_models_give_their_references(name):
    folder = pathlib.Path(__file__).resolve().parents[4] / "shared" / "vectors" / "embedding" / name
    if not folder.is_dir():
        pytest.skip(f"the reference model {name} is not beside the repository")
    references = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    texts = [reference["text"] for reference in references]
    with Server("-m", folder) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert client.models.list().data[0].id == name
        ids = [reference["ids"] for reference in references]
        for given, form in [(texts, "float"), (texts, openai.omit), (ids, "float")]:
            answer = client.embeddings.create(model=name, input=given, encoding_format=form)
            assert [one.index for one in answer.data] == list(range(len(texts)))
            for one, reference in zip(answer.data, references):
                wanted = reference["embedding"]
                product = sum(x * y for x, y in zip(one.embedding, wanted, strict=True))
                assert product / length(one.embedding) / length(wanted) >= 0.999
            assert answer.usage.prompt_tokens == sum(map(len, ids))
        with pytest.raises(openai.BadRequestError, match="`dimensions` must be from 1 to 256"):
            client.embeddings.create(model=name, input=texts, dimensions=257)
        with pytest.raises(openai.BadRequestError, match="says nothing; ask at /v1/embeddings"):
            client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hello"}])
