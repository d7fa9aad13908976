"""Tokens are recorded on request, with the model's own log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cllm.engine import Engine, Generation, InvalidRequest, SamplingParams, TokenRecord
from cllm.engine.sampling.logprobs import logprobs
from tests.engine.engine_helpers import Watched, finished, greedy


def recorded(engine: Engine, params: SamplingParams) -> tuple[str, list[TokenRecord]]:
    generation = engine.submit("Hello", params)
    return finished(generation).text, generation.take_tokens()


def joined(records: list[TokenRecord]) -> str:
    return b"".join(record.piece for record in records).decode("utf-8", "replace")


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_logprobs_are_those_of_a_softmax(count: int) -> None:
    row = (np.random.default_rng(1).standard_normal(30_000) * 5).astype(np.float32)
    expected = np.log(np.exp(row.astype(float)) / np.exp(row.astype(float)).sum())
    logprob, top = logprobs(row, 17, count)
    assert logprob == pytest.approx(expected[17], abs=1e-5)
    order = np.argsort(-row, kind="stable")[:count]
    assert [token for token, _ in top] == order.tolist()
    assert [value for _, value in top] == pytest.approx(expected[order].tolist(), abs=1e-5)


def test_equal_logits_are_ordered_by_token() -> None:
    _, top = logprobs(np.zeros(1000, dtype=np.float32), 3, 4)
    assert [token for token, _ in top] == [0, 1, 2, 3]
    assert [value for _, value in top] == pytest.approx([-math.log(1000)] * 4)


def test_nothing_is_recorded_for_those_who_do_not_ask(engine: Engine) -> None:
    assert recorded(engine, greedy(8))[1] == []


def test_every_token_is_recorded_and_the_pieces_are_the_text(engine: Engine) -> None:
    text, records = recorded(engine, greedy(40, record_tokens=True))
    assert len(records) == 40
    assert joined(records) == text
    assert all(math.isnan(record.logprob) and record.top == () for record in records)


def test_greedy_tokens_are_the_most_probable_ones(engine: Engine) -> None:
    text, records = recorded(engine, greedy(20, logprobs=3))
    assert joined(records) == text
    for record in records:
        assert len(record.top) == 3
        assert record.top[0][1] >= record.top[1][1] >= record.top[2][1]
        assert record.logprob <= record.top[0][1] <= 0.0
    assert [record.token for record in records].count(records[0].top[0][0]) >= 1


def test_logprobs_do_not_change_the_text(engine: Engine) -> None:
    params: dict[str, Any] = {"max_tokens": 30, "seed": 7, "frequency_penalty": 0.5}
    plain, _ = recorded(engine, SamplingParams(**params))
    with_logprobs, _ = recorded(engine, SamplingParams(**params, logprobs=5))
    assert with_logprobs == plain


def test_logprobs_are_the_models_own_whatever_is_asked_for(engine: Engine) -> None:
    _, (own,) = recorded(engine, greedy(1, logprobs=5))
    other = own.top[3][0]
    _, (biased,) = recorded(
        engine,
        SamplingParams(
            max_tokens=1,
            logit_bias={other: 100.0},
            temperature=2.0,
            repetition_penalty=2.0,
            logprobs=5,
        ),
    )
    assert biased.token == other
    assert biased.top == own.top
    assert biased.logprob == own.top[3][1]


def test_the_token_that_ends_a_text_is_recorded_without_a_piece(engine: Engine) -> None:
    eos = engine.info().eos_token
    assert eos is not None
    params = SamplingParams(max_tokens=5, temperature=0.0, logit_bias={eos: 100.0}, logprobs=0)
    text, (record,) = recorded(engine, params)
    assert (text, record.token, record.piece) == ("", eos, b"")


def test_a_token_is_recorded_before_its_text(engine: Engine) -> None:
    early: list[bool] = []
    seen = ""
    records: list[TokenRecord] = []

    def look() -> None:
        nonlocal seen
        if generations:
            seen += "".join(generations[0].take())
            records.extend(generations[0].take_tokens())
            early.append(joined(records).startswith(seen))

    generations: list[Generation] = []
    watched = Watched(engine, "Hello", greedy(30, logprobs=0))
    generations.append(watched.generation)
    while not watched.generation.done:
        look()
        watched.wait_for_tokens(watched.generation.usage.completion_tokens)
    look()
    assert all(early)
    assert len(records) == 30


def test_control_tokens_are_spelled_out_for_those_who_ask(engine: Engine) -> None:
    control = engine.tokenize("<|im_start|>", add_special=False, parse_special=True)
    assert len(control) == 1
    fields: dict[str, Any] = {"logit_bias": {control[0]: 100.0}, "record_tokens": True}
    assert recorded(engine, greedy(2, **fields))[0] == ""
    text, records = recorded(engine, greedy(2, **fields, spell_special=True))
    assert text == "<|im_start|>" * 2 == joined(records)


def test_a_token_that_ends_a_text_is_never_spelled(engine: Engine) -> None:
    eos = engine.info().eos_token
    assert eos is not None
    done = engine.generate("Hello", temperature=0.0, logit_bias={eos: 100.0}, spell_special=True)
    assert done.text == ""


def test_a_piece_is_a_tokens_bytes(engine: Engine) -> None:
    (control,) = engine.tokenize("<|im_start|>", add_special=False, parse_special=True)
    assert engine.piece(control) == b"<|im_start|>"
    text = "你 and more"
    assert b"".join(map(engine.piece, engine.tokenize(text, add_special=False))) == text.encode()
    with pytest.raises(InvalidRequest):
        engine.piece(engine.info().vocab_size)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", -1),
        ("logprobs", 21),
        ("logprobs", True),
        ("logprobs", "5"),
        ("record_tokens", 1),
        ("spell_special", "yes"),
    ],
)
def test_a_bad_parameter_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field
