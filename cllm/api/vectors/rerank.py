"""Documents ranked by a query: Jina's and Cohere's API in llama-server's form, and that of Text
Embeddings Inference (`texts` instead of `documents`).

Sources: llama-server's README, "POST /reranking"; https://jina.ai/reranker/;
https://docs.cohere.com/reference/rerank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from cllm.api import llama_server, openai
from cllm.api.envelopes import JSON, encode
from cllm.api.schemas import NonEmpty, Schema
from cllm.api.service import Service
from cllm.api.sharing_fields import SharingFields
from cllm.api.submission import Submission
from cllm.http import DeferredResponse, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Embedding


class Document(Struct):
    """A document as an object; its other fields are ignored."""

    text: NonEmpty


Documents = Annotated[list[NonEmpty | Document], Meta(min_length=1)]


class RerankRequest(SharingFields):
    """Body of the endpoints. Unknown fields are ignored, null means left out."""

    query: NonEmpty
    documents: Documents | None = None
    texts: Documents | None = None
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None
    return_text: bool | None = None

    def __post_init__(self) -> None:
        if self.documents is None and self.texts is None:
            raise ValueError("documents: missing; expected a non-empty list of texts")


RERANK = Schema(RerankRequest)


class Reranking:
    """The endpoint; its paths differ only in the envelope of their errors."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def endpoint(self, request: HttpRequest) -> DeferredResponse:
        """POST ``/rerank``, ``/reranking`` and the same below ``/v1``.

        Raises HttpError 400 and 503, InvalidRequest, Unsupported, QueueFull.
        """
        embedder = self._service.engine.embedder
        embedder.check_ranks()
        asked = RERANK.decode(request.body)
        texts = [
            document if isinstance(document, str) else document.text
            for document in asked.documents or asked.texts or ()
        ]
        inputs = embedder.pairs(asked.query, texts)
        model = self._service.model_id
        name = "texts" if asked.documents is None else "documents"

        def respond(embedding: Embedding) -> HttpResponse:
            ranked = _ranked(embedding, asked.top_n)
            body = (
                _scores(ranked, texts, asked.return_text)
                if asked.documents is None
                else _results(ranked, texts, asked.return_documents, model, embedding)
            )
            return HttpResponse.bytes(encode(body), JSON)

        refuse = openai.refused if request.path.startswith("/v1/") else llama_server.refused
        return self._submission.embedded(request, asked, inputs, name, respond, refuse)


def _ranked(embedding: Embedding, most: int | None) -> list[tuple[int, float]]:
    """(number of the document, score), the best first; ties in the order of the request."""
    scores = [float(scores[0, 0]) for scores in embedding.result()]
    return sorted(enumerate(scores), key=lambda item: -item[1])[:most]


def _results(
    ranked: list[tuple[int, float]],
    texts: list[str],
    with_text: bool | None,
    model: str,
    embedding: Embedding,
) -> dict[str, Any]:
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": score} for index, score in ranked
    ]
    if with_text:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    used = embedding.usage.prompt_tokens
    usage = {"prompt_tokens": used, "total_tokens": used}
    return {"model": model, "object": "list", "usage": usage, "results": results}


def _scores(
    ranked: list[tuple[int, float]], texts: list[str], with_text: bool | None
) -> list[dict[str, Any]]:
    """The answer of Text Embeddings Inference."""
    return [
        {"index": index, "score": score, **({"text": texts[index]} if with_text else {})}
        for index, score in ranked
    ]
