"""Answers in Ollama's form: lines of JSON as the text comes, or one JSON object.

The last line has the counts, and the durations in nanoseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import msgspec

from cllm.api.chat.choice import Choice
from cllm.api.chat.events import CallArguments, CallBegin, CallEnd, Event, Reasoning, Text
from cllm.api.chat.prepare import Prepared
from cllm.api.envelopes import JSON, encode
from cllm.api.openai.logprobs import chat_logprobs
from cllm.http import HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Engine, Generation

LINES = "application/x-ndjson"
_NS = 1_000_000_000


@dataclass(slots=True)
class Said:
    """A piece of an answer."""

    text: str = ""
    thinking: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.text or self.thinking or self.calls)


Shape = Callable[[Said], dict[str, Any]]
"""A piece as fields of a line: those of a chat or of a completion."""


def now() -> str:
    """The time, as Ollama writes it."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Job:
    """A request, as its answer needs it.

    engine: spells the tokens where log-probabilities are wanted, else None.
    prompt: its tokens, if the answer names them for the next turn.
    """

    model: str
    shape: Shape
    prepared: Prepared
    engine: Engine | None
    prompt: list[int] | None = None
    begun: int = field(default_factory=time.perf_counter_ns)


class Reader:
    """One generation, read into pieces."""

    __slots__ = ("_arguments", "_call", "_choice", "_generation", "_job")

    def __init__(self, job: Job, generation: Generation) -> None:
        self._job = job
        self._generation = generation
        recorded = job.engine is not None or job.prompt is not None
        self._choice = Choice(generation, job.prepared, recorded)
        self._call: CallBegin | None = None
        self._arguments: list[str] = []

    def push(self, text: str) -> Said:
        """What the next token's text says."""
        return self._said(self._choice.push(text))

    def finish(self) -> Said:
        """What the end says."""
        return self._said(self._choice.finish())

    def line(self, said: Said) -> dict[str, Any]:
        """A line with a piece of the answer."""
        line = {"model": self._job.model, "created_at": now(), **self._job.shape(said)}
        records, self._choice.records = self._choice.records, []
        if self._job.engine is not None and records:
            line["logprobs"] = chat_logprobs(self._job.engine, records)["content"]
        line["done"] = False
        return line

    def end(self) -> dict[str, Any]:
        """The fields of the last line."""
        job, generation = self._job, self._generation
        usage, timings = generation.usage, generation.timings
        end = {"done": True, "done_reason": _reason(generation)}
        if job.prompt is not None:
            end["context"] = job.prompt + self._choice.tokens
        return {
            **end,
            "total_duration": time.perf_counter_ns() - job.begun,
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": round(timings.prefill_s * _NS),
            "eval_count": usage.completion_tokens,
            "eval_duration": round(timings.decode_s * _NS),
        }

    def _said(self, events: Sequence[Event]) -> Said:
        said = Said()
        for event in events:
            if isinstance(event, Text):
                said.text += event.text
            elif isinstance(event, Reasoning):
                said.thinking += event.text
            elif isinstance(event, CallBegin):
                self._call, self._arguments = event, []
            elif isinstance(event, CallArguments):
                self._arguments.append(event.text)
            elif isinstance(event, CallEnd) and self._call is not None:
                said.calls.append(self._called(self._call))
                self._call = None
        return said

    def _called(self, call: CallBegin) -> dict[str, Any]:
        arguments = msgspec.json.decode("".join(self._arguments) or "{}")
        function = {"index": call.index, "name": call.name, "arguments": arguments}
        return {"id": call.id, "function": function}


def _reason(generation: Generation) -> str:
    return str(generation.finish_reason or "stop")


class Lines:
    """The lines of a stream; see `cllm.api.stream.Frames`."""

    __slots__ = ("_reader",)

    ping = b""  # clients expect JSON in every line

    def __init__(self, job: Job, generations: Sequence[Generation]) -> None:
        self._reader = Reader(job, generations[0])

    def opening(self) -> bytes:
        return b""

    def delta(self, index: int, text: str) -> bytes:
        said = self._reader.push(text)
        return _line(self._reader.line(said)) if said else b""

    def end(self, index: int, generation: Generation, error: str | None) -> bytes:
        said = self._reader.finish()
        rest = _line(self._reader.line(said)) if said else b""
        if error is not None:
            return rest + _line({"error": error})
        return rest + _line({**self._reader.line(Said()), **self._reader.end()})

    def closing(self) -> bytes:
        return b""

    def broken_off(self, reason: str) -> bytes:
        return _line({"error": reason})


def _line(fields: dict[str, Any]) -> bytes:
    return encode(fields) + b"\n"


def whole(job: Job, generations: Sequence[Generation]) -> HttpResponse:
    """The answer as one object."""
    generation = generations[0]
    reader = Reader(job, generation)
    said = Said()
    for piece in (*map(reader.push, generation.take()), reader.finish()):
        said.text += piece.text
        said.thinking += piece.thinking
        said.calls += piece.calls
    return HttpResponse.bytes(encode({**reader.line(said), **reader.end()}), JSON)
