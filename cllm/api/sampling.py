"""The sampling fields of request bodies, which have one name and range in every API.

An API with other names (llama-server's) maps them itself.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from msgspec import Meta, Struct

from cllm.api.schemas import INT32, Fraction, NonEmpty, TokenId
from cllm.engine.sampling.params import MAX_STOPS

Temperature = Annotated[float, Meta(ge=0, le=2)]
TopK = Annotated[int, Meta(ge=-1, le=INT32)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Priority = Annotated[int, Meta(ge=-INT32, le=INT32)]


class Sharing(Protocol):
    """A body with the fields of SharingFields."""

    @property
    def priority(self) -> int | None: ...
    @property
    def cache_salt(self) -> str | None: ...


class SharingFields(Struct, kw_only=True):
    """How a request shares the server with others; vLLM's names.

    priority: the lowest is served first. cache_salt: only requests with the same one share cached
    prefixes.
    """

    priority: Priority | None = None
    cache_salt: NonEmpty | None = None


class SamplingFields(SharingFields, kw_only=True):
    """Fields that go to :class:`cllm.engine.SamplingParams` unchanged; null means its default."""

    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: TopK | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = None
    stop: NonEmpty | Annotated[list[NonEmpty], Meta(max_length=MAX_STOPS)] | None = None
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None


def given_sampling(asked: Struct) -> dict[str, Any]:
    """The sampling fields that a body has and that are given, by name."""
    return {
        name: value
        for name in SamplingFields.__struct_fields__
        if name not in SharingFields.__struct_fields__
        and (value := getattr(asked, name, None)) is not None
    }
