"""The repacked and AMX kernels are not used for models that they crash with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, SamplingParams, llama
from cllm.engine.config import EngineConfig
from cllm.engine.loading.gguf_header import read_header
from cllm.engine.loading.opening import wants_extra_bufts
from cllm.engine.machine import preflight
from cllm.engine.machine.preflight import Library, Verdict
from scripts.bench.servers.server import REPOSITORY

PROMPTS = ("the old house by the river was quiet", "a small dog ran over the bridge", "rain")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "hybrid.gguf"
    command = ["scripts.bench", "make-model", "--shape", "tiny-hybrid", str(path)]
    subprocess.run(
        [sys.executable, "-m", *command], cwd=REPOSITORY, check=True, timeout=100,
        capture_output=True,
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("features", "option", "wanted"),
    [
        ("AMX_INT8 = 1 | REPACK = 1", "auto", False),
        ("AMX_INT8 = 1 | REPACK = 1", "on", True),
        ("REPACK = 1", "auto", True),
    ],
)
def test_recurrent_layers_are_computed_without_amx(
    hybrid: Path,
    features: str,
    option: str,
    wanted: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(llama, "library", lambda: Library(Path(), "1", features))
    monkeypatch.setattr(preflight, "check", lambda library: Verdict(True, True, ""))
    header = read_header(hybrid)
    assert header.quantized and header.recurrent
    assert wants_extra_bufts(EngineConfig(extra_bufts=option), header) is wanted
    assert ("--extra-bufts on" in caplog.text) is not wanted


def test_sequences_of_a_quantized_hybrid_are_computed_together_as_alone(hybrid: Path) -> None:
    options: dict[str, Any] = {"parallel": 3, "ctx_size": 256, "flash_attn": "off"}
    params = SamplingParams(max_tokens=3, temperature=0.0)
    with Engine.load(hybrid, cache_ram=0, **options) as engine:
        together = [engine.submit(prompt, params) for prompt in PROMPTS]
        texts = [generation.result().text for generation in together]
    with Engine.load(hybrid, extra_bufts="off", cache_ram=0, **options) as engine:
        assert texts == [engine.submit(prompt, params).result().text for prompt in PROMPTS]
