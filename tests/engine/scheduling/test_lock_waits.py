"""The interpreter's switch interval is short while an engine works, and as before otherwise."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from cllm.engine import Engine
from cllm.engine.scheduling.lock_waits import lock_waits
from tests.engine.engine_helpers import greedy
from tests.random_model import random_path


@pytest.fixture(autouse=True)
def usual() -> Iterator[float]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.004)
    yield 0.004
    sys.setswitchinterval(before)


def test_it_is_short_while_a_request_runs_and_as_before_afterwards(usual: float) -> None:
    found = set[float]()
    with Engine.load(random_path(), parallel=2, ctx_size=256) as engine:
        for _ in range(2):
            params = greedy(8)
            engine.submit(
                "a b c", params, on_update=lambda: found.add(sys.getswitchinterval())
            ).result()
    assert found == {0.001}
    assert sys.getswitchinterval() == usual


def test_the_last_of_several_engines_restores_it(usual: float) -> None:
    lock_waits.shorten()
    lock_waits.shorten()
    lock_waits.restore()
    assert sys.getswitchinterval() == 0.001
    lock_waits.restore()
    assert sys.getswitchinterval() == usual


def test_a_shorter_one_stays() -> None:
    sys.setswitchinterval(0.0005)
    lock_waits.shorten()
    assert sys.getswitchinterval() == 0.0005
    lock_waits.restore()
    assert sys.getswitchinterval() == 0.0005


def test_one_that_the_program_sets_meanwhile_stays() -> None:
    lock_waits.shorten()
    sys.setswitchinterval(0.02)
    lock_waits.restore()
    assert sys.getswitchinterval() == 0.02


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_has_the_usual_one_and_shortens_it_for_its_own_engines(usual: float) -> None:
    lock_waits.shorten()
    with lock_waits._lock:  # by another thread, as the engine thread may
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        found = [sys.getswitchinterval()]
        lock_waits.shorten()
        found.append(sys.getswitchinterval())
        lock_waits.restore()
        found.append(sys.getswitchinterval())
        os._exit(found != [usual, 0.001, usual])
    lock_waits.restore()
    assert os.waitpid(child, 0)[1] == 0
