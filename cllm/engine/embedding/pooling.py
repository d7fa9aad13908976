"""Whether a model embeds, how its tokens become one vector or score, and what that takes.

Sources: llama.cpp's enum llama_pooling_type, llama_context::encode and ::decode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cllm.engine.config import MAX_PARALLEL, POOLINGS, EngineConfig
from cllm.engine.errors import ModelLoadError
from cllm.engine.layout.sizing import CELLS_STEP, context_size, default_budget, rounded_up


@dataclass(frozen=True, slots=True)
class EmbeddingShape:
    """How inputs are computed.

    longest: tokens of one input. batch: tokens computed at once. packed: tokens up to which short
    inputs share a batch. cells: tokens that the memory holds, if there is one. most_inputs: inputs
    in one batch. chunked: whether an input longer than a batch is computed piece by piece.
    """

    pooling: str
    longest: int
    batch: int
    packed: int
    cells: int
    most_inputs: int
    chunked: bool


def pooling_of(metadata: Mapping[str, Any], config: EngineConfig) -> str | None:
    """How the model pools: what the configuration says, or else the file; None: it generates."""
    if config.pooling != "auto":
        return config.pooling
    arch = metadata.get("general.architecture", "")
    number = metadata.get(f"{arch}.pooling_type")
    if number is not None and 0 < int(number) < len(POOLINGS):
        return POOLINGS[int(number)]
    encoder = arch == "t5encoder" or not is_causal(metadata)
    return "none" if encoder else None


def is_causal(metadata: Mapping[str, Any]) -> bool:
    """Whether tokens see only what stands before them."""
    arch = metadata.get("general.architecture", "")
    return bool(metadata.get(f"{arch}.attention.causal", True)) and arch != "t5encoder"


def shape_of(
    pooling: str,
    metadata: Mapping[str, Any],
    n_ctx_train: int,
    n_vocab: int,
    supports_rollback: bool,
    ubatch_size: int,
    config: EngineConfig,
) -> EmbeddingShape:
    """Decide how long inputs may be and how many share a batch.

    What looks at all tokens of an input at once must have them in one batch, whose memory grows
    with it: llama.cpp keeps a row of logits for each of its tokens, and a decoder computes one
    more. What reads only the last token of a causal model needs no more than a chunk at a time.
    """
    budget = config.memory_budget or default_budget()
    row = 4 * n_vocab * (2 if is_causal(metadata) else 1)
    most = max(CELLS_STEP, budget // row // CELLS_STEP * CELLS_STEP)
    packed = min(ubatch_size, most)
    chunked = is_causal(metadata) and pooling in ("last", "rank")
    if chunked:
        size = context_size(metadata, n_ctx_train, replace(config, parallel=1, kv_cells=None))
        longest, batch = size.ctx_size, packed
    else:
        # Beyond the length it was trained for an encoder has no positions.
        longest = min(n_ctx_train, config.ctx_size or min(config.batch_size, most))
        batch = max(longest, packed)
    return EmbeddingShape(
        pooling=pooling,
        longest=longest,
        batch=batch,
        packed=packed,
        cells=rounded_up(max(longest, batch)),
        most_inputs=min(MAX_PARALLEL if supports_rollback else config.parallel, packed),
        chunked=chunked,
    )


def check_classifier(name: str, pooling: str, has_classifier: bool) -> None:
    """Raise ModelLoadError where ranking is asked of a model that was not made for it."""
    if pooling == "rank" and not has_classifier:
        raise ModelLoadError(
            f"{name} has no classification head to rank with; give a reranker, or another --pooling"
        )
