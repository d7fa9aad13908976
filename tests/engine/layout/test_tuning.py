"""What `tune` promises: measured once, remembered, overridable; the same answers as by hand."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, EngineConfig
from cllm.engine.info import ContextInfo
from cllm.engine.layout import trial as layout_trial
from cllm.engine.layout import tuning
from cllm.engine.layout.tuning import Tuning
from cllm.engine.machine.preflight import Library
from tests.embedding_models import bert
from tests.engine.engine_helpers import Loader, finished, greedy
from tests.engine.engine_models import write_recurrent, write_windowed

# Without extra_bufts, whose preflight would run in each test's own cache.
SMALL: dict[str, Any] = {"parallel": 2, "ctx_size": 256, "extra_bufts": "off", "tune": True}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cllm"


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which layout is found does not matter here."""
    monkeypatch.setattr(layout_trial, "_REPEATS", (1, 2))


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried, so that the defaults are found at once."""
    monkeypatch.setattr(tuning, "TIME_LIMIT", 0.0)


def context_of(engine: Engine) -> ContextInfo:
    return engine.info().context


def tuning_of(engine: Engine) -> Tuning:
    found = context_of(engine).tuning
    assert found is not None
    return found


def remembered(cache: Path) -> Path:
    (file,) = cache.glob("tuning-*.json")
    return file


def test_without_it_nothing_is_measured(load: Loader, cache: Path) -> None:
    seen: list[float] = []
    engine = load(**(SMALL | {"tune": False}), tuning_progress=seen.append)
    assert context_of(engine).tuning is None
    assert (seen, list(cache.glob("tuning-*"))) == ([], [])


def test_it_is_measured_once_and_then_remembered(load: Loader) -> None:
    seen: list[float] = []
    first = load(**SMALL, tuning_progress=seen.append)
    assert not tuning_of(first).cached
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)

    again: list[float] = []
    second = load(**SMALL, tuning_progress=again.append)
    assert tuning_of(second).cached
    assert again == []
    for name in ("chosen", "speedup", "seconds"):
        assert getattr(tuning_of(second), name) == getattr(tuning_of(first), name)


def test_the_answer_is_that_of_the_same_options_given_by_hand(load: Loader) -> None:
    tuned = load(**SMALL)
    live = context_of(tuned)
    names = ("threads", "threads_batch", "kv_unified", "flash_attn", "ubatch_size")
    given = {name: getattr(live, name) for name in names}
    by_hand = load(**(SMALL | {"tune": False}), **given)
    prompt = "Once upon a time there was a fox who could read."
    texts = [finished(e.submit(prompt, greedy(60))).text for e in (tuned, by_hand)]
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("no_time")
def test_what_is_remembered_is_in_force(load: Loader, cache: Path) -> None:
    load(**SMALL)
    file = remembered(cache)
    content = json.loads(file.read_text())
    other = "on" if content["layout"]["flash_attn"] == "off" else "off"
    chosen = {"kv_unified": True, "flash_attn": other, "ubatch_size": 128}
    content["layout"] |= chosen
    file.write_text(json.dumps(content))
    engine = load(**SMALL)
    live = context_of(engine)
    assert {name: getattr(live, name) for name in chosen} == chosen
    assert tuning_of(engine).chosen == chosen
    prompts = [f"Story {i}" for i in range(6)]
    together = [engine.submit(prompt, greedy(20)) for prompt in prompts]
    assert all(finished(g).usage.completion_tokens == 20 for g in together)


def test_what_is_given_stays(load: Loader) -> None:
    given = {
        "threads": 3, "threads_batch": 1, "kv_unified": True, "flash_attn": "off",
        "ubatch_size": 100,
    }  # fmt: skip
    engine = load(**SMALL, **given)
    live = context_of(engine)
    assert {name: getattr(live, name) for name in given} == given
    assert tuning_of(engine).chosen == {}


@pytest.mark.usefixtures("no_time")
@pytest.mark.parametrize(
    "other",
    [{"parallel": 3}, {"ctx_size": 512}, {"threads": 1}, {"cache_type_k": "q8_0"},
     {"extra_bufts": "on"}],
)  # fmt: skip
def test_other_settings_are_measured_by_themselves(load: Loader, other: dict[str, Any]) -> None:
    load(**SMALL)
    assert not tuning_of(load(**(SMALL | other))).cached
    assert tuning_of(load(**SMALL, max_queue=3, draft_max=0)).cached


@pytest.mark.usefixtures("no_time")
def test_another_model_library_or_machine_is_measured_by_itself(
    load: Loader, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(**SMALL)
    copy = tmp_path / "copy.gguf"
    shutil.copy(model_path, copy)
    assert tuning_of(load(copy, **SMALL)).cached, "the same model elsewhere"
    write_windowed(model_path, copy)
    assert not tuning_of(load(copy, **SMALL)).cached

    monkeypatch.setattr(Library, "key", lambda self: "another library or CPU")
    assert not tuning_of(load(**SMALL)).cached
    monkeypatch.setattr(tuning, "hardware_threads", lambda: 1000)
    assert not tuning_of(load(**SMALL)).cached
    monkeypatch.setenv("OMP_PROC_BIND", "false")
    assert not tuning_of(load(**SMALL)).cached
    assert tuning_of(load(**SMALL)).cached


GOOD = {"threads": 1, "threads_batch": 1, "kv_unified": False, "flash_attn": "auto"}


def saved(speedup: Any = None, **damage: Any) -> str:
    layout = GOOD | {"ubatch_size": 512} | damage
    return json.dumps({"layout": layout, "speedup": speedup or {}, "seconds": 1.0})


@pytest.mark.usefixtures("no_time")
@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "\udcff", json.dumps({"layout": GOOD}), json.dumps({"layout": 3}),
     saved(threads=0), saved(threads=None), saved(kv_unified=2), saved(flash_attn="maybe"),
     saved(ubatch_size=4096), saved(speed=1), saved(speedup=[1])],
)  # fmt: skip
def test_a_damaged_file_is_told_and_made_again(
    load: Loader, cache: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    load(**SMALL)
    file = remembered(cache)
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with caplog.at_level(logging.WARNING, "cllm.engine"):
        assert not tuning_of(load(**SMALL)).cached
    assert [str(file) in record.getMessage() for record in caplog.records] == [True]
    assert tuning_of(load(**SMALL)).cached
    assert [path.name for path in cache.glob("*tuning*")] == [file.name]


@pytest.mark.parametrize(
    "config",
    [{"ctx_size": 2}, {"parallel": 1}, {"kv_unified": True, "kv_cells": 256},
     {"parallel": 40, "batch_size": 40}, {"cache_type_v": "q4_0", "cache_type_k": "q4_0"}],
)  # fmt: skip
def test_no_configuration_is_too_small_or_too_odd(load: Loader, config: dict[str, Any]) -> None:
    engine = load(**(SMALL | config))
    assert tuning_of(engine).seconds >= 0
    assert finished(engine.submit([5], greedy(1))).usage.completion_tokens == 1


@pytest.mark.parametrize("write", [write_recurrent, write_windowed])
def test_memories_of_other_kinds_are_tuned_too(
    load: Loader, model_path: Path, tmp_path: Path, write: Any
) -> None:
    path = tmp_path / "other.gguf"
    write(model_path, path)
    engine = load(path, **SMALL)
    assert not tuning_of(engine).cached
    assert finished(engine.submit("Once", greedy(5))).usage.completion_tokens == 5


def test_a_model_that_embeds_is_left_as_it_is_and_that_is_said(
    load: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(bert("mean"), tune=True)
    assert context_of(engine).tuning is None
    assert "tune has no effect" in caplog.text


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_measuring_ends_it_and_nothing_is_remembered(
    model_path: Path, cache: Path
) -> None:
    def interrupt(fraction: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Engine.load(model_path, EngineConfig(**SMALL), tuning_progress=interrupt)
    assert list(cache.glob("*tuning*")) == []
