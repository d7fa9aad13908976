"""Little models that embed or rank, with random weights: BERTs, a T5's encoder, Qwen3s."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from scripts.bench.models.embedding_model import CLS, SEP, Shape, add_vocabulary, write_bert

__all__ = ["CLS", "SEP", "TRAINED", "WIDTH", "bert", "qwen3", "sentences", "t5_encoder"]

_FOLDER = tempfile.TemporaryDirectory(prefix="cllm-embedding-models-")

WIDTH = 32
LAYERS = 2
HEADS = 4
FEED_FORWARD = 64
TRAINED = 128  # tokens

_WORDS = """
the a cat dog sat on mat runs fast slow story of red blue house tree and is was in what who
where panda bear animal king queen river sea sky small great
"""
WORDS = _WORDS.split()

Add = Callable[..., None]


@functools.cache
def bert(pooling: str | None = "mean") -> Path:
    """A BERT with a WordPiece vocabulary. pooling: None leaves it out of the file."""
    path = Path(_FOLDER.name) / f"bert-{pooling}.gguf"
    write_bert(path, Shape(LAYERS, WIDTH, HEADS, FEED_FORWARD, TRAINED), WORDS, pooling)
    return path


@functools.cache
def t5_encoder() -> Path:
    """The encoder of a T5, with the vocabulary of the BERTs; its file names no pooling."""
    path = Path(_FOLDER.name) / "t5-encoder.gguf"
    writer = gguf.GGUFWriter(path, "t5encoder")
    size = add_vocabulary(writer, WORDS)
    _add_shape(writer)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_relative_attn_buckets_count(8)
    add = _adder(writer)
    add("token_embd.weight", size, WIDTH)
    for layer in range(LAYERS):
        name = f"enc.blk.{layer}."
        if not layer:
            add(f"{name}attn_rel_b.weight", 8, HEADS)
        for part in ("attn_q", "attn_k", "attn_v", "attn_o"):
            add(f"{name}{part}.weight", WIDTH, WIDTH)
        add(f"{name}ffn_up.weight", FEED_FORWARD, WIDTH)
        add(f"{name}ffn_down.weight", WIDTH, FEED_FORWARD)
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{name}{norm}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.add_tensor("enc.output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    _write(writer)
    return path


@functools.cache
def qwen3(vocabulary: Path, pooling: str | None = "last") -> Path:
    """A causal model with the byte-level BPE vocabulary of another file, and an EOS at the end."""
    path = Path(_FOLDER.name) / f"qwen3-{pooling}.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name(f"qwen3-{pooling}")
    reader = gguf.GGUFReader(vocabulary)
    for field in reader.fields.values():
        left_out = ("chat_template", "add_eos_token", "add_bos_token")
        if field.name.startswith("tokenizer.") and not field.name.endswith(left_out):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(pooling != "rank")
    _add_shape(writer)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(WIDTH // HEADS)
    writer.add_value_length(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType[pooling.upper()])
    add = _adder(writer)
    add("token_embd.weight", len(reader.fields["tokenizer.ggml.tokens"].contents()), WIDTH)
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{name}{part}.weight", WIDTH, WIDTH)
        add(f"{name}ffn_up.weight", FEED_FORWARD, WIDTH)
        add(f"{name}ffn_gate.weight", FEED_FORWARD, WIDTH)
        add(f"{name}ffn_down.weight", WIDTH, FEED_FORWARD)
        for norm, size in (
            ("attn_norm", WIDTH),
            ("ffn_norm", WIDTH),
            ("attn_q_norm", WIDTH // HEADS),
            ("attn_k_norm", WIDTH // HEADS),
        ):
            writer.add_tensor(f"{name}{norm}.weight", np.ones(size, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    if pooling == "rank":
        writer.add_classifier_output_labels(["yes", "no"])
        writer.add_chat_template(
            [
                {
                    "name": "rerank",
                    "template": "<|im_start|>user\nQuery: {query}\nDocument: {document}<|im_end|>\n"
                    "<|im_start|>assistant\n",
                }
            ]
        )
        add("cls.output.weight", 2, WIDTH)
    _write(writer)
    return path


def _add_shape(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(TRAINED)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)


def _adder(writer: gguf.GGUFWriter) -> Add:
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        weights: npt.NDArray[Any] = random.standard_normal(shape) * 0.3
        writer.add_tensor(name, weights.astype(np.float32))

    return add


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sentences(count: int, seed: int = 0) -> Sequence[str]:
    """Different texts of 1 to 20 known words."""
    random = np.random.default_rng(seed)
    return [
        " ".join(random.choice(WORDS, size=random.integers(1, 21))) + f" {number}"
        for number in range(count)
    ]
