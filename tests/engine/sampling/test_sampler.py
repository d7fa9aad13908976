"""Tokens are chosen as the parameters say, reproducibly, and as llama.cpp's own samplers would."""

from __future__ import annotations

import ctypes
import math
from array import array
from dataclasses import replace
from typing import Any

import llama_cpp.llama_cpp as llama_c
import numpy as np
import pytest

from cllm.engine import Engine, InvalidRequest, SamplingParams
from cllm.engine.errors import EngineError
from cllm.engine.llama import CANDIDATE, FloatArray, SamplerChain
from cllm.engine.sampling.params import SAMPLERS
from cllm.engine.sampling.prefilter import candidates, candidates_together, greatest
from cllm.engine.sampling.sampler import TokenSampler, folded_seed
from tests.engine.engine_helpers import finished, greedy

N_VOCAB = 20_000


class NoVocab:
    n_tokens = N_VOCAB

    def eog_tokens(self) -> Any:
        return np.array([7, 9], dtype=np.int32)


def sampler(**fields: Any) -> TokenSampler:
    return TokenSampler(SamplingParams(**fields), NoVocab())  # type: ignore[arg-type]


def logits(seed: int, scale: float = 4.0, n_vocab: int = N_VOCAB) -> FloatArray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n_vocab) * scale).astype(np.float32)


def everything(row: FloatArray) -> Any:
    records = np.empty(len(row), dtype=CANDIDATE)
    records["id"], records["logit"] = np.arange(len(row)), row
    return records


def test_greedy_takes_the_greatest_logit() -> None:
    row = logits(1)
    assert sampler(temperature=0.0).choose(row.copy(), array("i", [1])) == int(row.argmax())


@pytest.mark.parametrize("top_k", [1, 5, 40, 300])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.9, 0.0), (0.95, 0.05), (0.3, 0.3)])
def test_few_candidates_give_the_same_tokens_as_all(top_k: int, top_p: float, min_p: float) -> None:
    params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p, temperature=1.3)
    links = [("top_k", (top_k,)), ("top_p", (top_p, 1)), ("min_p", (min_p, 1)), ("temp", (1.3,))]
    ours, theirs = (SamplerChain([*links, ("dist", (77,))]) for _ in range(2))
    for seed in range(100):
        row = logits(seed)
        few = candidates(row, params, "top_k")
        assert len(few) < len(row)
        assert ours.choose(few) == theirs.choose(everything(row))
    ours.close()
    theirs.close()


@pytest.mark.parametrize("n_vocab", [2**16, 151_936 + 33])
@pytest.mark.parametrize("top_k", [1, 40, 500])
@pytest.mark.parametrize("scale", [0.0, 0.01, 4.0])
def test_no_great_logit_of_a_large_vocabulary_is_missed(
    n_vocab: int, top_k: int, scale: float
) -> None:
    row = np.round(logits(top_k, scale, n_vocab), 1)  # with ties
    row[-1] = row[5] = 20.0  # also behind the last whole group
    row[7::640] = -np.inf
    found = greatest(row, top_k)
    assert {5, n_vocab - 1} <= set(found.tolist())
    assert (np.diff(found) > 0).all()
    assert set((row > np.sort(row)[-top_k]).nonzero()[0].tolist()) <= set(found.tolist())
    assert scale < 1 or len(found) <= 4 * top_k + 100


@pytest.mark.parametrize("n_vocab", [N_VOCAB, 2**17 + 33])
@pytest.mark.parametrize("top_k", [1, 40, 1000])
@pytest.mark.parametrize("change", ["none", "tail", "ties", "excluded", "nan"])
def test_rows_together_have_the_candidates_of_each_alone(
    n_vocab: int, top_k: int, change: str
) -> None:
    rows = np.stack([logits(seed, n_vocab=n_vocab) for seed in range(3)])
    if change == "tail":
        rows[1, -1] = 50.0
    elif change == "ties":
        rows[1] = 0.0
    elif change == "excluded":
        rows[1, 3:] = -np.inf
    elif change == "nan":
        rows[1, 100] = np.nan
    params = SamplingParams(top_k=top_k)
    expected = [candidates(row, params, "top_k") for row in rows]
    for found, wanted in zip(candidates_together(rows, top_k), expected, strict=True):
        assert found["id"].tolist() == wanted["id"].tolist()
        assert found["logit"].tolist() == wanted["logit"].tolist()


def test_a_nan_among_the_great_logits_of_a_large_vocabulary_does_not_hide_others() -> None:
    row = logits(1, n_vocab=2**17)
    row[3], row[3 + 2**11] = np.nan, 30.0  # of one group
    assert 3 + 2**11 in greatest(row, 40)
    row[:] = np.nan
    with pytest.raises(EngineError, match="not a number"):
        sampler(top_k=40).choose(row, array("i", [1]))


@pytest.mark.parametrize(("top_p", "min_p"), [(0.9, 0.0), (0.5, 0.1), (1.0, 0.1), (1.0, 0.0)])
def test_without_top_k_the_nucleus_is_llama_cpps(top_p: float, min_p: float) -> None:
    mine = sampler(top_k=0, top_p=top_p, min_p=min_p, temperature=0.9, seed=5)
    links = [("top_p", (top_p, 1)), ("min_p", (min_p, 1)), ("temp", (0.9,))]
    theirs = SamplerChain([*links, ("dist", (folded_seed(5),))])
    for seed in range(50):
        row = logits(seed)
        expected = theirs.choose(everything(row))
        assert mine.choose(row.copy(), array("i", [1])) == expected
    mine.close()
    theirs.close()


def test_penalties_are_llama_cpps() -> None:
    repetition, presence, frequency = 1.3, 0.7, 0.4
    tokens = array("i", [3, 5, 5, 8, 8, 8, *range(100, 140)] * 3)
    row = logits(3)
    mine = row.copy()
    sampler(
        temperature=0.0,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    ).choose(mine, tokens)

    theirs = llama_c.llama_sampler_init_penalties(N_VOCAB, 64, repetition, frequency, presence)
    for token in tokens:
        llama_c.llama_sampler_accept(theirs, token)
    records = everything(row)
    whole = llama_c.llama_token_data_array()
    whole.data = ctypes.cast(records.ctypes.data, llama_c.llama_token_data_p)
    whole.size, whole.selected, whole.sorted = len(row), -1, False
    llama_c.llama_sampler_apply(theirs, ctypes.byref(whole))
    llama_c.llama_sampler_free(theirs)
    np.testing.assert_allclose(mine, records["logit"], rtol=1e-6)
    assert (mine != row).sum() > 10


def test_a_bias_is_added_and_minus_infinity_forbids() -> None:
    row = logits(4)
    best = int(row.argmax())
    never = sampler(temperature=0.0, logit_bias={best: -math.inf})
    assert never.choose(row.copy(), array("i", [1])) != best
    always = sampler(temperature=0.0, logit_bias={11: 100.0})
    assert always.choose(row.copy(), array("i", [1])) == 11


def test_ignore_eos_forbids_every_token_that_ends_a_text() -> None:
    row = logits(5)
    row[[7, 9]] = 100.0
    most = sampler(temperature=0.0, ignore_eos=True).choose(row.copy(), array("i", [1]))
    assert most not in (7, 9)
    chosen = sampler(temperature=3.0, ignore_eos=True, seed=1)
    assert {chosen.choose(row.copy(), array("i", [1])) for _ in range(50)}.isdisjoint({7, 9})
    chosen.close()


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.0}, {}, {"top_k": 0}, {"top_k": 0, "top_p": 1.0, "min_p": 0.0}]
)
def test_a_model_that_gives_no_numbers_is_an_error(fields: dict[str, Any]) -> None:
    row = np.full(N_VOCAB, np.nan, dtype=np.float32)
    broken = sampler(**fields)
    with pytest.raises(EngineError, match="NaN"):
        broken.choose(row, array("i", [1]))
    broken.close()


def test_the_extremes_of_every_parameter_work() -> None:
    for fields in (
        {"temperature": 1e-3},
        {"temperature": 100.0},
        {"top_p": 0.0},
        {"min_p": 1.0},
        {"top_k": 0, "top_p": 0.0},
        {"top_k": 2**31 - 1},
        {"logit_bias": dict.fromkeys(range(N_VOCAB - 1), -math.inf)},
    ):
        chosen = sampler(**fields)
        assert 0 <= chosen.choose(logits(6), array("i", [1])) < N_VOCAB
        chosen.close()


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32 - 1, 2**32, 2**63, -(2**63), 2**64 - 1])
def test_every_64_bit_seed_is_a_fixed_one(seed: int) -> None:
    assert 0 <= folded_seed(seed) < 2**32 - 1, "the greatest 32-bit value would mean random"
    assert folded_seed(seed) == folded_seed(seed)


def test_the_same_seed_gives_the_same_text(engine: Engine) -> None:
    params = SamplingParams(max_tokens=40, temperature=1.5, seed=1234, ignore_eos=True)
    texts = {finished(engine.submit("Hello", params)).text for _ in range(4)}
    assert len(texts) == 1
    other = finished(engine.submit("Hello", replace(params, seed=1235))).text
    assert other not in texts


def test_without_a_seed_texts_differ(engine: Engine) -> None:
    params = SamplingParams(max_tokens=40, temperature=1.5, ignore_eos=True)
    assert len({finished(engine.submit("Hello", params)).text for _ in range(4)}) > 1


def test_a_seed_gives_the_same_text_beside_other_requests(engine: Engine) -> None:
    params = SamplingParams(max_tokens=60, temperature=1.2, seed=9, ignore_eos=True)
    alone = finished(engine.submit("Hello", params)).text
    others = [engine.submit(f"Another {i}", SamplingParams(max_tokens=90)) for i in range(6)]
    assert finished(engine.submit("Hello", params)).text == alone
    for other in others:
        finished(other)


def test_a_repetition_penalty_makes_texts_less_repetitive(engine: Engine) -> None:
    def distinct(**fields: Any) -> int:
        generation = engine.submit("Hello", greedy(100, **fields))
        return len(set(engine.tokenize(finished(generation).text)))

    assert distinct(frequency_penalty=2.0, repetition_penalty=1.5) > distinct()


def chosen(engine: Engine, **fields: Any) -> str:
    params = SamplingParams(**{"max_tokens": 60, "seed": 3, "ignore_eos": True, **fields})
    return finished(engine.submit("Hello", params)).text


@pytest.mark.parametrize(
    "fields",
    [
        {"typical_p": 0.2},
        {"top_n_sigma": 0.5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"dry_multiplier": 5.0, "dry_allowed_length": 1},
        {"dynatemp_range": 1.0, "temperature": 1.0},
        {"mirostat": 1},
        {"mirostat": 2},
        {"penalty_last_n": -1, "frequency_penalty": 1.0},
        {"samplers": ("temperature",)},
        {"samplers": ("temperature", "top_k"), "temperature": 3.0},
    ],
    ids=str,
)
def test_every_sampler_changes_the_text_and_keeps_to_its_seed(
    engine: Engine, fields: dict[str, Any]
) -> None:
    text = chosen(engine, **fields)
    assert text == chosen(engine, **fields)
    assert text != chosen(engine)


def test_a_temperature_of_0_that_may_rise_is_not_greedy(engine: Engine) -> None:
    assert chosen(engine, temperature=0.0, dynatemp_range=2.0, dynatemp_exponent=0.1) != chosen(
        engine, temperature=0.0
    )
    off = {"samplers": ("top_k",)}
    assert chosen(engine, temperature=0.0, dynatemp_range=2.0, **off) == chosen(
        engine, temperature=0.0
    )


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_takes_the_temperature_as_it_is(engine: Engine, version: int) -> None:
    fixed = chosen(engine, mirostat=version, temperature=1.0)
    assert chosen(engine, mirostat=version, temperature=1.0, dynatemp_range=1.0) == fixed


def test_a_sampler_that_is_not_listed_does_nothing(engine: Engine) -> None:
    everything = [name for name in SAMPLERS if name not in ("xtc", "dry", "penalties")]
    off = {"xtc_probability": 1.0, "dry_multiplier": 5.0, "frequency_penalty": 2.0}
    assert chosen(engine, **off, samplers=everything) == chosen(engine)


def test_what_is_not_looked_back_on_is_not_penalized(engine: Engine) -> None:
    assert chosen(engine, frequency_penalty=2.0, penalty_last_n=0) == chosen(engine)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_dry_breaks_repetition(engine: Engine, temperature: float) -> None:
    def repeated(**fields: Any) -> int:
        tokens = engine.tokenize(chosen(engine, temperature=temperature, max_tokens=100, **fields))
        triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
        return len(triples) - len(set(triples))

    assert repeated(dry_multiplier=5.0) < repeated()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_p", 1.01),
        ("top_p", -0.01),
        ("top_k", -2),
        ("top_k", 1.0),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", math.inf),
        ("frequency_penalty", None),
        ("seed", 2**64),
        ("seed", "1"),
        ("stop", ("",)),
        ("stop", ("x" * 2000,)),
        ("stop", ("x",) * 33),
        ("stop", (1,)),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", [1]),
        ("ignore_eos", 1),
        ("penalty_last_n", -2),
        ("penalty_last_n", 2**15 + 1),
        ("typical_p", 1.1),
        ("top_n_sigma", math.nan),
        ("xtc_probability", -0.1),
        ("xtc_threshold", 2),
        ("dry_multiplier", -1),
        ("dry_base", 0.5),
        ("dry_allowed_length", 1.5),
        ("dry_penalty_last_n", "all"),
        ("dry_sequence_breakers", ("",)),
        ("dynatemp_range", -1),
        ("dynatemp_exponent", math.inf),
        ("mirostat", 3),
        ("mirostat", True),
        ("mirostat_tau", -1),
        ("mirostat_eta", None),
        ("samplers", "top_k"),
        ("samplers", ("top_k", "top_k")),
        ("samplers", ("top_q",)),
    ],
)
def test_a_bad_parameter_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field
    assert field in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_an_unknown_parameter_is_named(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="temprature"):
        engine.generate("Hello", temprature=1.0)


def test_a_bias_for_a_token_beyond_the_vocabulary_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.submit("Hello", SamplingParams(logit_bias={engine.info().vocab_size: 1.0}))
    assert caught.value.field == "logit_bias"


def test_one_stop_string_may_be_given_bare() -> None:
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore[arg-type]
