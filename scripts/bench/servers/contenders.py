"""The compared servers: how each is started, and requests to the API that all of them have."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from ..clients.load import Client, ClientError, request_bytes
from ..clients.probe import Probe
from ..clients.streams import Call, Stream, read_streams
from ..common import BenchError
from ..workloads import SCHEMA, Crowd, Request, Workload
from .server import HOST, Server, cllm_server, free_port

SILENCE = 120.0  # seconds without a byte from any stream
_XLLAMACPP = """
import signal, sys
import xllamacpp

model, host, port, parallel, ctx_size, threads = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = model, [host], int(port)
params.n_parallel, params.n_ctx = int(parallel), int(parallel) * int(ctx_size)
params.kv_unified = False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
server = xllamacpp.Server(params)
signal.sigwait([signal.SIGTERM])
"""


@dataclass(frozen=True, slots=True)
class Setup:
    """What every contender gets.

    threads: None: one per core; for cLLM its own default. draft: the draft model, for cLLM and
    llama-server.
    """

    model: Path
    threads: int | None
    llama_server: Path | None
    draft: Path | None = None

    @property
    def some_threads(self) -> str:
        """For programs without a default of their own."""
        return str(self.threads or len(os.sched_getaffinity(0)))


@dataclass(slots=True)
class Answer:
    """The answer to one request; times in seconds on one clock."""

    request: Request
    sent: float
    times: list[float] = field(default_factory=list)  # of each piece of text
    tokens: int = 0
    fault: str | None = None
    cut: bool = False  # it was not complete at the crowd's limit; tokens: its events so far


@dataclass(slots=True)
class Turn:
    """One round of one contender."""

    tokens: int
    seconds: float
    answers: list[Answer]


@dataclass(frozen=True, slots=True)
class Steps:
    """An engine's step counters; times in seconds."""

    count: int
    decode: float
    sampling: float
    other: float

    def since(self, before: Steps) -> Steps:
        """What was added after `before`."""
        return Steps(
            self.count - before.count,
            self.decode - before.decode,
            self.sampling - before.sampling,
            self.other - before.other,
        )


class Contender(Protocol):
    """Something that generates."""

    name: str

    @property
    def pid(self) -> int | None:
        """Of the process that generates; None where it lives for one turn only."""

    def probe(self) -> Probe | None:
        """A client that requests its health; None if it does not listen."""

    def ask(self, crowd: Crowd, progress: Callable[[], object]) -> Turn: ...

    def steps(self) -> Steps | None:
        """The counters now; None if there are none."""

    def restart(self) -> None:
        """End it as its user would, and start it again."""

    def close(self) -> None: ...


class HttpContender:
    """A server with OpenAI's completions, streamed."""

    def __init__(
        self, start: Callable[[], Server], counters: bool = False, may_stop: bool = False
    ) -> None:
        """may_stop: it knows no `ignore_eos`, so its answers may be shorter than asked for."""
        self._start, self._may_stop = start, may_stop
        self._server = start()
        self._counters = counters
        self.name = self._server.name

    @property
    def pid(self) -> int | None:
        return self._server.pid

    def probe(self) -> Probe:
        return Probe(HOST, self._server.port, self._server.health, interval=0.05, patience=5.0)

    def ask(self, crowd: Crowd, progress: Callable[[], object]) -> Turn:
        """Send a crowd's requests and judge the answers."""
        calls = [[_call(request) for request in script] for script in crowd.scripts]
        late = [[_call(request) for request in script] for script in crowd.late]
        streams = read_streams(
            HOST, self._server.port, calls, silence=SILENCE, progress=progress,
            clients=crowd.clients, late=late, limit=crowd.limit,
        )  # fmt: skip
        asked = chain.from_iterable((*crowd.scripts, *crowd.late))
        got = chain.from_iterable(streams)
        answers = [
            judge(request, stream, self._may_stop)
            for request, stream in zip(asked, got, strict=True)
        ]
        ends = [s.arrivals[-1][1] for script in streams for s in script if s.arrivals]
        if any(answer.cut for answer in answers):
            ends.append(time.monotonic())
        return turn_of(answers, max(ends))

    def steps(self) -> Steps | None:
        """From cLLM's /metrics."""
        if not self._counters:
            return None
        with Client(HOST, self._server.port) as client:
            text = client.get("/metrics").body.decode()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        return Steps(
            int(float(values["cllm_steps_total"])),
            float(values["cllm_decode_seconds_total"]),
            float(values["cllm_sampling_seconds_total"]),
            float(values["cllm_other_step_seconds_total"]),
        )

    def restart(self) -> None:
        self._server.close()
        self._server = self._start()

    def close(self) -> None:
        self._server.close()


def turn_of(answers: list[Answer], end: float) -> Turn:
    """Tokens of the complete answers, over the time of the whole round."""
    tokens = sum(answer.tokens for answer in answers if answer.fault is None)
    return Turn(tokens, end - min(answer.sent for answer in answers), answers)


def _call(request: Request) -> Call:
    body: dict[str, Any] = {
        "max_tokens": request.max_tokens, "stream": True,
        "stream_options": {"include_usage": True}, **request.sampling,
    }  # fmt: skip
    if request.json:
        shape = {"name": "thing", "strict": True, "schema": SCHEMA}
        body["messages"] = [{"role": "user", "content": request.prompt}]
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
        path = "/v1/chat/completions"
    else:
        body |= {"prompt": request.prompt, "ignore_eos": True}
        path = "/v1/completions"
    return Call(request_bytes("POST", path, body), request.leave_after)


def judge(request: Request, stream: Stream, may_stop: bool = False) -> Answer:
    """Parse a response; `fault` says what is wrong with it, if anything.

    If the client left, only the times count; if the answer was cut, nothing is checked.
    may_stop: the model may end its text before `max_tokens`.
    """
    answer = Answer(request, stream.sent)
    if stream.left:
        return answer
    if stream.cut:
        answer.cut, answer.times = True, stream.pieces()
        answer.tokens = len(answer.times)
        return answer
    try:
        events, times = stream.events()
        _read(answer, events, times, may_stop)
    except (ClientError, ValueError, LookupError, TypeError, AttributeError) as error:
        answer.fault = f"{type(error).__name__}: {error}"
    return answer


def _read(answer: Answer, events: list[bytes], times: list[float], may_stop: bool) -> None:
    request, text, ids = answer.request, "", set()
    finish = usage = None
    if events[-1] != b"[DONE]":
        raise ClientError(f"the last event is not [DONE] but {events[-1][:200]!r}")
    for data, when in zip(events[:-1], times, strict=False):
        event = json.loads(data)
        if "error" in event:
            raise ClientError(f"an error: {event['error']}")
        ids.add(event["id"])
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            finish = choice["finish_reason"] or finish
            piece = choice["text"] if "text" in choice else choice["delta"].get("content")
            if piece:
                text += piece
                answer.times.append(when)
    expected = "stop" if request.json else "length"
    if len(ids) != 1:
        raise ClientError("the id changed within a stream")
    if finish != expected and not (may_stop and finish == "stop"):
        raise ClientError(f"it finished with {finish!r} instead of {expected!r}")
    counted = request.max_tokens if finish == "length" else len(answer.times)
    answer.tokens = usage["completion_tokens"] if usage else counted
    if not request.json and finish == "length" and answer.tokens != request.max_tokens:
        raise ClientError(f"{answer.tokens} tokens instead of {request.max_tokens}")
    if request.json:
        check_shape(json.loads(text), SCHEMA)


def check_shape(value: Any, schema: dict[str, Any]) -> None:
    """Raise `ClientError` unless the value has the shape; knows what SCHEMA uses."""
    kinds: dict[str, type] = {
        "object": dict, "array": list, "string": str, "integer": int, "boolean": bool,
    }  # fmt: skip
    right = value in schema["enum"] if "enum" in schema else type(value) is kinds[schema["type"]]
    if right and isinstance(value, dict):
        right = set(value) == set(schema["required"])
        for name, inner in schema["properties"].items() if right else ():
            check_shape(value[name], inner)
    elif right and isinstance(value, list):
        right = schema["minItems"] <= len(value) <= schema["maxItems"]
        for item in value:
            check_shape(item, schema["items"])
    elif right and isinstance(value, str) and "type" in schema:
        right = schema["minLength"] <= len(value) <= schema["maxLength"]
    elif right and type(value) is int:
        right = schema["minimum"] <= value <= schema["maximum"]
    if not right:
        raise ClientError(f"{value!r} is not {schema}")


def cllm(setup: Setup, work: Workload) -> Contender:
    """The real server; with a cache on disk if it is to restart."""
    more = ["--model-draft", str(setup.draft)] if setup.draft else []
    more += ["--threads", str(setup.threads)] if setup.threads else []
    if work.restarts:
        folder = tempfile.mkdtemp(prefix="cllm-bench-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        more += ["--cache-disk", folder]
    return HttpContender(lambda: cllm_server(
        "--model", str(setup.model), "--parallel", str(work.parallel),
        "--ctx-size", str(work.ctx_size), *more,
    ), counters=not work.restarts)  # fmt: skip


def llama_server(setup: Setup, work: Workload) -> Contender:
    """llama.cpp's own server, with the draft model if there is one."""
    draft = ["-md", str(setup.draft), "--spec-type", "draft-simple"] if setup.draft else []
    return _llama_server(setup, work, "llama-server", *draft)


def llama_server_ngram(setup: Setup, work: Workload) -> Contender:
    """The same with drafts from the prompt, which are off by default."""
    return _llama_server(setup, work, "llama-server, n-grams", "--spec-type", "ngram-simple")


def _llama_server(setup: Setup, work: Workload, name: str, *more: str) -> Contender:
    if setup.llama_server is None:
        raise BenchError("llama-server: name the program with --llama-server PATH")
    command = [
        str(setup.llama_server), "--model", str(setup.model), "--host", HOST,
        "--parallel", str(work.parallel), "--ctx-size", str(work.parallel * work.ctx_size),
        "--threads", setup.some_threads, "--flash-attn", "auto", "--no-webui", "--log-disable",
        *more,
    ]  # fmt: skip
    return HttpContender(lambda: _on_port(name, command))


def llama_cpp_server(setup: Setup, work: Workload) -> Contender:
    """llama-cpp-python's server; one request at a time."""
    needed = ("starlette_context", "sse_starlette", "pydantic_settings", "fastapi", "uvicorn")
    _need("llama_cpp.server", "'llama-cpp-python[server]'", *needed)
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(setup.model), "--host", HOST,
        "--n_ctx", str(work.ctx_size), "--n_threads", setup.some_threads,
        "--interrupt_requests", "false", "--n_gpu_layers", "-1",
    ]  # fmt: skip
    return HttpContender(lambda: _on_port("llama_cpp.server", command, "/v1/models"), may_stop=True)


def _on_port(name: str, command: Sequence[str], health: str = "/health") -> Server:
    port = free_port()
    command = [*command, "--port", str(port)]
    return Server(name, command, port, start_timeout=120, health=health)


def xllamacpp(setup: Setup, work: Workload) -> Contender:
    """llama-server's code in a Python extension, with libraries of its own."""
    _need("xllamacpp", "xllamacpp", "xllamacpp")

    def start() -> Server:
        port = free_port()
        command = [
            sys.executable, "-c", _XLLAMACPP, str(setup.model), HOST, str(port), str(work.parallel),
            str(work.ctx_size), setup.some_threads,
        ]  # fmt: skip
        return Server("xllamacpp", command, port, start_timeout=120)

    return HttpContender(start)


def _need(name: str, install: str, *packages: str) -> None:
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise BenchError(f"{name} is not installed: pip install {install}")
