"""The order of a step's sequences in the batch, by which llama.cpp divides it. Pure policy.

llama.cpp evaluates sequences of a split cache together if their slots follow each other in the
batch. It takes equally many tokens of each: as many as the shortest has, and a ubatch divided by
the number of sequences at most. 3 prompts of 192 tokens would become 3 times 170 and 3 times 22.
Neither are whole tiles, and the attention of what lies outside of a tile is computed row by row.
"""

from __future__ import annotations

from collections.abc import Sequence


def batch_order(parts: Sequence[tuple[int, int]], ubatch: int, tile: int) -> list[int]:
    """The indices of `parts` in the order of the batch.

    parts: slots and their numbers of tokens, by ascending slot. tile: tokens whose attention is
    computed together. Parts of a tile or more are evaluated in groups of equal ones that fit into
    a ubatch, in one pass each. Shorter ones stay together, so that they share passes over the
    weights. A group begins where the slots descend.
    """
    groups: list[list[int]] = []
    for index, (slot, count) in enumerate(parts):
        if groups:
            last = groups[-1]
            before, length = parts[last[-1]]
            fits = count == length and (len(last) + 1) * count <= ubatch
            if slot == before + 1 and (fits or max(count, length) < tile):
                last.append(index)
                continue
        groups.append([index])
    return [index for group in reversed(groups) for index in group]
