"""mirostat and typical_p choose from few candidates as llama.cpp does from the whole row."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cllm.engine import SamplingParams
from cllm.engine.errors import EngineError
from cllm.engine.llama import FloatArray, SamplerChain
from cllm.engine.llama.samplers import Link
from cllm.engine.sampling.prefilter import MIROSTAT_M
from cllm.engine.sampling.sampler import TokenSampler
from cllm.engine.sampling.survivors import first_mirostat, typical, unsurprising
from tests.engine.sampling.test_sampler import everything, logits

N_VOCAB = 20_000
ROWS = 50
SEED = 7


class Vocabulary:
    n_tokens = N_VOCAB

    def eog_tokens(self) -> Any:
        return np.array([], dtype=np.int32)


def a_row(number: int) -> FloatArray:
    """Like a model's: most logits far below a few that stand out, sometimes only one."""
    row = logits(number, scale=2.0, n_vocab=N_VOCAB)
    dice = np.random.default_rng(number)
    great = dice.choice(N_VOCAB, size=1 + 10 * (number % 20), replace=False)
    row[great] += dice.uniform(8, 16, size=len(great)).astype(np.float32)
    return row


def assert_same(params: SamplingParams, links: list[Link]) -> None:
    ours = TokenSampler(params, Vocabulary())  # type: ignore[arg-type]
    theirs = SamplerChain(links)
    for number in range(ROWS):
        row = a_row(number)
        chosen = ours.choose(row.copy(), array("i", [1]))
        assert chosen == theirs.choose(everything(row)), number
    ours.close()
    theirs.close()


@pytest.mark.parametrize("temperature", [0.8, 1.0, 1.5])
@pytest.mark.parametrize(("tau", "eta"), [(2.0, 0.1), (3.0, 0.5), (5.0, 0.1), (10.0, 1.0)])
@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_gives_the_tokens_of_the_whole_row(
    version: int, tau: float, eta: float, temperature: float
) -> None:
    params = SamplingParams(
        mirostat=version, mirostat_tau=tau, mirostat_eta=eta, temperature=temperature, seed=SEED
    )
    second: Link = ("mirostat_v2", (SEED, tau, eta))
    first: Link = ("mirostat", (N_VOCAB, SEED, tau, eta, MIROSTAT_M))
    assert_same(params, [("temp", (temperature,)), first if version == 1 else second])


@pytest.mark.parametrize("typical_p", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("then", [("temperature",), ("top_p", "temperature")])
def test_typical_p_gives_the_tokens_of_the_whole_row(
    typical_p: float, then: tuple[str, ...]
) -> None:
    params = SamplingParams(
        typical_p=typical_p, top_p=0.9, temperature=0.8, samplers=("typical_p", *then), seed=SEED
    )
    top_p: list[Link] = [("top_p", (0.9, 1))] if "top_p" in then else []
    assert_same(params, [("typical", (typical_p, 1)), *top_p, ("temp", (0.8,)), ("dist", (SEED,))])


@pytest.mark.parametrize(
    "survivors",
    [
        lambda row: unsurprising(row, 1.0, 6.0),
        lambda row: first_mirostat(row, 1.0, 6.0, MIROSTAT_M),
        lambda row: None if (found := typical(row, 0.9)) is None else found[0],
    ],
)
def test_nearly_all_rows_are_cut_to_a_part(survivors: Callable[[FloatArray], Any]) -> None:
    found = [survivors(a_row(number)) for number in range(ROWS)]
    few = [each for each in found if each is not None and len(each) < N_VOCAB // 2]
    assert len(few) > 0.8 * ROWS


@pytest.mark.parametrize("fields", [{"mirostat": 1}, {"mirostat": 2}, {"typical_p": 0.5}])
def test_a_row_that_is_not_a_number_is_an_error(fields: dict[str, Any]) -> None:
    params = SamplingParams(samplers=("typical_p", "temperature"), **fields)
    ours = TokenSampler(params, Vocabulary())  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="not a number"):
        ours.choose(np.full(N_VOCAB, np.nan, dtype=np.float32), array("i", [1]))


@pytest.mark.parametrize("fields", [{"mirostat": 1}, {"mirostat": 2}, {"typical_p": 0.5}])
def test_excluded_tokens_are_never_chosen(fields: dict[str, Any]) -> None:
    params = SamplingParams(samplers=("typical_p", "temperature"), seed=SEED, **fields)
    ours = TokenSampler(params, Vocabulary())  # type: ignore[arg-type]
    for number in range(20):
        row = a_row(number)
        row[200:] = -np.inf
        assert ours.choose(row, array("i", [1])) < 200
