"""The samplers in Python choose as llama.cpp's chain with the same seed does, token for token."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cllm.engine import SamplingParams
from cllm.engine.llama import CANDIDATE, FloatArray, SamplerChain
from cllm.engine.sampling import drawing
from cllm.engine.sampling.drawing import NEAR, Drawer, Uniforms
from cllm.engine.sampling.prefilter import Near, candidates, candidates_together, near_together
from cllm.engine.sampling.sampler import TokenSampler, folded_seed

N_VOCAB = 4096
NOTHING_BEFORE = array("i", [1])


class NoVocab:
    n_tokens = N_VOCAB

    def eog_tokens(self) -> Any:
        return np.array([7, 9], dtype=np.int32)


def sampler(params: SamplingParams) -> TokenSampler:
    return TokenSampler(params, NoVocab())  # type: ignore[arg-type]


def llama_cpps(params: SamplingParams) -> SamplerChain:
    """The chain that common/sampling.cpp of llama.cpp builds, with nothing left out."""
    links = {
        "top_k": ("top_k", (params.top_k,)),
        "top_p": ("top_p", (params.top_p, 1)),
        "min_p": ("min_p", (params.min_p, 1)),
        "temperature": ("temp", (params.temperature,)),
    }
    usual = [link for name, link in links.items() if name in params.samplers]
    return SamplerChain([*usual, ("dist", (folded_seed(params.seed),))])


def rows_of(rng: np.random.Generator, kind: str, count: int) -> FloatArray:
    rows = rng.standard_normal((count, N_VOCAB)) * rng.choice([0.3, 1.0, 2.0, 4.0])
    if kind == "peaked":
        rows[:, rng.integers(N_VOCAB)] += 20
    elif kind == "nearly":  # a few tokens near the best
        rows[:, rng.integers(0, N_VOCAB, 8)] += 12
    elif kind == "ties":
        rows = np.round(rows * 2) / 2
    elif kind == "half":  # as from 16-bit numbers
        rows = rows.astype(np.float16)
    elif kind == "constrained":
        rows[:, rng.integers(1, 60) :] = -np.inf
    elif kind == "one":
        rows[:, 1:] = -np.inf
    elif kind == "large":
        rows = rows * 30 + rng.choice([-250, 250])
    elif kind == "huge":
        rows = rows * 1e30
    elif kind == "infinite":
        rows[:, 5] = np.inf
    elif kind == "steps":  # as far apart as the usual min_p reaches
        rows = np.float32(np.log(0.05)) * rng.integers(0, 3, rows.shape)
    return np.asarray(rows, dtype=np.float32)


def found_in(rows: FloatArray, top_k: int) -> Sequence[Near | NDArray[np.void]]:
    """As the scheduler finds candidates."""
    near = near_together(rows, NEAR)
    return candidates_together(rows, top_k) if near is None else near


KINDS = (
    "plain",
    "peaked",
    "nearly",
    "ties",
    "half",
    "constrained",
    "one",
    "large",
    "huge",
    "steps",
)


def random_params(rng: random.Random) -> SamplingParams:
    among = ("top_k", "top_p", "min_p", "temperature")
    samplers = tuple(n for n in among if n in ("top_k", "min_p") or rng.random() < 0.8)
    return SamplingParams(
        samplers=samplers,
        top_k=rng.choice([1, 2, 40, 40, 40, 64, 256]),
        top_p=rng.choice([0.0, 0.3, 0.5, 0.9, 0.95, 0.95, 0.999, 0.99999999, 1.0]),
        min_p=rng.choice([0.001, 0.01, 0.05, 0.05, 0.3, 1.0]),
        temperature=rng.choice([0.01, 0.5, 0.8, 0.8, 1.0, 1.5, 100.0]),
        seed=rng.randrange(2**64),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_llama_cpps_chain(kind: str) -> None:
    """Whatever the parameters; the draws stay in step where llama.cpp chooses."""
    numbers, rng = np.random.default_rng(KINDS.index(kind)), random.Random(kind)
    for _ in range(25):
        params = random_params(rng)
        mine, theirs = sampler(params), llama_cpps(params)
        assert mine._drawer is not None
        for _ in range(4):
            rows = rows_of(numbers, kind, 4)
            expected = [theirs.choose(candidates(row, params, "top_k")) for row in rows]
            assert mine.filter == -params.top_k
            found = found_in(rows, params.top_k)
            assert [mine.choose_among(each, NOTHING_BEFORE) for each in found] == expected
            row = rows_of(numbers, kind, 1)[0]
            token = theirs.choose(candidates(row, params, "top_k"))
            assert mine.choose(row, NOTHING_BEFORE) == token
        mine.close()
        theirs.close()


def test_llama_cpp_is_seldom_asked_for_usual_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = sampler(SamplingParams(seed=5)), llama_cpps(SamplingParams(seed=5))
    rows = rows_of(np.random.default_rng(1), "nearly", 64)
    by_llama_cpp, by_chain = 0, TokenSampler._by_chain

    def counted(*arguments: Any) -> int:
        nonlocal by_llama_cpp
        by_llama_cpp += 1
        return by_chain(*arguments)

    monkeypatch.setattr(TokenSampler, "_by_chain", counted)
    for _ in range(40):
        for row, found in zip(rows, found_in(rows, 40), strict=True):
            few = candidates(row, SamplingParams(), "top_k")
            assert mine.choose_among(found, NOTHING_BEFORE) == theirs.choose(few)
    assert by_llama_cpp < 40 * 64 / 20
    mine.close()
    theirs.close()


@pytest.mark.parametrize("distance", [0.0, 1e-7, 1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_doubt_is_where_rounding_decides(temperature: float, distance: float) -> None:
    """With limits right at a token Python answers as llama.cpp does, or not at all."""
    numbers, answers, doubts = np.random.default_rng(3), 0, 0
    for seed in range(100):
        logits = np.sort(numbers.standard_normal(12).astype(np.float32) * 2)[::-1]
        weights = np.exp(logits - logits[0])
        cut = int(numbers.integers(1, 11))
        away = 1 + distance * (-1) ** seed
        top_p = float((np.cumsum(weights) / weights.sum())[cut]) * away
        min_p = max(0.001, float(weights[cut]) * away)
        for fields in ({"top_p": top_p, "min_p": 0.001}, {"top_p": 1.0, "min_p": min_p}):
            params = SamplingParams(top_k=12, temperature=temperature, seed=seed, **fields)
            drawer, theirs = Drawer.of(params, seed, N_VOCAB), llama_cpps(params)
            assert drawer is not None
            records = np.zeros(12, dtype=CANDIDATE)
            for _ in range(8):
                records["id"], records["logit"] = np.arange(12), logits
                expected, at = theirs.choose(records[:12].copy()), drawer.draw(logits.tolist())
                drawer.drawn += 1
                assert at in (None, expected)
                answers += at is not None
                doubts += at is None
            theirs.close()
    assert doubts if distance < 1e-7 else answers > doubts or distance < 1e-5


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 2])
def test_random_numbers_are_llama_cpps(seed: int) -> None:
    """More of them than are made at once."""
    count, uniforms, theirs = 4096, Uniforms(seed), SamplerChain([("dist", (seed,))])
    records = np.zeros(count, dtype=CANDIDATE)
    records["id"] = np.arange(count)
    for index in range(600):
        assert theirs.choose(records) == np.ceil(uniforms.at(index) * count) - 1
    theirs.close()


@pytest.fixture
def another_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A C++ library that makes other numbers from the same words."""
    drawing._draws_as_llama_cpp.cache_clear()
    usual = Uniforms.at
    monkeypatch.setattr(Uniforms, "at", lambda self, index: 1 - usual(self, index))
    yield
    drawing._draws_as_llama_cpp.cache_clear()


@pytest.mark.usefixtures("another_library")
def test_where_random_numbers_are_others_llama_cpp_chooses() -> None:
    mine, theirs = sampler(SamplingParams(seed=5)), llama_cpps(SamplingParams(seed=5))
    assert mine._drawer is None
    for row in rows_of(np.random.default_rng(2), "plain", 50):
        expected = theirs.choose(candidates(row, SamplingParams(), "top_k"))
        assert mine.choose(row.copy(), NOTHING_BEFORE) == expected
    mine.close()
    theirs.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"samplers": ("temperature", "top_k")},
        {"samplers": ("top_k", "min_p", "top_p")},
        {"top_k": 0},
        {"min_p": 0.0},
        {"min_p": 0.0001},
        {"min_keep": 2},
        {"mirostat": 2},
        {"typical_p": 0.5},
        {"xtc_probability": 0.5},
        {"dynatemp_range": 0.5},
        {"logprobs": 1, "sampled_logprobs": True},
    ],
    ids=str,
)
def test_llama_cpp_chooses_where_its_samplers_are_not_the_usual_ones(
    fields: dict[str, Any],
) -> None:
    assert Drawer.of(SamplingParams(**fields), 1, N_VOCAB) is None


def test_llama_cpp_chooses_from_a_large_vocabulary() -> None:
    assert Drawer.of(SamplingParams(), 1, 49_152) is None
