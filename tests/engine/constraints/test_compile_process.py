"""If compiling a constraint kills or stalls the child, the engine refuses it and goes on."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import (
    CompilerUnavailable,
    Constraint,
    ConstraintPending,
    Engine,
    EngineClosed,
    InvalidRequest,
    QueueFull,
    SamplingParams,
)
from cllm.engine.constraints import compile_process, grammars
from cllm.engine.constraints.constraint import Kind
from tests.engine.engine_helpers import WAIT, finished, greedy
from tests.planted_child import planted
from tests.random_model import random_path

# Both bounds become -2^63 in llguidance 1.9.1, which then overflows its stack.
CRASH = '{"type": "integer", "minimum": -9223372036854775808, "maximum": -9223372036854775807}'


@pytest.fixture(scope="module")
def doomed() -> Iterator[Engine]:
    """An engine whose children die of marked constraints."""
    with planted(), Engine.load(random_path(), parallel=4, ctx_size=512) as loaded:
        yield loaded


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the time."""
    monkeypatch.setattr(grammars, "PATIENT_S", 0.5)
    monkeypatch.setattr(grammars, "QUICK_S", 0.25)


def marked(mark: str, number: int = 0) -> Constraint:
    return Constraint("regex", f"{mark} {number}")


def child_of(engine: Engine) -> int:
    pid = engine._grammars._lanes[0].process.pid
    assert pid is not None
    return pid


def test_what_crashes_llguidance_does_not_crash_the_engine(engine: Engine) -> None:
    other = engine.submit("Hello", greedy(40))
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="the compiler crashed, SIGSEGV; simplify it"):
            engine.check_constraint(Constraint("lark", f"start: %json {CRASH}"))
    assert finished(other).usage.completion_tokens == 40
    params = SamplingParams(constraint=Constraint("regex", "still (here|there)"))
    assert finished(engine.submit("Hello", params)).text.startswith("still ")


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        ("planted-crash", "the compiler crashed, SIGSEGV"),
        ("planted-spin", "compiling it takes more than 0.5 s"),
        ("planted-stall", "compiling it takes more than 0.5 s"),
        ("planted-growth", "compiling it needs more than 384 MiB"),
        ("planted-kill", "the compiler was killed for memory"),
        ("planted-exit", "the compiler crashed, exit status 3"),
        ("planted-panic", "the compiler failed, BaseException: a panic"),
    ],
)
@pytest.mark.usefixtures("hurried")
def test_a_child_that_dies_costs_the_constraint_alone(
    doomed: Engine, mark: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mark == "planted-stall":  # needs no processor, which others may use
        monkeypatch.setattr(compile_process, "_WALL", 1.0)
    for kind, source in (
        ("regex", mark),
        ("gbnf", f'root ::= "{mark}"'),
        ("json_schema", {"const": mark}),
        ("lark", f'start: "{mark}"'),
    ):
        with pytest.raises(InvalidRequest, match=f"{reason}; simplify it") as caught:
            doomed.check_constraint(Constraint(kind, source))  # type: ignore[arg-type]
        assert caught.value.field == kind
    doomed.check_constraint(Constraint("regex", f"after {mark.removeprefix('planted-')}"))


def test_a_verdict_is_remembered(doomed: Engine) -> None:
    for _ in range(3):
        with pytest.raises(InvalidRequest, match="crashed"):
            doomed.check_constraint(marked("planted-crash", 7))
    before = doomed.stats()
    with pytest.raises(InvalidRequest, match="crashed"):
        doomed.check_constraint(marked("planted-crash", 7))
    after = doomed.stats()
    assert after.constraint_deaths == before.constraint_deaths
    assert after.constraints_refused == before.constraints_refused + 1


def test_a_child_that_died_idle_is_replaced(doomed: Engine) -> None:
    doomed.check_constraint(Constraint("regex", "idle 0"))
    before = child_of(doomed)
    os.kill(before, signal.SIGKILL)
    doomed.check_constraint(Constraint("regex", "idle 1"))
    assert child_of(doomed) != before


def hold(tmp_path: Path, name: str) -> tuple[Constraint, Path]:
    """A constraint that is being compiled until the pipe is opened and closed."""
    pipe = tmp_path / name
    os.mkfifo(pipe)
    return Constraint("json_schema", {"const": f"planted-hold:{pipe}:"}), pipe


def test_who_does_not_wait_is_told_when_to_come_back(doomed: Engine, tmp_path: Path) -> None:
    held, pipe = hold(tmp_path, "held")
    with pytest.raises(ConstraintPending) as first:
        doomed.check_constraint(held, wait=False)
    with pytest.raises(ConstraintPending) as second:
        doomed.check_constraint(held, wait=False)
    assert first.value.settled is second.value.settled, "compiled once for all who ask"
    let_go(first.value.settled, pipe)
    doomed.check_constraint(held, wait=False)


@pytest.mark.usefixtures("unhurried")
def test_two_that_come_together_are_compiled_side_by_side(doomed: Engine, tmp_path: Path) -> None:
    for round_ in range(5):
        pending = []
        with doomed._grammars._changed:  # the lanes look when both are there, in any order
            for number in range(2):
                held, pipe = hold(tmp_path, f"together-{round_}-{number}")
                with pytest.raises(ConstraintPending) as caught:
                    doomed.check_constraint(held, wait=False)
                pending.append((caught.value.settled, pipe))
        opened = [opened_by_child(pipe) for _, pipe in pending]
        for descriptor in opened:
            os.close(descriptor)
        for settled, _ in pending:
            settled.result(WAIT)


@pytest.mark.usefixtures("unhurried")
def test_while_one_is_compiled_others_are(doomed: Engine, tmp_path: Path) -> None:
    held, pipe = hold(tmp_path, "slow")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(doomed.check_constraint, held)
        pipe_is_open = opened_by_child(pipe)
        for number in range(5):
            doomed.check_constraint(Constraint("regex", f"meanwhile {number}"))
        assert not waiting.done()
        os.close(pipe_is_open)
        waiting.result(WAIT)


def opened_by_child(pipe: Path) -> int:
    """Opens once the child reads: from then on it is busy with this."""
    limit = time.monotonic() + WAIT
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > limit:
                raise
        time.sleep(0.002)


def let_go(settled: Future[Any], pipe: Path) -> None:
    """Let the child finish with what it holds; another one may, if the first was given up."""
    limit = time.monotonic() + WAIT
    while not settled.done():
        assert time.monotonic() < limit
        with contextlib.suppress(OSError):
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(0.002)
    settled.result(0)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lane gives a constraint up, however slow the machine is."""
    monkeypatch.setattr(grammars, "QUICK_S", 4 * WAIT)
    monkeypatch.setattr(grammars, "PATIENT_S", 4 * WAIT)


def test_many_that_hang_do_not_keep_a_good_one_from_its_turn(
    doomed: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "QUICK_S", 0.5)
    monkeypatch.setattr(grammars, "PATIENT_S", 4 * WAIT)  # longer than the test may take
    hanging = []
    for number in range(4):
        held, pipe = hold(tmp_path, f"hangs-{number}")
        with pytest.raises(ConstraintPending) as caught:
            doomed.check_constraint(held, wait=False)
        hanging.append((caught.value.settled, pipe))
    doomed.check_constraint(Constraint("regex", "after four that hang"))
    assert not any(settled.done() for settled, _ in hanging)
    # All at once: either lane may have taken the first one.
    with ThreadPoolExecutor(len(hanging)) as pool:
        for done in [pool.submit(let_go, *each) for each in hanging]:
            done.result(WAIT)


@pytest.mark.usefixtures("unhurried")
def test_the_queue_is_bounded(tmp_path: Path) -> None:
    with planted(), Engine.load(random_path(), parallel=1, ctx_size=256) as engine:
        held, pipe = hold(tmp_path, "first")
        also, other = hold(tmp_path, "second")
        for each in (held, also):
            with pytest.raises(ConstraintPending):
                engine.check_constraint(each, wait=False)
        busy = [opened_by_child(pipe), opened_by_child(other)]  # both lanes
        for number in range(grammars.MAX_WAITING):
            with pytest.raises(ConstraintPending):
                engine.check_constraint(Constraint("regex", f"{number}"), wait=False)
        with pytest.raises(QueueFull):
            engine.check_constraint(Constraint("regex", "one too many"))
        for descriptor in busy:
            os.close(descriptor)
        engine.check_constraint(Constraint("regex", "63"))


@pytest.mark.usefixtures("unhurried")
def test_a_full_queue_makes_room_for_another_tenant_and_for_those_who_leave(tmp_path: Path) -> None:
    with planted(), Engine.load(random_path(), parallel=1, ctx_size=256) as engine:
        held, pipe = hold(tmp_path, "first")
        also, other = hold(tmp_path, "second")
        for each in (held, also):
            with pytest.raises(ConstraintPending):
                engine.check_constraint(each, wait=False)
        busy = [opened_by_child(pipe), opened_by_child(other)]  # both lanes
        pending = []
        for number in range(grammars.MAX_WAITING):
            with pytest.raises(ConstraintPending) as caught:
                engine.check_constraint(Constraint("regex", f"{number}"), wait=False, tenant="many")
            pending.append(caught.value)
        with pytest.raises(ConstraintPending):
            engine.check_constraint(Constraint("regex", "few"), wait=False, tenant="few")
        with pytest.raises(QueueFull):
            pending[-1].settled.result(WAIT)
        with pytest.raises(QueueFull):
            engine.check_constraint(Constraint("regex", "one more"), wait=False, tenant="many")
        pending[0].leave()
        assert pending[0].settled.cancelled()
        with pytest.raises(ConstraintPending):
            engine.check_constraint(Constraint("regex", "one more"), wait=False, tenant="many")
        for descriptor in busy:
            os.close(descriptor)
        engine.check_constraint(Constraint("regex", "62"))
        # Neither has left a trace: both are compiled when they are asked for again.
        engine.check_constraint(Constraint("regex", "63"))
        engine.check_constraint(Constraint("regex", "0"))


@pytest.mark.usefixtures("unhurried")
def test_closing_ends_the_children_and_those_who_wait(tmp_path: Path) -> None:
    before = threading.active_count()
    with planted(), ThreadPoolExecutor(1) as pool:
        engine = Engine.load(random_path(), parallel=1, ctx_size=256)
        held, pipe = hold(tmp_path, "never")
        waiting = pool.submit(engine.check_constraint, held)
        opened = opened_by_child(pipe)
        child = child_of(engine)
        engine.close()
        with pytest.raises(EngineClosed):
            waiting.result(WAIT)
        os.close(opened)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert threading.active_count() == before


PROGRAM = """
import select, signal, sys
from cllm.engine import Constraint, Engine
from tests.random_model import random_path
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell ignores it
engine = Engine.load(random_path(), parallel=1, ctx_size=256)
engine.check_constraint(Constraint("regex", "abc"))
print(engine._grammars._lanes[0].process.pid, flush=True)
while not select.select([sys.stdin], [], [], 0.1)[0]:
    pass  # a signal just before a call does not interrupt it, but is seen after it
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, None])
def test_a_child_ends_with_the_program(end: signal.Signals | None) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdin is not None and program.stdout is not None
    assert select.select([program.stdout], [], [], WAIT)[0]
    child = os.pidfd_open(int(program.stdout.readline()))
    if end is None:
        program.stdin.close()
    else:
        program.send_signal(end)
    program.wait(WAIT)
    assert select.select([child], [], [], WAIT)[0]
    os.close(child)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/no/such/python",), "No such file"),
        ((sys.executable, "-c", "raise SystemExit('no llguidance here')"), "no llguidance here"),
        (
            (sys.executable, "-c", "import sys; sys.stdin.buffer.read(9); sys.exit(1)"),
            "it has ended",
        ),
    ],
)
def test_without_a_child_constraints_are_refused_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    command: Any,
    reason: str,
) -> None:
    monkeypatch.setattr(grammars, "COMMAND", command)
    caplog.set_level(logging.ERROR, "cllm.engine")
    with Engine.load(random_path(), parallel=1, ctx_size=256) as engine:
        for number in range(2):
            with pytest.raises(CompilerUnavailable, match=reason):
                engine.check_constraint(Constraint("regex", f"{number}"))
        assert finished(engine.submit("Hello", greedy(2))).usage.completion_tokens == 2
    assert (
        len([r for r in caplog.records if "constraints cannot be compiled now" in r.message]) == 1
    )


KINDS: list[tuple[Kind, str]] = [("regex", "a+"), ("gbnf", 'root ::= "a"'), ("json_object", "")]


def test_what_passes_in_the_child_passes_here(engine: Engine) -> None:
    """Both see the same vocabulary."""
    control = Constraint("lark", 'start: <|im_start|> "a" <|im_end|>')
    engine.check_constraint(control)
    with pytest.raises(InvalidRequest, match="no_such"):
        engine.check_constraint(Constraint("lark", "start: <|no_such|>"))
    for kind, source in KINDS:
        engine.check_constraint(Constraint(kind, source))


def test_a_constraint_is_kept_for_those_who_waited_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammars, "MAX_KEPT", 1)
    with Engine.load(random_path(), parallel=1, ctx_size=512) as engine:
        awaited = []
        for number in range(3):
            constraint = Constraint("regex", f"a{number}")
            with pytest.raises(ConstraintPending) as pending:
                engine.check_constraint(constraint, wait=False)
            pending.value.settled.result(WAIT)
            awaited.append((constraint, pending.value.settled))
            del pending
        for constraint, _ in awaited:
            engine.check_constraint(constraint, wait=False)
        constraint = awaited[0][0]
        del awaited[0], _
        gc.collect()
        with pytest.raises(ConstraintPending):
            engine.check_constraint(constraint, wait=False)


def test_where_no_thread_can_start_a_constraint_is_refused_until_one_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    constraint = Constraint("regex", "no thread")
    with Engine.load(random_path(), parallel=1, ctx_size=512) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", failing)
            with pytest.raises(CompilerUnavailable, match="thread"):
                engine.check_constraint(constraint)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(engine.check_constraint, constraint).result(WAIT)
