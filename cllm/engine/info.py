"""What is loaded, as the file and the live context say it, never guessed from the file's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cllm.engine.layout.tuning import Tuning


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """The context in force. kv_bytes is an estimate from the model's metadata.

    model_draft: the file's name of the model that guesses ahead.
    threads_adapt: whether fewer than `threads` compute while other programs need the cores.
    tuning: what some of it was chosen by; None: it was not asked for, or not possible.
    """

    version: str
    system_info: str
    ctx_size: int
    parallel: int
    kv_cells: int
    kv_unified: bool
    kv_bytes: int
    batch_size: int
    ubatch_size: int
    threads: int
    threads_batch: int
    threads_adapt: bool
    n_gpu_layers: int
    flash_attn: str
    cache_type_k: str
    cache_type_v: str
    mmap: bool
    mlock: bool
    extra_bufts: bool
    draft_max: int
    model_draft: str | None
    tuning: Tuning | None


@dataclass(frozen=True, slots=True)
class FimTokens:
    """Tokens that mark the parts of a text with a gap, None where the model has none.

    prefix, suffix and middle stand before the text on either side and before what fills the gap;
    repository and file before the name of one.
    """

    prefix: int | None
    suffix: int | None
    middle: int | None
    repository: int | None
    file: int | None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model: None where the file does not say. *_text: a token spelled out, or "".

    pooling: of a model that embeds or ranks; None: it generates. embedding_size: components of
    its vectors.
    """

    path: Path
    name: str
    family: str
    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_sequence_length: int
    intermediate_size: int | None
    rope_theta: float | None
    rms_norm_eps: float | None
    quantized: bool
    quantization_type: str
    parameters: int
    size_bytes: int
    chat_template: str | None
    bos_token: int | None
    eos_token: int | None
    bos_text: str
    eos_text: str
    eot_token: int | None
    eot_text: str
    fim: FimTokens
    pooling: str | None
    embedding_size: int | None
    context: ContextInfo
    metadata: Mapping[str, Any] = field(repr=False)

    @property
    def capability(self) -> str:
        """What it is for: "completion", "embedding" or "rerank"."""
        if self.pooling is None:
            return "completion"
        return "rerank" if self.pooling == "rank" else "embedding"
