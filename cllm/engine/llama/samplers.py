"""llama.cpp's samplers, and chains of them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface
import numpy as np
from numpy.typing import NDArray

from cllm.engine.llama.held import held
from cllm.engine.llama.vocab import Vocab

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data."""

_apply = held(C.llama_sampler_apply)
_accept = held(C.llama_sampler_accept)

_BRIEF = 1024  # candidates; more take long enough to let other threads run

Link = tuple[str, tuple[Any, ...]]
"""One of llama.cpp's samplers: its name in llama_sampler_init_NAME, and the arguments."""


def dry_link(vocab: Vocab, *numbers: float, breakers: Sequence[str]) -> Link:
    """The DRY sampler. numbers: multiplier, base, allowed length, last n."""
    texts = [text.encode("utf-8", "replace") for text in breakers]
    array = (ctypes.c_char_p * len(texts))(*texts)
    return "dry", (vocab.handle, *numbers, array, len(texts))


class SamplerChain:
    """llama.cpp's samplers, one after the other; the last one chooses."""

    def __init__(self, links: Iterable[Link]) -> None:
        params = C.llama_sampler_chain_default_params()
        params.no_perf = True
        self._handle = C.llama_sampler_chain_init(params)
        for name, arguments in links:
            sampler = getattr(C, f"llama_sampler_init_{name}")(*arguments)
            C.llama_sampler_chain_add(self._handle, sampler)  # the chain owns it from here
        self._candidates = C.llama_token_data_array()
        self._records: NDArray[np.void] | None = None  # its memory
        self._address = ctypes.c_void_p.from_buffer(self._candidates)  # of its first field, data
        self._reference = ctypes.byref(self._candidates)

    def accept(self, tokens: Iterable[int]) -> None:
        """Tell the samplers that look back which tokens were chosen."""
        for token in tokens:
            _accept(self._handle, token)

    def choose(self, candidates: NDArray[np.void]) -> int:
        """Draw one token from candidates (CANDIDATE records, which are overwritten)."""
        array = self._apply(candidates)
        selected = array.selected
        if not 0 <= selected < array.size:
            raise RuntimeError("llama.cpp's samplers chose no token")
        return int(array.data[selected].id)

    def _apply(self, candidates: NDArray[np.void]) -> Any:
        array = self._candidates
        self._records = candidates  # which `probability` and candidates() read
        self._address.value = candidates.ctypes.data
        array.size = count = len(candidates)
        array.selected = -1
        array.sorted = False
        apply = _apply if count <= _BRIEF else C.llama_sampler_apply
        apply(self._handle, self._reference)
        return array

    def skip(self, count: int) -> None:
        """Use as many random numbers as `count` choices would."""
        alone = np.zeros(1, dtype=CANDIDATE)
        for _ in range(count):
            self._apply(alone)

    def clone(self) -> SamplerChain:
        """A chain that will choose as this one would now."""
        twin = SamplerChain(())
        C.llama_sampler_free(twin._handle)
        twin._handle = C.llama_sampler_clone(self._handle)
        return twin

    def narrow(self, candidates: NDArray[np.void]) -> NDArray[np.void]:
        """What a chain that does not choose leaves of candidates, in its order."""
        return candidates[: self._apply(candidates).size]

    @property
    def probability(self) -> float:
        """Of the token that the newest choose() chose, among those that it drew from."""
        return float(self._candidates.data[self._candidates.selected].p)

    def candidates(self) -> list[tuple[int, float]]:
        """The tokens that the newest choose() drew from, with their probabilities."""
        array = self._candidates
        return [(array.data[index].id, array.data[index].p) for index in range(array.size)]

    def close(self) -> None:
        """Free the samplers."""
        handle, self._handle = self._handle, None
        if handle is not None:
            C.llama_sampler_free(handle)
