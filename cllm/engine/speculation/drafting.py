"""When the draft model is asked, and how far it guesses: as it was right and as it was quick.

What it costs is measured: reading what it has not seen yet, and a round, in which it guesses one
token for each sequence. Where that does not pay it is asked so rarely that it takes a 50th of the
time, and what it reads of prompts counts too.
"""

from __future__ import annotations

import time

from cllm.engine.sequence import Sequence
from cllm.engine.speculation.draft_model import DraftModel
from cllm.engine.speculation.drafter import Trust, worth
from cllm.engine.stats import EngineStats

_MEMORY = 0.8  # weight of the past at each measurement
_SHARED_MEMORY = 0.98  # and in the trust that new sequences begin with
_MOST_GROWTH = 2.0  # of a round's time from one to the next: one delay is no measure
_PROBE_TOKENS = 2
_PROBE_SHARE = 0.02  # of the time, for asking although it does not pay
_PROBE_MOST_S = 0.5  # that may be saved up for it
_FIRST_READING = 64  # tokens, while it is not known how long reading takes
_LEAST_READING = 16


class DraftPolicy:
    """What asking the draft model costs, and whether it is worth it. Pure policy.

    shared: what all sequences together have learnt to trust it.
    """

    __slots__ = ("_round", "_saved_s", "_token_s", "shared")

    def __init__(self, share: float) -> None:
        """share: of a step's time that a round is taken to cost before it was measured."""
        self._round = share
        self._token_s: float | None = None
        self._saved_s = 0.0
        self.shared = Trust(_SHARED_MEMORY)

    def depth(self, trusts: list[Trust], price: float) -> int:
        """How far to guess for sequences that guess equally far; 0: it does not pay.

        price: what evaluating a guessed token costs, in tokens.
        """
        likely = sum(trust.likely for trust in trusts) / len(trusts)
        return worth(likely, price + self._round)

    def save_up(self, step_s: float) -> int:
        """Let time go by in which nothing pays; return how many tokens to guess nevertheless."""
        self._saved_s = min(_PROBE_MOST_S, self._saved_s + step_s * _PROBE_SHARE)
        return _PROBE_TOKENS if self._saved_s > 0 else 0

    def spend(self, seconds: float) -> None:
        """Note what guessing nevertheless cost."""
        self._saved_s -= seconds

    def reading(self, step_s: float) -> int:
        """Tokens that can be read in the time of a step, which reading may add to one."""
        if self._token_s is None:
            return _FIRST_READING
        return max(_LEAST_READING, int(step_s / self._token_s))

    def note_read(self, tokens: int, seconds: float) -> None:
        """Learn what reading takes."""
        if not tokens:
            return
        token_s = seconds / tokens
        before = token_s if self._token_s is None else self._token_s
        self._token_s = before * _MEMORY + token_s * (1 - _MEMORY)

    def note_rounds(self, rounds: int, seconds: float, step_s: float) -> None:
        """Learn what a round takes."""
        measured = min(seconds / rounds / step_s, self._round * _MOST_GROWTH)
        self._round = self._round * _MEMORY + measured * (1 - _MEMORY)


class Drafting:
    """Has the draft model guess where the text itself says less. Engine thread only."""

    __slots__ = ("_model", "_policy", "_split_cache", "_stats")

    def __init__(
        self, model: DraftModel, policy: DraftPolicy, stats: EngineStats, split_cache: bool
    ) -> None:
        """split_cache: sequences are evaluated together only with equal numbers of tokens."""
        self._model = model
        self._policy = policy
        self._stats = stats
        self._split_cache = split_cache

    def improve(
        self,
        sequences: list[Sequence],
        guesses: list[list[int]],
        mosts: list[int],
        price: float,
        step_s: float,
    ) -> None:
        """Replace guesses by the draft model's where that dares to guess farther.

        guesses, mosts: of each sequence, what was found in its text, and the most tokens to guess.
        price: what evaluating a guessed token costs, in tokens. step_s: what a step without guesses
        takes. Where too much is unread it is read instead, for a step's time at most.
        """
        model, policy = self._model, self._policy
        lengths = [len(s.tokens) + most for s, most in zip(sequences, mosts, strict=True)]
        if model.broken or sum(lengths) > model.cells:
            return
        began = time.perf_counter()
        depths, probed = self._depths(sequences, guesses, mosts, price, step_s)
        if not depths:
            return
        readable = min(model.capacity, max(policy.reading(step_s), 2 * len(depths)))
        drafted: dict[Sequence, list[int]] = {}
        if sum(map(model.unread, depths)) > readable:
            read = model.read(list(depths), readable)
            seconds = time.perf_counter() - began
            policy.note_read(read, seconds)
        else:
            drafted = model.guess(depths)
            seconds = time.perf_counter() - began
            policy.note_rounds(max(depths.values()), seconds, step_s)
        self._stats.draft_s += seconds
        evaluation_s = sum(map(len, drafted.values())) * price * step_s / len(sequences)
        policy.spend((seconds + evaluation_s) * probed / len(depths))
        for i, sequence in enumerate(sequences):
            if sequence in drafted and sequence.guesser is not None:
                guesses[i] = drafted[sequence]
                sequence.guesser.drafted = True

    def give_up(self) -> None:
        """Ask the draft model no more."""
        self._model.broken = True

    def _depths(
        self,
        sequences: list[Sequence],
        guesses: list[list[int]],
        mosts: list[int],
        price: float,
        step_s: float,
    ) -> tuple[dict[Sequence, int], int]:
        """For whom to guess how far, and for how many of them although it does not pay."""
        probe = self._policy.save_up(step_s)
        everyone = list(range(len(sequences)))
        depths: dict[Sequence, int] = {}
        probed = 0
        for group in [everyone] if self._split_cache else [[i] for i in everyone]:
            trusts = [t for i in group if (t := self._trust(sequences[i], mosts[i])) is not None]
            if len(trusts) < len(group):
                continue
            depth = self._policy.depth(trusts, price)
            pays = depth > 0
            depth = min(depth or probe, *(mosts[i] for i in group))
            if depth <= min(len(guesses[i]) for i in group):
                continue
            asked = {sequences[i]: depth for i in group if len(guesses[i]) < depth}
            depths |= asked
            probed += 0 if pays else len(asked)
        return depths, probed

    def _trust(self, sequence: Sequence, most: int) -> Trust | None:
        """A sequence's trust in the draft model; None: that guesses nothing there."""
        guesser = sequence.guesser
        if guesser is None or len(sequence.tokens) + most > self._model.longest:
            return None
        if guesser.model is None:
            guesser.model = Trust(of=self._policy.shared)
        return guesser.model
