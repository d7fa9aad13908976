"""The preflight's child process: runs every fast CPU kernel, and compares what it computes.

First a tiny model with a matrix of every quantized type, which a miscompiled kernel does not
survive; then the built-in model with and without the kernels. It uses llama_cpp without the rest
of the engine, and is started by preflight.py.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import llama_cpp as llama
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from cllm.engine.machine.preflight import WRONG_NUMBERS
from cllm.engine.machine.processors import hardware_threads
from cllm.models import demo_path


def _types() -> Iterator[int]:
    """Every type with kernels in an extra buffer type, repeated without end.

    Sources: ggml_repack_get_optimal_repack_type (repack.cpp) and qtype_has_amx_kernels
    (amx/common.h) in ggml/src/ggml-cpu.
    """
    amx = (Type.Q4_0, Type.Q4_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_XS)
    only_repacked = (Type.Q2_K, Type.IQ4_NL, Type.MXFP4)
    while True:
        yield from amx + only_repacked


_WIDTH = 256  # one block of a K-quant, and a multiple of every kernel's tile
_LAYERS = 2  # of seven matrices each: enough for every type
_TOKENS = 32


def _write_model(path: Path) -> None:
    """Write a model with all weights zero: it runs the same kernels, and needs no quantizing."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(4)
    writer.add_rope_dimension_count(_WIDTH // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_TOKENS)
    writer.add_tokenizer_model("no_vocab")

    types = _types()

    def matrix(name: str, rows: int = _WIDTH) -> None:
        kind = gguf.GGMLQuantizationType(next(types))
        block, size = gguf.GGML_QUANT_SIZES[kind]
        zeros = np.zeros((rows, _WIDTH // block * size), dtype=np.uint8)
        writer.add_tensor(name, zeros, raw_dtype=kind)

    ones = np.ones(_WIDTH, dtype=np.float32)
    for layer in range(_LAYERS):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", ones)
        writer.add_tensor(block + "ffn_norm.weight", ones)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}{name}.weight")
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            matrix(f"{block}{name}.weight")
    writer.add_tensor("token_embd.weight", np.ones((_TOKENS, _WIDTH), dtype=np.float32))
    writer.add_tensor("output_norm.weight", ones)
    matrix("output.weight", _TOKENS)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path: Path, extra_bufts: bool) -> npt.NDArray[np.float32]:
    """Decode a prompt, eight sequences together, and one token: logits [57, n_vocab]."""
    model_params = llama.llama_model_default_params()
    model_params.use_extra_bufts = extra_bufts
    model_params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(os.fsencode(path), model_params)
    if not model:
        raise RuntimeError(f"llama.cpp refused {path.name}")
    context_params = llama.llama_context_default_params()
    context_params.n_ctx = 512
    context_params.n_seq_max = 8
    context_params.n_threads = context_params.n_threads_batch = min(4, hardware_threads())
    context = llama.llama_init_from_model(model, context_params)
    if not context:
        raise RuntimeError(f"llama.cpp refused a context for {path.name}")
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(48, 0, 1)
    prompt = [(0, position) for position in range(48)]
    together = [(sequence, 48 if sequence == 0 else 0) for sequence in range(8)]
    alone = [(0, 49)]
    rows = []
    for step in (prompt, together, alone):
        batch.n_tokens = len(step)
        for row, (sequence, position) in enumerate(step):
            batch.token[row] = position % _TOKENS
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = True
        status = llama.llama_decode(context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status} in the preflight")
        # Waits for a device that computes asynchronously.
        pointer = llama.llama_get_logits(context)
        rows.append(np.ctypeslib.as_array(pointer, (len(step), vocabulary)).copy())
    return np.concatenate(rows)


def agree(fast: npt.NDArray[np.float32], plain: npt.NDArray[np.float32]) -> bool:
    """Whether two computations of the same logits differ by rounding only (8-bit activations)."""
    difference, size = np.linalg.norm(fast - plain), np.linalg.norm(plain)
    return bool(difference < 0.1 * size)  # False for NaN


def _child(directory: str) -> int:
    @llama.llama_log_callback  # type: ignore[untyped-decorator]
    def ignore(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        pass

    llama.llama_log_set(ignore, ctypes.c_void_p(0))
    llama.llama_backend_init()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected: no core file
    path = Path(directory) / "preflight.gguf"
    _write_model(path)
    logits(path, extra_bufts=True)
    fast, plain = (logits(demo_path(), extra) for extra in (True, False))
    return 0 if agree(fast, plain) else WRONG_NUMBERS


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1]))
