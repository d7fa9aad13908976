"""What the answers of both kinds of completion have in common, whole and in chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cllm.api.envelopes import JSON, encode
from cllm.api.openai.errors import error_body
from cllm.api.service import Service
from cllm.api.telemetry import fingerprint, progress_of, timings, verbose
from cllm.http import HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Engine, Generation, SamplingParams

    Shown = tuple[str, SamplingParams]  # a prompt, and how its first choice is made

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """What every response to one request says of it."""

    id: str
    created: int  # seconds since 1970
    model: str
    choices: int  # of each prompt
    generations: Sequence[Generation]
    engine: Engine
    shown: Shown | None

    @classmethod
    def of(
        cls,
        service: Service,
        prefix: str,
        choices: int,
        generations: Sequence[Generation],
        shown: Shown | None = None,
    ) -> Reply:
        """A reply that begins now. shown: what `__verbose` shows."""
        id, now, engine = f"{prefix}-{generations[0].id}", int(time.time()), service.engine
        return cls(id, now, service.model_id, choices, generations, engine, shown)

    def whole(
        self, kind: str, choices: Sequence[dict[str, Any]], usage: Any, **more: Any
    ) -> HttpResponse:
        """The response; kind: its `object`. more: fields next to the choices."""
        body = {**self._head(kind), "choices": choices, **more, "usage": usage, **self.figures()}
        return HttpResponse.bytes(encode(body), JSON)

    def figures(self) -> dict[str, Any]:
        """llama-server's fields in addition to OpenAI's: those of the first choice."""
        first = self.generations[0]
        more: dict[str, Any] = {"timings": timings(first)}
        if self.shown is not None:
            more["__verbose"] = verbose(self.engine, self.shown[0], first, self.shown[1])
        return more

    def usage(self) -> dict[str, Any]:
        """Counts; a prompt is counted once for all its choices."""
        prompts = self.generations[:: self.choices]
        read = sum(g.usage.prompt_tokens for g in prompts)
        made = sum(g.usage.completion_tokens for g in self.generations)
        return {
            "prompt_tokens": read,
            "completion_tokens": made,
            "total_tokens": read + made,
            "prompt_tokens_details": {"cached_tokens": sum(g.usage.cached_tokens for g in prompts)},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": fingerprint(self.engine.info()),
        }


class Chunks:
    """The chunks of a streamed reply; kind: their `object`; usage: the last one counts."""

    __slots__ = ("_reply", "_usage", "head", "tail")

    def __init__(self, reply: Reply, kind: str, usage: bool) -> None:
        self._reply = reply
        self.head = b"data: " + encode(reply._head(kind))[:-1] + b',"choices":['
        self.tail = b'],"usage":null}\n\n' if usage else b"]}\n\n"
        self._usage = usage

    def chunk(self, choice: dict[str, Any], **more: Any) -> bytes:
        """The chunk of one choice. more: fields next to it."""
        if more:
            tail = self.tail.removesuffix(b"}\n\n") + b"," + encode(more)[1:] + b"\n\n"
            return self.head + encode(choice) + tail
        return self.head + encode(choice) + self.tail

    def last(self, choice: dict[str, Any]) -> bytes:
        """The chunk with which a choice ends: with the figures, unless another chunk follows."""
        return self.chunk(choice, **({} if self._usage else self._reply.figures()))

    def progress(self, choice: dict[str, Any], generation: Generation, timed: bool) -> bytes:
        """The chunk of a choice without text that tells how much of the prompt has been read."""
        progress = generation.take_progress()
        more = {"prompt_progress": progress_of(generation, progress)}
        if timed:
            more["timings"] = timings(generation, progress)
        return self.chunk(choice, **more)

    def closing(self, usage: dict[str, Any]) -> bytes:
        """What stands after the last choice's end."""
        if not self._usage:
            return DONE
        more = encode({"usage": usage, **self._reply.figures()})[1:]
        return self.head + b"]," + more + b"\n\n" + DONE


def failed(status: int, reason: str) -> bytes:
    """The event of a stream that does not come to its end."""
    return b"data: " + error_body(status, reason)[0] + b"\n\n"
