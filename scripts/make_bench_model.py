#!/usr/bin/env python3
"""Make a GGUF model to measure speed with: the shape of a real model, and random weights.

Speed does not depend on what the weights say, only on how many they are and how they are stored.
Where no model can be downloaded, or must not be, this one stands in for it.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import re
import string
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


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

    @property
    def normalizes_heads(self) -> bool:
        """Whether queries and keys pass a norm of their own in each head."""
        return self.architecture == "qwen3"


SHAPES = {
    # Qwen/Qwen3-0.6B
    "qwen3-0.6b": Shape("qwen3", 1024, 28, 16, 8, 128, 3072, 151_936, 40_960, 1e6, 1e-6),
    # Qwen/Qwen3-1.7B
    "qwen3-1.7b": Shape("qwen3", 2048, 28, 16, 8, 128, 6144, 151_936, 40_960, 1e6, 1e-6),
    # meta-llama/Llama-3.2-1B, without its scaling of RoPE
    "llama-1b": Shape("llama", 2048, 16, 32, 8, 64, 8192, 128_256, 131_072, 5e5, 1e-5),
    # no model's: for trying the script and for tests
    "tiny": Shape("qwen3", 256, 2, 4, 2, 64, 512, 4_096, 4_096, 1e6, 1e-6),
}
TYPES = (
    "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_M",
    "Q2_K",
)  # fmt: skip
LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR in ggml.h

EXAMPLES = """\
shapes:
{shapes}

examples:
  %(prog)s qwen3-0.6b-q4_k_m.gguf
  %(prog)s --vocab-from ggml-vocab-qwen2.gguf qwen3-0.6b-q4_k_m.gguf
  %(prog)s --shape llama-1b --type Q8_0 llama-1b-q8_0.gguf
  %(prog)s --shape tiny --type Q4_0 /tmp/tiny.gguf

The weights are written as 16-bit floats beside OUTPUT first, which takes four times the final
size for a while, and deleted when llama.cpp has quantized them.
"""


def main() -> None:
    """Reads the command line and makes the model; exits with 2 and one line if it cannot."""
    options = _parser().parse_args()
    output: Path = options.output
    if output.exists() and not options.force:
        _refuse(f"{output} exists already; pass --force to replace it")
    if not output.parent.is_dir():
        _refuse(f"there is no directory {output.parent}")
    shape = SHAPES[options.shape]
    try:
        if options.vocab_from:
            vocabulary = copy_vocabulary(options.vocab_from)
        else:
            vocabulary = synthetic_vocabulary(shape.vocabulary)
        # In a directory of its own, so that nothing is left behind however this ends.
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as work:
            weights, finished = Path(work) / "f16.gguf", Path(work) / "quantized.gguf"
            write_model(weights, options.shape, vocabulary, options.seed)
            if options.type == "F16":
                finished = weights
            else:
                quantize(weights, finished, options.type)
            os.replace(finished, output)
    except (OSError, ValueError, RuntimeError) as error:
        _refuse(str(error))
    size = output.stat().st_size / 2**20
    print(f"{output}: {options.shape}, {options.type}, {len(vocabulary)} tokens, {size:.0f} MiB")


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    rows = (
        f"  {name:12} {s.architecture}: width {s.width}, {s.layers} layers, {s.heads} heads "
        f"({s.kv_heads} KV), {s.vocabulary} tokens"
        for name, s in SHAPES.items()
    )
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(shapes="\n".join(rows)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the GGUF file to make")
    parser.add_argument(
        "--shape", choices=SHAPES, default="qwen3-0.6b", help="default: %(default)s"
    )
    parser.add_argument(
        "--vocab-from",
        type=Path,
        metavar="FILE.gguf",
        help="take the tokenizer of this model (the weights may be missing) instead of making up "
        "one of the shape's size",
    )
    parser.add_argument(
        "--type",
        type=str.upper,
        choices=TYPES,
        default="Q4_K_M",
        help="how llama.cpp stores the weights, one of %(choices)s; default: %(default)s",
        metavar="TYPE",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the weights; default: %(default)s")
    parser.add_argument("--force", action="store_true", help="replace OUTPUT if it exists")
    return parser


# Vocabulary


class Vocabulary:
    """A tokenizer as GGUF keeps it: (key, value, type, type of the elements) of each entry."""

    def __init__(
        self, entries: list[tuple[str, Any, gguf.GGUFValueType, gguf.GGUFValueType | None]]
    ) -> None:
        self.entries = entries
        self._size = next(len(e[1]) for e in entries if e[0] == gguf.Keys.Tokenizer.LIST)

    def __len__(self) -> int:
        return self._size


def copy_vocabulary(path: Path) -> Vocabulary:
    """Everything about the tokenizer that the model at `path` says.

    Raises OSError or ValueError if it is no GGUF or has no list of tokens.
    """
    entries = []
    for field in gguf.GGUFReader(path).fields.values():
        if field.name.startswith("tokenizer."):
            element_type = field.types[1] if len(field.types) > 1 else None
            entries.append((field.name, field.contents(), field.types[0], element_type))
    if not any(name == gguf.Keys.Tokenizer.LIST for name, *_ in entries):
        raise ValueError(f"{path} has no list of tokens")
    return Vocabulary(entries)


def byte_spelling() -> list[str]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onward.

    Source: bytes_to_unicode in openai/gpt-2, src/encoder.py.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spelling = []
    spare = 0x100
    for byte in range(256):
        if byte in printable:
            spelling.append(chr(byte))
        else:
            spelling.append(chr(spare))
            spare += 1
    return spelling


def synthetic_vocabulary(size: int) -> Vocabulary:
    """A byte-level BPE vocabulary of `size` tokens: the bytes, then ever longer strings of
    letters, each with the merge that makes it. Any text can be written in it.
    """
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = byte_spelling()
    merges = []
    space = tokens[ord(" ")]
    letters = string.ascii_lowercase
    # Longest last: a merge may only use what is there already.
    longer = (
        "".join(word)
        for length in itertools.count(1)
        for word in itertools.product(space + letters, *[letters] * length)
    )
    for token in itertools.islice(longer, size - len(tokens) - len(control)):
        tokens.append(token)
        merges.append(f"{token[:-1]} {token[-1]}")
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(control)
    tokens += control

    names, value = gguf.Keys.Tokenizer, gguf.GGUFValueType
    return Vocabulary(
        [
            (names.MODEL, "gpt2", value.STRING, None),  # llama.cpp's name for byte-level BPE
            (names.PRE, "qwen2", value.STRING, None),
            (names.LIST, tokens, value.ARRAY, value.STRING),
            (names.TOKEN_TYPE, [int(kind) for kind in kinds], value.ARRAY, value.INT32),
            (names.MERGES, merges, value.ARRAY, value.STRING),
            (names.BOS_ID, size - 3, value.UINT32, None),
            (names.EOS_ID, size - 1, value.UINT32, None),
            (names.ADD_BOS, False, value.BOOL, None),
            (names.CHAT_TEMPLATE, CHAT_TEMPLATE, value.STRING, None),
        ]
    )


# Weights


@dataclass(frozen=True, slots=True)
class Tensor:
    """A matrix of normally distributed numbers, or for a vector, all the same."""

    name: str
    size: tuple[int, ...]
    scale: float

    @property
    def dtype(self) -> npt.DTypeLike:
        return np.float32 if len(self.size) == 1 else np.float16

    @property
    def bytes(self) -> int:
        return int(np.prod(self.size)) * np.dtype(self.dtype).itemsize

    def make(self, random: np.random.Generator) -> npt.NDArray[Any]:
        """The numbers; no more memory than they take."""
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

    The scales keep numbers in range through all layers and make what the model says varied: the
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
        yield matrix(block + "attn_q.weight", queries, width)
        yield matrix(block + "attn_k.weight", keys, width)
        yield matrix(block + "attn_v.weight", keys, width)
        yield matrix(block + "attn_output.weight", width, queries)
        if shape.normalizes_heads:
            yield vector(block + "attn_q_norm.weight", shape.head_size, 2.0)
            yield vector(block + "attn_k_norm.weight", shape.head_size, 2.0)
        yield vector(block + "ffn_norm.weight", width)
        yield matrix(block + "ffn_gate.weight", shape.feed_forward, width)
        yield matrix(block + "ffn_up.weight", shape.feed_forward, width)
        yield matrix(block + "ffn_down.weight", width, shape.feed_forward, 2.0)
    yield vector("output_norm.weight", width)


def write_model(path: Path, name: str, vocabulary: Vocabulary, seed: int) -> None:
    """Writes the model in 16-bit floats, one tensor at a time."""
    shape = SHAPES[name]
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(f"{name} with random weights")
    writer.add_description("Made to measure speed with; it says nothing.")
    writer.add_license("mit")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(len(vocabulary))
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_epsilon)
    for key, value, kind, element_kind in vocabulary.entries:
        writer.add_key_value(key, value, kind, element_kind)

    plan = list(tensors(shape, len(vocabulary)))
    for tensor in plan:
        writer.add_tensor_info(tensor.name, tensor.size, np.dtype(tensor.dtype), tensor.bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    total = sum(tensor.bytes for tensor in plan)
    with tqdm(total=total, desc="weights ", unit="B", unit_scale=True, disable=None) as bar:
        for tensor in plan:
            writer.write_tensor_data(tensor.make(random))
            bar.update(tensor.bytes)
    writer.close()


def quantize(source: Path, target: Path, name: str) -> None:
    """Lets llama.cpp store the weights of `source` as its type `name`.

    Raises RuntimeError with llama.cpp's own words if it does not.
    """
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    parameters.nthread = os.cpu_count() or 1
    problems = []
    with tqdm(desc="quantize", unit="tensor", disable=None) as bar:

        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
        def follow(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
            line = text.decode(errors="replace")
            if level == LOG_ERROR:
                problems.append(line.strip())
            elif step := re.search(r"\[ *(\d+)/ *(\d+)\]", line):  # "[  12/ 310] blk.1.…"
                bar.total = int(step[2])
                bar.update(int(step[1]) - bar.n)

        llama_cpp.llama_log_set(follow, ctypes.c_void_p(0))
        # Copies all the rest of the file, the tokenizer among it.
        status = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(target), ctypes.byref(parameters)
        )
        # `follow` is about to be collected; llama.cpp must not call it after that.
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))
    if status != 0:
        raise RuntimeError(f"llama.cpp could not quantize: {'; '.join(problems) or status}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
