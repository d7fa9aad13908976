"""The loaded model, from the file and the context in use, never from the file's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cllm.engine import llama
from cllm.engine.config import EngineConfig
from cllm.engine.layout.layout import Layout
from cllm.engine.layout.sizing import ContextSize
from cllm.engine.layout.tuning import Tuning


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """The context in use. kv_bytes is an estimate from the model's metadata.

    keep_sequences: those that the cache holds besides the `parallel` ones that run.
    model_draft: the draft model's file name.
    threads_adapt: whether fewer than `threads` compute while other programs need the cores.
    tuning: the measurement behind some values; None: not requested, or not possible.
    """

    version: str
    system_info: str
    ctx_size: int
    parallel: int
    keep_sequences: int
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

    @property
    def n_slots(self) -> int:
        """The sequences that the cache holds, each in a slot."""
        return self.parallel + self.keep_sequences


@dataclass(frozen=True, slots=True)
class FimTokens:
    """Tokens that mark the parts of a text with a gap, None if the model lacks one.

    prefix, suffix and middle precede the text before the gap, after it, and in it; repository
    and file precede a name.
    """

    prefix: int | None
    suffix: int | None
    middle: int | None
    repository: int | None
    file: int | None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model: None if the file has no value. *_text: a token's text, or "".

    pooling: of a model that embeds or ranks; None: it generates. embedding_size: length of its
    vectors.
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
        """Its use: "completion", "embedding" or "rerank"."""
        if self.pooling is None:
            return "completion"
        return "rerank" if self.pooling == "rank" else "embedding"


def describe(
    path: Path,
    model: llama.Model,
    metadata: Mapping[str, Any],
    context: ContextInfo,
    quantized: bool,
    pooling: str | None,
) -> ModelInfo:
    """Combine the GGUF's metadata and llama.cpp's values."""
    arch = str(metadata.get("general.architecture", "unknown"))

    def of(name: str) -> Any:
        value = metadata.get(f"{arch}.{name}")
        return max(value, default=None) if isinstance(value, list) else value

    name = str(metadata.get("general.name") or path.stem)
    return ModelInfo(
        path=path,
        name=name,
        family=str(metadata.get("general.basename") or arch),
        architecture=arch,
        vocab_size=model.vocab.n_tokens,
        hidden_size=model.n_embd,
        num_layers=model.n_layer,
        num_attention_heads=int(of("attention.head_count") or model.n_head),
        num_key_value_heads=int(of("attention.head_count_kv") or model.n_head_kv),
        max_sequence_length=model.n_ctx_train,
        intermediate_size=of("feed_forward_length"),
        rope_theta=of("rope.freq_base"),
        rms_norm_eps=of("attention.layer_norm_rms_epsilon"),
        quantized=quantized,
        quantization_type=model.ftype,
        parameters=model.n_params,
        size_bytes=model.size_bytes,
        chat_template=metadata.get("tokenizer.chat_template"),
        bos_token=_token(model.vocab.bos),
        eos_token=_token(model.vocab.eos),
        bos_text=_spelled(model.vocab, model.vocab.bos),
        eos_text=_spelled(model.vocab, model.vocab.eos),
        eot_token=_token(model.vocab.eot),
        eot_text=_spelled(model.vocab, model.vocab.eot),
        pooling=pooling,
        embedding_size=None if pooling in (None, "rank") else model.n_embd_out,
        fim=FimTokens(*map(_token, model.vocab.fim_tokens())),
        context=context,
        metadata=metadata,
    )


def context_info(
    context: llama.Context,
    size: ContextSize,
    config: EngineConfig,
    layout: Layout,
    extra: bool,
    adapt: bool,
    tuning: Tuning | None,
    gpu_layers: int,
) -> ContextInfo:
    """Describe the live context."""
    draft = Path(config.model_draft) if config.model_draft and config.draft_max else None
    return ContextInfo(
        version=llama.version(),
        system_info=llama.system_info(),
        ctx_size=size.ctx_size,
        parallel=config.parallel,
        keep_sequences=config.keep_sequences or 0,
        kv_cells=context.n_ctx,
        kv_unified=layout.kv_unified,
        kv_bytes=size.kv_bytes,
        batch_size=context.n_batch,
        ubatch_size=context.n_ubatch,
        threads=layout.threads,
        threads_batch=layout.threads_batch,
        threads_adapt=adapt,
        n_gpu_layers=gpu_layers,
        flash_attn=layout.flash_attn,
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        mmap=config.mmap,
        mlock=config.mlock,
        extra_bufts=extra,
        draft_max=config.draft_max,
        model_draft=draft.name if draft else None,
        tuning=tuning,
    )


def _token(token: int) -> int | None:
    return token if token >= 0 else None


def _spelled(vocab: llama.Vocab, token: int) -> str:
    return "" if token < 0 else vocab.token_to_piece(token, special=True).decode(errors="replace")
