"""Ctrl-C at any moment of a call leaves an engine that serves other threads and can close."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import pytest

from cllm.engine import Constraint, ConstraintPending, Engine
from cllm.engine.assembly import release
from cllm.engine.llama import backend
from tests.ctrl_c import pressed_at
from tests.engine.engine_helpers import WAIT, Loader, Watched, finished, greedy
from tests.random_model import random_path

pytestmark = pytest.mark.usefixtures("ctrl_c")


def tokenized(engine: Engine, _: int) -> None:
    engine.tokenize("Hello")


def generated(engine: Engine, _: int) -> None:
    engine.submit([3, 4], greedy(1))


def cancelled(engine: Engine, _: int) -> None:
    engine.submit([3, 4], greedy(None)).cancel()


def streamed(engine: Engine, _: int) -> None:
    list(engine.stream([3, 4], max_tokens=2))


def compiled(engine: Engine, number: int) -> None:
    wait = threading.current_thread() is not threading.main_thread()
    with suppress(ConstraintPending):
        engine.check_constraint(Constraint("regex", f"{number}"), wait=wait)


@pytest.mark.parametrize(
    ("call", "stride"),
    [(tokenized, 1), (generated, 1), (cancelled, 1), (streamed, 3), (compiled, 1)],
)
def test_ctrl_c_at_any_moment_harms_no_other_request(
    load: Loader, call: Callable[[Engine, int], None], stride: int
) -> None:
    engine = load(parallel=2, ctx_size=128, max_queue=1000)
    other = Watched(engine, [5, 6], greedy(None))
    with ThreadPoolExecutor(1) as pool:
        for place in count(1, stride):
            if not pressed_at(place, partial(call, engine, place)):
                break
            pool.submit(call, engine, place).result(WAIT)
        last = pool.submit(engine.submit, "Hello", greedy(3)).result(WAIT)
        assert finished(last).usage.completion_tokens == 3
    assert finished(other.generation).finish_reason == "length"
    assert engine.healthy


def test_ctrl_c_while_a_request_is_queued_ends_it(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(parallel=2, ctx_size=512)
    other = Watched(engine, [5, 6], greedy(100))
    changed = engine._scheduler._inbox._changed
    notify = changed.notify

    def press() -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        notify()

    monkeypatch.setattr(changed, "notify", press)
    with pytest.raises(KeyboardInterrupt):
        engine.submit([3, 4], greedy(None))
    assert finished(other.generation).usage.completion_tokens == 100
    other.wait_until(lambda: engine.stats().requests_finished.get("cancelled") == 1)


def test_ctrl_c_while_llama_cpp_logs_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    pressed = list[bytes | None]()

    def press(_: Any, level: int, text: bytes | None, data: object) -> None:
        if not pressed and b"llama_context:" in (text or b""):
            pressed.append(text)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(type(backend.log_router), "__call__", press)
    with pytest.raises(KeyboardInterrupt):
        Engine.load(random_path(), parallel=1, ctx_size=64).close()
    assert pressed


def test_after_ctrl_c_in_close_the_next_call_frees_the_model(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(parallel=1, ctx_size=128)
    runner, main = engine._scheduler, threading.get_ident()
    begun, stopping, pressed, go_on = (threading.Event() for _ in range(4))
    stop, freed = runner.stop, list[None]()
    close = runner._context.close
    monkeypatch.setattr(runner._context, "close", lambda: freed.append(close()))

    def stopped() -> None:
        stop()
        stopping.set()

    def hold() -> None:  # on the engine thread
        begun.set()
        assert stopping.wait(WAIT)
        if not pressed.is_set():
            pressed.set()
            # Python would notice it only later between its last look for signals and the wait.
            while sys._current_frames()[main].f_code is not release.__code__:
                time.sleep(0.001)
            time.sleep(0.05)
            signal.pthread_kill(main, signal.SIGINT)
        go_on.wait(WAIT)

    monkeypatch.setattr(runner, "stop", stopped)
    generation = engine.submit([3, 4], greedy(None), on_update=hold)
    assert begun.wait(WAIT)
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    assert not freed
    go_on.set()
    engine.close()
    assert freed
    assert generation.done
    assert not [each for each in threading.enumerate() if each is engine._thread]
