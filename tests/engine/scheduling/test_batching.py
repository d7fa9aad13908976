"""Other sequences in the batch do not change a request's tokens.

llama.cpp limits this: its CPU kernels do not always add in the same order. It depends on
- attention: whether a token is evaluated alone or in a chunk of a prompt;
- flash attention: also the number of tokens in the chunk;
- a unified cache: the cells of a sequence, beyond some 200;
- Q4_K products: the number of rows, from four on.
The differences are rounding (up to 0.4 in a logit if activations are rounded to 8 bits), so that
two logits that nearly tie may change places. Without flash attention, in a split cache and with
Q8_0 weights a token's logits are the same bit for bit in every batch: that is tested here. Two more
models test the rest: one without attention, whose logits are always exact, shows that no row, token
or text goes to the wrong request; one with F32 weights shows that sequences attend to their own
tokens. tests/engine/test_differential.py does both with random requests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.engine_helpers import EXACT, PRECISE, Loader, Watched, finished, greedy

PROMPTS = [f"Story {i}: " + "the river runs and the letter says " * (i % 5) for i in range(12)]


def alone(load: Loader, *path: Path) -> list[str]:
    engine = load(*path, parallel=1, ctx_size=256, **EXACT)
    return [finished(engine.submit(prompt, greedy(40))).text for prompt in PROMPTS]


@pytest.mark.parametrize(("parallel", "ubatch"), [(4, 512), (8, 16), (3, 100)])
def test_greedy_tokens_do_not_depend_on_the_batch(load: Loader, parallel: int, ubatch: int) -> None:
    expected = alone(load)
    engine = load(parallel=parallel, ctx_size=256, ubatch_size=ubatch, **EXACT)
    together = [engine.submit(prompt, greedy(40)) for prompt in PROMPTS]
    assert [finished(generation).text for generation in together] == expected


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize(("parallel", "ubatch"), [(4, 512), (8, 16), (3, 1)])
def test_no_layout_confuses_requests(
    load: Loader, memoryless_path: Path, unified: bool, parallel: int, ubatch: int
) -> None:
    expected = alone(load, memoryless_path)
    engine = load(
        memoryless_path,
        parallel=parallel,
        ctx_size=256,
        kv_unified=unified,
        ubatch_size=ubatch,
    )
    together = [engine.submit(prompt, greedy(40)) for prompt in PROMPTS]
    assert [finished(generation).text for generation in together] == expected


@pytest.mark.parametrize("unified", [False, True])
def test_a_sequence_attends_to_its_own_tokens_only(
    load: Loader, f32_path: Path, unified: bool
) -> None:
    one = load(f32_path, parallel=1, ctx_size=256, **PRECISE)
    expected = [finished(one.submit(prompt, greedy(8))).text for prompt in PROMPTS]
    engine = load(f32_path, parallel=4, ctx_size=256, kv_unified=unified, **PRECISE)
    together = [engine.submit(prompt, greedy(8)) for prompt in PROMPTS]
    assert [finished(generation).text for generation in together] == expected


def test_sequences_are_decoded_together(load: Loader) -> None:
    engine = load(parallel=8, ctx_size=128)
    for generation in [engine.submit(f"p{i}", greedy(50)) for i in range(8)]:
        finished(generation)
    stats = engine.stats()
    assert stats.completion_tokens == 400
    assert stats.steps < 200, "one at a time it would be 400"


@pytest.mark.parametrize("unified", [False, True])
def test_streams_go_on_while_a_long_prompt_is_read(load: Loader, unified: bool) -> None:
    engine = load(parallel=2, ctx_size=2048, max_itl_ms=1, kv_unified=unified, context_shift=True)
    running = Watched(engine, "Hello", greedy(None))
    running.wait_for_tokens(5)
    before = running.generation.usage.completion_tokens
    long = Watched(engine, [7, 8] * 480, greedy(1))
    long.wait_until_done()
    gained = running.generation.usage.completion_tokens - before
    assert gained >= 3, "a token of the stream for every part of the prompt"
    running.generation.cancel()


def test_a_short_prompt_does_not_wait_for_a_long_one(load: Loader) -> None:
    engine = load(
        parallel=3, ctx_size=2048, batch_size=64, ubatch_size=32, max_itl_ms=1, context_shift=True
    )
    running = Watched(engine, "Hello", greedy(None))
    running.wait_for_tokens(2)
    long = engine.submit([7, 8] * 900, greedy(1))
    short = Watched(engine, [9] * 40, greedy(1))
    short.wait_until_done()
    assert not long.done
    finished(long)
    running.generation.cancel()
