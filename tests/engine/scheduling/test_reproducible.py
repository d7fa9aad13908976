"""Reproducible requests: the same text alone and next to any others, with quantized weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Constraint, Engine, InvalidRequest, SamplingParams
from tests.engine.engine_helpers import Loader, Watched, finished, greedy
from tests.engine.engine_models import write_q4
from tests.engine.random_requests import alone_and_together

COUNT = 56


@pytest.fixture(params=["q8_0", "q4_0"])
def path(request: pytest.FixtureRequest, model_path: Path, tmp_path: Path) -> Path:
    if request.param == "q8_0":
        return model_path
    target = tmp_path / "q4_0.gguf"
    write_q4(model_path, target)
    return target


def test_no_text_differs_next_to_others(load: Loader, path: Path) -> None:
    one = load(path, parallel=1, ctx_size=256, threads=1)
    engine = load(path, parallel=4, ctx_size=256, threads=1)
    differing = alone_and_together(one, engine, COUNT, seed=1, noise=COUNT, reproducible=True)
    assert differing == []
    assert engine.stats().completion_tokens > COUNT and engine.stats().cached_tokens > 0


def test_a_server_can_make_every_request_reproducible(load: Loader) -> None:
    config: dict[str, Any] = {"parallel": 3, "ctx_size": 256, "reproducible": True, "threads": 1}
    one, engine = load(**config), load(**config)
    assert alone_and_together(one, engine, 12, seed=2) == []
    assert engine.stats().cached_tokens == 0 and engine.stats().guesses == 0
    assert engine.stats().decoded_sequences == engine.stats().steps


def test_others_go_on_next_to_a_reproducible_prompt(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=1024, context_shift=True)
    running = Watched(engine, "Hello", greedy(None))
    running.wait_for_tokens(2)
    before = running.generation.usage.completion_tokens
    finished(engine.submit([7, 8] * 300, greedy(1, reproducible=True)))
    assert running.generation.usage.completion_tokens - before >= 8, "one after each tile"
    running.generation.cancel()


def test_forced_tokens_are_reproducible(load: Loader) -> None:
    words = Constraint("regex", "(river|letter|town) runs through the (old|new) [a-z]{20}")
    params = SamplingParams(constraint=words, seed=5, temperature=1.5, reproducible=True)
    one, engine = load(parallel=1, ctx_size=256), load(parallel=4, ctx_size=256)
    expected = finished(one.submit("The", params)).text
    noise = [engine.submit(f"Noise {i}", greedy(60)) for i in range(3)]
    assert finished(engine.submit("The", params)).text == expected
    for each in noise:
        finished(each)


def test_a_unified_cache_refuses_it_by_name(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=256, kv_unified=True)
    with pytest.raises(InvalidRequest, match="reproducible"):
        engine.submit("Hello", greedy(1, reproducible=True))
    with pytest.raises(ValueError, match="reproducible"):
        Engine.load(engine.info().path, kv_unified=True, reproducible=True)
