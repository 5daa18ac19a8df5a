import math

import pytest

PROMPT = "Once upon a time there was a little"


@pytest.fixture
def complete(client, model):
    def ask(prompt=PROMPT, **fields):
        fields.setdefault("max_tokens", 16)
        return client.completions.create(model=model, prompt=prompt, **fields)

    return ask


def texts(answer):
    return [choice.text for choice in answer.choices]


def test_a_text_is_continued(complete, model):
    answer = complete(temperature=0)
    assert answer.object == "text_completion"
    assert answer.model == model
    (choice,) = answer.choices
    assert choice.text.startswith(" ")
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.usage.completion_tokens == 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16


def test_several_prompts_are_several_choices(complete):
    prompts = [PROMPT, "The old king said", "In the forest"]
    together = complete(prompts, temperature=0)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert texts(together) == [complete(prompt, temperature=0).choices[0].text for prompt in prompts]
    assert together.usage.completion_tokens == 48


def test_several_answers_to_several_prompts(complete):
    answer = complete([PROMPT, "The old king said"], n=2, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len(set(texts(answer))) == 4


def test_tokens_are_a_prompt(complete, tokens_of):
    # A text gets the token with which this model's texts begin; tokens are taken as they are.
    ids = [0, *tokens_of(PROMPT)]
    plain = complete(temperature=0)
    assert texts(complete(ids, temperature=0)) == texts(plain)
    assert texts(complete([ids, ids], temperature=0)) == 2 * texts(plain)
    assert complete(ids, temperature=0).usage.prompt_tokens == plain.usage.prompt_tokens == len(ids)


def test_echo_repeats_the_prompt(complete):
    assert texts(complete(echo=True, temperature=0)) == [PROMPT + complete(temperature=0).choices[0].text]


def test_streaming_says_the_same_as_one_answer(complete):
    plain = complete([PROMPT, "The old king said"], seed=2, max_tokens=30)
    streamed, reasons, usage = ["", ""], [None, None], None
    for chunk in complete(
        [PROMPT, "The old king said"], seed=2, max_tokens=30, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert streamed == texts(plain)
    assert reasons == [choice.finish_reason for choice in plain.choices]
    assert usage.completion_tokens == plain.usage.completion_tokens


def test_stop_strings_end_the_answer_and_are_not_in_it(complete):
    whole = complete(temperature=0, max_tokens=50).choices[0].text
    stop = whole[20:26]
    answer = complete(temperature=0, max_tokens=50, stop=[stop]).choices[0]
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"


def test_logprobs_have_the_older_shape(complete):
    answer = complete(seed=1, max_tokens=10, logprobs=3).choices[0]
    logprobs = answer.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 10
    assert "".join(logprobs.tokens) == answer.text
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:i])) for i in range(10)]
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert value <= 0
        # The chosen one may be there beside the likeliest.
        assert 3 <= len(top) <= 4
        assert sum(map(math.exp, top.values())) <= 1 + 1e-5
        assert top.get(token, value) == value


def test_a_seed_gives_the_same_again(complete):
    assert texts(complete(seed=9)) == texts(complete(seed=9))
    assert texts(complete(seed=9)) != texts(complete(seed=10))


def test_the_end_can_be_ignored(complete):
    def forced(token, **extra):
        return complete(temperature=0, max_tokens=9, logit_bias={str(token): 100}, extra_body=extra)

    ends = [token for token in range(3) if forced(token).choices[0].finish_reason == "stop"]
    assert ends
    for token in ends:
        answer = forced(token, ignore_eos=True)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 9
