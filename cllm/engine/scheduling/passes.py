"""Which sequences of a step llama.cpp evaluates in one pass, so that attention gets whole tiles."""

from __future__ import annotations

from cllm.engine.sequence import Sequence, slot_of

TILE = 64
"""Rows of a sequence that llama.cpp's flash attention computes together on a CPU, if a pass has at
least so many of it; fewer are computed one by one."""

Plan = list[tuple[Sequence, int]]
"""Sequences, and the number of tokens to decode of each."""


def in_passes(plan: Plan, ubatch: int) -> Plan:
    """Order a step of a split cache so that each pass computes attention in tiles, if it can.

    A pass takes slots whose numbers follow each other, and equally many tokens of each: as many as
    the shortest has, at most `ubatch` in all. If these are fewer than a tile, attention goes row by
    row, as it would for the rest of eight prompts of 82 tokens behind the first 64 of each. A slot
    with a lower number than the one before it in the batch begins another pass.
    """
    passes: list[Plan] = []
    for sequence, count in sorted(plan, key=lambda item: slot_of(item[0]).id):
        if passes:
            last = passes[-1]
            before = last[-1][1]
            if max(before, count) < TILE or (before == count and (len(last) + 1) * count <= ubatch):
                last.append((sequence, count))
                continue
        passes.append([(sequence, count)])
    return [item for each in reversed(passes) for item in each]


def whole_passes(count: int, ubatch: int) -> int:
    """So many tokens of a prompt that no pass has fewer than a tile; the rest is a tile."""
    return count - TILE if count > ubatch and 0 < count % ubatch < TILE else count
