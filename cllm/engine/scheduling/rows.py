"""Which rows of a step's logits are filtered together, in one pass of numpy."""

from __future__ import annotations

from cllm.engine.llama import FloatArray
from cllm.engine.sampling.drawing import NEAR
from cllm.engine.sampling.prefilter import (
    Found,
    Near,
    best_together,
    candidates_together,
    near_together,
)
from cllm.engine.sampling.sampler import GREEDY
from cllm.engine.sequence import Sequence

_MOST_FLAT = 31  # steps


class RowFilter:
    """Finds the candidates of a step's rows. Engine thread only."""

    def __init__(self) -> None:
        # Where many tokens are near the best one, the search for these is in vain. So the next
        # steps do without it: 1, 3, 7 and so on, and half as many after a success.
        self._rest = 0  # steps without it after the last search
        self._left = 0  # of these, how many are still to come
        self._wanted = self._useful = False  # the search, in this step

    def filtered(
        self, outputs: list[tuple[Sequence, int, int]], rows: FloatArray
    ) -> dict[int, Found | Exception]:
        """What can be chosen in rows that are greedy or whose first sampler is top_k, by row.

        Adjacent rows that want the same filter go through it together. Where a row cannot be
        prepared, that is what was raised.
        outputs: sequences, each with its rows of scored tokens and of others.
        """
        found: dict[int, Found | Exception] = {}
        begin = at = before = 0  # rows from `begin` to `at` have the filter `before`
        alike: list[Sequence] = []  # their sequences

        def take() -> None:
            if before:
                together = self._together(alike, rows[begin:at], before)
                found.update(zip(range(begin, at), together, strict=True))

        for sequence, scored, last in outputs:
            wanted = 0
            try:
                if last and not scored:
                    wanted = sequence.prepare(rows[at])
            except Exception as error:
                found[at] = error
            if wanted != before:
                take()
                begin, before = at, wanted
                alike.clear()
            alike.append(sequence)
            at += scored + last
        take()
        if self._wanted:
            self._note_search()
        return found

    def _together(self, sequences: list[Sequence], rows: FloatArray, wanted: int) -> list[Found]:
        if wanted == GREEDY:
            return [*best_together(rows)]
        if wanted < 0:
            near = self._near(rows)
            if near is not None:
                return [*near]
            for sequence, row in zip(sequences, rows, strict=True):
                sequence.exclude(row)
        return [*candidates_together(rows, abs(wanted))]

    def _near(self, rows: FloatArray) -> list[Near] | None:
        self._wanted = True
        near = None if self._left else near_together(rows, NEAR)
        self._useful |= near is not None
        return near

    def _note_search(self) -> None:
        """A step is over in which the search was wanted."""
        if self._left:
            self._left -= 1
        else:
            rest = self._rest
            self._rest = rest // 2 if self._useful else min(2 * rest + 1, _MOST_FLAT)
            self._left = self._rest
        self._wanted = self._useful = False
