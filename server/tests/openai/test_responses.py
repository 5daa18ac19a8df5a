import json

import jsonschema
import openai
import pytest

STORY = "Tell me a story about a bear."


@pytest.fixture
def respond(client, model):
    def ask(said=STORY, **fields):
        fields.setdefault("max_output_tokens", 24)
        return client.responses.create(model=model, input=said, **fields)

    return ask


def test_plain(respond, model):
    answer = respond(temperature=0)
    assert answer.object == "response"
    assert answer.model == model
    assert answer.status in ("completed", "incomplete")
    assert answer.output_text
    (message,) = answer.output
    assert message.type == "message"
    assert message.role == "assistant"
    assert [part.type for part in message.content] == ["output_text"]
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.output_tokens <= 24


def test_it_says_what_chat_says(respond, chat):
    assert respond(temperature=0).output_text == chat(temperature=0).choices[0].message.content
    messages = [{"role": "system", "content": "You are a poet."}, {"role": "user", "content": STORY}]
    told = chat(messages=messages, temperature=0).choices[0].message.content
    assert respond(instructions="You are a poet.", temperature=0).output_text == told


def test_an_answer_cut_short_says_so(respond):
    answer = respond(temperature=0, max_output_tokens=5)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 5


def test_a_conversation_is_an_input(respond):
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": STORY}]},
        {"role": "assistant", "content": "Once there was a bear."},
        {"role": "user", "content": "And then?"},
    ]
    answer = respond(turns, temperature=0)
    assert answer.output_text
    assert answer.usage.input_tokens > respond(temperature=0).usage.input_tokens
    # What came out goes in again as it is.
    again = [{"role": "user", "content": STORY}, *respond(temperature=0).output, {"role": "user", "content": "And then?"}]
    assert respond(again, temperature=0).output_text


def test_streaming(respond):
    events = list(respond(temperature=0, stream=True))
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    order = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        kinds[-1],
    ]
    assert sorted(set(kinds), key=kinds.index) == order
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == respond(temperature=0).output_text
    assert next(event.text for event in events if event.type == "response.output_text.done") == text
    assert events[-1].response.output_text == text
    assert events[-1].response.usage.output_tokens > 0
    assert len({event.response.id for event in events if hasattr(event, "response")}) == 1


def test_the_helper_for_streams_assembles_an_answer(client, model, respond):
    with client.responses.stream(model=model, input=STORY, temperature=0, max_output_tokens=900) as stream:
        assembled = stream.get_final_response()
    assert assembled.output_text == respond(temperature=0, max_output_tokens=900).output_text


def test_a_schema_is_kept(respond):
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["bear", "fox"]}, "age": {"type": "integer", "minimum": 0, "maximum": 30}},
        "required": ["animal", "age"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "name": "animal", "schema": schema, "strict": True}}
    answer = respond("An animal?", text=form, max_output_tokens=60)
    assert answer.status == "completed"
    jsonschema.validate(json.loads(answer.output_text), schema)


def test_what_is_not_kept_cannot_be_asked_for(respond, client):
    with pytest.raises(openai.BadRequestError) as error:
        respond(previous_response_id="resp_1")
    assert error.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")
