"""A model is unloaded while the service is idle, and loaded again for the next request."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import requests

from cllm.api import ApiSettings, Service, create_handler
from cllm.api.idling import Idling, return_memory
from cllm.api.service import State
from cllm.engine import Engine, ModelLoadError
from cllm.engine.unloaded import Unloaded
from cllm.http import BodyStream, HttpRequest, HttpResponse, Server, ServerConfig
from cllm.startup import calm_collector
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


class Circle:
    """An object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


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
        self.circle: Circle | None = Circle()
        self.parts.append(weakref.ref(self.circle))
        calm_collector()
        self.may_load = threading.Event()
        self.may_load.set()
        self.error: Exception | None = None

    def note_parts(self, engine: Engine) -> None:
        each = (engine, engine._runner, engine._tokenizer)
        self.parts += [weakref.ref(part) for part in each]

    def close(self) -> None:
        engine, self.engine, self.circle = self.engine, None, None
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


def test_a_load_that_fails_is_told_and_tried_again(
    asleep: tuple[Live, Program], caplog: pytest.LogCaptureFixture
) -> None:
    live, program = asleep
    program.error = ModelLoadError("there is no file /srv/models/secret.gguf")
    answer = live.post("/generate", ASKED)
    assert answer.status_code == 503 and "the server's log says why" in answer.text
    assert "secret" not in answer.text and int(answer.headers["Retry-After"]) > 0
    assert "secret" in caplog.text
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


def test_freed_memory_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("not glibc")
    libc.malloc.restype = ctypes.c_void_p
    blocks = [ctypes.c_void_p(libc.malloc(1000)) for _ in range(50_000)]
    for block in blocks:
        ctypes.memset(block, 1, 1000)
    for block in blocks[:-1]:  # the last one keeps the heap from becoming smaller
        libc.free(block)
    before = anonymous_kib()
    return_memory()
    assert before - anonymous_kib() > 30_000
    libc.free(blocks[-1])

    returned = threading.Event()
    monkeypatch.setattr("cllm.api.idling.return_memory", returned.set)
    with resting(random_path(), parallel=1):
        assert returned.wait(PATIENCE), "after the model was unloaded"


def anonymous_kib() -> int:
    """Memory of this process that no file backs."""
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon:")
    ]
    return int(line.split()[1])


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


def test_a_failed_unload_leaves_no_request_waiting() -> None:
    tries: SimpleQueue[bool] = SimpleQueue()

    def unload() -> Unloaded:
        tries.put(True)
        raise RuntimeError("on purpose")

    idling = Idling(0.05, unload, lambda known: None)
    idling.start()
    try:
        assert tries.get(timeout=30) and tries.get(timeout=30)  # again after another period
        waiting = idling.enter()
        if waiting is not None:
            waiting.result(30)
    finally:
        idling.stop()


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


def test_health_asked_for_while_the_model_is_being_unloaded_is_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service(None)

    def unload_first(_: Engine) -> bool:
        service._engine = None  # as rest() does before the engine is closed
        return False

    with Engine.load(random_path(), parallel=1) as engine:
        service.ready(engine)
        monkeypatch.setattr(Engine, "healthy", property(unload_first))
        assert service.state is State.READY


def test_counters_asked_for_while_the_model_is_being_unloaded_are_those_at_rest() -> None:
    class Interrupted(Service):
        @property
        def engine(self) -> Engine:
            self.rest()
            return super().engine

    service = Interrupted(None)
    with Engine.load(random_path(), parallel=1) as engine:
        service.ready(engine)
        assert service.known is service.resting


def test_a_request_after_the_engine_has_failed_gets_an_engine_or_503() -> None:
    with resting(random_path(), seconds=10 * PATIENCE, parallel=1) as (live, program):
        idling = live.service.idling
        assert program.engine is not None and idling is not None
        program.engine._scheduler._inbox.fail(RuntimeError("on purpose"))
        eventually(lambda: live.service.state is State.UNHEALTHY, "the failure is noticed")
        assert live.post("/generate", ASKED).status_code == 503
        with idling._changed:  # from here on it may rest
            idling._seconds = SOON
            idling._changed.notify()
        wait_for_rest(live)
        assert live.get("/health").status_code == 503
        live.ask("/generate", **ASKED)
        assert live.get("/health").status_code == 200
