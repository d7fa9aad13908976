"""Events of a parser to content blocks: whole in one message, or as the events of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from cllm.api.anthropic.errors import envelope
from cllm.api.chat.events import CallArguments, CallBegin, CallEnd, Event, Reasoning, Text
from cllm.api.chat.prepare import Prepared
from cllm.api.envelopes import encode

if TYPE_CHECKING:
    from cllm.engine import Generation


@dataclass(frozen=True, slots=True)
class Reply:
    """The fields of a message before its content. most: its maximum number of tokens."""

    model: str
    most: int
    generation: Generation

    def message(self, content: Sequence[Any], stop: dict[str, Any]) -> dict[str, Any]:
        """The message as its object; stop: `stop_reason` and `stop_sequence`."""
        head = {"id": f"msg_{self.generation.id}", "type": "message", "role": "assistant"}
        return {**head, "model": self.model, "content": content, **stop, "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Counts so far: tokens evaluated, tokens from the cache, tokens generated."""
        usage = self.generation.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
        }

    def stop(self, called: bool) -> dict[str, Any]:
        """Why it ended; called: whether a tool was called."""
        generation = self.generation
        reason = "tool_use" if called else "end_turn"
        if generation.finish_reason == "length":
            full = generation.usage.completion_tokens < self.most
            reason = "model_context_window_exceeded" if full else "max_tokens"
        elif generation.stop_text:
            reason = "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": generation.stop_text or None}


def content_of(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The blocks of a whole message."""
    blocks: list[dict[str, Any]] = []
    for event in events:
        last = blocks[-1] if blocks else {}
        if isinstance(event, Text):
            if last.get("type") != "text":
                blocks.append({"type": "text", "text": ""})
            blocks[-1]["text"] += event.text
        elif isinstance(event, Reasoning):
            if last.get("type") != "thinking":
                blocks.append({"type": "thinking", "thinking": "", "signature": ""})
            blocks[-1]["thinking"] += event.text
        elif isinstance(event, CallBegin):
            blocks.append({"type": "tool_use", "id": event.id, "name": event.name, "input": ""})
        elif isinstance(event, CallArguments):
            last["input"] += event.text
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = _object(block["input"])
    return blocks


def _object(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:  # the message ended within the call
        return {}


class MessageFrames:
    """The events of a streamed message; see `cllm.api.stream.Frames`."""

    __slots__ = ("_called", "_index", "_kind", "_parser", "_reply", "_text")

    ping = b'event: ping\ndata: {"type": "ping"}\n\n'

    def __init__(self, reply: Reply, prepared: Prepared) -> None:
        self._reply = reply
        self._parser = prepared.parser()
        self._kind = ""  # of the open block; "": none
        self._index = -1  # of the newest block
        self._called = False
        self._text = b""  # the prefix of a piece of the open text block

    def opening(self) -> bytes:
        message = self._reply.message([], {"stop_reason": None, "stop_sequence": None})
        return _event("message_start", {"message": message}) + self.ping

    def delta(self, index: int, text: str) -> bytes:
        return self._frames(self._parser.push(text))

    def end(self, index: int, generation: Generation, error: str | None) -> bytes:
        rest = (
            self._frames(self._parser.finish(generation.finish_reason == "length")) + self._close()
        )
        if error is not None:
            return rest + _event("error", envelope(500, error))
        stop = self._reply.stop(self._called)
        rest += _event("message_delta", {"delta": stop, "usage": self._reply.usage()})
        return rest + _event("message_stop", {})

    def closing(self) -> bytes:
        return b""

    def broken_off(self, reason: str) -> bytes:
        return _event("error", envelope(503, reason))

    def _frames(self, events: Sequence[Event]) -> bytes:
        return b"".join([self._frame(event) for event in events])

    def _frame(self, event: Event) -> bytes:
        if isinstance(event, Text):
            opened = self._open("text", {"type": "text", "text": ""})
            return opened + self._text + encode(event.text) + b"}}\n\n"
        if isinstance(event, Reasoning):
            opened = self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            return opened + self._delta("thinking_delta", "thinking", event.text)
        if isinstance(event, CallBegin):
            self._called = True
            closed = self._close()
            block = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
            return closed + self._open("tool_use", block)
        if isinstance(event, CallArguments):
            return self._delta("input_json_delta", "partial_json", event.text)
        return self._close() if isinstance(event, CallEnd) else b""

    def _open(self, kind: str, block: dict[str, Any]) -> bytes:
        if self._kind == kind:
            return b""
        closed = self._close()
        self._kind, self._index = kind, self._index + 1
        self._text = (
            b"event: content_block_delta\n"
            b'data: {"type":"content_block_delta","index":%d,'
            b'"delta":{"type":"text_delta","text":' % self._index
        )
        fields = {"index": self._index, "content_block": block}
        return closed + _event("content_block_start", fields)

    def _close(self) -> bytes:
        if not self._kind:
            return b""
        signed = (
            self._delta("signature_delta", "signature", "") if self._kind == "thinking" else b""
        )
        self._kind = ""
        return signed + _event("content_block_stop", {"index": self._index})

    def _delta(self, kind: str, field: str, text: str) -> bytes:
        delta = {"type": kind, field: text}
        return _event("content_block_delta", {"index": self._index, "delta": delta})


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode({"type": name, **fields}))
