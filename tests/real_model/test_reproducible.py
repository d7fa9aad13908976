"""Reproducible requests to a real model: the same text alone and next to random others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cllm.engine import Engine
from tests.engine.random_requests import alone_and_together


@pytest.fixture(scope="module")
def engines(path: Path) -> Iterator[tuple[Engine, Engine]]:
    """One with a single slot, and a busy one; both as by default."""
    with (
        Engine.load(path, parallel=1, ctx_size=512) as one,
        Engine.load(path, parallel=4, ctx_size=512) as engine,
    ):
        yield one, engine


def test_no_text_differs_next_to_others(engines: tuple[Engine, Engine]) -> None:
    assert alone_and_together(*engines, 10, seed=3, noise=10, reproducible=True) == []
