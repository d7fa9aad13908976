"""Promises of /v1/responses: OpenAI's own client works."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from cllm.api import ApiSettings
from tests.api.api_client import Live, begin_post, eventually, idle, read_until, serving

MODEL = "cllm-stories-q8_0"
FOX = "Tell me a story about a fox and a lantern."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "hero": {"type": "string", "enum": ["fox", "owl", "hare"]},
        "pages": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["hero", "pages"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "print_book", "parameters": SCHEMA, "strict": True}
FORMAT = {"format": {"type": "json_schema", "name": "book", "schema": SCHEMA, "strict": True}}


@pytest.fixture
def client(stories: Live) -> Iterator[Any]:
    with openai.OpenAI(base_url=stories.url + "/v1", api_key="none", max_retries=0) as client:
        yield client
    eventually(lambda: idle(stories.engine), "the engine has no work left")


def streamed(client: Any, **asked: Any) -> tuple[list[Any], Any]:
    """All raw events, and the response that the last one holds."""
    events = list(client.responses.create(model=MODEL, stream=True, **asked))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events, events[-1].response


def test_a_text_is_answered_and_counted(client: Any) -> None:
    answer = client.responses.create(model=MODEL, input=FOX, temperature=0)
    assert answer.id.startswith("resp_") and answer.object == "response"
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    (message,) = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert answer.output_text.startswith("The fox and the lantern\n\n")
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens > 50
    assert answer.store is True and answer.previous_response_id is None


def test_a_stream_says_the_same_in_the_official_order(client: Any) -> None:
    whole = client.responses.create(model=MODEL, input="Hello!", temperature=0)
    events, last = streamed(client, input="Hello!", temperature=0)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"} and len(kinds) > 10
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert said == whole.output_text == last.output_text
    assert last.usage == whole.usage or last.usage.output_tokens == whole.usage.output_tokens


def test_the_clients_own_stream_helper_and_the_async_client(stories: Live) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=stories.url + "/v1", api_key="none") as client:
            whole = await client.responses.create(model=MODEL, input="Hello!", temperature=0)
            async with client.responses.stream(
                model=MODEL, input="Hello!", temperature=0
            ) as stream:
                final = await stream.get_final_response()
            return whole.output_text, final.output_text

    whole, final = asyncio.run(ask())
    assert whole == final


def test_items_of_earlier_turns(client: Any, stories: Live) -> None:
    first = client.responses.create(model=MODEL, input=FOX, temperature=0)
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": FOX}]},
        *(item.model_dump(exclude_none=True) for item in first.output),
        {"role": "user", "content": "Who is in it?"},
    ]
    again = client.responses.create(model=MODEL, input=items, temperature=0)
    assert "fox" in again.output_text
    assert again.usage.input_tokens_details.cached_tokens > first.usage.total_tokens - 8


def test_instructions_calls_and_their_outputs_are_part_of_the_prompt(client: Any) -> None:
    plain = client.responses.create(model=MODEL, input="Hello!", max_output_tokens=1)
    items = [
        {"role": "user", "content": "Print it."},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I print."}]},
        {"type": "function_call", "call_id": "c1", "name": "print_book", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "printed"},
    ]
    full = client.responses.create(
        model=MODEL, instructions="You print books.", input=items, tools=[TOOL], max_output_tokens=1
    )
    assert full.usage.input_tokens > plain.usage.input_tokens + 10
    assert full.instructions == "You print books."


def test_too_few_tokens_make_it_incomplete(client: Any) -> None:
    answer = client.responses.create(model=MODEL, input=FOX, max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"
    events, last = streamed(client, input=FOX, max_output_tokens=3)
    assert events[-1].type == "response.incomplete"
    assert last.usage.output_tokens == 3


def test_llama_servers_path_calls_it_completed_and_says_why_it_ended(stories: Live) -> None:
    asked = {"input": FOX, "max_output_tokens": 3}
    whole = stories.post("/responses", asked).json()
    lines = stories.post("/responses", {**asked, "stream": True}).text.splitlines()
    last = json.loads([line for line in lines if line.startswith("data: ")][-1][6:])
    assert last["type"] == "response.completed"
    for answer in (whole, last["response"]):
        assert answer["status"] == answer["output"][0]["status"] == "completed"
        assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("seed", range(3))
def test_a_forced_call_is_always_valid(client: Any, seed: int) -> None:
    asked: dict[str, Any] = {
        "input": "Hello!",
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "print_book"},
        "parallel_tool_calls": False,
        "extra_body": {"seed": seed},
    }
    whole = client.responses.create(model=MODEL, **asked)
    events, last = streamed(client, **asked)
    for answer in (whole, last):
        calls = [item for item in answer.output if item.type == "function_call"]
        assert calls
        for call in calls:
            assert (call.name, call.status) == ("print_book", "completed")
            assert call.call_id
            jsonschema.validate(json.loads(call.arguments), SCHEMA)
    kinds = [event.type for event in events]
    assert kinds.index("response.function_call_arguments.delta") < kinds.index(
        "response.function_call_arguments.done"
    )


def test_the_text_can_be_held_to_a_schema(client: Any) -> None:
    answer = client.responses.create(model=MODEL, input="Hello!", text=FORMAT)
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)
    assert answer.text.format.type == "json_schema"
    _, last = streamed(client, input="Hello!", text=FORMAT)
    jsonschema.validate(json.loads(last.output_text), SCHEMA)


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("input", "", "input"),
        ("input", [], "input"),
        ("input", [{"role": "robot", "content": "x"}], "input[0].role"),
        ("input", [{"type": "function_call", "name": "f"}], "input[0].call_id"),
        ("input", [{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0]"),
        ("input", "word " * 3000, "input"),
        ("tools", [{"type": "telepathy"}], "tools[0].type"),
        ("tools", [{"type": "namespace"}], "tools[0].name"),
        ("tool_choice", {"type": "web_search"}, "tool_choice.type"),
        ("input", [{"type": "item_reference", "id": "msg_1"}], "input[0].id"),
        ("tool_choice", "required", "tool_choice"),
        ("previous_response_id", "resp_1", "previous_response_id"),
        ("background", True, "background"),
        ("top_logprobs", 21, "top_logprobs"),
        ("truncation", "middle", "truncation"),
        ("text", {"format": {"type": "json_schema", "name": "x"}}, "text.format.schema"),
        ("max_output_tokens", -2, "max_output_tokens"),
    ],
)
def test_bad_input_is_refused_by_name_and_nothing_is_queued(
    stories: Live, field: str, value: Any, param: str
) -> None:
    before = stories.engine.stats().requests_submitted
    response = stories.post("/v1/responses", {"model": MODEL, "input": "Hello!", field: value})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    lengths = {"n_prompt_tokens", "n_ctx"}  # of a prompt that does not fit
    assert set(error) - lengths == {"message", "type", "param", "code"}
    assert (error["param"] or "").startswith(param), error
    assert stories.engine.stats().requests_submitted == before


def test_thoughts_are_items_of_their_own_and_counted(stories: Live) -> None:
    thinking = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n<think>\n"
    )
    with serving(stories.engine, ApiSettings(chat_template=thinking)) as live:
        body = {"input": FOX, "max_output_tokens": 12, "temperature": 0}
        whole = live.post("/v1/responses", body).json()
        assert [item["type"] for item in whole["output"]] == ["reasoning"]
        usage = whole["usage"]
        assert usage["output_tokens_details"]["reasoning_tokens"] == usage["output_tokens"] > 2
        with openai.OpenAI(base_url=live.url + "/v1", api_key="none") as client:
            _, last = streamed(client, input=FOX, max_output_tokens=12, temperature=0)
    usage = last.usage
    assert usage.output_tokens_details.reasoning_tokens == usage.output_tokens > 2


def test_a_client_that_leaves_frees_its_sequence(stories: Live) -> None:
    body = {"model": MODEL, "input": FOX, "stream": True}
    with begin_post(stories, "/v1/responses", body) as peer:
        read_until(peer, b"output_text.delta")
    eventually(lambda: idle(stories.engine), "the sequence is free")
