"""Which rows of a step's logits are filtered together, in one pass of numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cllm.engine.llama import FloatArray
from cllm.engine.sampling.drawing import NEAR
from cllm.engine.sampling.prefilter import Near, candidates_together, near_together
from cllm.engine.sequence import Sequence


def filtered(
    outputs: list[tuple[Sequence, int, int]], rows: FloatArray
) -> dict[int, Near | NDArray[np.void]]:
    """The candidates of rows whose first sampler is top_k, by row.

    Adjacent rows that want the same filter go through it together.
    outputs: sequences, each with its rows of scored tokens and of others.
    """
    found: dict[int, Near | NDArray[np.void]] = {}
    begin = at = before = 0  # rows from `begin` to `at` have the filter `before`
    alike: list[Sequence] = []  # their sequences

    def take() -> None:
        if before:
            few = rows[begin:at]
            near = near_together(few, NEAR) if before < 0 else None
            if before < 0 and near is None:
                for each, row in zip(alike, few, strict=True):
                    each.exclude(row)
            together = candidates_together(few, abs(before)) if near is None else near
            found.update(zip(range(begin, at), together, strict=True))

    for sequence, scored, last in outputs:
        wanted = sequence.prepare(rows[at]) if last and not scored else 0
        if wanted != before:
            take()
            begin, before = at, wanted
            alike.clear()
        alike.append(sequence)
        at += scored + last
    take()
    return found
