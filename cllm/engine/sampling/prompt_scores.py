"""The log-probabilities of a prompt's tokens, as its parts are evaluated."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable

import numpy as np

from cllm.engine.generation import TokenRecord
from cllm.engine.llama import FloatArray
from cllm.engine.sampling.logprobs import logprobs


class PromptScores:
    """Scores each token of a prompt by the logits of the token before it. Engine thread only.

    A prompt that is evaluated again, because its sequence lost its slot, continues where it was.
    """

    __slots__ = ("_count", "_known", "_piece", "_prompt", "_record")

    def __init__(
        self,
        prompt: array[int],
        count: int,
        piece: Callable[[int], bytes],
        record: Callable[[TokenRecord], None],
    ) -> None:
        """count: alternatives of each token. record: called with each token, in order."""
        self._prompt = prompt
        self._count = count
        self._piece = piece
        self._record = record
        self._known = 0  # tokens that were recorded

    @property
    def complete(self) -> bool:
        """Whether all tokens were recorded."""
        return self._known == len(self._prompt)

    def wanted(self, start: int, end: int) -> range:
        """The positions among these whose logits are wanted; the prompt's last one never is."""
        return range(max(start, self._known - 1), min(end, len(self._prompt) - 1))

    def take(self, rows: FloatArray) -> None:
        """Score the next tokens by the logits of the wanted positions, [positions, n_vocab]."""
        if not self._known:  # nothing precedes the first one
            self._add(self._prompt[0], math.nan, (), 0)
        for row in rows:
            token = self._prompt[self._known]
            rank = 1 + int(np.count_nonzero(row > row[token]))
            self._add(token, *logprobs(row, token, self._count), rank)

    def _add(
        self, token: int, logprob: float, top: tuple[tuple[int, float], ...], rank: int
    ) -> None:
        self._record(TokenRecord(token, self._piece(token), logprob, top, rank))
        self._known += 1
