"""llama-server's sampling fields in the engine's terms and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cllm.api.constraint_fields import asked_constraint, checked
from cllm.api.llama_fields import (
    DRY_LAST_N,
    NUMBERS,
    RANDOM_SEED,
    llama_logprobs,
    llama_sampling,
    logit_bias,
    most_tokens,
)
from cllm.api.llama_server.schemas import CompletionRequest
from cllm.engine import SamplingParams

if TYPE_CHECKING:
    from cllm.engine import Engine


def sampling(
    engine: Engine,
    asked: CompletionRequest,
    defaults: Mapping[str, Any],
    choice: int = 0,
    tenant: str = "",
) -> SamplingParams:
    """The parameters of completion number `choice` of a prompt; raises InvalidRequest.

    defaults: the server's, in the names of SamplingParams.
    tenant: whose turn it is when constraints are compiled.
    """
    given = {"dry_penalty_last_n": DRY_LAST_N, **defaults, **llama_sampling(asked, tuple(NUMBERS))}
    given |= llama_logprobs(asked)
    if asked.seed is not None:
        given["seed"] = None if asked.seed in (-1, RANDOM_SEED) else asked.seed + choice
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if asked.ignore_eos is not None:
        given["ignore_eos"] = asked.ignore_eos
    given["max_tokens"] = most_tokens(
        defaults, asked.n_predict, asked.max_completion_tokens, asked.max_tokens
    )
    return SamplingParams(
        **{"logprobs": asked.logprobs or None, **given},
        stop=tuple(text for text in stop if text),
        logit_bias=logit_bias(engine, asked.logit_bias or {}),
        record_tokens=bool(asked.return_tokens or asked.stream),
        constraint=checked(engine, asked_constraint(asked), tenant),
        report_progress=bool(asked.return_progress and asked.stream),
    )
