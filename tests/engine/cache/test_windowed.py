"""Sliding-window models: prefixes are reused where that is correct, else computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine
from cllm.engine.llama import Batch
from tests.engine.engine_helpers import PRECISE, WAIT, Loader, finished, greedy, standing
from tests.engine.engine_models import write_windowed

FIRST = [20 + i % 300 for i in range(300)]
SECOND = [400 - i % 300 for i in range(300)]


@pytest.fixture(scope="module")
def windowed_path(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "windowed.gguf"
    write_windowed(model_path, path)
    return path


@pytest.fixture(params=["split", "unified", "split, only the window"])
def windowed(request: pytest.FixtureRequest, load: Loader, windowed_path: Path) -> Loader:
    def loader(**config: Any) -> Engine:
        options = {"kv_unified": request.param == "unified", "ubatch_size": 64, **PRECISE}
        options["swa_full"] = "window" not in request.param
        return load(windowed_path, **options, ctx_size=512, **config)

    return loader


@pytest.fixture
def fresh(load: Loader, windowed_path: Path) -> Callable[[list[int]], str]:
    engine = load(windowed_path, **PRECISE, parallel=1, ctx_size=512, cache_ram=0)

    def text(prompt: list[int]) -> str:
        engine.sessions.erase(0).result(WAIT)
        return finished(engine.submit(prompt, greedy(12))).text

    return text


@pytest.mark.parametrize("kept", [1, 20, 150, 290])
def test_whatever_is_reused_of_a_slot_gives_the_same_text(
    windowed: Loader, fresh: Callable[[list[int]], str], kept: int
) -> None:
    engine = windowed(parallel=1)
    finished(engine.submit(FIRST, greedy(50)))
    branch = [*FIRST[:kept], 7, 8, 9]
    done = finished(engine.submit(branch, greedy(12)))
    assert done.text == fresh(branch)


def test_a_common_beginning_is_read_once(
    windowed: Loader, fresh: Callable[[list[int]], str]
) -> None:
    engine = windowed(parallel=4)
    prompts = [[*FIRST, 330 + i, 340 + i] for i in range(3)]
    with standing(engine):
        together = [engine.submit(prompt, greedy(12)) for prompt in prompts]
    done = [finished(generation) for generation in together]
    assert [d.text for d in done] == [fresh(prompt) for prompt in prompts]
    assert [d.usage.cached_tokens for d in done] == [0, len(FIRST), len(FIRST)]


def test_the_whole_comes_back_from_memory_and_a_part_is_read_again(
    windowed: Loader, fresh: Callable[[list[int]], str]
) -> None:
    engine = windowed(parallel=1)
    finished(engine.submit(FIRST, greedy(1)))
    finished(engine.submit(SECOND, greedy(1)))
    for prompt, cached in (([*FIRST, 7, 8], len(FIRST)), ([*SECOND[:200], 7, 8], 0)):
        done = finished(engine.submit(prompt, greedy(12)))
        assert (done.usage.cached_tokens, done.text) == (cached, fresh(prompt))


@pytest.mark.parametrize("unified", [False, True])
def test_a_step_that_fails_leaves_no_gap_in_a_window(
    load: Loader, windowed_path: Path, fresh: Callable[[list[int]], str], unified: bool
) -> None:
    """Its tokens have taken the cells of those before them, which the next step looks at."""
    engine = load(
        windowed_path, **PRECISE, ctx_size=512, parallel=2, ubatch_size=64, swa_full=False,
        kv_unified=unified,
    )  # fmt: skip
    context, failed = engine._scheduler._context, list[int]()
    real = context.decode

    def decode(batch: Batch, count: int) -> int:
        code = real(batch, count)
        if count > 500 and not failed:
            failed.append(count)
            return -3
        return code

    context.decode = decode  # type: ignore[method-assign]
    prompts = [[20 + (i * 7 + j) % 300 for i in range(480)] for j in range(2)]
    together = [engine.submit(prompt, greedy(12)) for prompt in prompts]
    texts = [finished(each).text for each in together]
    assert failed and engine.stats().failed_decodes == 1
    assert texts == [fresh(prompt) for prompt in prompts]
