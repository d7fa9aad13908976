"""Promises of models that embed or rank: batching changes nothing, limits are named, all end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from cllm.engine import (
    DeadlineExceeded,
    Engine,
    EngineClosed,
    EngineError,
    InputTooLong,
    InvalidRequest,
    ModelLoadError,
    QueueFull,
    Unsupported,
)
from cllm.engine.embedding.handle import Embedding, normalized
from cllm.engine.llama import INTERRUPTED
from tests.embedding_models import CLS, SEP, TRAINED, WIDTH, bert, qwen3, sentences, t5_encoder
from tests.engine.engine_helpers import WAIT, Loader

# Without these the last bits of a sum depend on what else is in the batch.
PRECISE: dict[str, Any] = {"flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32"}
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def embedding() -> Iterator[Engine]:
    with Engine.load(bert("mean"), **PRECISE) as engine:
        yield engine


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """Hold the engine thread between two steps: what is submitted meanwhile stays queued."""
    entered, release = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert release.wait(WAIT)

    first = engine.embedder.submit([[CLS, SEP]], on_update=hold)
    assert entered.wait(WAIT)
    try:
        yield
    finally:
        release.set()
        first.result(WAIT)


Model = Callable[[Path], Path]
MODELS = {
    "bert, mean": lambda _: bert("mean"),
    "bert, cls": lambda _: bert("cls"),
    "bert, last": lambda _: bert("last"),
    "T5, mean": lambda _: t5_encoder(),
    "causal, last": lambda vocabulary: qwen3(vocabulary, "last"),
    "causal, mean": lambda vocabulary: qwen3(vocabulary, "mean"),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_fifty_texts_at_once_have_the_vectors_of_one_by_one(
    load: Loader, model_path: Path, model: Model
) -> None:
    path = model(model_path)
    engine = load(path, **PRECISE, pooling="mean" if path == t5_encoder() else "auto")
    texts = sentences(50)
    together = engine.embedder.embed(texts)
    batches = engine.stats().steps
    assert batches < 10
    for text, vectors in zip(texts, together, strict=True):
        (alone,) = engine.embedder.embed([text])
        assert vectors.shape == (1, WIDTH)
        assert np.linalg.norm(vectors) == pytest.approx(1.0, abs=1e-6)
        assert np.abs(vectors - alone).max() < TOLERANCE
    assert engine.stats().steps == batches + 50


def test_without_pooling_every_token_has_a_vector(load: Loader) -> None:
    engine = load(bert("none"), **PRECISE)
    texts = sentences(8)
    for tokens, rows in zip(engine.embedder.tokens("x", texts), engine.embedder.embed(texts),
                            strict=True):  # fmt: skip
        assert rows.shape == (len(tokens), WIDTH)


@pytest.mark.parametrize("packed", [16, 64, 512])
def test_a_long_input_is_read_in_chunks_where_only_its_end_counts(
    load: Loader, model_path: Path, packed: int
) -> None:
    texts = [*sentences(4), "the cat sat on the mat " * 11, *sentences(4, seed=1)]
    reference = load(qwen3(model_path, "last"), **PRECISE).embedder.embed(texts)
    chunked = load(qwen3(model_path, "last"), **PRECISE, ubatch_size=packed, parallel=4)
    for expected, found in zip(reference, chunked.embedder.embed(texts), strict=True):
        assert np.abs(expected - found).max() < TOLERANCE


def test_a_model_pools_as_its_file_says_unless_told_otherwise(load: Loader) -> None:
    assert load(bert("cls")).info().pooling == "cls"
    assert load(bert(None)).info().pooling == "none"
    assert load(t5_encoder()).info().pooling == "none"
    told = load(bert("cls"), pooling="mean")
    assert told.info().pooling == "mean"
    text = sentences(1)
    expected = load(bert("mean")).embedder.embed(text)[0]
    assert np.abs(told.embedder.embed(text)[0] - expected).max() < TOLERANCE


def test_a_decoder_generates_or_embeds_as_told(load: Loader, model_path: Path) -> None:
    assert load().info().capability == "completion"
    told = load(pooling="mean")
    assert told.info().capability == "embedding"
    assert told.embedder.embed(["the cat"])[0].shape == (1, told.info().embedding_size)


def test_a_query_and_a_document_are_read_as_the_model_expects_it(
    load: Loader, model_path: Path
) -> None:
    pieces = load(bert("rank")).embedder.pairs("who is the king", ["the cat sat", "a dog"])
    assert [pair[0] for pair in pieces] == [CLS, CLS]
    assert [pair.count(SEP) for pair in pieces] == [1, 1]

    engine = load(qwen3(model_path, "rank"))
    (pair,) = engine.embedder.pairs("who is {document}", ["the cat"])
    assert engine.detokenize(pair) == (
        "<|im_start|>user\nQuery: who is {document}\nDocument: the cat<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    (plain,) = engine.embedder.pairs("who", ["cat"])
    (tricky,) = engine.embedder.pairs("who", ["cat<|im_end|>"])
    end = engine.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert plain.count(end[0]) == tricky.count(end[0]) == 1


def test_the_order_of_documents_does_not_change_their_scores(
    load: Loader, model_path: Path
) -> None:
    documents = list(sentences(20))
    for path in (bert("rank"), qwen3(model_path, "rank")):
        engine = load(path, **PRECISE)
        scores = engine.embedder.rank("who is the king", documents)
        turned = engine.embedder.rank("who is the king", documents[::-1])
        assert np.allclose(scores, turned[::-1], atol=TOLERANCE)
        assert len(set(scores)) > 10


def test_what_a_model_cannot_do_is_refused_with_what_it_can(
    load: Loader, embedding: Engine
) -> None:
    with pytest.raises(Unsupported, match="generates text"):
        _ = load().embedder
    with pytest.raises(Unsupported, match="only produces embeddings"):
        embedding.submit("Once")
    with pytest.raises(Unsupported, match="only produces embeddings"):
        embedding.check_prompt("Once")
    with pytest.raises(Unsupported, match="only produces embeddings"):
        embedding.embedder.rank("a", ["b"])
    with pytest.raises(Unsupported, match="ranks"):
        load(bert("rank")).embedder.embed(["a"])
    with pytest.raises(ModelLoadError, match="classification head"):
        load(bert("mean"), pooling="rank")


def test_an_input_that_is_too_long_is_named_and_nothing_is_queued(embedding: Engine) -> None:
    before = embedding.stats().requests_submitted
    with pytest.raises(
        InputTooLong, match=r"texts\[1\]: the input is too large: 202 tokens; at most 128 fit"
    ):
        embedding.embedder.embed(["a", "a " * 200])
    wrong: list[list[list[int]]] = [[], [[]], [[10**6]], [[-1]]]
    for inputs in wrong:
        with pytest.raises(InvalidRequest, match="input"):
            embedding.embedder.submit(inputs)
    assert embedding.stats().requests_submitted == before
    assert len(embedding.embedder.embed(["a", ""])) == 2  # CLS and SEP
    longest = [[CLS] * TRAINED]
    assert embedding.embedder.submit(longest).result(WAIT)[0].shape == (1, WIDTH)


def test_an_operator_may_lower_the_longest_input(load: Loader) -> None:
    engine = load(bert("mean"), ctx_size=16)
    with pytest.raises(InputTooLong, match=r"raise --ctx-size \(the model was trained for 128\)"):
        engine.embedder.embed(["a " * 20])


def test_the_requests_of_many_share_a_batch_in_turn(load: Loader) -> None:
    engine = load(bert("mean"), ubatch_size=16, **PRECISE)
    ended: SimpleQueue[str] = SimpleQueue()
    with held(engine):
        steps = engine.stats().steps
        inputs = [[CLS, SEP, SEP, SEP]]
        big = engine.embedder.submit(inputs * 40, on_update=lambda: ended.put("big"))
        small = [
            engine.embedder.submit(inputs, on_update=lambda: ended.put("small")) for _ in range(3)
        ]
    assert [ended.get(timeout=WAIT) for _ in [big, *small]] == ["small"] * 3 + ["big"]
    assert engine.stats().steps - steps == 11


def test_tenants_share_batches_however_many_requests_each_has(load: Loader) -> None:
    engine = load(bert("mean"), ubatch_size=16, **PRECISE)
    ended: list[str] = []

    def submit(tenant: str, inputs: int) -> Embedding:
        return engine.embedder.submit(
            [[CLS, SEP, SEP, SEP]] * inputs, on_update=lambda: ended.append(tenant), tenant=tenant
        )

    with held(engine):
        asked = [submit("many", 2) for _ in range(20)]
        asked += [submit("few", 1) for _ in range(4)]
    for each in asked:
        each.result(WAIT)
    # Four inputs a batch: two of each tenant while both have some.
    assert ended.index("few") <= 2 and ended[:8].count("few") == 4


def test_a_full_queue_makes_room_for_another_tenant(load: Loader) -> None:
    engine = load(bert("mean"), ubatch_size=16, parallel=1, max_queue=2)
    with held(engine):
        many = []
        with pytest.raises(QueueFull):
            while True:
                many.append(engine.embedder.submit([[CLS, SEP]], tenant="many"))
        few = engine.embedder.submit([[CLS, SEP]], tenant="few")
    with pytest.raises(QueueFull):
        many.pop().result(WAIT)
    assert len(many) > 1
    for each in (*many, few):
        each.result(WAIT)


def test_a_cancelled_request_is_not_computed(load: Loader) -> None:
    engine = load(bert("mean"))
    with held(engine):
        steps = engine.stats().steps
        gone = engine.embedder.submit([[CLS, SEP]])
        gone.cancel()
    gone.wait(WAIT)
    assert gone.finish_reason == "cancelled"
    assert engine.stats().steps == steps
    assert engine.stats().requests_finished == {"stop": 1, "cancelled": 1}


def test_a_deadline_that_passes_while_waiting_ends_the_request(load: Loader) -> None:
    engine = load(bert("mean"))
    with held(engine):
        late = engine.embedder.submit([[CLS, SEP]], deadline=1e-6)
    with pytest.raises(DeadlineExceeded):
        late.result(WAIT)


@pytest.mark.parametrize("why", ["cancelled before", "cancelled within", "expired"])
@pytest.mark.parametrize("chunks", [False, True])
def test_a_step_for_one_request_ends_when_it_is_no_longer_wanted(
    load: Loader, model_path: Path, chunks: bool, why: str
) -> None:
    path = qwen3(model_path, "last") if chunks else bert("mean")
    sizes = {"batch_size": 64, "ubatch_size": 64} if chunks else {}
    engine = load(path, **PRECISE, **sizes)
    scheduler: Any = engine._runner
    text = [5 + i % 9 for i in range(100)]
    expected = engine.embedder.submit([text]).result(WAIT)
    context, asked, codes = scheduler._context, threading.Event(), list[int]()
    plan, decode, interrupt = scheduler._plan, context.decode, context.interrupt

    def planned() -> None:
        plan()
        if why == "cancelled before":
            unwanted.cancel()
        elif why == "expired":
            job = scheduler._parts[0].job
            job.deadline = scheduler._next_deadline = time.monotonic() + 0.02

    def within(batch: Any, count: int) -> int:
        if why == "cancelled within":
            unwanted.cancel()
        assert asked.wait(WAIT)
        codes.append(decode(batch, count))
        return codes[-1]

    def interrupted() -> None:
        interrupt()
        asked.set()

    with held(engine):
        unwanted = engine.embedder.submit([text, text], deadline=9.0)
        scheduler._plan, context.decode, context.interrupt = planned, within, interrupted
    if why == "expired":
        with pytest.raises(DeadlineExceeded):
            unwanted.wait(WAIT)
    else:
        unwanted.wait(WAIT)
        assert unwanted.finish_reason == "cancelled"
    assert codes == [INTERRUPTED]
    scheduler._plan, context.decode, context.interrupt = plan, decode, interrupt
    again = engine.embedder.submit([text]).result(WAIT)
    assert np.array_equal(again[0], expected[0])
    assert engine.stats().failed_decodes == 0


def test_a_step_for_several_requests_is_finished(load: Loader) -> None:
    engine = load(bert("mean"), **PRECISE)
    with held(engine):
        wanted, unwanted = (engine.embedder.submit([[CLS, 7, SEP]]) for _ in range(2))
        context: Any = engine._runner._context
        decode = context.decode

        def within(batch: Any, count: int) -> int:
            unwanted.cancel()
            return int(decode(batch, count))

        context.decode = within
    assert len(wanted.result(WAIT)) == 1
    assert engine.stats().failed_decodes == 0


def test_the_queue_is_bounded(load: Loader) -> None:
    engine = load(bert("mean"), ubatch_size=1, batch_size=128, parallel=1, max_queue=2)
    with held(engine):
        waiting = [engine.embedder.submit([[CLS]]) for _ in range(3)]
        with pytest.raises(QueueFull):
            engine.embedder.submit([[CLS]])
        assert engine.stats().requests_refused == 1
        assert engine.stats().queue_depth == 3
    for each in waiting:
        each.result(WAIT)


def test_a_batch_that_fails_ends_its_requests_and_no_other(load: Loader) -> None:
    engine = load(bert("mean"))
    context = engine._runner._context
    real, codes = context.decode, [0, -3]
    context.decode = lambda batch, count: (codes or [0]).pop(0) or real(batch, count)  # type: ignore[method-assign]
    with held(engine):
        failing = engine.embedder.submit([[CLS, SEP]])
    with pytest.raises(EngineError, match="code -3"):
        failing.result(WAIT)
    assert engine.embedder.embed(["the cat"])[0].shape == (1, WIDTH)
    assert engine.healthy


def test_closing_ends_what_waits() -> None:
    engine = Engine.load(bert("mean"))
    with held(engine):
        waiting = engine.embedder.submit([[CLS, SEP]])
        closer = threading.Thread(target=engine.close)
        closer.start()
        while engine.healthy:
            closer.join(0.001)
    closer.join(WAIT)
    with pytest.raises(EngineClosed):
        waiting.result(WAIT)
    with pytest.raises(EngineClosed):
        engine.embedder.embed(["a"])


def test_every_norm_is_llama_cpps() -> None:
    rows = np.array([[3.0, -4.0], [0.0, 0.0]], dtype=np.float32)
    assert normalized(rows, -1).tolist() == rows.tolist()
    assert normalized(rows, 0)[0] == pytest.approx([24_570.0, -32_760.0])
    assert normalized(rows, 1)[0] == pytest.approx([3 / 7, -4 / 7])
    assert normalized(rows, 2)[0] == pytest.approx([0.6, -0.8])
    assert normalized(rows, 3)[0] == pytest.approx(rows[0] / 91 ** (1 / 3))
    assert all(normalized(rows, norm)[1].tolist() == [0.0, 0.0] for norm in (0, 1, 2, 3))
