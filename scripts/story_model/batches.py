"""Batches of documents of similar length, in few distinct shapes.

Padding stays small, and a CPU's matrix kernels, which are generated for each shape, are reused.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .corpus import Corpus

MICRO_TOKENS = 2048
STEP = 64  # rows are padded to a multiple of this


def _rows(corpus: Corpus, rows: list[int], length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of shape (documents, length); a target of -1 is not learned."""
    ids = np.zeros((len(rows), length + 1), np.int64)
    targets = np.full((len(rows), length + 1), -1, np.int64)
    for line, row in enumerate(rows):
        span = slice(int(corpus.starts[row]), int(corpus.starts[row + 1]))
        tokens = corpus.ids[span].astype(np.int64)
        ids[line, : len(tokens)] = tokens
        targets[line, : len(tokens)] = np.where(corpus.learned[span], tokens, -1)
    return torch.from_numpy(ids[:, :-1]), torch.from_numpy(targets[:, 1:])


def micro_batches(corpus: Corpus, *, whole: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """The corpus once, in its order, in batches of about `MICRO_TOKENS` tokens.

    A document waits until documents of its length fill a batch. With `whole`, those left at the end
    come in smaller batches; without it they are dropped.
    """
    waiting: dict[int, list[int]] = {}
    for row in range(len(corpus.starts) - 1):
        length = int(corpus.starts[row + 1] - corpus.starts[row]) - 1
        length = -(-length // STEP) * STEP
        rows = waiting.setdefault(length, [])
        rows.append(row)
        if length * (len(rows) + 1) > MICRO_TOKENS:
            yield _rows(corpus, waiting.pop(length), length)
    if whole:
        for length, rows in sorted(waiting.items()):
            yield _rows(corpus, rows, length)
