import json
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pydantic
import pytest
from schemas import schema

CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER


def valid(value, by):
    jsonschema.Draft202012Validator(by, format_checker=CHECKER).validate(value)


def wanted(by, name="answer", strict=True):
    return {"type": "json_schema", "json_schema": {"name": name, "schema": by, "strict": strict}}


def test_the_generator_makes_schemas():
    for seed in range(100):
        jsonschema.Draft202012Validator.check_schema(schema(seed))
    assert len({json.dumps(schema(seed)) for seed in range(100)}) == 100
    # A check that cannot fail would prove nothing.
    for name in ("date", "uuid", "ipv4", "ipv6"):
        with pytest.raises(jsonschema.ValidationError):
            valid("no", {"type": "string", "format": name})


@pytest.mark.parametrize("seed", range(4))
def test_json_object(chat, seed):
    choice = chat("Answer in JSON.", seed=seed, max_tokens=120, response_format={"type": "json_object"}).choices[0]
    assert choice.finish_reason == "stop"
    assert isinstance(json.loads(choice.message.content), dict)


def test_json_object_in_a_stream(chat):
    fields = {"seed": 7, "max_tokens": 120, "response_format": {"type": "json_object"}}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chat("Answer in JSON.", stream=True, **fields))
    assert text == chat("Answer in JSON.", **fields).choices[0].message.content
    json.loads(text)


def test_a_hundred_schemas_are_kept(chat):
    def wrong(seed):
        by = schema(seed)
        choice = chat("Write the record.", seed=seed, max_tokens=700, response_format=wanted(by)).choices[0]
        try:
            valid(json.loads(choice.message.content), by)
        except (ValueError, jsonschema.ValidationError) as error:
            return f"schema {seed}: {error}: {choice.message.content!r} under {json.dumps(by)}"
        return None if choice.finish_reason == "stop" else f"schema {seed}: ended by {choice.finish_reason}"

    with ThreadPoolExecutor(8) as pool:
        failures = [failure for failure in pool.map(wrong, range(100)) if failure]
    assert not failures, "\n".join(failures)


def test_an_answer_of_little_room_is_complete(chat):
    by = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"], "additionalProperties": False}
    for room in (12, 16, 24, 40):
        answer = chat("Write the record.", seed=room, max_tokens=room, response_format=wanted(by))
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens <= room
        valid(json.loads(answer.choices[0].message.content), by)


def test_a_class_comes_back_as_an_object(client, model):
    class Animal(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=12)
        legs: int = pydantic.Field(ge=0, le=8)
        friends: list[str] = pydantic.Field(max_length=2)

    completion = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Name an animal."}],
        response_format=Animal,
        max_tokens=300,
        seed=1,
    )
    animal = completion.choices[0].message.parsed
    assert isinstance(animal, Animal)
    assert 0 <= animal.legs <= 8
