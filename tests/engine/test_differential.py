"""A request gives the same text next to any others as alone: 2 100 random ones on F32 weights.

Prefixes, stops, schemas, penalties, cancellation, two tenants, drafts, preemption and context
shifts, in each layout of the cache. The logits of F32 weights differ by some 1e-6 between layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cllm.engine.stats import EngineStats
from tests.engine.random_requests import LAYOUTS, run, write_models

COUNT, SEED = 300, 1

# Layout -> what its requests must have met, or the test has tested less than it says.
MET: dict[str, Callable[[EngineStats], int]] = {
    "split": lambda stats: stats.restored_prefixes,
    "unified": lambda stats: stats.guessed_right,
    "crowded": lambda stats: stats.preemptions,
    "small-batches": lambda stats: stats.cached_tokens,
    "shifted": lambda stats: stats.context_shifts,
    "shifted-unified": lambda stats: stats.context_shifts,
    "draft-model": lambda stats: stats.guessed_right,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_text_depends_on_other_requests(path: Path, layout: str) -> None:
    differing, engine = run(path, layout, COUNT, SEED)
    again = f"python -m tests.engine.random_requests --layout {layout} --seed {SEED}"
    assert not differing, "\n".join([f"repeat with: {again}", *differing])
    assert MET[layout](engine.stats()) > 0
