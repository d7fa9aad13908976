"""The operations of a model that embeds or ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cllm.engine.embedding.embedding_scheduler import EmbeddingScheduler, Job
from cllm.engine.embedding.handle import Embedding
from cllm.engine.embedding.pooling import EmbeddingShape
from cllm.engine.embedding.ranking import PairEncoder
from cllm.engine.errors import InputTooLong, InvalidRequest, Unsupported
from cllm.engine.info import ModelInfo
from cllm.engine.llama import FloatArray
from cllm.engine.request import Meter
from cllm.engine.sharing import EQUAL, Share
from cllm.engine.text.tokenizer import Tokenizer

MAX_INPUTS = 2048
"""Maximum inputs of one request."""


class Embedder:
    """Vectors and scores of one engine; its methods are for any thread. See Engine.embedder."""

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: Tokenizer,
        scheduler: EmbeddingScheduler,
        shape: EmbeddingShape,
        pairs: PairEncoder,
    ) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._shape = shape
        self._pairs = pairs

    def embed(self, texts: Sequence[str]) -> list[FloatArray]:
        """The vectors of each text, [rows, width], of Euclidean length 1; waits for them.

        rows: 1; without pooling one per token, and those are not normalized.
        Raises what `tokens`, `submit` and Embedding.result raise.
        """
        self.check_embeds()
        embedding = self.submit(self.tokens("texts", texts), name="texts")
        return list(embedding.vectors()) if self.pools else embedding.result()

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:
        """The model's score of each document for the query; waits for them.

        Raises what `pairs`, `submit` and Embedding.result raise.
        """
        embedding = self.submit(self.pairs(query, documents), name="documents")
        return [float(scores[0, 0]) for scores in embedding.result()]

    def check_embeds(self) -> None:
        """Raise Unsupported if the model ranks."""
        if self._shape.pooling == "rank":
            raise Unsupported(
                "this model only ranks documents; use /v1/rerank, or load an embedding model"
            )

    def check_ranks(self) -> None:
        """Raise Unsupported unless the model ranks."""
        if self._shape.pooling != "rank":
            raise Unsupported(
                "this model only produces embeddings; load a reranker, with --pooling rank if "
                "its file has no pooling metadata"
            )

    @property
    def pools(self) -> bool:
        """Whether an input has one vector, and not one for each token."""
        return self._shape.pooling != "none"

    def tokens(self, name: str, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, with the special tokens that the model's rules add.

        name: of the field, for errors. Raises InvalidRequest, EngineClosed.
        """
        found = [self._tokenizer.tokenize(text, True, False) for text in texts]
        for number, tokens in enumerate(found):
            if not tokens:  # an empty text, and the model adds no special tokens
                field = _field(name, number, len(texts))
                raise InvalidRequest(field, texts[number], "non-empty text")
        return found

    def shortened(self, tokens: list[int]) -> list[int]:
        """Cut an input to the model's limit; its last token, which may mark the end, stays."""
        longest = self._shape.longest
        return tokens if len(tokens) <= longest else [*tokens[: longest - 1], tokens[-1]]

    def pairs(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        """The tokens of each document with the query, in the model's own form.

        Raises Unsupported unless the model ranks, InvalidRequest, EngineClosed.
        """
        self.check_ranks()
        if not query:
            raise InvalidRequest("query", query, "non-empty text")
        return self._pairs.pairs(query, documents)

    def submit(
        self,
        inputs: Sequence[Sequence[int]],
        *,
        name: str = "input",
        deadline: float | None = None,
        on_update: Callable[[], None] | None = None,
        tenant: str = "",
        share: Share = EQUAL,
        priority: int = 0,
        meter: Meter | None = None,
    ) -> Embedding:
        """Queue inputs, as tokens, and return at once.

        name: of the field they come from, for errors. deadline: seconds from now to the end;
        checked before each batch. on_update: see Request. tenant, share, priority, meter: see
        Engine.submit; a batch holds inputs of many requests, so `share.concurrent` does not apply.
        Raises InvalidRequest, InputTooLong, QueueFull, EngineClosed, and then queues nothing.
        """
        if deadline is not None and not 0 < deadline < math.inf:
            raise InvalidRequest("deadline", deadline, "a positive number of seconds")
        if not 0 < len(inputs) <= MAX_INPUTS:
            raise InvalidRequest(name, f"{len(inputs)} inputs", f"1 to {MAX_INPUTS} inputs")
        info = self._info
        for number, tokens in enumerate(inputs):
            field = _field(name, number, len(inputs))
            if not tokens:
                raise InvalidRequest(field, tokens, "at least one token")
            if len(tokens) > self._shape.longest:
                raise InputTooLong(
                    field, len(tokens), self._shape.longest, info.max_sequence_length
                )
            if min(tokens) < 0 or max(tokens) >= info.vocab_size:
                wrong = next(t for t in tokens if not 0 <= t < info.vocab_size)
                raise InvalidRequest(field, wrong, f"tokens from 0 to {info.vocab_size - 1}")
        embedding = Embedding(sum(map(len, inputs)), on_update, self._scheduler.cancel, meter)
        unbounded = Share(share.weight)
        self._scheduler.submit(Job(inputs, embedding, deadline, tenant, unbounded, priority))
        return embedding


def _field(name: str, number: int, count: int) -> str:
    return name if count == 1 else f"{name}[{number}]"
