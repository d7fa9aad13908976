"""Bodies of the native endpoints. Unknown fields are ignored, null means left out."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from cllm.api.llama_fields import most_tokens
from cllm.api.sampling import SamplingFields, Temperature, given_sampling
from cllm.api.schemas import INT32, NonEmpty, Schema
from cllm.api.service import Service
from cllm.engine import Constraint, SamplingParams

DEFAULT_MAX_TOKENS = 256
SEED_PROMPT = "人工智能是计算机科学的一个分支"


class GenerateRequest(SamplingFields, kw_only=True):
    """Body of ``/generate`` and ``/generate_stream``.

    The defaults of the sampling fields are those of :class:`cllm.engine.SamplingParams`;
    ``max_tokens`` is 256 unless given.
    """

    prompt: NonEmpty
    max_tokens: Annotated[int, Meta(ge=1, le=INT32)] | None = None
    stream: bool | None = None

    def sampling(self, service: Service, constraint: Constraint | None = None) -> SamplingParams:
        """How the tokens are chosen; raises InvalidRequest."""
        defaults = service.settings.sampling
        most = most_tokens(defaults, self.n_predict, self.max_tokens, otherwise=DEFAULT_MAX_TOKENS)
        given = {**given_sampling(self, service), "max_tokens": most}
        return SamplingParams(**given, constraint=constraint)


class EncodeRequest(Struct):
    """Body of ``/encode``."""

    text: str
    add_special: bool | None = None
    parse_special: bool | None = None


class DecodeRequest(Struct):
    """Body of ``/decode``. Whether a token is in the vocabulary is checked against the model."""

    tokens: list[int]
    special: bool | None = None


class BenchmarkRequest(Struct):
    """Body of ``/benchmark``; may be empty, every field has a default."""

    requests: Annotated[int, Meta(ge=1, le=10_000)] = 10
    concurrency: Annotated[int, Meta(ge=1, le=256)] = 1
    max_tokens: Annotated[int, Meta(ge=1, le=INT32)] = 50
    prompt: NonEmpty = SEED_PROMPT
    temperature: Temperature | None = None


GENERATE = Schema(GenerateRequest)
ENCODE = Schema(EncodeRequest)
DECODE = Schema(DecodeRequest)
BENCHMARK = Schema(BenchmarkRequest)
