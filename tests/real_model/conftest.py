"""One engine and one server with the model that tests/tools/fetch_model.py fetches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from cllm.engine import Engine
from tests.api.api_client import Live, serving
from tests.real_model.reference import Reference
from tests.tools.fetch_model import is_there, model_path

CTX_SIZE = 1024
THREADS = 1  # two wait for each other where the machine does other things too


@pytest.fixture(scope="session")
def path() -> Path:
    if not is_there():
        pytest.skip(f"{model_path()} is missing; python -m tests.tools.fetch_model fetches it")
    return model_path()


@pytest.fixture(scope="session")
def engine(path: Path) -> Iterator[Engine]:
    """Decodes as llama.cpp does alone: a split cache, no flash attention, no guessed tokens."""
    with Engine.load(
        path, parallel=4, ctx_size=CTX_SIZE, threads=THREADS, threads_batch=THREADS,
        kv_unified=False, flash_attn="off", draft_max=0,
    ) as engine:  # fmt: skip
        yield engine


@pytest.fixture(scope="session")
def reference(path: Path, engine: Engine) -> Iterator[Reference]:
    kernels = engine.info().context.extra_bufts
    reference = Reference(path, ctx_size=CTX_SIZE, threads=THREADS, extra_bufts=kernels)
    yield reference
    reference.close()


@pytest.fixture(scope="session")
def live(engine: Engine) -> Iterator[Live]:
    with serving(engine) as live:
        yield live


@pytest.fixture(scope="session")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
        yield client
