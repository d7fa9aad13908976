"""Prefixes on disk: found after a restart, exact, bounded, and never a reason for an error."""

from __future__ import annotations

import logging
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cllm.engine import Engine
from cllm.engine.cache import disk_cache, disk_reader, disk_writer, prefix_file
from cllm.engine.cache.disk_cache import DiskCache
from cllm.engine.cache.disk_index import KIND, DiskIndex
from cllm.engine.cache.prefix_file import Head
from cllm.engine.errors import DeadlineExceeded
from cllm.engine.sharing import COMMON, Scope
from tests.engine.engine_helpers import PRECISE, WAIT, Loader, Watched, finished, greedy
from tests.engine.engine_models import write_hybrid, write_recurrent, write_windowed

FIRST = [20 + i % 300 for i in range(300)]
SECOND = [400 - i % 300 for i in range(300)]
THIRD = [(7 * i) % 400 + 20 for i in range(300)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prefixes"


@pytest.fixture
def start(load: Loader, f32_path: Path, folder: Path) -> Loader:
    """Starts an engine on the directory."""

    def loader(path: Path = f32_path, **config: Any) -> Engine:
        fields = {**PRECISE, "parallel": 1, "ctx_size": 1024, "cache_disk": str(folder), **config}
        return load(path, **fields)

    return loader


@pytest.fixture(scope="module")
def fresh(f32_path: Path) -> Iterator[Callable[[list[int]], str]]:
    """The text that an engine without any cache gives."""
    with Engine.load(f32_path, **PRECISE, parallel=1, ctx_size=1024, cache_ram=0) as engine:
        yield lambda prompt: finished(engine.submit(prompt, greedy(12), fresh=True)).text


def ask(engine: Engine, prompt: list[int], scope: Scope = COMMON) -> tuple[str, int]:
    """The text, and how many tokens were cached."""
    done = finished(engine.submit(prompt, greedy(12), scope=scope))
    return done.text, done.usage.cached_tokens


def remembered(engine: Engine, *prompts: list[int]) -> None:
    """Ask, close, and so write."""
    for prompt in prompts:
        ask(engine, prompt)
    engine.close()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.prefix"))


def disk_of(engine: Engine) -> DiskCache:
    disk = engine._scheduler._disk
    assert disk is not None
    return disk


def wait_for_writer(engine: Engine, predicate: Callable[[], bool]) -> None:
    changed = disk_of(engine).writer._changed
    with changed:
        assert changed.wait_for(predicate, WAIT), "nothing was written in time"


@pytest.mark.parametrize("unified", [False, True])
def test_a_conversation_continues_after_a_restart(
    start: Loader, fresh: Callable[[list[int]], str], unified: bool, folder: Path
) -> None:
    remembered(start(parallel=2, kv_unified=unified), FIRST, SECOND)
    engine = start(parallel=2, kv_unified=unified)
    assert engine.stats().cache_disk_entries == len(files(folder)) == 2
    for prompt in ([*FIRST, 7, 8, 9], [*SECOND[:200], 7]):
        generation = engine.submit(prompt, greedy(12))
        done = finished(generation)
        assert done.text == fresh(prompt)
        assert done.usage.cached_tokens == len(prompt) - (3 if prompt[0] == 20 else 1)
        assert generation.prefix == "disk"
    stats = engine.stats()
    assert stats.disk_read_prefixes == 2
    assert stats.cache_disk_bytes == sum(path.stat().st_size for path in files(folder))


def test_prefixes_in_host_memory_are_written_at_the_end_too(start: Loader) -> None:
    remembered(start(), FIRST, SECOND, THIRD)
    engine = start()
    assert [ask(engine, [*prompt, 7])[1] for prompt in (FIRST, SECOND, THIRD)] == [300] * 3


def test_an_idle_engine_writes_without_an_end(
    start: Loader, fresh: Callable[[list[int]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_writer, "_IDLE_S", 0.0)
    one = start(parallel=2)
    ask(one, FIRST)
    writer = disk_of(one).writer
    wait_for_writer(one, lambda: writer.written == 1)
    other = start(parallel=2)
    assert ask(other, [*FIRST, 7]) == (fresh([*FIRST, 7]), 300)
    assert ask(one, [*FIRST, 8]) == (fresh([*FIRST, 8]), 300), "its own slot holds it still"


def test_an_evicted_prefix_is_written_while_a_stream_runs(
    start: Loader, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(disk_writer, "_SETTLE_S", 0.0)
    monkeypatch.setattr(disk_writer, "_IDLE_S", 10 * WAIT)  # so it is not an idle slot's
    engine = start(parallel=2)
    running = Watched(engine, [3], greedy(None))
    running.wait_for_tokens(1)
    ask(engine, FIRST)
    ask(engine, SECOND)
    wait_for_writer(engine, lambda: bool(engine.stats().disk_written_prefixes))
    running.generation.cancel()
    (path,) = files(folder)
    assert prefix_file.read_head(path)[1].tolist()[:300] == FIRST


def test_a_prefix_that_returns_to_a_slot_soon_is_not_written(start: Loader) -> None:
    engine = start()
    for prompt in (FIRST, SECOND, [*FIRST, 7]):
        ask(engine, prompt)
    pending = [saved.tokens.tolist() for _, saved in disk_of(engine).writer._pending]
    assert [tokens[:300] for tokens in pending] == [SECOND]


def test_a_grown_conversation_replaces_its_older_file(start: Loader, folder: Path) -> None:
    remembered(start(), FIRST)
    longer = [*FIRST, *SECOND[:100]]
    remembered(start(), longer)
    assert len(files(folder)) == 1
    assert ask(start(), [*longer, 7])[1] == 400


def test_what_is_on_disk_already_is_not_written_again(start: Loader, folder: Path) -> None:
    remembered(start(), FIRST)
    before = [path.stat().st_ino for path in files(folder)]
    again = start()
    remembered(again, [*FIRST, 7])
    assert [path.stat().st_ino for path in files(folder)] == before


def test_another_model_uses_nothing_and_leaves_the_files_for_the_first(
    start: Loader, model_path: Path, fresh: Callable[[list[int]], str]
) -> None:
    remembered(start(), FIRST)
    other = start(model_path)
    assert ask(other, [*FIRST, 7])[1] == 0
    other.close()
    assert ask(start(), [*FIRST, 7]) == (fresh([*FIRST, 7]), 300)


def test_a_state_is_used_with_the_settings_that_it_depends_on(start: Loader) -> None:
    remembered(start(), FIRST)
    for config in ({"parallel": 2}, {"kv_unified": True}, {"cache_type_k": "f16"}):
        assert start(**config).stats().cache_disk_entries == 0
    for config in ({"ctx_size": 512}, {"threads": 1}, {"batch_size": 64}):
        assert start(**config).stats().cache_disk_entries == 1
    assert start(ctx_size=256).stats().cache_disk_entries == 0, "too long for a sequence"


@pytest.mark.parametrize("write", [write_recurrent, write_windowed, write_hybrid])
def test_memories_of_which_only_the_end_is_kept(
    start: Loader, load: Loader, model_path: Path, tmp_path: Path, write: Callable[..., None]
) -> None:
    path = tmp_path / "model.gguf"
    write(model_path, path)
    prompt = [*FIRST, 7, 8]
    engine = start(path)
    finished(engine.submit(FIRST, greedy(1)))
    engine.close()
    plain = load(path, **PRECISE, parallel=1, ctx_size=1024)
    expected = finished(plain.submit(prompt, greedy(12))).text
    assert ask(start(path), prompt) == (expected, 300)


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


def test_reading_that_takes_longer_than_computing_is_given_up(
    start: Loader, fresh: Callable[[list[int]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered(start(), FIRST)
    monkeypatch.setattr(disk_reader, "_UNKNOWN_S", 0.1)
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
    monkeypatch.setattr(disk_cache, "_CLOSING_S", 0.2)
    monkeypatch.setattr(disk_cache, "_JOIN_S", 0.1)
    slow = Gate(prefix_file.write)
    monkeypatch.setattr(prefix_file, "write", slow)
    engine = start()
    writer = disk_of(engine).writer
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


# Two processes

_OTHER = """
import sys
from cllm.engine import Engine
model, folder, limit = sys.argv[1:]
texts = []
for _ in range(2):
    with Engine.load(model, flash_attn="off", cache_type_k="f32", cache_type_v="f32", parallel=1,
                     ctx_size=1024, cache_disk=folder, cache_disk_size=int(limit)) as engine:
        for i in range(4):
            prompt = [450 + i, *(20 + k % 300 for k in range(300))]
            done = engine.generate(prompt, max_tokens=12, temperature=0.0, ignore_eos=True)
            texts.append(done.text)
print(repr(texts))
"""


def test_two_processes_use_one_directory(
    start: Loader, fresh: Callable[[list[int]], str], f32_path: Path, folder: Path
) -> None:
    remembered(start(), FIRST)
    limit = int(2.5 * files(folder)[0].stat().st_size)  # so that they remove each other's files
    expected = [fresh([450 + i, *FIRST]) for _ in range(2) for i in range(4)]
    command = [sys.executable, "-c", _OTHER, str(f32_path), str(folder), str(limit)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=WAIT)
        assert (process.returncode, out.strip()) == (0, repr(expected))
    assert sum(path.stat().st_size for path in files(folder)) <= 2 * limit
    assert ask(start(), [*FIRST, 7])[0] == fresh([*FIRST, 7])


# Whose


ALICE, BOB, SALTED = Scope("alice"), Scope("bob"), Scope("alice", "secret salt")


def test_scopes_are_kept_apart_across_a_restart(start: Loader, folder: Path) -> None:
    first = start(parallel=2)
    ask(first, FIRST, ALICE)
    ask(first, SECOND, SALTED)
    first.close()
    engine = start(parallel=2)
    for scope in (BOB, COMMON, SALTED):
        assert ask(engine, [*FIRST, 7], scope)[1] == 0
    for scope in (BOB, COMMON, ALICE):
        assert ask(engine, [*SECOND, 7], scope)[1] == 0
    engine.close()
    engine = start(parallel=2)
    assert ask(engine, [*FIRST, 8], ALICE)[1] == ask(engine, [*SECOND, 8], SALTED)[1] == 300
    for path in files(folder):
        content = path.read_bytes() + str(path).encode()
        assert b"alice" not in content and b"secret" not in content


def test_nothing_is_written_for_an_owner_whose_name_does_not_last(
    start: Loader, folder: Path
) -> None:
    engine = start()
    ask(engine, FIRST, Scope("key 1", lasting=False))
    engine.close()
    assert not files(folder)
    assert ask(start(), [*FIRST, 7], Scope("key 1", lasting=False))[1] == 0


def test_only_their_owner_can_read_the_files(start: Loader, folder: Path) -> None:
    before = os.umask(0)
    try:
        remembered(start(), FIRST)
    finally:
        os.umask(before)
    (path,) = files(folder)
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (folder, path.parent, path)]
    assert modes == [0o700, 0o700, 0o600]


def test_a_directory_that_others_can_write_is_refused(load: Loader, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "file").write_text("")
    for path, remedy in (
        (tmp_path / "shared", "mode 700"),
        (tmp_path / "no" / "where", "create"),
        (tmp_path / "file", "name a directory"),
    ):
        with pytest.raises(ValueError, match=remedy):
            load(cache_disk=str(path))
    with pytest.raises(ValueError, match="cache_ram"):
        load(cache_disk=str(tmp_path / "new"), cache_ram=0)


# The index


def test_the_longest_usable_file_is_found(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, 1 << 20, 100)
    index.open("i" * 64)
    for tokens, whole in (([1, 2, 3], False), ([1, 2, 3, 4, 5], True), ([1, 2, 9, 9], False)):
        head = Head(index.identity, KIND, "s", whole, len(tokens), 8)
        path = index.path_of(array("i", tokens), "s")
        prefix_file.write(path, head, array("i", tokens), np.zeros(8, np.uint8), lambda: True)
    index.refresh()

    def best(*tokens: int) -> tuple[list[int], int] | None:
        found = index.best(array("i", tokens), "s")
        return None if found is None else (found[0].tokens.tolist(), found[1])

    assert best(1, 2, 3, 4, 5, 6) == ([1, 2, 3, 4, 5], 5)
    assert best(1, 2, 3, 4, 6) == ([1, 2, 3], 3)  # a part of the longer one is useless
    assert best(1, 2, 9) == ([1, 2, 9, 9], 3)
    assert best(5) is None
    assert index.best(array("i", [1, 2, 3]), "other") is None
