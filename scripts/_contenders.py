"""Ways to ask for a generation: cLLM's engine in this process, cLLM over HTTP, other servers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from _bench import BenchError
from _load import Client
from _servers import HOST, Server, cllm_server, free_port

from cllm.engine import Engine, EngineConfig


@dataclass(frozen=True, slots=True)
class Workload:
    """What every contender is given; `sampling` in the names that cLLM and llama.cpp share."""

    model: Path
    parallel: int
    max_tokens: int
    ctx_size: int  # tokens per sequence
    threads: int
    sampling: dict[str, Any]


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


Asker = Callable[[str], int]
"""One client: a prompt in, the number of tokens that were generated out."""


class Contender(Protocol):
    """Something that generates; `asker()` is called once on each client thread."""

    @property
    def name(self) -> str: ...

    def asker(self) -> Asker: ...

    def steps(self) -> Steps | None:
        """The counters now; None where there are none."""

    def close(self) -> None: ...


class EngineContender:
    """`Engine.generate`, no socket."""

    name = "cLLM engine alone"

    def __init__(self, work: Workload) -> None:
        self._work = work
        self.engine = Engine.load(
            work.model,
            EngineConfig(parallel=work.parallel, ctx_size=work.ctx_size, threads=work.threads),
        )

    def asker(self) -> Asker:
        def ask(prompt: str) -> int:
            completion = self.engine.generate(
                prompt, max_tokens=self._work.max_tokens, ignore_eos=True, **self._work.sampling
            )
            return completion.usage.completion_tokens

        return ask

    def steps(self) -> Steps:
        stats = self.engine.stats()
        return Steps(stats.steps, stats.decode_s, stats.sampling_s, stats.other_s)

    def close(self) -> None:
        self.engine.close()


class HttpContender:
    """A server: the request's path, what its body holds beside the prompt, where the count is."""

    def __init__(
        self, server: Server, path: str, body: dict[str, Any], count: tuple[str, ...]
    ) -> None:
        self.name = server.name
        self.server = server
        self._path = path
        self._body = body
        self._count = count

    def asker(self) -> Asker:
        client = Client(HOST, self.server.port, timeout=600)

        def ask(prompt: str) -> int:
            answer = client.post(self._path, {"prompt": prompt, **self._body})
            if answer.status != 200:
                raise BenchError(f"{self.name}: {answer.status}: {answer.body[:400]!r}")
            found = answer.json()
            for key in self._count:
                found = found[key]
            return int(found)

        return ask

    def steps(self) -> Steps | None:
        return None

    def close(self) -> None:
        self.server.close()


class CllmContender(HttpContender):
    """cLLM over HTTP; its step counters are in /metrics."""

    def steps(self) -> Steps:
        with Client(HOST, self.server.port) as client:
            text = client.get("/metrics").body.decode()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        return Steps(
            int(float(values["cllm_steps_total"])),
            float(values["cllm_decode_seconds_total"]),
            float(values["cllm_sampling_seconds_total"]),
            float(values["cllm_other_step_seconds_total"]),
        )


def cllm(work: Workload) -> CllmContender:
    """The real server, `/generate`."""
    server = cllm_server(
        "--model", str(work.model), "--parallel", str(work.parallel),
        "--ctx-size", str(work.ctx_size), "--threads", str(work.threads), name="cLLM over HTTP",
    )  # fmt: skip
    body = {"max_tokens": work.max_tokens, "ignore_eos": True, **work.sampling}
    return CllmContender(server, "/generate", body, ("data", "usage", "completion_tokens"))


def llama_server(work: Workload, program: str) -> HttpContender:
    """llama.cpp's own server, `/completion`."""
    port = free_port()
    command = [
        program, "--model", str(work.model), "--host", HOST, "--port", str(port),
        "--parallel", str(work.parallel), "--ctx-size", str(work.parallel * work.ctx_size),
        "--threads", str(work.threads), "--no-webui", "--log-disable",
    ]  # fmt: skip
    server = Server("llama-server", command, port, start_timeout=120)
    body = {"n_predict": work.max_tokens, "ignore_eos": True, **work.sampling}
    return HttpContender(server, "/completion", body, ("tokens_predicted",))


def llama_cpp_server(work: Workload) -> HttpContender:
    """llama-cpp-python's server, `/v1/completions`; one request at a time."""
    needed = ("starlette_context", "sse_starlette", "pydantic_settings", "fastapi", "uvicorn")
    if any(importlib.util.find_spec(package) is None for package in needed):
        raise BenchError(
            "llama_cpp.server is not installed: pip install 'llama-cpp-python[server]'"
        )
    port = free_port()
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(work.model), "--host", HOST,
        "--port", str(port), "--n_ctx", str(work.ctx_size), "--n_threads", str(work.threads),
    ]  # fmt: skip
    server = Server("llama_cpp.server", command, port, start_timeout=120, health="/v1/models")
    body = {"max_tokens": work.max_tokens, **work.sampling}
    return HttpContender(server, "/v1/completions", body, ("usage", "completion_tokens"))
