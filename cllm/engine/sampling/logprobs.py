"""Log-probabilities of a row of logits: of one token and of the most probable ones."""

from __future__ import annotations

import math

import numpy as np

from cllm.engine.llama import FloatArray
from cllm.engine.sampling.sampler import greatest


def logprobs(
    row: FloatArray, token: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return log softmax(row) of `token`, and (token, logprob) of the `count` greatest.

    row: logits [n_vocab]. The greatest come first, ties by token.
    """
    best = float(row.max())
    norm = best + math.log(np.exp(row - best).sum(dtype=np.float64))
    if not count:
        return float(row[token]) - norm, ()
    ids = greatest(row, count)
    ids = ids[np.argsort(-row[ids], kind="stable")][:count]
    top = tuple((int(each), float(row[each]) - norm) for each in ids)
    return float(row[token]) - norm, top
