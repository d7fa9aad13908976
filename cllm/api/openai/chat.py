"""``/v1/chat/completions``: a conversation in, its next turn out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cllm.api.chat import Conversation, Event, Prepared, Text, prepare
from cllm.api.openai.errors import refused
from cllm.api.openai.reply import Chunks, Reply, failed
from cllm.api.openai.schemas import CHAT, ChatRequest, Message
from cllm.api.responses import encode
from cllm.api.service import Service
from cllm.api.submission import Submission, Wanted
from cllm.http import DeferredResponse, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Generation


class ChatCompletions:
    """The endpoint."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def endpoint(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/v1/chat/completions``.

        Raises HttpError 400 and 503, InvalidRequest, QueueFull.
        """
        asked = CHAT.decode(request.body)
        prepared = prepare(self._service, _conversation(asked))
        most, count = asked.max_completion_tokens or asked.max_tokens, asked.n or 1
        wanted = [Wanted(prepared.tokens, asked.sampling(most, choice)) for choice in range(count)]

        def reply(generations: Sequence[Generation]) -> Reply:
            return Reply.of(self._service, "chatcmpl", count, generations)

        if asked.stream:
            usage = asked.streams_usage
            return self._submission.streamed(
                request, wanted, lambda generations: _Frames(reply(generations), prepared, usage)
            )
        return self._submission.whole(
            request, wanted, lambda generations: _whole(reply(generations), prepared), refused
        )


def _conversation(asked: ChatRequest) -> Conversation:
    messages = [_plain(message) for message in asked.messages]
    return Conversation(
        messages,
        template_kwargs=asked.chat_template_kwargs or {},
        continued=messages[-1]["role"] == "assistant",
    )


def _plain(message: Message) -> dict[str, Any]:
    """The message as templates expect it: content as one text, no empty fields."""
    plain: dict[str, Any] = msgspec.to_builtins(message)
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    plain["content"] = content or ""
    if message.role == "developer":
        plain["role"] = "system"
    return plain


def _whole(reply: Reply, prepared: Prepared) -> HttpResponse:
    choices = []
    for index, generation in enumerate(reply.generations):
        parser = prepared.parser()
        events = [*parser.push("".join(generation.take())), *parser.finish()]
        message = {"role": "assistant", "content": _text(events), "refusal": None}
        choice = {"index": index, "message": message, "logprobs": None}
        choices.append({**choice, "finish_reason": generation.finish_reason})
    return reply.whole("chat.completion", choices, reply.usage())


def _text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


class _Frames:
    """The chunks of a stream; see `cllm.api.stream.Frames`."""

    __slots__ = ("_chunks", "_parsers", "_pieces", "_reply")

    def __init__(self, reply: Reply, prepared: Prepared, usage: bool) -> None:
        self._reply = reply
        self._parsers = [prepared.parser() for _ in reply.generations]
        self._chunks = chunks = Chunks(reply, "chat.completion.chunk", usage)
        self._pieces = [
            (
                chunks.head + b'{"index":%d,"delta":{"content":' % index,
                b'},"logprobs":null,"finish_reason":null}' + chunks.tail,
            )
            for index in range(len(reply.generations))
        ]

    def opening(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._delta(index, delta, None) for index in range(len(self._parsers)))

    def delta(self, index: int, text: str) -> bytes:
        return self._events(index, self._parsers[index].push(text))

    def end(self, index: int, generation: Generation, error: str | None) -> bytes:
        rest = self._events(index, self._parsers[index].finish())
        if error is not None:
            return rest + failed(500, error)
        return rest + self._delta(index, {}, generation.finish_reason)

    def closing(self) -> bytes:
        return self._chunks.closing(self._reply.usage())

    def broken_off(self, reason: str) -> bytes:
        return failed(503, reason)

    def _events(self, index: int, events: Sequence[Event]) -> bytes:
        before, behind = self._pieces[index]
        text = _text(events)
        return b"%b%b%b" % (before, encode(text), behind) if text else b""

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._chunks.chunk(choice)
