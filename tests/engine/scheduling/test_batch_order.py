"""The order of prompts in a batch: llama.cpp's division of it, repeated here, keeps whole tiles."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cllm.engine.scheduling.batch_order import batch_order

UBATCH, TILE = 512, 64


def passes(parts: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The tokens of each sequence in each pass, as llama_batch_allocr::split_equal divides them.

    parts: (slot, tokens) in the order of the batch.
    """
    left = dict(parts)
    found = []
    while any(left.values()):
        chosen: list[int] = []
        for slot, _ in parts:
            if left[slot] and (not chosen or slot == chosen[-1] + 1):
                chosen.append(slot)
        each = min(UBATCH // len(chosen), *(left[slot] for slot in chosen))
        for slot in chosen:
            left[slot] -= each
        found.append([each] * len(chosen))
    return found


def ordered(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [parts[index] for index in batch_order(parts, UBATCH, TILE)]


def slots(*counts: int) -> list[tuple[int, int]]:
    return list(enumerate(counts))


@pytest.mark.parametrize("count", [64, 73, 128, 162, 192, 256])
@pytest.mark.parametrize("prompts", range(1, 33))
def test_equal_prompts_are_evaluated_whole_and_as_many_at_once_as_fit(
    prompts: int, count: int
) -> None:
    parts = slots(*[count] * prompts)
    assert all(each == [count] * len(each) for each in passes(ordered(parts)))
    together = UBATCH // count
    assert len(passes(ordered(parts))) == -(-prompts // together)


@pytest.mark.parametrize(
    "counts", [(192, 190, 180), (64, 128, 64), (300, 40, 30, 300), (512, 65, 64, 63, 20, 64)]
)
def test_prompts_of_a_tile_or_more_are_not_cut_by_shorter_neighbors(
    counts: tuple[int, ...],
) -> None:
    found = [each for group in passes(ordered(slots(*counts))) for each in group]
    long = sorted(n for n in counts if n >= TILE)
    assert sorted(n for n in found if n >= TILE) == long


@pytest.mark.parametrize("counts", [(1, 1, 1), (20, 30, 20), (8,) * 16, (63,)])
def test_short_parts_keep_their_order(counts: tuple[int, ...]) -> None:
    assert ordered(slots(*counts)) == slots(*counts)


def test_slots_that_do_not_follow_each_other_are_not_joined() -> None:
    parts = [(0, 64), (1, 64), (3, 64), (4, 20), (6, 20)]
    assert ordered(parts) == [(6, 20), (4, 20), (3, 64), (0, 64), (1, 64)]
