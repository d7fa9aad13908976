"""One engine with the built-in model and one server for all tests that need nothing special."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import pytest

from cllm.api import ApiSettings, keys, tenants
from cllm.api.tenants import Tenants
from cllm.engine import Engine, EngineConfig
from cllm.models import demo_path
from tests.api.api_client import Live, eventually, idle, serving
from tests.api.keyed import RING
from tests.random_model import random_path


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Eight slots, and texts without an end."""
    with Engine.load(random_path(), parallel=8, context_shift=True) as engine:
        yield engine


@pytest.fixture(scope="session")
def shared_server(engine: Engine) -> Iterator[Live]:
    with serving(engine) as live:
        yield live


@pytest.fixture
def live(shared_server: Live) -> Iterator[Live]:
    """The shared server; every test must leave its engine without work."""
    yield shared_server
    eventually(lambda: idle(shared_server.engine), "the engine has no work left")


@pytest.fixture(scope="session")
def stories() -> Iterator[Live]:
    """A server of the built-in model, whose answers mean something."""
    with Engine.load(demo_path(), parallel=4) as engine, serving(engine) as live:
        yield live


@pytest.fixture
def narrow() -> Iterator[Engine]:
    """One slot, one place in the queue, and texts without an end."""
    with Engine.load(random_path(), parallel=1, max_queue=1, context_shift=True) as engine:
        yield engine


@pytest.fixture(scope="session")
def keyed_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = str(tmp_path_factory.mktemp("slots"))
    config = EngineConfig(
        parallel=4, ctx_size=512, cache_ram=0, slot_save_path=folder, context_shift=True
    )
    with Engine.load(demo_path(), config) as engine:
        yield engine


@pytest.fixture
def keyed(keyed_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A server whose keys have limits; each test has the same engine and counts of its own.

    What was used stays used: no time passes for limits per minute.
    """
    for module in (keys, tenants):
        monkeypatch.setattr(module, "monotonic", lambda: 1000.0)
    engine = keyed_engine
    plain = Tenants(["plain"]).find(sha256(b"plain").digest())
    assert plain is not None
    for slot in range(4):
        for owner in ("", *(key.name for key in RING.keys), plain.owner):
            engine.sessions.erase(slot, owner).result(60)
    with serving(engine, ApiSettings(key_ring=RING, api_keys=("plain",))) as live:
        yield live
        eventually(lambda: idle(engine), "the engine has no work left")
