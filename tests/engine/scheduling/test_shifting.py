"""Context shift: full texts go on as llama.cpp's own shift lets them, and disturb no others."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from cllm.engine import Constraint, Engine, Generation, ModelLoadError, SamplingParams
from cllm.engine.config import EngineConfig
from cllm.engine.layout.layout import Layout
from cllm.engine.llama import DONE, Batch
from cllm.engine.loading.opening import open_context, open_model
from cllm.engine.sampling.sampler import TokenSampler
from tests.engine.engine_helpers import PRECISE, Loader, Watched, finished, greedy
from tests.engine.engine_models import write_hybrid, write_recurrent

CTX = 64
LONG = "The river runs through the old town, and the letter says so. "
Direct = Callable[..., list[int]]


@pytest.fixture(params=["split", "unified"])
def shifting(request: pytest.FixtureRequest, load: Loader, f32_path: Path) -> Loader:
    """Loads an engine with context shift, in either layout of the cache."""

    def loader(**config: object) -> Engine:
        given = {
            "parallel": 3,
            "ctx_size": CTX,
            "context_shift": True,
            "threads": 1,
            **PRECISE,
            **config,
        }
        return load(f32_path, kv_unified=request.param == "unified", **given)

    return loader


@pytest.fixture(scope="module")
def direct(f32_path: Path) -> Iterator[Direct]:
    """Generates greedily with llama.cpp alone, shifting as llama-server's update_slots does."""
    config = EngineConfig(parallel=1, ctx_size=CTX, threads=1, **PRECISE)
    model = open_model(f32_path, config, False, lambda _: None)
    context = open_context(model, 256, config, Layout.of(config), 1)
    batch, vocab = Batch(256), model.vocab

    def tokens(prompt: str, count: int, n_keep: int = 0, n_discard: int = 0) -> list[int]:
        context.clear()
        pending, past, out = vocab.tokenize(prompt, True, False), 0, list[int]()
        n_prompt = len(pending)
        while True:
            n = len(pending)
            batch.token[:n], batch.pos[:n] = pending, range(past, past + n)
            batch.seq[:n], batch.output[:n] = 0, 0
            batch.output[n - 1] = 1
            assert context.decode(batch, n) == DONE
            past += n
            row = context.logits(1)[0]
            row[vocab.eog_tokens()] = -np.inf
            out.append(int(row.argmax()))
            if len(out) == count:
                return out
            if past + 1 >= CTX:
                keep = min((n_prompt if n_keep < 0 else n_keep) + vocab.adds_bos, CTX - 4)
                left = past - keep
                discard = min(n_discard or left // 2, left - 1)
                context.shift(0, keep, discard)
                past -= discard
            pending = [out[-1]]

    yield tokens
    context.close()
    model.close()


def tokens_of(generation: Generation) -> list[int]:
    """What a request with record_tokens generated."""
    finished(generation)
    return [record.token for record in generation.take_tokens()]


def test_a_full_text_goes_on_as_llama_cpp_alone_lets_it(shifting: Loader, direct: Direct) -> None:
    engine = shifting()
    shifts = [(0, 0), (-1, 0), (10, 7), (10_000, 0), (5, 500)]
    asked = [(prompt, *shift) for shift in shifts for prompt in (LONG, "Story 1")]
    together = [
        engine.submit(prompt, greedy(120, n_keep=n_keep, n_discard=n_discard, record_tokens=True))
        for prompt, n_keep, n_discard in asked
    ]
    for (prompt, n_keep, n_discard), generation in zip(asked, together, strict=True):
        assert tokens_of(generation) == direct(prompt, 120, n_keep, n_discard), (n_keep, n_discard)
        assert generation.finish_reason == "length" and generation.discarded > 0
    assert engine.stats().context_shifts >= 10 and engine.stats().slots_busy == 0


def test_without_it_a_full_text_ends(load: Loader, f32_path: Path) -> None:
    generation = load(f32_path, parallel=1, ctx_size=CTX).submit(LONG, greedy(100))
    usage = finished(generation).usage
    assert usage.prompt_tokens + usage.completion_tokens == CTX and not generation.discarded


def test_an_endless_text_shifts_until_it_is_cancelled(shifting: Loader) -> None:
    engine = shifting()
    endless = Watched(engine, LONG, greedy(None))
    endless.wait_for_tokens(5 * CTX)
    endless.generation.cancel()
    endless.wait_until_done()
    assert endless.generation.finish_reason == "cancelled"


def test_only_what_did_not_move_is_reused(shifting: Loader, load: Loader, f32_path: Path) -> None:
    engine = shifting(parallel=1)
    generation = engine.submit(LONG, greedy(100, n_keep=20))
    text = finished(generation).text
    assert engine.slots()[0].tokens == 21, "the BOS and 20 tokens"
    again = finished(engine.submit(LONG, greedy(100, n_keep=20)))
    assert again.usage.cached_tokens == 21 and again.text == text
    # What the slot held at the end, as a prompt: it must be computed anew.
    prompt = engine.tokenize(LONG)[:21] + engine.tokenize(text, add_special=False)[-30:]
    fresh = load(f32_path, parallel=1, ctx_size=CTX, **PRECISE)
    expected = finished(fresh.submit(prompt, greedy(8)))
    answer = finished(engine.submit(prompt, greedy(8)))
    assert (answer.usage.cached_tokens, answer.text) == (21, expected.text)


def test_sequences_that_share_a_prefix_do_not_disturb_each_other(
    shifting: Loader, direct: Direct
) -> None:
    engine = shifting(ctx_size=CTX)
    counts, (first, *others) = (
        (60, 130, 90),
        [greedy(count, record_tokens=True) for count in (60, 130, 90)],
    )
    running = Watched(engine, LONG, first)
    running.wait_for_tokens(2)  # its cells are copied, or shared, from here on
    together = [running.generation, *(engine.submit(LONG, params) for params in others)]
    expected = direct(LONG, max(counts))
    for count, generation in zip(counts, together, strict=True):
        assert tokens_of(generation) == expected[:count]
    assert all(generation.usage.cached_tokens for generation in together[1:])
    assert engine.stats().context_shifts >= 3


@pytest.mark.usefixtures("steady_costs")
def test_drafts_go_on_after_a_shift(shifting: Loader, direct: Direct) -> None:
    engine = shifting(parallel=1)
    bias = {7: 20.0, 8: 20.0, 9: 20.0}  # a text that repeats itself
    plain = shifting(parallel=1, draft_max=0)
    params = greedy(200, logit_bias=bias)
    texts = [finished(each.submit(LONG, params)).text for each in (engine, plain)]
    assert texts[0] == texts[1]
    assert engine.stats().guessed_right > 50 and engine.stats().context_shifts > 3


def test_forced_tokens_and_shifts(shifting: Loader) -> None:
    words = Constraint("regex", '("the river runs through the old town",){20}')
    generation = shifting().submit("List", greedy(1000, constraint=words))
    done = finished(generation)
    assert done.text == '"the river runs through the old town",' * 20
    assert done.finish_reason == "stop" and generation.discarded > 0


def test_penalties_count_what_was_discarded(load: Loader, f32_path: Path) -> None:
    params = SamplingParams(temperature=0.0, presence_penalty=5.0, penalty_last_n=50)
    vocab = load(f32_path, parallel=1, ctx_size=CTX)._vocab
    before = array("i", range(100, 160))
    sampler = TokenSampler(params, vocab)
    sampler.note_shift(before, 10)
    row = np.zeros(vocab.n_tokens, dtype=np.float32)
    row[105] = 1.0  # the 55th from the end: not among the last 50
    row[[*range(112, 160), 7]] = 2.0
    assert sampler.choose(row, array("i", [*before[:4], *before[54:], 7, 8])) == 105


def test_memories_that_cannot_shift_are_refused(
    load: Loader, model_path: Path, tmp_path: Path
) -> None:
    for write, arch in ((write_recurrent, "mamba"), (write_hybrid, "lfm2")):
        path = tmp_path / f"{arch}.gguf"
        write(model_path, path)
        with pytest.raises(ModelLoadError, match=rf"{arch}.*context_shift"):
            load(path, parallel=1, ctx_size=CTX, context_shift=True)


def test_scaled_positions_are_refused(load: Loader, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "yarn.gguf"
    reader, writer = gguf.GGUFReader(model_path), gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match=r"YaRN.*context_shift"):
        load(path, parallel=1, ctx_size=CTX, context_shift=True)


def test_a_context_without_space_for_a_shift_is_refused(load: Loader) -> None:
    with pytest.raises(ValueError, match=r"ctx_size=32.*context_shift"):
        load(parallel=1, ctx_size=32, context_shift=True)
