"""Asking an engine that has a cache on disk, and waiting until it has written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cllm.engine import Engine
from cllm.engine.cache.disk_cache import DiskCache
from cllm.engine.sharing import COMMON, Scope
from tests.engine.engine_helpers import WAIT, finished, greedy

FIRST = [20 + i % 300 for i in range(300)]
SECOND = [400 - i % 300 for i in range(300)]
THIRD = [(7 * i) % 400 + 20 for i in range(300)]


def ask(engine: Engine, prompt: list[int], scope: Scope = COMMON) -> tuple[str, int]:
    """The text, and how many tokens were cached."""
    done = finished(engine.submit(prompt, greedy(12), scope=scope))
    return done.text, done.usage.cached_tokens


def remembered(engine: Engine, *prompts: list[int]) -> None:
    """Ask, close, and so write."""
    for prompt in prompts:
        ask(engine, prompt)
    engine.close()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.prefix"))


def disk_of(engine: Engine) -> DiskCache:
    disk = engine._scheduler._disk
    assert disk is not None
    return disk


def wait_for_writer(engine: Engine, predicate: Callable[[], bool]) -> None:
    changed = disk_of(engine).writer._changed
    with changed:
        assert changed.wait_for(predicate, WAIT), "nothing was written in time"
