"""LoRA adapters with random weights for a model of the tests."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

PARTS = ("attn_q.weight", "attn_v.weight", "ffn_down.weight")


def write_lora(
    model: Path,
    target: Path,
    seed: int,
    *,
    rank: int = 4,
    arch: str | None = None,
    kind: str = "lora",
    general: str = "adapter",
    wider: int = 0,
    left_out: str = "",
    alpha: float = 4.0,
    invocation: tuple[int, ...] = (),
    size: float = 0.3,
) -> Path:
    """An adapter of some weights of each layer.

    arch: of the model that it says it is for. kind, general: its types. wider: by how much it does
    not fit. left_out: the end of the names of tensors that are missing. invocation: tokens that
    activate it.
    """
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(target, arch or reader.fields["general.architecture"].contents())
    writer.add_type(general)
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", alpha)
    if invocation:
        key = "adapter.alora.invocation_tokens"
        value = gguf.GGUFValueType
        writer.add_key_value(key, list(invocation), value.ARRAY, value.UINT32)
    rng = np.random.default_rng(seed)

    def add(name: str, rows: int, columns: int) -> None:
        if not (left_out and name.endswith(left_out)):
            values = rng.standard_normal((rows, columns)) * size
            writer.add_tensor(name, values.astype(np.float32))

    for tensor in reader.tensors:
        if tensor.name.endswith(PARTS):
            width, height = int(tensor.shape[0]) + wider, int(tensor.shape[1])
            add(f"{tensor.name}.lora_a", rank, width)
            add(f"{tensor.name}.lora_b", height, rank)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
