"""Promises of the embedding and reranking endpoints: OpenAI's client, llama-server's fields."""

from __future__ import annotations

import base64
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import pytest

from cllm.api import ApiSettings
from cllm.engine import Engine
from tests.api.api_client import PATIENCE, Live, begin_post, eventually, idle, serving
from tests.api.keyed import RING
from tests.embedding_models import CLS, SEP, WIDTH, bert, qwen3, sentences
from tests.random_model import random_path

TEXTS = list(sentences(50))


@pytest.fixture(scope="module")
def embedding() -> Iterator[Live]:
    with Engine.load(bert("mean"), flash_attn="off") as engine, serving(engine) as live:
        yield live


@pytest.fixture(scope="module")
def reranker() -> Iterator[Live]:
    with Engine.load(qwen3(random_path(), "rank")) as engine, serving(engine) as live:
        yield live


@pytest.fixture
def client(embedding: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=embedding.url + "/v1", api_key="none", max_retries=0) as client:
        yield client
    eventually(lambda: idle(embedding.engine), "the engine has no work left")


def error(live: Live, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    """POST, expect an envelope with this status, give `error`; nothing may have been queued."""
    before = live.engine.stats().requests_submitted
    response = live.post(path, body)
    assert response.status_code == status, response.text
    assert live.engine.stats().requests_submitted == before
    found: dict[str, Any] = response.json()["error"]
    return found


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """Hold the engine thread between two steps."""
    entered, release = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert release.wait(PATIENCE)

    engine.embedder.submit([[CLS, SEP]], on_update=hold)
    assert entered.wait(PATIENCE)
    try:
        yield
    finally:
        release.set()


def test_fifty_texts_at_once_are_as_one_by_one_and_in_order(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="any", input=TEXTS)
    assert answer.object == "list" and answer.model == "bert-mean"
    assert [item.index for item in answer.data] == list(range(50))
    used = 0
    for text, item in zip(TEXTS, answer.data, strict=True):
        alone = client.embeddings.create(model="any", input=text)
        assert item.embedding == pytest.approx(alone.data[0].embedding, abs=2e-4)
        assert math.hypot(*item.embedding) == pytest.approx(1.0, abs=1e-6)
        used += alone.usage.prompt_tokens
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == used


def test_base64_holds_the_same_numbers(client: openai.OpenAI, embedding: Live) -> None:
    plain = client.embeddings.create(model="any", input=TEXTS[:3], encoding_format="float")
    packed = embedding.post("/v1/embeddings", {"input": TEXTS[:3], "encoding_format": "base64"})
    for item, other in zip(plain.data, packed.json()["data"], strict=True):
        numbers = np.frombuffer(base64.b64decode(other["embedding"]), dtype="<f4")
        assert numbers.tolist() == item.embedding


def test_tokens_are_taken_as_they_are(client: openai.OpenAI, embedding: Live) -> None:
    tokens = embedding.engine.tokenize(TEXTS[0])
    (of_text,) = client.embeddings.create(model="any", input=TEXTS[0]).data
    (of_tokens,) = client.embeddings.create(model="any", input=tokens).data
    of_lists = client.embeddings.create(model="any", input=[tokens, tokens[:2]]).data
    assert of_tokens.embedding == of_text.embedding
    assert of_lists[0].embedding == pytest.approx(of_text.embedding, abs=2e-4)
    assert of_lists[1].embedding != pytest.approx(of_text.embedding, abs=2e-2)


def test_fewer_dimensions_are_the_first_ones_at_unit_length(client: openai.OpenAI) -> None:
    (whole,) = client.embeddings.create(model="any", input="the cat").data
    (short,) = client.embeddings.create(model="any", input="the cat", dimensions=8).data
    size = math.hypot(*whole.embedding[:8])
    assert short.embedding == pytest.approx([x / size for x in whole.embedding[:8]], abs=1e-6)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ([12, "the cat"], [[12, "the cat"]]),
        ({"prompt_string": "the cat"}, "the cat"),
        (
            {"content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]},
            "the cat",
        ),
        (["a", [12, 13], {"prompt_string": "b"}], ["a", [12, 13], "b"]),
    ],
)
def test_inputs_in_llama_servers_forms(embedding: Live, given: Any, same: Any) -> None:
    answers = [embedding.post("/v1/embeddings", {"input": each}).json() for each in (given, same)]
    assert answers[0]["data"] == answers[1]["data"] and answers[0]["data"]


def test_an_empty_text_is_its_special_tokens(embedding: Live) -> None:
    answer = embedding.post("/v1/embeddings", {"input": ["a", ""]}).json()
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] == 5  # [CLS] a [SEP], [CLS] [SEP]


def test_a_long_answer_comes_whole(embedding: Live) -> None:
    answer = embedding.post("/v1/embeddings", {"input": ["the cat"] * 2048})
    vectors = [item["embedding"] for item in answer.json()["data"]]
    assert len(vectors) == 2048 and all(len(vector) == WIDTH for vector in vectors)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "missing"),
        ({"input": {"content": "a"}}, "input.content", "a list"),
        (
            {"input": ["a", {"content": [{"type": "image_url"}]}]},
            "input[1].content[0].type",
            "text",
        ),
        ({"input": []}, "input", "at least one"),
        ({"input": [[]]}, "input", "at least one token"),
        ({"input": [1, ["a"]]}, "input", "tokens and texts, or inputs"),
        ({"input": 7}, "input", "a string or an object or a list"),
        ({"input": [10**6]}, "input", "tokens from 0 to"),
        ({"input": ["a"] * 2049}, "input", "1 to 2048 inputs"),
        (
            {"input": ["a", "a " * 300]},
            "input[1]",
            "too large: 302 tokens; at most 128 fit",
        ),
        ({"input": "a", "dimensions": WIDTH + 1}, "dimensions", f"at most {WIDTH}, the size"),
        ({"input": "a", "dimensions": 0}, "dimensions", "1 or more"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", '"base64" or "float"'),
    ],
)
def test_bad_input_is_named_and_nothing_is_queued(
    embedding: Live, body: Any, param: str, words: str
) -> None:
    found = error(embedding, "/v1/embeddings", body)
    assert found["type"] == "invalid_request_error"
    assert found["param"] == param
    assert words in found["message"]


@pytest.mark.parametrize("path", ["/embedding", "/embeddings"])
@pytest.mark.parametrize("name", ["content", "input"])
def test_llama_servers_own_form(embedding: Live, path: str, name: str) -> None:
    (one,) = embedding.post(path, {name: "the cat"}).json()
    assert one["index"] == 0 and len(one["embedding"]) == 1
    assert math.hypot(*one["embedding"][0]) == pytest.approx(1.0, abs=1e-6)
    many = embedding.post(path, {name: TEXTS}).json()
    assert [item["index"] for item in many] == list(range(50))


def test_vectors_are_normalized_as_asked(embedding: Live) -> None:
    def vector(norm: int) -> list[float]:
        answer = embedding.post("/embedding", {"content": "the cat", "embd_normalize": norm})
        (row,) = answer.json()[0]["embedding"]
        return list(row)

    raw = vector(-1)
    assert vector(2) == pytest.approx([x / math.hypot(*raw) for x in raw], abs=1e-6)
    assert vector(1) == pytest.approx([x / sum(map(abs, raw)) for x in raw], abs=1e-6)
    assert max(map(abs, vector(0))) == pytest.approx(32_760.0)


def test_llama_servers_errors(embedding: Live) -> None:
    bodies: tuple[dict[str, Any], ...] = (
        {}, {"content": []}, {"content": "a", "embd_normalize": -2},
    )  # fmt: skip
    for body in bodies:
        found = error(embedding, "/embedding", body)
        assert found["code"] == 400 and found["type"] == "invalid_request_error"


def test_vectors_of_each_token_come_in_llama_servers_form_only() -> None:
    with Engine.load(bert("none")) as engine, serving(engine) as live:
        (item,) = live.post("/embedding", {"content": "the cat"}).json()
        assert len(item["embedding"]) == len(engine.tokenize("the cat"))
        assert "--pooling mean" in error(live, "/v1/embeddings", {"input": "a"}, 400)["message"]


RERANK_PATHS = ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking"]


@pytest.mark.parametrize("path", RERANK_PATHS)
def test_documents_are_ranked(reranker: Live, path: str) -> None:
    body = {"model": "any", "query": "who is the king", "documents": TEXTS}
    answer = reranker.post(path, body).json()
    assert set(answer) == {"model", "object", "usage", "results"}
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 50
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    assert sorted(result["index"] for result in answer["results"]) == list(range(50))

    best = reranker.post(path, {**body, "top_n": 3, "return_documents": True}).json()["results"]
    assert [result["index"] for result in best] == [r["index"] for r in answer["results"][:3]]
    assert [result["document"] for result in best] == [{"text": TEXTS[r["index"]]} for r in best]


def test_documents_may_be_objects(reranker: Live) -> None:
    query = {"query": "who is the king"}
    plain = reranker.post("/rerank", {**query, "documents": TEXTS[:5]}).json()
    objects = [{"text": text, "title": "x"} for text in TEXTS[:5]]
    assert reranker.post("/rerank", {**query, "documents": objects}).json() == plain


def test_texts_are_ranked_as_text_embeddings_inference_does(reranker: Live) -> None:
    body = {"query": "who is the king", "texts": TEXTS[:5], "return_text": True}
    answer = reranker.post("/rerank", body).json()
    assert [set(result) for result in answer] == [{"index", "score", "text"}] * 5
    assert all(result["text"] == TEXTS[result["index"]] for result in answer)


@pytest.mark.parametrize("path", RERANK_PATHS)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"documents": ["a"]}, "query: missing"),
        ({"query": "a"}, "documents: missing"),
        ({"query": "a", "documents": []}, "documents: "),
        ({"query": "a", "documents": [7]}, "documents[0]: 7"),
        ({"query": "a", "documents": [{"title": "x"}]}, "text: missing"),
        ({"query": "a", "documents": ["b"], "top_n": 0}, "top_n: 0"),
        ({"query": "a", "documents": ["b", "c " * 300]}, "documents[1]: "),
        ({"query": "a", "documents": ["b"] * 2049}, "1 to 2048 inputs"),
    ],
)
def test_bad_documents_are_named(reranker: Live, path: str, body: Any, words: str) -> None:
    assert words in error(reranker, path, body)["message"]


def test_a_model_that_cannot_says_what_it_can(embedding: Live, reranker: Live, live: Live) -> None:
    texts, pair = {"input": "a"}, {"query": "a", "documents": ["b"]}
    for path, body in (("/v1/embeddings", texts), ("/embedding", texts), ("/v1/rerank", pair)):
        assert "generates text" in error(live, path, body, 501)["message"]
    assert "only produces embeddings" in error(embedding, "/rerank", pair, 501)["message"]
    assert "/v1/rerank" in error(reranker, "/v1/embeddings", texts, 501)["message"]
    talk = {"messages": [{"role": "user", "content": "Hello"}]}
    assert (
        "only produces embeddings" in error(embedding, "/v1/chat/completions", talk, 501)["message"]
    )
    assert (
        "only produces embeddings"
        in error(embedding, "/v1/completions", {"prompt": "a"}, 501)["message"]
    )
    assert "only produces embeddings" in embedding.refused("/generate", {"prompt": "a"}, 501)
    assert "only produces embeddings" in embedding.refused("/benchmark", {}, 501)


def test_openais_client_does_not_ask_again_what_cannot_be(live: Live) -> None:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=2) as client:
        before = live.server.stats().requests_total
        with pytest.raises(openai.InternalServerError):
            client.embeddings.create(model="any", input="a")
        assert live.server.stats().requests_total == before + 1


def test_what_the_model_can_is_told(embedding: Live, reranker: Live, live: Live) -> None:
    expected = ((embedding, "embedding", "mean", WIDTH), (reranker, "rerank", "rank", None),
                (live, "completion", None, None))  # fmt: skip
    for server, capability, pooling, size in expected:
        info = server.get("/model/info").json()["data"]
        assert (info["capability"], info["pooling"], info["embedding_size"]) == (
            capability, pooling, size
        )  # fmt: skip
        (model,) = server.get("/v1/models").json()["data"]
        assert model["capabilities"] == [capability]


def test_a_client_that_leaves_is_not_computed_for(embedding: Live) -> None:
    engine = embedding.engine
    cancelled = engine.stats().requests_finished.get("cancelled", 0)
    with held(engine):
        steps, left = engine.stats().steps, embedding.server.stats().clients_left_total
        begin_post(embedding, "/v1/embeddings", {"input": TEXTS}).close()
        eventually(lambda: embedding.server.stats().clients_left_total > left, "the server noticed")
    eventually(lambda: idle(engine), "the engine has no work left")
    assert engine.stats().requests_finished["cancelled"] == cancelled + 1
    assert engine.stats().steps == steps


def test_many_clients_at_once_get_their_own_vectors(embedding: Live) -> None:
    expected = embedding.engine.embedder.embed(TEXTS)
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        body = {"input": TEXTS[number]}
        found[number] = embedding.post("/v1/embeddings", body).json()["data"][0]["embedding"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(TEXTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for number, vectors in enumerate(expected):
        assert found[number] == pytest.approx(vectors[0].tolist(), abs=2e-4)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embedding", "/api/embed"])
def test_a_key_bounds_the_priority(embedding: Live, path: str) -> None:
    with serving(embedding.engine, ApiSettings(key_ring=RING)) as live:
        body: dict[str, Any] = {"input": "the cat", "model": live.service.model_id}
        for more, status in (({}, 200), ({"priority": 5}, 200), ({"priority": 4}, 400)):
            response = live.post(path, {**body, **more}, headers={"x-api-key": "late"})
            assert response.status_code == status, response.text


def test_a_full_queue_is_answered_429() -> None:
    with (
        Engine.load(bert("mean"), ubatch_size=1, parallel=1, max_queue=0) as engine,
        serving(engine) as live,
        held(engine),
    ):
        engine.embedder.submit([[CLS]])
        response = live.post("/v1/embeddings", {"input": "a"})
        assert response.status_code == 429 and "Retry-After" in response.headers
        assert live.post("/embedding", {"content": "a"}).status_code == 429
