"""llama.cpp's samplers, and chains of them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface
import numpy as np
from numpy.typing import NDArray

from cllm.engine.llama.vocab import Vocab

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data."""

_HELD = 1024  # candidates up to which giving up the interpreter's lock would cost more than a call

_FIRST_ROOM = 256

# Calls llama.cpp without giving up the interpreter's lock.
_APPLY: Any = ctypes.cast(C.llama_sampler_apply, ctypes.c_void_p).value
_apply_held: Any = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(_APPLY)

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
        self._array = C.llama_token_data_array()
        self._make_room(_FIRST_ROOM)

    def _make_room(self, count: int) -> None:
        self._records = records = np.empty(count, dtype=CANDIDATE)
        self._ids, self._logits = records["id"], records["logit"]
        self._array.data = ctypes.cast(records.ctypes.data, C.llama_token_data_p)

    def accept(self, tokens: Iterable[int]) -> None:
        """Tell the samplers that look back which tokens were chosen."""
        for token in tokens:
            C.llama_sampler_accept(self._handle, token)

    def choose(self, ids: NDArray[np.intp], logits: NDArray[np.float32]) -> int:
        """Draw one of these tokens, which have these logits."""
        array, count = self._array, len(ids)
        if count > len(self._records):
            self._make_room(count)
        self._ids[:count] = ids
        self._logits[:count] = logits
        array.size = count
        array.selected = -1
        array.sorted = False
        apply = _apply_held if count <= _HELD else C.llama_sampler_apply
        apply(self._handle, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise RuntimeError("llama.cpp's samplers chose no token")
        return int(self._ids[array.selected])

    def candidates(self) -> list[tuple[int, float]]:
        """The tokens that the newest choose() drew from, with their probabilities."""
        array = self._array
        return [(array.data[index].id, array.data[index].p) for index in range(array.size)]

    def close(self) -> None:
        """Free the samplers."""
        handle, self._handle = self._handle, None
        if handle is not None:
            C.llama_sampler_free(handle)
