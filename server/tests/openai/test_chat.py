import math
import time

import pytest

STORY = "Tell me a story about a bear."


def joined(stream):
    """The text, the reasons and the usage of a stream, by choice."""
    texts, reasons, usage = {}, {}, None
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        assert usage is None, "a chunk came after the one with the usage"
        usage = chunk.usage
        for choice in chunk.choices:
            assert choice.index not in reasons, "a choice went on after its end"
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, usage


def test_plain(chat, model):
    answer = chat()
    assert answer.object == "chat.completion"
    assert answer.model == model
    assert answer.id
    assert answer.created > 0
    (choice,) = answer.choices
    assert choice.index == 0
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")


def test_usage_adds_up(chat):
    usage = chat(max_tokens=7, logit_bias={"0": -100, "1": -100, "2": -100}).usage
    assert usage.completion_tokens == 7
    assert usage.prompt_tokens > 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_streaming_begins_with_the_role_and_ends_with_a_reason(chat):
    chunks = list(chat(stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert all(chunk.usage is None for chunk in chunks)
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 3


@pytest.mark.parametrize("seed", range(5))
def test_streaming_says_the_same_as_one_answer(chat, seed):
    plain = chat(seed=seed, max_tokens=40)
    texts, reasons, usage = joined(chat(seed=seed, max_tokens=40, stream=True, stream_options={"include_usage": True}))
    assert texts == {0: plain.choices[0].message.content}
    assert reasons == {0: plain.choices[0].finish_reason}
    assert usage.prompt_tokens == plain.usage.prompt_tokens
    assert usage.completion_tokens == plain.usage.completion_tokens
    assert usage.total_tokens == plain.usage.total_tokens


def test_several_answers_differ_and_are_numbered(chat):
    answer = chat(n=3, seed=1, max_tokens=30)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage.completion_tokens <= 90
    texts, reasons, _ = joined(chat(n=3, seed=1, max_tokens=30, stream=True))
    assert texts == {choice.index: choice.message.content for choice in answer.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in answer.choices}


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31 - 1])
def test_a_seed_gives_the_same_again(chat, seed):
    assert chat(seed=seed).choices[0].message.content == chat(seed=seed).choices[0].message.content


def test_seeds_give_different_answers(chat):
    assert len({chat(seed=seed).choices[0].message.content for seed in range(5)}) == 5


def test_without_a_seed_answers_differ(chat):
    assert len({chat().choices[0].message.content for _ in range(4)}) > 1


def test_temperature_zero_has_no_luck(chat):
    assert len({chat(temperature=0, seed=seed).choices[0].message.content for seed in range(3)}) == 1


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_limit_of_tokens_is_kept(chat, field):
    answer = chat(temperature=0, **{field: 5})
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"


def test_stop_strings_end_the_answer_and_are_not_in_it(chat):
    whole = chat(temperature=0, max_tokens=60).choices[0].message.content
    # Inside words, over several tokens, and the first of several.
    for stop in (whole[20:23], whole[11:30], ["\x00 never", whole[40:44], whole[15:22]]):
        stops = [stop] if isinstance(stop, str) else stop
        end = min(whole.index(one) for one in stops if one in whole)
        answer = chat(temperature=0, max_tokens=60, stop=stop).choices[0]
        assert answer.message.content == whole[:end]
        assert answer.finish_reason == "stop"
        texts, reasons, _ = joined(chat(temperature=0, max_tokens=60, stop=stop, stream=True))
        assert texts == {0: whole[:end]}
        assert reasons == {0: "stop"}


def check_logprobs(content, text, top):
    assert b"".join(bytes(token.bytes) for token in content).decode() == text
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == top
        values = [one.logprob for one in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5
        for one in token.top_logprobs:
            if one.bytes == token.bytes and one.token == token.token:
                assert one.logprob == token.logprob
                break
        else:
            assert not values or token.logprob <= values[-1]


@pytest.mark.parametrize("top", [None, 0, 1, 5, 20])
def test_logprobs(chat, top):
    fields = {} if top is None else {"top_logprobs": top}
    answer = chat(seed=3, max_tokens=12, logprobs=True, **fields)
    choice = answer.choices[0]
    assert choice.finish_reason == "length"
    assert len(choice.logprobs.content) == answer.usage.completion_tokens == 12
    check_logprobs(choice.logprobs.content, choice.message.content, top or 0)
    # They cost nothing but time: the answer is the same.
    assert chat(seed=3, max_tokens=12).choices[0].message.content == choice.message.content


def test_many_logprobs_sum_to_nearly_one(chat):
    content = chat("Once upon a", temperature=0, max_tokens=12, logprobs=True, top_logprobs=20).choices[0].logprobs.content
    assert max(sum(math.exp(one.logprob) for one in token.top_logprobs) for token in content) > 0.8


def test_greedy_takes_the_likeliest(chat):
    content = chat(temperature=0, max_tokens=16, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    for token in content:
        assert token.token == token.top_logprobs[0].token


def test_streamed_logprobs_are_the_same(chat):
    plain = chat(seed=4, max_tokens=12, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    streamed = []
    for chunk in chat(seed=4, max_tokens=12, logprobs=True, top_logprobs=3, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == plain


def test_bias_forces_and_bans_a_token(chat, tokens_of):
    (the,) = tokens_of(" the")
    assert chat(max_tokens=4, logit_bias={str(the): 100}).choices[0].message.content.strip() == "the the the the"
    free = chat(temperature=0, max_tokens=1, logprobs=True).choices[0]
    (first,) = tokens_of(free.logprobs.content[0].token)
    banned = chat(temperature=0, max_tokens=1, logit_bias={str(first): -100}).choices[0]
    assert banned.message.content != free.message.content


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty"])
def test_penalties_change_a_repeating_answer(chat, field):
    def words(value):
        text = chat(temperature=0, max_tokens=80, **{field: value}).choices[0].message.content
        return len(set(text.split())) / len(text.split())

    assert words(2.0) > words(0.0)


def test_samplers_are_taken(chat):
    greedy = chat(temperature=0).choices[0].message.content
    assert chat(seed=5, extra_body={"top_k": 1}).choices[0].message.content == greedy
    assert chat(seed=5, extra_body={"min_p": 1.0}).choices[0].message.content == greedy
    assert chat(seed=5, top_p=1e-6).choices[0].message.content == greedy
    assert chat(seed=5).choices[0].message.content != greedy


def test_the_developer_is_the_system(chat):
    def ask(role):
        messages = [{"role": role, "content": "You are a poet."}, {"role": "user", "content": STORY}]
        return chat(messages=messages, seed=1).choices[0].message.content

    assert ask("developer") == ask("system")
    assert ask("system") != chat(seed=1).choices[0].message.content


def test_parts_of_a_message_are_one_text(chat):
    parts = [{"type": "text", "text": "Tell me a story"}, {"type": "text", "text": " about a bear."}]
    assert chat(parts, seed=1).choices[0].message.content == chat(seed=1).choices[0].message.content


def test_the_tenth_turn_works_like_the_first(chat):
    messages, prompts = [], []
    for turn in range(10):
        messages.append({"role": "user", "content": f"What did animal number {turn} say?"})
        answer = chat(messages=messages, seed=turn, max_tokens=20, logit_bias={"0": -100, "1": -100, "2": -100})
        assert answer.choices[0].message.content.strip(), f"turn {turn} has no answer"
        assert answer.usage.completion_tokens == 20
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        prompts.append(answer.usage.prompt_tokens)
    assert prompts == sorted(set(prompts))
    # What the server kept of earlier turns changes nothing: the whole conversation again says the same.
    again = chat(messages=messages[:-1], seed=9, max_tokens=20, logit_bias={"0": -100, "1": -100, "2": -100})
    assert again.choices[0].message.content == messages[-1]["content"]
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_the_helper_for_streams_assembles_an_answer(client, model, chat):
    plain = chat(seed=6, max_tokens=30)
    with client.chat.completions.stream(
        model=model, messages=[{"role": "user", "content": STORY}], seed=6, max_tokens=30
    ) as stream:
        assembled = stream.get_final_completion()
    assert assembled.choices[0].message.content == plain.choices[0].message.content
    assert assembled.choices[0].finish_reason == plain.choices[0].finish_reason


def test_a_stream_that_is_left_ends_in_the_server(chat, server):
    before = server.metrics()["tritone_jobs_cancelled_total"]
    stream = chat(stream=True, max_tokens=900, logit_bias={"0": -100, "1": -100, "2": -100})
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 5
    while server.metrics()["tritone_jobs_cancelled_total"] == before:
        assert time.monotonic() < end, "the answer goes on though nobody reads it"
    assert server.metrics()["tritone_running_answers"] == 0
