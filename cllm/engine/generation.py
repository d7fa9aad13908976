"""The handle given back for a prompt: its text so far, how it ended, and what it took.

Any thread may read, cancel and wait, and one thread at a time may take the text. The engine thread
writes, through a GenerationWriter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from cllm.engine.request import FinishReason, Meter, Request, RequestWriter, Timings, Usage
from cllm.engine.sharing import AdapterSet

__all__ = [
    "Completion",
    "FinishReason",
    "Generation",
    "GenerationWriter",
    "Progress",
    "TokenRecord",
    "followed",
]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token. piece: the bytes it adds to the text; none if it ends the generation.

    logprob, top: natural logarithms of the model's own probabilities, before any sampling
    parameter changes them; of the token, and of the most probable tokens in falling order, then of
    those that the request names. NaN and empty if the request did not ask for them.
    rank: of a token of the prompt: 1 if it is the most probable one; 0: unknown.
    """

    token: int
    piece: bytes
    logprob: float
    top: tuple[tuple[int, float], ...]
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Tokens of the prompt that have been read, the reused ones included, and the seconds so far.

    The first one of a prompt counts the reused tokens only, and no time.
    """

    evaluated: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation: the text that was not taken before, and the counts."""

    id: str
    text: str
    finish_reason: str
    usage: Usage
    timings: Timings


class Generation(Request):
    """One prompt's continuation as it is made. Made by Engine.submit().

    stop_text: the stop string that ended it, or "". has_newline: whether its text has one.
    slot: where it was computed; None before.
    discarded: tokens that context shifts took out of the context.
    guessed, guessed_right: drafted tokens that were evaluated, and those that were accepted.
    prefix: where the reused tokens of its prompt came from: "slot" (its own slot held them), "copy"
    (another slot), "running" (the slot of a running request), "memory" (host memory), "disk", "" if
    none were reused.
    adapters: the LoRA adapters that it is computed with.
    """

    __slots__ = (
        "_deltas",
        "_progress",
        "_prompt_records",
        "_records",
        "_taken_chars",
        "_text_chars",
        "adapters",
        "discarded",
        "guessed",
        "guessed_right",
        "has_newline",
        "prefix",
        "slot",
        "stop_text",
    )

    def __init__(
        self,
        prompt_tokens: int,
        on_update: Callable[[], None] | None = None,
        cancel: Callable[[Any], None] | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(prompt_tokens, on_update, cancel, meter)
        self._deltas: deque[str] = deque()
        self._records: deque[TokenRecord] = deque()
        self._prompt_records: deque[TokenRecord] = deque()
        self._progress: deque[Progress] = deque()
        self._text_chars = 0
        self._taken_chars = 0
        self.stop_text = ""
        self.has_newline = False
        self.slot: int | None = None
        self.discarded = 0
        self.guessed = 0
        self.guessed_right = 0
        self.prefix = ""
        self.adapters: AdapterSet = ()

    def take(self) -> list[str]:
        """Return the text made since the last call, whole characters, one entry per token.

        Never blocks. Tokens that added no text (a part of a character, of a stop string) have
        no entry. What was there before the end stays takeable after it, whatever the end was.
        """
        deltas = self._deltas
        if len(deltas) == 1:  # the common case
            text = deltas.popleft()
            self._taken_chars += len(text)
            return [text]
        taken = [deltas.popleft() for _ in range(len(deltas))]
        self._taken_chars += sum(map(len, taken))
        return taken

    def take_tokens(self) -> list[TokenRecord]:
        """Return the records made since the last call, one for each token generated.

        Never blocks. Empty unless the request asked for records. A token is recorded before its
        text can be taken.
        """
        records = self._records
        return [records.popleft() for _ in range(len(records))]

    def take_prompt_tokens(self) -> list[TokenRecord]:
        """Return the records of the prompt's tokens made since the last call; as take_tokens.

        All of them are there before the first record or text of the generation. The first one has
        no log-probability.
        """
        records = self._prompt_records
        return [records.popleft() for _ in range(len(records))]

    def take_progress(self) -> Progress:
        """Return what a text of no characters reports, for a request that asked for progress."""
        return self._progress.popleft()

    @property
    def pending_chars(self) -> int:
        """Characters that are ready and not taken."""
        return self._text_chars - self._taken_chars

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end and return what take() has not taken.

        Raises the generation's EngineError if it ended with one, and TimeoutError after
        `timeout` seconds. A cancelled generation returns the text it had.
        """
        self.wait(timeout)
        text = "".join(self.take())
        assert self._finish_reason is not None
        return Completion(self.id, text, self._finish_reason.value, self.usage, self.timings)


class GenerationWriter(RequestWriter):
    """The engine's side of a generation. Engine thread only."""

    __slots__ = ("_generation",)

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation)
        self._generation = generation

    def append(self, text: str) -> None:
        """Publish text."""
        generation = self._generation
        generation._deltas.append(text)
        generation._text_chars += len(text)
        if "\n" in text:
            generation.has_newline = True

    def record(self, record: TokenRecord) -> None:
        """Publish the record of a token, before its text."""
        self._generation._records.append(record)

    def record_prompt(self, record: TokenRecord) -> None:
        """Publish the record of a token of the prompt."""
        self._generation._prompt_records.append(record)

    def count_draft(self, drafted: int, accepted: int) -> None:
        """Count drafted tokens that were evaluated, and those that were accepted."""
        self._generation.guessed += drafted
        self._generation.guessed_right += accepted

    def report_progress(self, evaluated: int) -> None:
        """Publish how much of the prompt has been read, by a text of no characters."""
        generation = self._generation
        generation._progress.append(Progress(evaluated, generation.timings.prefill_s))
        generation._deltas.append("")


def followed(generation: Generation, ready: SimpleQueue[None]) -> Iterator[str]:
    """The text as it arrives; raises the generation's error after it. Cancels if it is closed.

    ready: gets an item for each update.
    """
    try:
        while True:
            done = generation.done
            yield from generation.take()
            if done:
                break
            ready.get()
        if generation.error is not None:
            raise generation.error
    finally:
        generation.cancel()
