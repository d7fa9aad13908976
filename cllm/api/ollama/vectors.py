"""``/api/embed`` and ``/api/embeddings``: texts to vectors of length 1."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cllm.api.envelopes import encode
from cllm.api.ollama.errors import refused
from cllm.api.ollama.models import check_model
from cllm.api.ollama.schemas import EMBED, EMBEDDINGS
from cllm.api.service import Service
from cllm.api.streamed import streamed
from cllm.api.submission import Submission
from cllm.engine import InvalidRequest, Unsupported
from cllm.http import DeferredResponse, HttpRequest

if TYPE_CHECKING:
    from cllm.engine import Embedding
    from cllm.engine.embedding.embedder import Embedder


class Vectors:
    """The endpoints; each raises HttpError 400, 404 and 503, InvalidRequest, Unsupported."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def embed(self, request: HttpRequest) -> DeferredResponse:
        """POST ``/api/embed``."""
        asked = EMBED.decode(request.body)
        check_model(self._service, asked.model)
        embedder = self._embedder()
        width, most = asked.dimensions, self._service.engine.info().embedding_size
        if width is not None and most is not None and width > most:
            size = f"at most {most}, the size of the model's vectors"
            raise InvalidRequest("dimensions", width, size)
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if not texts:
            raise InvalidRequest("input", texts, "at least one text")
        inputs = embedder.tokens("input", texts)
        if asked.truncate is not False:
            inputs = [embedder.shortened(tokens) for tokens in inputs]
        begun, model = time.perf_counter_ns(), asked.model
        return self._submission.embedded(
            request,
            asked,
            inputs,
            "input",
            lambda done: streamed(_many(done, model, width, begun)),
            refused,
        )

    def embeddings(self, request: HttpRequest) -> DeferredResponse:
        """POST ``/api/embeddings``."""
        asked = EMBEDDINGS.decode(request.body)
        check_model(self._service, asked.model)
        embedder = self._embedder()
        inputs = [
            embedder.shortened(tokens) for tokens in embedder.tokens("prompt", [asked.prompt])
        ]
        return self._submission.embedded(
            request, asked, inputs, "prompt", lambda done: streamed(_single(done)), refused
        )

    def _embedder(self) -> Embedder:
        embedder = self._service.engine.embedder
        embedder.check_embeds()
        if not embedder.pools:
            raise Unsupported(
                "this model runs without pooling and returns one vector per token; use "
                "/embedding, or start with --pooling mean"
            )
        return embedder


def _many(embedding: Embedding, model: str, width: int | None, begun: int) -> Iterator[bytes]:
    yield b'{"model":' + encode(model) + b',"embeddings":['
    for index, (vector,) in enumerate(embedding.vectors(width=width)):
        yield (b"," if index else b"") + encode(vector.tolist())
    count = embedding.usage.prompt_tokens
    ends = {
        "total_duration": time.perf_counter_ns() - begun,
        "load_duration": 0,
        "prompt_eval_count": count,
    }
    yield b"]," + encode(ends)[1:]


def _single(embedding: Embedding) -> Iterator[bytes]:
    ((vector,),) = embedding.vectors()
    yield b'{"embedding":' + encode(vector.tolist()) + b"}"
