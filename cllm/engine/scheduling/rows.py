"""Which rows of a step's logits are filtered together, in one pass of numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cllm.engine.llama import FloatArray
from cllm.engine.sampling.prefilter import Found, candidates_together
from cllm.engine.sequence import Sequence


def filtered(
    outputs: list[tuple[Sequence, int, int]], rows: FloatArray
) -> dict[int, Found | NDArray[np.void]]:
    """The candidates of rows whose first sampler is top_k, by row; adjacent rows at once.

    outputs: sequences, each with its rows of scored tokens and of others.
    """
    found: dict[int, Found | NDArray[np.void]] = {}
    begin = at = before = 0  # rows from `begin` to `at` are filtered by top_k `before`

    def take() -> None:
        if before:
            together = candidates_together(rows[begin:at], before)
            found.update(zip(range(begin, at), together, strict=True))

    for sequence, scored, last in outputs:
        top_k = sequence.prepare(rows[at]) if last and not scored else 0
        if top_k != before:
            take()
            begin, before = at, top_k
        at += scored + last
    take()
    return found
