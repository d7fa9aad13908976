"""A layout changes only the rounding of logits, within a bound.

Without flash attention, in a split cache, the number of threads and the batch change no bit.
Otherwise the order of additions changes: flash attention works by blocks, for a single token by one
part for each thread, and rounds an F32 cache to F16 first; a unified cache puts sequences into
other cells. Where activations are rounded to 8 bits (Q8_0 weights), a value near a rounding
boundary changes more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cllm.engine import llama
from cllm.engine.layout.layout import Layout
from cllm.models import demo_path

LENGTHS = (200, 187, 90, 40)
STEPS = 6

# Of the difference between two layouts' logits, as a share of the logits' own size (both as
# Euclidean norms over the vocabulary, of the size the mean taken off). Measured: 0.05 for the
# built-in model and 0.07 for the random one; 1.2e-6 and 0.005 in F32. Logits of another text: 1.1.
BOUND_Q8_0 = 0.15
BOUND_F32 = 1e-5
BOUND_F32_FLASH = 0.01

PLAIN = Layout(threads=1, threads_batch=1, kv_unified=False, flash_attn="off", ubatch_size=512)

LAYOUTS = [
    Layout(threads, threads, unified, flash, ubatch)
    for unified, flash, (threads, ubatch) in itertools.product(
        (False, True), ("off", "on"), ((1, 512), (2, 16))
    )
]

Logits = Callable[[Layout], llama.FloatArray]


def computed(model: llama.Model, layout: Layout, cache_type: str) -> llama.FloatArray:
    """Logits after four prompts, then of six steps of all four sequences: [28, vocabulary]."""
    context = llama.Context(
        model,
        n_ctx=4 * 256, n_seq=4, n_batch=512, n_ubatch=layout.ubatch_size,
        n_threads=layout.threads, n_threads_batch=layout.threads_batch,
        flash_attn=layout.flash_attn, type_k=cache_type, type_v=cache_type,
        kv_unified=layout.kv_unified,
    )  # fmt: skip
    batch, rows = llama.Batch(512), []
    random = np.random.default_rng(1)
    tokens = random.integers(0, model.vocab.n_tokens, (4, 256))
    for seq, count in enumerate(LENGTHS):
        batch.token[:count], batch.pos[:count] = tokens[seq, :count], range(count)
        batch.seq[:count], batch.output[:count] = seq, 0
        batch.output[count - 1] = 1
        assert context.decode(batch, count) == 0
        rows.append(context.logits(1).copy())
    for step in range(STEPS):
        for seq, count in enumerate(LENGTHS):
            batch.token[seq], batch.pos[seq] = tokens[seq, count + step], count + step
            batch.seq[seq], batch.output[seq] = seq, 1
        assert context.decode(batch, 4) == 0
        rows.append(context.logits(4).copy())
    context.close()
    return np.concatenate(rows)


def difference(logits: llama.FloatArray, plain: llama.FloatArray) -> float:
    """The largest over the rows, as a share."""
    size = np.linalg.norm(plain - plain.mean(axis=1, keepdims=True), axis=1)
    return float((np.linalg.norm(logits - plain, axis=1) / size).max())


@pytest.fixture(scope="module", params=["built-in", "random"])
def q8_0(request: pytest.FixtureRequest, model_path: Path) -> Iterator[Logits]:
    model = llama.Model(str(demo_path() if request.param == "built-in" else model_path))
    yield cache(lambda layout: computed(model, layout, "f16"))
    model.close()


@pytest.fixture(scope="module")
def f32(f32_path: Path) -> Iterator[Logits]:
    model = llama.Model(str(f32_path))
    yield cache(lambda layout: computed(model, layout, "f32"))
    model.close()


def test_logits_of_rounded_activations_agree_within_their_bound(q8_0: Logits) -> None:
    plain = q8_0(PLAIN)
    assert max(difference(q8_0(layout), plain) for layout in LAYOUTS) < BOUND_Q8_0


@pytest.mark.parametrize(("flash_attn", "bound"), [("off", BOUND_F32), ("on", BOUND_F32_FLASH)])
def test_logits_in_f32_agree_within_less(f32: Logits, flash_attn: str, bound: float) -> None:
    plain = f32(PLAIN)
    those = [layout for layout in LAYOUTS if layout.flash_attn == flash_attn]
    assert max(difference(f32(layout), plain) for layout in those) < bound


def test_threads_and_batch_change_no_bit_in_a_split_cache_without_flash_attention(
    q8_0: Logits,
) -> None:
    plain = q8_0(PLAIN)
    exact = [it for it in LAYOUTS if not it.kv_unified and it.flash_attn == "off"]
    assert len(exact) == 2
    assert all(np.array_equal(q8_0(layout), plain) for layout in exact)


def test_the_bound_tells_rounding_from_another_text(q8_0: Logits) -> None:
    plain = q8_0(PLAIN)
    size = np.linalg.norm(plain - plain.mean(axis=1, keepdims=True), axis=1)
    assert (np.linalg.norm(np.roll(plain, 1, axis=0) - plain, axis=1) / size).min() > BOUND_Q8_0
