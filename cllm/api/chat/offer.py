"""The tools of a request, and what follows from them alone: agents send the same with each turn."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from sys import getsizeof

import msgspec

from cllm.engine.recent import Recent

MOST_BYTES = 2**22
"""Memory of what is remembered of all tools, for each template."""


class Offer:
    """Remembers texts that were made of a request's tools, for the same owner and template alone.

    Tools are the same if they are the same as JSON, the order of their entries included.
    """

    __slots__ = ("_key", "_recent", "_size")

    def __init__(self, template: object, owner: tuple[str, ...], tools: Sequence[object]) -> None:
        self._recent = _recent_of(template)
        self._key: Hashable = None
        try:
            written = msgspec.json.encode(tools)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return  # nothing is remembered
        self._key = owner, written
        self._size = 2 * len(written) + sum(map(getsizeof, owner))

    def once(self, about: Hashable, make: Callable[[], str]) -> str:
        """The text that `make` returns; about: what it depends on next to the tools, which
        takes no more memory than these.
        """
        if self._key is None:
            return make()
        key = self._key, about
        text = self._recent.get(key)
        if text is None:
            text = make()
            self._recent.put(key, text, self._size + getsizeof(text))
        return text


@lru_cache(maxsize=8)
def _recent_of(template: object) -> Recent[Hashable, str]:
    return Recent(MOST_BYTES)
