"""A damaged, full, slow or missing disk costs prefixes and a line in the log, never a request."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from cllm.engine.cache import disk_cache, disk_reader, disk_writer, prefix_file
from cllm.engine.cache.prefix_file import Head
from cllm.engine.errors import DeadlineExceeded
from tests.engine.cache.disk_helpers import (
    FIRST,
    SECOND,
    THIRD,
    ask,
    disk_of,
    files,
    remembered,
    wait_for_writer,
)  # fmt: skip
from tests.engine.engine_helpers import WAIT, Loader, Watched, finished, greedy

# Damage


@pytest.mark.parametrize("where", [3, 40, 5000, -2])
def test_a_damaged_file_is_computed_again_and_removed(
    start: Loader,
    fresh: Callable[[list[int]], str],
    folder: Path,
    where: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    remembered(start(), FIRST)
    (path,) = files(folder)
    data = bytearray(path.read_bytes())
    data[where] ^= 0x04
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "cllm.engine"):
        assert ask(start(), [*FIRST, 7]) == (fresh([*FIRST, 7]), 0)
    assert len([r for r in caplog.records if "is removed" in r.message]) == 1
    assert path not in files(folder)


def test_every_changed_bit_and_every_missing_byte_is_noticed(tmp_path: Path) -> None:
    path, tokens = tmp_path / "a.prefix", array("i", range(70, 90))
    head, state = Head("i" * 8, "k", "s", False, 20, 64), np.arange(64, dtype=np.uint8)
    prefix_file.write(path, head, tokens, state, lambda: True)
    whole, found = path.read_bytes(), np.zeros(64, np.uint8)
    prefix_file.read(path, head, tokens, found, lambda: True)
    assert found.tolist() == state.tolist()
    assert prefix_file.read_head(path) == (head, tokens)
    damaged = [whole[:size] for size in range(len(whole))]
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(prefix_file.DamagedError):
            prefix_file.read(path, head, tokens, found, lambda: True)
        with suppress(prefix_file.DamagedError):
            prefix_file.read_head(path)


def test_what_is_no_readable_file_is_left_alone(
    start: Loader, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remembered(start(), FIRST)
    (path,) = files(folder)
    (path.parent / "odd.prefix").mkdir()
    (path.parent / "notes.txt").write_text("mine")
    with caplog.at_level(logging.WARNING, "cllm.engine"):
        assert ask(start(), [*FIRST, 7])[1] == 300
    assert (path.parent / "odd.prefix").is_dir() and (path.parent / "notes.txt").exists()
    assert len([r for r in caplog.records if "odd.prefix" in r.message]) == 1


def test_a_file_that_disappears_is_a_miss(
    start: Loader, fresh: Callable[[list[int]], str], folder: Path
) -> None:
    remembered(start(), FIRST)
    engine = start()
    files(folder)[0].unlink()
    assert ask(engine, [*FIRST, 7]) == (fresh([*FIRST, 7]), 0)
    assert engine.stats().cache_disk_entries == 0


def test_a_state_that_llama_cpp_does_not_take_is_removed(
    start: Loader, fresh: Callable[[list[int]], str], folder: Path
) -> None:
    remembered(start(), FIRST)
    (path,) = files(folder)
    head, tokens = prefix_file.read_head(path)
    prefix_file.write(path, head, tokens, np.zeros(head.n_state, np.uint8), lambda: True)
    assert ask(start(), [*FIRST, 7]) == (fresh([*FIRST, 7]), 0)
    assert path not in files(folder)


def test_a_crash_in_mid_write_leaves_no_entry(start: Loader, folder: Path) -> None:
    engine = start()
    inner = disk_of(engine)._index.folder
    program = f"""
import os, pathlib, numpy, array
from cllm.engine.cache.prefix_file import Head, write
head = Head("i", "k", "s", False, 3, 1 << 20)
write(pathlib.Path({str(inner)!r}) / "a.prefix", head, array.array("i", [1, 2, 3]),
      numpy.ones(1 << 20, numpy.uint8), lambda: os.kill(os.getpid(), 9))
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = inner.iterdir()
    remembered(engine, FIRST)
    assert left.exists(), "another process may be writing it"
    os.utime(left, (0, 0))
    assert start().stats().cache_disk_entries == 1
    assert not left.exists()


# Room


def test_the_least_recently_used_go_first(start: Loader, folder: Path) -> None:
    remembered(start(), FIRST)
    limit = int(2.5 * files(folder)[0].stat().st_size)
    assert limit > 1 << 20
    remembered(start(cache_disk_size=limit), SECOND)
    for path, when in zip(files(folder), (1000, 2000), strict=True):
        os.utime(path, (when, when))
    engine = start(cache_disk_size=limit)
    by_age = sorted(files(folder), key=lambda path: path.stat().st_mtime)
    oldest = prefix_file.read_head(by_age[0])[1].tolist()[:300]
    assert ask(engine, [*oldest, 7])[1] == 300  # now it is the newest
    remembered(engine, THIRD)
    assert engine.stats().disk_evicted_prefixes == 1
    assert engine.stats().cache_disk_bytes <= limit
    left = [prefix_file.read_head(path)[1].tolist()[:300] for path in files(folder)]
    assert oldest in left and THIRD in left


def test_a_smaller_limit_holds_from_the_start(start: Loader, folder: Path) -> None:
    remembered(start(), FIRST, SECOND, THIRD)
    size = files(folder)[0].stat().st_size
    start(cache_disk_size=int(1.5 * size))
    assert len(files(folder)) == 1


def test_what_host_memory_has_no_room_for_is_neither_written_nor_read(
    start: Loader, folder: Path
) -> None:
    engine = start(cache_ram=64 << 10)
    remembered(engine, FIRST)
    assert files(folder) == [] and engine.stats().disk_written_prefixes == 0
    remembered(start(), FIRST)
    assert files(folder)[0].stat().st_size > 64 << 10
    assert ask(start(cache_ram=64 << 10), [*FIRST, 7])[1] == 0
    assert ask(start(), [*FIRST, 7])[1] == 300


@pytest.fixture(params=["tmpfs", "limit of a file's size"])
def full(request: pytest.FixtureRequest, folder: Path) -> Iterator[None]:
    """The directory's disk has no room for a prefix."""
    folder.mkdir(mode=0o700)
    if request.param == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", str(folder)]
        if sys.platform != "linux" or subprocess.run(mount, check=False).returncode:
            pytest.skip("no file system can be mounted")
        yield
        subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full")
def test_a_full_disk_costs_one_line_and_no_request(
    start: Loader, folder: Path, fresh: Callable[[list[int]], str],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(disk_writer, "_SETTLE_S", 0.0)
    engine = start(cache_disk_size=1 << 30)
    with caplog.at_level(logging.WARNING, "cllm.engine"):
        for prompt in (FIRST, SECOND, THIRD, FIRST):
            assert ask(engine, prompt)[0] == fresh(prompt)
        wait_for_writer(engine, lambda: bool(engine.stats().disk_dropped_prefixes))
        engine.close()
    assert len([r for r in caplog.records if "is not written" in r.message]) == 1
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert engine.stats().disk_written_prefixes == 0


def test_a_directory_that_cannot_be_made_is_one_line(
    start: Loader, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start()
    engine.close()
    (inner,) = folder.iterdir()
    inner.rmdir()
    inner.write_text("in the way")
    with caplog.at_level(logging.ERROR, "cllm.engine"):
        engine = start()
        ask(engine, FIRST)
        engine.close()
    assert len([r for r in caplog.records if "cannot be used" in r.message]) == 1


@pytest.mark.parametrize(
    ("owner", "name"), [(prefix_file, "write"), (disk_writer, "new_memory")], ids=["write", "copy"]
)
def test_an_unexpected_error_costs_one_line_and_what_comes_next_is_written(
    start: Loader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    owner: Any, name: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(disk_writer, "_IDLE_S", 0.0)
    monkeypatch.setattr(disk_writer, "_REST_S", 0.0)
    real = getattr(owner, name)
    failed: list[Any] = []

    def fails_twice(*arguments: Any) -> Any:
        if len(failed) < 2:
            failed.append(arguments)
            raise ValueError("a bug")
        return real(*arguments)

    monkeypatch.setattr(owner, name, fails_twice)
    engine = start()
    with caplog.at_level(logging.WARNING, "cllm.engine"):
        for count, prompt in enumerate((FIRST, SECOND), 1):
            ask(engine, prompt)
            wait_for_writer(engine, lambda count=count: len(failed) >= count)  # type: ignore[misc]
        ask(engine, THIRD)
        wait_for_writer(engine, lambda: bool(engine.stats().disk_written_prefixes))
    (record,) = [r for r in caplog.records if "a bug" in r.message]
    assert record.exc_info, "a bug is reported with where it is"


# A slow disk


class Gate:
    """Stands in for a disk that takes as long as the test wants."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self.reached, self.open, self._real = threading.Event(), threading.Event(), real

    def __call__(self, *arguments: Any) -> Any:
        self.reached.set()
        assert self.open.wait(WAIT)
        return self._real(*arguments)


def test_a_slow_disk_drops_prefixes_and_holds_up_nothing(
    start: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_writer, "_SETTLE_S", 0.0)
    slow = Gate(prefix_file.write)
    monkeypatch.setattr(prefix_file, "write", slow)
    engine = start(cache_ram=8 << 20)  # a quarter may wait
    ask(engine, FIRST)
    ask(engine, SECOND)
    assert slow.reached.wait(WAIT)
    for i in range(6):
        ask(engine, [450 + i, *THIRD])
    stats = engine.stats()
    assert stats.disk_dropped_prefixes > 0
    waiting = [saved.data.nbytes for _, saved in disk_of(engine).writer._pending]
    assert sum(waiting) <= 2 << 20
    slow.open.set()


def test_memory_is_not_filled_again_while_it_is_written(
    start: Loader, fresh: Callable[[list[int]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_writer, "_SETTLE_S", 0.0)
    slow = Gate(prefix_file.write)
    monkeypatch.setattr(prefix_file, "write", slow)
    engine = start()
    ask(engine, FIRST)
    ask(engine, SECOND)  # the first is written
    assert slow.reached.wait(WAIT)
    ask(engine, [*FIRST, 7])  # its memory is kept
    ask(engine, THIRD)  # another save
    slow.open.set()
    engine.close()
    assert ask(start(), [*FIRST, 8]) == (fresh([*FIRST, 8]), 300)


def test_reading_that_takes_longer_than_computing_is_given_up(
    start: Loader, fresh: Callable[[list[int]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered(start(), FIRST)
    monkeypatch.setattr(disk_reader, "_UNKNOWN_S", 0.1)
    monkeypatch.setattr(disk_reader, "_PATIENCE_S", 0.0)
    slow = Gate(prefix_file.read)
    monkeypatch.setattr(prefix_file, "read", slow)
    engine = start()
    assert ask(engine, [*FIRST, 7]) == (fresh([*FIRST, 7]), 0)
    assert slow.reached.is_set()
    slow.open.set()


def test_streams_run_while_a_prefix_is_read(start: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered(start(parallel=2), FIRST)
    monkeypatch.setattr(disk_reader, "_UNKNOWN_S", WAIT)
    slow = Gate(prefix_file.read)
    monkeypatch.setattr(prefix_file, "read", slow)
    engine = start(parallel=2)
    waiting = Watched(engine, [*FIRST, 7], greedy(12))
    assert slow.reached.wait(WAIT)
    assert finished(engine.submit([3], greedy(30))).usage.completion_tokens == 30
    assert waiting.generation.usage.completion_tokens == 0
    slow.open.set()
    waiting.wait_until_done()
    assert waiting.generation.usage.cached_tokens == 300


def test_a_request_that_waits_for_the_disk_can_end(
    start: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered(start(), FIRST)
    monkeypatch.setattr(disk_reader, "_UNKNOWN_S", WAIT)
    slow = Gate(prefix_file.read)
    monkeypatch.setattr(prefix_file, "read", slow)
    engine = start()
    cancelled = Watched(engine, [*FIRST, 7], greedy(12))
    assert slow.reached.wait(WAIT)
    cancelled.generation.cancel()
    cancelled.wait_until_done()
    late = engine.submit([*FIRST, 8], greedy(12), deadline=0.05)
    with pytest.raises(DeadlineExceeded):
        late.result(WAIT)
    slow.open.set()
    assert ask(engine, [*FIRST, 9])[1] == 300


def test_several_that_wait_for_one_file_read_it_once(
    start: Loader, fresh: Callable[[list[int]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered(start(parallel=4), FIRST)
    slow = Gate(prefix_file.read)
    monkeypatch.setattr(prefix_file, "read", slow)
    engine = start(parallel=4)
    prompts = [[*FIRST, 400 + i] for i in range(8)]
    watched = [Watched(engine, prompt, greedy(12)) for prompt in prompts]
    assert slow.reached.wait(WAIT)
    slow.open.set()
    for one, prompt in zip(watched, prompts, strict=True):
        one.wait_until_done()
        assert one.generation.result(WAIT).text == fresh(prompt)
    assert engine.stats().disk_read_prefixes == 1


def test_closing_does_not_wait_for_a_disk_that_hangs(
    start: Loader, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    passed = [0.0]
    for module in (disk_cache, disk_writer):
        monkeypatch.setattr(module, "monotonic", lambda: monotonic() + passed[-1])
    monkeypatch.setattr(disk_cache, "_JOIN_S", 0.1)
    slow = Gate(prefix_file.write)
    monkeypatch.setattr(prefix_file, "write", slow)
    engine = start()
    writer = disk_of(engine).writer

    def until_it_hangs(deadline: float, keep: bool) -> None:
        type(writer).finish(writer, deadline, keep)
        passed.append(2 * WAIT * slow.reached.wait(WAIT))

    monkeypatch.setattr(writer, "finish", until_it_hangs)
    remembered(engine, FIRST)
    assert slow.reached.is_set() and not files(folder)
    slow.open.set()
    writer.join(WAIT)
    assert not files(folder), "too late"


def test_the_threads_end_with_the_engine(start: Loader) -> None:
    def names() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("cllm-cache-")]

    engine = start()
    assert sorted(names()) == ["cllm-cache-reader", "cllm-cache-writer"]
    engine.close()
    assert names() == []
