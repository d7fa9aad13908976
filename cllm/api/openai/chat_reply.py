"""What a model said, as a chat completion: whole, and in chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cllm.api.chat.events import CallArguments, CallBegin, Event, Reasoning, Text
from cllm.api.chat.prepare import Prepared
from cllm.api.chat.thoughts import Thoughts
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


class _Choice:
    """One generation as it is read."""

    __slots__ = (
        "_bytes", "_generation", "_parser", "_recorded", "_thinking", "_thoughts", "called",
        "records",
    )  # fmt: skip

    def __init__(self, generation: Generation, prepared: Prepared, recorded: bool) -> None:
        self._generation = generation
        self._parser = prepared.parser()
        self._thinking: bool | None = None  # nothing was said yet
        self._thoughts = Thoughts()
        self._recorded: deque[TokenRecord] | None = deque() if recorded else None
        self._bytes = 0  # of the text, beyond the tokens whose records were reached
        self.called = False
        self.records: list[TokenRecord] = []  # of the answer, not yet shown

    def push(self, text: str) -> list[Event]:
        """What the next token's text makes."""
        self._reach(text)
        events = self._noted(self._parser.push(text))
        self._thoughts.count(self._thinking)
        return events

    def finish(self) -> list[Event]:
        """What the end makes."""
        if self._recorded is not None:
            self.records += [*self._recorded, *self._generation.take_tokens()]
        return self._noted(self._parser.finish())

    def reasoning_tokens(self) -> int:
        """How many of its tokens were thoughts."""
        return self._thoughts.tokens(self._generation.usage.completion_tokens)

    def reason(self) -> str:
        """Why it ended, once it has."""
        reason = self._generation.finish_reason or "stop"
        return "tool_calls" if self.called and reason == "stop" else reason

    def _reach(self, text: str) -> None:
        """Take the records of the tokens that made this text: others may be there already."""
        recorded = self._recorded
        if recorded is None:
            return
        recorded += self._generation.take_tokens()
        self._bytes += len(text.encode())
        while recorded and self._bytes > 0:
            record = recorded.popleft()
            self._bytes -= len(record.piece)
            self.records.append(record)

    def _noted(self, events: list[Event]) -> list[Event]:
        for event in events:
            self._thinking = isinstance(event, Reasoning)
            if isinstance(event, CallBegin):
                self.called = True
            if not isinstance(event, Text):
                self.records.clear()  # of thoughts, calls and marks
        return events


def _usage(reply: Reply, choices: Sequence[_Choice]) -> dict[str, Any]:
    thought = sum(choice.reasoning_tokens() for choice in choices)
    return {**reply.usage(), "completion_tokens_details": {"reasoning_tokens": thought}}


def whole(
    reply: Reply, prepared: Prepared, engine: Engine | None, scored: int | None = None
) -> HttpResponse:
    """The response; engine: spells out the tokens where log-probabilities are wanted.

    scored: how many alternatives of each token of the prompt to show; None: not even the token.
    """
    choices, shown = [], []
    for index, generation in enumerate(reply.generations):
        choice = _Choice(generation, prepared, engine is not None)
        message = _Message()
        records: list[TokenRecord] = []
        for text in generation.take():
            message.add(choice.push(text))
            records += choice.records
            choice.records.clear()
        message.add(choice.finish())
        records += choice.records
        logprobs = None if engine is None else chat_logprobs(engine, records)
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

    __slots__ = ("_choices", "_chunks", "_engine", "_pieces", "_reply", "_timed")

    ping = PING

    def __init__(
        self, reply: Reply, prepared: Prepared, engine: Engine | None, asked: ChatRequest
    ) -> None:
        self._timed = bool(asked.timings_per_token)
        self._reply = reply
        self._engine = engine
        self._choices = [
            _Choice(generation, prepared, engine is not None) for generation in reply.generations
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
        return self._events(index, self._choices[index].push(text))

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
            elif self._engine is None and not self._timed:
                shown.append(b"%b%b%b" % (before, encode(event.text), behind))
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
            logprobs = chat_logprobs(self._engine, records)
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
