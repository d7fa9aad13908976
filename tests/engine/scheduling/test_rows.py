"""Rows of a step are filtered together, and what is chosen is what each request gets alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from cllm.engine import Engine, EngineError, SamplingParams
from cllm.engine.scheduling import rows
from cllm.engine.sequence import Sequence
from tests.engine.engine_helpers import Loader, finished, held

TOP_K = SamplingParams(max_tokens=30, seed=1)
GREEDY = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """What the calls of a function return."""
    function, results = getattr(owner, name), []

    def called(*arguments: Any) -> Any:
        results.append(function(*arguments))
        return results[-1]

    monkeypatch.setattr(owner, name, called)
    return results


def test_greedy_rows_are_searched_in_one_pass(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(parallel=4, ctx_size=512, draft_max=0)
    prompts = [f"{count} sheep" for count in range(4)]
    alone = [finished(engine.submit(prompt, GREEDY)).text for prompt in prompts]
    passes = counted(monkeypatch, rows, "best_together")
    with held(engine):
        together = [engine.submit(prompt, GREEDY) for prompt in prompts]
    assert [finished(generation).text for generation in together] == alone
    assert Counter(map(len, passes))[4] > 20


@pytest.mark.parametrize("reason", ["NaN", "cannot be prepared"])
def test_a_damaged_row_ends_its_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    prepare, broken = Sequence.prepare, list[Sequence]()

    def damaged(sequence: Sequence, row: Any) -> int:
        found = prepare(sequence, row)
        if len(sequence.tokens) > sequence.n_prompt + 3 and (not broken or sequence in broken):
            broken[:] = [sequence]
            row[5] = np.nan
            if reason != "NaN":
                raise ValueError(reason)
        return found

    monkeypatch.setattr(Sequence, "prepare", damaged)
    asked = [engine.submit(f"{count} cows", GREEDY) for count in range(3)]
    failed = 0
    for generation in asked:
        try:
            assert finished(generation).usage.completion_tokens == 30
        except EngineError as error:
            failed += reason in str(error)
    assert failed == 1


def test_the_search_near_the_best_token_rests_where_it_was_in_vain(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = finished(engine.submit("Hello", TOP_K)).text
    monkeypatch.setattr(rows, "near_together", lambda *arguments: None)
    searches = counted(monkeypatch, rows, "near_together")
    assert finished(engine.submit("Hello", TOP_K)).text == expected
    assert 1 <= len(searches) <= 5  # in 30 steps: after 1, 3, 7 and 15 others
    monkeypatch.undo()
    monkeypatch.setattr(rows, "NEAR", 0.001)  # so that it finds few
    searches = counted(monkeypatch, rows, "near_together")
    for _ in range(4):
        finished(engine.submit("Hello", TOP_K))
    assert len(searches) > 30  # more and more often
