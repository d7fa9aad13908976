"""Speculative decoding: drafted tokens are evaluated in one step with the newest token.

Drafts come from prompt lookup (drafter.py) or from a draft model (drafting.py). At each drafted
position the sampler chooses as if there were no draft; a draft only decides whether that choice
needs a step of its own. So speculation changes neither the text nor its distribution.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice, zip_longest

from cllm.engine.config import SPARE_ROWS
from cllm.engine.sequence import Sequence
from cllm.engine.speculation.drafter import CopyRates
from cllm.engine.speculation.drafting import Drafting
from cllm.engine.speculation.lengths import DraftCost, best_lengths, lost

_log = logging.getLogger("cllm.engine")

_MARGIN = 1.1  # of the speed, that drafts must promise: the chances are estimates
_LOOK = 16  # steps in which no draft can pay, of which one considers drafts anyway
_PLAIN = 32  # steps with drafts after which one goes without, so that its time is measured anew
_PROBE_SHARE = 0.004  # of the steps' time, for drafts that measure what drafts cost
_PROBE_MOST = 2.0  # steps that may be saved up for it
_PROBE_TOKENS = 2
_LEAST_CHANCE = 0.5  # of a token in such a draft


class Speculation:
    """Decides how many tokens each sequence drafts for the next step.

    Engine thread only, except `reading`, which may run next to llama_decode.
    """

    __slots__ = (
        "_costs", "_drafting", "_max_draft", "_passed", "_rates", "_saved", "_split_cache",
        "_steps", "unread",
    )  # fmt: skip

    def __init__(self, max_draft: int, split_cache: bool, drafting: Drafting | None = None) -> None:
        """max_draft: tokens that one sequence drafts. split_cache: sequences are evaluated together
        only with equal numbers of tokens. drafting: a draft model for sequences whose text gives
        no draft, or a shorter one; None: there is no draft model.
        """
        self._max_draft = max_draft
        self._split_cache = split_cache
        self._drafting = drafting
        self._rates = CopyRates()  # of all sequences
        self._costs: dict[bool, DraftCost] = {}  # of several sequences, and of a lone one
        self._saved = 0.0  # steps that drafts may lose to measure what they cost
        self._steps = 0  # with drafts, since the last one without
        self._passed = 0  # steps in which no draft could pay, since the last look
        self.unread: list[Sequence] = []  # whose new tokens nothing has looked at

    def draft(self, sequences: list[Sequence], room: int, step_s: float | None) -> None:
        """Add drafts to sequences that are generating.

        room: tokens of drafts in the batch. step_s: seconds of a step without drafts; None: not
        measured yet, and nothing is drafted.
        """
        self.unread = []
        if step_s is None:
            return
        if self._steps >= _PLAIN:
            self._steps = 0
            return
        count = len(sequences)
        cost = self._cost(count, step_s)
        fixed, each = cost.relative(step_s)
        most = min(self._max_draft, min(room, SPARE_ROWS) // count)
        if self._drafting is None and not _may_pay(most, fixed, each * count):
            self._passed += 1
            if self._passed < _LOOK:
                self._saved = min(_PROBE_MOST, self._saved + _PROBE_SHARE)
                self._steps = 0
                self.unread = list(sequences)
                return
        self._passed = 0
        most = min(most, cost.trusted)
        limits = [min(most, s.max_length - len(s.tokens) - 1) for s in sequences]
        drafts = self._from_texts(sequences, limits, fixed, each)
        if self._drafting is not None:
            self._improve(self._drafting, sequences, drafts, limits, (fixed, each * count), step_s)
        if not any(drafts):
            self._steps = 0
            return
        if self._split_cache and count > 1:
            _equalize(sequences, drafts)
        self._steps += 1
        for sequence, draft in zip(sequences, drafts, strict=True):
            sequence.add_draft(draft)

    @property
    def reading(self) -> Callable[[], None] | None:
        """What looks at the tokens that draft() left unread, so that it need not do it later."""
        return self._read_texts if self.unread else None

    def _read_texts(self) -> None:
        unread, self.unread = self.unread, []
        for sequence in unread:
            if sequence.drafter is not None:
                sequence.drafter.follow(sequence.tokens, self._rates)

    def _cost(self, count: int, step_s: float) -> DraftCost:
        cost = self._costs.get(count > 1)
        if cost is None:
            cost = self._costs[count > 1] = DraftCost(step_s / 3, step_s / (count + 2))
        return cost

    def _from_texts(
        self, sequences: list[Sequence], limits: list[int], fixed: float, each: float
    ) -> list[list[int]]:
        """Drafts from each sequence's own text, of the lengths that pay best."""
        count = len(sequences)
        least = min(each * count, _LEAST_CHANCE)
        chances = [
            [] if s.drafter is None else s.drafter.chances(s.tokens, limit, least, self._rates)
            for s, limit in zip(sequences, limits, strict=True)
        ]
        self._saved = min(_PROBE_MOST, self._saved + _PROBE_SHARE)
        if not any(chances):
            return [[] for _ in sequences]
        if self._split_cache and count > 1:  # all draft equally many, or none does
            room = min(limits) if all(s.drafter is not None for s in sequences) else 0
            columns = zip_longest(*chances, fillvalue=0.0)
            mean = [sum(column) / count for column in islice(columns, max(0, room))]
            length = self._paying([mean], fixed, each * count)[0]
            lengths = [length if own else 0 for own in chances]
        else:
            lengths = self._paying(chances, fixed, each)
        share = fixed / max(1, sum(map(bool, lengths)))
        return [
            s.drafter.draft(s.tokens, n, (share + each * n) * count) if n and s.drafter else []
            for s, n in zip(sequences, lengths, strict=True)
        ]

    def _paying(self, chances: list[list[float]], fixed: float, each: float) -> list[int]:
        """The lengths that pay best; short ones now and then where it seems that none pays."""
        if not any(chances):
            return [0] * len(chances)
        lengths, speed = best_lengths(chances, fixed, each)
        if speed > _MARGIN:
            return lengths
        lengths = [min(_PROBE_TOKENS, len(own)) for own in chances]
        loss = lost(chances, lengths, fixed, each)
        if loss > self._saved:
            return [0] * len(chances)
        self._saved -= loss
        return lengths

    def _improve(
        self,
        drafting: Drafting,
        sequences: list[Sequence],
        drafts: list[list[int]],
        limits: list[int],
        costs: tuple[float, float],
        step_s: float,
    ) -> None:
        """Let the draft model draft. If it fails it is dropped, and no request is affected."""
        try:
            drafting.improve(sequences, drafts, limits, costs, step_s)
        except Exception:
            _log.exception("the draft model failed and is no longer used")
            drafting.stop()
            self._drafting = None

    def observe(self, count: int, drafted: int, seconds: float, step_s: float) -> None:
        """Learn what drafts cost from a step of `count` sequences with drafts."""
        self._cost(count, step_s).observe(drafted, seconds - step_s)


def _may_pay(most: int, fixed: float, price: float) -> bool:
    """Whether drafts of up to `most` tokens would make a step faster if all were accepted.

    fixed, price: what drafts, and a drafted token of each sequence, add to a step. If the longest
    drafts do not pay, shorter ones, or those of fewer sequences, do not either.
    """
    return (1 + most) / (1 + fixed + price * most) > _MARGIN


def _equalize(sequences: list[Sequence], drafts: list[list[int]]) -> None:
    """Make drafts equally long: a sequence without one gets tokens that will be rejected."""
    length = min(map(len, filter(None, drafts)), default=0)
    if any(s.drafter is None for s in sequences):
        length = 0
    for i, sequence in enumerate(sequences):
        drafts[i] = drafts[i][:length] or [sequence.tokens[-1]] * length
