"""The length of a draft: the fastest step there is, by chances and costs that are measured."""

from __future__ import annotations

from itertools import accumulate, product
from operator import mul

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm.engine.speculation.lengths import DraftCost, best_lengths, gained

CHANCES = st.lists(st.floats(0.05, 0.999), max_size=5).map(lambda own: list(accumulate(own, mul)))
COSTS = st.floats(0, 1)


@given(st.lists(CHANCES, min_size=1, max_size=3), COSTS, COSTS)
def test_no_other_lengths_make_a_step_faster(
    chances: list[list[float]], fixed: float, each: float
) -> None:
    lengths, speed = best_lengths(chances, fixed, each)
    every = product(*(range(len(own) + 1) for own in chances))
    fastest = max(gained(chances, n, fixed, each) if any(n) else 1.0 for n in every)
    assert speed == pytest.approx(max(1.0, fastest))
    if any(lengths):
        assert gained(chances, lengths, fixed, each) == pytest.approx(speed)
    else:
        assert speed == 1.0


def test_what_drafts_cost_is_learned_in_both_parts() -> None:
    cost = DraftCost(fixed=0.001, each=0.001)
    for drafted in [2, 9, 4, 1, 16, 7, 3, 12] * 60:
        cost.observe(drafted, 0.004 + 0.0045 * drafted)
    fixed, each = cost.relative(step_s=0.01)
    assert fixed == pytest.approx(0.4, rel=0.05) and each == pytest.approx(0.45, rel=0.05)


def test_drafts_are_short_until_their_cost_was_measured() -> None:
    cost, trusted = DraftCost(fixed=0.001, each=0.001), []
    for _ in range(8):
        trusted.append(cost.trusted)
        cost.observe(cost.trusted, 0.01 * cost.trusted)
    assert trusted == [2, 4, 8, 16, 32, 64, 64, 64]
    assert cost.relative(step_s=0.01)[1] > 0.5


def test_one_delay_changes_little() -> None:
    cost = DraftCost(fixed=0.001, each=0.002)

    def seconds(drafted: int) -> float:
        fixed, each = cost.relative(1.0)
        return fixed + each * drafted

    for _ in range(10):
        cost.observe(4, seconds(4))
    for drafted in (1, 4, 16):
        before = seconds(drafted)
        cost.observe(drafted, 60.0)
        assert before < seconds(drafted) <= 1.11 * before
    for _ in range(200):
        cost.observe(4, -60.0)
    assert seconds(4) < 1e-3
