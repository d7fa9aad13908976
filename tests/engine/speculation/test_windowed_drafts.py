"""Sliding-window models: drafts, accepted or rejected, change no text."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine
from cllm.engine.speculation.drafter import Drafter
from tests.engine.engine_helpers import PRECISE, Loader, finished, greedy
from tests.engine.engine_models import write_windowed

pytestmark = pytest.mark.usefixtures("steady_costs")

N_ANSWER = 60


@pytest.fixture(scope="module")
def path(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "windowed.gguf"
    write_windowed(model_path, target)
    return target


def prompts(rng: random.Random) -> list[list[int]]:
    """Some begin as others do, before or after the window of 32 tokens ends."""
    made = [rng.choices(range(20, 300), k=rng.randint(5, 120)) for _ in range(4)]
    for _ in range(12):
        old = rng.choice(made)
        made.append(old[: rng.randint(1, len(old))] + rng.choices(range(300, 420), k=5))
    return made


def answers(engine: Engine, asked: list[list[int]]) -> list[list[int]]:
    params = greedy(N_ANSWER, record_tokens=True)
    together = [engine.submit(prompt, params) for prompt in asked]
    for generation in together:
        finished(generation)
    return [[record.token for record in generation.take_tokens()] for generation in together]


@pytest.mark.parametrize(
    "config",
    [{}, {"kv_unified": True}, {"kv_unified": True, "kv_cells": 400}, {"ubatch_size": 12}],
)
def test_right_and_wrong_drafts_change_no_answer(
    load: Loader, path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    rng = random.Random(1)
    asked = prompts(rng)
    alone = load(path, **PRECISE, parallel=1, ctx_size=256, draft_max=0, cache_ram=0)
    expected = answers(alone, asked)
    known = [prompt + answer for prompt, answer in zip(asked, expected, strict=True)]

    def draft(self: Drafter, tokens: array[int], limit: int, cost: float) -> list[int]:
        length = len(tokens)
        text = next(text for text in known if text[:length] == tokens.tolist())
        drafted = text[length : length + limit][: rng.randint(1, 20)]
        if drafted and rng.random() < 0.5:
            drafted[rng.randrange(len(drafted))] = 7
        return drafted

    monkeypatch.setattr(Drafter, "chances", lambda self, tokens, limit, *_: [0.99] * limit)
    monkeypatch.setattr(Drafter, "draft", draft)
    engine = load(path, **PRECISE, parallel=4, ctx_size=256, **config)
    assert answers(engine, asked) == expected
    stats = engine.stats()
    assert 0 < stats.guessed_right < stats.guessed_tokens and stats.failed_decodes == 0


@pytest.mark.parametrize("unified", [False, True])
def test_a_draft_model_with_a_window_drafts_for_one(
    load: Loader, path: Path, unified: bool
) -> None:
    asked = prompts(random.Random(2))
    alone = load(path, **PRECISE, parallel=1, ctx_size=256, draft_max=0, cache_ram=0)
    expected = answers(alone, asked)
    engine = load(
        path, **PRECISE, parallel=4, ctx_size=256, kv_unified=unified, model_draft=str(path)
    )
    assert answers(engine, asked) == expected
    stats = engine.stats()
    assert stats.draft_s > 0 and stats.guessed_right > stats.guessed_tokens // 4
