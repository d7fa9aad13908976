"""Generation without HTTP: cLLM's engine in a process of its own, and llama.cpp's batched bench."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from cllm.engine import Constraint, Engine, Generation, SamplingParams
from cllm.engine.machine.openmp import environment_without_bounds

from ..clients.load import SPAWN
from ..common import BenchError
from ..workloads import CEILING_PROMPT, SCHEMA, Crowd, Request, Script, Workload
from .contenders import Answer, Setup, Steps, Turn, turn_of

ENGINE = "engine without HTTP"
BATCHED_BENCH = "llama-batched-bench"


class EngineContender:
    """`Engine.submit`, no socket."""

    def __init__(self, setup: Setup, work: Workload) -> None:
        self.name = ENGINE
        self._pipe, theirs = SPAWN.Pipe()
        options = {
            "parallel": work.parallel,
            "ctx_size": work.ctx_size,
            "threads": setup.threads,
            # llama-batched-bench keeps nothing of earlier rounds either.
            "cache_ram": 0 if work.alone else None,
        }
        self._process = SPAWN.Process(
            target=_serve, args=(theirs, setup.model, options), daemon=True
        )
        self._process.start()
        theirs.close()
        self.pid: int | None = self._process.pid
        self.steps()  # answered once the model is loaded

    def probe(self) -> None:
        return None

    def ask(self, crowd: Crowd, progress: Callable[[], object]) -> Turn:
        """Let the child use its engine; progress is reported once, at the end."""
        turn = self._exchange(crowd)
        assert isinstance(turn, Turn)
        for _ in turn.answers:
            progress()
        return turn

    def steps(self) -> Steps:
        steps = self._exchange("steps")
        assert isinstance(steps, Steps)
        return steps

    def restart(self) -> None:
        raise BenchError(f"{self.name} does not restart")

    def _exchange(self, message: object) -> object:
        try:
            self._pipe.send(message)
            return self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise BenchError(f"{self.name}: its process has died; see above") from None

    def close(self) -> None:
        self._pipe.close()
        self._process.join(30)
        self._process.kill()


def _serve(pipe: Pipe, model: Path, options: dict[str, Any]) -> None:
    """The child: answers one message after another until the pipe is closed."""
    with Engine.load(model, **options) as engine:
        while True:
            try:
                message = pipe.recv()
            except EOFError:
                return
            if isinstance(message, Crowd):
                pipe.send(run_crowd(engine, message))
            else:
                stats = engine.stats()
                pipe.send(Steps(stats.steps, stats.decode_s, stats.sampling_s, stats.other_s))


@dataclass(slots=True, eq=False)
class _Line:
    """One client: its requests, and the one that it waits for."""

    scripts: deque[Script]
    requests: deque[Request] = field(default_factory=deque)
    generation: Generation | None = None
    answer: Answer | None = None


def run_crowd(engine: Engine, crowd: Crowd) -> Turn:
    """The requests of a server's clients, by callbacks."""
    changed: queue.SimpleQueue[_Line] = queue.SimpleQueue()
    answers: list[Answer] = []
    waiting, late = deque(crowd.scripts), deque(crowd.late)
    lines = [_Line(waiting) for _ in range(crowd.clients)]
    busy = set()

    def begin(line: _Line) -> None:
        while not line.requests:
            if not line.scripts:
                return
            line.requests.extend(line.scripts.popleft())
        request = line.requests.popleft()
        line.generation, line.answer = None, Answer(request, time.monotonic())
        answers.append(line.answer)
        busy.add(line)
        line.generation = _submit(engine, line, request, changed)

    for line in lines:
        begin(line)
    while busy:
        line = changed.get()
        generation = line.generation
        if generation is not None and generation.done and line in busy:
            busy.discard(line)
            _finish(line)
            begin(line)
        if late and all(answer.times for answer in answers):
            last, late = _Line(late), deque()
            begin(last)
    return turn_of(answers, max(chain.from_iterable(answer.times for answer in answers)))


def _submit(
    engine: Engine, line: _Line, request: Request, changed: queue.SimpleQueue[_Line]
) -> Generation:
    assert line.answer is not None
    times = line.answer.times

    def on_update() -> None:
        times.append(time.monotonic())
        generation = line.generation
        if generation is None or generation.done or len(times) == 1:
            changed.put(line)
        elif len(times) == request.leave_after:
            generation.cancel()

    params = SamplingParams(
        max_tokens=request.max_tokens,
        ignore_eos=not request.json,
        constraint=Constraint("json_schema", SCHEMA) if request.json else None,
        **request.sampling,
    )
    return engine.submit(request.prompt, params, on_update=on_update)


def _finish(line: _Line) -> None:
    generation, answer = line.generation, line.answer
    assert generation is not None and answer is not None
    request, tokens = answer.request, generation.usage.completion_tokens
    if generation.error is not None:
        answer.fault = str(generation.error)
    elif not request.leave_after:
        answer.tokens = tokens
        expected = "stop" if request.json else "length"
        if generation.finish_reason != expected:
            answer.fault = f"it finished with {generation.finish_reason} after {tokens} tokens"


class BatchedBench:
    """llama.cpp's llama-batched-bench: random tokens decoded in step, nothing sampled, no text."""

    pid: int | None = None

    def __init__(self, setup: Setup, work: Workload) -> None:
        self.name = BATCHED_BENCH
        program = setup.llama_server and setup.llama_server.with_name(BATCHED_BENCH)
        if program is None or not os.access(program, os.X_OK):
            raise BenchError(f"{BATCHED_BENCH} must be next to the --llama-server PATH")
        self._command = [
            str(program), "--model", str(setup.model), "--threads", setup.some_threads,
            "--ctx-size", str(work.parallel * work.ctx_size), "--flash-attn", "auto",
            "--no-kv-unified", "--output-format", "jsonl", "-npp", str(CEILING_PROMPT),
            "-npl", str(work.parallel),
        ]  # fmt: skip

    def probe(self) -> None:
        return None

    def ask(self, crowd: Crowd, progress: Callable[[], object]) -> Turn:
        """Decode the tokens and sequences that the crowd requests."""
        tokens = crowd.scripts[0][0].max_tokens
        command = [*self._command, "-ntg", str(tokens)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment_without_bounds()
        )
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                found = json.loads(line)
                for _ in crowd.scripts:
                    progress()
                return Turn(found["pl"] * tokens, found["t_pp"] + found["t_tg"], [])
        raise BenchError(f"{self.name} gave no result:\n{done.stderr[-1000:]}")

    def restart(self) -> None:
        raise BenchError(f"{self.name} does not restart")

    def steps(self) -> None:
        return None

    def close(self) -> None:
        pass
