"""The LoRA adapters of an engine: which there are, which apply by default, and sets of them."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cllm.engine.errors import InvalidRequest
from cllm.engine.sharing import AdapterSet

_FLOAT = struct.Struct("<f")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A loaded adapter. Its id is its place in the list.

    digest: tells its file from others. metadata: of the file.
    """

    path: Path
    digest: str
    metadata: Mapping[str, str]


class Adapters:
    """The adapters of an engine, in their order, and the scales that apply by default. Any thread.

    A set of adapters has their ids and scales, without scales of 0, in the order of the ids; two
    requests with equal sets compute the same.
    """

    __slots__ = ("_defaults", "loaded")

    def __init__(self, loaded: Sequence[Adapter] = (), scales: Sequence[float] = ()) -> None:
        self.loaded = tuple(loaded)
        self._defaults = self.set_of(enumerate(scales))

    @property
    def defaults(self) -> AdapterSet:
        """The set of a request that does not name one."""
        return self._defaults

    @defaults.setter
    def defaults(self, chosen: AdapterSet) -> None:
        self._defaults = chosen

    def set_of(self, given: Iterable[tuple[int, float]], field: str = "lora") -> AdapterSet:
        """The set of these ids and scales; the last scale of an id counts.

        Raises InvalidRequest that names the entry: an unknown id, a scale that is not finite.
        """
        scales: dict[int, float] = {}
        for number, (id_, scale) in enumerate(given):
            if not 0 <= id_ < len(self.loaded):
                raise InvalidRequest(f"{field}[{number}].id", id_, self._expected_id())
            single = _single(scale)
            if not math.isfinite(single):
                expected = "a finite number that fits into 32 bits"
                raise InvalidRequest(f"{field}[{number}].scale", scale, expected)
            scales[id_] = single
        return tuple((id_, scale) for id_, scale in sorted(scales.items()) if scale)

    def _expected_id(self) -> str:
        if not self.loaded:
            return "no adapter, because none is loaded; start with --lora"
        return f"the id of an adapter, from 0 to {len(self.loaded) - 1}"

    def scales(self) -> list[float]:
        """The default scale of each adapter."""
        chosen = dict(self._defaults)
        return [chosen.get(id_, 0.0) for id_ in range(len(self.loaded))]

    def digests(self, chosen: AdapterSet) -> list[tuple[str, float]]:
        """A set by what its files are, which also holds in a later process."""
        return [(self.loaded[id_].digest, scale) for id_, scale in chosen]

    def by_digests(self, digests: Iterable[tuple[str, float]]) -> AdapterSet | None:
        """The set that `digests` describes; None if one of its adapters is not loaded."""
        ids = {adapter.digest: id_ for id_, adapter in enumerate(self.loaded)}
        found = [(ids.get(digest), scale) for digest, scale in digests]
        known = [(id_, scale) for id_, scale in found if id_ is not None]
        return self.set_of(known) if len(known) == len(found) else None


def _single(scale: float) -> float:
    """The scale as llama.cpp computes with it; infinite if it is too large."""
    try:
        value: float = _FLOAT.unpack(_FLOAT.pack(scale))[0]
    except OverflowError:
        return math.inf
    return value
