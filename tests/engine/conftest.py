"""The built-in model and engines on it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine
from tests.engine.engine_helpers import Loader
from tests.engine.engine_models import write_f32, write_memoryless
from tests.random_model import random_path


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def model_path() -> Path:
    return random_path()


@pytest.fixture(scope="session")
def memoryless_path(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "memoryless.gguf"
    write_memoryless(model_path, path)
    return path


@pytest.fixture(scope="session")
def f32_path(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "f32.gguf"
    write_f32(model_path, path)
    return path


@pytest.fixture(scope="session")
def engine(memoryless_path: Path) -> Iterator[Engine]:
    """One engine for tests that need nothing special: 4 sequences of 512 tokens, exact logits."""
    with Engine.load(memoryless_path, parallel=4, ctx_size=512) as loaded:
        yield loaded


@pytest.fixture
def load(model_path: Path) -> Iterator[Loader]:
    """Loads engines with a configuration of the test's own and closes them afterwards."""
    engines: list[Engine] = []

    def loader(path: Path = model_path, **config: Any) -> Engine:
        engines.append(Engine.load(path, **config))
        return engines[-1]

    yield loader
    for loaded in engines:
        loaded.close()
