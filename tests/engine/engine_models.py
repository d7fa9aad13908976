"""Variants of the built-in model whose tokens can be compared where llama.cpp rounds differently.

The built-in model's weights are Q8_0, and so the activations are rounded to 8 bits as well: the
last bit of an attention sum can become 0.4 in a logit, and then another token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

Change = Callable[[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], None]


def write_variant(source: Path, target: Path, change: Change, quantized: bool) -> None:
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
            writer.add_tensor(tensor.name, gguf.quantize(values, q8_0), raw_dtype=q8_0)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_memoryless(source: Path, target: Path) -> None:
    """Without attention the next token depends on the last one alone: logits are always exact."""

    def forget(name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        if name.endswith("attn_output.weight"):
            values[:] = 0.0

    write_variant(source, target, forget, quantized=True)


def write_f32(source: Path, target: Path) -> None:
    """With an F32 cache and no flash attention logits differ by some 1e-5 at most: PRECISE."""
    write_variant(source, target, lambda name, values: None, quantized=False)
