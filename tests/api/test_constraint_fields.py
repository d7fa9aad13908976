"""Every spelling of a constraint is held in every API, or refused by name; none is overlooked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cllm.api.unserved_fields import UNSERVED
from cllm.engine import Engine
from cllm.http import ServerConfig
from tests.api.api_client import Live, serving
from tests.random_model import random_path

ASKED = [{"role": "user", "content": "Hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"q": {"enum": ["zebra"]}},
    "required": ["q"],
}
OBJECT = '{"q": "zebra"}'
ZEBRA = 'root ::= "zebra"'
TEXT = json.dumps(SCHEMA)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with (
        Engine.load(random_path(), parallel=4, ctx_size=1024) as engine,
        serving(engine, config=ServerConfig(grace=5.0)) as served,
    ):
        yield served


def wrapped(**form: Any) -> dict[str, Any]:
    return {"response_format": form}


# Fields of a body -> the only text that they allow.
SPELLINGS: list[tuple[dict[str, Any], str]] = [
    (wrapped(type="json_object", schema=SCHEMA), OBJECT),
    (wrapped(type="json_object", value=SCHEMA), OBJECT),
    (wrapped(type="json_schema", schema=SCHEMA), OBJECT),
    (wrapped(type="json_schema", json_schema={"schema": SCHEMA}), OBJECT),
    (wrapped(type="json_schema", json_schema={"name": "a", "schema": SCHEMA}), OBJECT),
    (wrapped(type="json_schema", json_schema={"name": "a", "value": SCHEMA}), ""),
    (wrapped(type="json", value=SCHEMA), OBJECT),
    (wrapped(type="json", value=TEXT), OBJECT),
    (wrapped(type="regex", value="zebra"), "zebra"),
    (wrapped(type="grammar", grammar=ZEBRA), "zebra"),
    ({"json_schema": SCHEMA}, OBJECT),
    ({"json_schema": TEXT}, OBJECT),
    ({"grammar": ZEBRA}, "zebra"),
    ({"grammar": "", "json_schema": SCHEMA}, OBJECT),
    ({"structured_outputs": {"json": SCHEMA}}, OBJECT),
    ({"structured_outputs": {"regex": "zeb(ra)"}}, "zebra"),
    ({"structured_outputs": {"choice": ["zebra"], "json": None}}, "zebra"),
    ({"structured_outputs": {"grammar": ZEBRA}}, "zebra"),
    ({"structured_outputs": {"grammar": 'start: "zebra"'}}, "zebra"),
    ({"guided_json": SCHEMA}, OBJECT),
    ({"guided_json": TEXT}, OBJECT),
    ({"guided_regex": "zebra"}, "zebra"),
    ({"guided_choice": ["zebra"]}, "zebra"),
    ({"guided_grammar": ZEBRA}, "zebra"),
    ({"regex": "zebra"}, "zebra"),
    ({"ebnf": ZEBRA}, "zebra"),
    ({"format": SCHEMA}, OBJECT),
]


def chat(fields: dict[str, Any]) -> dict[str, Any]:
    return {"messages": ASKED, "max_tokens": 60, **fields}


def prompted(fields: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": "Hi", "max_tokens": 60, **fields}


def response(fields: dict[str, Any]) -> dict[str, Any]:
    return {"input": "Hi", "max_output_tokens": 60, **fields}


def message(fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", **chat(fields)}


APIS: dict[str, Any] = {
    "/v1/chat/completions": (chat, lambda a: a["choices"][0]["message"]["content"]),
    "/v1/completions": (prompted, lambda a: a["choices"][0]["text"]),
    "/v1/responses": (response, lambda a: a["output"][0]["content"][0]["text"]),
    "/v1/messages": (message, lambda a: a["content"][0]["text"]),
    "/completion": (prompted, lambda a: a["content"]),
    "/generate": (prompted, lambda a: a["data"]["text"]),
}


def words(error: dict[str, Any]) -> str:
    found = error["error"]
    return str(found if isinstance(found, str) else found["message"])


@pytest.mark.parametrize("path", APIS)
def test_each_spelling_is_held(live: Live, path: str) -> None:
    body, text = APIS[path]
    for fields, expected in SPELLINGS:
        answer = live.post(path, body(fields))
        if expected:
            assert answer.status_code == 200, (fields, answer.text)
            assert text(answer.json()) == expected, fields
        else:
            assert answer.status_code == 400, (fields, answer.text)
            assert "response_format.json_schema.schema" in words(answer.json())


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"grammar": ZEBRA, "json_schema": SCHEMA}, "json_schema"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"guided_json": SCHEMA, "format": "json"}, "format"),
    ],
)
def test_two_constraints_are_refused_by_name(
    live: Live, path: str, fields: dict[str, Any], named: str
) -> None:
    answer = live.post(path, APIS[path][0](fields))
    assert answer.status_code == 400, answer.text
    assert words(answer.json()).startswith(f"{named}: ")
    assert "leave out" in words(answer.json())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (wrapped(type="structural_tag"), "response_format.type"),
        (wrapped(type="json_schema"), "response_format.json_schema"),
        (wrapped(type="json_schema", json_schema={"name": "a"}), "response_format.json_schema."),
        (wrapped(type="json_object", schema=5), "response_format.schema"),
        ({"response_format": "json"}, "response_format"),
        ({"grammar": 5}, "grammar"),
        ({"grammar": 'root ::= "a'}, "grammar"),
        ({"regex": "(?=a)b"}, "regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_json": "{"}, "guided_json"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "json_schema: uniqueItems"),
        ({"format": "yaml"}, "format"),
        ({"json_schema": {"properties": {"a": {"minimum": "5"}}}}, "json_schema: minimum"),
    ],
)
def test_what_is_not_held_is_refused_with_its_field(
    live: Live, fields: dict[str, Any], named: str
) -> None:
    for path in APIS:
        answer = live.post(path, APIS[path][0](fields))
        assert answer.status_code == 400, (path, answer.text)
        assert words(answer.json()).startswith(named), (path, answer.text)
        assert "expected" in words(answer.json())


@pytest.mark.parametrize("path", APIS)
def test_fields_of_other_servers_that_change_the_answer_are_refused(live: Live, path: str) -> None:
    body = APIS[path][0]
    for name, (nothing, instead) in UNSERVED.items():
        answer = live.post(path, body({name: "x"}))
        assert answer.status_code == 400, (name, answer.text)
        assert words(answer.json()).startswith(f"{name}: "), answer.text
        assert instead in words(answer.json())
        for value in nothing:
            neutral = live.post(path, body({name: value, "grammar": ZEBRA}))
            assert neutral.status_code == 200, (name, neutral.text)


def test_an_answer_of_text_has_no_constraint(live: Live) -> None:
    for fields in (
        wrapped(type="text"),
        {"format": ""},
        {"grammar": ""},
        {"response_format": None},
    ):
        answer = live.post("/v1/chat/completions", chat({**fields, "max_tokens": 8}))
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 8


def test_any_object_and_a_closed_one(live: Live) -> None:
    objects: list[dict[str, Any]] = [{"json_schema": {}}, {"format": "json"}]
    for fields in (wrapped(type="json_object"), *objects):
        answer = live.post("/completion", prompted(fields))
        assert answer.json()["content"].startswith("{")
    tool = {"name": "f", "parameters": SCHEMA}
    asked = chat({"tools": [{"type": "function", "function": tool}], "tool_choice": "required"})
    calls = live.post("/v1/chat/completions", asked).json()["choices"][0]["message"]["tool_calls"]
    assert {call["function"]["arguments"] for call in calls} == {OBJECT}


def test_a_grammar_goes_with_no_tools(live: Live) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    answer = live.post("/v1/chat/completions", chat({"grammar": ZEBRA, "tools": tools}))
    assert answer.status_code == 400
    assert words(answer.json()).startswith("grammar: ")
    both = {"grammar": ZEBRA, "tools": tools, "tool_choice": "none"}
    answer = live.post("/v1/chat/completions", chat(both))
    assert answer.json()["choices"][0]["message"]["content"] == "zebra"


def test_a_tool_that_is_not_strict_may_say_what_cannot_be_held(live: Live) -> None:
    properties = {
        "q": {"enum": ["zebra"]},
        "tags": {"type": "array", "items": {"enum": ["a"]}, "uniqueItems": True},
    }
    loose = {"type": None, "properties": properties, "required": None}
    function: dict[str, Any] = {"name": "f", "parameters": loose}
    asked = chat({"tools": [{"type": "function", "function": function}], "max_tokens": 8})
    assert live.post("/v1/chat/completions", asked).status_code == 200
    function["strict"] = True
    refused = live.post("/v1/chat/completions", asked)
    assert refused.status_code == 400
    assert words(refused.json()).startswith("tools[0].function.parameters: uniqueItems")
    assert "(at /properties/tags)" in words(refused.json())
