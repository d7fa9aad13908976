"""Texts to vectors: OpenAI's ``/v1/embeddings``, and llama-server's ``/embedding``.

Sources: the OpenAI API reference, "Embeddings"; llama-server's README, "POST /embedding" and
"POST /embeddings".
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from cllm.api import llama_server, openai
from cllm.api.envelopes import encode
from cllm.api.llama_server.prompts import mixed_tokens
from cllm.api.schemas import Schema, TokenId
from cllm.api.service import Service
from cllm.api.sharing_fields import SharingFields
from cllm.api.streamed import streamed
from cllm.api.submission import Submission
from cllm.engine import InvalidRequest
from cllm.http import DeferredResponse, HttpError, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Embedding


class TextPart(Struct):
    """A part of a content; images and sounds have other types."""

    type: Literal["text"]
    text: str


class TextObject(Struct):
    """llama-server's objects: a text by one of two names."""

    prompt_string: str | None = None
    content: list[TextPart] | None = None

    def __post_init__(self) -> None:
        if (self.prompt_string is None) == (self.content is None):
            raise ValueError("prompt_string: expected an object with prompt_string or content")

    @property
    def said(self) -> str:
        """The text."""
        return self.prompt_string or "".join(part.text for part in self.content or ())


Mixed = list[str | TokenId]
Inputs = str | TextObject | list[str | TokenId | TextObject | Mixed]


class OpenAIRequest(SharingFields):
    """Body of ``/v1/embeddings``. Unknown fields are ignored, null means left out."""

    input: Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


class LlamaServerRequest(SharingFields):
    """Body of ``/embedding`` and ``/embeddings``: one of content and input."""

    content: Inputs | None = None
    input: Inputs | None = None
    embd_normalize: Annotated[int, Meta(ge=-1, le=64)] | None = None

    def __post_init__(self) -> None:
        if self.content is None and self.input is None:
            raise ValueError(
                'content: missing; expected text or a list of texts ("input" is accepted too)'
            )


OPENAI = Schema(OpenAIRequest)
LLAMA_SERVER = Schema(LlamaServerRequest)


class Embeddings:
    """The endpoints of one service."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def openai(self, request: HttpRequest) -> DeferredResponse:
        """POST ``/v1/embeddings``.

        Raises HttpError 400 and 503, InvalidRequest, Unsupported, QueueFull.
        """
        embedder = self._service.engine.embedder
        embedder.check_embeds()
        if not embedder.pools:
            raise HttpError(
                400,
                "this model runs without pooling and returns one vector per token; use "
                "/embedding, or start with --pooling mean",
            )
        asked = OPENAI.decode(request.body)
        width, most = asked.dimensions, self._service.engine.info().embedding_size
        if width is not None and most is not None and width > most:
            raise InvalidRequest(
                "dimensions", width, f"at most {most}, the size of the model's vectors"
            )
        inputs = self._tokens("input", asked.input)
        model, base64 = self._service.model_id, asked.encoding_format == "base64"

        def respond(embedding: Embedding) -> HttpResponse:
            return streamed(_openai(embedding, model, width, base64))

        return self._submission.embedded(request, asked, inputs, "input", respond, openai.refused)

    def _tokens(self, name: str, given: Inputs) -> list[list[int]]:
        """One list of tokens for each input; raises InvalidRequest.

        As in llama-server, a list with a token is one input of tokens and texts.
        """
        if not isinstance(given, list):
            return [self._input(name, given)]
        if not given:
            raise InvalidRequest(name, given, "at least one text or list of tokens")
        if any(isinstance(each, int) for each in given):
            mixed = [each for each in given if isinstance(each, (int, str))]
            if len(mixed) != len(given):
                raise InvalidRequest(name, given, "tokens and texts, or inputs")
            return [self._input(name, mixed)]
        return [
            self._input(f"{name}[{number}]", each)
            for number, each in enumerate(given)
            if not isinstance(each, int)
        ]

    def _input(self, field: str, given: str | TextObject | Mixed) -> list[int]:
        engine = self._service.engine
        if isinstance(given, list):
            return mixed_tokens(engine, given, add_special=True, parse_special=False)
        text = given if isinstance(given, str) else given.said
        return engine.embedder.tokens(field, [text])[0]

    def llama_server(self, request: HttpRequest) -> DeferredResponse:
        """POST ``/embedding`` and ``/embeddings``; raises as `openai`."""
        embedder = self._service.engine.embedder
        embedder.check_embeds()
        asked = LLAMA_SERVER.decode(request.body)
        name, given = (
            ("input", asked.input) if asked.content is None else ("content", asked.content)
        )
        assert given is not None
        inputs = self._tokens(name, given)
        norm = 2 if asked.embd_normalize is None else asked.embd_normalize

        def respond(embedding: Embedding) -> HttpResponse:
            return streamed(_llama_server(embedding, norm if embedder.pools else -1))

        return self._submission.embedded(
            request, asked, inputs, name, respond, llama_server.refused
        )


def _openai(embedding: Embedding, model: str, width: int | None, base64: bool) -> Iterator[bytes]:
    yield b'{"object":"list","data":['
    for index, (vector,) in enumerate(embedding.vectors(width=width)):
        data: Any = b64encode(vector.astype("<f4")).decode() if base64 else vector.tolist()
        item = {"object": "embedding", "index": index, "embedding": data}
        yield (b"," if index else b"") + encode(item)
    used = embedding.usage.prompt_tokens
    usage = {"prompt_tokens": used, "total_tokens": used}
    yield b'],"model":' + encode(model) + b',"usage":' + encode(usage) + b"}"


def _llama_server(embedding: Embedding, norm: int) -> Iterator[bytes]:
    yield b"["
    for index, vectors in enumerate(embedding.vectors(norm)):
        item = {"index": index, "embedding": vectors.tolist()}
        yield (b"," if index else b"") + encode(item)
    yield b"]"
