"""Checkpoints: the state of recurrent layers after a part of a prompt, and where to keep them.

A recurrent memory holds only the state after its last token. To begin another text within the same
prompt, its state there must have been kept while the prompt was read.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cllm.engine.cache.radix import RadixForest
from cllm.engine.llama import Bytes
from cllm.engine.sharing import COMMON, Scope

_LEAST = 64  # tokens before the first checkpoint; fewer are soon read again
_APART = 16  # tokens between two of them
# Tokens at a prompt's end that a template may write differently in a history: the beginning of the
# answer, with "<think>" or without. The first control token there ends the last message.
_ENDING = 16
_ENDING_PLAIN = 4  # the same, where there is no control token
_NEAR = 32  # tokens that are read again rather than reading the prompt's end in two steps


@dataclass(slots=True, eq=False)
class Checkpoint:
    """The state after `tokens`. Where there is attention too, a slot must hold them as well."""

    tokens: array[int]
    data: Bytes
    scope: Scope = COMMON

    @property
    def length(self) -> int:
        """Tokens before it."""
        return len(self.tokens)

    @property
    def n_bytes(self) -> int:
        """What counts against the limit of host memory."""
        return self.data.nbytes + len(self.tokens) * self.tokens.itemsize


class Checkpoints:
    """All checkpoints, found by the tokens before them.

    suffice: whether a sequence can begin at one with nothing else, as without attention. limit:
    their number. per_prompt: how many one sequence of tokens has.
    """

    per_prompt = 4

    def __init__(
        self, limit: int = 0, suffice: bool = False, control_tokens: Sequence[int] = ()
    ) -> None:
        self.limit = limit
        self.suffice = suffice
        self.entries: set[Checkpoint] = set()
        self._control_tokens = np.array(control_tokens, np.int32)
        self._trees: RadixForest[Checkpoint] = RadixForest()

    def within(self, tokens: array[int], scope: Scope) -> list[Checkpoint]:
        """Those of a prompt, the one with the most tokens first."""
        if not self.entries:
            return []
        found = self._trees.shared(tokens, scope).items()
        whole = (checkpoint for checkpoint, n in found if n == checkpoint.length)
        return sorted(whole, key=lambda checkpoint: checkpoint.length, reverse=True)

    def add(self, checkpoint: Checkpoint) -> None:
        """Let it be found."""
        self.entries.add(checkpoint)
        self._trees.insert(checkpoint, checkpoint.tokens, checkpoint.scope)

    def forget(self, checkpoint: Checkpoint) -> None:
        """Find it no more."""
        self.entries.discard(checkpoint)
        self._trees.remove(checkpoint)

    def marks(self, tokens: array[int], start: int, branch: int, scope: Scope) -> list[int]:
        """Where in a prompt to keep a checkpoint, when it is read from `start` on; ascending.

        At the end of the first message, for other prompts with the same instructions; at `branch`,
        up to which an earlier prompt was the same; and at the end of the last message, for the same
        prompt again and for a history that leaves out a part of the answer. At `start` nothing
        need be read.
        """
        n = len(tokens)
        control = np.flatnonzero(np.isin(np.array(tokens, np.int32), self._control_tokens))
        wanted = {branch, *control[control >= _LEAST][:1].tolist()}
        ending = control[control >= max(start, n - _ENDING)][:1].tolist()
        if n - start <= _NEAR:
            ending = [start]
        wanted.update(ending or [max(start, n - _ENDING_PLAIN)])
        known = [checkpoint.length for checkpoint in self.within(tokens, scope)]
        marks: list[int] = []
        for mark in sorted(wanted):
            apart = all(abs(mark - other) >= _APART for other in (*known, *marks))
            if max(start, _LEAST) <= mark < n and apart:
                marks.append(mark)
        return marks
