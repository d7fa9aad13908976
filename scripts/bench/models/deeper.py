"""A model that says what another one says, and takes longer: layers are added that change nothing.

The outputs of an added layer's attention and feed-forward network have zero weights, so that it
adds nothing to the residual stream, and costs what a layer costs. The other model drafts for it
as a smaller model of the same family would at best: nearly all drafts are accepted.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

_ADDS = ("attn_output.weight", "attn_output.bias", "ffn_down.weight", "ffn_down.bias")


def write_deeper(source: Path, target: Path, layers: int) -> None:
    """Write the model with `layers` further ones, copies of the first that add nothing.

    Raises ValueError for a file that is no model of such layers.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch := reader.fields["general.architecture"].contents())
    if f"{arch}.block_count" not in reader.fields:
        raise ValueError(f"{source} names no number of layers; give a model that generates")
    count = int(reader.fields[f"{arch}.block_count"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        value = count + layers if field.name.endswith(".block_count") else field.contents()
        writer.add_key_value(field.name, value, field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        if tensor.name.startswith("blk.0."):
            part = tensor.name.removeprefix("blk.0.")
            data = np.zeros_like(tensor.data) if part in _ADDS else tensor.data
            for layer in range(count, count + layers):
                writer.add_tensor(f"blk.{layer}.{part}", data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
