"""What a parser makes of the model's text, as output items and as the events that build them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from cllm.api.chat.events import CallArguments, CallBegin, CallEnd, Event, Reasoning, Text
from cllm.api.openai.responses.tools import Called

Named = tuple[str, dict[str, Any]]  # an event's type and its fields

_LONGEST_ESCAPE = 12  # characters: two \\uXXXX of one character
_arguments = msgspec.json.Decoder(dict[str, str]).decode

_PART = {"message": "output_text", "reasoning": "reasoning_text"}


class Output:
    """The items so far. Everything that changes them comes back as events, in OpenAI's order."""

    __slots__ = ("_called", "_id", "_input", "_open", "items")

    def __init__(self, id: str, called: Mapping[str, Called]) -> None:
        """id: of the generation; every item's id is made from it. called: see `Toolbox`."""
        self._called = called
        self._id = id
        self._open = False  # whether the last item is still growing
        self._input = ""  # JSON with the input of a custom tool, so far
        self.items: list[dict[str, Any]] = []

    def push(self, events: Sequence[Event], logprobs: Sequence[Any] = ()) -> Iterator[Named]:
        """Take what the parser said. logprobs: of the tokens of the text."""
        texts = [event for event in events if isinstance(event, Text)]
        for event in events:
            if isinstance(event, Text):
                shown = logprobs if event is texts[-1] else ()
                yield from self._say("message", event.text, shown)
            elif isinstance(event, Reasoning):
                yield from self._say("reasoning", event.text)
            elif isinstance(event, CallBegin):
                yield from self.close()
                yield from self._begin_call(event)
            elif isinstance(event, CallArguments):
                yield from self._add_arguments(event.text)
            elif isinstance(event, CallEnd):
                yield from self.close()

    def close(self, status: str = "completed") -> Iterator[Named]:
        """End the item that is growing, if one is."""
        if not self._open:
            return
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            arguments = self._at(arguments=item["arguments"])
            yield "response.function_call_arguments.done", arguments
        elif item["type"] == "custom_tool_call":
            item["input"] = _input_in(self._input)
            yield "response.custom_tool_call_input.delta", self._at(delta=item["input"])
            yield "response.custom_tool_call_input.done", self._at(input=item["input"])
        else:
            (part,) = item["content"]
            text = self._at(text=part["text"], **_in_part(part, part.get("logprobs", ())))
            yield f"response.{part['type']}.done", text
            yield "response.content_part.done", self._at(content_index=0, part=part)
        self._open = False
        yield "response.output_item.done", {"output_index": len(self.items) - 1, "item": item}

    def _say(self, kind: str, text: str, logprobs: Sequence[Any] = ()) -> Iterator[Named]:
        if not self._open or self.items[-1]["type"] != kind:
            yield from self.close()
            yield from self._begin_text(kind)
        (part,) = self.items[-1]["content"]
        part["text"] += text
        if logprobs:
            part["logprobs"] += logprobs
        delta = self._at(delta=text, **_in_part(part, logprobs))
        yield f"response.{part['type']}.delta", delta

    def _begin_call(self, event: CallBegin) -> Iterator[Named]:
        called = self._called.get(event.name, Called(event.name))
        fields: dict[str, Any] = {"call_id": event.id, "name": called.name}
        if called.namespace is not None:
            fields["namespace"] = called.namespace
        if called.custom:
            self._input = ""
            yield from self._begin("custom_tool_call", "ctc", **fields, input="")
        else:
            yield from self._begin("function_call", "fc", **fields, arguments="")

    def _add_arguments(self, text: str) -> Iterator[Named]:
        item = self.items[-1]
        if item["type"] == "custom_tool_call":
            self._input += text
            return
        item["arguments"] += text
        yield "response.function_call_arguments.delta", self._at(delta=text)

    def _begin_text(self, kind: str) -> Iterator[Named]:
        part: dict[str, Any] = {"type": _PART[kind], "text": ""}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}
            yield from self._begin(kind, "msg", role="assistant", content=[])
        else:
            yield from self._begin(kind, "rs", summary=[], content=[])
        yield "response.content_part.added", self._at(content_index=0, part={**part})
        self.items[-1]["content"] = [part]

    def _begin(self, kind: str, prefix: str, **fields: Any) -> Iterator[Named]:
        id = f"{prefix}_{self._id}{len(self.items)}"
        item = {"id": id, "type": kind, "status": "in_progress", **fields}
        self._open = True
        self.items.append(item)
        yield (
            "response.output_item.added",
            {"output_index": len(self.items) - 1, "item": dict(item)},
        )

    def _at(self, **fields: Any) -> dict[str, Any]:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {**place, **fields}


def _in_part(part: Mapping[str, Any], logprobs: Sequence[Any]) -> dict[str, Any]:
    place: dict[str, Any] = {"content_index": 0}
    return {**place, "logprobs": logprobs} if part["type"] == "output_text" else place


def _input_in(arguments: str) -> str:
    """The one text in the arguments; the beginning of it if the answer ended within them."""
    for ending in ("", '"}'):
        for cut in range(_LONGEST_ESCAPE + 1):
            begun = arguments[: len(arguments) - cut] if cut else arguments
            with suppress(msgspec.MsgspecError):
                return _arguments(begun + ending).get("input", "")
    return ""
