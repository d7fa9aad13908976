"""What the answers of both kinds of completion have in common, whole and in chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cllm.api.envelopes import JSON, encode
from cllm.api.openai.errors import error_body
from cllm.api.service import Service
from cllm.http import HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Generation

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """What every response to one request says of it."""

    id: str
    created: int  # seconds since 1970
    model: str
    choices: int  # of each prompt
    generations: Sequence[Generation]

    @classmethod
    def of(
        cls, service: Service, prefix: str, choices: int, generations: Sequence[Generation]
    ) -> Reply:
        """A reply that begins now."""
        id = f"{prefix}-{generations[0].id}"
        return cls(id, int(time.time()), service.model_id, choices, generations)

    def whole(self, kind: str, choices: Sequence[dict[str, Any]], usage: Any) -> HttpResponse:
        """The response; kind: its `object`."""
        body = {**self._head(kind), "choices": choices, "usage": usage}
        return HttpResponse.bytes(encode(body), JSON)

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
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class Chunks:
    """The chunks of a streamed reply; kind: their `object`; usage: the last one counts."""

    __slots__ = ("_usage", "head", "tail")

    def __init__(self, reply: Reply, kind: str, usage: bool) -> None:
        self.head = b"data: " + encode(reply._head(kind))[:-1] + b',"choices":['
        self.tail = b'],"usage":null}\n\n' if usage else b"]}\n\n"
        self._usage = usage

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """The chunk of one choice."""
        return self.head + encode(choice) + self.tail

    def closing(self, usage: dict[str, Any]) -> bytes:
        """What stands after the last choice's end."""
        if not self._usage:
            return DONE
        return self.head + b'],"usage":' + encode(usage) + b"}\n\n" + DONE


def failed(status: int, reason: str) -> bytes:
    """The event of a stream that does not come to its end."""
    return b"data: " + error_body(status, reason)[0] + b"\n\n"
