"""The threads that compute a step: set in llama.cpp, counted, logged, or fixed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface
import pytest

from cllm.engine import Engine
from cllm.engine.config import EngineConfig
from cllm.engine.loading.loading import Loaded, load
from cllm.engine.machine.processors import ProcessorWatch
from cllm.engine.scheduling.thread_policy import Shape
from cllm.engine.scheduling.threads import Threads
from cllm.engine.stats import EngineStats

STEP = Shape(sequences=8, generating=8, tokens=8)


class Clock:
    """Time that goes on when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watch(ProcessorWatch):
    """Of two CPUs; what others leave is what the test says."""

    left = 2.0
    cpus = 2
    works = True

    def spare(self) -> float:
        return self.left


class Rig:
    """Threads around real contexts, and steps that take as long as the test says."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.clock = Clock()
        self.stats = EngineStats()
        self.seconds = {1: 0.06, 2: 0.03}
        self.on_trial = 0  # steps
        self.watch = Watch()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{Threads.__module__}.ProcessorWatch", lambda: self.watch)
            self.threads = Threads(loaded.contexts, loaded.info.context, self.stats, self.clock)

    def step(self) -> tuple[int, bool]:
        """The threads of a step, as the policy chose them, and whether it was a usual one."""
        self.threads.prepare(STEP)
        if self.threads.is_due:
            self.threads.look()
        count = self.in_force()[0][1]
        took = self.seconds[count]
        self.clock.now += took
        usual = self.threads.learn(STEP, took)
        self.on_trial += not usual
        return count, usual

    def run(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.step()

    def in_force(self) -> list[tuple[int, int]]:
        """What each context computes with: one token, several."""
        handles = [context._handle for context in self.loaded.contexts]
        return [(C.llama_n_threads(h), C.llama_n_threads_batch(h)) for h in handles]

    def next_to_others(self) -> None:
        self.watch.left = 1.0
        self.seconds = {1: 0.06, 2: 0.12}

    def alone(self) -> None:
        self.watch.left = 2.0
        self.seconds = {1: 0.06, 2: 0.03}


@pytest.fixture
def rig(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr("cllm.engine.layout.layout.physical_cores", lambda: 2)
    config = EngineConfig(parallel=2, ctx_size=64, model_draft=str(model_path))
    loaded = load(model_path, config, None, None)
    try:
        yield Rig(loaded)
    finally:
        loaded.close()


def test_fewer_threads_while_others_need_the_cores_and_all_again_afterwards(rig: Rig) -> None:
    rig.run(5)
    assert rig.in_force() == [(2, 2), (2, 2)]
    assert (rig.stats.threads, rig.stats.threads_limit, rig.stats.thread_changes) == (2, 2, 0)
    rig.next_to_others()
    rig.run(10)
    assert (rig.stats.threads, rig.stats.thread_changes, rig.stats.cores_left) == (1, 1, 1.0)
    assert rig.in_force() == [(1, 1), (1, 1)]  # the draft model's context too
    rig.alone()
    rig.run(10)
    assert (rig.stats.threads, rig.stats.thread_changes) == (2, 2)
    assert rig.in_force() == [(2, 2), (2, 2)]


def test_steps_on_trial_are_not_usual_ones(rig: Rig) -> None:
    rig.next_to_others()
    rig.clock.now += 2
    steps = [rig.step() for _ in range(30)]
    first = steps.index((1, False))
    assert all(usual for _, usual in steps[:first])
    assert steps[-1] == (1, True)


def test_what_others_used_while_the_engine_rested_does_not_count(rig: Rig) -> None:
    rig.run(5)
    for seconds in (0.2, 1.0, 30.0):
        rig.threads.rest()
        rig.clock.now += seconds / 2
        rig.threads.rest()  # woken without work
        rig.clock.now += seconds / 2
        rig.watch.left = 0.3  # until the next reading
        rig.step()
        rig.watch.left = 2.0
        rig.run(5)
    assert (rig.stats.threads, rig.stats.thread_changes, rig.stats.cores_left) == (2, 0, 2.0)
    assert rig.on_trial == 0, "not even a step with fewer threads"


def test_short_rests_do_not_hide_what_others_use(rig: Rig) -> None:
    rig.next_to_others()
    for _ in range(60):
        rig.run(0.2)
        rig.threads.rest()
        rig.clock.now += 0.02
    assert (rig.stats.threads, rig.stats.cores_left) == (1, 1.0)


def test_the_first_steps_use_all_threads_until_others_have_been_measured(rig: Rig) -> None:
    for _ in range(4):
        rig.threads.prepare(STEP)
        assert rig.in_force()[0] == (2, 2)
        assert rig.threads.learn(STEP, 3.0)


def test_a_change_is_logged_at_most_once_a_minute(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cllm.engine")
    for _ in range(6):
        rig.next_to_others()
        rig.run(10)
        rig.alone()
        rig.run(10)
    rig.run(120)
    lines = [r.getMessage() for r in caplog.records if "threads" in r.getMessage()]
    assert 2 <= len(lines) <= 4
    cores = rig.stats.cores
    assert lines[0] == f"using 1 of 2 threads: other programs leave 1.0 of {cores} cores"
    assert lines[-1] == (f"using 2 of 2 threads again: other programs leave 2.0 of {cores} cores")


def test_numbers_that_are_given_stay(model_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {"threads": 2},
        {"threads_batch": 2},
        {"threads": 2, "threads_batch": 1},
    ]
    for given in settings:
        config = EngineConfig(parallel=1, ctx_size=64, **given)
        loaded = load(model_path, config, None, None)
        try:
            assert not loaded.info.context.threads_adapt
            rig = Rig(loaded)
            before = rig.in_force()
            rig.seconds = dict.fromkeys(range(1, 513), 0.1)
            rig.watch.left = 0.0
            rig.run(30)
            assert rig.in_force() == before
            assert rig.stats.thread_changes == 0
        finally:
            loaded.close()


def test_the_engine_tells_what_is_in_force(model_path: Path) -> None:
    with Engine.load(model_path, parallel=1, ctx_size=64, threads=3) as engine:
        engine.generate("Once", max_tokens=3)
        stats = engine.stats()
        assert (stats.threads, stats.threads_limit) == (3, 3)
        assert 0.0 <= stats.cores_left <= stats.cores
    with Engine.load(model_path, parallel=1, ctx_size=64) as engine:
        assert engine.info().context.threads_adapt
