"""Variants of the built-in model whose tokens can be compared where llama.cpp rounds differently.

The built-in model's weights are Q8_0, and so the activations are rounded to 8 bits as well: the
last bit of an attention sum can become 0.4 in a logit, and so another token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

Change = Callable[[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], None]


def write_variant(
    source: Path,
    target: Path,
    change: Change,
    quantized: bool,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
) -> None:
    """Copy a Q8_0 model; `change` may alter its F32 tensors before they are stored again."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        change(tensor.name, values)
        if quantized and tensor.tensor_type == q8_0:
            writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    finish(writer)


def write_tiny(source: Path, target: Path, layers: int = 2) -> None:
    """The first layers of a model, in F32: quick, and with logits as PRECISE as write_f32's."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        value = layers if field.name.endswith(".block_count") else field.contents()
        writer.add_key_value(field.name, value, field.types[0], inner)
    kept = tuple(f"blk.{layer}." for layer in range(layers))
    for tensor in reader.tensors:
        if tensor.name.startswith(kept) or not tensor.name.startswith("blk."):
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, np.array(values, dtype=np.float32))
    finish(writer)


def write_q4(source: Path, target: Path) -> None:
    """With Q4_0 weights, of which llama.cpp's repacked kernels compute four rows at a time."""
    write_variant(source, target, lambda name, values: None, True, gguf.GGMLQuantizationType.Q4_0)


def write_memoryless(source: Path, target: Path) -> None:
    """Without attention the next token depends on the last one alone: logits are always exact."""

    def forget(name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        if name.endswith("attn_output.weight"):
            values[:] = 0.0

    write_variant(source, target, forget, quantized=True)


def write_shuffled(source: Path, target: Path) -> None:
    """Rows of the output matrix in another order: it says something else, in the same words."""

    def shuffle(name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        if name == "output.weight":
            values[:] = np.random.default_rng(0).permutation(values)

    write_variant(source, target, shuffle, quantized=True)


def write_f32(source: Path, target: Path) -> None:
    """With an F32 cache and no flash attention logits differ by some 1e-5 at most: PRECISE."""
    write_variant(source, target, lambda name, values: None, quantized=False)


def write_recurrent(vocabulary: Path, target: Path) -> None:
    """A Mamba model of two layers with random weights: its memory cannot go back to a token."""
    _write_mamba(vocabulary, target, attention=False)


def write_mixed(vocabulary: Path, target: Path) -> None:
    """A Jamba model with random weights: a layer of Mamba and one of attention."""
    _write_mamba(vocabulary, target, attention=True)


def _write_mamba(vocabulary: Path, target: Path, attention: bool) -> None:
    writer, n_vocab = with_vocabulary(vocabulary, target, "jamba" if attention else "mamba")
    width, inner_width, state, rank, kernel, heads = 64, 128, 16, 4, 4, 4
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(inner_width if attention else 0)
    writer.add_head_count(heads if attention else 0)
    if attention:
        writer.add_head_count_kv([0, heads])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner_width)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.5).astype(np.float32))

    add("token_embd.weight", n_vocab, width)
    add("output_norm.weight", width)
    for layer in ("blk.0", "blk.1"):
        add(f"{layer}.attn_norm.weight", width)
        if attention:
            add(f"{layer}.ffn_norm.weight", width)
            add(f"{layer}.ffn_gate.weight", inner_width, width)
            add(f"{layer}.ffn_up.weight", inner_width, width)
            add(f"{layer}.ffn_down.weight", width, inner_width)
        if attention and layer == "blk.1":
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                add(f"{layer}.{part}.weight", width, width)
            continue
        if attention:
            for name, size in (("dt", rank), ("b", state), ("c", state)):
                add(f"{layer}.ssm_{name}_norm.weight", size)
        add(f"{layer}.ssm_in.weight", 2 * inner_width, width)
        add(f"{layer}.ssm_conv1d.weight", inner_width, kernel)
        add(f"{layer}.ssm_conv1d.bias", inner_width)
        add(f"{layer}.ssm_x.weight", rank + 2 * state, inner_width)
        add(f"{layer}.ssm_dt.weight", inner_width, rank)
        add(f"{layer}.ssm_dt.bias", inner_width)
        decay = -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner_width, 1))
        writer.add_tensor(f"{layer}.ssm_a", decay)
        add(f"{layer}.ssm_d", inner_width)
        add(f"{layer}.ssm_out.weight", width, inner_width)
    finish(writer)


def write_hybrid(vocabulary: Path, target: Path) -> None:
    """An LFM2 model of four layers with random weights: convolutions and attention in turns."""
    writer, n_vocab = with_vocabulary(vocabulary, target, "lfm2")
    width, heads, inner_width, kernel, layers = 64, 4, 128, 3, 4
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner_width)
    writer.add_head_count(heads)
    writer.add_head_count_kv([0, heads] * (layers // 2))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(n_vocab)
    writer.add_shortconv_l_cache(kernel)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.5).astype(np.float32))

    add("token_embd.weight", n_vocab, width)
    add("token_embd_norm.weight", width)
    for layer in range(layers):
        name = f"blk.{layer}."
        add(f"{name}attn_norm.weight", width)
        add(f"{name}ffn_norm.weight", width)
        add(f"{name}ffn_gate.weight", inner_width, width)
        add(f"{name}ffn_up.weight", inner_width, width)
        add(f"{name}ffn_down.weight", width, inner_width)
        if layer % 2:
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                add(f"{name}{part}.weight", width, width)
            add(f"{name}attn_q_norm.weight", width // heads)
            add(f"{name}attn_k_norm.weight", width // heads)
        else:
            add(f"{name}shortconv.conv.weight", width, kernel)
            add(f"{name}shortconv.in_proj.weight", 3 * width, width)
            add(f"{name}shortconv.out_proj.weight", width, width)
    finish(writer)


def write_windowed(vocabulary: Path, target: Path) -> None:
    """A Gemma 2 model of four layers with random weights: every other one looks 32 tokens back."""
    writer, n_vocab = with_vocabulary(vocabulary, target, "gemma2")
    width, heads, head, inner_width = 64, 4, 16, 128
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_block_count(4)
    writer.add_feed_forward_length(inner_width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(32)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.5).astype(np.float32))

    add("token_embd.weight", n_vocab, width)
    add("output_norm.weight", width)
    for layer in (f"blk.{i}" for i in range(4)):
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            add(f"{layer}.{norm}.weight", width)
        for part in ("attn_q", "attn_k", "attn_v"):
            add(f"{layer}.{part}.weight", heads * head, width)
        add(f"{layer}.attn_output.weight", width, heads * head)
        add(f"{layer}.ffn_gate.weight", inner_width, width)
        add(f"{layer}.ffn_up.weight", inner_width, width)
        add(f"{layer}.ffn_down.weight", width, inner_width)
    finish(writer)


def with_vocabulary(vocabulary: Path, target: Path, arch: str) -> tuple[gguf.GGUFWriter, int]:
    """Begin a model of another architecture with a model's tokenizer; its size is given too."""
    reader = gguf.GGUFReader(vocabulary)
    writer = gguf.GGUFWriter(target, arch)
    for field in reader.fields.values():
        if field.name.startswith("tokenizer."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    return writer, len(reader.fields["tokenizer.ggml.tokens"].contents())


def finish(writer: gguf.GGUFWriter) -> None:
    """Write all that was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
