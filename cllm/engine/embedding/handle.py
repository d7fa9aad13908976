"""The handle given back for inputs to embed or rank, and how their vectors are normalized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cllm.engine.llama import FloatArray
from cllm.engine.request import Meter, Request, RequestWriter

EUCLIDEAN = 2
MAX_ABSOLUTE = 32_760.0  # what the greatest component becomes under norm 0; as llama.cpp's


class Embedding(Request):
    """The vectors of one request's inputs. Made by Embedder.submit().

    Its usage counts the tokens of all inputs.
    """

    __slots__ = ("_outputs",)

    def __init__(
        self,
        prompt_tokens: int,
        on_update: Callable[[], None] | None = None,
        cancel: Callable[[Any], None] | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(prompt_tokens, on_update, cancel, meter)
        self._outputs: list[FloatArray] = []

    def result(self, timeout: float | None = None) -> list[FloatArray]:
        """Wait for the end: for each input in order its vectors, [rows, width], as computed.

        rows: one, or one for each token where nothing is pooled. Raises as wait.
        """
        self.wait(timeout)
        return self._outputs

    def vectors(self, norm: int = EUCLIDEAN, width: int | None = None) -> Iterator[FloatArray]:
        """What `result` returns, of each vector the first `width` components, normalized.

        Models trained for it (Matryoshka) keep most of their meaning in the first components.
        """
        for rows in self.result():
            yield normalized(rows if width is None else rows[:, :width], norm)


class EmbeddingWriter(RequestWriter):
    """The engine's side of an embedding. Engine thread only."""

    __slots__ = ("_embedding",)

    def __init__(self, embedding: Embedding) -> None:
        super().__init__(embedding)
        self._embedding = embedding

    def append(self, vectors: FloatArray) -> int:
        """Add the vectors of the next input; return the number of inputs that have theirs."""
        self._embedding._outputs.append(vectors)
        return len(self._embedding._outputs)

    def all_finite(self) -> bool:
        """Whether every component of the vectors is a number."""
        return all(bool(np.isfinite(rows).all()) for rows in self._embedding._outputs)


def normalized(vectors: FloatArray, norm: int = EUCLIDEAN) -> FloatArray:
    """Each row [rows, width] divided by its norm; a row of zeros stays one.

    norm: -1: as it is. 0: the greatest component becomes 32760. Else the p-norm (2: Euclidean).
    Source: common_embd_normalize of llama.cpp, whose numbers these are.
    """
    if norm < 0:
        return vectors
    wide = np.abs(vectors.astype(np.float64))
    if norm == 0:
        sizes = wide.max(axis=1) / MAX_ABSOLUTE
    else:
        sizes = np.power(np.power(wide, norm).sum(axis=1), 1.0 / norm)
    factors = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return np.asarray(vectors * factors[:, None], dtype=np.float32)
