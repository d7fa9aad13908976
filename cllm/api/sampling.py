"""The sampling fields of request bodies, which have one name and range in every API.

An API with other names (llama-server's) maps them itself.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from cllm.api.constraint_fields import ConstraintFields
from cllm.api.schemas import INT32, Fraction, NonEmpty, TokenId
from cllm.engine.sampling.params import MAX_STOPS

Temperature = Annotated[float, Meta(ge=0, le=2)]
TopK = Annotated[int, Meta(ge=-1, le=INT32)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class SamplingFields(ConstraintFields, kw_only=True):
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


_OWN = tuple(SamplingFields.__annotations__)


def given_sampling(asked: Struct) -> dict[str, Any]:
    """The sampling fields that a body has and that are given, by name."""
    return {name: value for name in _OWN if (value := getattr(asked, name, None)) is not None}
