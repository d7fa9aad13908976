"""One engine with the built-in model and one server for all tests that need nothing special."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cllm.engine import Engine
from cllm.models import demo_path
from tests.api.api_client import Live, eventually, idle, serving
from tests.random_model import random_path


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with Engine.load(random_path(), parallel=8) as engine:
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
    """One slot and one place in the queue."""
    with Engine.load(random_path(), parallel=1, max_queue=1) as engine:
        yield engine
