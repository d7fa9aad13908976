"""The engine as a program uses it: text in, text out, exact counts, clear refusals, clean ends."""

from __future__ import annotations

import gc
import logging
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cllm.engine import (
    Engine,
    EngineClosed,
    EngineError,
    InvalidRequest,
    PromptTooLong,
    SamplingParams,
)
from cllm.engine.llama import Vocab
from cllm.engine.sampling.sampler import TokenSampler
from tests.engine.engine_helpers import WAIT, Loader, Watched, finished, greedy


def test_generate_returns_text_and_exact_counts(engine: Engine) -> None:
    done = engine.generate("Once upon a time", max_tokens=12, temperature=0.0, ignore_eos=True)
    assert done.text
    assert done.finish_reason == "length"
    assert done.usage.completion_tokens == 12
    assert done.usage.prompt_tokens == len(engine.tokenize("Once upon a time"))
    assert len(done.id) == 32
    assert int(done.id, 16) >= 0


def test_timings_add_up(engine: Engine) -> None:
    timings = engine.generate("Once upon", max_tokens=8, ignore_eos=True).timings
    parts = timings.queued_s + timings.prefill_s + timings.decode_s
    assert parts == pytest.approx(timings.total_s)
    assert timings.queued_s + timings.prefill_s == pytest.approx(timings.ttft_s)
    assert timings.tokens_per_second == pytest.approx(8 / (timings.prefill_s + timings.decode_s))


def test_stream_yields_the_same_text_as_generate(engine: Engine) -> None:
    whole = engine.generate("The river", max_tokens=30, temperature=0.0, ignore_eos=True).text
    parts = list(engine.stream("The river", max_tokens=30, temperature=0.0, ignore_eos=True))
    assert "".join(parts) == whole
    assert len(parts) > 1


def test_a_stream_that_is_closed_cancels(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=2048)
    stream = engine.stream("Hello", ignore_eos=True)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    # With one slot this could not finish if the first were still running to its end.
    assert engine.generate("Next", max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
    assert engine.stats().requests_finished["cancelled"] == 1


def test_tokens_are_a_prompt_like_text(engine: Engine) -> None:
    tokens = engine.tokenize("A letter from home")
    by_tokens = finished(engine.submit(tokens, greedy()))
    by_text = finished(engine.submit("A letter from home", greedy()))
    assert by_tokens.text == by_text.text


def test_take_gives_every_delta_once(engine: Engine) -> None:
    watched = Watched(engine, "Hello", greedy(40))
    taken: list[str] = []
    while not watched.generation.done:
        taken += watched.generation.take()
    taken += watched.generation.take()
    assert all(taken), "no entry is empty"
    assert watched.generation.pending_chars == 0
    assert watched.generation.take() == []
    assert "".join(taken) == finished(engine.submit("Hello", greedy(40))).text


def test_pending_chars_counts_what_was_not_taken(engine: Engine) -> None:
    generation = engine.submit("Hello", greedy(20))
    generation_text = ""
    with pytest.raises(TimeoutError):
        generation.result(0)
    Watched(engine, "Other", greedy(60)).wait_until(lambda: generation.done)
    pending = generation.pending_chars
    generation_text = "".join(generation.take())
    assert pending == len(generation_text) > 0


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_detokenize_undoes_tokenize(engine: Engine, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(InvalidRequest):
            engine.tokenize(text)
        return
    assert engine.detokenize(engine.tokenize(text)) == text
    assert engine.detokenize(engine.tokenize(text, add_special=False)) == text


def test_special_tokens_in_text_are_text_unless_parsed(engine: Engine) -> None:
    eos = engine.detokenize([engine.info().eos_token or 0])
    assert len(engine.tokenize(eos, add_special=False, parse_special=True)) == 1
    spelled = engine.tokenize(eos, add_special=False)
    assert len(spelled) > 1
    assert engine.detokenize(spelled) == eos
    assert engine.detokenize([engine.info().eos_token or 0], special=False) == ""


@pytest.mark.parametrize("tokens", [[-1], [10**9], [True], ["a"], [1.0]])
def test_what_is_not_a_token_is_refused(engine: Engine, tokens: list[int]) -> None:
    with pytest.raises(InvalidRequest):
        engine.detokenize(tokens)
    with pytest.raises(InvalidRequest) as caught:
        engine.submit(tokens)
    assert caught.value.field == "prompt"


def test_tokenizing_from_many_threads_at_once(engine: Engine) -> None:
    texts = [f"number {i} 世界 🙂 " * 50 for i in range(8)]
    failures: list[str] = []

    def work(text: str) -> None:
        for _ in range(20):
            if engine.detokenize(engine.tokenize(text)) != text:
                failures.append(text)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not failures


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(engine: Engine, prompt: str | list[int]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.submit(prompt)
    assert caught.value.field == "prompt"


def test_a_prompt_longer_than_the_context_is_refused_before_it_is_queued(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=64)
    with pytest.raises(PromptTooLong) as caught:
        engine.submit([5] * 64)
    assert caught.value.field == "prompt"
    assert "63" in str(caught.value)
    assert engine.stats().requests_submitted == 0


@pytest.mark.parametrize("unified", [False, True])
def test_the_contexts_end_finishes_with_length(load: Loader, unified: bool) -> None:
    engine = load(parallel=2, ctx_size=64, kv_unified=unified)
    done = finished(engine.submit([5] * 60, greedy(None)))
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 4)
    done = finished(engine.submit([6] * 63, greedy(100)))
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 1)


def test_a_generation_runs_to_the_contexts_end_without_max_tokens(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=300)
    done = finished(engine.submit("Hello", greedy(None)))
    assert done.usage.prompt_tokens + done.usage.completion_tokens == 300


def test_an_end_token_stops_and_is_not_text(engine: Engine) -> None:
    eos = engine.info().eos_token
    assert eos is not None
    params = SamplingParams(temperature=0.0, max_tokens=50, logit_bias={eos: 100.0})
    done = finished(engine.submit("Hello", params))
    assert (done.finish_reason, done.text, done.usage.completion_tokens) == ("stop", "", 1)


def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    full = finished(engine.submit("Hello", greedy(60))).text
    for start, length in [(10, 1), (25, 7), (3, 20), (40, 12)]:
        stop = full[start : start + length]
        watched = Watched(engine, "Hello", greedy(60, stop=("\0never", stop)))
        seen = ""
        while not watched.generation.done:
            seen += "".join(watched.generation.take())
            assert full.startswith(seen)
        seen += "".join(watched.generation.take())
        assert watched.generation.finish_reason == "stop"
        assert seen == full[: full.index(stop)], "all before the stop string and nothing of it"


def test_text_that_only_begins_a_stop_string_is_given_in_the_end(engine: Engine) -> None:
    full = finished(engine.submit("Hello", greedy(30))).text
    almost = full[-4:] + "\0"
    done = finished(engine.submit("Hello", greedy(30, stop=(almost,))))
    assert (done.text, done.finish_reason) == (full, "length")


def test_deltas_are_whole_characters(engine: Engine) -> None:
    # Bytes of characters that need several tokens, at a temperature that mixes them at will.
    tokens = engine.tokenize("日本語 🙂🎉 ünï", add_special=False)
    bias = dict.fromkeys(tokens, 30.0)
    params = SamplingParams(max_tokens=200, temperature=5.0, top_k=0, seed=3, logit_bias=bias)
    generation = engine.submit("Hello", params)
    text = finished(generation).text
    assert text.encode().decode() == text
    valid = finished(engine.submit("Hello", params)).text
    assert valid == text


def test_on_update_is_called_after_each_token_and_at_the_end(engine: Engine) -> None:
    watched = Watched(engine, "Hello", greedy(10))
    watched.wait_until_done()
    assert 2 <= watched.updates <= 11


def test_a_failing_callback_is_logged_and_harms_nobody(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("callback broke")

    with caplog.at_level(logging.ERROR, "cllm.engine"):
        failing = engine.submit("Hello", greedy(5), on_update=fail)
        other = engine.submit("World", greedy(5))
        assert finished(failing).usage.completion_tokens == 5
        assert finished(other).usage.completion_tokens == 5
    assert "callback broke" in caplog.text
    assert engine.healthy


def test_info_says_what_the_file_says(engine: Engine) -> None:
    info = engine.info()
    assert info.architecture == "llama"
    assert info.max_sequence_length == 2048
    assert info.vocab_size == engine.info().metadata["llama.vocab_size"]
    assert (info.quantized, info.quantization_type) == (True, "Q8_0")
    assert info.hidden_size == info.metadata["llama.embedding_length"]
    assert info.num_layers == info.metadata["llama.block_count"]
    assert info.num_key_value_heads == info.metadata["llama.attention.head_count_kv"]
    assert info.rope_theta == pytest.approx(10000.0)
    assert info.chat_template
    assert (info.context.ctx_size, info.context.parallel) == (512, 4)


def test_stats_count_what_happened(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=256)
    for generation in [engine.submit(f"Prompt {i}", greedy(7)) for i in range(5)]:
        finished(generation)
    stats = engine.stats()
    assert stats.requests_submitted == 5
    assert stats.requests_finished == {"length": 5}
    assert stats.completion_tokens == 35
    assert stats.prompt_tokens == sum(len(engine.tokenize(f"Prompt {i}")) for i in range(5))
    assert (stats.queue_depth, stats.slots_busy, stats.slots_total) == (0, 0, 2)
    assert 0 < stats.kv_tokens <= stats.kv_cells
    assert stats.decode_s > 0
    assert stats.steps >= 7


def test_by_default_the_context_is_what_the_model_allows(load: Loader) -> None:
    assert load(parallel=1).info().context.ctx_size == 2048
    small = load(parallel=1, memory_budget=600 * 2048).info().context
    assert small.ctx_size < 2048
    assert small.ctx_size % 256 == 0


def test_a_quantized_cache_works(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=128, cache_type_k="q8_0", cache_type_v="q8_0")
    assert finished(engine.submit("Hello", greedy(5))).usage.completion_tokens == 5


def test_close_ends_everything_under_load(model_path: Path) -> None:
    engine = Engine.load(model_path, parallel=2, ctx_size=2048)
    generations = [engine.submit(f"Prompt {i}", greedy(None)) for i in range(20)]
    Watched(engine, "one more", greedy(None)).generation.cancel()
    first = generations[0]
    Watched(engine, "x", greedy(1))
    waiter_error: list[BaseException] = []

    def wait() -> None:
        try:
            first.result(WAIT)
        except EngineError as error:
            waiter_error.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    engine.close()
    waiter.join(WAIT)
    assert isinstance(waiter_error[0], EngineClosed)
    for generation in generations:
        assert generation.finish_reason == "error"
        assert isinstance(generation.error, EngineClosed)
    assert not any(t.name == "cllm-engine" and not t.daemon for t in threading.enumerate())
    engine.close()


def test_a_closed_engine_refuses_politely(model_path: Path) -> None:
    engine = Engine.load(model_path, parallel=1, ctx_size=64)
    engine.close()
    assert not engine.healthy
    for call in (
        lambda: engine.submit("Hello"),
        lambda: engine.generate("Hello"),
        lambda: engine.tokenize("Hello"),
        lambda: engine.detokenize([5]),
    ):
        with pytest.raises(EngineClosed):
            call()
    assert engine.info().vocab_size > 0
    assert engine.stats().healthy is False


def test_close_waits_for_threads_that_tokenize(model_path: Path) -> None:
    engine = Engine.load(model_path, parallel=1, ctx_size=64)
    text = "words and words " * 2000
    started = threading.Barrier(5)

    def work() -> None:
        started.wait(WAIT)
        try:
            while True:
                engine.tokenize(text)
        except EngineClosed:
            pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait(WAIT)
    engine.close()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_a_callback_may_not_close_the_engine(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=64)
    raised: list[Exception] = []

    def closing() -> None:
        try:
            engine.close()
        except EngineError as error:
            raised.append(error)

    finished(engine.submit("Hello", greedy(2), on_update=closing))
    finished(engine.submit("Hello", greedy(2)))
    assert raised


def test_a_forgotten_engine_ends_its_thread(model_path: Path) -> None:
    engine = Engine.load(model_path, parallel=1, ctx_size=64)
    thread = engine._thread
    engine.generate("Hello", max_tokens=2)
    del engine
    gc.collect()
    thread.join(WAIT)
    assert not thread.is_alive()


def test_two_engines_live_in_one_process(load: Loader, memoryless_path: Path) -> None:
    first = load(memoryless_path, parallel=2, ctx_size=128)
    second = load(memoryless_path, parallel=2, ctx_size=128)
    pairs = [(first.submit(f"p{i}", greedy()), second.submit(f"p{i}", greedy())) for i in range(6)]
    for one, other in pairs:
        assert finished(one).text == finished(other).text


def test_close_waits_for_samplers_that_are_made_from_the_vocabulary(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(parallel=1)
    borrowers = list[int]()

    class Observed(TokenSampler):
        def __init__(self, params: SamplingParams, vocab: Vocab) -> None:
            borrowers.append(len(engine._tokenizer._borrowers))
            super().__init__(params, vocab)

    monkeypatch.setattr("cllm.engine.sequence.TokenSampler", Observed)
    finished(engine.submit([5, 6], SamplingParams(max_tokens=1, dry_multiplier=0.8)))
    assert borrowers == [1]
