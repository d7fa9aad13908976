"""Sliding-window models: prefixes are reused where that is correct, else computed again."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine
from cllm.engine.cache.placement import Placer
from cllm.engine.stats import EngineStats
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


class Remembering:
    """A memory that can be cut everywhere and holds tokens from a position on."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.removed: list[tuple[int, int]] = []

    def remove(self, seq: int, start: int = -1) -> bool:
        self.removed.append((seq, start))
        return True

    def first_position(self, seq: int) -> int:
        return self.first


@pytest.mark.parametrize(("first", "kept"), [(0, 64), (33, 64), (34, 0)])
def test_a_window_that_an_incomplete_step_overwrote_is_computed_again(
    first: int, kept: int
) -> None:
    """The token behind 64 looks at 31 of them; llama.cpp reuses the cells of those before."""
    context: Any = Remembering(first)
    placer = Placer(
        context, EngineStats(), n_slots=1, most_busy=1, copy_gain=1, split_cache=True,
        max_saved_bytes=0, window=32, checkpoints=None,
    )  # fmt: skip
    slot = placer.cache.slots[0]
    placer.cache.occupy(slot, array("i", range(100)), 64)
    placer.undo([slot])
    assert slot.length == kept
