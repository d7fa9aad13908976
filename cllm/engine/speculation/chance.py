"""Which drafted tokens synthetic speculation accepts."""

from __future__ import annotations

import random
from collections.abc import Sequence


class Chance:
    """Which drafted tokens of one sequence are accepted."""

    __slots__ = ("_rates", "_rng")

    def __init__(self, rates: Sequence[float], seed: int | None) -> None:
        """rates: the probability of accepting at least so many tokens, from one on."""
        before = (1.0, *rates)
        self._rates = [
            rate / up_to if up_to else 0.0 for rate, up_to in zip(rates, before, strict=False)
        ]
        self._rng = random.Random(seed)

    def accepts(self, index: int) -> bool:
        """Whether a draft's token is accepted, after all tokens before it were."""
        return self._rng.random() < self._rates[index]
