"""Engines with a cache on disk, and one without any cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine
from tests.engine.engine_helpers import PRECISE, Loader, finished, greedy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prefixes"


@pytest.fixture
def start(load: Loader, f32_path: Path, folder: Path, steady_disk: None) -> Loader:
    """Starts an engine on the directory; it writes at its end, unless a test sets the times."""

    def loader(path: Path = f32_path, **config: Any) -> Engine:
        fields = {**PRECISE, "parallel": 1, "ctx_size": 1024, "cache_disk": str(folder), **config}
        return load(path, **fields)

    return loader


@pytest.fixture(scope="module")
def fresh(f32_path: Path) -> Iterator[Callable[[list[int]], str]]:
    """The text that an engine without any cache gives."""
    with Engine.load(f32_path, **PRECISE, parallel=1, ctx_size=1024, cache_ram=0) as engine:
        yield lambda prompt: finished(engine.submit(prompt, greedy(12), fresh=True)).text
