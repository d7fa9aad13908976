"""A slot's prefix survives in a file, and only a matching file is accepted."""

from __future__ import annotations

import ctypes
import json
import shutil
import struct
import zlib
from pathlib import Path

import llama_cpp
import pytest

from cllm.engine import Engine, EngineClosed, InvalidRequest, NotEnabled
from tests.engine.engine_helpers import PRECISE, WAIT, Loader, Watched, finished, greedy

PROMPT = [20 + i % 300 for i in range(200)]
LONGER = [*PROMPT, 7, 8, 9]


@pytest.fixture(params=["split", "unified"])
def saving(request: pytest.FixtureRequest, load: Loader, f32_path: Path, tmp_path: Path) -> Loader:
    def loader(path: Path = f32_path, **config: object) -> Engine:
        fields = {
            **PRECISE,
            "parallel": 2,
            "keep_sequences": 0,
            "ctx_size": 512,
            "slot_save_path": str(tmp_path),
        }
        fields["kv_unified"] = request.param == "unified"
        return load(path, **{**fields, **config})

    return loader


def saved(engine: Engine, name: str = "talk.bin") -> None:
    finished(engine.submit(PROMPT, greedy(1)))
    done = engine.sessions.save(0, name).result(WAIT)
    assert (done.slot, done.filename, done.n_tokens) == (0, name, len(PROMPT))


def refused(engine: Engine, match: str, name: str = "talk.bin") -> None:
    with pytest.raises(InvalidRequest, match=match):
        engine.sessions.restore(0, name).result(WAIT)
    assert engine.stats().kv_tokens == 0


def test_a_prefix_is_restored_by_another_engine(saving: Loader, tmp_path: Path) -> None:
    first = saving()
    saved(first)
    expected = finished(saving().submit(LONGER, greedy(12))).text
    second = saving()
    session = second.sessions.restore(1, "talk.bin").result(WAIT)
    assert session.n_tokens == len(PROMPT)
    assert session.n_bytes == (tmp_path / "talk.bin").stat().st_size
    done = finished(second.submit(LONGER, greedy(12)))
    assert (done.usage.cached_tokens, done.text) == (len(PROMPT), expected)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_belongs_to_the_model_that_was_loaded(
    saving: Loader, f32_path: Path, tmp_path: Path, replaced: bool
) -> None:
    path = Path(shutil.copy(f32_path, tmp_path / "model.gguf"))
    engine = saving(path)
    path.unlink()
    if replaced:
        path.write_bytes(b"GGUF, but another model")
    saved(engine)
    assert saving().sessions.restore(1, "talk.bin").result(WAIT).n_tokens == len(PROMPT)


def test_a_file_is_restored_where_resting_slots_hold_all_cells(
    load: Loader, f32_path: Path, tmp_path: Path
) -> None:
    engine = load(
        f32_path, **PRECISE, parallel=1, ctx_size=256, kv_unified=True, keep_sequences=1,
        slot_save_path=str(tmp_path),
    )  # fmt: skip
    finished(engine.submit([20 + i for i in range(200)], greedy(1), slot=0))
    engine.sessions.save(0, "talk").result(WAIT)
    engine.sessions.erase(0).result(WAIT)
    finished(engine.submit([300 - i for i in range(200)], greedy(1), slot=1))
    assert engine.sessions.restore(0, "talk").result(WAIT).n_tokens == 200


def test_a_file_of_another_model_is_refused(
    saving: Loader, memoryless_path: Path, model_path: Path
) -> None:
    saved(saving(model_path))
    refused(saving(memoryless_path), "saved with another")


def test_a_file_of_another_layout_is_refused_by_name(saving: Loader) -> None:
    saved(saving())
    refused(saving(cache_type_k="f16"), "cache_type_k f16; it was with f32")


def test_a_longer_file_than_a_sequence_may_be_is_refused(saving: Loader) -> None:
    saved(saving())
    refused(saving(ctx_size=100), "ctx_size=100")


@pytest.mark.parametrize("where", [3, 5, 9, 13, 20, 40, 500, -5, -15, -18, -200])
def test_a_damaged_file_is_refused(saving: Loader, tmp_path: Path, where: int) -> None:
    saved(saving())
    data = bytearray((tmp_path / "talk.bin").read_bytes())
    data[where] ^= 0xFF
    (tmp_path / "talk.bin").write_bytes(data)
    refused(saving(), "expected a ")


@pytest.mark.parametrize("size", [0, 10, 100, 500, 5000])
def test_a_truncated_file_is_refused(saving: Loader, tmp_path: Path, size: int) -> None:
    saved(saving())
    data = (tmp_path / "talk.bin").read_bytes()
    (tmp_path / "talk.bin").write_bytes(data[:size])
    refused(saving(), "expected a")


def test_a_head_of_the_wrong_shape_is_refused(saving: Loader, tmp_path: Path) -> None:
    heads: list[object] = [[], {}, {"identity": 3}, {"identity": {"model": "x"}}, "x"]
    engine = saving()
    for head in heads:
        text = json.dumps(head).encode()
        end = struct.pack("<2I", len(text), zlib.crc32(text)) + b"cLLM 1\r\n"
        (tmp_path / "odd").write_bytes(struct.pack("<3I", 0x67677371, 3, 0) + text + end)
        refused(engine, "not damaged", "odd")


def test_a_file_is_in_the_format_of_llama_cpp(saving: Loader, tmp_path: Path) -> None:
    first = saving()
    saved(first)
    second = saving()
    words, count = (ctypes.c_int32 * 1000)(), ctypes.c_size_t()
    pointer = second._runner._context._handle
    path = str(tmp_path / "talk.bin").encode()
    assert llama_cpp.llama_state_seq_load_file(pointer, path, 0, words, 1000, count) > 0
    assert list(words[: count.value]) == [-1, 1, len(PROMPT), *PROMPT, 0]


def test_a_list_of_the_tokens_alone_is_read_too(saving: Loader, tmp_path: Path) -> None:
    saved(saving())
    data = (tmp_path / "talk.bin").read_bytes()
    tokens, rest = data[24 : 24 + 4 * len(PROMPT)], data[24 + 4 * len(PROMPT) + 4 :]
    (tmp_path / "talk.bin").write_bytes(data[:8] + struct.pack("<I", len(PROMPT)) + tokens + rest)
    assert saving().sessions.restore(0, "talk.bin").result(WAIT).n_tokens == len(PROMPT)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "/etc/passwd", "a\0b", "x" * 300, 3]
)
def test_names_stay_in_the_directory(saving: Loader, name: str) -> None:
    engine = saving()
    for action in (engine.sessions.save, engine.sessions.restore):
        with pytest.raises(InvalidRequest, match="filename"):
            action(0, name)


def test_a_file_that_is_not_there_is_named(saving: Loader) -> None:
    refused(saving(), "nothing.bin.*--slot-save-path", "nothing.bin")


def test_an_empty_slot_is_not_saved_and_an_unknown_one_refused(
    saving: Loader, tmp_path: Path
) -> None:
    engine = saving()
    with pytest.raises(InvalidRequest, match="holds tokens"):
        engine.sessions.save(1, "x").result(WAIT)
    for slot in (-1, 2):
        with pytest.raises(InvalidRequest, match="from 0 to 1"):
            engine.sessions.erase(slot)
    assert list(tmp_path.iterdir()) == []


def test_an_erased_slot_holds_nothing(saving: Loader) -> None:
    engine = saving(cache_ram=0)
    finished(engine.submit(PROMPT, greedy(1)))
    assert engine.sessions.erase(0).result(WAIT) == len(PROMPT)
    assert engine.sessions.erase(0).result(WAIT) == 0
    assert finished(engine.submit(PROMPT, greedy(1))).usage.cached_tokens == 0


def test_what_a_slot_held_before_is_kept_in_memory(saving: Loader) -> None:
    engine = saving(parallel=1)
    saved(engine)
    other = [*range(30, 130)]
    finished(engine.submit(other, greedy(1)))
    engine.sessions.restore(0, "talk.bin").result(WAIT)
    assert finished(engine.submit([*other, 9], greedy(1))).usage.cached_tokens == len(other)


def test_a_busy_slot_is_saved_when_its_request_has_ended(saving: Loader) -> None:
    engine = saving()
    running = Watched(engine, PROMPT, greedy(None))
    running.wait_for_tokens(3)
    future = engine.sessions.save(0, "talk.bin")
    running.generation.cancel()
    assert future.result(WAIT).n_tokens >= len(PROMPT) + 2


def test_without_a_directory_only_erasing_works(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=256)
    for action in (engine.sessions.save, engine.sessions.restore):
        with pytest.raises(NotEnabled, match="--slot-save-path"):
            action(0, "x")
    assert engine.sessions.erase(0).result(WAIT) == 0


def test_closing_ends_what_still_waits(saving: Loader) -> None:
    engine = saving(context_shift=True)
    running = Watched(engine, PROMPT, greedy(None))
    running.wait_for_tokens(1)
    saving_, erasing = engine.sessions.save(0, "x"), engine.sessions.erase(0)
    engine.close()
    with pytest.raises(EngineClosed):
        saving_.result(WAIT)
    with pytest.raises(EngineClosed):
        erasing.result(WAIT)
    with pytest.raises(EngineClosed):
        engine.sessions.save(0, "x").result(WAIT)


def test_a_directory_that_is_not_there_is_refused_at_once(load: Loader, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a directory"):
        load(slot_save_path=str(tmp_path / "nowhere"))


def test_a_disk_that_cannot_be_written_is_an_error_and_leaves_nothing(
    saving: Loader, tmp_path: Path
) -> None:
    engine = saving()
    finished(engine.submit(PROMPT, greedy(1)))
    (tmp_path / "taken").mkdir()
    with pytest.raises(Exception, match="cannot write taken"):
        engine.sessions.save(0, "taken").result(WAIT)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
