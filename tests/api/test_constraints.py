"""No constraint of a request kills, hangs or blocks the server, on any endpoint."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from cllm.engine import Engine
from cllm.engine.constraints import grammars
from cllm.http import ServerConfig
from tests.api.api_client import PATIENCE, Live, eventually, serving
from tests.planted_child import planted
from tests.random_model import random_path

ASKED = [{"role": "user", "content": "Hi"}]
WORKERS = 16


@pytest.fixture(scope="module")
def doomed() -> Iterator[Live]:
    """A server whose children die of marked constraints."""
    with (
        planted(),
        pytest.MonkeyPatch.context() as patch,
        Engine.load(random_path(), parallel=4, ctx_size=1024) as engine,
        serving(engine, config=ServerConfig(workers=WORKERS, grace=5.0)) as live,
    ):
        patch.setattr(grammars, "PATIENT_S", 1.0)
        yield live


def schema(mark: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"const": mark}}, "required": ["a"]}


def chat(mark: str) -> dict[str, Any]:
    wanted = {"name": "a", "strict": True, "schema": schema(mark)}
    return {
        "messages": ASKED,
        "max_tokens": 8,
        "response_format": {"type": "json_schema", "json_schema": wanted},
    }


def chat_tool(mark: str, strict: bool = True) -> dict[str, Any]:
    function = {"name": "f", "parameters": schema(mark), "strict": strict}
    return {
        "messages": ASKED,
        "max_tokens": 8,
        "tools": [{"type": "function", "function": function}],
    }


def message(mark: str) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": ASKED,
        "max_tokens": 8,
        "tools": [{"name": "f", "input_schema": schema(mark)}],
        "tool_choice": {"type": "any"},
    }


def counted(mark: str) -> dict[str, Any]:
    return {key: value for key, value in message(mark).items() if key != "max_tokens"}


def response(mark: str) -> dict[str, Any]:
    wanted = {"type": "json_schema", "name": "a", "schema": schema(mark)}
    return {"input": "Hi", "max_output_tokens": 16, "text": {"format": wanted}}


def completion_schema(mark: str) -> dict[str, Any]:
    return {"prompt": "Hi", "n_predict": 8, "json_schema": schema(mark)}


def completion_grammar(mark: str) -> dict[str, Any]:
    return {"prompt": "Hi", "n_predict": 8, "grammar": f'root ::= "{mark}"'}


ENDPOINTS = {
    "chat": ("/v1/chat/completions", chat, "response_format.json_schema.schema"),
    "tool": ("/v1/chat/completions", chat_tool, "tools[0].function.parameters"),
    "message": ("/v1/messages", message, "tools"),
    "count": ("/v1/messages/count_tokens", counted, "tools"),
    "response": ("/v1/responses", response, "text.format"),
    "schema": ("/completion", completion_schema, "json_schema"),
    "grammar": ("/completion", completion_grammar, "grammar"),
}


MARKS = ["planted-crash", "planted-growth", "planted-spin", "planted-kill", "planted-stall"]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize(("path", "body", "field"), ENDPOINTS.values(), ids=ENDPOINTS)
def test_a_child_that_dies_costs_one_request(
    doomed: Live, path: str, body: Any, field: str, mark: str
) -> None:
    stream = ThreadPoolExecutor(1).submit(doomed.stream, "Once", max_tokens=60, temperature=0)
    refused = doomed.post(path, body(mark))
    assert refused.status_code == 400, refused.text
    message = refused.json()["error"]["message"]
    assert "compil" in message and "simplify" in message
    assert field in message
    assert doomed.get("/health").status_code == 200
    assert len(stream.result(PATIENCE)) > 1
    assert doomed.post(path, body("good")).status_code == 200


def test_where_no_child_can_run_a_constraint_is_answered_503(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammars, "COMMAND", ("/nonexistent",))
    with (
        Engine.load(random_path(), parallel=1, ctx_size=512) as engine,
        serving(engine, config=ServerConfig(grace=5.0)) as live,
    ):
        answer = live.post("/v1/chat/completions", chat("good"))
        assert answer.status_code == 503
        assert "/nonexistent" in answer.json()["error"]["message"]
        assert live.post("/v1/chat/completions", {"messages": ASKED, "max_tokens": 2}).ok


def test_a_tool_that_need_not_be_held_is_only_read(doomed: Live) -> None:
    answer = doomed.post("/v1/chat/completions", chat_tool("planted-crash loose", strict=False))
    assert answer.status_code == 200, answer.text


def tools(count: int, name: str) -> dict[str, Any]:
    """Tools of which the first cannot be held, so that each is looked at."""
    schemas = [schema(f"{name} {number}") for number in range(count)]
    schemas[0]["properties"]["a"] = {"type": "string", "pattern": "(?=x)y"}
    functions = [{"name": f"f{n}", "parameters": each} for n, each in enumerate(schemas)]
    listed = [{"type": "function", "function": function} for function in functions]
    return {"messages": ASKED, "max_tokens": 1, "tools": listed}


def test_more_tools_than_constraints_are_kept_are_each_compiled_once(
    doomed: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_KEPT", 2)
    before = doomed.engine.stats().constraints_compiled
    answer = doomed.post("/v1/chat/completions", tools(6, "more than kept"))
    assert answer.status_code == 200, answer.text
    assert doomed.engine.stats().constraints_compiled == before + 6  # five, and all together


def test_more_tools_than_can_be_looked_at_are_refused(
    doomed: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cllm.api.chat.tools._MOST", 5)
    answer = doomed.post("/v1/chat/completions", tools(6, "too many"))
    assert answer.status_code == 400
    assert "at most 5 tools" in answer.json()["error"]["message"]


def test_more_slow_schemas_than_workers_hold_none(doomed: Live, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}" for number in range(2)]
    for path in paths:
        os.mkfifo(path)
    with ThreadPoolExecutor(2 * WORKERS) as pool:
        held = [
            pool.submit(post, doomed, *ENDPOINTS[name][:2], f"planted-hold:{paths[0]}: {number}")
            for number, name in enumerate([*ENDPOINTS, *ENDPOINTS, *ENDPOINTS])
        ]
        opened = os.open(paths[0], os.O_WRONLY)
        grammar_queue = doomed.engine._grammars
        eventually(lambda: len(grammar_queue._jobs) >= WORKERS, "all schemas wait")
        assert doomed.get("/health").status_code == 200
        assert len(doomed.stream("Once", max_tokens=5)) > 1
        assert not any(each.done() for each in held)
        os.close(opened)
        # The rest wait for the pipe one after the other.
        done = threading.Event()
        feeder = threading.Thread(target=feed, args=(paths[0], done), daemon=True)
        feeder.start()
        assert {each.result(PATIENCE) for each in held} == {200}
        done.set()
        os.close(os.open(paths[0], os.O_RDONLY | os.O_NONBLOCK))


def post(live: Live, path: str, body: Any, mark: str) -> int:
    return requests.post(live.url + path, json=body(mark), timeout=PATIENCE).status_code


def feed(pipe: Path, done: threading.Event) -> None:
    while not done.is_set():
        pipe.write_bytes(b"")
