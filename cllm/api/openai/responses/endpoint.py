"""The endpoint: a request to one generation, and this to a response, whole or as events."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from cllm.api.chat.choice import Choice
from cllm.api.chat.events import Event, Text
from cllm.api.chat.fields import Names, named
from cllm.api.chat.prepare import Prepared, counted, prepare
from cllm.api.envelopes import JSON, encode
from cllm.api.llama_fields import most_tokens, place_of
from cllm.api.openai.errors import refused
from cllm.api.openai.logprobs import chat_logprobs
from cllm.api.openai.responses.conversation import conversation
from cllm.api.openai.responses.output import Named, Output
from cllm.api.openai.responses.schemas import RESPONSES, Item, ResponsesRequest
from cllm.api.openai.responses.store import ResponseStore, Stored
from cllm.api.openai.responses.tools import Toolbox
from cllm.api.openai.responses.truncation import fitted
from cllm.api.sampling import given_sampling
from cllm.api.service import Service
from cllm.api.submission import Submission, Wanted
from cllm.api.telemetry import progress_of, timings
from cllm.api.tenants import tenant_of
from cllm.engine import SamplingParams
from cllm.http import DeferredResponse, HttpError, HttpRequest, HttpResponse
from cllm.http.sse import PING

if TYPE_CHECKING:
    from cllm.engine import Generation

Keep = Callable[[str, bytes], None]
"""Stores the response of a generation's id: its JSON."""

_NAMES = ((re.compile(r"^(prompt|messages)\b"), "input"),)
_TOOL = re.compile(r"^tools\[(\d+)\]\.function")


@dataclass(frozen=True, slots=True)
class _Given:
    """A request. own: the items of its input. items: these, after those of the responses before.

    incomplete: whether a response that the bound on its tokens ends is called so.
    """

    asked: ResponsesRequest
    before: Stored | None
    own: list[Item]
    items: list[Item]
    tools: Toolbox
    incomplete: bool


class Responses:
    """The endpoints that make responses."""

    __slots__ = ("_service", "_store", "_submission")

    def __init__(self, service: Service, submission: Submission, store: ResponseStore) -> None:
        self._service = service
        self._store = store
        self._submission = submission

    def count_tokens(self, request: HttpRequest) -> HttpResponse:
        """POST ``/v1/responses/input_tokens``: the tokens of the prompt; raises as `create`."""
        given = self._given(request)
        with named(_names(given)):
            asks = conversation(given.asked, given.items, given.tools)
            return counted(self._service, asks, tenant_of(request))

    def create(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/v1/responses``. Raises HttpError 400 and 503, InvalidRequest, QueueFull."""
        given = self._given(request)
        asked, service = given.asked, self._service
        with named(_names(given)):
            prepared = self._prepared(given, tenant_of(request))
        params = _params(asked, prepared, service)
        place = place_of(asked, service.engine.info().context.n_slots)
        wanted = [Wanted(prepared.tokens, params, *place)]
        keep = None
        if asked.store is not False and self._store.most_bytes:
            keep = partial(self._keep, tenant_of(request), given)

        def reply(generations: Sequence[Generation]) -> _Reply:
            return _Reply(service, given, prepared, generations[0], keep)

        return self._submission.answer(
            request,
            asked,
            wanted,
            stream=asked.stream,
            frames=lambda generations: _Frames(reply(generations)),
            respond=lambda generations: reply(generations).whole(),
            refuse=refused,
        )

    def _given(self, request: HttpRequest) -> _Given:
        """The request with the conversation that it continues. Raises HttpError 400."""
        asked, tenant = RESPONSES.decode(request.body), tenant_of(request)
        before, id = None, asked.previous_response_id
        if id:
            before = self._store.get(tenant, id)
            if before is None:
                how = "send the whole conversation in input"
                raise HttpError(400, f'previous_response_id: "{id[:80]}" is not stored; {how}')
        own = [self._found(tenant, n, item) for n, item in enumerate(asked.items())]
        items = [*before.items(), *own] if before is not None else own
        # llama-server calls such a response completed.
        incomplete = request.path.startswith("/v1/")
        return _Given(asked, before, own, items, Toolbox.of(asked.tools or ()), incomplete)

    def _found(self, tenant: str, number: int, item: Item) -> Item:
        """The item, of a stored response if it is only referred to. Raises HttpError 400."""
        if item.type != "item_reference":
            return item
        found = self._store.item(tenant, item.id or "")
        if found is None:
            text = f'input[{number}].id: "{(item.id or "")[:80]}" is not stored; send the item'
            raise HttpError(400, text)
        return found

    def _prepared(self, given: _Given, tenant: str) -> Prepared:
        asked, service = given.asked, self._service
        asks = conversation(asked, given.items, given.tools)
        if asked.truncation == "auto":
            context = service.engine.info().context
            return fitted(asks, partial(prepare, service, tenant=tenant), context.ctx_size)
        return prepare(service, asks, tenant)

    def _keep(self, tenant: str, given: _Given, id: str, response: bytes) -> None:
        items = [
            item if item.id else replace(item, id=f"{_PREFIXES.get(item.type, 'item')}_{id}i{n}")
            for n, item in enumerate(given.own)
        ]
        stored = Stored(f"resp_{id}", encode(items), response, given.before)
        self._store.put(tenant, stored)


# The prefixes of items' ids, as OpenAI has them.
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}


def _names(given: _Given) -> Names:
    """The names of fields in errors: tools have those of the request."""
    return (*_NAMES, (_TOOL, lambda match: given.tools.fields[int(match[1])]))


def _params(asked: ResponsesRequest, prepared: Prepared, service: Service) -> SamplingParams:
    most = most_tokens(service.settings.sampling, asked.n_predict, asked.max_output_tokens)
    return SamplingParams(
        **{**given_sampling(asked, service), "max_tokens": most},
        constraint=prepared.constraint,
        spell_special=prepared.spell_special,
        report_progress=bool(asked.return_progress and asked.stream),
        logprobs=asked.logprobs,
    )


class _Reply:
    """One response under way."""

    __slots__ = (
        "_asked", "_choice", "_created", "_engine", "_incomplete", "_keep", "_model", "_tools",
        "generation", "output",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        given: _Given,
        prepared: Prepared,
        generation: Generation,
        keep: Keep | None,
    ) -> None:
        """keep: stores the response; None: it is not stored."""
        self._asked = asked = given.asked
        self._created = int(time.time())
        self._engine = service.engine if asked.logprobs is not None else None
        self._incomplete = given.incomplete
        self._keep = keep
        self._model = service.model_id
        self._tools = given.tools
        self._choice = Choice(generation, prepared, self._engine is not None)
        self.generation = generation
        self.output = Output(generation.id, given.tools.called)

    @property
    def timed(self) -> bool:
        """Whether each event has timings."""
        return bool(self._asked.timings_per_token)

    def whole(self) -> HttpResponse:
        for text in self.generation.take():
            self.push(text)
        for _ in self.finish():
            pass  # a whole response needs only the items
        return HttpResponse.bytes(self.ended(self.status())[1], JSON)

    def push(self, text: str) -> list[Named]:
        """What the next token's text makes."""
        return list(self._read(self._choice.push(text)))

    def finish(self) -> Iterable[Named]:
        """The end of the text."""
        yield from self._read(self._choice.finish())
        yield from self.output.close(self.status())

    def ended(self, status: str, error: str | None = None) -> tuple[dict[str, Any], bytes]:
        """The response's object and its JSON; stored if it is to be."""
        response = self.response(status, error)
        body = encode(response)
        if self._keep is not None and error is None:
            self._keep(self.generation.id, body)
        return response, body

    def _read(self, events: Sequence[Event]) -> Iterator[Named]:
        logprobs: Sequence[Any] = ()
        if self._engine is not None and any(isinstance(event, Text) for event in events):
            logprobs = chat_logprobs(self._engine, self._choice.records)["content"]
            self._choice.records.clear()
        return self.output.push(events, logprobs)

    def status(self) -> str:
        cut = self.generation.finish_reason == "length"
        return "incomplete" if cut and self._incomplete else "completed"

    def response(self, status: str, error: str | None = None) -> dict[str, Any]:
        """The response's object in this state; with counts once it has ended."""
        asked, usage = self._asked, self.generation.usage
        ended = status != "in_progress"
        cut = status == "incomplete" or self.generation.finish_reason == "length"
        counts = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._choice.reasoning_tokens()},
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
            "incomplete_details": {"reason": "max_output_tokens"} if ended and cut else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self._model,
            "output": self.output.items,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id or None,
            "reasoning": asked.reasoning or {"effort": None},
            "store": self._keep is not None,
            "temperature": asked.temperature,
            "text": {"format": format},
            "tool_choice": asked.tool_choice or "auto",
            "tools": self._tools.given,
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": asked.truncation or "disabled",
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
        response, _ = reply.ended(status, error)
        fields = {"response": response, "timings": timings(reply.generation)}
        return self._events([(f"response.{status}", fields)])

    def _events(self, events: Iterable[Named]) -> bytes:
        return b"".join([self._event(name, fields) for name, fields in events])

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        numbered = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(numbered))
