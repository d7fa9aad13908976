"""Speculative decoding: tokens guessed ahead are evaluated in one step with the newest one.

The guess is prompt lookup (Saxena 2023): what followed the same last tokens before, in prompt or
answer, may follow again; or a draft model's (drafting.py). At each guessed place the sampler
chooses as if nothing had been guessed; a guess only decides whether that choice needed a step of
its own. So what is generated, and its distribution under sampling, are what they would be without.
"""

from __future__ import annotations

import logging

from cllm.engine.config import SPARE_ROWS
from cllm.engine.sequence import Sequence
from cllm.engine.speculation.drafting import Drafting

_log = logging.getLogger("cllm.engine")

_PLAIN = 32  # steps with guesses after which one is left plain: what it takes is known anew
_MEMORY = 0.8  # weight of the past at each observation


class Speculation:
    """Decides how far each sequence guesses ahead in the next step. Engine thread only."""

    __slots__ = ("_drafting", "_extra_s", "_guessing", "_most", "_split_cache")

    def __init__(self, most: int, split_cache: bool, drafting: Drafting | None = None) -> None:
        """most: tokens that one sequence guesses. split_cache: sequences are evaluated together
        only with equal numbers of tokens. drafting: a draft model for sequences whose text gives
        no draft, or a shorter one; None: there is no draft model.
        """
        self._most = most
        self._split_cache = split_cache
        self._drafting = drafting
        self._extra_s: float | None = None  # what a guessed token adds to a step
        self._guessing = 0  # steps since one was left as it is

    def guess(self, sequences: list[Sequence], room: int, step_s: float | None) -> None:
        """Give sequences that generate their guesses.

        room: tokens for guesses in the batch. step_s: what a step without guesses takes.
        """
        if step_s is None:
            return  # nothing to compare with yet
        if self._guessing >= _PLAIN:
            self._guessing = 0
            return
        count = len(sequences)
        if self._extra_s is None:
            self._extra_s = step_s / (count + 1) / 4
        price = self._extra_s * count / step_s
        room = min(room, SPARE_ROWS) // count
        mosts = [min(self._most, room, s.max_length - len(s.tokens) - 1) for s in sequences]
        all_or_none = self._split_cache and count > 1
        guesses = []
        for sequence, most in zip(sequences, mosts, strict=True):
            guesser = sequence.guesser
            guesses.append(guesser.guess(sequence.tokens, most, price) if guesser else [])
            if all_or_none and not guesses[-1] and self._drafting is None:
                return
        if self._drafting is not None:
            self._improve(self._drafting, sequences, guesses, mosts, price, step_s)
            if all_or_none and not all(guesses):
                return
        self._guessing = self._guessing + 1 if any(guesses) else 0
        shortest = min(map(len, guesses)) if self._split_cache else self._most
        for sequence, guessed in zip(sequences, guesses, strict=True):
            sequence.suppose(guessed[:shortest])

    def _improve(
        self,
        drafting: Drafting,
        sequences: list[Sequence],
        guesses: list[list[int]],
        mosts: list[int],
        price: float,
        step_s: float,
    ) -> None:
        """Have the draft model guess; it is used no more if it fails, and no request notices."""
        try:
            drafting.improve(sequences, guesses, mosts, price, step_s)
        except Exception:
            _log.exception("the draft model is used no more: it failed")
            drafting.give_up()
            self._drafting = None

    def observe(self, guessed: int, seconds: float, step_s: float) -> None:
        """Learn from a step with guesses what they cost; one delay changes little."""
        before = 0.0 if self._extra_s is None else self._extra_s
        most = max(2 * before, step_s / 16)
        extra_s = min(max(0.0, seconds - step_s) / guessed, most)
        self._extra_s = before * _MEMORY + extra_s * (1 - _MEMORY)
