"""One generation of a chat as it is read: the events of its text, and the records of its tokens."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cllm.api.chat.events import CallBegin, Event, Reasoning, Text
from cllm.api.chat.prepare import Prepared
from cllm.api.chat.thoughts import Thoughts

if TYPE_CHECKING:
    from cllm.engine import Generation
    from cllm.engine.generation import TokenRecord


class Choice:
    """Reads one generation.

    recorded: whether its tokens have records. records: those of the answer that were not shown.
    """

    __slots__ = (
        "_bytes", "_generation", "_parser", "_recorded", "_thinking", "_thoughts", "called",
        "records", "tokens",
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
        self.tokens: list[int] = []  # all tokens that were recorded

    def push(self, text: str) -> list[Event]:
        """What the next token's text makes."""
        if self._recorded is not None:
            self._reach(text)
        events = self._noted(self._parser.push(text))
        self._thoughts.count(self._thinking)
        return events

    def finish(self) -> list[Event]:
        """What the end makes."""
        if self._recorded is not None:
            rest = [*self._recorded, *self._generation.take_tokens()]
            self.records += rest
            self.tokens += [record.token for record in rest]
        return self._noted(self._parser.finish(self._generation.finish_reason == "length"))

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
            self.tokens.append(record.token)

    def _noted(self, events: list[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, Text):
                self._thinking = False
                continue
            self._thinking = isinstance(event, Reasoning)
            self.records.clear()  # of thoughts, calls and marks
            if isinstance(event, CallBegin):
                self.called = True
        return events
