"""Make a GGUF model to measure speed with: the shape of a real model, and random weights.

Speed depends on how many weights there are and how they are stored, not on their values. Use such
a model where a real one cannot or must not be downloaded. Or make a given model deeper.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import gguf
import llama_cpp
import numpy as np
from tqdm import tqdm

from ..common import positive
from .copying import copying
from .deeper import write_deeper
from .vocabulary import Vocabulary, copy_vocabulary, synthetic_vocabulary
from .weights import KERNEL, SHAPES, tensors

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
  %(prog)s --copying qwen3-0.6b-copying-q4_k_m.gguf
  %(prog)s --shape llama-1b --type Q8_0 llama-1b-q8_0.gguf
  %(prog)s --shape tiny --type Q4_0 /tmp/tiny.gguf
  %(prog)s --deepen SmolLM2-135M-Instruct.Q4_1.gguf --layers 90 deep.gguf

The weights are first written next to OUTPUT as 16-bit floats, which takes four times the final
size. They are deleted when llama.cpp has quantized them.
"""


def main() -> None:
    """Reads the command line and makes the model; exits with 2 and one line if it cannot."""
    options = _parser().parse_args()
    output: Path = options.output
    if output.exists() and not options.force:
        _refuse(f"{output} exists already; pass --force to replace it")
    if not output.parent.is_dir():
        _refuse(f"there is no directory {output.parent}")
    try:
        if options.deepen is not None:
            _deepen(options.deepen, output, options.layers)
            return
        shape = SHAPES[options.shape]
        if options.vocab_from:
            vocabulary = copy_vocabulary(options.vocab_from)
        else:
            vocabulary = synthetic_vocabulary(shape.vocabulary)
        # In a directory of its own, which is removed however this ends.
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as work:
            weights, finished = Path(work) / "f16.gguf", Path(work) / "quantized.gguf"
            write_model(weights, options.shape, vocabulary, options.seed, options.copying)
            if options.type == "F16":
                finished = weights
            else:
                quantize(weights, finished, options.type)
            os.replace(finished, output)
    except (OSError, ValueError, RuntimeError) as error:
        _refuse(str(error))
    size = output.stat().st_size / 2**20
    print(f"{output}: {options.shape}, {options.type}, {len(vocabulary)} tokens, {size:.0f} MiB")


def _deepen(source: Path, output: Path, layers: int) -> None:
    if not source.is_file():
        _refuse(f"--deepen: there is no file {source}")
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as work:
        finished = Path(work) / "deeper.gguf"
        write_deeper(source, finished, layers)
        os.replace(finished, output)
    print(f"{output}: {source.name} and {layers} layers, {output.stat().st_size / 2**20:.0f} MiB")


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
        prog=sys.argv[0],
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
    parser.add_argument(
        "--copying",
        action="store_true",
        help="let the model repeat texts of its prompt, as models do that quote or edit: weights "
        "of its first two layers are an induction circuit instead of random",
    )
    parser.add_argument(
        "--deepen",
        type=Path,
        metavar="FILE.gguf",
        help="make no random weights: take this model and add --layers that change nothing but "
        "the time; the model itself can then draft for the deeper one",
    )
    parser.add_argument(
        "--layers", type=positive, default=90, help="that --deepen adds; default: %(default)s"
    )
    parser.add_argument("--force", action="store_true", help="replace OUTPUT if it exists")
    return parser


def write_model(path: Path, name: str, vocabulary: Vocabulary, seed: int, copies: bool) -> None:
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
    if shape.attention is None:
        writer.add_head_count_kv(shape.kv_heads)
    else:
        writer.add_head_count_kv(
            [shape.kv_heads * shape.attends(layer) for layer in range(shape.layers)]
        )
        writer.add_shortconv_l_cache(KERNEL)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_epsilon)
    for key, value, kind, element_kind in vocabulary.entries:
        writer.add_key_value(key, value, kind, element_kind)

    plan = list(tensors(shape, len(vocabulary)))
    if copies:
        plan = copying(plan, shape)
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

    Raises RuntimeError with llama.cpp's own message if it fails.
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
