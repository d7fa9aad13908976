"""Jobs next to llama_decode: in order, ended before the engine thread goes on, whatever they do."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cllm.engine import Engine
from cllm.engine.scheduling.overlap import Overlap
from tests.engine.engine_helpers import WAIT, Loader, greedy, streaming


@pytest.fixture
def overlap() -> Iterator[Overlap]:
    overlap = Overlap()
    yield overlap
    overlap.close()


def test_jobs_run_in_their_order_on_a_thread_of_their_own(overlap: Overlap) -> None:
    done = list[tuple[int, str]]()

    def job(number: int) -> None:
        done.append((number, threading.current_thread().name))

    overlap.start([lambda: job(1), lambda: job(2)])
    overlap.wait()
    assert done == [(1, "cllm-overlap"), (2, "cllm-overlap")]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_job_that_raises_stops_neither_the_next_nor_the_thread(
    overlap: Overlap, error: type[BaseException]
) -> None:
    done = list[int]()

    def fails() -> None:
        raise error

    for _ in range(2):
        overlap.start([fails, lambda: done.append(1)])
        overlap.wait()
    assert done == [1, 1]


def test_a_job_learns_that_the_engine_thread_waits(overlap: Overlap) -> None:
    begun, seen = threading.Event(), list[bool]()

    def job() -> None:
        seen.append(overlap.hurry)
        begun.set()
        while not overlap.hurry:
            pass
        seen.append(overlap.hurry)

    for _ in range(2):
        begun.clear()
        overlap.start([job])
        assert begun.wait(WAIT)
        overlap.wait()
    assert seen == [False, True] * 2


def test_without_a_thread_the_jobs_are_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    overlap, done = Overlap(), list[str]()
    overlap.start([lambda: done.append(threading.current_thread().name)])
    assert done == [threading.current_thread().name]
    overlap.wait()
    overlap.close()


def test_clients_hear_of_a_token_while_the_next_step_is_computed(load: Loader) -> None:
    engine: Engine = load(parallel=2, ctx_size=256)
    heard, ended = list[str](), threading.Event()

    def on_update() -> None:
        heard.append(threading.current_thread().name)
        if other.done:
            ended.set()

    with streaming(engine, 1, lambda engine: 0):
        other = engine.submit("Hello", greedy(4), on_update=on_update)
    assert ended.wait(WAIT)
    assert heard == ["cllm-overlap"] * 4
