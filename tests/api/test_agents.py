"""Promises to agents: what their clients send by habit is served, or left out without an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import msgspec
import openai
import pytest

from cllm.api import ApiSettings
from cllm.api.openai.responses.output import _input_in
from cllm.api.openapi.examples import EXAMPLES
from cllm.api.schemas import Schema
from tests.api.api_client import Live, eventually, idle, serving

MODEL = "cllm-stories-q8_0"
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "weather", "parameters": CITY}
# As Codex sends them with every request.
CODEX = [
    {"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object"}},
    {
        "type": "namespace",
        "name": "atlas",
        "description": "Maps.",
        "tools": [WEATHER, {**WEATHER, "name": "shell"}],
    },
    {
        "type": "custom",
        "name": "apply_patch",
        "description": "Edit files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
    },
    {"type": "web_search", "external_web_access": False},
]


@pytest.fixture
def client(stories: Live) -> Iterator[Any]:
    with openai.OpenAI(base_url=stories.url + "/v1", api_key="none", max_retries=0) as client:
        yield client
    eventually(lambda: idle(stories.engine), "the engine has no work left")


def forced(client: Any, choice: Any, **asked: Any) -> Any:
    """The answer to a request that must call one of Codex's tools."""
    return client.responses.create(
        model=MODEL, input="Hello!", tools=CODEX, tool_choice=choice, parallel_tool_calls=False,
        max_output_tokens=200, extra_body={"seed": 1}, **asked,
    )  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [
        "web_search", "web_search_preview_2025_03_11", "image_generation", "local_shell", "mcp",
        "tool_search", "code_interpreter", "computer_use_preview", "file_search",
    ],
)  # fmt: skip
def test_hosted_tools_are_left_out_of_the_prompt(client: Any, kind: str) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "Hello!", "max_output_tokens": 1}
    alone = client.responses.create(tools=[WEATHER], **asked)
    both = client.responses.create(tools=[WEATHER, {"type": kind}], **asked)
    assert both.usage.input_tokens == alone.usage.input_tokens
    assert [tool.type for tool in both.tools] == ["function"]
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        client.responses.create(
            tools=[WEATHER, {"type": kind}], tool_choice={"type": kind}, **asked
        )
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": kind}]}
        client.responses.create(tools=[WEATHER, {"type": kind}], tool_choice=allowed, **asked)


def test_a_function_of_a_namespace_is_called_by_both_names(client: Any) -> None:
    choice = {"type": "function", "name": "weather"}
    for answer in (forced(client, choice), list(forced(client, choice, stream=True))[-1].response):
        (call,) = [item for item in answer.output if item.type == "function_call"]
        assert (call.name, call.namespace) == ("weather", "atlas")
        jsonschema.validate(json.loads(call.arguments), CITY)
    choice = {"type": "function", "name": "shell", "namespace": "atlas"}
    (call,) = forced(client, choice).output
    assert (call.name, call.namespace) == ("shell", "atlas")


def test_a_custom_tool_is_called_with_a_text(client: Any) -> None:
    events = list(forced(client, {"type": "custom", "name": "apply_patch"}, stream=True))
    kinds = [event.type for event in events]
    (call,) = [item for item in events[-1].response.output if item.type != "message"]
    assert (call.type, call.name) == ("custom_tool_call", "apply_patch")
    assert call.status in ("completed", "incomplete")
    assert "response.function_call_arguments.delta" not in kinds
    (delta,) = [event for event in events if event.type == "response.custom_tool_call_input.delta"]
    (done,) = [event for event in events if event.type == "response.custom_tool_call_input.done"]
    assert delta.delta == done.input == call.input
    assert delta.item_id == call.id


@pytest.mark.parametrize("text", ["", "a", 'a"b\\n', "狐狸 😀", "\x01\n"])
def test_the_input_of_a_custom_tool_is_read_also_if_it_is_cut(text: str) -> None:
    arguments = json.dumps({"input": text})
    assert _input_in(arguments) == text
    for cut in range(len(arguments)):
        assert text.startswith(_input_in(arguments[:cut]))
    assert _input_in(arguments[:-2]) == text


def test_calls_of_all_kinds_are_history(client: Any, stories: Live) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Patch it."}]},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "x"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {}},
        {"type": "local_shell_call_output", "id": "x", "output": {"stdout": ""}},
        {"type": "function_call", "call_id": "c1", "name": "weather", "namespace": "atlas",
         "arguments": '{"city":"Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "+ a"},
        {"type": "custom_tool_call_output", "call_id": "c2",
         "output": [{"type": "input_text", "text": "done"}]},
        {"type": None, "role": "user", "content": "Thanks."},
    ]  # fmt: skip
    answer = client.responses.create(model=MODEL, input=items, tools=CODEX, max_output_tokens=1)
    assert answer.usage.input_tokens > 60
    silent = [item for item in items if "web_search" not in str(item) and "shell" not in str(item)]
    fewer = client.responses.create(model=MODEL, input=silent, tools=CODEX, max_output_tokens=1)
    assert fewer.usage.input_tokens == answer.usage.input_tokens


def test_an_invalid_tool_in_a_namespace_is_named_by_its_place(client: Any) -> None:
    wrong = {**WEATHER, "parameters": {"type": "string"}}
    tools = [{"type": "web_search"}, {"type": "namespace", "name": "a", "tools": [WEATHER, wrong]}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="Hello!", tools=tools)
    assert str(caught.value.param).startswith("tools[1].tools[1]."), caught.value.param


OBJECTS = [kind for kind in EXAMPLES if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]


@pytest.mark.parametrize("schema", OBJECTS)
def test_null_is_left_out_for_every_optional_field(schema: Any) -> None:
    info = msgspec.inspect.type_info(schema)
    assert isinstance(info, msgspec.inspect.StructType)
    nulls = {field.encode_name: None for field in info.fields if not field.required}
    assert Schema(schema).decode(msgspec.json.encode({**nulls, **EXAMPLES[schema]}))


def test_null_inside_messages_tools_and_items(stories: Live) -> None:
    part = {"type": "text", "text": "Hello!", "role": "assistant", "refusal": None}
    call = {"id": None, "type": None, "function": {"name": "f", "arguments": None}}
    tool = {
        "type": None,
        "function": {"name": "f", "description": None, "parameters": None, "strict": None},
    }
    chat = {
        "messages": [
            {"role": "user", "content": "Hello!", "name": None, "tool_calls": None},
            {"role": "assistant", "content": [part]},
            {"role": "user", "content": "Go on."},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2", "tool_call_id": None},
            {"role": "user", "content": "Well?"},
        ],
        "tools": [tool],
        "max_tokens": 1.0,
    }
    assert stories.post("/v1/chat/completions", chat).status_code == 200
    items = [
        {"type": None, "role": "user", "id": None, "content": [{"type": "input_text",
         "text": "Hello!", "refusal": None}]},
    ]  # fmt: skip
    body = {"input": items, "max_output_tokens": 1, "tools": [{**WEATHER, "strict": None}]}
    assert stories.post("/v1/responses", body).status_code == 200
    required = {"messages": [{"role": None, "content": "x"}]}
    error = stories.post("/v1/chat/completions", required).json()["error"]
    assert error["param"] == "messages[0].role"


@pytest.mark.parametrize("most", [-1, 8.0, 0])
def test_habits_of_max_tokens(stories: Live, most: float) -> None:
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": most}
    answer = stories.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    tokens = answer.json()["usage"]["completion_tokens"]
    assert tokens > 8 if most == -1 else tokens <= most


def test_a_key_in_azures_header(stories: Live) -> None:
    with serving(stories.engine, ApiSettings(api_keys=("sk-one",))) as live:
        client = openai.AzureOpenAI(
            base_url=live.url + "/v1", api_key="sk-one", api_version="2025-01-01", max_retries=0
        )
        with client:
            assert client.models.list().data[0].id == MODEL
            answer = client.responses.create(model=MODEL, input="Hello!", max_output_tokens=1)
            assert answer.usage is not None
        wrong = live.get("/v1/models", headers={"api-key": "sk-two"})
        assert wrong.status_code == 401


def test_models_in_the_shape_of_anthropic(stories: Live) -> None:
    with anthropic.Anthropic(base_url=stories.url, api_key="none", max_retries=0) as client:
        page = client.models.list()
        (model,) = page.data
        assert (model.id, model.display_name, model.type) == (MODEL, MODEL, "model")
        assert model.created_at.year >= 2020
        assert (page.has_more, page.first_id, page.last_id) == (False, MODEL, MODEL)
        assert client.models.retrieve(MODEL).display_name == MODEL
        with pytest.raises(anthropic.NotFoundError) as caught:
            client.models.retrieve("gpt-4o")
        assert caught.value.body["type"] == "error"  # type: ignore[index]
        assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    plain = stories.get("/v1/models").json()
    assert "first_id" not in plain and plain["object"] == "list"


def test_anthropics_tools_by_type(stories: Live) -> None:
    with anthropic.Anthropic(base_url=stories.url, api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
        search: Any = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
        own: Any = {"name": "weather", "input_schema": CITY}

        def count(*tools: Any) -> int:
            return client.messages.count_tokens(tools=list(tools), **asked).input_tokens

        assert count(search, own) == count(own) > count(search) == count()
        bash: Any = {"type": "bash_20250124", "name": "bash"}
        assert count(bash) > count()
        answer: Any = client.messages.create(
            max_tokens=200, tools=[search, bash],
            tool_choice={"type": "tool", "name": "bash", "disable_parallel_tool_use": True},
            extra_body={"seed": 3}, **asked,
        )  # fmt: skip
        (call,) = [block for block in answer.content if block.type == "tool_use"]
        assert call.name == "bash" and set(call.input) <= {"command", "restart"}
        for tool, field in (
            ({"type": "computer_20250124", "name": "computer"}, "tools.0..type"),
            ({"name": "weather"}, "tools.0..input_schema"),
        ):
            with pytest.raises(anthropic.BadRequestError, match=field):
                count(tool)
        with pytest.raises(anthropic.BadRequestError, match=r"tools.1..input_schema"):
            count(search, {"name": "f", "input_schema": {"type": "string"}})
        with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
            client.messages.create(
                max_tokens=5, tools=[search, own],
                tool_choice={"type": "tool", "name": "web_search"}, **asked,
            )  # fmt: skip


def test_blocks_of_anthropics_own_tools_and_documents(stories: Live) -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [
        {"type": "tool_reference", "tool_name": "weather"},
        {"type": "search_result", "title": "A", "source": "b", "content": [
            {"type": "text", "text": "It rains."}]},
    ]}  # fmt: skip
    document = {"type": "document", "title": "Fox", "source": {
        "type": "text", "media_type": "text/plain", "data": "A fox has a lantern."}}  # fmt: skip
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [document, {"type": "text", "text": "Look."}]},
        {"role": "assistant", "content": [
            {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
            {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []},
            {"type": "tool_use", "id": "t1", "name": "find", "input": {}},
        ]},
        {"role": "user", "content": [result]},
    ]  # fmt: skip
    body = {"max_tokens": 1, "messages": messages}
    answer = stories.post("/v1/messages", body)
    assert answer.status_code == 200, answer.text
    shown = stories.post("/v1/messages/count_tokens", {"messages": messages}).json()
    del messages[0]["content"][0]
    fewer = stories.post("/v1/messages/count_tokens", {"messages": messages}).json()
    assert fewer["input_tokens"] < shown["input_tokens"]
    messages[0]["content"] = [{"type": "document", "source": {"type": "url", "url": "x"}}]
    assert stories.post("/v1/messages", body).status_code == 400


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n"
)


def test_a_budget_of_anthropic_that_cannot_be_held_is_a_target(stories: Live) -> None:
    """The built-in model has no token that ends thoughts."""
    with serving(stories.engine, ApiSettings(chat_template=THINKING)) as live:
        body = {
            "max_tokens": 4,
            "messages": [{"role": "user", "content": "Hello!"}],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        }
        answer = live.post("/v1/messages", body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["content"][0]["type"] == "thinking"
        hard = live.post("/v1/messages", {**body, "thinking_budget_tokens": 1024})
        assert hard.status_code == 400
