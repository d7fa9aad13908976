"""What a parser makes of the model's text, as output items and as the events that build them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cllm.api.chat.events import CallArguments, CallBegin, CallEnd, Event, Reasoning, Text

Named = tuple[str, dict[str, Any]]  # an event's type and its fields

_PART = {"message": "output_text", "reasoning": "reasoning_text"}


class Output:
    """The items so far. Everything that changes them comes back as events, in OpenAI's order."""

    __slots__ = ("_id", "_open", "items")

    def __init__(self, id: str) -> None:
        """id: of the generation; every item's id is made from it."""
        self._id = id
        self._open = False  # whether the last item is still growing
        self.items: list[dict[str, Any]] = []

    @property
    def thinking(self) -> bool | None:
        """Whether thoughts are growing; None: nothing has begun."""
        if not self.items:
            return None
        return self._open and self.items[-1]["type"] == "reasoning"

    def push(self, events: Sequence[Event]) -> Iterator[Named]:
        """Take what the parser said."""
        for event in events:
            if isinstance(event, Text):
                yield from self._say("message", event.text)
            elif isinstance(event, Reasoning):
                yield from self._say("reasoning", event.text)
            elif isinstance(event, CallBegin):
                yield from self.close()
                yield from self._begin("function_call", "fc", call_id=event.id, name=event.name)
            elif isinstance(event, CallArguments):
                self.items[-1]["arguments"] += event.text
                yield "response.function_call_arguments.delta", self._at(delta=event.text)
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
        else:
            (part,) = item["content"]
            text = self._at(text=part["text"], **self._in_part(part))
            yield f"response.{part['type']}.done", text
            yield "response.content_part.done", self._at(content_index=0, part=part)
        self._open = False
        yield "response.output_item.done", {"output_index": len(self.items) - 1, "item": item}

    def _say(self, kind: str, text: str) -> Iterator[Named]:
        if not self._open or self.items[-1]["type"] != kind:
            yield from self.close()
            yield from self._begin_text(kind)
        (part,) = self.items[-1]["content"]
        part["text"] += text
        yield f"response.{part['type']}.delta", self._at(delta=text, **self._in_part(part))

    def _begin_text(self, kind: str) -> Iterator[Named]:
        part: dict[str, Any] = {"type": _PART[kind], "text": ""}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}
            yield from self._begin(kind, "msg", role="assistant", content=[])
        else:
            yield from self._begin(kind, "rs", summary=[], content=[])
        yield "response.content_part.added", self._at(content_index=0, part=dict(part))
        self.items[-1]["content"] = [part]

    def _begin(self, kind: str, prefix: str, **fields: Any) -> Iterator[Named]:
        id = f"{prefix}_{self._id}{len(self.items)}"
        item = {"id": id, "type": kind, "status": "in_progress", **fields}
        if kind == "function_call":
            item["arguments"] = ""
        self._open = True
        self.items.append(item)
        yield (
            "response.output_item.added",
            {"output_index": len(self.items) - 1, "item": dict(item)},
        )

    def _at(self, **fields: Any) -> dict[str, Any]:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {**place, **fields}

    @staticmethod
    def _in_part(part: dict[str, Any]) -> dict[str, Any]:
        place: dict[str, Any] = {"content_index": 0}
        return {**place, "logprobs": []} if part["type"] == "output_text" else place
