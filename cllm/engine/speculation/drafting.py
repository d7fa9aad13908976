"""When the draft model runs, and how many tokens it drafts: by its acceptance rate and its speed.

Two costs are measured: reading the tokens that it has not read yet, and a round, which drafts one
token for each sequence. Where drafting does not pay, the model runs so rarely that it takes a 50th
of the time; reading prompts counts too.
"""

from __future__ import annotations

import time

from cllm.engine.config import SPARE_ROWS
from cllm.engine.sequence import Sequence
from cllm.engine.speculation.draft_model import DraftModel
from cllm.engine.speculation.drafter import AcceptanceRate
from cllm.engine.speculation.lengths import best_lengths
from cllm.engine.stats import EngineStats

_MEMORY = 0.8  # weight of the past at each measurement
_SHARED_MEMORY = 0.98  # the same, in the acceptance rate that new sequences begin with
_MOST = SPARE_ROWS  # tokens of a draft
_MAX_GROWTH = 2.0  # of a round's time from one to the next: one delay is no measure
_PROBE_TOKENS = 2
_PROBE_SHARE = 0.02  # of the time, for drafting although it does not pay
_PROBE_MAX_S = 0.5  # that may be saved up for it
_FIRST_READING = 64  # tokens, while the time of reading is unknown
_MIN_READING = 16


class DraftPolicy:
    """What the draft model costs, and whether it pays. Pure policy.

    shared_rate: the acceptance rate over all sequences.
    """

    __slots__ = ("_round", "_saved_s", "_token_s", "shared_rate")

    def __init__(self, share: float) -> None:
        """share: of a step's time, the assumed cost of a round until it is measured."""
        self._round = share
        self._token_s: float | None = None
        self._saved_s = 0.0
        self.shared_rate = AcceptanceRate(_SHARED_MEMORY)

    def length(
        self, rates: list[AcceptanceRate], fixed: float, each: float, most: int = _MOST
    ) -> int:
        """Tokens to draft for sequences with drafts of equal length; 0: drafting does not pay.

        fixed, each: what drafts, and a drafted token of each sequence, add to a step.
        most: tokens to draft at most.
        """
        rate = sum(each.value for each in rates) / len(rates)
        chances = [rate**n for n in range(1, most + 1)]
        return best_lengths([chances], fixed, each + self._round)[0][0]

    def save_up(self, step_s: float) -> int:
        """Count a step in which nothing may pay; return how many tokens to draft anyway."""
        self._saved_s = min(_PROBE_MAX_S, self._saved_s + step_s * _PROBE_SHARE)
        return _PROBE_TOKENS if self._saved_s > 0 else 0

    def spend(self, seconds: float) -> None:
        """Note what drafting although it does not pay has cost."""
        self._saved_s -= seconds

    def reading(self, step_s: float) -> int:
        """Tokens that can be read in the time of a step, which reading may add to one."""
        if self._token_s is None:
            return _FIRST_READING
        return max(_MIN_READING, int(step_s / self._token_s))

    def note_read(self, tokens: int, seconds: float) -> None:
        """Learn what reading takes."""
        if not tokens:
            return
        token_s = seconds / tokens
        before = token_s if self._token_s is None else self._token_s
        self._token_s = before * _MEMORY + token_s * (1 - _MEMORY)

    def note_rounds(self, rounds: int, seconds: float, step_s: float) -> None:
        """Learn what a round takes."""
        measured = min(seconds / rounds / step_s, self._round * _MAX_GROWTH)
        self._round = self._round * _MEMORY + measured * (1 - _MEMORY)


class Drafting:
    """Lets the draft model draft where that goes farther than the text. Engine thread only."""

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
        drafts: list[list[int]],
        limits: list[int],
        costs: tuple[float, float],
        step_s: float,
    ) -> None:
        """Replace drafts by the draft model's where those are longer.

        drafts, limits: of each sequence, the draft from its text, and the most tokens to draft.
        costs: what drafts add to a step, relative to its time, and a drafted token, relative to a
        generated one. step_s: seconds of a step without drafts. Where too much is unread the model
        reads instead, for a step's time at most.
        """
        model, policy = self._model, self._policy
        lengths = [len(s.tokens) + limit for s, limit in zip(sequences, limits, strict=True)]
        if model.broken or sum(lengths) > model.cells:
            return
        began = time.perf_counter()
        wanted, probes = self._wanted(sequences, drafts, limits, costs, step_s)
        if not wanted:
            return
        readable = min(model.capacity, max(policy.reading(step_s), 2 * len(wanted)))
        drafted: dict[Sequence, list[int]] = {}
        if sum(map(model.unread, wanted)) > readable:
            read = model.read(list(wanted), readable)
            seconds = time.perf_counter() - began
            policy.note_read(read, seconds)
        else:
            drafted = model.draft(wanted)
            seconds = time.perf_counter() - began
            policy.note_rounds(max(wanted.values()), seconds, step_s)
        self._stats.draft_s += seconds
        evaluation_s = sum(map(len, drafted.values())) * costs[1] * step_s / len(sequences)
        policy.spend((seconds + evaluation_s) * probes / len(wanted))
        for i, sequence in enumerate(sequences):
            if sequence in drafted and sequence.drafter is not None:
                drafts[i] = drafted[sequence]
                sequence.drafter.from_model = True

    def stop(self) -> None:
        """Do not use the draft model again."""
        self._model.broken = True

    def _wanted(
        self,
        sequences: list[Sequence],
        drafts: list[list[int]],
        limits: list[int],
        costs: tuple[float, float],
        step_s: float,
    ) -> tuple[dict[Sequence, int], int]:
        """Tokens to draft for each sequence, and for how many of these drafting does not pay."""
        probe = self._policy.save_up(step_s)
        indices = list(range(len(sequences)))
        wanted: dict[Sequence, int] = {}
        probes = 0
        for group in [indices] if self._split_cache else [[i] for i in indices]:
            rates = [r for i in group if (r := self._rate(sequences[i], limits[i])) is not None]
            if len(rates) < len(group):
                continue
            most = min(limits[i] for i in group)
            length = self._policy.length(rates, *costs, most)
            pays = length > 0
            length = min(length or probe, most)
            if length <= min(len(drafts[i]) for i in group):
                continue
            longer = {sequences[i]: length for i in group if len(drafts[i]) < length}
            wanted |= longer
            probes += 0 if pays else len(longer)
        return wanted, probes

    def _rate(self, sequence: Sequence, limit: int) -> AcceptanceRate | None:
        """The draft model's acceptance rate in a sequence; None: it cannot draft there."""
        drafter = sequence.drafter
        if drafter is None or len(sequence.tokens) + limit > self._model.longest:
            return None
        if drafter.model_rate is None:
            drafter.model_rate = AcceptanceRate(shared=self._policy.shared_rate)
        return drafter.model_rate
