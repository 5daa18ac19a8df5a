import json

import jsonschema
import openai
import pydantic
import pytest

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
CLOCK = {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"], "additionalProperties": False}
SCHEMAS = {"weather": WEATHER, "clock": CLOCK}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"Asks the {name}.", "parameters": schema, "strict": True}}
    for name, schema in SCHEMAS.items()
]
ROOM = 300


def check_calls(message):
    assert message.tool_calls
    assert len({call.id for call in message.tool_calls}) == len(message.tool_calls)
    for call in message.tool_calls:
        assert call.type == "function"
        assert call.id
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.mark.parametrize("seed", range(6))
def test_required_calls_some_tool(chat, seed):
    choice = chat("The weather?", tools=TOOLS, tool_choice="required", seed=seed, max_tokens=ROOM).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    check_calls(choice.message)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_named_tool_is_called_once(chat, name):
    named = {"type": "function", "function": {"name": name}}
    choice = chat("What now?", tools=TOOLS, tool_choice=named, seed=1, max_tokens=ROOM).choices[0]
    # OpenAI says "stop" where the caller chose the function.
    assert choice.finish_reason in ("stop", "tool_calls")
    assert [call.function.name for call in choice.message.tool_calls] == [name]
    check_calls(choice.message)


@pytest.mark.parametrize("seed", range(3))
def test_auto_answers_or_calls(chat, seed):
    choice = chat("The weather?", tools=TOOLS, tool_choice="auto", seed=seed, max_tokens=60).choices[0]
    if choice.message.tool_calls:
        assert choice.finish_reason == "tool_calls"
        check_calls(choice.message)
    else:
        assert choice.message.content
        assert choice.finish_reason in ("stop", "length")


def test_auto_is_the_default(chat):
    with_default = chat("The weather?", tools=TOOLS, seed=5, max_tokens=60).choices[0]
    assert with_default.message == chat("The weather?", tools=TOOLS, tool_choice="auto", seed=5, max_tokens=60).choices[0].message


def test_none_calls_nothing(chat):
    for seed in range(3):
        choice = chat("The weather?", tools=TOOLS, tool_choice="none", seed=seed, max_tokens=40).choices[0]
        assert choice.message.tool_calls is None
        assert choice.message.content


def test_one_call_at_a_time(chat):
    for seed in range(4):
        choice = chat(
            "The weather?", tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed, max_tokens=ROOM
        ).choices[0]
        assert len(choice.message.tool_calls) == 1


@pytest.mark.parametrize("seed", range(3))
def test_streamed_calls_are_assembled(chat, seed):
    fields = {"tools": TOOLS, "tool_choice": "required", "seed": seed, "max_tokens": ROOM}
    calls, reason = {}, None
    for chunk in chat("The weather?", stream=True, **fields):
        choice = chunk.choices[0]
        assert not choice.delta.content
        reason = choice.finish_reason or reason
        for part in choice.delta.tool_calls or []:
            call = calls.setdefault(part.index, {"id": None, "name": "", "arguments": ""})
            call["id"] = part.id or call["id"]
            call["name"] += part.function.name or ""
            call["arguments"] += part.function.arguments or ""
    assert reason == "tool_calls"
    plain = chat("The weather?", **fields).choices[0].message.tool_calls
    assert sorted(calls) == list(range(len(plain)))
    assert all(call["id"] for call in calls.values())
    assert [(call["name"], call["arguments"]) for call in calls.values()] == [
        (call.function.name, call.function.arguments) for call in plain
    ]


def test_the_client_reads_calls_into_classes(client, model):
    class Weather(pydantic.BaseModel):
        """Asks for the weather."""

        city: str = pydantic.Field(max_length=10)
        days: int = pydantic.Field(ge=1, le=7)

    tool = openai.pydantic_function_tool(Weather, name="weather")
    with client.chat.completions.stream(
        model=model,
        messages=[{"role": "user", "content": "The weather?"}],
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=1,
        max_tokens=ROOM,
    ) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)


def test_what_a_tool_said_goes_back(chat):
    question = {"role": "user", "content": "The weather?"}
    called = chat(messages=[question], tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=1, max_tokens=ROOM)
    message = called.choices[0].message

    def after(result):
        answer = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": result}
        messages = [question, message.model_dump(exclude_none=True), answer]
        return chat(messages=messages, tools=TOOLS, tool_choice="none", seed=1, max_tokens=20)

    assert after("rain").choices[0].message.content
    # The model sees what the tool said.
    assert after("rain, and later much more rain").usage.prompt_tokens > after("rain").usage.prompt_tokens
