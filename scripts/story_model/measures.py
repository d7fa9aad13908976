"""Measures of a set of stories next to the checker: repetition and copying."""

from __future__ import annotations

import re
from collections.abc import Iterable

GRAM = 8
RUN = {"en": 40, "zh": 60}  # words, or Chinese characters, that count as a copied passage

_UNIT = re.compile(r"[\u4e00-\u9fff]|[^\W\d_]+|\d+")


def units(text: str) -> list[str]:
    """The words, or single Chinese characters, without punctuation and in lower case."""
    return [unit.lower() for unit in _UNIT.findall(text)]


def grams(text: str, length: int = GRAM) -> list[tuple[str, ...]]:
    """All runs of `length` units."""
    found = units(text)
    return [tuple(found[i : i + length]) for i in range(len(found) - length + 1)]


def repeated_share(texts: Iterable[str]) -> float:
    """The share of 8-grams that occur earlier in the same text."""
    total, repeated = 0, 0
    for text in texts:
        found = grams(text)
        total += len(found)
        repeated += len(found) - len(set(found))
    return repeated / max(total, 1)


class Copying:
    """How much of some texts is word for word in a training text that is read once."""

    def __init__(self, texts: list[str], language: str) -> None:
        self._length = RUN[language]
        self._runs = [set(map(hash, grams(text, self._length))) for text in texts]
        self._wanted = set().union(*self._runs)
        self._whole = [tuple(units(text)) for text in texts]
        self._open = set(self._whole)
        self._seen_runs: set[int] = set()
        self._seen_whole: set[tuple[str, ...]] = set()

    def read(self, text: str) -> None:
        """Read one story of the training text."""
        self._seen_runs.update(self._wanted.intersection(map(hash, grams(text, self._length))))
        whole = tuple(units(text))
        if whole in self._open:
            self._seen_whole.add(whole)

    def verbatim_share(self) -> float:
        """The share of texts that the training text contains whole."""
        return sum(w in self._seen_whole for w in self._whole) / max(len(self._whole), 1)

    def passage_share(self) -> float:
        """The share of texts with a run of `RUN` units that the training text contains."""
        return sum(bool(r & self._seen_runs) for r in self._runs) / max(len(self._runs), 1)
