"""Promises of the Anthropic endpoints: its own client works, and its errors are its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import pytest
from anthropic.types import MessageParam, ToolParam

from cllm.engine import Engine
from cllm.models import demo_path
from tests.api.api_client import Live, begin_post, eventually, idle, read_until, serving

MODEL = "cllm-stories-q8_0"
GREEDY = {"temperature": 0}
HELLO: list[MessageParam] = [{"role": "user", "content": "Hello!"}]
FOX: list[MessageParam] = [
    {"role": "user", "content": "Tell me a story about a fox and a lantern."}
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "hero": {"enum": ["fox", "owl", "hare"]},
        "pages": {"type": "integer", "minimum": 1, "maximum": 9},
        "calm": {"type": "boolean"},
    },
    "required": ["hero", "pages", "calm"],
    "additionalProperties": False,
}
TOOL: ToolParam = {"name": "print_book", "description": "Print a book.", "input_schema": SCHEMA}
OTHER: ToolParam = {"name": "close_shop", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture
def client(stories: Live) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=stories.url, api_key="none", max_retries=0) as client:
        yield client
    eventually(lambda: idle(stories.engine), "the engine has no work left")


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message_is_answered_and_counted(client: Any) -> None:
    message = client.messages.create(model=MODEL, max_tokens=400, messages=FOX, extra_body=GREEDY)
    assert message.id.startswith("msg_") and message.role == "assistant"
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    (block,) = message.content
    assert block.type == "text" and block.text.startswith("The fox and the lantern\n\n")
    usage = message.usage
    read = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    counted = client.messages.count_tokens(model=MODEL, messages=FOX)
    assert counted.input_tokens == read
    assert usage.output_tokens > 50


def test_a_stream_says_the_same_in_the_official_order(client: Any) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "max_tokens": 100, "messages": HELLO, "extra_body": GREEDY,
    }  # fmt: skip
    whole = client.messages.create(**asked)
    kinds: list[str] = []
    with client.messages.stream(**asked) as stream:
        for event in stream:
            kinds.append(event.type)
        final = stream.get_final_message()
    assert kinds[0] == "message_start"
    raw = [kind for kind in kinds if kind != "text"]
    assert raw[1] == "content_block_start" and raw[-3] == "content_block_stop"
    assert raw[-2:] == ["message_delta", "message_stop"]
    assert set(raw[2:-3]) == {"content_block_delta"} and len(raw) > 8
    assert text_of(final) == text_of(whole)
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_every_event_carries_its_name(stories: Live) -> None:
    body = {"model": MODEL, "max_tokens": 3, "messages": HELLO, "stream": True}
    raw = stories.post("/v1/messages", body).text
    for event in raw.rstrip().split("\n\n"):
        name, data = event.split("\n")
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")
    assert "event: ping" in raw


def test_the_async_client(stories: Live) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "max_tokens": 60, "messages": HELLO, "extra_body": GREEDY,
    }  # fmt: skip

    async def ask() -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(base_url=stories.url, api_key="none") as client:
            whole = await client.messages.create(**asked)
            async with client.messages.stream(**asked) as stream:
                pieces = [text async for text in stream.text_stream]
            return text_of(whole), "".join(pieces)

    whole, pieces = asyncio.run(ask())
    assert whole == pieces


def test_why_it_ended(client: Any) -> None:
    def ask(**more: Any) -> Any:
        return client.messages.create(
            **{"model": MODEL, "max_tokens": 400, "messages": FOX, "extra_body": GREEDY, **more}
        )

    stopped = ask(stop_sequences=["never", "lantern\n"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "lantern\n")
    assert text_of(stopped) == "The fox and the "
    cut = ask(max_tokens=2)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)


def test_a_full_context_is_told_from_a_full_answer() -> None:
    with Engine.load(demo_path(), parallel=1, ctx_size=64) as engine, serving(engine) as live:
        body = {"model": MODEL, "max_tokens": 400, "messages": FOX, "temperature": 0}
        answer = live.post("/v1/messages", body).json()
    assert answer["stop_reason"] == "model_context_window_exceeded"
    usage = answer["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == 64


def test_system_blocks_results_and_thoughts_become_turns(stories: Live) -> None:
    body = {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "Print."},
            {"role": "user", "content": [{"type": "text", "text": "Now."}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                {"type": "text", "text": "I will."},
                {"type": "tool_use", "id": "t1", "name": "print_book", "input": {"pages": 3}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [
                    {"type": "text", "text": "done"}]},
                {"type": "text", "text": "And?"},
            ]},
        ],
        "tools": [TOOL],
    }  # fmt: skip
    answer = stories.post("/v1/messages/count_tokens", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["input_tokens"] > 10


def test_an_assistants_beginning_is_continued(client: Any) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=2, extra_body=GREEDY,
        messages=[*FOX, {"role": "assistant", "content": "The fox and"}],
    )  # fmt: skip
    assert text_of(message) == " the lantern"


@pytest.mark.parametrize("seed", range(3))
def test_a_forced_call_is_always_valid(client: Any, seed: int) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "max_tokens": 300, "messages": HELLO, "tools": [TOOL, OTHER],
        "tool_choice": {"type": "tool", "name": "print_book", "disable_parallel_tool_use": True},
        "extra_body": {"seed": seed},
    }  # fmt: skip
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        calls = [block for block in message.content if block.type == "tool_use"]
        assert message.stop_reason == "tool_use" and calls
        for call in calls:
            assert call.name == "print_book" and call.id
            jsonschema.validate(call.input, SCHEMA)


def test_some_tool_can_be_demanded_and_only_once(client: Any) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=300, messages=HELLO, tools=[TOOL, OTHER],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )  # fmt: skip
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert call.name in ("print_book", "close_shop")


def test_no_tool_means_text(client: Any) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=60, messages=HELLO, tools=[TOOL],
        tool_choice={"type": "none"}, extra_body=GREEDY,
    )  # fmt: skip
    assert [block.type for block in message.content] == ["text"]


def test_the_answer_can_be_held_to_a_schema(client: Any) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=300, messages=HELLO,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )  # fmt: skip
    jsonschema.validate(json.loads(text_of(message)), SCHEMA)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("messages", [{"role": "robot", "content": "x"}], "messages[0].role"),
        ("messages", [{"role": "user", "content": [{"type": "image"}]}], "messages[0].content[0]"),
        ("max_tokens", 0, "max_tokens"),
        ("temperature", "hot", "temperature"),
        ("stop_sequences", [""], "stop_sequences[0]"),
        ("stop_sequences", ["x" * 2000], "stop_sequences"),
        ("tools", [{"type": "computer_20250124", "name": "computer"}], "tools[0].type"),
        ("tools", [{"name": "f", "input_schema": {"type": "nonsense"}}], "tools[0].input_schema"),
        ("tool_choice", {"type": "any"}, "tool_choice"),
        ("thinking", {"type": "perhaps"}, "thinking.type"),
        ("messages", [{"role": "user", "content": "word " * 3000}], "messages"),
    ],
)
def test_bad_input_is_refused_by_name_and_nothing_is_queued(
    stories: Live, field: str, value: Any, named: str
) -> None:
    before = stories.engine.stats().requests_submitted
    body = {"model": MODEL, "max_tokens": 10, "messages": HELLO, field: value}
    response = stories.post("/v1/messages", body)
    assert response.status_code == 400, response.text
    answer = response.json()
    assert set(answer) == {"type", "error"} and answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"].startswith(named), answer["error"]["message"]
    assert stories.engine.stats().requests_submitted == before


def test_the_clients_own_exceptions(client: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model=MODEL, max_tokens=-1, messages=HELLO)


def test_a_client_that_leaves_frees_its_sequence(stories: Live) -> None:
    body = {"model": MODEL, "max_tokens": 2000, "messages": FOX, "stream": True}
    with begin_post(stories, "/v1/messages", body) as peer:
        read_until(peer, b"text_delta")
    eventually(lambda: idle(stories.engine), "the sequence is free")
