"""Writes an embedding model with random weights: BERT, in the shape of all-MiniLM-L6-v2.

Speed does not depend on what the weights are; the vectors mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gguf
    import numpy as np
    import numpy.typing as npt

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)
_LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
_VOCABULARY = 30_522


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a BERT, by default those of all-MiniLM-L6-v2. length: tokens."""

    layers: int = 6
    width: int = 384
    heads: int = 12
    feed_forward: int = 1536
    length: int = 512


def words(count: int) -> list[str]:
    """Different words of two or three syllables."""
    syllables = [a + b for a in "bdfghklmnprstvwz" for b in "aeiou"]
    made = itertools.chain.from_iterable(
        itertools.product(syllables, repeat=number) for number in (2, 3)
    )
    return ["".join(parts) for parts in itertools.islice(made, count)]


def write_bert(
    path: Path,
    shape: Shape,
    vocabulary: Sequence[str],
    pooling: str | None,
    *,
    quantized: bool = False,
) -> None:
    """Write a BERT with a WordPiece vocabulary. pooling: None leaves it out of the file."""
    import gguf

    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(path.stem)
    writer.add_context_length(shape.length)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType[pooling.upper()])
    kind = gguf.LlamaFileType.MOSTLY_Q8_0 if quantized else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(kind)
    size = add_vocabulary(writer, vocabulary)
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in _tensors(shape, size, rank=pooling == "rank"):
        if quantized and name.startswith(("blk.", "token_embd.weight")) and tensor.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(tensor, q8_0), raw_dtype=q8_0)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Sequence[str]) -> int:
    """Add a WordPiece vocabulary; return its size.

    Pieces at the start of a word begin with "▁"; the others continue it.
    """
    import gguf

    starts = dict.fromkeys([*vocabulary, *_LETTERS, *"0123456789?.,!"])
    tokens = [*SPECIAL, *(f"▁{start}" for start in starts), *_LETTERS, *"0123456789"]
    kinds = [gguf.TokenType.CONTROL] * len(SPECIAL)
    kinds += [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL))
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(CLS)
    writer.add_sep_token_id(SEP)
    writer.add_pad_token_id(PAD)
    writer.add_unk_token_id(UNK)
    writer.add_mask_token_id(MASK)
    return len(tokens)


def _tensors(shape: Shape, size: int, rank: bool) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    import numpy as np

    random = np.random.default_rng(0)
    width = shape.width

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        weights = random.standard_normal((rows, columns), dtype=np.float32)
        weights *= 2 / columns**0.5
        return weights

    def norm(name: str) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        yield f"{name}.weight", np.ones(width, dtype=np.float32)
        yield f"{name}.bias", np.zeros(width, dtype=np.float32)

    yield "token_embd.weight", matrix(size, width)
    yield "token_types.weight", matrix(2, width)
    yield "position_embd.weight", matrix(shape.length, width)
    yield from norm("token_embd_norm")
    for layer in range(shape.layers):
        name = f"blk.{layer}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{name}{part}.weight", matrix(width, width)
        yield f"{name}ffn_up.weight", matrix(shape.feed_forward, width)
        yield f"{name}ffn_down.weight", matrix(width, shape.feed_forward)
        yield from norm(f"{name}attn_output_norm")
        yield from norm(f"{name}layer_output_norm")
    if rank:
        yield "cls.weight", matrix(width, width)
        yield "cls.output.weight", matrix(1, width)


def main() -> None:
    """Write the model that the command line names."""
    options = argparse.ArgumentParser(prog=sys.argv[0], description=__doc__)
    options.add_argument("path", type=Path, metavar="FILE.gguf")
    path: Path = options.parse_args().path
    write_bert(path, Shape(), words(_VOCABULARY), "mean", quantized=True)
