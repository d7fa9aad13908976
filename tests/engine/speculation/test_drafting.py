"""Speculation with a draft model: texts stay the same, and it pays or stops."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, SamplingParams
from cllm.engine.speculation.draft_model import DraftModel
from cllm.engine.speculation.drafter import AcceptanceRate
from cllm.engine.speculation.drafting import DraftPolicy
from cllm.engine.speculation.speculation import Speculation
from scripts.bench.models.deeper import write_deeper
from tests.engine.engine_helpers import Loader, Watched, break_decode, finished, greedy
from tests.engine.engine_models import write_shuffled

COUNT = 50  # tokens
LAYERS = 12  # that the main model has on top: drafting costs a quarter of a step

SMALL: dict[str, Any] = {"parallel": 1, "ctx_size": 512, "threads": 1}
# Of different lengths, and nothing in them stands there twice.
PROMPTS = [
    "Once",
    "The river runs and the letter says",
    "Who asked for home again? " + "".join(map(chr, range(33, 90))),
    "你好, men of the world: " + "".join(map(chr, range(90, 33, -1))) * 2,
]
# Penalties keep a text from repeating itself, so that the draft model is asked all the time.
WANDERING: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.3, "ignore_eos": True}


@pytest.fixture(scope="module")
def deep_path(memoryless_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says what the memoryless model says, and takes its time."""
    path = tmp_path_factory.mktemp("models") / "deep.gguf"
    write_deeper(memoryless_path, path, LAYERS)
    return path


@pytest.fixture(scope="module")
def other_path(memoryless_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the same vocabulary and says other things."""
    path = tmp_path_factory.mktemp("models") / "other.gguf"
    write_shuffled(memoryless_path, path)
    return path


@pytest.fixture
def expected(load: Loader, deep_path: Path) -> list[str]:
    """What PROMPTS go on with without drafts."""
    return texts(load(deep_path, **SMALL, draft_max=0))


@pytest.fixture
def load_both(load: Loader, deep_path: Path, memoryless_path: Path, steady_costs: None) -> Loader:
    """Loads the deep model with another beside it: one that says the same, if none is given."""

    def loader(draft: Path = memoryless_path, **config: Any) -> Engine:
        return load(deep_path, **{**SMALL, "model_draft": str(draft), **config})

    return loader


def draft_of(engine: Engine) -> DraftModel:
    speculation = engine._scheduler._planner._speculation
    assert isinstance(speculation, Speculation) and speculation._drafting is not None
    return speculation._drafting._model


def texts(engine: Engine, prompts: list[str] = PROMPTS) -> list[str]:
    params = SamplingParams(max_tokens=COUNT, **WANDERING)
    generations = [engine.submit(prompt, params) for prompt in prompts]
    return [finished(generation).text for generation in generations]


# Policy.


def test_a_draft_model_that_does_not_pay_takes_a_50th_of_the_time() -> None:
    policy, rate = DraftPolicy(share=0.1), AcceptanceRate()
    for _ in range(10):
        rate.observe(4, 0)
    elapsed = spent = 0.0
    asked = 0
    for _ in range(10_000):
        step_s = 0.01
        assert policy.length([rate], 0.0, 0.2) == 0
        if policy.save_up(step_s):
            policy.spend(0.005)
            spent += 0.005
            asked += 1
        elapsed += step_s
    assert asked > 100, "it may come to pay"
    assert spent <= elapsed / 50 + 0.005


def test_new_sequences_begin_with_the_acceptance_rate_of_the_others() -> None:
    policy = DraftPolicy(share=0.1)
    assert policy.length([AcceptanceRate(shared=policy.shared_rate)], 0.0, 0.1) > 0
    for _ in range(20):
        sequence = AcceptanceRate(shared=policy.shared_rate)
        for _ in range(5):
            sequence.observe(3, 0)
    assert policy.length([AcceptanceRate(shared=policy.shared_rate)], 0.0, 0.1) == 0
    for _ in range(100):
        sequence.observe(3, 3)
    assert policy.length([AcceptanceRate(shared=policy.shared_rate)], 0.0, 0.1) > 2


def test_drafts_are_longer_where_they_are_accepted_and_shorter_where_the_model_is_slow() -> None:
    good, doubtful = AcceptanceRate(), AcceptanceRate()
    for _ in range(10):
        good.observe(4, 4)
        doubtful.observe(4, 1)
    quick, slow = DraftPolicy(share=0.05), DraftPolicy(share=0.4)
    assert quick.length([good], 0.0, 0.1) > quick.length([doubtful], 0.0, 0.1) > 0
    assert quick.length([good], 0.0, 0.1) > slow.length([good], 0.0, 0.1) > 0
    assert slow.length([good], 0.0, 0.7) == 0
    assert quick.length([doubtful], 1.0, 0.1) == 0, "what any draft costs counts too"
    together = quick.length([good, doubtful], 0.0, 0.1)
    assert quick.length([good], 0.0, 0.1) > together > quick.length([doubtful], 0.0, 0.1)


def test_what_a_round_takes_is_measured_and_one_delay_changes_little() -> None:
    rate = AcceptanceRate()
    policy = DraftPolicy(share=0.9)
    assert policy.length([rate], 0.0, 0.2) == 0
    for _ in range(20):
        policy.note_rounds(4, 0.004, step_s=0.01)
    usual = policy.length([rate], 0.0, 0.2)
    assert usual > 0
    policy.note_rounds(4, 4.0, step_s=0.01)
    assert policy.length([rate], 0.0, 0.2) >= usual - 1


def test_reading_adds_no_more_than_a_step_to_a_step() -> None:
    policy = DraftPolicy(share=0.1)
    for _ in range(20):
        policy.note_read(100, 0.01)
    assert policy.reading(step_s=0.02) == pytest.approx(200, abs=1)


# What is generated.


@pytest.mark.parametrize("unified", [False, True])
def test_accepted_drafts_save_steps(load_both: Loader, unified: bool) -> None:
    engine = load_both(kv_unified=unified)
    finished(engine.submit("x", greedy(4)))  # a plain step must have been measured
    before = engine.stats().steps
    generation = engine.submit(PROMPTS[1], greedy(12))
    finished(generation)
    assert generation.guessed_right > 0
    assert engine.stats().steps - before < 12
    assert engine.stats().draft_s > 0


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 0.7, "seed": 11},
        {"temperature": 0, "repetition_penalty": 1.2},
        {"temperature": 0.2, "seed": 5, "record_tokens": True},
    ],
)
def test_the_text_is_the_same_with_and_without(
    load: Loader,
    load_both: Loader,
    deep_path: Path,
    memoryless_path: Path,
    other_path: Path,
    params: dict[str, Any],
    right: bool,
) -> None:
    plain = load(deep_path, **SMALL, draft_max=0)
    engine = load_both(memoryless_path if right else other_path)
    engine.generate("x", max_tokens=4)
    wanted = SamplingParams(max_tokens=60, ignore_eos=True, **params)
    for prompt in PROMPTS[1:]:
        without = finished(plain.submit(prompt, wanted)).text
        assert finished(engine.submit(prompt, wanted)).text == without
    assert engine.stats().draft_s > 0


def test_a_model_whose_drafts_are_rejected_hardly_runs(
    load_both: Loader, other_path: Path, expected: list[str]
) -> None:
    engine = load_both(other_path, parallel=4)
    for _ in range(3):
        assert texts(engine) == expected
    stats = engine.stats()
    assert 0 < stats.guesses < stats.steps
    assert stats.guessed_tokens < stats.completion_tokens / 2


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("batch", [8, 512])
def test_sequences_of_different_lengths_draft_side_by_side(
    load_both: Loader, expected: list[str], unified: bool, batch: int
) -> None:
    engine = load_both(parallel=4, kv_unified=unified, batch_size=batch, ubatch_size=batch)
    assert texts(engine) == expected
    assert texts(engine) == expected, "with what is left in the caches"
    assert engine.stats().guessed_right > 0


def test_prompts_with_a_common_beginning_draft_side_by_side(
    load: Loader, load_both: Loader, deep_path: Path
) -> None:
    prompts = [PROMPTS[3] + PROMPTS[2] + end for end in ("a", "b", " the", "!")]
    expected = texts(load(deep_path, **SMALL, draft_max=0), prompts=prompts)
    engine = load_both(parallel=3)
    assert texts(engine, prompts=prompts) == expected
    stats = engine.stats()
    assert stats.cached_tokens > 0 and stats.guessed_right > 0


def test_requests_that_come_and_go_are_not_confused(load_both: Loader, expected: list[str]) -> None:
    rng = random.Random(1)
    engine = load_both(parallel=3)
    pending = []
    for _ in range(24):
        which, count = rng.randrange(len(PROMPTS)), rng.randint(1, COUNT)
        params = SamplingParams(max_tokens=count, **WANDERING)
        pending.append((which, Watched(engine, PROMPTS[which], params)))
        if rng.random() < 0.4:
            leaving = rng.choice(pending)[1]
            leaving.wait_for_tokens(1)
            leaving.generation.cancel()
    for which, watched in pending:
        assert expected[which].startswith(finished(watched.generation).text)
    assert texts(engine) == expected
    assert engine.stats().guessed_right > 0


def test_preempted_sequences_go_on_with_the_same_text(
    load_both: Loader, expected: list[str]
) -> None:
    engine = load_both(parallel=4, ctx_size=256, kv_unified=True, kv_cells=256)
    assert texts(engine) == expected
    stats = engine.stats()
    assert stats.preemptions > 0 and stats.draft_s > 0


def test_no_room_at_any_step_changes_no_text(load_both: Loader, expected: list[str]) -> None:
    engine = load_both(parallel=3)

    def now_and_then() -> Iterator[int]:
        rng = random.Random(1)
        while True:
            yield int(engine.stats().slots_busy > 1 and rng.random() < 0.2)

    break_decode(engine, now_and_then())
    assert texts(engine) == expected
    assert engine.stats().draft_s > 0


def test_a_draft_model_that_fails_costs_nobody_anything(
    load_both: Loader, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = load_both(parallel=2)
    draft = draft_of(engine)
    draft._context.decode = lambda batch, count: -3  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR, "cllm.engine"):
        assert texts(engine) == expected
    assert draft.broken
    assert [r.message for r in caplog.records if "draft model" in r.message] != []
    assert engine.stats().failed_decodes == 0
