"""What a model said, as a chat completion: whole, and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cllm.api.chat.choice import Choice
from cllm.api.chat.events import CallArguments, CallBegin, Event, Reasoning, Text
from cllm.api.chat.prepare import Prepared
from cllm.api.envelopes import encode
from cllm.api.openai.logprobs import chat_logprobs, prompt_logprobs
from cllm.api.openai.reply import Chunks, Reply, failed
from cllm.api.openai.schemas import ChatRequest
from cllm.api.telemetry import timings
from cllm.http import HttpResponse
from cllm.http.sse import PING

if TYPE_CHECKING:
    from cllm.engine import Engine, Generation
    from cllm.engine.generation import TokenRecord


def _usage(reply: Reply, choices: Sequence[Choice]) -> dict[str, Any]:
    thought = sum(choice.reasoning_tokens() for choice in choices)
    return {**reply.usage(), "completion_tokens_details": {"reasoning_tokens": thought}}


def whole(
    reply: Reply, prepared: Prepared, engine: Engine | None, asked: ChatRequest
) -> HttpResponse:
    """The response; engine: spells out the tokens where log-probabilities are wanted."""
    by_number, scored = bool(asked.return_tokens_as_token_ids), asked.prompt_logprobs
    choices, shown = [], []
    for index, generation in enumerate(reply.generations):
        choice = Choice(generation, prepared, engine is not None)
        message = _Message()
        records: list[TokenRecord] = []
        for text in generation.take():
            message.add(choice.push(text))
            records += choice.records
            choice.records.clear()
        message.add(choice.finish())
        records += choice.records
        logprobs = None if engine is None else chat_logprobs(engine, records, by_number)
        shown.append(
            {
                "index": index,
                "message": message.body(),
                "logprobs": logprobs,
                "finish_reason": choice.reason(),
            }
        )
        choices.append(choice)
    more: dict[str, Any] = {}
    if scored is not None:
        records = reply.generations[0].take_prompt_tokens()
        more["prompt_logprobs"] = prompt_logprobs(reply.engine, records, scored)
    return reply.whole("chat.completion", shown, _usage(reply, choices), **more)


class _Message:
    """An assistant's message put together."""

    __slots__ = ("_calls", "_reasoning", "_text")

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[CallBegin, list[str]]] = []

    def add(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Text):
                self._text.append(event.text)
            elif isinstance(event, Reasoning):
                self._reasoning.append(event.text)
            elif isinstance(event, CallBegin):
                self._calls.append((event, []))
            elif isinstance(event, CallArguments):
                self._calls[event.index][1].append(event.text)

    def body(self) -> dict[str, Any]:
        text = "".join(self._text)
        body: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._reasoning:
            body["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            body["content"] = text or None
            body["tool_calls"] = [
                {
                    "id": begin.id,
                    "type": "function",
                    "function": {"name": begin.name, "arguments": "".join(arguments)},
                }
                for begin, arguments in self._calls
            ]
        return body


class ChatFrames:
    """The chunks of a stream; see `cllm.api.stream.Frames`."""

    __slots__ = (
        "_by_number", "_choices", "_chunks", "_engine", "_pieces", "_plain", "_reply", "_timed",
    )  # fmt: skip

    ping = PING

    def __init__(
        self, reply: Reply, prepared: Prepared, engine: Engine | None, asked: ChatRequest
    ) -> None:
        self._timed = bool(asked.timings_per_token)
        self._by_number = bool(asked.return_tokens_as_token_ids)
        self._reply = reply
        self._engine = engine
        self._plain = engine is None and not self._timed  # of an event of text only that differs
        self._choices = [
            Choice(generation, prepared, engine is not None) for generation in reply.generations
        ]
        self._chunks = chunks = Chunks(reply, "chat.completion.chunk", asked.streams_usage)
        self._pieces = [
            (
                chunks.head + b'{"index":%d,"delta":{"content":' % index,
                b'},"logprobs":null,"finish_reason":null}' + chunks.tail,
            )
            for index in range(len(reply.generations))
        ]

    def opening(self) -> bytes:
        delta = {"role": "assistant", "content": None}
        return b"".join(self._delta(index, delta, None) for index in range(len(self._choices)))

    def delta(self, index: int, text: str) -> bytes:
        if not text:
            generation, choice = self._reply.generations[index], self._choice(index, {}, None)
            return self._chunks.progress(choice, generation, self._timed)
        events = self._choices[index].push(text)
        if self._plain and len(events) == 1 and isinstance(said := events[0], Text):
            before, behind = self._pieces[index]
            return before + encode(said.text) + behind
        return self._events(index, events)

    def end(self, index: int, generation: Generation, error: str | None) -> bytes:
        choice = self._choices[index]
        rest = self._events(index, choice.finish())
        if error is not None:
            return rest + failed(500, error)
        return rest + self._chunks.last(self._choice(index, {}, choice.reason()))

    def closing(self) -> bytes:
        return self._chunks.closing(_usage(self._reply, self._choices))

    def broken_off(self, reason: str) -> bytes:
        return failed(503, reason)

    def _events(self, index: int, events: Sequence[Event]) -> bytes:
        before, behind = self._pieces[index]
        shown = []
        for event in events:
            if not isinstance(event, Text):
                delta = _delta_of(event)
                if delta is not None:
                    shown.append(self._delta(index, delta, None))
            elif self._plain:
                shown.append(before + encode(event.text) + behind)
            else:
                shown.append(self._delta(index, {"content": event.text}, None))
        return b"".join(shown)

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None) -> bytes:
        timed = self._timed and "role" not in delta
        more = {"timings": timings(self._reply.generations[index])} if timed else {}
        return self._chunks.chunk(self._choice(index, delta, reason), **more)

    def _choice(self, index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        logprobs, records = None, self._choices[index].records
        if self._engine is not None and records:
            logprobs = chat_logprobs(self._engine, records, self._by_number)
            records.clear()
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _delta_of(event: Event) -> dict[str, Any] | None:
    if isinstance(event, Reasoning):
        return {"reasoning_content": event.text}
    if isinstance(event, CallBegin):
        function = {"name": event.name, "arguments": ""}
        begun = {"index": event.index, "id": event.id, "type": "function", "function": function}
        return {"tool_calls": [begun]}
    if isinstance(event, CallArguments):
        function = {"arguments": event.text}
        return {"tool_calls": [{"index": event.index, "function": function}]}
    return None
