"""Flash attention is left out where it is clearly slower for heads of the model's size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import EngineConfig, llama
from cllm.engine.layout.attention import with_faster_attention
from cllm.engine.layout.layout import Layout
from cllm.engine.llama import AttentionTimes
from cllm.engine.loading.gguf_header import read_header
from tests.engine.engine_helpers import Loader, finished, greedy
from tests.random_model import HEAD_SIZE, HEADS

MODULE = "cllm.engine.layout.attention"

# Microseconds of a token and of 64 tokens of a prompt, with flash attention and without it, for
# heads of 64 and 128 numbers on a Xeon with AVX512-FP16.
SMALL = AttentionTimes(386e-6, 17.4e-6), AttentionTimes(66e-6, 31.1e-6)
LARGE = AttentionTimes(104e-6, 28.1e-6), AttentionTimes(100e-6, 43.7e-6)


def chosen(path: Path, ctx_size: int = 2048, **config: Any) -> str:
    options = EngineConfig(**config)
    layout = Layout.of(options)
    found = with_faster_attention(layout, read_header(path).metadata, ctx_size, options)
    assert replace(found, flash_attn="auto") == replace(layout, flash_attn="auto")
    return found.flash_attn


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assume what heads of 64 take."""
    monkeypatch.setattr(llama, "offloads", lambda: False)
    monkeypatch.setattr(llama, "attention_times", lambda *_: SMALL)
    monkeypatch.setattr(f"{MODULE}.available_memory", lambda: 8 << 30)


@pytest.mark.usefixtures("measured")
def test_the_faster_one_is_chosen(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(model_path) == "off"
    for times in (LARGE, None):
        monkeypatch.setattr(llama, "attention_times", lambda *_, it=times: it)
        assert chosen(model_path) == "auto"


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    "config",
    [
        {"flash_attn": "on"},
        {"cache_type_v": "q8_0"},
        {"cache_type_k": "f32"},
        {"reproducible": True},
    ],
)
def test_what_is_configured_stays(model_path: Path, config: dict[str, Any]) -> None:
    assert chosen(model_path, **config) == config.get("flash_attn", "auto")


@pytest.mark.usefixtures("measured")
def test_scores_that_would_take_much_memory_are_not_kept(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = (256 << 20) // (4 * HEADS * 512)
    assert [chosen(model_path, n) for n in (fits, fits + 1)] == ["off", "auto"]
    cells = fits // 4
    assert chosen(model_path, cells, kv_unified=True, parallel=4) == "off"
    assert chosen(model_path, cells, kv_unified=True, parallel=5) == "auto"
    monkeypatch.setattr(f"{MODULE}.available_memory", lambda: 1 << 30)
    assert [chosen(model_path, n) for n in (fits // 2, fits // 2 + 1)] == ["off", "auto"]


def test_an_engine_computes_as_it_says_and_measures_once(load: Loader, model_path: Path) -> None:
    engine = load(parallel=2, ctx_size=512)
    expected = chosen(model_path, 512)
    assert engine.info().context.flash_attn == expected
    times = llama.attention_times(HEAD_SIZE, HEAD_SIZE)
    assert times is llama.attention_times(HEAD_SIZE, HEAD_SIZE)
    assert times is not None
    assert all(each.token_s > 0 and each.prompt_s > 0 for each in times)
    told = finished(engine.submit(list(range(30, 330)), greedy(8)))
    again = finished(engine.submit(list(range(30, 330)), greedy(8)))
    assert (again.text, again.usage.cached_tokens) == (told.text, 299)
