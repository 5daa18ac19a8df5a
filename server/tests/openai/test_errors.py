"""Each mistake is the exception that the client has for it, and names the field."""

import contextlib
import threading

import httpx2
import openai
import pytest
from tritone_server import Server


def ask(client, model, **fields):
    fields = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, **fields}
    return client.chat.completions.create(model=model, **fields)


@pytest.mark.parametrize("wrong", ["wrong", "", "ä"])
def test_a_wrong_key(client, model, wrong):
    header = {"Authorization": f"Bearer {wrong}".encode()}
    with pytest.raises(openai.AuthenticationError) as error:
        client.with_options(default_headers=header).chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Hello"}]
        )
    assert error.value.status_code == 401
    assert error.value.code == "invalid_api_key"


def test_every_path_but_health_wants_the_key(server):
    for method, path in [
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
    ]:
        response = httpx2.request(method, server.url + path, json={} if method == "POST" else None)
        assert response.status_code == 401, path
        assert response.json()["error"]["message"]
    assert httpx2.get(f"{server.url}/health").status_code == 200


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as error:
        ask(client, "gpt-17")
    assert error.value.code == "model_not_found"
    assert "gpt-17" in error.value.message


def test_an_unknown_path(client):
    with pytest.raises(openai.NotFoundError):
        client.files.list()


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("temperature", {"temperature": -1}),
        ("temperature", {"temperature": "hot"}),
        ("top_p", {"top_p": 1.5}),
        ("max_tokens", {"max_tokens": -3}),
        ("max_tokens", {"max_tokens": 1.5}),
        ("n", {"n": 0}),
        ("n", {"n": 1000}),
        ("stop", {"stop": [""]}),
        ("stop", {"stop": 7}),
        ("logit_bias", {"logit_bias": {"0": 1000}}),
        ("logit_bias", {"logit_bias": {"many": 1}}),
        ("logit_bias", {"logit_bias": {"99999999": 1}}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 1000}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("presence_penalty", {"presence_penalty": 5}),
        ("frequency_penalty", {"frequency_penalty": -5}),
        ("messages", {"messages": []}),
        ("messages", {"messages": [{"role": "king", "content": "Hello"}]}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        ("response_format", {"response_format": {"type": "poem"}}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "poem"}}}}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "two words"}}]}),
        ("tool_choice", {"tools": [{"type": "function", "function": {"name": "a"}}],
                         "tool_choice": {"type": "function", "function": {"name": "b"}}}),
        ("audio", {"extra_body": {"audio": {"voice": "deep", "format": "wav"}}}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("no_such_field", {"extra_body": {"no_such_field": 1}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_field_is_named(client, model, param, fields):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, model, **fields)
    # Some are found only after the fields have been read one by one; then the place inside is named, too.
    assert (error.value.param or "").split(".")[0].split("[")[0] == param
    assert error.value.type == "invalid_request_error"
    assert error.value.message


def test_a_prompt_that_does_not_fit(client, model):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, model, messages=[{"role": "user", "content": "bear " * 3000}])
    assert error.value.code == "context_length_exceeded"
    assert "1024" in error.value.message


def test_the_wrong_method(server, key):
    response = httpx2.get(f"{server.url}/v1/chat/completions", headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 405
    assert response.json()["error"]["message"]


def test_a_full_queue_is_a_rate_limit():
    with Server("--parallel", 1, "--max-queue", 1) as small, contextlib.ExitStack() as held:
        client = held.enter_context(openai.OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=0, timeout=120))
        model = client.models.list().data[0].id
        # One runs, one waits; each would take a while.
        biased = {"logit_bias": {"0": -100, "1": -100, "2": -100}, "max_tokens": 900}
        running = held.enter_context(ask(client, model, stream=True, **biased))
        next(iter(running))
        waiting = threading.Thread(target=lambda: ask(client, model, **biased))
        waiting.start()
        while small.metrics()["tritone_queue_jobs"] < 1:
            assert small.metrics()["tritone_running_answers"] == 1, "the first answer ended before the queue was full"
        with pytest.raises(openai.RateLimitError) as error:
            ask(client, model)
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert error.value.message
        running.close()
        waiting.join()
        # With its own patience the client gets through.
        assert ask(client.with_options(max_retries=5), model).choices[0].message.content
