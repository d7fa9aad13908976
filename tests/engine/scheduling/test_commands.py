"""Commands on slots: in order, bounded, gone with their client, and one file at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, EngineClosed, InvalidRequest, QueueFull
from cllm.engine.cache import session_file
from cllm.engine.cache.sessions import Session
from cllm.engine.scheduling import commands
from cllm.engine.scheduling.commands import MOST_FOR_SLOT
from tests.engine.engine_helpers import WAIT, Loader, Watched, finished, greedy, held

PROMPT = [20 + i % 300 for i in range(100)]


@pytest.fixture
def engine(load: Loader, tmp_path: Path) -> Engine:
    return load(
        parallel=3, ctx_size=512, cache_ram=0, slot_save_path=str(tmp_path), context_shift=True
    )


def stream(engine: Engine, slot: int) -> Watched:
    """A stream without an end, which has begun."""
    watched = Watched(engine, PROMPT, greedy(None), slot=slot)
    watched.wait_for_tokens(1)
    return watched


@contextmanager
def reading(engine: Engine) -> Iterator[None]:
    """Slot 0 reads PROMPT until the block ends, and is idle then."""
    with held(engine) as reached:
        engine.submit(PROMPT, greedy(1), slot=0)
        assert reached.wait(WAIT)
        yield


def saved(engine: Engine, name: str, slot: int = 0) -> None:
    finished(engine.submit(PROMPT, greedy(1), slot=slot))
    engine.sessions.save(slot, name).result(WAIT)


def passed(engine: Engine, slot: int = 2) -> None:
    """The engine thread has looked at all commands since this call."""
    engine._scheduler.command(slot, lambda _: None, tenant="looks").result(WAIT)


def waiting(engine: Engine) -> int:
    return sum(map(len, engine._scheduler._commands._by_tenant.values()))


@contextmanager
def holding(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold the first file that is written or read; yields an event: that has begun."""
    real: Callable[..., Any] = getattr(session_file, name)
    reached, go_on = threading.Event(), threading.Event()

    def hold(*arguments: Any) -> Any:
        reached.set()
        assert go_on.wait(WAIT)
        return real(*arguments)

    monkeypatch.setattr(session_file, name, hold)
    try:
        yield reached
    finally:
        go_on.set()


def test_commands_for_a_slot_run_in_their_order(engine: Engine) -> None:
    with reading(engine):
        saving = engine.sessions.save(0, "talk")
        erasing = engine.sessions.erase(0)
        restoring = engine.sessions.restore(0, "talk")
        erasing_again = engine.sessions.erase(0)
    assert saving.result(WAIT).n_tokens == erasing.result(WAIT) == len(PROMPT)
    assert restoring.result(WAIT).n_tokens == erasing_again.result(WAIT) == len(PROMPT)


def test_a_command_runs_when_the_last_stream_has_ended_by_itself(engine: Engine) -> None:
    with reading(engine):
        erasing = engine.sessions.erase(0)
    assert erasing.result(WAIT) == len(PROMPT)


def test_a_file_is_read_when_the_slot_is_idle(engine: Engine) -> None:
    busy = stream(engine, 0)
    restoring = engine.sessions.restore(0, "later")
    saved(engine, "later", slot=1)
    busy.generation.cancel()
    assert restoring.result(WAIT).n_tokens == len(PROMPT)


@pytest.mark.parametrize("action", ["save", "restore", "erase"])
def test_a_command_that_is_cancelled_is_kept_nowhere(engine: Engine, action: str) -> None:
    busy = stream(engine, 0)
    arguments = (0,) if action == "erase" else (0, "talk")
    for _ in range(3 * MOST_FOR_SLOT):
        future: Future[Any] = getattr(engine.sessions, action)(*arguments)
        assert future.cancel()
        assert waiting(engine) == 0 and not engine._scheduler._commands._by_slot
    busy.generation.cancel()
    passed(engine, slot=0)


def test_commands_of_a_tenant_for_a_slot_are_bounded(engine: Engine) -> None:
    with reading(engine):
        kept = [engine.sessions.erase(0, "", "a") for _ in range(MOST_FOR_SLOT)]
        with pytest.raises(QueueFull, match=r"4 commands for slot 0 wait.*try again in"):
            engine.sessions.erase(0, "", "a")
        kept.append(engine.sessions.erase(0, "", "b"))
        kept.append(engine.sessions.erase(1, "", "a"))
    assert [each.result(WAIT) for each in kept] == [len(PROMPT), 0, 0, 0, 0, 0]
    assert engine.sessions.erase(0, "", "a").result(WAIT) == 0
    assert waiting(engine) == 0


def test_the_tenant_with_the_most_commands_gives_way(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "MOST", 5)
    busy = stream(engine, 0)
    many = [engine.sessions.erase(0, "", "a") for _ in range(4)]
    few = [engine.sessions.erase(0, "", "b") for _ in range(2)]
    with pytest.raises(QueueFull, match="5 commands for slots wait"):
        many[-1].result(WAIT)
    with pytest.raises(QueueFull):
        engine.sessions.erase(1, "", "a")
    few.append(engine.sessions.erase(1, "", "c"))
    assert not many[0].done()
    busy.generation.cancel()
    for each in [*many[:2], *few]:
        each.result(WAIT)
    assert isinstance(many[2].exception(WAIT), QueueFull)


def test_the_next_snapshot_is_taken_when_the_last_one_is_written(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slot in range(2):
        finished(engine.submit(PROMPT, greedy(1), slot=slot))
    with holding("write", monkeypatch) as reached:
        first, second = engine.sessions.save(0, "a"), engine.sessions.save(1, "b")
        assert reached.wait(WAIT)
        passed(engine)
        assert first.running() and not second.running()
        busy = stream(engine, 2)  # others are served meanwhile
        busy.generation.cancel()
    assert first.result(WAIT).n_tokens == second.result(WAIT).n_tokens == len(PROMPT)


def test_slots_take_turns_with_files(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for slot in range(2):
        finished(engine.submit(PROMPT, greedy(1), slot=slot))
    order, told = list[str](), threading.Semaphore(0)

    def note(done: Future[Session]) -> None:
        order.append(done.result().filename)
        told.release()

    with holding("write", monkeypatch) as reached:
        names = [(0, "a"), (0, "b"), (0, "c"), (1, "d")]
        futures = [engine.sessions.save(*each) for each in names]
        for future in futures:
            future.add_done_callback(note)
        assert reached.wait(WAIT)
        passed(engine)
    assert all(told.acquire(timeout=WAIT) for _ in futures)
    assert order == ["a", "d", "b", "c"]


def test_a_content_whose_slot_became_busy_gives_way(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_KEPT_S", 0.0)
    saved(engine, "talk")
    with holding("read", monkeypatch) as reached:
        first, second = engine.sessions.restore(0, "talk"), engine.sessions.restore(1, "talk")
        assert reached.wait(WAIT)
        busy = stream(engine, 0)
    assert second.result(WAIT).n_tokens == len(PROMPT)
    assert not first.done()
    busy.generation.cancel()
    assert first.result(WAIT).n_tokens == len(PROMPT)


def test_a_content_that_waits_goes_with_its_future(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_KEPT_S", 10 * WAIT)
    saved(engine, "talk")
    with holding("read", monkeypatch) as reached:
        first, second = engine.sessions.restore(0, "talk"), engine.sessions.restore(1, "talk")
        assert reached.wait(WAIT)
        busy = stream(engine, 0)
    assert first.cancel()
    assert second.result(WAIT).n_tokens == len(PROMPT)
    assert engine._scheduler._commands._with_file is None
    busy.generation.cancel()


def test_a_restore_cancelled_while_its_file_is_read_changes_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(engine, "talk")
    with holding("read", monkeypatch) as reached:
        first, second = engine.sessions.restore(1, "talk"), engine.sessions.restore(2, "talk")
        assert reached.wait(WAIT)
        assert first.cancel()
        passed(engine, slot=0)
        assert not second.done()  # what is being read is the only content in memory
    assert second.result(WAIT).n_tokens == len(PROMPT)
    assert [slot.tokens for slot in engine.slots()][1:] == [0, len(PROMPT)]


def test_a_file_that_cannot_be_read_lets_the_next_be_read(engine: Engine) -> None:
    saved(engine, "talk")
    missing, present = engine.sessions.restore(1, "missing"), engine.sessions.restore(1, "talk")
    with pytest.raises(InvalidRequest, match="missing"):
        missing.result(WAIT)
    assert present.result(WAIT).n_tokens == len(PROMPT)


def test_closing_ends_a_restore_whose_file_is_being_read(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(engine, "talk")
    with holding("read", monkeypatch) as reached:
        reading, behind = engine.sessions.restore(1, "talk"), engine.sessions.erase(1)
        assert reached.wait(WAIT)
        closer = threading.Thread(target=engine.close)
        closer.start()
        assert isinstance(reading.exception(WAIT), EngineClosed)
        assert isinstance(behind.exception(WAIT), EngineClosed)
    closer.join(WAIT)
    assert not closer.is_alive()


def test_closing_finishes_a_file_that_is_being_written(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(engine.submit(PROMPT, greedy(1), slot=0))
    with holding("write", monkeypatch) as reached:
        writing, behind = engine.sessions.save(0, "talk"), engine.sessions.save(0, "more")
        assert reached.wait(WAIT)
        closer = threading.Thread(target=engine.close)
        closer.start()
        assert isinstance(behind.exception(WAIT), EngineClosed)
    assert writing.result(WAIT).n_tokens == len(PROMPT)
    closer.join(WAIT)
    assert not closer.is_alive()
