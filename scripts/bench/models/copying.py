"""Weights by which a model repeats its prompt: an induction circuit in its first two layers.

Random weights never repeat a text, so speculative decoding could gain nothing. A model that copies
text (to quote, to edit, to summarize) does it by induction heads: an early layer gives each token
the ones before it; a later layer looks for a place with the same ones before it and takes the token
there. This module writes that circuit into a model; all other weights stay random, and the speed is
the same.

Source: Olsson et al., "In-context Learning and Induction Heads", 2022.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .weights import Shape, Tensor

Matrix = npt.NDArray[Any]

BEFORE = 3  # tokens that must be the same before the one that is taken
NOISE = 0.02  # share of its usual size that the random rest adds to the residual stream
_SHARP = 6.0  # norm of queries and keys where position decides: attention is practically certain
_FIRM = 4.0  # where tokens decide
_LOUD = 4.0  # weight of the next token relative to the current one

# The residual stream holds [own code | the code 1, 2, 3 tokens before | 1 | nothing ...].


def copying(plan: list[Tensor], shape: Shape) -> list[Tensor]:
    """The tensors of a plan with the circuit in them.

    Raises ValueError for a shape of another architecture: the circuit relies on normalized heads.
    """
    if shape.architecture != "qwen3":
        raise ValueError("only shapes of the architecture qwen3 can be made to copy")
    size = shape.head_size // 2  # of a token's code
    own = {
        "token_embd.weight": _codes(plan[0].size, size),
        "blk.0.attn_q_norm.weight": np.full(shape.head_size, _SHARP, np.float32),
        "blk.0.attn_k_norm.weight": np.full(shape.head_size, _SHARP, np.float32),
        "blk.1.attn_q_norm.weight": np.full(shape.head_size, _FIRM, np.float32),
        "blk.1.attn_k_norm.weight": np.full(shape.head_size, _FIRM, np.float32),
        **_look_back(shape, size),
        **_take_what_followed(shape, size),
    }
    outputs = ("attn_output.weight", "ffn_down.weight")
    result = []
    for tensor in plan:
        scale = tensor.scale * (NOISE if tensor.name.endswith(outputs) else 1.0)
        result.append(Tensor(tensor.name, tensor.size, scale, own.get(tensor.name)))
    return result


def _codes(size: tuple[int, ...], code: int) -> Matrix:
    """A code of +1 and -1 for each token, and the constant 1."""
    embedding = np.zeros(size, np.float16)
    dice = np.random.default_rng(0)
    embedding[:, :code] = dice.integers(0, 2, (size[0], code), np.int8) * 2 - 1
    embedding[:, code * (BEFORE + 1)] = 1
    return embedding


def _empty(shape: Shape, layer: int) -> dict[str, Matrix]:
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    sizes = {
        "q": (queries, shape.width), "k": (keys, shape.width), "v": (keys, shape.width),
        "output": (shape.width, queries),
    }  # fmt: skip
    return {
        f"blk.{layer}.attn_{name}.weight": np.zeros(size, np.float16)
        for name, size in sizes.items()
    }


def _look_back(shape: Shape, code: int) -> dict[str, Matrix]:
    """Layer 0: query head n attends to the token n + 1 before, and writes its code down.

    Queries and keys are constant. What differs is the angle that RoPE turns them by, a position's
    multiple of each pair's frequency: a query turned back by n + 1 steps meets that key exactly.
    """
    matrices = _empty(shape, 0)
    queries, keys, values, output = matrices.values()
    half, constant = shape.head_size // 2, code * (BEFORE + 1)
    pairs = np.arange(half // 4)  # of the highest frequencies, which tell neighbours apart
    frequency = shape.rope_base ** (-pairs / half)
    for head in range(shape.kv_heads):
        rows = head * shape.head_size
        keys[rows + pairs, constant] = 1
        values[rows + np.arange(code), np.arange(code)] = 1
    norm = (shape.width / (code + 1)) ** 0.5  # what the norm before attention multiplies by
    for head in range(BEFORE):
        rows, steps = head * shape.head_size, head + 1
        queries[rows + pairs, constant] = np.cos(steps * frequency)
        queries[rows + half + pairs, constant] = -np.sin(steps * frequency)
        output[code * steps + np.arange(code), rows + np.arange(code)] = 1 / norm
    return matrices


def _take_what_followed(shape: Shape, code: int) -> dict[str, Matrix]:
    """Layer 1: attends to the places before which the last tokens stand, takes the tokens there.

    A query holds the codes of the current token and of those before it, a key the codes of those
    before its own, as far as the lowest frequencies have room: RoPE hardly turns these within a
    few thousand tokens.
    """
    matrices = _empty(shape, 1)
    queries, keys, values, output = matrices.values()
    half = shape.head_size // 2
    slow = np.arange(half * 5 // 8, half)
    places = np.concatenate([slow, half + slow])
    share = len(places) // BEFORE
    for head in range(shape.kv_heads):
        rows = head * shape.head_size
        values[rows + np.arange(code), np.arange(code)] = 1
        for back in range(BEFORE):
            at = rows + places[back * share : (back + 1) * share]
            keys[at, code * (back + 1) + np.arange(share)] = 1
    for back in range(BEFORE):
        at = places[back * share : (back + 1) * share]
        queries[at, code * back + np.arange(share)] = 1
    norm = (shape.width / (code * (BEFORE + 1) + 1)) ** 0.5
    output[np.arange(code), np.arange(code)] = _LOUD / norm
    return matrices
