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
        self._address = ctypes.c_void_p.from_buffer(self._candidates)  # of its first field, data

    def accept(self, tokens: Iterable[int]) -> None:
        """Tell the samplers that look back which tokens were chosen."""
        for token in tokens:
            _accept(self._handle, token)

    def choose(self, candidates: NDArray[np.void]) -> int:
        """Draw one token from candidates (CANDIDATE records, which are overwritten)."""
        array = self._candidates
        self._address.value = candidates.ctypes.data
        array.size = len(candidates)
        array.selected = -1
        array.sorted = False
        apply = _apply if array.size <= _BRIEF else C.llama_sampler_apply
        apply(self._handle, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise RuntimeError("llama.cpp's samplers chose no token")
        return int(array.data[array.selected].id)

    def candidates(self) -> list[tuple[int, float]]:
        """The tokens that the newest choose() drew from, with their probabilities."""
        array = self._candidates
        return [(array.data[index].id, array.data[index].p) for index in range(array.size)]

    def close(self) -> None:
        """Free the samplers."""
        handle, self._handle = self._handle, None
        if handle is not None:
            C.llama_sampler_free(handle)
