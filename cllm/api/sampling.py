"""The sampling fields of request bodies, which have one name and range in every API.

llama-server's names for more of them are in `llama_fields.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from cllm.api.llama_fields import LlamaFields, llama_sampling, logit_bias
from cllm.api.schemas import INT32, Fraction
from cllm.api.service import Service
from cllm.engine.sampling.params import MAX_STOPS

Temperature = Annotated[float, Meta(ge=0, le=2)]
TopK = Annotated[int, Meta(ge=-1, le=INT32)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class SamplingFields(LlamaFields, kw_only=True):
    """Fields that go to :class:`cllm.engine.SamplingParams` unchanged; null means its default."""

    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: TopK | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=MAX_STOPS)] | None = None
    logit_bias: dict[str, float | bool] | list[Any] | None = None
    ignore_eos: bool | None = None


_OWN = tuple(SamplingFields.__annotations__)


def given_sampling(asked: Struct, service: Service) -> dict[str, Any]:
    """The sampling fields that a body gives, by name, over the server's defaults.

    Raises InvalidRequest.
    """
    own = {name: value for name in _OWN if (value := getattr(asked, name, None)) is not None}
    if "stop" in own:  # an empty text stops nothing
        texts = [own["stop"]] if isinstance(own["stop"], str) else own["stop"]
        own["stop"] = tuple(text for text in texts if text)
    if "logit_bias" in own:
        own["logit_bias"] = logit_bias(service.engine, own["logit_bias"])
    return {**service.settings.sampling, **llama_sampling(asked), **own}
