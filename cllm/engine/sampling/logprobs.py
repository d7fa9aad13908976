"""Log-probabilities of a row of logits: of one token and of the most probable ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cllm.engine.llama import FloatArray
from cllm.engine.sampling.prefilter import greatest


def logprobs(
    row: FloatArray, token: int, count: int, named: Sequence[int] = ()
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return log softmax(row) of `token`, and (token, logprob) of the `count` greatest.

    row: logits [n_vocab]. The greatest come first, ties by token; then those named that are not
    among them.
    """
    best = float(row.max())
    norm = best + math.log(np.exp(row - best).sum(dtype=np.float64))
    top: list[int] = []
    if count:
        ids = greatest(row, count)
        top = ids[np.argsort(-row[ids], kind="stable")][:count].tolist()
    top += [each for each in named if each not in top]
    return float(row[token]) - norm, tuple((each, float(row[each]) - norm) for each in top)
