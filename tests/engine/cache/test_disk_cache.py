"""Prefixes on disk: found after a restart, exact, for their own scope, model and layout only."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cllm.engine.cache import disk_writer, prefix_file
from cllm.engine.cache.disk_index import KIND, DiskIndex
from cllm.engine.cache.disk_reader import DiskReader
from cllm.engine.cache.prefix_file import Head
from cllm.engine.scheduling import admission
from cllm.engine.sharing import COMMON, Scope
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
from tests.engine.engine_helpers import PRECISE, WAIT, Loader, Watched, finished, greedy
from tests.engine.engine_models import write_hybrid, write_recurrent, write_windowed


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


def test_files_are_read_during_the_step_before_their_requests_are_reached(
    start: Loader, fresh: Callable[[list[int]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered(start(parallel=2), FIRST, SECOND)
    monkeypatch.setattr(admission, "_GAP_S", 0.0)
    monkeypatch.setattr(admission, "_PLACING_S", 0.0)  # so each step admits one more request
    engine = start(parallel=4)
    load = DiskReader.load
    asked: list[array[int]] = []
    context = engine._scheduler._context
    decode, entered, proceed = context.decode, threading.Event(), threading.Event()

    def noted(reader: DiskReader, tokens: array[int], *others: Any) -> Any:
        asked.append(tokens[:3])
        return load(reader, tokens, *others)

    monkeypatch.setattr(DiskReader, "load", noted)
    before: list[int] = []  # files asked for by each step

    def watched(*arguments: Any) -> int:
        before.append(len(asked))
        entered.set()
        assert proceed.wait(WAIT)
        return decode(*arguments)

    monkeypatch.setattr(context, "decode", watched)
    stream = engine.submit([3], greedy(30))
    assert entered.wait(WAIT)
    prompts = [[4], [*FIRST, 7], [*SECOND, 7]]
    generations = [engine.submit(prompt, greedy(12)) for prompt in prompts]
    proceed.set()
    for prompt, generation in zip(prompts, generations, strict=True):
        assert finished(generation).text == fresh(prompt)
    finished(stream)
    assert before[:2] == [1, 4]


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


def test_an_idle_slot_is_copied_although_a_request_comes_with_each_question(
    start: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_writer, "_IDLE_S", 0.0)
    engine = start(parallel=2)
    writer = disk_of(engine).writer
    wake = writer._wake

    def with_a_request() -> None:
        engine.submit([3], greedy(1))  # it ends in one step
        wake()

    writer._wake = with_a_request
    ask(engine, FIRST)
    wait_for_writer(engine, lambda: writer.written == 1)


def test_an_interrupted_search_for_idle_slots_begins_again(
    start: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_writer, "_IDLE_S", 0.0)
    engine = start(parallel=2)
    writer = disk_of(engine).writer
    answered, searches = writer._ask, 0

    def interrupted(question: Callable[[], Any]) -> Any:
        nonlocal searches
        if question.__name__ == "find" and engine.stats().kv_tokens:
            searches += 1
            if searches == 1:
                return None
        return answered(question)

    monkeypatch.setattr(writer, "_ask", interrupted)
    ask(engine, FIRST)
    wait_for_writer(engine, lambda: writer.written == 1)


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


def test_a_file_of_another_model_does_not_hide_one_of_the_same_name(tmp_path: Path) -> None:
    tokens, paths = array("i", [1, 2, 3]), []
    indexes = [DiskIndex(tmp_path, 1 << 20, 100) for _ in "ab"]
    for index, letter in zip(indexes, "ab", strict=True):
        index.open(letter * 64)
        paths.append(index.path_of(tokens, "s"))
        head = Head(index.identity, KIND, "s", False, len(tokens), 8)
        prefix_file.write(paths[-1], head, tokens, np.zeros(8, np.uint8), lambda: True)
        index.refresh()
    assert paths[0].name == paths[1].name
    indexes[0].remove(paths[1])
    assert indexes[0].best(tokens, "s") is not None
    assert [path.exists() for path in paths] == [True, False]
