"""The shapes and the random weights of models for benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides a model's speed: numbers from the config.json of the model named."""

    architecture: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    context: int
    rope_base: float
    rms_epsilon: float
    attention: tuple[int, ...] | None = None  # these layers; the others are convolutions

    @property
    def normalizes_heads(self) -> bool:
        """Whether queries and keys pass a norm of their own in each head."""
        return self.architecture in ("qwen3", "lfm2")

    def attends(self, layer: int) -> bool:
        """Whether a layer has attention."""
        return self.attention is None or layer in self.attention


SHAPES = {
    # Qwen/Qwen3-0.6B
    "qwen3-0.6b": Shape("qwen3", 1024, 28, 16, 8, 128, 3072, 151_936, 40_960, 1e6, 1e-6),
    # Qwen/Qwen3-1.7B
    "qwen3-1.7b": Shape("qwen3", 2048, 28, 16, 8, 128, 6144, 151_936, 40_960, 1e6, 1e-6),
    # meta-llama/Llama-3.2-1B, without its scaling of RoPE
    "llama-1b": Shape("llama", 2048, 16, 32, 8, 64, 8192, 128_256, 131_072, 5e5, 1e-5),
    # LiquidAI/LFM2-350M: a hybrid
    "lfm2-350m": Shape(
        "lfm2", 1024, 16, 16, 8, 64, 4608, 65_536, 128_000, 1e6, 1e-5, (2, 5, 8, 10, 12, 14)
    ),
    # no model's: for trying the script and for tests
    "tiny": Shape("qwen3", 256, 2, 4, 2, 64, 512, 4_096, 4_096, 1e6, 1e-6),
    "tiny-hybrid": Shape("lfm2", 256, 2, 4, 2, 64, 512, 4_096, 4_096, 1e6, 1e-6, (1,)),
}


KERNEL = 3  # tokens that a convolution spans


@dataclass(frozen=True, slots=True)
class Tensor:
    """A matrix of normally distributed numbers, a vector of equal ones, or `values`."""

    name: str
    size: tuple[int, ...]
    scale: float
    values: npt.NDArray[Any] | None = None

    @property
    def dtype(self) -> npt.DTypeLike:
        return np.float32 if len(self.size) == 1 or self.size[1] == KERNEL else np.float16

    @property
    def bytes(self) -> int:
        return int(np.prod(self.size)) * np.dtype(self.dtype).itemsize

    def make(self, random: np.random.Generator) -> npt.NDArray[Any]:
        """The numbers; made 1 024 rows at a time, so that there is no second copy of all."""
        if self.values is not None:
            return self.values
        values = np.empty(self.size, dtype=self.dtype)
        if values.ndim == 1:
            values.fill(self.scale)
            return values
        for row in range(0, len(values), 1024):
            part = values[row : row + 1024]
            part[...] = random.standard_normal(part.shape, dtype=np.float32) * self.scale
        return values


def tensors(shape: Shape, tokens: int) -> Iterator[Tensor]:
    """Every tensor of the model. Embeddings serve as output too, as in the models named above.

    The scales keep numbers in range through all layers and make the text varied: the
    logits' standard deviation is about 3, and attention picks a few of the tokens before.
    """

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return Tensor(name, (rows, columns), gain / columns**0.5)

    def vector(name: str, size: int, value: float = 1.0) -> Tensor:
        return Tensor(name, (size,), value)

    width = shape.width
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    yield matrix("token_embd.weight", tokens, width, 3.0)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield vector(block + "attn_norm.weight", width)
        if shape.attends(layer):
            yield matrix(block + "attn_q.weight", queries, width)
            yield matrix(block + "attn_k.weight", keys, width)
            yield matrix(block + "attn_v.weight", keys, width)
            yield matrix(block + "attn_output.weight", width, queries)
            if shape.normalizes_heads:
                yield vector(block + "attn_q_norm.weight", shape.head_size, 2.0)
                yield vector(block + "attn_k_norm.weight", shape.head_size, 2.0)
        else:
            yield matrix(block + "shortconv.in_proj.weight", 3 * width, width)
            yield matrix(block + "shortconv.conv.weight", width, KERNEL)
            yield matrix(block + "shortconv.out_proj.weight", width, width)
        yield vector(block + "ffn_norm.weight", width)
        yield matrix(block + "ffn_gate.weight", shape.feed_forward, width)
        yield matrix(block + "ffn_up.weight", shape.feed_forward, width)
        yield matrix(block + "ffn_down.weight", width, shape.feed_forward, 2.0)
    yield vector(f"{'token_embd' if shape.attention else 'output'}_norm.weight", width)
