"""Promises of tools and structured answers: constrained text is valid, streamed and not."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest

from cllm.api import ApiSettings
from tests.api.api_client import Live, eventually, idle, serving
from tests.api.published_templates import source
from tests.api.random_schemas import random_object
from tests.api.test_openai import refused

MODEL = "cllm-stories-q8_0"
# Random requests for each of four ways to ask; 250 make the thousand that releases are held to.
REQUESTS = int(os.environ.get("CLLM_TEST_REQUESTS", "25"))

FOX: list[Any] = [{"role": "user", "content": "Tell me a story about a fox and a lantern."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of some days",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Rome", "Zürich"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture
def client(stories: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stories.url + "/v1", api_key="none", max_retries=0) as client:
        yield client
    eventually(lambda: idle(stories.engine), "the engine has no work left")


def check_weather(call: Any) -> None:
    assert call.type == "function" and call.function.name == "get_weather" and call.id
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])


def called(answer: Any) -> list[Any]:
    """The calls of a whole answer."""
    return list(answer.choices[0].message.tool_calls or ())


def gathered(chunks: Sequence[Any]) -> tuple[str, list[tuple[str, str, str]], str]:
    """Content, (id, name, arguments) of each call, and the finish reason of a stream."""
    content, calls, reason = "", list[list[str]](), ""
    for chunk in chunks:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or ():
                if call.index == len(calls):
                    assert call.type == "function"
                    calls.append([call.id, call.function.name, ""])
                calls[call.index][2] += call.function.arguments or ""
    return content, [(id, name, arguments) for id, name, arguments in calls], reason


def test_a_named_tool_is_called_once(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FOX, tools=[CLOCK, WEATHER], seed=1,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )  # fmt: skip
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = called(answer)
    check_weather(call)


def test_some_tool_is_called_where_one_is_required(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FOX, tools=[WEATHER], tool_choice="required", seed=2
    )
    calls = called(answer)
    assert len(calls) > 1  # of itself it would hardly end
    for call in calls:
        check_weather(call)
    assert len({call.id for call in calls}) == len(calls)


def test_only_one_is_called_where_calls_may_not_be_parallel(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FOX, tools=[WEATHER], tool_choice="required",
        parallel_tool_calls=False, seed=2,
    )  # fmt: skip
    (call,) = called(answer)
    check_weather(call)


def test_only_allowed_tools_are_called(client: openai.OpenAI) -> None:
    allowed: Any = {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "required",
            "tools": [{"type": "function", "function": {"name": "clock"}}],
        },
    }
    answer = client.chat.completions.create(
        model=MODEL, messages=FOX, tools=[CLOCK, WEATHER], seed=3, max_tokens=60,
        tool_choice=allowed, parallel_tool_calls=False,
    )  # fmt: skip
    (call,) = called(answer)
    assert call.function.name == "clock"


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_model_that_need_not_call_may_speak(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FOX, tools=[WEATHER], tool_choice=choice, temperature=0, max_tokens=30
    )
    message = answer.choices[0].message
    assert message.tool_calls is None and len(message.content or "") > 20


def test_a_streamed_call_comes_in_pieces(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.chat.completions.create(
            model=MODEL, messages=FOX, tools=[WEATHER], tool_choice="required", seed=4,
            parallel_tool_calls=False, **more,
        )  # fmt: skip

    (whole,) = ask().choices[0].message.tool_calls
    chunks = list(ask(stream=True))
    content, calls, reason = gathered(chunks)
    assert (content, reason) == ("", "tool_calls")
    assert [call[1:] for call in calls] == [(whole.function.name, whole.function.arguments)]
    assert len(chunks) > 10
    assert chunks[0].choices[0].delta.role == "assistant"


def test_calls_and_their_results_are_part_of_the_conversation(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function"}
    function = {"name": "get_weather", "arguments": '{"city": "Rome", "days": 2}'}
    talk: Any = [
        *FOX,
        {"role": "assistant", "content": None, "tool_calls": [{**call, "function": function}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It rains."},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=talk, tools=[WEATHER], max_tokens=10
    )
    assert answer.choices[0].message.content
    without = client.chat.completions.create(model=MODEL, messages=FOX, max_tokens=1)
    assert answer.usage is not None and without.usage is not None
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens + 100


def test_an_earlier_call_with_arguments_that_are_no_json_is_repeated_as_it_was(
    stories: Live,
) -> None:
    function = {"name": "clock", "arguments": '{"zone": '}
    call = {"id": "call_1", "type": "function", "function": function}
    talk = [
        *FOX,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "no JSON"},
    ]
    answer = stories.post("/apply-template", {"messages": talk, "tools": [CLOCK]})
    assert answer.status_code == 200, answer.text
    assert json.dumps(function["arguments"]) in answer.json()["prompt"]


def test_an_object_is_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FOX, seed=1, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_a_format_of_plain_text_changes_nothing(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FOX, temperature=0, max_tokens=9, response_format={"type": "text"}
    )
    assert (answer.choices[0].message.content or "").startswith("The fox")


def test_an_answer_of_a_schema_or_a_call(client: openai.OpenAI) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["n"],
        "additionalProperties": False,
    }
    for seed in range(4):
        answer = client.chat.completions.create(
            model=MODEL, messages=FOX, tools=[WEATHER], seed=seed, parallel_tool_calls=False,
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        )  # fmt: skip
        message = answer.choices[0].message
        if message.tool_calls:
            check_weather(message.tool_calls[0])
        else:
            jsonschema.validate(json.loads(message.content or ""), schema)


@pytest.mark.timeout(600)  # seconds, for a thousand
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["call", "answer"])
def test_what_is_forced_is_always_valid(client: openai.OpenAI, kind: str, stream: bool) -> None:
    def ask(number: int) -> None:
        schema = random_object(random.Random(f"{kind} {number}"))
        more: dict[str, Any] = {"stream": stream, "seed": number, "temperature": 1}
        if kind == "call":
            function = {"name": "f", "parameters": schema, "strict": True}
            more["tools"] = [{"type": "function", "function": function}]
            more["tool_choice"] = {"type": "function", "function": {"name": "f"}}
        else:
            form = {"name": "x", "schema": schema, "strict": True}
            more["response_format"] = {"type": "json_schema", "json_schema": form}
        answer: Any = client.chat.completions.create(model=MODEL, messages=FOX, **more)
        if stream:
            text, calls, reason = gathered(list(answer))
        else:
            message, reason = answer.choices[0].message, answer.choices[0].finish_reason
            text = message.content
            calls = [
                (c.id, c.function.name, c.function.arguments) for c in message.tool_calls or ()
            ]
        assert reason == ("tool_calls" if kind == "call" else "stop")
        jsonschema.validate(json.loads(calls[0][2] if kind == "call" else text), schema)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(REQUESTS)))


@pytest.mark.parametrize(
    "template",
    [
        "Qwen-Qwen3-0.6B",
        "Qwen3-Coder",
        "mistralai-Mistral-Nemo-Instruct-2407",
        "Mistral-Small-3.2-24B-Instruct-2506",
        "deepseek-ai-DeepSeek-V3.1",
        "GLM-4.6",
    ],
)
def test_a_forced_call_is_valid_in_a_models_own_format(stories: Live, template: str) -> None:
    schemas = [random_object(random.Random(number)) for number in range(2)]
    with serving(stories.engine, ApiSettings(chat_template=source(template))) as live:
        for number, schema in enumerate((WEATHER["function"]["parameters"], *schemas)):
            function = {"name": "f", "parameters": schema}
            body = {
                "messages": FOX,
                "tools": [{"type": "function", "function": function}],
                "tool_choice": "required",
                "parallel_tool_calls": False,
                "reasoning_effort": "none",
                "seed": number,
            }
            answer = live.post("/v1/chat/completions", body).json()["choices"][0]
            assert answer["finish_reason"] == "tool_calls", answer
            (call,) = answer["message"]["tool_calls"]
            jsonschema.validate(json.loads(call["function"]["arguments"]), schema)


def test_thoughts_are_told_from_the_answer(stories: Live) -> None:
    thinking = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n<think>\n"
    )
    with serving(stories.engine, ApiSettings(chat_template=thinking)) as live:
        body = {"messages": FOX, "max_tokens": 12, "temperature": 0}
        answer = live.post("/v1/chat/completions", body).json()
        message = answer["choices"][0]["message"]
        assert message["content"] == "" and message["reasoning_content"]
        usage = answer["usage"]
        thoughts = usage["completion_tokens_details"]["reasoning_tokens"]
        assert 0 < thoughts == usage["completion_tokens"]
        asked = {"input": FOX, "max_output_tokens": 12, "temperature": 0}
        response = live.post("/v1/responses", asked).json()
        assert [item["type"] for item in response["output"]] == ["reasoning"]
        usage = response["usage"]
        assert usage["output_tokens_details"]["reasoning_tokens"] == usage["output_tokens"]
        with openai.OpenAI(base_url=live.url + "/v1", api_key="none") as client:
            chunks = list(
                client.chat.completions.create(
                    model=MODEL, messages=FOX, max_tokens=12, temperature=0, stream=True
                )
            )
        thought = "".join(
            (c.choices[0].delta.model_extra or {}).get("reasoning_content", "") for c in chunks
        )
        assert thought == message["reasoning_content"]


def test_the_async_client_gets_calls_too(stories: Live) -> None:
    async def ask() -> tuple[Any, tuple[str, list[tuple[str, str, str]], str]]:
        async with openai.AsyncOpenAI(base_url=stories.url + "/v1", api_key="none") as client:
            asked: dict[str, Any] = {
                "model": MODEL, "messages": FOX, "tools": [WEATHER], "tool_choice": "required",
                "parallel_tool_calls": False, "seed": 6,
            }  # fmt: skip
            whole: Any = await client.chat.completions.create(**asked)
            stream: Any = await client.chat.completions.create(**asked, stream=True)
            return whole, gathered([chunk async for chunk in stream])

    whole, (_, calls, reason) = asyncio.run(ask())
    (call,) = whole.choices[0].message.tool_calls
    check_weather(call)
    assert calls[0][2] == call.function.arguments and reason == "tool_calls"


BAD_TOOLS = [
    ({"parameters": {"type": "array"}}, "tools[0].function.parameters.type"),
    ({"parameters": {"properties": {"a": {"type": "word"}}}}, "parameters.properties.a.type"),
    ({"parameters": {"properties": {"a": 1}}}, "parameters.properties.a"),
    ({"parameters": {"properties": {"a": {"type": {}}}}}, "parameters.properties.a.type"),
    ({"parameters": {"properties": {"a": {"type": [["string"]]}}}}, "properties.a.type"),
    ({"parameters": {"required": "a"}}, "parameters.required"),
    ({"parameters": []}, "tools[0].function.parameters"),
    ({"name": "two words"}, "tools[0].function.name"),
    ({"strict": True, "parameters": {"not": {}}}, "tools[0].function.parameters"),
    ({"strict": True, "parameters": {"properties": {"a": {"uniqueItems": True}}}}, "parameters"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_TOOLS)
def test_bad_tools_are_refused_by_name_and_nothing_is_queued(
    stories: Live, fields: dict[str, Any], param: str
) -> None:
    before = stories.engine.stats().requests_submitted
    tools = [{"type": "function", "function": {"name": "f", **fields}}]
    error = refused(stories, "/v1/chat/completions", {"messages": FOX, "tools": tools})
    assert error["param"] is not None and param in error["param"]
    assert stories.engine.stats().requests_submitted == before


def test_a_keyword_that_cannot_be_held_is_named_where_it_would_have_to_be(stories: Live) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    error = refused(stories, "/v1/chat/completions", {"messages": FOX, "response_format": form})
    assert "uniqueItems" in error["message"]
    assert error["param"] == "response_format.json_schema.schema"
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    body = {"messages": FOX, "tools": [tool], "max_tokens": 5}
    forced = refused(stories, "/v1/chat/completions", {**body, "tool_choice": "required"})
    assert "uniqueItems" in forced["message"]
    # A model that may do without a call only reads the schema.
    assert stories.post("/v1/chat/completions", body).status_code == 200
