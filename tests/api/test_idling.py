"""A model is unloaded while the service is idle, and loaded again for the next request."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from cllm.api import ApiSettings, Service, create_handler
from cllm.api.idling import Idling
from cllm.api.service import State
from cllm.engine import Engine, ModelLoadError
from cllm.engine.unloaded import Unloaded
from cllm.http import BodyStream, HttpRequest, HttpResponse, Server, ServerConfig
from tests.api.api_client import PATIENCE, Live, begin_post, eventually, read_until
from tests.embedding_models import bert
from tests.engine.lora_files import write_lora
from tests.random_model import random_path

SOON = 0.02  # seconds; the idle time where the test wants the model to be unloaded
ASKED: dict[str, Any] = {"prompt": "Hello", "max_tokens": 4, "temperature": 0.0}
QUIET = (
    *("/health", "/health?level=full", "/metrics", "/props", "/slots", "/v1/models", "/models"),
    *("/model/info", "/usage", "/lora-adapters", "/api/tags", "/api/ps", "/openapi.json", "/"),
)


class Program:
    """The owner of the engine, as in the program; loads may be held back or fail."""

    def __init__(self, path: Path, service: Service, **config: Any) -> None:
        self.path = path
        self.service = service
        self.config = config
        self.engine: Engine | None = Engine.load(path, **config)
        self.parts: list[weakref.ref[Any]] = []
        self.loads = 0
        self.note_parts(self.engine)
        self.may_load = threading.Event()
        self.may_load.set()
        self.error: Exception | None = None

    def note_parts(self, engine: Engine) -> None:
        each = (engine, engine._runner, engine._tokenizer)
        self.parts += [weakref.ref(part) for part in each]

    def close(self) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.close()

    def unload(self) -> Unloaded:
        known = self.service.rest()
        self.close()
        return known

    def load(self, before: Unloaded) -> None:
        self.loads += 1
        assert self.may_load.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        self.engine = Engine.load(self.path, before=before, **self.config)
        self.note_parts(self.engine)
        self.service.ready(self.engine)


@contextmanager
def resting(
    path: Path, settings: ApiSettings | None = None, seconds: float = SOON, **config: Any
) -> Iterator[tuple[Live, Program]]:
    """A server whose model is unloaded after `seconds`."""
    service = Service(None, settings)
    program = Program(path, service, **config)
    assert program.engine is not None
    idling = service.idling = Idling(seconds, program.unload, program.load)
    server = Server(create_handler(service), port=0, config=ServerConfig(grace=5.0))
    service.ready(program.engine)
    idling.start()
    server.start()
    try:
        with requests.Session() as session:
            yield Live(server, service, session), program
    finally:
        program.may_load.set()
        server.stop()
        idling.stop()
        program.close()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("adapter") / "a.gguf"
    return str(write_lora(random_path(), path, size=0.2, seed=1))


@pytest.fixture(scope="module")
def shared(adapter: str) -> Iterator[tuple[Live, Program]]:
    with resting(random_path(), parallel=2, ctx_size=512, lora=(adapter,)) as both:
        yield both


@pytest.fixture
def asleep(shared: tuple[Live, Program]) -> Iterator[tuple[Live, Program]]:
    """The shared server, its model unloaded."""
    live, program = shared
    wait_for_rest(live)
    program.loads = 0
    yield live, program
    program.error = None
    program.may_load.set()


def wait_for_rest(live: Live) -> None:
    eventually(lambda: live.service.resting is not None, "the model is unloaded")


def counter(live: Live, name: str) -> float:
    (line,) = [each for each in live.get("/metrics").text.splitlines() if each.startswith(name)]
    return float(line.split()[-1])


def test_what_needs_no_model_is_answered_while_it_is_unloaded(
    asleep: tuple[Live, Program],
) -> None:
    live, program = asleep
    for path in QUIET:
        assert live.get(path).status_code == 200, path
    assert live.post("/api/show", {"model": live.service.model_id}).status_code == 200
    assert live.get("/health").json()["data"] == {"status": "healthy", "model_loaded": False}
    assert live.get("/props").json()["is_sleeping"] is True
    assert [slot["is_processing"] for slot in live.get("/slots").json()] == [False] * 2
    assert (program.loads, program.engine) == (0, None)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/generate", ASKED),
        ("POST", "/tokenize", {"content": "Hello"}),
        ("POST", "/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("POST", "/lora-adapters", []),
        ("GET", "/tokenizer_info", None),
    ],
)
def test_a_request_that_needs_the_model_loads_it(
    asleep: tuple[Live, Program], method: str, path: str, body: Any
) -> None:
    live, program = asleep
    answer = live.session.request(method, live.url + path, json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    assert program.loads == 1
    wait_for_rest(live)


def test_requests_that_arrive_while_it_loads_wait_and_one_may_leave(
    asleep: tuple[Live, Program],
) -> None:
    live, program = asleep
    program.may_load.clear()
    peers = [begin_post(live, "/generate", ASKED) for _ in range(3)]
    eventually(lambda: program.loads == 1, "the load has begun")
    assert live.get("/health").status_code == 200
    peers[1].close()
    program.may_load.set()
    for peer in (peers[0], peers[2]):
        assert read_until(peer, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        peer.close()
    assert program.loads == 1
    wait_for_rest(live)


def test_a_load_that_fails_is_told_and_tried_again(asleep: tuple[Live, Program]) -> None:
    live, program = asleep
    program.error = ModelLoadError("the file is gone")
    assert "the file is gone" in live.refused("/generate", ASKED, 503)
    assert live.get("/health").status_code == 200
    program.error = None
    live.ask("/generate", **ASKED)
    assert program.loads == 2


def test_counters_history_and_scales_outlive_the_model(asleep: tuple[Live, Program]) -> None:
    live, _ = asleep
    text = live.ask("/generate", **ASKED)["text"]
    live.post("/lora-adapters", [{"id": 0, "scale": 0.5}])
    wait_for_rest(live)
    made, ended = counter(live, "cllm_generated_tokens_total"), live.service.known.history.ended
    assert live.ask("/generate", **ASKED)["text"] != text
    assert live.get("/lora-adapters").json()[0]["scale"] == 0.5
    assert counter(live, "cllm_generated_tokens_total") == made + ASKED["max_tokens"]
    assert live.service.known.history.ended == ended + 1
    live.post("/lora-adapters", [{"id": 0, "scale": 1.0}])


def test_nothing_of_the_engine_stays_in_memory() -> None:
    with resting(random_path(), parallel=2) as (live, program):
        live.ask("/generate", **ASKED)
        wait_for_rest(live)
        live.ask("/generate", **ASKED)
        wait_for_rest(live)
        assert len(program.parts) >= 6
        eventually(lambda: all(part() is None for part in program.parts), "all parts are freed")


def test_a_stream_holds_the_model_until_it_has_ended() -> None:
    endless = {"prompt": "Hello", "max_tokens": 100_000, "ignore_eos": True}
    with resting(random_path(), parallel=1, ctx_size=512, context_shift=True) as (live, program):
        with live.post("/generate_stream", endless, stream=True) as answer:
            chunks = answer.iter_content(None)
            assert next(chunks)
            engine = program.engine
            streams = live.service.idling._streams  # type: ignore[union-attr]
            assert len(streams) == 1 and not streams[0].finished
            # Several idle times pass while it runs: each takes many tokens.
            for _, _ in zip(range(200), chunks, strict=False):
                assert program.engine is engine
        wait_for_rest(live)
        assert program.engine is None


def streaming(stream: BodyStream, request: HttpRequest) -> HttpResponse:
    return HttpResponse.stream(stream)


def test_streams_that_have_ended_are_not_kept() -> None:
    idling = Idling(3600, lambda: pytest.fail("not idle"), lambda known: None)
    request = HttpRequest.build("POST", "/generate_stream")
    for _ in range(1000):
        stream = BodyStream()
        stream.close()
        assert idling.enter() is None
        idling.held(partial(streaming, stream), request)
    assert len(idling._streams) <= 64


def test_an_embedding_model_is_unloaded_too() -> None:
    with resting(bert()) as (live, program):
        wait_for_rest(live)
        assert live.get("/slots").status_code == 200
        answer = live.post("/v1/embeddings", {"input": "hello"})
        assert answer.status_code == 200, answer.text
        assert program.loads == 1


def test_the_settings_of_the_api_outlive_the_model() -> None:
    template = "{{ messages[0].content }}!"
    settings = ApiSettings(chat_template=template, alias=("mine",))
    with resting(random_path(), settings, parallel=1) as (live, _):
        asked = {"messages": [{"role": "user", "content": "Hi"}]}
        for _ in range(2):
            wait_for_rest(live)
            assert live.post("/apply-template", asked).json()["prompt"].endswith("Hi!")
            assert live.get("/v1/models").json()["data"][0]["id"] == "mine"


class UnloadedWhenAsked:
    """An engine whose model is unloaded at the moment when a thread asks for its health."""

    def __init__(self, engine: Engine, program: Program) -> None:
        self._engine = engine
        self._program = program

    @property
    def healthy(self) -> bool:
        self._program.unload()
        return self._engine.healthy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class UnloadedWhenRead(Service):
    """Its model is unloaded at the moment after a thread has read that it is not."""

    program: Program

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "resting" and value is None:
            self.program.unload()
        return value


def test_a_look_at_the_state_during_an_unload_finds_no_failure() -> None:
    service = Service(None)
    program = Program(random_path(), service)
    assert program.engine is not None
    service.ready(program.engine)
    service._engine = UnloadedWhenAsked(program.engine, program)  # type: ignore[assignment]
    assert service.state is State.READY
    assert service.resting is not None
    assert service.state is State.READY


def test_something_is_known_of_the_model_at_every_moment_of_an_unload() -> None:
    service = UnloadedWhenRead(None)
    program = service.program = Program(random_path(), service)
    assert program.engine is not None
    service.ready(program.engine)
    assert service.known.info().name
    program.close()
