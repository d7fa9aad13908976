"""An engine belongs to its process: in a fork it refuses requests, and the parent's goes on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, EngineClosed
from tests.embedding_models import bert
from tests.engine.engine_helpers import Loader, Watched, finished, greedy

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def forked(work: Callable[[], Any]) -> Any:
    """What `work` returns in a fork of this process, as JSON carries it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writer, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return json.loads(told)


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except EngineClosed as error:
        return str(error)
    return "not refused"


def test_a_fork_is_refused_everything_and_may_close(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=512)
    running = Watched(engine, "Hello", greedy(None))
    running.wait_for_tokens(1)

    def child() -> dict[str, Any]:
        told: dict[str, Any] = {
            "refusals": [
                refusal(lambda: engine.submit("Hello")),
                refusal(lambda: engine.generate("Hello")),
                refusal(lambda: list(engine.stream("Hello"))),
                refusal(lambda: engine.tokenize("Hello")),
                refusal(lambda: engine.detokenize([3])),
                refusal(lambda: engine.pieces([3])),
                refusal(engine.control_texts),
                refusal(lambda: engine.check_prompt("Hello")),
                refusal(lambda: engine.sessions),
                refusal(engine.slots),
            ],
            "healthy": [engine.healthy, engine.stats().healthy],
        }
        engine.close()
        engine.close()
        return told

    told = forked(child)
    for message in told["refusals"]:
        assert "load it after the fork" in message
    assert told["healthy"] == [False, False]
    assert engine.healthy
    seen = running.generation.usage.completion_tokens
    running.wait_for_tokens(seen + 1)
    running.generation.cancel()
    assert finished(engine.submit("Hello", greedy(2))).usage.completion_tokens == 2


def test_an_embedder_is_refused_in_a_fork(load: Loader) -> None:
    engine = load(bert())
    embedder = engine.embedder

    def child() -> list[str]:
        return [
            refusal(lambda: embedder.embed(["Hello"])),
            refusal(lambda: embedder.submit([[3, 4]])),
            refusal(lambda: engine.embedder),
        ]

    for message in forked(child):
        assert "load it after the fork" in message
    assert embedder.embed(["Hello"])


def test_a_fork_may_load_an_engine_of_its_own(load: Loader, model_path: Path) -> None:
    engine = load(parallel=1, ctx_size=64)
    expected = finished(engine.submit("Hello", greedy(4))).text

    def child() -> str:
        with Engine.load(model_path, parallel=1, ctx_size=64) as own:
            return finished(own.submit("Hello", greedy(4))).text

    assert forked(child) == expected


def test_a_fork_that_ends_as_usual_leaves_the_engine_alone(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=64)
    child = os.fork()
    if child == 0:
        try:
            sys.exit(0)  # runs what the interpreter runs at its end
        except SystemExit:
            engine._finalizer()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert finished(engine.submit("Hello", greedy(2))).usage.completion_tokens == 2
