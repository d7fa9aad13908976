"""Commands on slots run when their slots are idle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cllm.engine import Engine
from tests.engine.engine_helpers import WAIT, Loader, greedy, held

PROMPT = [20 + i % 300 for i in range(100)]


@pytest.fixture
def engine(load: Loader, tmp_path: Path) -> Engine:
    return load(
        parallel=3, ctx_size=512, cache_ram=0, slot_save_path=str(tmp_path), context_shift=True
    )


@contextmanager
def reading(engine: Engine) -> Iterator[None]:
    """Slot 0 reads PROMPT until the block ends, and is idle then."""
    with held(engine) as reached:
        engine.submit(PROMPT, greedy(1), slot=0)
        assert reached.wait(WAIT)
        yield


def test_a_command_runs_when_the_last_stream_has_ended_by_itself(engine: Engine) -> None:
    with reading(engine):
        erasing = engine.sessions.erase(0)
    assert erasing.result(WAIT) == len(PROMPT)
