"""The endpoint: a request to one generation, and this to a response, whole or as events."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cllm.api.chat.fields import named
from cllm.api.chat.prepare import Prepared, counted, prepare
from cllm.api.chat.thoughts import Thoughts
from cllm.api.envelopes import JSON, encode
from cllm.api.llama_fields import most_tokens, place_of
from cllm.api.openai.errors import refused
from cllm.api.openai.responses.conversation import conversation
from cllm.api.openai.responses.output import Named, Output
from cllm.api.openai.responses.schemas import RESPONSES, ResponsesRequest
from cllm.api.sampling import given_sampling
from cllm.api.service import Service
from cllm.api.submission import Submission, Wanted
from cllm.api.telemetry import progress_of, timings
from cllm.api.tenants import tenant_of
from cllm.engine import SamplingParams
from cllm.http import DeferredResponse, HttpRequest, HttpResponse
from cllm.http.sse import PING

if TYPE_CHECKING:
    from cllm.engine import Generation

_NAMES = (
    (re.compile(r"^(prompt|messages)\b"), "input"),
    (re.compile(r"^(tools\[\d+\])\.function"), r"\1"),
)


class Responses:
    """The endpoint."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def count_tokens(self, request: HttpRequest) -> HttpResponse:
        """POST ``/v1/responses/input_tokens``: the tokens of the prompt; raises as `create`."""
        asked = RESPONSES.decode(request.body)
        with named(_NAMES):
            return counted(self._service, conversation(asked), tenant_of(request))

    def create(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/v1/responses``. Raises HttpError 400 and 503, InvalidRequest, QueueFull."""
        asked = RESPONSES.decode(request.body)
        with named(_NAMES):
            prepared = prepare(self._service, conversation(asked), tenant_of(request))
        service = self._service
        params = _params(asked, prepared, service)
        place = place_of(asked, service.engine.info().context.parallel)
        wanted = [Wanted(prepared.tokens, params, *place)]

        def reply(generations: Sequence[Generation]) -> _Reply:
            return _Reply(self._service.model_id, asked, prepared, generations[0])

        return self._submission.answer(
            request,
            asked,
            wanted,
            stream=asked.stream,
            frames=lambda generations: _Frames(reply(generations)),
            respond=lambda generations: reply(generations).whole(),
            refuse=refused,
        )


def _params(asked: ResponsesRequest, prepared: Prepared, service: Service) -> SamplingParams:
    most = most_tokens(service.settings.sampling, asked.n_predict, asked.max_output_tokens)
    return SamplingParams(
        **{**given_sampling(asked, service), "max_tokens": most},
        constraint=prepared.constraint,
        spell_special=prepared.spell_special,
        report_progress=bool(asked.return_progress and asked.stream),
    )


class _Reply:
    """One response under way."""

    __slots__ = ("_asked", "_created", "_model", "_parser", "_thoughts", "generation", "output")

    def __init__(
        self, model: str, asked: ResponsesRequest, prepared: Prepared, generation: Generation
    ) -> None:
        self._asked = asked
        self._created = int(time.time())
        self._model = model
        self.generation = generation
        self.output = Output(generation.id)
        self._parser = prepared.parser()
        self._thoughts = Thoughts()

    @property
    def timed(self) -> bool:
        """Whether each event has timings."""
        return bool(self._asked.timings_per_token)

    def whole(self) -> HttpResponse:
        for text in self.generation.take():
            self.push(text)
        for _ in self.finish():
            pass  # a whole response needs only the items
        return HttpResponse.bytes(encode(self.response(self.status())), JSON)

    def push(self, text: str) -> list[Named]:
        """What the next token's text makes."""
        made = list(self.output.push(self._parser.push(text)))
        self._thoughts.count(self.output.thinking)
        return made

    def finish(self) -> Iterable[Named]:
        """The end of the text."""
        yield from self.output.push(self._parser.finish(self.generation.finish_reason == "length"))
        yield from self.output.close(self.status())

    def status(self) -> str:
        return "incomplete" if self.generation.finish_reason == "length" else "completed"

    def response(self, status: str, error: str | None = None) -> dict[str, Any]:
        """The response's object in this state; with counts once it has ended."""
        asked, usage = self._asked, self.generation.usage
        ended = status != "in_progress"
        counts = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {
                "reasoning_tokens": self._thoughts.tokens(usage.completion_tokens)
            },
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        format = (asked.text and asked.text.format) or {"type": "text"}
        return {
            "id": f"resp_{self.generation.id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None if error is None else {"code": "server_error", "message": error},
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self._model,
            "output": self.output.items,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": asked.reasoning or {"effort": None},
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": format},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": counts if ended else None,
        }


class _Frames:
    """The events of a streamed response; see `cllm.api.stream.Frames`."""

    __slots__ = ("_number", "_reply")

    ping = PING

    def __init__(self, reply: _Reply) -> None:
        self._number = 0
        self._reply = reply

    def opening(self) -> bytes:
        response = {"response": self._reply.response("in_progress")}
        return self._events([("response.created", response), ("response.in_progress", response)])

    def delta(self, index: int, text: str) -> bytes:
        reply = self._reply
        timed = {"timings": timings(reply.generation)} if reply.timed else {}
        if not text:
            progress = reply.generation.take_progress()
            told = {"prompt_progress": progress_of(reply.generation, progress), **timed}
            response = {"response": reply.response("in_progress"), **told}
            return self._events([("response.in_progress", response)])
        return self._events((name, {**fields, **timed}) for name, fields in reply.push(text))

    def end(self, index: int, generation: Generation, error: str | None) -> bytes:
        rest = self._events(self._reply.finish())
        return rest + self._last("failed" if error is not None else self._reply.status(), error)

    def closing(self) -> bytes:
        return b""

    def broken_off(self, reason: str) -> bytes:
        return self._last("failed", reason)

    def _last(self, status: str, error: str | None) -> bytes:
        reply = self._reply
        fields = {"response": reply.response(status, error), "timings": timings(reply.generation)}
        return self._events([(f"response.{status}", fields)])

    def _events(self, events: Iterable[Named]) -> bytes:
        return b"".join([self._event(name, fields) for name, fields in events])

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        numbered = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(numbered))
